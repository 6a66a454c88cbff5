package oauthhttp

import (
	"cmp"
	"encoding/json"
	"net/http"
	"slices"
	"strings"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/internal/granttype"
)

const (
	typeAccess = "urn:ietf:params:oauth:token-type:access_token"
	typeJWT    = "urn:ietf:params:oauth:token-type:jwt"
)

// tokenResponse is RFC 6749 §5.1 with what RFC 8693 §2.2.1 and RFC 9396 §7 add.
type tokenResponse struct {
	apitoken.TokenResponse
	Type    string          `json:"issued_token_type,omitempty"`
	Details json.RawMessage `json:"authorization_details,omitempty"`
}

// tokenRequest is a request at the token endpoint by a client that was confirmed.
type tokenRequest struct {
	form
	*caller
	binding string         // once prove was called
	prove   func() error   // takes the request's DPoP proof
	counted bool           // the service records a refusal from here on
	voucher apitoken.Token // whom a verified assertion speaks of, for the record of a refusal
}

// Token is the token endpoint (RFC 6749 §3.2).
func (h *Handler) Token() http.Handler {
	grants := map[string]func(*http.Request, *tokenRequest) (*apitoken.Issued, error){
		granttype.ClientCredentials: h.clientCredentials,
		granttype.RefreshToken:      h.refresh,
		granttype.TokenExchange:     h.exchange,
	}
	if h.o.Consent != nil {
		grants[granttype.AuthorizationCode] = h.code
	}
	if len(h.issues) > 0 {
		grants[granttype.JWTBearer] = h.jwtBearer
	}
	if h.o.DevicePage != "" {
		grants[granttype.DeviceCode] = h.deviceCode
	}
	return h.endpoint(true, "POST", func(w http.ResponseWriter, r *http.Request) error {
		r = r.WithContext(h.svc.Begin(r.Context())) // what is revoked while the request comes in reaches what comes of it
		f, err := h.readForm(w, r)
		if err != nil {
			return err
		}
		name := f.get("grant_type")
		if name == "" {
			return invalid("The grant_type is missing.")
		}
		var c *caller
		if name == granttype.JWTBearer && isAnonymous(r, f) && f.has("assertion") && slices.ContainsFunc(h.issues, func(x *assertionIssuer) bool { return x.Client != "" }) {
			c, err = h.bearer(r, f)
		} else {
			c, err = h.client(r, f, tokenPath)
		}
		if err != nil {
			return err
		}
		grant, ok := grants[name]
		if !ok {
			return h.denied(r.Context(), c.auth, "grant_type", bad("unsupported_grant_type", "The grant_type is not supported."))
		}
		if err := c.may(name); err != nil {
			return h.denied(r.Context(), c.auth, "grant_type", err)
		}
		// A proof that was taken is recorded for more than an hour. Anybody can name a public client and make a proof, so
		// each grant first checks what else the request presents, and takes the proof then.
		t := &tokenRequest{form: f, caller: c}
		t.prove = func() (err error) {
			t.binding, err = h.binding(r, c, tokenPath)
			return err
		}
		issued, err := grant(r, t)
		if err != nil {
			if t.counted {
				return err
			}
			ctx := r.Context()
			if !t.voucher.IsZero() {
				ctx = apitoken.NewContext(ctx, t.voucher)
			}
			return h.denied(ctx, c.auth, "token", err)
		}
		out := tokenResponse{TokenResponse: issued.Response()}
		var own json.RawMessage
		if err := issued.Token.Claims(&own); err != nil {
			return err
		}
		out.Details = detailsOf(own)
		if name == granttype.TokenExchange {
			out.Type = typeAccess
			if f.get("requested_token_type") == typeJWT {
				out.Type = typeJWT
			}
		}
		if h.o.RequireNonce && r.Header.Get("DPoP") != "" {
			w.Header().Set("DPoP-Nonce", h.adapter.ProofNonce()) // the next one (RFC 9449 §8.2)
		}
		return h.answer(w, r, http.StatusOK, out)
	})
}

// ask reads what every grant that opens something may ask for.
func (h *Handler) ask(r *http.Request, t *tokenRequest) (req apitoken.Request, details []Detail, err error) {
	req = apitoken.Request{Client: t.ID}
	if req.Scopes, err = t.scopes(); err != nil {
		return req, nil, err
	}
	if req.Audiences, err = t.resources(); err != nil {
		return req, nil, err
	}
	if details, err = t.details(); err != nil {
		return req, nil, err
	}
	if details, err = h.checkDetails(r.Context(), t.Client, details); err != nil {
		return req, nil, err
	}
	req.Claims, err = withDetails(nil, details)
	return req, details, err
}

