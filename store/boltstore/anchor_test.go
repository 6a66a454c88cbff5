//go:build linux

package boltstore

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/store"
)

// anchoredAt opens a store in a directory of its own, with an anchor in another one.
func anchoredAt(t *testing.T) (path string, anchor FileAnchor, open func() (*Store, error)) {
	t.Helper()
	data, apart := filepath.Join(t.TempDir(), "data"), t.TempDir()
	require.NoError(t, os.Mkdir(data, 0o700))
	path, anchor = filepath.Join(data, "tokens.db"), FileAnchor(filepath.Join(apart, "anchor"))
	return path, anchor, func() (*Store, error) {
		return Open(path, &Options{Anchor: anchor, Timeout: 5 * time.Second})
	}
}

func revoke(t *testing.T, s *Store, id string) {
	t.Helper()
	must(t, s, []store.Put{put(store.KindRule, id, store.Version{})})
}

// snapshot takes the files of a directory, and puts them back as a snapshot of the file system would: the same inodes and
// birth times, and the labels that they had.
func snapshot(t *testing.T, path string) (putBack func()) {
	t.Helper()
	kept := map[string][]byte{}
	for _, name := range []string{path, path + ".mark"} {
		b, err := os.ReadFile(name)
		require.NoError(t, err)
		kept[name] = b
	}
	had, err := labels(path)
	require.NoError(t, err)
	return func() {
		for name, b := range kept {
			require.NoError(t, os.WriteFile(name, b, 0o600))
		}
		have, err := labels(path)
		require.NoError(t, err)
		for _, l := range have {
			require.NoError(t, removeLabel(path, l))
		}
		for _, l := range had {
			require.NoError(t, setLabel(path, l))
		}
	}
}

// TestAnchorNoticesASnapshot: a directory is put back so that nothing in it can tell. Without the anchor the revocation is
// gone in silence; with it the store opens as restored, once. The snapshot is of a closed store or of one in use.
func TestAnchorNoticesASnapshot(t *testing.T) {
	t.Parallel()
	for _, inUse := range []bool{false, true} {
		path, anchor, open := anchoredAt(t)
		s, err := open()
		require.NoError(t, err)
		require.False(t, s.Restored())
		revoke(t, s, "before")
		if !inUse {
			require.NoError(t, s.Close())
			s, err = open()
			require.NoError(t, err)
			require.NoError(t, s.Close())
		}
		putBack := snapshot(t, path)
		if !inUse {
			s, err = open()
			require.NoError(t, err)
			require.False(t, s.Restored(), "it continued")
		}
		revoke(t, s, "lost")
		require.NoError(t, s.Close())

		putBack()
		bare := openT(t, path, &Options{ReadOnly: true})
		require.False(t, bare.Restored(), "nothing in the directory tells")
		require.NoError(t, bare.Close())

		for _, readOnly := range []bool{true, false} {
			s, err = Open(path, &Options{Anchor: anchor, ReadOnly: readOnly})
			require.NoError(t, err)
			require.True(t, s.Restored(), "in use: %v, read only: %v", inUse, readOnly)
			_, err = s.Get(context.Background(), store.KindRule, "lost")
			require.ErrorIs(t, err, store.ErrNotFound)
			require.NoError(t, s.Close())
		}
		s, err = open()
		require.NoError(t, err)
		require.False(t, s.Restored(), "it is said once")
		revoke(t, s, "again")
		require.NoError(t, s.Close())
		putBack()
		s, err = open()
		require.NoError(t, err)
		require.True(t, s.Restored(), "and of the next time anew, though the file has an older id now")
		require.NoError(t, s.Close())
	}
}

