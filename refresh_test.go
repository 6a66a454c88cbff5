package apitoken_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/memstore"
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
	require.Len(t, events(t, svc, apitoken.EventQuery{Type: event.Refreshed}), 2, "a repeated answer is nothing new")
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
			list := events(t, svc, apitoken.EventQuery{Type: event.Reused})
			require.Len(t, list, 1)
			require.Equal(t, live.Token.Grant(), list[0].Grant)
		})
	}
}

func TestGraceIsNotExtendedByReplays(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { // its clock stands while something runs
		svc := serviceOn(t, memstore.New(), nil)
		one := issue(t, svc, aliceSession)
		_, err := refresh(svc, one.Refresh)
		require.NoError(t, err)
		for range 4 {
			time.Sleep(2 * time.Second)
			_, err = refresh(svc, one.Refresh)
			require.NoError(t, err)
		}
		time.Sleep(2001 * time.Millisecond)
		_, err = refresh(svc, one.Refresh)
		require.ErrorIs(t, err, apitoken.ErrInvalidGrant)
	})
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

// Without a grace window the loser of a race is told so, rather than that repeating is safe: a repetition would be reuse and end the
// session of whoever won.
func TestWithoutGraceTheLoserOfARaceEndsNothing(t *testing.T) {
	t.Parallel()
	st := &faulty{Store: tempStore(t)}
	strict := func(c *apitoken.Config) { c.Refresh.Grace = -1 }
	svc, other := serviceOn(t, st, strict), serviceOn(t, st.Store, strict)
	one := issue(t, svc, aliceSession)
	var two *apitoken.Issued
	between(st, "grant", func() {
		var err error
		two, err = refresh(other, one.Refresh)
		require.NoError(t, err)
	})
	_, err := refresh(svc, one.Refresh)
	require.ErrorIs(t, err, apitoken.ErrInvalidGrant)
	require.NotErrorIs(t, err, apitoken.ErrUnavailable)
	require.NoError(t, validate(svc, two.Access))
	require.Empty(t, events(t, svc, apitoken.EventQuery{Type: event.Reused}))
	three, err := refresh(svc, two.Refresh)
	require.NoError(t, err)

	// What comes after the answer went out is reuse.
	_, err = refresh(svc, two.Refresh)
	require.ErrorIs(t, err, apitoken.ErrInvalidGrant)
	require.ErrorIs(t, validate(svc, three.Access), apitoken.ErrRevoked)
}

// A rotation that nobody was told of, because the store did not say that it was done or because the caller had gone, may be repeated
// once, in whatever process and for a minute; a second repetition is reuse.
func TestWithoutGraceAnUnansweredRotationIsRepeatedOnce(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]func(*faulty, context.CancelFunc){
		"the store did not answer": func(st *faulty, _ context.CancelFunc) {
			st.onApply(func(context.Context, *store.Change) (error, error) { return nil, errEngine })
		},
		"the caller had gone": func(st *faulty, gone context.CancelFunc) { st.onApplied(gone) },
	} {
		for late, after := range map[string]time.Duration{"at once": 0, "after a minute": time.Minute + time.Millisecond} {
			t.Run(name+", "+late, func(t *testing.T) {
				t.Parallel()
				c := &clock{}
				st := &faulty{Store: tempStore(t)}
				strict := func(cfg *apitoken.Config) { cfg.Refresh.Grace, cfg.Now = -1, c.Now }
				svc, other := serviceOn(t, st, strict), serviceOn(t, st.Store, strict)
				one := issue(t, svc, aliceSession)
				ctx, gone := context.WithTimeout(context.Background(), 10*time.Second)
				defer gone()
				lose(st, gone)
				_, _ = svc.Refresh(ctx, apitoken.RefreshRequest{Token: one.Refresh.Reveal()})
				st.onApply(nil)
				st.onApplied(nil)

				c.Advance(after)
				two, err := refresh(other, one.Refresh)
				if after > 0 {
					require.ErrorIs(t, err, apitoken.ErrInvalidGrant)
					return
				}
				require.NoError(t, err)
				require.NoError(t, validate(svc, two.Access))
				_, err = refresh(svc, one.Refresh)
				require.ErrorIs(t, err, apitoken.ErrInvalidGrant)
				require.NoError(t, svc.Sync(context.Background()))
				require.ErrorIs(t, validate(svc, two.Access), apitoken.ErrRevoked)
			})
		}
	}
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
	require.Empty(t, events(t, svc, apitoken.EventQuery{Type: event.Reused}))
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
	require.Empty(t, events(t, svc, apitoken.EventQuery{Type: event.Reused}))
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
	require.NotEmpty(t, events(t, svc, apitoken.EventQuery{Type: event.Alert}))
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
	_, secret, err := svc.Clients.Create(ctx, apitoken.Client{ID: "web", GrantTypes: []string{"refresh_token"}, Scopes: apitoken.Scopes{"orders"}})
	require.NoError(t, err)
	_, secret2, err := svc.Clients.Create(ctx, apitoken.Client{ID: "other", GrantTypes: []string{"refresh_token"}, Scopes: apitoken.Scopes{"orders"}})
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

