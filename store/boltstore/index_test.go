package boltstore

import (
	"compress/gzip"
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/bbolt"

	"github.com/apitoken-go/apitoken/store"
)

// bulk hands changes to the writer without a wait for each, so that some hundred share one commit.
func bulk(t testing.TB, s *Store, n int, change func(i int) *store.Change) {
	t.Helper()
	for i := 0; i < n; {
		var all []*request
		for ; i < n && len(all) < 4*maxGroup; i++ {
			all = append(all, &request{sp: s.space, in: newIntent(change(i)), done: make(chan struct{})})
		}
		s.queueMu.Lock()
		s.queue = append(s.queue, all...)
		s.queueMu.Unlock()
		select {
		case s.wake <- struct{}{}:
		default:
		}
		for _, r := range all {
			<-r.done
			require.NoError(t, r.out.err)
		}
	}
}

// indexState reads the directory of segments of a kind, and whether anything is left to do for the index.
func indexState(t testing.TB, s *Store, kind store.Kind) (all []segment, due bool) {
	t.Helper()
	require.NoError(t, s.space.view(context.Background(), func(ns *bbolt.Bucket) (err error) {
		if old := readSub(ns, oldClass(kind), kind); old != nil {
			k, _ := old.Cursor().First()
			due = k != nil
		}
		if all, err = segments(ns, kind); err != nil {
			return err
		}
		due = due || mergeable(all) != nil || unknown(readSub(ns, classChunks, kind), all) != nil
		return nil
	}))
	return all, due
}

// settle waits until the index of a kind has nothing to do.
func settle(t testing.TB, s *Store, kind store.Kind) (all []segment) {
	t.Helper()
	s.merging.ask(s.space)
	require.Eventually(t, func() (due bool) { all, due = indexState(t, s, kind); return !due }, 2*time.Minute, 5*time.Millisecond)
	return all
}

// mixed is the i-th change of a store whose records and events have selectors of all frequencies. Ids are not in the order
// in which they are made.
func mixed(i, n int, expires int64) *store.Change {
	id := fmt.Sprintf("%08d", i*7919%n)
	g := store.Record{
		Kind: "grant", ID: id, Subject: fmt.Sprint("s", i%97), Client: fmt.Sprint("c", i%3), Type: fmt.Sprint("y", i%5), Expires: expires,
	}
	e := store.Record{
		Kind: store.KindEvent, ID: fmt.Sprint("e", i), Subject: g.Subject, Client: g.Client, Grant: id, Token: fmt.Sprint("t", i/2),
		Type: fmt.Sprint("y", i%1009/1000), Expires: expires,
	}
	return &store.Change{ID: newVersion(), Puts: []store.Put{{Record: g}}, Events: []store.Record{e}}
}

// agrees compares what List selects with a scan of everything, for one selector, for several, page by page, both ways.
func agrees(t testing.TB, s store.Store, rnd *rand.Rand) {
	t.Helper()
	for _, kind := range []store.Kind{"grant", store.KindEvent} {
		scan := all(t, s, store.Query{Kind: kind, Limit: 1000, Newest: true})
		slices.Reverse(scan)
		require.NotEmpty(t, scan)
		queries := []store.Query{{Client: "c1", Type: "y1"}, {Subject: "s0", Client: "c0"}, {Subject: "nobody"}, {Type: "y0", Client: "nobody"}}
		for range 5 {
			r := scan[rnd.IntN(len(scan))]
			queries = append(queries,
				store.Query{Subject: r.Subject}, store.Query{Subject: r.Subject, Client: r.Client}, store.Query{Grant: r.Grant, Token: r.Token},
				store.Query{Client: r.Client, Type: r.Type, Subject: r.Subject, Since: r.Written}, store.Query{Token: r.Token, Until: r.Written + 1},
			)
		}
		for _, q := range queries {
			if q.Subject+q.Client+q.Grant+q.Token+q.Type == "" {
				continue // the scan itself
			}
			q.Kind = kind
			for _, limit := range []int{7, 1000} {
				q.Limit = limit
				want := []string{}
				for i := range scan {
					if q.Matches(&scan[i]) {
						want = append(want, scan[i].ID)
					}
				}
				if kind == store.KindEvent { // where events were purged there is no second page from the oldest on
					page, err := s.List(context.Background(), q)
					require.NoError(t, err)
					require.Equal(t, want[:min(limit, len(want))], ids(page.Records), "%+v", q)
				} else {
					require.Equal(t, want, ids(all(t, s, q)), "%+v", q)
				}
				q.Newest = true
				slices.Reverse(want)
				require.Equal(t, want, ids(all(t, s, q)), "%+v", q)
				q.Newest = false
			}
		}
	}
}

