package report_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/report"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/memstore"
)

// backend is a client that exchanges tokens.
func backend(t testing.TB, svc *apitoken.Service, id string) apitoken.ClientAuth {
	t.Helper()
	_, secret, err := svc.Clients.Create(context.Background(), apitoken.Client{ID: id, Name: id, GrantTypes: []string{"urn:ietf:params:oauth:grant-type:token-exchange", "client_credentials"},
		Scopes: apitoken.Scopes{"orders", "users"}, MayImpersonate: true})
	require.NoError(t, err)
	return apitoken.ClientAuth{ID: id, Secret: secret}
}

func exchange(t testing.TB, ctx context.Context, svc *apitoken.Service, by apitoken.ClientAuth, token apitoken.Secret, actor apitoken.Secret, scopes ...apitoken.Scope) *apitoken.Issued {
	t.Helper()
	r := apitoken.ExchangeRequest{Auth: by, Token: apitoken.Bearer(token.Reveal()), Scopes: scopes}
	if !actor.IsZero() {
		r.Actor = apitoken.Bearer(actor.Reveal())
	}
	i, err := svc.Exchange(ctx, r)
	require.NoError(t, err)
	return i
}

func login(t testing.TB, ctx context.Context, svc *apitoken.Service, subject string) *apitoken.Issued {
	t.Helper()
	i, err := svc.Issue(ctx, apitoken.Request{Subject: subject, Scopes: apitoken.Scopes{"orders", "users:read", "billing:write"}, Refresh: true})
	require.NoError(t, err)
	return i
}

func TestBlastFollowsAStolenTokenToAllThatCameOfIt(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, memstore.New(), nil)
	shop, mail := backend(t, svc, "shop"), backend(t, svc, "mail")

	stolen := login(t, at("192.0.2.1"), svc, "alice")
	use(t, at("192.0.2.1"), svc, stolen.Access, "orders:read")
	next, err := svc.Refresh(at("198.51.100.7"), apitoken.RefreshRequest{Token: stolen.Refresh.Reveal()})
	require.NoError(t, err)
	use(t, at("198.51.100.7"), svc, next.Access, "orders:write")
	one := exchange(t, at("203.0.113.1"), svc, shop, next.Access, apitoken.Secret{})
	two := exchange(t, at("203.0.113.2"), svc, mail, one.Access, apitoken.Secret{}, "orders:read")
	use(t, at("203.0.113.3"), svc, two.Access, "orders:read")

	other := login(t, at("192.0.2.9"), svc, "alice") // another session of hers, and one of somebody else
	aside := exchange(t, ctx, svc, shop, other.Access, apitoken.Secret{})
	bob := login(t, ctx, svc, "bob")
	acting := exchange(t, ctx, svc, shop, bob.Access, next.Access) // bob's token, in the hands of who stole alice's
	_, err = svc.Validate(ctx, apitoken.Bearer(acting.Access.Reveal()))
	require.NoError(t, err)

	for name, token := range map[string]apitoken.Secret{"access": stolen.Access, "refresh": stolen.Refresh, "next access": next.Access, "next refresh": next.Refresh} {
		r, err := report.BlastOf(ctx, svc, token)
		require.NoError(t, err)
		require.Equal(t, apitoken.ByGrant(stolen.Token.Grant()), r.Target, "%s token: all of a session stand for it", name)
	}
	r, err := report.Blast(ctx, svc, apitoken.ByGrant(stolen.Token.Grant()))
	require.NoError(t, err)
	require.False(t, r.More)
	require.False(t, r.Gone)
	var ids []string
	for _, x := range r.Sessions {
		ids = append(ids, x.ID)
	}
	require.Equal(t, []string{stolen.Token.Grant(), one.Token.Grant(), two.Token.Grant(), acting.Token.Grant()}, ids)

	first := r.Sessions[0]
	require.Equal(t, "grant", first.Kind)
	require.Equal(t, "alice", first.Subject)
	require.Equal(t, "192.0.2.1", first.Opened.Address.String())
	require.Equal(t, "test/1", first.Opened.UserAgent)
	require.True(t, first.Live)
	require.Equal(t, []int{2, 1, 3}, []int{first.Tokens, first.Refreshes, first.Exchanges})
	require.Equal(t, "198.51.100.7", first.Requests[0].Address.String(), "the refresh came last")
	require.Equal(t, uint64(4), first.Usage.Count, "two requests, an exchange as the subject's token and one as the actor's")
	require.Equal(t, apitoken.Scopes{"orders:read", "orders:write"}, first.Usage.Scopes)
	require.Equal(t, apitoken.Scopes{"billing:write", "users:read"}, first.Unused(), "what it held and never used")
	require.ElementsMatch(t, []string{stolen.Token.Grant(), one.Token.Grant()}, r.Sessions[2].From)
	require.Equal(t, "mail", r.Sessions[2].Client)
	require.Equal(t, apitoken.Scopes{"orders:read"}, r.Sessions[2].Held)
	require.Equal(t, []string{"203.0.113.3"}, r.Sessions[2].Usage.Addresses[:1])
	require.Equal(t, "bob", r.Sessions[3].Subject)
	require.Equal(t, "alice", r.Sessions[3].Actor)
	require.Subset(t, r.Addresses(), []string{"192.0.2.1", "198.51.100.7", "203.0.113.1", "203.0.113.2", "203.0.113.3"})
	require.NotContains(t, r.Addresses(), "192.0.2.9", "of another session")
	require.Equal(t, apitoken.Scopes{"orders:read", "orders:write"}, r.Used())
	require.GreaterOrEqual(t, r.Uses(), uint64(5))

	late := exchange(t, ctx, svc, shop, next.Access, apitoken.Secret{}) // after the report was made
	require.NoError(t, r.Revoke(ctx, svc, "stolen laptop"))
	for name, x := range map[string]*apitoken.Issued{"the session": stolen, "its refreshed token": next, "an exchange": one, "an exchange of that": two,
		"what was exchanged with it as the actor": acting, "what came after the report": late} {
		_, err := svc.Validate(ctx, apitoken.Bearer(x.Access.Reveal()))
		require.ErrorIs(t, err, apitoken.ErrRevoked, name)
	}
	for name, x := range map[string]*apitoken.Issued{"another session": other, "what came of that": aside, "bob's own": bob} {
		_, err := svc.Validate(ctx, apitoken.Bearer(x.Access.Reveal()))
		require.NoError(t, err, name)
	}
	r, err = report.BlastOf(ctx, svc, stolen.Refresh)
	require.NoError(t, err, "a dead token can still be asked about")
	require.Equal(t, "stolen laptop", r.Sessions[0].Reason)
	require.False(t, r.Sessions[0].Live)
	require.Equal(t, 2, r.Sessions[0].Refused, "both of its access tokens were tried")
	require.Len(t, r.Sessions, 5)
}

