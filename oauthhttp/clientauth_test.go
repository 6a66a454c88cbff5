package oauthhttp_test

import (
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/oauthhttp"
)

func raw(v string) option {
	return header("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(v)))
}

func TestClientsAuthenticateInOneWay(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.client("app", nil)
	const odd = "a:b+c%"
	s.client(odd, nil)
	s.public("spa", nil)
	secret := s.secrets["app"]

	s.token(own, s.as("app")).ok("client_secret_basic")
	s.token(merge(own, "client_id", "app", "client_secret", secret)).ok("client_secret_post")
	s.token(merge(own, "client_id", "app"), s.as("app")).ok("the ID may be repeated in the body")
	s.token(own, header("Authorization", "bAsIc "+base64.StdEncoding.EncodeToString([]byte("app:"+secret)))).ok("schemes have no case (RFC 9110 §11.1)")
	s.token(own, s.as(odd)).ok("both parts are form-encoded (RFC 6749 §2.3.1)")
	s.token(own, raw("a%3Ab%2Bc%25:"+s.secrets[odd])).ok()
	s.token(own, raw(odd+":"+s.secrets[odd])).refused(401, "invalid_client", "not encoded: the colon ends the ID")

	for name, a := range map[string]*answer{
		"header and body":            s.token(merge(own, "client_id", "app", "client_secret", secret), s.as("app")),
		"two headers":                s.token(own, s.as("app"), header("Authorization", "Basic eA==")),
		"two clients":                s.token(merge(own, "client_id", "spa"), s.as("app")),
		"secret and assertion":       s.token(merge(own, "client_id", "app", "client_secret", secret, "client_assertion", "x", "client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer")),
		"header and assertion":       s.token(merge(own, "client_assertion", "x"), s.as("app")),
		"an assertion without type":  s.token(merge(own, "client_assertion", "x")),
		"a type without assertion":   s.token(merge(own, "client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer")),
		"an unknown type":            s.token(merge(own, "client_assertion", "x", "client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:saml2-bearer")),
		"a secret twice in the body": s.do(formRequest("/token", own.Encode()+"&client_id=app&client_secret=a&client_secret=b")),
	} {
		a.refused(400, "invalid_request", name)
	}
	for name, a := range map[string]*answer{
		"nobody":                      s.token(own),
		"a wrong secret":              s.token(own, basicAuth("app", s.secrets[odd])),
		"no secret":                   s.token(own, basicAuth("app", "")),
		"an unknown client":           s.token(own, basicAuth("nobody", secret)),
		"an ID alone":                 s.token(merge(own, "client_id", "app")),
		"a public client's secret":    s.token(merge(own, "client_id", "spa", "client_secret", "x")),
		"a bearer token":              s.token(own, header("Authorization", "Bearer x")),
		"no base64":                   s.token(own, header("Authorization", "Basic !")),
		"no colon":                    s.token(own, raw("app")),
		"no ID":                       s.token(own, raw(":"+secret)),
		"a broken escape":             s.token(own, raw("app:%zz")),
		"an empty header":             s.token(own, header("Authorization", "")),
		"a wrong secret and bad code": s.token(redemption("x"), basicAuth("app", s.secrets[odd])),
	} {
		require.Contains(t, a.refused(401, "invalid_client", name).Header.Get("WWW-Authenticate"), "Basic ", name)
	}
	_, err := s.svc.Clients.Update(t.Context(), "app", func(c *apitoken.Client) error { c.Disabled = true; return nil })
	require.NoError(t, err)
	s.token(own, s.as("app")).refused(400, "unauthorized_client", "a disabled client")
}

func TestARegisteredMethodIsTheOnlyOne(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	k := newSigner(t)
	s.client("basic", func(c *apitoken.Client) { c.AuthMethod = "client_secret_basic" })
	s.client("post", func(c *apitoken.Client) { c.AuthMethod = "client_secret_post" })
	s.client("key", func(c *apitoken.Client) { c.AuthMethod, c.Keys = "private_key_jwt", k.keys() })
	s.token(own, s.as("basic")).ok()
	s.token(merge(own, "client_id", "basic", "client_secret", s.secrets["basic"])).refused(401, "invalid_client")
	s.token(merge(own, "client_id", "post", "client_secret", s.secrets["post"])).ok()
	s.token(own, s.as("post")).refused(401, "invalid_client")
	s.token(merge(s.assertion(k, "key", nil), "grant_type", "client_credentials")).ok()
	s.token(merge(s.assertion(k, "basic", nil), "grant_type", "client_credentials")).refused(401, "invalid_client")
	s.token(own, basicAuth("key", "x")).refused(401, "invalid_client")
	s.token(merge(own, "client_id", "key")).refused(401, "invalid_client")
}

func TestPrivateKeyJWT(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	k, other := newSigner(t), newSigner(t)
	s.client("app", func(c *apitoken.Client) { c.AuthMethod, c.Keys = "private_key_jwt", k.keys() })
	with := func(key *signer, change map[string]any, pairs ...string) *answer {
		return s.token(merge(s.assertion(key, "app", change), append([]string{"grant_type", "client_credentials"}, pairs...)...))
	}
	with(k, nil).ok()
	with(k, nil, "client_id", "app").ok("the ID may be repeated")
	with(k, map[string]any{"aud": []string{testIssuer}}).ok("a list of the issuer alone")
	for name, a := range map[string]*answer{
		"the endpoint as aud":    with(k, map[string]any{"aud": testIssuer + "/token"}),
		"the endpoint besides":   with(k, map[string]any{"aud": []string{testIssuer, testIssuer + "/token"}}),
		"the issuer twice":       with(k, map[string]any{"aud": []string{testIssuer, testIssuer}}),
		"no aud":                 with(k, map[string]any{"aud": []string{}}),
		"another endpoint's URL": with(k, map[string]any{"aud": testIssuer + "/introspect"}),
		"another audience":       with(k, map[string]any{"aud": "https://other.example.com"}),
		"another key":            with(other, nil),
		"another client_id":      with(k, nil, "client_id", "other"),
		"expired":                with(k, map[string]any{"exp": s.at.Now().Add(-time.Minute).Unix()}),
		"no jti":                 with(k, map[string]any{"jti": ""}),
		"no JWT":                 s.token(merge(own, "client_assertion", "x.y.z", "client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer")),
	} {
		a.refused(401, "invalid_client", name)
	}
	one := merge(s.assertion(k, "app", nil), "grant_type", "client_credentials")
	s.token(one).ok()
	s.token(one).refused(401, "invalid_client", "an assertion is good once")
	for n, path := range []string{"/par", "/introspect", "/revoke", "/device_authorization"} {
		wrong := fmt.Sprintf("wrong%d", n) // a client each: failures of one are counted
		s.client(wrong, func(c *apitoken.Client) { c.AuthMethod, c.Keys = "private_key_jwt", k.keys() })
		for _, aud := range []string{testIssuer + "/token", testIssuer + path} {
			s.post(path, merge(s.assertion(k, wrong, map[string]any{"aud": aud}), "token", "x")).refused(401, "invalid_client", path, aud)
		}
		v := s.assertion(k, "app", nil)
		a := s.post(path, merge(v, "token", "x"))
		require.NotEqual(t, 401, a.StatusCode, "%s: %s", path, a.raw)
		s.post(path, merge(v, "token", "x")).refused(401, "invalid_client", path)
	}
	// The token of a code, of a refresh token and of an exchange need the client's proof once in a request.
	pair := s.token(merge(redemption(s.code("app")), pairsOf(s.assertion(k, "app", nil))...)).ok()
	again := s.token(merge(s.assertion(k, "app", nil), "grant_type", "refresh_token", "refresh_token", pair.text("refresh_token"))).ok()
	s.token(merge(s.assertion(k, "app", nil), "grant_type", "urn:ietf:params:oauth:grant-type:token-exchange", "subject_token", again.text("access_token"), "subject_token_type", "urn:ietf:params:oauth:token-type:access_token")).ok()
}

// TestClientsThatNameAnEndpoint: what RFC 7523 §3 and RFC 9126 §2 allow is to be had by an option with a warning name.
func TestClientsThatNameAnEndpoint(t *testing.T) {
	t.Parallel()
	s := newSite(t, func(_ *apitoken.Config, o *oauthhttp.Options) { o.InsecureEndpointAudiences = true })
	k := newSigner(t)
	s.client("app", func(c *apitoken.Client) { c.AuthMethod, c.Keys = "private_key_jwt", k.keys() })
	for _, path := range []string{"/token", "/par", "/introspect", "/revoke", "/device_authorization"} {
		for name, aud := range map[string]any{
			"the token endpoint": testIssuer + "/token", "the endpoint": testIssuer + path, "both": []string{testIssuer + "/token", testIssuer + path}, "the issuer": testIssuer,
		} {
			a := s.post(path, merge(s.assertion(k, "app", map[string]any{"aud": aud}), "token", "x", "grant_type", "client_credentials"))
			require.NotEqual(t, 401, a.StatusCode, "%s at %s: %s", name, path, a.raw)
		}
		s.post(path, merge(s.assertion(k, "app", map[string]any{"aud": testIssuer + "/other"}), "token", "x", "grant_type", "client_credentials")).refused(401, "invalid_client", path)
	}
}

func pairsOf(v map[string][]string) (out []string) {
	for name, values := range v {
		out = append(out, name, values[0])
	}
	return out
}

func TestOneAssertionOfAClientWins(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	k := newSigner(t)
	s.client("app", func(c *apitoken.Client) { c.AuthMethod, c.Keys = "private_key_jwt", k.keys() })
	sites := []*site{s, s.second(nil)}
	body := merge(s.assertion(k, "app", nil), "grant_type", "client_credentials")
	won := race(func(i int) bool { return sites[i%2].token(body).StatusCode == 200 })
	require.Equal(t, 1, won, "64 uses of one assertion in two processes")
}

// race counts who of 64 wins.
func race(try func(i int) bool) int {
	var won atomic.Int32
	var wg sync.WaitGroup
	start := make(chan struct{})
	for i := range 64 {
		wg.Go(func() {
			<-start
			if try(i) {
				won.Add(1)
			}
		})
	}
	close(start)
	wg.Wait()
	return int(won.Load())
}

func TestClientsWithCertificates(t *testing.T) {
	t.Parallel()
	cert, _ := newCertificate(t, "worker.example.com")
	stranger, _ := newCertificate(t, "worker.example.com")
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	s := newSite(t, func(_ *apitoken.Config, o *oauthhttp.Options) { o.ClientCAs = pool })
	s.client("tls", func(c *apitoken.Client) { c.AuthMethod, c.TLSName = "tls_client_auth", "dns:worker.example.com" })
	s.client("self", func(c *apitoken.Client) {
		c.AuthMethod, c.Keys = "self_signed_tls_client_auth", newSigner(t).keys(map[string]any{"x5t#S256": printOf(cert)})
	})
	s.client("app", nil)
	for _, id := range []string{"tls", "self"} {
		v := merge(own, "client_id", id)
		s.token(v, certificate(cert, false)).ok(id, "verified by ClientCAs, or by its hash")
		s.token(v, certificate(stranger, false)).refused(401, "invalid_client", id, "another certificate of that name")
		s.token(v).refused(401, "invalid_client", id, "no certificate")
		s.token(merge(v, "client_secret", "x"), certificate(cert, true)).refused(401, "invalid_client", id, "a secret instead")
		s.token(own, certificate(cert, true)).refused(401, "invalid_client", id, "the client_id is required (RFC 8705 §2)")
	}
	s.token(merge(own, "client_id", "tls"), certificate(stranger, true)).ok("a chain that the listener verified")
	s.token(merge(own, "client_id", "self"), certificate(stranger, true)).refused(401, "invalid_client")
	s.token(merge(own, "client_id", "app"), certificate(cert, true)).refused(401, "invalid_client", "a client with a secret is not its certificate")
	s.token(own, s.as("app"), certificate(cert, true)).ok("a secret over TLS with a certificate")

	proxied := newSite(t, func(_ *apitoken.Config, o *oauthhttp.Options) {
		o.Certificate = func(r *http.Request) (*x509.Certificate, bool) {
			der, err := base64.StdEncoding.DecodeString(r.Header.Get("X-Client-Cert"))
			if err != nil || len(der) == 0 {
				return nil, false
			}
			c, err := x509.ParseCertificate(der)
			return c, err == nil
		}
	})
	proxied.client("tls", func(c *apitoken.Client) { c.AuthMethod, c.TLSName = "tls_client_auth", "dns:worker.example.com" })
	v := merge(own, "client_id", "tls")
	proxied.token(v, header("X-Client-Cert", base64.StdEncoding.EncodeToString(cert.Raw))).ok()
	proxied.token(v, certificate(cert, true)).refused(401, "invalid_client", "the configured source alone counts")
}

func TestTokensAreBoundToCertificates(t *testing.T) {
	t.Parallel()
	cert, _ := newCertificate(t, "worker.example.com")
	other, _ := newCertificate(t, "other.example.com")
	s := newSite(t, nil)
	s.client("bound", func(c *apitoken.Client) { c.BindCertificate = true })
	s.public("spa", func(c *apitoken.Client) { c.BindCertificate = true })
	a := s.token(own, s.as("bound"), certificate(cert, false)).ok()
	require.Equal(t, "Bearer", a.text("token_type"), "RFC 8705 §3")
	require.Equal(t, map[string]any{"x5t#S256": printOf(cert)}, claims(t, a.text("access_token"))["cnf"])
	s.token(own, s.as("bound")).refused(400, "invalid_request", "no certificate to bind to")
	s.token(own, s.as("bound"), certificate(cert, false), s.dpop(newSigner(t), nil)).refused(400, "invalid_request", "a token is bound to one thing")
	pair := s.token(redemption(s.code("spa"), "client_id", "spa"), certificate(cert, false)).ok()
	again := params("grant_type", "refresh_token", "client_id", "spa", "refresh_token", pair.text("refresh_token"))
	s.token(again, certificate(other, false)).refused(400, "invalid_grant", "a public client's refresh token is bound too")
	s.token(again, certificate(cert, false)).ok()
	x := s.post("/introspect", params("token", a.text("access_token")), s.as("bound")).ok()
	require.Equal(t, map[string]any{"x5t#S256": printOf(cert)}, x.body["cnf"])
}

func TestFailedAuthenticationIsThrottled(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	s.client("app", nil)
	s.client("other", nil)
	var last *answer
	for range 60 { // more than twice the limit: a minute may end meanwhile, and its count with it
		if last = s.token(own, basicAuth("app", s.secrets["other"])); last.StatusCode == 429 {
			break
		}
	}
	last.refused(429, "rate_limited")
	require.NotEmpty(t, last.Header.Get("Retry-After"))
	s.token(own, s.as("app")).ok("a stranger cannot lock a client out")
	require.False(t, strings.Contains(string(last.raw), "app"), "what came in is never said back")
}

// Clients with certificates may call another host (RFC 8705 §5); a request chooses between two configured URLs, and
// brings none of its own.
func TestTheHostForCertificates(t *testing.T) {
	t.Parallel()
	const alias = "https://mtls.example.com"
	s := newSite(t, func(_ *apitoken.Config, o *oauthhttp.Options) { o.MutualTLS, o.InsecureEndpointAudiences = alias, true })
	k := newSigner(t)
	s.client("app", nil)
	s.client("key", func(c *apitoken.Client) { c.AuthMethod, c.Keys = "private_key_jwt", k.keys() })
	at := func(host string) option { return func(r *http.Request) { r.Host = host } }
	proof := func(u string) option { return header("DPoP", k.proof("POST", u, s.at.Now(), nil)) }
	s.token(own, s.as("app"), at("mtls.example.com"), proof(alias+"/token")).ok()
	s.token(own, s.as("app"), at("mtls.example.com"), proof(testIssuer+"/token")).refused(400, "invalid_dpop_proof")
	s.token(own, s.as("app"), proof(alias+"/token")).refused(400, "invalid_dpop_proof")
	s.token(own, s.as("app"), at("evil.example.com"), proof("https://evil.example.com/token")).refused(400, "invalid_dpop_proof")
	v := merge(s.assertion(k, "key", map[string]any{"aud": alias + "/token"}), "grant_type", "client_credentials")
	s.token(v).refused(401, "invalid_client")
	s.token(v, at("mtls.example.com")).ok()
}
