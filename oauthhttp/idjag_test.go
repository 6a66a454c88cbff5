package oauthhttp_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/oauthhttp"
	"github.com/apitoken-go/apitoken/report"
	"github.com/apitoken-go/apitoken/store/memstore"
)

// company is a site that takes ID-JAGs of a company's login for its clients "agent" and "other".
func company(t testing.TB) (*site, *signer) {
	t.Helper()
	s, keys := trusting(t, func(a *oauthhttp.AssertionIssuer) {
		a.IDJAG = true
		a.Subject = func(_ context.Context, a oauthhttp.Assertion) (oauthhttp.Identity, error) {
			if a.Subject != "U019488227" {
				return oauthhttp.Identity{}, errors.New("nobody here is linked to this name")
			}
			return oauthhttp.Identity{Subject: "alice", Scopes: oauthhttp.All()}, nil
		}
	})
	s.client("agent", nil)
	s.client("other", nil)
	return s, keys.key.Load()
}

// grant is an ID-JAG as the draft's example has it. Claims and header members that are nil are left out.
func (s *site) grant(k *signer, head, change map[string]any) string {
	c := map[string]any{"sub": "U019488227", "client_id": "agent", "resource": testAudience, "scope": "orders:read chat.history", "team": nil,
		"auth_time": s.at.Now().Unix(), "amr": []string{"mfa"}}
	for name, v := range change {
		c[name] = v
	}
	if head == nil {
		head = map[string]any{"typ": "oauth-id-jag+jwt"}
	}
	return s.vouch(k, head, c)
}

// TestIDJAG: a company's login decides for which client, resource and scope one of its people is acted for.
func TestIDJAG(t *testing.T) {
	t.Parallel()
	s, k := company(t)
	ask := func(assertion string, pairs ...string) *answer {
		return s.token(merge(params("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion", assertion), pairs...), s.as("agent"))
	}
	one := s.grant(k, nil, nil)
	a := ask(one).ok()
	c := claims(t, a.text("access_token"))
	require.Equal(t, "alice", c["sub"], "the host has linked the name")
	require.Equal(t, "agent", c["client_id"])
	require.Equal(t, testAudience, c["aud"], "for the resource that it names")
	require.Equal(t, "orders:read", a.text("scope"), "of its scopes those that the client may have (RFC 6749 §3.3)")
	require.NotContains(t, a.body, "refresh_token")
	ask(one).refused(400, "invalid_grant", "an ID-JAG is good once")

	require.Equal(t, otherAPI, claims(t, ask(s.grant(k, nil, map[string]any{"resource": []string{testAudience, otherAPI}}), "resource", otherAPI).ok().text("access_token"))["aud"])
	require.Equal(t, testAudience, claims(t, ask(s.grant(k, nil, map[string]any{"resource": testAudience + "/"})).ok().text("access_token"))["aud"], "one resource (RFC 3986 §6.2.3)")
	require.Equal(t, "orders:read orders:write", ask(s.grant(k, nil, map[string]any{"scope": nil})).ok().text("scope"), "it leaves the scope to us")
	ask(s.grant(k, nil, nil), "scope", "orders:read").ok()
	ask(s.grant(k, nil, nil), "scope", "orders:write").refused(400, "invalid_scope", "more than it allows")
	ask(s.grant(k, nil, map[string]any{"scope": "chat.history"})).refused(400, "invalid_scope", "nothing of it is the client's")
	ask(s.grant(k, nil, nil), "resource", otherAPI).refused(400, "invalid_target", "another resource than it is for")
	ask(s.grant(k, nil, map[string]any{"resource": "https://x.example.com"})).refused(400, "invalid_target", "a resource that is not ours")

	for name, text := range map[string]string{
		"another client's":          s.grant(k, nil, map[string]any{"client_id": "other"}),
		"no client_id":              s.grant(k, nil, map[string]any{"client_id": nil}),
		"another kind of JWT":       s.grant(k, map[string]any{"typ": "JWT"}, nil),
		"no typ":                    s.grant(k, map[string]any{"typ": ""}, nil),
		"an access token":           s.grant(k, map[string]any{"typ": "at+jwt"}, nil),
		"no jti":                    s.grant(k, nil, map[string]any{"jti": nil}),
		"no iat":                    s.grant(k, nil, map[string]any{"iat": nil}),
		"the token endpoint as aud": s.grant(k, nil, map[string]any{"aud": testIssuer + "/token"}),
		"another server besides":    s.grant(k, nil, map[string]any{"aud": []string{testIssuer, "https://x.example.com"}}),
		"a broken scope":            s.grant(k, nil, map[string]any{"scope": `a"b`}),
		"a resource of no kind":     s.grant(k, nil, map[string]any{"resource": 7}),
		"somebody not linked":       s.grant(k, nil, map[string]any{"sub": "U1"}),
		"another key":               s.grant(newSigner(t), nil, nil),
	} {
		ask(text).refused(400, "invalid_grant", name)
	}

	body := params("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion", s.grant(k, nil, nil))
	s.token(body).refused(401, "invalid_client", "nobody authenticates")
	s.public("spa", nil)
	s.token(merge(params("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion", s.grant(k, nil, map[string]any{"client_id": "spa"})), "client_id", "spa")).
		refused(400, "unauthorized_client", "a public client proves nothing")

	m := s.get("/.well-known/oauth-authorization-server").ok().body
	require.Equal(t, []string{"urn:ietf:params:oauth:grant-profile:id-jag"}, listed(t, m, "authorization_grant_profiles_supported"))
	plain, keys := trusting(t, nil)
	require.NotContains(t, plain.get("/.well-known/oauth-authorization-server").ok().body, "authorization_grant_profiles_supported")
	plain.token(params("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion", plain.grant(keys.key.Load(), nil, nil)), plain.as("app")).
		refused(400, "invalid_grant", "an issuer that was not trusted with ID-JAGs")
}

