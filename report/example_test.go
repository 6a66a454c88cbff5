package report_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/report"
	"github.com/apitoken-go/apitoken/store/memstore"
)

func open() *apitoken.Service {
	svc, err := apitoken.New(apitoken.Config{Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: memstore.New(), InsecureKeysInStore: true})
	if err != nil {
		log.Fatal(err)
	}
	return svc
}

// A token was stolen: what was done with it, and the end of all that came of it.
func ExampleBlastOf() {
	ctx := context.Background()
	svc := open()
	defer svc.Close()
	stolen, err := svc.Issue(ctx, apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"orders", "users:read"}, Refresh: true})
	if err != nil {
		log.Fatal(err)
	}
	if _, err := apitoken.Authorize(ctx, svc, apitoken.Bearer(stolen.Access.Reveal()), apitoken.AllOf("orders:read")); err != nil {
		log.Fatal(err)
	}

	radius, err := report.BlastOf(ctx, svc, stolen.Refresh)
	if err != nil {
		log.Fatal(err)
	}
	for _, x := range radius.Sessions {
		fmt.Println(x.Kind, "of", x.Subject, "held", x.Held, "used", x.Usage.Scopes, x.Usage.Count, "time(s), never", x.Unused())
	}
	if err := radius.Revoke(ctx, svc, "stolen laptop"); err != nil {
		log.Fatal(err)
	}
	_, err = svc.Validate(ctx, apitoken.Bearer(stolen.Access.Reveal()))
	fmt.Println(err)
	// Output:
	// grant of alice held orders users:read used orders:read 1 time(s), never users:read
	// apitoken: token revoked: a rule on its grant
}

// Owners of API keys learn in time that these end: here the announcement goes into the audit log, and so to its sinks.
func ExampleAnnounce() {
	svc := open()
	defer svc.Close()
	announcer, err := report.Announce(svc, report.AnnouncerConfig{
		At:   []time.Duration{30 * 24 * time.Hour, 7 * 24 * time.Hour, 24 * time.Hour},
		Tell: func(ctx context.Context, a report.Announcement) error { return svc.Alert(ctx, a.Event()) },
	})
	if err != nil {
		log.Fatal(err)
	}
	defer announcer.Close()
}

// What ends within a month, by who has to do something about it.
func ExampleByOwner() {
	ctx := context.Background()
	svc := open()
	defer svc.Close()
	_, _, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "alice", Name: "build", Expires: time.Now().Add(240 * time.Hour)})
	if err != nil {
		log.Fatal(err)
	}
	owners, err := report.ByOwner(svc.Expiring(ctx, time.Now().Add(30*24*time.Hour), false))
	if err != nil {
		log.Fatal(err)
	}
	for _, o := range owners {
		for _, x := range o.Items {
			fmt.Println(o.Name, x.Kind, x.Name)
		}
	}
	// Output: alice apikey build
}

// API keys that nobody would miss, never end, or may do more than they do.
func ExampleHygiene() {
	ctx := context.Background()
	svc := open()
	defer svc.Close()
	if _, _, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "alice", Name: "build", Scopes: apitoken.Scopes{"orders"}}); err != nil {
		log.Fatal(err)
	}
	for f, err := range report.Hygiene(ctx, svc, report.HygieneConfig{Unused: 90 * 24 * time.Hour}) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(f.Key.Name, "idle:", f.Idle > 0, "no expiry:", f.NoExpiry, "enough would be:", f.Narrower)
	}
	// Output: build idle: false no expiry: true enough would be:
}
