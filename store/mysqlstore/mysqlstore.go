// Package mysqlstore keeps an apitoken service in MySQL 8 or MariaDB 10.6 and newer, in InnoDB tables. It is tested with MariaDB 10.11;
// with MySQL 8 it was not tried, but written to its manual: with APITOKEN_TEST_MYSQL set to a DSN its tests use that server.
//
//	cfg, err := mysql.ParseDSN("tokens:secret@tcp(db.example.com)/tokens?tls=true")
//	if err != nil { ... }
//	st, err := mysqlstore.Open(ctx, cfg, nil)
//	if err != nil { ... }
//	defer st.Close()
//
// It opens connections of its own, because its sessions need settings of their own: read committed, UTC, strict SQL mode,
// several statements in one message. Callers that write at the same time share a transaction, which locks the namespace's
// row: two round trips and one commit for all of them, in one process after the other. State and events have one order,
// and the feed of events does not lag.
//
// # What it promises
//
// An acknowledged write is on the server's disk. A session of MySQL cannot ask for that, so the store looks with each
// write: it answers [ErrNotDurable] where innodb_flush_log_at_trx_commit, or sync_binlog beside a binary log, would
// acknowledge earlier. After a failover to an asynchronous replica acknowledged writes may be lost all the same. A
// failover is noticed by the server's identity (server_uuid, on MariaDB server_id), a dump that was put back by the time at
// which the namespace table was made, and whatever is put back under a running process by positions that go back. They make
// another History, upon which the service asks for a choice (apitoken.Config.Restored). So does what rebuilds that table and
// loses nothing, as OPTIMIZE TABLE. A file-level copy of the data directory that is put back on the same server, and a dump
// without CREATE TABLE, are not told from the original.
//
// Every statement looks at read_only too: a replica is not read. With Galera or Group Replication let all processes use
// one node.
//
// A process that stops in the middle of a transaction, as one that is suspended, holds up the namespace's other writers
// for a quarter of [Options.Timeout], at least a second: then the server ends its connection.
package mysqlstore

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/apitoken-go/apitoken/internal/sqltables"
	"github.com/apitoken-go/apitoken/store"
)

// Options change what Open does; nil means all defaults.
type Options struct {
	// Prefix begins the names of all tables. Empty: "apitoken_".
	Prefix string
	// Manual says that a DBA runs Migrations: Open fails on tables that are not there, instead of making them.
	Manual bool
	// Timeout bounds every verb whatever its context, and Open's questions: repetitions after deadlocks and broken connections
	// are included, and a write ends with it also when its caller has given up. Zero: 10 s.
	Timeout time.Duration
	// MaxConns is how many connections the store has at most. Zero: 16.
	MaxConns int
	// InsecureNotDurable accepts a server whose settings say that it acknowledges a commit before that is on its disk, as where
	// the service behind the protocol has another way to keep it. Writes may be lost at a crash otherwise, revocations
	// among them.
	InsecureNotDurable bool
}

// What Open and the verbs answer beside the errors of package store. Errors that wrap one of these say more.
var (
	// ErrMissing: the tables are not there, or of another version, and Options.Manual is set or this program is too old.
	ErrMissing = errors.New("the tables are not there, or of another version")
	// ErrNotDurable: the server acknowledges commits before they are on its disk; see Options.InsecureNotDurable.
	ErrNotDurable = errors.New("mysqlstore: the server acknowledges writes that a crash may lose")
	// ErrClosed: the Store was closed.
	ErrClosed = errors.New("mysqlstore: closed")
)

var errReplica = errors.New("mysqlstore: this server is read only, as a replica is: the store reads and writes the primary")

// Store is one namespace. It is safe for concurrent use.
type Store struct {
	s  *sqltables.Store
	db *sql.DB
}

var (
	_ store.Store = (*Store)(nil)
	_ store.Waker = (*Store)(nil)
)

