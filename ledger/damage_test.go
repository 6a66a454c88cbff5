package ledger_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/ledger"
)

// state.db is mapped into memory, where a page behind the end of the file is a SIGBUS: it would end the host's process.
func TestADamagedStateIsAnError(t *testing.T) {
	t.Parallel()
	path := ledgerPath(t)
	l := open(t, path, nil)
	for i := range 5 {
		require.NoError(t, l.Audit(context.Background(), anEvent(i)))
	}
	seal(t, l)
	l.shut()
	name := filepath.Join(path, "state.db")
	good, err := os.ReadFile(name)
	require.NoError(t, err)

	try := func(b []byte) error {
		dir := filepath.Join(t.TempDir(), "l")
		require.NoError(t, os.CopyFS(dir, os.DirFS(path)))
		require.NoError(t, os.WriteFile(filepath.Join(dir, "state.db"), b, 0o600))
		d, err := ledger.OpenDir(dir, &ledger.DirOptions{LockTimeout: 10 * time.Millisecond})
		if err != nil {
			return err
		}
		_, err = d.Checkpoints(context.Background(), 0, 10)
		require.NoError(t, d.Close())
		return err
	}
	require.NoError(t, try(good))
	whole := false // a file may have unused pages at its end
	for cut := 0; cut < len(good); cut += 1024 {
		err := try(good[:cut])
		if whole = whole || cut > len(good)/2 && err == nil; whole {
			require.NoError(t, err)
			continue
		}
		var tampered *ledger.TamperError
		require.ErrorAs(t, err, &tampered, "cut to %d of %d bytes", cut, len(good))
	}
	step := 61
	if testing.Short() {
		step = 509
	}
	for at := 0; at < len(good); at += step {
		b := append([]byte(nil), good...)
		for i := at; i < min(at+8, len(b)); i++ {
			b[i] ^= 0xff
		}
		_ = try(b) // what counts is that it comes back: most of the file is free
	}
}

// The same happens to a file that is cut while it is open.
func TestAStateThatIsCutWhileItIsOpen(t *testing.T) {
	t.Parallel()
	for _, keep := range []int64{0, 4096, 8192, 12288} {
		path := ledgerPath(t)
		d, err := ledger.OpenDir(path, nil)
		require.NoError(t, err)
		signer, _ := keyPair(t, "log")
		l, err := ledger.Open(ledger.Config{Storage: d, Signer: signer, Interval: time.Hour, Poll: time.Hour})
		require.NoError(t, err)
		require.NoError(t, l.Audit(context.Background(), anEvent(0)))
		require.NoError(t, os.Truncate(filepath.Join(path, "state.db"), keep))

		done := make(chan error, 1)
		go func() {
			err := l.Audit(context.Background(), anEvent(1))
			_, _ = d.Checkpoints(context.Background(), 0, 1)
			_ = l.Close()
			_ = d.Close()
			done <- err
		}()
		select {
		case err := <-done:
			require.Error(t, err, "kept %d bytes", keep)
		case <-time.After(20 * time.Second):
			t.Fatalf("kept %d bytes: it hangs", keep)
		}
	}
}
