package apitoken

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/apitoken-go/apitoken/store"
)

// state is what this process knows of the records that every process must know: it follows the store, hands each
// record to whom it concerns, and knows how old its view is. One follower runs at a time; whoever needs a
// newer view asks catchUp and waits for it.
type state struct {
	s     *Service
	turn  chan struct{} // holds the one right to follow; a channel, so that waiting for it ends with a context
	view  atomic.Pointer[view]
	kick  chan struct{}                 // wakes run early
	warm  bool                          // the snapshot was read; guarded by turn
	lost  atomic.Uint64                 // times that the store's history changed under us
	moved atomic.Pointer[chan struct{}] // closed when the position changes
	round atomic.Pointer[round]         // of run, the next one
	looks chan struct{}                 // places of those who wait in look
	gone  atomic.Bool                   // the service has moved to another store: this one's state is the past
	high  atomic.Pointer[hightide]
	// ahead is how far the store's clock is ahead of ours, ms: measured at each answer, to within its round trip.
	ahead atomic.Int64
}

// clockBack is by how much a clock may seem to go back because answers take time.
const clockBack = 5 * time.Second

// since is the age of a record that was written at written by the store's clock, and at local by the clock of
// the process that wrote it. The store's clock decides, because processes differ; under an injected clock,
// which stores do not share, the greater age does. A store whose clock went back stamps no write with less than before:
// then our own clock decides, and where that went back too, ok is false.
func (st *state) since(written, local int64) (age time.Duration, ok bool) {
	now := st.s.now().UnixMilli()
	ms := now + st.ahead.Load() - written
	if st.s.injected {
		ms = max(ms, now-local)
	}
	if ms < -clockBack.Milliseconds() {
		ms = now - local
	}
	return time.Duration(max(ms, 0)) * time.Millisecond, ms >= -clockBack.Milliseconds()
}

// hightide is the latest time that any clock has shown us, and when, by the process's own, which never goes back.
type hightide struct{ at, mono time.Time }

