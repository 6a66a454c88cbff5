package boltstore

import (
	"fmt"
	"os"
)

// Taking power away must not wait for a full disk: a file of one MiB beside the database, <path>.reserve, is given up
// when a revocation finds no room. That carries some thousand rules with their events; the pages that their commits
// free are used again. It is made anew as soon as the disk has room, and until then nothing else is written.
const reserveSize = 1 << 20

type reserve struct {
	path string
	held bool
}

// refill makes the reserve if it is not there. Its blocks must be real, so it is written, not only made long.
func (r *reserve) refill() error {
	if r.held {
		return nil
	}
	if fi, err := os.Lstat(r.path); err == nil && fi.Mode().IsRegular() && fi.Size() == reserveSize {
		r.held = true
		return nil
	}
	err := func() error {
		f, err := os.OpenFile(r.path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
		if err != nil {
			return err
		}
		defer f.Close()
		b := make([]byte, 64<<10)
		for i := range b {
			b[i] = byte(i*31) | 1 // not zero: some file systems keep no blocks of zeros
		}
		for range reserveSize / len(b) {
			if _, err := f.Write(b); err != nil {
				return err
			}
		}
		return f.Sync()
	}()
	if err != nil {
		_ = os.Remove(r.path) // half a reserve only takes room away
		return fmt.Errorf("boltstore: reserve: %w", err)
	}
	r.held = true
	return nil
}

// release gives the room to who needs it now; false if there was nothing to give.
func (r *reserve) release() bool {
	if !r.held {
		return false
	}
	r.held = false
	return os.Remove(r.path) == nil
}
