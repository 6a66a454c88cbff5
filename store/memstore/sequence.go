package memstore

import (
	"hash/maphash"
	"slices"
	"sort"
	"strings"
	"sync/atomic"

	"github.com/apitoken-go/apitoken/store"
)

// blockSize is how many entries a block of a sequence holds at most.
const blockSize = 512

// sequence is a sorted list of entries in blocks: an insertion moves half a block at most, and at the end nothing, which
// is where ids ordered by time go. Each block has an index of what its entries can be selected by, made when a second
// query passes by and the block has not changed since the first: writers pay nothing for it.
type sequence struct {
	byNumber bool // the order of events; otherwise by id
	blocks   []*block
}

type block struct {
	entries []*entry
	passed  atomic.Bool // a query went through the entries since they changed
	terms   atomic.Pointer[termIndex]
}

func (b *block) touch() {
	if b.passed.Load() {
		b.passed.Store(false)
		b.terms.Store(nil)
	}
}

func (q *sequence) less(a, b *entry) bool {
	if q.byNumber {
		return a.number < b.number
	}
	return a.id() < b.id()
}

func (q *sequence) insert(e *entry) {
	n := len(q.blocks)
	if n == 0 || q.less(q.blocks[n-1].last(), e) {
		if n == 0 || len(q.blocks[n-1].entries) == blockSize {
			q.blocks = append(q.blocks, &block{})
			n++
		}
		b := q.blocks[n-1]
		b.entries = append(b.entries, e)
		b.touch()
		return
	}
	i := q.blockOf(e)
	b := q.blocks[i]
	if len(b.entries) == blockSize {
		half := &block{entries: slices.Clone(b.entries[blockSize/2:])}
		clear(b.entries[blockSize/2:])
		b.entries = b.entries[:blockSize/2]
		b.touch()
		q.blocks = slices.Insert(q.blocks, i+1, half)
		if q.less(b.last(), e) {
			b = half
		}
	}
	at := sort.Search(len(b.entries), func(j int) bool { return !q.less(b.entries[j], e) })
	b.entries = slices.Insert(b.entries, at, e)
	b.touch()
}

func (b *block) last() *entry { return b.entries[len(b.entries)-1] }

// blockOf is the first block whose last entry is not before e; the number of blocks if there is none.
func (q *sequence) blockOf(e *entry) int {
	return sort.Search(len(q.blocks), func(i int) bool { return !q.less(q.blocks[i].last(), e) })
}

// remove takes e out, which must be there.
func (q *sequence) remove(e *entry) {
	i := q.blockOf(e)
	b := q.blocks[i]
	at := sort.Search(len(b.entries), func(j int) bool { return !q.less(b.entries[j], e) })
	b.entries = slices.Delete(b.entries, at, at+1)
	b.touch()
	switch {
	case len(b.entries) == 0:
		q.blocks = slices.Delete(q.blocks, i, i+1)
	case i+1 < len(q.blocks) && len(b.entries)+len(q.blocks[i+1].entries) <= blockSize/2:
		b.entries = append(b.entries, q.blocks[i+1].entries...)
		q.blocks = slices.Delete(q.blocks, i+1, i+2)
	}
}

// walk calls yield for the entries behind from (nil: all), or before it if backwards, that may match q, until yield
// answers false. skip tells which blocks cannot hold any.
func (q *sequence) walk(from *entry, query *store.Query, skip func(*block) bool, yield func(*entry) bool) {
	terms := termsOf(query)
	lo, hi := 0, len(q.blocks) // the blocks to go through
	if from != nil {
		at := q.blockOf(from)
		if query.Newest {
			hi = min(hi, at+1)
		} else {
			lo = at
		}
	}
	for n := range hi - lo {
		i := lo + n
		if query.Newest {
			i = hi - 1 - n
		}
		b := q.blocks[i]
		if skip(b) {
			continue
		}
		visit := func(e *entry) bool {
			if from != nil && (query.Newest && !q.less(e, from) || !query.Newest && !q.less(from, e)) {
				return true
			}
			return yield(e)
		}
		if len(terms) > 0 {
			if ix := b.index(); ix != nil {
				if !ix.each(b.entries, terms, query.Newest, visit) {
					return
				}
				continue
			}
		}
		for j := range b.entries {
			if query.Newest {
				j = len(b.entries) - 1 - j
			}
			if !visit(b.entries[j]) {
				return
			}
		}
	}
}

