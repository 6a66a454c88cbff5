package etcdstore

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/apitoken-go/apitoken/internal/cursor"
	"github.com/apitoken-go/apitoken/store"
)

// Events lie in etcd by epoch. The transaction that writes one compares the epoch, so that all of an epoch have
// revisions above all of the one before: reading epochs in turn, each sorted by create revision, is reading in the order
// of commits, and no key that everybody writes is needed for it.

// unit is the step in which the outbox is counted, in bytes. An entry is one key and counts as one unit; for what it holds beyond that
// it has weights, keys that count as weightUnits each, so that counting keys bounds bytes.
const (
	unit        = 1 << 10
	weightUnits = 4
)

// weights is how many an entry of so many bytes has.
func weights(size int64) int64 { return (size - unit + weightUnits*unit - 1) / (weightUnits * unit) }

func units(size int64) int64 { return 1 + weightUnits*weights(size) }

// How old a count of the outbox may be before it is renewed beside the writes, and before a refusal relies on it. Counting takes no more
// than one part in countLeast of the time.
const (
	countAge   = time.Second
	refusalAge = 100 * time.Millisecond
	countLeast = 10
)

// From half of its limit on, the outbox slows its writers down, the more the fuller it is: what is written in excess of what is shipped
// ends up waiting in the callers. Changes that find it full wait until something was shipped, in the order in which they came.
const longestDelay = 250 * time.Millisecond

// measure is what a process knows of the size of a namespace's outbox.
type measure struct {
	mu      sync.Mutex // guards what follows
	at      time.Time  // when the count was asked for; zero: never
	took    time.Duration
	count   int64 // units then, and those that this process has written since, less those that it has removed
	since   int64 // units begun before the count under way was answered, of which it may not have all
	under   int64 // units whose write is under way
	rough   bool  // some were when the count was asked for, so that it may have them twice
	counts  int64 // how many were answered
	looking bool  // a goroutine counts until nobody waits
	waiting []*hopeful
	full    time.Time // since when nobody found room; zero: the last who came did
	fault   error     // why this process shipped nothing when it last tried
}

// hopeful is a change that waits for room.
type hopeful struct {
	units int64
	begun time.Time
	done  chan error // never blocks
}

// begin notes units that are going to be written, with mu held.
func (o *measure) begin(units int64) {
	o.count += units
	o.since += units
	o.under += units
	o.full = time.Time{}
}

// end notes that the write of a change has ended, or was not begun.
func (o *measure) end(in *intent) {
	if in.urgent || len(in.events) == 0 {
		return // room has not noted it
	}
	o.mu.Lock()
	o.under -= units(in.size)
	o.mu.Unlock()
}

// removed notes units that this process has removed, unless a count was answered since it began to, when counts were: that may have been
// taken behind the removal.
func (n *space) removed(units, counts int64) {
	o := &n.outbox
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.counts == counts {
		o.count = max(o.count-units, 0)
		n.admit()
	}
}

// failed notes why this process ships nothing; nil: it does.
func (o *measure) failed(err error) {
	o.mu.Lock()
	o.fault = err
	o.mu.Unlock()
}

// counted is how many counts were answered.
func (o *measure) counted() int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.counts
}

// delay is how long a change waits before it may add events.
func (n *space) delay() time.Duration {
	o := &n.outbox
	o.mu.Lock()
	defer o.mu.Unlock()
	half := n.s.limit / 2
	if o.count <= half || !n.ships() {
		return 0
	}
	return time.Duration(float64(min(longestDelay, n.s.timeout/8)) * float64(min(o.count, n.s.limit)-half) / float64(n.s.limit-half))
}

// room returns when a change may add its events, or ErrOutboxFull where there is no hope that it may in time.
func (n *space) room(ctx context.Context, in *intent) error {
	if in.urgent {
		return nil
	}
	if d := n.delay(); d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return ctx.Err()
		case <-n.s.ctx.Done():
			return ErrClosed
		}
	}

	o, w := &n.outbox, &hopeful{units: units(in.size), begun: time.Now(), done: make(chan error, 1)}
	o.mu.Lock()
	known, age := !o.at.IsZero(), w.begun.Sub(o.at)
	switch {
	case known && len(o.waiting) == 0 && o.count+w.units <= n.s.limit:
		o.begin(w.units)
		if age > max(countAge, countLeast*o.took) {
			n.look()
		}
		o.mu.Unlock()
		return nil
	case o.full.IsZero(), age > n.s.patience(): // of the time before nothing is known
		o.full = w.begun
	}
	if known && n.stuck() && !o.rough && age < refusalAge {
		defer o.mu.Unlock()
		return n.fullError()
	}
	o.waiting = append(o.waiting, w)
	n.look()
	o.mu.Unlock()

	var late <-chan time.Time
	if known {
		t := time.NewTimer(n.s.patience())
		defer t.Stop()
		late = t.C
	}
	var err error
	select {
	case err := <-w.done:
		return err
	case <-late:
	case <-ctx.Done():
		err = fmt.Errorf("etcdstore: waiting for room in the outbox of events: %w", ctx.Err())
	case <-n.s.ctx.Done():
		err = ErrClosed
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	i := slices.Index(o.waiting, w)
	if i < 0 { // decided meanwhile
		return <-w.done
	}
	o.waiting = slices.Delete(o.waiting, i, i+1)
	n.admit()
	if err == nil {
		err = n.fullError()
	}
	return err
}

