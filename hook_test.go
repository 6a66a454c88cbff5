package apitoken_test

import (
	"context"
	"log/slog"
	"strings"
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

// What a function of the host may do instead of answering.
var misdeeds = map[string]func(context.Context) error{
	"panics":                func(context.Context) error { panic("a bug of the host's") },
	"blocks":                func(context.Context) error { select {} },
	"ends with its context": func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
	"says canceled":         func(context.Context) error { return context.Canceled },
}

type badObserver func(context.Context) error

func (f badObserver) Observe(ctx context.Context, _ apitoken.Observation) { _ = f(ctx) }

// The answer of a grant that is stored already must reach the caller, whatever an Observer does.
func TestAnObserverLosesNoGrant(t *testing.T) {
	t.Parallel()
	for name, misdeed := range misdeeds {
		if name == "ends with its context" {
			continue // of a caller that sets no deadline it never ends, which is to block
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctestOrLeave(t, name == "blocks", func(t *testing.T) {
				var out lockedBuffer
				c := config(memstore.New())
				c.Logger = slog.New(slog.NewTextHandler(&out, nil))
				svc, err := apitoken.New(c)
				require.NoError(t, err)
				defer svc.Close()
				release := make(chan struct{})
				defer close(release)
				var seen atomic.Int32
				watch := badObserver(func(ctx context.Context) error {
					seen.Add(1)
					if name == "blocks" {
						<-release
						return nil
					}
					return misdeed(ctx)
				})
				defer svc.Observe(watch)()
				ctx := context.Background()
				i, err := svc.Issue(ctx, apitoken.Request{Subject: "alice", Refresh: true})
				require.NoError(t, err)
				began := time.Now()
				next, err := svc.Refresh(ctx, apitoken.RefreshRequest{Token: i.Refresh.Reveal()})
				require.NoError(t, err)
				require.LessOrEqual(t, time.Since(began), 2*time.Second)
				if name != "blocks" {
					_, err = svc.Validate(ctx, apitoken.Bearer(next.Access.Reveal()))
					require.NoError(t, err)
				}
				require.NoError(t, svc.Revoke(ctx, apitoken.BySubject("alice"), "test"))
				require.NotZero(t, seen.Load())
				if name == "panics" {
					require.Equal(t, 1, strings.Count(out.String(), "an Observer panicked"))
				}
			})
		})
	}
}

// synctestOrLeave runs f in a bubble, whose clock does not wait.
func synctestOrLeave(t *testing.T, bubble bool, f func(*testing.T)) {
	if bubble {
		synctest.Test(t, f)
		return
	}
	f(t)
}

// No answer of the host's is no refusal: clients drop their sessions at invalid_grant.
func TestMayContinueThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	for name, misdeed := range misdeeds {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var bad atomic.Bool
				release := make(chan struct{})
				c := config(memstore.New())
				c.MayContinue = func(ctx context.Context, _ apitoken.Grant) error {
					switch {
					case !bad.Load():
						return nil
					case name == "blocks":
						<-release
						return nil
					}
					return misdeed(ctx)
				}
				svc, err := apitoken.New(c)
				require.NoError(t, err)
				defer svc.Close()
				defer close(release)
				ctx := context.Background()
				i, err := svc.Issue(ctx, apitoken.Request{Subject: "alice", Refresh: true})
				require.NoError(t, err)
				bad.Store(true)
				_, err = svc.Refresh(ctx, apitoken.RefreshRequest{Token: i.Refresh.Reveal()})
				require.ErrorIs(t, err, apitoken.ErrUnavailable)
				require.NotErrorIs(t, err, apitoken.ErrInvalidGrant)
				bad.Store(false)
				_, err = svc.Refresh(ctx, apitoken.RefreshRequest{Token: i.Refresh.Reveal()})
				require.NoError(t, err, "nothing was spent")
			})
		})
	}
}

// badSealer is a KMS that does as f says.
type badSealer func(context.Context) error

func (f badSealer) Seal(ctx context.Context, plain, _ []byte) ([]byte, error) { return plain, f(ctx) }
func (f badSealer) Open(ctx context.Context, sealed, _ []byte) ([]byte, error) {
	return sealed, f(ctx)
}

func TestASealerThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	for name, misdeed := range misdeeds {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var bad atomic.Bool
				release := make(chan struct{})
				defer close(release)
				c := config(memstore.New())
				c.InsecureKeysInStore = false
				c.Seal = badSealer(func(ctx context.Context) error {
					switch {
					case !bad.Load():
						return nil
					case name == "blocks":
						<-release
						return nil
					}
					return misdeed(ctx)
				})
				svc, err := apitoken.New(c)
				require.NoError(t, err)
				bad.Store(true)
				require.ErrorIs(t, svc.SigningKeys.RotateSecrets(context.Background()), apitoken.ErrUnavailable)
				_, err = svc.Issue(context.Background(), apitoken.Request{Subject: "alice"})
				require.NoError(t, err, "no token asks it")
				require.NoError(t, svc.Close())
				_, err = apitoken.New(c)
				var wrong *apitoken.ConfigError
				require.ErrorAs(t, err, &wrong)
				require.Equal(t, "Seal", wrong.Field)
			})
		})
	}
}

