package pgstore

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/apitoken-go/apitoken/store"
)

// Callers that write at the same time share a transaction: it is one round trip, one commit and one sync for all of them, and one statement
// for those of a namespace. Only changes that can't stand in each other's way share one: each of other records. If one of them is refused the
// whole is undone, and each goes by itself.
//
// Changes of state have queues of their own in each namespace, so that a revocation waits for no other namespace. Each takes the
// namespace's counter, which orders them, and keeps it until its transaction commits, so many transactions would queue there and commit one
// change at a time. Two transactions for each queue are enough: one commits while the next is at the server and waits for the counter. If
// the connection of one stops answering, the other goes on.
//
// Changes of state alone, such as a revocation, have one queue. Changes that write other records too, such as a login that ends an older
// session, have another. So a revocation never waits for a connection that logins hold, though it waits for its turn at the counter. Every
// change of a group is answered with the position of the group's last.
const (
	groupSize  = 16
	groupLanes = 4 // transactions under way at once
	stateSize  = 64
	stateLanes = 2
)

// intent is a change on its way.
type intent struct {
	s     *Store
	c     *store.Change // with memory of its own
	state bool
	end   time.Time // when nobody waits for it any more
	tell  func(store.Commit, error)
}

// key names a record, in the order in which transactions lock them.
type key struct{ ns, kind, id string }

func (in *intent) key(i int) key { return key{in.s.ns, string(in.c.Puts[i].Kind), in.c.Puts[i].ID} }

// compare orders changes by their namespace and their first record.
func (in *intent) compare(other *intent) int {
	var a, b key
	a.ns, b.ns = in.s.ns, other.s.ns
	if len(in.c.Puts) > 0 {
		a = in.key(0)
	}
	if len(other.c.Puts) > 0 {
		b = other.key(0)
	}
	return cmp.Or(strings.Compare(a.ns, b.ns), strings.Compare(a.kind, b.kind), strings.Compare(a.id, b.id))
}

type answer struct {
	done store.Commit
	err  error
}

// grouper collects intents. Whoever brings the first one while a lane is free runs that lane until nobody waits.
type grouper struct {
	size, lanes int // intents in a transaction, transactions under way: at most

	mu      sync.Mutex // guards all below
	waiting []*intent
	running int
}

// submit hands in to a lane of g; the answer comes by in.tell.
func (e *engine) submit(g *grouper, in *intent) {
	g.mu.Lock()
	g.waiting = append(g.waiting, in)
	start := g.running < g.lanes
	if start {
		g.running++
	}
	g.mu.Unlock()
	if start {
		go e.lane(g)
	}
}

func (e *engine) lane(g *grouper) {
	for {
		g.mu.Lock()
		batch := g.take()
		if len(batch) == 0 {
			g.running--
			g.mu.Unlock()
			return
		}
		g.mu.Unlock()
		e.together(batch)
	}
}

// take removes what shares the next transaction. The caller holds mu.
func (g *grouper) take() (batch []*intent) {
	taken := map[key]bool{}
	rest := g.waiting[:0]
	for i, in := range g.waiting {
		if len(batch) == g.size {
			rest = append(rest, g.waiting[i:]...)
			break
		}
		meets := false
		for k := range in.c.Puts {
			meets = meets || taken[in.key(k)]
		}
		if meets {
			rest = append(rest, in)
			continue
		}
		for k := range in.c.Puts {
			taken[in.key(k)] = true
		}
		batch = append(batch, in)
	}
	clear(g.waiting[len(rest):])
	g.waiting = rest
	slices.SortStableFunc(batch, (*intent).compare)
	return batch
}

// together writes a batch in one transaction, or each by itself where that is refused.
func (e *engine) together(batch []*intent) {
	ctx, cancel := context.WithTimeout(context.Background(), e.o.Timeout)
	defer cancel()
	live := batch[:0]
	for _, in := range batch {
		if time.Now().After(in.end) { // what was not begun in its time is not done later, behind its caller's back
			in.tell(store.Commit{}, e.cause(context.DeadlineExceeded))
			continue
		}
		if err := in.s.open(ctx); err != nil {
			in.tell(store.Commit{}, err)
			continue
		}
		live = append(live, in)
	}
	if len(live) == 0 {
		return
	}
	var unknown error
	if len(live) > 1 {
		answers, err := e.send(ctx, live)
		switch {
		case err == nil:
			for i, in := range live {
				in.tell(answers[i], nil)
			}
			return
		case undone(err), pgconn.SafeToRetry(err):
		default:
			unknown = err
		}
	}
	var wg sync.WaitGroup
	for _, in := range live {
		if unknown != nil && (len(in.c.Puts) == 0 || !broken(unknown)) {
			in.tell(store.Commit{}, e.cause(unknown)) // done or not
			continue
		}
		wg.Go(func() { in.tell(in.s.write(ctx, in, unknown)) })
	}
	wg.Wait()
}

// undone reports whether the server says that it rolled back: all its errors do but those of a connection that ends, and
// statement_completion_unknown.
func undone(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && !broken(err) && pg.Code != "40003" && !strings.HasPrefix(pg.Code, "08")
}

// send writes a batch that is in order, in one statement for each namespace.
func (e *engine) send(ctx context.Context, live []*intent) ([]store.Commit, error) {
	var b pgx.Batch
	answers := make([]store.Commit, len(live))
	for from, to := 0, 0; from < len(live); from = to {
		for to++; to < len(live) && live[to].s == live[from].s; to++ {
		}
		told := answers[from:to]
		b.Queue(e.sql.apply, live[from].s.applyArgs(live[from:to])...).QueryRow(func(row pgx.Row) error {
			var head, history, now int64
			if err := row.Scan(&head, &history, &now); err != nil {
				return err
			}
			for i := range told {
				told[i] = store.Commit{Head: position(history, head), Now: now}
			}
			return nil
		})
	}
	return answers, e.pool.SendBatch(ctx, &b).Close()
}
