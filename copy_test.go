package apitoken_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/memstore"
	"github.com/apitoken-go/apitoken/store/move"
)

// gathered is a sink's memory.
type gathered struct {
	mu  sync.Mutex
	ids []string
}

func (g *gathered) Audit(_ context.Context, e apitoken.Event) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ids = append(g.ids, e.ID)
	return nil
}

func (g *gathered) list() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.ids)
}

// A service under load moves from a file to another store. What was acknowledged before, during and after is there, in its
// order; the old place refuses.
func TestCopyMovesARunningService(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	from, to := tempStore(t), memstore.New()
	sink := &gathered{}
	configure := func(c *apitoken.Config) {
		c.Sinks = []apitoken.Sink{{Name: "siem", Auditor: sink}}
	}
	old := serviceOn(t, from, func(c *apitoken.Config) {
		configure(c)
		c.Validation.MaxStaleness = 300 * time.Millisecond
	})
	client, _, err := old.Clients.Create(ctx, apitoken.Client{Name: "app", GrantTypes: []string{"client_credentials"}, Scopes: apitoken.Scopes{"a"}})
	require.NoError(t, err)
	var sessions []*apitoken.Issued
	for i := range 300 {
		sessions = append(sessions, issue(t, old, apitoken.Request{Subject: fmt.Sprint("user-", i), Refresh: true, Scopes: apitoken.Scopes{"a"}}))
	}
	key, secret, err := old.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "alice", Scopes: apitoken.Scopes{"a"}})
	require.NoError(t, err)
	rotated, err := refresh(old, sessions[0].Refresh)
	require.NoError(t, err)
	before := issue(t, old, apitoken.Request{Subject: "mallory", Refresh: true})
	require.NoError(t, old.Revoke(ctx, apitoken.BySubject("mallory"), "fired"))
	after := issue(t, old, apitoken.Request{Subject: "mallory", Refresh: true})

	// Others go on while it moves.
	var mu sync.Mutex
	var acked []*apitoken.Issued
	var revoked, tried []string
	var refusedWrites atomic.Int64
	stop := make(chan struct{})
	var load sync.WaitGroup
	for w := range 4 {
		load.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				i, err := old.Issue(ctx, apitoken.Request{Subject: fmt.Sprintf("w%d-%d", w, n), Refresh: true})
				if err != nil {
					require.ErrorIs(t, err, apitoken.ErrUnavailable)
					refusedWrites.Add(1)
					continue
				}
				mu.Lock()
				acked = append(acked, i)
				mu.Unlock()
				if n%5 == 0 {
					mu.Lock()
					tried = append(tried, i.Token.Grant())
					mu.Unlock()
					if old.Revoke(ctx, apitoken.ByGrant(i.Token.Grant()), "test") == nil {
						mu.Lock()
						revoked = append(revoked, i.Token.Grant())
						mu.Unlock()
					}
				}
			}
		})
	}
	done, err := move.Copy(ctx, from, to)
	close(stop)
	load.Wait()
	require.NoError(t, err)
	require.Greater(t, done.Records["grant"], 300)
	require.Positive(t, refusedWrites.Load(), "there was a time in which nothing was written")

	// The old place.
	require.ErrorIs(t, old.Revoke(ctx, apitoken.BySubject("eve"), "too late"), apitoken.ErrUnavailable)
	require.Eventually(t, func() bool {
		return errors.Is(validate(old, sessions[5].Access), apitoken.ErrUnavailable)
	}, 10*time.Second, 10*time.Millisecond, "its view is no longer fresh")
	_, err = apitoken.New(config(from))
	require.ErrorContains(t, err, "moved")

	// The new one.
	svc := serviceOn(t, to, configure)
	for _, i := range append(sessions[1:], after, rotated) {
		require.NoError(t, validate(svc, i.Access))
	}
	require.ErrorIs(t, validate(svc, before.Access), apitoken.ErrRevoked, "revoked before")
	_, err = refresh(svc, before.Refresh)
	require.ErrorIs(t, err, apitoken.ErrInvalidGrant)
	_, err = refresh(svc, after.Refresh)
	require.NoError(t, err, "confirmed after the revocation, and good")
	require.NoError(t, validate(svc, secret))
	require.NoError(t, svc.APIKeys.Revoke(ctx, key.ID, "test"))
	require.ErrorIs(t, validate(svc, secret), apitoken.ErrRevoked)
	_, err = svc.Clients.Get(ctx, client.ID)
	require.NoError(t, err)
	for _, i := range acked {
		if slices.Contains(revoked, i.Token.Grant()) {
			require.ErrorIs(t, validate(svc, i.Access), apitoken.ErrRevoked)
		}
		found := false
		for g, err := range svc.Grants(ctx, apitoken.ByGrant(i.Token.Grant()), apitoken.Page{}) {
			require.NoError(t, err)
			found = g.ID == i.Token.Grant()
		}
		// A revocation without an answer may have been written.
		require.True(t, found || slices.Contains(tried, i.Token.Grant()), "an acknowledged session is lost")
	}
	// Rules of the new place reach what the old one issued, and nothing that comes later.
	require.NoError(t, svc.Revoke(ctx, apitoken.BySubject("user-9"), "test"))
	require.ErrorIs(t, validate(svc, sessions[9].Access), apitoken.ErrRevoked)
	require.NoError(t, validate(svc, issue(t, svc, apitoken.Request{Subject: "user-9"}).Access))

	// Events are in their order, once, and the sink got each; again only those whose delivery could not be noted.
	var all []string
	for _, e := range events(t, svc, apitoken.EventQuery{OldestFirst: true}) {
		all = append(all, e.ID)
	}
	require.GreaterOrEqual(t, len(all), done.Events)
	issue(t, svc, apitoken.Request{Subject: "last"})
	require.Eventually(t, func() bool {
		seen := map[string]bool{}
		for _, id := range sink.list() {
			seen[id] = true
		}
		return !slices.ContainsFunc(all, func(id string) bool { return !seen[id] })
	}, 20*time.Second, 20*time.Millisecond, "an event that the sink never got")
	// And found by their own time, not by that of the copy.
	first := events(t, svc, apitoken.EventQuery{OldestFirst: true})[10]
	list := events(t, svc, apitoken.EventQuery{OldestFirst: true, To: first.Time.Add(time.Nanosecond)})
	require.NotEmpty(t, list)
	require.Less(t, len(list), 100)
	require.True(t, slices.ContainsFunc(list, func(e apitoken.Event) bool { return e.ID == first.ID }))
}

