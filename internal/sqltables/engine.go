// Package sqltables keeps what package store promises in SQL tables, through database/sql, for the engines in which a
// write transaction that holds a namespace's row is alone in that namespace. sqlitestore and mysqlstore say what their
// engine does otherwise, as an [Engine], and export a Store of their own around this one.
//
// A write transaction reads what it needs, decides in this process, and writes: two round trips where the engine takes
// several statements at once, however many callers share it. The row's counters order state and events, so that the
// feed of events never lags.
//
// Statements hold their values as literals, which an [Engine] writes: then they need no preparing, which would be a
// round trip of its own.
package sqltables

import (
	"context"
	crand "crypto/rand"
	"database/sql"
	"database/sql/driver"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/apitoken-go/apitoken/internal/gather"
	"github.com/apitoken-go/apitoken/store"
)

// Engine is a database and its ways. Its fields are set before [Engine.Start] and not changed afterwards.
type Engine struct {
	Name   string // of the store's package, which begins its errors
	DB     *sql.DB
	Prefix string // of the tables namespace, record and event
	// Timeout bounds every verb.
	Timeout time.Duration
	// Writers is how many write transactions may be under way in this process: of each namespace, or of all together where
	// Shared is set, so that callers of different namespaces share one.
	Writers int
	Shared  bool
	// Kept: one connection is for write transactions alone, which come one at a time, so that what it has cached of the file stays true.
	Kept bool
	// Joined: several statements go to the server at once, with semicolons between.
	Joined bool
	// Look is how often whoever waits has other processes' writes looked for.
	Look time.Duration

	Begin, End []string // the statements before and behind a write transaction
	Lock       string   // at the end of what it reads
	ByKey      string   // behind the name of a table that is read by its primary key
	// ByIndex stands behind the name of a table, "record" or "event", that is read by what a column holds; nil where the server
	// finds the index by itself, as MariaDB does.
	ByIndex func(table, column string) string
	// Late: a page is found by its keys alone, and its rows are read behind them. MariaDB would write whole rows to a temporary file.
	Late   bool
	Ignore string // begins an insertion that does nothing where the row exists
	Upsert string // ends an insertion of records that may exist: version, pos, written, expires and data are the new ones
	Keys   string // begins the list of rows that (a, b) IN compares with

	// Text and Bytes write literals.
	Text  func(string) string
	Bytes func([]byte) string

	Now    func() string // an expression, the store's clock in ms
	Origin string        // an expression: other text where acknowledged writes may have been lost since
	Guard  string        // an expression that Guarded reads
	Serial string        // an expression that rises by 1 with what Begin or Bump do

	Bump string // a statement of each transaction that writes; may be empty

	Guarded   func(guard string, write bool) error   // why the server is not to be used
	Prepare   func(context.Context, *sql.Conn) error // before a write transaction; may be nil
	Committed func(serial int64)                     // behind one that wrote; may be nil
	Retry     func(error) bool                       // nothing was done, and another attempt may succeed
	Broken    func(error) bool                       // the connection ended: nobody knows whether a commit was done
	Cause     func(error) error                      // says what an operator should know; keeps the error

	// Closed is what verbs answer behind Close.
	Closed error

	slots  chan struct{} // holds a token for each write transaction, where Shared
	turns  chan struct{} // one for each write under way, those of state aside
	urgent chan struct{} // the same for state: a revocation waits for no session
	reads  chan struct{} // and for each other call
	queue  *queue        // of all namespaces, where Shared
	hear   *listener

	mu     sync.Mutex // guards spaces, closed, kept
	spaces map[string]*Store
	closed bool
	kept   *sql.Conn // while no transaction has it
	writes sync.WaitGroup
}

// How many calls of a sort may be under way in one process. Whoever comes next waits, within their deadline.
const maxCalls = 1024

// Store is one namespace. It is safe for concurrent use.
type Store struct {
	*Engine
	ns    string
	queue *queue
	slots chan struct{}
	gets  gather.Gets

	opening chan struct{} // holds a token while it is opened

	mu   sync.Mutex     // guards seen
	seen store.Position // the last of this process; zero: not open
}

