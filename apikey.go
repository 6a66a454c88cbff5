// API keys: made, validated, rotated and listed. Their stored form is here too; apikey_view.go says who may, apikey_edit.go changes
// one, apikey_import.go takes those of another system.

package apitoken

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"iter"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/flightcache"
	"github.com/apitoken-go/apitoken/internal/lineage"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/internal/quota"
	"github.com/apitoken-go/apitoken/internal/record"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/internal/text"
	"github.com/apitoken-go/apitoken/internal/usage"
	"github.com/apitoken-go/apitoken/store"
)

// APIKey is a key as it can be shown after it was created.
type APIKey struct {
	ID, Subject, Name string
	// Start is the first characters of the key: fit to be shown, they hold nothing of its secret part. Keys that were made close
	// together differ in the last nine of them: show those where there is little room.
	Start            string
	Last             string // the last four characters, which hold nothing of its secret part; empty: not known
	Scopes           Scopes
	Created, Expires time.Time // Expires zero: never
	LastUsed         time.Time // to within a minute
	LastAddress      string
	UsedScopes       Scopes // as Usage.Scopes; in what is listed and got only
	Uses             uint64
	MaxUses          uint64 // together with those that it was rotated from; zero: unlimited
	UsesPer          string // as APIKeyRequest.UsesPer
	Rate             Rate
	Replaced         time.Time // when a rotated key stops working; zero: not rotated
	Predecessor      string    // the ID of the key that it was rotated from; empty: none
	Successor        string    // the ID of the key that took its place; empty: none
	Revoked          bool
	Disabled         bool              // refused until it is enabled again: see APIKeys.Edit
	Metadata         map[string]string // the host's own, for its lists; no token shows it
	spent            bool              // no use is left; in what is listed and got only
}

// APIKeyRequest asks for a key.
type APIKeyRequest struct {
	Subject string // whose key it is, a person or an organization; in a view made by For or ForOwner: empty, or the same
	Name    string // shown in lists; at most 100 bytes
	Scopes  Scopes
	Expires time.Time // zero: as Lifetimes.APIKey says
	MaxUses uint64    // zero: unlimited; else the key is good where uses are counted: in processes with the store
	// UsesPer fills MaxUses up again at the start of each "hour", "day" or "month" of UTC, whatever was left. Empty: never. A process
	// whose clock is ahead begins an interval early, for all; no interval is filled up twice.
	UsesPer string
	Rate    Rate // counted there too, in each process for itself
	Claims  any  // as Request.Claims
	// Metadata is the host's own, at most 2 KiB as JSON; a rotated key's successor has it too.
	Metadata map[string]string
}

// Rate allows Burst at once and refills at Per a time. The zero Rate does not limit. Each process counts for itself,
// so that a key may do Burst and its rate in every one of them.
type Rate struct {
	Burst int
	Per   time.Duration // for one more
}

// APIKeys are a service's keys, or those of one caller: see For.
type APIKeys struct {
	s       *core
	signing *SigningKeys
	clients *Clients
	trust   *trust        // our own issuer; set once the validator is made
	valid   *JWTValidator // ours, likewise
	keys    *keyCache
	old     *oldKeys     // nil: no keys of another program's are known
	quota   *quota.Quota // Limits.APIKeysPerSubject
	// Set in a caller's own view.
	view     bool
	caller   Token
	verified bool   // by us: it is not what NewToken made, for which the host vouches
	birth    birth  // the caller's
	subject  string // whose keys they are
	vouched  bool   // the host says that the caller may manage subject's keys: they are not its own
	held     heldScopes
	claims   map[string]json.RawMessage
	refuse   string
}

type apiKeyRecord struct {
	V        int             `json:"v"`
	Subject  string          `json:"sub"`
	Name     string          `json:"name,omitempty"`
	Start    string          `json:"start"`
	Scopes   Scopes          `json:"scopes,omitempty"`
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
	Old      *oldHash        `json:"old,omitempty"` // of an imported key
	Disabled int64           `json:"disabled,omitempty"`
	Prev     string          `json:"prev,omitempty"` // the key that it was rotated from
	Next     string          `json:"next,omitempty"` // the key that took its place
	Meta     json.RawMessage `json:"meta,omitempty"` // an object of texts
	record.Ext
}

const (
	maxKeyName  = 100
	shownLast   = 4 // characters of the checksum
	labelAPIKey = "ak1h"
	keySlack    = 30 * 24 * time.Hour // an ended key stays in lists for so long

	maxKeyLineage = 128 // names of what a key descends from, through all its rotations
)

func newAPIKeys(s *core, signing *SigningKeys, clients *Clients) *APIKeys {
	return &APIKeys{s: s, signing: signing, clients: clients, keys: newKeyCache(),
		quota: s.newQuota(store.KindAPIKey, "apikey", s.cfg.Limits.APIKeysPerSubject, func(time.Time, int64) bool { return false })}
}

