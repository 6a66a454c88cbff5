package ledger

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/apitoken-go/apitoken/internal/boltfile"
)

// A Dir is a directory:
//
//	00000000000000000000.jsonl   lines, as an export has them; named by the position of the first
//	hashes                       the tree, 32 bytes each, in the order of tlog.StoredHashIndex
//	state.db                     what is committed: a bbolt file, whose lock keeps other processes out
//
// Lines and hashes are synced before the state that counts them is committed. So a crash can only leave something behind
// what is committed: that is a torn tail, which OpenDir cuts off and the ledger reads from the feed again. What is missing or
// different before it was not done by a crash, and OpenDir refuses it.

// Dir is a Storage in the files of a directory, best not on the disk of the service's store.
type Dir struct {
	path string
	opts DirOptions
	torn Torn

	mu       sync.RWMutex // guards all below
	db       *boltfile.DB
	state    State
	segments []segment // by first; the last one is written to
	tail     *os.File
	hashes   *os.File
	broken   error
	fsync    func(*os.File) error // tests make it fail
}

// DirOptions are the settings of a Dir; zero fields take the default in brackets.
type DirOptions struct {
	SegmentRecords int           // [4096] records in a file of lines
	LockTimeout    time.Duration // [1s] to wait for another process to close the directory
}

// Torn is what a crash had left, and OpenDir cut off. Nothing of it was committed, and the feed gives it again.
type Torn struct {
	Bytes   int64 // of lines
	Partial bool  // the last of them was incomplete
}

// segment is a file of lines.
type segment struct {
	first        int64
	Bytes        int64  `json:"bytes"`
	MinID, MaxID string // in the order of strings, which is that of time
}

var (
	bucketState       = []byte("state")
	bucketSegments    = []byte("segments")
	bucketCheckpoints = []byte("checkpoints")
	keyState          = []byte("state")
)

// OpenDir opens a directory, or makes it. It fails when another process has it open, and with a [TamperError] when
// committed data are missing or changed: the lines of the newest file are held against the tree, the others by
// [Ledger.Check].
func OpenDir(path string, opts *DirOptions) (*Dir, error) {
	d := &Dir{path: path, fsync: (*os.File).Sync}
	if opts != nil {
		d.opts = *opts
	}
	if d.opts.SegmentRecords == 0 {
		d.opts.SegmentRecords = 4096
	}
	if d.opts.LockTimeout == 0 {
		d.opts.LockTimeout = time.Second
	}
	if d.opts.SegmentRecords < 1 || d.opts.LockTimeout < 0 {
		return nil, errors.New("ledger: DirOptions must not be negative")
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("ledger: %w", err)
	}
	if err := d.open(); err != nil {
		_ = d.Close()
		return nil, err
	}
	return d, nil
}

// Torn tells what OpenDir cut off.
func (d *Dir) Torn() Torn { return d.torn }

func (d *Dir) open() error {
	was, statErr := os.Stat(filepath.Join(d.path, "state.db"))
	if err := d.openState(false); err != nil {
		return err
	}
	if (errors.Is(statErr, fs.ErrNotExist) || statErr == nil && was.Size() == 0) && len(d.segments) == 0 {
		// A new state beside old lines is not new: somebody took the state away.
		if old, err := filepath.Glob(filepath.Join(d.path, "*.jsonl")); err != nil || len(old) > 0 {
			_ = d.db.Close()
			d.db = nil
			_ = os.Remove(filepath.Join(d.path, "state.db"))
			return tampered(ErrTruncated, "%s holds records and no state.db", d.path)
		}
	}
	var err error
	if d.hashes, err = os.OpenFile(filepath.Join(d.path, "hashes"), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return fmt.Errorf("ledger: %w", err)
	}
	if err := d.checkHashes(); err != nil {
		return err
	}
	if err := d.checkFiles(); err != nil {
		return err
	}
	if n := len(d.segments); n > 0 {
		if err := d.checkSegment(d.segments[n-1]); err != nil {
			return err
		}
		if d.tail, err = os.OpenFile(d.segmentPath(d.segments[n-1].first), os.O_RDWR, 0o600); err != nil {
			return fmt.Errorf("ledger: %w", err)
		}
	}
	return syncDir(d.path)
}

