package main

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"html"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// serve starts the program and returns its URL and what stops it.
func serve(t *testing.T, args ...string) (base string, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan string, 1), make(chan error, 1)
	go func() {
		ended <- run(ctx, append([]string{"-addr", "127.0.0.1:0"}, args...), slog.New(slog.DiscardHandler), func(base string) { ready <- base })
	}()
	select {
	case base = <-ready:
	case err := <-ended:
		t.Fatalf("it did not start: %v", err)
	}
	stop = func() {
		cancel()
		require.NoError(t, <-ended)
	}
	return base, stop
}

func call(t *testing.T, method, url, token, body string, into any) int {
	t.Helper()
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	require.NoError(t, err)
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer res.Body.Close()
	if into != nil && res.StatusCode < 300 {
		require.NoError(t, json.NewDecoder(res.Body).Decode(into))
	}
	return res.StatusCode
}

type tokens struct {
	Access  string `json:"access_token"`
	Refresh string `json:"refresh_token"`
}

func login(t *testing.T, base, user, password string) (k tokens) {
	t.Helper()
	require.Equal(t, 200, call(t, "POST", base+"/login", "", `{"user":"`+user+`","password":"`+password+`"}`, &k))
	return k
}

func TestTheWholeServer(t *testing.T) {
	t.Parallel()
	db := filepath.Join(t.TempDir(), "tokens.db")
	base, stop := serve(t, "-db", db, "-issuer", "https://auth.example.com")

	require.Equal(t, 403, call(t, "POST", base+"/login", "", `{"user":"alice","password":"guess"}`, nil))
	require.Equal(t, 403, call(t, "POST", base+"/login", "", `{"user":"nobody","password":""}`, nil))
	require.Equal(t, 400, call(t, "POST", base+"/login", "", `{"user":`, nil))
	require.Equal(t, 401, call(t, "GET", base+"/orders", "", "", nil))
	require.Equal(t, 404, call(t, "GET", base+"/admin", "", "", nil))

	alice, bob := login(t, base, "alice", "wonderland"), login(t, base, "bob", "builder")
	require.Equal(t, 201, call(t, "POST", base+"/orders", alice.Access, `{"item":"tea"}`, nil))
	require.Equal(t, 403, call(t, "POST", base+"/orders", bob.Access, `{"item":"bricks"}`, nil), "bob only looks")
	var orders []order
	require.Equal(t, 200, call(t, "GET", base+"/orders", bob.Access, "", &orders))
	require.Equal(t, "alice", orders[0].By)

	var key keyView
	require.Equal(t, 201, call(t, "POST", base+"/keys", alice.Access, `{"name":"ci","scopes":["orders:read"],"days":30}`, &key))
	require.Equal(t, 200, call(t, "GET", base+"/orders", key.Key, "", nil))
	require.Equal(t, 403, call(t, "POST", base+"/orders", key.Key, `{"item":"milk"}`, nil))
	require.Equal(t, 403, call(t, "DELETE", base+"/keys/"+key.ID, bob.Access, "", nil))
	require.Equal(t, 204, call(t, "DELETE", base+"/keys/"+key.ID, login(t, base, "alice", "wonderland").Access, "", nil))
	require.Equal(t, 401, call(t, "GET", base+"/orders", key.Key, "", nil))

	var sessions []struct {
		ID      string
		Current bool
	}
	require.Equal(t, 200, call(t, "GET", base+"/sessions", alice.Access, "", &sessions))
	require.Len(t, sessions, 2)
	require.Equal(t, 404, call(t, "DELETE", base+"/sessions/"+sessions[0].ID, bob.Access, "", nil), "another's session does not exist for bob")
	var next tokens
	require.Equal(t, 200, call(t, "POST", base+"/refresh", "", `{"refresh_token":"`+alice.Refresh+`"}`, &next))
	require.Equal(t, 401, call(t, "POST", base+"/logout", "", "", nil))
	require.Equal(t, 401, call(t, "POST", base+"/logout", "junk", "", nil))
	require.Equal(t, 204, call(t, "POST", base+"/logout", next.Access, "", nil))
	require.Equal(t, 204, call(t, "POST", base+"/logout", next.Access, "", nil), "what has ended already is no error")
	require.Equal(t, 401, call(t, "GET", base+"/orders", next.Access, "", nil))
	require.Equal(t, 400, call(t, "POST", base+"/refresh", "", `{"refresh_token":"`+next.Refresh+`"}`, nil))
	stop()

	// After a restart what was good is good, and what was ended is ended.
	base, stop = serve(t, "-db", db, "-issuer", "https://auth.example.com")
	defer stop()
	require.Equal(t, 200, call(t, "GET", base+"/orders", bob.Access, "", nil))
	require.Equal(t, 401, call(t, "GET", base+"/orders", next.Access, "", nil))
	require.Equal(t, 204, call(t, "POST", base+"/logout/all", bob.Access, "", nil))
	require.Equal(t, 401, call(t, "GET", base+"/me", bob.Access, "", nil))
}

func TestSettingsFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "server.json")
	hashed, err := json.Marshal(hashPassword("hunter2"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, []byte(`{"scopes":{"orders:read":"See orders"},"roles":{"viewer":["orders:read"]},
		"users":[{"name":"carol","password":"in clear","roles":["viewer"]},{"name":"dave","password":`+string(hashed)+`,"roles":["viewer"]}]}`), 0o600))
	base, stop := serve(t, "-db", filepath.Join(dir, "tokens.db"), "-config", file)
	defer stop()
	login(t, base, "carol", "in clear")
	login(t, base, "dave", "hunter2")

	require.NoError(t, os.WriteFile(file, []byte(`{"scops":{}}`), 0o600))
	err = run(context.Background(), []string{"-addr", "127.0.0.1:0", "-config", file, "-db", filepath.Join(dir, "other.db")}, slog.New(slog.DiscardHandler), nil)
	require.ErrorContains(t, err, "scops", "a typing error is named")
	for want, args := range map[string][]string{
		"tokens.db":     {"tokens.db"},      // without its flag
		"not defined":   {"-adress", ":80"}, // a flag that is none
		"no such file":  {"-config", dir + "/nowhere.json"},
		"no such file ": {"-client-ca", dir + "/nowhere.pem"},
		"no certif":     {"-client-ca", file},
		"https":         {"-addr", "127.0.0.1:0", "-issuer", "http://auth.example.com", "-db", filepath.Join(dir, "http.db")},
	} {
		err := run(context.Background(), args, slog.New(slog.DiscardHandler), nil)
		require.ErrorContains(t, err, strings.TrimSpace(want), "%v", args)
	}
}

// post sends a form and returns the answer without following it.
func post(t *testing.T, target, client, secret string, form url.Values) *http.Response {
	t.Helper()
	req, err := http.NewRequest("POST", target, strings.NewReader(form.Encode()))
	require.NoError(t, err)
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if secret != "" {
		req.SetBasicAuth(client, secret)
	}
	res, err := (&http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}).Do(req)
	require.NoError(t, err)
	t.Cleanup(func() { res.Body.Close() })
	return res
}

func decode(t *testing.T, res *http.Response, into any) {
	t.Helper()
	require.Equal(t, 200, res.StatusCode)
	require.NoError(t, json.NewDecoder(res.Body).Decode(into))
}

var hidden = regexp.MustCompile(`name="request" value="([^"]+)"`)

