// The stored record of an API key.

package apikey

import (
	"encoding/json"
	"slices"
	"time"

	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/lineage"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/internal/record"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/internal/text"
	"github.com/apitoken-go/apitoken/internal/usage"
	"github.com/apitoken-go/apitoken/store"
)

// Record is what a store holds of a key.
type Record struct {
	V        int             `json:"v"`
	Subject  string          `json:"sub"`
	Name     string          `json:"name,omitempty"`
	Start    string          `json:"start"`
	Scopes   []string        `json:"scopes,omitempty"`
	Claims   json.RawMessage `json:"claims,omitempty"`
	Created  int64           `json:"created"` // Unix ms
	Expires  int64           `json:"expires,omitempty"`
	Replaced int64           `json:"replaced,omitempty"`
	Revoked  int64           `json:"revoked,omitempty"`
	MaxUses  uint64          `json:"max_uses,omitempty"`
	Per      usage.Interval  `json:"per,omitempty"`     // in which MaxUses are filled up
	Counter  string          `json:"counter,omitempty"` // of its uses: the ID of the key that it was rotated from; empty: its own
	Rate     Rate            `json:"rate,omitzero"`
	Birth    store.Position  `json:"birth"`
	By       []string        `json:"by,omitempty"` // as a token's chain: the client and the signing key of the token by which it was made
	Hash     [32]byte        `json:"h"`
	TagKID   [4]byte         `json:"tag"`
	Last     string          `json:"last,omitempty"`
	Old      *OldHash        `json:"old,omitempty"` // of an imported key
	Disabled int64           `json:"disabled,omitempty"`
	Prev     string          `json:"prev,omitempty"` // the key that it was rotated from
	Next     string          `json:"next,omitempty"` // the key that took its place
	Meta     json.RawMessage `json:"meta,omitempty"` // an object of texts
	record.Ext
}

// Rate is how often a key may be used: Burst at once, and one more after each Per. Its fields are named in stored records.
type Rate struct {
	Burst int
	Per   time.Duration
}

// OldHash is the hash of an imported key.
type OldHash struct {
	Form string `json:"form"`
	Hash string `json:"hash,omitempty"` // the host's; empty: the record's own hash is of the key, as it was presented first
	Sum  string `json:"sum"`            // of the host's hash: to know it again
}

// Form is how a Record is stored.
var Form = record.Form[Record]{Kind: store.KindAPIKey, Check: func(rec *Record) error { return commit.First(rec.V) }}

const (
	Slack = 30 * 24 * time.Hour // an ended key stays in lists, and its record in the store, for so long

	maxName     = 100
	maxBy       = 128     // of what a key descends from, through all its rotations
	maxMetadata = 2 << 10 // bytes of JSON
	shownLast   = 4       // characters of the checksum
	labelKey    = "ak1h"
)

// Read is a record in view of the rules: a key that one of them has ended is revoked. fault.Unavailable: it is damaged, or of a newer
// version.
func Read(r store.Record, book *rules.Book) (rec Record, err error) {
	if err = commit.Read(&Form, r, &rec); err == nil && rec.Revoked == 0 && book.Hit(rec.Rule(r.ID)) != "" {
		rec.Revoked = max(r.Written, 1)
	}
	return rec, err
}

// Hash is what a record holds of a key of ours.
func Hash(namespace string, key *opaque.Key) [32]byte {
	return opaque.Hash(labelKey, []byte(namespace), key.ID[:], key.Secret[:])
}

// Issue makes rec the record of a fresh key, whose text is given. It is none of an imported key any more.
func (rec *Record) Issue(namespace, text string, key *opaque.Key, now time.Time) {
	rec.Created, rec.Old = now.UnixMilli(), nil
	rec.TagKID, rec.Hash = key.KID, Hash(namespace, key)
	rec.Start, rec.Last = opaque.Start(text), text[len(text)-shownLast:]
}

// Put adds the record to c. fault.InvalidRequest: nobody could read it back.
func (rec *Record) Put(c *commit.Change, id string, expect store.Version) error {
	return commit.Put(c, &Form, store.Record{ID: id, Subject: rec.Subject, Token: id, Expires: rec.Kept()}, rec, expect)
}

// End is when the key stops working, Unix ms; 0: never.
func (rec *Record) End() int64 {
	end := rec.Expires
	for _, t := range [...]int64{rec.Replaced, rec.Revoked} {
		if t != 0 && (end == 0 || t < end) {
			end = t
		}
	}
	return end
}

// Live reports whether the key works at now, if it is not disabled.
func (rec *Record) Live(now time.Time) bool {
	end := rec.End()
	return rec.Revoked == 0 && (end == 0 || now.UnixMilli() < end)
}

// Kept is until when the record is kept, Unix ms; 0: for ever.
func (rec *Record) Kept() int64 {
	end := rec.End()
	if end != 0 {
		end += Slack.Milliseconds()
	}
	return end
}

// Counts reports whether the key takes up room under a limit at now: it works, and no successor has taken its place.
func (rec *Record) Counts(now time.Time) bool { return rec.Replaced == 0 && rec.Live(now) }

// CountedBy is the ID of the record that counts the key's uses. Keys that were rotated from one another count together.
func (rec *Record) CountedBy(id string) string {
	if rec.Counter != "" {
		return rec.Counter
	}
	return id
}

