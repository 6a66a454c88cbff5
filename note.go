package apitoken

import (
	"context"
	"encoding/hex"
	"errors"
	"time"

	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/store"
)

// Note is what an adapter keeps between two requests of a protocol, for all processes: a pushed authorization
// request, a device that waits for its user. It holds no credential, and a credential that names it is stored as a
// hash only.
type Note struct {
	Data    []byte    // at most 8 KiB
	Expires time.Time // required, at most a day ahead
}

const (
	kindNote     store.Kind = "note"
	maxNoteBytes            = 8 << 10
	maxNoteLife             = 24 * time.Hour
)

func (s *Service) noteID(name string) string {
	h := opaque.Hash("note1", []byte(s.ns), []byte(name))
	return hex.EncodeToString(h[:])
}

// Note returns the note of that name. ErrNotFound: there is none, or it has expired. ErrUnavailable.
func (s *Service) Note(ctx context.Context, name string) (Note, error) {
	n, _, err := s.readNote(ctx, name)
	if err == nil && n.Expires.IsZero() {
		return Note{}, fail(ErrNotFound, "no such note")
	}
	return n, err
}

// readNote returns the zero Note where there is none that lives, with the version that a write has to expect.
func (s *Service) readNote(ctx context.Context, name string) (Note, store.Version, error) {
	r, err := s.get(ctx, kindNote, s.noteID(name))
	switch {
	case isNotFound(err):
		return Note{}, store.Version{}, nil
	case err != nil:
		return Note{}, store.Version{}, err
	case s.now().UnixMilli() >= r.Expires:
		return Note{}, r.Version, nil
	}
	return Note{Data: r.Data, Expires: time.UnixMilli(r.Expires)}, r.Version, nil
}

// ChangeNote changes the note of that name in one compare-and-swap: f gets it as it is, the zero Note if there is
// none, and is called again if another writer was first. What f returns goes to the caller, and nothing is
// written. A note whose Expires f sets to now or earlier is gone.
func (s *Service) ChangeNote(ctx context.Context, name string, f func(*Note) error) error {
	if name == "" {
		return fail(ErrInvalidRequest, "a note without a name")
	}
	for try := 0; try < refreshTries; try++ {
		n, v, err := s.readNote(ctx, name)
		if err != nil {
			return err
		}
		if err := f(&n); err != nil {
			return err
		}
		switch {
		case len(n.Data) > maxNoteBytes:
			return fail(ErrInvalidRequest, "a note of %d bytes, at most %d", len(n.Data), maxNoteBytes)
		case n.Expires.IsZero() || n.Expires.Sub(s.now()) > maxNoteLife:
			return fail(ErrInvalidRequest, "a note must expire, within a day")
		}
		c := s.newChange()
		if err := bare(c, store.Record{Kind: kindNote, ID: s.noteID(name), Expires: n.Expires.UnixMilli(), Data: n.Data}, v); err != nil {
			return err
		}
		if _, err := s.commit(ctx, c); !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
	return &Error{Code: ErrUnavailable, RetryAfter: retryHint, Detail: "parallel changes of one note"}
}
