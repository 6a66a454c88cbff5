package boltstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Anchor keeps a few bytes of a Store in another place than its directory: whoever puts the whole directory back, by a
// snapshot of the file system for example, does not put the anchor back. Open finds a file that is behind its anchor, and
// treats it like any restored file ([Store.Restored]). [FileAnchor] keeps it in a file; a host may keep it in a database
// or a vault that swaps values atomically.
//
// The Store calls Load once, in Open. It calls Swap in Open and Close, before a change of state (a revocation, a key, a
// client, an API key) is acknowledged, and once a minute while it is written. It makes one call at a time, from any
// goroutine, never while it holds a lock, and changes that wait for Swap share one call.
type Anchor interface {
	// Load returns the bytes that Swap stored last, and nothing where none were.
	Load(ctx context.Context) ([]byte, error)
	// Swap stores next, at most 64 bytes, durably if what is stored is old (empty: nothing). Otherwise it changes nothing
	// and returns an error. After any error either may be stored; the Store asks by Load then.
	Swap(ctx context.Context, old, next []byte) error
}

// What an anchor holds: layout(1) name(16) id(16) commits(8). The name is chosen when a file is anchored first and stays
// through restores and copies; the id changes with each restore.
const (
	layoutAnchor = 1
	sizeAnchored = 1 + 16 + 16 + 8
)

type anchored struct {
	name, id [16]byte
	seq      uint64
}

func (a *anchored) encode() []byte {
	b := append([]byte{layoutAnchor}, a.name[:]...)
	b = append(b, a.id[:]...)
	return binary.BigEndian.AppendUint64(b, a.seq)
}

func decodeAnchored(b []byte) (a anchored, err error) {
	if len(b) != sizeAnchored || b[0] != layoutAnchor {
		return a, fmt.Errorf("%w: what it holds is not of this package's making", ErrAnchor)
	}
	return anchored{name: [16]byte(b[1:17]), id: [16]byte(b[17:33]), seq: binary.BigEndian.Uint64(b[33:])}, nil
}

// anchorage is the Store's side of its Anchor. One goroutine runs it, beside the writer: a slow anchor holds up those who
// wait for it and nobody else.
type anchorage struct {
	a       Anchor
	timeout time.Duration
	held    []byte   // what the anchor holds, as far as is known
	at      anchored // held, decoded

	mu      sync.Mutex // guards all below
	waiting []*request // committed, to be answered when the anchor holds seq
	seq     uint64     // the last commit
	id      [16]byte   // of the database
	closing bool
	wake    chan struct{} // holds one signal
	done    chan struct{} // closed when the goroutine has ended
	err     error         // of the last call, final when done is closed
}

func newAnchorage(a Anchor, timeout time.Duration) *anchorage {
	return &anchorage{a: a, timeout: timeout, wake: make(chan struct{}, 1), done: make(chan struct{})}
}

// call runs one call of the host's with the store's timeout; a panic is an error.
func (g *anchorage) call(f func(context.Context) error) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), g.timeout)
	defer cancel()
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
		if err != nil && !errors.Is(err, ErrAnchor) {
			err = fmt.Errorf("%w: %w", ErrAnchor, err)
		}
	}()
	return f(ctx)
}

func (g *anchorage) load() error {
	return g.call(func(ctx context.Context) (err error) {
		var b []byte
		if b, err = g.a.Load(ctx); err != nil {
			return err
		}
		at := anchored{}
		if len(b) > 0 {
			if at, err = decodeAnchored(b); err != nil {
				return err
			}
		}
		g.held, g.at = bytes.Clone(b), at
		return nil
	})
}

// swap stores next. What an earlier call of this process stored, whatever its answer was, is no surprise. Nor is an anchor
// that was lost while this process watched it: nothing is in doubt, and it is made anew.
func (g *anchorage) swap(next anchored) error {
	b := next.encode()
	for try := 1; ; try++ {
		err := g.call(func(ctx context.Context) error { return g.a.Swap(ctx, g.held, b) })
		if err == nil {
			g.held, g.at = b, next
			return nil
		}
		held, at := g.held, g.at
		if try == 2 || g.load() != nil {
			return err
		}
		switch {
		case bytes.Equal(g.held, b):
			return nil // it was stored all the same
		case len(g.held) == 0:
			g.at = anchored{name: next.name, id: at.id}
		case g.at.name != next.name || g.at.id != at.id && g.at.id != next.id || g.at.seq > next.seq:
			g.held, g.at = held, at
			return fmt.Errorf("%w: another store has moved it; each store needs one of its own: %w", ErrAnchor, err)
		}
	}
}

// judge compares the file, with the name that it knows itself by, with the anchor. A name of zero: it was never anchored.
func (g *anchorage) judge(name, id [16]byte, seq uint64) (restored bool, err error) {
	switch lost := len(g.held) == 0; {
	case lost && name == [16]byte{}:
		return false, nil
	case lost:
		return true, nil // with it went the proof of how far the store came
	case g.at.name != name && (name != [16]byte{} || g.at.id != id):
		return false, fmt.Errorf("%w: it is another store's, or this file is from before it was anchored, or new where there was one; "+
			"put the right file back, or name another anchor, or remove this one if no other store uses it", ErrAnchor)
	}
	return g.at.id != id || g.at.seq > seq, nil
}

