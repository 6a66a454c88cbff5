package boltstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"strings"
	"unsafe"

	"go.etcd.io/bbolt"

	"github.com/apitoken-go/apitoken/store"
)

// A disk can lose the write of one page and keep the others. The page is then an older version of itself: it reads,
// its values pass their checksums, and a record that was revoked since is good again. So each commit also writes what
// the file must hold:
//
//   - each head has a digest, the number of records, order entries and events of its namespace, and sums of their
//     hashes. A commit adds what it writes and subtracts what it replaces or removes.
//   - the file's meta has the sum of the hashes of all heads, for the page that holds a head may be old too.
//   - the file's meta has the number of bbolt's transaction, which bbolt's own meta page has as well, for the page that
//     holds the file's meta may be old.
//
// What remains is bbolt's meta page itself. If that is old, the file is whole, and one commit behind its mark.
//
// The digest finds accidents. Whoever can write the file can also write a digest that fits.
type digest struct {
	state  tally // records of kinds that have a place in the order
	order  tally // entries of that order
	others tally // records of all other kinds
	events tally
}

type tally struct{ count, sum uint64 }

func (t *tally) add(hash uint64)    { t.count++; t.sum += hash }
func (t *tally) remove(hash uint64) { t.count--; t.sum -= hash }

const sizeDigest = 4 * 16

func (d *digest) append(b []byte) []byte {
	for _, t := range []*tally{&d.state, &d.order, &d.others, &d.events} {
		b = binary.BigEndian.AppendUint64(b, t.count)
		b = binary.BigEndian.AppendUint64(b, t.sum)
	}
	return b
}

// decodeDigest takes at least sizeDigest bytes.
func decodeDigest(b []byte) (d digest) {
	for i, t := range []*tally{&d.state, &d.order, &d.others, &d.events} {
		t.count = binary.BigEndian.Uint64(b[16*i:])
		t.sum = binary.BigEndian.Uint64(b[16*i+8:])
	}
	return d
}

// of is the tally that records of a kind count in.
func (d *digest) of(kind store.Kind) *tally {
	if kind.State() {
		return &d.state
	}
	return &d.others
}

const (
	fnvOffset = 14695981039346656037
	fnvPrime  = 1099511628211
)

// mix spreads each bit of h over all of it (the last step of splitmix64), so that sums of hashes do not cancel out.
func mix(h uint64) uint64 {
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	return h ^ h>>31
}

func fnvBytes(h uint64, b []byte) uint64 {
	for _, c := range b {
		h = (h ^ uint64(c)) * fnvPrime
	}
	return h
}

// recordHash is the hash of a record's key, version and place. Its content need not be part of it: a version is never
// used for two contents.
func recordHash(kind store.Kind, id []byte, h *recordHeader) uint64 {
	x := uint64(fnvOffset)
	for i := range len(kind) {
		x = (x ^ uint64(kind[i])) * fnvPrime
	}
	x = mix(fnvBytes(x*fnvPrime, id) ^ uint64(h.pos))
	x = mix(x ^ binary.BigEndian.Uint64(h.version[:]))
	return mix(x ^ binary.BigEndian.Uint64(h.version[8:]))
}

// orderHash is the hash of an entry of the order of state.
func orderHash(pos int64, entry []byte) uint64 { return mix(fnvBytes(fnvOffset, entry) ^ uint64(pos)) }

// eventHash is the hash of an event, whose checksum stands for its content.
func eventHash(n int64, value []byte) uint64 {
	return mix(uint64(n) ^ mix(uint64(binary.BigEndian.Uint32(value[len(value)-sizeCRC:]))))
}

func headHash(namespace, value []byte) uint64 {
	return mix(fnvBytes(fnvBytes(fnvOffset, namespace)*fnvPrime, value))
}

// orderEntry is the value of the order of state.
func orderEntry(kind store.Kind, id []byte) []byte {
	b := make([]byte, 0, len(kind)+1+len(id))
	return append(append(append(b, kind...), 0), id...)
}

// survey counts what a namespace holds, as far as what asks for it.
type survey struct {
	ctx  context.Context
	all  bool        // records of all kinds and events, not the state alone
	each func(n int) // called from time to time with the number of entries since the last call
	seen int
}

const surveyStep = 4096

func (v *survey) step() error {
	if v.seen++; v.seen%surveyStep != 0 {
		return nil
	}
	v.each(surveyStep)
	return v.ctx.Err()
}

