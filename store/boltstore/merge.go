package boltstore

import (
	"bytes"
	"context"
	"errors"
	"runtime"
	"strings"
	"sync"

	"go.etcd.io/bbolt"

	"github.com/apitoken-go/apitoken/store"
)

// Segments are merged beside the writer: what a step writes is made ready in a read transaction, and the writer only puts it
// into its place, in the group that it commits anyway. Whatever ends the process in between, the index is whole: a merge
// counts when its last step has put the entry of the new segment in place of the old ones.
const (
	mergeChunks = 128 // a step: 256 KiB, a few milliseconds of the writer
	mergeYield  = 64  // postings between two yields to whoever serves requests
)

// merging is what the writer asks of the goroutine that merges.
type merging struct {
	mu   sync.Mutex
	due  map[*space]struct{} // guarded by mu: namespaces whose directory of segments has changed
	wake chan struct{}       // holds one signal
}

func (m *merging) ask(sp *space) {
	m.mu.Lock()
	m.due[sp] = struct{}{}
	m.mu.Unlock()
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

func (m *merging) take() (due []*space) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for sp := range m.due {
		due = append(due, sp)
	}
	clear(m.due)
	return due
}

// index merges until the store is closed. What fails is tried again at the next change: queries only take longer meanwhile.
func (s *Store) index() {
	_ = s.view(func(tx *bbolt.Tx) error {
		return tx.ForEach(func(name []byte, _ *bbolt.Bucket) error {
			if short, ok := strings.CutPrefix(string(name), namespacePrefix); ok && short != "" {
				s.merging.ask(s.Namespace(short).(*space))
			}
			return nil
		})
	})
	s.merging.ask(s.space)
	for {
		select {
		case <-s.closed:
			return
		case <-s.merging.wake:
		}
		for _, sp := range s.merging.take() {
			kinds, err := sp.indexed()
			for _, kind := range kinds {
				for more := true; more && err == nil; {
					more, err = sp.tidy(kind)
				}
			}
		}
	}
}

// indexed are the kinds that have an index, "" for events.
func (sp *space) indexed() (kinds []store.Kind, err error) {
	err = sp.view(context.Background(), func(ns *bbolt.Bucket) error {
		if ns == nil {
			return nil
		}
		return ns.ForEachBucket(func(name []byte) error {
			switch class(name[0]) {
			case classSegments, classRuns, classBlocks:
				_, kind, _ := strings.Cut(string(name), ":")
				if k := store.Kind(kind); len(kinds) == 0 || kinds[len(kinds)-1] != k {
					kinds = append(kinds, k)
				}
			}
			return nil
		})
	})
	return kinds, err
}

var errChanged = errors.New("boltstore: the directory of segments has changed")

// write runs a step of the index in the writer. It stands back while the disk is full.
func (sp *space) write(f func(*spaceTxn) error) error {
	return sp.s.maintain(context.Background(), sp, false, func(t *txn) error {
		st, err := t.space(sp)
		if err != nil {
			return err
		}
		return f(st)
	})
}

// tidy does the next thing that is due in the index of a kind; more: there may be another.
func (sp *space) tidy(kind store.Kind) (more bool, err error) {
	var upgrade bool
	var in []segment
	var garbage []byte
	err = sp.view(context.Background(), func(ns *bbolt.Bucket) error {
		if old := readSub(ns, oldClass(kind), kind); old != nil {
			if k, _ := old.Cursor().First(); k != nil {
				upgrade = true
				return nil
			}
		}
		all, err := segments(ns, kind)
		if err != nil {
			return err
		}
		if in = mergeable(all); in == nil {
			garbage = unknown(readSub(ns, classChunks, kind), all)
		}
		return nil
	})
	switch {
	case err != nil:
		return false, err
	case upgrade:
		return true, sp.write(func(st *spaceTxn) error { return st.upgrade(kind) })
	case len(in) > 0:
		return true, sp.mergeSegments(kind, in)
	case garbage != nil:
		return true, sp.write(func(st *spaceTxn) error { return st.removeChunks(kind, garbage) })
	}
	return false, nil
}

