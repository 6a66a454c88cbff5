package redisstore_test

import (
	"context"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/redisstore"
	"github.com/apitoken-go/apitoken/store/redisstore/redistest"
)

// TestRefusesUnsafeServers: each configuration that may lose or forget something is refused with a reason, and accepted
// by the option that says so.
func TestRefusesUnsafeServers(t *testing.T) {
	t.Parallel()
	type options = redisstore.Options
	for name, tc := range map[string]struct {
		args   []string
		o      options
		reason string // "": accepted
	}{
		"safe":                       {nil, options{}, ""},
		"volatile-lru":               {[]string{"--maxmemory-policy", "volatile-lru"}, options{}, "maxmemory-policy is volatile-lru"},
		"allkeys-lru":                {[]string{"--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"}, options{}, "maxmemory-policy is allkeys-lru"},
		"may evict":                  {[]string{"--maxmemory-policy", "allkeys-lru"}, options{InsecureMayEvict: true}, ""},
		"everysec":                   {[]string{"--appendfsync", "everysec"}, options{}, "appendfsync is everysec"},
		"no file":                    {[]string{"--appendonly", "no"}, options{}, "appendonly is no"},
		"may lose, everysec":         {[]string{"--appendfsync", "everysec"}, options{InsecureMayLoseWrites: true}, ""},
		"may lose, no file":          {[]string{"--appendonly", "no"}, options{InsecureMayLoseWrites: true}, ""},
		"may lose is not may evict":  {[]string{"--maxmemory-policy", "allkeys-lru"}, options{InsecureMayLoseWrites: true}, "maxmemory-policy"},
		"may evict is not may lose":  {[]string{"--appendonly", "no"}, options{InsecureMayEvict: true}, "appendonly"},
		"trust is not what is seen":  {[]string{"--appendonly", "no"}, options{TrustServerConfig: true}, "appendonly"},
		"restart needs the file":     {[]string{"--appendonly", "no"}, options{WaitReplicas: 1, RestartLosesNothing: true}, "appendonly"},
		"contradiction":              {nil, options{RestartLosesNothing: true, InsecureMayLoseWrites: true}, "contradicts"},
		"WAITAOF is of a later time": {nil, options{WaitAOF: true}, "WAITAOF"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := redistest.Private(t, tc.args...)
			if tc.o.WaitAOF {
				info, err := server.Client(t).InfoMap(context.Background(), "server").Result()
				require.NoError(t, err)
				if v := info["Server"]["redis_version"]; v >= "7.2" {
					t.Skip("this server has WAITAOF: ", v)
				}
			}
			s, err := redisstore.New(context.Background(), server.Client(t), &tc.o)
			if tc.reason == "" {
				require.NoError(t, err)
				must(t, s, []store.Put{put(store.KindRule, "a", store.Version{})})
				require.NoError(t, s.Close())
				return
			}
			require.ErrorContains(t, err, tc.reason)
			if name != "contradiction" {
				require.ErrorIs(t, err, redisstore.ErrUnsafe)
				require.Zero(t, server.Client(t).DBSize(context.Background()).Val(), "nothing is written to a server that is refused")
			}
		})
	}
}

