package interop

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
	"encoding/pem"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/stretchr/testify/require"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/oauthhttp"
	"github.com/apitoken-go/apitoken/store/memstore"
)

const (
	otherAudience = "https://reports.example.com"
	callback      = "https://app.example.com/cb"
)

// issuerSite is an issuer with all endpoints behind real TLS, whose demonstration pages say yes for alice.
type issuerSite struct {
	*httptest.Server
	svc     *apitoken.Service
	secret  string // of the client "web"
	initial string
	jwk     jose.JSONWebKey // private, of the client "key"
	cert    []byte          // PEM, of the client "tls"
	key     []byte
	print   string
}

func newIssuerSite(t *testing.T) *issuerSite {
	t.Helper()
	ctx := context.Background()
	s := &issuerSite{}
	var h atomic.Pointer[http.Handler]
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { (*h.Load()).ServeHTTP(w, r) }))
	s.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	s.StartTLS()
	t.Cleanup(s.Close)
	var err error
	s.svc, err = apitoken.New(apitoken.Config{Issuer: s.URL, Audience: audience, Audiences: []string{otherAudience}, Store: memstore.New(), InsecureKeysInStore: true})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.svc.Close()) })

	clientKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	s.jwk = jose.JSONWebKey{Key: clientKey, Algorithm: "ES256"}
	public, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{s.jwk.Public()}})
	require.NoError(t, err)

	tlsKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "worker"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"worker.example.com"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, tlsKey.Public(), tlsKey)
	require.NoError(t, err)
	raw, err := x509.MarshalPKCS8PrivateKey(tlsKey)
	require.NoError(t, err)
	s.cert, s.key = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})
	sum := sha256.Sum256(der)
	s.print = base64.RawURLEncoding.EncodeToString(sum[:])
	pool := x509.NewCertPool()
	require.True(t, pool.AppendCertsFromPEM(s.cert))

	scopes := apitoken.Scopes{"orders:read", "orders:write"}
	create := func(c apitoken.Client) string {
		c.Scopes = scopes
		_, secret, err := s.svc.Clients.Create(ctx, c)
		require.NoError(t, err)
		return secret.Reveal()
	}
	user := []string{apitoken.GrantAuthorizationCode, apitoken.GrantRefreshToken, apitoken.GrantDeviceCode}
	s.secret = create(apitoken.Client{ID: "web", GrantTypes: append([]string{apitoken.GrantClientCredentials, apitoken.GrantTokenExchange}, user...), RedirectURIs: []string{callback}, MayImpersonate: true})
	create(apitoken.Client{ID: "spa", Public: true, GrantTypes: user, RedirectURIs: []string{callback}})
	create(apitoken.Client{ID: "key", GrantTypes: []string{apitoken.GrantClientCredentials}, AuthMethod: "private_key_jwt", Keys: public})
	create(apitoken.Client{ID: "tls", GrantTypes: []string{apitoken.GrantClientCredentials}, AuthMethod: "tls_client_auth", TLSName: "dns:worker.example.com", BindCertificate: true})
	_, initial, err := s.svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "ops", Scopes: apitoken.Scopes{oauthhttp.RegisterScope}})
	require.NoError(t, err)
	s.initial = initial.Reveal()

	var oauth *oauthhttp.Handler
	oauth, err = oauthhttp.New(s.svc, &oauthhttp.Options{
		Consent: oauthhttp.ConsentFunc(func(w http.ResponseWriter, r *http.Request, a *oauthhttp.Authorization) {
			oauth.Approve(w, r, a, oauthhttp.Approval{Subject: "alice"})
		}),
		DevicePage: s.URL + "/device", Registration: &oauthhttp.Registration{Scopes: scopes}, ClientCAs: pool, RequireNonce: true,
	})
	require.NoError(t, err)
	mux := http.NewServeMux()
	mux.Handle("/", oauth)
	mux.HandleFunc("GET /device", func(w http.ResponseWriter, r *http.Request) {
		d, err := oauth.Device(r.Context(), r.URL.Query().Get("user_code"))
		if err == nil {
			err = oauth.ApproveDevice(r.Context(), d, oauthhttp.Approval{Subject: "alice"})
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusNotFound)
		}
	})
	var all http.Handler = mux
	h.Store(&all)
	return s
}

