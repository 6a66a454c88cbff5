// Service.Adapter, the methods that only adapters call. Notes and things done once have stored records of their own.

package apitoken

import (
	"context"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/dpop"
	"github.com/apitoken-go/apitoken/internal/keyring"
	"github.com/apitoken-go/apitoken/internal/once"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/internal/record"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/store"
)

// Adapter is a service as those see it who write adapters: endpoints of a protocol, pages, reports, and validators in other
// processes. A host needs none of it. It is the service itself, so that it costs nothing and closes with it.
type Adapter Service

// Adapter returns s for those who write adapters.
func (s *Service) Adapter() *Adapter { return (*Adapter)(s) }

// Note is what an adapter keeps between two requests of a protocol, for all processes: a pushed authorization
// request, a device that waits for its user. It holds no credential, and a credential that names it is stored as a
// hash only.
type Note struct {
	Data    []byte    // at most 8 KiB
	Expires time.Time // required, at most a day ahead
	// Client is whose request it is, where it is a client's: once that client or everything is revoked, the note is gone. It is
	// set when the note is made, and does not change.
	Client string

	birth store.Position // of one that has a Client
}

const (
	kindNote     store.Kind = "note"
	maxNoteBytes            = 8 << 10
	maxNoteLife             = 24 * time.Hour
)

// noteRecord is a note of a client's as it is stored. Others are stored as their Data.
type noteRecord struct {
	V     int            `json:"v"`
	Birth store.Position `json:"birth"`
	Data  []byte         `json:"data,omitempty"`
	record.Ext
}

var noteForm = record.Form[noteRecord]{Kind: kindNote, Check: func(n *noteRecord) error { return commit.First(n.V) }}

func (s *core) noteID(name string) string {
	h := opaque.Hash("note1", []byte(s.ns), []byte(name))
	return hex.EncodeToString(h[:])
}

// Note returns the note of that name. ErrNotFound: there is none, or it has expired. ErrUnavailable.
func (a *Adapter) Note(ctx context.Context, name string) (Note, error) {
	n, _, err := a.readNote(ctx, name)
	if err == nil && n.Expires.IsZero() {
		return Note{}, fail(ErrNotFound, "no such note")
	}
	return n, err
}

// readNote returns the zero Note where there is none that lives, with the version that a write has to expect.
func (s *core) readNote(ctx context.Context, name string) (Note, store.Version, error) {
	r, err := s.get(ctx, kindNote, s.noteID(name))
	switch {
	case isNotFound(err):
		return Note{}, store.Version{}, nil
	case err != nil:
		return Note{}, store.Version{}, err
	case s.now().UnixMilli() >= r.Expires:
		return Note{Client: r.Client}, r.Version, nil
	}
	n := Note{Data: r.Data, Expires: time.UnixMilli(r.Expires), Client: r.Client}
	if n.Client == "" {
		return n, r.Version, nil
	}
	var rec noteRecord
	if err := read(&noteForm, r, &rec); err != nil {
		return Note{}, store.Version{}, err
	}
	n.Data, n.birth = rec.Data, rec.Birth
	if s.rules.Hit(&rules.Subject{Client: n.Client, Pos: rules.Positions{Birth: n.birth, View: n.birth}, Renews: true}) != "" {
		return Note{Client: n.Client}, r.Version, nil
	}
	return n, r.Version, nil
}

// put adds the note to c.
func (n *Note) put(c *change, id string, v store.Version) error {
	r := store.Record{Kind: kindNote, ID: id, Expires: n.Expires.UnixMilli(), Client: n.Client, Data: n.Data}
	if n.Client == "" {
		return bare(c, r, v)
	}
	r.Data = nil
	return put(c, &noteForm, r, &noteRecord{V: 1, Birth: n.birth, Data: n.Data}, v)
}

// ChangeNote changes the note of that name in one compare-and-swap: f gets it as it is, the zero Note if there is
// none, and is called again if another writer was first. What f returns goes to the caller, and nothing is
// written. A note whose Expires f sets to now or earlier is gone.
func (a *Adapter) ChangeNote(ctx context.Context, name string, f func(*Note) error) error {
	if name == "" {
		return fail(ErrInvalidRequest, "a note without a name")
	}
	m := a.begin(ctx)
	for range refreshTries {
		n, v, err := a.readNote(ctx, name)
		if err != nil {
			return err
		}
		if n.Expires.IsZero() {
			n.birth = m.login().at
		}
		client := n.Client
		if err := f(&n); err != nil {
			return err
		}
		switch {
		case v != (store.Version{}) && n.Client != client:
			return fail(ErrInvalidRequest, "a note's Client does not change")
		case len(n.Data) > maxNoteBytes:
			return fail(ErrInvalidRequest, "a note of %d bytes, at most %d", len(n.Data), maxNoteBytes)
		case n.Expires.IsZero() || n.Expires.Sub(a.now()) > maxNoteLife:
			return fail(ErrInvalidRequest, "a note must expire, within a day")
		}
		c := a.newChange()
		if err := n.put(c, a.noteID(name), v); err != nil {
			return err
		}
		if _, err := a.commit(ctx, c); !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
	return tryAgain("parallel changes of one note")
}

// Once claims id until then: nil for the first caller in any process, ErrInvalidRequest for all others. It is for the jti
// of assertions and proofs.
func (a *Adapter) Once(ctx context.Context, id string, until time.Time) error {
	return a.claim(ctx, id, until)
}

// claim is Once.
func (s *core) claim(ctx context.Context, id string, until time.Time) error {
	return public(s.deeds().Claim(ctx, id, until))
}

func (s *core) deeds() *once.Book {
	return &once.Book{Writer: &s.writer, Now: s.now, Log: s.log, Namespace: func() string { return s.ns }, Slack: ruleSlack}
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

func (k *SigningKeys) nonces() *dpop.Nonces {
	ring := k.ring
	return &dpop.Nonces{
		Key:    func() ([4]byte, []byte) { return ring.MAC(keyring.Nonce) },
		KeyOf:  func(kid [4]byte) ([]byte, bool) { return ring.MACFor(kid, keyring.Nonce) },
		Second: func() int64 { return k.s.now().Unix() },
		Whose:  "service",
	}
}

// proved checks the proof that came with a token against what the token is bound to. Whatever names a binding is
// refused unless its proof was presented and holds; a proof for a token that is not bound is refused too, so that
// nobody believes in a protection that is not there (RFC 9449 §7.1). A DPoP proof that holds counts as used only with spend.
func (v *JWTValidator) proved(c *Credential, binding string, now time.Time, spend bool) *Error {
	switch {
	case binding == "":
		return fail(ErrInvalidToken, "a proof came with a token that is not bound to a key")
	case isDPoP(binding):
		if c.DPoP == "" {
			return fail(ErrInvalidToken, "bound to a DPoP key, and came as a bearer token")
		}
		r := dpop.Request{Proof: c.DPoP, Method: c.Method, URL: c.URL, Token: c.Token}
		if err := v.proofs.Check(r, strings.TrimPrefix(binding, bindDPoP), now, spend); err != nil {
			return asError(err, "proof")
		}
		return nil
	case strings.HasPrefix(binding, bindCert):
		if c.CertSHA256 == ([32]byte{}) || c.DPoP != "" {
			return fail(ErrInvalidToken, "bound to a certificate that was not presented")
		}
		want := BindCertificate(c.CertSHA256)
		if subtle.ConstantTimeCompare([]byte(want), []byte(binding)) != 1 {
			return fail(ErrInvalidToken, "bound to another certificate")
		}
		return nil
	}
	return fail(ErrInvalidToken, "bound to what can't be proved here")
}
