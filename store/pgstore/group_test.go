package pgstore_test

import (
	"context"
	"errors"
	"fmt"
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

// heldBack applies changes while somebody else holds the namespace's counter, so that all but the first two come together
// behind it, and returns their answers.
func heldBack(t *testing.T, s *pgstore.Store, p string, changes []*store.Change) ([]store.Commit, []error) {
	t.Helper()
	ctx := context.Background()
	admin := newPool(t, server(t), 2)
	host, err := admin.Begin(ctx)
	require.NoError(t, err)
	defer host.Rollback(ctx)
	_, err = host.Exec(ctx, "SELECT 1 FROM "+p+"namespace FOR UPDATE")
	require.NoError(t, err)

	done, errs := make([]store.Commit, len(changes)), make([]error, len(changes))
	var wg sync.WaitGroup
	begin := func(i int) { wg.Go(func() { done[i], errs[i] = s.Apply(ctx, changes[i]) }) }
	for i := range 2 { // each fills a lane
		begin(i)
		require.Eventually(t, func() bool {
			var n int
			err := admin.QueryRow(ctx, "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE $1", "%"+p+"apply%").Scan(&n)
			return err == nil && n == i+1
		}, time.Minute, time.Millisecond)
	}
	for i := 2; i < len(changes); i++ {
		begin(i)
	}
	require.Eventually(t, func() bool { return s.Waiting() == len(changes)-2 }, time.Minute, time.Millisecond)
	require.NoError(t, host.Rollback(ctx))
	wg.Wait()
	return done, errs
}

// crowded is a login that ends another session: its changes of state come with others.
func crowded(id, subject string) *store.Change {
	c := login(id, subject, store.Version{})
	c.Puts = append(c.Puts, rule("r"+id).Puts...)
	return c
}

// Revocations that come together share a transaction, and so do logins that each end a session. All have places of their own in the order,
// and none is told of one before its own.
func TestStateSharesTransactions(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(i int) *store.Change{
		"revocations": func(i int) *store.Change { return rule(fmt.Sprint("r", i)) },
		"logins":      func(i int) *store.Change { return crowded(fmt.Sprint("g", i), fmt.Sprint("s", 42-i)) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			p := prefix()
			pool := newPool(t, server(t), 8)
			s := open(t, pool, pgstore.Options{Prefix: p})
			var all []*store.Change
			for i := range 42 {
				all = append(all, change(i))
			}
			done, errs := heldBack(t, s, p, all)
			for _, err := range errs {
				require.NoError(t, err)
			}

			v, err := s.Follow(ctx, store.Position{}, nil, 100)
			require.NoError(t, err)
			require.Len(t, v.Records, len(all))
			at := map[string]store.Position{}
			for i, r := range v.Records {
				at[r.ID] = r.Pos
				require.True(t, i == 0 || v.Records[i-1].Pos.N < r.Pos.N)
			}
			last := v.Records[len(v.Records)-1].Pos
			for i, c := range all {
				own := at[c.Puts[len(c.Puts)-1].ID]
				require.Equal(t, last.History, done[i].Head.History)
				require.True(t, own.N <= done[i].Head.N && done[i].Head.N <= last.N, "%s is at %d and told %d", c.Puts[0].ID, own.N, done[i].Head.N)
			}
			feed(t, s, store.Query{}, len(all))
			var transactions int
			require.NoError(t, pool.QueryRow(ctx, "SELECT count(DISTINCT xmin::text) FROM "+p+"record").Scan(&transactions))
			require.LessOrEqual(t, transactions, 4)
		})
	}
}

