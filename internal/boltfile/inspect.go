// Package boltfile opens bbolt files that may have been cut, overwritten or damaged. bbolt checks its two meta pages alone: it
// panics where the rest doesn't fit, and reading its map behind the end of the file is a SIGBUS, which ends the program. [Open]
// inspects the file first, and turns what is left of panics and faults into errors.
package boltfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"time"
)

// What bbolt must not be shown. It checks the meta pages alone and panics, or maps memory behind the end of the file,
// where the rest does not fit; and it makes a fresh database of an empty file. So the file is read here first, from
// the outside, by the layout of bbolt's pages (file format 2, the only one since 2014; integers in the byte order of
// the machine).
const (
	boltMagic   = 0xED0CDAED
	boltVersion = 2

	pageHeader  = 16 // id(8) flags(2) count(2) overflow(4)
	flagBranch  = 0x01
	flagLeaf    = 0x02
	flagMeta    = 0x04
	flagFree    = 0x10
	branchElem  = 16 // pos(4) ksize(4) pgid(8)
	leafElem    = 16 // flags(4) pos(4) ksize(4) vsize(4)
	leafBucket  = 0x01
	bucketValue = 16 // root(8) sequence(8); root 0: its page follows inline
	metaSize    = 64 // magic version pageSize flags(4 each) root(16) freelist pgid txid checksum(8 each)
	noFreelist  = 1<<64 - 1

	// How many pages one Open looks at, and for how long. Beyond that the rest is checked when it is read.
	checkPages = 1 << 18 // 1 GiB
	checkTime  = 2 * time.Second
)

var order = binary.NativeEndian

// Errors that wrap these say more.
var (
	// ErrDamaged: the file was cut or overwritten.
	ErrDamaged = errors.New("damaged")
	// ErrForeign: it is no bbolt file.
	ErrForeign = errors.New("not a bbolt file")
)

// Meta is what a meta page says.
type Meta struct {
	PageSize                   uint32
	Root, Freelist, Pages, Txn uint64
}

func damaged(format string, a ...any) error {
	return fmt.Errorf("%w: %s", ErrDamaged, fmt.Sprintf(format, a...))
}

// readMeta decodes a meta page's content, after the page header.
func readMeta(b []byte) (m Meta, magic bool, err error) {
	if order.Uint32(b) != boltMagic {
		return m, false, damaged("no magic number")
	}
	if v := order.Uint32(b[4:]); v != boltVersion {
		return m, true, damaged("bbolt file format %d, not %d", v, boltVersion)
	}
	h := fnv.New64a()
	h.Write(b[:metaSize-8])
	if h.Sum64() != order.Uint64(b[metaSize-8:]) {
		return m, true, damaged("a meta page fails its checksum")
	}
	m = Meta{
		PageSize: order.Uint32(b[8:]), Root: order.Uint64(b[16:]),
		Freelist: order.Uint64(b[32:]), Pages: order.Uint64(b[40:]), Txn: order.Uint64(b[48:]),
	}
	if m.PageSize < 1024 || m.PageSize > 1<<24 || m.PageSize&(m.PageSize-1) != 0 {
		return m, true, damaged("page size %d", m.PageSize)
	}
	return m, true, nil
}

// FindMeta returns the newest meta that reads. bbolt keeps two, and writes them in turn: one that a crash tore is no
// damage.
func FindMeta(f io.ReaderAt, size int64) (Meta, error) {
	b := make([]byte, pageHeader+metaSize)
	var best Meta
	var first error
	seen, found := false, false
	try := func(off int64) bool {
		if _, err := f.ReadAt(b, off); err != nil {
			return false
		}
		m, magic, err := readMeta(b[pageHeader:])
		seen = seen || magic
		if err != nil {
			if magic && first == nil {
				first = err
			}
			return false
		}
		if !found || m.Txn > best.Txn {
			best, found = m, true
		}
		return true
	}
	if try(0) {
		try(int64(best.PageSize))
	} else {
		for off := int64(1024); off <= 1<<24 && off < size; off <<= 1 {
			if try(off) {
				break
			}
		}
	}
	switch {
	case found:
		return best, nil
	case seen:
		return best, first
	}
	return best, ErrForeign
}

