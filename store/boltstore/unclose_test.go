package boltstore

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// readMark reads the mark of a file that is there.
func readMark(t testing.TB, path string) markContent {
	t.Helper()
	b, err := os.ReadFile(path + ".mark")
	require.NoError(t, err)
	m, ok := decodeMark(b)
	require.True(t, ok)
	return m
}

// sayClosed makes the mark say that Close left the file as it is, whatever was done to it since.
func sayClosed(t testing.TB, path string, m markContent) {
	t.Helper()
	fi, err := os.Stat(path)
	require.NoError(t, err)
	m.inode, m.born, m.nonce, m.next = inode(fi), bornAt(path), nonce{}, nonce{}
	if m.closed = stateOf(path); m.closed == (fileState{}) {
		t.Skip("no close is known to be clean on this system")
	}
	require.NoError(t, os.WriteFile(path+".mark", m.encode(), 0o600))
}

// memoryAnchor holds what it is given.
type memoryAnchor struct{ held []byte }

func (a *memoryAnchor) Load(context.Context) ([]byte, error) { return a.held, nil }

func (a *memoryAnchor) Swap(_ context.Context, _, next []byte) error { a.held = next; return nil }

// TestOpenClearsTheMarkFirst: an opening that writes the file takes back beforehand that it was closed. The power may fail
// during that write, and the file then have the time that the mark says. Here the write fails, so that what the mark
// says at that moment can be read.
func TestOpenClearsTheMarkFirst(t *testing.T) {
	t.Parallel()
	for name, anchorOf := range map[string]func(markContent) *memoryAnchor{
		"an anchor for the first time": func(markContent) *memoryAnchor { return &memoryAnchor{} },
		"behind its anchor": func(m markContent) *memoryAnchor {
			return &memoryAnchor{(&anchored{name: [16]byte{1}, id: m.id, seq: m.seq + 1}).encode()}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "tokens.db")
			require.NoError(t, newAt(t, path).Close())
			m := readMark(t, path)

			// A bucket where the opening removes a value fails its transaction, and nothing before that.
			db, err := bbolt.Open(path, 0o600, nil)
			require.NoError(t, err)
			var meta fileMeta
			require.NoError(t, db.View(func(tx *bbolt.Tx) (err error) {
				_, meta, _, err = readFormat(tx)
				return err
			}))
			require.NoError(t, db.Update(func(tx *bbolt.Tx) error {
				if _, err := tx.Bucket(bucketFormat).CreateBucket(keyBackup); err != nil {
					return err
				}
				return writeFormat(tx, m.id, &meta)
			}))
			require.NoError(t, db.Close())
			sayClosed(t, path, m)

			s := openT(t, path, &Options{ReadOnly: true})
			require.True(t, s.clean)
			require.NoError(t, s.Close())
			require.NotZero(t, readMark(t, path).closed, "a reader writes nothing")

			_, err = Open(path, &Options{Anchor: anchorOf(m)})
			require.ErrorIs(t, err, berrors.ErrIncompatibleValue)
			require.Zero(t, readMark(t, path).closed)
		})
	}
}
