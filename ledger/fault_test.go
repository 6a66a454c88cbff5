package ledger_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/ledger"
)

// closedLog is a directory with n sealed records, closed.
func closedLog(t testing.TB, n int) (*log, *feed) {
	t.Helper()
	f := &feed{}
	f.add(n)
	l := open(t, ledgerPath(t), nil)
	require.NoError(t, l.Follow(f))
	seal(t, l)
	l.shut()
	return l, f
}

func rewrite(t testing.TB, path string, change func([]byte) []byte) {
	t.Helper()
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, change(data), 0o600))
}

func newest(t testing.TB, dir string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.jsonl"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	return files[len(files)-1]
}

// TestTornTailIsNoTampering: what lies behind the committed records was left by a crash, is cut off, and comes again from the feed.
func TestTornTailIsNoTampering(t *testing.T) {
	t.Parallel()
	for _, tail := range []string{"{", `{"v":1,"pos":100,"id":"01`, string(lineOf(t, 100, anEvent(100))), string(lineOf(t, 100, anEvent(100))) + "\n", "\x00\x00\x00\x00", "\n"} {
		l, f := closedLog(t, 100)
		rewrite(t, newest(t, l.path), func(b []byte) []byte { return append(b, tail...) })
		rewrite(t, filepath.Join(l.path, "hashes"), func(b []byte) []byte { return append(b, "half a hash"...) })
		require.NoError(t, os.WriteFile(filepath.Join(l.path, "00000000000000000100.jsonl"), []byte(tail), 0o600), "the next file was begun")
		l = l.reopen(t, nil)
		torn := l.dir.Torn()
		require.Equal(t, int64(2*len(tail)), torn.Bytes, "%q", tail)
		require.Equal(t, tail[len(tail)-1] != '\n', torn.Partial)
		f.add(60)
		require.NoError(t, l.Follow(f))
		last := seal(t, l)
		rep, err := verify(l, exported(t, l, 0, -1), last)
		require.NoError(t, err)
		require.Equal(t, int64(160), rep.Records)
		require.NoError(t, l.Check(context.Background()))
		l = l.reopen(t, nil)
		require.Zero(t, l.dir.Torn())
	}
}

// What an operator keeps in the log's directory is his; what a crash left of ours goes.
func TestDirKeepsFilesThatAreNotIts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d, err := ledger.OpenDir(dir, nil)
	require.NoError(t, err)
	require.NoError(t, d.Close())
	own := []string{"00000000000000000000.jsonl.bak", "0.jsonl", "7.jsonl", "00000000000000000007.jsonl.gz", "notes.jsonl"}
	left := []string{"00000000000000000000.jsonl", "00000000000000000007.jsonl.tmp"}
	for _, name := range append(own, left...) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("mine\n"), 0o600))
	}
	d, err = ledger.OpenDir(dir, nil)
	require.NoError(t, err)
	require.NoError(t, d.Close())
	for _, name := range own {
		require.FileExists(t, filepath.Join(dir, name))
	}
	for _, name := range left {
		require.NoFileExists(t, filepath.Join(dir, name))
	}
}

