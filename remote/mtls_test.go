package remote_test

import (
	"context"
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
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/oauthhttp"
	"github.com/apitoken-go/apitoken/remote"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/memstore"
)

// ca signs certificates of clients.
type ca struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

var serial atomic.Int64

// certify makes a certificate for name; nil: one that signs itself.
func (a *ca) certify(t *testing.T, name string, change func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(serial.Add(1)), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, KeyUsage: x509.KeyUsageDigitalSignature}
	if change != nil {
		change(tmpl)
	}
	parent, signer := tmpl, key
	if a != nil {
		parent, signer = a.cert, a.key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), signer)
	require.NoError(t, err)
	leaf, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func newCA(t *testing.T) *ca {
	t.Helper()
	c := (*ca)(nil).certify(t, "ca", func(x *x509.Certificate) {
		x.IsCA, x.BasicConstraintsValid, x.KeyUsage = true, true, x509.KeyUsageCertSign
	})
	return &ca{c.Leaf, c.PrivateKey.(*ecdsa.PrivateKey)}
}

// jwkOf is a client's key set with the certificates' hashes.
func jwkOf(t *testing.T, certs ...tls.Certificate) []byte {
	t.Helper()
	var keys []map[string]string
	for _, c := range certs {
		pub, err := c.Leaf.PublicKey.(*ecdsa.PublicKey).Bytes()
		require.NoError(t, err)
		sum := sha256.Sum256(c.Leaf.Raw)
		enc := base64.RawURLEncoding.EncodeToString
		keys = append(keys, map[string]string{"kty": "EC", "crv": "P-256", "x": enc(pub[1:33]), "y": enc(pub[33:]), "x5t#S256": enc(sum[:])})
	}
	doc, err := json.Marshal(map[string]any{"keys": keys})
	require.NoError(t, err)
	return doc
}

// tlsSite is an issuer whose server asks for certificates.
type tlsSite struct {
	svc *apitoken.Service
	srv *httptest.Server
	ca  *ca
	ctx context.Context
}

func newTLSSite(t *testing.T, handler func(*tlsSite) http.Handler) *tlsSite {
	t.Helper()
	s := &tlsSite{ca: newCA(t), ctx: context.Background()}
	var h atomic.Pointer[http.Handler]
	s.srv = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { (*h.Load()).ServeHTTP(w, r) }))
	s.srv.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	s.srv.EnableHTTP2 = true
	s.srv.StartTLS()
	t.Cleanup(s.srv.Close)
	var err error
	s.svc, err = apitoken.New(apitoken.Config{Issuer: s.srv.URL, Audience: "https://api.example.com", Store: memstore.New(), InsecureKeysInStore: true})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.svc.Close()) })
	x := handler(s)
	h.Store(&x)
	return s
}

func served(s *tlsSite) http.Handler {
	pool := x509.NewCertPool()
	pool.AddCert(s.ca.cert)
	return remote.Handler(s.svc, remote.ClientCAs(pool))
}

// client shows cert; nil: none.
func (s *tlsSite) client(t *testing.T, cert func() *tls.Certificate) *http.Client {
	t.Helper()
	tr := s.srv.Client().Transport.(*http.Transport).Clone()
	tr.TLSClientConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		if cert == nil {
			return &tls.Certificate{}, nil
		}
		return cert(), nil
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func fixed(c tls.Certificate) func() *tls.Certificate { return func() *tls.Certificate { return &c } }

func (s *tlsSite) create(t *testing.T, c apitoken.Client) apitoken.Secret {
	t.Helper()
	c.GrantTypes, c.Scopes = []string{"client_credentials"}, apitoken.Scopes{remote.FollowScope}
	_, secret, err := s.svc.Clients.Create(s.ctx, c)
	require.NoError(t, err)
	return secret
}

func (s *tlsSite) validator(t *testing.T, id string, h *http.Client) *remote.Validator {
	t.Helper()
	v, err := remote.NewValidator(remote.Config{Issuer: s.srv.URL, Audience: "https://api.example.com", Client: apitoken.ClientAuth{ID: id}, HTTP: h})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, v.Close()) })
	return v
}