// openState opens state.db and reads it. again says that a write of it has failed.
func (d *Dir) openState(again bool) error {
	path := filepath.Join(d.path, "state.db")
	db, err := boltfile.Open(path, boltfile.Options{Timeout: d.opts.LockTimeout})
	switch {
	case errors.Is(err, boltfile.ErrLocked):
		return fmt.Errorf("ledger: another process has %s open", d.path)
	case errors.Is(err, boltfile.ErrDamaged), errors.Is(err, boltfile.ErrForeign):
		return tampered(ErrAltered, "%s: %v", path, err)
	case err != nil:
		return fmt.Errorf("ledger: %s: %w", path, err)
	}
	d.db = db
	if again { // under the lock, which bbolt has
		if err := d.rewriteState(db.PageSize()); err != nil {
			return fmt.Errorf("ledger: %s: %w", path, err)
		}
	}
	return db.Update(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{bucketState, bucketSegments, bucketCheckpoints} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		d.state, d.segments = State{Root: (&frontier{}).root()}, nil
		if v := tx.Bucket(bucketState).Get(keyState); v != nil {
			if err := json.Unmarshal(v, &d.state); err != nil {
				return fmt.Errorf("ledger: state.db: %w", err)
			}
		}
		return tx.Bucket(bucketSegments).ForEach(func(k, v []byte) error {
			var s segment
			if err := json.Unmarshal(v, &s); err != nil || len(k) != 8 {
				return errors.New("ledger: state.db: a segment does not read")
			}
			s.first = int64(binary.BigEndian.Uint64(k))
			d.segments = append(d.segments, s)
			return nil
		})
	})
}