func (k *APIKeys) reset() { k.keys.DropAll(nil) }

// applyRecord replaces what this process has read of the key; a key that it never saw is read when it is presented.
func (k *APIKeys) applyRecord(r store.Record) error {
	raw, err := opaque.ParseID(r.ID)
	if err != nil {
		return nil // not of our making: never presented
	}
	old, ok := k.keys.Changed(raw)
	if !ok {
		return nil
	}
	e, err := k.entry(r)
	if err != nil {
		return err
	}
	e.meter, e.use = old.meter, old.use
	if e.hash == old.hash {
		e.tag.Store(old.tag.Load())
	}
	e.d.use = e.use
	e.d.ends = old.d.ends
	e.d.ends.Store(e.end)
	k.keys.Replace(raw, e)
	return nil
}

// setAside makes a key that cannot be read be read again when it is presented, which says so.
func (k *APIKeys) setAside(r store.Record) {
	if raw, err := opaque.ParseID(r.ID); err == nil {
		k.keys.Drop(raw)
	}
}

func (rec *apiKeyRecord) public(id string) APIKey {
	x := APIKey{ID: id, Subject: rec.Subject, Name: rec.Name, Start: rec.Start, Last: rec.Last, Scopes: append(Scopes(nil), rec.Scopes...), Created: time.UnixMilli(rec.Created),
		MaxUses: rec.MaxUses, UsesPer: string(rec.Per), Rate: rec.Rate, Revoked: rec.Revoked != 0, Disabled: rec.Disabled != 0, Predecessor: rec.Prev, Successor: rec.Next, Metadata: rec.metadata()}
	if rec.Expires != 0 {
		x.Expires = time.UnixMilli(rec.Expires)
	}
	if rec.Replaced != 0 {
		x.Replaced = time.UnixMilli(rec.Replaced)
	}
	return x
}

// Create makes a key and returns its secret: shown now and never again. ErrLimited: the subject has
// Limits.APIKeysPerSubject already.
func (k *APIKeys) Create(ctx context.Context, r APIKeyRequest) (APIKey, Secret, error) {
	ctx = k.acting(ctx)
	x, secret, err := k.create(ctx, r)
	k.denied(ctx, err)
	k.tell(&err)
	return x, secret, err
}

func (k *APIKeys) create(ctx context.Context, r APIKeyRequest) (APIKey, Secret, error) {
	m := k.s.begin(ctx) // of all tries
	if err := k.allowed(); err != nil {
		return APIKey{}, Secret{}, err
	}
	if k.view {
		if r.Subject != "" && r.Subject != k.subject {
			return APIKey{}, Secret{}, fail(ErrDenied, "another's key")
		}
		r.Subject = k.subject
	}
	rec, err := k.plan(r)
	if err != nil {
		return APIKey{}, Secret{}, err
	}
	if err := k.s.audit.ready(); err != nil {
		return APIKey{}, Secret{}, err
	}
	rec.By = k.madeBy()
	if err := k.mayContinue(ctx, rec.Scopes); err != nil {
		return APIKey{}, Secret{}, err
	}
	if k.quota.Limit > 0 {
		leave, err := k.quota.Turns.Enter(ctx, r.Subject)
		if err != nil {
			return APIKey{}, Secret{}, public(err)
		}
		defer leave()
	}
	made, err := settle(ctx, k.s, m, tryAgain("other keys of this subject are made at the same time"), func(m moment) (madeKey, error) {
		if err := k.allowed(); err != nil {
			return madeKey{}, err
		}
		if err := k.note(ctx, rec); err != nil {
			return madeKey{}, err
		}
		count, err := k.room(ctx, r.Subject)
		if err != nil {
			return madeKey{}, err
		}
		return k.write(ctx, rec, m, k.from(m), count, nil, nil, "created")
	})
	if late, ok := err.(*overtaking); ok {
		err = late.why
		if !k.verified && !m.begun { // or it came before, and this process did not know: then the next one is good
			err = tryAgain("a revocation came while the key was made: ask again, if who it is for still stands")
		}
	}
	return made.key, made.secret, err
}

// madeKey is a key and its secret, shown once.
type madeKey struct {
	key    APIKey
	secret Secret
}

