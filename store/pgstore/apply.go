package pgstore

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/apitoken-go/apitoken/store"
)

// Apply implements [store.Store]. It returns within Options.Timeout. The write continues under a deadline of its own when ctx
// ends: a driver that is given the caller's would close the connection.
func (s *Store) Apply(ctx context.Context, c *store.Change) (store.Commit, error) {
	if err := ctx.Err(); err != nil {
		return store.Commit{}, err
	}
	if err := store.Check(c); err != nil {
		return store.Commit{}, err
	}
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	state := slices.ContainsFunc(c.Puts, func(p store.Put) bool { return p.Kind.State() })
	mixed := state && slices.ContainsFunc(c.Puts, func(p store.Put) bool { return !p.Kind.State() })
	turns := s.turns
	if state && !mixed {
		turns = s.urgent
	}
	select {
	case turns <- struct{}{}:
	case <-ctx.Done():
		return store.Commit{}, ctx.Err()
	}
	if err := s.begin(); err != nil {
		<-turns
		return store.Commit{}, err
	}
	got := make(chan answer, 1)
	in := &intent{s: s, c: detached(c), state: state, end: time.Now().Add(s.o.Timeout)} // c is not read after Apply returns
	in.tell = func(done store.Commit, err error) {
		got <- answer{done, err}
		<-turns
		s.writes.Done()
	}
	if !s.o.Pooler {
		g := &s.group
		switch {
		case mixed:
			g = &s.mixed
		case state:
			g = &s.state
		}
		s.submit(g, in)
	} else {
		go func() {
			wctx, cancel := context.WithDeadline(context.Background(), in.end)
			defer cancel()
			in.tell(s.write(wctx, in, nil))
		}()
	}
	select {
	case a := <-got:
		return a.done, a.err
	case <-ctx.Done():
		return store.Commit{}, ctx.Err()
	}
}

// detached is a change with memory of its own.
func detached(c *store.Change) *store.Change {
	out := &store.Change{ID: c.ID, Puts: slices.Clone(c.Puts), Events: slices.Clone(c.Events)}
	for i := range out.Puts {
		out.Puts[i].Data = append([]byte{}, out.Puts[i].Data...)
	}
	for i := range out.Events {
		out.Events[i].Data = append([]byte{}, out.Events[i].Data...)
	}
	return out
}

// applyArgs are the arguments of the function apply_all, for changes that are all of state or none. All puts are in the order of their keys,
// so that no two transactions wait for each other.
func (s *Store) applyArgs(all []*intent) []any {
	type put struct {
		*store.Put
		change *store.Version
	}
	var puts []put
	var p, e columns
	for _, in := range all {
		for i := range in.c.Puts {
			puts = append(puts, put{&in.c.Puts[i], &in.c.ID})
		}
		for i := range in.c.Events {
			e.add(&in.c.ID, &in.c.Events[i])
		}
	}
	slices.SortFunc(puts, func(a, b put) int {
		return cmp.Or(strings.Compare(string(a.Kind), string(b.Kind)), strings.Compare(a.ID, b.ID))
	})
	kinds, expects, states := make([]string, len(puts)), make([][]byte, len(puts)), make([]bool, len(puts))
	for i := range puts {
		kinds[i], expects[i], states[i] = string(puts[i].Kind), puts[i].Expect[:], puts[i].Kind.State()
		p.add(puts[i].change, &puts[i].Record)
	}
	return s.args(s.ns, s.fence, all[0].state, s.hear.channel,
		p.change, kinds, p.id, expects, states, p.expires, p.subject, p.client, p.grant, p.token, p.typ, p.data,
		e.change, e.id, e.expires, e.subject, e.client, e.grant, e.token, e.typ, e.data)
}

// columns are the fields of several records, as arrays.
type columns struct {
	id, subject, client, grant, token, typ []string
	expires                                []int64
	change, data                           [][]byte
}