func TestBlastOfAnAPIKeyAndOfOneToken(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, memstore.New(), nil)
	shop := backend(t, svc, "shop")
	k, secret, err := svc.APIKeys.Create(at("192.0.2.5"), apitoken.APIKeyRequest{Subject: "carol", Scopes: apitoken.Scopes{"orders"}})
	require.NoError(t, err)
	use(t, at("192.0.2.6"), svc, secret, "orders:read")
	made := exchange(t, ctx, svc, shop, secret, apitoken.Secret{})
	r, err := report.BlastOf(ctx, svc, secret)
	require.NoError(t, err)
	require.Len(t, r.Sessions, 2)
	key := r.Sessions[0]
	require.Equal(t, "apikey", key.Kind)
	require.Equal(t, "carol", key.Subject)
	require.True(t, key.Live)
	require.Equal(t, "192.0.2.5", key.Opened.Address.String())
	require.Equal(t, apitoken.Scopes{"orders:read"}, key.Usage.Scopes)
	require.Equal(t, made.Token.Grant(), r.Sessions[1].ID)
	require.NoError(t, r.Revoke(ctx, svc, "found in a repository"))
	for _, x := range []apitoken.Secret{secret, made.Access} {
		_, err = svc.Validate(ctx, apitoken.Bearer(x.Reveal()))
		require.ErrorIs(t, err, apitoken.ErrRevoked)
	}
	r, err = report.Blast(ctx, svc, apitoken.ByToken(k.ID))
	require.NoError(t, err)
	require.False(t, r.Sessions[0].Live)

	// One access token: what came of it, and not what came of its session.
	i := login(t, ctx, svc, "dave")
	next, err := svc.Refresh(ctx, apitoken.RefreshRequest{Token: i.Refresh.Reveal()})
	require.NoError(t, err)
	of := exchange(t, ctx, svc, shop, i.Access, apitoken.Secret{})
	exchange(t, ctx, svc, shop, next.Access, apitoken.Secret{})
	r, err = report.Blast(ctx, svc, apitoken.ByToken(i.Token.ID()))
	require.NoError(t, err)
	require.Len(t, r.Sessions, 2)
	require.Equal(t, "token", r.Sessions[0].Kind)
	require.Equal(t, of.Token.Grant(), r.Sessions[1].ID)
	require.NoError(t, r.Revoke(ctx, svc, "x"))
	_, err = svc.Validate(ctx, apitoken.Bearer(of.Access.Reveal()))
	require.ErrorIs(t, err, apitoken.ErrRevoked)
	_, err = svc.Validate(ctx, apitoken.Bearer(next.Access.Reveal()))
	require.NoError(t, err)
}

