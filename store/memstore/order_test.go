package memstore

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/store"
)

var changeSeq atomic.Uint64

func newID() (v store.Version) {
	binary.BigEndian.PutUint64(v[:], changeSeq.Add(1))
	return v
}

func must(t *testing.T, s *Store, puts []store.Put, events ...store.Record) store.Version {
	t.Helper()
	c := &store.Change{ID: newID(), Puts: puts, Events: events}
	_, err := s.Apply(context.Background(), c)
	require.NoError(t, err)
	return c.ID
}

func all(t *testing.T, s *Store, q store.Query) (ids []string) {
	t.Helper()
	for {
		p, err := s.List(context.Background(), q)
		require.NoError(t, err)
		for _, r := range p.Records {
			ids = append(ids, r.ID)
		}
		if q.Cursor = p.Cursor; q.Cursor == "" {
			return ids
		}
	}
}

// TestAgainstModel writes, rewrites and purges at random, over many blocks, and compares every kind of list with a plain
// sort of everything.
func TestAgainstModel(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(1, 2))
	clock := time.UnixMilli(1.8e12)
	s := NewWithClock(func() time.Time { return clock })
	model := map[string]store.Record{}
	compare := func() {
		t.Helper()
		soon := clock.UnixMilli()
		for _, q := range []store.Query{
			{}, {Subject: "s3"}, {Client: "c1"}, {Subject: "s3", Client: "c1"}, {Type: "none"}, {Token: "t77"},
			{ExpiresBefore: soon + 200}, {ExpiresBefore: soon + 15_000}, {ExpiresBefore: soon + 15_000, Subject: "s3"},
		} {
			var want []string
			for id, r := range model {
				if (q.Subject == "" || q.Subject == r.Subject) && (q.Client == "" || q.Client == r.Client) && q.Type == "" && (q.Token == "" || q.Token == r.Token) &&
					(q.ExpiresBefore == 0 || r.Expires > 0 && r.Expires < q.ExpiresBefore) {
					want = append(want, id)
				}
			}
			slices.Sort(want)
			q.Kind = store.KindAPIKey
			for _, limit := range []int{0, 100, 999} { // by scanning, and twice by index
				q.Newest, q.Limit = false, limit
				require.Equal(t, want, all(t, s, q), "%+v", q)
				q.Newest = true
				got := all(t, s, q)
				if !q.Ends() {
					slices.Reverse(got)
				}
				require.Equal(t, want, got, "%+v", q)
			}
		}
		var followed []string
		at := store.Position{}
		for more := true; more; {
			v, err := s.Follow(context.Background(), at, nil, 700)
			require.NoError(t, err)
			for _, r := range v.Records {
				require.Equal(t, model[r.ID].Version, r.Version)
				followed = append(followed, r.ID)
			}
			at, more = v.Next, v.More
		}
		require.Len(t, followed, len(model))
	}
	for round := range 4 {
		for range 1500 {
			n := rnd.IntN(6000)
			if round == 0 {
				n = len(model) // in order first, as ids ordered by time are
			}
			id := fmt.Sprintf("%05d", n)
			old := model[id]
			r := store.Record{
				Kind: store.KindAPIKey, ID: id, Subject: fmt.Sprint("s", n%7), Client: fmt.Sprint("c", n%3), Token: fmt.Sprint("t", n),
				Expires: clock.UnixMilli() + rnd.Int64N(20_000),
			}
			if n%5 == 0 {
				r.Expires = 0
			}
			r.Version = must(t, s, []store.Put{{Record: r, Expect: old.Version}})
			model[id] = r
		}
		compare()
		clock = clock.Add(8 * time.Second)
		gone := 0
		for id, r := range model {
			if r.Expires > 0 && r.Expires <= clock.UnixMilli() {
				delete(model, id)
				gone++
			}
		}
		n, err := s.Purge(context.Background(), store.KindAPIKey, 1<<50, 100_000)
		require.NoError(t, err)
		require.Equal(t, gone, n, "all that expired, and nothing else")
		compare()
	}
	require.Less(t, len(s.state.places), 2*len(model)+65, "stale places are bounded")
}

