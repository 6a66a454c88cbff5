// Many records, read sixteen at a time.

package commit

import (
	"errors"
	"sync"
	"sync/atomic"

	"github.com/apitoken-go/apitoken/internal/fault"
)

// atOnce is how many reads of one call are under way.
const atOnce = 16

// errExited is of a read that ended its goroutine, as a test's store does that fails the test.
var errExited = errors.New("a read did not come back")

// Answer is what was read, or why not. After an error Got is zero.
type Answer[Q, T any] struct {
	Of  Q
	Got T
	Err error
}

// All calls read with each of list, sixteen at a time, and returns the answers in the same order. Once read has returned an error other
// than fault.NotFound, All begins no more, and what is left gets that error, so that a silent store is waited for once. A panic of read
// becomes one of the caller.
func All[Q, T any](list []Q, read func(Q) (T, error)) []Answer[Q, T] {
	answers := make([]Answer[Q, T], len(list))
	var failed atomic.Pointer[error]
	ask := func(i int) {
		a := &answers[i]
		a.Of, a.Err = list[i], errExited
		if err := failed.Load(); err != nil {
			a.Err = *err
			return
		}
		got, err := read(a.Of)
		if a.Err = err; err == nil {
			a.Got = got
		} else if !errors.Is(err, fault.NotFound) {
			failed.Store(&err)
		}
	}
	if len(list) == 1 {
		ask(0)
		return answers
	}
	var wg sync.WaitGroup
	var panicked atomic.Pointer[any]
	room := make(chan struct{}, min(len(list), atOnce))
	for i := range list {
		room <- struct{}{}
		wg.Go(func() {
			defer func() {
				if p := recover(); p != nil {
					panicked.Store(&p)
				}
				<-room
			}()
			ask(i)
		})
	}
	wg.Wait()
	if p := panicked.Load(); p != nil {
		panic(*p)
	}
	return answers
}
