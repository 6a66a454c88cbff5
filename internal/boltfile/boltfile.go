// Open, and what keeps a damaged page from ending the process.

package boltfile

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// Detail is the text of an error that wraps ErrDamaged, without its beginning.
func Detail(err error) string { return strings.TrimPrefix(err.Error(), ErrDamaged.Error()+": ") }

// ErrLocked: another process, or another DB in this one, has the file open.
var ErrLocked = errors.New("the file is open already")

// DB is an open bbolt file. It is safe for concurrent use.
type DB struct {
	db   *bbolt.DB
	file *os.File

	mu   sync.Mutex // guards lost
	lost error      // a panic inside bbolt: its locks may be held, so that nothing may call it again
}

// Options are the settings of Open.
type Options struct {
	Timeout time.Duration // how long to wait for another process to close the file
	Trusted bool          // don't inspect the file: bbolt's own checks do, such as for one that is a lock and holds nothing
}

const (
	// A process that writes the file may change it while it is inspected, since the lock comes after: damage is looked for again.
	inspections = 5
	inspectWait = 10 * time.Millisecond
)

// Open opens the file at path, or makes it where there is none or it is empty. ErrLocked, ErrDamaged, ErrForeign, or an
// error of the system.
func Open(path string, o Options) (db *DB, err error) {
	var opened *os.File
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			db, err = nil, damaged("%v", p)
		}
		if err != nil && opened != nil {
			_ = opened.Close() // with its lock, which bbolt keeps when it panics
		}
	}()
	b, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: o.Timeout, OpenFile: func(name string, flag int, perm os.FileMode) (*os.File, error) {
		f, err := os.OpenFile(name, flag, perm)
		if err != nil || opened != nil {
			return f, err
		}
		opened = f
		if o.Trusted {
			return f, nil
		}
		return f, inspectOrEmpty(f)
	}})
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return nil, ErrLocked
	case errors.Is(err, berrors.ErrInvalid), errors.Is(err, berrors.ErrChecksum), errors.Is(err, berrors.ErrVersionMismatch):
		return nil, damaged("%v", err)
	case err != nil:
		return nil, err
	}
	return &DB{db: b, file: opened}, nil
}

func inspectOrEmpty(f *os.File) error {
	for try := 1; ; try++ {
		info, err := f.Stat()
		if err != nil || info.Size() == 0 {
			return err
		}
		if err = Inspect(f); err == nil || try == inspections {
			return err
		}
		time.Sleep(inspectWait)
	}
}

// PageSize is the size of the file's pages, in bytes.
func (d *DB) PageSize() int { return d.db.Info().PageSize }

// View runs f in a transaction that reads.
func (d *DB) View(f func(*bbolt.Tx) error) error { return d.guarded(d.db.View, f) }

// Update runs f in a transaction that writes.
func (d *DB) Update(f func(*bbolt.Tx) error) error { return d.guarded(d.db.Update, f) }

func (d *DB) guarded(run func(func(*bbolt.Tx) error) error, f func(*bbolt.Tx) error) (err error) {
	if err := d.failure(); err != nil {
		return err
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = damaged("%v", p)
			d.mu.Lock()
			d.lost = err
			d.mu.Unlock()
		}
	}()
	// A call that waits for a lock that a panic left behind would wait for ever: the file is looked at first.
	if info, err := d.file.Stat(); err != nil {
		return err
	} else if _, err := FindMeta(d.file, info.Size()); err != nil {
		return fmt.Errorf("it was overwritten while it was open: %w", err)
	}
	return run(f)
}

func (d *DB) failure() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.lost
}

// Close closes the file. Of one that was lost the map stays until the process ends.
func (d *DB) Close() (err error) {
	if d.failure() != nil {
		if err := d.file.Close(); !errors.Is(err, os.ErrClosed) {
			return err
		}
		return nil
	}
	defer func() {
		if p := recover(); p != nil {
			err = damaged("%v", p)
		}
	}()
	return d.db.Close()
}
