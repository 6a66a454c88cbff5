// Validate and Authorize: from the text in a request to a Token, or a refusal. A token that cache.go knows takes the short way (quick),
// every other one the whole way (validate).

package apitoken

import (
	"context"
	"crypto/subtle"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apitoken-go/apitoken/internal/apikey"
	"github.com/apitoken-go/apitoken/internal/dpop"
	"github.com/apitoken-go/apitoken/internal/follow"
	"github.com/apitoken-go/apitoken/internal/issuers"
	"github.com/apitoken-go/apitoken/internal/jws"
	"github.com/apitoken-go/apitoken/internal/legacy"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/internal/usage"
	"github.com/apitoken-go/apitoken/internal/watch"
)

// Authorize is the whole decision of an adapter: no credential (the zero Credential), a bad one, a
// good one that lacks a scope, a good one. It returns a context that carries the Token. Every
// adapter in this module, and every one outside it, calls this and maps the error to its protocol.
func Authorize(ctx context.Context, v Validator, c Credential, r Requirement) (context.Context, error) {
	if c.IsZero() {
		if r.public() {
			return ctx, nil
		}
		return ctx, &Error{Code: ErrNoToken, Needs: r}
	}
	t, err := v.Validate(ctx, c)
	if err != nil {
		return ctx, err
	}
	if t.IsZero() { // a Validator of someone's own that forgot its error
		return ctx, fail(ErrInvalidToken, "the validator returned no token")
	}
	if !r.public() {
		if err := t.Check(r); err != nil {
			if t.d.by != nil { // not v, which may stand around it
				t.d.by.lacks(ctx, t, err)
			}
			return NewContext(ctx, t), err
		}
	}
	if t.IsAPIKey() {
		m, ok := v.(consumer)
		if !ok && t.d.by != nil { // a validator around ours that chooses a tenant, or logs, must not lift limits
			m, ok = t.d.by, true
		}
		if ok {
			if err := m.Consume(ctx, t); err != nil {
				return NewContext(ctx, t), err
			}
		}
	}
	if t.d.use != nil {
		met(t.d.use, t.d.held, &r)
	}
	return NewContext(ctx, t), nil
}

// JWTValidator is the default Validator, on keys and rules that it is given: by [Service] from its
// store, by remote.NewValidator over HTTP. Hosts rarely make one themselves.
type JWTValidator struct {
	cfg       Validation
	audiences []string
	trusts    map[string]*trust
	profiled  []*trust // those of trusts with a reader of their own
	// Tokens that are no JWTs; nil: they are refused. Keys that another program made look as that program liked.
	opaque    func(context.Context, Credential, *trace) (Token, error)
	forms     *apikey.Forms // nil: none are known
	imported  func(context.Context, Credential, *trace) (Token, error)
	now       func() time.Time
	cache     *Cache
	headers   jws.Headers
	proofs    *dpop.Book
	gen       atomic.Uint64 // rises when a key or an issuer goes: older entries of the cache are void
	observers watch.List[Observation]
	consume   func(context.Context, Token) error
	core      *core // of the service; nil in a process without a store

	ctx  context.Context // of its goroutines; ends at Close
	stop context.CancelFunc
	wg   sync.WaitGroup

	forget func() // ends what is kept of an issuer's answers about opaque tokens; nil: nothing is
}

// trust is an issuer as a validator takes its tokens.
type trust struct {
	Trusted
	issuers.Issuer
	issuer string
	own    bool           // positions, roles, scopes and clients are taken
	reader *legacy.Reader // reads its tokens, where they are not RFC 9068's
	scopes Scopes
}

// takes reports whether a token for aud may be used here.
func (t *trust) takes(own, aud []string) bool {
	if len(t.Audiences) > 0 {
		return overlaps(t.Audiences, aud)
	}
	return overlaps(own, aud)
}

// freshness is the age of w at now, by whichever clock shows more.
func (t *trust) freshness(w *follow.View, now time.Time) Freshness {
	return Freshness(t.Freshness(w, now))
}

// untimely refuses a token by its times. The detail names a clock that may be to blame.
func (t *trust) untimely(code error, detail string) *Error {
	if far := t.Clocks(); far != "" {
		detail += "; " + far
	}
	return fail(code, "%s", detail)
}

// overlaps reports whether a token for has may be used where one of want is asked for.
func overlaps(want, has []string) bool {
	for _, a := range has {
		if slices.Contains(want, a) {
			return true
		}
	}
	return false
}

