package mysqlstore_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/mysqlstore"
	"github.com/apitoken-go/apitoken/store/mysqlstore/mysqltest"
	"github.com/apitoken-go/apitoken/store/storetest"
)

// wire is a proxy in front of a server that swallows answers to commits, or commits, or lets everything hang.
type wire struct {
	net.Listener
	end     func()       // closes all connections, new ones included
	swallow atomic.Int64 // so many connections end instead of passing on the answer to a commit
	hold    atomic.Int64 // so many connections pass on nothing any more once they should a commit
	stuck   atomic.Bool
}

func newWire(t testing.TB, srv *mysqltest.Server) *wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, stop := context.WithCancel(context.Background())
	w := &wire{Listener: l, end: func() { stop(); l.Close() }}
	var all sync.WaitGroup
	t.Cleanup(func() { w.end(); all.Wait() })
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s, err := net.Dial("tcp", srv.Addr())
			if err != nil {
				c.Close()
				continue
			}
			ends := context.AfterFunc(ctx, func() { c.Close(); s.Close() })
			end := func() { ends(); c.Close(); s.Close() }
			var committing atomic.Bool
			all.Go(func() { defer end(); w.pass(ctx, s, c, &committing, false) })
			all.Go(func() { defer end(); w.pass(ctx, c, s, &committing, true) })
		}
	})
	return w
}

