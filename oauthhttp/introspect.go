package oauthhttp

import (
	"encoding/json"
	"mime"
	"net/http"
	"slices"
	"strings"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/remote"
)

// introspectionJWT is the media type of a signed answer (RFC 9701 §4).
const introspectionJWT = "application/token-introspection+jwt"

// actor is one of an act chain (RFC 8693 §4.1).
type actor struct {
	Subject string `json:"sub"`
	Actor   *actor `json:"act,omitempty"`
}

// introspection is RFC 7662 §2.2, with what package remote's validators read besides.
type introspection struct {
	Active   bool              `json:"active"`
	Issuer   string            `json:"iss,omitempty"`
	Subject  string            `json:"sub,omitempty"`
	Client   string            `json:"client_id,omitempty"`
	ID       string            `json:"jti,omitempty"`
	Type     string            `json:"token_type,omitempty"`
	Scope    string            `json:"scope,omitempty"`
	Audience []string          `json:"aud,omitempty"`
	Expires  int64             `json:"exp,omitempty"`
	IssuedAt int64             `json:"iat,omitempty"`
	Grant    string            `json:"sid,omitempty"`
	Roles    []string          `json:"roles,omitempty"`
	Actor    *actor            `json:"act,omitempty"`
	Binding  map[string]string `json:"cnf,omitempty"`
	Details  json.RawMessage   `json:"authorization_details,omitempty"`

	Kind     string          `json:"apitoken_kind,omitempty"`
	Position string          `json:"apitoken_pos,omitempty"`
	Claims   json.RawMessage `json:"apitoken_claims,omitempty"`
}

// Introspection is the introspection endpoint (RFC 7662), which answers whoever a token concerns: the client that it was
// issued to, a client whose ID is among the token's audiences, and clients that hold [remote.FollowScope]. Others, and
// whoever asks about a token that is no longer good, get {"active":false}. Access tokens and API keys are looked at; a
// refresh token is nobody's business but the token endpoint's.
func (h *Handler) Introspection() http.Handler {
	return h.endpoint(false, "POST", func(w http.ResponseWriter, r *http.Request) (failed error) {
		f, err := h.readForm(w, r)
		if err != nil {
			return err
		}
		c, err := h.client(r, f, introspectPath)
		if err != nil {
			return err
		}
		defer func() { failed = h.denied(r.Context(), c.auth, "introspect", failed) }()
		if c.Public {
			return errNoClient // anybody could scan for tokens in its name (RFC 7662 §4)
		}
		if !f.has("token") {
			return invalid("The token is missing.")
		}
		x, err := h.adapter.Introspect(r.Context(), f.get("token"))
		if err != nil {
			return err
		}
		out := introspection{}
		follows := c.Scopes.Cover(apitoken.Scopes{remote.FollowScope})
		if x.Active && (follows || x.Token.Client == c.ID || slices.Contains(x.Token.Audiences, c.ID)) {
			out = describe(x, follows)
		} else if x.Active {
			h.adapter.Refused(r.Context(), c.auth, "introspect", "the token is neither the client's nor for it")
		}
		raw, err := json.Marshal(out)
		if err != nil {
			return err
		}
		w.Header().Set("Vary", "Accept, Authorization")
		if wants(r, introspectionJWT) {
			text, err := h.adapter.SignIntrospection(r.Context(), c.ID, raw)
			if err != nil {
				return err
			}
			w.Header().Set("Content-Type", introspectionJWT)
			send(w, r, http.StatusOK, []byte(text))
			return nil
		}
		w.Header().Set("Content-Type", "application/json")
		send(w, r, http.StatusOK, raw)
		return nil
	})
}

func describe(x apitoken.Introspection, follows bool) introspection {
	t := x.Token
	out := introspection{Active: true, Issuer: t.Issuer, Subject: t.Subject, Client: t.Client, ID: t.ID, Type: "Bearer", Scope: t.Scopes.String(),
		Audience: t.Audiences, IssuedAt: t.IssuedAt.Unix(), Grant: t.Grant, Roles: t.Roles, Details: detailsOf(t.Claims)}
	if !t.ExpiresAt.IsZero() {
		out.Expires = t.ExpiresAt.Unix()
	}
	for _, sub := range slices.Backward(t.Actors) {
		out.Actor = &actor{sub, out.Actor}
	}
	if name, print, ok := strings.Cut(t.Binding, ":"); ok {
		out.Binding = map[string]string{name: print}
		if name == "jkt" {
			out.Type = "DPoP"
		}
	}
	if follows {
		out.Kind, out.Position = opaque.TokenKind(t.APIKey), x.Position
		out.Claims, _ = t.Claims.(json.RawMessage)
	}
	return out
}

// wants reports whether the Accept header asks for media by name, and not less than for JSON.
func wants(r *http.Request, media string) bool {
	q := map[string]string{}
	for _, line := range r.Header.Values("Accept") {
		for part := range strings.SplitSeq(line, ",") {
			name, params, err := mime.ParseMediaType(part)
			if err != nil {
				continue
			}
			weight, ok := params["q"]
			if !ok {
				weight = "1"
			}
			q[name] = weight
		}
	}
	mine, ok := q[media]
	return ok && strings.Trim(mine, "0.") != "" && weightOf(mine) >= weightOf(q["application/json"])
}

// weightOf makes weights of RFC 9110 §12.4.2 comparable as text.
func weightOf(q string) string {
	if strings.HasPrefix(q, "1") {
		return "~" // above all digits
	}
	return strings.TrimPrefix(q, "0.")
}
