package oauthhttp_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/httpauth"
	"github.com/apitoken-go/apitoken/oauthhttp"
	"github.com/apitoken-go/apitoken/store/memstore"
)

// bank is a deployment of the FAPI 2.0 Security Profile: an issuer, an API, a client by private_key_jwt whose tokens are bound to
// DPoP keys ("one"), and two whose tokens are bound to certificates ("two" by its certificate, "three" by a key).
type bank struct {
	*site
	keys  map[string]*algSigner // of client one, by kid: ES256, PS256, EdDSA, and RSA keys with and without alg
	dpop  *algSigner            // one's DPoP key
	cert  *x509.Certificate     // two's and three's
	other *x509.Certificate
	api   http.Handler // needs the scope orders:read
	deny  bool         // the user rejects
	waits bool         // the user is not signed in yet
}

func newBank(t testing.TB) *bank {
	t.Helper()
	b := &bank{keys: map[string]*algSigner{}, dpop: newAlgSigner(t, "ES256")}
	b.site = newSite(t, func(c *apitoken.Config, o *oauthhttp.Options) {
		c.FAPI = true
		o.DevicePage = ""
		o.Consent = oauthhttp.ConsentFunc(func(w http.ResponseWriter, r *http.Request, a *oauthhttp.Authorization) {
			if b.waits {
				return
			}
			if b.deny {
				b.h.Deny(w, r, a, "")
				return
			}
			b.h.Approve(w, r, a, oauthhttp.Approval{Subject: "alice", Scopes: oauthhttp.All()})
		})
	})
	var set []any
	for kid, alg := range map[string]string{"e": "ES256", "p": "PS256", "d": "EdDSA", "r": "RS256", "e384": "ES384"} {
		k := newAlgSigner(t, alg)
		jwk := k.jwk(t)
		jwk["kid"] = kid
		if kid != "r" {
			jwk["alg"] = alg
		}
		b.keys[kid] = k
		set = append(set, jwk)
	}
	doc, err := json.Marshal(map[string]any{"keys": set})
	require.NoError(t, err)
	b.cert, _ = newCertificate(t, "two.example.com")
	b.other, _ = newCertificate(t, "other.example.com")
	grants := []string{"authorization_code", "refresh_token", "client_credentials"}
	for id, change := range map[string]func(*apitoken.Client){
		"one": func(c *apitoken.Client) { c.AuthMethod, c.Keys = "private_key_jwt", doc },
		"two": func(c *apitoken.Client) {
			c.AuthMethod, c.TLSName, c.BindCertificate = "tls_client_auth", "dns:two.example.com", true
		},
		"three": func(c *apitoken.Client) { c.AuthMethod, c.Keys, c.BindCertificate = "private_key_jwt", doc, true },
	} {
		b.client(id, func(c *apitoken.Client) {
			c.GrantTypes, c.MayImpersonate = grants, false
			c.RedirectURIs = []string{callback, callback + "?dummy1=lorem&dummy2=ipsum"}
			change(c)
		})
	}
	auth := httpauth.New(b.svc, &httpauth.Options{Realm: "api", BaseURL: testAudience})
	b.api = auth.Require("orders:read")(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write([]byte(apitoken.FromContext(r.Context()).Subject()))
	}))
	return b
}

// signed authenticates client one by the key of that kid, with changes to the header and claims.
func (b *bank) signed(kid, client string, head, change map[string]any) url.Values {
	b.t.Helper()
	now := b.at.Now().Unix()
	c := map[string]any{"iss": client, "sub": client, "aud": testIssuer, "jti": rand.Text(), "iat": now, "nbf": now, "exp": now + 60}
	maps.Copy(c, change)
	h := map[string]any{"kid": kid}
	maps.Copy(h, head)
	return params("client_id", client, "client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer", "client_assertion", b.keys[kid].sign(b.t, h, c))
}

// by is v with a good proof of who client is.
func (b *bank) by(client string, v url.Values) url.Values {
	b.t.Helper()
	if client == "two" {
		return merge(v, "client_id", "two")
	}
	return merge(v, pairsOf(b.signed("e", client, nil, nil))...)
}

// proofOf is a DPoP proof. Claims and header members that are nil are left out.
func (b *bank) proofOf(k *algSigner, method, target string, head, change map[string]any) string {
	b.t.Helper()
	h := map[string]any{"typ": "dpop+jwt", "jwk": k.jwk(b.t)}
	c := map[string]any{"jti": rand.Text(), "htm": method, "htu": target, "iat": b.at.Now().Unix()}
	maps.Copy(h, head)
	maps.Copy(c, change)
	for _, m := range []map[string]any{h, c} {
		maps.DeleteFunc(m, func(_ string, v any) bool { return v == nil })
	}
	return k.sign(b.t, h, c)
}

func (b *bank) proves(k *algSigner, path string) option {
	return header("DPoP", b.proofOf(k, "POST", testIssuer+path, nil, nil))
}

// pushable is an authorization request of one's without a credential.
func pushable(pairs ...string) url.Values { return merge(authorization("", pairs...), "client_id", "") }

func (b *bank) push(client string, v url.Values, options ...option) *answer {
	b.t.Helper()
	if client != "one" {
		options = append(options, certificate(b.cert, true))
	}
	return b.post("/par", b.by(client, v), options...)
}

// visit is the browser's way: the request_uri, what else stands in the URL, and the redirect that comes of it.
func (b *bank) visit(client, uri string, pairs ...string) *answer {
	b.t.Helper()
	return b.get("/authorize?" + merge(params("client_id", client, "request_uri", uri), pairs...).Encode())
}

func (b *bank) fresh(client string, pairs ...string) string {
	b.t.Helper()
	uri := b.push(client, pushable(pairs...)).ok().text("request_uri")
	code := b.visit(client, uri).redirected(callback).Get("code")
	require.NotEmpty(b.t, code)
	return code
}

