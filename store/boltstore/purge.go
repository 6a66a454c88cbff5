package boltstore

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"sync/atomic"

	"go.etcd.io/bbolt"

	"github.com/apitoken-go/apitoken/store"
)

// purgeStep is how many index entries or events one transaction goes through, so that others' commits are not held up:
// about two milliseconds.
const purgeStep = 256

// maintain runs a step in the writer's transaction.
func (s *Store) maintain(ctx context.Context, sp *space, urgent bool, step func(*txn) error) error {
	r := &request{sp: sp, step: step, urgent: urgent}
	if err := s.submit(ctx, r); err != nil {
		return err
	}
	return r.out.err
}

// Purge implements [store.Store]. The store's own clock, for this, is one that does not believe a forward step before
// it has stood for an hour. Each step is a transaction of its own; the number is right even where err is not nil.
func (sp *space) Purge(ctx context.Context, kind store.Kind, before int64, max int) (int, error) {
	if sp.err != nil {
		return 0, sp.err
	}
	if err := kind.Check(); err != nil {
		return 0, err
	}
	if sp.s.readOnly {
		return 0, store.ErrReadOnly
	}
	var total atomic.Int64
	_, err := bounded(ctx, sp.s, func(ctx context.Context) (int, error) {
		return 0, sp.purge(ctx, kind, before, max, func(n int) { total.Add(int64(n)) })
	})
	return int(total.Load()), err
}

// purge reports each finished step to count, so that the number is known even if its caller stops waiting.
func (sp *space) purge(ctx context.Context, kind store.Kind, before int64, max int, count func(int)) error {
	if kind == store.KindEvent {
		return sp.purgeEvents(ctx, before, max, count)
	}
	total := 0
	for total < max {
		removed, done, err := sp.step(ctx, func(t *txn) (int, bool, error) { return purgeDue(t, sp, kind, before, max-total) })
		if err != nil {
			return err
		}
		total += removed
		count(removed)
		if done {
			break
		}
	}
	// What was created last stands in no index yet: 512 records at most.
	tail, err := sp.tailDue(ctx, kind, before)
	for len(tail) > 0 && total < max && err == nil {
		part := tail[:min(len(tail), purgeStep, max-total)]
		tail = tail[len(part):]
		var removed int
		removed, _, err = sp.step(ctx, func(t *txn) (int, bool, error) {
			n, err := purgeTail(t, sp, kind, before, part)
			return n, true, err
		})
		if err != nil {
			break // a step whose caller has gone may still count
		}
		total += removed
		count(removed)
	}
	return err
}

// step runs f in the writer. The answer travels by channel: f may run after the caller has stopped waiting.
func (sp *space) step(ctx context.Context, f func(*txn) (int, bool, error)) (removed int, flag bool, err error) {
	type result struct {
		removed int
		flag    bool
	}
	var r atomic.Pointer[result]
	err = sp.s.maintain(ctx, sp, true, func(t *txn) error {
		n, flag, err := f(t)
		r.Store(&result{n, flag})
		return err
	})
	if got := r.Load(); got != nil && err == nil {
		return got.removed, got.flag, nil
	}
	return 0, true, err
}

// deadline is the time before which Expires must lie: alive is Expires > now.
func (t *txn) deadline(before int64) int64 { return min(before, t.believed+1) }

// tailDue finds records of the tail that may have expired.
func (sp *space) tailDue(ctx context.Context, kind store.Kind, before int64) (ids [][]byte, err error) {
	_, believed := sp.s.clock.read()
	limit := min(before, believed+1)
	err = sp.view(ctx, func(ns *bbolt.Bucket) error {
		tail, records := readSub(ns, classTail, kind), readSub(ns, classRecords, kind)
		if tail == nil || records == nil {
			return nil
		}
		c := tail.Cursor()
		for k, v := c.First(); k != nil; k, v = c.Next() {
			id, _, _ := bytes.Cut(v, []byte{0})
			h, err := openRecord(records.Get(id), kind, string(id))
			if err != nil {
				return err
			}
			if h.expires > 0 && h.expires < limit {
				ids = append(ids, bytes.Clone(id))
			}
		}
		return nil
	})
	return ids, err
}

