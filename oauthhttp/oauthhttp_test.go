package oauthhttp_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/oauthhttp"
	"github.com/apitoken-go/apitoken/remote"
)

var own = params("grant_type", "client_credentials")

func TestFormsAreReadStrictly(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.client("app", nil)
	as := s.as("app")
	s.token(own, as).ok()
	do := func(path, body string, options ...option) *answer {
		return s.do(formRequest(path, body), append(options, as)...)
	}
	for _, body := range []string{
		"grant_type=client_credentials&grant_type=client_credentials",
		"grant_type=client_credentials&scope=orders%3Aread&scope=orders%3Awrite",
		"grant_type=client_credentials&scope=&scope=orders%3Aread",
		"grant_type=client_credentials&x=%zz", "grant_type=client_credentials;scope=x", "grant_type=client_credentials&x=%FF", "grant_type=client_credentials&x=%00",
		"grant_type=client_credentials" + strings.Repeat("&a=b", 100),
		"", "scope=orders%3Aread", "grant_type=",
	} {
		do("/token", body).refused(400, "invalid_request", body)
	}
	do("/token", "grant_type=client_credentials&unknown=1&unknown2=").ok("unknown parameters are ignored (RFC 6749 §3.2)")
	do("/token", "grant_type=client_credentials&client_secret=&client_id=").ok("a parameter without a value was not sent (RFC 6749 §3.2)")
	do("/token?grant_type=client_credentials", "").refused(400, "invalid_request", "parameters in the URL")
	do("/token?x=1", "grant_type=client_credentials").refused(400, "invalid_request", "parameters in both")
	do("/token", "grant_type="+strings.Repeat("x", 65<<10)).refused(413, "invalid_request")
	for _, media := range []string{"application/json", "text/plain", "", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded; charset=latin1"} {
		r := formRequest("/token", own.Encode())
		r.Header.Set("Content-Type", media)
		s.do(r, as).refused(400, "invalid_request", media)
	}
	do("/token", own.Encode(), header("Content-Type", "text/plain")).refused(400, "invalid_request", "two types")
	do("/token", own.Encode(), header("Content-Encoding", "gzip")).refused(400, "invalid_request")
	r := formRequest("/token", own.Encode())
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded; charset=UTF-8")
	s.do(r, as).ok()
}

func TestOtherMethodsAreRefused(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	for _, path := range []string{"/token", "/revoke", "/introspect", "/par", "/device_authorization"} {
		for _, method := range []string{"GET", "PUT", "DELETE", "PATCH"} {
			a := s.do(httptest.NewRequest(method, testIssuer+path, nil)).refused(405, "invalid_request", method, path)
			require.Equal(t, "POST", a.Header.Get("Allow"))
		}
	}
	a := s.do(httptest.NewRequest(http.MethodPost, testIssuer+"/.well-known/oauth-authorization-server", nil))
	require.Equal(t, 405, a.StatusCode)
	require.Equal(t, "GET, HEAD", a.Header.Get("Allow"))
	a = s.do(httptest.NewRequest(http.MethodDelete, testIssuer+"/authorize", nil))
	require.Equal(t, 405, a.StatusCode)
	require.Equal(t, 404, s.get("/register").StatusCode, "registration is off")
	require.Equal(t, 404, s.get("/nothing").StatusCode)
}

