// Package promapitoken shows a token service to Prometheus: how old its view of revocations is, what it issues, refreshes,
// validates and refuses and how long that takes, and how far its audit is behind. dashboard.json beside it is a
// Grafana dashboard on these names, which are also those of package otelapitoken behind an OTLP endpoint or exporter.
//
//	collector, err := promapitoken.New(svc, promapitoken.Config{})
//	…
//	defer collector.Close()
//	registry.MustRegister(collector)
//
// The series, with every value that a label can have:
//
//	apitoken_operations_total{op,result}            op as in apitoken.Observation, result "ok" or Observation.Reason
//	apitoken_operation_duration_seconds{op}         histogram; "authorize" takes no time of its own and has none
//	apitoken_validate_cache_total{outcome}          "hit", "miss": of valid access tokens
//	apitoken_validate_stale_total                   tokens let through on a view past its bound (InsecureServeStale)
//	apitoken_view_age_seconds                       staleness: the time since the last complete look at revocations began
//	apitoken_view_stale                             1 while that is past MaxStaleness
//	apitoken_view_position_seconds                  Unix time of the newest state that this process has: its distance
//	                                                from the greatest among all processes is the feed's lag
//	apitoken_audit_queue{queue}                     "refusals", "uses", "revocations": see apitoken.Backlog
//	apitoken_records_unreadable                     stored records that could not be read: see apitoken.Backlog
//	apitoken_sink_lag_seconds{sink}                 sinks by the names that the host gave them
//
// With Config.Ledger, by the figures of ledger.Ledger.Figures:
//
//	apitoken_ledger_records                         records of the audit ledger, and of them
//	apitoken_ledger_signed_records                  under a checkpoint
//	apitoken_ledger_published_records               under a checkpoint that every publisher took
//	apitoken_ledger_waiting_seconds                 since when a record waits for a checkpoint
//	apitoken_ledger_read_age_seconds                since the feed was last read to its end
//	apitoken_ledger_checked_age_seconds             since the last watch that could be finished began
//	apitoken_ledger_failing                         1 while reading, writing or signing fails
//	apitoken_ledger_found                           1 if the watch found the log or its source changed
//
// No label ever holds a subject, an address, a token or anything else that a caller can choose; a client's ID only where
// Config.Clients allows it.
package promapitoken

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/apitoken-go/apitoken"
)

// Source is what is looked at: an *apitoken.Service or an *apitoken.JWTValidator, such as remote.NewValidator's. The audit's
// series come only from a service.
type Source interface {
	Observe(apitoken.Observer) (stop func())
	Freshness() apitoken.Freshness
}

type backlogger interface{ Backlog() apitoken.Backlog }

// Ledger is an audit ledger as far as it is looked at: a *ledger.Ledger.
type Ledger interface{ Figures() map[string]float64 }

// Config configures a Collector. The zero value is fit for use.
type Config struct {
	// Clients adds a label "client" to apitoken_operations_total, for the IDs of at most so many registered clients; the
	// rest are "other", and "" is where none is proved. Each client may have up to 60 series. Zero: no such label.
	Clients int
	// Buckets are the upper bounds of the duration histogram, in seconds, rising. nil: twelve from 1 µs to 4.2 s,
	// each four times the one before.
	Buckets []float64
	// Ledger adds the series of an audit ledger. nil: none.
	Ledger Ledger
}

// Collector is a prometheus.Collector of one source. Several in one registry need a label that tells them apart:
// register each with prometheus.WrapRegistererWith.
type Collector struct {
	src     Source
	ledger  Ledger
	stop    func()
	clients *clientNames // nil: no label

	operations *prometheus.CounterVec
	duration   *prometheus.HistogramVec
	cache      *prometheus.CounterVec
	stale      prometheus.Counter

	// Children that the hot path needs, so that it hashes no labels.
	count     [len(ops)][len(results)]prometheus.Counter // without the label client
	took      [len(ops)]prometheus.Observer
	hit, miss prometheus.Counter

	age, isStale, position, queue, unreadable, lag *prometheus.Desc
}

