package storetest

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/apitoken-go/apitoken/store"
)

// Follow: the order of state, its pages, and that it is complete whoever writes meanwhile.
var followCases = []testCase{
	{"Follow", testFollow},
	{"Follow in pages", testFollowPages},
	{"Follow while others write", testFollowComplete},
	{"Foreign positions", testDiverged},
	{"Head", testHead},
	{"Wait", testWait},
}

func testFollow(h *harness) {
	v := h.must([]store.Put{put(store.KindRule, "a", "1", store.Version{}), put(grant, "g", "1", store.Version{})}, event("1"))
	_, afterA := h.followAll(store.Position{}, nil, 10)
	h.must([]store.Put{put(store.KindRole, "b", "1", store.Version{})}, event("2"))
	h.must([]store.Put{put(grant, "g2", "1", store.Version{}), put(another, "o", "", store.Version{})}, event("3"))
	h.must([]store.Put{put(store.KindRule, "c", "1", store.Version{})})
	if rs, _ := h.followAll(afterA, nil, 10); !slices.Equal(ids(rs), []string{"b", "c"}) {
		h.t.Fatalf("Follow after a: %q, want b and c", ids(rs))
	}
	h.must([]store.Put{put(store.KindRule, "a", "2", v)})
	for _, from := range []store.Position{{}, afterA} {
		rs, _ := h.followAll(from, nil, 10)
		if !slices.Equal(ids(rs), []string{"b", "c", "a"}) {
			h.t.Fatalf("Follow: %q, want b, c, a: a record that is written again moves to the end", ids(rs))
		}
		for _, r := range rs {
			if got := h.get(r.Kind, r.ID); !same(r, got) {
				h.t.Fatalf("Follow: %s, Get: %s", show(r), show(got))
			}
		}
		// From the position of a record as well as from Next.
		if rest, _ := h.followAll(rs[0].Pos, nil, 10); !slices.Equal(ids(rest), []string{"c", "a"}) {
			h.t.Fatalf("Follow after the Pos of b: %q, want c and a", ids(rest))
		}
		if rest, _ := h.followAll(rs[2].Pos, nil, 10); len(rest) != 0 {
			h.t.Fatalf("Follow after the last Pos: %q", ids(rest))
		}
	}
	for want, kinds := range map[string][]store.Kind{
		"c a":   {store.KindRule},
		"b":     {store.KindRole},
		"b c a": {store.KindRole, store.KindKey, store.KindRule},
		"":      {store.KindMeta, store.KindAPIKey, store.KindClient},
	} {
		rs, next := h.followAll(store.Position{}, kinds, 10)
		got := ""
		for i, r := range rs {
			if i > 0 {
				got += " "
			}
			got += r.ID
		}
		if got != want {
			h.t.Fatalf("Follow of %v: %q, want %q", kinds, got, want)
		}
		if rs, _ := h.followAll(next, kinds, 10); len(rs) != 0 {
			h.t.Fatalf("Follow of %v goes on with %s, want nothing", kinds, show(rs[0]))
		}
	}
	_, next := h.followAll(store.Position{}, nil, 10)
	h.must([]store.Put{put(grant, "g3", "", store.Version{})}, event("4"))
	if rs, _ := h.followAll(next, nil, 10); len(rs) != 0 {
		h.t.Fatalf("%s after a Change without state", show(rs[0]))
	}
}