func TestWhatBlastRefuses(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, memstore.New(), nil)
	i := login(t, ctx, svc, "alice")
	for target, want := range map[apitoken.Target]error{
		{}:                          apitoken.ErrInvalidRequest,
		apitoken.BySubject("alice"): apitoken.ErrInvalidRequest,
		apitoken.Everything():       apitoken.ErrInvalidRequest,
		apitoken.ByGrant(""):        apitoken.ErrInvalidRequest,
		apitoken.ByGrant(i.Token.Grant()).OwnedBy("alice"):              apitoken.ErrInvalidRequest,
		apitoken.ByGrant(i.Token.Grant()).IssuedBefore(time.Unix(1, 0)): apitoken.ErrInvalidRequest,
		apitoken.ByGrant("01j9none"):                                    apitoken.ErrNotFound,
		apitoken.ByToken("a;b=c"):                                       apitoken.ErrInvalidRequest,
		apitoken.ByToken("01j9none"):                                    apitoken.ErrNotFound,
	} {
		_, err := report.Blast(ctx, svc, target)
		require.ErrorIs(t, err, want, "%q", target)
	}
	_, err := report.BlastOf(ctx, svc, apitoken.NewSecret("junk"))
	require.ErrorIs(t, err, apitoken.ErrNotFound)
	require.NoError(t, svc.Close())
}

func TestBlastIsBounded(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, memstore.New(), func(c *apitoken.Config) { c.Algorithm = "EdDSA" })
	shop := backend(t, svc, "shop")
	i := login(t, ctx, svc, "alice")
	for range 1010 {
		exchange(t, ctx, svc, shop, i.Access, apitoken.Secret{}, "orders:read")
	}
	r, err := report.Blast(ctx, svc, apitoken.ByGrant(i.Token.Grant()))
	require.NoError(t, err)
	require.Len(t, r.Sessions, 1000)
	require.True(t, r.More)
	require.Len(t, r.Sessions[0].Requests, 1)
}

func TestBlastSaysWhenTheBeginningIsNoLongerKept(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	st := memstore.New()
	clk := &clock{}
	clk.Advance(-2 * time.Hour) // so that the store's own clock is past what is to go
	svc := service(t, st, func(c *apitoken.Config) { c.Now, c.KeepEvents = clk.Now, time.Hour })
	i := login(t, at("192.0.2.1"), svc, "alice")
	x := exchange(t, ctx, svc, backend(t, svc, "shop"), i.Access, apitoken.Secret{})
	_, err := st.Purge(ctx, store.KindEvent, time.Now().UnixMilli(), 1000)
	require.NoError(t, err)
	late := exchange(t, ctx, svc, backend(t, svc, "mail"), i.Access, apitoken.Secret{})
	r, err := report.Blast(ctx, svc, apitoken.ByGrant(i.Token.Grant()))
	require.NoError(t, err)
	require.True(t, r.Gone)
	require.Equal(t, "alice", r.Sessions[0].Subject, "its record is still there")
	require.Equal(t, i.Token.Scopes(), r.Sessions[0].Held)
	require.Len(t, r.Sessions, 2)
	require.Equal(t, late.Token.Grant(), r.Sessions[1].ID)
	require.NoError(t, r.Revoke(ctx, svc, "x"))
	_, err = svc.Validate(ctx, apitoken.Bearer(x.Access.Reveal()))
	require.ErrorIs(t, err, apitoken.ErrRevoked, "the rule ends also what is not listed")
}

// TestAHugeExchangeIsStillFound: an event that is too large for the log is cut, and not its chain.
func TestAHugeExchangeIsStillFound(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, memstore.New(), func(c *apitoken.Config) { c.Validation.MaxTokenBytes = 64 << 10 })
	var scopes apitoken.Scopes
	for n := range 200 {
		scopes = append(scopes, apitoken.Scope(fmt.Sprintf("orders:%0100d", n)))
	}
	shop := backend(t, svc, "shop")
	i, err := svc.Issue(ctx, apitoken.Request{Subject: "alice", Scopes: scopes})
	require.NoError(t, err)
	x := exchange(t, ctx, svc, shop, i.Access, apitoken.Secret{})
	r, err := report.Blast(ctx, svc, apitoken.ByGrant(i.Token.Grant()))
	require.NoError(t, err)
	require.Len(t, r.Sessions, 2)
	require.Equal(t, x.Token.Grant(), r.Sessions[1].ID)
}
