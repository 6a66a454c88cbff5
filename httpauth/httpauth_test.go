package httpauth_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/httpauth"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/memstore"
)

func newService(t testing.TB, change func(*apitoken.Config)) *apitoken.Service {
	t.Helper()
	return serviceOn(t, memstore.New(), change)
}

func serviceOn(t testing.TB, st store.Store, change func(*apitoken.Config)) *apitoken.Service {
	t.Helper()
	c := apitoken.Config{Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: st, InsecureKeysInStore: true}
	if change != nil {
		change(&c)
	}
	svc, err := apitoken.New(c)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, svc.Close()) })
	return svc
}

func mint(t testing.TB, svc *apitoken.Service, scopes ...apitoken.Scope) string {
	t.Helper()
	i, err := svc.Issue(context.Background(), apitoken.Request{Subject: "alice", Scopes: scopes})
	require.NoError(t, err)
	return i.Access.Reveal()
}

var hello = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	t := apitoken.FromContext(r.Context())
	if t.IsZero() {
		_, _ = w.Write([]byte("hello, whoever"))
		return
	}
	_, _ = w.Write([]byte("hello, " + t.Subject()))
})

// validatorFunc answers as it is told.
type validatorFunc func(apitoken.Credential) (apitoken.Token, error)

func (f validatorFunc) Validate(_ context.Context, c apitoken.Credential) (apitoken.Token, error) {
	return f(c)
}

