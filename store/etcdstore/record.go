package etcdstore

import (
	"crypto/sha256"
	"encoding/binary"
	"hash/crc32"
	"slices"

	"github.com/apitoken-go/apitoken/store"
)

// How records lie in etcd:
//
//	version(16) selectors(8) layout(1) written(8) pos(8) expires(8) | kind id subject client grant token type data | crc(4)
//
// The version stands first because etcd compares whole values only: "greater than version and hash, less than their
// successor" is a comparison with a prefix, and so a write needs no read before it. The hash of the selectors behind it
// is compared along, which finds a caller that changes what is fixed for a record's life.
const (
	layoutRecord byte = 1
	layoutEvents byte = 2

	offSelectors = 16
	offLayout    = 24
	offWritten   = 25
	offPos       = 33
	offExpires   = 41
	sizeRecord   = 49
	sizeCRC      = 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func appendString(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

// selectors hashes what is fixed for a record's life.
func selectors(r *store.Record) [8]byte {
	var b []byte
	for _, s := range [...]string{r.Subject, r.Client, r.Grant, r.Token, r.Type} {
		b = appendString(b, s)
	}
	sum := sha256.Sum256(b)
	return [8]byte(sum[:8])
}

// encodeRecord leaves written, pos and crc to stamp.
func encodeRecord(r *store.Record, v store.Version) []byte {
	b := make([]byte, sizeRecord, sizeRecord+r.Size()+8*3+sizeCRC)
	copy(b, v[:])
	h := selectors(r)
	copy(b[offSelectors:], h[:])
	b[offLayout] = layoutRecord
	binary.BigEndian.PutUint64(b[offExpires:], uint64(r.Expires))
	for _, s := range [...]string{string(r.Kind), r.ID, r.Subject, r.Client, r.Grant, r.Token, r.Type} {
		b = appendString(b, s)
	}
	b = binary.AppendUvarint(b, uint64(len(r.Data)))
	b = append(b, r.Data...)
	return append(b, 0, 0, 0, 0)
}

func stamp(b []byte, written, pos int64) {
	binary.BigEndian.PutUint64(b[offWritten:], uint64(written))
	binary.BigEndian.PutUint64(b[offPos:], uint64(pos))
	seal(b)
}

func seal(b []byte) {
	n := len(b) - sizeCRC
	binary.BigEndian.PutUint32(b[n:], crc32.Checksum(b[:n], castagnoli))
}

func sealed(b []byte) bool {
	n := len(b) - sizeCRC
	return n >= 0 && binary.BigEndian.Uint32(b[n:]) == crc32.Checksum(b[:n], castagnoli)
}

// reader takes fields off the front of a value; one copy backs all strings.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) take(n uint64) []byte {
	if n > uint64(len(r.b)) {
		r.bad = true
		return nil
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) uvarint() uint64 {
	n, w := binary.Uvarint(r.b)
	if w <= 0 {
		r.bad = true
		return 0
	}
	r.b = r.b[w:]
	return n
}

func (r *reader) bytes() []byte  { return r.take(r.uvarint()) }
func (r *reader) string() string { return string(r.bytes()) }

func (r *reader) int64() int64 {
	b := r.take(8)
	if r.bad {
		return 0
	}
	return int64(binary.BigEndian.Uint64(b))
}

func decodeRecord(b []byte, history uint64) (store.Record, error) {
	if len(b) < sizeRecord+sizeCRC || b[offLayout] != layoutRecord || !sealed(b) {
		return store.Record{}, errValue("a record does not read")
	}
	rec := store.Record{Version: store.Version(b[:16])}
	r := reader{b: b[offWritten : len(b)-sizeCRC]}
	rec.Written = r.int64()
	if n := r.int64(); n != 0 {
		rec.Pos = store.Position{History: history, N: n}
	}
	rec.Expires = r.int64()
	rec.Kind, rec.ID = store.Kind(r.string()), r.string()
	rec.Subject, rec.Client, rec.Grant, rec.Token, rec.Type = r.string(), r.string(), r.string(), r.string(), r.string()
	if d := r.bytes(); len(d) > 0 {
		rec.Data = append([]byte(nil), d...)
	}
	if r.bad || len(r.b) != 0 {
		return store.Record{}, errValue("a record does not decode")
	}
	return rec, nil
}

// versionOf reads a stored record's version without decoding it.
func versionOf(b []byte) (v store.Version, sel [8]byte, err error) {
	if len(b) < sizeRecord+sizeCRC || b[offLayout] != layoutRecord {
		return v, sel, errValue("a record does not read")
	}
	return store.Version(b[:16]), [8]byte(b[offSelectors:offLayout]), nil
}

func posOf(b []byte) int64 { return int64(binary.BigEndian.Uint64(b[offPos:])) }

// entry is the events of one change, as one value:
//
//	layout(1) version(16) written(8) history(8) count | index expires id subject client grant token type data ... | crc(4)
type entry struct {
	key     string
	epoch   int64
	place   int64 // of its first event as it was written: the create revision, and the number among those of it
	mod     int64
	version store.Version
	written int64
	history uint64 // under which it was written
	events  []store.Record
	numbers []int // of events among those of their revision; purging leaves gaps
}

func encodeEvents(version store.Version, written int64, history uint64, events []store.Record, numbers []int, from int) []byte {
	size := 64
	for i := range events {
		size += events[i].Size() + 40
	}
	b := make([]byte, 0, size)
	b = append(b, layoutEvents)
	b = append(b, version[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(written))
	b = binary.BigEndian.AppendUint64(b, history)
	b = binary.AppendUvarint(b, uint64(len(events)))
	for i := range events {
		r := &events[i]
		n := from + i
		if numbers != nil {
			n = numbers[i]
		}
		b = binary.AppendUvarint(b, uint64(n))
		b = binary.BigEndian.AppendUint64(b, uint64(r.Expires))
		for _, s := range [...]string{r.ID, r.Subject, r.Client, r.Grant, r.Token, r.Type} {
			b = appendString(b, s)
		}
		b = binary.AppendUvarint(b, uint64(len(r.Data)))
		b = append(b, r.Data...)
	}
	b = append(b, 0, 0, 0, 0)
	seal(b)
	return b
}

// last is the place of an entry's last event.
func (e *entry) last() int64 { return e.at(len(e.events) - 1) }

// at is the place of its i-th event.
func (e *entry) at(i int) int64 { return e.place>>placeBits<<placeBits | int64(e.numbers[i]) }

func decodeEvents(b []byte) (entry, error) {
	var e entry
	if len(b) < 34+sizeCRC || b[0] != layoutEvents || !sealed(b) {
		return e, errValue("events do not read")
	}
	r := reader{b: b[1 : len(b)-sizeCRC]}
	e.version = store.Version(r.take(16))
	e.written = r.int64()
	e.history = uint64(r.int64())
	count := r.uvarint()
	if count > store.MaxEvents {
		return e, errValue("too many events in one entry")
	}
	for range count {
		e.numbers = append(e.numbers, int(r.uvarint()))
		rec := store.Record{Kind: store.KindEvent, Version: e.version, Written: e.written, Expires: r.int64()}
		rec.ID, rec.Subject, rec.Client = r.string(), r.string(), r.string()
		rec.Grant, rec.Token, rec.Type = r.string(), r.string(), r.string()
		if d := r.bytes(); len(d) > 0 {
			rec.Data = append([]byte(nil), d...)
		}
		e.events = append(e.events, rec)
	}
	if r.bad || len(r.b) != 0 || count == 0 || slices.Max(e.numbers) >= 1<<placeBits {
		return e, errValue("events do not decode")
	}
	return e, nil
}
