package redisstore

import (
	"context"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/apitoken-go/apitoken/store"
)

// One subscription for all namespaces wakes whoever waits. It says that there may be something, nothing more: what
// is said while its connection is away is said to nobody, so whoever waits looks by himself too.
const (
	lookEvery = time.Second     // between half of that and one and a half, so that a fleet doesn't look all at once
	lookers   = 1000            // namespaces that wait in one process look as often; more of them look less often
	pingAfter = 5 * time.Second // of silence, so that a connection which died unheard is found
)

// channel is where the scripts say which namespace has new state.
func (s *Store) channel() string { return s.o.Prefix + ":wake" }

type listener struct {
	mu      sync.Mutex // guards what follows
	waiters map[string]map[chan struct{}]bool
	running bool
}

// Wait implements [store.Waker]: it returns when the namespace has state after p, when that may be so, when the store is
// closed, or when ctx ends.
func (n *space) Wait(ctx context.Context, p store.Position) error {
	if err := n.usable(ctx); err != nil {
		return err
	}
	woken, each, leave := n.s.hear(n.name)
	defer leave()
	for {
		r, l, err := n.ask(ctx, scriptHead)
		if err != nil {
			return err
		}
		head, err := strconv.ParseUint(str(r[0]), 16, 63)
		if err != nil {
			return errValue("a place in the order of state does not read")
		}
		if int64(head) > p.N || p.History != l.id && p != (store.Position{}) {
			return nil
		}
		look := time.NewTimer(each/2 + rand.N(each))
		select {
		case <-woken:
			look.Stop()
			return nil
		case <-look.C:
		case <-n.s.ctx.Done():
			look.Stop()
			return ErrClosed
		case <-ctx.Done():
			look.Stop()
			return ctx.Err()
		}
	}
}

// hear joins those who wait for a namespace, and says how often to look besides.
func (s *Store) hear(name string) (woken chan struct{}, each time.Duration, leave func()) {
	l := &s.hears
	woken = make(chan struct{}, 1)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.waiters[name] == nil {
		l.waiters[name] = map[chan struct{}]bool{}
	}
	l.waiters[name][woken] = true
	if !l.running {
		l.running = s.background(s.listen) == nil
	}
	return woken, lookEvery * time.Duration(1+len(l.waiters)/lookers), func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.waiters[name], woken)
		if len(l.waiters[name]) == 0 {
			delete(l.waiters, name)
		}
	}
}

func (l *listener) wake(name string, all bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for other, set := range l.waiters {
		if !all && other != name {
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

// listen keeps a subscription until the store is closed.
func (s *Store) listen() {
	for wait := firstWait; s.ctx.Err() == nil; {
		began := time.Now()
		s.listenOnce()
		if time.Since(began) > 10*wait { // it was up for a while: whoever ended it is gone
			wait = firstWait
		}
		pause(s.ctx, s.ctx, &wait)
	}
}

// listenOnce hears until the connection ends.
func (s *Store) listenOnce() {
	ps := s.client.Subscribe(s.ctx, s.channel())
	stop := context.AfterFunc(s.ctx, func() { _ = ps.Close() })
	defer func() {
		if stop() {
			_ = ps.Close()
		}
	}()
	for silent := false; ; {
		msg, err := ps.ReceiveTimeout(s.ctx, pingAfter)
		switch {
		case err != nil && !silent && isTimeout(err):
			if ps.Ping(s.ctx) != nil {
				return
			}
			silent = true
			continue
		case err != nil:
			return
		}
		silent = false
		switch msg := msg.(type) {
		case *redis.Subscription:
			s.hears.wake("", true) // what happened before it began
		case *redis.Message:
			s.hears.wake(msg.Payload, false)
		}
	}
}

func isTimeout(err error) bool {
	t, ok := err.(interface{ Timeout() bool })
	return ok && t.Timeout()
}
