package bench

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/boltstore"
	"github.com/apitoken-go/apitoken/store/etcdstore"
	"github.com/apitoken-go/apitoken/store/etcdstore/etcdtest"
	"github.com/apitoken-go/apitoken/store/memstore"
	"github.com/apitoken-go/apitoken/store/mysqlstore"
	"github.com/apitoken-go/apitoken/store/mysqlstore/mysqltest"
	"github.com/apitoken-go/apitoken/store/pgstore"
	"github.com/apitoken-go/apitoken/store/pgstore/pgtest"
	"github.com/apitoken-go/apitoken/store/redisstore"
	"github.com/apitoken-go/apitoken/store/redisstore/redistest"
	"github.com/apitoken-go/apitoken/store/sqlitestore"
)

// engines are the stores that are measured; etcd has one member here, three in its own module.
var engines = []string{"memory", "bbolt", "sqlite", "postgres", "mysql", "redis", "etcd"}

var prefixes atomic.Int64

// startEngine starts an engine and gives what opens its store as one more process would. Where the engine isn't installed the
// benchmark is skipped.
func startEngine(b testing.TB, engine string) (open func() store.Store) {
	b.Helper()
	open, _ = startSized(b, engine)
	return open
}

// startSized is startEngine, and size: the bytes that the engine uses for everything in it.
func startSized(b testing.TB, engine string) (open func() store.Store, size func() (int64, error)) {
	b.Helper()
	ctx := context.Background()
	prefix := fmt.Sprintf("b%d_%d_", time.Now().UnixNano()%1e9, prefixes.Add(1))
	closing := func(c interface{ Close() error }) { b.Cleanup(func() { _ = c.Close() }) }
	switch engine {
	case "memory":
		st := memstore.New()
		return func() store.Store { return st }, func() (int64, error) { return memory(), nil }
	case "bbolt":
		st := must(boltstore.Open(filepath.Join(b.TempDir(), "tokens.db"), nil))
		closing(st)
		return func() store.Store { return st }, func() (int64, error) { return boltBytes(ctx, b.TempDir(), st) }
	case "postgres":
		srv := pgtest.Start(b)
		return func() store.Store {
			c := must(pgxpool.ParseConfig(srv.URL))
			c.MaxConns = 16
			pool := must(pgxpool.NewWithConfig(ctx, c))
			b.Cleanup(pool.Close)
			st := must(pgstore.New(ctx, pool, &pgstore.Options{Prefix: prefix}))
			closing(st)
			return st
		}, func() (int64, error) { return postgresBytes(ctx, srv.URL, prefix) }
	case "sqlite":
		path := filepath.Join(b.TempDir(), "tokens.db")
		st := must(sqlitestore.Open(path, nil))
		closing(st)
		return func() store.Store { return st }, func() (int64, error) { return sqliteBytes(ctx, path) }
	case "mysql":
		srv := mysqltest.Start(b)
		return func() store.Store {
			st := must(mysqlstore.Open(ctx, must(mysql.ParseDSN(srv.DSN)), &mysqlstore.Options{Prefix: prefix}))
			closing(st)
			return st
		}, func() (int64, error) { return mysqlBytes(ctx, srv.DSN, prefix) }
	case "redis":
		srv := redistest.Private(b)
		return func() store.Store {
			c := redis.NewClient(&redis.Options{Addr: srv.Addr})
			closing(c)
			st := must(redisstore.New(ctx, c, nil))
			closing(st)
			return st
		}, func() (int64, error) { return redisBytes(ctx, srv.Client(b)) }
	case "etcd":
		u := must(url.Parse(etcdtest.Start(b, 1).Endpoints()[0]))
		return func() store.Store {
			st := must(etcdstore.New(ctx, etcdtest.Connect(b, u.String()), nil))
			closing(st)
			return st
		}, func() (int64, error) { return etcdBytes(ctx, etcdtest.Connect(b, u.String())) }
	}
	b.Fatalf("no engine %q", engine)
	return nil, nil
}

