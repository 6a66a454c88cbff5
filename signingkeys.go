// Signing keys for operators: listed, imported, rotated, and withdrawn after a leak (Compromise). NewSealer and KeyFile make what
// encrypts the root secrets. internal/keyring does the work.

package apitoken

import (
	"context"
	"crypto"
	"errors"
	"slices"
	"time"

	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/internal/dpop"
	"github.com/apitoken-go/apitoken/internal/jws"
	"github.com/apitoken-go/apitoken/internal/keyring"
	"github.com/apitoken-go/apitoken/internal/seal"
	"github.com/apitoken-go/apitoken/store"
	"github.com/golang-jwt/jwt/v5"
)

// SigningKey is a key of the ring, its public side.
type SigningKey struct {
	ID        string // RFC 7638 thumbprint
	Algorithm string // JWA name: "ES256", "EdDSA", "RS256", "PS256", "HS256"
	Audience  string // whose tokens it signs, see Config.AudienceAlgorithms; "": those of all others
	// State is "next" (published, not used yet), "active", "retired" (published until the last token that it
	// signed has died) or "compromised".
	State string
	Since time.Time // of the state
	// Until is when the state ends by itself: a next key signs from then on, an active one has a successor that does, a retired one
	// leaves the published set. Zero: not known yet.
	Until   time.Time
	Outside bool   // its private half is not in the store: it was imported
	JWK     []byte // public; nil for HS256
}

// SigningKeys is the ring, and those of the audiences that have one of their own. It rotates by itself, as Config.KeyRotation says.
// A key's state is no record but a function of the ring and the clock: each key is made with the time from which it signs, far
// enough ahead that every validator knows it by then, and it retires when its successor begins. So all processes agree without a word.
type SigningKeys struct {
	s    *core
	ring *keyring.Ring
}

func newSigningKeys(s *core) *SigningKeys {
	return &SigningKeys{s, keyring.New(keyring.Config{Algorithm: s.cfg.Algorithm, Audiences: s.cfg.AudienceAlgorithms, Rotation: s.cfg.KeyRotation, Seal: s.cfg.Seal,
		Clear: s.cfg.InsecureKeysInStore, Prefix: s.cfg.Prefix, Namespace: func() string { return s.ns }, Log: s.log,
		Revoke: s.revoke, Ready: s.ready,
		Publish: func(keys []*jws.PublicKey) {
			if s.trust != nil { // none before there is a validator
				s.trust.SetKeys(keys)
			}
		},
		Rotated: func(ctx context.Context, err error, took time.Duration) {
			s.observe(ctx, Observation{Op: "keys", Err: public(err), Took: took})
		}})}
}

// List returns the ring, the newest key first; behind the common keys those of each audience that has its own.
func (k *SigningKeys) List(ctx context.Context) ([]SigningKey, error) {
	list, err := k.ring.List(ctx)
	if err != nil {
		return nil, public(err)
	}
	out := make([]SigningKey, len(list))
	for i, x := range list {
		out[i] = SigningKey(x)
	}
	return out, nil
}

// JWKS is the published set (RFC 7517): the public keys that are next, active or retired, in order of their IDs. It makes
// SigningKeys a [feed.KeySource]; missing is not looked at.
func (k *SigningKeys) JWKS(context.Context, string) ([]byte, error) { return k.ring.JWKS(), nil }

// Rotate brings a new key forward as soon as every validator can know it: after half of Config.KeyRotation, 15 minutes at
// most. Tokens of the old one stay good until they expire. Audiences with keys of their own get new ones too.
func (k *SigningKeys) Rotate(ctx context.Context) (failed error) {
	defer tell(&failed)
	return public(k.ring.Rotate(ctx))
}

// Import adds a key that stays outside: a KMS, an HSM, an agent. It signs as soon as every validator can know it (see Rotate), at
// once if the ring is younger than that. Every process that issues calls it at each start: the store holds the public
// half only. A signer that has a method
//
//	SignContext(ctx context.Context, rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error)
//
// gets the caller's deadline through it. One that does not answer costs its callers five seconds, or their own deadline, and
// nobody else anything: at most 256 calls of it run at once.
//
// ErrInvalidRequest: a weak key, another algorithm than the key's, a key that was replaced or compromised.
func (k *SigningKeys) Import(ctx context.Context, s crypto.Signer, algorithm string) (SigningKey, error) {
	return k.ImportFor(ctx, "", s, algorithm)
}

// ImportFor is Import of a key that signs for one audience of Config.AudienceAlgorithms alone. ErrInvalidRequest also where the
// audience is not among them.
func (k *SigningKeys) ImportFor(ctx context.Context, audience string, s crypto.Signer, algorithm string) (_ SigningKey, failed error) {
	defer tell(&failed)
	if k.s.cfg.FAPI && !slices.Contains(jws.FAPIAlgs, algorithm) {
		return SigningKey{}, fail(ErrInvalidRequest, "FAPI allows PS256, ES256 and EdDSA (FAPI 2.0 §5.4.1), not %s", algorithm)
	}
	x, err := k.ring.ImportFor(ctx, audience, s, algorithm)
	return SigningKey(x), public(err)
}

// Compromise withdraws a key at once and revokes all that it signed, in every process within its bound. The
// next key, or a new one, is active from then on. ErrNotFound: the ring has no such key. ErrUnavailable: what it signed is
// refused here, and this process goes on trying; others may not know it yet. It is safe to repeat.
func (k *SigningKeys) Compromise(ctx context.Context, id, reason string) (failed error) {
	defer tell(&failed)
	return public(k.ring.Compromise(ctx, id, reason, event.Revoked))
}

