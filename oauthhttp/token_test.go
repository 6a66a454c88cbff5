package oauthhttp_test

import (
	"context"
	"errors"
	"net/url"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/oauthhttp"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/boltstore"
)

const accessType = "urn:ietf:params:oauth:token-type:access_token"

func TestClientCredentials(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.client("app", nil)
	s.client("page", func(c *apitoken.Client) {
		c.GrantTypes, c.MayImpersonate = []string{"authorization_code"}, false
	})
	s.public("spa", nil)
	a := s.token(own, s.as("app")).ok()
	require.Equal(t, 200, a.StatusCode)
	require.Equal(t, "no-store", a.Header.Get("Cache-Control"), "RFC 6749 §5.1")
	require.Equal(t, "no-cache", a.Header.Get("Pragma"))
	require.Equal(t, "Bearer", a.text("token_type"))
	require.Equal(t, "orders:read orders:write", a.text("scope"), "without scope all that the client has")
	require.NotContains(t, a.body, "refresh_token", "RFC 6749 §4.4.3")
	c := claims(t, a.text("access_token"))
	require.Equal(t, "app", c["sub"])
	require.Equal(t, testAudience, c["aud"])
	require.EqualValues(t, 300, a.body["expires_in"])

	require.Equal(t, "orders:read", s.token(merge(own, "scope", "orders:read"), s.as("app")).ok().text("scope"))
	s.token(merge(own, "scope", "admin"), s.as("app")).refused(400, "invalid_scope")
	s.token(merge(own, "scope", "a  b"), s.as("app")).refused(400, "invalid_scope")
	s.token(merge(own, "scope", "a\"b"), s.as("app")).refused(400, "invalid_scope")
	s.token(own, s.as("page")).refused(400, "unauthorized_client")
	s.token(merge(own, "client_id", "spa")).refused(400, "unauthorized_client", "a public client has no tokens of its own")
	s.token(merge(own, "grant_type", "password"), s.as("app")).refused(400, "unsupported_grant_type")
	s.token(merge(own, "grant_type", "Client_Credentials"), s.as("app")).refused(400, "unsupported_grant_type")
	s.token(merge(own, "grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer"), s.as("app")).refused(400, "unsupported_grant_type", "no issuer is trusted")
}

func TestResourceIndicators(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.client("app", nil)
	s.client("narrow", func(c *apitoken.Client) { c.Audiences = []string{otherAPI} })
	a := s.token(merge(own, "resource", otherAPI), s.as("app")).ok()
	require.Equal(t, otherAPI, claims(t, a.text("access_token"))["aud"])
	two := merge(own)
	two["resource"] = []string{testAudience, otherAPI}
	require.Equal(t, []any{testAudience, otherAPI}, claims(t, s.token(two, s.as("app")).ok().text("access_token"))["aud"])
	for _, bad := range []string{"https://unknown.example.com", "reports", "https://reports.example.com#x", "//reports.example.com"} {
		s.token(merge(own, "resource", bad), s.as("app")).refused(400, "invalid_target", bad)
	}
	s.token(merge(own, "resource", testAudience), s.as("narrow")).refused(400, "invalid_target", "not this client's")

	both := authorization("app")
	both["resource"] = []string{testAudience, otherAPI}
	code := func() string {
		return s.get("/authorize?" + both.Encode()).redirected(callback).Get("code")
	}
	pair := s.token(redemption(code(), "resource", otherAPI), s.as("app")).ok()
	require.Equal(t, otherAPI, claims(t, pair.text("access_token"))["aud"], "RFC 8707 §2.2")
	again := params("grant_type", "refresh_token", "refresh_token", pair.text("refresh_token"))
	require.Equal(t, testAudience, claims(t, s.token(merge(again, "resource", testAudience), s.as("app")).ok().text("access_token"))["aud"])
	require.Equal(t, []any{testAudience, otherAPI}, claims(t, s.token(again, s.as("app")).ok().text("access_token"))["aud"])
	s.token(merge(again, "resource", "https://unknown.example.com"), s.as("app")).refused(400, "invalid_target")
	one := s.token(redemption(s.code("app")), s.as("app")).ok()
	s.token(params("grant_type", "refresh_token", "refresh_token", one.text("refresh_token"), "resource", otherAPI), s.as("app")).refused(400, "invalid_target", "more than was granted")
	q := s.get("/authorize?" + authorization("app", "resource", "https://unknown.example.com").Encode()).redirected(callback)
	require.Equal(t, "invalid_target", q.Get("error"), "told before the user is asked")
}

