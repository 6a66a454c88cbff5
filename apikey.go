// API keys: what is shown of one, and how they are listed, changed, ended and validated. apikey_make.go makes them, apikey_view.go says
// who may; internal/apikey holds their records and what a process knows of them.

package apitoken

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/internal/apikey"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/internal/rules"
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

// Rate allows Burst at once and refills at Per a time. The zero Rate does not limit. Each process counts for itself,
// so that a key may do Burst and its rate in every one of them.
type Rate struct {
	Burst int
	Per   time.Duration // for one more
}

func newAPIKeys(s *core, signing *SigningKeys, clients *Clients) *APIKeys {
	k := &APIKeys{s: s, signing: signing, clients: clients, forms: apikey.NewForms(s.cfg.KeyHashes)}
	k.room = &apikey.Room{Rules: s.rules, Now: s.now,
		Quota: s.newQuota(store.KindAPIKey, "apikey", s.cfg.Limits.APIKeysPerSubject, func(time.Time, int64) bool { return false })}
	k.keys = apikey.NewCache(apikey.Config[keyToken]{Context: s.ctx, Writer: &s.writer, Now: s.now, Log: s.log, Namespace: func() string { return s.ns },
		Uses: s.audit.Uses, Forms: k.forms, Token: k.token, Outdated: k.outdated,
		Made: func(ctx context.Context, key *opaque.Key) (bool, error) {
			return signing.ring.Made(ctx, key, opaque.APIKey)
		},
		Change: func(ctx context.Context, id, how string, f func(*apikey.Record) error) error {
			_, err := k.change(ctx, id, how, f)
			return public(err)
		}})
	return k
}

// shownKey is what a record says of a key, without its use.
func shownKey(id string, rec *apikey.Record) APIKey {
	x := APIKey{ID: id, Subject: rec.Subject, Name: rec.Name, Start: rec.Start, Last: rec.Last, Scopes: scopesOf(rec.Scopes), Created: time.UnixMilli(rec.Created),
		MaxUses: rec.MaxUses, UsesPer: string(rec.Per), Rate: Rate(rec.Rate), Revoked: rec.Revoked != 0, Disabled: rec.Disabled != 0, Predecessor: rec.Prev, Successor: rec.Next, Metadata: rec.Metadata()}
	if rec.Expires != 0 {
		x.Expires = time.UnixMilli(rec.Expires)
	}
	if rec.Replaced != 0 {
		x.Replaced = time.UnixMilli(rec.Replaced)
	}
	return x
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

// read returns a key's record, revoked where a rule has ended the key.
func (k *APIKeys) read(ctx context.Context, id string) (rec apikey.Record, r store.Record, err error) {
	if r, err = k.s.get(ctx, store.KindAPIKey, id); err != nil {
		return rec, r, err
	}
	if rec, err = apikey.Read(r, k.s.rules); err == nil && k.view && rec.Subject != k.subject {
		err = fail(ErrNotFound, "API key %s is another subject's", id)
	}
	return rec, r, public(err)
}

// Get returns one key. ErrNotFound: there is none, or it is not the caller's.
func (k *APIKeys) Get(ctx context.Context, id string) (_ APIKey, err error) {
	defer k.done(ctx, &err)
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
func (k *APIKeys) used(ctx context.Context, id string, rec *apikey.Record) APIKey {
	x := shownKey(id, rec)
	if x.MaxUses > 0 {
		spent, err := k.s.audit.Uses.Exhausted(ctx, rec.Limit(id))
		x.spent = err == nil && spent
	}
	if u, err := k.s.usage(ctx, usage.APIKey, x.ID); err == nil {
		x.Uses, x.LastUsed, x.UsedScopes = u.Count, u.Last, u.Scopes
		if len(u.Addresses) > 0 {
			x.LastAddress = u.Addresses[0]
		}
	}
	return x
}

// List lists keys, newest first: also those that have ended, for some time.
func (k *APIKeys) List(ctx context.Context, p Page) iter.Seq2[APIKey, error] {
	return k.list(ctx, k.subject, p)
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
	return k.list(ctx, subject, p)
}

// list asks about the caller of a view before each key: a list may be read for long.
func (k *APIKeys) list(ctx context.Context, subject string, p Page) iter.Seq2[APIKey, error] {
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
			var rec apikey.Record
			if err == nil {
				rec, err = apikey.Read(r, k.s.rules)
			}
			if err != nil {
				if !yield(APIKey{}, public(err)) {
					return
				}
				continue
			}
			if !yield(k.used(ctx, r.ID, &rec), nil) {
				return
			}
		}
	}
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
	defer k.done(ctx, &err)
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
		// Service.Unreadable tells of one that cannot be read.
		if rec, err := apikey.Read(r, k.s.rules); err == nil && rec.Has(q.Metadata) {
			found = append(found, k.used(ctx, r.ID, &rec))
		}
	}
	if err := k.allowed(); err != nil {
		return nil, "", err
	}
	return found, page.Cursor, nil
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
			return e, err
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

// identify is the ID of the API key that a text is, one of ours or an imported one, ended or not; empty: it is none.
func (k *APIKeys) identify(ctx context.Context, text string) (string, error) {
	var e *knownKey
	var err error
	switch kind := opaque.KindOf(text); {
	case kind == opaque.APIKey: // never an imported one, even if it is another service's: Validate looks no further either
		if key, bad := opaque.DecodeKey(text, k.s.cfg.Prefix, kind); bad == nil {
			e, _, err = k.keys.Find(ctx, key)
		}
	case k.forms.Recognize(text):
		e, err = k.keys.FindImported(ctx, text, false)
	}
	switch {
	case e != nil && err == nil:
		return e.Rule.ID, nil
	case err == nil, errors.Is(err, ErrInvalidToken):
		return "", nil
	}
	return "", public(err)
}

