package boltstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/bbolt"

	"github.com/apitoken-go/apitoken/store"
)

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
