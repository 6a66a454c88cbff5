package boltstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sort"

	"go.etcd.io/bbolt"

	"github.com/apitoken-go/apitoken/store"
)

// The index is a log-structured merge tree. A posting is a term and what has it, the id of a record or the number of an
// event. A segment holds the postings of its members, records or events that were created one after the other, sorted, in
// chunks of less than half a page. Segments are made of 512 members and merged beside the writer, sixteen to one, so that
// a million records are twenty segments or thirty. An entry per posting written with its record would have random keys
// and cost three quarters of all writes.
//
//	chunk:   segment(8) first posting -> (length posting)... crc
//	posting: term(4) ref
//	segment: number of its last member(8) -> id first size live, crc
//
// A segment is never changed. It counts when its entry is there: chunks of a segment without one are left from a merge that
// did not end, or from what was merged, and are removed. live counts the members that were not purged: a segment whose
// members are gone goes too, and one that has lost half of them is written anew.
const chunkSize = 1900 // bytes: two chunks and their keys fill a page of 4 KiB

// How many members a new segment has, and how many segments become one. The file does not depend on them; the tests that
// kill a process make them small there.
var groupMembers, mergeWidth = 512, 16

type segment struct {
	last, first int64 // numbers of its last and first member
	id          int64
	size, live  int
}

func (g *segment) encode() []byte {
	var b []byte
	for _, n := range []int64{g.id, g.first, int64(g.size), int64(g.live)} {
		b = binary.AppendUvarint(b, uint64(n))
	}
	return sealValue(b, key64(g.last))
}

func openSegment(key, v []byte) (g segment, err error) {
	b, ok := openValue(v, key)
	g.last = num64(key)
	var size, live int64
	for _, p := range []*int64{&g.id, &g.first, &size, &live} {
		n, w := binary.Uvarint(b)
		if !ok || w <= 0 || n > 1<<62 {
			return g, errValue("the directory of segments does not read")
		}
		*p, b = int64(n), b[w:]
	}
	g.size, g.live = int(size), int(live)
	return g, nil
}

// segments reads the directory of a kind, "" for events, in the order of their members.
func segments(ns *bbolt.Bucket, kind store.Kind) (all []segment, err error) {
	b := readSub(ns, classSegments, kind)
	if b == nil {
		return nil, nil
	}
	c := b.Cursor()
	for k, v := c.First(); k != nil; k, v = c.Next() {
		g, err := openSegment(k, v)
		if err != nil {
			return nil, err
		}
		all = append(all, g)
	}
	return all, nil
}

// postingList collects postings in any order.
type postingList struct {
	all   [][]byte
	arena []byte
}

func (l *postingList) add(term, ref []byte) {
	from := len(l.arena)
	l.arena = append(append(l.arena, term...), ref...)
	l.all = append(l.all, l.arena[from:len(l.arena):len(l.arena)])
}

// key32 is a term as it stands in postings.
func key32(term uint32) []byte { return binary.BigEndian.AppendUint32(nil, term) }

// chunks packs sorted postings.
type chunks struct {
	id   int64
	key  []byte
	body []byte
	done []pair // key and value of each chunk
}

func (w *chunks) add(posting []byte) {
	if len(w.body) > 0 && len(w.body)+binary.MaxVarintLen16+len(posting)+sizeCRC > chunkSize {
		w.flush()
	}
	if len(w.body) == 0 {
		w.key, w.body = append(key64(w.id), posting...), make([]byte, 0, chunkSize)
	}
	w.body = append(binary.AppendUvarint(w.body, uint64(len(posting))), posting...)
}

func (w *chunks) flush() {
	if len(w.body) > 0 {
		w.done = append(w.done, pair{touched: touched{key: string(w.key)}, value: sealValue(w.body, w.key)})
		w.body = nil
	}
}

// addSegment writes a new segment, in the transaction that creates it.
func (st *spaceTxn) addSegment(kind store.Kind, g *segment, list postingList) error {
	slices.SortFunc(list.all, bytes.Compare)
	g.id = st.next()
	w := chunks{id: g.id}
	for _, p := range list.all {
		w.add(p)
	}
	w.flush()
	if err := st.putChunks(kind, w.done); err != nil {
		return err
	}
	return st.putSegment(kind, g)
}

