// Root secrets: made, sealed, opened, replaced. All keys but the signing keys derive from them.

package keyring

import (
	"bytes"
	"cmp"
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

	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/hook"
	"github.com/apitoken-go/apitoken/internal/record"
	"github.com/apitoken-go/apitoken/internal/revoke"
	"github.com/apitoken-go/apitoken/internal/seal"
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
	plain   bool // its record lies in clear, as far as is known here
	exposed bool // it lay in clear before it was sealed
	spent   bool // it proves and opens no signing key any more
}

type rootRecord struct {
	V       int    `json:"v"`
	Created int64  `json:"created"`
	Sealed  []byte `json:"sealed,omitempty"`
	Plain   []byte `json:"plain,omitempty"` // only under Config.InsecureKeysInStore
	// Exposed: it lay in clear. Older pages of the store's file, its backups and its replicas hold it still: whoever reads one of
	// them can open the keys under it, and make records of keys that it proves.
	Exposed bool `json:"exposed,omitempty"`
	// Spent: a newer one has taken over the signing keys, and it proves none any more. What it did besides goes on: tags are
	// filters, and the ratchet's secret is of no use without the last token. The seal covers both.
	Spent bool `json:"spent,omitempty"`
}

var rootForm = record.Form[rootRecord]{Kind: store.KindKey, Check: func(rec *rootRecord) error { return commit.First(rec.V) }}

const (
	rootPrefix        = "root."
	rootSize          = 32
	purposeRecordMAC  = "record-mac"
	purposeSigningKey = "signing-key"
	sealTimeout       = 10 * time.Second
)

// What secrets are for: each has its own.
const (
	RefreshTag  = "refresh-tag"
	RefreshNext = "refresh-next"
	APIKeyTag   = "apikey-tag"
	TicketTag   = "ticket-tag"
	SecretTag   = "secret-tag"
	Feed        = "feed"
	Nonce       = "dpop-nonce"
)

var purposes = []string{RefreshTag, RefreshNext, APIKeyTag, TicketTag, SecretTag, purposeRecordMAC, purposeSigningKey, Feed, Nonce}

func rootID(kid [4]byte) string { return rootPrefix + hex.EncodeToString(kid[:]) }

func parseRootID(id string) (kid [4]byte, err error) {
	b, err := hex.DecodeString(strings.TrimPrefix(id, rootPrefix))
	if err != nil || len(b) != len(kid) || rootID([4]byte(b)) != id {
		return kid, fault.Fail(fault.Unavailable, "root secret %q has no ID", id)
	}
	return [4]byte(b), nil
}