// The values of the labels op and result. What a later version of the root adds is counted as "other".
var (
	ops = [...]string{"validate", "authorize", "authenticate", "issue", "refresh", "exchange", "redeem", "revoke", "feed", "keys", "record", other}

	results = [...]string{"ok", "expired", "revoked", "proof", "nonce", "invalid", "none", "scope", "client", "grant", "limited", "unavailable", "denied", other}
)

const other = "other"

var (
	opIndex     = indexOf(ops[:])
	resultIndex = indexOf(results[:])
)

func indexOf(list []string) map[string]int {
	m := make(map[string]int, len(list))
	for i, x := range list {
		m[x] = i
	}
	return m
}

// New observes src until Close. Register the Collector to have it scraped. It fails when src is nil or c is contradictory.
func New(src Source, c Config) (*Collector, error) {
	switch {
	case src == nil:
		return nil, errors.New("promapitoken: no source")
	case c.Clients < 0:
		return nil, errors.New("promapitoken: Config.Clients is negative")
	}
	for i := 1; i < len(c.Buckets); i++ {
		if c.Buckets[i] <= c.Buckets[i-1] {
			return nil, errors.New("promapitoken: Config.Buckets do not rise")
		}
	}
	if c.Buckets == nil {
		c.Buckets = prometheus.ExponentialBuckets(1e-6, 4, 12)
	}
	labels := []string{"op", "result"}
	x := &Collector{src: src, ledger: c.Ledger}
	if c.Clients > 0 {
		x.clients = &clientNames{max: c.Clients, known: map[string]bool{}}
		labels = append(labels, "client")
	}
	x.operations = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "apitoken_operations_total",
		Help: "Calls that ended, by operation and result: ok, or the class of the refusal."}, labels)
	x.duration = prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "apitoken_operation_duration_seconds",
		Help: "How long calls took.", Buckets: c.Buckets}, []string{"op"})
	x.cache = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "apitoken_validate_cache_total",
		Help: "Access tokens that were found valid, by whether the cache of verified tokens knew them."}, []string{"outcome"})
	x.stale = prometheus.NewCounter(prometheus.CounterOpts{Name: "apitoken_validate_stale_total",
		Help: "Tokens let through on a view of revocations that was past its bound."})
	x.age = prometheus.NewDesc("apitoken_view_age_seconds", "Age of the view of revocations.", nil, nil)
	x.isStale = prometheus.NewDesc("apitoken_view_stale", "1 while the view of revocations is past its bound.", nil, nil)
	x.position = prometheus.NewDesc("apitoken_view_position_seconds", "Unix time of the newest state that is known here.", nil, nil)
	x.queue = prometheus.NewDesc("apitoken_audit_queue", "What was counted or decided here and is not in the store yet.", []string{"queue"}, nil)
	x.unreadable = prometheus.NewDesc("apitoken_records_unreadable", "Stored records that could not be read and are set aside.", nil, nil)
	x.lag = prometheus.NewDesc("apitoken_sink_lag_seconds", "How far an audit sink is behind, at most.", []string{"sink"}, nil)

	for i, op := range ops {
		if op != "authorize" {
			x.took[i] = x.duration.WithLabelValues(op)
		}
		for j, result := range results {
			if x.clients == nil {
				x.count[i][j] = x.operations.WithLabelValues(op, result) // from zero, so that a first refusal is seen by rate()
			}
		}
	}
	x.hit, x.miss = x.cache.WithLabelValues("hit"), x.cache.WithLabelValues("miss")
	x.stop = src.Observe(x)
	return x, nil
}

// Close ends the observation. What was counted stays; unregister the Collector to end the series.
func (x *Collector) Close() error {
	x.stop()
	return nil
}

