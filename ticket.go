// Tickets: authorization codes, device codes, magic links. Prepare makes one, Redeem spends it once, for tokens.

package apitoken

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/internal/ticket"
	"github.com/apitoken-go/apitoken/store"
)

// Ticket says how a prepared request may be redeemed, once: an authorization code, a device code, a
// magic link. A second use ends what the first one got (RFC 6749 §4.1.2).
type Ticket struct {
	Lifetime    time.Duration // required, at most a day
	Client      string        // who may redeem it; empty: the request's client
	Challenge   string        // PKCE S256 (RFC 7636): 43 characters of base64url; empty: none
	RedirectURI string        // must come back equal
	// CodeSHA256 lets a code that is out already redeem it, such as a device code, so that nobody
	// has to keep a usable one. Zero: Prepare makes the code.
	CodeSHA256 [32]byte
	// Again is how long after its first use whoever redeemed it may redeem it once more and gets the same tokens, because the
	// answer may have been lost: a device goes on asking then (RFC 8628 §3.5). It ends when the refresh token is used. At most
	// 60 s; zero, or where RefreshPolicy.Grace is negative: a second use ends what the first one got.
	Again time.Duration
}

// Redemption redeems a ticket.
type Redemption struct {
	Ticket      string
	Auth        ClientAuth // required when the ticket's client is confidential; its ID otherwise
	Verifier    string     // PKCE, where the ticket has a challenge
	RedirectURI string
	Audiences   []string // of those that were prepared, for this first token (RFC 8707 §2.2); empty: all
	Binding     string   // binds what is issued; must equal the prepared request's, where that has one
}

// Format keeps the ticket out of logs.
func (r Redemption) Format(f fmt.State, _ rune) { io.WriteString(f, redacted) }

// LogValue implements slog.LogValuer.
func (r Redemption) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText makes JSON and other encodings hold "[redacted]".
func (r Redemption) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// Prepare checks r as Issue would, records it and returns the ticket that redeems it. With t.CodeSHA256 the code is
// out already and the answer is the zero Secret.
func (s *Service) Prepare(ctx context.Context, r Request, t Ticket) (_ Secret, failed error) {
	if r.Auth.isZero() {
		defer tell(&failed)
	}
	var known refusal
	code, err := s.prepare(ctx, r, t, &known)
	s.denied(ctx, "prepare", known, err)
	return code, err
}

// prepare notes in known which client asks.
func (s *minter) prepare(ctx context.Context, r Request, t Ticket, known *refusal) (Secret, error) {
	switch {
	case t.Lifetime <= 0 || t.Lifetime > maxPrepared:
		return Secret{}, fail(ErrInvalidRequest, "a ticket's lifetime is required, at most %s", maxPrepared)
	case r.Subject == "" || r.Grant != "":
		return Secret{}, fail(ErrInvalidRequest, "a ticket is for a subject, and opens a grant")
	case t.Challenge != "" && !ticket.IsChallenge(t.Challenge):
		return Secret{}, fail(ErrInvalidRequest, "code_challenge is not an S256 one (RFC 7636 §4.2)")
	case t.Again < 0 || t.Again > maxGrace:
		return Secret{}, fail(ErrInvalidRequest, "Again is negative or over %s", maxGrace)
	case len(t.RedirectURI) > 2048:
		return Secret{}, fail(ErrInvalidRequest, "redirect URI over 2048 bytes")
	}
	if err := s.ready(); err != nil {
		return Secret{}, err
	}
	m := s.begin(ctx)
	who, err := s.clients.caller(ctx, r.Auth, r.Client, known)
	if err != nil {
		return Secret{}, err
	}
	p, err := s.planLogin(m, &r, &who)
	if err != nil {
		return Secret{}, err
	}
	if t.Client == "" {
		t.Client = p.client.ID
	}
	if t.Client != p.client.ID {
		return Secret{}, fail(ErrInvalidRequest, "the ticket's client is not the request's")
	}
	now := s.now()
	rec := ticketRecord{V: 1, Client: t.Client, Challenge: t.Challenge, Redirect: t.RedirectURI, Expires: now.Add(t.Lifetime).UnixMilli(),
		Birth: p.from.at, Subject: r.Subject, Scopes: r.Scopes, Roles: r.Roles, Audiences: r.Audiences,
		Lifetime: int64(r.Lifetime), Refresh: r.Refresh, Claims: p.claims, Binding: r.Binding, Again: t.Again.Milliseconds()}
	if p.client.ID != s.cfg.FirstParty { // also where Auth named it
		rec.For = p.client.ID
	}
	var code Secret
	var id string
	if t.CodeSHA256 != ([32]byte{}) {
		id, rec.Hash = ticket.OfDigest(s.ns, t.CodeSHA256)
	} else {
		k := opaque.Key{ID: opaque.NewID(now)}
		rand.Read(k.Secret[:])
		code = NewSecret(s.signing.ring.Encode(&k, opaque.Ticket))
		id, rec.Hash = ticket.OfKey(s.ns, &k)
	}
	c := s.newChange()
	if err := rec.Put(&c.Change, id, store.Version{}); err != nil {
		return Secret{}, public(err)
	}
	c.event(ctx, Event{Type: event.Prepared, OK: true, Subject: r.Subject, Client: t.Client, Scopes: p.scopes})
	if _, err := s.commit(ctx, c); err != nil {
		if errors.Is(err, store.ErrConflict) {
			return Secret{}, &Error{Code: ErrInvalidRequest, Detail: "the code was prepared already", Cause: err}
		}
		return Secret{}, err
	}
	return code, nil
}