func TestBrowsersMayCall(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(_ *apitoken.Config, o *oauthhttp.Options) {
		o.Resources = []oauthhttp.Resource{{Resource: testIssuer}}
	})
	s.public("spa", nil)
	preflight := func(path string) *answer {
		return s.do(httptest.NewRequest(http.MethodOptions, testIssuer+path, nil), header("Origin", "https://app.example.com"), header("Access-Control-Request-Method", "POST"), header("Access-Control-Request-Headers", "dpop"))
	}
	for _, path := range []string{"/token", "/revoke", "/par", "/device_authorization", "/.well-known/oauth-authorization-server", "/openapi.json", "/.well-known/jwks.json", "/.well-known/oauth-protected-resource"} {
		a := preflight(path)
		require.Equal(t, 204, a.StatusCode, path)
		require.Equal(t, "*", a.Header.Get("Access-Control-Allow-Origin"))
		require.Contains(t, a.Header.Get("Access-Control-Allow-Headers"), "DPoP")
		require.Empty(t, a.Header.Get("Access-Control-Allow-Credentials"), "no cookie counts here")
	}
	for _, path := range []string{"/introspect", "/authorize"} {
		a := preflight(path)
		require.NotEqual(t, 204, a.StatusCode, "%s is not for pages' scripts", path)
		require.Empty(t, a.Header.Get("Access-Control-Allow-Origin"))
	}
	a := s.token(params("grant_type", "refresh_token", "refresh_token", "x", "client_id", "spa"), header("Origin", "https://app.example.com")).refused(400, "invalid_grant")
	require.Equal(t, "*", a.Header.Get("Access-Control-Allow-Origin"), "errors are read by pages too")
	require.Contains(t, a.Header.Get("Access-Control-Expose-Headers"), "DPoP-Nonce")
	require.Equal(t, "*", s.get("/.well-known/jwks.json").Header.Get("Access-Control-Allow-Origin"))
	for _, path := range []string{"/.well-known/oauth-authorization-server", "/openapi.json"} { // what a cache keeps of a program's request serves a page too
		require.Contains(t, s.get(path).Header.Get("Cache-Control"), "public")
		require.Equal(t, "*", s.get(path).Header.Get("Access-Control-Allow-Origin"), path)
	}

	s = newSite(t, func(_ *apitoken.Config, o *oauthhttp.Options) { o.Origins = []string{"https://app.example.com"} })
	a = preflight("/token")
	require.Equal(t, "https://app.example.com", a.Header.Get("Access-Control-Allow-Origin"))
	require.Contains(t, a.Header.Values("Vary"), "Origin")
	a = s.token(own, header("Origin", "https://evil.example.com"))
	require.Empty(t, a.Header.Get("Access-Control-Allow-Origin"))
	require.Contains(t, a.Header.Values("Vary"), "Origin")
}

// A body that drips in holds a connection no longer than the endpoint allows; a request that is slow behind its body is
// not ended by that.
func TestABodyThatDoesNotArrive(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.h.SetReadTime(50 * time.Millisecond)
	srv := httptest.NewServer(s.h)
	t.Cleanup(srv.Close)
	conn, err := net.Dial("tcp", strings.TrimPrefix(srv.URL, "http://"))
	require.NoError(t, err)
	defer conn.Close()
	_, err = fmt.Fprintf(conn, "POST /token HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 100\r\n\r\ngrant_type=")
	require.NoError(t, err)
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(30*time.Second)))
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(t, err, "the endpoint answers by itself")
	defer res.Body.Close()
	require.Equal(t, http.StatusRequestTimeout, res.StatusCode)
}

// Whatever is refused before its body is read is bounded too: another method, path, media type or encoding. A handler that is
// mounted alone does not rely on the whole one.
func TestABodyThatIsNotReadDoesNotArrive(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(_ *apitoken.Config, o *oauthhttp.Options) { o.Registration = &oauthhttp.Registration{} })
	s.h.SetReadTime(50 * time.Millisecond)
	whole, alone := httptest.NewServer(s.h), httptest.NewServer(s.h.Token())
	t.Cleanup(whole.Close)
	t.Cleanup(alone.Close)
	for name, c := range map[string]struct {
		srv  *httptest.Server
		head string
	}{
		"media type":      {whole, "POST /token HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 60"},
		"no media type":   {whole, "POST /token HTTP/1.1\r\nContent-Length: 60"},
		"encoding":        {whole, "POST /token HTTP/1.1\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Encoding: gzip\r\nContent-Length: 60"},
		"chunked":         {whole, "POST /revoke HTTP/1.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked"},
		"method":          {whole, "GET /token HTTP/1.1\r\nContent-Length: 60"},
		"path":            {whole, "POST /nothing HTTP/1.1\r\nContent-Length: 60"},
		"document":        {whole, "GET /.well-known/oauth-authorization-server HTTP/1.1\r\nContent-Length: 60"},
		"page":            {whole, "PUT /authorize HTTP/1.1\r\nContent-Length: 60"},
		"keys":            {whole, "GET /.well-known/jwks.json HTTP/1.1\r\nContent-Length: 60"},
		"without a token": {whole, "POST /register HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 60"},
		"mounted alone":   {alone, "POST / HTTP/1.1\r\nContent-Length: 60"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn, err := net.Dial("tcp", strings.TrimPrefix(c.srv.URL, "http://"))
			require.NoError(t, err)
			defer conn.Close()
			_, err = fmt.Fprint(conn, c.head+"\r\nHost: x\r\n\r\n")
			require.NoError(t, err)
			require.NoError(t, conn.SetReadDeadline(time.Now().Add(9*time.Second)))
			_, err = io.Copy(io.Discard, conn)
			require.NoError(t, err, "the server ends the connection by itself")
		})
	}
}

