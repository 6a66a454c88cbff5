package apitoken

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apitoken-go/apitoken/internal/jws"
	"github.com/apitoken-go/apitoken/store"
)

// Trusted is an issuer whose access tokens are taken. Its keys verify its own tokens alone.
type Trusted struct {
	Issuer      string // compared byte for byte with iss
	Keys        KeySource
	Revocations RevocationSource // required, unless the next field says so
	// InsecureNoRevocations takes this issuer's tokens until they expire: it has no feed to follow.
	InsecureNoRevocations bool
	Audiences             []string // accepted in aud for this issuer; empty: the validator's
	// Scopes is the most that this issuer's tokens bring; empty: none. Its roles and client names are
	// never ours.
	Scopes Scopes
	// Own says that the issuer is a service of this module whose scopes, roles and clients are
	// this validator's too: it takes them as they are, and orders rules by position.
	Own bool
	// MaxLifetime refuses tokens that live longer. Zero: 24 h; an Own issuer's feed lowers it.
	MaxLifetime time.Duration
	// KeysFor is how long the last good keys serve while Keys fails. Zero: 24 h.
	KeysFor time.Duration
}

// KeySource gets an issuer's public keys.
type KeySource interface {
	// JWKS returns the current set (RFC 7517). missing is the kid that was not in the last answer,
	// or "": a source may use it to limit how often it asks.
	JWKS(ctx context.Context, missing string) ([]byte, error)
}

// RevocationSource gets rules, with the promises of [store.Store]'s Follow: complete, in order, newest form only;
// store.ErrDiverged when after is not in the source's history.
//
// A source that waits for news before it answers has a method Waits() bool and returns true: it is asked again at once.
type RevocationSource interface {
	Revocations(ctx context.Context, after store.Position, max int) (RevocationView, error)
}

// RevocationView is one answer of a RevocationSource.
type RevocationView struct {
	Rules []RevocationEntry
	// Key and Namespace make the entries' hashes: whoever knows a name can look for it, nobody can list names.
	Key       []byte
	Namespace string
	// Compromised keys, by kid: they win over any JWKS, for ever.
	Compromised []string
	// Changed are the hashes of API keys whose records changed: answers about them that are kept are void. DropOpaque
	// says so of all of them.
	Changed    [][16]byte
	DropOpaque bool
	// KeySet changes with the published keys: a follower that sees another one reads them at once.
	KeySet      string
	Next        store.Position
	More        bool
	Age         time.Duration // how old the answer was at its source when it was sent
	MaxLifetime time.Duration // the longest an access token of the source may live
}

// RevocationEntry is one rule as it travels: without reason and actor, its target hashed.
type RevocationEntry struct {
	// Class says what Value is compared with: 0 nothing, the thing itself is refused; 1 the position of a token's birth;
	// 2 the position of its issuer's view when it was minted; 3 its iat.
	Class   uint8
	Kind    string   // "grant", "subject", …
	Hash    [16]byte // of the target; zero for "everything"
	Value   int64    // a position, or Unix seconds
	At      int64    // Unix seconds of the revocation, for tokens without positions
	Expires int64    // Unix ms when it may be forgotten; 0: never
}

// feedKeyer makes index keys out of the hashes of a feed: HMAC(key, namespace, kind, issuer, id, holder), the class
// mixed into the first byte.
func feedKeyer(key []byte, namespace string) ruleKeyer {
	return func(c ruleClass, k targetKind, issuer, id, holder string) [16]byte {
		h := hashTarget(key, namespace, k, issuer, id, holder)
		h[0] ^= byte(c)
		return h
	}
}

func hashTarget(key []byte, namespace string, k targetKind, issuer, id, holder string) [16]byte {
	m := hmac.New(sha256.New, key)
	var n [4]byte
	for _, field := range [...]string{"feed1", namespace, k.String(), issuer, id, holder} {
		binary.BigEndian.PutUint32(n[:], uint32(len(field)))
		m.Write(n[:])
		m.Write([]byte(field))
	}
	return [16]byte(m.Sum(nil)[:16])
}