// follows shows that v hears of revocations, and has API keys looked at.
func (s *tlsSite) follows(t *testing.T, v *remote.Validator) {
	t.Helper()
	ready(t, v)
	i, err := s.svc.Issue(s.ctx, apitoken.Request{Subject: "alice"})
	require.NoError(t, err)
	eventually(t, "a good token", func() bool {
		_, err := v.Validate(s.ctx, apitoken.Bearer(i.Access.Reveal()))
		return err == nil
	})
	require.NoError(t, s.svc.Revoke(s.ctx, apitoken.BySubject("alice"), "left"))
	eventually(t, "the revocation reaches the other process", refused(v, i.Access.Reveal(), apitoken.ErrRevoked))
	_, key, err := s.svc.APIKeys.Create(s.ctx, apitoken.APIKeyRequest{Subject: "bob", Name: "ci"})
	require.NoError(t, err)
	eventually(t, "an API key is introspected", func() bool {
		tok, err := v.Validate(s.ctx, apitoken.Bearer(key.Reveal()))
		return err == nil && tok.Subject() == "bob"
	})
}

func TestValidatorsWithCertificates(t *testing.T) {
	t.Parallel()
	for name, handler := range map[string]func(*tlsSite) http.Handler{
		"remote": served,
		"oauthhttp": func(s *tlsSite) http.Handler {
			pool := x509.NewCertPool()
			pool.AddCert(s.ca.cert)
			h, err := oauthhttp.New(s.svc, &oauthhttp.Options{ClientCAs: pool})
			require.NoError(t, err)
			return h
		},
		"another host for certificates": func(s *tlsSite) http.Handler {
			// The same server under another name: what does not come at that name shows no certificate.
			u, err := url.Parse(s.srv.URL)
			require.NoError(t, err)
			host := net.JoinHostPort("localhost", u.Port())
			pool := x509.NewCertPool()
			pool.AddCert(s.ca.cert)
			h, err := oauthhttp.New(s.svc, &oauthhttp.Options{ClientCAs: pool, MutualTLS: "https://" + host})
			require.NoError(t, err)
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Host != host {
					r.TLS = nil
				}
				h.ServeHTTP(w, r)
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newTLSSite(t, handler)
			own, signed := (*ca)(nil).certify(t, "self", nil), s.ca.certify(t, "orders.example.com", nil)
			s.create(t, apitoken.Client{ID: "self", AuthMethod: "self_signed_tls_client_auth", Keys: jwkOf(t, own)})
			s.create(t, apitoken.Client{ID: "signed", AuthMethod: "tls_client_auth", TLSName: "dns:orders.example.com"})
			for id, cert := range map[string]tls.Certificate{"self": own, "signed": signed} {
				h := s.client(t, fixed(cert))
				tr := h.Transport.(*http.Transport)
				tr.TLSClientConfig.InsecureSkipVerify = true // the server's certificate does not name localhost
				s.follows(t, s.validator(t, id, h))
			}
		})
	}
}

