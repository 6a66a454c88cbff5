package promapitoken_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/promapitoken"
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

func collector(t testing.TB, src promapitoken.Source, c promapitoken.Config) (*promapitoken.Collector, *prometheus.Registry) {
	t.Helper()
	x, err := promapitoken.New(src, c)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, x.Close()) })
	r := prometheus.NewPedanticRegistry()
	require.NoError(t, r.Register(x))
	return x, r
}

// values are the gathered samples: counters and gauges by their value, histograms by their count.
func values(t testing.TB, r prometheus.Gatherer) map[string]float64 {
	t.Helper()
	families, err := r.Gather()
	require.NoError(t, err)
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			v := m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			out[f.GetName()+"{"+strings.Join(labels, ",")+"}"] = v
		}
	}
	return out
}

func login(t testing.TB, svc *apitoken.Service) *apitoken.Issued {
	t.Helper()
	i, err := svc.Issue(context.Background(), apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"orders:read"}, Refresh: true})
	require.NoError(t, err)
	return i
}

func TestCallsAreCountedByOperationAndResult(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	_, r := collector(t, svc, promapitoken.Config{})
	before := values(t, r)
	require.Contains(t, before, "apitoken_operations_total{op=validate,result=revoked}", "series begin at zero, so that rate() sees the first refusal")

	i := login(t, svc)
	c := apitoken.Bearer(i.Access.Reveal())
	for range 3 {
		_, err := svc.Validate(ctx, c)
		require.NoError(t, err)
	}
	_, err := apitoken.Authorize(ctx, svc, c, apitoken.AllOf("orders:write"))
	require.ErrorIs(t, err, apitoken.ErrInsufficientScope)
	_, err = svc.Refresh(ctx, apitoken.RefreshRequest{Token: i.Refresh.Reveal()})
	require.NoError(t, err)
	_, err = svc.Validate(ctx, apitoken.Bearer("junk"))
	require.Error(t, err)
	require.NoError(t, svc.Revoke(ctx, apitoken.BySubject("alice"), "left"))
	_, err = svc.Validate(ctx, c)
	require.ErrorIs(t, err, apitoken.ErrRevoked)
	_, err = svc.Refresh(ctx, apitoken.RefreshRequest{Token: "at_r_junk"})
	require.ErrorIs(t, err, apitoken.ErrInvalidGrant)

	got := values(t, r)
	for series, want := range map[string]float64{
		"apitoken_operations_total{op=issue,result=ok}":              1,
		"apitoken_operations_total{op=validate,result=ok}":           4,
		"apitoken_operations_total{op=validate,result=invalid}":      1,
		"apitoken_operations_total{op=validate,result=revoked}":      1,
		"apitoken_operations_total{op=authorize,result=scope}":       1,
		"apitoken_operations_total{op=refresh,result=ok}":            1,
		"apitoken_operations_total{op=refresh,result=grant}":         1,
		"apitoken_operations_total{op=revoke,result=ok}":             1,
		"apitoken_operation_duration_seconds{op=issue}":              1,
		"apitoken_operation_duration_seconds{op=validate}":           6,
		"apitoken_validate_cache_total{outcome=miss}":                1,
		"apitoken_validate_cache_total{outcome=hit}":                 3,
		"apitoken_validate_stale_total{}":                            0,
		"apitoken_view_stale{}":                                      0,
		"apitoken_audit_queue{queue=uses}":                           1,
		"apitoken_audit_queue{queue=revocations}":                    0,
		"apitoken_audit_queue{queue=refusals}":                       4,
		"apitoken_records_unreadable{}":                              0,
		"apitoken_operations_total{op=authenticate,result=ok}":       0,
		"apitoken_operations_total{op=validate,result=other}":        0,
		"apitoken_operations_total{op=exchange,result=insufficient}": 0, // not a series at all
	} {
		require.Equal(t, want, got[series], series)
	}
	require.Less(t, got["apitoken_view_age_seconds{}"], 10.0)
	require.InDelta(t, float64(time.Now().Unix()), got["apitoken_view_position_seconds{}"], 3600, "the position is near the store's time")
}

// figures stand for an audit ledger, whose module this one does not need.
type figures map[string]float64

func (f figures) Figures() map[string]float64 { return f }

var ledgerFigures = figures{"records": 7, "signed": 5, "published": 4, "waiting": 1.5, "read_age": 0.5, "checked_age": 60, "failing": 1, "found": 0, "of a later version": 1}

