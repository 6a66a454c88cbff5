// Package note owns what adapters keep between two requests of a protocol: how it is stored, how it is changed, and when it is gone.
//
// It promises that a name which is a credential is stored as a hash only; that a change is one compare-and-swap; and that a client's note
// is gone once the client or everything is revoked after the note was made. It stands on internal/commit and internal/rules, and holds no
// lock: the function of a change runs with nothing locked. The root's Adapter calls it.
package note

import (
	"context"
	"encoding/hex"
	"errors"
	"time"

	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/internal/record"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/store"
)

// Kind is of the records of this package.
const Kind store.Kind = "note"

const maxBytes = 8 << 10

// Note is as the root's type of this name.
type Note struct {
	Data    []byte
	Expires time.Time
	Client  string
}

// Record is a note of a client's as it is stored. Others are stored as their Data.
type Record struct {
	V     int            `json:"v"`
	Birth store.Position `json:"birth"`
	Data  []byte         `json:"data,omitempty"`
	record.Ext
}

// Form is the form of Record.
var Form = record.Form[Record]{Kind: Kind, Check: func(n *Record) error { return commit.First(n.V) }}

// Book reads and changes the notes of one namespace.
type Book struct {
	Writer    *commit.Writer
	Rules     *rules.Book
	Now       func() time.Time
	Namespace string
	Longest   time.Duration // that a note may live: rules are kept for as long
}

// stored is a note with what its record says beside it.
type stored struct {
	Note
	birth   store.Position // of one that has a Client
	version store.Version  // that a write has to expect
}

func (b *Book) id(name string) string {
	h := opaque.Hash("note1", []byte(b.Namespace), []byte(name))
	return hex.EncodeToString(h[:])
}

// Get returns the note of that name. NotFound: there is none, or it has ended.
func (b *Book) Get(ctx context.Context, name string) (Note, error) {
	n, err := b.read(ctx, name)
	switch {
	case err != nil:
		return Note{}, err
	case n.Expires.IsZero():
		return Note{}, fault.Fail(fault.NotFound, "no such note")
	}
	return n.Note, nil
}

// read returns a note without Expires where there is none that lives.
func (b *Book) read(ctx context.Context, name string) (n stored, err error) {
	r, err := b.Writer.Get(ctx, Kind, b.id(name))
	switch {
	case errors.Is(err, fault.NotFound):
		return n, nil
	case err != nil:
		return n, err
	}
	n.Client, n.version = r.Client, r.Version
	if b.Now().UnixMilli() >= r.Expires {
		return n, nil
	}
	data := r.Data
	if n.Client != "" {
		var rec Record
		if err := commit.Read(&Form, r, &rec); err != nil {
			return n, err
		}
		data, n.birth = rec.Data, rec.Birth
		if b.Rules.Hit(&rules.Subject{Client: n.Client, Pos: rules.Positions{Birth: n.birth, View: n.birth}, Renews: true}) != "" {
			return n, nil
		}
	}
	n.Data, n.Expires = data, time.UnixMilli(r.Expires)
	return n, nil
}

// Change writes what f makes of the note of that name, of which f gets the zero Note if there is none. f is called again if another
// writer was first; its error is returned, and nothing is written. A note that f makes has its birth at now. The Client of a note that
// was stored does not change.
func (b *Book) Change(ctx context.Context, name string, now store.Position, f func(*Note) error) error {
	if name == "" {
		return fault.Fail(fault.InvalidRequest, "a note without a name")
	}
	return commit.Retry("parallel changes of one note", func() error {
		n, err := b.read(ctx, name)
		if err != nil {
			return err
		}
		if n.Expires.IsZero() {
			n.birth = now
		}
		client := n.Client
		if err := f(&n.Note); err != nil {
			return commit.Final(err)
		}
		switch {
		case n.version != (store.Version{}) && n.Client != client:
			return fault.Fail(fault.InvalidRequest, "a note's Client does not change")
		case len(n.Data) > maxBytes:
			return fault.Fail(fault.InvalidRequest, "a note of %d bytes, at most %d", len(n.Data), maxBytes)
		case n.Expires.IsZero() || n.Expires.Sub(b.Now()) > b.Longest:
			return fault.Fail(fault.InvalidRequest, "a note must expire, within %.0f hours", b.Longest.Hours())
		}

		c := commit.NewChange()
		if err := n.put(c, b.id(name)); err != nil {
			return err
		}
		_, err = b.Writer.Commit(ctx, c)
		return err
	})
}

func (n *stored) put(c *commit.Change, id string) error {
	r := store.Record{ID: id, Kind: Kind, Expires: n.Expires.UnixMilli(), Client: n.Client}
	if n.Client == "" {
		r.Data = n.Data
		return commit.Bare(c, r, n.version)
	}
	return commit.Put(c, &Form, r, &Record{V: 1, Birth: n.birth, Data: n.Data}, n.version)
}
