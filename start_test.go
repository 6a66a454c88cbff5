package apitoken_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/memstore"
)

// lateToStart is a store in which others start just after its user has looked for the namespace for the first time.
type lateToStart struct {
	store.Store
	once   sync.Once
	others func()
}

func (s *lateToStart) Get(ctx context.Context, kind store.Kind, id string) (store.Record, error) {
	r, err := s.Store.Get(ctx, kind, id)
	if kind == store.KindMeta {
		s.once.Do(s.others)
	}
	return r, err
}

// TestProcessesThatStartTogether: on an empty store one finds no namespace, and when it looks whether there is anything else, others
// have made it all, and their namespace's record is newer than the keys.
func TestProcessesThatStartTogether(t *testing.T) {
	t.Parallel()
	inner := memstore.New()
	start := func(st apitoken.Store, longest time.Duration) (*apitoken.Service, error) {
		c := config(st)
		c.Lifetimes.MaxAccess = longest
		svc, err := apitoken.New(c)
		if err == nil {
			t.Cleanup(func() { _ = svc.Close() })
		}
		return svc, err
	}
	st := &lateToStart{Store: inner, others: func() {
		for _, longest := range []time.Duration{time.Hour, 2 * time.Hour} {
			_, err := start(inner, longest)
			require.NoError(t, err)
		}
		v, err := inner.Follow(context.Background(), store.Position{}, nil, 1)
		require.NoError(t, err)
		require.NotEqual(t, store.KindMeta, v.Records[0].Kind)
	}}
	svc, err := start(st, 90*time.Minute)
	require.NoError(t, err)
	other, err := start(inner, time.Hour)
	require.NoError(t, err)
	require.NoError(t, other.Sync(context.Background()))
	require.NoError(t, validate(other, issue(t, svc, aliceSession).Access), "it is the same namespace")
}

// TestRecordsWithoutANamespace: what is there belongs to somebody, and no service begins beside it.
func TestRecordsWithoutANamespace(t *testing.T) {
	t.Parallel()
	st := memstore.New()
	c := &store.Change{ID: store.Version{1}, Puts: []store.Put{{Record: store.Record{Kind: store.KindRule, ID: "somebody's", Data: []byte("{}")}}}}
	_, err := st.Apply(context.Background(), c)
	require.NoError(t, err)
	_, err = apitoken.New(config(st))
	require.ErrorContains(t, err, "no namespace")
}

// slowPages is a store that takes a while for each page of what every process must know.
type slowPages struct {
	store.Store
	each  time.Duration
	asked []store.Position
}

func (s *slowPages) Follow(ctx context.Context, after store.Position, kinds []store.Kind, max int) (store.View, error) {
	s.asked = append(s.asked, after)
	select {
	case <-time.After(s.each):
		return s.Store.Follow(ctx, after, kinds, max)
	case <-ctx.Done():
		return store.View{}, ctx.Err()
	}
}

// TestStartOnMuchThatIsReadSlowly: a store that goes on answering is waited for, however long it takes in all; one that stops is not.
func TestStartOnMuchThatIsReadSlowly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := memstore.New()
		first := serviceOn(t, st, nil)
		for i := range 3500 {
			require.NoError(t, first.Revoke(t.Context(), apitoken.BySubject(fmt.Sprint("user", i)), "test"))
		}
		old := issue(t, first, aliceSession)
		require.NoError(t, first.Revoke(t.Context(), apitoken.BySubject("alice"), "test"))

		slow := &slowPages{Store: st, each: 15 * time.Second}
		began := time.Now()
		svc := serviceOn(t, slow, nil)
		require.Greater(t, time.Since(began), time.Minute)
		for i, p := range slow.asked[1:] {
			require.Greater(t, p.N, slow.asked[i].N, "no page is read twice")
		}
		require.NoError(t, svc.Sync(t.Context()))
		require.ErrorIs(t, validate(svc, old.Access), apitoken.ErrRevoked)

		began = time.Now()
		_, err := apitoken.New(config(&slowPages{Store: st, each: time.Hour}))
		require.ErrorContains(t, err, "did not answer within 20s")
		require.Equal(t, 20*time.Second, time.Since(began))
	})
}
