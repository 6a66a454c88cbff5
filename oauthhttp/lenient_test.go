package oauthhttp_test

import (
	"net/http"
	"net/url"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/oauthhttp"
)

// Where the RFCs let a server give less than was asked for, it does and says so: the clients that ask for more do so by habit.

func TestARegistrationIsNarrowed(t *testing.T) {
	t.Parallel()
	s, initial := registrar(t, nil)
	for name, c := range map[string]struct {
		ask    metadata
		grants []any
		scope  string
	}{
		"an unknown grant type": {metadata{"grant_types": []string{"authorization_code", "implicit", "refresh_token", "urn:ietf:params:oauth:grant-type:device_code"}}, []any{"authorization_code", "refresh_token"}, "orders:read orders:write"},
		"one named twice":       {metadata{"grant_types": []string{"authorization_code", "authorization_code"}}, []any{"authorization_code"}, "orders:read orders:write"},
		"a scope too many":      {metadata{"scope": "orders:read offline_access"}, []any{"authorization_code"}, "orders:read"},
		"a scope too wide":      {metadata{"scope": "orders"}, []any{"authorization_code"}, s.wide("orders")},
		"a response type":       {metadata{"response_types": []string{"code", "token"}}, []any{"authorization_code"}, "orders:read orders:write"},
		"no scope":              {metadata{"scope": ""}, []any{"authorization_code"}, ""},
	} {
		c.ask["redirect_uris"], c.ask["token_endpoint_auth_method"] = []string{callback}, "none"
		a := s.register(c.ask, bearer(initial))
		if name == "a scope too wide" && c.scope == "" { // no scope covers by its beginning alone
			a.refused(400, "invalid_client_metadata", name)
			continue
		}
		require.Equal(t, 201, a.StatusCode, "%s: %s", name, a.raw)
		require.Equal(t, c.grants, a.body["grant_types"], name)
		require.Equal(t, c.scope, a.text("scope"), name)
		require.Equal(t, []any{"code"}, a.body["response_types"], name)
		stored, err := s.svc.Clients.Get(t.Context(), a.text("client_id"))
		require.NoError(t, err)
		require.Equal(t, c.scope, stored.Scopes.String(), "%s: the answer tells what is stored", name)
		require.Len(t, stored.GrantTypes, len(c.grants), name)
	}
	for name, ask := range map[string]metadata{
		"no grant type left":    {"grant_types": []string{"implicit", "password"}},
		"no grant type":         {"grant_types": []string{}},
		"no scope left":         {"scope": "offline_access"},
		"no response type left": {"response_types": []string{"token"}},
		"a malformed scope":     {"scope": "orders:read a::b"},
	} {
		ask["redirect_uris"] = []string{callback}
		s.register(ask, bearer(initial)).refused(400, "invalid_client_metadata", name)
	}

	// What only clients that prove who they are may have is left out for a public one.
	s, initial = registrar(t, func(r *oauthhttp.Registration) {
		r.GrantTypes = []string{"authorization_code", "client_credentials", "urn:ietf:params:oauth:grant-type:token-exchange"}
	})
	all := []string{"client_credentials", "authorization_code", "urn:ietf:params:oauth:grant-type:token-exchange"}
	a := s.register(metadata{"redirect_uris": []string{callback}, "grant_types": all, "token_endpoint_auth_method": "none"}, bearer(initial))
	require.Equal(t, 201, a.StatusCode, string(a.raw))
	require.Equal(t, []any{"authorization_code"}, a.body["grant_types"])
	a = s.register(metadata{"redirect_uris": []string{callback}, "grant_types": all}, bearer(initial))
	require.Equal(t, 201, a.StatusCode, string(a.raw))
	require.Len(t, a.body["grant_types"], 3)
}

// wide is what a scope covers of the two that clients register with here.
func (s *site) wide(scope apitoken.Scope) string {
	var out apitoken.Scopes
	for _, x := range []apitoken.Scope{"orders:read", "orders:write"} {
		if scope.Covers(x) {
			out = append(out, x)
		}
	}
	return out.String()
}

