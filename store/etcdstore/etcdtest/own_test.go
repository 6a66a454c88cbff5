package etcdtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/etcdstore"
)

func TestFollowKeepsNewestFormInOrder(t *testing.T) {
	t.Parallel()
	s, ctx := open(t, nil), context.Background()
	v := must(t, s, []store.Put{put(store.KindRule, "a", store.Version{}), put(store.KindRole, "r", store.Version{})})
	must(t, s, []store.Put{put(store.KindRule, "b", store.Version{})})
	must(t, s, []store.Put{put(store.KindRule, "a", v)})
	recs, at := snapshotOf(t, s)
	require.Equal(t, []string{"r", "b", "a"}, ids(recs), "each record once, in its newest form, in order of Pos")
	_, err := s.Follow(ctx, store.Position{History: at.History, N: at.N + 1}, nil, 1)
	require.ErrorIs(t, err, store.ErrDiverged, "a position ahead of the store proves lost writes")
	_, err = s.Follow(ctx, store.Position{History: at.History + 1, N: 1}, nil, 1)
	require.ErrorIs(t, err, store.ErrDiverged)
	require.GreaterOrEqual(t, at.N>>16, recs[0].Written)
}

// TestLargestChange writes all that the contract allows in one change: it must fit one transaction of etcd, index keys
// and all.
func TestLargestChange(t *testing.T) {
	t.Parallel()
	s := open(t, nil)
	grow := func(expect store.Version) *store.Change {
		c := &store.Change{ID: newVersion()}
		for i := range 16 {
			c.Puts = append(c.Puts, store.Put{Expect: expect, Record: store.Record{
				Kind: store.KindAPIKey, ID: fmt.Sprintf("k%02d", i), Subject: "s", Client: "c", Grant: "g", Token: "t", Type: "y",
				Expires: time.Now().UnixMilli() + 1000*int64(i+100), Data: bytes.Repeat([]byte("x"), 8000),
			}})
			e := event(fmt.Sprintf("e%02d", i))
			e.Data = bytes.Repeat([]byte("y"), 8000)
			c.Events = append(c.Events, e)
		}
		return c
	}
	c := grow(store.Version{})
	_, err := s.Apply(context.Background(), c)
	require.NoError(t, err)
	_, err = s.Apply(context.Background(), grow(c.ID))
	require.NoError(t, err, "and again, where each record leaves its place in the order of state")
	recs, _ := snapshotOf(t, s)
	require.Equal(t, numbered("k%02d", 16), ids(recs))
	require.Len(t, all(t, s, store.Query{Kind: store.KindEvent, Limit: 7}), 32)
	c.ID = newVersion()
	c.Puts[0].Data = make([]byte, 16<<10+1)
	_, err = s.Apply(context.Background(), c)
	require.ErrorIs(t, err, store.ErrTooLarge)
}

