package apitoken_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/store/memstore"
)

// appKey is an API key of alice's, made by a token of the application app, and that token.
func appKey(t *testing.T, svc *apitoken.Service) (apitoken.Token, apitoken.APIKey, apitoken.Secret) {
	t.Helper()
	ctx := context.Background()
	if _, err := svc.Clients.Get(ctx, "app"); err != nil {
		_, _, err := svc.Clients.Create(ctx, apitoken.Client{ID: "app", Public: true, GrantTypes: []string{"refresh_token"},
			Scopes: apitoken.Scopes{"orders:read", "orders:write"}})
		require.NoError(t, err)
	}
	caller := issue(t, svc, apitoken.Request{Subject: "alice", Client: "app", Scopes: apitoken.Scopes{"orders:read", "orders:write"}, Refresh: true}).Token
	k, secret, err := svc.APIKeys.For(caller).Create(ctx, apitoken.APIKeyRequest{Name: "ci", Scopes: apitoken.Scopes{"orders:read", "orders:write"}})
	require.NoError(t, err)
	require.NoError(t, validate(svc, secret))
	return caller, k, secret
}

// A key that an application made for a user ends with what it was made from, for good: after days, when every rule has done its work
// and a new process knows only what the store holds, it is still refused.
func TestAKeyEndsWithWhatItWasMadeFrom(t *testing.T) {
	t.Parallel()
	for name, target := range map[string]func(apitoken.Token) apitoken.Target{
		"token":    func(c apitoken.Token) apitoken.Target { return apitoken.ByToken(c.ID()) },
		"grant":    func(c apitoken.Token) apitoken.Target { return apitoken.ByGrant(c.Grant()) },
		"sessions": func(apitoken.Token) apitoken.Target { return apitoken.BySessions("alice") },
		"client":   func(apitoken.Token) apitoken.Target { return apitoken.ByClient("app") },
		"held":     func(apitoken.Token) apitoken.Target { return apitoken.BySubject("alice").HeldBy("app") },
		"sessions held": func(apitoken.Token) apitoken.Target {
			return apitoken.BySessions("alice").HeldBy("app")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				ctx := context.Background()
				c := config(memstore.New())
				c.Lifetimes = apitoken.Lifetimes{Access: 5 * time.Minute, MaxAccess: 5 * time.Minute, Grant: time.Hour}
				svc, err := apitoken.New(c)
				require.NoError(t, err)
				caller, _, secret := appKey(t, svc)
				require.NoError(t, svc.Revoke(ctx, target(caller), "test"))
				require.ErrorIs(t, validate(svc, secret), apitoken.ErrRevoked)

				time.Sleep(5 * 24 * time.Hour)
				require.Zero(t, apitoken.IndexedRules(svc), "the rule has gone")
				require.Error(t, validate(svc, secret))
				require.NoError(t, svc.Close())
				svc, err = apitoken.New(c)
				require.NoError(t, err)
				defer svc.Close()
				require.Error(t, validate(svc, secret))
			})
		})
	}
}

// A key that a user makes on the host's own pages outlives that session, and ends with what names the host itself.
func TestAKeyOfTheHostsOwnPagesOutlivesTheSession(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, func(c *apitoken.Config) { c.FirstParty = "web" })
	caller := issue(t, svc, apitoken.Request{Subject: "alice", Refresh: true}).Token
	_, secret, err := svc.APIKeys.For(caller).Create(ctx, apitoken.APIKeyRequest{Name: "ci"})
	require.NoError(t, err)
	require.NoError(t, svc.Revoke(ctx, apitoken.ByGrant(caller.Grant()), "logout"))
	require.NoError(t, svc.Revoke(ctx, apitoken.BySessions("alice"), "logout"))
	require.NoError(t, svc.Revoke(ctx, apitoken.BySessions("alice").HeldBy("web"), "logout"))
	require.NoError(t, validate(svc, secret))
	require.NoError(t, svc.Revoke(ctx, apitoken.BySubject("alice").HeldBy("web"), "test"))
	require.ErrorIs(t, validate(svc, secret), apitoken.ErrRevoked)
}

