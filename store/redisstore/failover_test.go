package redisstore_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/redisstore"
	"github.com/apitoken-go/apitoken/store/redisstore/redistest"
)

// pair starts a primary and a replica that is in step with it.
func pair(t *testing.T, args ...string) (primary, replica *redistest.Server) {
	t.Helper()
	primary = redistest.Private(t, args...)
	host, port, _ := strings.Cut(primary.Addr, ":")
	replica = redistest.Private(t, append([]string{"--replicaof", host + " " + port}, args...)...)
	c := replica.Client(t)
	eventually(t, func() bool {
		info, err := c.Info(context.Background(), "replication").Result()
		return err == nil && strings.Contains(info, "master_link_status:up")
	}, "the replica connects")
	return primary, replica
}

// inStep waits until the replica has all that the primary has.
func inStep(t *testing.T, primary *redistest.Server) {
	t.Helper()
	c := redis.NewClient(&redis.Options{Addr: primary.Addr, PoolSize: 1})
	defer c.Close()
	require.NoError(t, c.Set(context.Background(), "in-step", "1", 0).Err())
	eventually(t, func() bool { return c.Wait(context.Background(), 1, 0).Val() >= 1 }, "the replica is in step")
}

// cutReplica keeps the replica from hearing more of its primary, which goes on.
func cutReplica(t *testing.T, primary *redistest.Server) {
	t.Helper()
	ctx, c := context.Background(), primary.Client(t)
	require.NoError(t, c.Do(ctx, "acl", "setuser", "default", "-psync", "-sync").Err())
	require.NoError(t, c.Do(ctx, "client", "kill", "type", "replica").Err())
	eventually(t, func() bool {
		info, err := c.Info(ctx, "replication").Result()
		return err == nil && strings.Contains(info, "connected_slaves:0")
	}, "the replica is gone")
}

func promote(t *testing.T, s *redistest.Server) {
	t.Helper()
	require.NoError(t, s.Client(t).Do(context.Background(), "replicaof", "no", "one").Err())
}

// TestFailoverLosesTail acknowledges a revocation that its replica never hears of, kills the primary and promotes the replica:
// whoever followed the store learns that its history ended, and nothing is written on what was believed before.
func TestFailoverLosesTail(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]redisstore.Options{"default": {}, "restart loses nothing": {RestartLosesNothing: true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			primary, replica := pair(t)
			door := newProxy(t, primary.Addr)
			writer, reader := openAt(t, door.client(t, nil), &o), openAt(t, door.client(t, nil), &o)
			idle := openAt(t, door.client(t, nil), &o)

			g := must(t, writer, []store.Put{put("grant", "g", store.Version{})}, event("kept 1"), event("kept 2"))
			must(t, writer, []store.Put{put(store.KindRule, "kept", store.Version{})})
			_, before := snapshotOf(t, reader)
			early, err := reader.List(ctx, store.Query{Kind: store.KindEvent, Limit: 1})
			require.NoError(t, err)
			inStep(t, primary)
			cutReplica(t, primary)

			must(t, writer, []store.Put{put(store.KindRule, "revocation", store.Version{})}, event("lost"))
			rewritten := must(t, writer, []store.Put{put("grant", "g", g)}, event("lost too"), event("lost as well"))
			_, after := snapshotOf(t, writer)
			late, err := writer.List(ctx, store.Query{Kind: store.KindEvent, Limit: 4})
			require.NoError(t, err)
			require.NotEmpty(t, late.Cursor)

			primary.Kill()
			promote(t, replica)
			door.point(replica.Addr)

			// First the one whose position the promoted replica has, too: it can't know what it missed.
			_, err = reader.Apply(ctx, change([]store.Put{put("grant", "g", g)}))
			require.ErrorIs(t, err, store.ErrDiverged, "nothing is written on a view that may miss a rule")
			definite(t, err)
			_, err = reader.Follow(ctx, before, nil, 10)
			require.ErrorIs(t, err, store.ErrDiverged)
			// The one who wrote, and had seen more than there is.
			for range 2 {
				_, err = writer.Follow(ctx, after, nil, 10)
				require.ErrorIs(t, err, store.ErrDiverged)
			}
			r, err := reader.Get(ctx, "grant", "g")
			require.NoError(t, err)
			require.Equal(t, g, r.Version)
			// The one who had not asked anything since it opened.
			_, err = idle.Apply(ctx, change(nil, event("not written")))
			require.ErrorIs(t, err, store.ErrDiverged)

			// A fresh one, and all of them agree on the new history.
			fresh := openAt(t, door.client(t, nil), &o)
			rs, at := snapshotOf(t, fresh)
			require.Equal(t, []string{"kept"}, ids(rs))
			require.NotEqual(t, before.History, at.History)
			for _, s := range []*redisstore.Store{writer, reader, idle} {
				_, now := snapshotOf(t, s)
				require.Equal(t, at.History, now.History)
			}

			// Who holds the lost rule puts it back under the same change, at a place behind all that was ever seen.
			commit, err := writer.Apply(ctx, change([]store.Put{put(store.KindRule, "revocation", store.Version{})}, event("put back")))
			require.NoError(t, err)
			require.Equal(t, at.History, commit.Head.History)
			require.Greater(t, commit.Head.N, after.N, "positions rise across the loss")
			_, err = writer.Apply(ctx, change([]store.Put{put("grant", "g", rewritten)}))
			require.ErrorIs(t, err, store.ErrConflict, "what was lost is no version any more")

			// The audit feed goes on: from what is kept, and from what was lost.
			rs = all(t, fresh, store.Query{Kind: store.KindEvent, Cursor: early.Cursor})
			require.Equal(t, []string{"kept 2", "put back"}, ids(rs))
			rs = all(t, fresh, store.Query{Kind: store.KindEvent, Cursor: late.Cursor})
			require.Equal(t, []string{"put back"}, ids(rs))
		})
	}
}

