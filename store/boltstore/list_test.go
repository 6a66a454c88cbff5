package boltstore

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/store"
)

// fill writes n of kind with ids in order, and as many events, sixteen to a change.
func fill(t *testing.T, s store.Store, kind store.Kind, from, n int, expires int64) {
	t.Helper()
	for i := 0; i < n; i += 16 {
		c := &store.Change{ID: newVersion()}
		for j := i; j < min(i+16, n); j++ {
			id := fmt.Sprintf("%08d", from+j)
			c.Puts = append(c.Puts, store.Put{Record: store.Record{Kind: kind, ID: id, Subject: fmt.Sprint("s", j%3), Expires: expires}})
			c.Events = append(c.Events, store.Record{Kind: store.KindEvent, ID: id, Subject: fmt.Sprint("s", j%3), Expires: expires})
		}
		_, err := s.Apply(context.Background(), c)
		require.NoError(t, err)
	}
}

func TestPurgeThroughRunsAndBlocks(t *testing.T) {
	t.Parallel()
	s, ctx := newT(t), context.Background()
	n := 4*groupMembers + 100
	past := time.Now().UnixMilli() - 1000
	fill(t, s, "grant", 0, n, past)
	fill(t, s, "grant", n, n, 0)
	q := store.Query{Kind: "grant", Subject: "s1"}
	e := store.Query{Kind: store.KindEvent, Subject: "s1", Limit: 10}
	first, err := s.List(ctx, e)
	require.NoError(t, err)
	newest := e
	newest.Newest = true
	firstNewest, err := s.List(ctx, newest)
	require.NoError(t, err)
	before, beforeEvents := len(all(t, s, q)), len(all(t, s, e))

	for _, kind := range []store.Kind{"grant", store.KindEvent} {
		got, err := s.Purge(ctx, kind, past+1, 7)
		require.NoError(t, err)
		require.Equal(t, 7, got, "never more than max")
		got, err = s.Purge(ctx, kind, past, n*3)
		require.NoError(t, err)
		require.Zero(t, got, "Expires < before is strict")
		got, err = s.Purge(ctx, kind, past+1, n*3)
		require.NoError(t, err)
		require.Equal(t, n-7, got)
		got, err = s.Purge(ctx, kind, past+1, n*3)
		require.NoError(t, err)
		require.Zero(t, got)
	}
	require.Less(t, len(all(t, s, q)), before)
	require.Len(t, all(t, s, q), n/3)
	require.Len(t, all(t, s, e), n/3)
	require.Less(t, n/3, beforeEvents)
	require.Len(t, all(t, s, store.Query{Kind: "grant"}), n)
	e.Cursor = first.Cursor
	_, err = s.List(ctx, e)
	require.ErrorIs(t, err, store.ErrTrimmed, "a feed that missed events is told so")
	newest.Cursor = firstNewest.Cursor
	_, err = s.List(ctx, newest)
	require.NoError(t, err, "backwards, nothing that was to come is missing")

	// What comes back under the same id is one record, though its run still knows the old one.
	fill(t, s, "grant", 0, 16, 0)
	found := all(t, s, q)
	require.Len(t, found, n/3+5)
	require.Equal(t, "00000001", found[0].ID)

	// With everything gone, nothing is left of the runs.
	fill(t, s, "other", 0, 3*groupMembers, past)
	got, err := s.Purge(ctx, "other", past+1, 1e6)
	require.NoError(t, err)
	require.Equal(t, 3*groupMembers, got)
	settle(t, s, "other")
	require.NoError(t, s.alone(ctx, func() error {
		tx, err := s.db.Begin(false)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback() }()
		for _, c := range []class{classRecords, classDue, classTail, classSegments, classChunks} {
			k, _ := readSub(tx.Bucket(s.bucket), c, "other").Cursor().First()
			require.Nil(t, k, "bucket %c is empty", c)
		}
		return nil
	}))
}

func TestExpiryMovedEarlierIsPurged(t *testing.T) {
	t.Parallel()
	for _, inRun := range []bool{false, true} {
		s, ctx := newT(t), context.Background()
		far := time.Now().Add(time.Hour).UnixMilli()
		fill(t, s, "grant", 0, 32, far)
		if inRun {
			fill(t, s, "grant", 100, groupMembers, far)
		}
		r, err := s.Get(ctx, "grant", "00000005")
		require.NoError(t, err)
		r.Expires = 1
		must(t, s, []store.Put{{Record: r, Expect: r.Version}})
		n, err := s.Purge(ctx, "grant", far+1, 100)
		require.NoError(t, err)
		require.Equal(t, 1, n)
		_, err = s.Get(ctx, "grant", "00000005")
		require.ErrorIs(t, err, store.ErrNotFound)
	}
}