// TestTamperedStorageIsRefused: what was committed cannot be changed by a crash.
func TestTamperedStorageIsRefused(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		what   string
		change func(t *testing.T, l *log)
		late   bool // not when it is opened, but by Check
	}{
		{"the last record loses its end", func(t *testing.T, l *log) {
			rewrite(t, newest(t, l.path), func(b []byte) []byte { return b[:len(b)-20] })
		}, false},
		{"the last record is gone", func(t *testing.T, l *log) {
			rewrite(t, newest(t, l.path), func(b []byte) []byte { return b[:bytes.LastIndexByte(b[:len(b)-1], '\n')+1] })
		}, false},
		{"a late record is edited", func(t *testing.T, l *log) {
			rewrite(t, newest(t, l.path), func(b []byte) []byte { return bytes.Replace(b, []byte("orders"), []byte("ordure"), 1) })
		}, false},
		{"two late records are swapped", func(t *testing.T, l *log) {
			rewrite(t, newest(t, l.path), func(b []byte) []byte {
				lines := bytes.SplitAfter(b, []byte("\n"))
				lines[0], lines[1] = lines[1], lines[0]
				return bytes.Join(lines, nil)
			})
		}, false},
		{"an early record is edited", func(t *testing.T, l *log) {
			rewrite(t, filepath.Join(l.path, "00000000000000000000.jsonl"), func(b []byte) []byte { return bytes.Replace(b, []byte("orders"), []byte("ordure"), 1) })
		}, true},
		{"an early file is longer", func(t *testing.T, l *log) {
			rewrite(t, filepath.Join(l.path, "00000000000000000000.jsonl"), func(b []byte) []byte { return append(b, '\n') })
		}, false},
		{"an early file is gone", func(t *testing.T, l *log) {
			require.NoError(t, os.Remove(filepath.Join(l.path, "00000000000000000064.jsonl")))
		}, false},
		{"hashes are gone", func(t *testing.T, l *log) {
			require.NoError(t, os.Truncate(filepath.Join(l.path, "hashes"), 640))
		}, false},
		{"hashes are changed", func(t *testing.T, l *log) {
			rewrite(t, filepath.Join(l.path, "hashes"), func(b []byte) []byte { b[len(b)-1] ^= 1; return b })
		}, false},
		{"an early record and its hash are changed", func(t *testing.T, l *log) {
			var line []byte
			rewrite(t, filepath.Join(l.path, "00000000000000000000.jsonl"), func(b []byte) []byte {
				b = bytes.Replace(b, []byte("orders"), []byte("ordure"), 1)
				line = b[:bytes.IndexByte(b, '\n')]
				return b
			})
			rewrite(t, filepath.Join(l.path, "hashes"), func(b []byte) []byte {
				h := tlog.RecordHash(line)
				copy(b, h[:])
				return b
			})
		}, true},
		{"a hash inside the tree is changed", func(t *testing.T, l *log) {
			rewrite(t, filepath.Join(l.path, "hashes"), func(b []byte) []byte { b[2*tlog.HashSize] ^= 1; return b })
		}, true},
		{"the state is gone", func(t *testing.T, l *log) {
			require.NoError(t, os.Remove(filepath.Join(l.path, "state.db")))
		}, false},
	} {
		t.Run(c.what, func(t *testing.T) {
			t.Parallel()
			l, _ := closedLog(t, 200)
			c.change(t, l)
			dir, err := ledger.OpenDir(l.path, &ledger.DirOptions{SegmentRecords: 64})
			if c.late {
				require.NoError(t, err)
				require.NoError(t, dir.Close())
				l = l.reopen(t, nil)
				err = l.Check(context.Background())
			}
			require.ErrorIs(t, err, ledger.ErrTampered)
		})
	}
}

func TestStorageThatIsBehindItsCheckpoint(t *testing.T) {
	t.Parallel()
	l, f := closedLog(t, 100)
	old := map[string][]byte{}
	for _, name := range []string{"hashes", filepath.Base(newest(t, l.path)), "state.db"} {
		data, err := os.ReadFile(filepath.Join(l.path, name))
		require.NoError(t, err)
		old[name] = data
	}
	early, err := os.ReadFile(filepath.Join(l.path, "state.db"))
	require.NoError(t, err)
	require.NotEmpty(t, early)
	l = l.reopen(t, nil)
	f.add(20)
	require.NoError(t, l.Follow(f))
	last := seal(t, l)
	l.shut()
	for name, data := range old { // all of it put back: valid in itself
		require.NoError(t, os.WriteFile(filepath.Join(l.path, name), data, 0o600))
	}
	l = l.reopen(t, nil)
	signed, err := l.Checkpoint(context.Background())
	require.NoError(t, err)
	_, err = verify(l, exported(t, l, 0, -1), signed, last)
	require.ErrorIs(t, err, ledger.ErrRolledBack, "only who has the later checkpoint can tell")
}

func TestOneProcessHasTheDirectory(t *testing.T) {
	t.Parallel()
	l := open(t, ledgerPath(t), nil)
	_, err := ledger.OpenDir(l.path, &ledger.DirOptions{LockTimeout: time.Millisecond})
	require.ErrorContains(t, err, "another process")
}

