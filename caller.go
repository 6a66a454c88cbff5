// Client authentication: which client calls, proved once before each call. Also what a client does to its own record: by its
// registration token (RFC 7592), or by a document. internal/clientauth checks secrets, assertions and certificates.

package apitoken

import (
	"context"
	"crypto/x509"
	"errors"
	"time"

	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/internal/clientauth"
	"github.com/apitoken-go/apitoken/internal/clients"
	"github.com/apitoken-go/apitoken/internal/source"
	"github.com/apitoken-go/apitoken/internal/usage"
	"github.com/apitoken-go/apitoken/store"
)

// ClientAuth is a client's credential: ID and one of the others, or ID alone for a public client.
type ClientAuth struct {
	ID     string
	Secret Secret
	// Assertion is a JWT that the client signed (RFC 7523 §2.2), good once; ID may then be empty. Its aud must be this issuer and
	// nothing else (draft-ietf-oauth-rfc7523bis §4), or one of Endpoints.
	Assertion Secret
	// Endpoints are URLs that an assertion may be for as well, such as the token endpoint's: for clients that cannot name the
	// issuer. A server that a client is led to believe is this one could then use what the client signs for it. Empty: none; with
	// Config.FAPI they are not looked at.
	Endpoints []string
	// Certificate is what the client's TLS connection showed (RFC 8705 §2). CertificateVerified says that its chain was
	// verified up to a CA that names clients.
	Certificate         *x509.Certificate
	CertificateVerified bool

	confirmed *confirmation
}

// confirmation is the outcome of an authentication, carried on to the calls that follow it in one request.
type confirmation struct {
	of    *Clients
	id    string
	proof clientauth.Proof
}

// caller is the client that asks for something. It is found out once in a request, before anything is planned; each try looks
// whether it still holds.
type caller struct {
	auth   ClientAuth // its ID, and what was proved; zero: no client came, the host itself asks
	public bool       // anybody can claim to be that client
}

// caller confirms who asks, and names it in known. A zero a is nobody: the host itself asks. named is the client that the host names
// beside it, if it names one: another process may have made that a moment ago, so this one looks. ErrInvalidRequest: it is another one.
func (cs *Clients) caller(ctx context.Context, a ClientAuth, named string, known *refusal) (who caller, err error) {
	another := func(id string) bool { return named != "" && id != "" && id != named }
	if another(a.ID) { // before a proof is spent
		return who, fail(ErrInvalidRequest, "Client and Auth name different clients")
	}
	if !a.isZero() {
		c, auth, err := cs.prove(ctx, a)
		if err != nil {
			return who, err
		}
		who = caller{auth, c.Public}
		known.by(&who)
	}
	if another(who.id()) {
		return who, fail(ErrInvalidRequest, "Client and Auth name different clients")
	}
	return who, cs.await(ctx, named)
}

func (x *caller) none() bool { return x.auth.isZero() }

func (x *caller) id() string { return x.auth.ID }

// now is the client as it is known at this try: it may have been disabled since, and its secret may have ended.
func (x *caller) now(cs *Clients) (Client, error) { return cs.still(&x.auth) }

// by names the client that asks: as a fact if it proved who it is, or else as claimed.
func (r *refusal) by(who *caller) {
	switch {
	case who.none():
	case who.public:
		r.Claimed = who.id()
	default:
		r.Client = who.id()
	}
}

// whose names whose session or ticket is presented, and who presents it, if that is another client.
func (r *refusal) whose(who *caller, subject, client, grant string) {
	r.Subject, r.Client, r.Grant, r.Claimed = subject, client, grant, ""
	if !who.none() && who.id() != client {
		r.Claimed = who.id()
	}
}

// confirmed is by for a client that was confirmed earlier in the request: it is known before anything else of the call is read.
func (r *refusal) confirmed(cs *Clients, a *ClientAuth) {
	if a.confirmed == nil {
		return
	}
	if c, err := cs.still(a); err == nil {
		r.by(&caller{*a, c.Public})
	}
}

// namesOnly reports whether a is an ID alone, which anybody may say.
func (a *ClientAuth) namesOnly() bool {
	return a.ID != "" && a.Secret.IsZero() && a.Assertion.IsZero() && a.Certificate == nil && a.confirmed == nil
}

