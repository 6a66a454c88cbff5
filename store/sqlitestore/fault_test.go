package sqlitestore_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/sqlitestore"
)

func rule(id string) *store.Change {
	c := &store.Change{Puts: []store.Put{{Record: store.Record{Kind: store.KindRule, ID: id, Data: []byte("{}")}}}, Events: []store.Record{{Kind: store.KindEvent, ID: "e" + id}}}
	copy(c.ID[:], id+"................")
	return c
}

func apply(t testing.TB, s store.Store, c *store.Change) {
	t.Helper()
	_, err := s.Apply(context.Background(), c)
	require.NoError(t, err)
}

func at(t testing.TB, s store.Store) store.Position {
	t.Helper()
	v, err := s.Follow(context.Background(), store.Position{}, nil, 100)
	require.NoError(t, err)
	return v.Next
}

func TestOpenRefusesWhatIsNotItsOwn(t *testing.T) {
	t.Parallel()
	write := func(data string) func(t *testing.T, path string) {
		return func(t *testing.T, path string) { require.NoError(t, os.WriteFile(path, []byte(data), 0o600)) }
	}
	made := func(t *testing.T, path string) {
		s := open(t, path, nil)
		apply(t, s, rule("r"))
		require.NoError(t, s.Close())
	}
	tables := func(text string) func(t *testing.T, path string) {
		return func(t *testing.T, path string) {
			made(t, path)
			db, err := sql.Open("sqlite", path)
			require.NoError(t, err)
			_, err = db.Exec(text)
			require.NoError(t, err)
			require.NoError(t, db.Close())
		}
	}
	for name, tc := range map[string]struct {
		make func(t *testing.T, path string)
		want error
	}{
		"directory":                    {func(t *testing.T, p string) { require.NoError(t, os.Mkdir(p, 0o700)) }, sqlitestore.ErrForeign},
		"empty":                        {write(""), sqlitestore.ErrForeign},
		"text":                         {write("hello, this is no database\n"), sqlitestore.ErrForeign},
		"database of another program":  {tables("DROP TABLE apitoken_file"), sqlitestore.ErrForeign},
		"newer format":                 {tables("UPDATE apitoken_file SET format = 2"), sqlitestore.ErrForeign},
		"gone, with its mark left":     {func(t *testing.T, p string) { made(t, p); require.NoError(t, os.Remove(p)) }, sqlitestore.ErrMissing},
		"a log without its database":   {func(t *testing.T, p string) { write("x")(t, p+"-wal") }, sqlitestore.ErrMissing},
		"a link to what is not there":  {func(t *testing.T, p string) { require.NoError(t, os.Symlink(p+"-elsewhere", p)) }, sqlitestore.ErrMissing},
		"a file that others may read":  {func(t *testing.T, p string) { made(t, p); require.NoError(t, os.Chmod(p, 0o640)) }, sqlitestore.ErrExposed},
		"a file that others may write": {func(t *testing.T, p string) { made(t, p); require.NoError(t, os.Chmod(p, 0o602)) }, sqlitestore.ErrExposed},
		"a file without its pages": {func(t *testing.T, p string) {
			made(t, p)
			require.NoError(t, os.Truncate(p, 5000))
		}, sqlitestore.ErrDamaged},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "tokens.db")
			tc.make(t, path)
			before, _ := os.ReadFile(path)
			_, err := sqlitestore.Open(path, nil)
			require.ErrorIs(t, err, tc.want)
			after, _ := os.ReadFile(path)
			require.True(t, bytes.Equal(before, after), "what is refused is not written")
		})
	}
	path := filepath.Join(t.TempDir(), "tokens.db")
	made(t, path)
	for _, beside := range []string{"", ".mark"} {
		fi, err := os.Stat(path + beside)
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), fi.Mode().Perm())
	}
	require.NoError(t, os.Chmod(path, 0o660))
	require.NoError(t, open(t, path, &sqlitestore.Options{AllowMode: 0o060}).Close())
	_, err := sqlitestore.Open("", nil)
	require.ErrorIs(t, err, store.ErrInvalid)
	_, err = sqlitestore.Open(path, &sqlitestore.Options{Prefix: "a;drop"})
	require.ErrorIs(t, err, store.ErrInvalid)
}

// Names that mean something in a URI are names.
func TestOddPaths(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{"a?mode=memory", "b#c", "d%41", "e f", "g&h=i", "ü.db"} {
		s := open(t, filepath.Join(dir, name), nil)
		apply(t, s, rule("r"))
		require.NoError(t, s.Close())
		_, err := os.Stat(filepath.Join(dir, name))
		require.NoError(t, err)
	}
}

