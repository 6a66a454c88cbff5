package apitoken_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/store/memstore"
)

// log.Fatal(err), t.Fatal(err.Error()) and every logger say what a first program has got wrong.
func TestTheHostsOwnCallsSayWhatIsWrong(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, func(c *apitoken.Config) {
		c.Scopes = map[apitoken.Scope]string{"orders:read": "read orders"}
		c.Roles = map[string]apitoken.Scopes{"customer": {"orders:read"}}
	})
	long := apitoken.NewSecret("a-secret-of-good-length")
	declare := func(c apitoken.Client, secrets ...apitoken.Secret) func() error {
		return func() error { return svc.Clients.Declare(ctx, c, secrets...) }
	}
	issue := func(r apitoken.Request) func() error {
		return func() error { _, err := svc.Issue(ctx, r); return err }
	}
	code := []string{"authorization_code"}
	for name, c := range map[string]struct {
		call func() error
		says string
	}{
		"New without anything": {func() error { _, err := apitoken.New(apitoken.Config{}); return err }, "Issuer"},
		"New without Seal": {func() error {
			_, err := apitoken.New(apitoken.Config{Issuer: testIssuer, Audience: testAudience, Store: memstore.New()})
			return err
		}, "Seal"},
		"New with a bare issuer": {func() error {
			_, err := apitoken.New(apitoken.Config{Issuer: "auth", Audience: testAudience, Store: memstore.New(), InsecureKeysInStore: true})
			return err
		}, "must be a URL"},
		"a short secret":                {declare(apitoken.Client{ID: "a"}, apitoken.NewSecret("short")), "under 16 bytes"},
		"a client's unknown scope":      {declare(apitoken.Client{ID: "a", Scopes: apitoken.Scopes{"order:read"}}, long), "order:read"},
		"a public client with a secret": {declare(apitoken.Client{ID: "a", Public: true}, long), "is public"},
		"a confidential one without":    {declare(apitoken.Client{ID: "a"}), "has no secret"},
		"a redirect to http":            {declare(apitoken.Client{ID: "a", Public: true, GrantTypes: code, RedirectURIs: []string{"http://app.example.com/cb"}}), "http://app.example.com/cb"},
		"the code grant, no URI":        {declare(apitoken.Client{ID: "a", Public: true, GrantTypes: code}), "RedirectURIs"},
		"an unknown role":               {issue(apitoken.Request{Subject: "alice", Roles: []string{"admin"}}), "admin"},
		"an unknown scope":              {issue(apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"orders:write"}}), "orders:write"},
		"a reserved claim":              {issue(apitoken.Request{Subject: "alice", Claims: map[string]any{"sub": "bob"}}), "sub"},
		"no subject":                    {issue(apitoken.Request{Scopes: apitoken.Scopes{"orders:read"}}), "neither a Subject"},
		"an unknown client":             {issue(apitoken.Request{Subject: "alice", Client: "nosuch"}), "nosuch"},
		"a ticket without a lifetime": {func() error {
			_, err := svc.Prepare(ctx, apitoken.Request{Subject: "alice"}, apitoken.Ticket{})
			return err
		}, "lifetime"},
		"a key that has expired already": {func() error {
			_, _, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "alice", Expires: time.Now().Add(-time.Hour)})
			return err
		}, "Expires has passed"},
		"no target":              {func() error { return svc.Revoke(ctx, apitoken.ByGrant(""), "x") }, "names nothing"},
		"a role's unknown scope": {func() error { return svc.SetRole(ctx, "clerk", apitoken.Scopes{"nosuch"}) }, "nosuch"},
		"a client that is there": {func() error {
			for range 2 {
				if _, _, err := svc.Clients.Create(ctx, apitoken.Client{ID: "twice"}); err != nil {
					return err
				}
			}
			return nil
		}, "twice"},
		"an update of nobody": {func() error {
			_, err := svc.Clients.Update(ctx, "nosuch", func(*apitoken.Client) error { return nil })
			return err
		}, "nosuch"},
		"a key of another kind": {func() error {
			k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			require.NoError(t, err)
			_, err = svc.SigningKeys.Import(ctx, k, "PS256")
			return err
		}, "PS256"},
		"reserved claims of a Token": {func() error {
			_, err := apitoken.NewToken(apitoken.TokenSpec{Claims: map[string]any{"iss": "x"}})
			return err
		}, "iss"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := c.call()
			require.Error(t, err)
			require.Contains(t, err.Error(), c.says)
		})
	}
}

// Where a client's or a caller's input decides, Error() is the class alone: it may be what a client is answered.
func TestWhatClientsMaySeeStaysTheClass(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	web := confidential(t, svc, apitoken.Client{ID: "web", GrantTypes: []string{"client_credentials"}, Scopes: apitoken.Scopes{"orders:read"}})
	alice := issue(t, svc, apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"orders:read"}})
	wrong := web
	wrong.Secret = apitoken.NewSecret("a-secret-that-is-another")
	for name, call := range map[string]func() error{
		"Validate":              func() error { _, err := svc.Validate(ctx, apitoken.Bearer("nonsense")); return err },
		"Refresh":               func() error { _, err := svc.Refresh(ctx, apitoken.RefreshRequest{Token: "at_rt_nonsense"}); return err },
		"Redeem":                func() error { _, err := svc.Redeem(ctx, apitoken.Redemption{Ticket: "nonsense"}); return err },
		"Exchange":              func() error { _, err := svc.Exchange(ctx, apitoken.ExchangeRequest{Auth: web}); return err },
		"Authenticate":          func() error { _, err := svc.Clients.Authenticate(ctx, wrong); return err },
		"Issue, a wrong secret": func() error { _, err := svc.Issue(ctx, apitoken.Request{Auth: wrong}); return err },
		"Issue, a scope too many": func() error {
			_, err := svc.Issue(ctx, apitoken.Request{Auth: web, Scopes: apitoken.Scopes{"x"}})
			return err
		},
		"Prepare for a client": func() error { _, err := svc.Prepare(ctx, apitoken.Request{Auth: web}, apitoken.Ticket{}); return err },
		"another's key":        func() error { return svc.APIKeys.For(alice.Token).Revoke(ctx, "nosuch", "x") },
		"a key with too many": func() error {
			_, _, err := svc.APIKeys.For(alice.Token).Create(ctx, apitoken.APIKeyRequest{Scopes: apitoken.Scopes{"x"}})
			return err
		},
		"another's registration": func() error { _, err := svc.Clients.Registered(ctx, "web", apitoken.NewSecret("x")); return err },
		"Issue, an unknown client": func() error {
			_, err := svc.Issue(ctx, apitoken.Request{Auth: apitoken.ClientAuth{ID: "nosuch"}})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := call()
			var e *apitoken.Error
			require.True(t, errors.As(err, &e), "%v", err)
			require.Equal(t, e.Code.Error(), err.Error())
		})
	}
}