func oldClass(kind store.Kind) class {
	if kind == "" {
		return classBlocks
	}
	return classRuns
}

// mergeable picks what is to be merged next: a segment whose members are gone, one that has lost half of them, or sixteen
// neighbours below a level, the lowest level first, if what comes of them is above it. So a posting is written once for
// each level.
func mergeable(all []segment) []segment {
	for i := range all {
		if all[i].live == 0 || all[i].live < all[i].size/2 {
			return all[i : i+1]
		}
	}
	for level, higher := groupMembers/mergeWidth, true; higher; level *= mergeWidth {
		higher = false
		run, size := 0, 0
		for i := range all {
			if all[i].size >= level {
				run, size, higher = 0, 0, true
				continue
			}
			if run, size = run+1, size+all[i].size; run > mergeWidth {
				run, size = mergeWidth, size-all[i-mergeWidth].size
			}
			if run == mergeWidth && size >= level {
				return all[i+1-mergeWidth : i+1]
			}
		}
	}
	return nil
}

// unknown finds a segment that has chunks and no entry; nil if there is none.
func unknown(chunks *bbolt.Bucket, all []segment) []byte {
	if chunks == nil {
		return nil
	}
	known := map[int64]bool{}
	for i := range all {
		known[all[i].id] = true
	}
	c := chunks.Cursor()
	for k, _ := c.First(); k != nil; k, _ = c.Seek(key64(num64(k) + 1)) {
		if len(k) >= 8 && !known[num64(k)] {
			return bytes.Clone(k[:8])
		}
	}
	return nil
}

// removeChunks removes some of the chunks of a segment that has no entry.
func (st *spaceTxn) removeChunks(kind store.Kind, id []byte) error {
	u, err := st.sub(classChunks, kind, true)
	if err != nil {
		return err
	}
	var keys [][]byte
	c := u.b.Cursor()
	for k, _ := c.Seek(id); bytes.HasPrefix(k, id) && len(keys) < mergeChunks; k, _ = c.Next() {
		keys = append(keys, bytes.Clone(k))
	}
	for _, k := range keys {
		if err := st.del(u, k); err != nil {
			return err
		}
	}
	return nil
}

// mergeSegments writes a new segment of the postings of in, and puts it in their place.
func (sp *space) mergeSegments(kind store.Kind, in []segment) error {
	out := in[len(in)-1]
	out.first, out.size = in[0].first, 0
	live := 0
	for i := range in {
		out.size, live = out.size+in[i].size, live+in[i].live
	}
	// Looking for each member is worth it where enough of them are gone.
	drop := live < out.size-out.size/8
	if drop {
		out.size = live
	}
	var after []byte // the last posting written
	for done := live == 0; !done; {
		w := chunks{id: out.id}
		if after == nil {
			if err := sp.write(func(st *spaceTxn) error { out.id = st.next(); st.dirty, st.t.dirty = true, true; return nil }); err != nil {
				return err
			}
			w.id = out.id
		}
		err := sp.view(context.Background(), func(ns *bbolt.Bucket) (err error) {
			after, err = w.fill(ns, kind, in, after, drop)
			return err
		})
		if err != nil {
			return err
		}
		done = after == nil
		if err := sp.write(func(st *spaceTxn) error { return st.putChunks(kind, w.done) }); err != nil {
			return err
		}
	}
	return sp.write(func(st *spaceTxn) error { return st.replaceSegments(kind, in, &out) })
}

