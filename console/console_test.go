package console_test

import (
	"context"
	"errors"
	"html"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/apitokentest"
	"github.com/apitoken-go/apitoken/console"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/memstore"
)

// host is a program that mounts the console: who asks stands in a header, as a login would say it.
type host struct {
	t   *testing.T
	svc *apitokentest.Service
	h   http.Handler
	// grant is the session of who asks.
	grant string
}

var scopes = map[apitoken.Scope]string{"orders": "Everything about orders", "orders:read": "See orders", "orders:write": "Place orders", "pay": "Pay"}

func newHost(t *testing.T, change func(*console.Options), config ...func(*apitoken.Config)) *host {
	t.Helper()
	x := &host{t: t, svc: apitokentest.New(t, append([]func(*apitoken.Config){func(c *apitoken.Config) { c.Scopes = scopes }}, config...)...)}
	o := console.Options{Base: "/account", SignIn: "/login?next=", Title: "Quayside", Example: "https://api.test/orders", Actor: x.actor, Faces: console.Self | console.Admin}
	if change != nil {
		change(&o)
	}
	h, err := console.New(x.svc.Service, o)
	require.NoError(t, err)
	t.Cleanup(func() { _ = h.Close() })
	x.h = h
	return x
}

func (x *host) actor(r *http.Request) (console.Actor, error) {
	name, role, _ := strings.Cut(r.Header.Get("X-User"), "/")
	if name == "" {
		return console.Actor{}, apitoken.ErrNoToken
	}
	a := console.Actor{Subject: name, Scopes: apitoken.Scopes{"orders"}, Grant: x.grant}
	switch role {
	case "reader":
		a.Admin = console.Reader
	case "operator":
		a.Admin = console.Operator
	}
	return a, nil
}

// answer is what a browser got.
type answer struct {
	*http.Response
	body string
}

func (x *host) do(r *http.Request) answer {
	x.t.Helper()
	w := httptest.NewRecorder()
	x.h.ServeHTTP(w, r)
	b, err := io.ReadAll(w.Result().Body)
	require.NoError(x.t, err)
	return answer{w.Result(), string(b)}
}

func (x *host) get(user, path string) answer {
	x.t.Helper()
	r := httptest.NewRequest("GET", "https://app.test/account"+path, nil)
	r.Header.Set("X-User", user)
	return x.do(r)
}

// post sends a form as a browser does from the console's own pages.
func (x *host) post(user, path string, form url.Values) answer {
	x.t.Helper()
	return x.do(x.form(user, path, form))
}

