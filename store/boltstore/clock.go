package boltstore

import (
	"sync"
	"time"
)

// How long a forward step of the wall clock must have stood, by the monotonic clock, before it can make anything
// purgeable; and how much rise between two readings is worth an entry of its own.
const (
	standsFor  = time.Hour
	worthTrack = 1000 // ms
	maxTracked = 256
)

// clock reads the wall clock and keeps apart what purging may believe of it. The two questions differ: Written and
// expiry want the wall clock as it is, but a clock that jumped a year ahead must not purge rules that are still needed.
//
// What purging believes is an offset, wall minus monotonic time, that every reading of the last hour supports. readings
// holds, oldest first, offsets that rise: offset i has been supported by every reading since its time.
//
// The store's time is the wall clock, but it does not go back. Where the wall clock was set back, it does not stand still
// either until that has caught up, or whatever is measured by it would not end: it goes on from the last stamp at half the
// pace of the monotonic clock, so that a window lasts at most twice as long, and the two meet again.
type clock struct {
	wall func() time.Time
	mono func() time.Duration

	mu        sync.Mutex // guards all below
	readings  []reading
	stamp     int64         // the last that the wall clock gave, ms
	stampedAt time.Duration // monotonic
}

type reading struct {
	since  time.Duration // monotonic
	offset int64         // wall - monotonic, ms
}

func newClock(wall func() time.Time, mono func() time.Duration) *clock {
	if wall == nil {
		wall = time.Now
	}
	if mono == nil {
		start := time.Now()
		mono = func() time.Duration { return time.Since(start) }
	}
	return &clock{wall: wall, mono: mono}
}

// trust starts with a time that was believed before and the last stamp, ms: what the file says, or the wall clock for a
// new file.
func (c *clock) trust(believed, stamp int64) {
	m := c.mono()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.readings = []reading{{since: m - standsFor, offset: believed - m.Milliseconds()}}
	c.stamp, c.stampedAt = stamp, m
}

// now is the store's time for an answer that writes nothing, ms.
func (c *clock) now() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return max(c.wall().UnixMilli(), c.since(c.mono()))
}

// tick is the store's time for a write, and the time that purging believes, both in ms.
func (c *clock) tick() (now, believed int64) {
	wall, believed := c.read()
	c.mu.Lock()
	defer c.mu.Unlock()
	m := c.mono()
	if now = c.since(m); wall >= now {
		now, c.stamp, c.stampedAt = wall, wall, m
	}
	return now, believed
}

// since is the time behind the last stamp of the wall clock, at monotonic time m. The caller holds mu.
func (c *clock) since(m time.Duration) int64 {
	return c.stamp + (m-c.stampedAt).Milliseconds()/2
}

// read returns the wall clock and the time that purging believes, both in ms.
func (c *clock) read() (wall, believed int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w, m := c.wall().UnixMilli(), c.mono()
	off := w - m.Milliseconds()

	since := m
	for n := len(c.readings); n > 0 && c.readings[n-1].offset >= off; n-- {
		since = c.readings[n-1].since // what stood higher supports this offset too
		c.readings = c.readings[:n-1]
	}
	// Without an entry the rise is believed later, never earlier.
	if n := len(c.readings); n == 0 || since < m || (off-c.readings[n-1].offset >= worthTrack && n < maxTracked) {
		c.readings = append(c.readings, reading{since, off})
	}
	for len(c.readings) > 1 && c.readings[1].since <= m-standsFor {
		c.readings = c.readings[1:]
	}
	return w, min(w, c.readings[0].offset+m.Milliseconds())
}
