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

// TestKeysRotateUnderLoad: the ring of three processes rotates every two seconds while each issues and all validate, and one of
// them is killed and replaced. Nothing good is ever refused, though one of them gives the audience keys of its own, and the root
// secret under all of them changes; at the end a key is declared compromised, and past the bound nothing that it signed is
// accepted. It takes five seconds under a load that leaves time for the other tests, or as long as APITOKEN_TEST_LONG says, such
// as 1m, under all that there is.
func TestKeysRotateUnderLoad(t *testing.T) {
	t.Parallel()
	const bound = 2 * time.Second
	pause := 10 * time.Millisecond
	long, err := time.ParseDuration(os.Getenv("APITOKEN_TEST_LONG"))
	if err == nil {
		pause = time.Microsecond
	} else {
		long = 5 * time.Second
	}
	each(t, func(t *testing.T, e engine) {
		s := setup{Rotation: 2 * time.Second, Staleness: bound, Sealed: true}
		first := s
		first.Algorithm = "EdDSA"
		list := append(e.fleet(t, 1, first), e.fleet(t, 2, s)...)
		var fleet [3]atomic.Pointer[peer]
		for n, p := range list {
			fleet[n].Store(p)
		}
		ctx, stop := context.WithTimeout(context.Background(), long)
		defer stop()
		var kids sync.Map // header → a token
		var issued atomic.Int64
		var wg sync.WaitGroup
		for n := range fleet {
			wg.Go(func() {
				for pace := time.NewTicker(pause); ctx.Err() == nil; {
					<-pace.C
					i, err := fleet[n].Load().ask(question{Call: "issue", Subject: "alice"})
					if errors.Is(err, apitoken.ErrUnavailable) {
						continue
					}
					if err != nil {
						t.Errorf("nothing was issued: %v", err)
						return
					}
					issued.Add(1)
					header, _, _ := strings.Cut(i.Access, ".")
					kids.LoadOrStore(header, i.Access)
					for k := range fleet {
						if _, err := fleet[k].Load().ask(question{Call: "validate", Token: i.Access}); err != nil && !errors.Is(err, apitoken.ErrUnavailable) {
							t.Errorf("a good token was refused: %v", err)
							return
						}
					}
				}
			})
		}
		fleet[1].Load().insist(t, question{Call: "rotate secrets"})
		if e.addr != "" {
			wg.Go(func() { // at about the time of the first rotation; whoever asks it gets no answer until there is another
				<-time.After(long * 2 / 5)
				fleet[2].Load().kill()
				if p := e.spawn(t, s); p != nil {
					fleet[2].Store(p)
				}
			})
		}
		wg.Wait()
		require.Positive(t, issued.Load())
		count := 0
		kids.Range(func(_, v any) bool {
			count++
			require.NoError(t, fleet[count%3].Load().verdict(v.(string)), "what a retired key signed is good until it expires")
			return true
		})
		require.GreaterOrEqual(t, count, int(long/(4*time.Second)), "it rotated by itself")
		require.Eventually(t, func() bool {
			_, err := fleet[2].Load().ask(question{Call: "spent"})
			return err == nil
		}, time.Minute, 50*time.Millisecond, "the ring moved under the new root secret")

		last := fleet[0].Load().insist(t, question{Call: "issue", Subject: "alice"}).Access
		fleet[0].Load().insist(t, question{Call: "compromise", ID: keyOf(t, last)})
		acked := time.Now()
		for n := range fleet {
			for {
				asked := time.Now()
				if _, err := fleet[n].Load().ask(question{Call: "validate", Token: last}); err != nil {
					break
				}
				if asked.Sub(acked) > bound {
					t.Fatal("accepted past the bound of a key declared compromised")
				}
				time.Sleep(time.Millisecond)
			}
		}
		next := fleet[1].Load().insist(t, question{Call: "issue", Subject: "alice"}).Access
		for n := range fleet {
			require.NoError(t, fleet[n].Load().verdict(next), "a new key is active at once")
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
func keyOf(t *testing.T, token string) string {
	t.Helper()
	part, _, _ := strings.Cut(token, ".")
	raw, err := base64.RawURLEncoding.DecodeString(part)
	require.NoError(t, err)
	var header struct{ KID string }
	require.NoError(t, json.Unmarshal(raw, &header))
	return header.KID
}