// redeem is one's token request with its DPoP key.
func (b *bank) redeem(code string, pairs ...string) *answer {
	b.t.Helper()
	return b.token(b.by("one", redemption(code, pairs...)), b.proves(b.dpop, "/token"))
}

// loggedIn is one's tokens for alice.
func (b *bank) loggedIn() *answer { b.t.Helper(); return b.redeem(b.fresh("one")).ok() }

func (b *bank) refresh(token string, pairs ...string) *answer {
	b.t.Helper()
	return b.token(b.by("one", merge(params("grant_type", "refresh_token", "refresh_token", token), pairs...)), b.proves(b.dpop, "/token"))
}

func accessHash(token string) string {
	sum := crypto.SHA256.New()
	sum.Write([]byte(token))
	return base64.RawURLEncoding.EncodeToString(sum.Sum(nil))
}

// call sends a request to the API and returns its status.
func (b *bank) call(path string, options ...option) (int, http.Header) {
	b.t.Helper()
	r := httptest.NewRequest("GET", testAudience+path, nil)
	for _, o := range options {
		o(r)
	}
	w := httptest.NewRecorder()
	b.api.ServeHTTP(w, r)
	return w.Code, w.Header()
}

// uses calls the API with a token and a proof of one's key, changed.
func (b *bank) uses(token string, head, change map[string]any) (int, http.Header) {
	b.t.Helper()
	c := map[string]any{"ath": accessHash(token)}
	maps.Copy(c, change)
	return b.call("/", header("Authorization", "DPoP "+token), header("DPoP", b.proofOf(b.dpop, "GET", testAudience+"/", head, c)))
}

func (b *bank) metadata() map[string]any {
	b.t.Helper()
	return b.get("/.well-known/oauth-authorization-server").ok().body
}

var fapiAlgs = []string{"PS256", "ES256", "EdDSA"}

