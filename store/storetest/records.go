package storetest

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unsafe"

	"github.com/apitoken-go/apitoken/store"
)

// What a record is: all of its fields, its stamps, odd ids, and whose memory it lies in.
var recordCases = []testCase{
	{"Empty", testEmpty},
	{"Get", testGet},
	{"Stamps", testStamps},
	{"Keys", testKeys},
	{"Memory given in", testMemoryIn},
	{"Memory given out", testMemoryOut},
}

func testEmpty(h *harness) {
	h.absent(grant, "x", "a new store")
	for _, k := range []store.Kind{grant, another, store.KindRule, store.KindEvent} {
		for _, newest := range []bool{false, true} {
			p, err := h.st.List(h.ctx, store.Query{Kind: k, Newest: newest, Limit: 10})
			if err != nil || len(p.Records) != 0 || p.Cursor != "" {
				h.t.Fatalf("List of %s in a new store: %+v, %v", k, p, err)
			}
		}
		if n, err := h.st.Purge(h.ctx, k, 1<<50, 10); n != 0 || err != nil {
			h.t.Fatalf("Purge of %s in a new store: %d, %v", k, n, err)
		}
	}
	rs, next := h.followAll(store.Position{}, nil, 10)
	if len(rs) != 0 {
		h.t.Fatalf("Follow of a new store: %s", show(rs[0]))
	}
	rs, again := h.followAll(next, nil, 10)
	if len(rs) != 0 || again.History != next.History {
		h.t.Fatalf("Follow from the end of a new store: %d records, Next %v behind %v", len(rs), again, next)
	}
	h.must([]store.Put{put(store.KindRule, "first", "", store.Version{})})
	if rs, _ = h.followAll(next, nil, 10); len(rs) != 1 {
		h.t.Fatalf("%d records behind the position of an empty store, want the first one written", len(rs))
	}
}

func testGet(h *harness) {
	var every []byte
	for i := range 256 {
		every = append(every, byte(i))
	}
	now := h.now()
	records := []store.Record{
		{Kind: grant, ID: "bare"},
		{Kind: grant, ID: "full", Subject: "s", Client: "c", Grant: "g", Token: "t", Type: "y", Expires: now + 1e9, Data: every},
		{Kind: grant, ID: "expired", Expires: 1, Data: []byte("still there")},
		{Kind: grant, ID: "far", Expires: 253402300799999, Data: []byte{0}},
		{Kind: grant, ID: "largest", Data: bytes.Repeat(every, 64)},
		{Kind: store.KindRule, ID: "full", Subject: "s2", Client: "c2", Grant: "g2", Token: "t2", Type: "y2", Expires: now - 1},
		{
			Kind: another, ID: "full", Subject: "söme\tone \"' \\ / % _ * ? [a] {b} : | , ;", Client: strings.Repeat("ü", 127),
			Grant: "日本語", Token: "🔑", Type: " ", Data: []byte("null"),
		},
	}
	for _, r := range records {
		v := h.must([]store.Put{{Record: r}})
		if got := h.get(r.Kind, r.ID); !sameGiven(got, r) || got.Version != v {
			h.t.Fatalf("Get: %s, want version %x of %s", show(got), v[:4], show(r))
		}
	}
	for _, r := range records {
		if got := h.get(r.Kind, r.ID); !sameGiven(got, r) {
			h.t.Fatalf("Get: %s, want %s", show(got), show(r))
		}
	}
	h.absent(store.KindRole, "full", "a record of another kind")
	h.absent(grant, "Full", "ids differ in case")
	h.absent(store.KindEvent, "full", "an event is no record")
	h.must(nil, event("e"))
	h.absent(store.KindEvent, "e", "events are only in List")
	for _, id := range badIDs {
		h.absent(grant, id, "an id that cannot be, from a request perhaps, is not found; it is no failure of the store")
	}
}

