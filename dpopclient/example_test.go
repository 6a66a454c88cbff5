package dpopclient_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/dpopclient"
	"github.com/apitoken-go/apitoken/httpauth"
	"github.com/apitoken-go/apitoken/oauthhttp"
	"github.com/apitoken-go/apitoken/store/memstore"
)

// file is a Store: one session of one user, in a file that nobody else may read.
type file string

func (f file) Load(context.Context) (t dpopclient.Tokens, err error) {
	doc, err := os.ReadFile(string(f))
	if errors.Is(err, fs.ErrNotExist) {
		return t, nil
	}
	if err != nil {
		return t, err
	}
	return t, json.Unmarshal(doc, &t)
}

func (f file) Save(_ context.Context, t dpopclient.Tokens) error {
	doc, err := json.Marshal(t)
	if err != nil {
		return err
	}
	temp, err := os.CreateTemp(filepath.Dir(string(f)), "session-") // mode 0600
	if err != nil {
		return err
	}
	_, err = temp.Write(doc)
	err = errors.Join(err, temp.Sync(), temp.Close())
	if err == nil {
		err = os.Rename(temp.Name(), string(f))
	}
	return err
}

// A program that calls an API by itself. One for a user calls Client.Grant with the authorization code, once, and has no Machine.
func ExampleNew() {
	// The server: an authorization server and an API.
	mux := http.NewServeMux()
	server := httptest.NewServer(mux)
	defer server.Close()
	svc, err := apitoken.New(apitoken.Config{Issuer: server.URL, Audience: server.URL, Store: memstore.New(), InsecureKeysInStore: true})
	if err != nil {
		log.Fatal(err)
	}
	defer svc.Close()
	oauth, err := oauthhttp.New(svc, &oauthhttp.Options{RequireNonce: true})
	if err != nil {
		log.Fatal(err)
	}
	mux.Handle("/", oauth)
	auth := httpauth.New(svc, &httpauth.Options{BaseURL: server.URL})
	mux.Handle("/orders", auth.Require("orders:read")(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "orders of ", apitoken.FromContext(r.Context()).Client())
	})))
	_, secret, err := svc.Clients.Create(context.Background(), apitoken.Client{
		ID: "billing", GrantTypes: []string{"client_credentials"}, Scopes: apitoken.Scopes{"orders:read"}, BindDPoP: true})
	if err != nil {
		log.Fatal(err)
	}

	// The client.
	dir, err := os.MkdirTemp("", "billing-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		log.Fatal(err)
	}
	prover, err := dpopclient.NewProver(key, nil)
	if err != nil {
		log.Fatal(err)
	}
	client, err := dpopclient.New(dpopclient.Config{
		Prover: prover, TokenURL: server.URL + "/token", ClientID: "billing", ClientSecret: secret.Reveal(),
		APIs: []string{server.URL}, Store: file(filepath.Join(dir, "session.json")),
		Machine: url.Values{"grant_type": {"client_credentials"}},
	})
	if err != nil {
		log.Fatal(err)
	}
	api := &http.Client{Transport: client}
	answer, err := api.Get(server.URL + "/orders")
	if err != nil {
		log.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(answer.StatusCode, string(body))
	// Output: 200 orders of billing
}
