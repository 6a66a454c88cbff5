package oauthhttp_test

import (
	"context"
	"maps"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/oauthhttp"
	"github.com/apitoken-go/apitoken/store/memstore"
)

// The host says where the metadata are and what they tell; the issuer's name stays.
func TestTheHostDecidesWhatIsAnnounced(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(_ *apitoken.Config, o *oauthhttp.Options) {
		o.OpenIDConfiguration = true
		o.Metadata = func(m map[string]any) {
			m["token_endpoint"] = "https://gateway.example.com/token"
			m["grant_types_supported"] = []string{"authorization_code"}
			m["op_policy_uri"] = "https://auth.example.com/policy"
			delete(m, "device_authorization_endpoint")
		}
	})
	m := s.get("/.well-known/oauth-authorization-server").ok().body
	require.Equal(t, testIssuer, m["issuer"])
	require.Equal(t, "https://gateway.example.com/token", m["token_endpoint"], "renamed")
	require.Equal(t, []string{"authorization_code"}, listed(t, m, "grant_types_supported"), "narrowed")
	require.Equal(t, "https://auth.example.com/policy", m["op_policy_uri"], "extended")
	require.NotContains(t, m, "device_authorization_endpoint")
	require.Equal(t, m, s.get("/.well-known/openid-configuration").ok().body, "the same at the other place")
	require.Equal(t, 404, newSite(t, nil).get("/.well-known/openid-configuration").StatusCode, "by the host's choice alone")

	svc, err := apitoken.New(apitoken.Config{Issuer: testIssuer + "/tenant", Audience: testAudience, Store: memstore.New(), InsecureKeysInStore: true})
	require.NoError(t, err)
	t.Cleanup(func() { _ = svc.Close() })
	h, err := oauthhttp.New(svc, &oauthhttp.Options{OpenIDConfiguration: true})
	require.NoError(t, err)
	for _, path := range []string{"/.well-known/oauth-authorization-server/tenant", "/.well-known/openid-configuration/tenant", "/tenant/.well-known/openid-configuration"} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", testIssuer+path, nil))
		require.Equal(t, 200, w.Code, path)
		require.Contains(t, h.Paths(), path)
	}
}

func TestWhatTheHostMayNotAnnounce(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		fapi   bool
		change func(map[string]any)
		ok     bool
	}{
		"another issuer":       {false, func(m map[string]any) { m["issuer"] = "https://x.example.com" }, false},
		"no issuer":            {false, func(m map[string]any) { delete(m, "issuer") }, false},
		"what JSON cannot say": {false, func(m map[string]any) { m["x"] = func() {} }, false},
		"nothing else":         {false, func(m map[string]any) { maps.DeleteFunc(m, func(k string, _ any) bool { return k != "issuer" }) }, true},
		"more methods, with FAPI": {true, func(m map[string]any) {
			m["token_endpoint_auth_methods_supported"] = []string{"private_key_jwt", "none"}
		}, false},
		"more algorithms":  {true, func(m map[string]any) { m["dpop_signing_alg_values_supported"] = []any{"ES256", "RS256"} }, false},
		"fewer algorithms": {true, func(m map[string]any) { m["dpop_signing_alg_values_supported"] = []any{"ES256"} }, true},
	} {
		svc, err := apitoken.New(apitoken.Config{Issuer: testIssuer, Audience: testAudience, Store: memstore.New(), InsecureKeysInStore: true, FAPI: c.fapi})
		require.NoError(t, err)
		t.Cleanup(func() { _ = svc.Close() })
		_, err = oauthhttp.New(svc, &oauthhttp.Options{Metadata: c.change})
		if c.ok {
			require.NoError(t, err, name)
			continue
		}
		var wrong *apitoken.ConfigError
		require.ErrorAs(t, err, &wrong, name)
		require.Equal(t, "Metadata", wrong.Field, name)
	}
}

// Schemes of programs' own: those without a dot by the host's choice, for a client that registers itself as for one of the host's.
func TestSchemesOfProgramsOwn(t *testing.T) {
	t.Parallel()
	const cursor = "cursor://anysphere.cursor-retrieval/oauth/callback"
	s, _ := registrar(t, func(r *oauthhttp.Registration) { r.Open, r.Schemes = 10, []string{"cursor"} })
	id := s.register(metadata{"redirect_uris": []string{cursor, "com.example.app:/cb"}}).ok().text("client_id")
	require.NotEmpty(t, s.get("/authorize?"+authorization(id, "redirect_uri", cursor).Encode()).redirected(cursor).Get("code"))
	s.register(metadata{"redirect_uris": []string{"vscode://x/cb"}}).refused(400, "invalid_redirect_uri", "not chosen")
	s.register(metadata{"redirect_uris": []string{"javascript:alert(1)"}}).refused(400, "invalid_redirect_uri")
	strict, _ := registrar(t, func(r *oauthhttp.Registration) { r.Open = 10 })
	strict.register(metadata{"redirect_uris": []string{cursor}}).refused(400, "invalid_redirect_uri", "none by default")

	ctx := context.Background()
	for uri, ok := range map[string]bool{cursor: true, "app:/cb": true, "javascript:alert(1)": false, "data:text/html,x": false, "file:///etc/passwd": false} {
		_, _, err := s.svc.Clients.Create(ctx, apitoken.Client{Public: true, GrantTypes: []string{"authorization_code"}, RedirectURIs: []string{uri}})
		require.Equal(t, ok, err == nil, "the host's own client, %s: %v", uri, err)
	}
	_, err := oauthhttp.New(s.svc, &oauthhttp.Options{Registration: &oauthhttp.Registration{Schemes: []string{"javascript"}}})
	require.Error(t, err)
	_, err = oauthhttp.New(s.svc, &oauthhttp.Options{Consent: oauthhttp.ConsentFunc(func(http.ResponseWriter, *http.Request, *oauthhttp.Authorization) {}),
		Documents: &oauthhttp.Documents{Schemes: []string{"https"}}})
	require.Error(t, err)
}

// A client that steps up asks for what it has and what it lacks. What was granted before goes on beside the new grant, so that a
// step-up that the user rejects, or that a second tab makes, takes nothing away.
func TestAStepUpKeepsWhatWasGranted(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.public("spa", nil)
	get := func(scope string) *answer {
		return s.token(redemption(s.code("spa", "scope", scope), "client_id", "spa")).ok()
	}
	before := get("orders:read")
	after := get("orders:read orders:write")
	require.Equal(t, "orders:read orders:write", after.text("scope"))
	for _, a := range []*answer{before, after} {
		_, err := s.svc.Validate(t.Context(), apitoken.Bearer(a.text("access_token")))
		require.NoError(t, err)
		next := s.token(params("grant_type", "refresh_token", "refresh_token", a.text("refresh_token"), "client_id", "spa")).ok()
		require.Equal(t, a.text("scope"), next.text("scope"))
	}
}