// TestIndexAgreesWithAScan: whatever is merged, purged, made again, reopened or copied.
func TestIndexAgreesWithAScan(t *testing.T) {
	t.Parallel()
	path, ctx, rnd := filepath.Join(t.TempDir(), "tokens.db"), context.Background(), rand.New(rand.NewPCG(1, 2))
	s := openT(t, path, nil)
	n := 20 * groupMembers
	past := time.Now().UnixMilli() - 1000
	expires := func(i int) int64 {
		switch {
		case i < 9*groupMembers, i%3 == 0:
			return past
		}
		return 1 << 45
	}
	bulk(t, s, n, func(i int) *store.Change { return mixed(i, n, expires(i)) })
	agrees(t, s, rnd) // while it merges
	for _, kind := range []store.Kind{"grant", ""} {
		dir := settle(t, s, kind)
		require.Less(t, len(dir), mergeWidth)
		require.Equal(t, mergeWidth*groupMembers, dir[0].size)
	}
	agrees(t, s, rnd)

	for _, kind := range []store.Kind{"grant", store.KindEvent} {
		removed, err := s.Purge(ctx, kind, past+1, n)
		require.NoError(t, err)
		require.Greater(t, removed, n/2)
	}
	agrees(t, s, rnd)
	for _, kind := range []store.Kind{"grant", ""} {
		for _, g := range settle(t, s, kind) {
			require.GreaterOrEqual(t, g.live, g.size/2, "a segment that has lost most of its members is written anew")
		}
	}
	agrees(t, s, rnd)
	bulk(t, s, 3000, func(i int) *store.Change { return mixed(i, n, 0) }) // ids that were there before
	agrees(t, s, rnd)
	require.NoError(t, s.Compact(ctx))
	agrees(t, s, rnd)
	require.NoError(t, s.Close())
	s = openT(t, path, &Options{ReadOnly: true})
	agrees(t, s, rnd)
	require.NoError(t, s.Close())

	s = openT(t, path, nil)
	removed, err := s.Purge(ctx, "grant", 1<<46, n)
	require.NoError(t, err)
	require.Zero(t, removed, "nothing has expired by the store's clock")
	agrees(t, s, rnd)
}

// TestIndexAfterAMergeThatDidNotEnd: chunks of a segment that never got its entry are not read, and are removed.
func TestIndexAfterAMergeThatDidNotEnd(t *testing.T) {
	t.Parallel()
	s := newT(t)
	n := 2 * groupMembers
	bulk(t, s, n, func(i int) *store.Change { return mixed(i, n, 0) })
	in, _ := indexState(t, s, "grant")
	require.Len(t, in, 2)
	require.NoError(t, s.space.write(func(st *spaceTxn) error {
		w := chunks{id: st.next()}
		if _, err := w.fill(st.b, "grant", in, nil, false); err != nil {
			return err
		}
		return st.putChunks("grant", w.done)
	}))
	agrees(t, s, rand.New(rand.NewPCG(1, 3)))
	settle(t, s, "grant")
	agrees(t, s, rand.New(rand.NewPCG(1, 3)))
}

// TestOpenUpgradesTheIndex opens a file with blocks and runs, which commit 6446eb8 wrote. It answers right before, while and
// after they become segments; what was purged before and is purged meanwhile is counted.
func TestOpenUpgradesTheIndex(t *testing.T) {
	t.Parallel()
	in, err := os.Open("testdata/format1-blocks.db.gz")
	require.NoError(t, err)
	defer in.Close()
	z, err := gzip.NewReader(in)
	require.NoError(t, err)
	b, err := io.ReadAll(z)
	require.NoError(t, err)
	path, rnd := filepath.Join(t.TempDir(), "tokens.db"), rand.New(rand.NewPCG(1, 4))
	require.NoError(t, os.WriteFile(path, b, 0o600))

	s := openT(t, path, &Options{ReadOnly: true})
	_, due := indexState(t, s, "grant")
	require.True(t, due, "it has runs")
	agrees(t, s, rnd)
	grants := ids(all(t, s, store.Query{Kind: "grant", Client: "c1"}))
	require.NoError(t, s.Close())

	s = openT(t, path, nil)
	agrees(t, s, rnd)
	for _, kind := range []store.Kind{"grant", ""} {
		dir := settle(t, s, kind)
		live := 0
		for _, g := range dir {
			live += g.live
		}
		require.NotEmpty(t, dir)
		require.Positive(t, live)
		require.LessOrEqual(t, live, 4200)
	}
	agrees(t, s, rnd)
	require.Equal(t, grants, ids(all(t, s, store.Query{Kind: "grant", Client: "c1"})))
	for _, kind := range []store.Kind{"grant", store.KindEvent} {
		removed, err := s.Purge(context.Background(), kind, 2000, 10_000)
		require.NoError(t, err)
		require.Equal(t, 643-300, removed, kind) // every seventh of 4,500 has expired, and 300 of them were purged before
	}
	agrees(t, s, rnd)
	bulk(t, s, 2*groupMembers, func(i int) *store.Change { c := mixed(i, 1<<20, 0); c.Puts[0].ID += "new"; return c })
	agrees(t, s, rnd)
	require.NoError(t, s.Close())
	s = openT(t, path, nil)
	settle(t, s, "grant")
	agrees(t, s, rnd)
}

