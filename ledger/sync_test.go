package ledger

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/mod/sumdb/note"
)

// A sync that fails leaves pages that the kernel takes for written: a checkpoint counts as published only when it was written
// again, and a sync behind that has said yes.
func TestFilePublisherSyncsWhatComesAgain(t *testing.T) {
	t.Parallel()
	key, _, err := note.GenerateKey(nil, "log")
	require.NoError(t, err)
	signer, err := note.NewSigner(key)
	require.NoError(t, err)
	signed, err := note.Sign(&note.Note{Text: Checkpoint{Origin: "log", Root: (&frontier{}).root()}.Text()}, signer)
	require.NoError(t, err)

	path := filepath.Join(t.TempDir(), "checkpoints")
	p := FilePublisher(path).(*filePublisher)
	syncs, full := 0, errors.New("no such disk")
	p.sync = func(f *os.File) error {
		syncs++
		if full != nil {
			return full
		}
		return f.Sync()
	}
	ctx := context.Background()
	for range 2 {
		require.ErrorIs(t, p.Publish(ctx, signed), full)
	}
	require.Equal(t, 2, syncs)
	full = nil
	for range 2 { // also after a restart, where nobody knows
		require.NoError(t, p.Publish(ctx, signed))
	}
	require.Equal(t, 4, syncs)
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, signed, b, "it stands there once")
}
