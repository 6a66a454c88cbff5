package oauthhttp_test

import (
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/httpauth"
	"github.com/apitoken-go/apitoken/oauthhttp"
	"github.com/apitoken-go/apitoken/store/memstore"
)

func must[T any](v T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return v
}

func ExampleNew() {
	svc := must(apitoken.New(apitoken.Config{Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: memstore.New(), InsecureKeysInStore: true}))
	defer svc.Close()
	oauth := must(oauthhttp.New(svc, nil))
	srv := httptest.NewServer(oauth) // in a program: mux.Handle("/", oauth)
	defer srv.Close()

	client, secret, err := svc.Clients.Create(must(http.NewRequest("GET", "/", nil)).Context(), apitoken.Client{
		ID: "billing", GrantTypes: []string{"client_credentials"}, Scopes: apitoken.Scopes{"orders:read"}})
	if err != nil {
		log.Fatal(err)
	}
	r := must(http.NewRequest("POST", srv.URL+"/token", strings.NewReader(url.Values{"grant_type": {"client_credentials"}}.Encode())))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.SetBasicAuth(client.ID, secret.Reveal())
	res := must(http.DefaultClient.Do(r))
	defer res.Body.Close()
	fmt.Println(res.StatusCode, res.Header.Get("Cache-Control"))
	// Output: 200 no-store
}

// The host's login and consent are its own pages: here a session cookie says who the user is.
func ExampleConsentFunc() {
	svc := must(apitoken.New(apitoken.Config{Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: memstore.New(), InsecureKeysInStore: true}))
	defer svc.Close()
	var oauth *oauthhttp.Handler
	oauth = must(oauthhttp.New(svc, &oauthhttp.Options{
		Consent: oauthhttp.ConsentFunc(func(w http.ResponseWriter, r *http.Request, a *oauthhttp.Authorization) {
			session, err := r.Cookie("user")
			if err != nil {
				// Back to the authorization endpoint with the same request after the login.
				http.Redirect(w, r, "/login?then="+url.QueryEscape(a.Query), http.StatusSeeOther)
				return
			}
			oauth.Approve(w, r, a, oauthhttp.Approval{Subject: session.Value, Scopes: oauthhttp.All()})
		}),
	}))
	mux := http.NewServeMux()
	mux.Handle("/", oauth)
	mux.HandleFunc("/login", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "who are you?") })
	w := httptest.NewRecorder()
	mux.ServeHTTP(w, httptest.NewRequest("GET", "/authorize", nil))
	fmt.Println(w.Code)
	// Output: 400
}

// A resource server in another process tells clients where to get tokens (RFC 9728).
func ExampleResourceMetadata() {
	const resource = "https://api.example.com"
	v := must(apitoken.New(apitoken.Config{Issuer: "https://auth.example.com", Audience: resource, Store: memstore.New(), InsecureKeysInStore: true}))
	defer v.Close() // in another process it is remote.NewValidator's
	auth := httpauth.New(v, &httpauth.Options{Metadata: oauthhttp.ResourceMetadataURL(resource)})
	mux := http.NewServeMux()
	mux.Handle("GET /.well-known/oauth-protected-resource", oauthhttp.ResourceMetadata(oauthhttp.Resource{Resource: resource, Issuers: []string{"https://auth.example.com"}}, ""))
	mux.Handle("GET /orders", auth.Authenticated(http.NotFoundHandler()))

	w := httptest.NewRecorder()
	mux.ServeHTTP(w, httptest.NewRequest("GET", resource+"/orders", nil))
	fmt.Println(w.Header().Get("WWW-Authenticate"))
	// Output: Bearer resource_metadata="https://api.example.com/.well-known/oauth-protected-resource"
}
