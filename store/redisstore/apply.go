package redisstore

import (
	"context"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/apitoken-go/apitoken/store"
)

// Apply implements [store.Store]. When the history ended since this process last heard of it, the answer is an error
// that wraps store.ErrDiverged, and nothing was written: the change was decided on what may be gone.
func (n *space) Apply(ctx context.Context, c *store.Change) (store.Commit, error) {
	if err := n.usable(ctx); err != nil {
		return store.Commit{}, err
	}
	if err := store.Check(c); err != nil {
		return store.Commit{}, err
	}
	p := &pending{args: encodeChange(c), begun: time.Now(), basis: n.lineage.Load(), done: make(chan result, 1)}
	for i := range c.Puts {
		p.urgent = p.urgent || c.Puts[i].Kind == store.KindRule
	}
	for _, a := range p.args {
		switch a := a.(type) {
		case []byte:
			p.size += len(a)
		case string:
			p.size += len(a)
		}
	}
	late := time.NewTimer(n.s.o.Timeout)
	defer late.Stop()
	places := n.group.places
	if p.urgent {
		places = n.group.urgentPlaces
	}
	if err := n.place(ctx, late.C, places); err != nil {
		return store.Commit{}, err
	}
	if err := n.submit(p); err != nil {
		<-places
		return store.Commit{}, err
	}
	select {
	case r := <-p.done:
		return r.commit, r.err
	case <-ctx.Done():
		return store.Commit{}, ctx.Err()
	case <-late.C:
		return store.Commit{}, fmt.Errorf("redisstore: outcome not known within %s: %w", n.s.o.Timeout, context.DeadlineExceeded)
	}
}

// encodeChange makes the arguments of the script. Nothing in them is the caller's memory.
func encodeChange(c *store.Change) []any {
	args := make([]any, 0, 3+6*len(c.Puts)+2*len(c.Events))
	args = append(args, string(c.ID[:]), len(c.Puts), len(c.Events))
	for i := range c.Puts {
		p := &c.Puts[i]
		body, selectors := putBody(c.ID, &p.Record)
		fixed := make([]byte, 29)
		copy(fixed, p.Expect[:])
		binary.BigEndian.PutUint64(fixed[16:], uint64(p.Expires))
		if p.Kind.State() {
			fixed[24] = 1
		}
		fixed[25], fixed[26], fixed[27] = byte(selectors>>16), byte(selectors>>8), byte(selectors)
		args = append(args, strings.Clone(string(p.Kind)), strings.Clone(p.ID), fixed, body)
		// A record that is written again stands in its indexes already. One whose own change is expected can only have
		// been done before.
		if p.Expect == (store.Version{}) {
			for _, t := range terms(&p.Record) {
				args = append(args, t)
				fixed[28]++
			}
		}
	}
	for i := range c.Events {
		args = append(args, row(&c.Events[i]), eventBody(c.ID, &c.Events[i]))
	}
	return args
}

// write finds the outcome of each change of a group.
func (n *space) write(f *flight, batch []*pending) {
	ctx, cancel := context.WithTimeout(context.Background(), n.s.o.Timeout)
	defer cancel()
	fail := func(err error) {
		for _, p := range batch {
			p.done <- result{err: err}
		}
	}
	for {
		l, err := n.opened(ctx)
		if err != nil {
			fail(err)
			return
		}
		if batch = ofHistory(l, batch); len(batch) == 0 {
			return
		}
		r, err := n.send(ctx, f, l, batch)
		if err != nil {
			fail(err)
			return
		}
		switch code := str(r[0]); {
		case code == "A" && len(r) == 2:
			n.settle(l, batch, str(r[1]), fail)
			return
		case code == "H":
			if err := n.reopen(ctx, l); err != nil {
				fail(err)
				return
			}
		default:
			fail(errValue(fmt.Sprintf("a script answered %q", r)))
			return
		}
	}
}

// ofHistory answers those that were decided on another history than l, or sent under one, and returns the rest.
func ofHistory(l *lineage, batch []*pending) []*pending {
	rest := batch[:0]
	for _, p := range batch {
		if p.basis != nil && p.basis.id != l.id {
			p.done <- result{err: fmt.Errorf("%w: history %x ended; nothing of this change was written under the new one, %x",
				store.ErrDiverged, p.basis.id, l.id)}
			continue
		}
		p.basis = l
		rest = append(rest, p)
	}
	return rest
}

// send runs the script until there is an answer. The group keeps its number, by which the server knows it again, after a
// restart too: whatever is sent again is the same group.
func (n *space) send(ctx context.Context, f *flight, l *lineage, batch []*pending) ([]any, error) {
	args := n.common(l, 5+8*len(batch))
	wait := "0"
	if n.s.waits() {
		wait = "1"
	}
	args = append(args, n.s.process+":"+strconv.Itoa(f.slot), strconv.FormatInt(f.number, 10), n.s.channel(), n.name, wait)
	for _, p := range batch {
		args = append(args, p.args...)
	}
	if !n.s.waits() {
		return n.s.retried(ctx, func(ctx context.Context) ([]any, error) { return n.s.run(ctx, scriptApply, n.meta, args) })
	}
	return n.s.retried(ctx, func(ctx context.Context) ([]any, error) {
		// In parts, so that no client's timeout cuts a wait short that goes on well.
		patience := 500 * time.Millisecond
		if deadline, ok := ctx.Deadline(); ok {
			patience = min(patience, time.Until(deadline))
		}
		return n.s.runAndWait(ctx, scriptApply, n.meta, args, patience)
	})
}

// settle reads the answer: number, results, place of the newest state, time, writes.
func (n *space) settle(l *lineage, batch []*pending, answer string, fail func(error)) {
	part := strings.Split(answer, " ")
	if len(part) != 5 || len(part[1]) != len(batch) {
		fail(errValue("the answer to a write does not read"))
		return
	}
	head, err1 := strconv.ParseUint(part[2], 16, 63)
	now, err2 := strconv.ParseInt(part[3], 10, 64)
	writes, err3 := strconv.ParseInt(part[4], 10, 64)
	if err1 != nil || err2 != nil || err3 != nil {
		fail(errValue("the answer to a write does not read"))
		return
	}
	l.saw(writes)
	commit := store.Commit{Head: store.Position{History: l.id, N: int64(head)}, Now: now}
	for i, p := range batch {
		switch part[1][i] {
		case 'k', 'o':
			p.done <- result{commit: commit}
		case 'c':
			p.done <- result{err: store.ErrConflict}
		case 'r':
			p.done <- result{err: store.ErrReadOnly}
		case 'f':
			p.done <- result{err: fmt.Errorf("%w: subject, client, grant, token and type of a record are fixed for its life", store.ErrInvalid)}
		default:
			p.done <- result{err: errValue("a record is too short")}
		}
	}
}
