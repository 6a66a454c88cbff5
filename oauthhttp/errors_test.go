package oauthhttp_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/httpauth"
	"github.com/apitoken-go/apitoken/oauthhttp"
)

// errorWorld is a site in which every error can be had.
type errorWorld struct {
	*site
	initial string
	api     http.Handler // a protected resource
	k       *signer
}

func newErrorWorld(t *testing.T) *errorWorld {
	t.Helper()
	w := &errorWorld{k: newSigner(t)}
	w.site = newSite(t, func(c *apitoken.Config, o *oauthhttp.Options) {
		o.Registration = &oauthhttp.Registration{Scopes: apitoken.Scopes{"orders:read"}}
		o.Consent = oauthhttp.ConsentFunc(func(rw http.ResponseWriter, r *http.Request, a *oauthhttp.Authorization) {
			if reason := a.Parameters.Get("login_hint"); reason != "" { // the test's user says no, and why
				w.h.Deny(rw, r, a, reason)
				return
			}
			w.h.Approve(rw, r, a, oauthhttp.Approval{Subject: "alice", Scopes: oauthhttp.All()})
		})
	})
	w.client("app", nil)
	w.client("plain", func(c *apitoken.Client) {
		c.GrantTypes, c.MayImpersonate = []string{"client_credentials"}, false
	})
	w.public("tv", nil)
	_, key, err := w.svc.APIKeys.Create(context.Background(), apitoken.APIKeyRequest{Subject: "ops", Scopes: apitoken.Scopes{oauthhttp.RegisterScope}})
	require.NoError(t, err)
	w.initial = key.Reveal()
	auth := httpauth.New(w.svc, &httpauth.Options{BaseURL: testIssuer})
	w.api = auth.Require("orders:write")(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(http.StatusNoContent) }))
	return w
}

// call asks the protected resource.
func (w *errorWorld) call(options ...option) *answer {
	r := httptest.NewRequest(http.MethodGet, testIssuer+"/api", nil)
	for _, o := range options {
		o(r)
	}
	rw := httptest.NewRecorder()
	w.api.ServeHTTP(rw, r)
	return &answer{Response: rw.Result(), t: w.t, raw: rw.Body.Bytes()}
}

// sent is the answer that the browser carries to the client.
func (w *errorWorld) sent(client string, pairs ...string) *answer {
	a := w.get("/authorize?" + authorization(client, pairs...).Encode())
	q := a.redirected(callback)
	require.Equal(w.t, "xyz", q.Get("state"))
	a.body = map[string]any{"error": q.Get("error"), "error_description": q.Get("error_description")}
	return a
}

func (w *errorWorld) device(state string) *answer {
	ctx := context.Background()
	a := w.post("/device_authorization", params("client_id", "tv")).ok()
	poll := params("grant_type", "urn:ietf:params:oauth:grant-type:device_code", "client_id", "tv", "device_code", a.text("device_code"))
	switch state {
	case "denied":
		d, err := w.h.Device(ctx, a.text("user_code"))
		require.NoError(w.t, err)
		require.NoError(w.t, w.h.DenyDevice(ctx, d))
	case "asked":
		w.token(poll)
	case "late":
		w.at.Advance(11 * time.Minute)
	}
	return w.token(poll)
}

func (w *errorWorld) access(scope string) string {
	return w.token(merge(own, "scope", scope), w.as("app")).ok().text("access_token")
}

