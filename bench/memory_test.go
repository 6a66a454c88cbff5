package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/store/memstore"
)

// number is how many of something a benchmark takes: what the environment says, or little enough for a quick look.
func number(variable string, otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv(variable)); err == nil && n > 0 {
		return n
	}
	return otherwise
}

// many is the repeat validation of 10,000 tokens, as often as a Zipf distribution of 1.1 says, beside a bare sync.Map that is
// asked for the same strings, and beside one whose caller also looks at the clock, as whoever judges expiry must; by one
// caller, and by one on each core.
func many(tb testing.TB) group {
	ctx := context.Background()
	svc := newService(tb, "EdDSA", nil)
	tokens := make([]string, 10_000)
	var bare sync.Map
	for i := range tokens {
		issued, err := svc.Issue(ctx, apitoken.Request{Subject: fmt.Sprint("u", i), Scopes: apitoken.Scopes{"orders:read"}, Lifetime: time.Hour})
		if err != nil {
			tb.Fatal(err)
		}
		tokens[i] = issued.Access.Reveal()
		bare.Store(strings.Clone(tokens[i]), issued) // a request's text is never the one that was kept
		if _, err := svc.Validate(ctx, apitoken.Bearer(tokens[i])); err != nil {
			tb.Fatal(err)
		}
	}
	order := make([]uint16, 1<<16)
	z := rand.NewZipf(rand.New(rand.NewPCG(1, 2)), 1.1, 1, uint64(len(tokens)-1))
	for i := range order {
		order[i] = uint16(z.Uint64())
	}
	g := group{name: "ValidateMany"}
	until := time.Now().Add(time.Hour)
	cores := runtime.GOMAXPROCS(0)
	for _, n := range slices.Compact([]int{1, cores}) {
		type place struct { // each caller has a line of the processor's cache of its own
			i int
			_ [120]byte
		}
		for _, x := range []struct {
			name string
			f    func(string) error
		}{
			{"raw", func(s string) error {
				if _, ok := bare.Load(s); !ok {
					return errors.New("not found")
				}
				return nil
			}},
			{"raw-and-clock", func(s string) error {
				if _, ok := bare.Load(s); !ok || time.Now().After(until) {
					return errors.New("not found")
				}
				return nil
			}},
			{"apitoken", func(s string) error { _, err := svc.Validate(ctx, apitoken.Bearer(s)); return err }},
		} {
			at := make([]place, n)
			for i := range at {
				at[i].i = i * 7919
			}
			const batch = 64 // calls, so that handing out turns costs nothing beside them
			g.rows = append(g.rows, row{name: fmt.Sprint(x.name, "/", n, "x", batch), callers: n, f: func(caller int) error {
				p := &at[caller]
				for range batch {
					p.i++
					if err := x.f(tokens[order[p.i&(len(order)-1)]]); err != nil {
						return err
					}
				}
				return nil
			}})
		}
	}
	return g
}

func BenchmarkValidateMany(b *testing.B) { many(b).bench(b) }

// BenchmarkTenants is a namespace with a service of its own that nobody asks anything: 200 of them, or
// APITOKEN_BENCH_TENANTS, on one store with one shared cache.
func BenchmarkTenants(b *testing.B) {
	n := number("APITOKEN_BENCH_TENANTS", 200)
	for b.Loop() {
		cache := apitoken.NewCache(32 << 20)
		before := memory()
		goroutines := runtime.NumGoroutine()
		all := make([]*apitoken.Service, n)
		began := time.Now()
		for i := range all {
			var err error
			all[i], err = apitoken.New(apitoken.Config{
				Issuer: fmt.Sprintf("https://tenant-%d.example.com", i), Audience: "https://api.example.com", Store: memstore.New(),
				InsecureKeysInStore: true, Algorithm: "EdDSA", Validation: apitoken.Validation{Cache: cache},
			})
			if err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(time.Since(began).Microseconds())/float64(n), "µs/start")
		b.ReportMetric(float64(memory()-before)/float64(n), "B/tenant")
		b.ReportMetric(float64(runtime.NumGoroutine()-goroutines)/float64(n), "goroutines/tenant")
		for _, svc := range all {
			_ = svc.Close()
		}
	}
}

func memory() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// BenchmarkCached is the memory of a verified token in the cache, with the counter of its session: of 10,000 tokens or
// APITOKEN_BENCH_TOKENS.
func BenchmarkCached(b *testing.B) {
	n := number("APITOKEN_BENCH_TOKENS", 10_000)
	ctx := context.Background()
	for b.Loop() {
		svc := newService(b, "ES256", func(c *apitoken.Config) { c.Validation.Cache = apitoken.NewCache(int64(n) << 13) })
		tokens := make([]string, n)
		for i := range tokens {
			tokens[i] = mint(b, svc)
		}
		before := memory()
		for _, token := range tokens {
			if _, err := svc.Validate(ctx, apitoken.Bearer(token)); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(memory()-before)/float64(n), "bytes/token")
		runtime.KeepAlive(svc)
		runtime.KeepAlive(tokens)
	}
}

// BenchmarkHold is the memory of a process that knows API keys: 10,000 or APITOKEN_BENCH_KEYS, each seen once. Grants cost a
// process nothing: they lie in the store.
func BenchmarkHold(b *testing.B) {
	n := number("APITOKEN_BENCH_KEYS", 10_000)
	ctx := context.Background()
	st := memstore.New()
	maker := newService(b, "EdDSA", func(c *apitoken.Config) { c.Store = st })
	keys := make([]string, n)
	for i := range keys {
		_, key, err := maker.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: fmt.Sprint("u", i), Scopes: apitoken.Scopes{"orders:read"}})
		if err != nil {
			b.Fatal(err)
		}
		keys[i] = key.Reveal()
	}
	for b.Loop() {
		before := memory()
		svc, err := apitoken.New(apitoken.Config{Issuer: issuer, Audience: audience, Store: st, InsecureKeysInStore: true})
		if err != nil {
			b.Fatal(err)
		}
		for _, key := range keys {
			if _, err := svc.Validate(ctx, apitoken.Bearer(key)); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(memory()-before)/float64(min(n, 130_000)), "B/known-key")
		_ = svc.Close()
	}
}
