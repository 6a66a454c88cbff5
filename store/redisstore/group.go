package redisstore

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/apitoken-go/apitoken/store"
)

// Changes that wait while others are written go into the next script together, where each is decided by itself. That
// saves round trips and system calls, which cost Redis more than the writes. Nobody waits for company: a change that
// comes first goes at once.
const (
	flights    = 2         // scripts under way for a namespace
	groupSize  = 64        // changes in one
	groupBytes = 512 << 10 // of them together; also what keeps a script short, as nothing else runs beside it
	maxWaiting = 8192      // changes that wait in a namespace, and Gets; who comes next waits for a place, within their deadline
)

// pending is a change on its way.
type pending struct {
	args   []any
	size   int
	urgent bool // has a revocation: goes before others
	begun  time.Time
	basis  *lineage    // the history on which it was decided, as far as this process knew one
	done   chan result // never blocks
}

type result struct {
	commit store.Commit
	err    error
}

// flight is a sender of groups. Its slot names it to the server, the number its groups.
type flight struct {
	slot   int
	number int64
}

// group is the queue of a namespace.
type group struct {
	places, urgentPlaces chan struct{} // one for each that waits

	mu      sync.Mutex // guards what follows
	urgent  []*pending
	waiting []*pending
	idle    []*flight
	flying  int
}

// place waits for one in a queue. Whoever removes what stands there gives it back.
func (n *space) place(ctx context.Context, late <-chan time.Time, places chan struct{}) error {
	select {
	case places <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-late:
		return fmt.Errorf("redisstore: not begun within %s: %w", n.s.o.Timeout, context.DeadlineExceeded)
	case <-n.s.ctx.Done():
		return ErrClosed
	}
}

func (n *space) submit(p *pending) error {
	g := &n.group
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.flying < flights {
		var f *flight
		if k := len(g.idle); k > 0 {
			f, g.idle = g.idle[k-1], g.idle[:k-1]
		} else {
			f = &flight{slot: g.flying}
		}
		g.flying++
		if err := n.s.background(func() { n.fly(f) }); err != nil {
			g.flying--
			g.idle = append(g.idle, f)
			return err
		}
	}
	if p.urgent {
		g.urgent = append(g.urgent, p)
	} else {
		g.waiting = append(g.waiting, p)
	}
	return nil
}

// fly writes what waits until nothing does.
func (n *space) fly(f *flight) {
	for {
		batch := n.take(f)
		if batch == nil {
			return
		}
		f.number++
		n.write(f, batch)
	}
}

// take removes what can be written together from the queue, in order; nil ends the flight.
func (n *space) take(f *flight) []*pending {
	g := &n.group
	g.mu.Lock()
	defer g.mu.Unlock()
	var batch []*pending
	size := 0
	for k, queue := range [...]*[]*pending{&g.urgent, &g.waiting} {
		q, places := *queue, [...]chan struct{}{g.urgentPlaces, g.places}[k]
		for len(q) > 0 && len(batch) < groupSize {
			p := q[0]
			if time.Since(p.begun) >= n.s.o.Timeout {
				p.done <- result{err: fmt.Errorf("redisstore: not begun within %s: %w", n.s.o.Timeout, context.DeadlineExceeded)}
			} else {
				if len(batch) > 0 && size+p.size > groupBytes {
					break
				}
				batch, size = append(batch, p), size+p.size
			}
			q[0] = nil
			q = q[1:]
			<-places
		}
		*queue = q
	}
	if batch == nil {
		g.flying--
		g.idle = append(g.idle, f)
	}
	return batch
}
