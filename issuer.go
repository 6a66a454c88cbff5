// Issue, and how every access token is made: planned, signed, written with its event. What Refresh and Exchange give is planned in
// refresh.go, what Redeem gives in ticket.go.

package apitoken

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/follow"
	"github.com/apitoken-go/apitoken/internal/grant"
	"github.com/apitoken-go/apitoken/internal/granttype"
	"github.com/apitoken-go/apitoken/internal/jws"
	"github.com/apitoken-go/apitoken/internal/ratchet"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/internal/text"
	"github.com/apitoken-go/apitoken/store"
)

// Request asks for tokens. The host vouches for Subject; a request without Subject is a client's
// own and must carry its credential in Auth.
type Request struct {
	Subject string     // who the host has confirmed; not a client ID
	Client  string     // a registered client; empty: Auth's, or the host itself, Config.FirstParty
	Auth    ClientAuth // confirms the client; required for a client's own tokens
	// Scopes is at most what the client may have. Empty: none, or all that Roles give. With Roles it
	// narrows what they give.
	Scopes    Scopes
	Roles     []string      // expanded into scope at issue, within what the client may hold, so that every validator agrees
	Audiences []string      // empty: the client's, or Config.Audience
	Lifetime  time.Duration // of the access token; zero: the client's, then Config's; cut to MaxAccess
	Refresh   bool          // with a refresh token: opens a grant that is listed, refreshed and issued under
	// Claims are the host's own: a struct or map that marshals to a JSON object, at most 4 KiB. Reserved names (iss, sub, aud, exp,
	// nbf, iat, jti, scope, client_id and others) may be there if they are empty, as in a struct that embeds jwt.RegisteredClaims,
	// and are left out. ErrInvalidRequest where one has a value: it is made from the other fields.
	Claims any
	// Binding binds the tokens to a key or a certificate: "jkt:" and the RFC 7638 thumbprint of a DPoP
	// key, or "x5t#S256:" and that of a certificate. See BindDPoP and BindCertificate.
	Binding string
	// Grant opens no new grant but issues under this one, which must live, have a refresh token, and cover
	// the request, scopes and audiences: a job that goes on for a user, a token for one call to another service.
	Grant string

	narrow []string // of the audiences, those of the first token
}

// RefreshRequest asks for the next tokens of a grant.
type RefreshRequest struct {
	Token  string
	Auth   ClientAuth // required when the grant's client is confidential
	Scopes Scopes     // narrower for this access token; empty: all the grant has
	// Audiences are narrower for this access token (RFC 8707 §2.2); empty: all of the grant's.
	Audiences []string
	Binding   string // must match a bound public client's grant
}

// Format keeps the token out of logs.
func (r RefreshRequest) Format(f fmt.State, _ rune) { io.WriteString(f, redacted) }

// LogValue implements slog.LogValuer.
func (r RefreshRequest) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText makes JSON and other encodings hold "[redacted]".
func (r RefreshRequest) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// ExchangeRequest asks for a narrower token in place of Token (RFC 8693).
type ExchangeRequest struct {
	// Token is an access token of this service, for whatever audience, or an API key, of which it takes one use.
	Token     Credential
	Actor     Credential // who will act for its subject; zero: impersonation, only for clients with MayImpersonate
	Auth      ClientAuth // the client that asks; it must have the grant type token-exchange
	Scopes    Scopes     // empty: what Token and the client both hold
	Audiences []string   // of those the client may ask for; empty: Token's
	Lifetime  time.Duration
	// Binding is what the new token is bound to; empty: as Token is. The caller has proved to hold it (Adapter.Prove), so that
	// a Token or Actor with the same binding needs no other proof.
	Binding string
}

// Issued is a fresh set of tokens.
type Issued struct {
	Access  Secret
	Refresh Secret // zero if none
	Token   Token  // what Access says

	at time.Time // of an answer that is given again; zero: Access was signed for this one
}

