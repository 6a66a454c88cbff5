package apitoken

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

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

// opaqueShelf keeps an issuer's answers about opaque tokens, by the tokens' hashes, in bounded number.
type opaqueShelf struct {
	v   *JWTValidator
	iss *trust
	ask func(context.Context, string) (Introspection, error)
	ttl time.Duration

	mu      sync.Mutex // guards all below
	answers map[[32]byte]*opaqueAnswer
	byHash  map[[16]byte][]*opaqueAnswer // by the feed's hash of the API key's ID
	flights map[[32]byte]*opaqueFlight   // that whoever asks now may wait for
	flying  int                          // all of them
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
	void   bool // something changed since it was asked: its answer is not kept
	answer *opaqueAnswer
	err    error
}

const (
	maxOpaque        = 1 << 15
	defaultOpaque    = 30 * time.Second
	opaqueTimeout    = 5 * time.Second
	inactiveFor      = 2 * time.Second // an inactive answer is kept shorter: the key may be new
	maxOpaqueFlights = 64
)

// introspects makes opaque tokens go to the issuer.
func (v *JWTValidator) introspects(c *ValidatorConfig) error {
	switch {
	case c.Opaque != nil:
		return wrong("Introspect", "contradicts Opaque")
	case len(c.Trust) != 1 || !c.Trust[0].Own:
		return wrong("Introspect", "takes exactly one trusted issuer, with Own set")
	}
	s := &opaqueShelf{v: v, ask: c.Introspect, ttl: c.OpaqueFor, answers: map[[32]byte]*opaqueAnswer{}, byHash: map[[16]byte][]*opaqueAnswer{}, flights: map[[32]byte]*opaqueFlight{}}
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
	sum := sha256.Sum256([]byte(c.Token))
	a, err := s.answer(ctx, sum, c.Token)
	if err != nil {
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
		return Token{d: a.d}, tr.no("freshness", &Error{Code: ErrUnavailable, RetryAfter: retryHint, Detail: "the view of revocations is older than MaxStaleness"})
	}
	return Token{d: a.d, fresh: f}, nil
}

// answer is from memory, or the issuer's: asked once however many callers wait, and by few callers at a time, so that
// a flood of junk does not become the issuer's.
func (s *opaqueShelf) answer(ctx context.Context, sum [32]byte, token string) (*opaqueAnswer, error) {
	s.mu.Lock()
	if a := s.answers[sum]; a != nil && !a.gone.Load() && s.v.now().Before(a.until) {
		s.mu.Unlock()
		return a, nil
	}
	f := s.flights[sum]
	if f == nil {
		if s.closed {
			s.mu.Unlock()
			return nil, &Error{Code: ErrUnavailable, Detail: "closed"}
		}
		if s.flying >= maxOpaqueFlights {
			s.mu.Unlock()
			return nil, &Error{Code: ErrUnavailable, RetryAfter: retryHint, Detail: "too many questions to the issuer at once"}
		}
		f = &opaqueFlight{done: make(chan struct{})}
		s.flights[sum] = f
		s.flying++
		s.v.wg.Add(1)
		go func() {
			defer s.v.wg.Done()
			s.fly(f, sum, token)
		}()
	}
	s.mu.Unlock()
	select {
	case <-f.done:
		return f.answer, f.err
	case <-ctx.Done():
		return nil, unavailable(ctx.Err(), "waiting for the issuer")
	}
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
	s.flying--
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
	for _, old := range s.answers {
		if len(s.answers) < maxOpaque {
			break
		}
		s.drop(old)
	}
	s.answers[a.sum] = a
	if a.d != nil {
		s.byHash[a.mark] = append(s.byHash[a.mark], a)
	}
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
	t.mu.Unlock()
	if t.v.shelf != nil {
		t.v.shelf.changed(a.Changed, a.DropOpaque)
	}
}