func TestTheLedgersFiguresAreShown(t *testing.T) {
	t.Parallel()
	svc := service(t, nil)
	_, r := collector(t, svc, promapitoken.Config{Ledger: ledgerFigures})
	got := values(t, r)
	for series, want := range map[string]float64{
		"records": 7, "signed_records": 5, "published_records": 4, "waiting_seconds": 1.5, "read_age_seconds": 0.5, "checked_age_seconds": 60, "failing": 1, "found": 0,
	} {
		v, ok := got["apitoken_ledger_"+series+"{}"]
		require.True(t, ok, series)
		require.Equal(t, want, v, series)
	}
	_, r = collector(t, svc, promapitoken.Config{})
	for series := range values(t, r) {
		require.NotContains(t, series, "ledger", "nothing without a ledger")
	}
}

func TestNoLabelHoldsWhatACallerCanChoose(t *testing.T) {
	t.Parallel()
	ctx := apitoken.WithOrigin(context.Background(), apitoken.Origin{UserAgent: "mallory-agent", RequestID: "mallory-request"})
	svc := service(t, nil)
	x, r := collector(t, svc, promapitoken.Config{})
	before := len(values(t, r))
	for n := range 300 {
		_, err := svc.Issue(ctx, apitoken.Request{Subject: fmt.Sprintf("mallory-%d", n)})
		require.NoError(t, err)
		_, err = svc.Validate(ctx, apitoken.Bearer(fmt.Sprintf("mallory.%d.x", n)))
		require.Error(t, err)
	}
	for n := range 3 { // an unknown client costs a slow hash
		_, err := svc.Clients.Authenticate(ctx, apitoken.ClientAuth{ID: fmt.Sprintf("mallory-%d", n), Secret: apitoken.NewSecret("x")})
		require.Error(t, err)
	}
	x.Observe(ctx, apitoken.Observation{Op: "mallory", Err: errors.New("mallory")})
	got := values(t, r)
	require.Len(t, got, before, "300 callers made no series")
	require.Equal(t, 1.0, got["apitoken_operations_total{op=other,result=other}"])
	for series := range got {
		require.NotContains(t, series, "mallory")
	}
}

func TestClientsAreALabelOnlyWhenAskedForAndBounded(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	_, r := collector(t, svc, promapitoken.Config{Clients: 2})
	for _, name := range []string{"a", "b", "c", "d"} {
		_, secret, err := svc.Clients.Create(ctx, apitoken.Client{ID: name, GrantTypes: []string{"client_credentials"}, Scopes: apitoken.Scopes{"orders:read"}})
		require.NoError(t, err)
		_, err = svc.Clients.Authenticate(ctx, apitoken.ClientAuth{ID: name, Secret: apitoken.NewSecret("wrong")})
		require.ErrorIs(t, err, apitoken.ErrInvalidClient)
		_, err = svc.Issue(ctx, apitoken.Request{Auth: apitoken.ClientAuth{ID: name, Secret: secret}, Scopes: apitoken.Scopes{"orders:read"}})
		require.NoError(t, err)
	}
	got := values(t, r)
	require.Equal(t, 1.0, got["apitoken_operations_total{client=a,op=issue,result=ok}"])
	require.Equal(t, 1.0, got["apitoken_operations_total{client=b,op=issue,result=ok}"])
	require.Equal(t, 2.0, got["apitoken_operations_total{client=other,op=issue,result=ok}"], "past the bound")
	require.Equal(t, 4.0, got["apitoken_operations_total{client=,op=authenticate,result=client}"], "a client that is only claimed is not named")
}

type broken struct{}

func (broken) Audit(context.Context, apitoken.Event) error { return errors.New("disk full") }

