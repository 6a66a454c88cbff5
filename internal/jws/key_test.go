package jws

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestWeakKeysAreRefused(t *testing.T) {
	t.Parallel()
	good := testKeys(t)
	ec := good["ES256"].public.Key.(*ecdsa.PublicKey)
	modulus := good["RS256"].public.Key.(*rsa.PublicKey).N
	for name, c := range map[string]struct {
		alg string
		key any
	}{
		"no key":                        {"ES256", nil},
		"a nil EC key":                  {"ES256", (*ecdsa.PublicKey)(nil)},
		"an EC key without a point":     {"ES256", &ecdsa.PublicKey{Curve: elliptic.P256()}},
		"a point off the curve":         {"ES256", &ecdsa.PublicKey{Curve: elliptic.P256(), X: big.NewInt(1), Y: big.NewInt(1)}},
		"a point outside the field":     {"ES256", &ecdsa.PublicKey{Curve: elliptic.P256(), X: new(big.Int).Add(ec.X, elliptic.P256().Params().P), Y: ec.Y}},
		"a negative coordinate":         {"ES256", &ecdsa.PublicKey{Curve: elliptic.P256(), X: new(big.Int).Neg(ec.X), Y: ec.Y}},
		"the point at infinity":         {"ES256", &ecdsa.PublicKey{Curve: elliptic.P256(), X: new(big.Int), Y: new(big.Int)}},
		"another curve's algorithm":     {"ES384", ec},
		"an EC key for RSA":             {"RS256", ec},
		"a curve that JWA lacks":        {"ES224", &ecdsa.PublicKey{Curve: elliptic.P224(), X: big.NewInt(1), Y: big.NewInt(1)}},
		"a nil RSA key":                 {"RS256", (*rsa.PublicKey)(nil)},
		"an RSA key without a modulus":  {"RS256", &rsa.PublicKey{E: 65537}},
		"a short modulus":               {"RS256", &rsa.PublicKey{N: new(big.Int).SetBit(big.NewInt(1), minRSA-2, 1), E: 65537}},
		"a long modulus":                {"RS256", &rsa.PublicKey{N: new(big.Int).SetBit(big.NewInt(1), maxRSA, 1), E: 65537}},
		"an even modulus":               {"RS256", &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), minRSA), E: 65537}},
		"exponent one":                  {"RS256", &rsa.PublicKey{N: modulus, E: 1}},
		"an even exponent":              {"RS256", &rsa.PublicKey{N: modulus, E: 65536}},
		"a negative exponent":           {"RS256", &rsa.PublicKey{N: modulus, E: -3}},
		"RSA without an algorithm":      {"", &rsa.PublicKey{N: modulus, E: 65537}},
		"an RSA key's bytes as secret":  {"RS256", modulus.Bytes()},
		"a short Ed25519 key":           {"EdDSA", ed25519.PublicKey(make([]byte, 31))},
		"a long Ed25519 key":            {"EdDSA", ed25519.PublicKey(bytes.Repeat([]byte{7}, 33))},
		"an Ed25519 key for ECDSA":      {"ES256", good["EdDSA"].public.Key},
		"a short secret":                {"HS256", make([]byte, minHMAC-1)},
		"a secret under none":           {"none", make([]byte, minHMAC)},
		"a secret for what is not made": {"HS512", make([]byte, 64)},
		"a private key":                 {"ES256", good["ES256"].private},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := NewPublicKey("k", c.alg, c.key)
			require.Error(t, err)
		})
	}
	for i, low := range lowPoints {
		for _, sign := range []byte{0, 0x80} {
			key := bytes.Clone(low)
			key[31] |= sign
			_, err := NewPublicKey("k", "EdDSA", ed25519.PublicKey(key))
			require.Error(t, err, "small order, point %d", i)
		}
	}
}

func TestAlgorithmIsTheKeysOwn(t *testing.T) {
	t.Parallel()
	keys := testKeys(t)
	for alg, k := range keys {
		for other := range keys {
			require.Equal(t, alg == other, k.public.Allows(other), "%s under %s", alg, other)
		}
		for _, never := range []string{"", "none", "None", strings.ToLower(alg), alg + " "} {
			require.False(t, k.public.Allows(never), "%s under %q", alg, never)
		}
	}
	require.True(t, keys["EdDSA"].public.Allows("Ed25519"), "RFC 9864")
	k, err := NewPublicKey("k", "Ed25519", keys["EdDSA"].public.Key)
	require.NoError(t, err)
	require.True(t, k.Allows("EdDSA") && k.Allows("Ed25519"))
}