// plan checks a request.
func (k *APIKeys) plan(r APIKeyRequest) (*apiKeyRecord, error) {
	now := k.s.now()
	if err := checkSubject(r.Subject); err != nil {
		return nil, err
	}
	if r.Subject == k.s.cfg.FirstParty || k.clients.lookup(r.Subject) != nil {
		return nil, fail(ErrInvalidRequest, "the subject is a client's ID")
	}
	if err := checkKeyName(r.Name); err != nil {
		return nil, err
	}
	most := k.ceiling()
	scopes, err := most.take(r.Scopes)
	if err != nil {
		return nil, err
	}
	if err := checkLimits(r.MaxUses, r.UsesPer, r.Rate); err != nil {
		return nil, err
	}
	limit := k.s.cfg.Lifetimes.APIKey
	switch {
	case r.Expires.Year() > 9999:
		return nil, fail(ErrInvalidRequest, "Expires is not a date that is written with four digits; zero is never")
	case !r.Expires.IsZero() && !r.Expires.After(now):
		return nil, fail(ErrInvalidRequest, "Expires has passed")
	case limit > 0 && r.Expires.IsZero():
		r.Expires = now.Add(limit)
	case limit > 0 && r.Expires.Sub(now) > limit:
		return nil, fail(ErrInvalidRequest, "Expires is over Lifetimes.APIKey, %s", limit)
	}
	claims, err := marshalClaims(r.Claims)
	if err != nil {
		return nil, err
	}
	if k.view {
		if err := k.holdsClaims(claims); err != nil {
			return nil, err
		}
	}
	meta, err := marshalMetadata(r.Metadata)
	if err != nil {
		return nil, err
	}
	rec := &apiKeyRecord{V: 1, Subject: r.Subject, Name: r.Name, Meta: meta, Scopes: scopes, Claims: claims,
		MaxUses: r.MaxUses, Per: usage.Interval(r.UsesPer), Rate: r.Rate}
	if !r.Expires.IsZero() {
		rec.Expires = r.Expires.UnixMilli()
	}
	return rec, nil
}

func checkKeyName(name string) error {
	if len(name) > maxKeyName || !text.PlainText(name) {
		return fail(ErrInvalidRequest, "a key's name has at most %d bytes of UTF-8 without control characters", maxKeyName)
	}
	return nil
}

// checkLimits refuses limits of a key's use that make no sense.
func checkLimits(uses uint64, per string, rate Rate) error {
	switch {
	case rate.Burst < 0 || rate.Per < 0 || (rate.Burst == 0) != (rate.Per == 0):
		return fail(ErrInvalidRequest, "a Rate has both Burst and Per, or neither")
	case !usage.Interval(per).Known():
		return fail(ErrInvalidRequest, `UsesPer is "hour", "day", "month" or empty`)
	case per != "" && uses == 0:
		return fail(ErrInvalidRequest, "UsesPer without MaxUses limits nothing")
	}
	return nil
}

// counted is what a subject has; nil: there is no limit.
func (k *APIKeys) counted(ctx context.Context, subject string) (*quota.Count, error) {
	if k.quota.Limit == 0 {
		return nil, nil
	}
	t, err := k.quota.Read(ctx, subject, false, func(r store.Record) (bool, error) {
		var rec apiKeyRecord
		if err := read(&apiKeyForm, r, &rec); err != nil {
			return false, err
		}
		return k.counts(&rec, r), nil
	})
	return t, public(err)
}

// counts reports whether a key takes up room: it works, and no successor has taken its place.
func (k *APIKeys) counts(rec *apiKeyRecord, r store.Record) bool {
	x := k.ended(rec, r).public(r.ID)
	return x.Replaced.IsZero() && k.live(&x)
}

// ended is rec, and says so where a rule has ended the key.
func (k *APIKeys) ended(rec *apiKeyRecord, r store.Record) *apiKeyRecord {
	if rec.Revoked == 0 && k.s.rules.Hit(rec.ruleSubject(r.ID)) != "" {
		rec.Revoked = r.Written
	}
	return rec
}

// room counts a subject's keys and makes sure that there is room for one more.
func (k *APIKeys) room(ctx context.Context, subject string) (*quota.Count, error) {
	t, err := k.counted(ctx, subject)
	if err != nil || t == nil || !t.Full() {
		return t, err
	}
	for _, id := range slices.Clone(t.IDs) { // those that have ended since make room
		rec, r, err := k.read(ctx, id)
		switch {
		case isNotFound(err), err == nil && !k.counts(&rec, r):
			t.Remove(id)
		case err != nil:
			return nil, err
		}
	}
	if t.Full() {
		return nil, fail(ErrLimited, "the subject has %d API keys, the limit", len(t.IDs))
	}
	return t, nil
}

func (k *APIKeys) live(x *APIKey) bool {
	now := k.s.now()
	return !x.Revoked && (x.Expires.IsZero() || now.Before(x.Expires)) && (x.Replaced.IsZero() || now.Before(x.Replaced))
}

