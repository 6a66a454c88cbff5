package oauthhttp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/internal/granttype"
	"github.com/apitoken-go/apitoken/internal/jws"
	"github.com/apitoken-go/apitoken/internal/redirect"
	"github.com/apitoken-go/apitoken/internal/source"
	"github.com/apitoken-go/apitoken/internal/throttle"
)

// RegisterScope is what an initial access token must hold (RFC 7591 §3). An API key with it and with MaxUses is a
// good one; where Config.Scopes names the known scopes, this must be among them.
const RegisterScope apitoken.Scope = "apitoken:register"

// Registration says what clients may be registered by programs (RFC 7591), and change themselves (RFC 7592). What the host
// makes of such a client's scopes, grant types and bindings by Clients.Update stays the most it may have; its redirect
// URIs, keys and AuthMethod stay the client's own choice.
type Registration struct {
	// GrantTypes are those that a client may ask for; nil: authorization_code and refresh_token.
	GrantTypes []string
	// Scopes are the most that a client gets of those it asks for, and what it gets when it asks for none; nil: none. What it asks
	// for beyond is left out, like grant types beyond GrantTypes; the answer tells. A client of which nothing is left is refused.
	Scopes apitoken.Scopes
	// Schemes are the schemes of programs' own without a dot, such as "cursor", that redirect URIs may have. Those with a dot, reversed
	// domain names as RFC 8252 §7.1 wants them, may always be. Any program on a user's machine may claim either. nil: none.
	Schemes []string
	// Check is asked before a client is made or changed, with the token that was presented (zero at a change), and may
	// narrow it. An error refuses, unless it is apitoken.ErrUnavailable. nil: it is taken.
	Check func(ctx context.Context, by apitoken.Token, c *apitoken.Client) error
	// Open lets anybody register a public client without an initial access token, and says how many clients that nobody here has
	// made there may be at a time, those of Documents among them. One that no user lets have tokens ends after an hour. Zero: a
	// registration needs its token.
	Open int
}

func (x *Registration) check() error {
	for _, g := range x.GrantTypes {
		if !slices.Contains(granttype.All, g) {
			return wrong("Registration", "a grant type that is unknown")
		}
	}
	for _, s := range x.Schemes {
		if err := redirect.Scheme(s); err != nil {
			return wrong("Registration", fmt.Sprintf("scheme %q %s", s, err))
		}
	}
	return nil
}

func (x *Registration) grantTypes() []string {
	if x.GrantTypes == nil {
		return []string{granttype.AuthorizationCode, granttype.RefreshToken}
	}
	return x.GrantTypes
}

// narrowed is what of the grant types asked for a client gets, nil for none. A client names what it can do, by the server's metadata
// or by habit, and reads in the answer what it may do (RFC 7591 §2, §3.2.1).
func (x *Registration) narrowed(asked []string, public bool) []string {
	if asked == nil {
		asked = []string{granttype.AuthorizationCode} // RFC 7591 §2
	}
	var out []string
	for _, g := range asked {
		switch {
		case !slices.Contains(x.grantTypes(), g), slices.Contains(out, g):
		case public && (g == granttype.ClientCredentials || g == granttype.TokenExchange): // for clients that prove who they are
		default:
			out = append(out, g)
		}
	}
	return out
}

// clientMetadata is what is read of RFC 7591 §2 and of the RFCs that add to it; other members are ignored, as §2 says.
type clientMetadata struct {
	RedirectURIs []string        `json:"redirect_uris,omitempty"`
	AuthMethod   string          `json:"token_endpoint_auth_method,omitempty"`
	GrantTypes   []string        `json:"grant_types,omitempty"`
	Responses    []string        `json:"response_types,omitempty"`
	Name         string          `json:"client_name,omitempty"`
	Scope        *string         `json:"scope,omitempty"`
	JWKS         json.RawMessage `json:"jwks,omitempty"`
	JWKSURI      string          `json:"jwks_uri,omitempty"`
	DPoP         bool            `json:"dpop_bound_access_tokens,omitempty"`
	Certificates bool            `json:"tls_client_certificate_bound_access_tokens,omitempty"`
	SubjectDN    string          `json:"tls_client_auth_subject_dn,omitempty"`
	SANDNS       string          `json:"tls_client_auth_san_dns,omitempty"`
	SANURI       string          `json:"tls_client_auth_san_uri,omitempty"`
	SANIP        string          `json:"tls_client_auth_san_ip,omitempty"`
	SANEmail     string          `json:"tls_client_auth_san_email,omitempty"`
	Statement    string          `json:"software_statement,omitempty"`
	Application  string          `json:"application_type,omitempty"`
	URI          string          `json:"client_uri,omitempty"`

	// Of an update (RFC 7592 §2.2).
	ID     string `json:"client_id,omitempty"`
	Secret string `json:"client_secret,omitempty"`
}

