// Package otelapitoken shows a token service to OpenTelemetry, as metrics and as traces.
//
//	telemetry, err := otelapitoken.Start(svc, otelapitoken.Config{})
//	…
//	defer telemetry.Close()
//
// The metrics, with every value that an attribute can have:
//
//	apitoken.operations            counter; op as in apitoken.Observation, result "ok" or Observation.Reason
//	apitoken.operation.duration    histogram, s; op. "authorize" takes no time of its own and has none
//	apitoken.validate.cache        counter; outcome "hit" or "miss": of valid access tokens
//	apitoken.validate.stale        counter of tokens let through on a view past its bound (InsecureServeStale)
//	apitoken.view.age              gauge, s: staleness, the time since the last complete look at revocations began
//	apitoken.view.stale            gauge: 1 while that is past MaxStaleness
//	apitoken.view.position         gauge, s: Unix time of the newest state that this process has; its distance from the
//	                               greatest among all processes is the feed's lag
//	apitoken.records.unreadable    gauge: stored records that could not be read, see apitoken.Backlog
//	apitoken.audit.queue           gauge; queue "refusals", "uses" or "revocations": see apitoken.Backlog
//	apitoken.sink.lag              gauge, s; sink: by the names that the host gave them
//
// With Config.Ledger there are also apitoken.ledger.records, .signed.records, .published.records, .waiting, .read.age, .checked.age
// (gauges, the last three in s), .failing and .found (1 or 0), by the figures of ledger.Ledger.Figures.
//
// In Prometheus they have the names of package promapitoken, whose dashboard fits them.
//
// A span is made, when its call has ended, for each operation under the span of the caller's context, named
// "apitoken.issue" and so on, with op, result and, for a validation, cache_hit. Work in the background (feed, keys) makes one
// only when it fails, and a validation none when it has no parent or the cache answered.
//
// No attribute ever holds a subject, an address, a token or anything else that a caller can choose; a client's ID and IDs of
// tokens only where Config allows them.
package otelapitoken

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"

	"github.com/apitoken-go/apitoken"
)

// Source is what is looked at: an *apitoken.Service or an *apitoken.JWTValidator, such as remote.NewValidator's. The audit's
// metrics come only from a service.
type Source interface {
	Observe(apitoken.Observer) (stop func())
	Freshness() apitoken.Freshness
}

type backlogger interface{ Backlog() apitoken.Backlog }

// Ledger is an audit ledger as far as it is looked at: a *ledger.Ledger.
type Ledger interface{ Figures() map[string]float64 }

// Config configures Start. The zero value is fit for use.
type Config struct {
	MeterProvider  metric.MeterProvider // nil: otel.GetMeterProvider; one of package noop makes no metrics
	TracerProvider trace.TracerProvider // nil: otel.GetTracerProvider; one of package noop makes no spans
	// Clients adds an attribute client to apitoken.operations and to spans, for the IDs of at most so many registered
	// clients; the rest are "other", and "" is where none is proved. Each may have up to 60 series. Zero: none.
	Clients int
	// TokenIDs puts the IDs of a verified token and its grant on spans (never on metrics), which lead from a trace to the
	// audit log. They are no secrets, but they point to a person.
	TokenIDs bool
	// CacheHits makes spans also for validations that the cache answered. They take about 100 ns, a span ten times that.
	CacheHits bool
	// Ledger adds the metrics of an audit ledger. nil: none.
	Ledger Ledger
}

// Telemetry observes one source until Close.
type Telemetry struct {
	c       Config
	src     Source
	stop    func()
	gauges  metric.Registration
	tracer  trace.Tracer
	clients clientNames

	operations, cache, stale metric.Int64Counter
	duration                 metric.Float64Histogram

	// Options of the hot path, so that it builds no attribute set.
	count     map[outcome][]metric.AddOption // without the attribute client
	took      map[string][]metric.RecordOption
	hit, miss []metric.AddOption

	age, position, lag metric.Float64ObservableGauge
	isStale, queue     metric.Int64ObservableGauge
	unreadable         metric.Int64ObservableGauge
	queues             [3]metric.ObserveOption
	ledger             map[string]metric.Float64ObservableGauge // by the figure's name; nil: no ledger
}

