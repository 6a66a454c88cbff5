package redisstore_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/redisstore"
	"github.com/apitoken-go/apitoken/store/redisstore/redistest"
)

// statOf returns a number of a command's statistics on the server, such as its calls or its microseconds.
func statOf(tb testing.TB, c *redis.Client, command, name string) int {
	tb.Helper()
	text, err := c.Info(context.Background(), "commandstats").Result()
	require.NoError(tb, err)
	_, text, there := strings.Cut(text, "cmdstat_"+command+":")
	if !there {
		return 0
	}
	_, text, there = strings.Cut(text, name+"=")
	require.True(tb, there, name)
	n, err := strconv.Atoi(text[:strings.IndexAny(text, ",\r\n")])
	require.NoError(tb, err)
	return n
}

// writeEvents writes n events, each as fill has made it.
func writeEvents(tb testing.TB, s store.Store, n int, fill func(e *store.Record, i int)) {
	tb.Helper()
	const size = 16
	for i := 0; i < n; i += size {
		c := change(nil)
		for j := i; j < min(i+size, n); j++ {
			e := event(fmt.Sprintf("%06d", j))
			e.Data = nil
			fill(&e, j)
			c.Events = append(c.Events, e)
		}
		_, err := s.Apply(context.Background(), c)
		require.NoError(tb, err)
	}
}

// TestPairReadsNoEventThatDoesNotMatch counts what the server does for queries by several selectors: they are compared in the
// index, and an event is read only to be in the page, or to tell that there is another page.
func TestPairReadsNoEventThatDoesNotMatch(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	server := redistest.Private(t, "--appendonly", "no")
	c := server.Client(t)
	s := openAt(t, c, &redisstore.Options{InsecureMayLoseWrites: true})
	const n = 20_000 // four blocks and most of a fifth
	writeEvents(t, s, n, func(e *store.Record, i int) {
		e.Client, e.Type, e.Subject, e.Grant = "web", "issued", []string{"even", "odd"}[i%2], []string{"h", "g"}[i%2]
		if i%5000 == 77 {
			e.Client, e.Type = "other", "revoked"
		}
		if i < 3000 {
			e.Expires = 1
		}
	})
	// The purge leaves events in the block.
	removed, err := s.Purge(ctx, store.KindEvent, 10, 3000)
	require.NoError(t, err)
	require.Equal(t, 3000, removed)

	for _, tc := range []struct {
		q       store.Query
		records int
		reads   int
	}{
		{store.Query{Client: "web", Type: "revoked"}, 0, 0},
		{store.Query{Client: "other", Type: "issued"}, 0, 0},
		{store.Query{Subject: "even", Grant: "g"}, 0, 0},
		{store.Query{Subject: "even", Grant: "g", Client: "web", Type: "issued"}, 0, 0},
		{store.Query{Client: "other", Type: "revoked"}, 3, 3}, // of four the first was purged
		{store.Query{Subject: "odd", Type: "revoked"}, 3, 3},
		{store.Query{Client: "web", Type: "issued", Limit: 10}, 10, 11},
		{store.Query{Client: "web", Limit: 10}, 10, 11},
	} {
		for _, newest := range []bool{false, true} {
			q := tc.q
			q.Kind, q.Newest = store.KindEvent, newest
			before := statOf(t, c, "xrange", "calls")
			p, err := s.List(ctx, q)
			require.NoError(t, err)
			require.Len(t, p.Records, tc.records, "%+v", q)
			require.Equal(t, tc.reads, statOf(t, c, "xrange", "calls")-before, "events read for %+v", q)
		}
	}

	// Without a column of the index an answer would leave events out.
	require.NoError(t, c.Del(ctx, "{"+s.Prefix()+":}t:2:5").Err())
	_, err = s.List(ctx, store.Query{Kind: store.KindEvent, Client: "web", Type: "revoked"})
	require.ErrorIs(t, err, redisstore.ErrDamaged)
}

// TestSelectorsAgreeWithAScan asks for random selectors of random events, some of which were purged, in pages of random
// length.
func TestSelectorsAgreeWithAScan(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s := open(t, nil)
	seed := rand.Uint64()
	t.Log("seed", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	one := func(name string, of int) string { // some have no such selector, and most are few
		if i := random.IntN(of) * random.IntN(of) / of; i > 0 {
			return fmt.Sprint(name, i)
		}
		return ""
	}
	fill := func(e *store.Record) {
		e.Subject, e.Client, e.Grant, e.Token, e.Type = one("x", 300), one("x", 4), one("x", 1000), one("x", 5000), one("x", 6)
	}
	const n = 9000 // two blocks and the beginning of a third
	writeEvents(t, s, n, func(e *store.Record, i int) {
		fill(e)
		if random.IntN(3) == 0 {
			e.Expires = int64(1 + random.IntN(1000))
		}
	})
	for _, before := range []int64{0, 500} {
		_, err := s.Purge(ctx, store.KindEvent, before, n)
		require.NoError(t, err)
		kept := all(t, s, store.Query{Kind: store.KindEvent})
		for range 150 {
			var like store.Record
			if random.IntN(3) == 0 {
				fill(&like)
			} else {
				like = kept[random.IntN(len(kept))]
			}
			q := store.Query{Kind: store.KindEvent, Limit: 1 + random.IntN(200), Newest: random.IntN(2) == 0}
			for i, to := range []*string{&q.Subject, &q.Client, &q.Grant, &q.Token, &q.Type} {
				if random.IntN(2) == 0 {
					*to = []string{like.Subject, like.Client, like.Grant, like.Token, like.Type}[i]
				}
			}
			if q.Subject+q.Client+q.Grant+q.Token+q.Type == "" {
				continue
			}
			want := []string{}
			for i := range kept {
				if q.Matches(&kept[i]) {
					want = append(want, kept[i].ID)
				}
			}
			if q.Newest {
				slices.Reverse(want)
			}
			got := ids(all(t, s, q))
			require.True(t, slices.Equal(want, got), "%+v: %d events, want %d", q, len(got), len(want))
		}
	}
}
