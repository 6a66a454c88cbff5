package apitoken

import (
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apitoken-go/apitoken/internal/jws"
	"github.com/apitoken-go/apitoken/store"
)

// SigningKey is a key of the ring, its public side.
type SigningKey struct {
	ID        string // RFC 7638 thumbprint
	Algorithm string // JWA name: "ES256", "EdDSA", "RS256", "PS256", "HS256"
	Audience  string // whose tokens it signs, see Config.AudienceAlgorithms; "": those of all others
	// State is "next" (published, not used yet), "active", "retired" (published until the last token that it
	// signed has died) or "compromised".
	State   string
	Since   time.Time // of the state
	Outside bool      // its private half is not in the store: it was imported
	JWK     []byte    // public; nil for HS256
}

// SigningKeys is the ring, and those of the audiences that have one of their own. It rotates by itself, as Config.KeyRotation says. A key's state is no record but a function of the
// ring and the clock: each key is made with the time from which it signs, far enough ahead that every validator
// knows it by then, and it retires when its successor begins. So all processes agree without a word.
type SigningKeys struct {
	s *Service

	mu      sync.Mutex // guards the maps, and the making of rings from them
	records map[string]knownSigner
	roots   map[[4]byte]*rootSecret
	shut    map[[4]byte]store.Record // roots that were not opened yet
	outside map[string]*jws.Signer   // imported into this process
	lock    store.Version            // of the ring's lock record
	sealed  int64                    // since when the store holds no root in clear, Unix ms; 0: it may. Never forgotten
	ring    atomic.Pointer[ring]
	looked  atomic.Pointer[time.Time] // when the store was asked for a root last because somebody named it
	kick    chan struct{}
}

// knownSigner is a record that was read and found authentic, with its private half where this process may have it.
type knownSigner struct {
	rec     keyRecord
	version store.Version
	expires int64 // of the record
	pos     int64 // where its record first stood in the order of changes: whose view reaches there knows the key
	public  *jws.PublicKey
	signer  *jws.Signer // nil: outside, and not imported here; or compromised
}

// ring is what readers see: it never changes.
type ring struct {
	keys  []ringKey     // by the time from which each signs
	lanes []lane        // the same keys by whom they sign for: the common one first, then by audience
	roots []*rootSecret // by age, the oldest first; none only before ensure
	by    map[[4]byte]*rootSecret
	pos   int64 // of its newest key
	// before is the ring of the last complete view, while the view does not reach pos yet: a token that is stamped with a
	// view must not be signed with a key that this view does not know.
	before *ring
}

// lane is a ring in the ring: of the keys in it one is active. Each configured audience has one, keys or not.
type lane struct {
	audience string // "": of all that have none of their own
	alg      string // of the keys that are made here; "": this process makes none, nor signs with them
	keys     []ringKey
}

type ringKey struct {
	kid string
	knownSigner
}

// keyRecord is a signing key as it is stored. The MAC is under the root secret: whoever can write the store can
// still not add a key. The private half is sealed under the root secret too.
type keyRecord struct {
	V           int     `json:"v"`
	Alg         string  `json:"alg"`
	JWK         string  `json:"jwk,omitempty"`
	Sealed      []byte  `json:"sealed,omitempty"`
	Outside     bool    `json:"outside,omitempty"`
	Created     int64   `json:"created"`        // Unix ms, as all times here
	Activates   int64   `json:"activates"`      // signs from then on
	Took        int64   `json:"took,omitempty"` // signs since, where it took the place of a compromised key: Activates is that key's
	Ends        int64   `json:"ends,omitempty"` // signs no more from then on, though no other has taken its place
	Compromised int64   `json:"compromised,omitempty"`
	Root        [4]byte `json:"root"`
	MAC         []byte  `json:"mac"`
}

// lockRecord serializes changes of the ring: of two processes that want to rotate, one does.
type lockRecord struct {
	V int   `json:"v"`
	N int64 `json:"n"`
	// Sealed is since when no root lies in clear, Unix ms: a process without a Sealer, which may have been started before, writes
	// none any more, and one that seals what lies in clear takes none any more.
	Sealed int64 `json:"sealed,omitempty"`
}

