package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"

	"github.com/gin-gonic/gin"
	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/httpauth"
)

func TestMain(m *testing.M) {
	gin.SetMode(gin.ReleaseMode) // it is a switch of the whole process
	os.Exit(m.Run())
}

func TestRouters(t *testing.T) {
	t.Parallel()
	for name, router := range routers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			svc, err := newService()
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, svc.Close()) })
			handler := router(httpauth.New(svc, nil))
			token := func(scope apitoken.Scope) string {
				issued, err := svc.Issue(context.Background(), apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{scope}})
				require.NoError(t, err)
				return "Bearer " + issued.Access.Reveal()
			}
			get := func(path string, authorization ...string) *httptest.ResponseRecorder {
				r := httptest.NewRequest(http.MethodGet, path, nil)
				r.Header["Authorization"] = authorization
				w := httptest.NewRecorder()
				handler.ServeHTTP(w, r)
				return w
			}
			good := token("orders:read")

			w := get("/orders", good)
			require.Equal(t, http.StatusOK, w.Code)
			require.Equal(t, "orders of alice", w.Body.String(), "the handler finds the token in its context")

			w = get("/healthz")
			require.Equal(t, http.StatusOK, w.Code, "what needs no token answers without one")

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
				w := get("/orders", c.with...)
				require.Equal(t, c.code, w.Code, what)
				require.Contains(t, w.Header().Get("WWW-Authenticate"), c.challenge, what)
				require.NotContains(t, w.Body.String(), "orders of", "%s: the handler did not run", what)
			}

			require.NoError(t, svc.Revoke(context.Background(), apitoken.BySubject("alice"), "left the company"))
			require.Equal(t, http.StatusUnauthorized, get("/orders", good).Code, "revoked")
		})
	}
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
