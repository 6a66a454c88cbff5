package oauthhttp

import (
	"encoding/json"
	"slices"
	"strings"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/internal/jws"
	plain "github.com/apitoken-go/apitoken/internal/text"
)

// Identity assertion authorization grants, ID-JAG (draft-ietf-oauth-identity-assertion-authz-grant): a company's login says for which
// client, and for which of our resources and scopes, one of its people may be acted for. It is how MCP's enterprise-managed
// authorization works: no consent page, the company's administrators decide.

const (
	typeIDJAG    = "oauth-id-jag+jwt"
	profileIDJAG = "urn:ietf:params:oauth:grant-profile:id-jag"
)

// checkIDJAG refuses what contradicts AssertionIssuer.IDJAG. self is our own issuer.
func (a *AssertionIssuer) checkIDJAG(self string) error {
	switch {
	case !a.IDJAG:
	case a.Client != "":
		return wrong("Assertions", "an ID-JAG is for the client that authenticates: IDJAG and Client contradict each other")
	case a.Reusable:
		return wrong("Assertions", "an ID-JAG is good once: IDJAG and Reusable contradict each other")
	case strings.TrimSuffix(a.Issuer, "/") == strings.TrimSuffix(self, "/"):
		return wrong("Assertions", "an issuer takes none of its own ID-JAGs: they would widen what it granted")
	}
	return nil
}

// readIDJAG checks what the draft asks of an ID-JAG beyond RFC 7523 §3, and notes in a what it allows. The caller has verified p.
func readIDJAG(p *jws.Token, t *tokenRequest, self string, a *Assertion) error {
	c := &p.Claims
	switch {
	case t.ID == "":
		return errNoClient
	case t.Public:
		return errUnauthorized // nobody has proved to be the client that the issuer named
	case len(c.Audience) != 1 || c.Audience[0] != self:
		return badAssertion("an ID-JAG is for this issuer and nobody else")
	case c.ClientID != t.ID:
		return badAssertion("its client_id is not the client that presents it")
	case c.ID == "" || c.IssuedAt == 0:
		return badAssertion("an ID-JAG has jti and iat")
	}
	if c.Scope != "" {
		scopes, err := apitoken.ParseScopes(c.Scope)
		if err != nil {
			return badAssertion("its scope is malformed (RFC 6749 §3.3)")
		}
		a.Scopes = scopes
	}
	resources, err := resourceClaim(a.Claims)
	if err != nil {
		return err
	}
	a.Resources = resources
	return nil
}

// resourceClaim is the resource claim: a string or a list of them, empty where there is none.
func resourceClaim(claims json.RawMessage) ([]string, error) {
	if len(claims) == 0 {
		return nil, nil
	}
	var c struct {
		Resource json.RawMessage `json:"resource"`
	}
	if err := json.Unmarshal(claims, &c); err != nil {
		return nil, badAssertion("its claims are unreadable")
	}
	if len(c.Resource) == 0 {
		return nil, nil
	}
	var one string
	if json.Unmarshal(c.Resource, &one) == nil && one != "" {
		return []string{one}, nil
	}
	var list []string
	if json.Unmarshal(c.Resource, &list) != nil || len(list) == 0 {
		return nil, badAssertion("its resource is neither a string nor a list of strings")
	}
	return list, nil
}

// targets are the audiences of a token for an assertion: those asked for, which must be among those that the assertion names, or
// the assertion's own.
func (a *Assertion) targets(asked []string) ([]string, error) {
	if len(a.Resources) == 0 {
		return asked, nil
	}
	for _, x := range asked {
		if !slices.ContainsFunc(a.Resources, func(r string) bool { return plain.SameResource(r, x) }) {
			return nil, &apitoken.Error{Code: apitoken.ErrInvalidTarget, Detail: "the assertion is not for this resource"}
		}
	}
	if len(asked) == 0 {
		return a.Resources, nil
	}
	return asked, nil
}
