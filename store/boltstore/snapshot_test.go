package boltstore

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/store"
)

// restored opens a backup of s, which is inspected whole, as every file that comes without its mark.
func restored(t *testing.T, s *Store) (*Store, int64) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "restored.db")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_EXCL, 0o600)
	require.NoError(t, err)
	require.NoError(t, s.Backup(context.Background(), f))
	fi, err := f.Stat()
	require.NoError(t, err)
	require.NoError(t, f.Close())
	return openT(t, path, nil), fi.Size()
}

// TestBackupBesideWriters: each backup is the store at one moment. Of writers who count up in two records, one after the other,
// the second is never ahead of the first.
func TestBackupBesideWriters(t *testing.T) {
	t.Parallel()
	s := newT(t)
	ctx := context.Background()
	bulk(t, s, 5_000, func(i int) *store.Change {
		g := benchGrant(int64(i))
		return &store.Change{ID: benchID(), Puts: []store.Put{{Record: g}}}
	})
	var stop atomic.Bool
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			var first, second store.Version
			for n := 0; !stop.Load(); n++ {
				for _, x := range []struct {
					id string
					v  *store.Version
				}{{"first", &first}, {"second", &second}} {
					p := put(store.KindRule, fmt.Sprint(x.id, w), *x.v)
					p.Data = []byte(fmt.Sprintf("%09d", n))
					c := &store.Change{ID: benchID(), Puts: []store.Put{p}}
					if _, err := s.Apply(ctx, c); err != nil {
						t.Error(err)
						return
					}
					*x.v = c.ID
				}
			}
		})
	}
	for range 3 {
		r, _ := restored(t, s)
		for w := range 4 {
			first, err1 := r.Get(ctx, store.KindRule, fmt.Sprint("first", w))
			second, err2 := r.Get(ctx, store.KindRule, fmt.Sprint("second", w))
			if err2 != nil {
				require.ErrorIs(t, err2, store.ErrNotFound)
				continue
			}
			require.NoError(t, err1)
			require.LessOrEqual(t, string(second.Data), string(first.Data))
		}
	}
	stop.Store(true)
	wg.Wait()
}

// TestBackupWithoutRoomInTheMap copies records, not pages, so that nobody waits for a larger map: the copy is as large as
// what is in it.
func TestBackupWithoutRoomInTheMap(t *testing.T) {
	t.Parallel()
	s := newT(t)
	v := must(t, s, []store.Put{put(store.KindRule, "a", store.Version{})})
	_, size := restored(t, s)
	require.Less(t, size, int64(1<<20))
	if s.mapSize() > 0 {
		require.NoError(t, os.Truncate(s.path, mapGranule-spareRoom+1)) // bbolt does not mind what lies behind its pages
	}
	room, err := s.room(s.mapped(1))
	require.NoError(t, err)
	require.Less(t, room, int64(spareRoom))
	require.ErrorIs(t, s.snapshot(context.Background(), nil), errNoRoom)
	r, size := restored(t, s)
	require.Less(t, size, int64(1<<20))
	got, err := r.Get(context.Background(), store.KindRule, "a")
	require.NoError(t, err)
	require.Equal(t, v, got.Version)
}

// TestMapped is at least what is in use, in the steps in which bbolt maps. A file that has grown over a step is not mapped so far yet.
func TestMapped(t *testing.T) {
	t.Parallel()
	s := newT(t)
	if s.mapSize() == 0 {
		require.Zero(t, s.mapped(1))
		return
	}
	for used, want := range map[int64]int64{1: mapGranule, mapGranule: mapGranule, mapGranule + 1: 2 * mapGranule, 5 * mapGranule: 5 * mapGranule} {
		require.Equal(t, want, s.mapped(used))
	}
	require.NoError(t, os.Truncate(s.path, mapGranule+1))
	room, err := s.room(s.mapped(mapGranule))
	require.NoError(t, err)
	require.Negative(t, room)
}

