// Package deliver hands the stored events to one receiver, a sink, in the log's final order. It owns the cursor
// records: how far each sink has got, and which process holds the lease to feed it.
//
// It promises that a sink gets every event at least once across restarts, and each one again only where its
// acknowledgement could not be stored. At most one process feeds a sink at a time; a process that stalls for longer
// than its lease may repeat a page beside the next one. An event that was purged before it was delivered is told as
// missed.
//
// One goroutine calls Run; everything but the two atomic times belongs to it. Lag, Late and Kept are safe for concurrent
// use, take no lock and do no I/O. A round reads the clock first, then the log, so that the lag is never reported too small.
//
// The root's audit log makes a Feed for each of Config.Sinks and for each Service.Feed. Package mover reads and writes
// cursors when it moves a service to another store.
package deliver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/follow"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/internal/record"
	"github.com/apitoken-go/apitoken/store"
)

// Config is what a Feed is made of.
type Config struct {
	Name    string        // of the sink, and of its cursor
	Timeout time.Duration // of one delivery; zero: 2 s
	MaxLag  time.Duration // over which Late answers an error; zero: never
	Keep    time.Duration // how long events are kept; zero: for ever

	Writer *commit.Writer
	Now    func() time.Time
	Log    *slog.Logger
	// Deliver hands events to the sink, all or none of them, at most Batch (zero: 1) at once. It may block for ever and may panic.
	Deliver func(ctx context.Context, list []store.Record) error
	Batch   int
	// Missed tells that events may have been purged before they were delivered.
	Missed func(ctx context.Context)
}

// Kind is the kind of the cursor records. A cursor's ID is its sink's name.
const Kind store.Kind = "cursor"

// MinLag is the smallest MaxLag that a quiet service keeps to.
const MinLag = 5 * time.Second

const (
	defaultTimeout = 2 * time.Second
	pageSize       = 200
	poll           = 500 * time.Millisecond
	maxPause       = 10 * time.Second // between two rounds that delivered nothing because of an error
	lease          = 15 * time.Second // of the process that feeds a sink
)

// Cursor says how far a sink has got: everything up to Cursor was delivered, and the events of Seen after it. A store
// gives no cursor within a page or at the end of its log, so what was delivered there is remembered by ID.
type Cursor struct {
	V      int      `json:"v"`
	Cursor string   `json:"cursor,omitempty"`
	Seen   []string `json:"seen,omitempty"`
	Done   int64    `json:"done"`  // Unix ms: every event acknowledged by then was delivered
	Owner  string   `json:"owner"` // the process that feeds the sink
	Until  int64    `json:"until"` // Unix ms: the end of the owner's lease
	record.Ext
}

// CursorForm is how a Cursor is stored.
var CursorForm = record.Form[Cursor]{Kind: Kind}

// Feed feeds one sink.
type Feed struct {
	c  Config
	id string // of this process

	done atomic.Int64 // Cursor.Done as far as this process knows, and not before its start
	kept atomic.Int64 // the stored Cursor.Done; 0: not read yet

	rec     Cursor
	version store.Version // of rec
	skip    int64         // after ErrTrimmed: events written before this Unix ms were delivered; 0: none is skipped
	busy    chan struct{} // holds the one delivery that may be under way
}

// New returns a Feed that has delivered everything up to now, as far as Lag and Late tell.
func New(c Config) *Feed {
	if c.Timeout == 0 {
		c.Timeout = defaultTimeout
	}
	c.Batch = max(c.Batch, 1)
	now := c.Now()
	f := &Feed{c: c, id: opaque.NewID(now).String(), busy: make(chan struct{}, 1)}
	f.done.Store(now.UnixMilli())
	return f
}

// Name is the sink's name.
func (f *Feed) Name() string { return f.c.Name }

// Lag is an upper bound for how far the sink is behind.
func (f *Feed) Lag() time.Duration {
	return max(time.Duration(f.c.Now().UnixMilli()-f.done.Load())*time.Millisecond, 0)
}

