package apitoken

import (
	"context"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/apitoken-go/apitoken/store"
)

// A root secret is what Config.Seal encrypts. All other secrets of a service come from it by HKDF, one for each purpose, so
// that a KMS is asked once at start. There may be several: what was made under an older one stays readable.
type rootSecret struct {
	kid     [4]byte
	created int64 // Unix ms
	keys    map[string][]byte
	aead    cipher.AEAD // seals signing keys
	secret  []byte
}

type rootRecord struct {
	V       int    `json:"v"`
	Created int64  `json:"created"`
	Sealed  []byte `json:"sealed,omitempty"`
	Plain   []byte `json:"plain,omitempty"` // only under Config.InsecureKeysInStore
}

const (
	rootPrefix        = "root."
	rootSize          = 32
	purposeRecordMAC  = "record-mac"
	purposeSigningKey = "signing-key"
	purposeSecretTag  = "secret-tag"
	purposeFeed       = "feed"
	purposeNonce      = "dpop-nonce"
	sealTimeout       = 10 * time.Second
)

var purposes = []string{purposeRefreshTag, purposeRefreshNext, purposeAPIKeyTag, purposeTicketTag, purposeSecretTag, purposeRecordMAC, purposeSigningKey, purposeFeed, purposeNonce}

func rootID(kid [4]byte) string { return rootPrefix + hex.EncodeToString(kid[:]) }

func parseRootID(id string) (kid [4]byte, err error) {
	b, err := hex.DecodeString(strings.TrimPrefix(id, rootPrefix))
	if err != nil || len(b) != len(kid) || rootID([4]byte(b)) != id {
		return kid, fail(ErrUnavailable, "root secret %q has no ID", id)
	}
	return [4]byte(b), nil
}

// deriveRoot makes the secrets of all purposes (RFC 5869).
func deriveRoot(ns string, kid [4]byte, created int64, secret []byte) (*rootSecret, error) {
	if len(secret) != rootSize {
		return nil, fail(ErrUnavailable, "the root secret has the wrong size")
	}
	r := &rootSecret{kid: kid, created: created, keys: map[string][]byte{}, secret: secret}
	prk, err := hkdf.Extract(sha256.New, secret, []byte("apitoken root v1\x00"+ns))
	if err != nil {
		return nil, &Error{Code: ErrUnavailable, Detail: "HKDF", Cause: err}
	}
	for _, p := range purposes {
		if r.keys[p], err = hkdf.Expand(sha256.New, prk, p, 32); err != nil {
			return nil, &Error{Code: ErrUnavailable, Detail: "HKDF", Cause: err}
		}
	}
	r.aead, err = newGCM(r.keys[purposeSigningKey])
	return r, err
}

func (r *rootSecret) mac(b []byte) []byte {
	m := hmac.New(sha256.New, r.keys[purposeRecordMAC])
	m.Write(b)
	return m.Sum(nil)
}

func (r *rootSecret) proves(mac, b []byte) bool { return hmac.Equal(mac, r.mac(b)) }

func (r *rootSecret) seal(plain, aad []byte) []byte {
	nonce := make([]byte, r.aead.NonceSize())
	rand.Read(nonce)
	return r.aead.Seal(nonce, nonce, plain, aad)
}

func (r *rootSecret) unseal(sealed, aad []byte) ([]byte, error) {
	n := r.aead.NonceSize()
	if len(sealed) < n {
		return nil, errors.New("the sealed key is cut short")
	}
	plain, err := r.aead.Open(nil, sealed[:n], sealed[n:], aad)
	if err != nil {
		return nil, errors.New("the sealed key was altered")
	}
	return plain, nil
}

func rootContext(ns string, kid [4]byte, created int64) []byte {
	at, _ := json.Marshal(created)
	return bound([]byte("apitoken root secret v1"), []byte(ns), kid[:], at)
}

// newRoot makes a root secret and its record.
func (k *SigningKeys) newRoot(ctx context.Context) (*rootSecret, store.Record, error) {
	secret := make([]byte, rootSize)
	rand.Read(secret)
	var kid [4]byte
	rand.Read(kid[:])
	root, err := deriveRoot(k.s.ns, kid, k.s.now().UnixMilli(), secret)
	if err != nil {
		return nil, store.Record{}, err
	}
	rec, err := k.rootRecord(ctx, root)
	return root, rec, err
}

// rootRecord seals a root as the configuration says.
func (k *SigningKeys) rootRecord(ctx context.Context, root *rootSecret) (store.Record, error) {
	rec := rootRecord{V: 1, Created: root.created}
	if k.s.cfg.Seal == nil {
		rec.Plain = root.secret
	} else {
		ctx, cancel := context.WithTimeout(ctx, sealTimeout)
		defer cancel()
		sealed, err := k.s.cfg.Seal.Seal(ctx, root.secret, rootContext(k.s.ns, root.kid, root.created))
		if err != nil {
			return store.Record{}, unavailable(err, "seal the root secret")
		}
		rec.Sealed = sealed
	}
	data, err := json.Marshal(rec)
	return store.Record{Kind: store.KindKey, ID: rootID(root.kid), Data: data}, err
}

