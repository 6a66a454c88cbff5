package httpauth_test

import (
	"context"
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/apitokentest"
	"github.com/apitoken-go/apitoken/httpauth"
)

func basic(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

// A service that is replaced took its keys in other headers; its clients go on sending them there.
func TestSources(t *testing.T) {
	t.Parallel()
	svc := apitokentest.New(t)
	_, secret, err := svc.APIKeys.Create(context.Background(), apitoken.APIKeyRequest{Subject: "alice", Name: "ci", Scopes: apitoken.Scopes{"app"}})
	require.NoError(t, err)
	key, token := secret.Reveal(), svc.Mint("alice", "app")
	word := func(v string) string { _, rest, _ := strings.Cut(v, "token="); return rest }
	all := []httpauth.Source{{Header: "x-api-key"}, httpauth.BasicSource(), {Header: "X-Old", Token: word}}
	var seen http.Header
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { seen = r.Header; hello(w, r) })
	var logged *http.Request
	auth := httpauth.New(svc, &httpauth.Options{Sources: all, StripCredential: true, OnRefuse: func(r *http.Request, _ error) { logged = r }})
	plain := httpauth.New(svc, nil)
	for name, c := range map[string]struct {
		header http.Header
		want   int
		none   bool // to an Auth without sources it is no credential
	}{
		"its header":                 {http.Header{"X-Api-Key": {key}}, 200, true},
		"a JWT in its header":        {http.Header{"X-Api-Key": {token}}, 200, true},
		"Basic, as user":             {http.Header{"Authorization": {basic(key, "")}}, 200, true},
		"Basic, as password":         {http.Header{"Authorization": {basic("api", key)}}, 200, true},
		"basic in lower case":        {http.Header{"Authorization": {strings.Replace(basic(key, ""), "Basic", "basic", 1)}}, 200, true},
		"Basic that is no base64":    {http.Header{"Authorization": {"Basic %%%"}}, 401, true},
		"a form of its own":          {http.Header{"X-Old": {"v=1;token=" + key}}, 200, true},
		"none in a form":             {http.Header{"X-Old": {"v=1"}}, 401, true},
		"Bearer as ever":             {http.Header{"Authorization": {"Bearer " + key}}, 200, false},
		"junk":                       {http.Header{"X-Api-Key": {"junk"}}, 401, true},
		"empty":                      {http.Header{"X-Api-Key": {""}}, 401, true},
		"no token68":                 {http.Header{"X-Api-Key": {"a key"}}, 400, true},
		"its header twice":           {http.Header{"X-Api-Key": {key, key}}, 400, true},
		"two places":                 {http.Header{"X-Api-Key": {key}, "Authorization": {"Bearer " + token}}, 400, false},
		"two places, one credential": {http.Header{"X-Api-Key": {key}, "Authorization": {"Bearer " + key}}, 400, false},
		"two sources":                {http.Header{"X-Api-Key": {key}, "X-Old": {"token=" + key}}, 400, true},
		"nothing":                    {http.Header{}, 401, true},
	} {
		seen, logged = nil, nil
		w := get(auth.Authenticated(handler), "/", c.header)
		require.Equal(t, c.want, w.Code, name)
		if c.none {
			require.Equal(t, 401, get(plain.Authenticated(hello), "/", c.header).Code, name)
		}
		if w.Code == 200 {
			require.Equal(t, "hello, alice", w.Body.String(), name)
			require.Empty(t, seen["X-Api-Key"], "%s: the handler sees no credential", name)
			require.Empty(t, seen["X-Old"], name)
			require.Empty(t, seen["Authorization"], name)
		} else {
			for _, v := range logged.Header {
				require.NotContains(t, strings.Join(v, " "), key, name)
			}
			require.NotEmpty(t, w.Header().Get("WWW-Authenticate"), name)
		}
		require.Subset(t, w.Header()["Vary"], []string{"Authorization", "X-Api-Key", "X-Old"}, name)
	}
	require.Equal(t, 400, get(auth.Authenticated(hello), "/?access_token=x", http.Header{"X-Api-Key": {key}}).Code)

	for name, bad := range map[string]httpauth.Source{
		"no name": {}, "a cookie": {Header: "cookie"}, "the proof": {Header: "DPoP"}, "two words": {Header: "X Key"}, "a scheme unknown": {Header: "authorization"},
	} {
		require.Panics(t, func() { httpauth.New(svc, &httpauth.Options{Sources: []httpauth.Source{bad}}) }, name)
	}
}

