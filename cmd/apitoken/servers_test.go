package main

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/go-sql-driver/mysql"
	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/admin"
	"github.com/apitoken-go/apitoken/store/etcdstore"
	"github.com/apitoken-go/apitoken/store/etcdstore/etcdtest"
	"github.com/apitoken-go/apitoken/store/mysqlstore"
	"github.com/apitoken-go/apitoken/store/mysqlstore/mysqltest"
	"github.com/apitoken-go/apitoken/store/redisstore"
	"github.com/apitoken-go/apitoken/store/redisstore/redistest"
)

// The stores on servers, opened by URL. Their services may run or not.

// on starts a service on a store and returns what every call of the command on it has in common.
func on(t *testing.T, st apitoken.Store, url string) world {
	t.Helper()
	seal := filepath.Join(shortDir(t), "seal.key")
	svc := start(t, config(t, st, seal))
	return world{runs{t, []string{"--store", url, "--seal-file", seal}}, fill(t, svc), true}
}

func redisAt(t *testing.T, server *redistest.Server) *redisstore.Store {
	t.Helper()
	st, err := redisstore.New(context.Background(), server.Client(t), nil)
	require.NoError(t, err)
	t.Cleanup(func() { st.Close() })
	return st
}

func TestAServiceOnRedis(t *testing.T) {
	t.Parallel()
	server := redistest.Private(t)
	flows(t, on(t, redisAt(t, server), "redis://"+server.Addr))
}

// mysqlURL is a server's address, as the command reads it.
func mysqlURL(t *testing.T, dsn string) string {
	t.Helper()
	c, err := mysql.ParseDSN(dsn)
	require.NoError(t, err)
	return "mysql://" + c.User + "@" + c.Addr + "/" + c.DBName
}

func TestAServiceOnMySQL(t *testing.T) {
	t.Parallel()
	server := mysqltest.Start(t)
	c, err := mysql.ParseDSN(server.DSN)
	require.NoError(t, err)
	st, err := mysqlstore.Open(context.Background(), c, nil)
	require.NoError(t, err)
	t.Cleanup(func() { st.Close() })
	flows(t, on(t, st, mysqlURL(t, server.DSN)))
}

func TestAServiceOnEtcd(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	cluster := etcdtest.Start(t, 1, etcdtest.Quick)
	st, err := etcdstore.New(ctx, cluster.Client(t), nil)
	require.NoError(t, err)
	t.Cleanup(func() { st.Close() })
	url := "etcd://" + cluster.Endpoints()[0][len("http://"):]
	w := on(t, st, url+"?events=etcd")
	flows(t, w)

	w.common[1] = url
	x := w.do("sessions")
	require.Equal(t, misused, x.code)
	require.Contains(t, x.err, "events", "where the service's events are has to be said: another process must not be of another mind")
}

// TestALookAtRedisDecidesNothing: to open a namespace after a restart of its server counts as a loss, which is for the service to
// say.
func TestALookAtRedisDecidesNothing(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	server := redistest.Private(t)
	st := redisAt(t, server)
	w := on(t, st, "redis://"+server.Addr)
	w.good("sessions")
	require.NoError(t, st.Close())
	client := server.Client(t)
	before, err := client.HGetAll(ctx, "{apitoken:}m").Result()
	require.NoError(t, err)
	require.NotEmpty(t, before["replid"])
	require.NoError(t, client.HSet(ctx, "{apitoken:}m", "replid", "0000000000000000000000000000000000000001").Err()) // as after a restart
	before["replid"] = "0000000000000000000000000000000000000001"
	x := w.do("sessions")
	require.Equal(t, refused, x.code, x.err)
	require.Contains(t, x.err, "restart-loses-nothing")
	after, err := client.HGetAll(ctx, "{apitoken:}m").Result()
	require.NoError(t, err)
	require.Equal(t, before, after, "and so it is left as it is")
	w.common[1] += "?restart-loses-nothing"
	var p admin.Page[admin.Session]
	w.read(&p, "sessions")
	require.Len(t, p.Items, 1)
	require.Equal(t, misused, runs{t, nil}.do("sessions", "--store", "redis://"+server.Addr+"?restart-looses-nothing").code, "a typo is no parameter")
}

// TestCopyFromAServer: a service moves from a server to a file.
func TestCopyFromAServer(t *testing.T) {
	t.Parallel()
	server := redistest.Private(t)
	st := redisAt(t, server)
	w := on(t, st, "redis://"+server.Addr)
	to := filepath.Join(shortDir(t), "tokens.db")
	w.good("copy", "--to", to)
	_, err := os.Stat(to)
	require.NoError(t, err)
	w.common[1] = to
	var p admin.Page[admin.Session]
	w.read(&p, "sessions")
	require.Len(t, p.Items, 1)
}

func TestPasswordsOfServersAreNoArguments(t *testing.T) {
	t.Parallel()
	for _, url := range []string{"mysql://a:hunter2hunter2@db/tokens", "redis://:hunter2hunter2@db", "etcd://a:hunter2hunter2@one:2379,two:2379?events=etcd",
		"etcd://one:2379?events=postgres://a:hunter2hunter2@db/events", "etcd://one:2379,two:2379?events=postgres://a:hunter2hunter2@db/events"} {
		x := runs{t, []string{"--store", url}}.do("sessions")
		require.Equal(t, misused, x.code, url)
		require.NotContains(t, x.out+x.err, "hunter2")
		require.Contains(t, x.err, "--store-file")
	}
}
