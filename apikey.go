// API keys: what is shown of one, who may see which (APIKeys.For a token, ForOwner an organization), how they are listed and validated.
// apikey_change.go makes and changes them; internal/apikey holds their records and what a process knows of them.

package apitoken

import (
	"context"
	"encoding/json"
	"errors"
	"iter"
	"strings"
	"time"

	"github.com/apitoken-go/apitoken/internal/apikey"
	"github.com/apitoken-go/apitoken/internal/commit"
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

// APIKeys are a service's keys, or those of one caller: see For.
type APIKeys struct {
	s       *core
	signing *SigningKeys
	clients *Clients
	trust   *trust        // our own issuer; set once the validator is made
	valid   *JWTValidator // ours, likewise
	keys    *apikey.Cache[keyToken]
	forms   *apikey.Forms // nil: no keys of another program are known
	room    *apikey.Room  // Limits.APIKeysPerSubject
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

// keyToken is what validators give out for a key that this process knows.
type keyToken struct {
	d      *tokenData
	makers []maker
}

type knownKey = apikey.Key[keyToken]

// maker is a registered client by whose token a key was made or rotated, as it was when the key was read: the key holds no more
// than its client may.
type maker struct {
	id     string
	client *knownClient
}

// For returns the keys as the caller t may see and change them: its subject's own, others are
// ErrNotFound; none made with more scopes than t holds or with claims that t has not; nothing by way of an API key.
// A key that is made or rotated by a registered client's token ends when that token's session or client is revoked, and holds no
// more than the client may; one by a token of Config.FirstParty outlives its session.
func (k *APIKeys) For(t Token) *APIKeys { return k.viewOf(t, "", false) }

// ForOwner is For with the keys of owner in place of those of t's subject: of an organization, a team, a service account, for which
// the subject of t may act. The host has looked that up before. owner is the Subject of these keys wherever a key's subject counts,
// in Token.Subject, lists, limits and rules; the audit log has t's subject as Event.Actor. Let no user's ID be an owner's, as "org:42".
//
// The keys are owner's. They stay when whoever made them logs out or leaves, and end with owner, and with the client and the signing
// key of the token by which they were made.
func (k *APIKeys) ForOwner(t Token, owner string) *APIKeys {
	v := k.viewOf(t, owner, true)
	if checkSubject(owner) != nil {
		v.refuse = "no owner"
	}
	return v
}

func (k *APIKeys) viewOf(t Token, subject string, vouched bool) *APIKeys {
	v := &APIKeys{s: k.s, signing: k.signing, clients: k.clients, trust: k.trust, valid: k.valid, keys: k.keys, forms: k.forms, room: k.room,
		view: true, caller: t, subject: subject, vouched: vouched}
	switch {
	case t.IsZero():
		v.refuse = "no caller"
	case t.IsAPIKey():
		v.refuse = "an API key may not manage API keys"
	case t.Issuer() != k.s.cfg.Issuer:
		v.refuse = "the caller's issuer is another"
	case t.IsClient():
		v.refuse = "a client's own token has no API keys"
	default:
		if !vouched {
			v.subject = t.Subject()
		}
		v.held = t.d.held
		v.birth, v.verified = t.birth(k.s)
		if err := t.Claims(&v.claims); err != nil {
			v.refuse = "the caller's claims cannot be read"
		}
	}
	return v
}

// acting makes the caller of a view the one who acts, in events, where the context names nobody.
func (k *APIKeys) acting(ctx context.Context) context.Context {
	if k.view && !k.caller.IsZero() && FromContext(ctx).IsZero() {
		return NewContext(ctx, k.caller)
	}
	return ctx
}

// allowed asks again whether the caller of a view is good: the request may be older than a rule on its token.
func (k *APIKeys) allowed() error {
	switch {
	case k.refuse != "":
		return fail(ErrDenied, "%s", k.refuse)
	case k.view:
		return k.caller.recheck()
	}
	return nil
}

// done ends an exported call. What the caller of a view may not do is counted, and the caller learns the class of the error alone.
func (k *APIKeys) done(ctx context.Context, err *error) {
	*err = public(*err)
	k.denied(ctx, *err)
	if !k.view {
		tell(err)
	}
}

// denied counts what the caller of a view may not do, with the caller's name.
func (k *APIKeys) denied(ctx context.Context, err error) {
	if err == nil || !k.view || k.caller.IsZero() {
		return
	}
	d := k.caller.d
	var known refusal
	known.of(k.s, d)
	if errors.Is(err, ErrInvalidToken) { // the caller's own token has ended since
		k.s.refused(k.acting(ctx), reasonOf(err), d)
		return
	}
	k.s.denied(ctx, "apikey", known, err)
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
// bbolt, and one read for the use of each key found, two where it has MaxUses, several at once. Metadata change, so that no index knows
// them: name a Subject where there is one. A key whose record cannot be read is left out: Service.Unreadable tells of it.
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
	type stored struct {
		id string
		apikey.Record
	}
	var has []stored
	for _, r := range page.Records {
		// Service.Unreadable tells of one that cannot be read.
		if rec, err := apikey.Read(r, k.s.rules); err == nil && rec.Has(q.Metadata) {
			has = append(has, stored{r.ID, rec})
		}
	}
	for _, x := range commit.All(has, func(x stored) (APIKey, error) { return k.used(ctx, x.id, &x.Record), nil }) {
		found = append(found, x.Got)
	}
	if err := k.allowed(); err != nil {
		return nil, "", err
	}
	return found, page.Cursor, nil
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
