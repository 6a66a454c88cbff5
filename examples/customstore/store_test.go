package customstore

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/storetest"
)

func TestContract(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T, dir string) store.Store {
		s, err := Open(filepath.Join(dir, "tokens.journal"))
		require.NoError(t, err)
		return s
	})
}

// TestCrash opens a journal cut at every byte of its last line: the write before is there, the last is there whole or
// not at all.
func TestCrash(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tokens.journal")
	s, err := Open(path)
	require.NoError(t, err)
	write := func(id string) int64 {
		_, err := s.Apply(t.Context(), &store.Change{
			ID: store.Version{id[0]}, Puts: []store.Put{{Record: store.Record{Kind: store.KindRule, ID: id}}},
			Events: []store.Record{{Kind: store.KindEvent, ID: id}},
		})
		require.NoError(t, err)
		return s.size
	}
	before, end := write("1"), write("2")
	require.NoError(t, s.Close())
	journal, err := os.ReadFile(path)
	require.NoError(t, err)
	for size := before; size <= end; size++ {
		require.NoError(t, os.WriteFile(path, journal[:size], 0o600))
		s, err = Open(path)
		require.NoError(t, err)
		_, err = s.Get(t.Context(), store.KindRule, "1")
		require.NoError(t, err)
		_, err = s.Get(t.Context(), store.KindRule, "2")
		if size < end {
			require.ErrorIs(t, err, store.ErrNotFound, "cut at %d", size)
			before = min(before, write("2")) // and the store goes on
		} else {
			require.NoError(t, err)
		}
		require.NoError(t, s.Close())
	}
}

// TestForeign: what is not a journal is an error, and stays as it is; a first line that a crash cut is begun again.
func TestForeign(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tokens.journal")
	for _, text := range []string{"no journal", "no journal\n", "{}\n", `{"a":1}`, "\n", "\x00", `{"Records":[]}` + "\n"} {
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		_, err := Open(path)
		require.Error(t, err, "%q", text)
		left, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, text, string(left))
	}
	for _, text := range []string{"", `{"His`, `{"History":12`} {
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		s, err := Open(path)
		require.NoError(t, err, "%q", text)
		require.NoError(t, s.Close())
	}
}

// TestRestored: a journal that was put back begins a new History, in place, as another file, or with its mark where the mark
// is kept elsewhere. One that was only closed does not.
func TestRestored(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		elsewhere bool // the mark
		change    func(t *testing.T, path string, journal, mark []byte)
		restored  bool
	}{
		"closed": {false, func(*testing.T, string, []byte, []byte) {}, false},
		"overwritten": {false, func(t *testing.T, path string, journal, _ []byte) {
			require.NoError(t, os.WriteFile(path, journal, 0o600))
		}, true},
		"another file": {false, func(t *testing.T, path string, journal, _ []byte) {
			require.NoError(t, os.WriteFile(path+".new", journal, 0o600))
			require.NoError(t, os.Rename(path+".new", path))
		}, true},
		"its mark is gone": {false, func(t *testing.T, path string, _, _ []byte) {
			require.NoError(t, os.Remove(path+".mark"))
		}, true},
		"its mark is damaged": {false, func(t *testing.T, path string, _, _ []byte) {
			require.NoError(t, os.WriteFile(path+".mark", []byte("0"), 0o600))
		}, true},
		"its mark is behind, after a power failure": {false, func(t *testing.T, path string, _, mark []byte) {
			require.NoError(t, os.WriteFile(path+".mark", mark, 0o600))
		}, false},
		"the whole directory, the mark elsewhere": {true, func(t *testing.T, path string, journal, _ []byte) {
			require.NoError(t, os.WriteFile(path, journal, 0o600))
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "tokens.journal")
			mark := path + ".mark"
			if tc.elsewhere {
				mark = filepath.Join(t.TempDir(), "mark")
			}
			s, err := OpenMarked(path, mark)
			require.NoError(t, err)
			history := s.history
			write := func(id string) {
				_, err := s.Apply(t.Context(), &store.Change{
					ID: store.Version{id[0]}, Puts: []store.Put{{Record: store.Record{Kind: store.KindRule, ID: id}}},
				})
				require.NoError(t, err)
			}
			write("1")
			journal, err := os.ReadFile(path)
			require.NoError(t, err)
			old, err := os.ReadFile(mark)
			require.NoError(t, err)
			write("2")
			require.NoError(t, s.Close())

			tc.change(t, path, journal, old)
			for _, restored := range []bool{tc.restored, false} { // once
				s, err = OpenMarked(path, mark)
				require.NoError(t, err)
				require.Equal(t, restored, s.history != history)
				history = s.history
				require.NoError(t, s.Close())
			}
		})
	}
}
