// Package demo is a service with a history, behind a console, for the tests in a browser and the pictures of docs/console.md.
package demo

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/console"
	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/store/memstore"
)

// Hostile is the name of a key and a client: it must show as text, and run nowhere.
const Hostile = `<img src=x onerror=alert(1)>"'&{{.}}`

// Demo is the running service.
type Demo struct {
	Service *apitoken.Service
	Console *console.Console
	Server  *httptest.Server
	// KeyID and EventID are of things that pages show; Old is a key that was rotated.
	KeyID, EventID, Old string
	// Token is an API key of mira's that works.
	Token string

	now atomic.Int64
}

// Start starts it, with a history of some months. Close it.
func Start() (*Demo, error) {
	d := &Demo{}
	d.now.Store(time.Date(2026, 4, 1, 9, 12, 0, 0, time.UTC).UnixMilli())
	var err error
	d.Service, err = apitoken.New(apitoken.Config{
		Issuer: "https://auth.quayside.example", Audience: "https://api.quayside.example", Store: memstore.New(), InsecureKeysInStore: true, Prefix: "quay",
		Now: func() time.Time { return time.UnixMilli(d.now.Load()) }, Limits: apitoken.Limits{APIKeysPerSubject: 20},
		Scopes: map[apitoken.Scope]string{
			"shipments": "Everything about shipments", "shipments:read": "See shipments, their events and papers", "shipments:write": "Create and change shipments",
			"shipments:cancel": "Cancel a shipment that is on its way", "rates": "Quotes and contracted rates", "rates:read": "Ask for quotes and see rates",
			"customs": "Declarations to customs offices", "customs:read": "See declarations and their state", "customs:file": "File a declaration", "invoices:read": "See invoices",
		},
	})
	if err != nil {
		return nil, err
	}
	d.Console, err = console.New(d.Service, console.Options{
		Base: "/account", Title: "Quayside", Home: "/", Example: "https://api.quayside.example/v1/shipments", AllowNoExpiry: true, Faces: console.Self | console.Admin,
		Presets: []console.Preset{{Name: "Read only", Scopes: apitoken.Scopes{"shipments:read", "rates:read"}}, {Name: "Ship and track", Scopes: apitoken.Scopes{"shipments"}}},
		Actor:   d.actor,
	})
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("/account/", d.Console)
	// The host's own login, which is not what is tested here: whoever asks is who they say.
	mux.HandleFunc("GET /as/{user}", func(w http.ResponseWriter, r *http.Request) {
		http.SetCookie(w, &http.Cookie{Name: "user", Value: r.PathValue("user"), Path: "/", HttpOnly: true})
		fmt.Fprintln(w, "signed in")
	})
	d.Server = httptest.NewServer(mux)
	return d, d.history()
}

// Close ends everything.
func (d *Demo) Close() {
	d.Server.Close()
	_ = d.Console.Close()
	_ = d.Service.Close()
}

var names = map[string]string{"mira": "Mira Okafor", "olga": "Olga Lind", "rita": "Rita Moss"}

func (d *Demo) actor(r *http.Request) (console.Actor, error) {
	c, err := r.Cookie("user")
	if err != nil {
		return console.Actor{}, apitoken.ErrNoToken
	}
	a := console.Actor{Subject: c.Value, Name: names[c.Value], Scopes: apitoken.Scopes{"shipments", "rates", "customs"}}
	switch c.Value {
	case "olga":
		a.Admin = console.Operator
	case "rita":
		a.Admin = console.Reader
	}
	return a, nil
}

// Advance moves the clock.
func (d *Demo) Advance(by time.Duration) error {
	d.now.Add(by.Milliseconds())
	return d.Service.Sync(context.Background())
}

