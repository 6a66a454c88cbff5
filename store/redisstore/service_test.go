package redisstore_test

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/redisstore"
)

func serve(t *testing.T, st store.Store, choice apitoken.RestoreChoice) (*apitoken.Service, error) {
	t.Helper()
	svc, err := apitoken.New(apitoken.Config{
		Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: st, InsecureKeysInStore: true, Restored: choice,
	})
	if err == nil {
		t.Cleanup(func() { _ = svc.Close() })
	}
	return svc, err
}

// TestRevocationOutlivesFailover is the whole service: a failover loses an acknowledged revocation. No process that knew it
// lets the token through again, it is not refreshed by any, and a process that starts afterwards, and can't know, refuses
// to start until somebody has chosen.
func TestRevocationOutlivesFailover(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	primary, replica := pair(t)
	door := newProxy(t, primary.Addr)
	node := func() *redisstore.Store { return openAt(t, door.client(t, nil), nil) }
	a, err := serve(t, node(), apitoken.RefuseRestored)
	require.NoError(t, err)
	b, err := serve(t, node(), apitoken.RefuseRestored)
	require.NoError(t, err)
	issued, err := a.Issue(ctx, apitoken.Request{Subject: "alice", Refresh: true})
	require.NoError(t, err)
	kept, err := a.Issue(ctx, apitoken.Request{Subject: "bob", Refresh: true})
	require.NoError(t, err)
	access := apitoken.Bearer(issued.Access.Reveal())
	require.NoError(t, b.Sync(ctx))
	_, err = b.Validate(ctx, access)
	require.NoError(t, err)
	inStep(t, primary)
	cutReplica(t, primary)

	require.NoError(t, a.Revoke(ctx, apitoken.BySubject("alice"), "left the company"))
	require.NoError(t, b.Sync(ctx))
	primary.Kill()
	promote(t, replica)
	door.point(replica.Addr)

	for name, svc := range map[string]*apitoken.Service{"the one that revoked": a, "one that heard": b} {
		eventually(t, func() bool { return svc.Sync(ctx) == nil }, "they read the store that is there now")
		_, err = svc.Validate(ctx, access)
		require.ErrorIs(t, err, apitoken.ErrRevoked, name)
		_, err = svc.Refresh(ctx, apitoken.RefreshRequest{Token: issued.Refresh.Reveal()})
		require.Error(t, err, name)
		require.False(t, errors.Is(err, store.ErrDiverged), name)
		_, err = svc.Validate(ctx, apitoken.Bearer(kept.Access.Reveal()))
		require.NoError(t, err, "who was not revoked goes on")
	}
	eventually(t, func() bool {
		_, err := b.Refresh(ctx, apitoken.RefreshRequest{Token: kept.Refresh.Reveal()})
		return err == nil
	}, "and is refreshed")

	_, err = serve(t, node(), apitoken.RefuseRestored)
	require.ErrorContains(t, err, "Restored", "who starts now can't know what was lost")
	c, err := serve(t, node(), apitoken.RevokeOnRestore)
	require.NoError(t, err)
	_, err = c.Validate(ctx, access)
	require.ErrorIs(t, err, apitoken.ErrRevoked)
}
