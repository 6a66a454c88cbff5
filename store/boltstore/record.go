package boltstore

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"

	"github.com/apitoken-go/apitoken/store"
)

// How records and events lie in the file. bbolt checks its meta pages only, so each value that is not another key alone
// carries a CRC-32C over itself and its key: a flipped bit is found when it is read, not believed.
//
//	record: layout version written pos expires due born | subject client grant token type | data | crc
//	event:  layout version written expires id            | subject client grant token type | data | crc
//
// The header has a fixed size, so that callers encode in parallel and the one writer only stamps. Strings and data
// have a uvarint length in front. due is the time under which the record stands in the expiry index (0: not at all),
// or will stand when it leaves the tail, never later than expires; born is its place in the order of creation (0: it
// began with nothing to select it by and no expiry, and is in no tail and no run).
const (
	layoutRecord byte = 1
	layoutEvent  byte = 2

	offVersion = 1
	offWritten = 17
	offPos     = 25
	offExpires = 33
	offDue     = 41
	offBorn    = 49
	sizeRecord = 57 // of a record's header

	offEventExpires = 25
	sizeEvent       = 33 // of an event's header

	sizeCRC = 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func errValue(what string) error { return fmt.Errorf("%w: %s", ErrDamaged, what) }

// sealValue appends the checksum of a value and its key.
func sealValue(b, key []byte) []byte {
	return binary.BigEndian.AppendUint32(b, crc32.Update(crc32.Checksum(b, castagnoli), castagnoli, key))
}

// openValue takes the checksum off again; false if it is wrong.
func openValue(b, key []byte) ([]byte, bool) {
	n := len(b) - sizeCRC
	if n < 0 {
		return nil, false
	}
	return b[:n], binary.BigEndian.Uint32(b[n:]) == crc32.Update(crc32.Checksum(b[:n], castagnoli), castagnoli, key)
}

func appendString(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

func appendSelectors(b []byte, r *store.Record) []byte {
	b = appendString(b, r.Subject)
	b = appendString(b, r.Client)
	b = appendString(b, r.Grant)
	b = appendString(b, r.Token)
	return appendString(b, r.Type)
}

func bodySize(r *store.Record) int {
	return len(r.Subject) + len(r.Client) + len(r.Grant) + len(r.Token) + len(r.Type) + len(r.Data) + 6*3 + sizeCRC
}

// encodeRecord leaves written, pos, due, born and crc to stampRecord. selectors is the length of the header and the
// five selectors: the part that may not change beside the header.
func encodeRecord(r *store.Record, v store.Version) (value []byte, selectors int) {
	b := make([]byte, sizeRecord, sizeRecord+bodySize(r))
	b[0] = layoutRecord
	copy(b[offVersion:], v[:])
	binary.BigEndian.PutUint64(b[offExpires:], uint64(r.Expires))
	b = appendSelectors(b, r)
	selectors = len(b)
	b = binary.AppendUvarint(b, uint64(len(r.Data)))
	b = append(b, r.Data...)
	return append(b, 0, 0, 0, 0), selectors
}

func stampRecord(b []byte, kind store.Kind, id string, written, pos, due, born int64) {
	binary.BigEndian.PutUint64(b[offWritten:], uint64(written))
	binary.BigEndian.PutUint64(b[offPos:], uint64(pos))
	binary.BigEndian.PutUint64(b[offDue:], uint64(due))
	binary.BigEndian.PutUint64(b[offBorn:], uint64(born))
	n := len(b) - sizeCRC
	binary.BigEndian.PutUint32(b[n:], recordCRC(b[:n], kind, id))
}

func recordCRC(b []byte, kind store.Kind, id string) uint32 {
	key := make([]byte, 0, len(kind)+1+len(id)) // on the heap: what crc32 gets escapes
	key = append(append(append(key, kind...), 0), id...)
	return crc32.Update(crc32.Checksum(b, castagnoli), castagnoli, key)
}

// recordHeader is what the writer must know of the record that it replaces.
type recordHeader struct {
	version                            store.Version
	written, pos, expires, due, bornAt int64
}

// openRecord checks a record's value without decoding its body.
func openRecord(b []byte, kind store.Kind, id string) (recordHeader, error) {
	var h recordHeader
	if len(b) < sizeRecord+sizeCRC || b[0] != layoutRecord {
		return h, errValue(fmt.Sprintf("record %s/%q has an unknown layout", kind, id))
	}
	n := len(b) - sizeCRC
	if binary.BigEndian.Uint32(b[n:]) != recordCRC(b[:n], kind, id) {
		return h, errValue(fmt.Sprintf("record %s/%q fails its checksum", kind, id))
	}
	copy(h.version[:], b[offVersion:])
	h.written = int64(binary.BigEndian.Uint64(b[offWritten:]))
	h.pos = int64(binary.BigEndian.Uint64(b[offPos:]))
	h.expires = int64(binary.BigEndian.Uint64(b[offExpires:]))
	h.due = int64(binary.BigEndian.Uint64(b[offDue:]))
	h.bornAt = int64(binary.BigEndian.Uint64(b[offBorn:]))
	return h, nil
}

// decodeRecord copies everything out of b, which is bbolt's memory.
func decodeRecord(b []byte, kind store.Kind, id string, history uint64) (store.Record, error) {
	h, err := openRecord(b, kind, id)
	if err != nil {
		return store.Record{}, err
	}
	r := store.Record{Kind: kind, ID: id, Version: h.version, Written: h.written, Expires: h.expires}
	if h.pos != 0 {
		r.Pos = store.Position{History: history, N: h.pos}
	}
	if !decodeBody(&r, b[sizeRecord:len(b)-sizeCRC]) {
		return store.Record{}, errValue(fmt.Sprintf("record %s/%q does not decode", kind, id))
	}
	return r, nil
}

// decodeBody reads selectors and data. One copy backs the five strings.
func decodeBody(r *store.Record, b []byte) bool {
	rest := b
	var ends [6]int // of each field in b
	var starts [6]int
	for i := range ends {
		n, w := binary.Uvarint(rest)
		if w <= 0 || n > uint64(len(rest)-w) {
			return false
		}
		starts[i] = len(b) - len(rest) + w
		ends[i] = starts[i] + int(n)
		rest = rest[w+int(n):]
	}
	if len(rest) != 0 {
		return false
	}
	s := string(b[:ends[4]])
	r.Subject, r.Client, r.Grant = s[starts[0]:ends[0]], s[starts[1]:ends[1]], s[starts[2]:ends[2]]
	r.Token, r.Type = s[starts[3]:ends[3]], s[starts[4]:ends[4]]
	if ends[5] > starts[5] {
		r.Data = append([]byte(nil), b[starts[5]:ends[5]]...)
	}
	return true
}

func encodeEvent(r *store.Record, v store.Version) []byte {
	b := make([]byte, sizeEvent, sizeEvent+len(r.ID)+3+bodySize(r))
	b[0] = layoutEvent
	copy(b[offVersion:], v[:])
	binary.BigEndian.PutUint64(b[offEventExpires:], uint64(r.Expires))
	b = appendString(b, r.ID)
	b = appendSelectors(b, r)
	b = binary.AppendUvarint(b, uint64(len(r.Data)))
	b = append(b, r.Data...)
	return append(b, 0, 0, 0, 0)
}

func stampEvent(b []byte, key []byte, written int64) {
	binary.BigEndian.PutUint64(b[offWritten:], uint64(written))
	sealValue(b[:len(b)-sizeCRC], key) // in place
}

func openEvent(b, key []byte) (written, expires int64, err error) {
	if len(b) < sizeEvent+sizeCRC || b[0] != layoutEvent {
		return 0, 0, errValue(fmt.Sprintf("event %x has an unknown layout", key))
	}
	if _, ok := openValue(b, key); !ok {
		return 0, 0, errValue(fmt.Sprintf("event %x fails its checksum", key))
	}
	return int64(binary.BigEndian.Uint64(b[offWritten:])), int64(binary.BigEndian.Uint64(b[offEventExpires:])), nil
}

func decodeEvent(b, key []byte) (store.Record, error) {
	written, expires, err := openEvent(b, key)
	if err != nil {
		return store.Record{}, err
	}
	r := store.Record{Kind: store.KindEvent, Written: written, Expires: expires}
	copy(r.Version[:], b[offVersion:])
	rest := b[sizeEvent : len(b)-sizeCRC]
	n, w := binary.Uvarint(rest)
	if w <= 0 || n > uint64(len(rest)-w) {
		return store.Record{}, errValue(fmt.Sprintf("event %x does not decode", key))
	}
	r.ID = string(rest[w : w+int(n)])
	if !decodeBody(&r, rest[w+int(n):]) {
		return store.Record{}, errValue(fmt.Sprintf("event %x does not decode", key))
	}
	return r, nil
}

// key64 orders non-negative numbers bytewise.
func key64(n int64) []byte { return binary.BigEndian.AppendUint64(nil, uint64(n)) }

// num64 reads a key of key64; keys of another length cannot come from this package.
func num64(b []byte) int64 {
	if len(b) < 8 {
		return 0
	}
	return int64(binary.BigEndian.Uint64(b) & math.MaxInt64)
}
