package boltstore

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/bbolt"

	"github.com/apitoken-go/apitoken/store"
)

// verbs calls everything that a store offers, each with its own name.
func verbs(s *Store) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"Get": func(ctx context.Context) error { _, err := s.Get(ctx, store.KindRule, "a"); return err },
		"Apply": func(ctx context.Context) error {
			_, err := s.Apply(ctx, &store.Change{ID: newVersion(), Puts: []store.Put{put(store.KindRule, "z", store.Version{})}})
			return err
		},
		"Follow": func(ctx context.Context) error {
			_, err := s.Follow(ctx, store.Position{}, []store.Kind{store.KindRule}, 9)
			return err
		},
		"List":        func(ctx context.Context) error { _, err := s.List(ctx, store.Query{Kind: store.KindEvent}); return err },
		"Purge":       func(ctx context.Context) error { _, err := s.Purge(ctx, store.KindRule, 1<<50, 9); return err },
		"Events":      func(ctx context.Context) error { _, err := s.Purge(ctx, store.KindEvent, 1<<50, 9); return err },
		"Wait":        func(ctx context.Context) error { return s.Wait(ctx, store.Position{History: s.history, N: 1 << 62}) },
		"SetReadOnly": func(ctx context.Context) error { return s.SetReadOnly(ctx, true) },
		"Backup":      func(ctx context.Context) error { return s.Backup(ctx, io.Discard) },
		"Compact":     s.Compact,
	}
}

// ends fails the test if f has not returned after a time that no working call takes.
func ends(t *testing.T, what string, f func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-time.After(time.Minute):
		buf := make([]byte, 1<<20)
		t.Fatalf("%s never returns\n%s", what, buf[:runtime.Stack(buf, true)])
		return nil
	}
}

// TestOverwrittenWhileOpen: another program writes over the file under the map. Every call returns, and none says that
// something was done.
func TestOverwrittenWhileOpen(t *testing.T) {
	t.Parallel()
	for name, harm := range map[string]func(b []byte, pageSize int){
		"both meta pages zero": func(b []byte, ps int) { clear(b[:2*ps]) },
		"both meta pages garbage": func(b []byte, ps int) {
			rnd := rand.New(rand.NewPCG(1, 1))
			for i := range b[:2*ps] {
				b[i] = byte(rnd.Uint32())
			}
		},
		"all zero": func(b []byte, _ int) { clear(b) },
	} {
		for _, first := range []string{"Get", "Apply", "Follow", "List", "Purge", "SetReadOnly", "Compact", "Close", "all at once"} {
			t.Run(name+", "+first, func(t *testing.T) {
				t.Parallel()
				ctx := context.Background()
				path := filepath.Join(t.TempDir(), "tokens.db")
				s := openT(t, path, &Options{Timeout: 5 * time.Second})
				must(t, s, []store.Put{put(store.KindRule, "a", store.Version{})}, event("e"))
				b, err := os.ReadFile(path)
				require.NoError(t, err)
				harm(b, os.Getpagesize())
				f, err := os.OpenFile(path, os.O_WRONLY, 0)
				require.NoError(t, err)
				_, err = f.WriteAt(b, 0)
				require.NoError(t, err)
				require.NoError(t, f.Close())

				calls := verbs(s)
				if first == "all at once" {
					var wg sync.WaitGroup
					for name, call := range calls {
						for range 4 {
							wg.Add(1)
							go func() { defer wg.Done(); _ = ends(t, name, func() error { return call(ctx) }) }()
						}
					}
					wg.Wait()
				} else if first != "Close" {
					require.Error(t, ends(t, first, func() error { return calls[first](ctx) }))
					for name, call := range calls {
						require.Error(t, ends(t, name, func() error { return call(ctx) }), name)
					}
				}
				_ = ends(t, "Close", s.Close)
				_, err = Open(path, &Options{LockTimeout: -1})
				require.Error(t, err, "what is left is not taken for a store")
				for name, call := range calls {
					require.Error(t, ends(t, name, func() error { return call(ctx) }), "after Close")
				}
			})
		}
	}
}