func testFollowPages(h *harness) {
	var want, rules []string
	for i := 0; i < 40; i += 4 {
		var puts []store.Put
		for j := i; j < i+4; j++ {
			k, id := store.KindRule, fmt.Sprintf("%02d", (j*7)%40)
			if j%4 == 2 {
				k = store.KindAPIKey
			} else {
				rules = append(rules, id)
			}
			puts = append(puts, put(k, id, "", store.Version{}))
			want = append(want, id)
		}
		h.must(puts)
	}
	for _, max := range []int{1, 2, 3, 7, 39, 40, 41, 1000} {
		rs, next := h.followAll(store.Position{}, nil, max)
		got := ids(rs)
		slices.Sort(got)
		if !slices.Equal(got, slices.Sorted(slices.Values(want))) {
			h.t.Fatalf("Follow with max %d: %q, want each of %d once", max, got, len(want))
		}
		for i := 1; i < len(rs); i++ {
			if rs[i].Pos.N <= rs[i-1].Pos.N {
				h.t.Fatalf("positions rise across pages: %s comes behind %s", show(rs[i]), show(rs[i-1]))
			}
			if rs[i].Version == rs[i-1].Version && i%4 == 0 {
				h.t.Fatalf("%s and %s: the records of one Change stand together", show(rs[i-1]), show(rs[i]))
			}
		}
		if rest, _ := h.followAll(next, nil, max); len(rest) != 0 {
			h.t.Fatalf("Follow with max %d is complete and goes on with %s", max, show(rest[0]))
		}
		rs, _ = h.followAll(store.Position{}, []store.Kind{store.KindRule}, max)
		if got := ids(rs); len(got) != len(rules) || slices.Contains(got, want[2]) {
			h.t.Fatalf("Follow of rules with max %d: %d records, want %d", max, len(got), len(rules))
		}
	}
}

// ledger is what writers know to be acknowledged: the number of the last write of each record.
type ledger struct {
	mu   sync.Mutex
	seqs map[string]int
}

func (l *ledger) set(id string, seq int) {
	l.mu.Lock()
	l.seqs[id] = seq
	l.mu.Unlock()
}

func (l *ledger) copy() map[string]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make(map[string]int, len(l.seqs))
	for k, v := range l.seqs {
		out[k] = v
	}
	return out
}

// testFollowComplete: eight writers, three followers with small pages. A complete answer holds, with the earlier ones,
// whatever was acknowledged before the call began.
func testFollowComplete(h *harness) {
	const writers, each, followers = 8, 30, 3
	acked := &ledger{seqs: map[string]int{}}
	var writing atomic.Int32
	writing.Store(writers)
	h.together(writers+followers, func(n int) error {
		if n < writers {
			defer writing.Add(-1)
			return h.writeState(n, each, acked)
		}
		w := &follower{h: h, view: map[string]store.Record{}, max: []int{1, 3, 100}[n-writers]}
		if n == writers+1 {
			w.kinds = []store.Kind{store.KindRule, store.KindRole}
		}
		for {
			last := writing.Load() == 0
			if err := w.catchUp(acked); err != nil || last {
				return err
			}
		}
	})
	final := acked.copy()
	rs, _ := h.followAll(store.Position{}, nil, 1000)
	if len(rs) != len(final) {
		h.t.Fatalf("the snapshot has %d records, want %d", len(rs), len(final))
	}
	for _, r := range rs {
		if count(r) != final[r.ID] {
			h.t.Fatalf("%s, want its last write, %d", show(r), final[r.ID])
		}
	}
}

// writeState writes each times: new records, its own again, and grants and events between.
func (h *harness) writeState(writer, each int, acked *ledger) error {
	vs := map[string]store.Version{}
	for seq := 1; seq <= each; seq++ {
		a, b := fmt.Sprintf("w%d-%d", writer, seq%4), fmt.Sprintf("w%d-n%d", writer, seq)
		c := &store.Change{
			ID:     fresh(),
			Puts:   []store.Put{put(store.KindRule, a, fmt.Sprint(seq), vs[a]), put(grant, b, "", store.Version{})},
			Events: []store.Record{event(b)},
		}
		if seq%3 == 0 {
			c.Puts = append(c.Puts, put(store.KindRole, b, fmt.Sprint(seq), store.Version{}))
		}
		if _, err := h.st.Apply(h.ctx, c); err != nil {
			return fmt.Errorf("in Apply of %s: %w", describe(c), err)
		}
		vs[a] = c.ID
		acked.set(a, seq)
		if seq%3 == 0 {
			acked.set(b, seq)
		}
	}
	return nil
}

