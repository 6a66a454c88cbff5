package pgstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"net"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/pgstore"
	"github.com/apitoken-go/apitoken/store/pgstore/pgtest"
)

// wire is a proxy in front of a server that swallows answers, or lets everything hang.
type wire struct {
	net.Listener
	end     func()       // closes all connections, new ones included
	swallow atomic.Int64 // so many connections end with the next answer, which is not passed on

	mu    sync.Mutex // guards stuck, gate
	stuck bool
	gate  chan struct{} // new connections wait until it is closed
}

func newWire(t testing.TB, srv *pgtest.Server) *wire {
	t.Helper()
	u, err := url.Parse(srv.URL)
	require.NoError(t, err)
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
			w.mu.Lock()
			gate := w.gate
			w.mu.Unlock()
			if gate != nil {
				select {
				case <-gate:
				case <-ctx.Done():
				}
			}
			s, err := net.Dial("tcp", u.Host)
			if err != nil {
				c.Close()
				continue
			}
			ends := context.AfterFunc(ctx, func() { c.Close(); s.Close() })
			end := func() { ends(); c.Close(); s.Close() }
			all.Go(func() { defer end(); w.pass(ctx, s, c, false) })
			all.Go(func() { defer end(); w.pass(ctx, c, s, true) })
		}
	})
	return w
}