func TestLagAndStalenessAreShown(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	var ahead atomic.Int64
	svc := service(t, func(c *apitoken.Config) {
		c.Sinks = []apitoken.Sink{{Name: "siem", Auditor: broken{}}}
		c.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
		c.Validation.InsecureServeStale = 50 * time.Minute
		c.Validation.MaxStaleness = 30 * time.Minute // the next look is far away
		c.Lifetimes.Access = 12 * time.Hour
	})
	_, r := collector(t, svc, promapitoken.Config{})
	i := login(t, svc)
	var got map[string]float64
	for range 5 { // the look that the login asked for may begin after the clock was moved
		ahead.Add(int64(40 * time.Minute))
		got = values(t, r)
		if got["apitoken_view_age_seconds{}"] >= 2400 {
			break
		}
	}
	require.GreaterOrEqual(t, got["apitoken_sink_lag_seconds{sink=siem}"], 2400.0)
	require.GreaterOrEqual(t, got["apitoken_view_age_seconds{}"], 2400.0)
	require.Equal(t, 1.0, got["apitoken_view_stale{}"])
	_, err := svc.Validate(ctx, apitoken.Bearer(i.Access.Reveal()))
	require.NoError(t, err)
	require.Equal(t, 1.0, values(t, r)["apitoken_validate_stale_total{}"], "a token that was let through on an old view is counted")
}

func TestAValidatorWithoutAStoreHasNoAuditSeries(t *testing.T) {
	t.Parallel()
	svc := service(t, nil)
	v, err := apitoken.NewValidator(apitoken.ValidatorConfig{Audience: "https://api.example.com",
		Trust: []apitoken.Trusted{{Issuer: svc.Issuer(), Keys: svc.SigningKeys, Revocations: svc}}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, v.Close()) })
	require.NoError(t, v.Ready(context.Background()))
	_, r := collector(t, v, promapitoken.Config{})
	got := values(t, r)
	require.Contains(t, got, "apitoken_view_age_seconds{}")
	require.NotContains(t, got, "apitoken_audit_queue{queue=uses}")
}

func TestCloseEndsTheObservation(t *testing.T) {
	t.Parallel()
	svc := service(t, nil)
	x, r := collector(t, svc, promapitoken.Config{})
	login(t, svc)
	require.NoError(t, x.Close())
	login(t, svc)
	require.Equal(t, 1.0, values(t, r)["apitoken_operations_total{op=issue,result=ok}"])
}

func TestWhatNewRefuses(t *testing.T) {
	t.Parallel()
	svc := service(t, nil)
	for why, f := range map[string]func() (*promapitoken.Collector, error){
		"no source": func() (*promapitoken.Collector, error) { return promapitoken.New(nil, promapitoken.Config{}) },
		"negative": func() (*promapitoken.Collector, error) {
			return promapitoken.New(svc, promapitoken.Config{Clients: -1})
		},
		"buckets do not rise": func() (*promapitoken.Collector, error) {
			return promapitoken.New(svc, promapitoken.Config{Buckets: []float64{1, 1}})
		},
	} {
		_, err := f()
		require.Error(t, err, why)
	}
}

func TestMetricsFollowPrometheusConventions(t *testing.T) {
	t.Parallel()
	_, r := collector(t, service(t, nil), promapitoken.Config{})
	problems, err := testutil.GatherAndLint(r)
	require.NoError(t, err)
	require.Empty(t, problems)
}

// What a query of the dashboard may consist of besides metric names, labels, strings and numbers.
var promQL = []string{"sum", "max", "min", "rate", "by", "le", "histogram_quantile", "clamp_min", "without"}