// TestTimeout holds a commit as a disk does that does not answer: every verb and Close return after the store's own
// Timeout, without a deadline of the caller's, and the store ends as it should once the disk answers.
func TestTimeout(t *testing.T) {
	t.Parallel()
	path, ctx := filepath.Join(t.TempDir(), "tokens.db"), context.Background()
	synctest.Test(t, func(t *testing.T) {
		s, err := Open(path, &Options{Timeout: 3 * time.Second})
		require.NoError(t, err)
		must(t, s, []store.Put{put(store.KindRule, "a", store.Version{})}, event("e"))
		hung := make(chan struct{})
		failCommits(s, func(tx *bbolt.Tx) error {
			err := tx.Commit()
			<-hung
			return err
		})
		c := &store.Change{ID: newVersion(), Puts: []store.Put{put(store.KindRule, "b", store.Version{})}}
		for _, call := range []struct {
			name string
			f    func() error
		}{
			{"Apply", func() error { _, err := s.Apply(ctx, c); return err }},
			{"Apply again", func() error { _, err := s.Apply(ctx, c); return err }},
			{"Get", func() error { _, err := s.Get(ctx, store.KindRule, "b"); return err }},
			{"Follow", func() error { _, err := s.Follow(ctx, store.Position{}, nil, 9); return err }},
			{"List", func() error { _, err := s.List(ctx, store.Query{Kind: store.KindRule}); return err }},
			{"Purge", func() error { _, err := s.Purge(ctx, store.KindRule, 1, 9); return err }},
			{"SetReadOnly", func() error { return s.SetReadOnly(ctx, true) }},
			{"Close", s.Close},
		} {
			start := time.Now()
			err := call.f()
			if call.name == "Purge" && err == nil {
				continue // there was nothing to purge
			}
			require.ErrorIs(t, err, context.DeadlineExceeded, call.name)
			require.Equal(t, 3*time.Second, time.Since(start), call.name)
		}

		close(hung)
		synctest.Wait()
		require.NoError(t, s.Close(), "the disk has answered")
		s, err = Open(path, nil)
		require.NoError(t, err, "the lock is free")
		_, err = s.Get(ctx, store.KindRule, "b")
		require.NoError(t, err, "a write whose caller has gone is done")
		require.NoError(t, s.Close())
	})
}

// TestReadersAreUsedAgain: a read takes a goroutine that an earlier one left, whose caller has its answer. One whose caller
// gave up is never given to another: it may come back in the middle of that one's read.
func TestReadersAreUsedAgain(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tokens.db")
	synctest.Test(t, func(t *testing.T) {
		s, err := Open(path, &Options{Timeout: 3 * time.Second})
		require.NoError(t, err)
		ctx := context.Background()
		number := func(n int, wait <-chan struct{}) (int, error) {
			return bounded(ctx, s, func(context.Context) (int, error) {
				if wait != nil {
					<-wait
				}
				return n, nil
			})
		}
		for n := range 100 {
			got, err := number(n, nil)
			require.NoError(t, err)
			require.Equal(t, n, got)
		}
		require.Len(t, s.readers.idle, 1)

		hung := make(chan struct{})
		_, err = number(-1, hung)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Empty(t, s.readers.idle, "the reader that hangs is nobody's")
		require.EqualValues(t, 1, s.left.Load())
		for n := range 100 {
			got, err := number(n, nil)
			require.NoError(t, err)
			require.Equal(t, n, got)
			if n == 50 {
				close(hung)
				synctest.Wait()
				require.Zero(t, s.left.Load())
			}
		}

		// A caller whose context ends leaves, too; many at once get as many readers, of which some are kept.
		gone, cancel := context.WithCancel(ctx)
		cancel()
		_, err = bounded(gone, s, func(context.Context) (int, error) { return 1, nil })
		require.ErrorIs(t, err, context.Canceled)
		all := make(chan struct{})
		var wg sync.WaitGroup
		for n := range 2 * maxIdle {
			wg.Go(func() {
				got, err := number(n, all)
				require.NoError(t, err)
				require.Equal(t, n, got)
			})
		}
		synctest.Wait()
		close(all)
		wg.Wait()
		require.Len(t, s.readers.idle, maxIdle)

		late := make(chan struct{})
		wg.Go(func() { _, _ = number(0, late) })
		synctest.Wait()
		require.NoError(t, s.Close())
		require.Empty(t, s.readers.idle)
		close(late)
		wg.Wait() // and the bubble ends only when every reader has
	})
}

func TestExposedFile(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		t.Skip("permission bits mean nothing here")
	}
	path := filepath.Join(t.TempDir(), "tokens.db")
	require.NoError(t, newAt(t, path).Close())
	for _, tc := range []struct {
		mode, allow os.FileMode
		ok          bool
	}{
		{0o600, 0, true}, {0o400, 0, true}, {0o700, 0, true},
		{0o644, 0, false}, {0o640, 0, false}, {0o604, 0, false}, {0o620, 0, false}, {0o602, 0, false}, {0o601, 0, false},
		{0o660, 0o060, true}, {0o640, 0o060, true}, {0o664, 0o060, false}, {0o660, 0o040, false},
	} {
		require.NoError(t, os.Chmod(path, tc.mode))
		before, err := os.ReadFile(path)
		require.NoError(t, err)
		for _, readOnly := range []bool{true, false} {
			if tc.mode == 0o400 && !readOnly {
				continue // whether it opens depends on who runs the test
			}
			s, err := Open(path, &Options{AllowMode: tc.allow, ReadOnly: readOnly})
			if tc.ok {
				require.NoError(t, err, "%04o", tc.mode)
				require.False(t, s.Restored())
				require.NoError(t, s.Close())
				continue
			}
			require.ErrorIs(t, err, ErrExposed, "%04o", tc.mode)
			require.ErrorContains(t, err, path)
			after, err := os.ReadFile(path)
			require.NoError(t, err)
			require.True(t, bytes.Equal(before, after), "a refused file stays as it was")
		}
	}
}