// quick answers for a token that was verified before, is not bound, and about which nothing is new: what remains then is to
// look at the clock. It decides nothing else: whatever it does not answer goes the whole way.
func (v *JWTValidator) quick(ctx context.Context, c *Credential) (Token, bool) {
	if c.DPoP != "" || len(c.Token) > v.cfg.MaxTokenBytes {
		return Token{}, false
	}
	e := v.cache.find(v, v.cache.hash(c.Token), c.Token)
	if e == nil || e.bound {
		return Token{}, false
	}
	w := e.iss.Look()
	if e.version.Load() != e.iss.Version() {
		return Token{}, false
	}
	var last int64 // read before the clock, which waits for all that was asked of memory before and lets nothing overtake it
	if e.use != nil {
		last = e.use.Last()
	}
	now := v.now()
	f := e.iss.freshness(w, now)
	sec := now.Unix()
	if sec >= e.exp || sec < e.from || f.Stale || e.needs > f.Position.N {
		return Token{}, false
	}
	if e.use != nil {
		e.use.HitAfter(last, now, addressOf(ctx))
	}
	t := Token{d: &e.data, fresh: f}
	if v.observers.Any() {
		v.seen(ctx, t)
	}
	return t, true
}

// seen tells observers of what quick answered. Took stays zero: to read the clock twice takes longer than the rest.
func (v *JWTValidator) seen(ctx context.Context, t Token) {
	v.observers.Observe(ctx, Observation{Op: "validate", Token: t, Hit: true, Origin: originOf(ctx)})
}

// Validate implements [Validator].
func (v *JWTValidator) Validate(ctx context.Context, c Credential) (Token, error) {
	if t, ok := v.quick(ctx, &c); ok {
		return t, nil
	}
	return v.full(ctx, c)
}

// full is Validate without the short way.
func (v *JWTValidator) full(ctx context.Context, c Credential) (Token, error) {
	if !v.observers.Any() {
		t, d, _, err := v.validate(ctx, &c, nil)
		if err != nil {
			v.refused(ctx, err, d)
		}
		return t, err
	}
	began := time.Now()
	t, d, hit, err := v.validate(ctx, &c, nil)
	if err != nil {
		v.refused(ctx, err, d)
	}
	o := Observation{Op: "validate", Token: t, Err: err, Hit: hit, Took: time.Since(began), Origin: originOf(ctx)}
	if err != nil && d != nil {
		o.Token = Token{d: d}
	}
	v.observers.Observe(ctx, o)
	return t, err
}

// refused counts a refusal, once. Only what a verified token says is recorded as a fact: d is nil before.
func (v *JWTValidator) refused(ctx context.Context, err error, d *tokenData) {
	if v.core != nil {
		v.core.refused(ctx, reasonOf(err), d)
	}
}

// lacks counts a good token that was refused for want of a scope: the verdict of Authorize.
func (v *JWTValidator) lacks(ctx context.Context, t Token, err error) {
	v.refused(ctx, err, t.d)
	if v.observers.Any() {
		v.observers.Observe(ctx, Observation{Op: "authorize", Token: t, Err: err, Origin: originOf(ctx)})
	}
}

