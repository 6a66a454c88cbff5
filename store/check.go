package store

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// Limits of the contract, the same for every engine. A Change over one of them is [ErrTooLarge], except that a Kind of a
// wrong length is [ErrInvalid].
const (
	MaxPuts     = 16
	MaxEvents   = 16
	MaxKind     = 64        // bytes of a Kind
	MaxID       = 255       // bytes of an ID
	MaxSelector = 512       // bytes of each of Subject, Client, Grant, Token and Type; engines put them into index keys
	MaxData     = 16 << 10  // bytes of Data
	MaxChange   = 256 << 10 // bytes of a Change: the kinds, IDs, selectors and data of all its puts and events
	MaxLimit    = 1000      // records in one Page
)

// ErrInvalid is the answer to a Change or Query that breaks the contract: a Kind, ID or selector that is not UTF-8 or has
// a NUL byte, a negative Expires, a record twice in one Change, a record that changes what is fixed for its life, the
// cursor of another query. Nothing was done, and no retry helps.
var ErrInvalid = errors.New("store: invalid argument")

// Check reports why no store may take c: [ErrInvalid] or [ErrTooLarge], and nil for a Change within the contract. Engines
// call it first in Apply, so that all of them take and refuse the same changes.
func Check(c *Change) error {
	switch {
	case c == nil:
		return fmt.Errorf("%w: nil Change", ErrInvalid)
	case c.ID == Version{}:
		return fmt.Errorf("%w: Change without ID", ErrInvalid)
	case len(c.Puts) > MaxPuts || len(c.Events) > MaxEvents:
		return fmt.Errorf("%w: %d puts and %d events, at most %d and %d", ErrTooLarge, len(c.Puts), len(c.Events), MaxPuts, MaxEvents)
	}
	total := 0
	for i := range c.Puts {
		r := &c.Puts[i].Record
		if r.Kind == KindEvent {
			return fmt.Errorf("%w: an event belongs in Change.Events", ErrInvalid)
		}
		if err := r.check(); err != nil {
			return err
		}
		total += r.Size()
		for j := range i {
			if p := &c.Puts[j]; p.ID == r.ID && p.Kind == r.Kind {
				return fmt.Errorf("%w: record %s/%q twice in one Change", ErrInvalid, r.Kind, r.ID)
			}
		}
	}
	for i := range c.Events {
		r := &c.Events[i]
		if r.Kind != KindEvent {
			return fmt.Errorf("%w: kind %q in Change.Events", ErrInvalid, r.Kind)
		}
		if err := r.check(); err != nil {
			return err
		}
		total += r.Size()
	}
	if total > MaxChange {
		return fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, total, MaxChange)
	}
	return nil
}

// Size is what the record counts toward [MaxChange], in bytes.
func (r *Record) Size() int {
	return len(r.Kind) + len(r.ID) + len(r.Subject) + len(r.Client) + len(r.Grant) + len(r.Token) + len(r.Type) + len(r.Data)
}

// SameSelectors reports whether r and o have the same Subject, Client, Grant, Token and Type. These are fixed for the life
// of a record: a put over a record with others is [ErrInvalid].
func (r *Record) SameSelectors(o *Record) bool {
	return r.Subject == o.Subject && r.Client == o.Client && r.Grant == o.Grant && r.Token == o.Token && r.Type == o.Type
}

func (r *Record) check() error {
	if err := r.Kind.Check(); err != nil {
		return err
	}
	switch {
	case r.ID == "" || !isText(r.ID):
		return fmt.Errorf("%w: id %.300q must be 1 to %d bytes of UTF-8 without NUL", ErrInvalid, r.ID, MaxID)
	case len(r.ID) > MaxID:
		return fmt.Errorf("%w: id of %d bytes, at most %d", ErrTooLarge, len(r.ID), MaxID)
	case len(r.Data) > MaxData:
		return fmt.Errorf("%w: %d bytes of data in %s/%q, at most %d", ErrTooLarge, len(r.Data), r.Kind, r.ID, MaxData)
	case r.Expires < 0:
		return fmt.Errorf("%w: negative Expires of %s/%q", ErrInvalid, r.Kind, r.ID)
	}
	for _, s := range [...]string{r.Subject, r.Client, r.Grant, r.Token, r.Type} {
		switch {
		case len(s) > MaxSelector:
			return fmt.Errorf("%w: a selector of %d bytes in %s/%q, at most %d", ErrTooLarge, len(s), r.Kind, r.ID, MaxSelector)
		case !isText(s):
			return fmt.Errorf("%w: selector %q of %s/%q is not UTF-8 without NUL", ErrInvalid, s, r.Kind, r.ID)
		}
	}
	return nil
}

// Check reports [ErrInvalid] unless k is 1 to [MaxKind] bytes of UTF-8 without NUL. Engines call it in Purge.
func (k Kind) Check() error {
	if k == "" || len(k) > MaxKind || !isText(string(k)) {
		return fmt.Errorf("%w: kind %.100q must be 1 to %d bytes of UTF-8 without NUL", ErrInvalid, string(k), MaxKind)
	}
	return nil
}

// Possible reports whether a record of kind k can have this ID. Where it is false, Get answers [ErrNotFound] without
// asking the engine: such an ID may come from a request, and is no failure of the store. Events are not in Get.
func (k Kind) Possible(id string) bool {
	return k != KindEvent && k.Check() == nil && id != "" && len(id) <= MaxID && isText(id)
}

// Check prepares q for an engine, in List. It sets Limit to what the contract says, Since to 0 where it is negative, and Newest to
// false where it says nothing.
// ErrInvalid: the Kind cannot be, or it is of events with ExpiresBefore. possible is false where no record can match, since a
// selector cannot be stored or a bound is negative: List answers an empty Page then, without asking the engine.
func (q *Query) Check() (possible bool, err error) {
	if err := q.Kind.Check(); err != nil {
		return false, err
	}
	if q.ExpiresBefore != 0 && q.Kind == KindEvent {
		return false, fmt.Errorf("%w: events with ExpiresBefore", ErrInvalid)
	}
	if q.Limit < 1 || q.Limit > MaxLimit {
		q.Limit = MaxLimit
	}
	q.Since = max(q.Since, 0)
	q.Newest = q.Newest && !q.Ends()
	if q.Until < 0 || q.ExpiresBefore < 0 {
		return false, nil
	}
	for _, s := range [...]string{q.Subject, q.Client, q.Grant, q.Token, q.Type} {
		if len(s) > MaxSelector || !isText(s) {
			return false, nil
		}
	}
	return true, nil
}

// Matches reports whether r, of q's Kind, is one that q asks for.
func (q *Query) Matches(r *Record) bool {
	return (q.Subject == "" || q.Subject == r.Subject) &&
		(q.Client == "" || q.Client == r.Client) &&
		(q.Grant == "" || q.Grant == r.Grant) &&
		(q.Token == "" || q.Token == r.Token) &&
		(q.Type == "" || q.Type == r.Type) &&
		(q.Since == 0 || r.Written >= q.Since) &&
		(q.Until == 0 || r.Written < q.Until) &&
		(q.ExpiresBefore == 0 || r.Expires > 0 && r.Expires < q.ExpiresBefore)
}

// Ends reports whether q asks for what expires and for nothing else: a store has an index for that.
func (q *Query) Ends() bool {
	return q.ExpiresBefore > 0 && q.Subject == "" && q.Client == "" && q.Grant == "" && q.Token == "" && q.Type == ""
}

// isText reports whether s is UTF-8 without NUL.
func isText(s string) bool { return strings.IndexByte(s, 0) < 0 && utf8.ValidString(s) }
