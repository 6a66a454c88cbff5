package boltstore

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"sort"

	"go.etcd.io/bbolt"

	"github.com/apitoken-go/apitoken/store"
)

// What List selects by. A selector of a record or event is a term, a hash with 4 bytes, so what it finds is compared in
// full. What has come last is read one by one: entries of the tail, which have their terms beside the id, and the events
// after the last group. As soon as there are 512 of them they become a segment of the index, see segment.go. The expiry
// index of new records waits for that in the same way.

// selector is a place among the five.
type selector int

const (
	bySubject selector = iota
	byClient
	byGrant
	byToken
	byType
)

// letters tell the selectors apart in hashes: "a" as a subject is not "a" as a client.
const letters = "scgty"

const sizeTerm = 4

func termHash(by selector, v []byte) uint32 {
	h := fnvBytes((fnvOffset^uint64(letters[by]))*fnvPrime, v)
	return uint32(h ^ h>>32)
}

// selectors are the five, in bbolt's memory.
type selectors [5][]byte

// selectorsOf reads them from the body of a record or event.
func selectorsOf(body []byte) (s selectors, ok bool) {
	for i := range s {
		if s[i], body, ok = cutString(body); !ok {
			return s, false
		}
	}
	return s, true
}

// selectorsOfEvent reads them from the value of an event, which the caller has checked.
func selectorsOfEvent(value []byte) (s selectors, ok bool) {
	_, body, ok := cutString(value[sizeEvent : len(value)-sizeCRC])
	if !ok {
		return s, false
	}
	return selectorsOf(body)
}

func cutString(b []byte) (s, rest []byte, ok bool) {
	n, w := binary.Uvarint(b)
	if w <= 0 || n > uint64(len(b)-w) {
		return nil, nil, false
	}
	return b[w : w+int(n)], b[w+int(n):], true
}

func (s *selectors) terms() []uint32 {
	terms := make([]uint32, 0, len(s))
	for i, v := range s {
		if len(v) > 0 {
			terms = append(terms, termHash(selector(i), v))
		}
	}
	return terms
}

// selection is the selectors of a query.
type selection struct {
	want  [5]string
	terms []uint32 // the one that is likely to leave the fewest first
}

func selectionOf(q *store.Query) (sel selection) {
	sel.want = [5]string{q.Subject, q.Client, q.Grant, q.Token, q.Type}
	for _, by := range []selector{byToken, byGrant, bySubject, byClient, byType} {
		if v := sel.want[by]; v != "" {
			sel.terms = append(sel.terms, termHash(by, []byte(v)))
		}
	}
	return sel
}

func (sel *selection) matches(s *selectors) bool {
	for i, want := range sel.want {
		if want != "" && want != string(s[i]) {
			return false
		}
	}
	return true
}

// tailEntry is what stands in the tail for a new record: id 0 term(4)... crc. Room for the checksum is left. Files of
// format 2 and older have the id alone.
func tailEntry(r *store.Record) []byte {
	b := make([]byte, 0, len(r.ID)+1+5*sizeTerm+sizeCRC)
	b = append(append(b, r.ID...), 0)
	for i, v := range [5]string{r.Subject, r.Client, r.Grant, r.Token, r.Type} {
		if v != "" {
			b = binary.BigEndian.AppendUint32(b, termHash(selector(i), []byte(v)))
		}
	}
	return b
}

// openTail reads an entry of the tail. Its record must be there.
func openTail(key, v []byte, records *bbolt.Bucket, kind store.Kind) (id, terms []byte, err error) {
	i := bytes.IndexByte(v, 0)
	if i < 0 {
		value := records.Get(v)
		if _, err := openRecord(value, kind, string(v)); err != nil {
			return nil, nil, err
		}
		s, ok := selectorsOf(value[sizeRecord:])
		if !ok {
			return nil, nil, errValue(fmt.Sprintf("record %s/%q does not decode", kind, v))
		}
		for _, t := range s.terms() {
			terms = binary.BigEndian.AppendUint32(terms, t)
		}
		return v, terms, nil
	}
	body, ok := openValue(v, key)
	if !ok || len(body) <= i || (len(body)-i-1)%sizeTerm != 0 {
		return nil, nil, errValue(fmt.Sprintf("entry %x of the tail fails its checksum", key))
	}
	return body[:i], body[i+1:], nil
}

// holdsAll reports whether wanted is a part of terms, as openTail returns them.
func holdsAll(terms []byte, wanted []uint32) bool {
next:
	for _, w := range wanted {
		for rest := terms; len(rest) > 0; rest = rest[sizeTerm:] {
			if binary.BigEndian.Uint32(rest) == w {
				continue next
			}
		}
		return false
	}
	return true
}

