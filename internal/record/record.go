// Package record is how what a service keeps is written and read back. Whoever owns a kind of record declares its Form; nothing gets
// into a change but what its Form has written, and a Form gives out nothing that it does not read back as the same.
//
// # Forms
//
// A record is JSON, or, where reading it costs a call that should be quick, the members in a fixed order: see Pack.
//
// # Versions
//
// A fleet may run two versions of this module on one store. The rule that lets it:
//
//   - A member that this version doesn't know, or another "v", makes a record unreadable here. Its reader fails closed for
//     what the record is about, and nobody rewrites it. A newer version adds such a member where an older process must not
//     act without it, such as a new restriction of a client.
//   - Members of the object "ext" may be ignored. A reader that doesn't know them keeps them when it
//     rewrites the record. A newer version adds a member there where an older process may act without it, such as a
//     description. Each form embeds [Ext], but the records of the signing keys, in which everything is authenticated.
//   - A newer version writes a new kind of record, or a new type of rule, only once every process can read it.
//
// It stands on package store alone, takes no lock and does no I/O.
package record

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/apitoken-go/apitoken/store"
)

// Ext holds the members that a newer version added and an older one may ignore: a JSON object, or empty.
type Ext struct {
	Ext Object `json:"ext,omitempty"`
}

// Object is a JSON object as it was read. It is a string so that records stay comparable.
type Object string

// MarshalJSON implements [json.Marshaler].
func (o Object) MarshalJSON() ([]byte, error) { return []byte(o), nil }

// UnmarshalJSON implements [json.Unmarshaler].
func (o *Object) UnmarshalJSON(b []byte) error {
	if len(b) == 0 || b[0] != '{' {
		return errors.New("ext is not a JSON object")
	}
	*o = Object(b)
	return nil
}

// Form is one stored form.
type Form[T any] struct {
	Kind store.Kind
	// Check is what readers demand besides that it decodes, such as a version that they know; nil: nothing. It runs at each Read, and
	// so at each Write too.
	Check func(*T) error
	// Pack names the members in the order of the compact form, in which records are written then; nil: they are JSON. Records that
	// were written as JSON before are read for ever.
	Pack func(*Pack, *T)
}

// Written is a record that was read back. Only Write and Bare make one.
type Written struct{ r store.Record }

// Record is what a store gets.
func (w Written) Record() store.Record { return w.r }

// Read takes what this module once wrote: another member means a newer version or damage.
func (f *Form[T]) Read(r store.Record, v *T) error {
	if f.Pack != nil && len(r.Data) > 0 && r.Data[0] == packed {
		if !new(Pack).read(r.Data, func(p *Pack) { f.Pack(p, v) }) {
			return errors.New("damaged or of a newer version")
		}
	} else if err := decode(r.Data, v); err != nil {
		return err
	}
	if f.Check != nil {
		return f.Check(v)
	}
	return nil
}

// decoder reads one value after the other. Its buffer of 512 bytes and more is used again, which was a third of what a service
// allocated that started with a million rules, and a tenth of its time.
type decoder struct {
	from bytes.Reader
	json *json.Decoder
}

var decoders = sync.Pool{New: func() any {
	d := &decoder{}
	d.json = json.NewDecoder(&d.from)
	d.json.DisallowUnknownFields()
	return d
}}

func decode(data []byte, v any) error {
	d := decoders.Get().(*decoder)
	d.from.Reset(data)
	if err := d.json.Decode(v); err != nil {
		return err // and what it has read stays in it: not for the next
	}
	if d.json.More() {
		return errors.New("trailing data")
	}
	d.from.Reset(nil)
	decoders.Put(d)
	return nil
}

// Write makes the record of v under r's ID, selectors and end. It fails where a reader would not take it, or would take it for
// something else: text that is no UTF-8 becomes another one in JSON. What every process follows is read back each time.
func (f *Form[T]) Write(r store.Record, v *T) (Written, error) {
	if err := checkNames(&r); err != nil {
		return Written{}, err
	}
	data, err := f.encode(v)
	if err != nil {
		return Written{}, err
	}
	r.Kind, r.Data = f.Kind, data
	if !f.Kind.State() && !bytes.Contains(data, altered) {
		// It is read by whom it concerns alone and written with every login: that what passes Check reads back is left to the tests.
		if f.Check == nil {
			return Written{r}, nil
		}
		return Written{r}, f.Check(v)
	}
	back := new(T)
	if err := f.Read(r, back); err != nil {
		return Written{}, fmt.Errorf("it could not be read back: %w", err)
	}
	again, err := f.encode(back)
	if err != nil || !bytes.Equal(again, data) {
		return Written{}, errors.New("it would read back as something else")
	}
	return Written{r}, nil
}

func (f *Form[T]) encode(v *T) ([]byte, error) {
	if f.Pack == nil {
		return json.Marshal(v)
	}
	return new(Pack).write(func(p *Pack) { f.Pack(p, v) }), nil
}

// Bare is a record whose content is nobody's form: none at all, or what a host gave.
func Bare(r store.Record) (Written, error) { return Written{r}, checkNames(&r) }

// altered is what JSON has in place of text that is no UTF-8.
var altered = []byte(`\ufffd`)

// maxName is what the contract of a store takes.
const maxName = 255

func checkNames(r *store.Record) error {
	if r.ID == "" {
		return errors.New("a record without an ID")
	}
	for _, s := range [...]string{r.ID, r.Type, r.Subject, r.Client, r.Grant, r.Token} {
		if len(s) > maxName || !utf8.ValidString(s) || strings.IndexByte(s, 0) >= 0 {
			return fmt.Errorf("%.40q cannot be part of a record: over %d bytes, no UTF-8, or with NUL", s, maxName)
		}
	}
	return nil
}
