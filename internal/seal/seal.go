// Package seal encrypts secrets at rest with AES-256-GCM: the cipher itself, which internal/keyring uses for signing keys, and the
// two sealers of root secrets that need no KMS, keys in memory and a key file. It promises that what was sealed under one context
// opens under no other, that a key file is made whole or not at all, and that an existing one is never replaced. File has one
// mutex, a leaf, held while the file is read. The root calls it through NewSealer and KeyFile.
package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
)

// New is AES-256-GCM under a key of 32 bytes.
func New(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// Bound joins fields for associated data and MACs: each with its length in front.
func Bound(fields ...[]byte) []byte {
	var out []byte
	for _, f := range fields {
		out = binary.BigEndian.AppendUint32(out, uint32(len(f)))
		out = append(out, f...)
	}
	return out
}