func TestRefreshTokens(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(c *apitoken.Config, _ *oauthhttp.Options) { c.Refresh.Grace = -1 })
	s.public("spa", nil)
	s.public("other", nil)
	s.client("app", nil)
	pair := s.token(redemption(s.code("spa"), "client_id", "spa")).ok()
	again := params("grant_type", "refresh_token", "client_id", "spa", "refresh_token", pair.text("refresh_token"))
	for name, a := range map[string]*answer{
		"junk":             s.token(merge(again, "refresh_token", "junk")),
		"an access token":  s.token(merge(again, "refresh_token", pair.text("access_token"))),
		"another client's": s.token(merge(again, "client_id", "other")),
	} {
		a.refused(400, "invalid_grant", name)
	}
	s.token(merge(again, "refresh_token", "")).refused(400, "invalid_request")
	s.token(merge(again, "client_id", "")).refused(401, "invalid_client")
	s.token(merge(again, "scope", "admin")).refused(400, "invalid_scope")
	s.token(merge(again, "scope", "orders:write")).refused(400, "invalid_scope", "more than was granted (RFC 6749 §6)")
	s.token(merge(again, "authorization_details", `[{"type":"x"}]`)).refused(400, "invalid_authorization_details")
	next := s.token(again).ok()
	require.NotEqual(t, pair.text("refresh_token"), next.text("refresh_token"), "a public client's rotate")
	s.token(again).refused(400, "invalid_grant", "used again")
	s.token(merge(again, "refresh_token", next.text("refresh_token"))).refused(400, "invalid_grant", "which ends the grant")
	require.Equal(t, false, s.introspect("app", next.text("access_token")).body["active"])

	pair = s.token(redemption(s.code("app")), s.as("app")).ok()
	s.token(merge(again, "refresh_token", pair.text("refresh_token"))).refused(400, "invalid_grant", "a confidential client's in a public client's hands")
	s.token(params("grant_type", "refresh_token", "refresh_token", pair.text("refresh_token")), s.as("app")).ok("a stranger ends nobody's grant")
	_, err := s.svc.Clients.Update(t.Context(), "spa", func(c *apitoken.Client) error {
		c.GrantTypes = []string{"authorization_code"}
		return nil
	})
	require.NoError(t, err)
	s.token(again).refused(400, "unauthorized_client")
}

func (s *site) introspect(client, token string) *answer {
	s.t.Helper()
	return s.post("/introspect", params("token", token), s.as(client)).ok()
}

func TestOneRefreshTokenOneSuccessor(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.public("spa", nil)
	sites := []*site{s, s.second(nil)}
	pair := s.token(redemption(s.code("spa"), "client_id", "spa")).ok()
	again := params("grant_type", "refresh_token", "client_id", "spa", "refresh_token", pair.text("refresh_token"))
	tokens := make(chan string, 64)
	race(func(i int) bool {
		a := sites[i%2].token(again)
		if a.StatusCode == 200 {
			tokens <- a.text("refresh_token")
		} else {
			a.refused(503, "temporarily_unavailable", "racers get the same answer, or are told to come again")
		}
		return a.StatusCode == 200
	})
	close(tokens)
	first := ""
	n := 0
	for tok := range tokens {
		n++
		if first == "" {
			first = tok
		}
		require.Equal(t, first, tok, "one successor, whoever races")
	}
	require.Positive(t, n)
}

