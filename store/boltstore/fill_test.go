package boltstore

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/bbolt"

	"github.com/apitoken-go/apitoken/store"
)

// TestPagesAreFull: whether the IDs rise, as those that begin with a time, or are hashes, which come anywhere.
func TestPagesAreFull(t *testing.T) {
	t.Parallel()
	for name, x := range map[string]struct {
		id   func(i int) string
		used float64 // of the pages, at least
	}{
		"rising": {func(i int) string { return fmt.Sprintf("06ylqbuxen%016d", i) }, 0.8},
		"rising, those of a millisecond in no order": {func(i int) string { return fmt.Sprintf("06ylqbuxen%08d%08x", i/8, i*7919%8) }, 0.8},
		"rising, below one that the host chose": {func(i int) string {
			if i == 1 {
				return "web-app"
			}
			return fmt.Sprintf("06ylqbuxen%016d", i)
		}, 0.8},
		"hashes": {func(i int) string { h := sha256.Sum256(fmt.Append(nil, i)); return hex.EncodeToString(h[:]) }, 0.6}, // ln 2 at best
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := openT(t, filepath.Join(t.TempDir(), "s.db"), nil)
			n := 0
			for range 50 {
				bulk(t, s, 200, func(int) *store.Change {
					n++
					r := store.Record{Kind: "quota", ID: x.id(n), Data: make([]byte, 100)}
					return &store.Change{ID: newVersion(), Puts: []store.Put{{Record: r}}}
				})
			}
			require.NoError(t, s.space.view(context.Background(), func(ns *bbolt.Bucket) error {
				st := readSub(ns, classRecords, "quota").Stats()
				require.Equal(t, 10_000, st.KeyN)
				require.Greater(t, float64(st.LeafInuse)/float64(st.LeafAlloc), x.used)
				return nil
			}))
		})
	}
}
