// Package pgstore keeps an apitoken service in Postgres 13 or newer, through the host's own pgx pool.
//
// A write is one statement, one round trip and one transaction. State (rules, keys, clients, roles, API-key changes) is
// ordered by a counter row that a change holds until it commits. Events are ordered by transaction ID behind the
// snapshot horizon: their feed may lag behind a long transaction of the host's, state never does. NOTIFY is a hint
// only; nothing depends on it.
//
// # What it promises
//
// Durability is the server's: with synchronous_commit off, or after a failover to an asynchronous replica, acknowledged
// writes may be lost. A failover is noticed by the server's timeline, a dump that was put into another cluster by its
// system identifier: both make another History, upon which the service asks for a choice. A file-level copy of the data
// directory that is put back without recovery into a new timeline is not told from the original.
//
// Reads go to the primary: a replica refuses them.
package pgstore

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/apitoken-go/apitoken/store"
)

// Options change what New does; nil means all defaults.
type Options struct {
	Schema string // empty: the search path's
	Prefix string // of all tables; empty: "apitoken_"
	// Manual says that a DBA runs Migrations: New fails on tables that are not there, instead of making them.
	Manual bool
	// Pooler says that a transaction pooler such as PgBouncer stands in between: no prepared statements, no LISTEN.
	Pooler  bool
	Timeout time.Duration // of one write, when its caller has given up or set no deadline; zero: 10 s
}

func (o *Options) orDefault() Options {
	if o == nil {
		return Options{}
	}
	return *o
}

// Store is one namespace. It is safe for concurrent use.
type Store struct {
	*engine
	ns     string
	fence  int64
	opened sync.Mutex // makes one opening at a time
	isOpen bool
}

// engine is what the namespaces of one New share.
type engine struct {
	pool *pgxpool.Pool
	o    Options
	sql  statements
	hear *listener

	group grouper

	mu     sync.Mutex // guards spaces
	spaces map[string]*Store
}

var (
	_ store.Store = (*Store)(nil)
	_ store.Waker = (*Store)(nil)
)

// ErrMissing is what New answers where the tables are not there and Manual is set; other errors name the cause.
var ErrMissing = errors.New("pgstore: the tables are not there, or of another version")

var (
	errInvalid = errors.New("pgstore: invalid argument")
	errReplica = errors.New("pgstore: this server is a replica: the store reads and writes the primary")
)

// New returns the namespace "" of the tables, which it makes first unless o.Manual is set. The pool stays the host's; close the
// Store before it.
func New(ctx context.Context, pool *pgxpool.Pool, o *Options) (*Store, error) {
	if pool == nil {
		return nil, fmt.Errorf("%w: no pool", errInvalid)
	}
	e := &engine{pool: pool, o: o.orDefault(), spaces: map[string]*Store{}}
	if err := e.o.check(); err != nil {
		return nil, err
	}
	if e.o.Timeout <= 0 {
		e.o.Timeout = 10 * time.Second
	}
	if !e.o.Manual {
		if err := Migrate(ctx, pool, &e.o); err != nil {
			return nil, err
		}
	}
	e.sql = newStatements(&e.o)
	var version int
	err := pool.QueryRow(ctx, e.o.names("SELECT coalesce(max(version), 0) FROM @version"), e.args()...).Scan(&version)
	var pg *pgconn.PgError
	switch {
	case errors.As(err, &pg) && pg.Code == "42P01":
		return nil, fmt.Errorf("%w: run Migrate, or what Migrations prints", ErrMissing)
	case err != nil:
		return nil, fmt.Errorf("pgstore: %w", err)
	case version != len(migrations):
		return nil, fmt.Errorf("%w: tables of version %d, this program needs %d", ErrMissing, version, len(migrations))
	}
	e.hear = newListener(e)
	s := e.namespace("")
	return s, s.open(ctx)
}

// Close ends what listens for hints. The pool is the host's.
func (s *Store) Close() error {
	s.hear.close()
	return nil
}

// Namespace returns the store of another namespace in the same tables: its records, order and events are its own. The
// empty name is New's.
func (s *Store) Namespace(name string) *Store { return s.namespace(name) }

func (e *engine) namespace(name string) *Store {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.spaces[name]
	if s == nil {
		s = &Store{engine: e, ns: name, fence: lockKey(e.o.qualified(), "fence", name)}
		e.spaces[name] = s
	}
	return s
}

// args puts what the driver needs in front of a statement's arguments.
func (e *engine) args(a ...any) []any {
	if e.o.Pooler {
		return append([]any{pgx.QueryExecModeExec}, a...)
	}
	return a
}

// open makes the namespace's row at its first use, and adopts another history where the server is another one.
func (s *Store) open(ctx context.Context) error {
	s.opened.Lock()
	defer s.opened.Unlock()
	if s.isOpen {
		return nil
	}
	if !utf8.ValidString(s.ns) || strings.IndexByte(s.ns, 0) >= 0 || len(s.ns) > 255 {
		return fmt.Errorf("%w: a namespace is at most 255 bytes of UTF-8 without NUL", errInvalid)
	}
	if err := s.adopt(ctx); err != nil {
		return err
	}
	s.isOpen = true
	return nil
}

// adopt makes the row fit the server that is asked: a new History where another server, or another timeline of it,
// wrote last.
func (s *Store) adopt(ctx context.Context) error {
	system := "unknown" // where the function is not granted, the timeline alone tells
	if err := s.pool.QueryRow(ctx, "SELECT system_identifier::text FROM pg_control_system()", s.args()...).Scan(&system); err != nil {
		var pg *pgconn.PgError
		if !errors.As(err, &pg) || pg.Code != "42501" {
			return s.cause(err)
		}
	}
	_, err := s.pool.Exec(ctx, s.sql.adopt, s.args(s.ns, randomHistory(), system)...)
	return s.cause(err)
}

func randomHistory() int64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return int64(binary.BigEndian.Uint64(b[:])&math.MaxInt64 | 1)
}

// cause names what an operator should know of a driver's error, and keeps the error.
func (e *engine) cause(err error) error {
	if err == nil {
		return nil
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		switch pg.Code {
		case "55000": // WAL control functions during recovery
			return fmt.Errorf("%w: %w", errReplica, err)
		case "25006":
			return fmt.Errorf("%w: the server or this session takes no writes", store.ErrReadOnly)
		}
	}
	return fmt.Errorf("pgstore: %w", err)
}

// SetReadOnly makes the namespace refuse writes with [store.ErrReadOnly], or take them again, in every process: for a service
// that moves to another store. It returns when writes under way have ended.
func (s *Store) SetReadOnly(ctx context.Context, on bool) error {
	if err := s.open(ctx); err != nil {
		return err
	}
	return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1)", s.args(s.fence)...); err != nil {
			return s.cause(err)
		}
		_, err := tx.Exec(ctx, s.o.names("UPDATE @namespace SET moved = $2 WHERE ns = $1"), s.args(s.ns, on)...)
		return s.cause(err)
	})
}
