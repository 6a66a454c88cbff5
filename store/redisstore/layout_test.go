package redisstore_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/redisstore"
	"github.com/apitoken-go/apitoken/store/redisstore/redistest"
	"github.com/apitoken-go/apitoken/store/storetest"
)

// TestCluster runs on a cluster, through its client: every key of a namespace lies in one slot, and different namespaces in
// different ones.
func TestCluster(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	server := redistest.Private(t, "--cluster-enabled", "yes")
	node := server.Client(t)
	require.NoError(t, node.ClusterAddSlotsRange(ctx, 0, 16383).Err())
	eventually(t, func() bool { return strings.Contains(node.ClusterInfo(ctx).Val(), "cluster_state:ok") }, "the cluster has all slots")
	c := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{server.Addr}})
	defer c.Close()
	s := openAt(t, c, nil)
	storetest.Namespaces(t, s.Namespace("a"), s.Namespace("b"))
	for _, n := range []store.Store{s, s.Namespace("a"), s.Namespace("b")} {
		p := put(store.KindAPIKey, "every index", store.Version{})
		p.Subject, p.Client, p.Grant, p.Token, p.Type, p.Expires = "s{x}", "}{c", "{}", "t", "y", 1<<45
		e := event("e")
		e.Expires = 1 << 45
		must(t, n, []store.Put{p}, e)
	}
	slots := map[string]int64{}
	keys, err := node.Keys(ctx, "*").Result()
	require.NoError(t, err)
	require.Greater(t, len(keys), 30)
	for _, k := range keys {
		space := k[:strings.IndexByte(k, '}')]
		slot := node.ClusterKeySlot(ctx, k).Val()
		if at, ok := slots[space]; ok {
			require.Equal(t, at, slot, "key %q", k)
		}
		slots[space] = slot
	}
	require.Len(t, slots, 3)
	require.NotEqual(t, slots["{apitoken:a"], slots["{apitoken:b"])

	// Waiting for replicas goes to the node of the namespace: there are none, so nothing is answered.
	_, err = redisstore.New(ctx, c, &redisstore.Options{WaitReplicas: 1, Timeout: 2 * time.Second})
	require.ErrorContains(t, err, "0 of 1 replicas")
}

// TestManyEvents goes through several blocks of events, by what selects, by time, in both directions, before and after
// parts of them are purged.
func TestManyEvents(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s := open(t, nil)
	const n = 10_000 // two blocks and a half
	subject := func(i int) string { return fmt.Sprint("s", i%2500) }
	for i := 0; i < n; i += 16 {
		c := change(nil)
		for j := i; j < min(i+16, n); j++ {
			e := event(fmt.Sprintf("%05d", j))
			e.Data, e.Subject, e.Client, e.Token = nil, subject(j), fmt.Sprint("c", j%2), fmt.Sprint("t", j)
			if j < 4096 || j%3 == 0 {
				e.Expires = int64(1000 + j)
			}
			c.Events = append(c.Events, e)
		}
		_, err := s.Apply(ctx, c)
		require.NoError(t, err)
	}
	everything := all(t, s, store.Query{Kind: store.KindEvent, Limit: 1000})
	require.Len(t, everything, n)
	check := func(kept []store.Record) {
		t.Helper()
		for _, q := range []store.Query{
			{}, {Subject: "s77"}, {Subject: "s77", Client: "c0"}, {Token: "t5000"}, {Token: "t9999"}, {Token: "no"}, {Client: "c1"}, {Type: "test", Subject: "s2499"},
			{Since: everything[5000].Written}, {Until: everything[5000].Written}, {Since: everything[4000].Written, Until: everything[8000].Written, Client: "c0"},
			{Since: everything[8500].Written, Subject: "s77"}, {Until: everything[100].Written, Subject: "s3"},
		} {
			q.Kind = store.KindEvent
			var want []string
			for i := range kept {
				r := &kept[i]
				if (q.Subject == "" || q.Subject == r.Subject) && (q.Client == "" || q.Client == r.Client) && (q.Token == "" || q.Token == r.Token) &&
					(q.Since == 0 || r.Written >= q.Since) && (q.Until == 0 || r.Written < q.Until) {
					want = append(want, r.ID)
				}
			}
			for _, limit := range []int{3, 700} {
				if limit == 3 && len(want) > 100 {
					continue
				}
				q.Limit = limit
				q.Newest = false
				got := ids(all(t, s, q))
				require.True(t, slices.Equal(want, got), "%+v: %d events, want %d", q, len(got), len(want))
				q.Newest = true
				got = ids(all(t, s, q))
				slices.Reverse(got)
				require.True(t, slices.Equal(want, got), "%+v: %d events, want %d", q, len(got), len(want))
			}
		}
	}
	check(everything)
	removed, err := s.Purge(ctx, store.KindEvent, 1000+2000, 1_000_000)
	require.NoError(t, err)
	require.Equal(t, 2000, removed)
	check(everything[2000:])
	client := sharedClient(t)
	before := keysOf(t, client, s)
	for {
		k, err := s.Purge(ctx, store.KindEvent, 1000+n, 777)
		require.NoError(t, err)
		require.LessOrEqual(t, k, 777)
		if k == 0 {
			break
		}
	}
	kept := slices.DeleteFunc(slices.Clone(everything), func(r store.Record) bool { return r.Expires != 0 })
	check(kept)
	require.Less(t, len(keysOf(t, client, s)), len(before), "the index of a block goes with its last event")
	// And the order goes on behind what was purged.
	must(t, s, nil, event("last"))
	rs := all(t, s, store.Query{Kind: store.KindEvent, Newest: true})
	require.Equal(t, "last", rs[0].ID)
}

