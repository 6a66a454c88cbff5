package storetest

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/apitoken-go/apitoken/store"
)

// Purge: what has expired and only that, a bounded part at a time, and unseen by Follow.
var purgeCases = []testCase{
	{"Purge", testPurge},
	{"Purge of state", testPurgeState},
	{"Purge of events", testPurgeEvents},
	{"Purge of all events", testPurgeAllEvents},
	{"Purge against revival", testPurgeRace},
}

func (h *harness) purge(kind store.Kind, before int64, max, want int, rule string) {
	h.t.Helper()
	n, err := h.st.Purge(h.ctx, kind, before, max)
	if err != nil || n != want {
		h.t.Fatalf("%s: Purge of %s before %d, at most %d, removed %d, %v; want %d", rule, kind, before, max, n, err, want)
	}
}

const hour = 3600_000 // ms

func testPurge(h *harness) {
	now := h.now()
	var puts []store.Put
	for i := range 12 {
		p := put(grant, fmt.Sprintf("dead%02d", i), "", store.Version{})
		p.Subject, p.Expires = "s", now-hour-int64(i)
		puts = append(puts, p)
	}
	for id, expires := range map[string]int64{"ever": 0, "alive": now + hour, "far": 1 << 45} {
		p := put(grant, id, "", store.Version{})
		p.Subject, p.Expires = "s", expires
		puts = append(puts, p)
	}
	v := h.must(puts)
	other := put(another, "dead00", "", store.Version{})
	other.Expires = now - hour
	h.must([]store.Put{other})

	h.purge(grant, now-hour-11, 100, 0, "Expires < before is strict")
	h.purge(grant, now, 0, 0, "at most max")
	h.purge(grant, now-hour-10, 100, 1, "Expires < before")
	h.absent(grant, "dead11", "it was purged")
	h.purge(grant, now, 5, 5, "at most max")
	left, _ := h.all(store.Query{Kind: grant, Limit: 100})
	if len(left) != 9 {
		h.t.Fatalf("%d records are left of 15 after 6 were purged: %q", len(left), ids(left))
	}
	// One of the dead comes back to life: a later expiry counts at once.
	for _, r := range left {
		if r.Expires > 0 && r.Expires < now {
			r.Expires = now + hour
			h.must([]store.Put{{Record: r, Expect: r.Version}})
			h.purge(grant, now+2*hour, 100, 5, "alive by the store's own clock, whatever before says")
			h.purge(grant, 1<<50, 100, 0, "alive by the store's own clock, whatever before says")
			h.lists(store.Query{Kind: grant}, slices.Sorted(slices.Values([]string{"alive", "ever", "far", r.ID})))
			h.lists(store.Query{Kind: grant, Subject: "s"}, slices.Sorted(slices.Values([]string{"alive", "ever", "far", r.ID})))
			break
		}
	}
	h.get(another, "dead00")
	// What was alive dies by a put with an earlier Expires.
	p := put(grant, "alive", "", v)
	p.Subject, p.Expires = "s", now-1
	h.must([]store.Put{p})
	h.purge(grant, now, 100, 1, "an earlier Expires counts too")
	// A record that is gone is as if it had never been.
	h.refused(&store.Change{ID: fresh(), Puts: []store.Put{put(grant, "dead11", "", v)}}, store.ErrConflict, "a purged record has no Version")
	again := put(grant, "dead11", "again", store.Version{})
	again.Subject = "t"
	h.must([]store.Put{again})
	if r := h.get(grant, "dead11"); r.Expires != 0 || string(r.Data) != "again" {
		h.t.Fatalf("%s, want the new record", show(r))
	}
	h.lists(store.Query{Kind: grant, Subject: "t"}, []string{"dead11"})
	h.purge(grant, 1<<50, 100, 0, "the new record does not inherit the old one's expiry")
	h.purge(another, now, 100, 1, "each kind by itself")
	// Purged by itself once its time has come.
	p = put(another, "soon", "", store.Version{})
	p.Expires = h.now() + 20
	h.must([]store.Put{p})
	for h.now() <= p.Expires {
		if n, err := h.st.Purge(h.ctx, another, 1<<50, 10); err != nil || n != 0 && h.now() < p.Expires {
			h.t.Fatalf("Purge removed %d, %v, of a record that is alive", n, err)
		}
	}
}

