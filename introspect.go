package apitoken

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/internal/rules"
)

// Introspection is an issuer's answer about an opaque token (RFC 7662), as a validator in another process needs it.
type Introspection struct {
	Active   bool
	Token    TokenSpec // when Active
	Position string    // where its birth lies in the issuer's order of changes, as in the pos claim of access tokens
}

// Introspect says what a resource server needs to know of a token of any kind (RFC 7662), for endpoints that answer whoever
// the token concerns; they decide who may ask. A bound token is active without its proof: its Binding tells what
// whoever uses it must prove; and one for another audience than this process's is active too; one for none, which Validate refuses anywhere, is not. An API key with MaxUses is not
// active: whoever asks keeps the answer for a while, and nobody would count. The error is only ever ErrUnavailable.
func (s *Service) Introspect(ctx context.Context, token string) (Introspection, error) {
	t, err := s.Validate(ctx, Credential{Token: token, unproved: true, anywhere: true})
	switch {
	case errors.Is(err, ErrUnavailable):
		return Introspection{}, err
	case err != nil:
		return Introspection{}, nil
	}
	if t.d.counted {
		return Introspection{}, nil
	}
	x := Introspection{Active: true, Token: t.d.TokenSpec}
	x.Token.Audiences, x.Token.Scopes, x.Token.Roles, x.Token.Actors = t.Audiences(), t.Scopes(), t.Roles(), t.Actors()
	if len(t.d.claim) > 0 {
		x.Token.Claims = json.RawMessage(t.d.claim)
	}
	if t.d.from != nil {
		x.Position = t.d.from.Pos.String()
	}
	return x, nil
}

// Issuer is Config.Issuer.
func (s *Service) Issuer() string { return s.cfg.Issuer }

// Skew is how far ahead of ours the clock of whoever signs a token, a proof or an assertion may be: Config.Validation.Skew, or
// its default. Adapters that check times themselves use it.
func (s *Service) Skew() time.Duration { return s.cfg.Validation.ahead() }

// opaqueShelf keeps an issuer's answers about opaque tokens, by the tokens' hashes, in bounded number.
type opaqueShelf struct {
	v   *JWTValidator
	iss *trust
	ask func(context.Context, string) (Introspection, error)
	ttl time.Duration

	mu      sync.Mutex // guards all below
	answers map[[32]byte]*opaqueAnswer
	byHash  map[[16]byte][]*opaqueAnswer // by the feed's hash of the API key's ID
	misses  map[[32]byte]*opaqueAnswer   // not active; apart, so that they take no room from the good ones
	flights map[[32]byte]*opaqueFlight   // that whoever asks now may wait for
	flying  [lanes]int                   // all of them
	tokens  float64                      // questions that strange texts may ask now
	filled  time.Time                    // when tokens was reckoned
	closed  bool
}

type opaqueAnswer struct {
	d       *tokenData // nil: not active
	rule    rules.Subject
	version atomic.Uint64 // of the rules
	until   time.Time
	gone    atomic.Bool
	sum     [32]byte
	mark    [16]byte
}

// opaqueFlight is one question that many callers wait for.
type opaqueFlight struct {
	done   chan struct{}
	lane   lane
	void   bool // something changed since it was asked: its answer is not kept
	answer *opaqueAnswer
	err    error
}

const (
	maxOpaque       = 1 << 15
	defaultOpaque   = 30 * time.Second
	opaqueTimeout   = 5 * time.Second
	inactiveFor     = 2 * time.Second // an inactive answer is kept shorter: the key may be new
	maxOpaqueMisses = 1 << 12

	// Texts about which nothing is known may ask strangeRate questions a second, so ten in any one second.
	strangeRate  = 8.0
	strangeBurst = 2.0
)

// lane is which questions share a limit.
type lane int

const (
	genuine lane = iota // its tag is the issuer's, or the issuer has called it active before
	strange             // its tag can't be verified here: its root is one that the issuer could not open
	untold              // the issuer is of a version that does not say how its API keys look
	lanes
	unheard = lanes // it names a root that our view of the issuer has not: junk, unless the view is old
)