// TestOfTwoSelectorsTheRarerIsLookedUp: in each block, whichever it is, and no entry of a block that lacks one of them is looked at.
func TestOfTwoSelectorsTheRarerIsLookedUp(t *testing.T) {
	t.Parallel()
	s := New()
	for i := range blockSize {
		e := store.Record{Kind: store.KindEvent, ID: fmt.Sprint(i), Client: "busy", Type: "issued"}
		if i == blockSize-1 {
			e.Client, e.Type = "idle", "alert"
		}
		must(t, s, nil, e)
	}
	b := s.tables[store.KindEvent].order.blocks[0]
	ix := newTermIndex(b.entries)
	for _, x := range []struct {
		client, typ string
		looked      int
	}{{"busy", "issued", blockSize - 1}, {"busy", "alert", 1}, {"idle", "issued", 1}, {"idle", "alert", 1}, {"busy", "nothing like it", 0}} {
		looked := 0
		require.True(t, ix.each(b.entries, termsOf(&store.Query{Client: x.client, Type: x.typ}), false, func(*entry) bool { looked++; return true }))
		require.Equal(t, x.looked, looked, "%s, %s", x.client, x.typ)
	}
}

// TestWhatEndsIsReadAlone: of many records those that expire are read without the others, unless they are nearly all.
func TestWhatEndsIsReadAlone(t *testing.T) {
	t.Parallel()
	s := New()
	const n = 20_000
	for i := range n {
		r := store.Record{Kind: store.KindAPIKey, ID: fmt.Sprintf("%05d", i), Expires: int64(1000 + i)}
		must(t, s, []store.Put{{Record: r}})
	}
	tb := s.tables[store.KindAPIKey]
	few, ok := tb.ending(&store.Query{ExpiresBefore: 1010, Limit: 100})
	require.True(t, ok)
	require.Len(t, few, 10)
	looked := 0
	tb.due.before(0, 1010, func(*entry) bool { looked++; return true })
	require.Equal(t, 10, looked)
	_, ok = tb.ending(&store.Query{ExpiresBefore: 1000 + n, Limit: 100})
	require.False(t, ok)
}

// TestPurgeLeavesNothing: what was purged is in no structure any more.
func TestPurgeLeavesNothing(t *testing.T) {
	t.Parallel()
	s := New()
	for i := range 3000 {
		r := store.Record{Kind: store.KindRule, ID: fmt.Sprint(i), Subject: "s", Expires: 1}
		e := r
		e.Kind = store.KindEvent
		must(t, s, []store.Put{{Record: r}}, e)
	}
	for _, k := range []store.Kind{store.KindRule, store.KindEvent} {
		n, err := s.Purge(context.Background(), k, 100, 1e6)
		require.NoError(t, err)
		require.Equal(t, 3000, n)
		require.Empty(t, s.tables[k].order.blocks)
		require.Empty(t, s.tables[k].due)
		require.Empty(t, s.tables[k].byID)
	}
	require.LessOrEqual(t, len(s.state.places), 64)
}

// TestClock: stamps do not go back with the machine's clock, and purging goes by the store's.
func TestClock(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	clock := time.UnixMilli(1.8e12)
	s := NewWithClock(func() time.Time { return clock })
	dead := store.Record{Kind: store.KindRule, ID: "a", Expires: 1.8e12 + 1}
	must(t, s, []store.Put{{Record: dead}})
	n, err := s.Purge(ctx, store.KindRule, 1<<50, 10)
	require.NoError(t, err)
	require.Zero(t, n, "alive until Expires")
	a, err := s.Get(ctx, store.KindRule, "a")
	require.NoError(t, err)
	clock = clock.Add(-time.Hour)
	must(t, s, []store.Put{{Record: store.Record{Kind: store.KindRule, ID: "b"}}})
	b, err := s.Get(ctx, store.KindRule, "b")
	require.NoError(t, err)
	require.Equal(t, a.Written, b.Written)
	require.Greater(t, b.Pos.N, a.Pos.N)
	clock = clock.Add(time.Hour + time.Millisecond)
	n, err = s.Purge(ctx, store.KindRule, 1<<50, 10)
	require.NoError(t, err)
	require.Equal(t, 1, n)
	require.NotEqual(t, New().all.history, New().all.history, "each New is a new history")
}

