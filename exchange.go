// Exchange: a token for a narrower one (RFC 8693). Its plan only; issuer.go makes the token.

package apitoken

import (
	"context"
	"slices"

	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/internal/granttype"
	"github.com/apitoken-go/apitoken/internal/jws"
)

// An exchange makes a narrower token of one that is good (RFC 8693). Its own is what it descends from: the token, and the actor's
// beside it, whose chains it carries on.

// Exchange implements [Issuer].
func (s *Service) Exchange(ctx context.Context, r ExchangeRequest) (*Issued, error) {
	return s.serve(ctx, "exchange", func(known *refusal) (*Issued, error) { return s.exchange(ctx, r, known) })
}

// exchange notes in known which client asks, and whose token it has.
func (s *minter) exchange(ctx context.Context, r ExchangeRequest, known *refusal) (*Issued, error) {
	if err := s.audit.ready(); err != nil { // before a use of an API key is spent
		return nil, err
	}
	m := s.begin(ctx)
	who, err := s.clients.caller(ctx, r.Auth)
	if err != nil {
		return nil, err
	}
	if who.none() {
		return nil, fail(ErrInvalidClient, "a client that exchanges tokens has to prove who it is")
	}
	known.by(&who)
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
	if p.scopes = most.all(); len(r.Scopes) > 0 {
		if p.scopes, err = most.take(r.Scopes); err != nil {
			return nil, err
		}
	}
	if len(r.Audiences) > 0 {
		p.audiences, err = most.targets(r.Audiences)
	} else if p.audiences = meetAudiences(token.Audiences, most.audiences); len(p.audiences) == 0 {
		err = fail(ErrInvalidTarget, "client %q may ask for none of the token's audiences: it must name one of its own", c.ID)
	}
	if err != nil {
		return nil, err
	}
	if r.Binding != "" {
		if err := checkBinding(r.Binding); err != nil {
			return nil, err
		}
		p.binding = r.Binding
	}
	if p.life, err = most.lifetime(r.Lifetime); err != nil {
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
