package main

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/admin"
	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/store/boltstore"
	"github.com/apitoken-go/apitoken/store/pgstore"
	"github.com/apitoken-go/apitoken/store/pgstore/pgtest"
	"github.com/apitoken-go/apitoken/store/sqlitestore"
)

// The tests run the command as a process of its own: this binary, told by its environment to be the command.
func TestMain(m *testing.M) {
	if os.Getenv("APITOKEN_TEST_COMMAND") != "" {
		main()
	}
	os.Exit(m.Run())
}

const testIssuer = "https://auth.example.com"

// result is what a process said and how it ended.
type result struct {
	out, err string
	code     int
}

// command starts the command.
func command(ctx context.Context, in string, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, os.Args[0], args...)
	c.Env = []string{"APITOKEN_TEST_COMMAND=1", "HOME=" + os.TempDir(), "PATH=" + os.Getenv("PATH"), "TZ=UTC"}
	c.Stdin = strings.NewReader(in)
	return c
}

// runs runs the command with what every call of a test has in common.
type runs struct {
	t      *testing.T
	common []string
}

func (r runs) in(in string, args ...string) result {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c := command(ctx, in, append(args, r.common...)...)
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	err := c.Run()
	if err != nil && c.ProcessState == nil {
		require.NoError(r.t, err)
	}
	return result{out.String(), errs.String(), c.ProcessState.ExitCode()}
}

func (r runs) do(args ...string) result { r.t.Helper(); return r.in("", args...) }

// good runs it and demands that it is done.
func (r runs) good(args ...string) string {
	r.t.Helper()
	x := r.do(args...)
	require.Equal(r.t, done, x.code, "%v: %s%s", args, x.out, x.err)
	return x.out
}

// read runs it with --json and reads what it prints.
func (r runs) read(into any, args ...string) {
	r.t.Helper()
	out := r.good(append(args, "--json")...)
	require.NoError(r.t, json.Unmarshal([]byte(out), into), "%v: %s", args, out)
}

// shortDir is a directory whose name leaves room for a socket's.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "cli")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// world is a service on a store, as the flows find it.
type world struct {
	runs
	refresh string // of alice's session
	stopped bool   // no service runs, as far as the command can tell
}

// fill makes what the flows need: a session of alice's.
func fill(t *testing.T, svc *apitoken.Service) string {
	t.Helper()
	i, err := svc.Issue(context.Background(), apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"orders:read"}, Refresh: true})
	require.NoError(t, err)
	return i.Refresh.Reveal()
}

func config(t *testing.T, st apitoken.Store, keyFile string) apitoken.Config {
	t.Helper()
	seal, err := apitoken.KeyFile(keyFile)
	require.NoError(t, err)
	// What the command cannot guess, and must not change: it takes it from the store.
	return apitoken.Config{Issuer: testIssuer, Audience: "https://api.example.com", Store: st, Seal: seal, Algorithm: "EdDSA", Prefix: "acme",
		Lifetimes: apitoken.Lifetimes{Access: time.Minute, MaxAccess: 10 * time.Minute, Grant: 48 * time.Hour}}
}

func start(t *testing.T, c apitoken.Config) *apitoken.Service {
	t.Helper()
	svc, err := apitoken.New(c)
	require.NoError(t, err)
	t.Cleanup(func() { svc.Close() })
	return svc
}

func boltAt(t *testing.T, path string) *boltstore.Store {
	t.Helper()
	st, err := boltstore.Open(path, nil)
	require.NoError(t, err)
	t.Cleanup(func() { st.Close() })
	return st
}

