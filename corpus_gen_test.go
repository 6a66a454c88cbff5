package apitoken_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"flag"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "make testdata/tokens anew")

// corpusNow is the time at which the corpus is judged.
const corpusNow = 1_800_000_000

// corpusCase is one file of testdata/tokens.
type corpusCase struct {
	About string `json:"about"` // the attack, or why it is none
	Want  string `json:"want"`  // "good", "invalid", "expired"
	Token string `json:"token"`
}

// corpusKeys are the keys of the corpus, made with it. Their private halves are kept nowhere.
type corpusKeys struct {
	EC, EC384, Attacker *ecdsa.PrivateKey
	Ed                  ed25519.PrivateKey
	RS, PS              *rsa.PrivateKey
	Other               *ecdsa.PrivateKey // the second issuer's
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func jwkOf(t testing.TB, pub crypto.PublicKey, kid, alg string) map[string]string {
	t.Helper()
	m := map[string]string{"use": "sig", "kid": kid, "alg": alg}
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		size := (k.Curve.Params().BitSize + 7) / 8
		raw, err := k.Bytes()
		require.NoError(t, err)
		m["kty"], m["crv"] = "EC", fmt.Sprintf("P-%d", k.Curve.Params().BitSize)
		m["x"], m["y"] = b64(raw[1:1+size]), b64(raw[1+size:])
	case ed25519.PublicKey:
		m["kty"], m["crv"], m["x"] = "OKP", "Ed25519", b64(k)
	case *rsa.PublicKey:
		m["kty"], m["n"], m["e"] = "RSA", b64(k.N.Bytes()), b64(big.NewInt(int64(k.E)).Bytes())
	}
	return m
}

// signer makes a signature over the signing input.
type signFunc func(input string) []byte

func ecSign(k *ecdsa.PrivateKey) signFunc {
	return func(input string) []byte {
		h := sha256.Sum256([]byte(input))
		size := (k.Curve.Params().BitSize + 7) / 8
		r, s, err := ecdsa.Sign(rand.Reader, k, h[:])
		if err != nil {
			panic(err)
		}
		return rs(r, s, size)
	}
}

func rs(r, s *big.Int, size int) []byte {
	out := make([]byte, 2*size)
	r.FillBytes(out[:size])
	s.FillBytes(out[size:])
	return out
}

func hsSign(key []byte) signFunc {
	return func(input string) []byte {
		m := hmac.New(sha256.New, key)
		m.Write([]byte(input))
		return m.Sum(nil)
	}
}

func rsaSign(k *rsa.PrivateKey, pss bool) signFunc {
	return func(input string) []byte {
		h := sha256.Sum256([]byte(input))
		var sig []byte
		var err error
		if pss {
			sig, err = rsa.SignPSS(rand.Reader, k, crypto.SHA256, h[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
		} else {
			sig, err = rsa.SignPKCS1v15(rand.Reader, k, crypto.SHA256, h[:])
		}
		if err != nil {
			panic(err)
		}
		return sig
	}
}

func fixed(sig []byte) signFunc { return func(string) []byte { return sig } }

func jwt(header, payload string, sign signFunc) string {
	input := b64([]byte(header)) + "." + b64([]byte(payload))
	return input + "." + b64(sign(input))
}

// TestMakeCorpus writes the corpus when it is told to: go test -run MakeCorpus -update .
func TestMakeCorpus(t *testing.T) {
	if !*update {
		t.Skip("with -update it makes testdata/tokens anew")
	}
	dir := filepath.Join("testdata", "tokens")
	require.NoError(t, os.RemoveAll(dir))
	require.NoError(t, os.MkdirAll(dir, 0o755))
	var k corpusKeys
	var err error
	newEC := func(c elliptic.Curve) *ecdsa.PrivateKey {
		key, err := ecdsa.GenerateKey(c, rand.Reader)
		require.NoError(t, err)
		return key
	}
	k.EC, k.EC384, k.Attacker, k.Other = newEC(elliptic.P256()), newEC(elliptic.P384()), newEC(elliptic.P256()), newEC(elliptic.P256())
	_, k.Ed, err = ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	k.RS, err = rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	k.PS, err = rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	sets := map[string]any{
		testIssuer: map[string]any{"keys": []any{jwkOf(t, &k.EC.PublicKey, "ec", "ES256"), jwkOf(t, &k.EC384.PublicKey, "ec384", "ES384"),
			jwkOf(t, k.Ed.Public(), "ed", "EdDSA"), jwkOf(t, &k.RS.PublicKey, "rs", "RS256"), jwkOf(t, &k.PS.PublicKey, "ps", "PS256")}},
		otherIssuer: map[string]any{"keys": []any{jwkOf(t, &k.Other.PublicKey, "other", "ES256")}},
	}
	doc, err := json.MarshalIndent(sets, "", "  ")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "keys.json"), append(doc, '\n'), 0o644))
	n := 0
	for name, c := range makeCorpus(t, &k) {
		doc, err := json.MarshalIndent(c, "", "  ")
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, name+".json"), append(doc, '\n'), 0o644))
		n++
	}
	t.Logf("%d cases", n)
}

const otherIssuer = "https://other.example.com"

const goodHeader = `{"alg":"ES256","kid":"ec","typ":"at+jwt"}`

// claimsWith is a good payload with members replaced (or, for "-", left out). Values are JSON.
func claimsWith(changes ...string) string {
	list := [][2]string{{"iss", `"` + testIssuer + `"`}, {"sub", `"alice"`}, {"aud", `"` + testAudience + `"`},
		{"exp", fmt.Sprint(corpusNow + 300)}, {"iat", fmt.Sprint(corpusNow - 10)}, {"jti", `"01jabcdefghijklmnopqrstuvw"`}, {"client_id", `"web"`},
		{"scope", `"orders:read"`}, {"sid", `"01jgrantgrantgrantgrantgra"`}, {"pos", `"1f.100.200"`}}
	for i := 0; i < len(changes); i += 2 {
		found := false
		for j := range list {
			if list[j][0] == changes[i] {
				list[j][1], found = changes[i+1], true
			}
		}
		if !found {
			list = append(list, [2]string{changes[i], changes[i+1]})
		}
	}
	var b strings.Builder
	for _, m := range list {
		if m[1] == "-" {
			continue
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "%q:%s", m[0], m[1])
	}
	return "{" + b.String() + "}"
}