// Response is the body of RFC 6749 §5.1, in clear: encode it, never log it.
func (i *Issued) Response() TokenResponse {
	r := TokenResponse{AccessToken: i.Access.Reveal(), TokenType: "Bearer", RefreshToken: i.Refresh.Reveal(), Scope: i.Token.d.Scopes.String()}
	if isDPoP(i.Token.d.Binding) {
		r.TokenType = "DPoP"
	}
	from := i.Token.IssuedAt()
	if i.at.After(from) {
		from = i.at
	}
	r.ExpiresIn = int64(max(i.Token.ExpiresAt().Sub(from), 0) / time.Second)
	return r
}

// TokenResponse is the JSON form of Issued.
type TokenResponse struct {
	AccessToken  string `json:"access_token"`
	TokenType    string `json:"token_type"` // "Bearer", or "DPoP" for a token that is bound to a DPoP key
	ExpiresIn    int64  `json:"expires_in"` // seconds, from this answer
	RefreshToken string `json:"refresh_token,omitempty"`
	Scope        string `json:"scope"`
}

// Format keeps the tokens out of logs; its JSON is for the client and holds them.
func (r TokenResponse) Format(f fmt.State, _ rune) { io.WriteString(f, redacted) }

// LogValue implements slog.LogValuer.
func (r TokenResponse) LogValue() slog.Value { return slog.StringValue(redacted) }

const (
	maxActors = 8
	maxChain  = 32 // four for each exchange: the token, its grant, its client and its signing key
)

// Every token is made in the same steps, whichever call asks for it. Issue, Refresh, Redeem and Exchange differ in their plan, and
// each has a file with nothing else:
//
//	caller  Clients.caller finds out which client calls: once, before anything is planned.
//	begin   core.begin notes what is known, before anything is looked at that the outcome stands on.
//	plan    The call's own: who gets it, from which identity it descends, what bounds it (a ceiling) and what is written with it. What
//	        it holds is filled in by plan.below, from a Request, whichever call asks.
//	sign    minter.sign makes the access token.
//	record  minter.record writes in one change: the event, the session that opens, the record that is spent. Before and after it the
//	        rules are asked about what was made.
//
// minter.make takes them in order, and settle begins again where another writer was first, or where a role, a client or a signing key
// has changed since: nobody gets what was planned before a change. API keys are made in the same steps, see APIKeys.Create.

// minter makes tokens. Its methods are the calls of Service with the same name, which count and show what comes of them.
type minter struct {
	*core
	clients  *Clients
	signing  *SigningKeys
	apiKeys  *APIKeys
	roles    *roleBook
	sessions *sessions
	ratchet  ratchet.Ratchet
	redeems  commit.Turns // of those who redeem one ticket
}

func newMinter(s *core, signing *SigningKeys, clients *Clients, keys *APIKeys) *minter {
	return &minter{core: s, clients: clients, signing: signing, apiKeys: keys, roles: new(roleBook), sessions: newSessions(s),
		ratchet: ratchet.Ratchet{Keys: signing.ring, Namespace: func() string { return s.ns }, Prefix: s.cfg.Prefix}}
}

// plan is a request that was checked.
type plan struct {
	// What the token says.
	client    Client
	subject   string
	scopes    Scopes
	roles     []string
	audiences []string
	narrow    []string // of the audiences, those of this token; nil: all
	life      time.Duration
	binding   string
	claims    []byte
	actors    []jws.Actor
	chain     []string

	moment        // what was known when it was planned
	from    birth // of what it is made of
	login   bool  // the host says in this call who it is for, or the client for itself
	event   event.Type
	grant   string    // the session that it is for; empty: one of its own
	until   time.Time // it ends by then; zero: when its life does
	opens   bool      // a session with a refresh token
	code    string    // from which the session's first refresh token is made, so that it can be made again; empty: at random
	refresh string    // token that goes out with it
	given   *stamp    // of a token that went out before: the answer is given again, and nothing is written
	writes  func(c *change, t stamp) error
	wrote   func(store.Version) // once that is written
	last    func() error        // before the token is handed out
}