// TestConfigForbidden is a managed server: CONFIG is forbidden, and its user has what the documentation says and no more.
func TestConfigForbidden(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	server := redistest.Private(t)
	admin := server.Client(t)
	require.NoError(t, admin.Do(ctx, "acl", "setuser", "app", "on", ">secret", "~{apitoken:*", "&apitoken:*",
		"+eval", "+evalsha", "+info", "+publish", "+subscribe", "+unsubscribe", "+ping", "+time", "+exists",
		"+hget", "+hset", "+hdel", "+hmget", "+hgetall", "+get", "+set", "+del", "+append",
		"+zadd", "+zrem", "+zscore", "+zcard", "+zrange", "+zrangebylex", "+zrevrangebylex", "+zrangebyscore", "+zrevrangebyscore", "+zremrangebyscore", "+zremrangebyrank",
		"+xadd", "+xdel", "+xrange", "+xrevrange").Err())
	c := redis.NewClient(&redis.Options{Addr: server.Addr, Username: "app", Password: "secret"})
	defer c.Close()
	_, err := redisstore.New(ctx, c, nil)
	require.ErrorIs(t, err, redisstore.ErrUnsafe)
	require.ErrorContains(t, err, "TrustServerConfig")
	s := openAt(t, c, &redisstore.Options{TrustServerConfig: true})

	// One who may look and not have the file rewritten is told how to go on.
	require.NoError(t, admin.Do(ctx, "acl", "setuser", "app", "+config|get").Err())
	_, err = redisstore.New(ctx, c, nil)
	require.ErrorIs(t, err, redisstore.ErrUnsafe)
	require.ErrorContains(t, err, "BGREWRITEAOF")
	require.NoError(t, admin.ConfigSet(ctx, "aof-load-truncated", "no").Err())
	require.NoError(t, openAt(t, c, nil).Close(), "a server that never starts with a file that was cut")
	require.NoError(t, admin.ConfigSet(ctx, "aof-load-truncated", "yes").Err())
	require.NoError(t, admin.Do(ctx, "acl", "setuser", "app", "+bgrewriteaof").Err())
	require.NoError(t, openAt(t, c, nil).Close())
	require.NoError(t, admin.Do(ctx, "acl", "setuser", "app", "-bgrewriteaof").Err())
	require.NoError(t, openAt(t, c, nil).Close(), "it was rewritten")
	require.NoError(t, admin.Do(ctx, "acl", "setuser", "app", "-config|get").Err())

	// Every script runs within those permissions.
	p, e := put(store.KindRule, "a", store.Version{}), event("e")
	p.Expires, p.Subject, e.Expires = 1, "s", 1
	must(t, s, []store.Put{p}, e)
	_, at := snapshotOf(t, s)
	require.NoError(t, s.Wait(ctx, store.Position{}))
	for _, q := range []store.Query{{Kind: store.KindRule}, {Kind: store.KindRule, Subject: "s"}, {Kind: store.KindEvent, Type: "test"}, {Kind: store.KindEvent, Since: 1, Until: 1 << 45}} {
		for _, q.Newest = range []bool{false, true} {
			require.Len(t, all(t, s, q), 1)
		}
	}
	for _, k := range []store.Kind{store.KindRule, store.KindEvent} {
		n, err := s.Purge(ctx, k, 10, 10)
		require.NoError(t, err)
		require.Equal(t, 1, n)
	}
	require.NoError(t, s.SetReadOnly(ctx, true))
	_, err = s.Follow(ctx, at, nil, 10)
	require.NoError(t, err)
}

// TestConfiguredWorseAfterFailover: what is promoted is looked at like what was there before.
func TestConfiguredWorseAfterFailover(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	primary, replica := pair(t)
	require.NoError(t, replica.Client(t).ConfigSet(ctx, "maxmemory-policy", "allkeys-lru").Err())
	door := newProxy(t, primary.Addr)
	s := openAt(t, door.client(t, nil), nil)
	must(t, s, []store.Put{put(store.KindRule, "a", store.Version{})})
	inStep(t, primary)
	primary.Kill()
	promote(t, replica)
	door.point(replica.Addr)
	_, err := s.Get(ctx, store.KindRule, "a")
	require.ErrorIs(t, err, redisstore.ErrUnsafe)
	_, err = s.Apply(ctx, change(nil, event("no")))
	require.ErrorIs(t, err, redisstore.ErrUnsafe)
	definite(t, err)
	require.NoError(t, replica.Client(t).ConfigSet(ctx, "maxmemory-policy", "noeviction").Err())
	_, err = s.Get(ctx, store.KindRule, "a")
	require.NoError(t, err)
}

func TestOptions(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	c := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", MaxRetries: -1})
	defer c.Close()
	for _, o := range []redisstore.Options{{Prefix: "a}b"}, {Prefix: "a{b"}, {Prefix: "ü"}, {Prefix: "a:b"}, {Timeout: -1}, {WaitReplicas: -1}} {
		_, err := redisstore.New(ctx, c, &o)
		require.ErrorContains(t, err, "Options.")
	}
	_, err := redisstore.New(ctx, nil, nil)
	require.ErrorContains(t, err, "client")
	ring := redis.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": "127.0.0.1:1"}})
	defer ring.Close()
	_, err = redisstore.New(ctx, ring, nil)
	require.ErrorContains(t, err, "Ring")
	_, err = redisstore.New(ctx, c, &redisstore.Options{Timeout: time.Second})
	require.ErrorContains(t, err, "refused", "nobody listens: an error, soon")

	s := open(t, nil)
	for _, name := range []string{"", "A", "a}b", "a b", "ä"} {
		_, err := s.Namespace(name).Get(ctx, "grant", "x")
		require.ErrorContains(t, err, "namespace")
	}
	require.NoError(t, s.Close())
	_, err = s.Apply(ctx, change(nil, event("e")))
	require.ErrorIs(t, err, redisstore.ErrClosed)
	_, err = s.Get(ctx, "grant", "x")
	require.ErrorIs(t, err, redisstore.ErrClosed)
	require.ErrorIs(t, s.Wait(ctx, store.Position{}), redisstore.ErrClosed)
}
