package boltstore

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.etcd.io/bbolt"

	"github.com/apitoken-go/apitoken/store"
)

// The test binary is its own second process: these variables say what it is to do instead of testing.
const (
	envRole = "BOLTSTORE_TEST_ROLE"
	envFile = "BOLTSTORE_TEST_FILE"

	// Not empty: segments are as small as in crashChild, for tests that want merges after few changes.
	envSmall = "BOLTSTORE_TEST_SMALL"
)

// roles are what a second process may do, with the file at path, by the name in envRole. Files for one system add their own.
var roles = map[string]func(path string){"hold": holdChild, "crash": crashChild}

func TestMain(m *testing.M) {
	if os.Getenv(envSmall) != "" {
		groupMembers, mergeWidth = 16, 3
	}
	role := os.Getenv(envRole)
	if role == "" {
		os.Exit(m.Run())
	}
	roles[role](os.Getenv(envFile))
}

// holdChild keeps the file open until its parent lets go.
func holdChild(path string) {
	s, err := Open(path, nil)
	if err != nil {
		os.Exit(3)
	}
	os.Stdout.WriteString("open\n")
	_, _ = io.Copy(io.Discard, os.Stdin)
	_ = s.Close()
}

func child(t *testing.T, role, file string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), envRole+"="+role, envFile+"="+file)
	return cmd
}

func TestOpenNamesWhoHoldsTheLock(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tokens.db")
	cmd := child(t, "hold", path)
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	_, err = io.ReadFull(out, make([]byte, 5))
	require.NoError(t, err)

	start := time.Now()
	_, err = Open(path, &Options{LockTimeout: 50 * time.Millisecond})
	require.ErrorIs(t, err, ErrLocked)
	require.Less(t, time.Since(start), 30*time.Second)
	if _, e := os.Stat("/proc/locks"); e == nil {
		require.Contains(t, err.Error(), strconv.Itoa(cmd.Process.Pid), "the error names the process")
	}
	_, err = Open(path, &Options{LockTimeout: -1, ReadOnly: true})
	require.ErrorIs(t, err, ErrLocked, "a reader does not read beside a writer")

	require.NoError(t, in.Close())
	s, err := Open(path, nil) // waits for the other to go
	require.NoError(t, err)
	require.NoError(t, cmd.Wait())
	_, err = Open(path, &Options{LockTimeout: -1})
	require.ErrorIs(t, err, ErrLocked, "twice in one process is twice too")
	require.NoError(t, s.Close())
}

func TestOpenLockedByBareBolt(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tokens.db")
	require.NoError(t, newAt(t, path).Close())
	db, err := bbolt.Open(path, 0o600, nil)
	require.NoError(t, err)
	defer db.Close()
	_, err = Open(path, &Options{LockTimeout: 60 * time.Millisecond})
	require.ErrorIs(t, err, ErrLocked)
}

// newAt makes a store with something of everything in it.
func newAt(t testing.TB, path string) *Store {
	t.Helper()
	s := openT(t, path, nil)
	for _, id := range []string{"a", "b", "c"} {
		must(t, s, []store.Put{put(store.KindRule, id, store.Version{}), put("grant", id, store.Version{})}, event("of "+id))
	}
	return s
}