// What a browser sends by itself counts from this origin only, Basic like a cookie; what only a program sends counts from all.
func TestSourcesOfASession(t *testing.T) {
	t.Parallel()
	svc := apitokentest.New(t)
	web := httpauth.NewSession(svc, &httpauth.SessionOptions{Options: httpauth.Options{Sources: []httpauth.Source{{Header: "X-API-Key"}, httpauth.BasicSource()}}})
	token := svc.Mint("alice", "app")
	h := web.Require("app")(hello)
	for site, want := range map[string]int{"same-origin": 200, "cross-site": 403} {
		for _, header := range []http.Header{{"Authorization": {basic("", token)}}, {"X-Api-Key": {token}}} {
			want := want
			if header["X-Api-Key"] != nil {
				want = 200
			}
			header.Set("Sec-Fetch-Site", site)
			r := httptest.NewRequest("POST", "/", nil)
			r.Header = header
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			require.Equal(t, want, w.Code, "%s %v", site, header)
			_, err := web.Check(r, apitoken.AllOf("app"))
			require.Equal(t, want == 200, err == nil, "%s %v", site, header)
		}
	}
}

// A page of another origin that the service trusts logs in and posts; one that it does not trust is told why not.
func TestTrustedOrigins(t *testing.T) {
	t.Parallel()
	svc := apitokentest.New(t)
	web := httpauth.NewSession(svc, &httpauth.SessionOptions{TrustedOrigins: []string{"https://app.example.com"}})
	mux := http.NewServeMux()
	mux.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) {
		if err := web.Start(w, r, apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"app"}}); err != nil {
			web.Error(w, r, err)
		}
	})
	mux.Handle("POST /orders", web.Require("app")(hello))
	mux.HandleFunc("POST /logout", func(w http.ResponseWriter, r *http.Request) {
		if err := web.End(w, r, "logout"); err != nil {
			web.Error(w, r, err)
		}
	})
	from := func(origin, site string) http.Header {
		return http.Header{"Origin": {origin}, "Sec-Fetch-Site": {site}}
	}
	b := &browser{jar: map[string]string{}}
	app := from("https://app.example.com", "same-site")
	require.Equal(t, 200, b.do(mux, "POST", "/login", app).Code)
	require.Equal(t, 200, b.do(mux, "POST", "/orders", app).Code)
	for name, h := range map[string]http.Header{
		"another host": from("https://blog.example.com", "same-site"), "another scheme": from("http://app.example.com", "cross-site"),
		"another port": from("https://app.example.com:8443", "same-site"), "another site": from("https://evil.example", "cross-site"), "an opaque one": from("null", "cross-site"),
	} {
		for _, path := range []string{"/login", "/orders", "/logout"} {
			w := b.do(mux, "POST", path, h)
			require.Equal(t, 403, w.Code, "%s %s", name, path)
			require.Contains(t, w.Body.String(), "origin", "%s %s: the answer says what is wrong", name, path)
			require.NotContains(t, w.Body.String(), h.Get("Origin")+`"`, name)
		}
	}
	require.Equal(t, 200, b.do(mux, "POST", "/logout", app).Code)
	require.Equal(t, 401, b.do(mux, "POST", "/orders", app).Code)

	_, err := web.Check(&http.Request{Method: "POST", URL: &url.URL{Path: "/"}, Header: from("https://evil.example", "cross-site")}, apitoken.Authenticated())
	require.ErrorIs(t, err, apitoken.ErrDenied)
	var e *apitoken.Error
	require.ErrorAs(t, err, &e)
	require.Contains(t, e.Detail, "TrustedOrigins", "an operator reads which option it is")
	for _, bad := range []string{"app.example.com", "https://app.example.com/", "https://app.example.com/x", "", "*"} {
		require.Panics(t, func() { httpauth.NewSession(svc, &httpauth.SessionOptions{TrustedOrigins: []string{bad}}) }, bad)
	}
}

