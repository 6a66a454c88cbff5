package storetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/apitoken-go/apitoken/store"
)

// Beyond a single call: hints, opening again, and namespaces beside each other.
var lifeCases = []testCase{
	{"Open again", testReopen},
	{"Put back from a backup", testRestored},
	{"Overwritten by a backup", testOverwritten},
	{"Read only", testReadOnly},
}

func testWait(h *harness) {
	w, ok := h.raw.(store.Waker)
	if !ok {
		h.t.Skip("no Waker: whoever follows polls")
	}
	_, next := h.followAll(store.Position{}, nil, 10)
	for i := range 5 {
		woke := make(chan error, 1)
		go func() {
			for {
				// It may return for nothing, so it is asked until there is something.
				err := w.Wait(h.ctx, next)
				v, ferr := h.st.Follow(h.ctx, next, nil, 10)
				if err != nil || ferr != nil || len(v.Records) > 0 {
					woke <- errors.Join(err, ferr)
					return
				}
				pause(h.ctx, time.Millisecond)
			}
		}()
		if i > 1 {
			pause(h.ctx, 10*time.Millisecond) // it most likely waits by now
		}
		h.must([]store.Put{put(store.KindRule, fmt.Sprint(i), "", store.Version{})})
		h.within(woke, "Wait did not wake by a write")
		before := next
		_, next = h.followAll(next, nil, 10)
		go func() { woke <- w.Wait(h.ctx, before) }()
		h.within(woke, "Wait did not notice what was there before it was called")
	}
	ctx, cancel := context.WithCancel(h.ctx)
	ended := make(chan error, 1)
	go func() {
		for ctx.Err() == nil {
			_ = w.Wait(ctx, next) // an error or not: it ends
			pause(ctx, time.Millisecond)
		}
		_ = w.Wait(ctx, next)
		ended <- nil
	}()
	pause(h.ctx, 10*time.Millisecond)
	cancel()
	h.within(ended, "Wait does not end with its context")
}

func (h *harness) within(done <-chan error, rule string) {
	h.t.Helper()
	wait := h.suite.patience()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case err := <-done:
		if err != nil {
			h.t.Fatal(err)
		}
	case <-timer.C:
		h.suite.tire()
		h.t.Fatalf("%s within %v", rule, wait)
	}
}

// reopenOrSkip opens the store again, and ends the subtest if it is one that forgets.
func (h *harness) reopenOrSkip(old store.Position) {
	h.t.Helper()
	_, durable := h.raw.(io.Closer)
	if !h.reopen() {
		h.t.Skip("the store forgets: open returned nil for a directory that was opened before")
	}
	if durable {
		return
	}
	_, err := h.st.Follow(h.ctx, old, nil, 10)
	v, verr := h.st.Follow(h.ctx, store.Position{}, nil, 10)
	if errors.Is(err, store.ErrDiverged) && verr == nil && len(v.Records) == 0 && v.Next.History != old.History {
		h.t.Skip("the store forgets, and says so by a new History")
	}
}

