// Service.Adapter: the calls for those who write protocol endpoints, pages, or validators in other processes. They keep notes between
// two requests, do things once, check proofs of a key, and introspect tokens.

package apitoken

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/apitoken-go/apitoken/internal/dpop"
	"github.com/apitoken-go/apitoken/internal/jws"
	"github.com/apitoken-go/apitoken/internal/note"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/store"
)

// Note is what an adapter keeps between two requests of a protocol, for all processes: a pushed authorization
// request, a device that waits for its user. It holds no credential, and a credential that names it is stored as a
// hash only.
type Note struct {
	Data    []byte    // at most 8 KiB
	Expires time.Time // required, at most a day ahead
	// Client is whose request it is, where it is a client's: once that client or everything is revoked, the note is gone. It is
	// set when the note is made, and does not change.
	Client string
}

func (s *core) notes() *note.Book {
	return &note.Book{Writer: &s.writer, Rules: s.rules, Now: s.now, Namespace: s.ns, Longest: maxPrepared}
}

// Note returns the note of that name. ErrNotFound: there is none, or it has expired. ErrUnavailable.
func (a *Adapter) Note(ctx context.Context, name string) (Note, error) {
	n, err := a.notes().Get(ctx, name)
	return Note(n), public(err)
}

// ChangeNote changes the note of that name in one compare-and-swap: f gets it as it is, the zero Note if there is
// none, and is called again if another writer was first. What f returns goes to the caller, and nothing is
// written. A note whose Expires f sets to now or earlier is gone.
func (a *Adapter) ChangeNote(ctx context.Context, name string, f func(*Note) error) error {
	now := a.begin(ctx).login().at
	return public(a.notes().Change(ctx, name, now, func(n *note.Note) error { return f((*Note)(n)) }))
}

// Once claims id until then: nil for the first caller in any process, ErrInvalidRequest for all others. It is for the jti
// of assertions and proofs.
func (a *Adapter) Once(ctx context.Context, id string, until time.Time) error {
	return a.claim(ctx, id, until)
}

// DoOnce calls f unless it was done before under this name, by any process on this store; that it was done is
// remembered until then, across restarts. did is true where this call did it. f has 45 s by its context. When it fails, its
// error is returned and whoever comes next tries again; so it is, after a minute, with a process that ended within f, or that could not
// write that it was done: then f may be called a second time for the same name, which it must bear.
// ErrLimited: somebody is at it now. ErrUnavailable: the store did not answer; where did is true, f was called.
func (a *Adapter) DoOnce(ctx context.Context, name string, until time.Time, f func(context.Context) error) (did bool, err error) {
	if name == "" || f == nil {
		return false, fail(ErrInvalidRequest, "a deed without a name or a function")
	}
	did, err = a.deeds().Do(ctx, name, until, f)
	return did, public(err)
}

// Proof is a DPoP proof at an endpoint that issues tokens, where it comes without an access token (RFC 9449 §5).
type Proof struct {
	JWT          string
	Method, URL  string // of the request, URL as clients see it
	RequireNonce bool   // refuse it without a nonce of this service, see Adapter.ProofNonce
}

// Format keeps the proof out of logs.
func (p Proof) Format(f fmt.State, _ rune) { io.WriteString(f, redacted) }

// LogValue implements slog.LogValuer.
func (p Proof) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText makes JSON and other encodings hold "[redacted]".
func (p Proof) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// Prove verifies p and returns the Binding of its key, for Request, RefreshRequest and Redemption. A proof is taken once
// in all processes on the store. ErrInvalidProof; ErrUseNonce, with the nonce in Error.Nonce; ErrUnavailable.
func (a *Adapter) Prove(ctx context.Context, p Proof) (binding string, err error) {
	d, refused := dpop.Read(dpop.Request{Proof: p.JWT, Method: p.Method, URL: p.URL, Algs: a.cfg.Validation.algorithms()})
	if refused != nil {
		return "", public(refused)
	}
	if _, _, refused := a.SigningKeys.nonces().Check(&d, a.now(), a.cfg.Validation.ahead(), p.RequireNonce); refused != nil {
		return "", public(refused)
	}
	err = a.Once(ctx, d.ID(), d.Until())
	if errors.Is(err, ErrInvalidRequest) {
		return "", public(dpop.Replayed())
	}
	if err != nil {
		return "", err
	}
	return BindDPoP(d.Thumbprint), nil
}

// ProofNonce is a nonce for the next proof at the service's own endpoints (RFC 9449 §8), good for five minutes in every
// process on the store.
func (a *Adapter) ProofNonce() string { return a.SigningKeys.nonces().New() }

// Now is the service's clock, Config.Now: for whatever compares times with its records.
func (a *Adapter) Now() time.Time { return a.now() }

// Genuine says whether this service made token, a refresh token or a ticket: nil, or ErrInvalidGrant, or ErrUnavailable.
// The tag answers, without a read of the store; of a code that Prepare did not make, its record does. Whether the token is
// still good only Refresh and Redeem can say. It is for endpoints that would otherwise write something for a stranger.
func (a *Adapter) Genuine(ctx context.Context, token string) error {
	what, err := "redeem", error(nil)
	if opaque.KindOf(token) == opaque.Refresh {
		what = "refresh"
		_, err = a.ratchet.Read(ctx, token)
		err = public(err)
	} else {
		err = a.genuineTicket(ctx, token)
	}
	if errors.Is(err, ErrInvalidGrant) {
		a.refused(ctx, what, nil)
	}
	return err
}

