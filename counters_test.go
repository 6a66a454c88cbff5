package apitoken_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/memstore"
)

func usageOf(t testing.TB, svc *apitoken.Service, target apitoken.Target) apitoken.Usage {
	t.Helper()
	u, err := svc.Usage(context.Background(), target)
	require.NoError(t, err)
	return u
}

func from(addr string) context.Context {
	return apitoken.WithOrigin(context.Background(), apitoken.Origin{Address: netip.MustParseAddr(addr)})
}

func authorize(svc *apitoken.Service, ctx context.Context, s apitoken.Secret, r apitoken.Requirement) error {
	_, err := apitoken.Authorize(ctx, svc, apitoken.Bearer(s.Reveal()), r)
	return err
}

func TestUsageTellsWhichScopesWereUsedAndFromWhere(t *testing.T) {
	t.Parallel()
	st := tempStore(t)
	svc := serviceOn(t, st, nil)
	i := issue(t, svc, apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"orders", "users:read", "users:write"}, Refresh: true})
	grant := apitoken.ByGrant(i.Token.Grant())
	require.Zero(t, usageOf(t, svc, grant))

	require.NoError(t, authorize(svc, from("192.0.2.1"), i.Access, apitoken.AllOf("orders:read")))
	require.NoError(t, authorize(svc, from("192.0.2.2"), i.Access, apitoken.AllOf("orders:read")))
	require.NoError(t, authorize(svc, from("192.0.2.1"), i.Access, apitoken.AnyOf("admin", "users:read", "orders")))
	require.NoError(t, authorize(svc, from("192.0.2.1"), i.Access, apitoken.Authenticated()))
	require.Error(t, authorize(svc, from("192.0.2.1"), i.Access, apitoken.AllOf("users:write", "admin")))
	want := apitoken.Scopes{"orders:read", "users:read"}
	u := usageOf(t, svc, grant)
	require.Equal(t, uint64(5), u.Count)
	require.Equal(t, want, u.Scopes, "as they were asked for; of several the one that was held; of a refusal none")
	require.Equal(t, []string{"192.0.2.1", "192.0.2.2"}, u.Addresses, "the latest first")

	// The next token of the grant, in a process that is started later, adds to the same.
	require.NoError(t, svc.Close())
	again := serviceOn(t, st, nil)
	require.Equal(t, u, usageOf(t, again, grant), "written at Close")
	next, err := refresh(again, i.Refresh)
	require.NoError(t, err)
	require.NoError(t, authorize(again, from("192.0.2.3"), next.Access, apitoken.AllOf("users:write")))
	u = usageOf(t, again, grant)
	require.Equal(t, apitoken.Scopes{"orders:read", "users:read", "users:write"}, u.Scopes)
	require.Equal(t, []string{"192.0.2.3", "192.0.2.1", "192.0.2.2"}, u.Addresses)
	for g, err := range again.Grants(context.Background(), apitoken.BySubject("alice"), apitoken.Page{}) {
		require.NoError(t, err)
		require.Equal(t, u.Scopes, g.UsedScopes)
	}

	k, secret, err := again.APIKeys.Create(context.Background(), apitoken.APIKeyRequest{Subject: "bob", Scopes: apitoken.Scopes{"orders"}})
	require.NoError(t, err)
	require.NoError(t, authorize(again, from("192.0.2.9"), secret, apitoken.AllOf("orders:write")))
	k, err = again.APIKeys.Get(context.Background(), k.ID)
	require.NoError(t, err)
	require.Equal(t, apitoken.Scopes{"orders:write"}, k.UsedScopes)
	require.Equal(t, apitoken.Scopes{"orders:write"}, usageOf(t, again, apitoken.ByToken(k.ID)).Scopes)

	_, err = again.Usage(context.Background(), apitoken.BySubject("alice"))
	require.ErrorIs(t, err, apitoken.ErrInvalidRequest)
	_, err = again.Usage(context.Background(), grant.OwnedBy("alice"))
	require.ErrorIs(t, err, apitoken.ErrInvalidRequest)
}

// TestScopesUsedBehindAFlushAreNotLost: the count of the only use is taken before its scope is known.
func TestScopesUsedBehindAFlushAreNotLost(t *testing.T) {
	t.Parallel()
	st := memstore.New()
	svc := serviceOn(t, st, nil)
	i := issue(t, svc, aliceSession)
	c := apitoken.Bearer(i.Access.Reveal())
	tok, err := svc.Validate(context.Background(), c)
	require.NoError(t, err)
	apitoken.FlushUses(svc)
	_, err = apitoken.Authorize(context.Background(), validated{tok}, c, apitoken.AllOf("orders:read"))
	require.NoError(t, err)
	apitoken.FlushUses(svc)
	other := serviceOn(t, st, nil)
	u := usageOf(t, other, apitoken.ByGrant(i.Token.Grant()))
	require.Equal(t, uint64(1), u.Count)
	require.Equal(t, apitoken.Scopes{"orders:read"}, u.Scopes)
}

