package etcdstore

import (
	"context"
	"fmt"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// How long a forward step of the wall clock must have stood, by the monotonic clock, before it can make anything
// purgeable; how far the shared time may lag before a purge writes it; what rise is worth an entry of its own.
const (
	standsFor  = time.Hour
	shareEvery = 60_000 // ms
	worthTrack = 1000   // ms
	maxTracked = 256
)

// clock keeps apart what purging may believe of the wall clock: one process whose clock jumped a year ahead must not
// purge rules that are still needed. Believed is what another process believed before, as the key "clock" tells, plus the
// monotonic time since; or what this process's own clock has said for an hour.
type clock struct {
	wall func() time.Time
	mono func() time.Duration

	mu       sync.Mutex // guards readings, asked
	readings []reading  // oldest first, offsets that rise; each has been supported by every reading since its time
	asked    bool
}

type reading struct {
	since  time.Duration // monotonic
	offset int64         // wall - monotonic, ms
}

func newClock(wall func() time.Time, mono func() time.Duration) *clock {
	if mono == nil {
		start := time.Now()
		mono = func() time.Duration { return time.Since(start) }
	}
	return &clock{wall: wall, mono: mono}
}

// believe returns the time that purging goes by, ms: never after the wall clock. shared is what the fleet has believed.
func (c *clock) believe(shared int64) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	w, m := c.wall().UnixMilli(), c.mono()
	off := w - m.Milliseconds()
	since := m
	for n := len(c.readings); n > 0 && c.readings[n-1].offset >= off; n-- {
		since = c.readings[n-1].since
		c.readings = c.readings[:n-1]
	}
	if n := len(c.readings); n == 0 || since < m || off-c.readings[n-1].offset >= worthTrack && n < maxTracked {
		c.readings = append(c.readings, reading{since, off})
	}
	if !c.asked {
		// The fleet tells its time once a minute only.
		c.asked, shared = true, shared+shareEvery
	}
	// What the fleet has believed counts as if it had stood.
	if so := min(off, shared-m.Milliseconds()); len(c.readings) > 0 && so > c.believedOffset(m) {
		for len(c.readings) > 0 && c.readings[0].offset <= so {
			c.readings = c.readings[1:]
		}
		c.readings = append([]reading{{m - standsFor, so}}, c.readings...)
	}
	for len(c.readings) > 1 && c.readings[1].since <= m-standsFor {
		c.readings = c.readings[1:]
	}
	return min(w, c.believedOffset(m)+m.Milliseconds())
}

// believedOffset is the highest offset that has stood; far in the past when there is none.
func (c *clock) believedOffset(m time.Duration) int64 {
	best := int64(-1 << 60)
	for _, r := range c.readings {
		if r.since <= m-standsFor {
			best = max(best, r.offset)
		}
	}
	return best
}

// believed asks the fleet and tells it.
func (s *Store) believed(ctx context.Context) (int64, error) {
	key := s.prefix + keyClock
	for {
		r, err := s.read(ctx, clientv3.OpGet(key))
		if err != nil {
			return 0, err
		}
		kvs := r.Responses[0].GetResponseRange().Kvs
		if len(kvs) == 0 {
			// The first of all has only its own clock to believe.
			cmp := clientv3.Compare(clientv3.CreateRevision(key), "=", 0)
			if err := s.mend(ctx, []clientv3.Cmp{cmp}, clientv3.OpPut(key, be64(s.now()))); err != nil {
				return 0, fmt.Errorf("etcdstore: clock: %w", err)
			}
			continue
		}
		shared, err := parse64(kvs[0].Value)
		if err != nil {
			return 0, err
		}
		ms := s.clock.believe(shared)
		if ms > shared+shareEvery {
			cmp := clientv3.Compare(clientv3.ModRevision(key), "=", kvs[0].ModRevision)
			// Purging works in a cluster that is full; telling the time does not.
			if err := s.mend(ctx, []clientv3.Cmp{cmp}, clientv3.OpPut(key, be64(ms))); err != nil {
				s.log.Debug("etcdstore: time not shared", "error", err)
			}
		}
		return ms, nil
	}
}
