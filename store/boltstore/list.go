package boltstore

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"slices"
	"sort"
	"strings"

	"go.etcd.io/bbolt"

	"github.com/apitoken-go/apitoken/store"
)

const listExamine = 1024 // records between two looks at ctx

// List implements [store.Store]. Limit 0 means 1000.
func (sp *space) List(ctx context.Context, q store.Query) (store.Page, error) {
	return bounded(ctx, sp.s, func(ctx context.Context) (store.Page, error) { return sp.list(ctx, q) })
}

func (sp *space) list(ctx context.Context, q store.Query) (store.Page, error) {
	if possible, err := q.Check(); !possible {
		return store.Page{}, err
	}
	cur, err := decodeCursor(&q)
	if err != nil {
		return store.Page{}, err
	}
	l := lister{ctx: ctx, q: &q, cur: cur, history: sp.s.history}
	opening := sp.s.opening.Load()
	err = sp.view(ctx, func(ns *bbolt.Bucket) error {
		h, err := readHead(ns)
		switch {
		case err != nil:
			return err
		case q.Kind == store.KindEvent:
			return l.events(ns, h)
		}
		if term, ok := rarest(&q); ok {
			return l.selected(ns, term)
		}
		return l.records(ns)
	})
	if err == nil {
		err = sp.s.settled(ctx, opening, func(f *inFlight) bool { return l.reads(f) })
	}
	if err != nil {
		return store.Page{}, err
	}
	return store.Page{Records: l.out, Cursor: l.next}, nil
}

// lister collects one page. It asks for one record more than the page holds, to know whether there is more.
type lister struct {
	ctx      context.Context
	q        *store.Query
	cur      cursor
	history  uint64
	examined int
	out      []store.Record
	keys     []int64 // of out, for events
	next     string
}

func (l *lister) reads(f *inFlight) bool {
	for i := range l.out {
		if _, in := f.versions[l.out[i].Version]; in {
			return true
		}
	}
	return false
}

func (l *lister) tick() error {
	l.examined++
	if l.examined%listExamine == 0 {
		return l.ctx.Err()
	}
	return nil
}

// full cuts the page to its limit and leaves a cursor, if there is one record more than that.
func (l *lister) full() bool {
	if len(l.out) <= l.q.Limit {
		return false
	}
	l.out = l.out[:l.q.Limit]
	last := cursor{set: true, id: l.out[l.q.Limit-1].ID}
	if l.keys != nil {
		last = cursor{set: true, n: l.keys[l.q.Limit-1]}
	}
	l.next = last.encode(l.q)
	return true
}

// records walks through a kind by id.
func (l *lister) records(ns *bbolt.Bucket) error {
	b := readSub(ns, classRecords, l.q.Kind)
	if b == nil {
		return nil
	}
	c := b.Cursor()
	var k, v []byte
	step := c.Next
	from := []byte(l.cur.id)
	switch {
	case !l.q.Newest:
		if k, v = c.Seek(from); l.cur.set && bytes.Equal(k, from) {
			k, v = c.Next()
		}
	default:
		step = c.Prev
		k, v = seekBelow(c, from, l.cur.set)
	}
	for ; k != nil; k, v = step() {
		if err := l.tick(); err != nil {
			return err
		}
		r, err := decodeRecord(v, l.q.Kind, string(k), l.history)
		if err != nil {
			return err
		}
		if !matches(&r, l.q) {
			continue
		}
		l.out = append(l.out, r)
		if l.full() {
			return nil
		}
	}
	return nil
}

// seekBelow goes to the last key before from, or to the last of all.
func seekBelow(c *bbolt.Cursor, from []byte, set bool) (k, v []byte) {
	if !set {
		return c.Last()
	}
	if k, _ = c.Seek(from); k == nil {
		return c.Last()
	}
	return c.Prev()
}

