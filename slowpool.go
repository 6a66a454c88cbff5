package apitoken

import (
	"context"
	"runtime"
	"slices"
	"sync"
)

// slowPool bounds the slow hashes that run at once, at half of the processors. Clients that have a host-chosen secret come
// first, one after another however many callers name one of them; names that need a slow hash only to look like a client
// wait behind. So a caller with made-up names costs a client one hash of waiting at most.
type slowPool struct {
	mu    sync.Mutex // guards all below
	free  int
	lanes []*slowLane // of clients for whom somebody waits, in the order of their turns
	rest  slowLane    // of all other names
}

// slowLane is who waits for one client, the first one first. Closing a channel hands it the place.
type slowLane struct {
	client  string
	waiters []chan struct{}
}

const (
	maxSlowKnown = 64 // wait for one client
	maxSlowRest  = 16 // wait for other names
)

func newSlowPool() *slowPool { return &slowPool{free: max(1, runtime.GOMAXPROCS(0)/2)} }

// enter waits for a place until ctx ends; whoever entered calls leave. known: client has a secret that a host chose.
// ErrLimited: too many wait already.
func (p *slowPool) enter(ctx context.Context, client string, known bool) error {
	p.mu.Lock()
	if p.free > 0 {
		p.free--
		p.mu.Unlock()
		return nil
	}
	lane, most := &p.rest, maxSlowRest
	if known {
		most = maxSlowKnown
		i := slices.IndexFunc(p.lanes, func(l *slowLane) bool { return l.client == client })
		if i < 0 {
			i = len(p.lanes)
			p.lanes = append(p.lanes, &slowLane{client: client})
		}
		lane = p.lanes[i]
	}
	if len(lane.waiters) >= most {
		p.mu.Unlock()
		return &Error{Code: ErrLimited, RetryAfter: retryHint, Detail: "too many client secrets wait to be checked"}
	}
	place := make(chan struct{})
	lane.waiters = append(lane.waiters, place)
	p.mu.Unlock()

	select {
	case <-place:
		return nil
	case <-ctx.Done():
	}
	p.mu.Lock()
	i := slices.Index(lane.waiters, place)
	if i >= 0 {
		lane.waiters = slices.Delete(lane.waiters, i, i+1)
		if len(lane.waiters) == 0 {
			p.lanes = slices.DeleteFunc(p.lanes, func(l *slowLane) bool { return l == lane })
		}
	}
	p.mu.Unlock()
	if i < 0 { // the place was handed over meanwhile
		p.leave()
	}
	return unavailable(ctx.Err(), "waiting to check a client secret")
}

// leave hands the place to the next one.
func (p *slowPool) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	lane := &p.rest
	if len(p.lanes) > 0 {
		lane, p.lanes = p.lanes[0], p.lanes[1:]
		if len(lane.waiters) > 1 {
			p.lanes = append(p.lanes, lane)
		}
	}
	if len(lane.waiters) == 0 {
		p.free++
		return
	}
	close(lane.waiters[0])
	lane.waiters = lane.waiters[1:]
}
