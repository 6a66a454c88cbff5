package apitoken

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/internal/follow"
	"github.com/apitoken-go/apitoken/internal/granttype"
	"github.com/apitoken-go/apitoken/internal/jws"
	"github.com/apitoken-go/apitoken/internal/quota"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/internal/text"
	"github.com/apitoken-go/apitoken/store"
)

// Issuer is what issues tokens. [Service] is the default: JWT access tokens, opaque refresh tokens.
type Issuer interface {
	// Issue opens a grant and returns its first tokens, after it is durable.
	Issue(ctx context.Context, r Request) (*Issued, error)
	// Refresh trades a refresh token for the next tokens of its grant. The immediately previous
	// one, presented again inside the grace window, gets the same answer; an older one ends the
	// grant: ErrInvalidGrant. So does a genuine one that another authenticated client presents: it has leaked.
	Refresh(ctx context.Context, r RefreshRequest) (*Issued, error)
	// Exchange trades a valid token for a narrower one (RFC 8693). Ending the first ends the second.
	Exchange(ctx context.Context, r ExchangeRequest) (*Issued, error)
}

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
	// Binding is what the new token is bound to; empty: as Token is. The caller has proved to hold it (Service.Prove), so that
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
	maxSubject   = 255
	maxAudiences = 16
	maxRoles     = 32
	maxActors    = 8
	maxChain     = 32 // four for each exchange: the token, its grant, its client and its signing key
	signTries    = 3  // of a login that a rule overtakes
)

// plan is a request that was checked: who gets what, not yet how long the state stood where.
type plan struct {
	client    Client
	own       bool // the client's own tokens
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
	event     event.Type
}

// Issue implements [Issuer].
func (s *Service) Issue(ctx context.Context, r Request) (*Issued, error) {
	var known refusal
	began := time.Now()
	i, err := s.issueFor(ctx, r, &known)
	if err != nil {
		s.audit.denied(ctx, "issue", known, err)
	}
	s.observeIssue(ctx, "issue", began, i, err)
	if !r.Auth.proves() {
		tell(&err)
	}
	return i, err
}

func (s *Service) observeIssue(ctx context.Context, op string, began time.Time, i *Issued, err error) {
	if !s.valid.observers.any() {
		return
	}
	o := Observation{Op: op, Err: err, Took: time.Since(began), Origin: originOf(ctx)}
	if i != nil {
		o.Token = i.Token
	}
	s.observe(ctx, o)
}

// issueFor notes in known which client asks, and of which grant.
func (s *Service) issueFor(ctx context.Context, r Request, known *refusal) (*Issued, error) {
	if r.Client != "" && r.Auth.ID != "" && r.Auth.ID != r.Client {
		return nil, fail(ErrInvalidRequest, "Client and Auth name different clients")
	}
	m := s.begin(ctx)
	who, err := s.Clients.caller(ctx, r.Auth)
	if err == nil {
		err = s.Clients.await(ctx, r.Client)
	}
	if err != nil {
		return nil, err
	}
	known.by(&who)
	if r.Grant != "" {
		return s.issueUnder(ctx, r, m, &who, known)
	}
	return s.issue(ctx, r, m, &who, nil)
}

// spending is what is spent by what is issued: it has its own birth, and its change of the record goes with the write.
type spending struct {
	birth birth
	with  func(c *change, t stamp) error
	// version is the record's that is spent. What is planned again spends it again, from where the first write left it.
	version store.Version
	code    string // from which the first refresh token is made, so that it can be made again; empty: at random
}

// issue checks r and opens what it asks for, with what that spends.
func (s *Service) issue(ctx context.Context, r Request, m moment, who *caller, spent *spending) (*Issued, error) {
	if err := s.audit.ready(); err != nil {
		return nil, err
	}
	for try := 1; ; try++ {
		var p plan
		if err := s.planFor(&p, &r, who); err != nil {
			return nil, err
		}
		i, err := s.open(ctx, &p, m, r.Refresh, spent)
		if err == nil {
			return i, nil
		}
		if err != errStale && !errors.Is(err, errOvertaken) {
			return nil, err
		}
		switch {
		case err != errStale && !errors.Is(err, errRenew) && (spent != nil || m.begun && !p.own):
			// What it spends was made before the rule, or who it is was confirmed: it stands for what the rule ended.
			return nil, fail(ErrInvalidGrant, "a revocation came first")
		case err != errStale && !errors.Is(err, errRenew):
			if err := s.planFor(&p, &r, who); err != nil {
				return nil, err // what it asks is not to be had any more
			}
			// It may have come before this call, and this process not have known: then the next one is good.
			return nil, &Error{Code: ErrUnavailable, RetryAfter: retryHint, Detail: "a revocation came while the token was made: ask again, if who it is for still stands"}
		case try == signTries:
			return nil, &Error{Code: ErrUnavailable, RetryAfter: retryHint, Detail: "changes keep overtaking this login"}
		}
		// A role, a client or a signing key changed: plan again, for an identity that was confirmed when it was.
		next := s.begin(ctx)
		next.host = m.host
		m = next
	}
}

