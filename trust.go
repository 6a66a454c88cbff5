// Other issuers whose tokens are accepted (Trusted), and NewValidator: validation in a process without a store, which follows its
// issuers and may ask one of them about opaque tokens.

package apitoken

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/apitoken-go/apitoken/feed"
	"github.com/apitoken-go/apitoken/internal/apikey"
	"github.com/apitoken-go/apitoken/internal/dpop"
	"github.com/apitoken-go/apitoken/internal/introspection"
	"github.com/apitoken-go/apitoken/internal/issuers"
	"github.com/apitoken-go/apitoken/internal/jws"
	"github.com/apitoken-go/apitoken/internal/legacy"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/keyhash"
	"github.com/apitoken-go/apitoken/profile"
)

// Trusted is an issuer whose access tokens are taken. Its keys verify its own tokens alone.
type Trusted struct {
	Issuer      string         // compared byte for byte with iss
	Keys        feed.KeySource // required, unless Profile has Keys
	Revocations feed.Source    // required, unless the next field says so
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
	// Profile says how the issuer's tokens look where they are not RFC 9068's: the host's own from before, or an identity
	// provider's. It excludes Own. A service needs no Revocations for it then: its own rules reach these tokens, and they count
	// while its view of those is fresh. nil: RFC 9068, strictly.
	Profile *profile.Profile
}

// longest is the longest lifetime of a token that is taken, as far as the configuration says.
func (t *Trusted) longest() time.Duration {
	if t.MaxLifetime == 0 {
		return defaultForeign
	}
	return t.MaxLifetime
}

// stays is for how long from now a token may be taken that is there already.
func (t *Trusted) stays(now time.Time) time.Duration {
	d := t.longest()
	if p := t.Profile; p != nil && (p.InsecureNoExpiry || p.InsecureNoIssuedAt) { // nothing tells how old one is
		d = max(d, p.Until.Sub(now))
	}
	return d
}

const defaultForeign = 24 * time.Hour

