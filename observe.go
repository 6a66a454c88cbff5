package apitoken

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apitoken-go/apitoken/internal/deliver"
	"github.com/apitoken-go/apitoken/internal/hook"
)

// Observer counts. It is called on the hot path, must not block and cannot fail; metrics, traces and misuse detectors are
// Observers. One that panics is logged once, and the call that it observed goes on. One that blocks holds up Validate and
// Authorize; every other call, whose answer may be a grant that is stored already, waits a second for it at most.
type Observer interface {
	Observe(ctx context.Context, o Observation)
}

// Observation is one call that ended.
type Observation struct {
	// Op is "validate", "authorize" (a good token that lacks a scope), "authenticate" (of a client), "issue", "refresh",
	// "exchange", "redeem", "revoke", "feed", "keys" or "record" (a stored record could not be read: Err says why).
	Op     string
	Token  Token  // zero when there is none; of one that is refused, what its issuer's signature vouches for
	Client string // with "authenticate": who the caller claims to be, proved only when Err is nil
	Err    error
	Hit    bool          // answered from the cache
	Took   time.Duration // zero for a hit that took less than a clock's reading
	Origin
}

// Reason is the class of Err, "" when there is none: "expired", "revoked", "proof", "nonce", "invalid", "none", "scope",
// "client", "grant", "limited", "unavailable", "denied" or "other". There are no others, so that it may label a metric.
func (o Observation) Reason() string {
	if o.Err == nil {
		return ""
	}
	return reasonOf(o.Err)
}

// observers is a list that is read on the hot path and seldom changed.
type observers struct {
	list atomic.Pointer[[]*watcher]
	mu   sync.Mutex   // of writers
	log  *slog.Logger // nil: silent
}

// watcher is one Observer.
type watcher struct {
	Observer
	late atomic.Int32 // calls that have not come back
	told atomic.Bool  // its panic was logged
}

const (
	observerWait = time.Second
	observerLate = 16 // calls under way at most of an observer that blocks; it misses the rest
)

// call keeps a panic from the caller.
func (l *observers) call(ctx context.Context, x *watcher, o Observation) {
	defer func() {
		if p := recover(); p != nil && l.log != nil && !x.told.Swap(true) {
			l.log.Error("apitoken: an Observer panicked; it is told of this once", "op", o.Op, "error", p, "stack", hook.Stack(hook.Panicked(p)))
		}
	}()
	x.Observe(ctx, o)
}

func (l *observers) any() bool { return l.list.Load() != nil }

func (l *observers) observe(ctx context.Context, o Observation) {
	if list := l.list.Load(); list != nil {
		for _, x := range *list {
			l.call(ctx, x, o)
		}
	}
}

// observeWithin is observe for calls that must come back though an observer does not.
func (l *observers) observeWithin(ctx context.Context, o Observation) {
	list := l.list.Load()
	if list == nil {
		return
	}
	var t *time.Timer
	for _, x := range *list {
		if x.late.Add(1) > observerLate {
			x.late.Add(-1)
			continue
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			defer x.late.Add(-1)
			l.call(ctx, x, o)
		}()
		if t == nil {
			t = time.NewTimer(observerWait) // for all of them together
			defer t.Stop()
		}
		select {
		case <-done:
		case <-t.C:
			t.Reset(0)
		}
	}
}

func (l *observers) add(o Observer) (stop func()) {
	p := &watcher{Observer: o}
	l.mu.Lock()
	defer l.mu.Unlock()
	var now []*watcher
	if old := l.list.Load(); old != nil {
		now = slices.Clone(*old)
	}
	now = append(now, p)
	l.list.Store(&now)
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		old := l.list.Load()
		if old == nil {
			return
		}
		now := slices.DeleteFunc(slices.Clone(*old), func(x *watcher) bool { return x == p })
		if len(now) == 0 {
			l.list.Store(nil)
			return
		}
		l.list.Store(&now)
	}
}

// Observe adds o, until stop is called. Metrics, traces and misuse detectors attach themselves by it.
func (s *Service) Observe(o Observer) (stop func()) { return s.valid.observers.add(o) }

// Backlog is what one process has counted, decided or is to deliver, and has not got rid of yet: for metrics and health checks.
type Backlog struct {
	Refusals    int // distinct ones that were counted and are not in the log yet, at most 128
	Uses        int // tokens and API keys whose uses were counted and are not stored yet
	Revocations int // in force here and not in the store yet: other processes do not know them
	// Unreadable is the number of followed records that this process could not read and has set aside. What depends on one is
	// refused. [Service.Unreadable] lists them.
	Unreadable int
	// Sinks is how far each of Config.Sinks, and of those that Feed feeds, is behind at most, by name. In a process that
	// does not feed it itself it is what the store says, up to 15 s too much.
	Sinks map[string]time.Duration
}

// Backlog is the service's own now. It asks no store.
func (s *Service) Backlog() Backlog {
	a := s.audit
	var b Backlog
	b.Refusals = a.tally.Len()
	b.Uses = a.uses.Waiting()
	s.retryMu.Lock()
	b.Revocations = len(s.retries)
	s.retryMu.Unlock()
	b.Unreadable = len(s.state.Asides())
	b.Sinks = make(map[string]time.Duration, len(a.sinks))
	for _, f := range a.sinks {
		b.Sinks[f.Name()] = f.Lag()
	}
	a.fed.Range(func(key, _ any) bool {
		f := key.(*deliver.Feed)
		b.Sinks[f.Name()] = f.Lag()
		return true
	})
	return b
}

// reasonOf is the class of a refusal, for counters and events.
func reasonOf(err error) string {
	for _, c := range [...]struct {
		err  error
		name string
	}{{ErrExpired, "expired"}, {ErrRevoked, "revoked"}, {ErrInvalidProof, "proof"}, {ErrUseNonce, "nonce"}, {ErrInvalidToken, "invalid"}, {ErrNoToken, "none"}, {ErrInsufficientScope, "scope"},
		{ErrInvalidClient, "client"}, {ErrInvalidGrant, "grant"}, {ErrLimited, "limited"}, {ErrUnavailable, "unavailable"}, {ErrDenied, "denied"}} {
		if errors.Is(err, c.err) {
			return c.name
		}
	}
	return "other"
}

func (s *core) observe(ctx context.Context, o Observation) {
	if s.watchers != nil && s.watchers.any() {
		o.Origin = originOf(ctx)
		s.watchers.observeWithin(ctx, o)
	}
}
