package httpauth_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/httpauth"
)

// raw sends bytes as they are to a real server, and returns the answer.
func raw(t *testing.T, srv *httptest.Server, request string) *http.Response {
	t.Helper()
	conn, err := net.Dial("tcp", srv.Listener.Addr().String())
	require.NoError(t, err)
	defer conn.Close()
	_, err = io.WriteString(conn, request)
	require.NoError(t, err)
	method, _, _ := strings.Cut(request, " ")
	res, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	require.NoError(t, err)
	body, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())
	res.Body = io.NopCloser(strings.NewReader(string(body)))
	return res
}

// TestShapesOfAHeader has whatever a client, a proxy or an attacker makes of the Authorization header, over the wire.
func TestShapesOfAHeader(t *testing.T) {
	t.Parallel()
	svc := newService(t, nil)
	good := mint(t, svc, "orders:read")
	auth := httpauth.New(svc, &httpauth.Options{BaseURL: "https://api.example.com"})
	mux := http.NewServeMux()
	mux.Handle("/", auth.Require("orders:read")(hello))
	mux.Handle("/open", auth.Optional(hello))
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	const open = -1 // 401 where a token is required; as nobody where it is not
	for name, c := range map[string]struct {
		lines string // %s: the token
		want  int
	}{
		"plain":                     {"Authorization: Bearer %s", 200},
		"lower case":                {"authorization: bearer %s", 200},
		"upper case":                {"AUTHORIZATION: BEARER %s", 200},
		"more spaces":               {"Authorization: Bearer    %s", 200},
		"around it":                 {"Authorization: \t Bearer %s \t ", 200},
		"tab":                       {"Authorization: Bearer\t%s", 400},
		"space and tab":             {"Authorization: Bearer \t%s", 400},
		"tab within":                {"Authorization: Bearer %s\tx", 400},
		"nothing":                   {"Authorization:", open},
		"scheme alone":              {"Authorization: Bearer", 400},
		"no space":                  {"Authorization: Bearer%s", open},
		"colon":                     {"Authorization: Bearer: %s", open},
		"equals":                    {"Authorization: Bearer=%s", open},
		"token alone":               {"Authorization: %s", open},
		"twice in one":              {"Authorization: Bearer Bearer %s", 400},
		"two headers":               {"Authorization: Bearer %s\r\nAuthorization: Bearer %[1]s", 400},
		"two headers, one of Basic": {"Authorization: Basic YTpi\r\nAuthorization: Bearer %s", 400},
		"two headers, one empty":    {"Authorization: Bearer %s\r\nAuthorization:", 400},
		"two headers, two cases":    {"authorization: Bearer %s\r\nAUTHORIZATION: Bearer %[1]s", 400},
		"joined":                    {"Authorization: Bearer %s, Bearer %[1]s", 400},
		"joined behind Basic":       {"Authorization: Basic YTpi, Bearer %s", 400},
		"joined before Basic":       {"Authorization: Bearer %s, Basic YTpi", 400},
		"joined behind Digest":      {`Authorization: Digest username="a",nonce="b",bearer %s`, 400},
		"Digest":                    {`Authorization: Digest username="a", nonce="b"`, open},
		"comma at the end":          {"Authorization: Bearer %s,", 400},
		"comma alone":               {"Authorization: ,Bearer %s", 400},
		"quoted":                    {`Authorization: Bearer "%s"`, 400},
		"as a parameter":            {`Authorization: Bearer token="%s"`, 400},
		"percent":                   {"Authorization: Bearer %%41%s", 400},
		"latin 1":                   {"Authorization: Bearer \xe9%s", 400},
		"padded":                    {"Authorization: Bearer %s=", 401},
		"another":                   {"Authorization: Bearer junk", 401},
		"giant":                     {"Authorization: Bearer %s" + strings.Repeat("A", 256<<10), 401},
		"giant, no token68":         {"Authorization: Bearer %s" + strings.Repeat("\"", 256<<10), 400},
		"giant scheme":              {"Authorization: " + strings.Repeat("A", 256<<10) + " %s", open},
		"DPoP without a proof":      {"Authorization: DPoP %s", 401},
		"DPoP, proof empty":         {"Authorization: DPoP %s\r\nDPoP:", 401},
		"DPoP, two proofs":          {"Authorization: DPoP %s\r\nDPoP: a\r\nDPoP: a", 401},
		"DPoP, proofs joined":       {"Authorization: DPoP %s\r\nDPoP: a, a", 401},
		"Bearer and a proof":        {"Authorization: Bearer %s\r\nDPoP: a", 200}, // the scheme decides, the proof is of nothing
		"proof alone":               {"DPoP: a", open},
		"in a cookie":               {"Cookie: access_token=%s", open},
		"as a proxy's":              {"Proxy-Authorization: Bearer %s", open},
		"as another's":              {"X-Authorization: Bearer %s", open},
	} {
		lines := c.lines
		if strings.Contains(lines, "%s") {
			lines = fmt.Sprintf(lines, good)
		}
		for path, optional := range map[string]bool{"/": false, "/open": true} {
			want := c.want
			if want == open {
				want = 401
				if optional {
					want = 200
				}
			}
			res := raw(t, srv, "GET "+path+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"+lines+"\r\n\r\n")
			require.Equal(t, want, res.StatusCode, "%s at %s", name, path)
			require.Equal(t, "Authorization", res.Header.Get("Vary"), name)
			body, err := io.ReadAll(res.Body)
			require.NoError(t, err)
			if want == 200 {
				require.Equal(t, c.want == 200, strings.Contains(string(body), "alice"), "%s at %s: %s", name, path, body)
				continue
			}
			require.NotEmpty(t, res.Header.Values("WWW-Authenticate"), name)
			require.Equal(t, "no-store", res.Header.Get("Cache-Control"), name)
			require.NotContains(t, string(body), good, name)
		}
	}
	// RFC 6750 §2: one way only. Names are compared after decoding, as whoever reads the query does.
	for query, want := range map[string]int{
		"access_token=x": 400, "a=b&access_token=": 400, "access_token": 400, "access%5Ftoken=x": 400, "%61ccess_toke%6e": 400, "%61%63%63%65%73%73%5f%74%6f%6b%65%6e=x": 400,
		"xaccess_token=x": 200, "Access_Token=x": 200, "a=access_token": 200, "a=%26access_token": 200, "access_token%00=x": 200, "access%zztoken=x": 200, "": 200,
	} {
		require.Equal(t, want, get(mux, "/?"+query, bearer(good)).Code, query)
		require.Equal(t, 401, get(mux, "/?"+query, nil).Code, query)
	}
	body := httptest.NewRequest("POST", "/", strings.NewReader("access_token="+good))
	body.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	w := httptest.NewRecorder()
	mux.ServeHTTP(w, body)
	require.Equal(t, 401, w.Code, "RFC 6750 §2.2 is not taken")
}

// Every error of the package answers as RFC 9110, 6750 and 9449 demand, whatever was asked for and however it came.
func TestWhatEveryAnswerHas(t *testing.T) {
	t.Parallel()
	svc := newService(t, nil)
	all := []error{apitoken.ErrInvalidToken, apitoken.ErrExpired, apitoken.ErrRevoked, apitoken.ErrNoToken, apitoken.ErrInvalidRequest, apitoken.ErrInsufficientScope, apitoken.ErrInvalidClient,
		apitoken.ErrInvalidGrant, apitoken.ErrInvalidScope, apitoken.ErrInvalidTarget, apitoken.ErrDenied, apitoken.ErrLimited, apitoken.ErrUnavailable, apitoken.ErrNotFound, apitoken.ErrInvalidProof,
		apitoken.ErrUseNonce, errors.New("disk"), fmt.Errorf("more: %w", apitoken.ErrExpired)}
	for _, o := range []*httpauth.Options{nil, {BaseURL: "https://api.example.com", Realm: "r"}} {
		auth := httpauth.New(svc, o)
		for _, err := range all {
			for _, header := range []string{"", "Bearer x", "DPoP x", "Basic YTpi"} {
				for _, method := range []string{"GET", "HEAD", "OPTIONS"} {
					r := httptest.NewRequest(method, "/", nil)
					if header != "" {
						r.Header.Set("Authorization", header)
					}
					w := httptest.NewRecorder()
					auth.Error(w, r, err)
					what := fmt.Sprintf("%v for %s %q: %v", err, method, header, w.Header())
					require.Equal(t, "no-store", w.Header().Get("Cache-Control"), what)
					require.Equal(t, "Authorization", w.Header().Get("Vary"), what)
					require.Equal(t, "application/problem+json", w.Header().Get("Content-Type"), what)
					require.Equal(t, method == "HEAD", w.Body.Len() == 0, what)
					challenges := w.Header().Values("WWW-Authenticate")
					switch w.Code {
					case 401:
						require.NotEmpty(t, challenges, what)
					case 400:
						require.Equal(t, errors.Is(err, apitoken.ErrInvalidRequest), len(challenges) == 1, what)
					case 403:
						require.Equal(t, errors.Is(err, apitoken.ErrInsufficientScope), len(challenges) == 1, what)
					default:
						require.Empty(t, challenges, what)
					}
					proof := errors.Is(err, apitoken.ErrInvalidProof) || errors.Is(err, apitoken.ErrUseNonce)
					for i, c := range challenges {
						scheme, _, _ := strings.Cut(c, " ")
						require.Contains(t, []string{"Bearer", "DPoP", "Basic"}, scheme, what)
						require.Equal(t, scheme == "DPoP", strings.Contains(c, "algs="), what)
						require.False(t, i > 0 && strings.Contains(c, "error="), "%s: one error, in the first challenge", what)
						if proof {
							require.Equal(t, "DPoP", scheme, what)
						}
						if scheme == "Basic" {
							require.True(t, header == "Basic YTpi" && errors.Is(err, apitoken.ErrInvalidClient), what)
							require.Contains(t, c, "realm=", "%s: RFC 7617 §2", what)
						}
						if scheme == "DPoP" && o == nil {
							require.True(t, proof, "%s: nobody takes DPoP here", what)
						}
					}
				}
			}
		}
	}
	w := httptest.NewRecorder()
	httpauth.New(svc, nil).Error(w, nil, apitoken.ErrExpired)
	require.Equal(t, 401, w.Code, "an answer without a request at hand")
}

// What stands in front of the guard answers preflights; the guard does not know them.
func TestPreflightsAreNotExempt(t *testing.T) {
	t.Parallel()
	svc := newService(t, nil)
	r := httptest.NewRequest("OPTIONS", "/", nil)
	r.Header.Set("Origin", "https://app.example.com")
	r.Header.Set("Access-Control-Request-Method", "GET")
	w := httptest.NewRecorder()
	httpauth.New(svc, nil).Require("orders:read")(hello).ServeHTTP(w, r)
	require.Equal(t, 401, w.Code)
}

func TestNilStopsAtStart(t *testing.T) {
	t.Parallel()
	svc := newService(t, nil)
	auth := httpauth.New(svc, nil)
	for name, f := range map[string]func(){
		"validator": func() { httpauth.New(nil, nil) },
		"service":   func() { httpauth.NewSession(nil, nil) },
		"handler":   func() { auth.Authenticated(nil) },
		"watched":   func() { auth.Watch(nil) },
		"row":       func() { auth.Mux(map[string]httpauth.Route{"GET /x": {Needs: apitoken.Public()}}) },
		"router":    func() { auth.Routes(httpauth.Routes{"GET /x": apitoken.Public()})(nil) },
		"pattern":   func() { auth.Routes(httpauth.Routes{"GET  nowhere": {}}) },
		"scope":     func() { auth.Require("two words") },
		"realm":     func() { httpauth.New(svc, &httpauth.Options{Realm: `"`}) },
		"metadata":  func() { httpauth.New(svc, &httpauth.Options{Metadata: "a\r\nb"}) },
		"base":      func() { httpauth.New(svc, &httpauth.Options{BaseURL: "api.example.com"}) },
		"user":      func() { httpauth.New(svc, &httpauth.Options{BaseURL: "https://user@api.example.com"}) },
	} {
		require.Panics(t, f, name)
	}
}

// A hook that panics lets nobody through, and sees nothing that a log must not hold.
func TestHooksAreNoWayIn(t *testing.T) {
	t.Parallel()
	svc := newService(t, nil)
	reached := false
	next := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached = true })
	boom := httpauth.New(svc, &httpauth.Options{OnRefuse: func(*http.Request, error) { panic("hook") }})
	require.PanicsWithValue(t, "hook", func() { get(boom.Authenticated(next), "/", bearer("junk")) })
	require.PanicsWithValue(t, "hook", func() { get(boom.Routes(httpauth.Routes{"/a": apitoken.Public()})(next), "/b", nil) })
	require.False(t, reached)

	_, key, err := svc.APIKeys.Create(context.Background(), apitoken.APIKeyRequest{Subject: "bob"})
	require.NoError(t, err)
	jwt := mint(t, svc)
	var seen string
	n := 0
	auth := httpauth.New(svc, &httpauth.Options{OnRefuse: func(r *http.Request, err error) {
		n++
		body, rerr := io.ReadAll(r.Body)
		require.NoError(t, rerr)
		seen += fmt.Sprint(r.Method, r.URL, r.RequestURI, r.Header, r.Form, r.PostForm, string(body), err) + "\n"
		r.Header.Set("Authorization", "Bearer "+jwt) // changes the copy
	}})
	refuse := func(target string, header http.Header) {
		r := httptest.NewRequest("POST", target, strings.NewReader("password=hunter2&refresh_token="+key.Reveal()))
		r.Header = header
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		require.NoError(t, r.ParseForm())
		r.Body = io.NopCloser(strings.NewReader("hunter2"))
		w := httptest.NewRecorder()
		auth.Authenticated(next).ServeHTTP(w, r)
		require.NotEqual(t, 200, w.Code)
	}
	refuse("/a?page=2&Access_Token=hunter2&state=kept", http.Header{"Authorization": {"Bearer hunter2"}, "X-Other": {"kept too"}})
	refuse("/a?x="+key.Reveal(), http.Header{"Authorization": {"Bearer " + key.Reveal() + "x"}, "X-Api-Key": {key.Reveal()}})
	refuse("/a?y="+jwt, http.Header{"Dpop": {"hunter2"}, "Cookie": {"a=hunter2"}, "Proxy-Authorization": {"hunter2"}})
	refuse("/link/"+key.Reveal(), http.Header{"Referer": {"https://app.example.com/cb?code=hunter2"}})
	refuse("http://user:hunter2@api.example.com/a", http.Header{})
	refuse("/a?"+jwt+"&"+key.Reveal()+"=1", http.Header{"Sec-Websocket-Protocol": {"bearer, hunter2"}, "X-Trace": {"of " + jwt, key.Reveal()}})
	refuse("/a", http.Header{"Referer": {"https://app.example.com/link/" + key.Reveal()}, "X-Original-Uri": {"/cb?code=hunter2"}, "X-Forwarded-Url": {"/" + jwt}})
	require.Equal(t, 7, n)
	for _, secret := range []string{"hunter2", key.Reveal(), jwt} {
		require.NotContains(t, seen, secret)
	}
	for _, want := range []string{"page=2", "kept", "kept too", "https://app.example.com/cb", "X-Original-Uri:[/cb]"} {
		require.Contains(t, seen, want)
	}
	require.False(t, reached)

	// What a handler answers by Error is seen too: a 500 that nobody logs is a night lost.
	w := httptest.NewRecorder()
	auth.Error(w, httptest.NewRequest("GET", "/", nil), errors.New("disk full"))
	require.Contains(t, seen, "disk full")
	require.NotContains(t, w.Body.String(), "disk")
}

