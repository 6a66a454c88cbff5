package apitoken_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/store/memstore"
)

// namePolicy holds names and whether anybody may have them: what a person can read is a name in any script, and what a person
// cannot see is none. Names are compared byte for byte: the two forms of é are two names.
var namePolicy = map[string]bool{
	"alice": true, "alice@example.com": true, "auth0|5f7c": true, "a b": true, "Łukasz 王": true, "O'Neil": true, `back\slash "quoted"`: true,
	"می\u200cخواهم": true, "ශ්\u200dරී": true, "👩\u200d💻": true, "❤\ufe0f": true, "é": true, "e\u0301": true, "a\u00a0b": true, "\ufffd": true,
	strings.Repeat("n", 255): true, strings.Repeat("n", 256): false, "": false,
	"a\x00b": false, "a\x1bb": false, "a\x7fb": false, "a\u0085b": false, "a\nb": false, "a\tb": false, "a\r": false,
	"\u202ealice": false, "a\u2066b": false, "a\u200fb": false, "a\u061cb": false, "a\u2028b": false, "a\u2029b": false,
	"a\u200bb": false, "\ufeffalice": false, "a\u00adb": false, "a\ue000b": false, "a\U000e0041b": false,
}

// TestOneNamePolicyAtBothEnds: what may not be issued is not taken from a signed token either, ours or a partner's, and the other
// way round.
func TestOneNamePolicyAtBothEnds(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	set, err := json.Marshal(map[string]any{"keys": []any{jwkOf(t, &key.PublicKey, "ec", "ES256")}})
	require.NoError(t, err)
	sets := map[string]json.RawMessage{testIssuer: set, otherIssuer: set}
	val := corpusValidator(t, sets, apitoken.Validation{})

	for name, good := range namePolicy {
		_, err := svc.Issue(ctx, apitoken.Request{Subject: name})
		require.Equal(t, good || name == "", err == nil || name == "", "issued for %q: %v", name, err)
		if name != "" {
			_, _, err = svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: name})
			require.Equal(t, good, err == nil, "an API key for %q: %v", name, err)
		}

		doc, err := json.Marshal(name)
		require.NoError(t, err)
		text := string(doc)
		for _, issuer := range []string{testIssuer, otherIssuer} {
			for claim, value := range map[string]string{"sub": text, "jti": text, "client_id": text, "act": `{"sub":` + text + `}`} {
				if claim == "act" && (name == "" || len(name) > 255) {
					continue // only the names of who acts: see the corpus of tokens for their shape
				}
				token := jwt(goodHeader, claimsWith("iss", `"`+issuer+`"`, claim, value), ecSign(key))
				got, err := val.Validate(ctx, apitoken.Bearer(token))
				require.Equal(t, good, err == nil, "%s %q of %s: %v", claim, name, issuer, err)
				switch {
				case !good:
					require.ErrorIs(t, err, apitoken.ErrInvalidToken)
				case claim == "sub":
					require.Equal(t, name, got.Subject(), "as it was signed")
				case claim == "act":
					require.Equal(t, []string{name}, got.Actors())
				}
			}
		}
		if len(name) > 255 || name == "" {
			continue
		}
		for claim, value := range map[string]string{"sid": text, "roles": `[` + text + `]`} { // ours are names, a partner's are not read
			token := jwt(goodHeader, claimsWith(claim, value), ecSign(key))
			_, err := val.Validate(ctx, apitoken.Bearer(token))
			require.Equal(t, good, err == nil, "%s %q: %v", claim, name, err)
			token = jwt(goodHeader, claimsWith("iss", `"`+otherIssuer+`"`, claim, value), ecSign(key))
			require.NoError(t, validate(val, apitoken.NewSecret(token)), "%s %q", claim, name)
		}
	}
}

// TestTwoFormsOfANameAreTwoPrincipals: nothing is normalized, on no way.
func TestTwoFormsOfANameAreTwoPrincipals(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	composed, combined := issue(t, svc, apitoken.Request{Subject: "é"}), issue(t, svc, apitoken.Request{Subject: "e\u0301"})
	require.NoError(t, svc.Revoke(ctx, apitoken.BySubject("é"), "left"))
	require.ErrorIs(t, validate(svc, composed.Access), apitoken.ErrRevoked)
	require.NoError(t, validate(svc, combined.Access))
	require.Len(t, events(t, svc, apitoken.EventQuery{Subject: "é"}), 3, "issued, revoked, refused")
	require.Len(t, events(t, svc, apitoken.EventQuery{Subject: "e\u0301"}), 1)
}