// The window in which a lost answer is repeated does not open again in the new place.
func TestCopyOpensNoGraceWindow(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	k := &clock{}
	from, to := memstore.NewWithClock(k.Now), memstore.NewWithClock(k.Now)
	with := func(c *apitoken.Config) {
		c.Now = k.Now
		c.Refresh.Grace = 10 * time.Second
	}
	old := serviceOn(t, from, with)
	i := issue(t, old, apitoken.Request{Subject: "alice", Refresh: true})
	next, err := refresh(old, i.Refresh)
	require.NoError(t, err)
	k.Advance(time.Minute)
	_, err = move.Copy(ctx, from, to)
	require.NoError(t, err)
	svc := serviceOn(t, to, with)
	_, err = refresh(svc, i.Refresh)
	require.ErrorIs(t, err, apitoken.ErrInvalidGrant, "a stolen old token must not get the new one")
	_, err = refresh(svc, next.Refresh)
	require.ErrorIs(t, err, apitoken.ErrInvalidGrant, "and its use has ended the session")
}

// What breaks on the way leaves the source at work, and is repeated.
func TestCopyThatFails(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	from, inner := tempStore(t), memstore.New()
	old := serviceOn(t, from, nil)
	for n := range 120 {
		issue(t, old, apitoken.Request{Subject: fmt.Sprint("user-", n), Refresh: true})
	}
	to := &faulty{Store: inner}
	for fail := int64(1); ; fail += 7 {
		var calls atomic.Int64
		to.onApply(func(context.Context, *store.Change) (error, error) {
			n := calls.Add(1)
			switch {
			case n > fail:
				return errEngine, nil
			case n%2 == 0:
				return nil, errEngine // done, and the answer got lost
			}
			return nil, nil
		})
		patience := 300 * time.Millisecond
		if fail > 300 { // far more calls than it takes: this one must get through, on a busy machine too
			patience = time.Minute
		}
		tctx, cancel := context.WithTimeout(ctx, patience)
		done, err := move.Copy(tctx, from, to)
		cancel()
		if err == nil {
			require.Equal(t, 120, done.Records["grant"])
			break
		}
		require.Less(t, fail, int64(1000))
		if _, err := from.Get(ctx, store.KindMeta, "moved"); err == nil {
			continue // past the point of no return: it is repeated
		}
		_, err = apitoken.New(config(inner))
		require.Error(t, err, "half a copy is no service")
		if _, err = old.Issue(ctx, apitoken.Request{Subject: "meanwhile"}); err != nil {
			// Unless the mark came in after the copy gave up waiting for it: then the copy is repeated.
			_, unmarked := from.Get(ctx, store.KindMeta, "moved")
			require.NoError(t, unmarked, "the source has no mark, but refused a login: %v", err)
		}
	}
	svc := serviceOn(t, inner, nil)
	require.Len(t, slices.DeleteFunc(events(t, svc, apitoken.EventQuery{Type: event.Issued}), func(e apitoken.Event) bool { return e.Subject == "meanwhile" }), 120)

	_, err := move.Copy(ctx, from, inner)
	require.ErrorIs(t, err, apitoken.ErrInvalidRequest, "there is a service already")
	_, err = move.Copy(ctx, memstore.New(), memstore.New())
	require.ErrorIs(t, err, apitoken.ErrNotFound)
	_, err = move.Copy(ctx, to, memstore.New())
	require.ErrorIs(t, err, apitoken.ErrInvalidRequest, "a source that cannot refuse writes")
}

