package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/apitoken-go/apitoken/store"
)

// maxOps is how many operations go into one level of a transaction: etcd counts at most 128 along each branch
// (--max-txn-ops), a nested level with those around it.
const maxOps = 80

// epochSize is how many entries a process puts into an epoch before it begins the next. Each beginning makes writes
// that are under way try again once; each listing reads an epoch at a time.
const epochSize = 4096

// intent is a Change in the form in which it is written, as often as that takes.
type intent struct {
	id      store.Version
	puts    []intentPut
	events  []store.Record
	size    int64 // of events, bytes
	state   int64 // puts of state kinds
	urgent  bool  // has a revocation
	small   bool  // may share a transaction
	replays bool  // a put has its own change as Expect: it can only have been done before
}

type intentPut struct {
	store.Record // Data and selectors stay the caller's, and are only read
	expect       store.Version
	value        []byte
	prefix       string // version and selectors that the record must be at
	state        bool
	key          string
	indexes      []string // for a record that is new
	old          int64    // position that a state record leaves; 0: none, or not known yet
}

func (n *space) newIntent(c *store.Change) *intent {
	in := &intent{id: c.ID, events: c.Events}
	for i := range c.Puts {
		p := &c.Puts[i]
		q := intentPut{
			Record: p.Record, expect: p.Expect, value: encodeRecord(&p.Record, c.ID),
			state: p.Kind.State(), key: n.keys.record(p.Kind, p.ID),
		}
		if p.Expect == (store.Version{}) {
			q.indexes = n.keys.indexes(&p.Record)
		} else {
			h := selectors(&p.Record)
			q.prefix = string(append(append([]byte(nil), p.Expect[:]...), h[:]...))
		}
		if q.state {
			in.state++
		}
		in.urgent = in.urgent || p.Kind == store.KindRule
		in.replays = in.replays || p.Expect == c.ID
		in.puts = append(in.puts, q)
	}
	for i := range c.Events {
		in.size += int64(c.Events[i].Size()) + 48
	}
	ops, size := len(in.puts)*3+1+int(weights(in.size)), int(in.size)
	for i := range in.puts {
		p := &in.puts[i]
		ops, size = ops+len(p.indexes), size+2*len(p.value)
	}
	in.small = ops <= groupOps && size <= groupBytes
	return in
}

// Apply implements [store.Store]. A write is one transaction, which callers that wait at the same time share; only one
// that rewrites state records reads their positions first. A transaction whose outcome is unknown is repeated within
// Options.Timeout; where the repetition finds the records at versions of others, the answer is still unknown, not
// ErrConflict: the first attempt may have been done and overwritten. A Change without Puts is never repeated.
func (n *space) Apply(ctx context.Context, c *store.Change) (store.Commit, error) {
	ctx, cancel := n.bounded(ctx)
	defer cancel()
	if err := n.usable(ctx); err != nil {
		return store.Commit{}, err
	}
	if err := store.Check(c); err != nil {
		return store.Commit{}, err
	}
	in := n.newIntent(c)
	if len(in.events) > 0 {
		if err := n.room(ctx, in); err != nil {
			return store.Commit{}, err
		}
	}
	slots := n.s.slots
	if in.urgent {
		slots = n.s.urgent
	}
	select {
	case slots <- struct{}{}:
	case <-ctx.Done():
		n.outbox.end(in)
		return store.Commit{}, ctx.Err()
	case <-n.s.ctx.Done():
		n.outbox.end(in)
		return store.Commit{}, ErrClosed
	}
	p := &pending{in: in, slots: slots, begun: time.Now(), done: make(chan result, 1)}
	g := &n.grants
	if in.state > 0 {
		g = &n.state
	}
	if err := g.submit(n, p); err != nil {
		n.outbox.end(in)
		<-slots
		return store.Commit{}, err
	}
	select {
	case r := <-p.done:
		return r.commit, r.err
	case <-ctx.Done():
		return store.Commit{}, ctx.Err()
	}
}

// write tries until the outcome is definite or ctx ends. unknown is the error of an attempt before.
func (n *space) write(ctx context.Context, in *intent, unknown error) (store.Commit, error) {
	if unknown != nil && len(in.puts) == 0 {
		return store.Commit{}, fmt.Errorf("etcdstore: outcome unknown: %w", unknown)
	}
	for wait := firstWait; ; {
		v := n.try(ctx, in)
		if v.done {
			return v.commit, nil
		}
		switch {
		case v.err == nil:
			continue // what the transaction relied on is known better now
		case v.fate == refused && unknown == nil:
			return store.Commit{}, v.err
		case v.fate == refused:
			// Refused now, but an earlier attempt may have been done.
			return store.Commit{}, fmt.Errorf("etcdstore: outcome unknown: %w (then: %v)", unknown, v.err)
		case v.fate == ambiguous:
			if unknown = v.err; len(in.puts) == 0 {
				return store.Commit{}, fmt.Errorf("etcdstore: outcome unknown: %w", unknown)
			}
		}
		if !pause(ctx, n.s.ctx, &wait) {
			return store.Commit{}, fmt.Errorf("etcdstore: outcome unknown: %w", v.err)
		}
	}
}

