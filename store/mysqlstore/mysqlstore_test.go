package mysqlstore_test

import (
	"context"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/mysqlstore"
	"github.com/apitoken-go/apitoken/store/mysqlstore/mysqltest"
	"github.com/apitoken-go/apitoken/store/storetest"
)

// shared is the server of all tests that do it no harm, started by the first of them.
var shared struct {
	once sync.Once
	dir  string
	srv  *mysqltest.Server
	err  error
}

func TestMain(m *testing.M) {
	if dsn := os.Getenv(childVariable); dsn != "" {
		child(dsn, os.Args[1], os.Args[2])
	}
	_ = mysql.SetLogger(&mysql.NopLogger{}) // connections are cut on purpose
	code := m.Run()
	if shared.srv != nil {
		shared.srv.Stop()
	}
	_ = os.RemoveAll(shared.dir) // "" is no error
	os.Exit(code)
}

func server(t testing.TB) *mysqltest.Server {
	t.Helper()
	shared.once.Do(func() {
		if dsn := os.Getenv("APITOKEN_TEST_MYSQL"); dsn != "" {
			shared.srv = &mysqltest.Server{DSN: dsn}
			return
		}
		if shared.dir, shared.err = os.MkdirTemp("", "apitoken-my-"); shared.err == nil {
			shared.srv, shared.err = mysqltest.New(shared.dir, mysqltest.Quick...)
		}
	})
	mysqltest.Check(t, shared.err)
	return shared.srv
}

var prefixes atomic.Int64

// prefix is one that no other test of this run has.
func prefix() string {
	return fmt.Sprintf("t%d_%d_", time.Now().UnixNano()%1e9, prefixes.Add(1))
}

func config(t testing.TB, srv *mysqltest.Server) *mysql.Config {
	t.Helper()
	c, err := mysql.ParseDSN(srv.DSN)
	require.NoError(t, err)
	return c
}

func open(t testing.TB, c *mysql.Config, o mysqlstore.Options) *mysqlstore.Store {
	t.Helper()
	s, err := mysqlstore.Open(context.Background(), c, &o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

// TestSuite runs the suite in tables of each subtest's own, and in namespaces of one set of tables on sessions whose
// defaults are as bad as they get.
func TestSuite(t *testing.T) {
	t.Parallel()
	srv := server(t)
	t.Run("tables", func(t *testing.T) {
		t.Parallel()
		dirs := map[string]string{} // the suite's directories, as table prefixes
		storetest.Run(t, func(t *testing.T, dir string) store.Store {
			if dirs[dir] == "" {
				dirs[dir] = prefix()
			}
			s, err := mysqlstore.Open(context.Background(), config(t, srv), &mysqlstore.Options{Prefix: dirs[dir]})
			require.NoError(t, err)
			return s
		})
	})
	t.Run("namespaces", func(t *testing.T) {
		t.Parallel()
		common := prefix()
		storetest.Run(t, func(t *testing.T, dir string) store.Store {
			c := config(t, srv)
			c.Params = map[string]string{"autocommit": "0", "time_zone": "'-08:00'", "sql_mode": "''"}
			c.Collation, c.ParseTime, c.ClientFoundRows, c.InterpolateParams = "latin1_swedish_ci", true, true, true
			s, err := mysqlstore.Open(context.Background(), c, &mysqlstore.Options{Prefix: common, MaxConns: 4})
			require.NoError(t, err)
			return s.Namespace(dir)
		})
	})
	s := open(t, config(t, srv), mysqlstore.Options{Prefix: prefix()})
	storetest.Namespaces(t, s.Namespace("a"), s.Namespace("b"))
}

func rule(id string) *store.Change {
	c := &store.Change{Puts: []store.Put{{Record: store.Record{Kind: store.KindRule, ID: id, Data: []byte("{}")}}}, Events: []store.Record{{Kind: store.KindEvent, ID: "e" + id, Data: []byte("{}")}}}
	copy(c.ID[:], id+"................")
	return c
}

func grant(id, data string, expect store.Version, events ...string) *store.Change {
	c := &store.Change{Puts: []store.Put{{Record: store.Record{Kind: "grant", ID: id, Data: []byte(data)}, Expect: expect}}}
	copy(c.ID[:], fmt.Sprintf("%-16.16s", id+data))
	for _, e := range events {
		c.Events = append(c.Events, store.Record{Kind: store.KindEvent, ID: e})
	}
	return c
}

func BenchmarkStore(b *testing.B) {
	s := open(b, config(b, mysqltest.Start(b)), mysqlstore.Options{Prefix: prefix()})
	storetest.Bench(b, s)
}