// keysOf are the keys of a store's default namespace.
func keysOf(t *testing.T, c *redis.Client, s *redisstore.Store) []string {
	t.Helper()
	keys, err := c.Keys(context.Background(), "{"+s.Prefix()+":}*").Result()
	require.NoError(t, err)
	require.NotEmpty(t, keys)
	return keys
}

// TestPurgeLeavesNothing: records that come and go leave no keys behind but the namespace's own.
func TestPurgeLeavesNothing(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s := open(t, nil)
	for i := range 600 {
		var puts []store.Put
		for _, k := range []store.Kind{"grant", store.KindRule} {
			p := put(k, fmt.Sprint(i), store.Version{})
			p.Subject, p.Client, p.Grant, p.Token, p.Type, p.Expires = fmt.Sprint("s", i), "c", fmt.Sprint("g", i), "t", "y", 1
			puts = append(puts, p)
		}
		must(t, s, puts)
	}
	for _, k := range []store.Kind{"grant", store.KindRule} {
		n, err := s.Purge(ctx, k, 10, 10_000)
		require.NoError(t, err)
		require.Equal(t, 600, n)
	}
	for _, k := range keysOf(t, sharedClient(t), s) {
		rest := k[strings.IndexByte(k, '}')+1:]
		require.True(t, rest == "m" || strings.HasPrefix(rest, "f:"), "key %q is left", k)
	}
}

// TestDamage writes into the store's keys: what can't be right is an error, never a record.
func TestDamage(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s := open(t, nil)
	c := sharedClient(t)
	base := "{" + s.Prefix() + ":}"
	must(t, s, []store.Put{put(store.KindRole, "a", store.Version{}), put(store.KindRole, "b", store.Version{})}, event("e"))
	good := c.HGet(ctx, base+"r:role", "a").Val()
	for i := range len(good) {
		if i >= 16 && i < 30 || i >= 38 && i < 46 {
			continue // the server's own stamps
		}
		bad := []byte(good)
		bad[i] ^= 1
		require.NoError(t, c.HSet(ctx, base+"r:role", "a", bad).Err())
		_, err := s.Get(ctx, store.KindRole, "a")
		require.ErrorIs(t, err, redisstore.ErrDamaged, "byte %d", i)
	}
	require.NoError(t, c.HSet(ctx, base+"r:role", "a", "short").Err())
	_, err := s.Get(ctx, store.KindRole, "a")
	require.ErrorIs(t, err, redisstore.ErrDamaged)
	_, err = s.Follow(ctx, store.Position{}, nil, 10)
	require.ErrorIs(t, err, redisstore.ErrDamaged)
	_, err = s.Apply(ctx, change([]store.Put{put(store.KindRole, "a", store.Version{})}))
	require.ErrorIs(t, err, redisstore.ErrDamaged)
	// A good value in another's place.
	require.NoError(t, c.HSet(ctx, base+"r:role", "a", c.HGet(ctx, base+"r:role", "b").Val()).Err())
	_, err = s.Get(ctx, store.KindRole, "a")
	require.ErrorIs(t, err, redisstore.ErrDamaged)
	// A later version's layout.
	require.NoError(t, c.HSet(ctx, base+"m", "format", "99").Err())
	_, err = redisstore.New(ctx, c, &redisstore.Options{Prefix: s.Prefix()})
	require.ErrorContains(t, err, "layout")
}
