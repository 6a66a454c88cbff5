package storetest

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/apitoken-go/apitoken/store"
)

// Apply: all or nothing, expected versions, retries, limits, and many callers at once.
var applyCases = []testCase{
	{"Expected version", testExpect},
	{"All or nothing", testAtomic},
	{"Retry", testRetry},
	{"Retry by many at once", testRetryTogether},
	{"Counters", testCounters},
	{"One of many wins", testRace},
}

func testExpect(h *harness) {
	for _, k := range []store.Kind{grant, store.KindKey} {
		one := func(data string, expect store.Version) *store.Change {
			return &store.Change{ID: fresh(), Puts: []store.Put{put(k, "a", data, expect)}}
		}
		h.refused(one("x", fresh()), store.ErrConflict, "there is no record, so no Version but zero is right")
		h.absent(k, "a", "a conflict writes nothing")
		first := one("1", store.Version{})
		h.apply(first)
		h.refused(one("x", store.Version{}), store.ErrConflict, "Expect zero: the record must not exist")
		h.refused(one("x", fresh()), store.ErrConflict, "the record has another Version")
		second := one("2", first.ID)
		h.apply(second)
		h.refused(one("x", first.ID), store.ErrConflict, "the record has gone on from this Version")
		h.refused(one("x", store.Version{}), store.ErrConflict, "Expect zero: the record must not exist")
		almost := second.ID
		almost[15] ^= 1
		h.refused(one("x", almost), store.ErrConflict, "all 16 bytes of a Version count")
		if r := h.get(k, "a"); string(r.Data) != "2" || r.Version != second.ID {
			h.t.Fatalf("%s after conflicts, want the second write", show(r))
		}
		// Records of one Change go on from different versions.
		h.must([]store.Put{put(k, "b", "1", store.Version{})})
		b := h.get(k, "b")
		h.must([]store.Put{put(k, "a", "3", second.ID), put(k, "b", "2", b.Version), put(k, "c", "1", store.Version{})})
		if a, c := h.get(k, "a"), h.get(k, "c"); a.Version != c.Version || string(a.Data) != "3" {
			h.t.Fatalf("%s and %s: one Change gives all its records its own Version", show(a), show(c))
		}
	}
}

func testAtomic(h *harness) {
	v := h.must([]store.Put{put(store.KindRule, "old", "1", store.Version{}), put(grant, "old", "1", store.Version{})})
	before, next := h.followAll(store.Position{}, nil, 10)
	for at := range 4 {
		puts := []store.Put{
			put(store.KindRule, "new", "2", store.Version{}), put(store.KindRule, "old", "2", v),
			put(grant, "new", "2", store.Version{}), put(grant, "old", "2", v),
		}
		puts[at].Expect = fresh()
		c := &store.Change{ID: fresh(), Puts: puts, Events: []store.Record{event("no"), event("neither")}}
		h.refused(c, store.ErrConflict, fmt.Sprintf("put %d of 4 has the wrong Expect", at))
		h.absent(store.KindRule, "new", "a conflict writes nothing")
		h.absent(grant, "new", "a conflict writes nothing")
		for _, k := range []store.Kind{store.KindRule, grant} {
			if r := h.get(k, "old"); r.Version != v || string(r.Data) != "1" {
				h.t.Fatalf("%s: a conflict in put %d writes nothing", show(r), at)
			}
		}
		if rs, _ := h.followAll(next, nil, 10); len(rs) != 0 {
			h.t.Fatalf("Follow shows %s of a Change that had a conflict", show(rs[0]))
		}
	}
	c := &store.Change{
		ID: fresh(), Puts: []store.Put{
			put(store.KindRule, "new", "3", store.Version{}), put(store.KindRule, "old", "3", v),
			put(grant, "new", "3", store.Version{}), put(grant, "old", "3", v),
		},
		Events: []store.Record{event("yes"), event("too")},
	}
	h.apply(c)
	// The events of the conflicts would come before these.
	h.lists(store.Query{Kind: store.KindEvent}, []string{"yes", "too"})
	if after, _ := h.followAll(next, nil, 10); len(before) != 1 || len(after) != 2 {
		h.t.Fatalf("Follow shows %d and then %d records, want 1 and 2", len(before), len(after))
	}
}