func TestWhoseCertificateItIs(t *testing.T) {
	t.Parallel()
	s := newTLSSite(t, served)
	own, other := (*ca)(nil).certify(t, "self", nil), (*ca)(nil).certify(t, "other", nil)
	signed := s.ca.certify(t, "orders.example.com", nil)
	foreign := newCA(t).certify(t, "orders.example.com", nil)
	server := s.ca.certify(t, "orders.example.com", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })
	old := s.ca.certify(t, "orders.example.com", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	oldSelf := (*ca)(nil).certify(t, "self", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	s.create(t, apitoken.Client{ID: "self", AuthMethod: "self_signed_tls_client_auth", Keys: jwkOf(t, own, oldSelf)})
	s.create(t, apitoken.Client{ID: "other", AuthMethod: "self_signed_tls_client_auth", Keys: jwkOf(t, other)})
	s.create(t, apitoken.Client{ID: "signed", AuthMethod: "tls_client_auth", TLSName: "dns:orders.example.com"})
	secret := s.create(t, apitoken.Client{ID: "secret"})
	_, _, err := s.svc.Clients.Create(s.ctx, apitoken.Client{ID: "spa", Public: true})
	require.NoError(t, err)
	_, _, err = s.svc.Clients.Create(s.ctx, apitoken.Client{ID: "unscoped", AuthMethod: "self_signed_tls_client_auth", Keys: jwkOf(t, own)})
	require.NoError(t, err)
	bound, err := s.svc.Issue(s.ctx, apitoken.Request{Auth: apitoken.ClientAuth{ID: "secret", Secret: secret}, Scopes: apitoken.Scopes{remote.FollowScope},
		Binding: apitoken.BindCertificate(sha256.Sum256(own.Leaf.Raw))})
	require.NoError(t, err)

	basic := func(id, secret string) string {
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(url.QueryEscape(id)+":"+url.QueryEscape(secret)))
	}
	for _, x := range []struct {
		name   string
		cert   *tls.Certificate
		params string
		auth   string
		want   int
	}{
		{"self-signed", &own, "client_id=self", "", 200},
		{"signed", &signed, "client_id=signed", "", 200},
		{"no certificate", nil, "client_id=self", "", 401},
		{"no client_id", &own, "", "", 401},
		{"an empty client_id", &own, "client_id=", "", 401},
		{"another client's certificate", &other, "client_id=self", "", 401},
		{"one's own, and another's name", &own, "client_id=other", "", 401},
		{"of no client", &foreign, "client_id=self", "", 401},
		{"of another CA", &foreign, "client_id=signed", "", 401},
		{"self-signed for a signed one", &own, "client_id=signed", "", 401},
		{"signed for a self-signed one", &signed, "client_id=self", "", 401},
		{"not for clients", &server, "client_id=signed", "", 401},
		{"expired", &old, "client_id=signed", "", 401},
		{"expired, and registered", &oldSelf, "client_id=self", "", 401},
		{"a client with a secret", &own, "client_id=secret", "", 401},
		{"a public client", &own, "client_id=spa", "", 401},
		{"nobody", &own, "client_id=nobody", "", 401},
		{"without the scope", &own, "client_id=unscoped", "", 403},
		{"two IDs", &own, "client_id=self&client_id=other", "", 400},
		{"a secret in the parameters", &own, "client_id=secret&client_secret=" + secret.Reveal(), "", 400},
		{"an assertion beside it", &own, "client_id=self&client_assertion=x", "", 400},
		{"a secret over TLS with a certificate", &own, "", basic("secret", secret.Reveal()), 200},
		{"a secret, whatever the parameters say", &own, "client_id=self", basic("secret", "wrong wrong wrong wrong"), 401},
		{"a secret for a client with a certificate", &own, "client_id=self", basic("self", "wrong wrong wrong wrong"), 401},
		{"no secret", &own, "client_id=self", basic("self", ""), 401},
		{"an empty header", &own, "client_id=self", " ", 401},
		{"a token that is bound to it", &own, "", "Bearer " + bound.Access.Reveal(), 200},
		{"a token that is bound to another", &other, "", "Bearer " + bound.Access.Reveal(), 401},
		{"a bound token alone", nil, "", "Bearer " + bound.Access.Reveal(), 401},
	} {
		var show func() *tls.Certificate
		if x.cert != nil {
			show = fixed(*x.cert)
		}
		h := s.client(t, show)
		for _, path := range []string{"/apitoken/revocations", "/apitoken/introspect"} {
			r, err := http.NewRequest(http.MethodGet, s.srv.URL+path+"?after=0.0&nonce=n&"+x.params, nil)
			if strings.HasSuffix(path, "introspect") {
				r, err = http.NewRequest(http.MethodPost, s.srv.URL+path, strings.NewReader("token=x&"+x.params))
				require.NoError(t, err)
				r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			}
			require.NoError(t, err)
			if x.auth != "" {
				r.Header["Authorization"] = []string{x.auth}
			}
			res, err := h.Do(r)
			require.NoError(t, err)
			require.NoError(t, res.Body.Close())
			require.Equal(t, x.want, res.StatusCode, "%s at %s", x.name, path)
		}
		h.CloseIdleConnections()
	}
	// In a query the client of an introspection does not name itself: it goes with the form.
	h := s.client(t, fixed(own))
	res, err := h.Post(s.srv.URL+"/apitoken/introspect?client_id=self", "application/x-www-form-urlencoded", strings.NewReader("token=x"))
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())
	require.Equal(t, 401, res.StatusCode)
}

