package ledger

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"

	"golang.org/x/mod/sumdb/note"
)

// Keys of C2SP tlog-cosignature: Ed25519 with the time of signing under the signature, so that a witness also says when.

const (
	algEd25519     = 1
	algCosignature = 4
)

// NewCosigner is a witness's key: its signatures carry the time. now is nil for time.Now. The name must have no space and no plus.
func NewCosigner(name string, key ed25519.PrivateKey, now func() time.Time) (note.Signer, error) {
	if !keyName(name) || len(key) != ed25519.PrivateKeySize {
		return nil, errors.New("ledger: a co-signer needs a name without space and plus, and an Ed25519 key")
	}
	if now == nil {
		now = time.Now
	}
	pub := key.Public().(ed25519.PublicKey)
	return &cosigner{name: name, hash: cosignerHash(name, pub), key: key, now: now}, nil
}

// CosignerKey is the text of a witness's public key, which [ParseKey] reads.
func CosignerKey(name string, key ed25519.PublicKey) string {
	return fmt.Sprintf("%s+%08x+%s", name, cosignerHash(name, key), base64.StdEncoding.EncodeToString(append([]byte{algCosignature}, key...)))
}

func keyName(name string) bool {
	return name != "" && !strings.ContainsFunc(name, func(r rune) bool { return r == '+' || unicode.IsSpace(r) || r < 0x20 })
}

func cosignerHash(name string, key ed25519.PublicKey) uint32 {
	h := sha256.New()
	h.Write([]byte(name + "\n"))
	h.Write(append([]byte{algCosignature}, key...))
	return binary.BigEndian.Uint32(h.Sum(nil))
}

type cosigner struct {
	name string
	hash uint32
	key  ed25519.PrivateKey
	now  func() time.Time
}

func (c *cosigner) Name() string    { return c.name }
func (c *cosigner) KeyHash() uint32 { return c.hash }

func (c *cosigner) Sign(msg []byte) ([]byte, error) {
	at := c.now().Unix()
	if at < 0 {
		return nil, errors.New("ledger: a co-signer's clock is before 1970")
	}
	return append(binary.BigEndian.AppendUint64(nil, uint64(at)), ed25519.Sign(c.key, cosignedText(uint64(at), msg))...), nil
}

func cosignedText(at uint64, msg []byte) []byte {
	return append([]byte("cosignature/v1\ntime "+strconv.FormatUint(at, 10)+"\n"), msg...)
}

type cosignerKey struct {
	name string
	hash uint32
	key  ed25519.PublicKey
}

func (c *cosignerKey) Name() string    { return c.name }
func (c *cosignerKey) KeyHash() uint32 { return c.hash }

func (c *cosignerKey) Verify(msg, sig []byte) bool {
	if len(sig) != 8+ed25519.SignatureSize {
		return false
	}
	return ed25519.Verify(c.key, cosignedText(binary.BigEndian.Uint64(sig), msg), sig[8:])
}

// ParseKey reads a public key, of a log or of a witness: name+hash+base64, as the note package and [CosignerKey] write them.
func ParseKey(text string) (note.Verifier, error) {
	text = strings.TrimSpace(text)
	parts := strings.SplitN(text, "+", 3)
	if len(parts) == 3 {
		raw, err := base64.StdEncoding.DecodeString(parts[2])
		if err == nil && len(raw) == 1+ed25519.PublicKeySize && raw[0] == algCosignature {
			k := &cosignerKey{name: parts[0], key: raw[1:]}
			k.hash = cosignerHash(k.name, k.key)
			if hash, err := hex.DecodeString(parts[1]); !keyName(k.name) || err != nil || len(hash) != 4 || binary.BigEndian.Uint32(hash) != k.hash {
				return nil, errors.New("ledger: a co-signer's key whose parts do not go together")
			}
			return k, nil
		}
		if err == nil && len(raw) > 0 && raw[0] != algEd25519 {
			return nil, fmt.Errorf("ledger: a key of the unknown kind %d", raw[0])
		}
	}
	v, err := note.NewVerifier(text)
	if err != nil {
		return nil, fmt.Errorf("ledger: %w", err)
	}
	return v, nil
}
