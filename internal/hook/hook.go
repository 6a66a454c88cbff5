// Package hook calls functions of the host program. One that panics, or does not come back in time, is an error of that one
// call: it ends neither the process nor anyone else's wait.
package hook

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
)

// ErrPanicked: the function panicked. Stack says where.
var ErrPanicked = errors.New("it panicked")

// Call runs f in a goroutine of its own and waits for it until ctx ends. A function that ignores ctx runs on; its answer is
// dropped.
func Call[T any](ctx context.Context, f func(context.Context) (T, error)) (T, error) {
	type answer struct {
		v   T
		err error
	}
	done := make(chan answer, 1)
	go func() {
		var a answer
		defer func() {
			if p := recover(); p != nil {
				a.err = Panicked(p)
			}
			done <- a
		}()
		a.err = errors.New("it ended its goroutine") // kept where f calls runtime.Goexit
		a.v, a.err = f(ctx)
	}()
	select {
	case a := <-done:
		return a.v, a.err
	case <-ctx.Done():
		var none T
		return none, fmt.Errorf("it has not come back: %w", ctx.Err())
	}
}

// Panicked is the error of a recovered value, to be called in the deferred function that recovers.
func Panicked(p any) error { return &panicError{p, debug.Stack()} }

// Stack is where a function panicked, for a log; empty for another error.
func Stack(err error) string {
	if p := (*panicError)(nil); errors.As(err, &p) {
		return string(p.stack)
	}
	return ""
}

type panicError struct {
	value any
	stack []byte
}

func (p *panicError) Error() string { return fmt.Sprintf("%v: %v", ErrPanicked, p.value) }

func (p *panicError) Unwrap() error { return ErrPanicked }
