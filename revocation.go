// Revoke, RevokeLeaked, and Explain: what is named, or found in a leaked text, and whether the caller may end it. internal/revoke writes
// the rule that ends it, internal/rules decides by it.

package apitoken

import (
	"context"
	"errors"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/internal/auditlog"
	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/jws"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/internal/revoke"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/internal/ticket"
	"github.com/apitoken-go/apitoken/internal/usage"
	"github.com/apitoken-go/apitoken/store"
)

// Revoke implements [Revoker].
func (s *Service) Revoke(ctx context.Context, target Target, reason string) (failed error) {
	defer tell(&failed)
	return s.revoker().endTarget(ctx, target.t, reason, event.Revoked)
}

// revoker ends tokens: it knows whose they are.
type revoker struct{ *minter }

func (s *minter) revoker() revoker { return revoker{s} }

func (s revoker) endTarget(ctx context.Context, target rules.Target, reason string, why event.Type) error {
	if target.IsZero() {
		return fail(ErrInvalidRequest, "the target names nothing")
	}
	// No store keeps such a name: the rule could never be written, and would be retried until Close.
	for _, name := range [...]string{target.ID, target.Owner, target.Holder, target.Issuer} {
		if !utf8.ValidString(name) || strings.IndexByte(name, 0) >= 0 {
			return fail(ErrInvalidRequest, "a name in the target is not UTF-8 without NUL")
		}
	}
	began := time.Now()
	if target.Issuer == s.cfg.Issuer { // so that one principal has one key
		target.Issuer = ""
	}
	if target.Before.After(s.now()) {
		target.Before = time.Time{} // what is not yet cannot be cut off: everything up to now is
	}
	if target.Issuer != "" && (target.Owner != "" || target.Holder != "") {
		return fail(ErrInvalidRequest, "what another issuer's subject holds is not narrowed: its clients and subjects are not ours")
	}
	owner, holder := target.Owner, target.Holder
	err := s.provenTarget(ctx, &target)
	if errors.Is(err, ErrNotFound) { // someone named what is another's
		known := refusal{usage.Refusal{Subject: owner}}
		if c := s.clients.lookup(holder); c != nil && c.Record.Public { // anybody can say that it is one
			known.Claimed = holder
		} else {
			known.Client = holder
		}
		if k, id := target.Kind, target.ID; k == rules.TargetGrant || k == rules.TargetToken {
			if _, bad := opaque.ParseID(id); bad == nil {
				known.Grant, known.Token = target.EventID(rules.TargetGrant), target.EventID(rules.TargetToken)
			}
		}
		s.denied(ctx, "revoke", known, err)
	}
	r := revoke.Rule{Target: target, Reason: reason, Type: why}
	switch {
	case err != nil:
	case target.Kind == rules.TargetKey && target.Before.IsZero():
		// Of a key of our own ring more must go than what it signed: it would go on signing.
		if err = public(s.signing.ring.Compromise(ctx, target.ID, reason, why)); errors.Is(err, ErrNotFound) {
			err = public(s.revoke.Write(ctx, nil, r))
		}
	default:
		err = public(s.revoke.Write(ctx, nil, r))
	}
	s.observe(ctx, Observation{Op: "revoke", Err: err, Took: time.Since(began)})
	return err
}

// provenTarget checks what a narrowed single target claims: that the grant or token is that subject's or
// client's. Broader targets carry the narrowing in their key.
func (s revoker) provenTarget(ctx context.Context, t *rules.Target) error {
	if t.Owner == "" && t.Holder == "" {
		t.Shown = rules.Shown{}
		return nil
	}
	if t.Shown != (rules.Shown{}) {
		return public(t.Proved(t.Shown.Subject, t.Shown.Client))
	}
	var subject, client string
	switch t.Kind {
	case rules.TargetGrant:
		g, _, err := s.sessions.read(ctx, t.ID)
		if errors.Is(err, ErrNotFound) { // a session without a refresh token lives only in its tokens' events
			return s.provenByEvents(ctx, *t, store.Query{Kind: store.KindEvent, Grant: t.ID, Limit: 1, Type: string(event.Issued)})
		}
		if err != nil {
			return err
		}
		subject, client = g.Subject, g.Client
	case rules.TargetToken:
		k, err := s.apiKeys.Get(ctx, t.ID)
		if errors.Is(err, ErrNotFound) {
			return s.provenByEvents(ctx, *t, store.Query{Kind: store.KindEvent, Token: t.ID, Limit: 1})
		}
		if err != nil {
			return err
		}
		subject = k.Subject
	case rules.TargetSubject, rules.TargetSessions:
		if t.Owner != "" && t.Owner != t.ID {
			return fail(ErrNotFound, "another's")
		}
		t.Owner = ""
		if t.Holder != "" && t.Holder != s.cfg.FirstParty && t.Kind == rules.TargetSessions {
			t.Kind = rules.TargetSubject // one client of one user: the API keys that it made end with its sessions
		}
		return nil
	case rules.TargetClient:
		if t.Holder != "" && t.Holder != t.ID {
			return fail(ErrNotFound, "another's")
		}
		t.Holder = ""
		return nil
	case rules.TargetAll:
		switch {
		case t.Owner != "":
			t.Kind, t.ID, t.Owner = rules.TargetSubject, t.Owner, ""
		default:
			t.Kind, t.ID, t.Holder = rules.TargetClient, t.Holder, ""
		}
		return nil
	default:
		return fail(ErrInvalidRequest, "a %s has no owner", t.Kind)
	}
	return t.Proved(subject, client)
}

