// Package pgstore keeps an apitoken service in Postgres 13 or newer, through the host's own pgx pool.
//
// A write is one statement, one round trip and one transaction. State (rules, keys, clients, roles, API-key changes) is
// ordered by a counter row that a change holds until it commits. Events are ordered by transaction ID behind the
// snapshot horizon: their feed may lag behind a long transaction of the host's, state never does. NOTIFY is a hint
// only; nothing depends on it.
//
// # What it promises
//
// An acknowledged write is on the server's disk, also where synchronous_commit is off by default: the store's transactions
// turn it on for themselves, and keep any stronger setting. What remains is the server's: with fsync off, or after a failover
// to an asynchronous replica, acknowledged writes may be lost. A failover is noticed by the server's timeline, a dump that was put back by the number of its table
// or the system identifier of its cluster: both make another History, upon which the service asks for a choice
// (apitoken.Config.Restored). So does pg_upgrade, which loses nothing. A file-level copy of the data directory that is put
// back without recovery into a new timeline is not told from the original.
//
// Reads go to the primary: a replica refuses them. Where a failover may leave the old primary up, let the pool ask for a
// server that takes writes (target_session_attrs=read-write).
//
// Any isolation that the pool's sessions have by default will do, read committed costs least: the others make writes that
// meet begin again, which the store does for them.
//
// # Events
//
// Partition makes monthly partitions of the events table, Detach takes old ones out. Without them events lie in one
// table, from which they are purged as they expire.
package pgstore

import (
	"context"
	crand "crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/apitoken-go/apitoken/internal/gather"
	"github.com/apitoken-go/apitoken/store"
)

// Options change what New does; nil means all defaults.
type Options struct {
	Schema string // empty: the search path's
	Prefix string // of all tables; empty: "apitoken_"
	// Manual says that a DBA runs Migrations: New fails on tables that are not there, instead of making them.
	Manual bool
	// Pooler says that a transaction pooler such as PgBouncer stands in between: no prepared statements, no LISTEN. Where it
	// is needed and not set, verbs answer an error that names it.
	Pooler bool
	// Timeout bounds every verb whatever its context, and New's questions: a server that fell silent, or a network that swallows
	// what is sent, holds no caller for longer. Repetitions after deadlocks and broken connections are included, and a write
	// ends with it also when its caller has given up. Zero: 10 s.
	Timeout time.Duration
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
	ns      string
	fence   int64   // the advisory lock of its writes
	state   grouper // of its changes of state alone
	mixed   grouper // of those that come with other records
	gets    gather.Gets
	opening chan struct{} // holds a token while it is opened
	isOpen  atomic.Bool
}

// engine is what the namespaces of one New share.
type engine struct {
	pool *pgxpool.Pool
	o    Options
	sql  statements
	hear *listener

	group  grouper       // of changes without state, of all namespaces
	turns  chan struct{} // one for each write under way, those of state alone aside
	urgent chan struct{} // the same for state alone: no session takes a revocation's

	mu     sync.Mutex // guards spaces, closed
	spaces map[string]*Store
	closed bool
	writes sync.WaitGroup // what Close waits for
}

// How many writes may be under way in one process. Whoever comes next waits, within his deadline, and holds no goroutine.
const maxWrites = 1024

var (
	_ store.Store = (*Store)(nil)
	_ store.Waker = (*Store)(nil)
)

var (
	// ErrMissing is what New answers where the tables are not there and Manual is set; other errors name the cause.
	ErrMissing = errors.New("pgstore: the tables are not there, or of another version")
	// ErrClosed: the Store was closed.
	ErrClosed = errors.New("pgstore: closed")
)

var (
	errReplica = errors.New("pgstore: this server is a replica: the store reads and writes the primary")
	// A prepared statement is there that this connection did not make, or one is gone that it did.
	errPooler = errors.New("pgstore: a transaction pooler such as PgBouncer seems to stand before the server: set Options.Pooler")
	// Two primaries, or a fail-over under way.
	errTwoServers = errors.New("pgstore: the pool leads to servers of different histories")
)

// New returns the namespace "" of the tables, which it makes first unless o.Manual is set. The pool stays the host's; close the
// Store before it.
func New(ctx context.Context, pool *pgxpool.Pool, o *Options) (*Store, error) {
	if pool == nil {
		return nil, fmt.Errorf("%w: no pool", store.ErrInvalid)
	}
	e := &engine{
		pool: pool, o: o.orDefault(), spaces: map[string]*Store{}, group: grouper{size: groupSize, lanes: groupLanes},
		turns: make(chan struct{}, maxWrites), urgent: make(chan struct{}, maxWrites),
	}
	if err := e.o.check(); err != nil {
		return nil, err
	}
	if !e.o.Manual {
		if err := Migrate(ctx, pool, &e.o); err != nil {
			return nil, err
		}
	}
	e.sql = newStatements(&e.o)
	switch version, err := e.version(ctx); {
	case noTable(err):
		return nil, fmt.Errorf("%w: run Migrate, or what Migrations prints", ErrMissing)
	case err != nil:
		return nil, e.cause(err)
	case version != len(migrations):
		return nil, fmt.Errorf("%w: tables of version %d, this program needs %d", ErrMissing, version, len(migrations))
	}
	e.hear = newListener(e)
	s := e.namespace("")
	ctx, cancel := e.bounded(ctx)
	defer cancel()
	return s, s.open(ctx)
}

// version is that of the tables.
func (e *engine) version(ctx context.Context) (n int, err error) {
	ctx, cancel := e.bounded(ctx)
	defer cancel()
	err = e.pool.QueryRow(ctx, e.o.names("SELECT coalesce(max(version), 0) FROM @version"), e.args()...).Scan(&n)
	return n, err
}

