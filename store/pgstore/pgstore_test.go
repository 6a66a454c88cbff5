package pgstore_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/pgstore"
	"github.com/apitoken-go/apitoken/store/pgstore/pgtest"
	"github.com/apitoken-go/apitoken/store/storetest"
)

// shared is the server of all tests that do it no harm, started by the first of them.
var shared struct {
	once sync.Once
	dir  string
	srv  *pgtest.Server
	err  error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if shared.srv != nil {
		shared.srv.Stop()
	}
	_ = os.RemoveAll(shared.dir) // "" is no error
	os.Exit(code)
}

func server(t testing.TB) *pgtest.Server {
	t.Helper()
	shared.once.Do(func() {
		if url := os.Getenv("APITOKEN_TEST_POSTGRES"); url != "" {
			shared.srv = &pgtest.Server{URL: url}
			return
		}
		if shared.dir, shared.err = os.MkdirTemp("", "apitoken-pg-"); shared.err == nil {
			shared.srv, shared.err = pgtest.New(shared.dir, pgtest.Quick...)
		}
	})
	pgtest.Check(t, shared.err)
	return shared.srv
}

var prefixes atomic.Int64

// prefix is one that no other test of this run has.
func prefix() string {
	return fmt.Sprintf("t%d_%d_", time.Now().UnixNano()%1e9, prefixes.Add(1))
}

func newPool(t testing.TB, srv *pgtest.Server, conns int32, change ...func(*pgxpool.Config)) *pgxpool.Pool {
	t.Helper()
	c, err := pgxpool.ParseConfig(srv.URL)
	require.NoError(t, err)
	c.MaxConns = conns
	for _, f := range change {
		f(c)
	}
	pool, err := pgxpool.NewWithConfig(context.Background(), c)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return pool
}

// isolated makes the sessions of a pool begin their transactions so by default.
func isolated(level string) func(*pgxpool.Config) {
	return func(c *pgxpool.Config) { c.ConnConfig.RuntimeParams["default_transaction_isolation"] = level }
}

