package oauthhttp_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/oauthhttp"
)

// app is a client that describes itself, on a host of its own.
type app struct {
	*httptest.Server
	id    string
	page  atomic.Pointer[http.HandlerFunc] // answers for its document
	keys  atomic.Pointer[[]byte]           // its key set
	asked atomic.Int64
}

func newApp(t testing.TB) *app {
	t.Helper()
	a := &app{}
	a.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.asked.Add(1)
		w.Header().Set("Content-Type", "application/json")
		if r.URL.Path == "/keys" {
			_, _ = w.Write(*a.keys.Load())
			return
		}
		(*a.page.Load())(w, r)
	}))
	t.Cleanup(a.Close)
	a.id = a.URL + "/client.json"
	a.says(nil)
	return a
}

// says makes the document say so. A value of nil takes a member out.
func (a *app) says(change metadata) {
	m := metadata{"client_id": a.id, "client_name": "The App", "client_uri": "https://app.example.com", "redirect_uris": []string{callback},
		"grant_types": []string{"authorization_code", "refresh_token"}, "response_types": []string{"code"}, "token_endpoint_auth_method": "none"}
	maps.Copy(m, change)
	maps.DeleteFunc(m, func(_ string, v any) bool { return v == nil })
	raw, _ := json.Marshal(m)
	a.answers(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(raw) })
}

func (a *app) answers(h http.HandlerFunc) { a.page.Store(&h) }

// reachable lets a site read the app's document, though it is on this machine.
func (a *app) reachable(change func(*oauthhttp.Documents)) func(*apitoken.Config, *oauthhttp.Options) {
	return func(_ *apitoken.Config, o *oauthhttp.Options) {
		roots := x509.NewCertPool()
		roots.AddCert(a.Certificate())
		o.Documents = &oauthhttp.Documents{Scopes: apitoken.Scopes{"orders:read", "orders:write"}, TLS: &tls.Config{RootCAs: roots}, InsecureReachable: netip.Addr.IsLoopback}
		if change != nil {
			change(o.Documents)
		}
	}
}