// TestARunningServiceOnBbolt: nobody else can open the file, and the command finds the socket beside it.
func TestARunningServiceOnBbolt(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "tokens.db")
	st := boltAt(t, path)
	svc := start(t, config(t, st, strings.TrimSuffix(path, ".db")+".key"))
	w := world{runs{t, []string{"--store", path}}, fill(t, svc), false}

	x := w.do("sessions")
	require.Equal(t, unavailable, x.code)
	require.Contains(t, x.err, "admin.Serve", "it says what to do")
	require.Equal(t, found, w.do("doctor").code)

	srv, err := admin.Serve(svc, path+admin.Suffix, admin.Options{Backup: st.Backup})
	require.NoError(t, err)
	t.Cleanup(func() { srv.Close() })
	flows(t, w)
}

// TestAStoppedServiceOnBbolt: the command opens the file itself.
func TestAStoppedServiceOnBbolt(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "tokens.db")
	st := boltAt(t, path)
	svc := start(t, config(t, st, strings.TrimSuffix(path, ".db")+".key"))
	w := world{runs{t, []string{"--store", path}}, fill(t, svc), true}
	require.NoError(t, svc.Close())
	require.NoError(t, st.Close())
	flows(t, w)
}

// TestAServiceOnSQLite may run or not: several processes share the file.
func TestAServiceOnSQLite(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	path := filepath.Join(dir, "tokens.sqlite")
	st, err := sqlitestore.Open(path, nil)
	require.NoError(t, err)
	t.Cleanup(func() { st.Close() })
	svc := start(t, config(t, st, filepath.Join(dir, "seal.key")))
	flows(t, world{runs{t, []string{"--store", path, "--seal-file", filepath.Join(dir, "seal.key")}}, fill(t, svc), true})
}

// TestAServiceOnPostgres may run or not.
func TestAServiceOnPostgres(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	server := pgtest.Start(t)
	dir := shortDir(t)
	pool, err := pgxpool.New(ctx, server.URL)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	st, err := pgstore.New(ctx, pool, nil)
	require.NoError(t, err)
	t.Cleanup(func() { st.Close() })
	name := filepath.Base(dir)
	svc := start(t, config(t, st.Namespace(name), filepath.Join(dir, "seal.key")))
	url := filepath.Join(dir, "url")
	require.NoError(t, os.WriteFile(url, []byte(server.URL+"\n"), 0o600))
	flows(t, world{runs{t, []string{"--store-file", url, "--namespace", name, "--seal-file", filepath.Join(dir, "seal.key")}}, fill(t, svc), true})
}

