// The issuers whose tokens are taken, ours among them: keys, names and rules by which a token is judged.

package apitoken

import (
	"slices"
	"time"

	"github.com/apitoken-go/apitoken/feed"
	"github.com/apitoken-go/apitoken/internal/follow"
	"github.com/apitoken-go/apitoken/internal/issuers"
	"github.com/apitoken-go/apitoken/internal/legacy"
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
