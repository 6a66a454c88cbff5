package gather_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/apitoken-go/apitoken/internal/gather"
	"github.com/apitoken-go/apitoken/store"
)

// engine answers when it is let, and keeps what it was asked.
type engine struct {
	mu    sync.Mutex
	asked [][]string
	let   chan struct{}
	fails error
}

func (e *engine) ask(_ context.Context, kind store.Kind, ids []string) (out []store.Record, err error) {
	e.mu.Lock()
	e.asked = append(e.asked, append([]string{string(kind)}, ids...))
	e.mu.Unlock()
	<-e.let
	for _, id := range ids {
		if id != "none" {
			out = append(out, store.Record{Kind: kind, ID: id, Data: []byte(id)})
		}
	}
	return out, e.fails
}

// Who comes while a question is under way shares the next one, with others of the same kind; each gets a record of their own.
func TestTogether(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e := &engine{let: make(chan struct{})}
		g := &gather.Gets{Lanes: 1, Most: 3, Timeout: time.Hour, Ask: e.ask}
		var wg sync.WaitGroup
		var same [2]store.Record
		get := func(kind store.Kind, id string, keep *store.Record) {
			wg.Go(func() {
				r, err := g.Get(t.Context(), kind, id)
				switch {
				case id == "none" && !errors.Is(err, store.ErrNotFound):
					t.Errorf("%s: %v", id, err)
				case id != "none" && (err != nil || r.Kind != kind || r.ID != id || string(r.Data) != id):
					t.Errorf("%s: %+v, %v", id, r, err)
				}
				if keep != nil {
					*keep = r
				}
			})
			synctest.Wait()
		}
		get("grant", "first", nil)
		get("grant", "a", &same[0])
		get("quota", "q", nil)
		get("grant", "a", &same[1])
		get("grant", "none", nil)
		get("grant", "late", nil)
		close(e.let)
		wg.Wait()
		want := [][]string{{"grant", "first"}, {"grant", "a", "none"}, {"quota", "q"}, {"grant", "late"}}
		if !slices.EqualFunc(e.asked, want, slices.Equal) {
			t.Errorf("asked %v, want %v", e.asked, want)
		}
		same[0].Data[0] = 'x'
		if string(same[1].Data) != "a" {
			t.Error("two callers share memory")
		}
	})
}

// A caller who has gone is not asked for, an error is everybody's, and a queue that was empty begins anew.
func TestGoneAndFailed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e := &engine{let: make(chan struct{}), fails: errors.New("down")}
		g := &gather.Gets{Lanes: 1, Most: 8, Timeout: time.Hour, Ask: e.ask}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		get := func(ctx context.Context, id string, want error) {
			wg.Go(func() {
				if _, err := g.Get(ctx, "grant", id); !errors.Is(err, want) {
					t.Errorf("%s: %v, want %v", id, err, want)
				}
			})
			synctest.Wait()
		}
		get(t.Context(), "none", e.fails)
		get(ctx, "gone", context.Canceled)
		cancel()
		synctest.Wait()
		close(e.let)
		wg.Wait()
		get(t.Context(), "none", e.fails)
		wg.Wait()
		if want := [][]string{{"grant", "none"}, {"grant", "none"}}; !slices.EqualFunc(e.asked, want, slices.Equal) {
			t.Errorf("asked %v, want %v", e.asked, want)
		}
	})
}
