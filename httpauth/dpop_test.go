package httpauth_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/httpauth"
)

// TestDPoP is RFC 9449 §7 over the wire: the scheme, the proof, the nonce, and none of them where it doesn't belong.
func TestDPoP(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	jwk := jose.JSONWebKey{Key: key.Public()}
	sum, err := jwk.Thumbprint(crypto.SHA256)
	require.NoError(t, err)
	n := 0
	prove := func(token, nonce string) string {
		n++
		ath := sha256.Sum256([]byte(token))
		claims := jwt.MapClaims{"jti": fmt.Sprint(n), "htm": "GET", "htu": "https://api.example.com/orders", "iat": time.Now().Unix(), "ath": base64.RawURLEncoding.EncodeToString(ath[:])}
		if nonce != "" {
			claims["nonce"] = nonce
		}
		j := jwt.NewWithClaims(jwt.SigningMethodES256, claims)
		j.Header["typ"], j.Header["jwk"] = "dpop+jwt", jwk
		s, err := j.SignedString(key)
		require.NoError(t, err)
		return s
	}
	svc := newService(t, func(c *apitoken.Config) { c.Validation.RequireProofNonce = true })
	i, err := svc.Issue(context.Background(), apitoken.Request{Subject: "alice", Binding: apitoken.BindDPoP(base64.RawURLEncoding.EncodeToString(sum))})
	require.NoError(t, err)
	token := i.Access.Reveal()
	h := httpauth.New(svc, &httpauth.Options{BaseURL: "https://api.example.com"}).Authenticated(hello)

	w := get(h, "/orders", http.Header{"Authorization": {"DPoP " + token}, "Dpop": {prove(token, "")}})
	require.Equal(t, 401, w.Code)
	require.Contains(t, w.Header().Get("WWW-Authenticate"), `error="use_dpop_nonce"`)
	nonce := w.Header().Get("DPoP-Nonce")
	require.NotEmpty(t, nonce)
	require.Equal(t, "no-store", w.Header().Get("Cache-Control"))

	proof := prove(token, nonce)
	w = get(h, "/orders?page=2", http.Header{"Authorization": {"dpop " + token}, "Dpop": {proof}})
	require.Equal(t, 200, w.Code, "the query is not part of htu, the scheme's case is nobody's")
	w = get(h, "/orders", http.Header{"Authorization": {"DPoP " + token}, "Dpop": {proof}})
	require.Equal(t, 401, w.Code)
	require.Contains(t, w.Header().Get("WWW-Authenticate"), `error="invalid_dpop_proof"`)
	w = get(h, "/other", http.Header{"Authorization": {"DPoP " + token}, "Dpop": {prove(token, nonce)}})
	require.Equal(t, 401, w.Code, "a proof for another path")
	w = get(h, "/orders", http.Header{"Authorization": {"Bearer " + token}, "Dpop": {prove(token, nonce)}})
	require.Equal(t, 401, w.Code)
	require.Contains(t, w.Header().Get("WWW-Authenticate"), `error="invalid_token"`)
	require.NotContains(t, w.Header().Get("WWW-Authenticate"), "invalid_dpop_proof")
}
