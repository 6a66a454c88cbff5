package export_test

import (
	"context"
	"fmt"
	"log"
	"log/slog"
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

// As a sink it gets each event once it is durable, in the final order of the log, also across restarts.
func ExampleNewSlogAuditor() {
	handler := slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}})
	auditor := export.NewSlogAuditor(slog.New(handler))

	svc, err := apitoken.New(apitoken.Config{
		Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: memstore.New(), InsecureKeysInStore: true,
		Sinks: []apitoken.Sink{{Name: "log", Auditor: export.NewSlogAuditor(slog.New(slog.DiscardHandler))}},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer svc.Close()

	// One event as it is written.
	err = auditor.Audit(context.Background(), apitoken.Event{ID: "01jexample", Type: event.Issued, OK: true, Subject: "alice"})
	if err != nil {
		log.Fatal(err)
	}
	// Output: level=INFO msg=audit event.id=01jexample event.type=token.issued event.ok=true event.subject=alice
}
