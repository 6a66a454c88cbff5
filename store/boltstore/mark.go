package boltstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
)

// The mark is a small file beside the database, <path>.mark. It has two tasks.
//
// Its lock is the store's lock. It does not change hands while the database file is closed for a moment, after a
// failed commit or when Compact puts another file in its place.
//
// Its content tells a file that was put back from one that went on: which file this is (id and inode), and how many
// commits it had. It is written after every commit without waiting for the disk, so it is never ahead of a database
// that kept its acknowledged commits, and it may be behind after a power failure, which proves nothing and means
// nothing. A database behind its mark, with another inode, birth time or label (see label.go), or without a mark was put
// back, copied or moved to another file system. What stays unseen is a snapshot of the whole file system, which takes
// the mark back too: anchor.go is for that.
type mark struct {
	f *os.File // nil: opened read only where there is none
	markContent
}

type markContent struct {
	id     [16]byte // of the database file, as in its format bucket
	inode  uint64
	inode2 uint64 // the compacted file that is about to take its place; 0: none
	seq    uint64 // commits

	// Not in marks of older versions, which leaves them zero: then they say nothing.
	born  int64 // birth time of the file with inode, ns; 0: not known
	born2 int64 // and of that with inode2
	nonce nonce // the label of the file; zero: the file system takes none
	next  nonce // the label that it is about to get; zero: none

	// The file as Close left it; zero from Open to Close. If it is still so, Open checks the state alone.
	closed fileState
}

// fileState changes when anything writes the file, times in ns.
type fileState struct{ size, modified, changed int64 }

const (
	markSizePlain = 8 + 16 + 8 + 8 + 8 + 4
	markSize      = markSizePlain + 8 + 8 + 8 + 8 + 3*8
)

var markMagic = [8]byte{'a', 'p', 'i', 't', 'm', 'a', 'r', 'k'}

var errTimedOut = errors.New("boltstore: timed out")

func (c *markContent) encode() []byte {
	b := make([]byte, 0, markSize)
	b = append(b, markMagic[:]...)
	b = append(b, c.id[:]...)
	b = binary.BigEndian.AppendUint64(b, c.inode)
	b = binary.BigEndian.AppendUint64(b, c.inode2)
	b = binary.BigEndian.AppendUint64(b, c.seq)
	b = binary.BigEndian.AppendUint64(b, uint64(c.born))
	b = binary.BigEndian.AppendUint64(b, uint64(c.born2))
	b = append(append(b, c.nonce[:]...), c.next[:]...)
	for _, n := range []int64{c.closed.size, c.closed.modified, c.closed.changed} {
		b = binary.BigEndian.AppendUint64(b, uint64(n))
	}
	return sealMark(b)
}

func sealMark(b []byte) []byte {
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func decodeMark(b []byte) (c markContent, ok bool) {
	if len(b) != markSize && len(b) != markSizePlain || [8]byte(b[:8]) != markMagic {
		return c, false
	}
	if binary.BigEndian.Uint32(b[len(b)-4:]) != crc32.Checksum(b[:len(b)-4], castagnoli) {
		return c, false
	}
	c.id = [16]byte(b[8:24])
	c.inode = binary.BigEndian.Uint64(b[24:])
	c.inode2 = binary.BigEndian.Uint64(b[32:])
	c.seq = binary.BigEndian.Uint64(b[40:])
	if len(b) == markSize {
		c.born = int64(binary.BigEndian.Uint64(b[48:]))
		c.born2 = int64(binary.BigEndian.Uint64(b[56:]))
		c.nonce, c.next = nonce(b[64:72]), nonce(b[72:80])
		for i, p := range []*int64{&c.closed.size, &c.closed.modified, &c.closed.changed} {
			*p = int64(binary.BigEndian.Uint64(b[80+8*i:]))
		}
	}
	return c, true
}

// names reports whether the file with this inode and birth time is the one that the mark belongs to.
func (c *markContent) names(inode uint64, born int64) bool {
	same := func(i uint64, b int64) bool { return i == inode && (b == born || b == 0 || born == 0) }
	return same(c.inode, c.born) || same(c.inode2, c.born2)
}

// load reads the content; false means that there is none to go by.
func (m *mark) load() (bool, error) {
	if m.f == nil {
		return false, nil
	}
	b := make([]byte, markSize+1)
	n, err := m.f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return false, fmt.Errorf("boltstore: read %s: %w", m.f.Name(), err)
	}
	c, ok := decodeMark(b[:n])
	if ok {
		m.markContent = c
	}
	return ok, nil
}

// save writes the content in place; its size never changes, so it is old or new after a power failure.
func (m *mark) save() error {
	if m.f == nil {
		return nil
	}
	_, err := m.f.WriteAt(m.encode(), 0)
	return err
}

func (m *mark) saveDurably() error {
	if m.f == nil {
		return nil
	}
	if err := m.save(); err != nil {
		return err
	}
	return m.f.Sync()
}

// unclose takes back, durably, that the file is as Close left it. It comes before the first write.
func (m *mark) unclose() error {
	if m.closed == (fileState{}) {
		return nil
	}
	m.closed = fileState{}
	return m.saveDurably()
}

func (m *mark) close() error {
	if m.f == nil {
		return nil
	}
	return m.f.Close() // gives the lock up as well
}
