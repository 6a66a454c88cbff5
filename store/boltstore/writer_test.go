package boltstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/bbolt"

	"github.com/apitoken-go/apitoken/store"
)

// A group begins when those whom the last one answered are back, when they stop coming, or after half of the last commit's
// time: whatever comes first.
func TestAGroupWaitsForThoseWhoComeBack(t *testing.T) {
	t.Parallel()
	const commit = 8 * time.Millisecond
	for name, x := range map[string]struct {
		queued, last int
		every        time.Duration // between two that come
		urgent       bool          // the first of them
		want         time.Duration
	}{
		"nobody was answered":           {queued: 3, every: time.Microsecond, want: 0},
		"one caller alone":              {last: 1, every: time.Microsecond, want: 0},
		"all come back at once":         {queued: 5, last: 20, every: 10 * time.Microsecond, want: 200 * time.Microsecond},
		"nobody comes back":             {queued: 5, last: 20, every: time.Hour, want: commit / 8},
		"they come, but slowly":         {queued: 5, last: 20, every: commit / 2, want: commit / 8},
		"more than half a commit's":     {queued: 5, last: 200, every: 100 * time.Microsecond, want: commit/2 + commit/8},
		"a revocation waits for nobody": {queued: 5, last: 20, every: 10 * time.Microsecond, urgent: true, want: 10 * time.Microsecond},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := &Store{wake: make(chan struct{}, 1)}
				s.queue = make([]*request, x.queued)
				for i := range s.queue {
					s.queue[i] = &request{}
				}
				timer := time.NewTimer(time.Hour)
				began := time.Now()
				done := make(chan time.Duration)
				go func() {
					s.gather(x.last, commit, timer)
					done <- time.Since(began)
				}()
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				go func() {
					for i := range x.last {
						select {
						case <-time.After(x.every):
						case <-ctx.Done():
							return
						}
						go func() { _ = s.submit(ctx, &request{urgent: x.urgent && i == 0}) }()
					}
				}()
				require.Equal(t, x.want, <-done)
				require.Zero(t, s.want)
			})
		})
	}
	t.Run("Close", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			s := &Store{wake: make(chan struct{}, 1), queue: []*request{{}}, closing: true}
			began := time.Now()
			s.gather(5, time.Hour, time.NewTimer(time.Hour))
			require.Zero(t, time.Since(began))
		})
	})
	t.Run("a disk that hung", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			s := &Store{wake: make(chan struct{}, 1), queue: []*request{{}}}
			began := time.Now()
			s.gather(5, time.Hour, time.NewTimer(time.Hour))
			require.Equal(t, slowCommit/8, time.Since(began))
		})
	})
	t.Run("a revocation that waits already", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			s := &Store{wake: make(chan struct{}, 1), queue: []*request{{urgent: true}}}
			began := time.Now()
			s.gather(5, time.Hour, time.NewTimer(time.Hour))
			require.Zero(t, time.Since(began))
		})
	})
}

// The file is made longer ahead of bbolt, by zeros that are written: no commit has the file system give out blocks.
func TestRoomIsMadeAhead(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tokens.db")
	s := openT(t, path, nil)
	commit, commits := s.commit, 0
	failCommits(s, func(tx *bbolt.Tx) error {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		before, err := io.ReadAll(f)
		switch size := tx.Size(); {
		case err != nil:
			return err
		case int64(len(before)) < size+minRoom/2:
			return fmt.Errorf("%d bytes for a database of %d", len(before), size)
		case !allZero(before[size:]):
			return errors.New("something stands behind the last page")
		}
		if err := commit(tx); err != nil {
			return err
		}
		if after, err := f.Stat(); err != nil || after.Size() != int64(len(before)) {
			return fmt.Errorf("bbolt found no room: %w", err)
		}
		commits++
		return nil
	})
	for range 60 {
		e := event("alice")
		e.Data = make([]byte, 8<<10)
		must(t, s, nil, e)
	}
	require.Equal(t, 60, commits)
	fi, err := os.Stat(path)
	require.NoError(t, err)
	require.Less(t, fi.Size(), int64(8<<20), "a small file stays small")
	require.NoError(t, s.Close())
	s = openT(t, path, nil)
	page, err := s.List(context.Background(), store.Query{Kind: store.KindEvent, Limit: 1000})
	require.NoError(t, err)
	require.Len(t, page.Records, 60)
}

// A file that somebody has cut below its last page is not made whole with zeros: it is refused when it is opened.
func TestRoomHidesNoCut(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tokens.db")
	s := openT(t, path, nil)
	for i := range 200 {
		p := put(store.KindRule, fmt.Sprint("r", i), store.Version{})
		p.Data = make([]byte, 15<<10)
		must(t, s, []store.Put{p})
	}
	require.NoError(t, s.alone(context.Background(), func() error {
		return s.db.View(func(tx *bbolt.Tx) error {
			return os.Truncate(path, tx.Size()-16*int64(os.Getpagesize()))
		})
	}))
	e := event("alice")
	_, applied := s.Apply(context.Background(), &store.Change{ID: newVersion(), Events: []store.Record{e}})
	closed := s.Close()
	_, err := Open(path, nil)
	require.ErrorIs(t, err, ErrDamaged, "Apply: %v, Close: %v", applied, closed)
	require.ErrorContains(t, err, "cut short")
}