// BenchmarkApply is the store alone: a session's rotation with its event.
func BenchmarkApply(b *testing.B) {
	ctx := context.Background()
	for _, engine := range engines {
		for _, n := range []int{1, 64} {
			b.Run(fmt.Sprintf("%s/%d", engine, n), func(b *testing.B) {
				st := startEngine(b, engine)()
				data := make([]byte, 600)
				versions := make([]store.Version, n)
				var seq atomic.Uint64
				callers(b, n, func(i int) error {
					k := seq.Add(1)
					c := &store.Change{
						Puts:   []store.Put{{Record: store.Record{Kind: "grant", ID: fmt.Sprintf("%026d", i), Subject: "alice", Client: "web", Data: data}, Expect: versions[i]}},
						Events: []store.Record{{Kind: store.KindEvent, ID: fmt.Sprintf("%026d", k), Subject: "alice", Client: "web", Type: "token.refreshed", Data: data[:300]}},
					}
					copy(c.ID[:], fmt.Sprintf("%016d", k))
					_, err := st.Apply(ctx, c)
					versions[i] = c.ID
					return err
				})
			})
		}
	}
}

// BenchmarkRevokeToRefuse is the time from the acknowledgement of a revocation in one process to the refusal in another: two
// services with connections of their own.
func BenchmarkRevokeToRefuse(b *testing.B) {
	ctx := context.Background()
	for _, engine := range engines {
		b.Run(engine, func(b *testing.B) {
			open := startEngine(b, engine)
			one := newService(b, "EdDSA", func(c *apitoken.Config) { c.Store = open() })
			two := newService(b, "EdDSA", func(c *apitoken.Config) { c.Store = open() })
			var took []time.Duration
			for b.Loop() {
				b.StopTimer()
				issued, err := one.Issue(ctx, apitoken.Request{Subject: "alice"})
				if err != nil {
					b.Fatal(err)
				}
				c := apitoken.Bearer(issued.Access.Reveal())
				if _, err := two.Validate(ctx, c); err != nil {
					b.Fatal(err)
				}
				if err := one.Revoke(ctx, apitoken.BySubject("alice"), "bench"); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				began := time.Now()
				for {
					if _, err := two.Validate(ctx, c); err != nil {
						break
					}
				}
				took = append(took, time.Since(began))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "µs-p50")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "µs-p99")
		})
	}
}

// BenchmarkStart is the start of a process on a store with live rules: APITOKEN_BENCH_RULES of them, 10,000 without.
func BenchmarkStart(b *testing.B) {
	rules := 10_000
	if n, err := strconv.Atoi(os.Getenv("APITOKEN_BENCH_RULES")); err == nil {
		rules = n
	}
	ctx := context.Background()
	for _, engine := range engines {
		b.Run(fmt.Sprintf("%s/%d", engine, rules), func(b *testing.B) {
			open := startEngine(b, engine)
			first := newService(b, "EdDSA", func(c *apitoken.Config) { c.Store = open() })
			if err := first.Revoke(ctx, apitoken.ByToken("a-token"), "bench"); err != nil {
				b.Fatal(err)
			}
			fillRules(b, open(), rules)
			var held int64
			for b.Loop() {
				b.StopTimer()
				st := open()
				before := memory()
				b.StartTimer()
				svc, err := apitoken.New(apitoken.Config{Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: st, InsecureKeysInStore: true, Algorithm: "EdDSA"})
				if err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				held = memory() - before
				_ = svc.Close()
				b.StartTimer()
			}
			b.ReportMetric(float64(rules)*float64(b.N)/b.Elapsed().Seconds(), "rules/s")
			b.ReportMetric(float64(held)/1e6, "MB")
		})
	}
}

// fillRules copies the one rule that a service wrote under many IDs, sixteen to a change.
func fillRules(b *testing.B, st store.Store, n int) {
	b.Helper()
	ctx := context.Background()
	page, err := st.List(ctx, store.Query{Kind: store.KindRule, Limit: 1})
	if err != nil || len(page.Records) != 1 {
		b.Fatal("no rule to copy", err)
	}
	rule := page.Records[0]
	var wg sync.WaitGroup
	const workers = 16
	for w := range workers {
		wg.Go(func() {
			for k := w * 16; k < n; k += workers * 16 {
				c := &store.Change{}
				copy(c.ID[:], fmt.Sprintf("r%015d", k))
				for i := k; i < min(k+16, n); i++ {
					r := rule
					r.ID = fmt.Sprintf("%026d", i)
					r.Token = r.ID
					r.Data = fmt.Appendf(nil, `{"v":1,"target":"token:%026d","at":%d}`, i, time.Now().UnixMilli())
					c.Puts = append(c.Puts, store.Put{Record: r})
				}
				if _, err := st.Apply(ctx, c); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}
