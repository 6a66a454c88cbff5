package redisstore_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/redisstore"
	"github.com/apitoken-go/apitoken/store/redisstore/redistest"
)

// cluster is two nodes, of which a has the slot of the default namespace.
type cluster struct {
	servers []*redistest.Server
	a, b    *redis.Client
	client  *redis.ClusterClient
	slot    int64
}

// newCluster starts it; alone says that a has no other slot.
func newCluster(t *testing.T, alone bool) *cluster {
	t.Helper()
	ctx := context.Background()
	// A node that gave its last slot away would otherwise become a replica, and forget what it was.
	args := []string{"--cluster-enabled", "yes", "--cluster-allow-replica-migration", "no"}
	c := &cluster{servers: []*redistest.Server{redistest.Private(t, args...), redistest.Private(t, args...)}}
	c.a, c.b = c.servers[0].Client(t), c.servers[1].Client(t)
	c.slot = c.a.ClusterKeySlot(ctx, "{apitoken:}m").Val()
	require.NoError(t, c.a.ClusterAddSlots(ctx, int(c.slot)).Err())
	others := c.a
	if alone {
		others = c.b
	}
	require.NoError(t, others.ClusterAddSlotsRange(ctx, 0, int(c.slot)-1).Err())
	require.NoError(t, others.ClusterAddSlotsRange(ctx, int(c.slot)+1, 16383).Err())
	host, port := splitAddr(t, c.servers[1].Addr)
	require.NoError(t, c.a.ClusterMeet(ctx, host, port).Err())
	for _, n := range []*redis.Client{c.a, c.b} {
		eventually(t, func() bool {
			info := n.ClusterInfo(ctx).Val()
			return strings.Contains(info, "cluster_state:ok") && strings.Contains(info, "cluster_known_nodes:2")
		}, "two nodes know each other")
	}
	c.client = redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{c.servers[0].Addr}})
	t.Cleanup(func() { _ = c.client.Close() })
	return c
}

// begin is the first step of a move; finish moves the keys, those aside that it drops, and gives the slot to b.
func (c *cluster) begin(t *testing.T) {
	t.Helper()
	ctx := context.Background()
	require.NoError(t, c.b.Do(ctx, "cluster", "setslot", c.slot, "importing", c.a.ClusterMyID(ctx).Val()).Err())
	require.NoError(t, c.a.Do(ctx, "cluster", "setslot", c.slot, "migrating", c.b.ClusterMyID(ctx).Val()).Err())
}

func (c *cluster) finish(t *testing.T, drop ...string) {
	t.Helper()
	ctx := context.Background()
	keys, err := c.a.ClusterGetKeysInSlot(ctx, int(c.slot), 1000).Result()
	require.NoError(t, err)
	host, port := splitAddr(t, c.servers[1].Addr)
	args := []any{"migrate", host, port, "", 0, 5000, "keys"}
	for _, k := range keys {
		if slices.Contains(drop, k) {
			require.NoError(t, c.a.Del(ctx, k).Err())
			continue
		}
		args = append(args, k)
	}
	require.NoError(t, c.a.Do(ctx, args...).Err())
	for _, n := range []*redis.Client{c.b, c.a} {
		require.NoError(t, n.Do(ctx, "cluster", "setslot", c.slot, "node", c.b.ClusterMyID(ctx).Val()).Err())
	}
}

// TestSlotMoves moves a namespace from one node of a cluster to another, keys first and then the slot, also the last one of its
// node: nothing is lost, so running processes go on and others start.
func TestSlotMoves(t *testing.T) {
	t.Parallel()
	for name, drained := range map[string]bool{"to a node with slots": false, "drains its node": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			c := newCluster(t, drained)
			s := openAt(t, c.client, nil)
			svc, err := serve(t, s, apitoken.RefuseRestored)
			require.NoError(t, err)
			_, err = svc.Issue(ctx, apitoken.Request{Subject: "alice", Refresh: true})
			require.NoError(t, err)
			must(t, s, []store.Put{put(store.KindRole, "a", store.Version{})}, event("1"))
			rs, at := snapshotOf(t, s)

			c.begin(t)
			// From here on the node refuses new keys, and so would a write half way: nothing of it is done.
			short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
			defer cancel()
			p := put("grant", "half", store.Version{})
			p.Subject = "new"
			_, err = s.Apply(short, change([]store.Put{p}, event("half")))
			definite(t, err)
			require.False(t, c.a.HExists(ctx, "{apitoken:}r:grant", "half").Val())
			c.finish(t)

			_, err = s.Follow(ctx, at, nil, 10)
			require.NoError(t, err, "the node that had it testifies that it has lost nothing")
			must(t, s, []store.Put{put(store.KindRole, "b", store.Version{})}, event("2"))
			after, now := snapshotOf(t, s)
			require.Subset(t, ids(after), ids(rs))
			require.Equal(t, at.History, now.History)
			_, err = serve(t, openAt(t, c.client, nil), apitoken.RefuseRestored)
			require.NoError(t, err, "a new process starts")
		})
	}
}

// TestSlotMovedWithLoss: the node that had the slot was started again and may have less than it acknowledged, or does not answer
// any more, or not all arrived.
func TestSlotMovedWithLoss(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]func(t *testing.T, c *cluster){
		"started again before": func(t *testing.T, c *cluster) {
			c.servers[0].Kill()
			require.NoError(t, c.servers[0].Run())
			eventually(t, func() bool {
				return strings.Contains(c.a.ClusterInfo(context.Background()).Val(), "cluster_state:ok")
			}, "the cluster is whole again")
			c.begin(t)
			c.finish(t)
		},
		"gone afterwards": func(t *testing.T, c *cluster) {
			c.begin(t)
			c.finish(t)
			c.servers[0].Kill()
		},
		"rules lost":            func(t *testing.T, c *cluster) { c.begin(t); c.finish(t, "{apitoken:}r:rule") },
		"order lost":            func(t *testing.T, c *cluster) { c.begin(t); c.finish(t, "{apitoken:}s") },
		"all of the state lost": func(t *testing.T, c *cluster) { c.begin(t); c.finish(t, "{apitoken:}s", "{apitoken:}r:rule") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			c := newCluster(t, false)
			s := openAt(t, c.client, &redisstore.Options{Timeout: 20 * time.Second})
			must(t, s, []store.Put{put(store.KindRule, "a", store.Version{})})
			_, at := snapshotOf(t, s)
			require.NoError(t, s.Close())
			lose(t, c)
			client := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{c.servers[1].Addr}})
			t.Cleanup(func() { _ = client.Close() })
			fresh := openAt(t, client, &redisstore.Options{Timeout: 20 * time.Second})
			_, err := fresh.Follow(ctx, at, nil, 10)
			require.ErrorIs(t, err, store.ErrDiverged)
		})
	}
}
