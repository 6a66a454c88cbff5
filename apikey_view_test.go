package apitoken_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/keyhash"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/memstore"
)

// The keys of an organization are its own: whoever the host lets act for it makes and lists them, the log says who did what, and they
// stay when that person leaves and end when the organization does.
func TestKeysOfAnOrganization(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	const acme = "org:acme"
	svc := service(t, func(c *apitoken.Config) { c.FirstParty, c.Limits.APIKeysPerSubject = "web", 3 })
	app, _, err := svc.Clients.Create(ctx, apitoken.Client{ID: "app", Public: true, GrantTypes: []string{"refresh_token"}, Scopes: apitoken.Scopes{"orders:read"}})
	require.NoError(t, err)
	alice := issue(t, svc, apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"orders"}, Refresh: true})
	bob := issue(t, svc, apitoken.Request{Subject: "bob", Scopes: apitoken.Scopes{"orders"}, Refresh: true})
	byApp := issue(t, svc, apitoken.Request{Subject: "bob", Client: app.ID, Scopes: apitoken.Scopes{"orders:read"}, Refresh: true})
	require.NoError(t, svc.Revoke(ctx, apitoken.BySubject(acme), "unpaid"), "before: what follows counts from when the host says so")
	require.NoError(t, svc.Sync(ctx))

	own := svc.APIKeys.ForOwner(alice.Token, acme)
	key, secret, err := own.Create(ctx, apitoken.APIKeyRequest{Name: "build", Scopes: apitoken.Scopes{"orders:write"}})
	require.NoError(t, err)
	require.Equal(t, acme, key.Subject)
	token, err := svc.Validate(ctx, apitoken.Bearer(secret.Reveal()))
	require.NoError(t, err)
	require.Equal(t, acme, token.Subject())
	seen, err := svc.Adapter().Introspect(ctx, secret.Reveal())
	require.NoError(t, err)
	require.Equal(t, acme, seen.Token.Subject)

	// Another member manages it; a member's own keys are others.
	others := svc.APIKeys.ForOwner(bob.Token, acme)
	_, err = edit(others, key.ID, func(x *apitoken.APIKey) { x.Name = "deploy" })
	require.NoError(t, err)
	_, _, err = svc.APIKeys.For(bob.Token).Create(ctx, apitoken.APIKeyRequest{})
	require.NoError(t, err)
	require.ErrorIs(t, second(svc.APIKeys.For(alice.Token).Get(ctx, key.ID)), apitoken.ErrNotFound)
	require.ErrorIs(t, second(svc.APIKeys.ForOwner(alice.Token, "org:other").Get(ctx, key.ID)), apitoken.ErrNotFound)
	require.ErrorIs(t, third(own.Create(ctx, apitoken.APIKeyRequest{Subject: "alice"})), apitoken.ErrDenied)
	require.ErrorIs(t, third(own.Create(ctx, apitoken.APIKeyRequest{Scopes: apitoken.Scopes{"admin"}})), apitoken.ErrInvalidScope, "no more than the member holds")
	require.ErrorIs(t, third(svc.APIKeys.ForOwner(token, acme).Create(ctx, apitoken.APIKeyRequest{})), apitoken.ErrDenied)
	require.ErrorIs(t, third(svc.APIKeys.ForOwner(alice.Token, "").Create(ctx, apitoken.APIKeyRequest{})), apitoken.ErrDenied)
	require.ErrorIs(t, third(svc.APIKeys.ForOwner(alice.Token, app.ID).Create(ctx, apitoken.APIKeyRequest{})), apitoken.ErrInvalidRequest)
	next, fresh, err := others.Rotate(ctx, key.ID, time.Hour)
	require.NoError(t, err)
	last, lastSecret, err := svc.APIKeys.ForOwner(byApp.Token, acme).Create(ctx, apitoken.APIKeyRequest{Scopes: apitoken.Scopes{"orders:read"}})
	require.NoError(t, err)
	require.NoError(t, others.Revoke(ctx, key.ID, "replaced"))

	listed := map[string]bool{}
	for x, err := range own.List(ctx, apitoken.Page{}) {
		require.NoError(t, err)
		listed[x.ID] = true
	}
	require.Equal(t, map[string]bool{key.ID: true, next.ID: true, last.ID: true}, listed)

	var log []string
	for _, e := range events(t, svc, apitoken.EventQuery{Subject: acme, OldestFirst: true}) {
		if e.Type == event.APIKeyChanged && e.TokenID == key.ID || e.Type == event.Revoked && e.Reason == "replaced" {
			log = append(log, fmt.Sprint(e.Reason, " by ", e.Actor))
		}
	}
	require.Equal(t, []string{"created by alice", "changed by bob", "replaced by bob"}, log)

	// Members leave, their sessions end: the keys are the organization's. The application's goes with the application.
	for _, target := range []apitoken.Target{apitoken.BySubject("alice"), apitoken.BySubject("bob"), apitoken.ByGrant(byApp.Token.Grant())} {
		require.NoError(t, svc.Revoke(ctx, target, "left"))
	}
	require.NoError(t, validate(svc, fresh))
	require.NoError(t, validate(svc, lastSecret))
	require.ErrorIs(t, second(own.Get(ctx, next.ID)), apitoken.ErrRevoked)
	require.NoError(t, svc.Revoke(ctx, apitoken.ByClient(app.ID), "gone"))
	require.ErrorIs(t, validate(svc, lastSecret), apitoken.ErrRevoked)
	require.NoError(t, svc.Revoke(ctx, apitoken.BySubject(acme), "cancelled"))
	require.ErrorIs(t, validate(svc, fresh), apitoken.ErrRevoked)
}

