package boltstore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/store"
)

var changeSeq atomic.Uint64

// newVersion is a fresh Change ID.
func newVersion() (v store.Version) {
	binary.BigEndian.PutUint64(v[:], changeSeq.Add(1))
	id := randomID()
	copy(v[8:], id[:])
	return v
}

func openT(t testing.TB, path string, o *Options) *Store {
	t.Helper()
	s, err := Open(path, o)
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func newT(t testing.TB) *Store {
	return openT(t, filepath.Join(t.TempDir(), "tokens.db"), nil)
}

func put(kind store.Kind, id string, expect store.Version) store.Put {
	return store.Put{Record: store.Record{Kind: kind, ID: id, Data: []byte("data of " + id)}, Expect: expect}
}

func event(id string) store.Record {
	return store.Record{Kind: store.KindEvent, ID: id, Type: "test", Data: []byte("event " + id)}
}

// must applies puts and events as one new change and returns its ID.
func must(t testing.TB, s store.Store, puts []store.Put, events ...store.Record) store.Version {
	t.Helper()
	c := &store.Change{ID: newVersion(), Puts: puts, Events: events}
	_, err := s.Apply(context.Background(), c)
	require.NoError(t, err)
	return c.ID
}

func ids(rs []store.Record) []string {
	out := []string{}
	for _, r := range rs {
		out = append(out, r.ID)
	}
	return out
}

// all pages through a query.
func all(t testing.TB, s store.Store, q store.Query) []store.Record {
	t.Helper()
	var out []store.Record
	for {
		p, err := s.List(context.Background(), q)
		require.NoError(t, err)
		out = append(out, p.Records...)
		if p.Cursor == "" {
			return out
		}
		q.Cursor = p.Cursor
	}
}

func TestRewriteMovesInOrder(t *testing.T) {
	t.Parallel()
	s, ctx := newT(t), context.Background()
	v := must(t, s, []store.Put{put(store.KindRule, "a", store.Version{}), put(store.KindRole, "r", store.Version{})})
	must(t, s, []store.Put{put(store.KindRule, "b", store.Version{})})
	must(t, s, []store.Put{put(store.KindRule, "a", v)})
	view, err := s.Follow(ctx, store.Position{}, nil, 100)
	require.NoError(t, err)
	require.Equal(t, []string{"r", "b", "a"}, ids(view.Records), "each record once, in its newest form, in order of Pos")
	require.False(t, view.More)
	rest, err := s.Follow(ctx, view.Records[0].Pos, []store.Kind{store.KindRule}, 1)
	require.NoError(t, err)
	require.True(t, rest.More)
	require.Equal(t, []string{"b"}, ids(rest.Records))
	rest, err = s.Follow(ctx, rest.Next, []store.Kind{store.KindRule}, 1)
	require.NoError(t, err)
	require.Equal(t, []string{"a"}, ids(rest.Records))
	require.Equal(t, view.Next, rest.Next)
	_, err = s.Follow(ctx, store.Position{History: view.Next.History, N: view.Next.N + 1}, nil, 1)
	require.ErrorIs(t, err, store.ErrDiverged, "a position ahead of the store proves lost writes")
	_, err = s.Follow(ctx, store.Position{History: view.Next.History + 1, N: 1}, nil, 1)
	require.ErrorIs(t, err, store.ErrDiverged)
}

func TestApplyJudgesEachAlone(t *testing.T) {
	t.Parallel()
	s, ctx := newT(t), context.Background()
	v := must(t, s, []store.Put{put("grant", "g", store.Version{})})
	const n = 64
	var wg sync.WaitGroup
	var won, lost atomic.Int32
	for i := range n {
		wg.Add(1)
		go func() {
			defer wg.Done()
			c := &store.Change{ID: newVersion(), Puts: []store.Put{put("grant", "g", v), put("grant", fmt.Sprint("of ", i), store.Version{})}}
			_, err := s.Apply(ctx, c)
			switch {
			case err == nil:
				won.Add(1)
				_, err := s.Apply(ctx, c)
				require.NoError(t, err, "a repeated change recognises itself")
			case isConflict(err):
				lost.Add(1)
				_, err := s.Get(ctx, "grant", fmt.Sprint("of ", i))
				require.ErrorIs(t, err, store.ErrNotFound, "a conflict writes nothing")
			default:
				t.Error(err)
			}
		}()
	}
	wg.Wait()
	require.EqualValues(t, 1, won.Load(), "one of the racers wins")
	require.EqualValues(t, n-1, lost.Load())
}

func isConflict(err error) bool { return errors.Is(err, store.ErrConflict) }

func TestListSelectsThroughBlocksAndRuns(t *testing.T) {
	t.Parallel()
	s := newT(t)
	// Four segments and a tail, of events and of records; subject i%7, grant unique.
	n := 4*groupMembers + 333
	var wantSubject, wantEvents []string
	for i := 0; i < n; {
		c := &store.Change{ID: newVersion()}
		for range 16 {
			if i == n {
				break
			}
			id, sub := fmt.Sprintf("%08d", i*7919%n), fmt.Sprint("s", i%7)
			c.Puts = append(c.Puts, store.Put{Record: store.Record{Kind: store.KindAPIKey, ID: id, Subject: sub, Client: "c"}})
			c.Events = append(c.Events, store.Record{Kind: store.KindEvent, ID: fmt.Sprint("e", i), Subject: sub, Grant: id})
			if sub == "s3" {
				wantSubject, wantEvents = append(wantSubject, id), append(wantEvents, fmt.Sprint("e", i))
			}
			i++
		}
		_, err := s.Apply(context.Background(), c)
		require.NoError(t, err)
	}
	sortStrings(wantSubject)
	q := store.Query{Kind: store.KindAPIKey, Subject: "s3", Limit: 100}
	require.Equal(t, wantSubject, ids(all(t, s, q)))
	q.Newest = true
	require.Equal(t, reversed(wantSubject), ids(all(t, s, q)))
	require.Len(t, all(t, s, store.Query{Kind: store.KindAPIKey, Client: "c"}), n)
	require.Empty(t, all(t, s, store.Query{Kind: store.KindAPIKey, Client: "s3"}), "a subject is not a client")
	require.Empty(t, all(t, s, store.Query{Kind: store.KindAPIKey, Subject: "s3", Client: "d"}), "all selectors must match")

	q = store.Query{Kind: store.KindEvent, Subject: "s3", Limit: 100}
	require.Equal(t, wantEvents, ids(all(t, s, q)))
	q.Newest = true
	require.Equal(t, reversed(wantEvents), ids(all(t, s, q)))
	require.Len(t, all(t, s, store.Query{Kind: store.KindEvent, Grant: "00000000"}), 1)
	require.Len(t, all(t, s, store.Query{Kind: store.KindEvent, Limit: 999}), n)
}

func sortStrings(s []string) {
	for i := 1; i < len(s); i++ {
		for j := i; j > 0 && s[j] < s[j-1]; j-- {
			s[j], s[j-1] = s[j-1], s[j]
		}
	}
}

func reversed(s []string) []string {
	out := make([]string, 0, len(s))
	for i := len(s) - 1; i >= 0; i-- {
		out = append(out, s[i])
	}
	return out
}

func TestPurge(t *testing.T) {
	t.Parallel()
	s, ctx := newT(t), context.Background()
	now := time.Now().UnixMilli()
	mk := func(id string, exp int64) store.Put {
		p := put(store.KindRule, id, store.Version{})
		p.Expires, p.Subject = exp, "s"
		return p
	}
	v := must(t, s, []store.Put{mk("dead", now-1000), mk("later", now-2000), mk("alive", now+3600_000), mk("ever", 0)})
	p := mk("later", now+3600_000)
	p.Expect = v
	must(t, s, []store.Put{p})
	n, err := s.Purge(ctx, store.KindRule, now+7200_000, 10)
	require.NoError(t, err)
	require.Equal(t, 1, n, "only what the store's own clock calls dead goes")
	require.Equal(t, []string{"alive", "ever", "later"}, ids(all(t, s, store.Query{Kind: store.KindRule})))
	require.Equal(t, []string{"alive", "ever", "later"}, ids(all(t, s, store.Query{Kind: store.KindRule, Subject: "s"})))
	view, err := s.Follow(ctx, store.Position{}, nil, 10)
	require.NoError(t, err)
	require.Len(t, view.Records, 3)
	must(t, s, []store.Put{mk("dead", 0)})
}