// Limit is how often the key with this ID may be used.
func (rec *Record) Limit(id string) usage.Limit {
	l := usage.Limit{Counter: rec.CountedBy(id), Max: rec.MaxUses, Per: rec.Per}
	if rec.Expires != 0 { // never before the key's own record: a count that is gone would begin again
		l.Expires = rec.Expires + (Slack + rules.Slack).Milliseconds()
	}
	return l
}

// Rule is what rules see of the key with this ID. A rule that asks for tokens to be minted again spares it, since nobody can mint a
// key again.
func (rec *Record) Rule(id string) *rules.Subject {
	x := &rules.Subject{Subject: rec.Subject, ID: id, Chain: rec.By, Iat: time.UnixMilli(rec.Created),
		Pos: rules.Positions{Birth: rec.Birth, View: rec.Birth}, Renews: true}
	x.APIKey = !slices.ContainsFunc(rec.By, lineage.IsThing)
	x.Descend()
	return x
}

// Metadata are the host's own of the key; nil: there are none.
func (rec *Record) Metadata() (m map[string]string) {
	if len(rec.Meta) == 0 || json.Unmarshal(rec.Meta, &m) != nil {
		return nil // they decide nothing
	}
	return m
}

// Has reports whether the key's metadata hold all of want.
func (rec *Record) Has(want map[string]string) bool {
	if len(want) == 0 {
		return true
	}
	have := rec.Metadata()
	for name, v := range want {
		if x, ok := have[name]; !ok || x != v {
			return false
		}
	}
	return true
}

// SetMetadata takes the host's. fault.InvalidRequest.
func (rec *Record) SetMetadata(m map[string]string) error {
	rec.Meta = nil
	if len(m) == 0 {
		return nil
	}
	for name, v := range m {
		if name == "" || !text.PlainText(name) || !text.PlainText(v) {
			return fault.Fail(fault.InvalidRequest, "metadata has names and values of UTF-8 without control characters")
		}
	}
	b, err := json.Marshal(m)
	if err != nil || len(b) > maxMetadata {
		return fault.Fail(fault.InvalidRequest, "metadata takes %d bytes, at most %d are allowed", len(b), maxMetadata)
	}
	rec.Meta = b
	return nil
}

// SetName takes a name. fault.InvalidRequest.
func (rec *Record) SetName(name string) error {
	if len(name) > maxName || !text.PlainText(name) {
		return fault.Fail(fault.InvalidRequest, "a key's name has at most %d bytes of UTF-8 without control characters", maxName)
	}
	rec.Name = name
	return nil
}

// SetLimits takes limits of the key's use. fault.InvalidRequest: they make no sense.
func (rec *Record) SetLimits(uses uint64, per string, rate Rate) error {
	switch {
	case rate.Burst < 0 || rate.Per < 0 || (rate.Burst == 0) != (rate.Per == 0):
		return fault.Fail(fault.InvalidRequest, "a Rate has both Burst and Per, or neither")
	case !usage.Interval(per).Known():
		return fault.Fail(fault.InvalidRequest, `UsesPer is "hour", "day", "month" or empty`)
	case per != "" && uses == 0:
		return fault.Fail(fault.InvalidRequest, "UsesPer without MaxUses limits nothing")
	}
	rec.MaxUses, rec.Per, rec.Rate = uses, usage.Interval(per), rate
	return nil
}

// SetExpires takes an end that is still to come, at most life from now; zero: never, for either. An overlap that a rotation left
// ends with it. fault.InvalidRequest.
func (rec *Record) SetExpires(at, now time.Time, life time.Duration) error {
	switch {
	case at.Year() > 9999:
		return fault.Fail(fault.InvalidRequest, "Expires is not a date that is written with four digits; zero is never")
	case !at.IsZero() && !at.After(now):
		return fault.Fail(fault.InvalidRequest, "Expires has passed: Revoke ends a key")
	case life > 0 && (at.IsZero() || at.Sub(now) > life):
		return fault.Fail(fault.InvalidRequest, "Expires is over Lifetimes.APIKey, %s", life)
	}
	rec.Expires = 0
	if !at.IsZero() {
		rec.Expires = at.UnixMilli()
		rec.Replaced = min(rec.Replaced, rec.Expires)
	}
	return nil
}

// Rotate makes the record of the key's successor, which descends from the key with this ID and from by. The key itself stops working at
// until. fault.InvalidRequest: it descends from too many.
func (rec *Record) Rotate(id string, by []string, until time.Time) (*Record, error) {
	next := *rec
	next.Prev = id
	if rec.MaxUses > 0 { // both count together: while both work, neither adds to what one of them might do
		next.Counter = rec.CountedBy(id)
	}
	if len(by) > 0 {
		next.By = slices.Compact(slices.Sorted(slices.Values(slices.Concat(rec.By, by))))
	}
	if len(next.By) > maxBy {
		return nil, fault.Fail(fault.InvalidRequest, "the key was rotated by too many different tokens: make a new one")
	}
	rec.Replace(until)
	return &next, nil
}

// Replace makes the key stop working at a time, or when it expires, since its successor takes its place.
func (rec *Record) Replace(at time.Time) {
	rec.Replaced = max(at.UnixMilli(), 1)
	if rec.Expires != 0 {
		rec.Replaced = min(rec.Replaced, rec.Expires)
	}
}