// bounded gives a verb the store's own deadline beside its caller's.
func (e *engine) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, e.o.Timeout)
}

// Close ends what listens for hints, in all namespaces, and waits for writes under way (Options.Timeout at most).
// Afterwards every verb answers ErrClosed. The pool is the host's.
func (s *Store) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.hear.close()
	s.writes.Wait()
	return nil
}

// begin counts a write that Close waits for.
func (e *engine) begin() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return ErrClosed
	}
	e.writes.Add(1)
	return nil
}

// usable is asked first by every verb; it opens the namespace at its first use.
func (s *Store) usable(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.hear.ctx.Err() != nil {
		return ErrClosed
	}
	return s.open(ctx)
}

// Namespace returns the store of another namespace in the same tables: its records, order and events are its own. The
// empty name is New's. Closing one closes all.
func (s *Store) Namespace(name string) *Store { return s.namespace(name) }

func (e *engine) namespace(name string) *Store {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.spaces[name]
	if s == nil {
		s = &Store{
			engine: e, ns: name, fence: lockKey(e.o.qualified(), "fence", name), opening: make(chan struct{}, 1),
			state: grouper{size: stateSize, lanes: stateLanes}, mixed: grouper{size: stateSize, lanes: stateLanes},
		}
		s.gets.Lanes, s.gets.Most, s.gets.Timeout, s.gets.Ask = getLanes, getSize, e.o.Timeout, s.getAll
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
	if s.isOpen.Load() {
		return nil
	}
	select {
	case s.opening <- struct{}{}:
		defer func() { <-s.opening }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if s.isOpen.Load() {
		return nil
	}
	if !utf8.ValidString(s.ns) || strings.IndexByte(s.ns, 0) >= 0 || len(s.ns) > 255 {
		return fmt.Errorf("%w: a namespace is at most 255 bytes of UTF-8 without NUL", store.ErrInvalid)
	}
	if err := s.adopt(ctx); err != nil {
		return err
	}
	s.isOpen.Store(true)
	return nil
}

// adopt makes the row fit the server that is asked: a new History where another server, or another timeline of it,
// wrote last.
func (s *Store) adopt(ctx context.Context) error {
	return s.again(ctx, func() error {
		system := "unknown" // where the function is not granted, the timeline and the table tell
		err := s.pool.QueryRow(ctx, "SELECT system_identifier::text FROM pg_control_system()", s.args()...).Scan(&system)
		if err != nil && !isPg(err, "42501") {
			return err
		}
		_, err = s.pool.Exec(ctx, s.sql.adopt, s.args(s.ns, randomHistory(), system)...)
		return err
	})
}

func randomHistory() int64 {
	var b [8]byte
	_, _ = crand.Read(b[:]) // never fails
	return int64(binary.BigEndian.Uint64(b[:])&math.MaxInt64 | 1)
}

// again asks what may be asked twice, until it is answered, refused, or ctx ends: where the server rolled it back, or its
// connection ended, as all of a pool's do when a server is started again or hands over to another. After Options.Timeout it
// asks no more.
func (e *engine) again(ctx context.Context, ask func() error) error {
	began := time.Now()
	for wait := firstWait; ; wait = min(2*wait, longestWait) {
		err := ask()
		if !rolledBack(err) && !broken(err) || time.Since(began) > e.o.Timeout || !pause(ctx, wait) {
			return e.cause(err)
		}
	}
}

const (
	firstWait   = 2 * time.Millisecond
	longestWait = 200 * time.Millisecond
)

// rolledBack: a serialization failure or a deadlock. Another attempt may succeed.
func rolledBack(err error) bool { return isPg(err, "40001") || isPg(err, "40P01") }

// broken: the connection ended under the question. That a new one cannot be made is something else: the server is away.
func broken(err error) bool {
	var pg *pgconn.PgError
	var connect *pgconn.ConnectError
	var wire *net.OpError
	switch {
	case errors.As(err, &connect), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return false
	case errors.As(err, &pg):
		return strings.HasPrefix(pg.Code, "57P") // the server or its operator ends it
	}
	return errors.As(err, &wire) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) || err != nil && pgconn.SafeToRetry(err)
}

// pause waits between half and one and a half of d; false when ctx ends before.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d/2 + rand.N(d))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// isPg reports whether err is the server's, of that code.
func isPg(err error, code string) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == code
}

// noTable: the table that was asked for is not there, or its schema.
func noTable(err error) bool { return isPg(err, "42P01") || isPg(err, "3F000") }

// cause names what an operator should know of a driver's error, and keeps the error.
func (e *engine) cause(err error) error {
	var pg *pgconn.PgError
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &pg):
	case pg.Code == "55000": // WAL control functions during recovery
		return fmt.Errorf("%w: %w", errReplica, err)
	case pg.Code == "25006":
		return fmt.Errorf("%w: the server is a replica, or this session takes no writes: %w", store.ErrReadOnly, err)
	case pg.Code == "AP003":
		return store.ErrReadOnly
	case pg.Code == "42P05", pg.Code == "26000":
		return fmt.Errorf("%w: %w", errPooler, err)
	}
	return fmt.Errorf("pgstore: %w", err)
}

// SetReadOnly makes the namespace refuse writes with [store.ErrReadOnly], or take them again, in every process: for a service
// that moves to another store. It returns when writes under way have ended.
func (s *Store) SetReadOnly(ctx context.Context, on bool) error {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	if err := s.usable(ctx); err != nil {
		return err
	}
	return s.again(ctx, func() error {
		_, err := s.pool.Exec(ctx, s.sql.move, s.args(s.ns, s.fence, on)...)
		return err
	})
}