// clientInformation is RFC 7591 §3.2.1 and RFC 7592 §3.
type clientInformation struct {
	ID            string   `json:"client_id"`
	Secret        string   `json:"client_secret,omitempty"`
	IssuedAt      int64    `json:"client_id_issued_at"`
	SecretExpires *int64   `json:"client_secret_expires_at,omitempty"`
	Token         string   `json:"registration_access_token,omitempty"`
	URI           string   `json:"registration_client_uri"`
	Scope         string   `json:"scope"`
	Name          string   `json:"client_name,omitempty"`
	Application   string   `json:"application_type,omitempty"`
	AuthMethod    string   `json:"token_endpoint_auth_method"`
	RedirectURIs  []string `json:"redirect_uris,omitempty"`
	GrantTypes    []string `json:"grant_types"`
	Responses     []string `json:"response_types"`

	JWKS         json.RawMessage `json:"jwks,omitempty"`
	DPoP         bool            `json:"dpop_bound_access_tokens,omitempty"`
	Certificates bool            `json:"tls_client_certificate_bound_access_tokens,omitempty"`
	SubjectDN    string          `json:"tls_client_auth_subject_dn,omitempty"`
	SANDNS       string          `json:"tls_client_auth_san_dns,omitempty"`
	SANURI       string          `json:"tls_client_auth_san_uri,omitempty"`
	SANIP        string          `json:"tls_client_auth_san_ip,omitempty"`
	SANEmail     string          `json:"tls_client_auth_san_email,omitempty"`
}

var errMetadata = bad("invalid_client_metadata", "The client metadata contradict themselves, or ask for more than may be had.")

func badMetadata(text string) error { return bad("invalid_client_metadata", text) }

// Register is the client registration endpoint (RFC 7591 §3), and with a client's ID behind its path the client
// configuration endpoint (RFC 7592 §2).
func (h *Handler) Register() http.Handler {
	if h.o.Registration == nil {
		return http.NotFoundHandler()
	}
	create := h.endpoint(true, "POST", h.registerClient)
	manage := h.endpoint(true, "GET PUT DELETE", h.manageClient)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.EscapedPath(), registerPath) {
			create.ServeHTTP(w, r)
			return
		}
		manage.ServeHTTP(w, r)
	})
}

func (h *Handler) registerClient(w http.ResponseWriter, r *http.Request) error {
	by, err := h.auth.Check(r, apitoken.AllOf(RegisterScope))
	open := h.o.Registration.Open > 0 && errors.Is(err, apitoken.ErrNoToken)
	if open {
		err = h.mayMakeOne(r.Context())
	}
	if err != nil {
		return h.tokenError(w, err)
	}
	ctx := apitoken.NewContext(r.Context(), by)
	no := func(err error) error { return h.denied(ctx, apitoken.ClientAuth{}, "registration", err) }
	m, err := h.readMetadata(w, r)
	if err != nil {
		return no(err)
	}
	if m.ID != "" || m.Secret != "" {
		return no(badMetadata("The client_id and the client_secret are the server's to choose."))
	}
	c := apitoken.Client{}
	if open {
		m.narrowToPublic()
		c.Expires = h.now().Add(unusedRegistration)
	}
	if err := h.apply(r.Context(), h.o.Registration, &c, m, by); err != nil {
		return no(err)
	}
	// The body may have come slowly: what was revoked meanwhile registers nobody. Where anybody may register there is no token.
	still := func() error {
		if by.IsZero() {
			return nil
		}
		return h.svc.Recheck(ctx, by)
	}
	if err := still(); err != nil {
		return h.tokenError(w, err)
	}
	c, secret, token, err := h.svc.Clients.Register(ctx, c)
	if err != nil {
		return no(metadataError(err))
	}
	if err := still(); err != nil { // now all is known that was revoked before the client was written
		_, failed := h.svc.Clients.Update(context.WithoutCancel(ctx), c.ID, func(c *apitoken.Client) error { c.Disabled = true; return nil })
		return h.tokenError(w, errors.Join(err, failed))
	}
	return h.answer(w, r, http.StatusCreated, h.information(c, secret, token))
}

// unusedRegistration is how long a client lives that anybody may have registered, until a user lets it have tokens.
const unusedRegistration = time.Hour

