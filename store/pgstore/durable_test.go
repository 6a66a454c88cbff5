package pgstore_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/pgstore"
	"github.com/apitoken-go/apitoken/store/pgstore/pgtest"
)

// A server whose commits are acknowledged before they are on its disk crashes right behind the acknowledgement. Nothing that the
// store answered for is lost: state, records in a group, events, the fence of SetReadOnly.
func TestDurableUnderAsynchronousCommit(t *testing.T) {
	t.Parallel()
	// So that nothing but a commit that waits brings the log to the disk.
	lazy := []string{"synchronous_commit=off", "wal_writer_delay=10s", "wal_writer_flush_after=1GB", "bgwriter_delay=10s", "autovacuum=off"}
	for name, o := range map[string]pgstore.Options{"prepared": {}, "pooler": {Pooler: true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			srv := pgtest.Private(t, append(lazy, pgtest.Quick...)...)
			pool := newPool(t, srv, 8)
			s := open(t, pool, o)
			crash := func() {
				srv.Stop()
				require.NoError(t, srv.Run())
				pool.Reset()
			}

			_, err := s.Apply(ctx, rule("revocation"))
			require.NoError(t, err)
			crash()
			_, err = s.Get(ctx, store.KindRule, "revocation")
			require.NoError(t, err, "an acknowledged revocation was lost")

			var wg sync.WaitGroup
			for i := range 20 {
				wg.Go(func() {
					c := grant(fmt.Sprint("g", i), "x", store.Version{}, fmt.Sprint("e", i))
					if i == 0 {
						c.Puts = nil
					}
					if _, err := s.Apply(ctx, c); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			crash()
			page, err := s.List(ctx, store.Query{Kind: "grant"})
			require.NoError(t, err)
			require.Len(t, page.Records, 19)
			page, err = s.List(ctx, store.Query{Kind: store.KindEvent, Newest: true})
			require.NoError(t, err)
			require.Len(t, page.Records, 21)

			require.NoError(t, s.SetReadOnly(ctx, true))
			crash()
			_, err = s.Apply(ctx, rule("late"))
			require.ErrorIs(t, err, store.ErrReadOnly)
		})
	}
}

// A setting that is stronger than the store needs stays what it is, and so does the session's own.
func TestDurableKeepsWhatTheHostChose(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	for _, level := range []string{"off", "local", "remote_apply"} {
		p := prefix()
		pool := newPool(t, server(t), 1, func(c *pgxpool.Config) { c.ConnConfig.RuntimeParams["synchronous_commit"] = level })
		s := open(t, pool, pgstore.Options{Prefix: p})
		// A trigger sees the setting at the transaction's end.
		_, err := pool.Exec(ctx, "CREATE TABLE "+p+"seen (level text); CREATE FUNCTION "+p+"see() RETURNS trigger LANGUAGE plpgsql AS "+
			"'BEGIN INSERT INTO "+p+"seen VALUES (current_setting(''synchronous_commit'')); RETURN NULL; END'; "+
			"CREATE CONSTRAINT TRIGGER see AFTER INSERT ON "+p+"record DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION "+p+"see()")
		require.NoError(t, err)
		_, err = s.Apply(ctx, grant("g", "x", store.Version{}))
		require.NoError(t, err)
		var during, after string
		require.NoError(t, pool.QueryRow(ctx, "SELECT level, current_setting('synchronous_commit') FROM "+p+"seen").Scan(&during, &after))
		want := level
		if level == "off" {
			want = "on"
		}
		require.Equal(t, want, during)
		require.Equal(t, level, after, "the pool's sessions are the host's")
	}
}

// pooler gives all its clients, one after the other, the one connection that it has to the server, as a transaction pooler does
// when they come one at a time: what one of them prepared is there for the next.
type pooler struct {
	net.Listener
	server   net.Conn
	greeting []byte // all that the server said before it was ready for the first query
}

func newPooler(t *testing.T, srv *pgtest.Server) *pooler {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p := &pooler{Listener: l}
	p.server, err = net.Dial("tcp", fmt.Sprint("127.0.0.1:", srv.Port()))
	require.NoError(t, err)
	var all sync.WaitGroup
	t.Cleanup(func() { l.Close(); p.server.Close(); all.Wait() })

	var mu sync.Mutex // guards client
	var client net.Conn
	send := func(b []byte) {
		mu.Lock()
		defer mu.Unlock()
		if client != nil {
			client.Write(b) // who has gone misses it
		}
	}
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			stop := context.AfterFunc(t.Context(), func() { c.Close() })
			startup, err := message(c, 0)
			if err != nil {
				continue
			}
			if p.greeting == nil {
				p.server.Write(startup)
				for ready := false; !ready; {
					m, err := message(p.server, 1)
					if err != nil {
						return
					}
					p.greeting, ready = append(p.greeting, m...), m[0] == 'Z'
				}
				all.Go(func() {
					for {
						m, err := message(p.server, 1)
						if err != nil {
							return
						}
						send(m)
					}
				})
			}
			mu.Lock()
			client = c
			mu.Unlock()
			send(p.greeting)
			for {
				m, err := message(c, 1)
				if err != nil || m[0] == 'X' { // Terminate is for the pooler
					break
				}
				p.server.Write(m)
			}
			stop()
			c.Close()
		}
	})
	return p
}

