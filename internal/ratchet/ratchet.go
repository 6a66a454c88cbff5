// Package ratchet makes and reads refresh tokens. It owns their text and the part of a session's record that tells one token from the
// next (State), and keeps no memory of its own.
//
// Each token holds a secret that is made from its predecessor's under a key. So whoever repeats a request whose answer was lost gets
// the same successor, while nobody who reads the store can make one. A token older than the predecessor proves that somebody has a
// copy: what follows from that, its caller decides.
//
// It holds no lock, and reads the store only where Keys.Presented does, for a key that this process may not have heard of. Errors are
// a *fault.Error. The root calls it for sessions.
package ratchet

import (
	"context"
	"crypto/rand"
	"crypto/subtle"

	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/keyring"
	"github.com/apitoken-go/apitoken/internal/opaque"
)

const (
	labelTag   = "rt1"
	labelHash  = "rt1h"
	labelNext  = "rt1n"
	labelFirst = "rt1c"
)

// Keys are the service's root secrets, see keyring.Ring.
type Keys interface {
	MAC(purpose string) (kid [4]byte, key []byte)
	MACFor(kid [4]byte, purpose string) ([]byte, bool)
	Presented(ctx context.Context, kid [4]byte, purpose string) ([]byte, error)
}

// Ratchet makes the refresh tokens of one service.
type Ratchet struct {
	Keys      Keys
	Namespace func() string // part of every MAC and hash
	Prefix    string        // of the tokens' text
}

// Token is a refresh token whose tag has been verified.
type Token = opaque.RefreshToken

// State is what a session's record holds of its refresh token. Whoever reads it cannot make the token.
type State struct {
	Seq     uint32   `json:"seq"`
	Hash    [32]byte `json:"h"`     // of the refresh token with Seq
	Nonce   [16]byte `json:"nonce"` // with which Seq was made from its predecessor
	NextKID [4]byte  `json:"next"`  // the key with which it was
	TagKID  [4]byte  `json:"tag"`   // the key of its tag
}

// Place says where a token stands against a State.
type Place int

const (
	Current  Place = iota // it is the record's own
	Previous              // the record's own was made from it
	Older                 // somebody has a copy
	Ahead                 // the store has lost writes
	Forged                // tagged by our key, and not the record's: a key has leaked or the record was edited
)

// First makes the first refresh token of a session, and its state. With a code it can be made again, see FirstAgain.
func (r *Ratchet) First(grant, code string) (s State, text string, err error) {
	id, err := parse(grant)
	if err != nil {
		return s, "", err
	}
	t := &Token{Grant: id}
	if code == "" {
		rand.Read(t.S[:])
	} else {
		rand.Read(s.Nonce[:])
		s.NextKID, _ = r.Keys.MAC(keyring.RefreshNext)
		if err := r.firstOf(t, &s, code); err != nil {
			return s, "", err
		}
	}
	s.TagKID, _ = r.Keys.MAC(keyring.RefreshTag)
	s.Hash = r.hash(t)
	text, err = r.text(t, s.TagKID)
	return s, text, err
}

// FirstAgain is the first refresh token that code got.
func (r *Ratchet) FirstAgain(s *State, grant, code string) (text string, err error) {
	id, err := parse(grant)
	if err != nil {
		return "", err
	}
	t := &Token{Grant: id}
	if err := r.firstOf(t, s, code); err != nil {
		return "", err
	}
	if !r.is(t, s) {
		return "", fault.Fail(fault.InvalidGrant, "its refresh token is not the record's")
	}
	return r.text(t, s.TagKID)
}

// Next makes the refresh token that follows t, and its state.
func (r *Ratchet) Next(t *Token) (s State, text string, err error) {
	rand.Read(s.Nonce[:])
	s.NextKID, _ = r.Keys.MAC(keyring.RefreshNext)
	s.TagKID, _ = r.Keys.MAC(keyring.RefreshTag)
	n, err := r.successor(t, &s)
	if err != nil {
		return s, "", err
	}
	s.Seq, s.Hash = n.Seq, r.hash(n)
	text, err = r.text(n, s.TagKID)
	return s, text, err
}