func (c *columns) add(change *store.Version, r *store.Record) {
	c.change, c.id, c.subject, c.client = append(c.change, change[:]), append(c.id, r.ID), append(c.subject, r.Subject), append(c.client, r.Client)
	c.grant, c.token, c.typ = append(c.grant, r.Grant), append(c.token, r.Token), append(c.typ, r.Type)
	c.expires, c.data = append(c.expires, r.Expires), append(c.data, r.Data)
}

// write asks the server until the outcome is known or ctx ends. unknown is the error of an attempt before, which may have been
// done. A change without puts does not recognise itself, and is repeated only where nothing was sent.
func (s *Store) write(ctx context.Context, in *intent, unknown error) (store.Commit, error) {
	if err := s.open(ctx); err != nil {
		return store.Commit{}, err
	}
	refused := func(err error) (store.Commit, error) {
		if unknown != nil {
			// Not done now; but before, perhaps, and overwritten since.
			err = fmt.Errorf("pgstore: outcome unknown: %w (then: %v)", unknown, err)
		}
		return store.Commit{}, err
	}
	adopted, args := 0, s.applyArgs([]*intent{in})
	for wait := firstWait; ; wait = min(2*wait, longestWait) {
		var head, history, now int64
		err := s.pool.QueryRow(ctx, s.sql.apply, args...).Scan(&head, &history, &now)
		switch {
		case err == nil:
			return store.Commit{Head: position(history, head), Now: now}, nil
		case isPg(err, "AP001"):
			return refused(store.ErrConflict)
		case isPg(err, "AP002"):
			return s.head(ctx)
		case isPg(err, "AP003"):
			return refused(store.ErrReadOnly)
		case isPg(err, "AP004") && adopted < 3: // the server is another one since: adopt it, and write
			adopted++
			if err := s.adopt(ctx); err != nil {
				return refused(err)
			}
			continue
		case isPg(err, "AP005"):
			return refused(fmt.Errorf("%w: subject, client, grant, token and type of a record are fixed for its life", store.ErrInvalid))
		case isPg(err, "AP006"):
			return store.Commit{}, s.gone()
		case rolledBack(err), pgconn.SafeToRetry(err):
		case broken(err) && len(in.c.Puts) > 0:
			unknown = err
		default: // a server that is a replica says ErrReadOnly
			return refused(s.cause(err))
		}
		if !pause(ctx, wait) {
			return store.Commit{}, s.cause(err)
		}
	}
}

func (s *Store) gone() error {
	return fmt.Errorf("pgstore: the namespace %q is gone from its table", s.ns)
}

// headOpened is head, for verbs that begin with it.
func (s *Store) headOpened(ctx context.Context) (store.Commit, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	if err := s.usable(ctx); err != nil {
		return store.Commit{}, err
	}
	return s.head(ctx)
}

// head answers for a change that was done before.
func (s *Store) head(ctx context.Context) (c store.Commit, err error) {
	err = s.again(ctx, func() error {
		var head, history int64
		err := s.pool.QueryRow(ctx, s.sql.head, s.args(s.ns)...).Scan(&head, &history, &c.Now)
		c.Head = position(history, head)
		return err
	})
	return c, err
}

func position(history, n int64) store.Position {
	return store.Position{History: uint64(history), N: n}
}

// Purge implements [store.Store]. Each step is a statement of its own, so that nothing waits for long behind it; the number is
// right even where err is not nil.
func (s *Store) Purge(ctx context.Context, kind store.Kind, before int64, max int) (int, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	if err := kind.Check(); err != nil {
		return 0, err
	}
	if err := s.usable(ctx); err != nil {
		return 0, err
	}
	total := 0
	for total < max {
		step, n := min(max-total, purgeStep), 0
		err := s.again(ctx, func() error {
			return s.pool.QueryRow(ctx, s.sql.purge, s.args(s.ns, s.fence, string(kind), before, step)...).Scan(&n)
		})
		if err != nil {
			return total, err
		}
		if total += n; n < step {
			break
		}
	}
	return total, nil
}

const purgeStep = 500