func TestListBothWaysBySelectorsAndPages(t *testing.T) {
	t.Parallel()
	s := open(t, nil)
	const n = 333
	var want []string
	for i := 0; i < n; {
		c := &store.Change{ID: newVersion()}
		for range 16 {
			if i == n {
				break
			}
			id, sub := fmt.Sprintf("%05d", i), fmt.Sprint("s", i%7)
			if i%3 == 0 {
				id = "日本" + id
			}
			c.Puts = append(c.Puts, store.Put{Record: store.Record{Kind: "grant", ID: id, Subject: sub, Client: "c", Type: fmt.Sprint("t", i%2)}})
			c.Events = append(c.Events, store.Record{Kind: store.KindEvent, ID: fmt.Sprint("e", i), Subject: sub})
			if sub == "s3" {
				want = append(want, fmt.Sprint("e", i))
			}
			i++
		}
		_, err := s.Apply(context.Background(), c)
		require.NoError(t, err)
	}
	for _, q := range []store.Query{
		{Kind: "grant"}, {Kind: "grant", Subject: "s3"}, {Kind: "grant", Client: "c"}, {Kind: "grant", Subject: "s3", Type: "t1"},
		{Kind: store.KindEvent}, {Kind: store.KindEvent, Subject: "s3"},
	} {
		q.Limit = 1000
		whole := all(t, s, q)
		for _, limit := range []int{1, 10, 17, 332, 333} {
			if limit == 1 && len(whole) > 100 {
				continue
			}
			q.Limit, q.Newest = limit, false
			require.Equal(t, ids(whole), ids(all(t, s, q)), "%+v", q)
			q.Newest = true
			back := ids(all(t, s, q))
			for i := range len(back) / 2 {
				back[i], back[len(back)-1-i] = back[len(back)-1-i], back[i]
			}
			require.Equal(t, ids(whole), back, "%+v", q)
		}
	}
	require.Equal(t, want, ids(all(t, s, store.Query{Kind: store.KindEvent, Subject: "s3"})), "events keep the order of their commits")
	require.Len(t, all(t, s, store.Query{Kind: "grant"}), n)
	require.Empty(t, all(t, s, store.Query{Kind: "grant", Client: "s3"}), "a subject is not a client")
	now := time.Now().UnixMilli()
	require.Empty(t, all(t, s, store.Query{Kind: "grant", Since: now + 3600_000}))
	require.Len(t, all(t, s, store.Query{Kind: "grant", Until: now + 3600_000}), n)
	_, err := s.List(context.Background(), store.Query{Kind: "grant", Cursor: "rubbish"})
	require.Error(t, err)
}