// confidential makes a client with a secret of our making.
func confidential(t testing.TB, svc *apitoken.Service, c apitoken.Client) apitoken.ClientAuth {
	t.Helper()
	_, secret, err := svc.Clients.Create(context.Background(), c)
	require.NoError(t, err)
	return apitoken.ClientAuth{ID: c.ID, Secret: secret}
}

func refreshAs(svc *apitoken.Service, auth apitoken.ClientAuth, s apitoken.Secret, binding string) (*apitoken.Issued, error) {
	return svc.Refresh(context.Background(), apitoken.RefreshRequest{Token: s.Reveal(), Auth: auth, Binding: binding})
}

// Where a confidential client's token rotates, a lost answer can be asked for until it has arrived.
func TestAConfidentialClientMayRepeatUntilItUsesTheAnswer(t *testing.T) {
	t.Parallel()
	c := &clock{}
	svc := service(t, func(cfg *apitoken.Config) { cfg.Now, cfg.Refresh.RotateConfidential = c.Now, true })
	auth := confidential(t, svc, apitoken.Client{ID: "web", GrantTypes: []string{"refresh_token"}, Scopes: apitoken.Scopes{"orders"}})
	one := issue(t, svc, apitoken.Request{Subject: "alice", Client: "web", Scopes: apitoken.Scopes{"orders:read"}, Refresh: true})
	two, err := refreshAs(svc, auth, one.Refresh, "")
	require.NoError(t, err)
	require.NotEqual(t, one.Refresh.Reveal(), two.Refresh.Reveal())
	c.Advance(time.Minute)
	again, err := refreshAs(svc, auth, one.Refresh, "")
	require.NoError(t, err, "past the window of those who prove nothing")
	require.Equal(t, two.Refresh.Reveal(), again.Refresh.Reveal())
	require.Equal(t, two.Token.ID(), again.Token.ID())
	c.Advance(time.Hour)
	require.NoError(t, svc.Sync(context.Background()))
	again, err = refreshAs(svc, auth, one.Refresh, "")
	require.NoError(t, err)
	require.Equal(t, two.Refresh.Reveal(), again.Refresh.Reveal())
	require.NotEqual(t, two.Token.ID(), again.Token.ID(), "the access token that was lost has run out")
	require.NoError(t, validate(svc, again.Access))
	three, err := refreshAs(svc, auth, two.Refresh, "")
	require.NoError(t, err)
	_, err = refreshAs(svc, auth, one.Refresh, "")
	require.ErrorIs(t, err, apitoken.ErrInvalidGrant, "the answer arrived: this is a copy")
	require.ErrorIs(t, validate(svc, three.Access), apitoken.ErrRevoked)
}