// TestDashboardAsksOnlyForWhatIsRegistered reads every query of the dashboard and looks up each name, label and fixed label
// value in what a service really shows.
func TestDashboardAsksOnlyForWhatIsRegistered(t *testing.T) {
	t.Parallel()
	svc := service(t, func(c *apitoken.Config) { c.Sinks = []apitoken.Sink{{Name: "siem", Auditor: broken{}}} })
	_, r := collector(t, svc, promapitoken.Config{})
	families, err := r.Gather()
	require.NoError(t, err)
	labels := map[string]map[string][]string{} // series → label → values
	for _, f := range families {
		names := []string{f.GetName()}
		if f.GetMetric()[0].GetHistogram() != nil {
			names = []string{f.GetName() + "_bucket", f.GetName() + "_sum", f.GetName() + "_count"}
		}
		for _, name := range names {
			labels[name] = map[string][]string{"job": nil, "instance": nil} // every scraped series has them
			if strings.HasSuffix(name, "_bucket") {
				labels[name]["le"] = nil
			}
			for _, m := range f.GetMetric() {
				for _, l := range m.GetLabel() {
					labels[name][l.GetName()] = append(labels[name][l.GetName()], l.GetValue())
				}
			}
		}
	}

	data, err := os.ReadFile("dashboard.json")
	require.NoError(t, err)
	var board struct {
		UID    string
		Panels []struct {
			ID      int
			Type    string
			Title   string
			GridPos struct{ X, Y, W, H int }
			Targets []struct{ Expr, LegendFormat, RefID string }
		}
	}
	require.NoError(t, json.Unmarshal(data, &board))
	require.NotEmpty(t, board.UID)

	metric := regexp.MustCompile(`(apitoken_\w+)(\{[^}]*\})?`)
	selector := regexp.MustCompile(`(\w+)(=~|!~|!=|=)"([^"]*)"`)
	grouping := regexp.MustCompile(`(?:by|without) ?\(([^)]*)\)`)
	word := regexp.MustCompile(`[A-Za-z_]\w*`)
	asked := map[string]bool{}
	ids := map[int]bool{}
	for _, p := range board.Panels {
		require.False(t, ids[p.ID], "panel %d twice", p.ID)
		ids[p.ID] = true
		require.LessOrEqual(t, p.GridPos.X+p.GridPos.W, 24, "%s is wider than the dashboard", p.Title)
		if p.Type != "row" {
			require.NotEmpty(t, p.Targets, "%s shows nothing", p.Title)
		}
		for _, q := range p.Targets {
			found := metric.FindAllStringSubmatch(q.Expr, -1)
			require.NotEmpty(t, found, "%s asks for none of our metrics: %s", p.Title, q.Expr)
			require.Equal(t, strings.Count(q.Expr, "("), strings.Count(q.Expr, ")"), q.Expr)
			has := map[string]bool{"le": true}
			for _, m := range found {
				known, ok := labels[m[1]]
				require.True(t, ok, "%s: no service shows %s", p.Title, m[1])
				asked[m[1]] = true
				for name := range known {
					has[name] = true
				}
				rest := strings.Trim(m[2], "{}")
				for _, s := range selector.FindAllStringSubmatch(m[2], -1) {
					values, ok := known[s[1]]
					require.True(t, ok, "%s: %s has no label %s", p.Title, m[1], s[1])
					if !strings.Contains(s[3], "$") {
						for v := range strings.SplitSeq(s[3], "|") {
							require.Contains(t, values, v, "%s: label %s of %s", p.Title, s[1], m[1])
						}
					}
					rest = strings.Replace(rest, s[0], "", 1)
				}
				require.Empty(t, strings.Trim(rest, ", "), "%s: a selector of %s could not be read", p.Title, m[1])
			}
			for _, g := range grouping.FindAllStringSubmatch(q.Expr, -1) {
				for _, l := range word.FindAllString(g[1], -1) {
					require.True(t, has[l], "%s groups by %s, which nothing in it has", p.Title, l)
				}
			}
			for _, l := range regexp.MustCompile(`\{\{(\w+)\}\}`).FindAllStringSubmatch(q.LegendFormat, -1) {
				require.True(t, has[l[1]], "%s shows the label %s in its legend", p.Title, l[1])
			}
			bare := grouping.ReplaceAllString(metric.ReplaceAllString(q.Expr, ""), "")
			bare = regexp.MustCompile(`\[[^]]*\]`).ReplaceAllString(bare, "")
			for _, w := range word.FindAllString(bare, -1) {
				require.True(t, slices.Contains(promQL, w), "%s: %s is no word of a query that this test knows", p.Title, w)
			}
		}
	}
	for name := range labels {
		if !strings.HasSuffix(name, "_sum") && !strings.HasSuffix(name, "_count") {
			require.True(t, asked[name], "the dashboard does not show %s", name)
		}
	}
}

func BenchmarkObserve(b *testing.B) {
	svc := service(b, nil)
	x, _ := collector(b, svc, promapitoken.Config{})
	i := login(b, svc)
	o := apitoken.Observation{Op: "validate", Token: i.Token, Hit: true, Took: 200}
	b.ReportAllocs()
	for b.Loop() {
		x.Observe(context.Background(), o)
	}
}

// BenchmarkValidateObserved is what a validation that the cache answers costs with and without a Collector.
func BenchmarkValidateObserved(b *testing.B) {
	svc := service(b, nil)
	c := apitoken.Bearer(login(b, svc).Access.Reveal())
	run := func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := svc.Validate(context.Background(), c); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.Run("bare", run)
	x, err := promapitoken.New(svc, promapitoken.Config{})
	require.NoError(b, err)
	defer x.Close()
	b.Run("observed", run)
}
