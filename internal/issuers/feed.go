// An issuer's feed as it is followed: its rules and what has ended.

package issuers

import (
	"context"
	"errors"
	"time"

	"github.com/apitoken-go/apitoken/feed"
	"github.com/apitoken-go/apitoken/internal/follow"
	"github.com/apitoken-go/apitoken/internal/hook"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/store"
)

// followRules reads the issuer's rules: all of them first, then what is new. Age counts from before each request was sent,
// plus the source's own age. An answer that goes back in the order of changes is not taken.
func (t *Issuer) followRules(ctx context.Context) {
	wait := 50 * time.Millisecond
	for {
		began := time.Now()
		err := t.readRules(ctx)
		t.c.Observe(ctx, "feed", err, time.Since(began))
		if ctx.Err() != nil {
			return
		}
		t.feedOut.end(ctx, t.c.Now(), err)
		t.checkClock(ctx)
		pause := max(t.c.MaxStaleness/4, 10*time.Millisecond)
		if w, ok := t.c.Feed.(interface{ Waits() bool }); ok && w.Waits() {
			pause = 2 * time.Millisecond
		}
		switch {
		case err == nil:
			wait = 50 * time.Millisecond
		default:
			pause = follow.Jitter(wait)
			wait = min(2*wait, 5*time.Second)
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-t.kick:
		case <-timer.C:
		}
		timer.Stop()
	}
}

const (
	rulesTimeout  = 40 * time.Second // over a long poll's own
	rulesRestarts = 2                // in one reading, of a source that changes its history or key each time
	sweepEvery    = 10 * time.Minute
)

// readRules reads what is new after the last position, in pages. If the history or the key of the hashes is another one, it
// reads everything and merges it: the book keeps what it has.
func (t *Issuer) readRules(ctx context.Context) error {
	var from, last store.Position
	if w := t.View.Load(); w != nil {
		from, last = w.Pos, w.Pos
	}
	for restarts := 0; ; {
		sent := t.c.Now()
		t.feedOut.begin(sent)
		tctx, cancel := context.WithTimeout(ctx, rulesTimeout)
		after := from // of this call: it may outlast its time
		answer, err := hook.Call(tctx, func(ctx context.Context) (feed.View, error) {
			return t.c.Feed.Revocations(ctx, after, follow.Page)
		})
		cancel()
		switch another := errors.Is(err, store.ErrDiverged) || err == nil && (answer.Next.History != from.History || !t.hashed(&answer)); {
		case err == nil && answer.Next.History == from.History && answer.Next.N < from.N:
			return errors.New("the answer goes back")
		case err == nil && answer.More && answer.Next == from:
			return errors.New("the answer does not go on") // it would be asked again at once, for ever
		case another && from != (store.Position{}):
			if restarts++; restarts > rulesRestarts {
				return errors.New("the source changes its history or its key all the time")
			}
			from = store.Position{}
			continue
		case err != nil:
			return err
		}
		t.enter(&answer)
		if from = answer.Next; answer.More {
			continue
		}
		if from.History == last.History && from.N < last.N {
			return errors.New("the answer goes back") // read from the start, of a source that lags: the rules count, their age does not
		}
		sent = sent.Add(-answer.Age)
		t.View.Store(&follow.View{Pos: from, Sent: sent, Wall: sent.UnixNano()})
		t.loaded()
		t.sweep()
		return nil
	}
}

// hashed reports whether an answer's hashes are under the key of the current book.
func (t *Issuer) hashed(a *feed.View) bool {
	return t.book != nil && t.book.Feed == string(a.Key)+a.Namespace
}

// sweep forgets rules that no living token can match any more. Its clock does not believe a forward jump for an hour.
func (t *Issuer) sweep() {
	now := t.clock.Now()
	if mono := time.Now(); mono.Sub(t.swept) >= sweepEvery {
		t.swept = mono
		if b := t.Rules.Load(); b != nil {
			b.Sweep(now.Add(-t.c.Slack))
		}
	}
}

// enter merges an answer into the book of its key.
func (t *Issuer) enter(a *feed.View) {
	if !t.hashed(a) {
		t.turn(a)
	}
	b := t.book
	for _, r := range a.Rules {
		b.EnterHashed(r)
	}
	if len(a.Rules) > 0 {
		t.Rules.Load().Version.Add(1)
	}
	if a.MaxLifetime > 0 {
		t.Life.Store(int64(min(a.MaxLifetime, t.c.MaxLife)))
	}
	if t.c.Told != nil {
		t.c.Told(a)
	}
	t.Withdraw(a.Compromised)
	t.mu.Lock()
	another := a.KeySet != t.keySet
	t.keySet = a.KeySet
	t.mu.Unlock()
	if another && !t.complete() {
		t.toldAt.CompareAndSwap(0, t.c.Now().UnixNano())
		select {
		case t.renew <- struct{}{}:
		default:
		}
	}
}

// turn makes the book of a's key the current one. Under another key the source starts from zero, and rules that were known
// under earlier keys still count: the new book refers to theirs. Its version continues from theirs, so that a verdict
// kept under an earlier book is checked again.
func (t *Issuer) turn(a *feed.View) {
	by := string(a.Key) + a.Namespace
	head := t.Rules.Load()
	for b := head; b != nil; b = b.Older {
		if b.Feed == by {
			t.book = b
			return
		}
	}
	b := rules.NewBook(rules.FeedKeyer(a.Key, a.Namespace))
	b.Feed = by
	if head != nil {
		b.Older = head
		b.Version.Store(head.Version.Load() + 1)
	}
	t.book = b
	t.Rules.Store(b)
}