// Records that cannot be read are neither lost nor in the way, and fail closed in the new place as in the old one.
func TestCopyCarriesUnreadableRecords(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	from, to := memstore.New(), memstore.New()
	old := serviceOn(t, from, nil)
	alice := issue(t, old, apitoken.Request{Subject: "alice"})
	bob := issue(t, old, apitoken.Request{Subject: "bob", Refresh: true})
	later := []byte(`{"v":1,"from_a_later_version":true}`)
	odd := []store.Record{
		{Kind: store.KindRule, ID: "06h0000000000000000000000a", Type: "subject", Subject: "alice", Data: later},
		{Kind: "grant", ID: bob.Token.Grant(), Subject: "bob", Data: later},
		{Kind: "cursor", ID: "siem", Data: later},
	}
	for _, r := range odd {
		damage(t, from, r)
	}
	_, err := move.Copy(ctx, from, to)
	require.NoError(t, err)
	for _, r := range odd {
		got, err := to.Get(ctx, r.Kind, r.ID)
		require.NoError(t, err)
		require.Equal(t, later, got.Data)
	}
	svc := serviceOn(t, to, nil)
	require.ErrorIs(t, validate(svc, alice.Access), apitoken.ErrRevoked)
	require.NoError(t, validate(svc, bob.Access))
	_, err = refresh(svc, bob.Refresh)
	require.ErrorIs(t, err, apitoken.ErrUnavailable)
}

// A service that is started while a Copy runs may allow longer lifetimes. The new place keeps rules for as long.
func TestCopyTakesLifetimesThatRoseMeanwhile(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	from, to := memstore.New(), &faulty{Store: memstore.New()}
	serviceOn(t, from, nil)
	var once sync.Once
	to.onApply(func(context.Context, *store.Change) (error, error) {
		once.Do(func() {
			serviceOn(t, from, func(c *apitoken.Config) { c.Lifetimes.MaxAccess = 7 * time.Hour })
		})
		return nil, nil
	})
	_, err := move.Copy(ctx, from, to)
	require.NoError(t, err)
	meta, err := to.Get(ctx, store.KindMeta, "service")
	require.NoError(t, err)
	var longest struct{ Access int64 }
	require.NoError(t, json.Unmarshal(meta.Data, &longest))
	require.Equal(t, 7*time.Hour, time.Duration(longest.Access)*time.Millisecond)
}

// Whatever ends a Copy, its caller gets an error of this package that says what was being done.
func TestErrorsOfCopyAreOurOwn(t *testing.T) {
	t.Parallel()
	from, to := memstore.New(), &faulty{Store: memstore.New()}
	serviceOn(t, from, nil)
	to.onApply(func(_ context.Context, c *store.Change) (error, error) {
		if c.Puts[0].Kind == store.KindKey {
			return fmt.Errorf("engine: %w", store.ErrTooLarge), nil
		}
		return nil, nil
	})
	_, err := move.Copy(t.Context(), from, to)
	var e *apitoken.Error
	require.ErrorAs(t, err, &e)
	require.ErrorContains(t, err, "copy records of kind key")
	require.ErrorContains(t, err, "engine")

	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = move.Copy(ended, from, memstore.New())
	require.ErrorAs(t, err, &e)
}

// slower is a target to which a source is written faster than it takes anything in.
type slower struct {
	store.Store
	source store.Store
}

func (s slower) Apply(ctx context.Context, c *store.Change) (store.Commit, error) {
	for n := range min(2, len(c.Events)) {
		more := &store.Change{ID: c.ID}
		more.ID[0] ^= byte(1 + n)
		for i := range store.MaxEvents {
			more.Events = append(more.Events, store.Record{Kind: store.KindEvent, ID: fmt.Sprintf("%x-%d", more.ID, i), Type: "test", Data: []byte("{}")})
		}
		_, _ = s.source.Apply(ctx, more) // refused at last
	}
	return s.Store.Apply(ctx, c)
}

// Copy ends though the source has more events each time it looks: those of its first pass are copied while the source
// serves, the rest while it refuses.
func TestCopyLeavesASourceThatWritesFaster(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	from, to := memstore.New(), memstore.New()
	svc := serviceOn(t, from, nil)
	for i := range 400 {
		issue(t, svc, apitoken.Request{Subject: fmt.Sprint("user-", i)})
	}
	done, err := move.Copy(ctx, from, slower{to, from})
	require.NoError(t, err)
	require.Greater(t, done.Events, 2*400)
}