// testReopen: what was acknowledged is there, positions and cursors go on, a retry recognises itself.
func testReopen(h *harness) {
	now := h.now()
	last := &store.Change{ID: fresh()}
	var want []string
	for i := range 20 {
		r := selectors(i)
		r.ID, r.Data = fmt.Sprintf("%02d", i), []byte(fmt.Sprint("data ", i))
		if i%2 == 0 {
			r.Expires = now - int64(i) - 1
		}
		c := &store.Change{ID: fresh()}
		for _, k := range []store.Kind{grant, store.KindRule} {
			r.Kind = k
			c.Puts = append(c.Puts, store.Put{Record: r})
		}
		r.Kind, r.Expires = store.KindEvent, 0
		c.Events = []store.Record{r}
		want = append(want, r.ID)
		h.apply(c)
		last = c
	}
	for i := range 3 {
		r := h.get(grant, fmt.Sprintf("%02d", i))
		r.Data = []byte("again")
		h.must([]store.Put{{Record: r, Expect: r.Version}})
		r = h.get(store.KindRule, fmt.Sprintf("%02d", i))
		r.Data = []byte("again")
		h.must([]store.Put{{Record: r, Expect: r.Version}})
	}
	h.purge(grant, now-10, 100, 5, "expired")
	h.lists(store.Query{Kind: store.KindEvent}, want)
	read := func() (rs []store.Record) {
		for _, k := range []store.Kind{grant, store.KindRule} {
			all, _ := h.all(store.Query{Kind: k, Limit: 7})
			rs = append(rs, all...)
			all, _ = h.all(store.Query{Kind: k, Limit: 7, Client: "c1"})
			rs = append(rs, all...)
		}
		h.eventually(func() error {
			if all, _ := h.all(store.Query{Kind: store.KindEvent, Limit: 7}); len(all) != len(want) {
				return fmt.Errorf("%d events, want %d", len(all), len(want))
			}
			return nil
		})
		all, _ := h.all(store.Query{Kind: store.KindEvent, Limit: 7})
		rs = append(rs, all...)
		state, _ := h.followAll(store.Position{}, nil, 7)
		return append(rs, state...)
	}
	before := read()
	_, cursor := h.all(store.Query{Kind: store.KindEvent, Limit: 7})
	_, end := h.followAll(store.Position{}, nil, 100)

	h.reopenOrSkip(end)
	after := read()
	if !slices.EqualFunc(before, after, same) {
		for i := range before {
			if i >= len(after) || !same(before[i], after[i]) {
				h.t.Fatalf("opened again, the store has %d records and events in its lists instead of %d; the first that differs was %s",
					len(after), len(before), show(before[i]))
			}
		}
		h.t.Fatalf("opened again, the store has %d records and events in its lists instead of %d", len(after), len(before))
	}
	if rs, next := h.followAll(end, nil, 10); len(rs) != 0 || next.History != end.History {
		h.t.Fatalf("opened again with nothing lost, the positions go on: %q, history %x instead of %x", ids(rs), next.History, end.History)
	}
	h.apply(clone(last)) // recognises itself
	rs, _ := h.all(store.Query{Kind: store.KindEvent, Limit: 7, Cursor: cursor})
	if !slices.Equal(ids(rs), want[len(want)-len(rs):]) {
		h.t.Fatalf("the feed goes on with %q behind its cursor", ids(rs))
	}
	h.must([]store.Put{put(store.KindRole, "new", "", store.Version{})}, event("new"))
	if rs, _ := h.followAll(end, nil, 10); len(rs) != 1 || rs[0].ID != "new" || rs[0].Pos.N <= end.N {
		h.t.Fatalf("Follow after opening again and one write: %q", ids(rs))
	}
	h.purge(grant, now, 100, 5, "the expiry of records is kept")
	h.lists(store.Query{Kind: store.KindEvent}, append(want, "new"))
	if h.reopen(); !h.opened {
		h.t.Fatal("open returned nil the third time")
	}
	h.get(store.KindRole, "new")
	h.absent(grant, "00", "it was purged")
	h.lists(store.Query{Kind: store.KindEvent}, append(want, "new"))
}

// testRestored: the files of a store are put back from a backup that is older than an acknowledged revocation. The store has a
// new History then, so that every process notices, reads again and drops no rule it holds; under the old History the revoked
// session would be good again without a word.
func testRestored(h *harness) {
	if _, closes := h.raw.(io.Closer); !closes {
		h.t.Skip("the store cannot be closed and opened again")
	}
	h.must([]store.Put{put(store.KindRule, "before", "", store.Version{}), put(grant, "session", "", store.Version{})}, event("before"))
	h.close()
	backup := readFiles(h.t, h.dir)
	if len(backup) == 0 {
		h.t.Skip("the store keeps no file in dir: whoever keeps its data restores it")
	}
	if !h.reopen() {
		h.t.Skip("the store forgets")
	}
	h.must([]store.Put{put(store.KindRule, "revoked", "", store.Version{})}, event("revoked"))
	_, acked := h.followAll(store.Position{}, nil, 10)
	h.close()
	putBack(h.t, h.dir, backup)
	if !h.reopen() {
		return
	}
	if _, err := h.st.Get(h.ctx, store.KindRule, "revoked"); err == nil {
		h.t.Skip("the store keeps what it acknowledged elsewhere too: nothing was lost")
	}
	if v, err := h.st.Follow(h.ctx, acked, nil, 10); !errors.Is(err, store.ErrDiverged) {
		h.t.Fatalf("the files were put back from a backup, a revocation acknowledged since is lost, and Follow from behind it answered "+
			"%d records of history %x, %v, want ErrDiverged: nobody notices that a revoked session is good again. "+
			"Begin a new History where the file is not the one that was written last, by its inode for example",
			len(v.Records), v.Next.History, err)
	}
	rs, next := h.followAll(store.Position{}, nil, 10)
	if !slices.Equal(ids(rs), []string{"before"}) || next.History == acked.History {
		h.t.Fatalf("put back from a backup, the store has %q and history %x, want what was in the backup and a History other than %x",
			ids(rs), next.History, acked.History)
	}
	// Positions are at least the clock in ms << 16: a test may put a file back within one millisecond.
	for range 100 {
		if v, err := h.st.Follow(h.ctx, next, nil, 1); err != nil || v.Now > acked.N>>16 {
			break
		}
		pause(h.ctx, time.Millisecond)
	}
	h.must([]store.Put{put(store.KindRule, "after", "", store.Version{})})
	if r := h.get(store.KindRule, "after"); r.Pos.N <= acked.N {
		h.t.Fatalf("%s: positions go on rising after a restore, the last before it was %d", show(r), acked.N)
	}
	if h.reopen(); !h.opened {
		h.t.Fatal("open returned nil after the store was put back")
	}
	if _, again := h.followAll(next, nil, 10); again.History != next.History {
		h.t.Fatalf("opened again with nothing lost since it was put back, the History changed from %x to %x", next.History, again.History)
	}
}

