package pgstore_test

import (
	"context"
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/pgstore"
	"github.com/apitoken-go/apitoken/store/pgstore/pgtest"
	"github.com/apitoken-go/apitoken/store/storetest"
)

// Far more than a verb takes here, so that a busy machine fails no test; one that waits for its context waits for ever.
const stallTimeout, stallLimit = 5 * time.Second, time.Minute

// A network that swallows everything, in both directions: no verb waits for its caller's context.
func TestBlackHole(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]pgstore.Options{"prepared": {}, "pooler": {Pooler: true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			w := newWire(t, server(t))
			pool := newPool(t, server(t), 4, w.behind)
			o.Prefix, o.Timeout = prefix(), time.Minute
			open(t, pool, o)
			o.Timeout = stallTimeout
			s, err := pgstore.New(ctx, pool, &o)
			require.NoError(t, err)
			w.setStuck(true)
			own := map[string]func() error{
				"SetReadOnly":              func() error { return s.SetReadOnly(ctx, true) },
				"Partition":                func() error { return s.Partition(ctx, 3) },
				"Detach":                   func() error { _, err := s.Detach(ctx, time.Now().AddDate(-1, 0, 0)); return err },
				"Wait":                     func() error { return s.Wait(ctx, store.Position{}) },
				"Get of another namespace": func() error { _, err := s.Namespace("other").Get(ctx, store.KindRule, "a"); return err },
			}
			for _, manual := range []bool{false, true} {
				o := o
				o.Manual = manual
				own[fmt.Sprint("New, manual ", manual)] = func() error {
					_, err := pgstore.New(ctx, newPool(t, server(t), 1, w.behind), &o)
					return err
				}
			}
			storetest.Stalled(t, s, stallLimit, own)

			storetest.Closes(t, s, stallLimit)
			w.end() // the driver would wait for it when the pools are closed
		})
	}
}

// The server's processes are stopped: their system still acknowledges what is sent to them.
func TestStoppedBackend(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	srv := pgtest.Private(t, pgtest.Quick...)
	pool := newPool(t, srv, 1)
	s, err := pgstore.New(ctx, pool, &pgstore.Options{Timeout: time.Minute})
	require.NoError(t, err)
	require.NoError(t, s.Close())
	s = open(t, pool, pgstore.Options{Timeout: stallTimeout})
	_, err = s.Apply(ctx, rule("before"))
	require.NoError(t, err)
	stop, resume := stopped(t, pool)
	stop()
	_, err = s.Get(ctx, store.KindRule, "before")
	resume()
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Eventually(t, func() bool {
		_, err := s.Get(ctx, store.KindRule, "before")
		return err == nil
	}, time.Minute, 10*time.Millisecond, "it recovers by itself")
}

// stopped gives what stops the one backend of a pool, and lets it continue.
func stopped(t *testing.T, pool *pgxpool.Pool) (stop, resume func()) {
	t.Helper()
	var pid int
	require.NoError(t, pool.QueryRow(context.Background(), "SELECT pg_backend_pid()").Scan(&pid))
	return stoppable(t, pid)
}

// stoppable gives what stops a backend, and lets it continue.
func stoppable(t *testing.T, pid int) (stop, resume func()) {
	var once sync.Once
	resume = func() { once.Do(func() { _ = syscall.Kill(pid, syscall.SIGCONT) }) }
	t.Cleanup(resume)
	return func() { require.NoError(t, syscall.Kill(pid, syscall.SIGSTOP)) }, resume
}
