package boltstore

import (
	"encoding/binary"
	"fmt"
	"strings"

	"go.etcd.io/bbolt"

	"github.com/apitoken-go/apitoken/store"
)

// The buckets of the file:
//
//	apitoken              format, id, meta; backup in a copy that Backup made; anchor in a store that has one
//	n:<namespace>         head, and in buckets of its own:
//	    r:<kind>          id -> record
//	    x:<kind>          due(8) id -> nothing: the expiry index, a lower bound of Expires
//	    t:<kind>          born(8) -> id terms: records created since the last segment
//	    s:<kind>          born(8) of its last -> segment of the index, 512 records and more
//	    i:<kind>          segment(8) first posting -> postings of a segment
//	    p                 pos(8) -> kind 0 id: the order of the state records, newest form only
//	    e                 n(8) -> event
//	    g                 n(8) of its last -> group: when the first of 512 events expires
//	    s, i              the same for events
//
// Everything that is written with each Apply is appended in the order of time, because key order is worth six times:
// a selector index with random keys would dirty a page per entry. See terms.go for what takes its place.
//
// Format 2 added to format 1 what proves that no page of the file is an older version of itself; see digest.go. A file
// of format 1 is upgraded when it is opened for writing. Format 3 has segments where the others have blocks and runs:
//
//	u:<kind>          born(8) of its last -> run: the selectors of 2,048 records
//	d:<kind>          the same key -> how many of a run's records still exist
//	b                 n(8) of its last -> block: the selectors of 2,048 events
//
// They are read as they are, and made segments while the store is in use.
const (
	formatVersion = 3
	formatBlocks  = 2 // may have blocks and runs only
	formatPlain   = 1 // without digests
)

var (
	bucketFormat = []byte("apitoken")
	keyFormat    = []byte("format")
	keyID        = []byte("id")
	keyMeta      = []byte("meta")
	keyBackup    = []byte("backup")
	keyAnchor    = []byte("anchor")
	keyHead      = []byte("head")
)

const namespacePrefix = "n:"

// class is the first letter of a bucket inside a namespace.
type class byte

const (
	classRecords  class = 'r'
	classDue      class = 'x'
	classTail     class = 't'
	classOrder    class = 'p'
	classEvents   class = 'e'
	classGroups   class = 'g'
	classSegments class = 's'
	classChunks   class = 'i'

	// Of older formats.
	classRuns   class = 'u'
	classRunDir class = 'd'
	classBlocks class = 'b'
)

// Pages of append-only buckets are split nearly full; a record that is rewritten in place may grow a little. See scatter for the
// others.
func (c class) fill() float64 {
	if c == classRecords {
		return 0.9
	}
	return 1.0
}

func bucketName(c class, k store.Kind) []byte {
	if k == "" {
		return []byte{byte(c)}
	}
	b := make([]byte, 0, 2+len(k))
	b = append(b, byte(c), ':')
	return append(b, k...)
}

// fileMeta is what the file says of itself, rewritten with each commit.
type fileMeta struct {
	history  uint64
	seq      uint64 // commits so far
	highest  int64  // the highest Written, ms: no later write is stamped with less
	believed int64  // the time that purging believed at the last commit, ms
	heads    uint64 // the sum of headHash over all namespaces

	// Not part of the value:
	format uint64   // of the file that it was read from
	anchor [16]byte // the name by which an Anchor knows the store, under a key of its own; zero: none

	txn uint64 // bbolt's number of the transaction that wrote it
}

const (
	sizeMetaPlain = 32 + sizeCRC
	sizeMeta      = sizeMetaPlain + 16
)

// encode makes the value that transaction number txn writes.
func (m *fileMeta) encode(txn int) []byte {
	b := make([]byte, 0, sizeMeta)
	b = binary.BigEndian.AppendUint64(b, m.history)
	b = binary.BigEndian.AppendUint64(b, m.seq)
	b = binary.BigEndian.AppendUint64(b, uint64(m.highest))
	b = binary.BigEndian.AppendUint64(b, uint64(m.believed))
	b = binary.BigEndian.AppendUint64(b, m.heads)
	return sealValue(binary.BigEndian.AppendUint64(b, uint64(txn)), keyMeta)
}

func decodeMeta(b []byte) (m fileMeta, err error) {
	b, ok := openValue(b, keyMeta)
	if !ok || len(b) != sizeMeta-sizeCRC && len(b) != sizeMetaPlain-sizeCRC {
		return m, errValue("the format bucket has no readable meta")
	}
	m.history = binary.BigEndian.Uint64(b)
	m.seq = binary.BigEndian.Uint64(b[8:])
	m.highest = int64(binary.BigEndian.Uint64(b[16:]))
	m.believed = int64(binary.BigEndian.Uint64(b[24:]))
	m.format = formatPlain
	if len(b) == sizeMeta-sizeCRC {
		m.format = formatBlocks // or newer, which its reader knows
		m.heads = binary.BigEndian.Uint64(b[32:])
		m.txn = binary.BigEndian.Uint64(b[40:])
	}
	return m, nil
}

