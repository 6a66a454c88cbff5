// Package issuers follows foreign issuers: it reads their keys and their feeds of revocations, and knows how old both are and
// why they cannot be read. It owns what a validator knows of one issuer.
//
// It promises that a key which was declared compromised never comes back, whatever a key set says; that rules are only
// added, also when the feed changes its history or the key of its hashes; that the view is stored after the rules that it
// holds; and that the last good keys serve for KeysFor and no longer.
//
// Two goroutines follow one issuer: one reads keys, the other rules. Readers take no lock: keys, rules and the view are atomic
// pointers. The lock guards the rest and every write to the keys; neither a source nor the host is called with it held, but
// Void is. Whoever decides takes the view first, then the rules, then the clock.
//
// The root's validators hold one Issuer for each trusted issuer, and one that follows nothing for a service's own.
package issuers

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apitoken-go/apitoken/feed"
	"github.com/apitoken-go/apitoken/internal/follow"
	"github.com/apitoken-go/apitoken/internal/hook"
	"github.com/apitoken-go/apitoken/internal/jws"
	"github.com/apitoken-go/apitoken/internal/keyring"
	"github.com/apitoken-go/apitoken/internal/rules"
)

// Config is what an Issuer is followed by.
type Config struct {
	Name      string
	Own       bool             // positions, roles, scopes and clients are as its tokens say
	SameUsers bool             // its users are ours
	State     *follow.Follower // of the service whose own issuer this is; nil: the feed is followed
	Keys      feed.KeySource
	Feed      feed.Source // nil: its tokens count until they expire

	KeysFor      time.Duration // how long the last good keys serve
	MaxLife      time.Duration // of its access tokens
	MaxStaleness time.Duration // of the view of its rules
	Slack        time.Duration // how long rules are kept after their end
	Ahead        time.Duration // how far its clock may be ahead of ours

	Now func() time.Time
	Log *slog.Logger // nil: silent

	Void    func()           // what was verified with a key that is gone is void
	Told    func(*feed.View) // an answer of the feed, once its rules are in force; nil: nobody asks
	Observe func(ctx context.Context, op string, err error, took time.Duration)
}

// Issuer is what is known of an issuer. Use Init, once, before anything else.
type Issuer struct {
	Keys  atomic.Pointer[map[string]*jws.PublicKey] // by kid; nil: none is good
	Rules atomic.Pointer[rules.Book]                // nil: none were read
	View  atomic.Pointer[follow.View]               // nil: the feed was never read to its end
	Life  atomic.Int64                              // the longest that its access tokens may live, ns

	c     Config
	home  *Issuer       // see SetHome
	asked chan string   // kids that are missing
	kick  chan struct{} // the feed is to be read now
	renew chan struct{} // the feed told of another key set
	ready chan struct{} // closed when keys and rules were loaded once
	once  sync.Once     // closes ready

	keysOut  outage // why the keys cannot be read now
	feedOut  outage // why the rules cannot be read now
	clockFar atomic.Bool
	toldAt   atomic.Int64 // Unix ns: when the feed told of a key set that was not read yet; 0: there is none

	fetched time.Time     // when the keys were last good; of the goroutine that reads keys
	book    *rules.Book   // of the feed's key now; like the next two of the goroutine that reads rules
	clock   *follow.Clock // by which rules are forgotten
	swept   time.Time     // when they were last

	mu          sync.Mutex // guards all below, and writes to Keys
	keySet      string     // the feed's
	compromised map[string]bool
}

// Init sets an Issuer up. It follows nothing before Run.
func (t *Issuer) Init(c Config) {
	t.c = c
	t.asked, t.kick, t.renew, t.ready = make(chan string, 1), make(chan struct{}, 1), make(chan struct{}, 1), make(chan struct{})
	t.compromised = map[string]bool{}
	t.Life.Store(int64(c.MaxLife))
	if c.Now != nil {
		t.clock = follow.NewClock(c.Now)
	}
	t.keysOut = outage{issuer: c.Name, source: "keys", log: c.Log}
	t.feedOut = outage{issuer: c.Name, source: "feed", log: c.Log}
}

// Run follows the issuer until ctx ends.
func (t *Issuer) Run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	if t.c.Feed != nil {
		wg.Go(func() { t.followRules(ctx) })
	}
	if t.c.Keys != nil {
		t.followKeys(ctx)
	}
}

// Serve sets the keys of an issuer that has them from its configuration, and no Config.Keys. It is called before Run.
func (t *Issuer) Serve(list []*jws.PublicKey) {
	t.SetKeys(list)
	t.loaded()
}

// Ready is closed when keys and rules were loaded once.
func (t *Issuer) Ready() <-chan struct{} { return t.ready }

// Wake has the feed read now.
func (t *Issuer) Wake() {
	select {
	case t.kick <- struct{}{}:
	default:
	}
}

// Missing has the keys read again soon, because a token names this kid.
func (t *Issuer) Missing(kid string) {
	select {
	case t.asked <- kid:
	default:
	}
}

// Compromised reports whether the feed has declared a key compromised.
func (t *Issuer) Compromised(kid string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.compromised[kid]
}

// SetKeys replaces the keys. Void is called if a key is gone or has changed.
func (t *Issuer) SetKeys(list []*jws.PublicKey) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.setKeysLocked(list)
}

