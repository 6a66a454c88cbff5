package apitoken_test

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/boltstore"
)

const (
	testIssuer   = "https://auth.example.com"
	testAudience = "https://api.example.com"
)

// clock is a clock that a test moves.
type clock struct{ ahead atomic.Int64 }

func (c *clock) Now() time.Time          { return time.Now().Add(time.Duration(c.ahead.Load())) }
func (c *clock) Advance(d time.Duration) { c.ahead.Add(int64(d)) }

func openStore(t testing.TB, path string) *boltstore.Store {
	t.Helper()
	st, err := boltstore.Open(path, nil)
	require.NoError(t, err)
	t.Cleanup(func() { _ = st.Close() })
	return st
}

func tempStore(t testing.TB) *boltstore.Store {
	t.Helper()
	return openStore(t, filepath.Join(t.TempDir(), "tokens.db"))
}

func config(st store.Store) apitoken.Config {
	return apitoken.Config{Issuer: testIssuer, Audience: testAudience, Store: st, InsecureKeysInStore: true}
}

// service is a service on a store of its own.
func service(t testing.TB, change func(*apitoken.Config)) *apitoken.Service {
	t.Helper()
	return serviceOn(t, tempStore(t), change)
}

func serviceOn(t testing.TB, st store.Store, change func(*apitoken.Config)) *apitoken.Service {
	t.Helper()
	c := config(st)
	if change != nil {
		change(&c)
	}
	svc, err := apitoken.New(c)
	require.NoError(t, err)
	stores.Store(svc, st)
	t.Cleanup(func() {
		stores.Delete(svc)
		require.NoError(t, svc.Close())
	})
	return svc
}

func issue(t testing.TB, svc *apitoken.Service, r apitoken.Request) *apitoken.Issued {
	t.Helper()
	i, err := svc.Issue(context.Background(), r)
	require.NoError(t, err)
	return i
}

func validate(svc apitoken.Validator, s apitoken.Secret) error {
	_, err := svc.Validate(context.Background(), apitoken.Bearer(s.Reveal()))
	return err
}

func refresh(svc *apitoken.Service, s apitoken.Secret) (*apitoken.Issued, error) {
	return svc.Refresh(context.Background(), apitoken.RefreshRequest{Token: s.Reveal()})
}

func events(t testing.TB, svc *apitoken.Service, q apitoken.EventQuery) (list []apitoken.Event) {
	t.Helper()
	for e, err := range svc.Events(context.Background(), q) {
		require.NoError(t, err)
		list = append(list, e)
	}
	return list
}

// faulty is a store whose engine fails when a test says so.
type faulty struct {
	store.Store
	mu    sync.Mutex
	apply func(context.Context, *store.Change) (before error, after error) // what happens before and after the write
	reads error
	done  func() // after the next write that succeeded
}

var errEngine = errors.New("engine: connection lost")

func (f *faulty) onApply(fn func(context.Context, *store.Change) (before, after error)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.apply = fn
}

func (f *faulty) onApplied(fn func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.done = fn
}

func (f *faulty) failReads(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reads = err
}

func (f *faulty) Apply(ctx context.Context, c *store.Change) (store.Commit, error) {
	f.mu.Lock()
	fn, done := f.apply, f.done
	f.mu.Unlock()
	var before, after error
	if fn != nil {
		before, after = fn(ctx, c)
	}
	if before != nil {
		return store.Commit{}, before
	}
	commit, err := f.Store.Apply(ctx, c)
	if err == nil && done != nil {
		done()
	}
	if err == nil && after != nil {
		return store.Commit{}, after
	}
	return commit, err
}

func (f *faulty) readError() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.reads
}

func (f *faulty) Get(ctx context.Context, k store.Kind, id string) (store.Record, error) {
	if err := f.readError(); err != nil {
		return store.Record{}, err
	}
	return f.Store.Get(ctx, k, id)
}

func (f *faulty) Follow(ctx context.Context, after store.Position, kinds []store.Kind, max int) (store.View, error) {
	if err := f.readError(); err != nil {
		return store.View{}, err
	}
	return f.Store.Follow(ctx, after, kinds, max)
}

func (f *faulty) List(ctx context.Context, q store.Query) (store.Page, error) {
	if err := f.readError(); err != nil {
		return store.Page{}, err
	}
	return f.Store.List(ctx, q)
}
