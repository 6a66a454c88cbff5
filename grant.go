// Sessions: their stored form, their limit for one subject, and who may see and end them.

package apitoken

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"slices"
	"time"

	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/internal/follow"
	"github.com/apitoken-go/apitoken/internal/grant"
	"github.com/apitoken-go/apitoken/internal/hook"
	"github.com/apitoken-go/apitoken/internal/quota"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/internal/usage"
	"github.com/apitoken-go/apitoken/store"
)

func putGrant(c *change, id string, g *grantRecord, expect store.Version) error {
	return put(c, &grantForm, store.Record{ID: id, Subject: g.Subject, Client: g.Client, Expires: g.Expires + int64(grantSlack/time.Millisecond)}, g, expect)
}

func grantOf(g *grantRecord, id string) Grant {
	return Grant{ID: id, Subject: g.Subject, Client: g.Client, Scopes: g.Scopes, Roles: g.Roles, Created: time.UnixMilli(g.Created),
		Expires: time.UnixMilli(g.Expires), LastUsed: time.UnixMilli(g.Refreshed), LastAddress: g.Address, Address: g.Address, UserAgent: g.UserAgent}
}

// sessions are the grants that have a record: those with a refresh token.
type sessions struct {
	*core
	quota *quota.Quota // Limits.GrantsPerSubject
}

func newSessions(s *core) *sessions {
	return &sessions{s, s.newQuota(grant.Kind, "grant", s.cfg.Limits.GrantsPerSubject, func(now time.Time, since int64) bool {
		return now.After(time.UnixMilli(since).Add(s.space.Life().Grant + grantSlack))
	})}
}

// read reads one grant, and its version.
func (s *sessions) read(ctx context.Context, id string) (*grantRecord, store.Record, error) {
	r, err := s.get(ctx, grant.Kind, id)
	if err != nil {
		return nil, r, err
	}
	g, err := readGrant(r)
	return g, r, err
}

// Grants lists live grants that target names: by grant, subject, sessions or client, or everything; newest first. A
// grant without a refresh token has no record and is not listed.
func (s *Service) Grants(ctx context.Context, target Target, p Page) iter.Seq2[Grant, error] {
	return s.sessions.list(ctx, target.t, p)
}

// list tells of each how it was used, which costs a read.
func (s *sessions) list(ctx context.Context, target rules.Target, p Page) iter.Seq2[Grant, error] {
	return func(yield func(Grant, error) bool) {
		q := store.Query{Kind: grant.Kind, Newest: true, Limit: 200}
		switch k, id, holder := target.Indexed(); {
		case target.IsZero() || target.Issuer != "" || !target.Before.IsZero():
			yield(Grant{}, fail(ErrInvalidRequest, "the target names no grants"))
			return
		case k == rules.TargetGrant:
			s.one(ctx, target, yield)
			return
		case k == rules.TargetSubject, k == rules.TargetSessions:
			q.Subject = id
		case k == rules.TargetClient:
			q.Client = id
		case k == rules.TargetHeld:
			q.Subject, q.Client = id, holder
		case k == rules.TargetAll:
			q.Subject, q.Client = target.Owner, target.Holder
		default:
			yield(Grant{}, fail(ErrInvalidRequest, "a %s names no grants", k))
			return
		}
		n, skip := 0, p.After != ""
		for {
			page, err := s.st.List(ctx, q)
			if err != nil {
				yield(Grant{}, unavailable(err, "list grants"))
				return
			}
			for _, r := range page.Records {
				if skip { // IDs sort by time: newest first, what follows After is below it
					if r.ID >= p.After {
						continue
					}
					skip = false
				}
				g, err := readGrant(r)
				if err != nil {
					if !yield(Grant{}, err) {
						return
					}
					continue
				}
				if s.alive(r.ID, g) != nil {
					continue
				}
				if !yield(s.used(ctx, grantOf(g, r.ID)), nil) {
					return
				}
				if n++; p.Limit > 0 && n == p.Limit {
					return
				}
			}
			if q.Cursor = page.Cursor; q.Cursor == "" {
				return
			}
		}
	}
}