func TestOpenRefusesWhatIsNotItsOwn(t *testing.T) {
	t.Parallel()
	foreign := func(t *testing.T, path string, fill func(*bbolt.Tx) error) {
		db, err := bbolt.Open(path, 0o644, nil)
		require.NoError(t, err)
		require.NoError(t, db.Update(fill))
		require.NoError(t, db.Close())
	}
	for _, tc := range []struct {
		name string
		make func(t *testing.T, path string)
		want error
	}{
		{"directory", func(t *testing.T, p string) { require.NoError(t, os.Mkdir(p, 0o700)) }, ErrForeign},
		{"empty", func(t *testing.T, p string) { require.NoError(t, os.WriteFile(p, nil, 0o600)) }, ErrForeign},
		{"text", func(t *testing.T, p string) { require.NoError(t, os.WriteFile(p, []byte("hello\n"), 0o600)) }, ErrForeign},
		{"long text", func(t *testing.T, p string) {
			require.NoError(t, os.WriteFile(p, bytes.Repeat([]byte("hello\n"), 1e5), 0o600))
		}, ErrForeign},
		{"bolt of another program", func(t *testing.T, p string) {
			foreign(t, p, func(tx *bbolt.Tx) error { _, err := tx.CreateBucket([]byte("todo")); return err })
		}, ErrForeign},
		{"empty bolt", func(t *testing.T, p string) { foreign(t, p, func(*bbolt.Tx) error { return nil }) }, ErrForeign},
		{"newer format", func(t *testing.T, p string) {
			foreign(t, p, func(tx *bbolt.Tx) error {
				m := fileMeta{history: 1}
				if err := writeFormat(tx, randomID(), &m); err != nil {
					return err
				}
				return tx.Bucket(bucketFormat).Put(keyFormat, []byte{formatVersion + 1})
			})
		}, ErrVersion},
		{"gone with its mark left", func(t *testing.T, p string) {
			require.NoError(t, newAt(t, p).Close())
			require.NoError(t, os.Remove(p))
		}, ErrMissing},
		{"a link to what is not there", func(t *testing.T, p string) {
			require.NoError(t, os.Symlink(filepath.Join(filepath.Dir(p), "volume", "tokens.db"), p))
		}, ErrMissing},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "tokens.db")
			tc.make(t, path)
			before, _ := os.ReadFile(path)
			_, err := Open(path, nil)
			require.ErrorIs(t, err, tc.want)
			require.Contains(t, err.Error(), path, "an error about a file names it")
			after, _ := os.ReadFile(path)
			require.True(t, bytes.Equal(before, after), "a refused file stays as it was")
			switch tc.name {
			case "directory", "empty", "text", "long text", "a link to what is not there":
				require.NoFileExists(t, path+".mark", "nothing is left beside what is not a database at all")
			}
		})
	}
	t.Run("a missing directory", func(t *testing.T) {
		t.Parallel()
		_, err := Open(filepath.Join(t.TempDir(), "no", "tokens.db"), nil)
		require.ErrorIs(t, err, os.ErrNotExist)
	})
	t.Run("nothing to read", func(t *testing.T) {
		t.Parallel()
		path := filepath.Join(t.TempDir(), "tokens.db")
		_, err := Open(path, &Options{ReadOnly: true})
		require.ErrorIs(t, err, os.ErrNotExist)
		require.NoFileExists(t, path)
	})
}

func TestOpenMode(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tokens.db")
	s := newAt(t, path)
	require.NoError(t, s.Compact(context.Background()))
	for _, p := range []string{path, path + ".mark", path + ".reserve"} {
		fi, err := os.Stat(p)
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), fi.Mode().Perm(), p)
	}
	link := filepath.Join(t.TempDir(), "link.db")
	require.NoError(t, s.Close())
	require.NoError(t, os.Symlink(path, link))
	s = openT(t, link, nil)
	require.NoError(t, s.Compact(context.Background()))
	require.False(t, s.Restored(), "a link is the same file")
	fi, err := os.Lstat(link)
	require.NoError(t, err)
	require.NotZero(t, fi.Mode()&os.ModeSymlink, "Compact leaves a link a link")
}

func TestReadOnly(t *testing.T) {
	t.Parallel()
	path, ctx := filepath.Join(t.TempDir(), "tokens.db"), context.Background()
	s := newAt(t, path)
	c := &store.Change{ID: newVersion(), Puts: []store.Put{put(store.KindRule, "d", store.Version{})}}
	_, err := s.Apply(ctx, c)
	require.NoError(t, err)
	pos, err := s.Follow(ctx, store.Position{}, nil, 10)
	require.NoError(t, err)
	require.NoError(t, s.Close())

	a, b := openT(t, path, &Options{ReadOnly: true}), openT(t, path, &Options{ReadOnly: true})
	for _, s := range []*Store{a, b} {
		again, err := s.Follow(ctx, store.Position{}, nil, 10)
		require.NoError(t, err)
		require.Equal(t, pos.Records, again.Records)
		_, err = s.Apply(ctx, c)
		require.NoError(t, err, "ErrReadOnly would say that it was not done")
		_, err = s.Apply(ctx, &store.Change{ID: newVersion(), Events: []store.Record{event("x")}})
		require.ErrorIs(t, err, store.ErrReadOnly)
		_, err = s.Purge(ctx, store.KindRule, 1, 1)
		require.ErrorIs(t, err, store.ErrReadOnly)
		require.False(t, s.Restored())
	}
	_, err = Open(path, &Options{LockTimeout: -1})
	require.ErrorIs(t, err, ErrLocked, "a writer does not write beside readers")
}

