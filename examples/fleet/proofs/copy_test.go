package proofs

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/memstore"
	"github.com/apitoken-go/apitoken/store/move"
	"github.com/apitoken-go/apitoken/store/pgstore"
	"github.com/apitoken-go/apitoken/store/redisstore"
)

// seal is the services' key, which moves with them in the host's hands.
var seal = sync.OnceValue(func() apitoken.Sealer {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails
	s, err := apitoken.NewSealer(key)
	if err != nil {
		panic(err)
	}
	return s
})

// serviceOn is a service on a store that the test has open.
func serviceOn(t *testing.T, st store.Store) process {
	t.Helper()
	svc, err := apitoken.New(apitoken.Config{Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: st, Seal: seal(),
		Validation: apitoken.Validation{MaxStaleness: time.Second}})
	require.NoError(t, err)
	t.Cleanup(func() { _ = svc.Close() })
	return process{Service: svc}
}

// writes repeats what may be repeated until it is done: on a busy machine an answer may come too late.
func writes(t testing.TB, what func() error) {
	t.Helper()
	for began := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		err := what()
		if err == nil {
			return
		}
		if !errors.Is(err, apitoken.ErrUnavailable) || time.Since(began) > time.Minute {
			t.Errorf("it is not done: %v", err) // and not FailNow: not only the test's own goroutine asks
			return
		}
	}
}

func issueAt(t *testing.T, p process, subject string) (i *apitoken.Issued) {
	t.Helper()
	writes(t, func() (err error) {
		i, err = p.Issue(context.Background(), apitoken.Request{Subject: subject, Refresh: true})
		return err
	})
	return i
}

// refreshAt repeats inside the grace window of what a service gives.
func refreshAt(t *testing.T, p process, i *apitoken.Issued) (next *apitoken.Issued) {
	t.Helper()
	writes(t, func() (err error) {
		next, err = p.Refresh(context.Background(), apitoken.RefreshRequest{Token: i.Refresh.Reveal()})
		return err
	})
	return next
}

// TestCopyFromEngineToEngine: one service moves from the file through every engine, each time under load. What was acknowledged
// anywhere on its way is at its end: sessions go on, revoked ones stay so, and each place that it left is closed for good.
func TestCopyFromEngineToEngine(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	from := engines["bbolt"](t).open(t, "")
	svc := serviceOn(t, from)
	wanderer, idler, fired := issueAt(t, svc, "wanderer"), issueAt(t, svc, "idler"), issueAt(t, svc, "fired")
	writes(t, func() error { return svc.Revoke(ctx, apitoken.BySubject("fired"), "test") })
	_, key, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "robot"})
	require.NoError(t, err)
	gone, goneKey, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "robot"})
	require.NoError(t, err)
	writes(t, func() error { return svc.APIKeys.Revoke(ctx, gone.ID, "test") })
	for _, name := range []string{"postgres", "mysql", "redis", "sqlite", "etcd", "memory"} {
		to := engines[name](t).open(t, "")
		var stop atomic.Bool
		var mu sync.Mutex
		var acked, ended []*apitoken.Issued
		var load sync.WaitGroup
		for w := range 3 {
			load.Go(func() {
				for n := 0; !stop.Load(); n++ {
					i, err := svc.Issue(ctx, apitoken.Request{Subject: fmt.Sprintf("%s-%d-%d", name, w, n), Refresh: true})
					if err != nil {
						require.ErrorIs(t, err, apitoken.ErrUnavailable)
						time.Sleep(time.Millisecond) // as a client does before it tries again
						continue
					}
					revoked := n%5 == 0 && svc.Revoke(ctx, apitoken.ByGrant(i.Token.Grant()), "test") == nil
					mu.Lock()
					if revoked {
						ended = append(ended, i)
					} else if n%5 != 0 { // whose revocation got no answer may be revoked or not
						acked = append(acked, i)
					}
					mu.Unlock()
				}
			})
		}
		done, err := move.Copy(ctx, from, to)
		stop.Store(true)
		load.Wait()
		require.NoError(t, err, "to %s", name)
		require.GreaterOrEqual(t, done.Records["grant"], len(acked)+2)
		require.GreaterOrEqual(t, done.Events, len(acked))

		_, err = svc.Issue(ctx, apitoken.Request{Subject: "late"})
		require.ErrorIs(t, err, apitoken.ErrUnavailable, "the old place takes no writes")
		require.Eventually(t, func() bool {
			_, err := svc.Validate(ctx, apitoken.Bearer(wanderer.Access.Reveal()))
			return errors.Is(err, apitoken.ErrUnavailable)
		}, time.Minute, 10*time.Millisecond, "and its view gets older")
		_, err = apitoken.New(apitoken.Config{Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: from, Seal: seal()})
		require.ErrorContains(t, err, "moved")

		left := svc
		svc, from = serviceOn(t, to), to
		require.NoError(t, verdict(ctx, svc, wanderer), "to %s", name)
		wanderer = refreshAt(t, svc, wanderer)
		require.NoError(t, verdict(ctx, svc, wanderer))
		require.ErrorIs(t, verdict(ctx, svc, fired), apitoken.ErrRevoked)
		for _, i := range acked {
			require.NoError(t, verdict(ctx, svc, i))
		}
		for _, i := range ended {
			require.ErrorIs(t, verdict(ctx, svc, i), apitoken.ErrRevoked, "a revocation was left behind on the way to %s", name)
		}
		require.NoError(t, verdict(ctx, svc, &apitoken.Issued{Access: key}))
		require.ErrorIs(t, verdict(ctx, svc, &apitoken.Issued{Access: goneKey}), apitoken.ErrRevoked)
		fresh := issueAt(t, svc, "wanderer")
		writes(t, func() error { return svc.Revoke(ctx, apitoken.BySubject("wanderer"), "test") })
		require.ErrorIs(t, verdict(ctx, svc, wanderer), apitoken.ErrRevoked, "a rule of the new place reaches tokens of the old one")
		require.ErrorIs(t, verdict(ctx, svc, fresh), apitoken.ErrRevoked)
		wanderer = issueAt(t, svc, "wanderer")
		require.NoError(t, verdict(ctx, svc, wanderer))
		require.ErrorIs(t, left.Revoke(ctx, apitoken.BySubject("idler"), "too late"), apitoken.ErrUnavailable)
	}
	require.NoError(t, verdict(ctx, svc, refreshAt(t, svc, idler)), "who slept all the way goes on")
}