// TestFAPI holds the conditions of the FAPI 2.0 Security Profile (final) and of the OpenID Foundation's suite for it, each against a
// deployment of its own. Numbers are of the profile's sections; a name without one is the suite's.
func TestFAPI(t *testing.T) {
	t.Parallel()
	refusedTo := func(code string, v url.Values) func(*bank) {
		return func(b *bank) { b.push("one", v).refused(400, code) }
	}
	// refusedAssertion: nothing is given for an assertion that is changed so, at either endpoint.
	refusedAssertion := func(kid string, head, change map[string]any) func(*bank) {
		return func(b *bank) {
			b.post("/par", merge(pushable(), pairsOf(b.signed(kid, "one", head, change))...)).refused(401, "invalid_client")
			b.token(merge(own, pairsOf(b.signed(kid, "one", head, change))...), b.proves(b.dpop, "/token")).refused(401, "invalid_client")
		}
	}
	takenAssertion := func(kid string, head, change map[string]any) func(*bank) {
		return func(b *bank) {
			b.post("/par", merge(pushable(), pairsOf(b.signed(kid, "one", head, change))...)).ok()
			b.token(merge(own, pairsOf(b.signed(kid, "one", head, change))...), b.proves(b.dpop, "/token")).ok()
		}
	}
	ahead := func(b *bank, d time.Duration) map[string]any {
		at := b.at.Now().Add(d).Unix()
		return map[string]any{"iat": at, "nbf": at, "exp": at + 60}
	}
	// proofEverywhere sends a proof of iat off by d to PAR, the token endpoint and the API.
	proofEverywhere := func(d time.Duration, taken bool) func(*bank) {
		return func(b *bank) {
			iat := map[string]any{"iat": b.at.Now().Add(d).Unix()}
			at := func(path string) option {
				return header("DPoP", b.proofOf(b.dpop, "POST", testIssuer+path, nil, iat))
			}
			token := b.loggedIn().text("access_token")
			status, _ := b.uses(token, nil, iat)
			par, tok := b.push("one", pushable(), at("/par")), b.token(b.by("one", own), at("/token"))
			if !taken {
				par.refused(400, "invalid_dpop_proof")
				tok.refused(400, "invalid_dpop_proof")
				require.Equal(b.t, 401, status)
				return
			}
			par.ok()
			tok.ok()
			require.Equal(b.t, 200, status)
		}
	}
	// atAPI sends a changed proof to the API, and then a good one: a refusal spends nothing.
	atAPI := func(want int, head, change map[string]any) func(*bank) {
		return func(b *bank) {
			token := b.loggedIn().text("access_token")
			status, h := b.uses(token, head, change)
			require.Equal(b.t, want, status)
			if want == 401 {
				require.Contains(b.t, h.Get("WWW-Authenticate"), `error="invalid_dpop_proof"`)
			}
			status, _ = b.uses(token, nil, nil)
			require.Equal(b.t, 200, status, "a good proof still works")
		}
	}
	absent := func(name string) map[string]any { return map[string]any{name: nil} }

	for name, holds := range map[string]func(*bank){
		// Discovery
		"5.3.2.1-1 metadata with the issuer": func(b *bank) { require.Equal(b.t, testIssuer, b.metadata()["issuer"]) },
		"5.3.2.1-3 confidential clients only, and 5.3.2.1-6 by private_key_jwt or mTLS, announced": func(b *bank) {
			for _, at := range []string{"token", "revocation", "introspection"} {
				require.ElementsMatch(b.t, []string{"private_key_jwt", "tls_client_auth", "self_signed_tls_client_auth"}, listed(b.t, b.metadata(), at+"_endpoint_auth_methods_supported"))
			}
		},
		"5.3.2.1-3 no public client, no secret, even where one was made before": func(b *bank) {
			for _, c := range []apitoken.Client{{ID: "spa", Public: true}, {ID: "secret"}, {ID: "post", AuthMethod: "client_secret_post"}, {ID: "basic", AuthMethod: "client_secret_basic"}} {
				c.GrantTypes, c.RedirectURIs = []string{"authorization_code"}, []string{callback}
				_, _, err := b.svc.Clients.Create(b.t.Context(), c)
				require.ErrorIs(b.t, err, apitoken.ErrInvalidRequest, c.ID)
			}
			old := newSite(b.t, nil)
			old.public("spa", nil)
			old.client("secret", nil)
			now := old.second(func(c *apitoken.Config, _ *oauthhttp.Options) { c.FAPI = true })
			now.post("/par", merge(pushable(), "client_id", "spa")).refused(401, "invalid_client")
			now.token(own, now.as("secret")).refused(401, "invalid_client")
		},
		"5.3.2.2-7 iss in the response, announced": func(b *bank) {
			require.Equal(b.t, true, b.metadata()["authorization_response_iss_parameter_supported"])
		},
		"5.3.2.2-2 PAR, announced as required": func(b *bank) {
			m := b.metadata()
			require.Equal(b.t, testIssuer+"/par", m["pushed_authorization_request_endpoint"])
			require.Equal(b.t, true, m["require_pushed_authorization_requests"])
		},
		"5.3.2.2-5 S256 announced, and nothing else": func(b *bank) {
			require.Equal(b.t, []string{"S256"}, listed(b.t, b.metadata(), "code_challenge_methods_supported"))
		},
		"8705-3.3 certificate-bound tokens announced": func(b *bank) { require.Equal(b.t, true, b.metadata()["tls_client_certificate_bound_access_tokens"]) },
		"5.4.1-1 announced algorithms are those of the profile": func(b *bank) {
			m := b.metadata()
			for _, list := range []string{"dpop_signing_alg_values_supported", "token_endpoint_auth_signing_alg_values_supported", "revocation_endpoint_auth_signing_alg_values_supported", "introspection_endpoint_auth_signing_alg_values_supported"} {
				require.ElementsMatch(b.t, fapiAlgs, listed(b.t, m, list), list)
			}
			require.Subset(b.t, fapiAlgs, listed(b.t, m, "introspection_signing_alg_values_supported"))
		},
		"5.4.1-2 server keys have kid, alg and size": func(b *bank) {
			var set jose.JSONWebKeySet
			require.NoError(b.t, json.Unmarshal(b.get("/.well-known/jwks.json").ok().raw, &set))
			require.NotEmpty(b.t, set.Keys)
			for _, k := range set.Keys {
				require.NotEmpty(b.t, k.KeyID)
				require.Contains(b.t, fapiAlgs, k.Algorithm)
				require.True(b.t, k.Valid() && k.IsPublic())
			}
		},
		"5.4.1-1 tokens are signed by an algorithm of the profile": func(b *bank) {
			j, err := jose.ParseSignedCompact(b.loggedIn().text("access_token"), []jose.SignatureAlgorithm{jose.ES256, jose.PS256, jose.EdDSA})
			require.NoError(b.t, err)
			require.Contains(b.t, fapiAlgs, j.Signatures[0].Header.Algorithm)
		},
		"5.2.2 endpoints that browsers do not visit do not redirect": func(b *bank) {
			for _, path := range []string{"/token", "/par", "/revoke", "/introspect"} {
				a := b.post(path, b.by("one", params("token", "x")))
				require.False(b.t, a.StatusCode >= 300 && a.StatusCode < 400, path)
			}
		},

		// The whole way
		"happy: PAR, PKCE, private_key_jwt, DPoP, API": func(b *bank) {
			a := b.loggedIn()
			require.Equal(b.t, "DPoP", a.text("token_type"))
			status, _ := b.uses(a.text("access_token"), nil, nil)
			require.Equal(b.t, 200, status)
		},
		"5.3.2.1-9 a client by its certificate, and its tokens bound to it": func(b *bank) {
			token := b.token(b.by("two", redemption(b.fresh("two"))), certificate(b.cert, true)).ok().text("access_token")
			bearer := header("Authorization", "Bearer "+token)
			status, _ := b.call("/", bearer, certificate(b.cert, true))
			require.Equal(b.t, 200, status)
			status, _ = b.call("/", bearer, certificate(b.other, true))
			require.Equal(b.t, 401, status)
			status, _ = b.call("/", bearer)
			require.Equal(b.t, 401, status)
		},
		"mTLS-hok: a token request without the certificate": func(b *bank) { b.token(b.by("two", redemption(b.fresh("two")))).refused(401, "invalid_client") },
		"mTLS-other: with another's certificate": func(b *bank) {
			b.token(b.by("two", redemption(b.fresh("two"))), certificate(b.other, true)).refused(401, "invalid_client")
		},
		"private_key_jwt with certificate-bound tokens": func(b *bank) {
			b.token(b.by("three", redemption(b.fresh("three"))), certificate(b.cert, true)).ok()
			b.token(b.by("three", redemption(b.fresh("three")))).refused(400, "invalid_request")
		},
		"5.3.2.1-2 no password grant": func(b *bank) {
			b.token(b.by("one", params("grant_type", "password", "username", "alice", "password", "x"))).refused(400, "unsupported_grant_type")
		},

		// Authorization requests
		"5.3.2.2-7 iss": func(b *bank) {
			require.Equal(b.t, testIssuer, b.visit("one", b.push("one", pushable()).ok().text("request_uri")).redirected(callback).Get("iss"))
		},
		"state comes back unchanged, in the query": func(b *bank) {
			for _, state := range []string{"xyz", strings.Repeat("s", 384), strings.Repeat("s", 1000), "a b&c=d/é"} {
				a := b.visit("one", b.push("one", pushable("state", state)).ok().text("request_uri"))
				require.Equal(b.t, state, a.redirected(callback).Get("state"))
				require.NotContains(b.t, a.Header.Get("Location"), "#")
			}
		},
		"no state, none back": func(b *bank) {
			require.False(b.t, b.visit("one", b.push("one", pushable("state", "")).ok().text("request_uri")).redirected(callback).Has("state"))
		},
		"a nonce of 64 characters": func(b *bank) { b.fresh("one", "nonce", strings.Repeat("n", 64)) },
		"scopes in another order":  func(b *bank) { b.redeem(b.fresh("one", "scope", "orders:write orders:read")).ok() },
		"5.3.2.2-11 redirects by 303": func(b *bank) {
			require.Equal(b.t, 303, b.visit("one", b.push("one", pushable()).ok().text("request_uri")).StatusCode)
		},
		"a code has 128 bits and more": func(b *bank) {
			one, two := b.fresh("one"), b.fresh("one")
			require.NotEqual(b.t, one, two)
			require.GreaterOrEqual(b.t, len(one)*6, 128)
		},
		"a request_uri has 128 bits and more": func(b *bank) {
			require.GreaterOrEqual(b.t, len(strings.TrimPrefix(b.push("one", pushable()).ok().text("request_uri"), "urn:ietf:params:oauth:request_uri:"))*5, 128)
		},
		"PAR-2.2 201, JSON, not stored": func(b *bank) {
			a := b.push("one", pushable()).ok()
			require.Equal(b.t, 201, a.StatusCode)
			require.Equal(b.t, "no-store", a.Header.Get("Cache-Control"))
			require.Equal(b.t, "application/json", a.Header.Get("Content-Type"))
		},
		"5.3.2.2-12 a request_uri lives for less than 600 s": func(b *bank) {
			a := b.push("one", pushable()).ok()
			require.Less(b.t, a.body["expires_in"], 600.0)
			b.at.Advance(600 * time.Second)
			require.Contains(b.t, string(b.visit("one", a.text("request_uri")).raw), "invalid_request_uri")
		},
		"5.3.2.2-8 a code lives for at most 60 s": func(b *bank) {
			code := b.fresh("one")
			b.at.Advance(61 * time.Second)
			b.redeem(code).refused(400, "invalid_grant")
		},
		"the user rejects: access_denied, with state and iss": func(b *bank) {
			b.deny = true
			q := b.visit("one", b.push("one", pushable()).ok().text("request_uri")).redirected(callback)
			require.Equal(b.t, "access_denied", q.Get("error"))
			require.Equal(b.t, "xyz", q.Get("state"))
		},
		"5.3.2.2-3 requests that were not pushed": func(b *bank) {
			require.Equal(b.t, "invalid_request", b.get("/authorize?"+authorization("one").Encode()).redirected(callback).Get("error"))
		},
		"5.3.2.2-4 PAR without client authentication": func(b *bank) {
			b.post("/par", merge(pushable(), "client_id", "one")).refused(401, "invalid_client")
		},
		"5.3.2.2-8 redirect_uri is needed":  refusedTo("invalid_request", pushable("redirect_uri", "")),
		"a redirect_uri not registered":     refusedTo("invalid_request", pushable("redirect_uri", "https://evil.example.com/cb")),
		"response_type code id_token":       refusedTo("unsupported_response_type", pushable("response_type", "code id_token")),
		"response_type token":               refusedTo("unsupported_response_type", pushable("response_type", "token")),
		"response_type id_token":            refusedTo("unsupported_response_type", pushable("response_type", "id_token")),
		"PKCE-1 no code_challenge":          refusedTo("invalid_request", pushable("code_challenge", "")),
		"PKCE-2 plain":                      refusedTo("invalid_request", pushable("code_challenge_method", "plain")),
		"PAR with a request_uri":            refusedTo("invalid_request", pushable("request_uri", "urn:ietf:params:oauth:request_uri:x")),
		"a request object is not supported": refusedTo("request_not_supported", pushable("request", "x.y.z")),
		"a redirect_uri with a query": func(b *bank) {
			a := b.visit("one", b.push("one", pushable("redirect_uri", callback+"?dummy1=lorem&dummy2=ipsum")).ok().text("request_uri"))
			require.Contains(b.t, a.Header.Get("Location"), callback+"?dummy1=lorem&dummy2=ipsum&")
		},
		"PKCE-3 a token request without code_verifier": func(b *bank) { b.redeem(b.fresh("one"), "code_verifier", "").refused(400, "invalid_grant") },
		"PKCE-4 a wrong code_verifier": func(b *bank) {
			b.redeem(b.fresh("one"), "code_verifier", strings.Repeat("w", 43)).refused(400, "invalid_grant")
		},
		"PAR by another verb": func(b *bank) {
			r := formRequest("/par", b.by("one", pushable()).Encode())
			r.Method = "PUT"
			b.do(r).refused(405, "invalid_request")
		},
		"another client's request_uri": func(b *bank) {
			a := b.visit("three", b.push("one", pushable()).ok().text("request_uri"))
			require.Equal(b.t, 400, a.StatusCode)
		},
		"a request_uri is good for one code": func(b *bank) {
			uri := b.push("one", pushable()).ok().text("request_uri")
			b.visit("one", uri).redirected(callback)
			require.Contains(b.t, string(b.visit("one", uri).raw), "invalid_request_uri")
		},
		"a request_uri is good again until somebody has decided": func(b *bank) {
			uri := b.push("one", pushable()).ok().text("request_uri")
			b.waits = true
			b.visit("one", uri).ok()
			b.visit("one", uri).ok()
			b.waits = false
			b.redeem(b.visit("one", uri).redirected(callback).Get("code")).ok()
		},
		"parameters outside a pushed request are not used": func(b *bank) {
			uri := b.push("one", pushable()).ok().text("request_uri")
			q := b.visit("one", uri, "state", "other", "scope", "orders:write", "redirect_uri", "https://evil.example.com").redirected(callback)
			require.Equal(b.t, "xyz", q.Get("state"))
			require.Equal(b.t, "orders:read", b.redeem(q.Get("code")).ok().text("scope"))
		},
		"9700-2.1 no open redirect": func(b *bank) {
			require.Equal(b.t, 400, b.get("/authorize?"+authorization("nobody", "redirect_uri", "https://evil.example.com").Encode()).StatusCode)
			require.Equal(b.t, 400, b.get("/authorize?"+authorization("one", "redirect_uri", "https://evil.example.com").Encode()).StatusCode)
		},
		"9700-4.16 no framing, no referrer, no CORS": func(b *bank) {
			h := b.get("/authorize?"+authorization("nobody").Encode(), header("Origin", "https://x.example")).Header
			require.Contains(b.t, h.Get("Content-Security-Policy"), "frame-ancestors 'none'")
			require.Equal(b.t, "DENY", h.Get("X-Frame-Options"))
			require.Equal(b.t, "no-referrer", h.Get("Referrer-Policy"))
			require.Empty(b.t, h.Get("Access-Control-Allow-Origin"))
		},
		"6749 a repeated parameter": func(b *bank) {
			b.post("/par", url.Values(b.by("one", merge(pushable()))), header("X", "")).ok()
			b.do(formRequest("/par", b.by("one", pushable()).Encode()+"&scope=orders:write")).refused(400, "invalid_request")
		},

		// Client authentication
		"5.3.2.1-8 aud = issuer":             takenAssertion("e", nil, nil),
		"by PS256":                           takenAssertion("p", nil, nil),
		"by EdDSA":                           takenAssertion("d", nil, nil),
		"without kid":                        takenAssertion("e", map[string]any{"kid": ""}, nil),
		"5.3.2.1-8a aud = PAR endpoint":      refusedAssertion("e", nil, map[string]any{"aud": testIssuer + "/par"}),
		"5.3.2.1-8b aud = token endpoint":    refusedAssertion("e", nil, map[string]any{"aud": testIssuer + "/token"}),
		"5.3.2.1-8c aud = [issuer]":          refusedAssertion("e", nil, map[string]any{"aud": []string{testIssuer}}),
		"5.3.2.1-8d aud = [issuer, PAR]":     refusedAssertion("e", nil, map[string]any{"aud": []string{testIssuer, testIssuer + "/par"}}),
		"aud of another server":              refusedAssertion("e", nil, map[string]any{"aud": "https://other.example.com"}),
		"5.4.1 RS256 with a key without alg": refusedAssertion("r", nil, nil),
		"5.4.1 ES384":                        refusedAssertion("e384", nil, nil),
		"expired 5 minutes ago":              refusedAssertion("e", nil, map[string]any{"exp": time.Now().Add(-5 * time.Minute).Unix()}),
		"without sub":                        refusedAssertion("e", nil, map[string]any{"sub": ""}),
		"without jti":                        refusedAssertion("e", nil, map[string]any{"jti": ""}),
		"a proof as assertion":               refusedAssertion("e", map[string]any{"typ": "dpop+jwt"}, nil),
		"5.4.1 RS256 with a key for PS256": func(b *bank) {
			b.keys["p"] = &algSigner{"RS256", b.keys["p"].key}
			b.token(merge(own, pairsOf(b.signed("p", "one", nil, nil))...), b.proves(b.dpop, "/token")).refused(401, "invalid_client")
		},
		"no assertion": func(b *bank) {
			b.token(merge(redemption(b.fresh("one")), "client_id", "one"), b.proves(b.dpop, "/token")).refused(401, "invalid_client")
		},
		"an assertion used twice": func(b *bank) {
			v := merge(own, pairsOf(b.signed("e", "one", nil, nil))...)
			b.token(v, b.proves(b.dpop, "/token")).ok()
			b.token(v, b.proves(b.dpop, "/token")).refused(401, "invalid_client")
		},
		"5.3.2.1-10 iat and nbf 0 to 10 s ahead": func(b *bank) {
			for _, d := range []time.Duration{0, 8 * time.Second, 10 * time.Second} {
				b.post("/par", merge(pushable(), pairsOf(b.signed("e", "one", nil, ahead(b, d)))...)).ok(d)
			}
		},
		"5.3.2.1-11 iat and nbf over 60 s ahead": func(b *bank) {
			b.post("/par", merge(pushable(), pairsOf(b.signed("e", "one", nil, ahead(b, 61*time.Second)))...)).refused(401, "invalid_client")
		},
		"client_id of another client": func(b *bank) {
			b.token(merge(own, append(pairsOf(b.signed("e", "one", nil, nil)), "client_id", "three")...), b.proves(b.dpop, "/token")).refused(401, "invalid_client")
		},

		// Tokens
		"5.3.2.1-5 no access token without sender constraint": func(b *bank) {
			b.token(b.by("one", redemption(b.fresh("one")))).refused(400, "invalid_dpop_proof")
			b.token(b.by("one", own)).refused(400, "invalid_dpop_proof")
			_, err := b.svc.Issue(b.t.Context(), apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"orders:read"}})
			require.ErrorIs(b.t, err, apitoken.ErrInvalidRequest, "the host is held to it too")
		},
		"a code of one by three": func(b *bank) {
			b.token(b.by("three", redemption(b.fresh("one"))), certificate(b.cert, true)).refused(400, "invalid_grant")
		},
		"5.3.2.2-10 a code used twice, and its token is revoked": func(b *bank) {
			code := b.fresh("one")
			token := b.redeem(code).ok().text("access_token")
			b.redeem(code).refused(400, "invalid_grant")
			status, _ := b.uses(token, nil, nil)
			require.Equal(b.t, 401, status)
		},
		"redirect_uri differs at the token endpoint": func(b *bank) {
			b.redeem(b.fresh("one"), "redirect_uri", callback+"?dummy1=lorem&dummy2=ipsum").refused(400, "invalid_grant")
		},
		"a token response is not stored, and says how long": func(b *bank) {
			a := b.loggedIn()
			require.Equal(b.t, "no-store", a.Header.Get("Cache-Control"))
			require.LessOrEqual(b.t, a.body["expires_in"], 3600.0)
			require.Positive(b.t, a.body["expires_in"])
		},

		// DPoP at the issuer
		"dpop_jkt-1 differs from PAR's proof": func(b *bank) {
			b.push("one", pushable("dpop_jkt", printOfKey(b.t, newAlgSigner(b.t, "ES256"))), b.proves(b.dpop, "/par")).refused(400, "invalid_dpop_proof")
		},
		"dpop_jkt-2 PAR's proof is of another key than the token request's": func(b *bank) {
			uri := b.push("one", pushable(), b.proves(newAlgSigner(b.t, "ES256"), "/par")).ok().text("request_uri")
			b.redeem(b.visit("one", uri).redirected(callback).Get("code")).refused(400, "invalid_grant")
		},
		"dpop_jkt-3 of another key than the token request's": func(b *bank) {
			b.redeem(b.fresh("one", "dpop_jkt", printOfKey(b.t, newAlgSigner(b.t, "ES256")))).refused(400, "invalid_grant")
		},
		"dpop_jkt-4 the same key at both": func(b *bank) {
			uri := b.push("one", pushable(), b.proves(b.dpop, "/par")).ok().text("request_uri")
			b.redeem(b.visit("one", uri).redirected(callback).Get("code")).ok()
		},
		"dpop_jkt-5 of the same key": func(b *bank) { b.redeem(b.fresh("one", "dpop_jkt", printOfKey(b.t, b.dpop))).ok() },
		"dpop_jkt-6 malformed":       refusedTo("invalid_request", pushable("dpop_jkt", "x")),
		"a proof 10 s old":           proofEverywhere(-10*time.Second, true),
		"a proof 10 s ahead":         proofEverywhere(10*time.Second, true),
		"a proof an hour ahead":      proofEverywhere(time.Hour, false),
		"a proof an hour old":        proofEverywhere(-time.Hour, false),
		"a proof with nbf and exp": func(b *bank) {
			now := b.at.Now().Unix()
			b.token(b.by("one", own), header("DPoP", b.proofOf(b.dpop, "POST", testIssuer+"/token", nil, map[string]any{"nbf": now, "exp": now + 60}))).ok()
		},
		"a proof whose exp is over, or whose nbf is to come": func(b *bank) {
			token := b.loggedIn().text("access_token")
			for name, off := range map[string]time.Duration{"exp": -11 * time.Second, "nbf": 11 * time.Second} {
				change := map[string]any{name: b.at.Now().Add(off).Unix()}
				b.token(b.by("one", own), header("DPoP", b.proofOf(b.dpop, "POST", testIssuer+"/token", nil, change))).refused(400, "invalid_dpop_proof", name)
				status, _ := b.uses(token, nil, change)
				require.Equal(b.t, 401, status, name)
			}
		},
		"5.4.1 proofs by each algorithm of the profile, and by no other": func(b *bank) {
			for _, alg := range []string{"ES256", "PS256", "EdDSA"} {
				k := newAlgSigner(b.t, alg)
				b.token(b.by("one", own), b.proves(k, "/token")).ok(alg)
			}
			for _, alg := range []string{"RS256", "RS512", "PS384", "PS512", "ES384", "ES512", "Ed25519", "none", "HS256"} {
				k := newAlgSigner(b.t, alg)
				b.token(b.by("one", own), b.proves(k, "/token")).refused(400, "invalid_dpop_proof", alg)
			}
		},

		// Refresh
		"refresh": func(b *bank) { b.refresh(b.loggedIn().text("refresh_token")).ok() },
		"5.3.2.1-9 refresh tokens are not rotated": func(b *bank) {
			token := b.loggedIn().text("refresh_token")
			for range 3 {
				next := b.refresh(token).ok()
				require.Contains(b.t, []string{"", token}, next.text("refresh_token"))
			}
		},
		"refresh without client authentication": func(b *bank) {
			b.token(params("grant_type", "refresh_token", "client_id", "one", "refresh_token", b.loggedIn().text("refresh_token")), b.proves(b.dpop, "/token")).refused(401, "invalid_client")
		},
		"refresh without proof": func(b *bank) {
			b.token(b.by("one", params("grant_type", "refresh_token", "refresh_token", b.loggedIn().text("refresh_token")))).refused(400, "invalid_dpop_proof")
		},
		"a refresh token of one by three": func(b *bank) {
			b.token(b.by("three", params("grant_type", "refresh_token", "refresh_token", b.loggedIn().text("refresh_token"))), certificate(b.cert, true)).refused(400, "invalid_grant")
		},
		"refresh with more scope": func(b *bank) {
			b.refresh(b.loggedIn().text("refresh_token"), "scope", "orders:read orders:write").refused(400, "invalid_scope")
		},

		// The API
		"RS a scheme in any case": func(b *bank) {
			token := b.loggedIn().text("access_token")
			for _, scheme := range []string{"DPoP", "dpop", "DPOP"} {
				proof := b.proofOf(b.dpop, "GET", testAudience+"/", nil, map[string]any{"ath": accessHash(token)})
				status, _ := b.call("/", header("Authorization", scheme+" "+token), header("DPOP", proof))
				require.Equal(b.t, 200, status, scheme)
			}
		},
		"RS two DPoP headers": func(b *bank) {
			token := b.loggedIn().text("access_token")
			proof := func() option {
				return header("DPoP", b.proofOf(b.dpop, "GET", testAudience+"/", nil, map[string]any{"ath": accessHash(token)}))
			}
			status, _ := b.call("/", header("Authorization", "DPoP "+token), proof(), proof())
			require.Equal(b.t, 401, status)
		},
		"RS no JWT": func(b *bank) {
			status, _ := b.call("/", header("Authorization", "DPoP "+b.loggedIn().text("access_token")), header("DPoP", "x"))
			require.Equal(b.t, 401, status)
		},
		"RS without typ":                 atAPI(401, absent("typ"), nil),
		"RS without jwk":                 atAPI(401, absent("jwk"), nil),
		"RS without jti":                 atAPI(401, nil, absent("jti")),
		"RS without htm":                 atAPI(401, nil, absent("htm")),
		"RS without htu":                 atAPI(401, nil, absent("htu")),
		"RS without iat":                 atAPI(401, nil, absent("iat")),
		"RS without ath":                 atAPI(401, nil, absent("ath")),
		"RS wrong typ":                   atAPI(401, map[string]any{"typ": "jwt"}, nil),
		"RS wrong htm":                   atAPI(401, nil, map[string]any{"htm": "POST"}),
		"RS wrong htu":                   atAPI(401, nil, map[string]any{"htu": testAudience + "/other"}),
		"RS wrong ath":                   atAPI(401, nil, map[string]any{"ath": accessHash("x")}),
		"RS htu with query and fragment": atAPI(200, nil, map[string]any{"htu": testAudience + "/?a=b#c"}),
		"RS htu in capitals":             atAPI(200, nil, map[string]any{"htu": "HTTPS://API.example.com/"}),
		"RS unknown members":             atAPI(200, map[string]any{"x": "y"}, map[string]any{"x": "y"}),
		"RS alg none":                    atAPI(401, map[string]any{"alg": "none"}, nil),
		"RS bad signature":               atAPI(401, map[string]any{"alg": "RS256"}, nil),
		"RS a private key in jwk": func(b *bank) {
			token := b.loggedIn().text("access_token")
			raw, err := (&jose.JSONWebKey{Key: b.dpop.key}).MarshalJSON()
			require.NoError(b.t, err)
			var jwk map[string]any
			require.NoError(b.t, json.Unmarshal(raw, &jwk))
			status, _ := b.uses(token, map[string]any{"jwk": jwk}, nil)
			require.Equal(b.t, 401, status)
		},
		"RS a request with a query": func(b *bank) {
			token := b.loggedIn().text("access_token")
			status, _ := b.call("/?page=2", header("Authorization", "DPoP "+token), header("DPoP", b.proofOf(b.dpop, "GET", testAudience+"/", nil, map[string]any{"ath": accessHash(token)})))
			require.Equal(b.t, 200, status)
		},
		"RS a proof used twice": func(b *bank) {
			token := b.loggedIn().text("access_token")
			proof := header("DPoP", b.proofOf(b.dpop, "GET", testAudience+"/", nil, map[string]any{"ath": accessHash(token)}))
			status, _ := b.call("/", header("Authorization", "DPoP "+token), proof)
			require.Equal(b.t, 200, status)
			status, _ = b.call("/", header("Authorization", "DPoP "+token), proof)
			require.Equal(b.t, 401, status)
		},
		"RS a proof of another key": func(b *bank) {
			token := b.loggedIn().text("access_token")
			status, _ := b.call("/", header("Authorization", "DPoP "+token), header("DPoP", b.proofOf(newAlgSigner(b.t, "ES256"), "GET", testAudience+"/", nil, map[string]any{"ath": accessHash(token)})))
			require.Equal(b.t, 401, status)
		},
		"RS a bound token without proof, and as bearer": func(b *bank) {
			token := b.loggedIn().text("access_token")
			for _, scheme := range []string{"DPoP ", "Bearer "} {
				status, _ := b.call("/", header("Authorization", scheme+token))
				require.Equal(b.t, 401, status)
			}
		},
		"5.4.1 RS a proof by RS256 with the RSA key that the token is bound to": func(b *bank) {
			b.dpop = newAlgSigner(b.t, "PS256")
			token := b.loggedIn().text("access_token")
			status, _ := b.uses(token, nil, nil)
			require.Equal(b.t, 200, status)
			b.dpop = &algSigner{"RS256", b.dpop.key}
			status, _ = b.uses(token, nil, nil)
			require.Equal(b.t, 401, status)
		},
		"5.3.4-2 no token in the query or the body": func(b *bank) {
			token := b.loggedIn().text("access_token")
			proof := b.proofOf(b.dpop, "GET", testAudience+"/", nil, map[string]any{"ath": accessHash(token)})
			status, _ := b.call("/?access_token="+token, header("DPoP", proof))
			require.Equal(b.t, 401, status)
			r := httptest.NewRequest("POST", testAudience+"/", strings.NewReader("access_token="+token))
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			w := httptest.NewRecorder()
			b.api.ServeHTTP(w, r)
			require.Equal(b.t, 401, w.Code)
		},
		"5.3.4-3 validity, integrity, expiration, revocation": func(b *bank) {
			token := b.loggedIn().text("access_token")
			status, _ := b.uses(token[:len(token)-8]+"AAAAAAAA", nil, nil)
			require.Equal(b.t, 401, status, "integrity")
			require.NoError(b.t, b.svc.Revoke(b.t.Context(), apitoken.BySubject("alice"), "test"))
			status, _ = b.uses(token, nil, nil)
			require.Equal(b.t, 401, status, "revocation")
			b.at.Advance(time.Second)
			token = b.loggedIn().text("access_token")
			b.at.Advance(time.Hour)
			status, _ = b.uses(token, nil, nil)
			require.Equal(b.t, 401, status, "expiration")
		},
		"5.3.4-4 a scope that is missing": func(b *bank) {
			token := b.redeem(b.fresh("one", "scope", "orders:write")).ok().text("access_token")
			status, h := b.uses(token, nil, nil)
			require.Equal(b.t, 403, status)
			require.Contains(b.t, h.Get("WWW-Authenticate"), `error="insufficient_scope"`)
			require.Contains(b.t, h.Get("WWW-Authenticate"), `algs="PS256 ES256 EdDSA"`, "the challenge names what is taken")
		},
		"9700-4.15 a client ID is no subject": func(b *bank) {
			_, err := b.svc.Issue(b.t.Context(), apitoken.Request{Subject: "one", Client: "one", Binding: apitoken.BindDPoP(printOfKey(b.t, b.dpop))})
			require.ErrorIs(b.t, err, apitoken.ErrInvalidRequest)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			holds(newBank(t))
		})
	}
}