func TestSetReadOnly(t *testing.T) {
	t.Parallel()
	path, ctx := filepath.Join(t.TempDir(), "tokens.db"), context.Background()
	s := newAt(t, path)
	c := &store.Change{ID: newVersion(), Puts: []store.Put{put(store.KindRule, "d", store.Version{})}}
	_, err := s.Apply(ctx, c)
	require.NoError(t, err)
	require.NoError(t, s.SetReadOnly(ctx, true))
	require.NoError(t, s.Close())
	s = openT(t, path, nil)
	_, err = s.Apply(ctx, c)
	require.NoError(t, err, "what was done before is recognised")
	_, err = s.Apply(ctx, &store.Change{ID: newVersion(), Puts: []store.Put{put(store.KindRule, "e", store.Version{})}})
	require.ErrorIs(t, err, store.ErrReadOnly, "the flag outlives a restart")
	must(t, s.Namespace("other"), []store.Put{put(store.KindRule, "e", store.Version{})})
	require.NoError(t, s.SetReadOnly(ctx, false))
	must(t, s, []store.Put{put(store.KindRule, "e", store.Version{})})
}

func TestClose(t *testing.T) {
	t.Parallel()
	s, ctx := newT(t), context.Background()
	must(t, s, []store.Put{put(store.KindRule, "a", store.Version{})})
	waited := make(chan error)
	pos, err := s.Follow(ctx, store.Position{}, nil, 1)
	require.NoError(t, err)
	go func() { waited <- s.Wait(ctx, pos.Next) }()
	require.NoError(t, s.Close())
	require.NoError(t, s.Close())
	require.ErrorIs(t, <-waited, ErrClosed)
	_, err = s.Get(ctx, store.KindRule, "a")
	require.ErrorIs(t, err, ErrClosed)
	_, err = s.Apply(ctx, &store.Change{ID: newVersion(), Events: []store.Record{event("x")}})
	require.ErrorIs(t, err, ErrClosed)
	_, err = s.Follow(ctx, store.Position{}, nil, 1)
	require.ErrorIs(t, err, ErrClosed)
	_, err = s.List(ctx, store.Query{Kind: store.KindRule})
	require.ErrorIs(t, err, ErrClosed)
	_, err = s.Purge(ctx, store.KindRule, 1, 1)
	require.ErrorIs(t, err, ErrClosed)
	require.ErrorIs(t, s.Backup(ctx, io.Discard), ErrClosed)
	require.ErrorIs(t, s.Compact(ctx), ErrClosed)
	require.ErrorIs(t, s.Namespace("n").(store.Waker).Wait(ctx, store.Position{}), ErrClosed)
}

// TestDamage cuts, flips and overwrites a file, opens it and reads and writes all of it: errors, never a panic, never
// a fresh store, never a record other than the one that was written. So too where the mark says that Close left the file as it
// is, and Open looks at less of it.
func TestDamage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "tokens.db")
	s := openT(t, path, nil)
	for i := range 200 {
		must(t, s, []store.Put{put(store.KindRule, strconv.Itoa(i), store.Version{}), put("grant", strconv.Itoa(i), store.Version{})}, event("e"))
	}
	require.NoError(t, s.Close())
	mark := readMark(t, path)
	good, err := os.ReadFile(path)
	require.NoError(t, err)
	var meta boltMeta
	meta, err = findMeta(bytes.NewReader(good), int64(len(good)))
	require.NoError(t, err)
	used := int(meta.pages) * int(meta.pageSize)

	rnd := rand.New(rand.NewPCG(1, 2))
	cut := func(n int) func([]byte) []byte { return func(b []byte) []byte { return b[:n] } }
	flip := func(at, bit int) func([]byte) []byte {
		return func(b []byte) []byte { b[at] ^= 1 << bit; return b }
	}
	garbage := func(from, to int) func([]byte) []byte {
		return func(b []byte) []byte {
			for i := from; i < to; i++ {
				b[i] = byte(rnd.Uint32())
			}
			return b
		}
	}
	ps := int(meta.pageSize)
	cases := map[string]func([]byte) []byte{
		"both metas garbage": garbage(0, 2*ps), "first meta garbage": garbage(0, ps), "second meta garbage": garbage(ps, 2*ps),
		"all garbage": garbage(0, len(good)), "data garbage": garbage(2*ps, used),
	}
	for _, n := range []int{1, 100, ps, 2 * ps, 3 * ps, used - 1, used - ps} {
		cases["cut to "+strconv.Itoa(n)] = cut(n)
	}
	for range 150 {
		at, bit := rnd.IntN(used), rnd.IntN(8)
		cases["flip "+strconv.Itoa(at)+"."+strconv.Itoa(bit)] = flip(at, bit)
	}
	for range 60 {
		at, bit := rnd.IntN(2*80), rnd.IntN(8)
		cases["flip meta "+strconv.Itoa(at)] = flip(at%80+at/80*ps, bit)
	}
	n := 0
	for name, harm := range cases {
		n++
		p := filepath.Join(dir, "d"+strconv.Itoa(n)+".db")
		harmed := harm(bytes.Clone(good))
		for _, closed := range []bool{false, true} {
			require.NoError(t, os.WriteFile(p, harmed, 0o600))
			if closed {
				name += ", closed"
				sayClosed(t, p, mark)
			}
			useDamaged(t, name, p)
			for _, suffix := range []string{"", ".mark", ".reserve"} {
				_ = os.Remove(p + suffix)
			}
		}
	}
}

