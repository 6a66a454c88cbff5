// Package boltstore keeps an apitoken service in one bbolt file. It is the default store: nothing to install, durable
// at each acknowledged write, quick because concurrent callers share one commit.
//
//	st, err := boltstore.Open("tokens.db", nil)
//	if err != nil { ... }
//	defer st.Close()
//
// One process at a time has the file open for writing; a second one is told which process that is. Beside tokens.db
// lie tokens.db.mark, which tells a restored file from one that went on and carries the lock, and tokens.db.reserve,
// the room that a full disk keeps for revocations. Back up with [Store.Backup], not by copying the file in use.
//
// A file that was restored from a backup, copied, or put back opens with a new History in its positions (see
// [store.Position] and [Store.Restored]): acknowledged revocations may be missing from it, and whoever followed the
// old history must know.
//
// The directory should be on a local file system: bbolt maps the file into memory, and locks over a network are not to
// be relied on.
package boltstore

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/apitoken-go/apitoken/store"
)

// Store is an open file, and the store.Store of its default namespace. It is safe for concurrent use.
type Store struct {
	*space

	path     string // resolved: what a symbolic link points to
	readOnly bool
	history  uint64
	restored bool
	clean    bool // the file is as Close left it
	clock    *clock
	timeout  time.Duration
	commit   func(*bbolt.Tx) error // tests make it fail

	queueMu sync.Mutex // guards queue and closing
	queue   []*request
	closing bool
	wake    chan struct{} // holds one signal that the queue has something
	stopped chan struct{} // closed when the writer has ended
	merging merging
	closed  chan struct{} // closed when Close begins
	ended   chan struct{} // closed when the file is closed; closeErr is final then

	spacesMu sync.Mutex // guards spaces
	spaces   map[string]*space

	// dbMu guards db itself: readers hold it shared for one transaction, the writer takes it alone to put another
	// database behind it. It is never held while a caller runs or waits.
	dbMu sync.RWMutex
	db   *bbolt.DB

	failed   atomic.Pointer[error]
	lost     atomic.Bool   // bbolt panicked where it holds locks of its own
	gone     chan struct{} // closed when lost is set
	left     atomic.Int64  // reads that go on without their callers
	readers  readers
	flight   atomic.Pointer[inFlight]
	opening  atomic.Uint64 // how often the file was opened again after a failure
	copying  chan struct{} // holds a token while Backup or Compact works
	closeErr error
	closeOne sync.Once

	// The writer's alone, once it runs.
	file    *os.File   // db's, which closes it
	anchor  *anchorage // nil: none
	id      [16]byte
	meta    fileMeta
	mark    *mark
	markErr error
	reserve reserve

	relabelled time.Duration // when the label was last changed, monotonic

	full    bool
	probed  time.Duration        // when recovery was last tried, monotonic
	touched map[touched]struct{} // keys written while Compact copies; nil otherwise
}

// Options change what Open does; nil means all defaults.
type Options struct {
	// LockTimeout is how long to wait for another process's lock. Zero: 3 s. Negative: not at all.
	LockTimeout time.Duration
	// Timeout is the longest that a verb or Close takes. Zero: 10 s. A write whose caller was told that the time was
	// over may still be done, like one whose ctx ended. Compact, Backup and Open last as long as the file is large.
	Timeout time.Duration
	// AllowMode holds the permission bits that the file may have beside 0600, for example 0o060 where an orchestrator
	// gives volumes to a group. Zero: a file that others can read or write is refused with ErrExposed. Ignored on
	// Windows, where the bits mean nothing.
	AllowMode os.FileMode
	// ReadOnly opens an existing file for reading, beside other readers. Apply and Purge answer store.ErrReadOnly. No
	// file is written, the mark included. Like a writer, readers exclude a writer.
	ReadOnly bool
	// Now is the clock; nil: time.Now. Only its wall time is used.
	Now func() time.Time
	// Anchor notices a directory that was put back whole, which the file's mark cannot notice where a snapshot of the file
	// system was restored. nil: none. It costs one Swap for each group of changes of state, and nothing for the rest.
	// While it fails, changes of state are written and answer ErrAnchor. A file that was anchored once opens as restored
	// when its anchor is lost; without this option it opens as if it had none.
	Anchor Anchor
	// Progress is called while Open reads the whole file, as it does after a crash: with the number of records and events
	// that were checked, and that of all there are, 0 where an old file does not say. nil: not called. A file that was
	// closed by Close is not read through on Linux, macOS and BSD; elsewhere it is not known whether it is as Close left it.
	Progress func(checked, of uint64)
	// MaxSkew is how far the clock may be behind the last write in the file, for example after the machine's clock was
	// set back; beyond it Open fails with ErrClockBehind. Zero: one minute. Negative: any distance is accepted, which
	// says that the file's time was wrong, not the clock. Stamps never go back in either case.
	MaxSkew time.Duration
}

