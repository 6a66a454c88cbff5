// Clock, which runs on evenly when the machine's clock is set back or jumps forward.

package follow

import "time"

// Clock believes a forward step only after it has stood for an hour of monotonic time.
type Clock struct {
	wall  func() time.Time
	base  time.Time // believed
	mono  time.Time // when base was believed
	since time.Time // when the wall was first seen ahead; zero: it is not
}

const (
	stepBelieved = time.Hour
	stepSize     = time.Minute
)

// NewClock believes what wall shows at first.
func NewClock(wall func() time.Time) *Clock {
	return &Clock{wall: wall, base: wall().Round(0), mono: time.Now()}
}

// Now is what is believed.
func (c *Clock) Now() time.Time {
	mono := time.Now()
	wall := c.wall().Round(0)
	believed := c.base.Add(mono.Sub(c.mono))
	if wall.Sub(believed) < stepSize {
		c.since = time.Time{}
		return wall
	}
	if c.since.IsZero() {
		c.since = mono
	}
	if mono.Sub(c.since) >= stepBelieved {
		c.base, c.mono, c.since = wall, mono, time.Time{}
		return wall
	}
	return believed
}
