package oauthhttp_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/oauthhttp"
	"github.com/apitoken-go/apitoken/remote"
)

const inactive = `{"active":false}`

func TestIntrospectionIsForThoseTheTokenConcerns(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s := newSite(t, nil)
	s.client("app", nil)
	s.client("stranger", nil)
	s.client("monitor", func(c *apitoken.Client) { c.Scopes = apitoken.Scopes{remote.FollowScope} })
	s.client(otherAPI, nil)
	s.public("spa", nil)
	pair := s.token(redemption(s.code("app", "resource", otherAPI)), s.as("app")).ok()
	i, err := s.svc.Issue(ctx, apitoken.Request{Subject: "carol", Client: "app", Scopes: apitoken.Scopes{"orders:read"}, Claims: map[string]any{"plan": "gold"}, Audiences: []string{testAudience, otherAPI}})
	require.NoError(t, err)
	tok := i.Access.Reveal()
	for _, id := range []string{"app", otherAPI, "monitor"} {
		a := s.introspect(id, tok)
		require.Equal(t, true, a.body["active"], id)
		require.Equal(t, "carol", a.text("sub"))
		require.Equal(t, "app", a.text("client_id"))
		require.Equal(t, testIssuer, a.text("iss"))
		require.Equal(t, "Bearer", a.text("token_type"))
		require.Equal(t, "orders:read", a.text("scope"))
		require.NotEmpty(t, a.text("jti"))
		require.Equal(t, claims(t, tok)["exp"], a.body["exp"])
		require.Equal(t, "no-store", a.Header.Get("Cache-Control"))
	}
	require.Equal(t, map[string]any{"plan": "gold"}, s.introspect("monitor", tok).body["apitoken_claims"])
	require.NotContains(t, s.introspect("app", tok).body, "apitoken_claims")
	require.Equal(t, inactive, string(s.introspect("stranger", tok).raw), "nothing else")
	require.Equal(t, inactive, string(s.introspect("monitor", "junk").raw))
	require.Equal(t, inactive, string(s.introspect("app", pair.text("refresh_token")).raw), "a refresh token is no API's business")
	_, key, err := s.svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "dave", Scopes: apitoken.Scopes{"orders:read"}})
	require.NoError(t, err)
	require.Equal(t, "dave", s.introspect("monitor", key.Reveal()).text("sub"))
	require.Equal(t, inactive, string(s.introspect("app", key.Reveal()).raw))

	s.post("/introspect", params("token", tok)).refused(401, "invalid_client")
	s.post("/introspect", params("token", tok, "client_id", "spa")).refused(401, "invalid_client", "a public client could scan for tokens")
	s.post("/introspect", params("token", tok), basicAuth("app", s.secrets["stranger"])).refused(401, "invalid_client")
	s.post("/introspect", nil, s.as("app")).refused(400, "invalid_request")
	s.do(formRequest("/introspect", "token=a&token=b"), s.as("app")).refused(400, "invalid_request")
	s.do(formRequest("/introspect?token=a", "token=a"), s.as("app")).refused(400, "invalid_request")
	s.post("/introspect", params("token", tok, "token_type_hint", "whatever"), s.as("app")).ok()

	s.at.Advance(time.Hour)
	require.Equal(t, inactive, string(s.introspect("app", tok).raw), "expired")
}

func TestIntrospectionThatIsSigned(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.client("app", nil)
	tok := s.token(own, s.as("app")).ok().text("access_token")
	const media = "application/token-introspection+jwt"
	a := s.post("/introspect", params("token", tok), s.as("app"), header("Accept", media)).ok()
	require.Equal(t, media, a.Header.Get("Content-Type"))
	j, err := jose.ParseSignedCompact(string(a.raw), []jose.SignatureAlgorithm{jose.ES256})
	require.NoError(t, err)
	require.Equal(t, "token-introspection+jwt", j.Signatures[0].Header.ExtraHeaders[jose.HeaderType], "RFC 9701 §5")
	var set jose.JSONWebKeySet
	require.NoError(t, json.Unmarshal(s.get("/.well-known/jwks.json").raw, &set))
	payload, err := j.Verify(set.Key(j.Signatures[0].Header.KeyID)[0])
	require.NoError(t, err)
	var c struct {
		Issuer   string         `json:"iss"`
		Audience string         `json:"aud"`
		IssuedAt int64          `json:"iat"`
		Answer   map[string]any `json:"token_introspection"`
	}
	require.NoError(t, json.Unmarshal(payload, &c))
	require.Equal(t, testIssuer, c.Issuer)
	require.Equal(t, "app", c.Audience)
	require.Equal(t, true, c.Answer["active"])
	_, err = s.svc.Validate(t.Context(), apitoken.Bearer(string(a.raw)))
	require.ErrorIs(t, err, apitoken.ErrInvalidToken, "such a JWT is no token")
	junk := s.post("/introspect", params("token", "junk"), s.as("app"), header("Accept", media)).ok()
	raw, err := base64.RawURLEncoding.DecodeString(strings.Split(string(junk.raw), ".")[1])
	require.NoError(t, err)
	require.Contains(t, string(raw), `"token_introspection":{"active":false}`)
	for accept, want := range map[string]string{
		"":                                       "application/json",
		"*/*":                                    "application/json",
		"application/json":                       "application/json",
		media + ", application/json":             media,
		media + ";q=0.5, application/json;q=0.9": "application/json",
		media + ";q=0.9, application/json;q=0.5": media,
		media + ";q=0.9, application/json":       "application/json",
		media + ";q=0":                           "application/json",
	} {
		a := s.post("/introspect", params("token", tok), s.as("app"), header("Accept", accept)).ok()
		require.Equal(t, want, a.Header.Get("Content-Type"), accept)
	}
	sym := newSite(t, func(c *apitoken.Config, _ *oauthhttp.Options) { c.Algorithm, c.Audiences = "HS256", nil })
	sym.client("app", nil)
	sym.post("/introspect", params("token", "x"), sym.as("app"), header("Accept", media)).refused(400, "invalid_request", "nobody could verify it")
}

