package oauthhttp

import (
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/internal/jws"
)

const (
	maxBody       = 64 << 10
	maxQuery      = 16 << 10
	maxParameters = 64
)

// A form is the parameters of a request, each once (RFC 6749 §3.2); those without a value do not count.
type form map[string][]string

// repeatable may come more than once: RFC 8707 §2, RFC 8693 §2.1.
var repeatable = []string{"resource", "audience"}

// readBody reads a body of the media type, in bounded size; the front of each endpoint bounds the time.
func (h *Handler) readBody(w http.ResponseWriter, r *http.Request, media string) ([]byte, error) {
	types := r.Header.Values("Content-Type")
	if len(types) != 1 {
		return nil, invalid("The Content-Type must be " + media + ".")
	}
	got, params, err := mime.ParseMediaType(types[0])
	charset, ok := params["charset"]
	if err != nil || got != media || ok && !strings.EqualFold(charset, "utf-8") {
		return nil, invalid("The Content-Type must be " + media + ".")
	}
	if r.Header.Get("Content-Encoding") != "" {
		return nil, invalid("The body must not be encoded.")
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		w.Header().Set("Connection", "close") // the deadline stands: nobody waits for the rest
	}
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return nil, &refusal{status: http.StatusRequestEntityTooLarge, code: "invalid_request", text: "The body is too large."}
	case err != nil:
		return nil, &refusal{status: http.StatusRequestTimeout, code: "invalid_request", text: "The body did not arrive.", cause: err}
	}
	return body, nil
}

// readForm reads the parameters of a POST. Credentials in a URL end in logs (RFC 6749 §2.3.1), so that none is taken
// from there.
func (h *Handler) readForm(w http.ResponseWriter, r *http.Request) (form, error) {
	if r.URL.RawQuery != "" {
		return nil, invalid("Parameters belong into the body, not into the URL.")
	}
	body, err := h.readBody(w, r, "application/x-www-form-urlencoded")
	if err != nil {
		return nil, err
	}
	f, rerr := parseForm(string(body))
	if rerr != nil {
		return nil, rerr
	}
	return f, nil
}

// parseForm reads parameters. With an error that says one came twice it returns them too.
func parseForm(raw string) (form, *refusal) {
	if strings.Count(raw, "&") >= maxParameters {
		return nil, invalid("There are too many parameters.")
	}
	v, err := url.ParseQuery(raw)
	if err != nil {
		return nil, invalid("The parameters are malformed.")
	}
	f := form{}
	var twice *refusal
	for name, values := range v {
		if !utf8.ValidString(name) || slices.ContainsFunc(values, func(s string) bool { return !utf8.ValidString(s) || strings.ContainsRune(s, 0) }) {
			return nil, invalid("The parameters are malformed.")
		}
		if len(values) > 1 && !slices.Contains(repeatable, name) {
			twice = invalid("A parameter came more than once.")
		}
		values = slices.DeleteFunc(values, func(s string) bool { return s == "" })
		if len(values) > 0 {
			f[name] = values
		}
	}
	return f, twice
}

// get is a parameter, "" if it did not come.
func (f form) get(name string) string {
	if v := f[name]; len(v) > 0 {
		return v[0]
	}
	return ""
}

func (f form) has(name string) bool { return len(f[name]) > 0 }

// scopes are the scopes asked for; nil: none were named.
func (f form) scopes() (apitoken.Scopes, error) {
	scopes, err := apitoken.ParseScopes(f.get("scope"))
	if err != nil {
		no := *errScope
		no.cause = err
		return nil, &no
	}
	return scopes, nil
}

// scopesOf are the scopes asked for that client may have: those that the service does not know, or the client may not ask for, are
// left out, and the token response tells which ones were given (RFC 6749 §3.3). A request that names neither a scope nor
// authorization_details asks for the client's default. An error: none is left.
func (h *Handler) scopesOf(f form, client *apitoken.Client) (apitoken.Scopes, error) {
	asked, err := f.scopes()
	switch {
	case err != nil:
		return nil, err
	case len(asked) == 0 && f.has(detailsMember): // it says what it is for (RFC 9396 §2)
		return nil, nil
	case len(asked) == 0:
		return h.usual(client)
	}
	kept := h.adapter.Narrow(asked, client.Scopes)
	if len(kept) == 0 {
		return nil, errScope
	}
	return kept, nil
}

// usual are the scopes of a client that names none (RFC 6749 §3.3): all that it may have, without those that left
// Config.Scopes. An error: it has scopes, and the service knows none of them.
func (h *Handler) usual(client *apitoken.Client) (apitoken.Scopes, error) {
	scopes := h.adapter.Narrow(client.Scopes, client.Scopes)
	if len(scopes) == 0 && len(client.Scopes) > 0 {
		return nil, errScope
	}
	return scopes, nil
}

// resources are the targets asked for (RFC 8707 §2): absolute URIs without fragment.
func (f form) resources() ([]string, error) {
	for _, raw := range f["resource"] {
		u, err := url.Parse(raw)
		if err != nil || u.Scheme == "" || strings.Contains(raw, "#") || len(raw) > 255 {
			return nil, &apitoken.Error{Code: apitoken.ErrInvalidTarget, Detail: "a resource is no absolute URI without fragment"}
		}
	}
	return slices.Clone(f["resource"]), nil
}

// details are the authorization_details asked for (RFC 9396 §2).
func (f form) details() ([]Detail, error) {
	raw := f.get("authorization_details")
	if raw == "" {
		return nil, nil
	}
	return parseDetails([]byte(raw))
}

func parseDetails(raw []byte) ([]Detail, error) {
	if err := jws.CheckJSON(raw); err != nil {
		return nil, errDetails
	}
	var list []json.RawMessage
	if err := json.Unmarshal(raw, &list); err != nil || len(list) == 0 || len(list) > maxDetails {
		return nil, errDetails
	}
	out := make([]Detail, len(list))
	for i, x := range list {
		var t struct {
			Type string `json:"type"`
		}
		if err := json.Unmarshal(x, &t); err != nil || t.Type == "" {
			return nil, errDetails
		}
		out[i] = Detail{Type: t.Type, JSON: x}
	}
	return out, nil
}