// testOverwritten: one file of the store is overwritten by its backup, as `cp backup tokens.db` does. It keeps its inode and its
// birth time, so the store knows it by another file only, which says how far the store had come. Each file takes its turn: the
// store alone knows which one holds the data. A store may refuse to open such files, by failing the open function's test.
func testOverwritten(h *harness) {
	if _, closes := h.raw.(io.Closer); !closes {
		h.t.Skip("the store cannot be closed and opened again")
	}
	h.must([]store.Put{put(store.KindRule, "before", "", store.Version{})}, event("before"))
	h.close()
	backup := readFiles(h.t, h.dir)
	if len(backup) == 0 {
		h.t.Skip("the store keeps no file in dir: whoever keeps its data restores it")
	}
	for i, path := range slices.Sorted(maps.Keys(backup)) {
		if !h.reopen() {
			h.t.Skip("the store forgets")
		}
		revoked := fmt.Sprint("revoked", i)
		h.must([]store.Put{put(store.KindRule, revoked, "", store.Version{})}, event(revoked))
		_, acked := h.followAll(store.Position{}, nil, 10)
		h.close()
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			continue // it was there for a time only
		}
		if err := os.WriteFile(path, backup[path].data, backup[path].mode); err != nil {
			h.t.Fatal(err)
		}
		if !h.reopen() {
			return
		}
		if _, err := h.st.Get(h.ctx, store.KindRule, revoked); err == nil {
			continue // this file does not hold it
		}
		if v, err := h.st.Follow(h.ctx, store.Position{}, nil, 10); err != nil || v.Next.History == acked.History {
			h.t.Fatalf("%s was overwritten by its backup, a revocation acknowledged since is lost, and the store opened with history %x "+
				"as before, %v: nobody notices that a revoked session is good again. Keep in another file how far the store has come, "+
				"and begin a new History where the data is behind it", filepath.Base(path), v.Next.History, err)
		}
	}
}

type savedFile struct {
	data []byte
	mode fs.FileMode
}