// fill packs the postings of segments after the one given, as many as a step takes. last is nil when that was the rest.
func (w *chunks) fill(ns *bbolt.Bucket, kind store.Kind, in []segment, after []byte, drop bool) (last []byte, err error) {
	b := readSub(ns, classChunks, kind)
	members := readSub(ns, classRecords, kind)
	if kind == "" {
		members = readSub(ns, classEvents, "")
	}
	if b == nil || members == nil {
		return nil, errValue("the index is gone")
	}
	heap := make([]*walker, 0, len(in)) // the smallest posting first
	for i := range in {
		s := &walker{c: b.Cursor(), id: key64(in[i].id), seen: func() error { return nil }}
		if err := s.move(after); err != nil {
			return nil, err
		}
		if s.posting() != nil {
			heap = append(heap, s)
		}
	}
	for i := len(heap) / 2; i >= 0; i-- {
		sift(heap, i)
	}
	for n := 0; len(heap) > 0; n++ {
		if n%mergeYield == 0 {
			runtime.Gosched()
		}
		s := heap[0]
		p := s.posting()
		if !bytes.Equal(p, last) && !bytes.Equal(p, after) && (!drop || members.Get(p[sizeTerm:]) != nil) {
			w.add(p)
		}
		last = p
		if len(w.done) >= mergeChunks {
			w.flush()
			return bytes.Clone(last), nil
		}
		if s.at++; s.at >= len(s.chunk) {
			if err := s.turn(); err != nil {
				return nil, err
			}
		}
		if s.posting() == nil {
			heap[0] = heap[len(heap)-1]
			heap = heap[:len(heap)-1]
		}
		sift(heap, 0)
	}
	w.flush()
	return nil, nil
}

// sift moves heap[i] down to its place.
func sift(heap []*walker, i int) {
	for {
		least := i
		for c := 2*i + 1; c <= 2*i+2 && c < len(heap); c++ {
			if bytes.Compare(heap[c].posting(), heap[least].posting()) < 0 {
				least = c
			}
		}
		if least == i {
			return
		}
		heap[i], heap[least] = heap[least], heap[i]
		i = least
	}
}

// replaceSegments puts out in place of in, which others than this goroutine only count down.
func (st *spaceTxn) replaceSegments(kind store.Kind, in []segment, out *segment) error {
	dir, err := st.sub(classSegments, kind, true)
	if err != nil {
		return err
	}
	was := out.id
	out.live = 0
	for i := range in {
		key := key64(in[i].last)
		v := dir.b.Get(key)
		if v == nil {
			return errChanged
		}
		g, err := openSegment(key, v)
		if err != nil {
			return err
		}
		if g.id != in[i].id {
			return errChanged
		}
		out.live += g.live
		if err := st.del(dir, key); err != nil {
			return err
		}
	}
	if out.live == 0 || was == in[len(in)-1].id {
		return nil // nothing is left of them
	}
	return st.putSegment(kind, out)
}

// upgrade makes a segment of the first run or block of an older format.
func (st *spaceTxn) upgrade(kind store.Kind) error {
	old, err := st.sub(oldClass(kind), kind, true)
	if err != nil {
		return err
	}
	members, err := st.sub(classRecords, kind, kind != "")
	if kind == "" {
		members, err = st.sub(classEvents, "", true)
	}
	if err != nil {
		return err
	}
	key, v := old.b.Cursor().First()
	if key == nil {
		return nil
	}
	key = bytes.Clone(key)
	o, err := openOldBlock(key, v, kind != "")
	if err != nil {
		return err
	}
	g := segment{last: num64(key), first: 1}
	dir, err := st.sub(classSegments, kind, true)
	if err != nil {
		return err
	}
	c := dir.b.Cursor()
	if k, _ := c.Seek(key); k == nil {
		k, _ = c.Last()
		g.first += num64(k)
	} else if k, _ = c.Prev(); k != nil {
		g.first += num64(k)
	}
	there := map[string]bool{}
	for _, ref := range o.refs {
		if members.b.Get(ref) != nil {
			there[string(ref)] = true
		}
	}
	g.size, g.live = len(there), len(there)
	var list postingList
	err = o.each(func(term uint32, ref []byte) {
		if there[string(ref)] {
			list.add(key32(term), ref)
		}
	})
	if err != nil {
		return err
	}
	minExpires := o.minExpires
	if err := st.del(old, key); err != nil {
		return err
	}
	if kind != "" {
		runDir, err := st.sub(classRunDir, kind, true)
		if err != nil {
			return err
		}
		if err := st.del(runDir, key); err != nil {
			return err
		}
	}
	if g.live == 0 {
		return nil
	}
	if kind == "" {
		if err := st.putGroup(&group{first: g.first, last: g.last, minExpires: minExpires}); err != nil {
			return err
		}
	}
	return st.addSegment(kind, &g, list)
}