// trust is an issuer as a validator knows it.
type trust struct {
	Trusted
	issuer string
	own    bool // positions, roles, scopes and clients are taken
	scopes Scopes
	v      *JWTValidator
	svc    *Service // set for the service's own issuer: state and ring feed it
	keys   atomic.Pointer[map[string]*jws.PublicKey]
	rules  atomic.Pointer[ruleBook] // nil: InsecureNoRevocations
	host   *ruleBook                // the service's own rules, which may name foreign principals
	view   atomic.Pointer[view]
	life   atomic.Int64 // longest lifetime of an access token, ns
	asked  chan string  // kids that are missing
	kick   chan struct{}
	ready  chan struct{} // closed when keys and rules were loaded once
	once   sync.Once

	fetched time.Time // when keys were last good; the follower's own
	renew   chan struct{}
	toldAt  atomic.Int64 // Unix ns: when the feed told of a key set that was not read yet; 0: there is none

	mu          sync.Mutex // guards what follows, which only the followers write
	keySet      string     // the feed's
	compromised map[string]bool
	feedKey     []byte
	feedNS      string
}

func checkTrust(list []Trusted, own string) error {
	seen := map[string]bool{own: true}
	for _, t := range list {
		switch {
		case t.Issuer == "":
			return wrong("Trust", "an issuer without a name")
		case seen[t.Issuer]:
			return wrong("Trust", "issuer %q twice: a key must belong to one issuer", t.Issuer)
		case t.Keys == nil:
			return wrong("Trust", "issuer %q has no Keys", t.Issuer)
		case t.Revocations == nil && !t.InsecureNoRevocations:
			return wrong("Trust", "issuer %q has no Revocations; InsecureNoRevocations takes its tokens until they expire", t.Issuer)
		case t.Revocations != nil && t.InsecureNoRevocations:
			return wrong("Trust", "issuer %q: InsecureNoRevocations contradicts Revocations", t.Issuer)
		case t.Own && t.Scopes != nil:
			return wrong("Trust", "issuer %q: Scopes contradicts Own, which takes them as they are", t.Issuer)
		case t.MaxLifetime < 0 || t.KeysFor < 0:
			return wrong("Trust", "issuer %q: negative time", t.Issuer)
		}
		seen[t.Issuer] = true
	}
	return nil
}

// takes reports whether a token for aud may be used here.
func (t *trust) takes(own, aud []string) bool {
	if len(t.Audiences) > 0 {
		return overlaps(t.Audiences, aud)
	}
	return overlaps(own, aud)
}

func (t *trust) longest() time.Duration { return time.Duration(t.life.Load()) }

// version is of all rules that may hit this issuer's tokens.
func (t *trust) version() uint64 {
	var n uint64
	if b := t.rules.Load(); b != nil {
		n = b.version.Load()
	}
	if t.host != nil {
		n += t.host.version.Load()
	}
	return n
}

func (t *trust) hit(x *ruleSubject) string {
	if b := t.rules.Load(); b != nil {
		if t.own && t.svc == nil || !t.own {
			y := *x
			y.issuer = "" // in its own book its own principals have no issuer
			if rule := b.hit(&y); rule != "" {
				return rule
			}
		} else if rule := b.hit(x); rule != "" {
			return rule
		}
	}
	if t.host != nil {
		y := *x
		y.wall, y.issuer = true, t.issuer // positions of another order say nothing here
		return t.host.hit(&y)
	}
	return ""
}

// freshness is the age of the view at now, by whichever clock shows more.
func (t *trust) freshness(now time.Time) Freshness {
	if t.InsecureNoRevocations {
		return Freshness{}
	}
	var w *view
	if t.svc != nil {
		w = t.svc.state.view.Load()
	} else {
		w = t.view.Load()
	}
	if w == nil || w.wall == 0 {
		return Freshness{Age: 1<<63 - 1, Stale: true}
	}
	age := now.Sub(w.sent)
	if wall := time.Duration(now.UnixNano() - w.wall); wall > age {
		age = wall
	}
	return Freshness{Position: w.pos, Age: max(age, 0), Stale: age > t.v.cfg.MaxStaleness}
}

// wake asks whoever feeds this issuer's rules to look now.
func (t *trust) wake() {
	if t.svc != nil {
		t.svc.state.wake()
		return
	}
	select {
	case t.kick <- struct{}{}:
	default:
	}
}

