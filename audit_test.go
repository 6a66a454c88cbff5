package apitoken_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/export"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/memstore"
)

// counting counts reads.
type counting struct {
	store.Store
	gets atomic.Int64
}

func (c *counting) Get(ctx context.Context, k store.Kind, id string) (store.Record, error) {
	if k == store.KindAPIKey {
		c.gets.Add(1)
	}
	return c.Store.Get(ctx, k, id)
}

func TestEventsTellWhoDidWhatFromWhere(t *testing.T) {
	t.Parallel()
	svc := service(t, nil)
	admin := issue(t, svc, apitoken.Request{Subject: "admin"}).Token
	origin := apitoken.Origin{Address: netip.MustParseAddr("192.0.2.1"), UserAgent: "curl/8\x1b[31m" + strings.Repeat("é", 200), RequestID: "req\u202e-1"}
	ctx := apitoken.NewContext(apitoken.WithOrigin(context.Background(), origin), admin)
	i, err := svc.Issue(ctx, apitoken.Request{Subject: "alice \"<&>'", Scopes: apitoken.Scopes{"orders:read"}})
	require.NoError(t, err)
	require.NoError(t, svc.Revoke(ctx, apitoken.ByGrant(i.Token.Grant()), "left\nthe company"))
	require.NoError(t, svc.Revoke(apitoken.WithActor(context.Background(), "cron"), apitoken.BySubject("x"), ""))
	list := events(t, svc, apitoken.EventQuery{OldestFirst: true, Subject: "alice \"<&>'"})
	require.Len(t, list, 1)
	e := list[0]
	require.Equal(t, event.Issued, e.Type)
	require.True(t, e.OK)
	require.Equal(t, "admin", e.Actor)
	require.Equal(t, i.Token.ID(), e.TokenID)
	require.Equal(t, i.Token.Grant(), e.Grant)
	require.Equal(t, "first-party", e.Client)
	require.Equal(t, apitoken.Scopes{"orders:read"}, e.Scopes)
	require.Equal(t, origin.Address, e.Address)
	require.LessOrEqual(t, len(e.UserAgent), 256)
	require.True(t, utf8.ValidString(e.UserAgent))
	require.NotContains(t, e.UserAgent, "\x1b")
	require.NotContains(t, e.RequestID, "\u202e")
	require.WithinDuration(t, time.Now(), e.Time, time.Minute)
	revoked := events(t, svc, apitoken.EventQuery{Type: event.Revoked, Grant: i.Token.Grant()})
	require.Len(t, revoked, 1)
	require.Equal(t, "left\nthe company", revoked[0].Reason)
	require.Equal(t, apitoken.ByGrant(i.Token.Grant()).String(), revoked[0].Target.String())
	require.Equal(t, "cron", events(t, svc, apitoken.EventQuery{Type: event.Revoked})[0].Actor, "newest first")
	// What is stored is what encoding/json would write.
	doc, err := json.Marshal(e)
	require.NoError(t, err)
	var back apitoken.Event
	require.NoError(t, json.Unmarshal(doc, &back))
	require.Equal(t, e, back)
}

// TestAnEventIsAboutWhomItsTargetNames: whoever asks for all about one person, to show or to erase it, gets it.
func TestAnEventIsAboutWhomItsTargetNames(t *testing.T) {
	t.Parallel()
	svc := service(t, nil)
	ctx := context.Background()
	for _, target := range []apitoken.Target{apitoken.BySubject("alice"), apitoken.BySessions("alice"), apitoken.ByGrant("g").OwnedBy("alice")} {
		require.NoError(t, svc.Alert(ctx, apitoken.Event{Reason: "seen", Target: target}))
	}
	require.NoError(t, svc.Alert(ctx, apitoken.Event{Reason: "seen", Target: apitoken.BySubject("alice"), Subject: "bob"}))
	require.NoError(t, svc.Alert(ctx, apitoken.Event{Reason: "seen", Target: apitoken.ByGrant("g")}))
	require.Len(t, events(t, svc, apitoken.EventQuery{Subject: "alice"}), 3)
	require.Len(t, events(t, svc, apitoken.EventQuery{Subject: "bob"}), 1, "what the caller says counts")
}

