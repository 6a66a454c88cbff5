package apitoken_test

import (
	"context"
	"crypto/rand"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/memstore"
)

// damage writes a record as a newer version, or somebody with a hex editor, may have left it.
func damage(t *testing.T, st store.Store, r store.Record) {
	t.Helper()
	old, err := st.Get(t.Context(), r.Kind, r.ID)
	if err == nil {
		r.Subject, r.Client, r.Grant, r.Token, r.Type, r.Expires = old.Subject, old.Client, old.Grant, old.Token, old.Type, old.Expires
	}
	c := &store.Change{Puts: []store.Put{{Record: r, Expect: old.Version}}}
	rand.Read(c.ID[:])
	_, err = st.Apply(t.Context(), c)
	require.NoError(t, err)
}

func TestADamagedRecordStopsNobodyElse(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		st := memstore.New()
		c := apitoken.Config{Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: st, InsecureKeysInStore: true,
			Roles: map[string]apitoken.Scopes{"admin": {"a"}, "clerk": {"b"}}, Validation: apitoken.Validation{MaxStaleness: time.Second}}
		svc, err := apitoken.New(c)
		require.NoError(t, err)
		defer svc.Close()
		for _, id := range []string{"good", "bad"} {
			_, _, err := svc.Clients.Create(ctx, apitoken.Client{ID: id, Public: true, GrantTypes: []string{"refresh_token"}, Scopes: apitoken.Scopes{"b"}})
			require.NoError(t, err)
		}
		alice, err := svc.Issue(ctx, apitoken.Request{Subject: "alice"})
		require.NoError(t, err)
		bob, err := svc.Issue(ctx, apitoken.Request{Subject: "bob"})
		require.NoError(t, err)
		key, secret, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "bob"})
		require.NoError(t, err)
		_, err = svc.Validate(ctx, apitoken.Bearer(secret.Reveal()))
		require.NoError(t, err)

		later := []byte(`{"v":1,"from_a_later_version":true}`)
		damage(t, st, store.Record{Kind: store.KindClient, ID: "bad", Data: later})
		damage(t, st, store.Record{Kind: store.KindRole, ID: "admin", Data: later})
		damage(t, st, store.Record{Kind: store.KindAPIKey, ID: key.ID, Data: later})
		damage(t, st, store.Record{Kind: store.KindRule, ID: "06h0000000000000000000000a", Type: "subject", Subject: "alice", Data: later})

		check := func(svc *apitoken.Service) {
			require.NoError(t, svc.Sync(ctx))
			_, err := svc.Validate(ctx, apitoken.Bearer(bob.Access.Reveal()))
			require.NoError(t, err, "who is not concerned is not refused")
			_, err = svc.Validate(ctx, apitoken.Bearer(alice.Access.Reveal()))
			require.ErrorIs(t, err, apitoken.ErrRevoked, "a rule that cannot be read refuses what it may be about")
			_, err = svc.Validate(ctx, apitoken.Bearer(secret.Reveal()))
			require.ErrorIs(t, err, apitoken.ErrUnavailable)
			_, err = svc.Issue(ctx, apitoken.Request{Subject: "carol", Client: "good"})
			require.NoError(t, err)
			_, err = svc.Issue(ctx, apitoken.Request{Subject: "carol", Client: "bad"})
			require.ErrorIs(t, err, apitoken.ErrUnavailable)
			_, err = svc.Issue(ctx, apitoken.Request{Subject: "bad"})
			require.ErrorIs(t, err, apitoken.ErrInvalidRequest, "it is a client's ID still")
			_, err = svc.Issue(ctx, apitoken.Request{Subject: "carol", Roles: []string{"clerk"}})
			require.NoError(t, err)
			_, err = svc.Issue(ctx, apitoken.Request{Subject: "carol", Roles: []string{"admin"}})
			require.ErrorIs(t, err, apitoken.ErrUnavailable)
			_, err = svc.Issue(ctx, apitoken.Request{Subject: "alice"})
			require.NoError(t, err, "what is issued since is good")
			time.Sleep(1200 * time.Millisecond) // the bubble's: longer than MaxStaleness
			require.False(t, svc.Freshness().Stale)
		}
		check(svc)
		again, err := apitoken.New(c)
		require.NoError(t, err)
		defer again.Close()
		check(again)
	})
}

// What descends from an identity that the host began to confirm before a revocation is refused with it.
func TestBegin(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := serviceOn(t, memstore.New(), nil)
	begun := svc.Begin(ctx)
	_, err := svc.Issue(begun, apitoken.Request{Subject: "alice"})
	require.NoError(t, err)
	require.NoError(t, svc.Revoke(ctx, apitoken.BySubject("alice"), "left"))
	_, err = svc.Issue(begun, apitoken.Request{Subject: "alice"})
	require.ErrorIs(t, err, apitoken.ErrInvalidGrant)
	_, _, err = svc.APIKeys.Create(begun, apitoken.APIKeyRequest{Subject: "alice"})
	require.ErrorIs(t, err, apitoken.ErrRevoked)
	_, err = svc.Issue(ctx, apitoken.Request{Subject: "alice"})
	require.NoError(t, err)
}
