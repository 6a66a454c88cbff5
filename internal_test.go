package apitoken

import (
	"bytes"
	"context"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	is "github.com/stretchr/testify/require"
)

// The tokens of a grant share its counter, which holds on to none of them; those that nobody uses are forgotten, and counted
// on when they are used again.
func TestOneCounterForAGrant(t *testing.T) {
	t.Parallel()
	a := newAuditLog(&core{})
	l := &a.uses
	id := []byte("a grant of a request's memory")
	one := a.counter(useGrant, string(id))
	is.Empty(t, l.open, "it was not used")
	one.hit(time.Now(), nil)
	is.Same(t, one, a.counter(useGrant, string(id)))
	is.NotSame(t, one, a.counter(useAPIKey, string(id)))
	one.hit(time.Now(), nil)
	is.Equal(t, 1, l.waiting())

	list := l.toWrite()
	is.Equal(t, []*useCounter{one}, list)
	var u useRecord
	one.take(&u)
	is.Equal(t, uint64(2), u.Count)
	is.Same(t, one, a.counter(useGrant, string(id)), "it was used")
	is.Empty(t, l.toWrite())
	is.Empty(t, l.open, "it was not")

	two := a.counter(useGrant, string(id)) // of another token, while a cache holds the first
	two.hit(time.Now(), nil)
	one.hit(time.Now(), nil)
	is.NotSame(t, one, two)
	is.Equal(t, 2, l.waiting())
	is.ElementsMatch(t, []*useCounter{one, two}, l.toWrite())

	for i := range maxUses + 10 {
		a.counter(useGrant, strconv.Itoa(i)).hit(time.Now(), nil)
	}
	is.Len(t, l.open, maxUses)
	l.toWrite()
	is.Equal(t, maxUses, l.waiting(), "until they are taken")
}

// A token is found by its whole text, wherever the cache keeps that, and by nobody's memory but its own.
func TestTheCacheComparesWholeTexts(t *testing.T) {
	t.Parallel()
	c := NewCache(32 << 20)
	v := newValidator(Validation{Cache: c}, "https://api.example.com", nil)
	tail := strings.Repeat("s", 64) // the same for all, so that all have one hash
	for i, n := range []int{65, 375, 376, 377, 504, 505, 760, 761, 1272, 1273, longestBehind, longestBehind + 1, 8 << 10} {
		text := []byte(strings.Repeat(string(rune('A'+i)), n-len(tail)) + tail)
		e := newEntry(string(text))
		h := c.hash(e.token())
		e.hash, e.v, e.gen, e.exp = h, v, v.gen.Load(), 1<<40
		c.keep(e)
		is.Equal(t, string(text), e.token(), n)
		is.Same(t, e, c.find(v, h, string(text)), n)
		is.GreaterOrEqual(t, int(e.size), n+int(unsafe.Sizeof(*e)), n)
		for _, at := range []int{0, (n - len(tail)) / 2, n - len(tail) - 1} {
			text[at] ^= 1
			is.Equal(t, h, c.hash(string(text)))
			is.Nil(t, c.find(v, h, string(text)), "%d bytes, another at %d", n, at)
			text[at] ^= 1
		}
		is.Nil(t, c.find(v, h, string(text[1:])), n)
		is.Nil(t, c.find(v, h, "A"+string(text)), n)

		caller := bytes.Clone(text)
		mine := newEntry(unsafe.String(&caller[0], len(caller)))
		clear(caller)
		is.Equal(t, string(text), mine.token(), n)
	}
}

// What could not be written is written later, however much there is of it: scopes too, which a counter notes once.
func TestCountsThatWereNotWrittenHaveRoom(t *testing.T) {
	t.Parallel()
	l := &newAuditLog(&core{}).uses
	const many = maxUses/2 + 1000
	for i := range many {
		c := &useCounter{log: l, used: used{useGrant, strconv.Itoa(i)}}
		c.hit(time.Now(), nil)
		c.asked("orders:read")
	}
	for range 3 { // flushes that fail
		list := l.toWrite()
		is.Len(t, list, many)
		for _, c := range list {
			u := &useRecord{V: 1}
			c.take(u)
			is.Equal(t, uint64(1), u.Count)
			is.Equal(t, Scopes{"orders:read"}, u.Scopes)
			l.giveBack(c.used, u)
		}
		is.Equal(t, many, l.waiting())
	}
}

// The context of a token may lie in the memory of its parent's, which never shows it, and is given away once.
func TestAContextHasTheTokenItWasMadeWith(t *testing.T) {
	t.Parallel()
	make := func(subject string) Token {
		x, err := NewToken(TokenSpec{Subject: subject})
		is.NoError(t, err)
		return x
	}
	origin := Origin{RequestID: "r1"}
	parent := WithOrigin(context.Background(), origin)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			name := strconv.Itoa(i)
			ctx := NewContext(parent, make(name))
			for range 100 {
				is.Equal(t, name, FromContext(ctx).Subject())
				is.Equal(t, origin, OriginOf(ctx))
				is.Equal(t, "inner"+name, FromContext(NewContext(ctx, make("inner"+name))).Subject())
				is.True(t, FromContext(parent).IsZero())
				is.True(t, FromContext(context.WithValue(parent, originKey{}, nil)).IsZero())
				is.Equal(t, name, FromContext(context.WithValue(ctx, originKey{}, nil)).Subject())
			}
		})
	}
	wg.Wait()
	is.True(t, FromContext(parent).IsZero())
}