// Each step of a token's life, and each change of who may take it, is in the log with all that there is to say.
func TestEachStepHasItsEvent(t *testing.T) {
	t.Parallel()
	svc := service(t, nil)
	origin := apitoken.Origin{Address: netip.MustParseAddr("192.0.2.1"), UserAgent: "curl", RequestID: "req-1"}
	ctx := apitoken.WithActor(apitoken.WithOrigin(context.Background(), origin), "operator")
	seen := len(events(t, svc, apitoken.EventQuery{}))
	step := func(err error, want apitoken.Event) {
		t.Helper()
		require.NoError(t, err)
		list := events(t, svc, apitoken.EventQuery{OldestFirst: true})
		require.Len(t, list, seen+1, "one event for each step")
		e := list[seen]
		seen++
		require.NotEmpty(t, e.ID)
		require.WithinDuration(t, time.Now(), e.Time, time.Hour)
		want.ID, want.Time, want.OK, want.Actor, want.Origin, want.Extra = e.ID, e.Time, true, "operator", origin, e.Extra
		require.Equal(t, want, e)
	}
	orders := apitoken.Scopes{"orders:read"}
	_, _, err := svc.Clients.Create(ctx, apitoken.Client{ID: "web", Scopes: orders, MayImpersonate: true, GrantTypes: []string{
		"authorization_code", "refresh_token", "urn:ietf:params:oauth:grant-type:token-exchange"}})
	step(err, apitoken.Event{Type: event.ClientChanged, Reason: "created", Client: "web", Scopes: orders})
	secret, err := svc.Clients.RotateSecret(ctx, "web", 0)
	step(err, apitoken.Event{Type: event.ClientChanged, Reason: "secret rotated", Client: "web", Scopes: orders})
	step(svc.SetRole(ctx, "clerk", orders), apitoken.Event{Type: event.RoleChanged, Reason: "clerk", Scopes: orders})

	auth := apitoken.ClientAuth{ID: "web", Secret: secret}
	i, err := svc.Issue(ctx, apitoken.Request{Auth: auth, Subject: "alice", Scopes: orders, Refresh: true})
	require.NoError(t, err)
	grant := i.Token.Grant()
	step(err, apitoken.Event{Type: event.Issued, Subject: "alice", Client: "web", TokenID: i.Token.ID(), Grant: grant, Scopes: orders})
	i, err = svc.Refresh(ctx, apitoken.RefreshRequest{Auth: auth, Token: i.Refresh.Reveal()})
	require.NoError(t, err)
	step(err, apitoken.Event{Type: event.Refreshed, Subject: "alice", Client: "web", TokenID: i.Token.ID(), Grant: grant, Scopes: orders})
	x, err := svc.Exchange(ctx, apitoken.ExchangeRequest{Auth: auth, Token: apitoken.Bearer(i.Access.Reveal())})
	require.NoError(t, err)
	step(err, apitoken.Event{Type: event.Exchanged, Subject: "alice", Client: "web", TokenID: x.Token.ID(), Grant: x.Token.Grant(), Scopes: orders})

	k, _, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "bob", Scopes: orders})
	step(err, apitoken.Event{Type: event.APIKeyChanged, Reason: "created", Subject: "bob", TokenID: k.ID, Scopes: orders})
	next, _, err := svc.APIKeys.Rotate(ctx, k.ID, time.Hour)
	step(err, apitoken.Event{Type: event.APIKeyChanged, Reason: "rotated from " + k.ID, Subject: "bob", TokenID: next.ID, Scopes: orders})
	step(svc.APIKeys.Revoke(ctx, next.ID, "lost"), apitoken.Event{Type: event.Revoked, Reason: "lost", Subject: "bob", TokenID: next.ID, Target: apitoken.ByToken(next.ID)})
	step(svc.Revoke(ctx, apitoken.ByGrant(grant), "logout"), apitoken.Event{Type: event.Revoked, Reason: "logout", Subject: "alice", Client: "web", Grant: grant, Target: apitoken.ByGrant(grant)})
	_, err = svc.Clients.Update(ctx, "web", func(c *apitoken.Client) error { c.Disabled = true; return nil })
	step(err, apitoken.Event{Type: event.ClientChanged, Reason: "disabled", Client: "web", Scopes: orders})
}