func (w *wire) pass(ctx context.Context, to, from net.Conn, committing *atomic.Bool, answers bool) {
	b := make([]byte, 64<<10)
	for {
		n, err := from.Read(b)
		if n > 0 {
			if w.stuck.Load() {
				<-ctx.Done()
				return
			}
			if !answers && bytes.Contains(b[:n], []byte("COMMIT")) {
				if w.hold.Add(-1) >= 0 {
					<-ctx.Done()
					return
				}
				committing.Store(true)
			}
			if answers && committing.Swap(false) && w.swallow.Add(-1) >= 0 {
				return
			}
			if _, err := to.Write(b[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// behind gives the configuration that connects through w.
func (w *wire) behind(t testing.TB, srv *mysqltest.Server) *mysql.Config {
	c := config(t, srv)
	c.Addr = w.Addr().String()
	return c
}

// admin is a host's own pool.
func admin(t testing.TB, srv *mysqltest.Server) *sql.DB {
	t.Helper()
	connector, err := mysql.NewConnector(config(t, srv))
	require.NoError(t, err)
	db := sql.OpenDB(connector)
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func run(t testing.TB, db *sql.DB, text string) {
	t.Helper()
	_, err := db.Exec(text)
	require.NoError(t, err)
}

func at(t testing.TB, s store.Store) store.Position {
	t.Helper()
	v, err := s.Follow(context.Background(), store.Position{}, nil, 1000)
	require.NoError(t, err)
	require.False(t, v.More)
	return v.Next
}

func apply(t testing.TB, s store.Store, c *store.Change) {
	t.Helper()
	_, err := s.Apply(context.Background(), c)
	require.NoError(t, err)
}

// The server commits and its answer is lost, alone and in a group: it is asked again, and recognises what it did. Nothing is
// done twice, an event alone is not repeated.
func TestAnswersLost(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	srv := server(t)
	w := newWire(t, srv)
	s := open(t, w.behind(t, srv), mysqlstore.Options{Prefix: prefix(), Timeout: time.Minute})
	for round := range 10 {
		var all []*store.Change
		for i := range 12 {
			c := grant(fmt.Sprintf("g%d-%d", round, i), "x", store.Version{}, fmt.Sprintf("e%d-%d", round, i))
			switch i % 4 {
			case 2:
				c.Puts = nil
			case 3:
				c.Puts = append(c.Puts, store.Put{Record: store.Record{Kind: store.KindRule, ID: c.Puts[0].ID}})
			}
			all = append(all, c)
		}
		w.swallow.Store(int64(1 + round%3))
		errs := make([]error, len(all))
		var wg sync.WaitGroup
		for i := range all {
			wg.Go(func() { _, errs[i] = s.Apply(ctx, all[i]) })
		}
		wg.Wait()
		w.swallow.Store(0)
		for i, c := range all {
			if len(c.Puts) == 0 {
				if errs[i] != nil {
					require.NotErrorIs(t, errs[i], store.ErrConflict)
				}
				continue
			}
			require.NoError(t, errs[i])
			_, err := s.Apply(ctx, c)
			require.NoError(t, err, "it is known")
			r, err := s.Get(ctx, "grant", c.Puts[0].ID)
			require.NoError(t, err)
			require.Equal(t, c.ID, r.Version)
		}
	}
	seen := map[string]bool{}
	for _, e := range pages(t, s, store.Query{Kind: store.KindEvent}) {
		require.False(t, seen[e.ID], "an event twice")
		seen[e.ID] = true
	}
	require.GreaterOrEqual(t, len(seen), 90, "each change has its event")
}

// A process falls silent in the middle of a transaction: the others wait until the server ends its connection, and no longer.
func TestSilentInATransaction(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	srv := server(t)
	p := prefix()
	w := newWire(t, srv)
	silent := open(t, w.behind(t, srv), mysqlstore.Options{Prefix: p, Timeout: 4 * time.Second})
	s := open(t, config(t, srv), mysqlstore.Options{Prefix: p, Timeout: time.Minute})
	apply(t, s, grant("g", "1", store.Version{}))
	w.hold.Store(1)
	mine := grant("g", "2", grant("g", "1", store.Version{}).ID)
	stopped := make(chan error, 1)
	go func() { _, err := silent.Apply(ctx, mine); stopped <- err }()
	require.Eventually(t, func() bool { return w.hold.Load() < 1 }, time.Minute, time.Millisecond)
	began := time.Now()
	apply(t, s, grant("g", "3", grant("g", "1", store.Version{}).ID))
	require.Less(t, time.Since(began), 30*time.Second, "the lock is gone with the connection")
	err := <-stopped
	require.Error(t, err)
	require.NotErrorIs(t, err, store.ErrConflict, "nobody knows whether it was done before")
}

// A network that swallows everything, in both directions: no verb waits for its caller's context.
func TestBlackHole(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	srv := server(t)
	w := newWire(t, srv)
	o := mysqlstore.Options{Prefix: prefix(), Timeout: time.Minute}
	open(t, config(t, srv), o)
	o.Timeout = 5 * time.Second
	s, err := mysqlstore.Open(ctx, w.behind(t, srv), &o)
	require.NoError(t, err)
	w.stuck.Store(true)
	const limit = time.Minute
	storetest.Stalled(t, s, limit, map[string]func() error{
		"SetReadOnly":              func() error { return s.SetReadOnly(ctx, true) },
		"Wait":                     func() error { return s.Wait(ctx, store.Position{}) },
		"Get of another namespace": func() error { _, err := s.Namespace("other").Get(ctx, store.KindRule, "a"); return err },
		"Open":                     func() error { _, err := mysqlstore.Open(ctx, w.behind(t, srv), &o); return err },
	})
	storetest.Closes(t, s, limit)
}

// The server's process is stopped: its system still acknowledges what is sent to it.
func TestStoppedServer(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	srv := mysqltest.Private(t, mysqltest.Quick...)
	p := prefix()
	open(t, config(t, srv), mysqlstore.Options{Prefix: p})
	s := open(t, config(t, srv), mysqlstore.Options{Prefix: p, Timeout: 5 * time.Second})
	apply(t, s, rule("before"))
	resume := sync.OnceFunc(func() { _ = srv.Process().Signal(syscall.SIGCONT) })
	t.Cleanup(resume)
	require.NoError(t, srv.Process().Signal(syscall.SIGSTOP))
	require.Eventually(t, func() bool { // a signal takes its time
		_, err := s.Get(ctx, store.KindRule, "before")
		return errors.Is(err, context.DeadlineExceeded)
	}, time.Minute, time.Millisecond)
	_, err := s.Apply(ctx, rule("during"))
	require.ErrorIs(t, err, context.DeadlineExceeded)
	resume()
	require.Eventually(t, func() bool { _, err := s.Apply(ctx, rule("during")); return err == nil }, time.Minute, 10*time.Millisecond, "it recovers by itself")
}

// An operator kills all connections, again and again, under load: callers do not hear of it.
func TestConnectionsAreKilled(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	srv := mysqltest.Private(t, mysqltest.Quick...)
	db := admin(t, srv)
	s := open(t, config(t, srv), mysqlstore.Options{Prefix: prefix(), Timeout: time.Minute})
	const writers, each = 8, 40
	var wg sync.WaitGroup
	var left atomic.Int64
	left.Store(writers)
	written := make(chan struct{}, 1)
	for w := range writers {
		wg.Go(func() {
			defer left.Add(-1)
			for i := range each {
				c := rule(fmt.Sprintf("r%d-%d", w, i))
				if _, err := s.Apply(ctx, c); err != nil {
					t.Errorf("Apply: %v", err)
				}
				select {
				case written <- struct{}{}:
				default:
				}
				if _, err := s.Get(ctx, store.KindRule, c.Puts[0].ID); err != nil {
					t.Errorf("Get: %v", err)
				}
			}
		})
	}
	kills := 0
	for left.Load() > 0 {
		rows, err := db.Query("SELECT id FROM information_schema.processlist WHERE id <> CONNECTION_ID() AND user = SUBSTRING_INDEX(USER(), '@', 1)")
		require.NoError(t, err)
		var ids []int
		for rows.Next() {
			var id int
			require.NoError(t, rows.Scan(&id))
			ids = append(ids, id)
		}
		require.NoError(t, rows.Err())
		for _, id := range ids {
			if _, err := db.Exec(fmt.Sprint("KILL ", id)); err == nil {
				kills++
			}
		}
		select { // who kills faster than a busy machine connects lets nobody write
		case <-written:
		case <-time.After(time.Second):
		}
	}
	wg.Wait()
	t.Logf("%d connections killed", kills)
	require.Len(t, pages(t, s, store.Query{Kind: store.KindRule}), writers*each)
	require.Len(t, pages(t, s, store.Query{Kind: store.KindEvent}), writers*each, "each event once")
}

// The server makes the store's transaction the victim of a deadlock: the store begins it again.
func TestDeadlock(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	srv := server(t)
	p := prefix()
	db := admin(t, srv)
	s := open(t, config(t, srv), mysqlstore.Options{Prefix: p, Timeout: time.Minute})
	apply(t, s, grant("g", "1", store.Version{}))
	run(t, db, "CREATE TABLE "+p+"weight (n INT PRIMARY KEY) ENGINE=InnoDB")
	host, err := db.Conn(ctx)
	require.NoError(t, err)
	defer host.Close()
	tell := func(text string) {
		t.Helper()
		_, err := host.ExecContext(ctx, text)
		require.NoError(t, err, text)
	}
	tell("START TRANSACTION")
	for n := range 50 { // the server ends the transaction that has written less
		tell(fmt.Sprintf("INSERT INTO %sweight VALUES (%d)", p, n))
	}
	tell("UPDATE " + p + "record SET written = written + 1 WHERE id = 'g'")
	done := make(chan error, 1)
	go func() { _, err := s.Apply(ctx, grant("g", "2", grant("g", "1", store.Version{}).ID)); done <- err }()
	// It has the namespace's row, and waits for the record. The server makes this table anew when nobody has read it for 100 ms: who
	// asks more often is told the same for ever.
	require.Eventually(t, func() bool {
		var waits int
		err := db.QueryRow("SELECT COUNT(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT' AND trx_query LIKE '%" + p + "record%'").Scan(&waits)
		return err == nil && waits > 0
	}, time.Minute, 250*time.Millisecond)
	tell("UPDATE " + p + "namespace SET trimmed = trimmed + 0, moved = 1 - moved") // the circle
	tell("UPDATE " + p + "namespace SET moved = 1 - moved")
	tell("COMMIT")
	require.NoError(t, <-done)
}

// Somebody holds the namespace's row for longer than a verb may take.
func TestRowLockedByAnother(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	srv := server(t)
	p := prefix()
	db := admin(t, srv)
	open(t, config(t, srv), mysqlstore.Options{Prefix: p})
	s := open(t, config(t, srv), mysqlstore.Options{Prefix: p, Timeout: 5 * time.Second})
	apply(t, s, rule("r1"))
	host, err := db.BeginTx(ctx, nil)
	require.NoError(t, err)
	_, err = host.Exec("UPDATE " + p + "namespace SET moved = 0, trimmed = trimmed + 1")
	require.NoError(t, err)
	_, err = s.Apply(ctx, rule("r2"))
	require.Error(t, err)
	require.NotErrorIs(t, err, store.ErrConflict)
	_, err = s.Get(ctx, store.KindRule, "r1")
	require.NoError(t, err, "reads wait for nobody")
	require.NoError(t, host.Rollback())
	require.Eventually(t, func() bool { _, err := s.Apply(ctx, rule("r2")); return err == nil }, time.Minute, 10*time.Millisecond)
}

// Whatever the server says that it would lose at a crash is no acknowledgement; and a server that is read only is no primary.
func TestServersThatAreNotToBeUsed(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	srv := mysqltest.Private(t, append([]string{"log-bin", "sync-binlog=1", "server-id=5"}, mysqltest.Quick...)...)
	db := admin(t, srv)
	p := prefix()
	s := open(t, config(t, srv), mysqlstore.Options{Prefix: p})
	insecure := open(t, config(t, srv), mysqlstore.Options{Prefix: p, InsecureNotDurable: true})
	for i, setting := range []string{"innodb_flush_log_at_trx_commit = %d", "sync_binlog = %d"} {
		run(t, db, fmt.Sprintf("SET GLOBAL "+setting, 0))
		c := rule(fmt.Sprint("r", i))
		_, err := s.Apply(ctx, c)
		require.ErrorIs(t, err, mysqlstore.ErrNotDurable)
		_, err = s.Get(ctx, store.KindRule, c.Puts[0].ID)
		require.ErrorIs(t, err, store.ErrNotFound, "it was not written")
		apply(t, insecure, c)
		_, err = mysqlstore.Open(ctx, config(t, srv), &mysqlstore.Options{Prefix: prefix()})
		require.ErrorIs(t, err, mysqlstore.ErrNotDurable)
		run(t, db, fmt.Sprintf("SET GLOBAL "+setting, 1))
		apply(t, s, c)
	}
	run(t, db, "SET GLOBAL read_only = 1")
	_, err := s.Apply(ctx, rule("late"))
	require.ErrorIs(t, err, store.ErrReadOnly)
	_, err = s.Get(ctx, store.KindRule, "r0")
	require.ErrorContains(t, err, "primary")
	_, err = s.Follow(ctx, store.Position{}, nil, 10)
	require.ErrorContains(t, err, "primary")
	run(t, db, "SET GLOBAL read_only = 0")
	apply(t, s, rule("late"))
}

// Each way to lose acknowledged writes behind the store's back makes another history.
func TestAnotherHistory(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	for name, lose := range map[string]func(t *testing.T, srv *mysqltest.Server, db *sql.DB, p string, changed func() bool){
		"a failover": func(t *testing.T, _ *mysqltest.Server, db *sql.DB, _ string, _ func() bool) {
			run(t, db, "SET GLOBAL server_id = 77")
		},
		"a dump is put back": func(t *testing.T, _ *mysqltest.Server, db *sql.DB, p string, changed func() bool) {
			require.Eventually(t, func() bool { // the server counts seconds
				run(t, db, "CREATE TABLE "+p+"dump LIKE "+p+"namespace")
				run(t, db, "INSERT INTO "+p+"dump SELECT * FROM "+p+"namespace")
				run(t, db, "DROP TABLE "+p+"namespace")
				run(t, db, "RENAME TABLE "+p+"dump TO "+p+"namespace")
				return changed()
			}, time.Minute, 100*time.Millisecond)
		},
		"rows of before are put back": func(t *testing.T, _ *mysqltest.Server, db *sql.DB, p string, _ func() bool) {
			run(t, db, "DELETE FROM "+p+"record WHERE id = 'r2'")
			run(t, db, "UPDATE "+p+"namespace n SET head = (SELECT MAX(pos) FROM "+p+"record), place = place - 1")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := mysqltest.Private(t, mysqltest.Quick...)
			db := admin(t, srv)
			p := prefix()
			s := open(t, config(t, srv), mysqlstore.Options{Prefix: p})
			apply(t, s, rule("r1"))
			apply(t, s, rule("r2"))
			page, err := s.List(ctx, store.Query{Kind: store.KindEvent, Limit: 1})
			require.NoError(t, err)
			before := at(t, s)
			lose(t, srv, db, p, func() bool { return at(t, s).History != before.History })
			_, err = s.Follow(ctx, before, nil, 10)
			require.ErrorIs(t, err, store.ErrDiverged)
			after := at(t, s)
			require.NotEqual(t, before.History, after.History)
			apply(t, s, rule("r3"))
			later := at(t, s)
			require.Equal(t, after.History, later.History, "once")
			require.Greater(t, later.N, before.N)
			rest := pages(t, s, store.Query{Kind: store.KindEvent, Cursor: page.Cursor})
			require.Equal(t, "er3", rest[len(rest)-1].ID, "a feed that went on before goes on behind what was lost")
			other := open(t, config(t, srv), mysqlstore.Options{Prefix: p})
			require.Equal(t, later, at(t, other), "a process that starts finds the same")
		})
	}
}

// Two processes' stores: each sees the other's writes at once, and is woken by them.
func TestTwoProcesses(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	p := prefix()
	a, b := open(t, config(t, server(t)), mysqlstore.Options{Prefix: p}), open(t, config(t, server(t)), mysqlstore.Options{Prefix: p})
	for i := range 10 {
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

func TestMigrations(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	srv := server(t)
	o := mysqlstore.Options{Prefix: prefix()}
	var wg sync.WaitGroup
	for range 4 { // at once
		wg.Go(func() {
			s, err := mysqlstore.Open(ctx, config(t, srv), &o)
			if err != nil {
				t.Error(err)
				return
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()

	manual := mysqlstore.Options{Prefix: prefix(), Manual: true}
	_, err := mysqlstore.Open(ctx, config(t, srv), &manual)
	require.ErrorIs(t, err, mysqlstore.ErrMissing)
	text, err := mysqlstore.Migrations(&manual)
	require.NoError(t, err)
	c := config(t, srv)
	c.MultiStatements = true
	connector, err := mysql.NewConnector(c)
	require.NoError(t, err)
	db := sql.OpenDB(connector)
	defer db.Close()
	run(t, db, text)
	run(t, db, text)
	s := open(t, config(t, srv), manual)
	apply(t, s, rule("r"))
	run(t, db, "INSERT INTO "+manual.Prefix+"version VALUES (99)")
	_, err = mysqlstore.Open(ctx, config(t, srv), &mysqlstore.Options{Prefix: manual.Prefix})
	require.ErrorIs(t, err, mysqlstore.ErrMissing, "newer tables are not for this program")
	run(t, db, "TRUNCATE "+manual.Prefix+"namespace")
	_, err = s.Get(ctx, store.KindRule, "r")
	require.ErrorContains(t, err, "gone")
	_, err = s.Apply(ctx, rule("r2"))
	require.Error(t, err, "what is gone is not made anew")

	_, err = mysqlstore.Open(ctx, config(t, srv), &mysqlstore.Options{Prefix: "a;drop"})
	require.ErrorIs(t, err, store.ErrInvalid)
	_, err = mysqlstore.Open(ctx, nil, nil)
	require.ErrorIs(t, err, store.ErrInvalid)
	c = config(t, srv)
	c.Addr = "127.0.0.1:1"
	_, err = mysqlstore.Open(ctx, c, nil)
	require.Error(t, err)
}

func TestClosed(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s, err := mysqlstore.Open(ctx, config(t, server(t)), &mysqlstore.Options{Prefix: prefix()})
	require.NoError(t, err)
	n := s.Namespace("n")
	waits := make(chan error, 1)
	now := at(t, s)
	go func() { waits <- s.Wait(ctx, now) }()
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			if _, err := s.Apply(ctx, rule(fmt.Sprint(i))); err != nil {
				require.ErrorIs(t, err, mysqlstore.ErrClosed)
			}
		})
	}
	require.NoError(t, s.Close())
	if err := <-waits; err != nil { // woken by a write, or
		require.ErrorIs(t, err, mysqlstore.ErrClosed)
	}
	require.NoError(t, s.Close(), "twice is no error")
	wg.Wait()
	for _, s := range []*mysqlstore.Store{s, n} {
		_, err := s.Get(ctx, store.KindRule, "1")
		require.ErrorIs(t, err, mysqlstore.ErrClosed)
	}
}