const (
	defaultLockTimeout = 3 * time.Second
	defaultMaxSkew     = time.Minute
)

// Open opens the file, or makes it with mode 0600 if there is none. A file that is locked, damaged, of a newer format,
// empty, or not of this package's making is an error that says so, and is never replaced; so is a file that is missing
// while its mark is still there. See the errors of this package.
func Open(path string, o *Options) (*Store, error) {
	if o == nil {
		o = &Options{}
	}
	s, err := open(path, o, newClock(o.Now, nil))
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return s, nil
}

func open(path string, o *Options, clk *clock) (_ *Store, err error) {
	if path == "" {
		return nil, fmt.Errorf("%w: no path", store.ErrInvalid)
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real // Compact puts a file in place of this one, not of a link to it
	}
	if path, err = filepath.Abs(path); err != nil {
		return nil, err
	}
	s := &Store{
		path: path, readOnly: o.ReadOnly, clock: clk,
		commit:  func(tx *bbolt.Tx) error { return tx.Commit() },
		wake:    make(chan struct{}, 1),
		stopped: make(chan struct{}), closed: make(chan struct{}), ended: make(chan struct{}), gone: make(chan struct{}),
		merging: merging{due: map[*space]struct{}{}, wake: make(chan struct{}, 1)},
		timeout: o.Timeout,
		spaces:  map[string]*space{},
		copying: make(chan struct{}, 1),
		reserve: reserve{path: path + ".reserve"},
	}
	s.space = s.newSpace("", nil)
	if s.timeout <= 0 {
		s.timeout = defaultTimeout
	}
	wait := o.LockTimeout
	switch {
	case wait == 0:
		wait = defaultLockTimeout
	case wait < 0:
		wait = 0
	}
	deadline := time.Now().Add(wait)
	fresh := false
	fi, err := os.Stat(path)
	switch {
	case err == nil:
		// Before anything is written beside it, and before a pipe is opened.
		if err := checkKindOfFile(fi); err != nil {
			return nil, err
		}
		if err := checkMagic(path); err != nil {
			return nil, err
		}
	case !errors.Is(err, os.ErrNotExist):
		return nil, err
	case o.ReadOnly:
		return nil, err
	default:
		if to, err := os.Readlink(path); err == nil {
			// A volume that is not mounted, for example: what the link names is not to be made in its stead.
			return nil, fmt.Errorf("%w: it is a link to %s", ErrMissing, to)
		}
		fresh = true
	}
	if o.Anchor != nil {
		if f, ok := o.Anchor.(FileAnchor); ok {
			if err := f.checkPlace(path); err != nil {
				return nil, err
			}
		}
		s.anchor = newAnchorage(o.Anchor, s.timeout)
	}
	if s.mark, err = s.lockMark(wait); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			if s.db != nil {
				_ = s.db.Close()
			}
			_ = s.mark.close()
		}
	}()
	marked, err := s.mark.load()
	if err != nil {
		return nil, err
	}
	if !o.ReadOnly {
		s.removeLeftovers()
	}
	if fresh {
		if _, err := os.Stat(path); err == nil {
			fresh = false // made while the lock was waited for
		}
	}
	if fresh {
		if marked {
			return nil, fmt.Errorf("%w: %s says that there was one; put it back, or remove the mark as well to begin anew",
				ErrMissing, s.mark.f.Name())
		}
		if err := s.create(); err != nil {
			return nil, err
		}
	}
	look := inspect
	if s.clean = marked && s.mark.closed != (fileState{}) && s.mark.closed == stateOf(path); s.clean {
		look = inspectShallow
	}
	if s.db, err = s.openDB(max(time.Until(deadline), time.Millisecond), look); err != nil {
		return nil, err
	}
	if err := s.adopt(o, fresh, marked); err != nil {
		return nil, err
	}
	if !o.ReadOnly {
		s.full = s.reserve.refill() != nil
	}
	go s.run()
	if !o.ReadOnly {
		go s.index()
	}
	if s.anchor != nil {
		if o.ReadOnly {
			s.anchor = nil
		} else {
			go s.anchor.run()
		}
	}
	return s, nil
}

