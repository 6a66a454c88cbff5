package redisstore_test

import (
	"context"
	"fmt"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/store"
)

// TestIdleNamespaces opens thousands of namespaces: each costs its process little, and no goroutine.
func TestIdleNamespaces(t *testing.T) {
	const n = 2000
	ctx := context.Background()
	s := open(t, nil)
	measure := func() (int64, int) {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc), runtime.NumGoroutine()
	}
	bytes, goroutines := measure()
	spaces := make([]store.Store, n)
	for i := range spaces {
		spaces[i] = s.Namespace(fmt.Sprint("tenant-", i))
		_, err := spaces[i].Get(ctx, "grant", "x")
		require.ErrorIs(t, err, store.ErrNotFound)
	}
	after, running := measure()
	require.Less(t, (after-bytes)/n, int64(2048), "bytes for each")
	require.Less(t, running-goroutines, 50)
	require.Same(t, spaces[7], s.Namespace("tenant-7"))
	t.Logf("%d bytes for each of %d namespaces", (after-bytes)/n, n)
	runtime.KeepAlive(spaces)
}