func (d *Demo) history() error {
	from := func(address, agent string) context.Context {
		return apitoken.WithOrigin(context.Background(), apitoken.Origin{Address: netip.MustParseAddr(address), UserAgent: agent})
	}
	const firefox = "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0"
	desk, office := apitoken.WithActor(from("192.0.2.61", firefox), "mira"), apitoken.WithActor(from("192.0.2.12", firefox), "olga")
	const day = 24 * time.Hour
	var failed error
	do := func(err error) {
		if failed == nil {
			failed = err
		}
	}
	key := func(name string, lives time.Duration, scopes ...apitoken.Scope) (string, string) {
		q := apitoken.APIKeyRequest{Subject: "mira", Name: name, Scopes: scopes}
		if lives > 0 {
			q.Expires = d.Service.Adapter().Now().Add(lives)
		}
		k, secret, err := d.Service.APIKeys.Create(desk, q)
		do(err)
		do(d.Advance(37 * time.Minute))
		return k.ID, secret.Reveal()
	}
	use := func(key, address string, scope apitoken.Scope) {
		_, err := apitoken.Authorize(from(address, "sync/1.0"), d.Service, apitoken.Bearer(key), apitoken.AllOf(scope))
		do(err)
	}
	for _, c := range []apitoken.Client{
		{ID: "web", Name: "Quayside web", GrantTypes: []string{"authorization_code", "refresh_token"}, Scopes: apitoken.Scopes{"customs", "rates", "shipments"}, RedirectURIs: []string{"https://app.quayside.example/callback"}},
		{ID: "cli", Name: "Quayside CLI", Public: true, GrantTypes: []string{"urn:ietf:params:oauth:grant-type:device_code", "refresh_token"}, Scopes: apitoken.Scopes{"rates:read", "shipments"}, BindDPoP: true},
		{ID: "carrier-gateway", Name: "Carrier gateway", GrantTypes: []string{"client_credentials"}, Scopes: apitoken.Scopes{"shipments:read", "shipments:write"}},
		{ID: "hostile", Name: Hostile, Public: true, GrantTypes: []string{"refresh_token"}, Scopes: apitoken.Scopes{"rates:read"}},
	} {
		_, _, err := d.Service.Clients.Create(office, c)
		do(err)
	}
	key("local testing", 0, "shipments:read")
	_, bot := key("customs-bot", 400*day, "customs:file", "customs:read")
	use(bot, "203.0.113.80", "customs:read")
	sync, secret := key("warehouse-sync", 300*day, "shipments:read", "shipments:write")
	zapier, _ := key("old-zapier", 300*day, "shipments")
	key(Hostile, 300*day, "rates:read")
	do(d.Advance(130 * day))
	bridge, old := key("erp-bridge", 300*day, "rates:read", "shipments")
	key("nightly-report", 6*day, "rates:read", "shipments:read")
	do(d.Service.APIKeys.Revoke(desk, zapier, "replaced by erp-bridge"))
	for _, agent := range []string{firefox, "Quayside/8.2 iOS/19.1", "quay-cli/2.4.1 (darwin; arm64)"} {
		_, err := d.Service.Issue(from("192.0.2.61", agent), apitoken.Request{Subject: "mira", Scopes: apitoken.Scopes{"shipments", "rates"}, Refresh: true})
		do(err)
		do(d.Advance(time.Hour))
	}
	use(old, "198.51.100.9", "rates:read")
	_, _, err := d.Service.APIKeys.Rotate(desk, bridge, 24*time.Hour)
	do(err)
	do(d.Advance(46 * time.Minute))
	use(secret, "203.0.113.24", "shipments:read")
	use(secret, "203.0.113.25", "shipments:read")
	_, _ = apitoken.Authorize(from("203.0.113.25", "sync/1.0"), d.Service, apitoken.Bearer(secret), apitoken.AllOf("shipments:cancel")) // refused, and counted
	for i := range 40 {
		_, _ = d.Service.Validate(from("203.0.113.199", "x"), apitoken.Bearer(fmt.Sprint("quay_ak_", i))) // refused
	}
	do(d.Service.Alert(from("203.0.113.199", "x"), apitoken.Event{Reason: "revoked token in use", Subject: "mira", Count: 61}))
	do(d.Service.Revoke(office, apitoken.BySessions("t.vandijk"), "lost phone"))
	_, err = d.Service.Clients.RotateSecret(office, "carrier-gateway", 24*time.Hour)
	do(err)
	do(d.Advance(2 * time.Minute))
	d.KeyID, d.Old, d.Token = sync, bridge, secret
	list, _, err := d.Service.EventPage(context.Background(), apitoken.EventQuery{Type: event.Alert}, "", 1)
	do(err)
	if len(list) > 0 {
		d.EventID = list[0].ID
	}
	return failed
}