// lockMark opens the mark and takes the store's lock.
func (s *Store) lockMark(wait time.Duration) (*mark, error) {
	name := s.path + ".mark"
	flag := os.O_RDWR | os.O_CREATE
	if s.readOnly {
		flag = os.O_RDONLY
	}
	f, err := os.OpenFile(name, flag, 0o600)
	if err != nil {
		if s.readOnly {
			return &mark{}, nil // bbolt's own lock must do
		}
		return nil, err
	}
	if err := lockFile(f, s.readOnly, wait); err != nil {
		_ = f.Close()
		if errors.Is(err, errTimedOut) {
			return nil, s.lockedBy(wait)
		}
		return nil, err
	}
	return &mark{f: f}, nil
}

func (s *Store) lockedBy(wait time.Duration) error {
	who := lockHolder(s.path+".mark", s.path)
	if who == "" {
		who = "another process"
	}
	return fmt.Errorf("%w: %s has it open (waited %v)", ErrLocked, who, wait)
}

// tempName begins the names of the files that this package makes beside the database for a while. Nobody names a file of his
// own so: a copy that an operator keeps there, such as tokens.db.backup-20260301, is not ours to remove.
const tempName = ".apitoken-tmp-"

// removeLeftovers takes away what a crash left of Open, Compact and Backup. Only the holder of the lock does.
func (s *Store) removeLeftovers() {
	dir, base := filepath.Split(s.path)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), base+tempName) {
			_ = os.Remove(filepath.Join(dir, e.Name()))
		}
	}
}

func checkKindOfFile(fi os.FileInfo) error {
	switch {
	case fi.IsDir():
		return fmt.Errorf("%w: it is a directory", ErrForeign)
	case !fi.Mode().IsRegular():
		return fmt.Errorf("%w: it is not a regular file", ErrForeign)
	case fi.Size() == 0:
		return fmt.Errorf("%w: it exists and is empty, which a token store never is; if nothing was lost, remove it", ErrForeign)
	}
	return nil
}

// checkMagic refuses a file that has nothing of bbolt, whatever a writer is doing with it.
func checkMagic(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if _, err := findMeta(f, fi.Size()); errors.Is(err, ErrForeign) {
		return err
	}
	return nil
}

// create makes the file whole beside its place and links it there: a crash never leaves half of one, and a file that
// appears meanwhile is not replaced.
func (s *Store) create() error {
	name := s.path + tempName + "new"
	db, err := bbolt.Open(name, 0o600, &bbolt.Options{Timeout: time.Second})
	if err != nil {
		return err
	}
	wall := s.clock.wall().UnixMilli()
	m := fileMeta{history: newHistory(), highest: wall, believed: wall}
	err = db.Update(func(tx *bbolt.Tx) error { return writeFormat(tx, randomID(), &m) })
	if cerr := db.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = linkInto(name, s.path)
	}
	if err != nil {
		_ = os.Remove(name)
		return err
	}
	return syncDir(filepath.Dir(s.path))
}

func linkInto(from, to string) error {
	err := os.Link(from, to)
	if err == nil {
		return os.Remove(from)
	}
	if _, there := os.Lstat(to); there == nil {
		return fmt.Errorf("%w: it appeared while this process made it", ErrLocked)
	}
	return os.Rename(from, to) // a file system without links
}

func randomID() (id [16]byte) {
	_, _ = rand.Read(id[:]) // never fails
	return id
}

// newHistory is never 0, which means no history.
func newHistory() uint64 {
	id := randomID()
	return binary.BigEndian.Uint64(id[:]) | 1
}

