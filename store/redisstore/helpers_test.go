package redisstore_test

import (
	"context"
	"crypto/rand"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/store"
)

func newVersion() (v store.Version) {
	_, _ = rand.Read(v[:])
	return v
}

func put(kind store.Kind, id string, expect store.Version) store.Put {
	return store.Put{Record: store.Record{Kind: kind, ID: id, Data: []byte("data of " + id)}, Expect: expect}
}

func event(id string) store.Record {
	return store.Record{Kind: store.KindEvent, ID: id, Type: "test", Data: []byte("event " + id)}
}

func change(puts []store.Put, events ...store.Record) *store.Change {
	return &store.Change{ID: newVersion(), Puts: puts, Events: events}
}

// must applies puts and events as one new change and returns its ID.
func must(tb testing.TB, s store.Store, puts []store.Put, events ...store.Record) store.Version {
	tb.Helper()
	c := change(puts, events...)
	_, err := s.Apply(context.Background(), c)
	require.NoError(tb, err)
	return c.ID
}

func ids(rs []store.Record) []string {
	out := []string{}
	for _, r := range rs {
		out = append(out, r.ID)
	}
	return out
}

// all pages through a query.
func all(tb testing.TB, s store.Store, q store.Query) []store.Record {
	tb.Helper()
	var out []store.Record
	for {
		p, err := s.List(context.Background(), q)
		require.NoError(tb, err)
		out = append(out, p.Records...)
		if p.Cursor == "" {
			return out
		}
		q.Cursor = p.Cursor
	}
}

// snapshotOf follows from the beginning to the end.
func snapshotOf(tb testing.TB, s store.Store) ([]store.Record, store.Position) {
	tb.Helper()
	var out []store.Record
	var at store.Position
	for {
		v, err := s.Follow(context.Background(), at, nil, 0)
		require.NoError(tb, err)
		out, at = append(out, v.Records...), v.Next
		if !v.More {
			return out, at
		}
	}
}

// definite tells whether err means not done.
func definite(tb testing.TB, err error) {
	tb.Helper()
	require.Error(tb, err)
	for _, not := range []error{store.ErrConflict, store.ErrReadOnly, store.ErrTooLarge} {
		require.NotErrorIs(tb, err, not, "the outcome is not known, or will be another when it is tried again")
	}
}

// proxy stands between clients and a server, as a name does that a Sentinel moves to another: Point says where
// it leads. Cut ends all connections; with Swallow what the server answers is lost.
type proxy struct {
	listener net.Listener
	target   atomic.Pointer[string]
	swallow  atomic.Int64 // how many more connections lose their next answer

	mu    sync.Mutex // guards conns
	conns map[net.Conn]bool
}

func newProxy(tb testing.TB, target string) *proxy {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(tb, err)
	p := &proxy{listener: l, conns: map[net.Conn]bool{}}
	p.target.Store(&target)
	var done sync.WaitGroup
	done.Add(1)
	go func() {
		defer done.Done()
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			done.Add(1)
			go func() { defer done.Done(); p.serve(c) }()
		}
	}()
	tb.Cleanup(func() { _ = l.Close(); p.cut(); done.Wait() })
	return p
}

func (p *proxy) serve(c net.Conn) {
	defer c.Close()
	d, err := net.Dial("tcp", *p.target.Load())
	if err != nil {
		return
	}
	defer d.Close()
	p.mu.Lock()
	p.conns[c], p.conns[d] = true, true
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.conns, c)
		delete(p.conns, d)
		p.mu.Unlock()
	}()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer d.Close()
		_, _ = copyTo(d, c, nil)
	}()
	_, _ = copyTo(c, d, &p.swallow)
	_ = c.Close()
	<-ended
}

// copyTo copies until an error; with swallow it loses what it has read, and ends, as often as that says.
func copyTo(to, from net.Conn, swallow *atomic.Int64) (n int64, err error) {
	buf := make([]byte, 64<<10)
	for {
		k, err := from.Read(buf)
		if err != nil {
			return n, err
		}
		if swallow != nil {
			if left := swallow.Add(-1); left >= 0 {
				return n, nil
			}
			swallow.Store(0)
		}
		if _, err := to.Write(buf[:k]); err != nil {
			return n, err
		}
		n += int64(k)
	}
}

func (p *proxy) point(target string) { p.target.Store(&target); p.cut() }

func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		_ = c.Close()
	}
}

func (p *proxy) client(tb testing.TB, o *redis.Options) *redis.Client {
	tb.Helper()
	if o == nil {
		o = &redis.Options{}
	}
	o.Addr = p.listener.Addr().String()
	c := redis.NewClient(o)
	tb.Cleanup(func() { _ = c.Close() })
	return c
}

// eventually tries again until f is content.
func eventually(tb testing.TB, f func() bool, rule string) {
	tb.Helper()
	require.Eventually(tb, f, 20*time.Second, 2*time.Millisecond, rule)
}

func splitAddr(tb testing.TB, addr string) (host, port string) {
	tb.Helper()
	host, port, err := net.SplitHostPort(addr)
	require.NoError(tb, err)
	return host, port
}
