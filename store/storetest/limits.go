package storetest

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/apitoken-go/apitoken/store"
)

// What every store takes and refuses alike: the largest of everything, one more than that, and the odd values of each
// argument. [store.Check], [store.Kind.Check], [store.Kind.Possible] and [store.Query.Check] decide all of it.
var limitCases = []testCase{
	{"Limits", testLimits},
	{"Limits of text", testTextLimits},
	{"Refused changes", testRefused},
	{"Refused queries", testRefusedQueries},
	{"Limits of a page", testPageLimits},
	{"Edge values", testEdges},
}

func filled(n int) []byte { return bytes.Repeat([]byte{'d'}, n) }

func manyRecords(kind store.Kind, n, size int, prefix string) (rs []store.Record) {
	for i := range n {
		rs = append(rs, store.Record{Kind: kind, ID: fmt.Sprint(prefix, i), Data: filled(size)})
	}
	return rs
}

func putsOf(rs []store.Record) (ps []store.Put) {
	for _, r := range rs {
		ps = append(ps, store.Put{Record: r})
	}
	return ps
}

// exactly is a Change of so many bytes in all.
func exactly(size int, prefix string) *store.Change {
	c := &store.Change{ID: fresh(), Puts: putsOf(manyRecords(grant, store.MaxPuts, 0, prefix)), Events: manyRecords(store.KindEvent, store.MaxEvents, 0, prefix)}
	for i := range c.Puts {
		size -= c.Puts[i].Size()
	}
	for i := range c.Events {
		size -= c.Events[i].Size()
	}
	for i := range c.Puts {
		n := min(size, store.MaxData)
		c.Puts[i].Data = filled(n)
		size -= n
	}
	for i := range c.Events {
		n := min(size, store.MaxData)
		c.Events[i].Data = filled(n)
		size -= n
	}
	return c
}

func testLimits(h *harness) {
	const kib = 1 << 10
	for name, c := range map[string]*store.Change{
		"17 puts":                 {Puts: putsOf(manyRecords(grant, store.MaxPuts+1, 1, "no"))},
		"17 events":               {Puts: putsOf(manyRecords(grant, 1, 1, "no")), Events: manyRecords(store.KindEvent, store.MaxEvents+1, 1, "no")},
		"16 KiB + 1 in a record":  {Puts: putsOf(manyRecords(grant, 1, store.MaxData+1, "no"))},
		"16 KiB + 1 in an event":  {Puts: putsOf(manyRecords(grant, 1, 1, "no")), Events: manyRecords(store.KindEvent, 1, store.MaxData+1, "no")},
		"512 KiB in all":          {Puts: putsOf(manyRecords(grant, 16, 16*kib, "no")), Events: manyRecords(store.KindEvent, 16, 16*kib, "no")},
		"256 KiB + 1 byte in all": exactly(store.MaxChange+1, "no"),
	} {
		c.ID = fresh()
		h.refused(c, store.ErrTooLarge, name)
		h.absent(grant, "no0", "ErrTooLarge means not done")
	}
	// And what is allowed is taken: 16 and 16, 16 KiB each, 256 KiB to the byte.
	c := exactly(store.MaxChange, "r")
	h.apply(c)
	h.must(putsOf(manyRecords(store.KindRule, 15, 16*kib, "r")))
	h.must(nil, manyRecords(store.KindEvent, 15, 16*kib, "f")...)
	var want []string
	for i := range 16 {
		id := fmt.Sprint("r", i)
		if r := h.get(grant, id); len(r.Data) != len(c.Puts[i].Data) {
			h.t.Fatalf("%s has lost data, want %d bytes", show(r), len(c.Puts[i].Data))
		}
		want = append(want, id)
	}
	for i := range 15 {
		want = append(want, fmt.Sprint("f", i))
	}
	if rs, _ := h.followAll(store.Position{}, nil, 100); len(rs) != 15 || len(rs[14].Data) != 16*kib {
		h.t.Fatalf("Follow: %d records, want 15 of 16 KiB", len(rs))
	}
	h.lists(store.Query{Kind: store.KindEvent, Limit: 100}, want)
}