// write makes the secret and stores the key, counted in t if that is not nil, with another put where it replaces one, which is old to
// rules. *overtaking: a rule on what the key stands on came since m, and the key has ended.
func (k *APIKeys) write(ctx context.Context, plan *apiKeyRecord, m moment, from birth, t *quota.Count, also func(*change) error, old *rules.Subject, how string) (madeKey, error) {
	s := k.s
	now := s.now()
	rec := *plan
	rec.Birth = from.at
	rec.Created = now.UnixMilli()
	key := opaque.Key{ID: opaque.NewID(now)}
	rand.Read(key.Secret[:])
	text := k.signing.seal(&key, opaque.APIKey)
	rec.TagKID, rec.Hash = key.KID, s.hashAPIKey(&key)
	id := key.ID.String()
	rec.Start, rec.Last, rec.Old = opaque.Start(text), text[len(text)-shownLast:], nil
	c := s.newChange()
	if err := rec.put(c, id, store.Version{}); err != nil {
		return madeKey{}, err
	}
	if also != nil {
		if err := also(c); err != nil {
			return madeKey{}, err
		}
	}
	if t != nil {
		t.Add(id, c.Puts[0].Expires)
		if err := t.Put(&c.Change); err != nil {
			return madeKey{}, public(err)
		}
	}
	e := Event{Type: event.APIKeyChanged, OK: true, Reason: how, Subject: rec.Subject, TokenID: id, Scopes: rec.Scopes}
	k.by(&e)
	c.event(ctx, e)
	if _, err := s.commit(ctx, c); err != nil {
		return madeKey{}, err
	}
	if m.passed(s.rules) {
		own := s.rules.Hit(rec.ruleSubject(id)) != ""
		if own || old != nil && s.rules.Hit(old) != "" || k.verified && s.rules.Hit(k.caller.d.from) != "" {
			if !own { // nobody has its secret, and it would stand in lists; what cannot be written now is tried again
				_ = s.writeRule(ctx, rules.ByToken(id), false, "a revocation came while it was made", event.Revoked, nil)
			}
			return madeKey{}, &overtaking{fail(ErrRevoked, "a revocation came while the key was made"), true}
		}
	}
	return madeKey{rec.public(id), NewSecret(text)}, nil
}

func (s *core) hashAPIKey(k *opaque.Key) [32]byte {
	return opaque.Hash(labelAPIKey, []byte(s.ns), k.ID[:], k.Secret[:])
}

var apiKeyForm = record.Form[apiKeyRecord]{Kind: store.KindAPIKey, Check: func(rec *apiKeyRecord) error { return commit.First(rec.V) }}

func (rec *apiKeyRecord) put(c *change, id string, expect store.Version) error {
	r := store.Record{ID: id, Subject: rec.Subject, Token: id}
	if end := rec.end(); end != 0 {
		r.Expires = end + int64(keySlack/time.Millisecond)
	}
	return put(c, &apiKeyForm, r, rec, expect)
}

// counter names the record that counts its uses.
func (rec *apiKeyRecord) counter(id string) string {
	if rec.Counter != "" {
		return rec.Counter
	}
	return id
}

// limit is how often the key may be used, with what stands for its own ID.
func (rec *apiKeyRecord) limit(id string) usage.Limit {
	l := usage.Limit{Counter: rec.counter(id), Max: rec.MaxUses, Per: rec.Per}
	if rec.Expires != 0 { // never before the key's own record: a count that is gone would begin again
		l.Expires = rec.Expires + int64((keySlack+ruleSlack)/time.Millisecond)
	}
	return l
}

// end is when the key stops working, Unix ms; 0: never.
func (rec *apiKeyRecord) end() int64 {
	end := rec.Expires
	for _, t := range [...]int64{rec.Replaced, rec.Revoked} {
		if t != 0 && (end == 0 || t < end) {
			end = t
		}
	}
	return end
}

// alive reports whether the key works at now, as far as its record says.
func (rec *apiKeyRecord) alive(now time.Time) bool {
	end := rec.end()
	return end == 0 || now.UnixMilli() < end
}

// ruleSubject is what rules see of a key. One that asks for tokens to be minted again spares it, since nobody can mint a key again:
// what its client lost is taken from its scopes instead, by entry.
func (rec *apiKeyRecord) ruleSubject(id string) *rules.Subject {
	x := &rules.Subject{Subject: rec.Subject, ID: id, Chain: rec.By, Iat: time.UnixMilli(rec.Created),
		Pos: rules.Positions{Birth: rec.Birth, View: rec.Birth}, Renews: true}
	x.APIKey = !slices.ContainsFunc(rec.By, lineage.IsThing)
	x.Descend()
	return x
}

func (k *APIKeys) read(ctx context.Context, id string) (apiKeyRecord, store.Record, error) {
	var rec apiKeyRecord
	r, err := k.s.get(ctx, store.KindAPIKey, id)
	if err != nil {
		return rec, r, err
	}
	if err := read(&apiKeyForm, r, &rec); err != nil {
		return rec, r, err
	}
	if k.view && rec.Subject != k.subject {
		return rec, r, fail(ErrNotFound, "API key %s is another subject's", id)
	}
	k.ended(&rec, r)
	return rec, r, nil
}