// head is the state of one namespace's order.
type head struct {
	last     int64 // the last number given to anything: state, event or creation
	state    int64 // the last given to a state record
	blockEnd int64 // the last event that is in a group
	loose    int64 // events after it
	trimmed  int64 // the highest event that was purged
	readOnly bool
	digest   digest
}

const (
	sizeHeadPlain = 41 + sizeCRC
	sizeHead      = sizeHeadPlain + sizeDigest
)

func (h *head) encode() []byte {
	b := make([]byte, 0, sizeHead)
	for _, n := range []int64{h.last, h.state, h.blockEnd, h.loose, h.trimmed} {
		b = binary.BigEndian.AppendUint64(b, uint64(n))
	}
	if h.readOnly {
		b = append(b, 1)
	} else {
		b = append(b, 0)
	}
	return sealValue(h.digest.append(b), keyHead)
}

// readHead takes nil for a namespace that was never written.
func readHead(ns *bbolt.Bucket) (h head, err error) {
	if ns == nil {
		return h, nil
	}
	return decodeHead(ns.Get(keyHead))
}

func decodeHead(b []byte) (h head, err error) {
	b, ok := openValue(b, keyHead)
	if !ok || len(b) != sizeHead-sizeCRC && len(b) != sizeHeadPlain-sizeCRC || b[40] > 1 {
		return h, errValue("a namespace has no readable head")
	}
	for i, p := range []*int64{&h.last, &h.state, &h.blockEnd, &h.loose, &h.trimmed} {
		*p = int64(binary.BigEndian.Uint64(b[8*i:]))
	}
	h.readOnly = b[40] == 1
	if len(b) == sizeHead-sizeCRC {
		h.digest = decodeDigest(b[41:])
	}
	return h, nil
}

// txn is the one write transaction while it is open. Every write goes through put and del, so that a compaction that
// copies the file at the same time learns of it.
type txn struct {
	s        *Store
	tx       *bbolt.Tx
	meta     fileMeta
	now      int64 // the stamp of this commit, ms
	believed int64 // what purging may believe, ms
	spaces   map[*space]*spaceTxn
	dirty    bool
}

type spaceTxn struct {
	t     *txn
	sp    *space
	b     *bbolt.Bucket // nil: never written
	head  head
	hash  uint64 // headHash of the head as it was before the transaction, 0 if there was none
	subs  map[subKey]*sub
	dirty bool
	moved bool // the state head

	unmerged bool // the directory of segments has changed
}

type subKey struct {
	class class
	kind  store.Kind
}

// sub is one bucket of a namespace, open for writing.
type sub struct {
	b    *bbolt.Bucket
	path touched // with an empty key
	last []byte  // how its last key began when it was opened; nil: not looked at
}

// scatter notes that a record comes under a new key. Most IDs begin with a time, so that new ones stand at the end. Others are
// hashes and come anywhere: pages of theirs that were split nearly full would be half empty for good. A key is taken for one of
// those that begins neither like the last of its bucket nor like the one that was new before it.
func (st *spaceTxn) scatter(u *sub, kind store.Kind, key []byte) {
	if u.last == nil {
		last, _ := u.b.Cursor().Last()
		u.last = append([]byte{}, last[:min(2, len(last))]...)
	}
	begins := string(key[:min(2, len(key))])
	if begins != st.sp.newest[kind] && begins != string(u.last) && len(u.last) > 0 {
		u.b.FillPercent = 0.5
	}
	st.sp.newest[kind] = begins
}

// touched names one key that was written.
type touched struct{ namespace, sub, key string }

func (t *txn) space(sp *space) (*spaceTxn, error) {
	if st := t.spaces[sp]; st != nil {
		return st, nil
	}
	st := &spaceTxn{t: t, sp: sp, subs: map[subKey]*sub{}}
	st.b = t.tx.Bucket(sp.bucket)
	h, err := readHead(st.b)
	if err != nil {
		return nil, err
	}
	st.head = h
	if st.b != nil {
		st.hash = headHash(sp.bucket, st.b.Get(keyHead))
	}
	t.spaces[sp] = st
	return st, nil
}

// sub opens a bucket; without create it is nil when there is none.
func (st *spaceTxn) sub(c class, k store.Kind, create bool) (*sub, error) {
	key := subKey{c, k}
	if u := st.subs[key]; u != nil {
		return u, nil
	}
	name := bucketName(c, k)
	var b *bbolt.Bucket
	if st.b != nil {
		b = st.b.Bucket(name)
	}
	if b == nil {
		if !create {
			return nil, nil
		}
		var err error
		if st.b == nil {
			if st.b, err = st.t.tx.CreateBucketIfNotExists(st.sp.bucket); err != nil {
				return nil, err
			}
		}
		if b, err = st.b.CreateBucketIfNotExists(name); err != nil {
			return nil, err
		}
	}
	b.FillPercent = c.fill()
	u := &sub{b: b, path: touched{namespace: string(st.sp.bucket), sub: string(name)}}
	st.subs[key] = u
	return u, nil
}

