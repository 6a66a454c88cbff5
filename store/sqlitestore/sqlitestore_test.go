package sqlitestore_test

import (
	"context"
	"database/sql"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/sqlitestore"
	"github.com/apitoken-go/apitoken/store/storetest"
)

// TestSuite runs the suite on files of the store's own and on tables in a host's database, whose pool has SQLite's defaults.
func TestSuite(t *testing.T) {
	t.Parallel()
	t.Run("path", func(t *testing.T) {
		t.Parallel()
		storetest.Run(t, func(t *testing.T, dir string) store.Store { return open(t, filepath.Join(dir, "tokens.db"), nil) })
	})
	t.Run("host", func(t *testing.T) {
		t.Parallel()
		storetest.Run(t, func(t *testing.T, dir string) store.Store {
			db, err := sql.Open("sqlite", filepath.Join(dir, "host.db")+"?_pragma=synchronous(OFF)")
			require.NoError(t, err)
			s, err := sqlitestore.New(context.Background(), db, &sqlitestore.Options{Prefix: "tok_"})
			require.NoError(t, err)
			return hosted{s, db}
		})
	})
	s := open(t, filepath.Join(t.TempDir(), "tokens.db"), nil)
	storetest.Namespaces(t, s.Namespace("a"), s.Namespace("b"))
	require.NoError(t, s.Close())
}

// hosted closes the host's pool behind the store.
type hosted struct {
	*sqlitestore.Store
	db *sql.DB
}

func (h hosted) Close() error {
	if err := h.Store.Close(); err != nil {
		return err
	}
	return h.db.Close()
}

// open opens a file; whoever asks closes it.
func open(t testing.TB, path string, o *sqlitestore.Options) *sqlitestore.Store {
	t.Helper()
	s, err := sqlitestore.Open(path, o)
	require.NoError(t, err)
	return s
}

func BenchmarkStore(b *testing.B) {
	s := open(b, filepath.Join(b.TempDir(), "tokens.db"), nil)
	defer s.Close()
	storetest.Bench(b, s)
}
