package memstore_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/memstore"
)

// changes makes n grants with an event each, ids in order of time, 5,000 subjects.
func changes(n int) []store.Change {
	cs := make([]store.Change, n)
	for i := range cs {
		binary.BigEndian.PutUint64(cs[i].ID[:], uint64(i+1))
		g := store.Record{
			Kind: "grant", ID: fmt.Sprintf("%016x", i), Subject: fmt.Sprint("user-", i%5000), Client: fmt.Sprint("client-", i%20),
			Expires: 1 << 42, Data: make([]byte, 300),
		}
		e := store.Record{
			Kind: store.KindEvent, ID: fmt.Sprintf("%016x", i), Subject: g.Subject, Client: g.Client, Grant: g.ID,
			Token: fmt.Sprintf("t%015x", i), Type: "issue", Data: make([]byte, 150),
		}
		cs[i].Puts, cs[i].Events = []store.Put{{Record: g}}, []store.Record{e}
	}
	return cs
}

// BenchmarkApply is the store's own part of an issue: a grant and its event, made beforehand.
func BenchmarkApply(b *testing.B) {
	b.ReportAllocs()
	s, ctx := memstore.New(), context.Background()
	const batch = 10_000
	cs := changes(batch)
	b.ResetTimer()
	for i := range b.N {
		if i > 0 && i%batch == 0 {
			b.StopTimer()
			s = memstore.New()
			b.StartTimer()
		}
		if _, err := s.Apply(ctx, &cs[i%batch]); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkMillion measures queries on a million grants and as many events.
func BenchmarkMillion(b *testing.B) {
	s, ctx := memstore.New(), context.Background()
	const n = 1_000_000
	for i := 0; i < n; i += 10_000 {
		cs := changes(10_000)
		for j := range cs {
			binary.BigEndian.PutUint64(cs[j].ID[8:], uint64(i+1))
			id := fmt.Sprintf("%016x", i+j)
			cs[j].Puts[0].ID, cs[j].Events[0].Grant, cs[j].Puts[0].Data = id, id, nil
			if _, err := s.Apply(ctx, &cs[j]); err != nil {
				b.Fatal(err)
			}
		}
	}
	for name, q := range map[string]store.Query{
		"grants of a subject":   {Kind: "grant", Subject: "user-77", Limit: 100},
		"grants of a client":    {Kind: "grant", Client: "client-7", Limit: 100, Newest: true},
		"events of a subject":   {Kind: store.KindEvent, Subject: "user-77", Limit: 100, Newest: true},
		"events of a grant":     {Kind: store.KindEvent, Grant: fmt.Sprintf("%016x", n/2), Limit: 100},
		"grants of nobody":      {Kind: "grant", Subject: "nobody", Limit: 100},
		"first page of grants":  {Kind: "grant", Limit: 100},
		"latest page of events": {Kind: store.KindEvent, Limit: 100, Newest: true},
	} {
		b.Run(name, func(b *testing.B) {
			for range 2 { // the first query of its sort reads the blocks, the second makes their indexes
				_, _ = s.List(ctx, q)
			}
			b.ResetTimer()
			for range b.N {
				if _, err := s.List(ctx, q); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
