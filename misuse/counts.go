package misuse

import "sync"

// A countTable counts by key (a token, a client, a source) within the window, in a fixed number of places. A count is
// never too high: where places run out, the smallest and oldest count is forgotten. It is asked about refusals only,
// each of which costs more than this.

const (
	countShards = 64
	countPlaces = 8
	countBytes  = 16 // of a place
	// countTokens places are in a table: 1 MiB. Of more keys at once those with the highest counts stay.
	countTokens = 1 << 16
)

type countTable struct{ shards [countShards]countShard }

type countShard struct {
	mu      sync.Mutex // guards buckets: held for a few compares, never while anything else is done
	buckets [][countPlaces]count
}

type count struct {
	tag         uint64 // hash of the key; 0: free
	now, before uint16 // in this half of the window, and in the one before it
	half        uint16 // which half it is, as far as it fits
	raised      uint16 // half in which the threshold was passed, by mark; 0: in none
}

// newCountTable makes a table, or none for a detector that is off.
func newCountTable(on bool) *countTable {
	t := &countTable{}
	if !on {
		return t
	}
	for i := range t.shards {
		t.shards[i].buckets = make([][countPlaces]count, countTokens/countShards/countPlaces)
	}
	return t
}

// bytes is the memory that the table holds.
func (t *countTable) bytes() int64 {
	if t.shards[0].buckets == nil {
		return 0
	}
	return countTokens * countBytes
}

// add counts once for h and returns the count within the window; passed says that it has reached limit, once in each half.
func (t *countTable) add(h uint64, half uint32, limit int) (n int, passed bool) {
	s := &t.shards[h>>58]
	s.mu.Lock()
	defer s.mu.Unlock()
	b := &s.buckets[h&uint64(len(s.buckets)-1)]
	c := &b[0]
	for i := range b {
		x := &b[i]
		if x.tag == h {
			c = x
			break
		}
		if x.weight(half) < c.weight(half) {
			c = x
		}
	}
	if c.tag != h {
		*c = count{tag: h, half: uint16(half)}
	}
	c.roll(half)
	if c.now < 1<<16-1 {
		c.now++
	}
	n = int(c.now) + int(c.before)
	if n >= limit && c.raised != mark(half) {
		c.raised, passed = mark(half), true
	}
	return n, passed
}

// mark is half in two bytes, never 0: it is one half in 65,536 that shares its mark with another, half a year away.
func mark(half uint32) uint16 {
	if m := uint16(half); m != 0 {
		return m
	}
	return 1 << 15
}

// roll moves the counts on to half.
func (c *count) roll(half uint32) {
	switch uint16(half) - c.half {
	case 0:
		return
	case 1:
		c.before = c.now
	default:
		c.before = 0
	}
	c.now, c.half = 0, uint16(half)
}

// weight orders places by what is lost when they are given away.
func (c *count) weight(half uint32) int {
	if c.tag == 0 {
		return -1
	}
	switch uint16(half) - c.half {
	case 0:
		return int(c.now) + int(c.before)
	case 1:
		return int(c.now)
	}
	return 0
}
