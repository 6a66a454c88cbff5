package boltstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/bbolt"

	"github.com/apitoken-go/apitoken/store"
)

// failCommits replaces the commit; the writer must be idle. The returned function puts the real one back.
func failCommits(s *Store, commit func(*bbolt.Tx) error) (restore func()) {
	set := func(f func(*bbolt.Tx) error) {
		_ = s.alone(context.Background(), func() error { s.commit = f; return nil })
	}
	set(commit)
	return func() { set(func(tx *bbolt.Tx) error { return tx.Commit() }) }
}

// TestFailedCommit has commits fail before and after their write became visible. The answer is neither success nor
// ErrConflict, and after it the outcome is definite: the same change, repeated, is done exactly once.
func TestFailedCommit(t *testing.T) {
	t.Parallel()
	for _, visible := range []bool{false, true} {
		t.Run(fmt.Sprint("visible ", visible), func(t *testing.T) {
			t.Parallel()
			path, ctx := filepath.Join(t.TempDir(), "tokens.db"), context.Background()
			s := openT(t, path, nil)
			v := must(t, s, []store.Put{put(store.KindRule, "a", store.Version{})}, event("1"))
			once := true
			restore := failCommits(s, func(tx *bbolt.Tx) error {
				if !once {
					return tx.Commit()
				}
				once = false
				if visible {
					_ = tx.Commit()
				} else {
					_ = tx.Rollback()
				}
				return syscall.EIO
			})
			c := &store.Change{
				ID: newVersion(), Puts: []store.Put{put(store.KindRule, "a", v), put(store.KindRule, "b", store.Version{})},
				Events: []store.Record{event("2")},
			}
			_, err := s.Apply(ctx, c)
			require.ErrorIs(t, err, ErrFailed)
			require.ErrorIs(t, err, syscall.EIO)
			require.NotErrorIs(t, err, store.ErrConflict)
			restore()

			_, err = s.Get(ctx, store.KindRule, "b")
			if visible {
				require.NoError(t, err, "what is served after the failure is there for good")
			} else {
				require.ErrorIs(t, err, store.ErrNotFound)
			}
			_, err = s.Apply(ctx, c)
			require.NoError(t, err)
			require.NoError(t, s.Close())
			s = openT(t, path, nil)
			require.False(t, s.Restored())
			require.Equal(t, []string{"a", "b"}, ids(all(t, s, store.Query{Kind: store.KindRule})))
			require.Equal(t, []string{"1", "2"}, ids(all(t, s, store.Query{Kind: store.KindEvent})), "once, not twice")
		})
	}
}

// TestFailsClosed: while the outcome of a commit cannot be made definite, nothing is answered, and it mends by itself.
func TestFailsClosed(t *testing.T) {
	t.Parallel()
	path, ctx := filepath.Join(t.TempDir(), "tokens.db"), context.Background()
	var mono struct {
		sync.Mutex
		now time.Duration
	}
	clk := newClock(nil, func() time.Duration { mono.Lock(); defer mono.Unlock(); return mono.now })
	s, err := open(path, &Options{}, clk)
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Close() })
	must(t, s, []store.Put{put(store.KindRule, "a", store.Version{})})
	aside := path + ".aside"
	restore := failCommits(s, func(tx *bbolt.Tx) error {
		_ = tx.Commit()
		_ = os.Rename(path, aside) // and the file cannot be opened again
		return syscall.EIO
	})
	c := &store.Change{ID: newVersion(), Puts: []store.Put{put(store.KindRule, "b", store.Version{})}}
	_, err = s.Apply(ctx, c)
	require.ErrorIs(t, err, ErrFailed)
	restore()
	_, err = s.Get(ctx, store.KindRule, "a")
	require.ErrorIs(t, err, ErrFailed, "nothing is served that may vanish")
	_, err = s.Follow(ctx, store.Position{}, nil, 1)
	require.ErrorIs(t, err, ErrFailed)
	_, err = s.Apply(ctx, c)
	require.ErrorIs(t, err, ErrFailed)
	require.NoFileExists(t, path, "and no fresh file is put in its place")

	require.NoError(t, os.Rename(aside, path))
	mono.Lock()
	mono.now += 2 * probeEvery
	mono.Unlock()
	_, err = s.Apply(ctx, c)
	require.NoError(t, err, "once the file can be opened, the next write mends the store")
	_, err = s.Get(ctx, store.KindRule, "b")
	require.NoError(t, err)
}

