package proofs

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"runtime/pprof"
	"strconv"
	"strings"
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
		fleet := e.fleet(t, 3, setup{Staleness: bound})
		var took []time.Duration
		for round := range rounds {
			tokens := make([]reply, each1)
			issuer, revoker := fleet[round%3], fleet[(round+1)%3]
			var all sync.WaitGroup
			for n := range tokens {
				all.Go(func() { tokens[n] = issuer.insist(t, question{Call: "issue", Subject: fmt.Sprint("u", n)}) })
			}
			all.Wait()
			if e.deafen != nil && round%2 == 0 {
				e.deafen(t)
			} else {
				fleet[(round+2)%3].wire.Drop()
			}
			acked := make([]time.Time, len(tokens))
			for n, i := range tokens {
				revoker.insist(t, question{Call: "revoke grant", ID: i.Grant})
				acked[n] = time.Now()
			}
			for _, p := range fleet {
				for n, i := range tokens {
					for {
						asked := time.Now()
						_, err := p.ask(question{Call: "validate", Token: i.Access})
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
	t.Parallel()
	const bound = 500 * time.Millisecond
	for name, start := range engines {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := start(t)
			if e.addr == "" {
				t.Skip("there is no server to lose")
			}
			ctx := context.Background()
			// What is started from here on carries this mark: goroutines are counted while other tests run.
			pprof.SetGoroutineLabels(pprof.WithLabels(ctx, pprof.Labels("outage", name)))
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
					good, bad := issueAt(t, p, "alice"), issueAt(t, p, "mallory")
					check := func(i *apitoken.Issued) error {
						_, err := p.Validate(ctx, apitoken.Bearer(i.Access.Reveal()))
						return err
					}
					before := goroutines(name)
					require.Positive(t, before)

					outage.begin()
					writes(t, func() error { return other.Revoke(ctx, apitoken.BySubject("mallory"), "stolen") })
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
					require.ErrorIs(t, verdict(ctx, p, bad), apitoken.ErrRevoked)
					require.Eventually(t, func() bool {
						_, err := p.Issue(ctx, apitoken.Request{Subject: "alice"})
						return err == nil
					}, 60*time.Second, 10*time.Millisecond)
					require.Eventually(t, func() bool { return goroutines(name) < before+60 }, 60*time.Second, 50*time.Millisecond, "goroutines piled up")
				})
			}
		})
	}
}

var marked = regexp.MustCompile(`(?m)^(\d+) @ .*\n# labels: (\{.*\})$`)

// goroutines counts those that carry the mark of an engine's outages.
func goroutines(engine string) (n int) {
	var b strings.Builder
	_ = pprof.Lookup("goroutine").WriteTo(&b, 1) // a Builder never fails
	for _, m := range marked.FindAllStringSubmatch(b.String(), -1) {
		if strings.Contains(m[2], strconv.Quote(engine)) {
			k, _ := strconv.Atoi(m[1])
			n += k
		}
	}
	return n
}
