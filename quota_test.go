package apitoken_test

import (
	"context"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/memstore"
)

func sessionsLimited(n int) func(*apitoken.Config) {
	return func(c *apitoken.Config) { c.Limits.GrantsPerSubject = n }
}

func session(subject string) apitoken.Request {
	return apitoken.Request{Subject: subject, Refresh: true}
}

// living are the sessions of a subject, oldest first.
func living(t testing.TB, svc *apitoken.Service, subject string) (list []string) {
	t.Helper()
	for g, err := range svc.Grants(context.Background(), apitoken.BySubject(subject), apitoken.Page{}) {
		require.NoError(t, err)
		list = append(list, g.ID)
	}
	slices.Reverse(list)
	return list
}

// listed counts the listings of sessions and API keys that a service asks of its store.
type listed struct {
	store.Store
	subjects, scans atomic.Int64
}

func (l *listed) List(ctx context.Context, q store.Query) (store.Page, error) {
	switch {
	case q.Kind != "grant" && q.Kind != store.KindAPIKey:
	case q.Subject != "":
		l.subjects.Add(1)
	default:
		l.scans.Add(1)
	}
	return l.Store.List(ctx, q)
}

// Of logins at once as many sessions live as the limit allows, neither more nor fewer, whichever process they come to, and each
// login is answered.
func TestLoginsAtOnceLeaveAsManySessionsAsTheLimit(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	for _, limit := range []int{1, 3} {
		for _, ticket := range []bool{false, true} {
			st := tempStore(t)
			list := []*apitoken.Service{serviceOn(t, st, sessionsLimited(limit)), serviceOn(t, st, sessionsLimited(limit))}
			login := func(svc *apitoken.Service) (*apitoken.Issued, error) { return svc.Issue(ctx, session("alice")) }
			if ticket {
				login = func(svc *apitoken.Service) (*apitoken.Issued, error) {
					code, err := svc.Prepare(ctx, session("alice"), apitoken.Ticket{Lifetime: time.Minute})
					if err != nil {
						return nil, err
					}
					return svc.Redeem(ctx, apitoken.Redemption{Ticket: code.Reveal()})
				}
			}
			var wg sync.WaitGroup
			for i := range 12 {
				wg.Go(func() {
					if _, err := login(list[i%2]); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			for _, svc := range list {
				require.NoError(t, svc.Sync(ctx))
				require.Len(t, living(t, svc, "alice"), limit)
			}
			ended := events(t, list[0], apitoken.EventQuery{Type: event.Revoked, Subject: "alice"})
			require.Len(t, ended, 12-limit, "each that ended has its event")
			require.Equal(t, "over the limit of grants for one subject", ended[0].Reason)
		}
	}
}

// Where a service counts from its beginning, nothing is listed, however many sessions others have; what has ended makes room
// before anything that lives must go.
func TestSessionsAreCountedWithoutListings(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	at := &clock{}
	st := &listed{Store: memstore.NewWithClock(at.Now)}
	svc := serviceOn(t, st, func(c *apitoken.Config) {
		c.Now, c.Limits = at.Now, apitoken.Limits{GrantsPerSubject: 3, APIKeysPerSubject: 3}
	})
	login := func() string {
		at.Advance(time.Second)
		return issue(t, svc, session("alice")).Token.Grant()
	}
	a, b, c := login(), login(), login()
	require.NoError(t, svc.Revoke(ctx, apitoken.ByGrant(b), "logout"))
	d := login()
	require.Equal(t, []string{a, c, d}, living(t, svc, "alice"))
	asked := st.subjects.Load() // by living
	e := login()
	require.Equal(t, asked, st.subjects.Load())
	require.Equal(t, []string{c, d, e}, living(t, svc, "alice"))
	at.Advance(31 * 24 * time.Hour)
	require.NoError(t, svc.Sync(ctx))
	asked = st.subjects.Load()
	f := login()
	require.Equal(t, []string{f}, living(t, svc, "alice"))
	require.Equal(t, asked+2, st.subjects.Load(), "a record is counted anew after a week, and living asked once")

	key := func() (apitoken.APIKey, error) {
		k, _, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "bob"})
		return k, err
	}
	asked = st.subjects.Load()
	var keys []apitoken.APIKey
	for range 3 {
		k, err := key()
		require.NoError(t, err)
		keys = append(keys, k)
	}
	_, err := key()
	require.ErrorIs(t, err, apitoken.ErrLimited)
	for i := range keys {
		keys[i], _, err = svc.APIKeys.Rotate(ctx, keys[i].ID, time.Hour)
		require.NoError(t, err, "a successor takes the place of its predecessor")
	}
	_, err = key()
	require.ErrorIs(t, err, apitoken.ErrLimited)
	require.NoError(t, svc.APIKeys.Revoke(ctx, keys[1].ID, "lost"))
	_, err = key()
	require.NoError(t, err)
	_, err = key()
	require.ErrorIs(t, err, apitoken.ErrLimited)
	_, _, err = svc.APIKeys.For(issue(t, svc, apitoken.Request{Subject: "bob"}).Token).Create(ctx, apitoken.APIKeyRequest{})
	require.ErrorIs(t, err, apitoken.ErrLimited, "for the subject itself too")
	require.Equal(t, asked, st.subjects.Load())
	require.Zero(t, st.scans.Load())
}

// A limit that is set on a store in use finds what is there. Who has nothing from before is not listed; who has is, once.
func TestALimitIsSwitchedOn(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	at := &clock{}
	inner := memstore.NewWithClock(at.Now)
	run := func(limit int, f func(svc *apitoken.Service, st *listed)) {
		st := &listed{Store: inner}
		c := config(st)
		c.Now, c.Limits = at.Now, apitoken.Limits{GrantsPerSubject: limit, APIKeysPerSubject: limit}
		svc, err := apitoken.New(c)
		require.NoError(t, err)
		f(svc, st)
		require.NoError(t, svc.Close())
		at.Advance(time.Minute)
	}
	login := func(svc *apitoken.Service, subject string) string {
		at.Advance(time.Second)
		return issue(t, svc, session(subject)).Token.Grant()
	}
	var alice []string
	run(0, func(svc *apitoken.Service, _ *listed) {
		for range 12 { // more than end in one change
			alice = append(alice, login(svc, "alice"))
			_, _, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "alice"})
			require.NoError(t, err)
		}
	})
	run(2, func(svc *apitoken.Service, st *listed) {
		require.EqualValues(t, 2, st.scans.Load(), "sessions and API keys")
		login(svc, "carol")
		require.Zero(t, st.subjects.Load())
		next := login(svc, "alice")
		require.EqualValues(t, 1, st.subjects.Load())
		require.Equal(t, []string{alice[11], next}, living(t, svc, "alice"))
		st.subjects.Store(0)
		alice = []string{next, login(svc, "alice")}
		require.Zero(t, st.subjects.Load())
		_, _, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "alice"})
		require.ErrorIs(t, err, apitoken.ErrLimited)
		_, _, err = svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "carol"})
		require.NoError(t, err)
	})
	run(2, func(svc *apitoken.Service, st *listed) { // what the first has counted is believed
		alice = []string{alice[1], login(svc, "alice")}
		require.Zero(t, st.subjects.Load())
		require.Equal(t, alice, living(t, svc, "alice"))
	})
	run(0, func(svc *apitoken.Service, _ *listed) { alice = append(alice, login(svc, "alice"), login(svc, "dave")) })
	run(2, func(svc *apitoken.Service, _ *listed) {
		next := login(svc, "alice")
		require.Equal(t, []string{alice[2], next}, living(t, svc, "alice"), "what was opened while the limit was off is counted")
		require.Len(t, living(t, svc, "dave"), 1)
		login(svc, "dave")
		login(svc, "dave")
		require.Len(t, living(t, svc, "dave"), 2)
	})
	at.Advance(32 * 24 * time.Hour)
	run(2, func(svc *apitoken.Service, st *listed) {
		require.EqualValues(t, 1, st.scans.Load(), "of the API keys, which live on; no session is from before")
		login(svc, "erin")
		require.Zero(t, st.subjects.Load())
	})
}

