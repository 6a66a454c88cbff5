package apitoken_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

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

// An issuer whose own reading of the rules was cut between two pages goes on with the second. Its followers get every rule, in
// pages that go on.
func TestFeedOfAnIssuerWhoseReadingWasCut(t *testing.T) {
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
	cut.pages.Store(1)
	require.Error(t, svc.Sync(ctx))
	cut.pages.Store(1)
	require.NoError(t, svc.Sync(ctx), "what was read is not read again")
	cut.pages.Store(-1)

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

// A rule that begins without an end gets one when the janitor has ended the API keys that it matches. Then it leaves the store, the
// feed, the index and what followers hold, all of them.
func TestRulesLeaveMemoryWithTheStore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		st := memstore.New()
		c := config(st)
		c.Lifetimes = apitoken.Lifetimes{Access: 5 * time.Minute, MaxAccess: 5 * time.Minute, Grant: time.Hour}
		svc, err := apitoken.New(c)
		require.NoError(t, err)
		defer svc.Close()
		const n = 20
		served := func() int {
			v, err := svc.Revocations(ctx, store.Position{}, 0)
			require.NoError(t, err)
			return len(v.Rules)
		}
		require.Zero(t, served())
		for i := range n {
			require.NoError(t, svc.Revoke(ctx, apitoken.BySubject(fmt.Sprint("user", i)), "test"))
		}
		require.Equal(t, n, served())
		require.NotZero(t, apitoken.IndexedRules(svc))

		time.Sleep(4 * time.Hour) // finished, and not yet gone
		require.GreaterOrEqual(t, served(), n)

		time.Sleep(5 * 24 * time.Hour)
		p, err := st.List(ctx, store.Query{Kind: store.KindRule})
		require.NoError(t, err)
		require.Empty(t, p.Records)
		require.Zero(t, served())
		require.Zero(t, apitoken.IndexedRules(svc))
		require.Empty(t, apitoken.KeptRules(svc))
	})
}

// A rule is kept for as long as anything lives that it matches: here tickets, which may outlive every session by far. A device's code
// is a ticket as well, once its user has approved it.
func TestRulesOutliveTickets(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		st := memstore.New()
		c := config(st)
		c.Lifetimes = apitoken.Lifetimes{Access: 5 * time.Minute, MaxAccess: 5 * time.Minute, Grant: time.Hour}
		svc, err := apitoken.New(c)
		require.NoError(t, err)
		targets := []apitoken.Target{apitoken.BySubject("user0"), apitoken.BySessions("user1")}
		var codes []string
		for i := range targets {
			r := apitoken.Request{Subject: fmt.Sprint("user", i)}
			ticket, err := svc.Prepare(ctx, r, apitoken.Ticket{Lifetime: 24 * time.Hour})
			require.NoError(t, err)
			device := fmt.Sprint("the code that device ", i, " made")
			_, err = svc.Prepare(ctx, r, apitoken.Ticket{Lifetime: 24 * time.Hour, CodeSHA256: sha256.Sum256([]byte(device))})
			require.NoError(t, err)
			codes = append(codes, ticket.Reveal(), device)
		}
		for _, target := range targets {
			require.NoError(t, svc.Revoke(ctx, target, "test"))
		}
		time.Sleep(23 * time.Hour)
		require.NoError(t, svc.Close())
		svc, err = apitoken.New(c) // holds what the store holds, no more
		require.NoError(t, err)
		defer svc.Close()
		for _, code := range codes {
			_, err := svc.Redeem(ctx, apitoken.Redemption{Ticket: code})
			require.ErrorIs(t, err, apitoken.ErrInvalidGrant)
		}
	})
}
