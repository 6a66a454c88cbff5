package proofs

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
)

// TestRevocationsWhileHintsAreCut: a thousand revocations, and before every twentieth the connections of the hints, or all
// of one process, end. Whatever a process is asked later than its bound after a revocation was acknowledged, it refuses.
func TestRevocationsWhileHintsAreCut(t *testing.T) {
	t.Parallel()
	const bound = 800 * time.Millisecond
	rounds, each1 := 50, 20
	if testing.Short() {
		rounds = 5
	}
	each(t, func(t *testing.T, e engine) {
		if e.addr == "" {
			t.Skip("one process has no wire to cut")
		}
		ctx := context.Background()
		var fleet []process
		for range 3 {
			fleet = append(fleet, e.process(t, func(c *apitoken.Config) { c.Validation.MaxStaleness = bound }))
		}
		var took []time.Duration
		for round := range rounds {
			tokens := make([]*apitoken.Issued, each1)
			issuer, revoker := fleet[round%3], fleet[(round+1)%3]
			var all sync.WaitGroup
			for n := range tokens {
				all.Go(func() { tokens[n] = issueAt(t, issuer, fmt.Sprint("u", n)) })
			}
			all.Wait()
			if e.deafen != nil && round%2 == 0 {
				e.deafen(t)
			} else {
				fleet[(round+2)%3].wire.Drop()
			}
			acked := make([]time.Time, len(tokens))
			for n, i := range tokens {
				require.Eventually(t, func() bool {
					return revoker.Revoke(ctx, apitoken.ByGrant(i.Token.Grant()), "test") == nil
				}, 20*time.Second, time.Millisecond)
				acked[n] = time.Now()
			}
			for _, p := range fleet {
				for n, i := range tokens {
					for {
						asked := time.Now()
						_, err := p.Validate(ctx, apitoken.Bearer(i.Access.Reveal()))
						if err != nil {
							if errors.Is(err, apitoken.ErrRevoked) {
								took = append(took, asked.Sub(acked[n]))
							}
							break
						}
						require.Less(t, asked.Sub(acked[n]), bound, "accepted later than the bound after its revocation was acknowledged")
						time.Sleep(time.Millisecond)
					}
				}
			}
		}
		require.NotEmpty(t, took)
	})
}

// TestOutages: the engine is gone, hangs, or answers after five seconds. Validation goes on until the bound and then
// refuses; what writes answers the retryable error within its deadline; nothing piles up; and it ends by itself.
func TestOutages(t *testing.T) {
	// Not parallel: it counts goroutines.
	const bound = 500 * time.Millisecond
	for name, start := range engines {
		t.Run(name, func(t *testing.T) {
			e := start(t)
			if e.addr == "" {
				t.Skip("there is no server to lose")
			}
			ctx := context.Background()
			p := e.process(t, func(c *apitoken.Config) { c.Validation.MaxStaleness = bound })
			other := e.process(t, nil)
			for _, outage := range []struct {
				name  string
				begin func()
			}{
				{"gone", p.wire.Down},
				{"hangs", p.wire.Hang},
				{"slow", func() { p.wire.Slow(5 * time.Second) }},
			} {
				t.Run(outage.name, func(t *testing.T) {
					good, err := p.Issue(ctx, apitoken.Request{Subject: "alice", Refresh: true})
					require.NoError(t, err)
					bad, err := p.Issue(ctx, apitoken.Request{Subject: "mallory", Refresh: true})
					require.NoError(t, err)
					check := func(i *apitoken.Issued) error {
						_, err := p.Validate(ctx, apitoken.Bearer(i.Access.Reveal()))
						return err
					}
					before := runtime.NumGoroutine()

					outage.begin()
					require.NoError(t, other.Revoke(ctx, apitoken.BySubject("mallory"), "stolen"))
					revoked := time.Now()
					require.Eventually(t, func() bool {
						asked := time.Now()
						err := check(bad)
						if err == nil {
							require.Less(t, asked.Sub(revoked), bound)
						}
						return errors.Is(err, apitoken.ErrUnavailable) || errors.Is(err, apitoken.ErrRevoked)
					}, 30*time.Second, 5*time.Millisecond)
					require.Eventually(t, func() bool { return errors.Is(check(good), apitoken.ErrUnavailable) }, 30*time.Second, 5*time.Millisecond)

					var wg sync.WaitGroup
					for range 100 {
						wg.Go(func() {
							tctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
							defer cancel()
							asked := time.Now()
							_, err := p.Issue(tctx, apitoken.Request{Subject: "bob", Refresh: true})
							require.ErrorIs(t, err, apitoken.ErrUnavailable)
							require.Less(t, time.Since(asked), 20*time.Second, "it came back with its deadline")
						})
					}
					wg.Wait()

					p.wire.Up()
					require.Eventually(t, func() bool { return check(good) == nil }, 60*time.Second, 10*time.Millisecond, "it comes back by itself")
					require.ErrorIs(t, check(bad), apitoken.ErrRevoked)
					require.Eventually(t, func() bool {
						_, err := p.Issue(ctx, apitoken.Request{Subject: "alice"})
						return err == nil
					}, 60*time.Second, 10*time.Millisecond)
					require.Eventually(t, func() bool { return runtime.NumGoroutine() < before+60 }, 60*time.Second, 50*time.Millisecond, "goroutines piled up")
				})
			}
		})
	}
}
