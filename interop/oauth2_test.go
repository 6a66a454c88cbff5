package interop

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/oauth2"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/dpopclient"
	"github.com/apitoken-go/apitoken/httpauth"
	"github.com/apitoken-go/apitoken/oauthhttp"
	"github.com/apitoken-go/apitoken/store/memstore"
)

const (
	oauth2Verifier = "0123456789-0123456789-0123456789-0123456789-abc"
	oauth2Callback = "http://127.0.0.1/cb"
)

// ourServer is oauthhttp and an API, both of which want nonces. It returns its URL and how to get a code.
func ourServer(t *testing.T) (issuer string, code func(oauth2.Config) string) {
	mux := http.NewServeMux()
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	svc, err := apitoken.New(apitoken.Config{Issuer: server.URL, Audience: server.URL, Store: memstore.New(), InsecureKeysInStore: true,
		Validation: apitoken.Validation{RequireProofNonce: true}})
	require.NoError(t, err)
	t.Cleanup(func() { _ = svc.Close() })
	_, _, err = svc.Clients.Create(t.Context(), apitoken.Client{ID: "cli", Public: true, GrantTypes: []string{"authorization_code", "refresh_token"},
		RedirectURIs: []string{oauth2Callback}, Scopes: apitoken.Scopes{"orders:read"}, BindDPoP: true})
	require.NoError(t, err)
	var oauth *oauthhttp.Handler
	oauth, err = oauthhttp.New(svc, &oauthhttp.Options{RequireNonce: true, Consent: oauthhttp.ConsentFunc(func(w http.ResponseWriter, r *http.Request, a *oauthhttp.Authorization) {
		oauth.Approve(w, r, a, oauthhttp.Approval{Subject: "alice", Scopes: oauthhttp.All()})
	})})
	require.NoError(t, err)
	mux.Handle("/", oauth)
	mux.Handle("/me", httpauth.New(svc, &httpauth.Options{BaseURL: server.URL}).Require("orders:read")(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, `{"sub":%q}`, apitoken.FromContext(r.Context()).Subject())
	})))
	return server.URL, func(c oauth2.Config) string {
		browser := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
		answer, err := browser.Get(c.AuthCodeURL("", oauth2.S256ChallengeOption(oauth2Verifier)))
		require.NoError(t, err)
		require.NoError(t, answer.Body.Close())
		to, err := answer.Location()
		require.NoError(t, err)
		require.NotEmpty(t, to.Query().Get("code"), to)
		return to.Query().Get("code")
	}
}

// TestOAuth2WithOurProver: golang.org/x/oauth2 gets its tokens, calls an API and refreshes by way of dpopclient's Prover, at a server of
// ours and at npm's oidc-provider. Both bind the tokens to the key: without it they are of no use.
func TestOAuth2WithOurProver(t *testing.T) {
	t.Parallel()
	type server struct {
		config oauth2.Config
		me     string
		code   func(oauth2.Config) string
	}
	for name, start := range map[string]func(*testing.T) server{
		"ours": func(t *testing.T) server {
			issuer, code := ourServer(t)
			return server{me: issuer + "/me", code: code, config: oauth2.Config{Scopes: []string{"orders:read"},
				Endpoint: oauth2.Endpoint{AuthURL: issuer + "/authorize", TokenURL: issuer + "/token"}}}
		},
		"oidc-provider": func(t *testing.T) server {
			issuer := startProvider(t, oauth2Verifier, oauth2Callback)
			get := func(path string) []byte {
				answer, err := http.Get(issuer + path)
				require.NoError(t, err)
				defer answer.Body.Close()
				body, err := io.ReadAll(answer.Body)
				require.NoError(t, err)
				return body
			}
			var metadata struct {
				Token    string `json:"token_endpoint"`
				UserInfo string `json:"userinfo_endpoint"`
			}
			require.NoError(t, json.Unmarshal(get("/.well-known/openid-configuration"), &metadata))
			return server{me: metadata.UserInfo, code: func(oauth2.Config) string { return string(get("/code")) },
				config: oauth2.Config{Endpoint: oauth2.Endpoint{TokenURL: metadata.Token}}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t)
			s.config.ClientID, s.config.RedirectURL, s.config.Endpoint.AuthStyle = "cli", oauth2Callback, oauth2.AuthStyleInParams
			key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			require.NoError(t, err)
			prover, err := dpopclient.NewProver(key, nil)
			require.NoError(t, err)
			ctx := context.WithValue(t.Context(), oauth2.HTTPClient, &http.Client{Transport: prover})

			token, err := s.config.Exchange(ctx, s.code(s.config), oauth2.VerifierOption(oauth2Verifier))
			require.NoError(t, err)
			require.Equal(t, "DPoP", token.Type())
			who := func(base http.RoundTripper, source oauth2.TokenSource) (int, string) {
				answer, err := (&http.Client{Transport: &oauth2.Transport{Source: source, Base: base}}).Get(s.me)
				if !assert.NoError(t, err) {
					return 0, ""
				}
				defer answer.Body.Close()
				var claims struct{ Sub string }
				_ = json.NewDecoder(answer.Body).Decode(&claims)
				return answer.StatusCode, claims.Sub
			}
			status, subject := who(prover, oauth2.StaticTokenSource(token))
			require.Equal(t, http.StatusOK, status)
			require.Equal(t, "alice", subject)

			// The token has ended: x/oauth2's own source refreshes it, once for all that wait.
			token.Expiry = time.Now().Add(-time.Second)
			source := s.config.TokenSource(ctx, token)
			var all sync.WaitGroup
			for range 8 {
				all.Go(func() {
					_, subject := who(prover, source)
					assert.Equal(t, "alice", subject)
				})
			}
			all.Wait()
			next, err := source.Token()
			require.NoError(t, err)
			require.NotEqual(t, token.AccessToken, next.AccessToken)
			require.NotEmpty(t, next.RefreshToken) // of ours it is the same: it is bound to the key

			// Under another key, or without a proof, it opens nothing.
			another, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			require.NoError(t, err)
			thief, err := dpopclient.NewProver(another, nil)
			require.NoError(t, err)
			for _, base := range []http.RoundTripper{thief, http.DefaultTransport} {
				status, _ := who(base, oauth2.StaticTokenSource(next))
				require.Contains(t, []int{http.StatusUnauthorized, http.StatusBadRequest}, status)
			}
		})
	}
}