// deriveRoot makes the secrets of all purposes (RFC 5869).
func deriveRoot(ns string, kid [4]byte, created int64, secret []byte) (*rootSecret, error) {
	if len(secret) != rootSize {
		return nil, fault.Fail(fault.Unavailable, "the root secret has the wrong size")
	}
	r := &rootSecret{kid: kid, created: created, keys: map[string][]byte{}, secret: secret}
	prk, err := hkdf.Extract(sha256.New, secret, []byte("apitoken root v1\x00"+ns))
	if err != nil {
		return nil, &fault.Error{Code: fault.Unavailable, Detail: "HKDF", Cause: err}
	}
	for _, p := range purposes {
		if r.keys[p], err = hkdf.Expand(sha256.New, prk, p, 32); err != nil {
			return nil, &fault.Error{Code: fault.Unavailable, Detail: "HKDF", Cause: err}
		}
	}
	r.aead, err = seal.New(r.keys[purposeSigningKey])
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

func rootContext(ns string, kid [4]byte, rec *rootRecord) []byte {
	at, _ := json.Marshal(rec.Created)
	fields := [][]byte{[]byte("apitoken root secret v1"), []byte(ns), kid[:], at}
	if rec.Exposed {
		fields = append(fields, []byte("exposed"))
	}
	if rec.Spent {
		fields = append(fields, []byte("spent"))
	}
	return seal.Bound(fields...)
}

// newRoot makes a root secret and its record: the newest of r, whatever the clock says.
func (k *Ring) newRoot(ctx context.Context, r *ring) (*rootSecret, record.Written, error) {
	created := k.now().UnixMilli()
	if n := len(r.roots); n > 0 {
		created = max(created, r.roots[n-1].created+1)
	}
	secret := make([]byte, rootSize)
	rand.Read(secret)
	var kid [4]byte
	rand.Read(kid[:])
	root, err := deriveRoot(k.c.Namespace(), kid, created, secret)
	if err != nil {
		return nil, record.Written{}, err
	}
	rec, err := k.rootRecord(ctx, root)
	root.plain = k.c.Seal == nil
	return root, rec, err
}

// rootRecord seals a root as the configuration says.
func (k *Ring) rootRecord(ctx context.Context, root *rootSecret) (record.Written, error) {
	rec := rootRecord{V: 1, Created: root.created, Exposed: root.exposed, Spent: root.spent}
	if k.c.Seal == nil {
		if k.sealedSince() != 0 {
			return record.Written{}, fault.Fail(fault.InvalidRequest, "another process has sealed the store's keys: start this one with the same Config.Seal")
		}
		rec.Plain = root.secret
	} else {
		rec.Exposed = root.exposed || root.plain
		ctx, cancel := context.WithTimeout(ctx, sealTimeout)
		defer cancel()
		about := rootContext(k.c.Namespace(), root.kid, &rec)
		sealed, err := hook.Call(ctx, func(ctx context.Context) ([]byte, error) { return k.c.Seal.Seal(ctx, slices.Clone(root.secret), about) })
		if err != nil {
			return record.Written{}, fault.NoAnswer(err, "seal the root secret")
		}
		// What this replaces may be the only form in which the secret exists: a Sealer that may seal and not open, as a role of a
		// KMS may be, must be found out before.
		back, err := hook.Call(ctx, func(ctx context.Context) ([]byte, error) { return k.c.Seal.Open(ctx, sealed, about) })
		if err != nil {
			return record.Written{}, fault.NoAnswer(err, "open the root secret that was just sealed")
		}
		if !hmac.Equal(back, root.secret) {
			return record.Written{}, fault.Fail(fault.Unavailable, "Config.Seal does not open what it sealed")
		}
		rec.Sealed = sealed
	}
	return rootForm.Write(store.Record{ID: rootID(root.kid)}, &rec)
}

// openRoot brings out a root secret. A secret in clear is only taken where the configuration says so: whoever writes the
// store could put one there.
func (k *Ring) openRoot(ctx context.Context, kid [4]byte, r store.Record) (*rootSecret, error) {
	var rec rootRecord
	if err := commit.Read(&rootForm, r, &rec); err != nil {
		return nil, err
	}
	secret, bare := rec.Plain, len(rec.Sealed) == 0
	switch seal, since := k.c.Seal, k.sealedSince(); {
	case rec.V != 1 || bare && (rec.Exposed || rec.Spent):
		return nil, fault.Fail(fault.Unavailable, "root secret %x is damaged or of a newer version", kid)
	case seal == nil && (!bare || since != 0):
		return nil, fault.Fail(fault.Unavailable, "the store's keys are sealed, from which there is no way back to InsecureKeysInStore: their Sealer is required")
	case seal != nil && bare && since != 0:
		return nil, fault.Fail(fault.Unavailable, "the store's root secret %x lies in clear, though all were sealed at %s: someone put it there", kid, time.UnixMilli(since).UTC().Format(time.RFC3339))
	case seal != nil && bare && !k.c.Clear:
		return nil, fault.Fail(fault.Unavailable, "the store's root secret %x lies in clear: it was made under InsecureKeysInStore, or put there by someone; "+
			"if it is yours, start with InsecureKeysInStore beside Seal until all processes have Seal: that seals it", kid)
	case !bare:
		ctx, cancel := context.WithTimeout(ctx, sealTimeout)
		defer cancel()
		var err error
		about := rootContext(k.c.Namespace(), kid, &rec)
		secret, err = hook.Call(ctx, func(ctx context.Context) ([]byte, error) { return seal.Open(ctx, rec.Sealed, about) })
		if err != nil {
			return nil, fault.NoAnswer(err, "open the root secret")
		}
	}
	root, err := deriveRoot(k.c.Namespace(), kid, rec.Created, slices.Clone(secret))
	if err != nil {
		return nil, err
	}
	root.exposed, root.spent, root.plain = rec.Exposed, rec.Spent, bare
	return root, nil
}

// differs reports whether the record of a root tells something that is not known here. The caller holds mu.
func (k *Ring) differs(kid [4]byte, r store.Record) bool {
	known := k.roots[kid]
	var rec rootRecord
	if err := commit.Read(&rootForm, r, &rec); err != nil {
		return known == nil // opening it says what is wrong
	}
	bare := len(rec.Sealed) == 0
	if k.c.Seal == nil {
		if !bare {
			k.noteSealed(k.now().UnixMilli())
		}
		return known == nil
	}
	if known != nil && bare && !known.plain {
		k.c.Log.Error("apitoken: a root secret that was sealed lies in clear in the store: someone put it there; it is not read", "root", hex.EncodeToString(kid[:]))
	}
	return known == nil || !bare && (known.plain || rec.Spent && !known.spent)
}

// noteSealed says that no root is written in clear any more. The caller holds mu.
func (k *Ring) noteSealed(since int64) {
	if k.sealed != 0 || since == 0 {
		return
	}
	k.sealed = since
	if k.c.Seal == nil && len(k.roots) > 0 {
		k.c.Log.Warn("apitoken: another process has sealed the store's keys; this one goes on with those it has, and does not start again without Config.Seal")
	}
}

// sealedSince is when the last root that lay in clear was sealed, Unix ms; 0: some may lie in clear.
func (k *Ring) sealedSince() int64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.sealed
}