// verdict of one attempt. Neither done nor an error: try again at once.
type verdict struct {
	done   bool
	commit store.Commit
	fate   fate
	err    error
}

func refuse(err error) verdict { return verdict{fate: refused, err: err} }

// guess is what an attempt relies on, and its transaction compares.
type guess struct {
	lineage *lineage
	seen    int64
	now     int64
	first   int64 // position of the first state record
	last    int64 // position of the last one
	headAt  bool
	epoch   int64
	epochAt bool
	next    bool // begin the next epoch
}

func (n *space) guess(state int64, entries int) guess {
	l := n.s.lineage.Load()
	g := guess{lineage: l, seen: l.seen.Load(), now: n.s.now()}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.history != l.id {
		n.history, n.head = l.id, 0
	}
	g.first, g.headAt = max(n.head+1, shifted(g.now)), n.headAt
	g.last = g.first + state - 1
	g.epoch, g.epochAt = n.epoch, n.epochAt
	if entries > 0 {
		n.inEpoch += entries
		g.next = n.inEpoch >= epochSize
	}
	return g
}

// shifted is a time as the number of a position.
func shifted(ms int64) int64 {
	if ms >= 1<<46 {
		return 1 << 62
	}
	return max(1, ms<<16)
}

// try runs the transaction once.
func (n *space) try(ctx context.Context, in *intent) verdict {
	if err := n.oldPositions(ctx, in); err != nil {
		if f, err := fateOf(err); f == refused {
			return verdict{fate: f, err: err}
		}
		return verdict{fate: retryable, err: err}
	}
	entries := 0
	if len(in.events) > 0 {
		entries = 1
	}
	g := n.guess(in.state, entries)
	cmps, ops := n.common(&g, in.state > 0, entries > 0)
	own, puts := n.transaction(in, &g, g.first, 0)
	cmps, ops = append(cmps, own...), levels(append(ops, puts...))
	elses := n.ask()
	for i := range in.puts {
		elses = append(elses, clientv3.OpGet(in.puts[i].key))
	}
	r, err := n.s.client.Txn(ctx).If(cmps...).Then(ops...).Else(elses...).Commit()
	if err != nil {
		f, err := fateOf(err)
		return verdict{fate: f, err: err}
	}
	if err := n.s.verify(ctx, g.lineage, g.seen, (*header)(r.Header)); err != nil {
		if errors.Is(err, errMoved) {
			err = fmt.Errorf("%w during the write", errMoved)
		}
		return verdict{fate: ambiguous, err: err}
	}
	if r.Succeeded {
		commit, err := n.committed(&g, r, in.state > 0)
		if err != nil {
			return verdict{fate: ambiguous, err: err}
		}
		return verdict{done: true, commit: commit}
	}
	told, err := n.told(r)
	if err != nil {
		return refuse(err)
	}
	records := r.Responses[asked:]
	switch done, refusal := judge(in, records); {
	case told.history != g.lineage.id:
		if err := n.s.check(ctx, false); err != nil {
			return verdict{fate: retryable, err: err}
		}
		return verdict{fate: retryable, err: errMoved}
	case done:
		n.saw(g.lineage.id, told.head)
		return verdict{done: true, commit: store.Commit{Head: store.Position{History: g.lineage.id, N: told.head}, Now: g.now}}
	case told.fenced:
		return refuse(store.ErrReadOnly)
	case refusal != nil:
		return refuse(refusal)
	}
	n.learn(&told)
	return verdict{}
}

// committed is what a transaction that succeeded answers.
func (n *space) committed(g *guess, r *clientv3.TxnResponse, state bool) (store.Commit, error) {
	commit := store.Commit{Head: store.Position{History: g.lineage.id}, Now: g.now}
	if state {
		commit.Head.N = g.last
	} else if kvs := r.Responses[0].GetResponseRange().Kvs; len(kvs) > 0 {
		var err error
		if commit.Head.N, err = parse64(kvs[0].Value); err != nil {
			return store.Commit{}, err
		}
	}
	n.saw(g.lineage.id, commit.Head.N)
	n.wrote(g)
	return commit, nil
}

