package bench

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/apitoken-go/apitoken/store"
)

// BenchmarkTwoSelectors is a page of events by a client and a type that no event has together: the page is empty, so all that it
// costs is what does not match. In "none" all events are the client's and none has the type, in "halves" each selector alone finds half
// of them. There are APITOKEN_BENCH_EVENTS events, 1,000 without it.
func BenchmarkTwoSelectors(b *testing.B) {
	n := number("APITOKEN_BENCH_EVENTS", 1_000)
	ctx := context.Background()
	for _, engine := range engines {
		for name, event := range map[string]func(i int, r *store.Record){
			"none": func(_ int, r *store.Record) { r.Client, r.Type = "web", "token.issued" },
			"halves": func(i int, r *store.Record) {
				if i%2 == 0 {
					r.Client, r.Type = "web", "token.issued"
				} else {
					r.Client, r.Type = "other", "token.revoked"
				}
			},
		} {
			b.Run(engine+"/"+name, func(b *testing.B) {
				st := startEngine(b, engine)()
				const each = 16 // events a change
				var next atomic.Int64
				err := calls(16, (n+each-1)/each, func(int) error {
					var c store.Change
					i := int(next.Add(1)) - 1
					for j := i * each; j < min(n, (i+1)*each); j++ {
						r := store.Record{Kind: store.KindEvent, ID: fmt.Sprintf("%026d", j), Subject: fmt.Sprint("user", j/4), Data: make([]byte, 300)}
						event(j, &r)
						c.Events = append(c.Events, r)
					}
					copy(c.ID[:], fmt.Sprintf("%016d", i))
					_, err := st.Apply(ctx, &c)
					return err
				})
				if err != nil {
					b.Fatal(err)
				}
				page := func() {
					p, err := st.List(ctx, store.Query{Kind: store.KindEvent, Client: "web", Type: "token.revoked", Limit: 100, Newest: true})
					if err != nil || len(p.Records) > 0 {
						b.Fatal(len(p.Records), err)
					}
				}
				page() // the first two build an index in memory
				page()
				for b.Loop() {
					page()
				}
			})
		}
	}
}
