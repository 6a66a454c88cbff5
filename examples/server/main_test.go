package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

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
	require.Equal(t, 204, call(t, "POST", base+"/logout", next.Access, "", nil))
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
}