// stamp is what tells one access token from the next of its plan.
type stamp struct {
	jti, grant string
	pos        rules.Positions
	iat, exp   time.Time
	of         *plan // that was recorded with it
}

// serve is one call: it counts who was refused and shows observers what came of it.
func (s *minter) serve(ctx context.Context, op string, call func(known *refusal) (*Issued, error)) (*Issued, error) {
	began := time.Now()
	var known refusal
	i, err := call(&known)
	s.denied(ctx, op, known, err)
	if s.valid.observers.Any() {
		o := Observation{Op: op, Err: err, Took: time.Since(began)}
		if i != nil {
			o.Token = i.Token
		}
		s.observe(ctx, o)
	}
	return i, err
}

// make plans, signs and records, from the moment m.
func (s *minter) make(ctx context.Context, m moment, next func(moment) (*plan, error)) (*Issued, error) {
	var p *plan
	var done *stamp // of a token that is recorded already, and is only signed again
	i, err := settle(ctx, s.core, m, "parallel changes of what is spent for the token", func(m moment) (_ *Issued, err error) {
		if p, err = next(m); err != nil {
			return nil, err
		}
		if done != nil && !p.opens && (p.event == event.Refreshed || done.of.says(p)) {
			p.given = done // else its event would say more than it
		}
		return s.record(ctx, p, &done)
	})
	late, _ := err.(*overtaking)
	switch {
	case late == nil:
		return i, err
	case !p.login || p.begun && !p.own():
		return nil, late.why
	}
	// The rule may have come before this call, and this process not have known: then the next call is good.
	if _, err := next(p.moment); err != nil {
		return nil, err // what it asks is not to be had any more
	}
	return nil, tryAgain("a revocation came while the token was made: ask again, if who it is for still stands")
}

// overtaking is what came while something was made: a rule that ended what it is made of, or else a change after which it is planned
// again.
type overtaking struct {
	why   *Error
	ended bool
}

func (o *overtaking) Error() string { return o.why.Error() }

// settle is the loop of everything that is made: it tries until no other writer and no change overtakes the try. Each try has a moment
// of its own; who it is for was confirmed when it was. An *overtaking that comes back says that what it is made of has ended. busy is
// the detail of the error for a caller whom other writers overtake each time.
func settle[T any](ctx context.Context, s *core, m moment, busy string, try func(moment) (T, error)) (T, error) {
	for n := 1; ; n++ {
		x, err := try(m)
		late, _ := err.(*overtaking)
		answer, lost := commit.Lost(err)
		switch {
		case late != nil && late.ended, late == nil && !lost:
			return x, answer
		case n < commit.Tries:
			// A change that is on its way to the store has no place in the order yet: what is made now would fall to it too.
			if late != nil && s.rules.Pending.Load() != nil && !follow.Sleep(ctx, follow.Jitter(time.Millisecond<<n)) {
				return x, late.why
			}
			m.view = s.begin(ctx).view
		case late != nil:
			return x, late.why
		default:
			return x, tryAgain("%s", busy)
		}
	}
}

// overtaken asks the rules about what was made: nil, or an *overtaking. A login is asked about only where a rule came since it was
// planned: one that was there before ends what was issued until then, to the second, and says nothing of who logs in.
func (s *minter) overtaken(p *plan, rs *rules.Subject) error {
	if p.login && !p.passed(s.rules) {
		return nil
	}
	rule := s.rules.Hit(rs)
	if rule == "" {
		return nil
	}
	next := *rs // what is made of the same once more
	next.ID, next.Kid, next.Renews = "", "", true
	if s.rules.Hit(&next) != "" {
		return &overtaking{fail(ErrInvalidGrant, "a rule on its %s", rule), true}
	}
	return &overtaking{tryAgain("its %s changed while it was made", rule), false}
}