func get(h http.Handler, target string, header http.Header) *httptest.ResponseRecorder {
	r := httptest.NewRequest("GET", target, nil)
	for k, v := range header {
		r.Header[k] = v
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func bearer(token string) http.Header { return http.Header{"Authorization": {"Bearer " + token}} }

// TestTheTable is RFC 6750 §3 and the design's table, row by row.
func TestTheTable(t *testing.T) {
	t.Parallel()
	svc := newService(t, nil)
	good := mint(t, svc, "orders:read")
	poor := mint(t, svc)
	revoked, err := svc.Issue(context.Background(), apitoken.Request{Subject: "bob"})
	require.NoError(t, err)
	require.NoError(t, svc.Revoke(context.Background(), apitoken.BySubject("bob"), "x"))
	bound, err := svc.Issue(context.Background(), apitoken.Request{Subject: "carol", Scopes: apitoken.Scopes{"orders:read"}, Binding: apitoken.BindDPoP(strings.Repeat("A", 43))})
	require.NoError(t, err)
	auth := httpauth.New(svc, &httpauth.Options{Realm: "orders", Metadata: "https://api.example.com/.well-known/oauth-protected-resource", BaseURL: "https://api.example.com"})
	h := auth.Require("orders:read")(hello)
	const meta = `, resource_metadata="https://api.example.com/.well-known/oauth-protected-resource"`
	const needs = `, scope="orders:read"` + meta // in every 401 and 403, so that a client asks for all of it at once
	bare := []string{`Bearer realm="orders"` + needs, `DPoP realm="orders", algs="ES256 ES384 ES512 EdDSA Ed25519 RS256 RS384 RS512 PS256 PS384 PS512"` + needs}
	invalid := func(text string) []string {
		return []string{`Bearer realm="orders", error="invalid_token", error_description="` + text + `"` + needs, bare[1]}
	}
	request := []string{`Bearer realm="orders", error="invalid_request", error_description="The request is malformed."` + meta}
	for name, c := range map[string]struct {
		target    string
		header    http.Header
		status    int
		challenge []string
		code      string
	}{
		"no token":               {"/", nil, 401, bare, ""},
		"another scheme":         {"/", http.Header{"Authorization": {"Basic YTpi"}}, 401, bare, ""},
		"good":                   {"/", bearer(good), 200, nil, ""},
		"scheme in another case": {"/", http.Header{"Authorization": {"bEARER " + good}}, 200, nil, ""},
		"two spaces":             {"/", http.Header{"Authorization": {"Bearer  " + good}}, 200, nil, ""},
		"junk":                   {"/", bearer("junk"), 401, invalid("The token is not valid."), "invalid_token"},
		"revoked":                {"/", bearer(revoked.Access.Reveal()), 401, invalid("The token was revoked."), "invalid_token"},
		"scope":                  {"/", bearer(poor), 403, []string{`Bearer realm="orders", error="insufficient_scope", error_description="The token does not cover this request.", scope="orders:read"` + meta}, "insufficient_scope"},
		"scheme alone":           {"/", http.Header{"Authorization": {"Bearer"}}, 400, request, "invalid_request"},
		"scheme and a space":     {"/", http.Header{"Authorization": {"Bearer "}}, 400, request, "invalid_request"},
		"two tokens":             {"/", bearer(good + " " + good), 400, request, "invalid_request"},
		"comma":                  {"/", bearer(good + "," + good), 400, request, "invalid_request"},
		"comma, schemes":         {"/", http.Header{"Authorization": {"Bearer,Basic"}}, 400, request, "invalid_request"},
		"two headers":            {"/", http.Header{"Authorization": {"Bearer " + good, "Bearer " + good}}, 400, request, "invalid_request"},
		"no token68":             {"/", bearer(`"` + good + `"`), 400, request, "invalid_request"},
		"header and query":       {"/?access_token=" + good, bearer(good), 400, request, "invalid_request"},
		"query alone":            {"/?access_token=" + good, nil, 401, bare, ""},
		"bound as bearer":        {"/", bearer(bound.Access.Reveal()), 401, invalid("The token is not valid."), "invalid_token"},
		"DPoP without proof":     {"/", http.Header{"Authorization": {"DPoP " + bound.Access.Reveal()}}, 401, []string{`DPoP realm="orders", algs="ES256 ES384 ES512 EdDSA Ed25519 RS256 RS384 RS512 PS256 PS384 PS512", error="invalid_dpop_proof", error_description="The DPoP proof is missing or not valid."` + needs}, "invalid_dpop_proof"},
		"DPoP, two proofs":       {"/", http.Header{"Authorization": {"DPoP " + bound.Access.Reveal()}, "Dpop": {"a", "b"}}, 401, []string{`DPoP realm="orders", algs="ES256 ES384 ES512 EdDSA Ed25519 RS256 RS384 RS512 PS256 PS384 PS512", error="invalid_dpop_proof", error_description="The DPoP proof is missing or not valid."` + needs}, "invalid_dpop_proof"},
	} {
		w := get(h, c.target, c.header)
		require.Equal(t, c.status, w.Code, name)
		require.Equal(t, c.challenge, w.Header()["Www-Authenticate"], name)
		require.Contains(t, w.Header()["Vary"], "Authorization", name)
		if c.status == 200 {
			require.Equal(t, "hello, alice", w.Body.String())
			require.Empty(t, w.Header().Get("Cache-Control"))
			continue
		}
		require.Equal(t, "no-store", w.Header().Get("Cache-Control"), name)
		require.Equal(t, "application/problem+json", w.Header().Get("Content-Type"), name)
		var p map[string]any
		require.NoError(t, json.Unmarshal(w.Body.Bytes(), &p), name)
		require.EqualValues(t, c.status, p["status"], name)
		if c.code == "" {
			require.NotContains(t, p, "error", "%s: RFC 6750 §3.1: no error code where no token came", name)
		} else {
			require.Equal(t, c.code, p["error"], name)
		}
		require.NotContains(t, w.Body.String(), "alice")
	}
	// DPoP is another scheme where the host has not said its own URL.
	w := get(httpauth.New(svc, nil).Authenticated(hello), "/", http.Header{"Authorization": {"DPoP x"}})
	require.Equal(t, 401, w.Code)
	require.Equal(t, []string{"Bearer"}, w.Header()["Www-Authenticate"])
}

func TestEveryErrorHasItsStatus(t *testing.T) {
	t.Parallel()
	for err, want := range map[error]int{
		apitoken.ErrInvalidToken: 401, apitoken.ErrExpired: 401, apitoken.ErrRevoked: 401, apitoken.ErrNoToken: 401, apitoken.ErrInvalidRequest: 400, apitoken.ErrInsufficientScope: 403,
		apitoken.ErrInvalidClient: 401, apitoken.ErrInvalidGrant: 400, apitoken.ErrInvalidScope: 400, apitoken.ErrInvalidTarget: 400, apitoken.ErrDenied: 403, apitoken.ErrLimited: 429, apitoken.ErrUnavailable: 503,
		apitoken.ErrNotFound: 404, apitoken.ErrInvalidProof: 401, apitoken.ErrUseNonce: 401, errors.New("database password is hunter2"): 500,
	} {
		auth := httpauth.New(validatorFunc(func(apitoken.Credential) (apitoken.Token, error) {
			return apitoken.Token{}, err
		}), nil)
		w := get(auth.Authenticated(hello), "/", bearer("x"))
		require.Equal(t, want, w.Code, "%v", err)
		require.NotContains(t, w.Body.String(), "hunter2")
		if want == 429 || want == 503 {
			require.Equal(t, "1", w.Header().Get("Retry-After"))
		}
	}
	auth := httpauth.New(validatorFunc(func(apitoken.Credential) (apitoken.Token, error) {
		return apitoken.Token{}, &apitoken.Error{Code: apitoken.ErrLimited, RetryAfter: 1500 * time.Millisecond}
	}), nil)
	require.Equal(t, "2", get(auth.Authenticated(hello), "/", bearer("x")).Header().Get("Retry-After"))
	auth = httpauth.New(validatorFunc(func(apitoken.Credential) (apitoken.Token, error) { return apitoken.Token{}, nil }), nil)
	require.Equal(t, 401, get(auth.Authenticated(hello), "/", bearer("x")).Code, "a validator that forgot its error lets nobody in")
	head := httptest.NewRequest("HEAD", "/", nil)
	w := httptest.NewRecorder()
	auth.Authenticated(hello).ServeHTTP(w, head)
	require.Equal(t, 401, w.Code)
	require.Zero(t, w.Body.Len())
}

func TestOptionalRefusesABadToken(t *testing.T) {
	t.Parallel()
	svc := newService(t, nil)
	h := httpauth.New(svc, nil).Optional(hello)
	require.Equal(t, "hello, whoever", get(h, "/", nil).Body.String())
	require.Equal(t, "hello, alice", get(h, "/", bearer(mint(t, svc))).Body.String())
	require.Equal(t, 401, get(h, "/", bearer("junk")).Code)
}

func TestRouteTable(t *testing.T) {
	t.Parallel()
	svc := newService(t, nil)
	reader, writer := mint(t, svc, "orders:read"), mint(t, svc, "orders")
	auth := httpauth.New(svc, nil)
	table := httpauth.Routes{
		"GET /healthz":        apitoken.Public(),
		"GET /me":             apitoken.Authenticated(),
		"GET /orders/":        apitoken.AllOf("orders:read"),
		"DELETE /orders/{id}": apitoken.AllOf("orders:write", "orders:delete"),
		"GET /reports/{$}":    apitoken.AnyOf("reports", "orders"),
		"GET /zero":           {},
	}
	reached := 0
	h := auth.Routes(table)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { reached++; hello(w, r) }))
	do := func(method, path, token string) int {
		r := httptest.NewRequest(method, "/", nil)
		u, err := url.Parse(path)
		require.NoError(t, err)
		r.URL.Path, r.URL.RawPath = u.Path, u.RawPath
		r.RequestURI = path
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w.Code
	}
	for _, c := range []struct {
		method, path, token string
		want                int
	}{
		{"GET", "/healthz", "", 200}, {"GET", "/me", "", 401}, {"GET", "/me", reader, 200}, {"GET", "/orders/1", reader, 200}, {"HEAD", "/orders/1", reader, 200},
		{"DELETE", "/orders/1", reader, 403}, {"DELETE", "/orders/1", writer, 200}, {"GET", "/reports/", reader, 403}, {"GET", "/reports/", writer, 200}, {"GET", "/reports/x", writer, 404},
		{"GET", "/admin", writer, 404}, {"POST", "/orders/1", writer, 405}, {"OPTIONS", "/orders/1", "", 405}, {"GET", "/zero", writer, 403}, {"GET", "/zero", "", 401},
		{"GET", "/healthz/../admin", "", 400}, {"GET", "//healthz", "", 400}, {"GET", "/healthz/%2e%2e/admin", "", 400}, {"GET", "/orders/%2Fadmin", reader, 400}, {"GET", "/orders/..%2f", reader, 400},
		{"GET", "/healthz;x=1", "", 400}, {"GET", "/healthz%3bx", "", 400}, {"GET", `/orders\admin`, reader, 400}, {"GET", "/orders/%5cadmin", reader, 400}, {"GET", "/orders/./1", reader, 400}, {"GET", "/orders/%00", reader, 400},
		{"GET", "/orders/..", reader, 400}, {"GET", "/orders/%252e", reader, 400}, {"GET", "/orders/a%20b", reader, 200}, {"GET", "/orders/é", reader, 200},
	} {
		before := reached
		require.Equal(t, c.want, do(c.method, c.path, c.token), "%s %s", c.method, c.path)
		require.Equal(t, c.want == 200, reached > before, "%s %s", c.method, c.path)
	}
	require.Panics(t, func() { auth.Routes(httpauth.Routes{"/a/{x}": {}, "/{y}/b": {}}) })
	mux := auth.Mux(map[string]httpauth.Route{"GET /orders": {Needs: apitoken.AllOf("orders:read"), Handler: hello}, "GET /open": {Needs: apitoken.Public(), Handler: hello}, "GET /forgotten": {Handler: hello}})
	require.Equal(t, 200, get(mux, "/orders", bearer(reader)).Code)
	require.Equal(t, 401, get(mux, "/orders", nil).Code)
	require.Equal(t, 200, get(mux, "/open", nil).Code)
	require.Equal(t, 403, get(mux, "/forgotten", bearer(writer)).Code, "a row without a requirement lets nobody in")
	require.Equal(t, 404, get(mux, "/other", bearer(writer)).Code)
}

