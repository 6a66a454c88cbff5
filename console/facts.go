package console

import (
	"context"
	"sync"
	"time"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/operate"
)

// adminState is what the pages for operators keep between requests.
type adminState struct {
	ctx      context.Context // ends at close
	stop     context.CancelFunc
	started  time.Time
	refusals refusals
	unwatch  func()
	exports  chan struct{} // holds the exports that are under way

	hygiene  fact[operate.Findings]
	expiring fact[operate.Endings]
}

// Of what a figure keeps, at most: the first that were found.
const maxFindings = 1000

// expiringWithin is what counts as ending soon.
const expiringWithin = 7 * 24 * time.Hour

func newAdminState(svc *apitoken.Service, look operate.Look) *adminState {
	a := &adminState{started: svc.Adapter().Now(), exports: make(chan struct{}, 4)}
	a.ctx, a.stop = context.WithCancel(context.Background())
	a.refusals.now = svc.Adapter().Now
	a.unwatch = svc.Observe(&a.refusals)
	a.hygiene.read = func(ctx context.Context) (operate.Findings, error) { return look.Hygiene(ctx, unused, maxFindings) }
	a.expiring.read = func(ctx context.Context) (operate.Endings, error) {
		return look.Expiring(ctx, svc.Adapter().Now().Add(expiringWithin), 8)
	}
	return a
}

func (a *adminState) close() {
	a.unwatch()
	a.stop()
}

const (
	factEvery = time.Minute     // between two readings, at least
	factTime  = 2 * time.Minute // of one reading, at most
)

// fact is a figure that costs a reading of all records: it is read behind the requests, once however many ask, and not again
// for a minute, or ten times as long as it took.
type fact[T any] struct {
	read func(context.Context) (T, error)

	mu     sync.Mutex // guards all below
	v      T
	at     time.Time // of v; zero: it was never read
	next   time.Time // not before
	flight chan struct{}
}

// get waits until ctx ends for a figure that is due. An older one is better than none: age tells.
func (f *fact[T]) get(ctx, alive context.Context) (v T, age time.Duration, known bool) {
	f.mu.Lock()
	if f.flight == nil && !time.Now().Before(f.next) && alive.Err() == nil {
		f.flight = make(chan struct{})
		go f.fly(alive, f.flight)
	}
	flight := f.flight
	f.mu.Unlock()
	if flight != nil {
		select {
		case <-flight:
		case <-ctx.Done():
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.v, time.Since(f.at), !f.at.IsZero()
}

func (f *fact[T]) fly(alive context.Context, flight chan struct{}) {
	ctx, cancel := context.WithTimeout(alive, factTime)
	defer cancel()
	began := time.Now()
	v, err := f.read(ctx)
	now := time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.next = now.Add(max(factEvery, 10*now.Sub(began)))
	if err == nil {
		f.v, f.at = v, now
	} else {
		f.next = now.Add(5 * time.Second)
	}
	f.flight = nil
	close(flight)
}

// Why a token was refused, in the order of the chart.
const (
	forExpired = iota
	forRevoked
	forInvalid
	forScope
	forLimit
	forProof
	whys
)

var sayWhys = [whys]string{say("Expired"), say("Revoked"), say("Invalid"), say("Scope"), say("Limited"), say("Proof")}

// hoursShown is how far back the chart of refusals reaches.
const hoursShown = 24

type hour struct {
	at int64 // Unix hours
	n  [whys]int
}

// refusals count what this process refused, by the hour. What was good costs nothing.
type refusals struct {
	now func() time.Time

	mu   sync.Mutex // guards ring
	ring [hoursShown]hour
}

// Observe implements apitoken.Observer.
func (f *refusals) Observe(_ context.Context, o apitoken.Observation) {
	if o.Err == nil {
		return
	}
	why := forInvalid
	switch o.Reason() {
	case "none", "unavailable", "other":
		return // nothing was judged
	case "expired":
		why = forExpired
	case "revoked":
		why = forRevoked
	case "scope", "denied":
		why = forScope
	case "limited":
		why = forLimit
	case "proof", "nonce":
		why = forProof
	}
	at := f.now().Unix() / 3600
	f.mu.Lock()
	defer f.mu.Unlock()
	h := &f.ring[at%hoursShown]
	if h.at != at {
		*h = hour{at: at}
	}
	h.n[why]++
}

// last are the hours up to now, the oldest first.
func (f *refusals) last() (list [hoursShown]hour) {
	now := f.now().Unix() / 3600
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range list {
		at := now - int64(hoursShown-1-i)
		list[i].at = at
		if h := f.ring[at%hoursShown]; h.at == at {
			list[i] = h
		}
	}
	return list
}
