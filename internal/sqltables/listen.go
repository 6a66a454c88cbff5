// Wait: who waits for a change is woken by another process's write.

package sqltables

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/apitoken-go/apitoken/store"
)

// listener wakes those who wait: at once where this process wrote, and by looking at all namespaces that are waited for
// where another one may have.
type listener struct {
	e *Engine

	mu      sync.Mutex // guards waiters and running
	waiters map[string]map[*waiter]bool
	running bool

	ctx  context.Context
	stop context.CancelFunc
	done sync.WaitGroup
}

type waiter struct {
	after store.Position
	woken chan struct{}
}

func newListener(e *Engine) *listener {
	l := &listener{e: e, waiters: map[string]map[*waiter]bool{}}
	l.ctx, l.stop = context.WithCancel(context.Background())
	return l
}

func (l *listener) close() {
	l.mu.Lock() // nobody starts it afterwards
	l.stop()
	l.mu.Unlock()
	l.done.Wait()
}

const (
	lookLeast = 10   // the looks take no more than this part of the time
	lookPage  = 1000 // namespaces in one question
)

// Wait is that of [store.Waker].
func (s *Store) Wait(ctx context.Context, p store.Position) error {
	w, leave := s.hear.join(s.ns, p)
	defer leave()
	// What was written before we joined is looked for, not waited for.
	head, err := await(ctx, s, func(ctx context.Context) (store.Position, error) {
		sp, _, err := s.read(ctx, "record", "", " AND 1 = 0", 0)
		if err != nil {
			return store.Position{}, err
		}
		return sp.position(), nil
	})
	if err != nil || w.behind(head) {
		return err
	}
	select {
	case <-w.woken:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-s.hear.ctx.Done():
		return s.Closed
	}
}

func (w *waiter) behind(head store.Position) bool {
	return head.N > w.after.N || head.History != w.after.History && w.after != (store.Position{})
}

func (l *listener) join(ns string, after store.Position) (w *waiter, leave func()) {
	w = &waiter{after, make(chan struct{}, 1)}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.waiters[ns] == nil {
		l.waiters[ns] = map[*waiter]bool{}
	}
	l.waiters[ns][w] = true
	if !l.running && l.ctx.Err() == nil {
		l.running = true
		l.done.Go(l.look)
	}
	return w, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.waiters[ns], w)
		if len(l.waiters[ns]) == 0 {
			delete(l.waiters, ns)
		}
	}
}

// wake wakes who waits for a namespace that this process has written.
func (l *listener) wake(ns string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for w := range l.waiters[ns] {
		w.wake()
	}
}

func (w *waiter) wake() {
	select {
	case w.woken <- struct{}{}:
	default:
	}
}

// look asks for the positions of all namespaces that are waited for, again and again.
func (l *listener) look() {
	for wait := l.e.Look; pause(l.ctx, wait); {
		began := time.Now()
		l.mu.Lock()
		names := slices.Collect(maps.Keys(l.waiters))
		l.mu.Unlock()
		for page := range slices.Chunk(names, lookPage) {
			l.lookAt(page)
		}
		wait = max(l.e.Look, lookLeast*time.Since(began))
	}
}

func (l *listener) lookAt(names []string) {
	ctx, cancel := context.WithTimeout(l.ctx, min(l.e.Timeout, time.Second))
	defer cancel()
	var in []string
	for _, n := range names {
		in = append(in, l.e.Text(n))
	}
	rows, err := l.e.DB.QueryContext(ctx, "SELECT ns, head, history FROM "+l.e.Prefix+"namespace WHERE ns IN ("+strings.Join(in, ", ")+")")
	if err != nil {
		return // those who wait poll as well
	}
	defer rows.Close()
	for rows.Next() {
		var ns string
		var head, history int64
		if rows.Scan(&ns, &head, &history) != nil {
			return
		}
		l.mu.Lock()
		for w := range l.waiters[ns] {
			if w.behind(position(history, head)) {
				w.wake()
			}
		}
		l.mu.Unlock()
	}
}