const (
	keyLock   = "ring"
	keyPrefix = "sign."

	// leadMost is how long a key is published before it signs: validators elsewhere read key sets every five minutes.
	leadMost    = 15 * time.Minute
	keyTick     = 30 * time.Second // how often the ring looks at the clock
	keyTries    = 8
	lookEvery   = time.Second     // for a root secret that somebody names
	signTimeout = 5 * time.Second // of a key outside, when the caller sets no deadline
)

func newSigningKeys(s *Service) *SigningKeys {
	k := &SigningKeys{s: s, kick: make(chan struct{}, 1), roots: map[[4]byte]*rootSecret{}, outside: map[string]*jws.Signer{}}
	k.records, k.shut = map[string]knownSigner{}, map[[4]byte]store.Record{}
	k.ring.Store(&ring{lanes: k.lanes(nil)})
	return k
}

// lead is how long a key is known before it signs.
func (k *SigningKeys) lead() time.Duration {
	if r := k.s.cfg.KeyRotation; r > 0 && r/2 < leadMost {
		return r / 2
	}
	return leadMost
}

// reset forgets the ring's records, not the secrets: they are read again.
func (k *SigningKeys) reset() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.records, k.shut, k.lock = map[string]knownSigner{}, map[[4]byte]store.Record{}, store.Version{}
}

// applyRecord takes a record of the ring. One that is not authentic is left out and told of: a key gives power, so
// that leaving it out is safe.
func (k *SigningKeys) applyRecord(r store.Record) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case r.ID == keyLock:
		k.lock = r.Version
		var rec lockRecord
		if err := decodeRecord(r, &rec); err != nil {
			k.s.log.Error("apitoken: the lock of the signing keys can not be read", "error", err)
			return nil // it is the version that counts
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
			k.wake()
		}
	case strings.HasPrefix(r.ID, keyPrefix):
		if err := k.take(r); err != nil {
			k.s.log.Error("apitoken: a signing key in the store is not authentic and is left out", "kid", strings.TrimPrefix(r.ID, keyPrefix), "error", err)
			delete(k.records, strings.TrimPrefix(r.ID, keyPrefix))
		}
	}
	k.turn()
	return nil
}

// take reads one key.
func (k *SigningKeys) take(r store.Record) error {
	kid := strings.TrimPrefix(r.ID, keyPrefix)
	var rec keyRecord
	if err := decodeRecord(r, &rec); err != nil {
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
		k.s.log.Error("apitoken: an older form of a compromised signing key was put back, and is not taken", "kid", kid)
		return nil
	}
	x.version, x.expires, x.pos = r.Version, r.Expires, pos
	k.records[kid] = x
	return nil
}

// open checks the MAC and brings out what this process may use.
func (k *SigningKeys) open(root *rootSecret, kid string, rec keyRecord) (knownSigner, error) {
	x := knownSigner{rec: rec}
	if rec.V != 1 {
		return x, errors.New("of a newer version")
	}
	if root.spent {
		return x, errors.New("its root secret proves no signing key any more")
	}
	if !root.proves(rec.MAC, rec.bytes(k.s.ns, kid)) {
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
	plain, err := root.unseal(rec.Sealed, rec.aad(k.s.ns, kid))
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
	return bound([]byte("sk1"), []byte(ns), []byte(kid), []byte(rec.Alg), []byte(rec.JWK))
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
	return bound([]byte("km1"), []byte(ns), []byte(kid), []byte(rec.Alg), []byte(rec.JWK), rec.Sealed, flags)
}

// presented is macFor for what somebody brings. A root that is not open here yet is no fault of his: ErrUnavailable.
// One that nobody here has heard of is looked for in the store, once in a while: its token may have been made by a
// process that is ahead. nil: there is none.
func (k *SigningKeys) presented(ctx context.Context, kid [4]byte, purpose string) ([]byte, error) {
	for looked := false; ; looked = true {
		if key, ok := k.macFor(kid, purpose); ok {
			return key, nil
		}
		k.mu.Lock()
		_, shut := k.shut[kid]
		k.mu.Unlock()
		if shut {
			return nil, &Error{Code: ErrUnavailable, RetryAfter: retryHint, Detail: "the root secret of its tag is not open yet"}
		}
		now, last := time.Now(), k.looked.Load()
		if looked || last != nil && now.Sub(*last) < lookEvery || !k.looked.CompareAndSwap(last, &now) {
			return nil, nil
		}
		if err := k.s.state.refresh(ctx); err != nil {
			return nil, unavailable(err, "look for a root secret")
		}
	}
}

// turn makes a new ring of what is known, and tells the validator. The caller holds mu.
func (k *SigningKeys) turn() {
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
			k.wake() // to heal
		}
	}
	slices.SortFunc(r.keys, func(a, b ringKey) int {
		// What took another's place has its time: it comes behind it, made in the same millisecond or not.
		return cmp.Or(cmp.Compare(a.rec.Activates, b.rec.Activates), cmp.Compare(a.rec.Took, b.rec.Took), cmp.Compare(a.rec.Created, b.rec.Created), cmp.Compare(a.kid, b.kid))
	})
	r.lanes = k.lanes(r.keys)
	if old, at := k.ring.Load(), k.s.state.position().N; r.pos > at {
		if r.before = old.before; old.pos <= at {
			settled := *old
			settled.before = nil
			r.before = &settled
		}
	}
	k.ring.Store(r)
	k.publish()
}