// rewriteState writes what the kernel shows of state.db to the disk once more. What a sync that failed left unwritten counts as
// written in memory, so that no later commit would take it along. The two pages that say which others count come last.
func (d *Dir) rewriteState(page int) error {
	f, err := os.OpenFile(filepath.Join(d.path, "state.db"), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	again := func(from, to int64) error {
		buf := make([]byte, 1<<20)
		for at := from; at < to; at += int64(len(buf)) {
			b := buf[:min(int64(len(buf)), to-at)]
			if _, err := f.ReadAt(b, at); err != nil {
				return err
			}
			if _, err := f.WriteAt(b, at); err != nil {
				return err
			}
		}
		return d.fsync(f)
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	metas := 2 * int64(page)
	if err := again(metas, info.Size()); err != nil {
		return err
	}
	return again(0, min(metas, info.Size()))
}

// checkHashes holds the tree's right edge against the state.
func (d *Dir) checkHashes() error {
	f, err := readFrontier(d.state.Size, tlog.HashReaderFunc(d.readHashes))
	if err != nil {
		return tampered(ErrAltered, "the file of hashes lacks some of the %d records that were committed: %v", d.state.Size, err)
	}
	if f.root() != d.state.Root {
		return tampered(ErrAltered, "the hashes do not give the root that was committed")
	}
	return nil
}

// checkFiles holds the files of lines against the state, and removes what was never committed, or was dropped.
func (d *Dir) checkFiles() error {
	for i, s := range d.segments {
		info, err := os.Stat(d.segmentPath(s.first))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return &TamperError{Kind: ErrTruncated, From: s.first, To: d.end(i), Detail: "their file is gone"}
		case err != nil:
			return fmt.Errorf("ledger: %w", err)
		case info.Size() < s.Bytes:
			return &TamperError{Kind: ErrTruncated, From: s.first, To: d.end(i), Detail: fmt.Sprintf("their file has %d bytes, and %d were committed", info.Size(), s.Bytes)}
		case info.Size() > s.Bytes && i < len(d.segments)-1:
			return &TamperError{Kind: ErrAltered, From: s.first, To: d.end(i), Detail: "their file is longer than what was committed"}
		case info.Size() > s.Bytes:
			if err := d.cut(d.segmentPath(s.first), s.Bytes); err != nil {
				return err
			}
		}
	}
	files, err := filepath.Glob(filepath.Join(d.path, "*.jsonl*"))
	if err != nil {
		return fmt.Errorf("ledger: %w", err)
	}
	for _, path := range files {
		var first int64
		name := filepath.Base(path)
		_, err := fmt.Sscanf(name, "%d.jsonl", &first)
		known := slices.ContainsFunc(d.segments, func(s segment) bool { return filepath.Base(d.segmentPath(s.first)) == name })
		if ours := filepath.Base(d.segmentPath(first)); known || err != nil || name != ours && name != ours+".tmp" {
			continue // somebody's own copy, for example, is not ours to remove
		}
		if first >= d.state.Size && strings.HasSuffix(name, ".jsonl") { // begun and never committed
			if err := d.cut(path, 0); err != nil {
				return err
			}
		}
		if err := os.Remove(path); err != nil { // the others are left by a Drop that was cut short
			return fmt.Errorf("ledger: %w", err)
		}
	}
	return nil
}

// cut removes a torn tail and remembers what it was.
func (d *Dir) cut(path string, keep int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("ledger: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err == nil && info.Size() > keep {
		var last [1]byte
		_, err = f.ReadAt(last[:], info.Size()-1)
		d.torn.Bytes += info.Size() - keep
		d.torn.Partial = d.torn.Partial || last[0] != '\n'
	}
	if err == nil {
		err = errors.Join(f.Truncate(keep), f.Sync())
	}
	if err != nil {
		return fmt.Errorf("ledger: cut a torn tail: %w", err)
	}
	return nil
}

// end is the position behind segment i.
func (d *Dir) end(i int) int64 {
	if i+1 < len(d.segments) {
		return d.segments[i+1].first
	}
	return d.state.Size
}

func (d *Dir) segmentPath(first int64) string {
	return filepath.Join(d.path, fmt.Sprintf("%020d.jsonl", first))
}

// checkSegment holds the lines of the newest segment against the tree.
func (d *Dir) checkSegment(s segment) error {
	pos := s.first
	err := eachLine(d.segmentPath(s.first), s.Bytes, func(line []byte) error {
		h, err := d.readHashes([]int64{tlog.StoredHashIndex(0, pos)})
		if err != nil {
			return err
		}
		if pos >= d.state.Size || h[0] != tlog.RecordHash(line) {
			return &TamperError{Kind: ErrAltered, From: pos, To: pos + 1, Detail: "it is not the one that was committed"}
		}
		pos++
		return nil
	})
	if err == nil && pos != d.state.Size {
		err = &TamperError{Kind: ErrTruncated, From: pos, To: d.state.Size, Detail: "they were committed"}
	}
	return err
}

var errEnough = errors.New("enough")

// eachLine calls fn with the lines of the first n bytes of a file, until it fails.
func eachLine(path string, n int64, fn func(line []byte) error) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("ledger: %w", err)
	}
	defer f.Close()
	lines := bufio.NewReaderSize(io.LimitReader(f, n), MaxLeafBytes)
	for {
		line, err := lines.ReadSlice('\n')
		switch {
		case errors.Is(err, io.EOF) && len(line) == 0:
			return nil
		case errors.Is(err, io.EOF), errors.Is(err, bufio.ErrBufferFull):
			return tampered(ErrAltered, "%s has a line without an end", path)
		case err != nil:
			return fmt.Errorf("ledger: %w", err)
		}
		if err := fn(line[:len(line)-1]); err != nil {
			return err
		}
	}
}

// State implements [Storage].
func (d *Dir) State() State {
	d.mu.RLock()
	defer d.mu.RUnlock()
	s := d.state
	s.Place = bytes.Clone(s.Place)
	return s
}

