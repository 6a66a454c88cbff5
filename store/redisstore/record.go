package redisstore

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/apitoken-go/apitoken/store"
)

// How a record lies in Redis, a field of the hash of its kind. The script puts the parts together: it knows the time
// and the place, the caller the rest.
//
//	version(16) written(6) pos(8) expires(8) due(8) | crc(4) subject client grant token type data
//
// An event is an entry of the stream:
//
//	version(16) written(6) | expires(8) crc(4) subject client grant token type id data
//
// Numbers are big-endian, the texts but data have their length before them in three bytes. The checksum is over what
// the caller gave.
const (
	sizeRecord = 46
	sizeEvent  = 22
	sizeCRC    = 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func appendText(b []byte, s string) []byte {
	n := len(s)
	return append(append(b, byte(n>>16), byte(n>>8), byte(n)), s...)
}

func appendSelectors(b []byte, r *store.Record) []byte {
	for _, s := range [...]string{r.Subject, r.Client, r.Grant, r.Token, r.Type} {
		b = appendText(b, s)
	}
	return b
}

// checksum is over what a caller gives: it finds a value that stands under another's name too.
func checksum(version store.Version, kind store.Kind, id string, expires int64, rest []byte) uint32 {
	var b [24 + store.MaxKind + 1 + store.MaxID]byte
	copy(b[:], version[:])
	binary.BigEndian.PutUint64(b[16:], uint64(expires))
	head := append(append(append(b[:24], kind...), 0), id...)
	return crc32.Update(crc32.Checksum(head, castagnoli), castagnoli, rest)
}

// putBody is what stands behind the stamps of a record; selectors is how long they are in it.
func putBody(version store.Version, r *store.Record) (body []byte, selectors int) {
	b := make([]byte, sizeCRC, sizeCRC+15+r.Size())
	b = appendSelectors(b, r)
	selectors = len(b) - sizeCRC
	b = append(b, r.Data...)
	binary.BigEndian.PutUint32(b, checksum(version, r.Kind, r.ID, r.Expires, b[sizeCRC:]))
	return b, selectors
}

func eventBody(version store.Version, r *store.Record) []byte {
	b := make([]byte, 8+sizeCRC, 8+sizeCRC+18+r.Size())
	binary.BigEndian.PutUint64(b, uint64(r.Expires))
	b = appendSelectors(b, r)
	b = appendText(b, r.ID)
	b = append(b, r.Data...)
	binary.BigEndian.PutUint32(b[8:], checksum(version, store.KindEvent, "", r.Expires, b[8+sizeCRC:]))
	return b
}

// texts reads texts with their lengths off the front of a value.
type texts struct {
	s   string
	bad bool
}

func (t *texts) next() string {
	if len(t.s) < 3 {
		t.bad = true
		return ""
	}
	n := int(t.s[0])<<16 | int(t.s[1])<<8 | int(t.s[2])
	if n > len(t.s)-3 {
		t.bad = true
		return ""
	}
	out := t.s[3 : 3+n]
	t.s = t.s[3+n:]
	return out
}

func (t *texts) selectors(r *store.Record) {
	r.Subject, r.Client, r.Grant, r.Token, r.Type = t.next(), t.next(), t.next(), t.next(), t.next()
}

func uint48(s string) int64 {
	return int64(s[0])<<40 | int64(s[1])<<32 | int64(s[2])<<24 | int64(s[3])<<16 | int64(s[4])<<8 | int64(s[5])
}

func int64At(s string) int64 { return int64(binary.BigEndian.Uint64([]byte(s[:8]))) }

// decodeRecord reads a field of a kind's hash. The strings of the record share v's memory, which is nobody else's.
func decodeRecord(kind store.Kind, id, v string, history uint64) (store.Record, error) {
	if len(v) < sizeRecord+sizeCRC {
		return store.Record{}, errValue(fmt.Sprintf("record %s/%q is too short", kind, id))
	}
	r := store.Record{Kind: kind, ID: id, Version: store.Version([]byte(v[:16])), Written: uint48(v[16:]), Expires: int64At(v[30:])}
	if n := int64At(v[22:]); n != 0 {
		r.Pos = store.Position{History: history, N: n}
	}
	rest := v[sizeRecord+sizeCRC:]
	if binary.BigEndian.Uint32([]byte(v[sizeRecord:sizeRecord+sizeCRC])) != checksum(r.Version, kind, id, r.Expires, []byte(rest)) {
		return store.Record{}, errValue(fmt.Sprintf("record %s/%q has another checksum", kind, id))
	}
	t := texts{s: rest}
	t.selectors(&r)
	if t.bad {
		return store.Record{}, errValue(fmt.Sprintf("record %s/%q does not decode", kind, id))
	}
	if t.s != "" {
		r.Data = []byte(t.s)
	}
	return r, nil
}

// decodeEvent reads an entry of the stream.
func decodeEvent(v string) (store.Record, error) {
	if len(v) < sizeEvent+8+sizeCRC {
		return store.Record{}, errValue("an event is too short")
	}
	r := store.Record{Kind: store.KindEvent, Version: store.Version([]byte(v[:16])), Written: uint48(v[16:]), Expires: int64At(v[sizeEvent:])}
	v = v[sizeEvent+8:]
	rest := v[sizeCRC:]
	if binary.BigEndian.Uint32([]byte(v[:sizeCRC])) != checksum(r.Version, store.KindEvent, "", r.Expires, []byte(rest)) {
		return store.Record{}, errValue("an event has another checksum")
	}
	t := texts{s: rest}
	t.selectors(&r)
	r.ID = t.next()
	if t.bad {
		return store.Record{}, errValue("an event does not decode")
	}
	if t.s != "" {
		r.Data = []byte(t.s)
	}
	return r, nil
}

// Letters of the indexes by a selector, in the order of a value's texts.
const letters = "scgty"

// terms are the names of the indexes in which a new record stands, beside the one of all ids.
func terms(r *store.Record) []string {
	var out []string
	for i, s := range [...]string{r.Subject, r.Client, r.Grant, r.Token, r.Type} {
		if s != "" {
			out = append(out, letters[i:i+1]+s)
		}
	}
	return out
}

// sizeRow is the length of an event's row in the index of its block: when it expires, and a hash of each selector, six
// bytes each. A time of all ones marks an event that was purged.
const sizeRow = 36

func row(r *store.Record) []byte {
	b := make([]byte, 0, sizeRow)
	b = append48(b, uint64(min(r.Expires, 1<<48-2)))
	for i, s := range [...]string{r.Subject, r.Client, r.Grant, r.Token, r.Type} {
		b = append(b, hashTerm(i, s)...)
	}
	return b
}

func append48(b []byte, n uint64) []byte {
	return append(b, byte(n>>40), byte(n>>32), byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
}

// hashTerm is FNV-1a in 48 bits; all zero where there is no selector. Two selectors may share a hash: whoever finds one
// compares the event.
func hashTerm(field int, s string) []byte {
	if s == "" {
		return make([]byte, 6)
	}
	h := uint64(14695981039346656037)
	h = (h ^ uint64(field)) * 1099511628211
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return append48(nil, (h>>48^h)|1<<47) // never zero
}

// selector is one that a query has: its place among a value's texts, and its text.
type selector struct {
	field int
	s     string
}

// selectors are those of a query, the one that usually selects the fewest first.
func selectors(q *store.Query) (out []selector) {
	values := [...]string{q.Subject, q.Client, q.Grant, q.Token, q.Type}
	for _, f := range [...]int{3, 2, 0, 1, 4} {
		if values[f] != "" {
			out = append(out, selector{f, values[f]})
		}
	}
	return out
}
