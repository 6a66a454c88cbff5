package httpauth_test

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/httpauth"
	"github.com/apitoken-go/apitoken/store/memstore"
)

func exampleService() *apitoken.Service {
	svc, err := apitoken.New(apitoken.Config{Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: memstore.New(), InsecureKeysInStore: true})
	if err != nil {
		log.Fatal(err)
	}
	return svc
}

func ExampleNew() {
	svc := exampleService()
	defer svc.Close()
	auth := httpauth.New(svc, nil)
	mux := http.NewServeMux()
	mux.Handle("GET /orders", auth.Require("orders:read")(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, "orders of", apitoken.FromContext(r.Context()).Subject())
	})))

	issued, err := svc.Issue(context.Background(), apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"orders:read"}})
	if err != nil {
		log.Fatal(err)
	}
	r := httptest.NewRequest("GET", "/orders", nil)
	r.Header.Set("Authorization", "Bearer "+issued.Access.Reveal())
	w := httptest.NewRecorder()
	mux.ServeHTTP(w, r)
	fmt.Print(w.Body)
	// Output: orders of alice
}

// A page of another origin: what answers its preflights stands in front of the guard, and lets it read why it was refused.
func ExampleNew_cors() {
	svc := exampleService()
	defer svc.Close()
	cors := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			h := w.Header()
			h.Add("Vary", "Origin")
			if r.Header.Get("Origin") == "https://app.example.com" { // never whatever it says
				h.Set("Access-Control-Allow-Origin", "https://app.example.com")
				h.Set("Access-Control-Expose-Headers", "WWW-Authenticate, DPoP-Nonce, Retry-After")
				if r.Method == http.MethodOptions && r.Header.Get("Access-Control-Request-Method") != "" {
					h.Set("Access-Control-Allow-Headers", "Authorization, DPoP, Content-Type")
					h.Set("Access-Control-Allow-Methods", "GET, POST, DELETE")
					w.WriteHeader(http.StatusNoContent)
					return
				}
			}
			next.ServeHTTP(w, r)
		})
	}
	api := cors(httpauth.New(svc, nil).Require("orders:read")(http.NotFoundHandler()))
	for _, method := range []string{"OPTIONS", "GET"} {
		r := httptest.NewRequest(method, "/orders", nil)
		r.Header.Set("Origin", "https://app.example.com")
		r.Header.Set("Access-Control-Request-Method", "GET")
		w := httptest.NewRecorder()
		api.ServeHTTP(w, r)
		fmt.Println(method, w.Code, w.Header().Get("WWW-Authenticate"), w.Header()["Vary"])
	}
	// Output:
	// OPTIONS 204  [Origin]
	// GET 401 Bearer scope="orders:read" [Origin Authorization]
}

func ExampleAuth_Routes() {
	svc := exampleService()
	defer svc.Close()
	auth := httpauth.New(svc, nil)
	guard := auth.Routes(httpauth.Routes{
		"GET /healthz": apitoken.Public(),
		"GET /orders/": apitoken.AllOf("orders:read"),
	})
	router := guard(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "ok") }))
	for _, path := range []string{"/healthz", "/orders/7", "/admin", "/healthz/../admin"} {
		r := httptest.NewRequest("GET", "/", nil)
		r.URL.Path = path
		w := httptest.NewRecorder()
		router.ServeHTTP(w, r)
		fmt.Println(path, w.Code)
	}
	// Output:
	// /healthz 200
	// /orders/7 401
	// /admin 404
	// /healthz/../admin 400
}

func ExampleNewSession() {
	svc := exampleService()
	defer svc.Close()
	web := httpauth.NewSession(svc, &httpauth.SessionOptions{Login: "/login"})
	mux := http.NewServeMux()
	mux.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) {
		// The password was checked here.
		if err := web.Start(w, r, apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"app"}}); err != nil {
			web.Error(w, r, err)
		}
	})
	mux.Handle("GET /", web.Require("app")(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {})))
	w := httptest.NewRecorder()
	mux.ServeHTTP(w, httptest.NewRequest("POST", "/login", nil))
	for _, c := range w.Result().Cookies() {
		fmt.Println(c.Name)
	}
	// Output:
	// __Host-session
	// __Host-session-refresh
}