// errOvertaken says that a rule came between reading the state and the write, which hits what was made. errRenew is one that
// only asks for it to be made again.
var (
	errOvertaken = errors.New("apitoken: overtaken by a revocation")
	errRenew     = fmt.Errorf("%w, and to be minted again", errOvertaken)
)

// errStale says that no signing key is as old as the view that the plan was made in.
var errStale = &Error{Code: ErrUnavailable, RetryAfter: retryHint, Detail: "the signing key was withdrawn while the token was made"}

// open stamps, signs and records. Nothing is returned before it is recorded, nothing that a known rule hits.
func (s *Service) open(ctx context.Context, p *plan, m moment, refresh bool, spent *spending) (*Issued, error) {
	from := m.login()
	if spent != nil {
		from = spent.birth
	}
	now := s.now()
	grant := newID(now)
	t := stamp{jti: newID(now), grant: grant, pos: m.stamp(from), iat: now, exp: now.Add(p.life)}
	life := s.lifetimes(&p.client)
	end := now.Add(life.Grant)
	if refresh && t.exp.After(end) {
		t.exp = end
	}
	i, rs, err := s.sign(ctx, p, t)
	if err != nil {
		return nil, err
	}
	var g *grantRecord
	if refresh {
		g = &grantRecord{V: 1, Subject: p.subject, Client: p.client.ID, Scopes: p.scopes, Roles: p.roles, Audiences: p.audiences,
			Claims: p.claims, Binding: p.binding, Birth: from.at, Created: now.UnixMilli(), Life: int64(p.life / time.Second)}
		g.Expires, g.Idle = end.UnixMilli(), life.Idle.Milliseconds()
		o := originOf(ctx)
		g.UserAgent = text.CleanText(o.UserAgent)
		if o.Address.IsValid() {
			g.Address = o.Address.String()
		}
		code := ""
		if spent != nil {
			code = spent.code
		}
		text, err := s.firstRefresh(g, grant, code)
		if err != nil {
			return nil, err
		}
		i.Refresh = NewSecret(text)
		g.last(t, p)
	}
	write := func(more func(*change) error) error {
		c := s.newChange()
		if g != nil {
			if err := g.put(c, grant, store.Version{}); err != nil {
				return err
			}
		}
		if spent != nil {
			if err := spent.with(c, t); err != nil {
				return err
			}
		}
		c.event(ctx, p.eventOf(t))
		if more != nil {
			if err := more(c); err != nil {
				return err
			}
		}
		_, err := s.commit(ctx, c)
		if err == nil && spent != nil {
			spent.version = c.ID
		}
		return err
	}
	if g != nil && s.sessions.Limit > 0 {
		err = s.writeCounted(ctx, g, grant, write)
	} else {
		err = write(nil)
	}
	if err != nil {
		return nil, err
	}
	if !m.passed(s.rules) || s.rules.Hit(rs) == "" || g != nil && s.replaced(rs) {
		return i, nil
	}
	if s.rules.Hit(renewed(rs)) != "" {
		return nil, errOvertaken
	}
	if g != nil {
		// Nobody gets the tokens of this session, which holds what was planned before: it would stand in lists and count.
		if err := s.revoke(ctx, rules.ByGrant(grant), "planned again: its "+s.rules.Hit(rs)+" changed", event.Revoked); err != nil {
			return nil, err
		}
	}
	return nil, errRenew
}

// replaced reports whether nothing but a rule on its own session hits a login: others of the same subject have taken all the room
// since. It is answered like one that came a little earlier; its caller may find out when it uses the tokens.
func (s *Service) replaced(rs *rules.Subject) bool {
	x := *rs
	x.Grant = ""
	return s.sessions.Limit > 0 && s.rules.Hit(&x) == ""
}