func TestStoreThatWasEditedIsFound(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	for _, erasable := range []bool{false, true} {
		f := &feed{}
		f.add(300)
		l := open(t, ledgerPath(t), func(c *ledger.Config) {
			if erasable {
				c.Vault = openVault(t, t.TempDir())
				_, err := c.Vault.Erase(ctx, "nobody")
				require.NoError(t, err)
			}
		})
		require.NoError(t, l.Follow(f))
		seal(t, l)
		require.NoError(t, l.CheckSource(ctx, f))
		f.change(func(f *feed) { f.gone = 40 })
		require.NoError(t, l.CheckSource(ctx, f), "what was purged by its age is no edit")
		for what, change := range map[string]func(list []apitoken.Event) []apitoken.Event{
			"edit": func(list []apitoken.Event) []apitoken.Event { list[150].Subject = "mallory"; return list },
			"hide": func(list []apitoken.Event) []apitoken.Event { return append(list[:150:150], list[151:]...) },
			"add": func(list []apitoken.Event) []apitoken.Event {
				return append(append(list[:150:150], anEvent(999)), list[150:]...)
			},
			"cut":    func(list []apitoken.Event) []apitoken.Event { return list[:299] },
			"switch": func(list []apitoken.Event) []apitoken.Event { list[60], list[61] = list[61], list[60]; return list },
		} {
			edited := &feed{events: change(append([]apitoken.Event(nil), f.events...))}
			require.ErrorIs(t, l.CheckSource(ctx, edited), ledger.ErrTampered, what)
		}
	}
}

// failingStorage fails when a test says so.
type failingStorage struct {
	ledger.Storage
	fail atomic.Pointer[error]
}

func (s *failingStorage) Append(ctx context.Context, b ledger.Batch) error {
	if err := s.fail.Load(); err != nil {
		return *err
	}
	return s.Storage.Append(ctx, b)
}

func TestFullDiskLosesNothing(t *testing.T) {
	t.Parallel()
	var st failingStorage
	l := open(t, ledgerPath(t), func(c *ledger.Config) {
		st.Storage = c.Storage
		c.Storage = &st
	})
	f := &feed{}
	f.add(10)
	full := errors.New("no space left on device")
	st.fail.Store(&full)
	require.NoError(t, l.Follow(f)) // which begins to read
	_, err := l.Seal(context.Background())
	require.ErrorIs(t, err, full)
	require.ErrorIs(t, l.Status().Err, full)
	require.Zero(t, l.Status().Size)
	f.add(10)
	st.fail.Store(nil)
	last := seal(t, l)
	require.NoError(t, l.Status().Err)
	rep, err := verify(l, exported(t, l, 0, -1), last)
	require.NoError(t, err)
	require.Equal(t, int64(20), rep.Records)
}

// TestDirGoesOnAfterAFailedWrite: half of a batch is written when the next file cannot be made.
func TestDirGoesOnAfterAFailedWrite(t *testing.T) {
	t.Parallel()
	l := open(t, ledgerPath(t), nil)
	f := &feed{}
	f.add(50)
	require.NoError(t, l.Follow(f))
	first := seal(t, l)
	obstacle := filepath.Join(l.path, "00000000000000000064.jsonl")
	require.NoError(t, os.Mkdir(obstacle, 0o700))
	f.add(50)
	for range 3 {
		_, err := l.Seal(context.Background())
		require.Error(t, err)
		require.Equal(t, int64(50), l.Status().Size)
		require.Equal(t, exported(t, l, 0, -1), exported(t, l, 0, 50))
	}
	require.NoError(t, os.Remove(obstacle))
	last := seal(t, l)
	_, err := verify(l, exported(t, l, 0, -1), last, first)
	require.NoError(t, err)
	require.Equal(t, int64(100), l.Status().Size)
	l = l.reopen(t, nil)
	require.Zero(t, l.dir.Torn())
	require.NoError(t, l.Check(context.Background()))
}