// clientCredentials is RFC 6749 §4.4. Without scope it gives all that the client has (§3.3).
func (h *Handler) clientCredentials(r *http.Request, t *tokenRequest) (*apitoken.Issued, error) {
	if err := t.prove(); err != nil { // the client has proved who it is
		return nil, err
	}
	req, _, err := h.ask(r, t)
	if err != nil {
		return nil, err
	}
	req.Auth, req.Binding = t.auth, t.binding
	if !t.has("scope") {
		if req.Scopes, err = h.usual(&t.Client); err != nil {
			return nil, err
		}
	}
	t.counted = true
	return h.svc.Issue(r.Context(), req)
}

// refresh is RFC 6749 §6.
func (h *Handler) refresh(r *http.Request, t *tokenRequest) (*apitoken.Issued, error) {
	if !t.has("refresh_token") {
		return nil, invalid("The refresh_token is missing.")
	}
	if t.has(detailsMember) {
		return nil, errDetails // what was granted goes on as it is
	}
	scopes, err := t.scopes()
	if err != nil {
		return nil, err
	}
	audiences, err := t.resources()
	if err != nil {
		return nil, err
	}
	if t.Public { // anybody may name it: nothing is written for a stranger. What a known client presents is judged below, with its name
		if err := h.adapter.Genuine(r.Context(), t.get("refresh_token")); err != nil {
			t.counted = true
			return nil, err
		}
	}
	if err := t.prove(); err != nil {
		return nil, err
	}
	t.counted = true
	return h.svc.Refresh(r.Context(), apitoken.RefreshRequest{Token: t.get("refresh_token"), Auth: t.auth, Scopes: scopes, Audiences: audiences, Binding: t.binding})
}

// code is RFC 6749 §4.1.3 with the verifier of RFC 7636 §4.5.
func (h *Handler) code(r *http.Request, t *tokenRequest) (*apitoken.Issued, error) {
	if !t.has("code") {
		return nil, invalid("The code is missing.")
	}
	audiences, err := t.resources()
	if err != nil {
		return nil, err
	}
	if t.Public { // anybody may name it: nothing is written for a stranger. What a known client presents is judged below, with its name
		if err := h.adapter.Genuine(r.Context(), t.get("code")); err != nil {
			t.counted = true
			return nil, err
		}
	}
	if err := t.prove(); err != nil {
		return nil, err
	}
	t.counted = true

	// A missing verifier is one that fits no challenge: invalid_grant (RFC 7636 §4.6). It does not fit a ticket without a
	// challenge either, which a host redeems by itself and this endpoint never does.
	verifier := cmp.Or(t.get("code_verifier"), "none")
	return h.svc.Redeem(r.Context(), apitoken.Redemption{Ticket: t.get("code"), Auth: t.auth, Verifier: verifier, RedirectURI: t.get("redirect_uri"), Audiences: audiences, Binding: t.binding})
}

// exchange is RFC 8693 §2.1. The tokens may be bound to the key that this request proves, or to its certificate.
func (h *Handler) exchange(r *http.Request, t *tokenRequest) (*apitoken.Issued, error) {
	if !t.has("subject_token") || !t.has("subject_token_type") {
		return nil, invalid("The subject_token or its type is missing.")
	}
	if t.has("actor_token") != t.has("actor_token_type") {
		return nil, invalid("The actor_token and its type go together.")
	}
	for _, name := range []string{"subject_token", "actor_token", "requested_token"} {
		switch typ := t.get(name + "_type"); {
		case typ != "" && typ != typeAccess && typ != typeJWT:
			return nil, invalid("A token type is not supported.")
		case typ == typeJWT && t.has(name) && strings.Count(t.get(name), ".") != 2: // such as an API key
			return nil, invalid("A token is not of its type.")
		}
	}
	if t.has(detailsMember) {
		return nil, errDetails
	}
	scopes, err := t.scopes()
	if err != nil {
		return nil, err
	}
	audiences, err := t.resources()
	if err != nil {
		return nil, err
	}
	for _, a := range t.form["audience"] {
		if !slices.Contains(audiences, a) { // both may name the same service (RFC 8693 §2.1)
			audiences = append(audiences, a)
		}
	}
	if err := t.prove(); err != nil { // public clients have no exchange: this one has proved who it is
		return nil, err
	}
	req := apitoken.ExchangeRequest{Auth: t.auth, Scopes: scopes, Audiences: audiences, Binding: t.binding,
		Token: apitoken.Credential{Token: t.get("subject_token"), CertSHA256: t.cert}}
	if t.has("actor_token") {
		req.Actor = apitoken.Credential{Token: t.get("actor_token"), CertSHA256: t.cert}
	}
	t.counted = true
	return h.svc.Exchange(r.Context(), req)
}