func TestAClientSignsInByItsDocument(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	s := newSite(t, a.reachable(nil))
	var meta map[string]any
	require.NoError(t, json.Unmarshal(s.get("/.well-known/oauth-authorization-server").raw, &meta))
	require.Equal(t, true, meta["client_id_metadata_document_supported"])

	got := s.token(redemption(s.code(a.id), "client_id", a.id)).ok()
	require.Equal(t, a.id, claims(t, got.text("access_token"))["client_id"])
	s.token(params("grant_type", "refresh_token", "refresh_token", got.text("refresh_token"), "client_id", a.id)).ok()
	require.EqualValues(t, 1, a.asked.Load(), "one read, however often it is needed")

	c, err := s.svc.Clients.Get(t.Context(), a.id)
	require.NoError(t, err)
	require.Equal(t, "The App", c.Name)
	require.True(t, c.Public)
	require.Equal(t, apitoken.Scopes{"orders:read", "orders:write"}, c.Scopes)

	// A host that cannot be reached does not shut out a client that is here already.
	a.answers(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
	s.at.Advance(2 * time.Hour)
	s.code(a.id)

	// What it says anew counts.
	a.says(metadata{"redirect_uris": []string{"https://new.example.com/cb"}})
	s.at.Advance(2 * time.Hour)
	q := s.get("/authorize?" + authorization(a.id, "redirect_uri", "https://new.example.com/cb").Encode()).redirected("https://new.example.com/cb")
	require.NotEmpty(t, q.Get("code"))
	require.Equal(t, 400, s.get("/authorize?"+authorization(a.id).Encode()).StatusCode)
}

func TestTheHostSeesWhoAsks(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	var seen oauthhttp.Authorization
	s := newSite(t, func(c *apitoken.Config, o *oauthhttp.Options) {
		a.reachable(nil)(c, o)
		o.Consent = oauthhttp.ConsentFunc(func(_ http.ResponseWriter, _ *http.Request, x *oauthhttp.Authorization) { seen = *x })
	})
	s.get("/authorize?" + authorization(a.id).Encode())
	require.Equal(t, "The App", seen.Client.Name)
	require.Equal(t, "https://app.example.com", seen.ClientURI)
	require.False(t, seen.LocalOnly())

	a.says(metadata{"redirect_uris": []string{"http://127.0.0.1/cb", "com.example.app:/cb"}, "client_uri": "javascript:alert(1)"})
	s.at.Advance(2 * time.Hour)
	s.get("/authorize?" + authorization(a.id, "redirect_uri", "http://127.0.0.1:4711/cb").Encode())
	require.Equal(t, "http://127.0.0.1:4711/cb", seen.RedirectURI())
	require.True(t, seen.LocalOnly())
	require.Empty(t, seen.ClientURI, "a page that is none is not shown")
}

func TestDocumentsThatAreNotTaken(t *testing.T) {
	t.Parallel()
	text := func(body string) func(*app) {
		return func(a *app) {
			a.answers(func(w http.ResponseWriter, _ *http.Request) {
				_, _ = w.Write([]byte(strings.ReplaceAll(body, "ID", a.id)))
			})
		}
	}
	says := func(m metadata) func(*app) { return func(a *app) { a.says(m) } }
	for name, change := range map[string]func(*app){
		"another client_id":           says(metadata{"client_id": "https://app.example.com/client.json"}),
		"no client_id":                says(metadata{"client_id": nil}),
		"a secret":                    says(metadata{"client_secret": "0123456789abcdef"}),
		"a secret to come":            says(metadata{"token_endpoint_auth_method": "client_secret_basic"}),
		"a method that is unknown":    says(metadata{"token_endpoint_auth_method": "x"}),
		"no redirect URI":             says(metadata{"redirect_uris": nil}),
		"a redirect URI that is none": says(metadata{"redirect_uris": []string{"javascript:alert(1)"}}),
		"a web page on this machine":  says(metadata{"application_type": "web", "redirect_uris": []string{"http://127.0.0.1/cb"}}),
		"only what may not be had":    says(metadata{"grant_types": []string{"client_credentials"}}),
		"a scope that may not be had": says(metadata{"scope": "admin"}),
		"a name that is too long":     says(metadata{"client_name": strings.Repeat("x", 101)}),
		"keys that are none":          says(metadata{"token_endpoint_auth_method": "private_key_jwt", "jwks": "x"}),
		"keys at a forbidden place":   says(metadata{"token_endpoint_auth_method": "private_key_jwt", "jwks_uri": "http://127.0.0.1/keys"}),
		"no keys":                     says(metadata{"token_endpoint_auth_method": "private_key_jwt"}),
		"a statement":                 says(metadata{"software_statement": "x.y.z"}),
		"no JSON":                     text("hello"),
		"a list":                      text("[]"),
		"a member twice":              text(`{"client_id":"ID","client_id":"ID","redirect_uris":["` + callback + `"]}`),
		"a member of another type":    text(`{"client_id":"ID","redirect_uris":"` + callback + `"}`),
		"more after the end":          text(`{"client_id":"ID","redirect_uris":["` + callback + `"]} {}`),
		"too much":                    text(`{"client_id":"ID","redirect_uris":["` + callback + `"],"x":"` + strings.Repeat("x", 64<<10) + `"}`),
		"a status": func(a *app) {
			a.answers(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) })
		},
		"a redirect": func(a *app) {
			a.answers(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/other", http.StatusFound) })
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newApp(t)
			change(a)
			s := newSite(t, a.reachable(nil))
			got := s.get("/authorize?" + authorization(a.id).Encode())
			require.Equal(t, 400, got.StatusCode, string(got.raw))
			require.Contains(t, string(got.raw), "invalid_client")
			require.Empty(t, got.Header.Get("Location"), "nobody is sent to where an unknown client wants it")
			require.Zero(t, s.svc.Clients.Temporary())
		})
	}
}