// Every answer about a client holds the token that manages it, which is REQUIRED (RFC 7592 §3).
func TestARegistrationTokenIsInEveryAnswer(t *testing.T) {
	t.Parallel()
	s, initial := registrar(t, nil)
	a := s.register(metadata{"redirect_uris": []string{callback}}, bearer(initial))
	id, token := a.text("client_id"), a.text("registration_access_token")
	require.NotEmpty(t, token)
	at := "/register/" + url.PathEscape(id)
	require.Equal(t, token, s.get(at, bearer(token)).ok().text("registration_access_token"))
	changed := s.do(jsonRequest(t, "PUT", at, metadata{"client_id": id, "redirect_uris": []string{callback + "2"}}), bearer(token)).ok()
	require.Equal(t, token, changed.text("registration_access_token"))
	require.Equal(t, testIssuer+at, changed.text("registration_client_uri"))
	s.get(at, bearer(token)).ok("and it is good")
}

// Scopes that the server does not know, or the client may not have, are left out of what a user is asked, and the token says
// which were given (RFC 6749 §3.3).
func TestUnknownScopesAreLeftOut(t *testing.T) {
	t.Parallel()
	var seen apitoken.Scopes
	var s *site
	s = newSite(t, func(c *apitoken.Config, o *oauthhttp.Options) {
		c.Scopes = map[apitoken.Scope]string{"orders:read": "", "orders:write": "", "orders": "", "reports": "", "profile": ""}
		o.Consent = oauthhttp.ConsentFunc(func(w http.ResponseWriter, r *http.Request, a *oauthhttp.Authorization) {
			seen = a.Scopes
			s.h.Approve(w, r, a, oauthhttp.Approval{Subject: "alice", Scopes: oauthhttp.Only(a.Scopes...)})
		})
	})
	s.client("app", nil)
	for asked, want := range map[string]string{
		"orders:read openid":                     "orders:read",
		"orders:read profile offline_access":     "orders:read",
		"orders:read orders:write":               "orders:read orders:write",
		"openid orders:write orders:read:deeper": "orders:write",
	} {
		a := s.token(redemption(s.code("app", "scope", asked)), s.as("app")).ok(asked)
		require.Equal(t, want, a.text("scope"), asked)
		require.Equal(t, want, seen.String(), asked)

		pushed := s.post("/par", authorization("app", "scope", asked), s.as("app"))
		require.Equal(t, 201, pushed.StatusCode, "%s: %s", asked, pushed.raw)
		device := s.post("/device_authorization", params("scope", asked), s.as("app")).ok(asked)
		waiting, err := s.h.Device(t.Context(), device.text("user_code"))
		require.NoError(t, err)
		require.Equal(t, want, waiting.Scopes.String(), asked)
	}
	for _, none := range []string{"openid", "profile", "openid offline_access"} {
		require.Equal(t, "invalid_scope", s.get("/authorize?"+authorization("app", "scope", none).Encode()).redirected(callback).Get("error"), none)
		s.post("/par", authorization("app", "scope", none), s.as("app")).refused(400, "invalid_scope", none)
		s.post("/device_authorization", params("scope", none), s.as("app")).refused(400, "invalid_scope", none)
	}
	// Where no user is asked, a client that asks for too much has a mistake to find.
	s.token(merge(own, "scope", "orders:read openid"), s.as("app")).refused(400, "invalid_scope")
}

// Some libraries send the ID of a public client by Basic with an empty password.
func TestAPublicClientByBasic(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.public("spa", nil)
	s.client("app", nil)
	s.token(redemption(s.code("spa")), basicAuth("spa", "")).ok()
	s.token(redemption(s.code("spa"), "client_id", "spa"), basicAuth("spa", "")).ok()
	s.token(redemption(s.code("spa"), "client_id", "other"), basicAuth("spa", "")).refused(400, "invalid_request")
	s.token(redemption(s.code("spa"), "client_secret", "x"), basicAuth("spa", "")).refused(400, "invalid_request")
	s.token(redemption(s.code("spa")), basicAuth("spa", "x")).refused(401, "invalid_client")
	s.token(redemption(s.code("app")), basicAuth("app", "")).refused(401, "invalid_client", "a confidential client proves who it is")
	s.token(redemption(s.code("spa")), basicAuth("", "")).refused(401, "invalid_client")
}