// What stands behind a guard finds the server's own ResponseWriter.
func TestResponseWriterIsTheServers(t *testing.T) {
	t.Parallel()
	svc := newService(t, nil)
	auth, web := httpauth.New(svc, nil), httpauth.NewSession(svc, nil)
	next := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		require.Implements(t, (*http.Flusher)(nil), w)
		require.Implements(t, (*io.ReaderFrom)(nil), w)
		c := http.NewResponseController(w)
		require.NoError(t, c.SetWriteDeadline(time.Time{}))
		require.NoError(t, c.EnableFullDuplex())
		require.NoError(t, c.Flush())
		conn, _, err := c.Hijack()
		require.NoError(t, err)
		_, _ = io.WriteString(conn, "mine now")
		require.NoError(t, conn.Close())
	})
	for name, h := range map[string]http.Handler{
		"guard": auth.Authenticated(next), "watched": auth.Authenticated(auth.Watch(next)), "session": web.Authenticated(web.Watch(next)),
		"table": auth.Routes(httpauth.Routes{"/": apitoken.Authenticated()})(next), "mux": auth.Mux(map[string]httpauth.Route{"/": {Needs: apitoken.Authenticated(), Handler: next}}),
		"origin": auth.Origin(auth.Authenticated(next)),
	} {
		srv := httptest.NewServer(h)
		conn, err := net.Dial("tcp", srv.Listener.Addr().String())
		require.NoError(t, err, name)
		_, err = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "+mint(t, svc)+"\r\n\r\n")
		require.NoError(t, err, name)
		got, err := io.ReadAll(conn)
		require.NoError(t, err, name)
		require.Contains(t, string(got), "mine now", name)
		require.NoError(t, conn.Close())
		srv.Close()
	}
}

