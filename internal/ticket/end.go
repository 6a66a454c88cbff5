// How a ticket ends: spent, or found in a leak.

package ticket

import (
	"context"
	"errors"
	"time"

	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/revoke"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/store"
)

const spending = time.Minute // for what is spent in the last moment

// EndSpent ends what t, which is spent and stored in r, got, and reports whether there was anything to end. It writes the ticket in any
// case: the call that spent it may have ended one session and be planning the next, which nobody knows yet, and its write fails then.
// store.ErrConflict: read the ticket again.
func (t *Record[S]) EndSpent(ctx context.Context, w *revoke.Writer, r store.Record, reason string, why event.Type) (bool, error) {
	if t.Leaked {
		return false, nil
	}
	c := commit.NewChange()
	if w.Rules.Hit(t.Got(r.Written)) == "" {
		t.Leaked = true
		if err := t.Put(c, r.ID, r.Version); err != nil {
			return false, err
		}
		err := w.Write(ctx, c, revoke.Rule{Target: rules.ByGrant(t.Spent), Reason: reason, Type: why})
		return err == nil, err
	}
	if w.Now().UnixMilli() > t.Expires+spending.Milliseconds() {
		return false, nil // nobody is spending it any more
	}
	// What ended it may be on its way only, by a call that marks it and would find it marked: it is written as it is.
	if err := t.Put(c, r.ID, r.Version); err != nil {
		return false, err
	}
	_, err := w.Commit.Commit(ctx, c)
	return false, err
}

// EndLeaked ends the ticket with this ID and hash, and what it got. The rule on its ID is in force here before the store is asked; what
// takes the ticket out of use is written together with it, and decides in other processes where their view would be too old.
func EndLeaked[S ~string](ctx context.Context, w *revoke.Writer, id string, hash [32]byte, reason string) (ended bool, err error) {
	return w.EndBy(ctx, []rules.Target{rules.ByToken(id)}, func(ctx context.Context) (ended bool, err error) {
		err = commit.Retry("parallel uses of one ticket", func() error {
			ended, err = spoil[S](ctx, w, id, hash, reason)
			return err
		})
		return ended, err
	})
}

// spoil writes that a ticket has leaked, and reports whether there was anything to end. Against a use in parallel the
// store decides: either that finds it spoilt, or what it got is revoked.
func spoil[S ~string](ctx context.Context, w *revoke.Writer, id string, hash [32]byte, reason string) (bool, error) {
	r, err := w.Commit.Get(ctx, Kind, id)
	switch {
	case errors.Is(err, fault.NotFound): // purged, or not written after all
		return false, nil
	case err != nil:
		return false, err
	}
	t := new(Record[S])
	if err := commit.Read(Form[S](), r, t); err != nil {
		return false, err
	}
	if t.Leaked || !t.Is(hash) {
		return false, nil
	}
	if t.Spent != "" {
		return t.EndSpent(ctx, w, r, reason, event.Leaked)
	}

	t.Leaked = true
	c := commit.NewChange()
	if err := t.Put(c, r.ID, r.Version); err != nil {
		return false, err
	}
	if err := w.AddUntil(ctx, c, rules.ByToken(id), false, reason, r.Expires); err != nil {
		return false, err
	}
	scopes := make([]string, len(t.Scopes))
	for i, s := range t.Scopes {
		scopes[i] = string(s)
	}
	w.Event(ctx, c, revoke.Event{Type: event.Leaked, Reason: reason, Target: rules.ByToken(id), Token: id, Subject: t.Subject, Client: t.Client,
		Scopes: scopes, Extra: map[string]string{"leaked": "ticket"}})
	_, err = w.Commit.Commit(ctx, c)
	return err == nil, err
}
