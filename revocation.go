// Revoke: what is named, whether it is whose it must be, and the rule that is written. internal/rules decides at validation.

package apitoken

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/internal/lineage"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/internal/record"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/internal/text"
	"github.com/apitoken-go/apitoken/internal/usage"
	"github.com/apitoken-go/apitoken/store"
)

// Revoker ends tokens.
type Revoker interface {
	// Revoke refuses what target names from now on: in this process when it returns, in every
	// other one within its bound. A target that is unknown is not an error, unless it was narrowed
	// by OwnedBy or HeldBy: then ErrNotFound. ErrUnavailable: in force here, and this process goes
	// on trying to write it; others may not know it yet.
	Revoke(ctx context.Context, target Target, reason string) error
}

const maxReason = 256

// Revoke implements [Revoker].
func (s *Service) Revoke(ctx context.Context, target Target, reason string) (failed error) {
	defer tell(&failed)
	return s.revoker.revoke(ctx, target.t, reason, event.Revoked)
}

// revoker ends tokens: it knows whose they are.
type revoker struct{ *minter }

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
		s.audit.denied(ctx, "revoke", known, err)
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

// ownTarget spells our own issuer as the empty one, so that one principal has one key.
func (s *core) ownTarget(t rules.Target) rules.Target {
	if t.Issuer == s.cfg.Issuer {
		t.Issuer = ""
	}
	return t
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

// writeRule puts a rule into force here, then into the store, together with its event and what extra adds. While
// the outcome is unknown the rule stays in force here and is tried again until the store has it.
func (s *core) writeRule(ctx context.Context, t rules.Target, mint bool, reason string, why event.Type, extra func(*change) error) error {
	hold := &rules.Held{Target: t, Mint: mint}
	s.rules.Hold(hold)
	c := s.newChange()
	err := s.addRule(ctx, c, t, mint, reason)
	if err == nil && extra != nil {
		err = extra(c)
	}
	if err != nil {
		s.rules.Release(hold)
		return err
	}
	e := Event{Type: why, OK: true, Reason: reason, Target: Target{t}, Subject: t.EventSubject(),
		Grant: t.EventID(rules.TargetGrant), TokenID: t.EventID(rules.TargetToken)}
	if t.Issuer == "" { // or it is the name of another's client, which Target tells
		e.Client = t.EventClient()
	}
	s.nameOwner(ctx, &e)
	c.event(ctx, e)
	_, err = s.commit(ctx, c)
	switch {
	case err == nil:
		s.rules.Release(hold)
		return nil
	case errors.Is(err, store.ErrConflict):
		s.rules.Release(hold) // only with extra: its caller reads again and comes back
		return err
	}
	s.retryRule(hold, s.ruleWriter(c))
	return err
}

// nameOwner notes whose grant or API key was revoked, where the store says so at once: the rule is in force by now, and does
// not wait for it. Where there is no record the event says so: the ID of a session without a refresh token has none, and one
// with a typing error hasn't either.
func (s *core) nameOwner(ctx context.Context, e *Event) {
	if e.Subject != "" || e.Grant == "" && e.TokenID == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 250*time.Millisecond)
	defer cancel()
	kind, id := kindGrant, e.Grant
	if e.TokenID != "" {
		kind, id = store.KindAPIKey, e.TokenID
	}
	r, err := s.st.Get(ctx, kind, id)
	switch {
	case err == nil:
		e.Subject, e.Client = r.Subject, r.Client
	case errors.Is(err, store.ErrNotFound) && e.Target.t.Issuer == "" && e.Target.t.Shown == (rules.Shown{}):
		e.Extra = map[string]string{"found": "no record"}
		if _, bad := opaque.ParseID(id); bad != nil { // no token, grant or key of this service is called that
			e.Extra["found"] = "nothing"
			s.log.Warn("apitoken: a revocation names nothing that this service made", "target", text.CleanText(e.Target.String()))
		}
	}
}

