package apitoken_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/feed"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/memstore"
)

// wire is what lies between a validator and its issuer: each test makes it misbehave in its own way.
type wire struct {
	mu    sync.Mutex
	svc   *apitoken.Service
	feed  func(ctx context.Context, after store.Position, max int) (feed.View, error) // nil: svc's
	keys  func() ([]byte, error)                                                      // nil: svc's
	asked atomic.Int64                                                                // for keys
	polls atomic.Int64
}

func (w *wire) set(feed func(context.Context, store.Position, int) (feed.View, error), keys func() ([]byte, error)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.feed, w.keys = feed, keys
}

func (w *wire) Revocations(ctx context.Context, after store.Position, max int) (feed.View, error) {
	w.polls.Add(1)
	w.mu.Lock()
	feed := w.feed
	w.mu.Unlock()
	if feed != nil {
		return feed(ctx, after, max)
	}
	return w.svc.Revocations(ctx, after, max)
}

func (w *wire) JWKS(ctx context.Context, missing string) ([]byte, error) {
	w.asked.Add(1)
	w.mu.Lock()
	keys := w.keys
	w.mu.Unlock()
	if keys != nil {
		return keys()
	}
	return w.svc.SigningKeys.JWKS(ctx, missing)
}

// wired runs f in a bubble with a service and a validator that follows it over a wire. Time passes as f lets it.
func wired(t *testing.T, v apitoken.Validation, keysFor time.Duration, f func(t *testing.T, svc *apitoken.Service, w *wire, val *apitoken.JWTValidator)) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := config(memstore.New())
		c.Validation.MaxStaleness = 400 * time.Millisecond // what an answer is old at its source adds to the validator's age
		svc, err := apitoken.New(c)
		require.NoError(t, err)
		defer svc.Close()
		w := &wire{svc: svc}
		val, err := apitoken.NewValidator(apitoken.ValidatorConfig{
			Audience: testAudience, Validation: v,
			Trust: []apitoken.Trusted{{Issuer: testIssuer, Own: true, Keys: w, Revocations: w, KeysFor: keysFor}},
		})
		require.NoError(t, err)
		defer val.Close()
		require.NoError(t, val.Ready(context.Background()))
		f(t, svc, w, val)
	})
}

func pass(d time.Duration) {
	time.Sleep(d) // in a bubble: no time at all
	synctest.Wait()
}

// otherKID is token with a kid that nobody has.
func otherKID(t *testing.T, token apitoken.Secret, kid string) apitoken.Secret {
	t.Helper()
	head, rest, _ := strings.Cut(token.Reveal(), ".")
	raw, err := base64.RawURLEncoding.DecodeString(head)
	require.NoError(t, err)
	var h map[string]string
	require.NoError(t, json.Unmarshal(raw, &h))
	h["kid"] = kid
	raw, err = json.Marshal(h)
	require.NoError(t, err)
	return apitoken.NewSecret(base64.RawURLEncoding.EncodeToString(raw) + "." + rest)
}

var short = apitoken.Validation{MaxStaleness: 2 * time.Second}

// Behind a balancer over lagging issuers the position never goes back, and an answer that does vouches for nothing.
func TestALaggingIssuerIsNotBelieved(t *testing.T) {
	wired(t, short, 0, func(t *testing.T, svc *apitoken.Service, w *wire, val *apitoken.JWTValidator) {
		ctx := context.Background()
		i := issue(t, svc, aliceSession)
		require.NoError(t, validate(val, i.Access))
		old, err := svc.Revocations(ctx, store.Position{}, 0)
		require.NoError(t, err)
		require.NoError(t, svc.Revoke(ctx, apitoken.BySubject("alice"), "left"))
		pass(time.Second)
		require.ErrorIs(t, validate(val, i.Access), apitoken.ErrRevoked)
		at := val.Freshness().Position
		w.set(func(context.Context, store.Position, int) (feed.View, error) { return old, nil }, nil)
		other := issue(t, svc, apitoken.Request{Subject: "bob"})
		for range 4 {
			pass(time.Second)
			require.Equal(t, at, val.Freshness().Position)
			require.ErrorIs(t, validate(val, i.Access), apitoken.ErrRevoked)
		}
		require.ErrorIs(t, validate(val, other.Access), apitoken.ErrUnavailable, "its age counts from the last answer that did not go back")
	})
}

