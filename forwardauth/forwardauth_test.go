package forwardauth_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/apitokentest"
	"github.com/apitoken-go/apitoken/forwardauth"
	"github.com/apitoken-go/apitoken/httpauth"
)

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}

func subjectAndScopes() map[string]func(apitoken.Token) string {
	return map[string]func(apitoken.Token) string{
		"X-Auth-Subject": apitoken.Token.Subject,
		"X-Auth-Scopes":  func(t apitoken.Token) string { return t.Scopes().String() },
	}
}

func handler(svc *apitokentest.Service) http.Handler {
	return forwardauth.New(svc, forwardauth.Options{Needs: apitoken.AllOf("orders:read"), Proxies: loopback, Headers: subjectAndScopes(),
		HTTP: httpauth.Options{BaseURL: "https://api.test"}})
}

func ask(h http.Handler, header http.Header) *httptest.ResponseRecorder {
	r := httptest.NewRequest("GET", "/auth", nil)
	r.RemoteAddr = "127.0.0.1:4711"
	for k, v := range header {
		r.Header[k] = v
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestWhatAProxyIsTold(t *testing.T) {
	t.Parallel()
	svc := apitokentest.New(t)
	h := handler(svc)
	good, poor := svc.Mint("alice", "orders:read"), svc.Mint("alice")
	revoked := svc.Mint("bob", "orders:read")
	require.NoError(t, svc.Revoke(t.Context(), apitoken.BySubject("bob"), "left"))
	bearer := func(token string) http.Header { return http.Header{"Authorization": {"Bearer " + token}} }
	for name, c := range map[string]struct {
		header    http.Header
		status    int
		challenge string
	}{
		"good":           {bearer(good), 200, ""},
		"no token":       {nil, 401, `Bearer scope="orders:read"`},
		"junk":           {bearer("x"), 401, `error="invalid_token"`},
		"revoked":        {bearer(revoked), 401, `error="invalid_token"`},
		"too little":     {bearer(poor), 403, `error="insufficient_scope"`},
		"malformed":      {bearer(good + "," + good), 401, `error="invalid_request"`},
		"a bad target":   {http.Header{"Authorization": {"Bearer " + good}, "X-Forwarded-Uri": {"http://elsewhere/"}}, 401, `error="invalid_request"`},
		"two targets":    {http.Header{"Authorization": {"Bearer " + good}, "X-Forwarded-Uri": {"/a"}, "X-Original-Uri": {"/b"}}, 401, `error="invalid_request"`},
		"a target twice": {http.Header{"Authorization": {"Bearer " + good}, "X-Forwarded-Uri": {"/a", "/b"}}, 401, `error="invalid_request"`},
		"token in query": {http.Header{"Authorization": {"Bearer " + good}, "X-Forwarded-Uri": {"/a?access_token=" + good}}, 401, `error="invalid_request"`},
	} {
		w := ask(h, c.header)
		require.Equal(t, c.status, w.Code, name)
		require.Empty(t, w.Body.String(), name)
		require.Equal(t, "no-store", w.Header().Get("Cache-Control"), name)
		if c.status == 200 {
			require.Equal(t, "alice", w.Header().Get("X-Auth-Subject"))
			require.Equal(t, "orders:read", w.Header().Get("X-Auth-Scopes"))
			continue
		}
		require.Contains(t, strings.Join(w.Header().Values("WWW-Authenticate"), ", "), c.challenge, name)
		require.Empty(t, w.Header().Get("X-Auth-Subject"), name)
	}
}

func TestNobodyButTheProxyMayAsk(t *testing.T) {
	t.Parallel()
	svc := apitokentest.New(t)
	h := handler(svc)
	for _, from := range []string{"192.0.2.1:80", "[::1]:80", "@", ""} {
		r := svc.Sign(httptest.NewRequest("GET", "/auth", nil), "alice", "orders:read")
		r.RemoteAddr = from
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		require.Equal(t, 403, w.Code, from)
	}
	r := svc.Sign(httptest.NewRequest("GET", "/auth", nil), "alice", "orders:read")
	r.RemoteAddr = "[::ffff:127.0.0.1]:80"
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	require.Equal(t, 200, w.Code)
}

type undecided struct{}

func (undecided) Validate(context.Context, apitoken.Credential) (apitoken.Token, error) {
	return apitoken.Token{}, &apitoken.Error{Code: apitoken.ErrUnavailable}
}

func TestAServiceThatCanNotDecideIsAFailure(t *testing.T) {
	t.Parallel()
	h := forwardauth.New(undecided{}, forwardauth.Options{Needs: apitoken.Authenticated(), Proxies: loopback})
	w := ask(h, http.Header{"Authorization": {"Bearer x"}})
	require.Equal(t, 503, w.Code)
	require.NotEmpty(t, w.Header().Get("Retry-After"))
}

func TestValuesThatHeadersCanNotHoldAreEncoded(t *testing.T) {
	t.Parallel()
	svc := apitokentest.New(t)
	for subject, want := range map[string]string{
		"alice": "alice", "Zoë": "Zo%C3%AB", "a b": "a b", " a ": "%20a%20", "100%": "100%25", "山田": "%E5%B1%B1%E7%94%B0",
	} {
		w := ask(handler(svc), http.Header{"Authorization": {"Bearer " + svc.Mint(subject, "orders:read")}})
		require.Equal(t, 200, w.Code, subject)
		require.Equal(t, want, w.Header().Get("X-Auth-Subject"))
	}
	h := forwardauth.New(svc, forwardauth.Options{Needs: apitoken.Authenticated(), Proxies: loopback, Headers: map[string]func(apitoken.Token) string{
		"X-Auth-Client": func(apitoken.Token) string { return "" }, "X-Auth-Line": func(apitoken.Token) string { return "a\r\nSet-Cookie: b" }}})
	w := ask(h, http.Header{"Authorization": {"Bearer " + svc.Mint("alice")}})
	require.Equal(t, []string{""}, w.Header()["X-Auth-Client"], "sent all the same: it overwrites what the caller sent")
	require.Equal(t, "a%0D%0ASet-Cookie: b", w.Header().Get("X-Auth-Line"))
}

type observations chan apitoken.Observation

func (c observations) Observe(_ context.Context, o apitoken.Observation) {
	select {
	case c <- o:
	default:
	}
}

func TestTheAuditTrailHasTheCallersAddress(t *testing.T) {
	t.Parallel()
	svc := apitokentest.New(t)
	seen := make(chan apitoken.Observation, 8)
	stop := svc.Observe(observations(seen))
	defer stop()
	ask(handler(svc), http.Header{"Authorization": {"Bearer x"}, "X-Forwarded-For": {"203.0.113.9, 198.51.100.7"}})
	select {
	case o := <-seen:
		require.Equal(t, "198.51.100.7", o.Origin.Address.String())
	case <-time.After(20 * time.Second):
		t.Fatal("no observation")
	}
}

func TestOptionsThatCanNotBe(t *testing.T) {
	t.Parallel()
	svc := apitokentest.New(t)
	for name, o := range map[string]forwardauth.Options{
		"no proxies":    {Needs: apitoken.Authenticated()},
		"a header name": {Proxies: loopback, Headers: map[string]func(apitoken.Token) string{"x-auth": apitoken.Token.Subject}},
		"no value":      {Proxies: loopback, Headers: map[string]func(apitoken.Token) string{"X-Auth": nil}},
		"a bad realm":   {Proxies: loopback, HTTP: httpauth.Options{Realm: "\""}},
	} {
		require.Panics(t, func() { forwardauth.New(svc, o) }, name)
	}
}
