package boltstore

import (
	"slices"

	"go.etcd.io/bbolt"
)

// bbolt makes a file longer by truncating it: the new part is a hole, and each commit that writes into it for the first time
// makes the file system give out blocks and note that in its journal before the data counts as synced. So the file is made
// longer here, ahead of bbolt, with zeros that are written: a commit then only overwrites.
const (
	minRoom  = 256 << 10 // bytes ahead; a small file stays small
	maxRoom  = 4 << 20
	zeroSize = 256 << 10
)

var zeros [zeroSize]byte

// makeRoom is called before each commit. Behind the last page that a transaction has seen there is nothing that counts, and
// nobody else writes to the file. If it fails, bbolt asks for the room itself, and its error is the one that counts.
func (s *Store) makeRoom(tx *bbolt.Tx, group []*request) {
	// Where it is not enough, bbolt makes room for 16 MiB at a time, which would be most of a small file.
	ahead := min(max(tx.Size()/8, minRoom), maxRoom)
	s.db.AllocSize = int(ahead)
	if s.full {
		return
	}
	fi, err := s.file.Stat()
	if err != nil {
		return
	}
	end := fi.Size()
	if end < tx.Size() { // somebody has cut it: zeros would hide that
		return
	}
	if end >= tx.Size()+ahead/2 || end > tx.Size() && slices.ContainsFunc(group, func(r *request) bool { return r.urgent }) {
		return // there is enough, or a revocation does not wait for what others need
	}
	for n := int64(0); n < ahead; n += zeroSize {
		if _, err := s.file.WriteAt(zeros[:], end+n); err != nil {
			return
		}
	}
}