// A source that has more and never gets there is asked again after a pause, and vouches for nothing.
func TestAFeedThatDoesNotGoOn(t *testing.T) {
	wired(t, short, 0, func(t *testing.T, svc *apitoken.Service, w *wire, val *apitoken.JWTValidator) {
		i := issue(t, svc, aliceSession)
		require.NoError(t, validate(val, i.Access))
		w.set(func(ctx context.Context, after store.Position, max int) (feed.View, error) {
			v, err := svc.Revocations(ctx, after, max)
			v.Next, v.More = after, true
			return v, err
		}, nil)
		before := w.polls.Load()
		pass(10 * time.Second)
		require.Less(t, w.polls.Load()-before, int64(100))
		require.ErrorIs(t, validate(val, i.Access), apitoken.ErrUnavailable)
	})
}

// Another history is read from zero and merged: no rule that was known is forgotten, whether the source says that it has
// another one or not.
func TestAnotherHistoryIsMerged(t *testing.T) {
	for _, says := range []bool{true, false} {
		t.Run(map[bool]string{true: "said", false: "unsaid"}[says], func(t *testing.T) {
			wired(t, short, 0, func(t *testing.T, svc *apitoken.Service, w *wire, val *apitoken.JWTValidator) {
				ctx := context.Background()
				alice, bob := issue(t, svc, aliceSession), issue(t, svc, apitoken.Request{Subject: "bob"})
				before, err := svc.Revocations(ctx, store.Position{}, 0)
				require.NoError(t, err)
				require.NoError(t, svc.Revoke(ctx, apitoken.BySubject("alice"), "left"))
				pass(time.Second)
				require.ErrorIs(t, validate(val, alice.Access), apitoken.ErrRevoked)
				require.NoError(t, validate(val, bob.Access))
				// The store was put back to before the rule, and bob is revoked there since.
				require.NoError(t, svc.Revoke(ctx, apitoken.BySubject("bob"), "left"))
				all, err := svc.Revocations(ctx, store.Position{}, 0)
				require.NoError(t, err)
				restored := before
				restored.Next = store.Position{History: before.Next.History + 1, N: before.Next.N + 1}
				restored.Rules = append(restored.Rules, all.Rules[len(all.Rules)-1])
				var whole atomic.Int64
				w.set(func(_ context.Context, after store.Position, _ int) (feed.View, error) {
					switch {
					case after == store.Position{}:
						whole.Add(1)
						return restored, nil
					case after.History != restored.Next.History && says:
						return feed.View{}, store.ErrDiverged
					}
					v := restored
					v.Rules = nil
					return v, nil
				}, nil)
				pass(2 * time.Second)
				require.EqualValues(t, 1, whole.Load())
				require.ErrorIs(t, validate(val, alice.Access), apitoken.ErrRevoked, "merged")
				require.ErrorIs(t, validate(val, bob.Access), apitoken.ErrRevoked)
				require.NoError(t, validate(val, issue(t, svc, apitoken.Request{Subject: "carol"}).Access))
			})
		})
	}
}