func TestFollowIsBounded(t *testing.T) {
	t.Parallel()
	s := New()
	for i := 0; i < examine+100; i += 16 {
		var puts []store.Put
		for j := range 16 {
			puts = append(puts, store.Put{Record: store.Record{Kind: store.KindRule, ID: fmt.Sprint(i + j)}})
		}
		must(t, s, puts)
	}
	must(t, s, []store.Put{{Record: store.Record{Kind: store.KindKey, ID: "k"}}})
	kinds := []store.Kind{store.KindKey}
	v, err := s.Follow(context.Background(), store.Position{}, kinds, 10)
	require.NoError(t, err)
	require.True(t, v.More, "a call looks at a bounded number of records")
	require.Empty(t, v.Records)
	v, err = s.Follow(context.Background(), v.Next, kinds, 10)
	require.NoError(t, err)
	require.False(t, v.More)
	require.Len(t, v.Records, 1)
}

func TestCursorsAreChecked(t *testing.T) {
	t.Parallel()
	s, ctx := New(), context.Background()
	for i := range 20 {
		must(t, s, []store.Put{{Record: store.Record{Kind: "grant", ID: fmt.Sprint(i)}}})
	}
	p, err := s.List(ctx, store.Query{Kind: "grant", Limit: 3})
	require.NoError(t, err)
	for _, q := range []store.Query{
		{Kind: store.KindRule, Cursor: p.Cursor}, {Kind: store.KindEvent, Cursor: p.Cursor}, {Kind: "grant", Newest: true, Cursor: p.Cursor},
		{Kind: "grant", Cursor: "!"}, {Kind: "grant", Cursor: "AAAA"},
		{Kind: store.KindEvent, Cursor: encodeCursor(&store.Query{Kind: store.KindEvent}, &entry{number: -1})},
	} {
		_, err := s.List(ctx, q)
		require.ErrorIs(t, err, store.ErrInvalid, "%+v", q)
	}
}

func TestSelectorsAreFixed(t *testing.T) {
	t.Parallel()
	s := New()
	r := store.Record{Kind: "grant", ID: "g", Subject: "one"}
	v := must(t, s, []store.Put{{Record: r}})
	r.Subject = "another"
	_, err := s.Apply(context.Background(), &store.Change{ID: newID(), Puts: []store.Put{{Record: r, Expect: v}}})
	require.ErrorIs(t, err, store.ErrInvalid, "lists go by selectors, so they are fixed for the life of a record")
	require.Same(t, s, s.Namespace("x").Namespace(""))
}

// TestTimePassesBehindAStepBack: the store's clock does not go back, and does not stand still until the machine's has
// caught up with it.
func TestTimePassesBehindAStepBack(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	wall, mono := time.UnixMilli(1.8e12), time.Duration(0)
	pass := func(d time.Duration) { wall, mono = wall.Add(d), mono+d }
	s := newEngine(func() time.Time { return wall }, func() time.Duration { return mono }).namespace("")
	write := func() int64 {
		c, err := s.Apply(ctx, &store.Change{ID: newID(), Events: []store.Record{{Kind: store.KindEvent, ID: "e"}}})
		require.NoError(t, err)
		return c.Now
	}
	now := func() int64 {
		v, err := s.Follow(ctx, store.Position{}, nil, 1)
		require.NoError(t, err)
		return v.Now
	}
	write()
	wall = wall.Add(time.Hour)
	last := write()
	wall = wall.Add(-time.Hour)
	require.GreaterOrEqual(t, now(), last)
	written := write()
	require.GreaterOrEqual(t, written, last)
	pass(2 * time.Minute)
	require.GreaterOrEqual(t, now()-written, time.Minute.Milliseconds())
	require.GreaterOrEqual(t, write()-written, time.Minute.Milliseconds())
	pass(2 * time.Hour)
	require.Equal(t, wall.UnixMilli(), now(), "the two have met")
}