// waiting tells when a long poll begins to wait: the caller was taken by then.
type waiting struct {
	http.ResponseWriter
	begins chan struct{}
}

func (w *waiting) SetWriteDeadline(at time.Time) error {
	w.begins <- struct{}{}
	return http.NewResponseController(w.ResponseWriter).SetWriteDeadline(at)
}

// What the client may changes while its question waits: then it gets nothing.
func TestALongPollEndsWithTheCertificate(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*testing.T, *apitoken.Client){
		"disabled":            func(_ *testing.T, c *apitoken.Client) { c.Disabled = true },
		"another certificate": func(t *testing.T, c *apitoken.Client) { c.Keys = jwkOf(t, (*ca)(nil).certify(t, "next", nil)) },
		"another method":      func(_ *testing.T, c *apitoken.Client) { c.AuthMethod, c.TLSName = "tls_client_auth", "dns:self" },
		"no scope":            func(_ *testing.T, c *apitoken.Client) { c.Scopes = nil },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			waits := make(chan struct{}, 1)
			s := newTLSSite(t, func(s *tlsSite) http.Handler {
				h := served(s)
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.ServeHTTP(&waiting{w, waits}, r) })
			})
			own := (*ca)(nil).certify(t, "self", nil)
			s.create(t, apitoken.Client{ID: "self", AuthMethod: "self_signed_tls_client_auth", Keys: jwkOf(t, own)})
			view, err := s.svc.Revocations(s.ctx, store.Position{}, 0)
			require.NoError(t, err)
			status := make(chan int, 1)
			h := s.client(t, fixed(own))
			go func() {
				res, err := h.Get(fmt.Sprintf("%s/apitoken/revocations?after=%x.%x&nonce=n&wait=20000&client_id=self", s.srv.URL, view.Next.History, view.Next.N))
				if err != nil {
					status <- -1
					return
				}
				_ = res.Body.Close()
				status <- res.StatusCode
			}()
			<-waits
			_, err = s.svc.Clients.Update(s.ctx, "self", func(c *apitoken.Client) error { change(t, c); return nil })
			require.NoError(t, err)
			require.Contains(t, []int{401, 403}, <-status)
		})
	}
}

