package wycheproof

import (
	"crypto"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/internal/jws"
)

// verifiers are the key of a group, read from DER and, where the vectors have one, from its JWK.
func verifiers(t *testing.T, g *group[signature], alg string) (out []*jws.PublicKey) {
	t.Helper()
	parsed, err := x509.ParsePKIXPublicKey(g.PublicKeyDer)
	require.NoError(t, err)
	key, err := jws.NewPublicKey("none", alg, parsed)
	require.NoError(t, err)
	out = append(out, key)
	if doc := g.jwk(); doc != nil {
		key, err := jws.ParseJWK(withAlg(t, doc, alg))
		require.NoError(t, err)
		require.True(t, key.Key.(interface{ Equal(crypto.PublicKey) bool }).Equal(parsed), "the JWK is the same key")
		out = append(out, key)
	}
	return out
}

// withAlg gives a JWK the algorithm that it is used under: that of the vectors is sometimes missing.
func withAlg(t *testing.T, doc json.RawMessage, alg string) []byte {
	t.Helper()
	var m map[string]any
	require.NoError(t, json.Unmarshal(doc, &m))
	m["alg"] = alg
	out, err := json.Marshal(m)
	require.NoError(t, err)
	return out
}

// exceptions name why our verdict on a vector is another one.
type exceptions func(*group[signature], *signature) string

func none(*group[signature], *signature) string { return "" }

func TestSignatures(t *testing.T) {
	t.Parallel()
	type suite struct {
		alg string
		why exceptions
	}
	suites := map[string]suite{
		"ecdsa_secp256r1_sha256_p1363": {"ES256", none},
		"ecdsa_secp384r1_sha384_p1363": {"ES384", none},
		"ecdsa_secp521r1_sha512_p1363": {"ES512", none},
		"ed25519":                      {"EdDSA", none},
	}
	for _, size := range []string{"2048", "3072", "4096"} {
		for _, bits := range []string{"256", "384", "512"} {
			suites["rsa_signature_"+size+"_sha"+bits] = suite{"RS" + bits, withoutNull}
		}
	}
	for _, name := range []string{
		"2048_sha256_mgf1_0", "2048_sha256_mgf1_32", "2048_sha256_mgf1sha1_20", "3072_sha256_mgf1_32", "4096_sha256_mgf1_32",
	} {
		suites["rsa_pss_"+name] = suite{"PS256", otherParameters}
	}
	for _, name := range []string{"2048_sha384_mgf1_48", "4096_sha384_mgf1_48"} {
		suites["rsa_pss_"+name] = suite{"PS384", otherParameters}
	}
	for _, name := range []string{"4096_sha512_mgf1_32", "4096_sha512_mgf1_64"} {
		suites["rsa_pss_"+name] = suite{"PS512", otherParameters}
	}
	for name, s := range suites {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, g := range read[signature](t, name).TestGroups {
				for _, key := range verifiers(t, &g, s.alg) {
					for _, v := range g.Tests {
						agree(t, &v.verdict, key.Verify(string(v.Msg), v.Sig) == nil, s.why(&g, &v))
					}
				}
			}
		})
	}
}

// withoutNull: RFC 8017 §A.2.4 lets a verifier take a DigestInfo without its NULL. Go's does not, and no signer makes one.
func withoutNull(_ *group[signature], v *signature) string {
	if v.Result == "acceptable" && len(v.Flags) == 1 && v.Flags[0] == "MissingNull" {
		return "the NULL of the algorithm identifier is missing"
	}
	return ""
}

// otherParameters: RFC 7518 §3.5 fixes MGF1 with the same hash, and a salt of the hash's size.
func otherParameters(g *group[signature], v *signature) string {
	size := map[string]int{"SHA-256": 32, "SHA-384": 48, "SHA-512": 64}[g.Sha]
	switch {
	case v.Result == "invalid":
		if g.MgfSha == g.Sha && g.SLen != size && v.Comment == fmt.Sprintf("s_len changed to %d", size) {
			return "that is the size which the algorithm asks for"
		}
	case g.MgfSha != g.Sha:
		return "the mask is made with another hash"
	case g.SLen != size:
		return "the salt is not of the hash's size"
	}
	return ""
}

// A key of more than 4096 bits makes each signature check cost what ten do.
func TestLongKeysAreRefused(t *testing.T) {
	t.Parallel()
	for _, bits := range []string{"256", "384", "512"} {
		for _, g := range read[signature](t, "rsa_signature_8192_sha"+bits).TestGroups {
			parsed, err := x509.ParsePKIXPublicKey(g.PublicKeyDer)
			require.NoError(t, err)
			_, err = jws.NewPublicKey("none", "RS"+bits, parsed)
			require.Error(t, err)
			if g.KeyJwk != nil {
				_, err = jws.ParseJWK(withAlg(t, g.KeyJwk, "RS"+bits))
				require.Error(t, err)
			}
		}
	}
}

// The vectors for signers are signatures that a verifier must take, over keys of every size.
func TestSignaturesOfSigners(t *testing.T) {
	t.Parallel()
	algs := map[string]string{"SHA-256": "RS256", "SHA-384": "RS384", "SHA-512": "RS512"}
	for _, name := range []string{"rsa_pkcs1_1024_sig_gen", "rsa_pkcs1_1536_sig_gen", "rsa_pkcs1_2048_sig_gen", "rsa_pkcs1_3072_sig_gen", "rsa_pkcs1_4096_sig_gen"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, g := range read[signature](t, name).TestGroups {
				alg, offered := algs[g.Sha]
				if !offered {
					continue // SHA-1, SHA-224 and others have no JWS algorithm
				}
				parsed, err := x509.ParsePKCS1PublicKey(g.KeyAsn)
				require.NoError(t, err)
				key, err := jws.NewPublicKey("none", alg, parsed)
				if name == "rsa_pkcs1_1024_sig_gen" || name == "rsa_pkcs1_1536_sig_gen" {
					require.Error(t, err, "keys under 2048 bits are refused (RFC 7518 §3.3)")
					continue
				}
				require.NoError(t, err)
				for _, v := range g.Tests {
					agree(t, &v.verdict, key.Verify(string(v.Msg), v.Sig) == nil, "")
				}
			}
		})
	}
}

func TestHMAC(t *testing.T) {
	t.Parallel()
	taken := 0
	for _, g := range read[signature](t, "hmac_sha256").TestGroups {
		for _, v := range g.Tests {
			reason := ""
			switch {
			case v.Result == "invalid":
			case len(v.Key) < 32:
				reason = "a secret has at least 256 bits (RFC 7518 §3.2)"
			case g.TagSize != 256:
				reason = "a JWS has the whole tag"
			}
			key, err := jws.NewPublicKey("none", "HS256", []byte(v.Key))
			ours := err == nil && key.Verify(string(v.Msg), v.Tag) == nil
			if ours {
				taken++
			}
			agree(t, &v.verdict, ours, reason)
		}
	}
	require.NotZero(t, taken)
}