// TestInFlightIsNotServed holds a commit between its visibility and its confirmation: a reader of what it wrote waits,
// and others do not.
func TestInFlightIsNotServed(t *testing.T) {
	t.Parallel()
	s, ctx := newT(t), context.Background()
	must(t, s, []store.Put{put("grant", "other", store.Version{})})
	visible, confirm := make(chan struct{}), make(chan struct{})
	restore := failCommits(s, func(tx *bbolt.Tx) error {
		err := tx.Commit()
		close(visible)
		<-confirm
		return err
	})
	done := make(chan error, 1)
	go func() {
		_, err := s.Apply(ctx, &store.Change{ID: newVersion(), Puts: []store.Put{put(store.KindRule, "a", store.Version{})}})
		done <- err
	}()
	<-visible
	_, err := s.Get(ctx, "grant", "other")
	require.NoError(t, err)
	short, cancel := context.WithCancel(ctx)
	cancel()
	_, err = s.Get(short, store.KindRule, "a")
	require.ErrorIs(t, err, context.Canceled)
	got := make(chan error, 2)
	go func() { _, err := s.Get(ctx, store.KindRule, "a"); got <- err }()
	go func() { _, err := s.Follow(ctx, store.Position{}, nil, 1); got <- err }()
	select {
	case <-got:
		t.Fatal("a commit that the disk has not confirmed was served")
	case <-time.After(20 * time.Millisecond):
	}
	close(confirm)
	require.NoError(t, <-got)
	require.NoError(t, <-got)
	require.NoError(t, <-done)
	restore()
}

// TestReadOfACommitThatVanished: a commit becomes visible, a reader reads it and waits for the disk; that fails, and the
// file that is opened again is as it was before. The reader must not answer with what is not there.
func TestReadOfACommitThatVanished(t *testing.T) {
	t.Parallel()
	path, ctx := filepath.Join(t.TempDir(), "tokens.db"), context.Background()
	synctest.Test(t, func(t *testing.T) {
		s, err := Open(path, nil)
		require.NoError(t, err)
		must(t, s, []store.Put{put(store.KindRule, "a", store.Version{})})
		opening := s.opening.Load()
		got := make(chan error, 3)
		metas := make([]byte, 2*os.Getpagesize()) // the size of bbolt's pages
		failCommits(s, func(tx *bbolt.Tx) error {
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			if _, err := f.ReadAt(metas, 0); err != nil {
				return err
			}
			if err := tx.Commit(); err != nil {
				return err
			}
			go func() { _, err := s.Get(ctx, store.KindRule, "b"); got <- err }()
			go func() { _, err := s.Follow(ctx, store.Position{}, nil, 10); got <- err }()
			go func() { _, err := s.List(ctx, store.Query{Kind: store.KindRule}); got <- err }()
			synctest.Wait() // they have read, and wait
			if _, err := f.WriteAt(metas, 0); err != nil {
				return err
			}
			return syscall.EIO
		})
		c := &store.Change{ID: newVersion(), Puts: []store.Put{put(store.KindRule, "b", store.Version{})}}
		_, err = s.Apply(ctx, c)
		require.ErrorIs(t, err, ErrFailed)
		for range cap(got) {
			require.ErrorIs(t, <-got, ErrFailed)
		}
		// So too for one that gets the processor back only now.
		require.ErrorIs(t, s.settled(ctx, opening, func(*inFlight) bool { return true }), ErrFailed)
		require.NoError(t, s.settled(ctx, s.opening.Load(), func(*inFlight) bool { return true }))
		_, err = s.Get(ctx, store.KindRule, "b")
		require.ErrorIs(t, err, store.ErrNotFound)
		require.NoError(t, s.Close())
	})
}

// TestPanicFailsAlone: one request that panics takes no other of its group with it.
func TestPanicFailsAlone(t *testing.T) {
	t.Parallel()
	s := newT(t)
	mk := func(id string) *request {
		in := newIntent(&store.Change{ID: newVersion(), Puts: []store.Put{put(store.KindRule, id, store.Version{})}})
		return &request{sp: s.space, in: in, done: make(chan struct{})}
	}
	bad := &request{sp: s.space, step: func(*txn) error { panic("bad page") }, done: make(chan struct{})}
	group := []*request{mk("a"), bad, mk("b")}
	require.NoError(t, s.alone(context.Background(), func() error { s.commitGroup(group); return nil }))
	require.ErrorIs(t, bad.out.err, ErrDamaged)
	require.Equal(t, []string{"a", "b"}, ids(all(t, s, store.Query{Kind: store.KindRule})))
}