// freezing tells when its store begins to refuse writes, before it does.
type freezing struct {
	store.Store
	frozen func(on bool)
}

func (f freezing) SetReadOnly(ctx context.Context, on bool) error {
	f.frozen(on)
	return f.Store.(interface {
		SetReadOnly(context.Context, bool) error
	}).SetReadOnly(ctx, on)
}

// TestCopyBesideALongTransaction: while somebody's transaction is open, Postgres shows no event after it in the final order.
// Copy waits for that, at first while the source goes on, and takes no event for lost that is only out of sight.
func TestCopyBesideALongTransaction(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(context.Background())
	begin := func(conn *pgxpool.Pool) (end func()) {
		tx, err := conn.Begin(ctx)
		require.NoError(t, err)
		_, err = tx.Exec(ctx, "SELECT pg_current_xact_id()")
		require.NoError(t, err)
		return func() { require.NoError(t, tx.Rollback(ctx)) }
	}
	events := func(st store.Store, newest bool) (n int) {
		for q := (store.Query{Kind: store.KindEvent, Newest: newest}); ; {
			p, err := st.List(ctx, q)
			require.NoError(t, err)
			n += len(p.Records)
			if q.Cursor = p.Cursor; q.Cursor == "" {
				return n
			}
		}
	}
	e := startPostgres(t)
	pool, err := pgxpool.New(ctx, e.url)
	require.NoError(t, err)
	from, to := memstore.New(), e.open(t, "")
	svc := serviceOn(t, from)
	for range 20 {
		issueAt(t, svc, "alice")
	}

	// One that was open before, and one that begins when the source stands still.
	first := begin(pool)
	var second func()
	var refused atomic.Int64
	seen := make(chan struct{})
	source := freezing{from, func(on bool) {
		if on && refused.Add(1) == 1 {
			second = begin(pool)
			close(seen)
		}
	}}
	type result struct {
		move.Copied
		err error
	}
	done := make(chan result, 1)
	var copying sync.WaitGroup
	copying.Go(func() {
		c, err := move.Copy(ctx, source, to)
		done <- result{c, err}
	})
	t.Cleanup(func() { cancel(); copying.Wait(); pool.Reset() }) // and not Close, which waits for what an early end leaves open
	want := events(from, false)
	require.Eventually(t, func() bool { return events(to, true) == want }, time.Minute, 5*time.Millisecond, "all is copied")
	require.Zero(t, events(to, false), "and nothing is in its final order")
	require.Zero(t, refused.Load(), "while it waits, nobody is refused")
	issueAt(t, svc, "bob")
	first()
	<-seen
	require.Eventually(t, func() bool { return events(to, true) > want }, time.Minute, 5*time.Millisecond, "bob's is copied, out of sight again")
	second()
	r := <-done
	require.NoError(t, r.err)
	require.Greater(t, r.Events, want)
	require.Equal(t, events(from, false), events(to, false))
}

// copyVariable makes the tests' own binary the process that copies: from the Redis to the Postgres that it names.
const copyVariable = "APITOKEN_PROOFS_COPY"