// selected finds records by the tail and the runs, and pages through them by id. Runs are taken in the order of their
// ids, so that with time-ordered ids the first few fill the page.
func (l *lister) selected(ns *bbolt.Bucket, term uint32) error {
	records := readSub(ns, classRecords, l.q.Kind)
	if records == nil {
		return nil
	}
	if tail := readSub(ns, classTail, l.q.Kind); tail != nil {
		c := tail.Cursor()
		for k, id := c.First(); k != nil; k, id = c.Next() {
			if records.Get(id) == nil {
				return errValue(fmt.Sprintf("record %s/%q is gone and still in the tail", l.q.Kind, id))
			}
			if err := l.offer(records, id); err != nil {
				return err
			}
		}
	}
	runs, dir := readSub(ns, classRuns, l.q.Kind), readSub(ns, classRunDir, l.q.Kind)
	if runs == nil || dir == nil {
		l.full()
		return nil
	}
	var all []runDir
	c := dir.Cursor()
	for k, v := c.First(); k != nil; k, v = c.Next() {
		d, err := decodeRunDir(k, v)
		if err != nil {
			return err
		}
		all = append(all, d)
	}
	slices.SortFunc(all, func(a, b runDir) int {
		if l.q.Newest {
			return strings.Compare(b.last, a.last)
		}
		return strings.Compare(a.first, b.first)
	})
	for _, d := range all {
		near, far := d.first, d.last
		if l.q.Newest {
			near, far = far, near
		}
		if l.cur.set && !l.before(l.cur.id, far) {
			continue
		}
		if len(l.out) > l.q.Limit && !l.before(near, l.out[l.q.Limit].ID) {
			break
		}
		tb, err := openTerms(d.key, runs.Get(d.key))
		if err != nil {
			return err
		}
		found := tb.find(term)
		if len(found) == 0 {
			if err := l.tick(); err != nil {
				return err
			}
			continue
		}
		ids, err := tb.ids()
		if err != nil {
			return err
		}
		for _, i := range found {
			if i >= len(ids) {
				return errValue("a run of ids is cut short")
			}
			if err := l.offer(records, ids[i]); err != nil {
				return err
			}
		}
	}
	l.full()
	return nil
}

// before is the order of the page.
func (l *lister) before(a, b string) bool {
	if l.q.Newest {
		return a > b
	}
	return a < b
}

// offer takes a record into the page if it belongs there, and drops the one that is pushed off its end.
func (l *lister) offer(records *bbolt.Bucket, id []byte) error {
	if err := l.tick(); err != nil {
		return err
	}
	s := string(id)
	if l.cur.set && !l.before(l.cur.id, s) {
		return nil
	}
	at := sort.Search(len(l.out), func(i int) bool { return !l.before(l.out[i].ID, s) })
	if at < len(l.out) && l.out[at].ID == s || at > l.q.Limit {
		return nil
	}
	v := records.Get(id)
	if v == nil {
		return nil // purged, and its run not used up yet
	}
	r, err := decodeRecord(v, l.q.Kind, s, l.history)
	if err != nil || !matches(&r, l.q) {
		return err
	}
	l.out = slices.Insert(l.out, at, r)
	if len(l.out) > l.q.Limit+1 {
		l.out = l.out[:l.q.Limit+1]
	}
	return nil
}

// events goes through the blocks and what comes after them, in either direction.
func (l *lister) events(ns *bbolt.Bucket, h head) error {
	l.keys = []int64{}
	events := readSub(ns, classEvents, "")
	if l.cur.set && !l.q.Newest && l.cur.n < h.trimmed {
		return fmt.Errorf("%w: events up to %d were purged", store.ErrTrimmed, h.trimmed)
	}
	if events == nil {
		if h.loose != 0 || h.blockEnd != 0 {
			return errValue("the events are gone")
		}
		return nil
	}
	// A number is at least its Written in ms << 16, and Written never falls: that bounds the walk at its lower end.
	low := int64(1)
	if l.q.Since > 0 {
		low = shiftedMs(l.q.Since)
	}
	if l.cur.set && !l.q.Newest {
		low = max(low, l.cur.n+1)
	}
	term, selected := rarest(l.q)
	blocks := readSub(ns, classBlocks, "")
	if !selected || blocks == nil {
		_, err := l.walk(events, low, l.high(events))
		return err
	}
	high := l.high(events)
	if l.q.Newest {
		if done, err := l.walk(events, max(low, h.blockEnd+1), high); done || err != nil {
			return err
		}
		c := blocks.Cursor()
		// The block that may hold high ends at or after it.
		k, v := c.Seek(key64(min(high, h.blockEnd)))
		for ; k != nil && num64(k) >= low; k, v = c.Prev() {
			if done, err := l.block(events, k, v, term, low, high); done || err != nil {
				return err
			}
		}
		return nil
	}
	c := blocks.Cursor()
	for k, v := c.Seek(key64(low)); k != nil; k, v = c.Next() {
		if done, err := l.block(events, k, v, term, low, high); done || err != nil {
			return err
		}
	}
	_, err := l.walk(events, max(low, h.blockEnd+1), high)
	return err
}