// flows is what an operator does, the same on every store.
func flows(t *testing.T, w world) {
	t.Helper()
	// Sessions.
	var sessions admin.Page[admin.Session]
	w.read(&sessions, "sessions", "--subject", "alice")
	require.Len(t, sessions.Items, 1)
	require.Contains(t, w.good("sessions"), sessions.Items[0].ID)

	// An API key, from its making to its end. The secret alone is on the output.
	create := []string{"keys", "create", "--subject", "alice", "--name", "deploy", "--scopes", "orders:read,orders:write", "--expires", "90d"}
	if w.stopped {
		x := w.do(create...)
		require.Equal(t, misused, x.code, "nothing in the store says how keys begin, and one that begins otherwise would be refused")
		require.Contains(t, x.err, "--prefix")
		create = append(create, "--prefix", "acme")
	}
	x := w.do(create...)
	require.Equal(t, done, x.code, x.err)
	secret := strings.TrimSpace(x.out)
	require.True(t, strings.HasPrefix(secret, "acme_ak_"), "the service's own prefix")
	require.NotContains(t, x.err, secret)
	var keys admin.Page[admin.Key]
	w.read(&keys, "keys", "--subject", "alice")
	require.Len(t, keys.Items, 1)
	id := keys.Items[0].ID
	require.NotContains(t, w.good("keys", "show", id), secret)
	x = w.in(secret, "inspect", "--needs", "orders:read")
	require.Equal(t, done, x.code, x.out)
	require.NotContains(t, x.out+x.err, secret[len(secret)-20:], "the secret itself is never printed")
	require.Equal(t, found, w.in("Bearer "+secret, "inspect", "--needs", "users:read").code)
	w.good("keys", "rename", id, "deploy, Berlin")
	var k admin.Key
	w.read(&k, "keys", "edit", id, "--scopes", "orders:read", "--expires", "never", "--metadata", "team=ops,ticket=7")
	require.Equal(t, apitoken.Scopes{"orders:read"}, k.Scopes)
	require.Equal(t, "deploy, Berlin", k.Name, "what is not named stays")
	require.True(t, k.Expires.IsZero())
	k = admin.Key{}
	w.read(&k, "keys", "edit", id, "--metadata", "ticket=", "--expires", "30d")
	require.Equal(t, map[string]string{"team": "ops"}, k.Metadata)
	require.Equal(t, misused, w.do("keys", "edit", id).code, "nothing to change")
	require.Contains(t, w.good("keys", "disable", id), "disabled")
	require.Contains(t, w.good("keys", "--subject", "alice"), "disabled")
	require.Equal(t, found, w.in(secret, "inspect").code)
	require.Contains(t, w.good("keys", "enable", id), "active")
	var next admin.MadeKey
	w.read(&next, "keys", "rotate", id, "--overlap", "1h")
	w.good("keys", "revoke", id, "--reason", "left the team")
	x = w.in(secret, "inspect")
	require.Equal(t, found, x.code)
	require.Contains(t, x.out, "revoked")
	require.Equal(t, done, w.in(next.Secret, "inspect").code, "its successor lives")

	// Clients and roles.
	x = w.do("clients", "create", "--id", "reports", "--name", "Reports", "--grant-types", "client_credentials", "--scopes", "orders")
	require.Equal(t, done, x.code, x.err)
	require.NotEqual(t, strings.TrimSpace(x.out), strings.TrimSpace(w.good("clients", "rotate-secret", "reports")))
	w.good("clients", "disable", "reports")
	require.Contains(t, w.good("clients", "show", "reports"), "disabled")
	w.good("clients", "enable", "reports")
	require.Equal(t, notFound, w.do("clients", "show", "nobody").code)
	w.good("roles", "set", "support", "orders:read")
	require.Contains(t, w.good("roles"), "support")

	// The end of everything that alice holds.
	require.Equal(t, misused, w.do("revoke", "subject", "alice").code, "without a reason")
	w.good("revoke", "subject", "alice", "--reason", "a lost laptop", "--as", "carol")
	w.read(&sessions, "sessions", "--subject", "alice")
	require.Empty(t, sessions.Items)
	var ended map[string]int
	x = w.in("a log line with "+next.Secret, "revoke", "--leaked", "-", "--reason", "in a log", "--json")
	require.Equal(t, done, x.code, x.err)
	require.NoError(t, json.Unmarshal([]byte(x.out), &ended))

	// The trail says who did it, and why.
	var e apitoken.Event
	out := strings.TrimSpace(w.good("events", "--type", "token.revoked", "--subject", "alice", "--actor", "carol", "--json"))
	require.NoError(t, json.Unmarshal([]byte(out), &e), out)
	require.Equal(t, "a lost laptop", e.Reason)
	lines := strings.Split(strings.TrimSpace(w.good("events", "--json", "--limit", "0")), "\n")
	require.Greater(t, len(lines), 8)
	for _, line := range lines {
		require.NoError(t, json.Unmarshal([]byte(line), &e))
		require.NotContains(t, line, secret[20:60])
	}

	// The ring: the same key signs, however the command opened the store, until somebody rotates.
	var ring admin.Page[admin.SigningKeyInfo]
	w.read(&ring, "signing-keys")
	require.Len(t, ring.Items, 1, "nothing but a rotation makes a key")
	require.Equal(t, "EdDSA", ring.Items[0].Algorithm)
	w.good("signing-keys", "rotate")
	w.read(&ring, "signing-keys")
	require.Len(t, ring.Items, 2)
	require.Equal(t, misused, w.do("signing-keys", "compromise", ring.Items[0].ID, "--reason", "a test").code, "without --yes")

	// The doctor finds it well, but for the key that ends in 90 days, which is none of the next 30.
	var d diagnosis
	w.read(&d, "doctor")
	for _, f := range d.Findings {
		require.NotEqual(t, "bad", f.Level, "%s: %s", f.Check, f.Detail)
	}
}

