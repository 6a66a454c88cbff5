package apitoken_test

import (
	"context"
	"log/slog"
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

// recordWatch counts the records that were set aside.
type recordWatch struct{ n atomic.Int32 }

func (w *recordWatch) Observe(_ context.Context, o apitoken.Observation) {
	if o.Op == "record" && o.Reason() == "unavailable" {
		w.n.Add(1)
	}
}

func TestAnOperatorMendsUnreadableRecords(t *testing.T) {
	t.Parallel()
	ctx := apitoken.WithActor(t.Context(), "olga")
	st := memstore.New()
	var out lockedBuffer
	svc := serviceOn(t, st, func(c *apitoken.Config) {
		c.Roles = map[string]apitoken.Scopes{"admin": {"a"}}
		c.Logger = slog.New(slog.NewTextHandler(&out, nil))
	})
	watch := new(recordWatch)
	defer svc.Observe(watch)()
	for _, id := range []string{"one", "two"} {
		_, _, err := svc.Clients.Create(ctx, apitoken.Client{ID: id, Public: true, GrantTypes: []string{"refresh_token"}, Scopes: apitoken.Scopes{"b"}})
		require.NoError(t, err)
	}
	good, err := st.Get(ctx, store.KindClient, "one")
	require.NoError(t, err)
	key, secret, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "bob"})
	require.NoError(t, err)
	alice, err := svc.Issue(ctx, apitoken.Request{Subject: "alice"})
	require.NoError(t, err)

	later := []byte(`{"v":1,"from_a_later_version":true}`)
	const rule = "06h0000000000000000000000a"
	damage(t, st, store.Record{Kind: store.KindClient, ID: "one", Data: later})
	damage(t, st, store.Record{Kind: store.KindClient, ID: "two", Data: later})
	damage(t, st, store.Record{Kind: store.KindRole, ID: "admin", Data: later})
	damage(t, st, store.Record{Kind: store.KindAPIKey, ID: key.ID, Data: later})
	damage(t, st, store.Record{Kind: store.KindRule, ID: rule, Type: "subject", Subject: "alice", Data: later})
	damage(t, st, store.Record{Kind: store.KindKey, ID: "sign.nobody", Data: later})
	damage(t, st, store.Record{Kind: "note", ID: "pushed", Client: "one", Data: later})
	damage(t, st, store.Record{Kind: "note", ID: "plain", Data: later})
	for range 3 {
		require.NoError(t, svc.Sync(ctx))
	}

	require.Equal(t, 5, svc.Backlog().Unreadable, "an API key that nobody shows is not read")
	require.EqualValues(t, 5, watch.n.Load())
	require.Equal(t, 5, strings.Count(out.String(), "is set aside"), "each is logged once")
	list := func(all bool) (names []string) {
		for r, err := range svc.Unreadable(ctx, all) {
			require.NoError(t, err)
			require.Error(t, r.Err)
			require.Equal(t, later, r.Data)
			names = append(names, string(r.Kind)+" "+r.ID)
		}
		return names
	}
	five := []string{"client one", "client two", "role admin", "rule " + rule, "key sign.nobody"}
	require.ElementsMatch(t, five, list(false))
	require.ElementsMatch(t, append(five, "apikey "+key.ID, "note pushed"), list(true), "a note that is no client's has no form")

	bad := svc.Repair(ctx, store.KindClient, "one", []byte(`{"v":1}x`))
	require.ErrorIs(t, bad, apitoken.ErrInvalidRequest)
	require.ErrorContains(t, bad, "stored client one cannot be read: ", "the operator is told why")
	var ours *apitoken.Error
	require.ErrorAs(t, bad, &ours)
	require.IsType(t, ours, ours.Cause)
	require.ErrorIs(t, svc.Repair(ctx, store.KindClient, "nobody", good.Data), apitoken.ErrNotFound)
	require.ErrorIs(t, svc.Repair(ctx, "event", "x", good.Data), apitoken.ErrInvalidRequest)
	require.NoError(t, svc.Repair(ctx, store.KindClient, "one", good.Data))
	require.ErrorIs(t, svc.Repair(ctx, store.KindClient, "one", good.Data), apitoken.ErrInvalidRequest, "it can be read")
	require.ErrorIs(t, svc.Remove(ctx, store.KindClient, "one"), apitoken.ErrInvalidRequest)
	require.ErrorIs(t, svc.Remove(ctx, store.KindMeta, "service"), apitoken.ErrInvalidRequest)
	for _, name := range [][2]string{{"client", "two"}, {"role", "admin"}, {"apikey", key.ID}, {"rule", rule}, {"key", "sign.nobody"}, {"note", "pushed"}} {
		require.NoError(t, svc.Remove(ctx, store.Kind(name[0]), name[1]), name)
	}
	require.NoError(t, svc.Sync(ctx))
	require.Empty(t, list(true))
	require.Zero(t, svc.Backlog().Unreadable)

	_, err = svc.Issue(ctx, apitoken.Request{Subject: "carol", Client: "one"})
	require.NoError(t, err)
	again := serviceOn(t, st, nil)
	for _, svc := range []*apitoken.Service{svc, again} {
		_, err = svc.Issue(ctx, apitoken.Request{Subject: "carol", Client: "two"})
		require.ErrorIs(t, err, apitoken.ErrDenied, "what was removed gives nothing")
		_, err = svc.Validate(ctx, apitoken.Bearer(secret.Reveal()))
		require.Error(t, err)
		_, err = svc.Validate(ctx, apitoken.Bearer(alice.Access.Reveal()))
		require.ErrorIs(t, err, apitoken.ErrRevoked, "a revocation is never taken back")
		fresh, err := svc.Issue(ctx, apitoken.Request{Subject: "alice"})
		require.NoError(t, err)
		_, err = svc.Validate(ctx, apitoken.Bearer(fresh.Access.Reveal()))
		require.NoError(t, err)
	}

	how := map[string]int{}
	for _, e := range events(t, svc, apitoken.EventQuery{Type: event.RecordChanged}) {
		require.Equal(t, "olga", e.Actor)
		require.NotEmpty(t, e.Extra["kind"])
		require.NotEmpty(t, e.Extra["record"])
		how[e.Reason]++
	}
	require.Equal(t, map[string]int{"repaired": 1, "removed": 6}, how)
}

