// What a validator asks of an issuer at each token: its keys, the rule that matches it, how old the view is. None of it waits for
// the network.

package issuers

import (
	"context"
	"time"

	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/follow"
	"github.com/apitoken-go/apitoken/internal/jws"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/store"
)

// SetHome makes home's rules count for this issuer's tokens too: they may name foreign principals. It is called before Run.
func (t *Issuer) SetHome(home *Issuer) { t.home = home }

// Local reports whether this is the issuer of the service in this process, which follows its store.
func (t *Issuer) Local() bool { return t.c.State != nil }

// Version is of all rules that may match this issuer's tokens: where it is what it was, nothing is new about them.
func (t *Issuer) Version() uint64 {
	var n uint64
	if b := t.Rules.Load(); b != nil {
		n = b.Version.Load()
	}
	if t.home != nil {
		n += t.home.Version()
	}
	return n
}

// Hit says which rule refuses x, "" for none. A token of another issuer is looked for in two books: in its issuer's own, where its
// session, client and roles count, and as abroad in the home's.
func (t *Issuer) Hit(x *rules.Subject) string {
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

// See fills x, which is empty, with what rules see of a token with the claims c, which the key named kid signed. iat is c.IssuedAt, zero
// where the token has none: it may be as old as can be. late and ahead are how far behind and ahead of ours a clock may be. False: pos is
// missing or malformed.
//
// Of a foreign issuer's tokens its own rules know the names that they bring. Its positions are not believed: times are compared, and iat may
// be ahead of the revocation by as much as is accepted.
func (t *Issuer) See(x *rules.Subject, c *jws.Claims, kid string, iat time.Time, late, ahead time.Duration) bool {
	x.Subject, x.ID, x.Kid, x.Iat = c.Subject, c.ID, kid, iat
	x.Client, x.Grant, x.Roles, x.Chain = c.ClientID, c.SessionID, c.Roles, c.Chain
	for _, a := range c.Actors {
		actor := rules.Principal{Issuer: a.Issuer, Subject: a.Subject}
		if actor.Issuer == t.c.Name {
			actor.Issuer = "" // as its own principals stand in its own rules
		}
		x.Actors = append(x.Actors, actor)
	}
	if t.c.Own {
		pos, ok := rules.ParsePositions(c.Position)
		if !ok {
			return false
		}
		x.Pos, x.Skew = pos, late
		x.Descend()
	} else {
		x.Wall, x.Skew = true, ahead
	}
	if t.home != nil {
		x.Abroad = t.abroad(x)
	}
	return true
}

// abroad is what the home's rules see of a token of this issuer: who is named by issuer and subject together, and none of the names
// that are its issuer's business, unless they are the home's too. It has no position in the home's order: times are compared.
func (t *Issuer) abroad(x *rules.Subject) *rules.Subject {
	y := &rules.Subject{Issuer: t.c.Name, Subject: x.Subject, ID: x.ID, Kid: x.Kid, Iat: x.Iat, Skew: x.Skew, Wall: true}
	switch {
	case t.c.Own:
		y.Client, y.Grant, y.Roles, y.Chain = x.Client, x.Grant, x.Roles, x.Chain
	case t.c.SameUsers: // they are no longer another's
		y.Issuer, y.Client, y.Roles = "", x.Client, x.Roles
	default:
		y.AbroadClient = x.Client
	}
	for _, a := range x.Actors {
		switch a.Issuer {
		case "": // in its own book its own principals have no issuer
			a.Issuer = t.c.Name
		case t.home.c.Name:
			a.Issuer = ""
		}
		y.Actors = append(y.Actors, a)
	}
	return y
}

// Look returns the current view. Take it first, then look at the rules, then at the clock: then every rule that the view holds was
// looked at, and a pause of the process in between shows in its age.
func (t *Issuer) Look() *follow.View {
	switch {
	case t.c.State != nil:
		return t.c.State.View()
	case t.home == nil:
		return t.View.Load()
	case t.c.Feed == nil:
		return t.home.Look()
	}
	// The rules of both count: the older view does.
	w, home := t.View.Load(), t.home.Look()
	if w == nil || home != nil && home.Wall >= w.Wall {
		return w
	}
	return home
}

// Freshness is how far a view reaches, and how old it is. The root's type of this name has the same fields.
type Freshness struct {
	Position store.Position
	Age      time.Duration
	Stale    bool // older than Config.MaxStaleness
}

// Freshness is the age of w at now, by whichever clock shows more.
func (t *Issuer) Freshness(w *follow.View, now time.Time) Freshness {
	if t.c.Feed == nil && t.c.State == nil && t.home == nil { // nobody's rules are followed
		return Freshness{}
	}
	if w == nil || w.Wall == 0 {
		return Freshness{Age: 1<<63 - 1, Stale: true}
	}
	age := now.Sub(w.Sent)
	if wall := time.Duration(now.UnixNano() - w.Wall); wall > age {
		age = wall
	}
	return Freshness{Position: w.Pos, Age: max(age, 0), Stale: age > t.c.MaxStaleness}
}

// Hurry has all rules that count for this issuer's tokens read now.
func (t *Issuer) Hurry() {
	if t.c.State != nil {
		t.c.State.Wake()
		return
	}
	t.Wake()
	if t.home != nil {
		t.home.Hurry()
	}
}

// Key finds the key that a header names. position is the token's pos claim, which nobody vouches for yet. A missing key may be new:
// whoever can tell is asked. It does not wait for the network, but for the service's own store.
func (t *Issuer) Key(ctx context.Context, kid, position string) (*jws.PublicKey, error) {
	set := t.Keys.Load()
	if set == nil {
		return nil, fault.NoAnswer(t.Cause(), "the issuer's keys were never read or are too old")
	}
	if k := (*set)[kid]; k != nil {
		return k, nil
	}
	if kid == "" && len(*set) == 1 && !t.c.Own {
		for _, k := range *set {
			return k, nil // a foreign set of one key may do without kid (RFC 7515 §4.1.4)
		}
	}
	unknown := fault.Fail(fault.InvalidToken, "no key of this issuer has the token's kid")
	compromised := fault.Fail(fault.InvalidToken, "its signing key was declared compromised")
	switch {
	case kid == "":
		return nil, unknown
	case t.c.State == nil && t.Compromised(kid):
		return nil, compromised
	case t.c.State == nil:
		t.Missing(kid)
		if t.Outdated() {
			return nil, fault.NoAnswer(t.Cause(), "the issuer has another key set, which is being read")
		}
		return nil, unknown
	case t.Rules.Load().Signed(kid):
		return nil, compromised
	}

	// A token says how much its issuer had seen when it signed, the key ring included. An issuer that had seen no more than we have
	// knows no key that we do not.
	if p, ok := rules.ParsePositions(position); !ok || p.View.N <= t.c.State.Position().N {
		return nil, unknown
	}
	if err := t.c.State.Look(ctx); err != nil {
		return nil, fault.NoAnswer(err, "look for the token's signing key")
	}
	if k := (*t.Keys.Load())[kid]; k != nil {
		return k, nil
	}
	return nil, unknown
}