func (s revoker) provenByEvents(ctx context.Context, t rules.Target, q store.Query) error {
	page, err := s.st.List(ctx, q)
	if err != nil {
		return unavailable(err, "look for the owner")
	}
	if len(page.Records) == 0 {
		return fail(ErrNotFound, "no %s %q", t.Kind, t.ID)
	}
	return t.Proved(page.Records[0].Subject, page.Records[0].Client)
}

// TargetOf tells what a token in clear stands for: its grant, or the API key. It takes expired and
// revoked ones too, and ErrNotFound if it was not issued here. For revocation by presenting (RFC 7009).
func (s *Service) TargetOf(ctx context.Context, token string) (Target, error) {
	t, err := s.revoker().targetOf(ctx, token)
	return Target{t}, err
}

func (s revoker) targetOf(ctx context.Context, token string) (rules.Target, error) {
	switch opaque.KindOf(token) {
	case opaque.Refresh:
		id, err := s.identifyRefresh(ctx, token)
		if err != nil {
			return rules.Target{}, err
		}
		return rules.ByGrant(id), nil
	case opaque.Ticket, opaque.ClientSecret:
		return rules.Target{}, fail(ErrNotFound, "neither a token nor an API key")
	}
	switch id, err := s.apiKeys.identify(ctx, token); {
	case err != nil:
		return rules.Target{}, err
	case id != "":
		return rules.ByToken(id), nil
	case opaque.KindOf(token) == opaque.APIKey:
		return rules.Target{}, fail(ErrNotFound, "not an API key of this service")
	}
	d, issuer, err := s.valid.signedHere(ctx, token)
	if err != nil {
		return rules.Target{}, &Error{Code: ErrNotFound, Detail: "not a token of this service", Cause: err}
	}
	t := rules.ByToken(d.ID)
	if issuer != "" {
		return t.OfIssuer(issuer), nil // whom it names are not ours: it proves no owner
	}
	if d.Grant != "" {
		t = rules.ByGrant(d.Grant)
	}
	t.Shown = rules.Shown{Subject: d.Subject, Client: d.Client}
	return t, nil
}

// identifyRefresh is the session of a refresh token of ours, spent or not.
func (s *minter) identifyRefresh(ctx context.Context, text string) (string, error) {
	t, err := s.ratchet.Read(ctx, text)
	err = public(err)
	if errors.Is(err, ErrUnavailable) {
		return "", err
	}
	if err != nil {
		return "", &Error{Code: ErrNotFound, Detail: detailOf(err)}
	}
	return opaque.ID(t.Grant).String(), nil
}

// Explain is [JWTValidator.Explain], for every kind of token. Of a revoked one it also tells when, by whom and why, where the
// store has the rule and answers.
func (s *Service) Explain(ctx context.Context, c Credential, r Requirement) Explanation {
	x := s.valid.Explain(ctx, c, r)
	n := len(x.Steps)
	if n == 0 || !errors.Is(x.Err, ErrRevoked) || x.Token.IsZero() {
		return x
	}
	seen := x.Token.d.from
	if seen != nil && x.Token.Issuer() != s.cfg.Issuer {
		seen = seen.Abroad
	}
	if seen != nil {
		if why := s.revoke.Why(ctx, seen); why != "" {
			x.Steps[n-1].Detail += "; " + why
		}
	}
	return x
}

// What is found where it does not belong is ended. Only the thing itself ends it: an ID, a part of it or a look-alike does
// nothing, and takes no longer than junk.

const (
	maxLeakText    = 1 << 20
	maxLeakMatches = 100
	maxLeakLooks   = 1 << 12 // texts that are looked for in the store because they begin as an imported key does
)

