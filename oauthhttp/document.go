package oauthhttp

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/internal/clientauth"
	"github.com/apitoken-go/apitoken/internal/fetch"
	"github.com/apitoken-go/apitoken/internal/jws"
	"github.com/apitoken-go/apitoken/internal/source"
	"github.com/apitoken-go/apitoken/internal/throttle"
)

// Documents says what clients may describe themselves (draft-ietf-oauth-client-id-metadata-document): their ID is an https URL
// with a path, where their metadata are read when they first come and when what was read has grown old. No address of this
// machine, its network or its cloud is ever connected to, whatever a URL or its name in DNS says.
//
// Such a client is in Clients like any other, listed, disabled and revoked there. It ends by itself an hour after it came, or, once
// a user has let it have tokens, when the last of those could have ended. What the host changes of it makes it stay.
type Documents struct {
	// GrantTypes are those that a client may have; nil: authorization_code and refresh_token. What it asks for beyond is left out.
	GrantTypes []string
	// Scopes are the most that a client gets of those it asks for, and what it gets when it asks for none; nil: none.
	Scopes apitoken.Scopes
	// Schemes are as in Registration.
	Schemes []string
	// Allow is asked before a document is fetched, with the URL that is the client's ID: for hosts that know whom they trust. An
	// error refuses, unless it is apitoken.ErrUnavailable. nil: all may come.
	Allow func(ctx context.Context, id *url.URL) error
	// Check is asked before a client is made or changed, and may narrow it. An error refuses, unless it is
	// apitoken.ErrUnavailable. nil: it is taken.
	Check func(ctx context.Context, c *apitoken.Client) error
	// Most is how many clients that nobody here has made there may be at a time. Zero: 10,000.
	Most int

	// TLS is for the connections to clients' hosts; nil: the system's roots.
	TLS *tls.Config
	// InsecureReachable says which addresses may be connected to, in place of those of the public Internet: for tests, and for
	// clients inside a network. Whoever names a client ID can make this process send requests to what it allows.
	InsecureReachable func(netip.Addr) bool
}

const mostDocuments = 10_000

func (d *Documents) check() error {
	if d.Most < 0 {
		return wrong("Documents", "Most is negative")
	}
	return d.policy().check()
}

// policy is what a document may ask for, in the terms of a registration.
func (d *Documents) policy() *Registration {
	x := &Registration{GrantTypes: d.GrantTypes, Scopes: d.Scopes, Schemes: d.Schemes}
	if d.Check != nil {
		x.Check = func(ctx context.Context, _ apitoken.Token, c *apitoken.Client) error { return d.Check(ctx, c) }
	}
	return x
}

// isDocument reports whether a client ID is a URL that describes its client.
func (h *Handler) isDocument(id string) bool {
	return h.o.Documents != nil && strings.HasPrefix(id, "https://") && fetch.Check(id) == nil
}

var errUnknownClient = bad("invalid_client", "The client is unknown.")

// described is the client that an authorization request names, registered or by its document, and the page about it, if it has
// one.
func (h *Handler) described(ctx context.Context, id string) (client apitoken.Client, uri string, err error) {
	client, err = h.svc.Clients.Known(ctx, id) // anybody may ask: no read of the store for each
	if err != nil && !errors.Is(err, apitoken.ErrNotFound) {
		return client, "", err
	}
	known := err == nil
	switch {
	case known && client.Disabled:
		return client, "", &authorizationError{refusal: errUnknownClient}
	case h.isDocument(id):
		return h.document(ctx, client, known, id)
	case !known:
		return client, "", &authorizationError{refusal: errUnknownClient}
	}
	return client, "", nil
}

