package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/mod/sumdb/note"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/admin"
	"github.com/apitoken-go/apitoken/ledger"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/redisstore/redistest"
	"github.com/apitoken-go/apitoken/store/sqlitestore"
)

// TestBackupAndRestore: a copy of a running service, put back, starts no service until somebody has chosen what becomes of what was
// lost.
func TestBackupAndRestore(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	dir := shortDir(t)
	path := filepath.Join(dir, "tokens.db")
	st := boltAt(t, path)
	cfg := config(t, st, filepath.Join(dir, "tokens.key"))
	svc := start(t, cfg)
	srv, err := admin.Serve(svc, path+admin.Suffix, admin.Options{Backup: st.Backup})
	require.NoError(t, err)
	fill(t, svc)
	r := runs{t, []string{"--store", path}}

	// From the running service.
	var info backupInfo
	copied := filepath.Join(dir, "monday.db")
	r.read(&info, "backup", copied)
	require.Equal(t, testIssuer, info.Issuer)
	stat, err := os.Stat(copied)
	require.NoError(t, err)
	require.Equal(t, stat.Size(), info.Bytes)
	if runtime.GOOS != "windows" {
		require.Equal(t, os.FileMode(0o600), stat.Mode().Perm(), "it holds what the store holds")
	}
	require.Equal(t, misused, r.do("backup", copied).code, "never over another file")
	require.NoError(t, svc.Revoke(ctx, apitoken.BySubject("alice"), "after the backup"))
	require.Equal(t, unavailable, r.do("restore", copied, "--yes").code, "the service runs")
	require.NoError(t, srv.Close())
	require.Equal(t, unavailable, r.do("restore", copied, "--yes").code, "and has the file open without a socket too")
	require.NoError(t, svc.Close())
	require.NoError(t, st.Close())

	require.Equal(t, misused, r.do("restore", copied).code, "without --yes nothing is replaced")
	junk := filepath.Join(dir, "junk")
	require.NoError(t, os.WriteFile(junk, []byte("no backup"), 0o600))
	require.Equal(t, misused, r.do("restore", junk, "--yes").code)
	var kept map[string]string
	r.read(&kept, "restore", copied, "--yes")
	require.FileExists(t, kept["kept"], "what lay there is kept")

	x := r.do("doctor")
	require.Equal(t, found, x.code)
	require.Contains(t, x.out, "restored")
	x = r.do("sessions")
	require.Equal(t, refused, x.code, x.err)
	require.Contains(t, x.err, "--accept")
	r.good("restore", "--accept", "revoke")
	var p admin.Page[admin.Session]
	r.read(&p, "sessions")
	require.Empty(t, p.Items, "alice's session came back with the backup, and has ended")
	again := boltAt(t, path)
	cfg.Store = again
	start(t, cfg)
}

// TestBackupOfSQLite is made by SQLite's own means, beside the service that runs.
func TestBackupOfSQLite(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	path := filepath.Join(dir, "tokens.sqlite")
	st, err := sqlitestore.Open(path, nil)
	require.NoError(t, err)
	t.Cleanup(func() { st.Close() })
	svc := start(t, config(t, st, filepath.Join(dir, "tokens.sqlite.key")))
	fill(t, svc)
	r := runs{t, []string{"--store", path}}
	copied := filepath.Join(dir, "copy.sqlite")
	r.good("backup", copied)
	require.NoError(t, svc.Close())
	require.NoError(t, st.Close())
	r.good("restore", copied, "--yes", "--accept", "replayed")
	var p admin.Page[admin.Session]
	r.read(&p, "sessions")
	require.Len(t, p.Items, 1, "nothing was lost, by the operator's word")
}

// TestCopyBetweenStores: the service runs in the new store, and the old one says where it is.
func TestCopyBetweenStores(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	from, to := filepath.Join(dir, "tokens.db"), filepath.Join(dir, "tokens.sqlite")
	st := boltAt(t, from)
	svc := start(t, config(t, st, filepath.Join(dir, "tokens.key")))
	fill(t, svc)
	r := runs{t, []string{"--store", from}}
	require.Equal(t, unavailable, r.do("copy", "--to", "sqlite:"+to).code, "the service has it open")
	require.NoError(t, svc.Close())
	require.NoError(t, st.Close())
	var done map[string]any
	r.read(&done, "copy", "--to", "sqlite:"+to)
	require.NotZero(t, done["events"])
	x := r.do("sessions")
	require.Equal(t, failed, x.code)
	require.Contains(t, x.err, "another store now")
	require.Equal(t, found, r.do("doctor").code)
	var p admin.Page[admin.Session]
	runs{t, []string{"--store", to, "--seal-file", filepath.Join(dir, "tokens.key")}}.read(&p, "sessions")
	require.Len(t, p.Items, 1)
}