// TestOldPrimaryComesBack: after the failover the old primary is a replica, and then primary again by hand.
func TestOldPrimaryComesBack(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	primary, replica := pair(t)
	door := newProxy(t, primary.Addr)
	s := openAt(t, door.client(t, nil), nil)
	must(t, s, []store.Put{put(store.KindRule, "1", store.Version{})})
	_, first := snapshotOf(t, s)
	inStep(t, primary)
	promote(t, replica)
	host, port, _ := strings.Cut(replica.Addr, ":")

	// Cut off from its replica, and not told: it answers; once it is a replica, it does not.
	must(t, s, []store.Put{put(store.KindRule, "lost", store.Version{})})
	require.NoError(t, primary.Client(t).Do(ctx, "replicaof", host, port).Err())
	short, cancel := context.WithTimeout(ctx, 0)
	cancel()
	_, err := s.Get(short, store.KindRule, "1")
	require.Error(t, err)
	quick, err := redisstore.New(ctx, primary.Client(t), &redisstore.Options{Timeout: 3 * time.Second})
	require.Nil(t, quick)
	require.ErrorContains(t, err, "slave", "a replica is refused")

	door.point(replica.Addr)
	_, err = s.Follow(ctx, first, nil, 10)
	require.ErrorIs(t, err, store.ErrDiverged)
	rs, _ := snapshotOf(t, s)
	require.Equal(t, []string{"1"}, ids(rs))
	must(t, s, []store.Put{put(store.KindRule, "2", store.Version{})})
	_, second := snapshotOf(t, s)
	eventually(t, func() bool {
		info, err := primary.Client(t).Info(ctx, "replication").Result()
		return err == nil && strings.Contains(info, "master_link_status:up")
	}, "the old primary follows the new one")
	inStep(t, replica)
	replica.Kill()
	promote(t, primary)
	door.point(primary.Addr)
	_, err = s.Follow(ctx, second, nil, 10)
	require.ErrorIs(t, err, store.ErrDiverged)
	rs, third := snapshotOf(t, s)
	require.Equal(t, []string{"1", "2"}, ids(rs))
	require.NotEqual(t, first.History, third.History)
	require.NotEqual(t, second.History, third.History)
}

