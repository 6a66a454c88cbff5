package boltstore

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/apitoken-go/apitoken/store"
)

// Group commit. One goroutine owns the write transaction. It takes whoever waits when the last commit ends, without a
// timer: alone, a caller pays one commit; with 64, each commit carries most of them. Every change is judged by itself
// inside the shared transaction, and answered only when that has committed, conflicts too, for they may lean on a
// change of the same group.

const (
	maxGroup   = 512
	maxQueue   = 1 << 14     // callers that gave up leave their writes behind: a disk that hangs must not fill the memory
	probeEvery = time.Second // between attempts to come back from a full disk or a failed commit
)

// request is one caller's part of a group: an intent, or a step of maintenance.
type request struct {
	sp     *space
	in     *intent
	step   func(*txn) error // nil for an intent
	alone  func() error     // runs between two groups, outside of any transaction
	urgent bool             // a revocation: has the reserve when the disk is full
	out    outcome
	done   chan struct{}
}

// inFlight is the group whose commit has begun. bbolt lets readers see a commit before the disk has confirmed it; they
// wait when what they read is part of it.
type inFlight struct {
	versions map[store.Version]struct{}
	states   map[*space]struct{}
	done     chan struct{}
}

// submit hands a request to the writer and waits for it, or for ctx: then the write goes on without its caller.
func (s *Store) submit(ctx context.Context, r *request) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r.done = make(chan struct{})
	s.queueMu.Lock()
	if s.closing {
		s.queueMu.Unlock()
		return ErrClosed
	}
	if len(s.queue) >= maxQueue {
		s.queueMu.Unlock()
		return fmt.Errorf("boltstore: %d writes are waiting for the disk already", maxQueue)
	}
	s.queue = append(s.queue, r)
	s.queueMu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
	select {
	case <-r.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-s.gone:
	}

	// The writer refuses what is still in the queue, unless it is stuck itself.
	timer := time.NewTimer(giveUp)
	defer timer.Stop()
	select {
	case <-r.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return s.failure()
	}
}

// run is the writer. It ends when Close has been called and the queue is empty.
func (s *Store) run() {
	defer close(s.stopped)
	last := 0
	for {
		// Those whom the last commit woke come back at once if they are given the processor: a group twice the size
		// for some microseconds. It ends when a round brings nobody, so nobody waits for who does something else. No
		// timer waits for them: the runtime of an idle process wakes no sooner than in a millisecond, longer than a commit.
		all := s.waiting() + last
		for n := -1; n < s.waiting() && s.waiting() < all; {
			n = s.waiting()
			runtime.Gosched()
		}
		group, closing := s.take()
		if len(group) == 0 {
			if closing {
				return
			}
			last = 0
			s.idle()
			continue
		}
		last = len(group)
		s.commitGroup(group)
		if !s.readOnly && s.failure() == nil && s.clock.mono()-s.relabelled >= relabel {
			_ = s.relabel() // the mark says how far it came
			if s.anchor != nil {
				s.anchor.advance(s.meta.seq, nil)
			}
		}
	}
}

// idle waits for work. A store that failed tries to come back by itself: its readers do not write.
func (s *Store) idle() {
	if s.failure() == nil || s.lost.Load() {
		<-s.wake
		return
	}
	timer := time.NewTimer(probeEvery)
	defer timer.Stop()
	select {
	case <-s.wake:
	case <-timer.C:
		s.recoverFile()
	}
}

func (s *Store) waiting() int {
	s.queueMu.Lock()
	defer s.queueMu.Unlock()
	return len(s.queue)
}

func (s *Store) take() ([]*request, bool) {
	s.queueMu.Lock()
	defer s.queueMu.Unlock()
	n := min(len(s.queue), maxGroup)
	group := s.queue[:n:n]
	if n == len(s.queue) {
		s.queue = nil
	} else {
		s.queue = s.queue[n:]
	}
	return group, s.closing
}

func answer(group []*request) {
	for _, r := range group {
		close(r.done)
	}
}

func fail(group []*request, err error) {
	for _, r := range group {
		r.out = outcome{err: err}
	}
	answer(group)
}

// commitGroup brings a group to its end: every request is answered when it returns.
func (s *Store) commitGroup(group []*request) {
	if s.readOnly {
		fail(group, store.ErrReadOnly)
		return
	}
	if group = s.runAlone(group); len(group) == 0 {
		return
	}
	if !s.recoverFile() {
		fail(group, s.failure())
		return
	}
	if s.full {
		if group = s.withoutRoom(group); len(group) == 0 {
			return
		}
	}
	for len(group) > 0 {
		culprit, err := s.tryGroup(group)
		switch {
		case culprit >= 0:
			// It panicked, so the transaction is gone, but nothing was committed: the others go again without it.
			group[culprit].out = outcome{err: err}
			close(group[culprit].done)
			group = append(group[:culprit:culprit], group[culprit+1:]...)
			continue
		case err == nil:
			s.acknowledge(group)
			return
		case !isFull(err):
			s.recoverFile()
			fail(group, fmt.Errorf("%w (outcome unknown, repeat the change): %w", ErrFailed, err))
			return
		}
		// The disk is full. What was not a revocation is refused; the rest has the reserve.
		alreadyFull := s.full
		s.full, s.probed = true, s.clock.mono()
		if !s.recoverFile() {
			fail(group, s.failure())
			return
		}
		urgent, others := divide(group, func(r *request) bool { return r.urgent })
		fail(others, fmt.Errorf("%w: %w", ErrFull, err))
		group = urgent
		if len(group) > 0 && !s.reserve.release() && alreadyFull {
			fail(group, fmt.Errorf("%w, its reserve is used up: %w", ErrFull, err))
			return
		}
	}
}

