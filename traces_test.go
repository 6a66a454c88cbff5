package apitoken_test

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/store/memstore"
)

// refusals lists the refusals of one reason.
func refusals(t testing.TB, svc *apitoken.Service, reason string) (list []apitoken.Event) {
	t.Helper()
	for _, e := range events(t, svc, apitoken.EventQuery{Type: event.Refused}) {
		if e.Reason == reason {
			list = append(list, e)
		}
	}
	return list
}

// TestRefusedRefreshesAndTicketsAreNamed: who holds an authentic credential is a fact, whatever was refused.
func TestRefusedRefreshesAndTicketsAreNamed(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, func(c *apitoken.Config) {
		c.MayContinue = func(_ context.Context, g apitoken.Grant) error {
			if g.Subject == "fired" {
				return errors.New("has left")
			}
			return nil
		}
	})
	for _, id := range []string{"app", "other"} {
		_, _, err := svc.Clients.Create(ctx, apitoken.Client{ID: id, Name: id, Public: true, Scopes: apitoken.Scopes{"orders"},
			GrantTypes: []string{"authorization_code", "refresh_token"}, RedirectURIs: []string{"https://app.example.com/cb"}})
		require.NoError(t, err)
	}

	fired := issue(t, svc, apitoken.Request{Subject: "fired", Client: "app", Refresh: true})
	_, err := svc.Refresh(ctx, apitoken.RefreshRequest{Token: fired.Refresh.Reveal(), Auth: apitoken.ClientAuth{ID: "app"}})
	require.ErrorIs(t, err, apitoken.ErrInvalidGrant)
	list := refusals(t, svc, "refresh")
	require.Len(t, list, 1)
	require.Equal(t, [3]string{"fired", "app", fired.Token.Grant()}, [3]string{list[0].Subject, list[0].Client, list[0].Grant})
	require.Equal(t, "Config.MayContinue refused", list[0].Extra["why"])

	alice := issue(t, svc, apitoken.Request{Subject: "alice", Client: "app", Refresh: true})
	_, err = svc.Refresh(ctx, apitoken.RefreshRequest{Token: alice.Refresh.Reveal(), Auth: apitoken.ClientAuth{ID: "other"}})
	require.ErrorIs(t, err, apitoken.ErrInvalidGrant)
	list = refusals(t, svc, "refresh")[:1]
	require.Equal(t, [3]string{"alice", "app", alice.Token.Grant()}, [3]string{list[0].Subject, list[0].Client, list[0].Grant})
	require.Equal(t, "other", list[0].Extra["claimed"], "anybody can say that it is a public client")
	require.Equal(t, "another client's refresh token", list[0].Extra["why"])

	sum := sha256.Sum256([]byte(strings.Repeat("v", 43)))
	code, err := svc.Prepare(ctx, apitoken.Request{Subject: "alice", Client: "app", Refresh: true}, apitoken.Ticket{Lifetime: time.Minute,
		Challenge: base64.RawURLEncoding.EncodeToString(sum[:])})
	require.NoError(t, err)
	_, err = svc.Redeem(ctx, apitoken.Redemption{Ticket: code.Reveal(), Auth: apitoken.ClientAuth{ID: "app"}, Verifier: strings.Repeat("w", 43)})
	require.ErrorIs(t, err, apitoken.ErrInvalidGrant)
	list = refusals(t, svc, "redeem")
	require.Len(t, list, 1)
	require.Equal(t, [2]string{"alice", "app"}, [2]string{list[0].Subject, list[0].Client})
	require.Contains(t, list[0].Extra["why"], "RFC 7636")

	for n := range 1000 { // a stranger leaves no name and one line
		_, err = svc.Refresh(ctx, apitoken.RefreshRequest{Token: fmt.Sprint("junk", n)})
		require.Error(t, err)
	}
	for _, e := range refusals(t, svc, "refresh") {
		if e.Subject == "" {
			require.Equal(t, 1000, e.Count)
			require.Empty(t, e.Client+e.Grant+e.Extra["why"]+e.Extra["claimed"])
		}
	}
}