func testRetry(h *harness) {
	c := &store.Change{
		ID:     fresh(),
		Puts:   []store.Put{put(store.KindRule, "a", "1", store.Version{}), put(grant, "b", "1", store.Version{}), put(grant, "c", "1", store.Version{})},
		Events: []store.Record{event("1"), event("2")},
	}
	h.apply(c)
	a, next := h.followAll(store.Position{}, nil, 10)
	h.nextMs()
	for range 3 {
		h.apply(clone(c))
	}
	rs, _ := h.followAll(next, nil, 10)
	if len(rs) != 0 || !same(a[0], h.get(store.KindRule, "a")) {
		h.t.Fatalf("a Change that was done before writes nothing: %s is now %s", show(a[0]), show(h.get(store.KindRule, "a")))
	}
	// Whichever of its records still has the Change's Version tells.
	h.must([]store.Put{put(store.KindRule, "a", "2", c.ID)}, event("3"))
	h.apply(clone(c))
	h.must([]store.Put{put(grant, "b", "2", c.ID)}, event("4"))
	h.apply(clone(c))
	if a, b := h.get(store.KindRule, "a"), h.get(grant, "b"); string(a.Data) != "2" || string(b.Data) != "2" {
		h.t.Fatalf("a repeated Change wrote over newer records: %s %s", show(a), show(b))
	}
	h.must([]store.Put{put(grant, "c", "2", c.ID)}, event("5"))
	h.refused(clone(c), store.ErrConflict, "nothing is left of the Change, and its Expect is wrong by now")

	// A retry of a rewrite: its Expect does not hold any more, its Version tells.
	v := h.get(grant, "c").Version
	rewrite := &store.Change{ID: fresh(), Puts: []store.Put{put(grant, "c", "3", v)}, Events: []store.Record{event("6")}}
	h.apply(rewrite)
	h.apply(clone(rewrite))
	// One that is done is told apart from one that conflicts even where another put of it would conflict.
	mixed := clone(rewrite)
	mixed.Puts = append(mixed.Puts, put(grant, "b", "x", fresh()))
	h.apply(mixed)
	if b := h.get(grant, "b"); string(b.Data) != "2" {
		h.t.Fatalf("%s: a Change that was done before writes nothing", show(b))
	}
	h.lists(store.Query{Kind: store.KindEvent}, []string{"1", "2", "3", "4", "5", "6"})
}

func testRetryTogether(h *harness) {
	const rounds, callers = 8, 16
	var want []string
	v := h.must([]store.Put{put(store.KindRule, "seq", "", store.Version{})})
	for i := range rounds {
		id := fmt.Sprint(i)
		want = append(want, id)
		c := &store.Change{
			ID:     fresh(),
			Puts:   []store.Put{put(store.KindRule, "seq", id, v), put(grant, id, "", store.Version{})},
			Events: []store.Record{event(id)},
		}
		start := make(chan struct{})
		ready := sync.WaitGroup{}
		ready.Add(callers)
		go func() { ready.Wait(); close(start) }()
		h.together(callers, func(int) error {
			ready.Done()
			<-start
			if _, err := h.st.Apply(h.ctx, c); err != nil {
				return fmt.Errorf("the same Change by many at once is one Change, and done; got %w", err)
			}
			return nil
		})
		if r := h.get(store.KindRule, "seq"); r.Version != c.ID || string(r.Data) != id {
			h.t.Fatalf("%s, want version %x", show(r), c.ID[:4])
		}
		v = c.ID
	}
	h.lists(store.Query{Kind: store.KindEvent}, want)
}

