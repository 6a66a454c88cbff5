// Introspection (RFC 7662), and opaque credentials of issuers that are asked about them.

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

	"github.com/apitoken-go/apitoken/internal/apikey"
	"github.com/apitoken-go/apitoken/internal/flightcache"
	"github.com/apitoken-go/apitoken/internal/issuers"
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
func (a *Adapter) Introspect(ctx context.Context, token string) (Introspection, error) {
	t, err := (*Service)(a).Validate(ctx, Credential{Token: token, unproved: true, anywhere: true})
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
func (a *Adapter) Skew() time.Duration { return a.cfg.Validation.ahead() }

// introspector keeps an issuer's answers about opaque tokens, by the tokens' hashes.
type introspector struct {
	v       *JWTValidator
	iss     *trust
	ask     func(context.Context, string) (Introspection, error)
	ttl     time.Duration
	answers *flightcache.Cache[[32]byte, *opaqueAnswer]

	filter atomic.Pointer[issuers.KeyFilter] // of API keys; nil: the source has sent none

	importedMu sync.RWMutex // guards the next two
	imported   map[[8]byte]struct{}
	importedBy string // the key and the namespace of their hashes

	gate issuers.Gate // of questions; entered with a shard of answers locked

	mu  sync.Mutex // guards what follows
	key []byte     // of the feed's hashes
	ns  string     // of the feed's hashes
}

// opaqueAnswer is what an issuer says of an active token.
type opaqueAnswer struct {
	d       *tokenData
	rule    rules.Subject
	version atomic.Uint64 // of the rules
	until   time.Time
	mark    [16]byte // the feed's hash of the API key's ID
}

const (
	answersPerShard  = 512 // of 64
	inactivePerShard = 64
	defaultOpaque    = 30 * time.Second
	opaqueTimeout    = 5 * time.Second
	inactiveFor      = 2 * time.Second // an inactive answer is kept shorter: the key may be new
)

// introspects makes opaque tokens go to the issuer.
func (v *JWTValidator) introspects(c *ValidatorConfig) error {
	switch {
	case c.Opaque != nil:
		return wrong("Introspect", "contradicts Opaque")
	case owned(c.Trust) != 1:
		return wrong("Introspect", "takes exactly one trusted issuer with Own set")
	}
	s := &introspector{v: v, ask: c.Introspect, ttl: c.OpaqueFor}
	s.answers = flightcache.New(flightcache.Config[[32]byte, *opaqueAnswer]{Shard: func(sum [32]byte) byte { return sum[0] },
		Values: answersPerShard, Absents: inactivePerShard, Fresh: func(a *opaqueAnswer, now time.Time) bool { return now.Before(a.until) }})
	if s.ttl == 0 {
		s.ttl = defaultOpaque
	}
	if s.ttl < 0 || s.ttl > time.Hour {
		return wrong("OpaqueFor", "%s is not between 0 and 1 h", s.ttl)
	}
	v.introspector, v.forms = s, apikey.NewForms(c.KeyHashes)
	v.opaque, v.imported = s.validate, s.validate
	return nil
}

// owned is how many of the issuers are services of this module that are ours.
func owned(list []Trusted) (n int) {
	for _, t := range list {
		if t.Own {
			n++
		}
	}
	return n
}

// readOld says in which lane the question about what may be an imported API key belongs; junk: none, since its issuer has imported no
// key that is found by the same.
func (s *introspector) readOld(token string, now time.Time) (l issuers.Lane, junk string, err error) {
	s.mu.Lock()
	key, ns := s.key, s.ns
	s.mu.Unlock()
	found, whole, err := s.v.forms.Imported(ns, token, func(id string) bool {
		return s.imports(rules.HashTarget(key, ns, rules.TargetToken, "", id, ""))
	})
	switch {
	case err != nil:
		return 0, "", public(err)
	case found && whole:
		return issuers.Genuine, "", nil
	case found: // whoever knows a part of the key can ask
		return issuers.Untold, "", nil
	}
	if s.iss.freshness(s.iss.look(), now).Stale { // it may have been imported since
		s.iss.wake()
		return 0, "", s.iss.cutOff("the view of imported API keys is older than MaxStaleness")
	}
	return 0, "an API key that its issuer did not import", nil
}

func (s *introspector) imports(hash [16]byte) bool {
	s.importedMu.RLock()
	defer s.importedMu.RUnlock()
	_, ok := s.imported[[8]byte(hash[:8])]
	return ok
}

// toldImported notes the imported API keys that an answer names. It forgets none: those that have ended cost a question.
func (s *introspector) toldImported(a *issuers.View) {
	s.importedMu.Lock()
	defer s.importedMu.Unlock()
	if by := string(a.Key) + a.Namespace; s.imported == nil || by != s.importedBy {
		s.imported, s.importedBy = map[[8]byte]struct{}{}, by
	}
	for _, h := range a.Imported {
		s.imported[h] = struct{}{}
	}
}

func (s *introspector) validate(ctx context.Context, c Credential, tr *trace) (Token, error) {
	if c.DPoP != "" {
		return Token{}, tr.no("binding", fail(ErrInvalidToken, "API keys are not bound to keys"))
	}
	a, junk, err := s.answer(ctx, c.Token)
	switch {
	case junk != "":
		return Token{}, tr.no("structure", fail(ErrInvalidToken, "%s", junk))
	case err != nil:
		return Token{}, tr.no("introspection", asError(err, "introspection"))
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
// known without a question; what can't be told from junk shares a small budget, so that a flood of it neither reaches the
// issuer nor takes the room of good keys.
func (s *introspector) answer(ctx context.Context, token string) (a *opaqueAnswer, junk string, err error) {
	sum := sha256.Sum256([]byte(token))
	now := s.v.now()
	known, active := s.answers.Get(sum)
	if active && now.Before(known.until) {
		return known, "", nil
	}
	l := issuers.Genuine
	switch {
	case active:
	case opaque.KindOf(token) == opaque.None:
		l, junk, err = s.readOld(token, now)
	default:
		l, junk = s.filter.Load().Read(token)
	}
	if junk != "" || err != nil {
		return nil, junk, err
	}
	a, err = s.answers.Load(ctx, sum, now, func() (func() (*opaqueAnswer, error), error) {
		if s.iss.freshness(s.iss.look(), now).Stale { // whatever the issuer says, it would not be believed
			s.iss.wake()
			return nil, tryAgain("the view of revocations is older than MaxStaleness")
		}
		if l == issuers.Unheard {
			return nil, fail(ErrInvalidToken, "an API key under a root that its issuer has not")
		}
		if !s.gate.Enter(l) {
			return nil, tryAgain("too many questions to the issuer at once")
		}
		return func() (*opaqueAnswer, error) {
			defer s.gate.Leave(l)
			return s.question(token)
		}, nil
	})
	return a, "", err
}

// question asks the issuer.
func (s *introspector) question(token string) (*opaqueAnswer, error) {
	ctx, cancel := context.WithTimeout(s.v.ctx, opaqueTimeout)
	defer cancel()
	asked := s.v.now()
	x, err := s.ask(ctx, token)
	if err == nil {
		var a *opaqueAnswer
		if a, err = s.read(x, asked); err == nil && a == nil {
			return nil, &flightcache.Absent{Err: fail(ErrInvalidToken, "the issuer says that it is not active"), Until: asked.Add(min(s.ttl, inactiveFor))}
		} else if err == nil {
			return a, nil
		}
	}

	// Whatever else the host's function says is no verdict about the token.
	var e *Error
	if errors.As(err, &e) && (e.Code == ErrUnavailable || e.Code == ErrLimited) {
		return nil, e
	}
	return nil, unavailable(err, "introspection")
}

// read makes of an answer what is kept of it; nil: the token is not active here.
func (s *introspector) read(x Introspection, asked time.Time) (*opaqueAnswer, error) {
	if !x.Active {
		return nil, nil
	}
	pos, ok := rules.ParsePositions(x.Position)
	if !x.Token.APIKey || x.Token.ID == "" || x.Token.Subject == "" || x.Token.Issuer != s.iss.issuer || !ok {
		return nil, errors.New("the issuer's answer is incomplete")
	}
	t, err := NewToken(x.Token)
	if err != nil {
		return nil, err
	}
	if !s.iss.takes(s.v.audiences, t.d.Audiences) && len(t.d.Audiences) > 0 {
		return nil, nil // good for another audience
	}
	a := &opaqueAnswer{d: t.d, until: asked.Add(s.ttl)}
	a.rule = rules.Subject{Subject: t.d.Subject, ID: t.d.ID, APIKey: true, Iat: t.d.IssuedAt, Pos: pos}
	a.d.from, a.d.by = &a.rule, s.v
	s.mu.Lock()
	a.mark = rules.HashTarget(s.key, s.ns, rules.TargetToken, "", t.d.ID, "")
	s.mu.Unlock()
	return a, nil
}

// told takes what an answer of the feed says of opaque tokens, and drops the answers that have changed. What was asked before is
// good for the callers that wait already, and for no other.
func (s *introspector) told(a *issuers.View) {
	s.mu.Lock()
	s.key, s.ns = a.Key, a.Namespace
	s.filter.Store(s.filter.Load().With(a))
	s.mu.Unlock()
	if s.v.forms != nil {
		s.toldImported(a)
	}
	switch {
	case a.DropOpaque:
		s.answers.DropAll(nil)
	case len(a.Changed) > 0:
		s.answers.DropAll(func(x *opaqueAnswer) bool { return slices.Contains(a.Changed, x.mark) })
	}
}