// sealsAll reports whether no root lies in clear once c is written.
func (k *Ring) sealsAll(c *commit.Change) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	for kid, root := range k.roots {
		if root.plain && !slices.ContainsFunc(c.Puts, func(p store.Put) bool { return p.ID == rootID(kid) }) {
			return false
		}
	}
	return true
}

// sealClear seals the roots that lie in clear, where Config.InsecureKeysInStore beside Config.Seal lets openRoot take them. What
// stops on the way is done by the next start; of several processes one is first, and the others take what it made.
func (k *Ring) sealClear(ctx context.Context) error {
	bare := func(r *rootSecret) bool { return r.plain }
	roots := k.ring.Load().roots
	i := slices.IndexFunc(roots, bare)
	if k.c.Seal == nil || i < 0 {
		return nil
	}
	if _, err := k.rootRecord(ctx, roots[i]); err != nil { // before anything is altered, and as what it is
		return fault.Wrong("Seal", "%s", fault.DetailOf(err))
	}
	n, err := k.reseal(ctx, "root secrets sealed", bare)
	if err != nil {
		return err
	}
	if n > 0 { // else another process did it
		k.c.Log.Warn("apitoken: the store's keys lay in clear and are sealed now", "roots", n)
	}
	return nil
}

// atRest ends a start: it says what is left to do about keys that lie, or lay, in clear.
func (k *Ring) atRest(r *ring) error {
	if k.c.Seal == nil {
		if k.sealedSince() != 0 { // since they were opened
			return fault.Wrong("Seal", "the store's keys are sealed, from which there is no way back to InsecureKeysInStore: their Sealer is required")
		}
		return nil
	}
	if k.c.Clear {
		k.c.Log.Warn("apitoken: all keys in the store are sealed: InsecureKeysInStore can go, once every process has Seal")
	}
	if !slices.ContainsFunc(r.roots, func(x *rootSecret) bool { return !x.exposed }) {
		k.c.Log.Warn("apitoken: the store's keys lay in clear before they were sealed: whoever has a copy of it from then can use them until SigningKeys.RotateSecrets has replaced them")
	}
	return nil
}

// openRoots opens those that came in since. One that cannot be opened stays shut, and so do the keys under it.
func (k *Ring) openRoots(ctx context.Context) error {
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
		if k.shut[kid].Version == r.Version {
			delete(k.shut, kid)
		}
		if old := k.roots[kid]; old != nil && old.spent && !root.spent {
			k.mu.Unlock() // an older form was put back: what a root has lost it does not get again
			continue
		}
		k.roots[kid] = root
		for name, x := range k.records {
			if x.rec.Root != kid {
				continue
			}
			got, err := k.open(root, name, x.rec)
			if err != nil {
				k.c.Log.Error("apitoken: a signing key in the store is not authentic and is left out", "kid", name, "error", err)
				delete(k.records, name)
				continue
			}
			got.version, got.expires, got.pos = x.version, x.expires, x.pos
			k.records[name] = got
		}
		k.rebuild()
		k.mu.Unlock()
	}
	return failed
}