// validate is the one path. It returns what is verified of a token that is refused all the same, for the audit,
// and whether the cache answered.
func (v *JWTValidator) validate(ctx context.Context, c *Credential, tr *trace) (t Token, verified *tokenData, hit bool, err error) {
	token := c.Token
	switch {
	case token == "":
		return Token{}, nil, false, tr.no("shape", fail(ErrNoToken, "no token came"))
	case len(token) > v.cfg.MaxTokenBytes:
		return Token{}, nil, false, tr.no("shape", fail(ErrInvalidToken, "%d bytes, at most %d are read", len(token), v.cfg.MaxTokenBytes))
	}
	if kind := opaque.KindOf(token); kind != opaque.None {
		if kind != opaque.APIKey || v.opaque == nil {
			return Token{}, nil, false, tr.no("shape", fail(ErrInvalidToken, "not a kind of token that APIs take"))
		}
		t, err := v.opaque(ctx, *c, tr)
		return t, t.d, false, err
	}
	if v.forms.Recognize(token) {
		t, err := v.imported(ctx, *c, tr)
		return t, t.d, false, err
	}

	h := v.cache.hash(token)
	if e := v.cache.find(v, h, token); e != nil && tr == nil {
		t, err := v.decide(ctx, c, e, true, nil)
		return t, &e.data, true, err
	}

	// Read before the check begins, so that what is cached is never newer than what it was checked against.
	gen := v.gen.Load()

	var parsed jws.Token
	p := &parsed
	iss, foreign := v.recognize(token)
	if iss != nil {
		p = &foreign.Token
		tr.ok("structure", "strict JWS and JSON")
		tr.ok("type", "of its issuer's profile")
	} else {
		if perr := v.headers.Parse(token, v.cfg.MaxTokenBytes, p); perr != nil {
			return Token{}, nil, false, tr.no("structure", &Error{Code: ErrInvalidToken, Detail: "malformed", Cause: perr})
		}
		tr.ok("structure", "strict JWS and JSON")
		if !jws.IsType(p.Header.Typ, jws.AccessType) {
			return Token{}, nil, false, tr.no("type", fail(ErrInvalidToken, "typ is not at+jwt (RFC 9068 §4)"))
		}
		tr.ok("type", jws.AccessType)
		iss = v.trusts[p.Claims.Issuer]
		if iss == nil || iss.reader != nil { // those with a profile take what recognize finds, and nothing else
			return Token{}, nil, false, tr.no("issuer", fail(ErrInvalidToken, "issuer is not trusted"))
		}
	}
	tr.ok("issuer", iss.issuer)
	key, kerr := iss.Key(ctx, p.Header.KID, p.Claims.Position)
	if kerr != nil {
		return Token{}, nil, false, tr.no("key", asError(kerr, "key"))
	}
	key = key.For(p.Header.Alg)
	if !key.Allows(p.Header.Alg) {
		return Token{}, nil, false, tr.no("algorithm", fail(ErrInvalidToken, "alg is not the key's own"))
	}
	if ferr := v.cfg.allows(p); ferr != nil {
		return Token{}, nil, false, tr.no("profile", ferr)
	}
	if !key.SignsFor(p.Claims.Audience) {
		return Token{}, nil, false, tr.no("key", fail(ErrInvalidToken, "its key signs for another audience"))
	}
	tr.ok("key", p.Header.KID)
	serr := key.Verify(p.SigningInput, p.Signature)
	if serr != nil && foreign != nil {
		serr = key.VerifyAny(p)
	}
	if serr != nil {
		return Token{}, nil, false, tr.no("signature", &Error{Code: ErrInvalidToken, Detail: "signature", Cause: serr})
	}
	tr.ok("signature", p.Header.Alg)
	v.headers.Learn(p)

	// From here on the claims are the issuer's.
	if foreign != nil {
		if rerr := v.read(iss, foreign); rerr != nil {
			return Token{}, nil, false, tr.no("claims", rerr)
		}
	}
	here := iss.takes(v.audiences, p.Claims.Audience)
	e, cerr := v.claims(iss, token, p, foreign, here || c.anywhere && iss.Local() && len(p.Claims.Audience) > 0) // for nobody is for nobody anywhere
	if cerr != nil {
		return Token{}, nil, false, tr.no("claims", cerr)
	}
	e.hash, e.gen, e.v = h, gen, v
	if tr != nil {
		tr.d = &e.data
	}
	tr.ok("claims", "required claims, audience, times in range")
	t, err = v.decide(ctx, c, e, false, tr)
	if here && err == nil { // what was refused is never kept; what is for others is never found by who asks for himself
		v.cache.keep(e)
	}
	return t, &e.data, false, err
}

// recognize finds the issuer whose profile says that token is its own, by typ and iss, which nobody vouches for yet. Where there is
// none, token is read as RFC 9068's.
func (v *JWTValidator) recognize(token string) (*trust, *legacy.Token) {
	if len(v.profiled) == 0 {
		return nil, nil
	}
	p, err := legacy.Parse(&v.headers, token, v.cfg.MaxTokenBytes)
	if err != nil {
		return nil, nil
	}
	name, ok := p.Issuer()
	if !ok {
		return nil, nil
	}
	for _, t := range v.profiled {
		if t.reader.Takes(name, p.Header.Typ) {
			return t, p
		}
	}
	return nil, nil
}

