package oauthhttp

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"net/http"
	"regexp"
	"strings"

	"github.com/apitoken-go/apitoken"
)

// Pushed authorization requests (RFC 9126): the client sends its request itself, authenticated and out of the
// browser's reach, and the browser carries a reference that is good once.

const requestURN = "urn:ietf:params:oauth:request_uri:"

// pushedNote is a request that waits for its browser.
type pushedNote struct {
	V      int    `json:"v"`
	Client string `json:"client"`
	Form   form   `json:"form"`
}

// newRequestURI is a reference that nobody guesses.
func newRequestURI() string { return requestURN + rand.Text() + rand.Text() }

var requestURIShape = regexp.MustCompile(`^` + regexp.QuoteMeta(requestURN) + `[A-Z2-7]{52,}$`) // rand.Text is base32, 26 or more

// isRequestURI reports whether uri has the shape of what newRequestURI makes: others are refused without a look at the store.
func isRequestURI(uri string) bool { return len(uri) <= 256 && requestURIShape.MatchString(uri) }

func pushedName(uri string) string { return "par\x00" + uri }

var errRequestURI = bad("invalid_request_uri", "The request_uri is unknown, expired or used.")

// Pushed is the pushed authorization request endpoint (RFC 9126 §2).
func (h *Handler) Pushed() http.Handler {
	if h.o.Consent == nil {
		return http.NotFoundHandler()
	}
	return h.endpoint(true, "POST", func(w http.ResponseWriter, r *http.Request) (failed error) {
		r = r.WithContext(h.svc.Begin(r.Context())) // the request ends with what is revoked of its client from here on
		f, err := h.readForm(w, r)
		if err != nil {
			return err
		}
		c, err := h.client(r, f, parPath)
		if err != nil {
			return err
		}
		defer func() { failed = h.denied(r.Context(), c.auth, "authorize", failed) }()
		if f.has("request_uri") {
			return invalid("A pushed request has no request_uri (RFC 9126 §2.1).")
		}
		// The proof of this request binds the code as dpop_jkt does (RFC 9449 §10.1).
		if len(r.Header.Values("DPoP")) > 0 {
			binding, err := h.binding(r, c, parPath)
			if err != nil {
				return err
			}
			print := strings.TrimPrefix(binding, apitoken.BindDPoP(""))
			if asked := f.get("dpop_jkt"); asked != "" && asked != print {
				return &apitoken.Error{Code: apitoken.ErrInvalidProof, Detail: "dpop_jkt is not of the proof's key"}
			}
			f["dpop_jkt"] = []string{print}
		}
		for _, name := range []string{"client_id", "client_secret", "client_assertion", "client_assertion_type"} {
			delete(f, name) // no credential is kept
		}
		if _, err := h.read(r.Context(), c.Client, f, nil); err != nil {
			return err // to the client itself, with the codes of both endpoints (RFC 9126 §2.3)
		}
		data, err := json.Marshal(pushedNote{1, c.ID, f})
		if err != nil {
			return err
		}
		uri := newRequestURI()
		err = h.adapter.ChangeNote(r.Context(), pushedName(uri), func(n *apitoken.Note) error {
			n.Data, n.Expires, n.Client = data, h.now().Add(h.o.PushedLifetime), c.ID
			return nil
		})
		if errors.Is(err, apitoken.ErrInvalidRequest) {
			return &refusal{status: http.StatusRequestEntityTooLarge, code: "invalid_request", text: "The request is too large."}
		}
		if err != nil {
			return err
		}
		return h.answer(w, r, http.StatusCreated, struct {
			URI     string `json:"request_uri"`
			Expires int64  `json:"expires_in"`
		}{uri, int64(h.o.PushedLifetime.Seconds())})
	})
}

// pushedRequest reads what client pushed. Only the request_uri counts then (RFC 9126 §4, RFC 9101 §5).
func (h *Handler) pushedRequest(ctx context.Context, client, uri string) (form, error) {
	if !isRequestURI(uri) {
		return nil, &authorizationError{refusal: errRequestURI}
	}
	n, err := h.adapter.Note(ctx, pushedName(uri))
	if errors.Is(err, apitoken.ErrNotFound) {
		return nil, &authorizationError{refusal: errRequestURI}
	}
	if err != nil {
		return nil, err
	}
	var p pushedNote
	if err := json.Unmarshal(n.Data, &p); err != nil || p.V != 1 {
		return nil, &apitoken.Error{Code: apitoken.ErrUnavailable, Detail: "a pushed request is damaged or of a newer version", Cause: err}
	}
	if p.Client != client {
		return nil, &authorizationError{refusal: errRequestURI}
	}
	return p.Form, nil
}

// takePushed ends a pushed request: one code comes of it.
func (h *Handler) takePushed(ctx context.Context, uri string) error {
	return h.adapter.ChangeNote(ctx, pushedName(uri), func(n *apitoken.Note) error {
		if n.Expires.IsZero() {
			return errRequestURI
		}
		n.Data, n.Expires = nil, h.now()
		return nil
	})
}