// Sources that contradict each other are asked at a pace, and cost a bounded number of books.
func TestContradictingSourcesGetAPause(t *testing.T) {
	wired(t, short, 0, func(t *testing.T, svc *apitoken.Service, w *wire, val *apitoken.JWTValidator) {
		var n atomic.Int64
		w.set(func(ctx context.Context, after store.Position, max int) (feed.View, error) {
			v, err := svc.Revocations(ctx, store.Position{}, max)
			// Another history and another key at every answer.
			k := n.Add(1) % 2
			v.Next.History += uint64(k)
			v.Key[0] ^= byte(k)
			v.More = true
			return v, err
		}, nil)
		before := w.polls.Load()
		pass(time.Minute)
		require.Less(t, w.polls.Load()-before, int64(200))
	})
}

// A verdict from before the feed changed its key is no verdict of now, however the books count.
func TestANewFeedKeyVoidsKeptVerdicts(t *testing.T) {
	wired(t, short, 0, func(t *testing.T, svc *apitoken.Service, w *wire, val *apitoken.JWTValidator) {
		ctx := context.Background()
		require.NoError(t, svc.Revoke(ctx, apitoken.BySubject("nobody"), "drill"))
		pass(time.Second)
		i := issue(t, svc, aliceSession)
		require.NoError(t, validate(val, i.Access)) // kept
		require.NoError(t, validate(val, i.Access))
		// The rule comes with the first answer under the new key. Its hash is of the new key too: the service rotates.
		w.set(func(context.Context, store.Position, int) (feed.View, error) {
			return feed.View{}, errors.New("cut")
		}, nil)
		require.NoError(t, svc.SigningKeys.RotateSecrets(ctx))
		require.NoError(t, svc.Revoke(ctx, apitoken.BySubject("alice"), "left"))
		pass(16 * time.Minute) // the lead of the new root
		i2 := issue(t, svc, apitoken.Request{Subject: "bob", Lifetime: time.Hour})
		w.set(nil, nil)
		pass(10 * time.Second)
		require.NoError(t, validate(val, i2.Access))
		require.NoError(t, svc.Revoke(ctx, apitoken.BySubject("bob"), "left"))
		pass(time.Second)
		require.ErrorIs(t, validate(val, i2.Access), apitoken.ErrRevoked)
		require.Error(t, validate(val, i.Access))
	})
}

// Kids that nobody has cost one fetch in a cool-down, however many come, and do not hold up the set that the feed tells of.
func TestUnknownKidsAndNewKeys(t *testing.T) {
	wired(t, short, 0, func(t *testing.T, svc *apitoken.Service, w *wire, val *apitoken.JWTValidator) {
		ctx := context.Background()
		i := issue(t, svc, apitoken.Request{Subject: "alice", Lifetime: time.Hour})
		pass(time.Second)
		began, before := time.Now(), w.asked.Load()
		for n := range 6000 {
			require.ErrorIs(t, validate(val, otherKID(t, i.Access, "k"+string(rune('a'+n%26)))), apitoken.ErrInvalidToken)
			pass(10 * time.Millisecond)
		}
		require.NoError(t, validate(val, i.Access))
		require.LessOrEqual(t, w.asked.Load()-before, int64(time.Since(began)/(10*time.Second))+1)

		require.ErrorIs(t, validate(val, otherKID(t, i.Access, "once more")), apitoken.ErrInvalidToken)
		synctest.Wait()
		require.NoError(t, svc.SigningKeys.Compromise(ctx, activeKey(t, svc).ID, "stolen"))
		fresh := issue(t, svc, apitoken.Request{Subject: "alice"})
		pass(time.Second) // the next poll, and a tenth of a second
		require.NoError(t, validate(val, fresh.Access))
		require.ErrorIs(t, validate(val, i.Access), apitoken.ErrInvalidToken)
	})
}