// findTicket reads the record of a code, by its tag or by its hash.
func (s *minter) findTicket(ctx context.Context, code string) (id string, want [32]byte, err error) {
	if opaque.KindOf(code) != opaque.Ticket {
		if code == "" || len(code) > 512 {
			return "", want, fail(ErrInvalidGrant, "no such ticket")
		}
		id, want = ticket.OfDigest(s.ns, sha256.Sum256([]byte(code)))
		return id, want, nil
	}
	k, ours, err := s.signing.ring.Decode(ctx, code, opaque.Ticket)
	switch {
	case err != nil:
		return "", want, public(err)
	case !ours:
		return "", want, fail(ErrInvalidGrant, "not a ticket that this service made")
	}
	id, want = ticket.OfKey(s.ns, k)
	return id, want, nil
}

func (s *minter) genuineTicket(ctx context.Context, token string) error {
	id, hash, err := s.findTicket(ctx, token)
	if err != nil || opaque.KindOf(token) == opaque.Ticket {
		return err
	}
	_, _, err = s.readTicket(ctx, id, hash)
	return err
}

// readTicket reads the ticket that findTicket names.
func (s *minter) readTicket(ctx context.Context, id string, hash [32]byte) (*ticketRecord, store.Record, error) {
	r, err := s.get(ctx, ticket.Kind, id)
	if isNotFound(err) {
		return nil, r, fail(ErrInvalidGrant, "no such ticket")
	}
	if err != nil {
		return nil, r, err
	}
	t, err := readTicket(r)
	if err == nil && !t.Is(hash) {
		err = fail(ErrInvalidGrant, "no such ticket")
	}
	return t, r, err
}

// Redeem issues what was prepared. ErrInvalidGrant: unknown, expired, another client's, or used before.
func (s *Service) Redeem(ctx context.Context, r Redemption) (*Issued, error) {
	return s.serve(ctx, "redeem", func(known *refusal) (*Issued, error) { return s.redeem(ctx, r, known) })
}

// redeeming is one call of Redeem.
type redeeming struct {
	*minter
	r     Redemption
	who   *caller
	known *refusal
	id    string
	hash  [32]byte
	t     *ticketRecord
	rec   store.Record
	ours  bool // t was spent by this call
}

// redeem notes in known whose ticket it is.
func (s *minter) redeem(ctx context.Context, r Redemption, known *refusal) (*Issued, error) {
	known.confirmed(s.clients, &r.Auth)
	id, hash, err := s.findTicket(ctx, r.Ticket)
	if err != nil {
		return nil, err
	}
	who, err := s.clients.caller(ctx, r.Auth, "", known)
	if err != nil {
		return nil, err
	}
	leave, err := s.redeems.Enter(ctx, id)
	if err != nil {
		return nil, public(err)
	}
	defer leave()
	x := &redeeming{minter: s, r: r, who: &who, known: known, id: id, hash: hash}
	return s.make(ctx, s.begin(ctx), func(m moment) (*plan, error) { return x.plan(ctx, m) })
}

// plan reads the ticket and judges it.
func (x *redeeming) plan(ctx context.Context, m moment) (*plan, error) {
	if x.ours {
		return x.planFirst(ctx, m)
	}
	var err error
	if x.t, x.rec, err = x.readTicket(ctx, x.id, x.hash); err != nil {
		return nil, err
	}
	t, who := x.t, x.who
	if m, err = x.reach(ctx, m, birth{t.Birth}); err != nil { // before its client is looked for
		return nil, err
	}
	x.known.whose(who, t.Subject, t.Client, t.Spent)
	c, err := x.clientOf(t.Client)
	switch {
	case err != nil:
		return nil, err
	case !who.none() && (who.id() != t.Client || t.Client == x.cfg.FirstParty):
		return nil, fail(ErrInvalidGrant, "another client's ticket")
	case who.none() && !c.Public:
		return nil, fail(ErrInvalidClient, "client %q must authenticate", t.Client)
	case t.Spent != "":
		if p, err := x.planRepeat(ctx, m); p != nil || err != nil {
			return p, err
		}
		// Who holds a spent code may have copied it: what the first use got ends (RFC 6749 §4.1.2), once.
		switch ended, err := t.EndSpent(ctx, x.revoke, x.rec, "ticket used again", event.Reused); {
		case err != nil:
			return nil, public(err)
		case !ended:
			return nil, fail(ErrInvalidGrant, "the ticket was used before, and what it got has ended")
		}
		return nil, fail(ErrInvalidGrant, "the ticket was used before: what it got is revoked")
	case t.Leaked || x.rules.Ended(x.id):
		return nil, fail(ErrInvalidGrant, "the ticket was found in a leak")
	}
	if err := t.Admits(x.brought(), x.now()); err != nil {
		return nil, public(err)
	}
	return x.planFirst(ctx, m)
}