func (v *survey) namespace(ns *bbolt.Bucket) (d digest, err error) {
	err = ns.ForEachBucket(func(name []byte) error {
		b := ns.Bucket(name)
		kind, isRecords := strings.CutPrefix(string(name), string(bucketName(classRecords, ""))+":")
		switch {
		case isRecords && (v.all || store.Kind(kind).State()):
			return v.records(b, store.Kind(kind), d.of(store.Kind(kind)))
		case string(name) == string(bucketName(classOrder, "")):
			return v.order(b, &d.order)
		case string(name) == string(bucketName(classEvents, "")) && v.all:
			return v.events(b, &d.events)
		}
		return nil
	})
	return d, err
}

// places checks that a search reaches what a walk comes by. Where a branch page is an older one, or a bit of a key in it has
// flipped, the walk may still reach all there is, and a search goes to another leaf and finds nothing. The inspection of pages
// finds that too, in the part of the file that it has the time for. A leaf that is reached for its first key and for its last is
// reached for those between, so only the last key of a page and the first of the next are searched for.
type places struct {
	b    *bbolt.Bucket
	page uintptr
	last []byte
}

func (p *places) check(key []byte) error {
	// bbolt's keys lie in its map of the file, whose beginning is that of a page.
	page := uintptr(unsafe.Pointer(unsafe.SliceData(key))) / placesPage
	last := p.last
	p.last = key
	if page == p.page {
		return nil
	}
	p.page = page
	for _, k := range [][]byte{last, key} {
		if k != nil && p.b.Get(k) == nil {
			return errValue(fmt.Sprintf("key %q is not found where it belongs", k))
		}
	}
	return nil
}

// placesPage is the least size of a page of bbolt's, which takes the machine's. Where pages are larger, more is searched for.
const placesPage = 4096

func (v *survey) records(b *bbolt.Bucket, kind store.Kind, t *tally) error {
	c, p := b.Cursor(), places{b: b}
	for id, value := c.First(); id != nil; id, value = c.Next() {
		h, err := openRecord(value, kind, string(id))
		if err != nil {
			return err
		}
		if err := p.check(id); err != nil {
			return err
		}
		t.add(recordHash(kind, id, &h))
		if err := v.step(); err != nil {
			return err
		}
	}
	return nil
}

func (v *survey) order(b *bbolt.Bucket, t *tally) error {
	c, p := b.Cursor(), places{b: b}
	for k, entry := c.First(); k != nil; k, entry = c.Next() {
		if len(k) != 8 || bytes.IndexByte(entry, 0) < 0 {
			return errValue("an entry of the order of state does not read")
		}
		if err := p.check(k); err != nil {
			return err
		}
		t.add(orderHash(num64(k), entry))
		if err := v.step(); err != nil {
			return err
		}
	}
	return nil
}

func (v *survey) events(b *bbolt.Bucket, t *tally) error {
	c, p := b.Cursor(), places{b: b}
	for k, value := c.First(); k != nil; k, value = c.Next() {
		if _, _, err := openEvent(value, k); err != nil {
			return err
		}
		if err := p.check(k); err != nil {
			return err
		}
		t.add(eventHash(num64(k), value))
		if err := v.step(); err != nil {
			return err
		}
	}
	return nil
}

// check compares what the file holds with what its heads say. A file of format 1 says nothing.
func (v *survey) check(tx *bbolt.Tx) error {
	return tx.ForEach(func(name []byte, ns *bbolt.Bucket) error {
		if bytes.Equal(name, bucketFormat) {
			return nil
		}
		h, err := readHead(ns)
		if err != nil {
			return err
		}
		got, err := v.namespace(ns)
		if err != nil {
			return err
		}
		for _, c := range []struct {
			what      string
			got, want tally
			checked   bool
		}{
			{"state records", got.state, h.digest.state, true},
			{"entries of the order of state", got.order, h.digest.order, true},
			{"other records", got.others, h.digest.others, v.all},
			{"events", got.events, h.digest.events, v.all},
		} {
			switch {
			case !c.checked || c.got == c.want:
			case c.got.count != c.want.count:
				return errValue(fmt.Sprintf("%q has %d %s where the last commit left %d: a page was not written",
					name, c.got.count, c.what, c.want.count))
			default:
				return errValue(fmt.Sprintf("%q has %s that are older than the last commit: a page was not written", name, c.what))
			}
		}
		return nil
	})
}

// addDigests makes a file of format 1 one of format 2, in the transaction tx; the caller writes m afterwards.
func (v *survey) addDigests(tx *bbolt.Tx, m *fileMeta) error {
	v.all = true
	m.heads = 0
	err := tx.ForEach(func(name []byte, ns *bbolt.Bucket) error {
		if bytes.Equal(name, bucketFormat) {
			return nil
		}
		h, err := readHead(ns)
		if err != nil {
			return err
		}
		if h.digest, err = v.namespace(ns); err != nil {
			return err
		}
		value := h.encode()
		m.heads += headHash(name, value)
		return ns.Put(keyHead, value)
	})
	m.format = formatVersion
	return err
}