// mayMakeOne says whether there is room for a client for which nobody vouches.
func (h *Handler) mayMakeOne(ctx context.Context) error {
	switch from := source.Of(apitoken.OriginOf(ctx).Address); {
	case !h.newly.Take(throttle.Name{From: from}, h.now()):
		return &apitoken.Error{Code: apitoken.ErrLimited, RetryAfter: throttle.Window, Detail: "too many new clients from " + from}
	case h.svc.Clients.Temporary() >= h.o.Registration.Open:
		return &apitoken.Error{Code: apitoken.ErrLimited, RetryAfter: unusedRegistration, Detail: "too many clients that registered themselves"}
	}
	return nil
}

// narrowToPublic takes out how a client would prove who it is: of one for which nobody vouches that would prove nothing. It takes
// out the scope too, so that the client may ask a user for all that the host lets such clients have: MCP clients register with the
// scope of the first challenge, and could never step up. The answer tells (RFC 7591 §3.2.1).
func (m *clientMetadata) narrowToPublic() {
	m.Scope = nil
	m.AuthMethod, m.JWKS, m.JWKSURI = "none", nil, ""
	m.SubjectDN, m.SANDNS, m.SANURI, m.SANIP, m.SANEmail = "", "", "", "", ""
}

// tokenError answers for the initial access token and the registration access token, as RFC 6750 §3 says.
func (h *Handler) tokenError(w http.ResponseWriter, err error) error {
	challenge := func(code string) { w.Header().Set("WWW-Authenticate", `Bearer realm="oauth", error="`+code+`"`) }
	switch {
	case errors.Is(err, apitoken.ErrNoToken):
		w.Header().Set("WWW-Authenticate", `Bearer realm="oauth"`)
		return &refusal{status: http.StatusUnauthorized, code: "invalid_token", text: "A token is needed.", cause: err}
	case errors.Is(err, apitoken.ErrInsufficientScope):
		w.Header().Set("WWW-Authenticate", `Bearer realm="oauth", error="insufficient_scope", scope="`+string(RegisterScope)+`"`)
		return &refusal{status: http.StatusForbidden, code: "insufficient_scope", text: "The token may not register clients.", cause: err}
	case errors.Is(err, apitoken.ErrInvalidToken):
		challenge("invalid_token")
		return &refusal{status: http.StatusUnauthorized, code: "invalid_token", text: "The token is not valid.", cause: err}
	}
	return err
}

func (h *Handler) readMetadata(w http.ResponseWriter, r *http.Request) (*clientMetadata, error) {
	body, err := h.readBody(w, r, "application/json")
	if err != nil {
		return nil, err
	}
	return parseMetadata(body)
}

// parseMetadata reads a client's metadata, sent or fetched.
func parseMetadata(body []byte) (*clientMetadata, error) {
	if err := jws.CheckJSON(body); err != nil {
		return nil, badMetadata("The body is no strict JSON.")
	}
	m := new(clientMetadata)
	if err := json.Unmarshal(body, m); err != nil {
		return nil, badMetadata("A member has the wrong type.")
	}
	// Null is a member that was left out (RFC 7592 §2.2); json.RawMessage alone keeps it.
	if string(m.JWKS) == "null" {
		m.JWKS = nil
	}
	return m, nil
}

