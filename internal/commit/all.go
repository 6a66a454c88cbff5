// Several records at once: a caller that needs many waits about as long as for one.

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

// All calls read with each of list, several at once, and returns the answers in the same order. After an error that is not
// fault.NotFound it begins no more, and what is left has that error: a store that is silent is waited for once. A panic of read is the
// caller's.
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