// outdated reports that one of the key's clients has changed since it was read.
func (k *APIKeys) outdated(t keyToken) bool {
	for _, m := range t.makers {
		if k.clients.lookup(m.id) != m.client {
			return true
		}
	}
	return false
}

// token is what validators give out for a key that was just read: narrowed to what the clients that made it may still hold.
func (k *APIKeys) token(e *knownKey, rec *apikey.Record) (t keyToken) {
	scopes := scopesOf(rec.Scopes)
	for _, s := range rec.By {
		id, ok := strings.CutPrefix(s, rules.ChainClient)
		if !ok || id == k.s.cfg.FirstParty {
			continue
		}
		m := maker{id, k.clients.lookup(id)}
		if t.makers = append(t.makers, m); m.client != nil {
			scopes = sortedScopes(intersectScopes(scopes, m.client.Client.Scopes))
		}
	}
	spec := TokenSpec{APIKey: true, ID: e.Rule.ID, Issuer: k.s.cfg.Issuer, Subject: rec.Subject, Audiences: []string{k.s.cfg.Audience},
		Scopes: scopes, IssuedAt: time.UnixMilli(rec.Created)}
	if e.End != 0 { // also what Rotate left it
		spec.ExpiresAt = time.UnixMilli(e.End)
	}
	d := tokenOf(spec, rec.Claims)
	d.ends, d.from, d.use, d.by, d.counted = e.Ends, e.Rule, e.Use, k.valid, rec.MaxUses > 0
	t.d = &d
	return t
}

// validate is JWTValidator's way for opaque tokens.
func (k *APIKeys) validate(ctx context.Context, c Credential, tr *trace) (Token, error) {
	var key opaque.Key
	if err := opaque.DecodeKeyInto(&key, c.Token, k.s.cfg.Prefix, opaque.APIKey); err != nil {
		return Token{}, tr.no("structure", &Error{Code: ErrInvalidToken, Detail: "malformed API key", Cause: err})
	}
	tr.ok("structure", "API key")
	if c.DPoP != "" {
		return Token{}, tr.no("binding", fail(ErrInvalidToken, "API keys are not bound to keys"))
	}
	e, failed, err := k.keys.Find(ctx, &key)
	if err != nil {
		return Token{}, tr.no(failed, asError(err, "read API key"))
	}
	tr.ok("secret", "hash equal")
	return k.decide(ctx, e, tr)
}

// validateImported is validate for keys of another program.
func (k *APIKeys) validateImported(ctx context.Context, c Credential, tr *trace) (Token, error) {
	if c.DPoP != "" {
		return Token{}, tr.no("binding", fail(ErrInvalidToken, "API keys are not bound to keys"))
	}
	e, err := k.keys.FindImported(ctx, c.Token, tr == nil)
	switch {
	case err != nil:
		return Token{}, tr.no("lookup", asError(err, "read API key"))
	case e == nil:
		return Token{}, tr.no("lookup", fail(ErrInvalidToken, "no such API key"))
	}
	tr.ok("secret", "an imported key")
	return k.decide(ctx, e, tr)
}

// decide says yes or no to a key whose secret was found good.
func (k *APIKeys) decide(ctx context.Context, e *knownKey, tr *trace) (Token, error) {
	d := e.Token.d
	if tr != nil {
		tr.d = d
	}
	w := k.trust.Look() // the view first: its rules are all among those that are looked at
	if rule := e.Hit(k.s.rules); rule != "" {
		return Token{d: d}, tr.no("revocation", fail(ErrRevoked, "a rule on its %s", rule))
	}
	tr.ok("revocation", "no rule")
	now := k.s.now()
	if e.Ended(now) {
		return Token{d: d}, tr.no("expiry", fail(ErrExpired, "the key has ended or is disabled"))
	}
	f := k.trust.freshness(w, now)
	if f.Stale { // never past the bound for opaque tokens
		k.s.state.Wake()
		return Token{d: d}, tr.no("freshness", tryAgain("the view of revocations is older than MaxStaleness"))
	}
	if tr != nil {
		tr.ok("freshness", f.Age.String())
	}
	if tr == nil {
		e.Use.Hit(now, addressOf(ctx))
	}
	return Token{d: d, fresh: f}, nil
}

// Consume takes one use of t, as [Authorize] does for each request that it lets through: nil, ErrLimited or ErrUnavailable. Tokens
// that are not API keys, and keys without a limit, cost nothing. Uses are reserved in batches of at most a sixteenth of what remains:
// never more than MaxUses in all processes, to the last one exact below 32, and a process that dies may lose its batch.
func (s *Service) Consume(ctx context.Context, t Token) error {
	err := s.APIKeys.take(ctx, t)
	if errors.Is(err, ErrLimited) {
		if e := s.APIKeys.keys.Known(t.ID()); e != nil {
			var known refusal
			known.of(s.core, e.Token.d)
			s.denied(ctx, reasonOf(err), known, err)
		}
	}
	return err
}

// take is Consume for calls that count their refusals themselves.
func (k *APIKeys) take(ctx context.Context, t Token) error {
	if t.IsZero() || !t.IsAPIKey() || t.Issuer() != k.s.cfg.Issuer {
		return nil
	}
	return public(k.keys.Consume(ctx, t.ID()))
}
