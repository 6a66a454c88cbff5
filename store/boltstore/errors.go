package boltstore

import (
	"errors"
	"strings"
	"syscall"
)

// What Open and the verbs answer beside the errors of package store. Errors that wrap one of these say more: the path,
// the process that holds the lock, the page that is damaged.
var (
	// ErrLocked: another process, or another Store in this one, has the file open.
	ErrLocked = errors.New("boltstore: file is locked")
	// ErrForeign: the file exists and is not of this package's making, an empty file and a directory included.
	ErrForeign = errors.New("boltstore: not a token store")
	// ErrVersion: a newer version of this package wrote the file.
	ErrVersion = errors.New("boltstore: file has a newer format")
	// ErrDamaged: the file was cut, overwritten or fails a checksum.
	ErrDamaged = errors.New("boltstore: file is damaged")
	// ErrMissing: the file is gone, but its mark says that there was one; or it is a link to what is not there.
	ErrMissing = errors.New("boltstore: database file is missing")
	// ErrClockBehind: the clock is behind the last write in the file by more than Options.MaxSkew.
	ErrClockBehind = errors.New("boltstore: clock is behind the file")
	// ErrFull: the disk is full; revocations alone still have room.
	ErrFull = errors.New("boltstore: disk is full")
	// ErrFailed: a commit failed and its outcome is not known yet. The store answers nothing until reopening the file
	// has made it definite, which it tries by itself.
	ErrFailed = errors.New("boltstore: a write failed, the file must be reopened")
	// ErrExposed: others than the file's owner may read or write it; see Options.AllowMode.
	ErrExposed = errors.New("boltstore: file is open to others")
	// ErrAnchor: Options.Anchor fails, or belongs to another store. A change of state that it answers is in the file and
	// in force, and not acknowledged: repeat it.
	ErrAnchor = errors.New("boltstore: anchor")
	// ErrClosed: the Store was closed.
	ErrClosed = errors.New("boltstore: closed")
)

// isFull recognises a full disk, quota or file size limit, also where bbolt kept only the text of the error.
func isFull(err error) bool {
	if err == nil {
		return false
	}
	for _, e := range []syscall.Errno{syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG} {
		if errors.Is(err, e) || strings.Contains(err.Error(), e.Error()) {
			return true
		}
	}
	return false
}