func TestARepeatedAnswerKeepsItsBinding(t *testing.T) {
	t.Parallel()
	svc := service(t, func(cfg *apitoken.Config) { cfg.Refresh.RotateConfidential = true })
	auth := confidential(t, svc, apitoken.Client{ID: "web", GrantTypes: []string{"refresh_token"}, Scopes: apitoken.Scopes{"orders"}})
	one := issue(t, svc, apitoken.Request{Subject: "alice", Client: "web", Scopes: apitoken.Scopes{"orders:read"}, Refresh: true})
	key, other := apitoken.BindCertificate([32]byte{1}), apitoken.BindCertificate([32]byte{2})
	two, err := refreshAs(svc, auth, one.Refresh, key)
	require.NoError(t, err)
	require.Equal(t, key, two.Token.Binding())
	for binding, want := range map[string]string{"": key, key: key, other: other} {
		again, err := refreshAs(svc, auth, one.Refresh, binding)
		require.NoError(t, err)
		require.Equal(t, want, again.Token.Binding(), "asked with %q", binding)
		require.ErrorIs(t, validate(svc, again.Access), apitoken.ErrInvalidToken, "bound: not for a bearer")
	}
	_, err = refreshAs(svc, auth, one.Refresh, "jkt:short")
	require.ErrorIs(t, err, apitoken.ErrInvalidRequest)
	three, err := refreshAs(svc, auth, two.Refresh, "")
	require.NoError(t, err)
	require.Empty(t, three.Token.Binding(), "the grant is not bound, and this token was not to be")
	again, err := refreshAs(svc, auth, two.Refresh, "")
	require.NoError(t, err)
	require.Empty(t, again.Token.Binding())
}

func TestARepeatedAnswerSaysWhatIsLeftOfIt(t *testing.T) {
	t.Parallel()
	c := &clock{}
	svc := service(t, func(cfg *apitoken.Config) {
		cfg.Now, cfg.Refresh.Grace, cfg.Lifetimes.Access = c.Now, time.Minute, 20*time.Second
	})
	one := issue(t, svc, aliceSession)
	two, err := refresh(svc, one.Refresh)
	require.NoError(t, err)
	require.EqualValues(t, 20, two.Response().ExpiresIn)
	c.Advance(10 * time.Second)
	again, err := refresh(svc, one.Refresh)
	require.NoError(t, err)
	require.Equal(t, two.Token.ID(), again.Token.ID())
	require.LessOrEqual(t, again.Response().ExpiresIn, int64(10), "seconds from now (RFC 6749 §5.1), not from when it was signed")
	c.Advance(11 * time.Second)
	require.NoError(t, svc.Sync(context.Background()))
	again, err = refresh(svc, one.Refresh)
	require.NoError(t, err)
	require.Equal(t, two.Refresh.Reveal(), again.Refresh.Reveal())
	require.NoError(t, validate(svc, again.Access), "an answer that has run out would be no answer")
}

// Who holds a dead token may present it as often as he likes: one rule is enough.
func TestCopiesOfWhatHasEndedWriteNothing(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	confidential(t, svc, apitoken.Client{ID: "web", GrantTypes: []string{"refresh_token"}, Scopes: apitoken.Scopes{"orders"}})
	thief := confidential(t, svc, apitoken.Client{ID: "other", GrantTypes: []string{"refresh_token"}, Scopes: apitoken.Scopes{"orders"}})
	i := issue(t, svc, apitoken.Request{Subject: "alice", Client: "web", Scopes: apitoken.Scopes{"orders:read"}, Refresh: true})
	code, err := svc.Prepare(ctx, aliceSession, apitoken.Ticket{Lifetime: time.Minute})
	require.NoError(t, err)
	got, err := svc.Redeem(ctx, apitoken.Redemption{Ticket: code.Reveal()})
	require.NoError(t, err)
	for range 5 {
		_, err := refreshAs(svc, thief, i.Refresh, "")
		require.ErrorIs(t, err, apitoken.ErrInvalidGrant)
		_, err = svc.Redeem(ctx, apitoken.Redemption{Ticket: code.Reveal()})
		require.ErrorIs(t, err, apitoken.ErrInvalidGrant)
	}
	require.ErrorIs(t, validate(svc, i.Access), apitoken.ErrRevoked)
	require.ErrorIs(t, validate(svc, got.Access), apitoken.ErrRevoked)
	require.Len(t, events(t, svc, apitoken.EventQuery{Type: event.Leaked}), 1)
	require.Len(t, events(t, svc, apitoken.EventQuery{Type: event.Reused}), 1)
	page, err := storeOf(svc).List(ctx, store.Query{Kind: store.KindRule})
	require.NoError(t, err)
	require.Len(t, page.Records, 2)
}

