package apitoken

import (
	"context"
	"iter"
	"time"

	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/internal/record"
	"github.com/apitoken-go/apitoken/store"
)

// A change is a commit.Change whose events are this package's. Errors of everything here are our own.
type change struct {
	commit.Change
	s    *core
	data [eventRoom]byte // of the first event
}

const (
	eventRoom    = 384 // bytes, what the JSON of most events takes
	refreshTries = commit.Tries
)

func (s *core) newChange() *change {
	c := &change{s: s}
	c.Init()
	return c
}

func (c *change) event(ctx context.Context, e Event) {
	room := c.data[:0]
	if len(c.Events) > 0 {
		room = make([]byte, 0, eventRoom)
	}
	c.Events = append(c.Events, c.s.audit.record(ctx, e, room))
}

// put adds v to c in its form. ErrInvalidRequest: nobody could read it back.
func put[T any](c *change, f *record.Form[T], r store.Record, v *T, expect store.Version) error {
	return public(commit.Put(&c.Change, f, r, v, expect))
}

// bare adds a record that has no form.
func bare(c *change, r store.Record, expect store.Version) error {
	return public(commit.Bare(&c.Change, r, expect))
}

// read takes v out of its form. ErrUnavailable: it is damaged, or of a newer version.
func read[T any](f *record.Form[T], r store.Record, v *T) error { return public(commit.Read(f, r, v)) }

// commit writes c, see [commit.Writer.Commit]. store.ErrConflict comes back as it is.
func (s *core) commit(ctx context.Context, c *change) (store.Commit, error) {
	done, err := s.writer.Commit(ctx, &c.Change)
	return done, public(err)
}

// get reads one record: ErrNotFound or ErrUnavailable.
func (s *core) get(ctx context.Context, kind store.Kind, id string) (store.Record, error) {
	r, err := s.writer.Get(ctx, kind, id)
	return r, public(err)
}

// pages walks a listing. No transaction of the store is open while the caller runs.
func (s *core) pages(ctx context.Context, q store.Query, p Page) iter.Seq2[store.Record, error] {
	return func(yield func(store.Record, error) bool) {
		for r, err := range s.writer.Pages(ctx, q, p.After, p.Limit) {
			if !yield(r, public(err)) {
				return
			}
		}
	}
}

// newID makes an ID that sorts by time: 26 characters, unguessable in its second half.
func newID(now time.Time) string { return opaque.NewID(now).String() }
