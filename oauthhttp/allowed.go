package oauthhttp

import (
	"slices"

	"github.com/apitoken-go/apitoken"
)

// Allowed is how much of what a client asks for somebody lets it have: [All], [Only] or [None]. The zero Allowed is None, so that
// a page on which no box was ticked gives nothing.
type Allowed struct {
	all  bool
	only apitoken.Scopes
}

// All allows all the scopes that the client asks for.
func All() Allowed { return Allowed{all: true} }

// Only allows these scopes. Only() allows none, so that a list that a page collected can be given as it is: Only(ticked...).
func Only(scopes ...apitoken.Scope) Allowed { return Allowed{only: slices.Clone(scopes)} }

// None allows no scope, whatever the roles give.
func None() Allowed { return Allowed{} }

// of is what is allowed of asked. more reports that a scope is allowed that was not asked for.
func (x Allowed) of(asked apitoken.Scopes) (scopes apitoken.Scopes, more bool) {
	if x.all {
		return asked, false
	}
	return x.only, !asked.Cover(x.only)
}

// limit puts what is allowed into a request. Where that is nothing the roles are left out too: apitoken.Request takes no scopes
// beside roles for all that they give.
func limit(req *apitoken.Request, scopes apitoken.Scopes, roles []string) {
	req.Scopes, req.Roles = scopes, roles
	if len(scopes) == 0 {
		req.Scopes, req.Roles = nil, nil
	}
}
