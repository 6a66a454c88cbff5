package throttle

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	is "github.com/stretchr/testify/require"
)

func TestANameHasItsTries(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_800_000_000, 0)
	var x Table
	n := Name{Who: "client", From: "192.0.2.1"}
	is.False(t, x.Over(n, now))
	is.Nil(t, x.counts.Load(), "asking takes no memory")

	for range Limit {
		is.False(t, x.Over(n, now))
		is.True(t, x.Take(n, now))
	}
	is.True(t, x.Over(n, now))
	is.False(t, x.Take(n, now))
	is.True(t, x.Take(Name{Who: "client", From: "192.0.2.2"}, now))

	x.GiveBack(n, now)
	is.True(t, x.Take(n, now))
	is.False(t, x.Take(n, now))

	is.False(t, x.Over(n, now.Add(Window)))
	is.True(t, x.Take(n, now.Add(Window)))
	x.GiveBack(n, now) // of a window that is over: it counts for nothing
	is.True(t, x.Take(n, now.Add(Window)))
}

func TestParallelTriesAreCountedOnce(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_800_000_000, 0)
	var x Table
	var taken atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				if x.Take(Name{From: "a"}, now) {
					taken.Add(1)
				}
			}
		})
	}
	wg.Wait()
	is.EqualValues(t, Limit, taken.Load())
}
