package apitoken

import (
	"time"

	"github.com/apitoken-go/apitoken/internal/rules"
)

// Target names tokens. The zero Target, and one made of an empty ID, names none: Revoke refuses it.
type Target struct{ t rules.Target }

// ByToken names an access token by its jti, or an API key by its ID.
func ByToken(id string) Target { return Target{rules.ByToken(id)} }

// ByGrant names a session: its tokens, its refresh token, and what was exchanged from it.
func ByGrant(id string) Target { return Target{rules.ByGrant(id)} }

// BySubject names all that a subject holds: sessions, tokens and API keys. What is issued afterwards is good.
func BySubject(subject string) Target { return Target{rules.BySubject(subject)} }

// BySessions names a subject's sessions and tokens and spares its API keys: log out everywhere.
func BySessions(subject string) Target { return Target{rules.BySessions(subject)} }

// ByClient names all that a client holds, for itself or for subjects, and what was exchanged from it by others.
func ByClient(client string) Target { return Target{rules.ByClient(client)} }

// ByRole names the tokens that carry a role. It asks for them to be minted again: a refresh is good.
func ByRole(role string) Target { return Target{rules.ByRole(role)} }

// BySigningKey names all that a key signed, by its kid. [SigningKeys.Compromise] also replaces the key.
func BySigningKey(kid string) Target { return Target{rules.BySigningKey(kid)} }

// Everything names every token and API key of the service.
func Everything() Target { return Target{rules.Everything()} }

// OfIssuer makes a subject, client or token one of another trusted issuer: a principal is issuer and subject together.
func (t Target) OfIssuer(issuer string) Target { return Target{t.t.OfIssuer(issuer)} }

// OwnedBy narrows a target to what is subject's: Revoke answers ErrNotFound for a grant or token
// of someone else. For pages where users name IDs. An empty subject makes the target name none.
func (t Target) OwnedBy(subject string) Target { return Target{t.t.OwnedBy(subject)} }

// HeldBy narrows a target to what client holds: with BySubject, one application of one user. An
// empty client makes the target name none.
func (t Target) HeldBy(client string) Target { return Target{t.t.HeldBy(client)} }

// IssuedBefore moves the cut-off from now to then, to the second: what was issued until then is refused, and what descends
// from it, refreshed or exchanged since. A time in the future is taken as now.
func (t Target) IssuedBefore(then time.Time) Target { return Target{t.t.IssuedBefore(then)} }

// IsZero reports that t names nothing.
func (t Target) IsZero() bool { return t.t.IsZero() }

// String is the text form, such as "subject:alice" or "grant:01j9…;owner=alice".
func (t Target) String() string { return t.t.String() }

// MarshalText is String; the zero Target is the empty text.
func (t Target) MarshalText() ([]byte, error) { return t.t.MarshalText() }

// UnmarshalText reads what String makes. ErrInvalidRequest: anything else, so that one target has one text.
func (t *Target) UnmarshalText(b []byte) error { return public(t.t.UnmarshalText(b)) }
