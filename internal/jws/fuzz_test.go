package jws

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"
)

const fuzzLimit = 8 << 10

func b64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

// corpus is the folder of attack tokens that the whole validator is held to as well.
func corpus(tb testing.TB) (tokens []string) {
	tb.Helper()
	files, err := filepath.Glob(filepath.Join("..", "..", "testdata", "tokens", "*.json"))
	require.NoError(tb, err)
	require.NotEmpty(tb, files)
	for _, file := range files {
		doc, err := os.ReadFile(file)
		require.NoError(tb, err)
		var c struct{ Token string }
		if json.Unmarshal(doc, &c) == nil && c.Token != "" {
			tokens = append(tokens, c.Token)
		}
	}
	return tokens
}

// parts decodes the three parts of a token that was taken.
func parts(t *testing.T, token string) (header, payload string, sig []byte) {
	t.Helper()
	var out [3][]byte
	for i, part := range bytes.Split([]byte(token), []byte(".")) {
		var err error
		if i > 2 {
			t.Fatal("a fourth part was taken")
		}
		if out[i], err = base64.RawURLEncoding.Strict().DecodeString(string(part)); err != nil {
			t.Fatalf("part %d was taken, strict base64url refuses it: %v", i, err)
		}
		if base64.RawURLEncoding.EncodeToString(out[i]) != string(part) {
			t.Fatalf("part %d is not the one text of its bytes", i)
		}
	}
	return string(out[0]), string(out[1]), out[2]
}

// otherTakes gives a token that was taken to golang-jwt, which must not refuse it, and compares the claims.
func otherTakes(t *testing.T, token string, got *Token) {
	t.Helper()
	claims := jwt.MapClaims{}
	p := jwt.NewParser(jwt.WithJSONNumber(), jwt.WithoutClaimsValidation())
	other, _, err := p.ParseUnverified(token, claims)
	if errors.Is(err, jwt.ErrTokenUnverifiable) && jwt.GetSigningMethod(got.Header.Alg) == nil {
		return // it looks up alg while it reads; we do once the key is known
	}
	if err != nil {
		t.Fatalf("%q was taken, golang-jwt refuses it: %v", token, err)
	}
	require.Equal(t, other.Method.Alg(), got.Header.Alg)
	iss, err := claims.GetIssuer()
	require.NoError(t, err)
	require.Equal(t, iss, got.Claims.Issuer)
	sub, err := claims.GetSubject()
	require.NoError(t, err)
	require.Equal(t, sub, got.Claims.Subject)
	aud, err := claims.GetAudience()
	require.NoError(t, err)
	require.ElementsMatch(t, []string(aud), got.Claims.Audience)
	exp, err := claims.GetExpirationTime()
	require.NoError(t, err)
	if exp != nil { // it reads seconds through a float64
		require.InDelta(t, exp.Unix(), got.Claims.Expires, 1)
	}
}

// FuzzToken: a token that Parse takes is strict base64url and JSON, other readers take it with the same meaning, and
// reading it costs memory in proportion to its size.
func FuzzToken(f *testing.F) {
	for _, token := range corpus(f) {
		f.Add(token)
	}
	f.Fuzz(func(t *testing.T, token string) {
		var tok Token
		var err error
		if allocs := testing.AllocsPerRun(1, func() { err = Parse(token, fuzzLimit, &tok) }); allocs > float64(32+len(token)/2) {
			t.Fatalf("%v allocations for %d bytes", allocs, len(token))
		}
		if err != nil {
			return
		}
		if len(token) > fuzzLimit {
			t.Fatalf("%d bytes were taken", len(token))
		}
		header, payload, sig := parts(t, token)
		require.Equal(t, sig, tok.Signature)
		require.NotEmpty(t, sig)
		require.Equal(t, token, tok.SigningInput+"."+base64.RawURLEncoding.EncodeToString(sig))
		if m := mustObject(t, header); m != nil {
			sameHeader(t, &tok.Header, m, false)
		}
		if m := mustObject(t, payload); m != nil {
			sameClaims(t, &tok, m)
			otherTakes(t, token, &tok)
		}
		if key := testKeys(t)[tok.Header.Alg]; key != nil && key.public.Allows(tok.Header.Alg) {
			own := key.public.Verify(tok.SigningInput, tok.Signature) == nil
			if other := key.method.Verify(tok.SigningInput, tok.Signature, key.public.Key) == nil; own && !other {
				t.Fatalf("%q verifies here, with golang-jwt it does not", token)
			}
		}
	})
}

