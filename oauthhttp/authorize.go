package oauthhttp

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/internal/granttype"
	"github.com/apitoken-go/apitoken/internal/redirect"
)

// Consent is the host's login and consent. Authorize gets a request that was checked, in the browser of whoever is to
// decide. It finds out who that is and what he allows, by as many pages as it takes, and ends the request by
// Handler.Approve or Handler.Deny, at once or in a later request: [Authorization.Query] carries it from page to page, and
// Handler.Authorization reads it again, with all checks. A page that asks must be safe from other sites
// (http.CrossOriginProtection); answers of the endpoint forbid framing.
type Consent interface {
	Authorize(w http.ResponseWriter, r *http.Request, a *Authorization)
}

// ConsentFunc is a Consent that is one function.
type ConsentFunc func(w http.ResponseWriter, r *http.Request, a *Authorization)

// Authorize implements [Consent].
func (f ConsentFunc) Authorize(w http.ResponseWriter, r *http.Request, a *Authorization) { f(w, r, a) }

// Authorization is a request for an authorization code (RFC 6749 §4.1.1) that was checked: its client exists, its
// redirect URI is the client's, its scopes and resources are ones that the client may have.
type Authorization struct {
	Client    apitoken.Client
	ClientURI string          // a page about it, by its own words: to be shown, not believed; empty: none
	Scopes    apitoken.Scopes // asked for, without those that the client may not have; the client's where it named none, and no Details
	Resources []string        // RFC 8707; empty: the client's default
	Details   []Detail        // RFC 9396, as Details.Check returned them
	// Parameters are all that came, those of a pushed request where it was pushed: prompt, login_hint, max_age and
	// whatever else a host cares for.
	Parameters url.Values
	// Query is what Handler.Authorization reads the request from again. It holds nothing secret, and nothing in it is
	// believed: everything is checked again.
	Query string

	redirect  string // where the answer goes
	named     string // the redirect_uri as it came: the token request must repeat it
	state     string
	challenge string
	binding   string // dpop_jkt (RFC 9449 §10)
	pushed    string // the request_uri that it came by
	checked   bool
}

// RedirectURI is where the answer will go.
func (a *Authorization) RedirectURI() string { return a.redirect }

// LocalOnly reports whether all the client's redirect URIs lead to programs on the user's own machine. Any such program can pass for
// the client, whose name proves nothing then: a page that asks should say so.
func (a *Authorization) LocalOnly() bool {
	return !slices.ContainsFunc(a.Client.RedirectURIs, func(uri string) bool { return !redirect.Local(uri) })
}

// Approval is what the user decided. What it does not name is not given.
type Approval struct {
	Subject string   // required: who the user is
	Scopes  Allowed  // of the request's scopes, All(), Only(…) of them or None(); zero: none
	Roles   []string // as in apitoken.Request: they give no more than Scopes allows
	Claims  any      // as in apitoken.Request
	Details []Detail // the details that the user allows: the request's for all of them; empty: none
	// NoRefresh gives no refresh token to a client that may have one.
	NoRefresh bool
}

// authorizationError is told to the client by way of the browser (RFC 6749 §4.1.2.1).
type authorizationError struct {
	*refusal
	a *Authorization // where to; nil: it is shown to the user instead
}

func (e *authorizationError) Unwrap() error { return e.refusal }

// Authorize is the authorization endpoint (RFC 6749 §3.1).
func (h *Handler) Authorize() http.Handler {
	return h.bounded(h.auth.Origin(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		guardPage(w)
		if h.o.Consent == nil {
			http.NotFound(w, r)
			return
		}
		query := r.URL.RawQuery
		switch r.Method {
		case http.MethodGet, http.MethodHead:
		case http.MethodPost:
			if query != "" {
				h.page(w, r, invalid("Parameters belong into the body or into the URL, not into both."))
				return
			}
			body, err := h.readBody(w, r, "application/x-www-form-urlencoded")
			if err != nil {
				h.page(w, r, judge(err))
				return
			}
			query = string(body)
			r.Body = io.NopCloser(strings.NewReader(query)) // a page of the host's may post its own fields with those of the request
		default:
			w.Header().Set("Allow", "GET, HEAD, POST")
			h.page(w, r, &refusal{status: http.StatusMethodNotAllowed, code: "invalid_request", text: "Another method is needed."})
			return
		}
		a, err := h.Authorization(r.Context(), query)
		if err != nil {
			h.Refuse(w, r, err)
			return
		}
		if r.Method == http.MethodHead { // whoever looks ahead decides nothing and spends nothing (RFC 9110 §9.2.1)
			w.WriteHeader(http.StatusOK)
			return
		}
		h.o.Consent.Authorize(w, r, a)
	})))
}