// earliest keeps the smaller of two expiries, 0 being never.
func earliest(a, b int64) int64 {
	if a == 0 || (b > 0 && b < a) {
		return max(b, 0)
	}
	return a
}

// buildBlocks writes what is due at the end of a group: a millisecond or two for each 512 events or creations.
func (st *spaceTxn) buildBlocks() error {
	for st.head.loose >= int64(groupMembers) {
		if err := st.buildGroup(); err != nil {
			return err
		}
	}
	for kind, n := range st.sp.tails {
		for ; n >= groupMembers; n = st.sp.tails[kind] {
			if err := st.buildRun(kind); err != nil {
				return err
			}
		}
	}
	return nil
}

// buildGroup makes a segment of the events after the last group, and notes when the first of them expires.
func (st *spaceTxn) buildGroup() error {
	events, err := st.sub(classEvents, "", true)
	if err != nil {
		return err
	}
	var g group
	var list postingList
	members := 0
	c := events.b.Cursor()
	for k, v := c.Seek(key64(st.head.blockEnd + 1)); k != nil && members < groupMembers; k, v = c.Next() {
		_, expires, err := openEvent(v, k)
		if err != nil {
			return err
		}
		s, ok := selectorsOfEvent(v)
		if !ok {
			return errValue(fmt.Sprintf("event %x does not decode", k))
		}
		for _, term := range s.terms() {
			list.add(key32(term), k)
		}
		if members == 0 {
			g.first = num64(k)
		}
		g.last = num64(k)
		g.minExpires = earliest(g.minExpires, expires)
		members++
	}
	if members == 0 { // the count said otherwise
		st.head.loose = 0
		return nil
	}
	st.head.loose -= int64(members)
	st.head.blockEnd = g.last
	if err := st.putGroup(&g); err != nil {
		return err
	}
	return st.addSegment("", &segment{last: g.last, first: g.first, size: members, live: members}, list)
}

// group is an entry for 512 events, or what is left of them, so that Purge finds those that have expired. It stands under
// the number of its last event: first(8) minExpires(8) crc.
type group struct{ first, last, minExpires int64 }

func (st *spaceTxn) putGroup(g *group) error {
	groups, err := st.sub(classGroups, "", true)
	if err != nil {
		return err
	}
	key := key64(g.last)
	return st.put(groups, key, sealValue(append(key64(g.first), key64(g.minExpires)...), key))
}

func openGroup(key, v []byte) (g group, err error) {
	b, ok := openValue(v, key)
	if !ok || len(b) != 16 {
		return g, errValue(fmt.Sprintf("group %x of events fails its checksum", key))
	}
	return group{first: num64(b), minExpires: num64(b[8:]), last: num64(key)}, nil
}

// countTail keeps the number of records since the last run in memory; it is counted anew after a failed transaction.
func (st *spaceTxn) countTail(kind store.Kind, tail *sub, n int) error {
	have, ok := st.sp.tails[kind]
	if ok {
		st.sp.tails[kind] = have + n
		return nil
	}
	c := tail.b.Cursor() // what was just written is among it
	for k, _ := c.First(); k != nil; k, _ = c.Next() {
		have++
	}
	st.sp.tails[kind] = have
	return nil
}

// buildRun makes a segment of the first 512 records of the tail, and moves their expiry into its index.
func (st *spaceTxn) buildRun(kind store.Kind) error {
	tail, err := st.sub(classTail, kind, true)
	if err != nil {
		return err
	}
	records, err := st.sub(classRecords, kind, true)
	if err != nil {
		return err
	}
	index, err := st.sub(classDue, kind, true)
	if err != nil {
		return err
	}
	var keys, dues [][]byte
	var list postingList
	c := tail.b.Cursor()
	for k, v := c.First(); k != nil && len(keys) < groupMembers; k, v = c.Next() {
		id, terms, err := openTail(k, v, records.b, kind)
		if err != nil {
			return err
		}
		value := records.b.Get(id)
		if len(value) < sizeRecord {
			return errValue(fmt.Sprintf("record %s/%q is gone and still in the tail", kind, id))
		}
		keys = append(keys, bytes.Clone(k))
		for ; len(terms) > 0; terms = terms[sizeTerm:] {
			list.add(terms[:sizeTerm], id)
		}
		if due := int64(binary.BigEndian.Uint64(value[offDue:])); due > 0 {
			dues = append(dues, dueKey(due, id))
		}
	}
	if len(keys) == 0 {
		st.sp.tails[kind] = 0
		return nil
	}
	slices.SortFunc(dues, bytes.Compare)
	for _, k := range dues {
		if err := st.put(index, k, nil); err != nil {
			return err
		}
	}
	for _, k := range keys {
		if err := st.del(tail, k); err != nil {
			return err
		}
	}
	st.sp.tails[kind] -= len(keys)
	n := len(keys)
	return st.addSegment(kind, &segment{last: num64(keys[n-1]), first: num64(keys[0]), size: n, live: n}, list)
}