// TestStreamsEnd: a request that lasts goes on as long as its token, and no goroutine longer than it.
func TestStreamsEnd(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		end  func(*apitoken.Service, apitoken.Token) error
		want error
	}{
		"expiry": {nil, apitoken.ErrExpired},
		"subject": {func(s *apitoken.Service, t apitoken.Token) error {
			return s.Revoke(context.Background(), apitoken.BySubject(t.Subject()), "x")
		}, apitoken.ErrRevoked},
		"token": {func(s *apitoken.Service, t apitoken.Token) error {
			return s.Revoke(context.Background(), apitoken.ByToken(t.ID()), "x")
		}, apitoken.ErrRevoked},
		"all": {func(s *apitoken.Service, _ apitoken.Token) error {
			return s.Revoke(context.Background(), apitoken.Everything(), "x")
		}, apitoken.ErrRevoked},
		"the key": {func(s *apitoken.Service, _ apitoken.Token) error {
			keys, _ := s.SigningKeys.List(context.Background())
			return s.SigningKeys.Compromise(context.Background(), keys[0].ID, "x")
		}, apitoken.ErrRevoked},
		"handler":  {nil, nil},
		"panicked": {nil, http.ErrAbortHandler},
	} {
		for _, kind := range []string{"access", "apikey"} {
			if name == "the key" && kind == "apikey" {
				continue // no signing key signs it
			}
			synctest.Test(t, func(t *testing.T) {
				svc := newService(t, nil)
				token := mint(t, svc)
				if kind == "apikey" {
					_, key, err := svc.APIKeys.Create(context.Background(), apitoken.APIKeyRequest{Subject: "alice", Expires: time.Now().Add(5 * time.Minute)})
					require.NoError(t, err)
					token = key.Reveal()
				}
				auth := httpauth.New(svc, nil)
				began, ended := time.Now(), make(chan error, 1)
				var caller apitoken.Token
				h := auth.Authenticated(auth.Watch(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
					caller = apitoken.FromContext(r.Context())
					time.Sleep(2500 * time.Millisecond) // of the bubble's time: the stream is at work
					require.NoError(t, r.Context().Err(), "it is good until then")
					switch {
					case c.want == nil:
						ended <- nil
						return
					case errors.Is(c.want, http.ErrAbortHandler):
						ended <- c.want
						panic(c.want)
					case c.end != nil:
						require.NoError(t, c.end(svc, caller))
					}
					revoked := time.Now()
					<-r.Context().Done()
					if c.end != nil {
						require.LessOrEqual(t, time.Since(revoked), time.Second)
					} else {
						require.InDelta(t, 5*time.Minute, time.Since(began), float64(2*time.Second))
					}
					ended <- context.Cause(r.Context())
				})))
				func() {
					defer func() { require.Equal(t, name == "panicked", recover() != nil) }()
					get(h, "/", bearer(token))
				}()
				require.ErrorIs(t, <-ended, c.want, "%s of %s", name, kind)
				require.NoError(t, svc.Close()) // the bubble fails on goroutines that are left
			})
		}
	}
}

