// What this process knows of the ring: the keys by their records, in the order in which they sign, for whom, and as key sets.

package keyring

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/jws"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/internal/seal"
	"github.com/apitoken-go/apitoken/store"
)

// lead is how long a key is known before it signs.
func (k *Ring) lead() time.Duration {
	if r := k.c.Rotation; r > 0 && r/2 < leadMost {
		return r / 2
	}
	return leadMost
}

// Reset forgets the ring's records, not the secrets: they are read again.
func (k *Ring) Reset() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.records, k.shut, k.lock = map[string]knownSigner{}, map[[4]byte]store.Record{}, store.Version{}
}

// Apply takes a record of the ring. One that cannot be read or is not authentic is left out, which the error says: a key
// gives power, so that leaving it out is safe.
func (k *Ring) Apply(r store.Record) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case r.ID == keyLock:
		k.lock = r.Version
		var rec lockRecord
		if err := commit.Read(&lockForm, r, &rec); err != nil {
			return err // whoever changes the ring needs the version alone
		}
		k.noteSealed(rec.Sealed)
		return nil
	case strings.HasPrefix(r.ID, rootPrefix):
		kid, err := parseRootID(r.ID)
		if err != nil {
			return err
		}
		if k.differs(kid, r) {
			// Opening may take a KMS: not here, where revocations wait.
			k.shut[kid] = r
			k.Wake()
		}
	case strings.HasPrefix(r.ID, keyPrefix):
		if err := k.take(r); err != nil {
			delete(k.records, strings.TrimPrefix(r.ID, keyPrefix))
			k.rebuild()
			return fmt.Errorf("the signing key is left out: %w", err)
		}
	}
	k.rebuild()
	return nil
}

// Readable reports why a record of the ring cannot be read; nil: it can. Only Apply tells whether it is authentic.
func Readable(r store.Record) error {
	switch {
	case r.ID == keyLock:
		return commit.Read(&lockForm, r, new(lockRecord))
	case strings.HasPrefix(r.ID, rootPrefix):
		if _, err := parseRootID(r.ID); err != nil {
			return err
		}
		return commit.Read(&rootForm, r, new(rootRecord))
	case strings.HasPrefix(r.ID, keyPrefix):
		return commit.Read(&keyForm, r, new(keyRecord))
	}
	return nil
}

// take reads one key.
func (k *Ring) take(r store.Record) error {
	kid := strings.TrimPrefix(r.ID, keyPrefix)
	var rec keyRecord
	if err := commit.Read(&keyForm, r, &rec); err != nil {
		return err
	}
	old, known := k.records[kid]
	pos := r.Pos.N
	if known {
		pos = min(pos, old.pos)
	}
	root := k.roots[rec.Root]
	if root == nil {
		k.records[kid] = knownSigner{rec: rec, version: r.Version, expires: r.Expires, pos: pos} // until the root comes and is open
		return nil
	}
	x, err := k.open(root, kid, rec)
	if err != nil {
		return err
	}
	if known && old.rec.Compromised != 0 && rec.Compromised == 0 {
		k.c.Log.Error("apitoken: an older form of a compromised signing key was put back, and is not taken", "kid", kid)
		return nil
	}
	x.version, x.expires, x.pos = r.Version, r.Expires, pos
	k.records[kid] = x
	return nil
}

// open checks the MAC and brings out what this process may use.
func (k *Ring) open(root *rootSecret, kid string, rec keyRecord) (knownSigner, error) {
	x := knownSigner{rec: rec}
	if rec.V != 1 {
		return x, errors.New("of a newer version")
	}
	if root.spent {
		return x, errors.New("its root secret proves no signing key any more")
	}
	if !root.proves(rec.MAC, rec.bytes(k.c.Namespace(), kid)) {
		return x, errors.New("its MAC does not fit")
	}
	var err error
	if rec.JWK != "" {
		if x.public, err = jws.ParseJWK([]byte(rec.JWK)); err != nil {
			return x, err
		}
		if x.public.KID != kid || !x.public.Allows(rec.Alg) {
			return x, errors.New("its parts contradict each other")
		}
	}
	switch {
	case rec.Compromised != 0:
		return x, nil
	case rec.Outside:
		x.signer = k.outside[kid]
		return x, nil
	}
	plain, err := root.unseal(rec.Sealed, rec.aad(k.c.Namespace(), kid))
	if err != nil {
		return x, err
	}
	var private any = plain
	if rec.Alg != "HS256" {
		if private, err = x509.ParsePKCS8PrivateKey(plain); err != nil {
			return x, errors.New("the private key is unreadable")
		}
	}
	if x.signer, err = jws.NewSigner(kid, rec.Alg, private, false); err != nil {
		return x, err
	}
	if x.public == nil {
		x.public = x.signer.Public
	}
	x.signer.Public.Audience = x.public.Audience
	if !x.public.Equal(x.signer.Public) {
		return x, errors.New("its halves do not belong together")
	}
	return x, nil
}

