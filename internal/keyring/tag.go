// The texts of API keys, tickets and client secrets, tagged by the root secret so that junk costs no read of the store.

package keyring

import (
	"context"
	"crypto/subtle"

	"github.com/apitoken-go/apitoken/internal/opaque"
)

// Every call that takes an opaque credential reads it here: Validate, Authenticate, Registered, Redeem and RevokeLeaked.
// (Refresh tokens have a payload of their own: see internal/ratchet.) The checksum is public, so it stops typing errors and
// nobody else. The tag covers the ID and the secret under the root that the kid names, so a text whose tag is good has
// no changed byte, and one credential has exactly one text.

// tags says how the tag of each kind is made.
var tags = [...]struct{ purpose, label string }{
	opaque.APIKey:       {APIKeyTag, opaque.APIKeyLabel},
	opaque.Ticket:       {TicketTag, "tk1"},
	opaque.ClientSecret: {SecretTag, "cs1"},
}

func (k *Ring) tag(mac []byte, key *opaque.Key, kind opaque.Kind) [16]byte {
	return opaque.Tag(mac, tags[kind].label, []byte(k.c.Namespace()), key.ID[:], key.Secret[:])
}

// Encode sets the kid and the tag of a fresh key, and returns its text.
func (k *Ring) Encode(key *opaque.Key, kind opaque.Kind) string {
	kid, mac := k.MAC(tags[kind].purpose)
	key.KID, key.Tag = kid, k.tag(mac, key, kind)
	return opaque.EncodeKey(k.c.Prefix, kind, key)
}

// Made reports whether this service made key, which was decoded as kind. It reads no record of the key. fault.Unavailable: the root of
// its tag is not open here, so nobody can say.
func (k *Ring) Made(ctx context.Context, key *opaque.Key, kind opaque.Kind) (bool, error) {
	mac, err := k.Presented(ctx, key.KID, tags[kind].purpose)
	if err != nil {
		return false, err
	}
	tag := k.tag(mac, key, kind)
	return mac != nil && subtle.ConstantTimeCompare(tag[:], key.Tag[:]) == 1, nil
}

// Decode decodes text as kind and reports whether this service made it. nil: it is no text of this kind.
func (k *Ring) Decode(ctx context.Context, text string, kind opaque.Kind) (key *opaque.Key, ours bool, err error) {
	key, bad := opaque.DecodeKey(text, k.c.Prefix, kind)
	if bad != nil {
		return nil, false, nil
	}
	ours, err = k.Made(ctx, key, kind)
	return key, ours, err
}
