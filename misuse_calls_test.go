package apitoken_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/apitokentest"
	"github.com/apitoken-go/apitoken/store/boltstore"
	"github.com/apitoken-go/apitoken/store/memstore"
)

// What stops a program at its start says why in plain text: its reader is the operator, who prints the error.
func TestConstructorsSayWhatIsWrong(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	open := filepath.Join(dir, "open.key")
	require.NoError(t, os.WriteFile(open, []byte("x"), 0o600))
	require.NoError(t, os.Chmod(open, 0o644))
	junk := filepath.Join(dir, "junk.key")
	require.NoError(t, os.WriteFile(junk, []byte("x"), 0o600))
	with := func(f func(*apitoken.Config)) func() error {
		return func() error {
			c := apitoken.Config{Issuer: "https://a.example.com", Audience: "https://b.example.com", Store: memstore.New(), InsecureKeysInStore: true}
			f(&c)
			_, err := apitoken.New(c)
			return err
		}
	}
	for name, c := range map[string]struct {
		f           func() error
		field, text string
	}{
		"empty":      {func() error { _, err := apitoken.New(apitoken.Config{}); return err }, "Issuer", "is required"},
		"audience":   {with(func(c *apitoken.Config) { c.Audience = "" }), "Audience", "good everywhere"},
		"store":      {with(func(c *apitoken.Config) { c.Store = nil }), "Store", "boltstore.Open"},
		"no store":   {with(func(c *apitoken.Config) { c.Store = (*boltstore.Store)(nil) }), "Store", "is required"},
		"no sealer":  {with(func(c *apitoken.Config) { c.InsecureKeysInStore, c.Seal = false, nil }), "Seal", "KeyFile"},
		"nil sealer": {with(func(c *apitoken.Config) { c.InsecureKeysInStore, c.Seal = false, (*sealer)(nil) }), "Seal", "error looked at"},
		"lifetime":   {with(func(c *apitoken.Config) { c.Lifetimes.Access = 48 * time.Hour }), "Lifetimes.MaxAccess", "refresh token"},
		"role": {with(func(c *apitoken.Config) {
			c.Scopes = map[apitoken.Scope]string{"a": ""}
			c.Roles = map[string]apitoken.Scopes{"r": {"b"}}
		}), "Roles", `"b"`},
		"key":       {func() error { _, err := apitoken.NewSealer([]byte("short")); return err }, "Seal", "32 bytes"},
		"no key":    {func() error { _, err := apitoken.NewSealer(); return err }, "Seal", "no key"},
		"no file":   {func() error { _, err := apitoken.KeyFile(""); return err }, "Seal", "a path"},
		"no place":  {func() error { _, err := apitoken.KeyFile(filepath.Join(dir, "nowhere", "x.key")); return err }, "Seal", "directory"},
		"open file": {func() error { _, err := apitoken.KeyFile(open); return err }, "Seal", "chmod 600"},
		"junk file": {func() error { _, err := apitoken.KeyFile(junk); return err }, "Seal", "not a key file"},
	} {
		err := c.f()
		var wrong *apitoken.ConfigError
		require.ErrorAs(t, err, &wrong, name)
		require.Equal(t, c.field, wrong.Field, name)
		require.ErrorContains(t, err, c.text, name)
		require.ErrorIs(t, err, apitoken.ErrInvalidRequest, name)
	}
}

type sealer struct{}

func (*sealer) Seal(context.Context, []byte, []byte) ([]byte, error) { return nil, errors.New("no") }
func (*sealer) Open(context.Context, []byte, []byte) ([]byte, error) { return nil, errors.New("no") }

