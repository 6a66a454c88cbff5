// What clients may do to themselves: manage their registration by its token (RFC 7592), or describe themselves in a document.

package apitoken

import (
	"context"
	"errors"
	"time"

	"github.com/apitoken-go/apitoken/internal/clientauth"
	"github.com/apitoken-go/apitoken/internal/clients"
	"github.com/apitoken-go/apitoken/internal/usage"
	"github.com/apitoken-go/apitoken/store"
)

// Register is Create for a client that asked for its own registration (RFC 7591) and is to manage it:
// it returns its registration token too, as RegistrationToken does. Within what the host allows
// then, the client may have more later than it asked for first.
func (cs *Clients) Register(ctx context.Context, c Client) (_ Client, secret, registration Secret, _ error) {
	return cs.create(ctx, c, true)
}

// RegistrationToken makes the credential with which a client manages its own registration (RFC 7592), in place of one
// that it had before: shown now and never again. A client that had none keeps its scopes, grant types and bindings as
// the most it may have, see Reregister.
func (cs *Clients) RegistrationToken(ctx context.Context, id string) (Secret, error) {
	var text string
	_, err := cs.revise(ctx, id, cs.read, func(rec *clients.Record) (*clients.Record, string, error) {
		var x clientauth.Secret
		text, x = cs.proofs.MakeRegistration(id)
		next := *rec
		next.Register(x)
		return &next, "registration token made", nil
	})
	if err != nil {
		return Secret{}, err
	}
	return NewSecret(text), nil
}

// Registered returns the client whose registration token this is. ErrInvalidToken: it is not id's, or the client is
// disabled.
func (cs *Clients) Registered(ctx context.Context, id string, token Secret) (Client, error) {
	g, err := cs.registration(ctx, token)
	if err != nil {
		return Client{}, err
	}
	rec, _, err := cs.registered(ctx, id, g)
	if err != nil {
		return Client{}, err
	}
	return clientFrom(id, rec), nil
}

// Reregister is Update for a client that presents its registration token to change itself (RFC 7592
// §2.2). What Update and Declare last made of its scopes, its grant types, BindDPoP and
// BindCertificate since its first registration token stays the most it may have, whatever f asks
// for; so does what a client had when RegistrationToken made its first one. ErrInvalidToken: as of
// Registered. What f refuses is recorded with the text of its error, which must hold no secret.
func (cs *Clients) Reregister(ctx context.Context, id string, token Secret, f func(*Client) error) (Client, error) {
	g, err := cs.registration(ctx, token)
	if err != nil {
		return Client{}, err
	}
	var most clients.Most
	read := func(ctx context.Context, id string) (*clients.Record, store.Version, error) {
		rec, v, err := cs.registered(ctx, id, g)
		if err == nil {
			most = rec.Most
		}
		return rec, v, err
	}
	c, err := cs.update(ctx, id, read, false, func(c *Client) error {
		ends := c.Expires
		if err := f(c); err != nil {
			return err
		}
		c.Expires = ends
		return cutTo(c, &most)
	})
	if !errors.Is(err, ErrInvalidToken) { // counted there
		cs.unregistered(ctx, refusal{usage.Refusal{Client: id}}, err)
	}
	return c, err
}

// registration reads a registration token. Junk ends here, without a store read.
func (cs *Clients) registration(ctx context.Context, token Secret) (clientauth.Generated, error) {
	g, err := cs.proofs.Read(ctx, token.Reveal())
	if err == nil && !g.Ours {
		err = fail(ErrInvalidToken, "not a registration token")
	}
	return g, public(err)
}

// registered is the record of the enabled client whose registration token g is.
func (cs *Clients) registered(ctx context.Context, id string, g clientauth.Generated) (*clients.Record, store.Version, error) {
	rec, v, err := cs.readOrNew(ctx, id)
	if err != nil {
		return nil, v, err
	}
	switch ours := rec.IsRegistration(cs.proofs.Registration(id, g)); {
	case ours && !rec.Disabled && !cs.proofs.Ended(rec.Registration):
		return rec, v, nil
	case ours: // whoever holds it was this client
		cs.unregistered(ctx, refusal{usage.Refusal{Client: id}}, fail(ErrDenied, "the client is disabled, or its registration token was revoked"))
	case cs.lookup(id) != nil: // of our making, and not its own, or no longer
		cs.unregistered(ctx, refusal{usage.Refusal{Claimed: id}}, fail(ErrDenied, "another registration token than the client's"))
	}
	return nil, v, fail(ErrInvalidToken, "not the registration token of client %q", id)
}