// TestFollow: events come as they happen, as JSON Lines, once each.
func TestFollow(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "tokens.db")
	svc := start(t, config(t, boltAt(t, path), path+".key"))
	srv, err := admin.Serve(svc, path+admin.Suffix, admin.Options{})
	require.NoError(t, err)
	t.Cleanup(func() { srv.Close() })
	fill(t, svc)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	c := command(ctx, "", "events", "--follow", "--json", "--type", "token.issued", "--store", path)
	out, err := c.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, c.Start())
	lines := json.NewDecoder(out)
	seen := map[string]bool{}
	for range 5 {
		var e apitoken.Event
		require.NoError(t, lines.Decode(&e))
		require.False(t, seen[e.ID], "once")
		seen[e.ID] = true
		fill(t, svc)
	}
	require.NoError(t, c.Process.Signal(os.Interrupt))
	_ = c.Wait() // what was made meanwhile may come still
	require.Equal(t, done, c.ProcessState.ExitCode(), "an interrupt is how it ends")
}

// TestOverHTTPS: the API key comes from a file or the standard input, its scope decides, and the trail has its subject.
func TestOverHTTPS(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	dir := shortDir(t)
	svc := start(t, config(t, boltAt(t, filepath.Join(dir, "tokens.db")), filepath.Join(dir, "tokens.key")))
	fill(t, svc)
	h, err := admin.Handler(svc, admin.Options{Scope: "operate"})
	require.NoError(t, err)
	server := httptest.NewTLSServer(h)
	t.Cleanup(server.Close)
	ca := filepath.Join(dir, "ca.pem")
	require.NoError(t, os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600))
	key := func(scope apitoken.Scope) string {
		_, secret, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "olga", Scopes: apitoken.Scopes{scope}})
		require.NoError(t, err)
		return secret.Reveal()
	}
	r := runs{t, []string{"--admin", server.URL, "--ca-file", ca, "--api-key-file", "-"}}
	x := r.in(key("operate:read"), "sessions", "--json")
	require.Equal(t, done, x.code, x.err)
	require.Contains(t, x.out, "alice")
	x = r.in(key("operate:read"), "revoke", "subject", "alice", "--reason", "a test")
	require.Equal(t, refused, x.code)
	require.Contains(t, x.err, "scope:write")
	require.Equal(t, refused, r.in(key("orders"), "sessions").code)
	require.Equal(t, refused, r.in("acme_ak_nothing", "sessions").code)
	require.Equal(t, done, r.in(key("operate"), "revoke", "subject", "alice", "--reason", "a test", "--as", "somebody").code)
	list, _, err := svc.EventPage(ctx, apitoken.EventQuery{Type: event.Revoked}, "", 1)
	require.NoError(t, err)
	require.Equal(t, "olga", list[0].Actor)
	r.common = []string{"--admin", server.URL, "--api-key-file", "-"}
	require.Equal(t, unavailable, r.in(key("operate"), "sessions").code, "a certificate that nobody vouches for gets no key")
}