// TestPurge removes what has expired and nothing else.
func TestPurge(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	dir := shortDir(t)
	path := filepath.Join(dir, "tokens.db")
	st := boltAt(t, path)
	svc := start(t, config(t, st, filepath.Join(dir, "tokens.key")))
	fill(t, svc)
	require.NoError(t, svc.Close())
	for i := range 3 {
		_, err := st.Apply(ctx, &store.Change{ID: store.Version{byte(i + 1)}, Puts: []store.Put{{Record: store.Record{Kind: "once", ID: fmt.Sprint("old", i), Expires: 1_000}}}})
		require.NoError(t, err)
	}
	require.NoError(t, st.Close())
	r := runs{t, []string{"--store", path}}
	var got struct{ Removed map[string]int }
	r.read(&got, "purge", "--dry-run")
	require.Equal(t, map[string]int{"once": 3}, got.Removed)
	r.good("purge", "--compact")
	got.Removed = nil
	r.read(&got, "purge")
	require.Empty(t, got.Removed)
	var p admin.Page[admin.Session]
	r.read(&p, "sessions")
	require.Len(t, p.Items, 1)
}

// secrets are credentials of a service: what a scan finds.
func secrets(t *testing.T) (path string, svc *apitoken.Service, key, refresh string) {
	t.Helper()
	path = filepath.Join(shortDir(t), "tokens.db")
	svc = start(t, config(t, boltAt(t, path), strings.TrimSuffix(path, ".db")+".key"))
	_, secret, err := svc.APIKeys.Create(context.Background(), apitoken.APIKeyRequest{Subject: "alice", Scopes: apitoken.Scopes{"orders:read"}})
	require.NoError(t, err)
	return path, svc, secret.Reveal(), fill(t, svc)
}

// TestLeakScanOfADirectory finds by checksum, says where, never prints the credential, and ends it where it is told to.
func TestLeakScanOfADirectory(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	path, svc, key, refresh := secrets(t)
	srv, err := admin.Serve(svc, path+admin.Suffix, admin.Options{})
	require.NoError(t, err)
	t.Cleanup(func() { srv.Close() })
	dir := t.TempDir()
	write := func(name, text string) {
		require.NoError(t, os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	r := runs{t, nil}
	write("clean.txt", "acme_ak_"+strings.Repeat("x", 101)+"\n")
	require.Equal(t, done, r.do("leak", "scan", dir).code, "a look-alike is none")

	write("deploy/env", "A=1\nKEY="+key+"\n")
	write("log", strings.Repeat("line\n", 300_000)+"token "+refresh+" used\n") // over the border of one read
	require.NoError(t, os.Symlink(filepath.Join(dir, "log"), filepath.Join(dir, "link")))
	x := r.do("leak", "scan", dir, "--json")
	require.Equal(t, found, x.code)
	var l leaks
	require.NoError(t, json.Unmarshal([]byte(x.out), &l))
	require.Len(t, l.Items, 2)
	require.Equal(t, filepath.Join(dir, "deploy/env"), l.Items[0].File)
	require.Equal(t, 2, l.Items[0].Line)
	require.Equal(t, "API key", l.Items[0].Kind)
	require.Equal(t, 300_001, l.Items[1].Line)
	require.Equal(t, "refresh token", l.Items[1].Kind)
	for _, secret := range []string{key, refresh} {
		require.NotContains(t, x.out, secret[len(secret)-60:])
	}

	require.Equal(t, misused, r.do("leak", "scan", dir, "--revoke", "--store", path).code, "the trail has to say why")
	x = r.do("leak", "scan", dir, "--revoke", "--reason", "committed", "--store", path)
	require.Equal(t, found, x.code, x.err)
	require.Contains(t, x.err, "2 were of this service and are ended")
	_, err = svc.Validate(ctx, apitoken.Bearer(key))
	require.ErrorIs(t, err, apitoken.ErrRevoked)
}

// TestLeakScanOfAGitHistory finds what was committed once and is in no file any more, messages included.
func TestLeakScanOfAGitHistory(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("git"); err != nil {
		if os.Getenv("APITOKEN_TEST_REQUIRE") != "" {
			t.Fatal("git is not installed")
		}
		t.Skip("git is not installed; install git to run this test")
	}
	_, _, key, refresh := secrets(t)
	dir := t.TempDir()
	git := func(args ...string) {
		c := exec.Command("git", append([]string{"-C", dir, "-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false"}, args...)...)
		out, err := c.CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	git("init", "-q")
	require.NoError(t, os.WriteFile(filepath.Join(dir, "env"), []byte("KEY="+key+"\n"), 0o644))
	git("add", "env")
	git("commit", "-qm", "a key")
	git("rm", "-q", "env")
	git("commit", "-qm", "oops: "+refresh)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "readme"), []byte("clean\n"), 0o644))
	git("add", "readme")
	git("commit", "-qm", "clean")
	r := runs{t, nil}
	x := r.do("leak", "scan", dir, "--git", "--json")
	require.Equal(t, found, x.code, x.err)
	var l leaks
	require.NoError(t, json.Unmarshal([]byte(x.out), &l))
	require.Len(t, l.Items, 2)
	require.Equal(t, "commit", l.Items[0].File, "a message")
	require.Equal(t, "env", l.Items[1].File)
	require.NotEmpty(t, l.Items[1].Blob)
	require.Equal(t, misused, r.do("leak", "scan", t.TempDir(), "--git").code, "no repository")
}

