package etcdtest

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/boltstore"
	"github.com/apitoken-go/apitoken/store/etcdstore"
)

// faulty is the store that events are shipped to, with the faults that one over a network has.
type faulty struct {
	store.Store
	lose  atomic.Bool // every third change is done, and its answer lost
	calls atomic.Int64
	down  atomic.Bool
	hang  chan struct{} // if not nil: a change is done, and the answer comes when this is closed
}

func (f *faulty) Apply(ctx context.Context, c *store.Change) (store.Commit, error) {
	if f.down.Load() {
		return store.Commit{}, errors.New("down")
	}
	commit, err := f.Store.Apply(ctx, c)
	if f.hang != nil && err == nil {
		<-f.hang
	}
	if f.calls.Add(1)%3 == 0 && f.lose.Load() {
		return store.Commit{}, errors.New("answer lost")
	}
	return commit, err
}

func boltAt(t testing.TB) *boltstore.Store {
	t.Helper()
	b, err := boltstore.Open(filepath.Join(t.TempDir(), "events.db"), nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	return b
}

func namespaced(s *faulty, b *boltstore.Store) func(string) store.Store {
	return func(ns string) store.Store {
		if ns == "" {
			return s
		}
		return b.Namespace(ns)
	}
}

// TestShipsOnce writes through two processes that both ship, over a store that loses answers, one of which hangs for
// good after it shipped something: every event arrives, once, in the order of acknowledgement.
func TestShipsOnce(t *testing.T) {
	t.Parallel()
	bolt := boltAt(t)
	prefix := fmt.Sprintf("ship-%x/", newVersion())
	dead := &faulty{Store: bolt, hang: make(chan struct{})}
	alive := &faulty{Store: bolt}
	alive.lose.Store(true)
	a := open(t, &etcdstore.Options{Prefix: prefix, Events: namespaced(dead, bolt)})
	t.Cleanup(func() { close(dead.hang) }) // before a is closed
	must(t, a, nil, event("0000"))
	require.Eventually(t, func() bool {
		p, err := bolt.List(context.Background(), store.Query{Kind: store.KindEvent})
		return err == nil && len(p.Records) == 1
	}, 20*time.Second, time.Millisecond, "the first process ships, and then is never heard of again")
	b := open(t, &etcdstore.Options{Prefix: prefix, Events: namespaced(alive, bolt)})
	other := b.Namespace("other")
	must(t, other, nil, event("other"))
	const n = 400
	for i := 1; i < n; i++ {
		s := a
		if i%2 == 0 {
			s = b
		}
		e := event(fmt.Sprintf("%04d", i))
		if i%50 == 0 {
			must(t, s, nil, e, event(e.ID+"+"))
			continue
		}
		must(t, s, []store.Put{put("grant", e.ID, store.Version{})}, e)
	}
	var want []string
	for i := range n {
		id := fmt.Sprintf("%04d", i)
		if want = append(want, id); i%50 == 0 && i > 0 {
			want = append(want, id+"+")
		}
	}
	// Newest-first is complete at any moment, however far shipping has come: each page is one snapshot, and so are all.
	for range 20 {
		got := ids(all(t, b, store.Query{Kind: store.KindEvent, Newest: true, Limit: 37}))
		for i, id := range got {
			require.Equal(t, want[len(want)-1-i], id)
		}
		require.Len(t, got, len(want))
	}
	// The feed is what has arrived: a prefix that grows.
	require.Eventually(t, func() bool {
		got := ids(all(t, a, store.Query{Kind: store.KindEvent, Limit: 50}))
		require.Equal(t, want[:len(got)], got)
		return len(got) == len(want)
	}, 30*time.Second, 20*time.Millisecond, "the other process takes over when the claim has run out")
	require.Eventually(t, func() bool {
		got := ids(all(t, bolt.Namespace("other"), store.Query{Kind: store.KindEvent}))
		return len(got) == 1 && got[0] == "other"
	}, 10*time.Second, 10*time.Millisecond, "another namespace's events, to where that namespace's belong")
	require.Eventually(t, func() bool {
		r, err := sharedClient(t).Get(context.Background(), prefix+"e/", clientPrefix...)
		return err == nil && r.Count == 0
	}, 10*time.Second, 10*time.Millisecond, "and etcd keeps none of them")
	require.Len(t, all(t, b, store.Query{Kind: store.KindEvent, Newest: true}), len(want))
	sel := all(t, b, store.Query{Kind: store.KindEvent, Newest: true, Type: "test", Limit: 3})
	require.Len(t, sel, len(want))
}

// TestShipsUnderLoad lists while two stores write and one of them ships.
func TestShipsUnderLoad(t *testing.T) {
	t.Parallel()
	bolt := boltAt(t)
	f := &faulty{Store: bolt}
	prefix := fmt.Sprintf("load-%x/", newVersion())
	a := open(t, &etcdstore.Options{Prefix: prefix, Events: namespaced(f, bolt)})
	b := open(t, &etcdstore.Options{Prefix: prefix, Events: namespaced(f, bolt)})
	const writers, each = 16, 60
	var acked [writers]atomic.Int64
	var wg sync.WaitGroup
	for w := range writers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			s := a
			if w%2 == 0 {
				s = b
			}
			for i := range each {
				c := &store.Change{ID: newVersion(), Events: []store.Record{{Kind: store.KindEvent, ID: fmt.Sprint(i), Subject: fmt.Sprint(w)}}}
				if _, err := s.Apply(context.Background(), c); err != nil {
					t.Error(err)
					return
				}
				acked[w].Store(int64(i + 1))
			}
		}()
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		var least [writers]int64
		for w := range writers {
			least[w] = acked[w].Load()
		}
		seen := map[string]int{}
		for _, e := range all(t, a, store.Query{Kind: store.KindEvent, Newest: true, Limit: 100}) {
			seen[e.Subject]++
		}
		for w := range writers {
			require.GreaterOrEqual(t, int64(seen[fmt.Sprint(w)]), least[w], "newest-first shows everything acknowledged before")
			require.LessOrEqual(t, seen[fmt.Sprint(w)], each, "and nothing twice")
		}
	}
	require.Eventually(t, func() bool {
		return len(all(t, b, store.Query{Kind: store.KindEvent})) == writers*each
	}, 20*time.Second, 10*time.Millisecond)
	next := map[string]int{}
	for _, e := range all(t, b, store.Query{Kind: store.KindEvent, Limit: 77}) {
		require.Equal(t, fmt.Sprint(next[e.Subject]), e.ID, "each writer's events in the order it was acknowledged")
		next[e.Subject]++
	}
}