func (x *host) form(user, path string, form url.Values) *http.Request {
	r := httptest.NewRequest("POST", "https://app.test/account"+path, strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	r.Header.Set("X-User", user)
	return r
}

var (
	onceField  = regexp.MustCompile(`name="once" value="([A-Z2-7]{26})"`)
	secretText = regexp.MustCompile(`<div id="sec"[^>]*><code>([^<]+)</code>`)
	keyLink    = regexp.MustCompile(`href="/account/keys/([a-z0-9]{20,})"`)
)

func once(t *testing.T, a answer) string {
	t.Helper()
	m := onceField.FindStringSubmatch(a.body)
	require.NotNil(t, m, a.body)
	return m[1]
}

func secret(t *testing.T, a answer) string {
	t.Helper()
	m := secretText.FindStringSubmatch(a.body)
	require.NotNil(t, m, a.body)
	return html.UnescapeString(m[1])
}

// keyForm is a good form for a new key.
func keyForm(once, name string) url.Values {
	return url.Values{"once": {once}, "name": {name}, "scope": {"orders:read"}, "expires": {"720h0m0s"}}
}

func (x *host) newKey(user, name string) (key string, form url.Values) {
	x.t.Helper()
	form = keyForm(once(x.t, x.get(user, "/keys/new")), name)
	a := x.post(user, "/keys", form)
	require.Equal(x.t, 200, a.StatusCode, a.body)
	return secret(x.t, a), form
}

func (x *host) good(key string) error {
	_, err := x.svc.Validate(context.Background(), apitoken.Bearer(key))
	return err
}

func (x *host) keyID(subject string) string {
	x.t.Helper()
	for k, err := range x.svc.APIKeys.Of(context.Background(), subject, apitoken.Page{}) {
		require.NoError(x.t, err)
		return k.ID
	}
	x.t.Fatal("no key")
	return ""
}

func TestNewRefusesWhatWouldBeOpen(t *testing.T) {
	t.Parallel()
	svc := apitokentest.New(t, func(c *apitoken.Config) { c.Lifetimes.APIKey = 48 * time.Hour; c.Scopes = scopes })
	good := console.Options{Base: "/account", Actor: func(*http.Request) (console.Actor, error) { return console.Actor{}, nil }}
	_, err := console.New(svc.Service, good)
	require.NoError(t, err)
	for field, spoil := range map[string]func(*console.Options){
		"Actor":          func(o *console.Options) { o.Actor = nil },
		"Base":           func(o *console.Options) { o.Base = "" },
		"Base ":          func(o *console.Options) { o.Base = "account" },
		"Base  ":         func(o *console.Options) { o.Base = "/a/../b" },
		"Base   ":        func(o *console.Options) { o.Base = "/{x}" },
		"Faces":          func(o *console.Options) { o.Faces = 8 },
		"SignIn":         func(o *console.Options) { o.SignIn = "javascript:alert(1)//" },
		"Home":           func(o *console.Options) { o.Home = "//elsewhere.test" },
		"Stylesheet":     func(o *console.Options) { o.Stylesheet = "https://cdn.test/a.css" },
		"TrustedOrigins": func(o *console.Options) { o.TrustedOrigins = []string{"app.test"} },
		"Fresh":          func(o *console.Options) { o.Fresh = time.Minute },
		"Texts":          func(o *console.Options) { o.Texts = map[string]string{"No such text": ""} },
		"Texts ":         func(o *console.Options) { o.Texts = map[string]string{"from %s": "von"} },
		"Texts  ":        func(o *console.Options) { o.Texts = map[string]string{"from %s": "von %d"} },
		"Presets":        func(o *console.Options) { o.Presets = []console.Preset{{"All", apitoken.Scopes{"unknown"}}} },
		"Expiries":       func(o *console.Options) { o.Expiries = []time.Duration{72 * time.Hour} },
		"AllowNoExpiry":  func(o *console.Options) { o.AllowNoExpiry = true },
	} {
		o := good
		spoil(&o)
		_, err := console.New(svc.Service, o)
		var refused *apitoken.ConfigError
		require.ErrorAs(t, err, &refused, field)
		require.Equal(t, strings.TrimSpace(field), refused.Field)
		require.ErrorContains(t, err, strings.TrimSpace(field))
	}
	_, err = console.New(nil, good)
	require.Error(t, err)
}

func TestHeaders(t *testing.T) {
	t.Parallel()
	x := newHost(t, nil)
	for _, a := range []answer{x.get("alice", "/keys"), x.get("alice", "/nowhere"), x.get("", "/keys")} {
		require.Contains(t, a.Header.Get("Content-Security-Policy"), "default-src 'none'")
		require.NotContains(t, a.Header.Get("Content-Security-Policy"), "unsafe")
		require.Equal(t, "no-store", a.Header.Get("Cache-Control"))
		require.Equal(t, "nosniff", a.Header.Get("X-Content-Type-Options"))
		require.Equal(t, "same-origin", a.Header.Get("Referrer-Policy"), "no-referrer would make every form's origin null")
	}
	sheet := regexp.MustCompile(`href="/account(/static/console\.css\?v=[0-9a-f]+)"`).FindStringSubmatch(x.get("alice", "/keys").body)
	require.NotNil(t, sheet)
	a := x.get("", sheet[1])
	require.Equal(t, 200, a.StatusCode)
	require.Contains(t, a.Header.Get("Cache-Control"), "immutable")
	require.Equal(t, "no-cache", x.get("", "/static/console.css?v=old").Header.Get("Cache-Control"))
	require.Equal(t, 404, x.get("", "/static/../console.go").StatusCode)
	require.NotContains(t, x.get("alice", "/keys/new").body, "style=", "the policy would refuse it")
}

func TestWhoIsNotSignedInIsSentToTheLogin(t *testing.T) {
	t.Parallel()
	x := newHost(t, nil)
	a := x.get("", "/keys?after=x")
	require.Equal(t, 303, a.StatusCode)
	require.Equal(t, "/login?next=%2Faccount%2Fkeys%3Fafter%3Dx", a.Header.Get("Location"))
	a = x.post("", "/keys", keyForm(strings.Repeat("A", 26), "x"))
	require.Equal(t, 401, a.StatusCode, "a form's redirect would be refused by form-action: a link instead")
	require.Contains(t, a.body, `href="/login?next=%2Faccount%2F"`)

	// An Actor that names nobody lets nobody in, and a login that fails is told apart from one that says no.
	for want, answer := range map[int]error{303: nil, 503: apitoken.ErrUnavailable, 403: apitoken.ErrDenied, 500: errors.New("secret detail")} {
		x := newHost(t, func(o *console.Options) {
			o.Actor = func(*http.Request) (console.Actor, error) { return console.Actor{}, answer }
		})
		a := x.get("", "/keys")
		require.Equal(t, want, a.StatusCode)
		require.NotContains(t, a.body, "secret detail")
	}
}

func TestKeysOfOnesOwn(t *testing.T) {
	t.Parallel()
	x := newHost(t, nil)
	require.Contains(t, x.get("alice", "/keys").body, "No keys yet")

	key, form := x.newKey("alice", "warehouse-sync")
	require.NoError(t, x.good(key))
	a := x.post("alice", "/keys", form)
	require.Equal(t, 303, a.StatusCode, "loading the page again makes no second key")
	require.Equal(t, "/account/keys?done=already", a.Header.Get("Location"))
	a = x.get("alice", "/keys?done=already")
	require.Contains(t, a.body, "warehouse-sync")
	require.Contains(t, a.body, "That form was sent before")
	require.NotContains(t, a.body, key, "the secret is shown once")
	require.Len(t, keyLink.FindAllString(a.body, -1), 1)

	id := x.keyID("alice")
	require.Equal(t, 303, x.post("alice", "/keys/"+id+"/rename", url.Values{"name": {"sync on prod"}}).StatusCode)
	page := x.get("alice", "/keys/"+id)
	require.Contains(t, page.body, "<h1>sync on prod</h1>")
	require.Contains(t, page.body, "by you")

	form = url.Values{"once": {once(t, page)}, "overlap": {"24h"}}
	x.svc.Advance(time.Second)
	a = x.post("alice", "/keys/"+id+"/rotate", form)
	require.Equal(t, 200, a.StatusCode, a.body)
	next := secret(t, a)
	require.NoError(t, x.good(next))
	require.NoError(t, x.good(key), "the old key works on for the overlap")
	successor := x.keyID("alice")
	require.Contains(t, x.get("alice", "/keys/"+id).body, `<a href="/account/keys/`+successor+`">its successor</a>`)
	require.Contains(t, x.get("alice", "/keys/"+successor).body, `<a href="/account/keys/`+id+`">the key that it replaces</a>`)
	require.Equal(t, 303, x.post("alice", "/keys/"+id+"/rotate", form).StatusCode)
	x.svc.Advance(25 * time.Hour)
	require.ErrorIs(t, x.good(key), apitoken.ErrExpired)
	require.NoError(t, x.good(next))

	id = x.keyID("alice")
	require.Equal(t, 422, x.post("alice", "/keys/"+id+"/revoke", url.Values{}).StatusCode, "a reason is asked for")
	require.Equal(t, 303, x.post("alice", "/keys/"+id+"/revoke", url.Values{"reason": {"replaced"}}).StatusCode)
	require.ErrorIs(t, x.good(next), apitoken.ErrRevoked)
	require.Contains(t, x.get("alice", "/keys").body, "Revoked")
	require.Equal(t, 404, x.post("alice", "/keys/"+id+"/rotate", url.Values{"once": {strings.Repeat("B", 26)}, "overlap": {"0"}}).StatusCode)
}

func TestAKeyIsNarrowedInPlace(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	x := newHost(t, nil)
	form := keyForm(once(t, x.get("alice", "/keys/new")), "sync")
	form["scope"] = []string{"orders:read", "orders:write"}
	form.Set("expires", "8760h0m0s")
	a := x.post("alice", "/keys", form)
	require.Equal(t, 200, a.StatusCode, a.body)
	key, id := secret(t, a), x.keyID("alice")
	need := func(s apitoken.Scope) error {
		_, err := apitoken.Authorize(ctx, x.svc, apitoken.Bearer(key), apitoken.AllOf(s))
		return err
	}
	require.NoError(t, need("orders:read"))
	x.svc.Advance(91 * 24 * time.Hour)
	require.NoError(t, need("orders:read"))
	button := `name="scope" value="orders:write"><button class="btn sm" type="submit">Take them away`
	require.Eventually(t, func() bool { return strings.Contains(x.get("alice", "/keys/"+id).body, button) }, 10*time.Second, 10*time.Millisecond, "once uses are counted")
	require.Equal(t, 404, x.post("mallory", "/keys/"+id+"/narrow", url.Values{"scope": {"orders:write"}}).StatusCode)
	require.Equal(t, 303, x.post("alice", "/keys/"+id+"/narrow", url.Values{"scope": {"orders:write"}}).StatusCode)
	require.NoError(t, need("orders:read"), "the secret is the same")
	require.ErrorIs(t, need("orders:write"), apitoken.ErrInsufficientScope)
	require.Equal(t, 422, x.post("alice", "/keys/"+id+"/narrow", url.Values{"scope": {"orders:read"}}).StatusCode, "a key that may do nothing is no key")
}

func TestTheKeyFormSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	x := newHost(t, func(o *console.Options) {
		o.Presets = []console.Preset{{"Read only", apitoken.Scopes{"orders:read", "pay"}}}
	})
	first := once(t, x.get("alice", "/keys/new"))
	a := x.post("alice", "/keys", url.Values{"once": {first}, "name": {" "}, "expires": {"date"}, "date": {"2029-01-01"}, "max_uses": {"-1"}, "rate": {"x"}})
	require.Equal(t, 422, a.StatusCode)
	for _, want := range []string{`href="#name"`, `href="#scopes"`, `href="#date"`, `href="#uses"`, `href="#rate"`, `aria-invalid="true"`, `value="2029-01-01"`, `value="` + first + `"`} {
		require.Contains(t, a.body, want)
	}
	for _, q := range []url.Values{
		{"once": {first}, "name": {"x"}, "scope": {"pay"}, "expires": {"720h0m0s"}},            // not held
		{"once": {first}, "name": {"x"}, "scope": {"orders:read"}, "expires": {"never"}},       // not offered
		{"once": {first}, "name": {"x"}, "scope": {"orders:read"}, "expires": {"999999h0m0s"}}, // not offered
	} {
		require.Equal(t, 422, x.post("alice", "/keys", q).StatusCode, "%v", q)
	}
	q := keyForm("not-a-once", "x")
	require.Equal(t, 400, x.post("alice", "/keys", q).StatusCode)

	a = x.post("alice", "/keys/new", url.Values{"once": {first}, "name": {"kept"}, "preset": {"0"}})
	require.Equal(t, 200, a.StatusCode, "a preset ticks boxes and makes nothing")
	require.Contains(t, a.body, `value="orders:read" checked`)
	require.NotContains(t, a.body, `value="pay" checked`, "what the user does not hold stays off")
	require.Contains(t, a.body, `value="kept"`)
	require.Contains(t, x.get("alice", "/keys").body, "No keys yet")
}