// A process without the limit that runs beside one with it, against the rule, is made up for within a week.
func TestAProcessWithoutTheLimit(t *testing.T) {
	t.Parallel()
	at := &clock{}
	st := memstore.NewWithClock(at.Now)
	with := func(limit int) func(*apitoken.Config) {
		return func(c *apitoken.Config) { c.Now, c.Limits.GrantsPerSubject = at.Now, limit }
	}
	without := serviceOn(t, st, with(0))
	svc := serviceOn(t, st, with(2))
	login := func(svc *apitoken.Service) {
		at.Advance(time.Second)
		issue(t, svc, session("alice"))
	}
	login(svc)
	for range 3 {
		login(without)
	}
	login(svc)
	require.Len(t, living(t, svc, "alice"), 5)
	at.Advance(7 * 24 * time.Hour)
	login(svc)
	require.Len(t, living(t, svc, "alice"), 2)
}

// Count and session are one write: an engine that fails before it, or says that it failed and did it, leaves a count that is right
// for the next process.
func TestAnEngineThatFailsWhileItCounts(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	for name, fail := range map[string]func(context.Context, *store.Change) (before, after error){
		"not done":          func(context.Context, *store.Change) (before, after error) { return errEngine, nil },
		"done all the same": func(context.Context, *store.Change) (before, after error) { return nil, errEngine },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			st := &faulty{Store: tempStore(t)}
			c := config(st)
			c.Limits = apitoken.Limits{GrantsPerSubject: 2, APIKeysPerSubject: 2}
			svc, err := apitoken.New(c)
			require.NoError(t, err)
			issue(t, svc, session("alice"))
			_, _, err = svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "alice"})
			require.NoError(t, err)
			st.onApply(fail)
			_, err = svc.Issue(ctx, session("alice"))
			require.ErrorIs(t, err, apitoken.ErrUnavailable)
			_, _, err = svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "alice"})
			require.ErrorIs(t, err, apitoken.ErrUnavailable)
			_ = svc.Close() // its last writes fail

			st.onApply(nil)
			svc = serviceOn(t, st, func(x *apitoken.Config) { x.Limits = c.Limits })
			for range 3 {
				issue(t, svc, session("alice"))
			}
			require.Len(t, living(t, svc, "alice"), 2)
			made := 1
			if name != "not done" {
				made = 2
			}
			for ; made < 2; made++ {
				_, _, err = svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "alice"})
				require.NoError(t, err)
			}
			_, _, err = svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "alice"})
			require.ErrorIs(t, err, apitoken.ErrLimited)
		})
	}
}

