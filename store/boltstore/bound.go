package boltstore

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// bbolt knows no deadlines: it waits for its own locks and for the disk as long as that takes, and a lock that it held
// when it panicked stays locked. So a verb that reads runs in a goroutine of its own, a reader, and its caller waits for
// it at most Options.Timeout.
//
// Readers are kept for the next read, since their stacks have grown already: a new goroutine grows its own three times on
// the way through bbolt, which takes longer than the read. Timers are made only for a read that is not finished at once.
// A read of one record takes 7 µs so where bbolt alone takes 3, and 4 where it takes 2.7 with 64 callers (two cores);
// most of the rest is the scheduler's, which wakes another processor for the reader.
//
// A page that is not in memory is read by a fault of the map, which nothing can interrupt: the caller returns in time,
// but its reader keeps a thread until the disk answers.
const (
	defaultTimeout = 10 * time.Second
	maxLeft        = 256 // reads left behind by their callers; beyond it no further one begins
	maxIdle        = 32  // readers kept for the next read
)

// readers are the goroutines that wait for the next read.
type readers struct {
	mu     sync.Mutex // guards idle and closed
	idle   []*reader
	closed bool
}

// reader is one goroutine. From get to put it belongs to one caller.
type reader struct {
	left  *atomic.Int64
	work  chan job // unbuffered: who sends to a reader that waits makes it the next to run
	done  chan struct{}
	state atomic.Int32 // of the work
}

const (
	running int32 = iota
	finished
	abandoned
)

// job is a *read of some type.
type job interface{ run() }

// get is a reader that runs j.
func (p *readers) get(left *atomic.Int64, j job) *reader {
	var r *reader
	p.mu.Lock()
	if n := len(p.idle); n > 0 {
		r, p.idle = p.idle[n-1], p.idle[:n-1]
	}
	p.mu.Unlock()

	if r == nil {
		r = &reader{left: left, work: make(chan job), done: make(chan struct{}, 1)}
		go r.loop(j)
		return r
	}
	r.state.Store(running)
	r.work <- j
	return r
}

// put takes back a reader whose work is finished. One that is not kept ends.
func (p *readers) put(r *reader) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || len(p.idle) >= maxIdle {
		close(r.work)
		return
	}
	p.idle = append(p.idle, r)
}

// close ends the readers that have no work, and each other one when its work is finished.
func (p *readers) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, r := range p.idle {
		close(r.work)
	}
	p.idle = nil
}

// loop runs the work until there is none any more, or its caller has left.
func (r *reader) loop(j job) {
	for ; j != nil; j = <-r.work {
		j.run()
		if !r.state.CompareAndSwap(running, finished) {
			r.left.Add(-1)
			return
		}
		r.done <- struct{}{}
	}
}

// read is one call of a verb. Its value and err are the reader's until it is finished, and nobody's once its caller has
// left. It is the context of the call: that of the caller, with the store's Timeout.
type read[T any] struct {
	late
	f     func(context.Context) (T, error)
	value T
	err   error
}

func (r *read[T]) run() {
	r.value, r.err = r.f(&r.late)
	r.late.end()
}

// late is a context.WithDeadline whose timer is made when somebody waits for it: hardly any read does.
type late struct {
	context.Context // the caller's
	at              time.Time

	mu     sync.Mutex // guards all below
	ctx    context.Context
	cancel context.CancelFunc
	ended  bool
}

func (l *late) Deadline() (time.Time, bool) {
	if at, ok := l.Context.Deadline(); ok && at.Before(l.at) {
		return at, true
	}
	return l.at, true
}

func (l *late) Done() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ctx == nil {
		l.ctx, l.cancel = context.WithDeadline(l.Context, l.at)
		if l.ended {
			l.cancel()
		}
	}
	return l.ctx.Done()
}

// Err tells the time by the clock, so that a read which never waits still ends.
func (l *late) Err() error {
	if err := l.Context.Err(); err != nil {
		return err
	}
	if !time.Now().Before(l.at) {
		return context.DeadlineExceeded
	}
	return nil
}

// end stops the timer, if there is one.
func (l *late) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended = true; l.cancel != nil {
		l.cancel()
	}
}

// bounded returns what f returns, or an error when ctx ends or the store's Timeout is over. f may go on after that, so
// it must not share variables with the caller.
func bounded[T any](ctx context.Context, s *Store, f func(context.Context) (T, error)) (T, error) {
	var zero T
	if err := ctx.Err(); err != nil {
		return zero, err
	}
	if s.left.Load() >= maxLeft {
		return zero, fmt.Errorf("%w: %d reads wait for the file already", s.tooLate(), maxLeft)
	}
	r := &read[T]{f: f}
	r.Context, r.at = ctx, time.Now().Add(s.timeout)
	by := s.readers.get(&s.left, r)

	// The reader runs here next, and has mostly finished when this one continues: neither has to be woken.
	runtime.Gosched()
	select {
	case <-by.done:
	default:
		if !s.await(ctx, by) {
			switch {
			case ctx.Err() != nil:
				return zero, ctx.Err()
			case s.failure() != nil:
				return zero, s.failure()
			}
			return zero, s.tooLate()
		}
	}
	s.readers.put(by)
	return r.value, s.lateError(ctx, &r.late, r.err)
}

// await reports whether the reader has finished in time. One that has not is left behind.
func (s *Store) await(ctx context.Context, by *reader) bool {
	timer := time.NewTimer(s.timeout)
	defer timer.Stop()
	select {
	case <-by.done:
		return true
	case <-ctx.Done():
	case <-timer.C:
	case <-s.gone:
		// A read that is stuck behind a lost lock never ends; one that is not ends now.
		grace := time.NewTimer(giveUp)
		defer grace.Stop()
		select {
		case <-by.done:
			return true
		case <-ctx.Done():
		case <-timer.C:
		case <-grace.C:
		}
	}
	s.left.Add(1) // before the reader can see that it was left, and takes it back
	if by.state.CompareAndSwap(running, abandoned) {
		return false
	}
	s.left.Add(-1)
	<-by.done // it has finished just now
	return true
}

// giveUp is how long a call under way, or Close, waits for others once the file is given up.
const giveUp = time.Second

func (s *Store) tooLate() error {
	return fmt.Errorf("boltstore: no answer within %v: %w", s.timeout, context.DeadlineExceeded)
}

// lateError tells the store's own deadline from that of the caller's ctx.
func (s *Store) lateError(ctx, inner context.Context, err error) error {
	if err != nil && inner.Err() != nil && ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
		return s.tooLate()
	}
	return err
}

// giveFileUp ends the use of the file for good: bbolt may hold locks of its own, which nobody can release.
func (s *Store) giveFileUp(cause error) {
	s.setFailure(cause)
	if s.lost.CompareAndSwap(false, true) {
		close(s.gone)
	}
}