// ledgerMetrics are the ledger's figures: what they are called here, their unit, and what they say.
var ledgerMetrics = map[string][3]string{
	"records":     {"records", "", "Records of the audit ledger."},
	"signed":      {"signed.records", "", "Records of the audit ledger that a checkpoint covers."},
	"published":   {"published.records", "", "Records of the audit ledger under a checkpoint that every publisher took."},
	"waiting":     {"waiting", "s", "How long a record of the audit ledger waits for a checkpoint."},
	"read_age":    {"read.age", "s", "Time since the audit ledger read the event feed to its end."},
	"checked_age": {"checked.age", "s", "Time since the last finished watch of the audit ledger began."},
	"failing":     {"failing", "", "1 while the audit ledger cannot read, write, sign or publish."},
	"found":       {"found", "", "1 if the watch found the audit ledger or its source changed."},
}

type outcome struct{ op, result string }

const (
	scope = "github.com/apitoken-go/apitoken/otelapitoken"
	other = "other"
)

// The values of op and result. What a later version of the root adds is counted as "other".
var (
	ops     = [...]string{"validate", "authorize", "authenticate", "issue", "refresh", "exchange", "redeem", "revoke", "feed", "keys", "record", other}
	results = [...]string{"ok", "expired", "revoked", "proof", "nonce", "invalid", "none", "scope", "client", "grant", "limited", "unavailable", "denied", other}
	queues  = [...]string{"refusals", "uses", "revocations"}
)

// Start observes src until Close. It fails when src is nil, c is contradictory, or the provider refuses an instrument.
func Start(src Source, c Config) (*Telemetry, error) {
	switch {
	case src == nil:
		return nil, errors.New("otelapitoken: no source")
	case c.Clients < 0:
		return nil, errors.New("otelapitoken: Config.Clients is negative")
	}
	if c.MeterProvider == nil {
		c.MeterProvider = otel.GetMeterProvider()
	}
	if c.TracerProvider == nil {
		c.TracerProvider = otel.GetTracerProvider()
	}
	x := &Telemetry{c: c, src: src, tracer: c.TracerProvider.Tracer(scope), clients: clientNames{max: c.Clients, known: map[string]bool{}},
		count: map[outcome][]metric.AddOption{}, took: map[string][]metric.RecordOption{}}
	for _, op := range ops {
		if op != "authorize" {
			x.took[op] = []metric.RecordOption{metric.WithAttributeSet(attribute.NewSet(attribute.String("op", op)))}
		}
		for _, result := range results {
			x.count[outcome{op, result}] = []metric.AddOption{metric.WithAttributeSet(attribute.NewSet(attribute.String("op", op), attribute.String("result", result)))}
		}
	}
	for i, q := range queues {
		x.queues[i] = metric.WithAttributeSet(attribute.NewSet(attribute.String("queue", q)))
	}
	x.hit = []metric.AddOption{metric.WithAttributeSet(attribute.NewSet(attribute.String("outcome", "hit")))}
	x.miss = []metric.AddOption{metric.WithAttributeSet(attribute.NewSet(attribute.String("outcome", "miss")))}
	if err := x.instruments(c.MeterProvider.Meter(scope)); err != nil {
		return nil, err
	}
	x.stop = src.Observe(x)
	return x, nil
}

// bounds of the histogram, in seconds: from 1 µs to 4.2 s, each four times the one before.
var bounds = []float64{1e-6, 4e-6, 16e-6, 64e-6, 256e-6, 1024e-6, 4096e-6, 16384e-6, 65536e-6, 262144e-6, 1048576e-6, 4194304e-6}