// TestBackupStops between two parts: at the end of its context, when the store closes, and when writers have used up the map.
func TestBackupStops(t *testing.T) {
	t.Parallel()
	if s := newT(t); s.mapped(1) == 0 || runtime.GOOS == "windows" {
		t.Skip("this system maps no more than the file")
	}
	part := make([]byte, paceBytes)
	try := func(prepare func(*Store, context.CancelFunc)) error {
		s := newT(t)
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		f, err := os.CreateTemp(t.TempDir(), "")
		require.NoError(t, err)
		defer f.Close()
		p := &pacer{ctx: ctx, s: s, f: f, mapped: s.mapped(1)}
		_, err = p.Write(part)
		require.NoError(t, err)
		prepare(s, cancel)
		_, err = p.Write(part)
		return err
	}
	require.ErrorIs(t, try(func(_ *Store, cancel context.CancelFunc) { cancel() }), context.Canceled)
	require.ErrorIs(t, try(func(s *Store, _ context.CancelFunc) { require.NoError(t, s.Close()) }), ErrClosed)
	require.ErrorIs(t, try(func(s *Store, _ context.CancelFunc) {
		require.NoError(t, os.Truncate(s.path, mapGranule-leastRoom+1))
	}), errNoRoom)
	require.NoError(t, try(func(*Store, context.CancelFunc) {}))
}

// TestBackupOfADamagedFile is an error: nobody would look at the copy before the day when it is needed.
func TestBackupOfADamagedFile(t *testing.T) {
	t.Parallel()
	s := newT(t)
	for i := range 50 {
		p := put("grant", fmt.Sprintf("%03d", i), store.Version{})
		p.Data = bytes.Repeat([]byte{'d'}, 2000)
		must(t, s, []store.Put{p})
	}
	require.NoError(t, s.Backup(context.Background(), io.Discard))
	f, err := os.OpenFile(s.path, os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	b, err := os.ReadFile(s.path)
	require.NoError(t, err)
	pages := 0
	for at := 2 * os.Getpagesize(); at < len(b); at += os.Getpagesize() {
		if flags := b[at+8]; flags == 2 { // a leaf, in use or not
			_, err := f.WriteAt([]byte{0xff, 0xff}, int64(at+10)) // how many entries it has
			require.NoError(t, err)
			pages++
		}
	}
	require.NotZero(t, pages)
	require.ErrorIs(t, s.Backup(context.Background(), io.Discard), ErrDamaged)
	left, err := filepath.Glob(s.path + tempName + "*")
	require.NoError(t, err)
	require.Empty(t, left)
}

// TestBackupHoldsNothingThatWasRemoved: bbolt leaves it in pages that are free, and a backup may live longer than the right to it.
func TestBackupHoldsNothingThatWasRemoved(t *testing.T) {
	t.Parallel()
	s := newT(t)
	ctx := context.Background()
	needle := []byte("the address of alice")
	for i := range 300 {
		p := put("grant", fmt.Sprintf("%03d", i), store.Version{})
		p.Data, p.Expires = bytes.Repeat(needle, 20), 1
		must(t, s, []store.Put{p})
	}
	for removed := 0; removed < 300; {
		n, err := s.Purge(ctx, "grant", 2, 1000)
		require.NoError(t, err)
		removed += n
	}
	for i := range 3 { // pages are free once no reader and no commit needs them
		must(t, s, []store.Put{put("grant", fmt.Sprint("b", i), store.Version{})})
	}
	file, err := os.ReadFile(s.path)
	require.NoError(t, err)
	require.Contains(t, string(file), string(needle), "else this tests nothing")
	var b bytes.Buffer
	require.NoError(t, s.Backup(ctx, &b))
	require.NotContains(t, b.String(), string(needle))
	r, _ := restored(t, s)
	_, err = r.Get(ctx, "grant", "b2")
	require.NoError(t, err)
}

// TestDiscard removes a file of several parts.
func TestDiscard(t *testing.T) {
	t.Parallel()
	f, err := os.CreateTemp(t.TempDir(), "")
	require.NoError(t, err)
	require.NoError(t, f.Truncate(3*discardBytes+1))
	discard(f)
	require.NoFileExists(t, f.Name())
}