// Each way to lose acknowledged writes behind the store's back makes another history; what loses nothing makes none.
func TestRestored(t *testing.T) {
	t.Parallel()
	overwrite := func(t *testing.T, path string, data []byte) {
		require.NoError(t, os.WriteFile(path, data, 0o600)) // the inode stays
	}
	for name, tc := range map[string]struct {
		change   func(t *testing.T, path string, backup []byte)
		restored bool
	}{
		"nothing happened":      {func(*testing.T, string, []byte) {}, false},
		"written over in place": {overwrite, true},
		"a new file": {func(t *testing.T, path string, data []byte) {
			require.NoError(t, os.WriteFile(path+".new", data, 0o600))
			require.NoError(t, os.Rename(path+".new", path))
		}, true},
		"moved elsewhere and back": {func(t *testing.T, path string, _ []byte) {
			require.NoError(t, os.Rename(path, path+".away"))
			require.NoError(t, os.Rename(path+".away", path))
		}, false},
		"its mark was removed": {func(t *testing.T, path string, _ []byte) { require.NoError(t, os.Remove(path+".mark")) }, true},
		"its mark was cut":     {func(t *testing.T, path string, _ []byte) { require.NoError(t, os.Truncate(path+".mark", 10)) }, true},
		"a copy of the same": {func(t *testing.T, path string, _ []byte) {
			data, err := os.ReadFile(path)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(path+".new", data, 0o600))
			require.NoError(t, os.Rename(path+".new", path))
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "tokens.db")
			s := open(t, path, nil)
			apply(t, s, rule("r1"))
			apply(t, s.Namespace("other"), rule("r1"))
			require.NoError(t, s.Close())
			backup, err := os.ReadFile(path)
			require.NoError(t, err)
			s = open(t, path, nil)
			require.False(t, s.Restored())
			apply(t, s, rule("r2"))
			before := at(t, s)
			other := at(t, s.Namespace("other"))
			require.NoError(t, s.Close())

			tc.change(t, path, backup)
			s = open(t, path, nil)
			require.Equal(t, tc.restored, s.Restored())
			require.Equal(t, tc.restored, at(t, s).History != before.History)
			require.Equal(t, tc.restored, at(t, s.Namespace("other")).History != other.History, "each namespace's")
			after := at(t, s)
			require.NoError(t, s.Close())
			s = open(t, path, nil)
			require.False(t, s.Restored(), "once")
			require.Equal(t, after, at(t, s))
			require.NoError(t, s.Close())
		})
	}
}

// A log that is lost with acknowledged commits in it, as by a backup of tokens.db alone while it was in use.
func TestLogLost(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, filepath.Join(dir, "tokens.db"), nil)
	defer s.Close()
	apply(t, s, rule("r1"))
	before := at(t, s)
	crashed := filepath.Join(t.TempDir(), "tokens.db") // as it lies on the disk
	for _, name := range []string{"", ".mark"} {
		data, err := os.ReadFile(filepath.Join(dir, "tokens.db"+name))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(crashed+name, data, 0o600))
	}
	c := open(t, crashed, nil)
	defer c.Close()
	require.True(t, c.Restored())
	require.NotEqual(t, before.History, at(t, c).History)
}

// A file that is replaced under a process that has it open: nothing is answered from the old one, or written into it.
func TestReplacedWhileOpen(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "tokens.db")
	s := open(t, path, nil)
	defer s.Close()
	apply(t, s, rule("r1"))
	require.NoError(t, os.Rename(path, path+".old"))
	refused := func() {
		t.Helper()
		_, err := s.Get(ctx, store.KindRule, "r1")
		require.ErrorIs(t, err, sqlitestore.ErrReplaced)
		_, err = s.Follow(ctx, store.Position{}, nil, 10)
		require.ErrorIs(t, err, sqlitestore.ErrReplaced)
		_, err = s.Apply(ctx, rule("r2"))
		require.ErrorIs(t, err, sqlitestore.ErrReplaced)
		_, err = s.Purge(ctx, store.KindRule, 1<<50, 10)
		require.ErrorIs(t, err, sqlitestore.ErrReplaced)
	}
	refused()
	data, err := os.ReadFile(path + ".old")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, data, 0o600))
	refused()
}

// Another process holds the lock for longer than a verb may take: writes fail within the time, reads go on, and all
// is well when it lets go.
func TestLockedByAnother(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "tokens.db")
	s := open(t, path, &sqlitestore.Options{Timeout: 2 * time.Second})
	defer s.Close()
	apply(t, s, rule("r1"))
	db, err := sql.Open("sqlite", path)
	require.NoError(t, err)
	defer db.Close()
	other, err := db.Conn(ctx)
	require.NoError(t, err)
	defer other.Close()
	_, err = other.ExecContext(ctx, "BEGIN IMMEDIATE")
	require.NoError(t, err)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			_, err := s.Apply(ctx, rule(fmt.Sprint("held", i)))
			if !errors.Is(err, context.DeadlineExceeded) {
				assert.ErrorContains(t, err, "database is locked")
			}
		})
	}
	wg.Wait()
	_, err = s.Purge(ctx, store.KindRule, 1<<50, 10)
	require.Error(t, err)
	require.Error(t, s.SetReadOnly(ctx, true))
	_, err = s.Get(ctx, store.KindRule, "r1")
	require.NoError(t, err, "reads wait for no writer")
	_, err = other.ExecContext(ctx, "ROLLBACK")
	require.NoError(t, err)
	require.Eventually(t, func() bool { _, err := s.Apply(ctx, rule("r2")); return err == nil }, time.Minute, 10*time.Millisecond)
}