func TestOtherPeoplesThingsDoNotExist(t *testing.T) {
	t.Parallel()
	x := newHost(t, nil)
	key, _ := x.newKey("alice", "mine")
	id := x.keyID("alice")
	unknown := x.get("bob", "/keys/06fs3fin0l4dmsglgdod4qd9kk")
	foreign := x.get("bob", "/keys/"+id)
	require.Equal(t, 404, foreign.StatusCode)
	require.Equal(t, unknown.body, foreign.body, "unknown and foreign look the same")
	o := strings.Repeat("C", 26)
	for path, form := range map[string]url.Values{
		"/rotate": {"once": {o}, "overlap": {"0"}}, "/rename": {"name": {"his"}}, "/revoke": {"reason": {"mine"}},
	} {
		require.Equal(t, 404, x.post("bob", "/keys/"+id+path, form).StatusCode, path)
	}
	require.NoError(t, x.good(key))

	issued, err := x.svc.Issue(context.Background(), apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"orders"}, Refresh: true})
	require.NoError(t, err)
	require.Equal(t, 404, x.post("bob", "/sessions/end", url.Values{"grant": {issued.Token.Grant()}}).StatusCode)
	require.NoError(t, x.good(issued.Access.Reveal()))
}

func TestSessions(t *testing.T) {
	t.Parallel()
	x := newHost(t, nil)
	open := func(agent string) *apitoken.Issued {
		ctx := apitoken.WithOrigin(context.Background(), apitoken.Origin{UserAgent: agent})
		i, err := x.svc.Issue(ctx, apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"orders"}, Refresh: true})
		require.NoError(t, err)
		return i
	}
	here, phone, cli := open("Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0"), open("Quayside/8.2 iOS/19.1"), open("quay-cli/2.4.1")
	x.grant = here.Token.Grant()
	key, _ := x.newKey("alice", "kept")

	a := x.get("alice", "/sessions")
	for _, want := range []string{"Firefox, Linux", "Quayside", "quay-cli", "This one"} {
		require.Contains(t, a.body, want)
	}
	require.Equal(t, 2, strings.Count(a.body, `name="grant"`), "this session has no button of its own")
	require.Equal(t, 303, x.post("alice", "/sessions/end", url.Values{"grant": {phone.Token.Grant()}}).StatusCode)
	require.ErrorIs(t, x.good(phone.Access.Reveal()), apitoken.ErrRevoked)
	require.NoError(t, x.good(cli.Access.Reveal()))

	require.Equal(t, 303, x.post("alice", "/sessions/end-others", nil).StatusCode)
	require.ErrorIs(t, x.good(cli.Access.Reveal()), apitoken.ErrRevoked)
	require.NoError(t, x.good(here.Access.Reveal()), "this session is spared")
	require.NoError(t, x.good(key), "and so are API keys")
	require.Equal(t, 303, x.post("alice", "/sessions/end-others", url.Values{"keys": {"1"}}).StatusCode)
	require.NoError(t, x.good(here.Access.Reveal()))
	require.ErrorIs(t, x.good(key), apitoken.ErrRevoked)

	x.grant = "" // a host with a login of its own
	require.Equal(t, 303, x.post("alice", "/sessions/end-others", nil).StatusCode)
	require.ErrorIs(t, x.good(here.Access.Reveal()), apitoken.ErrRevoked)
}

