package usage

import (
	"strconv"
	"testing"
	"time"

	is "github.com/stretchr/testify/require"
)

// The tokens of a grant share its counter, which holds on to none of them; those that nobody uses are forgotten, and counted
// on when they are used again.
func TestOneCounterForAGrant(t *testing.T) {
	t.Parallel()
	l := New(Config{})
	id := []byte("a grant of a request's memory")
	one := l.Counter(Grant, string(id))
	is.Empty(t, l.open, "it was not used")
	one.Hit(time.Now(), nil)
	is.Same(t, one, l.Counter(Grant, string(id)))
	is.NotSame(t, one, l.Counter(APIKey, string(id)))
	one.Hit(time.Now(), nil)
	is.Equal(t, 1, l.Waiting())

	list := l.toWrite()
	is.Equal(t, []*Counter{one}, list)
	var u Record
	one.take(&u)
	is.Equal(t, uint64(2), u.Count)
	is.Same(t, one, l.Counter(Grant, string(id)), "it was used")
	is.Empty(t, l.toWrite())
	is.Empty(t, l.open, "it was not")

	two := l.Counter(Grant, string(id)) // of another token, while a cache holds the first
	two.Hit(time.Now(), nil)
	one.Hit(time.Now(), nil)
	is.NotSame(t, one, two)
	is.Equal(t, 2, l.Waiting())
	is.ElementsMatch(t, []*Counter{one, two}, l.toWrite())

	for i := range maxUses + 10 {
		l.Counter(Grant, strconv.Itoa(i)).Hit(time.Now(), nil)
	}
	is.Len(t, l.open, maxUses)
	l.toWrite()
	is.Equal(t, maxUses, l.Waiting(), "until they are taken")
}

// What could not be written is written later, however much there is of it: scopes too, which a counter notes once.
func TestCountsThatWereNotWrittenHaveRoom(t *testing.T) {
	t.Parallel()
	l := New(Config{})
	const many = maxUses/2 + 1000
	for i := range many {
		c := &Counter{log: l, Of: Of{Grant, strconv.Itoa(i)}}
		c.Hit(time.Now(), nil)
		c.Asked("orders:read")
	}
	for range 3 { // flushes that fail
		list := l.toWrite()
		is.Len(t, list, many)
		for _, c := range list {
			u := &Record{V: 1}
			c.take(u)
			is.Equal(t, uint64(1), u.Count)
			is.Equal(t, []string{"orders:read"}, u.Scopes)
			l.giveBack(c.Of, u)
		}
		is.Equal(t, many, l.Waiting())
	}
}