// Append implements [Storage].
func (d *Dir) Append(ctx context.Context, b Batch) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if len(b.IDs) != len(b.Lines) {
		return errors.New("ledger: a batch needs an ID for each line")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.usable(); err != nil {
		return err
	}
	next := d.state
	next.Size, next.Root, next.Place = next.Size+int64(len(b.Lines)), b.Root, bytes.Clone(b.Place)
	for _, id := range b.IDs {
		next.MaxID = max(next.MaxID, id)
	}
	segments := slices.Clone(d.segments)
	from := max(len(segments)-1, 0) // the first one that changes
	if err := d.writeLines(b, &segments); err != nil {
		return d.undo(err)
	}
	if len(b.Lines) > 0 {
		raw := make([]byte, 0, len(b.Hashes)*tlog.HashSize)
		for _, h := range b.Hashes {
			raw = append(raw, h[:]...)
		}
		if _, err := d.hashes.WriteAt(raw, tlog.StoredHashCount(d.state.Size)*tlog.HashSize); err != nil {
			return d.undo(err)
		}
		if err := d.fsync(d.hashes); err != nil {
			d.broken = err
			return d.undo(err)
		}
	}
	return d.commit(next, segments, from)
}

// writeLines writes and syncs the lines of b, in as many files as they need.
func (d *Dir) writeLines(b Batch, segments *[]segment) error {
	pos := d.state.Size
	lines, ids := b.Lines, b.IDs
	for len(lines) > 0 {
		n := len(*segments)
		if n == 0 || pos-(*segments)[n-1].first >= int64(d.opts.SegmentRecords) {
			f, err := os.OpenFile(d.segmentPath(pos), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
			if err != nil {
				return err
			}
			if d.tail != nil {
				_ = d.tail.Close() // synced
			}
			d.tail = f
			*segments = append(*segments, segment{first: pos})
			if err := syncDir(d.path); err != nil {
				return err
			}
		}
		s := &(*segments)[len(*segments)-1]
		take := min(len(lines), d.opts.SegmentRecords-int(pos-s.first))
		var buf bytes.Buffer
		for i, line := range lines[:take] {
			buf.Write(line)
			buf.WriteByte('\n')
			if s.MinID == "" || ids[i] < s.MinID {
				s.MinID = ids[i]
			}
			s.MaxID = max(s.MaxID, ids[i])
		}
		if _, err := d.tail.WriteAt(buf.Bytes(), s.Bytes); err != nil {
			return err
		}
		if err := d.fsync(d.tail); err != nil {
			d.broken = err // what a failed sync left in memory is not known
			return err
		}
		s.Bytes += int64(buf.Len())
		pos, lines, ids = pos+int64(take), lines[take:], ids[take:]
	}
	return nil
}

// undo goes back to the committed state after a write that failed, a full disk mostly. What it leaves is behind what is
// committed, and written over by the next attempt.
func (d *Dir) undo(cause error) error {
	if err := d.reopenTail(); err != nil && d.broken == nil {
		d.broken = err
	}
	return fmt.Errorf("ledger: %w", cause)
}

// reopenTail opens the newest committed segment and cuts it to what is committed.
func (d *Dir) reopenTail() error {
	if d.tail != nil {
		_ = d.tail.Close()
		d.tail = nil
	}
	n := len(d.segments)
	if n == 0 {
		return nil
	}
	f, err := os.OpenFile(d.segmentPath(d.segments[n-1].first), os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	d.tail = f
	return f.Truncate(d.segments[n-1].Bytes)
}

// commit makes next the state. If it cannot be told whether it is, bbolt is opened again and asked.
func (d *Dir) commit(next State, segments []segment, from int) error {
	data, err := json.Marshal(next)
	if err != nil {
		return err
	}
	err = d.db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket(bucketSegments)
		for _, s := range segments[from:] {
			v, err := json.Marshal(s)
			if err == nil {
				err = b.Put(binary.BigEndian.AppendUint64(nil, uint64(s.first)), v)
			}
			if err != nil {
				return err
			}
		}
		return tx.Bucket(bucketState).Put(keyState, data)
	})
	if err == nil {
		d.state, d.segments = next, segments
		return nil
	}
	d.broken = err
	_ = d.usable() // it may have been written all the same: State tells
	return fmt.Errorf("ledger: %w", err)
}

