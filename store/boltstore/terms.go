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

// What List selects by. An index entry per selector and record would have random keys and cost half the throughput;
// instead the selectors of 2,048 events, or of 2,048 newly created records, are written together as one sorted block
// when so many have come, and what has come since the last block is read one by one. A query searches each block for
// its term: 10 million records are 5,000 blocks. A term is a hash, so what it finds is compared in full. The expiry index
// of new records waits for the run in the same way.
//
//	block or run: layout(1) minExpires(8) members(2) terms(4) | terms × (hash(4) member(2)), sorted | members | crc
//
// A member of a block is the number of an event, as the difference to the one before; a member of a run is an id, and
// a run's members are sorted by id. What was purged stays in the block until all of it is gone.
const (
	blockMembers = 2048
	layoutTerms  = 1
	sizeTermsHdr = 1 + 8 + 2 + 4
	sizeTerm     = 6
)

// selector names one of the five, for hashing: "a" as a subject is not "a" as a client.
type selector byte

const (
	bySubject selector = 's'
	byClient  selector = 'c'
	byGrant   selector = 'g'
	byToken   selector = 't'
	byType    selector = 'y'
)

func termHash(by selector, v string) uint32 {
	const prime = 1099511628211 // FNV-1a, 64 bits, folded
	h := uint64(14695981039346656037)
	h = (h ^ uint64(by)) * prime
	for i := range len(v) {
		h = (h ^ uint64(v[i])) * prime
	}
	return uint32(h ^ h>>32)
}

// rarest picks the selector of a query that is likely to leave the fewest records.
func rarest(q *store.Query) (term uint32, ok bool) {
	for _, s := range []struct {
		by selector
		v  string
	}{{byToken, q.Token}, {byGrant, q.Grant}, {bySubject, q.Subject}, {byClient, q.Client}, {byType, q.Type}} {
		if s.v != "" {
			return termHash(s.by, s.v), true
		}
	}
	return 0, false
}

func appendTerms(terms []uint64, r *store.Record, member int) []uint64 {
	for _, s := range [...]struct {
		by selector
		v  string
	}{{bySubject, r.Subject}, {byClient, r.Client}, {byGrant, r.Grant}, {byToken, r.Token}, {byType, r.Type}} {
		if s.v != "" {
			terms = append(terms, uint64(termHash(s.by, s.v))<<16|uint64(member))
		}
	}
	return terms
}

// encodeTerms makes a block that stands under key.
func encodeTerms(key []byte, minExpires int64, members int, terms []uint64, list []byte) []byte {
	slices.Sort(terms)
	b := make([]byte, 0, sizeTermsHdr+sizeTerm*len(terms)+len(list)+sizeCRC)
	b = append(b, layoutTerms)
	b = binary.BigEndian.AppendUint64(b, uint64(minExpires))
	b = binary.BigEndian.AppendUint16(b, uint16(members))
	b = binary.BigEndian.AppendUint32(b, uint32(len(terms)))
	for _, t := range terms {
		b = append(b, byte(t>>40), byte(t>>32), byte(t>>24), byte(t>>16), byte(t>>8), byte(t))
	}
	return sealValue(append(b, list...), key)
}

// termBlock is a block in bbolt's memory.
type termBlock struct {
	minExpires int64
	members    int
	terms      []byte
	list       []byte
}

func openTerms(key, b []byte) (tb termBlock, err error) {
	b, ok := openValue(b, key)
	if !ok {
		return tb, errValue(fmt.Sprintf("a block of selectors, %x, fails its checksum", key))
	}
	if len(b) < sizeTermsHdr || b[0] != layoutTerms {
		return tb, errValue("a block of selectors has an unknown layout")
	}
	tb.minExpires = blockExpires(b)
	tb.members = int(binary.BigEndian.Uint16(b[9:]))
	n := uint64(binary.BigEndian.Uint32(b[11:])) * sizeTerm
	if n > uint64(len(b)-sizeTermsHdr) {
		return tb, errValue("a block of selectors is cut short")
	}
	tb.terms, tb.list = b[sizeTermsHdr:sizeTermsHdr+int(n)], b[sizeTermsHdr+int(n):]
	return tb, nil
}