// TestNewestOfMany pages backwards through more ids than one answer of etcd holds.
func TestNewestOfMany(t *testing.T) {
	t.Parallel()
	prefix := fmt.Sprintf("many-%x/", newVersion())
	s := open(t, &etcdstore.Options{Prefix: prefix})
	const n = 9000
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := w * 16; i < n; i += 16 * 16 {
				c := &store.Change{ID: newVersion()}
				for j := i; j < min(i+16, n); j++ {
					c.Puts = append(c.Puts, put("grant", fmt.Sprintf("%06d", j*7), store.Version{}))
				}
				if _, err := s.Apply(context.Background(), c); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	wg.Wait()
	p, err := s.List(context.Background(), store.Query{Kind: "grant", Newest: true, Limit: 1000})
	require.NoError(t, err)
	require.Len(t, p.Records, 1000)
	require.Equal(t, fmt.Sprintf("%06d", (n-1)*7), p.Records[0].ID)
	require.Equal(t, fmt.Sprintf("%06d", (n-1000)*7), p.Records[999].ID)
	back := all(t, s, store.Query{Kind: "grant", Newest: true, Limit: 1000})
	require.Len(t, back, n)
	for i := range back {
		require.Equal(t, fmt.Sprintf("%06d", (n-1-i)*7), back[i].ID)
	}
}

func TestPurge(t *testing.T) {
	t.Parallel()
	s, ctx := open(t, nil), context.Background()
	now := time.Now().UnixMilli()
	mk := func(kind store.Kind, id string, expires int64, expect store.Version) store.Put {
		p := put(kind, id, expect)
		p.Expires, p.Subject = expires, "s"
		return p
	}
	for _, kind := range []store.Kind{store.KindRule, "grant"} {
		v := must(t, s, []store.Put{
			mk(kind, "dead", now-1000, store.Version{}), mk(kind, "longer", now-2000, store.Version{}), mk(kind, "shorter", now+3600_000, store.Version{}),
			mk(kind, "alive", now+3600_000, store.Version{}), mk(kind, "ever", 0, store.Version{}), mk(kind, "ended", 0, store.Version{}),
		})
		must(t, s, []store.Put{mk(kind, "longer", now+7200_000, v), mk(kind, "shorter", now-1, v), mk(kind, "ended", now-5, v)})
		// A future time: what the store's clock calls alive stays.
		n, err := s.Purge(ctx, kind, now+7200_000, 1)
		require.NoError(t, err)
		require.Equal(t, 1, n, "max is kept")
		n, err = s.Purge(ctx, kind, now+7200_000, 100)
		require.NoError(t, err)
		require.Equal(t, 2, n)
		require.Equal(t, []string{"alive", "ever", "longer"}, ids(all(t, s, store.Query{Kind: kind})))
		require.Equal(t, []string{"alive", "ever", "longer"}, ids(all(t, s, store.Query{Kind: kind, Subject: "s"})), "and their index entries with them")
		must(t, s, []store.Put{put(kind, "dead", store.Version{})})
	}
	recs, _ := snapshotOf(t, s)
	require.Len(t, recs, 4)

	for i := range 6 {
		e := event(fmt.Sprint("e", i))
		if i < 4 {
			e.Expires = now - int64(i)
		}
		f := event(fmt.Sprint("f", i))
		must(t, s, nil, e, f)
	}
	p, err := s.List(ctx, store.Query{Kind: store.KindEvent, Limit: 1})
	require.NoError(t, err)
	n, err := s.Purge(ctx, store.KindEvent, now+1, 100)
	require.NoError(t, err)
	require.Equal(t, 4, n)
	require.Equal(t, []string{"f0", "f1", "f2", "f3", "e4", "f4", "e5", "f5"}, ids(all(t, s, store.Query{Kind: store.KindEvent})))
	_, err = s.List(ctx, store.Query{Kind: store.KindEvent, Cursor: p.Cursor})
	require.ErrorIs(t, err, store.ErrTrimmed)
}

// TestPurgeLeavesNothing purges records with every index and looks at the keys themselves.
func TestPurgeLeavesNothing(t *testing.T) {
	t.Parallel()
	prefix := fmt.Sprintf("nothing-%x/", newVersion())
	s, ctx, client := open(t, &etcdstore.Options{Prefix: prefix}), context.Background(), sharedClient(t)
	now := time.Now().UnixMilli()
	for i := range 20 {
		p := put(store.KindAPIKey, fmt.Sprint(i), store.Version{})
		p.Subject, p.Client, p.Grant, p.Token, p.Type = "s", "c", "g", "t", "y"
		p.Expires = now + 3600_000
		v := must(t, s, []store.Put{p})
		p.Expect, p.Expires = v, now-10
		must(t, s, []store.Put{p})
	}
	n, err := s.Purge(ctx, store.KindAPIKey, now, 1000)
	require.NoError(t, err)
	require.Equal(t, 20, n)
	r, err := client.Get(ctx, prefix+"n/", clientv3.WithPrefix(), clientv3.WithKeysOnly())
	require.NoError(t, err)
	for _, kv := range r.Kvs {
		require.Contains(t, string(kv.Key), "/d/", "only entries of a later expiry are left, for a later purge")
	}
	require.LessOrEqual(t, len(r.Kvs), 20)
}

func TestRacersConflict(t *testing.T) {
	t.Parallel()
	prefix := fmt.Sprintf("race-%x/", newVersion())
	a, ctx := open(t, &etcdstore.Options{Prefix: prefix}), context.Background()
	b := open(t, &etcdstore.Options{Prefix: prefix})
	for _, kind := range []store.Kind{"grant", store.KindKey} {
		v := must(t, a, []store.Put{put(kind, "g", store.Version{})})
		var wg sync.WaitGroup
		var won, lost atomic.Int32
		for i := range 48 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				s := store.Store(a)
				if i%2 == 0 {
					s = b
				}
				c := &store.Change{ID: newVersion(), Puts: []store.Put{put(kind, "g", v), put(kind, fmt.Sprint("of ", i), store.Version{})}}
				_, err := s.Apply(ctx, c)
				switch {
				case err == nil:
					won.Add(1)
					_, err := s.Apply(ctx, c)
					require.NoError(t, err, "a repeated change recognises itself")
				case errors.Is(err, store.ErrConflict):
					lost.Add(1)
					_, err := s.Get(ctx, kind, fmt.Sprint("of ", i))
					require.ErrorIs(t, err, store.ErrNotFound, "a conflict writes nothing")
				default:
					t.Error(err)
				}
			}()
		}
		wg.Wait()
		require.EqualValues(t, 1, won.Load(), "one of the racers wins")
		require.EqualValues(t, 47, lost.Load())
	}
	// State changes of two processes interleave without conflict, each with a position of its own.
	var wg sync.WaitGroup
	for i := range 60 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			s := store.Store(a)
			if i%2 == 0 {
				s = b
			}
			c := &store.Change{ID: newVersion(), Puts: []store.Put{put(store.KindRule, fmt.Sprint(i), store.Version{})}}
			if _, err := s.Apply(ctx, c); err != nil {
				t.Error(err)
			}
		}()
	}
	wg.Wait()
	recs, _ := snapshotOf(t, b)
	require.Len(t, recs, 62)
	for i := 1; i < len(recs); i++ {
		require.Greater(t, recs[i].Pos.N, recs[i-1].Pos.N)
	}
}