func (rec *keyRecord) aad(ns, kid string) []byte {
	return seal.Bound([]byte("sk1"), []byte(ns), []byte(kid), []byte(rec.Alg), []byte(rec.JWK))
}

// bytes is what the MAC covers.
func (rec *keyRecord) bytes(ns, kid string) []byte {
	fields := []any{rec.Outside, rec.Created, rec.Activates, rec.Compromised}
	switch {
	case rec.Ends != 0:
		fields = append(fields, rec.Took, rec.Ends)
	case rec.Took != 0:
		fields = append(fields, rec.Took)
	}
	flags, err := json.Marshal(fields)
	if err != nil {
		return nil
	}
	return seal.Bound([]byte("km1"), []byte(ns), []byte(kid), []byte(rec.Alg), []byte(rec.JWK), rec.Sealed, flags)
}

// Presented is macFor for what somebody brings. A root that is not open here yet is no fault of his: ErrUnavailable.
// One that nobody here has heard of is looked for in the store, once in a while: its token may have been made by a
// process that is ahead. nil: there is none.
func (k *Ring) Presented(ctx context.Context, kid [4]byte, purpose string) ([]byte, error) {
	for looked := false; ; looked = true {
		if key, ok := k.MACFor(kid, purpose); ok {
			return key, nil
		}
		k.mu.Lock()
		_, shut := k.shut[kid]
		k.mu.Unlock()
		if shut {
			return nil, fault.Retry("the root secret of its tag is not open yet")
		}
		now, last := time.Now(), k.looked.Load()
		if looked || last != nil && now.Sub(*last) < lookEvery || !k.looked.CompareAndSwap(last, &now) {
			return nil, nil
		}
		if err := k.refresh(ctx); err != nil {
			return nil, fault.NoAnswer(err, "look for a root secret")
		}
	}
}

// rebuild makes a new ring of what is known, and tells the validator. The caller holds mu.
func (k *Ring) rebuild() {
	r := &ring{by: make(map[[4]byte]*rootSecret, len(k.roots))}
	for kid, root := range k.roots {
		r.by[kid] = root
		r.roots = append(r.roots, root)
	}
	slices.SortFunc(r.roots, (*rootSecret).compare)
	for kid, x := range k.records {
		if k.roots[x.rec.Root] == nil {
			continue // not known to be authentic
		}
		r.keys = append(r.keys, ringKey{kid, x})
		r.pos = max(r.pos, x.pos)
		if x.rec.Compromised == 0 && k.revoked(kid) {
			k.Wake() // to heal
		}
	}
	slices.SortFunc(r.keys, func(a, b ringKey) int {
		// What took another's place has its time: it comes behind it, made in the same millisecond or not.
		return cmp.Or(cmp.Compare(a.rec.Activates, b.rec.Activates), cmp.Compare(a.rec.Took, b.rec.Took), cmp.Compare(a.rec.Created, b.rec.Created), cmp.Compare(a.kid, b.kid))
	})
	r.lanes = k.lanes(r.keys)
	if old, at := k.ring.Load(), k.c.Revoke.Commit.State.Position().N; r.pos > at {
		if r.before = old.before; old.pos <= at {
			settled := *old
			settled.before = nil
			r.before = &settled
		}
	}
	k.ring.Store(r)
	k.tell()
}

// lanes sorts the keys by whom they sign for.
func (k *Ring) lanes(keys []ringKey) []lane {
	list := []lane{{alg: k.c.Algorithm}}
	for audience, alg := range k.c.Audiences {
		list = append(list, lane{audience: audience, alg: alg})
	}
	for _, x := range keys {
		audience := x.audience()
		i := slices.IndexFunc(list, func(l lane) bool { return l.audience == audience })
		if i < 0 {
			i, list = len(list), append(list, lane{audience: audience})
		}
		list[i].keys = append(list[i].keys, x)
	}
	slices.SortFunc(list, func(a, b lane) int { return cmp.Compare(a.audience, b.audience) })
	return list
}

// lane is that of an audience: the common one has the name "".
func (r *ring) lane(audience string) *lane {
	for i := range r.lanes {
		if r.lanes[i].audience == audience {
			return &r.lanes[i]
		}
	}
	return &lane{audience: audience}
}

func (x *knownSigner) audience() string {
	if x.public == nil { // a compromised secret
		return ""
	}
	return x.public.Audience
}

// tell hands the validator what verifies now.
func (k *Ring) tell() {
	k.c.Publish(k.PublicKeys())
}

func (k *Ring) Wake() {
	select {
	case k.kick <- struct{}{}:
	default:
	}
}

// Each walks the ring at now: every key with its state, since when and until when it is in it; until is 0 where that is not known
// yet. Gone keys are passed over.
func (k *Ring) Each(now time.Time, f func(x *ringKey, state string, since, until int64)) {
	r := k.ring.Load()
	for i := range r.lanes {
		k.eachOf(&r.lanes[i], now.UnixMilli(), f)
	}
}