// openDB inspects the file and opens it with bbolt, whose panics become errors.
func (s *Store) openDB(wait time.Duration, inspect func(*os.File) error) (db *bbolt.DB, err error) {
	var opened *os.File
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			db, err = nil, panicError(p)
		}
		if err != nil && opened != nil {
			_ = opened.Close() // with its lock, which bbolt keeps when it panics
		}
	}()
	db, err = bbolt.Open(s.path, 0o600, &bbolt.Options{
		Timeout: wait, ReadOnly: s.readOnly, InitialMmapSize: s.mapSize(),
		OpenFile: func(name string, flag int, perm os.FileMode) (*os.File, error) {
			if opened != nil {
				return os.OpenFile(name, flag&^os.O_CREATE, perm)
			}
			// Not to be made: between the check above and here it may have gone.
			f, err := os.OpenFile(name, flag&^os.O_CREATE, perm)
			if err != nil {
				return nil, err
			}
			opened = f
			// bbolt takes its lock after this and a writer could still change the file; but then that writer is not
			// of this package, whose lock we hold.
			return f, inspect(f)
		},
	})
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return nil, s.lockedBy(wait)
	case errors.Is(err, berrors.ErrInvalid), errors.Is(err, berrors.ErrChecksum), errors.Is(err, berrors.ErrVersionMismatch):
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	case err == nil:
		s.file = opened
	}
	return db, err
}

// mapSize maps more than the file, so that a writer seldom needs a new map, for which it would wait for readers. Only
// addresses are used.
func (s *Store) mapSize() int {
	if s.readOnly || ^uint(0)>>32 == 0 {
		return 0
	}
	return 1 << 30
}

// adopt reads what the file says of itself, finds out whether it went on or was put back, and writes that down.
func (s *Store) adopt(o *Options, fresh, marked bool) error {
	var backup bool
	err := s.view(func(tx *bbolt.Tx) (err error) {
		s.id, s.meta, backup, err = readFormat(tx)
		return err
	})
	if err != nil {
		return err
	}
	if err := s.checkMode(o.AllowMode); err != nil {
		return err
	}
	look := &survey{ctx: context.Background(), all: !s.clean, each: func(int) {}}
	if o.Progress != nil && !s.clean {
		if look.each, err = s.progress(o.Progress); err != nil {
			return err
		}
	}
	if s.meta.format != formatPlain {
		if err := s.view(look.check); err != nil {
			return err
		}
		look.each(look.seen % surveyStep)
	}
	now := s.clock.wall().UnixMilli()
	skew := o.MaxSkew
	if skew == 0 {
		skew = defaultMaxSkew
	}
	if behind := time.Duration(s.meta.highest-now) * time.Millisecond; skew > 0 && s.meta.highest-now > skew.Milliseconds() {
		return fmt.Errorf("%w: by %v, at most %v; set the clock, or accept it with Options.MaxSkew",
			ErrClockBehind, behind.Round(time.Second), skew)
	}
	s.clock.trust(s.meta.believed, s.meta.highest)
	fi, err := os.Stat(s.path)
	if err != nil {
		return err
	}
	ino, born := inode(fi), bornAt(s.path)
	m := &s.mark.markContent
	same := marked && !backup && m.id == s.id && m.names(ino, born) && s.meta.seq >= m.seq
	if same {
		if same, err = s.labelled(m); err != nil {
			return err
		}
	}
	if s.readOnly && s.mark.f == nil {
		same = !backup // there is nothing to tell by
	}
	behind := false
	if s.anchor != nil {
		if err := s.anchor.load(); err != nil {
			return err
		}
		if behind, err = s.anchor.judge(s.meta.anchor, s.id, s.meta.seq); err != nil {
			return err
		}
	}
	// A crash between the making of a file and of its mark is not a restore: nothing has been acknowledged.
	unborn := s.meta.seq == 0 && !marked && !backup
	s.restored = !same && !fresh && !unborn || behind
	if s.restored {
		s.meta.history = newHistory()
	}
	s.history = s.meta.history
	if s.readOnly {
		return nil
	}
	id := s.id
	if s.restored {
		id = randomID() // another id as well: the copy and the original are two files from now on
	}
	changed := s.restored || s.meta.format < formatVersion
	if g := s.anchor; g != nil {
		next := anchored{name: g.at.name, id: id, seq: s.meta.seq}
		if next.name == [16]byte{} {
			if next.name = s.meta.anchor; next.name == [16]byte{} {
				next.name = randomID()
			}
		}
		changed = changed || next.name != s.meta.anchor
		s.meta.anchor = next.name
		// Before the file says so: if this process dies in between, the file is behind its anchor, or knows it by its id.
		if next != g.at {
			if err := g.swap(next); err != nil {
				return err
			}
		}
		g.id, g.seq = id, s.meta.seq
	}
	if changed {
		// Nothing was written so far. After a power failure the file could be half written and still bear the old time.
		if err := s.mark.unclose(); err != nil {
			return err
		}
		err := s.db.Update(func(tx *bbolt.Tx) error {
			if s.meta.format == formatPlain {
				if err := look.addDigests(tx, &s.meta); err != nil {
					return err
				}
			}
			s.meta.seq++
			s.meta.format = formatVersion
			s.id = id
			if err := writeFormat(tx, s.id, &s.meta); err != nil {
				return err
			}
			return tx.Bucket(bucketFormat).Delete(keyBackup)
		})
		if err != nil {
			return err
		}
	}
	opened := markContent{id: s.id, inode: ino, born: born, seq: s.meta.seq, nonce: m.nonce, next: m.next}
	if !same || m.nonce == (nonce{}) {
		opened.nonce, opened.next = relabelAnew(s.path), nonce{}
	}
	*m = opened
	// Written before it is cut: a mark of an older version, which is shorter, is never read half.
	if err := s.mark.save(); err != nil {
		return err
	}
	if err := s.mark.f.Truncate(markSize); err != nil {
		return err
	}
	if err := s.mark.saveDurably(); err != nil {
		return err
	}
	_ = s.relabel() // the mark says how far it came
	return nil
}