func TestFence(t *testing.T) {
	t.Parallel()
	prefix := fmt.Sprintf("fence-%x/", newVersion())
	a, ctx := open(t, &etcdstore.Options{Prefix: prefix}), context.Background()
	b := open(t, &etcdstore.Options{Prefix: prefix})
	c := &store.Change{ID: newVersion(), Puts: []store.Put{put("grant", "g", store.Version{})}}
	_, err := a.Apply(ctx, c)
	require.NoError(t, err)
	require.NoError(t, a.SetReadOnly(ctx, true))
	_, err = b.Apply(ctx, &store.Change{ID: newVersion(), Puts: []store.Put{put("grant", "h", store.Version{})}})
	require.ErrorIs(t, err, store.ErrReadOnly, "the fence holds for every process")
	_, err = b.Apply(ctx, &store.Change{ID: newVersion(), Events: []store.Record{event("e")}})
	require.ErrorIs(t, err, store.ErrReadOnly)
	_, err = b.Purge(ctx, "grant", 1, 1)
	require.ErrorIs(t, err, store.ErrReadOnly)
	_, err = b.Apply(ctx, c)
	require.NoError(t, err, "what was done before is done")
	_, err = b.Namespace("other").Apply(ctx, &store.Change{ID: newVersion(), Puts: []store.Put{put("grant", "h", store.Version{})}})
	require.NoError(t, err)
	require.NoError(t, b.SetReadOnly(ctx, false))
	must(t, a, []store.Put{put("grant", "h", store.Version{})})
}

func TestWaitWakes(t *testing.T) {
	t.Parallel()
	prefix := fmt.Sprintf("wait-%x/", newVersion())
	a := open(t, &etcdstore.Options{Prefix: prefix})
	b := open(t, &etcdstore.Options{Prefix: prefix})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for i := range 20 {
		_, at := snapshotOf(t, b)
		done := make(chan error, 1)
		go func() {
			for {
				v, err := b.Follow(ctx, at, nil, 10)
				if err != nil || len(v.Records) > 0 {
					done <- err
					return
				}
				if err := b.Wait(ctx, v.Next); err != nil {
					done <- err
					return
				}
			}
		}()
		must(t, a, []store.Put{put(store.KindRule, fmt.Sprint(i), store.Version{})})
		require.NoError(t, <-done)
	}
}

func TestClosed(t *testing.T) {
	t.Parallel()
	s, err := etcdstore.New(context.Background(), sharedClient(t), &etcdstore.Options{Prefix: "closed/"})
	require.NoError(t, err)
	waited := make(chan error, 1)
	_, at := snapshotOf(t, s)
	go func() { waited <- s.Wait(context.Background(), at) }()
	require.NoError(t, s.Close())
	require.ErrorIs(t, <-waited, etcdstore.ErrClosed)
	_, err = s.Get(context.Background(), "grant", "g")
	require.ErrorIs(t, err, etcdstore.ErrClosed)
	_, err = s.Namespace("No!").Get(context.Background(), "grant", "g")
	require.ErrorContains(t, err, "namespace")
}
