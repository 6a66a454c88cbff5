// How long an issuer has not answered, and what its clock is off by.

package issuers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// outage is why one of an issuer's sources can't be read now. A validator shows it in Ready, Explain and its log, and behind
// the ErrUnavailable that it answers meanwhile.
type outage struct {
	issuer string
	source string // "keys" or "feed"
	log    *slog.Logger

	mu    sync.Mutex // guards all below
	asked time.Time  // when the question was sent that has no answer yet; zero: none is under way
	since time.Time  // of the first failure since the last success; zero: the last reading succeeded
	last  error
	// told holds when each failure was logged, by its text without digits: a port or a time in it makes no new failure.
	told   map[string]time.Time
	logged bool // a failure was logged since the source was last said to work
}

const (
	outageAgain = 5 * time.Minute // until the same failure is logged again
	outageTexts = 16              // texts that are remembered
	slowAnswer  = time.Second     // after which the first question, if it has no answer, is named as the reason
)

// begin notes that a question is sent.
func (o *outage) begin(now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.asked = now
}

// end notes how the question was answered. The first failure is logged, another one when its text changes, the same one every
// outageAgain, and the first success after them.
func (o *outage) end(ctx context.Context, now time.Time, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.asked = time.Time{}

	if err == nil {
		if o.logged && o.log != nil {
			o.log.InfoContext(ctx, "apitoken: the issuer can be read again", "issuer", o.issuer, "source", o.source, "failed_for", now.Sub(o.since))
		}
		o.since, o.last, o.logged = time.Time{}, nil, false
		return
	}

	if o.since.IsZero() {
		o.since = now
	}
	o.last = err
	text := strings.Map(func(r rune) rune {
		if '0' <= r && r <= '9' {
			return -1
		}
		return r
	}, err.Error())
	if at, ok := o.told[text]; o.log == nil || ok && now.Sub(at) < outageAgain && now.Sub(at) >= 0 {
		return
	}
	if o.told == nil || len(o.told) >= outageTexts {
		o.told = map[string]time.Time{}
	}
	o.told[text], o.logged = now, true
	o.log.WarnContext(ctx, "apitoken: the issuer cannot be read", "issuer", o.issuer, "source", o.source, "error", err, "since", o.since)
}

// why is the reason now, nil for none. A question that has no answer after slow is one, too.
func (o *outage) why(now time.Time, slow time.Duration) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.last != nil:
		return &outageError{fmt.Sprintf("%s: failing since %s", o.source, o.since.UTC().Format(time.RFC3339)), o.last}
	case !o.asked.IsZero() && now.Sub(o.asked) >= slow:
		return &outageError{o.source, fmt.Errorf("no answer yet to the question sent at %s", o.asked.UTC().Format(time.RFC3339))}
	}
	return nil
}

// outageError keeps a source's own error for errors.Is.
type outageError struct {
	what string
	err  error
}

func (e *outageError) Error() string { return e.what + ": " + e.err.Error() }
func (e *outageError) Unwrap() error { return e.err }

// Cause is why the issuer's keys or rules can't be read, for the Cause of an *Error; nil where nothing is known.
func (t *Issuer) Cause() error {
	if t.c.Keys == nil { // nothing is followed
		return nil
	}
	now := t.c.Now()
	var list []error
	for _, o := range []*outage{&t.keysOut, &t.feedOut} {
		slow := slowAnswer
		if t.View.Load() != nil { // a source may wait for news, for a third of MaxStaleness
			slow = t.c.MaxStaleness / 2
		}
		if err := o.why(now, slow); err != nil {
			list = append(list, err)
		}
	}
	switch len(list) {
	case 0:
		return nil
	case 1:
		return list[0]
	}
	if a, b := errors.Unwrap(list[0]), errors.Unwrap(list[1]); a.Error() == b.Error() {
		return list[0] // the same text twice helps nobody
	}
	return &outageErrors{list}
}

// outageErrors is what errors.Join makes, on one line.
type outageErrors struct{ list []error }

func (e *outageErrors) Error() string   { return e.list[0].Error() + "; " + e.list[1].Error() }
func (e *outageErrors) Unwrap() []error { return e.list }

// clockFar is how far the two clocks may differ beyond what is tolerated before it is said: a Date header has whole seconds.
const clockFar = 2 * time.Second

// clockOff is how far this process's clock is ahead of the issuer's (negative: behind), 0 where that is unknown or tolerated.
func (t *Issuer) clockOff() time.Duration {
	for _, source := range [...]any{t.c.Keys, t.c.Feed} {
		c, ok := source.(interface {
			IssuerTime() (now time.Time, known bool)
		})
		if !ok {
			continue
		}
		at, known := c.IssuerTime()
		if !known {
			continue
		}
		// The monotonic clock has no part in it: one of the two may come from Config.Now.
		off := t.c.Now().Round(0).Sub(at.Round(0))
		if limit := t.c.Ahead + clockFar; off > limit || off < -limit {
			return off.Round(time.Second)
		}
		return 0
	}
	return 0
}

// Clocks says how the clocks differ, for operators, or "".
func (t *Issuer) Clocks() string {
	off := t.clockOff()
	switch {
	case off > 0:
		return fmt.Sprintf("this process's clock is %s ahead of the issuer's", off)
	case off < 0:
		return fmt.Sprintf("this process's clock is %s behind the issuer's", -off)
	}
	return ""
}

// checkClock logs that the clocks differ, once while they do.
func (t *Issuer) checkClock(ctx context.Context) {
	far := t.Clocks()
	if was := t.clockFar.Swap(far != ""); was == (far != "") || t.c.Log == nil {
		return
	}
	if far != "" {
		t.c.Log.WarnContext(ctx, "apitoken: "+far+": its tokens are refused as expired or not valid yet", "issuer", t.c.Name)
		return
	}
	t.c.Log.InfoContext(ctx, "apitoken: this process's clock and the issuer's agree again", "issuer", t.c.Name)
}