// addRule puts the rule's record into c.
func (s *core) addRule(ctx context.Context, c *change, t rules.Target, mint bool, reason string) error {
	return s.addRuleUntil(ctx, c, t, mint, reason, s.ruleExpiry(ctx, t, s.state.Latest(s.now())))
}

// addRuleUntil is addRule for a rule that may be purged at expires, Unix ms; 0: as ruleExpiry says.
func (s *core) addRuleUntil(ctx context.Context, c *change, t rules.Target, mint bool, reason string, expires int64) error {
	now := s.state.Latest(s.now())
	r := store.Record{ID: newID(now), Type: t.Kind.String(), Expires: expires}
	r.Subject, r.Client, r.Grant, r.Token = t.EventSubject(), t.EventClient(), t.EventID(rules.TargetGrant), t.EventID(rules.TargetToken)
	who := s.actorOf(ctx)
	x := &rules.Record{V: 1, Target: t, Mint: mint, At: now.UnixMilli(), Reason: clip(strings.ToValidUTF8(reason, "\ufffd"), maxReason), Actor: who.Subject}
	if who.Issuer != "" { // an older process may ignore it: only Explain reads it
		more, err := json.Marshal(ruleExt{ActorIssuer: text.CleanText(who.Issuer)})
		if err != nil {
			return err
		}
		x.Ext.Ext = record.Object(more)
	}
	return put(c, &rules.RuleForm, r, x, store.Version{})
}

// ruleExt is what rules.Record's Ext may hold.
type ruleExt struct {
	ActorIssuer string `json:"actor_issuer,omitempty"`
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

const ruleSlack = rules.Slack

// maxPrepared is the longest that a ticket, a pushed request or a waiting device can stand for what was confirmed before.
const maxPrepared = max(maxTicket, maxNoteLife)

// ruleExpiry is the earliest time to purge a rule on t: after everything that it hits has died. 0: not before the
// janitor has ended the API keys that it hits, or never.
func (s *core) ruleExpiry(ctx context.Context, t rules.Target, now time.Time) int64 {
	longest := s.space.Life()
	if t.Issuer != "" { // it has neither sessions nor API keys here, and its tokens may live longer than ours
		return now.Add(max(longest.Access, longest.Foreign) + ruleSlack).UnixMilli()
	}
	access := now.Add(max(longest.Access, longest.Same) + ruleSlack)
	// What was prepared before the rule, an approved device's code among it, may be redeemed until it expires.
	session := now.Add(max(longest.Access+longest.Grant, longest.Same, maxPrepared) + ruleSlack)
	switch t.Kind {
	case rules.TargetToken:
		_, err := s.st.Get(ctx, store.KindAPIKey, t.ID)
		if errors.Is(err, store.ErrNotFound) && !s.lineage.Any(ctx, lineage.Thing, t.ID) {
			return access.UnixMilli()
		}
		return 0
	case rules.TargetGrant:
		if s.lineage.Any(ctx, lineage.Thing, t.ID) {
			return 0
		}
		return session.UnixMilli()
	case rules.TargetSessions:
		if s.lineage.Any(ctx, lineage.Subject, t.ID) {
			return 0
		}
		return session.UnixMilli()
	case rules.TargetRole:
		return access.UnixMilli()
	}
	return 0
}

// clip cuts a host's own text; what came from a client is cut and escaped when the event is made.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return s[:n]
}

// retryRule keeps trying to write a rule whose outcome is unknown, until it is known or the service closes.
func (s *core) retryRule(hold *rules.Held, write func(context.Context) error) {
	s.retries.Add(hold.Target, write, func() { s.rules.Release(hold) })
}

// ruleWriter writes c again, which holds a rule. Where what came with the rule lost a race in the meantime, or was done and
// changed again, the rule is written alone: whoever asked for both was told that it is in force and will be written. If the
// rule is there already, a conflict says so.
func (s *core) ruleWriter(c *change) func(context.Context) error {
	return func(ctx context.Context) error {
		_, err := s.commit(ctx, c)
		if !errors.Is(err, store.ErrConflict) || len(c.Puts) == 1 {
			return err
		}
		c = c.alone()
		_, err = s.commit(ctx, c)
		return err
	}
}

