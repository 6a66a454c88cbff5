// Package introspection keeps an issuer's answers about opaque tokens (RFC 7662), for a validator that follows the issuer's feed and has
// no store.
//
// It owns the answers, by hashes of the tokens' texts, and what tells junk from a token that is worth a question: the forms of API keys
// and the hashes of imported ones, as the feed tells them. It promises that a token is asked about once however many callers wait; that
// an answer which the feed says has changed is dropped at once, and what was asked before that is good for the callers that wait
// already and for no other; that no question is asked while the view of rules is too old to believe what comes back; and that a flood of
// junk neither reaches the issuer nor takes the room of good keys.
//
// A question begins with a shard of the cache locked, and takes its place in the issuers.Gate with it held; nothing is asked under a
// lock. The other mutexes are leaves. Whoever uses an answer takes the view first, then asks Hit, then reads the clock.
//
// The root's validators hold one where ValidatorConfig.Introspect is set. It stands on issuers, apikey.Forms, flightcache and rules.
package introspection

import (
	"bytes"
	"context"
	"crypto/sha256"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apitoken-go/apitoken/feed"
	"github.com/apitoken-go/apitoken/internal/apikey"
	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/flightcache"
	"github.com/apitoken-go/apitoken/internal/issuers"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/internal/rules"
)

// Config is what Answers are made from.
type Config[T any] struct {
	Issuer *issuers.Issuer
	Forms  *apikey.Forms // of imported API keys; nil: there are none
	For    time.Duration // how long an answer is kept
	Now    func() time.Time
	// Ask puts the question to the issuer; nil: the token is not active. Its error is the caller's answer, and nothing is kept.
	Ask func(token string) (*Answer[T], error)
}

// Answer is what an issuer says of an active token. Ask sets T and Rule.
type Answer[T any] struct {
	Token T
	Rule  rules.Subject // what rules see of it

	version atomic.Uint64 // of the rules that it was checked against
	until   time.Time
	mark    [16]byte // the feed's hash of the token's ID
}

// Hit says which of the issuer's rules refuses the token, "" for none.
func (a *Answer[T]) Hit(iss *issuers.Issuer) string {
	version := iss.Version()
	if a.version.Load() == version {
		return ""
	}
	if rule := iss.Hit(&a.Rule); rule != "" {
		return rule
	}
	a.version.Store(version)
	return ""
}

// Answers are those of one issuer. Use New.
type Answers[T any] struct {
	c    Config[T]
	kept *flightcache.Cache[[32]byte, *Answer[T]]
	gate issuers.Gate

	filter atomic.Pointer[issuers.KeyFilter] // of API keys; nil: the feed has told of none

	mu       sync.RWMutex // guards what follows
	key      []byte       // of the feed's hashes, with ns
	ns       string
	imported map[[8]byte]struct{} // the beginnings of the hashes of imported API keys; nil: the feed has told nothing
}

const (
	keptPerShard     = 512 // of 64
	inactivePerShard = 64
	inactiveFor      = 2 * time.Second // an inactive answer is kept shorter: the key may be new
)

// New returns Answers that know nothing yet.
func New[T any](c Config[T]) *Answers[T] {
	s := &Answers[T]{c: c}
	s.kept = flightcache.New(flightcache.Config[[32]byte, *Answer[T]]{Shard: func(sum [32]byte) byte { return sum[0] },
		Values: keptPerShard, Absents: inactivePerShard, Fresh: func(a *Answer[T], now time.Time) bool { return now.Before(a.until) }})
	return s
}

// Close lets no question begin any more and waits for those under way.
func (s *Answers[T]) Close() { s.kept.Close() }