func TestHooksSeeNoCredential(t *testing.T) {
	t.Parallel()
	svc := newService(t, nil)
	var seen []string
	auth := httpauth.New(svc, &httpauth.Options{OnRefuse: func(r *http.Request, err error) {
		seen = append(seen, r.Header.Get("Authorization")+r.Header.Get("Cookie")+r.URL.String()+r.RequestURI+err.Error())
	}})
	h := http.Header{"Authorization": {"Bearer topsecret"}, "Cookie": {"x=topsecret"}, "Dpop": {"topsecret"}}
	require.Equal(t, 401, get(auth.Authenticated(hello), "/?code=topsecret", h).Code)
	require.Len(t, seen, 1)
	require.NotContains(t, seen[0], "topsecret")
}

func TestStripCredential(t *testing.T) {
	t.Parallel()
	svc := newService(t, nil)
	auth := httpauth.New(svc, &httpauth.Options{StripCredential: true})
	h := auth.Authenticated(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		require.Empty(t, r.Header.Get("Authorization"))
		require.Equal(t, "kept", r.Header.Get("X-Other"))
	}))
	r := httptest.NewRequest("GET", "/", nil)
	r.Header.Set("Authorization", "Bearer "+mint(t, svc))
	r.Header.Set("X-Other", "kept")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	require.Equal(t, 200, w.Code)
	require.NotEmpty(t, r.Header.Get("Authorization"), "the caller's request is not changed")
}