// record signs p and writes what comes of it. Nothing is returned before it is durable, and nothing that a known rule hits. done is set
// once a token that opens no session is written.
func (s *minter) record(ctx context.Context, p *plan, done **stamp) (*Issued, error) {
	if err := s.ready(); err != nil {
		return nil, err
	}
	now := s.now()
	var g *grantRecord
	if p.opens {
		g = s.newSession(ctx, p, now)
		p.until = time.UnixMilli(g.Expires)
	}
	t := p.stamp(now)
	i, rs, err := s.sign(ctx, p, t)
	if err != nil {
		return nil, err
	}
	if err := s.overtaken(p, rs); err != nil {
		return nil, err
	}
	if p.given != nil {
		i.at = now
		return p.handOut(i)
	}

	if g != nil {
		if g.State, p.refresh, err = s.ratchet.First(t.grant, p.code); err != nil {
			return nil, public(err)
		}
		p.note(g, t)
	}
	var v store.Version
	write := func(room grant.Room[Scope]) (err error) {
		v, err = s.write(ctx, p, t, g, room)
		return err
	}
	if g != nil {
		err = public(s.sessions.Open(ctx, p.subject, write))
	} else {
		err = write(grant.Room[Scope]{})
		t.of = p
		*done = &t
	}
	if err != nil {
		*done = nil
		return nil, err
	}
	if p.wrote != nil {
		p.wrote(v)
	}

	err = s.overtaken(p, rs)
	if err == nil || g != nil && s.sessions.CrowdedOut(rs) {
		return p.handOut(i)
	}
	if g != nil && !err.(*overtaking).ended {
		// Nobody gets the tokens of this session: it would stand in lists and count.
		if err := s.revoke.End(ctx, rules.ByGrant(t.grant), "planned again: its "+s.rules.Hit(rs)+" changed"); err != nil {
			return nil, public(err)
		}
	}
	return nil, err
}

// write writes in one change what p spends, the event, and the session g that opens, if one does, within the room that there is.
func (s *minter) write(ctx context.Context, p *plan, t stamp, g *grantRecord, room grant.Room[Scope]) (store.Version, error) {
	began := time.Now()
	c := s.newChange()
	if p.writes != nil {
		if err := p.writes(c, t); err != nil {
			return c.ID, err
		}
	}
	c.event(ctx, p.eventOf(t))
	if g != nil {
		if err := s.sessions.enter(ctx, c, room, t.grant, g); err != nil {
			return c.ID, err
		}
	}
	if _, err := s.commit(ctx, c); err != nil {
		return c.ID, err
	}
	for range room.End {
		s.observe(ctx, Observation{Op: "revoke", Took: time.Since(began)})
	}
	return c.ID, nil
}

// own reports whether the token is the client's own. No subject goes by a client's ID.
func (p *plan) own() bool { return p.subject == p.client.ID }

// says reports whether the event of p is right for a token made by q, too.
func (p *plan) says(q *plan) bool {
	return slices.Equal(p.scopes, q.scopes) && slices.Equal(p.roles, q.roles) && slices.Equal(p.audiences, q.audiences)
}

func (p *plan) handOut(i *Issued) (*Issued, error) {
	if p.refresh != "" {
		i.Refresh = NewSecret(p.refresh)
	}
	if p.last != nil {
		if err := p.last(); err != nil {
			return nil, err
		}
	}
	return i, nil
}

func (p *plan) stamp(now time.Time) stamp {
	var t stamp
	if p.given != nil {
		t = *p.given
	} else {
		t = stamp{jti: newID(now), grant: p.grant, iat: now, exp: now.Add(p.life)}
		if t.grant == "" {
			t.grant = newID(now)
		}
		if !p.until.IsZero() && t.exp.After(p.until) {
			t.exp = p.until
		}
	}
	t.pos = p.moment.stamp(p.from)
	return t
}

// newSession is the record of the session that p opens.
func (s *minter) newSession(ctx context.Context, p *plan, now time.Time) *grantRecord {
	life, o := s.lifetimes(&p.client), originOf(ctx)
	g := &grantRecord{V: 1, Subject: p.subject, Client: p.client.ID, Scopes: p.scopes, Roles: p.roles, Audiences: p.audiences,
		Claims: p.claims, Binding: p.binding, Birth: p.from.at, Created: now.UnixMilli(), Life: int64(p.life / time.Second),
		Expires: now.Add(life.Grant).UnixMilli(), Idle: life.Idle.Milliseconds(), UserAgent: text.CleanText(o.UserAgent)}
	if o.Address.IsValid() {
		g.Address = o.Address.String()
	}
	return g
}