func TestSignatures(t *testing.T) {
	t.Parallel()
	const input = "eyJhbGciOiJ4In0.e30"
	keys := testKeys(t)
	for alg, k := range keys {
		t.Run(alg, func(t *testing.T) {
			t.Parallel()
			sig := k.sign(t, input)
			require.NoError(t, k.public.Verify(input, sig), "made by golang-jwt")
			require.Error(t, k.public.Verify(input+"x", sig))
			require.Error(t, k.public.Verify(input, nil))
			require.Error(t, k.public.Verify(input, sig[:len(sig)-1]))
			require.Error(t, k.public.Verify(input, append(bytes.Clone(sig), 0)))
			require.Error(t, k.public.Verify(input, append([]byte{0}, sig...)))
			require.Error(t, k.public.Verify(input, make([]byte, len(sig))))
			require.Error(t, k.public.Verify(input, bytes.Repeat([]byte{0xff}, len(sig))))
			for _, at := range []int{0, len(sig) / 2, len(sig) - 1} {
				bad := bytes.Clone(sig)
				bad[at] ^= 1
				require.Error(t, k.public.Verify(input, bad), "byte %d changed", at)
			}
			for other, o := range keys {
				if other != alg && len(o.public.KID) > 0 {
					require.Error(t, o.public.Verify(input, sig), "under %s", other)
				}
			}
		})
	}
}

// RFC 7518 §3.5 fixes the salt at the hash's size; the usual readers take any.
func TestSaltHasTheHashsSize(t *testing.T) {
	t.Parallel()
	k := testKeys(t)["PS256"]
	for _, size := range []int{0, 20, 31, 32, 33, 64} {
		sig, err := rsa.SignPSS(rand.Reader, k.private.(*rsa.PrivateKey), hashOf("PS256"), digest(nil, "PS256", "input"), &rsa.PSSOptions{SaltLength: size})
		require.NoError(t, err)
		require.Equal(t, size == 32, k.public.Verify("input", sig) == nil, "a salt of %d bytes", size)
	}
}

func mustJWK(t testing.TB, k *PublicKey) string {
	t.Helper()
	doc, err := MarshalJWK(k)
	require.NoError(t, err)
	return string(doc)
}

func TestKeySets(t *testing.T) {
	t.Parallel()
	keys := testKeys(t)
	es, rs := mustJWK(t, keys["ES256"].public), mustJWK(t, keys["RS256"].public)
	private := `{"kty":"OKP","crv":"Ed25519","kid":"p","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","d":"nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A"}`
	member := func(jwk, name, value string) string {
		var m map[string]any
		require.NoError(t, json.Unmarshal([]byte(jwk), &m))
		m[name] = json.RawMessage(value)
		out, err := json.Marshal(m)
		require.NoError(t, err)
		return string(out)
	}
	second, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	other, err := NewPublicKey("key-ES256", "ES256", second.Public())
	require.NoError(t, err)
	otherES := mustJWK(t, other)
	wrapped := base64.RawURLEncoding.EncodeToString([]byte{1, 0, 0, 0, 0, 0, 1, 0, 1}) // 2^64 + 65537

	for name, c := range map[string]struct {
		set         string
		taken, left int
	}{
		"none":                            {``, 0, 0},
		"two":                             {es + "," + rs, 2, 0},
		"the same twice":                  {es + "," + es, 1, 1},
		"one kid, two keys":               {es + "," + otherES, 0, 2},
		"one kid, two types":              {es + "," + member(rs, "kid", `"key-ES256"`), 2, 0},
		"one kid, two of one type":        {es + "," + member(rs, "kid", `"key-ES256"`) + "," + otherES, 1, 2},
		"no kid, two types":               {member(es, "kid", `""`) + "," + member(rs, "kid", `""`), 2, 0},
		"a private key":                   {es + "," + private, 1, 1},
		"a shared secret":                 {es + `,{"kty":"oct","k":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}`, 1, 1},
		"for encryption":                  {member(es, "use", `"enc"`), 0, 1},
		"use in another case":             {member(es, "use", `"SIG"`), 0, 1},
		"for signing alone":               {member(es, "key_ops", `["sign"]`), 0, 1},
		"for verifying":                   {member(es, "key_ops", `["sign","verify"]`), 1, 0},
		"key_ops of another type":         {member(es, "key_ops", `"verify"`), 0, 1},
		"another curve's alg":             {member(es, "alg", `"ES384"`), 0, 1},
		"alg none":                        {member(es, "alg", `"none"`), 0, 1},
		"alg of a secret":                 {member(rs, "alg", `"HS256"`), 0, 1},
		"a kid that no token can name":    {member(es, "kid", `"`+strings.Repeat("k", maxKID+1)+`"`), 0, 1},
		"an exponent that would be cut":   {member(rs, "e", `"`+wrapped+`"`), 0, 1},
		"an exponent with a leading zero": {member(rs, "e", `"AAEAAQ"`), 1, 0},
		"a type of the future":            {es + `,{"kty":"AKP","alg":"ML-DSA-44","pub":"AA"}`, 1, 1},
		"what is no key":                  {es + `,1,null,"x",[],{}`, 1, 5},
		"a member that nobody knows":      {member(es, "extra", `{"e":1}`), 1, 0},
		"a member that differs by case":   {strings.Replace(es, `"crv"`, `"CRV"`, 1), 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			taken, left, err := ParseJWKS([]byte(`{"keys":[`+c.set+`]}`), nil)
			require.NoError(t, err)
			require.Len(t, taken, c.taken)
			require.Len(t, left, c.left)
		})
	}
	for name, doc := range map[string]string{
		"nothing":                 ``,
		"no keys":                 `{}`,
		"null":                    `{"keys":null}`,
		"another case":            `{"Keys":[` + es + `]}`,
		"beside another case":     `{"keys":[],"KEYS":[` + es + `]}`,
		"twice":                   `{"keys":[],"keys":[` + es + `]}`,
		"twice, escaped":          `{"keys":[],"\u006beys":[` + es + `]}`,
		"a list":                  `[` + es + `]`,
		"an object":               `{"keys":{}}`,
		"more behind":             `{"keys":[]}{}`,
		"no comma":                `{"keys":[` + es + es + `]}`,
		"a comma in front":        `{"keys":[,` + es + `]}`,
		"a comma behind":          `{"keys":[` + es + `,]}`,
		"a name twice in one key": `{"keys":[` + strings.Replace(es, `"crv"`, `"kid":"x","crv"`, 1) + `]}`,
		"not UTF-8":               "{\"keys\":[],\"x\":\"\xff\"}",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			taken, left, err := ParseJWKS([]byte(doc), nil)
			require.Error(t, err)
			require.Nil(t, taken)
			require.Nil(t, left)
		})
	}
}