// blockExpires is when the first member of a block expires, 0 for never, as the block says.
func blockExpires(b []byte) int64 {
	if len(b) < sizeTermsHdr {
		return 0
	}
	return int64(binary.BigEndian.Uint64(b[1:]))
}

// find returns the members that have a term, rising.
func (tb *termBlock) find(hash uint32) []int {
	n := len(tb.terms) / sizeTerm
	i := sort.Search(n, func(i int) bool { return binary.BigEndian.Uint32(tb.terms[i*sizeTerm:]) >= hash })
	var found []int
	for ; i < n && binary.BigEndian.Uint32(tb.terms[i*sizeTerm:]) == hash; i++ {
		found = append(found, int(binary.BigEndian.Uint16(tb.terms[i*sizeTerm+4:])))
	}
	return found
}

// numbers decodes the members of a block of events.
func (tb *termBlock) numbers() ([]int64, error) {
	out := make([]int64, 0, tb.members)
	last, rest := int64(0), tb.list
	for range tb.members {
		d, w := binary.Uvarint(rest)
		if w <= 0 {
			return nil, errValue("a block of events is cut short")
		}
		last, rest = last+int64(d), rest[w:]
		out = append(out, last)
	}
	return out, nil
}

// ids decodes the members of a run; they lie in bbolt's memory.
func (tb *termBlock) ids() ([][]byte, error) {
	out := make([][]byte, 0, tb.members)
	rest := tb.list
	for range tb.members {
		n, w := binary.Uvarint(rest)
		if w <= 0 || n > uint64(len(rest)-w) {
			return nil, errValue("a run of ids is cut short")
		}
		out = append(out, rest[w:w+int(n)])
		rest = rest[w+int(n):]
	}
	return out, nil
}

// earliest keeps the smaller of two expiries, 0 being never.
func earliest(a, b int64) int64 {
	if a == 0 || (b > 0 && b < a) {
		return max(b, 0)
	}
	return a
}

// buildBlocks writes what is due at the end of a group: at most a few milliseconds for each 2,048 events or creations.
func (st *spaceTxn) buildBlocks() error {
	for st.head.loose >= blockMembers {
		if err := st.buildEventBlock(); err != nil {
			return err
		}
	}
	for kind, n := range st.sp.tails {
		for ; n >= blockMembers; n = st.sp.tails[kind] {
			if err := st.buildRun(kind); err != nil {
				return err
			}
		}
	}
	return nil
}

