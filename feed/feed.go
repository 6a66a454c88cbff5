// Package feed is what validators outside an issuer's processes follow: its public keys, and its revocations without the names of
// those whom they are about. package apitoken takes the sources in Trusted and is one itself; package remote serves them over HTTP
// and reads them. A program needs this package where it carries a feed in a way of its own.
package feed

import (
	"context"
	"time"

	"github.com/apitoken-go/apitoken/store"
)

// KeySource gets an issuer's public keys. Its errors show in logs, in Ready and in Explain: they must hold no credential.
//
// A source that knows what the issuer's clock shows has a method IssuerTime() (now time.Time, known bool). A validator whose own
// clock differs by more than Validation.Skew then says so in its log and in Explain.
type KeySource interface {
	// JWKS returns the current set (RFC 7517). missing is the kid that was not in the last answer,
	// or "": a source may use it to limit how often it asks.
	JWKS(ctx context.Context, missing string) ([]byte, error)
}

// Source gets rules, with the promises of [store.Store]'s Follow: complete, in order, newest form only;
// store.ErrDiverged when after is not in the source's history. Its errors are shown as a [KeySource]'s are.
//
// A source that waits for news before it answers has a method Waits() bool and returns true: it is asked again at once.
type Source interface {
	Revocations(ctx context.Context, after store.Position, max int) (View, error)
}

// View is one answer of a Source.
type View struct {
	Rules []Entry
	// Key and Namespace make the entries' hashes: whoever knows a name can look for it, nobody can list names.
	Key       []byte
	Namespace string
	// Compromised keys, by kid: they win over any JWKS, for ever.
	Compromised []string
	// Changed are the hashes of API keys whose records changed: answers about them that are kept are void. DropOpaque
	// says so of all of them.
	Changed    [][16]byte
	DropOpaque bool
	// Prefix and APIKeyTags are how API keys begin, and what their tags are made with: a follower tells junk from a key
	// without a question. They make and open nothing: an API key is good by a secret that the store has a hash of.
	// Empty: from a source that does not say.
	Prefix     string
	APIKeyTags []Tag
	// Imported are the beginnings of the hashes of the IDs of API keys that came from another program: all that there are at the first
	// answers, later those that are new. A follower tells junk from such a key by them, which says nothing of itself.
	Imported [][8]byte
	// KeySet changes with the published keys: a follower that sees another one reads them at once.
	KeySet      string
	Next        store.Position
	More        bool
	Age         time.Duration // how old the answer was at its source when it was sent
	MaxLifetime time.Duration // the longest an access token of the source may live
}

// Tag is the key of the tags of API keys that name KID; nil where the source can't open it now.
type Tag struct {
	KID [4]byte
	Key []byte
}

// Entry is one rule as it travels: without reason and actor, its target hashed.
type Entry struct {
	// Class says what Value is compared with: 0 nothing, the thing itself is refused; 1 the position of a token's birth;
	// 2 the position of its issuer's view when it was minted; 3 its iat.
	Class   uint8
	Kind    string   // "grant", "subject", …
	Hash    [16]byte // of the target; zero for "everything"
	Value   int64    // a position, or Unix seconds
	At      int64    // Unix seconds of the revocation, for tokens without positions
	Expires int64    // Unix ms when it may be forgotten; 0: never
}
