package apitoken

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apitoken-go/apitoken/internal/dpop"
	"github.com/apitoken-go/apitoken/internal/follow"
	"github.com/apitoken-go/apitoken/internal/jws"
	"github.com/apitoken-go/apitoken/internal/keyring"
	"github.com/apitoken-go/apitoken/internal/rules"
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

// longest is the longest lifetime of a token that is taken, as far as the configuration says.
func (t *Trusted) longest() time.Duration {
	if t.MaxLifetime == 0 {
		return defaultForeign
	}
	return t.MaxLifetime
}

const defaultForeign = 24 * time.Hour

// KeySource gets an issuer's public keys. Its errors show in logs, in Ready and in Explain: they must hold no credential.
//
// A source that knows what the issuer's clock shows has a method IssuerTime() (now time.Time, known bool). A validator whose own
// clock differs by more than Validation.Skew then says so in its log and in Explain.
type KeySource interface {
	// JWKS returns the current set (RFC 7517). missing is the kid that was not in the last answer,
	// or "": a source may use it to limit how often it asks.
	JWKS(ctx context.Context, missing string) ([]byte, error)
}

// RevocationSource gets rules, with the promises of [store.Store]'s Follow: complete, in order, newest form only;
// store.ErrDiverged when after is not in the source's history. Its errors are shown as a [KeySource]'s are.
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
	// Prefix and APIKeyTags are how API keys begin, and what their tags are made with: a follower tells junk from a key
	// without a question. They make and open nothing: an API key is good by a secret that the store has a hash of.
	// Empty: from a source that does not say.
	Prefix     string
	APIKeyTags []APIKeyTag
	// KeySet changes with the published keys: a follower that sees another one reads them at once.
	KeySet      string
	Next        store.Position
	More        bool
	Age         time.Duration // how old the answer was at its source when it was sent
	MaxLifetime time.Duration // the longest an access token of the source may live
}