// A certificate is replaced without an outage: the issuer takes both, the process shows the next one, the issuer takes that
// alone. A connection that still shows the old one is given up.
func TestTheCertificateOfAValidatorRotates(t *testing.T) {
	t.Parallel()
	s := newTLSSite(t, served)
	first, second := (*ca)(nil).certify(t, "first", nil), (*ca)(nil).certify(t, "second", nil)
	s.create(t, apitoken.Client{ID: "self", AuthMethod: "self_signed_tls_client_auth", Keys: jwkOf(t, first)})
	var now atomic.Pointer[tls.Certificate]
	now.Store(&first)
	v := s.validator(t, "self", s.client(t, now.Load))
	s.follows(t, v)
	takes := func(certs ...tls.Certificate) {
		_, err := s.svc.Clients.Update(s.ctx, "self", func(c *apitoken.Client) error { c.Keys = jwkOf(t, certs...); return nil })
		require.NoError(t, err)
	}
	takes(first, second)
	s.follows(t, v)
	now.Store(&second)
	takes(second)
	s.follows(t, v)

	_, err := s.svc.Clients.Update(s.ctx, "self", func(c *apitoken.Client) error { c.Disabled = true; return nil })
	require.NoError(t, err)
	_, key, err := s.svc.APIKeys.Create(s.ctx, apitoken.APIKeyRequest{Subject: "bob", Name: "new"})
	require.NoError(t, err)
	_, err = v.Validate(s.ctx, apitoken.Bearer(key.Reveal()))
	require.ErrorIs(t, err, apitoken.ErrUnavailable, "a client that is disabled is told nothing")
}

func TestACertificateFromAProxy(t *testing.T) {
	t.Parallel()
	own := (*ca)(nil).certify(t, "self", nil)
	s := newSite(t, nil)
	_, _, err := s.svc.Clients.Create(s.ctx, apitoken.Client{ID: "self", AuthMethod: "self_signed_tls_client_auth", Keys: jwkOf(t, own), Scopes: apitoken.Scopes{remote.FollowScope}})
	require.NoError(t, err)
	h := remote.Handler(s.svc, remote.ClientCertificates(func(r *http.Request) (*x509.Certificate, bool) {
		if r.Header.Get("Client-Cert") == "" {
			return nil, false
		}
		return own.Leaf, false
	}))
	get := func(header bool, h http.Handler) int {
		r := httptest.NewRequest(http.MethodGet, s.url+"/apitoken/revocations?after=0.0&nonce=n&client_id=self", nil)
		if header {
			r.Header.Set("Client-Cert", "x")
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w.Code
	}
	require.Equal(t, 200, get(true, h))
	require.Equal(t, 401, get(false, h))
	require.Equal(t, 401, get(true, remote.Handler(s.svc)), "a header that nobody was told to believe")
}

func TestConfigurationsWithoutASecret(t *testing.T) {
	t.Parallel()
	cert := (*ca)(nil).certify(t, "self", nil)
	shows := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{Certificates: []tls.Certificate{cert}}}}
	for name, c := range map[string]remote.Config{
		"no HTTP":             {Client: apitoken.ClientAuth{ID: "a"}},
		"no transport":        {Client: apitoken.ClientAuth{ID: "a"}, HTTP: &http.Client{}},
		"no TLS":              {Client: apitoken.ClientAuth{ID: "a"}, HTTP: &http.Client{Transport: &http.Transport{}}},
		"no certificate":      {Client: apitoken.ClientAuth{ID: "a"}, HTTP: &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{}}}},
		"no ID":               {HTTP: shows},
		"in clear":            {Issuer: "http://localhost:1", Client: apitoken.ClientAuth{ID: "a"}, HTTP: shows},
		"an assertion":        {Client: apitoken.ClientAuth{ID: "a", Assertion: apitoken.NewSecret("x")}, HTTP: shows},
		"in the wrong place":  {Client: apitoken.ClientAuth{ID: "a", Certificate: cert.Leaf}, HTTP: shows},
		"a secret, and there": {Client: apitoken.ClientAuth{ID: "a", Secret: apitoken.NewSecret("x"), Certificate: cert.Leaf}, HTTP: shows},
	} {
		if c.Issuer == "" {
			c.Issuer = "https://auth.example.com"
		}
		c.Audience = "https://api.example.com"
		_, err := remote.NewValidator(c)
		var wrong *apitoken.ConfigError
		require.ErrorAs(t, err, &wrong, name)
		require.Equal(t, "Client", wrong.Field, name)
	}
}