// TestSecretsAreNoArguments: what is typed by mistake is refused, and shown by nobody.
func TestSecretsAreNoArguments(t *testing.T) {
	t.Parallel()
	r := runs{t, nil}
	key := "acme_ak_" + strings.Repeat("x", 101)
	for _, args := range [][]string{
		{"inspect", key}, {"inspect", "eyJhbGciOiJFUzI1NiJ9.e30.c2ln"},
		{"revoke", "token", key, "--reason", "x", "--store", "none.db"},
		{"sessions", "--store", "postgres://alice:hunter2hunter2@db/tokens"},
		{"sessions", "--store", "postgres://db/tokens?password=hunter2hunter2"},
		{"sessions", "--admin", "https://alice:hunter2hunter2@auth.example.com"},
		{"sessions", "--limit", key}, {"sessions", key},
	} {
		x := r.do(args...)
		require.Equal(t, misused, x.code, args)
		require.NotContains(t, x.out+x.err, "hunter2")
		require.NotContains(t, x.out+x.err, "xxxxxxxx")
	}
}

// TestWhatToDoNext: an error says it, and the exit code its class.
func TestWhatToDoNext(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	at := func(name string, content string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(content), mode))
		return path
	}
	r := runs{t, nil}
	for name, x := range map[string]struct {
		args []string
		code int
		says string
	}{
		"no service":       {[]string{"sessions"}, misused, "--store"},
		"no store":         {[]string{"sessions", "--store", filepath.Join(dir, "none.db")}, notFound, "--store"},
		"no socket":        {[]string{"sessions", "--admin", filepath.Join(dir, "none.admin")}, unavailable, "admin.Serve"},
		"no key":           {[]string{"sessions", "--admin", "https://auth.example.com"}, misused, "--api-key-file"},
		"another file":     {[]string{"sessions", "--store", at("foreign.db", "no store of this module", 0o600)}, misused, "store's file"},
		"an unknown word":  {[]string{"session"}, misused, "apitoken help"},
		"an unknown flag":  {[]string{"sessions", "--sbject", "alice"}, misused, "apitoken help"},
		"a wrong time":     {[]string{"events", "--from", "yesterday", "--store", "x.db"}, misused, "12h"},
		"an empty input":   {[]string{"inspect"}, misused, "one line"},
		"too much to read": {[]string{"inspect", at("large", strings.Repeat("x", 1<<20), 0o600)}, misused, "over"},
	} {
		got := r.do(x.args...)
		require.Equal(t, x.code, got.code, "%s: %s", name, got.err)
		require.Contains(t, got.err, x.says, name)
		require.Empty(t, got.out, name)
	}
}

// TestInspectWithoutAService says what a token says, and that nothing was checked.
func TestInspectWithoutAService(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "tokens.db")
	svc := start(t, config(t, boltAt(t, path), path+".key"))
	i, err := svc.Issue(context.Background(), apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"orders:read"}, Refresh: true})
	require.NoError(t, err)
	r := runs{t, nil}
	x := r.in(i.Access.Reveal(), "inspect")
	require.Equal(t, done, x.code)
	require.Contains(t, x.out, "alice")
	require.Contains(t, x.out, "EdDSA")
	require.Contains(t, x.out, "Nothing of this was checked")
	var c inspection
	x = r.in(i.Refresh.Reveal(), "inspect", "--json")
	require.Equal(t, done, x.code)
	require.NoError(t, json.Unmarshal([]byte(x.out), &c))
	require.Equal(t, "refresh token", c.Kind)
	require.Equal(t, i.Token.Grant(), c.ID)
	for _, bad := range []string{"nothing", i.Refresh.Reveal()[:60], "a.b.c", i.Refresh.Reveal() + "x"} {
		require.Equal(t, found, r.in(bad, "inspect").code, bad)
	}
}

// TestHostileNames: what a stranger chose does not reach the terminal as it is.
func TestHostileNames(t *testing.T) {
	t.Parallel()
	require.Equal(t, "a�[31mb�c", clean("a\x1b[31mb\nc"))
	require.Equal(t, "�evil", clean("\u202eevil"))
	widths := []int{30, 10, 60}
	fit(widths, 80)
	require.Equal(t, []int{30, 10, 36}, widths, "the widest column is cut, to what the terminal has")
	fit(widths, 10)
	require.Equal(t, []int{6, 6, 6}, widths, "never to nothing")
}