func (x *Telemetry) instruments(m metric.Meter) error {
	var errs [10]error
	x.operations, errs[0] = m.Int64Counter("apitoken.operations", metric.WithDescription("Calls that ended, by operation and result: ok, or the class of the refusal."))
	x.duration, errs[1] = m.Float64Histogram("apitoken.operation.duration", metric.WithUnit("s"), metric.WithDescription("How long calls took."), metric.WithExplicitBucketBoundaries(bounds...))
	x.cache, errs[2] = m.Int64Counter("apitoken.validate.cache", metric.WithDescription("Access tokens that were found valid, by whether the cache of verified tokens knew them."))
	x.stale, errs[3] = m.Int64Counter("apitoken.validate.stale", metric.WithDescription("Tokens let through on a view of revocations that was past its bound."))
	x.age, errs[4] = m.Float64ObservableGauge("apitoken.view.age", metric.WithUnit("s"), metric.WithDescription("Age of the view of revocations."))
	x.isStale, errs[5] = m.Int64ObservableGauge("apitoken.view.stale", metric.WithDescription("1 while the view of revocations is past its bound."))
	x.position, errs[6] = m.Float64ObservableGauge("apitoken.view.position", metric.WithUnit("s"), metric.WithDescription("Unix time of the newest state that is known here."))
	x.queue, errs[7] = m.Int64ObservableGauge("apitoken.audit.queue", metric.WithDescription("What was counted or decided here and is not in the store yet."))
	x.lag, errs[8] = m.Float64ObservableGauge("apitoken.sink.lag", metric.WithUnit("s"), metric.WithDescription("How far an audit sink is behind, at most."))
	x.unreadable, errs[9] = m.Int64ObservableGauge("apitoken.records.unreadable", metric.WithDescription("Stored records that could not be read and are set aside."))
	if err := errors.Join(errs[:]...); err != nil {
		return err
	}
	all := []metric.Observable{x.age, x.isStale, x.position, x.queue, x.unreadable, x.lag}
	if x.c.Ledger != nil {
		x.ledger = map[string]metric.Float64ObservableGauge{}
		for figure, d := range ledgerMetrics {
			g, err := m.Float64ObservableGauge("apitoken.ledger."+d[0], metric.WithUnit(d[1]), metric.WithDescription(d[2]))
			if err != nil {
				return err
			}
			x.ledger[figure] = g
			all = append(all, g)
		}
	}
	var err error
	x.gauges, err = m.RegisterCallback(x.look, all...)
	return err
}

// look is called when metrics are read. It asks no store.
func (x *Telemetry) look(_ context.Context, to metric.Observer) error {
	if x.c.Ledger != nil {
		for figure, v := range x.c.Ledger.Figures() {
			if g := x.ledger[figure]; g != nil { // a later version may have more
				to.ObserveFloat64(g, v)
			}
		}
	}
	f := x.src.Freshness()
	to.ObserveFloat64(x.age, f.Age.Seconds())
	stale := int64(0)
	if f.Stale {
		stale = 1
	}
	to.ObserveInt64(x.isStale, stale)
	// N of a position is at least the store's clock in ms, shifted by 16 bits.
	to.ObserveFloat64(x.position, (time.Duration(f.Position.N>>16) * time.Millisecond).Seconds())
	s, ok := x.src.(backlogger)
	if !ok {
		return nil
	}
	b := s.Backlog()
	for i, n := range [...]int{b.Refusals, b.Uses, b.Revocations} {
		to.ObserveInt64(x.queue, int64(n), x.queues[i])
	}
	to.ObserveInt64(x.unreadable, int64(b.Unreadable))
	for name, lag := range b.Sinks {
		to.ObserveFloat64(x.lag, lag.Seconds(), metric.WithAttributes(attribute.String("sink", name)))
	}
	return nil
}

// Close ends the observation.
func (x *Telemetry) Close() error {
	x.stop()
	return x.gauges.Unregister()
}

