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

// Intervals are those of UTC, whatever the zone of the clock.
func TestIntervals(t *testing.T) {
	t.Parallel()
	east := time.FixedZone("east", 14*60*60)
	for _, x := range []struct {
		per             Interval
		now, from, next string
	}{
		{Hour, "2026-12-31T23:59:59.999Z", "2026-12-31T23:00:00Z", "2027-01-01T00:00:00Z"},
		{Hour, "2027-01-01T00:00:00Z", "2027-01-01T00:00:00Z", "2027-01-01T01:00:00Z"},
		{Day, "2028-02-28T23:30:00Z", "2028-02-28T00:00:00Z", "2028-02-29T00:00:00Z"},
		{Day, "2026-12-31T23:59:59Z", "2026-12-31T00:00:00Z", "2027-01-01T00:00:00Z"},
		{Month, "2028-02-29T12:00:00Z", "2028-02-01T00:00:00Z", "2028-03-01T00:00:00Z"},
		{Month, "2026-12-01T00:00:00Z", "2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z"},
	} {
		now, err := time.Parse(time.RFC3339, x.now)
		is.NoError(t, err)
		for _, zone := range []*time.Location{time.UTC, east} {
			from, next := x.per.around(now.In(zone))
			is.Equal(t, x.from, time.UnixMilli(from).UTC().Format(time.RFC3339), x)
			is.Equal(t, x.next, time.UnixMilli(next).UTC().Format(time.RFC3339), x)
		}
	}
	is.True(t, Interval("").Known())
	is.False(t, Interval("week").Known())
}

// A count begins again with its interval, never for a clock that is behind, and a clock that jumped far ahead does not end it.
func TestACountBeginsAgain(t *testing.T) {
	t.Parallel()
	noon := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	today, tomorrow := Day.around(noon)
	year := noon.AddDate(1, 0, 0).UnixMilli()
	for _, x := range []struct {
		what   string
		per    Interval
		stored Spent
		want   Spent
	}{
		{"the same day", Day, Spent{N: 3, From: today}, Spent{N: 3, From: today}},
		{"the day before", Day, Spent{N: 3, From: today - 1}, Spent{From: today}},
		{"another process is in the next day already", Day, Spent{N: 3, From: tomorrow}, Spent{N: 3, From: tomorrow}},
		{"a clock that jumped", Day, Spent{N: 3, From: year}, Spent{N: 3, From: today}},
		{"it had no interval", Day, Spent{N: 3}, Spent{From: today}},
		{"it has none any more", "", Spent{N: 3, From: today}, Spent{N: 3}},
		{"it never had one", "", Spent{N: 3}, Spent{N: 3}},
	} {
		is.Equal(t, x.want, x.stored.at(x.per, noon), x.what)
	}
}