// purgeTail removes those of ids that are still there and expired.
func purgeTail(t *txn, sp *space, kind store.Kind, before int64, ids [][]byte) (removed int, err error) {
	st, err := t.space(sp)
	if err != nil {
		return 0, err
	}
	if st.head.readOnly {
		return 0, store.ErrReadOnly
	}
	records, err := st.sub(classRecords, kind, true)
	if err != nil {
		return 0, err
	}
	limit := t.deadline(before)
	for _, id := range ids {
		v := records.b.Get(id)
		if v == nil {
			continue
		}
		h, err := openRecord(v, kind, string(id))
		if err != nil {
			return removed, err
		}
		if h.expires <= 0 || h.expires >= limit {
			continue
		}
		if err := st.moveDue(kind, id, h.bornAt, h.due, 0); err != nil { // it may have left the tail meanwhile
			return removed, err
		}
		if err := st.remove(records, kind, id, &h); err != nil {
			return removed, err
		}
		removed++
	}
	return removed, nil
}

// remove takes a record out of everything but the expiry index.
func (st *spaceTxn) remove(records *sub, kind store.Kind, id []byte, h *recordHeader) error {
	if h.pos != 0 {
		order, err := st.sub(classOrder, "", true)
		if err != nil {
			return err
		}
		if err := st.del(order, key64(h.pos)); err != nil {
			return err
		}
		st.head.digest.order.remove(orderHash(h.pos, orderEntry(kind, id)))
	}
	if err := st.forget(kind, h.bornAt); err != nil {
		return err
	}
	st.head.digest.of(kind).remove(recordHash(kind, id, h))
	return st.del(records, id)
}

// purgeDue goes through the expiry index; done when it needs no further step.
func purgeDue(t *txn, sp *space, kind store.Kind, before int64, most int) (removed int, done bool, err error) {
	st, err := t.space(sp)
	if err != nil {
		return 0, true, err
	}
	if st.head.readOnly {
		return 0, true, store.ErrReadOnly
	}
	due, err := st.sub(classDue, kind, false)
	if err != nil || due == nil {
		return 0, true, err
	}
	records, err := st.sub(classRecords, kind, true)
	if err != nil {
		return 0, true, err
	}
	limit := t.deadline(before)
	var keys [][]byte
	c := due.b.Cursor()
	done = true
	for k, _ := c.First(); len(k) > 8 && num64(k) < limit; k, _ = c.Next() {
		if len(keys) == purgeStep {
			done = false
			break
		}
		keys = append(keys, bytes.Clone(k))
	}
	for _, key := range keys {
		if removed == most {
			return removed, true, nil
		}
		id := key[8:]
		v := records.b.Get(id)
		if v == nil {
			return removed, true, errValue(fmt.Sprintf("record %s/%q is gone and still in the expiry index", kind, id))
		}
		h, err := openRecord(v, kind, string(id))
		if err != nil {
			return removed, true, err
		}
		if err := st.del(due, key); err != nil {
			return removed, true, err
		}
		if h.expires <= 0 || h.expires >= limit {
			// It was rewritten with a later expiry: the index catches up now, once, instead of at each rotation.
			later := int64(0)
			if h.expires > 0 {
				later = h.expires
				if err := st.put(due, dueKey(later, id), nil); err != nil {
					return removed, true, err
				}
			}
			moved := bytes.Clone(v)
			stampRecord(moved, kind, string(id), h.written, h.pos, later, h.bornAt)
			if err := st.put(records, id, moved); err != nil {
				return removed, true, err
			}
			continue
		}
		if err := st.remove(records, kind, id, &h); err != nil {
			return removed, true, err
		}
		removed++
	}
	return removed, done, nil
}

