// Package throttle counts what goes wrong, by name and minute, in memory of a fixed size. It owns the table alone.
//
// It promises that no name gets more than Limit tries in a minute of the clock, and that guessing takes no memory. Names
// that share a place by chance share a count, so a throttled answer may come early. Which names share one nobody outside the
// process can tell.
//
// It takes no lock and does no I/O: each count is one atomic word. The root counts failures of client authentication by
// client and source; package oauthhttp counts wrong user codes by source.
package throttle

import (
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"
)

const (
	Limit  = 20          // tries of one name in a Window
	Window = time.Minute // of the clock that callers bring

	places = 1 << 14
)

// Name is what is counted together, such as a client and the source of a request.
type Name struct{ Who, From string }

// Table counts. The zero Table is ready.
type Table struct {
	once   sync.Once // makes seed and counts at the first count: an idle tenant has none
	seed   maphash.Seed
	counts atomic.Pointer[[places]atomic.Uint64] // number of the window << 16 | count
}

func (t *Table) place(n Name) *atomic.Uint64 {
	t.once.Do(func() {
		t.seed = maphash.MakeSeed()
		t.counts.Store(new([places]atomic.Uint64))
	})
	return &t.counts.Load()[maphash.Comparable(t.seed, n)%places]
}

func window(now time.Time) uint64 {
	return uint64(now.Unix()/int64(Window/time.Second)) & (1<<48 - 1)
}

// Over reports whether n has no try left.
func (t *Table) Over(n Name, now time.Time) bool {
	if t.counts.Load() == nil {
		return false
	}
	v := t.place(n).Load()
	return v>>16 == window(now) && v&0xffff >= Limit
}

// Take counts a try. False: n had none left.
func (t *Table) Take(n Name, now time.Time) bool {
	p, w := t.place(n), window(now)
	for {
		old := p.Load()
		next := w<<16 | 1
		if old>>16 == w {
			if old&0xffff >= Limit {
				return false
			}
			next = old + 1
		}
		if p.CompareAndSwap(old, next) {
			return true
		}
	}
}

// GiveBack uncounts a try that Take counted at now.
func (t *Table) GiveBack(n Name, now time.Time) {
	p, w := t.place(n), window(now)
	for {
		old := p.Load()
		if old>>16 != w || old&0xffff == 0 || p.CompareAndSwap(old, old-1) {
			return
		}
	}
}