// Get returns one key. ErrNotFound: there is none, or it is not the caller's.
func (k *APIKeys) Get(ctx context.Context, id string) (_ APIKey, err error) {
	defer func() { k.denied(ctx, err); k.tell(&err) }()
	if err := k.allowed(); err != nil {
		return APIKey{}, err
	}
	rec, _, err := k.read(ctx, id)
	if err != nil {
		return APIKey{}, err
	}
	return k.used(ctx, id, &rec), nil
}

// used is what a record says of a key, with its use.
func (k *APIKeys) used(ctx context.Context, id string, rec *apiKeyRecord) APIKey {
	x := rec.public(id)
	if x.MaxUses > 0 {
		spent, err := k.s.audit.uses.Exhausted(ctx, rec.limit(id))
		x.spent = err == nil && spent
	}
	if u, err := k.s.audit.usage(ctx, usage.APIKey, x.ID); err == nil {
		x.Uses, x.LastUsed, x.UsedScopes = u.Count, u.Last, u.Scopes
		if len(u.Addresses) > 0 {
			x.LastAddress = u.Addresses[0]
		}
	}
	return x
}

// List lists keys, newest first: also those that have ended, for some time.
func (k *APIKeys) List(ctx context.Context, p Page) iter.Seq2[APIKey, error] {
	return k.list(ctx, k.subject, p, true)
}

// Of lists the keys of one subject.
func (k *APIKeys) Of(ctx context.Context, subject string, p Page) iter.Seq2[APIKey, error] {
	if k.view && subject != k.subject || subject == "" {
		return func(yield func(APIKey, error) bool) {
			err := fail(ErrNotFound, "the keys of another subject")
			k.denied(ctx, err)
			yield(APIKey{}, err)
		}
	}
	return k.list(ctx, subject, p, true)
}

// list tells of their use only where that is asked for: it costs a read for each. The caller of a view is asked about before each:
// a list may be read for long.
func (k *APIKeys) list(ctx context.Context, subject string, p Page, use bool) iter.Seq2[APIKey, error] {
	return func(yield func(APIKey, error) bool) {
		if err := k.allowed(); err != nil {
			k.denied(ctx, err)
			yield(APIKey{}, err)
			return
		}
		for r, err := range k.s.pages(ctx, store.Query{Kind: store.KindAPIKey, Subject: subject, Newest: true}, p) {
			if err := k.allowed(); err != nil {
				k.denied(ctx, err)
				yield(APIKey{}, err)
				return
			}
			var rec apiKeyRecord
			if err == nil {
				err = read(&apiKeyForm, r, &rec)
			}
			if err != nil {
				if !yield(APIKey{}, err) {
					return
				}
				continue
			}
			x := k.ended(&rec, r).public(r.ID)
			if use {
				x = k.used(ctx, r.ID, &rec)
			}
			if !yield(x, nil) {
				return
			}
		}
	}
}

// change rewrites a key in one compare-and-swap.
func (k *APIKeys) change(ctx context.Context, id, how string, f func(*apiKeyRecord) error) (x APIKey, err error) {
	return k.changeAs(ctx, id, func() Event { return Event{Reason: how} }, f, nil)
}

// changeAs is change with an event that is asked for once f has run, and with what also adds, nil for nothing.
func (k *APIKeys) changeAs(ctx context.Context, id string, how func() Event, f func(*apiKeyRecord) error, also func(*change, *apiKeyRecord) error) (x APIKey, err error) {
	ctx = k.acting(ctx)
	defer func() { k.denied(ctx, err) }()
	for range refreshTries {
		if err := k.allowed(); err != nil {
			return APIKey{}, err
		}
		rec, r, err := k.read(ctx, id)
		if err != nil {
			return APIKey{}, err
		}
		ended := rec.end()
		if err := f(&rec); err != nil {
			return APIKey{}, err
		}
		if end := rec.end(); ended != 0 && (end == 0 || end > ended) { // a rule on what it descends from must be kept for longer
			if err := k.note(ctx, &rec); errors.Is(err, store.ErrConflict) {
				continue
			} else if err != nil {
				return APIKey{}, err
			}
		}
		c := k.s.newChange()
		if err := rec.put(c, id, r.Version); err != nil {
			return APIKey{}, err
		}
		if also != nil {
			if err := also(c, &rec); err != nil {
				return APIKey{}, err
			}
		}
		e := how()
		e.Type, e.OK, e.Subject, e.TokenID = event.APIKeyChanged, true, rec.Subject, id
		k.by(&e)
		c.event(ctx, e)
		_, err = k.s.commit(ctx, c)
		if errors.Is(err, store.ErrConflict) {
			continue
		}
		return k.used(ctx, id, &rec), err
	}
	return APIKey{}, tryAgain("parallel changes of API key %s", id)
}

