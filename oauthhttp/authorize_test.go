package oauthhttp_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/oauthhttp"
)

func TestErrorsOfAnAuthorizationGoToTheClient(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.client("app", nil)
	s.client("service", func(c *apitoken.Client) {
		c.GrantTypes, c.MayImpersonate = []string{"client_credentials"}, false
	})
	for name, c := range map[string]struct {
		v    url.Values
		code string
	}{
		"no response_type":       {authorization("app", "response_type", ""), "invalid_request"},
		"implicit":               {authorization("app", "response_type", "token"), "unsupported_response_type"},
		"hybrid":                 {authorization("app", "response_type", "code id_token"), "unsupported_response_type"},
		"a fragment":             {authorization("app", "response_mode", "fragment"), "invalid_request"},
		"no challenge":           {authorization("app", "code_challenge", ""), "invalid_request"},
		"a short challenge":      {authorization("app", "code_challenge", "x"), "invalid_request"},
		"plain":                  {authorization("app", "code_challenge_method", "plain"), "invalid_request"},
		"plain by default":       {authorization("app", "code_challenge_method", ""), "invalid_request"},
		"an unknown scope":       {authorization("app", "scope", "admin"), "invalid_scope"},
		"a malformed scope":      {authorization("app", "scope", "a  b"), "invalid_scope"},
		"a request object":       {authorization("app", "request", "x.y.z"), "request_not_supported"},
		"another grant type":     {authorization("service"), "unauthorized_client"},
		"an unknown resource":    {authorization("app", "resource", "https://x.example.com"), "invalid_target"},
		"details nobody checks":  {authorization("app", "authorization_details", `[{"type":"x"}]`), "invalid_authorization_details"},
		"a malformed thumbprint": {authorization("app", "dpop_jkt", "x"), "invalid_request"},
	} {
		for _, method := range []string{"GET", "POST"} {
			var a *answer
			if method == "GET" {
				a = s.get("/authorize?" + c.v.Encode())
			} else {
				a = s.post("/authorize", c.v)
			}
			q := a.redirected(callback)
			require.Equal(t, c.code, q.Get("error"), name)
			require.Equal(t, "xyz", q.Get("state"), name)
			require.NotEmpty(t, q.Get("error_description"))
			require.Empty(t, q.Get("code"), name)
		}
	}
	twice := authorization("app")
	twice["scope"] = []string{"orders:read", "orders:write"}
	q := s.get("/authorize?" + twice.Encode()).redirected(callback)
	require.Equal(t, "invalid_request", q.Get("error"), "a parameter twice (RFC 6749 §3.1)")
	require.Equal(t, "xyz", q.Get("state"))
	twice = authorization("app")
	twice["state"] = []string{"a", "b"}
	q = s.get("/authorize?" + twice.Encode()).redirected(callback)
	require.Equal(t, "invalid_request", q.Get("error"))
	require.False(t, q.Has("state"), "nobody can say which")
}

func TestErrorsThatMustNotBeRedirected(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.client("app", nil)
	s.client("two", func(c *apitoken.Client) { c.RedirectURIs = []string{callback, callback + "2"} })
	s.client("gone", nil)
	_, err := s.svc.Clients.Update(t.Context(), "gone", func(c *apitoken.Client) error { c.Disabled = true; return nil })
	require.NoError(t, err)
	redirectTwice := authorization("app")
	redirectTwice["redirect_uri"] = []string{callback, "https://evil.example.com"}
	clientTwice := authorization("app")
	clientTwice["client_id"] = []string{"app", "two"}
	for name, query := range map[string]string{
		"no client":             authorization("app", "client_id", "").Encode(),
		"an unknown client":     authorization("nobody").Encode(),
		"a disabled client":     authorization("gone").Encode(),
		"another redirect":      authorization("app", "redirect_uri", "https://evil.example.com").Encode(),
		"a longer redirect":     authorization("app", "redirect_uri", callback+"/x").Encode(),
		"a query more":          authorization("app", "redirect_uri", callback+"?x=1").Encode(),
		"upper case":            authorization("app", "redirect_uri", strings.ToUpper(callback)).Encode(),
		"which of two":          authorization("two", "redirect_uri", "").Encode(),
		"two redirects":         redirectTwice.Encode(),
		"two clients":           clientTwice.Encode(),
		"a broken query":        "client_id=%zz",
		"an unknown reference":  params("client_id", "app", "request_uri", "urn:ietf:params:oauth:request_uri:x").Encode(),
		"a reference elsewhere": params("client_id", "app", "request_uri", "https://evil.example.com/request").Encode(),
		"too long":              authorization("app", "state", strings.Repeat("x", 20<<10)).Encode(),
	} {
		a := s.get("/authorize?" + query)
		require.Equal(t, 400, a.StatusCode, name)
		require.Empty(t, a.Header.Get("Location"), name)
		require.Contains(t, a.Header.Get("Content-Type"), "text/plain", name)
		require.Empty(t, a.Header.Get("WWW-Authenticate"), "%s: no browser asks for a password", name)
		require.Equal(t, "frame-ancestors 'none'", a.Header.Get("Content-Security-Policy"), name)
		require.NotContains(t, string(a.raw), "evil", "what came in is never said back")
	}
	a := s.do(formRequest("/authorize?client_id=app", authorization("app").Encode()))
	require.Equal(t, 400, a.StatusCode, "parameters in URL and body")
}