// The example's settings, as other programs use them: a machine, a command line with a browser, a device without one.
func TestOAuthClients(t *testing.T) {
	t.Parallel()
	base, stop := serve(t, "-db", filepath.Join(t.TempDir(), "tokens.db"), "-config", "server.json")
	defer stop()

	var k tokens
	res := post(t, base+"/token", "reports", "report-secret-for-demonstration", url.Values{"grant_type": {"client_credentials"}})
	decode(t, res, &k)
	require.Equal(t, 401, post(t, base+"/token", "reports", "another-secret-altogether", url.Values{"grant_type": {"client_credentials"}}).StatusCode)

	// The code flow of a public client, on whatever port it listens.
	verifier := strings.Repeat("v", 43)
	sum := sha256.Sum256([]byte(verifier))
	const callback = "http://127.0.0.1:51234/callback"
	ask := url.Values{"response_type": {"code"}, "client_id": {"cli"}, "redirect_uri": {callback}, "scope": {"orders:read orders:write"}, "state": {"s"},
		"code_challenge": {base64.RawURLEncoding.EncodeToString(sum[:])}, "code_challenge_method": {"S256"}}
	res, err := http.Get(base + "/authorize?" + ask.Encode())
	require.NoError(t, err)
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	require.Contains(t, string(body), "The command line")
	require.Contains(t, string(body), "Place orders")
	found := hidden.FindSubmatch(body)
	require.NotNil(t, found, string(body))
	form := url.Values{"request": {html.UnescapeString(string(found[1]))}, "user": {"bob"}, "password": {"guess"}, "decision": {"allow"}}
	require.Equal(t, 403, post(t, base+"/consent", "", "", form).StatusCode)
	form.Set("password", "builder")
	res = post(t, base+"/consent", "", "", form)
	require.Equal(t, 303, res.StatusCode)
	back, err := res.Location()
	require.NoError(t, err)
	require.Equal(t, "s", back.Query().Get("state"))
	require.Equal(t, base, back.Query().Get("iss"))
	redeem := url.Values{"grant_type": {"authorization_code"}, "client_id": {"cli"}, "code": {back.Query().Get("code")}, "redirect_uri": {callback}, "code_verifier": {verifier}}
	decode(t, post(t, base+"/token", "", "", redeem), &k)
	require.Equal(t, 200, call(t, "GET", base+"/orders", k.Access, "", nil))
	require.Equal(t, 403, call(t, "POST", base+"/orders", k.Access, `{"item":"bricks"}`, nil), "bob's role does not place orders, whatever the program asked for")
	require.Equal(t, 400, post(t, base+"/token", "", "", redeem).StatusCode, "a code is good once")
	require.Equal(t, 401, call(t, "GET", base+"/orders", k.Access, "", nil), "and its second use ends what the first one got")
	form.Set("decision", "deny")
	back, err = post(t, base+"/consent", "", "", form).Location()
	require.NoError(t, err)
	require.Equal(t, "access_denied", back.Query().Get("error"))

	// The device flow.
	var d struct {
		Device string `json:"device_code"`
		User   string `json:"user_code"`
		Page   string `json:"verification_uri"`
	}
	decode(t, post(t, base+"/device_authorization", "", "", url.Values{"client_id": {"cli"}, "scope": {"orders:read"}}), &d)
	require.Equal(t, base+"/device", d.Page)
	shown, status := get(t, d.Page+"?user_code="+d.User)
	require.Equal(t, 200, status)
	for _, want := range []string{"The command line", "See orders", d.User} {
		require.Contains(t, shown, want, "the user sees what he is asked before he says yes (RFC 8628 §5.4)")
	}
	_, status = get(t, d.Page+"?user_code=BBBB-BBBB")
	require.Equal(t, 404, status)
	poll := url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:device_code"}, "client_id": {"cli"}, "device_code": {d.Device}}
	require.Equal(t, 400, post(t, base+"/token", "", "", poll).StatusCode)
	require.Equal(t, 404, post(t, d.Page, "", "", url.Values{"user_code": {"XXXX-XXXX"}, "user": {"alice"}, "password": {"wonderland"}, "decision": {"allow"}}).StatusCode)
	require.Equal(t, 200, post(t, d.Page, "", "", url.Values{"user_code": {d.User}, "user": {"alice"}, "password": {"wonderland"}, "decision": {"allow"}}).StatusCode)
	require.Eventually(t, func() bool {
		res := post(t, base+"/token", "", "", poll)
		if res.StatusCode != 200 {
			return false
		}
		decode(t, res, &k)
		return true
	}, 30*time.Second, 100*time.Millisecond)
	require.Equal(t, 200, call(t, "GET", base+"/orders", k.Access, "", nil))

	var about map[string]any
	require.Equal(t, 200, call(t, "GET", base+"/.well-known/oauth-authorization-server", "", "", &about))
	require.Equal(t, base, about["issuer"])
	for name, v := range about {
		if u, ok := v.(string); ok && name != "issuer" {
			_, status := get(t, u)
			require.NotEqual(t, 404, status, "%s is announced: %s", name, u)
		}
	}
	res, err = http.Get(base + "/orders")
	require.NoError(t, err)
	defer res.Body.Close()
	at := regexp.MustCompile(`resource_metadata="([^"]+)"`).FindStringSubmatch(res.Header.Get("WWW-Authenticate"))
	require.NotNil(t, at, "a client that knows only the API finds its issuer (RFC 9728 §5.1)")
	var api struct {
		Resource string
		Servers  []string `json:"authorization_servers"`
	}
	require.Equal(t, 200, call(t, "GET", at[1], "", "", &api))
	require.Equal(t, base, api.Resource)
	require.Equal(t, []string{base}, api.Servers)
}