func TestEventQueries(t *testing.T) {
	t.Parallel()
	svc := service(t, nil)
	var want []string
	for range 450 {
		want = append(want, issue(t, svc, apitoken.Request{Subject: "alice"}).Token.ID())
	}
	issue(t, svc, apitoken.Request{Subject: "bob"})
	var got []string
	for _, e := range events(t, svc, apitoken.EventQuery{Subject: "alice", Type: event.Issued, OldestFirst: true}) {
		got = append(got, e.TokenID)
	}
	require.Equal(t, want, got, "in the order in which they happened, page after page")
	page, next, err := svc.EventPage(context.Background(), apitoken.EventQuery{Subject: "alice"}, "", 10)
	require.NoError(t, err)
	require.Len(t, page, 10)
	require.Equal(t, want[449], page[0].TokenID)
	page, _, err = svc.EventPage(context.Background(), apitoken.EventQuery{Subject: "alice"}, next, 10)
	require.NoError(t, err)
	require.Equal(t, want[439], page[0].TokenID)
	require.Empty(t, events(t, svc, apitoken.EventQuery{Subject: "alice", To: time.Now().Add(-time.Hour)}))
	require.Len(t, events(t, svc, apitoken.EventQuery{TokenID: want[7]}), 1)
}

func TestRefusalsAreCountedAndBounded(t *testing.T) {
	t.Parallel()
	svc := service(t, nil)
	i := issue(t, svc, aliceSession)
	require.NoError(t, svc.Revoke(context.Background(), apitoken.BySubject("alice"), "x"))
	for range 1000 {
		require.Error(t, validate(svc, i.Access))
		require.Error(t, validate(svc, apitoken.NewSecret("junk")))
	}
	list := events(t, svc, apitoken.EventQuery{Type: event.Refused})
	require.Len(t, list, 2, "summed up")
	byReason := map[string]apitoken.Event{}
	for _, e := range list {
		byReason[e.Reason] = e
		require.Equal(t, 1000, e.Count)
	}
	require.Equal(t, "alice", byReason["revoked"].Subject, "what an authentic token says is a fact")
	require.Empty(t, byReason["invalid"].Subject)
}

func TestNobodyCanFillTheDiskByBeingRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { // where no time passes, so that nothing is flushed meanwhile
		svc := serviceOn(t, memstore.New(), nil)
		for n := range 1000 {
			fresh := issue(t, svc, apitoken.Request{Subject: "mallory" + strings.Repeat("x", n%200)})
			require.NoError(t, svc.Revoke(context.Background(), apitoken.ByToken(fresh.Token.ID()), ""))
			require.Error(t, validate(svc, fresh.Access))
		}
		list := events(t, svc, apitoken.EventQuery{Type: event.Refused})
		require.LessOrEqual(t, len(list), 130)
		total := 0
		for _, e := range list {
			total += e.Count
		}
		require.Equal(t, 1000, total, "none is uncounted")
	})
}

// auditor keeps what it gets, and fails, hangs or panics when told to.
type auditor struct {
	mu   sync.Mutex
	got  []string
	mode atomic.Value // string
	hang chan struct{}
}

