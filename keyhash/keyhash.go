// Package keyhash says how another program kept its API keys, so that apitoken.APIKeys.Import can take them over: the callers go on
// with the keys that they have. A Form goes into apitoken.Config.KeyHashes under a name, which the imported keys bear.
//
// The package is a leaf, which apitoken imports. Hashes that need more than the standard library, such as bcrypt and argon2id, are
// checked by a function of the host's: see [ByStart].
package keyhash

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"strings"
)

// Form is one way to keep API keys.
type Form struct {
	// Prefix is how the keys begin, such as "sk_live_"; empty: however they do. With one, a key that leaks is found by
	// Service.RevokeLeaked, and others' junk ends without a look at the store.
	Prefix string
	// Lookup returns what a key is found by. Empty: it is no key of this form. It is called with whatever callers present.
	Lookup func(key string) string
	// Read reads the host's hash when it is imported: as it is kept until the key's first use, and what the key is found by, empty
	// where the host says that. nil: as it is.
	Read func(hash string) (kept, lookup string, err error)
	// Verify reports whether hash, as Read kept it, is of key.
	Verify func(key, hash string) bool
	// Slow says that Verify takes milliseconds on purpose: a few run at a time.
	Slow bool
}

// SHA256 is the form of keys of which SHA-256 hashes are kept, in hexadecimal or base64.
func SHA256(prefix string) Form {
	return digest(prefix, func(key string) []byte { sum := sha256.Sum256([]byte(key)); return sum[:] })
}

// HMACSHA256 is the form of keys of which HMACs under secret are kept, in hexadecimal or base64.
func HMACSHA256(prefix string, secret []byte) Form {
	secret = append([]byte(nil), secret...)
	return digest(prefix, func(key string) []byte {
		m := hmac.New(sha256.New, secret)
		m.Write([]byte(key))
		return m.Sum(nil)
	})
}

func digest(prefix string, of func(key string) []byte) Form {
	text := func(key string) string { return hex.EncodeToString(of(key)) }
	return Form{
		Prefix: prefix, Lookup: text,
		Read: func(hash string) (kept, lookup string, err error) {
			b, err := hex.DecodeString(hash)
			if err != nil {
				s := strings.NewReplacer("-", "+", "_", "/").Replace(strings.TrimRight(hash, "="))
				b, err = base64.RawStdEncoding.DecodeString(s)
			}
			if err != nil || len(b) != sha256.Size {
				return "", "", errors.New("the hash is not 32 bytes in hexadecimal or base64")
			}
			kept = hex.EncodeToString(b)
			return kept, kept, nil
		},
		Verify: func(key, hash string) bool { return subtle.ConstantTimeCompare([]byte(text(key)), []byte(hash)) == 1 },
	}
}

// ByStart is the form of keys that are found by their first n bytes, prefix included, and whose hashes verify checks: bcrypt,
// argon2id, a salted digest. The start must hold enough that is random, beside the prefix, that few keys have the same; eight of
// them may. For bcrypt, which refuses keys of over 72 bytes, it is
//
//	func(key, hash string) bool { return bcrypt.CompareHashAndPassword([]byte(hash), []byte(key)) == nil }
//
// Set Slow to false for a verify that is quick.
func ByStart(prefix string, n int, verify func(key, hash string) bool) Form {
	return Form{
		Prefix: prefix, Verify: verify, Slow: true,
		Lookup: func(key string) string {
			if len(key) <= n { // nothing would be left that is secret
				return ""
			}
			return key[:n]
		},
	}
}
