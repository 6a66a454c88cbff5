package report_test

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/report"
	"github.com/apitoken-go/apitoken/store/boltstore"
	"github.com/apitoken-go/apitoken/store/memstore"
)

// letters are what was told, in order.
type letters struct {
	mu   sync.Mutex
	list []report.Announcement
	err  error
}

func (l *letters) tell(_ context.Context, a report.Announcement) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return l.err
	}
	l.list = append(l.list, a)
	return nil
}

func (l *letters) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = err
}

// take returns what was told since, as "name distance in days".
func (l *letters) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []string
	for _, a := range l.list {
		out = append(out, a.Name+" "+time.Duration(a.Distance/day).String())
	}
	l.list = nil
	slices.Sort(out)
	return out
}

// announcer never begins a round by itself within a test.
func announcer(t testing.TB, svc *apitoken.Service, c report.AnnouncerConfig) *report.Announcer {
	t.Helper()
	c.Every = -1
	a, err := report.Announce(svc, c)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, a.Close()) })
	return a
}

func round(t testing.TB, a *report.Announcer) int {
	t.Helper()
	n, err := a.Round(context.Background())
	require.NoError(t, err)
	return n
}

func newKey(t testing.TB, svc *apitoken.Service, name string, life time.Duration) apitoken.APIKey {
	t.Helper()
	k, _, err := svc.APIKeys.Create(context.Background(), apitoken.APIKeyRequest{Subject: "alice", Name: name, Expires: svc.Adapter().Now().Add(life)})
	require.NoError(t, err)
	return k
}

func days(name string, n int) string { return name + " " + time.Duration(n).String() }

func TestAnnouncementsComeOnceAtEachDistanceFromTwoProcesses(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	clk := &clock{}
	st := memstore.New()
	withClock := func(c *apitoken.Config) { c.Now = clk.Now }
	one, two := service(t, st, withClock), service(t, st, withClock)
	var l letters
	a, b := announcer(t, one, report.AnnouncerConfig{Tell: l.tell}), announcer(t, two, report.AnnouncerConfig{Tell: l.tell})
	both := func() []string {
		var wg sync.WaitGroup
		for range 4 {
			for _, x := range []*report.Announcer{a, b} {
				wg.Go(func() {
					if _, err := x.Round(ctx); err != nil {
						t.Error(err)
					}
				})
			}
		}
		wg.Wait()
		return l.take()
	}
	newKey(t, one, "long", 40*day)
	newKey(t, one, "week", 8*day)
	gone := newKey(t, one, "gone", 40*day)
	_, err := one.Issue(ctx, apitoken.Request{Subject: "alice", Refresh: true})
	require.NoError(t, err)
	require.Empty(t, both(), "a key made a week before its end is not announced a month before it")

	clk.Advance(2 * day)
	require.Equal(t, []string{days("week", 7)}, both())
	clk.Advance(9 * day)
	require.NoError(t, one.APIKeys.Revoke(ctx, gone.ID, ""))
	require.NoError(t, two.Sync(ctx))
	require.Equal(t, []string{days("long", 30)}, both(), "once, from eight rounds at once in two processes; not what was revoked")
	clk.Advance(day)
	require.Empty(t, both())
	clk.Advance(28*day - time.Hour) // through a week before the end and a day before it
	require.Equal(t, []string{days("long", 1)}, both(), "after a gap the nearest distance only, not one letter for each")
	clk.Advance(2 * day)
	require.Empty(t, both(), "what has ended is not announced")
}

func TestAnnouncementsAreRememberedAcrossRestarts(t *testing.T) {
	t.Parallel()
	clk := &clock{}
	path := filepath.Join(t.TempDir(), "tokens.db")
	var l letters
	run := func(f func(*apitoken.Service, *report.Announcer)) {
		st, err := boltstore.Open(path, nil)
		require.NoError(t, err)
		svc, err := apitoken.New(apitoken.Config{Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: st, InsecureKeysInStore: true, Now: clk.Now})
		require.NoError(t, err)
		a, err := report.Announce(svc, report.AnnouncerConfig{Tell: l.tell, Every: -1})
		require.NoError(t, err)
		f(svc, a)
		require.NoError(t, a.Close())
		require.NoError(t, svc.Close())
		require.NoError(t, st.Close())
	}
	run(func(svc *apitoken.Service, a *report.Announcer) {
		newKey(t, svc, "k", 40*day)
		clk.Advance(11 * day)
		require.NoError(t, svc.Sync(context.Background()))
		require.Equal(t, 1, round(t, a))
	})
	require.Equal(t, []string{days("k", 30)}, l.take())
	for range 3 {
		run(func(_ *apitoken.Service, a *report.Announcer) { require.Zero(t, round(t, a)) })
	}
	require.Empty(t, l.take(), "told by a process that is gone")
	clk.Advance(23 * day)
	run(func(_ *apitoken.Service, a *report.Announcer) { require.Equal(t, 1, round(t, a)) })
	require.Equal(t, []string{days("k", 7)}, l.take())
}

