// Refresh and Exchange: a token that a client has is judged, and what it gets for it is planned. A refresh token that was used twice
// ends its session here. issuer.go signs and writes.

package apitoken

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/internal/granttype"
	"github.com/apitoken-go/apitoken/internal/jws"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/internal/ratchet"
	"github.com/apitoken-go/apitoken/internal/revoke"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/internal/text"
	"github.com/apitoken-go/apitoken/store"
)

// A refresh makes the next token of a session. Its own is to judge the refresh token, as package ratchet places it: the record's own
// is spent for a new one, its predecessor gets the same answer again while the grace lasts, and an older one, or one in the hands of
// another client, ends the session: somebody has a copy.

// Refresh implements [Issuer].
func (s *Service) Refresh(ctx context.Context, r RefreshRequest) (*Issued, error) {
	return s.serve(ctx, "refresh", func(known *refusal) (*Issued, error) { return s.refresh(ctx, r, known) })
}

// refreshing is one call of Refresh.
type refreshing struct {
	*minter
	r       RefreshRequest
	who     *caller
	known   *refusal
	t       *ratchet.Token
	id      string       // of the session
	tries   int          // that have begun
	wrote   *grantRecord // by this call, in version
	version store.Version
}

// refresh notes in known whose token it is.
func (s *minter) refresh(ctx context.Context, r RefreshRequest, known *refusal) (*Issued, error) {
	known.confirmed(s.clients, &r.Auth)
	t, err := s.ratchet.Read(ctx, r.Token)
	if err != nil {
		return nil, public(err)
	}
	who, err := s.clients.caller(ctx, r.Auth, "", known) // a stranger's failed authentication never reaches the session
	if err != nil {
		return nil, err
	}
	x := &refreshing{minter: s, r: r, who: &who, known: known, t: t, id: opaque.ID(t.Grant).String()}
	known.Grant = x.id // the tag is ours
	i, err := s.make(ctx, s.begin(ctx), func(m moment) (*plan, error) { return x.plan(ctx, m) })
	if err == nil && x.wrote != nil && x.wrote.Owed && ctx.Err() == nil { // else nobody is there to take the answer
		_ = x.answered(ctx, x.wrote, x.version) // what cannot be noted may be asked for once more
	}
	return i, err
}

// plan reads the session and judges the token.
func (x *refreshing) plan(ctx context.Context, m moment) (*plan, error) {
	if x.wrote != nil { // the token is spent by now: the answer is made of what is allowed since
		if _, _, err := x.owner(x.wrote); err != nil {
			return nil, err
		}
		return x.planNext(ctx, m, x.wrote)
	}
	x.tries++
	first := x.tries == 1
	g, rec, err := x.sessions.read(ctx, x.id)
	if isNotFound(err) {
		return nil, fail(ErrInvalidGrant, "the grant has ended long ago")
	}
	if err != nil {
		return nil, err
	}
	x.known.whose(x.who, g.Subject, g.Client, x.id)
	if m, err = x.reach(ctx, m, birth{g.Birth}); err != nil { // before its client is looked for
		return nil, err
	}
	owner, foreign, err := x.owner(g)
	if err != nil {
		return nil, err
	}

	place, next, err := x.ratchet.Place(x.t, &g.State)
	if err != nil {
		return nil, public(err)
	}
	switch place {
	case ratchet.Ahead:
		x.alert(ctx, "store-went-back", Event{Subject: g.Subject, Client: g.Client, Grant: x.id})
		return nil, tryAgain("a refresh token ahead of its record: the store has lost writes")
	case ratchet.Forged:
		x.alert(ctx, "refresh-hash", Event{Subject: g.Subject, Client: g.Client, Grant: x.id})
		return nil, fail(ErrInvalidGrant, "tagged by our key and not the record's: a key has leaked or the record was edited")
	}
	if foreign { // a client that proved who it is holds another's token
		return nil, x.endSession(ctx, g, event.Leaked, "refresh token in the hands of another client")
	}
	switch place {
	case ratchet.Current:
		return x.planRotation(ctx, m, &owner, g, rec.Version)
	case ratchet.Previous:
		if p, err := x.planRepeat(ctx, m, &owner, g, rec, next, first); p != nil || err != nil {
			return p, err
		}
	}
	switch {
	case first:
		return nil, x.endSession(ctx, g, event.Reused, "refresh token reused")
	case x.cfg.Refresh.Grace == 0: // to ask again would be reuse
		return nil, fail(ErrInvalidGrant, "a parallel request with the same refresh token was first, and its answer is the only one")
	}
	// A parallel request has moved on since this one began; that is no proof of a copy.
	return nil, tryAgain("parallel refreshes of the same grant")
}

