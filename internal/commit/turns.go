// Turns: callers in this process who change the same thing, one after the other.

package commit

import (
	"context"
	"sync"

	"github.com/apitoken-go/apitoken/internal/fault"
)

// Turns lets those who redeem one ticket, or open sessions of one subject, in one process come one after another: the first
// has its answer before a second use of the ticket ends what it got. Between processes the store decides.
type Turns struct {
	mu   sync.Mutex // guards busy
	busy map[string]chan struct{}
}

// Enter waits for id's turn, until ctx ends. Whoever entered calls leave.
func (t *Turns) Enter(ctx context.Context, id string) (leave func(), err error) {
	mine := make(chan struct{})
	for {
		t.mu.Lock()
		before, ok := t.busy[id]
		if !ok {
			if t.busy == nil {
				t.busy = map[string]chan struct{}{}
			}
			t.busy[id] = mine
			t.mu.Unlock()
			return func() {
				t.mu.Lock()
				delete(t.busy, id)
				t.mu.Unlock()
				close(mine)
			}, nil
		}
		t.mu.Unlock()
		select {
		case <-before:
		case <-ctx.Done():
			return nil, fault.NoAnswer(ctx.Err(), "waiting for another call for the same ticket or subject")
		}
	}
}