func TestCodes(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.client("app", nil)
	s.client("other", nil)
	s.public("spa", nil)
	code := s.code("app")
	hosts, err := s.svc.Prepare(t.Context(), apitoken.Request{Subject: "alice", Client: "app"}, apitoken.Ticket{Lifetime: time.Minute, Client: "app"})
	require.NoError(t, err)
	for name, a := range map[string]*answer{
		"another verifier":     s.token(redemption(code, "code_verifier", "another-"+verifier), s.as("app")),
		"a short verifier":     s.token(redemption(code, "code_verifier", "x"), s.as("app")),
		"no verifier":          s.token(redemption(code, "code_verifier", ""), s.as("app")), // RFC 7636 §4.6
		"a code of the host's": s.token(params("grant_type", "authorization_code", "code", hosts.Reveal()), s.as("app")),
		"another redirect URI": s.token(redemption(code, "redirect_uri", callback+"2"), s.as("app")),
		"no redirect URI":      s.token(redemption(code, "redirect_uri", ""), s.as("app")),
		"another client":       s.token(redemption(code), s.as("other")),
		"a public client":      s.token(redemption(code, "client_id", "spa")),
		"an unknown code":      s.token(redemption("unknown"), s.as("app")),
	} {
		a.refused(400, "invalid_grant", name)
	}
	s.token(redemption(code, "code", ""), s.as("app")).refused(400, "invalid_request")
	s.token(redemption(code), basicAuth("app", "wrong")).refused(401, "invalid_client")
	pair := s.token(redemption(code), s.as("app")).ok("none of this spent the code")
	require.Equal(t, "orders:read", pair.text("scope"))
	require.NotEmpty(t, pair.text("refresh_token"))
	require.Equal(t, "alice", claims(t, pair.text("access_token"))["sub"])
	require.Equal(t, true, s.introspect("app", pair.text("access_token")).body["active"])
	s.token(redemption(code), s.as("app")).refused(400, "invalid_grant", "used again")
	require.Equal(t, false, s.introspect("app", pair.text("access_token")).body["active"], "what the first use got is revoked (RFC 6749 §4.1.2)")
	s.token(params("grant_type", "refresh_token", "refresh_token", pair.text("refresh_token")), s.as("app")).refused(400, "invalid_grant")

	late := s.code("app")
	s.at.Advance(2 * time.Minute)
	s.token(redemption(late), s.as("app")).refused(400, "invalid_grant", "expired")

	s.client("short", func(c *apitoken.Client) {
		c.GrantTypes, c.MayImpersonate = []string{"authorization_code"}, false
	})
	require.NotContains(t, s.token(redemption(s.code("short")), s.as("short")).ok().body, "refresh_token", "a client without that grant type")
}

func TestOneCodeWins(t *testing.T) {
	t.Parallel()
	for _, processes := range []int{1, 2} {
		st, err := boltstore.Open(filepath.Join(t.TempDir(), "tokens.db"), nil)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, st.Close()) })
		on := func(c *apitoken.Config, _ *oauthhttp.Options) { c.Store, c.Now = st, nil }
		s := newSite(t, on)
		s.public("spa", nil)
		sites := []*site{s, s}
		if processes == 2 {
			sites[1] = s.second(on)
		}
		code := s.code("spa")
		tokens := make(chan string, 64)
		won := race(func(i int) bool {
			a := sites[i%2].token(redemption(code, "client_id", "spa"))
			if a.StatusCode != 200 {
				require.Contains(t, []int{400, 503}, a.StatusCode)
				return false
			}
			tokens <- a.text("access_token")
			return true
		})
		if processes == 1 {
			require.Equal(t, 1, won, "one of 64 wins")
		}
		require.LessOrEqual(t, won, 1)
		close(tokens)
		for _, x := range sites {
			require.NoError(t, x.svc.Sync(t.Context()))
		}
		for tok := range tokens {
			_, err := s.svc.Validate(t.Context(), apitoken.Bearer(tok))
			require.ErrorIs(t, err, apitoken.ErrRevoked, "63 other uses are 63 reasons to end it")
		}
	}
}

