// Who may make and see API keys: APIKeys.For a token, ForOwner an organization. A view asks about its token at each call.

package apitoken

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"slices"

	"github.com/apitoken-go/apitoken/internal/apikey"
	"github.com/apitoken-go/apitoken/internal/lineage"
)

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

// by says in an event of a key's by whose token the caller of a view acts.
func (k *APIKeys) by(e *Event) {
	if k.view {
		e.Client, e.Grant, e.Extra = k.caller.Client(), k.caller.Grant(), map[string]string{"chain": k.caller.ID()}
	}
}

// note writes down what a key that is about to be written descends from.
func (k *APIKeys) note(ctx context.Context, rec *apikey.Record) error {
	return k.s.lineage.Note(ctx, rec.Subject, rec.By, rec.Kept())
}