// guardPage keeps an answer out of caches, frames and Referer headers (RFC 9700 §4.2.4, §4.16).
func guardPage(w http.ResponseWriter) {
	head := w.Header()
	head.Set("Cache-Control", "no-store")
	head.Set("Referrer-Policy", "no-referrer")
	head.Set("Content-Security-Policy", "frame-ancestors 'none'")
	head.Set("X-Frame-Options", "DENY")
	head.Set("X-Content-Type-Options", "nosniff")
}

// page shows the user an error that must not go to a redirect URI.
func (h *Handler) page(w http.ResponseWriter, r *http.Request, v *refusal) {
	h.log.DebugContext(r.Context(), "oauthhttp: refused", "path", r.URL.Path, "error", v.code, "cause", v.text)
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if v.status == http.StatusServiceUnavailable || v.status == http.StatusTooManyRequests {
		w.Header().Set("Retry-After", "1")
	}
	send(w, r, v.status, []byte("This sign-in link does not work: "+v.code+". "+v.text+"\n"))
}

// Refuse answers an error of Authorization: to the client by way of the browser where that is safe, else with a page.
func (h *Handler) Refuse(w http.ResponseWriter, r *http.Request, err error) {
	guardPage(w)
	var e *authorizationError
	if !errors.As(err, &e) || e.a == nil {
		v := judge(err)
		if v.status == http.StatusUnauthorized {
			v = &refusal{status: http.StatusBadRequest, code: v.code, text: "The client is unknown."} // nobody is asked for a password here
		}
		h.page(w, r, v)
		return
	}
	h.redirect(w, r, e.a, url.Values{"error": {tellable(e.refusal)}, "error_description": {e.text}})
}

// redirect sends the browser back with an answer; 303 makes it forget the body of a form (RFC 9700 §4.12).
func (h *Handler) redirect(w http.ResponseWriter, r *http.Request, a *Authorization, answer url.Values) {
	if a.state != "" {
		answer.Set("state", a.state)
	}
	answer.Set("iss", h.svc.Issuer()) // RFC 9207
	sep := "?"
	if strings.Contains(a.redirect, "?") {
		sep = "&"
	}
	w.Header().Set("Location", a.redirect+sep+answer.Encode())
	w.WriteHeader(http.StatusSeeOther)
}

// Authorization reads and checks an authorization request, in the form of a query. Its error is for Handler.Refuse.
func (h *Handler) Authorization(ctx context.Context, query string) (*Authorization, error) {
	if len(query) > maxQuery {
		return nil, &authorizationError{refusal: invalid("The request is too long.")}
	}
	f, twice := parseForm(query)
	if f == nil {
		return nil, &authorizationError{refusal: twice}
	}
	for _, name := range []string{"client_id", "redirect_uri", "request_uri"} {
		if len(f[name]) > 1 {
			return nil, &authorizationError{refusal: twice}
		}
	}
	id := f.get("client_id")
	if id == "" {
		return nil, &authorizationError{refusal: invalid("The client_id is missing.")}
	}
	pushed := f.get("request_uri")
	if pushed != "" && !isRequestURI(pushed) {
		return nil, &authorizationError{refusal: errRequestURI}
	}
	client, uri, err := h.described(ctx, id)
	if err != nil {
		return nil, err
	}
	if pushed != "" {
		if f, err = h.pushedRequest(ctx, id, pushed); err != nil {
			return nil, err
		}
		twice = nil
	}
	a, err := h.read(ctx, client, f, twice)
	if err != nil {
		return nil, err
	}
	if pushed == "" && h.o.RequirePushed {
		return nil, &authorizationError{invalid("The request must be pushed."), a}
	}
	a.pushed, a.Query, a.ClientURI = pushed, carried(id, pushed, f), uri
	return a, nil
}

