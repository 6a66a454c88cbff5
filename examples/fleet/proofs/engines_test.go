// Package proofs holds what must be true with many processes on one engine, for every engine: histories that a checker finds
// linearizable, revocations that arrive while hints are cut, and outages that end by themselves.
package proofs

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/examples/fleet/cut"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/boltstore"
	"github.com/apitoken-go/apitoken/store/etcdstore"
	"github.com/apitoken-go/apitoken/store/etcdstore/etcdtest"
	"github.com/apitoken-go/apitoken/store/memstore"
	"github.com/apitoken-go/apitoken/store/mysqlstore"
	"github.com/apitoken-go/apitoken/store/mysqlstore/mysqltest"
	"github.com/apitoken-go/apitoken/store/pgstore"
	"github.com/apitoken-go/apitoken/store/pgstore/pgtest"
	"github.com/apitoken-go/apitoken/store/redisstore"
	"github.com/apitoken-go/apitoken/store/redisstore/redistest"
	"github.com/apitoken-go/apitoken/store/sqlitestore"
)

// engine is one kind of store, running.
type engine struct {
	name string
	// store is what all services share where there is no server.
	store store.Store
	addr  string // of the server; empty: there is none
	// deafen ends the connections that bring hints, on the server's side; nil: there are none.
	deafen func(t testing.TB)
	// url and prefix are for processes that connect by themselves to Postgres; prefix to MySQL too.
	url, prefix string
}

// open connects as one more process does, through addr, or to the server itself if that is empty.
func (e engine) open(t testing.TB, addr string) store.Store {
	t.Helper()
	if e.store != nil {
		return e.store
	}
	if addr == "" {
		addr = e.addr
	}
	s, disconnect, err := connect(context.Background(), e.name, addr, e.prefix)
	require.NoError(t, err)
	t.Cleanup(disconnect)
	return s
}

// connect opens the store that a server at addr has. Where a server is too busy to answer in time it is asked again, as whoever
// starts processes does.
func connect(ctx context.Context, engine, addr, prefix string) (st store.Store, disconnect func(), err error) {
	for began := time.Now(); ; {
		st, disconnect, err = connectOnce(ctx, engine, addr, prefix)
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > time.Minute {
			return st, disconnect, err
		}
	}
}

func connectOnce(ctx context.Context, engine, addr, prefix string) (st store.Store, disconnect func(), err error) {
	switch engine {
	case "postgres":
		pool, err := pgPool(ctx, addr)
		if err != nil {
			return nil, nil, err
		}
		s, err := pgstore.New(ctx, pool, &pgstore.Options{Prefix: prefix})
		if err != nil {
			pool.Close()
			return nil, nil, err
		}
		return s, func() { _ = s.Close(); pool.Close() }, nil
	case "mysql":
		c, err := mysql.ParseDSN(mysqlDSN())
		if err != nil {
			return nil, nil, err
		}
		c.Addr = addr
		s, err := mysqlstore.Open(ctx, c, &mysqlstore.Options{Prefix: prefix, MaxConns: 4})
		if err != nil {
			return nil, nil, err
		}
		return s, func() { _ = s.Close() }, nil
	case "redis":
		c := redis.NewClient(&redis.Options{Addr: addr, ContextTimeoutEnabled: true})
		s, err := redisstore.New(ctx, c, nil)
		if err != nil {
			_ = c.Close()
			return nil, nil, err
		}
		return s, func() { _ = s.Close(); _ = c.Close() }, nil
	case "etcd":
		c, err := clientv3.New(clientv3.Config{Endpoints: []string{"http://" + addr}, Logger: zap.NewNop(),
			DialTimeout: 2 * time.Second, DialKeepAliveTime: 2 * time.Second, DialKeepAliveTimeout: time.Second})
		if err != nil {
			return nil, nil, err
		}
		s, err := etcdstore.New(ctx, c, nil)
		if err != nil {
			_ = c.Close()
			return nil, nil, err
		}
		return s, func() { _ = s.Close(); _ = c.Close() }, nil
	}
	return nil, nil, fmt.Errorf("no server %q", engine)
}