// note writes into a session's record which access token goes out with this state of it.
func (p *plan) note(g *grantRecord, t stamp) {
	g.JTI, g.IAT, g.EXP, g.Narrow = t.jti, t.iat.UnixMilli(), t.exp.UnixMilli(), p.scopes
	g.For, g.Bound = p.narrow, ""
	if p.binding != g.Binding {
		g.Bound = p.binding
	}
	g.Refreshed = t.iat.UnixMilli()
}

func (p *plan) eventOf(t stamp) Event {
	e := Event{Type: p.event, OK: true, Subject: p.subject, Client: p.client.ID, TokenID: t.jti, Grant: t.grant, Scopes: p.scopes}
	if len(p.chain) > 0 { // what it descends from: a report follows it forward, from a stolen token to what was made of it
		ids := slices.DeleteFunc(slices.Clone(p.chain), func(s string) bool { return strings.IndexByte(s, ':') >= 0 })
		e.Extra = map[string]string{"chain": strings.Join(ids, " ")}
	}
	if len(p.actors) > 0 {
		if e.Extra == nil {
			e.Extra = map[string]string{}
		}
		e.Extra["actor"] = p.actors[0].Subject
	}
	return e
}

// sign makes the access token, and what rules will see of it.
func (s *minter) sign(ctx context.Context, p *plan, t stamp) (*Issued, *rules.Subject, error) {
	aud := p.audiences
	if p.narrow != nil {
		aud = p.narrow
	}
	if len(p.scopes) > maxScopes { // roles may give that many
		return nil, nil, fail(ErrInvalidRequest, "the token would have %d scopes, validators read %d", len(p.scopes), maxScopes)
	}
	if err := s.cfg.constrained(p.binding); err != nil {
		return nil, nil, err
	}
	now := s.now() // a stamp may be of an answer that is given again
	key, err := s.signing.active(t.pos.View, now, aud)
	if err != nil && s.state.Refresh(ctx) == nil && s.begin(ctx).view != t.pos.View {
		// Withdrawn, and its successor is newer than this view: what was planned under it has to be planned again.
		return nil, nil, &overtaking{tryAgain("the signing key was withdrawn while the token was made"), false}
	}
	if err != nil {
		return nil, nil, err
	}
	iat, exp := t.iat.Unix(), t.exp.Unix()
	if exp <= iat {
		exp = iat + 1
	}
	cl := jws.Claims{
		Issuer: s.cfg.Issuer, Subject: p.subject, Audience: aud, Expires: exp, IssuedAt: iat, NotBefore: iat,
		ID: t.jti, ClientID: p.client.ID, Scope: p.scopes.String(), Roles: p.roles, SessionID: t.grant,
		Position: t.pos.String(), Chain: p.chain, Actors: p.actors, Binding: p.binding,
	}
	text, err := key.Sign(ctx, &cl, p.claims)
	if err != nil {
		return nil, nil, err
	}
	if len(text) > s.cfg.Validation.MaxTokenBytes {
		return nil, nil, fail(ErrInvalidRequest, "the token would have %d bytes, validators read %d", len(text), s.cfg.Validation.MaxTokenBytes)
	}
	spec := TokenSpec{
		ID: t.jti, Issuer: s.cfg.Issuer, Subject: p.subject, Client: p.client.ID, Grant: t.grant,
		Audiences: aud, Scopes: p.scopes, Roles: p.roles, IssuedAt: time.Unix(iat, 0), ExpiresAt: time.Unix(exp, 0), Binding: p.binding,
	}
	made := &struct { // one piece of memory: they live as long as each other
		issued Issued
		data   tokenData
		rule   rules.Subject
	}{}
	rs := &made.rule
	*rs = rules.Subject{Subject: p.subject, Client: p.client.ID, ID: t.jti, Kid: key.KID, Grant: t.grant, Chain: p.chain, Roles: p.roles, Pos: t.pos, Iat: spec.IssuedAt}
	for _, a := range p.actors {
		spec.Actors = append(spec.Actors, a.Subject)
		rs.Actors = append(rs.Actors, rules.Principal{Issuer: a.Issuer, Subject: a.Subject})
	}
	rs.Descend()
	made.data = tokenOf(spec, p.claims)
	made.data.from, made.data.by = rs, s.valid
	tok := Token{d: &made.data, fresh: s.trust.freshness(s.trust.Look(), now)}
	made.issued = Issued{Access: NewSecret(text), Token: tok}
	return &made.issued, rs, nil
}

