// Package sqlitestore keeps an apitoken service in SQLite, in a file of its own or in the host's database, through the
// driver modernc.org/sqlite, which needs no C compiler.
//
//	st, err := sqlitestore.Open("tokens.db", nil)
//	if err != nil { ... }
//	defer st.Close()
//
// One transaction at a time writes, for all callers that wait by then. Several processes on one machine may share the
// file, and hear of each other's revocations within 75 ms. Package boltstore writes faster, for one process.
//
// # What it promises
//
// An acknowledged write is on the disk: the database is in WAL mode, and the store's transactions run under
// synchronous=FULL, also on a pool of the host's that has less. The directory must be on a local file system.
//
// Beside tokens.db lie SQLite's tokens.db-wal and tokens.db-shm, and tokens.db.mark, by which a file that was put back
// from a backup is told from one that went on: it opens with a new History in its positions (see [store.Position] and
// [Store.Restored]), because acknowledged revocations may be missing from it. Two things go unnoticed: a snapshot of the
// whole file system that is put back, and a copy of all these files that is written over them in place. Once a process
// finds another file in the place of the one that it has open, every verb answers [ErrReplaced].
//
// Back up with SQLite's own means, VACUUM INTO or .backup. Before a backup is put back, remove the -wal and -shm files
// that lie there: SQLite would take an old log for the new file's.
package sqlitestore

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/apitoken-go/apitoken/internal/sqltables"
	"github.com/apitoken-go/apitoken/store"
)

// Options change what Open and New do; nil means all defaults.
type Options struct {
	// Prefix begins the names of all tables. Empty: "apitoken_".
	Prefix string
	// Timeout bounds every verb whatever its context, waiting for other writers included. Zero: 10 s. A write whose caller
	// was told that the time was over may still be done, like one whose ctx ended.
	Timeout time.Duration
	// AllowMode holds the permission bits that the file may have beside 0600, for example 0o060 where an orchestrator gives
	// volumes to a group. Zero: Open refuses a file that others can read or write with ErrExposed. Ignored by New, and on
	// Windows, where the bits mean nothing.
	AllowMode os.FileMode
	// Now is the store's clock; nil: time.Now.
	Now func() time.Time
}

// What Open, New and the verbs answer beside the errors of package store. Errors that wrap one of these say more.
var (
	// ErrForeign: the file or its tables are not of this package's making, or of a newer version of it.
	ErrForeign = errors.New("sqlitestore: not a token store")
	// ErrDamaged: SQLite finds the file malformed.
	ErrDamaged = errors.New("sqlitestore: file is damaged")
	// ErrMissing: the file is gone, but its mark or its log says that there was one; or it is a link to what is not there.
	ErrMissing = errors.New("sqlitestore: database file is missing")
	// ErrReplaced: another file lies in the place of the one that is open, or none. Open it again.
	ErrReplaced = errors.New("sqlitestore: database file was replaced")
	// ErrExposed: others than the file's owner may read or write it; see Options.AllowMode.
	ErrExposed = errors.New("sqlitestore: file is open to others")
	// ErrClosed: the Store was closed.
	ErrClosed = errors.New("sqlitestore: closed")
)

// Store is one namespace. It is safe for concurrent use.
type Store struct {
	s    *sqltables.Store
	file *file
}

var (
	_ store.Store = (*Store)(nil)
	_ store.Waker = (*Store)(nil)
)

// Open opens the file, or makes it with mode 0600 if there is none. A file that is damaged, empty, or not of this
// package's making is an error that says so and is never replaced; so is a file that is missing while its mark is there.
func Open(path string, o *Options) (*Store, error) {
	s, err := open(path, o)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return s, nil
}