// Logging out works after the access token has expired, and ends the refresh token.
func TestLogout(t *testing.T) {
	t.Parallel()
	svc := apitokentest.New(t)
	auth := httpauth.New(svc, &httpauth.Options{Sources: []httpauth.Source{{Header: "X-API-Key"}}})
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := httpauth.Logout(auth, svc, r, "logout"); err != nil {
			auth.Error(w, r, err)
		}
	})
	login := func() *apitoken.Issued {
		i, err := svc.Issue(t.Context(), apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"app"}, Refresh: true})
		require.NoError(t, err)
		return i
	}
	ended := func(i *apitoken.Issued, why string) {
		t.Helper()
		_, err := svc.Refresh(t.Context(), apitoken.RefreshRequest{Token: i.Refresh.Reveal()})
		require.ErrorIs(t, err, apitoken.ErrInvalidGrant, why)
		_, err = svc.Validate(t.Context(), apitoken.Bearer(i.Access.Reveal()))
		require.ErrorIs(t, err, apitoken.ErrInvalidToken, why)
	}
	fresh := login()
	require.Equal(t, 200, get(h, "/", bearer(fresh.Access.Reveal())).Code)
	ended(fresh, "with a good token")
	require.Equal(t, 200, get(h, "/", bearer(fresh.Access.Reveal())).Code, "twice is no error")

	late, byRefresh := login(), login()
	svc.Advance(2 * time.Hour)
	_, err := svc.Validate(t.Context(), apitoken.Bearer(late.Access.Reveal()))
	require.ErrorIs(t, err, apitoken.ErrExpired)
	require.Equal(t, 200, get(h, "/", bearer(late.Access.Reveal())).Code)
	ended(late, "with an expired token")
	require.Equal(t, 200, get(h, "/", bearer(byRefresh.Refresh.Reveal())).Code)
	ended(byRefresh, "with the refresh token")

	key, secret, err := svc.APIKeys.Create(t.Context(), apitoken.APIKeyRequest{Subject: "alice", Name: "ci"})
	require.NoError(t, err)
	require.Equal(t, 400, get(h, "/", bearer(secret.Reveal())).Code)
	require.Equal(t, 400, get(h, "/", http.Header{"X-Api-Key": {secret.Reveal()}}).Code)
	_, err = svc.Validate(t.Context(), apitoken.Bearer(secret.Reveal()))
	require.NoError(t, err, "%s: a logout ends no API key", key.ID)
	require.Equal(t, 401, get(h, "/", nil).Code)
	require.Equal(t, 401, get(h, "/", bearer("junk")).Code)
	require.Equal(t, 401, get(h, "/", bearer(apitokentest.New(t).Mint("alice", "app"))).Code, "of another service")
}

// deadlines notes the read deadline that was set.
type deadlines struct {
	*httptest.ResponseRecorder
	at []time.Time
}

func (d *deadlines) SetReadDeadline(t time.Time) error { d.at = append(d.at, t); return nil }

// A refused request whose body does not come must not hold its connection; one that is let through is the handler's to read.
func TestARefusalBoundsTheBody(t *testing.T) {
	t.Parallel()
	svc := apitokentest.New(t)
	auth := httpauth.New(svc, nil)
	web := httpauth.NewSession(svc, &httpauth.SessionOptions{Login: "/login"})
	for name, h := range map[string]http.Handler{
		"guard": auth.Require("app")(hello), "routes": auth.Routes(httpauth.Routes{"GET /page": apitoken.Public()})(hello), "session": web.Require("app")(hello),
	} {
		for method, body := range map[string]string{"POST": "abc", "GET": ""} {
			w := &deadlines{ResponseRecorder: httptest.NewRecorder()}
			r := httptest.NewRequest(method, "/other", strings.NewReader(body))
			if body == "" {
				r = httptest.NewRequest(method, "/other", nil)
			}
			h.ServeHTTP(w, r)
			require.GreaterOrEqual(t, w.Code, 400, name)
			require.Equal(t, body != "", len(w.at) > 0, "%s %s", name, method)
		}
	}
	w := &deadlines{ResponseRecorder: httptest.NewRecorder()}
	r := httptest.NewRequest("GET", "/other", strings.NewReader("abc"))
	r.Header.Set("Accept", "text/html")
	web.Require("app")(hello).ServeHTTP(w, r)
	require.Equal(t, 303, w.Code)
	require.NotEmpty(t, w.at)
	w = &deadlines{ResponseRecorder: httptest.NewRecorder()}
	auth.Optional(hello).ServeHTTP(w, httptest.NewRequest("POST", "/", strings.NewReader("abc")))
	require.Equal(t, 200, w.Code)
	require.Empty(t, w.at)
}
