package apitoken_test

import (
	"context"
	"slices"
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

var (
	clerks = map[string]apitoken.Scopes{"clerk": {"a", "b", "c", "d"}}
	clerk  = apitoken.Request{Subject: "alice", Roles: []string{"clerk"}}
)

// atEvent calls f once, before the write of a change that is nothing but one event.
func atEvent(st *faulty, f func()) {
	var once sync.Once
	st.onApply(func(_ context.Context, c *store.Change) (error, error) {
		if len(c.Puts) == 0 && len(c.Events) == 1 {
			once.Do(f)
		}
		return nil, nil
	})
}

func TestWithoutARefreshTokenTheSecretIsZero(t *testing.T) {
	t.Parallel()
	svc := service(t, nil)
	require.True(t, issue(t, svc, apitoken.Request{Subject: "alice"}).Refresh.IsZero())
	s := issue(t, svc, aliceSession)
	require.False(t, s.Refresh.IsZero())
	require.True(t, issue(t, svc, apitoken.Request{Grant: s.Token.Grant()}).Refresh.IsZero(), "under a grant")
}

func TestAClientThatLosesAGrantTypeInTheMiddleGetsNothing(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	const exchange = "urn:ietf:params:oauth:grant-type:token-exchange"
	var meanwhile func()
	st := &faulty{Store: tempStore(t)}
	svc := serviceOn(t, st, func(c *apitoken.Config) {
		c.Refresh.RotateConfidential = true
		c.MayContinue = func(context.Context, apitoken.Grant) error {
			if f := meanwhile; f != nil {
				meanwhile = nil
				f()
			}
			return nil
		}
	})
	for _, how := range []string{"exchange, before the write", "exchange, at the write", "refresh"} {
		c, secret, err := svc.Clients.Create(ctx, apitoken.Client{MayImpersonate: true, Scopes: apitoken.Scopes{"a"}, GrantTypes: []string{exchange, "refresh_token", "client_credentials"}})
		require.NoError(t, err)
		auth := apitoken.ClientAuth{ID: c.ID, Secret: secret}
		i := issue(t, svc, apitoken.Request{Subject: "alice", Client: c.ID, Scopes: apitoken.Scopes{"a"}, Refresh: true})
		token := issue(t, svc, apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"a"}})
		lose := func() {
			_, err := svc.Clients.Update(ctx, c.ID, func(c *apitoken.Client) error {
				c.GrantTypes, c.MayImpersonate = []string{"client_credentials"}, false
				return nil
			})
			require.NoError(t, err)
		}
		switch how {
		case "exchange, before the write":
			meanwhile = lose
		case "exchange, at the write":
			atEvent(st, lose)
		default:
			between(st, "grant", lose)
		}
		if how == "refresh" {
			_, err = svc.Refresh(ctx, apitoken.RefreshRequest{Token: i.Refresh.Reveal(), Auth: auth})
		} else {
			_, err = svc.Exchange(ctx, apitoken.ExchangeRequest{Token: apitoken.Bearer(token.Access.Reveal()), Auth: auth})
		}
		require.ErrorIs(t, err, apitoken.ErrDenied, how)
		st.onApply(nil)
	}
}

func TestARedemptionThatIsOvertakenTwiceIsNoReuse(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	for _, session := range []bool{true, false} {
		asked := 0
		st := &faulty{Store: tempStore(t)}
		var svc *apitoken.Service
		svc = serviceOn(t, st, func(c *apitoken.Config) {
			c.Roles = clerks
			c.MayContinue = func(context.Context, apitoken.Grant) error {
				if asked++; asked == 2 { // planned again
					require.NoError(t, svc.SetRole(ctx, "clerk", apitoken.Scopes{"a", "b"}))
				}
				return nil
			}
		})
		r := clerk
		r.Refresh = session
		code, err := svc.Prepare(ctx, r, apitoken.Ticket{Lifetime: time.Minute})
		require.NoError(t, err)
		between(st, "ticket", func() { require.NoError(t, svc.SetRole(ctx, "clerk", apitoken.Scopes{"a", "b", "c"})) })
		i, err := svc.Redeem(ctx, apitoken.Redemption{Ticket: code.Reveal()})
		require.Empty(t, events(t, svc, apitoken.EventQuery{Type: event.Reused}))
		require.NoError(t, err)
		require.Equal(t, apitoken.Scopes{"a", "b"}, i.Token.Scopes())
		require.NoError(t, validate(svc, i.Access))
	}
}

func TestWhatIsOfAClientThatIsNewElsewhere(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"redeem", "refresh"} {
		synctest.Test(t, func(t *testing.T) {
			ctx := t.Context()
			st := unheard{memstore.New()}
			ahead, behind := serviceOn(t, st, nil), serviceOn(t, st, nil)
			_, _, err := ahead.Clients.Create(ctx, apitoken.Client{ID: "new", Public: true, GrantTypes: []string{"refresh_token"}, Scopes: apitoken.Scopes{"a"}})
			require.NoError(t, err)
			r := apitoken.Request{Subject: "alice", Client: "new", Scopes: apitoken.Scopes{"a"}, Refresh: true}
			if how == "redeem" {
				code, err := ahead.Prepare(ctx, r, apitoken.Ticket{Lifetime: time.Second})
				require.NoError(t, err)
				_, err = behind.Redeem(ctx, apitoken.Redemption{Ticket: code.Reveal()})
				require.NoError(t, err, how)
				return
			}
			_, err = refresh(behind, issue(t, ahead, r).Refresh)
			require.NoError(t, err, how)
		})
	}
}