func open(path string, o *Options) (*Store, error) {
	opt, err := o.orDefault()
	if err != nil {
		return nil, err
	}
	if path == "" {
		return nil, fmt.Errorf("%w: no path", store.ErrInvalid)
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	if path, err = filepath.Abs(path); err != nil {
		return nil, err
	}
	if err := checkFile(path, &opt); err != nil {
		return nil, err
	}
	db, err := openDB(path)
	if err != nil {
		return nil, err
	}
	s, err := start(context.Background(), db, path, false, &opt)
	if err != nil {
		_ = db.Close()
		return nil, err
	}
	s.file.own = db
	return s, nil
}

// New returns the namespace "" of tables in the host's database, which it makes if they are not there. db is of the
// driver modernc.org/sqlite and a file, not memory; it is put into WAL mode. It stays the host's: close the Store before it.
func New(ctx context.Context, db *sql.DB, o *Options) (*Store, error) {
	opt, err := o.orDefault()
	if err != nil {
		return nil, err
	}
	if db == nil {
		return nil, fmt.Errorf("%w: no database", store.ErrInvalid)
	}
	if _, ours := db.Driver().(*sqlite.Driver); !ours {
		return nil, fmt.Errorf("%w: the database is of the driver %T, and this store is for modernc.org/sqlite", store.ErrInvalid, db.Driver())
	}
	var path string
	if err := db.QueryRowContext(ctx, "SELECT file FROM pragma_database_list WHERE name = 'main'").Scan(&path); err != nil {
		return nil, cause(err)
	}
	if path == "" {
		return nil, fmt.Errorf("%w: the database is in memory; memstore is the store for that", store.ErrInvalid)
	}
	return start(ctx, db, path, true, &opt)
}

var plainName = regexp.MustCompile(`^[a-z_][a-z0-9_]{0,30}$`)

func (o *Options) orDefault() (opt Options, err error) {
	if o != nil {
		opt = *o
	}
	if opt.Prefix == "" {
		opt.Prefix = "apitoken_"
	}
	if opt.Timeout <= 0 {
		opt.Timeout = 10 * time.Second
	}
	if opt.Now == nil {
		opt.Now = time.Now
	}
	if !plainName.MatchString(opt.Prefix) {
		return opt, fmt.Errorf("%w: Prefix %q must be a plain name in lower case, at most 31 characters", store.ErrInvalid, opt.Prefix)
	}
	return opt, nil
}

// How long SQLite itself waits for another process before the store asks again, and the connections of a file that the
// store opened: what many callers read at once is read by as many processors.
const (
	busyMs    = 250
	busyPause = 10 * time.Millisecond
	maxConns  = 8
)

// openDB never makes the file: SQLite would make an empty one in the place of one that has gone.
func openDB(path string) (*sql.DB, error) {
	u := url.URL{Scheme: "file", Path: filepath.ToSlash(path), RawQuery: url.Values{"mode": {"rw"}, "_pragma": {
		fmt.Sprintf("busy_timeout(%d)", busyMs), "synchronous(FULL)", "fullfsync(1)", "checkpoint_fullfsync(1)",
	}}.Encode()}
	if !strings.HasPrefix(u.Path, "/") { // a drive letter
		u.Path = "/" + u.Path
	}
	db, err := sql.Open("sqlite", u.String())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(maxConns)
	db.SetMaxIdleConns(maxConns)
	return db, nil
}

// start adopts the file, whose tables it makes only if make is set.
func start(ctx context.Context, db *sql.DB, path string, make bool, o *Options) (*Store, error) {
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	f, err := adopt(ctx, db, path, make, o.Prefix)
	// Another process may have the file for longer than SQLite waits: it writes, or mends what a third one left when it died.
	for busy(err) {
		select {
		case <-ctx.Done():
			return nil, cause(err)
		case <-time.After(busyPause):
		}
		f, err = adopt(ctx, db, path, make, o.Prefix)
	}
	if err != nil {
		return nil, cause(err)
	}
	e := &sqltables.Engine{
		Name: "sqlitestore", DB: db, Prefix: o.Prefix, Timeout: o.Timeout, Writers: 1, Shared: true, Look: 50 * time.Millisecond,
		Begin:  []string{"BEGIN IMMEDIATE"},
		Ignore: "INSERT OR IGNORE",
		Upsert: " ON CONFLICT (ns, kind, id) DO UPDATE SET version = excluded.version, pos = excluded.pos, written = excluded.written, expires = excluded.expires, data = excluded.data",
		Keys:   "VALUES ",
		// SQLite would read all records of a kind in the order of their IDs: 76 pages a second of one subject in 20,000 sessions, not 3,400.
		ByIndex: func(table, column string) string {
			return " INDEXED BY " + o.Prefix + table + "_" + strings.TrimSuffix(column, "_id")
		},
		Text:   func(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" },
		Bytes:  func(b []byte) string { return "x'" + hex.EncodeToString(b) + "'" },
		Now:    func() string { return strconv.FormatInt(o.Now().UnixMilli(), 10) },
		Origin: "SELECT origin FROM " + o.Prefix + "file",
		Guard:  "''",
		Serial: "(SELECT serial FROM " + o.Prefix + "file)",
		Bump:   "UPDATE " + o.Prefix + "file SET serial = serial + 1",

		Guarded:   func(string, bool) error { return f.replaced() },
		Prepare:   func(ctx context.Context, c *sql.Conn) error { return durable(ctx, c) },
		Committed: f.committed,
		Retry:     busy,
		Broken:    func(err error) bool { return errors.Is(err, driver.ErrBadConn) },
		Cause: func(err error) error {
			if replaced := f.replaced(); replaced != nil { // connections to another file answer anything
				return fmt.Errorf("%w (%w)", replaced, err)
			}
			return cause(err)
		},
		Closed: ErrClosed,
	}
	if !make { // the database is ours: its connections wait for the disk, and there is one to spare
		e.Kept, e.Prepare = true, nil
	}
	s, err := e.Start(ctx)
	if err != nil {
		_ = f.mark.Close()
		return nil, err
	}
	return &Store{s, f}, nil
}

// durable makes the next transaction of a connection wait for the disk, also where the host's pool would not.
func durable(ctx context.Context, c *sql.Conn) error {
	var level int
	if err := c.QueryRowContext(ctx, "PRAGMA synchronous").Scan(&level); err != nil || level >= 2 {
		return err
	}
	_, err := c.ExecContext(ctx, "PRAGMA synchronous = FULL")
	return err
}

// busy reports whether another connection has the file.
func busy(err error) bool {
	return isCode(err, sqlite3.SQLITE_BUSY) || isCode(err, sqlite3.SQLITE_LOCKED)
}

func isCode(err error, code int) bool {
	var e *sqlite.Error
	return errors.As(err, &e) && e.Code()&0xff == code
}

// cause names what an operator should know of a driver's error, and keeps the error.
func cause(err error) error {
	if isCode(err, sqlite3.SQLITE_CORRUPT) || isCode(err, sqlite3.SQLITE_NOTADB) {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return err
}

// Restored reports whether this opening found that the file had been restored from a backup, copied, or put back, and
// so gave it a new History. The reason to ask is that acknowledged revocations may be missing.
func (s *Store) Restored() bool { return s.file.restored }

// Namespace returns the store of another namespace in the same tables: its records, order and events are its own. A name
// is at most 255 bytes of UTF-8 without NUL. Closing one closes all.
func (s *Store) Namespace(name string) *Store { return &Store{s.s.Namespace(name), s.file} }

// Get implements [store.Store].
func (s *Store) Get(ctx context.Context, kind store.Kind, id string) (store.Record, error) {
	return s.s.Get(ctx, kind, id)
}

// Apply implements [store.Store]. It returns within Options.Timeout; the write continues when ctx ends.
func (s *Store) Apply(ctx context.Context, c *store.Change) (store.Commit, error) {
	return s.s.Apply(ctx, c)
}

// Follow implements [store.Store].
func (s *Store) Follow(ctx context.Context, after store.Position, kinds []store.Kind, max int) (store.View, error) {
	return s.s.Follow(ctx, after, kinds, max)
}

// List implements [store.Store].
func (s *Store) List(ctx context.Context, q store.Query) (store.Page, error) { return s.s.List(ctx, q) }

// Purge implements [store.Store].
func (s *Store) Purge(ctx context.Context, kind store.Kind, before int64, max int) (int, error) {
	return s.s.Purge(ctx, kind, before, max)
}

// Wait implements [store.Waker]. Writes of this process wake it at once, those of others within 75 ms.
func (s *Store) Wait(ctx context.Context, p store.Position) error { return s.s.Wait(ctx, p) }

// SetReadOnly makes the namespace refuse writes with [store.ErrReadOnly], or take them again, in every process: for a
// service that moves to another store. It returns when writes under way have ended.
func (s *Store) SetReadOnly(ctx context.Context, on bool) error { return s.s.SetReadOnly(ctx, on) }

// Close waits for writes under way (Options.Timeout at most) and closes what Open opened. Afterwards every verb answers
// ErrClosed.
func (s *Store) Close() error {
	if !s.s.Close() {
		return nil
	}
	err := s.file.mark.Close()
	if s.file.own != nil {
		err = errors.Join(s.file.own.Close(), err)
	}
	return err
}

// checkFile refuses a file that is not to be opened, and makes one if there is none.
func checkFile(path string, o *Options) error {
	fi, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		if to, err := os.Readlink(path); err == nil {
			// A volume that is not mounted, for example: what the link names is not to be made in its stead.
			return fmt.Errorf("%w: it is a link to %s", ErrMissing, to)
		}
		for _, beside := range []string{".mark", "-wal"} {
			if _, err := os.Stat(path + beside); err == nil {
				return fmt.Errorf("%w: %s says that there was one; put it back, or remove that as well to begin anew", ErrMissing, path+beside)
			}
		}
		return create(path, o.Prefix)
	case err != nil:
		return err
	case !fi.Mode().IsRegular():
		return fmt.Errorf("%w: it is not a regular file", ErrForeign)
	}
	if mode := fi.Mode().Perm(); runtime.GOOS != "windows" && mode&^(0o700|o.AllowMode) != 0 {
		return fmt.Errorf("%w: its mode is %04o; chmod 600 it, or accept the mode with Options.AllowMode", ErrExposed, mode)
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	head := make([]byte, len(magic))
	if n, _ := f.Read(head); string(head[:n]) != magic {
		return fmt.Errorf("%w: no SQLite database", ErrForeign)
	}
	return nil
}

const magic = "SQLite format 3\x00"