func (w *wire) pass(ctx context.Context, to, from net.Conn, answers bool) {
	b := make([]byte, 64<<10)
	greeted := false
	for {
		n, err := from.Read(b)
		if n > 0 {
			w.mu.Lock()
			stuck := w.stuck
			w.mu.Unlock()
			if stuck {
				<-ctx.Done()
				return
			}
			if answers && greeted && w.swallow.Add(-1) >= 0 {
				return
			}
			// Before it is ready for queries there is no answer to lose: one who can't connect knows that nothing was done.
			greeted = greeted || bytes.HasSuffix(b[:n], []byte("Z\x00\x00\x00\x05I"))
			if _, err := to.Write(b[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (w *wire) setStuck(on bool) {
	w.mu.Lock()
	w.stuck = on
	w.mu.Unlock()
}

// behind makes a pool connect through w.
func (w *wire) behind(c *pgxpool.Config) {
	c.ConnConfig.Host, c.ConnConfig.Port = "127.0.0.1", uint16(w.Addr().(*net.TCPAddr).Port)
}

func grant(id, data string, expect store.Version, events ...string) *store.Change {
	c := &store.Change{Puts: []store.Put{{Record: store.Record{Kind: "grant", ID: id, Data: []byte(data)}, Expect: expect}}}
	copy(c.ID[:], fmt.Sprintf("%-16.16s", id+data))
	for _, e := range events {
		c.Events = append(c.Events, store.Record{Kind: store.KindEvent, ID: e})
	}
	return c
}

// The server does a change and its answer is lost, alone and in a group: it is asked again, and recognises what it did. Nothing
// is done twice, an event alone is not repeated.
func TestAnswersLost(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	w := newWire(t, server(t))
	s := open(t, newPool(t, server(t), 8, w.behind), pgstore.Options{Prefix: prefix(), Timeout: time.Minute})
	for round := range 10 {
		var all []*store.Change
		for i := range 12 {
			c := grant(fmt.Sprintf("g%d-%d", round, i), "x", store.Version{}, fmt.Sprintf("e%d-%d", round, i))
			switch i % 4 {
			case 2:
				c.Puts = nil
			case 3: // one that shares no transaction
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
		require.Less(t, w.swallow.Swap(0), int64(1), "an answer was lost")
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
	page, err := s.List(ctx, store.Query{Kind: store.KindEvent, Newest: true})
	require.NoError(t, err)
	seen := map[string]bool{}
	for _, e := range page.Records {
		require.False(t, seen[e.ID], "an event twice")
		seen[e.ID] = true
	}
	require.GreaterOrEqual(t, len(seen), 90, "each change has its event")
}

// A change is done, its answer lost, and somebody else writes on before it is asked for again: that is unknown, and no conflict.
func TestOverwrittenBeforeTheAnswer(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	p := prefix()
	w := newWire(t, server(t))
	s, other := open(t, newPool(t, server(t), 1, w.behind), pgstore.Options{Prefix: p, Timeout: time.Minute}), open(t, newPool(t, server(t), 4), pgstore.Options{Prefix: p})
	first := grant("g", "1", store.Version{})
	_, err := s.Apply(ctx, first)
	require.NoError(t, err)
	gate := make(chan struct{})
	w.mu.Lock()
	w.gate = gate
	w.mu.Unlock()
	w.swallow.Store(1)
	mine := grant("g", "2", first.ID)
	done := make(chan error, 1)
	go func() { _, err := s.Apply(ctx, mine); done <- err }()
	require.Eventually(t, func() bool {
		r, err := other.Get(ctx, "grant", "g")
		return err == nil && r.Version == mine.ID
	}, time.Minute, time.Millisecond)
	_, err = other.Apply(ctx, grant("g", "3", mine.ID))
	require.NoError(t, err)
	close(gate)
	err = <-done
	require.Error(t, err)
	require.NotErrorIs(t, err, store.ErrConflict)
	_, err = s.Apply(ctx, grant("g", "4", first.ID))
	require.ErrorIs(t, err, store.ErrConflict)
}

// A change is done, its answer lost, and the session that asks for it again may only read, as after a hand-over to a server that is
// one's own replica: that is unknown, and not "not done".
func TestReadOnlyBehindALostAnswer(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]*store.Change{"in a group": grant("g", "1", store.Version{}), "alone": rule("r")} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			p := prefix()
			w := newWire(t, server(t))
			var readOnly atomic.Bool
			s := open(t, newPool(t, server(t), 1, w.behind, func(c *pgxpool.Config) {
				c.BeforeConnect = func(_ context.Context, c *pgx.ConnConfig) error {
					if readOnly.Load() {
						c.RuntimeParams["default_transaction_read_only"] = "on"
					}
					return nil
				}
			}), pgstore.Options{Prefix: p, Timeout: time.Minute})
			other := open(t, newPool(t, server(t), 4), pgstore.Options{Prefix: p})
			_, err := s.Apply(ctx, grant("warm", "1", store.Version{}))
			require.NoError(t, err)
			readOnly.Store(true)
			w.swallow.Store(1)
			_, err = s.Apply(ctx, c)
			require.Error(t, err)
			require.NotErrorIs(t, err, store.ErrReadOnly, "which would say that it was not done")
			r, err := other.Get(ctx, c.Puts[0].Kind, c.Puts[0].ID)
			require.NoError(t, err)
			require.Equal(t, c.ID, r.Version, "it was")
			_, err = s.Apply(ctx, grant("late", "1", store.Version{}))
			require.ErrorIs(t, err, store.ErrReadOnly, "what was asked for once alone was not done")
		})
	}
}

// Where each question comes to a server of another history than the row that the one before has adopted, as between two
// primaries, a follower must not take an answer of nothing for all that there is.
func TestFollowBetweenTwoHistories(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	pool := newPool(t, server(t), 4)
	p := prefix()
	s := open(t, pool, pgstore.Options{Prefix: p})
	_, err := s.Apply(ctx, rule("r1"))
	require.NoError(t, err)
	_, err = pool.Exec(ctx, "UPDATE "+p+"namespace SET timeline = '0000000A'")
	require.NoError(t, err)
	_, err = pool.Exec(ctx, "CREATE FUNCTION "+p+"stay() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; CREATE TRIGGER stay BEFORE UPDATE ON "+p+"namespace FOR EACH ROW EXECUTE FUNCTION "+p+"stay()")
	require.NoError(t, err)
	v, err := s.Follow(ctx, store.Position{}, nil, 10)
	require.Error(t, err, "%+v", v)
	_, err = pool.Exec(ctx, "DROP TRIGGER stay ON "+p+"namespace")
	require.NoError(t, err)
	v, err = s.Follow(ctx, store.Position{}, nil, 10)
	require.NoError(t, err)
	require.Len(t, v.Records, 1)
}

// A server that hangs: callers come back with their deadlines, and neither goroutines nor writes pile up behind them.
func TestServerThatHangs(t *testing.T) {
	// Not parallel: it counts goroutines.
	ctx := context.Background()
	w := newWire(t, server(t))
	s := open(t, newPool(t, server(t), 4, w.behind), pgstore.Options{Prefix: prefix(), Timeout: 10 * time.Second})
	_, err := s.Apply(ctx, grant("g", "x", store.Version{}))
	require.NoError(t, err)
	before := runtime.NumGoroutine()
	w.setStuck(true)
	var wg sync.WaitGroup
	for k := range 20 {
		for i := range 200 {
			wg.Go(func() {
				tctx, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
				defer cancel()
				c := grant(fmt.Sprint(k, "-", i), "x", store.Version{}, "e")
				if i%2 == 0 {
					c.Puts = append(c.Puts, store.Put{Record: store.Record{Kind: store.KindRule, ID: c.Puts[0].ID}})
				}
				_, err := s.Apply(tctx, c)
				require.ErrorIs(t, err, context.DeadlineExceeded)
				_, err = s.Namespace(fmt.Sprint("never-opened", i%3)).Get(tctx, "grant", "g")
				require.ErrorIs(t, err, context.DeadlineExceeded)
			})
		}
		wg.Wait()
		require.Less(t, runtime.NumGoroutine()-before, 1100, "goroutines pile up")
	}
	w.setStuck(false)
	require.Eventually(t, func() bool {
		_, err := s.Apply(ctx, grant("after", "x", store.Version{}))
		return err == nil
	}, time.Minute, 10*time.Millisecond, "it goes on by itself")
	require.Eventually(t, func() bool { return runtime.NumGoroutine()-before < 50 }, time.Minute, 10*time.Millisecond)
}

// Close waits for what it began; afterwards nothing is asked any more.
func TestClosed(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	pool := newPool(t, server(t), 4)
	s, err := pgstore.New(ctx, pool, &pgstore.Options{Prefix: prefix()})
	require.NoError(t, err)
	n := s.Namespace("n")
	waits := make(chan error, 1)
	go func() { waits <- s.Wait(ctx, store.Position{History: 1}) }()
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			if _, err := s.Apply(ctx, grant(fmt.Sprint(i), "x", store.Version{}, "e")); err != nil {
				require.ErrorIs(t, err, pgstore.ErrClosed)
			}
		})
	}
	require.NoError(t, s.Close())
	if err := <-waits; err != nil {
		require.ErrorIs(t, err, pgstore.ErrClosed)
	}
	require.NoError(t, s.Close(), "twice is no error")
	wg.Wait()
	require.Zero(t, pool.Stat().AcquiredConns())
	for name, err := range map[string]error{
		"Apply":       second(n.Apply(ctx, grant("g", "x", store.Version{}))),
		"Get":         second(n.Get(ctx, "grant", "g")),
		"Follow":      second(n.Follow(ctx, store.Position{}, nil, 1)),
		"List":        second(n.List(ctx, store.Query{Kind: "grant"})),
		"Purge":       second(n.Purge(ctx, "grant", 1, 1)),
		"Wait":        n.Wait(ctx, store.Position{}),
		"SetReadOnly": n.SetReadOnly(ctx, true),
	} {
		require.ErrorIs(t, err, pgstore.ErrClosed, name)
	}
}

func second[T any](_ T, err error) error { return err }

// waiting returns when a backend of the server waits for a lock with a query like that.
func waiting(t *testing.T, pool *pgxpool.Pool, like string) {
	t.Helper()
	require.Eventually(t, func() bool {
		var n int
		err := pool.QueryRow(context.Background(), "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE $1", like).Scan(&n)
		return err == nil && n > 0
	}, time.Minute, time.Millisecond)
}

// A transaction of somebody else's meets ours in a deadlock: the server ends ours, and it is done all the same.
func TestDeadlock(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	p := prefix()
	pool, admin := newPool(t, server(t), 8), newPool(t, server(t), 4)
	s := open(t, pool, pgstore.Options{Prefix: p})
	a, b := grant("a", "1", store.Version{}), grant("b", "1", store.Version{})
	for _, c := range []*store.Change{a, b} {
		_, err := s.Apply(ctx, c)
		require.NoError(t, err)
	}
	host, err := admin.Begin(ctx)
	require.NoError(t, err)
	defer host.Rollback(ctx)
	lock := "SELECT 1 FROM " + p + "record WHERE id = $1 FOR UPDATE"
	_, err = host.Exec(ctx, "SET LOCAL deadlock_timeout = '1h'") // ours is to be the one that finds it
	require.NoError(t, err)
	_, err = host.Exec(ctx, lock, "b")
	require.NoError(t, err)
	both := grant("a", "2", a.ID, "e")
	both.Puts = append(both.Puts, grant("b", "2", b.ID).Puts...)
	done := make(chan error, 1)
	go func() { _, err := s.Apply(ctx, both); done <- err }()
	waiting(t, admin, "%"+p+"apply%")
	_, err = host.Exec(ctx, lock, "a")
	require.NoError(t, err)
	require.NoError(t, host.Commit(ctx))
	require.NoError(t, <-done, "a deadlock is rolled back, and begun again")
	page, err := s.List(ctx, store.Query{Kind: store.KindEvent, Newest: true})
	require.NoError(t, err)
	require.Len(t, page.Records, 1)
}

// A write whose snapshot is of before SetReadOnly must not be done after it, whatever isolation its session has.
func TestFenceUnderEveryIsolation(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	admin := newPool(t, server(t), 6)
	for _, level := range []string{"read committed", "repeatable read", "serializable"} {
		for name, c := range map[string]*store.Change{"session": grant("g", "x", store.Version{}), "rule": rule("r")} {
			p := prefix()
			s := open(t, newPool(t, server(t), 4, isolated(level)), pgstore.Options{Prefix: p})
			h := fnv.New64a()
			for _, part := range []string{p, "fence", ""} {
				io.WriteString(h, part+"\x00")
			}
			mover, err := admin.Begin(ctx) // SetReadOnly, slowly
			require.NoError(t, err)
			_, err = mover.Exec(ctx, "SELECT pg_advisory_xact_lock($1)", int64(h.Sum64()))
			require.NoError(t, err)
			done := make(chan error, 1)
			go func() { _, err := s.Apply(ctx, c); done <- err }()
			waiting(t, admin, "%"+p+"apply%")
			_, err = mover.Exec(ctx, "SELECT "+p+"move('', $1, true)", int64(h.Sum64()))
			require.NoError(t, err)
			require.NoError(t, mover.Commit(ctx))
			require.ErrorIs(t, <-done, store.ErrReadOnly, "%s, %s", level, name)
			require.NoError(t, s.SetReadOnly(ctx, false))
			_, err = s.Apply(ctx, c)
			require.NoError(t, err)
			require.NoError(t, s.SetReadOnly(ctx, true))
			_, err = s.Apply(ctx, c)
			require.NoError(t, err, "what was done before the move recognises itself")
			_, err = s.Purge(ctx, "grant", 1, 1)
			require.ErrorIs(t, err, store.ErrReadOnly)
		}
	}
}

// A replica answers nothing. Promoted, it is another history, and what it lost is found out: by who had seen it, and by its own
// timeline by everybody else.
func TestFailoverThatLosesTheTail(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	primary := pgtest.Private(t, pgtest.Quick...)
	p := prefix()
	var port atomic.Int64
	port.Store(int64(primary.Port()))
	pool := newPool(t, primary, 6, func(c *pgxpool.Config) {
		c.BeforeConnect = func(_ context.Context, cc *pgx.ConnConfig) error { cc.Port = uint16(port.Load()); return nil }
	})
	s := open(t, pool, pgstore.Options{Prefix: p})
	_, err := s.Apply(ctx, rule("kept"))
	require.NoError(t, err)
	standby := primary.Standby(t)
	replica := newPool(t, standby, 4)
	have := func(id string) bool {
		var n int
		err := replica.QueryRow(ctx, "SELECT count(*) FROM "+p+"record WHERE id = $1", id).Scan(&n)
		return err == nil && n == 1
	}
	require.Eventually(t, func() bool { return have("kept") }, time.Minute, 10*time.Millisecond)

	_, err = pgstore.New(ctx, replica, &pgstore.Options{Prefix: p})
	require.Error(t, err, "a replica is refused")
	port.Store(int64(standby.Port())) // a name that points to the wrong server
	pool.Reset()
	for name, err := range map[string]error{
		"Apply, no state": second(s.Apply(ctx, grant("g", "x", store.Version{}))),
		"Apply, state":    second(s.Apply(ctx, rule("r"))),
		"Get":             second(s.Get(ctx, store.KindRule, "kept")),
		"Get, none":       second(s.Get(ctx, store.KindRule, "none")),
		"Follow":          second(s.Follow(ctx, store.Position{}, nil, 1)),
		"List":            second(s.List(ctx, store.Query{Kind: store.KindRule})),
		"List, none":      second(s.List(ctx, store.Query{Kind: "none"})),
		"List, events":    second(s.List(ctx, store.Query{Kind: store.KindEvent, Subject: "nobody"})),
		"Purge":           second(s.Purge(ctx, store.KindRule, 1, 1)),
		"SetReadOnly":     s.SetReadOnly(ctx, true),
	} {
		require.Error(t, err, name)
		require.NotErrorIs(t, err, store.ErrNotFound, name)
		require.Contains(t, err.Error(), "replica", name)
	}
	port.Store(int64(primary.Port()))
	pool.Reset()

	standby.Stop()
	lost := rule("lost")
	_, err = s.Apply(ctx, lost)
	require.NoError(t, err)
	v, err := s.Follow(ctx, store.Position{}, nil, 10)
	require.NoError(t, err)
	require.Len(t, v.Records, 2)
	page := feed(t, s, store.Query{Limit: 1}, 1)
	primary.Stop()
	require.NoError(t, standby.Run())
	replica.Reset() // its connections are to the server that was stopped
	require.Eventually(t, func() bool {
		_, err := replica.Exec(ctx, "SELECT pg_promote(true)")
		return err == nil
	}, time.Minute, 10*time.Millisecond)
	port.Store(int64(standby.Port()))
	pool.Reset()

	_, err = s.Follow(ctx, v.Next, nil, 10)
	require.ErrorIs(t, err, store.ErrDiverged)
	again, err := s.Follow(ctx, store.Position{}, nil, 10)
	require.NoError(t, err)
	require.Len(t, again.Records, 1)
	require.NotEqual(t, v.Next.History, again.Next.History)
	done, err := s.Apply(ctx, lost)
	require.NoError(t, err, "it can be put back")
	require.Greater(t, done.Head.N, v.Next.N, "positions go on rising")
	rest := feed(t, s, store.Query{Cursor: page.Cursor}, 1)
	require.Equal(t, "elost", rest.Records[0].ID, "the feed goes on behind its cursor")
	other, err := open(t, replica, pgstore.Options{Prefix: p}).Follow(ctx, again.Next, nil, 10)
	require.NoError(t, err, "for all processes it is the same history")
	require.Len(t, other.Records, 1)
}

func idsOf(list []store.Record) (ids []string) {
	for _, r := range list {
		ids = append(ids, r.ID)
	}
	return ids
}

// A dump that is put back into the same cluster has lost what came after it, and is another history: also where a process goes
// on under whom it was put back, and where the new head has passed the old one.
func TestDumpPutBack(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	pool := newPool(t, server(t), 6)
	p := prefix()
	s := open(t, pool, pgstore.Options{Prefix: p})
	_, err := s.Apply(ctx, rule("kept"))
	require.NoError(t, err)
	exec := func(sql string) {
		t.Helper()
		_, err := pool.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol)
		require.NoError(t, err)
	}
	tables := []string{"namespace", "fence", "record", "event_rest", "trimmed"}
	for _, name := range tables { // what pg_dump keeps
		exec(fmt.Sprintf("CREATE TABLE dump_%[1]s%[2]s AS TABLE %[1]s%[2]s", p, name))
	}
	_, err = s.Apply(ctx, rule("lost"))
	require.NoError(t, err)
	v, err := s.Follow(ctx, store.Position{}, nil, 10)
	require.NoError(t, err)

	exec(fmt.Sprintf("DROP TABLE %[1]sversion, %[1]snamespace, %[1]sfence, %[1]srecord, %[1]sevent, %[1]strimmed CASCADE; DROP SEQUENCE %[1]sevent_seq", p))
	for _, f := range []string{"now_ms", "timeline", "apply", "apply_all", "move", "purge"} {
		exec("DROP FUNCTION " + p + f)
	}
	require.NoError(t, pgstore.Migrate(ctx, pool, &pgstore.Options{Prefix: p}))
	for _, name := range tables {
		exec(fmt.Sprintf("INSERT INTO %[1]s%[2]s SELECT * FROM dump_%[1]s%[2]s; DROP TABLE dump_%[1]s%[2]s", p, name))
	}

	done, err := s.Apply(ctx, rule("new"))
	require.NoError(t, err)
	require.Greater(t, done.Head.N, v.Next.N)
	require.NotEqual(t, v.Next.History, done.Head.History)
	_, err = s.Follow(ctx, v.Next, nil, 10)
	require.ErrorIs(t, err, store.ErrDiverged)
	again, err := s.Follow(ctx, store.Position{}, nil, 10)
	require.NoError(t, err)
	require.Equal(t, []string{"kept", "new"}, idsOf(again.Records))
}