// Over the wire a table refuses what two routers may read in two ways, in whatever form the request line has it.
func TestRequestLines(t *testing.T) {
	t.Parallel()
	svc := newService(t, nil)
	var reached []string
	next := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { reached = append(reached, r.URL.Path) })
	srv := httptest.NewServer(httpauth.New(svc, nil).Routes(httpauth.Routes{"/public/": apitoken.Public(), "GET api.example.com/host": apitoken.Public(), "/{$}": apitoken.Public(), "/admin/": apitoken.AllOf("admin")})(next))
	t.Cleanup(srv.Close)
	for line, want := range map[string]int{
		"GET /public/a":                       200,
		"GET http://api.example.com/public/a": 200, // RFC 9112 §3.2.2: servers must take it; the path is what counts
		"GET http://api.example.com/admin/a":  401,
		"GET http://api.example.com":          400, // its path is empty
		"GET http://api.example.com//admin/a": 400,
		"GET http:/public/a":                  200,
		"GET http:public":                     400,
		"OPTIONS *":                           200, // the server's own answer
		"GET *":                               400,
		"CONNECT api.example.com:443":         400,
		"CONNECT /public/a":                   400,
		"GET /host":                           404, // of another host
		"GET http://api.example.com/host":     200,
		"GET /public/../admin/a":              400,
		"GET /public/..;/admin/a":             400,
		"GET /public/..%3b/admin/a":           400,
		"GET /public/%2e%2e/admin/a":          400,
		"GET /public/.%2E/admin/a":            400,
		"GET /public/%2e%2e%2fadmin/a":        400,
		"GET /public/..%5cadmin":              400,
		`GET /public/..\admin`:                400,
		"GET /public/%252e%252e/admin":        400,
		"GET /public//admin":                  400,
		"GET //admin/a":                       400,
		"GET ///admin/a":                      400,
		"GET /%2fadmin/a":                     400,
		"GET /./admin/a":                      400,
		"GET /public/.":                       400,
		"GET /public/..":                      400,
		"GET /public/a;jsessionid=1":          400,
		"GET /public/%00":                     400,
		"GET /public/%0a":                     400,
		"GET /public/%0d%0aX: y":              400,
		"GET /public/%7f":                     400,
		"GET /public/%c0%af%c0%aeadmin":       400, // overlong UTF-8
		"GET /public/%ff":                     400,
		"GET /public/%C3%A9":                  200,
		"GET /public/a%20b":                   200,
		"GET /public/...":                     200, // a name like any other
		"GET /public/a..b":                    200,
		"GET /public/a?x=/../admin":           200,
		"GET /public/a?;":                     200,
		"GET /ADMIN/a":                        404,
		"GET /admin":                          404, // no redirect tells what is there
		"GET /public":                         404,
		"TRACE /public/a":                     200, // the row names no method
		"get /host":                           404,
	} {
		before := len(reached)
		res := raw(t, srv, line+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		require.Equal(t, want, res.StatusCode, line)
		if want != 200 || strings.HasPrefix(line, "OPTIONS *") {
			require.Len(t, reached, before, line)
			continue
		}
		require.Len(t, reached, before+1, line)
	}
	for _, path := range reached {
		require.False(t, strings.HasPrefix(path, "/admin"), path)
	}
}