func (k *Ring) eachOf(l *lane, ms int64, f func(x *ringKey, state string, since, until int64)) {
	keep := (k.c.Revoke.Space.Life().Access + rules.Slack).Milliseconds()
	successor := int64(0) // when the key behind this one began to sign; 0: it did not
	waiting := int64(0)   // when the key behind this one will sign; 0: there is none
	first := l.first()
	for i := len(l.keys) - 1; i >= 0; i-- {
		x := &l.keys[i]
		if x.rec.Compromised != 0 || k.revoked(x.kid) { // the rule alone where heal has not come to it yet
			f(x, "compromised", max(x.rec.Compromised, x.rec.signs()), 0)
			continue // it signs for nobody: whatever stands before it goes on
		}
		if x.rec.Activates > ms && i != first {
			f(x, "next", x.rec.Created, x.rec.Activates)
			waiting = x.rec.Activates
			continue
		}
		end := successor
		if x.rec.Ends != 0 && (end == 0 || x.rec.Ends < end) {
			end = x.rec.Ends
		}
		switch {
		case end == 0 || end > ms:
			if end == 0 {
				end = waiting
			}
			f(x, "active", x.rec.signs(), end)
		case end+keep > ms:
			f(x, "retired", end, end+keep)
		}
		successor = x.rec.Activates
	}
}

// signs is since when the key signs.
func (rec *keyRecord) signs() int64 { return max(rec.Activates, rec.Took) }

// PublicKeys is what verifies tokens now: never a compromised or a gone key.
func (k *Ring) PublicKeys() []*jws.PublicKey {
	var out []*jws.PublicKey
	k.Each(k.now(), func(x *ringKey, state string, _, _ int64) {
		if state != "compromised" {
			out = append(out, x.public)
		}
	})
	return out
}

// Active is the key that signs now what is stamped with view and is for these audiences: never one that a rule refuses, though
// the ring may tell of it as it was before it was withdrawn.
func (k *Ring) Active(view store.Position, now time.Time, audiences []string) (Signing, error) {
	r := k.ring.Load()
	if r.pos > view.N && r.before != nil {
		r = r.before
	}
	ms := now.UnixMilli()
	var x *ringKey
	if len(audiences) == 1 {
		for i := range r.lanes[1:] {
			if l := &r.lanes[1+i]; l.alg != "" && l.audience == audiences[0] {
				x = k.activeOf(l, ms) // none yet: the common one goes on, which every validator knows
				break
			}
		}
	}
	if x == nil {
		x = k.activeOf(&r.lanes[0], ms)
	}
	switch {
	case x == nil:
		return Signing{}, fault.Retry("no signing key is active")
	case x.signer == nil:
		return Signing{}, fault.Retry("the active signing key " + x.kid + " is outside: this process has to Import its signer")
	}
	return Signing{KID: x.kid, signer: x.signer, slow: x.rec.Outside}, nil
}

func (k *Ring) activeOf(l *lane, ms int64) *ringKey {
	first := l.first()
	for i := len(l.keys) - 1; i >= 0; i-- {
		x := &l.keys[i]
		if x.rec.Compromised != 0 || x.rec.Activates > ms && i != first || k.revoked(x.kid) {
			continue
		}
		if x.rec.Ends != 0 && x.rec.Ends <= ms {
			return nil
		}
		return x
	}
	return nil
}

// Digest changes with the published set.
func (k *Ring) Digest() string {
	var kids []string
	k.Each(k.now(), func(x *ringKey, state string, _, _ int64) {
		if state != "compromised" && x.rec.JWK != "" {
			kids = append(kids, x.kid)
		}
	})
	return KeySetDigest(kids)
}

// KeySetDigest is of the kids, and not of a document: what lies between may set it anew.
func KeySetDigest(kids []string) string {
	slices.Sort(kids)
	sum := sha256.Sum256([]byte(strings.Join(kids, "\x00")))
	return hex.EncodeToString(sum[:8])
}

// newest is the last key that is good.
func (l *lane) newest() *ringKey {
	for i := len(l.keys) - 1; i >= 0; i-- {
		if l.keys[i].rec.Compromised == 0 {
			return &l.keys[i]
		}
	}
	return nil
}

// live is the last key that is good, unless the lane has ended with it.
func (l *lane) live() *ringKey {
	if x := l.newest(); x != nil && x.rec.Ends == 0 {
		return x
	}
	return nil
}

// first is the place of the oldest key that is good. It signs where the clock stands before all of the ring: nobody can know
// another one better. For an audience the common key does instead: -1.
func (l *lane) first() int {
	if l.audience != "" {
		return -1
	}
	return slices.IndexFunc(l.keys, func(x ringKey) bool { return x.rec.Compromised == 0 })
}

// Compromised are the kids of the keys that a rule refuses, in order.
func (k *Ring) Compromised() (kids []string) {
	k.Each(k.now(), func(x *ringKey, state string, _, _ int64) {
		if state == "compromised" {
			kids = append(kids, x.kid)
		}
	})
	slices.Sort(kids)
	return kids
}
