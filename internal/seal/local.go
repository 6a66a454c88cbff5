// Sealing by keys in memory.

package seal

import (
	"bytes"
	"context"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/apitoken-go/apitoken/internal/fault"
)

const (
	version = 1
	keySize = 32
	idSize  = 4
)

// kek is a key-encryption key. Its ID goes with what it sealed, so that the error for a missing one can name it.
type kek struct {
	id   [idSize]byte
	aead cipher.AEAD
}

func newKEK(key []byte) (*kek, error) {
	if len(key) != keySize {
		return nil, fault.Fail(fault.InvalidRequest, "a key-encryption key has %d bytes, not %d", keySize, len(key))
	}
	if bytes.Count(key, key[:1]) == len(key) {
		return nil, fault.Fail(fault.InvalidRequest, "a key-encryption key of %d equal bytes is no secret", keySize)
	}
	aead, err := New(key)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(append([]byte("apitoken kek id\x00"), key...))
	return &kek{id: [idSize]byte(sum[:]), aead: aead}, nil
}

// Local seals with AES-256-GCM under keys in memory. What it seals is: the version, the ID of the key, the nonce, the ciphertext.
type Local []*kek

// NewLocal seals under the first key and opens under any. Errors are a *fault.Error: keys that are none.
func NewLocal(keys ...[]byte) (Local, error) {
	if len(keys) == 0 {
		return nil, fault.Fail(fault.InvalidRequest, "no key-encryption key")
	}
	var s Local
	for _, key := range keys {
		k, err := newKEK(key)
		if err != nil {
			return nil, err
		}
		for _, other := range s {
			if other.id == k.id {
				return nil, fault.Fail(fault.InvalidRequest, "a key-encryption key is given twice")
			}
		}
		s = append(s, k)
	}
	return s, nil
}

// Seal encrypts plain under the first key.
func (s Local) Seal(_ context.Context, plain, context []byte) ([]byte, error) {
	k := s[0]
	out := make([]byte, 0, 1+idSize+k.aead.NonceSize()+len(plain)+k.aead.Overhead())
	out = append(append(out, version), k.id[:]...)
	nonce := make([]byte, k.aead.NonceSize())
	rand.Read(nonce)
	return k.aead.Seal(append(out, nonce...), nonce, plain, context), nil
}

// Open decrypts what Seal made under any of the keys.
func (s Local) Open(_ context.Context, sealed, context []byte) ([]byte, error) {
	if len(sealed) < 1+idSize || sealed[0] != version {
		return nil, errors.New("not sealed by this module")
	}
	id := [idSize]byte(sealed[1:])
	for _, k := range s {
		body := sealed[1+idSize:]
		if k.id != id || len(body) < k.aead.NonceSize() {
			continue
		}
		n := k.aead.NonceSize()
		plain, err := k.aead.Open(nil, body[:n], body[n:], context)
		if err != nil {
			return nil, errors.New("what was sealed was altered, or belongs elsewhere")
		}
		return plain, nil
	}
	return nil, fmt.Errorf("sealed under key-encryption key %s, which was not given", hex.EncodeToString(id[:]))
}
