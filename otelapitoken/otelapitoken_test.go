package otelapitoken_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	otelprom "go.opentelemetry.io/otel/exporters/prometheus"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	nooptrace "go.opentelemetry.io/otel/trace/noop"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/otelapitoken"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/memstore"
)

func service(t testing.TB, change func(*apitoken.Config)) *apitoken.Service {
	t.Helper()
	c := apitoken.Config{Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: memstore.New(), InsecureKeysInStore: true}
	if change != nil {
		change(&c)
	}
	svc, err := apitoken.New(c)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, svc.Close()) })
	return svc
}

func start(t testing.TB, src otelapitoken.Source, c otelapitoken.Config) *otelapitoken.Telemetry {
	t.Helper()
	x, err := otelapitoken.Start(src, c)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, x.Close()) })
	return x
}

func login(t testing.TB, ctx context.Context, svc *apitoken.Service) *apitoken.Issued {
	t.Helper()
	i, err := svc.Issue(ctx, apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"orders:read"}, Refresh: true})
	require.NoError(t, err)
	return i
}

// read is what a reader of the SDK gets: sums and gauges by their value, histograms by their count.
func read(t testing.TB, r sdkmetric.Reader) map[string]float64 {
	t.Helper()
	var data metricdata.ResourceMetrics
	require.NoError(t, r.Collect(context.Background(), &data))
	out := map[string]float64{}
	put := func(name string, set attribute.Set, v float64) {
		var labels []string
		for _, a := range set.ToSlice() {
			labels = append(labels, string(a.Key)+"="+a.Value.Emit())
		}
		out[name+"{"+strings.Join(labels, ",")+"}"] = v
	}
	for _, scope := range data.ScopeMetrics {
		for _, m := range scope.Metrics {
			switch d := m.Data.(type) {
			case metricdata.Sum[int64]:
				require.True(t, d.IsMonotonic, m.Name)
				for _, p := range d.DataPoints {
					put(m.Name, p.Attributes, float64(p.Value))
				}
			case metricdata.Gauge[int64]:
				for _, p := range d.DataPoints {
					put(m.Name, p.Attributes, float64(p.Value))
				}
			case metricdata.Gauge[float64]:
				for _, p := range d.DataPoints {
					put(m.Name, p.Attributes, p.Value)
				}
			case metricdata.Histogram[float64]:
				for _, p := range d.DataPoints {
					put(m.Name, p.Attributes, float64(p.Count))
				}
			default:
				t.Fatalf("%s is of a kind that this test does not know: %T", m.Name, m.Data)
			}
		}
	}
	return out
}

func metered(t testing.TB, src otelapitoken.Source, c otelapitoken.Config) (*otelapitoken.Telemetry, *sdkmetric.ManualReader) {
	t.Helper()
	r := sdkmetric.NewManualReader()
	p := sdkmetric.NewMeterProvider(sdkmetric.WithReader(r))
	t.Cleanup(func() { require.NoError(t, p.Shutdown(context.Background())) })
	c.MeterProvider = p
	if c.TracerProvider == nil {
		c.TracerProvider = nooptrace.NewTracerProvider()
	}
	return start(t, src, c), r
}

type broken struct{}

func (broken) Audit(context.Context, apitoken.Event) error { return errors.New("disk full") }