// Rename gives a key another name.
func (k *APIKeys) Rename(ctx context.Context, id, name string) (_ APIKey, failed error) {
	defer k.tell(&failed)
	if err := checkKeyName(name); err != nil {
		k.denied(ctx, err)
		return APIKey{}, err
	}
	return k.change(ctx, id, "renamed", func(rec *apiKeyRecord) error { rec.Name = name; return nil })
}

// Rotate makes the successor, with an ID and a secret of its own; the old secret works for overlap longer, never past
// its expiry. The successor expires when the old one would have.
func (k *APIKeys) Rotate(ctx context.Context, id string, overlap time.Duration) (_ APIKey, _ Secret, err error) {
	defer func() { k.denied(ctx, err); k.tell(&err) }()
	ctx = k.acting(ctx)
	if overlap < 0 {
		return APIKey{}, Secret{}, fail(ErrInvalidRequest, "negative overlap")
	}
	if err := k.allowed(); err != nil {
		return APIKey{}, Secret{}, err
	}
	if err := k.s.audit.ready(); err != nil {
		return APIKey{}, Secret{}, err
	}
	made, err := settle(ctx, k.s, k.s.begin(ctx), tryAgain("parallel changes of API key %s", id), func(m moment) (madeKey, error) {
		if err := k.allowed(); err != nil {
			return madeKey{}, err
		}
		rec, r, err := k.read(ctx, id)
		if err != nil {
			return madeKey{}, err
		}
		if err := k.mayContinue(ctx, rec.Scopes); err != nil {
			return madeKey{}, err
		}
		now := k.s.now()
		x := rec.public(id)
		if !k.live(&x) || rec.Replaced != 0 {
			return madeKey{}, fail(ErrNotFound, "the key has ended or was rotated before")
		}
		most := k.ceiling()
		if k.view {
			if !most.covers(rec.Scopes) {
				return madeKey{}, fail(ErrInvalidScope, "%s may not have all that the key holds", most.by)
			}
			if err := k.holdsClaims(rec.Claims); err != nil {
				return madeKey{}, err
			}
		}
		next := rec
		next.Prev = id
		most.meet("the key", rec.Scopes)
		next.Scopes = most.all()
		if rec.MaxUses > 0 {
			// Both count together: while both work, neither adds to what one of them might do.
			next.Counter = rec.counter(id)
			spent, err := k.s.audit.uses.Exhausted(ctx, rec.limit(id))
			if err != nil {
				return madeKey{}, public(err)
			}
			if spent && rec.Per == "" {
				return madeKey{}, fail(ErrLimited, "the key has no uses left")
			}
		}
		rec.Replaced = max(now.Add(overlap).UnixMilli(), 1)
		if rec.Expires != 0 {
			rec.Replaced = min(rec.Replaced, rec.Expires)
		}
		// The successor descends from the key and from whoever rotates it: a rule that matches either matches it, whenever it came.
		from := rec.birth()
		if k.verified {
			if !k.vouched {
				from = from.earlier(k.birth)
			}
			next.By = slices.Compact(slices.Sorted(slices.Values(slices.Concat(rec.By, k.madeBy()))))
			if len(next.By) > maxKeyLineage {
				return madeKey{}, fail(ErrInvalidRequest, "the key was rotated by too many different tokens: make a new one")
			}
			if err := k.note(ctx, &next); err != nil {
				return madeKey{}, err
			}
		}
		t, err := k.counted(ctx, rec.Subject)
		if err != nil {
			return madeKey{}, err
		}
		if t != nil { // its successor takes its place
			t.Remove(id)
		}
		return k.write(ctx, &next, m, from, t, func(c *change) error {
			rec.Next = c.Puts[0].ID
			return rec.put(c, id, r.Version)
		}, rec.ruleSubject(id), "rotated from "+id)
	})
	if late, ok := err.(*overtaking); ok {
		if err = k.allowed(); err == nil {
			err = late.why
		}
	}
	return made.key, made.secret, err
}

// Revoke ends a key at once. ErrNotFound: there is none, or it is not the caller's.
func (k *APIKeys) Revoke(ctx context.Context, id, reason string) (err error) {
	ctx = k.acting(ctx)
	defer func() { k.denied(ctx, err); k.tell(&err) }()
	if err := k.allowed(); err != nil {
		return err
	}
	if _, _, err := k.read(ctx, id); err != nil && (isNotFound(err) || k.view) {
		return err
	}
	return k.s.end(ctx, rules.ByToken(id), reason)
}

// identify is the ID of an API key of ours, ended or not.
func (k *APIKeys) identify(ctx context.Context, text string) (string, error) {
	key, ours, err := k.signing.readMade(ctx, text, opaque.APIKey)
	switch {
	case err != nil:
		return "", err
	case !ours:
		return "", fail(ErrNotFound, "not an API key that this service made")
	}
	rec, _, err := k.read(ctx, key.ID.String())
	if err != nil {
		return "", err
	}
	if h := k.s.hashAPIKey(key); subtle.ConstantTimeCompare(h[:], rec.Hash[:]) != 1 {
		return "", fail(ErrNotFound, "not an API key of this service")
	}
	return key.ID.String(), nil
}

