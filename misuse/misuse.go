package misuse

import (
	"context"
	"errors"
	"hash/maphash"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apitoken-go/apitoken"
)

// Config configures Start. A zero threshold takes the default in brackets, a negative one switches its detector off.
type Config struct {
	// Policy decides about each alert; nil: [Tell]. It is called by one goroutine, one alert at a time: the detectors go on
	// to see while it runs, and act when it has returned. Its context ends after five seconds.
	Policy func(context.Context, Alert) Action

	RevokedUses      int           // [10] refused uses of one revoked token within Window
	Addresses        int           // [6] networks of one person's token within Window; at most 40
	MachineAddresses int           // [32] the same of an API key or a client's own token; at most 100
	UserAgents       int           // [3] changes back to the program before, of one person's token within Window
	Forbidden        int           // [50] scope refusals of one token within Window
	ForbiddenScopes  int           // [8] different requirements among them
	FailedClients    int           // [20] failed authentications in one client's name within Window
	Unknown          int           // [200] unknown or malformed tokens from one source within Window
	Rise             int           // [8] times as many calls in five minutes as the client's usual highest
	RiseFloor        int           // [1000] calls in five minutes that a rise has at least
	Canaries         []string      // IDs of tokens, API keys or grants that nobody should ever use
	Window           time.Duration // [10m] 1 min to 24 h
	Quiet            time.Duration // [1h] between two alerts of one detector about the same

	// Tokens is for how many tokens their places are remembered, at 48 bytes each: the memory grows with use up to
	// that. Of more than that, those that moved least of late are forgotten. [1 << 20, which is 48 MiB]; at most 1 << 26.
	// All else takes 16 MiB at most, however many tokens there are: 5 for counts by token, source, client and canary, 6 for
	// the rates of 16,384 clients, 5 for evidence in clear and for what was said of late.
	Tokens int

	Name   string           // of the sink under which the event feed is followed; empty: "misuse"
	Now    func() time.Time // nil: time.Now
	Logger *slog.Logger     // nil: nothing is logged
}

const (
	actTimeout   = 5 * time.Second // of the policy, and of a revocation
	tellTimeout  = 2 * time.Second // of writing one alert
	feedTimeout  = 2 * actTimeout
	feedMaxAge   = time.Hour // of events that are still acted on, when a Watch finds old ones
	foundQueue   = 1024      // findings that wait for the policy
	maxUntold    = 1024      // alerts that wait for the store
	maxQuiet     = 1 << 14   // keys whose last alert is remembered
	unprovedHour = 100       // alerts an hour of one detector on evidence that anybody can make
)