// APIKeyTag is the key of the tags of API keys that name KID; nil where the source can't open it now.
type APIKeyTag struct {
	KID [4]byte
	Key []byte
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

// trust is an issuer as a validator knows it.
type trust struct {
	Trusted
	issuer string
	own    bool // positions, roles, scopes and clients are taken
	scopes Scopes
	v      *JWTValidator
	state  *follow.Follower // set for the service's own issuer: it feeds it
	keys   atomic.Pointer[map[string]*jws.PublicKey]
	rules  atomic.Pointer[rules.Book] // nil: InsecureNoRevocations
	host   *rules.Book                // the service's own rules, which may name foreign principals
	home   string                     // the service's own issuer
	view   atomic.Pointer[follow.View]
	life   atomic.Int64 // longest lifetime of an access token, ns
	asked  chan string  // kids that are missing
	kick   chan struct{}
	ready  chan struct{} // closed when keys and rules were loaded once
	once   sync.Once

	keysOut  *outage // why the keys can't be read now; nil for the service's own issuer
	feedOut  *outage // the same of the rules
	clockFar atomic.Bool

	fetched time.Time // when keys were last good; the follower's own
	renew   chan struct{}
	toldAt  atomic.Int64  // Unix ns: when the feed told of a key set that was not read yet; 0: there is none
	book    *rules.Book   // of the feed's key now; the follower's own
	clock   *follow.Clock // by which rules are forgotten; the follower's own
	swept   time.Time     // when they were last; the follower's own

	mu          sync.Mutex // guards what follows, and writes to keys; only the followers write
	keySet      string     // the feed's
	compromised map[string]bool
	feedKey     []byte
	feedNS      string
	filter      atomic.Pointer[keyFilter] // of API keys; nil: the source has sent none
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

// lives is the longest that an access token of this issuer may live.
func (t *trust) lives() time.Duration { return time.Duration(t.life.Load()) }

// version is of all rules that may hit this issuer's tokens.
func (t *trust) version() uint64 {
	var n uint64
	if b := t.rules.Load(); b != nil {
		n = b.Version.Load()
	}
	if t.host != nil {
		n += t.host.Version.Load()
	}
	return n
}

// hit says which rule refuses x, "" for none. A token of another issuer is looked for in two books: in its issuer's own,
// where its session, client and roles count, and as abroad in the service's.
func (t *trust) hit(x *rules.Subject) string {
	if b := t.rules.Load(); b != nil {
		if rule := b.Hit(x); rule != "" {
			return rule
		}
	}
	if t.host != nil && x.Abroad != nil {
		return t.host.Hit(x.Abroad)
	}
	return ""
}

// foreign is what the rules of the service see of a token of another issuer: who is named by issuer and subject together,
// and none of the names that are its issuer's business, unless they are ours too. It has no position in our order: times
// are compared.
func (t *trust) foreign(x *rules.Subject) *rules.Subject {
	y := &rules.Subject{Issuer: t.issuer, Subject: x.Subject, Id: x.Id, Kid: x.Kid, Iat: x.Iat, Skew: x.Skew, Wall: true}
	if t.own {
		y.Client, y.Grant, y.Roles, y.Chain = x.Client, x.Grant, x.Roles, x.Chain
	}
	for _, a := range x.Actors {
		switch a.Issuer {
		case "": // in its own book its own principals have no issuer
			a.Issuer = t.issuer
		case t.home:
			a.Issuer = ""
		}
		y.Actors = append(y.Actors, a)
	}
	return y
}

// look is what is known now. Whoever decides takes it first, then looks at the rules, then at the clock: so the rules
// that it stands for were all looked at, and a stop of the process in between shows in its age.
func (t *trust) look() *follow.View {
	if t.state != nil {
		return t.state.View()
	}
	return t.view.Load()
}

// freshness is the age of w at now, by whichever clock shows more.
func (t *trust) freshness(w *follow.View, now time.Time) Freshness {
	if t.InsecureNoRevocations {
		return Freshness{}
	}
	if w == nil || w.Wall == 0 {
		return Freshness{Age: 1<<63 - 1, Stale: true}
	}
	age := now.Sub(w.Sent)
	if wall := time.Duration(now.UnixNano() - w.Wall); wall > age {
		age = wall
	}
	return Freshness{Position: w.Pos, Age: max(age, 0), Stale: age > t.v.cfg.MaxStaleness}
}

// wake asks whoever feeds this issuer's rules to look now.
func (t *trust) wake() {
	if t.state != nil {
		t.state.Wake()
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
		return nil, t.cutOff("the issuer's keys were never read or are too old")
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
	if t.state == nil {
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
			return nil, t.cutOff("the issuer has another key set, which is being read")
		}
		return nil, unknown
	}
	if t.rules.Load().Signed(kid) {
		return nil, fail(ErrInvalidToken, "its signing key was declared compromised")
	}
	// A token says how much its issuer had seen when it signed, the ring included (see ring.before). An issuer that had seen
	// no more than we have knows no key that we do not.
	if p, ok := rules.ParsePositions(position); !ok || p.View.N <= t.state.Position().N {
		return nil, unknown
	}
	if err := t.state.Look(ctx); err != nil {
		return nil, unavailable(err, "look for the token's signing key")
	}
	if k := (*t.keys.Load())[kid]; k != nil {
		return k, nil
	}
	return nil, unknown
}

// setKeys replaces the keys. Whatever was verified with a key that is gone, or that changed, is void.
func (t *trust) setKeys(list []*jws.PublicKey) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.setKeysLocked(list)
}

// setKeysLocked is setKeys for a caller that has mu: a set is looked through and put in place at once, so that no key is
// in it that was declared compromised in between.
func (t *trust) setKeysLocked(list []*jws.PublicKey) {
	set := make(map[string]*jws.PublicKey, len(list))
	for _, k := range list {
		if !t.compromised[k.KID] {
			set[k.KID] = k.Beside(set[k.KID])
		}
	}
	old := t.keys.Load()
	t.keys.Store(&set)
	if old == nil {
		return
	}
	for kid, k := range *old {
		if !set[kid].SameKeys(k) {
			t.v.gen.Add(1)
			return
		}
	}
}

// withdraw notes keys that are compromised, for ever, and takes them out of the set.
func (t *trust) withdraw(kids []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	fresh := false
	for _, kid := range kids {
		fresh = fresh || !t.compromised[kid]
		t.compromised[kid] = true
	}
	if set := t.keys.Load(); fresh && set != nil {
		var list []*jws.PublicKey
		for _, k := range *set {
			list = append(list, k.All()...)
		}
		t.setKeysLocked(list)
	}
}

// holds reports whether a key is still in the set, under whose name a token was verified.
func (t *trust) holds(kid string) bool {
	set := t.keys.Load()
	return set != nil && ((*set)[kid] != nil || kid == "" && len(*set) == 1)
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
	// Logger is told when an issuer can't be read and why, at the first failure, at each other reason and every five minutes,
	// and when it can be read again. nil: silent.
	Logger *slog.Logger
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
	v.observers.log = c.Logger
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
	v.follow(c.Trust, nil, "")
	return v, nil
}

func newValidator(c Validation, audience string, now func() time.Time) *JWTValidator {
	v := &JWTValidator{cfg: c, audiences: append([]string{audience}, c.Audiences...), trusts: map[string]*trust{}, now: now}
	v.ctx, v.stop = context.WithCancel(context.Background())
	v.proofs = dpop.NewBook(c.RequireProofNonce, c.ahead())
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
	v.audit, v.observers.log = s.audit, s.log
	v.opaque = s.APIKeys.validate
	v.consume = s.Consume
	t := &trust{issuer: s.cfg.Issuer, own: true, v: v, state: s.state}
	t.rules.Store(s.rules)
	t.life.Store(int64(s.longest.Load().access))
	t.setKeys(s.SigningKeys.ring.PublicKeys())
	v.trusts[t.issuer] = t
	s.trust, s.watchers, s.APIKeys.trust, s.APIKeys.valid = t, &v.observers, t, v
	s.verifies = t.setKeys
	v.follow(s.cfg.Trust, s.rules, s.cfg.Issuer)
	return v, nil
}

// follow starts a follower for each issuer. host are the rules of the service whose validator it is, home its issuer.
func (v *JWTValidator) follow(list []Trusted, host *rules.Book, home string) {
	ctx := v.ctx
	for _, x := range list {
		t := &trust{
			Trusted: x, issuer: x.Issuer, own: x.Own, scopes: x.Scopes, v: v, host: host, home: home, clock: follow.NewClock(v.now),
			asked: make(chan string, 1), kick: make(chan struct{}, 1), renew: make(chan struct{}, 1), ready: make(chan struct{}), compromised: map[string]bool{},
		}
		if t.KeysFor == 0 {
			t.KeysFor = 24 * time.Hour
		}
		t.life.Store(int64(t.Trusted.longest()))
		t.keysOut = &outage{issuer: x.Issuer, source: "keys", log: v.observers.log}
		t.feedOut = &outage{issuer: x.Issuer, source: "feed", log: v.observers.log}
		v.trusts[x.Issuer] = t
		if v.introspector != nil {
			v.introspector.iss = t
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

// Ready blocks until the keys and rules of every trusted issuer are loaded once, or ctx ends. The error then says which issuer
// could not be read and why, also to errors.Is by its Cause.
func (v *JWTValidator) Ready(ctx context.Context) (err error) {
	defer tell(&err)
	for _, t := range v.trusts {
		if t.state != nil {
			continue
		}
		select {
		case <-t.ready:
		case <-ctx.Done():
			why := t.cause()
			if why == nil {
				why = ctx.Err()
			}
			return unavailable(why, "the keys and revocations of issuer "+t.issuer+" were not read yet")
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
		t.keysOut.begin(t.v.now())
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
		t.v.observers.observeWithin(ctx, Observation{Op: "keys", Err: err, Took: time.Since(began)})
		if ctx.Err() != nil {
			return
		}
		t.keysOut.end(ctx, t.v.now(), err)
		t.checkClock(ctx)
		last := time.Now()
		next := follow.Jitter(wait)
		if err == nil {
			t.fetched = t.v.now()
			t.setKeys(keys)
			t.loaded()
			if t.complete() {
				wait, next = time.Second, follow.Jitter(min(keysEvery, t.KeysFor/4))
			}
		} else if !t.fetched.IsZero() {
			left := t.KeysFor - t.v.now().Sub(t.fetched)
			if left <= 0 {
				t.mu.Lock() // else withdraw could put back what it has read just before
				t.keys.Store(nil)
				t.mu.Unlock()
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
	if t.keySet != "" && !t.hasSet(t.keySet) {
		return false
	}
	t.toldAt.Store(0)
	return true
}

// hasSet reports whether set is the digest of the known keys.
func (t *trust) hasSet(set string) bool {
	keys := t.keys.Load()
	if keys == nil {
		return false
	}
	return keyring.KeySetDigest(slices.Collect(maps.Keys(*keys))) == set
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
	for {
		began := time.Now()
		err := t.readRules(ctx)
		t.v.observers.observeWithin(ctx, Observation{Op: "feed", Err: err, Took: time.Since(began)})
		if ctx.Err() != nil {
			return
		}
		t.feedOut.end(ctx, t.v.now(), err)
		t.checkClock(ctx)
		pause := max(t.v.cfg.MaxStaleness/4, 10*time.Millisecond)
		if w, ok := t.Revocations.(interface{ Waits() bool }); ok && w.Waits() {
			pause = 2 * time.Millisecond
		}
		switch {
		case err == nil:
			wait = 50 * time.Millisecond
		default:
			pause = follow.Jitter(wait)
			wait = min(2*wait, 5*time.Second)
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
	rulesTimeout  = 40 * time.Second // over a long poll's own
	rulesRestarts = 2                // of one reading: a source that changes its history or key each time is asked again later
	sweepEvery    = 10 * time.Minute
)

// readRules asks once, in pages, for what is behind the last position. Where that says nothing any more, because the
// history or the key of the hashes is another one, it reads all of it and merges: the book keeps what it has.
func (t *trust) readRules(ctx context.Context) error {
	var from, last store.Position
	if w := t.view.Load(); w != nil {
		from, last = w.Pos, w.Pos
	}
	for restarts := 0; ; {
		sent := t.v.now()
		t.feedOut.begin(sent)
		tctx, cancel := context.WithTimeout(ctx, rulesTimeout)
		answer, err := t.Revocations.Revocations(tctx, from, follow.Page)
		cancel()
		switch another := errors.Is(err, store.ErrDiverged) || err == nil && (answer.Next.History != from.History || !t.hashed(&answer)); {
		case err == nil && answer.Next.History == from.History && answer.Next.N < from.N:
			return errors.New("the answer goes back")
		case err == nil && answer.More && answer.Next == from:
			return errors.New("the answer does not go on") // asked again at once, it would be asked for ever
		case another && from != (store.Position{}):
			if restarts++; restarts > rulesRestarts {
				return errors.New("the source changes its history or its key all the time")
			}
			from = store.Position{}
			continue
		case err != nil:
			return err
		}
		t.enter(&answer)
		if from = answer.Next; answer.More {
			continue
		}
		if from.History == last.History && from.N < last.N {
			return errors.New("the answer goes back") // read from the start, of a source that lags: what it brought counts, its age does not
		}
		sent = sent.Add(-answer.Age)
		t.view.Store(&follow.View{Pos: from, Sent: sent, Wall: sent.UnixNano()})
		t.loaded()
		t.sweep()
		return nil
	}
}

// hashed reports whether an answer's hashes are under the key of the book that the last one was entered in.
func (t *trust) hashed(a *RevocationView) bool {
	return t.book != nil && t.book.Feed == string(a.Key)+a.Namespace
}

// sweep forgets rules that no living token can meet any more, now and then, by a clock that does not believe a jump.
func (t *trust) sweep() {
	now := t.clock.Now()
	if mono := time.Now(); mono.Sub(t.swept) >= sweepEvery {
		t.swept = mono
		if b := t.rules.Load(); b != nil {
			b.Sweep(now.Add(-ruleSlack))
		}
	}
}

// enter merges one answer into the book of its key.
func (t *trust) enter(a *RevocationView) {
	if !t.hashed(a) {
		t.turn(a)
	}
	b := t.book
	for _, r := range a.Rules {
		b.EnterHashed(rules.HashedRule{Class: rules.Class(r.Class), Kind: r.Kind, Hash: r.Hash, Value: r.Value, At: r.At, Expires: r.Expires})
	}
	if len(a.Rules) > 0 {
		t.rules.Load().Version.Add(1)
	}
	if a.MaxLifetime > 0 {
		t.life.Store(int64(min(a.MaxLifetime, t.Trusted.longest())))
	}
	t.dropOpaque(a)
	t.withdraw(a.Compromised)
	t.mu.Lock()
	another := a.KeySet != t.keySet
	t.keySet = a.KeySet
	t.mu.Unlock()
	if another && !t.complete() {
		t.toldAt.CompareAndSwap(0, t.v.now().UnixNano())
		select {
		case t.renew <- struct{}{}:
		default:
		}
	}
}

// turn makes the book of a's key the one that rules are entered in. Under another key the source starts from zero, and what
// was known under the ones before still counts: a new book stands before them, and its version goes on from theirs, so
// that no verdict which was kept under one of them passes for checked against what comes.
func (t *trust) turn(a *RevocationView) {
	feed := string(a.Key) + a.Namespace
	head := t.rules.Load()
	for b := head; b != nil; b = b.Older {
		if b.Feed == feed {
			t.book = b
			return
		}
	}
	b := rules.NewBook(rules.FeedKeyer(a.Key, a.Namespace))
	b.Feed = feed
	if head != nil {
		b.Older = head
		b.Version.Store(head.Version.Load() + 1)
	}
	t.book = b
	t.rules.Store(b)
}
