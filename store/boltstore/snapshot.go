package boltstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"

	"github.com/apitoken-go/apitoken/internal/boltfile"
)

// A backup copies pages where it can, not records: four times as fast. They are those of one read transaction, in which the
// writer may not use again what it frees, so that the file grows by what is written meanwhile; and it would have to wait for
// the transaction's end if it outgrew its map. So pages are copied only as long as the map has room for that.

const (
	spareRoom  = 128 << 20 // of the map, when a copy of pages begins
	leastRoom  = 32 << 20  // with less it ends, and records are copied
	paceBytes  = 8 << 20   // between two looks at whether to go on
	mapGranule = 1 << 30   // in which bbolt maps files of more than that
)

// errNoRoom: the map is nearly full.
var errNoRoom = errors.New("boltstore: no room in the map")

// mapped is how much of the file bbolt has mapped at least, where so many bytes of it are in use; 0 where that is not known. The
// file itself may be larger than both: it grows in steps.
func (s *Store) mapped(used int64) int64 {
	if s.mapSize() == 0 {
		return 0
	}
	return max(int64(s.mapSize()), (used+mapGranule-1)/mapGranule*mapGranule)
}

// room is how much the file may grow before bbolt maps it anew.
func (s *Store) room(mapped int64) (int64, error) {
	fi, err := s.file.Stat()
	if err != nil {
		return 0, err
	}
	return mapped - fi.Size(), nil
}

// snapshot copies the file to f as it is at one moment, without what lies in free pages, and marks the copy as a backup. errNoRoom: it would hold up writers.
func (s *Store) snapshot(ctx context.Context, f *os.File) error {
	opening := s.opening.Load()
	p := &pacer{ctx: ctx, s: s, f: f}
	from, err := s.pages(p)
	if err == nil { // it may have read what the disk had not confirmed
		err = s.settled(ctx, opening, func(*inFlight) bool { return true })
	}
	if err == nil {
		err = ownError(boltfile.Wipe(f, p.goOn))
	}
	if err != nil {
		return err
	}
	db, err := bbolt.Open(f.Name(), 0o600, &bbolt.Options{NoSync: true, NoGrowSync: true, Timeout: time.Second})
	if err != nil {
		return fmt.Errorf("boltstore: backup: %w", err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		if err := writeFormat(tx, from.id, &from.meta); err != nil {
			return err
		}
		return tx.Bucket(bucketFormat).Put(keyBackup, []byte{1})
	})
	if err = errors.Join(err, db.Close()); err != nil {
		return fmt.Errorf("boltstore: backup: %w", err)
	}
	return nil
}

// origin is what a file says of itself.
type origin struct {
	id   [16]byte
	meta fileMeta
}

// pages copies all pages to p. The read goes on without its caller when that has stopped waiting: at the end of p's context,
// or when nothing has moved for the store's Timeout.
func (s *Store) pages(p *pacer) (origin, error) {
	type answer struct {
		origin
		err error
	}
	done := make(chan answer, 1)
	go func() {
		var a answer
		a.err = s.view(func(tx *bbolt.Tx) (err error) {
			if a.id, a.meta, _, err = readFormat(tx); err != nil {
				return err
			}
			p.mapped = s.mapped(tx.Size())
			switch room, err := s.room(p.mapped); {
			case err != nil:
				return err
			case room < spareRoom:
				return errNoRoom
			}
			_, err = tx.WriteTo(p)
			return err
		})
		done <- a
	}()
	for moved := int64(-1); moved != p.at.Load(); {
		moved = p.at.Load()
		select {
		case a := <-done:
			return a.origin, a.err
		case <-p.ctx.Done():
			return origin{}, p.ctx.Err()
		case <-time.After(s.timeout):
		}
	}
	return origin{}, s.tooLate()
}

// pacer writes a copy at the pace of the disk: what it leaves for later would all be in the way of the writer's next sync.
type pacer struct {
	ctx     context.Context
	s       *Store
	f       *os.File
	at      atomic.Int64 // how much has been written
	started int64        // how much of it is on its way to the disk
	mapped  int64        // see Store.mapped
}

func (p *pacer) Write(b []byte) (int, error) {
	n, err := p.f.Write(b)
	if err != nil {
		return n, fmt.Errorf("boltstore: backup: %w", err)
	}
	at := p.at.Add(int64(n))
	if at-p.started < paceBytes {
		return n, nil
	}
	if err := p.goOn(); err != nil {
		return n, err
	}
	switch room, err := p.s.room(p.mapped); {
	case err != nil:
		return n, err
	case room < leastRoom:
		return n, errNoRoom
	}
	writeOut(p.f, p.started, at-p.started)
	p.started = at
	return n, nil
}

// goOn is why the copy has to end.
func (p *pacer) goOn() error {
	select {
	case <-p.s.closed:
		return ErrClosed
	default:
	}
	return errors.Join(p.ctx.Err(), p.s.failure())
}