// writeCounted opens a session within the limit of its subject: count, end what is too much and the new session
// are one change. store.ErrConflict: write raced with something else than the count.
func (s *Service) writeCounted(ctx context.Context, g *grantRecord, id string, write func(more func(*change) error) error) error {
	leave, err := s.sessions.Turns.Enter(ctx, g.Subject)
	if err != nil {
		return public(err)
	}
	defer leave()
	var before store.Version
	wait := 2 * time.Millisecond
	for try := 1; ; try++ {
		t, end, err := s.admit(ctx, g.Subject, try == 1)
		if err != nil {
			return err
		}
		if try > 1 && t.Version() == before {
			return store.ErrConflict
		}
		began := time.Now()
		err = write(func(c *change) error {
			t.Add(id, g.Expires+int64(grantSlack/time.Millisecond))
			if err := t.Put(&c.Change); err != nil {
				return public(err)
			}
			for _, g := range end {
				if err := s.evict(ctx, c, g); err != nil {
					return err
				}
			}
			return nil
		})
		switch {
		case err == nil:
			for range end {
				s.observe(ctx, Observation{Op: "revoke", Took: time.Since(began)})
			}
			return nil
		case !errors.Is(err, store.ErrConflict):
			return err
		case t.Guessed:
			continue
		case try == quota.Tries || !follow.Sleep(ctx, follow.Jitter(wait)):
			return &Error{Code: ErrUnavailable, RetryAfter: retryHint, Detail: "many logins of one subject at once"}
		}
		before, wait = t.Version(), min(2*wait, 50*time.Millisecond)
	}
}