// Place compares t with the state of its session. next is the record's own token where t is the Previous one.
func (r *Ratchet) Place(t *Token, s *State) (p Place, next string, err error) {
	switch {
	case t.Seq > s.Seq:
		return Ahead, "", nil
	case t.Seq == s.Seq:
		if !r.is(t, s) {
			return Forged, "", nil
		}
		return Current, "", nil
	case t.Seq+1 < s.Seq:
		return Older, "", nil
	}
	n, err := r.successor(t, s)
	if err != nil {
		return Previous, "", err
	}
	if !r.is(n, s) {
		return Forged, "", nil
	}
	next, err = r.text(n, s.TagKID)
	return Previous, next, err
}

// Read decodes a refresh token and checks its tag: junk ends here, without a read of the store. InvalidGrant: it is none of ours.
func (r *Ratchet) Read(ctx context.Context, text string) (*Token, error) {
	t, err := opaque.DecodeRefresh(text, r.Prefix)
	if err != nil {
		return nil, &fault.Error{Code: fault.InvalidGrant, Detail: "not a refresh token", Cause: err}
	}
	key, err := r.Keys.Presented(ctx, t.KID, keyring.RefreshTag)
	if err != nil {
		return nil, err
	}
	if key == nil {
		return nil, fault.Fail(fault.InvalidGrant, "a refresh token under an unknown key")
	}
	if want := r.tag(key, t); subtle.ConstantTimeCompare(want[:], t.Tag[:]) != 1 {
		return nil, fault.Fail(fault.InvalidGrant, "a refresh token that this service did not make")
	}
	return t, nil
}

// firstOf makes the secret of a first token from the code that got it, under the key that makes successors: whoever has only the
// store, or only the code, cannot make it.
func (r *Ratchet) firstOf(t *Token, s *State, code string) error {
	key, ok := r.Keys.MACFor(s.NextKID, keyring.RefreshNext)
	if !ok {
		return noKey()
	}
	t.S = opaque.MAC(key, labelFirst, []byte(r.Namespace()), t.Grant[:], s.Nonce[:], []byte(code))
	return nil
}

// successor is the token after t, as s's nonce and keys make it.
func (r *Ratchet) successor(t *Token, s *State) (*Token, error) {
	key, ok := r.Keys.MACFor(s.NextKID, keyring.RefreshNext)
	if !ok {
		return nil, noKey()
	}
	n := &Token{Grant: t.Grant, Seq: t.Seq + 1}
	n.S = opaque.MAC(key, labelNext, []byte(r.Namespace()), t.Grant[:], opaque.Uint32(n.Seq), s.Nonce[:], t.S[:])
	return n, nil
}

// text tags t under the key kid and writes it.
func (r *Ratchet) text(t *Token, kid [4]byte) (string, error) {
	key, ok := r.Keys.MACFor(kid, keyring.RefreshTag)
	if !ok {
		return "", noKey()
	}
	t.KID, t.Tag = kid, r.tag(key, t)
	return opaque.EncodeRefresh(r.Prefix, t), nil
}

func (r *Ratchet) tag(key []byte, t *Token) [16]byte {
	return opaque.Tag(key, labelTag, []byte(r.Namespace()), t.Grant[:], opaque.Uint32(t.Seq), t.S[:])
}

func (r *Ratchet) hash(t *Token) [32]byte {
	return opaque.Hash(labelHash, []byte(r.Namespace()), t.Grant[:], opaque.Uint32(t.Seq), t.S[:])
}

func (r *Ratchet) is(t *Token, s *State) bool {
	h := r.hash(t)
	return subtle.ConstantTimeCompare(h[:], s.Hash[:]) == 1
}

func parse(grant string) (opaque.ID, error) {
	id, err := opaque.ParseID(grant)
	if err != nil {
		return id, &fault.Error{Code: fault.InvalidRequest, Detail: "grant ID", Cause: err}
	}
	return id, nil
}

func noKey() error { return fault.Retry("the key of refresh tokens is not here") }