func TestRedirectURIs(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.public("cli", func(c *apitoken.Client) { c.RedirectURIs = []string{"http://127.0.0.1/cb"} })
	s.client("query", func(c *apitoken.Client) { c.RedirectURIs = []string{"https://app.example.com/cb?tenant=1"} })
	s.client("app", nil)
	at := "http://127.0.0.1:49152/cb"
	q := s.get("/authorize?" + authorization("cli", "redirect_uri", at).Encode()).redirected(at)
	s.token(redemption(q.Get("code"), "redirect_uri", at, "client_id", "cli")).ok("loopback, on any port (RFC 8252 §7.3)")
	require.Equal(t, 400, s.get("/authorize?"+authorization("cli", "redirect_uri", "http://localhost:49152/cb").Encode()).StatusCode)
	q = s.get("/authorize?" + authorization("query", "redirect_uri", "").Encode()).redirected("https://app.example.com/cb")
	require.Equal(t, "1", q.Get("tenant"), "a query that was registered stays (RFC 6749 §3.1.2)")
	s.token(redemption(q.Get("code"), "redirect_uri", ""), s.as("query")).ok("one that did not come need not be repeated")
	q = s.get("/authorize?" + authorization("app", "redirect_uri", "").Encode()).redirected(callback)
	s.token(redemption(q.Get("code")), s.as("app")).refused(400, "invalid_grant", "nor may one come that was not there")
}

