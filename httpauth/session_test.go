package httpauth_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/apitokentest"
	"github.com/apitoken-go/apitoken/httpauth"
)

// signedIn returns a browser that has a session of alice's.
func signedIn(t *testing.T, web *httpauth.Session, r apitoken.Request) *browser {
	t.Helper()
	b := &browser{jar: map[string]string{}}
	r.Subject = "alice"
	w := b.do(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) { require.NoError(t, web.Start(w, req, r)) }), "POST", "/login", nil)
	require.Equal(t, 200, w.Code)
	return b
}

func (b *browser) copied() *browser {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := &browser{jar: map[string]string{}}
	for k, v := range b.jar {
		c.jar[k] = v
	}
	return c
}

func TestCookiesAreForOneSiteAndNoScript(t *testing.T) {
	t.Parallel()
	svc := apitokentest.New(t)
	for _, c := range []struct {
		o       httpauth.SessionOptions
		access  string
		secure  bool
		seconds int
	}{
		{httpauth.SessionOptions{}, "__Host-session", true, 0},
		{httpauth.SessionOptions{Name: "shop", MaxAge: time.Hour}, "__Host-shop", true, 3600},
		{httpauth.SessionOptions{Insecure: true}, "session", false, 0},
	} {
		web := httpauth.NewSession(svc, &c.o)
		for _, step := range []func(w http.ResponseWriter, r *http.Request) error{
			func(w http.ResponseWriter, r *http.Request) error {
				return web.Start(w, r, apitoken.Request{Subject: "alice"})
			},
			func(w http.ResponseWriter, r *http.Request) error { return web.End(w, r, "logout") },
		} {
			w := httptest.NewRecorder()
			require.NoError(t, step(w, httptest.NewRequest("POST", "/", nil)))
			list := w.Result().Cookies()
			require.Len(t, list, 2)
			require.Equal(t, c.access, list[0].Name)
			require.Equal(t, c.access+"-refresh", list[1].Name)
			for _, ck := range list {
				require.True(t, ck.HttpOnly)
				require.Equal(t, c.secure, ck.Secure)
				require.Equal(t, "/", ck.Path)
				require.Empty(t, ck.Domain, "__Host- forbids one")
				require.Equal(t, http.SameSiteLaxMode, ck.SameSite)
				if ck.Value != "" {
					require.Equal(t, c.seconds, ck.MaxAge)
				} else {
					require.Negative(t, ck.MaxAge)
				}
			}
			require.Equal(t, "no-store", w.Header().Get("Cache-Control"))
		}
	}
}

// What is reached through Session looks at cookies, all of it: nothing of Auth that does not shows through.
func TestSessionTables(t *testing.T) {
	t.Parallel()
	svc := apitokentest.New(t)
	web := httpauth.NewSession(svc, &httpauth.SessionOptions{Login: "/login?from=app"})
	b := signedIn(t, web, apitoken.Request{Scopes: apitoken.Scopes{"app"}})
	for name, h := range map[string]http.Handler{
		"mux":    web.Mux(map[string]httpauth.Route{"GET /page": {Needs: apitoken.AllOf("app"), Handler: hello}, "GET /admin": {Needs: apitoken.AllOf("admin"), Handler: hello}, "GET /open": {Needs: apitoken.Public(), Handler: hello}}),
		"routes": web.Routes(httpauth.Routes{"GET /page": apitoken.AllOf("app"), "GET /admin": apitoken.AllOf("admin"), "GET /open": apitoken.Public()})(hello),
	} {
		require.Equal(t, "hello, alice", b.do(h, "GET", "/page", nil).Body.String(), name)
		require.Equal(t, 403, b.do(h, "GET", "/admin", nil).Code, name)
		require.Equal(t, 404, b.do(h, "GET", "/other", nil).Code, name)
		require.Equal(t, 405, b.do(h, "POST", "/page", nil).Code, name)
		require.Equal(t, "hello, alice", b.do(h, "GET", "/open", nil).Body.String(), name)
		w := get(h, "/open", nil)
		require.Equal(t, "hello, whoever", w.Body.String(), name)
		require.Equal(t, []string{"Authorization", "Cookie"}, w.Header()["Vary"], name)
		require.Equal(t, "hello, alice", get(h, "/page", bearer(svc.Mint("alice", "app"))).Body.String(), "%s: and a header, where one came", name)
		require.Equal(t, 401, b.do(h, "GET", "/page", bearer("junk")).Code, "%s: which then counts alone", name)
		w = get(h, "/page", http.Header{"Accept": {"text/html"}})
		require.Equal(t, 303, w.Code, name)
		require.Equal(t, "/login?from=app&next=%2Fpage", w.Header().Get("Location"), name)
	}
	require.Equal(t, 400, b.do(web.Routes(httpauth.Routes{"/": apitoken.Public()})(hello), "GET", "/a;b", nil).Code)

	r := httptest.NewRequest("GET", "/page", nil)
	_, err := web.Check(r, apitoken.AllOf("app"))
	require.ErrorIs(t, err, apitoken.ErrNoToken)
	for name, value := range b.jar {
		r.AddCookie(&http.Cookie{Name: name, Value: value})
	}
	token, err := web.Check(r, apitoken.AllOf("app"))
	require.NoError(t, err)
	require.Equal(t, "alice", token.Subject())
	cross := r.Clone(context.Background())
	cross.Method = "POST"
	cross.Header.Set("Sec-Fetch-Site", "cross-site")
	_, err = web.Check(cross, apitoken.AllOf("app"))
	require.ErrorIs(t, err, apitoken.ErrDenied)
	svc.Advance(time.Hour)
	_, err = web.Check(r, apitoken.AllOf("app"))
	require.ErrorIs(t, err, apitoken.ErrExpired)
	r.Header.Set("Authorization", "Bearer "+svc.Mint("bob", "app"))
	token, err = web.Check(r, apitoken.AllOf("app"))
	require.NoError(t, err)
	require.Equal(t, "bob", token.Subject())
}