func TestFormsOfOtherOriginsAreRefused(t *testing.T) {
	t.Parallel()
	x := newHost(t, func(o *console.Options) { o.TrustedOrigins = []string{"https://partner.test"} })
	key, _ := x.newKey("alice", "mine")
	id := x.keyID("alice")
	send := func(header, value string) int {
		r := x.form("alice", "/keys/"+id+"/revoke", url.Values{"reason": {"x"}})
		r.Header.Del("Sec-Fetch-Site")
		r.Header.Set(header, value)
		return x.do(r).StatusCode
	}
	for _, h := range [][2]string{{"Sec-Fetch-Site", "cross-site"}, {"Sec-Fetch-Site", "same-site"}, {"Origin", "https://evil.test"}, {"Origin", "null"}} {
		require.Equal(t, 403, send(h[0], h[1]), "%v", h)
		require.NoError(t, x.good(key))
	}
	r := httptest.NewRequest("GET", "https://app.test/account/keys/"+id+"/revoke?reason=x", nil)
	r.Header.Set("X-User", "alice")
	require.Equal(t, 404, x.do(r).StatusCode, "a GET changes nothing")
	require.NoError(t, x.good(key))
	require.Equal(t, 303, send("Origin", "https://partner.test"), "an origin that the host trusts")
}

