// Package watch holds the observers that a host attached, and tells them of calls.
//
// A [List] is read on the hot path and seldom changed: Any and Observe take no lock. An observer that panics is logged once, and
// the call that it observed goes on. It stands on package hook alone; the root's validators and services have one each.
package watch

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apitoken-go/apitoken/internal/hook"
)

// Observer is told of calls that ended, each by an O.
type Observer[O any] interface {
	Observe(ctx context.Context, o O)
}

// List is the observers of one service or validator. The zero List has none.
type List[O any] struct {
	Log *slog.Logger   // nil: silent
	Op  func(O) string // what a log line calls an observation; required with Log

	list atomic.Pointer[[]*watcher[O]]
	mu   sync.Mutex // of writers
}

// watcher is one Observer.
type watcher[O any] struct {
	Observer[O]
	late atomic.Int32 // calls that have not come back
	told atomic.Bool  // its panic was logged
}

const (
	patience = time.Second
	maxLate  = 16 // calls under way at most of an observer that blocks; it misses the rest
)

// call keeps a panic from the caller.
func (l *List[O]) call(ctx context.Context, x *watcher[O], o O) {
	defer func() {
		if p := recover(); p != nil && l.Log != nil && !x.told.Swap(true) {
			l.Log.Error("apitoken: an Observer panicked; it is told of this once", "op", l.Op(o), "error", p, "stack", hook.Stack(hook.Panicked(p)))
		}
	}()
	x.Observe(ctx, o)
}

// Any reports whether there is an observer.
func (l *List[O]) Any() bool { return l.list.Load() != nil }

// Observe tells every observer of o, and waits for each.
func (l *List[O]) Observe(ctx context.Context, o O) {
	if list := l.list.Load(); list != nil {
		for _, x := range *list {
			l.call(ctx, x, o)
		}
	}
}

// ObserveWithin is Observe for calls that must come back though an observer does not: it waits a second for all of them together.
func (l *List[O]) ObserveWithin(ctx context.Context, o O) {
	list := l.list.Load()
	if list == nil {
		return
	}
	var t *time.Timer
	for _, x := range *list {
		if x.late.Add(1) > maxLate {
			x.late.Add(-1)
			continue
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			defer x.late.Add(-1)
			l.call(ctx, x, o)
		}()
		if t == nil {
			t = time.NewTimer(patience)
			defer t.Stop()
		}
		select {
		case <-done:
		case <-t.C:
			t.Reset(0)
		}
	}
}

// Add adds x, until stop is called.
func (l *List[O]) Add(x Observer[O]) (stop func()) {
	p := &watcher[O]{Observer: x}
	l.mu.Lock()
	defer l.mu.Unlock()
	var now []*watcher[O]
	if old := l.list.Load(); old != nil {
		now = slices.Clone(*old)
	}
	now = append(now, p)
	l.list.Store(&now)

	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		old := l.list.Load()
		if old == nil {
			return
		}
		now := slices.DeleteFunc(slices.Clone(*old), func(x *watcher[O]) bool { return x == p })
		if len(now) == 0 {
			l.list.Store(nil)
			return
		}
		l.list.Store(&now)
	}
}