func TestTokenExchange(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s := newSite(t, nil)
	s.client("app", nil)
	s.client("careful", func(c *apitoken.Client) { c.MayImpersonate = false })
	s.client("plain", func(c *apitoken.Client) {
		c.GrantTypes, c.MayImpersonate = []string{"client_credentials"}, false
	})
	user, err := s.svc.Issue(ctx, apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"orders:read", "orders:write"}})
	require.NoError(t, err)
	service := s.token(own, s.as("plain")).ok().text("access_token")
	swap := params("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange", "subject_token", user.Access.Reveal(), "subject_token_type", accessType)

	a := s.token(merge(swap, "scope", "orders:read", "audience", otherAPI), s.as("app")).ok()
	require.Equal(t, accessType, a.text("issued_token_type"), "RFC 8693 §2.2.1")
	require.Equal(t, "orders:read", a.text("scope"))
	c := claims(t, a.text("access_token"))
	require.Equal(t, "alice", c["sub"])
	require.Equal(t, otherAPI, c["aud"])
	require.Equal(t, "app", c["client_id"])
	require.LessOrEqual(t, c["exp"], claims(t, user.Access.Reveal())["exp"], "never longer than what it came from")

	d := s.token(merge(swap, "actor_token", service, "actor_token_type", accessType, "requested_token_type", "urn:ietf:params:oauth:token-type:jwt"), s.as("careful")).ok()
	require.Equal(t, "urn:ietf:params:oauth:token-type:jwt", d.text("issued_token_type"))
	require.Equal(t, map[string]any{"sub": "plain"}, claims(t, d.text("access_token"))["act"])
	x := s.introspect("careful", d.text("access_token"))
	require.Equal(t, map[string]any{"sub": "plain"}, x.body["act"])

	s.token(swap, s.as("careful")).refused(400, "unauthorized_client", "impersonation is not for everybody")
	s.token(swap, s.as("plain")).refused(400, "unauthorized_client")
	s.token(merge(swap, "scope", "admin"), s.as("app")).refused(400, "invalid_scope", "never wider")
	s.token(merge(swap, "audience", "https://unknown.example.com"), s.as("app")).refused(400, "invalid_target", "RFC 8693 §2.2.2")
	s.token(merge(swap, "resource", "not-absolute"), s.as("app")).refused(400, "invalid_target")
	s.token(merge(swap, "authorization_details", `[{"type":"x"}]`), s.as("app")).refused(400, "invalid_authorization_details")
	for name, v := range map[string]url.Values{
		"no subject_token":             merge(swap, "subject_token", ""),
		"no type":                      merge(swap, "subject_token_type", ""),
		"a bad subject_token":          merge(swap, "subject_token", "x.y.z"),
		"a bad actor_token":            merge(swap, "actor_token", "x.y.z", "actor_token_type", accessType),
		"an actor without type":        merge(swap, "actor_token", service),
		"a type without actor":         merge(swap, "actor_token_type", accessType),
		"an unknown type":              merge(swap, "subject_token_type", "urn:ietf:params:oauth:token-type:saml2"),
		"an unknown actor type":        merge(swap, "actor_token", service, "actor_token_type", "x"),
		"a refresh token is not asked": merge(swap, "requested_token_type", "urn:ietf:params:oauth:token-type:refresh_token"),
	} {
		s.token(v, s.as("app")).refused(400, "invalid_request", name)
	}
	_, key, err := s.svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "bob", Scopes: apitoken.Scopes{"orders:read"}})
	require.NoError(t, err)
	require.Equal(t, "bob", claims(t, s.token(merge(swap, "subject_token", key.Reveal()), s.as("app")).ok().text("access_token"))["sub"], "an API key is traded for a short-lived token")
	s.token(merge(swap, "subject_token", key.Reveal(), "subject_token_type", "urn:ietf:params:oauth:token-type:jwt"), s.as("app")).refused(400, "invalid_request", "and is no JWT")
	both := merge(swap, "audience", otherAPI)
	both["resource"] = []string{otherAPI}
	s.token(both, s.as("app")).ok("both may name the same service")

	require.NoError(t, s.svc.Revoke(ctx, apitoken.ByToken(user.Token.ID()), "test"))
	require.Equal(t, false, s.introspect("app", a.text("access_token")).body["active"], "ending the first ends the second")
	s.token(swap, s.as("app")).refused(400, "invalid_request", "a revoked subject_token")
}