func TestOriginAndProxies(t *testing.T) {
	t.Parallel()
	proxies := httpauth.BehindProxies(netip.MustParsePrefix("10.0.0.0/8"))
	for _, c := range []struct{ peer, forwarded, want string }{
		{"192.0.2.1:5", "203.0.113.9", "192.0.2.1"}, {"10.0.0.1:5", "203.0.113.9", "203.0.113.9"}, {"10.0.0.1:5", "6.6.6.6, 203.0.113.9, 10.0.0.2", "203.0.113.9"},
		{"10.0.0.1:5", "junk, 10.0.0.2", "10.0.0.2"}, {"10.0.0.1:5", "", "10.0.0.1"}, {"[::ffff:10.0.0.1]:5", "2001:db8::1", "2001:db8::1"},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.RemoteAddr = c.peer
		r.Header.Set("X-Forwarded-For", c.forwarded)
		require.Equal(t, c.want, proxies(r).String(), "%v", c)
	}
	svc := newService(t, nil)
	auth := httpauth.New(svc, nil)
	var got apitoken.Origin
	h := auth.Origin(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = apitoken.OriginOf(r.Context()) }))
	get(h, "/", http.Header{"User-Agent": {"curl"}, "X-Request-Id": {"7"}, "X-Forwarded-For": {"6.6.6.6"}})
	require.Equal(t, apitoken.Origin{Address: netip.MustParseAddr("192.0.2.1"), UserAgent: "curl", RequestID: "7"}, got)
}

// A stream that was opened with an API key ends when a rotation ends the key at once.
func TestAWatchedStreamEndsWithARotatedKey(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := newService(t, nil)
	k, secret, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "alice"})
	require.NoError(t, err)
	auth := httpauth.New(svc, nil)
	ended := make(chan struct{})
	h := auth.Authenticated(auth.Watch(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _, err := svc.APIKeys.Rotate(ctx, k.ID, 0)
		require.NoError(t, err)
		<-r.Context().Done()
		close(ended)
	})))
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.Header.Set("Authorization", "Bearer "+secret.Reveal())
	go h.ServeHTTP(httptest.NewRecorder(), r)
	select {
	case <-ended:
	case <-time.After(30 * time.Second):
		t.Fatal("the stream stays open")
	}
}

