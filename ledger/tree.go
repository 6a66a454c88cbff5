package ledger

import (
	"math/bits"

	"golang.org/x/mod/sumdb/tlog"
)

// frontier is the right edge of a tree: the roots of its complete subtrees, the largest first, one for each bit that is set
// in size. It is all that appending needs, and what an export without its beginning starts from.
type frontier struct {
	size   int64
	hashes []tlog.Hash
}

// frontierIndexes are the stored hashes that make the frontier of a tree of n records.
func frontierIndexes(n int64) []int64 {
	var out []int64
	at := int64(0)
	for level := 62; level >= 0; level-- {
		if n>>level&1 == 1 {
			out = append(out, tlog.StoredHashIndex(level, at>>level))
			at += 1 << level
		}
	}
	return out
}

func readFrontier(n int64, r tlog.HashReader) (frontier, error) {
	if n == 0 {
		return frontier{}, nil
	}
	hashes, err := r.ReadHashes(frontierIndexes(n))
	return frontier{n, hashes}, err
}

// push appends a record's hash and appends to stored what it completes, in the order of [tlog.StoredHashIndex].
func (f *frontier) push(h tlog.Hash, stored []tlog.Hash) []tlog.Hash {
	stored = append(stored, h)
	for range bits.TrailingZeros64(^uint64(f.size)) {
		last := len(f.hashes) - 1
		h = tlog.NodeHash(f.hashes[last], h)
		f.hashes = f.hashes[:last]
		stored = append(stored, h)
	}
	f.hashes = append(f.hashes, h)
	f.size++
	return stored
}

// add is push without keeping anything.
func (f *frontier) add(h tlog.Hash) {
	for range bits.TrailingZeros64(^uint64(f.size)) {
		last := len(f.hashes) - 1
		h = tlog.NodeHash(f.hashes[last], h)
		f.hashes = f.hashes[:last]
	}
	f.hashes = append(f.hashes, h)
	f.size++
}

// root is the tree's hash (RFC 6962 §2.1).
func (f *frontier) root() tlog.Hash {
	if f.size == 0 {
		h, _ := tlog.TreeHash(0, nil) // reads nothing for an empty tree
		return h
	}
	h := f.hashes[len(f.hashes)-1]
	for i := len(f.hashes) - 2; i >= 0; i-- {
		h = tlog.NodeHash(f.hashes[i], h)
	}
	return h
}

func (f *frontier) clone() frontier {
	return frontier{f.size, append([]tlog.Hash(nil), f.hashes...)}
}