// RotateSecrets makes a new root secret, from which the tags of refresh tokens and API keys, the ratchet and the seals of new
// signing keys are made, as soon as every process can know it (see Rotate). What was made under an older one stays good.
//
// With Config.Seal the ring then moves under the new one by itself: another signing key takes over, as after Rotate, all are
// sealed anew, and no older secret proves or opens a signing key any more. So it ends what somebody can do who has the older
// ones, from a copy of the store in which they lay in clear, say; except with a signing key that he has: see Compromise.
//
// ErrInvalidRequest: the store is on its way from InsecureKeysInStore to Seal, and processes may run that could not open it.
func (k *SigningKeys) RotateSecrets(ctx context.Context) (failed error) {
	defer tell(&failed)
	return public(k.ring.RotateSecrets(ctx))
}

// Rewrap seals every root secret again with Config.Seal as it is now: after a new key-encryption key was put in front
// of the old one, and before the old one is dropped. It returns how many there were. After an error some may still be under
// the old one; it is safe to repeat. ErrInvalidRequest: there is no Config.Seal.
func (k *SigningKeys) Rewrap(ctx context.Context) (_ int, failed error) {
	defer tell(&failed)
	n, err := k.ring.Rewrap(ctx)
	return n, public(err)
}

// active is the key that signs now what is stamped with view and is for these audiences.
func (k *SigningKeys) active(view store.Position, now time.Time, audiences []string) (keyring.Signing, error) {
	x, err := k.ring.Active(view, now, audiences)
	return x, public(err)
}

// NewSealer seals by AES-256-GCM under the first key and opens under any: put a new one in front to rotate, run
// [SigningKeys.Rewrap], then drop the old one. Each is 32 random bytes.
func NewSealer(keys ...[]byte) (Sealer, error) {
	s, err := seal.NewLocal(keys...)
	if err != nil {
		return nil, sealError(err)
	}
	return localSealer{s}, nil
}

// KeyFile is a Sealer whose key lies in a file. Beside the database it keeps the keys out of backups and copies of that file;
// on another disk it also keeps them from whoever takes the database's. The file is made with mode 0600
// when something is sealed for the first time. It refuses to make a new one where sealed keys exist already,
// a file that others may read, and one that is no key.
func KeyFile(path string) (Sealer, error) {
	f, err := seal.OpenFile(path)
	if err != nil {
		return nil, sealError(err)
	}
	return localSealer{f}, nil
}

// localSealer gives out errors of this package.
type localSealer struct{ in Sealer }

func (s localSealer) Seal(ctx context.Context, plain, context []byte) ([]byte, error) {
	sealed, err := s.in.Seal(ctx, plain, context)
	return sealed, public(err)
}

func (s localSealer) Open(ctx context.Context, sealed, context []byte) ([]byte, error) {
	plain, err := s.in.Open(ctx, sealed, context)
	return plain, public(err)
}

// sealError says to whoever starts the program what an *Error keeps from clients.
func sealError(err error) error {
	if e := (*Error)(nil); errors.As(public(err), &e) {
		return &ConfigError{Field: "Seal", Err: e}
	}
	return err
}

// Keyfunc is a jwt.Keyfunc on the published keys, for code that can't call [ParseWithClaims] yet:
//
//	jwt.ParseWithClaims(token, claims, svc.SigningKeys.Keyfunc, jwt.WithIssuer(…), jwt.WithAudience(…), jwt.WithExpirationRequired())
//
// It finds the key by kid, and refuses another algorithm than the key's, an audience that the key doesn't sign for, and a key that
// was declared compromised. It does not see the rest: that a token, its session, subject or client was revoked, its typ, so that
// what is no access token passes for one, and whether the caller proved the key or certificate that the token is bound to. Without
// the options above jwt/v5 looks at neither issuer nor audience, and takes a token without an expiry. Keys of HS256 are not given
// out: whoever has one signs.
func (k *SigningKeys) Keyfunc(t *jwt.Token) (any, error) {
	kid, _ := t.Header["kid"].(string)
	for _, key := range k.ring.PublicKeys() {
		if key.KID != kid || k.s.rules.Signed(kid) {
			continue
		}
		if _, secret := key.Key.([]byte); secret {
			return nil, fail(ErrInvalidRequest, "a key of HS256 is not given out: use ParseWithClaims of this package")
		}
		if t.Method == nil || t.Method.Alg() != key.Alg {
			return nil, fail(ErrInvalidToken, "alg is not the key's own")
		}
		var aud []string
		if t.Claims != nil {
			var err error
			if aud, err = t.Claims.GetAudience(); err != nil {
				return nil, &Error{Code: ErrInvalidToken, Detail: "aud", Cause: err}
			}
		}
		if !key.SignsFor(aud) {
			return nil, fail(ErrInvalidToken, "its key signs for another audience")
		}
		return key.Key, nil
	}
	return nil, fail(ErrInvalidToken, "no published key has the token's kid")
}

func (k *SigningKeys) nonces() *dpop.Nonces {
	ring := k.ring
	return &dpop.Nonces{
		Key:    func() ([4]byte, []byte) { return ring.MAC(keyring.Nonce) },
		KeyOf:  func(kid [4]byte) ([]byte, bool) { return ring.MACFor(kid, keyring.Nonce) },
		Second: func() int64 { return k.s.now().Unix() },
		Whose:  "service",
	}
}