func testPurgeState(h *harness) {
	now := h.now()
	var puts []store.Put
	for i := range 6 {
		p := put(store.KindRule, fmt.Sprint(i), "", store.Version{})
		if i != 2 {
			p.Expires = now - hour
		}
		puts = append(puts, p)
	}
	h.must(puts[:3])
	_, middle := h.followAll(store.Position{}, nil, 10)
	h.must(puts[3:])
	rs, end := h.followAll(store.Position{}, nil, 10)
	if len(rs) != 6 {
		h.t.Fatalf("Follow: %d records, want 6: the expired ones too, until they are purged", len(rs))
	}
	h.purge(store.KindRule, now, 100, 5, "expired rules")
	if rs, next := h.followAll(end, nil, 10); len(rs) != 0 || next.History != end.History {
		h.t.Fatalf("Follow after a purge: %q, history %x; removal is no message", ids(rs), next.History)
	}
	if rs, _ := h.followAll(middle, nil, 10); len(rs) != 0 {
		h.t.Fatalf("Follow from the middle after a purge: %q", ids(rs))
	}
	if rs, _ := h.followAll(store.Position{}, nil, 10); !slices.Equal(ids(rs), []string{"2"}) {
		h.t.Fatalf("the snapshot after a purge: %q, want what is left", ids(rs))
	}
	if c := h.apply(&store.Change{ID: fresh(), Events: []store.Record{event("e")}}); c.Head.N < end.N {
		h.t.Fatalf("Head went back from %d to %d by a purge", end.N, c.Head.N)
	}
	h.must([]store.Put{put(store.KindRule, "0", "new", store.Version{})})
	if rs, _ := h.followAll(end, nil, 10); len(rs) != 1 || rs[0].Pos.N <= end.N || string(rs[0].Data) != "new" {
		h.t.Fatalf("Follow after a purge and a write: %q, want the write, at a higher position than %d", ids(rs), end.N)
	}
}

func testPurgeEvents(h *harness) {
	now := h.now()
	for i := range 12 {
		e := event(fmt.Sprintf("%02d", i))
		e.Subject = "s"
		if i < 8 {
			e.Expires = now - hour
		}
		h.must(nil, e)
	}
	p := put(grant, "x", "", store.Version{})
	p.Expires = now - hour
	h.must([]store.Put{p})
	q := store.Query{Kind: store.KindEvent, Limit: 3}
	var all []store.Record
	h.eventually(func() error {
		if all, _ = h.all(q); len(all) != 12 {
			return fmt.Errorf("%d events, want 12: the expired ones too, until they are purged", len(all))
		}
		return nil
	})
	early, err := h.st.List(h.ctx, q)
	if err != nil || early.Cursor == "" {
		h.t.Fatalf("List: cursor %q, %v", early.Cursor, err)
	}
	newest := q
	newest.Newest = true
	back, err := h.st.List(h.ctx, newest)
	if err != nil || back.Cursor == "" {
		h.t.Fatalf("List: cursor %q, %v", back.Cursor, err)
	}
	h.purge(store.KindEvent, now-hour, 100, 0, "Expires < before is strict")
	total := 0
	for range 20 {
		n, err := h.st.Purge(h.ctx, store.KindEvent, now, 3)
		if err != nil || n > 3 {
			h.t.Fatalf("Purge of events, at most 3, removed %d, %v", n, err)
		}
		if total += n; n == 0 {
			break
		}
	}
	if total != 8 {
		h.t.Fatalf("Purge removed %d events, want the 8 that expired", total)
	}
	want := []string{"08", "09", "10", "11"}
	h.lists(store.Query{Kind: store.KindEvent, Limit: 3}, want)
	h.lists(store.Query{Kind: store.KindEvent, Limit: 3, Subject: "s"}, want)
	q.Cursor = early.Cursor
	if p, err := h.st.List(h.ctx, q); !errors.Is(err, store.ErrTrimmed) {
		h.t.Fatalf("List from a cursor before purged events: %q, %v, want ErrTrimmed: whoever feeds on it has missed events and must know", ids(p.Records), err)
	}
	newest.Cursor = back.Cursor
	if rs, _ := h.all(newest); !slices.Equal(ids(rs), []string{"08"}) {
		h.t.Fatalf("newest first from a cursor after newer ones than were purged: %q, want 08", ids(rs))
	}
	h.get(grant, "x")
}

