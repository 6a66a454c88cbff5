// Package storetest says when a [store.Store] is right: each subtest is a sentence of the contract in package store,
// and its failure text names the sentence. A bug found in one store becomes a subtest for all.
//
//	func TestStore(t *testing.T) {
//		storetest.Run(t, func(t *testing.T, dir string) store.Store {
//			st, err := mystore.Open(filepath.Join(dir, "tokens"))
//			if err != nil {
//				t.Fatal(err)
//			}
//			return st
//		})
//	}
//
// [Namespaces] is for stores that keep several namespaces on one engine, [Stalled] for stores on a server, [Bench] for
// comparing stores.
package storetest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/apitoken-go/apitoken/store"
)

// patience is how long something that may lag, the audit feed or a hint, is waited for.
var patience = 10 * time.Second

// timeLimit ends a subtest whose store does not answer.
const timeLimit = time.Minute

// Run runs the suite, one fresh store per subtest, one after the other.
//
// open opens the store that lies in dir, an existing directory that is empty at first; a store on a server takes the
// name of dir for a name of its own. If the store is an [io.Closer], the suite closes it. One subtest then calls open
// again with the same dir to see that what was written is there. A store that forgets returns nil then, or an empty
// store whose positions are of a new History; the subtest is skipped, with the reason in its output. A store with a
// Close method gets no such leave.
//
// A call that does not return within half a minute fails its subtest by name, and the subtests behind it are not run. What a
// store may be late with is waited for ten seconds, and a tenth of that once it was waited for in vain.
func Run(t *testing.T, open func(t *testing.T, dir string) store.Store) {
	t.Helper()
	all := &suite{}
	for _, c := range slices.Concat(recordCases, applyCases, limitCases, contextCases, followCases, listCases, feedCases, purgeCases, lifeCases) {
		t.Run(c.name, func(t *testing.T) {
			if stuck := all.hangs(); stuck != "" {
				t.Skip("not run: " + stuck)
			}
			h := &harness{t: t, suite: all, dir: t.TempDir(), open: open}
			ctx, cancel := context.WithTimeout(context.Background(), timeLimit)
			t.Cleanup(cancel)
			h.ctx = ctx
			if !h.reopen() {
				t.Fatal("open returned nil for a new directory")
			}
			t.Cleanup(h.close)
			c.run(h)
		})
	}
}

// testCase is one subtest of Run.
type testCase struct {
	name string
	run  func(*harness)
}

// harness is one store under test.
type harness struct {
	t      *testing.T
	suite  *suite
	ctx    context.Context
	raw    store.Store // for what is beyond the contract's verbs
	st     *watched    // raw
	dir    string
	open   func(t *testing.T, dir string) store.Store
	opened bool
}

// reopen closes the store, if it is open, and opens what lies in dir; false if the store says that it forgets.
func (h *harness) reopen() bool {
	h.t.Helper()
	h.close()
	h.raw = h.open(h.t, h.dir)
	h.st = watch(h.t, h.ctx, h.suite, h.raw)
	h.opened = h.raw != nil
	return h.opened
}

func (h *harness) close() {
	c, ok := h.raw.(io.Closer)
	if !h.opened || !ok {
		return
	}
	h.opened = false
	if err := h.st.closes(c.Close); err != nil {
		h.t.Errorf("Close: %v", err)
	}
}

// grant is a kind without a place in the order of state, another is such a kind of a host's own.
const (
	grant   store.Kind = "grant"
	another store.Kind = "host-of-own"
)

// fresh returns the ID of a new Change.
func fresh() (v store.Version) {
	_, _ = rand.Read(v[:]) // never fails
	return v
}

func put(kind store.Kind, id, data string, expect store.Version) store.Put {
	return store.Put{Record: store.Record{Kind: kind, ID: id, Data: []byte(data)}, Expect: expect}
}

func event(id string) store.Record {
	return store.Record{Kind: store.KindEvent, ID: id, Type: "test", Data: []byte("of " + id)}
}

// must applies puts and events as a new Change that has to succeed, and returns its ID.
func (h *harness) must(puts []store.Put, events ...store.Record) store.Version {
	h.t.Helper()
	c := &store.Change{ID: fresh(), Puts: puts, Events: events}
	h.apply(c)
	return c.ID
}

func (h *harness) apply(c *store.Change) store.Commit {
	h.t.Helper()
	commit, err := h.st.Apply(h.ctx, c)
	if err != nil {
		h.t.Fatalf("Apply of %s: %v", describe(c), err)
	}
	return commit
}

