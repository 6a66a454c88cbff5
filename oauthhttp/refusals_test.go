package oauthhttp_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/oauthhttp"
)

// refusal is what a request leaves in the log: a refusal of reason, with the names as in the event and why a part of the limits.
type refusal struct {
	ask             func(s *site) *answer
	reason          string
	subject, client string
	claimed, why    string
}

const (
	answersAnybody = "it answers whoever asks, and refuses nobody"
	asksTheHost    = "only the host's own pages call it, and what a user may not give is recorded by Service.Prepare"
	asksStrangers  = "a browser brings no credential of the client there: what the user may give is judged by Prepare, and the code by the token endpoint"
)

var clientsOwn = params("grant_type", "client_credentials")

// registered registers a client and puts m in place of its metadata.
func registered(s *site, m metadata) *answer {
	a := s.register(metadata{"redirect_uris": []string{callback}}, bearer(s.secrets["initial"])).ok()
	s.secrets["registered"] = a.text("client_id")
	if id, ok := m["client_id"]; ok && id == "" {
		m["client_id"] = a.text("client_id")
	}
	return s.do(jsonRequest(s.t, "PUT", "/register/"+a.text("client_id"), m), bearer(a.text("registration_access_token")))
}

// signedIn is the context of a request that alice's token came with.
func signedIn(s *site) context.Context {
	i, err := s.svc.Issue(context.Background(), apitoken.Request{Subject: "alice"})
	require.NoError(s.t, err)
	return apitoken.NewContext(context.Background(), i.Token)
}

// deny ends a client's authorization request, for alice or for somebody who is not signed in.
func deny(s *site, client string, known bool, reason string) *answer {
	ctx := context.Background()
	if known {
		ctx = signedIn(s)
	}
	a, err := s.h.Authorization(ctx, authorization(client).Encode())
	require.NoError(s.t, err)
	w := httptest.NewRecorder()
	s.h.Deny(w, httptest.NewRequest(http.MethodPost, testIssuer+"/login", nil).WithContext(ctx), a, reason)
	return &answer{Response: w.Result(), t: s.t, raw: w.Body.Bytes()}
}

