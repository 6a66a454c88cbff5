package apitoken

import (
	"crypto/subtle"
	"encoding/base64"
	"strings"
	"time"
)

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
		return v.proofs.check(c, binding, now, spend)
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