// refused applies a Change that must fail with want; nil: with any error.
func (h *harness) refused(c *store.Change, want error, rule string) {
	h.t.Helper()
	_, err := h.st.Apply(h.ctx, c)
	if err == nil || want != nil && !errors.Is(err, want) {
		h.t.Fatalf("%s: Apply of %s answered %v, want %v", rule, describe(c), err, want)
	}
}

func describe(c *store.Change) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d puts (", len(c.Puts))
	for i := range c.Puts[:min(len(c.Puts), 4)] {
		fmt.Fprintf(&b, " %s/%.40q", c.Puts[i].Kind, c.Puts[i].ID)
	}
	fmt.Fprintf(&b, " ) and %d events", len(c.Events))
	return b.String()
}

func (h *harness) get(kind store.Kind, id string) store.Record {
	h.t.Helper()
	r, err := h.st.Get(h.ctx, kind, id)
	if err != nil {
		h.t.Fatalf("Get %s/%q: %v", kind, id, err)
	}
	return r
}

func (h *harness) absent(kind store.Kind, id, rule string) {
	h.t.Helper()
	if r, err := h.st.Get(h.ctx, kind, id); !errors.Is(err, store.ErrNotFound) {
		h.t.Fatalf("%s: Get %s/%q answered %s, %v, want ErrNotFound", rule, kind, id, show(r), err)
	}
}

// all pages through a query and returns its records and the last cursor that was not empty.
func (h *harness) all(q store.Query) ([]store.Record, string) {
	h.t.Helper()
	rs, cursor, err := pages(h.ctx, h.st, q)
	if err != nil {
		h.t.Fatalf("List %+v: %v", q, err)
	}
	return rs, cursor
}

func pages(ctx context.Context, st store.Store, q store.Query) (rs []store.Record, cursor string, err error) {
	var l listing
	for {
		p, err := st.List(ctx, q)
		switch {
		case err != nil:
			return nil, "", &lasting{err}
		case len(p.Records) > q.Limit:
			return nil, "", &lasting{fmt.Errorf("a page of %d records at Limit %d", len(p.Records), q.Limit)}
		}
		if err := l.add(q, &p); err != nil {
			return nil, "", err
		}
		rs = append(rs, p.Records...)
		if p.Cursor == "" {
			return rs, q.Cursor, nil
		}
		if p.Cursor == q.Cursor {
			return nil, "", &lasting{fmt.Errorf("the cursor %q does not move", p.Cursor)}
		}
		q.Cursor = p.Cursor
	}
}

// followAll follows until the answer is complete, and returns what came and where to go on.
func (h *harness) followAll(after store.Position, kinds []store.Kind, max int) ([]store.Record, store.Position) {
	h.t.Helper()
	var rs []store.Record
	for {
		if len(rs) > maxRecords {
			h.t.Fatalf("Follow gave %d records, and says that there are more: it never ends", len(rs))
		}
		v, err := h.st.Follow(h.ctx, after, kinds, max)
		if err != nil {
			h.t.Fatalf("Follow after %v: %v", after, err)
		}
		if err := checkView(&v, after, kinds, max); err != nil {
			h.t.Fatal(err)
		}
		rs = append(rs, v.Records...)
		if after = v.Next; !v.More {
			return rs, after
		}
	}
}

// checkView says whether a View holds what every View must.
func checkView(v *store.View, after store.Position, kinds []store.Kind, max int) error {
	if max > 0 && len(v.Records) > max {
		return fmt.Errorf("in Follow: %d records, max is %d", len(v.Records), max)
	}
	if v.Next.History == 0 {
		return errors.New("in Follow: Next has no History: a loss could not be told from a beginning")
	}
	if v.Next.N < after.N {
		return fmt.Errorf("in Follow: Next goes back from %d to %d", after.N, v.Next.N)
	}
	if v.More && v.Next == after {
		return fmt.Errorf("in Follow: More, and Next stays at %v", after)
	}
	last := after.N
	seen := map[string]bool{}
	for i := range v.Records {
		r := &v.Records[i]
		key := string(r.Kind) + "\x00" + r.ID
		switch {
		case !r.Kind.State():
			return fmt.Errorf("in Follow: %s is no state", show(*r))
		case len(kinds) > 0 && !slices.Contains(kinds, r.Kind):
			return fmt.Errorf("in Follow of %v: %s", kinds, show(*r))
		case r.Pos.History != v.Next.History:
			return fmt.Errorf("in Follow: %s is of history %x, Next of %x", show(*r), r.Pos.History, v.Next.History)
		case r.Pos.N <= last:
			return fmt.Errorf("in Follow: positions must rise strictly, %d comes behind %d", r.Pos.N, last)
		case seen[key]:
			return fmt.Errorf("in Follow: %s twice in one View: only its newest form belongs there", show(*r))
		}
		last, seen[key] = r.Pos.N, true
	}
	if last > v.Next.N {
		return fmt.Errorf("in Follow: Next %d is behind the last record, %d", v.Next.N, last)
	}
	return nil
}