// TestPublishersThatHangPanicAndFail: each holds up itself alone, and gets the newest checkpoint when it comes back.
func TestPublishersThatHangPanicAndFail(t *testing.T) {
	t.Parallel()
	dir := ledgerPath(t)
	synctest.Test(t, func(t *testing.T) {
		f := &feed{}
		var mu sync.Mutex
		got := map[string][]int64{}
		var keys ledger.Keys
		bad := true
		note := func(name string, signed []byte) {
			c, err := keys.Open(signed)
			if err != nil {
				panic(err)
			}
			got[name] = append(got[name], c.Size)
		}
		publisher := func(name string, misbehave func(context.Context) error) ledger.Publisher {
			return ledger.PublisherFunc(func(ctx context.Context, signed []byte) error {
				mu.Lock()
				broken := bad
				mu.Unlock()
				if broken {
					if err := misbehave(ctx); err != nil {
						return err
					}
				}
				mu.Lock()
				defer mu.Unlock()
				note(name, signed)
				return nil
			})
		}
		back := make(chan struct{})
		l := open(t, dir, func(c *ledger.Config) {
			c.Interval, c.Poll = time.Second, 100*time.Millisecond
			c.Publish = []ledger.Publisher{
				publisher("good", func(context.Context) error { return nil }),
				publisher("hangs", func(context.Context) error { <-back; return errors.New("late") }),
				publisher("panics", func(context.Context) error { panic("publisher") }),
				publisher("fails", func(context.Context) error { return errors.New("503") }),
			}
		})
		mu.Lock()
		keys = l.keys
		mu.Unlock()
		require.NoError(t, l.Follow(f))
		for range 10 {
			f.add(5)
			_, err := l.Seal(context.Background())
			require.NoError(t, err, "sealing waits for no publisher")
			time.Sleep(10 * time.Second)
		}
		synctest.Wait()
		mu.Lock()
		require.Equal(t, []int64{5, 10, 15, 20, 25, 30, 35, 40, 45, 50}, got["good"])
		require.Empty(t, got["hangs"])
		bad = false
		mu.Unlock()
		for i, p := range l.Status().Publishers {
			require.Equal(t, i != 0, p.Err != nil)
		}
		close(back)
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		for _, name := range []string{"hangs", "panics", "fails"} {
			require.Equal(t, []int64{50}, got[name], "%s: the newest, and no old one", name)
		}
		l.shut()
	})
}

func TestFilePublisher(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "checkpoints")
	p := ledger.FilePublisher(path)
	signer, _ := keyPair(t, origin)
	var want [][]byte
	for i := range 5 {
		signed := sign(t, signer, ledger.Checkpoint{Origin: origin, Size: int64(i + 1), Root: treeOf(t, [][]byte{{byte(i)}})})
		want = append(want, signed)
		require.NoError(t, p.Publish(context.Background(), signed))
		require.NoError(t, p.Publish(context.Background(), signed), "again, after a restart")
		if i == 2 { // a crash in the middle of the next one
			rewrite(t, path, func(b []byte) []byte { return append(b, want[0][:len(want[0])-9]...) })
		}
	}
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	got, err := ledger.SplitCheckpoints(data)
	require.NoError(t, err)
	require.Equal(t, want, got)

	// Whatever part of a first or a later one a crash leaves, what comes next stands whole behind the last whole one.
	for cut := 0; cut < len(want[1]); cut += 9 {
		for before := range 2 {
			whole := bytes.Join(want[:before], nil)
			rewrite(t, path, func([]byte) []byte { return append(bytes.Clone(whole), want[1][:cut]...) })
			require.NoError(t, p.Publish(context.Background(), want[2]))
			data, err = os.ReadFile(path)
			require.NoError(t, err)
			require.Equal(t, string(append(whole, want[2]...)), string(data), "%d bytes behind %d", cut, before)
		}
	}
	// Years of them: what was there stays, and only the end is looked at.
	years := bytes.Repeat(bytes.Join(want, nil), 2000)
	rewrite(t, path, func([]byte) []byte { return append(bytes.Clone(years), make([]byte, 100)...) })
	require.NoError(t, p.Publish(context.Background(), want[0]))
	data, err = os.ReadFile(path)
	require.NoError(t, err)
	require.True(t, bytes.Equal(append(years, want[0]...), data))
	// A path that was meant for something else.
	for _, other := range []string{"root:x:0:0\n", "x", string(want[0]) + "a note of somebody's\n"} {
		rewrite(t, path, func([]byte) []byte { return []byte(other) })
		require.ErrorContains(t, p.Publish(context.Background(), want[1]), "something else than checkpoints")
		data, err = os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, other, string(data))
	}
}

