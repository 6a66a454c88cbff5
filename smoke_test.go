package apitoken_test

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/store/boltstore"
)

func TestSmoke(t *testing.T) {
	dir := t.TempDir()
	ctx := context.Background()
	var refresh, access, apikey string
	for round := range 2 {
		st, err := boltstore.Open(filepath.Join(dir, "tokens.db"), nil)
		require.NoError(t, err)
		seal, err := apitoken.KeyFile(filepath.Join(dir, "tokens.key"))
		require.NoError(t, err)
		svc, err := apitoken.New(apitoken.Config{Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: st, Seal: seal})
		require.NoError(t, err)
		if round == 0 {
			i, err := svc.Issue(ctx, apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"orders:read"}, Refresh: true, Claims: map[string]any{"x": 1}})
			require.NoError(t, err)
			access, refresh = i.Access.Reveal(), i.Refresh.Reveal()
			x, sec, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "bob", Name: "k", Scopes: apitoken.Scopes{"a"}, MaxUses: 3})
			require.NoError(t, err)
			apikey = sec.Reveal()
			fmt.Println(x, apikey, refresh)
		}
		tok, err := svc.Validate(ctx, apitoken.Bearer(access))
		require.NoError(t, err, svc.Explain(ctx, apitoken.Bearer(access), apitoken.Requirement{}))
		require.Equal(t, "alice", tok.Subject())
		_, err = svc.Validate(ctx, apitoken.Bearer(access))
		require.NoError(t, err)
		_, err = svc.Validate(ctx, apitoken.Bearer(apikey))
		require.NoError(t, err)
		n, err := svc.Refresh(ctx, apitoken.RefreshRequest{Token: refresh})
		require.NoError(t, err)
		again, err := svc.Refresh(ctx, apitoken.RefreshRequest{Token: refresh})
		require.NoError(t, err)
		require.Equal(t, n.Refresh.Reveal(), again.Refresh.Reveal())
		require.Equal(t, n.Token.ID(), again.Token.ID())
		refresh = n.Refresh.Reveal()
		if round == 1 {
			require.NoError(t, svc.Revoke(ctx, apitoken.BySubject("alice"), "gone"))
			_, err = svc.Validate(ctx, apitoken.Bearer(access))
			require.ErrorIs(t, err, apitoken.ErrRevoked)
			_, err = svc.Refresh(ctx, apitoken.RefreshRequest{Token: refresh})
			require.ErrorIs(t, err, apitoken.ErrInvalidGrant)
		}
		for e, err := range svc.Events(ctx, apitoken.EventQuery{}) {
			require.NoError(t, err)
			fmt.Println(e.Time, e.Type, e.Subject, e.Reason, e.Count)
		}
		require.NoError(t, svc.Close())
		require.NoError(t, st.Close())
	}
}
