package interop

import (
	"bufio"
	"bytes"
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
	"fmt"
	"html"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/stretchr/testify/require"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"
)

const (
	otherAudience = "https://reports.example.com"
	callback      = "https://app.example.com/cb"
	webSecret     = "a-secret-of-the-web-client"
	patience      = time.Minute // on a busy machine
)

// issuerSite is examples/server: the program itself, in a process of its own, behind TLS.
type issuerSite struct {
	url     string
	client  *http.Client // trusts its certificate
	ca      []byte       // PEM, of its certificate
	initial string       // an API key that registers clients
	jwk     jose.JSONWebKey
	cert    []byte // PEM, of the client "tls"
	key     []byte
	print   string
}

// pemOf makes a self-signed certificate and its key.
func pemOf(t *testing.T, change func(*x509.Certificate)) (cert, key, der []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true}
	change(tmpl)
	der, err = x509.CreateCertificate(rand.Reader, tmpl, tmpl, k.Public(), k)
	require.NoError(t, err)
	raw, err := x509.MarshalPKCS8PrivateKey(k)
	require.NoError(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}), der
}

// built is where the program of all tests lies.
var built string

func TestMain(m *testing.M) {
	code := m.Run()
	_ = os.RemoveAll(built) // "" is no error
	os.Exit(code)
}

// serverProgram builds examples/server for the first test that asks.
var serverProgram = sync.OnceValues(func() (program string, err error) {
	if built, err = os.MkdirTemp("", "apitoken-server-"); err != nil {
		return "", err
	}
	program = filepath.Join(built, "server")
	build := exec.Command("go", "build", "-o", program, "./examples/server")
	build.Dir = ".." // the root module, which has all that the program needs
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return program, nil
})

// startServer builds examples/server, starts it with settings for these tests, and stops it after the test.
func startServer(t *testing.T) *issuerSite {
	t.Helper()
	s := &issuerSite{}
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		file := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(file, b, 0o600))
		return file
	}
	clientKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	s.jwk = jose.JSONWebKey{Key: clientKey, Algorithm: "ES256"}
	var der []byte
	s.cert, s.key, der = pemOf(t, func(c *x509.Certificate) {
		c.Subject, c.DNSNames, c.ExtKeyUsage = pkix.Name{CommonName: "worker"}, []string{"worker.example.com"}, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	})
	sum := sha256.Sum256(der)
	s.print = base64.RawURLEncoding.EncodeToString(sum[:])
	var serverKey []byte
	s.ca, serverKey, _ = pemOf(t, func(c *x509.Certificate) {
		c.Subject, c.IPAddresses, c.ExtKeyUsage = pkix.Name{CommonName: "server"}, []net.IP{net.IPv4(127, 0, 0, 1)}, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	})

	type object = map[string]any
	scopes := []string{"orders:read", "orders:write"}
	user := []string{"authorization_code", "refresh_token", "urn:ietf:params:oauth:grant-type:device_code"}
	machine := []string{"client_credentials"}
	settings, err := json.Marshal(object{
		"scopes":    object{"orders:read": "See orders", "orders:write": "Place orders", "keys": "Manage API keys", "apitoken:register": "Register clients"},
		"roles":     object{"customer": scopes, "operator": []string{"keys", "apitoken:register"}},
		"audiences": []string{otherAudience},
		"users":     []object{{"name": "alice", "password": "wonderland", "roles": []string{"customer"}}, {"name": "ops", "password": "operations", "roles": []string{"operator"}}},
		"clients": []object{
			{"id": "web", "secret": webSecret, "grant_types": append([]string{"client_credentials", "urn:ietf:params:oauth:grant-type:token-exchange"}, user...), "scopes": scopes, "redirect_uris": []string{callback}, "may_impersonate": true},
			{"id": "spa", "public": true, "grant_types": user, "scopes": scopes, "redirect_uris": []string{callback}},
			{"id": "key", "grant_types": machine, "scopes": scopes, "auth_method": "private_key_jwt", "keys": jose.JSONWebKeySet{Keys: []jose.JSONWebKey{s.jwk.Public()}}},
			{"id": "tls", "grant_types": machine, "scopes": scopes, "auth_method": "tls_client_auth", "tls_name": "dns:worker.example.com", "bind_certificate": true},
		},
		"registration": object{"scopes": scopes}, "require_nonce": true,
	})
	require.NoError(t, err)

	program, err := serverProgram()
	require.NoError(t, err)
	run := exec.Command(program, "-addr", "127.0.0.1:0", "-db", filepath.Join(dir, "tokens.db"), "-config", write("server.json", settings),
		"-tls-cert", write("server.pem", s.ca), "-tls-key", write("server-key.pem", serverKey), "-client-ca", write("clients.pem", s.cert))
	said, err := run.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, run.Start())
	lines := make(chan string, 64)
	go func() {
		defer close(lines)
		for in := bufio.NewScanner(said); in.Scan(); {
			lines <- in.Text()
		}
	}()
	var log strings.Builder
	t.Cleanup(func() {
		require.NoError(t, run.Process.Signal(os.Interrupt))
		for line := range lines {
			fmt.Fprintln(&log, line)
		}
		require.NoError(t, run.Wait(), "it ends in peace: %s", &log)
		if t.Failed() {
			t.Log(log.String())
		}
	})
	late := time.After(patience)
	for s.url == "" {
		select {
		case line, ok := <-lines:
			require.True(t, ok, "it did not start: %s", &log)
			fmt.Fprintln(&log, line)
			if at := regexp.MustCompile(`msg=serving url=(\S+)`).FindStringSubmatch(line); at != nil {
				s.url = at[1]
			}
		case <-late:
			t.Fatalf("it did not start in time: %s", &log)
		}
	}
	pool := x509.NewCertPool()
	require.True(t, pool.AppendCertsFromPEM(s.ca))
	s.client = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}

	var login struct {
		Access string `json:"access_token"`
	}
	s.call(t, "POST", "/login", "", object{"user": "ops", "password": "operations"}, &login)
	var made struct{ Key string }
	s.call(t, "POST", "/keys", login.Access, object{"name": "registrar", "scopes": []string{"apitoken:register"}}, &made)
	s.initial = made.Key
	return s
}