// A revocation whose record does not even say what it is about refuses all that is older, and lets the service go on.
func TestARuleAboutNobodyKnowsWhat(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	st := memstore.New()
	svc := serviceOn(t, st, nil)
	old, err := svc.Issue(ctx, apitoken.Request{Subject: "alice"})
	require.NoError(t, err)
	damage(t, st, store.Record{Kind: store.KindRule, ID: "06h0000000000000000000000a", Type: "galaxy", Data: []byte("x")})
	for _, svc := range []*apitoken.Service{svc, serviceOn(t, st, nil)} {
		require.NoError(t, svc.Sync(ctx))
		_, err = svc.Validate(ctx, apitoken.Bearer(old.Access.Reveal()))
		require.ErrorIs(t, err, apitoken.ErrRevoked)
		fresh, err := svc.Issue(ctx, apitoken.Request{Subject: "alice"})
		require.NoError(t, err)
		_, err = svc.Validate(ctx, apitoken.Bearer(fresh.Access.Reveal()))
		require.NoError(t, err)
		_, err = svc.Revocations(ctx, store.Position{}, 0)
		require.NoError(t, err)
	}
}

// What cannot be stored readably is refused before it is written.
func TestRevokeRefusesWhatNobodyCouldRead(t *testing.T) {
	t.Parallel()
	st := memstore.New()
	svc := serviceOn(t, st, nil)
	for name, target := range map[string]apitoken.Target{
		"a date before year 0":    apitoken.BySubject("bob").IssuedBefore(time.Unix(-70_000_000_000, 0)),
		"milliseconds as seconds": apitoken.BySubject("bob").IssuedBefore(time.Unix(1_700_000_000_000, 0)),
		"an ID that is no UTF-8":  apitoken.ByGrant(strings.Repeat("\xff", 86)),
		"an ID with NUL":          apitoken.ByGrant("a\x00"),
		"a subject of 256 bytes":  apitoken.BySubject(strings.Repeat("a", 256)),
		"an owner of no UTF-8":    apitoken.ByGrant("g").OwnedBy("\xff"),
		"a holder of no UTF-8":    apitoken.BySubject("bob").HeldBy("\xff"),
	} {
		require.ErrorIs(t, svc.Revoke(t.Context(), target, "test"), apitoken.ErrInvalidRequest, name)
	}
	require.NoError(t, svc.Revoke(t.Context(), apitoken.BySubject("bob"), "\xff\x00 reason"))
	serviceOn(t, st, nil)
	require.Zero(t, svc.Backlog().Unreadable)
}

// lockedBuffer is a log that many goroutines write.
type lockedBuffer struct {
	mu  sync.Mutex
	buf strings.Builder
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
