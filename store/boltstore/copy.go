package boltstore

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"go.etcd.io/bbolt"

	"github.com/apitoken-go/apitoken/store"
)

// Compact copies the records into a new file while the store is in use, and so does Backup where it can't copy pages, see
// snapshot. A read transaction as long as that would hold up writers that need a larger map, so the copy is made in short
// ones, each as the file then is, and the writer keeps a list of the keys that it has written meanwhile. Those are copied
// again, in rounds that get shorter, and the last few while the writer itself stands still: what comes out is the file as it
// is at that moment.
const (
	copyBytes  = 1 << 20 // per read transaction and commit of the copy
	copyKeys   = 4096
	fewTouched = 2000 // keys that the last round copies while writers wait: some milliseconds
	maxRounds  = 16

	discardBytes = 16 << 20
)

// copier writes the new file.
type copier struct {
	s    *Store
	ctx  context.Context
	name string
	dst  *bbolt.DB
}

// Backup writes a consistent copy of the file, as it was at one moment during the call, to w. Writers go on meanwhile, and
// the file grows by what they write. It needs room beside the file for the copy, which is made there first: however slow w is,
// nothing waits for it. ErrDamaged: a page of the copy does not read. Nothing that was removed is in the copy. Opened as a
// store, it has a History of its own, and it must have mode 0600 like the original. ctx ends it between two pieces.
func (s *Store) Backup(ctx context.Context, w io.Writer) error {
	if s.readOnly {
		return s.backupReadOnly(ctx, w)
	}
	f, err := os.CreateTemp(filepath.Dir(s.path), filepath.Base(s.path)+tempName+"backup-*")
	if err != nil {
		return fmt.Errorf("boltstore: backup: %w", err)
	}
	defer discard(f)
	if err := s.backup(ctx, f); err != nil {
		return err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("boltstore: backup: %w", err)
	}
	return stream(ctx, w, f)
}

// discard removes a copy in parts: a file system that frees a gigabyte at once lets the writer's next sync wait for it.
func discard(f *os.File) {
	if fi, err := f.Stat(); err == nil {
		for size := fi.Size() - discardBytes; size > 0; size -= discardBytes {
			_ = f.Truncate(size)
		}
	}
	_ = f.Close()
	_ = os.Remove(f.Name())
}

// backup makes the copy in f, an empty file beside the store's.
func (s *Store) backup(ctx context.Context, f *os.File) error {
	release, err := s.enterCopy(ctx)
	if err != nil {
		return err
	}
	defer release()
	if err = s.snapshot(ctx, f); !errors.Is(err, errNoRoom) {
		return err
	}
	if err := f.Truncate(0); err != nil {
		return fmt.Errorf("boltstore: backup: %w", err)
	}
	return s.copyTo(ctx, f.Name(), true, func(c *copier) error { return c.dst.Close() })
}

// enterCopy waits for its turn: one copy is made at a time, since there is one list of keys.
func (s *Store) enterCopy(ctx context.Context) (release func(), err error) {
	select {
	case s.copying <- struct{}{}:
		return func() { <-s.copying }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-s.closed:
		return nil, ErrClosed
	}
}

// stream copies a file piece by piece, so that ctx can end it.
func stream(ctx context.Context, w io.Writer, r io.Reader) error {
	for buf := make([]byte, 256<<10); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := r.Read(buf)
		if n > 0 {
			if _, werr := w.Write(buf[:n]); werr != nil {
				return fmt.Errorf("boltstore: backup: %w", werr)
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("boltstore: backup: %w", err)
		}
	}
}

// backupReadOnly copies the file as it is: nobody writes it while readers have it open. The directory may not take a
// file, so the copy is not marked as a backup; without the mark beside it, it is known as a copy all the same.
func (s *Store) backupReadOnly(ctx context.Context, w io.Writer) error {
	f, err := os.Open(s.path)
	if err != nil {
		return fmt.Errorf("boltstore: backup: %w", err)
	}
	defer f.Close()
	if err := s.view(func(*bbolt.Tx) error { return nil }); err != nil {
		return err
	}
	return stream(ctx, w, f)
}

// Compact gives unused space back to the file system: it copies the records into a new file beside this one, and puts
// that in its place. Readers and writers go on meanwhile, and wait at the end (0.2 s with 600 MB). A crash at any moment
// leaves the one file or the other, whole.
func (s *Store) Compact(ctx context.Context) error {
	if s.readOnly {
		return fmt.Errorf("%w: compact needs a store open for writing", store.ErrInvalid)
	}
	release, err := s.enterCopy(ctx)
	if err != nil {
		return err
	}
	defer release()
	return s.copyTo(ctx, s.path+tempName+"compact", false, func(c *copier) error { return s.replace(c) })
}