// Observe implements apitoken.Observer.
func (x *Telemetry) Observe(ctx context.Context, o apitoken.Observation) {
	k := outcome{o.Op, "ok"}
	if o.Err != nil {
		k.result = o.Reason()
	}
	add, ok := x.count[k]
	if !ok {
		k = known(k)
		add = x.count[k]
	}
	var client string
	if x.c.Clients > 0 {
		client = x.clients.label(provedClient(o))
		x.operations.Add(ctx, 1, metric.WithAttributes(attribute.String("op", k.op), attribute.String("result", k.result), attribute.String("client", client)))
	} else {
		x.operations.Add(ctx, 1, add...)
	}
	if took, ok := x.took[k.op]; ok {
		x.duration.Record(ctx, o.Took.Seconds(), took...)
	}
	if o.Op == "validate" && o.Err == nil && !o.Token.IsZero() {
		if !o.Token.IsAPIKey() {
			if o.Hit {
				x.cache.Add(ctx, 1, x.hit...)
			} else {
				x.cache.Add(ctx, 1, x.miss...)
			}
		}
		if o.Token.Freshness().Stale {
			x.stale.Add(ctx, 1)
		}
	}
	if x.traced(ctx, o) {
		x.span(ctx, o, k, client)
	}
}

// known replaces by "other" what has no place in the bounded sets.
func known(k outcome) outcome {
	in := func(list []string, x string) string {
		for _, y := range list {
			if x == y {
				return x
			}
		}
		return other
	}
	return outcome{in(ops[:], k.op), in(results[:], k.result)}
}

// traced reports whether a span is worth its cost.
func (x *Telemetry) traced(ctx context.Context, o apitoken.Observation) bool {
	switch o.Op {
	case "feed", "keys":
		return o.Err != nil
	case "validate", "authorize":
		if o.Hit && o.Err == nil && !x.c.CacheHits {
			return false
		}
		return trace.SpanContextFromContext(ctx).IsValid()
	}
	return true
}

// span is made afterwards, over the time that the call took.
func (x *Telemetry) span(ctx context.Context, o apitoken.Observation, k outcome, client string) {
	end := time.Now()
	_, s := x.tracer.Start(ctx, "apitoken."+k.op, trace.WithTimestamp(end.Add(-o.Took)))
	defer s.End(trace.WithTimestamp(end))
	if !s.IsRecording() {
		return
	}
	s.SetAttributes(attribute.String("op", k.op), attribute.String("result", k.result))
	if o.Op == "validate" {
		s.SetAttributes(attribute.Bool("cache_hit", o.Hit))
	}
	if x.c.Clients > 0 {
		s.SetAttributes(attribute.String("client", client))
	}
	if x.c.TokenIDs && !o.Token.IsZero() {
		s.SetAttributes(attribute.String("token_id", o.Token.ID()), attribute.String("grant", o.Token.Grant()))
	}
	if k.result == "unavailable" || k.result == other { // a refusal is an answer, not a failure of the service
		s.SetStatus(codes.Error, k.result)
	}
}

// provedClient is whose call it was, as far as a signature or a credential vouches for it.
func provedClient(o apitoken.Observation) string {
	switch {
	case !o.Token.IsZero():
		return o.Token.Client()
	case o.Op == "authenticate" && o.Err == nil:
		return o.Client
	}
	return ""
}

// clientNames bounds the values of the attribute client.
type clientNames struct {
	max   int
	mu    sync.RWMutex // guards known
	known map[string]bool
}

func (n *clientNames) label(id string) string {
	if id == "" {
		return ""
	}
	n.mu.RLock()
	known, full := n.known[id], len(n.known) >= n.max
	n.mu.RUnlock()
	switch {
	case known:
		return id
	case full:
		return other
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.known) >= n.max && !n.known[id] {
		return other
	}
	n.known[strings.Clone(id)] = true // it may be a part of a token
	return id
}
