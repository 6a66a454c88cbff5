package storetest

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/apitoken-go/apitoken/store"
)

// The audit feed: events in one final order, behind whose cursors nothing ever appears.
var feedCases = []testCase{
	{"Events in order", testEventOrder},
	{"Feed while others write", testFeed},
}

func testEventOrder(h *harness) {
	var want []string
	for i := range 20 {
		var events []store.Record
		for j := range i%3 + 1 {
			id := fmt.Sprintf("%c%d-%d", 'z'-i, i, j) // not in order of id
			want = append(want, id)
			events = append(events, event(id))
		}
		var puts []store.Put
		if i%2 == 0 {
			puts = append(puts, put([]store.Kind{grant, store.KindRule}[i/2%2], fmt.Sprint(i), "", store.Version{}))
		}
		h.must(puts, events...)
	}
	for _, limit := range []int{1, 3, len(want) - 1, len(want), len(want) + 1, 1000} {
		h.lists(store.Query{Kind: store.KindEvent, Limit: limit}, want)
	}
	// From each cursor on, the same rest; and a feed that has come to the end goes on from the last cursor it has.
	q := store.Query{Kind: store.KindEvent, Limit: 3}
	_, cursor := h.all(q)
	if cursor == "" {
		h.t.Fatal("many pages and no cursor")
	}
	done := 0
	for q.Cursor != cursor {
		p, err := h.st.List(h.ctx, q)
		if err != nil {
			h.t.Fatal(err)
		}
		done += len(p.Records)
		q.Cursor = p.Cursor
	}
	h.must(nil, event("later"))
	want = append(want, "later")
	h.eventually(func() error {
		rs, _, err := pages(h.ctx, h.st, q)
		if err != nil || !slices.Equal(ids(rs), want[done:]) {
			return fmt.Errorf("the feed goes on with %q, %v, want %q", ids(rs), err, want[done:])
		}
		return nil
	})
}

// span is when, in a clock that only counts, the Change of an event began and was acknowledged.
type span struct{ began, acked int64 }

// feedReader keeps what pages with a cursor showed: that part of the feed is final.
type feedReader struct {
	q       store.Query
	final   []string
	cursors []string // cursors[i] stood behind the first places[i] events
	places  []int
	last    []string // of the last page, which had no cursor
}

func (r *feedReader) read(h *harness) error {
	var l listing
	for {
		p, err := h.st.List(h.ctx, r.q)
		if err != nil {
			return err
		}
		if err := l.add(r.q, &p); err != nil {
			return err
		}
		if len(p.Records) > r.q.Limit {
			return fmt.Errorf("a page of %d records at Limit %d", len(p.Records), r.q.Limit)
		}
		if p.Cursor == "" {
			r.last = ids(p.Records)
			return nil
		}
		r.final = append(r.final, ids(p.Records)...)
		r.q.Cursor = p.Cursor
		r.cursors, r.places = append(r.cursors, p.Cursor), append(r.places, len(r.final))
	}
}

