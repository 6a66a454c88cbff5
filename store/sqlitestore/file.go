package sqlitestore

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// The tables have a real column for all that is selected by, so that an operator can query them. Names begin with @,
// which stands for the prefix. Text is compared bytewise, SQLite's default.
var schema = []string{
	`CREATE TABLE @file (
		one    INTEGER PRIMARY KEY CHECK (one = 1),
		format INTEGER NOT NULL,
		origin TEXT    NOT NULL, -- changes whenever acknowledged writes may have been lost
		serial INTEGER NOT NULL  -- of the last transaction that wrote; the mark beside the file has it too
	)`,
	`CREATE TABLE @namespace (
		ns      TEXT    PRIMARY KEY NOT NULL,
		head    INTEGER NOT NULL, -- N of the last state change
		history INTEGER NOT NULL, -- changes whenever acknowledged writes may have been lost
		place   INTEGER NOT NULL, -- of the last event
		trimmed INTEGER NOT NULL, -- place of the last event that was purged
		moved   INTEGER NOT NULL, -- 1: takes no writes
		origin  TEXT    NOT NULL  -- of the file when this row was written
	) WITHOUT ROWID`,
	`CREATE TABLE @record (
		ns       TEXT NOT NULL,
		kind     TEXT NOT NULL,
		id       TEXT NOT NULL,
		version  BLOB NOT NULL,
		pos      INTEGER NOT NULL, -- 0: no state
		written  INTEGER NOT NULL, -- Unix ms
		expires  INTEGER NOT NULL, -- Unix ms, 0: never
		subject  TEXT NOT NULL,
		client   TEXT NOT NULL,
		grant_id TEXT NOT NULL,
		token    TEXT NOT NULL,
		type     TEXT NOT NULL,
		data     BLOB NOT NULL,
		PRIMARY KEY (ns, kind, id)
	) WITHOUT ROWID`,
	`CREATE INDEX @record_pos ON @record (ns, pos) WHERE pos > 0`,
	`CREATE INDEX @record_expires ON @record (ns, kind, expires) WHERE expires > 0`,
	`CREATE INDEX @record_subject ON @record (ns, kind, subject, id) WHERE subject <> ''`,
	`CREATE INDEX @record_client ON @record (ns, kind, client, id) WHERE client <> ''`,
	`CREATE INDEX @record_token ON @record (ns, kind, token, id) WHERE token <> ''`,
	`CREATE TABLE @event (
		ns       TEXT NOT NULL,
		place    INTEGER NOT NULL,
		id       TEXT NOT NULL,
		version  BLOB NOT NULL,
		written  INTEGER NOT NULL,
		expires  INTEGER NOT NULL,
		subject  TEXT NOT NULL,
		client   TEXT NOT NULL,
		grant_id TEXT NOT NULL,
		token    TEXT NOT NULL,
		type     TEXT NOT NULL,
		data     BLOB NOT NULL,
		PRIMARY KEY (ns, place)
	) WITHOUT ROWID`,
	`CREATE INDEX @event_subject ON @event (ns, subject, place) WHERE subject <> ''`,
	`CREATE INDEX @event_client ON @event (ns, client, place) WHERE client <> ''`,
	`CREATE INDEX @event_grant ON @event (ns, grant_id, place) WHERE grant_id <> ''`,
	`CREATE INDEX @event_token ON @event (ns, token, place) WHERE token <> ''`,
	`CREATE INDEX @event_type ON @event (ns, type, place) WHERE type <> ''`,
	`CREATE INDEX @event_expires ON @event (ns, expires) WHERE expires > 0`,
	`INSERT INTO @file (one, format, origin, serial) VALUES (1, 1, lower(hex(randomblob(16))), 0)`,
}

const format = 1

// file is an open database file and its mark.
//
// The mark is a small file beside it, <path>.mark: which file this is, by its inode and birth time, and the serial of its
// last transaction. It is written after every commit without waiting for the disk, so it is never ahead of a database
// that kept its acknowledged commits, and it may be behind after a power failure, which means nothing. A database behind
// its mark, with another inode or birth time, or without a mark was put back, copied or moved to another file system.
type file struct {
	path     string
	opened   os.FileInfo
	own      *sql.DB // that Close closes; nil: it is the host's
	restored bool

	mark *os.File
	markContent
}

type markContent struct {
	origin      [32]byte // as in the table file
	inode, born uint64   // 0: not known
	serial      int64
}

var markMagic = [8]byte{'a', 'p', 'i', 't', 's', 'q', 'l', '1'}