func TestWitnesses(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	signer, key := keyPair(t, origin)
	newWitness := func(name string) (*ledger.WitnessServer, note.Verifier) {
		pub, priv, err := ed25519.GenerateKey(nil)
		require.NoError(t, err)
		s, err := ledger.NewCosigner(name, priv, nil)
		require.NoError(t, err)
		w, err := ledger.NewWitness(s, t.TempDir(), key)
		require.NoError(t, err)
		v, err := ledger.ParseKey(ledger.CosignerKey(name, pub))
		require.NoError(t, err)
		return w, v
	}
	one, oneKey := newWitness("one.example.org")
	two, twoKey := newWitness("two.example.org")
	_, threeKey := newWitness("three.example.org")
	server := httptest.NewServer(one)
	defer server.Close()
	var published [][]byte
	l := openAs(t, ledgerPath(t), signer, key, func(c *ledger.Config) {
		c.Witnesses = []ledger.Witness{{oneKey, ledger.NewHTTPWitness(server.URL, nil)}, {twoKey, two}, {threeKey, deadWitness{}}}
		c.Quorum = 2
	})
	f := &feed{}
	require.NoError(t, l.Follow(f))
	keys := ledger.Keys{Log: l.keys.Log, Witnesses: []note.Verifier{oneKey, twoKey}, Quorum: 2}
	for _, n := range []int{7, 1, 300} {
		f.add(n)
		signed := seal(t, l)
		published = append(published, signed)
		_, err := keys.Open(signed)
		require.NoError(t, err, "both co-signed")
		again := seal(t, l)
		require.Equal(t, signed, again)
	}
	v := ledger.Verification{Keys: keys, Checkpoint: published[2], Earlier: published[:2]}
	_, err := ledger.Verify(bytes.NewReader(exported(t, l, 0, -1)), v)
	require.NoError(t, err)

	// Another history under the log's own key gets no co-signature.
	fork := sign(t, signer, ledger.Checkpoint{Origin: origin, Size: 400, Root: treeOf(t, [][]byte{[]byte("fork")})})
	_, err = one.AddCheckpoint(ctx, 308, nil, fork)
	require.Error(t, err)
	_, err = one.AddCheckpoint(ctx, 0, nil, fork)
	var conflict *ledger.WitnessConflict
	require.ErrorAs(t, err, &conflict)
	require.Equal(t, int64(308), conflict.Size)
	same := sign(t, signer, ledger.Checkpoint{Origin: origin, Size: 308, Root: treeOf(t, [][]byte{[]byte("fork")})})
	_, err = one.AddCheckpoint(ctx, 308, nil, same)
	require.ErrorAs(t, err, &conflict)
	small := sign(t, signer, ledger.Checkpoint{Origin: origin, Size: 3, Root: treeOf(t, [][]byte{[]byte("small")})})
	_, err = one.AddCheckpoint(ctx, 308, nil, small)
	require.Error(t, err, "a witness never goes back")
	stranger, _ := keyPair(t, origin)
	_, err = one.AddCheckpoint(ctx, 308, nil, sign(t, stranger, ledger.Checkpoint{Origin: origin, Size: 308, Root: treeOf(t, nil)}))
	require.Error(t, err)

	// Over HTTP the refusals are those of C2SP tlog-witness.
	for body, status := range map[string]int{
		"": 400, "old x\n\n": 400, "old 308\nzz\n\n" + string(published[2]): 400, "old 309\n\n" + string(published[2]): 400, "old 0308\n\n" + string(published[2]): 400,
		"old 0\n\n" + string(published[2]): 409, "old 308\n\n" + string(published[2]): 200, "old 308\n\n" + string(fork): 422,
		"old 0\n\nelsewhere\n1\nAAAA\n\n\u2014 x y\n": 404,
	} {
		res, err := server.Client().Post(server.URL, "text/plain", bytes.NewReader([]byte(body)))
		require.NoError(t, err)
		res.Body.Close()
		require.Equal(t, status, res.StatusCode, "%.60q", body)
	}
	res, err := server.Client().Get(server.URL)
	require.NoError(t, err)
	res.Body.Close()
	require.Equal(t, 405, res.StatusCode)

	// Without the quorum a checkpoint does not go out.
	server.Close()
	f.add(1)
	_, err = l.Seal(ctx)
	require.ErrorContains(t, err, "1 of 3 witnesses")
	require.NoError(t, l.Check(ctx))
}

