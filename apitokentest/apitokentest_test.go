package apitokentest_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/apitokentest"
	"github.com/apitoken-go/apitoken/httpauth"
)

func TestAHostsOwnTest(t *testing.T) {
	t.Parallel()
	svc := apitokentest.New(t)
	auth := httpauth.New(svc, nil)
	app := auth.Require("orders:read")(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write([]byte(apitoken.FromContext(r.Context()).Subject()))
	}))
	w := httptest.NewRecorder()
	app.ServeHTTP(w, svc.Sign(httptest.NewRequest("GET", "/", nil), "alice", "orders:read"))
	require.Equal(t, 200, w.Code)
	require.Equal(t, "alice", w.Body.String())
}

func TestTheClockStandsStill(t *testing.T) {
	t.Parallel()
	svc := apitokentest.New(t, func(c *apitoken.Config) { c.Lifetimes.Access = time.Minute })
	token := svc.Mint("alice")
	_, err := svc.Validate(context.Background(), apitoken.Bearer(token))
	require.NoError(t, err)
	svc.Advance(time.Minute - time.Second)
	_, err = svc.Validate(context.Background(), apitoken.Bearer(token))
	require.NoError(t, err)
	svc.Advance(time.Second)
	_, err = svc.Validate(context.Background(), apitoken.Bearer(token))
	require.ErrorIs(t, err, apitoken.ErrExpired)
	require.Equal(t, time.Date(2030, 1, 1, 12, 1, 0, 0, time.UTC), svc.Now())
}

func TestRefreshWindowFollowsTheClock(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := apitokentest.New(t)
	i, err := svc.Issue(ctx, apitoken.Request{Subject: "alice", Refresh: true})
	require.NoError(t, err)
	_, err = svc.Refresh(ctx, apitoken.RefreshRequest{Token: i.Refresh.Reveal()})
	require.NoError(t, err)
	svc.Advance(9 * time.Second)
	_, err = svc.Refresh(ctx, apitoken.RefreshRequest{Token: i.Refresh.Reveal()})
	require.NoError(t, err)
	svc.Advance(2 * time.Second)
	_, err = svc.Refresh(ctx, apitoken.RefreshRequest{Token: i.Refresh.Reveal()})
	require.ErrorIs(t, err, apitoken.ErrInvalidGrant)
}

func ExampleToken() {
	r := httptest.NewRequest("GET", "/", nil)
	r = r.WithContext(apitoken.NewContext(r.Context(), apitokentest.Token("alice", "orders:read")))
	_ = r // goes to a handler that reads apitoken.FromContext
}
