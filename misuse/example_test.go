package misuse_test

import (
	"bytes"
	"context"
	"fmt"
	"log"
	"net/http"
	"net/netip"
	"time"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/misuse"
	"github.com/apitoken-go/apitoken/store/memstore"
)

func service() *apitoken.Service {
	svc, err := apitoken.New(apitoken.Config{Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: memstore.New(), InsecureKeysInStore: true})
	if err != nil {
		log.Fatal(err)
	}
	return svc
}

// A policy in a few lines: a stolen session ends, a canary ends all that its subject holds, the rest is told.
func ExampleStart() {
	svc := service()
	defer svc.Close()

	watch, err := misuse.Start(svc, misuse.Config{
		Policy: func(_ context.Context, a misuse.Alert) misuse.Action {
			switch a.Detector {
			case misuse.Addresses, misuse.UserAgents:
				return misuse.RevokeGrant
			case misuse.Canary, misuse.Reuse:
				return misuse.RevokeSubject
			}
			return misuse.Tell
		},
	})
	if err != nil {
		log.Fatal(err)
	}

	ctx := context.Background()
	issued, err := svc.Issue(ctx, apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"orders:read"}, Refresh: true})
	if err != nil {
		log.Fatal(err)
	}
	for n := range 6 { // somebody sells the token
		at := apitoken.Origin{Address: netip.AddrFrom4([4]byte{198, 51, byte(n), 1})}
		if _, err := svc.Validate(apitoken.WithOrigin(ctx, at), apitoken.Bearer(issued.Access.Reveal())); err != nil {
			log.Fatal(err)
		}
	}
	if err := watch.Close(); err != nil { // acts on what was found
		log.Fatal(err)
	}
	for e, err := range svc.Events(ctx, apitoken.EventQuery{Type: event.Alert}) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(e.Reason, e.Subject, e.Count, e.Extra["action"], e.Extra["outcome"])
	}
	_, err = svc.Validate(ctx, apitoken.Bearer(issued.Access.Reveal()))
	fmt.Println(err)
	// Output:
	// addresses alice 6 revoke grant done
	// apitoken: token revoked: a rule on its grant
}

func ExampleNewScannerHandler() {
	svc := service()
	defer svc.Close()
	mux := http.NewServeMux()
	mux.Handle("POST /leaks/github", misuse.NewScannerHandler(svc, &misuse.ScannerOptions{
		Keys:   misuse.NewGitHubKeys(&misuse.GitHubKeysOptions{Client: &http.Client{Timeout: 3 * time.Second}}),
		Notify: func(_ context.Context, l misuse.Leak) { log.Printf("%s leaked at %s", l.Target, l.URL) },
	}))
}

func ExampleNewGitHubKeys() {
	keys := misuse.NewGitHubKeys(&misuse.GitHubKeysOptions{URL: "https://ghe.example.com/api/v3/meta/public_keys/secret_scanning"})
	_ = misuse.ScannerOptions{Keys: keys}
}

func ExampleNewPresentHandler() {
	svc := service()
	defer svc.Close()
	mux := http.NewServeMux()
	mux.Handle("/leaks/mine", misuse.NewPresentHandler(svc, nil)) // curl -X POST -H "Authorization: Bearer $FOUND" …
}

// For log shippers and commit hooks. What is to be revoked as well goes to Service.RevokeLeaked.
func ExampleFind() {
	svc := service()
	defer svc.Close()
	_, key, err := svc.APIKeys.Create(context.Background(), apitoken.APIKeyRequest{Subject: "alice", Name: "ci", Scopes: apitoken.Scopes{"builds"}})
	if err != nil {
		log.Fatal(err)
	}
	line := []byte("curl -u ci:" + key.Reveal() + " https://api.example.com/builds")
	for found := range misuse.Find(line) {
		line = bytes.ReplaceAll(line, []byte(found.Reveal()), []byte("[redacted]"))
	}
	fmt.Printf("%s\n", line)
	// Output: curl -u ci:[redacted] https://api.example.com/builds
}