// Where a client's credential decides, an error's Error() is for clients; %v, and whatever wraps it by %w, say what was wrong.
func TestErrorsHaveTwoReaders(t *testing.T) {
	t.Parallel()
	svc := apitokentest.New(t, func(c *apitoken.Config) { c.Scopes = map[apitoken.Scope]string{"orders:read": "See orders"} })
	_, secret, err := svc.Clients.Create(context.Background(), apitoken.Client{ID: "web", GrantTypes: []string{"client_credentials"}, Scopes: apitoken.Scopes{"orders:read"}})
	require.NoError(t, err)
	_, err = svc.Issue(context.Background(), apitoken.Request{Auth: apitoken.ClientAuth{ID: "web", Secret: secret}, Scopes: apitoken.Scopes{"order:read"}})
	require.Equal(t, "apitoken: invalid scope", err.Error())
	require.Equal(t, "apitoken: invalid scope", fmt.Sprintf("%s", err))
	require.Equal(t, `apitoken: invalid scope: scope "order:read" is not in Config.Scopes`, fmt.Sprint(err))
	require.Equal(t, `"apitoken: invalid scope"`, fmt.Sprintf("%q", err))
	require.Equal(t, `apitoken: invalid scope: scope "order:read" is not in Config.Scopes`, fmt.Sprintf("%+v", err))
	require.Equal(t, `more: apitoken: invalid scope: scope "order:read" is not in Config.Scopes`, fmt.Sprintf("%v", fmt.Errorf("more: %w", err)))
	full := &apitoken.Error{Code: apitoken.ErrUnavailable, Detail: "read", Cause: &apitoken.Error{Code: apitoken.ErrInvalidClient, Detail: "the issuer's"}}
	require.Equal(t, "apitoken: temporarily unavailable: read: apitoken: invalid client: the issuer's", fmt.Sprintf("%+v", full))
	require.Equal(t, "apitoken: error", fmt.Sprintf("%+v", &apitoken.Error{}))
	require.Equal(t, "<nil>", fmt.Sprintf("%+v", (*apitoken.Error)(nil)))
}

// A handler that lost its guard ends with a sentence, not with the address of nothing.
func TestZeroTokenSaysWhy(t *testing.T) {
	t.Parallel()
	none := apitoken.FromContext(context.Background())
	for name, f := range map[string]func(){
		"ID": func() { none.ID() }, "IsAPIKey": func() { none.IsAPIKey() }, "Issuer": func() { none.Issuer() }, "Subject": func() { none.Subject() }, "Client": func() { none.Client() },
		"Grant": func() { none.Grant() }, "Audiences": func() { none.Audiences() }, "Scopes": func() { none.Scopes() }, "Roles": func() { none.Roles() }, "Actors": func() { none.Actors() },
		"IssuedAt": func() { none.IssuedAt() }, "ExpiresAt": func() { none.ExpiresAt() }, "Binding": func() { none.Binding() }, "IsClient": func() { none.IsClient() },
		"Claims": func() { _ = none.Claims(&struct{}{}) },
	} {
		require.PanicsWithValue(t, "apitoken: the zero Token says nothing: no guard has put one into this context", f, name)
	}
	require.True(t, none.IsZero())
	require.False(t, none.Allows("orders"))
	require.ErrorIs(t, none.Check(apitoken.Authenticated()), apitoken.ErrInsufficientScope)
	require.ErrorIs(t, none.Recheck(context.Background()), apitoken.ErrInvalidToken)
	require.Zero(t, none.Freshness())
	require.Equal(t, "none", fmt.Sprint(none))
}

// Whoever goes on after Close is told so, in everything that would change something.
func TestAfterClose(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := apitokentest.New(t)
	i, err := svc.Issue(ctx, apitoken.Request{Subject: "alice", Refresh: true})
	require.NoError(t, err)
	require.NoError(t, svc.Close())
	require.NoError(t, svc.Close(), "twice is once")
	for name, f := range map[string]func() error{
		"Issue": func() error { _, err := svc.Issue(ctx, apitoken.Request{Subject: "alice"}); return err },
		"Refresh": func() error {
			_, err := svc.Refresh(ctx, apitoken.RefreshRequest{Token: i.Refresh.Reveal()})
			return err
		},
		"Revoke":  func() error { return svc.Revoke(ctx, apitoken.BySubject("bob"), "x") }, // in force here all the same
		"SetRole": func() error { return svc.SetRole(ctx, "admin", apitoken.Scopes{"admin"}) },
		"Create": func() error {
			_, _, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "alice"})
			return err
		},
		"Client": func() error {
			_, _, err := svc.Clients.Create(ctx, apitoken.Client{GrantTypes: []string{"client_credentials"}})
			return err
		},
		"Alert": func() error { return svc.Alert(ctx, apitoken.Event{Reason: "x"}) },
		"Once":  func() error { return svc.Adapter().Once(ctx, "x", svc.Now().Add(time.Minute)) },
	} {
		require.ErrorIs(t, f(), apitoken.ErrUnavailable, name)
	}
	_, err = svc.RevokeLeaked(ctx, []byte(i.Refresh.Reveal()), "x") // last: it ends, in this process, what Refresh asks for
	require.ErrorIs(t, err, apitoken.ErrUnavailable)
}
