package oauthhttp

import (
	"encoding/base64"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/apitoken-go/apitoken"
)

const assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

// A caller is a client that was confirmed.
type caller struct {
	apitoken.Client
	auth   apitoken.ClientAuth // carries the outcome to the service
	method string              // by the names of RFC 8414's registry
	cert   [32]byte            // of its TLS connection
}

// client confirms who calls, by exactly one method (RFC 6749 §2.3).
func (h *Handler) client(r *http.Request, f form, path string) (*caller, error) {
	a, method, err := clientAuth(r, f)
	if err != nil {
		return nil, err
	}
	c := &caller{method: method}
	cert, verified := h.certificate(r)
	c.cert = sumOf(cert)
	if a.Secret.IsZero() && a.Assertion.IsZero() {
		a.Certificate, a.CertificateVerified = cert, verified
	}
	if h.o.InsecureEndpointAudiences {
		a.Endpoints = []string{h.urlOf(r, path), h.base + tokenPath}
	}
	if err := h.meet(r.Context(), &a, path); err != nil {
		return nil, err
	}
	if c.Client, c.auth, err = h.svc.Clients.Confirm(r.Context(), a); err != nil {
		return nil, err
	}
	if c.method == "none" && !c.Public {
		c.method = c.AuthMethod // one of the two of RFC 8705, which nothing in the request names
	}
	if c.AuthMethod != "" && c.AuthMethod != c.method {
		return nil, &apitoken.Error{Code: apitoken.ErrInvalidClient, Detail: "client " + c.ID + " is registered for another method of authentication"}
	}
	return c, nil
}

// clientAuth reads the credential of a request.
func clientAuth(r *http.Request, f form) (a apitoken.ClientAuth, method string, err error) {
	header := r.Header.Values("Authorization")
	assertion := f.has("client_assertion") || f.has("client_assertion_type")
	n := 0
	for _, came := range []bool{len(header) > 0, f.has("client_secret"), assertion} {
		if came {
			n++
		}
	}
	if n > 1 || len(header) > 1 {
		return a, "", invalid("The client must authenticate in exactly one way.")
	}
	id := f.get("client_id")
	switch {
	case len(header) == 1:
		a, err = basic(header[0])
		if err != nil {
			return a, "", err
		}
		if id != "" && id != a.ID {
			return a, "", invalid("Two clients are named.")
		}
		if a.Secret.IsZero() { // as public clients send their ID where a library knows no other way (RFC 6749 §2.3.1)
			return a, "none", nil
		}
		return a, "client_secret_basic", nil
	case assertion:
		if f.get("client_assertion_type") != assertionType {
			return a, "", invalid("The client_assertion_type is unknown or missing.")
		}
		if !f.has("client_assertion") {
			return a, "", invalid("The client_assertion is missing.")
		}
		return apitoken.ClientAuth{ID: id, Assertion: apitoken.NewSecret(f.get("client_assertion"))}, "private_key_jwt", nil
	case id == "":
		return a, "", errNoClient
	case f.has("client_secret"):
		return apitoken.ClientAuth{ID: id, Secret: apitoken.NewSecret(f.get("client_secret"))}, "client_secret_post", nil
	}
	return apitoken.ClientAuth{ID: id}, "none", nil
}

// basic reads HTTP Basic, whose two parts are form-encoded (RFC 6749 §2.3.1). An empty secret is none.
func basic(header string) (apitoken.ClientAuth, error) {
	scheme, rest, _ := strings.Cut(header, " ")
	if !strings.EqualFold(scheme, "Basic") {
		return apitoken.ClientAuth{}, errNoClient
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(strings.TrimLeft(rest, " "))
	id, secret, ok := strings.Cut(string(raw), ":")
	if err != nil || !ok || id == "" {
		return apitoken.ClientAuth{}, errNoClient
	}
	id, err1 := url.QueryUnescape(id)
	secret, err2 := url.QueryUnescape(secret)
	if err := errors.Join(err1, err2); err != nil {
		return apitoken.ClientAuth{}, errNoClient
	}
	if secret == "" {
		return apitoken.ClientAuth{ID: id}, nil
	}
	return apitoken.ClientAuth{ID: id, Secret: apitoken.NewSecret(secret)}, nil
}

// may refuses a client that lacks a grant type.
func (c *caller) may(grantType string) error {
	if !slices.Contains(c.GrantTypes, grantType) {
		return errUnauthorized
	}
	return nil
}

// binding is what the tokens of this request are bound to: the key of its DPoP proof (RFC 9449 §5), or the certificate
// of its connection where the client's tokens are (RFC 8705 §3).
func (h *Handler) binding(r *http.Request, c *caller, path string) (string, error) {
	proofs := r.Header.Values("DPoP")
	if len(proofs) == 0 {
		switch {
		case c.BindDPoP, h.fapi && !c.BindCertificate:
			return "", &apitoken.Error{Code: apitoken.ErrInvalidProof, Detail: "client " + c.ID + " must send a DPoP proof"}
		case !c.BindCertificate:
			return "", nil
		case c.cert == [32]byte{}:
			return "", invalid("A TLS client certificate is needed.")
		}
		return apitoken.BindCertificate(c.cert), nil
	}
	if c.BindCertificate {
		return "", invalid("The tokens of this client are bound to its certificate, not to a DPoP key.")
	}
	if len(proofs) > 1 || strings.ContainsRune(proofs[0], ',') {
		return "", &apitoken.Error{Code: apitoken.ErrInvalidProof, Detail: "more than one DPoP header (RFC 9449 §4.3)"}
	}
	return h.adapter.Prove(r.Context(), apitoken.Proof{JWT: proofs[0], Method: r.Method, URL: h.urlOf(r, path), RequireNonce: h.o.RequireNonce})
}