// call asks the server's own API, and reads a good answer.
func (s *issuerSite) call(t *testing.T, method, path, token string, body, into any) {
	t.Helper()
	raw, err := json.Marshal(body)
	require.NoError(t, err)
	r, err := http.NewRequest(method, s.url+path, bytes.NewReader(raw))
	require.NoError(t, err)
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := s.client.Do(r)
	require.NoError(t, err)
	defer res.Body.Close()
	require.Less(t, res.StatusCode, 300, path)
	require.NoError(t, json.NewDecoder(res.Body).Decode(into))
}

// sayYes plays the user before a page of the server's: alice signs in and allows what it asks. It returns where the
// browser is sent.
func (s *issuerSite) sayYes(t *testing.T, page string) string {
	t.Helper()
	res, err := s.client.Get(page)
	require.NoError(t, err)
	defer res.Body.Close()
	shown, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	action := regexp.MustCompile(`action="([^"]+)"`).FindSubmatch(shown)
	field := regexp.MustCompile(`type="hidden" name="([^"]+)" value="([^"]+)"`).FindSubmatch(shown)
	require.NotNil(t, action, string(shown))
	require.NotNil(t, field, string(shown))
	answer := url.Values{"user": {"alice"}, "password": {"wonderland"}, "decision": {"allow"}, string(field[1]): {html.UnescapeString(string(field[2]))}}
	done, err := s.client.PostForm(s.url+string(action[1]), answer)
	require.NoError(t, err)
	defer done.Body.Close()
	require.Less(t, done.StatusCode, 400)
	return done.Header.Get("Location")
}

// TestNodeFlows runs every flow with clients of npm against examples/server, and takes its tokens with a resource server of
// npm.
func TestNodeFlows(t *testing.T) {
	t.Parallel()
	dir := nodePackage(t, "oauth")
	s := startServer(t)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "ca.pem"), s.ca, 0o600))
	settings, err := json.Marshal(map[string]any{"issuer": s.url, "audience": s.url, "other": otherAudience, "redirect": callback, "secret": webSecret, "initial": s.initial,
		"jwk": s.jwk, "cert": string(s.cert), "key": string(s.key), "ca": string(s.ca), "print": s.print})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "settings.json"), settings, 0o600))
	cmd := exec.Command("node", "flows.mjs", "settings.json")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "NODE_EXTRA_CA_CERTS="+filepath.Join(dir, "ca.pem"))
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	require.Equal(t, 12, strings.Count(strings.TrimSpace(string(out)), "\n")+1, string(out))
}

// TestGoOAuth2 runs the flows of golang.org/x/oauth2 against examples/server.
func TestGoOAuth2(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	ctx := context.WithValue(t.Context(), oauth2.HTTPClient, s.client)
	valid := func(tok *oauth2.Token, subject string) {
		t.Helper()
		var me struct{ Subject string }
		s.call(t, "GET", "/me", tok.AccessToken, nil, &me)
		require.Equal(t, subject, me.Subject)
	}
	machine := clientcredentials.Config{ClientID: "web", ClientSecret: webSecret, TokenURL: s.url + "/token", Scopes: []string{"orders:read"}}
	tok, err := machine.Token(ctx)
	require.NoError(t, err)
	valid(tok, "web")

	c := oauth2.Config{ClientID: "web", ClientSecret: webSecret, RedirectURL: callback, Scopes: []string{"orders:read"},
		Endpoint: oauth2.Endpoint{AuthURL: s.url + "/authorize", TokenURL: s.url + "/token", DeviceAuthURL: s.url + "/device_authorization"}}
	verifier := oauth2.GenerateVerifier()
	back, err := url.Parse(s.sayYes(t, c.AuthCodeURL("state", oauth2.S256ChallengeOption(verifier))))
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
	s.sayYes(t, device.VerificationURIComplete)
	device.Interval = 1 // its user has decided already
	tok, err = c.DeviceAccessToken(ctx, device)
	require.NoError(t, err)
	valid(tok, "alice")
}