func testStamps(h *harness) {
	lie := store.Record{
		Kind: store.KindRule, ID: "a", Version: fresh(), Pos: store.Position{History: 7, N: 1 << 61}, Written: 5, Data: []byte("1"),
	}
	before := h.now()
	c := &store.Change{ID: fresh(), Puts: []store.Put{{Record: lie}, put(grant, "a", "", store.Version{})}, Events: []store.Record{lie}}
	c.Events[0].Kind = store.KindEvent
	commit := h.apply(c)
	after := h.now()
	if commit.Now < before || commit.Now > after {
		h.t.Fatalf("Commit.Now %d is not between the Now before, %d, and the Now after, %d", commit.Now, before, after)
	}
	_, next := h.followAll(store.Position{}, nil, 10)
	rule, g := h.get(store.KindRule, "a"), h.get(grant, "a")
	for _, r := range []store.Record{rule, g} {
		if r.Version != c.ID {
			h.t.Fatalf("the Version is the Change's ID, not %x", r.Version)
		}
		if r.Written < before || r.Written > after {
			h.t.Fatalf("Written is the store's: %d is not between %d and %d", r.Written, before, after)
		}
	}
	if g.Pos != (store.Position{}) {
		h.t.Fatalf("%s: only state has a Pos", show(g))
	}
	if rule.Pos.History != next.History || rule.Pos.N > next.N {
		h.t.Fatalf("%s: its Pos is not in the history that Follow tells, %v", show(rule), next)
	}
	if rule.Pos.N < rule.Written<<16 {
		h.t.Fatalf("Pos.N %d is less than the store's clock in ms << 16, %d: it would not rise across a restore", rule.Pos.N, rule.Written<<16)
	}
	h.eventually(func() error {
		rs, _, err := pages(h.ctx, h.st, store.Query{Kind: store.KindEvent, Limit: 10})
		if err != nil || len(rs) != 1 {
			return fmt.Errorf("%d events, %v", len(rs), err)
		}
		e := rs[0]
		if e.Version != c.ID || e.Pos != (store.Position{}) || e.Written < before || e.Written > after {
			h.t.Fatalf("%s: an event has the Version and Written of its Change, and no Pos", show(e))
		}
		return nil
	})
	h.nextMs()
	v := h.must([]store.Put{{Record: rule, Expect: rule.Version}})
	if r := h.get(store.KindRule, "a"); r.Version != v || r.Written <= rule.Written || r.Pos.N <= rule.Pos.N {
		h.t.Fatalf("%s: written again, it has new stamps, higher than those of %s", show(r), show(rule))
	}
}

var badIDs = []string{"", strings.Repeat("x", 256), strings.Repeat("ü", 128), "a\x00b", "\x00", "a\xff", "\xc3"}

// oddIDs are all allowed, and all different.
var oddIDs = []string{
	"a", "A", "á", "a\u0301", "aa", "ab", "a b", " a", "a ", "\ta", "a\n", "\x01", "\x7f", "a/b", "/", "//", "../a", ".", "a.b", "a:b", ":",
	"a*", "*", "a?", "[a]", "{a}", "{", "}", "}{", "a%", "%", "%61", "a_", "_", `a\`, `\`, `\x00`, `"`, "'", "''", "$1", "#", "@", "|",
	"a,b", ";", "-", "--", "0", "00", "1", "10", "9", "true", "null", "nil", "ß", "ss", "İ", "i", "ı", "日本", "日本語",
	"🔑", "\u200b", "\u00a0", "\ufeff", "\ufffd", "\U0010ffff", "a\U0010ffff", "b", "z", "~",
	strings.Repeat("x", 254), strings.Repeat("x", 255), strings.Repeat("ü", 127), strings.Repeat("日", 85), strings.Repeat("\n", 255),
}

// testKeys: ids are bytes in bytewise order, whatever an engine's collation, separators and patterns make of them.
func testKeys(h *harness) {
	kinds := []store.Kind{store.KindRole, grant, "grants", "gran"}
	want := slices.Sorted(slices.Values(oddIDs))
	vs := map[string]store.Version{}
	for _, k := range kinds {
		for part := range slices.Chunk(oddIDs, 16) {
			var puts []store.Put
			var events []store.Record
			for _, id := range part {
				puts = append(puts, store.Put{Record: store.Record{
					Kind: k, ID: id, Subject: id, Client: "c", Data: []byte(string(k) + id),
				}})
				if k == grant {
					events = append(events, store.Record{Kind: store.KindEvent, ID: id, Subject: "s", Grant: id, Token: id, Type: id})
				}
			}
			v := h.must(puts, events...)
			for _, id := range part {
				vs[string(k)+" "+id] = v
			}
		}
	}
	for _, k := range kinds {
		h.lists(store.Query{Kind: k, Limit: 10}, want)
		h.lists(store.Query{Kind: k, Client: "c", Limit: 10}, want)
		for _, id := range oddIDs {
			r := h.get(k, id)
			if r.ID != id || r.Kind != k || string(r.Data) != string(k)+id || r.Version != vs[string(k)+" "+id] {
				h.t.Fatalf("Get %s/%q answered %s", k, id, show(r))
			}
		}
	}
	for _, id := range oddIDs {
		h.lists(store.Query{Kind: grant, Subject: id}, []string{id})
		h.lists(store.Query{Kind: store.KindEvent, Token: id}, []string{id})
	}
	h.lists(store.Query{Kind: store.KindEvent, Subject: "s"}, oddIDs)
	rs, _ := h.followAll(store.Position{}, nil, 10)
	got := ids(rs)
	if slices.Sort(got); !slices.Equal(got, want) {
		h.t.Fatalf("Follow: %q, want %q", got, want)
	}
}

// scribble overwrites the memory that a Change refers to.
func scribble(c *store.Change) {
	for i := range c.Puts {
		for j := range c.Puts[i].Data {
			c.Puts[i].Data[j] = '#'
		}
		c.Puts[i] = store.Put{}
	}
	for i := range c.Events {
		for j := range c.Events[i].Data {
			c.Events[i].Data[j] = '#'
		}
		c.Events[i] = store.Record{}
	}
}

