package redistest

import (
	"context"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// TestServerKeepsWhatItAcknowledged kills a server and starts it again, and stops one in its tracks.
func TestServerKeepsWhatItAcknowledged(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s := Private(t)
	c := s.Client(t)
	require.NoError(t, c.Set(ctx, "k", "v", 0).Err())
	s.Kill()
	s.Kill() // twice does no harm
	require.Error(t, redis.NewClient(&redis.Options{Addr: s.Addr, MaxRetries: -1, DialerRetries: 1}).Ping(ctx).Err())
	require.NoError(t, s.Run())
	require.Equal(t, "v", c.Get(ctx, "k").Val())

	s.Pause()
	hurried := redis.NewClient(&redis.Options{Addr: s.Addr, MaxRetries: -1, ReadTimeout: 20 * time.Millisecond})
	defer hurried.Close()
	require.Error(t, hurried.Get(ctx, "k").Err(), "a server that is stopped does not answer")
	s.Resume()
	require.Equal(t, "v", c.Get(ctx, "k").Val())
}

// TestOptionsOverride: a test's own options come after those that make the server safe.
func TestOptionsOverride(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	for _, args := range [][]string{nil, {"--appendfsync", "everysec"}} {
		want := "always"
		if args != nil {
			want = args[1]
		}
		s := Private(t, args...)
		require.Equal(t, want, s.Client(t).ConfigGet(ctx, "appendfsync").Val()["appendfsync"])
	}
	_, err := New(t.TempDir(), "--no-such-option", "1")
	require.ErrorContains(t, err, "no-such-option", "what the server says about it is in the error")
}

// TestNoServer looks for a binary where there is none. It changes the environment, so that it runs alone.
func TestNoServer(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := New(t.TempDir())
	require.ErrorIs(t, err, ErrNone)
	require.ErrorContains(t, err, "apt-get install redis-server")
	require.ErrorContains(t, err, AddressVariable)

	t.Setenv(AddressVariable, "127.0.0.1:1")
	s := Start(t)
	require.Equal(t, "127.0.0.1:1", s.Addr)
	s.Kill()
	s.Pause()
	s.Resume() // a server that is not ours is left alone
	require.Error(t, s.Run())

	t.Setenv(AddressVariable, "")
	t.Setenv(RequireVariable, "")
	t.Run("skips", func(t *testing.T) {
		defer func() { require.True(t, t.Skipped()) }()
		Start(t)
	})
}