func TestListByTime(t *testing.T) {
	t.Parallel()
	ft := &fakeTime{wall: time.UnixMilli(1.8e12)}
	s, err := open(filepath.Join(t.TempDir(), "tokens.db"), &Options{}, ft.clock())
	require.NoError(t, err)
	defer s.Close()
	at := func(i int) int64 { return 1.8e12 + int64(i)*1000 }
	for range 5 {
		for j := range 20 { // 20 in one millisecond
			must(t, s, []store.Put{put("grant", fmt.Sprint(ft.mono, j), store.Version{})}, store.Record{Kind: store.KindEvent, ID: "e", Subject: fmt.Sprint(j % 2)})
		}
		ft.pass(time.Second)
	}
	for _, kind := range []store.Kind{"grant", store.KindEvent} {
		for _, newest := range []bool{false, true} {
			for _, limit := range []int{0, 7} {
				count := func(q store.Query) int {
					q.Kind, q.Newest, q.Limit = kind, newest, limit
					return len(all(t, s, q))
				}
				require.Equal(t, 100, count(store.Query{}))
				require.Equal(t, 60, count(store.Query{Since: at(2)}))
				require.Equal(t, 40, count(store.Query{Until: at(2)}))
				require.Equal(t, 20, count(store.Query{Since: at(2), Until: at(3)}), "half open")
				require.Equal(t, 20, count(store.Query{Since: at(2), Until: at(2) + 1}))
				require.Zero(t, count(store.Query{Since: at(2) + 1, Until: at(3)}))
				if kind == store.KindEvent {
					require.Equal(t, 10, count(store.Query{Since: at(2), Until: at(3), Subject: "1"}))
				}
			}
		}
	}
}

func TestCursorsAreChecked(t *testing.T) {
	t.Parallel()
	s, ctx := newT(t), context.Background()
	fill(t, s, "grant", 0, 20, 0)
	p, err := s.List(ctx, store.Query{Kind: "grant", Limit: 3})
	require.NoError(t, err)
	require.NotEmpty(t, p.Cursor)
	for _, q := range []store.Query{
		{Kind: store.KindRule, Cursor: p.Cursor}, {Kind: store.KindEvent, Cursor: p.Cursor},
		{Kind: "grant", Newest: true, Cursor: p.Cursor}, {Kind: "grant", Cursor: "!"}, {Kind: "grant", Cursor: "AAAA"},
		{Kind: store.KindEvent, Cursor: place{n: -1}.encode(&store.Query{Kind: store.KindEvent})}, {},
	} {
		_, err := s.List(ctx, q)
		require.Error(t, err, "%+v", q)
	}
	p, err = s.List(ctx, store.Query{Kind: "grant", Limit: 20})
	require.NoError(t, err)
	require.Empty(t, p.Cursor, "a full page with nothing behind it has no cursor")
}