// InspectMeta refuses what is not a whole bbolt file.
func InspectMeta(f *os.File) (m Meta, err error) {
	fi, err := f.Stat()
	if err != nil {
		return m, err
	}
	if m, err = FindMeta(f, fi.Size()); err != nil {
		return m, err
	}
	if m.Pages < 4 || m.Pages > uint64(fi.Size())/uint64(m.PageSize) {
		return m, damaged("cut short: %d bytes, and its %d pages need %d", fi.Size(), m.Pages, m.Pages*uint64(m.PageSize))
	}
	if m.Root < 2 || m.Root >= m.Pages || m.Freelist != noFreelist && (m.Freelist < 2 || m.Freelist >= m.Pages) {
		return m, damaged("the meta page points outside of the file")
	}
	return m, nil
}

// Inspect refuses a file that bbolt could not survive. It reads through the file, never maps it.
func Inspect(f *os.File) error {
	m, err := InspectMeta(f)
	if err != nil {
		return err
	}
	c := newChecker(f, m)
	until := time.Now().Add(checkTime)
	c.enough = func() (bool, error) { return c.used > checkPages || time.Now().After(until), nil }
	return c.all()
}

// Wipe inspects all pages, however many there are, and overwrites those that nothing refers to: what was removed still lies in
// them. It asks goOn from time to time, and ends with its error.
func Wipe(f *os.File, goOn func() error) error {
	m, err := InspectMeta(f)
	if err != nil {
		return err
	}
	c := newChecker(f, m)
	c.enough = func() (bool, error) { return false, goOn() }
	if err := c.all(); err != nil {
		return err
	}
	zeros := make([]byte, 64*int(m.PageSize))
	for id := uint64(2); id < m.Pages; {
		n := uint64(0)
		for n < 64 && id+n < m.Pages && !c.has(id+n) {
			n++
		}
		if n == 0 {
			id++
			continue
		}
		if err := goOn(); err != nil {
			return err
		}
		if _, err := f.WriteAt(zeros[:n*uint64(m.PageSize)], int64(id)*int64(m.PageSize)); err != nil {
			return err
		}
		id += n
	}
	return nil
}

// checker follows each page from the root once: a page that is used twice, or used and free, would be overwritten.
type checker struct {
	f       *os.File
	m       Meta
	taken   []uint64 // a bit for each page
	used    int      // how many are taken
	buffers [maxDepth + 2][]byte
	enough  func() (bool, error) // asked every 64 pages, whether the rest need not be looked at
}

func newChecker(f *os.File, m Meta) *checker {
	return &checker{f: f, m: m, taken: make([]uint64, m.Pages/64+1)}
}

// all checks the tree and the list of free pages.
func (c *checker) all() error {
	if err := c.tree(c.m.Root, 0, nil, nil); err != nil || c.m.Freelist == noFreelist {
		return err
	}
	return c.freelist()
}

func (c *checker) has(id uint64) bool { return c.taken[id/64]&(1<<(id%64)) != 0 }

const maxDepth = 64

// take reports whether a page was free to be used.
func (c *checker) take(id uint64) bool {
	if c.has(id) {
		return false
	}
	c.taken[id/64] |= 1 << (id % 64)
	c.used++
	return true
}

// page reads a page with its overflow, and takes its numbers. What it returns is valid until the next page of the same depth.
func (c *checker) page(id uint64, depth int) (b []byte, flags, count uint16, err error) {
	if id < 2 || id >= c.m.Pages {
		return nil, 0, 0, damaged("page %d of %d is referred to", id, c.m.Pages)
	}
	off := int64(id) * int64(c.m.PageSize)
	if c.buffers[depth] == nil {
		c.buffers[depth] = make([]byte, c.m.PageSize)
	}
	b = c.buffers[depth]
	if _, err := c.f.ReadAt(b, off); err != nil {
		return nil, 0, 0, damaged("page %d: %v", id, err)
	}
	flags, count = order.Uint16(b[8:]), order.Uint16(b[10:])
	over := uint64(order.Uint32(b[12:]))
	if order.Uint64(b) != id || over >= c.m.Pages-id {
		return nil, 0, 0, damaged("page %d says it is page %d with %d more", id, order.Uint64(b), over)
	}
	for n := id; n <= id+over; n++ {
		if !c.take(n) {
			return nil, 0, 0, damaged("page %d is used twice", n)
		}
	}
	if over > 0 {
		more := make([]byte, uint64(c.m.PageSize)*(over+1))
		if _, err := c.f.ReadAt(more, off); err != nil {
			return nil, 0, 0, damaged("page %d: %v", id, err)
		}
		b = more
	}
	return b, flags, count, nil
}