// isZero reports whether a holds nothing that came from a client: the host speaks for itself.
func (a ClientAuth) isZero() bool {
	return a.ID == "" && a.Secret.IsZero() && a.Assertion.IsZero() && a.Certificate == nil
}

// Authenticate confirms a client, in constant time: ErrInvalidClient, never saying whether the ID or the secret was
// wrong; ErrLimited when too many failures came from one source for one client, or when too many secrets that hosts chose
// wait to be checked. A correct secret of our making always passes, and names that no client has wait behind those that
// have a chosen one, so that a stranger cannot lock the client out.
func (cs *Clients) Authenticate(ctx context.Context, a ClientAuth) (Client, error) {
	c, _, err := cs.confirm(ctx, a)
	return c.own(), err
}

// confirm is Authenticate, and says by what it was convinced.
func (cs *Clients) confirm(ctx context.Context, a ClientAuth) (Client, *confirmation, error) {
	if a.confirmed != nil { // earlier in the same request
		c, err := cs.still(&a)
		cs.refused(ctx, a.ID, err)
		return c, a.confirmed, err
	}
	began := time.Now()
	c, proof, err := cs.authenticate(ctx, &a)
	cs.refused(ctx, a.ID, err)
	cs.s.observe(ctx, Observation{Op: "authenticate", Client: a.ID, Err: err, Took: time.Since(began)})
	return c, &confirmation{cs, a.ID, proof}, err
}

// refused counts an authentication that failed, or that served nothing as the client is disabled.
func (cs *Clients) refused(ctx context.Context, id string, err error) {
	if err == nil {
		return
	}
	r := usage.Refusal{Kind: string(event.ClientRefused), Reason: reasonOf(err)}
	known := cs.lookup(id)
	why := ""
	switch {
	case errors.Is(err, ErrInvalidClient), errors.Is(err, ErrLimited):
		if known != nil { // any other name is whatever a stranger likes to write into the log
			r.Claimed = id
		}
	case errors.Is(err, ErrDenied): // its credential was right
		why = whyOf(err)
		if known == nil || known.Record.Public {
			r.Claimed = id
		} else {
			r.Client = id
		}
	default:
		return
	}
	cs.s.audit.Tally.Count(r, why, originOf(ctx).Address)
}

func (cs *Clients) authenticate(ctx context.Context, a *ClientAuth) (Client, clientauth.Proof, error) {
	x := &clientauth.Attempt{Client: a.ID, Source: source.Of(originOf(ctx).Address), Secret: a.Secret.Reveal(),
		Assertion: a.Assertion.Reveal(), Endpoints: a.Endpoints, Certificate: a.Certificate, Verified: a.CertificateVerified}
	k, proof, err := cs.known.Authenticate(ctx, x)
	if a.ID = x.Client; err != nil { // as the assertion names it, where a does not
		return Client{}, proof, public(err)
	}
	return k.Client, proof, nil
}

// Confirm is Authenticate for adapters that have more than one call to make: the ClientAuth that it returns carries the
// outcome, so that an assertion, which is good once, is not used twice. Keep it no longer than the request.
func (cs *Clients) Confirm(ctx context.Context, a ClientAuth) (Client, ClientAuth, error) {
	c, auth, err := cs.prove(ctx, a)
	return c.own(), auth, err
}

// prove is Confirm with a Client whose lists are shared.
func (cs *Clients) prove(ctx context.Context, a ClientAuth) (Client, ClientAuth, error) {
	c, proof, err := cs.confirm(ctx, a)
	if err != nil {
		return Client{}, ClientAuth{}, err
	}
	return c, ClientAuth{ID: c.ID, confirmed: proof}, nil
}

// still is what a confirmation is worth now: the client may have been disabled since, and the secret that convinced us may
// have ended, so that nothing more comes of it once this process has heard.
func (cs *Clients) still(a *ClientAuth) (Client, error) {
	p := a.confirmed
	if p.of != cs || p.id != a.ID {
		return Client{}, fail(ErrInvalidClient, "confirmed by another service, or for another client")
	}
	k, err := cs.known.Still(p.id, p.proof)
	if err != nil {
		return Client{}, public(err)
	}
	return k.Client, nil
}

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