// common are the conditions and operations that the changes of one transaction share. The first operation reads or
// moves the position.
func (n *space) common(g *guess, state, events bool) ([]clientv3.Cmp, []clientv3.Op) {
	cmps := []clientv3.Cmp{
		clientv3.Compare(clientv3.Value(n.s.prefix+keyHistory), "=", g.lineage.raw),
		clientv3.Compare(clientv3.CreateRevision(n.keys.fence), "=", 0),
	}
	var ops []clientv3.Op
	switch {
	case !state:
		ops = append(ops, clientv3.OpGet(n.keys.head))
	case g.headAt:
		cmps = append(cmps, clientv3.Compare(clientv3.Value(n.keys.head), "<", be64(g.first)))
		ops = append(ops, clientv3.OpPut(n.keys.head, be64(g.last)))
	default:
		cmps = append(cmps, clientv3.Compare(clientv3.CreateRevision(n.keys.head), "=", 0))
		ops = append(ops, clientv3.OpPut(n.keys.head, be64(g.last)))
	}
	if events {
		if g.epochAt {
			cmps = append(cmps, clientv3.Compare(clientv3.Value(n.keys.epoch), "=", be64(g.epoch)))
		} else {
			cmps = append(cmps, clientv3.Compare(clientv3.CreateRevision(n.keys.epoch), "=", 0))
		}
		if g.next || !g.epochAt {
			ops = append(ops, clientv3.OpPut(n.keys.epoch, be64(g.epoch+1)))
		}
	}
	return cmps, ops
}

// transaction are the conditions and operations of one change, whose state records get positions from first on and
// whose events are those of the seq-th change in their revision.
func (n *space) transaction(in *intent, g *guess, first int64, seq int) (cmps []clientv3.Cmp, ops []clientv3.Op) {
	if in.replays {
		cmps = append(cmps, clientv3.Compare(clientv3.CreateRevision(n.keys.fence), "=", int64(math.MaxInt64))) // never
	}
	for i := range in.puts {
		p := &in.puts[i]
		if p.prefix == "" {
			cmps = append(cmps, clientv3.Compare(clientv3.CreateRevision(p.key), "=", 0))
		} else {
			cmps = append(cmps, clientv3.Compare(clientv3.Value(p.key), ">", p.prefix))
			if after, ok := successor(p.prefix); ok {
				cmps = append(cmps, clientv3.Compare(clientv3.Value(p.key), "<", after))
			}
		}
		at := int64(0)
		if p.state {
			at = first
			first++
		}
		stamp(p.value, g.now, at)
		value := string(p.value)
		ops = append(ops, clientv3.OpPut(p.key, value))
		if p.state {
			ops = append(ops, clientv3.OpPut(n.keys.at(at), value))
			if p.old > 0 {
				ops = append(ops, clientv3.OpDelete(n.keys.at(p.old)))
			}
		}
		for _, k := range p.indexes {
			ops = append(ops, clientv3.OpPut(k, ""))
		}
		if p.Expires > 0 {
			due := n.keys.due(p.Kind, dueAt(p.Expires, g.now), p.ID)
			if p.prefix == "" {
				ops = append(ops, clientv3.OpPut(due, ""))
			} else {
				ops = append(ops, clientv3.OpTxn([]clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(due), "=", 0)},
					[]clientv3.Op{clientv3.OpPut(due, "")}, nil))
			}
		}
	}
	if len(in.events) > 0 {
		key := n.keys.event(g.epoch, in.id, seq)
		ops = append(ops, clientv3.OpPut(key, string(encodeEvents(in.id, g.now, g.lineage.id, in.events, nil, seq*store.MaxEvents))))
		for i := range weights(in.size) {
			ops = append(ops, clientv3.OpPut(n.keys.weightsOf(key)+fmt.Sprintf("%03d", i), ""))
		}
	}
	return cmps, ops
}

// levels nests what one level of a transaction does not take: sixteen puts with all their index keys. The first
// operation stays where it is.
func levels(ops []clientv3.Op) []clientv3.Op {
	if len(ops) <= maxOps {
		return ops
	}
	out := ops[:1:1]
	for part := range slices.Chunk(ops[1:], maxOps) {
		var flat []clientv3.Op
		for _, op := range part {
			if op.IsTxn() {
				out = append(out, op) // not one level deeper still
			} else {
				flat = append(flat, op)
			}
		}
		out = append(out, clientv3.OpTxn(nil, flat, nil))
	}
	return out
}

// successor is the least string greater than all that begin with s.
func successor(s string) (string, bool) {
	b := []byte(s)
	for i := len(b) - 1; i >= 0; i-- {
		if b[i]++; b[i] != 0 {
			return string(b[:i+1]), true
		}
	}
	return "", false
}

