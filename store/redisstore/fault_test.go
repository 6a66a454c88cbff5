package redisstore_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/redisstore"
	"github.com/apitoken-go/apitoken/store/redisstore/redistest"
)

// TestClientsKilled writes 1,000 rules while every connection is killed fifty times. All arrive at a follower that is woken
// by hints, and in its order.
func TestClientsKilled(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	server := redistest.Private(t)
	a, b := openAt(t, server.Client(t), nil), openAt(t, server.Client(t), nil)
	const rules, writers = 1000, 8
	var wg sync.WaitGroup
	var left atomic.Int64
	left.Store(rules)
	acked := make(chan struct{}, rules)
	for range writers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				i := left.Add(-1)
				if i < 0 {
					return
				}
				c := change([]store.Put{put(store.KindRule, fmt.Sprintf("%04d", i), store.Version{})}, event(fmt.Sprintf("%04d", i)))
				for try := 0; ; try++ {
					_, err := a.Apply(ctx, c)
					if err == nil {
						break
					}
					if try > 20 {
						t.Errorf("rule %d: %v", i, err)
						return
					}
				}
				acked <- struct{}{}
			}
		}()
	}
	wg.Add(1)
	go func() {
		defer wg.Done()
		c := server.Client(t)
		for range 50 {
			for range rules / 51 {
				<-acked
			}
			for _, kind := range []string{"normal", "pubsub"} {
				if err := c.Do(ctx, "client", "kill", "type", kind, "skipme", "yes").Err(); err != nil {
					t.Errorf("CLIENT KILL: %v", err)
				}
			}
		}
	}()
	seen := map[string]bool{}
	var at store.Position
	deadline, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for len(seen) < rules {
		v, err := b.Follow(deadline, at, nil, 100)
		if err != nil {
			require.NoError(t, deadline.Err())
			continue // a connection that was killed
		}
		for _, r := range v.Records {
			require.False(t, seen[r.ID], "a rule that is written once comes once")
			require.Greater(t, r.Pos.N, at.N)
			seen[r.ID], at = true, r.Pos
		}
		at = v.Next
		if !v.More && len(seen) < rules {
			_ = b.Wait(deadline, at)
		}
	}
	wg.Wait()
	got := ids(all(t, b, store.Query{Kind: store.KindEvent}))
	slices.Sort(got)
	require.Len(t, slices.Compact(got), rules, "each rule has its event")
	require.Len(t, all(t, b, store.Query{Kind: store.KindEvent}), rules, "once")
}

// TestAnswersLost loses the server's answer to writes, with a client that sends again by itself and one that doesn't: each
// change is done once, events without a record too, and nobody is told that what was done was not.
func TestAnswersLost(t *testing.T) {
	t.Parallel()
	for name, retries := range map[string]int{"client retries": 3, "client does not": -1} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			server := redistest.Private(t)
			door := newProxy(t, server.Addr)
			s := openAt(t, door.client(t, &redis.Options{MaxRetries: retries}), nil)
			other := openAt(t, server.Client(t), nil)
			v := must(t, s, []store.Put{put("grant", "g", store.Version{})})
			for i := range 12 {
				door.swallow.Store(int64(1 + i%3))
				must(t, s, nil, event(fmt.Sprint(i)))
				door.swallow.Store(1)
				c := change([]store.Put{put("grant", "g", v)}, event(fmt.Sprint("g", i)))
				_, err := s.Apply(ctx, c)
				require.NoError(t, err)
				// Somebody else writes on at once: a repeated write must not find that and call it a conflict.
				v = must(t, other, []store.Put{put("grant", "g", c.ID)})
			}
			got := ids(all(t, other, store.Query{Kind: store.KindEvent}))
			require.Len(t, got, 24, "each event once")
			slices.Sort(got)
			require.Len(t, slices.Compact(got), 24)
		})
	}
}