func (c *Config) check() error {
	wrong := func(field, format string) error {
		return &apitoken.ConfigError{Field: field, Err: &apitoken.Error{Code: apitoken.ErrInvalidRequest, Detail: "misuse: " + field + " " + format}}
	}
	for _, x := range [...]struct {
		name        string
		v           *int
		usual, most int
	}{
		{"RevokedUses", &c.RevokedUses, 10, 60000}, {"Addresses", &c.Addresses, 6, 40}, {"MachineAddresses", &c.MachineAddresses, 32, 100},
		{"UserAgents", &c.UserAgents, 3, 250}, {"Forbidden", &c.Forbidden, 50, 60000}, {"ForbiddenScopes", &c.ForbiddenScopes, 8, 60000},
		{"FailedClients", &c.FailedClients, 20, 60000}, {"Unknown", &c.Unknown, 200, 60000}, {"Rise", &c.Rise, 8, 1000},
		{"RiseFloor", &c.RiseFloor, 1000, 1 << 26}, {"Tokens", &c.Tokens, 1 << 20, 1 << 26},
	} {
		switch {
		case *x.v == 0:
			*x.v = x.usual
		case *x.v > x.most:
			return wrong(x.name, "is over "+strconv.Itoa(x.most))
		case *x.v < 0:
			*x.v = 0 // off
		}
	}
	if c.Window == 0 {
		c.Window = 10 * time.Minute
	}
	if c.Quiet == 0 {
		c.Quiet = time.Hour
	}
	if c.Name == "" {
		c.Name = "misuse"
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	switch {
	case c.Window < time.Minute || c.Window > 24*time.Hour:
		return wrong("Window", "is not between 1 min and 24 h")
	case c.Quiet < 0:
		return wrong("Quiet", "is negative")
	case c.Tokens == 0:
		return wrong("Tokens", "is negative")
	case slices.Contains(c.Canaries, ""):
		return wrong("Canaries", "has an empty ID, which would be every token's without a grant")
	}
	return nil
}

// service is what a Watch needs of an *apitoken.Service.
type service interface {
	Issuer() string
	Alert(ctx context.Context, e apitoken.Event) error
	Revoke(ctx context.Context, target apitoken.Target, reason string) error
}

// Watch runs the detectors. It is an [apitoken.Observer]: what is attached to further validators of the same
// process, such as remote.NewValidator's, is watched too.
type Watch struct {
	c    Config
	svc  service
	log  *slog.Logger
	half time.Duration // of Window

	// What Observe touches.
	seed         maphash.Seed
	own          string // our issuer
	canaries     map[string]bool
	canaryBits   [64]uint64 // a filter before canaries, by hash
	tokens       *tokenTable
	calls        *callTable
	revoked      *countTable   // by token
	forbidden    *countTable   // by token, and by token and requirement
	failures     *countTable   // by client
	unknown      *countTable   // by source
	planted      *countTable   // by canary
	found        chan Alert    // on authentic evidence
	strange      chan Alert    // on evidence that anybody can make: it must not crowd out the other
	unlooked     atomic.Uint64 // findings that found the queue full
	alerts, held atomic.Uint64

	// What only the goroutine of run touches.
	quiet    map[uint64]int64 // when it was said last, in Unix ns, by the hash of Alert.about
	unproved map[Detector]*unproved
	untold   []*told
	stuck    bool // the store did not take the last alert

	events chan fed
	ctx    context.Context // ends at Close
	stop   context.CancelFunc
	detach func()
	wg     sync.WaitGroup
	once   sync.Once
}

// unproved counts, within an hour, the alerts of one detector that anybody can cause.
type unproved struct {
	hour    int64
	n, held int
}

// fed is an event on its way from the feed.
type fed struct {
	e    apitoken.Event
	done chan struct{}
}

// Start attaches detectors to svc, until Close. It fails, naming the field in an [apitoken.ConfigError], when c is
// contradictory. Close the Watch before the service.
func Start(svc *apitoken.Service, c Config) (*Watch, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	w := newWatch(c, svc)
	w.detach = svc.Observe(w)
	w.wg.Go(w.run)
	w.wg.Go(func() {
		sink := apitoken.Sink{Name: c.Name, Auditor: feed{w}, Timeout: feedTimeout}
		if err := svc.Feed(w.ctx, sink); err != nil && w.ctx.Err() == nil {
			w.log.Error("misuse: events are not followed", "error", err)
		}
	})
	return w, nil
}

// newWatch is a Watch without goroutines. c was checked.
func newWatch(c Config, svc service) *Watch {
	w := &Watch{
		c: c, svc: svc, log: c.Logger, half: c.Window / 2, seed: maphash.MakeSeed(), own: svc.Issuer(),
		tokens: &tokenTable{}, calls: newCallTable(c.Rise > 0), revoked: newCountTable(c.RevokedUses > 0),
		forbidden: newCountTable(c.Forbidden > 0 || c.ForbiddenScopes > 0), failures: newCountTable(c.FailedClients > 0), unknown: newCountTable(c.Unknown > 0),
		planted: newCountTable(len(c.Canaries) > 0),
		found:   make(chan Alert, foundQueue), strange: make(chan Alert, foundQueue), events: make(chan fed),
		quiet: map[uint64]int64{}, unproved: map[Detector]*unproved{},
		detach: func() {},
	}
	w.tokens.init(w.seed, c.Tokens)
	for _, id := range c.Canaries {
		if w.canaries == nil {
			w.canaries = map[string]bool{}
		}
		w.canaries[id] = true
		h := maphash.String(w.seed, id)
		w.canaryBits[h>>6&63] |= 1 << (h & 63)
	}
	w.ctx, w.stop = context.WithCancel(context.Background())
	return w
}

// Close detaches the Watch, acts on what was found, and ends its goroutines. Alerts that the store has not taken by
// then are logged and lost.
func (w *Watch) Close() error {
	w.once.Do(func() {
		w.detach()
		w.stop()
		w.wg.Wait()
		w.drain()
		w.tell()
		for _, t := range w.untold {
			w.log.Error("misuse: an alert is lost", "detector", string(t.alert.Detector), "subject", t.alert.Subject)
		}
	})
	return nil
}

// Stats is what a Watch has done and holds.
type Stats struct {
	Alerts     uint64 // raised
	Suppressed uint64 // of detectors whose evidence anybody can make, past 100 an hour: summed up in one alert event
	Unlooked   uint64 // findings and moves that were passed over because a lock or the queue was taken
	Bytes      int64  // held by the tables now
}

// Stats may be called at any time, for metrics.
func (w *Watch) Stats() Stats {
	return Stats{Alerts: w.alerts.Load(), Suppressed: w.held.Load(), Unlooked: w.unlooked.Load() + w.tokens.missed.Load(),
		Bytes: w.tokens.bytes() + w.calls.bytes() + w.revoked.bytes() + w.forbidden.bytes() + w.failures.bytes() + w.unknown.bytes() + w.planted.bytes()}
}

// Observe implements [apitoken.Observer]. It never blocks.
func (w *Watch) Observe(_ context.Context, o apitoken.Observation) {
	switch {
	case o.Op == "validate" && o.Err == nil:
		w.used(&o)
	case o.Err == nil:
	case o.Op == "validate":
		w.refused(&o)
	case o.Op == "authorize":
		w.lacking(&o)
	case o.Op == "authenticate":
		w.failed(&o)
	}
}

// hash is the token's key in the tables.
func (w *Watch) hash(t *apitoken.Token) uint64 {
	h := maphash.String(w.seed, t.ID())
	if iss := t.Issuer(); iss != w.own {
		h ^= mix(maphash.String(w.seed, iss))
	}
	return max(h, 1)
}

// used looks at a good token: it is the path of every request.
func (w *Watch) used(o *apitoken.Observation) {
	if o.Token.IsZero() {
		return
	}
	h := w.hash(&o.Token)
	if w.c.Rise > 0 && rand.Uint32()%callSample == 0 {
		if client := o.Token.Client(); client != "" {
			w.calls.hit(max(maphash.String(w.seed, client), 1), &o.Token)
		} else if o.Token.IsAPIKey() {
			w.calls.hit(h, &o.Token)
		}
	}
	if w.canaries != nil {
		w.canary(o)
	}
	if !o.Address.IsValid() && o.UserAgent == "" {
		return
	}
	if place := w.tokens.place(&o.Origin); !w.tokens.settled(h, place) {
		w.moved(o, h, place)
	}
}

func (w *Watch) moved(o *apitoken.Observation, h, place uint64) {
	limits := moveLimits{networks: w.c.Addresses, back: w.c.UserAgents}
	if o.Token.IsAPIKey() || o.Token.IsClient() {
		limits = moveLimits{networks: w.c.MachineAddresses} // many machines with their own tools may share it
	}
	now := w.c.Now()
	f := w.tokens.moved(h, place, &o.Origin, w.halfOf(now), limits)
	if !f.tooMany && !f.atOnce {
		return
	}
	a := about(o, now)
	a.Authentic = true
	a.Evidence = Evidence{Within: w.c.Window, Addresses: f.addresses, UserAgents: f.agents}
	if f.tooMany {
		a.Detector, a.Evidence.Count, a.Evidence.Limit = Addresses, f.networks, limits.networks
		w.report(a)
	}
	if f.atOnce {
		a.Detector, a.Evidence.Count, a.Evidence.Limit = UserAgents, f.back, limits.back
		w.report(a)
	}
}

// canary reports the use of a planted token, good or not. Another issuer may name its tokens like ours: those are none.
func (w *Watch) canary(o *apitoken.Observation) {
	if issuer := o.Token.Issuer(); issuer != "" && issuer != w.own {
		return
	}
	for _, id := range [...]string{o.Token.ID(), o.Token.Grant()} {
		if id == "" {
			continue
		}
		if h := maphash.String(w.seed, id); w.canaryBits[h>>6&63]&(1<<(h&63)) == 0 || !w.canaries[id] {
			continue
		}
		w.count(w.planted, maphash.String(w.seed, id), 1, Canary, true, o)
		return
	}
}

// refused looks at a token that was not good.
func (w *Watch) refused(o *apitoken.Observation) {
	var e *apitoken.Error
	if !errors.As(o.Err, &e) {
		return
	}
	if !o.Token.IsZero() {
		if w.canaries != nil {
			w.canary(o)
		}
		if e.Code == apitoken.ErrRevoked {
			w.count(w.revoked, w.hash(&o.Token), w.c.RevokedUses, AfterRevocation, true, o)
		}
		return
	}
	// Whoever has an expired or revoked token had a good one: what counts here is what was never a token of ours.
	if e.Code == apitoken.ErrInvalidToken && o.Address.IsValid() {
		w.count(w.unknown, mix(network(o.Address, 32, 64)+1), w.c.Unknown, UnknownTokens, false, o)
	}
}

// lacking looks at a good token that lacks a scope.
func (w *Watch) lacking(o *apitoken.Observation) {
	if o.Token.IsZero() || !errors.Is(o.Err, apitoken.ErrInsufficientScope) {
		return
	}
	h := w.hash(&o.Token)
	if e := (*apitoken.Error)(nil); w.c.ForbiddenScopes > 0 && errors.As(o.Err, &e) {
		const first = 1 << 20 // a limit that is never passed
		if n, _ := w.forbidden.add(mix(h^maphash.String(w.seed, e.Needs.String())), w.halfOf(w.c.Now()), first); n == 1 {
			w.count(w.forbidden, mix(h+1), w.c.ForbiddenScopes, ScopeProbing, true, o)
		}
	}
	w.count(w.forbidden, h, w.c.Forbidden, ScopeProbing, true, o)
}

// failed looks at a client that failed to authenticate, or someone in its name.
func (w *Watch) failed(o *apitoken.Observation) {
	if errors.Is(o.Err, apitoken.ErrInvalidClient) || errors.Is(o.Err, apitoken.ErrLimited) {
		w.count(w.failures, max(maphash.String(w.seed, cut(o.Client, 255)), 1), w.c.FailedClients, ClientFailures, false, o)
	}
}

// count counts once for h and reports when limit is reached; 0: off.
func (w *Watch) count(t *countTable, h uint64, limit int, d Detector, authentic bool, o *apitoken.Observation) {
	if limit == 0 {
		return
	}
	now := w.c.Now()
	n, passed := t.add(max(h, 1), w.halfOf(now), limit)
	if !passed {
		return
	}
	a := about(o, now)
	a.Detector, a.Authentic = d, authentic
	a.Evidence.Count, a.Evidence.Limit, a.Evidence.Within = n, limit, w.c.Window
	w.report(a)
}

// about is an alert about o, not yet saying of what.
func about(o *apitoken.Observation, now time.Time) Alert {
	a := Alert{Time: now, Token: o.Token, Client: cut(o.Client, 255)}
	if !o.Token.IsZero() {
		a.Subject, a.Client, a.Grant, a.TokenID = o.Token.Subject(), o.Token.Client(), o.Token.Grant(), o.Token.ID()
	}
	a.Evidence.place(o.Origin)
	return a
}

// place notes where the last of the evidence came from.
func (e *Evidence) place(o apitoken.Origin) {
	if o.Address.IsValid() {
		e.Addresses = []netip.Addr{o.Address.WithZone("")}
	}
	if o.UserAgent != "" {
		e.UserAgents = []string{cut(o.UserAgent, keptAgentLen)}
	}
}

// report hands a finding to the goroutine that acts. It never blocks: what does not fit is found again.
func (w *Watch) report(a Alert) {
	queue := w.found
	if !a.Authentic {
		queue = w.strange
	}
	select {
	case queue <- a:
	default:
		w.unlooked.Add(1)
	}
}

func (w *Watch) halfOf(now time.Time) uint32 { return uint32(now.UnixNano() / int64(w.half)) }