// hostile is text that would be markup, an attribute's end, a script, or a format of ours.
const hostile = `<script>alert(1)</script>"'><img src=x onerror=alert(1)>{{.}}%s**b**`

func TestHostileNamesAreText(t *testing.T) {
	t.Parallel()
	x := newHost(t, nil)
	ctx := apitoken.WithOrigin(context.Background(), apitoken.Origin{UserAgent: hostile, RequestID: hostile})
	user := `alice<b>"'&`
	i, err := x.svc.Issue(ctx, apitoken.Request{Subject: user, Scopes: apitoken.Scopes{"orders"}, Refresh: true})
	require.NoError(t, err)
	require.NoError(t, x.svc.Revoke(apitoken.WithActor(ctx, hostile), apitoken.ByToken(i.Token.ID()), hostile))
	_, form := x.newKey(user, hostile)
	id := x.keyID(user)
	a := x.post(user, "/keys", url.Values{"once": {form.Get("once")}, "name": {hostile}, "expires": {hostile}, "date": {hostile}, "max_uses": {hostile}, "scope": {hostile}})
	require.Equal(t, 422, a.StatusCode)
	plain(t, a.body)
	for _, path := range []string{"/keys", "/keys/" + id, "/sessions", "/keys/" + url.PathEscape(hostile), "/keys?after=" + url.QueryEscape(hostile), "/keys?done=" + url.QueryEscape(hostile)} {
		plain(t, x.get(user, path).body)
	}
	a = x.post(user, "/keys/"+id+"/rotate", url.Values{"once": {once(t, x.get(user, "/keys/"+id))}, "overlap": {"1h"}})
	require.Equal(t, 200, a.StatusCode)
	plain(t, a.body)
}