// unregistered counts what whoever presents a registration token may not do.
func (cs *Clients) unregistered(ctx context.Context, known refusal, err error) {
	cs.s.denied(ctx, "registration", known, err)
}

// cutTo cuts what a client asks for to what the host left it. A client of whose grant types nothing is
// left is refused, as at its registration.
func cutTo(c *Client, most *clients.Most) error {
	if most.Scopes != nil {
		c.Scopes = intersectScopes(c.Scopes, scopesOf(*most.Scopes))
	}
	if most.GrantTypes != nil {
		asked := len(c.GrantTypes)
		if c.GrantTypes = intersectTexts(c.GrantTypes, *most.GrantTypes); asked > 0 && len(c.GrantTypes) == 0 {
			return fail(ErrInvalidRequest, "the host has taken from client %q each grant type that it asks for", c.ID)
		}
	}
	c.BindDPoP = c.BindDPoP || most.BindDPoP
	c.BindCertificate = c.BindCertificate || most.BindCertificate
	return nil
}

// Clients that nobody here has made: they registered themselves, or described themselves in a document at the URL that is their
// ID. Anybody may make such a client, so each ends by itself. It is kept while people let it have tokens, and made the host's own
// by whatever the host changes of it.

const unusedClient = time.Hour // until somebody lets it have tokens

// Adopt makes the client c.ID be as its own description says, and writes nothing if it is so already: for an authorization server
// that reads client metadata documents. A client that is new ends after an hour if Keep does not move that on. Disabled, what
// Update has taken from a client, and its own audiences and lifetimes stay the host's. c has no secret.
//
// ErrDenied: it is disabled. ErrInvalidRequest: c contradicts itself, or its ID is that of a client which the host made and which
// is of the other kind, public or confidential. ErrLimited: most clients that end by themselves are there already.
func (cs *Clients) Adopt(ctx context.Context, c Client, most int) (Client, error) {
	if c.usesSecret() {
		return Client{}, fail(ErrInvalidRequest, "client %q describes itself and has a secret: everybody could read it", c.ID)
	}
	if err := cs.check(&c); err != nil {
		return Client{}, err
	}
	rec, err := cs.revise(ctx, c.ID, cs.readOrNew, func(rec *clients.Record) (*clients.Record, string, error) {
		c, now, fresh := c, cs.s.now(), rec.V == 0
		switch {
		case fresh && cs.Temporary() >= most:
			return nil, "", &Error{Code: ErrLimited, RetryAfter: unusedClient, Detail: "too many clients that made themselves"}
		case fresh:
			if err := cs.noSubject(ctx, c.ID); err != nil {
				return nil, "", err
			}
			c.Expires = now.Add(unusedClient)
			next := c.toRecord(rec)
			next.Created = now.UnixMilli()
			return next, "described itself", nil
		case rec.Disabled:
			return nil, "", fail(ErrDenied, "client %q is disabled", c.ID)
		case rec.Public != c.Public:
			return nil, "", fail(ErrInvalidRequest, "client %q cannot change between public and confidential", c.ID)
		}

		before := clientFrom(c.ID, rec)
		c.Audiences, c.Lifetimes, c.Expires = before.Audiences, before.Lifetimes, before.Expires
		if !c.Expires.IsZero() && !now.Before(c.Expires) {
			c.Expires = now.Add(unusedClient)
		}
		if err := cutTo(&c, &rec.Most); err != nil {
			return nil, "", err
		}
		next := c.toRecord(rec)
		if rec.Same(next) {
			return nil, "", nil
		}
		return next, "described itself anew", nil
	})
	if err != nil {
		return Client{}, err
	}
	return clientFrom(c.ID, rec), nil
}

// Keep moves on the end of a client that ends by itself, since somebody lets it have tokens: it lives for as long as what it gets
// now, and longer. Of a client that stays anyway it does nothing. ErrNotFound.
func (cs *Clients) Keep(ctx context.Context, id string) error {
	_, err := cs.revise(ctx, id, cs.read, func(rec *clients.Record) (*clients.Record, string, error) {
		// With room to spare, so that a client that is in use is written once in the life of a grant.
		c := clientFrom(id, rec)
		life := cs.s.lifetimes(&c).Grant
		now := cs.s.now()
		if rec.Expires == 0 || now.Add(life+life/4).UnixMilli() < rec.Expires {
			return nil, "", nil
		}
		next := *rec
		next.Expires = now.Add(2*life + unusedClient).UnixMilli()
		return &next, "kept", nil
	})
	return err
}

// Temporary is the number of clients that end by themselves, as this process knows them.
func (cs *Clients) Temporary() int { return cs.known.Passing() }