// Start returns the namespace "" of tables that are there.
func (e *Engine) Start(ctx context.Context) (*Store, error) {
	e.turns, e.urgent, e.reads = make(chan struct{}, maxCalls), make(chan struct{}, maxCalls), make(chan struct{}, maxCalls)
	e.spaces, e.hear = map[string]*Store{}, newListener(e)
	e.queue, e.slots = &queue{lanes: e.Writers}, make(chan struct{}, e.Writers)
	s := e.Namespace("")
	ctx, cancel := e.bounded(ctx)
	defer cancel()
	if err := s.open(ctx); err != nil {
		e.hear.close()
		return nil, err
	}
	return s, nil
}

// Namespace returns the store of a namespace, the same for the same name.
func (e *Engine) Namespace(name string) *Store {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.spaces[name]
	if s == nil {
		s = &Store{Engine: e, ns: name, opening: make(chan struct{}, 1), queue: e.queue, slots: e.slots}
		if !e.Shared {
			s.queue, s.slots = &queue{lanes: e.Writers}, make(chan struct{}, e.Writers)
		}
		s.gets.Lanes, s.gets.Most, s.gets.Timeout, s.gets.Ask = getLanes, getSize, e.Timeout, s.getAll
		e.spaces[name] = s
	}
	return s
}

// Close ends what waits, in all namespaces, and waits for writes under way, Timeout at most. It reports whether it is the
// first.
func (e *Engine) Close() bool {
	e.mu.Lock()
	first := !e.closed
	e.closed = true
	e.mu.Unlock()
	e.hear.close()
	ended := make(chan struct{})
	go func() { e.writes.Wait(); close(ended) }()
	late := time.NewTimer(e.Timeout)
	defer late.Stop()
	select {
	case <-ended:
	case <-late.C:
	}
	if conn := e.takeKept(); conn != nil {
		_ = conn.Close()
	}
	return first
}

// takeKept gives the connection that is kept, if there is one.
func (e *Engine) takeKept() *sql.Conn {
	e.mu.Lock()
	defer e.mu.Unlock()
	conn := e.kept
	e.kept = nil
	return conn
}

// keep reports whether a connection is kept for the next write transaction.
func (e *Engine) keep(conn *sql.Conn) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.Kept || e.closed || e.kept != nil {
		return false
	}
	e.kept = conn
	return true
}

// begin counts a write that Close waits for.
func (e *Engine) begin() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return e.Closed
	}
	e.writes.Add(1)
	return nil
}

func (e *Engine) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, e.Timeout)
}

// await runs a verb that is not Apply in the store's own time, on a goroutine of its own: where the driver does not
// return, as from a disk that hangs, the caller does. What the verb answers is then dropped.
func await[T any](ctx context.Context, s *Store, verb func(context.Context) (T, error)) (T, error) {
	var none T
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	if err := ctx.Err(); err != nil {
		return none, err
	}
	if s.hear.ctx.Err() != nil {
		return none, s.Closed
	}
	select {
	case s.reads <- struct{}{}:
	case <-ctx.Done():
		return none, ctx.Err()
	}
	type answer struct {
		value T
		err   error
	}
	got := make(chan answer, 1)
	go func() {
		defer func() { <-s.reads }()
		err := s.open(ctx)
		if err != nil {
			got <- answer{err: err}
			return
		}
		value, err := verb(ctx)
		got <- answer{value, err}
	}()
	select {
	case a := <-got:
		return a.value, a.err
	case <-ctx.Done():
		return none, ctx.Err()
	}
}

// again asks until it is answered, refused, or ctx ends, where what is asked may be asked twice.
func (e *Engine) again(ctx context.Context, ask func() error) error {
	for wait := firstWait; ; wait = min(2*wait, longestWait) {
		err := ask()
		if err == nil {
			return nil
		}
		if !e.Retry(err) && !e.Broken(err) || !pause(ctx, wait) {
			return e.cause(err)
		}
	}
}

const (
	firstWait   = 2 * time.Millisecond
	longestWait = 200 * time.Millisecond
)

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

// cause names the package before a driver's error. Errors of package store are for the caller as they are.
func (e *Engine) cause(err error) error {
	if err == nil || known(err) || errors.Is(err, e.Closed) {
		return err
	}
	if better := e.Cause(err); known(better) || strings.HasPrefix(better.Error(), e.Name) {
		return better
	}
	return fmt.Errorf("%s: %w", e.Name, err)
}

// known reports errors that say that nothing was done.
func known(err error) bool {
	for _, k := range []error{store.ErrNotFound, store.ErrConflict, store.ErrReadOnly, store.ErrInvalid, store.ErrTooLarge, store.ErrDiverged, store.ErrTrimmed} {
		if errors.Is(err, k) {
			return true
		}
	}
	return false
}