func TestDPoP(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.client("app", nil)
	s.client("bound", func(c *apitoken.Client) { c.BindDPoP = true })
	s.public("spa", nil)
	k, other := newSigner(t), newSigner(t)
	a := s.token(own, s.as("app"), s.dpop(k, nil)).ok()
	require.Equal(t, "DPoP", a.text("token_type"), "RFC 9449 §5")
	require.Equal(t, map[string]any{"jkt": k.print}, claims(t, a.text("access_token"))["cnf"])
	x := s.introspect("app", a.text("access_token"))
	require.Equal(t, "DPoP", x.text("token_type"))
	require.Equal(t, map[string]any{"jkt": k.print}, x.body["cnf"])

	one := k.proof("POST", testIssuer+"/token", s.at.Now(), nil)
	s.token(own, s.as("app"), header("DPoP", one)).ok()
	for name, o := range map[string][]option{
		"seen before":     {header("DPoP", one)},
		"another method":  {header("DPoP", k.proof("GET", testIssuer+"/token", s.at.Now(), nil))},
		"another URL":     {header("DPoP", k.proof("POST", testIssuer+"/par", s.at.Now(), nil))},
		"too old":         {header("DPoP", k.proof("POST", testIssuer+"/token", s.at.Now().Add(-time.Hour), nil))},
		"junk":            {header("DPoP", "junk")},
		"empty":           {header("DPoP", "")},
		"two headers":     {s.dpop(k, nil), s.dpop(k, nil)},
		"two in a header": {header("DPoP", k.proof("POST", testIssuer+"/token", s.at.Now(), nil)+","+k.proof("POST", testIssuer+"/token", s.at.Now(), nil))},
		"another kind":    {header("DPoP", k.sign(map[string]any{"typ": "jwt", "jwk": k.jwk}, map[string]any{"jti": "1", "htm": "POST", "htu": testIssuer + "/token", "iat": time.Now().Unix()}))},
		"another's key":   {header("DPoP", k.sign(map[string]any{"typ": "dpop+jwt", "jwk": other.jwk}, map[string]any{"jti": "1", "htm": "POST", "htu": testIssuer + "/token", "iat": time.Now().Unix()}))},
	} {
		s.token(own, append(o, s.as("app"))...).refused(400, "invalid_dpop_proof", name)
	}
	s.token(own, s.as("bound")).refused(400, "invalid_dpop_proof", "this client must (RFC 9449 §5.2)")
	s.token(own, s.as("bound"), s.dpop(k, nil)).ok()

	// A public client's refresh token is bound, a confidential one's may move to another key of its own.
	pair := s.token(redemption(s.code("spa"), "client_id", "spa"), s.dpop(k, nil)).ok()
	again := params("grant_type", "refresh_token", "client_id", "spa", "refresh_token", pair.text("refresh_token"))
	s.token(again).refused(400, "invalid_grant", "without proof")
	s.token(again, s.dpop(other, nil)).refused(400, "invalid_grant", "another key")
	next := s.token(again, s.dpop(k, nil)).ok()
	require.Equal(t, map[string]any{"jkt": k.print}, claims(t, next.text("access_token"))["cnf"])
	pair = s.token(redemption(s.code("app")), s.as("app"), s.dpop(k, nil)).ok()
	next = s.token(params("grant_type", "refresh_token", "refresh_token", pair.text("refresh_token")), s.as("app"), s.dpop(other, nil)).ok()
	require.Equal(t, map[string]any{"jkt": other.print}, claims(t, next.text("access_token"))["cnf"])

	// dpop_jkt binds the code (RFC 9449 §10).
	code := s.code("app", "dpop_jkt", k.print)
	s.token(redemption(code), s.as("app")).refused(400, "invalid_grant")
	s.token(redemption(code), s.as("app"), s.dpop(other, nil)).refused(400, "invalid_grant")
	s.token(redemption(code), s.as("app"), s.dpop(k, nil)).ok()
	q := s.get("/authorize?" + authorization("app", "dpop_jkt", "short").Encode()).redirected(callback)
	require.Equal(t, "invalid_request", q.Get("error"))

	// Exchange takes the proof of the request for tokens that are bound to its key, and drops no binding.
	swap := params("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange", "subject_token", a.text("access_token"), "subject_token_type", accessType)
	s.token(swap, s.as("app")).refused(400, "invalid_request", "a bound token without its proof")
	s.token(swap, s.as("app"), s.dpop(other, nil)).refused(400, "invalid_request", "and with another's")
	b := s.token(swap, s.as("app"), s.dpop(k, nil)).ok()
	require.Equal(t, map[string]any{"jkt": k.print}, claims(t, b.text("access_token"))["cnf"])
}

