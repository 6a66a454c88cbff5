// core holds what all parts of a service share: configuration, store, view, rules and audit log.

package apitoken

import (
	"context"
	"iter"
	"log/slog"
	"runtime/pprof"
	"sync"
	"time"

	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/follow"
	"github.com/apitoken-go/apitoken/internal/jws"
	"github.com/apitoken-go/apitoken/internal/lineage"
	"github.com/apitoken-go/apitoken/internal/namespace"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/internal/quota"
	"github.com/apitoken-go/apitoken/internal/record"
	"github.com/apitoken-go/apitoken/internal/retry"
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
	ns       string // random name of this namespace, part of every MAC, hash and associated data
	space    namespace.Space
	writer   commit.Writer // of the store
	lineage  lineage.Notes // of API keys
	state    *follow.Follower
	rules    *rules.Book
	audit    *auditLog
	verifies func([]*jws.PublicKey) // takes what the ring publishes; nil before there is a validator
	watchers *observers             // our validator's; nil before there is one

	audiences []string      // all of cfg's, the first one first
	hurry     chan struct{} // wakes the janitor: a store has lost rules that are known here

	retries *retry.Queue // of revocations that are in force here and not in the store yet

	ctx  context.Context // ends at Close
	stop context.CancelFunc
	wg   sync.WaitGroup
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

const hookTime = 5 * time.Second // of a function of the host's that a call waits for

// sync catches up with the store.
func (s *core) sync(ctx context.Context) error {
	if err := s.state.Refresh(ctx); err != nil {
		return unavailable(err, "follow the store")
	}
	return nil
}

// A change is a commit.Change whose events are this package's. Errors of everything here are our own.
type change struct {
	commit.Change
	s    *core
	data [eventRoom]byte // of the first event
}

const (
	eventRoom    = 384 // bytes, what the JSON of most events takes
	refreshTries = commit.Tries
)

func (s *core) newChange() *change {
	c := &change{s: s}
	c.Init()
	return c
}

// put adds v to c in its form. ErrInvalidRequest: nobody could read it back.
func put[T any](c *change, f *record.Form[T], r store.Record, v *T, expect store.Version) error {
	return public(commit.Put(&c.Change, f, r, v, expect))
}

// bare adds a record that has no form.
func bare(c *change, r store.Record, expect store.Version) error {
	return public(commit.Bare(&c.Change, r, expect))
}

// read takes v out of its form. ErrUnavailable: it is damaged, or of a newer version.
func read[T any](f *record.Form[T], r store.Record, v *T) error { return public(commit.Read(f, r, v)) }

// commit writes c, see [commit.Writer.Commit]. store.ErrConflict comes back as it is.
func (s *core) commit(ctx context.Context, c *change) (store.Commit, error) {
	done, err := s.writer.Commit(ctx, &c.Change)
	return done, public(err)
}

// get reads one record: ErrNotFound or ErrUnavailable.
func (s *core) get(ctx context.Context, kind store.Kind, id string) (store.Record, error) {
	r, err := s.writer.Get(ctx, kind, id)
	return r, public(err)
}

// pages walks a listing. No transaction of the store is open while the caller runs.
func (s *core) pages(ctx context.Context, q store.Query, p Page) iter.Seq2[store.Record, error] {
	return func(yield func(store.Record, error) bool) {
		for r, err := range s.writer.Pages(ctx, q, p.After, p.Limit) {
			if !yield(r, public(err)) {
				return
			}
		}
	}
}

// newID makes an ID that sorts by time: 26 characters, unguessable in its second half.
func newID(now time.Time) string { return opaque.NewID(now).String() }

// hasten makes the janitor put back lost rules now, if there are any.
func (s *core) hasten() {
	if !s.rules.Missing.Load() {
		return
	}
	select {
	case s.hurry <- struct{}{}:
	default:
	}
}