// What is no proof of a copy in its owner's hands is none in another client's.
func TestAnotherClientWithATokenAheadKillsNothing(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	inner := tempStore(t)
	svc := serviceOn(t, inner, nil)
	other := confidential(t, svc, apitoken.Client{ID: "other", GrantTypes: []string{"refresh_token"}})
	one := issue(t, svc, aliceSession)
	old, err := inner.Get(ctx, "grant", one.Token.Grant())
	require.NoError(t, err)
	two, err := refresh(svc, one.Refresh)
	require.NoError(t, err)
	now, err := inner.Get(ctx, "grant", one.Token.Grant())
	require.NoError(t, err)
	_, err = inner.Apply(ctx, &store.Change{ID: store.Version{9}, Puts: []store.Put{{Record: old, Expect: now.Version}}})
	require.NoError(t, err)
	_, err = refreshAs(svc, other, two.Refresh, "")
	require.ErrorIs(t, err, apitoken.ErrUnavailable)
	require.NoError(t, validate(svc, two.Access))
	_, err = refreshAs(svc, other, one.Refresh, "")
	require.ErrorIs(t, err, apitoken.ErrInvalidGrant)
	require.ErrorIs(t, validate(svc, two.Access), apitoken.ErrRevoked, "a genuine one is a leak")
}

// between runs f once, while the next write of svc that has a record of kind is on its way.
func between(st *faulty, kind store.Kind, f func()) {
	var once sync.Once
	st.onApply(func(_ context.Context, c *store.Change) (error, error) {
		for _, p := range c.Puts {
			if p.Record.Kind == kind {
				once.Do(f)
			}
		}
		return nil, nil
	})
}

// A process that plans with a role or a client as they were signs nothing that stands after the rule which says that they
// have changed.
func TestNothingIsMadeOfAPlanThatWasOvertaken(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	st := &faulty{Store: tempStore(t)}
	with := func(c *apitoken.Config) {
		c.Roles = map[string]apitoken.Scopes{"clerk": {"orders:read", "orders:write"}}
	}
	svc, other := serviceOn(t, st, with), serviceOn(t, st.Store, with)
	confidential(t, svc, apitoken.Client{ID: "web", GrantTypes: []string{"refresh_token"}, Scopes: apitoken.Scopes{"orders"}})
	require.NoError(t, other.Sync(ctx))
	clerk := apitoken.Request{Subject: "alice", Roles: []string{"clerk"}, Refresh: true}
	narrow := func(scopes ...apitoken.Scope) func() {
		return func() { require.NoError(t, other.SetRole(ctx, "clerk", scopes)) }
	}

	between(st, "grant", narrow("orders:read", "orders:list"))
	i := issue(t, svc, clerk)
	require.Equal(t, apitoken.Scopes{"orders:list", "orders:read"}, i.Token.Scopes(), "issued: planned again")
	require.NoError(t, validate(svc, i.Access))
	sessions := func(subject string) (list []apitoken.Grant) {
		for g, err := range svc.Grants(ctx, apitoken.BySubject(subject), apitoken.Page{}) {
			require.NoError(t, err)
			list = append(list, g)
		}
		return list
	}
	require.Len(t, sessions("alice"), 1, "what was planned first left no session behind")
	require.Equal(t, i.Token.Scopes(), sessions("alice")[0].Scopes)

	clerk.Subject = "bob"
	code, err := svc.Prepare(ctx, clerk, apitoken.Ticket{Lifetime: time.Minute})
	require.NoError(t, err)
	between(st, "grant", narrow("orders:list"))
	redeemed, err := svc.Redeem(ctx, apitoken.Redemption{Ticket: code.Reveal()})
	require.NoError(t, err, "redeemed: planned again, which is no second use")
	require.Equal(t, apitoken.Scopes{"orders:list"}, redeemed.Token.Scopes())
	require.NoError(t, validate(svc, redeemed.Access))
	require.Len(t, sessions("bob"), 1)
	require.Empty(t, events(t, svc, apitoken.EventQuery{Type: event.Reused}))
	_, err = svc.Redeem(ctx, apitoken.Redemption{Ticket: code.Reveal()})
	require.ErrorIs(t, err, apitoken.ErrInvalidGrant)
	require.ErrorIs(t, validate(svc, redeemed.Access), apitoken.ErrRevoked, "a second use ends what the first got")
	require.NoError(t, other.SetRole(ctx, "clerk", apitoken.Scopes{"orders:read", "orders:list"}))

	between(st, "grant", narrow("orders:read"))
	n, err := refresh(svc, i.Refresh)
	require.NoError(t, err, "refreshed: the grant lives, and its token must not be lost")
	require.Equal(t, apitoken.Scopes{"orders:read"}, n.Token.Scopes())
	require.NoError(t, validate(svc, n.Access))
	again, err := refresh(svc, i.Refresh)
	require.NoError(t, err)
	require.Equal(t, n.Refresh.Reveal(), again.Refresh.Reveal())
	require.Equal(t, n.Token.ID(), again.Token.ID())

	between(st, "grant", func() {
		_, err := other.Clients.Update(ctx, "web", func(c *apitoken.Client) error { c.Disabled = true; return nil })
		require.NoError(t, err)
	})
	_, err = svc.Issue(ctx, apitoken.Request{Subject: "alice", Client: "web", Scopes: apitoken.Scopes{"orders:read"}, Refresh: true})
	require.ErrorIs(t, err, apitoken.ErrDenied, "a client that was disabled meanwhile gets nothing")
}