func (st *spaceTxn) put(u *sub, key, value []byte) error {
	st.touch(u, key)
	return u.b.Put(key, value)
}

func (st *spaceTxn) del(u *sub, key []byte) error {
	st.touch(u, key)
	return u.b.Delete(key)
}

func (st *spaceTxn) touch(u *sub, key []byte) {
	st.dirty, st.t.dirty = true, true
	if log := st.t.s.touched; log != nil {
		p := u.path
		p.key = string(key)
		log[p] = struct{}{}
	}
}

// next gives the next number of the namespace: it rises strictly, and is at least the clock in ms << 16.
func (st *spaceTxn) next() int64 {
	n := max(st.head.last+1, st.sp.floor+1, st.t.now<<16)
	st.head.last, st.sp.floor = n, n
	return n
}

// finish builds the segments that are due and writes the heads and the meta.
func (t *txn) finish() error {
	for _, st := range t.spaces {
		if !st.dirty {
			continue
		}
		if err := st.buildBlocks(); err != nil {
			return err
		}
		if st.b == nil {
			b, err := t.tx.CreateBucketIfNotExists(st.sp.bucket)
			if err != nil {
				return err
			}
			st.b = b
		}
		value := st.head.encode()
		if err := st.b.Put(keyHead, value); err != nil {
			return err
		}
		t.meta.heads += headHash(st.sp.bucket, value) - st.hash
		if log := t.s.touched; log != nil {
			log[touched{namespace: string(st.sp.bucket), key: string(keyHead)}] = struct{}{}
		}
	}
	t.meta.seq++
	t.meta.highest = t.now
	t.meta.believed = max(t.meta.believed, min(t.believed, t.now))
	b := t.tx.Bucket(bucketFormat)
	if b == nil {
		return errValue("the format bucket is gone")
	}
	return b.Put(keyMeta, t.meta.encode(t.tx.ID()))
}

func readFormat(tx *bbolt.Tx) (id [16]byte, m fileMeta, backup bool, err error) {
	b := tx.Bucket(bucketFormat)
	if b == nil {
		return id, m, false, fmt.Errorf("%w: a bbolt file of another program", ErrForeign)
	}
	v, n := binary.Uvarint(b.Get(keyFormat))
	if n <= 0 {
		return id, m, false, fmt.Errorf("%w: its bucket %q has no format version", ErrForeign, bucketFormat)
	}
	if v > formatVersion {
		return id, m, false, fmt.Errorf("%w: version %d, this program knows %d", ErrVersion, v, formatVersion)
	}
	if v < formatPlain || len(b.Get(keyID)) != 16 {
		return id, m, false, errValue("the format bucket does not read")
	}
	id = [16]byte(b.Get(keyID))
	if m, err = decodeMeta(b.Get(keyMeta)); err != nil {
		return id, m, false, err
	}
	if (m.format == formatPlain) != (v == formatPlain) {
		return id, m, false, errValue("the format bucket does not have the form of its version")
	}
	m.format = v
	if v > formatPlain && m.txn != uint64(tx.ID()) {
		return id, m, false, errValue(fmt.Sprintf("its last transaction is number %d, its content is that of number %d", tx.ID(), m.txn))
	}

	if name := b.Get(keyAnchor); len(name) == len(m.anchor) {
		m.anchor = [16]byte(name)
	} else if name != nil {
		return id, m, false, errValue("the format bucket has a name of its anchor that does not read")
	}

	var heads uint64
	err = tx.ForEach(func(name []byte, ns *bbolt.Bucket) error {
		if string(name) == string(bucketFormat) {
			return nil
		}
		// A namespace whose name is damaged would look like one that was never written.
		short, ok := strings.CutPrefix(string(name), namespacePrefix)
		if !ok || short != "" && !validNamespace(short) {
			return errValue(fmt.Sprintf("it has a bucket %q", name))
		}
		heads += headHash(name, ns.Get(keyHead))
		return nil
	})
	if err == nil && v > formatPlain && heads != m.heads {
		err = errValue("the head of a namespace is not that of the last commit, a page of it was not written")
	}
	return id, m, b.Get(keyBackup) != nil, err
}

func writeFormat(tx *bbolt.Tx, id [16]byte, m *fileMeta) error {
	b, err := tx.CreateBucketIfNotExists(bucketFormat)
	if err != nil {
		return err
	}
	if err := b.Put(keyFormat, binary.AppendUvarint(nil, formatVersion)); err != nil {
		return err
	}
	if err := b.Put(keyID, id[:]); err != nil {
		return err
	}
	if m.anchor != [16]byte{} {
		if err := b.Put(keyAnchor, m.anchor[:]); err != nil {
			return err
		}
	}
	return b.Put(keyMeta, m.encode(tx.ID()))
}