// One that is refused keeps none of the others from being done, and none is done twice.
func TestStateRefusedAmongOthers(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	p := prefix()
	s := open(t, newPool(t, server(t), 8), pgstore.Options{Prefix: p})
	taken := rule("taken")
	_, err := s.Apply(ctx, taken)
	require.NoError(t, err)
	var all []*store.Change
	for i := range 20 {
		all = append(all, rule(fmt.Sprint("r", i)))
	}
	conflict := rule("taken")
	conflict.ID[0] ^= 1
	all = append(all, conflict, taken) // taken is a repetition, and recognises itself
	_, errs := heldBack(t, s, p, all)
	for i, err := range errs {
		if all[i] == conflict {
			require.ErrorIs(t, err, store.ErrConflict)
			continue
		}
		require.NoError(t, err)
	}
	page, err := s.List(ctx, store.Query{Kind: store.KindRule})
	require.NoError(t, err)
	require.Len(t, page.Records, 21)
	feed(t, s, store.Query{}, 21)
}

// login makes a session and counts it for its subject, as a login at a limit of sessions does.
func login(id, subject string, counted store.Version) *store.Change {
	c := &store.Change{
		Puts: []store.Put{
			{Record: store.Record{Kind: "quota", ID: subject, Data: []byte(id)}, Expect: counted},
			{Record: store.Record{Kind: "grant", ID: id, Subject: subject}},
		},
		Events: []store.Record{{Kind: store.KindEvent, ID: id, Subject: subject}},
	}
	copy(c.ID[:], "login "+id)
	return c
}

// Changes of several records share transactions, as those of one do.
func TestLoginsShareTransactions(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	p := prefix()
	s := open(t, newPool(t, server(t), 8), pgstore.Options{Prefix: p})
	admin := newPool(t, server(t), 1)
	host, err := admin.Begin(ctx)
	require.NoError(t, err)
	defer host.Rollback(ctx)
	_, err = host.Exec(ctx, "LOCK TABLE "+p+"record IN EXCLUSIVE MODE")
	require.NoError(t, err)
	const logins = 40
	var wg sync.WaitGroup
	for i := range logins {
		wg.Go(func() {
			_, err := s.Apply(ctx, login(fmt.Sprint("g", i), fmt.Sprint("s", logins-i), store.Version{}))
			if err != nil {
				t.Error(err)
			}
		})
	}
	require.Eventually(t, func() bool { return s.UnderWay() == logins }, time.Minute, time.Millisecond)
	require.NoError(t, host.Rollback(ctx))
	wg.Wait()
	feed(t, s, store.Query{}, logins)
	var records, transactions int
	require.NoError(t, admin.QueryRow(ctx, "SELECT count(*), count(DISTINCT xmin::text) FROM "+p+"record").Scan(&records, &transactions))
	require.Equal(t, 2*logins, records)
	require.Less(t, transactions, logins/2)
}

// Two processes that count for the same subjects at once, each of several in one change: one of both is refused, and neither waits for the
// other in a circle, which the server would find after a second.
func TestNobodyWaitsInACircle(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	srv := pgtest.Private(t, pgtest.Quick...)
	pool := newPool(t, srv, 16)
	subjects := []string{"a", "b", "c"}
	var done atomic.Int64
	var wg sync.WaitGroup
	for k := range 2 {
		s := open(t, pool, pgstore.Options{})
		for w := range 8 {
			wg.Go(func() {
				for i := range 20 {
					id := fmt.Sprintf("%d%d-%02d", k, w, i)
					c := &store.Change{Puts: []store.Put{{Record: store.Record{Kind: "grant", ID: id}}}}
					copy(c.ID[:], id)
					for n := range 2 {
						of := subjects[(w+i+n*(1+k))%len(subjects)]
						r, err := s.Get(ctx, "quota", of)
						if err != nil && !errors.Is(err, store.ErrNotFound) {
							t.Error(err)
						}
						c.Puts = append(c.Puts, store.Put{Record: store.Record{Kind: "quota", ID: of}, Expect: r.Version})
					}
					if i%2 == 0 { // of state, so that it goes another way
						c.Puts = append(c.Puts, store.Put{Record: store.Record{Kind: store.KindRule, ID: id}})
					}
					switch _, err := s.Apply(ctx, c); {
					case err == nil:
						done.Add(1)
					case !errors.Is(err, store.ErrConflict):
						t.Error(err)
					}
				}
			})
		}
	}
	wg.Wait()
	require.Positive(t, done.Load())
	var deadlocks int
	require.NoError(t, pool.QueryRow(ctx, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()").Scan(&deadlocks))
	require.Zero(t, deadlocks)
}

// counter counts what goes to the server.
type counter struct{ asked atomic.Int64 }

func (c *counter) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	c.asked.Add(1)
	return ctx
}
func (c *counter) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}
func (c *counter) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	c.asked.Add(1)
	return ctx
}
func (c *counter) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}
func (c *counter) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData)     {}