// key finds the key that a header names. position is the token's pos claim, which nobody vouches for yet. A missing key may be
// new: whoever can tell is asked. It does not wait for the network, but for the service's own store.
func (t *trust) key(ctx context.Context, kid, position string) (*jws.PublicKey, *Error) {
	set := t.keys.Load()
	if set == nil {
		return nil, &Error{Code: ErrUnavailable, RetryAfter: retryHint, Detail: "the issuer's keys were never read or are too old"}
	}
	if k := (*set)[kid]; k != nil {
		return k, nil
	}
	if kid == "" && len(*set) == 1 && !t.own {
		for _, k := range *set {
			return k, nil // a foreign set of one key may do without kid (RFC 7515 §4.1.4)
		}
	}
	unknown := fail(ErrInvalidToken, "no key of this issuer has the token's kid")
	if kid == "" {
		return nil, unknown
	}
	if t.svc == nil {
		t.mu.Lock()
		bad := t.compromised[kid]
		t.mu.Unlock()
		if bad {
			return nil, fail(ErrInvalidToken, "its signing key was declared compromised")
		}
		select {
		case t.asked <- kid:
		default:
		}
		if t.outdated() {
			return nil, &Error{Code: ErrUnavailable, RetryAfter: retryHint, Detail: "the issuer has another key set, which is being read"}
		}
		return nil, unknown
	}
	if t.svc.SigningKeys.revoked(kid) {
		return nil, fail(ErrInvalidToken, "its signing key was declared compromised")
	}
	// A token says how much its issuer had seen when it signed, the ring included (see ring.before). An issuer that had seen
	// no more than we have knows no key that we do not.
	if p, ok := parsePositions(position); !ok || p.view.N <= t.svc.state.position().N {
		return nil, unknown
	}
	if err := t.svc.state.look(ctx); err != nil {
		return nil, unavailable(err, "look for the token's signing key")
	}
	if k := (*t.keys.Load())[kid]; k != nil {
		return k, nil
	}
	return nil, unknown
}

// setKeys replaces the keys. Whatever was verified with a key that is gone, or that changed, is void.
func (t *trust) setKeys(list []*jws.PublicKey) {
	set := make(map[string]*jws.PublicKey, len(list))
	t.mu.Lock()
	for _, k := range list {
		if !t.compromised[k.KID] {
			set[k.KID] = k
		}
	}
	t.mu.Unlock()
	old := t.keys.Load()
	t.keys.Store(&set)
	if old == nil {
		return
	}
	for kid, k := range *old {
		if set[kid] == nil || !set[kid].Equal(k) {
			t.v.gen.Add(1)
			return
		}
	}
}

// ValidatorConfig configures NewValidator.
type ValidatorConfig struct {
	Audience string    // required: what this process is called in aud
	Trust    []Trusted // required: whose tokens
	Opaque   Validator // validates tokens that are not JWTs; nil: they are refused
	// Introspect asks the one trusted Own issuer about opaque tokens. Its answers are kept for OpaqueFor (zero: 30 s), and
	// dropped at once by a rule or a change of the key. It excludes Opaque.
	Introspect func(ctx context.Context, token string) (Introspection, error)
	OpaqueFor  time.Duration
	Validation Validation
	Now        func() time.Time // nil: time.Now
}

