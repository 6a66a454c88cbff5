// Several records at once: a caller that needs many waits about as long as for one.

package commit

import (
	"iter"
	"sync"
	"sync/atomic"
)

// atOnce is how many reads of one call are under way.
const atOnce = 16

// Answer is what was read, or why not. After an error Got is zero.
type Answer[Q, T any] struct {
	Of  Q
	Got T
	Err error
}

// All calls read with each of list, several at once, and returns the answers in the same order. A panic of read is the caller's.
func All[Q, T any](list []Q, read func(Q) (T, error)) []Answer[Q, T] {
	answers := make([]Answer[Q, T], len(list))
	ask := func(i int) {
		a := &answers[i]
		a.Of = list[i]
		if got, err := read(a.Of); err != nil {
			a.Err = err
		} else {
			a.Got = got
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

// Each gives what read makes of each that list gives, in the same order. It reads ahead, for several at once; errors of list stand in
// their places.
func Each[Q, T any](list iter.Seq2[Q, error], read func(Q) T) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var ahead []Q
		give := func() bool {
			answers := All(ahead, func(q Q) (T, error) { return read(q), nil })
			ahead = ahead[:0]
			for _, a := range answers {
				if !yield(a.Got, nil) {
					return false
				}
			}
			return true
		}
		for q, err := range list {
			if err == nil {
				ahead = append(ahead, q)
			}
			if (err != nil || len(ahead) == atOnce) && !give() {
				return
			}
			if err != nil {
				var none T
				if !yield(none, err) {
					return
				}
			}
		}
		give()
	}
}
