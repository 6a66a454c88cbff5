package boltstore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"runtime/debug"
	"time"

	"go.etcd.io/bbolt"
)

// After a failed commit nothing is known: the new meta page may be visible and not on the disk, and the kernel counts
// pages whose write-back failed as clean, so that a second fsync says yes without having written them. So the store
// fails closed, closes the database, writes each page in use anew and syncs that, meta pages last, and opens the file
// again. Then the outcome is definite and durable, and the same Change, repeated, recognises itself.

func (s *Store) failure() error {
	if p := s.failed.Load(); p != nil {
		return *p
	}
	return nil
}

func (s *Store) setFailure(cause error) {
	err := fmt.Errorf("%w: %w", ErrFailed, cause)
	s.failed.CompareAndSwap(nil, &err)
}

// panicError makes an error of what was recovered: bbolt panics where a page does not read.
func panicError(p any) error {
	if err, ok := p.(error); ok && errors.Is(err, ErrDamaged) {
		return err
	}
	return errValue(fmt.Sprint(p))
}

// caught does the same, and gives the file up when the runtime itself panicked: the file was cut below its map, or a
// page pointed behind it. bbolt may hold locks of its own then, and reopening would help only another process.
func (s *Store) caught(p any) error {
	err := panicError(p)
	if _, fault := p.(runtime.Error); fault {
		s.giveFileUp(err)
	}
	return err
}

// recoverFile is called by the writer after a failure, at once and then at most once a second.
func (s *Store) recoverFile() bool {
	if s.failure() == nil {
		return true
	}
	if s.lost.Load() {
		return false
	}
	now := s.clock.mono()
	if s.probed != 0 && now-s.probed < probeEvery && s.db == nil {
		return false
	}
	s.probed = now
	cause := s.failure()
	// Readers answer the failure meanwhile; none of them is to wait for the disk.
	s.dbMu.Lock()
	old := s.db
	s.db = nil
	s.dbMu.Unlock()
	if old != nil {
		_ = closeDB(old) // its errors are those of a database that has failed already
	}
	// A write that the file system refused did not come as far as the meta page: no page is in doubt.
	if refused := (*fs.PathError)(nil); !errors.As(cause, &refused) {
		if err := rewritePages(s.path); err != nil {
			return false
		}
	}
	db, err := s.openDB(time.Second, inspectShallow)
	if err != nil {
		return false
	}
	if err := s.reread(db); err != nil {
		_ = closeDB(db)
		return false
	}
	s.dbMu.Lock()
	s.db = db
	s.dbMu.Unlock()
	s.opening.Add(1)
	s.failed.Store(nil)
	return true
}

// reread takes the meta from the file again; its history stays what it was, for this process saw all of it.
func (s *Store) reread(db *bbolt.DB) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = panicError(p)
		}
	}()
	var id [16]byte
	var m fileMeta
	err = db.View(func(tx *bbolt.Tx) (err error) {
		id, m, _, err = readFormat(tx)
		return err
	})
	if err != nil {
		return err
	}
	if id != s.id || m.history != s.history {
		return fmt.Errorf("%w: another file has taken its place", ErrForeign)
	}
	highest := max(s.meta.highest, m.highest)
	s.meta = m
	s.meta.highest = highest
	return nil
}

// rewritePages writes what the kernel shows of the file to the disk again. Data goes first: a meta page must not be on
// the disk before the pages it refers to.
func rewritePages(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	m, err := inspectMeta(f)
	if err != nil {
		return err
	}
	ps := int64(m.pageSize)
	buf := make([]byte, 256*ps)
	end := int64(m.pages) * ps
	for off := 2 * ps; off < end; off += int64(len(buf)) {
		b := buf[:min(int64(len(buf)), end-off)]
		if _, err := f.ReadAt(b, off); err != nil {
			return err
		}
		for at := int64(0); at < int64(len(b)); at += ps {
			if page := b[at : at+ps]; !allZero(page) { // a hole stays one, it has no room to take
				if _, err := f.WriteAt(page, off+at); err != nil {
					return err
				}
			}
		}
	}
	if err := f.Sync(); err != nil {
		return err
	}
	b := buf[:2*ps]
	if _, err := f.ReadAt(b, 0); err != nil {
		return err
	}
	if _, err := f.WriteAt(b, 0); err != nil {
		return err
	}
	return f.Sync()
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// freeBytes is the room inside the file, in pages that a commit can take without asking the disk.
func (s *Store) freeBytes() int64 {
	st := s.db.Stats()
	return int64(st.FreePageN) * int64(s.db.Info().PageSize)
}
