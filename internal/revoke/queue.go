package revoke

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/follow"
	"github.com/apitoken-go/apitoken/store"
)

const (
	firstWait   = 100 * time.Millisecond
	longestWait = 5 * time.Second
)

// queue is the writes whose outcome is unknown, which are tried again until the store has them. It is in memory only: what they write is
// in force in this process meanwhile, and was never acknowledged. One that cannot be written holds up none of the others.
type queue struct {
	log  *slog.Logger
	kick chan struct{}

	mu     sync.Mutex // guards what follows
	list   []item
	closed bool
}

type item struct {
	target fmt.Stringer // for the log
	write  func(context.Context) error
	done   func()
}

func newQueue(log *slog.Logger) *queue { return &queue{log: log, kick: make(chan struct{}, 1)} }

// add has write repeated, which ends target, and done called when the store has it. After run has ended it does nothing.
func (q *queue) add(target fmt.Stringer, write func(context.Context) error, done func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return
	}
	q.list = append(q.list, item{target, write, done})
	select {
	case q.kick <- struct{}{}:
	default:
	}
}

// refused tells operators of a write that no store takes: trying again is of no use.
func (q *queue) refused(target fmt.Stringer, err error) {
	q.log.Error("apitoken: a revocation cannot be stored; it is in force until this process ends, and in no other", "target", target, "error", err)
}

// waiting is how many writes there are.
func (q *queue) waiting() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.list)
}

// run repeats what is added, until ctx ends.
func (q *queue) run(ctx context.Context) {
	defer q.close()
	wait := firstWait
	for {
		x, ok := q.first()
		if !ok {
			wait = firstWait
			select {
			case <-ctx.Done():
				return
			case <-q.kick:
			}
			continue
		}

		tctx, cancel := context.WithTimeout(ctx, commit.Timeout) // one that hangs keeps none of the others from being written
		err := x.write(tctx)
		cancel()
		switch {
		case errors.Is(err, fault.InvalidRequest): // whoever asked was told that it is in force here, so that it stays so
			q.drop()
			q.refused(x.target, err)
			continue
		case err == nil, errors.Is(err, store.ErrConflict), errors.Is(err, fault.NotFound):
			q.drop()
			x.done()
			continue
		}
		q.log.Warn("apitoken: a revocation is in force here and not yet in the store", "target", x.target, "error", err)
		q.last(x)
		if !follow.Sleep(ctx, follow.Jitter(wait)) {
			return
		}
		wait = min(2*wait, longestWait)
	}
}

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
}

func (q *queue) first() (item, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.list) == 0 {
		return item{}, false
	}
	return q.list[0], true
}

func (q *queue) drop() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.list = q.list[1:]
}

// last puts x behind the others: their order does not matter.
func (q *queue) last(x item) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.list = append(q.list[1:], x)
}
