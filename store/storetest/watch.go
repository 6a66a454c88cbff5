package storetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/apitoken-go/apitoken/store"
)

// verbLimit is how long one call may take. Whatever its context, a verb ends within a Timeout of the store's own.
var verbLimit = 30 * time.Second

// What no listing of this suite comes near: one that is longer never ends.
const (
	maxPages   = 3_000
	maxRecords = 15_000
)

// suite is what the subtests of one Run know of each other.
type suite struct {
	mu    sync.Mutex // guards all below
	stuck string     // which verb never ended, and where; the subtests that follow are not run
	tired bool       // something was waited for in vain: what follows is waited for less
}

// patience is how long something that may lag is waited for. A store that was late once is most likely wrong, not slow.
func (s *suite) patience() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tired {
		return patience / 10
	}
	return patience
}

func (s *suite) tire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tired = true
}

func (s *suite) hangs() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stuck
}

// watched is a store whose verbs are given up when they do not end. Then the subtest has failed, and every later call fails at
// once.
type watched struct {
	raw   store.Store
	t     *testing.T
	suite *suite
	ctx   context.Context // of the subtest

	mu   sync.Mutex // guards over
	over bool       // the subtest has ended: nothing may be reported any more
}

// errGivenUp stands for the answer of a verb that did not end. The failure is reported already.
var errGivenUp = errors.New("storetest: given up")

// watch wraps st until the subtest ends.
func watch(t *testing.T, ctx context.Context, s *suite, st store.Store) *watched {
	w := &watched{raw: st, t: t, suite: s, ctx: ctx}
	t.Cleanup(func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.over = true
	})
	return w
}

// within runs a verb, and gives it up after verbLimit. Its goroutine is lost then.
func within[T any](w *watched, verb string, f func() (T, error)) (T, error) {
	var none T
	switch {
	case w.suite.hangs() != "":
		return none, errGivenUp
	case w.ctx.Err() != nil:
		return none, fmt.Errorf("the subtest takes over %v: %w", timeLimit, w.ctx.Err())
	}

	type answer struct {
		v   T
		err error
	}
	done := make(chan answer, 1)
	go func() {
		defer close(done) // also where the store ends the goroutine, as t.FailNow does
		v, err := f()
		done <- answer{v, err}
	}()
	late := time.NewTimer(verbLimit)
	defer late.Stop()
	select {
	case a, ok := <-done:
		if !ok {
			return none, errors.New(verb + " ended its goroutine")
		}
		return a.v, a.err
	case <-late.C:
		w.gaveUp(verb)
		return none, errGivenUp
	}
}

func (w *watched) gaveUp(verb string) {
	w.suite.mu.Lock()
	first := w.suite.stuck == ""
	if first {
		w.suite.stuck = fmt.Sprintf("%s never ended in %s", verb, w.t.Name())
	}
	w.suite.mu.Unlock()

	w.mu.Lock()
	defer w.mu.Unlock()
	if first && !w.over {
		w.t.Errorf("%s has not returned after %v, and is given up: every verb ends within a Timeout of the store's own, whatever its context", verb, verbLimit)
	}
}

func (w *watched) Get(ctx context.Context, k store.Kind, id string) (store.Record, error) {
	return within(w, fmt.Sprintf("Get of %s/%.40q", k, id), func() (store.Record, error) { return w.raw.Get(ctx, k, id) })
}

func (w *watched) Apply(ctx context.Context, c *store.Change) (store.Commit, error) {
	return within(w, "Apply of "+describe(c), func() (store.Commit, error) { return w.raw.Apply(ctx, c) })
}

func (w *watched) Follow(ctx context.Context, after store.Position, kinds []store.Kind, max int) (store.View, error) {
	return within(w, fmt.Sprintf("Follow after %v", after), func() (store.View, error) { return w.raw.Follow(ctx, after, kinds, max) })
}

func (w *watched) List(ctx context.Context, q store.Query) (store.Page, error) {
	return within(w, fmt.Sprintf("List %+v", q), func() (store.Page, error) { return w.raw.List(ctx, q) })
}

func (w *watched) Purge(ctx context.Context, k store.Kind, before int64, max int) (int, error) {
	return within(w, fmt.Sprintf("Purge of %s", k), func() (int, error) { return w.raw.Purge(ctx, k, before, max) })
}

// closes ends the store. One that hangs is closed in the background: Close may wait for the verb that never ends.
func (w *watched) closes(f func() error) error {
	if w.suite.hangs() != "" {
		go func() { _ = f() }()
		return nil
	}
	done := make(chan error, 1)
	go func() { done <- f() }()
	late := time.NewTimer(verbLimit)
	defer late.Stop()
	select {
	case err := <-done:
		return err
	case <-late.C:
		w.gaveUp("Close")
		return nil // it is reported
	}
}

// listing tells a listing that never ends.
type listing struct{ pages, records int }

func (l *listing) add(q store.Query, p *store.Page) error {
	l.pages++
	l.records += len(p.Records)
	if l.pages > maxPages || l.records > maxRecords {
		return &lasting{fmt.Errorf("in List %+v: %d pages with %d records, and still a cursor, %.40q: it never ends", q, l.pages, l.records, p.Cursor)}
	}
	return nil
}

// lasting is an error that waiting does not mend.
type lasting struct{ err error }

func (e *lasting) Error() string { return e.err.Error() }
func (e *lasting) Unwrap() error { return e.err }