// A record that cannot be read, such as one of an older version, which has no content, is made anew from what is there.
func TestADamagedCountIsRepaired(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	st := &listed{Store: memstore.New()}
	svc := serviceOn(t, st, func(c *apitoken.Config) { c.Limits = apitoken.Limits{GrantsPerSubject: 2, APIKeysPerSubject: 2} })
	for n, data := range []string{"", "junk", `{"v":2}`, `{"v":1,"epoch":"","counted":0,"ids":"AA=="}`, `{"v":1,"epoch":"","counted":99999999999999}`} {
		subject := "user " + strconv.Itoa(n)
		for range 2 {
			issue(t, svc, session(subject))
			_, _, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: subject})
			require.NoError(t, err)
		}
		page, err := st.Store.List(ctx, store.Query{Kind: "quota"})
		require.NoError(t, err)
		for i, r := range page.Records {
			if len(r.ID) != 64 {
				continue
			}
			r.Data = []byte(data)
			_, err := st.Apply(ctx, &store.Change{ID: store.Version{1, byte(n), byte(i)}, Puts: []store.Put{{Record: r, Expect: r.Version}}})
			require.NoError(t, err)
		}
		st.subjects.Store(0)
		last := issue(t, svc, session(subject))
		_, _, err = svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: subject})
		require.ErrorIs(t, err, apitoken.ErrLimited, data)
		require.EqualValues(t, 2, st.subjects.Load(), data)
		list := living(t, svc, subject)
		require.Len(t, list, 2, data)
		require.Contains(t, list, last.Token.Grant())
	}
}

// The time that a login waits for its turn is the caller's.
func TestALoginWaitsAsLongAsItsCaller(t *testing.T) {
	t.Parallel()
	st := &faulty{Store: memstore.New()}
	svc := serviceOn(t, st, sessionsLimited(1))
	held, in := make(chan struct{}), make(chan struct{})
	var once sync.Once
	st.onApply(func(context.Context, *store.Change) (before, after error) {
		once.Do(func() { close(in); <-held })
		return nil, nil
	})
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := svc.Issue(context.Background(), session("alice")); err != nil {
			t.Error(err)
		}
	})
	<-in
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	_, err := svc.Issue(ctx, session("alice"))
	require.ErrorIs(t, err, apitoken.ErrUnavailable)
	close(held)
	wg.Wait()
	require.Len(t, living(t, svc, "alice"), 1)
}