// lanes sorts the keys by whom they sign for.
func (k *SigningKeys) lanes(keys []ringKey) []lane {
	list := []lane{{alg: k.s.cfg.Algorithm}}
	for audience, alg := range k.s.cfg.AudienceAlgorithms {
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

// publish hands the validator what verifies now.
func (k *SigningKeys) publish() {
	if t := k.s.trust; t != nil {
		t.setKeys(k.publicKeys())
	}
}

func (k *SigningKeys) wake() {
	select {
	case k.kick <- struct{}{}:
	default:
	}
}

// each walks the ring at now: every key with its state and since when it is in it. Gone keys are passed over.
func (k *SigningKeys) each(now time.Time, f func(x *ringKey, state string, since int64)) {
	r := k.ring.Load()
	for i := range r.lanes {
		k.eachOf(&r.lanes[i], now.UnixMilli(), f)
	}
}

func (k *SigningKeys) eachOf(l *lane, ms int64, f func(x *ringKey, state string, since int64)) {
	keep := (k.s.longest.Load().access + ruleSlack).Milliseconds()
	successor := int64(0) // when the key behind this one began to sign; 0: it did not
	first := l.first()
	for i := len(l.keys) - 1; i >= 0; i-- {
		x := &l.keys[i]
		if x.rec.Compromised != 0 || k.revoked(x.kid) { // the rule alone where heal has not come to it yet
			f(x, "compromised", max(x.rec.Compromised, x.rec.signs()))
			continue // it signs for nobody: whatever stands before it goes on
		}
		if x.rec.Activates > ms && i != first {
			f(x, "next", x.rec.Created)
			continue
		}
		end := successor
		if x.rec.Ends != 0 && (end == 0 || x.rec.Ends < end) {
			end = x.rec.Ends
		}
		switch {
		case end == 0 || end > ms:
			f(x, "active", x.rec.signs())
		case end+keep > ms:
			f(x, "retired", end)
		}
		successor = x.rec.Activates
	}
}

// signs is since when the key signs.
func (rec *keyRecord) signs() int64 { return max(rec.Activates, rec.Took) }

// publicKeys is what verifies tokens now: never a compromised or a gone key.
func (k *SigningKeys) publicKeys() []*jws.PublicKey {
	var out []*jws.PublicKey
	k.each(k.s.now(), func(x *ringKey, state string, _ int64) {
		if state != "compromised" {
			out = append(out, x.public)
		}
	})
	return out
}

// signingKey is the key that signs now.
type signingKey struct {
	kid    string
	signer *jws.Signer
	slow   bool // outside
}

// active is the key that signs now what is stamped with view and is for these audiences: never one that a rule refuses, though
// the ring may tell of it as it was before it was withdrawn.
func (k *SigningKeys) active(view store.Position, now time.Time, audiences []string) (signingKey, error) {
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
		return signingKey{}, &Error{Code: ErrUnavailable, RetryAfter: retryHint, Detail: "no signing key is active"}
	case x.signer == nil:
		return signingKey{}, &Error{Code: ErrUnavailable, RetryAfter: retryHint, Detail: "the active signing key " + x.kid + " is outside: this process has to Import its signer"}
	}
	return signingKey{kid: x.kid, signer: x.signer, slow: x.rec.Outside}, nil
}

func (k *SigningKeys) activeOf(l *lane, ms int64) *ringKey {
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

// sign makes an access token of the claims.
func (x *signingKey) sign(ctx context.Context, c *jws.Claims, private []byte) (string, error) {
	var buf [1024]byte
	return x.signText(ctx, "at+jwt", jws.AppendClaims(buf[:0], c, private))
}

func (x *signingKey) signText(ctx context.Context, typ string, payload []byte) (string, error) {
	if x.slow {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, signTimeout)
		defer cancel()
		payload = slices.Clone(payload) // off the caller's stack only where it must be
	}
	text, err := x.signer.Sign(ctx, typ, payload)
	if err != nil {
		return "", unavailable(err, "sign with key "+x.kid)
	}
	return text, nil
}

// List returns the ring, the newest key first; behind the common keys those of each audience that has its own.
func (k *SigningKeys) List(ctx context.Context) ([]SigningKey, error) {
	if err := k.s.Sync(ctx); err != nil {
		return nil, err
	}
	var out []SigningKey
	k.each(k.s.now(), func(x *ringKey, state string, since int64) { out = append(out, x.shown(state, since)) })
	return out, nil
}

func (x *ringKey) shown(state string, since int64) SigningKey {
	s := SigningKey{ID: x.kid, Algorithm: x.rec.Alg, Audience: x.audience(), State: state, Since: time.UnixMilli(since), Outside: x.rec.Outside}
	if x.rec.JWK != "" {
		s.JWK = []byte(x.rec.JWK)
	}
	return s
}

// JWKS is the published set (RFC 7517): the public keys that are next, active or retired, in order of their IDs. It makes
// SigningKeys a [KeySource]; missing is not looked at.
func (k *SigningKeys) JWKS(context.Context, string) ([]byte, error) {
	var list []string
	k.each(k.s.now(), func(x *ringKey, state string, _ int64) {
		if state != "compromised" && x.rec.JWK != "" {
			list = append(list, x.kid+"\x00"+x.rec.JWK)
		}
	})
	slices.Sort(list)
	doc := []byte(`{"keys":[`)
	for i, x := range list {
		if i > 0 {
			doc = append(doc, ',')
		}
		_, jwk, _ := strings.Cut(x, "\x00")
		doc = append(doc, jwk...)
	}
	return append(doc, `]}`...), nil
}

// digest changes with the published set.
func (k *SigningKeys) digest() string {
	var kids []string
	k.each(k.s.now(), func(x *ringKey, state string, _ int64) {
		if state != "compromised" && x.rec.JWK != "" {
			kids = append(kids, x.kid)
		}
	})
	return keySetDigest(kids)
}

// keySetDigest is of the kids, and not of a document: what lies between may set it anew.
func keySetDigest(kids []string) string {
	slices.Sort(kids)
	sum := sha256.Sum256([]byte(strings.Join(kids, "\x00")))
	return hex.EncodeToString(sum[:8])
}

// make creates a key of a lane that signs from activates on.
func (k *SigningKeys) make(root *rootSecret, l *lane, activates int64) (string, *keyRecord, error) {
	private, err := newPrivateKey(l.alg)
	if err != nil {
		return "", nil, err
	}
	rec := &keyRecord{V: 1, Alg: l.alg, Created: k.s.now().UnixMilli(), Activates: activates}
	var kid string
	var plain []byte
	if secret, ok := private.([]byte); ok {
		kid, plain = newID(k.s.now()), secret
	} else {
		signer, err := jws.NewSigner("", rec.Alg, private, false)
		if err != nil {
			return "", nil, err
		}
		signer.Public.Audience = l.audience
		if kid, err = rec.describe(signer.Public); err != nil {
			return "", nil, err
		}
		if plain, err = x509.MarshalPKCS8PrivateKey(private); err != nil {
			return "", nil, err
		}
	}
	rec.Sealed = root.seal(plain, rec.aad(k.s.ns, kid))
	k.prove(root, kid, rec)
	return kid, rec, nil
}

// describe notes the public half.
func (rec *keyRecord) describe(pub *jws.PublicKey) (kid string, err error) {
	if kid, err = jws.Thumbprint(pub.Key); err != nil {
		return "", err
	}
	named, err := jws.NewPublicKey(kid, rec.Alg, pub.Key)
	if err != nil {
		return "", err
	}
	named.Audience = pub.Audience
	doc, err := jws.MarshalJWK(named)
	rec.JWK = string(doc)
	return kid, err
}

func (k *SigningKeys) prove(root *rootSecret, kid string, rec *keyRecord) {
	rec.Root = root.kid
	rec.MAC = root.mac(rec.bytes(k.s.ns, kid))
}

func newPrivateKey(alg string) (any, error) {
	switch alg {
	case "ES256":
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "EdDSA":
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	case "RS256", "PS256":
		return rsa.GenerateKey(rand.Reader, 2048)
	case "HS256":
		key := make([]byte, 32)
		rand.Read(key)
		return key, nil
	}
	return nil, fail(ErrInvalidRequest, "algorithm %q", alg)
}

// goneAfter is a purge time behind the death of the last token of a key whose successor begins at activates: longer than
// any MaxAccess that a configuration may hold.
func goneAfter(activates int64) int64 { return activates + (48 * time.Hour).Milliseconds() }

func (k *SigningKeys) put(c *change, kid string, rec *keyRecord, expires int64, expect store.Version) error {
	data, err := json.Marshal(rec)
	if err != nil {
		return &Error{Code: ErrInvalidRequest, Detail: "signing key", Cause: err}
	}
	c.put(store.Record{Kind: store.KindKey, ID: keyPrefix + kid, Data: data, Expires: expires}, expect)
	return nil
}

// locked is the version of the ring's lock: it is read before the ring that a change is made from.
func (k *SigningKeys) locked() store.Version {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.lock
}

// putLock takes the ring for this change alone.
func (k *SigningKeys) putLock(c *change, lock store.Version) error {
	now := k.s.now().UnixMilli()
	rec := lockRecord{V: 1, N: now, Sealed: k.sealedSince()}
	if rec.Sealed == 0 && k.s.cfg.Seal != nil && k.sealsAll(c) {
		rec.Sealed = now
	}
	data, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	c.put(store.Record{Kind: store.KindKey, ID: keyLock, Data: data}, lock)
	return nil
}

// change alters the ring: f fills the change from the ring as it stands, and is asked again after another process was
// first. A change that stays empty is not written.
func (k *SigningKeys) change(ctx context.Context, f func(c *change, r *ring) error) error {
	for try := 0; try < keyTries; try++ {
		if err := k.s.state.refresh(ctx); err != nil {
			return unavailable(err, "follow the store")
		}
		lock := k.locked()
		// What another process made meanwhile lies under roots of its own: a ring without them looks emptier than it is. What comes
		// in from here on has another lock.
		if err := k.openRoots(ctx); err != nil {
			return err
		}
		c := k.s.newChange()
		if err := f(c, k.ring.Load()); err != nil {
			return err
		}
		if len(c.Puts) == 0 {
			return nil
		}
		if err := k.putLock(c, lock); err != nil {
			return err
		}
		_, err := k.s.commit(ctx, c)
		if !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
	return &Error{Code: ErrUnavailable, RetryAfter: retryHint, Detail: "other processes keep changing the signing keys"}
}

// add puts a new key of a lane into c, and gives the one before it a purge time.
func (k *SigningKeys) add(ctx context.Context, c *change, l *lane, kid string, rec *keyRecord, how string) error {
	if n := len(l.keys); n > 0 && l.keys[n-1].rec.Compromised == 0 { // else it stays for ever; those before have one already
		old := &l.keys[n-1]
		if err := k.put(c, old.kid, &old.rec, goneAfter(rec.Activates), old.version); err != nil {
			return err
		}
	}
	if err := k.put(c, kid, rec, 0, store.Version{}); err != nil {
		return err
	}
	c.event(ctx, keyEvent(kid, rec.Alg, how))
	return nil
}

func keyEvent(kid, alg, how string) Event {
	return Event{Type: EventKeyChanged, OK: true, Reason: how, Extra: map[string]string{"kid": kid, "alg": alg}}
}

// ensure opens the roots and makes the ring usable: called by New, before anything is signed.
func (k *SigningKeys) ensure(ctx context.Context) error {
	if err := k.openRoots(ctx); err != nil {
		return wrong("Seal", "%s", detailOf(err)) // said apart: change calls it whatever fails
	}
	if err := k.sealClear(ctx); err != nil {
		return err
	}
	err := k.change(ctx, func(c *change, r *ring) error {
		if len(r.roots) == 0 {
			root, rec, err := k.newRoot(ctx, r)
			if err != nil {
				return wrong("Seal", "%s", detailOf(err))
			}
			c.put(rec, store.Version{})
			r = &ring{roots: []*rootSecret{root}, lanes: r.lanes}
		}
		return k.begin(ctx, c, r, &r.lanes[0])
	})
	for _, l := range k.ring.Load().lanes[1:] {
		if err == nil && l.alg != "" {
			err = k.change(ctx, func(c *change, r *ring) error { return k.begin(ctx, c, r, r.lane(l.audience)) })
		}
	}
	if err != nil {
		return err
	}
	// Another process may have made the root.
	if err := k.openRoots(ctx); err != nil {
		return wrong("Seal", "%s", detailOf(err))
	}
	r := k.ring.Load()
	if len(r.roots) == 0 || r.lanes[0].newest() == nil {
		return fail(ErrUnavailable, "the ring has no usable key: its records were altered")
	}
	return k.atRest(r)
}

// begin makes the first key of a lane, and another when the configured algorithm is another.
func (k *SigningKeys) begin(ctx context.Context, c *change, r *ring, l *lane) error {
	newest := l.live()
	if newest != nil && (newest.rec.Outside || newest.rec.Alg == l.alg) {
		return nil
	}
	activates := k.s.now().UnixMilli()
	if newest != nil || l.audience != "" && !k.young(r) { // validators must know the key first
		activates += k.lead().Milliseconds()
	}
	kid, rec, err := k.make(k.current(r), l, activates)
	if err != nil {
		return err
	}
	return k.add(ctx, c, l, kid, rec, "created")
}

// young reports whether no validator can have read an older set of keys than this.
func (k *SigningKeys) young(r *ring) bool {
	return len(r.keys) == 0 || k.s.now().UnixMilli()-r.keys[0].rec.Created < k.lead().Milliseconds()
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

// run rotates by schedule, opens roots that other processes made, and withdraws keys whose time is over.
func (k *SigningKeys) run(ctx context.Context) {
	tick := min(max(k.lead()/8, 10*time.Millisecond), keyTick)
	for {
		t := time.NewTimer(jitter(tick))
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-k.kick:
		case <-t.C:
		}
		t.Stop()
		k.tend(ctx)
	}
}

// tend is one look at the ring.
func (k *SigningKeys) tend(ctx context.Context) {
	if err := k.openRoots(ctx); err != nil {
		k.s.log.Error("apitoken: a root secret can not be opened", "error", err)
	}
	k.publish()
	k.heal(ctx)
	if err := k.rotateIfDue(ctx); err != nil && ctx.Err() == nil {
		k.s.log.Warn("apitoken: rotation of the signing key failed and will be tried again", "error", err)
	}
	if err := k.spend(ctx); err != nil && ctx.Err() == nil {
		k.s.log.Warn("apitoken: signing keys could not be sealed under the newest root secret yet", "error", err)
	}
}

// due reports whether a next key should be made in a lane, and from when it signs.
func (k *SigningKeys) due(r *ring, l *lane) (bool, int64) {
	if l.alg == "" {
		return false, 0
	}
	newest := l.live()
	now, lead := k.s.now().UnixMilli(), k.lead().Milliseconds()
	switch {
	case newest == nil && (l.audience == "" || k.young(r)):
		return true, now // all were compromised
	case newest == nil:
		return true, now + lead // until then the common key signs
	case newest.rec.Outside:
		return false, 0
	case k.outdated(r, newest):
		return true, max(now+lead, newest.rec.Activates+1)
	case k.s.cfg.KeyRotation < 0:
		return false, 0
	}
	at := newest.rec.signs() + k.s.cfg.KeyRotation.Milliseconds()
	return now >= at-lead, max(at, now+lead)
}

// outdated reports whether a key was made before the current root was known to every process, and so under an older one: after
// RotateSecrets, whoever has that may have the key.
func (k *SigningKeys) outdated(r *ring, x *ringKey) bool {
	root := k.current(r)
	known := root.created + k.lead().Milliseconds()
	return k.s.cfg.Seal != nil && !x.rec.Outside && root != r.roots[0] && x.rec.Created < known && known <= k.s.now().UnixMilli()
}

// abandoned reports whether the newest key of a lane has passed its time, or an older root secret has, and no process has made
// another: none has the lane in its configuration any more.
func (k *SigningKeys) abandoned(r *ring, l *lane) bool {
	newest := l.live()
	if l.alg != "" || newest == nil || newest.rec.Outside {
		return false
	}
	now, lead := k.s.now().UnixMilli(), k.lead().Milliseconds()
	if k.outdated(r, newest) {
		return now >= k.current(r).created+2*lead // a process that has the lane makes another after one
	}
	return k.s.cfg.KeyRotation >= 0 && now >= newest.rec.signs()+k.s.cfg.KeyRotation.Milliseconds()+lead
}

func (k *SigningKeys) rotateIfDue(ctx context.Context) error {
	r := k.ring.Load()
	if len(r.roots) == 0 {
		return nil
	}
	var failed error
	for i := range r.lanes {
		if ok, _ := k.due(r, &r.lanes[i]); !ok && !k.abandoned(r, &r.lanes[i]) {
			continue
		}
		began := time.Now()
		audience := r.lanes[i].audience
		err := k.change(ctx, func(c *change, r *ring) error { return k.turnLane(ctx, c, r, r.lane(audience)) })
		k.s.observe(ctx, Observation{Op: "keys", Err: err, Took: time.Since(began)})
		failed = errors.Join(failed, err)
	}
	return failed
}

// turnLane does what the clock asks for in a lane.
func (k *SigningKeys) turnLane(ctx context.Context, c *change, r *ring, l *lane) error {
	if k.abandoned(r, l) {
		x := l.live()
		rec := x.rec
		rec.Ends = k.s.now().UnixMilli()
		k.prove(r.by[rec.Root], x.kid, &rec)
		c.event(ctx, keyEvent(x.kid, rec.Alg, "retired: no process makes keys for its audience"))
		return k.put(c, x.kid, &rec, goneAfter(rec.Ends), x.version)
	}
	ok, at := k.due(r, l)
	if !ok {
		return nil
	}
	kid, rec, err := k.make(k.current(r), l, at)
	if err != nil {
		return err
	}
	return k.add(ctx, c, l, kid, rec, "created")
}

// Rotate brings a new key forward as soon as every validator can know it: after half of Config.KeyRotation, 15 minutes at
// most. Tokens of the old one stay good until they expire. Audiences with keys of their own get new ones too.
func (k *SigningKeys) Rotate(ctx context.Context) error {
	if err := k.s.audit.ready(); err != nil {
		return err
	}
	for _, l := range k.ring.Load().lanes {
		if l.alg == "" {
			continue
		}
		err := k.change(ctx, func(c *change, r *ring) error { return k.forward(ctx, c, r, r.lane(l.audience)) })
		if err != nil {
			return err
		}
	}
	return nil
}

// forward brings a new key of a lane on its way.
func (k *SigningKeys) forward(ctx context.Context, c *change, r *ring, l *lane) error {
	now := k.s.now().UnixMilli()
	if x := l.live(); x != nil && x.rec.Activates > now {
		soon := max(x.rec.Created+k.lead().Milliseconds(), now)
		if soon >= x.rec.Activates {
			return nil
		}
		rec := x.rec
		rec.Activates = soon
		return k.rewrite(ctx, c, r, x, rec, "brought forward")
	}
	kid, rec, err := k.make(k.current(r), l, now+k.lead().Milliseconds())
	if err != nil {
		return err
	}
	return k.add(ctx, c, l, kid, rec, "created")
}

// rewrite puts a key's record anew, under the root that sealed it.
func (k *SigningKeys) rewrite(ctx context.Context, c *change, r *ring, x *ringKey, rec keyRecord, how string) error {
	k.prove(r.by[rec.Root], x.kid, &rec)
	if err := k.put(c, x.kid, &rec, 0, x.version); err != nil {
		return err
	}
	c.event(ctx, keyEvent(x.kid, rec.Alg, how))
	return nil
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
func (k *SigningKeys) ImportFor(ctx context.Context, audience string, s crypto.Signer, algorithm string) (SigningKey, error) {
	if k.ring.Load().lane(audience).alg == "" {
		return SigningKey{}, fail(ErrInvalidRequest, "audience %q is not in Config.AudienceAlgorithms", audience)
	}
	if s == nil {
		return SigningKey{}, fail(ErrInvalidRequest, "no signer")
	}
	signer, err := jws.NewSigner("", algorithm, s, true)
	if err != nil {
		return SigningKey{}, &Error{Code: ErrInvalidRequest, Detail: "signer", Cause: err}
	}
	tctx, cancel := context.WithTimeout(ctx, signTimeout)
	_, err = signer.Sign(tctx, "at+jwt", []byte(`{}`)) // verified: it does sign, with this key
	cancel()
	if err != nil {
		return SigningKey{}, unavailable(err, "the signer does not sign")
	}
	kid := signer.Public.KID
	signer.Public.Audience = audience
	err = k.change(ctx, func(c *change, r *ring) error {
		now, lead := k.s.now().UnixMilli(), k.lead().Milliseconds()
		l := r.lane(audience)
		newest := l.newest()
		for i := range r.keys {
			x := &r.keys[i]
			if x.kid != kid {
				continue
			}
			switch {
			case x.rec.Compromised != 0:
				return fail(ErrInvalidRequest, "key %s was declared compromised", kid)
			case x.rec.Alg != signer.Public.Alg:
				return fail(ErrInvalidRequest, "key %s is registered for %s", kid, x.rec.Alg)
			case !x.rec.Outside:
				return fail(ErrInvalidRequest, "key %s is the ring's own", kid)
			case x.audience() != audience:
				return fail(ErrInvalidRequest, "key %s signs for another audience", kid)
			case x.kid != newest.kid && x.rec.Activates <= now && newest.rec.Activates <= now:
				return fail(ErrInvalidRequest, "key %s was replaced", kid)
			}
			return nil
		}
		if err := k.s.audit.ready(); err != nil {
			return err
		}
		rec := &keyRecord{V: 1, Alg: signer.Public.Alg, Outside: true, Created: now, Activates: now + lead}
		if newest != nil && k.young(r) {
			rec.Activates = max(now, newest.rec.Activates+1)
		}
		if newest != nil && newest.rec.Activates >= rec.Activates {
			rec.Activates = newest.rec.Activates + 1
		}
		if _, err := rec.describe(signer.Public); err != nil {
			return &Error{Code: ErrInvalidRequest, Detail: "signer", Cause: err}
		}
		k.prove(k.current(r), kid, rec)
		return k.add(ctx, c, l, kid, rec, "imported")
	})
	if err != nil {
		return SigningKey{}, err
	}
	k.mu.Lock()
	k.outside[kid] = signer
	if x, ok := k.records[kid]; ok {
		x.signer = signer
		k.records[kid] = x
	}
	k.turn()
	k.mu.Unlock()
	var out SigningKey
	k.each(k.s.now(), func(x *ringKey, state string, since int64) {
		if x.kid == kid {
			out = x.shown(state, since)
		}
	})
	return out, nil
}
