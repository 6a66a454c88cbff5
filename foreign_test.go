package apitoken_test

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/export"
	"github.com/apitoken-go/apitoken/report"
)

const foreignIssuer = "https://partner.example.org"

// partners returns a service that trusts another, which issues tokens for the scope orders, and both stores' services.
func partners(t *testing.T) (ours, theirs *apitoken.Service) {
	t.Helper()
	theirs = service(t, func(c *apitoken.Config) { c.Issuer = foreignIssuer })
	ours = service(t, func(c *apitoken.Config) {
		c.Trust = []apitoken.Trusted{{Issuer: foreignIssuer, Keys: theirs.SigningKeys, InsecureNoRevocations: true, Scopes: apitoken.Scopes{"orders"}}}
	})
	return ours, theirs
}

// TestEventsTellForeignPrincipalsFromOurs: a principal is issuer and subject together, in every form of an event.
func TestEventsTellForeignPrincipalsFromOurs(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	ours, theirs := partners(t)
	bob := issue(t, ours, apitoken.Request{Subject: "bob", Scopes: apitoken.Scopes{"orders"}, Refresh: true})
	foreign := issue(t, theirs, apitoken.Request{Subject: "bob", Scopes: apitoken.Scopes{"orders"}})
	token, err := ours.Validate(ctx, apitoken.Bearer(foreign.Access.Reveal()))
	require.NoError(t, err)
	asForeign := apitoken.NewContext(ctx, token)

	// As an actor.
	require.NoError(t, ours.Revoke(asForeign, apitoken.ByGrant(bob.Token.Grant()), "by the namesake"))
	list := events(t, ours, apitoken.EventQuery{Type: event.Revoked})
	require.Len(t, list, 1)
	require.Equal(t, [4]string{"bob", "", "bob", foreignIssuer}, [4]string{list[0].Subject, list[0].Issuer, list[0].Actor, list[0].ActorIssuer})
	require.Contains(t, explained(t, ours, bob.Access), "by bob of "+foreignIssuer+": by the namesake")

	// As a subject: of a refusal by the validator, by an adapter, by an exchange, and of a revocation.
	_, err = apitoken.Authorize(ctx, ours, apitoken.Bearer(foreign.Access.Reveal()), apitoken.AllOf("admin"))
	require.ErrorIs(t, err, apitoken.ErrInsufficientScope)
	ours.Adapter().Refused(asForeign, apitoken.ClientAuth{}, "adapter", "too many")
	_, secret, err := ours.Clients.Create(ctx, apitoken.Client{ID: "job", Name: "job", Scopes: apitoken.Scopes{"orders"}, GrantTypes: []string{"urn:ietf:params:oauth:grant-type:token-exchange"}, MayImpersonate: true})
	require.NoError(t, err)
	_, err = ours.Exchange(ctx, apitoken.ExchangeRequest{Auth: apitoken.ClientAuth{ID: "job", Secret: secret}, Token: apitoken.Bearer(foreign.Access.Reveal())})
	require.Error(t, err)
	require.NoError(t, ours.Revoke(ctx, apitoken.BySubject("bob").OfIssuer(foreignIssuer), "left the partner"))
	require.NoError(t, ours.Revoke(ctx, apitoken.ByToken(foreign.Token.ID()).OfIssuer(foreignIssuer), "lost"))
	require.NoError(t, ours.Alert(ctx, apitoken.Event{Reason: "seen", Target: apitoken.BySubject("bob").OfIssuer(foreignIssuer)}))
	require.NoError(t, ours.Alert(ctx, apitoken.Event{Reason: "seen", Subject: "bob", Issuer: ours.Issuer()}), "our own issuer is no other")

	// Whoever asks for all about our bob gets nothing of theirs, and the other way round.
	var reasons []string
	for _, e := range events(t, ours, apitoken.EventQuery{Subject: "bob", OldestFirst: true}) {
		require.Empty(t, e.Issuer)
		reasons = append(reasons, string(e.Type)+" "+e.Reason)
	}
	require.Equal(t, []string{"token.issued ", "token.revoked by the namesake", "alert seen"}, reasons)
	reasons = nil
	for _, e := range events(t, ours, apitoken.EventQuery{Subject: "bob", Issuer: foreignIssuer}) {
		require.Equal(t, [2]string{"bob", foreignIssuer}, [2]string{e.Subject, e.Issuer})
		reasons = append(reasons, string(e.Type)+" "+e.Reason)
	}
	require.ElementsMatch(t, []string{"token.refused scope", "token.refused adapter", "token.refused exchange", "token.revoked left the partner", "alert seen"}, reasons)
	byToken := events(t, ours, apitoken.EventQuery{TokenID: foreign.Token.ID(), Issuer: foreignIssuer, Type: event.Revoked})
	require.Len(t, byToken, 1)
	require.Equal(t, foreignIssuer, byToken[0].Issuer)
	require.Empty(t, events(t, ours, apitoken.EventQuery{TokenID: foreign.Token.ID()}), "a jti of theirs may equal one of ours")
	_, err = report.Blast(ctx, ours, apitoken.ByToken(foreign.Token.ID()))
	require.ErrorIs(t, err, apitoken.ErrNotFound, "nothing of theirs stands in a report of ours")
	require.Empty(t, events(t, ours, apitoken.EventQuery{Subject: apitoken.EventName(foreignIssuer, "bob")}), "no name of ours reaches theirs")
	for _, err := range ours.Events(ctx, apitoken.EventQuery{Issuer: foreignIssuer}) {
		require.ErrorIs(t, err, apitoken.ErrInvalidRequest)
	}

	// The stored form is what encoding/json writes, and a log shows both issuers.
	for _, e := range append(list, byToken...) {
		doc, err := json.Marshal(e)
		require.NoError(t, err)
		var back apitoken.Event
		require.NoError(t, json.Unmarshal(doc, &back))
		require.Equal(t, e, back)
		var out bytes.Buffer
		require.NoError(t, export.NewSlogAuditor(slog.New(slog.NewJSONHandler(&out, nil))).Audit(ctx, e))
		require.Contains(t, out.String(), foreignIssuer)
	}
}