// Get returns the answer about token, from memory or from the issuer. junk, which is most of what strangers send, is known without a
// question, and says why; what can't be told from junk shares a small budget.
func (s *Answers[T]) Get(ctx context.Context, token string) (a *Answer[T], junk string, err error) {
	sum := sha256.Sum256([]byte(token))
	now := s.c.Now()
	known, active := s.kept.Get(sum)
	if active && now.Before(known.until) {
		return known, "", nil
	}
	lane := issuers.Genuine
	switch {
	case active:
	case opaque.KindOf(token) == opaque.None:
		lane, junk, err = s.readImported(token, now)
	default:
		lane, junk = s.filter.Load().Read(token)
	}
	if junk != "" || err != nil {
		return nil, junk, err
	}
	a, err = s.kept.Load(ctx, sum, now, func() (func() (*Answer[T], error), error) {
		switch {
		case s.stale(now): // whatever the issuer says, it would not be believed
			return nil, fault.Retry("the view of revocations is older than MaxStaleness")
		case lane == issuers.Unheard:
			return nil, fault.Fail(fault.InvalidToken, "an API key under a root that its issuer has not")
		case !s.gate.Enter(lane):
			return nil, fault.Retry("too many questions to the issuer at once")
		}
		return func() (*Answer[T], error) {
			defer s.gate.Leave(lane)
			return s.question(token)
		}, nil
	})
	return a, "", err
}

// stale reports whether the view of the issuer's rules is too old, and has it read.
func (s *Answers[T]) stale(now time.Time) bool {
	if !s.c.Issuer.Freshness(s.c.Issuer.Look(), now).Stale {
		return false
	}
	s.c.Issuer.Hurry()
	return true
}

// readImported says in which lane the question about what may be an imported API key belongs; junk: none, since its issuer has imported
// no key that is found by the same.
func (s *Answers[T]) readImported(token string, now time.Time) (lane issuers.Lane, junk string, err error) {
	s.mu.RLock()
	key, ns := s.key, s.ns
	s.mu.RUnlock()
	found, whole, err := s.c.Forms.Imported(ns, token, func(id string) bool {
		return s.imports(rules.HashTarget(key, ns, rules.TargetToken, "", id, ""))
	})
	switch {
	case err != nil:
		return 0, "", err
	case found && whole:
		return issuers.Genuine, "", nil
	case found: // whoever knows a part of the key can ask
		return issuers.Untold, "", nil
	case s.stale(now): // it may have been imported since
		return 0, "", fault.NoAnswer(s.c.Issuer.Cause(), "the view of imported API keys is older than MaxStaleness")
	}
	return 0, "an API key that its issuer did not import", nil
}

func (s *Answers[T]) imports(hash [16]byte) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	_, ok := s.imported[[8]byte(hash[:8])]
	return ok
}

// question asks the issuer.
func (s *Answers[T]) question(token string) (*Answer[T], error) {
	asked := s.c.Now()
	a, err := s.c.Ask(token)
	switch {
	case err != nil:
		return nil, err
	case a == nil:
		inactive := fault.Fail(fault.InvalidToken, "the issuer says that it is not active")
		return nil, &flightcache.Absent{Err: inactive, Until: asked.Add(min(s.c.For, inactiveFor))}
	}
	a.until = asked.Add(s.c.For)
	s.mu.RLock()
	defer s.mu.RUnlock()
	a.mark = rules.HashTarget(s.key, s.ns, rules.TargetToken, "", a.Rule.ID, "")
	return a, nil
}

// Told takes what an answer of the feed says of opaque tokens, and drops the answers that have changed.
func (s *Answers[T]) Told(v *feed.View) {
	s.learn(v)
	switch {
	case v.DropOpaque:
		s.kept.DropAll(nil)
	case len(v.Changed) > 0:
		s.kept.DropAll(func(a *Answer[T]) bool { return slices.Contains(v.Changed, a.mark) })
	}
}

// learn notes how the issuer's API keys look, and which were imported. It forgets none of those while their hashes are under the same
// key: those that have ended cost a question.
func (s *Answers[T]) learn(v *feed.View) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.imported == nil || s.ns != v.Namespace || !bytes.Equal(s.key, v.Key) {
		s.key, s.ns, s.imported = bytes.Clone(v.Key), v.Namespace, map[[8]byte]struct{}{}
	}
	s.filter.Store(s.filter.Load().With(v))
	if s.c.Forms == nil {
		return
	}
	for _, h := range v.Imported {
		s.imported[h] = struct{}{}
	}
}