// progress makes a survey's each of the host's callback, which gets the number of all there is to check from the heads.
// What panics is not called again: a panic here would look like damage.
func (s *Store) progress(call func(checked, of uint64)) (each func(int), err error) {
	var checked, of uint64
	err = s.view(func(tx *bbolt.Tx) error {
		return tx.ForEach(func(name []byte, ns *bbolt.Bucket) error {
			if bytes.Equal(name, bucketFormat) {
				return nil
			}
			h, err := readHead(ns)
			of += h.digest.state.count + h.digest.order.count + h.digest.others.count + h.digest.events.count
			return err
		})
	})
	return func(n int) {
		defer func() {
			if recover() != nil {
				call = func(uint64, uint64) {}
			}
		}()
		checked += uint64(n)
		call(checked, of)
	}, err
}

// checkMode refuses a file that others can read or write: whoever reads it can use what is in it, and whoever writes it
// can bring back what was revoked.
func (s *Store) checkMode(allow os.FileMode) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	fi, err := s.file.Stat()
	if err != nil {
		return err
	}
	if mode := fi.Mode().Perm(); mode&^(0o700|allow) != 0 {
		return fmt.Errorf("%w: its mode is %04o; chmod 600 it, or accept the mode with Options.AllowMode", ErrExposed, mode)
	}
	return nil
}

// Restored reports whether this opening found that the file had been restored from a backup, copied, or put back, and
// so gave it a new History. The reason to ask is that acknowledged revocations may be missing.
func (s *Store) Restored() bool { return s.restored }

// Namespace returns the store of another namespace in the same file: its records, order and events are its own. The
// name is 1 to 64 of a-z, 0-9, '-' and '_'; with another name every verb answers an error that says so.
func (s *Store) Namespace(name string) store.Store {
	s.spacesMu.Lock()
	defer s.spacesMu.Unlock()
	if sp := s.spaces[name]; sp != nil {
		return sp
	}
	if !validNamespace(name) {
		return s.newSpace("", fmt.Errorf("%w: namespace %q must be 1 to 64 of a-z, 0-9, '-' and '_'", store.ErrInvalid, name))
	}
	sp := s.newSpace(name, nil)
	s.spaces[name] = sp
	return sp
}