// tree checks a page and those below it. A search from the root must find their keys: they are at least low and less than high;
// nil: no bound.
func (c *checker) tree(id uint64, depth int, low, high []byte) error {
	if c.used%64 == 0 {
		if enough, err := c.enough(); enough || err != nil {
			return err
		}
	}
	if depth > maxDepth {
		return damaged("its tree has no end")
	}
	b, flags, count, err := c.page(id, depth)
	if err != nil {
		return err
	}
	switch flags {
	case flagBranch:
		if count == 0 || pageHeader+int(count)*branchElem > len(b) {
			return damaged("branch page %d has %d entries", id, count)
		}
		keys := make([][]byte, count, int(count)+1)
		end := uint64(pageHeader + int(count)*branchElem)
		for i := range keys {
			at := pageHeader + i*branchElem
			start, ksize := uint64(at)+uint64(order.Uint32(b[at:])), uint64(order.Uint32(b[at+4:]))
			// An empty first key is one that bbolt has not filled in.
			if start != end || start+ksize > uint64(len(b)) || i > 0 && bytes.Compare(keys[i-1], b[start:start+ksize]) >= 0 {
				return damaged("branch page %d: entry %d is out of place", id, i)
			}
			keys[i], end = b[start:start+ksize], start+ksize
		}
		// A search for what is below the first key goes to the first child too.
		keys[0] = low
		keys = append(keys, high)
		for i := range int(count) {
			if err := c.tree(order.Uint64(b[pageHeader+i*branchElem+8:]), depth+1, keys[i], keys[i+1]); err != nil {
				return err
			}
		}
		return nil
	case flagLeaf:
		return c.leaf(b, count, id, depth, low, high)
	}
	return damaged("page %d has flags %#x", id, flags)
}

// leaf checks a leaf page, or a bucket that lies inside one.
func (c *checker) leaf(b []byte, count uint16, page uint64, depth int, low, high []byte) error {
	if pageHeader+int(count)*leafElem > len(b) {
		return damaged("page %d has %d entries", page, count)
	}
	// bbolt writes keys and values without a gap behind the entries, in the order of the keys: so a count that is wrong, a
	// size or a place does not fit what is around it.
	var last []byte
	end := uint64(pageHeader + int(count)*leafElem)
	for i := range int(count) {
		at := pageHeader + i*leafElem
		flags := order.Uint32(b[at:])
		start, ksize, vsize := uint64(at)+uint64(order.Uint32(b[at+4:])), uint64(order.Uint32(b[at+8:])), uint64(order.Uint32(b[at+12:]))
		if flags > leafBucket || ksize == 0 || start != end || start+ksize+vsize > uint64(len(b)) ||
			i > 0 && bytes.Compare(last, b[start:start+ksize]) >= 0 {
			return damaged("page %d: entry %d is out of place", page, i)
		}
		last, end = b[start:start+ksize], start+ksize+vsize
		if bytes.Compare(last, low) < 0 || high != nil && bytes.Compare(last, high) >= 0 {
			return damaged("page %d: no search finds entry %d", page, i)
		}
		if flags&leafBucket == 0 {
			continue
		}
		v := b[start+ksize : start+ksize+vsize]
		if len(v) < bucketValue {
			return damaged("page %d: bucket %d is cut short", page, i)
		}
		if root := order.Uint64(v); root != 0 {
			if err := c.tree(root, depth+1, nil, nil); err != nil {
				return err
			}
			continue
		}
		inline := v[bucketValue:]
		if len(inline) < pageHeader || order.Uint16(inline[8:]) != flagLeaf || depth > maxDepth {
			return damaged("page %d: inline bucket %d does not read", page, i)
		}
		if err := c.leaf(inline, order.Uint16(inline[10:]), page, depth+1, nil, nil); err != nil {
			return err
		}
	}
	return nil
}

func (c *checker) freelist() error {
	b, flags, count16, err := c.page(c.m.Freelist, 0)
	if err != nil {
		return err
	}
	if flags != flagFree {
		return damaged("the list of free pages is not one")
	}
	count, at := uint64(count16), uint64(pageHeader)
	if count == 0xFFFF { // the count did not fit and stands in front of the list
		count, at = order.Uint64(b[pageHeader:]), pageHeader+8
	}
	if count > (uint64(len(b))-at)/8 {
		return damaged("the list of free pages is cut short")
	}
	last := uint64(1)
	for i := range count {
		id := order.Uint64(b[at+8*i:])
		if id <= last || id >= c.m.Pages {
			return damaged("the list of free pages is out of order")
		}
		if c.has(id) {
			return damaged("page %d is both used and free", id)
		}
		last = id
	}
	return nil
}
