package ledger_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/mod/sumdb/note"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/ledger"
	"github.com/apitoken-go/apitoken/store/boltstore"
)

const (
	crashDir = "APITOKEN_TEST_LEDGER_DIR"
	crashKey = "APITOKEN_TEST_LEDGER_KEY"
)

// openCrashed opens the service, the vault and the ledger that live in dir.
func openCrashed(dir, skey string, publish ...ledger.Publisher) (*apitoken.Service, *ledger.Ledger, *ledger.Vault, func(), error) {
	var closers []func() error
	end := func() {
		for i := len(closers) - 1; i >= 0; i-- {
			_ = closers[i]()
		}
	}
	fail := func(err error) (*apitoken.Service, *ledger.Ledger, *ledger.Vault, func(), error) {
		end()
		return nil, nil, nil, nil, err
	}
	signer, err := note.NewSigner(skey)
	if err != nil {
		return fail(err)
	}
	st, err := boltstore.Open(filepath.Join(dir, "tokens.db"), nil)
	if err != nil {
		return fail(err)
	}
	closers = append(closers, st.Close)
	kek, err := apitoken.KeyFile(filepath.Join(dir, "vault.key"))
	if err != nil {
		return fail(err)
	}
	vault, err := ledger.OpenVault(context.Background(), filepath.Join(dir, "vault"), kek)
	if err != nil {
		return fail(err)
	}
	closers = append(closers, vault.Close)
	files, err := ledger.OpenDir(filepath.Join(dir, "ledger"), &ledger.DirOptions{SegmentRecords: 256})
	if err != nil {
		return fail(err)
	}
	closers = append(closers, files.Close)
	led, err := ledger.Open(ledger.Config{Storage: files, Vault: vault, Signer: signer, Poll: time.Millisecond, Interval: time.Second, Publish: publish})
	if err != nil {
		return fail(err)
	}
	closers = append(closers, led.Close)
	svc, err := apitoken.New(apitoken.Config{Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: st, InsecureKeysInStore: true,
		Sinks: []apitoken.Sink{{Name: "ledger", Auditor: led}}})
	if err != nil {
		return fail(err)
	}
	closers = append(closers, svc.Close)
	return svc, led, vault, end, led.Follow(svc)
}

// TestLedgerCrashChild is the process that is killed.
func TestLedgerCrashChild(t *testing.T) {
	dir := os.Getenv(crashDir)
	if dir == "" {
		t.Skip("the child of TestKillUnderLoad")
	}
	ctx := context.Background()
	var mu sync.Mutex
	say := func(what, arg string) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Println("ACK", what, arg)
	}
	publish := ledger.PublisherFunc(func(_ context.Context, signed []byte) error {
		say("checkpoint", base64.StdEncoding.EncodeToString(signed))
		return nil
	})
	svc, led, _, _, err := openCrashed(dir, os.Getenv(crashKey), publish)
	if err != nil {
		fmt.Println("ACK failed", err)
		t.Fatal(err)
	}
	for worker := range 4 {
		go func() {
			for n := 0; ; n++ {
				subject := fmt.Sprintf("u-%d-%d-%d", os.Getpid(), worker, n)
				i, err := svc.Issue(ctx, apitoken.Request{Subject: subject, Refresh: true})
				if err != nil {
					panic(err)
				}
				say("issued", i.Token.Grant())
				if n%3 == 0 {
					if err := svc.Revoke(ctx, apitoken.ByGrant(i.Token.Grant()), "crash test"); err != nil {
						panic(err)
					}
					say("revoked", i.Token.Grant())
				}
				if n%20 == 0 {
					if _, err := led.Seal(ctx); err != nil {
						panic(err)
					}
				}
			}
		}()
	}
	select {}
}

func TestKillUnderLoad(t *testing.T) {
	t.Parallel()
	rounds := 12
	if testing.Short() || underRace { // a child begins slowly under it
		rounds = 3
	}
	ctx := context.Background()
	dir := t.TempDir()
	skey, vkey, err := note.GenerateKey(rand.Reader, origin)
	require.NoError(t, err)
	key, err := note.NewVerifier(vkey)
	require.NoError(t, err)
	issued, revoked := map[string]bool{}, map[string]bool{}
	var checkpoints [][]byte
	for round := range rounds {
		cmd := exec.Command(os.Args[0], "-test.run=^TestLedgerCrashChild$")
		cmd.Env = append(os.Environ(), crashDir+"="+dir, crashKey+"="+skey)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		lines := bufio.NewScanner(out)
		limit, n := mathrand.IntN(400), 0
		for lines.Scan() {
			part := strings.SplitN(lines.Text(), " ", 3)
			if len(part) != 3 || part[0] != "ACK" {
				continue
			}
			switch part[1] {
			case "issued":
				issued[part[2]] = true
			case "revoked":
				revoked[part[2]] = true
			case "checkpoint":
				signed, err := base64.StdEncoding.DecodeString(part[2])
				if err == nil && bytes.HasSuffix(signed, []byte("\n")) {
					checkpoints = append(checkpoints, signed)
				}
			case "failed":
				t.Errorf("round %d: the directory did not open after a kill: %s", round, part[2])
			}
			if n++; n == limit+1 {
				require.NoError(t, cmd.Process.Kill()) // SIGKILL; what it said before is still read
			}
		}
		_ = cmd.Wait()
		require.Positive(t, n, "the child never started: round %d", round)
	}

	svc, led, vault, end, err := openCrashed(dir, skey)
	require.NoError(t, err, "what a kill leaves is a torn tail at most, never taken for tampering")
	defer end()
	last, err := led.Seal(ctx)
	require.NoError(t, err)
	var export bytes.Buffer
	require.NoError(t, led.Export(ctx, &export, 0, -1))
	rep, err := ledger.Verify(bytes.NewReader(export.Bytes()), ledger.Verification{Keys: ledger.Keys{Log: []note.Verifier{key}}, Checkpoint: last, Earlier: checkpoints})
	require.NoError(t, err, "every checkpoint that was ever published still holds")
	require.NotEmpty(t, checkpoints)
	require.NoError(t, led.CheckSource(ctx, svc))

	var want []string
	for e, err := range svc.Events(ctx, apitoken.EventQuery{OldestFirst: true}) {
		require.NoError(t, err)
		want = append(want, e.ID)
	}
	var got []string
	require.NoError(t, led.Leaves(ctx, 0, -1, func(l ledger.Leaf) error {
		require.Equal(t, int64(len(got)), l.Pos, "no gap and no duplicate position")
		got = append(got, l.Event.ID)
		e, erased, err := vault.Reveal(l)
		require.NoError(t, err)
		require.False(t, erased, "every person's key was durable before the record that needs it")
		switch e.Type {
		case event.Issued:
			require.True(t, strings.HasPrefix(e.Subject, "u-"))
			delete(issued, e.Grant)
		case event.Revoked:
			delete(revoked, e.Grant)
		}
		return nil
	}))
	require.Equal(t, want[:len(got)], got, "each event of the store once, in its order")
	require.Empty(t, issued, "every acknowledged token has its event in the verified log")
	require.Empty(t, revoked, "every acknowledged revocation has its event in the verified log")
	t.Logf("%d kills, %d records, %d published checkpoints", rounds, rep.Records, len(checkpoints))
}