// TestTokensAcrossTheBordersOfReads are found once each, on their lines, wherever the border falls.
func TestTokensAcrossTheBordersOfReads(t *testing.T) {
	t.Parallel()
	_, _, key, refresh := secrets(t)
	for shift := range 300 {
		text := strings.Repeat("x\n", 100) + strings.Repeat(".", shift) + "\n" + key + "\n" + refresh + "\n" + strings.Repeat("y\n", 400) + key
		list, n, err := findIn(strings.NewReader(text), make([]byte, 512))
		require.NoError(t, err)
		require.EqualValues(t, len(text), n)
		require.Len(t, list, 3, shift)
		require.Equal(t, []int{102, 103, 504}, []int{list[0].Line, list[1].Line, list[2].Line}, shift)
	}
}

// TestLedgerVerify: what apitoken-verify says, as one of the command's words.
func TestLedgerVerify(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	_, svc, _, _ := secrets(t)
	skey, vkey, err := note.GenerateKey(rand.Reader, "auth.example.com/audit")
	require.NoError(t, err)
	signer, err := note.NewSigner(skey)
	require.NoError(t, err)
	storage, err := ledger.OpenDir(file("ledger"), nil)
	require.NoError(t, err)
	t.Cleanup(func() { storage.Close() })
	log, err := ledger.Open(ledger.Config{Storage: storage, Signer: signer})
	require.NoError(t, err)
	t.Cleanup(func() { log.Close() })
	for e, err := range svc.Events(ctx, apitoken.EventQuery{OldestFirst: true}) {
		require.NoError(t, err)
		require.NoError(t, log.Audit(ctx, e))
	}
	signed, err := log.Seal(ctx)
	require.NoError(t, err)
	var export bytes.Buffer
	require.NoError(t, log.Export(ctx, &export, 0, log.Status().Size))
	require.NoError(t, os.WriteFile(file("export"), export.Bytes(), 0o600))
	require.NoError(t, os.WriteFile(file("checkpoint"), signed, 0o600))
	require.NoError(t, os.WriteFile(file("key"), []byte(vkey+"\n"), 0o600))
	r := runs{t, []string{"--key-file", file("key"), "--checkpoint", file("checkpoint")}}
	var v verdict
	r.read(&v, "ledger", "verify", file("export"))
	require.Equal(t, "proved", v.Verdict)
	require.Equal(t, v.Size, v.Records)
	require.Positive(t, v.Records)
	require.NoError(t, os.WriteFile(file("edited"), bytes.Replace(export.Bytes(), []byte("alice"), []byte("mallo"), 1), 0o600))
	x := r.do("ledger", "verify", file("edited"))
	require.Equal(t, found, x.code)
	require.Contains(t, x.out, "tampered")
	require.Equal(t, misused, runs{t, nil}.do("ledger", "verify", file("export")).code)
}

