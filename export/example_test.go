package export_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"strings"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/export"
	"github.com/apitoken-go/apitoken/store/memstore"
)

func exampleService() *apitoken.Service {
	svc, err := apitoken.New(apitoken.Config{Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: memstore.New(), InsecureKeysInStore: true})
	if err != nil {
		log.Fatal(err)
	}
	if _, err := svc.Issue(context.Background(), apitoken.Request{Subject: "alice"}); err != nil {
		log.Fatal(err)
	}
	return svc
}

// A later run goes on where the last one ended.
func ExampleCopy() {
	svc := exampleService()
	defer svc.Close()
	ctx := context.Background()
	var out strings.Builder
	w := export.NewJSONL(&out)
	place, err := export.Copy(ctx, svc, apitoken.EventQuery{Subject: "alice"}, export.Place{}, w)
	if err != nil {
		log.Fatal(err)
	}
	kept, err := place.MarshalText() // into a file, say
	if err != nil {
		log.Fatal(err)
	}
	var from export.Place
	if err := from.UnmarshalText(kept); err != nil {
		log.Fatal(err)
	}
	if _, err := export.Copy(ctx, svc, apitoken.EventQuery{Subject: "alice"}, from, w); err != nil {
		log.Fatal(err)
	}
	fmt.Println(strings.Count(out.String(), "\n"), "event")
	// Output: 1 event
}

func ExampleNewJSONL() {
	w := export.NewJSONL(os.Stdout)
	err := w.Audit(context.Background(), apitoken.Event{ID: "01jq", Type: event.Issued, OK: true, Subject: "alice"})
	if err != nil {
		log.Fatal(err)
	}
	// Output: {"id":"01jq","time":"0001-01-01T00:00:00Z","type":"token.issued","ok":true,"subject":"alice"}
}

func ExampleNewOCSF() {
	svc := exampleService()
	defer svc.Close()
	var out strings.Builder
	w := export.NewOCSF(&out, export.OCSFOptions{Service: svc.Issuer()})
	if _, err := export.Copy(context.Background(), svc, apitoken.EventQuery{Subject: "alice"}, export.Place{}, w); err != nil {
		log.Fatal(err)
	}
	fmt.Println(strings.Contains(out.String(), `"type_name":"Authentication: Logon"`))
	// Output: true
}

// As a sink of the service every event reaches the receiver, in order, across restarts.
func ExampleNewWebhook() {
	hook, err := export.NewWebhook(export.WebhookConfig{
		URL:     "https://siem.example.com/events",
		Secrets: [][]byte{[]byte(strings.Repeat("s", 32))}, // random, from the host's secrets
		Encode:  export.OCSFEncoder(export.OCSFOptions{}),
	})
	if err != nil {
		log.Fatal(err)
	}
	defer hook.Close(context.Background())
	svc, err := apitoken.New(apitoken.Config{
		Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: memstore.New(), InsecureKeysInStore: true,
		Sinks: []apitoken.Sink{{Name: "siem", Auditor: hook}},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer svc.Close()
}
