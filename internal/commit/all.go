// Several records at once: a caller that needs many waits about as long as for one.

package commit

import (
	"sync"
	"sync/atomic"
)

// atOnce is how many reads of one call are under way.
const atOnce = 16

// Answer is what was read, or why not.
type Answer[T any] struct {
	Of  string
	Got T
	Err error
}

// All calls read with each of ids, several at once, and returns the answers in the order of ids. A panic of read is the caller's.
func All[T any](ids []string, read func(id string) (T, error)) []Answer[T] {
	list := make([]Answer[T], len(ids))
	var wg sync.WaitGroup
	var panicked atomic.Pointer[any]
	room := make(chan struct{}, atOnce)
	for i, id := range ids {
		room <- struct{}{}
		wg.Go(func() {
			defer func() {
				if p := recover(); p != nil {
					panicked.Store(&p)
				}
				<-room
			}()
			list[i].Of = id
			list[i].Got, list[i].Err = read(id)
		})
	}
	wg.Wait()
	if p := panicked.Load(); p != nil {
		panic(*p)
	}
	return list
}