// knownKey is an API key that this process has read.
type knownKey struct {
	d       *tokenData
	hash    [32]byte
	makers  []maker
	end     int64 // Unix ms, 0: never
	rule    *rules.Subject
	version atomic.Uint64 // of the rules
	use     *usage.Counter
	meter   *usage.Meter
	rate    Rate
	limit   usage.Limit
	old     *oldHash                 // of an imported key
	proved  atomic.Pointer[[32]byte] // our hash of the text that the host's hash was found to be of
	// tag is the kid and the tag of the key's text, once they were verified: a known key then needs no MAC.
	tag atomic.Pointer[keyTag]
}

// keyTag is what the hash in a key's record does not cover of its text.
type keyTag [20]byte

func tagOf(key *opaque.Key) (t keyTag) {
	copy(t[:4], key.KID[:])
	copy(t[4:], key.Tag[:])
	return t
}

// shown reports whether key is, in every byte, the text that was verified before.
func (e *knownKey) shown(key *opaque.Key, hash *[32]byte) bool {
	known := e.tag.Load()
	if known == nil {
		return false
	}
	tag := tagOf(key)
	return subtle.ConstantTimeCompare(hash[:], e.hash[:])&subtle.ConstantTimeCompare(tag[:], known[:]) == 1
}

// maker is a registered client by whose token a key was made or rotated, as it was when the key was read: the key holds no more
// than its client may.
type maker struct {
	id     string
	client *knownClient
}

// outdated reports that one of the key's clients has changed since it was read.
func (e *knownKey) outdated(clients *Clients) bool {
	for _, m := range e.makers {
		if clients.lookup(m.id) != m.client {
			return true
		}
	}
	return false
}

func (k *APIKeys) entry(r store.Record) (*knownKey, error) {
	var rec apiKeyRecord
	if err := read(&apiKeyForm, r, &rec); err != nil {
		return nil, err
	}
	var makers []maker
	for _, s := range rec.By {
		id, ok := strings.CutPrefix(s, rules.ChainClient)
		if !ok || id == k.s.cfg.FirstParty {
			continue
		}
		m := maker{id, k.clients.lookup(id)}
		if makers = append(makers, m); m.client != nil {
			rec.Scopes = sortedScopes(intersectScopes(rec.Scopes, m.client.Client.Scopes))
		}
	}
	spec := TokenSpec{APIKey: true, ID: r.ID, Issuer: k.s.cfg.Issuer, Subject: rec.Subject, Audiences: []string{k.s.cfg.Audience},
		Scopes: rec.Scopes, IssuedAt: time.UnixMilli(rec.Created)}
	end := rec.end()
	if d := rec.Disabled; d != 0 && (end == 0 || d < end) { // for as long as it is
		end = d
	}
	if end != 0 { // also what Rotate left it
		spec.ExpiresAt = time.UnixMilli(end)
	}
	e := &knownKey{hash: rec.Hash, old: rec.Old, end: end, rule: rec.ruleSubject(r.ID), limit: rec.limit(r.ID), rate: rec.Rate, meter: usage.NewMeter(),
		makers: makers}
	e.d = makeToken(spec, rec.Claims).d
	e.d.ends = new(atomic.Int64)
	e.d.ends.Store(end)
	e.d.from, e.d.by, e.d.counted = e.rule, k.valid, rec.MaxUses > 0
	e.use = k.s.audit.uses.Counter(usage.APIKey, r.ID)
	e.d.use = e.use
	return e, nil
}

// validate is JWTValidator's way for opaque tokens. A known key costs one hash and no I/O.
func (k *APIKeys) validate(ctx context.Context, c Credential, tr *trace) (Token, error) {
	var key opaque.Key
	if err := opaque.DecodeKeyInto(&key, c.Token, k.s.cfg.Prefix, opaque.APIKey); err != nil {
		return Token{}, tr.no("structure", &Error{Code: ErrInvalidToken, Detail: "malformed API key", Cause: err})
	}
	tr.ok("structure", "API key")
	if c.DPoP != "" {
		return Token{}, tr.no("binding", fail(ErrInvalidToken, "API keys are not bound to keys"))
	}
	hash := k.s.hashAPIKey(&key)
	e, _ := k.keys.Get(key.ID)
	if e != nil && e.makers != nil && e.outdated(k.clients) {
		k.keys.Drop(key.ID)
		e = nil
	}
	if e == nil || !e.shown(&key, &hash) {
		// Junk ends here, without a store read and in the same time whether its ID is a key's or not.
		ours, err := k.signing.made(ctx, &key, opaque.APIKey)
		if err == nil && !ours {
			return Token{}, tr.no("tag", fail(ErrInvalidToken, "an API key that this service did not make"))
		}
		if err == nil && e == nil {
			e, err = k.load(ctx, key.ID)
		}
		if err != nil {
			return Token{}, tr.no("lookup", asError(err, "read API key"))
		}
		if subtle.ConstantTimeCompare(hash[:], e.hash[:]) != 1 {
			return Token{}, tr.no("secret", fail(ErrInvalidToken, "wrong secret"))
		}
		tag := tagOf(&key)
		e.tag.Store(&tag)
	}
	tr.ok("secret", "hash equal")
	return k.decide(ctx, e, tr)
}