// TestFullDiskTakesRevocations: where the disk refuses, a rule is still written, from the reserve, and nothing else.
func TestFullDiskTakesRevocations(t *testing.T) {
	t.Parallel()
	path, ctx := filepath.Join(t.TempDir(), "tokens.db"), context.Background()
	s := openT(t, path, nil)
	must(t, s, []store.Put{put("grant", "before", store.Version{})})
	reservePath := path + ".reserve"
	require.FileExists(t, reservePath)
	restore := failCommits(s, func(tx *bbolt.Tx) error {
		if _, err := os.Stat(reservePath); err == nil {
			_ = tx.Rollback()
			return &fs.PathError{Op: "write", Path: path, Err: syscall.ENOSPC}
		}
		return tx.Commit()
	})
	grant := &store.Change{ID: newVersion(), Puts: []store.Put{put("grant", "g", store.Version{})}, Events: []store.Record{event("g")}}
	_, err := s.Apply(ctx, grant)
	require.ErrorIs(t, err, ErrFull)
	require.FileExists(t, reservePath, "a grant does not get the reserve")
	rule := &store.Change{ID: newVersion(), Puts: []store.Put{put(store.KindRule, "r", store.Version{})}, Events: []store.Record{event("r")}}
	_, err = s.Apply(ctx, rule)
	require.NoError(t, err, "a revocation does")
	disable := &store.Change{ID: newVersion(), Puts: []store.Put{put(store.KindClient, "c", store.Version{}), put(store.KindRule, "of c", store.Version{})}}
	_, err = s.Apply(ctx, disable)
	require.NoError(t, err, "so does the client that a rule disables")
	_, err = s.Apply(ctx, grant)
	require.ErrorIs(t, err, ErrFull)
	_, err = s.Purge(ctx, "grant", 1, 1)
	require.NoError(t, err, "purging goes on in the pages that there are")
	_, err = s.Get(ctx, "grant", "before")
	require.NoError(t, err, "reading goes on")
	restore()
	require.NoError(t, s.alone(ctx, func() error { s.probed -= 2 * probeEvery; return nil }))
	_, err = s.Apply(ctx, grant)
	require.NoError(t, err, "with room on the disk, everything goes on")
	require.FileExists(t, reservePath, "and the reserve is there again")
}

// TestFullTmpfs does the same on a file system of 8 MiB that is really full.
func TestFullTmpfs(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	mountSmall(t, dir, 8<<20)
	path, ctx := filepath.Join(dir, "tokens.db"), context.Background()
	s := openT(t, path, nil)
	var last error
	n := 0
	for ; last == nil && n < 10000; n++ {
		p := put("grant", fmt.Sprintf("%08d", n), store.Version{})
		p.Data = bytes.Repeat([]byte{1}, 8<<10)
		_, last = s.Apply(ctx, &store.Change{ID: newVersion(), Puts: []store.Put{p}})
	}
	require.ErrorIs(t, last, ErrFull)
	for i := range 300 {
		p := put(store.KindRule, fmt.Sprintf("%08d", i), store.Version{})
		_, err := s.Apply(ctx, &store.Change{ID: newVersion(), Puts: []store.Put{p}, Events: []store.Record{event("r")}})
		require.NoError(t, err, "revocation %d on a full disk", i)
	}
	require.NoError(t, s.Close())
	s = openT(t, path, nil)
	require.False(t, s.Restored())
	require.Len(t, all(t, s, store.Query{Kind: store.KindRule}), 300)
	require.Len(t, all(t, s, store.Query{Kind: "grant"}), n-1, "acknowledged grants are there, the refused one is not")
}

func TestRewritePagesChangesNothing(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tokens.db")
	require.NoError(t, newAt(t, path).Close())
	before, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, rewritePages(path))
	after, err := os.ReadFile(path)
	require.NoError(t, err)
	require.True(t, bytes.Equal(before, after))
}