// TestAForeignTokenProvesNoOwner: what a partner calls its tokens and subjects gives nobody a hold on ours of the same names.
func TestAForeignTokenProvesNoOwner(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	alice := issue(t, svc, apitoken.Request{Subject: "alice"})
	require.NoError(t, svc.Alert(ctx, apitoken.Event{Reason: "seen", Subject: "bob", Issuer: foreignIssuer, TokenID: "their-jti"}))
	require.ErrorIs(t, svc.Revoke(ctx, apitoken.ByToken("their-jti").OwnedBy("bob"), "x"), apitoken.ErrNotFound)
	require.NoError(t, svc.Revoke(ctx, apitoken.ByToken(alice.Token.ID()).OwnedBy("alice"), "x"))
}

// TestAForeignActorIsNoneOfOurs: an act claim is what the token's issuer says. That it names one of our principals proves nothing.
func TestAForeignActorIsNoneOfOurs(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	for issuer, want := range map[string]string{"": "", svc.Issuer(): "", foreignIssuer: foreignIssuer} {
		token, err := apitoken.NewToken(apitoken.TokenSpec{Subject: "bob", Issuer: issuer, Actors: []string{"root"}})
		require.NoError(t, err)
		require.NoError(t, svc.Revoke(apitoken.NewContext(ctx, token), apitoken.BySubject("x"), issuer))
		list := events(t, svc, apitoken.EventQuery{Type: event.Revoked})
		require.Equal(t, [2]string{"root", want}, [2]string{list[0].Actor, list[0].ActorIssuer})
	}
}

// TestARuleKeepsTheIssuerOfItsActor: Explain tells by whom a token was revoked, after a restart too.
func TestARuleKeepsTheIssuerOfItsActor(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	alice := issue(t, svc, aliceSession)
	token, err := apitoken.NewToken(apitoken.TokenSpec{Subject: "bob", Issuer: foreignIssuer})
	require.NoError(t, err)
	require.NoError(t, svc.Revoke(apitoken.NewContext(ctx, token), apitoken.ByGrant(alice.Token.Grant()), "odd"))
	require.Contains(t, explained(t, svc, alice.Access), "by bob of "+foreignIssuer+": odd")
}

// explained is what Explain says of the step that refused.
func explained(t testing.TB, svc *apitoken.Service, token apitoken.Secret) string {
	t.Helper()
	x := svc.Explain(context.Background(), apitoken.Bearer(token.Reveal()), apitoken.Requirement{})
	require.Error(t, x.Err)
	require.NotEmpty(t, x.Steps)
	return x.Steps[len(x.Steps)-1].Detail
}
