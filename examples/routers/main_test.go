package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/gin-gonic/gin"
	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/apitokentest"
	"github.com/apitoken-go/apitoken/apitokentest/adaptertest"
	"github.com/apitoken-go/apitoken/httpauth"
)

func TestMain(m *testing.M) {
	gin.SetMode(gin.ReleaseMode) // it is a switch of the whole process
	os.Exit(m.Run())
}

// start serves a router and returns its URL.
func start(t *testing.T, router func(*httpauth.Auth) server, auth *httpauth.Auth) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s, done := router(auth), make(chan error, 1)
	go func() { done <- s.Serve(listener) }()
	t.Cleanup(func() {
		require.NoError(t, s.Close())
		require.ErrorIs(t, <-done, http.ErrServerClosed)
	})
	return "http://" + listener.Addr().String()
}

// get sends a request; Connection: close, so that Close does not wait for it.
func get(t *testing.T, url string, h http.Header) *http.Response {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	require.NoError(t, err)
	r.Header, r.Close = h, true
	res, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	t.Cleanup(func() { _ = res.Body.Close() })
	return res
}

func TestRouters(t *testing.T) {
	t.Parallel()
	for name, router := range routers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			svc, err := newService()
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, svc.Close()) })
			at := start(t, router, httpauth.New(svc, nil))
			token := func(scope apitoken.Scope) string {
				issued, err := svc.Issue(context.Background(), apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{scope}})
				require.NoError(t, err)
				return "Bearer " + issued.Access.Reveal()
			}
			ask := func(path string, authorization ...string) (code int, challenge, body string) {
				res := get(t, at+path, http.Header{"Authorization": authorization})
				text, err := io.ReadAll(res.Body)
				require.NoError(t, err)
				return res.StatusCode, res.Header.Get("WWW-Authenticate"), string(text)
			}
			good := token("orders:read")

			code, _, body := ask("/orders", good)
			require.Equal(t, http.StatusOK, code)
			require.Equal(t, "orders of alice", body, "the handler finds the token in its context")

			code, _, _ = ask("/healthz")
			require.Equal(t, http.StatusOK, code, "what needs no token answers without one")

			for what, c := range map[string]struct {
				with      []string
				code      int
				challenge string
			}{
				"no token":      {nil, http.StatusUnauthorized, "Bearer"},
				"a bad token":   {[]string{good + "x"}, http.StatusUnauthorized, `error="invalid_token"`},
				"another scope": {[]string{token("orders:write")}, http.StatusForbidden, `error="insufficient_scope"`},
				"two tokens":    {[]string{good, good}, http.StatusBadRequest, `error="invalid_request"`},
			} {
				code, challenge, body := ask("/orders", c.with...)
				require.Equal(t, c.code, code, what)
				require.Contains(t, challenge, c.challenge, what)
				require.NotContains(t, body, "orders of", "%s: the handler did not run", what)
			}

			require.NoError(t, svc.Revoke(context.Background(), apitoken.BySubject("alice"), "left the company"))
			code, _, _ = ask("/orders", good)
			require.Equal(t, http.StatusUnauthorized, code, "revoked")
		})
	}
}

// TestVerdicts: behind every router the same requests get the same verdicts as from httpauth alone.
func TestVerdicts(t *testing.T) {
	t.Parallel()
	for name, router := range routers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			adaptertest.Run(t, func(t *testing.T, v apitoken.Validator) adaptertest.Adapter {
				at := start(t, router, httpauth.New(v, &httpauth.Options{BaseURL: apitokentest.Audience}))
				return adaptertest.Adapter{Method: "GET", URL: apitokentest.Audience + "/orders", Send: func(t *testing.T, h http.Header) adaptertest.Verdict {
					res := get(t, at+"/orders", h)
					if res.StatusCode != http.StatusOK {
						require.Equal(t, "application/problem+json", res.Header.Get("Content-Type"))
						return adaptertest.HTTPVerdict(res, "")
					}
					body, err := io.ReadAll(res.Body)
					require.NoError(t, err)
					return adaptertest.HTTPVerdict(res, strings.TrimPrefix(string(body), "orders of "))
				}}
			})
		})
	}
}

// TestHumaOperations: what an operation says of its security is what its callers need.
func TestHumaOperations(t *testing.T) {
	t.Parallel()
	require.Equal(t, apitoken.Public(), requirement(open))
	require.Equal(t, apitoken.Authenticated(), requirement(scopes()))
	require.Equal(t, apitoken.AllOf("a", "b"), requirement(scopes("a", "b")))
	refused := apitoken.Requirement{}
	require.Equal(t, refused, requirement(nil), "an operation that says nothing")
	require.Equal(t, refused, requirement([]map[string][]string{{"other": nil}}), "a scheme that is not ours")
	require.Equal(t, refused, requirement([]map[string][]string{{"oauth2": nil}, {}}), "alternatives")
}

func TestUnknownRouter(t *testing.T) {
	t.Parallel()
	require.ErrorContains(t, run(context.Background(), "martini", "127.0.0.1:0", nil), "martini")
}

func TestRunServesUntilItsContextEnds(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	up, done := make(chan [2]string, 1), make(chan error, 1)
	go func() {
		done <- run(ctx, "chi", "127.0.0.1:0", func(url, token string) { up <- [2]string{url, token} })
	}()
	select {
	case at := <-up:
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, at[0]+"/orders", nil)
		require.NoError(t, err)
		r.Header.Set("Authorization", "Bearer "+at[1])
		res, err := http.DefaultClient.Do(r)
		require.NoError(t, err)
		require.NoError(t, res.Body.Close())
		require.Equal(t, http.StatusOK, res.StatusCode)
		cancel()
		require.NoError(t, <-done)
	case err := <-done:
		t.Fatalf("it did not start: %v", err)
	}
}
