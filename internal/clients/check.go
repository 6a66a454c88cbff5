// The checks of a client's record.

package clients

import (
	"slices"

	"github.com/apitoken-go/apitoken/internal/clientauth"
	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/granttype"
	"github.com/apitoken-go/apitoken/internal/redirect"
	"github.com/apitoken-go/apitoken/internal/text"
)

const (
	maxName      = 100 // bytes
	maxRedirects = 32
)

// Terms are what a service asks of its clients beyond the RFCs.
type Terms struct {
	FirstParty string // the host's own ID, which no client has
	FAPI       bool   // Config.FAPI
}

// Check refuses a client that contradicts itself or the terms. fault.InvalidRequest. Whether the service knows its scopes, audiences
// and lifetimes is for the caller to say.
func (r *Record) Check(id string, t Terms) error {
	has := func(grantType string) bool { return slices.Contains(r.GrantTypes, grantType) }
	refuse := func(format string, args ...any) error {
		return fault.Fail(fault.InvalidRequest, format, args...)
	}
	switch {
	case !text.IsName(id):
		return refuse("client ID %q is not 1 to 255 printable ASCII characters without space, quote and backslash", id)
	case id == t.FirstParty:
		return refuse("client ID %q is the host's own, Config.FirstParty", id)
	case len(r.Name) > maxName || !text.PlainText(r.Name):
		return refuse("a client's name has at most 100 bytes of UTF-8 without control characters")
	case r.Public && has(granttype.ClientCredentials):
		return refuse("a public client cannot have client_credentials (RFC 6749 §4.4)")
	case r.Public && has(granttype.TokenExchange):
		return refuse("a public client cannot exchange tokens: nobody knows who asks")
	case r.MayImpersonate && !has(granttype.TokenExchange):
		return refuse("MayImpersonate without the grant type token-exchange")
	case r.BindDPoP && r.BindCertificate:
		return refuse("BindDPoP and BindCertificate: a token is bound to one thing")
	case r.Lifetimes.APIKey != 0:
		return refuse("Lifetimes.APIKey: API keys are subjects', not clients'")
	case len(r.RedirectURIs) > maxRedirects:
		return refuse("%d redirect URIs, at most %d", len(r.RedirectURIs), maxRedirects)
	}

	for i, g := range r.GrantTypes {
		if !slices.Contains(granttype.All, g) || slices.Contains(r.GrantTypes[:i], g) {
			return refuse("grant type %q is unknown or named twice", g)
		}
	}
	for _, a := range r.Audiences {
		if !text.IsName(a) {
			return refuse("audience %q", a)
		}
	}
	for _, uri := range r.RedirectURIs {
		if err := redirect.Check(uri, func(string) bool { return true }); err != nil {
			return refuse("redirect URI %q %s", uri, err)
		}
	}

	x, err := r.credentials(id)
	if err != nil {
		return err
	}
	if err := x.Check(); err != nil || !t.FAPI {
		return err
	}
	return x.CheckFAPI()
}

// credentials are what the client may prove itself by.
func (r *Record) credentials(id string) (*clientauth.Credentials, error) {
	keys, certs, err := clientauth.Keys(r.Keys)
	if err != nil {
		return nil, err
	}
	return &clientauth.Credentials{Client: id, Public: r.Public, Method: r.AuthMethod, TLSName: r.TLSName, Secrets: r.Secrets, Keys: keys, Certs: certs}, nil
}
