// API keys as they come to be and change: created, rotated, edited, ended, taken over from another program. apikey.go says who may see one.

package apitoken

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"slices"
	"time"

	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/internal/apikey"
	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/lineage"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/internal/quota"
	"github.com/apitoken-go/apitoken/internal/revoke"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/store"
)

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

// ImportedKey is an API key of another program's, as [APIKeys.Import] takes it.
type ImportedKey struct {
	APIKeyRequest
	Form    string    // of Hash: a name in Config.KeyHashes
	Hash    string    // as the program kept it
	Lookup  string    // what the key is found by, where the Form does not make that of Hash: for keyhash.ByStart the key's first bytes
	Start   string    // the first characters, to be shown; empty: Lookup, if the program kept that
	Last    string    // the last ones, at most 8; empty: unknown
	Created time.Time // zero: now
}

// Format keeps the hash out of logs.
func (k ImportedKey) Format(f fmt.State, _ rune) { io.WriteString(f, k.LogValue().String()) }

// LogValue implements slog.LogValuer.
func (k ImportedKey) LogValue() slog.Value {
	return slog.GroupValue(slog.String("subject", k.Subject), slog.String("name", k.Name), slog.String("form", k.Form))
}

// Create makes a key and returns its secret: shown now and never again. ErrLimited: the subject has
// Limits.APIKeysPerSubject already.
func (k *APIKeys) Create(ctx context.Context, r APIKeyRequest) (_ APIKey, _ Secret, err error) {
	ctx = k.acting(ctx)
	defer k.done(ctx, &err)
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
	if err := k.s.ready(); err != nil {
		return APIKey{}, Secret{}, err
	}
	rec.By = k.madeBy()
	if err := k.mayContinue(ctx, scopesOf(rec.Scopes)); err != nil {
		return APIKey{}, Secret{}, err
	}
	leave, err := k.room.Enter(ctx, r.Subject)
	if err != nil {
		return APIKey{}, Secret{}, err
	}
	defer leave()
	made, err := settle(ctx, k.s, m, "other keys of this subject are made at the same time", func(m moment) (madeKey, error) {
		if err := k.allowed(); err != nil {
			return madeKey{}, err
		}
		if err := k.note(ctx, rec); err != nil {
			return madeKey{}, err
		}
		count, err := k.room.More(ctx, r.Subject)
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

// plan checks a request.
func (k *APIKeys) plan(r APIKeyRequest) (*apikey.Record, error) {
	now := k.s.now()
	if err := checkSubject(r.Subject); err != nil {
		return nil, err
	}
	if r.Subject == k.s.cfg.FirstParty || k.clients.lookup(r.Subject) != nil {
		return nil, fail(ErrInvalidRequest, "the subject is a client's ID")
	}
	most := k.ceiling()
	scopes, err := most.take(r.Scopes)
	if err != nil {
		return nil, err
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
	life := k.s.cfg.Lifetimes.APIKey
	if r.Expires.IsZero() && life > 0 {
		r.Expires = now.Add(life)
	}
	rec := &apikey.Record{V: 1, Subject: r.Subject, Scopes: scopes.texts(), Claims: claims}
	return rec, cmp.Or(rec.SetName(r.Name), rec.SetLimits(r.MaxUses, r.UsesPer, apikey.Rate(r.Rate)), rec.SetExpires(r.Expires, now, life),
		rec.SetMetadata(r.Metadata))
}

// madeKey is a key and its secret, shown once.
type madeKey struct {
	key    APIKey
	secret Secret
}

// write makes the secret and stores the key, counted in t if that is not nil, with another put where it replaces one, which is old to
// rules. *overtaking: a rule on what the key stands on came since m, and the key has ended.
func (k *APIKeys) write(ctx context.Context, plan *apikey.Record, m moment, from birth, t *quota.Count, also func(*change) error, old *rules.Subject, how string) (madeKey, error) {
	s, rec := k.s, *plan
	now := s.now()
	key := opaque.Key{ID: opaque.NewID(now)}
	rand.Read(key.Secret[:])
	text := k.signing.ring.Encode(&key, opaque.APIKey)
	rec.Issue(s.ns, text, &key, now)
	rec.Birth = from.at
	id := key.ID.String()
	c := s.newChange()
	if err := rec.Put(&c.Change, id, store.Version{}); err != nil {
		return madeKey{}, err
	}
	if also != nil {
		if err := also(c); err != nil {
			return madeKey{}, err
		}
	}
	if t != nil {
		t.Add(id, rec.Kept())
		if err := t.Put(&c.Change); err != nil {
			return madeKey{}, err
		}
	}
	e := Event{Type: event.APIKeyChanged, OK: true, Reason: how, Subject: rec.Subject, TokenID: id, Scopes: scopesOf(rec.Scopes)}
	k.by(&e)
	c.event(ctx, e)
	if _, err := s.commit(ctx, c); err != nil {
		return madeKey{}, err
	}
	if m.passed(s.rules) {
		own := s.rules.Hit(rec.Rule(id)) != ""
		if own || old != nil && s.rules.Hit(old) != "" || k.verified && s.rules.Hit(k.caller.d.from) != "" {
			if !own { // nobody has its secret, and it would stand in lists; what cannot be written now is tried again
				_ = s.revoke.Write(ctx, nil, revoke.Rule{Target: rules.ByToken(id), Reason: "a revocation came while it was made", Type: event.Revoked})
			}
			return madeKey{}, &overtaking{fail(ErrRevoked, "a revocation came while the key was made"), true}
		}
	}
	return madeKey{shownKey(id, &rec), NewSecret(text)}, nil
}

// Rotate makes the successor, with an ID and a secret of its own; the old secret works for overlap longer, never past
// its expiry. The successor expires when the old one would have.
func (k *APIKeys) Rotate(ctx context.Context, id string, overlap time.Duration) (_ APIKey, _ Secret, err error) {
	ctx = k.acting(ctx)
	defer k.done(ctx, &err)
	if overlap < 0 {
		return APIKey{}, Secret{}, fail(ErrInvalidRequest, "negative overlap")
	}
	if err := k.allowed(); err != nil {
		return APIKey{}, Secret{}, err
	}
	if err := k.s.ready(); err != nil {
		return APIKey{}, Secret{}, err
	}
	made, err := settle(ctx, k.s, k.s.begin(ctx), "parallel changes of API key "+id, func(m moment) (madeKey, error) {
		if err := k.allowed(); err != nil {
			return madeKey{}, err
		}
		rec, r, err := k.read(ctx, id)
		if err != nil {
			return madeKey{}, err
		}
		scopes := scopesOf(rec.Scopes)
		if err := k.mayContinue(ctx, scopes); err != nil {
			return madeKey{}, err
		}
		now := k.s.now()
		if !rec.Counts(now) {
			return madeKey{}, fail(ErrNotFound, "the key has ended or was rotated before")
		}
		most := k.ceiling()
		if k.view {
			if !most.covers(scopes) {
				return madeKey{}, fail(ErrInvalidScope, "%s may not have all that the key holds", most.by)
			}
			if err := k.holdsClaims(rec.Claims); err != nil {
				return madeKey{}, err
			}
		}
		if rec.MaxUses > 0 {
			spent, err := k.s.audit.Uses.Exhausted(ctx, rec.Limit(id))
			if err != nil {
				return madeKey{}, err
			}
			if spent && rec.Per == "" {
				return madeKey{}, fail(ErrLimited, "the key has no uses left")
			}
		}
		next, err := rec.Rotate(id, k.madeBy(), now.Add(overlap))
		if err != nil {
			return madeKey{}, err
		}
		most.meet("the key", scopes)
		next.Scopes = most.all().texts()
		// The successor descends from the key and from whoever rotates it: a rule that matches either matches it, whenever it came.
		from := birth{rec.Birth}
		if k.verified {
			if !k.vouched {
				from = from.earlier(k.birth)
			}
			if err := k.note(ctx, next); err != nil {
				return madeKey{}, err
			}
		}
		t, err := k.room.Count(ctx, rec.Subject)
		if err != nil {
			return madeKey{}, err
		}
		if t != nil { // its successor takes its place
			t.Remove(id)
		}
		return k.write(ctx, next, m, from, t, func(c *change) error {
			rec.Next = c.Puts[0].ID
			return rec.Put(&c.Change, id, r.Version)
		}, rec.Rule(id), "rotated from "+id)
	})
	if late, ok := err.(*overtaking); ok {
		if err = k.allowed(); err == nil {
			err = late.why
		}
	}
	return made.key, made.secret, err
}

// change rewrites a key in one compare-and-swap.
func (k *APIKeys) change(ctx context.Context, id, how string, f func(*apikey.Record) error) (APIKey, error) {
	return k.changeAs(ctx, id, func(_ *change, rec *apikey.Record) (Event, error) { return Event{Reason: how}, f(rec) })
}

// changeAs is change for an f that says how, and may add to the change.
func (k *APIKeys) changeAs(ctx context.Context, id string, f func(*change, *apikey.Record) (Event, error)) (APIKey, error) {
	ctx = k.acting(ctx)
	return settle(ctx, k.s, k.s.begin(ctx), "parallel changes of API key "+id, func(moment) (none APIKey, _ error) {
		if err := k.allowed(); err != nil {
			return none, err
		}
		rec, r, err := k.read(ctx, id)
		if err != nil {
			return none, err
		}
		ended, c := rec.End(), k.s.newChange()
		e, err := f(c, &rec)
		if err != nil {
			return none, err
		}
		if end := rec.End(); ended != 0 && (end == 0 || end > ended) { // a rule on what it descends from must be kept for longer
			if err := k.note(ctx, &rec); err != nil {
				return none, err
			}
		}
		if err := rec.Put(&c.Change, id, r.Version); err != nil {
			return none, err
		}
		e.Type, e.OK, e.Subject, e.TokenID = event.APIKeyChanged, true, rec.Subject, id
		k.by(&e)
		c.event(ctx, e)
		if _, err := k.s.commit(ctx, c); err != nil {
			return none, err
		}
		return k.used(ctx, id, &rec), nil
	})
}

// Rename gives a key another name.
func (k *APIKeys) Rename(ctx context.Context, id, name string) (_ APIKey, err error) {
	defer k.done(ctx, &err)
	return k.change(ctx, id, "renamed", func(rec *apikey.Record) error { return rec.SetName(name) })
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
// A disabled key is refused until it is enabled again. Tokens that were exchanged for it stay valid until they expire; Revoke
// ends them too.
func (k *APIKeys) Edit(ctx context.Context, id string, f func(*APIKey) error) (_ APIKey, err error) {
	defer k.done(ctx, &err)
	return k.changeAs(ctx, id, func(c *change, rec *apikey.Record) (e Event, _ error) {
		now := k.s.now()
		if !rec.Live(now) {
			return e, fail(ErrNotFound, "the key has ended")
		}
		was, x := shownKey(id, rec), shownKey(id, rec)
		if err := f(&x); err != nil {
			return e, commit.Final(err)
		}
		scopes, err := k.editScopes(was.Scopes, x.Scopes)
		if err != nil {
			return e, err
		}
		rec.Scopes = scopes.texts()
		if err := cmp.Or(rec.SetName(x.Name), rec.SetMetadata(x.Metadata)); err != nil {
			return e, err
		}
		if !x.Expires.Equal(was.Expires) {
			if k.view && !was.Expires.IsZero() && (x.Expires.IsZero() || x.Expires.After(was.Expires)) {
				return e, fail(ErrDenied, "only the host lets an API key live longer")
			}
			if err := rec.SetExpires(x.Expires, now, k.s.cfg.Lifetimes.APIKey); err != nil {
				return e, err
			}
		}
		if x.MaxUses != was.MaxUses || x.UsesPer != was.UsesPer || x.Rate != was.Rate {
			if k.view {
				return e, fail(ErrDenied, "only the host changes how often an API key may be used")
			}
			if err := rec.SetLimits(x.MaxUses, x.UsesPer, apikey.Rate(x.Rate)); err != nil {
				return e, err
			}
		}
		e = Event{Reason: "changed", Scopes: scopes}
		switch {
		case x.Disabled == was.Disabled:
		case k.view:
			return e, fail(ErrDenied, "only the host disables and enables API keys")
		case x.Disabled:
			e.Reason, rec.Disabled = "disabled", max(now.UnixMilli(), 1)
		default:
			e.Reason, rec.Disabled = "enabled", 0
		}
		return e, k.room.Again(k.s.ctx, &c.Change, id, rec)
	})
}

// editScopes is what a key may hold after an edit: for the host what it likes, for a caller no more than before.
func (k *APIKeys) editScopes(held, want Scopes) (Scopes, error) {
	if slices.Equal(sortedScopes(want), sortedScopes(held)) {
		return held, nil
	}
	most := k.ceiling()
	if k.view {
		most.meet("the key", held)
	}
	return most.take(want)
}

// Revoke ends a key at once. ErrNotFound: there is none, or it is not the caller's.
func (k *APIKeys) Revoke(ctx context.Context, id, reason string) (err error) {
	ctx = k.acting(ctx)
	defer k.done(ctx, &err)
	if err := k.allowed(); err != nil {
		return err
	}
	if _, _, err := k.read(ctx, id); err != nil && (isNotFound(err) || k.view) {
		return err
	}
	return public(k.s.revoke.End(ctx, rules.ByToken(id), reason))
}

// Import takes over API keys that another program made: they work as before, in every process with the store. The
// program's hash of a key is kept until the key is first presented, and then one of ours. keys that were imported before are passed
// over, so that it may be called again after an error; imported counts the others. It stops at the first key that can't be taken,
// with all before it written, mostly with some behind it.
//
// ErrInvalidRequest: what is wrong with a key, and which one. ErrLimited: its subject has Limits.APIKeysPerSubject already.
// ErrDenied: in a view made by For.
//
// An imported key is an API key like others, for rules, limits and lists. A rotation makes it one of ours. A process that validates
// without the store, by package remote, takes it too where its own KeyHashes name the form.
func (k *APIKeys) Import(ctx context.Context, keys iter.Seq[ImportedKey]) (imported int, err error) {
	defer k.done(ctx, &err)
	if k.view {
		return 0, fail(ErrDenied, "only the host imports API keys")
	}
	if err := k.s.ready(); err != nil {
		return 0, err
	}
	into := apikey.Importer{Namespace: k.s.ns, Room: k.room, Write: k.writeImported}
	next, stop := iter.Pull(keys)
	defer stop()
	for at := 0; ; {
		var batch []*apikey.Import
		var bad error
		for len(batch) < apikey.ImportBatch {
			x, ok := next()
			if !ok {
				break
			}
			p, err := k.planImport(&x)
			if err != nil {
				bad = &Error{Code: ErrInvalidRequest, Detail: fmt.Sprintf("imported key %d: %s", at, detailOf(asError(err, "import"))), Cause: err}
				break
			}
			batch = append(batch, p)
			at++
		}
		m := k.s.begin(ctx)
		for _, x := range batch {
			x.Birth = m.login().at
		}
		n, err := into.Import(ctx, batch)
		imported += n
		if err == nil {
			err = bad
		}
		if err != nil || len(batch) == 0 {
			return imported, err
		}
	}
}

func (k *APIKeys) planImport(x *ImportedKey) (*apikey.Import, error) {
	rec, err := k.plan(x.APIKeyRequest)
	if err != nil {
		return nil, err
	}
	return k.forms.Import(k.s.ns, rec, apikey.Given{Form: x.Form, Hash: x.Hash, Lookup: x.Lookup, Start: x.Start, Last: x.Last, Created: x.Created}, k.s.now())
}

func (k *APIKeys) writeImported(ctx context.Context, ids []string, keys []*apikey.Import, count *quota.Count) error {
	c := k.s.newChange()
	for i, x := range keys {
		if err := x.Put(&c.Change, ids[i], store.Version{}); err != nil {
			return err
		}
		c.event(ctx, Event{Type: event.APIKeyChanged, OK: true, Reason: "imported", Subject: x.Subject, TokenID: ids[i], Scopes: scopesOf(x.Scopes)})
	}
	if count != nil {
		if err := count.Put(&c.Change); err != nil {
			return err
		}
	}
	_, err := k.s.commit(ctx, c)
	return err
}

// from is the birth of what the caller of a view makes, or the host in this moment, which vouches for an owner too.
func (k *APIKeys) from(m moment) birth {
	if k.verified && !k.vouched {
		return k.birth
	}
	return m.login()
}

// madeBy is what ends a key besides its subject: the client that held the token by which it was made, and the key that signed
// that. Of a registered client's token also all that it descends from, its session first: an application that a user tried once
// keeps nothing. Who logs out of the host itself keeps their keys, and an owner keeps its own whoever logs out.
func (k *APIKeys) madeBy() []string {
	if !k.verified {
		return nil
	}
	x := k.caller.d.from
	by := x.Lineage()
	if x.Client == "" || x.Client == k.s.cfg.FirstParty || k.vouched {
		by = slices.DeleteFunc(by, lineage.IsThing)
	}
	slices.Sort(by)
	return slices.Compact(by)
}

// by says in an event of a key's by whose token the caller of a view acts.
func (k *APIKeys) by(e *Event) {
	if k.view {
		e.Client, e.Grant, e.Extra = k.caller.Client(), k.caller.Grant(), map[string]string{"chain": k.caller.ID()}
	}
}

// ceiling is what a key may hold: for the host what it likes, for the caller of a view what it holds, and its client may hold.
func (k *APIKeys) ceiling() ceiling {
	var client Client
	if k.view {
		if known := k.clients.lookup(k.caller.Client()); known != nil {
			client = known.Client
		}
	}
	most := k.s.ceiling(&client)
	if k.view {
		most.meet("the caller", k.held.sorted)
	}
	return most
}

// mayContinue asks the host about the caller of a view, who gets a key for its token.
func (k *APIKeys) mayContinue(ctx context.Context, scopes Scopes) error {
	if !k.view {
		return nil
	}
	err := k.s.mayContinue(ctx, Grant{Subject: k.caller.Subject(), Client: k.caller.Client(), Scopes: scopes, Roles: k.caller.Roles()})
	var no *Error
	if errors.As(err, &no) && no.Code == ErrInvalidGrant {
		return &Error{Code: ErrDenied, Detail: no.Detail, Cause: no.Cause}
	}
	return err
}

// holdsClaims refuses claims that the caller of a view does not hold: they may be a right as much as a scope is.
func (k *APIKeys) holdsClaims(claims []byte) error {
	if len(claims) == 0 {
		return nil
	}
	var want map[string]json.RawMessage
	if err := json.Unmarshal(claims, &want); err != nil {
		return &Error{Code: ErrInvalidRequest, Detail: "claims", Cause: err}
	}
	for name, v := range want {
		if !bytes.Equal(v, k.claims[name]) {
			return fail(ErrDenied, "the caller does not hold this claim %q", name)
		}
	}
	return nil
}

// note writes down what a key that is about to be written descends from.
func (k *APIKeys) note(ctx context.Context, rec *apikey.Record) error {
	return k.s.lineage.Note(ctx, rec.Subject, rec.By, rec.Kept())
}