// Every error code that an RFC lists for these endpoints, with its status and what its headers must hold: each is
// provoked, or it is said why it never comes.
func TestEveryErrorOfTheRFCs(t *testing.T) {
	t.Parallel()
	jwtAssertion := "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
	type want struct {
		status int
		header map[string]string // name → what the value begins with
	}
	noStore := map[string]string{"Cache-Control": "no-store"}
	plain := want{400, noStore}
	home := want{303, map[string]string{"Location": callback + "?", "Cache-Control": "no-store"}}
	basic := want{401, map[string]string{"WWW-Authenticate": "Basic realm=", "Cache-Control": "no-store"}}
	for rfc, cases := range map[string]map[string]struct {
		want
		how func(w *errorWorld) *answer
	}{
		"RFC 6749 §4.1.2.1": {
			"invalid_request":           {home, func(w *errorWorld) *answer { return w.sent("app", "response_type", "") }},
			"unauthorized_client":       {home, func(w *errorWorld) *answer { return w.sent("plain") }},
			"access_denied":             {home, func(w *errorWorld) *answer { return w.sent("app", "login_hint", "access_denied") }},
			"unsupported_response_type": {home, func(w *errorWorld) *answer { return w.sent("app", "response_type", "token") }},
			"invalid_scope":             {home, func(w *errorWorld) *answer { return w.sent("app", "scope", "admin") }},
			"server_error":              {home, func(w *errorWorld) *answer { return w.sent("app", "login_hint", "server_error") }},
			"temporarily_unavailable": {home, func(w *errorWorld) *answer {
				w.st.writes.Store(true)
				return w.sent("app")
			}},
		},
		"RFC 6749 §5.2": {
			"invalid_request":        {plain, func(w *errorWorld) *answer { return w.token(nil, w.as("app")) }},
			"invalid_client":         {basic, func(w *errorWorld) *answer { return w.token(own, basicAuth("app", "wrong")) }},
			"invalid_grant":          {plain, func(w *errorWorld) *answer { return w.token(redemption("x"), w.as("app")) }},
			"unauthorized_client":    {plain, func(w *errorWorld) *answer { return w.token(redemption("x"), w.as("plain")) }},
			"unsupported_grant_type": {plain, func(w *errorWorld) *answer { return w.token(params("grant_type", "password"), w.as("app")) }},
			"invalid_scope":          {plain, func(w *errorWorld) *answer { return w.token(merge(own, "scope", "admin"), w.as("app")) }},
		},
		"RFC 6750 §3.1": {
			"invalid_request": {want{400, map[string]string{"WWW-Authenticate": `Bearer error="invalid_request"`}}, func(w *errorWorld) *answer {
				return w.call(bearer("a"), bearer("b"))
			}},
			"invalid_token": {want{401, map[string]string{"WWW-Authenticate": `Bearer error="invalid_token"`, "Cache-Control": "no-store"}}, func(w *errorWorld) *answer {
				return w.call(bearer("x"))
			}},
			"insufficient_scope": {want{403, map[string]string{"WWW-Authenticate": `Bearer error="insufficient_scope"`, "Cache-Control": "no-store"}}, func(w *errorWorld) *answer {
				return w.call(bearer(w.access("orders:read")))
			}},
		},
		// unsupported_token_type never comes: every kind of token of this service can be revoked.
		"RFC 7009 §2.2.1": {
			"temporarily_unavailable": {want{503, map[string]string{"Retry-After": "", "Cache-Control": "no-store"}}, func(w *errorWorld) *answer {
				tok := w.access("orders:read")
				w.st.writes.Store(true)
				return w.post("/revoke", params("token", tok), w.as("app"))
			}},
		},
		"RFC 7523 §3": {
			"invalid_client": {basic, func(w *errorWorld) *answer {
				return w.token(merge(own, "client_assertion_type", jwtAssertion, "client_assertion", "x.y.z"))
			}},
			"invalid_grant": {plain, func(w *errorWorld) *answer {
				s, _ := trusting(w.t, nil)
				return s.token(params("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer", "assertion", "x.y.z"), s.as("app"))
			}},
		},
		// invalid_software_statement never comes: statements are not read, which is unapproved_software_statement.
		"RFC 7591 §3.2.2": {
			"invalid_redirect_uri": {plain, func(w *errorWorld) *answer {
				return w.register(metadata{"redirect_uris": []string{"http://app.example.com/"}}, bearer(w.initial))
			}},
			"invalid_client_metadata": {plain, func(w *errorWorld) *answer {
				return w.register(metadata{"redirect_uris": []string{callback}, "grant_types": []string{"password"}}, bearer(w.initial))
			}},
			"unapproved_software_statement": {plain, func(w *errorWorld) *answer {
				return w.register(metadata{"redirect_uris": []string{callback}, "software_statement": "x.y.z"}, bearer(w.initial))
			}},
			"invalid_token": {want{401, map[string]string{"WWW-Authenticate": "Bearer "}}, func(w *errorWorld) *answer {
				return w.register(metadata{"redirect_uris": []string{callback}}, bearer("x"))
			}},
			"insufficient_scope": {want{403, map[string]string{"WWW-Authenticate": "Bearer "}}, func(w *errorWorld) *answer {
				return w.register(metadata{"redirect_uris": []string{callback}}, bearer(w.access("orders:read")))
			}},
		},
		"RFC 7636 §4.4.1": {
			"invalid_request": {home, func(w *errorWorld) *answer { return w.sent("app", "code_challenge_method", "plain") }},
		},
		"RFC 7636 §4.6": {
			"invalid_grant": {plain, func(w *errorWorld) *answer {
				return w.token(redemption(w.code("app"), "code_verifier", strings.Repeat("x", 43)), w.as("app"))
			}},
		},
		"RFC 7662 §2.3": {
			"invalid_client": {basic, func(w *errorWorld) *answer { return w.post("/introspect", params("token", "x")) }},
		},
		"RFC 8628 §3.5": {
			"authorization_pending": {plain, func(w *errorWorld) *answer { return w.device("") }},
			"slow_down":             {plain, func(w *errorWorld) *answer { return w.device("asked") }},
			"access_denied":         {plain, func(w *errorWorld) *answer { return w.device("denied") }},
			"expired_token":         {plain, func(w *errorWorld) *answer { return w.device("late") }},
		},
		"RFC 8693 §2.2.2": {
			"invalid_request": {plain, func(w *errorWorld) *answer {
				return w.token(params("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange", "subject_token", "x", "subject_token_type", accessType), w.as("app"))
			}},
			"invalid_target": {plain, func(w *errorWorld) *answer {
				return w.token(params("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange", "subject_token", w.access("orders:read"), "subject_token_type", accessType, "audience", "x"), w.as("app"))
			}},
		},
		"RFC 8705 §2": {
			"invalid_client": {basic, func(w *errorWorld) *answer {
				w.client("tls", func(c *apitoken.Client) { c.AuthMethod, c.TLSName = "tls_client_auth", "dns:worker.example.com" })
				return w.token(merge(own, "client_id", "tls"))
			}},
		},
		"RFC 8705 §3": {
			"invalid_token": {want{401, map[string]string{"WWW-Authenticate": `Bearer error="invalid_token"`}}, func(w *errorWorld) *answer {
				cert, _ := newCertificate(w.t)
				w.client("bound", func(c *apitoken.Client) { c.BindCertificate = true })
				tok := w.token(own, w.as("bound"), certificate(cert, false)).ok().text("access_token")
				return w.call(bearer(tok))
			}},
		},
		"RFC 8707 §2": {
			"invalid_target": {plain, func(w *errorWorld) *answer {
				return w.token(merge(own, "resource", "https://x.example.com"), w.as("app"))
			}},
		},
		// invalid_request_object and request_uri_not_supported never come: request objects are not read at all, and references are
		// taken from the pushed authorization request endpoint alone.
		"RFC 9101 §7": {
			"request_not_supported": {home, func(w *errorWorld) *answer { return w.sent("app", "request", "x.y.z") }},
			"invalid_request_uri": {want{400, map[string]string{"Content-Type": "text/plain", "Cache-Control": "no-store"}}, func(w *errorWorld) *answer {
				a := w.get("/authorize?" + params("client_id", "app", "request_uri", "https://app.example.com/request").Encode())
				require.Contains(w.t, string(a.raw), "invalid_request_uri")
				a.body = map[string]any{"error": "invalid_request_uri", "error_description": "shown to the user"}
				return a
			}},
		},
		"RFC 9126 §2.3": {
			"invalid_request": {plain, func(w *errorWorld) *answer {
				return w.post("/par", authorization("app", "redirect_uri", "https://evil.example.com"), w.as("app"))
			}},
			"invalid_client": {basic, func(w *errorWorld) *answer { return w.post("/par", authorization("app")) }},
		},
		"RFC 9396 §5": {
			"invalid_authorization_details": {plain, func(w *errorWorld) *answer {
				return w.token(merge(own, "authorization_details", `[{"type":"x"}]`), w.as("app"))
			}},
		},
		"RFC 9449 §5, §8": {
			"invalid_dpop_proof": {plain, func(w *errorWorld) *answer { return w.token(own, w.as("app"), header("DPoP", "x")) }},
			"use_dpop_nonce": {want{400, map[string]string{"DPoP-Nonce": "", "Cache-Control": "no-store"}}, func(w *errorWorld) *answer {
				s := newSite(w.t, func(_ *apitoken.Config, o *oauthhttp.Options) { o.RequireNonce = true })
				s.client("app", nil)
				return s.token(own, s.as("app"), s.dpop(w.k, nil))
			}},
		},
		"RFC 9449 §7.1": {
			"invalid_token": {want{401, map[string]string{"WWW-Authenticate": `Bearer error="invalid_token"`, "Cache-Control": "no-store"}}, func(w *errorWorld) *answer {
				tok := w.token(own, w.as("app"), w.dpop(w.k, nil)).ok().text("access_token")
				return w.call(bearer(tok))
			}},
			"invalid_dpop_proof": {want{401, map[string]string{"WWW-Authenticate": `DPoP `, "Cache-Control": "no-store"}}, func(w *errorWorld) *answer {
				tok := w.token(own, w.as("app"), w.dpop(w.k, nil)).ok().text("access_token")
				return w.call(header("Authorization", "DPoP "+tok), header("DPoP", "x"))
			}},
		},
	} {
		for code, c := range cases {
			t.Run(rfc+" "+code, func(t *testing.T) {
				t.Parallel()
				a := c.how(newErrorWorld(t))
				require.Equal(t, c.status, a.StatusCode, string(a.raw))
				if got := a.text("error"); got != "" {
					require.Equal(t, code, got)
					require.NotEmpty(t, a.text("error_description"))
				} else {
					require.Contains(t, strings.Join(a.Header.Values("WWW-Authenticate"), ", "), `error="`+code+`"`)
				}
				for name, begins := range c.header {
					values := a.Header.Values(name)
					require.True(t, slices.ContainsFunc(values, func(v string) bool { return v != "" && strings.HasPrefix(v, begins) }), "%s: %q", name, values)
				}
				if u, err := url.Parse(a.Header.Get("Location")); err == nil && u.Host != "" {
					require.Empty(t, u.Query().Get("code"))
				}
			})
		}
	}
}