// Requests that another site made the browser send change nothing, whatever they are.
func TestOtherSites(t *testing.T) {
	t.Parallel()
	svc := apitokentest.New(t)
	web := httpauth.NewSession(svc, nil)
	b := signedIn(t, web, apitoken.Request{Scopes: apitoken.Scopes{"app"}})
	mux := http.NewServeMux()
	mux.HandleFunc("/login", func(w http.ResponseWriter, r *http.Request) {
		if err := web.Start(w, r, apitoken.Request{Subject: "mallory"}); err != nil {
			web.Error(w, r, err)
		}
	})
	mux.HandleFunc("/logout", func(w http.ResponseWriter, r *http.Request) {
		if err := web.End(w, r, "logout"); err != nil {
			web.Error(w, r, err)
		}
	})
	mux.Handle("/page", web.Require("app")(hello))
	mux.Handle("/open", web.Optional(hello))
	for _, header := range []http.Header{
		{"Sec-Fetch-Site": {"cross-site"}}, {"Sec-Fetch-Site": {"same-site"}}, {"Origin": {"https://evil.example.com"}}, {"Origin": {"null"}}, {"Origin": {"https://example.com:8443"}},
	} {
		for _, path := range []string{"/login", "/logout", "/page", "/open"} {
			for _, method := range []string{"POST", "PUT", "DELETE", "PATCH", "post"} {
				c := b.copied()
				w := c.do(mux, method, path, header)
				require.Equal(t, 403, w.Code, "%s %s %v", method, path, header)
				require.Empty(t, w.Result().Cookies(), "%s %s %v", method, path, header)
			}
		}
	}
	require.Equal(t, "hello, alice", b.do(mux, "GET", "/page", http.Header{"Sec-Fetch-Site": {"cross-site"}}).Body.String(), "a link from elsewhere")
	require.Equal(t, 200, b.do(mux, "POST", "/page", http.Header{"Origin": {"https://example.com"}}).Code, "its own page")
}