func printOfKey(t testing.TB, k *algSigner) string {
	t.Helper()
	sum, err := (&jose.JSONWebKey{Key: k.key.Public()}).Thumbprint(crypto.SHA256)
	require.NoError(t, err)
	return base64.RawURLEncoding.EncodeToString(sum)
}

// TestWhatContradictsFAPIFails: by its field, at both constructors.
func TestWhatContradictsFAPIFails(t *testing.T) {
	t.Parallel()
	for field, change := range map[string]func(*apitoken.Config, *oauthhttp.Options){
		"Algorithm": func(c *apitoken.Config, _ *oauthhttp.Options) { c.Algorithm = "RS256" },
		"AudienceAlgorithms": func(c *apitoken.Config, _ *oauthhttp.Options) {
			c.AudienceAlgorithms = map[string]string{otherAPI: "RS256"}
		},
		"Validation.Skew":            func(c *apitoken.Config, _ *oauthhttp.Options) { c.Validation.Skew = 5 * time.Second },
		"Refresh.RotateConfidential": func(c *apitoken.Config, _ *oauthhttp.Options) { c.Refresh.RotateConfidential = true },
		"InsecureEndpointAudiences":  func(_ *apitoken.Config, o *oauthhttp.Options) { o.InsecureEndpointAudiences = true },
		"CodeLifetime":               func(_ *apitoken.Config, o *oauthhttp.Options) { o.CodeLifetime = 61 * time.Second },
		"PushedLifetime":             func(_ *apitoken.Config, o *oauthhttp.Options) { o.PushedLifetime = 10 * time.Minute },
		"Registration":               func(_ *apitoken.Config, o *oauthhttp.Options) { o.Registration = &oauthhttp.Registration{Open: 1} },
		"Assertions": func(_ *apitoken.Config, o *oauthhttp.Options) {
			o.Assertions = []oauthhttp.AssertionIssuer{{Issuer: "https://ci.example.com", Keys: newSigner(t), Client: "ci",
				Subject: func(context.Context, oauthhttp.Assertion) (oauthhttp.Identity, error) {
					return oauthhttp.Identity{}, nil
				}}}
		},
		"": func(*apitoken.Config, *oauthhttp.Options) {},
	} {
		t.Run(field, func(t *testing.T) {
			t.Parallel()
			c := apitoken.Config{Issuer: testIssuer, Audience: testAudience, Audiences: []string{otherAPI}, Store: memstore.New(), InsecureKeysInStore: true, FAPI: true}
			o := &oauthhttp.Options{Consent: oauthhttp.ConsentFunc(func(http.ResponseWriter, *http.Request, *oauthhttp.Authorization) {})}
			change(&c, o)
			svc, err := apitoken.New(c)
			if err == nil {
				t.Cleanup(func() { _ = svc.Close() })
				_, err = oauthhttp.New(svc, o)
			}
			var wrong *apitoken.ConfigError
			if field == "" {
				require.NoError(t, err)
				return
			}
			require.True(t, errors.As(err, &wrong), "%v", err)
			require.Equal(t, field, wrong.Field)
		})
	}
}

