package boltstore

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"

	"go.etcd.io/bbolt"

	"github.com/apitoken-go/apitoken/store"
)

// space is one namespace of the file and the store.Store of it.
type space struct {
	s      *Store
	bucket []byte // its name in the file
	err    error  // every verb's answer where the namespace's name is not allowed

	mu      sync.Mutex    // guards changed
	changed chan struct{} // closed at the next state change; nil while nobody waits

	// The writer's alone.
	floor  int64                 // the highest number ever given out by this process, a failed commit's included
	tails  map[store.Kind]int    // records since the last run
	newest map[store.Kind]string // how the key of the last new record began
}

var (
	_ store.Store = (*space)(nil)
	_ store.Waker = (*space)(nil)
	_ store.Store = (*Store)(nil)
	_ store.Waker = (*Store)(nil)
)

func (sp *space) broadcast() {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	if sp.changed != nil {
		close(sp.changed)
		sp.changed = nil
	}
}

// view runs f in a read transaction that ends with it. f gets nil for a namespace that was never written, and must
// copy what it keeps.
func (sp *space) view(ctx context.Context, f func(ns *bbolt.Bucket) error) error {
	if sp.err != nil {
		return sp.err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return sp.s.view(func(tx *bbolt.Tx) error { return f(tx.Bucket(sp.bucket)) })
}

// Get implements [store.Store].
func (sp *space) Get(ctx context.Context, kind store.Kind, id string) (store.Record, error) {
	return bounded(ctx, sp.s, func(ctx context.Context) (store.Record, error) { return sp.get(ctx, kind, id) })
}

func (sp *space) get(ctx context.Context, kind store.Kind, id string) (store.Record, error) {
	var r store.Record
	opening := sp.s.opening.Load()
	err := sp.view(ctx, func(ns *bbolt.Bucket) error {
		var v []byte
		if kind.Possible(id) {
			if b := readSub(ns, classRecords, kind); b != nil {
				v = b.Get([]byte(id))
			}
		}
		if v == nil {
			return fmt.Errorf("%w: %s/%q", store.ErrNotFound, kind, id)
		}
		var err error
		r, err = decodeRecord(v, kind, id, sp.s.history)
		return err
	})
	if err != nil {
		return store.Record{}, err
	}
	err = sp.s.settled(ctx, opening, func(f *inFlight) bool { _, in := f.versions[r.Version]; return in })
	if err != nil {
		return store.Record{}, err
	}
	return r, nil
}

// Apply implements [store.Store].
func (sp *space) Apply(ctx context.Context, c *store.Change) (store.Commit, error) {
	if sp.err != nil {
		return store.Commit{}, sp.err
	}
	if err := store.Check(c); err != nil {
		return store.Commit{}, err
	}
	in := newIntent(c)
	if sp.s.readOnly {
		return bounded(ctx, sp.s, func(ctx context.Context) (store.Commit, error) { return sp.applyReadOnly(ctx, in) })
	}
	r := &request{sp: sp, in: in, urgent: in.revocation()}
	inner, cancel := context.WithTimeout(ctx, sp.s.timeout)
	defer cancel()
	if err := sp.s.submit(inner, r); err != nil {
		return store.Commit{}, sp.s.lateError(ctx, inner, err)
	}
	if r.out.err != nil {
		return store.Commit{}, r.out.err
	}
	return store.Commit{Head: store.Position{History: sp.s.history, N: r.out.state}, Now: r.out.now}, nil
}

// applyReadOnly still recognises a change that was done before: ErrReadOnly would say that it was not.
func (sp *space) applyReadOnly(ctx context.Context, in *intent) (store.Commit, error) {
	var done bool
	var h head
	err := sp.view(ctx, func(ns *bbolt.Bucket) error {
		for i := range in.puts {
			b := readSub(ns, classRecords, in.puts[i].kind)
			if b == nil {
				continue
			}
			if v := b.Get(in.puts[i].id); v != nil {
				old, err := openRecord(v, in.puts[i].kind, string(in.puts[i].id))
				if err != nil {
					return err
				}
				done = done || old.version == in.id
			}
		}
		var err error
		h, err = readHead(ns)
		return err
	})
	switch {
	case err != nil:
		return store.Commit{}, err
	case !done:
		return store.Commit{}, store.ErrReadOnly
	}
	return store.Commit{Head: store.Position{History: sp.s.history, N: h.state}, Now: sp.s.clock.now()}, nil
}

const (
	followDefault = 1000    // records in a View when max is not positive
	followExamine = 200_000 // order entries looked at in one call
)

// Follow implements [store.Store].
func (sp *space) Follow(ctx context.Context, after store.Position, kinds []store.Kind, max int) (store.View, error) {
	kinds = slices.Clone(kinds) // a read that is left behind must not look at the caller's
	return bounded(ctx, sp.s, func(ctx context.Context) (store.View, error) { return sp.follow(ctx, after, kinds, max) })
}

func (sp *space) follow(ctx context.Context, after store.Position, kinds []store.Kind, max int) (store.View, error) {
	if max <= 0 {
		max = followDefault
	}
	var view store.View
	opening := sp.s.opening.Load()
	err := sp.view(ctx, func(ns *bbolt.Bucket) error {
		h, err := readHead(ns)
		if err != nil {
			return err
		}
		view = store.View{Next: store.Position{History: sp.s.history, N: h.state}, Now: sp.s.clock.now()}
		if after != (store.Position{}) && (after.History != sp.s.history || after.N > h.state || after.N < 0) {
			return fmt.Errorf("%w: position %d of history %x, the store is at %d of %x",
				store.ErrDiverged, after.N, after.History, h.state, sp.s.history)
		}
		order := readSub(ns, classOrder, "")
		if order == nil {
			if h.state != 0 {
				return errValue("the order of state is gone")
			}
			return nil
		}
		examined := 0
		var records *bbolt.Bucket // of kind of
		var of store.Kind
		c := order.Cursor()
		for k, v := c.Seek(key64(after.N + 1)); k != nil; k, v = c.Next() {
			if len(view.Records) >= max || examined >= followExamine {
				view.More = true
				break
			}
			examined++
			if examined%1024 == 0 && ctx.Err() != nil {
				return ctx.Err()
			}
			i := bytes.IndexByte(v, 0)
			if i < 0 {
				return errValue("an entry of the order of state does not read")
			}
			kind, id := store.Kind(v[:i]), string(v[i+1:])
			view.Next.N = num64(k)
			if !wanted(kinds, kind) {
				continue
			}
			if records == nil || kind != of {
				if records, of = readSub(ns, classRecords, kind), kind; records == nil {
					return errValue(fmt.Sprintf("no records of kind %s", kind))
				}
			}
			r, err := decodeRecord(records.Get(v[i+1:]), kind, id, sp.s.history)
			if err != nil {
				return err
			}
			if r.Pos.N != num64(k) {
				return errValue(fmt.Sprintf("record %s/%q stands at another place of the order", kind, id))
			}
			view.Records = append(view.Records, r)
		}
		if !view.More {
			view.Next.N = h.state
		}
		return nil
	})
	if err != nil {
		return store.View{}, err
	}
	err = sp.s.settled(ctx, opening, func(f *inFlight) bool { _, in := f.states[sp]; return in })
	if err != nil {
		return store.View{}, err
	}
	return view, nil
}

func wanted(kinds []store.Kind, k store.Kind) bool {
	for _, w := range kinds {
		if w == k {
			return true
		}
	}
	return len(kinds) == 0
}

// Wait implements [store.Waker]: it returns when the namespace has state after p, is closed, or ctx ends.
func (sp *space) Wait(ctx context.Context, p store.Position) error {
	for {
		sp.mu.Lock()
		if sp.changed == nil {
			sp.changed = make(chan struct{})
		}
		changed := sp.changed
		sp.mu.Unlock()

		h, err := bounded(ctx, sp.s, func(ctx context.Context) (h head, err error) {
			err = sp.view(ctx, func(ns *bbolt.Bucket) (err error) {
				h, err = readHead(ns)
				return err
			})
			return h, err
		})
		if err != nil {
			return err
		}
		if h.state > p.N || p.History != sp.s.history && p != (store.Position{}) {
			return nil
		}
		select {
		case <-changed:
		case <-sp.s.closed:
			return ErrClosed
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// SetReadOnly makes the namespace refuse writes with [store.ErrReadOnly], or take them again. It is kept in the file:
// a namespace whose records were copied elsewhere must not take writes by mistake after a restart.
func (sp *space) SetReadOnly(ctx context.Context, on bool) error {
	if sp.err != nil {
		return sp.err
	}
	inner, cancel := context.WithTimeout(ctx, sp.s.timeout)
	defer cancel()
	err := sp.s.maintain(inner, sp, true, func(t *txn) error {
		st, err := t.space(sp)
		if err != nil || st.head.readOnly == on {
			return err
		}
		st.head.readOnly, st.dirty, t.dirty = on, true, true
		return nil
	})
	return sp.s.lateError(ctx, inner, err)
}