// NewValidator returns a validator that follows c's sources until Close. It needs no store. It returns at once: until
// keys and rules were read, Validate answers ErrUnavailable; Ready waits for them.
func NewValidator(c ValidatorConfig) (*JWTValidator, error) {
	if c.Audience == "" {
		return nil, wrong("Audience", "is required: tokens without an audience are good everywhere")
	}
	if len(c.Trust) == 0 {
		return nil, wrong("Trust", "is required: whose tokens")
	}
	if err := checkTrust(c.Trust, ""); err != nil {
		return nil, err
	}
	if err := c.Validation.check("Validation"); err != nil {
		return nil, err
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	v := newValidator(c.Validation, c.Audience, c.Now)
	if c.Opaque != nil {
		v.opaque = func(ctx context.Context, cr Credential, tr *trace) (Token, error) {
			t, err := c.Opaque.Validate(ctx, cr)
			if err != nil {
				var e *Error
				if !errors.As(err, &e) {
					e = &Error{Code: ErrUnavailable, Detail: "opaque validator", Cause: err, RetryAfter: retryHint}
				}
				return Token{}, tr.no("opaque", e)
			}
			tr.ok("opaque", "the opaque validator took it")
			return t, nil
		}
	}
	if c.Introspect != nil {
		if err := v.introspects(&c); err != nil {
			v.stop()
			return nil, err
		}
	}
	v.follow(c.Trust, nil)
	return v, nil
}

func newValidator(c Validation, audience string, now func() time.Time) *JWTValidator {
	v := &JWTValidator{cfg: c, audiences: append([]string{audience}, c.Audiences...), trusts: map[string]*trust{}, now: now}
	v.ctx, v.stop = context.WithCancel(context.Background())
	v.proofs = newProofBook(c.RequireProofNonce)
	switch {
	case c.Cache != nil:
		v.cache = c.Cache
	case c.CacheBytes == 0:
		v.cache = NewCache(defaultCacheBytes)
	default:
		v.cache = NewCache(c.CacheBytes)
	}
	return v
}

// newServiceValidator is the validator of a service: its own issuer is fed by its state and its ring.
func newServiceValidator(s *Service) (*JWTValidator, error) {
	v := newValidator(s.cfg.Validation, s.cfg.Audience, s.now)
	v.audit = s.audit
	v.opaque = s.APIKeys.validate
	v.consume = s.Consume
	t := &trust{issuer: s.cfg.Issuer, own: true, v: v, svc: s}
	t.rules.Store(s.rules)
	t.life.Store(int64(s.longest.Load().access))
	t.setKeys(s.SigningKeys.publicKeys())
	v.trusts[t.issuer] = t
	s.trust = t
	v.follow(s.cfg.Trust, s.rules)
	return v, nil
}

// follow starts a follower for each issuer.
func (v *JWTValidator) follow(list []Trusted, host *ruleBook) {
	ctx := v.ctx
	for _, x := range list {
		t := &trust{
			Trusted: x, issuer: x.Issuer, own: x.Own, scopes: x.Scopes, v: v, host: host,
			asked: make(chan string, 1), kick: make(chan struct{}, 1), renew: make(chan struct{}, 1), ready: make(chan struct{}), compromised: map[string]bool{},
		}
		if t.KeysFor == 0 {
			t.KeysFor = 24 * time.Hour
		}
		if t.MaxLifetime == 0 {
			t.MaxLifetime = 24 * time.Hour
		}
		t.life.Store(int64(t.MaxLifetime))
		v.trusts[x.Issuer] = t
		if v.shelf != nil {
			v.shelf.iss = t
		}
		v.wg.Add(1)
		go func() {
			defer v.wg.Done()
			t.followKeys(ctx)
		}()
		if x.Revocations != nil {
			v.wg.Add(1)
			go func() {
				defer v.wg.Done()
				t.followRules(ctx)
			}()
		}
	}
}

// Ready blocks until the keys and rules of every trusted issuer are loaded once, or ctx ends.
func (v *JWTValidator) Ready(ctx context.Context) error {
	for _, t := range v.trusts {
		if t.svc != nil {
			continue
		}
		select {
		case <-t.ready:
		case <-ctx.Done():
			return unavailable(ctx.Err(), "issuer "+t.issuer+" was not reached")
		}
	}
	return nil
}

func (t *trust) loaded() {
	if t.keys.Load() != nil && (t.InsecureNoRevocations || t.view.Load() != nil) {
		t.once.Do(func() { close(t.ready) })
	}
}

const (
	keysEvery    = 5 * time.Minute        // how often a key set is read again, at most; a next key is published for longer
	keysCooldown = 10 * time.Second       // between two reads that missing keys asked for
	keysApart    = 100 * time.Millisecond // between two reads that the feed asked for
	keysTimeout  = 10 * time.Second
	keysLate     = 30 * time.Second // how long a set that the feed told of and that does not come excuses us
)

// outdated reports whether the issuer has another key set than the one that is known here, and said so just now.
func (t *trust) outdated() bool {
	at := t.toldAt.Load()
	d := t.v.now().UnixNano() - at
	return at != 0 && d < int64(keysLate) && d > -int64(keysLate)
}

// followKeys reads the issuer's keys in the background: one request at a time however many callers, at most one a
// cool-down for kids that are missing. The last good set serves through an outage of KeysFor.
func (t *trust) followKeys(ctx context.Context) {
	missing, wait := "", time.Second
	for {
		began := time.Now()
		tctx, cancel := context.WithTimeout(ctx, keysTimeout)
		doc, err := t.Keys.JWKS(tctx, missing)
		cancel()
		var keys []*jws.PublicKey
		if err == nil {
			keys, _, err = jws.ParseJWKS(doc, t.keys.Load())
			if err == nil && len(keys) == 0 {
				err = errors.New("no usable key in the set")
			}
		}
		t.v.observers.observe(ctx, Observation{Op: "keys", Err: err, Took: time.Since(began)})
		if ctx.Err() != nil {
			return
		}
		last := time.Now()
		next := jitter(wait)
		if err == nil {
			t.fetched = t.v.now()
			t.setKeys(keys)
			t.loaded()
			if t.complete() {
				wait, next = time.Second, jitter(min(keysEvery, t.KeysFor/4))
			}
		} else if !t.fetched.IsZero() {
			left := t.KeysFor - t.v.now().Sub(t.fetched)
			if left <= 0 {
				t.keys.Store(nil)
				t.v.gen.Add(1)
			} else {
				next = min(next, left)
			}
		}
		wait = min(2*wait, time.Minute)
		missing = t.awaitKeys(ctx, last, next)
		if ctx.Err() != nil {
			return
		}
	}
}

// complete reports whether the keys that are known are the set that the feed told of last: behind a balancer another issuer may
// have answered, which does not have it yet.
func (t *trust) complete() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.keySet != "" && !t.holds(t.keySet) {
		return false
	}
	t.toldAt.Store(0)
	return true
}

