package misuse

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"net/url"
	"strings"

	"github.com/apitoken-go/apitoken"
)

// PresentOptions are the choices of NewPresentHandler.
type PresentOptions struct {
	Notify func(context.Context, Leak) // called for each token that was revoked, before the answer; nil: only the audit log
	Logger *slog.Logger                // nil: nothing is logged
}

const presentBody = 80 << 10

// NewPresentHandler lets whoever holds a token revoke it: finders of a leaked one, and owners who lost theirs. It takes a
// POST with the token in the Authorization header (Bearer or DPoP), or in the body: form field or JSON member
// "token", or the text itself as text/plain. It ends what Service.RevokeLeaked does: with an access or refresh token its whole
// grant, an API key, a client secret or a ticket itself; it is recorded as token.leaked and told to Notify.
//
// It answers 200 with a constant body, the same for known, unknown, expired and revoked tokens (a known one takes as long as
// writing its revocation does: that it was good until then is all that whoever held it can tell); 400 when there is no
// token, or more than one; 405, 413; 503 with Retry-After when the store failed: the revocation is not known to be
// written, and the caller must try again. It asks for no other credential: put a rate limit in front of it.
func NewPresentHandler(svc *apitoken.Service, o *PresentOptions) http.Handler {
	if o == nil {
		o = &PresentOptions{}
	}
	return &presentHandler{newLeaks(svc, o.Notify, o.Logger)}
}

type presentHandler struct{ leaks }

func (h *presentHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		answer(w, http.StatusMethodNotAllowed, `{"error":"invalid_request","error_description":"POST the token"}`)
		return
	}
	body, status := readBody(w, r, presentBody)
	if status != 0 {
		answer(w, status, `{"error":"invalid_request","error_description":"the body is too large or was cut"}`)
		return
	}
	token, ok := presented(r.Header, body)
	if !ok {
		answer(w, http.StatusBadRequest, `{"error":"invalid_request","error_description":"exactly one token is needed"}`)
		return
	}
	ctx, cancel := work(r, "holder")
	defer cancel()
	if err := h.revoke(ctx, token, "presented for revocation by its holder", Leak{By: "holder"}); err != nil {
		h.log.Error("misuse: a presented token could not be revoked", "error", err)
		answer(w, http.StatusServiceUnavailable, `{"error":"temporarily_unavailable","error_description":"try again"}`)
		return
	}
	answer(w, http.StatusOK, `{"result":"if this was a token of this service, it is revoked"}`)
}

// presented is the one token in the header or the body.
func presented(header http.Header, body []byte) (string, bool) {
	var found []string
	add := func(s string) {
		if s = strings.TrimSpace(s); s != "" {
			found = append(found, s)
		}
	}
	auth := header["Authorization"]
	if len(auth) > 1 {
		return "", false
	}
	if len(auth) == 1 {
		scheme, token, ok := strings.Cut(strings.TrimSpace(auth[0]), " ")
		if !ok || !strings.EqualFold(scheme, "Bearer") && !strings.EqualFold(scheme, "DPoP") {
			return "", false
		}
		add(token)
	}
	kind, _, err := mime.ParseMediaType(header.Get("Content-Type"))
	switch {
	case len(body) == 0:
	case err != nil:
		return "", false
	case kind == "application/x-www-form-urlencoded":
		form, err := url.ParseQuery(string(body))
		if err != nil {
			return "", false
		}
		for _, s := range form["token"] {
			add(s)
		}
	case kind == "application/json":
		list, ok := members(body, "token")
		if !ok {
			return "", false
		}
		for _, s := range list {
			add(s)
		}
	case kind == "text/plain":
		add(string(body))
	default:
		return "", false
	}
	if len(found) != 1 || len(found[0]) > maxTokenText || strings.ContainsAny(found[0], " \t\r\n") {
		return "", false
	}
	return found[0], true
}

// members are the string values of all members of a JSON object that have exactly this name: encoding/json would take the
// last of several, and other spellings too.
func members(body []byte, name string) (list []string, ok bool) {
	d := json.NewDecoder(bytes.NewReader(body))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, false
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return nil, false
		}
		if key != name {
			var skip json.RawMessage
			if d.Decode(&skip) != nil {
				return nil, false
			}
			continue
		}
		var s string
		if d.Decode(&s) != nil {
			return nil, false
		}
		list = append(list, s)
	}
	if _, err := d.Token(); err != nil {
		return nil, false
	}
	_, err := d.Token()
	return list, err == io.EOF
}