// badAuditor is an Auditor that does as f says.
type badAuditor func(context.Context) error

func (f badAuditor) Audit(ctx context.Context, _ apitoken.Event) error { return f(ctx) }

func TestAnAuditorThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	for name, misdeed := range misdeeds {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				release := make(chan struct{})
				c := config(memstore.New())
				var calls atomic.Int32
				c.Sinks = []apitoken.Sink{{Name: "bad", MaxLag: 5 * time.Second, Auditor: badAuditor(func(ctx context.Context) error {
					calls.Add(1)
					if name == "blocks" {
						<-release
						return nil
					}
					return misdeed(ctx)
				})}}
				svc, err := apitoken.New(c)
				require.NoError(t, err)
				defer svc.Close()
				defer close(release)
				ctx := context.Background()
				_, err = svc.Issue(ctx, apitoken.Request{Subject: "alice"})
				require.NoError(t, err)
				time.Sleep(time.Minute)
				require.NotZero(t, calls.Load())
				_, err = svc.Issue(ctx, apitoken.Request{Subject: "alice"})
				require.ErrorIs(t, err, apitoken.ErrUnavailable, "by MaxLag")
				require.NoError(t, svc.Revoke(ctx, apitoken.BySubject("alice"), "test"), "taking power away waits for no sink")
			})
		})
	}
}

type panicking struct{}

func (panicking) MarshalJSON() ([]byte, error) { panic("a bug of the host's") }

func TestClaimsThatPanic(t *testing.T) {
	t.Parallel()
	svc := serviceOn(t, memstore.New(), nil)
	_, err := svc.Issue(t.Context(), apitoken.Request{Subject: "alice", Claims: map[string]any{"plan": panicking{}}})
	require.ErrorIs(t, err, apitoken.ErrUnavailable)
	_, _, err = svc.APIKeys.Create(t.Context(), apitoken.APIKeyRequest{Subject: "alice", Claims: panicking{}})
	require.ErrorIs(t, err, apitoken.ErrUnavailable)
	_, err = svc.Issue(t.Context(), apitoken.Request{Subject: "alice"})
	require.NoError(t, err)
}

// badSource is an issuer's keys and feed that do as f says.
type badSource struct {
	feed.KeySource
	feed.Source
	f func(context.Context) error
}

func (x badSource) JWKS(ctx context.Context, missing string) ([]byte, error) {
	if err := x.f(ctx); err != nil {
		return nil, err
	}
	return x.KeySource.JWKS(ctx, missing)
}

func (x badSource) Revocations(ctx context.Context, after store.Position, max int) (feed.View, error) {
	if err := x.f(ctx); err != nil {
		return feed.View{}, err
	}
	return x.Source.Revocations(ctx, after, max)
}

// The sources of a trusted issuer are asked in goroutines of the validator's own: what they do there ends no process, and once they
// answer their issuer's tokens are good.
func TestATrustedSourceThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	for name, misdeed := range misdeeds {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				theirs, err := apitoken.New(config(memstore.New()))
				require.NoError(t, err)
				defer theirs.Close()
				var bad atomic.Bool
				bad.Store(true)
				release := make(chan struct{})
				source := badSource{theirs.SigningKeys, theirs, func(ctx context.Context) error {
					switch {
					case !bad.Load():
						return nil
					case name == "blocks":
						<-release
						return nil
					}
					return misdeed(ctx)
				}}
				v, err := apitoken.NewValidator(apitoken.ValidatorConfig{Audience: testAudience,
					Trust: []apitoken.Trusted{{Issuer: testIssuer, Own: true, Keys: source, Revocations: source}}})
				require.NoError(t, err)
				defer v.Close()
				defer close(release)
				i, err := theirs.Issue(t.Context(), apitoken.Request{Subject: "alice"})
				require.NoError(t, err)
				time.Sleep(time.Minute)
				_, err = v.Validate(t.Context(), apitoken.Bearer(i.Access.Reveal()))
				require.ErrorIs(t, err, apitoken.ErrUnavailable)
				bad.Store(false)
				time.Sleep(2 * time.Minute)
				_, err = v.Validate(t.Context(), apitoken.Bearer(i.Access.Reveal()))
				require.NoError(t, err)
			})
		})
	}
}