func (a *auditor) Audit(ctx context.Context, e apitoken.Event) error {
	switch a.mode.Load() {
	case "fail":
		return errors.New("disk full")
	case "panic":
		panic("boom")
	case "hang":
		<-a.hang
	case "slow":
		<-ctx.Done()
		return ctx.Err()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.got = append(a.got, e.ID)
	return nil
}

func (a *auditor) ids() map[string]int {
	a.mu.Lock()
	defer a.mu.Unlock()
	m := map[string]int{}
	for _, id := range a.got {
		m[id]++
	}
	return m
}

func TestSinksMissNothing(t *testing.T) {
	t.Parallel()
	st := tempStore(t)
	a := &auditor{hang: make(chan struct{})}
	defer close(a.hang)
	with := func(c *apitoken.Config) {
		c.Sinks = []apitoken.Sink{{Name: "siem", Auditor: a, Timeout: 20 * time.Millisecond}, {Name: "log", Auditor: export.NewSlogAuditor(slog.New(slog.DiscardHandler))}}
	}
	c := config(st)
	with(&c)
	svc, err := apitoken.New(c)
	require.NoError(t, err)
	other := serviceOn(t, st, with)
	all := func() bool {
		got := a.ids()
		for _, e := range events(t, other, apitoken.EventQuery{}) {
			if got[e.ID] == 0 {
				return false
			}
		}
		return true
	}
	for _, mode := range []string{"", "fail", "panic", "slow", ""} {
		a.mode.Store(mode)
		for range 20 {
			issue(t, svc, aliceSession)
		}
		began := time.Now()
		require.NoError(t, svc.Revoke(context.Background(), apitoken.BySubject("alice"), "x"))
		require.Less(t, time.Since(began), 30*time.Second, "revoking waits for no sink")
		if mode == "" {
			require.Eventually(t, all, 2*time.Minute, 10*time.Millisecond, "each event reaches the sink")
		}
	}
	before := len(a.ids())
	require.NoError(t, svc.Close())
	issue(t, other, aliceSession)
	require.Eventually(t, all, 2*time.Minute, 10*time.Millisecond, "the other process goes on where the first one was")
	require.Greater(t, len(a.ids()), before)
}

func TestARequiredSinkThatLagsStopsWhatGivesPower(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	c := &clock{}
	a := &auditor{hang: make(chan struct{})}
	svc := service(t, func(cfg *apitoken.Config) {
		cfg.Now = c.Now
		cfg.Sinks = []apitoken.Sink{{Name: "siem", Auditor: a, Timeout: 10 * time.Millisecond, MaxLag: time.Minute}}
	})
	i := issue(t, svc, aliceSession)
	x, _, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "bob"})
	require.NoError(t, err)
	a.mode.Store("hang")
	issue(t, svc, aliceSession)
	c.Advance(2 * time.Minute)
	require.Eventually(t, func() bool { _, err := svc.Issue(ctx, aliceSession); return errors.Is(err, apitoken.ErrUnavailable) }, 2*time.Minute, 10*time.Millisecond)
	_, err = refresh(svc, i.Refresh)
	require.ErrorIs(t, err, apitoken.ErrUnavailable)
	_, _, err = svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "bob"})
	require.ErrorIs(t, err, apitoken.ErrUnavailable)
	_, _, err = svc.Clients.Create(ctx, apitoken.Client{ID: "x", Public: true})
	require.ErrorIs(t, err, apitoken.ErrUnavailable)
	require.NoError(t, svc.Sync(ctx))
	require.NoError(t, validate(svc, i.Access), "validating goes on")
	require.NoError(t, svc.APIKeys.Revoke(ctx, x.ID, "x"), "and so does taking power away")
	require.NoError(t, svc.Revoke(ctx, apitoken.BySubject("alice"), "x"))
	require.ErrorIs(t, validate(svc, i.Access), apitoken.ErrRevoked)
	close(a.hang)
	a.mode.Store("")
	require.Eventually(t, func() bool { _, err := svc.Issue(ctx, aliceSession); return err == nil }, 2*time.Minute, 20*time.Millisecond, "it recovers by itself")
}

func TestSlogAuditor(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	a := export.NewSlogAuditor(slog.New(slog.NewJSONHandler(&b, nil)))
	require.NoError(t, a.Audit(context.Background(), apitoken.Event{ID: "1", Type: event.Refused, Reason: "expired", Count: 3}))
	require.NoError(t, a.Audit(context.Background(), apitoken.Event{ID: "2", Type: event.Issued, OK: true, Subject: "alice"}))
	lines := strings.Split(strings.TrimSpace(b.String()), "\n")
	require.Len(t, lines, 2)
	require.Contains(t, lines[0], `"level":"WARN"`)
	require.Contains(t, lines[0], `"count":3`)
	require.Contains(t, lines[1], `"level":"INFO"`)
	require.Contains(t, lines[1], `"subject":"alice"`)
}

func TestObserversSeeEachCallOnce(t *testing.T) {
	t.Parallel()
	svc := service(t, nil)
	var mu sync.Mutex
	seen := map[string]int{}
	stop := svc.Observe(observerFunc(func(_ context.Context, o apitoken.Observation) {
		mu.Lock()
		defer mu.Unlock()
		seen[o.Op]++
	}))
	i := issue(t, svc, aliceSession)
	require.NoError(t, validate(svc, i.Access))
	require.NoError(t, validate(svc, i.Access))
	_, err := refresh(svc, i.Refresh)
	require.NoError(t, err)
	require.NoError(t, svc.Revoke(context.Background(), apitoken.BySubject("alice"), "x"))
	stop()
	require.Error(t, validate(svc, i.Access))
	mu.Lock()
	defer mu.Unlock()
	delete(seen, "feed")
	delete(seen, "keys")
	require.Equal(t, map[string]int{"issue": 1, "validate": 2, "refresh": 1, "revoke": 1}, seen)
}