// refusalRows has rows for each endpoint: what a refusal leaves there, by what is refused, or why it leaves nothing.
var refusalRows = map[string]any{
	"Approve": asksTheHost, "ApproveDevice": asksTheHost, "Authorize": asksStrangers, "JWKS": answersAnybody, "Metadata": answersAnybody, "OpenAPI": answersAnybody,

	"Token": map[string]refusal{
		"a grant type that is not the client's": {reason: "grant_type", client: "narrow", why: "may not use this", ask: func(s *site) *answer {
			return s.token(params("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"), s.as("narrow"))
		}},
		"a grant type that nobody knows": {reason: "grant_type", client: "narrow", why: "not supported", ask: func(s *site) *answer {
			return s.token(params("grant_type", "password"), s.as("narrow"))
		}},
		"too wide a scope": {reason: "issue", client: "narrow", why: "orders:write", ask: func(s *site) *answer {
			return s.token(merge(clientsOwn, "scope", "orders:write"), s.as("narrow"))
		}},
		"a malformed scope": {reason: "token", client: "narrow", why: "is no scope", ask: func(s *site) *answer {
			return s.token(merge(clientsOwn, "scope", "a::b"), s.as("narrow"))
		}},
		"a bad proof": {reason: "token", client: "narrow", ask: func(s *site) *answer {
			return s.token(clientsOwn, s.as("narrow"), header("DPoP", "junk"))
		}},
		"no proof where one is needed": {reason: "token", client: "bound", ask: func(s *site) *answer {
			return s.token(clientsOwn, s.as("bound"))
		}},
		"a junk refresh token": {reason: "refresh", client: "wide", ask: func(s *site) *answer {
			return s.token(params("grant_type", "refresh_token", "refresh_token", "junk"), s.as("wide"))
		}},
		"a junk code": {reason: "redeem", client: "wide", ask: func(s *site) *answer {
			return s.token(redemption("junk"), s.as("wide"))
		}},
		"a wrong verifier": {reason: "redeem", subject: "alice", client: "wide", why: "RFC 7636", ask: func(s *site) *answer {
			return s.token(redemption(s.code("wide"), "code_verifier", strings.Repeat("w", 43)), s.as("wide"))
		}},
		"a public client with another's code": {reason: "redeem", subject: "alice", client: "wide", claimed: "pub", ask: func(s *site) *answer {
			return s.token(redemption(s.code("wide"), "client_id", "pub"))
		}},
		"a malformed exchange": {reason: "token", client: "wide", why: "subject_token", ask: func(s *site) *answer {
			return s.token(params("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"), s.as("wide"))
		}},
		"an unknown device code": {reason: "token", client: "wide", ask: func(s *site) *answer {
			return s.token(params("grant_type", "urn:ietf:params:oauth:grant-type:device_code", "device_code", "junk"), s.as("wide"))
		}},
	},
	"Pushed": map[string]refusal{
		"an unregistered redirect URI": {reason: "authorize", client: "wide", ask: func(s *site) *answer {
			return s.post("/par", authorization("wide", "redirect_uri", "https://evil.example.com/"), s.as("wide"))
		}},
		"a request_uri": {reason: "authorize", client: "wide", why: "RFC 9126", ask: func(s *site) *answer {
			return s.post("/par", authorization("wide", "request_uri", "urn:x"), s.as("wide"))
		}},
		"a bad proof": {reason: "authorize", client: "wide", ask: func(s *site) *answer {
			return s.post("/par", authorization("wide"), s.as("wide"), header("DPoP", "junk"))
		}},
		"a client without the grant": {reason: "authorize", client: "narrow", ask: func(s *site) *answer {
			return s.post("/par", authorization("narrow"), s.as("narrow"))
		}},
	},
	"DeviceAuthorization": map[string]refusal{
		"a client without the grant": {reason: "device", client: "narrow", ask: func(s *site) *answer {
			return s.post("/device_authorization", params("scope", "orders:read"), s.as("narrow"))
		}},
		"a malformed scope": {reason: "device", client: "wide", ask: func(s *site) *answer {
			return s.post("/device_authorization", params("scope", "a::b"), s.as("wide"))
		}},
		"a resource that is nobody's": {reason: "device", client: "wide", ask: func(s *site) *answer {
			return s.post("/device_authorization", params("resource", "https://x.example.com"), s.as("wide"))
		}},
		"a public client": {reason: "device", claimed: "pub", ask: func(s *site) *answer {
			return s.post("/device_authorization", params("client_id", "pub", "scope", "a::b"))
		}},
	},
	"Deny": map[string]refusal{
		"a user who says no": {reason: "authorize", subject: "alice", client: "first-party", claimed: "wide", why: "access_denied", ask: func(s *site) *answer {
			return deny(s, "wide", true, "")
		}},
		"a user who is not signed in": {reason: "authorize", claimed: "pub", why: "login_required", ask: func(s *site) *answer {
			return deny(s, "pub", false, "login_required")
		}},
	},
	"DenyDevice": map[string]refusal{
		"a user who says no": {reason: "device", subject: "alice", client: "first-party", claimed: "wide", why: "access_denied", ask: func(s *site) *answer {
			a := s.post("/device_authorization", params("scope", "orders:read"), s.as("wide")).ok()
			d, err := s.h.Device(s.t.Context(), a.text("user_code"))
			require.NoError(s.t, err)
			require.NoError(s.t, s.h.DenyDevice(signedIn(s), d))
			require.Error(s.t, s.h.DenyDevice(signedIn(s), d), "somebody has decided already, which is no refusal")
			return a
		}},
	},
	"Introspection": map[string]refusal{
		"another's token": {reason: "introspect", client: "narrow", why: "neither the client's nor for it", ask: func(s *site) *answer {
			i, err := s.svc.Issue(context.Background(), apitoken.Request{Subject: "alice"})
			require.NoError(s.t, err)
			a := s.post("/introspect", params("token", i.Access.Reveal()), s.as("narrow"))
			require.Equal(s.t, false, a.ok().body["active"])
			return a
		}},
		"a public client": {reason: "introspect", claimed: "pub", ask: func(s *site) *answer {
			return s.post("/introspect", params("client_id", "pub", "token", "x"))
		}},
	},
	"Revocation": map[string]refusal{
		"another's token": {reason: "revoke", client: "narrow", ask: func(s *site) *answer {
			i, err := s.svc.Issue(context.Background(), apitoken.Request{Subject: "alice"})
			require.NoError(s.t, err)
			return s.post("/revoke", params("token", i.Access.Reveal()), s.as("narrow")).ok()
		}},
		"no token": {reason: "revoke", client: "narrow", why: "missing", ask: func(s *site) *answer {
			return s.post("/revoke", params(), s.as("narrow"))
		}},
	},
	"Register": map[string]refusal{
		"too wide a scope": {reason: "registration", subject: "ops", why: "scopes", ask: func(s *site) *answer {
			return s.register(metadata{"redirect_uris": []string{callback}, "scope": "admin"}, bearer(s.secrets["initial"]))
		}},
		"a token that may not": {reason: "scope", subject: "alice", ask: func(s *site) *answer {
			_, key, err := s.svc.APIKeys.Create(context.Background(), apitoken.APIKeyRequest{Subject: "alice"})
			require.NoError(s.t, err)
			return s.register(metadata{"redirect_uris": []string{callback}}, bearer(key.Reveal()))
		}},
		"an update that asks for too much": {reason: "registration", client: "registered", why: "scopes", ask: func(s *site) *answer {
			return registered(s, metadata{"client_id": "", "redirect_uris": []string{callback}, "scope": "admin"})
		}},
		"an update to a bad redirect URI": {reason: "registration", client: "registered", ask: func(s *site) *answer {
			return registered(s, metadata{"client_id": "", "redirect_uris": []string{"javascript:x"}})
		}},
		"an update of another client": {reason: "registration", client: "registered", why: "RFC 7592", ask: func(s *site) *answer {
			return registered(s, metadata{"client_id": "wide", "redirect_uris": []string{callback}})
		}},
		"an update that chooses a secret": {reason: "registration", client: "registered", why: "cannot be chosen", ask: func(s *site) *answer {
			return registered(s, metadata{"client_id": "", "client_secret": "chosen", "redirect_uris": []string{callback}})
		}},
		"an update that is no metadata": {reason: "registration", client: "registered", why: "wrong type", ask: func(s *site) *answer {
			return registered(s, metadata{"client_id": "", "redirect_uris": callback})
		}},
		"an update after the client was disabled": {reason: "registration", client: "registered", why: "disabled", ask: func(s *site) *answer {
			a := s.register(metadata{"redirect_uris": []string{callback}}, bearer(s.secrets["initial"])).ok()
			id := a.text("client_id")
			s.secrets["registered"] = id
			_, err := s.svc.Clients.Update(context.Background(), id, func(c *apitoken.Client) error { c.Disabled = true; return nil })
			require.NoError(s.t, err)
			return s.do(jsonRequest(s.t, "PUT", "/register/"+id, metadata{}), bearer(a.text("registration_access_token")))
		}},
	},
}

