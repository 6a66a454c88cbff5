package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/apitoken-go/apitoken/store"
)

// List of records: by id in both directions, what selects, pages while others write.
var listCases = []testCase{
	{"List", testList},
	{"List by selectors", testSelectors},
	{"List by time", testListTime},
	{"List what expires", testListExpires},
	{"List at most 1000", testListLimit},
	{"List while others write", testListConcurrent},
}

func testList(h *harness) {
	var want []string
	for i := 0; i < 48; i += 16 {
		var puts []store.Put
		for j := i; j < i+16; j++ {
			id := fmt.Sprintf("%03d", j*29%48)
			want = append(want, id)
			puts = append(puts, put(grant, id, id, store.Version{}), put(store.KindRole, "r"+id, "", store.Version{}))
		}
		h.must(puts[:16])
		h.must(puts[16:])
	}
	slices.Sort(want)
	for _, limit := range []int{1, 7, 47, 48, 49, 1000} {
		h.lists(store.Query{Kind: grant, Limit: limit}, want)
	}
	for _, newest := range []bool{false, true} {
		h.eventually(func() error {
			rs, _, err := pages(h.ctx, h.st, store.Query{Kind: grant, Newest: newest, Limit: 5})
			if err != nil {
				return err
			}
			for _, r := range rs {
				if got := h.get(grant, r.ID); !same(r, got) {
					return fmt.Errorf("in List: %s, Get: %s", show(r), show(got))
				}
			}
			return nil
		})
	}
	// A rewrite moves nothing, and the page has the new form.
	r := h.get(grant, "017")
	r.Data = []byte("again")
	v := h.must([]store.Put{{Record: r, Expect: r.Version}})
	h.lists(store.Query{Kind: grant}, want)
	h.eventually(func() error {
		rs, _, err := pages(h.ctx, h.st, store.Query{Kind: grant, Limit: 5})
		if err != nil || len(rs) != 48 || rs[17].Version != v || string(rs[17].Data) != "again" {
			return fmt.Errorf("in List does not show the rewrite, %v", err)
		}
		return nil
	})
	// A cursor goes on behind its place even if records came and went around it.
	p, err := h.st.List(h.ctx, store.Query{Kind: grant, Limit: 10})
	if err != nil || len(p.Records) == 0 || p.Cursor == "" {
		h.t.Fatalf("List: %d records, cursor %q, %v", len(p.Records), p.Cursor, err)
	}
	n := len(p.Records)
	h.must([]store.Put{put(grant, "0000", "", store.Version{}), put(grant, "~", "", store.Version{})})
	h.eventually(func() error {
		rs, _, err := pages(h.ctx, h.st, store.Query{Kind: grant, Limit: 10, Cursor: p.Cursor})
		if want := append(slices.Clone(want[n:]), "~"); err != nil || !slices.Equal(ids(rs), want) {
			return fmt.Errorf("in List from a cursor: %q, %v, want %q", ids(rs), err, want)
		}
		return nil
	})
	h.lists(store.Query{Kind: another}, nil)
	h.lists(store.Query{Kind: store.KindRule}, nil)
}

// selectors gives records i of a set values of which each is shared by some.
func selectors(i int) (r store.Record) {
	r.Subject, r.Client, r.Grant = fmt.Sprint("s", i%3), fmt.Sprint("c", i%4), fmt.Sprint("g", i/2)
	r.Token, r.Type = fmt.Sprint("t", i), []string{"", "issue", "revoke"}[i%3]
	if i%5 == 0 {
		r.Subject = ""
	}
	return r
}

func selects(q *store.Query, r *store.Record) bool {
	return (q.Subject == "" || q.Subject == r.Subject) && (q.Client == "" || q.Client == r.Client) &&
		(q.Grant == "" || q.Grant == r.Grant) && (q.Token == "" || q.Token == r.Token) && (q.Type == "" || q.Type == r.Type) &&
		(q.Since == 0 || r.Written >= q.Since) && (q.Until == 0 || r.Written < q.Until) &&
		(q.ExpiresBefore == 0 || 0 < r.Expires && r.Expires < q.ExpiresBefore)
}