func TestObservationsNameTheClassOfARefusal(t *testing.T) {
	t.Parallel()
	for err, want := range map[error]string{nil: "", apitoken.ErrExpired: "expired", apitoken.ErrRevoked: "revoked",
		fmt.Errorf("wrapped: %w", apitoken.ErrUnavailable): "unavailable", errors.New("a host's own"): "other"} {
		require.Equal(t, want, apitoken.Observation{Err: err}.Reason())
	}
}

func TestBacklogTellsWhatIsNotWrittenYet(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	st := &faulty{Store: memstore.New()}
	a := &auditor{hang: make(chan struct{})}
	a.mode.Store("fail")
	clk := &clock{}
	svc := serviceOn(t, st, func(c *apitoken.Config) {
		c.Sinks, c.Now = []apitoken.Sink{{Name: "siem", Auditor: a}}, clk.Now
	})
	i := issue(t, svc, aliceSession)
	require.NoError(t, validate(svc, i.Access))
	require.Error(t, validate(svc, apitoken.NewSecret("junk")))
	b := svc.Backlog()
	require.Equal(t, 1, b.Uses, "one grant was used")
	require.Equal(t, 1, b.Refusals, "one kind of refusal")
	require.Zero(t, b.Revocations)
	clk.Advance(time.Minute)
	require.GreaterOrEqual(t, svc.Backlog().Sinks["siem"], time.Minute, "a sink that fails falls behind")

	st.onApply(func(context.Context, *store.Change) (error, error) { return errEngine, nil })
	require.ErrorIs(t, svc.Revoke(ctx, apitoken.BySubject("alice"), "x"), apitoken.ErrUnavailable)
	require.Equal(t, 1, svc.Backlog().Revocations, "in force here, unknown to others")
	st.onApply(nil)
	a.mode.Store("")

	fctx, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	fed := make(chan struct{}, 100)
	go func() {
		done <- svc.Feed(fctx, apitoken.Sink{Name: "ledger", Auditor: auditFunc(func(apitoken.Event) { fed <- struct{}{} })})
	}()
	<-fed
	require.Contains(t, svc.Backlog().Sinks, "ledger", "sinks that are attached later count too")
	stop()
	require.NoError(t, <-done)
	require.NotContains(t, svc.Backlog().Sinks, "ledger")
}

type auditFunc func(apitoken.Event)

func (f auditFunc) Audit(_ context.Context, e apitoken.Event) error { f(e); return nil }

type observerFunc func(context.Context, apitoken.Observation)

func (f observerFunc) Observe(ctx context.Context, o apitoken.Observation) { f(ctx, o) }

// A quiet service purges what its sink got long ago. That is no gap, and nothing is delivered twice.
func TestSinkBehindPurgedEvents(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	k := &clock{}
	st := memstore.NewWithClock(k.Now)
	sink := &gathered{}
	svc := serviceOn(t, st, func(c *apitoken.Config) {
		c.Now, c.KeepEvents = k.Now, time.Hour
		c.Sinks = []apitoken.Sink{{Name: "siem", Auditor: sink}}
	})
	for range 5 {
		issue(t, svc, aliceSession)
	}
	all := len(events(t, svc, apitoken.EventQuery{}))
	require.Eventually(t, func() bool { return len(sink.list()) == all }, 20*time.Second, 5*time.Millisecond)
	k.Advance(2 * time.Hour)
	require.NoError(t, svc.Sync(ctx))
	issue(t, svc, aliceSession)
	require.Eventually(t, func() bool { return len(sink.list()) == all+1 }, 20*time.Second, 5*time.Millisecond)
	k.Advance(50 * time.Minute)
	_, err := st.Purge(ctx, store.KindEvent, k.Now().UnixMilli(), 1000)
	require.NoError(t, err)
	i := issue(t, svc, aliceSession)
	require.Eventually(t, func() bool { return len(sink.list()) >= all+2 }, 20*time.Second, 5*time.Millisecond)
	for _, e := range events(t, svc, apitoken.EventQuery{}) {
		require.NotEqual(t, event.Alert, e.Type, e.Reason)
		if e.TokenID == i.Token.ID() {
			require.Contains(t, sink.list(), e.ID)
		}
	}
	seen := map[string]bool{}
	for _, id := range sink.list() {
		require.False(t, seen[id], "delivered twice")
		seen[id] = true
	}
}