// Open connects and returns the namespace "" of the tables, which it makes first unless o.Manual is set. cfg is copied; its
// parameters that concern the session's transactions, time zone and SQL mode are the store's. The driver writes what it has to say
// of broken connections to cfg.Logger.
func Open(ctx context.Context, cfg *mysql.Config, o *Options) (*Store, error) {
	opt, err := o.orDefault()
	if err != nil {
		return nil, err
	}
	if cfg == nil || cfg.DBName == "" {
		return nil, fmt.Errorf("%w: no configuration, or none that names a database", store.ErrInvalid)
	}
	c := cfg.Clone()
	c.MultiStatements = true
	inner, err := mysql.NewConnector(c)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", store.ErrInvalid, err)
	}
	db := sql.OpenDB(&connector{inner, fmt.Sprintf("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED; "+
		"SET SESSION autocommit = 1, time_zone = '+00:00', sql_mode = 'STRICT_ALL_TABLES', innodb_lock_wait_timeout = %d", seconds(opt.Timeout/2))})
	db.SetMaxOpenConns(opt.MaxConns)
	db.SetMaxIdleConns(opt.MaxConns)
	db.SetConnMaxIdleTime(time.Minute)
	s, err := start(ctx, db, &opt)
	if err != nil {
		_ = db.Close()
		return nil, err
	}
	return s, nil
}

// connector gives sessions their settings, in one round trip.
type connector struct {
	driver.Connector
	settings string
}

func (c *connector) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := conn.(driver.ExecerContext).ExecContext(ctx, c.settings, nil); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

// seconds rounds up to what the server's timeouts count in.
func seconds(d time.Duration) int { return int((d + time.Second - 1) / time.Second) }

func start(ctx context.Context, db *sql.DB, o *Options) (*Store, error) {
	bounded, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	var version string
	if err := db.QueryRowContext(bounded, "SELECT VERSION()").Scan(&version); err != nil {
		return nil, fmt.Errorf("mysqlstore: %w", cause(err))
	}
	identity := "@@GLOBAL.server_uuid"
	if strings.Contains(version, "MariaDB") {
		identity = "@@GLOBAL.server_id"
	}
	if err := migrate(bounded, db, o); err != nil {
		return nil, fmt.Errorf("mysqlstore: tables: %w", cause(err))
	}
	e := &sqltables.Engine{
		Name: "mysqlstore", DB: db, Prefix: o.Prefix, Timeout: o.Timeout, Writers: 2, Joined: true, Late: true, Look: 100 * time.Millisecond,
		// The server ends a transaction whose client has fallen silent.
		Begin:  []string{fmt.Sprintf("SET SESSION wait_timeout = %d", seconds(o.Timeout/4)), "START TRANSACTION"},
		End:    []string{"SET SESSION wait_timeout = DEFAULT"},
		Lock:   " FOR UPDATE",
		ByKey:  " FORCE INDEX (PRIMARY)", // any other way locks what it passes
		Ignore: "INSERT IGNORE",
		Upsert: " ON DUPLICATE KEY UPDATE version = VALUES(version), pos = VALUES(pos), written = VALUES(written), expires = VALUES(expires), data = VALUES(data)",
		Text:   func(s string) string { return "x'" + hex.EncodeToString([]byte(s)) + "'" },
		Bytes:  func(b []byte) string { return "x'" + hex.EncodeToString(b) + "'" },
		// Of the moment at which the row is read, behind its lock.
		Now: func() string { return "CAST(UNIX_TIMESTAMP(SYSDATE(3)) * 1000 AS SIGNED)" },
		Origin: "SELECT CONCAT(" + identity + ", '/', UNIX_TIMESTAMP(create_time)) FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = '" +
			o.Prefix + "namespace'",
		Guard:  "CONCAT_WS(' ', @@GLOBAL.read_only, @@GLOBAL.innodb_flush_log_at_trx_commit, @@GLOBAL.log_bin, @@GLOBAL.sync_binlog)",
		Serial: "0",

		Guarded: o.guarded,
		Retry: func(err error) bool {
			// A deadlock, a lock that was waited for too long, another's DDL; or nothing was sent.
			return isCode(err, 1213, 1205, 1412) || errors.Is(err, driver.ErrBadConn)
		},
		Broken: broken,
		Cause:  cause,
		Closed: ErrClosed,
	}
	s, err := e.Start(ctx)
	if err != nil {
		return nil, err
	}
	return &Store{s, db}, nil
}

