// Package proofs holds what must be true with many processes on one engine, for every engine: histories that a checker finds
// linearizable, revocations that arrive while hints are cut, and outages that end by themselves.
package proofs

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/examples/fleet/cut"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/boltstore"
	"github.com/apitoken-go/apitoken/store/etcdstore"
	"github.com/apitoken-go/apitoken/store/etcdstore/etcdtest"
	"github.com/apitoken-go/apitoken/store/memstore"
	"github.com/apitoken-go/apitoken/store/pgstore"
	"github.com/apitoken-go/apitoken/store/pgstore/pgtest"
	"github.com/apitoken-go/apitoken/store/redisstore"
	"github.com/apitoken-go/apitoken/store/redisstore/redistest"
)

// engine is one kind of store, running.
type engine struct {
	// open connects as one more process does, through addr, or to the server itself if that is empty.
	open func(t testing.TB, addr string) store.Store
	addr string // of the server; empty: there is none, and processes are services that share a value
	// deafen ends the connections that bring hints, on the server's side; nil: there are none.
	deafen func(t testing.TB)
	// url and prefix are for processes that connect by themselves to Postgres.
	url, prefix string
}

// engines starts them. Each lives as long as the test that starts it.
var engines = map[string]func(t testing.TB) engine{
	"memory": func(t testing.TB) engine {
		st := memstore.New()
		return engine{open: func(testing.TB, string) store.Store { return st }}
	},
	"bbolt": func(t testing.TB) engine {
		st, err := boltstore.Open(filepath.Join(t.TempDir(), "tokens.db"), nil)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, st.Close()) })
		return engine{open: func(testing.TB, string) store.Store { return st }}
	},
	"postgres": startPostgres,
	"redis":    startRedis,
	"etcd":     startEtcd,
}

// postgres is the one server of all tests, each with tables of its own: none of them stops it.
var postgres struct {
	once sync.Once
	dir  string
	srv  *pgtest.Server
	err  error
}

var schemas atomic.Int64

func startPostgres(t testing.TB) engine {
	postgres.once.Do(func() {
		if url := os.Getenv("APITOKEN_TEST_POSTGRES"); url != "" {
			postgres.srv = &pgtest.Server{URL: url}
			return
		}
		if postgres.dir, postgres.err = os.MkdirTemp("", "apitoken-pg-"); postgres.err == nil {
			postgres.srv, postgres.err = pgtest.New(postgres.dir, pgtest.Quick...)
		}
	})
	pgtest.Check(t, postgres.err)
	srv := postgres.srv
	prefix := fmt.Sprintf("f%d_%d_", time.Now().UnixNano()%1e9, schemas.Add(1))
	u, err := url.Parse(srv.URL)
	require.NoError(t, err)
	pool := func(t testing.TB, addr string) *pgxpool.Pool {
		v := *u
		if addr != "" {
			v.Host = addr
		}
		c, err := pgxpool.ParseConfig(v.String())
		require.NoError(t, err)
		c.MaxConns = 6
		p, err := pgxpool.NewWithConfig(context.Background(), c)
		require.NoError(t, err)
		t.Cleanup(p.Close)
		return p
	}
	admin := pool(t, "")
	return engine{addr: u.Host, url: srv.URL, prefix: prefix,
		open: func(t testing.TB, addr string) store.Store {
			s, err := pgstore.New(context.Background(), pool(t, addr), &pgstore.Options{Prefix: prefix})
			require.NoError(t, err)
			t.Cleanup(func() { _ = s.Close() })
			return s
		},
		deafen: func(t testing.TB) {
			_, err := admin.Exec(context.Background(), "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND pid <> pg_backend_pid()")
			require.NoError(t, err)
		},
	}
}

func startRedis(t testing.TB) engine {
	srv := redistest.Private(t)
	admin := srv.Client(t)
	return engine{addr: srv.Addr,
		open: func(t testing.TB, addr string) store.Store {
			if addr == "" {
				addr = srv.Addr
			}
			c := redis.NewClient(&redis.Options{Addr: addr, ContextTimeoutEnabled: true})
			t.Cleanup(func() { _ = c.Close() })
			s, err := redisstore.New(context.Background(), c, nil)
			require.NoError(t, err)
			t.Cleanup(func() { _ = s.Close() })
			return s
		},
		deafen: func(t testing.TB) {
			require.NoError(t, admin.Do(context.Background(), "CLIENT", "KILL", "TYPE", "pubsub").Err())
		},
	}
}

func startEtcd(t testing.TB) engine {
	cluster := etcdtest.Start(t, 1, etcdtest.Quick)
	u, err := url.Parse(cluster.Endpoints()[0])
	require.NoError(t, err)
	return engine{addr: u.Host,
		open: func(t testing.TB, addr string) store.Store {
			if addr == "" {
				addr = u.Host
			}
			s, err := etcdstore.New(context.Background(), etcdtest.Connect(t, "http://"+addr), nil)
			require.NoError(t, err)
			t.Cleanup(func() { _ = s.Close() })
			return s
		},
	}
}

// process is a service as one process of the fleet has it, with its own connections, which go through a proxy where the
// engine has a server.
type process struct {
	*apitoken.Service
	wire *cut.Proxy
}

func (e engine) process(t testing.TB, change func(*apitoken.Config)) process {
	t.Helper()
	var p process
	addr := ""
	if e.addr != "" {
		var err error
		p.wire, err = cut.New(e.addr)
		require.NoError(t, err)
		t.Cleanup(func() { _ = p.wire.Close() })
		addr = p.wire.Addr()
	}
	c := apitoken.Config{Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: e.open(t, addr), InsecureKeysInStore: true}
	if change != nil {
		change(&c)
	}
	var err error
	p.Service, err = apitoken.New(c)
	require.NoError(t, err)
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func each(t *testing.T, test func(t *testing.T, e engine)) {
	for name, start := range engines {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, start(t))
		})
	}
}
