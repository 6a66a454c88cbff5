package boltstore

import (
	"encoding/hex"
	"os"
	"slices"
	"time"
)

// A backup of the whole directory holds the mark as well, and a file that is put back often gets the inode number that
// it had. So the mark also has the birth time of the database, and a nonce that changes while the store is in use. The
// nonce is in the name of an extended attribute of the database, its label: cp -a over the file adds the old label to
// the new one, and tar and rsync leave none, or the new one beside the old mark. Only a copy that replaces all
// attributes in place, or a snapshot of the file system, goes unnoticed; see anchor.go.
//
// The mark names the next label durably before the file gets it, and becomes definite when the file has it durably, so
// after a crash at any moment the file has labels that the mark names.
const (
	labelPrefix = "user.apitoken.nonce."
	relabel     = time.Minute // how long a label stays while the store writes
)

type nonce [8]byte

func (n nonce) label() string { return labelPrefix + hex.EncodeToString(n[:]) }

func newNonce() nonce {
	id := randomID()
	return nonce(id[:8])
}

// labelled reports whether the file has the labels that its mark names. A mark without one says nothing.
func (s *Store) labelled(m *markContent) (bool, error) {
	if m.nonce == (nonce{}) {
		return true, nil
	}
	have, err := labels(s.path)
	if err != nil {
		return false, err
	}
	known := 0
	for _, l := range have {
		if l == m.nonce.label() || m.next != (nonce{}) && l == m.next.label() {
			known++
		}
	}
	return known > 0 && known == len(have), nil
}

// relabelAnew gives a file that is new here a label of its own and no other, before its mark is written. The label is
// zero where the file system takes none.
func relabelAnew(path string) nonce {
	have, err := labels(path)
	if err != nil {
		return nonce{}
	}
	n := newNonce()
	if setLabel(path, n.label()) != nil {
		return nonce{}
	}
	for _, l := range have {
		if removeLabel(path, l) != nil {
			return nonce{}
		}
	}
	if syncFile(path) != nil {
		return nonce{}
	}
	return n
}

// relabel changes the label. An error leaves a state that the mark describes, and the next call continues from it.
func (s *Store) relabel() error {
	m := s.mark
	s.relabelled = s.clock.mono()
	if m.f == nil || m.nonce == (nonce{}) {
		return nil
	}
	if m.next == (nonce{}) {
		m.next = newNonce()
	}
	if err := m.saveDurably(); err != nil {
		return err
	}
	if err := setLabel(s.path, m.next.label()); err != nil {
		return err
	}
	have, err := labels(s.path)
	if err != nil {
		return err
	}
	if slices.Contains(have, m.nonce.label()) {
		if err := removeLabel(s.path, m.nonce.label()); err != nil {
			return err
		}
	}
	if err := syncFile(s.path); err != nil {
		return err
	}
	m.nonce, m.next = m.next, nonce{}
	return m.saveDurably()
}

// syncFile makes a change of a file's attributes durable.
func syncFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