var laneSize = [lanes]int{genuine: 64, strange: 8, untold: 48}

// keyFilter tells an issuer's API keys from junk, from memory. It grows only: answers of processes that lag take nothing away.
type keyFilter struct {
	ns       string
	prefixes []string
	keys     map[[4]byte][]byte
}

// with is f and what a says; f itself where that is nothing new.
func (f *keyFilter) with(a *RevocationView) *keyFilter {
	if a.Prefix == "" || len(a.APIKeyTags) == 0 {
		return f
	}
	n := &keyFilter{ns: a.Namespace, keys: map[[4]byte][]byte{}}
	if f != nil && f.ns == a.Namespace {
		n.prefixes = f.prefixes
		maps.Copy(n.keys, f.keys)
	}
	fresh := f == nil || f.ns != n.ns || !slices.Contains(f.prefixes, a.Prefix)
	for _, t := range a.APIKeyTags {
		if known, ok := n.keys[t.KID]; !ok || len(known) == 0 && len(t.Key) > 0 {
			n.keys[t.KID], fresh = t.Key, true
		}
	}
	if !fresh {
		return f
	}
	if !slices.Contains(n.prefixes, a.Prefix) {
		n.prefixes = append(slices.Clip(n.prefixes), a.Prefix)
	}
	return n
}

// read says in which lane the question about token belongs; junk: none, since it is no API key of the issuer's.
func (f *keyFilter) read(token string) (l lane, junk string) {
	var key opaque.Key
	if f == nil {
		for range opaque.Find([]byte(token)) {
			return untold, ""
		}
		return 0, "malformed API key"
	}
	if !slices.ContainsFunc(f.prefixes, func(p string) bool { return opaque.DecodeKeyInto(&key, token, p, opaque.APIKey) == nil }) {
		return 0, "malformed API key"
	}
	mac, ok := f.keys[key.KID]
	switch {
	case !ok:
		return unheard, ""
	case len(mac) == 0:
		return strange, ""
	}
	how := madeKeys[opaque.APIKey]
	tag := opaque.Tag(mac, how.label, []byte(f.ns), key.ID[:], key.Secret[:])
	if subtle.ConstantTimeCompare(tag[:], key.Tag[:]) != 1 {
		return 0, "an API key that its issuer did not make"
	}
	return genuine, ""
}

// introspects makes opaque tokens go to the issuer.
func (v *JWTValidator) introspects(c *ValidatorConfig) error {
	switch {
	case c.Opaque != nil:
		return wrong("Introspect", "contradicts Opaque")
	case len(c.Trust) != 1 || !c.Trust[0].Own:
		return wrong("Introspect", "takes exactly one trusted issuer, with Own set")
	}
	s := &opaqueShelf{v: v, ask: c.Introspect, ttl: c.OpaqueFor, answers: map[[32]byte]*opaqueAnswer{}, misses: map[[32]byte]*opaqueAnswer{}, byHash: map[[16]byte][]*opaqueAnswer{}, flights: map[[32]byte]*opaqueFlight{}}
	if s.ttl == 0 {
		s.ttl = defaultOpaque
	}
	if s.ttl < 0 || s.ttl > time.Hour {
		return wrong("OpaqueFor", "%s is not between 0 and 1 h", s.ttl)
	}
	v.shelf = s
	v.opaque = s.validate
	return nil
}