// latest is the latest that it may be now: by our clock, by the store's, and by how long ago either showed what. Whatever must
// not end too early counts from it: a clock that was put back makes nothing younger.
func (st *state) latest(seen time.Time) time.Time {
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

// view is one complete answer of the store. age counts from when its request was sent.
type view struct {
	pos  store.Position
	sent time.Time // by the configured clock
	wall int64     // sent, Unix ns
	real time.Time // by the process's own, which never goes back
}

// snapshotKinds are read whole at start. API keys are not: a process reads each at its first sight, and follows
// the changes from then on.
var snapshotKinds = []store.Kind{store.KindMeta, store.KindKey, store.KindRole, store.KindClient, store.KindRule}

// followedKinds adds the API keys, of which only changes matter.
var followedKinds = append(snapshotKinds[:len(snapshotKinds):len(snapshotKinds)], store.KindAPIKey)

const followPage = 1000

var errGone = errors.New("the service has moved to another store")

func newState(s *Service) *state {
	st := &state{s: s, turn: make(chan struct{}, 1), kick: make(chan struct{}, 1), looks: make(chan struct{}, maxLooks)}
	st.round.Store(&round{done: make(chan struct{})})
	st.view.Store(&view{})
	moved := make(chan struct{})
	st.moved.Store(&moved)
	return st
}

func (st *state) position() store.Position { return st.view.Load().pos }

// behind reports whether head tells of changes that this process has not seen.
func (st *state) behind(head store.Position) bool {
	p := st.position()
	return head.N > p.N || head.History != p.History && head != (store.Position{})
}

// catchUp returns when this process has seen all up to want.
func (st *state) catchUp(ctx context.Context, want store.Position) error {
	for try := 0; st.behind(want); try++ {
		if try == 3 {
			return errors.New("the store's order of changes does not reach its own head")
		}
		if err := st.refresh(ctx); err != nil {
			return err
		}
	}
	return nil
}

// refresh reads all that was acknowledged before the call.
func (st *state) refresh(ctx context.Context) error {
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
func (st *state) follow(ctx context.Context) error {
	for lost := 0; ; lost++ {
		kinds, from := followedKinds, st.view.Load().pos
		if !st.warm {
			kinds, from = snapshotKinds, store.Position{}
		}
		sent, began := st.s.now(), time.Now()
		next, err := st.pages(ctx, from, kinds)
		if errors.Is(err, store.ErrDiverged) && lost < 2 {
			// Another history: read again and merge. Rules that we hold are never dropped.
			st.lost.Add(1)
			st.s.log.Warn("apitoken: the store's history changed; reading it again", "history", from.History, "position", from.N)
			st.forget()
			continue
		}
		if err != nil {
			return err
		}
		if st.gone.Load() {
			return errGone // the view stays as old as it is, and gets older
		}
		st.warm = true
		if old := st.view.Swap(&view{pos: next, sent: sent, wall: sent.UnixNano(), real: began}); old.pos != next {
			moved := make(chan struct{})
			close(*st.moved.Swap(&moved))
		}
		if lost > 0 {
			st.s.rules.missing.Store(true) // the janitor puts back what the store lost
			st.s.hasten()
		}
		return nil
	}
}

func (st *state) forget() {
	st.warm = false
	st.s.Clients.reset()
	st.s.APIKeys.reset()
	st.s.SigningKeys.reset()
	st.s.roles.reset()
	st.s.feed.reset()
	// st.s.rules keeps all it holds.
}

func (st *state) pages(ctx context.Context, from store.Position, kinds []store.Kind) (store.Position, error) {
	for {
		v, err := st.s.st.Follow(ctx, from, kinds, followPage)
		if err != nil {
			return from, err
		}
		if v.Now != 0 {
			st.ahead.Store(v.Now - st.s.now().UnixMilli())
			st.latest(time.UnixMilli(v.Now))
		}
		for i := range v.Records {
			if err := st.dispatch(v.Records[i]); err != nil {
				return from, fmt.Errorf("record %s %q: %w", v.Records[i].Kind, v.Records[i].ID, err)
			}
		}
		from = v.Next
		if !v.More {
			return from, nil
		}
	}
}

// dispatch hands a record to its owner. An error stops the view from advancing: a rule that can not be read
// must not look like no rule.
func (st *state) dispatch(r store.Record) error {
	switch r.Kind {
	case store.KindRule:
		if err := st.s.rules.applyRecord(r); err != nil {
			return err
		}
		if r.Type == targetKey.String() {
			st.s.SigningKeys.wake()
		}
		return st.s.feed.applyRule(st.s, r)
	case store.KindKey:
		return st.s.SigningKeys.applyRecord(r)
	case store.KindClient:
		return st.s.Clients.applyRecord(r)
	case store.KindRole:
		return st.s.roles.applyRecord(r)
	case store.KindMeta:
		switch r.ID {
		case movedID:
			st.gone.Store(true)
		case metaID:
			return st.s.longer(r)
		}
	case store.KindAPIKey:
		st.s.feed.applyKey(st.s, r)
		return st.s.APIKeys.applyRecord(r)
	}
	return nil // what else is meta is read where it is needed
}

// wake asks run to look at the store now.
func (st *state) wake() {
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

// look waits until the store was read once more, by run and for all who ask meanwhile. For those whom a stranger makes ask.
func (st *state) look(ctx context.Context) error {
	select {
	case st.looks <- struct{}{}:
		defer func() { <-st.looks }()
	default:
		return errors.New("too many wait for the store")
	}
	r := st.round.Load() // begins after this
	st.wake()
	t := time.NewTimer(lookFor)
	defer t.Stop()
	select {
	case <-r.done:
		return r.err
	case <-t.C:
		return errors.New("the store does not answer in time")
	case <-ctx.Done():
		return ctx.Err()
	case <-st.s.ctx.Done():
		return st.s.ctx.Err()
	}
}

// poll is how often the store is asked when nothing hints at a change: often enough that one failed try leaves
// the view within its bound.
func (st *state) poll() time.Duration {
	return min(max(st.s.cfg.Validation.MaxStaleness/4, 10*time.Millisecond), 5*time.Second)
}

// run follows the store until ctx ends: at each hint of a Waker, and at every poll.
func (st *state) run(ctx context.Context) {
	if w, ok := st.s.st.(store.Waker); ok {
		st.s.wg.Add(1)
		go func() {
			defer st.s.wg.Done()
			st.hints(ctx, w)
		}()
	}
	wait := st.poll()
	var began time.Time
	for {
		t := time.NewTimer(jitter(wait))
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-st.kick:
			if !sleep(ctx, max(0, roundsApart-time.Since(began))) {
				t.Stop()
				return
			}
		case <-t.C:
		}
		t.Stop()
		this := st.round.Swap(&round{done: make(chan struct{})})
		began = time.Now()
		tctx, cancel := context.WithTimeout(ctx, max(st.s.cfg.Validation.MaxStaleness, time.Second))
		err := st.refresh(tctx)
		cancel()
		this.err = err
		close(this.done)
		st.s.observe(ctx, Observation{Op: "feed", Err: err, Took: time.Since(began)})
		switch {
		case err == nil:
			wait = st.poll()
		case ctx.Err() != nil:
			return
		default:
			st.s.log.Warn("apitoken: following the store failed", "error", err, "age", st.s.Freshness().Age)
			wait = min(wait*2, max(st.poll(), 5*time.Second))
		}
	}
}

// hints turns the store's hints into kicks. A hint that fails costs nothing but time: run polls as well.
func (st *state) hints(ctx context.Context, w store.Waker) {
	wait := 10 * time.Millisecond
	for ctx.Err() == nil {
		p := st.position()
		if err := w.Wait(ctx, p); err != nil {
			if !sleep(ctx, jitter(wait)) {
				return
			}
			wait = min(2*wait, 5*time.Second)
			continue
		}
		wait = 10 * time.Millisecond
		if err := st.refresh(ctx); err != nil || st.position() == p {
			// Early or for nothing: do not spin.
			if !sleep(ctx, wait) {
				return
			}
		}
	}
}