// A key that the host lets live longer still ends with what it was made from: what is noted of that is kept for as long.
func TestAKeyThatLivesLongerEndsWithWhatItWasMadeFrom(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	st := memstore.New()
	svc := serviceOn(t, st, nil)
	_, _, err := svc.Clients.Create(ctx, apitoken.Client{ID: "app", Public: true, GrantTypes: []string{"refresh_token"}})
	require.NoError(t, err)
	session := issue(t, svc, apitoken.Request{Subject: "alice", Client: "app", Refresh: true})
	end := time.Now().Add(24 * time.Hour).Truncate(time.Millisecond)
	key, _, err := svc.APIKeys.For(session.Token).Create(ctx, apitoken.APIKeyRequest{Expires: end})
	require.NoError(t, err)
	notes := func() (until []int64) {
		page, err := st.List(ctx, store.Query{Kind: "lineage"})
		require.NoError(t, err)
		for _, r := range page.Records {
			until = append(until, r.Expires)
		}
		require.NotEmpty(t, until)
		return until
	}
	for _, until := range notes() {
		require.Equal(t, end.Add(30*24*time.Hour).UnixMilli(), until, "as long as the key stays in lists")
	}
	for _, longer := range []time.Time{end.Add(time.Hour), {}} {
		_, err = edit(svc.APIKeys, key.ID, func(x *apitoken.APIKey) { x.Expires = longer })
		require.NoError(t, err)
		for _, until := range notes() {
			if longer.IsZero() {
				require.Zero(t, until)
				continue
			}
			require.Equal(t, longer.Add(30*24*time.Hour).UnixMilli(), until)
		}
	}
}

// Keys are found by what the host wrote on them, a bounded number of them looked at in each call.
func TestKeysAreFoundByMetadata(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := serviceOn(t, tempStore(t), nil)
	alice := issue(t, svc, apitoken.Request{Subject: "alice"})
	var want []string
	for i := range 50 {
		r := apitoken.APIKeyRequest{Subject: []string{"alice", "bob"}[i%2], Metadata: map[string]string{"team": fmt.Sprint(i % 5), "env": "prod"}}
		if i == 7 {
			r.Metadata = nil
		}
		k, _, err := svc.APIKeys.Create(ctx, r)
		require.NoError(t, err)
		if i%2 == 0 && i%5 == 3 {
			want = append([]string{k.ID}, want...)
		}
	}
	find := func(k *apitoken.APIKeys, q apitoken.APIKeyQuery) (ids []string, calls int) {
		t.Helper()
		for {
			list, next, err := k.Find(ctx, q)
			require.NoError(t, err)
			require.LessOrEqual(t, len(list), q.Limit)
			for _, x := range list {
				ids = append(ids, x.ID)
			}
			calls++
			if q.Cursor = next; next == "" {
				return ids, calls
			}
		}
	}
	team := map[string]string{"team": "3", "env": "prod"}
	ids, calls := find(svc.APIKeys, apitoken.APIKeyQuery{Subject: "alice", Metadata: team, Limit: 4})
	require.Equal(t, want, ids)
	require.GreaterOrEqual(t, calls, 25/4, "each call is bounded")
	ids, _ = find(svc.APIKeys.For(alice.Token), apitoken.APIKeyQuery{Metadata: team, Limit: 1000})
	require.Equal(t, want, ids, "a caller finds its own")
	ids, _ = find(svc.APIKeys, apitoken.APIKeyQuery{Metadata: team, Limit: 10})
	require.Len(t, ids, 10)
	ids, _ = find(svc.APIKeys, apitoken.APIKeyQuery{Limit: 20})
	require.Len(t, ids, 50)
	ids, _ = find(svc.APIKeys, apitoken.APIKeyQuery{Metadata: map[string]string{"team": ""}, Limit: 50})
	require.Empty(t, ids)

	// Find sees the changed metadata.
	_, err := edit(svc.APIKeys, want[0], func(x *apitoken.APIKey) { x.Metadata["team"] = "x" })
	require.NoError(t, err)
	ids, _ = find(svc.APIKeys, apitoken.APIKeyQuery{Metadata: map[string]string{"team": "x"}, Limit: 50})
	require.Equal(t, want[:1], ids)

	require.ErrorIs(t, third(svc.APIKeys.For(alice.Token).Find(ctx, apitoken.APIKeyQuery{Subject: "bob"})), apitoken.ErrNotFound)
	_, _, err = svc.APIKeys.Find(ctx, apitoken.APIKeyQuery{Cursor: "nonsense"})
	require.ErrorIs(t, err, apitoken.ErrInvalidRequest)
}

func BenchmarkFindAPIKeys(b *testing.B) {
	ctx := context.Background()
	svc := serviceOn(b, tempStore(b), func(c *apitoken.Config) {
		c.KeyHashes = map[string]keyhash.Form{"sha256": keyhash.SHA256("sk_live_")}
	})
	var list []apitoken.ImportedKey
	for range 5000 {
		_, x := oldKey("sha256", nil, "alice")
		x.Metadata = map[string]string{"team": "shop", "env": "prod"}
		list = append(list, x)
	}
	_, err := svc.APIKeys.Import(ctx, slices.Values(list))
	require.NoError(b, err)
	for b.Loop() {
		_, _, err := svc.APIKeys.Find(ctx, apitoken.APIKeyQuery{Metadata: map[string]string{"team": "none"}})
		require.NoError(b, err)
	}
}