var growthMax = flag.Int("growth", 1_000_000, "the largest number of sessions in BenchmarkListGrowth")

// BenchmarkListGrowth lists the sessions and events of one subject, who has as many at each size, and the intersection of
// two selectors, which for events may be empty. What a listing reads must not grow by more than three times while the store
// grows a hundredfold. It does grow where two frequent selectors alternate and never meet: every posting of them is looked at.
func BenchmarkListGrowth(b *testing.B) {
	const alternating = "events-alternating"
	s := newT(b)
	ctx, have := context.Background(), 0
	first := map[string]int{}
	for size := 10_000; size <= *growthMax; size *= 10 {
		bulk(b, s, size-have, func(i int) *store.Change {
			n := int64(have + i)
			g := benchGrant(n)
			g.Subject = fmt.Sprint("user-", n/20) // 20 sessions each, made one after the other
			if i%max(1, (size-have)/8) == 0 {
				g.Subject = "somebody" // and eight now and then, at each size
				g.Expires = time.Now().Add(time.Hour).UnixMilli()
			}
			e := benchEvent(&g, n)
			switch {
			case g.Subject == "somebody" && have == 0:
				e.Type = "disable" // eight in all, of clients 0 and 10
			case g.Client == "client-8":
				e.Type = "refresh"
			}
			return &store.Change{ID: benchID(), Puts: []store.Put{{Record: g}}, Events: []store.Record{e}}
		})
		have = size
		segments := len(settle(b, s, "grant")) + len(settle(b, s, ""))
		for _, q := range []struct {
			name  string
			query store.Query
		}{
			{"sessions", store.Query{Kind: "grant", Subject: "user-77"}},
			{"sessions-newest", store.Query{Kind: "grant", Subject: "user-77", Newest: true, Limit: 10}},
			{"sessions-client", store.Query{Kind: "grant", Subject: "user-77", Client: "client-7"}},
			{"sessions-spread", store.Query{Kind: "grant", Subject: "somebody", Limit: 8}},
			{"expiring", store.Query{Kind: "grant", ExpiresBefore: time.Now().Add(2 * time.Hour).UnixMilli(), Limit: 8}},
			{"client-page", store.Query{Kind: "grant", Client: "client-7", Limit: 20}},
			{"events", store.Query{Kind: store.KindEvent, Subject: "user-77"}},
			{"events-type", store.Query{Kind: store.KindEvent, Subject: "user-77", Type: "issue", Newest: true}},
			{"events-none", store.Query{Kind: store.KindEvent, Client: "client-7", Type: "disable"}},
			{alternating, store.Query{Kind: store.KindEvent, Client: "client-7", Type: "refresh"}},
		} {
			b.Run(fmt.Sprintf("%s/%d", q.name, size), func(b *testing.B) {
				l, err := s.space.lookUp(ctx, q.query)
				if none := q.name == "events-none" || q.name == alternating; err != nil || none != (len(l.out) == 0) {
					b.Fatal(len(l.out), err)
				}
				// An entry of the tail costs a sixteenth of a chunk or record, about.
				reads := l.examined - l.recent + l.recent/16
				best := time.Hour
				for b.Loop() {
					began := time.Now()
					if _, err := s.List(ctx, q.query); err != nil {
						b.Fatal(err)
					}
					best = min(best, time.Since(began))
				}
				b.ReportMetric(float64(reads), "reads/op")
				b.ReportMetric(float64(best.Nanoseconds()), "best-ns")
				b.ReportMetric(float64(segments), "segments")
				if first[q.name] == 0 {
					first[q.name] = reads
				}
				if reads > 3*first[q.name] && q.name != alternating {
					b.Errorf("it reads %d chunks and records, %d at 10,000", reads, first[q.name])
				}
			})
		}
	}
}