// guarded reads what Guard selects.
func (o *Options) guarded(guard string, write bool) error {
	var readOnly, flush, binlog, sync string
	if _, err := fmt.Sscan(guard, &readOnly, &flush, &binlog, &sync); err != nil {
		return fmt.Errorf("mysqlstore: settings %q: %w", guard, err)
	}
	off := func(setting string) bool { return setting == "OFF" || setting == "0" }
	switch {
	case !off(readOnly): // or NO_LOCK and the like
		if write {
			return fmt.Errorf("%w: %w", store.ErrReadOnly, errReplica)
		}
		return errReplica
	case !write || o.InsecureNotDurable:
		return nil
	case flush != "1" && flush != "3":
		return fmt.Errorf("%w: innodb_flush_log_at_trx_commit is %s; set it to 1", ErrNotDurable, flush)
	case !off(binlog) && sync != "1":
		return fmt.Errorf("%w: sync_binlog is %s beside a binary log; set it to 1", ErrNotDurable, sync)
	}
	return nil
}

func isCode(err error, codes ...uint16) bool {
	var e *mysql.MySQLError
	if errors.As(err, &e) {
		for _, c := range codes {
			if e.Number == c {
				return true
			}
		}
	}
	return false
}

// broken: the connection ended under the question, or the server ends it. That a new one cannot be made is something
// else: the server is away.
func broken(err error) bool {
	var e *mysql.MySQLError
	var wire *net.OpError
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return false
	case errors.As(err, &e):
		// The server shuts down, an operator kills, the connection was idle for too long, or it has a read that fails.
		return isCode(err, 1053, 1079, 1080, 1152, 1158, 1159, 1160, 1161, 1184, 1317, 1927, 3169, 4031)
	case errors.As(err, &wire):
		return wire.Op != "dial"
	}
	return errors.Is(err, mysql.ErrInvalidConn) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed)
}

// cause names what an operator should know of a driver's error, and keeps the error.
func cause(err error) error {
	switch {
	case isCode(err, 1290, 1792, 1836, 3100): // read_only, a session that only reads, read-only mode, a group's rule
		return fmt.Errorf("%w: the server takes no writes: %w", store.ErrReadOnly, err)
	case isCode(err, 1146):
		return fmt.Errorf("%w: %w", ErrMissing, err)
	}
	return err
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
	if opt.MaxConns <= 0 {
		opt.MaxConns = 16
	}
	if !plainName.MatchString(opt.Prefix) {
		return opt, fmt.Errorf("%w: Prefix %q must be a plain name in lower case, at most 31 characters", store.ErrInvalid, opt.Prefix)
	}
	return opt, nil
}

// Namespace returns the store of another namespace in the same tables: its records, order and events are its own. A name
// is at most 255 bytes of UTF-8 without NUL. Closing one closes all.
func (s *Store) Namespace(name string) *Store { return &Store{s.s.Namespace(name), s.db} }

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

// Wait implements [store.Waker]. Writes of this process wake it at once. For those of others it looks ten times a second,
// with one question for all namespaces that are waited for.
func (s *Store) Wait(ctx context.Context, p store.Position) error { return s.s.Wait(ctx, p) }

// SetReadOnly makes the namespace refuse writes with [store.ErrReadOnly], or take them again, in every process: for a
// service that moves to another store. It returns when writes under way have ended.
func (s *Store) SetReadOnly(ctx context.Context, on bool) error { return s.s.SetReadOnly(ctx, on) }

// Close waits for writes under way (Options.Timeout at most) and closes the connections. Afterwards every verb answers
// ErrClosed.
func (s *Store) Close() error {
	if !s.s.Close() {
		return nil
	}
	return s.db.Close()
}
