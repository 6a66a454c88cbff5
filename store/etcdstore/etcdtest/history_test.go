package etcdtest

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.uber.org/zap"

	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/etcdstore"
)

// TestHistory takes a cluster back in every way that etcd knows, and looks whether a process that stayed and one that
// comes anew notice: a revocation that was acknowledged is missing.
func TestHistory(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name    string
		members int
		before  func(t *testing.T, c *Cluster, keep string) // the acknowledged rule is written after it
		lose    func(t *testing.T, c *Cluster, keep string) // the cluster runs again when it returns
		fresh   bool                                        // a process that knew nothing notices too
		lost    bool
	}{
		{"restarted", 1, nil, func(t *testing.T, c *Cluster, _ string) {
			c.Kill(0)
			require.NoError(t, c.Restart(0))
		}, true, false},
		{"snapshot restored with the same token and address", 1, takeSnapshot, func(t *testing.T, c *Cluster, keep string) {
			restore(t, c, keep, 0)
		}, true, true},
		{"snapshot restored with its revision raised", 1, takeSnapshot, func(t *testing.T, c *Cluster, keep string) {
			restore(t, c, keep, 1_000_000)
		}, true, true},
		// Nothing in the cluster tells of it: a process that is there must.
		{"data directory put back", 1, func(t *testing.T, c *Cluster, keep string) {
			c.Kill(0)
			require.NoError(t, os.CopyFS(keep, os.DirFS(c.members[0].cfg.Dir)))
			require.NoError(t, c.Restart(0))
		}, func(t *testing.T, c *Cluster, keep string) {
			c.Kill(0)
			require.NoError(t, os.RemoveAll(c.members[0].cfg.Dir))
			require.NoError(t, os.CopyFS(c.members[0].cfg.Dir, os.DirFS(keep)))
			require.NoError(t, os.Chmod(c.members[0].cfg.Dir, 0o700))
			require.NoError(t, c.Restart(0))
		}, false, true},
		{"forced to go on with one of three", 3, nil, func(t *testing.T, c *Cluster, _ string) {
			c.Kill(1)
			c.Kill(2)
			c.Kill(0)
			c.members[0].cfg.ForceNewCluster = true
			require.NoError(t, c.Restart(0))
		}, true, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			c, keep := Start(t, tc.members, Quick), filepath.Join(t.TempDir(), "keep")
			stayed := openAt(t, c.Client(t), nil)
			must(t, stayed, []store.Put{put(store.KindRule, "old", store.Version{})})
			if tc.before != nil {
				tc.before(t, c, keep)
			}
			// A member that was down for a moment, to begin with: no reason for alarm.
			require.Eventually(t, func() bool {
				_, err := stayed.Follow(context.Background(), store.Position{}, nil, 0)
				return err == nil
			}, 20*time.Second, 10*time.Millisecond)
			must(t, stayed, []store.Put{put(store.KindRule, "acknowledged", store.Version{})})
			_, at := snapshotOf(t, stayed)

			tc.lose(t, c, keep)

			stores := []*etcdstore.Store{stayed}
			if tc.fresh {
				stores = append([]*etcdstore.Store{openAt(t, Connect(t, c.Endpoints()...), nil)}, stayed)
			}
			for _, s := range stores {
				var v store.View
				var err error
				require.Eventually(t, func() bool {
					v, err = s.Follow(context.Background(), store.Position{}, nil, 0)
					return err == nil
				}, 20*time.Second, 10*time.Millisecond)
				require.Equal(t, tc.lost, v.Next.History != at.History, "a cluster that lost writes has another history")
				_, err = s.Follow(context.Background(), at, nil, 0)
				if tc.lost {
					require.ErrorIs(t, err, store.ErrDiverged)
				} else {
					require.NoError(t, err)
				}
			}
			// Life goes on, in one history that everybody agrees on, with positions that rise.
			commit, err := stayed.Apply(context.Background(), &store.Change{ID: newVersion(), Puts: []store.Put{put(store.KindRule, "new", store.Version{})}})
			require.NoError(t, err)
			require.Greater(t, commit.Head.N, at.N)
			again := openAt(t, Connect(t, c.Endpoints()...), nil)
			_, now := snapshotOf(t, again)
			require.Equal(t, commit.Head, now, "a loss is told once")
		})
	}
}

func takeSnapshot(t *testing.T, c *Cluster, keep string) {
	t.Helper()
	r, err := c.Client(t).Snapshot(context.Background())
	require.NoError(t, err)
	defer r.Close()
	f, err := os.Create(keep)
	require.NoError(t, err)
	_, err = io.Copy(f, r)
	require.NoError(t, err)
	require.NoError(t, f.Close())
}

func restore(t *testing.T, c *Cluster, keep string, bump uint64) {
	t.Helper()
	c.Kill(0)
	cfg := c.members[0].cfg
	require.NoError(t, os.RemoveAll(cfg.Dir))
	require.NoError(t, snapshot.NewV3(zap.NewNop()).Restore(snapshot.RestoreConfig{
		SnapshotPath: keep, Name: cfg.Name, OutputDataDir: cfg.Dir, PeerURLs: []string{cfg.AdvertisePeerUrls[0].String()},
		InitialCluster: cfg.InitialCluster, InitialClusterToken: cfg.InitialClusterToken, RevisionBump: bump, MarkCompacted: bump > 0,
	}))
	require.NoError(t, c.Restart(0))
}