// compare orders roots by age, the oldest first.
func (r *rootSecret) compare(other *rootSecret) int {
	return cmp.Or(cmp.Compare(r.created, other.created), bytes.Compare(r.kid[:], other.kid[:]))
}

// MAC is the newest root's secret for a purpose, and the root's ID.
func (k *Ring) MAC(purpose string) (kid [4]byte, key []byte) {
	root := k.current(k.ring.Load())
	return root.kid, root.keys[purpose]
}

// current is the root under which new things are made: the newest that every process had time to open.
func (k *Ring) current(r *ring) *rootSecret {
	known := k.now().Add(-k.lead()).UnixMilli()
	var oldest *rootSecret // that may prove a key; if none had time, whoever took that power from the others knew it
	for i := len(r.roots) - 1; i >= 0; i-- {
		root := r.roots[i]
		if root.spent {
			continue
		}
		if root.created <= known {
			return root
		}
		oldest = root
	}
	if oldest == nil {
		return r.roots[0]
	}
	return oldest
}

// EachMAC walks the secrets of all roots for a purpose; nil for one that is not open here yet.
func (k *Ring) EachMAC(purpose string, f func(kid [4]byte, key []byte)) {
	k.mu.Lock()
	shut := slices.Collect(maps.Keys(k.shut))
	k.mu.Unlock()
	open := k.ring.Load().by // after shut was read: a root that is opened meanwhile is not missed
	for kid, root := range open {
		f(kid, root.keys[purpose])
	}
	for _, kid := range shut {
		if open[kid] == nil {
			f(kid, nil)
		}
	}
}

// MACFor is the secret of the root kid for a purpose.
func (k *Ring) MACFor(kid [4]byte, purpose string) ([]byte, bool) {
	root := k.ring.Load().by[kid]
	if root == nil {
		return nil, false
	}
	return root.keys[purpose], true
}

// RotateSecrets makes a new root secret, from which the tags of refresh tokens and API keys, the ratchet and the seals of new
// signing keys are made, as soon as every process can know it (see Rotate). What was made under an older one stays good.
//
// With Config.Seal the ring then moves under the new one by itself: another signing key takes over, as after Rotate, all are
// sealed anew, and no older secret proves or opens a signing key any more. So it ends what somebody can do who has the older
// ones, from a copy of the store in which they lay in clear, say; except with a signing key that he has: see Compromise.
//
// ErrInvalidRequest: the store is on its way from InsecureKeysInStore to Seal, and processes may run that could not open it.
func (k *Ring) RotateSecrets(ctx context.Context) error {
	if err := k.c.Ready(); err != nil {
		return err
	}
	if k.c.Seal != nil && k.c.Clear {
		return fault.Fail(fault.InvalidRequest, "InsecureKeysInStore still stands beside Seal: processes without Seal could not open a new secret")
	}
	var made *rootSecret
	err := k.change(ctx, func(c *commit.Change, r *ring) error {
		root, rec, err := k.newRoot(ctx, r)
		if err != nil {
			return err
		}
		made = root
		c.Put(rec, store.Version{})
		k.changed(ctx, c, "root secret created", map[string]string{"root": hex.EncodeToString(root.kid[:])})
		return nil
	})
	if err != nil {
		return err
	}
	k.mu.Lock()
	k.roots[made.kid] = made
	delete(k.shut, made.kid)
	k.rebuild()
	k.mu.Unlock()
	return nil
}

// Rewrap seals every root secret again with Config.Seal as it is now: after a new key-encryption key was put in front
// of the old one, and before the old one is dropped. It returns how many there were. After an error some may still be under
// the old one; it is safe to repeat. ErrInvalidRequest: there is no Config.Seal.
func (k *Ring) Rewrap(ctx context.Context) (int, error) {
	if k.c.Seal == nil {
		return 0, fault.Fail(fault.InvalidRequest, "there is no Config.Seal to seal with")
	}
	return k.reseal(ctx, "root secrets sealed again", func(*rootSecret) bool { return true })
}

