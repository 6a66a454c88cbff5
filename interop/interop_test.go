// Package interop shows that libraries which know nothing of this module take its tokens and key sets, and that it takes
// RFC 9068 tokens of issuers that are not ours.
package interop

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"
	josejwt "github.com/go-jose/go-jose/v4/jwt"
	"github.com/lestrrat-go/jwx/v3/jwa"
	"github.com/lestrrat-go/jwx/v3/jwk"
	"github.com/lestrrat-go/jwx/v3/jws"
	"github.com/lestrrat-go/jwx/v3/jwt"
	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/remote"
	"github.com/apitoken-go/apitoken/store/memstore"
)

const audience = "https://api.example.com"

// ours is a service behind a real server, with a token for alice.
func ours(t *testing.T, alg string) (url, token string) {
	t.Helper()
	var h atomic.Pointer[http.Handler] // the issuer's URL is known before the issuer is
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { (*h.Load()).ServeHTTP(w, r) }))
	t.Cleanup(srv.Close)
	svc, err := apitoken.New(apitoken.Config{Issuer: srv.URL, Audience: audience, Store: memstore.New(), InsecureKeysInStore: true, Algorithm: alg,
		AudienceAlgorithms: map[string]string{audience: alg}}) // signed by a key whose JWK has a member of ours
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, svc.Close()) })
	handler := remote.Handler(svc)
	h.Store(&handler)
	i, err := svc.Issue(context.Background(), apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"orders:read"}, Claims: map[string]any{"tenant": "acme"}})
	require.NoError(t, err)
	return srv.URL, i.Access.Reveal()
}

var algorithms = []string{"ES256", "EdDSA", "RS256", "PS256"}

func TestJWX(t *testing.T) {
	t.Parallel()
	for _, alg := range algorithms {
		url, token := ours(t, alg)
		set, err := jwk.Fetch(t.Context(), url+"/.well-known/jwks.json")
		require.NoError(t, err, alg)
		tok, err := jwt.Parse([]byte(token), jwt.WithKeySet(set), jwt.WithValidate(true), jwt.WithIssuer(url), jwt.WithAudience(audience))
		require.NoError(t, err, alg)
		sub, ok := tok.Subject()
		require.True(t, ok)
		require.Equal(t, "alice", sub)
		var tenant string
		require.NoError(t, tok.Get("tenant", &tenant))
		require.Equal(t, "acme", tenant)
	}
}

func TestGoJose(t *testing.T) {
	t.Parallel()
	for _, alg := range algorithms {
		url, token := ours(t, alg)
		res, err := http.Get(url + "/.well-known/jwks.json")
		require.NoError(t, err)
		var set jose.JSONWebKeySet
		require.NoError(t, json.NewDecoder(res.Body).Decode(&set))
		require.NoError(t, res.Body.Close())
		tok, err := josejwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.SignatureAlgorithm(alg)})
		require.NoError(t, err, alg)
		keys := set.Key(tok.Headers[0].KeyID)
		require.Len(t, keys, 1)
		var claims josejwt.Claims
		require.NoError(t, tok.Claims(keys[0].Key, &claims), alg)
		require.NoError(t, claims.Validate(josejwt.Expected{Issuer: url, AnyAudience: josejwt.Audience{audience}, Subject: "alice"}))
	}
}

func TestGoOIDC(t *testing.T) {
	t.Parallel()
	for _, alg := range algorithms {
		url, token := ours(t, alg)
		keys := oidc.NewRemoteKeySet(t.Context(), url+"/.well-known/jwks.json")
		v := oidc.NewVerifier(url, keys, &oidc.Config{ClientID: audience, SupportedSigningAlgs: []string{alg}})
		tok, err := v.Verify(t.Context(), token)
		require.NoError(t, err, alg)
		require.Equal(t, "alice", tok.Subject)
	}
}

