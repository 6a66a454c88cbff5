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

	"github.com/apitoken-go/apitoken/store"
)

// Events lie in etcd by epoch. The transaction that writes one compares the epoch, so that all of an epoch have
// revisions above all of the one before: reading epochs in turn, each sorted by create revision, is reading in the order
// of commits, and no key that everybody writes is needed for it.

// unit is the step in which the outbox is counted, in bytes; each is one key.
const unit = 4 << 10

func units(size int64) int64 { return max(1, (size+unit-1)/unit) }

// How old a count of the outbox may be before it is renewed beside the writes, and before a refusal relies on it.
const (
	countAge   = time.Second
	refusalAge = 100 * time.Millisecond
)

// measure is what a process knows of the size of a namespace's outbox.
type measure struct {
	gate chan struct{} // holds a token while somebody counts

	mu    sync.Mutex // guards what follows
	at    time.Time  // when the count was asked for; zero: never
	count int64      // units then, and those that this process has written since
	since int64      // units begun before the count under way was answered, of which it may not have all
	under int64      // units whose write is under way
	rough bool       // some were when the count was asked for, so that it may have them twice
}

// begin notes units that are going to be written, with mu held.
func (o *measure) begin(units int64) {
	o.count += units
	o.since += units
	o.under += units
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

// room answers ErrOutboxFull where a change may not add its events.
func (n *space) room(ctx context.Context, in *intent) error {
	if in.urgent {
		return nil
	}
	o, add := &n.outbox, units(in.size)
	o.mu.Lock()
	age, fits := time.Since(o.at), o.count+add <= n.s.limit
	if !o.at.IsZero() && fits {
		o.begin(add)
		o.mu.Unlock()
		if age > countAge && o.try() {
			n.s.background(func() {
				own, cancel := context.WithTimeout(n.s.ctx, n.s.timeout)
				defer cancel()
				_ = n.count(own) // the next one tries again
			})
		}
		return nil
	}
	o.mu.Unlock()

	select {
	case o.gate <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("etcdstore: waiting for the outbox to be counted: %w", ctx.Err())
	}
	o.mu.Lock()
	fresh := !o.at.IsZero() && time.Since(o.at) < refusalAge && !o.rough
	o.mu.Unlock()
	if fresh {
		<-o.gate
	} else if err := n.count(ctx); err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.count+add > n.s.limit {
		return fmt.Errorf("%w: %d of %d KiB", ErrOutboxFull, o.count*unit>>10, n.s.limit*unit>>10)
	}
	o.begin(add)
	return nil
}

func (o *measure) try() bool {
	select {
	case o.gate <- struct{}{}:
		return true
	default:
		return false
	}
}

// count counts the outbox, and gives the gate back. What is under way meanwhile it takes for missing.
func (n *space) count(ctx context.Context) error {
	o := &n.outbox
	defer func() { <-o.gate }()
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
	o.at, o.rough, o.count = at, rough, r.Responses[0].GetResponseRange().Count+r.Responses[1].GetResponseRange().Count+o.since
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
		p.Cursor = cursorText(q, cur.encode())
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
				if set && !here.after(cur, q.Newest) || !matches(&e.events[k], q) {
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