// FuzzHeader: the header of a genuinely signed token. What the whole path takes, golang-jwt takes under the same key.
func FuzzHeader(f *testing.F) {
	for _, token := range corpus(f) {
		if i := bytes.IndexByte([]byte(token), '.'); i > 0 {
			if h, err := base64.RawURLEncoding.DecodeString(token[:i]); err == nil {
				f.Add(string(h))
			}
		}
	}
	for _, h := range []string{
		`{"alg":"HS256"}`, `{"alg":"HS256","kid":"k","typ":"at+jwt"}`, `{"alg":"none"}`, `{"alg":"HS256","alg":"none"}`,
		`{"alg":"HS256","Alg":"none"}`, `{"alg":"HS256","\u0061lg":"none"}`, `{"alg":"HS256","crit":[]}`, `{"alg":"HS256","jwk":{}}`,
		`{"alg":"HS256","KId":"x"}`, `{"alg":"HS256","x":"` + "\xff" + `"}`, `{"alg":"HS256","x":"\ud800"}`, `{"alg":"HS256"} x`, `[]`, `null`, ``,
		`{"alg":"HS256","` + "\u212a" + `id":"k"}`, `{"alg":"Ed25519"}`, `{"alg":"EdDSA"}`,
	} {
		f.Add(h)
	}
	key := testKeys(f)["HS256"]
	f.Fuzz(func(t *testing.T, header string) {
		if len(header) > maxHeaderBytes {
			return
		}
		input := b64(header) + "." + b64(`{"iss":"a"}`)
		sig, err := jwt.SigningMethodHS256.Sign(input, key.public.Key)
		require.NoError(t, err)
		token := input + "." + base64.RawURLEncoding.EncodeToString(sig)
		var tok Token
		if Parse(token, fuzzLimit, &tok) != nil {
			return
		}
		if m := mustObject(t, header); m != nil {
			sameHeader(t, &tok.Header, m, false)
		} else {
			return
		}
		if !key.public.Allows(tok.Header.Alg) {
			return
		}
		if err := key.public.Verify(tok.SigningInput, tok.Signature); err != nil {
			t.Fatalf("a genuine signature was refused: %v", err)
		}
		_, err = jwt.Parse(token, func(*jwt.Token) (any, error) { return key.public.Key, nil },
			jwt.WithValidMethods([]string{"HS256"}), jwt.WithoutClaimsValidation())
		if err != nil {
			t.Fatalf("header %q was taken, golang-jwt refuses it: %v", header, err)
		}
	})
}