// TestRefusedClientsAndCallersAreNamed: what an authenticated client or caller may not have leaves an event that says so.
func TestRefusedClientsAndCallersAreNamed(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	_, secret, err := svc.Clients.Create(ctx, apitoken.Client{ID: "job", Name: "job", Scopes: apitoken.Scopes{"orders"}, GrantTypes: []string{"client_credentials"}})
	require.NoError(t, err)
	auth := apitoken.ClientAuth{ID: "job", Secret: secret}
	for n := range 1000 {
		_, err = svc.Issue(ctx, apitoken.Request{Auth: auth, Scopes: apitoken.Scopes{apitoken.Scope(fmt.Sprint("admin", n))}})
		require.ErrorIs(t, err, apitoken.ErrInvalidScope)
	}
	list := refusals(t, svc, "issue")
	require.Len(t, list, 1, "however many scopes it invents")
	require.Equal(t, 1000, list[0].Count)
	require.Equal(t, "job", list[0].Client)
	require.Contains(t, list[0].Extra["why"], `"admin0"`)

	alice := issue(t, svc, apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"orders"}, Refresh: true})
	_, err = svc.Exchange(ctx, apitoken.ExchangeRequest{Auth: auth, Token: apitoken.Bearer(alice.Access.Reveal())})
	require.ErrorIs(t, err, apitoken.ErrDenied)
	list = refusals(t, svc, "exchange")
	require.Len(t, list, 1)
	require.Equal(t, "job", list[0].Client)

	_, _, err = svc.APIKeys.For(alice.Token).Create(ctx, apitoken.APIKeyRequest{Scopes: apitoken.Scopes{"admin"}})
	require.ErrorIs(t, err, apitoken.ErrInvalidScope)
	list = refusals(t, svc, "apikey")
	require.Len(t, list, 1)
	require.Equal(t, [2]string{"alice", alice.Token.Grant()}, [2]string{list[0].Subject, list[0].Grant})
	require.Contains(t, list[0].Extra["why"], `"admin"`)

	require.ErrorIs(t, svc.Revoke(ctx, apitoken.ByGrant(alice.Token.Grant()).OwnedBy("mallory"), "x"), apitoken.ErrNotFound)
	list = refusals(t, svc, "revoke")
	require.Len(t, list, 1)
	require.Equal(t, [2]string{"mallory", alice.Token.Grant()}, [2]string{list[0].Subject, list[0].Grant})
	require.NotEmpty(t, list[0].Extra["why"])

	svc.Adapter().Refused(ctx, auth, "registration", "too many")
	list = refusals(t, svc, "registration")
	require.Len(t, list, 1)
	require.Equal(t, [2]string{"job", "too many"}, [2]string{list[0].Client, list[0].Extra["why"]})
	svc.Adapter().Refused(ctx, apitoken.ClientAuth{}, "nobody", "x")
	require.Empty(t, refusals(t, svc, "nobody"))
}

// TestStrangersTakeNoRoomOfTheKnown: anybody can say that it is a public client. However many do so, who proved who it is is named.
func TestStrangersTakeNoRoomOfTheKnown(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := serviceOn(t, memstore.New(), nil)
	_, secret, err := svc.Clients.Create(ctx, apitoken.Client{ID: "job", GrantTypes: []string{"client_credentials"}})
	require.NoError(t, err)
	for n := range 300 {
		id := fmt.Sprint("public", n)
		_, _, err := svc.Clients.Create(ctx, apitoken.Client{ID: id, Public: true, GrantTypes: []string{"refresh_token"}})
		require.NoError(t, err)
		svc.Adapter().Refused(ctx, apitoken.ClientAuth{ID: id}, "device", "too much")
	}
	svc.Adapter().Refused(ctx, apitoken.ClientAuth{ID: "job", Secret: secret}, "device", "too much")
	named, nameless, known := 0, 0, 0
	for _, e := range refusals(t, svc, "device") {
		switch {
		case e.Client == "job":
			known++
		case e.Extra["claimed"] != "":
			named++
		default:
			nameless += e.Count
		}
	}
	require.Equal(t, 1, known)
	require.Equal(t, 300, named+nameless, "all are counted")
	require.Less(t, named, 64)
}

// TestRevokingNothingKnownSaysSo: it is in force all the same, and its event tells.
func TestRevokingNothingKnownSaysSo(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	i := issue(t, svc, aliceSession)
	short := issue(t, svc, apitoken.Request{Subject: "alice"})
	for id, found := range map[string]string{"typo": "nothing", short.Token.Grant(): "no record", i.Token.Grant(): ""} {
		require.NoError(t, svc.Revoke(ctx, apitoken.ByGrant(id), "x"))
		list := events(t, svc, apitoken.EventQuery{Type: event.Revoked, Grant: id})
		require.Len(t, list, 1)
		require.Equal(t, found, list[0].Extra["found"], id)
	}
	require.ErrorIs(t, validate(svc, short.Access), apitoken.ErrRevoked, "a session without a refresh token has no record and ends")
}

// TestForeignTargetsAreNotNarrowed: no rule is acknowledged that refuses nothing.
func TestForeignTargetsAreNotNarrowed(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	foreign := apitoken.BySubject("bob").OfIssuer("https://idp.example.org")
	for _, target := range []apitoken.Target{foreign.HeldBy("app"), foreign.OwnedBy("bob"), apitoken.BySessions("bob").HeldBy("app").OfIssuer("https://idp.example.org"),
		apitoken.ByToken("x").OfIssuer("https://idp.example.org").OwnedBy("bob")} {
		require.ErrorIs(t, svc.Revoke(ctx, target, "x"), apitoken.ErrInvalidRequest, target.String())
	}
	require.Empty(t, events(t, svc, apitoken.EventQuery{Type: event.Revoked}))
	require.NoError(t, svc.Revoke(ctx, foreign, "x"))
	require.NoError(t, svc.Revoke(ctx, apitoken.BySubject("bob").OfIssuer(svc.Issuer()).HeldBy("app"), "x"), "our own issuer is no other")
}
