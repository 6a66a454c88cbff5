package bench

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/apitoken-go/apitoken"
)

func limited(n int) func(*apitoken.Config) {
	return func(c *apitoken.Config) { c.Limits = apitoken.Limits{GrantsPerSubject: n, APIKeysPerSubject: n} }
}

// Of logins at once, over two processes, exactly as many sessions live as the limit allows; likewise API keys. On each engine.
func TestLimitsAreExactOnEachEngine(t *testing.T) {
	ctx := context.Background()
	for _, engine := range engines {
		t.Run(engine, func(t *testing.T) {
			open := startEngine(t, engine)
			for _, limit := range []int{1, 3} {
				var list []*apitoken.Service
				for range 2 {
					list = append(list, newService(t, "EdDSA", func(c *apitoken.Config) {
						c.Store = open()
						limited(limit)(c)
					}))
				}
				subject := fmt.Sprint("alice", limit)
				var wg sync.WaitGroup
				var keys atomic.Int64
				for i := range 16 {
					svc := list[i%2]
					wg.Go(func() {
						if _, err := svc.Issue(ctx, apitoken.Request{Subject: subject, Refresh: true}); err != nil {
							t.Error(err)
						}
					})
					if i < 2*limit {
						wg.Go(func() {
							if _, _, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: subject}); err == nil {
								keys.Add(1)
							}
						})
					}
				}
				wg.Wait()
				for _, svc := range list {
					if err := svc.Sync(ctx); err != nil {
						t.Fatal(err)
					}
					sessions := 0
					for _, err := range svc.Grants(ctx, apitoken.BySubject(subject), apitoken.Page{}) {
						if err != nil {
							t.Fatal(err)
						}
						sessions++
					}
					if sessions != limit || keys.Load() > int64(limit) {
						t.Errorf("limit %d: %d sessions and %d API keys", limit, sessions, keys.Load())
					}
				}
			}
		})
	}
}

// BenchmarkLogin is a login with a refresh token beside 20,000 sessions of others, by 64 callers: with a limit of sessions, at the
// limit, where each login ends another session, and without a limit.
func BenchmarkLogin(b *testing.B) {
	const others = 20_000
	ctx := context.Background()
	var subjects atomic.Int64
	for _, engine := range engines {
		b.Run(engine, func(b *testing.B) {
			open := startEngine(b, engine)
			login := func(svc *apitoken.Service, subject string) error {
				_, err := svc.Issue(ctx, apitoken.Request{Subject: subject, Scopes: apitoken.Scopes{"orders:read"}, Refresh: true})
				return err
			}
			fresh := func(svc *apitoken.Service) func(int) error {
				return func(int) error { return login(svc, fmt.Sprint("user", subjects.Add(1))) }
			}
			var with *apitoken.Service
			filled := false
			run := func(name string, limit int, f func(svc *apitoken.Service) func(int) error) {
				b.Run(name, func(b *testing.B) {
					if !filled {
						filled = true
						svc := newService(b, "EdDSA", func(c *apitoken.Config) {
							c.Store = open()
							limited(20)(c)
						})
						if err := calls(64, others, fresh(svc)); err != nil {
							b.Fatal(err)
						}
					}
					if with == nil {
						c := apitoken.Config{Issuer: issuer, Audience: audience, Store: open(), InsecureKeysInStore: true, Algorithm: "EdDSA"}
						limited(limit)(&c)
						with = must(apitoken.New(c))
					}
					callers(b, 64, f(with))
				})
				if with != nil {
					_ = with.Close()
					with = nil
				}
			}
			run("limited", 20, fresh)
			run("full", 2, func(svc *apitoken.Service) func(int) error {
				var n atomic.Int64
				return func(int) error { return login(svc, fmt.Sprint("full", n.Add(1)%512)) }
			})
			run("unlimited", 0, fresh)
		})
	}
}
