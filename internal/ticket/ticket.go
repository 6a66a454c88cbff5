// Package ticket owns the stored record of a ticket, which is an authorization code, a device code or a magic link: what was
// prepared, for whom, what whoever redeems it must bring, and what its first use got.
//
// It promises that the code itself is not in the record, and that what its first use got is seen by the rules that end it. It
// stands on internal/revoke and holds no lock; only what ends a ticket asks the store. The root's Prepare, Redeem and RevokeLeaked
// call it, and its Clients ask which tickets are open. S is the root's Scope.
package ticket

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"time"

	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/internal/record"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/store"
)

// Kind is of the records of this package.
const Kind store.Kind = "ticket"

// slack is how long the record of a ticket is kept behind its end, to know a second use.
const slack = 24 * time.Hour

// OfKey names the ticket of a code that this service made: the ID of its record, and the hash in it.
func OfKey(namespace string, k *opaque.Key) (id string, hash [32]byte) {
	return k.ID.String(), opaque.Hash("tk1h", []byte(namespace), k.ID[:], k.Secret[:])
}

// OfDigest is OfKey for a code of somebody else's making, of which only the SHA-256 is known.
func OfDigest(namespace string, sum [32]byte) (id string, hash [32]byte) {
	return hex.EncodeToString(sum[:16]), opaque.Hash("tk1c", []byte(namespace), sum[:])
}

// Record is a ticket as it is stored.
type Record[S ~string] struct {
	V         int             `json:"v"`
	Hash      [32]byte        `json:"h"`
	Client    string          `json:"client"`
	Challenge string          `json:"challenge,omitempty"`
	Redirect  string          `json:"redirect,omitempty"`
	Expires   int64           `json:"expires"` // Unix ms
	Birth     store.Position  `json:"birth"`
	Subject   string          `json:"sub,omitempty"`
	For       string          `json:"for,omitempty"` // the request's Client
	Scopes    []S             `json:"scopes,omitempty"`
	Roles     []string        `json:"roles,omitempty"`
	Audiences []string        `json:"aud,omitempty"`
	Lifetime  int64           `json:"life,omitempty"` // ns
	Refresh   bool            `json:"refresh,omitempty"`
	Claims    json.RawMessage `json:"claims,omitempty"`
	Binding   string          `json:"binding,omitempty"`
	Spent     string          `json:"spent,omitempty"`  // the grant that the first use got
	Leaked    bool            `json:"leaked,omitempty"` // it was found in a leak, or used twice: it gets nothing, and what it got has ended

	// Of a first use that may be repeated: for how long, and the access token that it got.
	Again int64    `json:"again,omitempty"` // ms
	JTI   string   `json:"jti,omitempty"`
	IAT   int64    `json:"iat,omitempty"` // Unix ms
	EXP   int64    `json:"exp,omitempty"`
	Bound string   `json:"bound,omitempty"`  // its binding
	Only  []string `json:"narrow,omitempty"` // its audiences, where they are fewer than those that were prepared
	record.Ext
}

// Form is the form of a ticket.
func Form[S ~string]() *record.Form[Record[S]] {
	return &record.Form[Record[S]]{Kind: Kind, Check: func(t *Record[S]) error { return commit.First(t.V) }}
}

// Put adds the ticket to c, in place of the version expect.
func (t *Record[S]) Put(c *commit.Change, id string, expect store.Version) error {
	r := store.Record{ID: id, Subject: t.Subject, Client: t.Client, Expires: t.Expires + slack.Milliseconds()}
	return commit.Put(c, Form[S](), r, t, expect)
}

// Is reports whether t is the ticket with this hash.
func (t *Record[S]) Is(hash [32]byte) bool {
	return subtle.ConstantTimeCompare(hash[:], t.Hash[:]) == 1
}

// Brought is what comes back with a code.
type Brought struct{ Redirect, Verifier, Binding string }

// Admits says why whoever brings x may not redeem the ticket now, if it was not redeemed before. fault.InvalidGrant.
func (t *Record[S]) Admits(x *Brought, now time.Time) error {
	switch {
	case now.UnixMilli() >= t.Expires:
		return fault.Fail(fault.InvalidGrant, "the ticket has expired")
	case t.Redirect != x.Redirect:
		return fault.Fail(fault.InvalidGrant, "another redirect URI")
	case !Verifies(t.Challenge, x.Verifier):
		return fault.Fail(fault.InvalidGrant, "the code verifier does not fit (RFC 7636 §4.6)")
	case t.Binding != "" && x.Binding != t.Binding:
		return fault.Fail(fault.InvalidGrant, "the ticket is bound to another key")
	}
	return nil
}

// Repeats reports whether x is what was brought at the first use, which may be repeated.
func (t *Record[S]) Repeats(x *Brought) bool {
	return t.Again > 0 && !t.Leaked && t.Redirect == x.Redirect && Verifies(t.Challenge, x.Verifier) && t.Bound == x.Binding
}

// Got is what rules see of a ticket, which was made or spent when its record was written, and of what it got.
func (t *Record[S]) Got(written int64) *rules.Subject {
	x := &rules.Subject{Subject: t.Subject, Client: t.Client, Grant: t.Spent, Iat: time.UnixMilli(written),
		Pos: rules.Positions{Birth: t.Birth, View: t.Birth}, Renews: true}
	x.Descend()
	return x
}

// Open reports whether the ticket that is stored in r may be redeemed for the first time, as one that cannot be read may.
func Open(r store.Record, book *rules.Book, now time.Time) bool {
	var t Record[string]
	return Form[string]().Read(r, &t) != nil || t.Spent == "" && now.UnixMilli() < t.Expires && book.Hit(t.Got(r.Written)) == ""
}

// IsChallenge reports whether s is a code_challenge of the method S256 (RFC 7636 §4.2).
func IsChallenge(s string) bool {
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	return err == nil && len(b) == sha256.Size
}

// Verifies is RFC 7636 §4.6 for S256. A verifier without a challenge is refused too: it hints at a downgrade (RFC 9700 §2.1.1).
func Verifies(challenge, verifier string) bool {
	if challenge == "" {
		return verifier == ""
	}
	if len(verifier) < 43 || len(verifier) > 128 {
		return false
	}
	sum := sha256.Sum256([]byte(verifier))
	got := base64.RawURLEncoding.EncodeToString(sum[:])
	return subtle.ConstantTimeCompare([]byte(got), []byte(challenge)) == 1
}
