package apitoken

import (
	"context"
	"crypto/subtle"

	"github.com/apitoken-go/apitoken/internal/keyring"
	"github.com/apitoken-go/apitoken/internal/opaque"
)

// Every call that takes an opaque credential reads it here: Validate, Authenticate, Registered, Redeem and RevokeLeaked.
// (Refresh tokens have a payload of their own: see readRefresh.) The checksum is public, so it stops typing errors and
// nobody else. The tag covers the ID and the secret under the root that the kid names, so a text whose tag is good has
// no changed byte, and one credential has exactly one text.

// madeKeys says how the tag of each kind is made.
var madeKeys = [...]struct{ purpose, label string }{
	opaque.APIKey:       {keyring.APIKeyTag, "ak1"},
	opaque.Ticket:       {keyring.TicketTag, "tk1"},
	opaque.ClientSecret: {keyring.SecretTag, "cs1"},
}

// seal sets the kid and the tag of a fresh key, and returns its text.
func (k *SigningKeys) seal(key *opaque.Key, kind opaque.Kind) string {
	how := madeKeys[kind]
	kid, mac := k.ring.MAC(how.purpose)
	key.KID, key.Tag = kid, opaque.Tag(mac, how.label, []byte(k.s.ns), key.ID[:], key.Secret[:])
	return opaque.EncodeKey(k.s.cfg.Prefix, kind, key)
}

// made reports whether this service made key, which was decoded as kind. It reads no record of the key.
// ErrUnavailable: the root of its tag is not open here, so nobody can say.
func (k *SigningKeys) made(ctx context.Context, key *opaque.Key, kind opaque.Kind) (bool, error) {
	how := madeKeys[kind]
	mac, err := k.presented(ctx, key.KID, how.purpose)
	if err != nil {
		return false, err
	}
	tag := opaque.Tag(mac, how.label, []byte(k.s.ns), key.ID[:], key.Secret[:])
	return mac != nil && subtle.ConstantTimeCompare(tag[:], key.Tag[:]) == 1, nil
}

// readMade decodes text as kind and reports whether this service made it. nil: it is no text of this kind.
func (k *SigningKeys) readMade(ctx context.Context, text string, kind opaque.Kind) (key *opaque.Key, ours bool, err error) {
	key, derr := opaque.DecodeKey(text, k.s.cfg.Prefix, kind)
	if derr != nil {
		return nil, false, nil
	}
	ours, err = k.made(ctx, key, kind)
	return key, ours, err
}
