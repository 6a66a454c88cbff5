package etcdstore

import (
	"context"
	"math/rand/v2"
	"time"
)

// Waits between two attempts double from the first to the longest, and each is between half and all of that: processes
// that lost a leader together do not come back together.
const (
	firstWait   = 8 * time.Millisecond
	longestWait = 250 * time.Millisecond
)

// pause waits before another attempt; false when one of the contexts ended first.
func pause(ctx, closing context.Context, wait *time.Duration) bool {
	t := time.NewTimer(*wait/2 + rand.N(*wait/2))
	defer t.Stop()
	*wait = min(2**wait, longestWait)
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
	case <-closing.Done():
	}
	return false
}