// Issue implements [Issuer].
func (s *Service) Issue(ctx context.Context, r Request) (*Issued, error) {
	i, err := s.serve(ctx, "issue", func(known *refusal) (*Issued, error) { return s.issue(ctx, r, known) })
	if r.Auth.isZero() {
		tell(&err)
	}
	return i, err
}

// issue notes in known which client asks, and of which grant.
func (s *minter) issue(ctx context.Context, r Request, known *refusal) (*Issued, error) {
	m := s.begin(ctx)
	who, err := s.clients.caller(ctx, r.Auth, r.Client, known)
	if err != nil {
		return nil, err
	}
	return s.make(ctx, m, func(m moment) (*plan, error) {
		if r.Grant != "" {
			return s.planMore(ctx, m, &r, &who, known)
		}
		return s.planLogin(m, &r, &who)
	})
}

// planLogin is what r asks for, of a subject for whom the host vouches or of a client for itself. It opens a session where r asks for
// a refresh token.
func (s *minter) planLogin(m moment, r *Request, who *caller) (*plan, error) {
	if r.Subject != "" {
		if err := checkSubject(r.Subject); err != nil {
			return nil, err
		}
		if r.Subject == s.cfg.FirstParty || s.clients.lookup(r.Subject) != nil {
			return nil, fail(ErrInvalidRequest, "the subject is a client's ID: its tokens would pass for the client's own")
		}
	}
	c, err := s.asker(r, who)
	if err != nil {
		return nil, err
	}
	p := &plan{client: c, subject: cmp.Or(r.Subject, c.ID), roles: slices.Clone(r.Roles), moment: m, from: m.login(), login: true,
		opens: r.Refresh, event: event.Issued}

	most := s.ceiling(&c)
	if len(r.Roles) > 0 {
		given, err := s.roles.Expand(r.Roles)
		if err != nil {
			return nil, public(err)
		}
		most.meet("the roles", given)
		most.whole, most.cuts = true, true
	}
	return p, p.below(&most, r)
}

// asker is the client that asks for a login: the host itself, one that proved who it is, or one that the host names with a subject.
func (s *minter) asker(r *Request, who *caller) (c Client, err error) {
	switch {
	case !who.none():
		c, err = who.now(s.clients)
	case r.Subject == "" && r.Client == "":
		err = fail(ErrInvalidRequest, "neither a Subject nor a Client")
	case r.Subject == "":
		err = fail(ErrInvalidClient, "a client's own tokens are for whoever proves to be it")
	case r.Client == "":
		return Client{ID: s.cfg.FirstParty, Public: true}, nil
	default:
		c, err = s.clients.enabled(r.Client)
	}
	if err != nil {
		return c, err
	}

	has := func(grantType string) bool { return slices.Contains(c.GrantTypes, grantType) }
	switch {
	case r.Subject != "" && r.Refresh && !has(granttype.RefreshToken):
		err = fail(ErrDenied, "client %q has no grant type refresh_token", c.ID)
	case r.Subject != "": // the host vouches for it
	case c.Public:
		err = fail(ErrDenied, "a public client has no credential and no tokens of its own")
	case !has(granttype.ClientCredentials):
		err = fail(ErrDenied, "client %q has no grant type client_credentials", c.ID)
	case r.Refresh:
		err = fail(ErrInvalidRequest, "a client's own tokens have no refresh token (RFC 6749 §4.4.3)")
	}
	return c, err
}

