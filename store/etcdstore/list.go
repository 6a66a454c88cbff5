package etcdstore

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/apitoken-go/apitoken/internal/cursor"
	"github.com/apitoken-go/apitoken/store"
)

const getBatch = 100 // records fetched in one transaction

// List implements [store.Store]. Limit 0 means 1000. A page of records is read at one revision. Type, Since and Until
// have no index: alone they read the whole kind.
//
// Events, without Options.Events, are read from etcd at one revision and are never late. With it, oldest-first is the
// other store's feed; newest-first begins with what waits in etcd and goes on in the other store, and is one snapshot
// over all its pages: what came after the first is not in a later one. store.ErrTrimmed there means that etcd was
// compacted past that snapshot: begin again.
func (n *space) List(ctx context.Context, q store.Query) (store.Page, error) {
	ctx, cancel := n.bounded(ctx)
	defer cancel()
	if err := n.usable(ctx); err != nil {
		return store.Page{}, err
	}
	if possible, err := q.Check(); !possible {
		return store.Page{}, err
	}
	raw, err := cursor.Place(&q)
	if err != nil {
		return store.Page{}, err
	}
	if q.Kind != store.KindEvent {
		return uncompacted(func() (store.Page, error) { return n.listRecords(ctx, &q, raw) })
	}
	cur, err := decodeEventCursor(raw)
	if err != nil {
		return store.Page{}, err
	}
	if dest := n.dest(); dest != nil {
		if q.Newest {
			return uncompacted(func() (store.Page, error) { return n.listNewest(ctx, &q, dest, cur, raw != "") })
		}
		return n.listFeed(ctx, &q, dest, raw)
	}
	if strings.HasPrefix(raw, "\x02") {
		return store.Page{}, fmt.Errorf("%w: the cursor is of another store's feed", store.ErrTrimmed)
	}
	return uncompacted(func() (store.Page, error) { return n.listKept(ctx, &q, cur, raw != "") })
}

// uncompacted repeats a page whose revision was compacted away while it was read: often enough also where somebody compacts
// etcd several times a second.
func uncompacted(page func() (store.Page, error)) (p store.Page, err error) {
	for range 32 {
		if p, err = page(); !errCompacted(err) {
			return p, err
		}
	}
	return p, err
}

// listRecords walks through the ids of the kind, or of the narrowest index, and fetches the records where those are
// only ids.
func (n *space) listRecords(ctx context.Context, q *store.Query, place string) (store.Page, error) {
	if q.Ends() {
		return n.listEnds(ctx, q, place)
	}
	prefix, indexed := n.keys.narrowest(q)
	if !indexed {
		prefix = n.keys.records(q.Kind)
	}
	from, end := prefix, clientv3.GetPrefixRangeEnd(prefix)
	if q.Newest {
		if place != "" {
			end = prefix + place
		}
		return n.listBackwards(ctx, q, prefix, from, end)
	}
	if place != "" {
		from = prefix + place + "\x00"
	}
	var out []store.Record
	l, rev := n.s.lineage.Load(), int64(0)
	for {
		size := int64(q.Limit + 1 - len(out))
		if filters(q, indexed) {
			size = store.MaxLimit
		}
		opts := []clientv3.OpOption{clientv3.WithRange(end), clientv3.WithLimit(size), clientv3.WithRev(rev)}
		r, err := n.get(ctx, from, opts...)
		if err != nil {
			return store.Page{}, err
		}
		if rev == 0 {
			rev = r.Header.Revision
		}
		recs, err := n.fetch(ctx, q.Kind, prefix, r, indexed, rev, l.id)
		if err != nil {
			return store.Page{}, err
		}
		for i := range recs {
			if !q.Matches(&recs[i]) {
				continue
			}
			if out = append(out, recs[i]); len(out) > q.Limit {
				out = out[:q.Limit]
				return store.Page{Records: out, Cursor: cursor.Text(q, out[len(out)-1].ID)}, nil
			}
		}
		if !r.More {
			return store.Page{Records: out}, nil
		}
		from = string(r.Kvs[len(r.Kvs)-1].Key) + "\x00"
	}
}