// TestClientsOfAFAPIServer: what registers itself or describes itself is held to the profile too, and so are keys.
func TestClientsOfAFAPIServer(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(c *apitoken.Config, o *oauthhttp.Options) {
		c.FAPI = true
		o.DevicePage = ""
		o.Registration = &oauthhttp.Registration{Scopes: apitoken.Scopes{"orders:read"}}
	})
	_, key, err := s.svc.APIKeys.Create(t.Context(), apitoken.APIKeyRequest{Subject: "operator", Scopes: apitoken.Scopes{oauthhttp.RegisterScope}})
	require.NoError(t, err)
	k := newSigner(t)
	register := func(m map[string]any) *answer {
		m["redirect_uris"] = []string{callback}
		return s.do(jsonRequest(t, "POST", "/register", m), header("Authorization", "Bearer "+key.Reveal()))
	}
	register(map[string]any{"token_endpoint_auth_method": "private_key_jwt", "jwks": json.RawMessage(k.keys())}).ok()
	for _, method := range []string{"", "none", "client_secret_basic", "client_secret_post"} {
		register(map[string]any{"token_endpoint_auth_method": method}).refused(400, "invalid_client_metadata", method)
	}
	rs := newAlgSigner(t, "RS256")
	set, err := json.Marshal(map[string]any{"keys": []any{rs.jwk(t)}})
	require.NoError(t, err)
	register(map[string]any{"token_endpoint_auth_method": "private_key_jwt", "jwks": json.RawMessage(set)}).refused(400, "invalid_client_metadata", "no key of the profile's algorithms")
	_, err = s.svc.SigningKeys.Import(t.Context(), rs.key, "RS256")
	require.ErrorIs(t, err, apitoken.ErrInvalidRequest)
	require.True(t, slices.Contains(s.svc.ProofAlgorithms(), "PS256"))
}