func TestAnIssuerWithAPath(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(c *apitoken.Config, _ *oauthhttp.Options) { c.Issuer = testIssuer + "/tenants/a" })
	s.client("app", nil)
	m := s.get("/.well-known/oauth-authorization-server/tenants/a").ok()
	require.Equal(t, testIssuer+"/tenants/a", m.text("issuer"))
	require.Equal(t, testIssuer+"/tenants/a/token", m.text("token_endpoint"))
	require.Equal(t, 200, s.get("/tenants/a/.well-known/jwks.json").StatusCode)
	s.post("/tenants/a/token", own, s.as("app")).ok()
	require.Equal(t, 404, s.get("/token").StatusCode)
	k := newSigner(t)
	s.post("/tenants/a/token", own, s.as("app"), header("DPoP", k.proof("POST", testIssuer+"/tenants/a/token", s.at.Now(), nil))).ok()
	s.post("/tenants/a/token", own, s.as("app"), header("DPoP", k.proof("POST", testIssuer+"/token", s.at.Now(), nil))).refused(400, "invalid_dpop_proof")
}

// Every endpoint answers a failing store with what tells a client to come again, never with a verdict.
func TestAStoreThatFails(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(_ *apitoken.Config, o *oauthhttp.Options) { o.Registration = &oauthhttp.Registration{} })
	s.client("app", nil)
	code := s.code("app")
	pair := s.token(redemption(s.code("app")), s.as("app")).ok()
	device := s.post("/device_authorization", params("scope", "orders:read"), s.as("app")).ok()
	registration, err := s.svc.Clients.RegistrationToken(t.Context(), "app")
	require.NoError(t, err)
	s.st.writes.Store(true)
	s.st.reads.Store(true)
	for name, a := range map[string]*answer{
		"client_credentials": s.token(own, s.as("app")),
		"code":               s.token(redemption(code), s.as("app")),
		"refresh":            s.token(params("grant_type", "refresh_token", "refresh_token", pair.text("refresh_token")), s.as("app")),
		"device":             s.token(params("grant_type", "urn:ietf:params:oauth:grant-type:device_code", "device_code", device.text("device_code")), s.as("app")),
		"exchange":           s.token(params("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange", "subject_token", pair.text("access_token"), "subject_token_type", "urn:ietf:params:oauth:token-type:access_token"), s.as("app")),
		"revoke":             s.post("/revoke", params("token", pair.text("access_token")), s.as("app")),
		"par":                s.post("/par", authorization("app"), s.as("app")),
		"start of a device":  s.post("/device_authorization", nil, s.as("app")),
	} {
		a.refused(503, "temporarily_unavailable", name)
		require.NotEmpty(t, a.Header.Get("Retry-After"), name)
	}
	q := s.get("/authorize?" + authorization("app").Encode()).redirected(callback)
	require.Equal(t, "temporarily_unavailable", q.Get("error"), "the client is known without the store")
	require.Equal(t, 503, s.get("/register/app", header("Authorization", "Bearer "+registration.Reveal())).StatusCode)
	require.Equal(t, 401, s.get("/register/app", header("Authorization", "Bearer x")).StatusCode, "junk is known without the store")
	s.st.reads.Store(false)
	q = s.get("/authorize?" + authorization("app").Encode()).redirected(callback)
	require.Equal(t, "temporarily_unavailable", q.Get("error"), "RFC 6749 §4.1.2.1")
	s.st.writes.Store(false)
	s.token(redemption(code), s.as("app")).ok("nothing was spent meanwhile")
}

