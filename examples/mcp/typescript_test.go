package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"html"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
)

// typescript installs what typescript/package-lock.json names, once for all tests, and returns where.
var typescript = sync.OnceValues(func() (string, error) {
	if _, err := exec.LookPath("node"); err != nil {
		return "", err
	}
	npm, err := exec.LookPath("npm")
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "apitoken-mcp-")
	if err != nil {
		return "", err
	}
	installed = dir
	for _, name := range []string{"package.json", "package-lock.json", "client.mjs", "node20.mjs"} {
		b, err := os.ReadFile(filepath.Join("typescript", name))
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			return "", err
		}
	}
	install := exec.Command(npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline")
	install.Dir = dir
	if out, err := install.CombinedOutput(); err != nil {
		return "", errors.New("npm ci: " + string(out))
	}
	return dir, nil
})

var installed string // by typescript

func TestMain(m *testing.M) {
	code := m.Run()
	_ = os.RemoveAll(installed) // "" is no error
	os.Exit(code)
}

// programs is where they lie; without node or npm the test skips, or fails where the tests must not skip.
func programs(t *testing.T) string {
	t.Helper()
	dir, err := typescript()
	if err != nil {
		if os.Getenv("APITOKEN_TEST_REQUIRE") != "" {
			t.Fatal(err)
		}
		t.Skipf("%v; install nodejs and npm to run this test", err)
	}
	return dir
}

// visit is what the user does in a browser: alice signs in and allows what the page asks. It returns where the browser is sent.
func visit(address string) (*url.URL, error) {
	page, err := http.Get(address)
	if err != nil {
		return nil, err
	}
	defer page.Body.Close()
	text, err := io.ReadAll(page.Body)
	if err != nil {
		return nil, err
	}
	found := hidden.FindSubmatch(text)
	if found == nil {
		return nil, errors.New(string(text))
	}
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	r, err := client.PostForm(page.Request.URL.Scheme+"://"+page.Request.URL.Host+"/consent",
		url.Values{"request": {html.UnescapeString(string(found[1]))}, "user": {"alice"}, "password": {"secret"}, "decision": {"allow"}})
	if err != nil {
		return nil, err
	}
	r.Body.Close()
	return r.Location()
}

// TestTheTypeScriptClients: both majors of the official SDK, unmodified, sign in by a document, by open registration and as a client
// registered before; they step up, refresh and are revoked. typescript/client.mjs holds what they must see.
func TestTheTypeScriptClients(t *testing.T) {
	t.Parallel()
	dir := programs(t)
	for _, sdk := range []string{"1", "2"} {
		for name, settle := range map[string]func(t *testing.T, svc *apitoken.Service, document string, settings map[string]any){
			"by its document":      func(_ *testing.T, _ *apitoken.Service, document string, s map[string]any) { s["document"] = document },
			"by open registration": func(*testing.T, *apitoken.Service, string, map[string]any) {},
			"registered before, public": func(t *testing.T, svc *apitoken.Service, _ string, s map[string]any) {
				s["client"] = registered(t, svc, true)
			},
			"registered before, with a secret": func(t *testing.T, svc *apitoken.Service, _ string, s map[string]any) {
				s["client"] = registered(t, svc, false)
			},
		} {
			t.Run("SDK "+sdk+" "+name, func(t *testing.T) {
				t.Parallel()
				base, svc, document := start(t)
				settings := map[string]any{"sdk": sdk, "url": base + "/mcp", "redirect": callback}
				settle(t, svc, document, settings)
				done := play(t, dir, svc, settings)
				require.ElementsMatch(t, []string{"notes:read", "notes:write"}, strings.Fields(done.Scope))
				if settings["document"] != nil {
					require.Equal(t, document, done.Client)
				}
				c, err := svc.Clients.Get(t.Context(), done.Client)
				require.NoError(t, err)
				require.Equal(t, settings["client"] == nil, !c.Expires.IsZero(), "a client that nobody here made ends by itself")
			})
		}
	}
}

// registered makes a client in the form in which the SDK is told of it.
func registered(t *testing.T, svc *apitoken.Service, public bool) map[string]any {
	t.Helper()
	c, secret, err := svc.Clients.Create(t.Context(), apitoken.Client{Public: public, GrantTypes: []string{"authorization_code", "refresh_token"},
		RedirectURIs: []string{callback}, Scopes: apitoken.Scopes{read, write}})
	require.NoError(t, err)
	info := map[string]any{"client_id": c.ID, "redirect_uris": []string{callback}}
	if !public {
		info["client_secret"] = secret.Reveal()
	}
	return info
}

type outcome struct{ Client, Scope string }

// play runs the client and does for it what is not its own to do: the user's part, and the operator's.
func play(t *testing.T, dir string, svc *apitoken.Service, settings map[string]any) outcome {
	t.Helper()
	arg, err := json.Marshal(settings)
	require.NoError(t, err)
	run := exec.CommandContext(t.Context(), "node", "client.mjs", string(arg))
	run.Dir, run.WaitDelay = dir, time.Second
	var said strings.Builder
	run.Stderr = &said
	in, err := run.StdinPipe()
	require.NoError(t, err)
	out, err := run.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, run.Start())
	var done outcome
	for lines := bufio.NewScanner(out); lines.Scan(); {
		var ask struct {
			Visit  string
			Revoke bool
			Done   *outcome
		}
		require.NoError(t, json.Unmarshal(lines.Bytes(), &ask), lines.Text())
		answer := map[string]any{}
		switch {
		case ask.Visit != "":
			to, err := visit(ask.Visit)
			require.NoError(t, err)
			answer["location"] = to.String()
		case ask.Revoke:
			require.NoError(t, svc.Revoke(t.Context(), apitoken.BySubject("alice"), "left"))
		case ask.Done != nil:
			done = *ask.Done
		}
		raw, err := json.Marshal(answer)
		require.NoError(t, err)
		_, err = in.Write(append(raw, '\n'))
		require.NoError(t, err)
	}
	require.NoError(t, run.Wait(), "%s", &said)
	return done
}
