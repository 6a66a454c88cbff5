package oauthhttp_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	gojwt "github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/oauthhttp"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/memstore"
)

const (
	testIssuer   = "https://auth.example.com"
	testAudience = "https://api.example.com"
	otherAPI     = "https://reports.example.com"
	callback     = "https://app.example.com/cb"
)

// clock is a clock that stands still until a test moves it: how busy the machine is makes no difference.
type clock struct {
	from  time.Time
	ahead atomic.Int64
}

func (c *clock) Now() time.Time          { return c.from.Add(time.Duration(c.ahead.Load())) }
func (c *clock) Advance(d time.Duration) { c.ahead.Add(int64(d)) }

// site is an issuer with its endpoints.
type site struct {
	t       testing.TB
	svc     *apitoken.Service
	h       *oauthhttp.Handler
	st      *failing
	at      *clock
	spec    *spec
	secrets map[string]string // of confidential clients
}

// failing is a store whose engine fails when a test says so.
type failing struct {
	store.Store
	writes, reads atomic.Bool
	unless        atomic.Int64 // so many writes that still go through
	asked         atomic.Int64 // reads of a client or a note
}

func (f *failing) Apply(ctx context.Context, c *store.Change) (store.Commit, error) {
	if f.writes.Load() && f.unless.Add(-1) < 0 {
		return store.Commit{}, fmt.Errorf("engine: connection lost")
	}
	return f.Store.Apply(ctx, c)
}

func (f *failing) Get(ctx context.Context, k store.Kind, id string) (store.Record, error) {
	if k == store.KindClient || k == "note" {
		f.asked.Add(1)
	}
	if f.reads.Load() {
		return store.Record{}, fmt.Errorf("engine: connection lost")
	}
	return f.Store.Get(ctx, k, id)
}

func newSite(t testing.TB, change func(*apitoken.Config, *oauthhttp.Options)) *site {
	t.Helper()
	s := &site{t: t, at: &clock{from: time.Now()}, secrets: map[string]string{}}
	s.st = &failing{Store: memstore.NewWithClock(s.at.Now)}
	s.start(change)
	return s
}

// second is another process on the same store.
func (s *site) second(change func(*apitoken.Config, *oauthhttp.Options)) *site {
	s.t.Helper()
	other := &site{t: s.t, at: s.at, st: s.st, secrets: s.secrets}
	other.start(change)
	return other
}

func (s *site) start(change func(*apitoken.Config, *oauthhttp.Options)) {
	s.t.Helper()
	c := apitoken.Config{Issuer: testIssuer, Audience: testAudience, Audiences: []string{otherAPI}, Store: s.st, InsecureKeysInStore: true, Now: s.at.Now}
	o := &oauthhttp.Options{Now: s.at.Now, DevicePage: testIssuer + "/device"}
	o.Consent = oauthhttp.ConsentFunc(func(w http.ResponseWriter, r *http.Request, a *oauthhttp.Authorization) {
		s.h.Approve(w, r, a, oauthhttp.Approval{Subject: "alice", Scopes: oauthhttp.All(), Details: a.Details})
	})
	if change != nil {
		change(&c, o)
	}
	var err error
	s.svc, err = apitoken.New(c)
	require.NoError(s.t, err)
	s.t.Cleanup(func() { _ = s.svc.Close() })
	s.h, err = oauthhttp.New(s.svc, o)
	require.NoError(s.t, err)
	s.spec = readSpec(s.t, s.h)
}

var allGrants = []string{"client_credentials", "refresh_token", "authorization_code", "urn:ietf:params:oauth:grant-type:token-exchange", "urn:ietf:params:oauth:grant-type:jwt-bearer", "urn:ietf:params:oauth:grant-type:device_code"}

// client makes a confidential client with all grant types.
func (s *site) client(id string, change func(*apitoken.Client)) {
	s.t.Helper()
	c := apitoken.Client{ID: id, GrantTypes: allGrants, Scopes: apitoken.Scopes{"orders:read", "orders:write"}, RedirectURIs: []string{callback}, MayImpersonate: true}
	if change != nil {
		change(&c)
	}
	_, secret, err := s.svc.Clients.Create(context.Background(), c)
	require.NoError(s.t, err)
	if !secret.IsZero() {
		s.secrets[id] = secret.Reveal()
	}
}