func (st *spaceTxn) putChunks(kind store.Kind, done []pair) error {
	u, err := st.sub(classChunks, kind, true)
	if err != nil {
		return err
	}
	for i := range done {
		if err := st.put(u, []byte(done[i].key), done[i].value); err != nil {
			return err
		}
	}
	return nil
}

func (st *spaceTxn) putSegment(kind store.Kind, g *segment) error {
	dir, err := st.sub(classSegments, kind, true)
	if err != nil {
		return err
	}
	st.unmerged = true
	return st.put(dir, key64(g.last), g.encode())
}

// countOff notes that n members of a segment were purged, born is the number of one of them. What was born before the first
// segment is in a run or block of an older format, which counts its members when it becomes a segment.
func (st *spaceTxn) countOff(kind store.Kind, born int64, n int) error {
	dir, err := st.sub(classSegments, kind, false)
	if err != nil || dir == nil {
		return err
	}
	k, v := dir.b.Cursor().Seek(key64(born))
	if k == nil {
		return nil
	}
	g, err := openSegment(k, v)
	if err != nil || born < g.first {
		return err
	}
	g.live = max(0, g.live-n)
	return st.putSegment(kind, &g)
}

// openChunk appends the postings of a chunk, in bbolt's memory.
func openChunk(to [][]byte, k, v []byte) ([][]byte, error) {
	b, ok := openValue(v, k)
	if !ok || len(k) < 8+sizeTerm {
		return nil, errValue(fmt.Sprintf("chunk %x of the index fails its checksum", k))
	}
	for len(b) > 0 {
		var p []byte
		if p, b, ok = cutString(b); !ok || len(p) < sizeTerm {
			return nil, errValue(fmt.Sprintf("chunk %x of the index does not read", k))
		}
		to = append(to, p)
	}
	return to, nil
}

// walker goes through the postings of one segment in either direction.
type walker struct {
	c      *bbolt.Cursor
	id     []byte // of the segment, 8 bytes
	newest bool
	seen   func() error // called for each chunk

	chunk [][]byte
	at    int // in chunk; outside of it at the end
}

// move goes to the first posting that is not before to; newest: to the last that is before it.
func (w *walker) move(to []byte) error {
	if n := len(w.chunk); n > 0 && bytes.Compare(w.chunk[0], to) < 0 && bytes.Compare(to, w.chunk[n-1]) <= 0 {
		w.at = w.search(to)
		return nil
	}
	target := append(w.id[:8:8], to...)
	k, v := w.c.Seek(target)
	if w.newest || !bytes.Equal(k, target) {
		// It is in the chunk before this one, or begins here.
		pk, pv := w.before(k)
		switch {
		case bytes.HasPrefix(pk, w.id):
			if err := w.open(pk, pv); err != nil {
				return err
			}
			if w.at = w.search(to); w.at >= len(w.chunk) {
				return w.turn()
			}
			return nil
		case w.newest:
			w.chunk = w.chunk[:0]
			return nil
		}
		k, v = w.c.Seek(target)
	}
	return w.open(k, v)
}

// before is what stands before the cursor, which Seek has left at k.
func (w *walker) before(k []byte) (key, value []byte) {
	if k == nil {
		return w.c.Last()
	}
	return w.c.Prev()
}

func (w *walker) search(to []byte) int {
	i := sort.Search(len(w.chunk), func(i int) bool { return bytes.Compare(w.chunk[i], to) >= 0 })
	if w.newest {
		i--
	}
	return i
}

// open takes a chunk of this segment, and stands at its near end.
func (w *walker) open(k, v []byte) (err error) {
	w.chunk, w.at = w.chunk[:0], 0
	if k == nil || !bytes.HasPrefix(k, w.id) {
		return nil
	}
	if err := w.seen(); err != nil {
		return err
	}
	w.chunk, err = openChunk(w.chunk, k, v)
	if w.newest {
		w.at = len(w.chunk) - 1
	}
	return err
}