// A root secret that another process makes tokens with already is looked for, and what is not known yet is nobody's fault.
func TestTokensOfAProcessThatIsAhead(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	st := &faulty{Store: tempStore(t)}
	svc := serviceOn(t, st, nil)
	ahead := serviceOn(t, st.Store, func(c *apitoken.Config) { c.Now = func() time.Time { return time.Now().Add(30 * time.Minute) } })
	st.failReads(errEngine)
	require.NoError(t, ahead.SigningKeys.RotateSecrets(ctx))
	i, code := issue(t, ahead, aliceSession), apitoken.Secret{}
	var err error
	code, err = ahead.Prepare(ctx, aliceSession, apitoken.Ticket{Lifetime: time.Hour})
	require.NoError(t, err)
	_, err = refresh(svc, i.Refresh)
	require.ErrorIs(t, err, apitoken.ErrUnavailable)
	st.failReads(nil)
	require.Eventually(t, func() bool {
		_, err := refresh(svc, i.Refresh)
		if err != nil && !errors.Is(err, apitoken.ErrInvalidGrant) {
			require.ErrorIs(t, err, apitoken.ErrUnavailable)
		}
		return err == nil
	}, time.Minute, 50*time.Millisecond)
	_, err = svc.Redeem(ctx, apitoken.Redemption{Ticket: code.Reveal()})
	require.NoError(t, err)
}

// A copied token ends its grant also while an auditor lags: taking power away waits for nobody.
func TestReuseWaitsForNoAuditor(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	c := &clock{}
	a := &auditor{hang: make(chan struct{})}
	svc := service(t, func(cfg *apitoken.Config) {
		cfg.Now = c.Now
		cfg.Sinks = []apitoken.Sink{{Name: "siem", Auditor: a, Timeout: 10 * time.Millisecond, MaxLag: time.Minute}}
	})
	defer close(a.hang)
	one := issue(t, svc, aliceSession)
	two, err := refresh(svc, one.Refresh)
	require.NoError(t, err)
	code, err := svc.Prepare(ctx, aliceSession, apitoken.Ticket{Lifetime: time.Hour})
	require.NoError(t, err)
	got, err := svc.Redeem(ctx, apitoken.Redemption{Ticket: code.Reveal()})
	require.NoError(t, err)
	a.mode.Store("hang")
	issue(t, svc, aliceSession)
	c.Advance(2 * time.Minute)
	require.Eventually(t, func() bool { _, err := svc.Issue(ctx, aliceSession); return errors.Is(err, apitoken.ErrUnavailable) }, time.Minute, 10*time.Millisecond)
	_, err = refresh(svc, two.Refresh)
	require.ErrorIs(t, err, apitoken.ErrUnavailable, "going on waits")
	_, err = refresh(svc, one.Refresh)
	require.ErrorIs(t, err, apitoken.ErrInvalidGrant)
	_, err = svc.Redeem(ctx, apitoken.Redemption{Ticket: code.Reveal()})
	require.ErrorIs(t, err, apitoken.ErrInvalidGrant)
	require.NoError(t, svc.Sync(ctx))
	require.ErrorIs(t, validate(svc, two.Access), apitoken.ErrRevoked)
	require.ErrorIs(t, validate(svc, got.Access), apitoken.ErrRevoked)
}

