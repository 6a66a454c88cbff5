package apitoken_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/store"
)

var aliceSession = apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"orders:read", "orders:write"}, Refresh: true}

func TestRefreshRotates(t *testing.T) {
	t.Parallel()
	svc := service(t, nil)
	one := issue(t, svc, aliceSession)
	two, err := refresh(svc, one.Refresh)
	require.NoError(t, err)
	require.NotEqual(t, one.Refresh.Reveal(), two.Refresh.Reveal())
	require.NotEqual(t, one.Token.ID(), two.Token.ID())
	require.Equal(t, one.Token.Grant(), two.Token.Grant())
	require.NoError(t, validate(svc, two.Access))
	require.NoError(t, validate(svc, one.Access), "a refresh revokes nothing")
}

func TestRepeatedRefreshGetsTheSameAnswer(t *testing.T) {
	t.Parallel()
	svc := service(t, nil)
	one := issue(t, svc, aliceSession)
	two, err := svc.Refresh(context.Background(), apitoken.RefreshRequest{Token: one.Refresh.Reveal(), Scopes: apitoken.Scopes{"orders:read"}})
	require.NoError(t, err)
	for range 3 {
		again, err := refresh(svc, one.Refresh)
		require.NoError(t, err)
		require.Equal(t, two.Refresh.Reveal(), again.Refresh.Reveal())
		require.Equal(t, two.Token.ID(), again.Token.ID())
		require.Equal(t, two.Token.ExpiresAt(), again.Token.ExpiresAt())
		require.Equal(t, apitoken.Scopes{"orders:read"}, again.Token.Scopes(), "a lost answer gives no more than it gave")
	}
	three, err := refresh(svc, two.Refresh)
	require.NoError(t, err)
	require.Equal(t, apitoken.Scopes{"orders:read", "orders:write"}, three.Token.Scopes(), "narrowing is for one access token")
	require.Len(t, events(t, svc, apitoken.EventQuery{Type: apitoken.EventRefreshed}), 2, "a repeated answer is nothing new")
}

func TestReuseEndsTheGrant(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]func(t *testing.T, svc *apitoken.Service, c *clock) (reused apitoken.Secret, live *apitoken.Issued){
		"two behind": func(t *testing.T, svc *apitoken.Service, _ *clock) (apitoken.Secret, *apitoken.Issued) {
			one := issue(t, svc, aliceSession)
			two, err := refresh(svc, one.Refresh)
			require.NoError(t, err)
			three, err := refresh(svc, two.Refresh)
			require.NoError(t, err)
			return one.Refresh, three
		},
		"one behind, past the window": func(t *testing.T, svc *apitoken.Service, c *clock) (apitoken.Secret, *apitoken.Issued) {
			one := issue(t, svc, aliceSession)
			two, err := refresh(svc, one.Refresh)
			require.NoError(t, err)
			c.Advance(10001 * time.Millisecond)
			return one.Refresh, two
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := &clock{}
			svc := service(t, func(cfg *apitoken.Config) { cfg.Now = c.Now })
			reused, live := f(t, svc, c)
			_, err := refresh(svc, reused)
			require.ErrorIs(t, err, apitoken.ErrInvalidGrant)
			require.ErrorIs(t, validate(svc, live.Access), apitoken.ErrRevoked, "the cascade ends the access tokens")
			_, err = refresh(svc, live.Refresh)
			require.ErrorIs(t, err, apitoken.ErrInvalidGrant, "and the live refresh token")
			list := events(t, svc, apitoken.EventQuery{Type: apitoken.EventReused})
			require.Len(t, list, 1)
			require.Equal(t, live.Token.Grant(), list[0].Grant)
		})
	}
}

func TestGraceIsNotExtendedByReplays(t *testing.T) {
	t.Parallel()
	c := &clock{}
	svc := service(t, func(cfg *apitoken.Config) { cfg.Now = c.Now })
	one := issue(t, svc, aliceSession)
	_, err := refresh(svc, one.Refresh)
	require.NoError(t, err)
	for range 4 {
		c.Advance(2 * time.Second)
		_, err = refresh(svc, one.Refresh)
		require.NoError(t, err)
	}
	c.Advance(2001 * time.Millisecond)
	_, err = refresh(svc, one.Refresh)
	require.ErrorIs(t, err, apitoken.ErrInvalidGrant)
}

func TestNoGraceWhenToldSo(t *testing.T) {
	t.Parallel()
	svc := service(t, func(c *apitoken.Config) { c.Refresh.Grace = -1 })
	one := issue(t, svc, aliceSession)
	_, err := refresh(svc, one.Refresh)
	require.NoError(t, err)
	_, err = refresh(svc, one.Refresh)
	require.ErrorIs(t, err, apitoken.ErrInvalidGrant)
}