// TestServerStops: while the server hangs, every verb answers within its deadline, an error that says nothing false, and
// leaves no more goroutines behind than it may; when the server goes on, so does the store.
func TestServerStops(t *testing.T) {
	t.Parallel()
	for _, prompt := range []bool{false, true} {
		t.Run(fmt.Sprint("prompt ", prompt), func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			server := redistest.Private(t)
			c := redis.NewClient(&redis.Options{Addr: server.Addr, ContextTimeoutEnabled: prompt, ReadTimeout: 2 * time.Second, MaxRetries: 1})
			defer c.Close()
			s := openAt(t, c, &redisstore.Options{Timeout: 3 * time.Second})
			must(t, s, []store.Put{put(store.KindRule, "a", store.Version{})})
			_, at := snapshotOf(t, s)
			before := runtime.NumGoroutine()
			server.Pause()
			changes := make([]*store.Change, 64)
			var wg sync.WaitGroup
			for i := range changes {
				changes[i] = change([]store.Put{put("grant", fmt.Sprint(i), store.Version{})}, event(fmt.Sprint(i)))
				wg.Add(1)
				go func() {
					defer wg.Done()
					began := time.Now()
					_, err := s.Apply(ctx, changes[i])
					definiteNot(t, err)
					_, err = s.Get(ctx, "grant", fmt.Sprint(i))
					definiteNot(t, err)
					short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
					defer cancel()
					_, err = s.Follow(short, at, nil, 1)
					if err == nil || short.Err() == nil {
						t.Errorf("Follow of a server that hangs: %v", err)
					}
					if took := time.Since(began); took > 30*time.Second {
						t.Errorf("%v for an Apply, a Get and a Follow with deadlines of 3, 3 and 0.02 s", took)
					}
				}()
			}
			wg.Wait()
			server.Resume()
			eventually(t, func() bool { _, err := s.Get(ctx, store.KindRule, "a"); return err == nil }, "reads go on")
			for _, c := range changes {
				eventually(t, func() bool { _, err := s.Apply(ctx, c); return err == nil }, "a repeated change is done")
			}
			events := ids(all(t, s, store.Query{Kind: store.KindEvent}))
			require.Len(t, events, len(changes), "and once")
			if prompt {
				eventually(t, func() bool { return runtime.NumGoroutine() < before+200 }, "no pile of goroutines")
			}
		})
	}
}

func definiteNot(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		t.Error("a server that hangs has answered")
	}
	for _, not := range []error{store.ErrConflict, store.ErrReadOnly, store.ErrTooLarge, store.ErrNotFound} {
		if err != nil && strings.Contains(err.Error(), not.Error()) {
			t.Errorf("%v: nobody knows that", err)
		}
	}
}

// TestOutOfMemory fills the server: what is refused was not done, not even in part, and says why; purging makes room.
func TestOutOfMemory(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	server := redistest.Private(t, "--maxmemory", "24mb")
	s := openAt(t, server.Client(t), nil)
	var err error
	done := 0
	for ; done < 5000; done++ {
		id := fmt.Sprintf("%04d", done)
		g, e := put("grant", id, store.Version{}), event(id)
		g.Data, g.Subject, g.Expires, e.Data = make([]byte, 8<<10), "s", 1, make([]byte, 4<<10)
		if _, err = s.Apply(ctx, change([]store.Put{g}, e)); err != nil {
			break
		}
	}
	require.ErrorIs(t, err, redisstore.ErrFull)
	definite(t, err)
	require.Len(t, all(t, s, store.Query{Kind: store.KindEvent, Limit: 100}), done)
	require.Len(t, all(t, s, store.Query{Kind: "grant", Subject: "s", Limit: 100}), done)
	_, err = s.Get(ctx, "grant", fmt.Sprintf("%04d", done))
	require.ErrorIs(t, err, store.ErrNotFound)
	_, err = s.Apply(ctx, change(nil, event("no")))
	require.ErrorIs(t, err, redisstore.ErrFull)
	require.Len(t, all(t, s, store.Query{Kind: store.KindEvent, Limit: 100}), done)

	n, err := s.Purge(ctx, "grant", 10, done/2)
	require.NoError(t, err)
	require.Equal(t, done/2, n, "removing needs no room")
	eventually(t, func() bool { _, err := s.Apply(ctx, change(nil, event("yes"))); return err == nil }, "there is room again")
}

// TestWokenSoon: a hint comes long before the look that comes without.
func TestWokenSoon(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	client := sharedClient(t)
	o := &redisstore.Options{Prefix: fmt.Sprintf("woken-%x", newVersion())}
	a, b := openAt(t, client, o).Namespace("x"), openAt(t, client, o).Namespace("x")
	w := b.(store.Waker)
	_, at := snapshotOf(t, b)
	var took []time.Duration
	for i := range 20 {
		woke := make(chan error, 1)
		go func() { woke <- w.Wait(ctx, at) }()
		// Until it waits, there is nothing to hear.
		eventually(t, func() bool { return client.PubSubNumSub(ctx, o.Prefix+":wake").Val()[o.Prefix+":wake"] > 0 }, "it listens")
		began := time.Now()
		must(t, a, []store.Put{put(store.KindRule, fmt.Sprint(i), store.Version{})})
		require.NoError(t, <-woke)
		took = append(took, time.Since(began))
		_, at = snapshotOf(t, b)
	}
	slices.Sort(took)
	require.Less(t, took[10], 10*time.Second, "half of %v", took)
}