// A revocation that comes alone is one question, which is one transaction.
func TestOneRoundTrip(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	var c counter
	s := open(t, newPool(t, server(t), 1, func(p *pgxpool.Config) { p.ConnConfig.Tracer = &c }), pgstore.Options{Prefix: prefix()})
	for i := range 3 {
		before := c.asked.Load()
		_, err := s.Apply(ctx, rule(fmt.Sprint("r", i)))
		require.NoError(t, err)
		require.EqualValues(t, 1, c.asked.Load()-before)
	}
}

// A connection that has fallen silent holds the revocation that was given to it, and no other.
func TestRevokeBesideASilentConnection(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	srv := pgtest.Private(t, pgtest.Quick...)
	pool := newPool(t, srv, 4)
	s := open(t, pool, pgstore.Options{Timeout: time.Minute})
	stop, resume := stopped(t, pool)
	stop()
	done := make(chan error, 2)
	apply := func(id string) { _, err := s.Apply(ctx, rule(id)); done <- err }
	go apply("r0")
	// The second comes once the first has a connection or is done: together they might share a transaction.
	require.Eventually(t, func() bool { return len(done) > 0 || pool.Stat().AcquiredConns() > 0 }, stallLimit, time.Millisecond)
	go apply("r1")
	select {
	case err := <-done:
		require.NoError(t, err)
	case <-time.After(stallLimit):
		t.Fatal("both wait for one connection")
	}
	resume()
	require.NoError(t, <-done)
}

// Nor does a revocation wait for logins that end other sessions, on connections that have fallen silent, however many there are.
func TestRevokeBesideSilentLogins(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	pool := newPool(t, pgtest.Private(t, pgtest.Quick...), 8)
	s := open(t, pool, pgstore.Options{Timeout: time.Minute})
	var held []*pgxpool.Conn
	var resume []func()
	for range pgstore.StateLanes {
		c, err := pool.Acquire(ctx)
		require.NoError(t, err)
		stop, again := stoppable(t, int(c.Conn().PgConn().PID()))
		stop()
		held, resume = append(held, c), append(resume, again)
	}
	for _, c := range held {
		c.Release() // the pool gives out first what came back last
	}
	done := make(chan error, pgstore.MaxWrites)
	for i := range pgstore.MaxWrites {
		go func() {
			_, err := s.Apply(ctx, crowded(fmt.Sprint("g", i), fmt.Sprint("s", i)))
			done <- err
		}()
		if i < len(held) { // each in a lane
			require.Eventually(t, func() bool { return len(done) > 0 || int(pool.Stat().AcquiredConns()) > i }, stallLimit, time.Millisecond)
		}
	}
	require.Eventually(t, func() bool { return len(done) > 0 || s.UnderWay() == pgstore.MaxWrites }, stallLimit, time.Millisecond)
	revoked := make(chan error, 1)
	go func() { _, err := s.Apply(ctx, rule("r")); revoked <- err }()
	select {
	case err := <-revoked:
		require.NoError(t, err)
	case <-time.After(stallLimit):
		t.Error("a revocation waits for logins")
	}
	for _, again := range resume {
		again()
	}
	for range pgstore.MaxWrites {
		require.NoError(t, <-done)
	}
}