// carriedNames are the parameters of the RFCs and of OpenID Connect: what else came, such as the fields of a login form, is
// not carried on.
var carriedNames = []string{
	"response_type", "response_mode", "redirect_uri", "scope", "state", "code_challenge", "code_challenge_method", "resource", "authorization_details",
	"dpop_jkt", "prompt", "max_age", "login_hint", "ui_locales", "acr_values", "display", "nonce",
}

func carried(client, pushed string, f form) string {
	v := url.Values{"client_id": {client}}
	if pushed != "" {
		v.Set("request_uri", pushed)
		return v.Encode()
	}
	for _, name := range carriedNames {
		if f.has(name) {
			v[name] = f[name]
		}
	}
	return v.Encode()
}

// read checks the parameters of a request of client, pushed or not.
func (h *Handler) read(ctx context.Context, client apitoken.Client, f form, twice *refusal) (*Authorization, error) {
	a := &Authorization{Client: client, Parameters: url.Values(f), named: f.get("redirect_uri"), state: f.get("state")}
	switch {
	case a.named == "" && len(client.RedirectURIs) == 1:
		a.redirect = client.RedirectURIs[0]
	case a.named != "" && redirect.Match(client.RedirectURIs, a.named):
		a.redirect = a.named
	default:
		return nil, &authorizationError{refusal: invalid("The redirect_uri is not the client's.")}
	}
	// From here on the client hears of errors.
	no := func(v *refusal) (*Authorization, error) { return nil, &authorizationError{v, a} }
	if twice != nil {
		if len(f["state"]) > 1 {
			a.state = ""
		}
		return no(twice)
	}
	if f.has("request") {
		return no(bad("request_not_supported", "Request objects are not supported."))
	}
	switch f.get("response_type") {
	case "code":
	case "":
		return no(invalid("The response_type is missing."))
	default:
		return no(bad("unsupported_response_type", "The response_type is not supported."))
	}
	if mode := f.get("response_mode"); mode != "" && mode != "query" {
		return no(invalid("The response_mode is not supported."))
	}
	if !slices.Contains(client.GrantTypes, granttype.AuthorizationCode) {
		return no(errUnauthorized)
	}
	a.challenge = f.get("code_challenge")
	if sum, err := base64.RawURLEncoding.Strict().DecodeString(a.challenge); err != nil || len(sum) != 32 {
		return no(invalid("A code_challenge is needed (RFC 7636)."))
	}
	if f.get("code_challenge_method") != "S256" { // without one it would be plain (RFC 7636 §4.3)
		return no(invalid("The code_challenge_method must be S256."))
	}
	if print := f.get("dpop_jkt"); print != "" {
		a.binding = apitoken.BindDPoP(print)
	}
	var err error
	if a.Scopes, err = h.scopesOf(f, &client); err != nil {
		return no(judge(err))
	}
	if a.Resources, err = f.resources(); err != nil {
		return no(judge(err))
	}
	asked, err := f.details()
	if err == nil {
		a.Details, err = h.checkDetails(ctx, client, asked)
	}
	if err != nil {
		return no(judge(err))
	}
	claims, err := withDetails(nil, a.Details)
	if err == nil {
		err = h.adapter.Check(ctx, apitoken.Request{Client: client.ID, Scopes: a.Scopes, Audiences: a.Resources, Binding: a.binding, Claims: claims})
	}
	if err != nil {
		return no(judge(err))
	}
	a.checked = true
	return a, nil
}

