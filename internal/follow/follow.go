// Package follow reads a store's state as it changes, and knows how old what it has read is.
//
// Order, for whoever decides by it: first the View, then what was made of the records (rules, keys), then the clock. Records are
// handed over before the view that holds them is stored, so that everything up to View().Pos was looked at, and a stop of the process in
// between shows as age. Locks: one right to follow (Hold) is held while records are handed over; what takes them locks
// for itself and never asks Follower for anything that waits.
package follow

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apitoken-go/apitoken/store"
)

// To is whom a Follower tells. All but Round run while the right to follow is held: they must not read the store and must not
// ask for a newer view, which would wait for themselves.
type To struct {
	// Apply takes one record. An error says that it cannot be read.
	Apply func(store.Record) error
	// Aside takes a record that Apply could not read, and sees to it that what depends on it fails closed. An error says that
	// it cannot: then the view does not advance.
	Aside func(store.Record, error) error
	// Told is called once for each record that was set aside, after Aside.
	Told func(store.Record, error)
	// Forget drops what was read of another history, but the rules: it is read again.
	Forget func()
	// Lost says that another history was read to its end.
	Lost func()
	// Round tells of a reading in the background.
	Round func(ctx context.Context, err error, took time.Duration)
}

// Config is what a Follower stands on.
type Config struct {
	Store     store.Store
	Now       func() time.Time
	Injected  bool // Now is not the process's clock: stores do not share it
	Log       *slog.Logger
	Staleness time.Duration // the bound on the view's age
	Answer    time.Duration // how long one answer of the store may take; 0: as long as the caller's context lets it
	First     []store.Kind  // read whole at start
	Then      []store.Kind  // followed from then on
}

// Follower is what this process knows of the records that every process must know: it follows the store, hands each
// record over, and knows how old its view is. One reading runs at a time; whoever needs a newer view asks CatchUp and waits for it.
type Follower struct {
	c     Config
	to    To
	ctx   context.Context // ends with the service
	wg    sync.WaitGroup  // of the goroutine for hints
	aside sync.Map        // Name → error: records that could not be read
	turn  chan struct{}   // holds the one right to follow; a channel, so that waiting for it ends with a context
	view  atomic.Pointer[View]
	kick  chan struct{}                  // wakes run early
	warm  bool                           // the snapshot was read; guarded by turn
	read  atomic.Pointer[store.Position] // where the reading that was cut short stopped, nil: none was; written under turn
	lost  atomic.Uint64                  // times that the store's history changed under us
	moved atomic.Pointer[chan struct{}]  // closed when the position changes
	round atomic.Pointer[round]          // of run, the next one
	looks chan struct{}                  // places of those who wait in look
	gone  atomic.Bool                    // the service has moved to another store: this one's state is the past
	high  atomic.Pointer[hightide]
	// ahead is how far the store's clock is ahead of ours, ms: measured at each answer, to within its round trip.
	ahead atomic.Int64
}

// clockBack is by how much a clock may seem to go back because answers take time.
const clockBack = 5 * time.Second

// Since is the age of a record that was written at written by the store's clock, and at local by the clock of
// the process that wrote it. The store's clock decides, because processes differ; under an injected clock,
// which stores do not share, the greater age does. A store whose clock went back stamps no write with less than before:
// then our own clock decides, and where that went back too, ok is false.
func (st *Follower) Since(written, local int64) (age time.Duration, ok bool) {
	now := st.c.Now().UnixMilli()
	ms := now + st.ahead.Load() - written
	if st.c.Injected {
		ms = max(ms, now-local)
	}
	if ms < -clockBack.Milliseconds() {
		ms = now - local
	}
	return time.Duration(max(ms, 0)) * time.Millisecond, ms >= -clockBack.Milliseconds()
}

// hightide is the latest time that any clock has shown us, and when, by the process's own, which never goes back.
type hightide struct{ at, mono time.Time }

// Latest is the latest that it may be now: by our clock, by the store's, and by how long ago either showed what. Whatever must
// not end too early counts from it: a clock that was put back makes nothing younger.
func (st *Follower) Latest(seen time.Time) time.Time {
	for {
		mono, old := time.Now(), st.high.Load()
		next := &hightide{at: seen.Round(0), mono: mono}
		if old != nil {
			if at := old.at.Add(mono.Sub(old.mono)); at.After(next.at) {
				next.at = at
			}
		}
		if st.high.CompareAndSwap(old, next) {
			return next.at
		}
	}
}

// View is one complete answer of the store. age counts from when its request was sent.
type View struct {
	Pos  store.Position
	Sent time.Time // by the configured clock
	Wall int64     // Sent, Unix ns
	real time.Time // by the process's own, which never goes back
}

// Page is how many records are asked for at once.
const Page = 1000

// ErrGone is what a Follower answers once its service has moved, ErrLate when the store took longer for one answer than
// Config.Answer.
var (
	ErrGone = errors.New("the service has moved to another store")
	ErrLate = errors.New("the store does not answer in time")
)