func (st *spaceTxn) buildEventBlock() error {
	events, err := st.sub(classEvents, "", true)
	if err != nil {
		return err
	}
	blocks, err := st.sub(classBlocks, "", true)
	if err != nil {
		return err
	}
	terms := make([]uint64, 0, 5*blockMembers)
	list := make([]byte, 0, 4*blockMembers)
	var minExpires, last int64
	members := 0
	c := events.b.Cursor()
	for k, v := c.Seek(key64(st.head.blockEnd + 1)); k != nil && members < blockMembers; k, v = c.Next() {
		r, err := decodeEvent(v, k)
		if err != nil {
			return err
		}
		n := num64(k)
		terms = appendTerms(terms, &r, members)
		list = binary.AppendUvarint(list, uint64(n-last))
		last = n
		minExpires = earliest(minExpires, r.Expires)
		members++
	}
	if members == 0 { // the count said otherwise
		st.head.loose = 0
		return nil
	}
	st.head.loose -= int64(members)
	st.head.blockEnd = last
	key := key64(last)
	return st.put(blocks, key, encodeTerms(key, minExpires, members, terms, list))
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

// buildRun moves the first 2,048 records of the tail into a run, and their expiry into its index.
func (st *spaceTxn) buildRun(kind store.Kind) error {
	tail, err := st.sub(classTail, kind, true)
	if err != nil {
		return err
	}
	records, err := st.sub(classRecords, kind, true)
	if err != nil {
		return err
	}
	runs, err := st.sub(classRuns, kind, true)
	if err != nil {
		return err
	}
	dir, err := st.sub(classRunDir, kind, true)
	if err != nil {
		return err
	}
	index, err := st.sub(classDue, kind, true)
	if err != nil {
		return err
	}
	var keys, dues [][]byte
	var ids []string
	c := tail.b.Cursor()
	for k, v := c.First(); k != nil && len(keys) < blockMembers; k, v = c.Next() {
		keys, ids = append(keys, bytes.Clone(k)), append(ids, string(v))
	}
	if len(keys) == 0 {
		st.sp.tails[kind] = 0
		return nil
	}
	slices.Sort(ids)
	terms := make([]uint64, 0, 4*len(ids))
	var list []byte
	for i, id := range ids {
		v := records.b.Get([]byte(id))
		if v == nil {
			return errValue(fmt.Sprintf("record %s/%q is gone and still in the tail", kind, id))
		}
		r, err := decodeRecord(v, kind, id, 0)
		if err != nil {
			return err
		}
		terms = appendTerms(terms, &r, i)
		list = appendString(list, id)
		if due := int64(binary.BigEndian.Uint64(v[offDue:])); due > 0 {
			dues = append(dues, dueKey(due, []byte(id)))
		}
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
	last := keys[len(keys)-1]
	if err := st.put(runs, last, encodeTerms(last, 0, len(ids), terms, list)); err != nil {
		return err
	}
	return st.put(dir, last, encodeRunDir(last, len(ids), ids[0], ids[len(ids)-1]))
}

func encodeRunDir(key []byte, live int, first, last string) []byte {
	b := binary.AppendUvarint(nil, uint64(live))
	b = appendString(b, first)
	return sealValue(appendString(b, last), key)
}

type runDir struct {
	key         []byte
	live        int
	first, last string
}

func decodeRunDir(key, b []byte) (d runDir, err error) {
	bad := errValue("the directory of runs does not read")
	b, ok := openValue(b, key)
	live, w := binary.Uvarint(b)
	if !ok || w <= 0 || live > blockMembers {
		return d, bad
	}
	d.key, d.live = bytes.Clone(key), int(live)
	b = b[w:]
	for _, s := range []*string{&d.first, &d.last} {
		n, w := binary.Uvarint(b)
		if w <= 0 || n > uint64(len(b)-w) {
			return d, bad
		}
		*s, b = string(b[w:w+int(n)]), b[w+int(n):]
	}
	return d, nil
}

// forget takes a purged record out of the tail, or counts it off its run; a run that is used up goes as a whole.
func (st *spaceTxn) forget(kind store.Kind, born int64) error {
	if born == 0 {
		return nil
	}
	tail, err := st.sub(classTail, kind, true)
	if err != nil {
		return err
	}
	key := key64(born)
	if tail.b.Get(key) != nil {
		if err := st.countTail(kind, tail, 0); err != nil {
			return err
		}
		st.sp.tails[kind]--
		return st.del(tail, key)
	}
	dir, err := st.sub(classRunDir, kind, true)
	if err != nil {
		return err
	}
	k, v := dir.b.Cursor().Seek(key)
	if k == nil {
		return nil
	}
	d, err := decodeRunDir(k, v)
	if err != nil {
		return err
	}
	if d.live > 1 {
		return st.put(dir, d.key, encodeRunDir(d.key, d.live-1, d.first, d.last))
	}
	runs, err := st.sub(classRuns, kind, true)
	if err != nil {
		return err
	}
	if err := st.del(runs, d.key); err != nil {
		return err
	}
	return st.del(dir, d.key)
}

// readSub opens a bucket of a namespace for reading, nil if there is none.
func readSub(ns *bbolt.Bucket, c class, k store.Kind) *bbolt.Bucket {
	if ns == nil {
		return nil
	}
	return ns.Bucket(bucketName(c, k))
}
