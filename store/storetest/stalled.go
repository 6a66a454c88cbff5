package storetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/apitoken-go/apitoken/store"
)

// Stalled is for stores on a server: call it once st is open and its server has fallen silent, as behind a network that
// swallows every packet or while its process is stopped. HTTP requests have no deadline of their own, so a verb that waited
// for its caller's context would wait for ever.
//
// Each verb is called with a context that never ends, by several callers at once. Each must return an error within limit, and
// none that claims to know something: nothing was found, refused or written as far as anyone can tell. The same holds for
// own, by name: what else can be asked of this store, such as opening it once more.
//
// Every verb waits for the whole Timeout of the store, all at the same time. Let it be seconds: opening the store and what is
// written before the silence have to end within it too, on a busy machine.
func Stalled(t *testing.T, st store.Store, limit time.Duration, own ...map[string]func() error) {
	t.Helper()
	ctx := context.Background()
	apply := func(puts []store.Put, events ...store.Record) func() error {
		return func() error {
			_, err := st.Apply(ctx, &store.Change{ID: fresh(), Puts: puts, Events: events})
			return err
		}
	}
	list := func(q store.Query) func() error {
		return func() error { _, err := st.List(ctx, q); return err }
	}
	purge := func(kind store.Kind) func() error {
		return func() error { _, err := st.Purge(ctx, kind, 1<<50, 100); return err }
	}
	verbs := map[string]func() error{
		"Apply of a rule":             apply([]store.Put{put(store.KindRule, "stalled", "", store.Version{})}),
		"Apply of a grant":            apply([]store.Put{put(grant, "stalled", "", store.Version{})}, event("stalled")),
		"Apply of a grant and a rule": apply([]store.Put{put(grant, "b", "", store.Version{}), put(store.KindRule, "b", "", store.Version{})}),
		"Apply of an event":           apply(nil, event("alone")),
		"Get":                         func() error { _, err := st.Get(ctx, store.KindRule, "a"); return err },
		"Follow":                      func() error { _, err := st.Follow(ctx, store.Position{}, nil, 10); return err },
		"List":                        list(store.Query{Kind: store.KindRule}),
		"List by subject, newest":     list(store.Query{Kind: grant, Subject: "s", Newest: true}),
		"List of events":              list(store.Query{Kind: store.KindEvent}),
		"List of events, newest":      list(store.Query{Kind: store.KindEvent, Newest: true}),
		"Purge":                       purge(grant),
		"Purge of events":             purge(store.KindEvent),
	}
	for _, more := range own {
		maps.Copy(verbs, more)
	}

	const callers = 8
	type outcome struct {
		name string
		err  error
	}
	done := make(chan outcome, callers*len(verbs))
	left := map[string]int{}
	var started sync.WaitGroup
	for name, verb := range verbs {
		left[name] = callers
		for range callers {
			started.Add(1)
			go func() {
				started.Done()
				done <- outcome{name, verb()}
			}()
		}
	}
	started.Wait()
	late := time.NewTimer(limit)
	defer late.Stop()
	for range callers * len(verbs) {
		select {
		case o := <-done:
			left[o.name]--
			if err := guesses(o.err); err != nil {
				t.Errorf("%s, of a server that is silent: %v", o.name, err)
			}
		case <-late.C:
			for name, n := range left {
				if n > 0 {
					t.Errorf("%s has not returned after %v: every verb ends within a Timeout of the store's own, whatever its context", name, limit)
				}
			}
			return
		}
	}
}

// Closes closes a store whose server is silent: Close must not wait for it longer than limit.
func Closes(t *testing.T, st io.Closer, limit time.Duration) {
	t.Helper()
	closed := make(chan error, 1)
	go func() { closed <- st.Close() }()
	select {
	case err := <-closed:
		if err != nil {
			t.Errorf("Close of a store whose server is silent: %v", err)
		}
	case <-time.After(limit):
		t.Errorf("Close waits for a server that is silent, longer than %v", limit)
	}
}

// guesses complains of an answer that nobody can give while the server is silent.
func guesses(err error) error {
	if err == nil {
		return errors.New("it succeeded")
	}
	for _, known := range []error{store.ErrNotFound, store.ErrConflict, store.ErrTooLarge, store.ErrReadOnly, store.ErrInvalid, store.ErrDiverged, store.ErrTrimmed} {
		if errors.Is(err, known) {
			return fmt.Errorf("it answered %w, which nobody knows", err)
		}
	}
	return nil
}