// validated answers with a token that was validated before.
type validated struct{ t apitoken.Token }

func (v validated) Validate(context.Context, apitoken.Credential) (apitoken.Token, error) {
	return v.t, nil
}

func TestUsedScopesAreBoundedAndSurviveAFailedWrite(t *testing.T) {
	t.Parallel()
	st := &faulty{Store: memstore.New()}
	svc := serviceOn(t, st, nil)
	i := issue(t, svc, apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"all"}})
	st.onApply(func(_ context.Context, c *store.Change) (error, error) { return errEngine, nil })
	var wg sync.WaitGroup
	for n := range 100 {
		wg.Go(func() {
			addr := fmt.Sprintf("192.0.2.%d", n)
			if err := authorize(svc, from(addr), i.Access, apitoken.AllOf(apitoken.Scope(fmt.Sprintf("all:%d", n)))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	apitoken.FlushUses(svc) // fails
	st.onApply(nil)
	apitoken.FlushUses(svc)
	u := usageOf(t, serviceOn(t, st, nil), apitoken.ByGrant(i.Token.Grant()))
	require.Equal(t, uint64(100), u.Count, "what could not be written is counted on")
	require.Len(t, u.Scopes, 32)
	require.LessOrEqual(t, len(u.Addresses), 8)
	require.NotEmpty(t, u.Addresses)
}

// Whoever has old tokens can show them as often as he likes: they take no room from those that are good.
func TestRefusedTokensTakeNoRoomOfUses(t *testing.T) {
	t.Parallel()
	svc := serviceOn(t, tempStore(t), func(c *apitoken.Config) { c.Validation.Cache = apitoken.NewCache(0) })
	bad := issue(t, svc, apitoken.Request{Subject: "mallory"})
	require.NoError(t, svc.Revoke(context.Background(), apitoken.ByGrant(bad.Token.Grant()), "test"))
	_, err := svc.Validate(context.Background(), apitoken.Bearer(bad.Access.Reveal()))
	require.ErrorIs(t, err, apitoken.ErrRevoked)
	svc.Explain(context.Background(), apitoken.Bearer(bad.Access.Reveal()), apitoken.Authenticated())
	require.Zero(t, apitoken.UseCounters(svc))

	good := issue(t, svc, apitoken.Request{Subject: "alice"})
	for range 3 {
		_, err := svc.Validate(context.Background(), apitoken.Bearer(good.Access.Reveal()))
		require.NoError(t, err)
	}
	require.Equal(t, 1, apitoken.UseCounters(svc))
	require.Equal(t, uint64(3), usageOf(t, svc, apitoken.ByGrant(good.Token.Grant())).Count)
}

func TestExplainCountsNothing(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	i := issue(t, svc, aliceSession)
	k, secret, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "bob"})
	require.NoError(t, err)
	require.NoError(t, svc.Explain(ctx, apitoken.Bearer(i.Access.Reveal()), apitoken.Authenticated()).Err)
	require.NoError(t, svc.Explain(ctx, apitoken.Bearer(secret.Reveal()), apitoken.Authenticated()).Err)
	require.Zero(t, usageOf(t, svc, apitoken.ByGrant(i.Token.Grant())))
	require.Zero(t, usageOf(t, svc, apitoken.ByToken(k.ID)))
}

func TestExchangesNameWhatTheyDescendFrom(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	_, secret, err := svc.Clients.Create(ctx, apitoken.Client{ID: "orders", GrantTypes: []string{"urn:ietf:params:oauth:grant-type:token-exchange"}, Scopes: apitoken.Scopes{"orders:read"}, MayImpersonate: true})
	require.NoError(t, err)
	i := issue(t, svc, aliceSession)
	_, err = svc.Exchange(ctx, apitoken.ExchangeRequest{Auth: apitoken.ClientAuth{ID: "orders", Secret: secret}, Token: apitoken.Bearer(i.Access.Reveal())})
	require.NoError(t, err)
	list := events(t, svc, apitoken.EventQuery{Type: event.Exchanged})
	require.Len(t, list, 1)
	require.Contains(t, list[0].Extra["chain"], i.Token.Grant())
	require.Contains(t, list[0].Extra["chain"], i.Token.ID())
}

func TestDoOnce(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	st := tempStore(t)
	clk := &clock{}
	withClock := func(c *apitoken.Config) { c.Now = clk.Now }
	one, two := serviceOn(t, st, withClock), serviceOn(t, st, withClock)
	until := time.Now().Add(24 * time.Hour)
	var calls atomic.Int64
	count := func(context.Context) error { calls.Add(1); return nil }

	var did atomic.Int64
	var wg sync.WaitGroup
	for n := range 16 {
		wg.Go(func() {
			svc := []*apitoken.Service{one, two}[n%2]
			done, err := svc.Adapter().DoOnce(ctx, "letter", until, count)
			if err != nil && !errors.Is(err, apitoken.ErrLimited) {
				t.Error(err)
			}
			if done {
				did.Add(1)
			}
		})
	}
	wg.Wait()
	require.Equal(t, int64(1), calls.Load(), "in two processes and by sixteen callers")
	require.Equal(t, int64(1), did.Load())
	clk.Advance(time.Hour)
	three := serviceOn(t, st, withClock)
	done, err := three.Adapter().DoOnce(ctx, "letter", until, count)
	require.NoError(t, err, "done before")
	require.False(t, done)
	require.Equal(t, int64(1), calls.Load())

	done, err = one.Adapter().DoOnce(ctx, "second", until, func(context.Context) error { return errEngine })
	require.ErrorIs(t, err, errEngine)
	require.False(t, done)
	done, err = two.Adapter().DoOnce(ctx, "second", until, func(context.Context) error {
		_, err := one.Adapter().DoOnce(ctx, "second", until, count)
		require.ErrorIs(t, err, apitoken.ErrLimited, "somebody is at it")
		return nil
	})
	require.NoError(t, err, "what failed is tried again at once")
	require.True(t, done)

	// A process that dies within f leaves its lease to whoever comes a minute later.
	func() {
		defer func() { require.Equal(t, "dies", recover()) }()
		_, _ = one.Adapter().DoOnce(ctx, "third", until, func(context.Context) error { panic("dies") })
	}()
	_, err = two.Adapter().DoOnce(ctx, "third", until, count)
	require.ErrorIs(t, err, apitoken.ErrLimited)
	clk.Advance(61 * time.Second)
	done, err = two.Adapter().DoOnce(ctx, "third", until, count)
	require.NoError(t, err)
	require.True(t, done)

	// A caller that goes meanwhile does not have it done twice.
	gone, leave := context.WithCancel(ctx)
	done, err = one.Adapter().DoOnce(gone, "fourth", until, func(context.Context) error { leave(); return nil })
	require.NoError(t, err)
	require.True(t, done)
	done, err = two.Adapter().DoOnce(ctx, "fourth", until, count)
	require.NoError(t, err)
	require.False(t, done)

	_, err = one.Adapter().DoOnce(ctx, "", until, count)
	require.ErrorIs(t, err, apitoken.ErrInvalidRequest)
}

func TestExpiringListsWhatLivesAndEnds(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	clk := &clock{}
	svc := service(t, func(c *apitoken.Config) { c.Now, c.Lifetimes.Grant = clk.Now, 20*24*time.Hour })
	day := 24 * time.Hour
	key := func(name string, life time.Duration) apitoken.APIKey {
		r := apitoken.APIKeyRequest{Subject: "alice", Name: name}
		if life > 0 {
			r.Expires = clk.Now().Add(life)
		}
		k, _, err := svc.APIKeys.Create(ctx, r)
		require.NoError(t, err)
		return k
	}
	key("soon", 10*day)
	key("late", 100*day)
	key("never", 0)
	require.NoError(t, svc.APIKeys.Revoke(ctx, key("revoked", 10*day).ID, ""))
	rotated := key("rotated", 0)
	_, _, err := svc.APIKeys.Rotate(ctx, rotated.ID, 5*day)
	require.NoError(t, err)
	_, _, err = svc.Clients.Create(ctx, apitoken.Client{ID: "batch", Name: "Batch", GrantTypes: []string{"client_credentials"}})
	require.NoError(t, err)
	_, err = svc.Clients.RotateSecret(ctx, "batch", 3*day)
	require.NoError(t, err)
	issue(t, svc, aliceSession)

	names := func(before time.Duration, grants bool) map[string]string {
		out := map[string]string{}
		for x, err := range svc.Expiring(ctx, clk.Now().Add(before), grants) {
			require.NoError(t, err)
			require.False(t, x.Ends.Before(x.Created))
			out[x.Kind+" "+x.Name] = x.Owner
		}
		return out
	}
	require.Equal(t, map[string]string{"apikey soon": "alice", "apikey rotated": "alice", "secret Batch": "batch"}, names(30*day, false))
	require.Equal(t, map[string]string{"apikey soon": "alice", "apikey rotated": "alice", "secret Batch": "batch", "grant ": "alice"}, names(30*day, true))
	require.Equal(t, map[string]string{"secret Batch": "batch"}, names(4*day, true))
	clk.Advance(6 * day)
	require.NoError(t, svc.Sync(ctx))
	require.Equal(t, map[string]string{"apikey soon": "alice"}, names(5*day, false), "what has ended is no longer listed")

	for _, last := range []time.Time{time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC), time.Unix(1<<40, 0), time.Unix(1<<61, 0), time.Unix(1<<63-1-62135596800, 999_999_999)} {
		var all []string
		for x, err := range svc.Expiring(ctx, last, true) {
			require.NoError(t, err)
			all = append(all, x.Kind+" "+x.Name)
		}
		slices.Sort(all)
		require.Equal(t, []string{"apikey late", "apikey soon", "grant "}, all, "before %d", last.Unix())
	}
	for range svc.Expiring(ctx, time.Time{}, true) {
		require.Fail(t, "nothing ends before the first year")
	}
}

