package boltstore

import (
	"context"
	"crypto/rand"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/apitoken-go/apitoken/store"
)

// Sizes as the service writes them: a grant of 300 bytes of data, an event of 150.
func benchGrant(n int64) store.Record {
	return store.Record{
		Kind: "grant", ID: fmt.Sprintf("%016x%016x", time.Now().UnixMilli(), n), Subject: fmt.Sprint("user-", n%5000),
		Client: fmt.Sprint("client-", n%20), Expires: time.Now().Add(24 * time.Hour).UnixMilli(), Data: make([]byte, 300),
	}
}

func benchEvent(g *store.Record, n int64) store.Record {
	return store.Record{
		Kind: store.KindEvent, ID: fmt.Sprintf("%016x", n), Subject: g.Subject, Client: g.Client, Grant: g.ID,
		Token: fmt.Sprintf("t%015x", n), Type: "issue", Data: make([]byte, 150),
	}
}

func benchID() (v store.Version) { _, _ = rand.Read(v[:]); return v }

// run has callers goroutines do b.N operations.
func run(b *testing.B, s *Store, callers int, op func(caller int)) {
	before := s.meta.seq
	var n atomic.Int64
	var wg sync.WaitGroup
	b.ResetTimer()
	for c := range callers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for n.Add(1) <= int64(b.N) {
				op(c)
			}
		}()
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "op/s")
	b.ReportMetric(float64(b.N)/float64(s.meta.seq-before), "op/commit")
}

func BenchmarkIssue(b *testing.B) {
	for _, callers := range []int{1, 8, 64, 256} {
		b.Run(fmt.Sprint(callers), func(b *testing.B) {
			s := newT(b)
			var n atomic.Int64
			run(b, s, callers, func(int) {
				i := n.Add(1)
				g := benchGrant(i)
				c := &store.Change{ID: benchID(), Puts: []store.Put{{Record: g}}, Events: []store.Record{benchEvent(&g, i)}}
				if _, err := s.Apply(context.Background(), c); err != nil {
					b.Error(err)
				}
			})
		})
	}
}

func BenchmarkEvent(b *testing.B) {
	s := newT(b)
	var n atomic.Int64
	run(b, s, 64, func(int) {
		i := n.Add(1)
		g := benchGrant(i)
		c := &store.Change{ID: benchID(), Events: []store.Record{benchEvent(&g, i)}}
		if _, err := s.Apply(context.Background(), c); err != nil {
			b.Error(err)
		}
	})
}

// BenchmarkRotate rewrites grants in place, each caller its own out of 10,000.
func BenchmarkRotate(b *testing.B) {
	for _, callers := range []int{1, 8, 64, 256} {
		b.Run(fmt.Sprint(callers), func(b *testing.B) {
			s := newT(b)
			const grants = 10240
			recs, vers := make([]store.Record, grants), make([]store.Version, grants)
			for i := 0; i < grants; i += 16 {
				c := &store.Change{ID: benchID()}
				for j := i; j < i+16; j++ {
					recs[j], vers[j] = benchGrant(int64(j)), c.ID
					c.Puts = append(c.Puts, store.Put{Record: recs[j]})
				}
				if _, err := s.Apply(context.Background(), c); err != nil {
					b.Fatal(err)
				}
			}
			at := make([]int, callers)
			for i := range at {
				at[i] = i
			}
			var n atomic.Int64
			run(b, s, callers, func(w int) {
				i := at[w]
				if at[w] += callers; at[w] >= grants {
					at[w] = w
				}
				r := recs[i]
				r.Expires = time.Now().Add(24 * time.Hour).UnixMilli()
				c := &store.Change{
					ID: benchID(), Puts: []store.Put{{Record: r, Expect: vers[i]}},
					Events: []store.Record{benchEvent(&r, n.Add(1))},
				}
				if _, err := s.Apply(context.Background(), c); err != nil {
					b.Error(err)
				}
				vers[i] = c.ID
			})
		})
	}
}