// copyTo makes the copy. finish runs in the writer while nothing is written, after the copy is complete and synced.
func (s *Store) copyTo(ctx context.Context, name string, backup bool, finish func(*copier) error) (err error) {
	c := &copier{s: s, ctx: ctx, name: name}
	// The copy is synced once, at its end, before anything relies on it.
	c.dst, err = bbolt.Open(name, 0o600, &bbolt.Options{NoSync: true, NoGrowSync: true, Timeout: time.Second, InitialMmapSize: s.mapSize()})
	if err != nil {
		return fmt.Errorf("boltstore: copy: %w", err)
	}
	defer func() {
		if err != nil {
			_ = c.dst.Close()
			_ = os.Remove(name)
		}
	}()
	// The writer keeps the list from before the first read to the end, whatever the end is.
	defer func() {
		_ = s.alone(context.WithoutCancel(ctx), func() error { s.touched = nil; return nil })
	}()
	if err := s.alone(ctx, func() error { s.touched = map[touched]struct{}{}; return nil }); err != nil {
		return err
	}
	if err := c.everything(); err != nil {
		return err
	}
	for range maxRounds {
		// Synced here, the last sync has little left to do while writers wait for it.
		if err := c.dst.Sync(); err != nil {
			return fmt.Errorf("boltstore: copy: %w", err)
		}
		var keys map[touched]struct{}
		if err := s.alone(ctx, func() error {
			if len(s.touched) > fewTouched {
				keys, s.touched = s.touched, map[touched]struct{}{}
			}
			return nil
		}); err != nil {
			return err
		}
		if keys == nil {
			break
		}
		if err := c.again(keys); err != nil {
			return err
		}
	}
	// From here on it takes place or not; the caller no longer decides.
	c.ctx = context.WithoutCancel(ctx)
	return s.alone(c.ctx, func() error {
		if err := c.again(s.touched); err != nil {
			return err
		}
		err := c.dst.Update(func(tx *bbolt.Tx) error {
			if err := writeFormat(tx, s.id, &s.meta); err != nil || !backup {
				return err
			}
			return tx.Bucket(bucketFormat).Put(keyBackup, []byte{1})
		})
		if err != nil {
			return err
		}
		if err := c.dst.Sync(); err != nil {
			return fmt.Errorf("boltstore: copy: %w", err)
		}
		return finish(c)
	})
}

// alone runs f in the writer, between two groups.
func (s *Store) alone(ctx context.Context, f func() error) error {
	r := &request{alone: f}
	if err := s.submit(ctx, r); err != nil {
		return err
	}
	return r.out.err
}

func (c *copier) check() error {
	select {
	case <-c.s.closed:
		if c.ctx.Done() != nil { // the writer's own last step goes on
			return ErrClosed
		}
	default:
	}
	return c.ctx.Err()
}

type pair struct {
	touched
	value   []byte
	present bool
}

// look reads in a transaction for at most the store's Timeout, however much there is to copy in all: another reader that
// panicked may hold bbolt's locks for ever. f shares no variables with its caller, which may have gone on without it.
func look[T any](c *copier, f func(*bbolt.Tx) (T, error)) (T, error) {
	return bounded(c.ctx, c.s, func(context.Context) (v T, err error) {
		err = c.s.view(func(tx *bbolt.Tx) error {
			v, err = f(tx)
			return err
		})
		return v, err
	})
}

// everything copies each bucket of each namespace, piece by piece.
func (c *copier) everything() error {
	subs, err := look(c, func(tx *bbolt.Tx) (subs []touched, err error) {
		err = tx.ForEach(func(name []byte, ns *bbolt.Bucket) error {
			if bytes.Equal(name, bucketFormat) {
				return nil
			}
			return ns.ForEach(func(k, v []byte) error {
				t := touched{namespace: string(name), sub: string(k)}
				if v != nil {
					t.sub, t.key = "", string(k)
				}
				subs = append(subs, t)
				return nil
			})
		})
		return subs, err
	})
	if err != nil {
		return err
	}
	for _, u := range subs {
		if u.sub == "" {
			if err := c.again(map[touched]struct{}{u: {}}); err != nil {
				return err
			}
			continue
		}
		for p := (piece{more: true}); p.more; {
			if err := c.check(); err != nil {
				return err
			}
			after := p.last()
			if p, err = look(c, func(tx *bbolt.Tx) (piece, error) { return u.next(tx, after), nil }); err != nil {
				return err
			}
			if err := c.write(p.pairs); err != nil {
				return err
			}
		}
	}
	return nil
}

// piece is some of a bucket; more says that there is more behind it.
type piece struct {
	pairs []pair
	more  bool
}