// setKeysLocked is SetKeys for a caller that holds mu. A set is filtered and stored under one lock, so that it has no key that
// was declared compromised in between.
func (t *Issuer) setKeysLocked(list []*jws.PublicKey) {
	set := make(map[string]*jws.PublicKey, len(list))
	for _, k := range list {
		if !t.compromised[k.KID] {
			set[k.KID] = k.Beside(set[k.KID])
		}
	}
	old := t.Keys.Load()
	t.Keys.Store(&set)
	if old == nil {
		return
	}
	for kid, k := range *old {
		if !set[kid].SameKeys(k) {
			t.c.Void()
			return
		}
	}
}

// Withdraw takes keys out of the set for ever: they are compromised.
func (t *Issuer) Withdraw(kids []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	fresh := false
	for _, kid := range kids {
		fresh = fresh || !t.compromised[kid]
		t.compromised[kid] = true
	}
	if set := t.Keys.Load(); fresh && set != nil {
		var list []*jws.PublicKey
		for _, k := range *set {
			list = append(list, k.All()...)
		}
		t.setKeysLocked(list)
	}
}

// Holds reports whether the key that a token named is still in the set.
func (t *Issuer) Holds(kid string) bool {
	set := t.Keys.Load()
	return set != nil && ((*set)[kid] != nil || kid == "" && len(*set) == 1)
}

// loaded closes ready once there is something of both kinds.
func (t *Issuer) loaded() {
	if t.Keys.Load() != nil && (t.c.Feed == nil || t.View.Load() != nil) {
		t.once.Do(func() { close(t.ready) })
	}
}

const (
	keysEvery    = 5 * time.Minute        // how often a key set is read again, at most; a next key is published for longer
	keysCooldown = 10 * time.Second       // between two reads that missing keys asked for
	keysApart    = 100 * time.Millisecond // between two reads that the feed asked for
	keysTimeout  = 10 * time.Second
	keysLate     = 30 * time.Second // how long unknown kids are ErrUnavailable after the feed told of another set
)

// Outdated reports whether the feed has told of another key set a moment ago, and it was not read yet.
func (t *Issuer) Outdated() bool {
	at := t.toldAt.Load()
	d := t.c.Now().UnixNano() - at
	return at != 0 && d < int64(keysLate) && d > -int64(keysLate)
}

// followKeys reads the issuer's keys: one request at a time, and for missing kids at most one in each cool-down.
func (t *Issuer) followKeys(ctx context.Context) {
	missing, wait := "", time.Second
	for {
		began := time.Now()
		t.keysOut.begin(t.c.Now())
		tctx, cancel := context.WithTimeout(ctx, keysTimeout)
		kid := missing // of this call: it may outlast its time
		doc, err := hook.Call(tctx, func(ctx context.Context) ([]byte, error) { return t.c.Keys.JWKS(ctx, kid) })
		cancel()
		var keys []*jws.PublicKey
		if err == nil {
			keys, _, err = jws.ParseJWKS(doc, t.Keys.Load())
			if err == nil && len(keys) == 0 {
				err = errors.New("no usable key in the set")
			}
		}
		t.c.Observe(ctx, "keys", err, time.Since(began))
		if ctx.Err() != nil {
			return
		}
		t.keysOut.end(ctx, t.c.Now(), err)
		t.checkClock(ctx)
		last := time.Now()
		next := follow.Jitter(wait)
		if err == nil {
			t.fetched = t.c.Now()
			t.SetKeys(keys)
			t.loaded()
			if t.complete() {
				wait, next = time.Second, follow.Jitter(min(keysEvery, t.c.KeysFor/4))
			}
		} else if !t.fetched.IsZero() {
			left := t.c.KeysFor - t.c.Now().Sub(t.fetched)
			if left <= 0 {
				t.mu.Lock() // or Withdraw could put back what it has read just before
				t.Keys.Store(nil)
				t.mu.Unlock()
				t.c.Void()
			} else {
				next = min(next, left)
			}
		}
		wait = min(2*wait, time.Minute)
		missing = t.awaitKeys(ctx, last, next)
		if ctx.Err() != nil {
			return
		}
	}
}

// complete reports whether the known keys are the set that the feed told of last. Behind a load balancer another process of the
// issuer may have answered that does not have it yet.
func (t *Issuer) complete() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.keySet != "" && !t.hasSet(t.keySet) {
		return false
	}
	t.toldAt.Store(0)
	return true
}

// hasSet reports whether set is the digest of the known keys.
func (t *Issuer) hasSet(set string) bool {
	keys := t.Keys.Load()
	if keys == nil {
		return false
	}
	return keyring.KeySetDigest(slices.Collect(maps.Keys(*keys))) == set
}

// awaitKeys waits until the keys are to be read again: for d, until the feed tells of another set, or until a kid is missing and
// its cool-down has ended, which delays neither of the others.
func (t *Issuer) awaitKeys(ctx context.Context, last time.Time, d time.Duration) (missing string) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	asked, renew := t.asked, t.renew
	var soon, cool <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return missing
		case <-timer.C:
			return missing
		case <-renew:
			if t.toldAt.Load() == 0 {
				continue // that set was read meanwhile
			}
			renew, soon = nil, time.After(keysApart-time.Since(last))
		case <-soon:
			return missing
		case missing = <-asked: // callers that ask from now on are served by the same answer
			asked, cool = nil, time.After(keysCooldown-time.Since(last))
		case <-cool:
			select {
			case <-t.asked:
			default:
			}
			return missing
		}
	}
}