func (s *opaqueShelf) validate(ctx context.Context, c Credential, tr *trace) (Token, error) {
	if c.DPoP != "" {
		return Token{}, tr.no("binding", fail(ErrInvalidToken, "API keys are not bound to keys"))
	}
	a, junk, err := s.answer(ctx, c.Token)
	switch {
	case junk != "":
		return Token{}, tr.no("structure", fail(ErrInvalidToken, "%s", junk))
	case err != nil:
		var e *Error
		if !errors.As(err, &e) || e.Code != ErrUnavailable && e.Code != ErrLimited {
			e = unavailable(err, "introspection")
		}
		return Token{}, tr.no("introspection", e)
	}
	if a.d == nil {
		return Token{}, tr.no("introspection", fail(ErrInvalidToken, "the issuer says that it is not active"))
	}
	tr.ok("introspection", "active")
	w := s.iss.look()
	version := s.iss.version()
	if a.version.Load() != version {
		if rule := s.iss.hit(&a.rule); rule != "" {
			return Token{d: a.d}, tr.no("revocation", fail(ErrRevoked, "a rule on its %s", rule))
		}
		a.version.Store(version)
	}
	tr.ok("revocation", "no rule")
	now := s.v.now()
	if end := a.d.ExpiresAt; !end.IsZero() && !now.Before(end) {
		return Token{d: a.d}, tr.no("expiry", fail(ErrExpired, "the key has ended"))
	}
	f := s.iss.freshness(w, now)
	if f.Stale { // never past the bound for opaque tokens
		s.iss.wake()
		return Token{d: a.d}, tr.no("freshness", s.iss.cutOff("the view of revocations is older than MaxStaleness"))
	}
	return Token{d: a.d, fresh: f}, nil
}

// answer is from memory, or the issuer's: asked once however many callers wait. junk, which is most of what strangers send, is
// known without a question; what can't be told from junk shares a small budget, so that a flood does not become the issuer's
// and takes no room from holders of good keys.
func (s *opaqueShelf) answer(ctx context.Context, token string) (a *opaqueAnswer, junk string, err error) {
	sum := sha256.Sum256([]byte(token))
	now := s.v.now()
	s.mu.Lock()
	known := s.answers[sum]
	if known != nil && !known.gone.Load() && now.Before(known.until) {
		s.mu.Unlock()
		return known, "", nil
	}
	if a := s.misses[sum]; a != nil && now.Before(a.until) {
		s.mu.Unlock()
		return a, "", nil
	}
	f := s.flights[sum]
	s.mu.Unlock()
	if f == nil {
		l := genuine
		if known == nil {
			if l, junk = s.iss.filter.Load().read(token); junk != "" {
				return nil, junk, nil
			}
		}
		if s.iss.freshness(s.iss.look(), now).Stale { // whatever the issuer says, it would not be believed
			s.iss.wake()
			return nil, "", s.iss.cutOff("the view of revocations is older than MaxStaleness")
		}
		if l == unheard {
			return nil, "an API key under a root that its issuer has not", nil
		}
		if f, err = s.begin(sum, token, l); err != nil {
			return nil, "", err
		}
	}
	select {
	case <-f.done:
		return f.answer, "", f.err
	case <-ctx.Done():
		return nil, "", unavailable(ctx.Err(), "waiting for the issuer")
	}
}

// begin asks the issuer, or joins who asks already.
func (s *opaqueShelf) begin(sum [32]byte, token string, l lane) (*opaqueFlight, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.flights[sum]; f != nil {
		return f, nil
	}
	switch {
	case s.closed:
		return nil, &Error{Code: ErrUnavailable, Detail: "closed"}
	case s.flying[l] >= laneSize[l] || l == strange && !s.spend():
		return nil, &Error{Code: ErrUnavailable, RetryAfter: retryHint, Detail: "too many questions to the issuer at once"}
	}
	f := &opaqueFlight{done: make(chan struct{}), lane: l}
	s.flights[sum] = f
	s.flying[l]++
	s.v.wg.Add(1)
	go func() {
		defer s.v.wg.Done()
		s.fly(f, sum, token)
	}()
	return f, nil
}

// spend takes one question from the budget of strange texts. It counts real time. The caller holds mu.
func (s *opaqueShelf) spend() bool {
	now := time.Now()
	s.tokens = min(strangeBurst, s.tokens+now.Sub(s.filled).Seconds()*strangeRate)
	s.filled = now
	if s.tokens < 1 {
		return false
	}
	s.tokens--
	return true
}