// FuzzClaims: payloads. Besides the differential, what was read comes out of AppendClaims and back in unchanged.
func FuzzClaims(f *testing.F) {
	for _, token := range corpus(f) {
		if p := bytes.Split([]byte(token), []byte(".")); len(p) > 1 {
			if body, err := base64.RawURLEncoding.DecodeString(string(p[1])); err == nil {
				f.Add(string(body))
			}
		}
	}
	for _, c := range []string{
		`{}`, ` { } `, `{"a":1}`, `{"iss":"a","iss":"b"}`, `{"iss":"a","ISS":"b"}`, `{"exp":1.9}`, `{"exp":1e3}`, `{"exp":-0}`, `{"aud":[]}`,
		`{"act":{"sub":"a","act":{"sub":"b","iss":"c"}}}`, `{"cnf":{"jkt":"x"}}`, `{"cnf":{"jkt":"x","x5t#S256":"y"}}`, `{"cnf":{}}`,
		`{"roles":["a"],"gra":["b","c"],"x":{"y":[1,2,{"z":null}]},"q":"\u00e9\n"}`, `{"x":"` + "\ufffd" + `"}`, `{"x":"\ud83d\ude00"}`,
	} {
		f.Add(c)
	}
	f.Fuzz(func(t *testing.T, payload string) {
		sameAsReference(t, payload)
		token := b64(`{"alg":"HS256"}`) + "." + b64(payload) + ".AA"
		var tok Token
		if Parse(token, fuzzLimit, &tok) != nil {
			return
		}
		if m := mustObject(t, payload); m != nil {
			sameClaims(t, &tok, m)
			otherTakes(t, token, &tok)
		}
		private := tok.PrivateClaims()
		if private != nil {
			private = compact(t, private)
		}
		again := string(AppendClaims(nil, &tok.Claims, private))
		if len(again)*4/3+32 > fuzzLimit {
			return
		}
		var back Token
		if err := Parse(b64(`{"alg":"HS256"}`)+"."+b64(again)+".AA", fuzzLimit, &back); err != nil {
			t.Fatalf("%q is written as %q, which is refused: %v", payload, again, err)
		}
		want := tok.Claims
		if kind, print, ok := cutBinding(want.Binding); !ok || kind == "" || print == "" {
			want.Binding = "" // what cannot be proved is never issued
		}
		if len(want.Audience) == 1 && want.Audience[0] == "" {
			want.Audience = nil
		}
		for _, list := range []*[]string{&want.Audience, &want.Roles, &want.Chain} {
			if len(*list) == 0 {
				*list = nil
			}
		}
		require.Equal(t, want, back.Claims)
		if private != nil {
			require.JSONEq(t, string(private), string(back.PrivateClaims()))
		}
	})
}

// FuzzJWKS: key sets. Keys that come out are public, strong, named once, and the same that go-jose reads.
func FuzzJWKS(f *testing.F) {
	doc, err := os.ReadFile(filepath.Join("..", "..", "testdata", "tokens", "keys.json"))
	require.NoError(f, err)
	var sets map[string]json.RawMessage
	require.NoError(f, json.Unmarshal(doc, &sets))
	for _, set := range sets {
		f.Add([]byte(set))
	}
	for _, key := range testKeys(f) {
		if jwk, err := MarshalJWK(key.public); err == nil {
			f.Add([]byte(`{"keys":[` + string(jwk) + `]}`))
			f.Add([]byte(`{"keys":[` + string(jwk) + `,` + string(jwk) + `]}`))
			f.Add([]byte(`{"Keys":[` + string(jwk) + `]}`))
		}
	}
	for _, s := range []string{`{"keys":[]}`, `{"keys":null}`, `{"keys":{}}`, `{"keys":[,]}`, `{"keys":[{}],"keys":[]}`, `{"keys":[1,"a",null,[]]}`, `{}`, ``} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		keys, left, err := ParseJWKS(doc, nil)
		if err != nil {
			if keys != nil || left != nil {
				t.Fatal("keys out of a set that was refused")
			}
			return
		}
		m := mustObject(t, string(doc))
		if m == nil {
			return
		}
		list, ok := m["keys"].([]any)
		if !ok {
			t.Fatalf("%q was taken for a set", doc)
		}
		if len(keys)+len(left) != len(list) || len(list) > maxSetKeys {
			t.Fatalf("of %d keys %d were taken and %d left with a reason", len(list), len(keys), len(left))
		}
		seen := map[string]bool{}
		for _, k := range keys {
			if seen[k.KID] {
				t.Fatalf("kid %q twice", k.KID)
			}
			seen[k.KID] = true
			i := slices.IndexFunc(list, func(v any) bool {
				jwk, ok := v.(map[string]any)
				kid, _ := jwk["kid"].(string)
				return ok && kid == k.KID && samePublicKey(jwk, k.Key)
			})
			if i < 0 {
				t.Fatalf("key %q is not in the set", k.KID)
			}
			sameKey(t, k)
		}
	})
}

