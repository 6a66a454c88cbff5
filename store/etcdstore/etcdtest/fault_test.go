package etcdtest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/etcdstore"
)

// TestLeaderKilledUnderLoad kills the leader twice while sixteen callers write. What was acknowledged is there, each
// event once, and writing goes on by itself.
func TestLeaderKilledUnderLoad(t *testing.T) {
	t.Parallel()
	c := Start(t, 3, Quick)
	s := openAt(t, c.Client(t), nil)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Second)
	defer cancel()
	var written atomic.Int64
	stop := make(chan struct{})
	acked := make([][]string, 16)
	var wg sync.WaitGroup
	for w := range acked {
		wg.Add(1)
		go func() {
			defer wg.Done()
			kind := store.Kind("grant")
			if w%4 == 0 {
				kind = store.KindRule
			}
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				id := fmt.Sprintf("%02d-%05d", w, i)
				ch := &store.Change{ID: newVersion(), Puts: []store.Put{put(kind, id, store.Version{})}, Events: []store.Record{event(id)}}
				for {
					_, err := s.Apply(ctx, ch)
					if err == nil {
						acked[w] = append(acked[w], id)
						written.Add(1)
						break
					}
					if errors.Is(err, store.ErrConflict) || ctx.Err() != nil {
						t.Errorf("a change of its own record never conflicts, and a leader's death is survived: %v", err)
						return
					}
				}
			}
		}()
	}
	more := func(n int64) {
		t.Helper()
		from := written.Load()
		require.Eventually(t, func() bool { return written.Load() >= from+n }, 20*time.Second, 5*time.Millisecond, "writing goes on")
	}
	more(200)
	for range 2 {
		down, err := c.KillLeader(ctx)
		require.NoError(t, err)
		more(200)
		require.NoError(t, c.Restart(down))
		more(200)
	}
	close(stop)
	wg.Wait()

	there := map[string]int{}
	for _, kind := range []store.Kind{"grant", store.KindRule} {
		for _, r := range all(t, s, store.Query{Kind: kind}) {
			there[r.ID]++
		}
	}
	told := map[string]int{}
	for _, e := range all(t, s, store.Query{Kind: store.KindEvent}) {
		told[e.ID]++
	}
	rules := 0
	for w, ids := range acked {
		for _, id := range ids {
			require.Equal(t, 1, there[id], "acknowledged %s", id)
			require.Equal(t, 1, told[id], "its event, once: %s", id)
		}
		if w%4 == 0 {
			rules += len(ids)
		}
	}
	require.Len(t, there, int(written.Load()))
	require.Len(t, told, int(written.Load()), "no effect without its event, no event without its effect")
	recs, _ := snapshotOf(t, s)
	require.Len(t, recs, rules)
}

// TestAnswerLost loses the answers to writes that were done: the repetition recognises itself, and a caller who is told
// "unknown" may repeat.
func TestAnswerLost(t *testing.T) {
	t.Parallel()
	sharedClient(t)
	p := newProxy(t, shared.cluster.Endpoints()[0])
	prefix := fmt.Sprintf("lost-%x/", newVersion())
	near := open(t, &etcdstore.Options{Prefix: prefix})
	far := openAt(t, Connect(t, p.endpoint()), &etcdstore.Options{Prefix: prefix, Timeout: 3 * time.Second})
	ctx := context.Background()
	var v store.Version
	must(t, far, nil, event("first")) // counts the outbox, once
	// An answer can only get lost on a connection that stands.
	mute := func() {
		t.Helper()
		_, err := far.Follow(ctx, store.Position{}, nil, 1)
		require.NoError(t, err)
		p.silent.Store(true)
	}
	for i := range 6 {
		kind, id := store.Kind("grant"), "g"
		if i%2 == 1 {
			kind = store.KindKey
		}
		id = fmt.Sprintf("%s%d", id, i)
		c := &store.Change{ID: newVersion(), Puts: []store.Put{put(kind, id, store.Version{})}, Events: []store.Record{event(id)}}
		mute()
		done := make(chan error, 1)
		go func() { _, err := far.Apply(ctx, c); done <- err }()
		require.Eventually(t, func() bool {
			_, err := near.Get(ctx, kind, id)
			return err == nil
		}, 10*time.Second, time.Millisecond, "the write reaches the cluster")
		p.silent.Store(false)
		p.cut()
		err := <-done
		if err != nil {
			require.NotErrorIs(t, err, store.ErrConflict)
			_, err = far.Apply(ctx, c)
		}
		require.NoError(t, err)
		v = c.ID
		r, err := near.Get(ctx, kind, id)
		require.NoError(t, err)
		require.Equal(t, v, r.Version)
	}
	require.Len(t, all(t, near, store.Query{Kind: store.KindEvent}), 7, "each event once")

	// Between the lost answer and the repetition somebody else rewrites the record: the first attempt was done, so
	// "not done" would be a lie.
	c := &store.Change{ID: newVersion(), Puts: []store.Put{put("grant", "overtaken", store.Version{})}}
	mute()
	done := make(chan error, 1)
	go func() { _, err := far.Apply(ctx, c); done <- err }()
	require.Eventually(t, func() bool { _, err := near.Get(ctx, "grant", "overtaken"); return err == nil }, 10*time.Second, time.Millisecond)
	must(t, near, []store.Put{put("grant", "overtaken", c.ID)})
	p.silent.Store(false)
	p.cut()
	err := <-done
	require.Error(t, err)
	require.NotErrorIs(t, err, store.ErrConflict, "ErrConflict means not done, and this was done")

	// A change of events only is not repeated: the event might appear twice.
	mute()
	ev := &store.Change{ID: newVersion(), Events: []store.Record{event("alone")}}
	go func() { _, err := far.Apply(ctx, ev); done <- err }()
	require.Eventually(t, func() bool { return len(all(t, near, store.Query{Kind: store.KindEvent})) == 8 }, 10*time.Second, time.Millisecond)
	p.silent.Store(false)
	p.cut()
	require.Error(t, <-done)
	require.Len(t, all(t, near, store.Query{Kind: store.KindEvent}), 8)
}