// run saves what has been committed and answers those who wait, until close.
func (g *anchorage) run() {
	defer close(g.done)
	for {
		<-g.wake
		g.mu.Lock()
		group, closing := g.waiting, g.closing
		next := anchored{name: g.at.name, id: g.id, seq: g.seq}
		g.waiting = nil
		g.mu.Unlock()

		var err error
		if next.seq > g.at.seq || next.id != g.at.id {
			err = g.swap(next)
		}
		for _, r := range group {
			if err != nil {
				r.out = outcome{err: fmt.Errorf("%w (the change is in the file; repeat it to have it acknowledged)", err)}
			}
			close(r.done)
		}
		g.mu.Lock()
		g.err = err
		end := closing && len(g.waiting) == 0
		g.mu.Unlock()
		if end {
			return
		}
	}
}

// advance says how far the file has come, and leaves group to be answered when the anchor knows.
func (g *anchorage) advance(seq uint64, group []*request) {
	g.mu.Lock()
	g.seq = seq
	full := len(g.waiting) > maxQueue
	if !full {
		g.waiting = append(g.waiting, group...)
	}
	g.mu.Unlock()
	g.signal()
	if full {
		fail(group, fmt.Errorf("%w: %d changes wait for it already", ErrAnchor, maxQueue))
	}
}

// close ends run once it has saved how far the file has come.
func (g *anchorage) close() {
	g.mu.Lock()
	g.closing = true
	g.mu.Unlock()
	g.signal()
}

func (g *anchorage) signal() {
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

// acknowledge answers a group that is in the file: changes of state when the anchor has them too.
func (s *Store) acknowledge(group []*request) {
	if s.anchor == nil {
		answer(group)
		return
	}
	state, others := divide(group, func(r *request) bool { return r.in != nil && r.in.state() && r.out.err == nil })
	answer(others)
	if len(state) > 0 {
		s.anchor.advance(s.meta.seq, state)
	}
}

// FileAnchor is an [Anchor] in the file of this name, which is made if it is not there. The file must lie where nothing
// that puts the database's directory back puts it back too: on another volume, or at least outside of what is saved
// together. Its directory must exist. Each store needs a file of its own.
type FileAnchor string

// The file has two slots, written in turn, so that a write that tears leaves the other.
//
//	magic(8) generation(8) length(1) value(64) crc(4)
const (
	anchorSlot  = 8 + 8 + 1 + maxAnchor + 4
	anchorApart = 4096 // bytes between the slots: they share no sector
	maxAnchor   = 64
	anchorWait  = 3 * time.Second // for the lock of a process that swaps
)

var anchorMagic = [8]byte{'a', 'p', 'i', 't', 'a', 'n', 'c', 'h'}

// Load implements [Anchor].
func (p FileAnchor) Load(context.Context) ([]byte, error) {
	f, err := os.Open(string(p))
	if errors.Is(err, os.ErrNotExist) {
		_, err := os.Stat(filepath.Dir(string(p)))
		return nil, err // without its directory it is not known to be lost
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, _, err := readAnchor(f)
	return b, err
}

// Swap implements [Anchor]. The file is synced when it returns nil.
func (p FileAnchor) Swap(_ context.Context, old, next []byte) error {
	if len(next) > maxAnchor {
		return fmt.Errorf("an anchor of %d bytes, at most %d", len(next), maxAnchor)
	}
	f, err := os.OpenFile(string(p), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := lockFile(f, false, anchorWait); err != nil {
		return err
	}
	have, gen, err := readAnchor(f)
	if err != nil {
		return err
	}
	if !bytes.Equal(have, old) {
		return fmt.Errorf("%w: %s does not hold what this store put there", ErrAnchor, string(p))
	}
	gen++
	b := append(anchorMagic[:len(anchorMagic):len(anchorMagic)], make([]byte, anchorSlot-len(anchorMagic))...)
	binary.BigEndian.PutUint64(b[8:], gen)
	b[16] = byte(len(next))
	copy(b[17:], next)
	binary.BigEndian.PutUint32(b[anchorSlot-4:], crc32.Checksum(b[:anchorSlot-4], castagnoli))
	if _, err := f.WriteAt(b, int64(gen%2)*anchorApart); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if gen == 1 {
		return syncDir(filepath.Dir(string(p)))
	}
	return nil
}

// readAnchor returns the newer slot that reads. A file with content of which neither does is an error, not an empty anchor.
func readAnchor(f *os.File) (value []byte, gen uint64, err error) {
	content := false
	for slot := range int64(2) {
		b := make([]byte, anchorSlot)
		n, err := f.ReadAt(b, slot*anchorApart)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, 0, err
		}
		content = content || len(bytes.Trim(b[:n], "\x00")) > 0
		if n < anchorSlot || [8]byte(b) != anchorMagic || b[16] > maxAnchor ||
			binary.BigEndian.Uint32(b[anchorSlot-4:]) != crc32.Checksum(b[:anchorSlot-4], castagnoli) {
			continue
		}
		if g := binary.BigEndian.Uint64(b[8:]); g > gen {
			value, gen = b[17:17+b[16]], g
		}
	}
	if gen == 0 && content {
		return nil, 0, fmt.Errorf("%w: %s is damaged, or no anchor", ErrAnchor, f.Name())
	}
	return value, gen, nil
}

// checkPlace refuses an anchor that would be put back together with the database.
func (p FileAnchor) checkPlace(database string) error {
	dir, err := filepath.EvalSymlinks(filepath.Dir(string(p)))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrAnchor, err)
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return err
	}
	if in, err := filepath.Rel(filepath.Dir(database), dir); err == nil && in != ".." && !strings.HasPrefix(in, "../") {
		return fmt.Errorf("%w: %s lies in the directory of the database, and would be put back with it", ErrAnchor, string(p))
	}
	return nil
}
