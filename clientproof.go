// Which client calls, in Clients.caller, once in front of each call. internal/clients and internal/clientauth decide whether it is the
// one that it says.

package apitoken

import (
	"context"
	"errors"
	"time"

	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/internal/clientauth"
	"github.com/apitoken-go/apitoken/internal/source"
	"github.com/apitoken-go/apitoken/internal/usage"
)

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
	if a.ID == "" && !a.Assertion.IsZero() {
		a.ID = clientauth.Claimant(a.Assertion.Reveal())
	}
	began := time.Now()
	c, proof, err := cs.authenticate(ctx, &a)
	cs.s.observe(ctx, Observation{Op: "authenticate", Client: a.ID, Err: err, Took: time.Since(began)})
	cs.refused(ctx, a.ID, err)
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
	if !a.Secret.IsZero() && !a.Assertion.IsZero() {
		return Client{}, clientauth.Proof{}, fail(ErrInvalidRequest, "a secret and an assertion: one of them (RFC 6749 §2.3)")
	}
	k, proof, err := cs.known.Authenticate(ctx, &clientauth.Attempt{Client: a.ID, Source: source.Of(originOf(ctx).Address), Secret: a.Secret.Reveal(),
		Assertion: a.Assertion.Reveal(), Endpoints: a.Endpoints, Certificate: a.Certificate, Verified: a.CertificateVerified})
	if err != nil {
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

// caller is the client that asks for something. It is found out once in a request, before anything is planned; each try looks
// whether it still holds.
type caller struct {
	auth   ClientAuth // its ID, and what was proved; zero: no client came, the host itself asks
	public bool       // anybody can call himself that
}

// caller confirms who asks. A zero a is nobody.
func (cs *Clients) caller(ctx context.Context, a ClientAuth) (caller, error) {
	if a.isZero() {
		return caller{}, nil
	}
	c, auth, err := cs.prove(ctx, a)
	if err != nil {
		return caller{}, err
	}
	return caller{auth, c.Public}, nil
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

// confirmed is by for a client that was confirmed earlier in the request: it is known before anything else of the call is read.
func (r *refusal) confirmed(cs *Clients, a *ClientAuth) {
	if a.confirmed == nil {
		return
	}
	if c, err := cs.still(a); err == nil {
		r.by(&caller{*a, c.Public})
	}
}
