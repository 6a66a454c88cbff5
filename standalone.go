// Validators in processes without a store: what they follow of each issuer, and what they ask one about opaque tokens.

package apitoken

import (
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apitoken-go/apitoken/feed"
	"github.com/apitoken-go/apitoken/internal/apikey"
	"github.com/apitoken-go/apitoken/internal/dpop"
	"github.com/apitoken-go/apitoken/internal/flightcache"
	"github.com/apitoken-go/apitoken/internal/issuers"
	"github.com/apitoken-go/apitoken/internal/legacy"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/keyhash"
	"github.com/apitoken-go/apitoken/store"
)

// ValidatorConfig configures NewValidator.
type ValidatorConfig struct {
	Audience string    // required: what this process is called in aud
	Trust    []Trusted // required: whose tokens
	Opaque   Validator // validates tokens that are not JWTs; nil: they are refused
	// Introspect asks the one trusted Own issuer, beside which others may be trusted, about opaque tokens. Its answers are kept for OpaqueFor (zero: 30 s), and
	// dropped at once by a rule or a change of the key. It excludes Opaque.
	Introspect func(ctx context.Context, token string) (Introspection, error)
	OpaqueFor  time.Duration
	// KeyHashes are the forms of API keys that the issuer took over from another program, by the names that its Config.KeyHashes
	// gives them. Lookup and Prefix are used, so that most of what is no key costs no question; the issuer verifies. A key that was
	// imported a moment ago is taken once the feed has told of it. With Introspect only.
	KeyHashes  map[string]keyhash.Form
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
	if err := apikey.CheckForms(c.KeyHashes); err != nil {
		return nil, public(err)
	}
	if len(c.KeyHashes) > 0 && c.Introspect == nil {
		return nil, wrong("KeyHashes", "needs Introspect: the issuer verifies such keys")
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	v := newValidator(c.Validation, c.Audience, c.Now)
	v.observers.Log = c.Logger
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
	var asks *introspector
	if c.Introspect != nil {
		var err error
		if asks, err = v.introspects(&c); err != nil {
			v.stop()
			return nil, err
		}
	}
	v.follow(c.Trust, nil, asks)
	return v, nil
}

func newValidator(c Validation, audience string, now func() time.Time) *JWTValidator {
	v := &JWTValidator{cfg: c, audiences: append([]string{audience}, c.Audiences...), trusts: map[string]*trust{}, now: now}
	v.observers.Op = func(o Observation) string { return o.Op }
	v.ctx, v.stop = context.WithCancel(context.Background())
	v.proofs = dpop.NewBook(c.RequireProofNonce, c.ahead(), c.algorithms())
	if v.cache = c.Cache; v.cache == nil {
		v.cache = NewCache(defaultCacheBytes)
	}
	return v
}

// void makes older entries of the cache count for nothing.
func (v *JWTValidator) void() { v.gen.Add(1) }

const defaultKeysFor = 24 * time.Hour

// follow starts to follow each issuer. home is the issuer of the service whose validator it is; asks is told what our own issuer's
// feed says of opaque tokens, nil: nobody is asked about those.
func (v *JWTValidator) follow(list []Trusted, home *issuers.Issuer, asks *introspector) {
	var made []*trust
	for _, x := range list {
		t := &trust{Trusted: x, issuer: x.Issuer, own: x.Own, scopes: x.Scopes}
		c := issuers.Config{Name: x.Issuer, Own: x.Own, SameUsers: x.Profile != nil && x.Profile.SameUsers, Keys: x.Keys, KeysFor: x.KeysFor, MaxLife: x.longest(), MaxStaleness: v.cfg.MaxStaleness, Slack: ruleSlack,
			Ahead: max(v.cfg.ahead(), defaultAhead), Now: v.now, Log: v.observers.Log, Void: v.void,
			Observe: func(ctx context.Context, op string, err error, took time.Duration) {
				v.observers.ObserveWithin(ctx, Observation{Op: op, Err: err, Took: took})
			}}
		if c.KeysFor == 0 {
			c.KeysFor = defaultKeysFor
		}
		if x.Revocations != nil {
			c.Feed = func(ctx context.Context, after store.Position, max int) (issuers.View, error) {
				a, err := x.Revocations.Revocations(ctx, after, max)
				return insideView(&a), err
			}
			if w, ok := x.Revocations.(interface{ Waits() bool }); ok {
				c.Waits = w.Waits
			}
		}
		for _, source := range []any{x.Keys, x.Revocations} {
			if k, ok := source.(issuers.Clock); ok {
				c.Clocks = append(c.Clocks, k)
			}
		}
		if asks != nil && x.Own {
			asks.iss = t
			c.Told = asks.told
		}
		t.Init(c)
		t.SetHome(home)
		v.trusts[x.Issuer] = t
		made = append(made, t)
		if x.Profile == nil {
			continue
		}
		t.reader, _ = legacy.New(x.Issuer, x.Profile) // checkTrust has seen its error
		v.profiled = append(v.profiled, t)
		if keys := t.reader.Keys(); len(keys) > 0 {
			t.Serve(keys)
		}
	}
	if i := homeOf(list); home == nil && i >= 0 {
		for _, t := range made {
			if t != made[i] {
				t.SetHome(&made[i].Issuer)
			}
		}
	}
	for _, t := range made {
		v.wg.Go(func() { t.Run(v.ctx) })
	}
}

// inside is a as the package that follows issuers takes it.
func insideView(a *feed.View) issuers.View {
	v := issuers.View{Key: a.Key, Namespace: a.Namespace, Compromised: a.Compromised, Changed: a.Changed, DropOpaque: a.DropOpaque, Prefix: a.Prefix,
		Imported: a.Imported, KeySet: a.KeySet, Next: a.Next, More: a.More, Age: a.Age, MaxLifetime: a.MaxLifetime}
	for _, r := range a.Rules {
		v.Rules = append(v.Rules, rules.HashedRule{Class: rules.Class(r.Class), Kind: r.Kind, Hash: r.Hash, Value: r.Value, At: r.At, Expires: r.Expires})
	}
	for _, t := range a.APIKeyTags {
		v.APIKeyTags = append(v.APIKeyTags, issuers.Tag(t))
	}
	return v
}

// Ready blocks until the keys and rules of every trusted issuer are loaded once, or ctx ends. The error then says which issuer
// could not be read and why, also to errors.Is by its Cause.
func (v *JWTValidator) Ready(ctx context.Context) (err error) {
	defer tell(&err)
	for _, t := range v.trusts {
		if t.Local() {
			continue
		}
		select {
		case <-t.Ready():
		case <-ctx.Done():
			why := t.Cause()
			if why == nil {
				why = ctx.Err()
			}
			return unavailable(why, "the keys and revocations of issuer "+t.issuer+" were not read yet")
		}
	}
	return nil
}

// Issuer is Config.Issuer.
func (s *Service) Issuer() string { return s.cfg.Issuer }

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
func (v *JWTValidator) introspects(c *ValidatorConfig) (*introspector, error) {
	switch {
	case c.Opaque != nil:
		return nil, wrong("Introspect", "contradicts Opaque")
	case owned(c.Trust) != 1:
		return nil, wrong("Introspect", "takes exactly one trusted issuer with Own set")
	}
	s := &introspector{v: v, ask: c.Introspect, ttl: c.OpaqueFor}
	s.answers = flightcache.New(flightcache.Config[[32]byte, *opaqueAnswer]{Shard: func(sum [32]byte) byte { return sum[0] },
		Values: answersPerShard, Absents: inactivePerShard, Fresh: func(a *opaqueAnswer, now time.Time) bool { return now.Before(a.until) }})
	if s.ttl == 0 {
		s.ttl = defaultOpaque
	}
	if s.ttl < 0 || s.ttl > time.Hour {
		return nil, wrong("OpaqueFor", "%s is not between 0 and 1 h", s.ttl)
	}
	v.opaque, v.forget = s.validate, s.answers.Close
	v.forms, v.imported = apikey.NewForms(c.KeyHashes), s.validate
	return s, nil
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
	if s.iss.freshness(s.iss.Look(), now).Stale { // it may have been imported since
		s.iss.Hurry()
		return 0, "", unavailable(s.iss.Cause(), "the view of imported API keys is older than MaxStaleness")
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
	w := s.iss.Look()
	version := s.iss.Version()
	if a.version.Load() != version {
		if rule := s.iss.Hit(&a.rule); rule != "" {
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
		s.iss.Hurry()
		return Token{d: a.d}, tr.no("freshness", unavailable(s.iss.Cause(), "the view of revocations is older than MaxStaleness"))
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
		if s.iss.freshness(s.iss.Look(), now).Stale { // whatever the issuer says, it would not be believed
			s.iss.Hurry()
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