func open(t testing.TB, pool *pgxpool.Pool, o pgstore.Options) *pgstore.Store {
	t.Helper()
	s, err := pgstore.New(context.Background(), pool, &o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

// TestSuite runs the suite in tables of each subtest's own, which are made for it, and in namespaces of one set of tables, which is
// what a process finds that opens a store again.
func TestSuite(t *testing.T) {
	t.Parallel()
	srv := server(t)
	for name, o := range map[string]struct {
		pgstore.Options
		isolation  string
		namespaces bool
	}{
		"prepared":     {pgstore.Options{}, "read committed", false},
		"pooler":       {pgstore.Options{Pooler: true}, "read committed", true},
		"serializable": {pgstore.Options{}, "serializable", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := newPool(t, srv, 24, isolated(o.isolation))
			common := prefix()
			dirs := map[string]string{} // the suite's directories, as table prefixes
			storetest.Run(t, func(t *testing.T, dir string) store.Store {
				own := o.Options
				if own.Prefix = common; !o.namespaces {
					if own.Prefix = dirs[dir]; own.Prefix == "" {
						own.Prefix = prefix()
						dirs[dir] = own.Prefix
					}
				}
				s, err := pgstore.New(context.Background(), pool, &own)
				require.NoError(t, err)
				if o.namespaces {
					return s.Namespace(dir)
				}
				return s
			})
		})
	}
	s := open(t, newPool(t, srv, 8), pgstore.Options{Prefix: prefix()})
	storetest.Namespaces(t, s.Namespace("a"), s.Namespace("b"))
}

func rule(id string) *store.Change {
	c := &store.Change{Puts: []store.Put{{Record: store.Record{Kind: store.KindRule, ID: id, Data: []byte("{}")}}}, Events: []store.Record{{Kind: store.KindEvent, ID: "e" + id, Data: []byte("{}")}}}
	copy(c.ID[:], id+"................")
	return c
}

// feed waits until a page of events, oldest first, has n: other tests' transactions on the server delay it.
func feed(t *testing.T, s *pgstore.Store, q store.Query, n int) (page store.Page) {
	t.Helper()
	q.Kind = store.KindEvent
	require.Eventually(t, func() bool {
		var err error
		page, err = s.List(context.Background(), q)
		return err == nil && len(page.Records) == n && (q.Limit == 0 || page.Cursor != "")
	}, time.Minute, 5*time.Millisecond, "the feed does not come")
	return page
}

func TestAHostsLongTransactionDelaysOnlyTheFeed(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	pool := newPool(t, server(t), 8)
	s := open(t, pool, pgstore.Options{Prefix: prefix()})
	host, err := pool.Begin(ctx)
	require.NoError(t, err)
	_, err = host.Exec(ctx, "SELECT pg_current_xact_id()") // it writes
	require.NoError(t, err)
	_, err = s.Apply(ctx, rule("r1"))
	require.NoError(t, err)
	v, err := s.Follow(ctx, store.Position{}, nil, 10)
	require.NoError(t, err)
	require.Len(t, v.Records, 1, "a revocation waits for nobody")
	page, err := s.List(ctx, store.Query{Kind: store.KindEvent})
	require.NoError(t, err)
	require.Empty(t, page.Records, "the feed waits: another transaction could still come before")
	page, err = s.List(ctx, store.Query{Kind: store.KindEvent, Newest: true})
	require.NoError(t, err)
	require.Len(t, page.Records, 1, "newest first shows everything")
	require.NoError(t, host.Commit(ctx))
	feed(t, s, store.Query{}, 1)
}

func TestHintsThatAreCut(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	srv := server(t)
	pool := newPool(t, srv, 8)
	p := prefix()
	s, other := open(t, pool, pgstore.Options{Prefix: p}), open(t, newPool(t, srv, 4), pgstore.Options{Prefix: p})
	seen := map[string]bool{}
	done := make(chan error, 1)
	const rules, cuts = 200, 50
	go func() {
		var at store.Position
		for len(seen) < rules {
			wctx, cancel := context.WithTimeout(ctx, time.Second) // whoever follows polls as well
			_ = other.Wait(wctx, at)
			cancel()
			v, err := other.Follow(ctx, at, nil, 100)
			if err != nil {
				continue // its connection was cut too
			}
			for _, r := range v.Records {
				seen[r.ID] = true
			}
			at = v.Next
		}
		done <- nil
	}()
	for i := range rules {
		if i%(rules/cuts) == 0 {
			_, err := pool.Exec(ctx, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN %' AND pid <> pg_backend_pid()")
			require.NoError(t, err)
		}
		_, err := s.Apply(ctx, rule(fmt.Sprintf("r%03d", i)))
		require.NoError(t, err)
	}
	select {
	case <-done:
	case <-time.After(2 * time.Minute):
		t.Fatal("not every rule came through")
	}
}

func TestServerThatCrashes(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	srv := pgtest.Private(t, pgtest.Quick...)
	s := open(t, newPool(t, srv, 8), pgstore.Options{Prefix: prefix(), Timeout: 10 * time.Second})
	_, err := s.Apply(ctx, rule("before"))
	require.NoError(t, err)
	v, err := s.Follow(ctx, store.Position{}, nil, 10)
	require.NoError(t, err)
	srv.Stop()
	_, err = s.Apply(ctx, rule("during"))
	require.Error(t, err)
	require.NotErrorIs(t, err, store.ErrConflict, "unknown is not no")
	require.NoError(t, srv.Run())
	require.Eventually(t, func() bool { _, err := s.Apply(ctx, rule("during")); return err == nil }, 60*time.Second, 10*time.Millisecond, "it recovers by itself")
	after, err := s.Follow(ctx, v.Next, nil, 10)
	require.NoError(t, err, "a crash is no other history")
	require.Len(t, after.Records, 1)
	_, err = s.Get(ctx, store.KindRule, "before")
	require.NoError(t, err, "what was acknowledged is there")
}

func TestAnotherTimelineIsAnotherHistory(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	pool := newPool(t, server(t), 8)
	p := prefix()
	s := open(t, pool, pgstore.Options{Prefix: p})
	_, err := s.Apply(ctx, rule("r1"))
	require.NoError(t, err)
	v, err := s.Follow(ctx, store.Position{}, nil, 10)
	require.NoError(t, err)
	// What a promoted replica finds: rows that another timeline wrote.
	_, err = pool.Exec(ctx, "UPDATE "+p+"namespace SET timeline = '0000000A'")
	require.NoError(t, err)
	_, err = s.Follow(ctx, v.Next, nil, 10)
	require.ErrorIs(t, err, store.ErrDiverged)
	v2, err := s.Follow(ctx, store.Position{}, nil, 10)
	require.NoError(t, err)
	require.NotEqual(t, v.Next.History, v2.Next.History)
	require.Len(t, v2.Records, 1)
	_, err = pool.Exec(ctx, "UPDATE "+p+"namespace SET timeline = '0000000B'")
	require.NoError(t, err)
	_, err = s.Apply(ctx, rule("r2"))
	require.NoError(t, err)
	page := feed(t, s, store.Query{}, 2)
	require.Equal(t, "er1", page.Records[0].ID, "events of an earlier history come before")
}

func TestMigrations(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	pool := newPool(t, server(t), 16)
	o := pgstore.Options{Prefix: prefix(), Schema: "s" + strings.TrimSuffix(prefix(), "_")}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := pgstore.Migrate(ctx, pool, &o); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	s := open(t, pool, o)
	_, err := s.Apply(ctx, rule("r"))
	require.NoError(t, err)

	manual := pgstore.Options{Prefix: prefix(), Manual: true}
	_, err = pgstore.New(ctx, pool, &manual)
	require.ErrorIs(t, err, pgstore.ErrMissing)
	sql, err := pgstore.Migrations(&manual)
	require.NoError(t, err)
	conn, err := pool.Acquire(ctx)
	require.NoError(t, err)
	_, err = conn.Conn().PgConn().Exec(ctx, sql).ReadAll()
	conn.Release()
	require.NoError(t, err)
	m := open(t, pool, manual)
	_, err = m.Apply(ctx, rule("r"))
	require.NoError(t, err)
	_, err = pool.Exec(ctx, "INSERT INTO "+manual.Prefix+"version VALUES (99)")
	require.NoError(t, err)
	_, err = pgstore.New(ctx, pool, &manual)
	require.ErrorIs(t, err, pgstore.ErrMissing)
	require.Error(t, pgstore.Migrate(ctx, pool, &manual), "a newer schema is not for this program")
	for _, bad := range []pgstore.Options{{Prefix: "a;drop"}, {Prefix: "A"}, {Schema: "x y"}} {
		_, err := pgstore.New(ctx, pool, &bad)
		require.Error(t, err)
	}
}

func TestPartitions(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	pool := newPool(t, server(t), 8)
	p := prefix()
	s := open(t, pool, pgstore.Options{Prefix: p})
	require.NoError(t, s.Partition(ctx, 3))
	require.NoError(t, s.Partition(ctx, 3), "twice is no error")
	_, err := s.Apply(ctx, rule("r"))
	require.NoError(t, err)
	var n int
	require.NoError(t, pool.QueryRow(ctx, "SELECT count(*) FROM "+p+"event_rest").Scan(&n))
	require.Zero(t, n, "the month has a partition")
	_, err = s.Detach(ctx, time.Now())
	require.ErrorContains(t, err, "is not over")
	_, err = s.Detach(ctx, time.Now().AddDate(-1, 0, 0))
	require.Error(t, err, "there is none of that month")
	last := time.Now().UTC().AddDate(0, -2, 0)
	from := time.Date(last.Year(), last.Month(), 1, 0, 0, 0, 0, time.UTC)
	_, err = pool.Exec(ctx, fmt.Sprintf("CREATE TABLE %sevent_%s PARTITION OF %sevent FOR VALUES FROM (%d) TO (%d)", p, from.Format("2006_01"), p, from.UnixMilli(), from.AddDate(0, 1, 0).UnixMilli()))
	require.NoError(t, err)
	// An event of then, and a reader of the feed before it.
	_, err = pool.Exec(ctx, fmt.Sprintf("INSERT INTO %[1]sevent SELECT ns, epoch, '3'::xid8, seq, 'old', version, %[2]d, expires, subject, client, grant_id, token, type, data FROM %[1]sevent", p, from.UnixMilli()))
	require.NoError(t, err)
	_, err = s.Apply(ctx, rule("r2"))
	require.NoError(t, err)
	page := feed(t, s, store.Query{Limit: 1}, 1)
	require.Equal(t, "old", page.Records[0].ID)
	_, err = pool.Exec(ctx, fmt.Sprintf("UPDATE %sevent SET xid = '4' WHERE id = 'old'", p)) // now it lies behind the cursor
	require.NoError(t, err)

	// A host that reads the table for long makes Detach give up, and no write wait behind it.
	host, err := pool.Begin(ctx)
	require.NoError(t, err)
	_, err = host.Exec(ctx, "SELECT count(*) FROM "+p+"event")
	require.NoError(t, err)
	given := make(chan error, 1)
	go func() { _, err := s.Detach(ctx, last); given <- err }()
	_, err = s.Apply(ctx, rule("r3"))
	require.NoError(t, err)
	require.ErrorContains(t, <-given, "lock timeout")
	require.NoError(t, host.Rollback(ctx))

	name, err := s.Detach(ctx, last)
	require.NoError(t, err)
	require.NoError(t, pool.QueryRow(ctx, "SELECT count(*) FROM "+name).Scan(&n), "a table of its own now")
	require.Equal(t, 1, n)
	_, err = s.List(ctx, store.Query{Kind: store.KindEvent, Cursor: page.Cursor})
	require.ErrorIs(t, err, store.ErrTrimmed, "who had not read it is told")
	feed(t, s, store.Query{}, 3)
}

func TestAnUnreachableServer(t *testing.T) {
	t.Parallel()
	c, err := pgxpool.ParseConfig("postgres://nobody@127.0.0.1:1/none?connect_timeout=1")
	require.NoError(t, err)
	pool, err := pgxpool.NewWithConfig(context.Background(), c)
	require.NoError(t, err)
	defer pool.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	_, err = pgstore.New(ctx, pool, nil)
	require.Error(t, err)
}

func BenchmarkStore(b *testing.B) {
	s := open(b, newPool(b, pgtest.Start(b), 64), pgstore.Options{Prefix: prefix()})
	storetest.Bench(b, s)
}