func TestWhichIDsAreDocuments(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	s := newSite(t, a.reachable(nil))
	for _, id := range []string{strings.Replace(a.id, "https", "http", 1), a.id + "?x=1", a.id + "#x", a.URL, a.URL + "/", a.URL + "/x/../client.json", strings.Replace(a.id, "https://", "https://user@", 1)} {
		got := s.get("/authorize?" + authorization(id).Encode())
		require.Equal(t, 400, got.StatusCode, id)
	}
	require.Zero(t, a.asked.Load())

	closed := newSite(t, nil)
	require.Equal(t, 400, closed.get("/authorize?"+authorization(a.id).Encode()).StatusCode, "off by default")
	guarded := newSite(t, a.reachable(func(d *oauthhttp.Documents) { d.InsecureReachable = nil }))
	require.Equal(t, 400, guarded.get("/authorize?"+authorization(a.id).Encode()).StatusCode, "this machine is out of reach")
	require.Zero(t, a.asked.Load())
}

func TestAClientThatSignsIsKnownByItsDocument(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	k := newSigner(t)
	keys := k.keys()
	a.keys.Store(&keys)
	a.says(metadata{"token_endpoint_auth_method": "private_key_jwt", "jwks_uri": a.URL + "/keys"})
	s := newSite(t, a.reachable(nil))
	push := func(k *signer) *answer {
		v := authorization(a.id)
		v.Del("client_id")
		maps.Copy(v, s.assertion(k, a.id, nil))
		return s.post("/par", v)
	}
	uri := push(k).ok("a push is the first that is heard of it").text("request_uri")
	code := s.get("/authorize?" + params("client_id", a.id, "request_uri", uri).Encode()).redirected(callback).Get("code")
	v := redemption(code)
	maps.Copy(v, s.assertion(k, a.id, nil))
	got := s.token(v).ok()
	s.token(redemption(code, "client_id", a.id)).refused(401, "invalid_client", "it has to sign")
	push(newSigner(t)).refused(401, "invalid_client", "another's key")

	next := newSigner(t)
	keys = next.keys()
	a.keys.Store(&keys)
	s.at.Advance(61 * time.Minute)
	v = params("grant_type", "refresh_token", "refresh_token", got.text("refresh_token"))
	maps.Copy(v, s.assertion(next, a.id, nil))
	s.token(v).ok("a key that it has changed to")
	push(k).refused(401, "invalid_client", "the key that it has given up")
}

func TestTheHostDecidesWhoMayDescribeItself(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	var verdict error
	s := newSite(t, a.reachable(func(d *oauthhttp.Documents) {
		d.Allow = func(_ context.Context, id *url.URL) error {
			require.Equal(t, a.id, id.String())
			return verdict
		}
		d.Check = func(_ context.Context, c *apitoken.Client) error {
			c.Scopes = apitoken.Scopes{"orders:read"}
			return nil
		}
	}))
	ask := func() *answer { return s.get("/authorize?" + authorization(a.id).Encode()) }
	verdict = errors.New("no friend of ours")
	require.Equal(t, 400, ask().StatusCode)
	require.Zero(t, a.asked.Load())
	verdict = context.DeadlineExceeded
	require.Equal(t, 503, ask().StatusCode, "it could not decide")
	verdict = nil
	ask().redirected(callback)
	c, err := s.svc.Clients.Get(t.Context(), a.id)
	require.NoError(t, err)
	require.Equal(t, apitoken.Scopes{"orders:read"}, c.Scopes)

	verdict = errors.New("no longer")
	require.Equal(t, 400, ask().StatusCode, "also for one that is here already")
	verdict = nil
	_, err = s.svc.Clients.Update(t.Context(), a.id, func(c *apitoken.Client) error { c.Disabled = true; return nil })
	require.NoError(t, err)
	require.Equal(t, 400, ask().StatusCode)
}

