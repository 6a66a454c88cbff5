package redisstore_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/redisstore"
	"github.com/apitoken-go/apitoken/store/redisstore/redistest"
)

// TestFlushAll empties the server below running processes: all revocations are gone, so those that run answer nothing any more,
// and those that start are told why they can't.
func TestFlushAll(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]redisstore.Options{"default": {}, "restart loses nothing": {RestartLosesNothing: true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			server := redistest.Private(t)
			c := server.Client(t)
			s, reader := openAt(t, c, &o), openAt(t, c, &o)
			must(t, s, []store.Put{put(store.KindRule, "revocation", store.Version{})}, event("1"))
			_, at := snapshotOf(t, reader)
			require.NoError(t, c.FlushAll(ctx).Err())

			for _, st := range []*redisstore.Store{s, reader} {
				for range 2 {
					_, err := st.Follow(ctx, at, nil, 10)
					require.ErrorIs(t, err, redisstore.ErrEmptied)
					_, err = st.Follow(ctx, store.Position{}, nil, 10)
					require.ErrorIs(t, err, redisstore.ErrEmptied, "from the beginning, too: an empty view would forget every rule")
					_, err = st.Get(ctx, store.KindRule, "revocation")
					require.ErrorIs(t, err, redisstore.ErrEmptied)
					_, err = st.List(ctx, store.Query{Kind: store.KindEvent})
					require.ErrorIs(t, err, redisstore.ErrEmptied)
					_, err = st.Apply(ctx, change([]store.Put{put("grant", "g", store.Version{})}))
					require.ErrorIs(t, err, redisstore.ErrEmptied)
					definite(t, err)
					_, err = st.Purge(ctx, "grant", 1, 1)
					require.ErrorIs(t, err, redisstore.ErrEmptied)
					require.ErrorIs(t, st.Wait(ctx, at), redisstore.ErrEmptied)
				}
			}
			_, err := redisstore.New(ctx, c, &o)
			require.ErrorIs(t, err, redisstore.ErrEmptied, "one that starts afterwards, and has seen nothing")
			require.ErrorContains(t, err, "revocations are lost")

			// Another namespace is not concerned; and with the mark this one begins anew.
			other := o
			other.Prefix = "other"
			openAt(t, c, &other)
			require.NoError(t, s.Close())
			require.NoError(t, reader.Close())
			require.NoError(t, c.Del(ctx, "{apitoken:}m").Err())
			fresh := openAt(t, c, &o)
			must(t, fresh, []store.Put{put("grant", "g", store.Version{})})
		})
	}
}

// TestFlushedAndBegunAnew: a process starts before any that knew better has looked. As soon as one does, it is a loss.
func TestFlushedAndBegunAnew(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	server := redistest.Private(t)
	c := server.Client(t)
	o := &redisstore.Options{RestartLosesNothing: true}
	old, other := openAt(t, c, o), openAt(t, c, o)
	must(t, old, []store.Put{put(store.KindRule, "revocation", store.Version{})})
	_, was := snapshotOf(t, old)
	require.NoError(t, c.FlushAll(ctx).Err())
	anew := openAt(t, c, o)
	must(t, anew, []store.Put{put("grant", "g", store.Version{})})
	_, at := snapshotOf(t, anew)

	_, err := old.Follow(ctx, was, nil, 10)
	require.ErrorIs(t, err, store.ErrDiverged)
	_, err = anew.Follow(ctx, at, nil, 10)
	require.ErrorIs(t, err, store.ErrDiverged, "the one that began anew is told that there was more")
	_, now := snapshotOf(t, old)
	require.NotEqual(t, at.History, now.History)
	_, err = other.Apply(ctx, change([]store.Put{put("grant", "h", store.Version{})}))
	require.ErrorIs(t, err, store.ErrDiverged)
	for _, s := range []*redisstore.Store{anew, other, openAt(t, c, o)} {
		_, agreed := snapshotOf(t, s)
		require.Equal(t, now.History, agreed.History, "the loss is found once, not by each in turn")
	}
}

// TestServiceAfterFlushAll is the whole service: the running one issues nothing more, and none starts.
func TestServiceAfterFlushAll(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	server := redistest.Private(t)
	c := server.Client(t)
	svc, err := serve(t, openAt(t, c, nil), apitoken.RefuseRestored)
	require.NoError(t, err)
	issued, err := svc.Issue(ctx, apitoken.Request{Subject: "alice", Refresh: true})
	require.NoError(t, err)
	require.NoError(t, c.FlushAll(ctx).Err())

	require.ErrorIs(t, svc.Sync(ctx), apitoken.ErrUnavailable)
	_, err = svc.Issue(ctx, apitoken.Request{Subject: "alice", Refresh: true})
	require.ErrorIs(t, err, apitoken.ErrUnavailable)
	_, err = svc.Refresh(ctx, apitoken.RefreshRequest{Token: issued.Refresh.Reveal()})
	require.ErrorIs(t, err, apitoken.ErrUnavailable, "no client drops its session for it")
	_, err = redisstore.New(ctx, c, nil)
	require.ErrorIs(t, err, redisstore.ErrEmptied)
}
