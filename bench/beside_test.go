package bench

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/store"
)

// BenchmarkBeside measures logins by 64 callers, a second, and the longest one, while other work runs: none, one caller that lists
// sessions, a process that starts and ends again and again, backups, a purge. It gives each rate as a part of the rate alone.
// APITOKEN_BENCH_SESSIONS sessions are there before, 1,000 without it, and five times as many that have ended, for the purge.
func BenchmarkBeside(b *testing.B) {
	const loginsAtOnce = 64
	there := number("APITOKEN_BENCH_SESSIONS", 1_000)
	ctx := context.Background()
	for _, engine := range engines {
		b.Run(engine, func(b *testing.B) {
			open := startEngine(b, engine)
			st, other := open(), open()
			svc := newService(b, "EdDSA", func(c *apitoken.Config) { c.Store = st })
			var subjects atomic.Int64
			login := func(int) error {
				_, err := svc.Issue(ctx, apitoken.Request{Subject: fmt.Sprint("user", subjects.Add(1)), Scopes: apitoken.Scopes{"orders:read"}, Refresh: true})
				return err
			}
			if err := calls(loginsAtOnce, there, login); err != nil {
				b.Fatal(err)
			}
			if err := svc.Revoke(ctx, apitoken.ByToken("a-token"), "bench"); err != nil {
				b.Fatal(err)
			}
			fillRules(b, st, 10_000)
			if err := expire(ctx, st, 5*there); err != nil {
				b.Fatal(err)
			}

			var alone float64
			for _, x := range []struct {
				name string
				does func(ctx context.Context) error // once; nil: nothing
			}{
				{name: "alone"},
				{name: "list", does: func(ctx context.Context) error {
					for _, err := range svc.Grants(ctx, apitoken.BySubject(fmt.Sprint("user", 1+rand.IntN(there))), apitoken.Page{Limit: 20}) {
						if err != nil {
							return err
						}
					}
					return nil
				}},
				{name: "start", does: func(context.Context) error {
					s, err := apitoken.New(apitoken.Config{Issuer: issuer, Audience: audience, Store: other, InsecureKeysInStore: true, Algorithm: "EdDSA"})
					if err != nil {
						return err
					}
					return s.Close()
				}},
				{name: "backup", does: backup(st)},
				{name: "purge", does: func(ctx context.Context) error {
					time.Sleep(5 * time.Millisecond) // as the service's own janitor does
					_, err := st.Purge(ctx, "grant", time.Now().Add(-time.Minute).UnixMilli(), 500)
					return err
				}},
			} {
				if x.does == nil && x.name != "alone" {
					continue // the engine has no such thing
				}
				b.Run(x.name, func(b *testing.B) {
					if alone == 0 && x.name != "alone" {
						b.Skip("needs the rate alone: select both")
					}
					runtime.GC() // what was filled
					aside, stop := context.WithCancel(ctx)
					var done atomic.Int64
					var wg sync.WaitGroup
					if x.does != nil {
						wg.Go(func() {
							for aside.Err() == nil {
								if err := x.does(aside); err != nil && aside.Err() == nil {
									b.Error(err)
									return
								}
								done.Add(1)
							}
						})
					}
					took := timed(b, loginsAtOnce, login)
					b.StopTimer()
					stop()
					wg.Wait()
					rate := float64(b.N) / b.Elapsed().Seconds()
					if x.does == nil {
						alone = rate
					} else {
						b.ReportMetric(float64(done.Load())/b.Elapsed().Seconds(), "beside/s")
					}
					b.ReportMetric(rate/alone, "of-alone")
					b.ReportMetric(float64(took[len(took)-1].Microseconds())/1000, "ms-max")
				})
			}
		})
	}
}

// backup is a backup of st while it is written to; nil: st makes none. The servers have programs of their own for that.
func backup(st store.Store) func(context.Context) error {
	s, ok := st.(interface {
		Backup(ctx context.Context, w io.Writer) error
	})
	if !ok {
		return nil
	}
	return func(ctx context.Context) error { return s.Backup(ctx, io.Discard) }
}

// timed is callers that also says how long each call took, the quickest first, and reports the 99th percentile.
func timed(b *testing.B, n int, f func(caller int) error) []time.Duration {
	b.Helper()
	took := make([][]time.Duration, n)
	callers(b, n, func(caller int) error {
		began := time.Now()
		err := f(caller)
		took[caller] = append(took[caller], time.Since(began))
		return err
	})
	all := slices.Concat(took...)
	slices.Sort(all)
	b.ReportMetric(float64(all[len(all)*99/100].Microseconds())/1000, "ms-p99")
	return all
}

// expire writes n sessions that ended an hour ago, sixteen to a change.
func expire(ctx context.Context, st store.Store, n int) error {
	past := time.Now().Add(-time.Hour).UnixMilli()
	var made atomic.Int64
	return calls(16, n/16, func(int) error {
		c := &store.Change{}
		at := made.Add(1)
		copy(c.ID[:], fmt.Sprintf("x%015d", at))
		for i := range int64(16) {
			c.Puts = append(c.Puts, store.Put{Record: store.Record{Kind: "grant", ID: fmt.Sprintf("%026d", at*16+i), Subject: "alice", Client: "web", Expires: past, Data: make([]byte, 500)}})
		}
		_, err := st.Apply(ctx, c)
		return err
	})
}