func (s *Store) runAlone(group []*request) []*request {
	alone, others := divide(group, func(r *request) bool { return r.alone != nil })
	for _, r := range alone {
		r.out = outcome{err: r.alone()}
		close(r.done)
	}
	return others
}

// withoutRoom refuses what has no claim on the reserve, and looks from time to time whether there is room again.
func (s *Store) withoutRoom(group []*request) []*request {
	if now := s.clock.mono(); now-s.probed >= probeEvery {
		s.probed = now
		if s.reserve.refill() == nil || s.freeBytes() >= 4*reserveSize {
			s.full = false
			return group
		}
	}
	// Maintenance may go on in the pages that the file has: it is what makes room.
	urgent, others := divide(group, func(r *request) bool { return r.urgent })
	fail(others, ErrFull)
	return urgent
}

func divide(group []*request, first func(*request) bool) (yes, no []*request) {
	for _, r := range group {
		if first(r) {
			yes = append(yes, r)
		} else {
			no = append(no, r)
		}
	}
	return yes, no
}

// tryGroup runs the group in one transaction. culprit is the request that panicked, −1 if none; otherwise err is that
// of the commit.
func (s *Store) tryGroup(group []*request) (culprit int, err error) {
	culprit = -1
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	var tx *bbolt.Tx
	committing := false
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		err = s.caught(p)
		if rollback(tx) != nil || tx == nil {
			s.giveFileUp(err) // bbolt's lock of the writer stays locked
		}
		if committing || culprit < 0 {
			culprit = -1
			s.setFailure(err)
			s.landed(nil, false)
		}
		s.forgetTails(group)
	}()

	if tx, err = s.db.Begin(true); err != nil {
		s.setFailure(err)
		return -1, err
	}
	now, believed := s.clock.tick()
	t := &txn{s: s, tx: tx, meta: s.meta, now: max(now, s.meta.highest), believed: believed, spaces: map[*space]*spaceTxn{}}
	var spaces *spaceTxn
	for i, r := range group {
		culprit = i
		if r.step != nil {
			r.out = outcome{err: r.step(t)}
			if r.out.err != nil && !errors.Is(r.out.err, store.ErrReadOnly) {
				panic(r.out.err) // it may have written before it failed
			}
			continue
		}
		if spaces == nil || spaces.sp != r.sp {
			if spaces, err = t.space(r.sp); err != nil {
				r.out = outcome{err: err}
				spaces = nil
				continue
			}
		}
		r.out = spaces.apply(r.in)
	}
	culprit = -1
	if !t.dirty {
		return -1, rollback(tx)
	}
	committing = true
	if err := t.finish(); err != nil {
		panic(err)
	}
	s.makeRoom(tx, group)
	s.takeOff(group, t)
	if err := s.commit(tx); err != nil {
		s.setFailure(err)
		s.forgetTails(group)
		s.landed(t, false)
		return -1, err
	}
	s.meta = t.meta
	s.mark.seq = t.meta.seq
	if err := s.mark.save(); err != nil && s.markErr == nil {
		s.markErr = err // Close says so; the commit itself is durable
	}
	s.landed(t, true)
	return -1, nil
}

// rollback ends a transaction that may already have ended, or be broken.
func rollback(tx *bbolt.Tx) (err error) {
	if tx == nil {
		return nil
	}
	defer func() {
		if p := recover(); p != nil {
			err = panicError(p)
		}
	}()
	if err := tx.Rollback(); err != nil && !errors.Is(err, berrors.ErrTxClosed) {
		return err
	}
	return nil
}

// forgetTails drops counts that a transaction that did not commit has moved.
func (s *Store) forgetTails(group []*request) {
	for _, r := range group {
		if r.sp != nil {
			clear(r.sp.tails)
		}
	}
}

// takeOff publishes the group before its commit begins.
func (s *Store) takeOff(group []*request, t *txn) {
	f := &inFlight{versions: make(map[store.Version]struct{}, len(group)), done: make(chan struct{})}
	for _, r := range group {
		if r.in != nil {
			f.versions[r.in.id] = struct{}{}
		}
	}
	for sp, st := range t.spaces {
		if st.moved {
			if f.states == nil {
				f.states = map[*space]struct{}{}
			}
			f.states[sp] = struct{}{}
		}
	}
	s.flight.Store(f)
}

// landed ends what takeOff began, and wakes those who wait for state.
func (s *Store) landed(t *txn, ok bool) {
	f := s.flight.Swap(nil)
	if f != nil {
		close(f.done)
	}
	if !ok {
		return
	}
	for sp, st := range t.spaces {
		if st.moved {
			sp.broadcast()
		}
		if st.unmerged {
			sp.s.merging.ask(sp)
		}
	}
}

// settled waits until the group in flight has landed, if wants says that the caller read a part of it. opening is that of
// before the caller read.
func (s *Store) settled(ctx context.Context, opening uint64, wants func(*inFlight) bool) error {
	if f := s.flight.Load(); f != nil && wants(f) {
		select {
		case <-f.done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	// A commit that failed was marked as such before it landed: what was read may vanish, or has vanished by now.
	if err := s.failure(); err != nil {
		return err
	}
	if s.opening.Load() != opening {
		return fmt.Errorf("%w: it was, while this was read", ErrFailed)
	}
	return nil
}