// fillSelectors writes n grants, rules and events with the same selectors.
func (h *harness) fillSelectors(n int) {
	h.t.Helper()
	for i := 0; i < n; i += 8 {
		c := &store.Change{ID: fresh()}
		for j := i; j < min(i+8, n); j++ {
			r := selectors(j)
			r.ID, r.Data = fmt.Sprintf("%03d", j*37%n), []byte(fmt.Sprint(j))
			for _, k := range []store.Kind{grant, store.KindRule} {
				r.Kind = k
				c.Puts = append(c.Puts, store.Put{Record: r})
			}
			r.Kind = store.KindEvent
			c.Events = append(c.Events, r)
		}
		h.apply(c)
		if i%24 == 0 {
			h.nextMs()
		}
	}
}

// selectorQueries are all combinations of what selects records like r, and some that select nothing.
func selectorQueries(r store.Record) (qs []store.Query) {
	for m := range 32 {
		var q store.Query
		if m&1 != 0 {
			q.Subject = r.Subject
		}
		if m&2 != 0 {
			q.Client = r.Client
		}
		if m&4 != 0 {
			q.Grant = r.Grant
		}
		if m&8 != 0 {
			q.Token = r.Token
		}
		if m&16 != 0 {
			q.Type = r.Type
		}
		qs = append(qs, q)
	}
	return append(qs, store.Query{Subject: r.Client}, store.Query{Subject: "s"}, store.Query{Subject: "S1"}, store.Query{Subject: "s%"},
		store.Query{Subject: "s*"}, store.Query{Subject: r.Subject + " "}, store.Query{Client: r.Client, Type: "nothing"},
		store.Query{Subject: "s1", Grant: "g0"}, store.Query{Token: "t1", Client: "c2"}, store.Query{Token: r.Token + r.Type})
}

func testSelectors(h *harness) {
	const n = 48
	h.fillSelectors(n)
	for _, kind := range []store.Kind{grant, store.KindRule, store.KindEvent} {
		var all []store.Record
		h.eventually(func() error {
			all, _ = h.all(store.Query{Kind: kind, Limit: 1000})
			if len(all) != n {
				return fmt.Errorf("%d of kind %s, want %d", len(all), kind, n)
			}
			return nil
		})
		for _, q := range selectorQueries(selectors(22)) {
			q.Kind, q.Limit = kind, 5
			h.lists(q, matching(q, all))
		}
	}
}

func matching(q store.Query, all []store.Record) (want []string) {
	for i := range all {
		if selects(&q, &all[i]) {
			want = append(want, all[i].ID)
		}
	}
	return want
}

// testListTime: Since and Until are Written, half open, alone and with what else selects.
func testListTime(h *harness) {
	const n = 48
	h.fillSelectors(n)
	for _, kind := range []store.Kind{grant, store.KindEvent} {
		var all []store.Record
		h.eventually(func() error {
			all, _ = h.all(store.Query{Kind: kind, Limit: 1000})
			if len(all) != n {
				return fmt.Errorf("%d of kind %s, want %d", len(all), kind, n)
			}
			return nil
		})
		var times []int64
		for i := range all {
			times = append(times, all[i].Written)
		}
		slices.Sort(times)
		times = slices.Compact(times)
		if len(times) < 2 {
			h.t.Fatal("all records have the same Written, though the clock moved on between")
		}
		first, mid, last := times[0], times[len(times)/2], times[len(times)-1]
		for _, q := range []store.Query{
			{Since: first}, {Since: mid}, {Since: mid + 1}, {Since: last}, {Since: last + 1}, {Since: 1}, {Since: 1 << 45},
			{Until: first}, {Until: first + 1}, {Until: mid}, {Until: last}, {Until: last + 1}, {Until: 1}, {Until: 1 << 45},
			{Since: mid, Until: mid + 1}, {Since: mid, Until: mid}, {Since: first, Until: last}, {Since: last, Until: first},
			{Since: mid, Client: "c1"}, {Until: mid, Subject: "s2"}, {Since: first + 1, Until: last, Type: "issue"},
			{Since: first, Until: last, Subject: "s1", Client: "c2", Type: "issue"}, {Since: mid, Token: "t3"},
		} {
			q.Kind, q.Limit = kind, 5
			h.lists(q, matching(q, all))
		}
	}
}