// owner checks who presents the token against whose it is. foreign: a client that proved to be another.
func (x *refreshing) owner(g *grantRecord) (owner Client, foreign bool, err error) {
	if owner, err = x.clientOf(g.Client); err != nil {
		return owner, false, err
	}
	switch who := x.who; {
	case !who.none() && who.id() != g.Client:
		if who.public {
			return owner, false, fail(ErrInvalidGrant, "another client's refresh token") // anybody can claim to be a public client
		}
		return owner, true, nil
	case !owner.Public && who.none():
		return owner, false, fail(ErrInvalidClient, "client %q must authenticate", g.Client)
	case g.Client != x.cfg.FirstParty && !slices.Contains(owner.GrantTypes, granttype.RefreshToken):
		return owner, false, fail(ErrDenied, "client %q has the grant type refresh_token no more", g.Client)
	case g.Binding != "" && owner.Public && x.r.Binding != g.Binding:
		return owner, false, fail(ErrInvalidGrant, "the grant is bound to another key")
	}
	return owner, false, nil
}

// endSession revokes a session of which somebody has a copy, once. It waits for no auditor.
func (x *refreshing) endSession(ctx context.Context, g *grantRecord, why event.Type, reason string) error {
	if err := x.alive(x.id, g); err != nil {
		return err // it has ended already
	}
	if err := x.revoke.Write(ctx, nil, revoke.Rule{Target: rules.ByGrant(x.id), Reason: reason, Type: why}); err != nil {
		return public(err)
	}
	return fail(ErrInvalidGrant, "%s: the grant is revoked", reason)
}

// planNext is the next token of the session, as narrow as is asked.
func (x *refreshing) planNext(ctx context.Context, m moment, g *grantRecord) (*plan, error) {
	asked := Request{Grant: x.id, Scopes: x.r.Scopes, Audiences: x.r.Audiences, Binding: x.r.Binding, Lifetime: lifeOf(g)}
	p, err := x.planUnder(ctx, m, g, asked, event.Refreshed)
	if err != nil {
		return nil, err
	}
	p.refresh = x.r.Token
	return p, nil
}

// lifeOf is what was asked for, of the session's access tokens.
func lifeOf(g *grantRecord) time.Duration { return time.Duration(g.Life) * time.Second }

// planRotation spends the record's own token with one compare-and-swap, for its successor where tokens of this client rotate. A
// failure before that burns nothing.
func (x *refreshing) planRotation(ctx context.Context, m moment, owner *Client, g *grantRecord, v store.Version) (*plan, error) {
	p, err := x.planNext(ctx, m, g)
	if err != nil {
		return nil, err
	}
	next := *g
	if x.cfg.Refresh.RotateConfidential || owner.Public && g.Binding == "" {
		if next.State, p.refresh, err = x.ratchet.Next(x.t); err != nil {
			return nil, public(err)
		}
		next.Rotated = 0
	}
	rotates := next.Seq != g.Seq
	next.Owed = rotates && x.cfg.Refresh.Grace == 0
	if !rotates && g.Idle == 0 {
		return p, nil
	}
	p.writes = func(c *change, t stamp) error {
		p.note(&next, t)
		return x.sessions.put(c, x.id, &next, v)
	}
	token := p.refresh
	p.wrote = func(v store.Version) { x.wrote, x.version, x.r.Token = &next, v, token }
	return p, nil
}