func checkTrust(list []Trusted, own string) error {
	seen := map[string]bool{own: true}
	var readers []*legacy.Reader
	for _, t := range list {
		if t.Profile != nil {
			r, err := legacy.New(t.Issuer, t.Profile)
			switch {
			case err != nil:
				return wrong("Trust", "issuer %q: Profile: %v", t.Issuer, err)
			case t.Own:
				return wrong("Trust", "issuer %q: Own is for services of this module, which need no Profile", t.Issuer)
			case len(r.Keys()) > 0 && t.Keys != nil:
				return wrong("Trust", "issuer %q: Keys contradicts Profile.Keys", t.Issuer)
			case slices.ContainsFunc(readers, r.Meets):
				return wrong("Trust", "issuer %q: Profile takes tokens that another one takes too", t.Issuer)
			}
			for _, o := range list {
				if o.Profile == nil && r.Takes(o.Issuer, jws.AccessType) {
					return wrong("Trust", "issuer %q: Profile takes the access tokens of issuer %q", t.Issuer, o.Issuer)
				}
			}
			if own != "" && r.Takes(own, jws.AccessType) {
				return wrong("Trust", "issuer %q: Profile takes our own access tokens", t.Issuer)
			}
			readers = append(readers, r)
		}
		ruled := t.Profile != nil && (own != "" || homeOf(list) >= 0) // by the service's own rules
		switch {
		case t.Issuer == "":
			return wrong("Trust", "an issuer without a name")
		case seen[t.Issuer]:
			return wrong("Trust", "issuer %q twice: a key must belong to one issuer", t.Issuer)
		case t.Keys == nil && (t.Profile == nil || len(t.Profile.Keys) == 0):
			return wrong("Trust", "issuer %q has no Keys", t.Issuer)
		case t.Revocations == nil && !t.InsecureNoRevocations && !ruled:
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

// homeOf is the place of the one Own issuer whose rules are followed, -1 where there is none or another beside it: its rules may name
// the principals of the others.
func homeOf(list []Trusted) int {
	own := func(t Trusted) bool { return t.Own && t.Revocations != nil }
	i := slices.IndexFunc(list, own)
	if i < 0 || slices.ContainsFunc(list[i+1:], own) {
		return -1
	}
	return i
}

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
		c := issuers.Config{Name: x.Issuer, Own: x.Own, SameUsers: x.Profile != nil && x.Profile.SameUsers, Keys: x.Keys, Feed: x.Revocations,
			KeysFor: cmp.Or(x.KeysFor, defaultKeysFor), MaxLife: x.longest(), MaxStaleness: v.cfg.MaxStaleness, Slack: ruleSlack,
			Ahead: max(v.cfg.ahead(), defaultAhead), Now: v.now, Log: v.observers.Log, Void: v.void,
			Observe: func(ctx context.Context, op string, err error, took time.Duration) {
				v.observers.ObserveWithin(ctx, Observation{Op: op, Err: err, Took: took})
			}}
		if asks != nil && x.Own {
			c.Told = asks.about(t)
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

// introspector validates opaque tokens by what their issuer answers about them.
type introspector struct {
	v       *JWTValidator
	iss     *trust
	ask     func(context.Context, string) (Introspection, error)
	ttl     time.Duration
	answers *introspection.Answers[*tokenData]
}

const (
	defaultOpaque = 30 * time.Second
	opaqueTimeout = 5 * time.Second // of one question
)

// introspects makes opaque tokens go to the issuer.
func (v *JWTValidator) introspects(c *ValidatorConfig) (*introspector, error) {
	own := 0
	for _, t := range c.Trust {
		if t.Own {
			own++
		}
	}
	s := &introspector{v: v, ask: c.Introspect, ttl: cmp.Or(c.OpaqueFor, defaultOpaque)}
	switch {
	case c.Opaque != nil:
		return nil, wrong("Introspect", "contradicts Opaque")
	case own != 1:
		return nil, wrong("Introspect", "takes exactly one trusted issuer with Own set")
	case s.ttl < 0 || s.ttl > time.Hour:
		return nil, wrong("OpaqueFor", "%s is not between 0 and 1 h", s.ttl)
	}
	v.opaque, v.imported, v.forms = s.validate, s.validate, apikey.NewForms(c.KeyHashes)
	return s, nil
}

// about makes t the issuer that is asked. The function that it returns is to be told what t's feed says.
func (s *introspector) about(t *trust) (told func(*feed.View)) {
	s.iss = t
	s.answers = introspection.New(introspection.Config[*tokenData]{Issuer: &t.Issuer, Forms: s.v.forms, For: s.ttl, Now: s.v.now, Ask: s.question})
	s.v.forget = s.answers.Close
	return s.answers.Told
}

func (s *introspector) validate(ctx context.Context, c Credential, tr *trace) (Token, error) {
	if c.DPoP != "" {
		return Token{}, tr.no("binding", fail(ErrInvalidToken, "API keys are not bound to keys"))
	}
	a, junk, err := s.answers.Get(ctx, c.Token)
	switch {
	case junk != "":
		return Token{}, tr.no("structure", fail(ErrInvalidToken, "%s", junk))
	case err != nil:
		return Token{}, tr.no("introspection", asError(err, "introspection"))
	}
	tr.ok("introspection", "active")
	w := s.iss.Look()
	if rule := a.Hit(&s.iss.Issuer); rule != "" {
		return Token{d: a.Token}, tr.no("revocation", fail(ErrRevoked, "a rule on its %s", rule))
	}
	tr.ok("revocation", "no rule")
	now := s.v.now()
	if end := a.Token.ExpiresAt; !end.IsZero() && !now.Before(end) {
		return Token{d: a.Token}, tr.no("expiry", fail(ErrExpired, "the key has ended"))
	}
	f := s.iss.freshness(w, now)
	if f.Stale { // never past the bound for opaque tokens
		s.iss.Hurry()
		return Token{d: a.Token}, tr.no("freshness", unavailable(s.iss.Cause(), "the view of revocations is older than MaxStaleness"))
	}
	return Token{d: a.Token, fresh: f}, nil
}

// question asks the issuer.
func (s *introspector) question(token string) (*introspection.Answer[*tokenData], error) {
	ctx, cancel := context.WithTimeout(s.v.ctx, opaqueTimeout)
	defer cancel()
	x, err := s.ask(ctx, token)
	if err == nil {
		var a *introspection.Answer[*tokenData]
		if a, err = s.read(x); err == nil {
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
func (s *introspector) read(x Introspection) (*introspection.Answer[*tokenData], error) {
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
	a := &introspection.Answer[*tokenData]{Token: t.d}
	a.Rule = rules.Subject{Subject: t.d.Subject, ID: t.d.ID, APIKey: true, Iat: t.d.IssuedAt, Pos: pos}
	t.d.from, t.d.by = &a.Rule, s.v
	return a, nil
}