// New makes a Follower that lives until ctx ends.
func New(ctx context.Context, c Config, to To) *Follower {
	st := &Follower{c: c, to: to, ctx: ctx, turn: make(chan struct{}, 1), kick: make(chan struct{}, 1), looks: make(chan struct{}, maxLooks)}
	st.round.Store(&round{done: make(chan struct{})})
	st.view.Store(&View{})
	moved := make(chan struct{})
	st.moved.Store(&moved)
	return st
}

// View is what is known now.
func (st *Follower) View() *View { return st.view.Load() }

// Moved is closed when the position changes from what it is now.
func (st *Follower) Moved() <-chan struct{} { return *st.moved.Load() }

// Gone reports that the service has moved to another store, Leave that it has.
func (st *Follower) Gone() bool { return st.gone.Load() }

// Leave notes that the service has moved: the view gets no newer.
func (st *Follower) Leave() { st.gone.Store(true) }

// Name is what names a record.
type Name struct {
	Kind store.Kind
	ID   string
}

// Asides returns the records that could not be read, and why.
func (st *Follower) Asides() map[Name]error {
	out := map[Name]error{}
	st.aside.Range(func(k, err any) bool { out[k.(Name)] = err.(error); return true })
	return out
}

// Hold takes the right to follow: no record is handed over until release.
func (st *Follower) Hold(ctx context.Context) (release func(), err error) {
	select {
	case st.turn <- struct{}{}:
		return func() { <-st.turn }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Position is how far the view reaches.
func (st *Follower) Position() store.Position { return st.view.Load().Pos }

// Reached is how far records were handed over: beyond Position by what a reading brought that ended before its last page.
func (st *Follower) Reached() store.Position {
	if p := st.read.Load(); p != nil {
		return *p
	}
	return st.Position()
}

// Behind reports whether head tells of changes that this process has not seen.
func (st *Follower) Behind(head store.Position) bool {
	p := st.Position()
	return head.N > p.N || head.History != p.History && head != (store.Position{})
}

// CatchUp returns when this process has seen all up to want.
func (st *Follower) CatchUp(ctx context.Context, want store.Position) error {
	for try := 0; st.Behind(want); try++ {
		if try == 3 {
			return errors.New("the store's order of changes does not reach its own head")
		}
		if err := st.Refresh(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Refresh reads all that was acknowledged before the call.
func (st *Follower) Refresh(ctx context.Context) error {
	asked := time.Now()
	select {
	case st.turn <- struct{}{}:
		defer func() { <-st.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if v := st.view.Load(); st.warm && v.real.After(asked) {
		return nil // whoever had the turn before asked the store after our call
	}
	return st.follow(ctx)
}

// follow reads to the end. The caller has the turn.
func (st *Follower) follow(ctx context.Context) error {
	for lost := 0; ; lost++ {
		kinds, from := st.c.Then, st.Reached()
		if !st.warm {
			kinds = st.c.First
		}
		sent, began := st.c.Now(), time.Now()
		next, err := st.pages(ctx, from, kinds)
		if errors.Is(err, store.ErrDiverged) && lost < 2 {
			// Another history: read again and merge. Rules that we hold are never dropped.
			st.lost.Add(1)
			st.c.Log.Warn("apitoken: the store's history changed; reading it again", "history", from.History, "position", from.N)
			st.warm = false
			st.read.Store(&store.Position{})
			st.aside.Clear()
			st.to.Forget()
			continue
		}
		if err != nil {
			return err
		}
		if st.gone.Load() {
			return ErrGone // the view stays as old as it is, and gets older
		}
		st.warm = true
		st.read.Store(nil)
		if old := st.view.Swap(&View{Pos: next, Sent: sent, Wall: sent.UnixNano(), real: began}); old.Pos != next {
			moved := make(chan struct{})
			close(*st.moved.Swap(&moved))
		}
		if lost > 0 {
			st.to.Lost()
		}
		return nil
	}
}

// pages hands over what comes after from, page by page, and asks for the next page meanwhile. What it handed over is not read
// again when it ends early, so that who is far behind gets nearer each time.
func (st *Follower) pages(ctx context.Context, from store.Position, kinds []store.Kind) (store.Position, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	v, err := st.page(ctx, from, kinds)
	for {
		if err != nil {
			return from, err
		}
		var next store.View
		var failed error
		var ahead sync.WaitGroup
		if v.More {
			ahead.Go(func() { next, failed = st.page(ctx, v.Next, kinds) })
		}
		for i := range v.Records {
			if err := st.take(v.Records[i]); err != nil {
				cancel()
				ahead.Wait()
				return from, fmt.Errorf("record %s %q: %w", v.Records[i].Kind, v.Records[i].ID, err)
			}
		}
		at := v.Next
		if from = at; !v.More {
			return from, nil
		}
		st.read.Store(&at)
		ahead.Wait()
		v, err = next, failed
	}
}

func (st *Follower) page(ctx context.Context, from store.Position, kinds []store.Kind) (store.View, error) {
	actx, cancel := ctx, func() {}
	if st.c.Answer > 0 {
		actx, cancel = context.WithTimeout(ctx, st.c.Answer)
	}
	defer cancel()
	v, err := st.c.Store.Follow(actx, from, kinds, Page)
	if err != nil && actx.Err() != nil && ctx.Err() == nil {
		err = fmt.Errorf("%w: %w", ErrLate, err)
	}
	if err == nil && v.Now != 0 {
		st.ahead.Store(v.Now - st.c.Now().UnixMilli())
		st.Latest(time.UnixMilli(v.Now))
	}
	return v, err
}

// Wake asks Run to look at the store now.
func (st *Follower) Wake() {
	select {
	case st.kick <- struct{}{}:
	default:
	}
}

// round is one reading of the store by run, for those who wait for it.
type round struct {
	done chan struct{} // closed when it has ended
	err  error         // set before
}

const (
	maxLooks = 256
	lookFor  = time.Second
	// roundsApart is the least time between two rounds that were asked for: what strangers can cause costs the store 50 reads
	// a second at most.
	roundsApart = 20 * time.Millisecond
)

// Look waits until the store was read once more, by run and for all who ask meanwhile. For those whom a stranger makes ask.
func (st *Follower) Look(ctx context.Context) error {
	select {
	case st.looks <- struct{}{}:
		defer func() { <-st.looks }()
	default:
		return errors.New("too many wait for the store")
	}
	r := st.round.Load() // begins after this
	st.Wake()
	t := time.NewTimer(lookFor)
	defer t.Stop()
	select {
	case <-r.done:
		return r.err
	case <-t.C:
		return errors.New("the store does not answer in time")
	case <-ctx.Done():
		return ctx.Err()
	case <-st.ctx.Done():
		return st.ctx.Err()
	}
}

// poll is how often the store is asked when nothing hints at a change: often enough that one failed try leaves
// the view within its bound.
func (st *Follower) poll() time.Duration {
	return min(max(st.c.Staleness/4, 10*time.Millisecond), 5*time.Second)
}

// Run follows the store until ctx ends: at each hint of a Waker, and at every poll.
func (st *Follower) Run(ctx context.Context) {
	if w, ok := st.c.Store.(store.Waker); ok {
		st.wg.Go(func() { st.hints(ctx, w) })
		defer st.wg.Wait()
	}
	wait := st.poll()
	var began time.Time
	for {
		t := time.NewTimer(Jitter(wait))
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-st.kick:
			if !Sleep(ctx, max(0, roundsApart-time.Since(began))) {
				t.Stop()
				return
			}
		case <-t.C:
		}
		t.Stop()
		this := st.round.Swap(&round{done: make(chan struct{})})
		began = time.Now()
		tctx, cancel := context.WithTimeout(ctx, max(st.c.Staleness, time.Second))
		err := st.Refresh(tctx)
		cancel()
		this.err = err
		close(this.done)
		st.to.Round(ctx, err, time.Since(began))
		switch {
		case err == nil:
			wait = st.poll()
		case ctx.Err() != nil:
			return
		default:
			st.c.Log.Warn("apitoken: following the store failed", "error", err, "age", st.c.Now().Sub(st.View().Sent))
			wait = min(wait*2, max(st.poll(), 5*time.Second))
		}
	}
}

// hints turns the store's hints into kicks. A hint that fails costs nothing but time: run polls as well.
func (st *Follower) hints(ctx context.Context, w store.Waker) {
	wait := 10 * time.Millisecond
	for ctx.Err() == nil {
		p := st.Position()
		if err := w.Wait(ctx, p); err != nil {
			if !Sleep(ctx, Jitter(wait)) {
				return
			}
			wait = min(2*wait, 5*time.Second)
			continue
		}
		wait = 10 * time.Millisecond
		if err := st.Refresh(ctx); err != nil || st.Position() == p {
			// Early or for nothing: do not spin.
			if !Sleep(ctx, wait) {
				return
			}
		}
	}
}

// take hands a record over. One that cannot be read is set aside, and told of once.
func (st *Follower) take(r store.Record) error {
	name := Name{r.Kind, r.ID}
	err := st.to.Apply(r)
	if err == nil {
		st.aside.Delete(name)
		return nil
	}
	if err := st.to.Aside(r, err); err != nil {
		return err
	}
	if _, known := st.aside.Swap(name, err); !known {
		st.c.Log.Error("apitoken: a stored record cannot be read and is set aside: what depends on it is refused", "kind", r.Kind, "id", r.ID, "error", err)
		if st.to.Told != nil {
			st.to.Told(r, err)
		}
	}
	return nil
}

// Jitter spreads d over half to one and a half of it, so that processes that failed together do not return together.
func Jitter(d time.Duration) time.Duration {
	return d/2 + time.Duration(mathrand.Int64N(int64(d)+1))
}

// Sleep waits for d in real time and reports whether ctx still lives.
func Sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
