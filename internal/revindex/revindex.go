// Package revindex is an exact map from 128-bit keys to the highest value raised for them, built for revocations:
// readers never wait and never allocate, an entry enters in place, and growing copies a few thousand entries, never
// the set. Keys must be hashes that nobody outside can steer.
package revindex

import (
	"encoding/binary"
	"math/bits"
	"sync"
	"sync/atomic"
)

// The index is a directory of segments, chosen by a key's top bits. A segment is a table with open addressing: a
// tag byte for each slot says at a glance whether a probe can stop, and eight are read at once. A segment that is
// fifteen sixteenths full is split in two by the next bit; the directory doubles when a segment needs a bit more than it
// has. Writers hold one lock; readers load one directory, one segment, a word of tags, one slot.

const (
	segmentBits  = 12
	segmentSlots = 1 << segmentBits
	segmentFull  = segmentSlots * 15 / 16
	groupSlots   = 8
	groups       = segmentSlots / groupSlots
)

// slot is an entry. A key is written once, before its tag; the value changes by atomic stores.
type slot struct {
	hi, lo atomic.Uint64
	value  atomic.Int64
}

type segment struct {
	depth uint // how many top bits its keys share
	used  int  // guarded by Index.mu
	tags  [groups]atomic.Uint64
	slots [segmentSlots]slot
	ends  [segmentSlots]atomic.Uint32 // minutes since 1970, rounded up; 0: never. Beside the slots, so that none is padded
}

// minutes rounds Unix ms up, so that nothing is swept early.
func minutes(ms int64) uint32 {
	if ms == 0 {
		return 0
	}
	return uint32(min(max((ms+59_999)/60_000, 1), 1<<32-1))
}

type directory struct {
	depth    uint
	segments []atomic.Pointer[segment]
}

// Index is the map. The zero Index is not usable: see New.
type Index struct {
	dir atomic.Pointer[directory]
	n   atomic.Int64
	mu  sync.Mutex // of writers
}

// New returns an empty index. It takes memory with its first entry.
func New() *Index {
	x := &Index{}
	d := &directory{segments: make([]atomic.Pointer[segment], 1)}
	x.dir.Store(d)
	return x
}

func split(key [16]byte) (hi, lo uint64) {
	return binary.LittleEndian.Uint64(key[:8]), binary.LittleEndian.Uint64(key[8:])
}

// tagOf is 1 to 255; 0 is an empty slot.
func tagOf(lo uint64) uint64 { return lo>>56 | 1 }

// matches has the top bit of each byte set where the byte of w equals tag; a false match above a true one is
// possible and harmless, because the slot's key is compared.
func matches(w, tag uint64) uint64 {
	const ones, tops = 0x0101010101010101, 0x8080808080808080
	x := w ^ tag*ones
	return (x - ones) &^ x & tops
}

// Get returns the highest value raised for key.
func (x *Index) Get(key [16]byte) (int64, bool) {
	hi, lo := split(key)
	d := x.dir.Load()
	s := d.segments[hi>>(64-d.depth)&(1<<d.depth-1)].Load()
	if s == nil {
		return 0, false
	}
	if i := s.find(hi, lo); i >= 0 {
		return s.slots[i].value.Load(), true
	}
	return 0, false
}

// find is the place of a key, -1 if it is not here.
func (s *segment) find(hi, lo uint64) int {
	tag := tagOf(lo)
	for g, i := int(lo)&(groups-1), 0; i < groups; i++ {
		w := s.tags[g].Load()
		for m := matches(w, tag); m != 0; m &= m - 1 {
			at := g*groupSlots + bits.TrailingZeros64(m)/8
			if e := &s.slots[at]; e.lo.Load() == lo && e.hi.Load() == hi {
				return at
			}
		}
		if matches(w, 0) != 0 {
			return -1
		}
		g = (g + 1) & (groups - 1)
	}
	return -1
}

// Raise sets key's value to v, if that is higher than what it has. Readers see it when Raise returns. The entry may be swept
// once expires (Unix ms; 0: never) of its highest value has passed: a higher value matches all that a lower one does, so that
// whoever gave it an end has said that nothing is left by then. The same value may come again with an end where it had none;
// of two ends the later one counts.
func (x *Index) Raise(key [16]byte, v, expires int64) {
	hi, lo := split(key)
	end := minutes(expires)
	x.mu.Lock()
	defer x.mu.Unlock()
	for {
		d := x.dir.Load()
		at := hi >> (64 - d.depth) & (1<<d.depth - 1)
		s := d.segments[at].Load()
		if s == nil {
			s = &segment{}
			d.segments[at].Store(s)
		}
		if i := s.find(hi, lo); i >= 0 {
			e, old := &s.slots[i], s.ends[i].Load()
			switch had := e.value.Load(); {
			case v < had:
				if old != 0 && end > old {
					s.ends[i].Store(end)
				}
				return
			case v > had:
				e.value.Store(v)
			}
			if end == 0 || end > old {
				s.ends[i].Store(end)
			}
			return
		}
		if s.used < segmentFull {
			s.add(hi, lo, v, end)
			x.n.Add(1)
			return
		}
		x.divide(d, s, hi)
	}
}