func (p *plan) eventOf(t stamp) Event {
	e := Event{Type: p.event, OK: true, Subject: p.subject, Client: p.client.ID, TokenID: t.jti, Grant: t.grant, Scopes: p.scopes}
	if e.Type == "" {
		e.Type = event.Issued
	}
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

// stamp is what tells one access token from the next of its plan.
type stamp struct {
	jti, grant string
	pos        rules.Positions
	iat, exp   time.Time
}

// sign makes the access token, and what rules will see of it.
func (s *Service) sign(ctx context.Context, p *plan, t stamp) (*Issued, *rules.Subject, error) {
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
	key, err := s.SigningKeys.active(t.pos.View, now, aud)
	if err != nil && s.state.Refresh(ctx) == nil && s.begin(ctx).view != t.pos.View {
		// Withdrawn, and its successor is newer than this view: what was planned under it has to be planned again.
		return nil, nil, errStale
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
	*rs = rules.Subject{Subject: p.subject, Client: p.client.ID, Id: t.jti, Kid: key.KID, Grant: t.grant, Chain: p.chain, Roles: p.roles, Pos: t.pos, Iat: spec.IssuedAt}
	for _, a := range p.actors {
		spec.Actors = append(spec.Actors, a.Subject)
		rs.Actors = append(rs.Actors, rules.Principal{Issuer: a.Issuer, Subject: a.Subject})
	}
	rs.Descend()
	made.data = tokenOf(spec, p.claims)
	made.data.from, made.data.by = rs, s.valid
	tok := Token{d: &made.data, fresh: s.trust.freshness(s.trust.look(), now)}
	made.issued = Issued{Access: NewSecret(text), Token: tok}
	return &made.issued, rs, nil
}

// planFor checks r against the client, the scopes and the roles, and fills in p.
func (s *Service) planFor(p *plan, r *Request, who *caller) error {
	p.subject, p.binding = r.Subject, r.Binding
	id := r.Client
	if id == "" {
		id = who.id()
	}
	if !who.none() && who.id() != id {
		return fail(ErrInvalidRequest, "Client and Auth name different clients")
	}
	if err := s.planClient(p, r, id, who); err != nil {
		return err
	}
	if err := checkSubject(p.subject); err != nil {
		return err
	}
	if r.Refresh && id != "" && !slices.Contains(p.client.GrantTypes, granttype.RefreshToken) {
		return fail(ErrDenied, "client %q has no grant type refresh_token", id)
	}
	if err := checkBinding(r.Binding); err != nil {
		return err
	}
	most := s.ceiling(&p.client)
	var err error
	if p.scopes, err = s.scopesFor(&most, r.Scopes, r.Roles); err != nil {
		return err
	}
	p.roles = slices.Clone(r.Roles)
	if p.audiences, err = most.targets(r.Audiences); err != nil {
		return err
	}
	if p.life, err = most.lifetime(r.Lifetime); err != nil {
		return err
	}
	if err := p.narrowTo(r.narrow); err != nil {
		return err
	}
	p.claims, err = marshalClaims(r.Claims)
	return err
}

// narrowTo makes this token be for some of the audiences only.
func (p *plan) narrowTo(audiences []string) error {
	list, bad := among(p.audiences, audiences)
	if bad != "" {
		return fail(ErrInvalidTarget, "audience %q was not granted, or is named twice", bad)
	}
	if len(list) > 0 {
		p.narrow = list
	}
	return nil
}

// planClient decides who asks: the host itself, a client for a subject that the host vouches for, or a client for
// itself, which must prove it.
func (s *Service) planClient(p *plan, r *Request, id string, who *caller) error {
	if id == "" {
		if r.Subject == "" {
			return fail(ErrInvalidRequest, "neither a Subject nor a Client")
		}
		p.client = Client{ID: s.cfg.FirstParty, Public: true}
	} else if !who.none() {
		c, err := who.now(s.Clients)
		if err != nil {
			return err
		}
		p.client = c
	} else if r.Subject == "" {
		return fail(ErrInvalidClient, "a client's own tokens are for whoever proves to be it")
	} else {
		c, err := s.Clients.enabled(id)
		if err != nil {
			return err
		}
		p.client = c
	}
	if r.Subject == "" {
		if p.client.Public {
			return fail(ErrDenied, "a public client has no credential and no tokens of its own")
		}
		if !slices.Contains(p.client.GrantTypes, granttype.ClientCredentials) {
			return fail(ErrDenied, "client %q has no grant type client_credentials", id)
		}
		if r.Refresh {
			return fail(ErrInvalidRequest, "a client's own tokens have no refresh token (RFC 6749 §4.4.3)")
		}
		p.subject, p.own = p.client.ID, true
		return nil
	}
	if r.Subject == s.cfg.FirstParty || s.Clients.lookup(r.Subject) != nil {
		return fail(ErrInvalidRequest, "the subject is a client's ID: its tokens would pass for the client's own")
	}
	return nil
}

func checkSubject(sub string) error {
	if sub == "" || len(sub) > maxSubject || !text.PlainText(sub) {
		return fail(ErrInvalidRequest, "a subject is 1 to 255 bytes of UTF-8 without control characters")
	}
	return nil
}

// issueUnder issues under a grant that lives: at most what the grant holds, for no longer than it.
func (s *Service) issueUnder(ctx context.Context, r Request, m moment, who *caller, known *refusal) (*Issued, error) {
	if err := s.audit.ready(); err != nil {
		return nil, err
	}
	g, _, err := s.grant(ctx, r.Grant)
	if errors.Is(err, ErrNotFound) {
		return nil, fail(ErrInvalidGrant, "no grant %q: only those with a refresh token can be issued under", r.Grant)
	}
	if err != nil {
		return nil, err
	}
	if m, err = s.reach(ctx, m, g.birth()); err != nil {
		return nil, err
	}
	known.Subject, known.Client, known.Grant = g.Subject, g.Client, r.Grant
	if r.Subject != "" && r.Subject != g.Subject || r.Client != "" && r.Client != g.Client || r.Refresh {
		return nil, fail(ErrInvalidRequest, "the request contradicts the grant it names")
	}
	if !who.none() && who.id() != g.Client {
		return nil, fail(ErrInvalidRequest, "the grant is another client's")
	}
	p, err := s.planUnder(ctx, r.Grant, g, r.Scopes)
	if err != nil {
		return nil, err
	}
	if err := p.narrowTo(r.Audiences); err != nil {
		return nil, err
	}
	if len(r.Roles) > 0 {
		return nil, fail(ErrInvalidRequest, "roles are the grant's")
	}
	most := s.ceiling(&p.client)
	if p.life, err = most.lifetime(r.Lifetime); err != nil {
		return nil, err
	}
	if r.Binding != "" && r.Binding != g.Binding {
		if g.Binding != "" {
			return nil, fail(ErrInvalidRequest, "the grant is bound to another key")
		}
		if err := checkBinding(r.Binding); err != nil {
			return nil, err
		}
		p.binding = r.Binding
	}
	if r.Claims != nil {
		if p.claims, err = marshalClaims(r.Claims); err != nil {
			return nil, err
		}
	}
	now := s.now()
	t := stamp{jti: newID(now), grant: r.Grant, iat: now, exp: g.cut(now.Add(p.life)), pos: m.stamp(g.birth())}
	return s.record(ctx, p, t)
}

// record signs a token that opens nothing, writes its event, and checks the rules again before it hands it out.
func (s *Service) record(ctx context.Context, p *plan, t stamp) (*Issued, error) {
	i, rs, err := s.sign(ctx, p, t)
	if err != nil {
		return nil, err
	}
	if err := s.overtaken(rs); err != nil {
		return nil, err
	}
	c := s.newChange()
	c.event(ctx, p.eventOf(t))
	if _, err := s.commit(ctx, c); err != nil {
		return nil, err
	}
	if err := s.overtaken(rs); err != nil {
		return nil, err
	}
	return i, nil
}

// overtaken tells what to do with a token that a rule hits after it was signed under a grant: nothing more comes of what
// has ended; where a role, a client or a signing key changed only, asking again gives what is allowed now.
func (s *Service) overtaken(rs *rules.Subject) error {
	rule := s.rules.Hit(rs)
	if rule == "" {
		return nil
	}
	if s.rules.Hit(renewed(rs)) != "" {
		return fail(ErrInvalidGrant, "a rule on its %s", rule)
	}
	return &Error{Code: ErrUnavailable, RetryAfter: retryHint, Detail: "its " + rule + " changed while it was made"}
}

// renewed is what rules see of the next token that is made of what rs was made of.
func renewed(rs *rules.Subject) *rules.Subject {
	next := *rs
	next.Id, next.Kid, next.Renews = "", "", true
	return &next
}

// planUnder is what a live grant allows now: its client must still be there, and hold what the grant holds.
func (s *Service) planUnder(ctx context.Context, id string, g *grantRecord, asked Scopes) (*plan, error) {
	c, err := s.grantClient(g)
	if err != nil {
		return nil, err
	}
	if err := s.alive(id, g); err != nil {
		return nil, err
	}
	p := &plan{client: c, subject: g.Subject, binding: g.Binding, claims: g.Claims, roles: g.Roles}
	// Each may have lost something since the grant was opened; what one gained since was not granted (RFC 6749 §6).
	most := s.ceiling(&c)
	if p.audiences = meetAudiences(g.Audiences, most.audiences); len(p.audiences) == 0 {
		return nil, fail(ErrInvalidGrant, "none of its audiences may be asked for any more")
	}
	most.meet("the grant", g.Scopes)
	if len(g.Roles) > 0 {
		given, err := s.roles.give(g.Roles)
		if err != nil {
			return nil, err
		}
		most.meet("the grant's roles", given)
	}
	if p.scopes = most.all(); len(asked) > 0 {
		if p.scopes, err = most.take(asked); err != nil {
			return nil, err
		}
	}
	p.life = most.life.Access
	if g.Life > 0 {
		p.life = min(time.Duration(g.Life)*time.Second, most.life.MaxAccess)
	}
	if err := s.mayContinue(ctx, g.public(id)); err != nil {
		return nil, err
	}
	return p, nil
}

// grantClient is the client of a grant, if it may still act.
func (s *Service) grantClient(g *grantRecord) (Client, error) {
	if g.Client == s.cfg.FirstParty {
		return Client{ID: g.Client, Public: true}, nil
	}
	c, err := s.Clients.enabled(g.Client)
	if err != nil {
		return c, &Error{Code: ErrInvalidGrant, Detail: "its client is gone or disabled", Cause: err}
	}
	return c, nil
}

// Exchange implements [Issuer].
func (s *Service) Exchange(ctx context.Context, r ExchangeRequest) (*Issued, error) {
	began := time.Now()
	var known refusal
	i, err := s.exchange(ctx, r, &known)
	s.audit.denied(ctx, "exchange", known, err)
	s.observeIssue(ctx, "exchange", began, i, err)
	return i, err
}

// exchange notes in known which client asks, and whose token it has.
func (s *Service) exchange(ctx context.Context, r ExchangeRequest, known *refusal) (*Issued, error) {
	if err := s.audit.ready(); err != nil {
		return nil, err
	}
	m := s.begin(ctx)
	who, err := s.Clients.caller(ctx, r.Auth)
	if err != nil {
		return nil, err
	}
	if who.none() {
		return nil, fail(ErrInvalidClient, "a client that exchanges tokens has to prove who it is")
	}
	known.by(&who)
	c, err := who.now(s.Clients)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(c.GrantTypes, granttype.TokenExchange) {
		return nil, fail(ErrDenied, "client %q has no grant type token-exchange", c.ID)
	}
	parent, err := s.validateHeld(ctx, r.Token, r.Binding)
	if err != nil {
		return nil, err
	}
	known.Issuer, known.Subject, known.Token, known.Grant = s.foreignIssuer(parent.d), parent.d.Subject, parent.d.ID, parent.d.Grant
	from := parent.d.from
	birth, ours := parent.birth(s.core)
	if !ours { // another's subjects and positions are not ours, whatever we trust it with
		return nil, fail(ErrInvalidRequest, "only tokens of this service are exchanged")
	}
	if m, err = s.reach(ctx, m, birth); err != nil {
		return nil, err
	}
	p := &plan{client: c, subject: parent.Subject(), roles: parent.d.Roles, claims: parent.d.claim, binding: parent.d.Binding, event: event.Exchanged}
	used := []Token{parent}
	// Every actor of the chain is kept: who acts now comes first (RFC 8693 §4.1).
	for _, a := range from.Actors {
		p.actors = append(p.actors, jws.Actor{Subject: a.Subject, Issuer: a.Issuer})
	}
	if r.Actor.IsZero() {
		if !c.MayImpersonate {
			return nil, fail(ErrDenied, "client %q may exchange only with an actor's token", c.ID)
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
		if actor.Subject() == parent.Subject() && !c.MayImpersonate {
			return nil, fail(ErrDenied, "the actor is the subject itself: client %q may exchange only with another's token", c.ID)
		}
		used = append(used, actor)
		p.actors = slices.Insert(p.actors, 0, jws.Actor{Subject: actor.Subject()})
		p.chain = actor.d.from.Lineage()
		birth = birth.earlier(acts)
	}
	if p.chain = append(p.chain, from.Lineage()...); len(p.chain) > maxChain || len(p.actors) > maxActors {
		return nil, fail(ErrInvalidRequest, "the chain of exchanges is too long")
	}
	p.chain = slices.Compact(slices.Sorted(slices.Values(p.chain)))
	most := s.ceiling(&c)
	most.meet("the token", parent.d.Scopes)
	if p.scopes = most.all(); len(r.Scopes) > 0 {
		if p.scopes, err = most.take(r.Scopes); err != nil {
			return nil, err
		}
	}
	if len(r.Audiences) > 0 {
		p.audiences, err = most.targets(r.Audiences)
	} else if p.audiences = meetAudiences(parent.d.Audiences, most.audiences); len(p.audiences) == 0 {
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
	// What is made of an API key knows no limit of uses or rate: to make it is one use.
	for _, key := range used {
		if err := s.consume(ctx, key); err != nil {
			return nil, err
		}
	}
	now := s.now()
	t := stamp{jti: newID(now), grant: newID(now), iat: now, exp: now.Add(p.life), pos: m.stamp(birth)}
	if end := parent.ExpiresAt(); !end.IsZero() && t.exp.After(end) {
		t.exp = end
	}
	return s.record(ctx, p, t)
}

// validateHeld validates c for a caller who has proved to hold the key of binding already. What comes to be exchanged was
// mostly sent to another service, which goes on with it: its audience need not be ours (RFC 8693 §1).
func (s *Service) validateHeld(ctx context.Context, c Credential, binding string) (Token, error) {
	c.anywhere = true
	if binding == "" || c.DPoP != "" {
		return s.Validate(ctx, c)
	}
	c.unproved = true
	t, err := s.Validate(ctx, c)
	if err != nil {
		return t, err
	}
	if b := t.d.Binding; b != "" && b != binding && (c.CertSHA256 == [32]byte{} || b != BindCertificate(c.CertSHA256)) {
		return Token{}, fail(ErrInvalidToken, "bound to a key that was not proved")
	}
	return t, nil
}
