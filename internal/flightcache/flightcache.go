// Package flightcache keeps a bounded number of values that are slow to read, and reads each once however many callers ask
// for it at the same time (a single flight).
//
// It promises that a value is not kept, nor given to a caller that asks afterwards, if it changed while it was read;
// that a caller stops waiting when its context ends while the read continues for the others; that a read which panics
// panics in its callers and not in a goroutine of the cache's own, which would end the program; and that no read is under
// way when Close returns.
//
// Each shard has a lock of its own, held for the maps alone: no read runs under it. Only the function that begins a read is
// called with it held. Nothing else is locked while it is held, but by that function.
//
// Package apikey keeps API keys in one Cache, and the root an issuer's answers about opaque tokens in another; package httpauth shares
// refreshes of browser sessions by a third, which keeps nothing.
package flightcache

import (
	"context"
	"errors"
	"sync"
	"time"
)

// Config says what a Cache keeps. The zero Config keeps nothing.
type Config[K comparable, V any] struct {
	// Shard spreads keys over 64 shards; nil: there is one. Only its lowest six bits count.
	Shard func(K) byte
	// Values and Absents bound what a shard keeps. A full shard forgets any one to make room.
	Values, Absents int
	// Fresh reports whether a kept value still answers; nil: until it is dropped.
	Fresh func(v V, now time.Time) bool
	// Repeat is how often a read is repeated whose value changed meanwhile. Zero: who waited gets the value as it was, and
	// later callers read anew.
	Repeat int
}

// Absent is the error of a read that found nothing. Until then the cache answers Err without a read.
type Absent struct {
	Err   error
	Until time.Time
}

func (a *Absent) Error() string { return a.Err.Error() }

// Unwrap returns Err.
func (a *Absent) Unwrap() error { return a.Err }

// What Load returns besides the errors of reads.
var (
	ErrClosed   = errors.New("closed")
	ErrChanging = errors.New("it changes all the time")
	ErrNoAnswer = errors.New("the read ended without an answer")
)

const shards = 64

// Cache is safe for concurrent use. Use New.
type Cache[K comparable, V any] struct {
	c      Config[K, V]
	shards []shard[K, V]

	mu     sync.Mutex // guards closed, and that flying does not grow after it
	closed bool
	flying sync.WaitGroup
}

// shard makes its maps when they are needed: an idle tenant has none.
type shard[K comparable, V any] struct {
	mu      sync.RWMutex // guards all below
	values  map[K]V
	absent  map[K]missing
	flights map[K]*flight[V]
}

// missing is an Absent that a read at since brought. A clock that was set back before since ends it.
type missing struct {
	*Absent
	since time.Time
}

// flight is one read that many callers wait for.
type flight[V any] struct {
	void     bool // the value changed while it was read; guarded by the shard's lock
	began    time.Time
	done     chan struct{}
	v        V
	err      error
	panicked any
}

// New returns an empty Cache.
func New[K comparable, V any](c Config[K, V]) *Cache[K, V] {
	n := 1
	if c.Shard != nil {
		n = shards
	}
	return &Cache[K, V]{c: c, shards: make([]shard[K, V], n)}
}

func (c *Cache[K, V]) shard(k K) *shard[K, V] {
	if c.c.Shard == nil {
		return &c.shards[0]
	}
	return &c.shards[c.c.Shard(k)%shards]
}

// Get returns the value that is kept of k, fresh or not.
func (c *Cache[K, V]) Get(k K) (V, bool) {
	s := c.shard(k)
	s.mu.RLock()
	v, ok := s.values[k]
	s.mu.RUnlock()
	return v, ok
}

// Load returns the value of k, and reads it if no fresh one is kept. begin returns the read: it is called for the one caller
// whose read is not under way yet, with the shard locked, and may refuse by an error. The error is that of begin, of the
// read, the Err of an Absent, that of ctx, ErrClosed, ErrChanging
// or ErrNoAnswer.
func (c *Cache[K, V]) Load(ctx context.Context, k K, now time.Time, begin func() (read func() (V, error), err error)) (v V, _ error) {
	s := c.shard(k)
	f, v, err := c.board(s, k, now, begin)
	if f == nil {
		return v, err
	}
	select {
	case <-f.done:
		if f.panicked != nil {
			panic(f.panicked)
		}
		return f.v, f.err
	case <-ctx.Done():
		return v, ctx.Err()
	}
}