// A set in which two keys claim one name must not end tokens under the one that is known.
func TestAKnownKeyIsMeantByItsName(t *testing.T) {
	t.Parallel()
	known := map[string]*PublicKey{}
	var texts []string
	for range 2 {
		_, private, err := ed25519.GenerateKey(rand.Reader)
		require.NoError(t, err)
		s, err := NewSigner("k", "EdDSA", private, false)
		require.NoError(t, err)
		texts = append(texts, mustJWK(t, s.Public))
		known["k"] = s.Public // the second
	}
	for _, set := range []string{texts[0] + "," + texts[1], texts[1] + "," + texts[0]} {
		keys, left, err := ParseJWKS([]byte(`{"keys":[`+set+`]}`), &known)
		require.NoError(t, err)
		require.Len(t, left, 1)
		require.Len(t, keys, 1)
		require.True(t, keys[0].Equal(known["k"]))
	}
}

// A fleet with many audiences and quick rotation publishes hundreds of keys; a set that outgrew its readers would
// stop them all.
func TestKeySetsOfAThousandKeys(t *testing.T) {
	t.Parallel()
	var set strings.Builder
	add := func(i int) {
		if i > 0 {
			set.WriteByte(',')
		}
		_, private, err := ed25519.GenerateKey(rand.Reader)
		require.NoError(t, err)
		s, err := NewSigner("", "EdDSA", private, false)
		require.NoError(t, err)
		set.WriteString(mustJWK(t, s.Public))
	}
	for i := range maxSetKeys {
		add(i)
	}
	keys, left, err := ParseJWKS([]byte(`{"keys":[`+set.String()+`]}`), nil)
	require.NoError(t, err)
	require.Empty(t, left)
	require.Len(t, keys, 1000)

	add(maxSetKeys)
	_, _, err = ParseJWKS([]byte(`{"keys":[`+set.String()+`]}`), nil)
	require.ErrorIs(t, err, errMembers)

	_, _, err = ParseJWKS(fmt.Appendf(nil, `{"keys":[%s]}`, strings.Repeat(" ", maxSetBytes)), nil)
	require.ErrorIs(t, err, errSize)
}

func TestKeysOfProofs(t *testing.T) {
	t.Parallel()
	keys := testKeys(t)
	bare := func(alg string) string {
		var m map[string]any
		require.NoError(t, json.Unmarshal([]byte(mustJWK(t, keys[alg].public)), &m))
		delete(m, "alg")
		out, err := json.Marshal(m)
		require.NoError(t, err)
		return string(out)
	}
	for alg := range keys {
		if alg == "HS256" {
			continue
		}
		k, err := ParseProofKey([]byte(bare(alg)), alg)
		require.NoError(t, err, alg)
		require.Equal(t, alg, k.Alg)
		_, err = ParseProofKey([]byte(bare(alg)), "HS256")
		require.Error(t, err, "%s: the public key as a secret", alg)
		_, err = ParseProofKey([]byte(bare(alg)), "none")
		require.Error(t, err, alg)
	}
	_, err := ParseProofKey([]byte(mustJWK(t, keys["PS256"].public)), "RS256")
	require.Error(t, err, "the key names another algorithm")
}

