package pgstore

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/apitoken-go/apitoken/store"
)

// listener wakes those who wait, for all namespaces at once: by one connection that hears which of them changed, which comes
// back by itself and then wakes everybody, because what was said meanwhile was said to nobody; and by looking, for what a
// connection that hangs was told, and behind a pooler, where nothing is heard.
type listener struct {
	e       *engine
	channel string

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

func newListener(e *engine) *listener {
	l := &listener{e: e, channel: fmt.Sprintf("apitoken_%x", uint64(lockKey(e.o.qualified(), "channel"))), waiters: map[string]map[*waiter]bool{}}
	l.ctx, l.stop = context.WithCancel(context.Background())
	return l
}

func (l *listener) close() {
	l.mu.Lock() // nobody starts it afterwards
	l.stop()
	l.mu.Unlock()
	l.done.Wait()
}

// How often it looks: seldom where notifications come, often behind a transaction pooler. It never spends more than a
// tenth of its time on it, however many namespaces there are.
const (
	lookLost   = time.Second
	lookPooled = 100 * time.Millisecond
	lookLeast  = 10
	lookPage   = 1000 // namespaces in one question
)

// Wait implements [store.Waker]: it returns when the namespace may have state after p. A notification makes it quick; all
// namespaces that are waited for are looked at as well, each second, and ten times a second behind a transaction pooler.
func (s *Store) Wait(ctx context.Context, p store.Position) error {
	w, leave := s.hear.join(s.ns, p)
	defer leave()
	// What was written before we joined is looked for, not waited for.
	now, err := s.headOpened(ctx)
	if err != nil {
		return err
	}
	if w.behind(now.Head) {
		return nil
	}
	select {
	case <-w.woken:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-s.hear.ctx.Done():
		return ErrClosed
	}
}

func (w *waiter) behind(head store.Position) bool {
	return head.N > w.after.N || head.History != w.after.History && w.after != (store.Position{})
}

func (w *waiter) wake() {
	select {
	case w.woken <- struct{}{}:
	default:
	}
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
		if !l.e.o.Pooler {
			l.done.Go(l.run)
		}
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

// look asks for the positions of all namespaces that are waited for, again and again.
func (l *listener) look() {
	least := lookLost
	if l.e.o.Pooler {
		least = lookPooled
	}
	for wait := least; pause(l.ctx, wait); {
		began := time.Now()
		l.mu.Lock()
		names := slices.Collect(maps.Keys(l.waiters))
		l.mu.Unlock()
		for page := range slices.Chunk(names, lookPage) {
			l.lookAt(page)
		}
		wait = max(least, lookLeast*time.Since(began))
	}
}

func (l *listener) lookAt(names []string) {
	ctx, cancel := context.WithTimeout(l.ctx, min(l.e.o.Timeout, time.Second))
	defer cancel()
	rows, err := l.e.pool.Query(ctx, l.e.sql.heads, l.e.args(names)...)
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

func (l *listener) wake(ns string, all bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for name, set := range l.waiters {
		if !all && name != ns {
			continue
		}
		for w := range set {
			w.wake()
		}
	}
}

func (l *listener) run() {
	const least, most = 20 * time.Millisecond, 5 * time.Second
	for wait := time.Duration(least); l.ctx.Err() == nil; wait = min(2*wait, most) {
		began := time.Now()
		l.listen()
		if time.Since(began) > 10*wait { // it was up for a while: whoever ended it is gone
			wait = least
		}
		pause(l.ctx, wait)
	}
}

// listen hears until the connection ends. The connection is taken out of the pool: what listens is of no use to others.
func (l *listener) listen() {
	c, err := l.e.pool.Acquire(l.ctx)
	if err != nil {
		return
	}
	conn := c.Hijack()
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		conn.Close(ctx)
	}()
	if _, err := conn.Exec(l.ctx, "LISTEN "+l.channel); err != nil {
		return
	}
	l.wake("", true)
	for {
		n, err := conn.WaitForNotification(l.ctx)
		if err != nil {
			return
		}
		l.wake(n.Payload, false)
	}
}