// TestWatchCut follows through a connection that is cut fifty times, with compactions in between: nothing is missed.
func TestWatchCut(t *testing.T) {
	t.Parallel()
	sharedClient(t)
	p := newProxy(t, shared.cluster.Endpoints()[1])
	prefix := fmt.Sprintf("cut-%x/", newVersion())
	near := open(t, &etcdstore.Options{Prefix: prefix})
	far := openAt(t, Connect(t, p.endpoint()), &etcdstore.Options{Prefix: prefix, Timeout: 5 * time.Second})
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	const rules, cuts = 200, 50
	got := make(chan []string, 1)
	_, at := snapshotOf(t, far)
	go func() {
		var out []string
		for len(out) < rules && ctx.Err() == nil {
			v, err := far.Follow(ctx, at, nil, 7)
			if err != nil {
				if errors.Is(err, store.ErrDiverged) {
					t.Error("a connection that is cut is no loss of history")
				}
				continue
			}
			out, at = append(out, ids(v.Records)...), v.Next
			if !v.More && len(out) < rules {
				_ = far.Wait(ctx, at) // a hint: whatever it answers, look
			}
		}
		got <- out
	}()
	for i := range rules {
		must(t, near, []store.Put{put(store.KindRule, fmt.Sprintf("%03d", i), store.Version{})})
		if i%(rules/cuts) == 0 {
			p.cut()
		}
		if i%40 == 0 {
			r, err := shared.client.Get(ctx, prefix)
			require.NoError(t, err)
			_, _ = shared.client.Compact(ctx, r.Header.Revision) // others of this test binary compact too
		}
	}
	require.Equal(t, numbered("%03d", rules), <-got)
}

// TestCompactedBehindWatch compacts what a watcher has missed while it was cut off.
func TestCompactedBehindWatch(t *testing.T) {
	t.Parallel()
	sharedClient(t)
	p := newProxy(t, shared.cluster.Endpoints()[2])
	prefix := fmt.Sprintf("compacted-%x/", newVersion())
	near := open(t, &etcdstore.Options{Prefix: prefix})
	far := openAt(t, Connect(t, p.endpoint()), &etcdstore.Options{Prefix: prefix})
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	must(t, near, []store.Put{put(store.KindRule, "first", store.Version{})})
	_, at := snapshotOf(t, far)
	woken := make(chan error, 1)
	go func() { woken <- far.Wait(ctx, at) }()
	p.refusing.Store(true)
	p.cut()
	for i := range 20 {
		must(t, near, []store.Put{put(store.KindRule, fmt.Sprintf("%02d", i), store.Version{})})
	}
	r, err := shared.client.Get(ctx, prefix)
	require.NoError(t, err)
	_, _ = shared.client.Compact(ctx, r.Header.Revision)
	p.refusing.Store(false)
	if err := <-woken; err != nil {
		require.NoError(t, ctx.Err(), "Wait ends without waiting for its context")
	}
	v, err := far.Follow(ctx, at, nil, 0)
	require.NoError(t, err)
	require.Equal(t, numbered("%02d", 20), ids(v.Records))
}

// TestCutOff loses the cluster: calls end within their bound, nobody piles up, and all is well when it is back.
func TestCutOff(t *testing.T) {
	t.Parallel()
	sharedClient(t)
	p := newProxy(t, shared.cluster.Endpoints()[0])
	s := openAt(t, Connect(t, p.endpoint()), &etcdstore.Options{Prefix: fmt.Sprintf("off-%x/", newVersion()), Timeout: 5 * time.Second})
	ctx := context.Background()
	must(t, s, []store.Put{put("grant", "g", store.Version{})})
	p.refusing.Store(true)
	p.cut()
	began := time.Now()
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			_, err := s.Apply(ctx, &store.Change{ID: newVersion(), Puts: []store.Put{put("grant", fmt.Sprint(i), store.Version{})}})
			if err == nil || errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrReadOnly) {
				t.Errorf("unknown, not %v", err)
			}
		}()
	}
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	_, err := s.Get(short, "grant", "g")
	require.Error(t, err)
	wg.Wait()
	require.Less(t, time.Since(began), time.Minute, "bounded by Options.Timeout, and as much again for the turn")
	p.refusing.Store(false)
	require.Eventually(t, func() bool {
		_, err := s.Get(ctx, "grant", "g")
		return err == nil
	}, 10*time.Second, 10*time.Millisecond, "it comes back by itself")
	must(t, s, []store.Put{put("grant", "after", store.Version{})})
}