// last is the key of the last pair, nil before the first piece.
func (p *piece) last() []byte {
	if len(p.pairs) == 0 {
		return nil
	}
	return []byte(p.pairs[len(p.pairs)-1].key)
}

// next is what comes behind a key in u's bucket: at most copyKeys pairs and a little more than copyBytes.
func (u touched) next(tx *bbolt.Tx, after []byte) (p piece) {
	ns := tx.Bucket([]byte(u.namespace))
	if ns == nil || ns.Bucket([]byte(u.sub)) == nil {
		return piece{}
	}
	cur := ns.Bucket([]byte(u.sub)).Cursor()
	k, v := cur.Seek(after)
	if after != nil && bytes.Equal(k, after) {
		k, v = cur.Next()
	}
	for size := 0; k != nil; k, v = cur.Next() {
		if size > copyBytes || len(p.pairs) >= copyKeys {
			p.more = true
			return p
		}
		size += len(k) + len(v)
		p.pairs = append(p.pairs, pair{touched{u.namespace, u.sub, string(k)}, bytes.Clone(v), true})
	}
	return p
}

// again copies keys as they are now, the removed ones too.
func (c *copier) again(set map[touched]struct{}) error {
	keys := make([]touched, 0, len(set))
	for k := range set {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b touched) int {
		return cmp.Or(cmp.Compare(a.namespace, b.namespace), cmp.Compare(a.sub, b.sub), cmp.Compare(a.key, b.key))
	})
	for part := range slices.Chunk(keys, copyKeys) {
		if err := c.check(); err != nil {
			return err
		}
		piece, err := look(c, func(tx *bbolt.Tx) ([]pair, error) {
			piece := make([]pair, 0, len(part))
			for _, k := range part {
				p := pair{touched: k}
				b := tx.Bucket([]byte(k.namespace))
				if b != nil && k.sub != "" {
					b = b.Bucket([]byte(k.sub))
				}
				if b != nil {
					if v := b.Get([]byte(k.key)); v != nil {
						p.value, p.present = append([]byte{}, v...), true
					}
				}
				piece = append(piece, p)
			}
			return piece, nil
		})
		if err != nil {
			return err
		}
		if err := c.write(piece); err != nil {
			return err
		}
	}
	return nil
}

func (c *copier) write(piece []pair) error {
	if len(piece) == 0 {
		return nil
	}
	err := c.dst.Update(func(tx *bbolt.Tx) error {
		var b *bbolt.Bucket
		var at touched
		for i := range piece {
			p := &piece[i]
			if b == nil || at.namespace != p.namespace || at.sub != p.sub {
				var err error
				if b, err = tx.CreateBucketIfNotExists([]byte(p.namespace)); err != nil {
					return err
				}
				if p.sub != "" {
					if b, err = b.CreateBucketIfNotExists([]byte(p.sub)); err != nil {
						return err
					}
					b.FillPercent = class(p.sub[0]).fill()
				}
				at = p.touched
			}
			if !p.present {
				if err := b.Delete([]byte(p.key)); err != nil {
					return err
				}
			} else if err := b.Put([]byte(p.key), p.value); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("boltstore: copy: %w", err)
	}
	return nil
}

// replace puts the compacted file in place of the database. Runs in the writer. The store's lock is the mark's, so no
// other process can come in while neither file is open.
func (s *Store) replace(c *copier) error {
	fi, err := os.Stat(c.name)
	if err != nil {
		return err
	}
	if err := c.dst.Close(); err != nil {
		return err
	}
	s.mark.inode2, s.mark.born2 = inode(fi), bornAt(c.name)
	if s.mark.nonce != (nonce{}) {
		err := setLabel(c.name, s.mark.nonce.label())
		if err == nil {
			err = syncFile(c.name)
		}
		if err != nil {
			return fmt.Errorf("boltstore: compact: %w", err)
		}
	}
	if err := s.mark.saveDurably(); err != nil {
		return err
	}
	s.dbMu.Lock()
	defer s.dbMu.Unlock()
	old := s.db
	s.db = nil
	if err := closeDB(old); err != nil {
		s.setFailure(err)
		return err
	}
	renamed := os.Rename(c.name, s.path)
	if renamed == nil {
		s.mark.inode, s.mark.born = s.mark.inode2, s.mark.born2
	}
	s.mark.inode2, s.mark.born2 = 0, 0
	if s.db, err = s.openDB(time.Second, inspectShallow); err != nil {
		s.db = nil
		s.setFailure(err) // the next write opens it again
		return err
	}
	if renamed != nil {
		return fmt.Errorf("boltstore: compact: %w", renamed)
	}
	if err := syncDir(filepath.Dir(s.path)); err != nil {
		return fmt.Errorf("boltstore: compact: %w", err)
	}
	return s.mark.saveDurably()
}