// testFeed: writers at once, and readers who go on from their cursors. In the end the readers have every event once,
// all in the same order, and an event acknowledged before another began comes first.
func testFeed(h *harness) {
	const writers, each = 6, 25
	var clock atomic.Int64
	var mu sync.Mutex // guards spans
	spans := map[string]span{}
	readers := []*feedReader{
		{q: store.Query{Kind: store.KindEvent, Limit: 1}},
		{q: store.Query{Kind: store.KindEvent, Limit: 4}},
		{q: store.Query{Kind: store.KindEvent, Limit: 3, Subject: "s1"}},
	}
	var writing atomic.Int32
	writing.Store(writers)
	newest := [][]string{}
	h.together(writers+len(readers)+1, func(n int) error {
		if n < writers {
			defer writing.Add(-1)
			for i := range each {
				c := &store.Change{ID: fresh()}
				for j := range i%3 + 1 {
					e := event(fmt.Sprintf("%d-%02d-%d", n, i, j))
					e.Subject = fmt.Sprint("s", n%2)
					c.Events = append(c.Events, e)
				}
				switch i % 4 {
				case 1:
					c.Puts = []store.Put{put(grant, c.Events[0].ID, "", store.Version{})}
				case 2:
					c.Puts = []store.Put{put(store.KindRule, c.Events[0].ID, "", store.Version{})}
				}
				s := span{began: clock.Add(1)}
				if _, err := h.st.Apply(h.ctx, c); err != nil {
					return err
				}
				s.acked = clock.Add(1)
				mu.Lock()
				for _, e := range c.Events {
					spans[e.ID] = s
				}
				mu.Unlock()
			}
			return nil
		}
		for {
			last := writing.Load() == 0
			if n == writers+len(readers) {
				p, err := h.st.List(h.ctx, store.Query{Kind: store.KindEvent, Newest: true, Limit: 50})
				if err != nil || last {
					return err
				}
				newest = append(newest, reversed(ids(p.Records)))
				continue
			}
			if err := readers[n-writers].read(h); err != nil || last {
				return err
			}
		}
	})
	var order []string
	h.eventually(func() error {
		rs, _, err := pages(h.ctx, h.st, store.Query{Kind: store.KindEvent, Limit: 1000})
		if order = ids(rs); err != nil || len(order) < len(spans) {
			return fmt.Errorf("the feed has %d events, %v, want %d", len(order), err, len(spans))
		}
		return nil
	})
	h.checkOrder(order, spans)
	for i, r := range readers {
		want := order
		if r.q.Subject != "" {
			want = slices.DeleteFunc(slices.Clone(order), func(id string) bool { return (id[0]-'0')%2 != 1 })
		}
		h.eventually(func() error {
			if err := r.read(h); err != nil {
				return err
			}
			if got := len(r.final) + len(r.last); got < len(want) {
				return fmt.Errorf("reader %d of the feed has %d events, want %d: an event appeared behind a cursor or is lost", i, got, len(want))
			}
			return nil
		})
		if got := slices.Concat(r.final, r.last); !slices.Equal(got, want) {
			h.t.Fatalf("reader %d of the feed had another order than the final one:\n%q\n%q", i, got, want)
		}
		for k := 0; k < len(r.cursors); k += 1 + len(r.cursors)/8 {
			q := r.q
			q.Cursor, q.Limit = r.cursors[k], 1000
			if rs, _ := h.all(q); !slices.Equal(ids(rs), want[r.places[k]:]) {
				h.t.Fatalf("a cursor behind %d events goes on with %q, want %q", r.places[k], ids(rs), want[r.places[k]:])
			}
		}
	}
	place := map[string]int{}
	for i, id := range order {
		place[id] = i
	}
	for _, page := range newest {
		for i := 1; i < len(page); i++ {
			if place[page[i]] <= place[page[i-1]] {
				h.t.Fatalf("newest first showed %s as newer than %s, the final order has them the other way", page[i], page[i-1])
			}
		}
	}
}

// checkOrder says whether each event is there once, those of a Change stand together in their own order, and none stands
// before one that was acknowledged before it began.
func (h *harness) checkOrder(order []string, spans map[string]span) {
	h.t.Helper()
	seen := map[string]bool{}
	var latest int64 // the latest beginning so far
	for i, id := range order {
		s, ok := spans[id]
		if !ok || seen[id] {
			h.t.Fatalf("event %s is in the feed twice, or was never written", id)
		}
		seen[id] = true
		if s.acked < latest {
			h.t.Fatalf("event %s comes behind one whose Change began after it was acknowledged: %q", id, order[:i+1])
		}
		latest = max(latest, s.began)
		change, n := id[:len(id)-1], id[len(id)-1]
		if n != '0' && (i == 0 || order[i-1] != change+string(n-1)) {
			h.t.Fatalf("the events of one Change stand together in their order, but %s comes behind %s", id, order[max(0, i-1)])
		}
	}
	if len(seen) != len(spans) {
		h.t.Fatalf("the feed has %d events, want %d", len(seen), len(spans))
	}
}