// asks is a host whose consent page asks: it carries the request's Query through its own pages.
func TestTheHostAsksInItsOwnPages(t *testing.T) {
	t.Parallel()
	var h *oauthhttp.Handler
	var seen *oauthhttp.Authorization
	s := newSite(t, func(_ *apitoken.Config, o *oauthhttp.Options) {
		o.Consent = oauthhttp.ConsentFunc(func(w http.ResponseWriter, r *http.Request, a *oauthhttp.Authorization) {
			seen = a
			http.Redirect(w, r, "/login?"+url.Values{"then": {a.Query}}.Encode(), http.StatusSeeOther)
		})
	})
	h = s.h
	s.client("app", func(c *apitoken.Client) { c.Name = "The App" })
	a := s.do(formRequest("/authorize", authorization("app", "prompt", "login", "resource", otherAPI, "password", "hunter2").Encode()))
	require.Equal(t, http.StatusSeeOther, a.StatusCode)
	require.Equal(t, "The App", seen.Client.Name)
	require.Equal(t, apitoken.Scopes{"orders:read"}, seen.Scopes)
	require.Equal(t, []string{otherAPI}, seen.Resources)
	require.Equal(t, "login", seen.Parameters.Get("prompt"))
	require.Equal(t, "hunter2", seen.Parameters.Get("password"), "a host's own field in its own form")
	require.Equal(t, callback, seen.RedirectURI())
	require.NotContains(t, seen.Query, "hunter2", "is not carried on")
	require.NotContains(t, a.Header.Get("Location"), "hunter2")

	again, err := h.Authorization(t.Context(), seen.Query)
	require.NoError(t, err)
	require.Equal(t, seen.Query, again.Query)
	do := func(f func(w http.ResponseWriter, r *http.Request)) *answer {
		w := httptest.NewRecorder()
		f(w, httptest.NewRequest(http.MethodPost, testIssuer+"/login", nil))
		return &answer{Response: w.Result(), t: t, raw: w.Body.Bytes()}
	}
	q := do(func(w http.ResponseWriter, r *http.Request) {
		h.Approve(w, r, again, oauthhttp.Approval{Subject: "bob", Scopes: oauthhttp.Only(), Claims: map[string]any{"plan": "gold"}, NoRefresh: true})
	}).redirected(callback)
	pair := s.token(redemption(q.Get("code")), s.as("app")).ok()
	require.NotContains(t, pair.body, "refresh_token")
	require.Empty(t, pair.text("scope"), "the user allowed none")
	c := claims(t, pair.text("access_token"))
	require.Equal(t, "bob", c["sub"])
	require.Equal(t, "gold", c["plan"])

	for reason, want := range map[string]string{"": "access_denied", "login_required": "login_required", "nonsense": "server_error"} {
		q := do(func(w http.ResponseWriter, r *http.Request) { h.Deny(w, r, again, reason) }).redirected(callback)
		require.Equal(t, want, q.Get("error"))
		require.Equal(t, "xyz", q.Get("state"))
	}
	for name, x := range map[string]struct {
		approval oauthhttp.Approval
		code     string
	}{
		"nobody":                    {oauthhttp.Approval{}, "invalid_request"},
		"a client as subject":       {oauthhttp.Approval{Subject: "app", Scopes: oauthhttp.All()}, "invalid_request"},
		"more than was asked":       {oauthhttp.Approval{Subject: "bob", Scopes: oauthhttp.Only("orders:write")}, "invalid_scope"},
		"claims that are reserved":  {oauthhttp.Approval{Subject: "bob", Claims: map[string]any{"iss": "x"}}, "invalid_request"},
		"claims that are no object": {oauthhttp.Approval{Subject: "bob", Claims: 1}, "invalid_request"},
	} {
		q := do(func(w http.ResponseWriter, r *http.Request) { h.Approve(w, r, again, x.approval) }).redirected(callback)
		require.Equal(t, x.code, q.Get("error"), name)
	}
	for _, forged := range []*oauthhttp.Authorization{nil, {}, {Client: again.Client}} {
		a := do(func(w http.ResponseWriter, r *http.Request) {
			h.Approve(w, r, forged, oauthhttp.Approval{Subject: "bob", Scopes: oauthhttp.All()})
		})
		require.Equal(t, 500, a.StatusCode, "an Authorization is made by the Handler alone")
		a = do(func(w http.ResponseWriter, r *http.Request) { h.Deny(w, r, forged, "") })
		require.Equal(t, 500, a.StatusCode)
	}
	_, err = h.Authorization(t.Context(), strings.Replace(seen.Query, "app.example.com", "evil.example.com", 1))
	require.Error(t, err, "what is carried is checked again")
	a = do(func(w http.ResponseWriter, r *http.Request) { h.Refuse(w, r, err) })
	require.Equal(t, 400, a.StatusCode)

	require.NoError(t, s.svc.Revoke(t.Context(), apitoken.BySubject("bob"), "test"))
	q = do(func(w http.ResponseWriter, r *http.Request) {
		h.Approve(w, r, again, oauthhttp.Approval{Subject: "bob", Scopes: oauthhttp.All()})
	}).redirected(callback)
	code := q.Get("code")
	require.NotEmpty(t, code, "what is approved after a revocation is good")
	require.NoError(t, s.svc.Revoke(t.Context(), apitoken.BySubject("bob"), "test"))
	s.token(redemption(code), s.as("app")).refused(400, "invalid_grant", "what was approved before is not")
}

