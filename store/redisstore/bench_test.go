package redisstore_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/redisstore"
	"github.com/apitoken-go/apitoken/store/redisstore/redistest"
)

// BenchmarkRotation rewrites a grant with an event, from callers on grants of their own: what a refresh costs, on a server
// that syncs each write, one that syncs each second, and one that waits for its replica.
func BenchmarkRotation(b *testing.B) {
	for _, tc := range []struct {
		name    string
		args    []string
		replica bool
		o       redisstore.Options
	}{
		{"always", nil, false, redisstore.Options{}},
		{"everysec", []string{"--appendfsync", "everysec"}, false, redisstore.Options{InsecureMayLoseWrites: true}},
		{"replica", []string{"--appendonly", "no"}, true, redisstore.Options{WaitReplicas: 1}},
	} {
		for _, callers := range []int{1, 64} {
			b.Run(fmt.Sprint(tc.name, "/", callers), func(b *testing.B) {
				server := redistest.Private(b, tc.args...)
				if tc.replica {
					follow(b, server, tc.args...)
				}
				c := server.Client(b)
				s := openAt(b, c, &tc.o)
				rotate(b, s, callers)
			})
		}
	}
}

func follow(b *testing.B, primary *redistest.Server, args ...string) {
	b.Helper()
	replica := redistest.Private(b, args...)
	host, port := splitAddr(b, primary.Addr)
	require.NoError(b, replica.Client(b).Do(context.Background(), "replicaof", host, port).Err())
	c := primary.Client(b)
	eventually(b, func() bool { return c.Wait(context.Background(), 1, time.Millisecond).Val() == 1 }, "the replica connects")
}

func rotate(b *testing.B, s store.Store, callers int) {
	ctx := context.Background()
	data := make([]byte, 300)
	versions := make([]store.Version, callers)
	grant := func(i int, expect store.Version) store.Put {
		return store.Put{Expect: expect, Record: store.Record{
			Kind: "grant", ID: fmt.Sprintf("%08d", i), Subject: "alice", Client: "web", Expires: time.Now().Add(720 * time.Hour).UnixMilli(), Data: data,
		}}
	}
	for i := range versions {
		versions[i] = must(b, s, []store.Put{grant(i, store.Version{})})
	}
	var left atomic.Int64
	left.Store(int64(b.N))
	b.ResetTimer()
	var wg sync.WaitGroup
	for i := range callers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for left.Add(-1) >= 0 {
				c := change([]store.Put{grant(i, versions[i])}, store.Record{
					Kind: store.KindEvent, ID: "01JZZZZZZZZZZZZZZZZZZZZZZZ", Subject: "alice", Client: "web", Type: "token.refreshed", Data: data,
				})
				if _, err := s.Apply(ctx, c); err != nil {
					b.Error(err)
					return
				}
				versions[i] = c.ID
			}
		}()
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "rotations/s")
}

// BenchmarkRule writes one rule and its event per change.
func BenchmarkRule(b *testing.B) {
	for _, callers := range []int{1, 64} {
		b.Run(fmt.Sprint(callers), func(b *testing.B) {
			s := open(b, nil)
			var left atomic.Int64
			left.Store(int64(b.N))
			b.ResetTimer()
			var wg sync.WaitGroup
			for range callers {
				wg.Add(1)
				go func() {
					defer wg.Done()
					for i := left.Add(-1); i >= 0; i = left.Add(-1) {
						if _, err := s.Apply(context.Background(), change([]store.Put{put(store.KindRule, fmt.Sprint(i), store.Version{})}, event("e"))); err != nil {
							b.Error(err)
							return
						}
					}
				}()
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "rules/s")
		})
	}
}

// BenchmarkRevocationSeen is the time from the acknowledgement of a rule in one process to its arrival in another.
func BenchmarkRevocationSeen(b *testing.B) {
	ctx, o := context.Background(), &redisstore.Options{Prefix: rand.Text()}
	a, f := open(b, o), open(b, o)
	_, at := snapshotOf(b, f)
	arrived := make(chan time.Time)
	go func() {
		for range b.N {
			for {
				v, err := f.Follow(ctx, at, nil, 10)
				if err != nil {
					b.Error(err)
				}
				at = v.Next
				if len(v.Records) > 0 {
					break
				}
				if err := f.Wait(ctx, at); err != nil {
					b.Error(err)
				}
			}
			arrived <- time.Now()
		}
	}()
	var total time.Duration
	b.ResetTimer()
	for i := range b.N {
		must(b, a, []store.Put{put(store.KindRule, fmt.Sprint(i), store.Version{})})
		acked := time.Now()
		total += (<-arrived).Sub(acked)
	}
	b.ReportMetric(float64(total.Microseconds())/float64(b.N), "µs/seen")
}

// BenchmarkSnapshot reads a service's whole state, as a process does that starts.
func BenchmarkSnapshot(b *testing.B) {
	s := open(b, nil)
	const rules = 20_000
	for i := 0; i < rules; i += 16 {
		var puts []store.Put
		for j := i; j < i+16; j++ {
			p := put(store.KindRule, fmt.Sprintf("%08d", j), store.Version{})
			p.Data = make([]byte, 100)
			puts = append(puts, p)
		}
		must(b, s, puts)
	}
	b.ResetTimer()
	for range b.N {
		if rs, _ := snapshotOf(b, s); len(rs) != rules {
			b.Fatal(len(rs))
		}
	}
	b.ReportMetric(rules*float64(b.N)/b.Elapsed().Seconds(), "rules/s")
}