// public makes a public client.
func (s *site) public(id string, change func(*apitoken.Client)) {
	s.t.Helper()
	s.client(id, func(c *apitoken.Client) {
		c.Public, c.MayImpersonate = true, false
		c.GrantTypes = []string{"refresh_token", "authorization_code", "urn:ietf:params:oauth:grant-type:device_code", "urn:ietf:params:oauth:grant-type:jwt-bearer"}
		if change != nil {
			change(c)
		}
	})
}

// answer is what came back.
type answer struct {
	*http.Response
	t    testing.TB
	raw  []byte
	body map[string]any
}

func (a *answer) text(name string) string {
	v, _ := a.body[name].(string)
	return v
}

// refused checks an error answer: status, code, and the headers of RFC 6749 §5.2.
func (a *answer) refused(status int, code string, why ...any) *answer {
	a.t.Helper()
	require.Equal(a.t, status, a.StatusCode, "%v: %s", why, a.raw)
	require.Equal(a.t, code, a.text("error"), why...)
	require.Equal(a.t, "no-store", a.Header.Get("Cache-Control"), why...)
	require.Equal(a.t, "application/json", a.Header.Get("Content-Type"), why...)
	require.NotEmpty(a.t, a.text("error_description"), why...)
	if status == http.StatusUnauthorized {
		require.NotEmpty(a.t, a.Header.Get("WWW-Authenticate"), why...)
	}
	return a
}

func (a *answer) ok(why ...any) *answer {
	a.t.Helper()
	require.Less(a.t, a.StatusCode, 300, "%v: %s", why, a.raw)
	return a
}

type option func(*http.Request)

func basicAuth(id, secret string) option {
	return func(r *http.Request) { r.SetBasicAuth(url.QueryEscape(id), url.QueryEscape(secret)) }
}

func header(name, value string) option {
	return func(r *http.Request) { r.Header.Add(name, value) }
}

func certificate(cert *x509.Certificate, verified bool) option {
	return func(r *http.Request) {
		r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}}
		if verified {
			r.TLS.VerifiedChains = [][]*x509.Certificate{{cert}}
		}
	}
}

// as authenticates by HTTP Basic.
func (s *site) as(id string) option { return basicAuth(id, s.secrets[id]) }

func (s *site) do(r *http.Request, options ...option) *answer {
	s.t.Helper()
	for _, o := range options {
		o(r)
	}
	w := httptest.NewRecorder()
	s.h.ServeHTTP(w, r)
	a := &answer{Response: w.Result(), t: s.t, raw: w.Body.Bytes()}
	if strings.HasSuffix(a.Header.Get("Content-Type"), "json") {
		require.NoError(s.t, json.Unmarshal(a.raw, &a.body))
	}
	s.spec.check(s.t, r, a)
	return a
}

func formRequest(path, body string) *http.Request {
	r := httptest.NewRequest(http.MethodPost, testIssuer+path, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return r
}

func (s *site) post(path string, v url.Values, options ...option) *answer {
	s.t.Helper()
	return s.do(formRequest(path, v.Encode()), options...)
}

func (s *site) get(path string, options ...option) *answer {
	s.t.Helper()
	return s.do(httptest.NewRequest(http.MethodGet, testIssuer+path, nil), options...)
}

func (s *site) token(v url.Values, options ...option) *answer {
	s.t.Helper()
	return s.post("/token", v, options...)
}

// params makes url.Values of names and values.
func params(pairs ...string) url.Values {
	v := url.Values{}
	for i := 0; i < len(pairs); i += 2 {
		v.Add(pairs[i], pairs[i+1])
	}
	return v
}

func merge(a url.Values, pairs ...string) url.Values {
	out := url.Values{}
	for k, v := range a {
		out[k] = append([]string(nil), v...)
	}
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] == "" {
			out.Del(pairs[i])
		} else {
			out.Set(pairs[i], pairs[i+1])
		}
	}
	return out
}

const verifier = "0123456789-0123456789-0123456789-0123456789-abc"