func TestPushedRequests(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.client("app", nil)
	s.client("other", nil)
	s.public("spa", nil)
	a := s.post("/par", authorization("app"), s.as("app"))
	require.Equal(t, 201, a.StatusCode)
	require.EqualValues(t, 540, a.body["expires_in"], "under 600 s (FAPI 2.0 §5.3.2.2)")
	uri := a.text("request_uri")
	require.True(t, strings.HasPrefix(uri, "urn:ietf:params:oauth:request_uri:"))
	visit := func(client, uri string, pairs ...string) *answer {
		return s.get("/authorize?" + merge(params("client_id", client, "request_uri", uri), pairs...).Encode())
	}
	require.Equal(t, 400, visit("other", uri).StatusCode, "another client's")
	q := visit("app", uri, "scope", "orders:write", "redirect_uri", "https://evil.example.com").redirected(callback)
	require.Equal(t, "xyz", q.Get("state"))
	pair := s.token(redemption(q.Get("code")), s.as("app")).ok()
	require.Equal(t, "orders:read", pair.text("scope"), "only what was pushed counts (RFC 9126 §4)")
	require.Equal(t, 400, visit("app", uri).StatusCode, "one code comes of it")

	uri = s.post("/par", authorization("app"), s.as("app")).ok().text("request_uri")
	ahead := s.do(httptest.NewRequest(http.MethodHead, testIssuer+"/authorize?"+params("client_id", "app", "request_uri", uri).Encode(), nil))
	require.Equal(t, 200, ahead.StatusCode)
	require.Empty(t, ahead.Header.Get("Location"), "whoever looks ahead at a link gets no code")
	require.NotEmpty(t, visit("app", uri).redirected(callback).Get("code"), "and spends nothing")

	late := s.post("/par", authorization("app"), s.as("app")).ok().text("request_uri")
	s.at.Advance(11 * time.Minute)
	require.Equal(t, 400, visit("app", late).StatusCode, "expired")

	for name, x := range map[string]struct {
		v      url.Values
		o      option
		status int
		code   string
	}{
		"no client":           {authorization("app", "client_id", ""), header("X", ""), 401, "invalid_client"},
		"a wrong secret":      {authorization("app"), basicAuth("app", s.secrets["other"]), 401, "invalid_client"},
		"two clients":         {authorization("other"), s.as("app"), 400, "invalid_request"},
		"a reference":         {authorization("app", "request_uri", uri), s.as("app"), 400, "invalid_request"},
		"another redirect":    {authorization("app", "redirect_uri", "https://evil.example.com"), s.as("app"), 400, "invalid_request"},
		"an unknown scope":    {authorization("app", "scope", "admin"), s.as("app"), 400, "invalid_scope"},
		"no challenge":        {authorization("app", "code_challenge", ""), s.as("app"), 400, "invalid_request"},
		"implicit":            {authorization("app", "response_type", "token"), s.as("app"), 400, "unsupported_response_type"},
		"a request object":    {authorization("app", "request", "x.y.z"), s.as("app"), 400, "request_not_supported"},
		"an unknown resource": {authorization("app", "resource", "https://x.example.com"), s.as("app"), 400, "invalid_target"},
		"too large":           {authorization("app", "state", strings.Repeat("x", 9<<10)), s.as("app"), 413, "invalid_request"},
	} {
		s.post("/par", x.v, x.o).refused(x.status, x.code, name)
	}

	// A public client pushes too, and a proof binds the code (RFC 9449 §10.1).
	k, other := newSigner(t), newSigner(t)
	par := func(k *signer) option { return header("DPoP", k.proof("POST", testIssuer+"/par", s.at.Now(), nil)) }
	uri = s.post("/par", authorization("spa"), par(k)).ok().text("request_uri")
	code := visit("spa", uri).redirected(callback).Get("code")
	s.token(redemption(code, "client_id", "spa"), s.dpop(other, nil)).refused(400, "invalid_grant")
	s.token(redemption(code, "client_id", "spa"), s.dpop(k, nil)).ok()
	s.post("/par", authorization("spa", "dpop_jkt", other.print), par(k)).refused(400, "invalid_dpop_proof")
	s.post("/par", authorization("spa", "dpop_jkt", k.print), par(k)).ok()
	s.post("/par", authorization("spa"), s.dpop(k, nil)).refused(400, "invalid_dpop_proof", "a proof for another endpoint")
}

func TestOnePushedRequestOneCode(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.client("app", nil)
	sites := []*site{s, s.second(nil)}
	uri := s.post("/par", authorization("app"), s.as("app")).ok().text("request_uri")
	require.Equal(t, 1, race(func(i int) bool {
		a := sites[i%2].get("/authorize?" + params("client_id", "app", "request_uri", uri).Encode())
		return a.StatusCode == 303 && strings.Contains(a.Header.Get("Location"), "code=")
	}))
}

func TestRequestsThatMustBePushed(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(_ *apitoken.Config, o *oauthhttp.Options) { o.RequirePushed = true })
	s.client("app", nil)
	q := s.get("/authorize?" + authorization("app").Encode()).redirected(callback)
	require.Equal(t, "invalid_request", q.Get("error"))
	uri := s.post("/par", authorization("app"), s.as("app")).ok().text("request_uri")
	q = s.get("/authorize?" + params("client_id", "app", "request_uri", uri).Encode()).redirected(callback)
	require.NotEmpty(t, q.Get("code"))
}

// What a stranger's browser brings costs no read of the store for each request: clients are known from memory, junk is known
// by its shape or its tag.
func TestJunkRequestsReadNoStore(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(_ *apitoken.Config, o *oauthhttp.Options) { o.Registration = &oauthhttp.Registration{} })
	s.client("app", nil)
	before := s.st.asked.Load()
	for i := range 20 {
		require.Equal(t, 400, s.get("/authorize?"+authorization(fmt.Sprint("made-up-", i)).Encode()).StatusCode)
		require.Equal(t, 400, s.get("/authorize?"+params("client_id", "app", "request_uri", fmt.Sprint("urn:ietf:params:oauth:request_uri:", i)).Encode()).StatusCode)
		s.get("/authorize?" + authorization("app", "dpop_jkt", "short").Encode()).redirected(callback)
		require.Equal(t, 401, s.get("/register/app", header("Authorization", fmt.Sprint("Bearer junk", i))).StatusCode)
	}
	require.Equal(t, before, s.st.asked.Load())
}

func TestAClientOfAnotherProcessIsKnownAtOnce(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.second(nil).client("fresh", nil)
	require.NotEmpty(t, s.get("/authorize?"+authorization("fresh").Encode()).redirected(callback).Get("code"))
}