func (m *markContent) encode() []byte {
	b := append(markMagic[:], m.origin[:]...)
	for _, n := range []uint64{m.inode, m.born, uint64(m.serial)} {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	return binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
}

const markSize = 8 + 32 + 3*8 + 4

// read reports whether there is a mark to go by.
func (m *markContent) read(f *os.File) (bool, error) {
	b := make([]byte, markSize+1)
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	if n != markSize || [8]byte(b[:8]) != markMagic || binary.BigEndian.Uint32(b[markSize-4:]) != crc32.ChecksumIEEE(b[:markSize-4]) {
		return false, nil
	}
	m.origin = [32]byte(b[8:40])
	m.inode, m.born = binary.BigEndian.Uint64(b[40:]), binary.BigEndian.Uint64(b[48:])
	m.serial = int64(binary.BigEndian.Uint64(b[56:]))
	return true, nil
}

// committed writes the mark behind a transaction. Its size never changes, so it is old or new after a power failure, and
// an error leaves it behind, which means nothing.
func (f *file) committed(serial int64) {
	f.serial = serial
	_, _ = f.mark.WriteAt(f.encode(), 0)
}

// replaced reports whether another file lies in the place of the one that is open.
func (f *file) replaced() error {
	fi, err := os.Stat(f.path)
	switch {
	case err == nil && os.SameFile(fi, f.opened):
		return nil
	case err == nil || errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%w: %s is another file than the one that is open", ErrReplaced, f.path)
	}
	return err
}

// adopt finds out whether the file went on or was put back, and writes that down in one transaction, which other
// processes that open it wait for.
func adopt(ctx context.Context, db *sql.DB, path string, make bool, prefix string) (_ *file, err error) {
	f := &file{path: path}
	if f.opened, err = os.Stat(path); err != nil {
		return nil, err
	}
	c, err := db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	var mode string
	if err := c.QueryRowContext(ctx, "PRAGMA journal_mode = WAL").Scan(&mode); err != nil {
		return nil, err
	}
	if mode != "wal" {
		return nil, fmt.Errorf("sqlitestore: the database stays in journal mode %s, where WAL is needed", mode)
	}
	if err := durable(ctx, c); err != nil {
		return nil, err
	}
	if f.mark, err = os.OpenFile(path+".mark", os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = f.mark.Close()
		}
	}()
	if _, err := c.ExecContext(ctx, "BEGIN IMMEDIATE"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_, _ = c.ExecContext(context.Background(), "ROLLBACK")
		}
	}()
	// The mark first: a process that has the file open writes it behind the transaction.
	marked, err := f.read(f.mark)
	if err != nil {
		return nil, err
	}
	if err := makeTables(ctx, c, make, prefix); err != nil {
		return nil, err
	}
	var of int
	var origin string
	var serial int64
	if err := c.QueryRowContext(ctx, "SELECT format, origin, serial FROM "+prefix+"file").Scan(&of, &origin, &serial); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrForeign, err)
	}
	if of != format || len(origin) != 32 {
		return nil, fmt.Errorf("%w: its tables are of format %d, this program knows %d", ErrForeign, of, format)
	}
	inode, born := identity(path)
	same := marked && f.origin == [32]byte([]byte(origin)) && f.inode == inode && (f.born == born || f.born == 0 || born == 0) && serial >= f.serial
	// A crash between the making of a file and of its mark is not a restore: nothing has been acknowledged.
	if f.restored = !same && (marked || serial > 0); f.restored {
		var sound string
		if err := c.QueryRowContext(ctx, "PRAGMA quick_check(1)").Scan(&sound); err != nil {
			return nil, err
		}
		if sound != "ok" {
			return nil, fmt.Errorf("%w: it was put back, perhaps beside an old log: %s", ErrDamaged, sound)
		}
		origin, serial = fmt.Sprintf("%032x", randomID()), serial+1
		if _, err := c.ExecContext(ctx, fmt.Sprintf("UPDATE %sfile SET origin = '%s', serial = %d", prefix, origin, serial)); err != nil {
			return nil, err
		}
	}
	// Written before the commit, under its lock: a crash in between leaves a mark that does not fit, which is a restore again.
	f.markContent = markContent{[32]byte([]byte(origin)), inode, born, serial}
	if _, err := f.mark.WriteAt(f.encode(), 0); err != nil {
		return nil, err
	}
	if err := f.mark.Sync(); err != nil {
		return nil, err
	}
	_, err = c.ExecContext(ctx, "COMMIT")
	return f, err
}

func randomID() []byte {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	return b
}

// makeTables makes those that are not there, if it may.
func makeTables(ctx context.Context, c *sql.Conn, make bool, prefix string) error {
	var there int
	if err := c.QueryRowContext(ctx, "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = '"+prefix+"file'").Scan(&there); err != nil {
		return err
	}
	if there > 0 {
		return nil
	}
	if !make {
		return fmt.Errorf("%w: it has no table %sfile", ErrForeign, prefix)
	}
	for _, text := range schema {
		if _, err := c.ExecContext(ctx, strings.ReplaceAll(text, "@", prefix)); err != nil {
			return err
		}
	}
	return nil
}

// create makes the file whole beside its place and links it there: a crash never leaves half of one, and a file that
// appears meanwhile, as of another process that starts, is not replaced.
func create(path, prefix string) (err error) {
	name := fmt.Sprintf("%s.apitoken-tmp-%x", path, randomID()[:4])
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer os.Remove(name)
	if err := f.Close(); err != nil {
		return err
	}
	db, err := openDB(name)
	if err != nil {
		return err
	}
	fill := func() error {
		c, err := db.Conn(context.Background())
		if err != nil {
			return err
		}
		defer c.Close()
		// Not yet WAL: all is in the one file then.
		if _, err := c.ExecContext(context.Background(), "BEGIN IMMEDIATE"); err != nil {
			return err
		}
		if err := makeTables(context.Background(), c, true, prefix); err != nil {
			return err
		}
		_, err = c.ExecContext(context.Background(), "COMMIT")
		return err
	}
	if err := errors.Join(fill(), db.Close()); err != nil {
		return err
	}
	if err := os.Link(name, path); err != nil {
		if _, there := os.Lstat(path); there == nil {
			return nil
		}
		if err := os.Rename(name, path); err != nil { // a file system without links
			return err
		}
	}
	return syncDir(filepath.Dir(path))
}
