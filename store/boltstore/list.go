package boltstore

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"go.etcd.io/bbolt"

	"github.com/apitoken-go/apitoken/internal/cursor"
	"github.com/apitoken-go/apitoken/store"
)

const listExamine = 1024 // records between two looks at ctx

// List implements [store.Store]. Limit 0 means 1000.
func (sp *space) List(ctx context.Context, q store.Query) (store.Page, error) {
	return bounded(ctx, sp.s, func(ctx context.Context) (store.Page, error) { return sp.list(ctx, q) })
}

func (sp *space) list(ctx context.Context, q store.Query) (store.Page, error) {
	l, err := sp.lookUp(ctx, q)
	if err != nil {
		return store.Page{}, err
	}
	return store.Page{Records: l.out, Cursor: l.next}, nil
}

// lookUp returns a lister that has its page.
func (sp *space) lookUp(ctx context.Context, q store.Query) (*lister, error) {
	if possible, err := q.Check(); !possible {
		return &lister{}, err
	}
	cur, err := decodeCursor(&q)
	if err != nil {
		return nil, err
	}
	l := &lister{ctx: ctx, q: &q, cur: cur, history: sp.s.history, sel: selectionOf(&q)}
	opening := sp.s.opening.Load()
	err = sp.view(ctx, func(ns *bbolt.Bucket) error {
		h, err := readHead(ns)
		switch {
		case err != nil:
			return err
		case q.Kind == store.KindEvent:
			return l.events(ns, h)
		}
		switch {
		case len(l.sel.terms) > 0:
			return l.selected(ns)
		case q.Ends():
			return l.ending(ns)
		}
		return l.records(ns)
	})
	if err == nil {
		err = sp.s.settled(ctx, opening, func(f *inFlight) bool { return l.reads(f) })
	}
	return l, err
}

// lister collects one page. It asks for one record more than the page holds, to know whether there is more.
type lister struct {
	ctx      context.Context
	q        *store.Query
	sel      selection
	cur      place
	history  uint64
	examined int // chunks of the index, entries of the tail, records and events
	recent   int // of these, what is in no segment yet
	out      []store.Record
	keys     []int64  // of out, for events
	places   []string // of out, for what ends
	ended    bool     // no further event can be in the page
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
	last := place{set: true, id: l.out[l.q.Limit-1].ID}
	if l.places != nil {
		last.id = l.places[l.q.Limit-1]
	}
	if l.keys != nil {
		last = place{set: true, n: l.keys[l.q.Limit-1]}
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
		if !l.q.Matches(&r) {
			continue
		}
		l.out = append(l.out, r)
		if l.full() {
			return nil
		}
	}
	return nil
}