// BenchmarkAlone compares one caller with a bare Update of the same bytes, in turn, so that the disk's mood is shared.
func BenchmarkAlone(b *testing.B) {
	for _, what := range []string{"issue", "rotate"} {
		b.Run(what, func(b *testing.B) { benchAlone(b, what == "rotate") })
	}
}

func benchAlone(b *testing.B, rotate bool) {
	s := newT(b)
	db, err := bbolt.Open(filepath.Join(b.TempDir(), "bare.db"), 0o600, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	var ours, bare time.Duration
	var last store.Version
	b.ResetTimer()
	for i := range int64(b.N) {
		g := benchGrant(i)
		c := &store.Change{ID: benchID(), Puts: []store.Put{{Record: g}}, Events: []store.Record{benchEvent(&g, i)}}
		if rotate {
			c.Puts[0].ID, c.Puts[0].Subject, c.Puts[0].Client, c.Puts[0].Expect = "grant", "s", "c", last
		}
		last = c.ID
		v, _ := encodeRecord(&c.Puts[0].Record, c.ID)
		e := encodeEvent(&c.Events[0], c.ID)
		k := key64(i)
		t0 := time.Now()
		if _, err := s.Apply(context.Background(), c); err != nil {
			b.Fatal(err)
		}
		t1 := time.Now()
		err := db.Update(func(tx *bbolt.Tx) error {
			grants, err := tx.CreateBucketIfNotExists([]byte("grants"))
			if err != nil {
				return err
			}
			events, err := tx.CreateBucketIfNotExists([]byte("events"))
			if err != nil {
				return err
			}
			if err := grants.Put([]byte(c.Puts[0].ID), v); err != nil {
				return err
			}
			return events.Put(k, e)
		})
		if err != nil {
			b.Fatal(err)
		}
		ours += t1.Sub(t0)
		bare += time.Since(t1)
	}
	b.ReportMetric(float64(ours)/float64(bare), "ratio")
	b.ReportMetric(float64(ours.Microseconds())/float64(b.N), "µs/apply")
	b.ReportMetric(float64(bare.Microseconds())/float64(b.N), "µs/bare")
	b.ReportMetric(float64(s.db.Stats().TxStats.Write-db.Stats().TxStats.Write)/float64(b.N), "more-writes")
}

// BenchmarkGet reads grants at random out of 10,000. "bbolt" is the same read without the bound on its time.
func BenchmarkGet(b *testing.B) {
	s, ctx := newT(b), context.Background()
	var ids []string
	for len(ids) < 10_000 {
		c := &store.Change{ID: benchID()}
		for range 16 {
			g := benchGrant(int64(len(ids)))
			ids = append(ids, g.ID)
			c.Puts = append(c.Puts, store.Put{Record: g})
		}
		if _, err := s.Apply(ctx, c); err != nil {
			b.Fatal(err)
		}
	}
	for name, get := range map[string]func(context.Context, store.Kind, string) (store.Record, error){"store": s.Get, "bbolt": s.space.get} {
		for _, callers := range []int{1, 64} {
			b.Run(fmt.Sprint(name, "/", callers), func(b *testing.B) {
				b.ReportAllocs()
				var n atomic.Int64
				run(b, s, callers, func(int) {
					if _, err := get(ctx, "grant", ids[int(n.Add(1))*7919%len(ids)]); err != nil {
						b.Error(err)
					}
				})
			})
		}
	}
}

var backupOf = flag.Int("backup", 20_000, "sessions in the file that BenchmarkBackup copies")

// BenchmarkBackup copies a file to nowhere: while nothing else happens, and while 16 callers rewrite its sessions, whose longest
// write it tells.
func BenchmarkBackup(b *testing.B) {
	s := newT(b)
	ctx := context.Background()
	bulk(b, s, *backupOf, func(i int) *store.Change {
		g := benchGrant(int64(i))
		return &store.Change{ID: benchID(), Puts: []store.Put{{Record: g}}, Events: []store.Record{benchEvent(&g, int64(i))}}
	})
	settle(b, s, "grant")
	backup := func(b *testing.B) {
		var size counter
		for b.Loop() {
			size = 0
			if err := s.Backup(ctx, &size); err != nil {
				b.Fatal(err)
			}
		}
		b.SetBytes(int64(size))
	}
	b.Run("idle", backup)
	b.Run("busy", func(b *testing.B) {
		longest := rewrite(b, s)
		backup(b)
		b.ReportMetric(float64(longest().Microseconds())/1e3, "ms-longest-write")
	})
}

// rewrite lets 16 callers rewrite sessions of their own until longest is called, which says how long the longest write took.
func rewrite(b *testing.B, s *Store) (longest func() time.Duration) {
	var stop atomic.Bool
	var most atomic.Int64
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			g := benchGrant(int64(1_000_000_000 + w))
			var v store.Version
			for !stop.Load() {
				c := &store.Change{ID: benchID(), Puts: []store.Put{{Record: g, Expect: v}}}
				began := time.Now()
				if _, err := s.Apply(context.Background(), c); err != nil {
					b.Error(err)
					return
				}
				v = c.ID
				for took := int64(time.Since(began)); ; {
					if old := most.Load(); took <= old || most.CompareAndSwap(old, took) {
						break
					}
				}
			}
		})
	}
	return func() time.Duration {
		stop.Store(true)
		wg.Wait()
		return time.Duration(most.Load())
	}
}