// TestCancelledCallerDoesNotStopTheWrite: the caller gets its ctx's error, the write is done, and repeating it says so.
func TestCancelledCallerDoesNotStopTheWrite(t *testing.T) {
	t.Parallel()
	s := newT(t)
	entered, let := make(chan struct{}), make(chan struct{})
	var once sync.Once
	failCommits(s, func(tx *bbolt.Tx) error {
		once.Do(func() { close(entered); <-let })
		return tx.Commit()
	})
	ctx, cancel := context.WithCancel(context.Background())
	c := &store.Change{ID: newVersion(), Puts: []store.Put{put(store.KindRule, "a", store.Version{})}}
	errc := make(chan error)
	go func() { _, err := s.Apply(ctx, c); errc <- err }()
	<-entered
	cancel()
	require.ErrorIs(t, <-errc, context.Canceled)
	c.Puts[0].Data[0] = 'X' // read while encoding only, so even a rude caller changes nothing
	close(let)
	_, err := s.Apply(context.Background(), c)
	require.NoError(t, err)
	r, err := s.Get(context.Background(), store.KindRule, "a")
	require.NoError(t, err)
	require.Equal(t, "data of a", string(r.Data))
}

func TestMemoryIsTheCallers(t *testing.T) {
	t.Parallel()
	s, ctx := newT(t), context.Background()
	v := must(t, s, []store.Put{put(store.KindRule, "a", store.Version{})}, event("e"))
	r, err := s.Get(ctx, store.KindRule, "a")
	require.NoError(t, err)
	page, err := s.List(ctx, store.Query{Kind: store.KindEvent})
	require.NoError(t, err)
	for i := range r.Data {
		r.Data[i] = 'x'
	}
	for i := range page.Records[0].Data {
		page.Records[0].Data[i] = 'x'
	}
	r2, err := s.Get(ctx, store.KindRule, "a")
	require.NoError(t, err)
	require.Equal(t, "data of a", string(r2.Data))
	for range 50 { // what was given out stays, whatever the pages become
		v = must(t, s, []store.Put{put(store.KindRule, "a", v)})
	}
	require.NoError(t, s.Compact(ctx))
	require.Equal(t, "data of a", string(r2.Data))
}

// TestCallerOfBackupMayWrite: no read transaction is open while the caller's writer runs.
func TestCallerOfBackupMayWrite(t *testing.T) {
	t.Parallel()
	s := newT(t)
	must(t, s, []store.Put{put(store.KindRule, "a", store.Version{})})
	n := 0
	err := s.Backup(context.Background(), writerFunc(func(b []byte) (int, error) {
		n++
		p := put("grant", fmt.Sprint(n), store.Version{})
		p.Data = make([]byte, store.MaxData)
		_, err := s.Apply(context.Background(), &store.Change{ID: newVersion(), Puts: []store.Put{p}})
		return len(b), err
	}))
	require.NoError(t, err)
	require.NotZero(t, n)
	ctx, cancel := context.WithCancel(context.Background())
	err = s.Backup(ctx, writerFunc(func(b []byte) (int, error) { cancel(); return len(b), nil }))
	if err != nil { // a file of one piece may already be out
		require.ErrorIs(t, err, context.Canceled)
	}
	boom := errors.New("boom")
	require.ErrorIs(t, s.Backup(context.Background(), writerFunc(func([]byte) (int, error) { return 0, boom })), boom)
	require.ErrorIs(t, s.Backup(ctx, io.Discard), context.Canceled)
	left, err := filepath.Glob(s.path + tempName + "*")
	require.NoError(t, err)
	require.Empty(t, left, "no copy is left behind")
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// TestCutWhileOpen: another program shortens the file under the map. Reading and writing answer errors.
func TestCutWhileOpen(t *testing.T) {
	t.Parallel()
	for _, size := range []int64{0, 4096, 3 * 4096} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			t.Parallel()
			path, ctx := filepath.Join(t.TempDir(), "tokens.db"), context.Background()
			s := newAt(t, path)
			require.NoError(t, os.Truncate(path, size))
			_, err := s.Get(ctx, store.KindRule, "a")
			require.Error(t, err)
			_, err = s.Apply(ctx, &store.Change{ID: newVersion(), Puts: []store.Put{put(store.KindRule, "z", store.Version{})}})
			require.Error(t, err)
			require.NotErrorIs(t, err, store.ErrConflict)
			require.Error(t, s.Close())
			_, err = Open(path, nil)
			require.Error(t, err, "and what is left is not taken for a store")
		})
	}
}