// Where most who log in are new, the store is not asked first whether they have a record; where one is not new after all, the
// count is right all the same.
func TestNewSubjectsAreTakenToHaveNothing(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	st := &asked{Store: memstore.New()}
	list := []*apitoken.Service{serviceOn(t, st, sessionsLimited(1)), serviceOn(t, st, sessionsLimited(1))}
	for i, svc := range list {
		for n := range 40 {
			issue(t, svc, session("new "+strconv.Itoa(i)+" "+strconv.Itoa(n)))
		}
	}
	before := st.counts.Load()
	issue(t, list[0], session("another"))
	require.Equal(t, before, st.counts.Load())
	for n := range 8 {
		subject := "alice " + strconv.Itoa(n)
		var wg sync.WaitGroup
		for _, svc := range list {
			wg.Go(func() {
				for range 2 {
					if _, err := svc.Issue(ctx, session(subject)); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		for _, svc := range list {
			require.NoError(t, svc.Sync(ctx))
			require.Len(t, living(t, svc, subject), 1)
		}
	}
}

// asked counts the reads of subjects' records.
type asked struct {
	store.Store
	counts atomic.Int64
}

func (a *asked) Get(ctx context.Context, k store.Kind, id string) (store.Record, error) {
	if k == "quota" {
		a.counts.Add(1)
	}
	return a.Store.Get(ctx, k, id)
}

// distant answers each question after a round trip.
type distant struct {
	store.Store
	trip atomic.Int64 // ns
}

func (d *distant) Get(ctx context.Context, kind store.Kind, id string) (store.Record, error) {
	time.Sleep(time.Duration(d.trip.Load()))
	return d.Store.Get(ctx, kind, id)
}

func (d *distant) List(ctx context.Context, q store.Query) (store.Page, error) {
	time.Sleep(time.Duration(d.trip.Load()))
	return d.Store.List(ctx, q)
}

func (d *distant) Apply(ctx context.Context, c *store.Change) (store.Commit, error) {
	time.Sleep(time.Duration(d.trip.Load()))
	return d.Store.Apply(ctx, c)
}

// A subject's sessions and API keys are read sixteen at a time: a login at a limit of sixteen takes five round trips, not thirty-five.
func TestRecordsAreReadSixteenAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit, trip = 16, 100 * time.Millisecond
		ctx := t.Context()
		st := &distant{Store: memstore.New()}
		svc, err := apitoken.New(apitoken.Config{Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: st, InsecureKeysInStore: true,
			Limits: apitoken.Limits{GrantsPerSubject: limit, APIKeysPerSubject: limit}})
		require.NoError(t, err)
		defer svc.Close()
		var keys []string
		var tokens []apitoken.Secret
		for range limit {
			time.Sleep(time.Second)
			tokens = append(tokens, issue(t, svc, session("alice")).Access)
			k, _, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "alice", MaxUses: 100, Metadata: map[string]string{"team": "red"}})
			require.NoError(t, err)
			keys = append(keys, k.ID)
		}
		slices.Reverse(keys)
		trips := func(f func()) int {
			st.trip.Store(int64(trip))
			defer st.trip.Store(0)
			began := time.Now()
			f()
			return int(time.Since(began) / trip)
		}

		require.Equal(t, 3, trips(func() {
			found, _, err := svc.APIKeys.Find(ctx, apitoken.APIKeyQuery{Metadata: map[string]string{"team": "red"}})
			require.NoError(t, err)
			require.Len(t, found, limit)
			for i, k := range found {
				require.Equal(t, keys[i], k.ID)
			}
		}))
		require.Equal(t, 2, trips(func() {
			_, _, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "alice"})
			require.ErrorIs(t, err, apitoken.ErrLimited)
		}), "the count, and the keys")
		require.Equal(t, 5, trips(func() { issue(t, svc, session("alice")) }), "the count, the sessions, their uses, what descends from one, and the write")

		for _, secret := range tokens[1:] {
			_, err := svc.Validate(ctx, apitoken.Bearer(secret.Reveal()))
			require.NoError(t, err)
		}
		require.Equal(t, 2, trips(func() { require.NoError(t, svc.Close()) }), "what is stored of the uses, and the write")
	})
}