// testPurgeAllEvents: when no event is left, the places of new ones go on behind those of the old. If they began again, every
// cursor among them would be older than what was purged, and no reader could ever get past its first page.
func testPurgeAllEvents(h *harness) {
	const rule = "event places never begin again, not even when all events were purged"
	write := func(prefix string, n int, expires int64) (want []string) {
		for i := range n {
			e := event(fmt.Sprintf("%s%02d", prefix, i))
			e.Expires = expires
			h.must(nil, e)
			want = append(want, e.ID)
		}
		return want
	}
	page := func(want []string) {
		h.eventually(func() error {
			rs, _, err := pages(h.ctx, h.st, store.Query{Kind: store.KindEvent, Limit: 2})
			if err != nil || !slices.Equal(ids(rs), want) {
				return fmt.Errorf("%s: a reader that begins anew pages through %q, %v, want %q", rule, ids(rs), err, want)
			}
			return nil
		})
	}
	old := write("old", 20, 1)
	page(old)
	early, err := h.st.List(h.ctx, store.Query{Kind: store.KindEvent, Limit: 3})
	if err != nil || early.Cursor == "" {
		h.t.Fatalf("List: cursor %q, %v", early.Cursor, err)
	}
	h.purge(store.KindEvent, 2, 100, 20, "every event has expired")
	page(nil)
	want := write("new", 6, 0)
	page(want)
	trimmed := func() {
		q := store.Query{Kind: store.KindEvent, Limit: 3, Cursor: early.Cursor}
		if p, err := h.st.List(h.ctx, q); !errors.Is(err, store.ErrTrimmed) {
			h.t.Fatalf("List from a cursor before events that were purged: %q, %v, want ErrTrimmed: the reader has missed events", ids(p.Records), err)
		}
	}
	trimmed()
	if _, closes := h.raw.(io.Closer); !closes || !h.reopen() {
		return
	}
	trimmed()
	page(want)
	for i := range want {
		p := put(grant, want[i], "", store.Version{})
		h.must([]store.Put{p})
	}
	page(append(want, write("newer", 3, 0)...))
}

// testPurgeRace: a record that has expired is given new life while it is purged. One of the two comes first.
func testPurgeRace(h *harness) {
	const n = 48
	now := h.now()
	vs := make([]store.Version, n)
	for i := 0; i < n; i += 16 {
		var puts []store.Put
		for j := i; j < i+16; j++ {
			p := put(grant, fmt.Sprintf("%02d", j), "", store.Version{})
			p.Subject, p.Expires = "s", now-1
			puts = append(puts, p)
		}
		v := h.must(puts)
		for j := i; j < i+16; j++ {
			vs[j] = v
		}
	}
	var mu sync.Mutex // guards alive and purged
	var alive []string
	purged := 0
	h.together(6, func(w int) error {
		if w < 2 {
			for range 12 {
				k, err := h.st.Purge(h.ctx, grant, now+2*hour, 4)
				if err != nil {
					return err
				}
				mu.Lock()
				purged += k
				mu.Unlock()
			}
			return nil
		}
		for i := w - 2; i < n; i += 4 {
			p := put(grant, fmt.Sprintf("%02d", n-1-i), "alive", vs[n-1-i])
			p.Subject, p.Expires = "s", now+hour
			_, err := h.st.Apply(h.ctx, &store.Change{ID: fresh(), Puts: []store.Put{p}})
			switch {
			case err == nil:
				mu.Lock()
				alive = append(alive, p.ID)
				mu.Unlock()
			case !errors.Is(err, store.ErrConflict):
				return err
			}
		}
		return nil
	})
	h.t.Logf("%d revived, %d purged", len(alive), purged)
	for _, id := range alive {
		if r, err := h.st.Get(h.ctx, grant, id); err != nil || string(r.Data) != "alive" {
			h.t.Fatalf("a record that was acknowledged alive was purged: Get %s: %v", id, err)
		}
	}
	slices.Sort(alive)
	rest, err := h.st.Purge(h.ctx, grant, now+2*hour, n)
	if err != nil || purged+rest+len(alive) != n {
		h.t.Fatalf("%d + %d purged and %d alive, %v, want %d in all", purged, rest, len(alive), err, n)
	}
	h.lists(store.Query{Kind: grant}, alive)
	h.lists(store.Query{Kind: grant, Subject: "s"}, alive)
}