func TestOptionsThatContradictThemselves(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	consent := oauthhttp.ConsentFunc(func(http.ResponseWriter, *http.Request, *oauthhttp.Authorization) {})
	for field, o := range map[string]*oauthhttp.Options{
		"CodeLifetime":   {CodeLifetime: time.Hour},
		"PushedLifetime": {PushedLifetime: -1},
		"DeviceLifetime": {DeviceLifetime: 2 * time.Hour},
		"DevicePage":     {DevicePage: "/device"},
		"MutualTLS":      {MutualTLS: "http://mtls.example.com"},
		"RequirePushed":  {RequirePushed: true},
		"Origins":        {Consent: consent, Origins: []string{"https://a.example.com/"}},
		"Assertions":     {Assertions: []oauthhttp.AssertionIssuer{{Issuer: "https://login.example.com"}}},
		"Details":        {Details: &oauthhttp.Details{Types: []string{"payment"}}},
		"Registration":   {Registration: &oauthhttp.Registration{GrantTypes: []string{"password"}}},
		"Resources":      {Resources: []oauthhttp.Resource{{Resource: "api"}}},
	} {
		_, err := oauthhttp.New(s.svc, o)
		var c *apitoken.ConfigError
		require.ErrorAs(t, err, &c, field)
		require.Equal(t, field, c.Field)
	}
}

// A validator in another process follows these endpoints as it does remote.Handler.
func TestAValidatorElsewhereFollows(t *testing.T) {
	t.Parallel()
	var h http.Handler
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.ServeHTTP(w, r) }))
	t.Cleanup(srv.Close)
	s := newSite(t, func(c *apitoken.Config, o *oauthhttp.Options) { c.Issuer, o.DevicePage = srv.URL, srv.URL+"/device" })
	h = s.h
	s.client("resource", func(c *apitoken.Client) { c.Scopes = apitoken.Scopes{remote.FollowScope} })
	v, err := remote.NewValidator(remote.Config{Issuer: srv.URL, Audience: testAudience, Client: apitoken.ClientAuth{ID: "resource", Secret: apitoken.NewSecret(s.secrets["resource"])}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, v.Close()) })
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	require.NoError(t, v.Ready(ctx))
	i, err := s.svc.Issue(ctx, apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"orders:read"}})
	require.NoError(t, err)
	got, err := v.Validate(ctx, apitoken.Bearer(i.Access.Reveal()))
	require.NoError(t, err)
	require.Equal(t, "alice", got.Subject())
	_, key, err := s.svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "bob", Scopes: apitoken.Scopes{"orders:read"}, Claims: map[string]any{"plan": "gold"}})
	require.NoError(t, err)
	got, err = v.Validate(ctx, apitoken.Bearer(key.Reveal()))
	require.NoError(t, err, "introspection tells what package remote needs")
	require.Equal(t, "bob", got.Subject())
	var c struct{ Plan string }
	require.NoError(t, got.Claims(&c))
	require.Equal(t, "gold", c.Plan)
}