// count reads the counter that testCounters keeps in Data.
func count(r store.Record) int {
	n := 0
	_, _ = fmt.Sscan(string(r.Data), &n)
	return n
}

// testCounters: eight callers raise two counters in one Change, and no raise is lost, in either or between them.
func testCounters(h *harness) {
	const callers, each = 8, 12
	h.must([]store.Put{put(store.KindRole, "n", "0", store.Version{}), put(grant, "n", "0", store.Version{})})
	h.together(callers, func(i int) error {
		for j := 0; j < each; {
			a, err := h.st.Get(h.ctx, store.KindRole, "n")
			if err != nil {
				return err
			}
			b, err := h.st.Get(h.ctx, grant, "n")
			if err != nil {
				return err
			}
			if a.Version == b.Version && !bytes.Equal(a.Data, b.Data) {
				return fmt.Errorf("%s and %s were written by one Change", show(a), show(b))
			}
			n := fmt.Sprint(count(a) + 1)
			c := &store.Change{
				ID:     fresh(),
				Puts:   []store.Put{put(store.KindRole, "n", n, a.Version), put(grant, "n", fmt.Sprint(count(b)+1), b.Version)},
				Events: []store.Record{event("n" + n)},
			}
			switch _, err := h.st.Apply(h.ctx, c); {
			case err == nil:
				j++
				if r, err := h.st.Get(h.ctx, grant, "n"); err != nil || count(r) < count(b)+1 {
					return fmt.Errorf("in Get after an acknowledged write: %s, %v", show(r), err)
				}
			case !errors.Is(err, store.ErrConflict):
				return err
			}
		}
		return nil
	})
	a, b := h.get(store.KindRole, "n"), h.get(grant, "n")
	if count(a) != callers*each || count(b) != callers*each || a.Version != b.Version {
		h.t.Fatalf("%d raises by %d callers made %s and %s", callers*each, callers, show(a), show(b))
	}
	var want []string
	for i := range callers * each {
		want = append(want, fmt.Sprint("n", i+1))
	}
	h.lists(store.Query{Kind: store.KindEvent, Limit: 20}, want)
}

// testRace: of many who expect the same Version exactly one wins, and nothing of the others is written.
func testRace(h *harness) {
	const callers, rounds = 16, 6
	v := h.must([]store.Put{put(grant, "prize", "", store.Version{})})
	var want []string
	for round := range rounds {
		var won atomic.Int32
		var winner atomic.Pointer[store.Change]
		h.together(callers, func(i int) error {
			name := fmt.Sprintf("%d-%02d", round, i)
			c := &store.Change{
				ID:     fresh(),
				Puts:   []store.Put{put(grant, "of "+name, "", store.Version{}), put(grant, "prize", name, v), put(store.KindRule, name, "", store.Version{})},
				Events: []store.Record{event(name)},
			}
			_, err := h.st.Apply(h.ctx, c)
			switch {
			case err == nil:
				won.Add(1)
				winner.Store(c)
			case !errors.Is(err, store.ErrConflict):
				return err
			}
			return nil
		})
		if won.Load() != 1 {
			h.t.Fatalf("%d of %d who expected the same Version won, want one", won.Load(), callers)
		}
		c := winner.Load()
		name := c.Events[0].ID
		if r := h.get(grant, "prize"); r.Version != c.ID || string(r.Data) != name {
			h.t.Fatalf("%s, want that of the winner %s", show(r), name)
		}
		v = c.ID
		want = append(want, name)
		for i := range callers {
			if other := fmt.Sprintf("%d-%02d", round, i); other != name {
				h.absent(grant, "of "+other, "a conflict writes nothing")
				h.absent(store.KindRule, other, "a conflict writes nothing")
			}
		}
	}
	h.lists(store.Query{Kind: store.KindEvent}, want)
	h.lists(store.Query{Kind: store.KindRule}, slices.Sorted(slices.Values(want)))
}