// reseal writes the chosen roots anew, a few in each change.
func (k *Ring) reseal(ctx context.Context, how string, chosen func(*rootSecret) bool) (int, error) {
	done := map[[4]byte]bool{}
	for {
		left := false
		var batch [][4]byte
		err := k.change(ctx, func(c *commit.Change, r *ring) error {
			left, batch = false, nil
			for _, root := range r.roots {
				if done[root.kid] || !chosen(root) {
					continue
				}
				if left = len(batch) == rewrapBatch; left {
					break
				}
				if err := k.putRoot(ctx, c, root); err != nil {
					return err
				}
				batch = append(batch, root.kid)
			}
			if len(batch) > 0 {
				k.c.Revoke.Event(ctx, c, revoke.Event{Type: event.KeyChanged, Reason: how, Count: len(batch)})
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

// putRoot replaces the record of a root.
func (k *Ring) putRoot(ctx context.Context, c *commit.Change, root *rootSecret) error {
	old, err := k.c.Revoke.Commit.Get(ctx, store.KindKey, rootID(root.kid))
	if err != nil {
		return err
	}
	rec, err := k.rootRecord(ctx, root)
	if err != nil {
		return err
	}
	c.Put(rec, old.Version)
	return nil
}

// rewrapBatch bounds the puts of one change (store.Change).
const rewrapBatch = 8

// spend takes from older roots the power to prove a signing key, once another is known to every process and the newest keys are
// made under it. First the keys go under that one, in as many changes as they need.
func (k *Ring) spend(ctx context.Context) error {
	for left := k.spendable(k.ring.Load()); left; {
		err := k.change(ctx, func(c *commit.Change, r *ring) error {
			if left = k.spendable(r); !left {
				return nil
			}
			to := k.current(r)
			for i := range r.keys {
				x := &r.keys[i]
				from := r.by[x.rec.Root]
				if from.compare(to) >= 0 {
					continue
				}
				rec, err := k.under(to, from, x)
				if err != nil {
					return err
				}
				if err := k.put(c, x.kid, &rec, x.expires, x.version); err != nil {
					return err
				}
				if len(c.Puts) == rewrapBatch {
					break
				}
			}
			if n := len(c.Puts); n > 0 {
				k.c.Revoke.Event(ctx, c, revoke.Event{Type: event.KeyChanged, Reason: "signing keys sealed again", Count: n})
				return nil // and the roots when no key is left
			}
			for _, root := range r.roots {
				if root.spent || root.compare(to) >= 0 || len(c.Puts) == rewrapBatch {
					continue
				}
				spent := *root
				spent.spent = true
				if err := k.putRoot(ctx, c, &spent); err != nil {
					return err
				}
			}
			k.c.Revoke.Event(ctx, c, revoke.Event{Type: event.KeyChanged, Reason: "older root secrets prove no signing key any more", Count: len(c.Puts)})
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// spendable reports whether a root may be spent.
func (k *Ring) spendable(r *ring) bool {
	if k.c.Seal == nil || r.lanes[0].newest() == nil {
		return false // in clear, nothing could tell a spent root from the same before
	}
	for i := range r.lanes {
		if x := r.lanes[i].live(); x != nil && r.lanes[i].alg != "" && k.outdated(r, x) {
			return false
		}
	}
	to := k.current(r)
	return slices.ContainsFunc(r.roots, func(x *rootSecret) bool { return !x.spent && x.compare(to) < 0 })
}

// under is the record of a key under another root.
func (k *Ring) under(to, from *rootSecret, x *ringKey) (keyRecord, error) {
	rec := x.rec
	if len(rec.Sealed) > 0 {
		plain, err := from.unseal(rec.Sealed, rec.aad(k.c.Namespace(), x.kid))
		if err != nil {
			return rec, err
		}
		rec.Sealed = to.seal(plain, rec.aad(k.c.Namespace(), x.kid))
	}
	k.prove(to, x.kid, &rec)
	return rec, nil
}