func TestRacersGetOneSuccessor(t *testing.T) {
	t.Parallel()
	svc := service(t, nil)
	other := serviceOn(t, storeOf(svc), nil)
	for _, racers := range []int{2, 8, 64} {
		t.Run(fmt.Sprint(racers), func(t *testing.T) {
			rounds := 100
			if testing.Short() {
				rounds = 10
			}
			current := issue(t, svc, aliceSession)
			for range rounds {
				var wg sync.WaitGroup
				answers := make([]*apitoken.Issued, racers)
				errs := make([]error, racers)
				start := make(chan struct{})
				for i := range racers {
					wg.Go(func() {
						<-start
						s := svc
						if i%2 == 1 {
							s = other
						}
						for try := 0; ; try++ {
							answers[i], errs[i] = refresh(s, current.Refresh)
							if !errors.Is(errs[i], apitoken.ErrUnavailable) || try == 5 {
								return
							}
						}
					})
				}
				close(start)
				wg.Wait()
				for i := range racers {
					require.NoError(t, errs[i], "no false reuse inside the grace window")
					require.Equal(t, answers[0].Refresh.Reveal(), answers[i].Refresh.Reveal(), "one successor, whoever races")
					require.Equal(t, answers[0].Token.ID(), answers[i].Token.ID())
				}
				current = answers[0]
			}
			require.NoError(t, validate(svc, current.Access))
		})
	}
	require.Empty(t, events(t, svc, apitoken.EventQuery{Type: apitoken.EventReused}))
}

var stores sync.Map

// storeOf is the store that service gave to svc.
func storeOf(svc *apitoken.Service) store.Store {
	st, _ := stores.Load(svc)
	return st.(store.Store)
}

func TestFailureBeforeTheWriteBurnsNothing(t *testing.T) {
	t.Parallel()
	st := &faulty{Store: tempStore(t)}
	svc := serviceOn(t, st, nil)
	one := issue(t, svc, aliceSession)
	st.onApply(func(context.Context, *store.Change) (error, error) { return errEngine, nil })
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	_, err := svc.Refresh(ctx, apitoken.RefreshRequest{Token: one.Refresh.Reveal()})
	require.ErrorIs(t, err, apitoken.ErrUnavailable)
	st.onApply(nil)
	_, err = refresh(svc, one.Refresh)
	require.NoError(t, err)
}

func TestUnknownOutcomeOfARotationIsNoReuse(t *testing.T) {
	t.Parallel()
	st := &faulty{Store: tempStore(t)}
	svc := serviceOn(t, st, nil)
	one := issue(t, svc, aliceSession)
	// The engine writes and then says no, each time.
	st.onApply(func(context.Context, *store.Change) (error, error) { return nil, errEngine })
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	_, err := svc.Refresh(ctx, apitoken.RefreshRequest{Token: one.Refresh.Reveal()})
	require.ErrorIs(t, err, apitoken.ErrUnavailable)
	st.onApply(nil)
	two, err := refresh(svc, one.Refresh)
	require.NoError(t, err, "the client repeats, and gets the answer that was lost")
	_, err = refresh(svc, two.Refresh)
	require.NoError(t, err)
	require.Empty(t, events(t, svc, apitoken.EventQuery{Type: apitoken.EventReused}))
}

func TestAStoreThatWentBackIsNoReuse(t *testing.T) {
	t.Parallel()
	inner := tempStore(t)
	svc := serviceOn(t, inner, nil)
	one := issue(t, svc, aliceSession)
	old, err := inner.Get(context.Background(), "grant", one.Token.Grant())
	require.NoError(t, err)
	two, err := refresh(svc, one.Refresh)
	require.NoError(t, err)
	now, err := inner.Get(context.Background(), "grant", one.Token.Grant())
	require.NoError(t, err)
	_, err = inner.Apply(context.Background(), &store.Change{ID: store.Version{9}, Puts: []store.Put{{Record: old, Expect: now.Version}}})
	require.NoError(t, err)
	_, err = refresh(svc, two.Refresh)
	require.ErrorIs(t, err, apitoken.ErrUnavailable, "a token ahead of its record proves lost data")
	require.NoError(t, validate(svc, two.Access), "and kills nothing")
	require.NotEmpty(t, events(t, svc, apitoken.EventQuery{Type: apitoken.EventAlert}))
}