// apply makes c what m asks for, within what x lets a client have.
func (h *Handler) apply(ctx context.Context, x *Registration, c *apitoken.Client, m *clientMetadata, by apitoken.Token) error {
	switch {
	case m.Statement != "":
		return bad("unapproved_software_statement", "Software statements are not taken.")
	case m.JWKSURI != "":
		return badMetadata("jwks_uri is not supported: give jwks.")
	}
	for _, uri := range m.RedirectURIs {
		if err := redirect.Check(uri, func(scheme string) bool { return slices.Contains(x.Schemes, scheme) }); err != nil {
			return &refusal{status: http.StatusBadRequest, code: "invalid_redirect_uri", text: "A redirect URI is not acceptable.", cause: err}
		}
		if m.Application == "web" && !strings.HasPrefix(uri, "https://") {
			return bad("invalid_redirect_uri", "A web application's redirect URIs are https.")
		}
	}
	if len(m.Responses) > 0 && !slices.Contains(m.Responses, "code") {
		return badMetadata("None of the response types is supported.")
	}
	c.Name, c.RedirectURIs, c.Keys, c.BindDPoP, c.BindCertificate = m.Name, m.RedirectURIs, m.JWKS, m.DPoP, m.Certificates
	c.Public = m.AuthMethod == "none"
	if c.AuthMethod = m.AuthMethod; c.Public {
		c.AuthMethod = ""
	} else if c.AuthMethod == "" {
		c.AuthMethod = "client_secret_basic" // RFC 7591 §2
	}
	if h.fapi && !slices.Contains(fapiMethods, c.AuthMethod) {
		return badMetadata("Clients prove who they are by private_key_jwt or a certificate.")
	}
	c.TLSName = ""
	for kind, v := range map[string]string{"dn:": m.SubjectDN, "dns:": m.SANDNS, "uri:": m.SANURI, "ip:": m.SANIP, "email:": m.SANEmail} {
		switch {
		case v == "":
		case c.TLSName != "":
			return badMetadata("More than one tls_client_auth name (RFC 8705 §2.1.2).")
		default:
			c.TLSName = kind + v
		}
	}
	if c.GrantTypes = x.narrowed(m.GrantTypes, c.Public); len(c.GrantTypes) == 0 {
		return badMetadata("None of the grant types is to be had.")
	}
	if slices.Contains(c.GrantTypes, granttype.AuthorizationCode) && len(c.RedirectURIs) == 0 {
		return bad("invalid_redirect_uri", "The authorization code grant needs redirect_uris.")
	}
	if c.Scopes = h.adapter.Narrow(x.Scopes, x.Scopes); m.Scope != nil {
		asked, err := apitoken.ParseScopes(*m.Scope)
		if err != nil {
			return badMetadata("The scope is malformed.")
		}
		if c.Scopes = h.adapter.Narrow(asked, x.Scopes); len(asked) > 0 && len(c.Scopes) == 0 {
			return badMetadata("None of the scopes is to be had.")
		}
	}
	if x.Check != nil {
		name := "Documents.Check"
		if x == h.o.Registration {
			name = "Registration.Check"
		}
		checked, err := askHost(ctx, h, name, func(ctx context.Context) (apitoken.Client, error) {
			mine := *c
			return mine, x.Check(ctx, by, &mine)
		})
		if errors.Is(err, apitoken.ErrUnavailable) {
			return err
		}
		if err != nil {
			no := *errMetadata
			no.cause = err
			return &no
		}
		*c = checked
	}
	return nil
}

// metadataError tells what the service refused.
func metadataError(err error) error {
	var own *refusal
	if errors.As(err, &own) {
		return err
	}
	if errors.Is(err, apitoken.ErrInvalidRequest) || errors.Is(err, apitoken.ErrInvalidScope) || errors.Is(err, apitoken.ErrInvalidTarget) {
		no := *errMetadata
		no.cause = err
		return &no
	}
	return err
}

// information describes c. A client secret is in it when it was just made, token always: the client's registration access token.
func (h *Handler) information(c apitoken.Client, secret, token apitoken.Secret) clientInformation {
	i := clientInformation{ID: c.ID, Secret: secret.Reveal(), IssuedAt: c.Created.Unix(), Token: token.Reveal(), URI: h.base + registerPath + "/" + url.PathEscape(c.ID),
		Scope: c.Scopes.String(), Name: c.Name, AuthMethod: c.AuthMethod, RedirectURIs: c.RedirectURIs, GrantTypes: c.GrantTypes, Responses: []string{},
		JWKS: c.Keys, DPoP: c.BindDPoP, Certificates: c.BindCertificate}
	if !secret.IsZero() {
		i.SecretExpires = new(int64) // 0: never (RFC 7591 §3.2.1)
	}
	if c.Public {
		i.AuthMethod = "none"
	}
	switch {
	case len(c.RedirectURIs) == 0:
	case slices.ContainsFunc(c.RedirectURIs, redirect.Local):
		i.Application = "native"
	default:
		i.Application = "web"
	}
	if slices.Contains(c.GrantTypes, granttype.AuthorizationCode) {
		i.Responses = []string{"code"}
	}
	if kind, v, ok := strings.Cut(c.TLSName, ":"); ok {
		switch kind {
		case "dn":
			i.SubjectDN = v
		case "dns":
			i.SANDNS = v
		case "uri":
			i.SANURI = v
		case "ip":
			i.SANIP = v
		case "email":
			i.SANEmail = v
		}
	}
	return i
}

