package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/apitoken-go/apitoken/store"
)

// A caller that gives up: its write is done or not, never half, and repeating it makes it done once.
var contextCases = []testCase{
	{"Cancelled before", testCancelledBefore},
	{"Cancelled during", testCancelledDuring},
}

// definite says whether err means not done, which giving up never does.
func definite(err error) bool {
	return errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrTooLarge) || errors.Is(err, store.ErrReadOnly) ||
		errors.Is(err, store.ErrInvalid)
}

func testCancelledBefore(h *harness) {
	v := h.must([]store.Put{put(store.KindRule, "a", "1", store.Version{})}, event("1"))
	ctx, cancel := context.WithCancel(h.ctx)
	cancel()
	past, stop := context.WithDeadline(h.ctx, time.Now().Add(-time.Second))
	defer stop()
	want := []string{"1"}
	for i, ctx := range []context.Context{ctx, past} {
		// Each of these may still answer, but then rightly.
		if r, err := h.st.Get(ctx, store.KindRule, "a"); err == nil && r.ID != "a" {
			h.t.Fatalf("Get: %s", show(r))
		} else if errors.Is(err, store.ErrNotFound) {
			h.t.Fatal("Get with a context that has ended says that a record is not there")
		}
		if r, err := h.st.Get(ctx, store.KindRule, "b"); err == nil {
			h.t.Fatalf("Get: %s", show(r))
		}
		if v, err := h.st.Follow(ctx, store.Position{}, nil, 10); err == nil && len(v.Records) == 0 && !v.More {
			h.t.Fatal("Follow with a context that has ended says that there is no state")
		}
		if p, err := h.st.List(ctx, store.Query{Kind: store.KindRule, Limit: 10}); err == nil && len(p.Records) > 1 {
			h.t.Fatalf("List: %d records, want 1", len(p.Records))
		}
		if n, err := h.st.Purge(ctx, store.KindRule, 1<<50, 10); n != 0 {
			h.t.Fatalf("Purge: %d, %v", n, err)
		}
		name := fmt.Sprint("e", i)
		c := &store.Change{
			ID: fresh(), Puts: []store.Put{put(store.KindRule, "a", name, v), put(grant, name, "", store.Version{})},
			Events: []store.Record{event(name)},
		}
		switch _, err := h.st.Apply(ctx, c); {
		case err == nil:
			h.t.Fatal("Apply with a context that had ended succeeded: a caller that gave up is answered with an error that means unknown, " +
				"and a server that shuts down would go on writing")
		case definite(err):
			h.t.Fatalf("Apply with a context that has ended answered %v, which would mean that it was looked at", err)
		}
		h.apply(clone(c))
		if r := h.get(store.KindRule, "a"); r.Version != c.ID {
			h.t.Fatalf("%s, want version %x", show(r), c.ID[:4])
		}
		v = c.ID
		want = append(want, name)
	}
	h.lists(store.Query{Kind: store.KindEvent}, want)
}

// testCancelledDuring gives up at random moments, and repeats each Change until it is known to be done.
func testCancelledDuring(h *harness) {
	const callers, each = 8, 12
	var gaveUp atomic.Int32
	vs := make([]store.Version, callers)
	h.together(callers, func(w int) error {
		seq := fmt.Sprint("seq", w)
		for j := range each {
			name := fmt.Sprintf("%d-%02d", w, j)
			c := &store.Change{
				ID:     fresh(),
				Puts:   []store.Put{put(store.KindRule, seq, name, vs[w]), put(grant, name, "", store.Version{})},
				Events: []store.Record{event(name)},
			}
			for try := 0; ; try++ {
				ctx, cancel := h.ctx, context.CancelFunc(func() {})
				if try < 3 {
					ctx, cancel = context.WithTimeout(ctx, time.Duration((w*7+j*13+try*29)%60)*25*time.Microsecond)
				}
				_, err := h.st.Apply(ctx, c)
				ended := ctx.Err() != nil
				cancel()
				if err == nil {
					break
				}
				if definite(err) {
					return fmt.Errorf("repeating a Change that its caller gave up on: %w", err)
				}
				if !ended {
					return fmt.Errorf("in Apply with a context that has not ended: %w", err)
				}
				gaveUp.Add(1)
			}
			vs[w] = c.ID
		}
		return nil
	})
	h.t.Logf("gave up %d times", gaveUp.Load())
	var want []string
	for w := range callers {
		if r := h.get(store.KindRule, fmt.Sprint("seq", w)); r.Version != vs[w] {
			h.t.Fatalf("%s, want version %x", show(r), vs[w][:4])
		}
		for j := range each {
			want = append(want, fmt.Sprintf("%d-%02d", w, j))
		}
	}
	h.lists(store.Query{Kind: grant, Limit: 50}, want)
	h.eventually(func() error {
		rs, _, err := pages(h.ctx, h.st, store.Query{Kind: store.KindEvent, Limit: 50})
		if err != nil {
			return err
		}
		got := ids(rs)
		if slices.Sort(got); !slices.Equal(got, want) {
			return fmt.Errorf("events %q, want each once: %q", got, want)
		}
		return nil
	})
}
