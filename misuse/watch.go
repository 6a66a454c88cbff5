package misuse

import (
	"context"
	"hash/maphash"
	"strconv"
	"time"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
)

// What is in this file runs in one goroutine, the owner of all that it touches: it judges rates, asks the policy, acts,
// and writes alerts.

// run is that goroutine.
func (w *Watch) run() {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case a := <-w.found: // before all that anybody can cause
			w.raise(a)
			continue
		default:
		}
		select {
		case <-w.ctx.Done():
			return
		case a := <-w.found:
			w.raise(a)
		case a := <-w.strange:
			w.raise(a)
		case x := <-w.events:
			w.event(x.e)
			close(x.done)
		case <-tick.C:
			w.step(w.c.Now())
		}
	}
}

// step does what is due by the clock.
func (w *Watch) step(now time.Time) {
	if w.c.Rise > 0 {
		w.calls.step(now.Unix()/60, w.c.Rise, w.c.RiseFloor, func(r rise) {
			w.raise(Alert{Detector: Rise, Time: now, Authentic: true, Client: r.client, TokenID: r.apikey, Subject: r.subject,
				Evidence: Evidence{Count: r.count, Usual: r.usual, Limit: r.limit, Within: riseSpan * time.Minute}})
		})
	}
	for d, u := range w.unproved {
		if u.hour != hourOf(now) {
			w.sum(d, u, now)
			delete(w.unproved, d)
		}
	}
	w.tell()
}

// drain acts on what was found so far.
func (w *Watch) drain() {
	for {
		select {
		case a := <-w.found:
			w.raise(a)
		case a := <-w.strange:
			w.raise(a)
		default:
			return
		}
	}
}

// about is what an alert is about: one detector says it once in a while.
func (a *Alert) about() string {
	switch {
	case a.Grant != "" && (a.TokenID == "" || a.Detector == Reuse || a.Detector == Canary):
		return string(a.Detector) + " grant " + a.Grant // its tokens come and go
	case a.TokenID != "":
		return string(a.Detector) + " token " + a.TokenID
	case a.Client != "":
		return string(a.Detector) + " client " + a.Client
	case len(a.Evidence.Addresses) > 0:
		return string(a.Detector) + " source " + strconv.FormatUint(network(a.Evidence.Addresses[0], 32, 64), 16)
	}
	return string(a.Detector)
}

// raise acts on an alert, unless the same was said of late.
func (w *Watch) raise(a Alert) {
	k, now := maphash.String(w.seed, a.about()), a.Time.UnixNano()
	if last, ok := w.quiet[k]; ok && w.isQuiet(last, now) {
		return
	}
	if !a.Authentic && !w.allow(&a) {
		return
	}
	if len(w.quiet) >= maxQuiet {
		w.forget(now)
	}
	w.quiet[k] = now
	w.alerts.Add(1)
	w.put(w.act(a))
	if !w.stuck { // what is to be revoked next does not wait for a store that fails
		w.tell()
	}
}

// isQuiet says that what was said last is not to be said again now. A clock that was put back ends the quiet.
func (w *Watch) isQuiet(last, now int64) bool {
	return now >= last && now-last < int64(w.c.Quiet)
}

// forget makes room among the keys that are quiet: those whose time is over go, or else any half.
func (w *Watch) forget(now int64) {
	for k, last := range w.quiet {
		if !w.isQuiet(last, now) {
			delete(w.quiet, k)
		}
	}
	for k := range w.quiet {
		if len(w.quiet) <= maxQuiet/2 {
			return
		}
		delete(w.quiet, k)
	}
}

// allow bounds what a stranger can write into the log.
func (w *Watch) allow(a *Alert) bool {
	u := w.unproved[a.Detector]
	if u == nil {
		u = &unproved{hour: hourOf(a.Time)}
		w.unproved[a.Detector] = u
	}
	if u.hour != hourOf(a.Time) {
		w.sum(a.Detector, u, a.Time)
		*u = unproved{hour: hourOf(a.Time)}
	}
	if u.n >= unprovedHour {
		u.held++
		w.held.Add(1)
		return false
	}
	u.n++
	return true
}

// sum tells of the alerts that were held back in the last hour.
func (w *Watch) sum(d Detector, u *unproved, now time.Time) {
	if u.held > 0 {
		w.put(&told{alert: Alert{Detector: d, Time: now, Evidence: Evidence{Count: u.held, Limit: unprovedHour, Within: time.Hour}},
			outcome: "further alerts were held back: this one sums them up"})
	}
}

func hourOf(t time.Time) int64 { return t.Unix() / 3600 }

// put queues what must stand in the log.
func (w *Watch) put(t *told) {
	if len(w.untold) >= maxUntold {
		w.log.Error("misuse: an alert is lost", "detector", string(w.untold[0].alert.Detector), "subject", w.untold[0].alert.Subject)
		w.untold = w.untold[1:]
	}
	w.untold = append(w.untold, t)
}

// tell writes what is queued, the oldest first, until the store fails.
func (w *Watch) tell() {
	for len(w.untold) > 0 {
		t := w.untold[0]
		ctx, cancel := context.WithTimeout(context.Background(), tellTimeout)
		err := w.svc.Alert(apitoken.WithOrigin(ctx, t.origin()), t.event())
		cancel()
		if w.stuck = err != nil; w.stuck {
			w.log.Warn("misuse: an alert is not in the log yet", "detector", string(t.alert.Detector), "error", err)
			return
		}
		w.untold = w.untold[1:]
	}
	w.untold = nil
}

// feed takes the service's events.
type feed struct{ w *Watch }

// Audit returns when the event was acted on, so that after a crash it comes again.
func (f feed) Audit(ctx context.Context, e apitoken.Event) error {
	x := fed{e, make(chan struct{})}
	select {
	case f.w.events <- x:
	case <-ctx.Done():
		return ctx.Err()
	case <-f.w.ctx.Done():
		return f.w.ctx.Err()
	}
	select {
	case <-x.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-f.w.ctx.Done():
		return f.w.ctx.Err()
	}
}

// event looks at what any process recorded.
func (w *Watch) event(e apitoken.Event) {
	if w.c.Now().Sub(e.Time) > feedMaxAge {
		return // a log that is older than this Watch
	}
	if e.Issuer != "" {
		return // another issuer's names: its jti may equal a canary's, its subject one of ours
	}
	a := Alert{Time: e.Time, Authentic: true, Subject: e.Subject, Client: e.Client, Grant: e.Grant, TokenID: e.TokenID,
		Evidence: Evidence{Count: max(1, e.Count), Limit: 1, EventID: e.ID}}
	a.Evidence.place(e.Origin)
	switch e.Type {
	case event.Reused:
		a.Detector = Reuse
		w.raise(a)
		fallthrough
	case event.Refreshed, event.Exchanged, event.Refused:
		if w.canaries[e.Grant] || w.canaries[e.TokenID] {
			a.Detector = Canary
			w.raise(a)
		}
	}
}