// listEnds goes through the expiry index. A record that was written with several times of expiry stands there several times, of
// which a page shows the first.
func (n *space) listEnds(ctx context.Context, q *store.Query, place string) (store.Page, error) {
	prefix := n.keys.dues(q.Kind)
	from, end := prefix, prefix+hex64(q.ExpiresBefore)
	if place != "" {
		from = prefix + place + "\x00"
	}
	var page store.Page
	seen := map[string]bool{}
	l, rev, last := n.s.lineage.Load(), int64(0), ""
	for {
		r, err := n.get(ctx, from, clientv3.WithRange(end), clientv3.WithKeysOnly(), clientv3.WithLimit(int64(q.Limit+1)), clientv3.WithRev(rev))
		if err != nil {
			return store.Page{}, err
		}
		if rev == 0 {
			rev = r.Header.Revision
		}
		for part := range slices.Chunk(r.Kvs, getBatch) {
			ops := make([]clientv3.Op, len(part))
			for i, kv := range part {
				if len(kv.Key) <= len(prefix)+16 {
					return store.Page{}, errValue("an entry of the expiry index does not read")
				}
				ops[i] = clientv3.OpGet(n.keys.record(q.Kind, string(kv.Key[len(prefix)+16:])), clientv3.WithRev(rev))
			}
			got, err := n.s.read(ctx, ops...)
			if err != nil {
				return store.Page{}, err
			}
			for i, kv := range part {
				id, kvs := string(kv.Key[len(prefix)+16:]), got.Responses[i].GetResponseRange().Kvs
				if len(kvs) == 0 || seen[id] { // an entry may outlive its record
					continue
				}
				rec, err := decodeRecord(kvs[0].Value, l.id)
				switch {
				case err != nil:
					return store.Page{}, fmt.Errorf("%s/%q: %w", q.Kind, id, err)
				case !q.Matches(&rec):
					continue
				case len(page.Records) == q.Limit:
					page.Cursor = cursor.Text(q, last)
					return page, nil
				}
				seen[id], last = true, string(kv.Key[len(prefix):])
				page.Records = append(page.Records, rec)
			}
		}
		if !r.More {
			return page, nil
		}
		from = string(r.Kvs[len(r.Kvs)-1].Key) + "\x00"
	}
}

// filters tells whether records that are read may not be in the page.
func filters(q *store.Query, indexed bool) bool {
	set := 0
	for _, s := range [...]string{q.Subject, q.Client, q.Grant, q.Token, q.Type} {
		if s != "" {
			set++
		}
	}
	if indexed {
		set--
	}
	return set > 0 || q.Since != 0 || q.Until != 0 || q.ExpiresBefore != 0
}

// listBackwards pages from the highest id down. etcd reads a range upwards only, and sorts it whole when asked for the
// other order, so the ids are halved by count: ids up to the middle of what is left, as often as it takes to find the
// last few thousand.
func (n *space) listBackwards(ctx context.Context, q *store.Query, prefix, from, end string) (store.Page, error) {
	var out []store.Record
	l, rev := n.s.lineage.Load(), int64(0)
	for {
		if from >= end {
			return store.Page{Records: out}, nil
		}
		start, r, err := n.tail(ctx, from, end, rev)
		if err != nil {
			return store.Page{}, err
		}
		if rev == 0 {
			rev = r.Header.Revision
		}
		slices.Reverse(r.Kvs)
		for part := range slices.Chunk(r.Kvs, min(q.Limit+1, getBatch)) {
			recs, err := n.records(ctx, q.Kind, prefix, part, rev, l.id)
			if err != nil {
				return store.Page{}, err
			}
			for i := range recs {
				if !q.Matches(&recs[i]) {
					continue
				}
				if out = append(out, recs[i]); len(out) > q.Limit {
					out = out[:q.Limit]
					return store.Page{Records: out, Cursor: cursor.Text(q, out[len(out)-1].ID)}, nil
				}
			}
		}
		end = start
	}
}

// tailKeys is how many keys at the end of a range are read at once.
const tailKeys = 4 * store.MaxLimit

// tail reads the keys at the end of a range, some thousands at most, in one answer; start is where they begin.
func (n *space) tail(ctx context.Context, from, end string, rev int64) (start string, r *clientv3.GetResponse, err error) {
	for {
		r, err := n.get(ctx, from, clientv3.WithRange(end), clientv3.WithKeysOnly(), clientv3.WithLimit(tailKeys), clientv3.WithRev(rev))
		if err != nil {
			return "", nil, err
		}
		if rev == 0 {
			rev = r.Header.Revision
		}
		if !r.More {
			r.Header.Revision = rev
			return from, r, nil
		}
		// What is left is counted, not read: skip ahead by keys that halve the bytes between here and the end.
		next, err := n.middle(ctx, string(r.Kvs[len(r.Kvs)-1].Key)+"\x00", end, rev)
		if err != nil {
			return "", nil, err
		}
		from = next
	}
}