func TestThereIsRoomForSoManyDocuments(t *testing.T) {
	t.Parallel()
	a := newApp(t)
	s := newSite(t, a.reachable(func(d *oauthhttp.Documents) { d.Most = 1 }))
	s.code(a.id)
	a.answers(func(w http.ResponseWriter, r *http.Request) {
		raw, _ := json.Marshal(metadata{"client_id": a.URL + r.URL.Path, "redirect_uris": []string{callback}})
		_, _ = w.Write(raw)
	})
	require.Equal(t, 429, s.get("/authorize?"+authorization(a.URL+"/second").Encode()).StatusCode)
	s.code(a.id)

	// One address may make only so many, whatever becomes of them.
	s = newSite(t, a.reachable(nil))
	last := 0
	for i := range 60 {
		if last = s.get("/authorize?" + authorization(a.URL+"/"+strings.Repeat("x", i+1)).Encode()).StatusCode; last == 429 {
			break
		}
	}
	require.Equal(t, 429, last)
}

// TestWhoRegistersOpenlyMayStepUp: MCP clients register with the scope of the first challenge.
func TestWhoRegistersOpenlyMayStepUp(t *testing.T) {
	t.Parallel()
	s, initial := registrar(t, func(r *oauthhttp.Registration) { r.Open = 2 })
	m := metadata{"redirect_uris": []string{"http://127.0.0.1/cb"}, "scope": "orders:read"}
	require.Equal(t, "orders:read orders:write", s.register(m).ok().text("scope"), "what the host lets such clients have")
	require.Equal(t, "orders:read", s.register(m, bearer(initial)).ok().text("scope"), "who is vouched for gets what it asks for")
}

func TestAnybodyMayRegisterWhereTheHostSaysSo(t *testing.T) {
	t.Parallel()
	s, initial := registrar(t, func(r *oauthhttp.Registration) { r.Open = 2 })
	m := metadata{"client_name": "An agent", "redirect_uris": []string{"http://127.0.0.1/cb"}, "grant_types": []string{"authorization_code", "refresh_token", "client_credentials"},
		"token_endpoint_auth_method": "client_secret_basic", "jwks_uri": "https://app.example.com/keys", "application_type": "native"}
	s.register(metadata{"redirect_uris": []string{"http://127.0.0.1/cb"}, "application_type": "web"}).refused(400, "invalid_redirect_uri")
	a := s.register(m).ok()
	require.Equal(t, 201, a.StatusCode)
	require.Equal(t, "none", a.text("token_endpoint_auth_method"), "narrowed, and told")
	require.Empty(t, a.text("client_secret"))
	require.Equal(t, "native", a.text("application_type"))
	require.Equal(t, []any{"authorization_code", "refresh_token"}, a.body["grant_types"])
	id := a.text("client_id")
	c, err := s.svc.Clients.Get(t.Context(), id)
	require.NoError(t, err)
	require.True(t, c.Public)
	require.False(t, c.Expires.IsZero())

	// A user lets it have tokens: it stays for as long as they can.
	there := "http://127.0.0.1:4711/cb"
	code := s.get("/authorize?" + authorization(id, "redirect_uri", there).Encode()).redirected(there).Get("code")
	s.token(redemption(code, "client_id", id, "redirect_uri", there)).ok()
	second := s.register(m).ok().text("client_id")
	s.register(m).refused(429, "rate_limited", "no room for a third")
	s.register(metadata{"redirect_uris": []string{callback}}, bearer(initial)).ok("who is vouched for needs none of it")
	s.register(m, bearer("x")).refused(401, "invalid_token", "a bad token is no missing one")
	s.at.Advance(2 * time.Hour)
	require.NotEmpty(t, s.get("/authorize?"+authorization(id, "redirect_uri", there).Encode()).redirected(there).Get("code"))
	require.Equal(t, 400, s.get("/authorize?"+authorization(second, "redirect_uri", there).Encode()).StatusCode, "one that nobody used has ended")
}