// add enters a key that is not there. The tag is stored last: a reader that sees it sees the rest.
func (s *segment) add(hi, lo uint64, v int64, end uint32) {
	for g := int(lo) & (groups - 1); ; g = (g + 1) & (groups - 1) {
		w := s.tags[g].Load()
		free := matches(w, 0)
		if free == 0 {
			continue
		}
		// The lowest match is always a true one.
		i := bits.TrailingZeros64(free) / 8
		at := g*groupSlots + i
		e := &s.slots[at]
		e.hi.Store(hi)
		e.lo.Store(lo)
		e.value.Store(v)
		s.ends[at].Store(end)
		s.tags[g].Store(w | tagOf(lo)<<(8*i))
		s.used++
		return
	}
}

// divide replaces a full segment by two. Readers that hold the old one find there all that they could.
func (x *Index) divide(d *directory, s *segment, hi uint64) {
	if s.depth == d.depth {
		d = x.double(d)
	}
	depth := s.depth + 1
	two := [2]*segment{{depth: depth}, {depth: depth}}
	s.each(func(e *slot, end uint32) {
		h := e.hi.Load()
		two[h>>(64-depth)&1].add(h, e.lo.Load(), e.value.Load(), end)
	})
	first := hi >> (64 - s.depth) & (1<<s.depth - 1)
	width := uint64(1) << (d.depth - s.depth)
	for i := range width {
		half := two[0]
		if i >= width/2 {
			half = two[1]
		}
		d.segments[first*width+i].Store(half)
	}
}

func (x *Index) double(d *directory) *directory {
	n := &directory{depth: d.depth + 1, segments: make([]atomic.Pointer[segment], 2*len(d.segments))}
	for i := range d.segments {
		s := d.segments[i].Load()
		n.segments[2*i].Store(s)
		n.segments[2*i+1].Store(s)
	}
	x.dir.Store(n)
	return n
}

func (s *segment) each(f func(e *slot, end uint32)) {
	for g := range s.tags {
		w := s.tags[g].Load()
		for i := range groupSlots {
			if w>>(8*i)&0xff != 0 {
				f(&s.slots[g*groupSlots+i], s.ends[g*groupSlots+i].Load())
			}
		}
	}
}

// Sweep removes what expired before the given time (Unix ms) and returns how many. Each segment that holds any is
// made anew and put in place at once; writers wait for one segment at a time.
func (x *Index) Sweep(before int64) int {
	removed := 0
	var last *segment
	for i := 0; ; i++ {
		x.mu.Lock()
		d := x.dir.Load()
		if i >= len(d.segments) {
			x.mu.Unlock()
			return removed
		}
		s := d.segments[i].Load()
		if s != nil && s != last {
			last = x.sweepOne(d, i, s, before, &removed)
		}
		x.mu.Unlock()
	}
}

func (x *Index) sweepOne(d *directory, at int, s *segment, before int64, removed *int) *segment {
	limit := uint32(max(before/60_000, 0)) // rounded down
	gone := func(end uint32) bool { return end != 0 && end < limit }
	n := 0
	s.each(func(_ *slot, end uint32) {
		if gone(end) {
			n++
		}
	})
	if n == 0 {
		return s
	}
	fresh := &segment{depth: s.depth}
	s.each(func(e *slot, end uint32) {
		if !gone(end) {
			fresh.add(e.hi.Load(), e.lo.Load(), e.value.Load(), end)
		}
	})
	width := 1 << (d.depth - s.depth)
	first := at / width * width
	for i := range width {
		d.segments[first+i].Store(fresh)
	}
	x.n.Add(int64(-n))
	*removed += n
	return fresh
}

// Len is the number of entries.
func (x *Index) Len() int { return int(x.n.Load()) }

// Bytes is the memory of the index.
func (x *Index) Bytes() int {
	const segmentBytes = groups*8 + segmentSlots*(24+4) + 16
	d := x.dir.Load()
	n := len(d.segments) * 8
	var last *segment
	for i := range d.segments {
		if s := d.segments[i].Load(); s != nil && s != last {
			n += segmentBytes
			last = s
		}
	}
	return n
}
