package apitoken_test

import (
	"context"
	"crypto/rand"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/store"
)

// What changes while a token is planned, the host is asked, or a client proves itself, is looked at again: the token stands for
// nothing that is not so any more.
func TestNothingIsMadeOfWhatWasPlannedBefore(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	var meanwhile func()
	st := &faulty{Store: tempStore(t)}
	svc := serviceOn(t, st, func(c *apitoken.Config) {
		c.MayContinue = func(context.Context, apitoken.Grant) error {
			if f := meanwhile; f != nil {
				meanwhile = nil
				f()
			}
			return nil
		}
	})
	narrow := func() {
		_, err := svc.Clients.Update(ctx, "web", func(c *apitoken.Client) error { c.Scopes = apitoken.Scopes{"orders:read"}; return nil })
		require.NoError(t, err)
	}
	_, _, err := svc.Clients.Create(ctx, apitoken.Client{ID: "web", Public: true, GrantTypes: []string{"refresh_token"}, Scopes: apitoken.Scopes{"orders:read", "orders:write"}})
	require.NoError(t, err)
	session := issue(t, svc, apitoken.Request{Subject: "alice", Client: "web", Scopes: apitoken.Scopes{"orders:read", "orders:write"}, Refresh: true})

	// The host is asked at a refresh.
	meanwhile = narrow
	next, err := svc.Refresh(ctx, apitoken.RefreshRequest{Token: session.Refresh.Reveal(), Auth: apitoken.ClientAuth{ID: "web"}})
	require.NoError(t, err)
	require.Equal(t, apitoken.Scopes{"orders:read"}, next.Token.Scopes())
	require.NoError(t, validate(svc, next.Access))
	meanwhile = narrow // and at its repetition
	again, err := svc.Refresh(ctx, apitoken.RefreshRequest{Token: session.Refresh.Reveal(), Auth: apitoken.ClientAuth{ID: "web"}})
	require.NoError(t, err)
	require.Equal(t, apitoken.Scopes{"orders:read"}, again.Token.Scopes())

	// A client proves itself by an assertion, whose use is written down.
	p := newProver(t, "ES256")
	_, _, err = svc.Clients.Create(ctx, apitoken.Client{ID: "worker", AuthMethod: "private_key_jwt", Keys: keySetOf(t, p, nil), GrantTypes: []string{"client_credentials"}, Scopes: apitoken.Scopes{"jobs"}})
	require.NoError(t, err)
	var once sync.Once
	st.onApply(func(_ context.Context, c *store.Change) (error, error) {
		if len(c.Puts) == 1 && c.Puts[0].Kind == "once" {
			once.Do(func() {
				_, err := svc.Clients.Update(ctx, "worker", func(c *apitoken.Client) error { c.Disabled = true; return nil })
				require.NoError(t, err)
			})
		}
		return nil, nil
	})
	text := p.assertion(t, nil, map[string]any{"iss": "worker", "sub": "worker", "aud": testIssuer, "jti": rand.Text(), "iat": time.Now().Unix(), "exp": time.Now().Add(time.Minute).Unix()})
	_, err = svc.Issue(ctx, apitoken.Request{Auth: apitoken.ClientAuth{Assertion: apitoken.NewSecret(text)}})
	require.Error(t, err, "it was disabled while it proved itself")
	require.NotErrorIs(t, err, apitoken.ErrUnavailable)
}