type follower struct {
	h     *harness
	at    store.Position
	kinds []store.Kind
	max   int
	view  map[string]store.Record
}

// catchUp follows until an answer is complete, and compares with what was acknowledged before that call.
func (w *follower) catchUp(acked *ledger) error {
	for {
		before := acked.copy()
		v, err := w.h.st.Follow(w.h.ctx, w.at, w.kinds, w.max)
		if err != nil {
			return fmt.Errorf("in Follow after %v: %w", w.at, err)
		}
		if err := checkView(&v, w.at, w.kinds, w.max); err != nil {
			return err
		}
		for _, r := range v.Records {
			if old, ok := w.view[r.ID]; ok && (count(old) > count(r) || old.Pos.N > r.Pos.N) {
				return fmt.Errorf("in Follow goes back: %s comes behind %s", show(r), show(old))
			}
			w.view[r.ID] = r
		}
		w.at = v.Next
		if v.More {
			continue
		}
		for id, seq := range before {
			if r, ok := w.view[id]; !ok || count(r) < seq {
				return fmt.Errorf("in Follow is complete, but write %d of %s, acknowledged before the call, is not in it: there is %s", seq, id, show(r))
			}
		}
		return nil
	}
}

func testDiverged(h *harness) {
	h.must([]store.Put{put(store.KindRule, "a", "", store.Version{})})
	_, next := h.followAll(store.Position{}, nil, 10)
	for _, p := range []store.Position{
		{History: next.History + 1, N: next.N}, {History: next.History + 1, N: 1}, {History: next.History ^ 1<<63, N: next.N},
		{History: next.History + 1}, {N: next.N}, {History: next.History, N: next.N + 1<<40},
	} {
		if v, err := h.st.Follow(h.ctx, p, nil, 10); !errors.Is(err, store.ErrDiverged) {
			h.t.Fatalf("Follow after %v answered %d records, %v; the store is at %v, so that this is not in its history: want ErrDiverged",
				p, len(v.Records), err, next)
		}
	}
	if _, again := h.followAll(next, nil, 10); again.History != next.History {
		h.t.Fatalf("the History changed from %x to %x with nothing lost", next.History, again.History)
	}
}

// testHead: Head is no lower than any state change acknowledged before Apply began, of a Change without state too.
func testHead(h *harness) {
	var acked atomic.Int64
	_, next := h.followAll(store.Position{}, nil, 10)
	h.together(6, func(w int) error {
		for i := range 15 {
			id := fmt.Sprintf("%d-%d", w, i)
			c := &store.Change{ID: fresh(), Events: []store.Record{event(id)}}
			switch w % 3 {
			case 0:
				c.Puts = []store.Put{put(store.KindRule, id, "", store.Version{})}
			case 1:
				c.Puts = []store.Put{put(grant, id, "", store.Version{})}
			}
			before := acked.Load()
			commit, err := h.st.Apply(h.ctx, c)
			if err != nil {
				return err
			}
			if commit.Head.N < before || commit.Head.History != next.History {
				return fmt.Errorf("the Head %v of %s is behind %d of %x, which was acknowledged before Apply began", commit.Head, describe(c), before, next.History)
			}
			if w%3 != 0 {
				continue
			}
			r, err := h.st.Get(h.ctx, store.KindRule, id)
			if err != nil {
				return err
			}
			for old := acked.Load(); old < r.Pos.N && !acked.CompareAndSwap(old, r.Pos.N); old = acked.Load() {
			}
		}
		return nil
	})
	// One who has followed up to Head is not behind: it is a position of this store.
	commit := h.apply(&store.Change{ID: fresh(), Events: []store.Record{event("last")}})
	if rs, _ := h.followAll(commit.Head, nil, 10); len(rs) != 0 {
		h.t.Fatalf("%s is behind the Head of a later Change", show(rs[0]))
	}
}
