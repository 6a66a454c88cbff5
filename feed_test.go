package apitoken_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/memstore"
)

// cutFollow is a store whose Follow answers so many pages and then fails; below zero: all.
type cutFollow struct {
	store.Store
	pages atomic.Int64
}

func (c *cutFollow) Follow(ctx context.Context, after store.Position, kinds []store.Kind, max int) (store.View, error) {
	if n := c.pages.Load(); n == 0 || n > 0 && c.pages.Add(-1) < 0 {
		return store.View{}, errors.New("the engine is away")
	}
	return c.Store.Follow(ctx, after, kinds, max)
}

// An issuer whose own reading of the rules was cut between two pages reads the first one again. Its followers get every rule all
// the same, in pages that go on.
func TestFeedOfAnIssuerThatReadAPageTwice(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	st := memstore.New()
	cut := &cutFollow{Store: st}
	cut.pages.Store(-1)
	other, svc := serviceOn(t, st, nil), serviceOn(t, cut, nil)
	start, err := svc.Revocations(ctx, store.Position{}, 0)
	require.NoError(t, err)
	require.Empty(t, start.Rules)

	const rules = 1500
	cut.pages.Store(0)
	for i := range rules {
		require.NoError(t, other.Revoke(ctx, apitoken.BySubject(fmt.Sprint("user", i)), "test"))
	}
	for range 3 {
		cut.pages.Store(1)
		require.Error(t, svc.Sync(ctx))
	}
	cut.pages.Store(-1)
	require.NoError(t, svc.Sync(ctx))

	for _, page := range []int{200, 300, 700, 1000, 5000} {
		seen := map[[16]byte]bool{}
		at := start.Next
		for more := true; more; {
			v, err := svc.Revocations(ctx, at, page)
			require.NoError(t, err)
			if more = v.More; more {
				require.Greater(t, v.Next.N, at.N, "pages of %d go on", page)
			}
			at = v.Next
			for _, r := range v.Rules {
				require.False(t, seen[r.Hash], "a rule twice, in pages of %d", page)
				seen[r.Hash] = true
			}
		}
		require.Len(t, seen, rules, "pages of %d", page)
	}
}
