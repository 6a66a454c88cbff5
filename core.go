// Service, and what all its parts share: how the store is read and written, and which revocations were known when something was made.

package apitoken

import (
	"context"
	"iter"
	"log/slog"
	"maps"
	"runtime/pprof"
	"slices"
	"sync"
	"time"

	"github.com/apitoken-go/apitoken/internal/auditlog"
	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/feedlog"
	"github.com/apitoken-go/apitoken/internal/follow"
	"github.com/apitoken-go/apitoken/internal/grant"
	"github.com/apitoken-go/apitoken/internal/lineage"
	"github.com/apitoken-go/apitoken/internal/namespace"
	"github.com/apitoken-go/apitoken/internal/once"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/internal/quota"
	"github.com/apitoken-go/apitoken/internal/record"
	"github.com/apitoken-go/apitoken/internal/revoke"
	"github.com/apitoken-go/apitoken/internal/roles"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/internal/ticket"
	"github.com/apitoken-go/apitoken/store"
)

// Service is the whole token service on one store: an [Issuer], a [Validator] and a [Revoker].
// Make one with [New]; it is safe for concurrent use.
type Service struct {
	Clients     *Clients     // the registered applications
	APIKeys     *APIKeys     // the keys of all subjects; APIKeys.For narrows it to one caller
	SigningKeys *SigningKeys // the ring

	*core
	*minter
	feed *feedlog.Log

	once sync.Once
}

// Adapter is a service as those see it who write adapters: endpoints of a protocol, pages, reports, and validators in other
// processes. A host needs none of it. It is the service itself, so that it costs nothing and closes with it.
type Adapter Service

// Adapter returns s for those who write adapters.
func (s *Service) Adapter() *Adapter { return (*Adapter)(s) }

// core is what every part of a service stands on: the checked configuration, the clock, the log, the store with its one way
// of writing, what is known of its state, the rules, the audit log and our own validator. It knows none of the other parts.
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
	audit    *auditlog.Log[Scope]
	valid    *JWTValidator // ours; nil until it is made, and so the next
	trust    *trust        // our own issuer, among valid's

	audiences []string      // all of cfg's, the first one first
	hurry     chan struct{} // wakes the janitor: a store has lost rules that are known here

	revoke *revoke.Writer

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

// Sync catches up with the store: what any process wrote before the call is in force here when it returns.
func (s *Service) Sync(ctx context.Context) error {
	return s.sync(ctx)
}

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
	data [auditlog.Room]byte // of the first event
}

func (s *core) newChange() *change {
	c := &change{s: s}
	c.Init()
	return c
}

