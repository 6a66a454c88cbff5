package etcdtest

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/etcdstore"
)

// BenchmarkRotation rewrites a grant with an event, from 64 callers, each on grants of its own: what a refresh costs.
func BenchmarkRotation(b *testing.B) {
	for _, callers := range []int{1, 64} {
		b.Run(fmt.Sprint(callers), func(b *testing.B) { benchRotation(b, callers, &etcdstore.Options{}) })
	}
}

func benchRotation(b *testing.B, callers int, o *etcdstore.Options) *etcdstore.Store {
	o.OutboxBytes = 8 << 30
	s, ctx := open(b, o), context.Background()
	data := make([]byte, 300)
	versions := make([]store.Version, callers)
	grant := func(i int, expect store.Version) store.Put {
		return store.Put{Expect: expect, Record: store.Record{
			Kind: "grant", ID: fmt.Sprintf("%08d", i), Subject: "alice", Client: "web", Expires: time.Now().Add(720 * time.Hour).UnixMilli(), Data: data}}
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
				c := &store.Change{ID: newVersion(), Puts: []store.Put{grant(i, versions[i])}, Events: []store.Record{{
					Kind: store.KindEvent, ID: "01JZZZZZZZZZZZZZZZZZZZZZZZ", Subject: "alice", Client: "web", Type: "token.refreshed", Data: data}}}
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
	return s
}

// BenchmarkRule writes one rule and its event per change, from 64 callers: all of them want the next position.
func BenchmarkRule(b *testing.B) {
	for _, callers := range []int{1, 64} {
		b.Run(fmt.Sprint(callers), func(b *testing.B) {
			s := open(b, &etcdstore.Options{OutboxBytes: 8 << 30})
			var left atomic.Int64
			left.Store(int64(b.N))
			b.ResetTimer()
			var wg sync.WaitGroup
			for range callers {
				wg.Add(1)
				go func() {
					defer wg.Done()
					for {
						i := left.Add(-1)
						if i < 0 {
							return
						}
						c := &store.Change{ID: newVersion(), Puts: []store.Put{put(store.KindRule, fmt.Sprint(i), store.Version{})}, Events: []store.Record{event("e")}}
						if _, err := s.Apply(context.Background(), c); err != nil {
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
	prefix := fmt.Sprintf("seen-%x/", newVersion())
	a, f := open(b, &etcdstore.Options{Prefix: prefix}), open(b, &etcdstore.Options{Prefix: prefix})
	ctx := context.Background()
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
		_, err := a.Apply(ctx, &store.Change{ID: newVersion(), Puts: []store.Put{put(store.KindRule, fmt.Sprint(i), store.Version{})}})
		require.NoError(b, err)
		acked := time.Now()
		total += (<-arrived).Sub(acked)
	}
	b.ReportMetric(float64(total.Microseconds())/float64(b.N), "µs/seen")
}