// index returns the block's index, nil for the first query since the block changed.
func (b *block) index() *termIndex {
	if ix := b.terms.Load(); ix != nil {
		return ix
	}
	if !b.passed.Swap(true) {
		return nil
	}
	ix := newTermIndex(b.entries)
	b.terms.Store(ix) // two readers at once make the same
	return ix
}

// termIndex lists, for a block, what its entries can be selected by: hashes, sorted, each with the entry's place in its
// lowest bits. A hash may be shared by chance, so whoever finds an entry here compares it.
//
// Most blocks have nothing of what a query selects. A Bloom filter shows that with one word of memory, where a search in the list reads
// eleven. Each term sets two bits of one word. With three terms an entry, about 3 of 100 terms that a block does not have find theirs set.
type termIndex struct {
	terms  []uint64
	filter [256]uint64
}

const placeBits = 9 // log2 of blockSize

// filtered is a term's word in the filter, and its bits there.
func filtered(term uint64) (word int, bits uint64) {
	return int(term >> 56), 1<<(term>>50&63) | 1<<(term>>44&63)
}

var termSeed = maphash.MakeSeed()

func newTermIndex(entries []*entry) *termIndex {
	x := &termIndex{terms: make([]uint64, 0, 3*len(entries))}
	for i, e := range entries {
		for field, s := range [...]string{e.subject(), e.client(), e.grant(), e.token(), e.typ()} {
			if s != "" {
				term := hashTerm(field, s)
				word, bits := filtered(term)
				x.filter[word] |= bits
				x.terms = append(x.terms, term|uint64(i))
			}
		}
	}
	slices.Sort(x.terms)
	x.terms = slices.Clip(x.terms)
	return x
}

// hashTerm leaves the lowest bits empty.
func hashTerm(field int, s string) uint64 {
	return (maphash.String(termSeed, s) + uint64(field)*0x9e3779b97f4a7c15) >> placeBits << placeBits
}

// each calls yield for the entries that have the term of which there are fewest, in their order or backwards; false when yield
// answered so. Where the block lacks one of terms it calls it for none.
func (x *termIndex) each(entries []*entry, terms []uint64, backwards bool, yield func(*entry) bool) bool {
	for _, t := range terms {
		if word, bits := filtered(t); x.filter[word]&bits != bits {
			return true
		}
	}
	few := x.terms
	for _, t := range terms {
		lo, _ := slices.BinarySearch(x.terms, t)
		n, last := slices.BinarySearch(x.terms[lo:], t|(blockSize-1))
		if last {
			n++
		}
		if n < len(few) {
			few = x.terms[lo : lo+n]
		}
	}
	for i := range few {
		if backwards {
			i = len(few) - 1 - i
		}
		if !yield(entries[few[i]&(blockSize-1)]) {
			return false
		}
	}
	return true
}

// termsOf are the terms of a query; none if it selects by none.
func termsOf(q *store.Query) (terms []uint64) {
	for field, s := range [...]string{q.Subject, q.Client, q.Grant, q.Token, q.Type} {
		if s != "" {
			terms = append(terms, hashTerm(field, s))
		}
	}
	return terms
}

// cursorEntry is a place in the sequence, for comparing only.
func cursorEntry(id string, number int64) *entry {
	return &entry{text: text{all: strings.Clone(id), ends: [6]int32{int32(len(id))}}, number: number}
}
