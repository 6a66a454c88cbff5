// Apply, Purge and SetReadOnly: changes in groups, each decided by itself.

package sqltables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/apitoken-go/apitoken/store"
)

// Apply is that of [store.Store]. The write continues under a deadline of its own when ctx ends.
func (s *Store) Apply(ctx context.Context, c *store.Change) (store.Commit, error) {
	if err := ctx.Err(); err != nil {
		return store.Commit{}, err
	}
	if err := store.Check(c); err != nil {
		return store.Commit{}, err
	}
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	turns, state := s.turns, slices.ContainsFunc(c.Puts, func(p store.Put) bool { return p.Kind.State() })
	if state {
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
	type answer struct {
		done store.Commit
		err  error
	}
	got := make(chan answer, 1)
	in := &intent{s: s, end: time.Now().Add(s.Timeout)}
	in.c, in.size = clone(c) // c is not read after Apply returns
	in.tell = func(done store.Commit, err error) {
		got <- answer{done, err}
		<-turns
		s.writes.Done()
	}
	s.queue.submit(in, state, s.together)
	select {
	case a := <-got:
		return a.done, a.err
	case <-ctx.Done():
		return store.Commit{}, ctx.Err()
	}
}

// clone copies a change with everything it refers to.
func clone(c *store.Change) (*store.Change, int) {
	out, size := &store.Change{ID: c.ID, Puts: slices.Clone(c.Puts), Events: slices.Clone(c.Events)}, 0
	own := func(r *store.Record) {
		for _, p := range [...]*string{(*string)(&r.Kind), &r.ID, &r.Subject, &r.Client, &r.Grant, &r.Token, &r.Type} {
			*p = strings.Clone(*p)
		}
		r.Data = bytes.Clone(r.Data)
		size += r.Size()
	}
	for i := range out.Puts {
		own(&out.Puts[i].Record)
	}
	for i := range out.Events {
		own(&out.Events[i])
	}
	return out, size
}

// together writes a batch in one transaction until its outcome is known or its time is over.
func (e *Engine) together(all []*intent) {
	ctx, cancel := context.WithTimeout(context.Background(), e.Timeout)
	defer cancel()
	var batch []*intent
	for _, in := range all {
		if time.Now().After(in.end) { // what was not begun in its time is not done later, behind its caller's back
			in.tell(store.Commit{}, e.cause(context.DeadlineExceeded))
		} else if err := in.s.open(ctx); err != nil {
			in.tell(store.Commit{}, err)
		} else {
			batch = append(batch, in)
		}
	}
	adopted := 0
	for wait := firstWait; len(batch) > 0; wait = min(2*wait, longestWait) {
		b, err := e.write(ctx, batch)
		if err == nil {
			for i, in := range batch {
				in.tell(b.answers[i].done, b.answers[i].err)
			}
			return
		}
		var another lostError
		var u unsure
		switch {
		case e.Retry(err): // the server rolled it back, or it was never begun
			if pause(ctx, wait) {
				continue
			}
		case errors.As(err, &another):
			if adopted++; adopted > 3 {
				err = e.twoServers()
				break
			}
			if err = another.s.adopt(ctx); err == nil {
				continue
			}
		case errors.As(err, &u):
			rest := batch[:0]
			for _, in := range batch {
				// A change without puts does not recognise itself.
				if in.unknown = u.error; len(in.c.Puts) == 0 || !e.Broken(u.error) {
					in.tell(store.Commit{}, e.cause(u.error))
					continue
				}
				rest = append(rest, in)
			}
			if batch = rest; pause(ctx, wait) {
				continue
			}
		case e.Broken(err):
			if pause(ctx, wait) {
				continue
			}
		case len(batch) > 1 && ctx.Err() == nil: // it may be the fault of one of them
			for _, in := range batch {
				e.together([]*intent{in})
			}
			return
		}
		for _, in := range batch {
			in.tell(in.refused(e.cause(err)))
		}
		return
	}
}

func (e *Engine) twoServers() error {
	return fmt.Errorf("%s: its connections lead to servers of different histories", e.Name)
}

// refused is the answer of a change that was not done now. Where an attempt before may have been, that is unknown.
func (in *intent) refused(err error) (store.Commit, error) {
	if in.unknown != nil {
		err = fmt.Errorf("%s: outcome unknown: %w (then: %v)", in.s.Name, in.unknown, err)
	}
	return store.Commit{}, err
}

// key names a record.
type key struct{ ns, kind, id string }

// batch is one transaction of changes.
type batch struct {
	e       *Engine
	spaces  map[string]*space
	records map[key]*store.Record // as they are behind the changes so far
	dirty   []key                 // of those to write, in the order of their first change
	events  strings.Builder       // rows to insert
	changed map[string]bool       // the namespaces whose row is to be written
	state   map[string]bool       // and those whose state has changed
	answers []struct {
		done store.Commit
		err  error
	}
}

func (e *Engine) write(ctx context.Context, ins []*intent) (*batch, error) {
	var names []string
	floors := map[string]store.Position{}
	stores := map[string]*Store{}
	var keys []string
	known := map[key]bool{}
	for _, in := range ins {
		if stores[in.s.ns] == nil {
			names = append(names, in.s.ns)
			stores[in.s.ns], floors[in.s.ns] = in.s, in.s.last()
		}
		for i := range in.c.Puts {
			k := key{in.s.ns, string(in.c.Puts[i].Kind), in.c.Puts[i].ID}
			if !known[k] {
				known[k] = true
				keys = append(keys, "("+e.Text(k.ns)+", "+e.Text(k.kind)+", "+e.Text(k.id)+")")
			}
		}
	}
	slices.Sort(names) // all transactions lock in one order
	read := ""
	if len(keys) > 0 {
		read = "SELECT " + recordFields + " FROM " + e.Prefix + "record r" + e.ByKey + " WHERE (r.ns, r.kind, r.id) IN (" + e.Keys + strings.Join(keys, ", ") + ")"
	}
	var b *batch
	err := e.transact(ctx, ins[0].s.slots, names, read, func(spaces map[string]*space, records []record) ([]string, error) {
		b = &batch{e: e, spaces: spaces, records: map[key]*store.Record{}, changed: map[string]bool{}, state: map[string]bool{}}
		for i := range records {
			r := records[i].out(0)
			b.records[key{*records[i].ns, string(r.Kind), r.ID}] = &r
		}
		for ns, s := range stores {
			if sp := spaces[ns]; sp != nil && (!sp.same || lost(floors[ns], sp)) {
				return nil, lostError{s}
			}
		}
		b.answers = make([]struct {
			done store.Commit
			err  error
		}, len(ins))
		for i, in := range ins {
			done, err := b.decide(in)
			if err != nil {
				done, err = in.refused(err)
			}
			b.answers[i].done, b.answers[i].err = done, err
		}
		return b.statements(), nil
	})
	if err != nil {
		return nil, err
	}
	for ns := range b.state {
		stores[ns].note(b.spaces[ns].position())
		e.hear.wake(ns)
	}
	return b, nil
}

// decide does a change in memory, or refuses it.
func (b *batch) decide(in *intent) (store.Commit, error) {
	sp, c := b.spaces[in.s.ns], in.c
	if sp == nil {
		return store.Commit{}, in.s.gone()
	}
	var refused error
	for i := range c.Puts {
		p := &c.Puts[i]
		old := b.records[key{in.s.ns, string(p.Kind), p.ID}]
		var version store.Version
		if old != nil {
			version = old.Version
		}
		switch {
		case version == c.ID:
			return store.Commit{Head: sp.position(), Now: sp.now}, nil // done before
		case version != p.Expect:
			refused = store.ErrConflict
		case old != nil && refused == nil && !old.SameSelectors(&p.Record):
			refused = fmt.Errorf("%w: subject, client, grant, token and type of a record are fixed for its life", store.ErrInvalid)
		}
	}
	if sp.moved {
		refused = store.ErrReadOnly
	}
	if refused != nil {
		return store.Commit{}, refused
	}
	for i := range c.Puts {
		r := c.Puts[i].Record
		r.Version, r.Written, r.Pos = c.ID, sp.now, store.Position{}
		if r.Kind.State() {
			sp.head = max(sp.head+1, sp.now<<16)
			r.Pos.N = sp.head
			b.state[in.s.ns], b.changed[in.s.ns] = true, true
		}
		k := key{in.s.ns, string(r.Kind), r.ID}
		b.dirty = append(b.dirty, k)
		b.records[k] = &r
	}
	for i := range c.Events {
		sp.place++
		b.changed[in.s.ns] = true
		if b.events.Len() > 0 {
			b.events.WriteString(", ")
		}
		r := &c.Events[i]
		b.events.WriteString("(" + b.e.Text(in.s.ns) + ", ")
		b.e.number(&b.events, sp.place)
		b.events.WriteString(b.e.Text(r.ID) + ", " + b.e.Bytes(c.ID[:]) + ", ")
		b.e.number(&b.events, sp.now)
		b.e.values(&b.events, r)
	}
	return store.Commit{Head: sp.position(), Now: sp.now}, nil
}

// statements are those that write what was decided; none where all was refused or done before.
func (b *batch) statements() (out []string) {
	e := b.e
	if len(b.dirty) > 0 {
		var t strings.Builder
		t.WriteString("INSERT INTO " + e.Prefix + "record (" + putColumns + ") VALUES ")
		written := map[key]bool{}
		for _, k := range b.dirty {
			if written[k] {
				continue
			}
			if len(written) > 0 {
				t.WriteString(", ")
			}
			written[k] = true
			r := b.records[k]
			t.WriteString("(" + e.Text(k.ns) + ", " + e.Text(k.kind) + ", " + e.Text(k.id) + ", " + e.Bytes(r.Version[:]) + ", ")
			e.number(&t, r.Pos.N)
			e.number(&t, r.Written)
			e.values(&t, r)
		}
		out = append(out, t.String()+e.Upsert)
	}
	if b.events.Len() > 0 {
		out = append(out, "INSERT INTO "+e.Prefix+"event ("+eventColumns+") VALUES "+b.events.String())
	}
	for ns := range b.changed {
		sp := b.spaces[ns]
		out = append(out, "UPDATE "+e.Prefix+"namespace SET head = "+strconv.FormatInt(sp.head, 10)+", place = "+strconv.FormatInt(sp.place, 10)+" WHERE ns = "+e.Text(ns))
	}
	return out
}

// purgeStep is how many records a transaction removes, so that nothing waits for long behind it.
const purgeStep = 500

// Purge is that of [store.Store].
func (s *Store) Purge(ctx context.Context, kind store.Kind, before int64, max int) (int, error) {
	if err := kind.Check(); err != nil {
		return 0, err
	}
	return await(ctx, s, func(ctx context.Context) (int, error) {
		total := 0
		for total < max {
			step, n := min(max-total, purgeStep), 0
			err := s.again(ctx, func() (err error) {
				n, err = s.purge(ctx, kind, before, step)
				return err
			})
			if err != nil {
				return total, err
			}
			if total += n; n < step {
				break
			}
		}
		return total, nil
	})
}

func (s *Store) purge(ctx context.Context, kind store.Kind, before int64, most int) (n int, err error) {
	where, fields, table := "r.kind = "+s.Text(string(kind)), recordFields, "record r"
	if kind == store.KindEvent {
		where, fields, table = "1 = 1", eventFields, "event r"
	}
	fields = strings.TrimSuffix(fields, "r.data") + "''"
	read := "SELECT " + fields + " FROM " + s.Prefix + table + " WHERE r.ns = " + s.Text(s.ns) + " AND " + where +
		" AND r.expires > 0 AND r.expires < " + strconv.FormatInt(before, 10) + " AND r.expires <= " + s.Now() + " ORDER BY r.expires LIMIT " + strconv.Itoa(most)
	err = s.transact(ctx, s.slots, []string{s.ns}, read, func(spaces map[string]*space, gone []record) ([]string, error) {
		sp := spaces[s.ns]
		switch {
		case sp == nil:
			return nil, s.gone()
		case sp.moved:
			return nil, store.ErrReadOnly
		case len(gone) == 0:
			return nil, nil
		}
		n = len(gone)
		var names []string
		trimmed := sp.trimmed
		for i := range gone {
			if kind == store.KindEvent {
				names = append(names, strconv.FormatInt(*gone[i].pos, 10))
				trimmed = max(trimmed, *gone[i].pos)
			} else {
				names = append(names, s.Text(*gone[i].id))
			}
		}
		in := " WHERE ns = " + s.Text(s.ns)
		if kind != store.KindEvent {
			return []string{"DELETE FROM " + s.Prefix + "record" + in + " AND kind = " + s.Text(string(kind)) + " AND id IN (" + strings.Join(names, ", ") + ")"}, nil
		}
		return []string{
			"DELETE FROM " + s.Prefix + "event" + in + " AND place IN (" + strings.Join(names, ", ") + ")",
			"UPDATE " + s.Prefix + "namespace SET trimmed = " + strconv.FormatInt(trimmed, 10) + in,
		}, nil
	})
	return n, err
}

// SetReadOnly makes the namespace refuse writes with [store.ErrReadOnly], or take them again, in every process. It returns
// when writes under way have ended.
func (s *Store) SetReadOnly(ctx context.Context, on bool) error {
	moved := "0"
	if on {
		moved = "1"
	}
	_, err := await(ctx, s, func(ctx context.Context) (bool, error) {
		return true, s.again(ctx, func() error {
			return s.transact(ctx, s.slots, []string{s.ns}, "", func(spaces map[string]*space, _ []record) ([]string, error) {
				if spaces[s.ns] == nil {
					return nil, s.gone()
				}
				return []string{"UPDATE " + s.Prefix + "namespace SET moved = " + moved + " WHERE ns = " + s.Text(s.ns)}, nil
			})
		})
	})
	return err
}
