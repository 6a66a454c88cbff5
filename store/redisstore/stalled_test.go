package redisstore_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/redisstore"
	"github.com/apitoken-go/apitoken/store/redisstore/redistest"
	"github.com/apitoken-go/apitoken/store/storetest"
)

// TestSilentServer: no verb, New or Close waits for longer than Timeout allows, also through a client that would wait for ever.
func TestSilentServer(t *testing.T) {
	t.Parallel()
	const timeout, limit = 5 * time.Second, time.Minute
	for _, prompt := range []bool{false, true} {
		t.Run(fmt.Sprint("prompt ", prompt), func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			server := redistest.Private(t)
			c := redis.NewClient(&redis.Options{Addr: server.Addr, ContextTimeoutEnabled: prompt, ReadTimeout: -1, WriteTimeout: -1, MaxRetries: -1})
			defer c.Close()
			s, err := redisstore.New(ctx, c, &redisstore.Options{Timeout: timeout})
			require.NoError(t, err)
			must(t, s, []store.Put{put(store.KindRule, "a", store.Version{})})
			server.Pause()
			defer server.Resume()
			storetest.Stalled(t, s, limit, map[string]func() error{
				"SetReadOnly":              func() error { return s.SetReadOnly(ctx, true) },
				"Wait":                     func() error { return s.Wait(ctx, store.Position{}) },
				"New":                      func() error { _, err := redisstore.New(ctx, c, &redisstore.Options{Timeout: timeout}); return err },
				"Get of another namespace": func() error { _, err := s.Namespace("other").Get(ctx, store.KindRule, "a"); return err },
			})
			storetest.Closes(t, s, limit)
		})
	}
}