// TestEveryEndpointLeavesATrace walks the endpoints. A new one needs rows; each request that is refused to somebody who proved who
// they are leaves one event, with who was refused and which limit said no.
func TestEveryEndpointLeavesATrace(t *testing.T) {
	t.Parallel()
	h := reflect.TypeFor[*oauthhttp.Handler]()
	for i := range h.NumMethod() {
		if m := h.Method(i); m.Type.NumOut() == 1 && m.Type.Out(0) == reflect.TypeFor[http.Handler]() {
			require.Contains(t, refusalRows, m.Name, "an endpoint has no row: what its refusals leave in the log, or why nothing")
		} else {
			for j := range m.Type.NumIn() {
				if in := m.Type.In(j); in == reflect.TypeFor[*oauthhttp.Authorization]() || in == reflect.TypeFor[*oauthhttp.DeviceRequest]() {
					require.Contains(t, refusalRows, m.Name, "a decision of the user's has no row: what a no leaves in the log")
				}
			}
		}
	}

	for endpoint, row := range refusalRows {
		rows, _ := row.(map[string]refusal)
		for name, x := range rows {
			t.Run(endpoint+"/"+name, func(t *testing.T) {
				t.Parallel()
				s, initial := registrar(t, nil)
				s.secrets["initial"] = initial
				s.client("wide", nil)
				s.client("narrow", func(c *apitoken.Client) {
					c.GrantTypes, c.MayImpersonate = []string{"client_credentials"}, false
					c.Scopes, c.RedirectURIs = apitoken.Scopes{"orders:read"}, nil
				})
				s.client("bound", func(c *apitoken.Client) { c.BindDPoP = true })
				s.public("pub", nil)

				x.ask(s)
				if x.client == "registered" {
					x.client = s.secrets["registered"]
				}
				var list []apitoken.Event
				for e, err := range s.svc.Events(t.Context(), apitoken.EventQuery{}) {
					require.NoError(t, err)
					if e.Type == event.Refused && e.Reason == x.reason {
						list = append(list, e)
					}
				}
				require.Len(t, list, 1, "one refusal is one event")
				e := list[0]
				require.Equal(t, 1, e.Count, "and is counted once")
				require.Equal(t, [3]string{x.subject, x.client, x.claimed}, [3]string{e.Subject, e.Client, e.Extra["claimed"]}, e.Extra["why"])
				require.Contains(t, e.Extra["why"], x.why)
				if x.reason != "scope" { // of a token, whose reason says it all
					require.NotEmpty(t, e.Extra["why"])
				}
			})
		}
	}
}

// TestARefusedAssertionNamesItsSubject: an assertion that verified says whom it speaks of, also where no client authenticated.
func TestARefusedAssertionNamesItsSubject(t *testing.T) {
	t.Parallel()
	s, keys := trusting(t, func(a *oauthhttp.AssertionIssuer) { a.Client = "app" })
	k := keys.key.Load()
	for _, o := range [][]option{{s.as("app")}, nil} {
		s.token(params("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion", s.vouch(k, nil, map[string]any{"sub": "blocked"})), o...).refused(400, "invalid_grant")
	}
	s.token(params("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion", s.vouch(newSigner(t), nil, map[string]any{"sub": "forged"}))).refused(400, "invalid_grant")
	clients := map[string]int{}
	for e, err := range s.svc.Events(t.Context(), apitoken.EventQuery{Type: event.Refused, Subject: "blocked", Issuer: login}) {
		require.NoError(t, err)
		require.Equal(t, "AssertionIssuer.Subject refused", e.Extra["why"])
		clients[e.Client] += e.Count
	}
	require.Equal(t, map[string]int{"app": 1, "": 1}, clients)
	for e, err := range s.svc.Events(t.Context(), apitoken.EventQuery{Type: event.Refused}) {
		require.NoError(t, err)
		require.NotEqual(t, "forged", e.Subject, "what nobody signed names nobody")
	}
}