// usable puts a storage right whose last write failed half-way, if that is possible now.
func (d *Dir) usable() error {
	if d.db == nil {
		return errors.New("ledger: the storage is closed")
	}
	if d.broken == nil {
		return nil
	}
	_ = d.db.Close()
	err := d.openState(true)
	if err == nil {
		err = d.reopenTail()
	}
	if err == nil {
		err = d.checkHashes()
	}
	if err == nil && len(d.segments) > 0 {
		err = d.checkSegment(d.segments[len(d.segments)-1])
	}
	if d.broken = err; err != nil {
		return fmt.Errorf("ledger: the storage does not recover: %w", err)
	}
	return nil
}

// Lines implements [Storage].
func (d *Dir) Lines(ctx context.Context, from int64, max int) ([][]byte, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if from < d.state.First {
		return nil, fmt.Errorf("ledger: records before %d were dropped", d.state.First)
	}
	if from >= d.state.Size || max <= 0 {
		return nil, ctx.Err()
	}
	i, exact := slices.BinarySearchFunc(d.segments, from, func(s segment, pos int64) int {
		if s.first < pos {
			return -1
		}
		return int(min(s.first-pos, 1))
	})
	if !exact {
		i--
	}
	var out [][]byte
	pos := d.segments[i].first
	err := eachLine(d.segmentPath(pos), d.segments[i].Bytes, func(line []byte) error {
		if pos >= from {
			out = append(out, bytes.Clone(line))
		}
		if pos++; len(out) == max {
			return errEnough
		}
		return ctx.Err()
	})
	if err != nil && !errors.Is(err, errEnough) {
		return nil, err
	}
	if len(out) == 0 {
		return nil, &TamperError{Kind: ErrTruncated, From: from, To: d.end(i), Detail: "they were committed"}
	}
	return out, nil
}

// ReadHashes implements [Storage].
func (d *Dir) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.readHashes(indexes)
}

func (d *Dir) readHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i := 0; i < len(indexes); {
		n := 1 // that lie one behind another
		for i+n < len(indexes) && indexes[i+n] == indexes[i]+int64(n) {
			n++
		}
		raw := make([]byte, n*tlog.HashSize)
		if _, err := d.hashes.ReadAt(raw, indexes[i]*tlog.HashSize); err != nil {
			return nil, fmt.Errorf("ledger: hash %d: %w", indexes[i], err)
		}
		for j := range n {
			copy(out[i+j][:], raw[j*tlog.HashSize:])
		}
		i += n
	}
	return out, nil
}

// Find implements [Storage]. IDs are in order of time, but for what came at the same moment, so that one file or two are read.
func (d *Dir) Find(ctx context.Context, id string) (int64, error) {
	want := append(appendString([]byte(`,"id":`), id), `,"time":"`...)
	d.mu.RLock()
	defer d.mu.RUnlock()
	for _, s := range slices.Backward(d.segments) {
		if id < s.MinID || id > s.MaxID {
			continue
		}
		pos, found := s.first, false
		err := eachLine(d.segmentPath(s.first), s.Bytes, func(line []byte) error {
			// The ID stands behind a position of at most 16 digits, so that nothing in a string is taken for it.
			if bytes.Contains(line[:min(len(line), len(`{"v":1,"pos":`)+16+len(want))], want) {
				found = true
				return errEnough
			}
			pos++
			return ctx.Err()
		})
		if found {
			return pos, nil
		}
		if err != nil {
			return -1, err
		}
	}
	return -1, nil
}

// PutCheckpoint implements [Storage].
func (d *Dir) PutCheckpoint(ctx context.Context, size int64, signed []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.usable(); err != nil {
		return err
	}
	err := d.db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketCheckpoints).Put(binary.BigEndian.AppendUint64(nil, uint64(size)), signed)
	})
	if err != nil {
		d.broken = err
		return fmt.Errorf("ledger: %w", err)
	}
	return nil
}

// Checkpoints implements [Storage].
func (d *Dir) Checkpoints(ctx context.Context, minSize int64, max int) (out [][]byte, err error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.db == nil {
		return nil, errors.New("ledger: the storage is closed")
	}
	err = d.db.View(func(tx *bbolt.Tx) error {
		c := tx.Bucket(bucketCheckpoints).Cursor()
		for k, v := c.Seek(binary.BigEndian.AppendUint64(nil, uint64(minSize))); k != nil && len(out) < max; k, v = c.Next() {
			out = append(out, bytes.Clone(v))
		}
		return ctx.Err()
	})
	return out, err
}