func (s *opaqueShelf) fly(f *opaqueFlight, sum [32]byte, token string) {
	ctx, cancel := context.WithTimeout(s.v.ctx, opaqueTimeout)
	defer cancel()
	asked := s.v.now()
	x, err := s.ask(ctx, token)
	var a *opaqueAnswer
	if err == nil {
		a, err = s.read(x, sum, asked)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.flying[f.lane]--
	if s.flights[sum] == f {
		delete(s.flights, sum)
	}
	if f.answer, f.err = a, err; err == nil && !f.void {
		s.keep(a)
	}
	close(f.done)
}

func (s *opaqueShelf) read(x Introspection, sum [32]byte, asked time.Time) (*opaqueAnswer, error) {
	a := &opaqueAnswer{sum: sum, until: asked.Add(min(s.ttl, inactiveFor))}
	if !x.Active {
		return a, nil
	}
	pos, ok := rules.ParsePositions(x.Position)
	if x.Token.Kind != KindAPIKey || x.Token.ID == "" || x.Token.Subject == "" || x.Token.Issuer != s.iss.issuer || !ok {
		return nil, errors.New("the issuer's answer is incomplete")
	}
	t, err := NewToken(x.Token)
	if err != nil {
		return nil, err
	}
	if !s.iss.takes(s.v.audiences, t.d.Audiences) && len(t.d.Audiences) > 0 {
		return a, nil // good, and not here
	}
	a.d, a.until = t.d, asked.Add(s.ttl)
	a.rule = rules.Subject{Subject: t.d.Subject, Id: t.d.ID, ApiKey: true, Iat: t.d.IssuedAt, Pos: pos}
	a.d.from, a.d.by = &a.rule, s.v
	s.iss.mu.Lock()
	a.mark = rules.HashTarget(s.iss.feedKey, s.iss.feedNS, rules.TargetToken, "", t.d.ID, "")
	s.iss.mu.Unlock()
	return a, nil
}

// keep stores an answer. The caller holds mu.
func (s *opaqueShelf) keep(a *opaqueAnswer) {
	if old := s.answers[a.sum]; old != nil {
		s.drop(old)
	}
	delete(s.misses, a.sum)
	if a.d == nil {
		for old := range s.misses {
			if len(s.misses) < maxOpaqueMisses {
				break
			}
			delete(s.misses, old)
		}
		s.misses[a.sum] = a
		return
	}
	for _, old := range s.answers {
		if len(s.answers) < maxOpaque {
			break
		}
		s.drop(old)
	}
	s.answers[a.sum] = a
	s.byHash[a.mark] = append(s.byHash[a.mark], a)
}

// drop forgets one answer; others about the same API key stay where a change of it finds them. The caller holds mu.
func (s *opaqueShelf) drop(a *opaqueAnswer) {
	a.gone.Store(true)
	delete(s.answers, a.sum)
	if rest := slices.DeleteFunc(s.byHash[a.mark], func(b *opaqueAnswer) bool { return a == b }); len(rest) > 0 {
		s.byHash[a.mark] = rest
	} else {
		delete(s.byHash, a.mark)
	}
}

// close lets no new question begin.
func (s *opaqueShelf) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
}

// changed drops what the feed says has changed.
func (s *opaqueShelf) changed(hashes [][16]byte, all bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(hashes) > 0 || all {
		for _, f := range s.flights { // asked before the change: good for those who wait already, and for nobody else
			f.void = true
		}
		clear(s.flights)
	}
	if all {
		for _, a := range s.answers {
			s.drop(a)
		}
		clear(s.misses)
		return
	}
	for _, h := range hashes {
		for _, a := range slices.Clone(s.byHash[h]) {
			s.drop(a)
		}
	}
}

// dropOpaque passes on what an answer of the feed says of opaque tokens.
func (t *trust) dropOpaque(a *RevocationView) {
	t.mu.Lock()
	t.feedKey, t.feedNS = a.Key, a.Namespace
	t.filter.Store(t.filter.Load().with(a))
	t.mu.Unlock()
	if t.v.shelf != nil {
		t.v.shelf.changed(a.Changed, a.DropOpaque)
	}
}