// TestRestart kills the server and starts it again. What was acknowledged is there; whether the history is the same is what
// the host says.
func TestRestart(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	server := redistest.Private(t)
	strict := openAt(t, server.Client(t), &redisstore.Options{Prefix: "strict"})
	trusting := openAt(t, server.Client(t), &redisstore.Options{Prefix: "trusting", RestartLosesNothing: true})
	_, one := snapshotOf(t, strict)
	_, two := snapshotOf(t, trusting)
	v := must(t, strict, []store.Put{put(store.KindRule, "a", store.Version{})})
	must(t, trusting, []store.Put{put(store.KindRule, "a", store.Version{})}, event("1"))
	server.Kill()
	require.NoError(t, server.Run())

	_, err := strict.Follow(ctx, one, nil, 10)
	require.ErrorIs(t, err, store.ErrDiverged, "a server that was started again may have an older copy of its data")
	rs, at := snapshotOf(t, strict)
	require.Equal(t, []string{"a"}, ids(rs))
	require.Equal(t, at.History, rs[0].Pos.History)
	require.Equal(t, v, rs[0].Version)
	require.NotEqual(t, one.History, at.History)

	must(t, trusting, []store.Put{put(store.KindRule, "b", store.Version{})})
	view, err := trusting.Follow(ctx, two, nil, 10)
	require.NoError(t, err)
	require.Equal(t, []string{"a", "b"}, ids(view.Records))
	require.Equal(t, two.History, view.Next.History)

	// Whoever restores a backup says so.
	require.NoError(t, server.Client(t).HSet(ctx, "{trusting:}m", "replid", "restored").Err())
	_, err = trusting.Follow(ctx, two, nil, 10)
	require.ErrorIs(t, err, store.ErrDiverged)
}

// TestOlderCopy starts the server again with less than a living process has seen: even a host who vouched for restarts is
// told.
func TestOlderCopy(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	server := redistest.Private(t)
	s := openAt(t, server.Client(t), &redisstore.Options{RestartLosesNothing: true})
	c := server.Client(t)
	must(t, s, []store.Put{put(store.KindRule, "a", store.Version{})})
	copies := map[string]string{}
	keys, err := c.Keys(ctx, "*").Result()
	require.NoError(t, err)
	for _, k := range keys {
		copies[k] = c.Dump(ctx, k).Val()
	}
	must(t, s, nil, event("lost"))
	_, at := snapshotOf(t, s)
	restore := func() {
		require.NoError(t, c.FlushAll(ctx).Err())
		for k, dump := range copies {
			require.NoError(t, c.Restore(ctx, k, 0, dump).Err())
		}
	}
	restore()
	_, err = s.Apply(ctx, change(nil, event("no")))
	require.ErrorIs(t, err, store.ErrDiverged)
	_, err = s.Follow(ctx, at, nil, 10)
	require.ErrorIs(t, err, store.ErrDiverged)
	rs, now := snapshotOf(t, s)
	require.Equal(t, []string{"a"}, ids(rs))
	require.NotEqual(t, at.History, now.History)

	// And one whose data are gone altogether.
	require.NoError(t, c.FlushAll(ctx).Err())
	_, err = s.Follow(ctx, now, nil, 10)
	require.ErrorIs(t, err, redisstore.ErrEmptied)
	_, err = s.Get(ctx, store.KindRule, "a")
	require.ErrorIs(t, err, redisstore.ErrEmptied, "it is not known that there was none")
	require.NotErrorIs(t, err, store.ErrNotFound)

	// What was put back is a loss like any other.
	restore()
	_, err = s.Follow(ctx, now, nil, 10)
	require.ErrorIs(t, err, store.ErrDiverged)
	rs, after := snapshotOf(t, s)
	require.Equal(t, []string{"a"}, ids(rs))
	require.NotEqual(t, now.History, after.History)
}

