// The issuers whose tokens are taken, ours among them: keys, names and rules by which a token is judged.

package apitoken

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/apitoken-go/apitoken/feed"
	"github.com/apitoken-go/apitoken/internal/apikey"
	"github.com/apitoken-go/apitoken/internal/dpop"
	"github.com/apitoken-go/apitoken/internal/follow"
	"github.com/apitoken-go/apitoken/internal/issuers"
	"github.com/apitoken-go/apitoken/internal/jws"
	"github.com/apitoken-go/apitoken/internal/legacy"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/keyhash"
	"github.com/apitoken-go/apitoken/profile"
	"github.com/apitoken-go/apitoken/store"
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

// trust is an issuer as a validator takes its tokens.
type trust struct {
	Trusted
	issuers.Issuer
	issuer string
	own    bool           // positions, roles, scopes and clients are taken
	reader *legacy.Reader // reads its tokens, where they are not RFC 9068's
	scopes Scopes
	v      *JWTValidator
	state  *follow.Follower // set for the service's own issuer: it feeds it
	home   *trust           // for a foreign issuer: our own, whose rules may name foreign principals; nil: nobody's
}

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
				if o.Profile == nil && r.Takes(o.Issuer, accessType) {
					return wrong("Trust", "issuer %q: Profile takes the access tokens of issuer %q", t.Issuer, o.Issuer)
				}
			}
			if own != "" && r.Takes(own, accessType) {
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

// takes reports whether a token for aud may be used here.
func (t *trust) takes(own, aud []string) bool {
	if len(t.Audiences) > 0 {
		return overlaps(t.Audiences, aud)
	}
	return overlaps(own, aud)
}

// lives is the longest that an access token of this issuer may live.
func (t *trust) lives() time.Duration { return time.Duration(t.Life.Load()) }

// version is of all rules that may hit this issuer's tokens.
func (t *trust) version() uint64 {
	var n uint64
	if b := t.Rules.Load(); b != nil {
		n = b.Version.Load()
	}
	if t.home != nil {
		n += t.home.version()
	}
	return n
}

// hit says which rule refuses x, "" for none. A token of another issuer is looked for in two books: in its issuer's own,
// where its session, client and roles count, and as abroad in the service's.
func (t *trust) hit(x *rules.Subject) string {
	if b := t.Rules.Load(); b != nil {
		if rule := b.Hit(x); rule != "" {
			return rule
		}
	}
	if t.home != nil && x.Abroad != nil {
		if b := t.home.Rules.Load(); b != nil {
			return b.Hit(x.Abroad)
		}
	}
	return ""
}

// foreign is what the rules of the service see of a token of another issuer: who is named by issuer and subject together,
// and none of the names that are its issuer's business, unless they are ours too. It has no position in our order: times
// are compared.
func (t *trust) foreign(x *rules.Subject) *rules.Subject {
	y := &rules.Subject{Issuer: t.issuer, Subject: x.Subject, ID: x.ID, Kid: x.Kid, Iat: x.Iat, Skew: x.Skew, Wall: true}
	switch {
	case t.own:
		y.Client, y.Grant, y.Roles, y.Chain = x.Client, x.Grant, x.Roles, x.Chain
	case t.reader != nil && t.reader.SameUsers(): // they are no longer another's
		y.Issuer, y.Client, y.Roles = "", x.Client, x.Roles
	default:
		y.AbroadClient = x.Client
	}
	for _, a := range x.Actors {
		switch a.Issuer {
		case "": // in its own book its own principals have no issuer
			a.Issuer = t.issuer
		case t.home.issuer:
			a.Issuer = ""
		}
		y.Actors = append(y.Actors, a)
	}
	return y
}

// look returns the current view. Take it first, then look at the rules, then at the clock: then every rule that the view
// holds was looked at, and a pause of the process in between shows in its age.
func (t *trust) look() *follow.View {
	switch {
	case t.state != nil:
		return t.state.View()
	case t.home == nil:
		return t.View.Load()
	case t.Revocations == nil:
		return t.home.look()
	}
	// The rules of both count: the older view does.
	w, home := t.View.Load(), t.home.look()
	if w == nil || home != nil && home.Wall >= w.Wall {
		return w
	}
	return home
}

// freshness is the age of w at now, by whichever clock shows more.
func (t *trust) freshness(w *follow.View, now time.Time) Freshness {
	if t.Revocations == nil && t.state == nil && t.home == nil { // nobody's rules are followed
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

// wake has this issuer's rules read now.
func (t *trust) wake() {
	if t.state != nil {
		t.state.Wake()
		return
	}
	t.Wake()
	if t.home != nil {
		t.home.wake()
	}
}

// key finds the key that a header names. position is the token's pos claim, which nobody vouches for yet. A missing key may be
// new: whoever can tell is asked. It does not wait for the network, but for the service's own store.
func (t *trust) key(ctx context.Context, kid, position string) (*jws.PublicKey, *Error) {
	set := t.Issuer.Keys.Load()
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
		if t.Issuer.Compromised(kid) {
			return nil, fail(ErrInvalidToken, "its signing key was declared compromised")
		}
		t.Missing(kid)
		if t.Outdated() {
			return nil, t.cutOff("the issuer has another key set, which is being read")
		}
		return nil, unknown
	}
	if t.Rules.Load().Signed(kid) {
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
	if k := (*t.Issuer.Keys.Load())[kid]; k != nil {
		return k, nil
	}
	return nil, unknown
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
	v.follow(c.Trust, nil)
	return v, nil
}

func newValidator(c Validation, audience string, now func() time.Time) *JWTValidator {
	v := &JWTValidator{cfg: c, audiences: append([]string{audience}, c.Audiences...), trusts: map[string]*trust{}, now: now}
	v.ctx, v.stop = context.WithCancel(context.Background())
	v.proofs = dpop.NewBook(c.RequireProofNonce, c.ahead(), c.algorithms())
	if v.cache = c.Cache; v.cache == nil {
		v.cache = NewCache(defaultCacheBytes)
	}
	return v
}

// newServiceValidator is the validator of a service: its own issuer is fed by its state and its ring.
func newServiceValidator(s *Service) (*JWTValidator, error) {
	v := newValidator(s.cfg.Validation, s.cfg.Audience, s.now)
	v.audit, v.observers.log = s.audit, s.log
	v.opaque, v.imported, v.forms = s.APIKeys.validate, s.APIKeys.validateImported, s.APIKeys.forms
	v.consume = s.Consume
	t := &trust{issuer: s.cfg.Issuer, own: true, v: v, state: s.state}
	t.Init(issuers.Config{Name: t.issuer, MaxLife: s.space.Life().Access, Now: s.now, Void: v.void})
	t.Rules.Store(s.rules)
	t.SetKeys(s.SigningKeys.ring.PublicKeys())
	v.trusts[t.issuer] = t
	s.trust, s.watchers, s.APIKeys.trust, s.APIKeys.valid, s.minter.trust, s.minter.valid = t, &v.observers, t, v, t, v
	s.verifies = t.SetKeys
	v.follow(s.cfg.Trust, t)
	return v, nil
}

// void makes older entries of the cache count for nothing.
func (v *JWTValidator) void() { v.gen.Add(1) }

const defaultKeysFor = 24 * time.Hour

// follow starts to follow each issuer. home is the issuer of the service whose validator it is.
func (v *JWTValidator) follow(list []Trusted, home *trust) {
	var made []*trust
	for _, x := range list {
		t := &trust{Trusted: x, issuer: x.Issuer, own: x.Own, scopes: x.Scopes, v: v, home: home}
		c := issuers.Config{Name: x.Issuer, Keys: x.Keys, KeysFor: x.KeysFor, MaxLife: x.longest(), MaxStaleness: v.cfg.MaxStaleness, Slack: ruleSlack,
			Ahead: max(v.cfg.ahead(), defaultAhead), Now: v.now, Log: v.observers.log, Void: v.void,
			Observe: func(ctx context.Context, op string, err error, took time.Duration) {
				v.observers.observeWithin(ctx, Observation{Op: op, Err: err, Took: took})
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
		if v.introspector != nil && x.Own {
			v.introspector.iss = t
			c.Told = v.introspector.told
		}
		t.Init(c)
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
				t.home = made[i]
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
		if t.state != nil {
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

// cutOff is the answer where a view of the issuer's is missing or too old.
func (t *trust) cutOff(detail string) *Error {
	return &Error{Code: ErrUnavailable, RetryAfter: retryHint, Detail: detail, Cause: t.Cause()}
}

// untimely refuses a token by its times. The detail names a clock that may be to blame.
func (t *trust) untimely(code error, detail string) *Error {
	if far := t.Clocks(); far != "" {
		detail += "; " + far
	}
	return fail(code, "%s", detail)
}