func (x *redeeming) brought() *ticket.Brought {
	return &ticket.Brought{Redirect: x.r.RedirectURI, Verifier: x.r.Verifier, Binding: x.r.Binding}
}

// planPrepared is what was prepared, for whoever prepared it, bound and narrowed as whoever redeems it asks.
func (x *redeeming) planPrepared(ctx context.Context, m moment, binding string, audiences []string) (*plan, error) {
	t := x.t
	m, err := x.reach(ctx, m, birth{t.Birth})
	if err != nil {
		return nil, err
	}
	// A rule since the ticket was made hits what it stands for: the identity was confirmed before the rule.
	if rule := x.rules.Hit(t.Got(x.rec.Written)); rule != "" {
		return nil, fail(ErrInvalidGrant, "a rule on its %s", rule)
	}
	p, err := x.planLogin(m, requestOf(t, binding, audiences), &caller{})
	if err != nil {
		return nil, err
	}
	p.from, p.login = birth{t.Birth}, false
	return p, x.mayContinue(ctx, Grant{Subject: t.Subject, Client: t.Client, Scopes: t.Scopes, Roles: t.Roles})
}

// planFirst spends the ticket.
func (x *redeeming) planFirst(ctx context.Context, m moment) (*plan, error) {
	t := x.t
	t.Spent = ""
	p, err := x.planPrepared(ctx, m, x.r.Binding, x.r.Audiences)
	if err != nil {
		return nil, err
	}
	if t.Again > 0 {
		p.code = x.r.Ticket
	}
	p.writes = func(c *change, st stamp) error {
		x.ours = false // until it is written: else another writer has changed it
		t.Spent = st.grant
		if t.Again > 0 {
			t.JTI, t.IAT, t.EXP, t.Bound, t.Only = st.jti, st.iat.UnixMilli(), st.exp.UnixMilli(), x.r.Binding, x.r.Audiences
		}
		return public(t.Put(&c.Change, x.id, x.rec.Version))
	}
	p.wrote = func(v store.Version) { x.rec.Version, x.ours = v, true }
	return p, nil
}

// planRepeat answers the repetition of a first use with what that got. There is nothing new, so nothing is written. nil: it is none,
// but a second use.
func (x *redeeming) planRepeat(ctx context.Context, m moment) (*plan, error) {
	t := x.t
	if x.cfg.Refresh.Grace == 0 || x.rules.Ended(x.id) || !t.Repeats(x.brought()) {
		return nil, nil
	}
	// Asked now, for what others have revoked, and for the store's clock, which says how long ago it was.
	if err := x.state.Refresh(ctx); err != nil {
		return nil, unavailable(err, "look for revocations")
	}
	age, ok := x.state.Since(x.rec.Written, t.IAT)
	if !ok || age.Milliseconds() >= t.Again || x.now().UnixMilli() >= t.EXP {
		return nil, nil
	}
	refresh := ""
	if t.Refresh {
		g, _, err := x.sessions.read(ctx, t.Spent)
		if err != nil {
			return nil, err
		}
		if g.Seq != 0 { // the answer has arrived: whoever comes now has a copy
			return nil, nil
		}
		if err := x.alive(t.Spent, g); err != nil {
			return nil, err
		}
		if refresh, err = x.ratchet.FirstAgain(&g.State, t.Spent, x.r.Ticket); err != nil {
			return nil, public(err)
		}
	}
	p, err := x.planPrepared(ctx, m, t.Bound, t.Only)
	if err != nil {
		return nil, err
	}
	p.opens, p.refresh = false, refresh
	p.given = &stamp{jti: t.JTI, grant: t.Spent, iat: time.UnixMilli(t.IAT), exp: time.UnixMilli(t.EXP)}
	return p, nil
}

// requestOf is what was prepared.
func requestOf(t *ticketRecord, binding string, audiences []string) *Request {
	r := &Request{Subject: t.Subject, Client: t.For, Scopes: t.Scopes, Roles: t.Roles, Audiences: t.Audiences,
		Lifetime: time.Duration(t.Lifetime), Refresh: t.Refresh, Binding: binding, narrow: audiences}
	if len(t.Claims) > 0 {
		r.Claims = t.Claims
	}
	return r
}