// BenchmarkMerge tells the longest of the writes that 16 callers make while segments of 8,192 sessions and as many events are
// merged.
func BenchmarkMerge(b *testing.B) {
	var most time.Duration
	for b.Loop() {
		s := newT(b)
		bulk(b, s, groupMembers*mergeWidth, func(i int) *store.Change {
			g := benchGrant(int64(i))
			return &store.Change{ID: benchID(), Puts: []store.Put{{Record: g}}, Events: []store.Record{benchEvent(&g, int64(i))}}
		})
		longest := rewrite(b, s)
		settle(b, s, "grant")
		settle(b, s, "")
		most = max(most, longest())
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(most.Microseconds())/1e3, "ms-longest-write")
}

// counter counts what is written to it.
type counter int64

func (c *counter) Write(b []byte) (int, error) { *c += counter(len(b)); return len(b), nil }

var openOf = flag.Int("open", 50_000, "sessions in the file that BenchmarkOpen opens")

// BenchmarkOpen opens a file that Close left, and one that a crash left, which is inspected. A hundredth as many revocations
// as sessions are in it.
func BenchmarkOpen(b *testing.B) {
	path := filepath.Join(b.TempDir(), "tokens.db")
	s, err := Open(path, nil)
	if err != nil {
		b.Fatal(err)
	}
	bulk(b, s, *openOf, func(i int) *store.Change {
		g := benchGrant(int64(i))
		c := &store.Change{ID: benchID(), Puts: []store.Put{{Record: g}}, Events: []store.Record{benchEvent(&g, int64(i))}}
		if i%100 == 0 {
			c.Puts = append(c.Puts, store.Put{Record: store.Record{Kind: store.KindRule, ID: fmt.Sprint(i), Subject: g.Subject, Data: make([]byte, 60)}})
		}
		return c
	})
	settle(b, s, "grant")
	settle(b, s, "")
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	for _, crashed := range []bool{false, true} {
		name := "closed"
		if crashed {
			name = "crashed"
		}
		b.Run(name, func(b *testing.B) {
			var took time.Duration
			n := 0
			for b.Loop() {
				if crashed {
					m := readMark(b, path)
					m.closed = fileState{}
					if err := os.WriteFile(path+".mark", m.encode(), 0o600); err != nil {
						b.Fatal(err)
					}
				}
				began := time.Now()
				s, err := Open(path, nil)
				took += time.Since(began)
				n++
				if err != nil {
					b.Fatal(err)
				}
				if stateOf(path) != (fileState{}) && s.clean == crashed {
					b.Fatal("the opening is not what it is to be")
				}
				if err := s.Close(); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(took.Microseconds())/1000/float64(n), "ms/open")
		})
	}
}