// holds reports whether set is the digest of the known keys.
func (t *trust) holds(set string) bool {
	keys := t.keys.Load()
	if keys == nil {
		return false
	}
	return keySetDigest(slices.Collect(maps.Keys(*keys))) == set
}

// awaitKeys waits for the next turn: for d, until the feed tells of another set, or for a missing kid and the end of its
// cool-down, which holds up neither of the others.
func (t *trust) awaitKeys(ctx context.Context, last time.Time, d time.Duration) (missing string) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	asked, renew := t.asked, t.renew
	var soon, cool <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return missing
		case <-timer.C:
			return missing
		case <-renew:
			if t.toldAt.Load() == 0 {
				continue // it came meanwhile
			}
			renew, soon = nil, time.After(keysApart-time.Since(last))
		case <-soon:
			return missing
		case missing = <-asked: // whoever asks from now on is served by the same answer
			asked, cool = nil, time.After(keysCooldown-time.Since(last))
		case <-cool:
			select {
			case <-t.asked:
			default:
			}
			return missing
		}
	}
}

// followRules follows the issuer's rules: from zero, then from its last position. Age counts from before each request
// was sent, plus the source's own age; an answer that goes back is not taken.
func (t *trust) followRules(ctx context.Context) {
	wait := 50 * time.Millisecond
	clock := newTrustedClock(t.v.now)
	swept := time.Now()
	for {
		began := time.Now()
		err := t.readRules(ctx)
		t.v.observers.observe(ctx, Observation{Op: "feed", Err: err, Took: time.Since(began)})
		pause := max(t.v.cfg.MaxStaleness/4, 10*time.Millisecond)
		if w, ok := t.Revocations.(interface{ Waits() bool }); ok && w.Waits() {
			pause = 2 * time.Millisecond
		}
		switch {
		case err == nil:
			wait = 50 * time.Millisecond
		case ctx.Err() != nil:
			return
		default:
			pause = jitter(wait)
			wait = min(2*wait, 5*time.Second)
		}
		if time.Since(swept) > sweepEvery {
			swept = time.Now()
			for b := t.rules.Load(); b != nil; b = b.older {
				b.sweep(clock.now().Add(-ruleSlack))
			}
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-t.kick:
		case <-timer.C:
		}
		timer.Stop()
	}
}

const (
	rulesTimeout = 40 * time.Second // over a long poll's own
	sweepEvery   = time.Hour
	maxRestarts  = 2 // of one reading of the rules
)