// read fills p's claims by the issuer's profile. The issuer's signature vouches for them.
func (v *JWTValidator) read(iss *trust, p *legacy.Token) *Error {
	if err := iss.reader.Read(p); err != nil {
		return &Error{Code: ErrInvalidToken, Detail: "not as its issuer's profile says", Cause: err}
	}
	p.Claims.Scope = strings.Join(p.Scopes, " ")
	if until := iss.reader.Until(); !until.IsZero() {
		if !v.now().Before(until) {
			return fail(ErrExpired, "the end of its issuer's profile has passed")
		}
		if last := until.Add(-v.cfg.late()).Unix(); p.Claims.Expires > last { // no tolerance of exp leads past it
			p.Claims.Expires = last
		}
	}
	return nil
}

// decide says yes or no to a token whose signature and claims were verified, now or before. known: it was checked
// against rules before, and only what is new needs to be looked at.
func (v *JWTValidator) decide(ctx context.Context, c *Credential, e *entry, known bool, tr *trace) (Token, error) {
	w := e.iss.Look()
	// Read before the rules are: what comes in meanwhile is checked at the next sight.
	if version := e.iss.Version(); !known || e.version.Load() != version {
		if rule := e.iss.Hit(&e.rule); rule != "" {
			return Token{}, tr.no("revocation", fail(ErrRevoked, "a rule on its %s", rule))
		}
		e.version.Store(version)
	}
	tr.ok("revocation", "no rule")
	return v.finish(ctx, c, e, w, tr)
}

// finish checks what must be checked at every sight: times by the real clock, the proof of a binding, the age of w, the
// view whose rules were checked. The clock is read last: a process that was stopped must not answer from before.
func (v *JWTValidator) finish(ctx context.Context, c *Credential, e *entry, w *follow.View, tr *trace) (Token, error) {
	now := v.now()
	if now.Add(-v.cfg.late()).Unix() >= e.exp {
		return Token{}, tr.no("expiry", e.iss.untimely(ErrExpired, "exp has passed"))
	}
	if sec := now.Add(v.cfg.ahead()).Unix(); sec < e.from {
		return Token{}, tr.no("expiry", e.iss.untimely(ErrInvalidToken, "not valid yet"))
	}
	tr.ok("expiry", "within nbf and exp")
	if (e.data.Binding != "" || c.DPoP != "") && !c.unproved {
		if err := v.proved(c, e.data.Binding, now, tr == nil); err != nil {
			return Token{}, tr.no("binding", err)
		}
		tr.ok("binding", "proved")
	}
	f := e.iss.freshness(w, now)
	if err := v.tooStale(e.iss, f); err != nil {
		return Token{}, tr.no("freshness", err)
	}
	if e.needs > f.Position.N {
		e.iss.Hurry() // its issuer knows more than we do; until we do too, our age counts
	}
	if tr != nil {
		tr.ok("freshness", f.Age.String())
	}
	if e.use != nil && tr == nil {
		e.use.Hit(now, addressOf(ctx))
	}
	return Token{d: &e.data, fresh: f}, nil
}

// tooStale refuses what a view of f's age cannot answer for.
func (v *JWTValidator) tooStale(iss *trust, f Freshness) *Error {
	if !f.Stale {
		return nil
	}
	iss.Hurry()
	if v.cfg.InsecureServeStale > 0 && f.Age <= v.cfg.InsecureServeStale {
		return nil
	}
	return unavailable(iss.Cause(), "the view of revocations is older than MaxStaleness")
}