func TestWhatContradictsAnIDJAGFails(t *testing.T) {
	t.Parallel()
	svc, err := apitoken.New(apitoken.Config{Issuer: testIssuer, Audience: testAudience, Store: memstore.New(), InsecureKeysInStore: true})
	require.NoError(t, err)
	t.Cleanup(func() { _ = svc.Close() })
	for name, change := range map[string]func(*oauthhttp.AssertionIssuer){
		"Client":     func(a *oauthhttp.AssertionIssuer) { a.Client = "ci" },
		"Reusable":   func(a *oauthhttp.AssertionIssuer) { a.Reusable = true },
		"itself":     func(a *oauthhttp.AssertionIssuer) { a.Issuer = testIssuer },
		"no Subject": func(a *oauthhttp.AssertionIssuer) { a.Subject = nil },
	} {
		a := oauthhttp.AssertionIssuer{Issuer: login, Keys: newSigner(t), IDJAG: true,
			Subject: func(context.Context, oauthhttp.Assertion) (oauthhttp.Identity, error) {
				return oauthhttp.Identity{}, nil
			}}
		change(&a)
		_, err := oauthhttp.New(svc, &oauthhttp.Options{Assertions: []oauthhttp.AssertionIssuer{a}})
		var wrong *apitoken.ConfigError
		require.ErrorAs(t, err, &wrong, name)
		require.Equal(t, "Assertions", wrong.Field, name)
	}
}

// TestAnAgentActsForAHuman: the token of an exchange names the human as its subject and the agent that acts, and so do the event of
// it and the report on the human's token.
func TestAnAgentActsForAHuman(t *testing.T) {
	t.Parallel()
	s, k := company(t)
	s.client("agent-runtime", nil)
	human := s.token(params("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion", s.grant(k, nil, nil)), s.as("agent")).ok().text("access_token")
	agent := s.token(own, s.as("agent-runtime")).ok().text("access_token")
	const access = "urn:ietf:params:oauth:token-type:access_token"
	token := s.token(params("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange", "subject_token", human, "subject_token_type", access,
		"actor_token", agent, "actor_token_type", access, "resource", otherAPI), s.as("other")).ok().text("access_token")
	c := claims(t, token)
	require.Equal(t, "alice", c["sub"])
	require.Equal(t, map[string]any{"sub": "agent-runtime"}, c["act"])

	found := false
	for e, err := range s.svc.Events(t.Context(), apitoken.EventQuery{Subject: "alice"}) {
		require.NoError(t, err)
		if e.Type == event.Exchanged && e.TokenID == c["jti"] {
			found = true
			require.Equal(t, "agent-runtime", e.Extra["actor"])
			require.Equal(t, "other", e.Client)
		}
	}
	require.True(t, found, "the audit trail shows both")

	r, err := report.BlastOf(t.Context(), s.svc, apitoken.NewSecret(human))
	require.NoError(t, err)
	var text strings.Builder
	for _, x := range r.Sessions {
		if x.Actor == "agent-runtime" {
			text.WriteString(x.Subject + " by " + x.Actor)
		}
	}
	require.Equal(t, "alice by agent-runtime", text.String(), "the report shows both")
}
