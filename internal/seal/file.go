// The key file.

package seal

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"github.com/apitoken-go/apitoken/internal/fault"
)

const fileHead = "apitoken-key-v1 "

// File is a Local whose key lies in a file, which is made when something is sealed for the first time.
type File struct {
	path string
	mu   sync.Mutex // guards key
	key  Local
}

// OpenFile reads the key, if there is a file already: what is wrong with it is said now, not at the first use.
func OpenFile(path string) (*File, error) {
	if path == "" {
		return nil, fault.Fail(fault.InvalidRequest, "KeyFile needs a path")
	}
	f := &File{path: path}
	if _, err := f.load(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if _, err := os.Stat(filepath.Dir(path)); err != nil {
		return nil, &fault.Error{Code: fault.InvalidRequest, Detail: "the key file's directory", Cause: err}
	}
	return f, nil
}

// load reads the file once.
func (f *File) load() (Local, error) {
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
		return nil, fault.Fail(fault.InvalidRequest, "key file %s has mode %04o: others may read it; chmod 600 it", f.path, info.Mode().Perm())
	}
	text, err := io.ReadAll(io.LimitReader(file, 256))
	if err != nil {
		return nil, &fileError{f.path, err}
	}
	body, ok := strings.CutPrefix(strings.TrimSpace(string(text)), fileHead)
	key, err := base64.StdEncoding.Strict().DecodeString(body)
	if !ok || err != nil {
		return nil, fault.Fail(fault.InvalidRequest, "%s is not a key file of this module", f.path)
	}
	s, err := NewLocal(key)
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
func (f *File) create() error {
	key := make([]byte, keySize)
	rand.Read(key)
	dir := filepath.Dir(f.path)
	tmp, err := os.CreateTemp(dir, ".apitoken-key-*") // mode 0600
	if err != nil {
		return &fileError{f.path, err}
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.WriteString(fileHead + base64.StdEncoding.EncodeToString(key) + "\n")
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

// Seal encrypts plain, and makes the file if there is none.
func (f *File) Seal(ctx context.Context, plain, context []byte) ([]byte, error) {
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

// Open decrypts what Seal made. It makes no file: a new key opens nothing.
func (f *File) Open(ctx context.Context, sealed, context []byte) ([]byte, error) {
	s, err := f.load()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the store holds keys that were sealed with %s, and the file is gone: bring it back from its backup; without it nobody can open them", f.path)
	}
	if err != nil {
		return nil, err
	}
	return s.Open(ctx, sealed, context)
}