// FuzzProof: proofs bring their own key in the header (RFC 9449 §4.2).
func FuzzProof(f *testing.F) {
	for alg, key := range testKeys(f) {
		if jwk, err := MarshalJWK(key.public); err == nil {
			f.Add(`{"typ":"dpop+jwt","alg":"`+alg+`","jwk":`+string(jwk)+`}`, `{"jti":"a","htm":"GET","htu":"https://a.example.com/","iat":1}`)
			f.Add(`{"typ":"dpop+jwt","alg":"none","jwk":`+string(jwk)+`}`, `{}`)
		}
	}
	f.Add(`{"typ":"dpop+jwt","alg":"ES256","jwk":{"kty":"oct","k":"AAAA"}}`, `{}`)
	f.Add(`{"typ":"dpop+jwt","alg":"ES256","jwk":[]}`, `{"htm":1,"HTU":"x"}`)
	f.Fuzz(func(t *testing.T, header, payload string) {
		token := b64(header) + "." + b64(payload) + ".AA"
		var tok Token
		if ParseProof(token, fuzzLimit, &tok) != nil {
			return
		}
		m := mustObject(t, header)
		if m == nil {
			return
		}
		sameHeader(t, &tok.Header, m, true)
		var plain Token
		if err := Parse(token, fuzzLimit, &plain); (err == nil) != (tok.Header.JWK == "") {
			t.Fatalf("a key in the header of a token that is no proof: %v", err)
		}
		if body := mustObject(t, payload); body != nil {
			for _, name := range []string{"htm", "htu", "ath", "nonce"} {
				text, err := tok.Text(name)
				want, isText := body[name].(string)
				_, there := body[name]
				if err == nil && there != isText || err == nil && text != want {
					t.Fatalf("%s: %q (%v) was read from %v", name, text, err, body[name])
				}
			}
		}
		if tok.Header.JWK == "" {
			return
		}
		key, err := ParseProofKey([]byte(tok.Header.JWK), tok.Header.Alg)
		if err != nil {
			return
		}
		if !key.Allows(tok.Header.Alg) {
			t.Fatal("a key under another algorithm than its own")
		}
		jwk := m["jwk"].(map[string]any)
		if !samePublicKey(jwk, key.Key) {
			t.Fatalf("%v was read as another key", jwk)
		}
		if jwk["d"] != nil {
			t.Fatal("a private key was taken for a public one")
		}
		sameKey(t, key)
	})
}

// sameKey writes a key that was taken and reads it again.
func sameKey(t *testing.T, k *PublicKey) {
	t.Helper()
	if _, shared := k.Key.([]byte); shared {
		t.Fatal("a shared secret was taken for a public key")
	}
	doc, err := MarshalJWK(k)
	require.NoError(t, err)
	back, err := ParseJWK(doc)
	require.NoError(t, err)
	if !back.Equal(k) || !k.Equal(back) {
		t.Fatalf("%s reads back as another key", doc)
	}
	var other jose.JSONWebKey
	require.NoError(t, other.UnmarshalJSON(doc))
	require.True(t, other.IsPublic() && other.Valid())
	one, err := Thumbprint(k.Key)
	require.NoError(t, err)
	two, err := other.Thumbprint(crypto.SHA256)
	require.NoError(t, err)
	require.Equal(t, base64.RawURLEncoding.EncodeToString(two), one)
}

// samePublicKey compares a key with the members of its JWK, read without go-jose.
func samePublicKey(jwk map[string]any, key crypto.PublicKey) bool {
	number := func(name string) *big.Int {
		s, _ := jwk[name].(string)
		b, err := base64.RawURLEncoding.DecodeString(s)
		if err != nil {
			return big.NewInt(-1)
		}
		return new(big.Int).SetBytes(b)
	}
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		return jwk["kty"] == "EC" && number("x").Cmp(key.X) == 0 && number("y").Cmp(key.Y) == 0
	case *rsa.PublicKey:
		return jwk["kty"] == "RSA" && number("n").Cmp(key.N) == 0 && number("e").Cmp(big.NewInt(int64(key.E))) == 0
	case ed25519.PublicKey:
		x, _ := jwk["x"].(string)
		b, err := base64.RawURLEncoding.DecodeString(x)
		return err == nil && jwk["kty"] == "OKP" && bytes.Equal(b, key)
	}
	return false
}
