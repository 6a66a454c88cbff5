// The claims that an access token must have (RFC 9068 §2.2).

package jws

import (
	"slices"

	"github.com/apitoken-go/apitoken/internal/text"
)

// Laxity is what an access token may lack, where its issuer's are not RFC 9068's.
type Laxity struct{ NoClient, NoAudience, NoIssuedAt bool }

const maxName = 255 // bytes of sub, jti and client_id

// CheckAccess reports what c, as the claims of an access token, lacks (RFC 9068 §2.2), or holds that cannot be shown and logged as it
// is; "" for nothing. own: sessions and roles are names here too. roles are those of a token that is not RFC 9068's.
func (c *Claims) CheckAccess(lax Laxity, own bool, roles []string) string {
	switch {
	case c.Subject == "" || len(c.Subject) > maxName:
		return "sub is missing or too long"
	case c.Expires == 0:
		return "exp is missing"
	case c.IssuedAt == 0 && !lax.NoIssuedAt:
		return "iat is missing"
	case c.ID == "" || len(c.ID) > maxName:
		return "jti is missing or too long"
	case c.ClientID == "" && !lax.NoClient || len(c.ClientID) > maxName:
		return "client_id is missing or too long"
	case !plain(c.Subject) || !plain(c.ID) || !plain(c.ClientID) || !plain(roles...),
		own && (!plain(c.SessionID) || !plain(c.Roles...)),
		slices.ContainsFunc(c.Actors, func(a Actor) bool { return !plain(a.Subject) || !plain(a.Issuer) }):
		return "a name in sub, jti, client_id, sid, roles or act has a control character"
	}
	return ""
}

func plain(names ...string) bool {
	for _, name := range names {
		if !text.PlainText(name) {
			return false
		}
	}
	return true
}