// readRules reads to the end. What is known is only ever added to.
func (t *trust) readRules(ctx context.Context) error {
	var from store.Position
	if w := t.view.Load(); w != nil {
		from = w.pos
	}
	for restarts := 0; ; {
		sent := t.v.now()
		tctx, cancel := context.WithTimeout(ctx, rulesTimeout)
		answer, err := t.Revocations.Revocations(tctx, from, followPage)
		cancel()
		restart := false
		switch {
		case errors.Is(err, store.ErrDiverged):
			restart = true // another history
		case err != nil:
			return err
		case from == (store.Position{}):
		case answer.Next.History != from.History:
			restart = true // the same, and the source does not say so
		case answer.Next.N < from.N:
			return errors.New("the answer goes back")
		case t.rules.Load() != nil && t.rules.Load().keyed != answer.keyed():
			restart = true // hashed otherwise from now on
		}
		if restart {
			// From zero, merging: the book keeps what it has. Sources that contradict each other get their pause.
			if restarts++; restarts > maxRestarts || from == (store.Position{}) {
				return errors.New("the source's answers are of several histories")
			}
			from = store.Position{}
			continue
		}
		t.enter(&answer)
		from = answer.Next
		if !answer.More {
			sent = sent.Add(-answer.Age)
			t.view.Store(&view{pos: from, sent: sent, wall: sent.UnixNano()})
			t.loaded()
			return nil
		}
	}
}

// keyed tells the hashes of one answer from those of another.
func (a *RevocationView) keyed() string { return string(a.Key) + a.Namespace }

// enter merges one answer into the book.
func (t *trust) enter(a *RevocationView) {
	top := t.rules.Load()
	b := top
	for b != nil && b.keyed != a.keyed() {
		b = b.older
	}
	if b == nil {
		// A new key: the source starts from zero, and what was known under the old one still counts.
		b = newRuleBook(feedKeyer(a.Key, a.Namespace))
		b.keyed, b.older = a.keyed(), top
		if top != nil {
			b.version.Store(top.version.Load() + 1) // verdicts of before must not pass for verdicts of now
		}
		t.rules.Store(b)
		top = b
	}
	for _, r := range a.Rules {
		b.enterHashed(r)
	}
	if len(a.Rules) > 0 {
		top.version.Add(1)
	}
	if a.MaxLifetime > 0 && a.MaxLifetime < t.MaxLifetime {
		t.life.Store(int64(a.MaxLifetime))
	}
	t.dropOpaque(a)
	t.mu.Lock()
	gone := false
	for _, kid := range a.Compromised {
		gone = gone || !t.compromised[kid]
		t.compromised[kid] = true
	}
	another := a.KeySet != t.keySet
	t.keySet = a.KeySet
	t.mu.Unlock()
	if set := t.keys.Load(); gone && set != nil {
		list := make([]*jws.PublicKey, 0, len(*set))
		for _, k := range *set {
			list = append(list, k)
		}
		t.setKeys(list)
	}
	if another && !t.complete() {
		t.toldAt.CompareAndSwap(0, t.v.now().UnixNano())
		select {
		case t.renew <- struct{}{}:
		default:
		}
	}
}

func (b *ruleBook) enterHashed(r RevocationEntry) {
	var k targetKind
	for i := targetToken; i < targetKinds; i++ {
		if targetNames[i] == r.Kind {
			k = i
		}
	}
	c := ruleClass(r.Class)
	if k == targetNone || c > classBefore {
		// A newer source says something that this program does not know: nothing may pass by it.
		b.raise(classAlways, Target{kind: targetAll}, 1, 0)
		return
	}
	b.raiseHashed(c, k, r.Hash, r.Value, r.Expires)
	if c == classBirth || c == classView {
		b.raiseHashed(classWall, k, r.Hash, r.At, r.Expires)
	}
}

func (b *ruleBook) raiseHashed(c ruleClass, k targetKind, key [16]byte, v, expires int64) {
	if k == targetAll {
		b.raise(c, Target{kind: targetAll}, v, 0)
		return
	}
	key[0] ^= byte(c)
	b.index.Raise(key, v, expires)
	b.used[c][k].Store(true)
}