func TestChangesOutsideOfTheContract(t *testing.T) {
	t.Parallel()
	s, ctx := newT(t), context.Background()
	id := newVersion()
	big := func(n int) []byte { return make([]byte, n) }
	many := func(n int) (ps []store.Put) {
		for i := range n {
			ps = append(ps, store.Put{Record: store.Record{Kind: "k", ID: fmt.Sprint(i), Data: big(store.MaxData)}})
		}
		return ps
	}
	for name, tc := range map[string]struct {
		c    *store.Change
		want error
	}{
		"nil":            {nil, store.ErrInvalid},
		"no id":          {&store.Change{}, store.ErrInvalid},
		"17 puts":        {&store.Change{ID: id, Puts: make([]store.Put, 17)}, store.ErrTooLarge},
		"17 events":      {&store.Change{ID: id, Events: make([]store.Record, 17)}, store.ErrTooLarge},
		"data":           {&store.Change{ID: id, Puts: []store.Put{{Record: store.Record{Kind: "k", ID: "i", Data: big(store.MaxData + 1)}}}}, store.ErrTooLarge},
		"in all":         {&store.Change{ID: id, Puts: many(16)}, store.ErrTooLarge},
		"long id":        {&store.Change{ID: id, Puts: []store.Put{put("k", strings.Repeat("x", 256), store.Version{})}}, store.ErrTooLarge},
		"empty id":       {&store.Change{ID: id, Puts: []store.Put{put("k", "", store.Version{})}}, store.ErrInvalid},
		"NUL":            {&store.Change{ID: id, Puts: []store.Put{put("k", "a\x00", store.Version{})}}, store.ErrInvalid},
		"not UTF-8":      {&store.Change{ID: id, Puts: []store.Put{put("k", "\xff", store.Version{})}}, store.ErrInvalid},
		"no kind":        {&store.Change{ID: id, Puts: []store.Put{put("", "i", store.Version{})}}, store.ErrInvalid},
		"twice":          {&store.Change{ID: id, Puts: []store.Put{put("k", "i", store.Version{}), put("k", "i", store.Version{})}}, store.ErrInvalid},
		"event as put":   {&store.Change{ID: id, Puts: []store.Put{put(store.KindEvent, "i", store.Version{})}}, store.ErrInvalid},
		"put as event":   {&store.Change{ID: id, Events: []store.Record{{Kind: "k", ID: "i"}}}, store.ErrInvalid},
		"unlimited text": {&store.Change{ID: id, Events: []store.Record{{Kind: store.KindEvent, ID: "i", Subject: strings.Repeat("s", store.MaxChange)}}}, store.ErrTooLarge},
	} {
		_, err := s.Apply(ctx, tc.c)
		require.ErrorIs(t, err, tc.want, name)
	}
	must(t, s, many(15))
	_, err := s.Get(ctx, "k", "\x00")
	require.ErrorIs(t, err, store.ErrNotFound)
	r, err := s.Get(ctx, "k", "3")
	require.NoError(t, err)
	r.Subject = "another"
	_, err = s.Apply(ctx, &store.Change{ID: newVersion(), Puts: []store.Put{{Record: r, Expect: r.Version}}})
	require.ErrorIs(t, err, store.ErrInvalid, "selectors are fixed for the life of a record")
}

func TestNamespaces(t *testing.T) {
	t.Parallel()
	s, ctx := newT(t), context.Background()
	a, b := s.Namespace("a"), s.Namespace("b")
	must(t, a, []store.Put{put(store.KindRule, "x", store.Version{})}, event("of a"))
	for _, other := range []store.Store{s, b} {
		_, err := other.Get(ctx, store.KindRule, "x")
		require.ErrorIs(t, err, store.ErrNotFound)
		require.Empty(t, all(t, other, store.Query{Kind: store.KindEvent}))
		v, err := other.Follow(ctx, store.Position{}, nil, 1)
		require.NoError(t, err)
		require.Empty(t, v.Records)
		require.Zero(t, v.Next.N)
		require.NotZero(t, v.Next.History, "a position of an empty namespace is not the zero Position")
	}
	for _, name := range []string{"", "A", "ü", "a.b", "a/b", strings.Repeat("a", 65)} {
		_, err := s.Namespace(name).Get(ctx, store.KindRule, "x")
		require.ErrorIs(t, err, store.ErrInvalid, name)
		_, err = s.Namespace(name).Apply(ctx, &store.Change{ID: newVersion()})
		require.ErrorIs(t, err, store.ErrInvalid, name)
	}
	require.Same(t, a, s.Namespace("a"))
}

func TestWaitWakes(t *testing.T) {
	t.Parallel()
	s, ctx := newT(t), context.Background()
	v, err := s.Follow(ctx, store.Position{}, nil, 1)
	require.NoError(t, err)
	woke := make(chan error, 1)
	go func() { woke <- s.Wait(ctx, v.Next) }()
	must(t, s.Namespace("other"), []store.Put{put(store.KindRule, "x", store.Version{})})
	must(t, s, []store.Put{put("grant", "x", store.Version{})})
	select {
	case <-woke:
		t.Fatal("neither another namespace nor a grant is something to follow here")
	default:
	}
	must(t, s, []store.Put{put(store.KindRule, "x", store.Version{})})
	require.NoError(t, <-woke)
	require.NoError(t, s.Wait(ctx, v.Next), "what came before Wait counts")
	short, cancel := context.WithCancel(ctx)
	cancel()
	v, err = s.Follow(ctx, store.Position{}, nil, 1)
	require.NoError(t, err)
	require.ErrorIs(t, s.Wait(short, v.Next), context.Canceled)
}