// Many namespaces that wait cost one question, not one each; a change in one of them wakes that one, without notifications too.
func TestManyThatWait(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	for _, pooler := range []bool{false, true} {
		s := open(t, newPool(t, server(t), 8), pgstore.Options{Prefix: prefix(), Pooler: pooler})
		woken := make(chan int, 40)
		wctx, cancel := context.WithCancel(ctx)
		var wg sync.WaitGroup
		for i := range 40 {
			n := s.Namespace(fmt.Sprint("n", i))
			v, err := n.Follow(ctx, store.Position{}, nil, 1)
			require.NoError(t, err)
			wg.Go(func() {
				for wctx.Err() == nil {
					if n.Wait(wctx, v.Next) == nil {
						if now, err := n.Follow(wctx, v.Next, nil, 1); err == nil && len(now.Records) == 1 {
							woken <- i
							return
						}
					}
				}
			})
		}
		_, err := s.Namespace("n7").Apply(ctx, rule("r"))
		require.NoError(t, err)
		require.Equal(t, 7, <-woken)
		cancel()
		wg.Wait()
		require.Empty(t, woken)
	}
}

// A role that may use the tables and make none starts where they are there; one that owns nothing but its schema makes them in it.
func TestRights(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	admin := newPool(t, server(t), 4)
	p := prefix()
	role := "r" + strings.TrimSuffix(prefix(), "_")
	as := func(c *pgxpool.Config) { c.ConnConfig.RuntimeParams["role"] = role }
	for _, sql := range []string{"CREATE ROLE " + role, "CREATE SCHEMA " + role + " AUTHORIZATION " + role, "CREATE SCHEMA other" + role} {
		_, err := admin.Exec(ctx, sql)
		require.NoError(t, err)
	}
	own := open(t, newPool(t, server(t), 4, as), pgstore.Options{Schema: role})
	_, err := own.Apply(ctx, rule("r"))
	require.NoError(t, err)

	o := pgstore.Options{Schema: "other" + role, Prefix: p}
	_, err = pgstore.New(ctx, newPool(t, server(t), 4, as), &o)
	require.Error(t, err, "it may not make them")
	sql, err := pgstore.Migrations(&o)
	require.NoError(t, err)
	_, err = admin.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol)
	require.NoError(t, err)
	for _, sql := range []string{"GRANT USAGE ON SCHEMA %[1]s TO %[2]s", "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA %[1]s TO %[2]s", "GRANT USAGE ON ALL SEQUENCES IN SCHEMA %[1]s TO %[2]s"} {
		_, err := admin.Exec(ctx, fmt.Sprintf(sql, o.Schema, role))
		require.NoError(t, err)
	}
	less := open(t, newPool(t, server(t), 4, as), o)
	_, err = less.Apply(ctx, rule("r"))
	require.NoError(t, err)
	n, err := less.Purge(ctx, store.KindEvent, time.Now().UnixMilli(), 10)
	require.NoError(t, err)
	require.Zero(t, n)
	require.False(t, errors.Is(less.SetReadOnly(ctx, true), store.ErrReadOnly))
}

