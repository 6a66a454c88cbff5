// Package seal is the cipher under which secrets lie at rest.
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
