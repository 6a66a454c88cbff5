package oauthhttp

import (
	"errors"
	"net/http"

	"github.com/apitoken-go/apitoken"
)

// Revocation is the revocation endpoint (RFC 7009). It answers 200 for whatever is not, or no longer, the client's own
// token: there is nothing to do then, and nobody learns whether it was a token at all. 503 says that the revocation
// may not be in the store.
func (h *Handler) Revocation() http.Handler {
	return h.endpoint(true, "POST", func(w http.ResponseWriter, r *http.Request) (failed error) {
		f, err := h.readForm(w, r)
		if err != nil {
			return err
		}
		c, err := h.client(r, f, revokePath)
		if err != nil {
			return err
		}
		defer func() { failed = h.denied(r.Context(), c.auth, "revoke", failed) }()
		if !f.has("token") {
			return invalid("The token is missing.")
		}
		// token_type_hint is not needed: a token says what it is (RFC 7009 §2.1 lets a server ignore it).
		target, err := h.svc.TargetOf(r.Context(), f.get("token"))
		if err == nil {
			err = h.svc.Revoke(apitoken.WithActor(r.Context(), c.ID), target.HeldBy(c.ID), "revoked by its client")
		}
		if err != nil && !errors.Is(err, apitoken.ErrNotFound) {
			return err
		}
		return h.answer(w, r, http.StatusOK, struct{}{}) // RFC 7009 §2.2 ignores the body; clients that parse every answer as JSON want one
	})
}