func randomHistory() int64 {
	var b [8]byte
	_, _ = crand.Read(b[:]) // never fails
	return int64(binary.BigEndian.Uint64(b[:])&math.MaxInt64 | 1)
}

// unsure is the error of a transaction that may have been committed.
type unsure struct{ error }

func (u unsure) Unwrap() error { return u.error }

// transact runs one write transaction. It locks the rows of the namespaces names and gives them to do, with the records
// that read selects, if it is not empty. do answers what to write; nothing is undone. It runs at most once.
func (e *Engine) transact(ctx context.Context, slots chan struct{}, names []string, read string, do func(map[string]*space, []record) ([]string, error)) error {
	select {
	case slots <- struct{}{}:
		defer func() { <-slots }()
	case <-ctx.Done():
		return ctx.Err()
	}
	conn := e.takeKept()
	if conn == nil {
		var err error
		if conn, err = e.DB.Conn(ctx); err != nil {
			return err
		}
	}
	whole := false // the connection is as it was
	defer func() {
		if !whole {
			_ = conn.Raw(func(any) error { return driver.ErrBadConn }) // the pool drops it
		} else if e.keep(conn) {
			return
		}
		_ = conn.Close()
	}()
	if e.Prepare != nil {
		if err := e.Prepare(ctx, conn); err != nil {
			return err
		}
	}
	var texts []string
	for _, n := range names {
		texts = append(texts, e.Text(n))
	}
	spaces, records := map[string]*space{}, []record(nil)
	asked := []string{"SELECT " + e.columns() + ", n.ns FROM " + e.Prefix + "namespace n" + e.ByKey + " WHERE n.ns IN (" + strings.Join(texts, ", ") + ") ORDER BY n.ns" + e.Lock}
	scans := []func(*sql.Rows) error{func(rows *sql.Rows) error {
		var ns string
		sp := &space{}
		err := rows.Scan(append(sp.fields(), &ns)...)
		spaces[ns] = sp
		return err
	}}
	if read != "" {
		asked = append(asked, read+e.Lock)
		scans = append(scans, func(rows *sql.Rows) error {
			var r record
			err := rows.Scan(r.fields()...)
			records = append(records, r)
			return err
		})
	}
	if err := e.ask(ctx, conn, asked, scans); err != nil {
		return err
	}
	for _, sp := range spaces {
		if err := e.Guarded(sp.guard, true); err != nil {
			return err
		}
	}
	write, refused := do(spaces, records)
	if refused != nil || len(write) == 0 {
		if err := e.tell(ctx, conn, append([]string{"ROLLBACK"}, e.End...)); err == nil {
			whole = true
		}
		return refused
	}
	if e.Bump != "" {
		write = append(write, e.Bump)
	}
	write = append(append(write, "COMMIT"), e.End...)
	if err := e.tell(ctx, conn, write); err != nil {
		if errors.Is(err, driver.ErrBadConn) { // nothing was sent
			return err
		}
		return unsure{err}
	}
	whole = true
	for _, sp := range spaces {
		if e.Committed != nil {
			e.Committed(sp.serial + 1)
			break
		}
	}
	return nil
}

// ask begins a transaction and reads.
func (e *Engine) ask(ctx context.Context, conn *sql.Conn, selects []string, scans []func(*sql.Rows) error) error {
	begin := e.Begin
	if e.Joined {
		selects, begin = []string{strings.Join(append(append([]string(nil), begin...), selects...), "; ")}, nil
	}
	if err := e.tell(ctx, conn, begin); err != nil {
		return err
	}
	answered := 0
	for _, text := range selects {
		rows, err := conn.QueryContext(ctx, text)
		if err != nil {
			return err
		}
		for more := true; more; more = rows.NextResultSet() {
			for rows.Next() {
				if err := scans[answered](rows); err != nil {
					_ = rows.Close()
					return err
				}
			}
			if answered++; answered == len(scans) && !e.Joined {
				break
			}
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			return err
		}
	}
	if answered < len(scans) {
		return fmt.Errorf("%d answers to %d questions", answered, len(scans))
	}
	return nil
}

// tell runs statements.
func (e *Engine) tell(ctx context.Context, conn *sql.Conn, statements []string) error {
	if e.Joined && len(statements) > 0 {
		statements = []string{strings.Join(statements, "; ")}
	}
	for _, text := range statements {
		if _, err := conn.ExecContext(ctx, text); err != nil {
			return err
		}
	}
	return nil
}