// planRepeat answers a request that was repeated with what the first one got: the same refresh token, and an access token with the same
// jti and times, or a new one where that has expired. There is nothing new, so there is nothing to write, and racers do not conflict.
// nil: the predecessor's time is over.
func (x *refreshing) planRepeat(ctx context.Context, m moment, owner *Client, g *grantRecord, rec store.Record, next string, first bool) (*plan, error) {
	// Asked now: what others have revoked is not handed out again, and the store's clock says how long ago it was.
	if err := x.state.Refresh(ctx); err != nil {
		return nil, unavailable(err, "look for revocations")
	}
	age, ok := x.state.Since(g.Written(rec), g.Refreshed)
	grace := x.cfg.Refresh.Grace
	proved := !owner.Public || g.Binding != "" // they may ask again until they have used the answer
	once := grace == 0 && g.Owed && ok && age < maxGrace
	switch {
	case grace > 0 && (proved || !first || ok && age < grace) || once:
	case grace > 0 && !ok:
		return nil, fail(ErrInvalidGrant, "spent, and the clocks have gone back since: nobody can tell when")
	default:
		return nil, nil
	}

	asked := Request{Grant: x.id, Binding: cmp.Or(x.r.Binding, g.Bound), Lifetime: lifeOf(g)}
	p, err := x.planUnder(ctx, m, g, asked, event.Refreshed)
	if err != nil {
		return nil, err
	}
	p.refresh = next
	p.scopes = intersectScopes(g.Narrow, p.scopes)
	if len(g.For) > 0 {
		if p.narrow = text.Resources(g.For, p.audiences); len(p.narrow) == 0 {
			return nil, fail(ErrInvalidGrant, "none of its audiences may be asked for any more")
		}
	}
	if end := time.UnixMilli(g.EXP); x.now().Before(end) {
		p.given = &stamp{jti: g.JTI, grant: x.id, iat: time.UnixMilli(g.IAT), exp: end}
	}
	if once { // of a rotation whose outcome was unknown the answer is given once more
		p.last = func() error { return x.answered(ctx, g, rec.Version) }
	}
	return p, nil
}

// answered notes that the answer with g's refresh token goes out, so that there is no second one. store.ErrConflict: it was asked for
// again meanwhile.
func (x *refreshing) answered(ctx context.Context, g *grantRecord, v store.Version) error {
	next := *g
	next.Owed = false
	// The store's time of the rotation changes with this write, and nobody asks for it any more.
	c := x.newChange()
	if err := x.sessions.put(c, x.id, &next, v); err != nil {
		return err
	}
	_, err := x.commit(ctx, c)
	return err
}

// An exchange makes a narrower token of one that is good (RFC 8693). Its own is what it descends from: the token, and the actor's
// beside it, whose chains it carries on.

// Exchange implements [Issuer].
func (s *Service) Exchange(ctx context.Context, r ExchangeRequest) (*Issued, error) {
	return s.serve(ctx, "exchange", func(known *refusal) (*Issued, error) { return s.exchange(ctx, r, known) })
}

// exchange notes in known which client asks, and whose token it has.
func (s *minter) exchange(ctx context.Context, r ExchangeRequest, known *refusal) (*Issued, error) {
	if err := s.ready(); err != nil { // before a use of an API key is spent
		return nil, err
	}
	m := s.begin(ctx)
	who, err := s.clients.caller(ctx, r.Auth, "", known)
	if err != nil {
		return nil, err
	}
	if who.none() {
		return nil, fail(ErrInvalidClient, "a client that exchanges tokens has to prove who it is")
	}
	c, err := who.now(s.clients)
	if err != nil {
		return nil, err
	}
	if err := mayExchange(&c); err != nil { // before a proof is spent
		return nil, err
	}

	token, err := s.validateHeld(ctx, r.Token, r.Binding)
	if err != nil {
		return nil, err
	}
	known.Issuer, known.Subject, known.Token, known.Grant = s.foreignIssuer(token.d), token.d.Subject, token.d.ID, token.d.Grant
	from, ours := token.birth(s.core)
	if !ours { // another's subjects and positions are not ours, whatever we trust it with
		return nil, fail(ErrInvalidRequest, "only tokens of this service are exchanged")
	}
	used := []Token{token}
	if r.Actor.IsZero() {
		if err := mayExchange(&c, used...); err != nil {
			return nil, err
		}
	} else {
		actor, err := s.validateHeld(ctx, r.Actor, r.Binding)
		if err != nil {
			return nil, err
		}
		acts, ours := actor.birth(s.core)
		if !ours {
			return nil, fail(ErrInvalidRequest, "only tokens of this service name actors")
		}
		used, from = append(used, actor), from.earlier(acts)
	}

	first := true
	return s.make(ctx, m, func(m moment) (*plan, error) {
		if !first { // what it is made of was looked at before
			for _, t := range used {
				if err := t.recheck(); err != nil {
					return nil, err
				}
			}
		}
		p, err := s.planExchange(ctx, m, from, &r, &who, used)
		if err != nil || !first {
			return p, err
		}
		first = false
		// The exchanged token has no limit of uses or rate: the exchange itself takes one use of the API key.
		for _, t := range used {
			if err := s.apiKeys.take(ctx, t); err != nil {
				return nil, err
			}
		}
		return p, nil
	})
}

