package oauthhttp_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	_ "crypto/sha512" // registers SHA-384 and SHA-512
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/httpauth"
	"github.com/apitoken-go/apitoken/oauthhttp"
)

// algSigner signs by any algorithm, as JWA (RFC 7518 §3, RFC 8037, RFC 9864) says and no library needs to allow.
type algSigner struct {
	alg string
	key crypto.Signer
}

// oneRSAKey is the RSA key of all tests: making one takes long.
var oneRSAKey = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })

func newAlgSigner(t testing.TB, alg string) *algSigner {
	t.Helper()
	var key crypto.Signer
	var err error
	switch alg {
	case "ES256", "ES256K": // the latter by a key of the wrong curve, which is all that is to be had
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "ES384":
		key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "ES512":
		key, err = ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case "EdDSA", "Ed25519":
		_, key, err = ed25519.GenerateKey(rand.Reader)
	default:
		key, err = oneRSAKey()
	}
	require.NoError(t, err)
	return &algSigner{alg, key}
}

func (s *algSigner) jwk(t testing.TB) map[string]any {
	t.Helper()
	raw, err := (&jose.JSONWebKey{Key: s.key.Public()}).MarshalJSON()
	require.NoError(t, err)
	var m map[string]any
	require.NoError(t, json.Unmarshal(raw, &m))
	return m
}

