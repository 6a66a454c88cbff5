// The queue in front of slow hashes: strangers who guess leave room for clients that are known.

package clientauth

import (
	"context"
	"runtime"
	"slices"
	"sync"

	"github.com/apitoken-go/apitoken/internal/fault"
)

// queue bounds the slow hashes that run at once, at half of the processors. Clients that have a chosen secret come first, in
// turns however many callers name one of them. Names that need a slow hash only to look like a client wait behind them,
// so that a flood of made-up names costs a client at most one hash of waiting.
type queue struct {
	mu    sync.Mutex // guards all below
	free  int
	lanes []*lane // of clients for whom a caller waits, in the order of their turns
	rest  lane    // of all other names
}

// lane is the callers that wait for one client, the first one first. Closing a channel hands it the place.
type lane struct {
	client  string
	waiters []chan struct{}
}

const (
	maxKnown = 64 // callers that wait for one client
	maxRest  = 16 // callers that wait for other names
)

func newQueue() *queue { return &queue{free: max(1, runtime.GOMAXPROCS(0)/2)} }

// enter waits for a place until ctx ends; who entered calls leave. known: client has a chosen secret. fault.Limited: too many
// wait already.
func (q *queue) enter(ctx context.Context, client string, known bool) error {
	q.mu.Lock()
	if q.free > 0 {
		q.free--
		q.mu.Unlock()
		return nil
	}
	l, most := &q.rest, maxRest
	if known {
		most = maxKnown
		i := slices.IndexFunc(q.lanes, func(l *lane) bool { return l.client == client })
		if i < 0 {
			i = len(q.lanes)
			q.lanes = append(q.lanes, &lane{client: client})
		}
		l = q.lanes[i]
	}
	if len(l.waiters) >= most {
		q.mu.Unlock()
		return &fault.Error{Code: fault.Limited, RetryAfter: fault.RetryHint, Detail: "too many client secrets wait to be checked"}
	}
	place := make(chan struct{})
	l.waiters = append(l.waiters, place)
	q.mu.Unlock()
	return q.wait(ctx, l, place)
}

// pause lets clients that wait go first, before a second hash for another name. Who has a place keeps it, or gets it back before all
// other such names. An error is of ctx, and then the place is gone.
func (q *queue) pause(ctx context.Context) error {
	q.mu.Lock()
	if len(q.lanes) == 0 {
		q.mu.Unlock()
		return nil
	}
	place := make(chan struct{})
	q.rest.waiters = slices.Insert(q.rest.waiters, 0, place)
	q.mu.Unlock()
	q.leave()
	return q.wait(ctx, &q.rest, place)
}

// wait returns once place, which is in l, was handed over.
func (q *queue) wait(ctx context.Context, l *lane, place chan struct{}) error {
	select {
	case <-place:
		return nil
	case <-ctx.Done():
	}
	q.mu.Lock()
	i := slices.Index(l.waiters, place)
	if i >= 0 {
		l.waiters = slices.Delete(l.waiters, i, i+1)
		if len(l.waiters) == 0 {
			q.lanes = slices.DeleteFunc(q.lanes, func(x *lane) bool { return x == l })
		}
	}
	q.mu.Unlock()
	if i < 0 { // the place was handed over meanwhile
		q.leave()
	}
	return fault.NoAnswer(ctx.Err(), "waiting to check a client secret")
}

// leave hands the place to the next one.
func (q *queue) leave() {
	q.mu.Lock()
	defer q.mu.Unlock()
	l := &q.rest
	if len(q.lanes) > 0 {
		l, q.lanes = q.lanes[0], q.lanes[1:]
		if len(l.waiters) > 1 {
			q.lanes = append(q.lanes, l)
		}
	}
	if len(l.waiters) == 0 {
		q.free++
		return
	}
	close(l.waiters[0])
	l.waiters = l.waiters[1:]
}
