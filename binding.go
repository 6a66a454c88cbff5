package apitoken

import (
	"context"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/apitoken-go/apitoken/internal/dpop"
	"github.com/apitoken-go/apitoken/internal/keyring"
)

// What tokens are bound to, and how a request proves it.

// BindDPoP is the Binding of tokens to the DPoP key with this RFC 7638 thumbprint (RFC 9449 §6.1).
func BindDPoP(thumbprint string) string { return bindDPoP + thumbprint }

// BindCertificate is the Binding of tokens to the TLS client certificate with this SHA-256 (RFC 8705 §3.1).
func BindCertificate(sha256 [32]byte) string {
	return bindCert + base64.RawURLEncoding.EncodeToString(sha256[:])
}

const (
	bindDPoP = "jkt:"
	bindCert = "x5t#S256:"
)

func isDPoP(binding string) bool { return strings.HasPrefix(binding, bindDPoP) }

// checkBinding refuses what could never be proved.
func checkBinding(b string) error {
	if b == "" {
		return nil
	}
	print, ok := strings.CutPrefix(b, bindDPoP)
	if !ok {
		print, ok = strings.CutPrefix(b, bindCert)
	}
	if raw, err := base64.RawURLEncoding.Strict().DecodeString(print); !ok || err != nil || len(raw) != 32 {
		return fail(ErrInvalidRequest, "a Binding is jkt: or x5t#S256: and the base64url of 32 bytes; see BindDPoP and BindCertificate")
	}
	return nil
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

// Proof is a DPoP proof at an endpoint that issues tokens, where it comes without an access token (RFC 9449 §5).
type Proof struct {
	JWT          string
	Method, URL  string // of the request, URL as clients see it
	RequireNonce bool   // refuse it without a nonce of this service, see Service.ProofNonce
}

// Format keeps the proof out of logs.
func (p Proof) Format(f fmt.State, _ rune) { io.WriteString(f, redacted) }

// LogValue implements slog.LogValuer.
func (p Proof) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText makes JSON and other encodings hold "[redacted]".
func (p Proof) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// Prove verifies p and returns the Binding of its key, for Request, RefreshRequest and Redemption. A proof is taken once
// in all processes on the store. ErrInvalidProof; ErrUseNonce, with the nonce in Error.Nonce; ErrUnavailable.
func (s *Service) Prove(ctx context.Context, p Proof) (binding string, err error) {
	d, refused := dpop.Read(dpop.Request{Proof: p.JWT, Method: p.Method, URL: p.URL, Algs: s.cfg.Validation.algorithms()})
	if refused != nil {
		return "", public(refused)
	}
	if _, _, refused := s.nonces().Check(&d, s.now(), s.cfg.Validation.ahead(), p.RequireNonce); refused != nil {
		return "", public(refused)
	}
	err = s.Once(ctx, d.ID(), d.Until())
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
func (s *Service) ProofNonce() string { return s.nonces().New() }

func (s *Service) nonces() *dpop.Nonces {
	ring := s.SigningKeys.ring
	return &dpop.Nonces{
		Key:    func() ([4]byte, []byte) { return ring.MAC(keyring.Nonce) },
		KeyOf:  func(kid [4]byte) ([]byte, bool) { return ring.MACFor(kid, keyring.Nonce) },
		Second: func() int64 { return s.now().Unix() },
		Whose:  "service",
	}
}
