// Revoke and RevokeLeaked: what is named or found, and whether it is whose it must be. rule.go writes it, internal/rules decides.

package apitoken

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/internal/clients"
	"github.com/apitoken-go/apitoken/internal/jws"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/internal/text"
	"github.com/apitoken-go/apitoken/internal/ticket"
	"github.com/apitoken-go/apitoken/internal/usage"
	"github.com/apitoken-go/apitoken/store"
)

// Revoke implements [Revoker].
func (s *Service) Revoke(ctx context.Context, target Target, reason string) (failed error) {
	defer tell(&failed)
	return s.revoker().revoke(ctx, target.t, reason, event.Revoked)
}

// revoker ends tokens: it knows whose they are.
type revoker struct{ *minter }

func (s *minter) revoker() revoker { return revoker{s} }

func (s revoker) revoke(ctx context.Context, target rules.Target, reason string, why event.Type) error {
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
	target = s.ownTarget(target)
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
	switch {
	case err != nil:
	case target.Kind == rules.TargetKey && target.Before.IsZero():
		// Of a key of our own ring more must go than what it signed: it would go on signing.
		if err = public(s.signing.ring.Compromise(ctx, target.ID, reason, string(why))); errors.Is(err, ErrNotFound) {
			err = s.writeRule(ctx, target, false, reason, why, nil)
		}
	default:
		err = s.writeRule(ctx, target, false, reason, why, nil)
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

// why tells of the newest rule that hits t, for Explain; empty if none is found.
func (s revoker) why(ctx context.Context, t Token) string {
	x := t.d.from
	if t.Issuer() != s.cfg.Issuer && x != nil {
		x = x.Abroad
	}
	if x == nil {
		return ""
	}
	kind := s.rules.Hit(x)
	q := store.Query{Kind: store.KindRule}
	switch kind {
	case "":
		return ""
	case rules.TargetToken.String():
		q.Token = t.ID()
	case rules.TargetGrant.String():
		q.Grant = t.Grant()
	case rules.TargetSubject.String():
		q.Subject = t.Subject()
	case rules.TargetClient.String():
		q.Client = x.Client + x.AbroadClient // one of them is empty
	default:
		q.Type = kind
	}
	issuer := x.Issuer
	var newest rules.Record
	for r, err := range s.pages(ctx, q, Page{}) {
		if err != nil {
			break
		}
		x, err := rules.ReadRule(r)
		other := x.Target.Issuer != issuer || x.Target.Holder != "" && x.Target.Holder != t.Client() || x.Target.Kind == rules.TargetSessions && t.IsAPIKey()
		if err == nil && x.At > newest.At && !other {
			newest = x
		}
	}
	if newest.At == 0 {
		return ""
	}
	why := "; " + newest.Target.String() + " was revoked at " + time.UnixMilli(newest.At).UTC().Format(time.RFC3339)
	if newest.Actor != "" {
		why += " by " + newest.Actor
		var more ruleExt
		if json.Unmarshal([]byte(newest.Ext.Ext), &more) == nil && more.ActorIssuer != "" {
			why += " of " + text.CleanText(more.ActorIssuer)
		}
	}
	if newest.Reason != "" {
		why += ": " + text.CleanText(newest.Reason)
	}
	return why
}

// TargetOf tells what a token in clear stands for: its grant, or the API key. It takes expired and
// revoked ones too, and ErrNotFound if it was not issued here. For revocation by presenting (RFC 7009).
func (s *Service) TargetOf(ctx context.Context, token string) (Target, error) {
	t, err := s.revoker().targetOf(ctx, token)
	return Target{t}, err
}

func (s revoker) targetOf(ctx context.Context, token string) (rules.Target, error) {
	switch opaque.KindOf(token) {
	case opaque.APIKey:
		id, err := s.apiKeys.identify(ctx, token)
		if err != nil {
			return rules.Target{}, err
		}
		return rules.ByToken(id), nil
	case opaque.Refresh:
		id, err := s.identifyRefresh(ctx, token)
		if err != nil {
			return rules.Target{}, err
		}
		return rules.ByGrant(id), nil
	case opaque.Ticket, opaque.ClientSecret:
		return rules.Target{}, fail(ErrNotFound, "neither a token nor an API key")
	}
	if id, err := s.apiKeys.identifyImported(ctx, token); err != nil {
		return rules.Target{}, err
	} else if id != "" {
		return rules.ByToken(id), nil
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
	if n := len(x.Steps); n > 0 && errors.Is(x.Err, ErrRevoked) && !x.Token.IsZero() {
		x.Steps[n-1].Detail += s.revoker().why(ctx, x.Token)
	}
	return x
}

// What is found where it does not belong is ended. Only the thing itself ends it: an ID, a part of it or a look-alike does
// nothing, and takes no longer than junk.

const (
	maxLeakText    = 1 << 20
	maxLeakMatches = 100
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
		found, ended, err = l.clients.endLeaked(ctx, text, l.reason)
	case opaque.Ticket:
		found, ended, err = l.endTicket(ctx, text)
	default:
		found, ended, err = l.endToken(ctx, text)
	}
	l.found += found
	l.ended += ended
	if err != nil && l.err == nil {
		l.err = err
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
	if err := l.revoke(ctx, t, l.reason, event.Leaked); err != nil {
		return 1, 0, err
	}
	return 1, 1, nil
}

// The end of a secret or a ticket is a rule on its ID, as that of an API key is: in force here before the store is asked,
// put back into a store that lost it, copied with the others. It is written together with what takes the thing out of its
// record, which decides in other processes where their view would be too old.

// endTicket ends the ticket that text is, and what it got.
func (s *leakSearch) endTicket(ctx context.Context, text string) (found, ended int, err error) {
	id, hash, err := s.findTicket(ctx, text)
	switch {
	case errors.Is(err, ErrInvalidGrant):
		return 0, 0, nil
	case err != nil:
		return 0, 0, err
	}
	ok, err := s.endHeld(ctx, []rules.Target{rules.ByToken(id)}, func(ctx context.Context) (bool, error) { return s.spoilTicket(ctx, id, hash) })
	switch {
	case err != nil:
		return 1, 0, err
	case !ok:
		return 0, 0, nil
	}
	return 1, 1, nil
}

// spoilTicket writes that a ticket has leaked, and reports whether there was anything to end. Against a use in parallel the
// store decides: either that finds it spoilt, or what it got is revoked.
func (s *leakSearch) spoilTicket(ctx context.Context, id string, hash [32]byte) (bool, error) {
	reason := s.reason
	for range refreshTries {
		r, err := s.get(ctx, ticket.Kind, id)
		switch {
		case isNotFound(err): // purged, or not written after all
			return false, nil
		case err != nil:
			return false, err
		}
		t, err := readTicket(r)
		if err != nil {
			return false, err
		}
		if t.Leaked || subtle.ConstantTimeCompare(hash[:], t.Hash[:]) != 1 {
			return false, nil
		}
		if t.Spent != "" {
			ended, err := s.endSpent(ctx, r, t, reason, event.Leaked)
			if errors.Is(err, store.ErrConflict) {
				continue
			}
			return ended, err
		}
		t.Leaked = true
		c := s.newChange()
		if err := put(c, &ticketForm, store.Record{ID: id, Subject: r.Subject, Client: r.Client, Expires: r.Expires}, t, r.Version); err != nil {
			return false, err
		}
		if err := s.addRuleUntil(ctx, c, rules.ByToken(id), false, reason, r.Expires); err != nil {
			return false, err
		}
		c.event(ctx, Event{Type: event.Leaked, OK: true, Reason: reason, Target: ByToken(id), TokenID: id, Subject: t.Subject, Client: t.Client, Scopes: t.Scopes,
			Extra: map[string]string{"leaked": "ticket"}})
		_, err = s.commit(ctx, c)
		if !errors.Is(err, store.ErrConflict) {
			return err == nil, err
		}
	}
	return false, tryAgain("parallel uses of one ticket")
}

// ownTokens are what a client got for itself, and what came of that.
func ownTokens(client string) rules.Target { return rules.BySubject(client).HeldBy(client) }

// endLeaked ends the client secret or registration token that text is, with whomever has it.
func (cs *Clients) endLeaked(ctx context.Context, text, reason string) (found, ended int, err error) {
	g, err := cs.proofs.Read(ctx, text)
	if g.Key == nil || err != nil {
		return 0, 0, public(err)
	}
	list := cs.known.Holders(g)
	if len(list) == 0 && g.Ours {
		// Another process may have made it a moment ago. Junk ends at the tag, without a look at the store.
		if err := cs.s.state.Refresh(ctx); err != nil {
			return 0, 0, unavailable(err, "look for the client of a leaked secret")
		}
		list = cs.known.Holders(g)
	}
	for _, x := range list {
		targets := []rules.Target{rules.ByToken(x.ID)}
		if !x.Registration {
			targets = append(targets, ownTokens(x.Client))
		}
		ok, e := cs.s.endHeld(ctx, targets, func(ctx context.Context) (bool, error) { return cs.withdraw(ctx, x, reason) })
		switch {
		case e != nil:
			found++
			if err == nil {
				err = e
			}
		case ok:
			found++
			ended++
		}
	}
	return found, ended, err
}

// withdraw takes x out of its client's record, and reports whether it was there.
func (cs *Clients) withdraw(ctx context.Context, x clients.Held, reason string) (bool, error) {
	for range refreshTries {
		rec, v, err := cs.read(ctx, x.Client)
		switch {
		case isNotFound(err):
			return false, nil
		case err != nil:
			return false, err
		}
		if !rec.Withdraw(x.Hash, cs.s.now()) {
			// Done before, perhaps by us, unheard: this process must know it too before it stops refusing on its own.
			if err := cs.s.state.Refresh(ctx); err != nil {
				return false, unavailable(err, "read back the client of a leaked secret")
			}
			return false, nil
		}
		c := cs.s.newChange()
		if err := rec.Put(&c.Change, x.Client, v); err != nil {
			return false, public(err)
		}
		// The rule on the secret stays until the janitor has seen to it that no record holds the secret.
		if err := cs.s.addRuleUntil(ctx, c, rules.ByToken(x.ID), false, reason, 0); err != nil {
			return false, err
		}
		what := "registration token"
		if !x.Registration {
			what = "client secret"
			if err := cs.s.addRule(ctx, c, ownTokens(x.Client), false, reason); err != nil {
				return false, err
			}
			c.event(ctx, Event{Type: event.Revoked, OK: true, Reason: reason, Target: Target{ownTokens(x.Client)}, Subject: x.Client, Client: x.Client})
		}
		c.event(ctx, Event{Type: event.Leaked, OK: true, Reason: reason, Target: ByToken(x.ID), TokenID: x.ID, Client: x.Client, Extra: map[string]string{"leaked": what}})
		_, err = cs.s.commit(ctx, c)
		if !errors.Is(err, store.ErrConflict) {
			return err == nil, err
		}
	}
	return false, tryAgain("parallel updates of client %s", x.Client)
}

// forget takes secrets that a rule has ended out of records that still have them, because the store once lost its latest
// writes and got the rule back.
func (cs *Clients) forget(ctx context.Context, id string) error {
	key, err := opaque.ParseID(id)
	if err != nil {
		return nil
	}
	for _, client := range cs.known.With(key) {
		rec, v, err := cs.read(ctx, client)
		if isNotFound(err) {
			continue
		}
		if err != nil {
			return err
		}
		if !rec.Forget(key[:]) {
			continue
		}
		c := cs.s.newChange()
		if err := rec.Put(&c.Change, client, v); err != nil {
			return public(err)
		}
		c.event(ctx, Event{Type: event.ClientChanged, OK: true, Reason: "leaked secret withdrawn", Client: client, Scopes: scopesOf(rec.Scopes)})
		if _, err := cs.s.commit(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

// maxLeakLooks bounds how many texts are looked for in the store because they begin as an imported key does.
const maxLeakLooks = 1 << 12