// openRoot brings out a root secret. A secret in clear is only taken where the configuration says so: whoever writes the
// store could put one there.
func (k *SigningKeys) openRoot(ctx context.Context, kid [4]byte, r store.Record) (*rootSecret, error) {
	var rec rootRecord
	if err := decodeRecord(r, &rec); err != nil {
		return nil, err
	}
	secret := rec.Plain
	switch {
	case rec.V != 1:
		return nil, fail(ErrUnavailable, "root secret %x is damaged or of a newer version", kid)
	case k.s.cfg.Seal == nil && len(rec.Sealed) > 0:
		return nil, fail(ErrUnavailable, "the store's keys are sealed: their Sealer is required")
	case k.s.cfg.Seal != nil && len(rec.Sealed) == 0:
		return nil, fail(ErrUnavailable, "the store's root secret %x lies in clear: it was made under InsecureKeysInStore, or put there by someone", kid)
	case k.s.cfg.Seal != nil:
		ctx, cancel := context.WithTimeout(ctx, sealTimeout)
		defer cancel()
		var err error
		secret, err = k.s.cfg.Seal.Open(ctx, rec.Sealed, rootContext(k.s.ns, kid, rec.Created))
		if err != nil {
			return nil, unavailable(err, "open the root secret")
		}
	}
	return deriveRoot(k.s.ns, kid, rec.Created, slices.Clone(secret))
}

// openRoots opens those that came in since. One that can not be opened stays shut, and so do the keys under it.
func (k *SigningKeys) openRoots(ctx context.Context) error {
	k.mu.Lock()
	shut := maps.Clone(k.shut)
	k.mu.Unlock()
	var failed error
	for kid, r := range shut {
		root, err := k.openRoot(ctx, kid, r)
		if err != nil {
			failed = err
			continue
		}
		k.mu.Lock()
		k.roots[kid] = root
		delete(k.shut, kid)
		for name, x := range k.records {
			if x.rec.Root != kid {
				continue
			}
			got, err := k.open(root, name, x.rec)
			if err != nil {
				k.s.log.Error("apitoken: a signing key in the store is not authentic and is left out", "kid", name, "error", err)
				delete(k.records, name)
				continue
			}
			got.version, got.pos = x.version, x.pos
			k.records[name] = got
		}
		k.turn()
		k.mu.Unlock()
	}
	return failed
}

// mac is the newest root's secret for a purpose, and the root's ID.
func (k *SigningKeys) mac(purpose string) (kid [4]byte, key []byte) {
	root := k.current(k.ring.Load())
	return root.kid, root.keys[purpose]
}

// current is the root under which new things are made: the newest that every process had time to open.
func (k *SigningKeys) current(r *ring) *rootSecret {
	known := k.s.now().Add(-k.lead()).UnixMilli()
	for i := len(r.roots) - 1; i > 0; i-- {
		if r.roots[i].created <= known {
			return r.roots[i]
		}
	}
	return r.roots[0]
}

// macFor is the secret of the root kid for a purpose.
func (k *SigningKeys) macFor(kid [4]byte, purpose string) ([]byte, bool) {
	root := k.ring.Load().by[kid]
	if root == nil {
		return nil, false
	}
	return root.keys[purpose], true
}

// RotateSecrets makes a new root secret, from which the tags of refresh tokens and API keys, the ratchet and the seals of new
// signing keys are made, as soon as every process can know it (see Rotate). What was made under an older one stays good.
func (k *SigningKeys) RotateSecrets(ctx context.Context) error {
	if err := k.s.audit.ready(); err != nil {
		return err
	}
	var made *rootSecret
	err := k.change(ctx, func(c *change, _ *ring) error {
		root, rec, err := k.newRoot(ctx)
		if err != nil {
			return err
		}
		made = root
		c.put(rec, store.Version{})
		c.event(ctx, Event{Type: EventKeyChanged, OK: true, Reason: "root secret created", Extra: map[string]string{"root": hex.EncodeToString(root.kid[:])}})
		return nil
	})
	if err != nil {
		return err
	}
	k.mu.Lock()
	k.roots[made.kid] = made
	delete(k.shut, made.kid)
	k.turn()
	k.mu.Unlock()
	return nil
}

// Rewrap seals every root secret again with Config.Seal as it is now: after a new key-encryption key was put in front
// of the old one, and before the old one is dropped. It returns how many there were. After an error some may still be under
// the old one; it is safe to repeat.
func (k *SigningKeys) Rewrap(ctx context.Context) (int, error) {
	done := map[[4]byte]bool{}
	for {
		left := false
		var batch [][4]byte
		err := k.change(ctx, func(c *change, r *ring) error {
			left, batch = false, nil
			for _, root := range r.roots {
				if done[root.kid] {
					continue
				}
				if left = len(batch) == rewrapBatch; left {
					break
				}
				old, err := k.s.get(ctx, store.KindKey, rootID(root.kid))
				if err != nil {
					return err
				}
				rec, err := k.rootRecord(ctx, root)
				if err != nil {
					return err
				}
				c.put(rec, old.Version)
				batch = append(batch, root.kid)
			}
			if len(batch) > 0 {
				c.event(ctx, Event{Type: EventKeyChanged, OK: true, Reason: "root secrets sealed again", Count: len(batch)})
			}
			return nil
		})
		if err != nil {
			return len(done), err
		}
		for _, kid := range batch {
			done[kid] = true
		}
		if !left {
			return len(done), nil
		}
	}
}

// rewrapBatch bounds the puts of one change (store.Change).
const rewrapBatch = 8