// Nobody can mint an API key again: one of a client that lost a scope holds that no more, and works otherwise.
func TestAKeyHoldsNoMoreThanItsClient(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	_, _, secret := appKey(t, svc)
	for _, scopes := range []apitoken.Scopes{{"orders:read"}, {"orders:read", "orders:write"}} {
		_, err := svc.Clients.Update(ctx, "app", func(c *apitoken.Client) error { c.Scopes = scopes; return nil })
		require.NoError(t, err)
		got, err := svc.Validate(ctx, apitoken.Bearer(secret.Reveal()))
		require.NoError(t, err)
		require.Equal(t, scopes, got.Scopes())
	}
}

// The successor of a key descends from whoever rotates it as well.
func TestARotatedKeyEndsWithWhoeverRotatedIt(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	caller, _, _ := appKey(t, svc)
	k, own, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "alice", Scopes: apitoken.Scopes{"orders:read"}})
	require.NoError(t, err)
	_, next, err := svc.APIKeys.For(caller).Rotate(ctx, k.ID, time.Hour)
	require.NoError(t, err)
	require.NoError(t, svc.Revoke(ctx, apitoken.ByGrant(caller.Grant()), "test"))
	require.NoError(t, validate(svc, own))
	require.ErrorIs(t, validate(svc, next), apitoken.ErrRevoked)
}

// A view whose caller was revoked shows nothing more, though a list is being read.
func TestAViewEndsWithItsCaller(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	caller, _, _ := appKey(t, svc)
	appKey(t, svc)
	view := svc.APIKeys.For(caller)
	n := 0
	for _, err := range view.List(ctx, apitoken.Page{}) {
		if n++; n == 1 {
			require.NoError(t, err)
			require.NoError(t, svc.Revoke(ctx, apitoken.ByGrant(caller.Grant()), "test"))
			continue
		}
		require.ErrorIs(t, err, apitoken.ErrRevoked)
	}
	require.Equal(t, 2, n)
	for _, err := range view.Of(ctx, "alice", apitoken.Page{}) {
		require.ErrorIs(t, err, apitoken.ErrRevoked)
	}
	_, err := view.Get(ctx, "x")
	require.ErrorIs(t, err, apitoken.ErrRevoked)
}

// What was opened with a key ends with it, also when a rotation ends it at once.
func TestRecheckKnowsTheEndOfARotatedKey(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	k, secret, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "alice"})
	require.NoError(t, err)
	open, err := svc.Validate(ctx, apitoken.Bearer(secret.Reveal()))
	require.NoError(t, err)
	require.NoError(t, open.Recheck(ctx))
	_, _, err = svc.APIKeys.Rotate(ctx, k.ID, 0)
	require.NoError(t, err)
	require.ErrorIs(t, open.Recheck(ctx), apitoken.ErrExpired)
}

// A refreshed token ends with its grant at the latest, though its exp has no fractions of a second.
func TestARefreshedTokenEndsWithItsGrant(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(300 * time.Millisecond)
		c := config(memstore.New())
		c.Lifetimes = apitoken.Lifetimes{Access: time.Minute, MaxAccess: time.Minute, Grant: time.Hour}
		svc, err := apitoken.New(c)
		require.NoError(t, err)
		defer svc.Close()
		end := time.Now().Add(time.Hour)
		i := issue(t, svc, apitoken.Request{Subject: "alice", Refresh: true})
		for _, wait := range []time.Duration{time.Hour - 1500*time.Millisecond, 1250 * time.Millisecond} {
			time.Sleep(wait)
			next, err := refresh(svc, i.Refresh)
			if err != nil {
				require.ErrorIs(t, err, apitoken.ErrInvalidGrant)
				continue
			}
			require.False(t, next.Token.ExpiresAt().After(end), "%s is after %s", next.Token.ExpiresAt(), end)
			i = next
		}
	})
}