// message reads one message of the protocol; tag is the length of what comes before its size: none at startup, else a byte.
func message(r io.Reader, tag int) ([]byte, error) {
	m := make([]byte, tag+4)
	if _, err := io.ReadFull(r, m); err != nil {
		return nil, err
	}
	rest := make([]byte, binary.BigEndian.Uint32(m[tag:])-4)
	_, err := io.ReadFull(r, rest)
	return append(m, rest...), err
}

// Without the option, a service behind a transaction pooler is told which option it needs, not a number of the server's.
func TestPoolerWithoutTheOption(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	srv := pgtest.Private(t, pgtest.Quick...)
	p := newPooler(t, srv)
	behind := func(c *pgxpool.Config) {
		c.ConnConfig.Port = uint16(p.Addr().(*net.TCPAddr).Port)
	}
	// The first has the connection to itself, and leaves its statements behind.
	pool := newPool(t, srv, 1, behind)
	s, err := pgstore.New(ctx, pool, nil)
	require.NoError(t, err)
	_, err = s.Apply(ctx, rule("r"))
	require.NoError(t, err)
	require.NoError(t, s.Close())
	pool.Close()

	for _, o := range []pgstore.Options{{}, {Manual: true}} {
		pool = newPool(t, srv, 1, behind)
		_, err = pgstore.New(ctx, pool, &o)
		require.ErrorContains(t, err, "Options.Pooler")
		pool.Close()
	}
	pool = newPool(t, srv, 1, behind)
	require.ErrorContains(t, pgstore.Migrate(ctx, pool, nil), "Options.Pooler")
	pool.Close()

	// One whose statements are taken away under it, as when its transactions come to other connections.
	pool = newPool(t, srv, 1)
	s = open(t, pool, pgstore.Options{})
	_, err = s.Get(ctx, store.KindRule, "r")
	require.NoError(t, err)
	conn, err := pool.Acquire(ctx)
	require.NoError(t, err)
	_, err = conn.Conn().PgConn().Exec(ctx, "DEALLOCATE ALL").ReadAll()
	require.NoError(t, err)
	conn.Release()
	_, err = s.Get(ctx, store.KindRule, "r")
	require.ErrorContains(t, err, "Options.Pooler")

	pool = newPool(t, srv, 1, behind)
	s = open(t, pool, pgstore.Options{Pooler: true})
	_, err = s.Apply(ctx, grant("g", "x", store.Version{}, "e"))
	require.NoError(t, err)
	_, err = s.Get(ctx, store.KindRule, "r")
	require.NoError(t, err)
}
