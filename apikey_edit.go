// An API key's name, scopes, times, metadata and state, and how they are changed.

package apitoken

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"github.com/apitoken-go/apitoken/internal/text"
	"github.com/apitoken-go/apitoken/internal/usage"
	"github.com/apitoken-go/apitoken/store"
)

// maxMetadata bounds APIKeyRequest.Metadata, as JSON.
const maxMetadata = 2 << 10

func marshalMetadata(m map[string]string) (json.RawMessage, error) {
	if len(m) == 0 {
		return nil, nil
	}
	for name, v := range m {
		if name == "" || !text.PlainText(name) || !text.PlainText(v) {
			return nil, fail(ErrInvalidRequest, "metadata has names and values of UTF-8 without control characters")
		}
	}
	b, err := json.Marshal(m)
	if err != nil || len(b) > maxMetadata {
		return nil, fail(ErrInvalidRequest, "metadata takes %d bytes, at most %d are allowed", len(b), maxMetadata)
	}
	return b, nil
}

func (rec *apiKeyRecord) metadata() (m map[string]string) {
	if len(rec.Meta) == 0 || json.Unmarshal(rec.Meta, &m) != nil {
		return nil // it decides nothing
	}
	return m
}

// APIKeyQuery selects API keys for [APIKeys.Find].
type APIKeyQuery struct {
	Subject  string            // whose; empty: everybody's, or in a view those of its subject
	Metadata map[string]string // all of these, with these values
	Cursor   string            // next of the call before; empty: from the newest key on
	Limit    int               // keys that are looked at; outside of 1 to 1,000 it means 1,000
}

// Find returns those of the next q.Limit keys, newest first, whose Metadata are as q asks, and the cursor to go on with; next is empty
// when all were looked at.
//
// A call costs what the keys cost that it looks at, whether they are found or not: one page of the store, about 15 ms for 1,000 keys on
// bbolt, and one read for the use of each key found, two where it has MaxUses. Metadata change, so that no index knows them: name a
// Subject where there is one. A key whose record cannot be read is left out: Service.Unreadable tells of it.
func (k *APIKeys) Find(ctx context.Context, q APIKeyQuery) (found []APIKey, next string, err error) {
	defer func() { k.denied(ctx, err); k.tell(&err) }()
	if err := k.allowed(); err != nil {
		return nil, "", err
	}
	if k.view {
		if q.Subject != "" && q.Subject != k.subject {
			return nil, "", fail(ErrNotFound, "the keys of another subject")
		}
		q.Subject = k.subject
	}
	page, err := k.s.st.List(ctx, store.Query{Kind: store.KindAPIKey, Subject: q.Subject, Newest: true, Cursor: q.Cursor, Limit: q.Limit})
	switch {
	case errors.Is(err, store.ErrInvalid):
		return nil, "", &Error{Code: ErrInvalidRequest, Detail: "a Cursor that is not of Find's", Cause: err}
	case err != nil:
		return nil, "", unavailable(err, "list API keys")
	}
	for _, r := range page.Records {
		var rec apiKeyRecord
		if err := read(&apiKeyForm, r, &rec); err != nil {
			continue // Service.Unreadable tells of it
		}
		if rec.has(q.Metadata) {
			found = append(found, k.used(ctx, r.ID, k.ended(&rec, r)))
		}
	}
	if err := k.allowed(); err != nil {
		return nil, "", err
	}
	return found, page.Cursor, nil
}

// has reports whether the key's metadata hold all of want.
func (rec *apiKeyRecord) has(want map[string]string) bool {
	if len(want) == 0 {
		return true
	}
	have := rec.metadata()
	for name, v := range want {
		if x, ok := have[name]; !ok || x != v {
			return false
		}
	}
	return true
}

// State says what becomes of the key at now: "active", "expired", "revoked", "disabled", "rotated", when another key has taken its
// place and its overlap is over, or "exhausted", when its MaxUses are used up, in the present interval where UsesPer names one. Only of
// what is listed and got is it known that a key is exhausted.
func (x APIKey) State(now time.Time) string {
	switch {
	case x.Revoked:
		return "revoked"
	case !x.Replaced.IsZero() && !now.Before(x.Replaced):
		return "rotated"
	case !x.Expires.IsZero() && !now.Before(x.Expires):
		return "expired"
	case x.Disabled:
		return "disabled"
	case x.spent:
		return "exhausted"
	}
	return "active"
}