// Approve ends an authorization with a code for the client. What it cannot give it tells the client.
func (h *Handler) Approve(w http.ResponseWriter, r *http.Request, a *Authorization, x Approval) {
	guardPage(w)
	if a == nil || !a.checked {
		h.page(w, r, errServer)
		return
	}
	code, err := h.approve(h.svc.Begin(r.Context()), a, x) // what is revoked from here on reaches what comes of it
	if err == nil {
		h.redirect(w, r, a, url.Values{"code": {code.Reveal()}})
		return
	}
	v := judge(err)
	if v.status >= http.StatusInternalServerError || v.code == "invalid_request" {
		var e *apitoken.Error
		errors.As(err, &e)
		h.log.WarnContext(r.Context(), "oauthhttp: no code", "client", a.Client.ID, "cause", detail(err, e))
	}
	h.redirect(w, r, a, url.Values{"error": {tellable(v)}, "error_description": {v.text}})
}

// tellable is the code of an error in the words of RFC 6749 §4.1.2.1.
func tellable(v *refusal) string {
	switch {
	case v.status == http.StatusServiceUnavailable || v.status == http.StatusTooManyRequests:
		return "temporarily_unavailable"
	case v.status >= http.StatusInternalServerError:
		return "server_error"
	case v.code == "invalid_client":
		return "unauthorized_client"
	}
	return v.code
}

func (h *Handler) approve(ctx context.Context, a *Authorization, x Approval) (apitoken.Secret, error) {
	req, err := x.request(a.Client, a.Scopes, a.Resources)
	if err != nil {
		return apitoken.Secret{}, err
	}
	req.Binding = a.binding
	if !a.Client.Expires.IsZero() {
		if err := h.svc.Clients.Keep(ctx, a.Client.ID); err != nil {
			return apitoken.Secret{}, err
		}
	}
	if a.pushed != "" {
		if err := h.takePushed(ctx, a.pushed); err != nil {
			return apitoken.Secret{}, err
		}
	}
	return h.svc.Prepare(ctx, req, apitoken.Ticket{Lifetime: h.o.CodeLifetime, Client: a.Client.ID, Challenge: a.challenge, RedirectURI: a.named})
}

// request is what to issue after an approval: never more than was asked for.
func (x *Approval) request(c apitoken.Client, asked apitoken.Scopes, resources []string) (apitoken.Request, error) {
	req := apitoken.Request{Subject: x.Subject, Client: c.ID, Audiences: resources}
	if x.Subject == "" {
		return req, &apitoken.Error{Code: apitoken.ErrInvalidRequest, Detail: "an Approval without Subject"}
	}
	scopes, more := x.Scopes.of(asked)
	if more {
		return req, &apitoken.Error{Code: apitoken.ErrInvalidScope, Detail: "an Approval with more scopes than were asked for"}
	}
	limit(&req, scopes, x.Roles)
	req.Refresh = !x.NoRefresh && slices.Contains(c.GrantTypes, granttype.RefreshToken)
	var err error
	req.Claims, err = withDetails(x.Claims, x.Details)
	return req, err
}

// Deny ends an authorization without a code. reason is an error code of RFC 6749 §4.1.2.1, or of OpenID Connect where the
// client asked for no questions (prompt=none): "login_required", "consent_required". Empty: access_denied. The refusal is recorded
// with the client and the Token in r's context.
func (h *Handler) Deny(w http.ResponseWriter, r *http.Request, a *Authorization, reason string) {
	guardPage(w)
	if a == nil || !a.checked {
		h.page(w, r, errServer)
		return
	}
	text := "The request was not approved."
	switch reason {
	case "":
		reason = "access_denied"
	case "access_denied", "login_required", "consent_required", "interaction_required", "account_selection_required", "unauthorized_client", "invalid_scope", "temporarily_unavailable", "server_error":
	default:
		h.log.WarnContext(r.Context(), "oauthhttp: Deny with an unknown reason", "reason", reason)
		reason = "server_error"
	}
	h.adapter.Refused(r.Context(), apitoken.ClientAuth{ID: a.Client.ID}, "authorize", "the host denied the request: "+reason)
	if a.pushed != "" {
		// A denied request stays denied, but that it does matters less than that the client hears of it.
		if err := h.takePushed(r.Context(), a.pushed); err != nil {
			h.log.WarnContext(r.Context(), "oauthhttp: a denied request could not be ended", "cause", err)
		}
	}
	h.redirect(w, r, a, url.Values{"error": {reason}, "error_description": {text}})
}
