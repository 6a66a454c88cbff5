package apitoken

import (
	"context"
	"crypto/rand"
	"errors"
	"sync"
	"time"

	"github.com/apitoken-go/apitoken/internal/follow"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/internal/record"
	"github.com/apitoken-go/apitoken/store"
)

// A change is one intent on its way to the store: records, and the events that tell of them. Both are
// written together or not at all. Its ID stays the same at every retry, so that a repeated
// unknown outcome recognises itself.
type change struct {
	store.Change
	s     *core
	state bool // holds records that other processes follow

	// Room for what most changes need: one piece of memory instead of four.
	puts     [1]store.Put
	events   [1]store.Record
	deadline deadline
	data     [eventRoom]byte // of the first event
}

func (s *core) newChange() *change {
	c := &change{s: s}
	c.Puts, c.Events = c.puts[:0], c.events[:0]
	rand.Read(c.ID[:]) // of the system, at each change: two clones of a virtual machine must not take their writes for each other's
	return c
}

func (c *change) put(w record.Written, expect store.Version) {
	r := w.Record()
	c.Puts = append(c.Puts, store.Put{Record: r, Expect: expect})
	c.state = c.state || r.Kind.State()
}

// put adds v to c in its form. ErrInvalidRequest: nobody could read it back.
func put[T any](c *change, f *record.Form[T], r store.Record, v *T, expect store.Version) error {
	w, err := write(f, r, v)
	if err == nil {
		c.put(w, expect)
	}
	return err
}

func write[T any](f *record.Form[T], r store.Record, v *T) (record.Written, error) {
	w, err := f.Write(r, v)
	if err != nil {
		return w, &Error{Code: ErrInvalidRequest, Detail: "a " + string(f.Kind) + " that can not be stored", Cause: err}
	}
	return w, nil
}

// bare adds a record that has no form.
func bare(c *change, r store.Record, expect store.Version) error {
	w, err := record.Bare(r)
	if err != nil {
		return &Error{Code: ErrInvalidRequest, Detail: "a " + string(r.Kind) + " that can not be stored", Cause: err}
	}
	c.put(w, expect)
	return nil
}

// read takes v out of its form. ErrUnavailable: it is damaged, or of a newer version.
func read[T any](f *record.Form[T], r store.Record, v *T) error {
	if err := f.Read(r, v); err != nil {
		return &Error{Code: ErrUnavailable, Detail: "stored " + string(r.Kind) + " " + r.ID + " can not be read", Cause: err}
	}
	return nil
}

var errVersion = errors.New("damaged or of a newer version")

// first refuses what is not of version 1.
func first(v int) error {
	if v != 1 {
		return errVersion
	}
	return nil
}

func (c *change) event(ctx context.Context, e Event) {
	room := c.data[:0]
	if len(c.Events) > 0 {
		room = make([]byte, 0, eventRoom)
	}
	c.Events = append(c.Events, c.s.audit.record(ctx, e, room))
}

const (
	eventRoom     = 384 // bytes, what the JSON of most events takes
	commitTries   = 5
	commitTimeout = 10 * time.Second // of one commit with its retries, when the caller sets no deadline
)

// commit writes c. store.ErrConflict comes back as it is: the caller knows what it raced with. Everything else
// is an *Error, ErrUnavailable where the outcome is unknown or nothing could be written. When others
// have moved the state meanwhile, or c did, this process has caught up before commit returns: its caller checks
// the rules again before it hands anything out.
func (s *core) commit(ctx context.Context, c *change) (store.Commit, error) {
	if _, ok := ctx.Deadline(); !ok {
		d := &c.deadline
		if d.parent != nil { // a second try: whoever still waits by the first one's must not wake up to this one
			d = new(deadline)
		}
		d.parent, d.at = ctx, time.Now().Add(commitTimeout)
		ctx = d
		defer d.end()
	}
	done, err := s.applyRetrying(ctx, c)
	if err != nil {
		return done, err
	}
	if c.state || s.state.Behind(done.Head) {
		if err := s.state.CatchUp(ctx, done.Head); err != nil {
			return done, unavailable(err, "written, but the store could not be read back")
		}
	}
	return done, nil
}

// deadline is a context.WithDeadline whose timer is made when somebody waits for it: most writes are done before, and the
// timer takes longer than a write into memory.
type deadline struct {
	parent context.Context
	at     time.Time

	mu     sync.Mutex // guards all below
	ctx    context.Context
	cancel context.CancelFunc
	ended  bool
}

func (d *deadline) Deadline() (time.Time, bool) { return d.at, true }

func (d *deadline) Done() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ctx == nil {
		d.ctx, d.cancel = context.WithDeadline(d.parent, d.at)
		if d.ended {
			d.cancel()
		}
	}
	return d.ctx.Done()
}

func (d *deadline) Err() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.ctx != nil:
		return d.ctx.Err()
	case d.ended:
		return context.Canceled
	case d.parent.Err() != nil:
		return d.parent.Err()
	case !time.Now().Before(d.at):
		return context.DeadlineExceeded
	}
	return nil
}

// Value gives the real context to those who look for it: children of it need no goroutine to follow it.
func (d *deadline) Value(key any) any {
	d.mu.Lock()
	ctx := d.ctx
	d.mu.Unlock()
	if ctx == nil {
		ctx = d.parent
	}
	return ctx.Value(key)
}

// end is the CancelFunc.
func (d *deadline) end() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ended = true; d.cancel != nil {
		d.cancel()
	}
}

func (s *core) applyRetrying(ctx context.Context, c *change) (store.Commit, error) {
	if s.closed.Load() {
		return store.Commit{}, fail(ErrUnavailable, "the service is closed")
	}
	if s.state.Gone() {
		return store.Commit{}, unavailable(follow.ErrGone, "write")
	}
	wait := 5 * time.Millisecond
	for try := 1; ; try++ {
		done, err := s.st.Apply(ctx, &c.Change)
		switch {
		case err == nil:
			return done, nil
		case errors.Is(err, store.ErrConflict):
			return done, err
		case errors.Is(err, store.ErrReadOnly):
			return done, unavailable(err, "the store has moved and takes no writes")
		case errors.Is(err, store.ErrTooLarge):
			return done, &Error{Code: ErrInvalidRequest, Detail: "the record would be too large", Cause: err}
		case errors.Is(err, store.ErrInvalid):
			return done, &Error{Code: ErrInvalidRequest, Detail: "no store can keep the record", Cause: err}
		case ctx.Err() != nil || try == commitTries || len(c.Puts) == 0:
			// Without puts a repetition might write the event twice; the caller has nothing yet, so nothing is lost.
			return done, unavailable(err, "write")
		}
		if !follow.Sleep(ctx, follow.Jitter(wait)) {
			return done, unavailable(err, "write")
		}
		wait *= 4
	}
}

// get reads one record: ErrNotFound or ErrUnavailable.
func (s *core) get(ctx context.Context, kind store.Kind, id string) (store.Record, error) {
	if id == "" || len(id) > 255 {
		return store.Record{}, fail(ErrNotFound, "no %s has such an ID", kind)
	}
	r, err := s.st.Get(ctx, kind, id)
	switch {
	case err == nil:
		return r, nil
	case errors.Is(err, store.ErrNotFound):
		return r, fail(ErrNotFound, "no %s %q", kind, id)
	}
	return r, unavailable(err, "read")
}

// newID makes an ID that sorts by time: 26 characters, unguessable in its second half.
func newID(now time.Time) string { return opaque.NewID(now).String() }
