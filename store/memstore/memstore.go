// Package memstore keeps an apitoken service in memory: for tests, for examples, and for hosts whose tokens may end with
// the process. It has all of the contract in package store but durability, and each [New] is a new History, so that
// whoever followed another one notices.
//
//	svc, err := apitoken.New(apitoken.Config{Store: memstore.New(), …})
package memstore

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	"github.com/apitoken-go/apitoken/store"
)

// Store is one namespace in memory, with others of the same [New] beside it. It is safe for concurrent use.
type Store struct {
	space
	all *engine
}

// engine is what the namespaces of one New share.
type engine struct {
	now     func() time.Time
	mono    func() time.Duration // time that passes, however now is set; nil: only now's does
	history uint64

	mu     sync.Mutex // guards spaces
	spaces map[string]*Store
}

// space is the content of one namespace.
type space struct {
	mu       sync.RWMutex // guards everything below; never held while a caller runs or waits
	tables   map[store.Kind]*table
	state    stateLog
	clock    int64         // ms, the latest stamp that now gave
	ticked   time.Duration // mono, when it did
	head     int64         // N of the last state change
	births   int64         // number of the last record or event that was created
	trimmed  int64         // number of the last event that was purged
	readOnly bool
	changed  chan struct{} // closed at the next state change; nil while nobody waits
}

var (
	_ store.Store = (*Store)(nil)
	_ store.Waker = (*Store)(nil)
)

// New returns an empty store.
func New() *Store {
	start := time.Now()
	return newEngine(time.Now, func() time.Duration { return time.Since(start) }).namespace("")
}

// NewWithClock returns an empty store whose clock is now, for tests that move time. now is called while a lock of the
// store is held, so it must not call the store.
func NewWithClock(now func() time.Time) *Store { return newEngine(now, nil).namespace("") }

func newEngine(now func() time.Time, mono func() time.Duration) *engine {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return &engine{now: now, mono: mono, history: binary.BigEndian.Uint64(b[:]) | 1, spaces: map[string]*Store{}}
}

// Namespace returns the store of another namespace beside this one: its records, order and events are its own. The same
// name gives the same store, from each namespace of one New; the empty name gives the one that New returned.
func (s *Store) Namespace(name string) *Store { return s.all.namespace(name) }

func (e *engine) namespace(name string) *Store {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.spaces[name]
	if s == nil {
		s = &Store{all: e}
		e.spaces[name] = s
	}
	return s
}

// SetReadOnly makes the namespace refuse writes with [store.ErrReadOnly], or take them again: for a service that moves
// to another store.
func (s *Store) SetReadOnly(_ context.Context, on bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.readOnly = on
	return nil
}

// ms is the store's clock for an answer that writes nothing. It does not go back behind a stamp. Where the machine's clock
// was set back, it goes on from there, or what is measured by it would not end: at half the pace of time, so that the two
// meet again. The caller holds mu.
func (s *Store) ms() int64 { return max(s.all.now().UnixMilli(), s.since(s.passed())) }

// tick is the store's clock for a write. The caller holds mu alone.
func (s *Store) tick() int64 {
	wall, mono := s.all.now().UnixMilli(), s.passed()
	now := s.since(mono)
	if wall >= now {
		now, s.clock, s.ticked = wall, wall, mono
	}
	return now
}

func (s *Store) passed() time.Duration {
	if s.all.mono == nil {
		return 0
	}
	return s.all.mono()
}

// since is the time behind the latest stamp.
func (s *Store) since(mono time.Duration) int64 {
	return s.clock + (mono-s.ticked).Milliseconds()/2
}

func (s *Store) table(k store.Kind) *table {
	t := s.tables[k]
	if t == nil {
		t = newTable(k)
		if s.tables == nil {
			s.tables = map[store.Kind]*table{}
		}
		s.tables[t.kind] = t
	}
	return t
}