func TestAnEventSaysNoMoreThanItsToken(t *testing.T) {
	t.Parallel()
	st := &faulty{Store: tempStore(t)}
	svc := serviceOn(t, st, func(c *apitoken.Config) { c.Roles = clerks })
	atEvent(st, func() { require.NoError(t, svc.SetRole(context.Background(), "clerk", apitoken.Scopes{"a"})) })
	i := issue(t, svc, clerk)
	list := events(t, svc, apitoken.EventQuery{Type: event.Issued})
	at := slices.IndexFunc(list, func(e apitoken.Event) bool { return e.TokenID == i.Token.ID() })
	require.Equal(t, i.Token.Scopes(), list[at].Scopes)
}

func TestARefreshWaitsForARoleThatIsChanged(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		st := &faulty{Store: memstore.New()}
		svc := serviceOn(t, st, func(c *apitoken.Config) { c.Roles = clerks })
		r := clerk
		r.Refresh = true
		one := issue(t, svc, r)
		begun, done := make(chan struct{}), make(chan error, 1)
		between(st, "rule", func() { close(begun); time.Sleep(20 * time.Millisecond) })
		go func() { done <- svc.SetRole(ctx, "clerk", apitoken.Scopes{"a"}) }()
		<-begun
		_, err := refresh(svc, one.Refresh)
		require.NoError(t, err)
		require.NoError(t, <-done)
	})
}

// A cut-off that a person names says nothing of tickets, and of what they got, from after it.
func TestATicketAfterACutOff(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	for _, how := range []string{"redeemed", "used again", "leaked"} {
		svc := service(t, nil)
		past := func() {
			require.NoError(t, svc.Revoke(ctx, apitoken.BySubject(aliceSession.Subject).IssuedBefore(time.Now().Add(-time.Hour)), "x"))
		}
		if how == "redeemed" {
			past()
		}
		code, err := svc.Prepare(ctx, aliceSession, apitoken.Ticket{Lifetime: time.Minute})
		require.NoError(t, err)
		i, err := svc.Redeem(ctx, apitoken.Redemption{Ticket: code.Reveal()})
		require.NoError(t, err, how)
		if how == "redeemed" {
			continue
		}
		past()
		require.NoError(t, validate(svc, i.Access))
		if how == "leaked" {
			_, err = svc.RevokeLeaked(ctx, []byte(code.Reveal()), "found")
			require.NoError(t, err)
		} else {
			_, err = svc.Redeem(ctx, apitoken.Redemption{Ticket: code.Reveal()})
			require.ErrorIs(t, err, apitoken.ErrInvalidGrant)
		}
		require.ErrorIs(t, validate(svc, i.Access), apitoken.ErrRevoked, how)
	}
}

// A login by ticket is planned again when a role changes while it is written. Whoever finds the ticket in a leak meanwhile, or uses it a
// second time elsewhere, knows nothing of the session that is yet to come, and ends it all the same.
func TestATicketThatLeaksWhileItIsSpentAgain(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	for _, session := range []bool{true, false} {
		for _, how := range []string{"leaked", "used again"} {
			for _, when := range []int{1, 2} { // writes of the ticket
				st := &faulty{Store: tempStore(t)}
				roles := func(c *apitoken.Config) { c.Roles = clerks }
				svc, other := serviceOn(t, st, roles), serviceOn(t, st.Store, roles)
				r := clerk
				r.Refresh = session
				code, err := svc.Prepare(ctx, r, apitoken.Ticket{Lifetime: time.Minute})
				require.NoError(t, err)
				strike := func() {
					if how == "leaked" {
						_, err := other.RevokeLeaked(ctx, []byte(code.Reveal()), "found")
						require.NoError(t, err)
						return
					}
					_, err := other.Redeem(ctx, apitoken.Redemption{Ticket: code.Reveal()})
					require.ErrorIs(t, err, apitoken.ErrInvalidGrant)
				}
				writes, first := 0, false
				st.onApply(func(_ context.Context, c *store.Change) (error, error) {
					if !slices.ContainsFunc(c.Puts, func(p store.Put) bool { return p.Record.Kind == "ticket" }) {
						return nil, nil
					}
					switch writes++; {
					case writes == 1:
						require.NoError(t, svc.SetRole(ctx, "clerk", apitoken.Scopes{"a"}))
						first = true
					case writes == 2 && when == 2:
						strike()
					}
					return nil, nil
				})
				st.onApplied(func() {
					if first && when == 1 {
						strike()
					}
					first = false
				})
				i, err := svc.Redeem(ctx, apitoken.Redemption{Ticket: code.Reveal()})
				if err == nil {
					require.NoError(t, svc.Sync(ctx))
					err = validate(svc, i.Access)
					require.ErrorIs(t, err, apitoken.ErrRevoked, "%s at write %d, session %v", how, when, session)
				}
			}
		}
	}
}
