package redisstore

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/apitoken-go/apitoken/store"
)

// Gets that come while others are asked go together into the next script, for the reason that changes do: most of what
// one costs is the round trip.
const (
	getFlights = 2
	getSize    = 128
)

// wantedRecord is a Get on its way.
type wantedRecord struct {
	kind  store.Kind
	id    string
	begun time.Time
	done  chan foundRecord // never blocks
}

type foundRecord struct {
	value   any
	history uint64
	err     error
}

// getGroup is the queue of a namespace.
type getGroup struct {
	places chan struct{} // one for each that waits

	mu      sync.Mutex // guards what follows
	waiting []*wantedRecord
	flying  int
}

// Get implements [store.Store].
func (n *space) Get(ctx context.Context, kind store.Kind, id string) (store.Record, error) {
	if err := n.usable(ctx); err != nil {
		return store.Record{}, err
	}
	if !kind.Possible(id) {
		return store.Record{}, fmt.Errorf("%w: %s/%q", store.ErrNotFound, kind, id)
	}
	// What is asked may outlive the call.
	w := &wantedRecord{
		kind: store.Kind(strings.Clone(string(kind))), id: strings.Clone(id), begun: time.Now(), done: make(chan foundRecord, 1),
	}
	late := time.NewTimer(n.s.o.Timeout)
	defer late.Stop()
	if err := n.place(ctx, late.C, n.gets.places); err != nil {
		return store.Record{}, err
	}
	if err := n.want(w); err != nil {
		<-n.gets.places
		return store.Record{}, err
	}
	var f foundRecord
	select {
	case f = <-w.done:
	case <-ctx.Done():
		return store.Record{}, ctx.Err()
	case <-late.C:
		return store.Record{}, fmt.Errorf("redisstore: no answer within %s: %w", n.s.o.Timeout, context.DeadlineExceeded)
	}
	switch {
	case f.err != nil:
		return store.Record{}, f.err
	case f.value == nil:
		return store.Record{}, fmt.Errorf("%w: %s/%q", store.ErrNotFound, kind, id)
	}
	return decodeRecord(w.kind, w.id, str(f.value), f.history)
}

func (n *space) want(w *wantedRecord) error {
	g := &n.gets
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.flying < getFlights {
		if err := n.s.background(n.fetch); err != nil {
			return err
		}
		g.flying++
	}
	g.waiting = append(g.waiting, w)
	return nil
}

// fetch asks for what waits until nothing does.
func (n *space) fetch() {
	for {
		batch := n.gets.take(n.s.o.Timeout)
		if batch == nil {
			return
		}
		args := make([]any, 0, 2*len(batch))
		for _, w := range batch {
			args = append(args, string(w.kind), w.id)
		}
		ctx, cancel := context.WithTimeout(n.s.ctx, n.s.o.Timeout)
		r, l, err := n.askNow(ctx, scriptGet, args)
		cancel()
		if err == nil && len(r) != len(batch) {
			err = errValue("the answer to Get does not read")
		}
		if err != nil && n.s.ctx.Err() != nil {
			err = ErrClosed
		}
		for i, w := range batch {
			if err != nil {
				w.done <- foundRecord{err: err}
			} else {
				w.done <- foundRecord{value: r[i], history: l.id}
			}
		}
	}
}

// take removes what can be asked together from the queue, and drops those whose callers have gone; nil ends the flight.
func (g *getGroup) take(patience time.Duration) []*wantedRecord {
	g.mu.Lock()
	defer g.mu.Unlock()
	var batch []*wantedRecord
	for len(g.waiting) > 0 && len(batch) < getSize {
		if w := g.waiting[0]; time.Since(w.begun) < patience {
			batch = append(batch, w)
		}
		g.waiting[0] = nil
		g.waiting = g.waiting[1:]
		<-g.places
	}
	if batch == nil {
		g.flying--
	}
	return batch
}