func TestWatchedRequestsEnd(t *testing.T) {
	t.Parallel()
	svc := newService(t, nil)
	auth := httpauth.New(svc, nil)
	i, err := svc.Issue(context.Background(), apitoken.Request{Subject: "alice"})
	require.NoError(t, err)
	started := make(chan struct{})
	cause := make(chan error, 1)
	h := auth.Authenticated(auth.Watch(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(started)
		<-r.Context().Done()
		cause <- context.Cause(r.Context())
	})))
	go get(h, "/", bearer(i.Access.Reveal()))
	<-started
	require.NoError(t, svc.Revoke(context.Background(), apitoken.BySubject("alice"), "x"))
	require.ErrorIs(t, <-cause, apitoken.ErrRevoked)
}

func TestUsesAreConsumedOnceForEachRequest(t *testing.T) {
	t.Parallel()
	svc := newService(t, nil)
	_, secret, err := svc.APIKeys.Create(context.Background(), apitoken.APIKeyRequest{Subject: "bob", MaxUses: 2})
	require.NoError(t, err)
	h := httpauth.New(svc, nil).Authenticated(hello)
	for _, want := range []int{200, 200, 429} {
		require.Equal(t, want, get(h, "/", bearer(secret.Reveal())).Code)
	}
}

func FuzzAuthorizationHeader(f *testing.F) {
	for _, s := range []string{"", "Bearer", "Bearer x", "bearer  x", "Bearer x,y", "Basic YTpi", "DPoP x", "Bearer \x00", "Bearer,", " Bearer x", "Bearer\tx"} {
		f.Add(s)
	}
	v := validatorFunc(func(c apitoken.Credential) (apitoken.Token, error) {
		if c.Token == "good" && c.DPoP == "" {
			return apitoken.NewToken(apitoken.TokenSpec{Subject: "alice"})
		}
		return apitoken.Token{}, apitoken.ErrInvalidToken
	})
	h := httpauth.New(v, &httpauth.Options{BaseURL: "https://api.example.com"}).Authenticated(hello)
	f.Fuzz(func(t *testing.T, header string) {
		w := get(h, "/", http.Header{"Authorization": {header}})
		fields := strings.Fields(header)
		good := len(fields) == 2 && strings.EqualFold(fields[0], "Bearer") && fields[1] == "good"
		if w.Code == 200 && !good || w.Code != 200 && w.Code != 400 && w.Code != 401 {
			t.Fatalf("%q: %d", header, w.Code)
		}
	})
}

// browser keeps cookies as a browser does.
type browser struct {
	mu  sync.Mutex
	jar map[string]string
}

func (b *browser) do(h http.Handler, method, path string, header http.Header) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, nil)
	b.mu.Lock()
	for k, v := range b.jar {
		r.AddCookie(&http.Cookie{Name: k, Value: v})
	}
	b.mu.Unlock()
	for k, v := range header {
		r.Header[k] = v
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range w.Result().Cookies() {
		if c.MaxAge < 0 {
			delete(b.jar, c.Name)
		} else {
			b.jar[c.Name] = c.Value
		}
	}
	return w
}

type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time          { c.mu.Lock(); defer c.mu.Unlock(); return c.t }
func (c *clock) advance(d time.Duration) { c.mu.Lock(); defer c.mu.Unlock(); c.t = c.t.Add(d) }