// A planted cookie takes no session over and keeps none alive.
func TestPlantedCookies(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := apitokentest.New(t)
	web := httpauth.NewSession(svc, &httpauth.SessionOptions{Insecure: true}) // without __Host-, where planting is possible at all
	alice := signedIn(t, web, apitoken.Request{})
	mallory, err := svc.Issue(ctx, apitoken.Request{Subject: "mallory", Refresh: true})
	require.NoError(t, err)
	request := func(first, second map[string]string) *http.Request {
		r := httptest.NewRequest("POST", "/", nil)
		for _, jar := range []map[string]string{first, second} {
			for name, value := range jar {
				r.AddCookie(&http.Cookie{Name: name, Value: value})
			}
		}
		return r
	}
	planted := map[string]string{"session": mallory.Access.Reveal(), "session-refresh": mallory.Refresh.Reveal()}
	page := web.Authenticated(hello)
	for _, r := range []*http.Request{request(alice.jar, planted), request(planted, alice.jar)} {
		w := httptest.NewRecorder()
		page.ServeHTTP(w, r)
		require.Equal(t, 401, w.Code, "nobody can tell which is hers")
	}
	// Its owner logs out all the same, whatever else is in the jar.
	heap := request(planted, alice.jar)
	for range 100 {
		heap.AddCookie(&http.Cookie{Name: "session-refresh", Value: "junk"})
	}
	w := httptest.NewRecorder()
	require.NoError(t, web.End(w, heap, "logout"))
	require.Len(t, w.Result().Cookies(), 2)
	require.Equal(t, 401, alice.do(page, "GET", "/", nil).Code)
	live := 0
	for _, err := range svc.Grants(ctx, apitoken.Everything(), apitoken.Page{}) {
		require.NoError(t, err)
		live++
	}
	require.Zero(t, live, "and so is the session that was planted")

	// Two cookies of two sessions: a logout ends both.
	one, two := signedIn(t, web, apitoken.Request{}), signedIn(t, web, apitoken.Request{})
	r := request(map[string]string{"session": one.jar["session"], "session-refresh": two.jar["session-refresh"]}, nil)
	require.NoError(t, web.End(httptest.NewRecorder(), r, "logout"))
	require.Equal(t, 401, one.do(page, "GET", "/", nil).Code)
	require.Equal(t, 401, two.do(page, "GET", "/", nil).Code)
}

// gone is a service whose store cannot be reached for what changes anything.
type gone struct{ *apitokentest.Service }

func (gone) Revoke(context.Context, apitoken.Target, string) error {
	return &apitoken.Error{Code: apitoken.ErrUnavailable}
}

func (gone) Refresh(context.Context, apitoken.RefreshRequest) (*apitoken.Issued, error) {
	return nil, &apitoken.Error{Code: apitoken.ErrUnavailable, RetryAfter: 3 * time.Second}
}

func TestLogoutClearsCookiesAlsoWhenTheStoreIsGone(t *testing.T) {
	t.Parallel()
	svc := apitokentest.New(t)
	b := signedIn(t, httpauth.NewSession(svc, nil), apitoken.Request{})
	kept := b.copied()
	web := httpauth.NewSession(gone{svc}, nil)
	w := b.do(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		require.ErrorIs(t, web.End(w, r, "logout"), apitoken.ErrUnavailable)
	}), "POST", "/", nil)
	require.Empty(t, b.jar)
	require.Len(t, w.Result().Cookies(), 2)

	// A page meanwhile says so, and keeps its cookies for later.
	svc.Advance(time.Hour)
	for _, h := range []http.Handler{web.Authenticated(hello), web.Optional(hello)} {
		w = kept.do(h, "GET", "/", http.Header{"Accept": {"text/html"}})
		require.Equal(t, 503, w.Code)
		require.Equal(t, "3", w.Header().Get("Retry-After"))
		require.Empty(t, w.Result().Cookies())
	}
}

// A hook of the host's that panics ends its own request, not the program: the refresh runs in a goroutine of its own.
func TestPanicInARefreshIsTheRequests(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var what any = "boom"
	svc := apitokentest.New(t, func(c *apitoken.Config) {
		c.MayContinue = func(context.Context, apitoken.Grant) error {
			mu.Lock()
			defer mu.Unlock()
			if err, ok := what.(error); ok || what == nil {
				return err
			}
			panic(what)
		}
	})
	web := httpauth.NewSession(svc, nil)
	b := signedIn(t, web, apitoken.Request{})
	svc.Advance(time.Hour)
	page := web.Authenticated(hello)
	require.Equal(t, 503, b.copied().do(page, "GET", "/", nil).Code)
	require.Equal(t, 503, b.copied().do(page, "GET", "/", nil).Code, "and the next one asks again")
	mu.Lock()
	what = nil
	mu.Unlock()
	require.Equal(t, "hello, alice", b.do(page, "GET", "/", nil).Body.String())
	svc.Advance(time.Hour)
	mu.Lock()
	what = errors.New("left the company")
	mu.Unlock()
	require.Equal(t, 401, b.do(page, "GET", "/", nil).Code)
	require.Empty(t, b.jar)
}