// claims checks what does not change while the token lives, and makes the entry. by is what a profile makes of
// it, nil for RFC 9068. takes: its audience was found good.
func (v *JWTValidator) claims(iss *trust, token string, p *jws.Token, by *legacy.Token, takes bool) (*entry, *Error) {
	cl := &p.Claims
	var lax jws.Laxity
	var roles []string
	born := cl.IssuedAt
	if by != nil {
		lax, roles = iss.reader.Laxity(), by.Roles
		takes = takes || lax.NoAudience && len(cl.Audience) == 0
		if born == 0 {
			born = v.now().Unix() // it will not live longer than from now
		}
	}
	if why := cl.CheckAccess(lax, iss.own, roles); why != "" { // as Issue refuses them
		return nil, fail(ErrInvalidToken, "%s", why)
	}
	switch {
	case cl.Expires <= born:
		return nil, fail(ErrInvalidToken, "exp is not after iat")
	case time.Duration(cl.Expires-born) > time.Duration(iss.Life.Load())/time.Second && (by == nil || !by.Endless):
		return nil, fail(ErrInvalidToken, "it would live longer than its issuer allows")
	case !takes:
		return nil, fail(ErrInvalidToken, "not for this audience")
	}
	spec := TokenSpec{
		ID: cl.ID, Issuer: iss.issuer, Subject: cl.Subject, Audiences: cl.Audience,
		ExpiresAt: time.Unix(cl.Expires, 0), Binding: cl.Binding,
	}
	if cl.IssuedAt != 0 {
		spec.IssuedAt = time.Unix(cl.IssuedAt, 0)
	}
	e := newEntry(token)
	e.iss, e.bound, e.exp, e.from = iss, cl.Binding != "", cl.Expires, max(cl.NotBefore, cl.IssuedAt)
	scope := cl.Scope
	if !iss.own {
		scope = knownScopes(scope)
	}
	scopes, err := appendScopes(e.scopes[:0:len(e.scopes)], scope)
	if err != nil {
		return nil, fail(ErrInvalidToken, "scope claim")
	}
	switch {
	case iss.own:
		spec.Client, spec.Grant, spec.Roles, spec.Scopes = cl.ClientID, cl.SessionID, cl.Roles, scopes
	case by != nil:
		cl.Roles = roles
		spec.Roles, spec.Scopes = roles, intersectScopes(scopes, iss.scopes)
		if iss.reader.SameUsers() {
			spec.Client = cl.ClientID
		}
	default: // a foreign issuer's tokens bring no roles, none of our client names, and of the scopes what was declared
		spec.Scopes = intersectScopes(scopes, iss.scopes)
	}
	for _, a := range cl.Actors {
		spec.Actors = append(spec.Actors, a.Subject)
	}
	r := &e.rule
	if !iss.See(r, cl, p.Header.KID, spec.IssuedAt, v.cfg.late(), v.cfg.ahead()) {
		return nil, fail(ErrInvalidToken, "pos is missing or malformed")
	}
	e.needs = r.Pos.View.N
	e.data = tokenOf(spec, p.PrivateClaims())
	e.data.from, e.data.by = r, v
	if v.core != nil && iss.own && spec.Grant != "" {
		e.use = v.core.audit.Uses.Counter(usage.Grant, spec.Grant)
		e.data.use = e.use
	}
	return e, nil
}

// signedHere verifies that our own issuer signed token, or one with a profile, expired and revoked or not, and returns what it says,
// and the issuer whose names those are, empty for ours.
func (v *JWTValidator) signedHere(ctx context.Context, token string) (d *tokenData, issuer string, err error) {
	if iss, p := v.recognize(token); iss != nil {
		key, err := iss.Key(ctx, p.Header.KID, "")
		if err != nil {
			return nil, "", public(err)
		}
		if err := key.VerifyAny(&p.Token); err != nil {
			return nil, "", err
		}
		if err := iss.reader.Read(p); err != nil {
			return nil, "", err
		}
		if !iss.reader.SameUsers() {
			issuer = iss.issuer
		}
		return &tokenData{TokenSpec: TokenSpec{ID: p.Claims.ID, Issuer: iss.issuer, Subject: p.Claims.Subject, Client: p.Claims.ClientID}}, issuer, nil
	}
	d, err = v.signedByUs(token)
	return d, "", err
}

// signedByUs is signedHere for our own issuer.
func (v *JWTValidator) signedByUs(token string) (*tokenData, error) {
	var p jws.Token
	if err := jws.Parse(token, v.cfg.MaxTokenBytes, &p); err != nil {
		return nil, err
	}
	iss := v.trusts[p.Claims.Issuer]
	if iss == nil || !iss.own || !jws.IsType(p.Header.Typ, jws.AccessType) {
		return nil, fail(ErrInvalidToken, "of another issuer or kind")
	}
	key := (*iss.Issuer.Keys.Load())[p.Header.KID].For(p.Header.Alg)
	if key == nil || !key.Allows(p.Header.Alg) || !key.SignsFor(p.Claims.Audience) {
		return nil, fail(ErrInvalidToken, "unknown key")
	}
	if err := key.Verify(p.SigningInput, p.Signature); err != nil {
		return nil, err
	}
	return &tokenData{TokenSpec: TokenSpec{ID: p.Claims.ID, Issuer: iss.issuer, Subject: p.Claims.Subject,
		Client: p.Claims.ClientID, Grant: p.Claims.SessionID, ExpiresAt: time.Unix(p.Claims.Expires, 0), Binding: p.Claims.Binding}}, nil
}