// planMore is what r asks for under a session that lives: at most what that holds, for no longer.
func (s *minter) planMore(ctx context.Context, m moment, r *Request, who *caller, known *refusal) (*plan, error) {
	g, _, err := s.sessions.read(ctx, r.Grant)
	if isNotFound(err) {
		return nil, fail(ErrInvalidGrant, "no grant %q: only those with a refresh token can be issued under", r.Grant)
	}
	if err != nil {
		return nil, err
	}
	known.Subject, known.Client, known.Grant = g.Subject, g.Client, r.Grant
	switch {
	case r.Subject != "" && r.Subject != g.Subject || r.Client != "" && r.Client != g.Client || r.Refresh:
		return nil, fail(ErrInvalidRequest, "the request contradicts the grant it names")
	case !who.none() && who.id() != g.Client:
		return nil, fail(ErrInvalidRequest, "the grant is another client's")
	case len(r.Roles) > 0:
		return nil, fail(ErrInvalidRequest, "roles are the grant's")
	case r.Binding != "" && g.Binding != "" && r.Binding != g.Binding:
		return nil, fail(ErrInvalidRequest, "the grant is bound to another key")
	}
	return s.planUnder(ctx, m, g, *r, event.Issued)
}

// planUnder is what the session r.Grant still allows of what r asks for: its client must be there, and hold what the session holds. Who
// names no scopes and audiences gets all of the session's.
func (s *minter) planUnder(ctx context.Context, m moment, g *grantRecord, r Request, why event.Type) (*plan, error) {
	m, err := s.reach(ctx, m, birth{g.Birth})
	if err != nil {
		return nil, err
	}
	c, err := s.clientOf(g.Client)
	if err != nil {
		return nil, err
	}
	if err := s.alive(r.Grant, g); err != nil {
		return nil, err
	}
	p := &plan{client: c, subject: g.Subject, binding: g.Binding, claims: g.Claims, roles: g.Roles,
		moment: m, from: birth{g.Birth}, grant: r.Grant, until: time.UnixMilli(g.Expires), event: why}

	// Each may have lost something since the session was opened; what one gained since was not granted (RFC 6749 §6).
	most := s.ceiling(&c)
	most.meet("the grant", g.Scopes)
	if len(g.Roles) > 0 {
		given, err := s.roles.Give(g.Roles)
		if err != nil {
			return nil, public(err)
		}
		most.meet("the grant's roles", given)
	}
	most.whole = true
	r.Audiences, r.narrow = text.Resources(g.Audiences, most.audiences), r.Audiences
	if len(r.Audiences) == 0 {
		return nil, fail(ErrInvalidGrant, "none of its audiences may be asked for any more")
	}
	if err := p.below(&most, &r); err != nil {
		return nil, err
	}
	return p, s.mayContinue(ctx, grantOf(g, r.Grant))
}

// below gives p what r asks for, all of which lies below x. A binding and claims that r does not name stay those of p.
func (p *plan) below(x *ceiling, r *Request) (err error) {
	if p.scopes, err = x.take(r.Scopes); err != nil {
		return err
	}
	if p.life, err = x.lifetime(r.Lifetime); err != nil {
		return err
	}
	if p.audiences, p.narrow, err = x.targets(r.Audiences, r.narrow); err != nil {
		return err
	}

	if r.Binding != "" {
		if err := checkBinding(r.Binding); err != nil {
			return err
		}
		p.binding = r.Binding
	}
	if r.Claims != nil {
		p.claims, err = marshalClaims(r.Claims)
	}
	return err
}

// clientOf is the client that a session or a ticket is held by, if it may still act.
func (s *minter) clientOf(id string) (Client, error) {
	if id == s.cfg.FirstParty {
		return Client{ID: id, Public: true}, nil
	}
	c, err := s.clients.enabled(id)
	if err != nil {
		return c, &Error{Code: ErrInvalidGrant, Detail: "its client is gone or disabled", Cause: err}
	}
	return c, nil
}
