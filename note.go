package apitoken

import (
	"context"
	"encoding/hex"
	"errors"
	"time"

	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/internal/record"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/store"
)

// Note is what an adapter keeps between two requests of a protocol, for all processes: a pushed authorization
// request, a device that waits for its user. It holds no credential, and a credential that names it is stored as a
// hash only.
type Note struct {
	Data    []byte    // at most 8 KiB
	Expires time.Time // required, at most a day ahead
	// Client is whose request it is, where it is a client's: once that client or everything is revoked, the note is gone. It is
	// set when the note is made, and does not change.
	Client string

	birth store.Position // of one that has a Client
}

const (
	kindNote     store.Kind = "note"
	maxNoteBytes            = 8 << 10
	maxNoteLife             = 24 * time.Hour
)

// noteRecord is a note of a client's as it is stored. Others are stored as their Data.
type noteRecord struct {
	V     int            `json:"v"`
	Birth store.Position `json:"birth"`
	Data  []byte         `json:"data,omitempty"`
	record.Ext
}

var noteForm = record.Form[noteRecord]{Kind: kindNote, Check: func(n *noteRecord) error { return commit.First(n.V) }}

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
		return Note{Client: r.Client}, r.Version, nil
	}
	n := Note{Data: r.Data, Expires: time.UnixMilli(r.Expires), Client: r.Client}
	if n.Client == "" {
		return n, r.Version, nil
	}
	var rec noteRecord
	if err := read(&noteForm, r, &rec); err != nil {
		return Note{}, store.Version{}, err
	}
	n.Data, n.birth = rec.Data, rec.Birth
	if s.rules.Hit(&rules.Subject{Client: n.Client, Pos: rules.Positions{Birth: n.birth, View: n.birth}, Renews: true}) != "" {
		return Note{Client: n.Client}, r.Version, nil
	}
	return n, r.Version, nil
}

// put adds the note to c.
func (n *Note) put(c *change, id string, v store.Version) error {
	r := store.Record{Kind: kindNote, ID: id, Expires: n.Expires.UnixMilli(), Client: n.Client, Data: n.Data}
	if n.Client == "" {
		return bare(c, r, v)
	}
	r.Data = nil
	return put(c, &noteForm, r, &noteRecord{V: 1, Birth: n.birth, Data: n.Data}, v)
}

// ChangeNote changes the note of that name in one compare-and-swap: f gets it as it is, the zero Note if there is
// none, and is called again if another writer was first. What f returns goes to the caller, and nothing is
// written. A note whose Expires f sets to now or earlier is gone.
func (s *Service) ChangeNote(ctx context.Context, name string, f func(*Note) error) error {
	if name == "" {
		return fail(ErrInvalidRequest, "a note without a name")
	}
	m := s.begin(ctx)
	for try := 0; try < refreshTries; try++ {
		n, v, err := s.readNote(ctx, name)
		if err != nil {
			return err
		}
		if n.Expires.IsZero() {
			n.birth = m.login().at
		}
		client := n.Client
		if err := f(&n); err != nil {
			return err
		}
		switch {
		case v != (store.Version{}) && n.Client != client:
			return fail(ErrInvalidRequest, "a note's Client does not change")
		case len(n.Data) > maxNoteBytes:
			return fail(ErrInvalidRequest, "a note of %d bytes, at most %d", len(n.Data), maxNoteBytes)
		case n.Expires.IsZero() || n.Expires.Sub(s.now()) > maxNoteLife:
			return fail(ErrInvalidRequest, "a note must expire, within a day")
		}
		c := s.newChange()
		if err := n.put(c, s.noteID(name), v); err != nil {
			return err
		}
		if _, err := s.commit(ctx, c); !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
	return &Error{Code: ErrUnavailable, RetryAfter: retryHint, Detail: "parallel changes of one note"}
}
