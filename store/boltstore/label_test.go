//go:build linux

package boltstore

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/store"
)

// TestDirectoryThatWasPutBack saves the whole directory, the mark included, while the store is closed, writes, and puts
// the directory back. Each way is noticed.
func TestDirectoryThatWasPutBack(t *testing.T) {
	t.Parallel()
	for _, way := range []struct{ name, tool, save, restore string }{
		{"tar over it", "tar", "tar cf b.tar data", "tar xf b.tar"},
		{"tar after rm", "tar", "tar cf b.tar data", "rm -rf data; tar xf b.tar"},
		{"cp over it", "cp", "cp -a data bk", "cp -a bk/. data/"},
		{"cp after rm", "cp", "cp -a data bk", "rm -rf data; cp -a bk data"},
		{"mv of the copy", "cp", "cp -a data bk", "rm -rf data; mv bk data"},
		// In a test the copy may be as old as the file, so rsync is told not to go by times.
		{"rsync", "rsync", "rsync -a data/ bk/", "rsync -a --delete --ignore-times bk/ data/"},
		{"rsync in place", "rsync", "rsync -a data/ bk/", "rsync -a --inplace --ignore-times bk/ data/"},
	} {
		t.Run(way.name, func(t *testing.T) {
			t.Parallel()
			if _, err := exec.LookPath(way.tool); err != nil {
				t.Skipf("no %s on this machine", way.tool)
			}
			dir := t.TempDir()
			run := func(script string) {
				cmd := exec.CommandContext(t.Context(), "sh", "-ec", script)
				cmd.Dir = dir
				out, err := cmd.CombinedOutput()
				require.NoError(t, err, "%s", out)
			}
			run("mkdir data")
			path := filepath.Join(dir, "data", "tokens.db")
			s := newAt(t, path)
			if s.mark.nonce == (nonce{}) || s.mark.born == 0 {
				t.Skip("this file system has no extended attributes, or no birth times")
			}
			require.NoError(t, s.Close())
			run(way.save)
			s = openT(t, path, nil)
			require.False(t, s.Restored())
			must(t, s, []store.Put{put(store.KindRule, "revoked", store.Version{})})
			require.NoError(t, s.Close())
			run(way.restore)

			s = openT(t, path, &Options{ReadOnly: true})
			require.True(t, s.Restored(), "a reader sees it too")
			require.NoError(t, s.Close())
			s = openT(t, path, nil)
			require.True(t, s.Restored())
			require.NoError(t, s.Close())
			s = openT(t, path, nil)
			require.False(t, s.Restored(), "it is said once")
		})
	}
}

// TestLabelAfterACrash stops a change of the label after each of its steps: none of what is left is taken for a restore.
func TestLabelAfterACrash(t *testing.T) {
	t.Parallel()
	for steps := range 4 {
		path := filepath.Join(t.TempDir(), "tokens.db")
		s := newAt(t, path)
		if s.mark.nonce == (nonce{}) {
			t.Skip("this file system has no extended attributes")
		}
		require.NoError(t, s.Close())
		b, err := os.ReadFile(path + ".mark")
		require.NoError(t, err)
		m, ok := decodeMark(b)
		require.True(t, ok)
		m.next = newNonce()
		for i, step := range []func() error{
			func() error { return os.WriteFile(path+".mark", m.encode(), 0o600) },
			func() error { return setLabel(path, m.next.label()) },
			func() error { return removeLabel(path, m.nonce.label()) },
		} {
			if i < steps {
				require.NoError(t, step())
			}
		}
		require.NoError(t, os.Chmod(path, 0o600), "a change of the inode's time alone says nothing")
		for range 2 {
			s = openT(t, path, nil)
			require.False(t, s.Restored(), "after %d steps", steps)
			have, err := labels(path)
			require.NoError(t, err)
			require.Equal(t, []string{s.mark.nonce.label()}, have)
			require.NoError(t, s.Close())
		}
	}
}

// TestMarkOfAnOlderVersion: one without label and birth time is believed once, and is made whole.
func TestMarkOfAnOlderVersion(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tokens.db")
	require.NoError(t, newAt(t, path).Close())
	b, err := os.ReadFile(path + ".mark")
	require.NoError(t, err)
	m, ok := decodeMark(b)
	require.True(t, ok)
	require.NoError(t, os.WriteFile(path+".mark", m.encodePlain(), 0o600))
	if m.nonce != (nonce{}) {
		require.NoError(t, removeLabel(path, m.nonce.label()))
	}
	for range 2 {
		s := openT(t, path, nil)
		require.False(t, s.Restored())
		require.Equal(t, m.nonce == (nonce{}), s.mark.nonce == (nonce{}))
		require.NoError(t, s.Close())
	}
}

// encodePlain is the mark as it was written before it had labels.
func (c *markContent) encodePlain() []byte {
	b := c.encode()[:markSizePlain-4]
	return sealMark(b)
}

// TestCleanClose: only a file that Close left and nothing wrote since is opened without looking at all of it.
func TestCleanClose(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tokens.db")
	require.NoError(t, newAt(t, path).Close())
	s := openT(t, path, nil)
	require.True(t, s.clean)
	b, err := os.ReadFile(path + ".mark")
	require.NoError(t, err)
	m, ok := decodeMark(b)
	require.True(t, ok)
	require.Zero(t, m.closed, "a process that is killed leaves no sign of a clean end")
	require.NoError(t, s.Close())
	require.NoError(t, os.Chtimes(path, time.Unix(1, 0), time.Unix(1, 0)))
	s = openT(t, path, nil)
	require.False(t, s.clean)
	require.False(t, s.Restored())
}
