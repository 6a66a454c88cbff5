package apitoken

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/apitoken-go/apitoken/internal/follow"
	"github.com/apitoken-go/apitoken/internal/record"
	"github.com/apitoken-go/apitoken/store"
)

// Sink is an Auditor that follows the event feed from a cursor kept in the store under Name, so that it misses
// nothing across restarts, and gets each event in the log's final order. Of several processes with the same sink one feeds
// it at a time. Taking power away (revocations) and validating never wait for a sink. With MaxLag set, a
// sink that is further behind makes what gives power (issue, refresh, exchange, new keys) answer ErrUnavailable.
type Sink struct {
	Name    string
	Auditor Auditor
	Timeout time.Duration // of one call; zero: 2 s
	MaxLag  time.Duration // zero: it may lag without end; else at least 5 s
}

// Feed delivers the event feed to x, as if it stood in Config.Sinks, until ctx or the service ends. It is for what is
// attached later: nothing waits for x, so its MaxLag is zero (ErrInvalidRequest otherwise), and events that are purged by
// their age may be missed. It returns nil at the end of ctx; ErrUnavailable: the service was closed.
func (s *Service) Feed(ctx context.Context, x Sink) error {
	if x.MaxLag != 0 || x.Auditor == nil || x.Name == "" || x.Timeout < 0 {
		return fail(ErrInvalidRequest, "the sink %q has no name or auditor, or a MaxLag", x.Name)
	}
	for _, f := range s.audit.sinks {
		if f.sink.Name == x.Name {
			return fail(ErrInvalidRequest, "a sink %q is in Config.Sinks", x.Name)
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	f := newSinkFeed(s.core, x)
	s.audit.fed.Store(f, nil)
	defer s.audit.fed.Delete(f)
	f.run(ctx)
	if s.ctx.Err() != nil {
		return fail(ErrUnavailable, "the service is closed")
	}
	return nil
}

// kindCursor records hold how far each sink is.
const kindCursor store.Kind = "cursor"

const (
	sinkTimeout = 2 * time.Second
	sinkPage    = 200
	sinkPoll    = 500 * time.Millisecond
	sinkLease   = 15 * time.Second // of the process that feeds a sink
	minSinkLag  = 5 * time.Second
)

// cursorRecord is how far a sink is: behind Cursor, and behind those of Seen too. A store gives no cursor at the very end
// of its log, nor within a page, so that what was delivered there is remembered by name.
type cursorRecord struct {
	V      int      `json:"v"`
	Cursor string   `json:"cursor,omitempty"`
	Seen   []string `json:"seen,omitempty"`
	Done   int64    `json:"done"`  // Unix ms: all that was acknowledged until then was delivered
	Owner  string   `json:"owner"` // the process that feeds it
	Until  int64    `json:"until"` // Unix ms: the owner's lease
	record.Ext
}

var cursorForm = record.Form[cursorRecord]{Kind: kindCursor}

// sinkFeed feeds one sink.
type sinkFeed struct {
	s    *core
	sink Sink
	id   string // of this process

	done    atomic.Int64 // cursorRecord.Done, as far as this process knows, and not before its start
	kept    atomic.Int64 // the stored one; 0: not read yet
	rec     cursorRecord
	skip    int64 // Written of the first event that may be new, after ErrTrimmed; 0: all behind the cursor are
	version store.Version
	busy    chan struct{} // holds the one call that may be under way
}

func newSinkFeed(s *core, x Sink) *sinkFeed {
	if x.Timeout == 0 {
		x.Timeout = sinkTimeout
	}
	f := &sinkFeed{s: s, sink: x, id: newID(s.now()), busy: make(chan struct{}, 1)}
	f.done.Store(s.now().UnixMilli()) // a start is given the time that MaxLag gives
	return f
}

// lag is how far the sink is behind, at most.
func (f *sinkFeed) lag(now time.Time) time.Duration {
	return time.Duration(now.UnixMilli()-f.done.Load()) * time.Millisecond
}

func (f *sinkFeed) run(ctx context.Context) {
	wait := sinkPoll
	for follow.Sleep(ctx, follow.Jitter(wait)) {
		n, err := f.round(ctx)
		if err != nil && ctx.Err() == nil {
			f.s.log.Warn("apitoken: audit sink is behind", "sink", f.sink.Name, "lag", f.lag(f.s.now()), "error", err)
		}
		if err == nil || n > 0 {
			wait = sinkPoll
		} else {
			wait = min(2*wait, 10*time.Second)
		}
	}
	f.release()
}

// round delivers what there is, if this process holds the lease or can get it, and tells how many events that were.
func (f *sinkFeed) round(ctx context.Context) (n int, err error) {
	mine, err := f.lease(ctx)
	if err != nil || !mine {
		return 0, err
	}
	for {
		asked := f.s.now()
		page, err := f.s.st.List(ctx, store.Query{Kind: store.KindEvent, Cursor: f.rec.Cursor, Limit: sinkPage})
		if errors.Is(err, store.ErrTrimmed) {
			// What lay behind the cursor was purged. After a quiet time that is only what was delivered long ago: the log
			// is read again, without what was acknowledged before Done.
			if keep := f.s.cfg.KeepEvents; keep == 0 || f.rec.Done < asked.Add(-keep).UnixMilli() {
				f.s.alert(ctx, "audit sink missed events that were purged", Event{Extra: map[string]string{"sink": f.sink.Name}})
			}
			f.rec.Cursor, f.rec.Seen = "", nil
			f.skip = f.rec.Done - time.Minute.Milliseconds()
			continue
		}
		if err != nil {
			return n, err
		}
		// All of Seen is in this page, but for what was purged since.
		f.rec.Seen = slices.DeleteFunc(f.rec.Seen, func(id string) bool {
			return !slices.ContainsFunc(page.Records, func(r store.Record) bool { return r.ID == id })
		})
		before := n
		for _, r := range page.Records {
			if slices.Contains(f.rec.Seen, r.ID) || r.Written < f.skip {
				continue
			}
			e, err := readEvent(r)
			if err == nil {
				err = f.deliver(ctx, e)
			}
			if err != nil {
				f.reached(r.Written - 1)
				return n, errors.Join(err, f.write(ctx))
			}
			// Kept within a page too: a sink that fails now and then gets on, and one that is slow keeps its lease.
			f.rec.Seen = append(f.rec.Seen, r.ID)
			if n++; f.expiring() {
				f.reached(r.Written - 1)
				if err := f.write(ctx); err != nil {
					return n, err
				}
			}
		}
		if page.Cursor != "" {
			f.rec.Cursor, f.rec.Seen = page.Cursor, nil
			f.skip = 0
		} else {
			f.done.Store(asked.UnixMilli())
		}
		if n > before || f.due() {
			if err := f.write(ctx); err != nil {
				return n, err
			}
		}
		if page.Cursor == "" {
			return n, nil
		}
	}
}

// reached notes that all that was acknowledged until at, Unix ms, was delivered.
func (f *sinkFeed) reached(at int64) {
	f.done.Store(min(max(f.done.Load(), at), f.s.now().UnixMilli()))
}

// expiring reports that half of the lease is over.
func (f *sinkFeed) expiring() bool {
	return f.rec.Until-f.s.now().UnixMilli() < sinkLease.Milliseconds()/2
}

// due reports whether the record must be written for its times alone.
func (f *sinkFeed) due() bool {
	if f.expiring() {
		return true
	}
	return f.sink.MaxLag > 0 && f.done.Load()-f.rec.Done > f.sink.MaxLag.Milliseconds()/4
}

// lease makes this process the one that feeds the sink, unless another one is.
func (f *sinkFeed) lease(ctx context.Context) (bool, error) {
	now := f.s.now().UnixMilli()
	if f.rec.Owner == f.id && now < f.rec.Until-sinkLease.Milliseconds()/4 {
		return true, nil
	}
	r, err := f.s.get(ctx, kindCursor, f.sink.Name)
	switch {
	case isNotFound(err):
		f.rec, f.version = cursorRecord{V: 1}, store.Version{}
	case err != nil:
		return false, err
	default:
		var rec cursorRecord
		if err := read(&cursorForm, r, &rec); err != nil {
			return false, err
		}
		f.rec, f.version = rec, r.Version
		f.kept.Store(rec.Done)
		if f.rec.Owner != f.id && now < f.rec.Until && now > f.rec.Until-2*sinkLease.Milliseconds() {
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

// write keeps the cursor, and renews the lease with it.
func (f *sinkFeed) write(ctx context.Context) error {
	f.rec.V, f.rec.Done = 1, max(f.rec.Done, f.done.Load())
	f.rec.Until = f.s.now().Add(sinkLease).UnixMilli()
	return f.put(ctx)
}

func (f *sinkFeed) put(ctx context.Context) error {
	c := f.s.newChange()
	if err := put(c, &cursorForm, store.Record{ID: f.sink.Name}, &f.rec, f.version); err != nil {
		return err
	}
	_, err := f.s.commit(ctx, c)
	if err != nil {
		f.rec.Owner = "" // read it again
		return err
	}
	f.version = c.ID
	f.kept.Store(f.rec.Done)
	return nil
}

// release gives up the lease at Close, so that another process goes on at once.
func (f *sinkFeed) release() {
	if f.rec.Owner != f.id {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	f.rec.Owner, f.rec.Until = "", 0
	if err := f.put(ctx); err != nil {
		f.s.log.Debug("apitoken: the lease of a sink runs out by itself", "sink", f.sink.Name, "error", err)
	}
}

// deliver calls the auditor with a deadline. One that does not come back holds up itself alone: no second call is
// begun before the first one ends.
func (f *sinkFeed) deliver(ctx context.Context, e Event) error {
	select {
	case f.busy <- struct{}{}:
	default:
		return errors.New("the auditor has not come back from an earlier call")
	}
	done := make(chan error, 1)
	cctx, cancel := context.WithTimeout(ctx, f.sink.Timeout)
	defer cancel()
	go func() {
		defer func() { <-f.busy }()
		defer func() {
			if p := recover(); p != nil {
				done <- fmt.Errorf("the auditor panicked: %v", p)
			}
		}()
		done <- f.sink.Auditor.Audit(cctx, e)
	}()
	select {
	case err := <-done:
		return err
	case <-cctx.Done():
		return fmt.Errorf("the auditor took longer than %s", f.sink.Timeout)
	}
}

// delivered is a purge time, at most before, that spares the events which some sink has not got yet.
func (a *auditLog) delivered(before time.Time) time.Time {
	for _, f := range a.sinks {
		if t := time.UnixMilli(f.kept.Load()).Add(a.s.cfg.KeepEvents); t.Before(before) {
			before = t
		}
	}
	return before
}
