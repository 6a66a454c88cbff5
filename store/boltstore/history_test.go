package boltstore

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/store"
)

func historyOf(t *testing.T, s *Store) uint64 {
	t.Helper()
	v, err := s.Follow(context.Background(), store.Position{}, nil, 1)
	require.NoError(t, err)
	return v.Next.History
}

// copyFile copies bytes over to, keeping to's inode if it exists.
func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(to, b, 0o600))
}

func TestHistory(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name     string
		between  func(t *testing.T, path, old string) (reopen string) // after Close; old is an older copy
		restored bool
	}{
		{"reopened", func(t *testing.T, path, _ string) string { return path }, false},
		{"moved with its mark", func(t *testing.T, path, _ string) string {
			to := path + "2"
			require.NoError(t, os.Rename(path, to))
			require.NoError(t, os.Rename(path+".mark", to+".mark"))
			return to
		}, false},
		{"older copy put back in place", func(t *testing.T, path, old string) string {
			copyFile(t, old, path)
			return path
		}, true},
		{"older copy renamed into place", func(t *testing.T, path, old string) string {
			require.NoError(t, os.Rename(old, path))
			return path
		}, true},
		{"same content under another inode", func(t *testing.T, path, _ string) string {
			copyFile(t, path, path+".tmp")
			require.NoError(t, os.Rename(path+".tmp", path))
			return path
		}, true},
		{"copied elsewhere", func(t *testing.T, path, _ string) string {
			copyFile(t, path, path+"2")
			return path + "2"
		}, true},
		{"copied with its mark", func(t *testing.T, path, _ string) string {
			copyFile(t, path, path+"2")
			copyFile(t, path+".mark", path+"2.mark")
			return path + "2"
		}, true},
		{"mark lost", func(t *testing.T, path, _ string) string {
			require.NoError(t, os.Remove(path+".mark"))
			return path
		}, true},
		{"mark is garbage", func(t *testing.T, path, _ string) string {
			require.NoError(t, os.WriteFile(path+".mark", bytes.Repeat([]byte("x"), 200), 0o600))
			return path
		}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "tokens.db")
			s := newAt(t, path)
			h := historyOf(t, s)
			require.NoError(t, s.Close())
			old := path + ".old"
			copyFile(t, path, old)
			s = openT(t, path, nil)
			require.Equal(t, h, historyOf(t, s))
			must(t, s, []store.Put{put("grant", "later", store.Version{})}) // no state change: seen all the same
			last, err := s.Follow(context.Background(), store.Position{}, nil, 9)
			require.NoError(t, err)
			require.NoError(t, s.Close())

			path = tc.between(t, path, old)
			ro := openT(t, path, &Options{ReadOnly: true})
			require.NoError(t, ro.Close())
			s = openT(t, path, nil)
			require.Equal(t, tc.restored, s.Restored())
			require.Equal(t, tc.restored, h != historyOf(t, s), "a restored file has another history")
			_, err = s.Follow(context.Background(), last.Next, nil, 9)
			if tc.restored {
				require.ErrorIs(t, err, store.ErrDiverged)
			} else {
				require.NoError(t, err)
			}
			now := historyOf(t, s)
			require.NoError(t, s.Close())
			s = openT(t, path, nil)
			require.False(t, s.Restored(), "a restore is told once")
			require.Equal(t, now, historyOf(t, s))
		})
	}
}

func TestBackupIsAnotherHistory(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tokens.db")
	s, ctx := newAt(t, path), context.Background()
	h := historyOf(t, s)
	ns := s.Namespace("tenant-1")
	must(t, ns, []store.Put{put(store.KindRule, "of the tenant", store.Version{})})
	// Writers go on: what was acknowledged before the call is in the copy, and each change whole.
	stop, acked := make(chan struct{}), 0
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			id := fmt.Sprintf("%06d", n)
			must(t, s, []store.Put{put("grant", "g"+id, store.Version{}), put(store.KindRule, "r"+id, store.Version{})})
			acked++
		}
	}()
	for range 5 {
		var b bytes.Buffer
		require.NoError(t, s.Backup(ctx, &b))
		to := filepath.Join(t.TempDir(), "copy.db")
		require.NoError(t, os.WriteFile(to, b.Bytes(), 0o600))
		c := openT(t, to, nil)
		require.True(t, c.Restored())
		require.NotEqual(t, h, historyOf(t, c))
		require.Len(t, all(t, c, store.Query{Kind: "grant"}), len(all(t, c, store.Query{Kind: store.KindRule})), "each change is whole in the copy")
		_, err := c.Namespace("tenant-1").Get(ctx, store.KindRule, "of the tenant")
		require.NoError(t, err)
		must(t, c, []store.Put{put(store.KindRule, "new", store.Version{})})
		require.NoError(t, c.Close())
		// Over the original's place, with its mark beside it: still another history.
		require.NoError(t, c.Close())
	}
	require.NoError(t, s.Compact(ctx))
	close(stop)
	wg.Wait()
	require.Len(t, all(t, s, store.Query{Kind: "grant"}), acked+3)
	require.NoError(t, s.Close())
	s = openT(t, path, nil)
	require.False(t, s.Restored(), "a compacted file is the same history")
	require.Equal(t, h, historyOf(t, s))
	require.Len(t, all(t, s, store.Query{Kind: "grant"}), acked+3)
}

func TestCompactGivesSpaceBack(t *testing.T) {
	t.Parallel()
	s, ctx := newT(t), context.Background()
	for i := range 200 {
		p := put("junk", fmt.Sprintf("%04d", i), store.Version{})
		p.Data, p.Expires = make([]byte, store.MaxData), 1
		must(t, s, []store.Put{p}, event("e"))
	}
	n, err := s.Purge(ctx, "junk", time.Now().UnixMilli(), 1000)
	require.NoError(t, err)
	require.Equal(t, 200, n)
	before, err := os.Stat(s.path)
	require.NoError(t, err)
	require.NoError(t, s.Compact(ctx))
	after, err := os.Stat(s.path)
	require.NoError(t, err)
	require.Less(t, after.Size(), before.Size()/4)
	require.Len(t, all(t, s, store.Query{Kind: store.KindEvent}), 200)
	must(t, s, nil, event("after"))
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	require.ErrorIs(t, s.Compact(cancelled), context.Canceled)
	require.NoFileExists(t, s.path+tempName+"compact")
}

func TestCrashInCompactLeavesLeftovers(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tokens.db")
	require.NoError(t, newAt(t, path).Close())
	for _, suffix := range []string{tempName + "compact", tempName + "new", tempName + "backup-123"} {
		require.NoError(t, os.WriteFile(path+suffix, []byte("half a file"), 0o600))
	}
	s := openT(t, path, nil)
	require.False(t, s.Restored())
	for _, suffix := range []string{tempName + "compact", tempName + "new", tempName + "backup-123"} {
		require.NoFileExists(t, path+suffix)
	}
	// What an operator keeps beside the database is his.
	own := []string{".backup-20260301", ".backup-1", ".new", ".compact", ".old", ".bak"}
	require.NoError(t, s.Close())
	for _, suffix := range own {
		require.NoError(t, os.WriteFile(path+suffix, []byte("mine"), 0o600))
	}
	s = openT(t, path, nil)
	require.NoError(t, s.Compact(context.Background()))
	require.NoError(t, s.Backup(context.Background(), io.Discard))
	require.NoError(t, s.Close())
	for _, suffix := range own {
		b, err := os.ReadFile(path + suffix)
		require.NoError(t, err, suffix)
		require.Equal(t, "mine", string(b), suffix)
	}
}
