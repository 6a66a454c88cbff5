package oauthhttp_test

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/oauthhttp"
)

// begun is what a client had before a ceiling came down.
type begun struct {
	code, device, refresh, subject string
}

// asking are the pairs of a request that names scope, or none.
func asking(scope string, pairs ...string) url.Values {
	v := params(pairs...)
	if scope != "" {
		v.Set("scope", scope)
	}
	return v
}

// verdict is the scope that was given, or the error.
func verdict(a *answer) string {
	if a.StatusCode >= 400 {
		return a.text("error")
	}
	return a.text("scope")
}

// consented asks at the authorization endpoint, where all that is asked for is allowed, and redeems the code.
func consented(s *site, scope string) string {
	q := s.get("/authorize?" + authorization("app", "scope", scope).Encode()).redirected(callback)
	if q.Get("error") != "" {
		return q.Get("error")
	}
	return verdict(s.token(redemption(q.Get("code")), s.as("app")))
}

func onDevice(s *site, scope string) string {
	a := s.post("/device_authorization", asking(scope), s.as("app"))
	if a.StatusCode >= 400 {
		return verdict(a)
	}
	approveDevice(s, a.text("user_code"))
	return verdict(s.token(params("grant_type", "urn:ietf:params:oauth:grant-type:device_code", "device_code", a.text("device_code")), s.as("app")))
}

func approveDevice(s *site, userCode string) {
	d, err := s.h.Device(s.t.Context(), userCode)
	require.NoError(s.t, err)
	require.NoError(s.t, s.h.ApproveDevice(s.t.Context(), d, oauthhttp.Approval{Subject: "alice", Roles: []string{"clerk"}, Scopes: oauthhttp.All()}))
}

