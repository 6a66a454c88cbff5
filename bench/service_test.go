package bench

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/apitoken-go/apitoken"
)

// session is a refresh token that one caller at a time uses.
type session struct {
	mu    sync.Mutex
	token string
}

// BenchmarkService is what a host calls, on each engine, by 64 callers at once: an access token without a session, a login with
// a refresh token, a rotation of one of 64 sessions and of one among all, a revocation, and a page of one subject's sessions.
// APITOKEN_BENCH_SESSIONS are there before, 1,000 without it.
func BenchmarkService(b *testing.B) {
	const callersAtOnce = 64
	there := 1_000
	if n, err := strconv.Atoi(os.Getenv("APITOKEN_BENCH_SESSIONS")); err == nil {
		there = max(n, callersAtOnce)
	}
	ctx := context.Background()
	for _, engine := range engines {
		b.Run(engine, func(b *testing.B) {
			svc := newService(b, "EdDSA", func(c *apitoken.Config) { c.Store = startEngine(b, engine)() })
			var subjects atomic.Int64
			login := func() (string, error) {
				i, err := svc.Issue(ctx, apitoken.Request{Subject: fmt.Sprint("user", subjects.Add(1)), Scopes: apitoken.Scopes{"orders:read"}, Refresh: true})
				if err != nil {
					return "", err
				}
				return i.Refresh.Reveal(), nil
			}
			sessions := make([]session, there)
			var filled atomic.Int64
			if err := calls(callersAtOnce, there, func(int) (err error) {
				sessions[filled.Add(1)-1].token, err = login()
				return err
			}); err != nil {
				b.Fatal(err)
			}
			rotate := func(s *session) error {
				defer s.mu.Unlock()
				r, err := svc.Refresh(ctx, apitoken.RefreshRequest{Token: s.token})
				if err == nil {
					s.token = r.Refresh.Reveal()
				}
				return err
			}

			for _, x := range []struct {
				name string
				call func(caller int) error
			}{
				{"issue", func(int) error {
					_, err := svc.Issue(ctx, apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"orders:read"}})
					return err
				}},
				{"login", func(int) error { _, err := login(); return err }},
				{"refresh-hot", func(caller int) error {
					s := &sessions[caller]
					s.mu.Lock()
					return rotate(s)
				}},
				{"refresh-random", func(int) error {
					for {
						if s := &sessions[rand.IntN(there)]; s.mu.TryLock() {
							return rotate(s)
						}
					}
				}},
				{"revoke", func(int) error {
					return svc.Revoke(ctx, apitoken.BySubject(fmt.Sprint("gone", subjects.Add(1))), "bench")
				}},
				{"list", func(int) error {
					for _, err := range svc.Grants(ctx, apitoken.BySubject(fmt.Sprint("user", 1+rand.IntN(there))), apitoken.Page{Limit: 20}) {
						if err != nil {
							return err
						}
					}
					return nil
				}},
			} {
				b.Run(x.name, func(b *testing.B) {
					timed(b, callersAtOnce, x.call)
				})
			}
		})
	}
}