// withSelector is a record of kind k with s in the i-th of its selectors.
func withSelector(k store.Kind, id string, i int, s string) store.Record {
	r := store.Record{Kind: k, ID: id}
	*[]*string{&r.Subject, &r.Client, &r.Grant, &r.Token, &r.Type}[i] = s
	return r
}

func selecting(k store.Kind, i int, s string) store.Query {
	r := withSelector(k, "", i, s)
	return store.Query{Kind: k, Subject: r.Subject, Client: r.Client, Grant: r.Grant, Token: r.Token, Type: r.Type, Limit: 10}
}

// testTextLimits: the longest kind, ID and selectors, all at once, are stored and found again.
func testTextLimits(h *harness) {
	kind := store.Kind(strings.Repeat("k", store.MaxKind-2) + "ü")
	long := func(c string) string { return strings.Repeat(c, store.MaxSelector) }
	r := store.Record{
		Kind: kind, ID: strings.Repeat("i", store.MaxID), Subject: long("s"), Client: long("c"), Grant: long("g"), Token: long("t"), Type: long("y"),
		Expires: 1,
	}
	e := r
	e.Kind, e.Expires = store.KindEvent, 0
	h.must([]store.Put{{Record: r}}, e)
	if got := h.get(kind, r.ID); !sameGiven(got, r) {
		h.t.Fatalf("Get of the longest kind, ID and selectors: %s, want %s", show(got), show(r))
	}
	for _, k := range []store.Kind{kind, store.KindEvent} {
		for i, c := range []string{"s", "c", "g", "t", "y"} {
			h.lists(selecting(k, i, long(c)), []string{r.ID})
			h.lists(selecting(k, i, long(c)[1:]), nil)
		}
	}
	h.purge(kind, 2, 10, 1, "a kind of 64 bytes")
	for i := range 5 {
		for _, k := range []store.Kind{grant, store.KindRule} {
			r := withSelector(k, "no", i, long("s")+"s")
			h.refused(&store.Change{ID: fresh(), Puts: []store.Put{{Record: r}}}, store.ErrTooLarge, "a selector of more than 512 bytes")
			h.absent(k, "no", "ErrTooLarge means not done")
		}
		e := withSelector(store.KindEvent, "no", i, long("s")+"s")
		h.refused(&store.Change{ID: fresh(), Events: []store.Record{e}}, store.ErrTooLarge, "a selector of more than 512 bytes in an event")
	}
	h.lists(store.Query{Kind: store.KindEvent}, []string{e.ID})
}

// badKinds and badTexts are what no store keeps: where one engine takes them and another does not, a revocation is
// acknowledged here and tried for ever there.
var (
	badKinds = []store.Kind{"", "a\x00b", "\x00", "a\xff", "\xc3", store.Kind(strings.Repeat("k", store.MaxKind+1))}
	badTexts = []string{"a\x00b", "\x00", "a\xff", "\xc3", "\xed\xa0\x80"}
)