// RevokeLeaked finds this service's credentials in text, verifies each, ends them and returns how many, each with an event
// token.leaked. Look-alikes, and what is another service's, are passed over and cost no read of the store.
//
//   - An access or refresh token, expired or not, ends its grant, an API key itself.
//   - A ticket cannot be redeemed any more; one that was ends what it got.
//   - A generated client secret is right no longer, and the tokens that the client got with it for itself end; those of its
//     users stay. Another live secret of the client goes on until its own end. Where there is none the client is shut out until
//     Clients.RotateSecret makes one: what anybody can read proves nobody.
//   - A registration token (Clients.RegistrationToken) is good no longer.
//
// A ticket or secret that has ended already is passed over. ErrInvalidRequest: the text is over 1 MiB. ErrUnavailable: as for
// Revoke, what was found is refused here and this process goes on trying to write it; what could not even be looked up stays,
// so call again. It stops after 100 credentials.
func (s *Service) RevokeLeaked(ctx context.Context, text []byte, reason string) (int, error) {
	if len(text) > maxLeakText {
		return 0, fail(ErrInvalidRequest, "the text has %d bytes, at most %d are searched", len(text), maxLeakText)
	}
	l := &leakSearch{revoker: s.revoker(), reason: reason, seen: map[rules.Target]bool{}, read: map[string]bool{}}
	for secret := range opaque.Find(text) {
		if !l.end(ctx, string(secret)) {
			return l.ended, l.err
		}
	}
	looked := 0
	for key := range s.APIKeys.forms.Find(text) {
		if looked++; looked > maxLeakLooks || !l.end(ctx, key) {
			break
		}
	}
	for token := range jws.Find(text) {
		if !l.end(ctx, token) {
			break
		}
	}
	return l.ended, l.err
}

// leakSearch is one call of RevokeLeaked.
type leakSearch struct {
	revoker
	reason string
	seen   map[rules.Target]bool
	read   map[string]bool // texts: what stands twice is looked up once
	found  int             // of ours, ended or not
	ended  int
	err    error // the first one; what follows is ended all the same
}

// end ends one credential, and says whether to go on.
func (l *leakSearch) end(ctx context.Context, text string) bool {
	if l.read[text] {
		return true
	}
	l.read[text] = true
	found, ended, err := 0, 0, error(nil)
	switch opaque.KindOf(text) {
	case opaque.ClientSecret:
		found, ended, err = l.clients.known.EndLeaked(ctx, text, l.reason)
	case opaque.Ticket:
		found, ended, err = l.endTicket(ctx, text)
	default:
		found, ended, err = l.endToken(ctx, text)
	}
	l.found += found
	l.ended += ended
	if err != nil && l.err == nil {
		l.err = public(err)
	}
	return l.found < maxLeakMatches
}

func (l *leakSearch) endToken(ctx context.Context, text string) (found, ended int, err error) {
	t, err := l.targetOf(ctx, text)
	t.Shown = rules.Shown{} // two credentials of one grant are one target
	switch {
	case errors.Is(err, ErrNotFound) || err == nil && l.seen[t]:
		return 0, 0, nil
	case err != nil:
		return 0, 0, err
	}
	l.seen[t] = true
	if err := l.endTarget(ctx, t, l.reason, event.Leaked); err != nil {
		return 1, 0, err
	}
	return 1, 1, nil
}

// endTicket ends the ticket that text is, and what it got.
func (l *leakSearch) endTicket(ctx context.Context, text string) (found, ended int, err error) {
	id, hash, err := l.findTicket(ctx, text)
	switch {
	case errors.Is(err, ErrInvalidGrant):
		return 0, 0, nil
	case err != nil:
		return 0, 0, err
	}
	ok, err := ticket.EndLeaked[Scope](ctx, l.revoke, id, hash, l.reason)
	switch {
	case err != nil:
		return 1, 0, err
	case !ok:
		return 0, 0, nil
	}
	return 1, 1, nil
}

// revokeHost is a service as those see it who write revocations.
type revokeHost struct{ *core }

func (h revokeHost) Actor(ctx context.Context) rules.Principal { return h.actorOf(ctx) }

func (h revokeHost) Carry(ctx context.Context) func(context.Context) context.Context {
	who, origin := h.actorOf(ctx), originOf(ctx)
	return func(ctx context.Context) context.Context { return WithOrigin(withPrincipal(ctx, who), origin) }
}

func (h revokeHost) Event(ctx context.Context, c *commit.Change, e revoke.Event) {
	x := Event{Type: e.Type, OK: true, Reason: e.Reason, Target: Target{e.Target}, Subject: e.Subject, Client: e.Client, Grant: e.Grant, TokenID: e.Token,
		Scopes: scopesOf(e.Scopes), Count: e.Count, Extra: e.Extra}
	c.Events = append(c.Events, h.record(ctx, &x, make([]byte, 0, auditlog.Room)))
}

func (h revokeHost) Observe(ctx context.Context, err error, took time.Duration) {
	h.observe(ctx, Observation{Op: "revoke", Err: public(err), Took: took})
}
