package interop

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/dpopclient"
)

// nodePackage is a copy of dir with its npm packages installed. Without node and npm the test is skipped.
func nodePackage(t *testing.T, dir string) string {
	t.Helper()
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
	to := t.TempDir()
	require.NoError(t, os.CopyFS(to, os.DirFS(dir)))
	cmd := exec.Command(npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline")
	cmd.Dir = to
	if out, err := cmd.CombinedOutput(); err != nil {
		need(err, "npm ci: "+string(out))
	}
	return to
}

// startProvider starts npm's oidc-provider and returns its URL.
func startProvider(t *testing.T, verifier, callback string) string {
	t.Helper()
	run := exec.Command("node", "provider.mjs", verifier, callback)
	run.Dir = nodePackage(t, "dpop")
	said, err := run.StdoutPipe()
	require.NoError(t, err)
	run.Stderr = os.Stderr
	require.NoError(t, run.Start())
	t.Cleanup(func() {
		_ = run.Process.Kill()
		_ = run.Wait()
	})
	at := make(chan string, 1)
	go func() {
		for in := bufio.NewScanner(said); in.Scan(); {
			if strings.HasPrefix(in.Text(), "http://") {
				at <- in.Text()
			}
		}
	}()
	select {
	case url := <-at:
		return url
	case <-time.After(patience):
		t.Fatal("oidc-provider did not start")
		return ""
	}
}

// TestDPoPClientAtAServerThatIsNotOurs: dpopclient signs in at npm's oidc-provider, which wants nonces at its token endpoint and at
// its userinfo endpoint, calls the latter, and refreshes once however many requests wait.
func TestDPoPClientAtAServerThatIsNotOurs(t *testing.T) {
	t.Parallel()
	const (
		verifier = "0123456789-0123456789-0123456789-0123456789-abc"
		callback = "http://127.0.0.1/cb"
	)
	issuer := startProvider(t, verifier, callback)
	ask := func(path string) string {
		answer, err := http.Get(issuer + path)
		require.NoError(t, err)
		defer answer.Body.Close()
		body, err := io.ReadAll(answer.Body)
		require.NoError(t, err)
		return string(body)
	}
	var metadata struct {
		Token    string `json:"token_endpoint"`
		UserInfo string `json:"userinfo_endpoint"`
	}
	require.NoError(t, json.Unmarshal([]byte(ask("/.well-known/openid-configuration")), &metadata))

	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	file := sessionFile(filepath.Join(t.TempDir(), "session.json"))
	start := func() *dpopclient.Client {
		prover, err := dpopclient.NewProver(key, nil)
		require.NoError(t, err)
		client, err := dpopclient.New(dpopclient.Config{Prover: prover, TokenURL: metadata.Token, ClientID: "cli", APIs: []string{issuer}, Store: file})
		require.NoError(t, err)
		return client
	}
	who := func(c *dpopclient.Client) (subject string, err error) {
		answer, err := (&http.Client{Transport: c}).Get(metadata.UserInfo)
		if err != nil {
			return "", err
		}
		defer answer.Body.Close()
		var claims struct{ Sub string }
		err = json.NewDecoder(answer.Body).Decode(&claims)
		return claims.Sub, err
	}

	client := start()
	_, err = who(client)
	require.ErrorIs(t, err, dpopclient.ErrSignIn)
	require.NoError(t, client.Grant(t.Context(), url.Values{
		"grant_type": {"authorization_code"}, "code": {ask("/code")}, "code_verifier": {verifier}, "redirect_uri": {callback},
	}))
	subject, err := who(client)
	require.NoError(t, err)
	require.Equal(t, "alice", subject)
	require.Equal(t, "0", ask("/spent"))

	// The access token has ended when the program starts again; the server takes each refresh token once.
	for round := range 2 {
		tokens, err := file.Load(t.Context())
		require.NoError(t, err)
		tokens.Renew = time.Now()
		require.NoError(t, file.Save(t.Context(), tokens))
		client = start()
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() {
				subject, err := who(client)
				assert.NoError(t, err)
				assert.Equal(t, "alice", subject)
			})
		}
		all.Wait()
		require.Equal(t, []string{"1", "2"}[round], ask("/spent"))
	}

	// Another key than the one that signed in is of no use.
	key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	tokens, err := file.Load(t.Context())
	require.NoError(t, err)
	tokens.Renew = time.Now()
	require.NoError(t, file.Save(t.Context(), tokens))
	_, err = who(start())
	require.ErrorIs(t, err, dpopclient.ErrSignIn)
}

// sessionFile is a dpopclient.Store.
type sessionFile string

func (f sessionFile) Load(context.Context) (t dpopclient.Tokens, err error) {
	doc, err := os.ReadFile(string(f))
	if errors.Is(err, fs.ErrNotExist) {
		return t, nil
	}
	if err != nil {
		return t, err
	}
	return t, json.Unmarshal(doc, &t)
}

func (f sessionFile) Save(_ context.Context, t dpopclient.Tokens) error {
	doc, err := json.Marshal(t)
	if err != nil {
		return err
	}
	return os.WriteFile(string(f), doc, 0o600)
}