// TestNoClientGoesByASubjectsName, and no subject by a client's: the tokens of one would pass for the other's.
func TestNoClientGoesByASubjectsName(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	now := &clock{}
	svc := serviceOn(t, memstore.NewWithClock(now.Now), func(c *apitoken.Config) { c.Now = now.Now })
	client := func(id string) apitoken.Client {
		return apitoken.Client{ID: id, Name: id, Scopes: apitoken.Scopes{"orders"}, GrantTypes: []string{"client_credentials"}}
	}
	made := map[string]func(id string) error{
		"Create": func(id string) error { _, _, err := svc.Clients.Create(ctx, client(id)); return err },
		"Register": func(id string) error {
			_, _, _, err := svc.Clients.Register(ctx, client(id))
			return err
		},
		"Declare": func(id string) error {
			return svc.Clients.Declare(ctx, client(id), apitoken.NewSecret(strings.Repeat("s", 40)+id))
		},
	}
	self := issue(t, svc, apitoken.Request{Subject: "https://app.example.com/me", Refresh: true})
	_, err := svc.Clients.Adopt(ctx, apitoken.Client{ID: self.Token.Subject(), Public: true, GrantTypes: []string{"refresh_token"}}, 10)
	require.ErrorIs(t, err, apitoken.ErrInvalidRequest, "nor does one that describes itself")

	for call, make := range made {
		session, key, ticket, token := "session-"+call, "key-"+call, "ticket-"+call, "token-"+call
		alice := issue(t, svc, apitoken.Request{Subject: session, Refresh: true})
		x, _, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: key})
		require.NoError(t, err)
		_, err = svc.Prepare(ctx, apitoken.Request{Subject: ticket}, apitoken.Ticket{Lifetime: time.Minute})
		require.NoError(t, err)
		short := issue(t, svc, apitoken.Request{Subject: token})
		for id, has := range map[string]string{session: "a session", key: "an API key", ticket: "a ticket", token: "an access token"} {
			err := make(id)
			require.ErrorIs(t, err, apitoken.ErrInvalidRequest, "%s %s", call, id)
			require.Contains(t, fmt.Sprintf("%+v", err), has)
			_, err = svc.Clients.Get(ctx, id)
			require.ErrorIs(t, err, apitoken.ErrNotFound)
		}

		// Who is gone has left the name.
		require.NoError(t, svc.Revoke(ctx, apitoken.ByGrant(alice.Token.Grant()), "left"))
		require.NoError(t, svc.APIKeys.Revoke(ctx, x.ID, "left"))
		require.NoError(t, svc.Revoke(ctx, apitoken.BySubject(ticket), "left"))
		require.NoError(t, svc.Revoke(ctx, apitoken.ByToken(short.Token.ID()), "left"))
		for _, id := range []string{session, key, ticket, token} {
			require.NoError(t, make(id), "%s %s", call, id)
			_, err = svc.Issue(ctx, apitoken.Request{Subject: id})
			require.ErrorIs(t, err, apitoken.ErrInvalidRequest)
			_, err = svc.Prepare(ctx, apitoken.Request{Subject: id}, apitoken.Ticket{Lifetime: time.Minute})
			require.ErrorIs(t, err, apitoken.ErrInvalidRequest)
			_, _, err = svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: id})
			require.ErrorIs(t, err, apitoken.ErrInvalidRequest)
		}
	}

	issue(t, svc, apitoken.Request{Subject: "expires", Refresh: true})
	require.Error(t, made["Create"]("expires"))
	issue(t, svc, apitoken.Request{Subject: "brief"})
	require.Error(t, made["Create"]("brief"))
	now.Advance(90 * time.Minute) // over Lifetimes.MaxAccess
	require.NoError(t, made["Create"]("brief"), "a token that has expired holds no name")
	now.Advance(400 * 24 * time.Hour)
	require.NoError(t, made["Create"]("expires"), "a session that has ended holds no name")
	require.NoError(t, made["Declare"]("session-Declare"), "a client that is there is declared again as before")
}
