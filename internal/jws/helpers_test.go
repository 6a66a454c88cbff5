package jws

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"sync"
	"testing"

	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"
)

type testKey struct {
	public  *PublicKey
	private any // what golang-jwt signs with
	method  jwt.SigningMethod
}

func (k *testKey) sign(t testing.TB, input string) []byte {
	t.Helper()
	sig, err := k.method.Sign(input, k.private)
	require.NoError(t, err)
	return sig
}

var makeKeys = sync.OnceValue(func() map[string]*testKey {
	must := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	keys := map[string]*testKey{}
	add := func(alg string, private any) {
		k := &testKey{private: private, method: jwt.GetSigningMethod(alg)}
		public := private
		if s, ok := private.(crypto.Signer); ok {
			public = s.Public()
		}
		var err error
		k.public, err = NewPublicKey("key-"+alg, alg, public)
		must(err)
		keys[alg] = k
	}
	for alg, curve := range map[string]elliptic.Curve{"ES256": elliptic.P256(), "ES384": elliptic.P384(), "ES512": elliptic.P521()} {
		private, err := ecdsa.GenerateKey(curve, rand.Reader)
		must(err)
		add(alg, private)
	}
	private, err := rsa.GenerateKey(rand.Reader, minRSA)
	must(err)
	for _, alg := range []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"} {
		add(alg, private)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	must(err)
	add("EdDSA", ed)
	add("HS256", []byte("0123456789abcdef0123456789abcdef"))
	return keys
})

// testKeys is one key for each algorithm, made once.
func testKeys(tb testing.TB) map[string]*testKey {
	tb.Helper()
	return makeKeys()
}
