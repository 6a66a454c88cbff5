package wycheproof

import (
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/internal/jws"
)

// keys reads the keys of a group: public ones as a validator reads the set of an issuer, shared ones as a service is
// given its HS256 secret. Those that are refused are left out; a validator does not know them either.
func keys(t *testing.T, g *group[webSignature]) (out []*jws.PublicKey) {
	t.Helper()
	doc := g.Public
	if doc == nil {
		doc = g.Private
	}
	var set struct{ Keys []json.RawMessage }
	require.NoError(t, json.Unmarshal(doc, &set))
	if set.Keys == nil {
		set.Keys = []json.RawMessage{doc}
	}
	var public []string
	secrets := map[string]int{}
	for _, raw := range set.Keys {
		var k struct{ Kty, Kid, Alg, K string }
		require.NoError(t, json.Unmarshal(raw, &k))
		if k.Kty != "oct" {
			public = append(public, string(raw))
			continue
		}
		secrets[k.Kid]++
		secret, err := base64.RawURLEncoding.DecodeString(k.K)
		require.NoError(t, err)
		if key, err := jws.NewPublicKey(k.Kid, k.Alg, secret); err == nil {
			out = append(out, key)
		}
	}
	// A service holds its secrets by name, each name once, and never in the set of an issuer's public keys.
	if len(public) > 0 && len(out) > 0 {
		return nil
	}
	out = slices.DeleteFunc(out, func(k *jws.PublicKey) bool { return secrets[k.KID] > 1 })
	read, _, err := jws.ParseJWKS([]byte(`{"keys":[`+strings.Join(public, ",")+`]}`), nil)
	require.NoError(t, err)
	return append(out, read...)
}

// takes is the path of a validator up to the claims: structure, header, key, algorithm, signature. The vectors sign
// "foo" and other texts that no JWT carries, so an empty object takes the place of a payload that is there while the
// structure is read; the signature is checked over the vector's own.
func takes(known []*jws.PublicKey, token string) bool {
	parts := strings.Split(token, ".")
	stand := token
	if len(parts) > 1 && parts[1] != "" {
		if _, err := base64.RawURLEncoding.Strict().DecodeString(parts[1]); err != nil {
			return false
		}
		parts[1] = "e30"
		stand = strings.Join(parts, ".")
	}
	var tok jws.Token
	if jws.Parse(stand, 8<<10, &tok) != nil {
		return false
	}
	i := slices.IndexFunc(known, func(k *jws.PublicKey) bool { return k.KID == tok.Header.KID })
	if i < 0 || !known[i].Allows(tok.Header.Alg) {
		return false
	}
	return known[i].Verify(token[:strings.LastIndexByte(token, '.')], tok.Signature) == nil
}

func TestJWS(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"json_web_signature", "json_web_key", "json_web_crypto"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			taken := 0
			for _, g := range read[webSignature](t, name).TestGroups {
				for _, v := range g.Tests {
					if v.JWS == nil {
						continue // JWE, which is not read at all
					}
					ours := takes(keys(t, &g), v.text())
					if ours {
						taken++
					}
					agree(t, &v.verdict, ours, exception(&g, &v))
				}
			}
			require.NotZero(t, taken)
		})
	}
}

// exception names why our verdict on a vector is another one.
func exception(g *group[webSignature], v *webSignature) string {
	doc := string(g.Private) + string(g.Public)
	switch {
	case v.Result == "invalid":
		if strings.HasPrefix(v.Comment, "invalidBase64Padding") && slices.ContainsFunc(g.Tests, func(o webSignature) bool {
			return o.Result == "valid" && o.text() == v.text()
		}) {
			return "the padding that it is about got lost: letter for letter it is a vector that is valid"
		}
	case strings.Contains(v.text(), ".."):
		return "a JWT's payload is a JSON object, never nothing (RFC 7519 §7.2)"
	case strings.Contains(doc, `"HS384"`), strings.Contains(doc, `"HS512"`):
		return "the algorithm is not offered: one for shared secrets is enough"
	case strings.Contains(doc, `"ES521"`):
		return "the key names an algorithm that does not exist"
	case strings.HasPrefix(v.text(), "eyJhbGciOiJQUzM4NCIs") && strings.Contains(doc, `"PS256"`):
		return "the header names another algorithm than the key (RFC 8725 §3.1)"
	case strings.HasPrefix(v.Comment, "InvalidCharacterInserted"):
		return "base64url is read strictly: one token, one text (RFC 7515 §2)"
	}
	return ""
}
