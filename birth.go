package apitoken

import (
	"context"
	"errors"
	"time"

	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/follow"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/store"
)

// Two places in the order of changes decide whether a rule refuses something: where its identity was confirmed, and what was
// known when it was made. Both are taken here and nowhere else, so that nothing is stamped with a place that is later than what
// was looked at: a test sees to it that no other file asks for the position.

// birth is where an identity was confirmed. What descends from it has its birth, however much later it is made: a rule that came
// since refuses it. There are two ways to one: a moment, in which the host itself vouches for somebody, and what was verified and
// has one already, a token, a ticket, a grant or an API key.
type birth struct{ at store.Position }

// moment is what was known at the start of a call, or of a new try: before anything is looked at that the outcome stands on.
type moment struct {
	view  store.Position
	rules uint64 // their version
	host  birth  // of an identity that the host confirms: now, or when it began
	begun bool   // by the host, before this call: its birth cannot be had anew
}

// begin takes the moment.
func (s *core) begin(ctx context.Context) moment {
	m := moment{view: s.state.Position(), rules: s.rules.Version.Load()}
	m.host = birth{m.view}
	if b, ok := ctx.Value(begunKey{}).(begun); ok && b.by == s {
		m.host, m.rules, m.begun = b.host, b.rules, true
	}
	return m
}

// reach is the moment for what descends from b. A process that has not seen as far as b, which another one made, looks first: no
// token says that less was known when it was made than when its identity was confirmed. It is called before anything is planned.
func (s *core) reach(ctx context.Context, m moment, b birth) (moment, error) {
	if b.at.History != m.view.History || b.at.N <= m.view.N { // of another history the rules know what to make
		return m, nil
	}
	if err := s.state.CatchUp(ctx, b.at); err != nil {
		return m, unavailable(err, "see as far as another process that confirmed the identity")
	}
	m.view = s.state.Position()
	return m, nil
}

// login is the birth of an identity that the host confirmed.
func (m moment) login() birth { return m.host }

// stamp is what a token or an API key carries that was made in this moment.
func (m moment) stamp(b birth) rules.Positions { return rules.Positions{Birth: b.at, View: m.view} }

// passed reports whether a rule came since the moment, or is on its way.
func (m moment) passed(rules *rules.Book) bool {
	return rules.Version.Load() != m.rules || rules.Pending.Load() != nil
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
// the error of a caller whom other writers overtake each time.
func settle[T any](ctx context.Context, s *core, m moment, busy *Error, try func(moment) (T, error)) (T, error) {
	for n := 1; ; n++ {
		x, err := try(m)
		late, _ := err.(*overtaking)
		switch {
		case late != nil && late.ended, late == nil && !errors.Is(err, store.ErrConflict):
			return x, err
		case n < commit.Tries:
			// A change that is on its way to the store has no place in the order yet: what is made now would fall to it too.
			if late != nil && s.rules.Pending.Load() != nil && !follow.Sleep(ctx, follow.Jitter(time.Millisecond<<n)) {
				return x, late.why
			}
			m.view = s.begin(ctx).view
		case late != nil:
			return x, late.why
		default:
			return x, busy
		}
	}
}

type begunKey struct{}

type begun struct {
	by *core
	moment
}

// Begin returns a context in which what is issued or prepared counts from now: call it when somebody begins to prove who he is.
// Whatever is revoked meanwhile, while a directory is asked or a request's body comes in, then reaches what comes of it.
// It is for one request.
func (s *Service) Begin(ctx context.Context) context.Context {
	return context.WithValue(ctx, begunKey{}, begun{s.core, s.begin(ctx)})
}

// birth is that of a token of ours that was verified; false: it has none here.
func (t Token) birth(s *core) (birth, bool) {
	if t.d == nil || t.d.from == nil || t.d.Issuer != s.cfg.Issuer {
		return birth{}, false
	}
	return birth{t.d.from.Pos.Birth}, true
}

// earlier is the birth of what two made: a rule that hits either hits it.
func (b birth) earlier(o birth) birth {
	if o.at.N < b.at.N {
		return o
	}
	return b
}
