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
