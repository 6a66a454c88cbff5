package apitoken_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/store"
)

func edit(k *apitoken.APIKeys, id string, f func(*apitoken.APIKey)) (apitoken.APIKey, error) {
	return k.Edit(context.Background(), id, func(x *apitoken.APIKey) error { f(x); return nil })
}

// TestEditAPIKey: the host changes what it likes, a caller only takes away from its own key.
func TestEditAPIKey(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	st := tempStore(t)
	limit := func(c *apitoken.Config) { c.Limits.APIKeysPerSubject = 2 }
	svc, other := serviceOn(t, st, limit), serviceOn(t, st, limit)
	end := time.Now().Add(time.Hour).Truncate(time.Millisecond)
	key, secret, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "alice", Name: "ci", Scopes: apitoken.Scopes{"orders"}, Expires: end,
		Metadata: map[string]string{"env": "prod"}})
	require.NoError(t, err)
	require.Equal(t, secret.Reveal()[len(secret.Reveal())-4:], key.Last)
	require.Equal(t, "active", key.State(time.Now()))
	require.Equal(t, "expired", key.State(end))
	session := issue(t, svc, apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"orders", "admin"}})
	view := svc.APIKeys.For(session.Token)

	// A caller.
	for name, f := range map[string]func(*apitoken.APIKey){
		"wider": func(x *apitoken.APIKey) { x.Scopes = append(x.Scopes, "admin") }, "later": func(x *apitoken.APIKey) { x.Expires = end.Add(time.Second) },
		"for ever": func(x *apitoken.APIKey) { x.Expires = time.Time{} }, "disabled": func(x *apitoken.APIKey) { x.Disabled = true },
		"uses": func(x *apitoken.APIKey) { x.MaxUses = 1 }, "refill": func(x *apitoken.APIKey) { x.MaxUses, x.UsesPer = 1, "day" },
		"rate": func(x *apitoken.APIKey) { x.Rate = apitoken.Rate{Burst: 1, Per: time.Second} },
	} {
		_, err := edit(view, key.ID, f)
		require.True(t, errors.Is(err, apitoken.ErrDenied) || errors.Is(err, apitoken.ErrInvalidScope), "%s: %v", name, err)
	}
	bob := issue(t, svc, apitoken.Request{Subject: "bob"})
	_, err = edit(svc.APIKeys.For(bob.Token), key.ID, func(x *apitoken.APIKey) { x.Name = "mine" })
	require.ErrorIs(t, err, apitoken.ErrNotFound)
	changed, err := edit(view, key.ID, func(x *apitoken.APIKey) {
		x.Name, x.Scopes, x.Expires = "build", apitoken.Scopes{"orders:read"}, end.Add(-time.Minute)
		x.Metadata["team"] = "shop"
		x.Subject, x.Uses = "bob", 1 // count for nothing
	})
	require.NoError(t, err)
	require.Equal(t, "alice", changed.Subject)
	require.Zero(t, changed.MaxUses)
	require.Equal(t, map[string]string{"env": "prod", "team": "shop"}, changed.Metadata)
	for _, process := range []*apitoken.Service{svc, other} {
		require.Eventually(t, func() bool {
			token, err := process.Validate(ctx, apitoken.Bearer(secret.Reveal()))
			return err == nil && token.Allows("orders:read") && !token.Allows("orders:write") && token.ExpiresAt().Equal(end.Add(-time.Minute))
		}, time.Minute, time.Millisecond)
	}

	// The host.
	for name, f := range map[string]func(*apitoken.APIKey){
		"a name":      func(x *apitoken.APIKey) { x.Name = "\x00" },
		"metadata":    func(x *apitoken.APIKey) { x.Metadata = map[string]string{"x": strings.Repeat("x", 2048)} },
		"a value":     func(x *apitoken.APIKey) { x.Metadata = map[string]string{"x": "\n"} },
		"an end":      func(x *apitoken.APIKey) { x.Expires = time.Now().Add(-time.Second) },
		"a far year":  func(x *apitoken.APIKey) { x.Expires = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) },
		"an interval": func(x *apitoken.APIKey) { x.MaxUses, x.UsesPer = 1, "week" },
		"no uses":     func(x *apitoken.APIKey) { x.UsesPer = "day" },
		"half a rate": func(x *apitoken.APIKey) { x.Rate.Burst = 1 },
	} {
		_, err := edit(svc.APIKeys, key.ID, f)
		require.ErrorIs(t, err, apitoken.ErrInvalidRequest, name)
	}
	changed, err = edit(svc.APIKeys, key.ID, func(x *apitoken.APIKey) {
		x.Scopes, x.Expires, x.Disabled = apitoken.Scopes{"orders", "admin"}, time.Time{}, true
	})
	require.NoError(t, err)
	require.Equal(t, "disabled", changed.State(time.Now()))
	token := func(process *apitoken.Service) error { return validate(process, secret) }
	for _, process := range []*apitoken.Service{svc, other} {
		require.Eventually(t, func() bool { return errors.Is(token(process), apitoken.ErrInvalidToken) }, time.Minute, time.Millisecond)
	}
	next, fresh, err := svc.APIKeys.Rotate(ctx, key.ID, time.Hour)
	require.NoError(t, err)
	require.True(t, next.Disabled, "a rotation enables nothing")
	require.Equal(t, changed.Metadata, next.Metadata)
	require.ErrorIs(t, validate(svc, fresh), apitoken.ErrInvalidToken)
	_, err = edit(svc.APIKeys, next.ID, func(x *apitoken.APIKey) { x.Disabled = false })
	require.NoError(t, err)
	for _, process := range []*apitoken.Service{svc, other} {
		require.Eventually(t, func() bool {
			token, err := process.Validate(ctx, apitoken.Bearer(fresh.Reveal()))
			return err == nil && token.Allows("admin")
		}, time.Minute, time.Millisecond)
	}

	// Found by its metadata; what has happened stands in the log.
	var found []string
	for x, err := range svc.APIKeys.List(ctx, apitoken.Page{}) {
		require.NoError(t, err)
		if x.Metadata["team"] == "shop" && x.State(time.Now().Add(2*time.Hour)) == "active" {
			found = append(found, x.ID)
		}
	}
	require.Equal(t, []string{next.ID}, found)
	var reasons []string
	for _, e := range events(t, svc, apitoken.EventQuery{Type: event.APIKeyChanged, OldestFirst: true}) {
		reasons = append(reasons, strings.TrimSuffix(e.Reason, key.ID))
	}
	require.Equal(t, []string{"created", "changed", "disabled", "rotated from ", "enabled"}, reasons)

	// A key that lives longer still takes up its room; one that has ended is not edited.
	second, _, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "alice", Expires: time.Now().Add(time.Minute)})
	require.NoError(t, err)
	_, err = edit(svc.APIKeys, second.ID, func(x *apitoken.APIKey) { x.Expires = time.Time{} })
	require.NoError(t, err)
	_, _, err = svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "alice"})
	require.ErrorIs(t, err, apitoken.ErrLimited)
	require.NoError(t, svc.APIKeys.Revoke(ctx, second.ID, "done"))
	_, err = edit(svc.APIKeys, second.ID, func(x *apitoken.APIKey) { x.Name = "again" })
	require.ErrorIs(t, err, apitoken.ErrNotFound)
	got, err := svc.APIKeys.Get(ctx, second.ID)
	require.NoError(t, err)
	require.Equal(t, "revoked", got.State(time.Now()))

	// A stream that was let in with a key that is disabled ends.
	standing, err := svc.Validate(ctx, apitoken.Bearer(fresh.Reveal()))
	require.NoError(t, err)
	_, err = edit(svc.APIKeys, next.ID, func(x *apitoken.APIKey) { x.Disabled = true })
	require.NoError(t, err)
	require.Eventually(t, func() bool { return standing.Recheck(ctx) != nil }, time.Minute, time.Millisecond)
}