func readFiles(t *testing.T, dir string) map[string]savedFile {
	t.Helper()
	files := map[string]savedFile{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		data, err := os.ReadFile(path)
		files[path] = savedFile{data, fi.Mode().Perm()}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// putBack makes the files in dir what they were, as new files: each is made while the old one is there, so that no inode is
// used again.
func putBack(t *testing.T, dir string, files map[string]savedFile) {
	t.Helper()
	for path := range readFiles(t, dir) {
		if _, ok := files[path]; !ok {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
	}
	for path, f := range files {
		if err := os.WriteFile(path+".restored", f.data, f.mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".restored", path); err != nil {
			t.Fatal(err)
		}
	}
}

// testReadOnly is for stores that can be told to take no writes, as one is that a service has moved away from.
func testReadOnly(h *harness) {
	s, ok := h.raw.(interface {
		SetReadOnly(ctx context.Context, on bool) error
	})
	if !ok {
		h.t.Skip("no SetReadOnly")
	}
	set := func(on bool) {
		_, err := within(h.st, "SetReadOnly", func() (struct{}, error) { return struct{}{}, s.SetReadOnly(h.ctx, on) })
		if err != nil {
			h.t.Fatal(err)
		}
	}
	dead := put(store.KindRule, "a", "1", store.Version{})
	dead.Expires = 1
	done := &store.Change{ID: fresh(), Puts: []store.Put{dead}, Events: []store.Record{event("1")}}
	h.apply(done)
	next := &store.Change{ID: fresh(), Puts: []store.Put{put(store.KindRule, "a", "2", done.ID)}, Events: []store.Record{event("2")}}
	set(true)
	h.refused(next, store.ErrReadOnly, "the store takes no writes")
	h.refused(&store.Change{ID: fresh(), Events: []store.Record{event("no")}}, store.ErrReadOnly, "the store takes no writes")
	h.apply(clone(done)) // ErrReadOnly would mean that it was not done
	if _, err := h.st.Purge(h.ctx, store.KindRule, 100, 10); !errors.Is(err, store.ErrReadOnly) {
		h.t.Fatalf("Purge of a store that takes no writes: %v", err)
	}
	if r := h.get(store.KindRule, "a"); string(r.Data) != "1" {
		h.t.Fatalf("%s: ErrReadOnly means not done", show(r))
	}
	if rs, _ := h.followAll(store.Position{}, nil, 10); len(rs) != 1 {
		h.t.Fatalf("Follow of a store that takes no writes: %d records, want 1", len(rs))
	}
	set(false)
	h.apply(next)
	h.lists(store.Query{Kind: store.KindEvent}, []string{"1", "2"})
}

// Namespaces shows that two fresh namespaces of one engine can't see or touch each other's records, order and events.
func Namespaces(t *testing.T, a, b store.Store) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), timeLimit)
	defer cancel()
	all := &suite{}
	ha, hb := &harness{t: t, suite: all, ctx: ctx, raw: a, st: watch(t, ctx, all, a)}, &harness{t: t, suite: all, ctx: ctx, raw: b, st: watch(t, ctx, all, b)}
	_, startB := hb.followAll(store.Position{}, nil, 10)
	now := ha.now()

	// The same ids, the same Change.ID, other contents.
	change := func(data string) *store.Change {
		c := &store.Change{ID: store.Version{1, 2, 3}, Events: []store.Record{event("e")}}
		for _, k := range []store.Kind{store.KindRule, grant} {
			p := put(k, "x", data, store.Version{})
			p.Subject, p.Expires = "s", now-hour
			c.Puts = append(c.Puts, p)
		}
		return c
	}
	ha.apply(change("of a"))
	for _, k := range []store.Kind{store.KindRule, grant} {
		hb.absent(k, "x", "a record of another namespace")
		hb.lists(store.Query{Kind: k}, nil)
		hb.lists(store.Query{Kind: k, Subject: "s"}, nil)
		hb.purge(k, now, 10, 0, "nothing of another namespace")
	}
	ha.lists(store.Query{Kind: store.KindEvent}, []string{"e"})
	hb.lists(store.Query{Kind: store.KindEvent}, nil)
	if rs, next := hb.followAll(startB, nil, 10); len(rs) != 0 {
		t.Fatalf("Follow in one namespace shows %s of the other, Next %v", show(rs[0]), next)
	}
	hb.apply(change("of b"))
	ha.must([]store.Put{put(store.KindRole, "only a", "", store.Version{})}, event("only a"))
	hb.must([]store.Put{put(store.KindRole, "only b", "", store.Version{})}, event("only b"))
	for name, h := range map[string]*harness{"a": ha, "b": hb} {
		for _, k := range []store.Kind{store.KindRule, grant} {
			if r := h.get(k, "x"); string(r.Data) != "of "+name {
				t.Fatalf("%s in namespace %s", show(r), name)
			}
			h.lists(store.Query{Kind: k, Subject: "s"}, []string{"x"})
		}
		h.lists(store.Query{Kind: store.KindEvent}, []string{"e", "only " + name})
		h.lists(store.Query{Kind: store.KindEvent, Type: "test"}, []string{"e", "only " + name})
		if rs, _ := h.followAll(store.Position{}, nil, 10); !slices.Equal(ids(rs), []string{"x", "only " + name}) {
			t.Fatalf("Follow in namespace %s: %q", name, ids(rs))
		}
	}
	ha.purge(grant, now, 10, 1, "an expired record of its own")
	hb.get(grant, "x")

	// Side by side: each counter counts its own writes, each follower sees its own.
	ha.together(4, func(i int) error {
		h, name := ha, "a"
		if i%2 == 1 {
			h, name = hb, "b"
		}
		for j := range 10 {
			id := fmt.Sprintf("%s-%d-%d", name, i, j)
			c := &store.Change{ID: fresh(), Puts: []store.Put{put(store.KindKey, id, "", store.Version{})}, Events: []store.Record{event(id)}}
			if _, err := h.st.Apply(ctx, c); err != nil {
				return err
			}
		}
		return nil
	})
	for name, h := range map[string]*harness{"a": ha, "b": hb} {
		rs, _ := h.followAll(store.Position{}, []store.Kind{store.KindKey}, 7)
		for _, r := range rs {
			if r.ID[:1] != name {
				t.Fatalf("Follow in namespace %s shows %s", name, show(r))
			}
		}
		if len(rs) != 20 {
			t.Fatalf("namespace %s has %d keys, want 20", name, len(rs))
		}
	}
}