// All connections of a pool are dead, as after a server was started again: one call of each verb is enough all the same.
func TestDeadConnections(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	pool := newPool(t, server(t), 6)
	admin := newPool(t, server(t), 2)
	s := open(t, pool, pgstore.Options{Prefix: prefix()})
	kill := func() {
		t.Helper()
		var pids []uint32
		var held []*pgxpool.Conn
		for range 6 {
			c, err := pool.Acquire(ctx)
			require.NoError(t, err)
			held, pids = append(held, c), append(pids, c.Conn().PgConn().PID())
		}
		_, err := admin.Exec(ctx, "SELECT pg_terminate_backend(pid, 10000) FROM unnest($1::int4[]) AS u(pid)", pids)
		require.NoError(t, err)
		for _, c := range held {
			c.Release()
		}
	}
	for n, ask := range []func() error{
		func() error { return second(s.Apply(ctx, grant("g", "x", store.Version{}, "e"))) },
		func() error { return second(s.Apply(ctx, rule("r"))) },
		func() error { return second(s.Get(ctx, "grant", "g")) },
		func() error { return second(s.Follow(ctx, store.Position{}, nil, 10)) },
		func() error { return second(s.List(ctx, store.Query{Kind: "grant"})) },
		func() error { return second(s.Purge(ctx, "grant", 1, 1)) },
	} {
		kill()
		require.NoError(t, ask(), "verb %d", n)
	}
	page, err := s.List(ctx, store.Query{Kind: store.KindEvent, Newest: true})
	require.NoError(t, err)
	require.Len(t, page.Records, 2, "each event once")
}