func testRefused(h *harness) {
	fixed := store.Record{Kind: grant, ID: "old", Subject: "s", Client: "c", Grant: "g", Token: "t", Type: "y"}
	v := h.must([]store.Put{{Record: fixed}})
	type refusal struct {
		rule string
		c    *store.Change
	}
	var cases []refusal
	add := func(rule string, puts []store.Put, events ...store.Record) {
		cases = append(cases, refusal{rule, &store.Change{ID: fresh(), Puts: puts, Events: events}})
	}
	good := put(grant, "new", "", store.Version{})
	for _, id := range badIDs {
		rule := fmt.Sprintf("an ID must be 1 to 255 bytes of UTF-8 without NUL, not %.20q", id)
		add(rule, []store.Put{good, put(grant, id, "", store.Version{})})
		add(rule, []store.Put{good, put(store.KindRule, id, "", store.Version{})})
		add(rule, []store.Put{good}, event("no"), event(id))
	}
	for _, k := range badKinds {
		add(fmt.Sprintf("a kind must be 1 to 64 bytes of UTF-8 without NUL, not %.80q", string(k)), []store.Put{good, put(k, "x", "", store.Version{})})
	}
	for _, s := range badTexts {
		for i := range 5 {
			rule := fmt.Sprintf("a selector must be UTF-8 without NUL, not %q", s)
			add(rule, []store.Put{good, {Record: withSelector(grant, "no", i, s)}})
			add(rule, []store.Put{good, {Record: withSelector(store.KindRule, "no", i, s)}})
			add(rule, []store.Put{good}, event("no"), withSelector(store.KindEvent, "no", i, s))
		}
	}
	negative := put(store.KindRule, "no", "", store.Version{})
	negative.Expires = -1
	add("Expires is not negative", []store.Put{good, negative})
	gone := event("no")
	gone.Expires = -1
	add("Expires of an event is not negative", []store.Put{good}, gone)
	add("each record once in a Change", []store.Put{good, put(grant, "new", "again", store.Version{})})
	add("events are only ever in Change.Events", []store.Put{good, put(store.KindEvent, "x", "", store.Version{})})
	add("only events are in Change.Events", []store.Put{good}, store.Record{Kind: store.KindRule, ID: "no"})
	cases = append(cases, refusal{"a Change has an ID: a zero Version means no record", &store.Change{Puts: []store.Put{good}, Events: []store.Record{event("no")}}})
	for i := range 5 {
		r := fixed
		*[]*string{&r.Subject, &r.Client, &r.Grant, &r.Token, &r.Type}[i] = "another"
		add("what List selects by is fixed for the life of a record", []store.Put{good, {Record: r, Expect: v}}, event("no"))
	}
	for _, x := range cases {
		_, err := h.st.Apply(h.ctx, x.c)
		if !errors.Is(err, store.ErrInvalid) && !errors.Is(err, store.ErrTooLarge) {
			h.t.Fatalf("%s: Apply of %s answered %v, want ErrInvalid: it means not done, and any other error would be tried again for ever",
				x.rule, describe(x.c), err)
		}
		h.absent(grant, "new", x.rule+": a Change that is refused writes nothing")
		h.absent(store.KindRule, "no", x.rule+": a Change that is refused writes nothing")
	}
	h.must([]store.Put{good}, event("yes"))
	h.lists(store.Query{Kind: store.KindEvent}, []string{"yes"})
	h.lists(store.Query{Kind: grant}, []string{"new", "old"})
	if rs, _ := h.followAll(store.Position{}, nil, 10); len(rs) != 0 {
		h.t.Fatalf("Follow shows %s of a Change that was refused", show(rs[0]))
	}
}

// testRefusedQueries: what no record can have is asked for, by a request perhaps.
func testRefusedQueries(h *harness) {
	h.must([]store.Put{put(grant, "a", "", store.Version{})}, event("e"))
	for _, k := range badKinds {
		h.absent(k, "a", "a kind that cannot be holds nothing; it is no failure of the store")
		if p, err := h.st.List(h.ctx, store.Query{Kind: k, Limit: 10}); !errors.Is(err, store.ErrInvalid) {
			h.t.Fatalf("List of the kind %.80q, which cannot be, answered %q, %v, want ErrInvalid", string(k), ids(p.Records), err)
		}
		if n, err := h.st.Purge(h.ctx, k, 1<<50, 10); n != 0 || !errors.Is(err, store.ErrInvalid) {
			h.t.Fatalf("Purge of the kind %.80q, which cannot be, answered %d, %v, want ErrInvalid", string(k), n, err)
		}
	}
	for _, s := range append([]string{strings.Repeat("s", store.MaxSelector+1)}, badTexts...) {
		for i := range 5 {
			for _, k := range []store.Kind{grant, store.KindEvent} {
				for _, newest := range []bool{false, true} {
					q := selecting(k, i, s)
					q.Newest = newest
					if p, err := h.st.List(h.ctx, q); err != nil || len(p.Records) != 0 || p.Cursor != "" {
						h.t.Fatalf("List of %s by the selector %.20q, which no record can have, answered %q, cursor %q, %v, want an empty page",
							k, s, ids(p.Records), p.Cursor, err)
					}
				}
			}
		}
	}
}