// Observe implements apitoken.Observer. It waits for nothing and, without the label client, allocates nothing.
func (x *Collector) Observe(_ context.Context, o apitoken.Observation) {
	op, ok := opIndex[o.Op]
	if !ok {
		op = opIndex[other]
	}
	result := 0
	if o.Err != nil {
		if result, ok = resultIndex[o.Reason()]; !ok {
			result = resultIndex[other]
		}
	}
	if x.clients == nil {
		x.count[op][result].Inc()
	} else {
		x.operations.WithLabelValues(ops[op], results[result], x.clients.label(provedClient(o))).Inc()
	}
	if took := x.took[op]; took != nil {
		took.Observe(o.Took.Seconds())
	}
	if o.Op != "validate" || o.Err != nil || o.Token.IsZero() {
		return
	}
	if !o.Token.IsAPIKey() {
		if o.Hit {
			x.hit.Inc()
		} else {
			x.miss.Inc()
		}
	}
	if o.Token.Freshness().Stale {
		x.stale.Inc()
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

// clientNames bounds the values of the label client.
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

// ledgerSeries are the ledger's figures and what they are called here.
var ledgerSeries = map[string]*prometheus.Desc{
	"records":     ledgerSeriesOf("records", "Records of the audit ledger."),
	"signed":      ledgerSeriesOf("signed_records", "Records of the audit ledger that a checkpoint covers."),
	"published":   ledgerSeriesOf("published_records", "Records of the audit ledger under a checkpoint that every publisher took."),
	"waiting":     ledgerSeriesOf("waiting_seconds", "How long a record of the audit ledger waits for a checkpoint."),
	"read_age":    ledgerSeriesOf("read_age_seconds", "Time since the audit ledger read the event feed to its end."),
	"checked_age": ledgerSeriesOf("checked_age_seconds", "Time since the last finished watch of the audit ledger began."),
	"failing":     ledgerSeriesOf("failing", "1 while the audit ledger cannot read, write, sign or publish."),
	"found":       ledgerSeriesOf("found", "1 if the watch found the audit ledger or its source changed."),
}

func ledgerSeriesOf(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("apitoken_ledger_"+name, help, nil, nil)
}

// Describe implements prometheus.Collector.
func (x *Collector) Describe(ch chan<- *prometheus.Desc) {
	x.operations.Describe(ch)
	x.duration.Describe(ch)
	x.cache.Describe(ch)
	x.stale.Describe(ch)
	for _, d := range [...]*prometheus.Desc{x.age, x.isStale, x.position, x.queue, x.unreadable, x.lag} {
		ch <- d
	}
	if x.ledger != nil {
		for _, d := range ledgerSeries {
			ch <- d
		}
	}
}

// Collect implements prometheus.Collector. It asks no store.
func (x *Collector) Collect(ch chan<- prometheus.Metric) {
	x.operations.Collect(ch)
	x.duration.Collect(ch)
	x.cache.Collect(ch)
	x.stale.Collect(ch)
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	if x.ledger != nil {
		for name, v := range x.ledger.Figures() {
			if d := ledgerSeries[name]; d != nil { // a later version may have more
				gauge(d, v)
			}
		}
	}
	f := x.src.Freshness()
	gauge(x.age, f.Age.Seconds())
	stale := 0.0
	if f.Stale {
		stale = 1
	}
	gauge(x.isStale, stale)
	gauge(x.position, positionSeconds(f))
	s, ok := x.src.(backlogger)
	if !ok {
		return
	}
	b := s.Backlog()
	gauge(x.queue, float64(b.Refusals), "refusals")
	gauge(x.queue, float64(b.Uses), "uses")
	gauge(x.queue, float64(b.Revocations), "revocations")
	gauge(x.unreadable, float64(b.Unreadable))
	for name, lag := range b.Sinks {
		gauge(x.lag, lag.Seconds(), name)
	}
}

// positionSeconds is the time in a position: N is at least the store's clock in ms, shifted by 16 bits.
func positionSeconds(f apitoken.Freshness) float64 {
	return (time.Duration(f.Position.N>>16) * time.Millisecond).Seconds()
}
