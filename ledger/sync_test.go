package ledger

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
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

// clearSealer seals nothing: what is tested here is when the disk has it.
type clearSealer struct{}

func (clearSealer) Seal(_ context.Context, plain, _ []byte) ([]byte, error)  { return plain, nil }
func (clearSealer) Open(_ context.Context, sealed, _ []byte) ([]byte, error) { return sealed, nil }

// fickleDisk is a disk behind a kernel that forgets what it could not write, so that the next sync says yes: it gets what was
// written since the last sync alone.
type fickleDisk struct {
	t     *testing.T
	path  string // the file as the process sees it
	disk  []byte // as it would come back
	fail  error
	clean []byte // as the kernel takes it for written
}

func (d *fickleDisk) sync(*os.File) error {
	now, err := os.ReadFile(d.path)
	require.NoError(d.t, err)
	if d.fail == nil {
		for len(d.disk) < len(now) {
			d.disk = append(d.disk, 0)
		}
		for at := 0; at < len(now); at += slotSize { // a page that was not touched since is not written
			if end := min(at+slotSize, len(now)); len(d.clean) < end || string(d.clean[at:end]) != string(now[at:end]) {
				copy(d.disk[at:end], now[at:end])
			}
		}
	}
	d.clean = now
	return d.fail
}

// touch is a write of the vault's: what it writes is dirty again, also where it is the same.
func (d *fickleDisk) touch(at int64, n int) {
	for i := at; i < at+int64(n) && i < int64(len(d.clean)); i++ {
		d.clean[i] ^= 0xff
	}
}

func TestVaultBehindASyncThatFailed(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	dir := t.TempDir()
	v, err := OpenVault(ctx, dir, clearSealer{})
	require.NoError(t, err)
	d := &fickleDisk{t: t, path: filepath.Join(dir, "persons")}
	v.fsync, v.wrote = d.sync, d.touch
	key := func(name string) person {
		v.mu.Lock()
		defer v.mu.Unlock()
		p, err := v.person(name)
		require.NoError(t, err)
		return p
	}
	alice := key(named("", "alice"))
	require.NoError(t, v.sync())
	require.NotContains(t, string(d.disk), string(make([]byte, slotSize)))

	// A new person, whose first sync fails: a record may speak of him only when the disk has him.
	d.fail = errors.New("no such disk")
	bob := key(named("", "bob"))
	require.ErrorIs(t, v.sync(), d.fail)
	d.fail = nil
	require.NoError(t, v.sync())

	// An erasure whose sync fails, and an event about her before it is tried again.
	d.fail = errors.New("no such disk")
	_, err = v.Erase(ctx, "alice")
	require.ErrorIs(t, err, d.fail)
	d.fail = nil
	require.NotEqual(t, alice.ref, key(named("", "alice")).ref, "nothing is sealed under a key that may be gone")
	gone, err := v.Erase(ctx, "alice")
	require.NoError(t, err)
	require.True(t, gone)

	v.fsync, v.wrote = (*os.File).Sync, func(int64, int) {}
	require.NoError(t, v.Close())
	require.NoError(t, os.WriteFile(d.path, d.disk, 0o600)) // the power fails
	v, err = OpenVault(ctx, dir, clearSealer{})
	require.NoError(t, err)
	defer v.Close()
	require.Zero(t, v.Damaged())
	v.mu.Lock()
	defer v.mu.Unlock()
	got, ok, err := v.byRef(bob.ref)
	require.NoError(t, err)
	require.True(t, ok, "bob's key is there")
	require.Equal(t, bob, got)
	_, ok, err = v.byRef(alice.ref)
	require.NoError(t, err)
	require.False(t, ok, "alice's is not")
}

// After a write that failed nobody knows what the disk has of state.db: it is written anew before it is relied on.
func TestDirRewritesItsStateAfterAFailedWrite(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	path := t.TempDir()
	d, err := OpenDir(path, nil)
	require.NoError(t, err)
	var tree frontier
	add := func() error {
		next := tree.clone()
		line := []byte(fmt.Sprint("line ", next.size))
		b := Batch{Lines: [][]byte{line}, IDs: []string{fmt.Sprint("id", next.size)}}
		b.Hashes = next.push(tlog.RecordHash(line), nil)
		b.Root = next.root()
		err := d.Append(ctx, b)
		if err == nil {
			tree = next
		}
		return err
	}
	require.NoError(t, add())
	full, states := errors.New("no such disk"), 0
	d.fsync = func(*os.File) error { return full }
	require.ErrorIs(t, add(), full)
	require.ErrorIs(t, add(), full, "it does not recover while the disk fails")
	d.fsync = func(f *os.File) error {
		if filepath.Base(f.Name()) == "state.db" {
			states++
		}
		return f.Sync()
	}
	require.NoError(t, add())
	require.Equal(t, 2, states, "its pages, then those that say which count")
	require.NoError(t, add())
	require.Equal(t, 2, states, "once")
	require.Equal(t, tree.size, d.State().Size)
	require.NoError(t, d.Close())
	d, err = OpenDir(path, nil)
	require.NoError(t, err)
	require.Equal(t, tree.size, d.State().Size)
	require.Equal(t, tree.root(), d.State().Root)
	require.NoError(t, d.Close())
}