// The router behind a table sees the request as it came: its own patterns and values, not the table's.
func TestTableLeavesTheRequestAlone(t *testing.T) {
	t.Parallel()
	svc := newService(t, nil)
	h := httpauth.New(svc, nil).Routes(httpauth.Routes{"GET /orders/{order}": apitoken.Public()})(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		require.Empty(t, r.Pattern)
		require.Empty(t, r.PathValue("order"))
	}))
	require.Equal(t, 200, get(h, "/orders/7", nil).Code)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("DELETE", "/orders/7", nil))
	require.Equal(t, 405, w.Code)
	require.Equal(t, "GET, HEAD", w.Header().Get("Allow"))
	require.Equal(t, "Authorization", w.Header().Get("Vary"))
	require.Equal(t, "no-store", w.Header().Get("Cache-Control"))
}

func TestForwardedAddresses(t *testing.T) {
	t.Parallel()
	proxies := httpauth.BehindProxies(netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8"))
	for _, c := range []struct {
		peer  string
		lines []string
		want  string
	}{
		{"10.0.0.1:5", []string{"203.0.113.9:4711"}, "203.0.113.9"},
		{"10.0.0.1:5", []string{"[2001:db8::1]:4711"}, "2001:db8::1"},
		{"10.0.0.1:5", []string{"2001:db8::1%anything that a client likes"}, "2001:db8::1"},
		{"10.0.0.1:5", []string{"::ffff:203.0.113.9"}, "203.0.113.9"},
		{"10.0.0.1:5", []string{"6.6.6.6", "203.0.113.9, 10.0.0.2"}, "203.0.113.9"},
		{"10.0.0.1:5", []string{"203.0.113.9", "10.0.0.3,\t10.0.0.2"}, "203.0.113.9"},
		{"10.0.0.1:5", []string{"10.0.0.3,10.0.0.2"}, "10.0.0.3"},
		{"10.0.0.1:5", []string{"203.0.113.9, , 10.0.0.2"}, "10.0.0.2"},
		{"10.0.0.1:5", []string{"203.0.113.9,"}, "10.0.0.1"},
		{"10.0.0.1:5", []string{strings.Repeat("6.6.6.6,", 100_000) + "203.0.113.9"}, "203.0.113.9"},
		{"[fd00::1]:5", []string{"203.0.113.9"}, "203.0.113.9"},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.RemoteAddr = c.peer
		r.Header["X-Forwarded-For"] = c.lines
		require.Equal(t, c.want, proxies(r).String(), "%.80v", c.lines)
	}
	r := httptest.NewRequest("GET", "/", nil)
	r.RemoteAddr = "@" // a Unix socket
	require.False(t, proxies(r).IsValid())
}

// tenants chooses among services, as hosts do: it has one method, and must lose nothing of what those do.
type tenants map[string]*apitoken.Service

func (ts tenants) Validate(ctx context.Context, c apitoken.Credential) (apitoken.Token, error) {
	return ts["red"].Validate(ctx, c)
}

type observer func(apitoken.Observation)

func (f observer) Observe(_ context.Context, o apitoken.Observation) { f(o) }

func TestAValidatorAroundOursLosesNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		svc := newService(t, nil)
		auth := httpauth.New(tenants{"red": svc}, nil)
		_, key, err := svc.APIKeys.Create(context.Background(), apitoken.APIKeyRequest{Subject: "bob", MaxUses: 1})
		require.NoError(t, err)
		require.Equal(t, 200, get(auth.Authenticated(hello), "/", bearer(key.Reveal())).Code)
		require.Equal(t, 429, get(auth.Authenticated(hello), "/", bearer(key.Reveal())).Code, "limits of API keys hold")

		var seen []string
		svc.Observe(observer(func(o apitoken.Observation) { seen = append(seen, o.Op) }))
		require.Equal(t, 403, get(auth.Require("admin")(hello), "/", bearer(mint(t, svc))).Code)
		require.Contains(t, seen, "authorize", "detectors see that a scope was missing")

		began := time.Now()
		get(auth.Authenticated(auth.Watch(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			require.NoError(t, svc.Revoke(context.Background(), apitoken.BySubject("alice"), "x"))
			<-r.Context().Done()
			require.ErrorIs(t, context.Cause(r.Context()), apitoken.ErrRevoked)
		}))), "/", bearer(mint(t, svc)))
		require.LessOrEqual(t, time.Since(began), 2*time.Second, "streams end by revocation")
		require.NoError(t, svc.Close())
	})
}

// A Token that was made by hand has its expiry, and nobody to ask.
func TestWatchOfSomeonesOwnTokens(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		auth := httpauth.New(validatorFunc(func(apitoken.Credential) (apitoken.Token, error) {
			return apitoken.NewToken(apitoken.TokenSpec{Subject: "alice", ExpiresAt: time.Now().Add(time.Minute)})
		}), nil)
		began := time.Now()
		get(auth.Authenticated(auth.Watch(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
			require.ErrorIs(t, context.Cause(r.Context()), apitoken.ErrExpired)
		}))), "/", bearer("x"))
		require.InDelta(t, time.Minute, time.Since(began), float64(2*time.Second))
	})
	require.ErrorIs(t, apitoken.Token{}.Recheck(context.Background()), apitoken.ErrInvalidToken)
}