// forget takes a purged record out of the tail, or counts it off its segment.
func (st *spaceTxn) forget(kind store.Kind, born int64) error {
	if born == 0 {
		return nil
	}
	tail, err := st.sub(classTail, kind, true)
	if err != nil {
		return err
	}
	key := key64(born)
	if tail.b.Get(key) == nil {
		return st.countOff(kind, born, 1)
	}
	if err := st.countTail(kind, tail, 0); err != nil {
		return err
	}
	st.sp.tails[kind]--
	return st.del(tail, key)
}

// readSub opens a bucket of a namespace for reading, nil if there is none.
func readSub(ns *bbolt.Bucket, c class, k store.Kind) *bbolt.Bucket {
	if ns == nil {
		return nil
	}
	return ns.Bucket(bucketName(c, k))
}

// Files of format 2 and older have blocks of the selectors of 2,048 events, and runs of those of 2,048 records, each one
// value. They are read as they are until they are made segments, see merge.go.
//
//	block or run: layout(1) minExpires(8) members(2) terms(4) | terms × (hash(4) member(2)), sorted | members | crc
//
// A member of a block is the number of an event, as the difference to the one before; a member of a run is an id, and
// a run's members are sorted by id.
const (
	layoutTerms  = 1
	sizeTermsHdr = 1 + 8 + 2 + 4
	sizeOldTerm  = 6
)

// oldBlock is a block or run.
type oldBlock struct {
	minExpires int64
	refs       [][]byte // of the members, rising
	terms      []byte
}

func openOldBlock(key, b []byte, run bool) (o oldBlock, err error) {
	b, ok := openValue(b, key)
	if !ok {
		return o, errValue(fmt.Sprintf("a block of selectors, %x, fails its checksum", key))
	}
	if len(b) < sizeTermsHdr || b[0] != layoutTerms {
		return o, errValue("a block of selectors has an unknown layout")
	}
	o.minExpires = num64(b[1:])
	n := uint64(binary.BigEndian.Uint32(b[11:])) * sizeOldTerm
	if n > uint64(len(b)-sizeTermsHdr) {
		return o, errValue("a block of selectors is cut short")
	}
	rest := b[sizeTermsHdr+int(n):]
	o.terms, o.refs = b[sizeTermsHdr:sizeTermsHdr+int(n)], make([][]byte, binary.BigEndian.Uint16(b[9:]))
	last := int64(0)
	for i := range o.refs {
		if run {
			if o.refs[i], rest, ok = cutString(rest); !ok {
				return o, errValue("a run of ids is cut short")
			}
			continue
		}
		d, w := binary.Uvarint(rest)
		if w <= 0 {
			return o, errValue("a block of events is cut short")
		}
		last, rest = last+int64(d), rest[w:]
		o.refs[i] = key64(last)
	}
	return o, nil
}

// each goes through the terms of all members.
func (o *oldBlock) each(f func(term uint32, ref []byte)) error {
	for t := o.terms; len(t) > 0; t = t[sizeOldTerm:] {
		m := int(binary.BigEndian.Uint16(t[4:]))
		if m >= len(o.refs) {
			return errValue("a block of selectors is cut short")
		}
		f(binary.BigEndian.Uint32(t), o.refs[m])
	}
	return nil
}

// find returns the members that have a term, rising.
func (o *oldBlock) find(term uint32) (refs [][]byte, err error) {
	n := len(o.terms) / sizeOldTerm
	at := func(i int) uint32 { return binary.BigEndian.Uint32(o.terms[i*sizeOldTerm:]) }
	from := sort.Search(n, func(i int) bool { return at(i) >= term })
	to := from
	for to < n && at(to) == term {
		to++
	}
	part := oldBlock{refs: o.refs, terms: o.terms[from*sizeOldTerm : to*sizeOldTerm]}
	err = part.each(func(_ uint32, ref []byte) { refs = append(refs, ref) })
	return refs, err
}