// The tab that asked first closes; the others get what it had asked for.
func TestTheFirstTabMayClose(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		asked, answer := make(chan struct{}), make(chan struct{})
		svc := apitokentest.New(t, func(c *apitoken.Config) {
			c.MayContinue = func(context.Context, apitoken.Grant) error {
				close(asked) // a second call would panic
				<-answer
				return nil
			}
		})
		web := httpauth.NewSession(svc, nil)
		b := signedIn(t, web, apitoken.Request{})
		svc.Advance(time.Hour)
		page := web.Authenticated(hello)
		tab := func(ctx context.Context) <-chan *httptest.ResponseRecorder {
			done := make(chan *httptest.ResponseRecorder, 1)
			r := httptest.NewRequest("GET", "/", nil).WithContext(ctx)
			for k, v := range b.jar {
				r.AddCookie(&http.Cookie{Name: k, Value: v})
			}
			go func() {
				w := httptest.NewRecorder()
				page.ServeHTTP(w, r)
				done <- w
			}()
			return done
		}
		ctx, closeTab := context.WithCancel(context.Background())
		first := tab(ctx)
		<-asked
		second := tab(context.Background())
		synctest.Wait()
		closeTab()
		require.Equal(t, 503, (<-first).Code)
		close(answer)
		w := <-second
		require.Equal(t, "hello, alice", w.Body.String())
		require.Len(t, w.Result().Cookies(), 2)
	})
}

func TestSessionStripsItsOwnCookiesOnly(t *testing.T) {
	t.Parallel()
	svc := apitokentest.New(t)
	web := httpauth.NewSession(svc, &httpauth.SessionOptions{Options: httpauth.Options{StripCredential: true}})
	b := signedIn(t, web, apitoken.Request{})
	b.jar["theme"] = "dark"
	h := web.Authenticated(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write([]byte(strings.Join(r.Header["Cookie"], "|")))
	}))
	require.Equal(t, "theme=dark", b.do(h, "GET", "/", nil).Body.String())
	delete(b.jar, "theme")
	require.Empty(t, b.do(h, "GET", "/", nil).Body.String())
}

// A browser drops a cookie that is too long without a word: the login says so instead.
func TestTooLongForACookie(t *testing.T) {
	t.Parallel()
	svc := apitokentest.New(t)
	web := httpauth.NewSession(svc, nil)
	w := httptest.NewRecorder()
	err := web.Start(w, httptest.NewRequest("POST", "/", nil), apitoken.Request{Subject: "alice", Claims: map[string]string{"note": strings.Repeat("x", 3500)}})
	require.ErrorIs(t, err, apitoken.ErrInvalidRequest)
	require.Empty(t, w.Result().Cookies())
	for g, err := range svc.Grants(context.Background(), apitoken.Everything(), apitoken.Page{}) {
		require.NoError(t, err)
		t.Errorf("session %s is left open", g.ID)
	}
}

func TestNextStaysHere(t *testing.T) {
	t.Parallel()
	web := httpauth.NewSession(apitokentest.New(t), nil)
	for next, want := range map[string]string{
		"/orders?page=2#top": "/orders?page=2#top", "/": "/", "/a//b": "/a//b", "/é": "/é", "/a%2Fb": "/a%2Fb", "/x?y=https://evil.example.com": "/x?y=https://evil.example.com",
		"": "/", "orders": "/", "https://evil.example.com": "/", "//evil.example.com": "/", `/\evil.example.com`: "/", `\\evil.example.com`: "/", "/\t/evil.example.com": "/", "/\n/evil": "/",
		" //evil": "/", "javascript:alert(1)": "/", "/a b": "/", "/%zz": "/", "///evil": "/", "/\x00": "/",
	} {
		require.Equal(t, want, web.Next(httptest.NewRequest("GET", "/login?next="+url.QueryEscape(next), nil)), "%q", next)
		form := httptest.NewRequest("POST", "/login", strings.NewReader(url.Values{"next": {next}}.Encode()))
		form.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		require.Equal(t, want, web.Next(form), "%q", next)
	}
	require.Equal(t, "/", web.Next(httptest.NewRequest("GET", "/login", nil)))
}