func validNamespace(name string) bool {
	ok := len(name) >= 1 && len(name) <= 64
	for i := range len(name) {
		c := name[i]
		ok = ok && (c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_')
	}
	return ok
}

func (s *Store) newSpace(name string, err error) *space {
	return &space{s: s, bucket: []byte(namespacePrefix + name), err: err, tails: map[store.Kind]int{}, newest: map[store.Kind]string{}}
}

// view runs f in a read transaction. A page that does not read is an error, not a panic.
func (s *Store) view(f func(*bbolt.Tx) error) (err error) {
	s.dbMu.RLock()
	defer s.dbMu.RUnlock()
	if err := s.failure(); err != nil {
		return err
	}
	if s.db == nil {
		return ErrClosed
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	began := false
	defer func() {
		if p := recover(); p != nil {
			if err = s.caught(p); !began {
				s.giveFileUp(err) // Begin panics with bbolt's lock of the meta pages held
			}
		}
	}()
	return s.db.View(func(tx *bbolt.Tx) error {
		began = true
		return f(tx)
	})
}

// Close waits for writes in progress and closes the file. What is called later answers ErrClosed. Closing twice is
// allowed, and answers the same. If the disk does not answer within Options.Timeout, Close returns an error; the file
// and its lock are released when the disk does answer.
func (s *Store) Close() error {
	s.closeOne.Do(func() { go s.shutdown() })
	timer := time.NewTimer(s.timeout)
	defer timer.Stop()
	select {
	case <-s.ended:
		return s.closeErr
	case <-timer.C:
		return fmt.Errorf("boltstore: close: %w", s.tooLate())
	}
}

// shutdown is Close's work. It sets closeErr before it closes ended.
func (s *Store) shutdown() {
	defer close(s.ended)
	defer s.readers.close() // a read under way ends by itself
	s.queueMu.Lock()
	s.closing = true
	s.queueMu.Unlock()
	close(s.closed)
	select {
	case s.wake <- struct{}{}:
	default:
	}
	err := s.waitForOthers()
	if s.anchor != nil {
		if err == nil {
			s.anchor.advance(s.meta.seq, nil)
		}
		s.anchor.close()
	}
	if err != nil {
		s.closeErr = err
		return
	}
	var anchorErr error
	if s.anchor != nil {
		<-s.anchor.done // its calls have a timeout
		anchorErr = s.anchor.err
	}
	s.dbMu.Lock()
	db := s.db
	s.db = nil
	s.dbMu.Unlock()
	s.closeErr = errors.Join(s.failure(), anchorErr)
	if db != nil {
		s.closeErr = errors.Join(s.closeErr, s.closeLast(db))
	}
	if s.markErr != nil {
		s.closeErr = errors.Join(s.closeErr, fmt.Errorf("boltstore: write the mark: %w", s.markErr))
	}
	if !s.readOnly && s.mark.f != nil {
		if s.failure() == nil {
			_ = s.relabel() // the mark says how far it came
		}
		if s.closeErr == nil {
			s.mark.closed = stateOf(s.path)
		}
		s.closeErr = errors.Join(s.closeErr, s.mark.saveDurably())
	}
	s.closeErr = errors.Join(s.closeErr, s.mark.close())
}

// waitForOthers waits until the writer has ended and no copy is being made. Once the file is given up either may be
// stuck behind a lock of bbolt's for ever; nothing can be written then, so only the store's own lock is released.
func (s *Store) waitForOthers() error {
	var late <-chan time.Time
	gone := s.gone
	stopped, copying := s.stopped, s.copying // Backup and Compact end by s.closed
	for stopped != nil || copying != nil {
		select {
		case <-stopped:
			stopped = nil
		case copying <- struct{}{}:
			copying = nil
		case <-gone:
			gone, late = nil, time.After(giveUp)
		case <-late:
			return errors.Join(s.failure(), s.mark.close())
		}
	}
	return nil
}

// closeLast does not wait for a lock that a panic inside bbolt left behind.
func (s *Store) closeLast(db *bbolt.DB) error {
	if !s.lost.Load() {
		return closeDB(db)
	}
	done := make(chan error, 1)
	go func() { done <- closeDB(db) }()
	select {
	case err := <-done:
		return err
	case <-time.After(giveUp):
		return errValue("the file is given up, its map stays until the process ends")
	}
}

func closeDB(db *bbolt.DB) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = panicError(p)
		}
	}()
	return db.Close()
}