// TestNodeFlows runs every flow with clients of npm, against a resource server of npm.
func TestNodeFlows(t *testing.T) {
	t.Parallel()
	need := func(err error, what string) {
		if err == nil {
			return
		}
		if os.Getenv("APITOKEN_TEST_REQUIRE") != "" {
			t.Fatalf("%s: %v", what, err)
		}
		t.Skipf("%s: %v; install nodejs and npm to run this test", what, err)
	}
	_, err := exec.LookPath("node")
	need(err, "node")
	npm, err := exec.LookPath("npm")
	need(err, "npm")
	dir := t.TempDir()
	for _, name := range []string{"package.json", "package-lock.json", "flows.mjs"} {
		b, err := os.ReadFile(filepath.Join("oauth", name))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), b, 0o644))
	}
	cmd := exec.Command(npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		need(err, "npm ci: "+string(out))
	}
	s := newIssuerSite(t)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	require.NoError(t, os.WriteFile(filepath.Join(dir, "ca.pem"), ca, 0o600))
	settings, err := json.Marshal(map[string]any{"issuer": s.URL, "audience": audience, "other": otherAudience, "redirect": callback, "secret": s.secret, "initial": s.initial,
		"jwk": s.jwk, "cert": string(s.cert), "key": string(s.key), "ca": string(ca), "print": s.print})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "settings.json"), settings, 0o600))
	cmd = exec.Command("node", "flows.mjs", "settings.json")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "NODE_EXTRA_CA_CERTS="+filepath.Join(dir, "ca.pem"))
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	require.Equal(t, 10, strings.Count(strings.TrimSpace(string(out)), "\n")+1, string(out))
}

// TestGoOAuth2 runs the flows of golang.org/x/oauth2 against us.
func TestGoOAuth2(t *testing.T) {
	t.Parallel()
	s := newIssuerSite(t)
	ctx := context.WithValue(t.Context(), oauth2.HTTPClient, s.Client())
	valid := func(tok *oauth2.Token, subject string) {
		t.Helper()
		got, err := s.svc.Validate(ctx, apitoken.Bearer(tok.AccessToken))
		require.NoError(t, err)
		require.Equal(t, subject, got.Subject())
	}
	machine := clientcredentials.Config{ClientID: "web", ClientSecret: s.secret, TokenURL: s.URL + "/token", Scopes: []string{"orders:read"}}
	tok, err := machine.Token(ctx)
	require.NoError(t, err)
	valid(tok, "web")

	c := oauth2.Config{ClientID: "web", ClientSecret: s.secret, RedirectURL: callback, Scopes: []string{"orders:read"},
		Endpoint: oauth2.Endpoint{AuthURL: s.URL + "/authorize", TokenURL: s.URL + "/token", DeviceAuthURL: s.URL + "/device_authorization"}}
	verifier := oauth2.GenerateVerifier()
	browser := *s.Client()
	browser.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	res, err := browser.Get(c.AuthCodeURL("state", oauth2.S256ChallengeOption(verifier)))
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())
	back, err := url.Parse(res.Header.Get("Location"))
	require.NoError(t, err)
	require.Equal(t, "state", back.Query().Get("state"))
	tok, err = c.Exchange(ctx, back.Query().Get("code"), oauth2.VerifierOption(verifier))
	require.NoError(t, err)
	valid(tok, "alice")
	tok.Expiry = time.Now().Add(-time.Minute)
	next, err := c.TokenSource(ctx, tok).Token()
	require.NoError(t, err, "it refreshes by itself")
	valid(next, "alice")
	_, err = c.Exchange(ctx, back.Query().Get("code"), oauth2.VerifierOption(verifier))
	var refused *oauth2.RetrieveError
	require.ErrorAs(t, err, &refused)
	require.Equal(t, "invalid_grant", refused.ErrorCode)

	c.ClientID, c.ClientSecret = "spa", "" // it shows no secret where a device begins, so that its devices are public clients
	device, err := c.DeviceAuth(ctx)
	require.NoError(t, err)
	res, err = s.Client().Get(device.VerificationURIComplete)
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())
	require.Equal(t, http.StatusOK, res.StatusCode)
	device.Interval = 1 // its user has decided already
	tok, err = c.DeviceAccessToken(ctx, device)
	require.NoError(t, err)
	valid(tok, "alice")
}