// An issuer behind the balancer that does not have the new key yet is asked again soon; meanwhile a token under it is not called
// bad.
func TestAKeySetThatLagsBehindTheFeed(t *testing.T) {
	wired(t, short, 0, func(t *testing.T, svc *apitoken.Service, w *wire, val *apitoken.JWTValidator) {
		ctx := context.Background()
		stolen := issue(t, svc, aliceSession)
		old, err := svc.SigningKeys.JWKS(ctx, "")
		require.NoError(t, err)
		w.set(nil, func() ([]byte, error) { return old, nil })
		require.NoError(t, svc.SigningKeys.Compromise(ctx, activeKey(t, svc).ID, "stolen"))
		fresh := issue(t, svc, apitoken.Request{Subject: "alice"})
		pass(time.Second)
		require.ErrorIs(t, validate(val, fresh.Access), apitoken.ErrUnavailable)
		require.ErrorIs(t, validate(val, stolen.Access), apitoken.ErrInvalidToken, "the feed wins over the key set")
		w.set(nil, nil)
		pass(4 * time.Second)
		require.NoError(t, validate(val, fresh.Access))
		w.set(nil, func() ([]byte, error) { return old, nil })
		pass(time.Hour)
		require.ErrorIs(t, validate(val, stolen.Access), apitoken.ErrInvalidToken, "for ever")
	})
}

// The last good keys serve through an outage for as long as is declared, and no longer.
func TestKeysServeThroughAnOutage(t *testing.T) {
	const keysFor = time.Minute
	wired(t, short, keysFor, func(t *testing.T, svc *apitoken.Service, w *wire, val *apitoken.JWTValidator) {
		i := issue(t, svc, apitoken.Request{Subject: "alice", Lifetime: time.Hour})
		pass(10 * time.Minute)
		require.NoError(t, validate(val, i.Access), "keys that can be read do not get old")
		w.set(nil, func() ([]byte, error) { return nil, errors.New("down") })
		pass(keysFor / 2)
		require.NoError(t, validate(val, i.Access))
		pass(keysFor)
		require.ErrorIs(t, validate(val, i.Access), apitoken.ErrUnavailable)
		w.set(nil, nil)
		pass(2 * time.Minute)
		require.NoError(t, validate(val, i.Access))
	})
}

// Going on past the bound is said, and ends.
func TestServingStaleHasAHardLimit(t *testing.T) {
	wired(t, apitoken.Validation{MaxStaleness: 2 * time.Second, InsecureServeStale: time.Minute}, 0, func(t *testing.T, svc *apitoken.Service, w *wire, val *apitoken.JWTValidator) {
		i := issue(t, svc, apitoken.Request{Subject: "alice", Lifetime: time.Hour})
		w.set(func(context.Context, store.Position, int) (feed.View, error) {
			return feed.View{}, errors.New("down")
		}, nil)
		pass(30 * time.Second)
		tok, err := val.Validate(context.Background(), apitoken.Bearer(i.Access.Reveal()))
		require.NoError(t, err)
		require.True(t, tok.Freshness().Stale)
		pass(31 * time.Second)
		require.ErrorIs(t, validate(val, i.Access), apitoken.ErrUnavailable)
	})
}

// The age of a view counts from when the request was sent, and holds what the answer says of its own age.
func TestAgeCountsFromTheRequest(t *testing.T) {
	wired(t, apitoken.Validation{MaxStaleness: time.Minute}, 0, func(t *testing.T, svc *apitoken.Service, w *wire, val *apitoken.JWTValidator) {
		w.set(func(ctx context.Context, after store.Position, max int) (feed.View, error) {
			time.Sleep(10 * time.Second) // on its way
			v, err := svc.Revocations(ctx, after, max)
			v.Age = 5 * time.Second
			return v, err
		}, nil)
		for range 100 {
			pass(time.Second)
			if w.polls.Load() > 4 {
				require.GreaterOrEqual(t, val.Freshness().Age, 15*time.Second)
			}
		}
		require.Greater(t, w.polls.Load(), int64(4))
	})
}