func shiftedMs(ms int64) int64 {
	if ms >= 1<<46 {
		return 1 << 62
	}
	return max(1, ms<<16)
}

// high is the last number that can be in the page: for newest first from the cursor or from Until.
func (l *lister) high(events *bbolt.Bucket) int64 {
	top := int64(1<<63 - 1)
	if !l.q.Newest {
		return top
	}
	if l.cur.set {
		top = l.cur.n - 1
	}
	if l.q.Until > 0 {
		// Numbers may run ahead of the clock: go on while Written is still below.
		c := events.Cursor()
		for k, v := c.Seek(key64(shiftedMs(l.q.Until))); k != nil; k, v = c.Next() {
			written, _, err := openEvent(v, k)
			if err != nil || written >= l.q.Until {
				top = min(top, num64(k)-1)
				break
			}
		}
	}
	return top
}

// walk reads events one by one, from low to high or back; done when nothing more can come.
func (l *lister) walk(events *bbolt.Bucket, low, high int64) (done bool, err error) {
	if low > high {
		return false, nil
	}
	c := events.Cursor()
	var k, v []byte
	step := c.Next
	if l.q.Newest {
		step = c.Prev
		if high == 1<<63-1 {
			k, v = c.Last()
		} else {
			k, v = seekBelow(c, key64(high+1), true)
		}
	} else {
		k, v = c.Seek(key64(low))
	}
	for ; k != nil; k, v = step() {
		if n := num64(k); n < low || n > high {
			break
		}
		if done, err := l.take(k, v); done || err != nil {
			return true, err
		}
	}
	return false, nil
}

// block reads the events of one block that have the term.
func (l *lister) block(events *bbolt.Bucket, k, v []byte, term uint32, low, high int64) (done bool, err error) {
	if err := l.tick(); err != nil {
		return true, err
	}
	tb, err := openTerms(k, v)
	if err != nil {
		return true, err
	}
	found := tb.find(term)
	if len(found) == 0 {
		return false, nil
	}
	numbers, err := tb.numbers()
	if err != nil {
		return true, err
	}
	if l.q.Newest {
		slices.Reverse(found)
	}
	for _, i := range found {
		if i >= len(numbers) {
			return true, errValue("a block of events is cut short")
		}
		if n := numbers[i]; n < low || n > high {
			continue
		}
		key := key64(numbers[i])
		v := events.Get(key)
		if v == nil {
			continue // purged
		}
		if done, err := l.take(key, v); done || err != nil {
			return true, err
		}
	}
	return false, nil
}

func (l *lister) take(k, v []byte) (done bool, err error) {
	if err := l.tick(); err != nil {
		return true, err
	}
	r, err := decodeEvent(v, k)
	if err != nil {
		return true, err
	}
	// Written never falls along the order.
	if l.q.Newest && l.q.Since > 0 && r.Written < l.q.Since || !l.q.Newest && l.q.Until > 0 && r.Written >= l.q.Until {
		return true, nil
	}
	if matches(&r, l.q) {
		l.out, l.keys = append(l.out, r), append(l.keys, num64(k))
	}
	return l.full(), nil
}

// cursor is where a page ended: a number for events, an id for records.
type cursor struct {
	set bool
	n   int64
	id  string
}

func cursorHead(q *store.Query) string {
	dir := "o"
	if q.Newest {
		dir = "n"
	}
	return "1" + dir + string(q.Kind) + "\x00"
}

func (c cursor) encode(q *store.Query) string {
	b := []byte(cursorHead(q))
	if q.Kind == store.KindEvent {
		b = binary.BigEndian.AppendUint64(b, uint64(c.n))
	} else {
		b = append(b, c.id...)
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

func decodeCursor(q *store.Query) (cursor, error) {
	if q.Cursor == "" {
		return cursor{}, nil
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(q.Cursor)
	rest, ok := strings.CutPrefix(string(b), cursorHead(q))
	if err != nil || !ok {
		return cursor{}, fmt.Errorf("%w: the cursor is of another query", store.ErrInvalid)
	}
	if q.Kind != store.KindEvent {
		return cursor{set: true, id: rest}, nil
	}
	if len(rest) != 8 || rest[0] >= 0x80 {
		return cursor{}, fmt.Errorf("%w: the cursor does not read", store.ErrInvalid)
	}
	return cursor{set: true, n: num64([]byte(rest))}, nil
}
