package apitoken

import (
	"context"
	"sync"
	"time"

	"github.com/apitoken-go/apitoken/internal/opaque"
)

// keyShelf is a process's memory of API keys: those that were read, and for a moment those that are not there. It is
// bounded; a full shard forgets any one, which is then read again.
type keyShelf struct {
	shards [shelfShards]shelfShard

	mu     sync.Mutex // guards closed, and that flying does not grow behind it
	closed bool
	flying sync.WaitGroup
}

const (
	shelfShards = 64
	shelfSize   = 2048 // keys in a shard: about 130,000 in all, at some 700 bytes each
	missSize    = 256
	missFor     = 5 * time.Second
)

// shelfShard makes its maps as they are needed: an idle tenant has none.
type shelfShard struct {
	mu      sync.RWMutex // guards all below
	keys    map[opaque.ID]*knownKey
	missing map[opaque.ID]time.Time
	flights map[opaque.ID]*flight
}

// flight is one read of a key that many callers wait for.
type flight struct {
	done  chan struct{}
	key   *knownKey
	err   error
	stale bool // the key changed while it was read: read again
}

func newKeyShelf() *keyShelf { return &keyShelf{} }

// takeOff counts a read that begins; the caller calls flying.Done. False: the shelf is closed.
func (s *keyShelf) takeOff() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.flying.Add(1)
	return true
}

// close waits for the reads under way: the store may be closed when it returns.
func (s *keyShelf) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.flying.Wait()
}

func (s *keyShelf) clear() {
	for i := range s.shards {
		h := &s.shards[i]
		h.mu.Lock()
		h.keys, h.missing = nil, nil
		for _, f := range h.flights {
			f.stale = true
		}
		h.mu.Unlock()
	}
}

func (s *keyShelf) shard(id opaque.ID) *shelfShard { return &s.shards[id[15]%shelfShards] }

func (s *keyShelf) get(id opaque.ID) *knownKey {
	h := s.shard(id)
	h.mu.RLock()
	e := h.keys[id]
	h.mu.RUnlock()
	return e
}

// changed says that the store has a newer form of id: reads under way are void. It returns what is known of it.
func (s *keyShelf) changed(id opaque.ID) *knownKey {
	h := s.shard(id)
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.missing, id)
	if f := h.flights[id]; f != nil {
		f.stale = true
	}
	return h.keys[id]
}

func (s *keyShelf) replace(id opaque.ID, e *knownKey) {
	h := s.shard(id)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.keys[id] != nil {
		h.keys[id] = e
	}
}

// load returns the key, reading it by read once for all who ask meanwhile. Whoever's ctx ends stops waiting.
func (s *keyShelf) load(ctx context.Context, id opaque.ID, now time.Time, read func() (*knownKey, error)) (*knownKey, error) {
	h := s.shard(id)
	h.mu.Lock()
	if e := h.keys[id]; e != nil {
		h.mu.Unlock()
		return e, nil
	}
	if at, ok := h.missing[id]; ok && now.Sub(at) < missFor && !now.Before(at) {
		h.mu.Unlock()
		return nil, fail(ErrInvalidToken, "no such API key")
	}
	f := h.flights[id]
	if f == nil {
		if !s.takeOff() {
			h.mu.Unlock()
			return nil, &Error{Code: ErrUnavailable, Detail: "closed"}
		}
		f = &flight{done: make(chan struct{})}
		if h.flights == nil {
			h.flights = map[opaque.ID]*flight{}
		}
		h.flights[id] = f
		go func() {
			defer s.flying.Done()
			h.fly(f, id, now, read)
		}()
	}
	h.mu.Unlock()
	select {
	case <-f.done:
		return f.key, f.err
	case <-ctx.Done():
		return nil, unavailable(ctx.Err(), "waiting for the store")
	}
}

func (h *shelfShard) fly(f *flight, id opaque.ID, now time.Time, read func() (*knownKey, error)) {
	for try := 0; ; try++ {
		key, err := read()
		h.mu.Lock()
		if f.stale && try < 3 {
			f.stale = false
			h.mu.Unlock()
			continue
		}
		switch {
		case f.stale:
			key, err = nil, &Error{Code: ErrUnavailable, RetryAfter: retryHint, Detail: "the key changes all the time"}
		case err == nil:
			if len(h.keys) >= shelfSize {
				for old := range h.keys {
					delete(h.keys, old)
					break
				}
			}
			if h.keys == nil {
				h.keys = map[opaque.ID]*knownKey{}
			}
			h.keys[id] = key
		default:
			if e, ok := err.(*Error); ok && e.Code == ErrInvalidToken {
				if len(h.missing) >= missSize {
					clear(h.missing)
				}
				if h.missing == nil {
					h.missing = map[opaque.ID]time.Time{}
				}
				h.missing[id] = now
			}
		}
		delete(h.flights, id)
		f.key, f.err = key, err
		h.mu.Unlock()
		close(f.done)
		return
	}
}

// drop forgets id: it is read again when it is presented.
func (s *keyShelf) drop(id opaque.ID) {
	h := s.shard(id)
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.keys, id)
}