// Recheck says whether a token that this validator returned before is still good: not expired, no rule against it, within the
// bound. It verifies no signature and asks for no proof again. For what lasts longer than a request.
func (v *JWTValidator) Recheck(ctx context.Context, t Token) error {
	err := v.recheck(t)
	if err != nil && !t.IsZero() && t.d.from != nil {
		v.refused(ctx, err, t.d)
	}
	return err
}

func (v *JWTValidator) recheck(t Token) error {
	if t.IsZero() {
		return fail(ErrInvalidToken, "no token")
	}
	iss := v.trusts[t.d.Issuer]
	if t.d.from == nil || iss == nil { // not a token of this validator's: its times are all that is known
		return v.ended(t, v.now())
	}
	w := iss.Look()
	if rule := iss.Hit(t.d.from); rule != "" {
		return fail(ErrRevoked, "a rule on its %s", rule)
	}
	if !t.IsAPIKey() && !iss.Holds(t.d.from.Kid) {
		return fail(ErrInvalidToken, "its key is no longer its issuer's")
	}
	now := v.now()
	if err := v.ended(t, now); err != nil {
		return err
	}
	if err := v.tooStale(iss, iss.freshness(w, now)); err != nil {
		return err
	}
	return nil
}

// isJWT reports whether t is as the JWT that it came from says, word for word.
func (v *JWTValidator) isJWT(t Token) bool {
	iss := v.trusts[t.d.Issuer]
	return !t.d.APIKey && iss != nil && iss.own
}

// ended is the end of a token by now, with the skew that Validate grants access tokens.
func (v *JWTValidator) ended(t Token, now time.Time) error {
	if t.d.ends != nil {
		if end := t.d.ends.Load(); end != 0 && now.UnixMilli() >= end {
			return fail(ErrExpired, "the key has ended")
		}
	}
	if !t.IsAPIKey() {
		now = now.Add(-v.cfg.late())
	}
	if end := t.d.ExpiresAt; !end.IsZero() && !now.Before(end) {
		return fail(ErrExpired, "exp has passed")
	}
	return nil
}

// Explain says how Validate and Check would decide and why: which checks ran, which rule decided, what would
// have been needed. It counts nothing, and spends no DPoP proof. For operators, never for callers.
func (v *JWTValidator) Explain(ctx context.Context, c Credential, r Requirement) Explanation {
	tr := &trace{}
	t, _, _, err := v.validate(ctx, &c, tr)
	x := Explanation{Token: t, Err: err}
	if err == nil && !r.public() {
		if x.Err = t.Check(r); x.Err != nil {
			tr.steps = append(tr.steps, Step{Name: "scope", Detail: "holds " + t.d.Scopes.String() + ", needs " + r.String()})
		} else {
			tr.ok("scope", r.String())
		}
	}
	if x.Token.IsZero() && tr.d != nil {
		x.Token = Token{d: tr.d}
	}
	x.Steps = tr.steps
	return x
}

// Observe adds o, until stop is called.
func (v *JWTValidator) Observe(o Observer) (stop func()) { return v.observers.Add(o) }

// Freshness is the oldest of the validator's views now, for health checks and metrics.
func (v *JWTValidator) Freshness() Freshness {
	var worst Freshness
	first := true
	for _, t := range v.trusts {
		if f := t.freshness(t.Look(), v.now()); first || f.Age > worst.Age {
			worst, first = f, false
		}
	}
	return worst
}

// Close ends the validator's goroutines.
func (v *JWTValidator) Close() error {
	v.stop()
	if v.forget != nil {
		v.forget()
	}
	v.wg.Wait()
	return nil
}

// Validate implements [Validator] for access tokens and API keys.
func (s *Service) Validate(ctx context.Context, c Credential) (Token, error) {
	if t, ok := s.valid.quick(ctx, &c); ok { // here, and not a call further: a Credential is large
		return t, nil
	}
	return s.valid.full(ctx, c)
}

// Recheck is [JWTValidator.Recheck].
func (s *Service) Recheck(ctx context.Context, t Token) error { return s.valid.Recheck(ctx, t) }