// testListExpires: what expires before a time, each at least once, whatever is written meanwhile elsewhere; beside selectors in the
// order of other listings.
func testListExpires(h *harness) {
	const n = 40
	base := time.Now().Add(24 * time.Hour).UnixMilli()
	versions := map[string]store.Version{}
	write := func(i int, expires int64) {
		id := fmt.Sprintf("%02d", i)
		r := selectors(i)
		r.Kind, r.ID, r.Expires = grant, id, expires
		versions[id] = h.must([]store.Put{{Record: r, Expect: versions[id]}})
	}
	for i := range n {
		expires := base + int64(i*7%n/2) // of two each, in another order than the ids
		if i%4 == 3 {
			expires = 0
		}
		write(i, expires)
	}
	h.must([]store.Put{{Record: store.Record{Kind: another, ID: "of another kind", Expires: base}}}, event("1"))

	// ends pages through q, with between after its first page.
	ends := func(q store.Query, between func()) (got []string) {
		h.t.Helper()
		for page := 0; ; page++ {
			p, err := h.st.List(h.ctx, q)
			if err != nil {
				h.t.Fatalf("List %+v: %v", q, err)
			}
			if len(p.Records) > q.Limit || page > 3*n {
				h.t.Fatalf("List %+v: page %d has %d records", q, page, len(p.Records))
			}
			got = append(got, ids(p.Records)...)
			if p.Cursor == "" {
				slices.Sort(got)
				return slices.Compact(got)
			}
			if q.Cursor = p.Cursor; page == 0 {
				between()
			}
		}
	}
	check := func() {
		h.t.Helper()
		all, _ := h.all(store.Query{Kind: grant, Limit: 1000})
		for _, before := range []int64{1, base, base + 1, base + n/8, base + n/4, base + n/2 + 1, 1 << 50} {
			for _, limit := range []int{1, 5, 1000} {
				for _, newest := range []bool{false, true} {
					q := store.Query{Kind: grant, ExpiresBefore: before, Limit: limit, Newest: newest}
					if got, want := ends(q, func() {}), matching(q, all); !slices.Equal(got, want) {
						h.t.Fatalf("List %+v: %q, want %q in any order", q, got, want)
					}
				}
			}
			q := store.Query{Kind: grant, Subject: "s1", ExpiresBefore: before, Limit: 5}
			h.lists(q, matching(q, all))
			q = store.Query{Kind: grant, Since: 1 << 45, ExpiresBefore: before, Limit: 5}
			if got := ends(q, func() {}); len(got) > 0 {
				h.t.Fatalf("List %+v: %q, want none", q, got)
			}
		}
	}
	check()
	write(0, base+n) // later, earlier, never, and at last
	write(1, base-1)
	write(2, 0)
	write(3, base+1)
	check()

	q := store.Query{Kind: grant, ExpiresBefore: 1 << 50, Limit: 4}
	all, _ := h.all(store.Query{Kind: grant, Limit: 1000})
	want := slices.DeleteFunc(matching(q, all), func(id string) bool { return id < "08" })
	got := ends(q, func() {
		for i := range 8 {
			write(i, base-int64(i))
		}
		for i := n; i < 2*n; i++ {
			write(i, base+int64(i))
		}
	})
	for _, id := range want {
		if !slices.Contains(got, id) {
			h.t.Fatalf("List %+v: %q is not in it, which nobody wrote meanwhile", q, id)
		}
	}

	// A cursor of a listing in another order is refused, if it does not say the same.
	records, expiring := store.Query{Kind: grant, Limit: 4}, store.Query{Kind: grant, ExpiresBefore: 1 << 50, Limit: 4}
	all, _ = h.all(store.Query{Kind: grant, Limit: 1000})
	for _, qs := range [...][2]store.Query{{records, expiring}, {expiring, records}} {
		p, err := h.st.List(h.ctx, qs[0])
		if err != nil || p.Cursor == "" {
			h.t.Fatalf("List %+v: cursor %q, %v", qs[0], p.Cursor, err)
		}
		q, last := qs[1], p.Records[len(p.Records)-1].ID
		q.Cursor, q.Limit = p.Cursor, 1000
		want := slices.DeleteFunc(matching(q, all), func(id string) bool { return id <= last })
		if p, err = h.st.List(h.ctx, q); !errors.Is(err, store.ErrInvalid) && (err != nil || !slices.Equal(ids(p.Records), want)) {
			h.t.Fatalf("List %+v with the cursor of %+v: %q, %v, want ErrInvalid or what is behind %q", q, qs[0], ids(p.Records), err, last)
		}
	}

	h.lists(store.Query{Kind: grant, ExpiresBefore: -1}, nil)
	if _, err := h.st.List(h.ctx, store.Query{Kind: store.KindEvent, ExpiresBefore: 1}); !errors.Is(err, store.ErrInvalid) {
		h.t.Fatalf("List of events with ExpiresBefore: %v, want ErrInvalid", err)
	}
}

