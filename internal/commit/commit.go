// Package commit is the one way from a service to its store and back.
//
// It owns the changes on their way to the store: a Change holds the records and events that are written together or not at all, and
// keeps its ID at every retry, so that a repeated unknown outcome recognises itself. It promises that nothing is written but what a
// form of internal/record has made, and that a caller whose change was written, or was overtaken by another, sees the state of the
// store at least as it was then. Errors are a *fault.Error, except store.ErrConflict: the caller knows what it raced with.
//
// It calls the store and internal/follow, and holds no lock while it does. Turns has one mutex, a leaf. The root calls it for
// everything that it writes, as do internal packages that have records of their own.
package commit

import (
	"context"
	"crypto/rand"
	"errors"
	"iter"
	"slices"
	"sync/atomic"
	"time"

	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/follow"
	"github.com/apitoken-go/apitoken/internal/record"
	"github.com/apitoken-go/apitoken/store"
)

const (
	// Timeout is of one commit with its retries, when the caller sets no deadline.
	Timeout = 10 * time.Second
	// Tries is how often a caller repeats a read and a write that lost against another writer.
	Tries = 8

	applyTries = 5
	pageSize   = 200 // records in one listing of Pages
	maxID      = 255 // bytes that a store takes
)

// Writer writes a service's changes and reads its records.
type Writer struct {
	Store  store.Store
	State  *follow.Follower
	Closed atomic.Bool // set when the service has ended: nothing is written any more
}

// Change is one intent on its way to the store. Init it before use.
type Change struct {
	store.Change

	// Room for what most changes need: one piece of memory instead of three.
	puts     [1]store.Put
	events   [1]store.Record
	deadline deadline
}

// Init gives c its ID, and the room for its first record and event.
func (c *Change) Init() {
	c.Puts, c.Events = c.puts[:0], c.events[:0]
	rand.Read(c.ID[:]) // of the system, at each change: two clones of a virtual machine must not take their writes for each other's
}

// NewChange makes a Change that holds nothing.
func NewChange() *Change {
	c := new(Change)
	c.Init()
	return c
}

// Put adds a record that replaces the version expect.
func (c *Change) Put(w record.Written, expect store.Version) {
	c.Puts = append(c.Puts, store.Put{Record: w.Record(), Expect: expect})
}

// state reports whether c holds records that other processes follow.
func (c *Change) state() bool {
	return slices.ContainsFunc(c.Puts, func(p store.Put) bool { return p.Kind.State() })
}

// Commit writes c. store.ErrConflict comes back as it is; every other error is a *fault.Error, Unavailable where the outcome is
// unknown or nothing could be written. When others have moved the state meanwhile, or c did, this process has caught up before
// Commit returns: its caller checks the rules again before it hands anything out.
func (w *Writer) Commit(ctx context.Context, c *Change) (store.Commit, error) {
	if _, ok := ctx.Deadline(); !ok {
		d := &c.deadline
		if d.parent != nil { // a second try: whoever still waits by the first one's must not wake up to this one
			d = new(deadline)
		}
		d.parent, d.at = ctx, time.Now().Add(Timeout)
		ctx = d
		defer d.end()
	}
	done, err := w.Apply(ctx, c)
	if err != nil {
		return done, err
	}
	if c.state() || w.State.Behind(done.Head) {
		if err := w.State.CatchUp(ctx, done.Head); err != nil {
			return done, fault.NoAnswer(err, "written, but the store could not be read back")
		}
	}
	return done, nil
}

// Apply is Commit without the catching up: for the start of a service, before there is a view.
func (w *Writer) Apply(ctx context.Context, c *Change) (store.Commit, error) {
	if w.Closed.Load() {
		return store.Commit{}, fault.Fail(fault.Unavailable, "the service is closed")
	}
	if w.State.Gone() {
		return store.Commit{}, fault.NoAnswer(follow.ErrGone, "write")
	}
	wait := 5 * time.Millisecond
	for try := 1; ; try++ {
		done, err := w.Store.Apply(ctx, &c.Change)
		switch {
		case err == nil:
			return done, nil
		case errors.Is(err, store.ErrConflict):
			return done, err
		case errors.Is(err, store.ErrReadOnly):
			return done, fault.NoAnswer(err, "the store has moved and takes no writes")
		case errors.Is(err, store.ErrTooLarge):
			return done, &fault.Error{Code: fault.InvalidRequest, Detail: "the record would be too large", Cause: err}
		case errors.Is(err, store.ErrInvalid):
			return done, &fault.Error{Code: fault.InvalidRequest, Detail: "no store can keep the record", Cause: err}
		case ctx.Err() != nil || try == applyTries || len(c.Puts) == 0:
			// Without puts a repetition might write the event twice; the caller has nothing yet, so nothing is lost.
			return done, fault.NoAnswer(err, "write")
		}
		if !follow.Sleep(ctx, follow.Jitter(wait)) {
			return done, fault.NoAnswer(err, "write")
		}
		wait *= 4
	}
}

// Get reads one record: NotFound or Unavailable.
func (w *Writer) Get(ctx context.Context, kind store.Kind, id string) (store.Record, error) {
	if id == "" || len(id) > maxID {
		return store.Record{}, fault.Fail(fault.NotFound, "no %s has such an ID", kind)
	}
	r, err := w.Store.Get(ctx, kind, id)
	switch {
	case err == nil:
		return r, nil
	case errors.Is(err, store.ErrNotFound):
		return r, fault.Fail(fault.NotFound, "no %s %q", kind, id)
	}
	return r, fault.NoAnswer(err, "read")
}

// Pages walks a listing, from behind the record with the ID after, and at most limit records; zero values are all of it. No
// transaction of the store is open while the caller runs.
func (w *Writer) Pages(ctx context.Context, q store.Query, after string, limit int) iter.Seq2[store.Record, error] {
	return func(yield func(store.Record, error) bool) {
		q.Limit = pageSize
		n := 0
		for {
			page, err := w.Store.List(ctx, q)
			if err != nil {
				yield(store.Record{}, fault.NoAnswer(err, "list"))
				return
			}
			for _, r := range page.Records {
				if after != "" && (q.Newest && r.ID >= after || !q.Newest && r.ID <= after) {
					continue
				}
				if !yield(r, nil) {
					return
				}
				if n++; limit > 0 && n == limit {
					return
				}
			}
			if q.Cursor = page.Cursor; q.Cursor == "" {
				return
			}
		}
	}
}

// Retry calls try, which reads, changes and writes, until it does not lose against another writer, Tries times at most. busy says of
// what there are too many writers: it is the detail of the error, fault.Unavailable. A try that calls a function of the host returns
// the error of that as Final.
func Retry(busy string, try func() error) error {
	for range Tries {
		if err, lost := Lost(try()); !lost {
			return err
		}
	}
	return fault.Retry("%s", busy)
}

// Lost reports whether the error of a try says that another writer was first, so that it is to be repeated. Otherwise answer is its
// outcome.
func Lost(err error) (answer error, lost bool) {
	if f, ok := err.(*final); ok {
		return f.error, false
	}
	return err, errors.Is(err, store.ErrConflict)
}

// Final is err for Lost, which makes it the answer whatever it is: a host's function may fail by the store.ErrConflict of a store of its
// own. nil stays nil.
func Final(err error) error {
	if err == nil {
		return nil
	}
	return &final{err}
}

type final struct{ error }
