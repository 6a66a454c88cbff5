// Sessions for hosts: listed (Grants), written, given up where a subject has too many, asked about (Config.MayContinue).
// internal/grant keeps and counts them.

package apitoken

import (
	"context"
	"errors"
	"iter"
	"slices"
	"time"

	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/internal/grant"
	"github.com/apitoken-go/apitoken/internal/hook"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/internal/usage"
	"github.com/apitoken-go/apitoken/store"
)

func grantOf(g *grantRecord, id string) Grant {
	return Grant{ID: id, Subject: g.Subject, Client: g.Client, Scopes: g.Scopes, Roles: g.Roles, Created: time.UnixMilli(g.Created),
		Expires: time.UnixMilli(g.Expires), LastUsed: time.UnixMilli(g.Refreshed), LastAddress: g.Address, Address: g.Address, UserAgent: g.UserAgent}
}

// sessions are the grants that have a record: those with a refresh token.
type sessions struct {
	*core
	grant.Sessions[Scope]
}

func newSessions(s *core) *sessions {
	q := s.newQuota(grant.Kind, "grant", s.cfg.Limits.GrantsPerSubject, func(now time.Time, since int64) bool {
		return now.After(time.UnixMilli(since).Add(s.space.Life().Grant + grant.Slack))
	})
	return &sessions{s, grant.Sessions[Scope]{Form: grantForm, Writer: &s.writer, Rules: s.rules, Uses: s.audit.Uses, Quota: q, Now: s.now,
		Evict: func(ctx context.Context, id string) error { return s.revoke.End(ctx, rules.ByGrant(id), overLimit) }}}
}

// read reads one grant, and the record as it is stored.
func (s *sessions) read(ctx context.Context, id string) (*grantRecord, store.Record, error) {
	g, r, err := s.Read(ctx, id)
	return g, r, public(err)
}

// put adds a grant to c, in place of the version expect.
func (s *sessions) put(c *change, id string, g *grantRecord, expect store.Version) error {
	return public(s.Put(&c.Change, id, g, expect))
}

// Grants lists live grants that target names: by grant, subject, sessions or client, or everything; newest first. A
// grant without a refresh token has no record and is not listed. Of each it tells how it was used, which costs a read.
func (s *Service) Grants(ctx context.Context, target Target, p Page) iter.Seq2[Grant, error] {
	return func(yield func(Grant, error) bool) {
		for x, err := range s.sessions.List(ctx, target.t, p.After, p.Limit) {
			var g Grant
			if err == nil {
				g = s.used(ctx, grantOf(x.Record, x.ID))
			}
			if !yield(g, public(err)) {
				return
			}
		}
	}
}

// used adds what the counters know of a grant's use.
func (s *core) used(ctx context.Context, g Grant) Grant {
	u, err := s.usage(ctx, usage.Grant, g.ID)
	if err != nil {
		return g // how often it was used is no reason to hide it
	}
	g.Uses, g.UsedScopes = u.Count, u.Scopes
	if u.Last.After(g.LastUsed) {
		g.LastUsed = u.Last
	}
	if len(u.Addresses) > 0 {
		g.LastAddress = u.Addresses[0]
	}
	return g
}

const overLimit = "over the limit of grants for one subject"

// enter adds to c the session that it opens, and what makes room for it: others that end.
func (s *sessions) enter(ctx context.Context, c *change, room grant.Room[Scope], id string, g *grantRecord) error {
	if err := s.put(c, id, g, store.Version{}); err != nil {
		return err
	}
	if err := room.Count(&c.Change, id, g); err != nil {
		return public(err)
	}
	for _, x := range room.End {
		t := rules.ByGrant(x.ID)
		if err := s.revoke.Add(ctx, &c.Change, t, false, overLimit); err != nil {
			return public(err)
		}
		c.event(ctx, Event{Type: event.Revoked, OK: true, Reason: overLimit, Target: Target{t}, Subject: x.Subject, Client: x.Client, Grant: x.ID})
	}
	return nil
}

// alive says by what a grant has ended: its time, idleness, or a rule.
func (s *core) alive(id string, g *grantRecord) error { return public(g.Alive(id, s.rules, s.now())) }

// mayContinue asks the host. What is no answer of the host's is ErrUnavailable: clients drop their sessions at ErrInvalidGrant.
func (s *core) mayContinue(ctx context.Context, g Grant) error {
	if s.cfg.MayContinue == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, hookTime)
	defer cancel()
	g.Scopes, g.Roles = slices.Clone(g.Scopes), slices.Clone(g.Roles) // it says yes or no, and may be late
	_, err := hook.Call(ctx, func(ctx context.Context) (struct{}, error) { return struct{}{}, s.cfg.MayContinue(ctx, g) })
	if stack := hook.Stack(err); stack != "" {
		s.log.Error("apitoken: Config.MayContinue panicked", "error", err, "stack", stack)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrUnavailable), errors.Is(err, hook.ErrPanicked), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return unavailable(err, "Config.MayContinue")
	}
	return &Error{Code: ErrInvalidGrant, Detail: "Config.MayContinue refused", Cause: err}
}
