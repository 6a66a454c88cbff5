// Sessions: read, listed, opened below the limit of one subject.

package grant

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"slices"
	"time"

	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/follow"
	"github.com/apitoken-go/apitoken/internal/quota"
	"github.com/apitoken-go/apitoken/internal/record"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/internal/usage"
	"github.com/apitoken-go/apitoken/store"
)

// Sessions are the sessions of a service that have a record: those with a refresh token.
type Sessions[S ~string] struct {
	Form   *record.Form[Record[S]]
	Writer *commit.Writer
	Rules  *rules.Book
	Uses   *usage.Log
	Quota  *quota.Quota // how many one subject may have
	Now    func() time.Time
	// Evict ends a session that is over the limit, where it cannot end in the change that opens another.
	Evict func(ctx context.Context, id string) error
}

// Session is a record and its ID.
type Session[S ~string] struct {
	ID string
	*Record[S]
}

// Read reads one session, and the record as it is stored.
func (s *Sessions[S]) Read(ctx context.Context, id string) (*Record[S], store.Record, error) {
	r, err := s.Writer.Get(ctx, Kind, id)
	if err != nil {
		return nil, r, err
	}
	g := new(Record[S])
	return g, r, commit.Read(s.Form, r, g)
}

// Put adds the session's record to c, in place of the version expect.
func (s *Sessions[S]) Put(c *commit.Change, id string, g *Record[S], expect store.Version) error {
	return commit.Put(c, s.Form, store.Record{ID: id, Subject: g.Subject, Client: g.Client, Expires: g.kept()}, g, expect)
}

// List lists the living sessions that target names, the newest first, from behind the one with the ID after, and at most limit; zero
// values are all of them. What cannot be read is an error in its place.
func (s *Sessions[S]) List(ctx context.Context, target rules.Target, after string, limit int) iter.Seq2[Session[S], error] {
	return func(yield func(Session[S], error) bool) {
		q := store.Query{Kind: Kind, Newest: true}
		switch k, id, holder := target.Indexed(); {
		case target.IsZero() || target.Issuer != "" || !target.Before.IsZero():
			yield(Session[S]{}, fault.Fail(fault.InvalidRequest, "the target names no grants"))
			return
		case k == rules.TargetGrant:
			g, _, err := s.Read(ctx, id)
			if !errors.Is(err, fault.NotFound) && (err != nil || target.Proved(g.Subject, g.Client) == nil && s.Alive(id, g) == nil) {
				yield(Session[S]{id, g}, err)
			}
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
			yield(Session[S]{}, fault.Fail(fault.InvalidRequest, "a %s names no grants", k))
			return
		}

		n := 0
		for r, err := range s.Writer.Pages(ctx, q, after, 0) {
			g := new(Record[S])
			if err == nil {
				err = commit.Read(s.Form, r, g)
			}
			if err == nil && s.Alive(r.ID, g) != nil {
				continue
			}
			if !yield(Session[S]{r.ID, g}, err) {
				return
			}
			if err != nil {
				continue
			}
			if n++; n == limit {
				return
			}
		}
	}
}

// Alive says by what a session has ended: its time, idleness, or a rule. fault.InvalidGrant.
func (s *Sessions[S]) Alive(id string, g *Record[S]) error { return g.Alive(id, s.Rules, s.Now()) }

// Room is what the change that opens a session does besides: it counts the session, and ends others to make room.
type Room[S ~string] struct {
	count *quota.Count // nil: there is no limit
	End   []Session[S]
}

// Count adds the session with this ID and its record to the count of its subject.
func (r Room[S]) Count(c *commit.Change, id string, g *Record[S]) error {
	if r.count == nil {
		return nil
	}
	r.count.Add(id, g.kept())
	return r.count.Put(c)
}

// Open has write write a session within the limit of its subject: to count, to end those that are too many and to open the new one is
// one change. store.ErrConflict: write raced with something else than the count.
func (s *Sessions[S]) Open(ctx context.Context, subject string, write func(Room[S]) error) error {
	if s.Quota.Limit == 0 {
		return write(Room[S]{})
	}
	leave, err := s.Quota.Turns.Enter(ctx, subject)
	if err != nil {
		return err
	}
	defer leave()
	var before store.Version
	wait := 2 * time.Millisecond
	for try := 1; ; try++ {
		t, end, err := s.admit(ctx, subject, try == 1)
		if err != nil {
			return err
		}
		if try > 1 && t.Version() == before {
			return store.ErrConflict
		}
		err = write(Room[S]{t, end})
		switch {
		case err == nil || !errors.Is(err, store.ErrConflict):
			return err
		case t.Guessed:
			continue
		case try == quota.Tries || !follow.Sleep(ctx, follow.Jitter(wait)):
			return fault.Retry("many logins of one subject at once")
		}
		before, wait = t.Version(), min(2*wait, 50*time.Millisecond)
	}
}

// CrowdedOut reports whether nothing but a rule on its own session hits a login: others of the same subject have taken all the room
// since. It is answered like one that came a little earlier; its caller may find out when the tokens are used.
func (s *Sessions[S]) CrowdedOut(rs *rules.Subject) bool {
	x := *rs
	x.Grant = ""
	return s.Quota.Limit > 0 && s.Rules.Hit(&x) == ""
}

// maxEvicted is how many sessions end in the change that opens one: a change has room for 16 records and events.
const maxEvicted = 8

// admit counts the sessions of a subject that is to get one more. It returns the count and the sessions that must end with the write of
// the new one: those that have been idle longest.
func (s *Sessions[S]) admit(ctx context.Context, subject string, first bool) (*quota.Count, []Session[S], error) {
	alive := func(r store.Record) (bool, error) {
		g := new(Record[S])
		err := commit.Read(s.Form, r, g)
		return err == nil && s.Alive(r.ID, g) == nil, err
	}
	t, err := s.Quota.Read(ctx, subject, first, alive)
	if err != nil || !t.Full() {
		return t, nil, err
	}
	records, err := t.Prune(ctx, alive)
	if err != nil || !t.Full() {
		return t, nil, err
	}

	live := make([]Session[S], len(records))
	for i, r := range records {
		live[i] = Session[S]{r.ID, new(Record[S])}
		if err := commit.Read(s.Form, r, live[i].Record); err != nil {
			return nil, nil, err
		}
	}
	used := commit.All(live, func(g Session[S]) (int64, error) { // when, last
		u, err := s.Uses.Read(ctx, usage.Grant, g.ID)
		if err != nil {
			return g.Refreshed, nil // its refreshes have to do
		}
		return max(u.Last, g.Refreshed), nil
	})
	slices.SortFunc(used, func(a, b commit.Answer[Session[S], int64]) int {
		return cmp.Or(cmp.Compare(a.Got, b.Got), cmp.Compare(a.Of.ID, b.Of.ID))
	})
	for i, u := range used {
		live[i] = u.Of
	}
	end := live[:len(live)-s.Quota.Limit+1]
	for len(end) > maxEvicted { // the limit was lowered
		if err := s.Evict(ctx, end[0].ID); err != nil {
			return nil, nil, err
		}
		t.Remove(end[0].ID)
		end = end[1:]
	}
	for _, g := range end {
		t.Remove(g.ID)
	}
	return t, end, nil
}
