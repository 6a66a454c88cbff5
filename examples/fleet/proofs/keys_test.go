package proofs

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
)

// TestKeysRotateUnderLoad: the ring of three processes rotates every two seconds while each issues and all validate. Nothing good
// is ever refused, though one of them gives the audience keys of its own, and the root secret under all of them changes; at the end a key is declared compromised, and past the bound nothing that it signed is accepted. It takes
// five seconds, or as long as APITOKEN_TEST_LONG says, such as 1m.
func TestKeysRotateUnderLoad(t *testing.T) {
	t.Parallel()
	const bound = 2 * time.Second
	long, err := time.ParseDuration(os.Getenv("APITOKEN_TEST_LONG"))
	if err != nil {
		long = 5 * time.Second
	}
	each(t, func(t *testing.T, e engine) {
		ctx := context.Background()
		var fleet []process
		seal, err := apitoken.NewSealer([]byte("a key-encryption key of 32 bytes"))
		require.NoError(t, err)
		for n := range 3 {
			fleet = append(fleet, e.process(t, func(c *apitoken.Config) {
				c.KeyRotation = 2 * time.Second
				c.Validation.MaxStaleness = bound
				c.Seal, c.InsecureKeysInStore = seal, false
				if n == 0 {
					c.AudienceAlgorithms = map[string]string{c.Audience: "EdDSA"}
				}
			}))
		}
		var stop atomic.Bool
		var issued atomic.Int64
		var kids sync.Map
		var wg sync.WaitGroup
		for n := range fleet {
			wg.Go(func() {
				for k := 0; !stop.Load(); k++ {
					i, err := fleet[n].Issue(ctx, apitoken.Request{Subject: "alice"})
					if errors.Is(err, apitoken.ErrUnavailable) {
						continue
					}
					require.NoError(t, err)
					issued.Add(1)
					header, _, _ := strings.Cut(i.Access.Reveal(), ".")
					kids.LoadOrStore(header, i)
					for _, p := range fleet {
						if _, err := p.Validate(ctx, apitoken.Bearer(i.Access.Reveal())); err != nil {
							require.ErrorIs(t, err, apitoken.ErrUnavailable, "a good token was refused")
						}
					}
				}
			})
		}
		require.NoError(t, fleet[1].SigningKeys.RotateSecrets(ctx))
		for began := time.Now(); time.Since(began) < long; {
			time.Sleep(50 * time.Millisecond) // the load is what runs
		}
		stop.Store(true)
		wg.Wait()
		count := 0
		kids.Range(func(_, v any) bool {
			count++
			require.NoError(t, verdict(ctx, fleet[count%3], v.(*apitoken.Issued)), "what a retired key signed is good until it expires")
			return true
		})
		require.GreaterOrEqual(t, count, int(long/(4*time.Second)), "it rotated by itself")
		require.Eventually(t, func() bool {
			for e, err := range fleet[2].Events(ctx, apitoken.EventQuery{Type: apitoken.EventKeyChanged}) {
				require.NoError(t, err)
				if e.Reason == "older root secrets prove no signing key any more" {
					return true
				}
			}
			return false
		}, time.Minute, 50*time.Millisecond, "the ring moved under the new root secret")

		last, err := fleet[0].Issue(ctx, apitoken.Request{Subject: "alice"})
		require.NoError(t, err)
		require.NoError(t, fleet[0].SigningKeys.Compromise(ctx, keyOf(t, last), "test"))
		acked := time.Now()
		for _, p := range fleet {
			for {
				asked := time.Now()
				if _, err := p.Validate(ctx, apitoken.Bearer(last.Access.Reveal())); err != nil {
					break
				}
				if asked.Sub(acked) > bound {
					t.Fatal("accepted past the bound of a key declared compromised")
				}
				time.Sleep(time.Millisecond)
			}
		}
		next, err := fleet[1].Issue(ctx, apitoken.Request{Subject: "alice"})
		require.NoError(t, err)
		for _, p := range fleet {
			require.NoError(t, verdict(ctx, p, next), "a new key is active at once")
		}
	})
}

// verdict is the first answer that is none of "try again": on a busy machine a view may be too old for a moment.
func verdict(ctx context.Context, p process, i *apitoken.Issued) (err error) {
	for range 1000 {
		if _, err = p.Validate(ctx, apitoken.Bearer(i.Access.Reveal())); !errors.Is(err, apitoken.ErrUnavailable) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return err
}

// keyOf is the kid of a token.
func keyOf(t *testing.T, i *apitoken.Issued) string {
	t.Helper()
	part, _, _ := strings.Cut(i.Access.Reveal(), ".")
	raw, err := base64.RawURLEncoding.DecodeString(part)
	require.NoError(t, err)
	var header struct{ KID string }
	require.NoError(t, json.Unmarshal(raw, &header))
	return header.KID
}
