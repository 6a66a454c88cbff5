package apitoken_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"testing"
	"testing/synctest"
	"time"

	gojwt "github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/memstore"
)

// silent is a store that tells nobody of its changes: other processes hear of them at their next poll.
type silent struct{ store.Store }

// What another process did to a client a moment ago is known before this one says no: a client that it made, a secret that it
// gave, a client that a host names for its subject.
func TestAClientOfAnotherProcessIsKnownAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { // where a look at the store ends in time
		ctx := context.Background()
		st := silent{memstore.New()}
		slow := func(c *apitoken.Config) { c.Validation.MaxStaleness = time.Hour } // no poll comes to help
		a, b := serviceOn(t, st, slow), serviceOn(t, st, slow)
		for range 5 {
			c, secret, err := a.Clients.Create(ctx, apitoken.Client{GrantTypes: []string{"client_credentials", "refresh_token"}, Scopes: apitoken.Scopes{"orders:read"}})
			require.NoError(t, err)
			auth := apitoken.ClientAuth{ID: c.ID, Secret: secret}
			_, err = b.Clients.Authenticate(ctx, auth)
			require.NoError(t, err, "made a moment ago")
			_, err = b.Issue(ctx, apitoken.Request{Auth: auth, Scopes: apitoken.Scopes{"orders:read"}})
			require.NoError(t, err)

			next, err := a.Clients.RotateSecret(ctx, c.ID, time.Minute)
			require.NoError(t, err)
			_, err = b.Clients.Authenticate(ctx, apitoken.ClientAuth{ID: c.ID, Secret: next})
			require.NoError(t, err, "its secret was given a moment ago")
			_, err = b.Clients.Authenticate(ctx, apitoken.ClientAuth{ID: c.ID, Secret: apitoken.NewSecret("wrong")})
			require.ErrorIs(t, err, apitoken.ErrInvalidClient)

			spa, _, err := a.Clients.Create(ctx, apitoken.Client{Public: true, GrantTypes: []string{"refresh_token"}, Scopes: apitoken.Scopes{"orders:read"}})
			require.NoError(t, err)
			r := apitoken.Request{Subject: "alice", Client: spa.ID, Scopes: apitoken.Scopes{"orders:read"}}
			require.NoError(t, b.Adapter().Check(ctx, r))
			spa, _, err = a.Clients.Create(ctx, apitoken.Client{Public: true, GrantTypes: []string{"refresh_token"}, Scopes: apitoken.Scopes{"orders:read"}})
			require.NoError(t, err)
			r.Client = spa.ID
			issue(t, b, r)
			spa, _, err = a.Clients.Create(ctx, apitoken.Client{Public: true})
			require.NoError(t, err)
			_, err = b.Clients.Authenticate(ctx, apitoken.ClientAuth{ID: spa.ID})
			require.NoError(t, err, "a public client too")
		}
		_, err := b.Clients.Authenticate(ctx, apitoken.ClientAuth{ID: "nobody", Secret: apitoken.NewSecret("x")})
		require.ErrorIs(t, err, apitoken.ErrInvalidClient)
		_, err = b.Issue(ctx, apitoken.Request{Subject: "alice", Client: "nobody"})
		require.ErrorIs(t, err, apitoken.ErrInvalidClient)
	})
}

// An htu has one port; a default one behind another is not dropped.
func TestATargetWithTwoPorts(t *testing.T) {
	t.Parallel()
	svc := serviceOn(t, memstore.New(), nil)
	p := newProver(t, "ES256")
	token := boundTo(t, svc, p)
	for htu, good := range map[string]bool{
		"https://api.example.com:8443/orders": true, "https://api.example.com:8443:443/orders": false, "https://api.example.com:8443:/orders": false,
		"https://api.example.com::8443/orders": false, "https://api.example.com:443:8443/orders": false,
	} {
		proof := p.proof(t, "GET", htu, token, time.Now(), nil)
		_, err := svc.Validate(context.Background(), apitoken.Credential{Token: token, DPoP: proof, Method: "GET", URL: "https://api.example.com:8443/orders"})
		if good {
			require.NoError(t, err, htu)
		} else {
			require.ErrorIs(t, err, apitoken.ErrInvalidProof, htu)
		}
	}
}

// To explain a request is not to answer it: its proof is good afterwards, and one that was used is called so.
func TestExplainSpendsNoProof(t *testing.T) {
	t.Parallel()
	svc := serviceOn(t, memstore.New(), nil)
	p := newProver(t, "ES256")
	token := boundTo(t, svc, p)
	proof := p.proof(t, "GET", resource, token, time.Now(), nil)
	c := apitoken.Credential{Token: token, DPoP: proof, Method: "GET", URL: resource}
	for range 3 {
		require.NoError(t, svc.Explain(context.Background(), c, apitoken.Authenticated()).Err)
	}
	require.NoError(t, present(svc, token, proof))
	require.ErrorIs(t, svc.Explain(context.Background(), c, apitoken.Authenticated()).Err, apitoken.ErrInvalidProof)
	require.ErrorIs(t, present(svc, token, proof), apitoken.ErrInvalidProof)
}

// A token that names no audience is for nobody: introspection says what Validate says, and nothing is exchanged for it.
func TestATokenForNobodyIsNotActive(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := serviceOn(t, memstore.New(), nil)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	k, err := svc.SigningKeys.Import(ctx, key, "ES256")
	require.NoError(t, err)
	i := issue(t, svc, apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"orders:read"}})
	claims := gojwt.MapClaims{}
	_, _, err = gojwt.NewParser().ParseUnverified(i.Access.Reveal(), claims)
	require.NoError(t, err)
	sign := func() string {
		tok := gojwt.NewWithClaims(gojwt.SigningMethodES256, claims)
		tok.Header["kid"], tok.Header["typ"] = k.ID, "at+jwt"
		text, err := tok.SignedString(key)
		require.NoError(t, err)
		return text
	}
	x, err := svc.Adapter().Introspect(ctx, sign())
	require.NoError(t, err)
	require.True(t, x.Active, "with its audience")
	for name, aud := range map[string]any{"absent": nil, "empty": []string{}} {
		if delete(claims, "aud"); aud != nil {
			claims["aud"] = aud
		}
		text := sign()
		_, err = svc.Validate(ctx, apitoken.Bearer(text))
		require.ErrorIs(t, err, apitoken.ErrInvalidToken, name)
		x, err = svc.Adapter().Introspect(ctx, text)
		require.NoError(t, err)
		require.False(t, x.Active, name)
	}
}
