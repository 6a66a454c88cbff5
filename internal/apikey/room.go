// The limit of API keys for one subject.

package apikey

import (
	"context"
	"slices"
	"time"

	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/quota"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/store"
)

// Room is how many keys a subject may have.
type Room struct {
	Quota *quota.Quota
	Rules *rules.Book
	Now   func() time.Time
}

// Enter waits for the turn of whoever makes a key for subject in this process, where its keys are counted.
func (m *Room) Enter(ctx context.Context, subject string) (leave func(), err error) {
	if m.Quota.Limit == 0 {
		return func() {}, nil
	}
	return m.Quota.Turns.Enter(ctx, subject)
}

// Count is what a subject has; nil: there is no limit.
func (m *Room) Count(ctx context.Context, subject string) (*quota.Count, error) {
	if m.Quota.Limit == 0 {
		return nil, nil
	}
	return m.Quota.Read(ctx, subject, false, m.counts)
}

func (m *Room) counts(r store.Record) (bool, error) {
	rec, err := Read(r, m.Rules)
	return err == nil && rec.Counts(m.Now()), err
}

// More is Count with room for one more. fault.Limited: there is none.
func (m *Room) More(ctx context.Context, subject string) (*quota.Count, error) {
	t, err := m.Count(ctx, subject)
	if err != nil || t == nil || !t.Full() {
		return t, err
	}
	if _, err := t.Prune(ctx, m.counts); err != nil {
		return nil, err
	}
	if t.Full() {
		return nil, fault.Fail(fault.Limited, "the subject has %d API keys, the limit", len(t.IDs))
	}
	return t, nil
}

// Again notes in c when the record of a key that was changed ends now, where its subject's keys are counted. fault.NotFound: the key had
// ended for a moment, and there is no room for it any more.
func (m *Room) Again(ctx context.Context, c *commit.Change, id string, rec *Record) error {
	t, err := m.Count(ctx, rec.Subject)
	if t == nil || err != nil || !rec.Counts(m.Now()) {
		return err
	}
	counted := slices.Contains(t.IDs, id)
	t.Remove(id)
	if !counted && t.Full() {
		return fault.Fail(fault.NotFound, "the key ended meanwhile, and others have taken its place")
	}
	t.Add(id, rec.Kept())
	return t.Put(c)
}
