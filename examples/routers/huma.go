package main

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/httpauth"
)

// withHuma: each operation says what it needs in its Security, which is also what huma writes into the OpenAPI document.
func withHuma(auth *httpauth.Auth) server {
	mux := http.NewServeMux()
	api := humago.New(mux, huma.DefaultConfig("Orders", "1"))
	api.UseMiddleware(humaGuard(auth))
	type text struct {
		ContentType string `header:"Content-Type"`
		Body        []byte
	}
	huma.Register(api, huma.Operation{Method: http.MethodGet, Path: "/healthz", Security: open}, func(context.Context, *struct{}) (*text, error) {
		return &text{"text/plain", []byte("ok")}, nil
	})
	huma.Register(api, huma.Operation{Method: http.MethodGet, Path: "/orders", Security: scopes("orders:read")}, func(ctx context.Context, _ *struct{}) (*text, error) {
		return &text{"text/plain", []byte("orders of " + apitoken.FromContext(ctx).Subject())}, nil
	})
	return overHTTP(mux)
}

// open is the Security of an operation that needs no token, as OpenAPI writes it: an empty requirement.
var open = []map[string][]string{{}}

// scopes is the Security of one that needs all of them.
func scopes(all ...string) []map[string][]string {
	return []map[string][]string{{"oauth2": all}}
}

// humaGuard guards each operation by its Security. One that has forgotten it is refused, whoever calls.
func humaGuard(auth *httpauth.Auth) func(huma.Context, func(huma.Context)) {
	return func(c huma.Context, next func(huma.Context)) {
		r, w := humago.Unwrap(c)
		auth.Guard(requirement(c.Operation().Security))(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			next(huma.WithContext(c, r.Context()))
		})).ServeHTTP(w, r)
	}
}

func requirement(security []map[string][]string) apitoken.Requirement {
	if len(security) != 1 {
		return apitoken.Requirement{} // met by no token
	}
	names, named := security[0]["oauth2"]
	switch {
	case len(security[0]) == 0:
		return apitoken.Public()
	case !named || len(security[0]) > 1:
		return apitoken.Requirement{}
	case len(names) == 0:
		return apitoken.Authenticated()
	}
	more := make(apitoken.Scopes, 0, len(names))
	for _, s := range names {
		more = append(more, apitoken.Scope(s))
	}
	return apitoken.AllOf(more[0], more[1:]...)
}