// eventually tries again until check is content or patience ends: the feed and hints may lag.
func (h *harness) eventually(check func() error) {
	h.t.Helper()
	wait := h.suite.patience()
	deadline := time.Now().Add(wait)
	for {
		err := check()
		var now *lasting
		switch {
		case err == nil:
			return
		case errors.As(err, &now):
			h.t.Fatal(err)
		case time.Now().After(deadline):
			h.suite.tire()
			h.t.Fatalf("still after %v: %v", wait, err)
		}
		pause(h.ctx, 5*time.Millisecond)
	}
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// lists waits until both directions of q give exactly the records want, ids in that order.
func (h *harness) lists(q store.Query, want []string) {
	h.t.Helper()
	if q.Limit == 0 {
		q.Limit = 7
	}
	for _, newest := range []bool{false, true} {
		q.Newest = newest
		if newest {
			want = reversed(want)
		}
		h.eventually(func() error {
			rs, _, err := pages(h.ctx, h.st, q)
			if err != nil {
				return err
			}
			if got := ids(rs); !slices.Equal(got, want) {
				return fmt.Errorf("in List %+v: %.200q, want %.200q", q, got, want)
			}
			return nil
		})
	}
}

// together runs n goroutines and waits for them; one error of any is fatal.
func (h *harness) together(n int, f func(i int) error) {
	h.t.Helper()
	errs := make(chan error, n)
	for i := range n {
		go func() { errs <- f(i) }()
	}
	var first error
	for range n {
		if err := <-errs; err != nil && first == nil {
			first = err
		}
	}
	if first != nil {
		h.t.Fatal(first)
	}
}

// nextMs writes nothing and waits until the store's clock has moved on by a millisecond or more.
func (h *harness) nextMs() int64 {
	h.t.Helper()
	first := h.now()
	for {
		if now := h.now(); now > first {
			return now
		}
		pause(h.ctx, time.Millisecond)
		if h.ctx.Err() != nil {
			h.t.Fatal("Now of Follow stands still")
		}
	}
}

// now is the store's clock.
func (h *harness) now() int64 {
	h.t.Helper()
	v, err := h.st.Follow(h.ctx, store.Position{}, nil, 1)
	if err != nil {
		h.t.Fatalf("Follow: %v", err)
	}
	return v.Now
}

func ids(rs []store.Record) []string {
	out := make([]string, len(rs))
	for i := range rs {
		out[i] = rs[i].ID
	}
	return out
}

func reversed[T any](s []T) []T {
	s = slices.Clone(s)
	slices.Reverse(s)
	return s
}

func show(r store.Record) string {
	data := r.Data
	if len(data) > 32 {
		data = data[:32]
	}
	return fmt.Sprintf("{%s/%.60q version %x pos %v written %d expires %d %q %q %q %q %q data %d %q}", r.Kind, r.ID,
		r.Version[:4], r.Pos, r.Written, r.Expires, r.Subject, r.Client, r.Grant, r.Token, r.Type, len(r.Data), data)
}

// same compares all that a record has.
func same(a, b store.Record) bool {
	return sameGiven(a, b) && a.Version == b.Version && a.Pos == b.Pos && a.Written == b.Written
}

// sameGiven compares what a caller gives; the store's stamps aside.
func sameGiven(a, b store.Record) bool {
	return a.Kind == b.Kind && a.ID == b.ID && a.Expires == b.Expires && a.Subject == b.Subject && a.Client == b.Client &&
		a.Grant == b.Grant && a.Token == b.Token && a.Type == b.Type && bytes.Equal(a.Data, b.Data)
}

// clone copies a Change with everything it refers to.
func clone(c *store.Change) *store.Change {
	out := &store.Change{ID: c.ID, Puts: slices.Clone(c.Puts), Events: slices.Clone(c.Events)}
	for i := range out.Puts {
		out.Puts[i].Data = bytes.Clone(out.Puts[i].Data)
	}
	for i := range out.Events {
		out.Events[i].Data = bytes.Clone(out.Events[i].Data)
	}
	return out
}
