// Package retry repeats writes whose outcome is unknown, until the store has them. It owns the list of these writes, which is in memory
// only: what they write is in force in this process meanwhile, and was never acknowledged.
//
// It promises that each is tried until it is written, or until the process ends, and that one which cannot be written holds up none of
// the others. Its one mutex is a leaf: it holds no lock while it writes. internal/revoke adds revocations to it; Run is
// called once for a service.
package retry

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

// Queue is the writes that are tried again. Make one with New.
type Queue struct {
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

// New makes an empty queue.
func New(log *slog.Logger) *Queue { return &Queue{log: log, kick: make(chan struct{}, 1)} }

// Add has write repeated, which ends target, and done called when the store has it. After Run has ended it does nothing.
func (q *Queue) Add(target fmt.Stringer, write func(context.Context) error, done func()) {
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

// Refused tells operators of a write that no store takes: trying again is of no use.
func (q *Queue) Refused(target fmt.Stringer, err error) {
	q.log.Error("apitoken: a revocation cannot be stored; it is in force until this process ends, and in no other", "target", target, "error", err)
}

// Len is how many writes wait.
func (q *Queue) Len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.list)
}

// Run repeats what is added, until ctx ends.
func (q *Queue) Run(ctx context.Context) {
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
			q.Refused(x.target, err)
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

func (q *Queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
}

func (q *Queue) first() (item, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.list) == 0 {
		return item{}, false
	}
	return q.list[0], true
}

func (q *Queue) drop() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.list = q.list[1:]
}

// last puts x behind the others: their order does not matter.
func (q *Queue) last(x item) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.list = append(q.list[1:], x)
}