// Late is fault.Unavailable while the sink is further behind than MaxLag.
func (f *Feed) Late() error {
	if f.c.MaxLag == 0 {
		return nil
	}
	if lag := f.Lag(); lag > f.c.MaxLag {
		return fault.Retry("audit sink %s is behind by %s", f.c.Name, lag.Round(time.Second))
	}
	return nil
}

// Kept is the time up to which every event was delivered, by the stored cursor; Unix time 0 if it was not read yet.
func (f *Feed) Kept() time.Time { return time.UnixMilli(f.kept.Load()) }

// Run feeds the sink until ctx ends. Then it gives up the lease, so that another process continues at once.
func (f *Feed) Run(ctx context.Context) {
	wait := poll
	for follow.Sleep(ctx, follow.Jitter(wait)) {
		n, err := f.round(ctx)
		if err != nil && ctx.Err() == nil {
			f.c.Log.Warn("apitoken: audit sink is behind", "sink", f.c.Name, "lag", f.Lag(), "error", err)
		}

		if err == nil || n > 0 {
			wait = poll
		} else {
			wait = min(2*wait, maxPause)
		}
	}
	f.release()
}

// round delivers what there is, if this process holds the lease or can get it. n is the number of events delivered.
func (f *Feed) round(ctx context.Context) (n int, err error) {
	mine, err := f.lease(ctx)
	if err != nil || !mine {
		return 0, err
	}
	for {
		asked := f.c.Now()
		page, err := f.c.Writer.Store.List(ctx, store.Query{Kind: store.KindEvent, Cursor: f.rec.Cursor, Limit: pageSize})
		if errors.Is(err, store.ErrTrimmed) {
			f.restart(ctx, asked)
			continue
		}
		if err != nil {
			return n, err
		}

		delivered, err := f.page(ctx, page.Records)
		n += delivered
		if err != nil {
			return n, err
		}
		if page.Cursor != "" {
			f.rec.Cursor, f.rec.Seen = page.Cursor, nil
			f.skip = 0
		} else {
			f.done.Store(asked.UnixMilli())
		}
		if delivered > 0 || f.due() {
			if err := f.write(ctx); err != nil {
				return n, err
			}
		}
		if page.Cursor == "" {
			return n, nil
		}
	}
}

// restart reads the log from its start, because the events at the cursor were purged. After a quiet time only events
// that were delivered long ago are gone; those acknowledged before Done are skipped.
func (f *Feed) restart(ctx context.Context, now time.Time) {
	if f.c.Keep == 0 || f.rec.Done < now.Add(-f.c.Keep).UnixMilli() {
		f.c.Missed(ctx)
	}
	f.rec.Cursor, f.rec.Seen = "", nil
	f.skip = f.rec.Done - time.Minute.Milliseconds()
}