func TestMain(m *testing.M) {
	_ = mysql.SetLogger(&mysql.NopLogger{}) // connections are cut on purpose
	if described := os.Getenv(processVariable); described != "" {
		if err := serve(context.Background(), described, os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if os.Getenv(copyVariable) == "" {
		waitTogether()
		code := m.Run()
		if postgres.srv != nil {
			postgres.srv.Stop()
		}
		if mysqls.srv != nil {
			mysqls.srv.Stop()
		}
		_ = errors.Join(os.RemoveAll(postgres.dir), os.RemoveAll(mysqls.dir)) // "" is no error
		os.Exit(code)
	}
	if err := copyHere(context.Background(), os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func copyHere(ctx context.Context, addr, url, prefix string) error {
	c := redis.NewClient(&redis.Options{Addr: addr})
	defer c.Close()
	from, err := redisstore.New(ctx, c, nil)
	if err != nil {
		return err
	}
	defer from.Close()
	pool, err := pgxpool.New(ctx, url)
	if err != nil {
		return err
	}
	defer pool.Close()
	to, err := pgstore.New(ctx, pool, &pgstore.Options{Prefix: prefix})
	if err != nil {
		return err
	}
	defer to.Close()
	_, err = move.Copy(ctx, from, to)
	return err
}

// TestCopyIsKilled: the process that copies dies (SIGKILL) early, in the middle, while the source refuses writes, and when it
// has been told that it has moved. Repeating it goes on each time, the source serves or refuses but forgets nothing, and the
// target opens only when all is there.
func TestCopyIsKilled(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	source, target := startRedis(t), startPostgres(t)
	from, to := source.open(t, ""), target.open(t, "")
	svc := serviceOn(t, from)
	var all []*apitoken.Issued
	for i := range 300 {
		all = append(all, issueAt(t, svc, fmt.Sprint("user-", i)))
	}
	for _, i := range all[:20] {
		writes(t, func() error { return svc.Revoke(ctx, apitoken.ByGrant(i.Token.Grant()), "test") })
	}
	copied := func(kind store.Kind, n int) func() bool {
		return func() bool {
			p, err := to.List(ctx, store.Query{Kind: kind, Newest: true, Limit: n})
			return err == nil && len(p.Records) == n
		}
	}
	self, err := os.Executable()
	require.NoError(t, err)
	finished := false
	for _, when := range []struct {
		name string
		is   func() bool
	}{
		{"a few sessions are there", copied("grant", 10)},
		{"most sessions are there", copied("grant", 200)},
		{"some events are there", copied(store.KindEvent, 100)},
		{"the source refuses writes", func() bool {
			_, err := svc.Issue(ctx, apitoken.Request{Subject: "probe"})
			return errors.Is(err, apitoken.ErrUnavailable)
		}},
		{"the source has been told", func() bool { _, err := from.Get(ctx, store.KindMeta, "moved"); return err == nil }},
	} {
		if finished {
			break // a fast machine copied the rest before it was killed
		}
		cmd := exec.Command(self, source.addr, target.url, target.prefix)
		cmd.Env = append(os.Environ(), copyVariable+"=1")
		cmd.Stderr = os.Stderr
		require.NoError(t, cmd.Start())
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		for wait := true; wait; {
			select {
			case err := <-ended:
				require.NoError(t, err, "Copy failed by itself before %s", when.name)
				finished, wait = true, false
			case <-time.After(time.Millisecond): // who only looks leaves the cores to who copies
				if when.is() {
					_ = cmd.Process.Kill()
					finished = <-ended == nil
					wait = false
				}
			}
		}
		t.Logf("killed when %s: %v", when.name, !finished)
		if !finished {
			_, err := apitoken.New(apitoken.Config{Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: to, Seal: seal()})
			require.Error(t, err, "half a copy is no service")
		}
	}
	if !finished {
		done, err := move.Copy(ctx, from, to)
		require.NoError(t, err)
		require.GreaterOrEqual(t, done.Records["grant"], 280)
	}
	moved := serviceOn(t, to)
	for n, i := range all {
		if n < 20 {
			require.ErrorIs(t, verdict(ctx, moved, i), apitoken.ErrRevoked)
			continue
		}
		require.NoError(t, verdict(ctx, moved, i))
	}
	require.NoError(t, verdict(ctx, moved, refreshAt(t, moved, all[20])))
	require.ErrorIs(t, svc.Revoke(ctx, apitoken.BySubject("user-1"), "too late"), apitoken.ErrUnavailable)
	seen := map[string]bool{}
	for e, err := range moved.Events(ctx, apitoken.EventQuery{OldestFirst: true}) {
		require.NoError(t, err)
		require.False(t, seen[e.ID], "an event twice")
		seen[e.ID] = true
	}
	require.GreaterOrEqual(t, len(seen), 320, "each session and revocation has its event")
}