// Get implements [store.Store].
func (s *Store) Get(ctx context.Context, kind store.Kind, id string) (store.Record, error) {
	if err := ctx.Err(); err != nil {
		return store.Record{}, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if t := s.tables[kind]; t != nil {
		if e := t.byID[id]; e != nil {
			return e.record(t.kind, s.all.history), nil
		}
	}
	return store.Record{}, fmt.Errorf("%w: %s/%q", store.ErrNotFound, kind, id)
}

// Apply implements [store.Store].
func (s *Store) Apply(ctx context.Context, c *store.Change) (store.Commit, error) {
	if err := ctx.Err(); err != nil {
		return store.Commit{}, err
	}
	if err := store.Check(c); err != nil {
		return store.Commit{}, err
	}
	// What is kept is copied before the lock is taken.
	var textBuf [store.MaxPuts]text
	var eventBuf [store.MaxEvents]*entry
	texts, events := textBuf[:len(c.Puts)], eventBuf[:len(c.Events)]
	for i := range c.Puts {
		texts[i] = newText(&c.Puts[i].Record)
	}
	for i := range c.Events {
		events[i] = &entry{text: newText(&c.Events[i]), version: c.ID, expires: c.Events[i].Expires}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.apply(c, texts, events)
}

func (s *Store) apply(c *store.Change, texts []text, events []*entry) (store.Commit, error) {
	now := s.tick()
	var olds [store.MaxPuts]*entry
	var err error
	for i := range c.Puts {
		p := &c.Puts[i]
		var version store.Version
		if t := s.tables[p.Kind]; t != nil {
			if olds[i] = t.byID[p.ID]; olds[i] != nil {
				version = olds[i].version
			}
		}
		switch {
		case version == c.ID:
			return s.commit(now), nil // done before
		case version != p.Expect:
			err = store.ErrConflict
		case olds[i] != nil && err == nil && !olds[i].sameSelectors(&texts[i]):
			err = fmt.Errorf("%w: subject, client, grant, token and type of %s/%q are fixed for its life", store.ErrInvalid, p.Kind, p.ID)
		}
	}
	if s.readOnly {
		err = store.ErrReadOnly
	}
	if err != nil {
		return store.Commit{}, err
	}
	moved := false
	for i := range c.Puts {
		p, e := &c.Puts[i], olds[i]
		t := s.table(p.Kind)
		if e == nil {
			s.births++
			e = &entry{text: texts[i], number: s.births}
			t.byID[e.id()] = e
			t.order.insert(e)
		} else {
			e.text = texts[i]
		}
		e.version, e.written = c.ID, now
		t.expire(e, p.Expires)
		if t.state {
			s.head = max(s.head+1, now<<16)
			s.state.write(e, t, s.head)
			moved = true
		}
	}
	if len(events) > 0 {
		t := s.table(store.KindEvent)
		for _, e := range events {
			s.births++
			e.number, e.written = s.births, now
			t.order.insert(e)
			expires := e.expires
			e.expires = 0
			t.expire(e, expires)
		}
	}
	if moved && s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
	return s.commit(now), nil
}

func (s *Store) commit(now int64) store.Commit {
	return store.Commit{Head: store.Position{History: s.all.history, N: s.head}, Now: now}
}

const (
	followDefault = 1000    // records in a View when max is not positive
	examine       = 100_000 // records looked at in one call of Follow
)

// Follow implements [store.Store].
func (s *Store) Follow(ctx context.Context, after store.Position, kinds []store.Kind, max int) (store.View, error) {
	if err := ctx.Err(); err != nil {
		return store.View{}, err
	}
	if max <= 0 {
		max = followDefault
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	v := store.View{Next: store.Position{History: s.all.history, N: s.head}, Now: s.ms()}
	if after != (store.Position{}) && (after.History != s.all.history || after.N > s.head || after.N < 0) {
		return store.View{}, fmt.Errorf("%w: position %d of history %x, the store is at %d of %x",
			store.ErrDiverged, after.N, after.History, s.head, s.all.history)
	}
	places := s.state.after(after.N)
	for i, p := range places {
		if len(v.Records) >= max || i >= examine {
			v.More, v.Next.N = true, places[i-1].pos
			break
		}
		if p.entry.pos == p.pos && wanted(kinds, p.table.kind) {
			v.Records = append(v.Records, p.entry.record(p.table.kind, s.all.history))
		}
	}
	return v, nil
}

func wanted(kinds []store.Kind, k store.Kind) bool {
	for _, w := range kinds {
		if w == k {
			return true
		}
	}
	return len(kinds) == 0
}

// Wait implements [store.Waker]: it returns when the namespace has state after p, or ctx ends.
func (s *Store) Wait(ctx context.Context, p store.Position) error {
	for {
		s.mu.Lock()
		if s.head > p.N || p.History != s.all.history && p != (store.Position{}) {
			s.mu.Unlock()
			return nil
		}
		if s.changed == nil {
			s.changed = make(chan struct{})
		}
		changed := s.changed
		s.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// purgeStep is how many expired records are removed before others get the lock.
const purgeStep = 256

// Purge implements [store.Store].
func (s *Store) Purge(ctx context.Context, kind store.Kind, before int64, max int) (int, error) {
	if err := kind.Check(); err != nil {
		return 0, err
	}
	total := 0
	for total < max {
		if err := ctx.Err(); err != nil {
			return total, err
		}
		n, done, err := s.purge(kind, before, min(max-total, purgeStep))
		if total += n; done || err != nil {
			return total, err
		}
	}
	return total, nil
}

func (s *Store) purge(kind store.Kind, before int64, most int) (removed int, done bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.readOnly {
		return 0, true, store.ErrReadOnly
	}
	t := s.tables[kind]
	if t == nil {
		return 0, true, nil
	}
	before = min(before, s.tick()+1) // alive is Expires > now
	for looked := 0; removed < most && looked < 4*purgeStep; looked++ {
		e := t.due.popBefore(before)
		switch {
		case e == nil:
			return removed, true, nil
		case e.gone:
		case e.expires == 0:
			e.due = 0
		case e.expires >= before:
			e.due = e.expires
			t.due.push(e.due, e) // it was rewritten with a later expiry
		default:
			s.remove(t, e)
			removed++
		}
	}
	return removed, false, nil
}

func (s *Store) remove(t *table, e *entry) {
	e.gone = true
	t.order.remove(e)
	if t.kind == store.KindEvent {
		s.trimmed = max(s.trimmed, e.number)
		return
	}
	delete(t.byID, e.id())
	if t.state {
		s.state.forget(e)
	}
}
