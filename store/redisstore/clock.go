package redisstore

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"time"
)

// How long a forward step of the server's clock must have stood, by this process's monotonic clock, before it can make
// anything purgeable; how far the shared time may lag before a purge writes it; what rise is worth an entry of its own.
const (
	standsFor  = time.Hour
	shareEvery = 60_000 // ms
	worthTrack = 1000   // ms
	maxTracked = 256
)

// clock keeps apart what purging may believe of the server's clock: one that jumps a year ahead must not purge rules
// that are still needed. Believed is what was believed before, as the namespace remembers, plus the monotonic time since;
// or what the server has said for an hour.
type clock struct {
	mono func() time.Duration

	mu       sync.Mutex // guards what follows
	readings []reading  // oldest first, offsets that rise; each has been supported by every reading since its time
	asked    bool
}

type reading struct {
	since  time.Duration // monotonic
	offset int64         // server's time - monotonic, ms
}

func newClock() *clock {
	start := time.Now()
	return &clock{mono: func() time.Duration { return time.Since(start) }}
}

// believe returns the time that purging goes by, ms: never after the server's, wall. shared is what was believed before.
func (c *clock) believe(wall, shared int64) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := c.mono()
	offset := wall - m.Milliseconds()
	since := m
	for n := len(c.readings); n > 0 && c.readings[n-1].offset >= offset; n-- {
		since = c.readings[n-1].since
		c.readings = c.readings[:n-1]
	}
	if n := len(c.readings); n == 0 || since < m || offset-c.readings[n-1].offset >= worthTrack && n < maxTracked {
		c.readings = append(c.readings, reading{since, offset})
	}
	if !c.asked {
		c.asked, shared = true, shared+shareEvery // what is remembered lags by as much
	}
	// What was believed before counts as if it had stood.
	if before := min(offset, shared-m.Milliseconds()); before > c.stood(m) {
		for len(c.readings) > 0 && c.readings[0].offset <= before {
			c.readings = c.readings[1:]
		}
		c.readings = append([]reading{{m - standsFor, before}}, c.readings...)
	}
	for len(c.readings) > 1 && c.readings[1].since <= m-standsFor {
		c.readings = c.readings[1:]
	}
	return min(wall, c.stood(m)+m.Milliseconds())
}

// stood is the highest offset that has stood; far in the past when there is none.
func (c *clock) stood(m time.Duration) int64 {
	best := int64(-1 << 60)
	for _, r := range c.readings {
		if r.since <= m-standsFor {
			best = max(best, r.offset)
		}
	}
	return best
}

// believed asks the server for its time and the namespace for what was believed before, and tells it.
func (n *space) believed(ctx context.Context) (int64, error) {
	wall, shared, known, err := n.times(ctx, "")
	if err != nil {
		return 0, err
	}
	if !known {
		shared = wall - shareEvery // the first of all has only this to believe
	}
	now := n.clock.believe(wall, shared)
	if !known || now > shared+shareEvery {
		// Purging works in a server that is full; remembering does not.
		if _, _, _, err := n.times(ctx, strconv.FormatInt(now, 10)); err != nil && !errors.Is(err, ErrFull) {
			return 0, err
		}
	}
	return now, nil
}

func (n *space) times(ctx context.Context, remember string) (wall, shared int64, known bool, err error) {
	r, _, err := n.ask(ctx, scriptClock, remember)
	if err != nil {
		return 0, 0, false, err
	}
	if len(r) != 2 {
		return 0, 0, false, errValue("the answer about the time does not read")
	}
	wall, err1 := strconv.ParseInt(str(r[0]), 10, 64)
	text := str(r[1])
	if text != "" {
		shared, err = strconv.ParseInt(text, 10, 64)
	}
	if errors.Join(err1, err) != nil {
		return 0, 0, false, errValue("the answer about the time does not read")
	}
	return wall, shared, text != "", nil
}
