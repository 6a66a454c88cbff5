package apitoken_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	gojwt "github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
)

// An issuer that changes its algorithm may give the new key the old one's name (RFC 7517 §4.5): tokens of both are good, each
// under its own key alone.
func TestKeysOfTwoTypesUnderOneName(t *testing.T) {
	t.Parallel()
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	rs, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	for _, kid := range []string{"main", ""} {
		doc, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: ec.Public(), KeyID: kid, Algorithm: "ES256"}, {Key: rs.Public(), KeyID: kid, Algorithm: "RS256"}}})
		require.NoError(t, err)
		val, err := apitoken.NewValidator(apitoken.ValidatorConfig{Audience: testAudience,
			Trust: []apitoken.Trusted{{Issuer: otherIssuer, Keys: fixedKeys(doc), InsecureNoRevocations: true}}})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, val.Close()) })
		require.NoError(t, val.Ready(t.Context()))
		sign := func(m gojwt.SigningMethod, key crypto.PrivateKey) string {
			now := time.Now().Add(-time.Second)
			tok := gojwt.NewWithClaims(m, gojwt.MapClaims{"iss": otherIssuer, "sub": "alice", "aud": testAudience, "client_id": "app", "jti": rand.Text(), "iat": now.Unix(), "exp": now.Add(time.Minute).Unix()})
			if tok.Header["typ"] = "at+jwt"; kid != "" {
				tok.Header["kid"] = kid
			}
			text, err := tok.SignedString(key)
			require.NoError(t, err)
			return text
		}
		for range 2 {
			for _, good := range []string{sign(gojwt.SigningMethodES256, ec), sign(gojwt.SigningMethodRS256, rs)} {
				token, err := val.Validate(t.Context(), apitoken.Bearer(good))
				require.NoError(t, err, "kid %q", kid)
				require.NoError(t, val.Recheck(t.Context(), token))
			}
		}
		for _, bad := range []string{sign(gojwt.SigningMethodES256, stranger), sign(gojwt.SigningMethodPS256, rs), sign(gojwt.SigningMethodRS512, rs)} {
			_, err := val.Validate(t.Context(), apitoken.Bearer(bad))
			require.ErrorIs(t, err, apitoken.ErrInvalidToken)
		}
	}
}
