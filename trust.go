// The issuers whose tokens are taken, ours among them: keys, names and rules by which a token is judged.

package apitoken

import (
	"context"
	"slices"
	"time"

	"github.com/apitoken-go/apitoken/feed"
	"github.com/apitoken-go/apitoken/internal/follow"
	"github.com/apitoken-go/apitoken/internal/issuers"
	"github.com/apitoken-go/apitoken/internal/jws"
	"github.com/apitoken-go/apitoken/internal/legacy"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/profile"
)

// trust is an issuer as a validator takes its tokens.
type trust struct {
	Trusted
	issuers.Issuer
	issuer string
	own    bool           // positions, roles, scopes and clients are taken
	reader *legacy.Reader // reads its tokens, where they are not RFC 9068's
	scopes Scopes
	bound  time.Duration    // on the age of a view: MaxStaleness
	state  *follow.Follower // set for the service's own issuer: it feeds it
	home   *trust           // for a foreign issuer: our own, whose rules may name foreign principals; nil: nobody's
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
	return Freshness{Position: w.Pos, Age: max(age, 0), Stale: age > t.bound}
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

// accessType is the typ of RFC 9068's access tokens.
const accessType = "at+jwt"

// overlaps reports whether a token for has may be used where one of want is asked for.
func overlaps(want, has []string) bool {
	for _, a := range has {
		if slices.Contains(want, a) {
			return true
		}
	}
	return false
}