func testMemoryIn(h *harness) {
	// The strings lie in memory that changes after the call, as they would in a host that reuses its buffers.
	buf := []byte("id of a recordsubjectevent")
	text := unsafe.String(&buf[0], len(buf))
	id, subject, eventID := text[:14], text[14:21], text[21:]
	c := &store.Change{
		ID: fresh(),
		Puts: []store.Put{
			{Record: store.Record{Kind: grant, ID: id, Subject: subject, Data: []byte("data one")}},
			{Record: store.Record{Kind: store.KindRule, ID: id, Subject: subject, Data: []byte("data two")}},
		},
		Events: []store.Record{{Kind: store.KindEvent, ID: eventID, Subject: subject, Data: []byte("data three")}},
	}
	untouched := clone(c)
	commit := h.apply(c)
	for i := range c.Puts {
		if !same(c.Puts[i].Record, untouched.Puts[i].Record) || c.Puts[i].Expect != untouched.Puts[i].Expect {
			h.t.Fatalf("Apply changed what it was given: %s", show(c.Puts[i].Record))
		}
	}
	if c.ID != untouched.ID || !same(c.Events[0], untouched.Events[0]) {
		h.t.Fatal("Apply changed what it was given")
	}
	scribble(c)
	copy(buf, strings.Repeat("#", len(buf)))

	for kind, want := range map[store.Kind]string{grant: "data one", store.KindRule: "data two"} {
		r := h.get(kind, "id of a record")
		if r.ID != "id of a record" || r.Subject != "subject" || string(r.Data) != want {
			h.t.Fatalf("%s: the store kept memory that is the caller's", show(r))
		}
		h.lists(store.Query{Kind: kind, Subject: "subject"}, []string{"id of a record"})
	}
	h.eventually(func() error {
		rs, _, err := pages(h.ctx, h.st, store.Query{Kind: store.KindEvent, Subject: "subject", Limit: 10})
		if err != nil || len(rs) != 1 || rs[0].ID != "event" || string(rs[0].Data) != "data three" {
			return fmt.Errorf("events %v, %v: the store kept memory that is the caller's", rs, err)
		}
		return nil
	})
	kinds := []store.Kind{store.KindRule}
	if rs, _ := h.followAll(store.Position{}, kinds, 10); len(rs) != 1 || string(rs[0].Data) != "data two" || rs[0].ID != "id of a record" {
		h.t.Fatalf("Follow: %v: the store kept memory that is the caller's", rs)
	}
	if kinds[0] != store.KindRule {
		h.t.Fatal("Follow changed the kinds it was given")
	}
	if commit.Now == 0 {
		h.t.Fatal("Commit.Now is not set")
	}
}

func testMemoryOut(h *harness) {
	var puts []store.Put
	var events []store.Record
	for i := range 5 {
		p := put(store.KindRule, fmt.Sprint(i), strings.Repeat(fmt.Sprint(i), 100), store.Version{})
		p.Subject = "s"
		puts = append(puts, p)
		e := event(fmt.Sprint(i))
		e.Data = p.Data
		events = append(events, e)
	}
	h.must(puts, events...)
	h.lists(store.Query{Kind: store.KindEvent}, []string{"0", "1", "2", "3", "4"})
	read := map[string]func() ([]store.Record, error){
		"Get": func() (rs []store.Record, err error) {
			for i := range 5 {
				r, e := h.st.Get(h.ctx, store.KindRule, fmt.Sprint(i))
				rs, err = append(rs, r), errors.Join(err, e)
			}
			return rs, err
		},
		"Follow": func() ([]store.Record, error) {
			v, err := h.st.Follow(h.ctx, store.Position{}, nil, 10)
			return v.Records, err
		},
		"List": func() ([]store.Record, error) {
			p, err := h.st.List(h.ctx, store.Query{Kind: store.KindRule, Limit: 10})
			return p.Records, err
		},
		"List by subject": func() ([]store.Record, error) {
			p, err := h.st.List(h.ctx, store.Query{Kind: store.KindRule, Subject: "s", Limit: 10})
			return p.Records, err
		},
		"List of events": func() ([]store.Record, error) {
			p, err := h.st.List(h.ctx, store.Query{Kind: store.KindEvent, Limit: 10})
			return p.Records, err
		},
	}
	for name, f := range read {
		for range 2 {
			rs, err := f()
			if err != nil || len(rs) != 5 {
				h.t.Fatalf("%s: %d records, %v", name, len(rs), err)
			}
			for i := range rs {
				if want := strings.Repeat(fmt.Sprint(i), 100); string(rs[i].Data) != want {
					h.t.Fatalf("%s: record %d has %q: what was given out before belongs to its caller, who changed it", name, i, rs[i].Data)
				}
				for j := range rs[i].Data {
					rs[i].Data[j] = '#'
				}
				// Past its end too, where the next record might lie.
				_ = append(rs[i].Data, strings.Repeat("#", 50)...)
			}
			clear(rs)
		}
	}
}