func challengeOf(verifier string) string {
	sum := sha256.Sum256([]byte(verifier))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// authorization is a good authorization request of a client.
func authorization(client string, pairs ...string) url.Values {
	return merge(params("response_type", "code", "client_id", client, "redirect_uri", callback, "scope", "orders:read", "state", "xyz",
		"code_challenge", challengeOf(verifier), "code_challenge_method", "S256"), pairs...)
}

// redirected is the query of a redirect back to the client.
func (a *answer) redirected(to string) url.Values {
	a.t.Helper()
	require.Equal(a.t, http.StatusSeeOther, a.StatusCode, string(a.raw))
	where, query, _ := strings.Cut(a.Header.Get("Location"), "?")
	require.Equal(a.t, to, where)
	q, err := url.ParseQuery(query)
	require.NoError(a.t, err)
	require.Equal(a.t, testIssuer, q.Get("iss"), "RFC 9207 §2")
	require.Equal(a.t, "no-store", a.Header.Get("Cache-Control"))
	return q
}

// code runs the authorization endpoint for a code.
func (s *site) code(client string, pairs ...string) string {
	s.t.Helper()
	q := s.get("/authorize?" + authorization(client, pairs...).Encode()).redirected(callback)
	require.NotEmpty(s.t, q.Get("code"), q.Encode())
	return q.Get("code")
}

func redemption(code string, pairs ...string) url.Values {
	return merge(params("grant_type", "authorization_code", "code", code, "redirect_uri", callback, "code_verifier", verifier), pairs...)
}

// claims are what a JWT says.
func claims(t testing.TB, token string) map[string]any {
	t.Helper()
	parts := strings.Split(token, ".")
	require.Len(t, parts, 3)
	raw, err := base64.RawURLEncoding.DecodeString(parts[1])
	require.NoError(t, err)
	var m map[string]any
	require.NoError(t, json.Unmarshal(raw, &m))
	return m
}

// signer is a key of a client or an issuer, in the hands of libraries that are not ours.
type signer struct {
	t     testing.TB
	key   *ecdsa.PrivateKey
	jwk   map[string]any
	print string
}

func newSigner(t testing.TB) *signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	s := &signer{t: t, key: key}
	j := jose.JSONWebKey{Key: key.Public()}
	sum, err := j.Thumbprint(crypto.SHA256)
	require.NoError(t, err)
	s.print = base64.RawURLEncoding.EncodeToString(sum)
	raw, err := j.MarshalJSON()
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(raw, &s.jwk))
	return s
}

func (s *signer) sign(header, claims map[string]any) string {
	s.t.Helper()
	tok := gojwt.NewWithClaims(gojwt.SigningMethodES256, gojwt.MapClaims(claims))
	maps.Copy(tok.Header, header)
	text, err := tok.SignedString(s.key)
	require.NoError(s.t, err)
	return text
}

// keys is the signer's JWK set.
func (s *signer) keys(more ...map[string]any) []byte {
	s.t.Helper()
	k := maps.Clone(s.jwk)
	for _, m := range more {
		maps.Copy(k, m)
	}
	doc, err := json.Marshal(map[string]any{"keys": []any{k}})
	require.NoError(s.t, err)
	return doc
}

// JWKS makes the signer an feed.KeySource.
func (s *signer) JWKS(context.Context, string) ([]byte, error) { return s.keys(), nil }

// proof is a DPoP proof for a request of ours.
func (s *signer) proof(method, u string, now time.Time, more map[string]any) string {
	s.t.Helper()
	c := map[string]any{"jti": rand.Text(), "htm": method, "htu": u, "iat": now.Unix()}
	maps.Copy(c, more)
	return s.sign(map[string]any{"typ": "dpop+jwt", "jwk": s.jwk}, c)
}

// dpop proves the signer's key at the token endpoint.
func (s *site) dpop(k *signer, more map[string]any) option {
	return header("DPoP", k.proof("POST", testIssuer+"/token", s.at.Now(), more))
}

// assertion authenticates by private_key_jwt.
func (s *site) assertion(k *signer, client string, change map[string]any) url.Values {
	c := map[string]any{"iss": client, "sub": client, "aud": testIssuer, "jti": rand.Text(), "iat": s.at.Now().Unix(), "exp": s.at.Now().Add(time.Minute).Unix()}
	maps.Copy(c, change)
	return params("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer", "client_assertion", k.sign(nil, c))
}

func newCertificate(t testing.TB, names ...string) (*x509.Certificate, tls.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "client"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: names, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return cert, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func printOf(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// jsonRequest is a request with a JSON body.
func jsonRequest(t testing.TB, method, path string, body any) *http.Request {
	t.Helper()
	raw, err := json.Marshal(body)
	require.NoError(t, err)
	r := httptest.NewRequest(method, testIssuer+path, bytes.NewReader(raw))
	r.Header.Set("Content-Type", "application/json")
	return r
}