// mayExchange reports whether c may exchange used, the token and after it the actor's, as far as they are known.
func mayExchange(c *Client, used ...Token) error {
	switch {
	case !slices.Contains(c.GrantTypes, granttype.TokenExchange):
		return fail(ErrDenied, "client %q has no grant type token-exchange", c.ID)
	case c.MayImpersonate:
	case len(used) == 1:
		return fail(ErrDenied, "client %q may exchange only with an actor's token", c.ID)
	case len(used) == 2 && used[0].Subject() == used[1].Subject():
		return fail(ErrDenied, "the actor is the subject itself: client %q may exchange only with another's token", c.ID)
	}
	return nil
}

// planExchange is what the client gets of used, the token and after it the actor's.
func (s *minter) planExchange(ctx context.Context, m moment, from birth, r *ExchangeRequest, who *caller, used []Token) (*plan, error) {
	m, err := s.reach(ctx, m, from)
	if err != nil {
		return nil, err
	}
	c, err := who.now(s.clients)
	if err != nil {
		return nil, err
	}
	if err := mayExchange(&c, used...); err != nil { // it may have lost that since
		return nil, err
	}
	token := used[0].d
	p := &plan{client: c, subject: token.Subject, roles: token.Roles, claims: token.claim, binding: token.Binding,
		moment: m, from: from, until: token.ExpiresAt, event: event.Exchanged}
	// Every actor of the chain is kept: who acts now comes first (RFC 8693 §4.1).
	for _, t := range used[1:] {
		p.actors, p.chain = append(p.actors, jws.Actor{Subject: t.d.Subject}), t.d.from.Lineage()
	}
	for _, a := range token.from.Actors {
		p.actors = append(p.actors, jws.Actor{Subject: a.Subject, Issuer: a.Issuer})
	}
	if p.chain = append(p.chain, token.from.Lineage()...); len(p.chain) > maxChain || len(p.actors) > maxActors {
		return nil, fail(ErrInvalidRequest, "the chain of exchanges is too long")
	}
	p.chain = slices.Compact(slices.Sorted(slices.Values(p.chain)))

	most := s.ceiling(&c)
	most.meet("the token", token.Scopes)
	most.whole = true
	asked := Request{Scopes: r.Scopes, Audiences: r.Audiences, Lifetime: r.Lifetime, Binding: r.Binding}
	if len(r.Audiences) == 0 {
		if asked.Audiences = text.Resources(token.Audiences, most.audiences); len(asked.Audiences) == 0 {
			return nil, fail(ErrInvalidTarget, "client %q may ask for none of the token's audiences: it must name one of its own", c.ID)
		}
	}
	if err := p.below(&most, &asked); err != nil {
		return nil, err
	}

	for _, t := range used { // the subject, and the actor where it is a user too
		if t.IsClient() {
			continue
		}
		if err := s.mayContinue(ctx, Grant{Subject: t.Subject(), Client: c.ID, Scopes: p.scopes, Roles: t.d.Roles}); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// validateHeld validates c for a caller who has proved to hold the key of binding already. What comes to be exchanged was
// mostly sent to another service, which continues with it: its audience need not be ours (RFC 8693 §1).
func (s *minter) validateHeld(ctx context.Context, c Credential, binding string) (Token, error) {
	c.anywhere = true
	if binding == "" || c.DPoP != "" {
		return s.valid.Validate(ctx, c)
	}
	c.unproved = true
	t, err := s.valid.Validate(ctx, c)
	if err != nil {
		return t, err
	}
	if b := t.d.Binding; b != "" && b != binding && (c.CertSHA256 == [32]byte{} || b != BindCertificate(c.CertSHA256)) {
		return Token{}, fail(ErrInvalidToken, "bound to a key that was not proved")
	}
	return t, nil
}