func TestMetrics(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, func(c *apitoken.Config) { c.Sinks = []apitoken.Sink{{Name: "siem", Auditor: broken{}}} })
	x, r := metered(t, svc, otelapitoken.Config{})
	i := login(t, ctx, svc)
	c := apitoken.Bearer(i.Access.Reveal())
	for range 3 {
		_, err := svc.Validate(ctx, c)
		require.NoError(t, err)
	}
	_, err := apitoken.Authorize(ctx, svc, c, apitoken.AllOf("orders:write"))
	require.ErrorIs(t, err, apitoken.ErrInsufficientScope)
	_, err = svc.Refresh(ctx, apitoken.RefreshRequest{Token: i.Refresh.Reveal()})
	require.NoError(t, err)
	require.NoError(t, svc.Revoke(ctx, apitoken.BySubject("alice"), "left"))
	_, err = svc.Validate(ctx, c)
	require.ErrorIs(t, err, apitoken.ErrRevoked)
	x.Observe(ctx, apitoken.Observation{Op: "of a later version", Err: errors.New("of a host")})

	got := read(t, r)
	for series, want := range map[string]float64{
		"apitoken.operations{op=issue,result=ok}":         1,
		"apitoken.operations{op=validate,result=ok}":      4,
		"apitoken.operations{op=validate,result=revoked}": 1,
		"apitoken.operations{op=authorize,result=scope}":  1,
		"apitoken.operations{op=refresh,result=ok}":       1,
		"apitoken.operations{op=revoke,result=ok}":        1,
		"apitoken.operations{op=other,result=other}":      1,
		"apitoken.operation.duration{op=validate}":        5,
		"apitoken.operation.duration{op=issue}":           1,
		"apitoken.validate.cache{outcome=miss}":           1,
		"apitoken.validate.cache{outcome=hit}":            3,
		"apitoken.view.stale{}":                           0,
		"apitoken.audit.queue{queue=uses}":                1,
		"apitoken.audit.queue{queue=refusals}":            2,
		"apitoken.audit.queue{queue=revocations}":         0,
		"apitoken.records.unreadable{}":                   0,
	} {
		v, ok := got[series]
		require.True(t, ok, "no series %s", series)
		require.Equal(t, want, v, series)
	}
	require.Contains(t, got, "apitoken.view.age{}")
	require.Contains(t, got, "apitoken.sink.lag{sink=siem}")
	require.NotContains(t, got, "apitoken.operation.duration{op=authorize}", "it takes no time of its own")

	require.NoError(t, x.Close())
	login(t, ctx, svc)
	require.NotContains(t, read(t, r), "apitoken.view.age{}", "after Close nothing is looked at")
}

func TestNoAttributeHoldsWhatACallerCanChoose(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	_, r := metered(t, svc, otelapitoken.Config{})
	for n := range 50 {
		_, err := svc.Issue(ctx, apitoken.Request{Subject: fmt.Sprintf("mallory-%d", n)})
		require.NoError(t, err)
		_, err = svc.Validate(ctx, apitoken.Bearer(fmt.Sprintf("mallory.%d.x", n)))
		require.Error(t, err)
	}
	for series := range read(t, r) {
		require.NotContains(t, series, "mallory")
	}
}

func TestClientsAreAnAttributeOnlyWhenAskedForAndBounded(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	_, r := metered(t, svc, otelapitoken.Config{Clients: 1})
	for _, name := range []string{"a", "b", "c"} {
		_, secret, err := svc.Clients.Create(ctx, apitoken.Client{ID: name, GrantTypes: []string{"client_credentials"}, Scopes: apitoken.Scopes{"orders:read"}})
		require.NoError(t, err)
		_, err = svc.Clients.Authenticate(ctx, apitoken.ClientAuth{ID: name, Secret: apitoken.NewSecret("wrong")})
		require.ErrorIs(t, err, apitoken.ErrInvalidClient)
		_, err = svc.Issue(ctx, apitoken.Request{Auth: apitoken.ClientAuth{ID: name, Secret: secret}, Scopes: apitoken.Scopes{"orders:read"}})
		require.NoError(t, err)
	}
	got := read(t, r)
	require.Equal(t, 1.0, got["apitoken.operations{client=a,op=issue,result=ok}"])
	require.Equal(t, 2.0, got["apitoken.operations{client=other,op=issue,result=ok}"])
	require.Equal(t, 3.0, got["apitoken.operations{client=,op=authenticate,result=client}"], "a client that is only claimed is not named")
}

