// Targets: what a rule names, and its text.

package rules

import (
	"net/url"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/store"
)

// Target names tokens. The zero Target, and one made of an empty ID, names none: Revoke refuses it.
type Target struct {
	Kind   targetKind
	ID     string
	Issuer string // of a subject; empty: the service's own
	Owner  string // only what this subject owns
	Holder string // only what this client holds
	Before time.Time
	Shown  Shown // whose it is, by the token that somebody showed: no part of its text
	none   bool  // narrowed by something empty: names nothing
}

// Shown is whose a token is that was verified.
type Shown struct{ Subject, Client string }

type targetKind uint8

const (
	TargetNone targetKind = iota
	TargetToken
	TargetGrant
	TargetSubject
	TargetSessions
	TargetClient
	TargetRole
	TargetKey
	TargetAll
	TargetHeld // a subject's tokens of one client: never made by a host directly
	targetKinds
)

var targetNames = [targetKinds]string{"", "token", "grant", "subject", "sessions", "client", "role", "signingkey", "everything", "held"}

// KindGrant is of the records of sessions, which TargetGrant names.
const KindGrant store.Kind = "grant"

// String is the name that events and text forms use.
func (k targetKind) String() string { return targetNames[k] }

// ByToken names an access token by its jti, or an API key by its ID.
func ByToken(id string) Target { return named(TargetToken, id) }

// ByGrant names a session: its tokens, its refresh token, and what was exchanged from it.
func ByGrant(id string) Target { return named(TargetGrant, id) }

// BySubject names all that a subject holds: sessions, tokens and API keys. What is issued afterwards is good.
func BySubject(subject string) Target { return named(TargetSubject, subject) }

// BySessions names a subject's sessions and tokens and spares its API keys: log out everywhere.
func BySessions(subject string) Target { return named(TargetSessions, subject) }

// ByClient names all that a client holds, for itself or for subjects, and what was exchanged from it by others.
func ByClient(client string) Target { return named(TargetClient, client) }

// ByRole names the tokens that carry a role. It asks for them to be minted again: a refresh is good.
func ByRole(role string) Target { return named(TargetRole, role) }

// BySigningKey names all that a key signed, by its kid. [SigningKeys.Compromise] also replaces the key.
func BySigningKey(kid string) Target { return named(TargetKey, kid) }

// Everything names every token and API key of the service.
func Everything() Target { return Target{Kind: TargetAll} }

func named(k targetKind, id string) Target {
	return Target{Kind: k, ID: id, none: id == "" || !storable(id)}
}

// storable reports whether a name may be part of a record: what a store takes, and what is the same when it is read back.
func storable(s string) bool {
	return len(s) <= 255 && utf8.ValidString(s) && strings.IndexByte(s, 0) < 0
}

// OfIssuer makes a subject, client or token one of another trusted issuer: a principal is issuer and subject together.
func (t Target) OfIssuer(issuer string) Target {
	t.Issuer = issuer
	t.none = t.none || issuer == "" || !utf8.ValidString(issuer) || t.Kind != TargetSubject && t.Kind != TargetSessions && t.Kind != TargetToken && t.Kind != TargetClient
	return t
}

// OwnedBy narrows a target to what is subject's: Revoke answers ErrNotFound for a grant or token
// of someone else. For pages where users name IDs. An empty subject makes the target name none.
func (t Target) OwnedBy(subject string) Target {
	t.none = t.none || subject == "" || !storable(subject) || t.Owner != "" && t.Owner != subject
	t.Owner = subject
	return t
}

// HeldBy narrows a target to what client holds: with BySubject, one application of one user. An
// empty client makes the target name none.
func (t Target) HeldBy(client string) Target {
	t.none = t.none || client == "" || !storable(client) || t.Holder != "" && t.Holder != client
	t.Holder = client
	return t
}

// IssuedBefore moves the cut-off from now to then, to the second: what was issued until then is refused, and what descends
// from it, refreshed or exchanged since. A time in the future is taken as now.
func (t Target) IssuedBefore(then time.Time) Target {
	t.Before = then
	t.none = t.none || then.IsZero() || then.UTC().Year() < 1 || then.UTC().Year() > 9999 // RFC 3339 has four digits
	return t
}

// IsZero reports that t names nothing.
func (t Target) IsZero() bool { return t.Kind == TargetNone || t.none }

// String is the text form, such as "subject:alice" or "grant:01j9…;owner=alice".
func (t Target) String() string {
	if t.Kind == TargetNone {
		return ""
	}
	var b strings.Builder
	b.WriteString(t.Kind.String())
	if t.ID != "" {
		b.WriteByte(':')
		b.WriteString(escapeTarget(t.ID))
	}
	for _, p := range [...][2]string{{"issuer", t.Issuer}, {"owner", t.Owner}, {"client", t.Holder}} {
		if p[1] != "" {
			b.WriteString(";" + p[0] + "=" + escapeTarget(p[1]))
		}
	}
	if !t.Before.IsZero() {
		b.WriteString(";before=" + t.Before.UTC().Format(time.RFC3339))
	}
	return b.String()
}

// escapeTarget keeps the separators of the text form out of an ID.
func escapeTarget(s string) string {
	if !strings.ContainsAny(s, "%;=\n\r\t") {
		return s
	}
	return strings.NewReplacer("%", "%25", ";", "%3B", "=", "%3D", "\n", "%0A", "\r", "%0D", "\t", "%09").Replace(s)
}

// MarshalText is String; the zero Target is the empty text.
func (t Target) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText reads what String makes. ErrInvalidRequest: anything else, so that one target has one text.
func (t *Target) UnmarshalText(b []byte) error {
	*t = Target{}
	if len(b) == 0 {
		return nil
	}
	bad := func() error { return fault.Fail(fault.InvalidRequest, "%.300q is no target", b) }
	parts := strings.Split(string(b), ";")
	name, id, _ := strings.Cut(parts[0], ":")
	id, err := url.PathUnescape(id)
	if err != nil {
		return bad()
	}
	var out Target
	for k := TargetToken; k <= TargetAll; k++ {
		if targetNames[k] == name {
			out = Target{Kind: k, ID: id, none: (id == "") != (k == TargetAll) || !storable(id)}
		}
	}
	for _, p := range parts[1:] {
		key, v, _ := strings.Cut(p, "=")
		if v, err = url.PathUnescape(v); err != nil {
			return bad()
		}
		switch key {
		case "issuer":
			out = out.OfIssuer(v)
		case "owner":
			out = out.OwnedBy(v)
		case "client":
			out = out.HeldBy(v)
		case "before":
			then, err := time.Parse(time.RFC3339, v)
			if err != nil {
				return bad()
			}
			out = out.IssuedBefore(then)
		default:
			return bad()
		}
	}
	if out.IsZero() || out.String() != string(b) { // twice, in another order, written otherwise
		return bad()
	}
	*t = out
	return nil
}
