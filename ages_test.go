package apitoken_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/apitokentest"
)

// A page can show the key before and the key after each key, the ages of secrets, and when a signing key ends.

func TestARotatedKeyAndItsSuccessorNameEachOther(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := apitokentest.New(t)
	first, _, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "alice", Scopes: apitoken.Scopes{"orders"}})
	require.NoError(t, err)
	require.Empty(t, first.Predecessor+first.Successor)
	svc.Advance(time.Second) // lists go by the IDs, and those by the time
	second, _, err := svc.APIKeys.Rotate(ctx, first.ID, time.Hour)
	require.NoError(t, err)
	require.Equal(t, first.ID, second.Predecessor)
	svc.Advance(time.Second)
	third, _, err := svc.APIKeys.Rotate(ctx, second.ID, 0)
	require.NoError(t, err)
	var list [][3]string
	for k, err := range svc.APIKeys.Of(ctx, "alice", apitoken.Page{}) {
		require.NoError(t, err)
		list = append(list, [3]string{k.Predecessor, k.ID, k.Successor})
	}
	require.Equal(t, [][3]string{{second.ID, third.ID, ""}, {first.ID, second.ID, third.ID}, {"", first.ID, second.ID}}, list)
}

func TestAgesOfAClientsSecrets(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := apitokentest.New(t)
	_, _, err := svc.Clients.Create(ctx, apitoken.Client{ID: "reports", Name: "Reports", GrantTypes: []string{"client_credentials"}, Scopes: apitoken.Scopes{"orders"}})
	require.NoError(t, err)
	made := svc.Now()
	svc.Advance(time.Hour)
	_, err = svc.Clients.RotateSecret(ctx, "reports", 20*time.Hour)
	require.NoError(t, err)
	secrets := func() (list [][2]time.Duration) {
		all, err := svc.Clients.Secrets(ctx, "reports")
		require.NoError(t, err)
		for _, x := range all {
			var ends time.Duration
			if !x.Expires.IsZero() {
				ends = x.Expires.Sub(made)
			}
			list = append(list, [2]time.Duration{x.Created.Sub(made), ends})
		}
		return list
	}
	require.Equal(t, [][2]time.Duration{{0, 21 * time.Hour}, {time.Hour, 0}}, secrets())
	svc.Advance(20 * time.Hour)
	require.Equal(t, [][2]time.Duration{{time.Hour, 0}}, secrets(), "one that has ended is gone")
	_, err = svc.Clients.Secrets(ctx, "nobody")
	require.ErrorIs(t, err, apitoken.ErrNotFound)
}

// The state of a signing key ends when the next one's begins, and a retired key leaves when the last token that it signed has died.
func TestUntilWhenASigningKeyIsWhatItIs(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := apitokentest.New(t)
	ring := func() (list []apitoken.SigningKey) {
		list, err := svc.SigningKeys.List(ctx)
		require.NoError(t, err)
		return list
	}
	require.Len(t, ring(), 1)
	require.NoError(t, svc.SigningKeys.Rotate(ctx))
	now := ring()
	require.Len(t, now, 2)
	require.Equal(t, "next", now[0].State)
	require.Equal(t, now[0].Until, now[1].Until, "one takes over from the other")
	svc.Advance(now[0].Until.Sub(svc.Now()))
	later := ring()
	require.Equal(t, "active", later[0].State)
	require.Equal(t, now[0].Until, later[0].Since)
	require.Equal(t, "retired", later[1].State)
	svc.Advance(later[1].Until.Sub(svc.Now()))
	require.Len(t, ring(), 1)
}