// TestPrometheusNamesAreThoseOfPromapitoken: one dashboard is good for both ways.
// figures stand for an audit ledger, whose module this one does not need.
type figures map[string]float64

func (f figures) Figures() map[string]float64 { return f }

var ledgerFigures = figures{"records": 7, "signed": 5, "published": 4, "waiting": 1.5, "read_age": 0.5, "checked_age": 60, "failing": 1, "found": 0, "of a later version": 1}

func TestPrometheusNamesAreThoseOfPromapitoken(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	registry := prometheus.NewRegistry()
	exporter, err := otelprom.New(otelprom.WithRegisterer(registry), otelprom.WithoutScopeInfo(), otelprom.WithoutTargetInfo())
	require.NoError(t, err)
	p := sdkmetric.NewMeterProvider(sdkmetric.WithReader(exporter))
	t.Cleanup(func() { require.NoError(t, p.Shutdown(ctx)) })
	svc := service(t, func(c *apitoken.Config) { c.Sinks = []apitoken.Sink{{Name: "siem", Auditor: broken{}}} })
	x := start(t, svc, otelapitoken.Config{MeterProvider: p, TracerProvider: nooptrace.NewTracerProvider(), Ledger: ledgerFigures})
	i := login(t, ctx, svc)
	_, err = svc.Validate(ctx, apitoken.Bearer(i.Access.Reveal()))
	require.NoError(t, err)
	x.Observe(ctx, apitoken.Observation{Op: "validate", Token: i.Token})

	families, err := registry.Gather()
	require.NoError(t, err)
	got := map[string][]string{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if !slices.Contains(got[f.GetName()], l.GetName()) {
					got[f.GetName()] = append(got[f.GetName()], l.GetName())
				}
			}
			if got[f.GetName()] == nil {
				got[f.GetName()] = []string{}
			}
		}
	}
	require.Equal(t, map[string][]string{
		"apitoken_operations_total":           {"op", "result"},
		"apitoken_records_unreadable":         {},
		"apitoken_operation_duration_seconds": {"op"},
		"apitoken_validate_cache_total":       {"outcome"},
		"apitoken_view_age_seconds":           {},
		"apitoken_view_stale":                 {},
		"apitoken_view_position_seconds":      {},
		"apitoken_audit_queue":                {"queue"},
		"apitoken_sink_lag_seconds":           {"sink"},
		"apitoken_ledger_records":             {},
		"apitoken_ledger_signed_records":      {},
		"apitoken_ledger_published_records":   {},
		"apitoken_ledger_waiting_seconds":     {},
		"apitoken_ledger_read_age_seconds":    {},
		"apitoken_ledger_checked_age_seconds": {},
		"apitoken_ledger_failing":             {},
		"apitoken_ledger_found":               {},
	}, got)
}

func traced(t testing.TB, src otelapitoken.Source, c otelapitoken.Config) (*sdktrace.TracerProvider, *tracetest.SpanRecorder) {
	t.Helper()
	spans := tracetest.NewSpanRecorder()
	c.TracerProvider = sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans))
	metered(t, src, c)
	return c.TracerProvider.(*sdktrace.TracerProvider), spans
}

func attributes(s sdktrace.ReadOnlySpan) map[string]string {
	m := map[string]string{}
	for _, a := range s.Attributes() {
		m[string(a.Key)] = a.Value.Emit()
	}
	return m
}

