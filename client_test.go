package apitoken_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/memstore"
)

// Internal packages return errors of their own type. Each call about clients turns them into an *Error with a detail.
func TestErrorsAboutClientsAreOurs(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	st := memstore.New()
	svc, err := apitoken.New(apitoken.Config{Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: st, InsecureKeysInStore: true})
	require.NoError(t, err)
	defer svc.Close()
	cs := svc.Clients
	_, secret, token, err := cs.Register(ctx, apitoken.Client{ID: "good"})
	require.NoError(t, err)
	_, _, spoilt, err := cs.Register(ctx, apitoken.Client{ID: "bad"})
	require.NoError(t, err)
	_, off, err := cs.Create(ctx, apitoken.Client{ID: "off", Disabled: true})
	require.NoError(t, err)
	damage(t, st, store.Record{Kind: store.KindClient, ID: "bad", Data: []byte(`{"v":1,"from_a_later_version":true}`)})
	require.NoError(t, svc.Sync(ctx))

	auth := func(id string, x apitoken.Secret) apitoken.ClientAuth { return apitoken.ClientAuth{ID: id, Secret: x} }
	made := func(c apitoken.Client) error { _, _, err := cs.Create(ctx, c); return err }
	keep := func(*apitoken.Client) error { return nil }
	large := []string{"https://a.example.com/" + strings.Repeat("x", 2000)}
	for range 7 {
		large = append(large, large[0]+string(rune('a'+len(large))))
	}
	long := apitoken.NewSecret(strings.Repeat("x", 16))
	for call, err := range map[string]error{
		"an unknown client":        fails(cs.Authenticate(ctx, auth("nobody", long))),
		"a wrong secret":           fails(cs.Authenticate(ctx, auth("good", long))),
		"a disabled client":        fails(cs.Authenticate(ctx, auth("off", off))),
		"a damaged client":         fails(cs.Authenticate(ctx, auth("bad", secret))),
		"two credentials":          fails(cs.Authenticate(ctx, apitoken.ClientAuth{ID: "good", Secret: secret, Assertion: secret})),
		"tokens of a damaged one":  fails(svc.Issue(ctx, apitoken.Request{Subject: "alice", Client: "bad"})),
		"tokens of an unknown one": fails(svc.Issue(ctx, apitoken.Request{Subject: "alice", Client: "nobody"})),
		"get an unknown":           fails(cs.Get(ctx, "nobody")),
		"get a damaged":            fails(cs.Get(ctx, "bad")),
		"know an unknown":          fails(cs.Known(ctx, "nobody")),
		"know a damaged":           fails(cs.Known(ctx, "bad")),
		"secrets of a damaged":     fails(cs.Secrets(ctx, "bad")),
		"an ID that is taken":      made(apitoken.Client{ID: "good"}),
		"an ID of no form":         made(apitoken.Client{ID: "a b"}),
		"a grant type":             made(apitoken.Client{GrantTypes: []string{"password"}}),
		"a redirect URI":           made(apitoken.Client{RedirectURIs: []string{"/"}}),
		"keys":                     made(apitoken.Client{Keys: []byte("{")}),
		"a scope":                  made(apitoken.Client{Scopes: apitoken.Scopes{"a b"}}),
		"too large":                made(apitoken.Client{RedirectURIs: large}),
		"update a damaged":         fails(cs.Update(ctx, "bad", keep)),
		"update to nonsense":       fails(cs.Update(ctx, "good", func(c *apitoken.Client) error { c.TLSName = "x"; return nil })),
		"rotate a damaged":         fails(cs.RotateSecret(ctx, "bad", 0)),
		"a short secret":           cs.Declare(ctx, apitoken.Client{ID: "new"}, apitoken.NewSecret("short")),
		"declare a damaged":        cs.Declare(ctx, apitoken.Client{ID: "bad"}, long),
		"hash a short secret":      fails(apitoken.HashSecret(apitoken.NewSecret("short"))),
		"hash a generated one":     fails(apitoken.HashSecret(secret)),
		"a registration token":     fails(cs.Registered(ctx, "good", long)),
		"another's token":          fails(cs.Registered(ctx, "good", spoilt)),
		"a damaged client's token": fails(cs.Registered(ctx, "bad", spoilt)),
		"register for nonsense":    fails(cs.Reregister(ctx, "good", token, func(c *apitoken.Client) error { c.AuthMethod = "x"; return nil })),
		"token of a damaged":       fails(cs.RegistrationToken(ctx, "bad")),
		"describe with a secret":   fails(cs.Adopt(ctx, apitoken.Client{ID: "new"}, 1)),
		"describe without room":    fails(cs.Adopt(ctx, apitoken.Client{ID: "new", Public: true}, 0)),
		"keep an unknown":          cs.Keep(ctx, "nobody"),
	} {
		var ours *apitoken.Error
		require.ErrorAs(t, err, &ours, call)
		require.NotEmpty(t, ours.Detail, call)
	}
}

// An error of the host's function ends an update at once, even a store.ErrConflict from a store of the host's. The function is called
// again only when another writer of this service was first.
func TestAnErrorOfTheHostEndsAnUpdate(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	_, _, err := svc.Clients.Create(ctx, apitoken.Client{ID: "web"})
	require.NoError(t, err)
	for _, refused := range []error{errEngine, fmt.Errorf("the host's own store: %w", store.ErrConflict)} {
		calls := 0
		_, err = svc.Clients.Update(ctx, "web", func(*apitoken.Client) error { calls++; return refused })
		require.Equal(t, refused, err)
		require.Equal(t, 1, calls)
	}

	calls := 0
	_, err = svc.Clients.Update(ctx, "web", func(c *apitoken.Client) error {
		if calls++; calls == 1 {
			_, err := svc.Clients.Update(ctx, "web", func(c *apitoken.Client) error { c.Name = "between"; return nil })
			require.NoError(t, err)
			return nil
		}
		require.Equal(t, "between", c.Name)
		return nil
	})
	require.NoError(t, err)
	require.Equal(t, 2, calls)
}
