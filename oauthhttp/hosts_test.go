package oauthhttp_test

import (
	"context"
	"net/http"
	"net/url"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/internal/granttype"
	"github.com/apitoken-go/apitoken/oauthhttp"
)

// A function of the host's that panics, does not come back or ends with a context has decided nothing: whoever asked is told to come
// again, and nothing that they sent is spent.
func TestAFunctionOfTheHostsThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	misdeeds := map[string]func(ctx context.Context, release chan struct{}) error{
		"panics":                func(context.Context, chan struct{}) error { panic("a bug of the host's") },
		"blocks":                func(_ context.Context, release chan struct{}) error { <-release; return nil },
		"ends with its context": func(ctx context.Context, _ chan struct{}) error { <-ctx.Done(); return ctx.Err() },
		"says canceled":         func(context.Context, chan struct{}) error { return context.Canceled },
	}
	const document = "https://app.example.net/client.json" // never asked for: Allow comes first
	for name, misdeed := range misdeeds {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				release := make(chan struct{})
				defer close(release)
				var bad atomic.Bool
				host := func(ctx context.Context) error {
					if bad.Load() {
						return misdeed(ctx, release)
					}
					return nil
				}
				keys := &idp{}
				keys.key.Store(newSigner(t))
				s := newSite(t, func(_ *apitoken.Config, o *oauthhttp.Options) {
					o.Registration = &oauthhttp.Registration{Scopes: apitoken.Scopes{"orders:read"}, Check: func(ctx context.Context, _ apitoken.Token, _ *apitoken.Client) error { return host(ctx) }}
					o.Details = &oauthhttp.Details{Types: []string{"payment"}, Check: func(ctx context.Context, _ apitoken.Client, asked []oauthhttp.Detail) ([]oauthhttp.Detail, error) {
						return asked, host(ctx)
					}}
					o.Documents = &oauthhttp.Documents{Allow: func(ctx context.Context, _ *url.URL) error { return host(ctx) }}
					o.Assertions = []oauthhttp.AssertionIssuer{{Issuer: login, Keys: keys, Subject: func(ctx context.Context, a oauthhttp.Assertion) (oauthhttp.Identity, error) {
						return oauthhttp.Identity{Subject: a.Subject, Scopes: oauthhttp.All()}, host(ctx)
					}}}
				})
				s.client("app", nil)
				_, initial, err := s.svc.APIKeys.Create(t.Context(), apitoken.APIKeyRequest{Subject: "ops", Scopes: apitoken.Scopes{oauthhttp.RegisterScope}})
				require.NoError(t, err)
				assertion := s.vouch(keys.key.Load(), nil, nil)
				calls := map[string]func() *answer{
					"Registration.Check": func() *answer {
						return s.register(metadata{"redirect_uris": []string{callback}, "token_endpoint_auth_method": "none"}, bearer(initial.Reveal()))
					},
					"Details.Check": func() *answer {
						return s.post("/par", authorization("app", "authorization_details", `[{"type":"payment"}]`), s.as("app"))
					},
					"AssertionIssuer.Subject": func() *answer {
						return s.token(params("grant_type", granttype.JWTBearer, "assertion", assertion), s.as("app"))
					},
				}
				bad.Store(true)
				for what, call := range calls {
					began := time.Now()
					call().refused(http.StatusServiceUnavailable, "temporarily_unavailable", what)
					require.LessOrEqual(t, time.Since(began), 10*time.Second, what)
				}
				s.post("/par", authorization(document)).refused(http.StatusServiceUnavailable, "temporarily_unavailable", "Documents.Allow")
				bad.Store(false)
				for what, call := range calls {
					call().ok(what)
				}
			})
		})
	}
}
