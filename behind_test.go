package apitoken_test

import (
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/memstore"
)

// unheard is a store that wakes nobody: a process hears of changes when it looks.
type unheard struct{ store.Store }

// A process that has not heard of what another one confirmed looks before it makes something of it. What it makes is good
// everywhere: no token may say that less was known when it was made than when its identity was confirmed.
func TestAProcessThatIsBehindLooksFirst(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { // its clock stands while something runs: nobody polls
		ctx := t.Context()
		st := unheard{memstore.New()}
		ahead, behind := serviceOn(t, st, nil), serviceOn(t, st, nil)
		grants := []string{"urn:ietf:params:oauth:grant-type:token-exchange", "refresh_token"}
		c, secret, err := ahead.Clients.Create(ctx, apitoken.Client{ID: "web", GrantTypes: grants, MayImpersonate: true})
		require.NoError(t, err)
		auth := apitoken.ClientAuth{ID: c.ID, Secret: secret}

		made := map[string]func() (*apitoken.Issued, error){
			"refresh": func() (*apitoken.Issued, error) {
				i := issue(t, ahead, apitoken.Request{Subject: "alice", Refresh: true})
				return behind.Refresh(ctx, apitoken.RefreshRequest{Token: i.Refresh.Reveal()})
			},
			"refresh, repeated": func() (*apitoken.Issued, error) {
				i := issue(t, ahead, apitoken.Request{Subject: "alice", Refresh: true})
				_, err := ahead.Refresh(ctx, apitoken.RefreshRequest{Token: i.Refresh.Reveal()})
				require.NoError(t, err)
				return behind.Refresh(ctx, apitoken.RefreshRequest{Token: i.Refresh.Reveal()})
			},
			"issue under a grant": func() (*apitoken.Issued, error) {
				i := issue(t, ahead, apitoken.Request{Subject: "alice", Refresh: true})
				return behind.Issue(ctx, apitoken.Request{Grant: i.Token.Grant()})
			},
			"redeem": func() (*apitoken.Issued, error) {
				ticket, err := ahead.Prepare(ctx, apitoken.Request{Subject: "alice"}, apitoken.Ticket{Lifetime: 1e9})
				require.NoError(t, err)
				return behind.Redeem(ctx, apitoken.Redemption{Ticket: ticket.Reveal()})
			},
			"exchange": func() (*apitoken.Issued, error) {
				i := issue(t, ahead, apitoken.Request{Subject: "alice"})
				return behind.Exchange(ctx, apitoken.ExchangeRequest{Token: apitoken.Bearer(i.Access.Reveal()), Auth: auth})
			},
		}
		for name, make := range made {
			require.NoError(t, ahead.Revoke(ctx, apitoken.BySubject("somebody"), name), "a change that the other has not heard of")
			i, err := make()
			require.NoError(t, err, name)
			for _, svc := range []*apitoken.Service{ahead, behind} {
				_, err = svc.Validate(ctx, apitoken.Bearer(i.Access.Reveal()))
				require.NoError(t, err, name)
			}
		}
	})
}