func TestMetadata(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(_ *apitoken.Config, o *oauthhttp.Options) {
		o.Scopes = apitoken.Scopes{"orders:read"}
		o.MutualTLS = "https://mtls.example.com/"
		o.Resources = []oauthhttp.Resource{{Resource: testIssuer + "/api", Scopes: apitoken.Scopes{"orders:read"}}, {Resource: testIssuer + "/v1/"}, {Resource: testAudience}}
		o.Registration = &oauthhttp.Registration{}
		o.RequirePushed = true
	})
	a := s.get("/.well-known/oauth-authorization-server").ok()
	require.Equal(t, "application/json", a.Header.Get("Content-Type"))
	require.Contains(t, a.Header.Get("Cache-Control"), "max-age")
	m := a.body
	for name, want := range map[string]any{
		"issuer": testIssuer, "token_endpoint": testIssuer + "/token", "authorization_endpoint": testIssuer + "/authorize", "jwks_uri": testIssuer + "/.well-known/jwks.json",
		"revocation_endpoint": testIssuer + "/revoke", "introspection_endpoint": testIssuer + "/introspect", "pushed_authorization_request_endpoint": testIssuer + "/par",
		"device_authorization_endpoint": testIssuer + "/device_authorization", "registration_endpoint": testIssuer + "/register", "require_pushed_authorization_requests": true,
		"authorization_response_iss_parameter_supported": true, "tls_client_certificate_bound_access_tokens": true,
		"code_challenge_methods_supported": []any{"S256"}, "response_types_supported": []any{"code"}, "response_modes_supported": []any{"query"}, "scopes_supported": []any{"orders:read"},
		"protected_resources": []any{testIssuer + "/api", testIssuer + "/v1/", testAudience}, "apitoken_revocations_endpoint": remote.FeedURL(testIssuer),
	} {
		require.Equal(t, want, m[name], name)
	}
	require.Equal(t, "https://mtls.example.com/token", m["mtls_endpoint_aliases"].(map[string]any)["token_endpoint"])
	require.Equal(t, "https://mtls.example.com/apitoken/revocations", m["mtls_endpoint_aliases"].(map[string]any)["apitoken_revocations_endpoint"])
	require.NotContains(t, m["grant_types_supported"], "urn:ietf:params:oauth:grant-type:jwt-bearer", "what is off is not announced")
	require.NotContains(t, m["introspection_endpoint_auth_methods_supported"], "none")
	for _, name := range []string{"token_endpoint", "authorization_endpoint", "revocation_endpoint", "introspection_endpoint", "pushed_authorization_request_endpoint", "device_authorization_endpoint", "jwks_uri", "service_documentation", "registration_endpoint"} {
		u, err := url.Parse(m[name].(string))
		require.NoError(t, err)
		require.NotEqual(t, 404, s.get(u.Path).StatusCode, "%s is announced", name)
	}
	r := s.get("/.well-known/oauth-protected-resource/api").ok()
	require.Equal(t, testIssuer+"/api", r.text("resource"))
	require.Equal(t, []any{testIssuer}, r.body["authorization_servers"])
	require.Equal(t, []any{"header"}, r.body["bearer_methods_supported"])
	require.Equal(t, testIssuer+"/v1/", s.get("/.well-known/oauth-protected-resource/v1/").ok().text("resource"))
	require.Equal(t, 404, s.get("/.well-known/oauth-protected-resource/v1/x").StatusCode)
	require.Equal(t, 404, s.get("/.well-known/oauth-protected-resource").StatusCode, "another host's resource is served there")
	require.Equal(t, "https://api.example.com/.well-known/oauth-protected-resource", oauthhttp.ResourceMetadataURL(testAudience))
	require.Equal(t, "https://api.example.com/.well-known/oauth-protected-resource", oauthhttp.ResourceMetadataURL(testAudience+"/"))
	require.Equal(t, "https://api.example.com/.well-known/oauth-protected-resource/v1", oauthhttp.ResourceMetadataURL(testAudience+"/v1"))
	require.Equal(t, "https://api.example.com/.well-known/oauth-protected-resource/v1/", oauthhttp.ResourceMetadataURL(testAudience+"/v1/"), "RFC 9728 §3.1 drops the slash behind the host alone")

	bare, err := oauthhttp.New(s.svc, nil)
	require.NoError(t, err)
	w := httptest.NewRecorder()
	bare.ServeHTTP(w, httptest.NewRequest(http.MethodGet, testIssuer+"/.well-known/oauth-authorization-server", nil))
	require.Contains(t, w.Body.String(), `"response_types_supported":[]`, "RFC 8414 §2 requires it")
	require.NotContains(t, w.Body.String(), "authorization_endpoint")
	for _, alone := range []http.Handler{bare.Authorize(), bare.Pushed(), bare.DeviceAuthorization(), bare.Register()} {
		w := httptest.NewRecorder()
		alone.ServeHTTP(w, httptest.NewRequest(http.MethodPost, testIssuer+"/x", nil))
		require.Equal(t, 404, w.Code, "what is off is off alone too")
	}
	for _, path := range []string{"/authorize", "/par", "/device_authorization", "/register"} {
		w := httptest.NewRecorder()
		bare.ServeHTTP(w, httptest.NewRequest(http.MethodGet, testIssuer+path, nil))
		require.Equal(t, 404, w.Code, path)
	}
}

// The Host header of a request is never believed.
func TestTheHostHeaderIsNotBelieved(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.client("app", nil)
	r := httptest.NewRequest(http.MethodGet, "https://evil.example.com/.well-known/oauth-authorization-server", nil)
	require.NotContains(t, string(s.do(r).raw), "evil")
	k := newSigner(t)
	r = formRequest("/token", own.Encode())
	r.Host = "evil.example.com"
	s.do(r, s.as("app"), header("DPoP", k.proof("POST", "https://evil.example.com/token", s.at.Now(), nil)), header("X-Forwarded-Host", "evil.example.com")).refused(400, "invalid_dpop_proof")
}