// ending walks through what a kind has that expires: first the tail, whose records stand in no index yet, then the expiry index,
// into which they are moved meanwhile. A place is the class of the bucket and the key in it.
func (l *lister) ending(ns *bbolt.Bucket) error {
	records := readSub(ns, classRecords, l.q.Kind)
	if records == nil {
		return nil
	}
	l.places = []string{}
	for _, x := range []struct {
		class class
		id    func(k, v []byte) []byte
	}{
		{classTail, func(_, v []byte) []byte { id, _, _ := bytes.Cut(v, []byte{0}); return id }},
		{classDue, func(k, _ []byte) []byte { return k[min(8, len(k)):] }},
	} {
		from, here := strings.CutPrefix(l.cur.id, string(byte(x.class)))
		switch {
		case here || !l.cur.set:
		case x.class == classTail: // the page before ended behind it
			continue
		default:
			from = ""
		}
		b := readSub(ns, x.class, l.q.Kind)
		if b == nil {
			continue
		}
		c := b.Cursor()
		k, v := c.Seek([]byte(from))
		if here && string(k) == from {
			k, v = c.Next()
		}
		for ; k != nil; k, v = c.Next() {
			if err := l.tick(); err != nil {
				return err
			}
			if x.class == classTail {
				l.recent++
			} else if num64(k) >= l.q.ExpiresBefore {
				break
			}
			id := x.id(k, v)
			r, err := decodeRecord(records.Get(id), l.q.Kind, string(id), l.history)
			if err != nil {
				return err
			}
			if !l.q.Matches(&r) {
				continue
			}
			l.out, l.places = append(l.out, r), append(l.places, string(byte(x.class))+string(k))
			if l.full() {
				return nil
			}
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

// selected finds records by the index and the tail, and pages through them by id.
func (l *lister) selected(ns *bbolt.Bucket) error {
	kind := l.q.Kind
	records := readSub(ns, classRecords, kind)
	if records == nil {
		return nil
	}
	all, err := segments(ns, kind)
	if err != nil {
		return err
	}
	chunks := readSub(ns, classChunks, kind)
	var sources []source
	for i := range all {
		sources = append(sources, l.join(chunks, &all[i]))
	}
	if runs := readSub(ns, classRuns, kind); runs != nil {
		c := runs.Cursor()
		for k, v := c.First(); k != nil; k, v = c.Next() {
			sources = append(sources, l.old(k, v, true))
		}
	}
	if tail := readSub(ns, classTail, kind); tail != nil {
		var refs [][]byte
		c := tail.Cursor()
		for k, v := c.First(); k != nil; k, v = c.Next() {
			l.recent++
			if err := l.tick(); err != nil {
				return err
			}
			id, terms, err := openTail(k, v, records, kind)
			if err != nil {
				return err
			}
			if holdsAll(terms, l.sel.terms) {
				refs = append(refs, id)
			}
		}
		slices.SortFunc(refs, bytes.Compare)
		sources = append(sources, l.sorted(refs))
	}

	from := []byte(l.cur.id)
	switch {
	case l.q.Newest && !l.cur.set:
		from = []byte{0xff} // behind all ids, which are UTF-8
	case !l.q.Newest && l.cur.set:
		from = append(from, 0)
	}
	err = l.merge(sources, from, func(id []byte) error {
		if err := l.tick(); err != nil {
			return err
		}
		v := records.Get(id)
		if v == nil {
			return nil // purged
		}
		r, err := decodeRecord(v, kind, string(id), l.history)
		if err != nil || !l.q.Matches(&r) {
			return err
		}
		if l.out = append(l.out, r); l.full() {
			return errEnough
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

// events goes through the segments and what comes after them, in either direction.
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
	high := l.high(events)
	if len(l.sel.terms) == 0 {
		_, err := l.walk(events, low, high)
		return err
	}
	parts, err := l.parts(ns)
	if err != nil {
		return err
	}
	// What is in no segment yet comes after everything else.
	parts = append(parts, part{first: h.blockEnd + 1, last: math.MaxInt64})
	if l.q.Newest {
		slices.Reverse(parts)
	}
	for _, p := range parts {
		from, to := max(low, p.first), min(high, p.last)
		if from > to {
			continue
		}
		if p.source == nil {
			before := l.examined
			done, err := l.walk(events, from, to)
			if l.recent += l.examined - before; done || err != nil {
				return err
			}
			continue
		}
		near := key64(from)
		if l.q.Newest {
			near = append(key64(to), 0)
		}
		err := l.merge([]source{p.source}, near, func(key []byte) error {
			if n := num64(key); n < from || n > to {
				return errEnough
			}
			v := events.Get(key)
			if v == nil {
				return nil // purged
			}
			if done, err := l.take(key, v); done || err != nil {
				return cmp.Or(err, errEnough)
			}
			return nil
		})
		if l.ended {
			return nil
		}
		if err != nil && !errors.Is(err, errEnough) {
			return err
		}
	}
	return nil
}

// part is a segment of events, or a block of an older format.
type part struct {
	first, last int64 // what its members lie between
	source      source
}

// parts are in the order of their events, and do not overlap.
func (l *lister) parts(ns *bbolt.Bucket) (all []part, err error) {
	dir, err := segments(ns, "")
	if err != nil {
		return nil, err
	}
	chunks := readSub(ns, classChunks, "")
	for i := range dir {
		all = append(all, part{first: dir[i].first, last: dir[i].last, source: l.join(chunks, &dir[i])})
	}
	blocks := readSub(ns, classBlocks, "")
	if blocks == nil {
		return all, nil
	}
	c := blocks.Cursor()
	for k, v := c.First(); k != nil; k, v = c.Next() {
		all = append(all, part{last: num64(k), source: l.old(k, v, false)})
	}
	slices.SortFunc(all, func(a, b part) int { return cmp.Compare(a.last, b.last) })
	for i := range all {
		if all[i].first == 0 && i > 0 {
			all[i].first = all[i-1].last + 1
		}
	}
	return all, nil
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

func (l *lister) take(k, v []byte) (done bool, err error) {
	if err := l.tick(); err != nil {
		return true, err
	}
	written, _, err := openEvent(v, k)
	if err != nil {
		return true, err
	}
	// Written never falls along the order.
	if l.q.Newest && l.q.Since > 0 && written < l.q.Since || !l.q.Newest && l.q.Until > 0 && written >= l.q.Until {
		l.ended = true
		return true, nil
	}
	// Most of what is read one by one is not selected, and is not worth decoding.
	if s, ok := selectorsOfEvent(v); ok && !l.sel.matches(&s) {
		return false, nil
	}
	r, err := decodeEvent(v, k)
	if err != nil {
		return true, err
	}
	if l.q.Matches(&r) {
		l.out, l.keys = append(l.out, r), append(l.keys, num64(k))
	}
	l.ended = l.full()
	return l.ended, nil
}

// place is where a page ended: a number for events, an id for records.
type place struct {
	set bool
	n   int64
	id  string
}

func (p place) encode(q *store.Query) string {
	if q.Kind == store.KindEvent {
		return cursor.Text(q, string(key64(p.n)))
	}
	return cursor.Text(q, p.id)
}

func decodeCursor(q *store.Query) (place, error) {
	rest, err := cursor.Place(q)
	if err != nil || rest == "" {
		return place{}, err
	}
	if q.Kind != store.KindEvent {
		return place{set: true, id: rest}, nil
	}
	if len(rest) != 8 || rest[0] >= 0x80 {
		return place{}, cursor.ErrUnreadable
	}
	return place{set: true, n: num64([]byte(rest))}, nil
}