// compacting compacts etcd past what is read at a revision, once, when so many such reads have come.
type compacting struct {
	clientv3.KV
	reads atomic.Int32 // until it does
}

func (c *compacting) Txn(ctx context.Context) clientv3.Txn {
	return &compactingTxn{Txn: c.KV.Txn(ctx), ctx: ctx, kv: c}
}

type compactingTxn struct {
	clientv3.Txn
	ctx context.Context
	kv  *compacting
}

func (t *compactingTxn) Then(ops ...clientv3.Op) clientv3.Txn {
	if slices.ContainsFunc(ops, func(op clientv3.Op) bool { return op.Rev() > 0 }) && t.kv.reads.Add(-1) == 0 {
		if r, err := t.kv.Put(t.ctx, "past", ""); err == nil {
			_, _ = t.kv.Compact(t.ctx, r.Header.Revision) // others of this test binary compact too
		}
	}
	return t.Txn.Then(ops...)
}

// TestFirstPageWhileCompacted reads the newest events while etcd is compacted between the reads of which the first page
// consists. Nobody has a cursor yet that could be too old.
func TestFirstPageWhileCompacted(t *testing.T) { // not parallel: so many compactions would outrun the others' retries
	sharedClient(t)
	bolt := boltAt(t)
	f := &faulty{Store: bolt}
	f.down.Store(true) // what is written waits in etcd
	client := Connect(t, shared.cluster.Endpoints()[0])
	kv := &compacting{KV: client.KV}
	client.KV = kv
	s := openAt(t, client, &etcdstore.Options{Prefix: fmt.Sprintf("past-%x/", newVersion()), Events: namespaced(f, bolt)})
	for i := range 10 {
		must(t, s, nil, event(fmt.Sprint(i)))
	}
	for at := range int32(6) {
		kv.reads.Store(at + 1)
		p, err := s.List(context.Background(), store.Query{Kind: store.KindEvent, Newest: true})
		require.NoError(t, err)
		require.Len(t, p.Records, 10)
	}
}