// oldPositions reads where the state records that are rewritten stand. They hold as long as the versions do, which the
// transaction compares.
func (n *space) oldPositions(ctx context.Context, in *intent) error {
	var ops []clientv3.Op
	var puts []*intentPut
	for i := range in.puts {
		if p := &in.puts[i]; p.state && p.prefix != "" && p.old == 0 {
			ops, puts = append(ops, clientv3.OpGet(p.key)), append(puts, p)
		}
	}
	if len(ops) == 0 {
		return nil
	}
	r, err := n.s.read(ctx, ops...)
	if err != nil {
		return err
	}
	for i, p := range puts {
		if kvs := r.Responses[i].GetResponseRange().Kvs; len(kvs) > 0 {
			if v, _, err := versionOf(kvs[0].Value); err == nil && v == p.expect {
				p.old = posOf(kvs[0].Value)
			}
		}
	}
	return nil
}

// asked is how many operations of ask come before those of the records.
const asked = 4

// ask reads what a transaction that failed was mistaken about.
func (n *space) ask() []clientv3.Op {
	return []clientv3.Op{
		clientv3.OpGet(n.s.prefix + keyHistory), clientv3.OpGet(n.keys.fence),
		clientv3.OpGet(n.keys.head), clientv3.OpGet(n.keys.epoch),
	}
}

// told is the answer.
type told struct {
	history         uint64
	fenced          bool
	head, epoch     int64
	headAt, epochAt bool
}

func (n *space) told(r *clientv3.TxnResponse) (t told, err error) {
	if t.history, err = historyOf(r.Responses[0].GetResponseRange()); err != nil {
		return t, err
	}
	t.fenced = len(r.Responses[1].GetResponseRange().Kvs) > 0
	for i, p := range [...]struct {
		n  *int64
		at *bool
	}{{&t.head, &t.headAt}, {&t.epoch, &t.epochAt}} {
		if kvs := r.Responses[2+i].GetResponseRange().Kvs; len(kvs) > 0 {
			if *p.n, err = parse64(kvs[0].Value); err != nil {
				return t, err
			}
			*p.at = true
		}
	}
	return t, nil
}

// judge looks at the records that a change wanted to put, in the order of the contract: done, or refused, or neither,
// when the records were not what was in the way.
func judge(in *intent, records []*pb.ResponseOp) (done bool, refusal error) {
	for i := range in.puts {
		p := &in.puts[i]
		kvs := records[i].GetResponseRange().Kvs
		if len(kvs) == 0 {
			if p.prefix != "" {
				refusal = store.ErrConflict
			}
			continue
		}
		v, sel, err := versionOf(kvs[0].Value)
		switch {
		case err != nil:
			return false, fmt.Errorf("%s/%q: %w", p.Kind, p.ID, err)
		case v == in.id:
			return true, nil
		case v != p.expect:
			refusal = store.ErrConflict
		case refusal == nil && sel != selectors(&p.Record):
			refusal = fmt.Errorf("%w: subject, client, grant, token and type of %s/%q are fixed for its life", store.ErrInvalid, p.Kind, p.ID)
		}
	}
	if refusal == nil && in.replays {
		refusal = store.ErrConflict
	}
	return false, refusal
}

// learn takes over what another process has moved.
func (n *space) learn(t *told) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.headAt = t.headAt; t.headAt {
		n.head = max(n.head, t.head)
	}
	if t.epoch != n.epoch || t.epochAt != n.epochAt {
		n.epoch, n.epochAt, n.inEpoch = t.epoch, t.epochAt, 0
	}
}

// wrote counts an entry of an epoch, after the transaction.
func (n *space) wrote(g *guess) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if (g.next || !g.epochAt) && n.epoch == g.epoch {
		n.epoch, n.epochAt, n.inEpoch = g.epoch+1, true, 0
	}
}

// SetReadOnly makes the namespace refuse writes with [store.ErrReadOnly], or take them again. It is kept in the
// cluster, and holds for every process as soon as it returns: a namespace whose records were copied elsewhere must take
// no write by mistake. Events that wait are still shipped.
func (n *space) SetReadOnly(ctx context.Context, on bool) error {
	ctx, cancel := n.bounded(ctx)
	defer cancel()
	if err := n.usable(ctx); err != nil {
		return err
	}
	op := clientv3.OpDelete(n.keys.fence)
	if on {
		op = clientv3.OpPut(n.keys.fence, "1")
	}
	return n.s.mend(ctx, nil, op)
}

// mend runs an idempotent transaction of the store's own until it has been done. Conditions that fail are no error:
// another process did it, or something else has happened.
func (s *Store) mend(ctx context.Context, cmps []clientv3.Cmp, ops ...clientv3.Op) error {
	own, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	for wait := firstWait; ; {
		_, err := s.client.Txn(own).If(cmps...).Then(ops...).Commit()
		if err == nil {
			return nil
		}
		f, err := fateOf(err)
		if f == refused || !pause(own, s.ctx, &wait) {
			return fmt.Errorf("etcdstore: write: %w", err)
		}
	}
}