func testListLimit(h *harness) {
	var want []string
	for i := 0; i < 1008; i += 16 {
		var puts []store.Put
		for j := i; j < i+16; j++ {
			want = append(want, fmt.Sprintf("%04d", j))
			puts = append(puts, put(grant, want[j], "", store.Version{}))
		}
		h.must(puts)
	}
	h.lists(store.Query{Kind: grant, Limit: 1000}, want)
	// More than the contract allows is refused or cut, and then with a cursor.
	if p, err := h.st.List(h.ctx, store.Query{Kind: grant, Limit: 5000}); err == nil && (len(p.Records) > 1000 || p.Cursor == "") {
		h.t.Fatalf("a page of %d records with the cursor %q, at most 1000 and a cursor", len(p.Records), p.Cursor)
	}
}

// testListConcurrent: a record present throughout is in exactly one page, and a page is one snapshot: pairs that are
// always written together have one Version in it.
func testListConcurrent(h *harness) {
	const stay, readers = 24, 4
	var want []string
	var puts []store.Put
	for i := range stay {
		id := fmt.Sprintf("stay%02d", i)
		want = append(want, id)
		p := put(grant, id, "", store.Version{})
		p.Subject = "s"
		puts = append(puts, p)
	}
	v := h.must(puts[:12])
	h.must(puts[12:])
	h.lists(store.Query{Kind: grant}, want)
	var reading atomic.Int32
	reading.Store(readers)
	h.together(readers+2, func(n int) error {
		switch n {
		case 0: // rewrites pairs
			return h.rewritePairs(v, &reading)
		case 1: // creates others, but not between pairs, which would seldom be in one page then
			for i := 0; reading.Load() > 0 && i < 300; i++ {
				p := put(grant, fmt.Sprintf("stay%02d-%d", stay/2+i%(stay/2), i), "", store.Version{})
				p.Subject = "s"
				if _, err := h.st.Apply(h.ctx, &store.Change{ID: fresh(), Puts: []store.Put{p}}); err != nil {
					return err
				}
			}
			return nil
		}
		defer reading.Add(-1)
		for round := range 6 {
			q := store.Query{Kind: grant, Limit: 5 + n, Newest: n%2 == 0}
			if round%2 == 1 {
				q.Subject = "s"
			}
			if err := listOnce(h.ctx, h.st, q, want); err != nil {
				return err
			}
		}
		return nil
	})
}

func (h *harness) rewritePairs(v store.Version, reading *atomic.Int32) error {
	vs := [6]store.Version{v, v, v, v, v, v}
	for i := 0; reading.Load() > 0; i++ {
		k := i % 6
		c := &store.Change{ID: fresh()}
		for j := range 2 {
			p := put(grant, fmt.Sprintf("stay%02d", 2*k+j), fmt.Sprint(i), vs[k])
			p.Subject = "s"
			c.Puts = append(c.Puts, p)
		}
		if _, err := h.st.Apply(h.ctx, c); err != nil {
			return err
		}
		vs[k] = c.ID
	}
	return nil
}

// listOnce pages through q and checks each page and all of them.
func listOnce(ctx context.Context, st store.Store, q store.Query, want []string) error {
	seen := map[string]int{}
	last := ""
	var l listing
	for {
		p, err := st.List(ctx, q)
		if err != nil {
			return err
		}
		if err := l.add(q, &p); err != nil {
			return err
		}
		versions := map[string]store.Version{}
		for i, r := range p.Records {
			if last != "" && (r.ID > last) == q.Newest {
				return fmt.Errorf("in List %+v: %q comes behind %q", q, r.ID, last)
			}
			last = r.ID
			seen[r.ID]++
			if len(r.ID) == 6 && r.ID < "stay12" {
				pair := fmt.Sprint((r.ID[4]-'0')*10 + (r.ID[5]-'0')&^1)
				if other, ok := versions[pair]; ok && other != r.Version {
					return fmt.Errorf("a page is one snapshot, but record %d, %s, is not of the Change that wrote its pair, %x", i, show(r), other[:4])
				}
				versions[pair] = r.Version
			}
		}
		if q.Cursor = p.Cursor; q.Cursor == "" {
			break
		}
	}
	for _, id := range want {
		if seen[id] != 1 {
			return fmt.Errorf("in List %+v: %s is present throughout and was in %d pages", q, id, seen[id])
		}
	}
	for id := range seen {
		if !strings.HasPrefix(id, "stay") {
			return errors.New("in List shows a record that was never written: " + id)
		}
	}
	return nil
}