// TestWaitReplicas acknowledges what a replica has, and nothing else; and answers nothing once its replica is gone.
func TestWaitReplicas(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	// Neither disk is needed then.
	primary, replica := pair(t, "--appendonly", "no")
	door := newProxy(t, primary.Addr)
	o := &redisstore.Options{WaitReplicas: 1, Timeout: 5 * time.Second}
	inStep(t, primary)
	s := openAt(t, door.client(t, nil), o)
	v := must(t, s, []store.Put{put(store.KindRule, "kept", store.Version{})})

	replica.Pause()
	c := change([]store.Put{put(store.KindRule, "unknown", store.Version{})}, event("once"))
	_, err := s.Apply(ctx, c)
	definite(t, err)
	_, err = s.Apply(ctx, c)
	definite(t, err)
	require.Error(t, err, "a repeated change that was done is not acknowledged either before a replica has it")
	replica.Resume()
	eventually(t, func() bool { _, err := s.Apply(ctx, c); return err == nil }, "the replica has it")
	require.Equal(t, []string{"once"}, ids(all(t, s, store.Query{Kind: store.KindEvent})))

	replica.Kill()
	eventually(t, func() bool { _, err := s.Get(ctx, store.KindRule, "kept"); return err != nil },
		"a primary without its replicas may not be the primary any more: it vouches for nothing")
	require.NoError(t, replica.Run())
	eventually(t, func() bool { r, err := s.Get(ctx, store.KindRule, "kept"); return err == nil && r.Version == v }, "and answers when they are back")

	primary.Kill()
	promote(t, replica)
	lone := openAt(t, replica.Client(t), &redisstore.Options{InsecureMayLoseWrites: true})
	rs, _ := snapshotOf(t, lone)
	require.Equal(t, []string{"kept", "unknown"}, ids(rs), "what was acknowledged is on the replica")
}

// TestWaitAOF acknowledges what is on the primary's disk although the server syncs once a second only.
func TestWaitAOF(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	server := redistest.Private(t, "--appendfsync", "everysec")
	if server.Client(t).Command(ctx).Val()["waitaof"] == nil {
		t.Skip("WAITAOF is of Redis 7.2; the installed server does not have it")
	}
	s := openAt(t, server.Client(t), &redisstore.Options{WaitAOF: true, RestartLosesNothing: true, Timeout: 10 * time.Second})
	must(t, s, []store.Put{put(store.KindRule, "a", store.Version{})})
	server.Kill()
	require.NoError(t, server.Run())
	rs, _ := snapshotOf(t, s)
	require.Equal(t, []string{"a"}, ids(rs))
}

// TestSentinel lets a real Sentinel fail over, and the library's client for it follow.
func TestSentinel(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	primary, replica := pair(t)
	host, port := splitAddr(t, primary.Addr)
	watch := redistest.Private(t, "--sentinel", "--appendonly", "no")
	c := redis.NewSentinelClient(&redis.Options{Addr: watch.Addr})
	defer c.Close()
	require.NoError(t, c.Monitor(ctx, "tokens", host, port, "1").Err())
	for name, value := range map[string]string{"down-after-milliseconds": "500", "failover-timeout": "3000"} {
		require.NoError(t, c.Set(ctx, "tokens", name, value).Err())
	}
	eventually(t, func() bool { return len(c.Replicas(ctx, "tokens").Val()) == 1 }, "the sentinel finds the replica")

	client := redis.NewFailoverClient(&redis.FailoverOptions{MasterName: "tokens", SentinelAddrs: []string{watch.Addr}})
	defer client.Close()
	s := openAt(t, client, &redisstore.Options{Timeout: 10 * time.Second})
	must(t, s, []store.Put{put(store.KindRule, "a", store.Version{})})
	_, at := snapshotOf(t, s)
	inStep(t, primary)
	primary.Kill()
	// A sentinel that was held up for two seconds fails nothing over for the next thirty.
	require.Eventually(t, func() bool {
		_, err := s.Follow(ctx, at, nil, 10)
		return errors.Is(err, store.ErrDiverged)
	}, 90*time.Second, 2*time.Millisecond, "the client finds the new primary, and the store what that means")
	_, port = splitAddr(t, replica.Addr)
	where, err := c.GetMasterAddrByName(ctx, "tokens").Result()
	require.NoError(t, err)
	require.Equal(t, port, where[1])
	rs, _ := snapshotOf(t, s)
	require.Equal(t, []string{"a"}, ids(rs))
	must(t, s, []store.Put{put(store.KindRule, "b", store.Version{})})
}