// alone is c's rule and the last of its events, which is the rule's own.
func (c *change) alone() *change {
	a := c.s.newChange()
	for _, p := range c.Puts {
		if p.Kind == store.KindRule {
			a.Puts = append(a.Puts, store.Put{Record: p.Record})
		}
	}
	a.Events = c.Events[len(c.Events)-1:]
	return a
}

// TargetOf tells what a token in clear stands for: its grant, or the API key. It takes expired and
// revoked ones too, and ErrNotFound if it was not issued here. For revocation by presenting (RFC 7009).
func (s *Service) TargetOf(ctx context.Context, token string) (Target, error) {
	t, err := s.revoker.targetOf(ctx, token)
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

// Target names tokens. The zero Target, and one made of an empty ID, names none: Revoke refuses it.
type Target struct{ t rules.Target }

// ByToken names an access token by its jti, or an API key by its ID.
func ByToken(id string) Target { return Target{rules.ByToken(id)} }

// ByGrant names a session: its tokens, its refresh token, and what was exchanged from it.
func ByGrant(id string) Target { return Target{rules.ByGrant(id)} }

// BySubject names all that a subject holds: sessions, tokens and API keys. What is issued afterwards is good.
func BySubject(subject string) Target { return Target{rules.BySubject(subject)} }

// BySessions names a subject's sessions and tokens and spares its API keys: log out everywhere.
func BySessions(subject string) Target { return Target{rules.BySessions(subject)} }

// ByClient names all that a client holds, for itself or for subjects, and what was exchanged from it by others.
func ByClient(client string) Target { return Target{rules.ByClient(client)} }

// ByRole names the tokens that carry a role. It asks for them to be minted again: a refresh is good.
func ByRole(role string) Target { return Target{rules.ByRole(role)} }

// BySigningKey names all that a key signed, by its kid. [SigningKeys.Compromise] also replaces the key.
func BySigningKey(kid string) Target { return Target{rules.BySigningKey(kid)} }

// Everything names every token and API key of the service.
func Everything() Target { return Target{rules.Everything()} }

// OfIssuer makes a subject, client or token one of another trusted issuer: a principal is issuer and subject together.
func (t Target) OfIssuer(issuer string) Target { return Target{t.t.OfIssuer(issuer)} }

// OwnedBy narrows a target to what is subject's: Revoke answers ErrNotFound for a grant or token
// of someone else. For pages where users name IDs. An empty subject makes the target name none.
func (t Target) OwnedBy(subject string) Target { return Target{t.t.OwnedBy(subject)} }

// HeldBy narrows a target to what client holds: with BySubject, one application of one user. An
// empty client makes the target name none.
func (t Target) HeldBy(client string) Target { return Target{t.t.HeldBy(client)} }

// IssuedBefore moves the cut-off from now to then, to the second: what was issued until then is refused, and what descends
// from it, refreshed or exchanged since. A time in the future is taken as now.
func (t Target) IssuedBefore(then time.Time) Target { return Target{t.t.IssuedBefore(then)} }

// IsZero reports that t names nothing.
func (t Target) IsZero() bool { return t.t.IsZero() }

// String is the text form, such as "subject:alice" or "grant:01j9…;owner=alice".
func (t Target) String() string { return t.t.String() }

// MarshalText is String; the zero Target is the empty text.
func (t Target) MarshalText() ([]byte, error) { return t.t.MarshalText() }

// UnmarshalText reads what String makes. ErrInvalidRequest: anything else, so that one target has one text.
func (t *Target) UnmarshalText(b []byte) error { return public(t.t.UnmarshalText(b)) }

// end writes the rule that a host asked for, of a target that needs no proof.
func (s *core) end(ctx context.Context, t rules.Target, reason string) error {
	began := time.Now()
	err := s.writeRule(ctx, t, false, reason, event.Revoked, nil)
	s.observe(ctx, Observation{Op: "revoke", Err: err, Took: time.Since(began)})
	return err
}