// plain fails if hostile became anything but text.
func plain(t *testing.T, body string) {
	t.Helper()
	require.NotContains(t, body, "<script>alert")
	require.NotContains(t, body, "<img")
	require.NotContains(t, body, "<b>\"")
	require.NotContains(t, body, "%!")
	require.NotContains(t, body, "ZgotmplZ")
	require.NotContains(t, body, "<strong>b</strong>")
}

func TestLimitsAreSaid(t *testing.T) {
	t.Parallel()
	x := newHost(t, nil, func(c *apitoken.Config) { c.Limits.APIKeysPerSubject = 1 })
	x.newKey("alice", "first")
	require.Contains(t, x.get("alice", "/keys").body, "1 of at most 1.")
	a := x.post("alice", "/keys", keyForm(strings.Repeat("D", 26), "second"))
	require.Equal(t, 429, a.StatusCode)
	require.Contains(t, a.body, "as many API keys as you may have")
}

func TestAnotherLanguage(t *testing.T) {
	t.Parallel()
	german := console.Texts()
	for id := range german {
		german[id] = "«" + id + "»" // every text, so that one that no map could replace shows
	}
	german["en"], german["API keys"], german["from %s"] = "de", "API-Schlüssel", "«von» %[1]s"
	german["**Copy it now.** It is stored as a hash, so nobody can show it again."] = "**Jetzt kopieren.** Niemand kann ihn noch einmal zeigen."
	x := newHost(t, func(o *console.Options) { o.Texts = german })
	a := x.get("alice", "/keys")
	require.Contains(t, a.body, `<html lang="de">`)
	require.Contains(t, a.body, "<h1>API-Schlüssel</h1>")
	a = x.post("alice", "/keys", keyForm(once(t, x.get("alice", "/keys/new")), "x"))
	require.Contains(t, a.body, "<strong>Jetzt kopieren.</strong>")
	for _, path := range []string{"/keys", "/keys/new", "/keys/" + x.keyID("alice"), "/sessions", "/nowhere"} {
		// What is left without tags, code and what a map has replaced are names and scopes of the test's own.
		body := regexp.MustCompile(`(?s)<code.*?</code>|<ul class="scopes">.*?</ul>|<title.*?</title>|<[^>]*>`).ReplaceAllString(x.get("alice", path).body, " ")
		for strings.Contains(body, "«") {
			shorter := regexp.MustCompile(`«[^«»]*»`).ReplaceAllString(body, "")
			require.NotEqual(t, body, shorter)
			body = shorter
		}
		for _, word := range strings.Fields(html.UnescapeString(body)) {
			known := regexp.MustCompile(`^(Quayside|alice|x|API-Schlüssel|·|[0-9:,.;…“”]+)$`).MatchString(word)
			require.True(t, known || strings.Contains("Everything about orders: See Place Pay", word), "%s: %q can't be replaced:\n%s", path, word, body)
		}
	}
}

// slowStore answers late or not at all, whatever the caller's context says.
type slowStore struct {
	store.Store
	down     atomic.Bool
	broken   atomic.Bool // it answers errors
	after    atomic.Bool // of the next API key that is written the answer is lost, and the store broken
	released chan struct{}
	once     sync.Once // closes released
}

var errDown = errors.New("the disk is gone")

func (s *slowStore) wait() error {
	if s.down.Load() {
		<-s.released
		return errDown
	}
	if s.broken.Load() {
		return errDown
	}
	return nil
}

func (s *slowStore) Get(ctx context.Context, kind store.Kind, id string) (store.Record, error) {
	if err := s.wait(); err != nil {
		return store.Record{}, err
	}
	return s.Store.Get(ctx, kind, id)
}

