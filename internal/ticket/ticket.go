// Package ticket owns the stored record of a ticket, which is an authorization code, a device code or a magic link: what was prepared,
// for whom, and what its first use got.
//
// It promises that the code itself is not in the record, and that what its first use got is seen by the rules that end it. It stands on
// internal/revoke and holds no lock; only what ends a ticket asks the store. The root's Prepare, Redeem and RevokeLeaked call it, and its
// Clients ask which tickets are open. S is the root's Scope.
package ticket

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"time"

	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/record"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/store"
)

// Kind is of the records of this package.
const Kind store.Kind = "ticket"

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

// Check refuses a record of a newer version.
func Check[S ~string](t *Record[S]) error { return commit.First(t.V) }

func form[S ~string]() *record.Form[Record[S]] {
	return &record.Form[Record[S]]{Kind: Kind, Check: Check[S]}
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
	return form[string]().Read(r, &t) != nil || t.Spent == "" && now.UnixMilli() < t.Expires && book.Hit(t.Got(r.Written)) == ""
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