// A full disk, as SQLite sees it: nothing of the change is there, and the store continues once there is room.
func TestFull(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	db, err := sql.Open("sqlite", filepath.Join(t.TempDir(), "host.db"))
	require.NoError(t, err)
	defer db.Close()
	db.SetMaxOpenConns(1) // whose limit it is
	s, err := sqlitestore.New(ctx, db, nil)
	require.NoError(t, err)
	defer s.Close()
	var pages int
	require.NoError(t, db.QueryRow("PRAGMA page_count").Scan(&pages))
	limit := func(n int) {
		_, err := db.Exec(fmt.Sprintf("PRAGMA max_page_count = %d", n))
		require.NoError(t, err)
	}
	limit(pages + 20)
	full := -1
	for i := 0; full < 0; i++ {
		c := rule(fmt.Sprint("r", i))
		c.Puts[0].Data = make([]byte, store.MaxData)
		switch _, err := s.Apply(ctx, c); {
		case err != nil:
			require.NotErrorIs(t, err, store.ErrTooLarge)
			full = i
		default:
			require.Less(t, i, 100)
			limit(pages + 20) // a connection of the pool that is new has none
		}
	}
	limit(1 << 20)
	_, err = s.Get(ctx, store.KindRule, fmt.Sprint("r", full))
	require.ErrorIs(t, err, store.ErrNotFound)
	apply(t, s, rule("after"))
	page, err := s.List(ctx, store.Query{Kind: store.KindEvent})
	require.NoError(t, err)
	require.Len(t, page.Records, full+1)
}

// On a host's pool that acknowledges before the disk has it, the store's transactions wait.
func TestDurableOnAHostsPool(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	db, err := sql.Open("sqlite", filepath.Join(t.TempDir(), "host.db")+"?_pragma=synchronous(OFF)")
	require.NoError(t, err)
	defer db.Close()
	db.SetMaxOpenConns(1)
	s, err := sqlitestore.New(ctx, db, nil)
	require.NoError(t, err)
	defer s.Close()
	_, err = db.Exec("PRAGMA synchronous = OFF")
	require.NoError(t, err)
	apply(t, s, rule("r"))
	var level int
	require.NoError(t, db.QueryRow("PRAGMA synchronous").Scan(&level))
	require.Equal(t, 2, level, "FULL, on the connection that wrote")
	var mode string
	require.NoError(t, db.QueryRow("PRAGMA journal_mode").Scan(&mode))
	require.Equal(t, "wal", mode)

	memory, err := sql.Open("sqlite", ":memory:")
	require.NoError(t, err)
	defer memory.Close()
	_, err = sqlitestore.New(ctx, memory, nil)
	require.ErrorIs(t, err, store.ErrInvalid)
	_, err = sqlitestore.New(ctx, nil, nil)
	require.ErrorIs(t, err, store.ErrInvalid)
}

// Two processes' stores on one file: each sees the other's writes at once, and is woken by them.
func TestTwoStoresOfOneFile(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "tokens.db")
	a, b := open(t, path, nil), open(t, path, nil)
	defer a.Close()
	defer b.Close()
	for i := range 20 {
		writer, reader := a, b
		if i%2 == 1 {
			writer, reader = b, a
		}
		before := at(t, reader)
		woken := make(chan error, 1)
		go func() { woken <- reader.Wait(ctx, before) }()
		apply(t, writer, rule(fmt.Sprint("r", i)))
		_, err := reader.Get(ctx, store.KindRule, fmt.Sprint("r", i))
		require.NoError(t, err)
		require.NoError(t, <-woken)
		v, err := reader.Follow(ctx, before, nil, 10)
		require.NoError(t, err)
		require.Len(t, v.Records, 1)
	}
	require.Equal(t, at(t, a), at(t, b))
}

func TestClosed(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s := open(t, filepath.Join(t.TempDir(), "tokens.db"), nil)
	n := s.Namespace("n")
	waits := make(chan error, 1)
	now := at(t, s)
	go func() { waits <- s.Wait(ctx, now) }()
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			if _, err := s.Apply(ctx, rule(fmt.Sprint(i))); err != nil {
				require.ErrorIs(t, err, sqlitestore.ErrClosed)
			}
		})
	}
	require.NoError(t, s.Close())
	if err := <-waits; err != nil { // woken by a write, or
		require.ErrorIs(t, err, sqlitestore.ErrClosed)
	}
	require.NoError(t, s.Close(), "twice is no error")
	wg.Wait()
	for _, s := range []*sqlitestore.Store{s, n} {
		_, err := s.Get(ctx, store.KindRule, "1")
		require.ErrorIs(t, err, sqlitestore.ErrClosed)
		_, err = s.Apply(ctx, rule("late"))
		require.ErrorIs(t, err, sqlitestore.ErrClosed)
	}
}