// TestExhaustedAPIKey is shown as such.
func TestExhaustedAPIKey(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	key, secret, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "alice", MaxUses: 1})
	require.NoError(t, err)
	_, err = apitoken.Authorize(ctx, svc, apitoken.Bearer(secret.Reveal()), apitoken.Authenticated())
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		key, err = svc.APIKeys.Get(ctx, key.ID)
		return err == nil && key.State(time.Now()) == "exhausted"
	}, time.Minute, time.Millisecond)
}

// TestAKeyThatEndsDuringAnEdit: a key whose time is over while the host lets it live longer has lost its place, if others took it.
func TestAKeyThatEndsDuringAnEdit(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	at := &clock{}
	st := tempStore(t)
	with := func(c *apitoken.Config) { c.Now, c.Limits.APIKeysPerSubject = at.Now, 1 }
	svc, other := serviceOn(t, st, with), serviceOn(t, st, with)
	key, _, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "alice", Expires: at.Now().Add(time.Minute)})
	require.NoError(t, err)
	_, err = svc.APIKeys.Edit(ctx, key.ID, func(x *apitoken.APIKey) error {
		at.Advance(2 * time.Minute)
		_, _, err := other.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "alice"})
		require.NoError(t, err)
		x.Expires = time.Time{}
		return nil
	})
	require.ErrorIs(t, err, apitoken.ErrNotFound)
	live := 0
	for k, err := range svc.APIKeys.Of(ctx, "alice", apitoken.Page{}) {
		require.NoError(t, err)
		if k.State(at.Now()) == "active" {
			live++
		}
	}
	require.Equal(t, 1, live)
}

// An error of the host's function ends an edit at once, even a store.ErrConflict from a store of the host's.
func TestAnErrorOfTheHostEndsAnEdit(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	x, _, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "alice", Name: "ci"})
	require.NoError(t, err)
	for _, refused := range []error{errEngine, fmt.Errorf("the host's own store: %w", store.ErrConflict)} {
		calls := 0
		got, err := svc.APIKeys.Edit(ctx, x.ID, func(*apitoken.APIKey) error { calls++; return refused })
		require.Equal(t, refused, err)
		require.Empty(t, got)
		require.Equal(t, 1, calls)
	}
}
