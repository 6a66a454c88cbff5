package pgstore

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/apitoken-go/apitoken/store"
)

// listener holds one connection that hears which namespaces changed, for all who wait. It is started by the first
// one, comes back by itself, and wakes everybody when it does: what was said meanwhile was said to nobody.
type listener struct {
	e       *engine
	channel string

	mu      sync.Mutex // guards waiters and running
	waiters map[string]map[chan struct{}]bool
	running bool

	ctx  context.Context
	stop context.CancelFunc
	done sync.WaitGroup
}

func newListener(e *engine) *listener {
	l := &listener{e: e, channel: fmt.Sprintf("apitoken_%x", uint64(lockKey(e.o.qualified(), "channel"))), waiters: map[string]map[chan struct{}]bool{}}
	l.ctx, l.stop = context.WithCancel(context.Background())
	return l
}

func (l *listener) close() {
	l.stop()
	l.done.Wait()
}

// How often Wait looks for itself: behind a pooler because it hears nothing, else because what a connection that hangs
// was told is told to nobody.
const (
	lookPooled = 100 * time.Millisecond
	lookLost   = time.Second
)

// Wait implements [store.Waker]: it returns when the namespace may have state after p. A notification makes it quick; it
// looks for itself as well, each second, and ten times a second behind a transaction pooler, where nothing is heard.
func (s *Store) Wait(ctx context.Context, p store.Position) error {
	woken, forget := s.hear.join(s.ns)
	defer forget()
	look := lookLost
	if s.o.Pooler {
		look = lookPooled
	}
	for {
		// What was written before we joined is looked for, not waited for.
		done, err := s.current(ctx)
		if err != nil {
			return err
		}
		if done.N > p.N || done.History != p.History && p != (store.Position{}) {
			return nil
		}
		again := time.NewTimer(look/2 + rand.N(look))
		select {
		case <-woken:
			again.Stop()
			return nil
		case <-again.C:
		case <-ctx.Done():
			again.Stop()
			return ctx.Err()
		case <-s.hear.ctx.Done():
			again.Stop()
			return fmt.Errorf("pgstore: closed")
		}
	}
}

func (s *Store) current(ctx context.Context) (store.Position, error) {
	if err := s.open(ctx); err != nil {
		return store.Position{}, err
	}
	c, err := s.head(ctx)
	return c.Head, err
}

func (l *listener) join(ns string) (woken chan struct{}, forget func()) {
	woken = make(chan struct{}, 1)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.waiters[ns] == nil {
		l.waiters[ns] = map[chan struct{}]bool{}
	}
	l.waiters[ns][woken] = true
	if !l.running && !l.e.o.Pooler && l.ctx.Err() == nil {
		l.running = true
		l.done.Add(1)
		go l.run()
	}
	return woken, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.waiters[ns], woken)
		if len(l.waiters[ns]) == 0 {
			delete(l.waiters, ns)
		}
	}
}

func (l *listener) wake(ns string, all bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for name, set := range l.waiters {
		if !all && name != ns {
			continue
		}
		for c := range set {
			select {
			case c <- struct{}{}:
			default:
			}
		}
	}
}

func (l *listener) run() {
	defer l.done.Done()
	wait := 20 * time.Millisecond
	for l.ctx.Err() == nil {
		began := time.Now()
		l.listen()
		if time.Since(began) > time.Minute {
			wait = 20 * time.Millisecond
		}
		t := time.NewTimer(wait/2 + rand.N(wait))
		select {
		case <-t.C:
		case <-l.ctx.Done():
			t.Stop()
		}
		wait = min(2*wait, 5*time.Second)
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