// TestKilledUnderLoad kills the server three times while many write, and starts it again. Whatever was acknowledged is
// there, and everything once: a change that was under way is recognised by the server that comes back.
func TestKilledUnderLoad(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	server := redistest.Private(t)
	s := openAt(t, server.Client(t), &redisstore.Options{RestartLosesNothing: true, Timeout: 20 * time.Second})
	_, at := snapshotOf(t, s)
	const writers = 16
	var acked [writers][]string
	var wg sync.WaitGroup
	stop := make(chan struct{})
	var total atomic.Int64
	for w := range writers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				id := fmt.Sprintf("%02d-%05d", w, i)
				c := change(nil, event(id))
				if w%2 == 0 {
					c.Puts = []store.Put{put(store.KindRule, id, store.Version{})}
				}
				if _, err := s.Apply(ctx, c); err != nil {
					t.Errorf("a server that comes back in time is no failure: %v", err)
					return
				}
				acked[w] = append(acked[w], id)
				total.Add(1)
			}
		}()
	}
	for i := range int64(3) {
		eventually(t, func() bool { return total.Load() > (i+1)*300 || t.Failed() }, "they write")
		server.Kill()
		require.NoError(t, server.Run())
	}
	goal := total.Load() + 300
	eventually(t, func() bool { return total.Load() > goal || t.Failed() }, "they go on")
	close(stop)
	wg.Wait()
	seen := map[string]int{}
	for _, e := range all(t, s, store.Query{Kind: store.KindEvent}) {
		seen[e.ID]++
	}
	view, err := s.Follow(ctx, at, nil, 1)
	require.NoError(t, err)
	require.Equal(t, at.History, view.Next.History)
	rules, _ := snapshotOf(t, s)
	known := map[string]bool{}
	for _, r := range rules {
		known[r.ID] = true
	}
	n := 0
	for w := range acked {
		for _, id := range acked[w] {
			n++
			require.Equal(t, 1, seen[id], "event %s", id)
			require.Equal(t, w%2 == 0, known[id], "rule %s", id)
		}
	}
	require.Len(t, seen, n)
}

// TestFileCutInAChange: a crash cuts the server's file in the middle of a change's last command. The server comes back
// without the change, goes on, and crashes again: it is not there, not in part either, and all that came later is.
func TestFileCutInAChange(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	server := redistest.Private(t)
	c := server.Client(t)
	s := openAt(t, c, &redisstore.Options{RestartLosesNothing: true, Timeout: 20 * time.Second})
	must(t, s, []store.Put{put(store.KindRule, "before", store.Version{})}, event("before"))
	dir := c.ConfigGet(ctx, "dir").Val()["dir"]
	files := func() []string {
		names, err := filepath.Glob(filepath.Join(dir, "appendonlydir", "*.incr.aof"))
		require.NoError(t, err)
		require.Len(t, names, 1)
		return names
	}
	whole, err := os.ReadFile(files()[0])
	require.NoError(t, err)
	must(t, s, []store.Put{put(store.KindRule, "cut", store.Version{})}, event("cut"))
	server.Kill()
	both, err := os.ReadFile(files()[0])
	require.NoError(t, err)
	require.Greater(t, len(both), len(whole))
	// Within the record's commands: what is left of the change is its first write and a piece of the second.
	second := bytes.Index(both[len(whole):], []byte("ZADD"))
	require.Positive(t, second)
	require.NoError(t, os.WriteFile(files()[0], both[:len(whole)+second+10], 0o600))

	// This process has seen the change acknowledged, which would be a loss; one that has not comes first.
	require.NoError(t, s.Close())
	require.NoError(t, server.Run())
	s = openAt(t, server.Client(t), &redisstore.Options{RestartLosesNothing: true, Timeout: 20 * time.Second})
	must(t, s, []store.Put{put(store.KindRule, "after", store.Version{})}, event("after"))
	for range 2 {
		rules, _ := snapshotOf(t, s)
		require.Equal(t, []string{"before", "after"}, ids(rules))
		require.Equal(t, []string{"before", "after"}, ids(all(t, s, store.Query{Kind: store.KindEvent})))
		_, err = s.Get(ctx, store.KindRule, "cut")
		require.ErrorIs(t, err, store.ErrNotFound, "half of a change came back")
		server.Kill()
		require.NoError(t, server.Run())
	}
	must(t, s, []store.Put{put(store.KindRule, "cut", store.Version{})}, event("cut"))
}