// manageClient is the client configuration endpoint, for whoever holds the client's registration access token.
func (h *Handler) manageClient(w http.ResponseWriter, r *http.Request) error {
	id, err := url.PathUnescape(r.URL.EscapedPath()[strings.LastIndex(r.URL.EscapedPath(), "/")+1:])
	if err != nil {
		return errNotFound
	}
	ctx := r.Context()
	header := r.Header.Values("Authorization")
	if len(header) == 0 {
		return h.tokenError(w, apitoken.ErrNoToken)
	}
	scheme, token, _ := strings.Cut(header[0], " ")
	if len(header) > 1 || !strings.EqualFold(scheme, "Bearer") {
		return h.tokenError(w, apitoken.ErrInvalidToken)
	}
	// An unknown client and a wrong token are one answer: nobody learns which clients there are.
	registration := apitoken.NewSecret(strings.TrimLeft(token, " ")) // told again in each answer (RFC 7592 §3)
	c, err := h.svc.Clients.Registered(ctx, id, registration)
	if err != nil {
		return h.tokenError(w, err)
	}
	ctx = apitoken.WithActor(ctx, c.ID)
	switch r.Method {
	case http.MethodGet:
		return h.answer(w, r, http.StatusOK, h.information(c, apitoken.Secret{}, registration))
	case http.MethodDelete:
		// A client that has gone is one that is disabled: all that it holds ends with it.
		if _, err := h.svc.Clients.Reregister(ctx, id, registration, func(c *apitoken.Client) error { c.Disabled = true; return nil }); err != nil {
			return h.tokenError(w, err)
		}
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	m, unread := h.readMetadata(w, r)
	if unread == nil {
		unread = h.ownMetadata(ctx, id, m)
	}
	needsSecret := false
	// Also what is refused before the client is looked at is refused in here, where the service records it with the client's name.
	c, err = h.svc.Clients.Reregister(ctx, id, registration, func(c *apitoken.Client) error {
		if unread != nil {
			return explained(unread)
		}
		was := *c
		if err := h.apply(ctx, h.o.Registration, c, m, apitoken.Token{}); err != nil {
			return explained(err)
		}
		if c.Public != was.Public {
			return explained(badMetadata("A client does not change between public and confidential."))
		}
		if needsSecret = usesSecret(c) && !usesSecret(&was); needsSecret {
			return h.owe(ctx, id, true)
		}
		return nil
	})
	if errors.Is(err, apitoken.ErrInvalidToken) { // it ended meanwhile
		return h.tokenError(w, err)
	}
	if err != nil {
		return metadataError(err)
	}
	if usesSecret(&c) && !needsSecret { // of a change before this one, whose secret could not be made
		_, err := h.adapter.Note(ctx, owedName(id))
		if needsSecret = err == nil; err != nil && !errors.Is(err, apitoken.ErrNotFound) {
			return err
		}
	}
	var secret apitoken.Secret
	if needsSecret {
		if secret, err = h.svc.Clients.RotateSecret(ctx, id, 0); err != nil {
			return err
		}
		if err := h.owe(ctx, id, false); err != nil { // the next change makes another one, and tells it
			h.log.WarnContext(ctx, "oauthhttp: a client's secret was made and is still noted as owed", "client", id, "cause", err)
		}
	}
	return h.answer(w, r, http.StatusOK, h.information(c, secret, registration))
}

// ownMetadata refuses metadata that name another client, or a secret that is not the client's.
func (h *Handler) ownMetadata(ctx context.Context, id string, m *clientMetadata) error {
	if m.ID != id {
		return badMetadata("The client_id must be the client's own (RFC 7592 §2.2).")
	}
	if m.Secret == "" {
		return nil
	}
	_, err := h.svc.Clients.Authenticate(ctx, apitoken.ClientAuth{ID: id, Secret: apitoken.NewSecret(m.Secret)})
	if errors.Is(err, apitoken.ErrInvalidClient) {
		return badMetadata("The client_secret is not the client's: it cannot be chosen (RFC 7592 §2.2).")
	}
	return err
}

// A client that is changed to one with a secret gets it in a write of its own. Between the two it is owed one, which is noted
// first: whoever repeats, within a day, a change that failed there would else be answered 200 and never have a secret.
const owedFor = 23 * time.Hour // less than a note may live, for clocks that differ

func owedName(client string) string { return "secret\x00" + client }

func (h *Handler) owe(ctx context.Context, client string, on bool) error {
	return h.adapter.ChangeNote(ctx, owedName(client), func(n *apitoken.Note) error {
		if n.Data, n.Expires = nil, h.now(); on {
			n.Data, n.Expires = []byte{1}, h.now().Add(owedFor)
		}
		return nil
	})
}

func usesSecret(c *apitoken.Client) bool {
	return !c.Public && (c.AuthMethod == "" || strings.HasPrefix(c.AuthMethod, "client_secret_"))
}