// testPageLimits: Limit outside of 1 to 1000 means 1000.
func testPageLimits(h *harness) {
	const n = store.MaxLimit + 1
	var rs []store.Record
	for i := range n {
		rs = append(rs, store.Record{Kind: grant, ID: fmt.Sprintf("%04d", i)})
	}
	for part := range slices.Chunk(rs, store.MaxPuts) {
		events := slices.Clone(part)
		for i := range events {
			events[i].Kind = store.KindEvent
		}
		h.must(putsOf(part), events...)
	}
	want := ids(rs)
	for _, k := range []store.Kind{grant, store.KindEvent} {
		h.lists(store.Query{Kind: k, Limit: store.MaxLimit}, want)
		for _, limit := range []int{0, -1, store.MaxLimit + 1, math.MaxInt} {
			q := store.Query{Kind: k, Limit: limit}
			p, err := h.st.List(h.ctx, q)
			switch {
			case err != nil:
				h.t.Fatalf("List of %s with Limit %d: %v", k, limit, err)
			case len(p.Records) > store.MaxLimit || p.Cursor == "":
				h.t.Fatalf("List of %s with Limit %d: %d of %d records, cursor %q: a page has at most 1000, and a cursor for the rest",
					k, limit, len(p.Records), n, p.Cursor)
			case len(p.Records) < 100:
				h.t.Fatalf("List of %s with Limit %d: a page of %d of %d small records: a Limit outside of 1 to 1000 means 1000",
					k, limit, len(p.Records), n)
			}
		}
	}
}

func testEdges(h *harness) {
	h.must([]store.Put{put(store.KindRule, "a", "", store.Version{}), put(grant, "g", "", store.Version{})}, event("1"))
	h.must([]store.Put{put(store.KindRole, "b", "", store.Version{})}, event("2"))
	// Follow: an empty list of kinds leaves nothing out, and max 0 is the store's to choose.
	for _, kinds := range [][]store.Kind{nil, {}} {
		for _, max := range []int{10, 0, -1} {
			if rs, _ := h.followAll(store.Position{}, kinds, max); !slices.Equal(ids(rs), []string{"a", "b"}) {
				h.t.Fatalf("Follow of %#v with max %d: %q, want a and b: kinds nil or empty means all, and a max that is not positive is the store's to choose",
					kinds, max, ids(rs))
			}
		}
	}
	// Negative times: Since excludes nothing, Until everything.
	for _, k := range []store.Kind{grant, store.KindEvent} {
		all := map[store.Kind][]string{grant: {"g"}, store.KindEvent: {"1", "2"}}[k]
		h.lists(store.Query{Kind: k, Since: -1}, all)
		h.lists(store.Query{Kind: k, Since: -1 << 62}, all)
		h.lists(store.Query{Kind: k, Since: 1 << 62}, nil)
		h.lists(store.Query{Kind: k, Until: 1 << 62}, all)
		h.lists(store.Query{Kind: k, Until: -1}, nil)
		h.lists(store.Query{Kind: k, Until: -1 << 62}, nil)
		h.lists(store.Query{Kind: k, Since: -1, Until: 1}, nil)
	}
	// Purge: nothing expires before a time that is not positive.
	dead := put(another, "dead", "", store.Version{})
	dead.Expires = 1
	h.must([]store.Put{dead})
	for _, before := range []int64{0, -1, -1 << 62, 1} {
		h.purge(another, before, 10, 0, "0 < Expires < before")
	}
	h.purge(another, 2, -1, 0, "at most max, so a negative max removes nothing")
	h.purge(another, 1<<62, 10, 1, "0 < Expires < before")
	// The feed goes on from the cursor of the last page, whose own is "".
	q := store.Query{Kind: store.KindEvent, Limit: 1}
	first, err := h.st.List(h.ctx, q)
	if err != nil || first.Cursor == "" {
		h.t.Fatalf("the first of two events at Limit 1: cursor %q, %v", first.Cursor, err)
	}
	q.Cursor, q.Limit = first.Cursor, 10
	for _, want := range [][]string{{"2"}, {"2", "3"}, {"2", "3", "4"}} {
		h.eventually(func() error {
			p, err := h.st.List(h.ctx, q)
			if err != nil || p.Cursor != "" || !slices.Equal(ids(p.Records), want) {
				return fmt.Errorf("the feed goes on from the last cursor with %q, cursor %q, %v, want %q: what was there and what came since",
					ids(p.Records), p.Cursor, err, want)
			}
			return nil
		})
		h.must(nil, event(fmt.Sprint(len(want)+2)))
	}
}