// TestLargeEventsShip ships changes whose events fill all that a change may hold: the other store's record of how far it has
// come must fit beside them.
func TestLargeEventsShip(t *testing.T) {
	t.Parallel()
	bolt := boltAt(t)
	s := open(t, &etcdstore.Options{Events: namespaced(&faulty{Store: bolt}, bolt)})
	for j := range 3 {
		var es []store.Record
		for i := range 16 {
			e := event(fmt.Sprintf("%d-%02d", j, i))
			e.Data = make([]byte, 16<<10-40)
			es = append(es, e)
		}
		must(t, s, nil, es...)
	}
	require.Eventually(t, func() bool {
		return len(all(t, s, store.Query{Kind: store.KindEvent})) == 48
	}, 20*time.Second, 10*time.Millisecond)
	require.Len(t, all(t, s, store.Query{Kind: store.KindEvent, Newest: true, Limit: 5}), 48)
}

// TestWritersWaitForShipping writes several times what the outbox holds, through a process that ships and one that doesn't: all of it is
// written, as fast as it is shipped.
func TestWritersWaitForShipping(t *testing.T) {
	t.Parallel()
	bolt := boltAt(t)
	f := &faulty{Store: bolt}
	o := etcdstore.Options{
		Prefix: fmt.Sprintf("wait-%x/", newVersion()), Events: namespaced(f, bolt), OutboxBytes: 32 << 10, Timeout: time.Minute,
	}
	a, b := open(t, &o), open(t, &o)
	const writers, each = 16, 20
	var wg sync.WaitGroup
	for w := range writers {
		s := a
		if w%2 == 0 {
			s = b
		}
		wg.Go(func() {
			for i := range each {
				e := event(fmt.Sprintf("%02d-%02d", w, i))
				if i%10 == 0 {
					e.Data = make([]byte, 10_000)
				}
				if _, err := s.Apply(context.Background(), &store.Change{ID: newVersion(), Events: []store.Record{e}}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	require.Len(t, all(t, a, store.Query{Kind: store.KindEvent, Newest: true}), writers*each)
}

// TestOutboxFull fills the outbox while the other store is down. Who is refused is told why. Revocations go on; everything goes on when it
// is back.
func TestOutboxFull(t *testing.T) {
	t.Parallel()
	bolt := boltAt(t)
	f := &faulty{Store: bolt}
	f.down.Store(true)
	prefix := fmt.Sprintf("full-%x/", newVersion())
	s := open(t, &etcdstore.Options{Prefix: prefix, Events: namespaced(f, bolt), OutboxBytes: 42 << 10, Timeout: 10 * time.Second})
	ctx := context.Background()
	written := 0
	for ; written < 100; written++ {
		e := event(fmt.Sprintf("%03d", written))
		if written == 3 {
			e.Data = make([]byte, 10_000) // counts as 13 KiB
		}
		_, err := s.Apply(ctx, &store.Change{ID: newVersion(), Events: []store.Record{e}})
		if err != nil {
			require.ErrorIs(t, err, etcdstore.ErrOutboxFull)
			require.ErrorContains(t, err, "42 of 42 KiB")
			require.ErrorContains(t, err, "down")
			for _, not := range []error{store.ErrConflict, store.ErrReadOnly, store.ErrTooLarge} {
				require.NotErrorIs(t, err, not)
			}
			break
		}
	}
	require.Equal(t, 30, written, "the bound is kept")
	must(t, s, []store.Put{put("grant", "without events", store.Version{})})
	for i := range 20 {
		must(t, s, []store.Put{put(store.KindRule, fmt.Sprint(i), store.Version{})}, event(fmt.Sprint("rule", i)))
	}
	f.down.Store(false)
	require.Eventually(t, func() bool {
		_, err := s.Apply(ctx, &store.Change{ID: newVersion(), Events: []store.Record{event("after")}})
		return err == nil
	}, 20*time.Second, 20*time.Millisecond)
	require.Eventually(t, func() bool {
		return len(all(t, s, store.Query{Kind: store.KindEvent})) == written+21
	}, 20*time.Second, 10*time.Millisecond)
}

// TestOutboxWithoutStore fills the outbox where nothing ships: that waiting doesn't help is said at once.
func TestOutboxWithoutStore(t *testing.T) {
	t.Parallel()
	s := open(t, &etcdstore.Options{OutboxBytes: 8 << 10, Timeout: time.Hour})
	for i := range 8 {
		must(t, s, nil, event(fmt.Sprint(i)))
	}
	_, err := s.Apply(context.Background(), &store.Change{ID: newVersion(), Events: []store.Record{event("more")}})
	require.ErrorIs(t, err, etcdstore.ErrOutboxFull)
	require.ErrorContains(t, err, "no store")
}

// TestNoSpace raises the cluster's alarm: what was refused was not done, says so, and purging still works.
func TestNoSpace(t *testing.T) {
	t.Parallel()
	c := Start(t, 1, Quick)
	client := c.Client(t)
	s := openAt(t, client, nil)
	ctx := context.Background()
	p := put("grant", "dead", store.Version{})
	p.Expires = 1
	must(t, s, []store.Put{p})
	_, err := s.Purge(ctx, "nothing", 1, 1) // tells the fleet the time while that can be written
	require.NoError(t, err)
	raiseAlarm(t, c)
	_, err = s.Apply(ctx, &store.Change{ID: newVersion(), Puts: []store.Put{put("grant", "g", store.Version{})}})
	require.ErrorIs(t, err, etcdstore.ErrFull)
	_, err = s.Get(ctx, "grant", "g")
	require.ErrorIs(t, err, store.ErrNotFound)
	n, err := s.Purge(ctx, "grant", time.Now().UnixMilli(), 10)
	require.NoError(t, err)
	require.Equal(t, 1, n, "removing needs no room")
	_, err = client.AlarmDisarm(ctx, allAlarms)
	require.NoError(t, err)
	must(t, s, []store.Put{put("grant", "g", store.Version{})})
}

// BenchmarkShipping is rotation with the events shipped beside it, on the same two cores, until the last has arrived.
func BenchmarkShipping(b *testing.B) {
	bolt := boltAt(b)
	s := benchRotation(b, 64, &etcdstore.Options{Events: func(string) store.Store { return bolt }})
	must(b, s, nil, event("last"))
	for {
		p, err := bolt.List(context.Background(), store.Query{Kind: store.KindEvent, Newest: true, Limit: 1})
		require.NoError(b, err)
		if len(p.Records) > 0 && p.Records[0].ID == "last" {
			break
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "shipped/s")
}

var clientPrefix = []clientv3.OpOption{clientv3.WithPrefix(), clientv3.WithCountOnly()}

var allAlarms = &clientv3.AlarmMember{}

// raiseAlarm raises NOSPACE as a member does whose backend has reached its quota.
func raiseAlarm(t *testing.T, c *Cluster) {
	t.Helper()
	_, err := etcdserverpb.NewMaintenanceClient(c.Client(t).ActiveConnection()).Alarm(context.Background(), &etcdserverpb.AlarmRequest{
		Action: etcdserverpb.AlarmRequest_ACTIVATE, MemberID: uint64(c.members[0].server.Server.MemberID()), Alarm: etcdserverpb.AlarmType_NOSPACE,
	})
	require.NoError(t, err)
}