type deadWitness struct{}

func (deadWitness) AddCheckpoint(context.Context, int64, tlog.TreeProof, []byte) ([]byte, error) {
	panic(fmt.Sprint("witness", 3))
}

// stuckWitness does not look at its context.
type stuckWitness struct {
	now, most atomic.Int64
	back      chan struct{}
}

func (w *stuckWitness) AddCheckpoint(context.Context, int64, tlog.TreeProof, []byte) ([]byte, error) {
	w.most.Store(max(w.most.Load(), w.now.Add(1)))
	defer w.now.Add(-1)
	<-w.back
	return nil, errors.New("late")
}

func TestWitnessThatHangs(t *testing.T) {
	t.Parallel()
	dir := ledgerPath(t)
	synctest.Test(t, func(t *testing.T) {
		_, good := keyPair(t, "good.example.org")
		_, key := keyPair(t, "witness.example.org")
		w := &stuckWitness{back: make(chan struct{})}
		l := open(t, dir, func(c *ledger.Config) {
			c.Witnesses = []ledger.Witness{{Key: good, Client: deadWitness{}}, {Key: key, Client: w}}
		})
		f := &feed{}
		require.NoError(t, l.Follow(f))
		f.add(1)
		for range 5 {
			_, err := l.Seal(context.Background())
			require.ErrorContains(t, err, "0 of 2 witnesses")
		}
		require.Equal(t, int64(1), w.most.Load(), "it is not asked again until it comes back")
		close(w.back)
		synctest.Wait()
		require.Zero(t, w.now.Load())
		_, err := l.Seal(context.Background())
		require.ErrorContains(t, err, "late", "now it is")
	})
}

// counting counts what a log asks of its storage.
type counting struct {
	ledger.Storage
	found, listed atomic.Int64
}

func (s *counting) Find(ctx context.Context, id string) (int64, error) {
	s.found.Add(1)
	return s.Storage.Find(ctx, id)
}

func (s *counting) Checkpoints(ctx context.Context, minSize int64, max int) ([][]byte, error) {
	list, err := s.Storage.Checkpoints(ctx, minSize, max)
	s.listed.Add(int64(1 + len(list)))
	return list, err
}

// TestAProcessWhoseClockIsBehindCostsNothing: its events have older IDs than those that other processes wrote before.
func TestAProcessWhoseClockIsBehindCostsNothing(t *testing.T) {
	t.Parallel()
	var st *counting
	l := open(t, ledgerPath(t), func(c *ledger.Config) {
		st = &counting{Storage: c.Storage}
		c.Storage = st
	})
	f := &feed{}
	f.change(func(f *feed) {
		for i := range 6000 { // two processes in turn, one of them six thousand events behind
			f.events = append(f.events, anEvent(10_000+i), anEvent(4_000+i))
		}
	})
	require.NoError(t, l.Follow(f))
	seal(t, l)
	require.Equal(t, int64(12_000), l.Status().Size)
	require.Zero(t, st.found.Load(), "no file is searched for an event that is new")
}

// TestOpensAmongManyCheckpoints: it finds the newest without reading all.
func TestOpensAmongManyCheckpoints(t *testing.T) {
	t.Parallel()
	l, f := closedLog(t, 1)
	l = l.reopen(t, nil)
	require.NoError(t, l.Follow(f))
	var last []byte
	for i := range 100 {
		f.add(1 + i%3)
		last = seal(t, l)
	}
	f.add(7) // behind the last one
	l.shut()
	var st *counting
	l = l.reopen(t, func(c *ledger.Config) {
		st = &counting{Storage: c.Storage}
		c.Storage = st
	})
	require.Less(t, st.listed.Load(), int64(40))
	got, err := l.Checkpoint(context.Background())
	require.NoError(t, err)
	require.Greater(t, len(got), 0)
	_, err = verify(l, exported(t, l, 0, -1), got, last)
	require.NoError(t, err)
	require.Equal(t, l.Status().Size, l.Status().Signed)
}
