package storetest

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/apitoken-go/apitoken/store"
)

// Bench measures a fresh store with the sizes that package apitoken writes: Apply of an event alone, of a grant with its
// event, of a grant's rotation with its event; Get; Follow with nothing new. Each with 1 and with 64 callers.
func Bench(b *testing.B, st store.Store) {
	ctx := context.Background()
	var serial atomic.Int64
	apply := func(b *testing.B, c *store.Change) {
		if _, err := st.Apply(ctx, c); err != nil {
			b.Error(err)
		}
	}
	callers(b, "Apply event", func(b *testing.B, _ int) func() {
		return func() {
			n := serial.Add(1)
			g := benchGrant(n)
			apply(b, &store.Change{ID: fresh(), Events: []store.Record{benchEvent(&g, n)}})
		}
	})
	callers(b, "Apply grant and event", func(b *testing.B, _ int) func() {
		return func() {
			n := serial.Add(1)
			g := benchGrant(n)
			apply(b, &store.Change{ID: fresh(), Puts: []store.Put{{Record: g}}, Events: []store.Record{benchEvent(&g, n)}})
		}
	})
	callers(b, "Apply rotation and event", func(b *testing.B, _ int) func() {
		// Each caller has 16 grants of its own.
		var own [16]store.Put
		c := &store.Change{ID: fresh()}
		for i := range own {
			own[i].Record = benchGrant(serial.Add(1))
			c.Puts = append(c.Puts, own[i])
		}
		apply(b, c)
		for i := range own {
			own[i].Expect = c.ID
		}
		i := 0
		return func() {
			p := &own[i%len(own)]
			i++
			p.Expires++
			c := &store.Change{ID: fresh(), Puts: []store.Put{*p}, Events: []store.Record{benchEvent(&p.Record, serial.Add(1))}}
			apply(b, c)
			p.Expect = c.ID
		}
	})
	callers(b, "Get", func(b *testing.B, _ int) func() {
		g := benchGrant(serial.Add(1))
		apply(b, &store.Change{ID: fresh(), Puts: []store.Put{{Record: g}}})
		return func() {
			if _, err := st.Get(ctx, g.Kind, g.ID); err != nil {
				b.Error(err)
			}
		}
	})
	callers(b, "Follow", func(b *testing.B, caller int) func() {
		apply(b, &store.Change{ID: fresh(), Puts: []store.Put{{Record: store.Record{
			Kind: store.KindRule, ID: fmt.Sprint(serial.Add(1)), Data: make([]byte, 100),
		}}}})
		var at store.Position
		return func() {
			for more := true; more; {
				v, err := st.Follow(ctx, at, nil, 1000)
				if err != nil {
					b.Error(err)
				}
				at, more = v.Next, v.More
			}
		}
	})
}

// callers runs a sub-benchmark with 1 and with 64 goroutines. prepare runs for each before the clock starts.
func callers(b *testing.B, name string, prepare func(b *testing.B, caller int) func()) {
	for _, n := range []int{1, 64} {
		b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
			b.ReportAllocs()
			ops := make([]func(), n)
			for i := range ops {
				ops[i] = prepare(b, i)
			}
			var done atomic.Int64
			var wg sync.WaitGroup
			b.ResetTimer()
			for _, op := range ops {
				wg.Add(1)
				go func() {
					defer wg.Done()
					for done.Add(1) <= int64(b.N) {
						op()
					}
				}()
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "op/s")
		})
	}
}

// A grant has 300 bytes of data and lives for a day, its id is ordered by time; an event has 150.
func benchGrant(n int64) store.Record {
	return store.Record{
		Kind: grant, ID: fmt.Sprintf("%016x", n), Subject: fmt.Sprint("user-", n%5000), Client: fmt.Sprint("client-", n%20),
		Expires: time.Now().Add(24 * time.Hour).UnixMilli(), Data: make([]byte, 300),
	}
}

func benchEvent(g *store.Record, n int64) store.Record {
	return store.Record{
		Kind: store.KindEvent, ID: fmt.Sprintf("%016x", n), Subject: g.Subject, Client: g.Client, Grant: g.ID,
		Token: fmt.Sprintf("t%015x", n), Type: "issue", Data: make([]byte, 150),
	}
}