// document reads the client's document and makes the client be as it says. known is whether the client is here already: then a
// host that cannot be reached now does not shut it out.
func (h *Handler) document(ctx context.Context, client apitoken.Client, known bool, id string) (apitoken.Client, string, error) {
	no := func(v *refusal, cause error) (apitoken.Client, string, error) {
		h.log.InfoContext(ctx, "oauthhttp: a client's document is not taken", "client", id, "cause", cause)
		told := *v
		told.cause = cause
		return apitoken.Client{}, "", &authorizationError{refusal: &told}
	}
	d := h.o.Documents
	if d.Allow != nil {
		u, err := url.Parse(id)
		if err == nil {
			_, err = askHost(ctx, h, "Documents.Allow", func(ctx context.Context) (struct{}, error) { return struct{}{}, d.Allow(ctx, u) })
		}
		if errors.Is(err, apitoken.ErrUnavailable) {
			return client, "", err
		}
		if err != nil {
			return no(errUnknownClient, err)
		}
	}
	if from := source.Of(apitoken.OriginOf(ctx).Address); !known && !h.newly.Take(throttle.Name{From: from}, h.now()) {
		return client, "", &apitoken.Error{Code: apitoken.ErrLimited, RetryAfter: throttle.Window, Detail: "too many new clients from " + from}
	}
	body, err := h.fetch.Get(ctx, id)
	var m *clientMetadata
	if err == nil {
		m, err = h.parseDocument(ctx, id, body)
	}
	if err != nil {
		if known && m == nil && !errors.As(err, new(*refusal)) {
			h.log.InfoContext(ctx, "oauthhttp: a client's document cannot be read now; it stays as it was", "client", id, "cause", err)
			return client, "", nil
		}
		if errors.Is(err, fetch.ErrBusy) {
			return client, "", &apitoken.Error{Code: apitoken.ErrUnavailable, Detail: "too many clients' documents are being read", Cause: err}
		}
		return no(bad("invalid_client", "The client's metadata document cannot be read, or is not right."), err)
	}
	next := apitoken.Client{ID: id}
	if err := h.apply(ctx, d.policy(), &next, m, apitoken.Token{}); err != nil {
		if isUnavailable(err) {
			return client, "", err
		}
		return no(bad("invalid_client", "The client's metadata document asks for what may not be had."), err)
	}
	next, err = h.svc.Clients.Adopt(ctx, next, most(d.Most))
	switch {
	case errors.Is(err, apitoken.ErrInvalidRequest), errors.Is(err, apitoken.ErrDenied), errors.Is(err, apitoken.ErrInvalidScope):
		return no(bad("invalid_client", "The client's metadata document is not right."), err)
	case err != nil:
		return client, "", err
	}
	return next, m.URI, nil
}

func most(n int) int {
	if n == 0 {
		return mostDocuments
	}
	return n
}

// parseDocument reads a metadata document, and the keys that it refers to. Its errors are refusals where the document is wrong.
func (h *Handler) parseDocument(ctx context.Context, id string, body []byte) (*clientMetadata, error) {
	m, err := parseMetadata(body)
	if err != nil {
		return nil, err
	}
	switch {
	case m.ID != id:
		return nil, badMetadata("The client_id of the document is not its URL.")
	case m.Secret != "" || strings.HasPrefix(m.AuthMethod, "client_secret_"):
		return nil, badMetadata("A document that everybody can read holds or asks for a secret.")
	case m.JWKS != nil && m.JWKSURI != "":
		return nil, badMetadata("jwks and jwks_uri: one of them.")
	}
	if m.AuthMethod == "" {
		m.AuthMethod = "none"
	}
	if m.URI != "" {
		if u, err := url.Parse(m.URI); err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || len(m.URI) > fetch.MaxURL {
			m.URI = "" // it is only shown
		}
	}
	if m.JWKSURI != "" {
		keys, err := h.fetch.Get(ctx, m.JWKSURI)
		if err != nil {
			return nil, err
		}
		if err := jws.CheckJSON(keys); err != nil {
			return nil, badMetadata("The key set is no strict JSON.")
		}
		m.JWKS, m.JWKSURI = json.RawMessage(keys), ""
	}
	return m, nil
}

// meet reads the document of a client that comes to an endpoint itself: one that pushes a request may be new, and one that signs may
// have new keys.
func (h *Handler) meet(ctx context.Context, a *apitoken.ClientAuth, path string) error {
	id := a.ID
	if id == "" && !a.Assertion.IsZero() {
		id = clientauth.Claimant(a.Assertion.Reveal())
	}
	if path != parPath && a.Assertion.IsZero() || !h.isDocument(id) {
		return nil
	}
	if path != parPath {
		if _, err := h.svc.Clients.Known(ctx, id); err != nil {
			return nil // who is unknown is told so by the service
		}
	}
	_, _, err := h.described(ctx, id)
	var v *authorizationError
	if errors.As(err, &v) {
		return &refusal{status: http.StatusUnauthorized, code: "invalid_client", text: v.text, cause: v.cause}
	}
	return err
}