func TestSpansLieUnderTheCallersAndLastAsLongAsTheCall(t *testing.T) {
	t.Parallel()
	svc := service(t, nil)
	tp, spans := traced(t, svc, otelapitoken.Config{})
	ctx, parent := tp.Tracer("host").Start(context.Background(), "POST /login")
	i := login(t, ctx, svc)
	c := apitoken.Bearer(i.Access.Reveal())
	for range 3 { // only the first one has a span: the cache answers the others
		_, err := svc.Validate(ctx, c)
		require.NoError(t, err)
	}
	require.NoError(t, svc.Revoke(ctx, apitoken.BySubject("alice"), "left"))
	_, err := svc.Validate(ctx, c)
	require.ErrorIs(t, err, apitoken.ErrRevoked)
	_, err = svc.Validate(context.Background(), c)
	require.Error(t, err, "no parent, no span")
	parent.End()

	ended := spans.Ended()
	var names []string
	for _, s := range ended[:len(ended)-1] {
		names = append(names, s.Name()+" "+attributes(s)["result"])
		require.Equal(t, parent.SpanContext().SpanID(), s.Parent().SpanID(), "%s is a child of the caller's span", s.Name())
		require.False(t, s.StartTime().After(s.EndTime()))
		require.False(t, s.EndTime().After(ended[len(ended)-1].EndTime()))
		require.Equal(t, codes.Unset, s.Status().Code, "a refusal is an answer, no failure")
		for _, private := range []string{"alice", i.Token.ID(), i.Token.Grant()} {
			for k, v := range attributes(s) {
				require.NotEqual(t, private, v, "attribute %s of %s", k, s.Name())
			}
		}
	}
	require.Equal(t, []string{"apitoken.issue ok", "apitoken.validate ok", "apitoken.revoke ok", "apitoken.validate revoked"}, names)
	issued := ended[0]
	require.Positive(t, issued.EndTime().Sub(issued.StartTime()), "issuing took time")
}

func TestSpansCarryIDsAndCacheHitsOnlyWhenAskedFor(t *testing.T) {
	t.Parallel()
	svc := service(t, nil)
	tp, spans := traced(t, svc, otelapitoken.Config{TokenIDs: true, CacheHits: true, Clients: 10})
	ctx, parent := tp.Tracer("host").Start(context.Background(), "GET /orders")
	defer parent.End()
	i := login(t, ctx, svc)
	for range 2 {
		_, err := svc.Validate(ctx, apitoken.Bearer(i.Access.Reveal()))
		require.NoError(t, err)
	}
	ended := spans.Ended()
	require.Len(t, ended, 3)
	require.Equal(t, map[string]string{"op": "validate", "result": "ok", "cache_hit": "true", "client": "first-party",
		"token_id": i.Token.ID(), "grant": i.Token.Grant()}, attributes(ended[2]))
}

// down is a store whose engine takes no writes.
type down struct{ store.Store }

func (down) Apply(context.Context, *store.Change) (store.Commit, error) {
	return store.Commit{}, store.ErrReadOnly
}

func TestAFailureOfTheServiceIsAnErrorOfItsSpan(t *testing.T) {
	t.Parallel()
	st := memstore.New()
	service(t, func(c *apitoken.Config) { c.Store = st }) // makes the keys
	svc := service(t, func(c *apitoken.Config) { c.Store = down{st} })
	_, spans := traced(t, svc, otelapitoken.Config{})
	_, err := svc.Issue(context.Background(), apitoken.Request{Subject: "alice"})
	require.ErrorIs(t, err, apitoken.ErrUnavailable)
	ended := spans.Ended()
	require.Len(t, ended, 1)
	require.Equal(t, codes.Error, ended[0].Status().Code)
	require.Equal(t, "unavailable", attributes(ended[0])["result"])
	require.Empty(t, ended[0].Events(), "what the store said stays in the host's log")
}

func TestWhatStartRefuses(t *testing.T) {
	t.Parallel()
	_, err := otelapitoken.Start(nil, otelapitoken.Config{})
	require.Error(t, err)
	_, err = otelapitoken.Start(service(t, nil), otelapitoken.Config{Clients: -1})
	require.Error(t, err)
}

func BenchmarkObserve(b *testing.B) {
	svc := service(b, nil)
	x, _ := metered(b, svc, otelapitoken.Config{})
	o := apitoken.Observation{Op: "validate", Token: login(b, context.Background(), svc).Token, Hit: true, Took: 200}
	b.ReportAllocs()
	for b.Loop() {
		x.Observe(context.Background(), o)
	}
}