// page delivers the events of a page that were not delivered yet.
func (f *Feed) page(ctx context.Context, events []store.Record) (n int, err error) {
	// Whatever of Seen is not in this page was purged since.
	f.rec.Seen = slices.DeleteFunc(f.rec.Seen, func(id string) bool {
		return !slices.ContainsFunc(events, func(r store.Record) bool { return r.ID == id })
	})
	fresh := slices.DeleteFunc(slices.Clone(events), func(r store.Record) bool { return slices.Contains(f.rec.Seen, r.ID) || r.Written < f.skip })
	for list := range slices.Chunk(fresh, f.c.Batch) {
		if err := f.deliver(ctx, list); err != nil {
			f.reached(list[0].Written - 1)
			return n, errors.Join(err, f.write(ctx))
		}

		// The cursor is stored within a page too, so that a sink that fails now and then advances and a slow one keeps its
		// lease.
		for _, r := range list {
			f.rec.Seen = append(f.rec.Seen, r.ID)
		}
		n += len(list)
		if f.expiring() {
			f.reached(list[len(list)-1].Written - 1)
			if err := f.write(ctx); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

// reached notes that every event acknowledged until at, Unix ms, was delivered.
func (f *Feed) reached(at int64) {
	f.done.Store(min(max(f.done.Load(), at), f.c.Now().UnixMilli()))
}

// expiring reports that half of the lease is over.
func (f *Feed) expiring() bool {
	return f.rec.Until-f.c.Now().UnixMilli() < lease.Milliseconds()/2
}

// due reports whether the cursor must be written for its times alone.
func (f *Feed) due() bool {
	return f.expiring() || f.c.MaxLag > 0 && f.done.Load()-f.rec.Done > f.c.MaxLag.Milliseconds()/4
}

// lease makes this process the one that feeds the sink, unless another one is.
func (f *Feed) lease(ctx context.Context) (bool, error) {
	now := f.c.Now().UnixMilli()
	if f.rec.Owner == f.id && now < f.rec.Until-lease.Milliseconds()/4 {
		return true, nil
	}

	r, err := f.c.Writer.Store.Get(ctx, Kind, f.c.Name)
	switch {
	case errors.Is(err, store.ErrNotFound):
		f.rec, f.version = Cursor{V: 1}, store.Version{}
	case err != nil:
		return false, err
	default:
		var rec Cursor
		if err := CursorForm.Read(r, &rec); err != nil {
			return false, fmt.Errorf("the stored cursor cannot be read: %w", err)
		}
		f.rec, f.version = rec, r.Version
		f.kept.Store(rec.Done)

		// A lease that ends too far ahead was written by a clock that is wrong: it holds nobody up.
		if f.rec.Owner != f.id && now < f.rec.Until && now > f.rec.Until-2*lease.Milliseconds() {
			f.done.Store(max(f.done.Load(), f.rec.Done))
			return false, nil
		}
	}

	f.rec.Owner = f.id
	err = f.write(ctx)
	if errors.Is(err, store.ErrConflict) {
		return false, nil
	}
	return err == nil, err
}

// write stores the cursor and renews the lease with it.
func (f *Feed) write(ctx context.Context) error {
	f.rec.V, f.rec.Done = 1, max(f.rec.Done, f.done.Load())
	f.rec.Until = f.c.Now().Add(lease).UnixMilli()
	return f.put(ctx)
}

func (f *Feed) put(ctx context.Context) error {
	c := commit.NewChange()
	if err := commit.Put(c, &CursorForm, store.Record{ID: f.c.Name}, &f.rec, f.version); err != nil {
		return err
	}
	if _, err := f.c.Writer.Commit(ctx, c); err != nil {
		f.rec.Owner = "" // whether it was written is unknown: the next round reads it again
		return err
	}
	f.version = c.ID
	f.kept.Store(f.rec.Done)
	return nil
}

// release gives up the lease.
func (f *Feed) release() {
	if f.rec.Owner != f.id {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	f.rec.Owner, f.rec.Until = "", 0
	if err := f.put(ctx); err != nil {
		f.c.Log.Debug("apitoken: the lease of a sink ends by its time alone", "sink", f.c.Name, "error", err)
	}
}

// deliver calls the sink with a deadline. A call that does not return blocks this sink alone: the next call begins
// after it has ended.
func (f *Feed) deliver(ctx context.Context, list []store.Record) error {
	select {
	case f.busy <- struct{}{}:
	default:
		return errors.New("the auditor has not come back from an earlier call")
	}
	done := make(chan error, 1)
	call, cancel := context.WithTimeout(ctx, f.c.Timeout)
	defer cancel()
	go func() {
		defer func() { <-f.busy }()
		defer func() {
			if p := recover(); p != nil {
				done <- fmt.Errorf("the auditor panicked: %v", p)
			}
		}()
		done <- f.c.Deliver(call, list)
	}()

	select {
	case err := <-done:
		return err
	case <-call.Done():
		return fmt.Errorf("the auditor took longer than %s", f.c.Timeout)
	}
}