// TestHashSecret makes what Clients.Declare takes.
func TestHashSecret(t *testing.T) {
	t.Parallel()
	r := runs{t, nil}
	x := r.in("a secret of the host's own\n", "hash-secret")
	require.Equal(t, done, x.code, x.err)
	require.NotContains(t, x.out, "host's own")
	path := filepath.Join(shortDir(t), "tokens.db")
	svc := start(t, config(t, boltAt(t, path), path+".key"))
	require.NoError(t, svc.Clients.Declare(context.Background(), apitoken.Client{ID: "app", GrantTypes: []string{"client_credentials"}}, apitoken.NewSecret(strings.TrimSpace(x.out))))
	_, err := svc.Clients.Authenticate(context.Background(), apitoken.ClientAuth{ID: "app", Secret: apitoken.NewSecret("a secret of the host's own")})
	require.NoError(t, err)
	require.Equal(t, misused, r.in("short", "hash-secret").code)
}

// TestCompletion: each shell gets a script.
func TestCompletion(t *testing.T) {
	t.Parallel()
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		require.Contains(t, runs{t, nil}.good("completion", shell), "apitoken", shell)
	}
}

// TestDoctorFindsWhatIsBad, says what to do, and ends with 3.
func TestDoctorFindsWhatIsBad(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	// A store of 200 events whose service has stopped, and what is done to it.
	broken := func(change func(path string)) (runs, *diagnosis) {
		path := filepath.Join(shortDir(t), "tokens.db")
		st := boltAt(t, path)
		svc := start(t, config(t, st, strings.TrimSuffix(path, ".db")+".key"))
		for i := range 100 {
			require.NoError(t, svc.Revoke(ctx, apitoken.BySubject(fmt.Sprint("user", i)), "a test"))
		}
		require.NoError(t, svc.Close())
		require.NoError(t, st.Close())
		change(path)
		r := runs{t, []string{"--store", path}}
		x := r.do("doctor", "--json")
		require.Equal(t, found, x.code, "%s%s", x.out, x.err)
		var d diagnosis
		require.NoError(t, json.Unmarshal([]byte(x.out), &d))
		return r, &d
	}
	bad := func(d *diagnosis) (checks []string) {
		for _, f := range d.Findings {
			if f.Level == "bad" {
				require.NotEmpty(t, f.Do, "%s: it says what to do", f.Check)
				checks = append(checks, f.Check)
			}
		}
		return checks
	}

	if runtime.GOOS != "windows" {
		_, d := broken(func(path string) { require.NoError(t, os.Chmod(path, 0o644)) })
		require.Contains(t, bad(d), "mode")
	}
	_, d := broken(func(path string) { require.NoError(t, os.Truncate(path, 20<<10)) })
	require.Equal(t, []string{"damage"}, bad(d))
	// A byte of a record is turned: only reading all of it shows that.
	_, d = broken(func(path string) {
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		i := bytes.LastIndex(b, []byte(`"subject":"user50"`))
		require.Positive(t, i)
		b[i+len(`"subject":"use`)] ^= 1
		require.NoError(t, os.WriteFile(path, b, 0o600))
	})
	require.Equal(t, []string{"damage"}, bad(d), "%+v", d.Findings)
	_, d = broken(func(path string) { // a copy in its place
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		require.NoError(t, os.Remove(path))
		require.NoError(t, os.WriteFile(path, b, 0o600))
	})
	require.Contains(t, bad(d), "restored")
}

// TestDoctorOfRedis reads the server's settings, and opens no store there.
func TestDoctorOfRedis(t *testing.T) {
	t.Parallel()
	server := redistest.Private(t)
	client := server.Client(t)
	r := runs{t, []string{"--store", "redis://" + server.Addr}}
	out := r.good("doctor")
	require.Contains(t, out, "on the disk")
	require.NoError(t, client.ConfigSet(context.Background(), "maxmemory-policy", "allkeys-lru").Err())
	require.NoError(t, client.ConfigSet(context.Background(), "appendfsync", "everysec").Err())
	x := r.do("doctor")
	require.Equal(t, found, x.code)
	require.Contains(t, x.out, "noeviction")
	require.Contains(t, x.out, "WaitAOF")
	n, err := client.DBSize(context.Background()).Result()
	require.NoError(t, err)
	require.Zero(t, n)
	x = r.do("sessions")
	require.Equal(t, notFound, x.code, "and makes none where there is none")
	n, err = client.DBSize(context.Background()).Result()
	require.NoError(t, err)
	require.Zero(t, n)
	require.Equal(t, misused, runs{t, nil}.do("doctor", "--store", "redis://:hunter2@127.0.0.1").code)
}