// board returns the flight of k, or what is known without one.
func (c *Cache[K, V]) board(s *shard[K, V], k K, now time.Time, begin func() (func() (V, error), error)) (_ *flight[V], v V, _ error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if known, ok := s.values[k]; ok && (c.c.Fresh == nil || c.c.Fresh(known, now)) {
		return nil, known, nil
	}
	if a, ok := s.absent[k]; ok && now.Before(a.Until) && !now.Before(a.since) {
		return nil, v, a.Err
	}
	if f := s.flights[k]; f != nil {
		return f, v, nil
	}

	if !c.takeOff() {
		return nil, v, ErrClosed
	}
	read, err := begin()
	if err != nil {
		c.flying.Done()
		return nil, v, err
	}
	f := &flight[V]{began: now, done: make(chan struct{}), err: ErrNoAnswer}
	if s.flights == nil {
		s.flights = map[K]*flight[V]{}
	}
	s.flights[k] = f
	go func() {
		defer c.flying.Done()
		c.fly(s, f, k, read)
	}()
	return f, v, nil
}

// takeOff counts a read that begins. False: the cache is closed.
func (c *Cache[K, V]) takeOff() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.flying.Add(1)
	return true
}

func (c *Cache[K, V]) fly(s *shard[K, V], f *flight[V], k K, read func() (V, error)) {
	defer func() {
		f.panicked = recover()
		s.mu.Lock()
		if s.flights[k] == f {
			delete(s.flights, k)
		}
		s.mu.Unlock()
		close(f.done)
	}()
	for try := 0; ; try++ {
		v, err := read()
		if c.land(s, f, k, v, err, try == c.c.Repeat) {
			return
		}
	}
}

// land gives the flight its answer and keeps it. It reports false if the read is to be repeated.
func (c *Cache[K, V]) land(s *shard[K, V], f *flight[V], k K, v V, err error, last bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.void && !last {
		f.void = false
		return false
	}
	if f.void && c.c.Repeat > 0 {
		f.err = ErrChanging
		return true
	}

	var absent *Absent
	if errors.As(err, &absent) {
		err = absent.Err
	}
	f.v, f.err = v, err
	switch {
	case f.void:
	case absent != nil:
		delete(s.values, k)
		room(&s.absent, c.c.Absents)
		s.absent[k] = missing{absent, f.began}
	case err == nil && c.c.Values > 0:
		delete(s.absent, k)
		if _, again := s.values[k]; !again {
			room(&s.values, c.c.Values)
		}
		s.values[k] = v
	}
	return true
}

// room makes a map, and place for one more in it.
func room[K comparable, V any](m *map[K]V, limit int) {
	if *m == nil {
		*m = map[K]V{}
	}
	for old := range *m {
		if len(*m) < limit {
			break
		}
		delete(*m, old)
	}
}

// Changed says that the value of k is another one now, from whatever was known before: a read of it that is under way is
// void. It returns the value that is kept.
func (c *Cache[K, V]) Changed(k K) (V, bool) {
	s := c.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.absent, k)
	if f := s.flights[k]; f != nil {
		c.void(s, k, f)
	}
	v, ok := s.values[k]
	return v, ok
}

// void marks a flight. The caller holds the shard's lock.
func (c *Cache[K, V]) void(s *shard[K, V], k K, f *flight[V]) {
	f.void = true
	if c.c.Repeat == 0 {
		delete(s.flights, k)
	}
}

// Replace keeps v if some value of k is kept.
func (c *Cache[K, V]) Replace(k K, v V) {
	s := c.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.values[k]; ok {
		s.values[k] = v
	}
}

// Drop forgets the value of k.
func (c *Cache[K, V]) Drop(k K) {
	s := c.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.values, k)
}

// DropAll forgets the values for which match is true, and makes all reads under way void. A nil match forgets everything.
func (c *Cache[K, V]) DropAll(match func(V) bool) {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		if match == nil {
			s.values, s.absent = nil, nil
		}
		for k, v := range s.values {
			if match(v) {
				delete(s.values, k)
			}
		}
		for k, f := range s.flights {
			c.void(s, k, f)
		}
		s.mu.Unlock()
	}
}

// Close lets no read begin any more and waits for those under way. What is kept still answers.
func (c *Cache[K, V]) Close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.flying.Wait()
}
