// Stored forms on their way into a change and out of a record, with our errors.

package commit

import (
	"errors"

	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/record"
	"github.com/apitoken-go/apitoken/store"
)

// Put adds v to c in its form. InvalidRequest: nobody could read it back.
func Put[T any](c *Change, f *record.Form[T], r store.Record, v *T, expect store.Version) error {
	w, err := Write(f, r, v)
	if err == nil {
		c.Put(w, expect)
	}
	return err
}

// Write makes the record of v in its form. InvalidRequest: nobody could read it back.
func Write[T any](f *record.Form[T], r store.Record, v *T) (record.Written, error) {
	w, err := f.Write(r, v)
	if err != nil {
		return w, unstorable(f.Kind, err)
	}
	return w, nil
}

// Bare adds a record that has no form.
func Bare(c *Change, r store.Record, expect store.Version) error {
	w, err := record.Bare(r)
	if err != nil {
		return unstorable(r.Kind, err)
	}
	c.Put(w, expect)
	return nil
}

func unstorable(kind store.Kind, cause error) error {
	return &fault.Error{Code: fault.InvalidRequest, Detail: "a " + string(kind) + " that cannot be stored", Cause: cause}
}

// Read takes v out of its form. Unavailable: it is damaged, or of a newer version.
func Read[T any](f *record.Form[T], r store.Record, v *T) error {
	if err := f.Read(r, v); err != nil {
		return &fault.Error{Code: fault.Unavailable, Detail: "stored " + string(r.Kind) + " " + r.ID + " cannot be read", Cause: err}
	}
	return nil
}

// ErrVersion is what the check of a form says of a record that it does not know.
var ErrVersion = errors.New("damaged or of a newer version")

// First refuses what is not of version 1.
func First(v int) error {
	if v != 1 {
		return ErrVersion
	}
	return nil
}