// Drop implements [Storage]. Whole files are removed, and the one that before lies in is written anew without its beginning.
func (d *Dir) Drop(ctx context.Context, before int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.usable(); err != nil {
		return err
	}
	if before > d.state.Size {
		return fmt.Errorf("ledger: drop before %d of %d records", before, d.state.Size)
	}
	if before <= d.state.First {
		return nil
	}
	var gone, keep []segment
	next := d.state
	next.First = before
	for i, s := range d.segments {
		switch {
		case d.end(i) <= before:
			gone = append(gone, s)
			next.Dropped = max(next.Dropped, s.MaxID)
		case s.first < before:
			cut, id, err := d.cutFront(ctx, s, before)
			if err != nil {
				return err
			}
			gone, keep = append(gone, s), append(keep, cut)
			next.Dropped = max(next.Dropped, id)
		default:
			keep = append(keep, s)
		}
	}
	data, err := json.Marshal(next)
	if err != nil {
		return err
	}
	err = d.db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket(bucketSegments)
		for _, s := range gone {
			if err := b.Delete(binary.BigEndian.AppendUint64(nil, uint64(s.first))); err != nil {
				return err
			}
		}
		for _, s := range keep {
			v, err := json.Marshal(s)
			if err == nil {
				err = b.Put(binary.BigEndian.AppendUint64(nil, uint64(s.first)), v)
			}
			if err != nil {
				return err
			}
		}
		return tx.Bucket(bucketState).Put(keyState, data)
	})
	if err != nil {
		d.broken = err
		return fmt.Errorf("ledger: %w", err)
	}
	d.state, d.segments = next, keep
	if err := d.reopenTail(); err != nil {
		d.broken = err
		return fmt.Errorf("ledger: %w", err)
	}
	for _, s := range gone {
		if err := os.Remove(d.segmentPath(s.first)); err != nil {
			return fmt.Errorf("ledger: %w", err) // the next OpenDir removes it
		}
	}
	return syncDir(d.path)
}

// cutFront writes the lines of s from before on into a file of their own, and tells the greatest ID of the others.
func (d *Dir) cutFront(ctx context.Context, s segment, before int64) (segment, string, error) {
	id := ""
	out := segment{first: before, MinID: s.MinID, MaxID: s.MaxID}
	path := d.segmentPath(before)
	f, err := os.OpenFile(path+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return out, id, fmt.Errorf("ledger: %w", err)
	}
	w := bufio.NewWriter(f)
	pos := s.first
	err = eachLine(d.segmentPath(s.first), s.Bytes, func(line []byte) error {
		if pos++; pos > before {
			_, err := w.Write(append(line[:len(line):len(line)], '\n'))
			out.Bytes += int64(len(line)) + 1
			return err
		}
		leaf, err := readLeaf(string(line))
		if err != nil {
			return &TamperError{Kind: ErrAltered, From: pos - 1, To: pos, Detail: err.Error()}
		}
		id = max(id, leaf.Event.ID)
		return ctx.Err()
	})
	err = errors.Join(err, w.Flush(), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(path+".tmp", path)
	}
	if err == nil {
		err = syncDir(d.path)
	}
	if err != nil {
		_ = os.Remove(path + ".tmp")
		return out, id, fmt.Errorf("ledger: %w", err)
	}
	return out, id, nil
}

// Close implements [Storage].
func (d *Dir) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var errs []error
	if d.tail != nil {
		errs = append(errs, d.tail.Close())
	}
	if d.hashes != nil {
		errs = append(errs, d.hashes.Close())
	}
	if d.db != nil {
		errs = append(errs, d.db.Close())
	}
	d.tail, d.hashes, d.db = nil, nil, nil
	return errors.Join(errs...)
}

// syncDir makes new names outlive a crash.
func syncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("ledger: %w", err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil && runtime.GOOS != "windows" {
		return fmt.Errorf("ledger: %w", err)
	}
	return nil
}