// refusing is a store that never takes a change that holds text in a record's ID or subject.
func refusing(text string) func(context.Context, *store.Change) (error, error) {
	return func(_ context.Context, c *store.Change) (error, error) {
		for _, e := range c.Events {
			if strings.Contains(e.Subject, text) {
				return store.ErrInvalid, nil
			}
		}
		for _, p := range c.Puts {
			if strings.Contains(p.Record.ID, text) {
				return store.ErrInvalid, nil
			}
		}
		return nil, nil
	}
}

// One refusal that no store takes is dropped, said in the log and counted without its name. The others are recorded, and none is
// tried for ever.
func TestARefusalThatCannotBeWrittenHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	st := &faulty{Store: memstore.New()}
	var log lockedBuffer
	svc := serviceOn(t, st, func(c *apitoken.Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	const users = 40 // three changes
	for n := range users {
		subject := fmt.Sprintf("user-%02d", n)
		i := issue(t, svc, apitoken.Request{Subject: subject})
		require.NoError(t, svc.Revoke(t.Context(), apitoken.BySubject(subject), "left"))
		require.ErrorIs(t, validate(svc, i.Access), apitoken.ErrRevoked)
	}
	st.onApply(refusing("user-17"))
	apitoken.FlushUses(svc)
	for range 2 {
		recorded := map[string]int{}
		for _, e := range events(t, svc, apitoken.EventQuery{Type: event.Refused}) {
			recorded[e.Subject] += e.Count
		}
		require.Len(t, recorded, users, "all but one by name, and one without: %v", recorded)
		require.NotContains(t, recorded, "user-17")
		for _, n := range recorded {
			require.Equal(t, 1, n)
		}
		require.Zero(t, svc.Backlog().Refusals)
	}
	require.Equal(t, 1, strings.Count(log.String(), "a refusal that cannot be recorded was dropped"), log.String())
	require.Contains(t, log.String(), "count=1")
}

// One count of uses that no store takes, or whose stored record can't be read, is dropped and said. The others are recorded.
func TestUsesThatCannotBeWrittenHoldUpNoOthers(t *testing.T) {
	t.Parallel()
	inner := memstore.New()
	st := &faulty{Store: inner}
	var log lockedBuffer
	svc := serviceOn(t, st, func(c *apitoken.Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	var all []*apitoken.Issued
	for n := range 40 {
		i := issue(t, svc, apitoken.Request{Subject: fmt.Sprintf("user-%d", n), Scopes: apitoken.Scopes{"all"}, Refresh: true})
		require.NoError(t, authorize(svc, t.Context(), i.Access, apitoken.AllOf("all")))
		all = append(all, i)
	}
	poison, damaged := all[17].Token.Grant(), all[23].Token.Grant()
	_, err := inner.Apply(t.Context(), &store.Change{ID: store.Version{1}, Puts: []store.Put{{
		Record: store.Record{Kind: "use", ID: "g/" + damaged, Data: []byte("{")}}}})
	require.NoError(t, err)
	st.onApply(refusing(poison))
	apitoken.FlushUses(svc)
	apitoken.FlushUses(svc) // nothing is left that is tried again
	require.Zero(t, svc.Backlog().Uses)
	for _, i := range all {
		switch id := i.Token.Grant(); id {
		case poison:
			require.Zero(t, usageOf(t, svc, apitoken.ByGrant(id)))
		case damaged:
			_, err := svc.Usage(t.Context(), apitoken.ByGrant(id))
			require.ErrorIs(t, err, apitoken.ErrUnavailable)
		default:
			require.EqualValues(t, 1, usageOf(t, svc, apitoken.ByGrant(id)).Count)
		}
	}
	require.Equal(t, 2, strings.Count(log.String(), "uses that cannot be recorded were dropped"), log.String())
}
