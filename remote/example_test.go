package remote_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/remote"
	"github.com/apitoken-go/apitoken/store/memstore"
)

// The issuer serves its keys and its revocations beside its own API. What anybody may read is open; the feed asks for a
// client that holds FollowScope.
func ExampleHandler() {
	svc, err := apitoken.New(apitoken.Config{
		Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: memstore.New(), InsecureKeysInStore: true,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer svc.Close()
	mux := http.NewServeMux()
	mux.Handle("/", remote.Handler(svc))

	for _, url := range []string{remote.MetadataURL("https://auth.example.com"), "https://auth.example.com/.well-known/jwks.json", remote.FeedURL("https://auth.example.com")} {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequest(http.MethodGet, url, nil))
		fmt.Println(url, w.Code)
	}
	// Output:
	// https://auth.example.com/.well-known/oauth-authorization-server 200
	// https://auth.example.com/.well-known/jwks.json 200
	// https://auth.example.com/apitoken/revocations 401
}

// A process that only validates: it knows the issuer's name and has a secret for the feed, and links no store.
func ExampleNewValidator() {
	// The issuer, in another process. Over the network its URL is https.
	mux := http.NewServeMux()
	server := httptest.NewServer(mux)
	defer server.Close()
	issuer, err := apitoken.New(apitoken.Config{
		Issuer: server.URL, Audience: "https://api.example.com", Store: memstore.New(), InsecureKeysInStore: true,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer issuer.Close()
	mux.Handle("/", remote.Handler(issuer))
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	client, secret, err := issuer.Clients.Create(ctx, apitoken.Client{
		Name: "orders", GrantTypes: []string{"client_credentials"}, Scopes: apitoken.Scopes{remote.FollowScope},
	})
	if err != nil {
		log.Fatal(err)
	}

	// This process.
	validator, err := remote.NewValidator(remote.Config{
		Issuer: server.URL, Audience: "https://api.example.com",
		Client: apitoken.ClientAuth{ID: client.ID, Secret: secret},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer validator.Close()
	if err := validator.Ready(ctx); err != nil { // optional: without it, requests get 503 until then
		log.Fatal(err)
	}

	issued, err := issuer.Issue(ctx, apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"orders:read"}})
	if err != nil {
		log.Fatal(err)
	}
	token, err := validator.Validate(ctx, apitoken.Bearer(issued.Access.Reveal()))
	fmt.Println(token.Subject(), err)

	if err := issuer.Revoke(ctx, apitoken.BySubject("alice"), "left the company"); err != nil {
		log.Fatal(err)
	}
	for err == nil { // until the news arrives, within milliseconds
		_, err = validator.Validate(ctx, apitoken.Bearer(issued.Access.Reveal()))
	}
	fmt.Println("revoked:", errors.Is(err, apitoken.ErrRevoked))
	// Output:
	// alice <nil>
	// revoked: true
}

// Without a secret: the client is registered for tls_client_auth or self_signed_tls_client_auth, and its certificate proves it.
// It is read again at each handshake, so that a new one needs no restart.
func ExampleNewValidator_certificate() {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			cert, err := tls.LoadX509KeyPair("orders.pem", "orders.key")
			return &cert, err
		},
	}
	validator, err := remote.NewValidator(remote.Config{
		Issuer: "https://auth.example.com", Audience: "https://api.example.com",
		Client: apitoken.ClientAuth{ID: "orders"},
		HTTP:   &http.Client{Transport: transport},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer validator.Close()
}