// A URL of scheme and host is one resource with and without the slash (RFC 3986 §6.2.3); tokens name it as it is configured.
func TestAResourceWithAndWithoutASlash(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(c *apitoken.Config, _ *oauthhttp.Options) {
		c.Audiences = []string{otherAPI + "/", "https://h.example.com/api"}
	})
	s.client("app", nil)
	for asked, want := range map[string]string{
		testAudience: testAudience, testAudience + "/": testAudience, otherAPI: otherAPI + "/", otherAPI + "/": otherAPI + "/", "https://h.example.com/api": "https://h.example.com/api",
	} {
		a := s.token(merge(own, "resource", asked), s.as("app")).ok(asked)
		require.Equal(t, want, claims(t, a.text("access_token"))["aud"], asked)
		pair := s.token(redemption(s.code("app", "resource", asked), "resource", asked), s.as("app")).ok(asked)
		require.Equal(t, want, claims(t, pair.text("access_token"))["aud"], asked)
		again := s.token(params("grant_type", "refresh_token", "refresh_token", pair.text("refresh_token"), "resource", asked), s.as("app")).ok(asked)
		require.Equal(t, want, claims(t, again.text("access_token"))["aud"], asked)
		swap := params("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange", "subject_token", a.text("access_token"), "subject_token_type", "urn:ietf:params:oauth:token-type:access_token", "resource", asked)
		require.Equal(t, want, claims(t, s.token(swap, s.as("app")).ok(asked).text("access_token"))["aud"], asked)
	}
	both := merge(own)
	both["resource"] = []string{otherAPI, otherAPI + "/"}
	require.Equal(t, otherAPI+"/", claims(t, s.token(both, s.as("app")).ok().text("access_token"))["aud"])
	for _, other := range []string{"https://h.example.com/api/", "https://h.example.com", otherAPI + "//", otherAPI + "/?", otherAPI + "/x", "http://reports.example.com/", "https://API.example.com"} {
		s.token(merge(own, "resource", other), s.as("app")).refused(400, "invalid_target", other)
	}
}

// A library for service accounts presents an assertion and nothing else (RFC 7521 §4.1): it gets what the client allows that the
// issuer's configuration names for it.
func TestAnAssertionWithoutAClient(t *testing.T) {
	t.Parallel()
	s, keys := trusting(t, func(a *oauthhttp.AssertionIssuer) { a.Client = "accounts" })
	k := keys.key.Load()
	ask := func(pairs ...string) *answer {
		return s.token(merge(params("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion", s.vouch(k, nil, nil)), pairs...))
	}
	ask().refused(401, "invalid_client", "the client is not there yet")
	s.client("accounts", func(c *apitoken.Client) {
		c.GrantTypes, c.RedirectURIs, c.MayImpersonate = []string{"urn:ietf:params:oauth:grant-type:jwt-bearer"}, nil, false
	})
	a := ask().ok()
	c := claims(t, a.text("access_token"))
	require.Equal(t, "login|alice", c["sub"])
	require.Equal(t, "accounts", c["client_id"])
	require.Equal(t, "orders:read", a.text("scope"))
	one := s.vouch(k, nil, nil)
	s.token(params("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion", one)).ok()
	s.token(params("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion", one)).refused(400, "invalid_grant", "once")
	ask("scope", "orders:write").refused(400, "invalid_scope", "more than its identities may have")

	// Whoever names a client is that client, or nobody.
	ask("client_id", "accounts").refused(401, "invalid_client")
	ask("client_id", "app").refused(401, "invalid_client")
	s.token(params("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion", s.vouch(k, nil, nil)), basicAuth("accounts", "")).refused(401, "invalid_client")
	require.Equal(t, "app", claims(t, s.token(params("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion", s.vouch(k, nil, nil)), s.as("app")).ok().text("access_token"))["client_id"])

	// Without a good assertion nothing is looked up, and other grants are for clients.
	for name, bad := range map[string]string{
		"junk": "x", "another issuer": s.vouch(k, nil, map[string]any{"iss": "https://evil.example"}), "another key": s.vouch(newSigner(t), nil, nil), "expired": s.vouch(k, nil, map[string]any{"exp": 1}),
	} {
		s.token(params("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion", bad)).refused(400, "invalid_grant", name)
	}
	s.token(params("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer")).refused(401, "invalid_client")
	s.token(own).refused(401, "invalid_client")
	s.token(params("grant_type", "refresh_token", "refresh_token", "x", "assertion", s.vouch(k, nil, nil))).refused(401, "invalid_client")

	_, err := s.svc.Clients.Update(t.Context(), "accounts", func(c *apitoken.Client) error { c.Disabled = true; return nil })
	require.NoError(t, err)
	ask().refused(400, "unauthorized_client", "disabled")

	s, keys = trusting(t, nil)
	k = keys.key.Load()
	ask().refused(401, "invalid_client", "where the issuer names no client, every client authenticates")
}