func makeCorpus(t testing.TB, k *corpusKeys) map[string]corpusCase {
	out := map[string]corpusCase{}
	add := func(name, want, about, token string) {
		if _, ok := out[name]; ok {
			t.Fatalf("case %s twice", name)
		}
		out[name] = corpusCase{About: about, Want: want, Token: token}
	}
	bad := func(name, about, token string) { add(name, "invalid", about, token) }
	good := claimsWith()
	ec := ecSign(k.EC)
	token := jwt(goodHeader, good, ec)
	parts := strings.Split(token, ".")

	// Good ones: what is refused elsewhere is refused for the reason named, not by accident.
	add("good-es256", "good", "the plain good token", token)
	add("good-eddsa", "good", "EdDSA", jwt(`{"alg":"EdDSA","kid":"ed","typ":"at+jwt"}`, good, func(s string) []byte { return ed25519.Sign(k.Ed, []byte(s)) }))
	add("good-ed25519-name", "good", "RFC 9864 names the same algorithm Ed25519", jwt(`{"alg":"Ed25519","kid":"ed","typ":"at+jwt"}`, good, func(s string) []byte { return ed25519.Sign(k.Ed, []byte(s)) }))
	add("good-rs256", "good", "RS256", jwt(`{"alg":"RS256","kid":"rs","typ":"at+jwt"}`, good, rsaSign(k.RS, false)))
	add("good-ps256", "good", "PS256", jwt(`{"alg":"PS256","kid":"ps","typ":"at+jwt"}`, good, rsaSign(k.PS, true)))
	add("good-es384", "good", "ES384, a key of another size", jwt(`{"alg":"ES384","kid":"ec384","typ":"at+jwt"}`, good, func(s string) []byte {
		h := sha512.Sum384([]byte(s))
		r, x, err := ecdsa.Sign(rand.Reader, k.EC384, h[:])
		require.NoError(t, err)
		return rs(r, x, 48)
	}))
	add("good-application-typ", "good", "RFC 7515 §4.1.9: the prefix application/ may be there", jwt(`{"alg":"ES256","kid":"ec","typ":"application/at+jwt"}`, good, ec))
	add("good-typ-case", "good", "media types do not heed case (RFC 2045 §5.1)", jwt(`{"alg":"ES256","kid":"ec","typ":"AT+JWT"}`, good, ec))
	add("good-aud-array", "good", "aud may be an array", jwt(goodHeader, claimsWith("aud", `["https://x.example.com","`+testAudience+`"]`), ec))
	add("good-escapes", "good", "JSON escapes in values are read", jwt(goodHeader, claimsWith("sub", `"\u0061lice"`), ec))
	add("good-unknown-claims", "good", "claims that nobody knows are the host's own", jwt(goodHeader, claimsWith("tenant", `{"id":[1,2.5,null,true]}`), ec))
	add("good-order", "good", "whitespace between JSON tokens", jwt("{ \"typ\" : \"at+jwt\",\t\"alg\":\"ES256\" , \"kid\":\"ec\" }", good, ec))
	add("good-high-s", "good", "ECDSA signatures come in pairs (r, s), (r, n-s): both are the signer's; nothing here takes the text for an identity", jwt(goodHeader, good, func(s string) []byte {
		sig := ec(s)
		v := new(big.Int).SetBytes(sig[32:])
		v.Sub(k.EC.Params().N, v)
		return rs(new(big.Int).SetBytes(sig[:32]), v, 32)
	}))

	// Algorithm and key confusion.
	for i, alg := range []string{"none", "None", "NONE", "nOnE", "", "none ", "es256", "ES256 ", "ES256K", "ES384", "ES512", "HS256", "HS384", "HS512", "RS256", "RS384", "PS256", "EdDSA", "Ed448", "A128KW", "RSA1_5", "dir"} {
		h := fmt.Sprintf(`{"alg":%q,"kid":"ec","typ":"at+jwt"}`, alg)
		bad(fmt.Sprintf("alg-%02d-other-with-signature", i), "the header names "+alg+" for a key that is registered for ES256, the signature is ES256's", jwt(h, good, ec))
	}
	for i, alg := range []string{"none", "None", "nOnE"} {
		bad(fmt.Sprintf("alg-none-unsigned-%d", i), "unsecured JWS", b64([]byte(fmt.Sprintf(`{"alg":%q,"typ":"at+jwt","kid":"ec"}`, alg)))+"."+parts[1]+".")
	}
	for i, v := range []string{"1", "null", "[]", `["ES256"]`, "{}", "true"} {
		bad(fmt.Sprintf("alg-type-%d", i), "alg is no string: "+v, jwt(`{"alg":`+v+`,"kid":"ec","typ":"at+jwt"}`, good, ec))
	}
	bad("alg-missing", "no alg", jwt(`{"kid":"ec","typ":"at+jwt"}`, good, ec))
	der, err := x509.MarshalPKIXPublicKey(&k.RS.PublicKey)
	require.NoError(t, err)
	pemKey := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	hs := func(kid string) string { return `{"alg":"HS256","kid":"` + kid + `","typ":"at+jwt"}` }
	bad("confusion-hs256-rsa-pem", "the RSA public key as an HMAC secret, PEM (CVE-2015-9235)", jwt(hs("rs"), good, hsSign(pemKey)))
	bad("confusion-hs256-rsa-pem-trimmed", "the same without the last newline", jwt(hs("rs"), good, hsSign(pemKey[:len(pemKey)-1])))
	bad("confusion-hs256-rsa-der", "the RSA public key as an HMAC secret, DER", jwt(hs("rs"), good, hsSign(der)))
	bad("confusion-hs256-rsa-modulus", "the modulus as an HMAC secret", jwt(hs("rs"), good, hsSign(k.RS.N.Bytes())))
	raw, err := k.EC.PublicKey.Bytes()
	require.NoError(t, err)
	bad("confusion-hs256-ec-point", "the EC point as an HMAC secret", jwt(hs("ec"), good, hsSign(raw)))
	bad("confusion-hs256-ed-key", "the Ed25519 key as an HMAC secret", jwt(hs("ed"), good, hsSign(k.Ed.Public().(ed25519.PublicKey))))
	bad("confusion-hs256-empty", "an empty HMAC secret", jwt(hs("ec"), good, hsSign(nil)))
	jwk, err := json.Marshal(jwkOf(t, &k.EC.PublicKey, "ec", "ES256"))
	require.NoError(t, err)
	bad("confusion-hs256-jwk", "the JWK's text as an HMAC secret", jwt(hs("ec"), good, hsSign(jwk)))
	bad("confusion-pss-for-pkcs1", "PS256 with a key that is registered for RS256", jwt(`{"alg":"PS256","kid":"rs","typ":"at+jwt"}`, good, rsaSign(k.RS, true)))
	bad("confusion-pkcs1-for-pss", "RS256 with a key that is registered for PS256", jwt(`{"alg":"RS256","kid":"ps","typ":"at+jwt"}`, good, rsaSign(k.PS, false)))
	bad("confusion-es256-kid-of-rsa", "ES256 naming the RSA key", jwt(`{"alg":"ES256","kid":"rs","typ":"at+jwt"}`, good, ec))
	bad("confusion-es256-by-p384", "ES256 naming the P-384 key", jwt(`{"alg":"ES256","kid":"ec384","typ":"at+jwt"}`, good, ecSign(k.EC384)))
	bad("confusion-key-of-other-issuer", "signed by another trusted issuer's key, which is its own alone", jwt(`{"alg":"ES256","kid":"other","typ":"at+jwt"}`, good, ecSign(k.Other)))
	bad("confusion-kid-here-key-there", "our kid, the other issuer's signature", jwt(goodHeader, good, ecSign(k.Other)))
	bad("confusion-issuer-there-key-here", "the other issuer's iss, our key", jwt(goodHeader, claimsWith("iss", `"`+otherIssuer+`"`), ec))

	// Header injection.
	evil := ecSign(k.Attacker)
	evilJWK, err := json.Marshal(jwkOf(t, &k.Attacker.PublicKey, "ec", "ES256"))
	require.NoError(t, err)
	for name, m := range map[string]string{
		"jwk": `"jwk":` + string(evilJWK), "jku": `"jku":"http://127.0.0.1:47113/jwks.json"`, "x5u": `"x5u":"http://127.0.0.1:47113/cert.pem"`,
		"x5c": `"x5c":["MIIB"]`, "x5t": `"x5t":"AAAA"`, "x5t-s256": `"x5t#S256":"AAAA"`,
	} {
		bad("inject-"+name, "a key brought along in "+name+", signed with it", jwt(`{"alg":"ES256","kid":"ec","typ":"at+jwt",`+m+`}`, good, evil))
		bad("inject-"+name+"-no-kid", "the same without kid", jwt(`{"alg":"ES256","typ":"at+jwt",`+m+`}`, good, evil))
	}
	for i, kid := range []string{`"../../../../dev/null"`, `"' OR 1=1 --"`, `"http://127.0.0.1:47113/k"`, `""`, `null`, `1`, `["ec"]`, `{"kid":"ec"}`, `"ec\u0000"`, `"EC"`, `" ec"`, `"` + strings.Repeat("k", 4000) + `"`, `"|/bin/true"`} {
		bad(fmt.Sprintf("inject-kid-%02d", i), "kid "+kid[:min(len(kid), 40)], jwt(`{"alg":"ES256","kid":`+kid+`,"typ":"at+jwt"}`, good, ec))
	}
	bad("inject-kid-missing", "several keys and no kid", jwt(`{"alg":"ES256","typ":"at+jwt"}`, good, ec))
	for i, crit := range []string{`[]`, `["b64"]`, `["exp"]`, `["alg"]`, `["http://example.com/x"]`, `"exp"`, `null`, `[1]`, `{}`} {
		bad(fmt.Sprintf("inject-crit-%d", i), "crit "+crit+" names what must be understood (RFC 7515 §4.1.11)", jwt(`{"alg":"ES256","kid":"ec","typ":"at+jwt","crit":`+crit+`}`, good, ec))
	}
	bad("inject-b64-false", "unencoded payload (RFC 7797)", jwt(`{"alg":"ES256","kid":"ec","typ":"at+jwt","b64":false,"crit":["b64"]}`, good, ec))
	bad("inject-b64-no-crit", "b64 without crit", jwt(`{"alg":"ES256","kid":"ec","typ":"at+jwt","b64":false}`, good, ec))
	bad("inject-zip", "a compressed payload", jwt(`{"alg":"ES256","kid":"ec","typ":"at+jwt","zip":"DEF"}`, good, ec))
	bad("inject-enc", "JWE members in a JWS", jwt(`{"alg":"ES256","kid":"ec","typ":"at+jwt","enc":"A128GCM"}`, good, ec))

	// Types: no other JWT of ours, or of anybody, is an access token.
	for i, typ := range []string{"JWT", "jwt", "", "dpop+jwt", "id_token+jwt", "logout+jwt", "token-introspection+jwt", "oauth-authz-req+jwt", "client-authentication+jwt", "at+jwt ", " at+jwt", "at-jwt", "application/application/at+jwt", "text/at+jwt"} {
		bad(fmt.Sprintf("typ-%02d", i), fmt.Sprintf("typ %q", typ), jwt(fmt.Sprintf(`{"alg":"ES256","kid":"ec","typ":%q}`, typ), good, ec))
	}
	bad("typ-missing", "no typ (RFC 9068 §4)", jwt(`{"alg":"ES256","kid":"ec"}`, good, ec))
	bad("typ-array", "typ is an array", jwt(`{"alg":"ES256","kid":"ec","typ":["at+jwt"]}`, good, ec))
	bad("kind-refresh-token", "the shape of a refresh token", "at_rt_"+strings.Repeat("A", 106))
	bad("kind-api-key", "the shape of an API key, which this validator does not take", "at_ak_"+strings.Repeat("A", 101))
	bad("kind-ticket", "the shape of a ticket", "at_tk_"+strings.Repeat("A", 101))
	bad("kind-client-secret", "the shape of a client secret", "at_cs_"+strings.Repeat("A", 101))
	bad("kind-jwk", "a key as a token", string(jwk))

	// Structure and encoding.
	for name, s := range map[string]string{
		"one-part": parts[0], "two-parts": parts[0] + "." + parts[1], "four-parts": token + "." + parts[2], "five-parts": token + ".." + parts[2], "empty-header": "." + parts[1] + "." + parts[2],
		"empty-payload": parts[0] + ".." + parts[2], "empty-signature": parts[0] + "." + parts[1] + ".", "dots": "..", "dot": ".", "dot-before": "." + token, "dot-behind": token + ".",
		"space-before": " " + token, "space-behind": token + " ", "newline": token + "\n", "tab-inside": parts[0] + ".\t" + parts[1] + "." + parts[2], "nul": token + "\x00",
		"padding": parts[0] + "==." + parts[1] + "." + parts[2], "padding-signature": token + "=", "std-alphabet": parts[0] + "." + parts[1] + "." + strings.NewReplacer("-", "+", "_", "/").Replace(parts[2]) + "+",
		"bearer": "Bearer " + token, "quoted": `"` + token + `"`, "percent": strings.Replace(token, ".", "%2E", 1), "unicode-dot": strings.Replace(token, ".", "．", 1),
		"bom": "\ufeff" + token, "comma-two": token + "," + token, "json-flattened": `{"protected":"` + parts[0] + `","payload":"` + parts[1] + `","signature":"` + parts[2] + `"}`,
		"json-general": `{"payload":"` + parts[1] + `","signatures":[{"protected":"` + parts[0] + `","signature":"` + parts[2] + `"}]}`,
		"truncated":    token[:len(token)-1], "extended": token + "A", "loose-bits": token[:len(token)-1] + looser(token[len(token)-1]), "header-twice": parts[0] + "." + parts[0] + "." + parts[2],
		"huge": parts[0] + "." + strings.Repeat("A", 9000) + "." + parts[2], "huge-megabyte": strings.Repeat("ey", 1<<16) + "." + parts[1] + "." + parts[2], "crlf": parts[0] + ".\r\n" + parts[1] + "." + parts[2],
	} {
		bad("structure-"+name, "structure: "+name, s)
	}
	for name, h := range map[string]string{
		"empty": "", "null": "null", "array": "[]", "string": `"x"`, "number": "1", "open": `{"alg":"ES256"`, "trailing": goodHeader + "{}", "trailing-comma": `{"alg":"ES256","kid":"ec","typ":"at+jwt",}`,
		"alg-twice": `{"alg":"none","alg":"ES256","kid":"ec","typ":"at+jwt"}`, "kid-twice": `{"alg":"ES256","kid":"evil","kid":"ec","typ":"at+jwt"}`, "case-variant": `{"alg":"ES256","Alg":"none","kid":"ec","typ":"at+jwt"}`,
		"escaped-twice": `{"alg":"ES256","\u0061lg":"none","kid":"ec","typ":"at+jwt"}`, "comment": `{"alg":"ES256",/**/"kid":"ec","typ":"at+jwt"}`, "single-quotes": `{'alg':'ES256','kid':'ec','typ':'at+jwt'}`,
		"not-utf8": "{\"alg\":\"ES256\",\"kid\":\"ec\",\"typ\":\"at+jwt\",\"x\":\"\xff\"}", "bom": "\ufeff" + goodHeader, "deep": `{"alg":"ES256","kid":"ec","typ":"at+jwt","x":` + strings.Repeat("[", 600) + strings.Repeat("]", 600) + `}`,
		"nul": goodHeader + "\x00",
	} {
		bad("header-"+name, "header: "+name, jwt(h, good, ec))
	}
	for name, p := range map[string]string{
		"empty": "", "null": "null", "array": "[]", "string": `"x"`, "nested-jwt": token, "open": good[:len(good)-1], "trailing": good + "x", "two-objects": good + good, "trailing-comma": good[:len(good)-1] + ",}",
		"sub-twice": good[:len(good)-1] + `,"sub":"root"}`, "exp-twice": good[:len(good)-1] + `,"exp":9999999999}`, "iss-twice": good[:len(good)-1] + `,"iss":"` + otherIssuer + `"}`, "aud-twice": good[:len(good)-1] + `,"aud":"x"}`,
		"sub-case": good[:len(good)-1] + `,"Sub":"root"}`, "exp-case": claimsWith("exp", "-", "EXP", fmt.Sprint(corpusNow+300)), "scope-case": good[:len(good)-1] + `,"SCOPE":"admin"}`,
		"sub-escaped": good[:len(good)-1] + `,"s\u0075b":"root"}`, "sub-kelvin": good[:len(good)-1] + ",\"\u017fub\":\"root\"}", "own-twice": good[:len(good)-1] + `,"x":1,"x":2}`, "nested-twice": good[:len(good)-1] + `,"x":{"y":1,"y":2}}`,
		"not-utf8-value": strings.Replace(good, "alice", "al\xffce", 1), "not-utf8-name": good[:len(good)-1] + ",\"\xff\":1}", "overlong-utf8": strings.Replace(good, "alice", "al\xc0\xafce", 1), "surrogate": strings.Replace(good, "alice", `al\ud800ce`, 1),
		"control": strings.Replace(good, "alice", "al\x01ce", 1), "bad-escape": strings.Replace(good, "alice", `al\xce`, 1), "deep": good[:len(good)-1] + `,"x":` + strings.Repeat("[", 600) + strings.Repeat("]", 600) + `}`,
		"many-members": good[:len(good)-1] + manyMembers(600) + `}`, "huge-number": good[:len(good)-1] + `,"x":` + strings.Repeat("9", 2000) + `}`,
	} {
		bad("payload-"+name, "payload: "+name, jwt(goodHeader, p, ec))
	}

	// Claims.
	for name, c := range map[string][]string{
		"iss-missing": {"iss", "-"}, "iss-other": {"iss", `"https://evil.example.com"`}, "iss-slash": {"iss", `"` + testIssuer + `/"`}, "iss-case": {"iss", `"https://AUTH.example.com"`}, "iss-array": {"iss", `["` + testIssuer + `"]`}, "iss-null": {"iss", "null"},
		"aud-missing": {"aud", "-"}, "aud-other": {"aud", `"https://other.example.com"`}, "aud-empty": {"aud", `""`}, "aud-empty-array": {"aud", "[]"}, "aud-prefix": {"aud", `"` + testAudience + `/x"`}, "aud-part": {"aud", `"https://api"`},
		"aud-mixed": {"aud", `["` + testAudience + `",1]`}, "aud-object": {"aud", `{"a":"` + testAudience + `"}`}, "aud-nested": {"aud", `[["` + testAudience + `"]]`}, "aud-case": {"aud", `"HTTPS://API.EXAMPLE.COM"`}, "aud-space": {"aud", `"x ` + testAudience + `"`},
		"sub-missing": {"sub", "-"}, "sub-empty": {"sub", `""`}, "sub-number": {"sub", "1"}, "sub-null": {"sub", "null"}, "sub-long": {"sub", `"` + strings.Repeat("s", 300) + `"`}, "sub-array": {"sub", `["alice"]`},
		"jti-missing": {"jti", "-"}, "jti-empty": {"jti", `""`}, "jti-number": {"jti", "7"}, "jti-long": {"jti", `"` + strings.Repeat("j", 300) + `"`},
		"client-missing": {"client_id", "-"}, "client-number": {"client_id", "1"}, "client-empty": {"client_id", `""`},
		"scope-array": {"scope", `["orders:read"]`}, "scope-double-space": {"scope", `"a  b"`}, "scope-quote": {"scope", `"a\"b"`}, "scope-control": {"scope", `"a\u0001"`}, "scope-twice": {"scope", `"a a"`}, "scope-trailing": {"scope", `"a "`},
		"roles-string": {"roles", `"admin"`}, "act-string": {"act", `"bob"`}, "act-no-sub": {"act", `{}`}, "act-deep": {"act", strings.Repeat(`{"sub":"x","act":`, 40) + `{"sub":"y"}` + strings.Repeat("}", 40)},
		"pos-missing": {"pos", "-"}, "pos-junk": {"pos", `"x"`}, "pos-backward": {"pos", `"1f.300.200"`}, "pos-negative": {"pos", `"1f.-1.200"`}, "pos-huge": {"pos", `"1f.1.ffffffffffffffffff"`}, "pos-number": {"pos", "1"},
		"cnf-jkt-no-proof": {"cnf", `{"jkt":"` + b64(make([]byte, 32)) + `"}`}, "cnf-cert-no-proof": {"cnf", `{"x5t#S256":"` + b64(make([]byte, 32)) + `"}`}, "cnf-empty": {"cnf", "{}"}, "cnf-unknown": {"cnf", `{"osc":{}}`}, "cnf-null": {"cnf", "null"}, "cnf-string": {"cnf", `"x"`},
		"cnf-two": {"cnf", `{"jkt":"` + b64(make([]byte, 32)) + `","x5t#S256":"` + b64(make([]byte, 32)) + `"}`},
	} {
		bad("claim-"+name, "claim: "+name, jwt(goodHeader, claimsWith(c...), ec))
	}

	// Time.
	add("time-expired", "expired", "exp has passed", jwt(goodHeader, claimsWith("exp", fmt.Sprint(corpusNow-1), "iat", fmt.Sprint(corpusNow-300)), ec))
	add("time-expired-now", "expired", "exp is this second: on or after exp is too late (RFC 7519 §4.1.4)", jwt(goodHeader, claimsWith("exp", fmt.Sprint(corpusNow)), ec))
	add("time-good-last-second", "good", "a second before exp", jwt(goodHeader, claimsWith("exp", fmt.Sprint(corpusNow+1)), ec))
	for name, c := range map[string][]string{
		"exp-missing": {"exp", "-"}, "exp-null": {"exp", "null"}, "exp-string": {"exp", fmt.Sprintf(`"%d"`, corpusNow+300)}, "exp-zero": {"exp", "0"}, "exp-negative": {"exp", "-1"}, "exp-float-huge": {"exp", "1e300"},
		"exp-overflow": {"exp", "9223372036854775808"}, "exp-wraps": {"exp", "18446744073709551615"}, "exp-bool": {"exp", "true"}, "exp-array": {"exp", "[1]"}, "exp-nan": {"exp", "NaN"}, "exp-leading-zero": {"exp", "01800000300"}, "exp-hex": {"exp", "0x7fffffff"}, "exp-plus": {"exp", "+1800000300"},
		"exp-far": {"exp", fmt.Sprint(corpusNow + 90*86400)}, "exp-before-iat": {"exp", fmt.Sprint(corpusNow + 5), "iat", fmt.Sprint(corpusNow + 6)}, "iat-missing": {"iat", "-"}, "iat-future": {"iat", fmt.Sprint(corpusNow + 60)}, "iat-string": {"iat", `"1"`}, "iat-negative": {"iat", "-5"}, "iat-ancient": {"iat", "1"},
		"nbf-future": {"nbf", fmt.Sprint(corpusNow + 60)}, "nbf-string": {"nbf", `"0"`}, "nbf-null": {"nbf", "null"}, "nbf-huge": {"nbf", "1e99"},
	} {
		bad("time-"+name, "time: "+name, jwt(goodHeader, claimsWith(c...), ec))
	}

	// Signature edge values.
	n := k.EC.Params().N
	one, zero := big.NewInt(1), big.NewInt(0)
	for name, pair := range map[string][2]*big.Int{
		"zeros": {zero, zero}, "r-zero": {zero, one}, "s-zero": {one, zero}, "ones": {one, one}, "r-n": {n, one}, "s-n": {one, n}, "n-n": {n, n}, "r-n-minus-1": {new(big.Int).Sub(n, one), one},
		"max": {new(big.Int).Sub(new(big.Int).Lsh(one, 256), one), new(big.Int).Sub(new(big.Int).Lsh(one, 256), one)}, "p": {k.EC.Params().P, one},
	} {
		bad("signature-"+name, "r, s at the edge: "+name+" (CVE-2022-21449)", jwt(goodHeader, good, fixed(rs(pair[0], pair[1], 32))))
	}
	sig, err := base64.RawURLEncoding.DecodeString(parts[2])
	require.NoError(t, err)
	mk := func(b []byte) string { return parts[0] + "." + parts[1] + "." + b64(b) }
	asn, err := asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])})
	require.NoError(t, err)
	bad("signature-der", "ASN.1 instead of r‖s", mk(asn))
	bad("signature-63", "a byte short", mk(sig[:63]))
	bad("signature-65", "a byte long", mk(append(append([]byte(nil), sig...), 0)))
	bad("signature-65-before", "a zero before", mk(append([]byte{0}, sig...)))
	bad("signature-128", "twice", mk(append(append([]byte(nil), sig...), sig...)))
	bad("signature-swapped", "s‖r", mk(append(append([]byte(nil), sig[32:]...), sig[:32]...)))
	flipped := append([]byte(nil), sig...)
	flipped[40] ^= 1
	bad("signature-bit", "one bit", mk(flipped))
	bad("signature-other-payload", "of another payload", parts[0]+"."+b64([]byte(claimsWith("sub", `"root"`)))+"."+parts[2])
	bad("signature-other-header", "of another header", b64([]byte(`{"kid":"ec","alg":"ES256","typ":"at+jwt"}`))+"."+parts[1]+"."+parts[2])
	bad("signature-attacker", "of another key", jwt(goodHeader, good, evil))
	bad("signature-sha512", "over another hash", jwt(goodHeader, good, func(s string) []byte {
		h := sha512.Sum512([]byte(s))
		r, x, err := ecdsa.Sign(rand.Reader, k.EC, h[:])
		require.NoError(t, err)
		return rs(r, x, 32)
	}))
	edHeader := `{"alg":"EdDSA","kid":"ed","typ":"at+jwt"}`
	bad("signature-ed-malleable", "S + L: the same signature, another text (RFC 8032 §5.1.7)", jwt(edHeader, good, func(s string) []byte {
		sig := ed25519.Sign(k.Ed, []byte(s))
		l, _ := new(big.Int).SetString("7237005577332262213973186563042994240857116359379907606001950938285454250989", 10)
		le := append([]byte(nil), sig[32:]...)
		for i := range 16 {
			le[i], le[31-i] = le[31-i], le[i]
		}
		v := new(big.Int).Add(new(big.Int).SetBytes(le), l)
		b := v.FillBytes(make([]byte, 32))
		for i := range 16 {
			b[i], b[31-i] = b[31-i], b[i]
		}
		return append(sig[:32], b...)
	}))
	bad("signature-ed-zero", "all zero", jwt(edHeader, good, fixed(make([]byte, 64))))
	bad("signature-ed-short", "63 bytes", jwt(edHeader, good, func(s string) []byte { return ed25519.Sign(k.Ed, []byte(s))[:63] }))
	bad("signature-ed-identity", "R the neutral element, S zero: good for keys of small order alone", jwt(edHeader, good, fixed(append([]byte{1}, make([]byte, 63)...))))
	bad("signature-ed-prehashed", "Ed25519ph, another algorithm (RFC 8032 §5.1)", jwt(edHeader, good, func(s string) []byte {
		h := sha512.Sum512([]byte(s))
		sig, err := k.Ed.Sign(rand.Reader, h[:], &ed25519.Options{Hash: crypto.SHA512})
		require.NoError(t, err)
		return sig
	}))
	bad("signature-ed-context", "Ed25519ctx, another algorithm", jwt(edHeader, good, func(s string) []byte {
		sig, err := k.Ed.Sign(rand.Reader, []byte(s), &ed25519.Options{Context: "x"})
		require.NoError(t, err)
		return sig
	}))
	bad("signature-ed-swapped", "S before R", jwt(edHeader, good, func(s string) []byte {
		sig := ed25519.Sign(k.Ed, []byte(s))
		return append(append([]byte(nil), sig[32:]...), sig[:32]...)
	}))
	rsHeader := `{"alg":"RS256","kid":"rs","typ":"at+jwt"}`
	bad("signature-rsa-short", "without the zero in front that it should have", jwt(rsHeader, good, func(s string) []byte { return rsaSign(k.RS, false)(s)[1:] }))
	bad("signature-rsa-plus-n", "the signature and the modulus: the same residue", jwt(rsHeader, good, func(s string) []byte {
		v := new(big.Int).SetBytes(rsaSign(k.RS, false)(s))
		return v.Add(v, k.RS.N).Bytes()
	}))
	bad("signature-pss-salt-long", "PSS with the longest salt that fits (RFC 7518 §3.5: the hash's)", jwt(`{"alg":"PS256","kid":"ps","typ":"at+jwt"}`, good, func(s string) []byte {
		h := sha256.Sum256([]byte(s))
		sig, err := rsa.SignPSS(rand.Reader, k.PS, crypto.SHA256, h[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthAuto, Hash: crypto.SHA256})
		require.NoError(t, err)
		return sig
	}))
	bad("signature-pss-sha512", "PSS over another hash", jwt(`{"alg":"PS256","kid":"ps","typ":"at+jwt"}`, good, func(s string) []byte {
		h := sha512.Sum512([]byte(s))
		sig, err := rsa.SignPSS(rand.Reader, k.PS, crypto.SHA512, h[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
		require.NoError(t, err)
		return sig
	}))

	// What a sloppy reader would take for the good token, under a signature over the very text: the encoding is what is wrong.
	signed := func(head, body string, sign signFunc) string {
		return head + "." + body + "." + b64(sign(head+"."+body))
	}
	loosen := func(b string) string { // a length that leaves bits over
		require.NotZero(t, len(b)%4)
		return b[:len(b)-1] + looser(b[len(b)-1])
	}
	head, body := b64([]byte(`{"alg":"ES256","kid":"ec","typ":"at+jwt" }`)), b64([]byte(claimsWith("sub", `"alice+/"`)))
	for len(head)%4 == 0 {
		head = b64([]byte(`{"alg":"ES256","kid":"ec","typ":"at+jwt"  }`))
	}
	for n := 1; len(body)%4 == 0; n++ {
		body = b64([]byte(claimsWith("x", `"`+strings.Repeat("y", n)+`"`)))
	}
	std := base64.StdEncoding.EncodeToString
	for name, x := range map[string][2]string{
		"loose-bits-header": {loosen(head), body}, "loose-bits-payload": {head, loosen(body)},
		"padding-header": {head + strings.Repeat("=", 4-len(head)%4), body}, "padding-payload": {head, body + strings.Repeat("=", 4-len(body)%4)},
		"newline-header": {head[:8] + "\n" + head[8:], body}, "newline-payload": {head, body[:8] + "\r\n" + body[8:]}, "space-payload": {head, body[:8] + " " + body[8:]},
		"std-alphabet": {head, strings.TrimRight(std([]byte(claimsWith("x", `"???>>>~~~"`))), "=")}, "one-char-over": {head, body + "A"},
	} {
		bad("encoded-"+name, "signed over the very text, which is not strict base64url: "+name, signed(x[0], x[1], ec))
	}

	for name, h := range map[string]string{
		"kid-kelvin": "{\"alg\":\"ES256\",\"kid\":\"ec\",\"typ\":\"at+jwt\",\"\u212aid\":\"other\"}", "kid-upper-only": `{"alg":"ES256","KID":"ec","typ":"at+jwt"}`, "typ-upper-only": `{"alg":"ES256","kid":"ec","TYP":"at+jwt"}`,
		"typ-twice": `{"alg":"ES256","kid":"ec","typ":"JWT","typ":"at+jwt"}`, "crit-case": `{"alg":"ES256","kid":"ec","typ":"at+jwt","Crit":["exp"]}`, "jwk-case": `{"alg":"ES256","kid":"ec","typ":"at+jwt","JWK":{}}`,
		"own-twice": `{"alg":"ES256","kid":"ec","typ":"at+jwt","x":1,"x":1}`, "surrogate-name": `{"alg":"ES256","kid":"ec","typ":"at+jwt","\ud800":1}`, "long": `{"alg":"ES256","kid":"ec","typ":"at+jwt","x":"` + strings.Repeat("x", 2100) + `"}`,
		"number-name": `{"alg":"ES256","kid":"ec","typ":"at+jwt",1:1}`, "two-objects": goodHeader + goodHeader, "bare-word": `{"alg":"ES256","kid":"ec","typ":"at+jwt","x":tru}`, "cr-in-text": "{\"alg\":\"ES256\",\"kid\":\"ec\",\"typ\":\"at+jwt\",\"x\":\"\r\"}",
	} {
		bad("header-"+name, "header: "+name, jwt(h, good, ec))
	}
	add("good-escaped-name", "good", "an escaped name is the name", jwt(`{"\u0061lg":"ES256","k\u0069d":"ec","typ":"at+jwt"}`, good, ec))
	add("good-private-header", "good", "a header that nobody knows and that is not critical is passed over (RFC 7515 §4)", jwt(`{"alg":"ES256","kid":"ec","typ":"at+jwt","x":[{"y":null}]}`, good, ec))
	for i, typ := range []string{"at+jwt; charset=utf-8", "application/at+jwt;v=1", "application/", "application", "\uff41t+jwt", "at+jwt\u0000", "application//at+jwt", "at+jwt+jwt", "applicatio\u006e/ at+jwt", "secevent+jwt", "entity-statement+jwt", "introspection+jwt"} {
		bad(fmt.Sprintf("typ-more-%02d", i), fmt.Sprintf("typ %q", typ), jwt(`{"alg":"ES256","kid":"ec","typ":"`+typ+`"}`, good, ec))
	}
	for i, x := range [][2]string{{"ed25519", "ed"}, {"eddsa", "ed"}, {"Ed25519 ", "ed"}, {"Ed25519", "ec"}, {"EdDSA", "ec"}, {"ES256", "ed"}, {"rs256", "rs"}, {"RS512", "rs"}, {"PS384", "ps"}, {"ES256", "ec384"}} {
		sign := ec
		switch x[1] {
		case "ed":
			sign = func(s string) []byte { return ed25519.Sign(k.Ed, []byte(s)) }
		case "rs":
			sign = rsaSign(k.RS, false)
		case "ps":
			sign = rsaSign(k.PS, true)
		}
		bad(fmt.Sprintf("alg-near-%02d", i), "alg "+x[0]+" for the key "+x[1]+", signed by it", jwt(`{"alg":"`+x[0]+`","kid":"`+x[1]+`","typ":"at+jwt"}`, good, sign))
	}

	obj := func(more string) string { return good[:len(good)-1] + "," + more + "}" }
	for name, p := range map[string]string{
		"jti-escaped-twice": obj(`"\u006ati":"x"`), "cnf-case": obj(`"CNF":{}`), "act-case": obj(`"Act":{"sub":"x"}`), "pos-case": obj(`"POS":"1.1.1"`), "roles-case": obj(`"Roles":["admin"]`), "aud-case-twice": obj(`"AUD":"x"`),
		"scope-long-s": obj("\"\u017fcope\":\"admin\""), "own-case-twice": obj(`"tenant":1,"Tenant":2`), "own-escaped-twice": obj(`"tenant":1,"ten\u0061nt":2`), "surrogate-pair-broken": obj(`"x":"\udc00\ud800"`), "lone-low": obj(`"x":"\udfff"`),
		"depth-17": obj(`"x":` + strings.Repeat("[", 17) + strings.Repeat("]", 17)), "members-257": obj(strings.TrimPrefix(manyMembers(257), ",")), "array-1100": obj(`"x":[` + strings.Repeat("0,", 1100) + `0]`),
		"number-dot": obj(`"x":1.`), "number-no-int": obj(`"x":.5`), "number-exp": obj(`"x":1e`), "number-minus": obj(`"x":-`), "number-zero": obj(`"x":00`), "number-infinity": obj(`"x":Infinity`), "number-big-exp": obj(`"x":1e9999`),
		"form-feed": obj("\f\"x\":1"), "nbsp": obj("\u00a0\"x\":1"), "nul-behind": good + "\x00", "bom": "\ufeff" + good, "utf16": "\xff\xfe{\x00}\x00", "comma-first": "{," + good[1:], "comma-twice": obj(`,"x":1`), "colon-twice": obj(`"x"::1`), "unquoted": obj(`x:1`), "comment": obj(`/*"x":1*/"y":1`),
	} {
		bad("payload-"+name, "payload: "+name, jwt(goodHeader, p, ec))
	}
	list := func(n int, v string) string { return "[" + strings.TrimSuffix(strings.Repeat(v+",", n), ",") + "]" }
	for name, c := range map[string][]string{
		"aud-null": {"aud", "null"}, "aud-array-null": {"aud", "[null]"}, "aud-number": {"aud", "1"}, "aud-65": {"aud", list(65, `"`+testAudience+`"`)}, "aud-bool": {"aud", "true"}, "aud-escaped-other": {"aud", `"https:\/\/api.example.com\/"`},
		"scope-null": {"scope", "null"}, "scope-leading": {"scope", `" a"`}, "scope-tab": {"scope", `"a\tb"`}, "scope-unicode": {"scope", `"é"`}, "scope-backslash": {"scope", `"a\\b"`}, "scope-256-bytes": {"scope", `"` + strings.Repeat("s", 256) + `"`}, "scope-257": {"scope", `"` + strings.TrimSpace(manyWords(257)) + `"`}, "scope-colon-end": {"scope", `"orders:"`}, "scope-colon-twice": {"scope", `"orders::read"`}, "scope-object": {"scope", "{}"},
		"roles-number": {"roles", "[1]"}, "roles-65": {"roles", list(65, `"r"`)}, "roles-object": {"roles", "{}"}, "sid-number": {"sid", "1"}, "sid-null": {"sid", "null"}, "gra-string": {"gra", `"x"`}, "gra-65": {"gra", list(65, `"x"`)}, "gra-nested": {"gra", `[["x"]]`},
		"act-null": {"act", "null"}, "act-array": {"act", `[{"sub":"x"}]`}, "act-sub-case": {"act", `{"sub":"x","Sub":"y"}`}, "act-twice": {"act", `{"sub":"x","act":{"sub":"y"},"act":{"sub":"z"}}`}, "act-sub-number": {"act", `{"sub":1}`}, "act-iss-array": {"act", `{"sub":"x","iss":[]}`}, "act-9": {"act", strings.Repeat(`{"sub":"x","act":`, 8) + `{"sub":"y"}` + strings.Repeat("}", 8)},
		"cnf-case": {"cnf", `{"JKT":"` + b64(make([]byte, 32)) + `"}`}, "cnf-number": {"cnf", `{"jkt":1}`}, "cnf-twice": {"cnf", `{"jkt":"a","jkt":"b"}`}, "cnf-array": {"cnf", "[]"}, "cnf-jwk": {"cnf", `{"jwk":{"kty":"EC"}}`}, "cnf-and-more": {"cnf", `{"jkt":"` + b64(make([]byte, 32)) + `","x":1}`}, "cnf-empty-jkt": {"cnf", `{"jkt":""}`},
		"pos-plus": {"pos", `"1f.+100.200"`}, "pos-capital": {"pos", `"1F.100.200"`}, "pos-zeros": {"pos", `"1f.0100.200"`}, "pos-dot": {"pos", `"1f.100.200."`}, "pos-same-history": {"pos", `"1f.100.200.1f"`}, "pos-64-bits": {"pos", `"1f.100.8000000000000000"`}, "pos-five": {"pos", `"1f.100.200.2.3"`}, "pos-empty": {"pos", `""`}, "pos-null": {"pos", "null"}, "pos-space": {"pos", `"1f. 100.200"`},
		"sub-object": {"sub", `{"a":1}`}, "jti-array": {"jti", `["x"]`}, "client-array": {"client_id", `["web"]`}, "client-long": {"client_id", `"` + strings.Repeat("c", 256) + `"`}, "iss-number": {"iss", "1"}, "iss-space": {"iss", `"` + testIssuer + ` "`}, "iss-empty": {"iss", `""`},
	} {
		bad("claim-"+name, "claim: "+name, jwt(goodHeader, claimsWith(c...), ec))
	}
	for name, c := range map[string][]string{
		"exp-exponent": {"exp", "1.8000003e9"}, "exp-exponent-plain": {"exp", "18000003e2"}, "exp-minus-zero": {"exp", "-0"}, "exp-long-fraction": {"exp", fmt.Sprint(corpusNow+300) + "." + strings.Repeat("0", 60)}, "exp-dot": {"exp", fmt.Sprint(corpusNow+300) + "."}, "exp-equals-iat": {"exp", fmt.Sprint(corpusNow + 1), "iat", fmt.Sprint(corpusNow + 1)},
		"exp-year-10000": {"exp", "253402300800"}, "exp-a-day-and-a-second": {"exp", fmt.Sprint(corpusNow - 10 + 86401)}, "exp-object": {"exp", "{}"}, "exp-milliseconds": {"exp", fmt.Sprint(int64(corpusNow+300) * 1000)}, "iat-exponent": {"iat", "1.799999990e9"}, "iat-null": {"iat", "null"}, "iat-zero": {"iat", "0"}, "iat-next-second": {"iat", fmt.Sprint(corpusNow + 1)}, "iat-milliseconds": {"iat", fmt.Sprint(int64(corpusNow) * 1000)},
		"nbf-next-second": {"nbf", fmt.Sprint(corpusNow + 1)}, "nbf-negative": {"nbf", "-1"}, "nbf-array": {"nbf", "[]"}, "nbf-behind-exp": {"nbf", fmt.Sprint(corpusNow + 400)},
	} {
		bad("time-"+name, "time: "+name, jwt(goodHeader, claimsWith(c...), ec))
	}
	add("time-good-fraction", "good", "a NumericDate may have a fraction (RFC 7519 §2)", jwt(goodHeader, claimsWith("exp", fmt.Sprint(corpusNow+300)+".5", "iat", fmt.Sprint(corpusNow-10)+".25"), ec))
	add("time-good-longest", "good", "a day, the longest that is taken", jwt(goodHeader, claimsWith("exp", fmt.Sprint(corpusNow-10+86400)), ec))
	add("time-expired-fraction", "expired", "a fraction of exp is cut off, never rounded up", jwt(goodHeader, claimsWith("exp", fmt.Sprint(corpusNow)+".9"), ec))

	// Another trusted issuer, whose tokens have no positions and bring none of our names.
	otherHeader := `{"alg":"ES256","kid":"other","typ":"at+jwt"}`
	theirs := func(changes ...string) string {
		return jwt(otherHeader, claimsWith(append([]string{"iss", `"` + otherIssuer + `"`, "pos", "-"}, changes...)...), ecSign(k.Other))
	}
	add("foreign-good", "good", "a token of the other issuer", theirs())
	add("foreign-good-no-kid", "good", "its set has one key: kid may be missing (RFC 7515 §4.1.4)", jwt(`{"alg":"ES256","typ":"at+jwt"}`, claimsWith("iss", `"`+otherIssuer+`"`), ecSign(k.Other)))
	add("foreign-good-names", "good", "roles, scopes, sessions and clients of its own, of which none counts here", theirs("roles", `["admin"]`, "scope", `"orders users"`, "client_id", `"first-party"`, "pos", `"what it likes"`))
	bad("foreign-audience", "for another audience", theirs("aud", `"`+otherIssuer+`"`))
	bad("foreign-no-iat", "without iat no rule could be compared", theirs("iat", "-"))
	bad("foreign-kid-wrong", "its one key under another name", jwt(`{"alg":"ES256","kid":"ec","typ":"at+jwt"}`, claimsWith("iss", `"`+otherIssuer+`"`), ecSign(k.Other)))
	bad("foreign-our-key", "its iss and kid, our signature", jwt(otherHeader, claimsWith("iss", `"`+otherIssuer+`"`), ec))
	bad("signature-rsa-sha1", "PKCS #1 with SHA-1", jwt(rsHeader, good, func(s string) []byte {
		h := sha1.Sum([]byte(s))
		sig, err := rsa.SignPKCS1v15(rand.Reader, k.RS, crypto.SHA1, h[:])
		require.NoError(t, err)
		return sig
	}))
	bad("signature-rsa-zero", "zero", jwt(rsHeader, good, fixed(make([]byte, 256))))
	bad("signature-rsa-one", "one", jwt(rsHeader, good, fixed(append(make([]byte, 255), 1))))
	bad("signature-rsa-n", "the modulus", jwt(rsHeader, good, fixed(k.RS.N.Bytes())))
	bad("signature-rsa-long", "a zero before", jwt(rsHeader, good, func(s string) []byte { return append([]byte{0}, rsaSign(k.RS, false)(s)...) }))
	bad("signature-pss-salt", "PSS with a salt of no length", jwt(`{"alg":"PS256","kid":"ps","typ":"at+jwt"}`, good, func(s string) []byte {
		h := sha256.Sum256([]byte(s))
		sig, err := rsa.SignPSS(rand.Reader, k.PS, crypto.SHA256, h[:], &rsa.PSSOptions{SaltLength: 0, Hash: crypto.SHA256})
		require.NoError(t, err)
		return sig
	}))
	return out
}

func manyWords(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "s%d ", i)
	}
	return b.String()
}

// looser is the character that differs in bits which decode to nothing.
func looser(c byte) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	return string(alphabet[strings.IndexByte(alphabet, c)^1])
}

func manyMembers(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `,"m%d":0`, i)
	}
	return b.String()
}