func useDamaged(t *testing.T, name, p string) {
	ctx := context.Background()
	start := time.Now()
	s, err := Open(p, nil)
	require.Less(t, time.Since(start), time.Minute, name)
	if err != nil {
		require.True(t, strings.Contains(err.Error(), p), "%s: %v", name, err)
		return
	}
	defer s.Close()
	for _, k := range []store.Kind{store.KindRule, "grant"} {
		for i := range 200 {
			r, err := s.Get(ctx, k, strconv.Itoa(i))
			if err == nil {
				require.Equal(t, "data of "+strconv.Itoa(i), string(r.Data), name)
			}
		}
		_, _ = s.List(ctx, store.Query{Kind: k})
	}
	_, _ = s.List(ctx, store.Query{Kind: store.KindEvent})
	_, _ = s.Follow(ctx, store.Position{}, nil, 1000)
	for i := range 5 {
		_, _ = s.Apply(ctx, &store.Change{
			ID: newVersion(), Puts: []store.Put{put(store.KindRule, "new"+strconv.Itoa(i), store.Version{})},
			Events: []store.Record{event("x")},
		})
	}
}

func FuzzDecode(f *testing.F) {
	r := store.Record{Kind: "k", ID: "id", Subject: "s", Client: "c", Data: []byte("data"), Expires: 7}
	v, _ := encodeRecord(&r, store.Version{1})
	stampRecord(v, "k", "id", 1, 2, 3, 4)
	f.Add(v)
	e := encodeEvent(&r, store.Version{1})
	stampEvent(e, key64(1), 5)
	f.Add(e)
	old := append([]byte{layoutTerms, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1}, 0, 0, 0, 1, 0, 0, 1)
	f.Add(sealValue(old, key64(1)))
	w := chunks{id: 1}
	w.add([]byte("term-id"))
	w.flush()
	f.Add(w.done[0].value)
	f.Add(sealValue(tailEntry(&r), key64(1)))
	f.Add(sealValue(append(key64(1), key64(2)...), key64(1)))
	f.Add((&markContent{seq: 1}).encode())
	f.Add((&segment{last: 1, first: 1, id: 2, size: 3, live: 1}).encode())
	f.Add((&head{last: 1}).encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		if r, err := decodeRecord(b, "k", "id", 1); err == nil {
			again, _ := encodeRecord(&r, r.Version)
			h, _ := openRecord(b, "k", "id")
			stampRecord(again, "k", "id", h.written, h.pos, h.due, h.bornAt)
			if d, err := decodeRecord(again, "k", "id", 1); err != nil || d.Subject != r.Subject {
				t.Fatalf("a record that decodes is not encoded to the same: %v", err)
			}
		}
		_, _ = decodeEvent(b, key64(1))
		var rec store.Record
		decodeBody(&rec, b)
		for _, run := range []bool{false, true} {
			if o, err := openOldBlock(key64(1), b, run); err == nil {
				_, _ = o.find(1)
				_ = o.each(func(uint32, []byte) {})
			}
		}
		_, _ = openChunk(nil, append(key64(1), "term-id"...), b)
		_, _ = openSegment(key64(1), b)
		_, _ = openGroup(key64(1), b)
		_, _, _ = openTail(key64(1), append([]byte("a\x00"), b...), nil, "k")
		if s, ok := selectorsOf(b); ok {
			s.terms()
		}
		_, _ = decodeMark(b)
		_, _ = decodeHead(b)
		_, _ = decodeMeta(b)
		q := store.Query{Kind: store.KindEvent, Cursor: string(b)}
		_, _ = decodeCursor(&q)
		_, _ = findMeta(bytes.NewReader(b), int64(len(b)))
		if !bytes.Equal(b, before) {
			t.Fatal("decoding changed its input")
		}
	})
}