// pgPool has the few connections that a process of the fleet is given.
func pgPool(ctx context.Context, addr string) (*pgxpool.Pool, error) {
	c, err := pgxpool.ParseConfig(postgresURL(addr))
	if err != nil {
		return nil, err
	}
	c.MaxConns = 4
	return pgxpool.NewWithConfig(ctx, c)
}

// postgresURL is that of the tests' server at another address, through which it is reached.
func postgresURL(addr string) string {
	u, err := url.Parse(os.Getenv("APITOKEN_TEST_POSTGRES")) // whose user and database are the host's
	if err != nil || u.Host == "" {
		return "postgres://postgres@" + addr + "/postgres?sslmode=disable"
	}
	u.Host = addr
	return u.String()
}

// mysqlDSN is that of the tests' server, whose address its user replaces.
func mysqlDSN() string {
	if dsn := os.Getenv("APITOKEN_TEST_MYSQL"); dsn != "" { // whose user and database are the host's
		return dsn
	}
	return "root@tcp(127.0.0.1:3306)/apitoken"
}

// engines starts them. Each lives as long as the test that starts it.
var engines = map[string]func(t testing.TB) engine{
	"memory": func(t testing.TB) engine { return engine{name: "memory", store: memstore.New()} },
	"bbolt": func(t testing.TB) engine {
		st, err := boltstore.Open(filepath.Join(t.TempDir(), "tokens.db"), nil)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, st.Close()) })
		return engine{name: "bbolt", store: st}
	},
	"sqlite": func(t testing.TB) engine {
		st, err := sqlitestore.Open(filepath.Join(t.TempDir(), "tokens.db"), nil)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, st.Close()) })
		return engine{name: "sqlite", store: st}
	},
	"postgres": startPostgres,
	"mysql":    startMySQL,
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
	u, err := url.Parse(postgres.srv.URL)
	require.NoError(t, err)
	admin, err := pgPool(context.Background(), u.Host)
	require.NoError(t, err)
	t.Cleanup(admin.Close)
	return engine{name: "postgres", addr: u.Host, url: postgres.srv.URL, prefix: fmt.Sprintf("f%d_%d_", time.Now().UnixNano()%1e9, schemas.Add(1)),
		deafen: func(t testing.TB) {
			_, err := admin.Exec(context.Background(), "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND pid <> pg_backend_pid()")
			require.NoError(t, err)
		},
	}
}

// mysqls is the one server of all tests, as postgres is.
var mysqls struct {
	once sync.Once
	dir  string
	srv  *mysqltest.Server
	err  error
}

func startMySQL(t testing.TB) engine {
	mysqls.once.Do(func() {
		if dsn := os.Getenv("APITOKEN_TEST_MYSQL"); dsn != "" {
			mysqls.srv = &mysqltest.Server{DSN: dsn}
			return
		}
		if mysqls.dir, mysqls.err = os.MkdirTemp("", "apitoken-my-"); mysqls.err == nil {
			mysqls.srv, mysqls.err = mysqltest.New(mysqls.dir, mysqltest.Quick...)
		}
	})
	mysqltest.Check(t, mysqls.err)
	return engine{name: "mysql", addr: mysqls.srv.Addr(), prefix: fmt.Sprintf("f%d_%d_", time.Now().UnixNano()%1e9, schemas.Add(1))}
}

func startRedis(t testing.TB) engine {
	srv := redistest.Private(t)
	admin := srv.Client(t)
	return engine{name: "redis", addr: srv.Addr,
		deafen: func(t testing.TB) {
			require.NoError(t, admin.Do(context.Background(), "CLIENT", "KILL", "TYPE", "pubsub").Err())
		},
	}
}

func startEtcd(t testing.TB) engine {
	u, err := url.Parse(etcdtest.Start(t, 1, etcdtest.Quick).Endpoints()[0])
	require.NoError(t, err)
	return engine{name: "etcd", addr: u.Host}
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

// waitTogether lets more tests run at once than there are cores, unless the command line says how many: here most of a test's
// time is that of outages, bounds and rotations.
func waitTogether() {
	flag.Parse()
	said := false
	flag.Visit(func(f *flag.Flag) { said = said || f.Name == "test.parallel" })
	if !said {
		_ = flag.Set("test.parallel", "6") // it is a number
	}
}
