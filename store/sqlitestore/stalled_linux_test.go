package sqlitestore_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/apitoken-go/apitoken/store/sqlitestore"
	"github.com/apitoken-go/apitoken/store/storetest"
)

// SQLite itself gets no lock, for reading neither, and sleeps for seconds in a call that hears of no context: no verb waits
// for that.
func TestStalled(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tokens.db")
	s := open(t, path, &sqlitestore.Options{Timeout: 3 * time.Second})
	defer s.Close()
	apply(t, s, rule("r"))
	shm, err := os.OpenFile(path+"-shm", os.O_RDWR, 0)
	require.NoError(t, err)
	defer shm.Close()
	// The bytes of SQLite's locks on the log: to write, to checkpoint, to recover, and five to read.
	l := unix.Flock_t{Type: unix.F_WRLCK, Start: 120, Len: 8}
	require.Eventually(t, func() bool { return unix.FcntlFlock(shm.Fd(), unix.F_OFD_SETLK, &l) == nil }, time.Minute, time.Millisecond)
	storetest.Stalled(t, s, time.Minute)
	l.Type = unix.F_UNLCK
	require.NoError(t, unix.FcntlFlock(shm.Fd(), unix.F_OFD_SETLK, &l))
	require.Eventually(t, func() bool { _, err := s.Apply(t.Context(), rule("r2")); return err == nil }, time.Minute, 10*time.Millisecond)
}