// A rotation whose outcome was unknown, and behind which another process has moved on twice before it is asked again:
// that is no copy.
func TestTwoBehindAfterAnUnknownOutcomeIsNoReuse(t *testing.T) {
	t.Parallel()
	st := &faulty{Store: tempStore(t)}
	svc, other := serviceOn(t, st, nil), serviceOn(t, st.Store, nil)
	one := issue(t, svc, aliceSession)
	var live *apitoken.Issued
	n := 0
	st.onApply(func(context.Context, *store.Change) (error, error) {
		switch n++; n {
		case 1:
			return nil, errEngine // written, and the answer lost
		case 2: // the same change again
			two, err := refresh(other, one.Refresh)
			if err == nil {
				live, err = refresh(other, two.Refresh)
			}
			if err != nil {
				t.Error(err)
			}
		}
		return nil, nil
	})
	_, err := refresh(svc, one.Refresh)
	require.ErrorIs(t, err, apitoken.ErrUnavailable)
	require.NotNil(t, live)
	require.NoError(t, validate(svc, live.Access))
	require.Empty(t, events(t, svc, apitoken.EventQuery{Type: event.Reused}))
	_, err = refresh(svc, live.Refresh)
	require.NoError(t, err)
}

// The keys of tags and of the ratchet change in the middle of a chain, and between a rotation and its repetition.
func TestTheRatchetOverRotatedSecrets(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { // its clock stands while something runs
		ctx := context.Background()
		svc := serviceOn(t, memstore.New(), nil)
		one := issue(t, svc, aliceSession)
		require.NoError(t, svc.SigningKeys.RotateSecrets(ctx))
		time.Sleep(15*time.Minute - 4*time.Second) // the new root is known for so long before it is used
		require.NoError(t, svc.Sync(ctx))
		two, err := refresh(svc, one.Refresh)
		require.NoError(t, err)
		time.Sleep(5 * time.Second)
		require.NoError(t, svc.Sync(ctx))
		again, err := refresh(svc, one.Refresh)
		require.NoError(t, err)
		require.Equal(t, two.Refresh.Reveal(), again.Refresh.Reveal())
		three, err := refresh(svc, two.Refresh)
		require.NoError(t, err)
		require.NotEqual(t, two.Refresh.Reveal()[:12], three.Refresh.Reveal()[:12], "it names another key")
		again, err = refresh(svc, two.Refresh)
		require.NoError(t, err)
		require.Equal(t, three.Refresh.Reveal(), again.Refresh.Reveal())
		_, err = refresh(svc, one.Refresh)
		require.ErrorIs(t, err, apitoken.ErrInvalidGrant)
		require.Len(t, events(t, svc, apitoken.EventQuery{Type: event.Reused}), 1, "and a copy under the old key is one")
	})
}

func TestATicketInTwoProcesses(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	st := tempStore(t)
	list := []*apitoken.Service{serviceOn(t, st, nil), serviceOn(t, st, nil)}
	for range 20 {
		code, err := list[0].Prepare(ctx, aliceSession, apitoken.Ticket{Lifetime: time.Minute})
		require.NoError(t, err)
		var wg sync.WaitGroup
		got := make([]*apitoken.Issued, 8)
		for i := range got {
			wg.Go(func() {
				var err error
				got[i], err = list[i%2].Redeem(ctx, apitoken.Redemption{Ticket: code.Reveal()})
				if err != nil && !errors.Is(err, apitoken.ErrInvalidGrant) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		n := 0
		for _, i := range got {
			if i == nil {
				continue
			}
			n++
			for _, svc := range list {
				require.NoError(t, svc.Sync(ctx))
				require.ErrorIs(t, validate(svc, i.Access), apitoken.ErrRevoked, "the others' uses ended what the first one got")
			}
		}
		require.LessOrEqual(t, n, 1)
	}
}

func TestALostAnswerOfTheStoreRedeemsOnce(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	st := &faulty{Store: tempStore(t)}
	svc := serviceOn(t, st, nil)
	code, err := svc.Prepare(ctx, aliceSession, apitoken.Ticket{Lifetime: time.Minute})
	require.NoError(t, err)
	n := 0
	st.onApply(func(context.Context, *store.Change) (error, error) {
		if n++; n <= 2 {
			return nil, errEngine
		}
		return nil, nil
	})
	i, err := svc.Redeem(ctx, apitoken.Redemption{Ticket: code.Reveal()})
	require.NoError(t, err, "the retry recognises itself")
	require.NoError(t, validate(svc, i.Access))
	require.Len(t, events(t, svc, apitoken.EventQuery{Type: event.Issued}), 1)
}