// Each endpoint gives what the client may have where it names no scope, at most that where it does, and nothing that a role, the
// administrator or the configuration took away meanwhile.
func TestEachCeilingHoldsAtEachEndpoint(t *testing.T) {
	t.Parallel()
	const both = "orders:read orders:write"
	const tooMuch, refused = "invalid_scope", "invalid_grant"
	const again = "invalid_request" // the token was made before what was taken: it is to be refreshed first (RFC 8693 §2.2.2)
	ceilings := map[string]struct {
		config func(*apitoken.Config) // of the next process
		change func(context.Context, *apitoken.Service) error
		gives  string            // of both
		ways   map[string]string // where something else is given
		write  string            // to who asks for orders:write alone
		asks   map[string]string // where something else is
	}{
		"none": {gives: both, write: "orders:write"},
		"the client's scopes": {
			change: func(ctx context.Context, svc *apitoken.Service) error {
				_, err := svc.Clients.Update(ctx, "app", func(c *apitoken.Client) error { c.Scopes = apitoken.Scopes{"orders:read", "reports"}; return nil })
				return err
			},
			gives: "orders:read",
			ways:  map[string]string{"own": "orders:read reports", "code": "orders:read reports", "device": "orders:read reports", "exchange": again},
			write: tooMuch,
			asks:  map[string]string{"exchange": again, "registration": ""},
		},
		"the role": {
			change: func(ctx context.Context, svc *apitoken.Service) error {
				return svc.SetRole(ctx, "clerk", apitoken.Scopes{"orders:read", "reports"})
			},
			gives: "orders:read",
			ways:  map[string]string{"own": both, "registration": both, "exchange": again},
			write: tooMuch,
			asks:  map[string]string{"own": "orders:write", "registration": "orders:write", "exchange": again, "code": "", "device": "", "assertion": ""},
		},
		"Config.Scopes": {
			config: func(c *apitoken.Config) { c.Scopes = map[apitoken.Scope]string{"orders:read": "", "reports": ""} },
			gives:  "orders:read",
			ways:   map[string]string{"begun": tooMuch}, // what a user allowed is not cut in silence
			write:  tooMuch,
			asks:   map[string]string{"registration": "invalid_client_metadata"}, // nothing of it is left
		},
		"Config.MayContinue": {
			config: func(c *apitoken.Config) {
				c.MayContinue = func(context.Context, apitoken.Grant) error { return errors.New("she has left") }
			},
			gives: refused,
			ways:  map[string]string{"own": both, "assertion": both, "registration": both},
			write: refused,
			asks:  map[string]string{"own": "orders:write", "assertion": "orders:write", "registration": "orders:write"},
		},
	}
	for name, x := range ceilings {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			idp := newSigner(t)
			var s *site
			roles := map[string]apitoken.Scopes{"clerk": {"orders:read", "orders:write", "reports"}}
			options := func(c *apitoken.Config, o *oauthhttp.Options) {
				c.Roles = roles
				o.Registration = &oauthhttp.Registration{Scopes: apitoken.Scopes{"orders:read", "orders:write"}, GrantTypes: allGrants}
				o.Consent = oauthhttp.ConsentFunc(func(w http.ResponseWriter, r *http.Request, a *oauthhttp.Authorization) {
					s.h.Approve(w, r, a, oauthhttp.Approval{Subject: "alice", Roles: []string{"clerk"}, Scopes: oauthhttp.All()})
				})
				o.Assertions = []oauthhttp.AssertionIssuer{{Issuer: login, Keys: idp,
					Subject: func(context.Context, oauthhttp.Assertion) (oauthhttp.Identity, error) {
						return oauthhttp.Identity{Subject: "alice", Roles: []string{"clerk"}, Scopes: oauthhttp.Only("orders:read", "orders:write")}, nil
					}}}
			}
			s = newSite(t, options)
			s.client("app", nil)
			var had begun
			first := s.token(redemption(s.code("app", "scope", both)), s.as("app")).ok()
			had.refresh, had.subject = first.text("refresh_token"), first.text("access_token")
			had.code = s.code("app", "scope", "")
			waiting := s.post("/device_authorization", params(), s.as("app")).ok()
			had.device = waiting.text("device_code")
			approveDevice(s, waiting.text("user_code"))
			self, err := s.svc.Clients.RegistrationToken(t.Context(), "app")
			require.NoError(t, err)

			if x.change != nil {
				require.NoError(t, x.change(t.Context(), s.svc))
			}
			if x.config != nil {
				s = s.second(func(c *apitoken.Config, o *oauthhttp.Options) {
					options(c, o)
					c.Roles = nil // they are in the store
					x.config(c)
				})
			}

			ways := map[string]func(scope string) string{
				"code":   func(scope string) string { return consented(s, scope) },
				"device": func(scope string) string { return onDevice(s, scope) },
				"own": func(scope string) string {
					return verdict(s.token(asking(scope, "grant_type", "client_credentials"), s.as("app")))
				},
				"exchange": func(scope string) string {
					return verdict(s.token(asking(scope, "grant_type", "urn:ietf:params:oauth:grant-type:token-exchange", "subject_token", had.subject,
						"subject_token_type", "urn:ietf:params:oauth:token-type:access_token"), s.as("app")))
				},
				"refresh": func(scope string) string {
					a := s.token(asking(scope, "grant_type", "refresh_token", "refresh_token", had.refresh), s.as("app"))
					if rt := a.text("refresh_token"); rt != "" {
						had.refresh = rt
					}
					return verdict(a)
				},
				"assertion": func(scope string) string {
					return verdict(s.token(asking(scope, "grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion", s.vouch(idp, nil, nil)), s.as("app")))
				},
				"registration": func(scope string) string {
					m := metadata{"client_id": "app", "redirect_uris": []string{callback}, "grant_types": allGrants}
					if scope != "" {
						m["scope"] = scope
					}
					return verdict(s.do(jsonRequest(t, "PUT", "/register/app", m), bearer(self.Reveal())))
				},
			}
			or := func(m map[string]string, way, usual string) string {
				if v, ok := m[way]; ok {
					return v
				}
				return usual
			}
			try := func(way string) {
				require.Equal(t, or(x.ways, way, x.gives), ways[way](""), "%s, no scope", way)
				require.Equal(t, or(x.asks, way, x.write), ways[way]("orders:write"), "%s, orders:write", way)
			}
			// In the order in which one does not spoil the next: a refresh that is refused for good ends its grant.
			for _, way := range []string{"own", "code", "device", "assertion", "exchange", "refresh"} {
				try(way)
			}
			require.Equal(t, or(x.ways, "begun", x.gives), verdict(s.token(redemption(had.code), s.as("app"))), "a code of before")
			require.Equal(t, or(x.ways, "begun", x.gives),
				verdict(s.token(params("grant_type", "urn:ietf:params:oauth:grant-type:device_code", "device_code", had.device), s.as("app"))), "a device of before")
			try("registration") // what is left out there the client has no more
		})
	}
}

// A request that names details and no scope is about the details; one that names neither is about what the client may have.
func TestADefaultScopeIsNotAddedToDetails(t *testing.T) {
	t.Parallel()
	const details = `[{"type":"payment","amount":"10"}]`
	s := newSite(t, func(_ *apitoken.Config, o *oauthhttp.Options) {
		o.Details = &oauthhttp.Details{Types: []string{"payment"}, Check: func(_ context.Context, _ apitoken.Client, asked []oauthhttp.Detail) ([]oauthhttp.Detail, error) {
			return asked, nil
		}}
	})
	s.client("app", nil)
	s.client("none", func(c *apitoken.Client) { c.Scopes = nil })
	for _, x := range []struct{ client, scope, details, want string }{
		{"app", "", "", "orders:read orders:write"},
		{"app", "", details, ""},
		{"app", "orders:read", details, "orders:read"},
		{"none", "", "", ""},
		{"none", "", details, ""},
	} {
		require.Equal(t, x.want, s.token(redemption(s.code(x.client, "scope", x.scope, "authorization_details", x.details)), s.as(x.client)).ok().text("scope"))
		pushed := s.post("/par", authorization(x.client, "scope", x.scope, "authorization_details", x.details), s.as(x.client)).ok().text("request_uri")
		q := s.get("/authorize?" + params("client_id", x.client, "request_uri", pushed).Encode()).redirected(callback)
		require.Equal(t, x.want, s.token(redemption(q.Get("code")), s.as(x.client)).ok().text("scope"), "pushed")
	}
}
