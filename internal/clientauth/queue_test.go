package clientauth

import (
	"context"
	"fmt"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	is "github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/internal/fault"
)

// However many callers make names up, a client with a chosen secret is the next one whose secret is hashed, and clients take
// turns however many callers name one of them.
func TestClientsComeBeforeMadeUpNames(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &queue{free: 1}
		is.NoError(t, p.enter(t.Context(), "x", false))
		order := make(chan string, 1000)
		limited := make(chan error, 1000)
		enter := func(id string, known bool) {
			go func() {
				if err := p.enter(t.Context(), id, known); err != nil {
					limited <- err
					return
				}
				order <- id
				p.leave()
			}()
			synctest.Wait()
		}
		for i := range 256 {
			enter(fmt.Sprint("made up ", i), false)
		}
		for range 3 {
			enter("a", true)
		}
		enter("b", true)
		enter("c", true)
		is.Len(t, limited, 256-maxRest)
		is.ErrorIs(t, <-limited, fault.Limited)

		p.leave()
		synctest.Wait()
		for _, want := range []string{"a", "b", "c", "a", "a", "made up 0"} {
			is.Equal(t, want, <-order)
		}
		is.Len(t, order, maxRest-1)
		is.Equal(t, 1, p.free)
		is.Empty(t, p.lanes)
	})
}

// A made-up name that takes two hashes lets a client that came meanwhile go between them, and others of its kind not.
func TestAMadeUpNamePausesForAClient(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &queue{free: 1}
		is.NoError(t, p.enter(t.Context(), "made up", false))
		is.NoError(t, p.pause(t.Context()), "nobody waits")
		order := make(chan string, 3)
		for _, x := range []struct {
			id    string
			known bool
		}{{"another", false}, {"a", true}} {
			go func() {
				is.NoError(t, p.enter(t.Context(), x.id, x.known))
				order <- x.id
				p.leave()
			}()
			synctest.Wait()
		}
		is.NoError(t, p.pause(t.Context()))
		order <- "made up"
		p.leave()
		synctest.Wait()
		for _, want := range []string{"a", "made up", "another"} {
			is.Equal(t, want, <-order)
		}
		is.Equal(t, 1, p.free)

		// One that stops waiting in its pause has handed its place on.
		is.NoError(t, p.enter(t.Context(), "made up", false))
		release := make(chan struct{})
		go func() {
			is.NoError(t, p.enter(t.Context(), "a", true))
			<-release
			p.leave()
		}()
		synctest.Wait()
		ended, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		is.ErrorIs(t, p.pause(ended), fault.Unavailable)
		is.Zero(t, p.free)
		close(release)
		synctest.Wait()
		is.Equal(t, 1, p.free)
	})
}

// A caller who stops waiting leaves the queue, or hands the place on.
func TestWhoStopsWaitingHoldsNoPlace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &queue{free: 1}
		for _, known := range []bool{false, true} {
			is.NoError(t, p.enter(t.Context(), "x", known))
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			is.ErrorIs(t, p.enter(ctx, "y", known), fault.Unavailable)
			is.Empty(t, p.lanes)
			is.Empty(t, p.rest.waiters)
			p.leave()
			is.Equal(t, 1, p.free)
		}
	})
}

func TestTheQueueTakesHalfOfTheProcessors(t *testing.T) {
	t.Parallel()
	is.Equal(t, max(1, runtime.GOMAXPROCS(0)/2), newQueue().free)
}