// Freshness is the service's view of revocations now, for health checks and metrics.
func (s *Service) Freshness() Freshness { return s.trust.freshness(s.trust.Look(), s.now()) }

// consumer is a Validator whose tokens may be limited by rate or by number of uses. [Authorize] calls it once for each
// request that it lets through; Validate alone never consumes anything. A Validator that only passes on what a [Service]
// answered need not be one: Authorize then asks that Service.
type consumer interface {
	// Consume takes one use of t: nil, ErrLimited, or ErrUnavailable.
	Consume(ctx context.Context, t Token) error
}

// Consume takes one use of t where the validator is a service's, as [Service.Consume] says.
func (v *JWTValidator) Consume(ctx context.Context, t Token) error {
	if v.consume == nil {
		return nil
	}
	return v.consume(ctx, t)
}

// met notes in c which scopes a request needed that was let through. Of several of which any is enough it notes one. It is on the
// path of every request: a request that asks for nothing new costs a look through a short list.
func met(c *usage.Counter, held heldScopes, r *Requirement) {
	list := c.Scopes()
	for _, s := range r.scopes {
		if slices.Contains(list, string(s)) {
			if r.kind == requireAny {
				return
			}
			continue
		}
		if r.kind == requireAny {
			if !held.allows(s) {
				continue
			}
			c.Asked(string(s))
			return
		}
		c.Asked(string(s))
	}
}

// proved checks the proof that came with a token against what the token is bound to. Whatever names a binding is
// refused unless its proof was presented and holds; a proof for a token that is not bound is refused too, so that
// nobody believes in a protection that is not there (RFC 9449 §7.1). A DPoP proof that holds counts as used only with spend.
func (v *JWTValidator) proved(c *Credential, binding string, now time.Time, spend bool) *Error {
	switch {
	case binding == "":
		return fail(ErrInvalidToken, "a proof came with a token that is not bound to a key")
	case isDPoP(binding):
		if c.DPoP == "" {
			return fail(ErrInvalidToken, "bound to a DPoP key, and came as a bearer token")
		}
		r := dpop.Request{Proof: c.DPoP, Method: c.Method, URL: c.URL, Token: c.Token}
		if err := v.proofs.Check(r, strings.TrimPrefix(binding, bindDPoP), now, spend); err != nil {
			return asError(err, "proof")
		}
		return nil
	case strings.HasPrefix(binding, bindCert):
		if c.CertSHA256 == ([32]byte{}) || c.DPoP != "" {
			return fail(ErrInvalidToken, "bound to a certificate that was not presented")
		}
		want := BindCertificate(c.CertSHA256)
		if subtle.ConstantTimeCompare([]byte(want), []byte(binding)) != 1 {
			return fail(ErrInvalidToken, "bound to another certificate")
		}
		return nil
	}
	return fail(ErrInvalidToken, "bound to what can't be proved here")
}

// Observe adds o, until stop is called. Metrics, traces and misuse detectors attach themselves by it.
func (s *Service) Observe(o Observer) (stop func()) { return s.valid.observers.Add(o) }

// ProofAlgorithms are the JWA names of the algorithms by which others may sign for v: DPoP proofs (RFC 9449 §7.1). The slice is
// the caller's own.
func (v *JWTValidator) ProofAlgorithms() []string { return slices.Clone(v.cfg.algorithms()) }

// ProofAlgorithms are the JWA names of the algorithms by which others may sign for s: DPoP proofs, clients' assertions. The
// slice is the caller's own.
func (s *Service) ProofAlgorithms() []string { return s.valid.ProofAlgorithms() }

// trace collects the steps of one validation for Explain; nil on the way of requests.
type trace struct {
	steps []Step
	d     *tokenData
}

func (tr *trace) ok(name, detail string) {
	if tr != nil {
		tr.steps = append(tr.steps, Step{Name: name, OK: true, Detail: detail})
	}
}

// no notes the step that failed and makes its error.
func (tr *trace) no(name string, err *Error) error {
	if tr != nil {
		tr.steps = append(tr.steps, Step{Name: name, Detail: detailOf(err)})
	}
	return err
}

// Explanation is the course of one validation.
type Explanation struct {
	Token Token // as far as its issuer's signature vouches for it; zero if not at all
	Err   error // the verdict
	Steps []Step
}

// Step is one check of a validation.
type Step struct {
	Name   string // "signature", "claims", "revocation", …
	OK     bool
	Detail string
}
