package redisstore_test

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/redisstore"
	"github.com/apitoken-go/apitoken/store/redisstore/redistest"
)

// BenchmarkMany fills a server with grants and events as package apitoken writes them, tells what one takes of its memory,
// and lists among them.
func BenchmarkMany(b *testing.B) {
	ctx := context.Background()
	const grants, events = 100_000, 400_000
	server := redistest.Private(b, "--appendonly", "no")
	c := server.Client(b)
	used := func() int64 {
		n, err := strconv.ParseInt(c.InfoMap(ctx, "memory").Val()["Memory"]["used_memory"], 10, 64)
		require.NoError(b, err)
		return n
	}
	s := openAt(b, c, &redisstore.Options{InsecureMayLoseWrites: true})
	fill := func(n int, one func(c *store.Change, i int)) int64 {
		before := used()
		var wg sync.WaitGroup
		const workers = 32
		for w := range workers {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for i := w * 16; i < n; i += workers * 16 {
					c := change(nil)
					for j := i; j < min(i+16, n); j++ {
						one(c, j)
					}
					if _, err := s.Apply(ctx, c); err != nil {
						b.Error(err)
						return
					}
				}
			}()
		}
		wg.Wait()
		return (used() - before) / int64(n)
	}
	id := func(i int) string { return fmt.Sprintf("01JZ%022d", i) }
	perGrant := fill(grants, func(c *store.Change, i int) {
		c.Puts = append(c.Puts, store.Put{Record: store.Record{
			Kind: "grant", ID: id(i), Subject: fmt.Sprint("user-", i/4), Client: fmt.Sprint("client-", i%20), Expires: 1 << 42, Data: make([]byte, 300),
		}})
	})
	perEvent := fill(events, func(c *store.Change, i int) {
		c.Events = append(c.Events, store.Record{
			Kind: store.KindEvent, ID: id(i), Subject: fmt.Sprint("user-", i%25000), Client: fmt.Sprint("client-", i%20), Grant: id(i % grants),
			Token: fmt.Sprint("t", i), Type: "issue", Expires: 1 << 42, Data: make([]byte, 150),
		})
	})
	for name, q := range map[string]store.Query{
		"grants of a subject":  {Kind: "grant", Subject: "user-77"},
		"grants of a client":   {Kind: "grant", Client: "client-7", Limit: 100, Newest: true},
		"events of a token":    {Kind: store.KindEvent, Token: "t77"},
		"events of a subject":  {Kind: store.KindEvent, Subject: "user-77"},
		"latest of a subject":  {Kind: store.KindEvent, Subject: "user-77", Newest: true, Limit: 1},
		"latest page of all":   {Kind: store.KindEvent, Newest: true, Limit: 100},
		"events of an unknown": {Kind: store.KindEvent, Grant: "nobody's"},
		"events of nobody":     {Kind: store.KindEvent, Subject: "nobody"},
		"events of no pair":    {Kind: store.KindEvent, Client: "client-7", Type: "no such"},
	} {
		b.Run(name, func(b *testing.B) {
			for range b.N {
				if _, err := s.List(ctx, q); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(perGrant), "B/grant")
			b.ReportMetric(float64(perEvent), "B/event")
		})
	}
}
