package apitoken

import (
	"context"
	"errors"
	"log/slog"
	"runtime/pprof"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/follow"
	"github.com/apitoken-go/apitoken/internal/hook"
	"github.com/apitoken-go/apitoken/internal/jws"
	"github.com/apitoken-go/apitoken/internal/quota"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/store"
)

// core is what every part of a service stands on: the checked configuration, the clock, the log, the store with its one way
// of writing, what is known of its state, the rules, and the audit log. It knows none of the parts.
type core struct {
	cfg      Config // as checked, with defaults; never changed after New
	st       store.Store
	now      func() time.Time
	injected bool // Config.Now was given
	log      *slog.Logger
	ns       string        // random name of this namespace, part of every MAC, hash and associated data
	writer   commit.Writer // of the store
	state    *follow.Follower
	rules    *rules.Book
	audit    *auditLog
	verifies func([]*jws.PublicKey) // takes what the ring publishes; nil before there is a validator
	watchers *observers             // our validator's; nil before there is one

	audiences []string                  // all of cfg's, the first one first
	longest   atomic.Pointer[lifespans] // of tokens, as ever configured
	hurry     chan struct{}             // wakes the janitor: a store has lost rules that are known here

	retryMu   sync.Mutex // guards retries
	retries   []ruleRetry
	retryKick chan struct{}

	ctx  context.Context // ends at Close
	stop context.CancelFunc
	wg   sync.WaitGroup
}

func newCore(c Config, injected bool) *core {
	s := &core{cfg: c, injected: injected, st: c.Store, now: c.Now, log: c.Logger, retryKick: make(chan struct{}, 1), hurry: make(chan struct{}, 1)}
	s.ctx, s.stop = context.WithCancel(context.Background())
	s.rules = rules.NewBook(rules.LocalKeyer())
	s.rules.Undated = len(c.Trust) == 0 // our own tokens have positions
	s.audiences = append([]string{c.Audience}, c.Audiences...)
	s.audit = newAuditLog(s)
	return s
}

// goRun runs f until Close; its context ends then.
func (s *core) goRun(name string, f func(context.Context)) {
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		// In a host's profiles, what runs behind its calls has a name.
		pprof.Do(s.ctx, pprof.Labels("apitoken", name), f)
	}()
}

// newQuota counts records of kind, see [quota.Config].
func (s *core) newQuota(kind store.Kind, name string, limit int, past func(now time.Time, since int64) bool) *quota.Quota {
	return quota.New(quota.Config{Writer: &s.writer, Now: s.now, Log: s.log, Namespace: func() string { return s.ns }, Go: s.goRun,
		Kind: kind, Name: name, Limit: limit, Past: past})
}

func (s *core) observe(ctx context.Context, o Observation) {
	if s.watchers != nil && s.watchers.any() {
		o.Origin = originOf(ctx)
		s.watchers.observeWithin(ctx, o)
	}
}

const hookTime = 5 * time.Second // of a function of the host's that a call waits for

// mayContinue asks the host. What is no answer of the host's is ErrUnavailable: clients drop their sessions at ErrInvalidGrant.
func (s *core) mayContinue(ctx context.Context, g Grant) error {
	if s.cfg.MayContinue == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, hookTime)
	defer cancel()
	_, err := hook.Call(ctx, func(ctx context.Context) (struct{}, error) { return struct{}{}, s.cfg.MayContinue(ctx, g) })
	if stack := hook.Stack(err); stack != "" {
		s.log.Error("apitoken: Config.MayContinue panicked", "error", err, "stack", stack)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrUnavailable), errors.Is(err, hook.ErrPanicked), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return unavailable(err, "Config.MayContinue")
	}
	return &Error{Code: ErrInvalidGrant, Detail: "Config.MayContinue refused", Cause: err}
}

// sync catches up with the store.
func (s *core) sync(ctx context.Context) error {
	if err := s.state.Refresh(ctx); err != nil {
		return unavailable(err, "follow the store")
	}
	return nil
}

// end writes the rule that a host asked for, of a target that needs no proof.
func (s *core) end(ctx context.Context, t rules.Target, reason string) error {
	began := time.Now()
	err := s.writeRule(ctx, t, false, reason, EventRevoked, nil)
	s.observe(ctx, Observation{Op: "revoke", Err: err, Took: time.Since(began)})
	return err
}
