// Rules that are in the store: ended when nothing is left that they hit, put back where the store lost them, explained.

package revoke

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/internal/text"
	"github.com/apitoken-go/apitoken/store"
)

// Finish gives rules without a purge time one, once ended says that the API keys and client secrets which they match have ended: those
// may live for ever, so that the rule would have to as well.
func (w *Writer) Finish(ctx context.Context, now time.Time, ended func(context.Context, rules.Record) bool) {
	q := store.Query{Kind: store.KindRule, Until: now.Add(-rules.Slack).UnixMilli()}
	for r, err := range w.Commit.Pages(ctx, q, "", 0) {
		if err != nil || ctx.Err() != nil {
			return
		}
		if r.Expires != 0 || r.Type == rules.TargetKey.String() {
			continue
		}
		x, err := rules.ReadRule(r)
		if err != nil || !ended(ctx, x) {
			continue
		}
		// From now, not from when it was made: the clock may have been behind then.
		life := w.Space.Life()
		r.Expires = w.Commit.State.Latest(now).Add(max(life.Access+life.Grant, life.Foreign, rules.MaxPrepared) + rules.Slack).UnixMilli()
		c := commit.NewChange()
		if commit.Put(c, &rules.RuleForm, r, &x, r.Version) != nil { // with Q: rewriting must not move the rule behind what came since
			continue
		}
		if _, err := w.Commit.Commit(ctx, c); err != nil && !errors.Is(err, store.ErrConflict) {
			return
		}
	}
}

// PutBack writes the rules that this process holds and a store that lost its latest writes does not.
func (w *Writer) PutBack(ctx context.Context) {
	// Cleared first: what is lost while this goes on is noted again.
	w.Rules.Missing.Store(false)
	if err := w.putBack(ctx); err != nil {
		w.Rules.Missing.Store(true)
		if ctx.Err() == nil {
			w.Log.Warn("apitoken: revocations that the store lost are not all back in it", "error", err)
		}
	}
}

// putBack ends at the first error of the store. A rule that no store takes holds up none of the others.
func (w *Writer) putBack(ctx context.Context) error {
	for _, r := range w.Rules.Kept() {
		_, err := w.Commit.Store.Get(ctx, store.KindRule, r.ID)
		if err == nil {
			continue
		}
		if !errors.Is(err, store.ErrNotFound) {
			return err
		}
		x, err := rules.ReadRule(r)
		if err != nil {
			continue
		}
		c := commit.NewChange()
		if commit.Put(c, &rules.RuleForm, r, &x, store.Version{}) != nil {
			continue
		}
		w.host.Event(ctx, c, Event{Type: event.Alert, Reason: "a lost revocation was put back", Target: x.Target})
		_, err = w.Commit.Commit(ctx, c)
		switch {
		case errors.Is(err, fault.InvalidRequest):
			w.Log.Error("apitoken: a lost revocation cannot be put back; it is in force until this process ends, and in no other", "target", x.Target, "error", err)
		case err != nil && !errors.Is(err, store.ErrConflict):
			return err
		}
	}
	return nil
}

// Why tells of the newest rule that matches x: what was revoked, when, by whom and why. Empty: none is found.
func (w *Writer) Why(ctx context.Context, x *rules.Subject) string {
	kind, client := w.Rules.Hit(x), x.Client+x.AbroadClient // one of them is empty
	q := store.Query{Kind: store.KindRule}
	switch kind {
	case "":
		return ""
	case rules.TargetToken.String():
		q.Token = x.ID
	case rules.TargetGrant.String():
		q.Grant = x.Grant
	case rules.TargetSubject.String():
		q.Subject = x.Subject
	case rules.TargetClient.String():
		q.Client = client
	default:
		q.Type = kind
	}
	var newest rules.Record
	for r, err := range w.Commit.Pages(ctx, q, "", 0) {
		if err != nil {
			break
		}
		rule, err := rules.ReadRule(r)
		t := rule.Target
		other := t.Issuer != x.Issuer || t.Holder != "" && t.Holder != client || t.Kind == rules.TargetSessions && x.APIKey
		if err == nil && rule.At > newest.At && !other {
			newest = rule
		}
	}
	if newest.At == 0 {
		return ""
	}

	why := newest.Target.String() + " was revoked at " + time.UnixMilli(newest.At).UTC().Format(time.RFC3339)
	if newest.Actor != "" {
		why += " by " + newest.Actor
		var more ext
		if json.Unmarshal([]byte(newest.Ext.Ext), &more) == nil && more.ActorIssuer != "" {
			why += " of " + text.CleanText(more.ActorIssuer)
		}
	}
	if newest.Reason != "" {
		why += ": " + text.CleanText(newest.Reason)
	}
	return why
}
