package boltstore

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"
)

// bbolt knows no deadlines: it waits for its own locks and for the disk as long as that takes, and a lock that it held
// when it panicked stays locked. So a verb that reads runs in a goroutine of its own, and its caller waits for it at
// most Options.Timeout. A read of one record takes 8 µs so where it
// took 2, and 5 where it took 2.4 with 64 callers (two cores).
//
// A page that is not in memory is read by a fault of the map, which nothing can interrupt: the caller returns in time,
// but its goroutine keeps a thread until the disk answers.
const (
	defaultTimeout = 10 * time.Second
	maxLeft        = 256 // reads left behind by their callers; beyond it no further one begins
)

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
	type result struct {
		value T
		err   error
	}
	inner, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()

	const running, finished, abandoned = 0, 1, 2
	var state atomic.Int32
	done := make(chan result, 1)
	go func() {
		var r result
		r.value, r.err = f(inner)
		done <- r
		if !state.CompareAndSwap(running, finished) {
			s.left.Add(-1)
		}
	}()

	// The new goroutine runs here next, and has mostly finished when this one continues: neither has to be woken.
	runtime.Gosched()
	select {
	case r := <-done:
		return r.value, s.lateError(ctx, inner, r.err)
	case <-inner.Done():
	case <-s.gone:
		// A read that is stuck behind a lost lock never ends; one that is not ends now.
		timer := time.NewTimer(giveUp)
		defer timer.Stop()
		select {
		case r := <-done:
			return r.value, s.lateError(ctx, inner, r.err)
		case <-inner.Done():
		case <-timer.C:
		}
	}
	if state.CompareAndSwap(running, abandoned) {
		s.left.Add(1)
	}
	switch {
	case ctx.Err() != nil:
		return zero, ctx.Err()
	case s.failure() != nil:
		return zero, s.failure()
	}
	return zero, s.tooLate()
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
