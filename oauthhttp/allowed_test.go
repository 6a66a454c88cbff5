package oauthhttp_test

import (
	"context"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/oauthhttp"
)

// The roles of a user give more than a client asks for. The user's approval is the limit, however it is made: by a code, by a
// device, or by an issuer's assertion.
func TestNothingIsGivenThatWasNotAllowed(t *testing.T) {
	t.Parallel()
	const asked = "orders:read orders:write"
	const details = `[{"type":"payment","amount":"10"}]`
	for name, x := range map[string]struct {
		allowed oauthhttp.Allowed
		scope   string
	}{
		"the zero value":     {oauthhttp.Allowed{}, ""},
		"none":               {oauthhttp.None(), ""},
		"no box was ticked":  {oauthhttp.Only(apitoken.Scopes(nil)...), ""},
		"an empty list":      {oauthhttp.Only(apitoken.Scopes{}...), ""},
		"one of two":         {oauthhttp.Only("orders:read"), "orders:read"},
		"what no role gives": {oauthhttp.Only("orders:write"), ""},
		"all":                {oauthhttp.All(), "orders:read"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var s *site
			idp := newSigner(t)
			s = newSite(t, func(c *apitoken.Config, o *oauthhttp.Options) {
				c.Roles = map[string]apitoken.Scopes{"clerk": {"orders:read", "reports"}}
				o.Details = &oauthhttp.Details{Types: []string{"payment"}, Check: func(_ context.Context, _ apitoken.Client, asked []oauthhttp.Detail) ([]oauthhttp.Detail, error) {
					return asked, nil
				}}
				o.Consent = oauthhttp.ConsentFunc(func(w http.ResponseWriter, r *http.Request, a *oauthhttp.Authorization) {
					s.h.Approve(w, r, a, oauthhttp.Approval{Subject: "alice", Roles: []string{"clerk"}, Scopes: x.allowed})
				})
				o.Assertions = []oauthhttp.AssertionIssuer{{Issuer: login, Keys: idp,
					Subject: func(context.Context, oauthhttp.Assertion) (oauthhttp.Identity, error) {
						return oauthhttp.Identity{Subject: "alice", Roles: []string{"clerk"}, Scopes: x.allowed}, nil
					}}}
			})
			s.client("app", func(c *apitoken.Client) { c.Scopes = apitoken.Scopes{"orders:read", "orders:write", "reports"} })
			check := func(how string, a *answer, scope string) {
				require.Equal(t, scope, a.ok(how).text("scope"), how)
				require.NotContains(t, a.body, "authorization_details", how)
				if scope == "" && x.scope == "" && name != "what no role gives" {
					require.NotContains(t, claims(t, a.text("access_token")), "roles", how)
				}
				if rt := a.text("refresh_token"); rt != "" {
					next := s.token(params("grant_type", "refresh_token", "refresh_token", rt), s.as("app")).ok(how)
					require.Equal(t, scope, next.text("scope"), "%s: a refresh", how)
				}
			}
			check("code", s.token(redemption(s.code("app", "scope", asked, "authorization_details", details)), s.as("app")), x.scope)

			waiting := s.post("/device_authorization", params("scope", asked, "authorization_details", details), s.as("app")).ok()
			d, err := s.h.Device(t.Context(), waiting.text("user_code"))
			require.NoError(t, err)
			require.NoError(t, s.h.ApproveDevice(t.Context(), d, oauthhttp.Approval{Subject: "alice", Roles: []string{"clerk"}, Scopes: x.allowed}))
			check("device", s.token(params("grant_type", "urn:ietf:params:oauth:grant-type:device_code", "device_code", waiting.text("device_code")), s.as("app")), x.scope)

			// Without scope a client gets what it may hold (RFC 6749 §3.3), and never more than the identity may have.
			unnamed := map[string]string{"all": "orders:read reports"}
			want, ok := unnamed[name]
			if !ok {
				want = x.scope
			}
			check("assertion", s.token(params("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion", s.vouch(idp, nil, nil)), s.as("app")), want)
		})
	}
}
