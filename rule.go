// How the rule of a revocation is written: in force here at once, then in the store with its event. audit.go has Target.

package apitoken

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/internal/grant"
	"github.com/apitoken-go/apitoken/internal/lineage"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/internal/record"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/internal/text"
	"github.com/apitoken-go/apitoken/store"
)

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
	kind, id := grant.Kind, e.Grant
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

const maxReason = 256

// clip cuts a host's own text; what came from a client is cut and escaped when the event is made.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return s[:n]
}

// maxPrepared is the longest that a ticket, or the note of a pushed request or a waiting device, can stand for what was confirmed
// before.
const maxPrepared = 24 * time.Hour

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

// end writes the rule that a host asked for, of a target that needs no proof.
func (s *core) end(ctx context.Context, t rules.Target, reason string) error {
	began := time.Now()
	err := s.writeRule(ctx, t, false, reason, event.Revoked, nil)
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

// endHeld puts rules on targets into force here, then has the store told by write, which does nothing where it was told
// already. As long as the outcome is unknown they stay in force, and write is tried again.
func (s *core) endHeld(ctx context.Context, targets []rules.Target, write func(context.Context) (bool, error)) (bool, error) {
	began := time.Now()
	holds := make([]*rules.Held, len(targets))
	for i, t := range targets {
		holds[i] = &rules.Held{Target: t}
		s.rules.Hold(holds[i])
	}
	release := func() {
		for _, h := range holds {
			s.rules.Release(h)
		}
	}
	ended, err := write(ctx)
	s.observe(ctx, Observation{Op: "revoke", Err: err, Took: time.Since(began)})
	if !errors.Is(err, ErrUnavailable) {
		release()
		return ended, err
	}
	who, origin := s.actorOf(ctx), originOf(ctx)
	s.retries.Add(targets[0], func(ctx context.Context) error {
		_, err := write(WithOrigin(withPrincipal(ctx, who), origin))
		return err
	}, release)
	return false, err
}