// decide says yes or no to a key whose secret was found good.
func (k *APIKeys) decide(ctx context.Context, e *knownKey, tr *trace) (Token, error) {
	if tr != nil {
		tr.d = e.d
	}
	w, rules := k.trust.look(), k.s.rules // the view first: its rules are all among those that are looked at
	if version := rules.Version.Load(); e.version.Load() != version {
		if rule := rules.Hit(e.rule); rule != "" {
			return Token{d: e.d}, tr.no("revocation", fail(ErrRevoked, "a rule on its %s", rule))
		}
		e.version.Store(version)
	}
	tr.ok("revocation", "no rule")
	now := k.s.now()
	if e.end != 0 && now.UnixMilli() >= e.end {
		return Token{d: e.d}, tr.no("expiry", fail(ErrExpired, "the key has ended or is disabled"))
	}
	f := k.trust.freshness(w, now)
	if f.Stale { // never past the bound for opaque tokens
		k.s.state.Wake()
		return Token{d: e.d}, tr.no("freshness", tryAgain("the view of revocations is older than MaxStaleness"))
	}
	if tr != nil {
		tr.ok("freshness", f.Age.String())
	}
	if tr == nil {
		e.use.Hit(now, addressOf(ctx))
	}
	return Token{d: e.d, fresh: f}, nil
}

// keyCache is this process's memory of API keys.
type keyCache = flightcache.Cache[opaque.ID, *knownKey]

const (
	keysPerShard   = 2048 // of 64: about 130,000 keys in all, of some 700 bytes each
	absentPerShard = 256
	absentFor      = 5 * time.Second
	keyReadTimeout = 2 * time.Second
)

func newKeyCache() *keyCache {
	return flightcache.New(flightcache.Config[opaque.ID, *knownKey]{Shard: func(id opaque.ID) byte { return id[15] },
		Values: keysPerShard, Absents: absentPerShard, Repeat: 3})
}

// load reads a key when it is first presented, once however many callers ask. An ID that no key has is remembered for
// a moment.
func (k *APIKeys) load(ctx context.Context, raw opaque.ID) (*knownKey, error) {
	now := k.s.now()
	e, err := k.keys.Load(ctx, raw, now, func() (func() (*knownKey, error), error) {
		return func() (*knownKey, error) {
			ctx, cancel := context.WithTimeout(k.s.ctx, keyReadTimeout)
			defer cancel()
			r, err := k.s.st.Get(ctx, store.KindAPIKey, raw.String())
			switch {
			case errors.Is(err, store.ErrNotFound):
				return nil, &flightcache.Absent{Err: fail(ErrInvalidToken, "no such API key"), Until: now.Add(absentFor)}
			case err != nil:
				return nil, unavailable(err, "read API key")
			}
			return k.entry(r)
		}, nil
	})
	if err != nil {
		return nil, asError(err, "read API key")
	}
	return e, nil
}

func (rec *apiKeyRecord) birth() birth { return birth{rec.Birth} }

// known is a key that this process has in memory; nil: none.
func (k *APIKeys) known(id string) *knownKey {
	raw, err := opaque.ParseID(id)
	if err != nil {
		return nil
	}
	e, _ := k.keys.Get(raw)
	return e
}

func (k *APIKeys) consume(ctx context.Context, id string) error {
	raw, err := opaque.ParseID(id)
	if err != nil {
		return fail(ErrInvalidToken, "no such API key")
	}
	e, ok := k.keys.Get(raw)
	if !ok {
		if e, err = k.load(ctx, raw); err != nil {
			return err
		}
	}
	if ok, wait := e.meter.Take(k.s.now(), e.rate.Burst, e.rate.Per); !ok {
		return &Error{Code: ErrLimited, RetryAfter: wait, Detail: "the API key's rate"}
	}
	if e.limit.Max == 0 {
		return nil
	}

	ctx, cancel := context.WithTimeout(ctx, commit.Timeout) // all who wait for a store that hangs wait no longer than one
	defer cancel()
	return public(e.meter.Use(ctx, k.s.audit.uses, e.limit))
}
