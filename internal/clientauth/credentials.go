// Credentials: what a client's record says of how it proves itself, and what it may not say.

package clientauth

import (
	"slices"
	"sync/atomic"

	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/jws"
)

// Methods of client authentication, by the names of RFC 8414's registry.
const (
	methodBasic      = "client_secret_basic"
	methodPost       = "client_secret_post"
	methodAssertion  = "private_key_jwt"
	methodTLS        = "tls_client_auth"
	methodSelfSigned = "self_signed_tls_client_auth"
)

// Credentials are what one client may prove itself by.
type Credentials struct {
	Client  string
	Public  bool   // has none
	Method  string // empty: by its secret, whichever way it comes
	TLSName string // see checkName
	Secrets []Secret
	Keys    []*jws.PublicKey // of its assertions
	Certs   [][32]byte       // SHA-256 of its self-signed certificates

	proved atomic.Pointer[proved] // by the slow hash of which of its secrets
}

// UsesSecret reports whether a secret is what proves a client.
func UsesSecret(public bool, method string) bool {
	return !public && (method == "" || method == methodBasic || method == methodPost)
}

// Check refuses credentials that contradict themselves.
func (x *Credentials) Check() error {
	if x.Public && x.Method != "" {
		return fault.Fail(fault.InvalidRequest, "a public client has no AuthMethod")
	}
	if x.TLSName != "" && x.Method != methodTLS {
		return fault.Fail(fault.InvalidRequest, "TLSName is for tls_client_auth")
	}

	switch x.Method {
	case "", methodBasic, methodPost:
	case methodAssertion:
		if len(x.Keys) == 0 {
			return fault.Fail(fault.InvalidRequest, "private_key_jwt needs Keys with a public key that can be used")
		}
	case methodTLS:
		return checkName(x.TLSName)
	case methodSelfSigned:
		if len(x.Certs) == 0 {
			return fault.Fail(fault.InvalidRequest, "self_signed_tls_client_auth needs Keys with a certificate, x5c or x5t#S256 (RFC 8705 §2.2.2)")
		}
	default:
		return fault.Fail(fault.InvalidRequest, "AuthMethod %q is unknown", x.Method)
	}
	return nil
}

// CheckFAPI refuses a client that the profile does not allow: one that proves itself by a secret or not at all, or by no key with
// an algorithm of the profile (FAPI 2.0 §5.3.2.1).
func (x *Credentials) CheckFAPI() error {
	switch {
	case x.Public || UsesSecret(x.Public, x.Method):
		return fault.Fail(fault.InvalidRequest, "FAPI: client %q must prove itself by private_key_jwt, tls_client_auth or self_signed_tls_client_auth", x.Client)
	case x.Method == methodAssertion && !slices.ContainsFunc(x.Keys, func(k *jws.PublicKey) bool { return slices.Contains(jws.FAPIAlgs, k.Alg) }):
		return fault.Fail(fault.InvalidRequest, "FAPI: none of the keys of client %q is for PS256, ES256 or EdDSA; an RSA key names its alg", x.Client)
	}
	return nil
}