// turn goes to the next chunk.
func (w *walker) turn() error {
	if w.newest {
		return w.open(w.c.Prev())
	}
	return w.open(w.c.Next())
}

// posting is where the walker stands; nil at the end of the segment.
func (w *walker) posting() []byte {
	if w.at < 0 || w.at >= len(w.chunk) {
		return nil
	}
	return w.chunk[w.at]
}

// source answers with the first ref that it has at to or after it; newest: with the last before to. nil: there is none.
type source func(to []byte) (ref []byte, err error)

// join is a source of what has all terms, in one segment.
func (l *lister) join(chunks *bbolt.Bucket, g *segment) source {
	if chunks == nil {
		return func([]byte) ([]byte, error) { return nil, errValue("the index is gone") }
	}
	type term struct {
		walker
		prefix []byte
	}
	terms := make([]term, len(l.sel.terms))
	for i, t := range l.sel.terms {
		terms[i] = term{
			walker{c: chunks.Cursor(), id: key64(g.id), newest: l.q.Newest, seen: l.tick},
			key32(t),
		}
	}
	return func(to []byte) ([]byte, error) {
		for {
			var found []byte
			agreed := true
			for i := range terms {
				t := &terms[i]
				if err := t.move(append(t.prefix[:sizeTerm:sizeTerm], to...)); err != nil {
					return nil, err
				}
				p := t.posting()
				if !bytes.HasPrefix(p, t.prefix) {
					return nil, nil
				}
				if ref := p[sizeTerm:]; found == nil || !bytes.Equal(ref, found) {
					agreed = agreed && found == nil
					found = ref
					if to = ref; l.q.Newest {
						to = append(bytes.Clone(ref), 0)
					}
				}
			}
			if agreed {
				return found, nil
			}
		}
	}
}

// sorted is a source of refs that are at hand, rising.
func (l *lister) sorted(refs [][]byte) source {
	return func(to []byte) ([]byte, error) {
		i := sort.Search(len(refs), func(i int) bool { return bytes.Compare(refs[i], to) >= 0 })
		if l.q.Newest {
			i--
		}
		if i < 0 || i >= len(refs) {
			return nil, nil
		}
		return refs[i], nil
	}
}

// old is a source of what has all terms in a block or run of an older format, which is read when it is asked first.
func (l *lister) old(k, v []byte, run bool) source {
	var refs source
	return func(to []byte) ([]byte, error) {
		if refs == nil {
			if err := l.tick(); err != nil {
				return nil, err
			}
			o, err := openOldBlock(k, v, run)
			if err != nil {
				return nil, err
			}
			var common [][]byte
			for i, t := range l.sel.terms {
				found, err := o.find(t)
				if err != nil {
					return nil, err
				}
				if i > 0 {
					found = slices.DeleteFunc(found, func(ref []byte) bool {
						_, ok := slices.BinarySearchFunc(common, ref, bytes.Compare)
						return !ok
					})
				}
				common = found
			}
			refs = l.sorted(common)
		}
		return refs(to)
	}
}

// errEnough ends merge.
var errEnough = errors.New("boltstore: the page is full")

// merge calls take with what the sources have from from on, in order, each once. An error of take ends it.
func (l *lister) merge(sources []source, from []byte, take func(ref []byte) error) error {
	heads := make([][]byte, len(sources))
	for i, s := range sources {
		var err error
		if heads[i], err = s(from); err != nil {
			return err
		}
	}
	for {
		var best []byte
		for _, h := range heads {
			if h != nil && (best == nil || bytes.Compare(h, best) < 0 != l.q.Newest && !bytes.Equal(h, best)) {
				best = h
			}
		}
		if best == nil {
			return nil
		}
		if err := take(best); err != nil {
			return err
		}
		next := best
		if !l.q.Newest {
			next = append(bytes.Clone(best), 0)
		}
		for i, h := range heads {
			if h != nil && bytes.Equal(h, best) {
				var err error
				if heads[i], err = sources[i](next); err != nil {
					return err
				}
			}
		}
	}
}