// purgeEvents goes through the groups that have something expired, then through the events after the last group. Blocks of an
// older format become groups first, see merge.go.
func (sp *space) purgeEvents(ctx context.Context, before int64, most int, count func(int)) error {
	_, believed := sp.s.clock.read()
	before = min(before, believed+1)
	total := 0
	after := int64(-1) // the end of the last group gone through
	for total < most {
		var key []byte
		err := sp.view(ctx, func(ns *bbolt.Bucket) error {
			b := readSub(ns, classGroups, "")
			if b == nil {
				return nil
			}
			c := b.Cursor()
			for k, v := c.Seek(key64(after + 1)); k != nil; k, v = c.Next() {
				g, err := openGroup(k, v)
				if err != nil {
					return err
				}
				if g.minExpires > 0 && g.minExpires < before {
					key = bytes.Clone(k)
					return nil
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		for more := true; more && total < most; {
			var removed int
			removed, more, err = sp.step(ctx, func(t *txn) (int, bool, error) {
				if key == nil {
					return purgeLoose(t, sp, before, most-total)
				}
				return purgeGroup(t, sp, key, before, most-total)
			})
			if err != nil {
				return err
			}
			total += removed
			count(removed)
		}
		if key == nil {
			break
		}
		after = num64(key)
	}
	return nil
}

// purgeGroup removes expired events of one group; more when it stopped at the size of a step.
func purgeGroup(t *txn, sp *space, key []byte, before int64, most int) (removed int, more bool, err error) {
	st, err := t.space(sp)
	if err != nil {
		return 0, false, err
	}
	if st.head.readOnly {
		return 0, false, store.ErrReadOnly
	}
	groups, err := st.sub(classGroups, "", true)
	if err != nil {
		return 0, false, err
	}
	v := groups.b.Get(key)
	if v == nil {
		return 0, false, nil // another Purge was faster
	}
	g, err := openGroup(key, v)
	if err != nil {
		return 0, false, err
	}
	removed, left, minExpires, err := st.purgeRange(g.first, g.last, before, min(most, purgeStep))
	if err != nil {
		return removed, false, err
	}
	if removed > 0 {
		if err := st.countOff("", g.last, removed); err != nil {
			return removed, false, err
		}
	}
	if left == 0 {
		return removed, false, st.del(groups, key)
	}
	if minExpires != g.minExpires {
		g.minExpires = minExpires
		if err := st.putGroup(&g); err != nil {
			return removed, false, err
		}
	}
	return removed, removed == purgeStep, nil
}

// purgeLoose removes expired events that are in no group yet.
func purgeLoose(t *txn, sp *space, before int64, most int) (removed int, more bool, err error) {
	st, err := t.space(sp)
	if err != nil {
		return 0, false, err
	}
	if st.head.readOnly {
		return 0, false, store.ErrReadOnly
	}
	removed, left, _, err := st.purgeRange(st.head.blockEnd+1, math.MaxInt64, before, min(most, purgeStep))
	if removed > 0 {
		st.head.loose = int64(left)
	}
	return removed, removed == purgeStep, err
}

// purgeRange removes at most most expired events with first <= n <= last, and tells what is left of them.
func (st *spaceTxn) purgeRange(first, last, before int64, most int) (removed, left int, minExpires int64, err error) {
	events, err := st.sub(classEvents, "", false)
	if err != nil || events == nil {
		return 0, 0, 0, err
	}
	limit := st.t.deadline(before)
	var gone [][]byte
	var hashes []uint64
	c := events.b.Cursor()
	for k, v := c.Seek(key64(first)); k != nil && num64(k) <= last; k, v = c.Next() {
		_, expires, err := openEvent(v, k)
		if err != nil {
			return 0, 0, 0, err
		}
		if expires > 0 && expires < limit && len(gone) < most {
			gone = append(gone, bytes.Clone(k))
			hashes = append(hashes, eventHash(num64(k), v))
			continue
		}
		left++
		minExpires = earliest(minExpires, expires)
	}
	for i, k := range gone {
		st.head.digest.events.remove(hashes[i])
		if err := st.del(events, k); err != nil {
			return removed, left, minExpires, err
		}
		st.head.trimmed = max(st.head.trimmed, num64(k))
		removed++
	}
	return removed, left, minExpires, nil
}
