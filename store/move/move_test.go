package move_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/memstore"
	"github.com/apitoken-go/apitoken/store/move"
)

// serviceOn is a service on st, with one client, two sessions and an API key.
func serviceOn(t *testing.T, st store.Store) (*apitoken.Service, []*apitoken.Issued, apitoken.Secret) {
	t.Helper()
	svc := started(t, st)
	_, _, err := svc.Clients.Create(t.Context(), apitoken.Client{Name: "app", GrantTypes: []string{"client_credentials"}})
	require.NoError(t, err)
	var sessions []*apitoken.Issued
	for _, subject := range []string{"alice", "bob"} {
		i, err := svc.Issue(t.Context(), apitoken.Request{Subject: subject, Refresh: true})
		require.NoError(t, err)
		sessions = append(sessions, i)
	}
	_, key, err := svc.APIKeys.Create(t.Context(), apitoken.APIKeyRequest{Subject: "alice"})
	require.NoError(t, err)
	return svc, sessions, key
}

func started(t *testing.T, st store.Store) *apitoken.Service {
	t.Helper()
	svc, err := apitoken.New(apitoken.Config{Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: st, InsecureKeysInStore: true})
	require.NoError(t, err)
	t.Cleanup(func() { svc.Close() })
	return svc
}

func valid(t *testing.T, svc *apitoken.Service, s apitoken.Secret) error {
	_, err := svc.Validate(t.Context(), apitoken.Bearer(s.Reveal()))
	return err
}

// What was issued and revoked in the old place is so in the new one, and Copied tells how much of it there is.
func TestCopyTellsWhatItMoved(t *testing.T) {
	t.Parallel()
	from, to := memstore.New(), memstore.New()
	old, sessions, key := serviceOn(t, from)
	require.NoError(t, old.Revoke(t.Context(), apitoken.BySubject("bob"), "left"))

	done, err := move.Copy(t.Context(), from, to)
	require.NoError(t, err)
	require.Equal(t, 2, done.Records["grant"])
	require.Equal(t, 1, done.Records[store.KindAPIKey])
	require.Equal(t, 1, done.Records[store.KindClient])
	require.Equal(t, 1, done.Records[store.KindRule])
	require.GreaterOrEqual(t, done.Events, 5, "a client, two sessions, a key, a revocation")
	require.NotZero(t, done.Digest)
	require.Positive(t, done.Refused)

	svc := started(t, to)
	require.NoError(t, valid(t, svc, sessions[0].Access))
	require.NoError(t, valid(t, svc, key))
	require.ErrorIs(t, valid(t, svc, sessions[1].Access), apitoken.ErrRevoked)
	_, err = svc.Refresh(t.Context(), apitoken.RefreshRequest{Token: sessions[0].Refresh.Reveal()})
	require.NoError(t, err)
}

// After a Copy the old place takes no writes, and no service starts on it.
func TestTheOldPlaceIsLeft(t *testing.T) {
	t.Parallel()
	from := memstore.New()
	old, _, _ := serviceOn(t, from)
	_, err := move.Copy(t.Context(), from, memstore.New())
	require.NoError(t, err)

	_, err = old.Issue(t.Context(), apitoken.Request{Subject: "alice"})
	require.ErrorIs(t, err, apitoken.ErrUnavailable)
	_, err = apitoken.New(apitoken.Config{Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: from, InsecureKeysInStore: true})
	var e *apitoken.ConfigError
	require.ErrorAs(t, err, &e)
	require.Equal(t, "Store", e.Field)
}

// withoutFreeze hides SetReadOnly.
type withoutFreeze struct{ store.Store }

// What cannot be copied is refused before anything is written, and the source works on.
func TestCopyRefusesWhatItCannotDo(t *testing.T) {
	t.Parallel()
	from := memstore.New()
	old, _, _ := serviceOn(t, from)
	taken := memstore.New()
	started(t, taken)
	for name, x := range map[string]struct {
		from, to store.Store
		code     error
	}{
		"a target that has a service":       {from, taken, apitoken.ErrInvalidRequest},
		"a source without a service":        {memstore.New(), memstore.New(), apitoken.ErrNotFound},
		"a source that can't refuse writes": {withoutFreeze{from}, memstore.New(), apitoken.ErrInvalidRequest},
	} {
		_, err := move.Copy(t.Context(), x.from, x.to)
		require.ErrorIs(t, err, x.code, name)
		var e *apitoken.Error
		require.ErrorAs(t, err, &e, name)
	}
	_, err := old.Issue(t.Context(), apitoken.Request{Subject: "alice"})
	require.NoError(t, err)
}

// failing is a target that fails at its nth write, once.
type failing struct {
	store.Store
	left atomic.Int64
}

var errEngine = errors.New("engine: disk full")

func (f *failing) Apply(ctx context.Context, c *store.Change) (store.Commit, error) {
	if f.left.Add(-1) < 0 {
		return store.Commit{}, errEngine
	}
	return f.Store.Apply(ctx, c)
}

// An interrupted Copy leaves the source at work and the target unusable, and continues when it is repeated.
func TestAnInterruptedCopyContinues(t *testing.T) {
	t.Parallel()
	from, inner := memstore.New(), memstore.New()
	old, sessions, _ := serviceOn(t, from)
	to := &failing{Store: inner}
	to.left.Store(2)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	_, err := move.Copy(ctx, from, to)
	cancel()
	require.Error(t, err)

	more, err := old.Issue(t.Context(), apitoken.Request{Subject: "carol", Refresh: true})
	require.NoError(t, err, "the source takes writes again")
	_, err = apitoken.New(apitoken.Config{Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: inner, InsecureKeysInStore: true})
	require.Error(t, err, "half a copy is no service")

	to.left.Store(1 << 30)
	done, err := move.Copy(t.Context(), from, to)
	require.NoError(t, err)
	require.Equal(t, 3, done.Records["grant"])
	svc := started(t, inner)
	require.NoError(t, valid(t, svc, sessions[0].Access))
	require.NoError(t, valid(t, svc, more.Access))
}
