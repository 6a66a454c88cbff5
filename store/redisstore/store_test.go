package redisstore_test

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/redisstore"
	"github.com/apitoken-go/apitoken/store/redisstore/redistest"
	"github.com/apitoken-go/apitoken/store/storetest"
)

// Tests that harm nobody share a server; those that kill or configure have their own.
var shared struct {
	once   sync.Once
	dir    string
	server *redistest.Server
	err    error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if shared.server != nil {
		shared.server.Kill()
	}
	_ = os.RemoveAll(shared.dir)
	os.Exit(code)
}

func sharedClient(tb testing.TB) *redis.Client {
	tb.Helper()
	shared.once.Do(func() {
		if addr := os.Getenv(redistest.AddressVariable); addr != "" {
			shared.server = &redistest.Server{Addr: addr}
			return
		}
		if shared.dir, shared.err = os.MkdirTemp("", "redisstore"); shared.err == nil {
			shared.server, shared.err = redistest.New(shared.dir)
		}
	})
	if shared.err != nil {
		if os.Getenv(redistest.RequireVariable) == "1" {
			tb.Fatal(shared.err)
		}
		tb.Skip(shared.err)
	}
	return shared.server.Client(tb)
}

// open opens a store under a prefix of its own on the shared server.
func open(tb testing.TB, o *redisstore.Options) *redisstore.Store {
	tb.Helper()
	if o == nil {
		o = &redisstore.Options{}
	}
	if o.Prefix == "" {
		o.Prefix = rand.Text()
	}
	return openAt(tb, sharedClient(tb), o)
}

func openAt(tb testing.TB, client redis.UniversalClient, o *redisstore.Options) *redisstore.Store {
	tb.Helper()
	s, err := redisstore.New(context.Background(), client, o)
	require.NoError(tb, err)
	tb.Cleanup(func() { require.NoError(tb, s.Close()) })
	return s
}

func TestStore(t *testing.T) {
	t.Parallel()
	client := sharedClient(t)
	storetest.Run(t, func(t *testing.T, dir string) store.Store {
		s, err := redisstore.New(context.Background(), client, &redisstore.Options{Prefix: fmt.Sprintf("%x", sha256.Sum256([]byte(dir)))})
		require.NoError(t, err)
		return s
	})
}

func TestNamespaces(t *testing.T) {
	t.Parallel()
	s := open(t, nil)
	storetest.Namespaces(t, s.Namespace("a"), s.Namespace("b"))
}

func BenchmarkStore(b *testing.B) { storetest.Bench(b, open(b, nil)) }

// TestMoreCallersThanPlaces: who finds the queue full waits for a place in it, as long as the store allows, and isn't refused.
func TestMoreCallersThanPlaces(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s := open(t, &redisstore.Options{Timeout: 5 * time.Minute})
	const callers = 9_000
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			id := fmt.Sprintf("%016d", i)
			c := &store.Change{ID: store.Version([]byte(id)), Puts: []store.Put{{Record: store.Record{Kind: "grant", ID: id}}}}
			if _, err := s.Apply(ctx, c); err != nil {
				t.Error(err)
				return
			}
			if r, err := s.Get(ctx, "grant", id); err != nil || r.Version != c.ID {
				t.Error(r, err)
			}
		})
	}
	wg.Wait()
}