// Edit changes a key. f is given it and changes Name, Scopes, Expires, Metadata, Disabled, MaxUses, UsesPer and Rate; what else it
// changes counts for nothing. It may run more than once, and must not call this service.
//
// The host may do all of that. A caller, in a view made by For, names the key, gives it fewer scopes, an earlier end and other
// metadata: ErrDenied and ErrInvalidScope, otherwise. ErrNotFound: there is no such key, it is not the caller's, or it has ended.
//
// Earlier uses count under a new MaxUses too, within the interval that UsesPer names; other processes may have reserved a
// sixteenth of what remained under the old one, and use that up until they know of the change.
//
// A key that is disabled is refused, and works again once it is enabled. What was exchanged for it goes on until it expires: Revoke
// ends that too.
func (k *APIKeys) Edit(ctx context.Context, id string, f func(*APIKey) error) (_ APIKey, err error) {
	defer k.tell(&err)
	e := Event{}
	return k.changeAs(ctx, id, func() Event { return e }, func(rec *apiKeyRecord) error {
		was := rec.public(id)
		now := k.s.now()
		if !k.live(&was) {
			return fail(ErrNotFound, "the key has ended")
		}
		x := rec.public(id)
		if err := f(&x); err != nil {
			return err
		}
		if err := checkKeyName(x.Name); err != nil {
			return err
		}
		meta, err := marshalMetadata(x.Metadata)
		if err != nil {
			return err
		}
		scopes, err := k.editScopes(rec, x.Scopes)
		if err != nil {
			return err
		}
		if err := k.editExpiry(&was, &x, now); err != nil {
			return err
		}
		if x.MaxUses != was.MaxUses || x.UsesPer != was.UsesPer || x.Rate != was.Rate {
			if k.view {
				return fail(ErrDenied, "only the host changes how often an API key may be used")
			}
			if err := checkLimits(x.MaxUses, x.UsesPer, x.Rate); err != nil {
				return err
			}
			rec.MaxUses, rec.Per, rec.Rate = x.MaxUses, usage.Interval(x.UsesPer), x.Rate
		}
		e = Event{Reason: "changed", Scopes: scopes}
		switch {
		case x.Disabled == was.Disabled:
		case k.view:
			return fail(ErrDenied, "only the host disables and enables API keys")
		case x.Disabled:
			e.Reason, rec.Disabled = "disabled", max(now.UnixMilli(), 1)
		default:
			e.Reason, rec.Disabled = "enabled", 0
		}
		rec.Name, rec.Meta, rec.Scopes = x.Name, meta, scopes
		if !x.Expires.Equal(was.Expires) {
			rec.Expires = 0
			if !x.Expires.IsZero() {
				rec.Expires = x.Expires.UnixMilli()
			}
			if rec.Expires != 0 && rec.Replaced > rec.Expires { // its overlap ends with it
				rec.Replaced = rec.Expires
			}
		}
		return nil
	}, k.recount)
}

// recount notes when a key's record ends now, where its subject's keys are counted.
func (k *APIKeys) recount(c *change, rec *apiKeyRecord) error {
	ctx := k.s.ctx
	t, err := k.counted(ctx, rec.Subject)
	if t == nil || err != nil || !k.counts(rec, store.Record{ID: c.Puts[0].ID}) {
		return err
	}
	counted := slices.Contains(t.IDs, c.Puts[0].ID)
	t.Remove(c.Puts[0].ID)
	if !counted && t.Full() {
		return fail(ErrNotFound, "the key ended meanwhile, and others have taken its place")
	}
	t.Add(c.Puts[0].ID, c.Puts[0].Expires)
	return public(t.Put(&c.Change))
}

// editScopes is what a key may hold after an edit: for the host what it likes, for a caller no more than before.
func (k *APIKeys) editScopes(rec *apiKeyRecord, want Scopes) (Scopes, error) {
	if slices.Equal(sortedScopes(want), sortedScopes(rec.Scopes)) {
		return rec.Scopes, nil
	}
	most := k.ceiling()
	if k.view {
		most.meet("the key", rec.Scopes)
	}
	return most.take(want)
}

func (k *APIKeys) editExpiry(was, x *APIKey, now time.Time) error {
	if x.Expires.Equal(was.Expires) {
		return nil
	}
	limit := k.s.cfg.Lifetimes.APIKey
	later := !was.Expires.IsZero() && (x.Expires.IsZero() || x.Expires.After(was.Expires))
	switch {
	case k.view && later:
		return fail(ErrDenied, "only the host lets an API key live longer")
	case x.Expires.Year() > 9999:
		return fail(ErrInvalidRequest, "Expires is not a date that is written with four digits; zero is never")
	case !x.Expires.IsZero() && !x.Expires.After(now):
		return fail(ErrInvalidRequest, "Expires has passed: Revoke ends a key")
	case limit > 0 && (x.Expires.IsZero() || x.Expires.Sub(now) > limit):
		return fail(ErrInvalidRequest, "Expires is over Lifetimes.APIKey, %s", limit)
	}
	return nil
}