func (s *slowStore) List(ctx context.Context, q store.Query) (store.Page, error) {
	if err := s.wait(); err != nil {
		return store.Page{}, err
	}
	return s.Store.List(ctx, q)
}

func (s *slowStore) Apply(ctx context.Context, c *store.Change) (store.Commit, error) {
	if err := s.wait(); err != nil {
		return store.Commit{}, err
	}
	done, err := s.Store.Apply(ctx, c)
	if s.after.Load() && slices.ContainsFunc(c.Puts, func(p store.Put) bool { return p.Record.Kind == store.KindAPIKey }) {
		s.after.Store(false)
		s.broken.Store(true)
		return store.Commit{}, errDown
	}
	return done, err
}

func (s *slowStore) Follow(ctx context.Context, after store.Position, kinds []store.Kind, max int) (store.View, error) {
	if s.broken.Load() {
		return store.View{}, errDown
	}
	return s.Store.Follow(ctx, after, kinds, max)
}

// release lets everything that hangs fail.
func (s *slowStore) release() {
	s.down.Store(false)
	s.once.Do(func() { close(s.released) })
}

func slow(t *testing.T) (*slowStore, func(*apitoken.Config)) {
	s := &slowStore{Store: memstore.New(), released: make(chan struct{})}
	t.Cleanup(s.release)
	return s, func(c *apitoken.Config) { c.Store = s }
}

func TestAStoreThatHangsCostsAPageTwoSeconds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st, config := slow(t)
		x := newHost(t, nil, config)
		x.newKey("alice", "mine")
		id := x.keyID("alice")
		st.down.Store(true)
		for _, path := range []string{"/keys", "/keys/" + id, "/sessions"} {
			began := time.Now()
			a := x.get("alice", path)
			require.Less(t, time.Since(began), 2*time.Second, path)
			require.Equal(t, 503, a.StatusCode, path)
			require.NotEmpty(t, a.Header.Get("Retry-After"))
			require.NotContains(t, a.body, errDown.Error())
		}
		require.Equal(t, 200, x.get("alice", "/keys/new").StatusCode, "what needs no store is there")
		form := keyForm(strings.Repeat("E", 26), "second")
		began := time.Now()
		a := x.post("alice", "/keys", form)
		require.Less(t, time.Since(began), 2*time.Second)
		require.Equal(t, 503, a.StatusCode)
		require.Contains(t, a.body, `<input type="hidden" name="once" value="`+form.Get("once")+`">`, "the same form is offered again")
		require.Contains(t, a.body, `<input type="hidden" name="scope" value="orders:read">`)
	})
}

func TestAFormWhoseAnswerWasLostMakesOneKey(t *testing.T) {
	t.Parallel()
	st, config := slow(t)
	x := newHost(t, nil, config)
	live := func() (ids []string) {
		for k, err := range x.svc.APIKeys.Of(context.Background(), "alice", apitoken.Page{}) {
			require.NoError(t, err)
			if k.Replaced.IsZero() && !k.Revoked {
				ids = append(ids, k.ID)
			}
		}
		return ids
	}
	send := func(path string, form url.Values) answer {
		st.after.Store(true)
		a := x.post("alice", path, form)
		require.Equal(t, 503, a.StatusCode)
		require.Contains(t, a.body, "It is not known whether")
		st.broken.Store(false)
		require.Eventually(t, func() bool { // once the lost attempt's lease has been given back, or has run out
			x.svc.Advance(20 * time.Second)
			a = x.post("alice", path, form)
			return a.StatusCode == 200
		}, 20*time.Second, 10*time.Millisecond)
		require.NoError(t, x.good(secret(t, a)))
		return a
	}
	send("/keys", keyForm(strings.Repeat("F", 26), "once"))
	require.Len(t, live(), 1, "the key of the lost answer, whose secret nobody has, was replaced")

	send("/keys/"+live()[0]+"/rotate", url.Values{"once": {strings.Repeat("G", 26)}, "overlap": {"24h"}})
	require.Len(t, live(), 1)
}

func TestAServiceWhoseClockIsBehind(t *testing.T) {
	t.Parallel()
	x := newHost(t, nil, func(c *apitoken.Config) {
		c.Now = func() time.Time { return time.Now().Add(-100 * 24 * time.Hour) }
	})
	key, _ := x.newKey("alice", "mine")
	require.NoError(t, x.good(key))
	require.Equal(t, 200, x.get("alice", "/keys").StatusCode)
}