// patience is how long a change waits for room, at most. Where nobody found any for as long, nobody waits.
func (s *Store) patience() time.Duration { return s.timeout / 2 }

// stuck reports whether waiting for room is in vain. The caller holds mu.
func (n *space) stuck() bool {
	return !n.ships() || !n.outbox.full.IsZero() && time.Since(n.outbox.full) > n.s.patience()
}

// fullError says what is the matter. The caller holds mu.
func (n *space) fullError() error {
	o, why := &n.outbox, "and Options.Events names no store to ship them to"
	if n.ships() {
		why = fmt.Sprintf("and too little was shipped within %s", n.s.patience())
		if o.fault != nil {
			why += ": " + o.fault.Error()
		}
	}
	return fmt.Errorf("%w: %d of %d KiB, %s", ErrOutboxFull, o.count*unit>>10, n.s.limit*unit>>10, why)
}

// admit lets those begin who wait and for whom there is room, in their order. The caller holds mu.
func (n *space) admit() {
	o, k := &n.outbox, 0
	for ; k < len(o.waiting) && o.count+o.waiting[k].units <= n.s.limit; k++ {
		o.begin(o.waiting[k].units)
		o.waiting[k].done <- nil
	}
	o.waiting = slices.Delete(o.waiting, 0, k)
}

// refuse answers those who wait in vain, behind a count. The caller holds mu.
func (n *space) refuse() {
	o := &n.outbox
	for len(o.waiting) > 0 && n.stuck() && (!o.rough || o.waiting[0].begun.Before(o.at)) {
		o.waiting[0].done <- n.fullError()
		o.waiting = slices.Delete(o.waiting, 0, 1)
		n.admit()
	}
}

// look begins to count, unless that goes on already. The caller holds mu.
func (n *space) look() {
	if o := &n.outbox; !o.looking && n.s.begin() == nil {
		o.looking = true
		go func() {
			defer n.s.tasks.Done()
			n.lookAfter()
		}()
	}
}

// lookAfter counts until nobody waits.
func (n *space) lookAfter() {
	o := &n.outbox
	for {
		err := n.count()
		o.mu.Lock()
		if err != nil {
			for _, w := range o.waiting {
				w.done <- err
			}
			o.waiting = nil
		} else {
			n.admit()
			n.refuse()
		}
		wait := max(refusalAge, min(countLeast*o.took, n.s.patience()/4))
		if len(o.waiting) == 0 {
			o.looking = false
			o.mu.Unlock()
			return
		}
		if o.rough && n.stuck() {
			wait = 0 // those who came meanwhile need one more
		}
		o.mu.Unlock()
		select {
		case <-time.After(wait):
		case <-n.s.ctx.Done():
		}
	}
}

// count counts the outbox. What is under way meanwhile it takes for missing.
func (n *space) count() error {
	ctx, cancel := context.WithTimeout(n.s.ctx, n.s.timeout)
	defer cancel()
	o := &n.outbox
	o.mu.Lock()
	at, rough := time.Now(), o.under > 0
	o.since = o.under
	o.mu.Unlock()
	r, err := n.s.read(ctx,
		clientv3.OpGet(n.keys.events, clientv3.WithPrefix(), clientv3.WithCountOnly()),
		clientv3.OpGet(n.keys.weights, clientv3.WithPrefix(), clientv3.WithCountOnly()))
	if err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.at, o.took, o.rough, o.counts = at, time.Since(at), rough, o.counts+1
	o.count = r.Responses[0].GetResponseRange().Count + weightUnits*r.Responses[1].GetResponseRange().Count + o.since
	return nil
}

// eventPage is how many entries one answer of etcd holds.
const eventPage = 1000

// firstEpoch is the epoch of the oldest entry at a revision (0: now).
func (n *space) firstEpoch(ctx context.Context, from, rev int64) (epoch, at int64, ok bool, err error) {
	r, err := n.get(ctx, n.keys.inEpoch(from), clientv3.WithRange(clientv3.GetPrefixRangeEnd(n.keys.events)),
		clientv3.WithLimit(1), clientv3.WithKeysOnly(), clientv3.WithRev(rev))
	if err != nil || len(r.Kvs) == 0 {
		if err == nil {
			at = r.Header.Revision
		}
		return 0, at, false, err
	}
	epoch, ok = parseHex64(strings.TrimPrefix(string(r.Kvs[0].Key), n.keys.events))
	if !ok {
		return 0, 0, false, errValue("a key of the outbox does not read")
	}
	return epoch, r.Header.Revision, true, nil
}