func (s *sessions) one(ctx context.Context, t rules.Target, yield func(Grant, error) bool) {
	g, _, err := s.read(ctx, t.ID)
	switch {
	case isNotFound(err):
		return
	case err != nil:
		yield(Grant{}, err)
		return
	}
	if t.Proved(g.Subject, g.Client) == nil && s.alive(t.ID, g) == nil {
		yield(s.used(ctx, grantOf(g, t.ID)), nil)
	}
}

// used adds what the counters know of a grant's use.
func (s *sessions) used(ctx context.Context, g Grant) Grant {
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

// open writes a session within the limit of its subject: to count, to end those that are too many and to open the new one is one
// change. store.ErrConflict: write raced with something else than the count.
func (s *sessions) open(ctx context.Context, g *grantRecord, id string, write func(more func(*change) error) error) error {
	if s.quota.Limit == 0 {
		return write(nil)
	}
	leave, err := s.quota.Turns.Enter(ctx, g.Subject)
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
			return tryAgain("many logins of one subject at once")
		}
		before, wait = t.Version(), min(2*wait, 50*time.Millisecond)
	}
}

// crowdedOut reports whether nothing but a rule on its own session hits a login: others of the same subject have taken all the room
// since. It is answered like one that came a little earlier; its caller may find out when the tokens are used.
func (s *sessions) crowdedOut(rs *rules.Subject) bool {
	x := *rs
	x.Grant = ""
	return s.quota.Limit > 0 && s.rules.Hit(&x) == ""
}

// maxEvicted is how many sessions end in the change that opens one: a change has room for 16 records and events.
const maxEvicted = 8

// admit counts the sessions of a subject that is to get one more, within Limits.GrantsPerSubject. It returns
// the count and the sessions that must end with the write of the new one: those that have been idle longest.
func (s *sessions) admit(ctx context.Context, subject string, first bool) (*quota.Count, []Grant, error) {
	limit := s.quota.Limit
	t, err := s.quota.Read(ctx, subject, first, func(r store.Record) (bool, error) {
		g, err := readGrant(r)
		return err == nil && s.alive(r.ID, g) == nil, err
	})
	if err != nil || !t.Full() {
		return t, nil, public(err)
	}

	// Those that have ended since make room.
	var live []Grant
	for _, id := range slices.Clone(t.IDs) {
		g, _, err := s.read(ctx, id)
		switch {
		case isNotFound(err), err == nil && s.alive(id, g) != nil:
			t.Remove(id)
		case err != nil:
			return nil, nil, err
		default:
			live = append(live, grantOf(g, id))
		}
	}
	if !t.Full() {
		return t, nil, nil
	}

	for i, g := range live {
		live[i] = s.used(ctx, g)
	}
	slices.SortFunc(live, func(a, b Grant) int {
		return cmp.Or(a.LastUsed.Compare(b.LastUsed), cmp.Compare(a.ID, b.ID))
	})
	end := live[:len(live)-limit+1]
	for len(end) > maxEvicted { // the limit was lowered
		if err := s.revoke.End(ctx, rules.ByGrant(end[0].ID), overLimit); err != nil {
			return nil, nil, public(err)
		}
		t.Remove(end[0].ID)
		end = end[1:]
	}
	for _, g := range end {
		t.Remove(g.ID)
	}
	return t, end, nil
}

const overLimit = "over the limit of grants for one subject"

// evict ends a session in the change that opens another.
func (s *sessions) evict(ctx context.Context, c *change, g Grant) error {
	t := rules.ByGrant(g.ID)
	if err := s.revoke.Add(ctx, &c.Change, t, false, overLimit); err != nil {
		return public(err)
	}
	c.event(ctx, Event{Type: event.Revoked, OK: true, Reason: overLimit, Target: Target{t}, Subject: g.Subject, Client: g.Client, Grant: g.ID})
	return nil
}

// alive checks the grant's ends: time, idleness, rules.
func (s *core) alive(id string, g *grantRecord) error {
	now := s.now().UnixMilli()
	switch {
	case now/1000 >= g.Expires/1000: // exp is in whole seconds: a token of its last part would outlive it
		return fail(ErrInvalidGrant, "the grant has expired")
	case g.Idle > 0 && now >= g.Refreshed+g.Idle:
		return fail(ErrInvalidGrant, "the grant was idle for too long")
	}
	if rule := s.rules.Hit(g.Seen(id)); rule != "" {
		return fail(ErrInvalidGrant, "a rule on its %s", rule)
	}
	return nil
}

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