func get(t *testing.T, target string) (body string, status int) {
	t.Helper()
	res, err := http.Get(target)
	require.NoError(t, err)
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	return string(raw), res.StatusCode
}

// An operator's API key lets a program register a client, where the settings say so.
func TestProgramsRegister(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "server.json")
	require.NoError(t, os.WriteFile(file, []byte(`{"scopes":{"orders:read":"See orders","keys":"Manage keys","apitoken:register":"Register clients"},"roles":{"operator":["keys","apitoken:register"]},
		"users":[{"name":"ops","password":"in clear","roles":["operator"]}],"registration":{"scopes":["orders:read"]}}`), 0o600))
	base, stop := serve(t, "-db", filepath.Join(dir, "tokens.db"), "-config", file)
	defer stop()
	var key keyView
	require.Equal(t, 201, call(t, "POST", base+"/keys", login(t, base, "ops", "in clear").Access, `{"name":"registrar","scopes":["apitoken:register"]}`, &key))
	req, err := http.NewRequest("POST", base+"/register", strings.NewReader(`{"client_name":"An app","redirect_uris":["https://app.example.com/cb"]}`))
	require.NoError(t, err)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+key.Key)
	res, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer res.Body.Close()
	require.Equal(t, 201, res.StatusCode)
	var c struct {
		URI   string `json:"registration_client_uri"`
		Token string `json:"registration_access_token"`
	}
	require.NoError(t, json.NewDecoder(res.Body).Decode(&c))
	require.Equal(t, 200, call(t, "GET", c.URI, c.Token, "", nil))
	require.Equal(t, 204, call(t, "DELETE", c.URI, c.Token, "", nil))
}

func TestPagesTakeNoFormsOfOtherSites(t *testing.T) {
	t.Parallel()
	base, stop := serve(t, "-db", filepath.Join(t.TempDir(), "tokens.db"))
	defer stop()
	req, err := http.NewRequest("POST", base+"/device", strings.NewReader("user=alice"))
	require.NoError(t, err)
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Sec-Fetch-Site", "cross-site")
	res, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer res.Body.Close()
	require.Equal(t, 403, res.StatusCode)
}

func TestHashOfASecret(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	require.NoError(t, printHash(strings.NewReader("a long enough secret\n"), &out))
	require.Contains(t, out.String(), "pbkdf2-sha256$")
	require.Error(t, printHash(strings.NewReader("short\n"), &out))
}