func TestRefreshedTokensNeverOutliveTheirGrant(t *testing.T) {
	t.Parallel()
	c := &clock{}
	svc := service(t, func(cfg *apitoken.Config) {
		cfg.Now = c.Now
		cfg.Lifetimes = apitoken.Lifetimes{Access: 10 * time.Minute, Grant: time.Hour, Idle: 25 * time.Minute}
	})
	i := issue(t, svc, aliceSession)
	end := i.Token.IssuedAt().Add(time.Hour)
	for range 2 {
		c.Advance(20 * time.Minute)
		var err error
		i, err = refresh(svc, i.Refresh)
		require.NoError(t, err)
	}
	c.Advance(19 * time.Minute)
	i, err := refresh(svc, i.Refresh)
	require.NoError(t, err)
	require.False(t, i.Token.ExpiresAt().After(end.Add(time.Second)))
	c.Advance(time.Minute)
	_, err = refresh(svc, i.Refresh)
	require.ErrorIs(t, err, apitoken.ErrInvalidGrant)
	require.ErrorIs(t, validate(svc, i.Access), apitoken.ErrExpired)

	idle := issue(t, svc, aliceSession)
	c.Advance(26 * time.Minute)
	_, err = refresh(svc, idle.Refresh)
	require.ErrorIs(t, err, apitoken.ErrInvalidGrant, "inactivity ends a grant")
}

func TestHookIsAskedAndBurnsNothing(t *testing.T) {
	t.Parallel()
	var answer error
	svc := service(t, func(c *apitoken.Config) {
		c.MayContinue = func(_ context.Context, g apitoken.Grant) error {
			if g.Subject != "alice" {
				return errors.New("who?")
			}
			return answer
		}
	})
	one := issue(t, svc, aliceSession)
	answer = errors.New("on holiday")
	_, err := refresh(svc, one.Refresh)
	require.ErrorIs(t, err, apitoken.ErrInvalidGrant)
	answer = &apitoken.Error{Code: apitoken.ErrUnavailable}
	_, err = refresh(svc, one.Refresh)
	require.ErrorIs(t, err, apitoken.ErrUnavailable)
	answer = nil
	_, err = refresh(svc, one.Refresh)
	require.NoError(t, err)
}

func TestConfidentialClientsKeepTheirRefreshToken(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	_, secret, err := svc.Clients.Create(ctx, apitoken.Client{ID: "web", GrantTypes: []string{apitoken.GrantRefreshToken}, Scopes: apitoken.Scopes{"orders"}})
	require.NoError(t, err)
	_, secret2, err := svc.Clients.Create(ctx, apitoken.Client{ID: "other", GrantTypes: []string{apitoken.GrantRefreshToken}, Scopes: apitoken.Scopes{"orders"}})
	require.NoError(t, err)
	i := issue(t, svc, apitoken.Request{Subject: "alice", Client: "web", Scopes: apitoken.Scopes{"orders:read"}, Refresh: true})
	_, err = refresh(svc, i.Refresh)
	require.ErrorIs(t, err, apitoken.ErrInvalidClient, "a confidential client proves who it is")
	_, err = svc.Refresh(ctx, apitoken.RefreshRequest{Token: i.Refresh.Reveal(), Auth: apitoken.ClientAuth{ID: "web", Secret: apitoken.NewSecret("wrong wrong wrong")}})
	require.ErrorIs(t, err, apitoken.ErrInvalidClient)
	for range 3 {
		n, err := svc.Refresh(ctx, apitoken.RefreshRequest{Token: i.Refresh.Reveal(), Auth: apitoken.ClientAuth{ID: "web", Secret: secret}})
		require.NoError(t, err)
		require.Equal(t, i.Refresh.Reveal(), n.Refresh.Reveal(), "rotation would only add ways to lose it")
	}
	_, err = svc.Refresh(ctx, apitoken.RefreshRequest{Token: i.Refresh.Reveal(), Auth: apitoken.ClientAuth{ID: "other", Secret: secret2}})
	require.ErrorIs(t, err, apitoken.ErrInvalidGrant)
	require.ErrorIs(t, validate(svc, i.Access), apitoken.ErrRevoked, "a genuine token in the hands of another client is a leak")
}

func TestJunkEndsBeforeTheStore(t *testing.T) {
	t.Parallel()
	st := &faulty{Store: tempStore(t)}
	svc := serviceOn(t, st, nil)
	i := issue(t, svc, aliceSession)
	st.failReads(errEngine)
	good := i.Refresh.Reveal()
	for _, bad := range []string{"", "junk", good[:len(good)-1], good + "A", "A" + good, "bt" + good[2:], i.Access.Reveal(), flip(good, len(good)-60)} {
		_, err := svc.Refresh(context.Background(), apitoken.RefreshRequest{Token: bad})
		require.ErrorIs(t, err, apitoken.ErrInvalidGrant, "%q must not reach the store", bad)
	}
}

// flip changes one character.
func flip(s string, i int) string {
	c := byte('A')
	if s[i] == c {
		c = 'B'
	}
	return s[:i] + string(c) + s[i+1:]
}