// TestAnchorNoticesRsync puts the directory back by rsync with all attributes, in place: label and inode are as they were.
func TestAnchorNoticesRsync(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("rsync"); err != nil {
		if os.Getenv("APITOKEN_TEST_REQUIRE") != "" {
			t.Fatal("no rsync on this machine")
		}
		t.Skip("no rsync on this machine; install rsync to run this test")
	}
	path, _, open := anchoredAt(t)
	s, err := open()
	require.NoError(t, err)
	revoke(t, s, "before")
	require.NoError(t, s.Close())
	dir := filepath.Dir(filepath.Dir(path))
	run := func(args ...string) {
		cmd := exec.CommandContext(t.Context(), "rsync", args...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	run("-aX", "data/", "kept/")
	s, err = open()
	require.NoError(t, err)
	revoke(t, s, "lost")
	require.NoError(t, s.Close())
	run("-aX", "--inplace", "--ignore-times", "kept/", "data/")
	s, err = open()
	require.NoError(t, err)
	require.True(t, s.Restored())
	require.NoError(t, s.Close())
}

// TestAnchorLost: with the anchor went the proof of how far the store came, so the host is asked, once. Lost beneath a
// store in use it is made anew, since that store knows.
func TestAnchorLost(t *testing.T) {
	t.Parallel()
	_, anchor, open := anchoredAt(t)
	s, err := open()
	require.NoError(t, err)
	require.NoError(t, os.Remove(string(anchor)))
	revoke(t, s, "a")
	require.FileExists(t, string(anchor))
	require.NoError(t, s.Close())
	for i := range 2 {
		s, err = open()
		require.NoError(t, err)
		require.Equal(t, i == 1, s.Restored())
		require.NoError(t, s.Close())
		if i == 0 {
			require.NoError(t, os.Remove(string(anchor)))
		}
	}
	s, err = open()
	require.NoError(t, err)
	require.False(t, s.Restored())
	require.NoError(t, s.Close())

	// Damaged is not lost: somebody should look.
	b, err := os.ReadFile(string(anchor))
	require.NoError(t, err)
	for i := range b {
		b[i] ^= 0x55
	}
	require.NoError(t, os.WriteFile(string(anchor), b, 0o600))
	_, err = open()
	require.ErrorIs(t, err, ErrAnchor)
	require.ErrorContains(t, err, "damaged")
}

// TestAnchorTornWrite: each of the two slots is written in turn; what is left of a torn write is the value before it.
func TestAnchorTornWrite(t *testing.T) {
	t.Parallel()
	ctx, anchor := context.Background(), FileAnchor(filepath.Join(t.TempDir(), "anchor"))
	var old []byte
	for i := range 6 {
		next := []byte{byte(i), byte(i), 7}
		before, _ := os.ReadFile(string(anchor))
		require.NoError(t, anchor.Swap(ctx, old, next))
		after, err := os.ReadFile(string(anchor))
		require.NoError(t, err)
		got, err := anchor.Load(ctx)
		require.NoError(t, err)
		require.Equal(t, next, got)
		require.ErrorIs(t, anchor.Swap(ctx, old, []byte{9}), ErrAnchor, "it never goes back to what it held before")

		torn := append([]byte(nil), after...)
		changed := 0
		for at := range torn {
			if at >= len(before) || torn[at] != before[at] {
				if changed++; changed > 10 && at < len(before) {
					torn[at] = before[at]
				}
			}
		}
		if i > 1 {
			require.NoError(t, os.WriteFile(string(anchor), torn, 0o600))
			got, err = anchor.Load(ctx)
			require.NoError(t, err)
			require.Contains(t, [][]byte{old, next}, got)
			require.NoError(t, os.WriteFile(string(anchor), after, 0o600))
		}
		old = next
	}
}

// TestTwoStoresWithOneAnchor: the second one is refused, and a copy of the first that takes the anchor over is noticed by
// the first.
func TestTwoStoresWithOneAnchor(t *testing.T) {
	t.Parallel()
	path, anchor, open := anchoredAt(t)
	s, err := open()
	require.NoError(t, err)
	revoke(t, s, "a")
	other := filepath.Join(t.TempDir(), "other.db")
	_, err = Open(other, &Options{Anchor: anchor})
	require.ErrorIs(t, err, ErrAnchor)
	require.ErrorContains(t, err, "another store")

	copied := filepath.Join(t.TempDir(), "copy.db")
	f, err := os.OpenFile(copied, os.O_CREATE|os.O_WRONLY, 0o600)
	require.NoError(t, err)
	require.NoError(t, s.Backup(context.Background(), f))
	require.NoError(t, f.Close())
	c, err := Open(copied, &Options{Anchor: anchor})
	require.NoError(t, err)
	require.True(t, c.Restored())
	require.NoError(t, c.Close())

	_, err = s.Apply(context.Background(), &store.Change{ID: newVersion(), Puts: []store.Put{put(store.KindRule, "b", store.Version{})}})
	require.ErrorIs(t, err, ErrAnchor)
	_, err = s.Get(context.Background(), store.KindRule, "b")
	require.NoError(t, err, "it is in force all the same")
	must(t, s, []store.Put{put("grant", "g", store.Version{})})
	require.ErrorIs(t, s.Close(), ErrAnchor)

	_, err = Open(path, &Options{Anchor: FileAnchor(filepath.Join(filepath.Dir(path), "anchor"))})
	require.ErrorIs(t, err, ErrAnchor, "it would be put back with the database")
}

// TestAnchorOnABadDisk takes the anchor's directory away while the store is in use. What is no change of state continues,
// a revocation is in force and is not acknowledged, and its repetition is as soon as the directory is back.
func TestAnchorOnABadDisk(t *testing.T) {
	t.Parallel()
	_, anchor, open := anchoredAt(t)
	s, err := open()
	require.NoError(t, err)
	dir := filepath.Dir(string(anchor))
	require.NoError(t, os.Rename(dir, dir+"-away"))
	c := &store.Change{ID: newVersion(), Puts: []store.Put{put(store.KindRule, "r", store.Version{})}}
	_, err = s.Apply(context.Background(), c)
	require.ErrorIs(t, err, ErrAnchor)
	_, err = s.Apply(context.Background(), c)
	require.ErrorIs(t, err, ErrAnchor, "done before, and the anchor does not know yet")
	_, err = s.Get(context.Background(), store.KindRule, "r")
	require.NoError(t, err)
	must(t, s, []store.Put{put("grant", "g", store.Version{})})
	require.NoError(t, os.Rename(dir+"-away", dir))
	_, err = s.Apply(context.Background(), c)
	require.NoError(t, err)
	require.NoError(t, s.Close())
	require.NoError(t, os.Rename(dir, dir+"-away"))
	_, err = open()
	require.ErrorIs(t, err, ErrAnchor)
	require.NoError(t, os.Rename(dir+"-away", dir))
	s, err = open()
	require.NoError(t, err)
	require.False(t, s.Restored())
	require.NoError(t, s.Close())
}

// TestAnchorOnAFullDisk: a file that is there takes every value; one that cannot be made is an error of Open.
func TestAnchorOnAFullDisk(t *testing.T) {
	small := t.TempDir()
	mountSmall(t, small, 16<<10)
	data := t.TempDir()
	first := &Options{Anchor: FileAnchor(filepath.Join(small, "first"))}
	s := openT(t, filepath.Join(data, "first.db"), first)
	revoke(t, s, "a") // both slots have their place
	require.Error(t, os.WriteFile(filepath.Join(small, "filler"), make([]byte, 1<<20), 0o600))
	_, err := Open(filepath.Join(data, "second.db"), &Options{Anchor: FileAnchor(filepath.Join(small, "second"))})
	require.ErrorIs(t, err, ErrAnchor)
	for _, id := range []string{"b", "c", "d"} {
		revoke(t, s, id)
	}
	require.NoError(t, s.Close())
	s = openT(t, filepath.Join(data, "first.db"), first)
	require.False(t, s.Restored())
	require.NoError(t, s.Close())
}

// hostAnchor is a host's own, in memory, with whatever goes wrong there.
type hostAnchor struct {
	held  atomic.Value
	swaps atomic.Int64
	fault func(ctx context.Context, stored bool) error // before it stores, and after
}

func (h *hostAnchor) Load(context.Context) ([]byte, error) {
	b, _ := h.held.Load().([]byte)
	return b, nil
}

func (h *hostAnchor) Swap(ctx context.Context, old, next []byte) error {
	h.swaps.Add(1)
	if h.fault != nil {
		if err := h.fault(ctx, false); err != nil {
			return err
		}
	}
	have, _ := h.held.Load().([]byte)
	if string(have) != string(old) {
		return errors.New("another value")
	}
	h.held.Store(append([]byte(nil), next...))
	if h.fault != nil {
		return h.fault(ctx, true)
	}
	return nil
}

// TestAnchorOfTheHost: one that panics, one that blocks, and one whose answer is lost after it stored.
func TestAnchorOfTheHost(t *testing.T) {
	t.Parallel()
	open := func(h *hostAnchor) *Store {
		return openT(t, filepath.Join(t.TempDir(), "tokens.db"), &Options{Anchor: h, Timeout: 3 * time.Second})
	}
	rule := func(s *Store) error {
		_, err := s.Apply(context.Background(), &store.Change{ID: newVersion(), Puts: []store.Put{put(store.KindRule, "r", store.Version{})}})
		return err
	}
	t.Run("panics", func(t *testing.T) {
		t.Parallel()
		h := &hostAnchor{}
		s := open(h)
		h.fault = func(context.Context, bool) error { panic("of the host") }
		require.ErrorIs(t, rule(s), ErrAnchor)
		must(t, s, []store.Put{put("grant", "g", store.Version{})})
	})
	t.Run("blocks", func(t *testing.T) {
		t.Parallel()
		h := &hostAnchor{}
		s := open(h)
		h.fault = func(ctx context.Context, _ bool) error { <-ctx.Done(); return ctx.Err() }
		require.Error(t, rule(s))
		must(t, s, []store.Put{put("grant", "g", store.Version{})})
	})
	t.Run("answer lost", func(t *testing.T) {
		t.Parallel()
		h := &hostAnchor{}
		s := open(h)
		h.fault = func(_ context.Context, stored bool) error {
			if stored {
				return errors.New("connection reset")
			}
			return nil
		}
		require.NoError(t, rule(s))
		before := h.swaps.Load()
		must(t, s, []store.Put{put("grant", "g", store.Version{})})
		require.Equal(t, before, h.swaps.Load(), "what is no state asks nothing of it")
	})
}

// TestProgress: Open says how far it is when it reads the whole file, and a panic of the host is no damage.
func TestProgress(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tokens.db")
	s := openT(t, path, nil)
	fill(t, s, "grant", 0, 5000, 0)
	require.NoError(t, s.Close())
	for _, crashed := range []bool{false, true} {
		var checked, of []uint64
		if crashed {
			require.NoError(t, os.Chtimes(path, time.Unix(1, 0), time.Unix(1, 0)))
		}
		s, err := Open(path, &Options{Progress: func(c, all uint64) {
			checked, of = append(checked, c), append(of, all)
		}})
		require.NoError(t, err)
		require.NoError(t, s.Close())
		if !crashed {
			require.Empty(t, checked)
			continue
		}
		require.IsIncreasing(t, checked)
		require.EqualValues(t, 10000, of[0])
		require.EqualValues(t, 10000, checked[len(checked)-1])
	}
	require.NoError(t, os.Chtimes(path, time.Unix(1, 0), time.Unix(1, 0)))
	s, err := Open(path, &Options{Progress: func(uint64, uint64) { panic("of the host") }})
	require.NoError(t, err)
	require.NoError(t, s.Close())
}