func TestDPoPNonces(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(_ *apitoken.Config, o *oauthhttp.Options) { o.RequireNonce = true })
	s.client("app", nil)
	k := newSigner(t)
	a := s.token(own, s.as("app"), s.dpop(k, nil)).refused(400, "use_dpop_nonce", "RFC 9449 §8")
	nonce := a.Header.Get("DPoP-Nonce")
	require.NotEmpty(t, nonce)
	a = s.token(own, s.as("app"), s.dpop(k, map[string]any{"nonce": nonce})).ok()
	require.NotEmpty(t, a.Header.Get("DPoP-Nonce"), "the next one (§8.2)")
	s.token(own, s.as("app"), s.dpop(k, map[string]any{"nonce": "made-up"})).refused(400, "use_dpop_nonce")
	other := s.second(func(_ *apitoken.Config, o *oauthhttp.Options) { o.RequireNonce = true })
	other.token(own, s.as("app"), s.dpop(k, map[string]any{"nonce": nonce})).ok("good in every process on the store")
	s.at.Advance(10 * time.Minute)
	a = s.token(own, s.as("app"), s.dpop(k, map[string]any{"nonce": nonce})).refused(400, "use_dpop_nonce", "too old")
	require.NotEqual(t, nonce, a.Header.Get("DPoP-Nonce"))
	s.token(own, s.as("app")).ok("a request without a proof needs no nonce")
}

func TestOneProofWins(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.client("app", nil)
	sites := []*site{s, s.second(nil)}
	proof := s.dpop(newSigner(t), nil)
	require.Equal(t, 1, race(func(i int) bool { return sites[i%2].token(own, s.as("app"), proof).StatusCode == 200 }))
}