// TestNodeJose runs npm's jose against us.
func TestNodeJose(t *testing.T) {
	t.Parallel()
	dir := nodePackage(t, "node")
	for _, alg := range algorithms {
		url, token := ours(t, alg)
		cmd := exec.Command("node", "verify.mjs", url, audience, token)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s: %s", alg, out)
		require.Contains(t, string(out), "alice")
	}
}

// TestForeignIssuer takes tokens that jwx made, by the key set of an issuer that is not ours.
func TestForeignIssuer(t *testing.T) {
	t.Parallel()
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	set := jwk.NewSet()
	private := map[string]jwk.Key{}
	for kid, key := range map[string]any{"ec": ec, "rsa": rsaKey} {
		k, err := jwk.Import(key)
		require.NoError(t, err)
		require.NoError(t, k.Set(jwk.KeyIDKey, kid))
		if kid == "rsa" {
			require.NoError(t, k.Set(jwk.AlgorithmKey, jwa.RS256()))
		}
		private[kid] = k
		pub, err := k.PublicKey()
		require.NoError(t, err)
		require.NoError(t, set.AddKey(pub))
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/jwk-set+json")
		if err := json.NewEncoder(w).Encode(set); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(srv.Close)
	v, err := apitoken.NewValidator(apitoken.ValidatorConfig{Audience: audience, Trust: []apitoken.Trusted{{
		Issuer: srv.URL, Keys: remote.Keys(srv.URL+"/keys", nil), InsecureNoRevocations: true, Scopes: apitoken.Scopes{"orders"},
	}}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, v.Close()) })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	require.NoError(t, v.Ready(ctx))
	mint := func(kid string, alg jwa.SignatureAlgorithm, typ string, change func(jwt.Token)) string {
		tok, err := jwt.NewBuilder().Issuer(srv.URL).Subject("alice").Audience([]string{audience}).IssuedAt(time.Now()).Expiration(time.Now().Add(time.Minute)).JwtID("1").
			Claim("client_id", "app").Claim("scope", "orders:read admin").Claim("roles", []string{"root"}).Build()
		require.NoError(t, err)
		if change != nil {
			change(tok)
		}
		h := jws.NewHeaders()
		require.NoError(t, h.Set("typ", typ))
		b, err := jwt.Sign(tok, jwt.WithKey(alg, private[kid], jws.WithProtectedHeaders(h)))
		require.NoError(t, err)
		return string(b)
	}
	for kid, alg := range map[string]jwa.SignatureAlgorithm{"ec": jwa.ES256(), "rsa": jwa.RS256()} {
		tok, err := v.Validate(t.Context(), apitoken.Bearer(mint(kid, alg, "at+jwt", nil)))
		require.NoError(t, err, kid)
		require.Equal(t, srv.URL, tok.Issuer(), "a principal is issuer and subject together")
		require.Equal(t, apitoken.Scopes{"orders:read"}, tok.Scopes(), "of its scopes what was declared")
		require.Empty(t, tok.Roles(), "no roles")
		require.Empty(t, tok.Client(), "and none of our client names")
	}
	for name, token := range map[string]string{
		"an ID token":      mint("ec", jwa.ES256(), "JWT", nil),
		"another issuer's": mint("ec", jwa.ES256(), "at+jwt", func(t jwt.Token) { _ = t.Set("iss", "https://evil.example.com") }),
		"expired":          mint("ec", jwa.ES256(), "at+jwt", func(t jwt.Token) { _ = t.Set("exp", time.Now().Add(-time.Second)) }),
		"another audience": mint("ec", jwa.ES256(), "at+jwt", func(t jwt.Token) { _ = t.Set("aud", "x") }),
		"lives too long":   mint("ec", jwa.ES256(), "at+jwt", func(t jwt.Token) { _ = t.Set("exp", time.Now().Add(48*time.Hour)) }),
	} {
		_, err := v.Validate(t.Context(), apitoken.Bearer(token))
		require.ErrorIs(t, err, apitoken.ErrInvalidToken, name)
	}
}
