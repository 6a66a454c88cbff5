package apitoken_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/store/memstore"
)

// What a call hands out is the caller's own: whoever changes it changes nothing that the next caller gets, and no right.
func TestWhatIsHandedOutIsTheCallersOwn(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	var hooked int
	svc, err := apitoken.New(apitoken.Config{Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: memstore.New(), InsecureKeysInStore: true,
		Roles: map[string]apitoken.Scopes{"reader": {"read"}, "admin": {"admin"}},
		MayContinue: func(_ context.Context, g apitoken.Grant) error {
			hooked++
			for i := range g.Roles {
				g.Roles[i] = "admin"
			}
			for i := range g.Scopes {
				g.Scopes[i] = "admin"
			}
			return nil
		}})
	require.NoError(t, err)
	defer svc.Close()
	made, secret, err := svc.Clients.Create(ctx, apitoken.Client{ID: "app", GrantTypes: []string{"client_credentials", "urn:ietf:params:oauth:grant-type:token-exchange"}, MayImpersonate: true,
		Scopes: apitoken.Scopes{"read"}, Audiences: []string{"https://api.example.com"}, RedirectURIs: []string{"https://app.example.com/"}})
	require.NoError(t, err)
	require.NoError(t, svc.Sync(ctx))
	auth := apitoken.ClientAuth{ID: "app", Secret: secret}

	spoil := func(c apitoken.Client) {
		c.Scopes[0], c.Audiences[0], c.GrantTypes[0], c.RedirectURIs[0] = "admin", "https://other.example.com", "authorization_code", "https://evil.example.com/"
	}
	for name, get := range map[string]func() (apitoken.Client, error){
		"Get":          func() (apitoken.Client, error) { return svc.Clients.Get(ctx, "app") },
		"Known":        func() (apitoken.Client, error) { return svc.Clients.Known(ctx, "app") },
		"Authenticate": func() (apitoken.Client, error) { return svc.Clients.Authenticate(ctx, auth) },
		"Confirm": func() (apitoken.Client, error) {
			c, _, err := svc.Clients.Confirm(ctx, auth)
			return c, err
		},
		"Confirm again": func() (apitoken.Client, error) {
			_, a, err := svc.Clients.Confirm(ctx, auth)
			require.NoError(t, err)
			c, _, err := svc.Clients.Confirm(ctx, a)
			return c, err
		},
	} {
		c, err := get()
		require.NoError(t, err, name)
		spoil(c)
		c, err = get()
		require.NoError(t, err, name)
		require.Equal(t, made, c, name)
	}

	user, err := svc.Issue(ctx, apitoken.Request{Subject: "alice", Roles: []string{"reader"}, Scopes: apitoken.Scopes{"read"}, Refresh: true})
	require.NoError(t, err)
	again, err := svc.Refresh(ctx, apitoken.RefreshRequest{Token: user.Refresh.Reveal()})
	require.NoError(t, err)
	got, err := svc.Validate(ctx, apitoken.Credential{Token: again.Access.Reveal()})
	require.NoError(t, err)
	require.Equal(t, []string{"reader"}, got.Roles(), "a hook has no say in roles")
	require.Equal(t, apitoken.Scopes{"read"}, got.Scopes())
	_, err = svc.Exchange(ctx, apitoken.ExchangeRequest{Auth: auth, Token: apitoken.Credential{Token: again.Access.Reveal()}})
	require.NoError(t, err)
	got, err = svc.Validate(ctx, apitoken.Credential{Token: again.Access.Reveal()})
	require.NoError(t, err)
	require.Equal(t, []string{"reader"}, got.Roles(), "nor in those of the token that is exchanged")
	require.NotZero(t, hooked)
}
