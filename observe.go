// Observers, metrics of what waits, and what is counted: refusals, uses, limits of API keys.

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
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/internal/usage"
	"github.com/apitoken-go/apitoken/store"
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
	b.Revocations = s.retries.Len()
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

// useSlack is how long the uses of an API key are kept after the last one.
const useSlack = 400 * 24 * time.Hour

func newUses(s *core) *usage.Log {
	return usage.New(usage.Config{
		Now: s.now, Log: s.log, Get: s.get,
		Life: func(kind string) time.Duration {
			if kind == usage.Grant {
				return s.space.Life().Grant + grantSlack
			}
			return useSlack
		},
		Write: func(ctx context.Context, puts ...usage.Put) (store.Version, error) {
			c := s.newChange()
			for _, p := range puts {
				c.Put(p.Written, p.Expect)
			}
			_, err := s.commit(ctx, c)
			return c.ID, err
		},
	})
}

// met notes in c which scopes a request needed that was let through. Of several of which any is enough it notes one. It is on the
// path of every request: a request that asks for nothing new costs a look through a short list.
func met(c *usage.Counter, held heldScopes, r *Requirement) {
	list := c.Scopes()
	for _, s := range r.scopes {
		if slices.Contains(list, string(s)) {
			if r.kind == requireAny {
				return
			}
			continue
		}
		if r.kind == requireAny {
			if !held.allows(s) {
				continue
			}
			c.Asked(string(s))
			return
		}
		c.Asked(string(s))
	}
}

// Usage is how a grant or an API key was used: in processes with a store, where every validation counts, up to half a
// minute ago in the others. A process that ends by a crash loses as much.
type Usage struct {
	Count     uint64
	Last      time.Time // to within a second; zero: never
	Addresses []string  // by Origin, the latest first, at most 8
	// Scopes are those that [Authorize] asked of it and that it held: as they were asked for, which may be narrower than what
	// it holds. At most 32 are kept; 32 may not be all. A program that looks at Token.Scopes by itself leaves no trace here.
	Scopes Scopes
}

// Usage tells how the grant of ByGrant, or the API key of ByToken, was used: the zero Usage if it was not, and for IDs that
// nothing has. ErrInvalidRequest: another target, or a narrowed one.
func (s *Service) Usage(ctx context.Context, target Target) (Usage, error) {
	t := target.t
	switch t {
	case rules.ByGrant(t.ID):
		return s.audit.usage(ctx, usage.Grant, t.ID)
	case rules.ByToken(t.ID):
		return s.audit.usage(ctx, usage.APIKey, t.ID)
	}
	return Usage{}, fail(ErrInvalidRequest, "use is counted of one grant or one API key")
}

// usage is what is stored of a grant's or API key's use, and what this process has counted since.
func (a *auditLog) usage(ctx context.Context, kind, id string) (Usage, error) {
	u, err := a.uses.Read(ctx, kind, id)
	if err != nil {
		return Usage{}, public(err)
	}
	out := Usage{Count: u.Count, Addresses: u.From, Scopes: scopesOf(u.Scopes)}
	if u.Last > 0 {
		out.Last = time.UnixMilli(u.Last)
	}
	return out, nil
}

// consumer is a Validator whose tokens may be limited by rate or by number of uses. [Authorize] calls it once for each
// request that it lets through; Validate alone never consumes anything. A Validator that only passes on what a [Service]
// answered need not be one: Authorize then asks that Service.
type consumer interface {
	// Consume takes one use of t: nil, ErrLimited, or ErrUnavailable.
	Consume(ctx context.Context, t Token) error
}

// Consume takes one use of t where the validator is a service's, as [Service.Consume] says.
func (v *JWTValidator) Consume(ctx context.Context, t Token) error {
	if v.consume == nil {
		return nil
	}
	return v.consume(ctx, t)
}