// A set in which the known key stands twice, or beside another one that claims its name, or that shows a private key besides, keeps
// good tokens good.
func TestKeySetsThatMislead(t *testing.T) {
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	wired(t, short, time.Hour, func(t *testing.T, svc *apitoken.Service, w *wire, val *apitoken.JWTValidator) {
		i := issue(t, svc, apitoken.Request{Subject: "alice", Lifetime: time.Hour})
		mine := string(activeKey(t, svc).JWK)
		b64 := func(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }
		point, err := other.PublicKey.Bytes()
		require.NoError(t, err)
		coordinates := `"kty":"EC","crv":"P-256","x":"` + b64(point[1:33]) + `","y":"` + b64(point[33:]) + `"`
		scalar, err := other.Bytes()
		require.NoError(t, err)
		for name, set := range map[string]string{
			"twice":               mine + "," + mine,
			"one name, two keys":  `{"kid":"` + activeKey(t, svc).ID + `",` + coordinates + `},` + mine,
			"with a private key":  mine + `,{"kid":"x",` + coordinates + `,"d":"` + b64(scalar) + `"}`,
			"with a secret":       mine + `,{"kid":"y","kty":"oct","k":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}`,
			"with a weak key":     mine + `,{"kid":"z","kty":"RSA","e":"AQAB","n":"` + b64(append([]byte{0xff}, make([]byte, 126)...)) + `Aw"}`,
			"with an off-curve":   mine + `,{"kid":"o","kty":"EC","crv":"P-256","x":"` + b64(point[1:33]) + `","y":"` + b64(point[1:33]) + `"}`,
			"with what is no key": mine + `,null,7`,
		} {
			before := w.asked.Load()
			w.set(nil, func() ([]byte, error) { return []byte(`{"keys":[` + set + `]}`), nil })
			pass(10 * time.Minute)
			require.Greater(t, w.asked.Load(), before)
			require.NoError(t, validate(val, i.Access), name)
			i = issue(t, svc, apitoken.Request{Subject: "alice", Lifetime: time.Hour})
			require.NoError(t, validate(val, i.Access), name)
		}
	})
}

// A service says why a foreign issuer can't be read: in its own log, once, and in Explain, until it can.
func TestWhyAForeignIssuerCannotBeRead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := config(memstore.New())
		c.Issuer = "https://partner.example"
		partner, err := apitoken.New(c)
		require.NoError(t, err)
		defer partner.Close()
		w := &wire{svc: partner}
		gone := errors.New("keys at /jwks: status 404")
		w.set(nil, func() ([]byte, error) { return nil, gone })
		var log lockedBuffer
		c = config(memstore.New())
		c.Trust = []apitoken.Trusted{{Issuer: "https://partner.example", Keys: w, InsecureNoRevocations: true}}
		c.Logger = slog.New(slog.NewTextHandler(&log, nil))
		svc, err := apitoken.New(c)
		require.NoError(t, err)
		defer svc.Close()
		pass(4 * time.Minute)
		require.Equal(t, 1, strings.Count(log.String(), "the issuer cannot be read"), log.String())
		require.Contains(t, log.String(), `issuer=https://partner.example source=keys error="keys at /jwks: status 404"`)

		token := issue(t, partner, aliceSession).Access
		x := svc.Explain(t.Context(), apitoken.Bearer(token.Reveal()), apitoken.Requirement{})
		require.ErrorIs(t, x.Err, apitoken.ErrUnavailable)
		last := x.Steps[len(x.Steps)-1]
		require.Equal(t, "key", last.Name)
		require.Regexp(t, `the issuer's keys were never read or are too old: keys: failing since \S+: keys at /jwks: status 404`, last.Detail)

		pass(4 * time.Minute)
		require.Equal(t, 2, strings.Count(log.String(), "the issuer cannot be read"), "again after five minutes: %s", log.String())
		w.set(nil, nil)
		pass(2 * time.Minute)
		require.Equal(t, 1, strings.Count(log.String(), "the issuer can be read again"), log.String())
		require.NoError(t, validate(svc, issue(t, partner, aliceSession).Access))
	})
}