func TestRevocation(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s := newSite(t, nil)
	s.client("app", nil)
	s.client("stranger", nil)
	s.public("spa", nil)
	revoke := func(token string, o ...option) *answer { return s.post("/revoke", params("token", token), o...) }
	good := func(token string) bool {
		_, err := s.svc.Validate(ctx, apitoken.Bearer(token))
		return err == nil
	}
	grant := func() *answer { return s.token(redemption(s.code("app")), s.as("app")).ok() }
	pair := grant()
	for _, tok := range []string{pair.text("access_token"), pair.text("refresh_token")} {
		a := revoke(tok, s.as("stranger"))
		require.Equal(t, 200, a.StatusCode)
		revoke(tok, header("X", "")).refused(401, "invalid_client")
		a = s.post("/revoke", params("token", tok, "client_id", "spa"))
		require.Equal(t, 200, a.StatusCode)
		require.True(t, good(pair.text("access_token")), "a stranger never ends another's grant")
	}
	a := revoke(pair.text("refresh_token"), s.as("app"))
	require.Equal(t, 200, a.StatusCode)
	require.Equal(t, "application/json", a.Header.Get("Content-Type"), "clients parse every answer")
	require.JSONEq(t, `{}`, string(a.raw))
	require.False(t, good(pair.text("access_token")), "the refresh token's access tokens end with it (RFC 7009 §2.1)")
	require.Equal(t, 200, revoke(pair.text("refresh_token"), s.as("app")).StatusCode, "again")
	pair = grant()
	require.Equal(t, 200, revoke(pair.text("access_token"), s.as("app")).StatusCode)
	require.False(t, good(pair.text("access_token")))
	mine := s.token(own, s.as("app")).ok().text("access_token")
	require.Equal(t, 200, s.post("/revoke", params("token", mine, "token_type_hint", "nonsense"), s.as("app")).StatusCode)
	require.False(t, good(mine), "a client's own token, which has no grant record")
	for _, junk := range []string{"junk", "x.y.z", "at_rt_x"} {
		require.Equal(t, 200, revoke(junk, s.as("app")).StatusCode, junk)
	}
	public := s.token(redemption(s.code("spa"), "client_id", "spa")).ok()
	require.Equal(t, 200, s.post("/revoke", params("token", public.text("refresh_token"), "client_id", "spa")).StatusCode)
	require.False(t, good(public.text("access_token")))
	s.post("/revoke", nil, s.as("app")).refused(400, "invalid_request")
	revoke("x", basicAuth("app", s.secrets["stranger"])).refused(401, "invalid_client")

	pair = grant()
	s.st.writes.Store(true)
	revoke(pair.text("access_token"), s.as("app")).refused(503, "temporarily_unavailable", "RFC 7009 §2.2.1")
	require.False(t, good(pair.text("access_token")), "it is in force here all the same")
	s.st.writes.Store(false)
	require.Equal(t, 200, revoke(pair.text("access_token"), s.as("app")).StatusCode)
}

// The issuer answers about all its tokens, and exchanges them, not only those for its own audience: a resource server asks
// about what was sent to it, and goes on with it to the next one.
func TestTokensForOtherServices(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.client("app", nil)
	s.client("stranger", nil)
	s.client(otherAPI, nil)
	tok := s.token(merge(own, "resource", otherAPI), s.as("app")).ok().text("access_token")
	for _, id := range []string{"app", otherAPI} {
		a := s.introspect(id, tok)
		require.Equal(t, true, a.body["active"], id)
		require.Equal(t, []any{otherAPI}, a.body["aud"])
	}
	require.Equal(t, inactive, string(s.introspect("stranger", tok).raw))
	swap := params("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange", "subject_token", tok, "subject_token_type", accessType)
	next := s.token(merge(swap, "resource", testAudience), s.as(otherAPI)).ok()
	require.Equal(t, testAudience, claims(t, next.text("access_token"))["aud"])
	same := s.token(swap, s.as("stranger")).ok()
	require.Equal(t, otherAPI, claims(t, same.text("access_token"))["aud"], "without one named the audience stays")
	for range 2 { // what was looked at for others is not kept for this process
		_, err := s.svc.Validate(t.Context(), apitoken.Bearer(tok))
		require.ErrorIs(t, err, apitoken.ErrInvalidToken, "and this process's API takes none of them")
	}
	require.Equal(t, 200, s.post("/revoke", params("token", tok), s.as("app")).StatusCode)
	require.Equal(t, inactive, string(s.introspect(otherAPI, tok).raw))
	s.token(swap, s.as(otherAPI)).refused(400, "invalid_request", "revoked")
	require.Equal(t, inactive, string(s.introspect("app", next.text("access_token")).raw), "and what came of it with it")
}
