package apitoken

import (
	"bytes"
	"context"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"github.com/apitoken-go/apitoken/internal/seal"
)

// Sealer encrypts what must not lie in the store in clear: the root secret, under which the service seals its signing
// keys. A KMS implements it; NewSealer and KeyFile are local. It is asked at start and when secrets rotate, never for a token.
type Sealer interface {
	// Seal encrypts plain. What it returns opens only with an equal context, which is not secret.
	Seal(ctx context.Context, plain, context []byte) (sealed []byte, err error)
	Open(ctx context.Context, sealed, context []byte) (plain []byte, err error)
}

const (
	sealVersion = 1
	kekSize     = 32
	kekIDSize   = 4
	keyFileHead = "apitoken-key-v1 "
)

// kek is a key-encryption key. Its ID goes with what it sealed, so that the error for a missing one can name it.
type kek struct {
	id   [kekIDSize]byte
	aead cipher.AEAD
}

func newKEK(key []byte) (*kek, error) {
	if len(key) != kekSize {
		return nil, fail(ErrInvalidRequest, "a key-encryption key has %d bytes, not %d", kekSize, len(key))
	}
	if bytes.Count(key, key[:1]) == len(key) {
		return nil, fail(ErrInvalidRequest, "a key-encryption key of %d equal bytes is no secret", kekSize)
	}
	aead, err := seal.New(key)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(append([]byte("apitoken kek id\x00"), key...))
	return &kek{id: [kekIDSize]byte(sum[:]), aead: aead}, nil
}

type localSealer []*kek

// NewSealer seals by AES-256-GCM under the first key and opens under any: put a new one in front to rotate, run
// [SigningKeys.Rewrap], then drop the old one. Each is 32 random bytes.
func NewSealer(keys ...[]byte) (Sealer, error) {
	s, err := newSealer(keys)
	if err != nil {
		return nil, sealError(err)
	}
	return s, nil
}

// sealError says to whoever starts the program what an *Error keeps from clients.
func sealError(err error) error {
	if e := (*Error)(nil); errors.As(err, &e) {
		return &ConfigError{Field: "Seal", Err: e}
	}
	return err
}

func newSealer(keys [][]byte) (localSealer, error) {
	if len(keys) == 0 {
		return nil, fail(ErrInvalidRequest, "no key-encryption key")
	}
	var s localSealer
	for _, key := range keys {
		k, err := newKEK(key)
		if err != nil {
			return nil, err
		}
		for _, other := range s {
			if other.id == k.id {
				return nil, fail(ErrInvalidRequest, "a key-encryption key is given twice")
			}
		}
		s = append(s, k)
	}
	return s, nil
}

func (s localSealer) Seal(_ context.Context, plain, context []byte) ([]byte, error) {
	k := s[0]
	out := make([]byte, 0, 1+kekIDSize+k.aead.NonceSize()+len(plain)+k.aead.Overhead())
	out = append(append(out, sealVersion), k.id[:]...)
	nonce := make([]byte, k.aead.NonceSize())
	rand.Read(nonce)
	return k.aead.Seal(append(out, nonce...), nonce, plain, context), nil
}

func (s localSealer) Open(_ context.Context, sealed, context []byte) ([]byte, error) {
	if len(sealed) < 1+kekIDSize || sealed[0] != sealVersion {
		return nil, errors.New("not sealed by this module")
	}
	id := [kekIDSize]byte(sealed[1:])
	for _, k := range s {
		body := sealed[1+kekIDSize:]
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

// KeyFile is a Sealer whose key lies in a file. Beside the database it keeps the keys out of backups and copies of that file;
// on another disk it also keeps them from whoever takes the database's. The file is made with mode 0600
// when something is sealed for the first time. It refuses to make a new one where sealed keys exist already,
// a file that others may read, and one that is no key.
func KeyFile(path string) (Sealer, error) {
	if path == "" {
		return nil, sealError(fail(ErrInvalidRequest, "KeyFile needs a path"))
	}
	f := &keyFile{path: path}
	// What is wrong with an existing file is said now, not at the first use.
	if _, err := f.load(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, sealError(err)
	}
	if _, err := os.Stat(filepath.Dir(path)); err != nil {
		return nil, sealError(&Error{Code: ErrInvalidRequest, Detail: "the key file's directory", Cause: err})
	}
	return f, nil
}

type keyFile struct {
	path string
	mu   sync.Mutex // guards key
	key  Sealer
}

// load reads the file once.
func (f *keyFile) load() (Sealer, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.key != nil {
		return f.key, nil
	}
	file, err := os.Open(f.path)
	if err != nil {
		return nil, &fileError{f.path, err}
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, &fileError{f.path, err}
	}
	if runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0 {
		return nil, fail(ErrInvalidRequest, "key file %s has mode %04o: others may read it; chmod 600 it", f.path, info.Mode().Perm())
	}
	text, err := io.ReadAll(io.LimitReader(file, 256))
	if err != nil {
		return nil, &fileError{f.path, err}
	}
	body, ok := strings.CutPrefix(strings.TrimSpace(string(text)), keyFileHead)
	key, err := base64.StdEncoding.Strict().DecodeString(body)
	if !ok || err != nil {
		return nil, fail(ErrInvalidRequest, "%s is not a key file of this module", f.path)
	}
	s, err := NewSealer(key)
	if err != nil {
		return nil, err
	}
	f.key = s
	return s, nil
}

// fileError keeps fs.ErrNotExist visible to errors.Is.
type fileError struct {
	path string
	err  error
}

func (e *fileError) Error() string { return "key file " + e.path + ": " + e.err.Error() }
func (e *fileError) Unwrap() error { return e.err }

// create makes the file whole or not at all. If another process was first, its key is taken.
func (f *keyFile) create() error {
	key := make([]byte, kekSize)
	rand.Read(key)
	dir := filepath.Dir(f.path)
	tmp, err := os.CreateTemp(dir, ".apitoken-key-*") // mode 0600
	if err != nil {
		return &fileError{f.path, err}
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.WriteString(keyFileHead + base64.StdEncoding.EncodeToString(key) + "\n")
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err == nil {
		// A link, unlike a rename, never replaces a key that came in between.
		if err = os.Link(tmp.Name(), f.path); errors.Is(err, fs.ErrExist) {
			return nil
		}
	}
	if err != nil {
		return &fileError{f.path, err}
	}
	if d, err := os.Open(dir); err == nil { // the name must outlive a crash as well as what it seals
		err = d.Sync()
		d.Close()
		if err != nil && runtime.GOOS != "windows" {
			return &fileError{f.path, err}
		}
	}
	return nil
}

func (f *keyFile) Seal(ctx context.Context, plain, context []byte) ([]byte, error) {
	s, err := f.load()
	if errors.Is(err, fs.ErrNotExist) {
		if err := f.create(); err != nil {
			return nil, err
		}
		s, err = f.load()
	}
	if err != nil {
		return nil, err
	}
	return s.Seal(ctx, plain, context)
}

func (f *keyFile) Open(ctx context.Context, sealed, context []byte) ([]byte, error) {
	s, err := f.load()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the store holds keys that were sealed with %s, and the file is gone: bring it back from its backup; without it nobody can open them", f.path)
	}
	if err != nil {
		return nil, err
	}
	return s.Open(ctx, sealed, context)
}

// bound makes the associated data of a seal, or the input of a MAC: each field with its length, so that no two
// lists of fields read the same.