func TestAnAnnouncementThatFailedIsTriedAgain(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	clk := &clock{}
	svc := service(t, memstore.New(), func(c *apitoken.Config) { c.Now = clk.Now })
	var l letters
	a := announcer(t, svc, report.AnnouncerConfig{Tell: func(ctx context.Context, x report.Announcement) error {
		if x.Name == "panics" {
			panic("boom")
		}
		return l.tell(ctx, x)
	}})
	newKey(t, svc, "k", 40*day)
	newKey(t, svc, "panics", 40*day)
	clk.Advance(11 * day)
	require.NoError(t, svc.Sync(ctx))
	l.fail(errors.New("mail server down"))
	n, err := a.Round(ctx)
	require.Zero(t, n)
	require.ErrorContains(t, err, "mail server down")
	require.ErrorContains(t, err, "panicked")
	l.fail(nil)
	n, err = a.Round(ctx)
	require.Equal(t, 1, n, "one that fails does not hold up the others")
	require.ErrorContains(t, err, "panicked")
	require.Equal(t, []string{days("k", 30)}, l.take())
}

func TestSecretsAndSessionsAreAnnounced(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	clk := &clock{}
	svc := service(t, memstore.New(), func(c *apitoken.Config) { c.Now, c.Lifetimes.Grant = clk.Now, 5*day })
	var l letters
	a := announcer(t, svc, report.AnnouncerConfig{Tell: l.tell, Grants: true, At: []time.Duration{2 * day, 2 * day}})
	_, _, err := svc.Clients.Create(ctx, apitoken.Client{ID: "batch", Name: "Batch", GrantTypes: []string{"client_credentials"}})
	require.NoError(t, err)
	clk.Advance(time.Hour)
	_, err = svc.Clients.RotateSecret(ctx, "batch", 5*day)
	require.NoError(t, err)
	i, err := svc.Issue(ctx, apitoken.Request{Subject: "alice", Refresh: true})
	require.NoError(t, err)
	clk.Advance(4 * day)
	require.NoError(t, svc.Sync(ctx))
	require.Equal(t, 2, round(t, a))
	var secret, grant report.Announcement
	for _, x := range l.list {
		if x.Kind == "secret" {
			secret = x
		} else {
			grant = x
		}
	}
	require.Equal(t, "batch", secret.Owner)
	require.Equal(t, "alice", grant.Owner)
	e := grant.Event()
	require.Equal(t, i.Token.Grant(), e.Grant)
	require.Equal(t, "alice", e.Subject)
	require.Equal(t, "23", e.Extra["hours_left"])
	require.Equal(t, "batch", secret.Event().Client)
	require.Empty(t, secret.Event().Subject, "a client is no subject")
	require.NoError(t, svc.Alert(ctx, e), "an announcement may go into the audit log, and so to every sink")
}

func TestByOwner(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, memstore.New(), nil)
	newKey(t, svc, "later", 20*day)
	newKey(t, svc, "sooner", 10*day)
	_, _, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "aaron", Name: "his", Expires: svc.Adapter().Now().Add(15 * day)})
	require.NoError(t, err)
	owners, err := report.ByOwner(svc.Expiring(ctx, svc.Adapter().Now().Add(30*day), false))
	require.NoError(t, err)
	var got []string
	for _, o := range owners {
		for _, x := range o.Items {
			got = append(got, o.Name+" "+x.Name)
		}
	}
	require.Equal(t, []string{"aaron his", "alice sooner", "alice later"}, got)
	_, err = report.ByOwner(func(yield func(apitoken.Expiry, error) bool) { yield(apitoken.Expiry{}, errEngine) })
	require.ErrorIs(t, err, errEngine)
}

func TestTheAnnouncerRunsByItself(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		svc, err := apitoken.New(apitoken.Config{Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: memstore.New(), InsecureKeysInStore: true})
		require.NoError(t, err)
		var l letters
		a, err := report.Announce(svc, report.AnnouncerConfig{Tell: l.tell, At: []time.Duration{time.Hour}, Every: 10 * time.Minute})
		require.NoError(t, err)
		newKey(t, svc, "k", 2*time.Hour)
		time.Sleep(50 * time.Minute) // of the bubble's clock
		require.Empty(t, l.take())
		time.Sleep(25 * time.Minute)
		require.Len(t, l.take(), 1, "within a round of the distance")
		time.Sleep(2 * time.Hour)
		require.Empty(t, l.take())
		require.NoError(t, a.Close())
		require.NoError(t, svc.Close())
	})
}

func TestWhatAnnounceRefuses(t *testing.T) {
	t.Parallel()
	svc := service(t, memstore.New(), nil)
	tell := func(context.Context, report.Announcement) error { return nil }
	for why, c := range map[string]report.AnnouncerConfig{
		"nobody to tell":       {},
		"rounds without pause": {Tell: tell, Every: time.Millisecond},
		"rounds too far apart": {Tell: tell, At: []time.Duration{time.Minute}},
		"no distances":         {Tell: tell, At: []time.Duration{}},
		"a distance behind":    {Tell: tell, At: []time.Duration{-day, day}},
	} {
		_, err := report.Announce(svc, c)
		require.Error(t, err, why)
	}
	_, err := report.Announce(nil, report.AnnouncerConfig{Tell: tell})
	require.Error(t, err)
}