// The key of RFC 7638 §3.1 and its thumbprint.
func TestThumbprint(t *testing.T) {
	t.Parallel()
	k, err := ParseJWK([]byte(`{"kty":"RSA","n":"0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw","e":"AQAB","alg":"RS256","kid":"2011-04-29"}`))
	require.NoError(t, err)
	print, err := Thumbprint(k.Key)
	require.NoError(t, err)
	require.Equal(t, "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs", print)
	_, err = MarshalJWK(testKeys(t)["HS256"].public)
	require.Error(t, err, "a secret is never published")
}

func TestSameKey(t *testing.T) {
	t.Parallel()
	keys := testKeys(t)
	for alg, k := range keys {
		for other, o := range keys {
			require.Equal(t, alg == other, k.public.Equal(o.public), "%s and %s", alg, other)
		}
	}
	a, b := *keys["HS256"].public, *keys["HS256"].public
	b.Key = bytes.Repeat([]byte{1}, minHMAC)
	require.False(t, a.Equal(&b))
}

// Whatever is taken can be stored as a JWK and read again: a key that cannot would stop the view of every process.
func TestLongestKeysReadBack(t *testing.T) {
	t.Parallel()
	n := new(big.Int).SetBit(big.NewInt(1), maxRSA-1, 1)
	k, err := NewPublicKey("k", "RS256", &rsa.PublicKey{N: n, E: maxExponent})
	require.NoError(t, err)
	sameKey(t, k)
	_, err = NewPublicKey("k", "RS256", &rsa.PublicKey{N: new(big.Int).SetBit(n, maxRSA, 1), E: 65537})
	require.Error(t, err)
}

func TestModuliThatCanBeFactored(t *testing.T) {
	t.Parallel()
	m := big.NewInt(2) // odd moduli
	for _, p := range rocaPrimes {
		m.Mul(m, new(big.Int).SetUint64(p))
	}
	n := new(big.Int).Exp(big.NewInt(65537), big.NewInt(12345), m)
	n.Add(n, new(big.Int).Mul(m, new(big.Int).Lsh(big.NewInt(1), uint(minRSA-m.BitLen()))))
	_, err := NewPublicKey("k", "RS256", &rsa.PublicKey{N: n, E: 65537})
	require.ErrorContains(t, err, "CVE-2017-15361")
	_, err = NewPublicKey("k", "RS256", &rsa.PublicKey{N: n.Add(n, big.NewInt(2)), E: 65537})
	require.NoError(t, err)
}

// A key that signs for one audience alone says so in its JWK, beside what every reader knows.
func TestTheAudienceOfAKey(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	k, err := NewPublicKey("a", "ES256", &key.PublicKey)
	require.NoError(t, err)
	plain, err := MarshalJWK(k)
	require.NoError(t, err)
	free, err := ParseJWK(plain)
	require.NoError(t, err)
	require.Empty(t, free.Audience)
	k.Audience = "https://api.example.com/<\u00e9>"
	doc, err := MarshalJWK(k)
	require.NoError(t, err)
	require.True(t, json.Valid(doc))
	back, err := ParseJWK(doc)
	require.NoError(t, err)
	require.Equal(t, k.Audience, back.Audience)
	require.True(t, back.Equal(k))
	require.False(t, back.Equal(free), "another use is another key")
	for _, x := range []struct {
		audiences []string
		bound     bool
	}{
		{[]string{k.Audience}, true}, {nil, false}, {[]string{"x"}, false}, {[]string{k.Audience, "x"}, false}, {[]string{k.Audience, k.Audience}, false},
	} {
		require.Equal(t, x.bound, back.SignsFor(x.audiences), "%q", x.audiences)
		require.True(t, free.SignsFor(x.audiences))
	}
	for _, bad := range []string{`""`, `null`, `["x"]`, `{}`, `7`, `"x","apitoken_aud":"y"`} {
		_, err := ParseJWK(append(append(bytes.TrimSuffix(bytes.Clone(plain), []byte("}")), `,"apitoken_aud":`+bad...), '}'))
		require.Error(t, err, bad)
	}
	// Of two keys with one kid that differ in this alone nobody can say which is meant.
	set := []byte(`{"keys":[` + string(plain) + `,` + string(doc) + `]}`)
	list, left, err := ParseJWKS(set, nil)
	require.NoError(t, err)
	require.Empty(t, list)
	require.NotEmpty(t, left)
}