func TestAuthorizationDetails(t *testing.T) {
	t.Parallel()
	down := false
	s := newSite(t, func(_ *apitoken.Config, o *oauthhttp.Options) {
		o.Details = &oauthhttp.Details{Types: []string{"payment"}, Check: func(_ context.Context, c apitoken.Client, asked []oauthhttp.Detail) ([]oauthhttp.Detail, error) {
			if down {
				return nil, apitoken.ErrUnavailable
			}
			for _, d := range asked {
				if string(d.JSON) == `{"type":"payment","amount":"1000000"}` {
					return nil, errors.New("too much")
				}
			}
			return asked, nil
		}}
	})
	s.client("app", nil)
	const good = `[{"type":"payment","amount":"10"}]`
	want := []any{map[string]any{"type": "payment", "amount": "10"}}
	a := s.token(merge(own, "authorization_details", good), s.as("app")).ok()
	require.Equal(t, want, a.body["authorization_details"], "RFC 9396 §7")
	require.Equal(t, want, claims(t, a.text("access_token"))["authorization_details"], "§9.1")
	require.Equal(t, want, s.introspect("app", a.text("access_token")).body["authorization_details"], "§9.2")
	for _, bad := range []string{`x`, `{}`, `[]`, `[1]`, `[{}]`, `[{"type":"other"}]`, `[{"type":"payment","type":"other"}]`, `[{"type":"payment","amount":"1000000"}]`, `[{"type":""}]`} {
		s.token(merge(own, "authorization_details", bad), s.as("app")).refused(400, "invalid_authorization_details", bad)
		q := s.get("/authorize?" + authorization("app", "authorization_details", bad).Encode()).redirected(callback)
		require.Equal(t, "invalid_authorization_details", q.Get("error"), bad)
		s.post("/par", authorization("app", "authorization_details", bad), s.as("app")).refused(400, "invalid_authorization_details", bad)
	}
	pair := s.token(redemption(s.code("app", "authorization_details", good)), s.as("app")).ok()
	require.Equal(t, want, pair.body["authorization_details"])
	next := s.token(params("grant_type", "refresh_token", "refresh_token", pair.text("refresh_token")), s.as("app")).ok()
	require.Equal(t, want, next.body["authorization_details"], "a refresh goes on with them")
	down = true
	s.token(merge(own, "authorization_details", good), s.as("app")).refused(503, "temporarily_unavailable")
	none := newSite(t, nil)
	none.client("app", nil)
	none.token(merge(own, "authorization_details", good), none.as("app")).refused(400, "invalid_authorization_details", "nobody checks them")
}

// A proof that was taken stays in the store for more than an hour. Anybody can name a public client and make a key, so
// nothing is written before the rest of the request is known to be genuine.
func TestAProofBesideJunkWritesNothing(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.public("spa", nil)
	k := newSigner(t)
	pair := s.token(redemption(s.code("spa"), "client_id", "spa"), s.dpop(k, nil)).ok()
	code := s.code("spa")
	forged := func(text string, kind opaque.Kind) string {
		if kind == opaque.Refresh {
			x, err := opaque.DecodeRefresh(text, "at")
			require.NoError(t, err)
			x.Tag[0] ^= 1
			return opaque.EncodeRefresh("at", x)
		}
		x, err := opaque.DecodeKey(text, "at", kind)
		require.NoError(t, err)
		x.Tag[0] ^= 1
		return opaque.EncodeKey("at", kind, x)
	}
	proofs := func() int {
		page, err := s.st.List(t.Context(), store.Query{Kind: "once", Limit: 100})
		require.NoError(t, err)
		return len(page.Records)
	}
	before := proofs()
	for name, form := range map[string]url.Values{
		"refresh token":        params("grant_type", "refresh_token", "client_id", "spa", "refresh_token", "junk"),
		"forged refresh token": params("grant_type", "refresh_token", "client_id", "spa", "refresh_token", forged(pair.text("refresh_token"), opaque.Refresh)),
		"code":                 redemption("junk", "client_id", "spa"),
		"forged code":          redemption(forged(code, opaque.Ticket), "client_id", "spa"),
		"device code":          params("grant_type", "urn:ietf:params:oauth:grant-type:device_code", "client_id", "spa", "device_code", "junk"),
	} {
		s.token(form, s.dpop(k, nil)).refused(400, "invalid_grant", name)
	}
	require.Equal(t, before, proofs())
	s.token(redemption(code, "client_id", "spa"), s.dpop(k, nil)).ok()
}
