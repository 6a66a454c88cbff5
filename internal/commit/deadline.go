// A context with a deadline, whose timer is made when somebody waits for it.

package commit

import (
	"context"
	"sync"
	"time"
)

// deadline is a context.WithDeadline whose timer is made when somebody waits for it: most writes are done before, and the
// timer takes longer than a write into memory. It saves 0.8 µs and three allocations, 3 % of an Issue with EdDSA into memory.
type deadline struct {
	parent context.Context
	at     time.Time

	mu     sync.Mutex // guards all below
	ctx    context.Context
	cancel context.CancelFunc
	ended  bool
}

func (d *deadline) Deadline() (time.Time, bool) { return d.at, true }

func (d *deadline) Done() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ctx == nil {
		d.ctx, d.cancel = context.WithDeadline(d.parent, d.at)
		if d.ended {
			d.cancel()
		}
	}
	return d.ctx.Done()
}

func (d *deadline) Err() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.ctx != nil:
		return d.ctx.Err()
	case d.ended:
		return context.Canceled
	case d.parent.Err() != nil:
		return d.parent.Err()
	case !time.Now().Before(d.at):
		return context.DeadlineExceeded
	}
	return nil
}

// Value gives the real context to those who look for it: children of it need no goroutine to follow it.
func (d *deadline) Value(key any) any {
	d.mu.Lock()
	ctx := d.ctx
	d.mu.Unlock()
	if ctx == nil {
		ctx = d.parent
	}
	return ctx.Value(key)
}

// end is the CancelFunc.
func (d *deadline) end() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ended = true; d.cancel != nil {
		d.cancel()
	}
}