// middle finds a key between from and end that leaves at least one key behind it and skips as many as it can.
func (n *space) middle(ctx context.Context, from, end string, rev int64) (string, error) {
	best := from
	low, high := from, end
	for range 64 {
		mid := between(low, high)
		if mid <= low || mid >= high {
			break
		}
		r, err := n.get(ctx, mid, clientv3.WithRange(end), clientv3.WithCountOnly(), clientv3.WithRev(rev))
		if err != nil {
			return "", err
		}
		switch {
		case r.Count == 0:
			high = mid
		case r.Count <= tailKeys:
			return mid, nil
		default:
			best, low = mid, mid
		}
	}
	return best, nil
}

// between is a string about half way from a to b, bytewise; a itself when there is none short enough to matter.
func between(a, b string) string {
	same := 0
	for same < len(a) && same < len(b) && a[same] == b[same] {
		same++
	}
	num := func(s string) uint64 {
		var w [8]byte
		if same < len(s) {
			copy(w[:], s[same:])
		}
		return binary.BigEndian.Uint64(w[:])
	}
	x, y := num(a), num(b)
	if y <= x+1 {
		return a
	}
	var w [8]byte
	binary.BigEndian.PutUint64(w[:], x+(y-x)/2)
	return a[:same] + strings.TrimRight(string(w[:]), "\x00")
}

// fetch turns an answer into records.
func (n *space) fetch(ctx context.Context, kind store.Kind, prefix string, r *clientv3.GetResponse, indexed bool, rev int64, history uint64) ([]store.Record, error) {
	if indexed {
		return n.records(ctx, kind, prefix, r.Kvs, rev, history)
	}
	out := make([]store.Record, 0, len(r.Kvs))
	for _, kv := range r.Kvs {
		rec, err := decodeRecord(kv.Value, history)
		if err != nil {
			return nil, fmt.Errorf("%s/%q: %w", kind, kv.Key[len(prefix):], err)
		}
		out = append(out, rec)
	}
	return out, nil
}

// records fetches the records whose ids stand behind prefix in kvs.
func (n *space) records(ctx context.Context, kind store.Kind, prefix string, kvs []*keyValue, rev int64, history uint64) ([]store.Record, error) {
	out := make([]store.Record, 0, len(kvs))
	for part := range slices.Chunk(kvs, getBatch) {
		ops := make([]clientv3.Op, len(part))
		for i, kv := range part {
			ops[i] = clientv3.OpGet(n.keys.record(kind, string(kv.Key[len(prefix):])), clientv3.WithRev(rev))
		}
		r, err := n.s.read(ctx, ops...)
		if err != nil {
			return nil, err
		}
		for i := range part {
			got := r.Responses[i].GetResponseRange().Kvs
			if len(got) == 0 {
				return nil, errValue(fmt.Sprintf("record %s/%q stands in an index and is gone", kind, part[i].Key[len(prefix):]))
			}
			rec, err := decodeRecord(got[0].Value, history)
			if err != nil {
				return nil, fmt.Errorf("%s/%q: %w", kind, part[i].Key[len(prefix):], err)
			}
			out = append(out, rec)
		}
	}
	return out, nil
}

func (c *eventCursor) encode() string {
	b := []byte{0}
	if c.inOther {
		b[0] = 1
	}
	for _, n := range [...]int64{c.epoch, c.place, c.at, c.bound} {
		b = binary.BigEndian.AppendUint64(b, uint64(n))
	}
	return string(b) + c.other
}

func decodeEventCursor(s string) (eventCursor, error) {
	if s == "" || s[0] == 2 {
		return eventCursor{}, nil
	}
	var c eventCursor
	r := reader{b: []byte(s)}
	kind := r.take(1)
	for _, p := range [...]*int64{&c.epoch, &c.place, &c.at, &c.bound} {
		if *p = r.int64(); *p < 0 {
			r.bad = true
		}
	}
	if r.bad || kind[0] > 1 || c.epoch == math.MaxInt64 {
		return c, fmt.Errorf("%w: the cursor does not read", store.ErrInvalid)
	}
	c.inOther, c.other = kind[0] == 1, string(r.b)
	return c, nil
}