// epochEntries are an epoch's entries at a revision, in the order of their commits. Without values only their keys and
// revisions are read.
func (n *space) epochEntries(ctx context.Context, epoch, rev int64, values bool) ([]entry, error) {
	var out []entry
	from, end := n.keys.inEpoch(epoch), clientv3.GetPrefixRangeEnd(n.keys.inEpoch(epoch))
	opts := []clientv3.OpOption{clientv3.WithRange(end), clientv3.WithRev(rev), clientv3.WithLimit(eventPage)}
	if !values {
		opts = append(opts, clientv3.WithKeysOnly())
	}
	for {
		r, err := n.get(ctx, from, opts...)
		if err != nil {
			return nil, err
		}
		for _, kv := range r.Kvs {
			var e entry
			if values {
				if e, err = decodeEvents(kv.Value); err != nil {
					return nil, err
				}
			}
			if err := e.stands(kv, epoch); err != nil {
				return nil, err
			}
			out = append(out, e)
		}
		if !r.More {
			break
		}
		from = string(r.Kvs[len(r.Kvs)-1].Key) + "\x00"
	}
	slices.SortFunc(out, func(a, b entry) int { return cmp.Compare(a.place, b.place) })
	return out, nil
}

// stands takes from a key where the entry stands.
func (e *entry) stands(kv *keyValue, epoch int64) error {
	seq, ok := seqOf(string(kv.Key))
	if !ok {
		return errValue("a key of the outbox does not read")
	}
	e.key, e.epoch, e.place, e.mod = string(kv.Key), epoch, place(kv.CreateRevision, seq*store.MaxEvents), kv.ModRevision
	return nil
}

// get is one range, linearizable and verified, at a revision that may lie behind.
func (n *space) get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	r, err := n.s.read(ctx, clientv3.OpGet(key, opts...))
	if err != nil {
		return nil, err
	}
	out := (*clientv3.GetResponse)(r.Responses[0].GetResponseRange())
	out.Header = r.Header
	return out, nil
}

// eventCursor is where a page of events from etcd ended. A page that goes on
// newest first beside another store also needs the revision that it looks at, and the place below which the other
// store's events are.
type eventCursor struct {
	epoch, place int64
	at, bound    int64
	other        string // cursor of the other store
	inOther      bool
}

// listKept lists events where etcd is the only place for them. Every page shows all that was committed before it.
func (n *space) listKept(ctx context.Context, q *store.Query, cur eventCursor, set bool) (store.Page, error) {
	was := cur.place
	var p store.Page
	rest, at, err := n.walk(ctx, q, &cur, set, 0, &p.Records)
	if err != nil {
		return store.Page{}, err
	}
	if set && !q.Newest {
		r, err := n.get(ctx, n.keys.trimmed, clientv3.WithRev(at))
		if err != nil {
			return store.Page{}, err
		}
		if len(r.Kvs) > 0 {
			trimmed, err := parse64(r.Kvs[0].Value)
			if err != nil {
				return store.Page{}, err
			}
			if was < trimmed {
				return store.Page{}, fmt.Errorf("%w: events up to %d were purged", store.ErrTrimmed, trimmed)
			}
		}
	}
	if rest {
		p.Cursor = cursor.Text(q, cur.encode())
	}
	return p, nil
}

// walk collects a page from etcd at one revision. rest: there is more; cur then tells where to go on. at is
// the revision.
func (n *space) walk(ctx context.Context, q *store.Query, cur *eventCursor, set bool, rev int64, out *[]store.Record) (rest bool, at int64, err error) {
	low, at, ok, err := n.firstEpoch(ctx, 0, rev)
	if err != nil || !ok {
		return false, at, err
	}
	if rev == 0 {
		rev = at // one snapshot
	}
	high, err := n.lastEpoch(ctx, rev)
	if err != nil {
		return false, at, err
	}
	if set {
		if q.Newest {
			high = min(high, cur.epoch)
		} else {
			low = max(low, cur.epoch)
		}
	}
	epoch, step := low, int64(1)
	if q.Newest {
		epoch, step = high, -1
	}
	last := eventCursor{at: cur.at, bound: cur.bound}
	for ; epoch >= low && epoch <= high; epoch += step {
		entries, err := n.epochEntries(ctx, epoch, rev, true)
		if err != nil {
			return false, at, err
		}
		if q.Newest {
			slices.Reverse(entries)
		}
		for i := range entries {
			e := &entries[i]
			for j := range e.events {
				k := j
				if q.Newest {
					k = len(e.events) - 1 - j
				}
				here := eventCursor{epoch: epoch, place: e.at(k), at: cur.at, bound: cur.bound}
				if set && !here.after(cur, q.Newest) || !q.Matches(&e.events[k]) {
					continue
				}
				if len(*out) == q.Limit {
					*cur = last
					return true, at, nil
				}
				*out = append(*out, e.events[k])
				last = here
			}
		}
	}
	return false, at, nil
}

func (c *eventCursor) after(o *eventCursor, newest bool) bool {
	if newest {
		return c.place < o.place
	}
	return c.place > o.place
}

// lastEpoch is the epoch that events went to at a revision.
func (n *space) lastEpoch(ctx context.Context, rev int64) (int64, error) {
	r, err := n.get(ctx, n.keys.epoch, clientv3.WithRev(rev))
	if err != nil || len(r.Kvs) == 0 {
		return 0, err
	}
	return parse64(r.Kvs[0].Value)
}