// Narrow is what of asked may be given to whoever holds most: of each pair of scopes of which one covers the other, the narrower,
// without those that Config.Scopes does not name. It is for endpoints that leave out what is too much rather than refuse it
// (RFC 6749 §3.3).
func (a *Adapter) Narrow(asked, most Scopes) Scopes {
	x := scopeLimit{known: a.cfg.Scopes}
	x.meet("the holder", most)
	x.meet("the request", asked)
	return x.all()
}

// Introspection is an issuer's answer about an opaque token (RFC 7662), as a validator in another process needs it.
type Introspection struct {
	Active   bool
	Token    TokenSpec // when Active
	Position string    // where its birth lies in the issuer's order of changes, as in the pos claim of access tokens
}

// Introspect says what a resource server needs to know of a token of any kind (RFC 7662), for endpoints that answer whoever
// the token concerns; they decide who may ask. A bound token is active without its proof: its Binding tells what
// whoever uses it must prove; and one for another audience than this process's is active too; one for none, which Validate refuses anywhere, is not. An API key with MaxUses is not
// active: whoever asks keeps the answer for a while, and nobody would count. The error is only ever ErrUnavailable.
func (a *Adapter) Introspect(ctx context.Context, token string) (Introspection, error) {
	t, err := (*Service)(a).Validate(ctx, Credential{Token: token, unproved: true, anywhere: true})
	switch {
	case errors.Is(err, ErrUnavailable):
		return Introspection{}, err
	case err != nil:
		return Introspection{}, nil
	}
	if t.d.counted {
		return Introspection{}, nil
	}
	x := Introspection{Active: true, Token: t.d.TokenSpec}
	x.Token.Audiences, x.Token.Scopes, x.Token.Roles, x.Token.Actors = t.Audiences(), t.Scopes(), t.Roles(), t.Actors()
	if len(t.d.claim) > 0 {
		x.Token.Claims = json.RawMessage(t.d.claim)
	}
	if t.d.from != nil {
		x.Position = t.d.from.Pos.String()
	}
	return x, nil
}

// Skew is how far ahead of ours the clock of whoever signs a token, a proof or an assertion may be: Config.Validation.Skew, or
// its default. Adapters that check times themselves use it.
func (a *Adapter) Skew() time.Duration { return a.cfg.Validation.ahead() }

// Wait returns when this process's view of the state is not at p, or ctx ends. For long polls of [Service.Revocations].
func (a *Adapter) Wait(ctx context.Context, p store.Position) error {
	for {
		moved := a.state.Moved()
		if a.state.Position() != p {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		case <-a.ctx.Done():
			return unavailable(a.ctx.Err(), "closed")
		}
	}
}

// Check says whether Issue or Prepare would take r now, so that an adapter can refuse it before it asks a user. An empty
// Subject stands for any.
func (a *Adapter) Check(ctx context.Context, r Request) error {
	if r.Subject == "" {
		r.Subject = "?"
	}
	if r.Grant != "" {
		return fail(ErrInvalidRequest, "a request under a grant is not checked ahead")
	}
	who, err := a.Clients.caller(ctx, r.Auth, r.Client, new(refusal))
	if err != nil {
		return err
	}
	_, err = a.planLogin(a.begin(ctx), &r, &who)
	return err
}

// SignIntrospection signs an introspection response for the resource server that audience names (RFC 9701 §5). response
// is a JSON object. ErrInvalidRequest: the active signing key is a secret, which nobody else could verify with.
func (a *Adapter) SignIntrospection(ctx context.Context, audience string, response []byte) (string, error) {
	if err := jws.CheckJSON(response); err != nil || !bytes.HasPrefix(response, []byte("{")) {
		return "", &Error{Code: ErrInvalidRequest, Detail: "not a JSON object", Cause: err}
	}
	key, err := a.SigningKeys.active(a.begin(ctx).view, a.now(), nil)
	if err != nil {
		return "", err
	}
	if strings.HasPrefix(key.Algorithm(), "HS") {
		return "", fail(ErrInvalidRequest, "the active signing key is symmetric")
	}
	payload, err := json.Marshal(struct {
		Issuer   string          `json:"iss"`
		Audience string          `json:"aud"`
		IssuedAt int64           `json:"iat"`
		Response json.RawMessage `json:"token_introspection"`
	}{a.cfg.Issuer, audience, a.now().Unix(), response})
	if err != nil {
		return "", &Error{Code: ErrInvalidRequest, Detail: "introspection response", Cause: err}
	}
	return key.SignText(ctx, jws.AnswerType, payload)
}

// Refused counts a refusal that an adapter decided by itself, as event.Refused with the given reason, a constant word, and why,
// the limit that said no. by is a client that [Clients.Confirm] confirmed, or the ID alone of a registered client that is refused
// something and proved nothing, as when a user says no to it; the Token in ctx says who else was refused. Either may be zero. It
// counts nothing where neither names anybody: strangers leave no names.
func (a *Adapter) Refused(ctx context.Context, by ClientAuth, reason, why string) {
	var known refusal
	if t := FromContext(ctx); !t.IsZero() {
		known.of(a.core, t.d)
	}
	if by.namesOnly() {
		if a.Clients.lookup(by.ID) != nil {
			known.Claimed = by.ID
		}
	} else if _, err := a.Clients.caller(ctx, by, "", &known); err != nil {
		return
	}
	if known.Named() {
		a.denied(ctx, reason, known, fail(ErrDenied, "%s", why))
	}
}
