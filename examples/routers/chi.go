package main

import (
	"fmt"
	"net/http"

	"github.com/go-chi/chi/v5"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/httpauth"
)

// withChi: chi's middleware is net/http's, nothing stands between.
func withChi(auth *httpauth.Auth) server {
	r := chi.NewRouter()
	r.Get("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })
	r.Group(func(r chi.Router) {
		r.Use(auth.Require("orders:read"))
		r.Get("/orders", func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, "orders of ", apitoken.FromContext(r.Context()).Subject())
		})
	})
	return overHTTP(r)
}