// put adds v to c in its form. ErrInvalidRequest: nobody could read it back.
func put[T any](c *change, f *record.Form[T], r store.Record, v *T, expect store.Version) error {
	return public(commit.Put(&c.Change, f, r, v, expect))
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

// Page is a place in a listing. Listings are in order of creation, newest first.
type Page struct {
	After string // the ID of the last one seen; empty: from the start
	Limit int    // zero: all
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

// claim is Once.
func (s *core) claim(ctx context.Context, id string, until time.Time) error {
	return public(s.deeds().Claim(ctx, id, until))
}

func (s *core) deeds() *once.Book {
	return &once.Book{Writer: &s.writer, Now: s.now, Log: s.log, Namespace: func() string { return s.ns }, Slack: ruleSlack}
}

// ruleSlack is added to every purge time: for the skew of clocks, and so that nobody has to count milliseconds.
const ruleSlack = rules.Slack

// maxPrepared is the longest that a ticket, or the note of a pushed request or a waiting device, can stand for what was confirmed
// before.
const maxPrepared = rules.MaxPrepared

// Two places in the order of changes decide whether a rule refuses something: where its identity was confirmed, and what was
// known when it was made. Both are taken here and nowhere else, so that nothing is stamped with a place that is later than what
// was looked at: a test sees to it that no other file asks for the position.

// birth is where an identity was confirmed. What descends from it has its birth, however much later it is made: a rule that came
// since refuses it. There are two ways to one: a moment, in which the host itself vouches for somebody, and what was verified and
// has one already, a token, a ticket, a grant or an API key.
type birth struct{ at store.Position }

// moment is what was known at the start of a call, or of a new try: before anything is looked at that the outcome stands on.
type moment struct {
	view  store.Position
	rules uint64 // their version
	host  birth  // of an identity that the host confirms: now, or when it began
	begun bool   // by the host, before this call: its birth cannot be had anew
}

// begin takes the moment.
func (s *core) begin(ctx context.Context) moment {
	m := moment{view: s.state.Position(), rules: s.rules.Version.Load()}
	m.host = birth{m.view}
	if b, ok := ctx.Value(begunKey{}).(begun); ok && b.by == s {
		m.host, m.rules, m.begun = b.host, b.rules, true
	}
	return m
}

// reach is the moment for what descends from b. A process that has not seen as far as b, which another one made, looks first: no
// token says that less was known when it was made than when its identity was confirmed. It is called before anything is planned.
func (s *core) reach(ctx context.Context, m moment, b birth) (moment, error) {
	if b.at.History != m.view.History || b.at.N <= m.view.N { // of another history the rules know what to make
		return m, nil
	}
	if err := s.state.CatchUp(ctx, b.at); err != nil {
		return m, unavailable(err, "see as far as another process that confirmed the identity")
	}
	m.view = s.state.Position()
	return m, nil
}

// login is the birth of an identity that the host confirmed.
func (m moment) login() birth { return m.host }

// stamp is what a token or an API key carries that was made in this moment.
func (m moment) stamp(b birth) rules.Positions { return rules.Positions{Birth: b.at, View: m.view} }

// passed reports whether a rule came since the moment, or is on its way.
func (m moment) passed(rules *rules.Book) bool {
	return rules.Version.Load() != m.rules || rules.Pending.Load() != nil
}

type begunKey struct{}

type begun struct {
	by *core
	moment
}

// Begin returns a context in which tokens and tickets count as made now. Call it when somebody starts to authenticate: what is
// revoked while a directory is asked or a request's body comes in then applies to the tokens that result. It is for one request.
func (s *Service) Begin(ctx context.Context) context.Context {
	return context.WithValue(ctx, begunKey{}, begun{s.core, s.begin(ctx)})
}

// birth is that of a token of ours that was verified; false: it has none here.
func (t Token) birth(s *core) (birth, bool) {
	if t.d == nil || t.d.from == nil || t.d.Issuer != s.cfg.Issuer {
		return birth{}, false
	}
	return birth{t.d.from.Pos.Birth}, true
}

// earlier is the birth of what two made: a rule that hits either hits it.
func (b birth) earlier(o birth) birth {
	if o.at.N < b.at.N {
		return o
	}
	return b
}

// Observer counts. It is called on the hot path, must not block and cannot fail; metrics, traces and misuse detectors are
// Observers. A panic in one is logged once and changes no answer. One that blocks holds up Validate and
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

func (s *core) observe(ctx context.Context, o Observation) {
	if s.valid != nil && s.valid.observers.Any() {
		o.Origin = originOf(ctx)
		s.valid.observers.ObserveWithin(ctx, o)
	}
}

// Settings is what a service goes by: its Config as New checked it, defaults filled in. It holds nothing that is secret.
type Settings struct {
	Issuer     string
	FAPI       bool             // Config.FAPI
	FirstParty string           // client_id of tokens issued without a Client
	Audiences  []string         // Config.Audience first
	Scopes     map[Scope]string // known scopes and their descriptions; nil: any well-formed one
	Lifetimes  Lifetimes
	Limits     Limits
	// MaxStaleness is how old this process's view of revocations may be before it refuses: a revocation that it wrote is in
	// force within as long in every process with the same setting.
	MaxStaleness time.Duration
	KeyRotation  time.Duration            // negative: only by call
	KeepEvents   time.Duration            // zero: for ever
	SinkLags     map[string]time.Duration // Sink.MaxLag by name; zero: nothing waits for the sink
}

// Settings returns what the service goes by, in memory of the caller's own: for pages, health checks and metrics that state
// a limit beside a figure.
func (s *Service) Settings() Settings {
	c := &s.cfg
	lags := make(map[string]time.Duration, len(c.Sinks))
	for _, sink := range c.Sinks {
		lags[sink.Name] = sink.MaxLag
	}
	return Settings{
		Issuer: c.Issuer, FAPI: c.FAPI, FirstParty: c.FirstParty, Audiences: slices.Clone(s.audiences), Scopes: maps.Clone(c.Scopes),
		Lifetimes: c.Lifetimes, Limits: c.Limits, MaxStaleness: c.Validation.MaxStaleness,
		KeyRotation: c.KeyRotation, KeepEvents: c.KeepEvents, SinkLags: lags,
	}
}

// grantRecord is a session as it is stored.
type grantRecord = grant.Record[Scope]

var grantForm = grant.Form[Scope]()

func readGrant(r store.Record) (*grantRecord, error) {
	g := new(grantRecord)
	return g, read(grantForm, r, g)
}

// roleRecord is a role as it is stored.
type roleRecord = roles.Record[Scope]

var roleForm = roles.RoleForm[Scope]()

// ticketRecord is a ticket as it is stored.
type ticketRecord = ticket.Record[Scope]

var ticketForm = ticket.Form[Scope]()

func readTicket(r store.Record) (*ticketRecord, error) {
	t := new(ticketRecord)
	return t, read(ticketForm, r, t)
}