func (s *algSigner) sign(t testing.TB, header, claims map[string]any) string {
	t.Helper()
	h := map[string]any{"alg": s.alg}
	maps.Copy(h, header)
	head, err := json.Marshal(h)
	require.NoError(t, err)
	body, err := json.Marshal(claims)
	require.NoError(t, err)
	input := base64.RawURLEncoding.EncodeToString(head) + "." + base64.RawURLEncoding.EncodeToString(body)
	hash := map[string]crypto.Hash{"256": crypto.SHA256, "384": crypto.SHA384, "512": crypto.SHA512, "56K": crypto.SHA256}[s.alg[len(s.alg)-3:]]
	var sum, sig []byte
	if hash != 0 {
		x := hash.New()
		x.Write([]byte(input))
		sum = x.Sum(nil)
	}
	switch {
	case s.alg == "none":
		sig = []byte("x")
	case strings.HasPrefix(s.alg, "HS"): // with the public key for a secret, as in the attack of RFC 8725 §2.1
		der, err := x509.MarshalPKIXPublicKey(s.key.Public())
		require.NoError(t, err)
		m := hmac.New(hash.New, der)
		m.Write([]byte(input))
		sig = m.Sum(nil)
	case strings.HasPrefix(s.alg, "ES"):
		k := s.key.(*ecdsa.PrivateKey)
		r, v, err := ecdsa.Sign(rand.Reader, k, sum)
		require.NoError(t, err)
		sig = make([]byte, 2*((k.Params().BitSize+7)/8))
		r.FillBytes(sig[:len(sig)/2])
		v.FillBytes(sig[len(sig)/2:])
	case strings.HasPrefix(s.alg, "Ed"):
		sig = ed25519.Sign(s.key.(ed25519.PrivateKey), []byte(input))
	case strings.HasPrefix(s.alg, "PS"):
		sig, err = rsa.SignPSS(rand.Reader, s.key.(*rsa.PrivateKey), hash, sum, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
	default:
		sig, err = rsa.SignPKCS1v15(rand.Reader, s.key.(*rsa.PrivateKey), hash, sum)
	}
	require.NoError(t, err)
	return input + "." + base64.RawURLEncoding.EncodeToString(sig)
}

func listed(t testing.TB, m map[string]any, name string) (out []string) {
	t.Helper()
	list, ok := m[name].([]any)
	require.True(t, ok, "%s is announced", name)
	for _, v := range list {
		out = append(out, v.(string))
	}
	return out
}

var neverTaken = []string{"none", "HS256", "HS384", "HS512", "ES256K"}

// What the metadata announce is there, and what they do not is refused: each value of each list is tried.
func TestTheMetadataTellTheTruth(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(_ *apitoken.Config, o *oauthhttp.Options) {
		o.Details = &oauthhttp.Details{Types: []string{"payment"}, Check: func(_ context.Context, _ apitoken.Client, asked []oauthhttp.Detail) ([]oauthhttp.Detail, error) {
			return asked, nil
		}}
		o.Scopes = apitoken.Scopes{"orders:read", "orders:write"}
	})
	s.client("app", nil)
	m := s.get("/.well-known/oauth-authorization-server").ok().body
	token := s.token(own, s.as("app")).ok().text("access_token")

	proofs := listed(t, m, "dpop_signing_alg_values_supported")
	w := httptest.NewRecorder() // a resource says the same in its challenge (RFC 9449 §7.1)
	httpauth.New(s.svc, &httpauth.Options{BaseURL: testIssuer}).Error(w, httptest.NewRequest("GET", "/", nil), apitoken.ErrInvalidProof)
	require.Contains(t, w.Header().Get("WWW-Authenticate"), `algs="`+strings.Join(proofs, " ")+`"`)
	for _, alg := range append(slices.Clone(proofs), neverTaken...) {
		k := newAlgSigner(t, alg)
		proof := k.sign(t, map[string]any{"typ": "dpop+jwt", "jwk": k.jwk(t)}, map[string]any{"jti": rand.Text(), "htm": "POST", "htu": testIssuer + "/token", "iat": s.at.Now().Unix()})
		a := s.token(own, s.as("app"), header("DPoP", proof))
		if slices.Contains(proofs, alg) {
			require.Equal(t, "DPoP", a.ok(alg).text("token_type"))
		} else {
			a.refused(400, "invalid_dpop_proof", alg)
		}
	}

	endpoints := map[string]string{"token_endpoint": "/token", "revocation_endpoint": "/revoke", "introspection_endpoint": "/introspect"}
	for name, path := range endpoints {
		algs := listed(t, m, name+"_auth_signing_alg_values_supported")
		for _, alg := range append(slices.Clone(algs), neverTaken...) {
			k := newAlgSigner(t, alg)
			id := strings.TrimPrefix(path, "/") + "-" + alg
			jwk := k.jwk(t)
			if slices.Contains(algs, alg) {
				jwk["alg"] = alg // a key without is for the usual algorithm of its type
			}
			set, err := json.Marshal(map[string]any{"keys": []any{jwk}})
			require.NoError(t, err)
			s.client(id, func(c *apitoken.Client) { c.AuthMethod, c.Keys = "private_key_jwt", set })
			v := merge(own, "token", token, "client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer", "client_assertion",
				k.sign(t, nil, map[string]any{"iss": id, "sub": id, "aud": testIssuer, "jti": rand.Text(), "exp": s.at.Now().Unix() + 60}))
			a := s.post(path, v)
			if slices.Contains(algs, alg) {
				require.Equal(t, 200, a.StatusCode, "%s by %s: %s", name, alg, a.raw)
			} else {
				a.refused(401, "invalid_client", name, alg)
			}
		}
	}

	cert, _ := newCertificate(t, "worker.example.com")
	k := newSigner(t)
	s.client("basic", func(c *apitoken.Client) { c.AuthMethod = "client_secret_basic" })
	s.client("post", func(c *apitoken.Client) { c.AuthMethod = "client_secret_post" })
	s.client("key", func(c *apitoken.Client) { c.AuthMethod, c.Keys = "private_key_jwt", k.keys() })
	s.client("tls", func(c *apitoken.Client) { c.AuthMethod, c.TLSName = "tls_client_auth", "dns:worker.example.com" })
	s.client("self", func(c *apitoken.Client) {
		c.AuthMethod, c.Keys = "self_signed_tls_client_auth", k.keys(map[string]any{"x5t#S256": printOf(cert)})
	})
	s.public("spa", nil)
	methods := map[string]func(v url.Values) (url.Values, option){
		"client_secret_basic": func(v url.Values) (url.Values, option) { return v, s.as("basic") },
		"client_secret_post": func(v url.Values) (url.Values, option) {
			return merge(v, "client_id", "post", "client_secret", s.secrets["post"]), header("X", "")
		},
		"private_key_jwt": func(v url.Values) (url.Values, option) {
			return merge(v, pairsOf(s.assertion(k, "key", nil))...), header("X", "")
		},
		"tls_client_auth": func(v url.Values) (url.Values, option) { return merge(v, "client_id", "tls"), certificate(cert, true) },
		"self_signed_tls_client_auth": func(v url.Values) (url.Values, option) {
			return merge(v, "client_id", "self"), certificate(cert, false)
		},
		"none": func(v url.Values) (url.Values, option) { return merge(v, "client_id", "spa"), header("X", "") },
	}
	for name, path := range endpoints {
		announced := listed(t, m, name+"_auth_methods_supported")
		for method, with := range methods {
			v, o := with(params("grant_type", "refresh_token", "refresh_token", "x", "token", "x"))
			a := s.post(path, v, o)
			if slices.Contains(announced, method) {
				require.NotEqual(t, 401, a.StatusCode, "%s by %s: %s", name, method, a.raw)
			} else {
				a.refused(401, "invalid_client", name, method)
			}
		}
		for _, method := range announced {
			require.Contains(t, methods, method)
		}
	}

	grants := listed(t, m, "grant_types_supported")
	for _, g := range append([]string{"password", "implicit", "urn:ietf:params:oauth:grant-type:saml2-bearer", "urn:openid:params:grant-type:ciba"}, allGrants...) {
		a := s.token(params("grant_type", g), s.as("app"))
		require.Equal(t, !slices.Contains(grants, g), a.text("error") == "unsupported_grant_type", g)
	}
	ask := func(name, value string) string {
		return s.get("/authorize?" + authorization("app", name, value).Encode()).redirected(callback).Get("error")
	}
	for name, list := range map[string]struct {
		member string
		more   []string
	}{
		"response_type":         {"response_types_supported", []string{"token", "id_token", "code token", "none"}},
		"response_mode":         {"response_modes_supported", []string{"fragment", "form_post", "jwt", "query.jwt"}},
		"code_challenge_method": {"code_challenge_methods_supported", []string{"plain", "s256"}},
		"scope":                 {"scopes_supported", []string{"admin"}},
	} {
		announced := listed(t, m, list.member)
		for _, v := range append(slices.Clone(announced), list.more...) {
			require.Equal(t, slices.Contains(announced, v), ask(name, v) == "", "%s %s", name, v)
		}
	}
	types := listed(t, m, "authorization_details_types_supported")
	for _, typ := range append(slices.Clone(types), "account") {
		a := s.token(merge(own, "authorization_details", `[{"type":"`+typ+`"}]`), s.as("app"))
		require.Equal(t, slices.Contains(types, typ), a.StatusCode == 200, typ)
	}
	a := s.post("/introspect", params("token", token), s.as("app"), header("Accept", "application/token-introspection+jwt")).ok()
	j, err := jose.ParseSignedCompact(string(a.raw), []jose.SignatureAlgorithm{jose.ES256})
	require.NoError(t, err)
	require.Equal(t, []string{j.Signatures[0].Header.Algorithm}, listed(t, m, "introspection_signing_alg_values_supported"))
	require.Equal(t, true, m["tls_client_certificate_bound_access_tokens"], "as TestTokensAreBoundToCertificates shows")
	require.Equal(t, true, m["authorization_response_iss_parameter_supported"], "as redirected checks each time")
	require.NotContains(t, m, "require_pushed_authorization_requests", "as the requests above show")

	sym := newSite(t, func(c *apitoken.Config, _ *oauthhttp.Options) { c.Algorithm, c.Audiences = "HS256", nil })
	require.NotContains(t, sym.get("/.well-known/oauth-authorization-server").ok().body, "introspection_signing_alg_values_supported", "nobody could verify such an answer")
}
