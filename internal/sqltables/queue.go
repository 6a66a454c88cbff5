// The queue of changes, of which several are written at once.

package sqltables

import (
	"sync"
	"time"

	"github.com/apitoken-go/apitoken/store"
)

// Callers that write at the same time share a transaction: one lock, one commit and one sync for all of them. Each
// change is decided by itself, after those before it: a conflict of one is nothing to the others.
//
// Changes of state go first, so that a revocation waits for the transactions under way and for no session behind them.
const (
	batchChanges = 128
	batchPuts    = 256     // records that are read at once
	batchBytes   = 2 << 20 // of data; servers limit what a statement may be
)

// intent is a change on its way.
type intent struct {
	s       *Store
	c       *store.Change // a copy
	size    int
	end     time.Time // when nobody waits for it any more
	unknown error     // of an attempt that may have been done
	tell    func(store.Commit, error)
}

// queue collects intents. Whoever brings one while a lane is free runs that lane until nobody waits.
type queue struct {
	lanes int

	mu      sync.Mutex // guards all below
	urgent  []*intent
	rest    []*intent
	running int
}

// submit hands in to a lane; the answer comes by in.tell.
func (q *queue) submit(in *intent, urgent bool, together func([]*intent)) {
	q.mu.Lock()
	if urgent {
		q.urgent = append(q.urgent, in)
	} else {
		q.rest = append(q.rest, in)
	}
	start := q.running < q.lanes
	if start {
		q.running++
	}
	q.mu.Unlock()
	if start {
		go q.lane(together)
	}
}

func (q *queue) lane(together func([]*intent)) {
	for {
		q.mu.Lock()
		batch := q.take()
		if len(batch) == 0 {
			q.running--
			q.mu.Unlock()
			return
		}
		q.mu.Unlock()
		together(batch)
	}
}

// take removes what shares the next transaction. The caller holds mu.
func (q *queue) take() (batch []*intent) {
	puts, bytes := 0, 0
	for _, from := range []*[]*intent{&q.urgent, &q.rest} {
		taken := 0
		for _, in := range *from {
			puts += len(in.c.Puts)
			bytes += in.size
			if len(batch) > 0 && (len(batch) == batchChanges || puts > batchPuts || bytes > batchBytes) {
				break
			}
			batch = append(batch, in)
			taken++
		}
		clear((*from)[:taken])
		if *from = (*from)[taken:]; len(*from) > 0 {
			return batch
		}
		*from = nil
	}
	return batch
}