func TestSession(t *testing.T) {
	t.Parallel()
	c := &clock{t: time.Now()}
	svc := serviceOn(t, memstore.NewWithClock(c.now), func(cfg *apitoken.Config) { cfg.Now = c.now })
	web := httpauth.NewSession(svc, &httpauth.SessionOptions{Login: "/login"})
	mux := http.NewServeMux()
	mux.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) {
		if err := web.Start(w, r, apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"app"}}); err != nil {
			web.Error(w, r, err)
		}
	})
	mux.HandleFunc("POST /logout", func(w http.ResponseWriter, r *http.Request) {
		if err := web.End(w, r, "logout"); err != nil {
			web.Error(w, r, err)
		}
	})
	mux.Handle("GET /page", web.Require("app")(hello))
	mux.Handle("POST /page", web.Require("app")(hello))
	mux.Handle("GET /open", web.Optional(hello))
	b := &browser{jar: map[string]string{}}
	html := http.Header{"Accept": {"text/html"}}
	w := b.do(mux, "GET", "/page?x=1", html)
	require.Equal(t, 303, w.Code)
	require.Equal(t, "/login?next=%2Fpage%3Fx%3D1", w.Header().Get("Location"))
	require.Equal(t, 401, b.do(mux, "GET", "/page", nil).Code, "who is no browser gets 401")
	w = b.do(mux, "POST", "/login", http.Header{"Sec-Fetch-Site": {"cross-site"}})
	require.Equal(t, 403, w.Code)
	w = b.do(mux, "POST", "/login", nil)
	require.Equal(t, 200, w.Code)
	for _, ck := range w.Result().Cookies() {
		require.True(t, strings.HasPrefix(ck.Name, "__Host-"))
		require.True(t, ck.HttpOnly && ck.Secure && ck.Path == "/" && ck.Domain == "")
		require.Equal(t, http.SameSiteLaxMode, ck.SameSite)
	}
	require.Equal(t, "hello, alice", b.do(mux, "GET", "/page", nil).Body.String())
	require.Equal(t, 403, b.do(mux, "POST", "/page", http.Header{"Sec-Fetch-Site": {"cross-site"}}).Code)
	require.Equal(t, 403, b.do(mux, "POST", "/page", http.Header{"Origin": {"https://evil.example.com"}}).Code)
	require.Equal(t, 200, b.do(mux, "POST", "/page", http.Header{"Sec-Fetch-Site": {"same-origin"}}).Code)

	// The access token expires: 32 tabs, one refresh.
	c.advance(6 * time.Minute)
	require.NoError(t, svc.Sync(context.Background()))
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			if w := b.do(mux, "GET", "/page", nil); w.Code != 200 {
				t.Errorf("a tab got %d %s", w.Code, w.Body)
			}
		})
	}
	wg.Wait()
	n := 0
	for _, err := range svc.Events(context.Background(), apitoken.EventQuery{Type: event.Refreshed}) {
		require.NoError(t, err)
		n++
	}
	require.Equal(t, 1, n)

	// Another login ends the session before it.
	old := map[string]string{}
	for k, v := range b.jar {
		old[k] = v
	}
	require.Equal(t, 200, b.do(mux, "POST", "/login", nil).Code)
	stale := &browser{jar: old}
	require.Equal(t, 401, stale.do(mux, "GET", "/page", nil).Code)
	require.Empty(t, stale.jar, "cookies of no use are taken away")
	require.Equal(t, "hello, whoever", (&browser{jar: map[string]string{"__Host-session": "junk"}}).do(mux, "GET", "/open", nil).Body.String())

	// Logout works with expired tokens, and is for good.
	kept := map[string]string{}
	for k, v := range b.jar {
		kept[k] = v
	}
	c.advance(6 * time.Minute)
	require.NoError(t, svc.Sync(context.Background()))
	require.Equal(t, 403, b.do(mux, "POST", "/logout", http.Header{"Sec-Fetch-Site": {"cross-site"}}).Code)
	require.Equal(t, 200, b.do(mux, "POST", "/logout", nil).Code)
	require.Empty(t, b.jar)
	require.Equal(t, 401, (&browser{jar: kept}).do(mux, "GET", "/page", nil).Code)
	require.Equal(t, 200, b.do(mux, "POST", "/logout", nil).Code, "twice is no error")
}

func BenchmarkMiddleware(b *testing.B) {
	svc := newService(b, nil)
	token := mint(b, svc, "orders:read")
	bare := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	w := &nullWriter{h: http.Header{}}
	r := httptest.NewRequest("GET", "/", nil)
	r.Header.Set("Authorization", "Bearer "+token)
	b.Run("bare", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			bare.ServeHTTP(w, r)
		}
	})
	h := httpauth.New(svc, nil).Require("orders:read")(bare)
	b.Run("guarded", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			h.ServeHTTP(w, r)
		}
	})
}

type nullWriter struct{ h http.Header }

func (w *nullWriter) Header() http.Header         { return w.h }
func (w *nullWriter) Write(b []byte) (int, error) { return len(b), nil }
func (w *nullWriter) WriteHeader(int)             {}
