package apitoken_test

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/export"
	"github.com/apitoken-go/apitoken/store"
)

func TestConfigIsRefused(t *testing.T) {
	t.Parallel()
	st := tempStore(t)
	for what, c := range map[string]struct {
		field  string
		change func(*apitoken.Config)
	}{
		"no issuer":           {"Issuer", func(c *apitoken.Config) { c.Issuer = "" }},
		"http issuer":         {"Issuer", func(c *apitoken.Config) { c.Issuer = "http://auth.example.com" }},
		"issuer with query":   {"Issuer", func(c *apitoken.Config) { c.Issuer += "?x" }},
		"issuer, fragment":    {"Issuer", func(c *apitoken.Config) { c.Issuer += "#x" }},
		"issuer, user":        {"Issuer", func(c *apitoken.Config) { c.Issuer = "https://me@auth.example.com" }},
		"issuer, no URL":      {"Issuer", func(c *apitoken.Config) { c.Issuer = "auth" }},
		"no audience":         {"Audience", func(c *apitoken.Config) { c.Audience = "" }},
		"audience with space": {"Audience", func(c *apitoken.Config) { c.Audience = "a b" }},
		"no store":            {"Store", func(c *apitoken.Config) { c.Store = nil }},
		"no sealer":           {"Seal", func(c *apitoken.Config) { c.InsecureKeysInStore = false }},
		"own keys, unknown":   {"AudienceAlgorithms", func(c *apitoken.Config) { c.AudienceAlgorithms = map[string]string{"https://x.example.com": "ES256"} }},
		"own keys, none":      {"AudienceAlgorithms", func(c *apitoken.Config) { c.AudienceAlgorithms = map[string]string{testAudience: "none"} }},
		"own keys, shared":    {"AudienceAlgorithms", func(c *apitoken.Config) { c.AudienceAlgorithms = map[string]string{testAudience: "HS256"} }},
		"own keys, empty":     {"AudienceAlgorithms", func(c *apitoken.Config) { c.AudienceAlgorithms = map[string]string{testAudience: ""} }},
		"own keys beside HS": {"AudienceAlgorithms", func(c *apitoken.Config) {
			c.Algorithm, c.AudienceAlgorithms = "HS256", map[string]string{testAudience: "ES256"}
		}},
		"prefix":              {"Prefix", func(c *apitoken.Config) { c.Prefix = "A_" }},
		"first party":         {"FirstParty", func(c *apitoken.Config) { c.FirstParty = "a b" }},
		"none":                {"Algorithm", func(c *apitoken.Config) { c.Algorithm = "none" }},
		"unknown algorithm":   {"Algorithm", func(c *apitoken.Config) { c.Algorithm = "ES255" }},
		"HS256, two services": {"Algorithm", func(c *apitoken.Config) { c.Algorithm, c.Audiences = "HS256", []string{"https://b.example.com"} }},
		"rotation":            {"KeyRotation", func(c *apitoken.Config) { c.KeyRotation = time.Millisecond }},
		"access":              {"Lifetimes.Access", func(c *apitoken.Config) { c.Lifetimes.Access = time.Millisecond }},
		"access over max":     {"Lifetimes.Access", func(c *apitoken.Config) { c.Lifetimes = apitoken.Lifetimes{Access: time.Hour, MaxAccess: time.Minute} }},
		"max access":          {"Lifetimes.MaxAccess", func(c *apitoken.Config) { c.Lifetimes.MaxAccess = 25 * time.Hour }},
		"negative":            {"Lifetimes", func(c *apitoken.Config) { c.Lifetimes.Grant = -1 }},
		"idle over grant":     {"Lifetimes.Idle", func(c *apitoken.Config) { c.Lifetimes = apitoken.Lifetimes{Grant: time.Hour, Idle: 2 * time.Hour} }},
		"limits":              {"Limits", func(c *apitoken.Config) { c.Limits.GrantsPerSubject = -1 }},
		"limits too high":     {"Limits", func(c *apitoken.Config) { c.Limits.APIKeysPerSubject = 501 }},
		"scope":               {"Scopes", func(c *apitoken.Config) { c.Scopes = map[apitoken.Scope]string{"a b": ""} }},
		"role":                {"Roles", func(c *apitoken.Config) { c.Roles = map[string]apitoken.Scopes{"a b": nil} }},
		"role's scope": {"Roles", func(c *apitoken.Config) {
			c.Scopes, c.Roles = map[apitoken.Scope]string{"a": ""}, map[string]apitoken.Scopes{"r": {"typo"}}
		}},
		"grace":       {"Refresh.Grace", func(c *apitoken.Config) { c.Refresh.Grace = time.Hour }},
		"staleness":   {"Validation.MaxStaleness", func(c *apitoken.Config) { c.Validation.MaxStaleness = time.Millisecond }},
		"serve stale": {"Validation.InsecureServeStale", func(c *apitoken.Config) { c.Validation.InsecureServeStale = time.Second }},
		"skew":        {"Validation.Skew", func(c *apitoken.Config) { c.Validation.Skew = time.Hour }},
		"token bytes": {"Validation.MaxTokenBytes", func(c *apitoken.Config) { c.Validation.MaxTokenBytes = 1 << 20 }},
		"own as trust": {"Trust", func(c *apitoken.Config) {
			c.Trust = []apitoken.Trusted{{Issuer: testIssuer, Keys: fixedKeys("{}"), InsecureNoRevocations: true}}
		}},
		"no feed": {"Trust", func(c *apitoken.Config) { c.Trust = []apitoken.Trusted{{Issuer: otherIssuer, Keys: fixedKeys("{}")}} }},
		"no keys": {"Trust", func(c *apitoken.Config) {
			c.Trust = []apitoken.Trusted{{Issuer: otherIssuer, InsecureNoRevocations: true}}
		}},
		"sink": {"Sinks", func(c *apitoken.Config) { c.Sinks = []apitoken.Sink{{Name: "x"}} }},
		"sink's lag": {"Sinks", func(c *apitoken.Config) {
			c.Sinks = []apitoken.Sink{{Name: "x", Auditor: export.NewSlogAuditor(slog.Default()), MaxLag: 1}}
		}},
		"events":   {"KeepEvents", func(c *apitoken.Config) { c.KeepEvents = time.Minute }},
		"restored": {"Restored", func(c *apitoken.Config) { c.Restored = 9 }},
	} {
		cfg := config(st)
		c.change(&cfg)
		_, err := apitoken.New(cfg)
		var e *apitoken.ConfigError
		require.ErrorAs(t, err, &e, what)
		require.Equal(t, c.field, e.Field, what)
		require.Contains(t, err.Error(), "Config."+c.field, "%s: it names the field", what)
	}
	// One issuer for each namespace.
	serviceOn(t, st, nil)
	cfg := config(st)
	cfg.Issuer = otherIssuer
	_, err := apitoken.New(cfg)
	require.ErrorContains(t, err, testIssuer)
}

func TestClaimsAreTheHostsOwn(t *testing.T) {
	t.Parallel()
	svc := service(t, nil)
	type own struct {
		Tenant string   `json:"tenant"`
		Groups []string `json:"groups,omitempty"`
		Big    uint64   `json:"big"`
	}
	want := own{"acme <&>", []string{"a"}, 1<<63 + 1}
	i := issue(t, svc, apitoken.Request{Subject: "alice", Claims: want, Refresh: true})
	for range 2 {
		tok, err := svc.Validate(context.Background(), apitoken.Bearer(i.Access.Reveal()))
		require.NoError(t, err)
		var got own
		require.NoError(t, tok.Claims(&got))
		require.Equal(t, want, got)
	}
	n, err := refresh(svc, i.Refresh)
	require.NoError(t, err)
	var got own
	require.NoError(t, n.Token.Claims(&got))
	require.Equal(t, want, got)
	for _, name := range []string{"iss", "sub", "aud", "exp", "nbf", "iat", "jti", "client_id", "scope", "roles", "sid", "cnf", "act", "pos", "gra", "SUB", "Exp", "authorization_details"} {
		_, err := svc.Issue(context.Background(), apitoken.Request{Subject: "alice", Claims: map[string]any{name: "x"}})
		if name == "authorization_details" && err == nil {
			continue
		}
		require.ErrorIs(t, err, apitoken.ErrInvalidRequest, "%s is reserved", name)
	}
	for _, bad := range []any{1, "x", []int{1}, func() {}, map[string]any{"x": strings.Repeat("y", 5000)}, map[string]any{"x": make(chan int)}} {
		_, err := svc.Issue(context.Background(), apitoken.Request{Subject: "alice", Claims: bad})
		require.ErrorIs(t, err, apitoken.ErrInvalidRequest)
	}
}

func TestRequestsThatWiden(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, func(c *apitoken.Config) {
		c.Scopes = map[apitoken.Scope]string{"orders": "", "orders:read": "", "orders:write": "", "admin": ""}
		c.Roles = map[string]apitoken.Scopes{"clerk": {"orders:read", "admin"}}
		c.Audiences = []string{"https://b.example.com"}
	})
	_, secret, err := svc.Clients.Create(ctx, apitoken.Client{ID: "web", GrantTypes: []string{"client_credentials"}, Scopes: apitoken.Scopes{"orders"}, Audiences: []string{testAudience},
		Lifetimes: apitoken.Lifetimes{Access: time.Minute, MaxAccess: 2 * time.Minute}})
	require.NoError(t, err)
	auth := apitoken.ClientAuth{ID: "web", Secret: secret}
	for what, c := range map[string]struct {
		r    apitoken.Request
		want error
	}{
		"nobody":             {apitoken.Request{}, apitoken.ErrInvalidRequest},
		"unknown scope":      {apitoken.Request{Subject: "a", Scopes: apitoken.Scopes{"order"}}, apitoken.ErrInvalidScope},
		"two in one, held":   {apitoken.Request{Subject: "a", Client: "web", Scopes: apitoken.Scopes{"orders:read admin"}}, apitoken.ErrInvalidScope},
		"malformed scope":    {apitoken.Request{Subject: "a", Scopes: apitoken.Scopes{"a b"}}, apitoken.ErrInvalidScope},
		"scope not held":     {apitoken.Request{Subject: "a", Client: "web", Scopes: apitoken.Scopes{"admin"}}, apitoken.ErrInvalidScope},
		"unknown role":       {apitoken.Request{Subject: "a", Roles: []string{"boss"}}, apitoken.ErrInvalidRequest},
		"role twice":         {apitoken.Request{Subject: "a", Roles: []string{"clerk", "clerk"}}, apitoken.ErrInvalidRequest},
		"unknown audience":   {apitoken.Request{Subject: "a", Audiences: []string{"https://c.example.com"}}, apitoken.ErrInvalidTarget},
		"audience not held":  {apitoken.Request{Subject: "a", Client: "web", Audiences: []string{"https://b.example.com"}}, apitoken.ErrInvalidTarget},
		"unknown client":     {apitoken.Request{Subject: "a", Client: "nobody"}, apitoken.ErrInvalidClient},
		"client's own, bare": {apitoken.Request{Client: "web"}, apitoken.ErrInvalidClient},
		"wrong secret":       {apitoken.Request{Auth: apitoken.ClientAuth{ID: "web", Secret: apitoken.NewSecret("x")}}, apitoken.ErrInvalidClient},
		"two clients":        {apitoken.Request{Client: "web", Auth: apitoken.ClientAuth{ID: "other"}}, apitoken.ErrInvalidRequest},
		"own with refresh":   {apitoken.Request{Auth: auth, Refresh: true}, apitoken.ErrInvalidRequest},
		"no refresh type":    {apitoken.Request{Subject: "a", Client: "web", Refresh: true}, apitoken.ErrDenied},
		"subject is client":  {apitoken.Request{Subject: "web"}, apitoken.ErrInvalidRequest},
		"subject is host":    {apitoken.Request{Subject: "first-party"}, apitoken.ErrInvalidRequest},
		"control":            {apitoken.Request{Subject: "a\x00b"}, apitoken.ErrInvalidRequest},
		"long":               {apitoken.Request{Subject: strings.Repeat("a", 256)}, apitoken.ErrInvalidRequest},
		"binding":            {apitoken.Request{Subject: "a", Binding: "jkt:short"}, apitoken.ErrInvalidRequest},
		"negative life":      {apitoken.Request{Subject: "a", Lifetime: -1}, apitoken.ErrInvalidRequest},
		"no such grant":      {apitoken.Request{Subject: "a", Grant: "nosuch"}, apitoken.ErrInvalidGrant},
	} {
		_, err := svc.Issue(ctx, c.r)
		require.ErrorIs(t, err, c.want, what)
	}
	i := issue(t, svc, apitoken.Request{Subject: "a", Client: "web", Roles: []string{"clerk"}, Lifetime: time.Hour})
	require.Equal(t, apitoken.Scopes{"orders:read"}, i.Token.Scopes(), "roles expand within what the client may hold")
	require.Equal(t, 2*time.Minute, i.Token.ExpiresAt().Sub(i.Token.IssuedAt()), "cut to the maximum")
	i = issue(t, svc, apitoken.Request{Subject: "a", Roles: []string{"clerk"}, Scopes: apitoken.Scopes{"orders:read"}})
	require.Equal(t, apitoken.Scopes{"orders:read"}, i.Token.Scopes(), "Scopes narrows what roles give")
	own := issue(t, svc, apitoken.Request{Auth: auth, Scopes: apitoken.Scopes{"orders:read"}})
	require.True(t, own.Token.IsClient())
	require.Equal(t, "web", own.Token.Subject())
	other := issue(t, svc, apitoken.Request{Subject: "a", Audiences: []string{"https://b.example.com"}})
	require.ErrorIs(t, validate(svc, other.Access), apitoken.ErrInvalidToken, "for another service")
}

func TestRolesChangeAtRunTime(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	st := tempStore(t)
	with := func(c *apitoken.Config) {
		c.Roles = map[string]apitoken.Scopes{"clerk": {"orders:read", "orders:write"}}
	}
	svc, other := serviceOn(t, st, with), serviceOn(t, st, with)
	i := issue(t, svc, apitoken.Request{Subject: "alice", Roles: []string{"clerk"}, Refresh: true})
	require.True(t, i.Token.Allows("orders:write"))
	require.NoError(t, svc.SetRole(ctx, "clerk", apitoken.Scopes{"orders:read"}))
	require.ErrorIs(t, validate(svc, i.Access), apitoken.ErrRevoked, "what it lost is not usable until the token is minted again")
	require.NoError(t, other.Sync(ctx))
	require.ErrorIs(t, validate(other, i.Access), apitoken.ErrRevoked)
	n, err := refresh(other, i.Refresh)
	require.NoError(t, err)
	require.False(t, n.Token.Allows("orders:write"))
	require.True(t, n.Token.Allows("orders:read"))
	require.NoError(t, validate(svc, n.Access))
	require.NoError(t, svc.SetRole(ctx, "clerk", apitoken.Scopes{"orders:read", "orders:list"}))
	require.NoError(t, validate(svc, n.Access), "gaining scopes refuses nothing")
	require.Equal(t, apitoken.Scopes{"orders:list", "orders:read"}, svc.Roles()["clerk"])
	require.NoError(t, svc.Close())
	again := serviceOn(t, st, with)
	require.Equal(t, apitoken.Scopes{"orders:list", "orders:read"}, again.Roles()["clerk"], "Config.Roles is for the first start")
}

func TestClients(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	c := &clock{}
	st := tempStore(t)
	with := func(cfg *apitoken.Config) { cfg.Now = c.Now }
	svc, other := serviceOn(t, st, with), serviceOn(t, st, with)
	web, one, err := svc.Clients.Create(ctx, apitoken.Client{Name: "Web", GrantTypes: []string{"client_credentials", "refresh_token"}, Scopes: apitoken.Scopes{"a", "b"}})
	require.NoError(t, err)
	login := func(s *apitoken.Service, secret apitoken.Secret) error {
		_, err := s.Clients.Authenticate(ctx, apitoken.ClientAuth{ID: web.ID, Secret: secret})
		return err
	}
	require.NoError(t, other.Sync(ctx))
	require.NoError(t, login(other, one))
	two, err := svc.Clients.RotateSecret(ctx, web.ID, time.Hour)
	require.NoError(t, err)
	require.NoError(t, login(svc, one), "two secrets live while one rotates")
	require.NoError(t, login(svc, two))
	three, err := svc.Clients.RotateSecret(ctx, web.ID, time.Hour)
	require.NoError(t, err)
	require.ErrorIs(t, login(svc, one), apitoken.ErrInvalidClient, "at most two")
	require.NoError(t, login(svc, two))
	c.Advance(time.Hour + time.Second)
	require.ErrorIs(t, login(svc, two), apitoken.ErrInvalidClient)
	require.NoError(t, login(svc, three))

	require.NoError(t, svc.Sync(ctx))
	i := issue(t, svc, apitoken.Request{Subject: "alice", Client: web.ID, Scopes: apitoken.Scopes{"a", "b"}, Refresh: true})
	_, err = svc.Clients.Update(ctx, web.ID, func(c *apitoken.Client) error { c.Scopes = apitoken.Scopes{"a"}; return nil })
	require.NoError(t, err)
	require.ErrorIs(t, validate(svc, i.Access), apitoken.ErrRevoked, "narrowed: to be minted again")
	n, err := svc.Refresh(ctx, apitoken.RefreshRequest{Token: i.Refresh.Reveal(), Auth: apitoken.ClientAuth{ID: web.ID, Secret: three}})
	require.NoError(t, err)
	require.Equal(t, apitoken.Scopes{"a"}, n.Token.Scopes())
	_, err = svc.Clients.Update(ctx, web.ID, func(c *apitoken.Client) error { c.Disabled = true; return nil })
	require.NoError(t, err)
	require.ErrorIs(t, validate(svc, n.Access), apitoken.ErrRevoked)
	require.ErrorIs(t, login(svc, three), apitoken.ErrDenied)
	require.NoError(t, other.Sync(ctx))
	require.ErrorIs(t, validate(other, n.Access), apitoken.ErrRevoked)
	_, err = svc.Clients.Update(ctx, web.ID, func(c *apitoken.Client) error { c.Disabled = false; return nil })
	require.NoError(t, err)
	require.NoError(t, login(svc, three))
	require.ErrorIs(t, validate(svc, n.Access), apitoken.ErrRevoked, "enabling brings nothing back to life")

	for what, bad := range map[string]apitoken.Client{
		"public with credentials": {ID: "x1", Public: true, GrantTypes: []string{"client_credentials"}}, "public exchange": {ID: "x2", Public: true, GrantTypes: []string{"urn:ietf:params:oauth:grant-type:token-exchange"}},
		"unknown type": {ID: "x3", GrantTypes: []string{"password"}}, "twice": {ID: "x4", GrantTypes: []string{"refresh_token", "refresh_token"}}, "taken": {ID: web.ID}, "host's": {ID: "first-party"},
		"space": {ID: "a b"}, "name": {ID: "x5", Name: strings.Repeat("n", 101)}, "impersonates": {ID: "x6", MayImpersonate: true}, "lifetimes": {ID: "x7", Lifetimes: apitoken.Lifetimes{Access: -1}},
	} {
		_, _, err := svc.Clients.Create(ctx, bad)
		require.ErrorIs(t, err, apitoken.ErrInvalidRequest, what)
	}
	_, err = svc.Clients.Get(ctx, "nosuch")
	require.ErrorIs(t, err, apitoken.ErrNotFound)
}

func TestDeclaredClients(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	st := tempStore(t)
	svc := serviceOn(t, st, nil)
	c := apitoken.Client{ID: "batch", GrantTypes: []string{"client_credentials"}, Scopes: apitoken.Scopes{"a"}}
	chosen := apitoken.NewSecret("correct horse battery staple")
	require.ErrorIs(t, svc.Clients.Declare(ctx, c), apitoken.ErrInvalidRequest)
	require.ErrorIs(t, svc.Clients.Declare(ctx, c, apitoken.NewSecret("short")), apitoken.ErrInvalidRequest)
	code := apitoken.Client{ID: "spa", Public: true, GrantTypes: []string{"authorization_code"}}
	require.ErrorIs(t, svc.Clients.Declare(ctx, code), apitoken.ErrInvalidRequest, "no code could reach it")
	code.RedirectURIs = []string{"https://app.example.com/cb"}
	require.NoError(t, svc.Clients.Declare(ctx, code))
	for range 3 {
		require.NoError(t, svc.Clients.Declare(ctx, c, chosen))
	}
	require.Len(t, events(t, svc, apitoken.EventQuery{Type: event.ClientChanged, Client: "batch"}), 1, "at each start, and written once")
	issue(t, svc, apitoken.Request{Auth: apitoken.ClientAuth{ID: "batch", Secret: chosen}})
	require.NoError(t, svc.Clients.Declare(ctx, c, apitoken.NewSecret("another secret of the host"), chosen))
	issue(t, svc, apitoken.Request{Auth: apitoken.ClientAuth{ID: "batch", Secret: chosen}})
}

func TestStrangersCanNotLockAClientOut(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	// Failures count by the minute, and slow hashes may take as long: this clock stands still.
	start := time.Now()
	svc := service(t, func(c *apitoken.Config) { c.Now = func() time.Time { return start } })
	web, secret, err := svc.Clients.Create(ctx, apitoken.Client{ID: "web"})
	require.NoError(t, err)
	limited := 0
	for i := range 200 {
		_, err := svc.Clients.Authenticate(ctx, apitoken.ClientAuth{ID: web.ID, Secret: apitoken.NewSecret(fmt.Sprint("guess ", i))})
		require.Error(t, err)
		if i > 25 {
			require.ErrorIs(t, err, apitoken.ErrLimited)
			limited++
		}
		if i > 22 && i%50 == 0 {
			_, err = svc.Clients.Authenticate(ctx, apitoken.ClientAuth{ID: web.ID, Secret: secret})
			require.NoError(t, err, "the right secret always passes")
		}
		if limited > 30 {
			break
		}
	}
	_, err = svc.Clients.Authenticate(ctx, apitoken.ClientAuth{ID: web.ID, Secret: secret})
	require.NoError(t, err)
	_, err = svc.Clients.Authenticate(ctx, apitoken.ClientAuth{ID: "nobody", Secret: secret})
	require.ErrorIs(t, err, apitoken.ErrInvalidClient)
	claimed := map[string]int{}
	for _, e := range events(t, svc, apitoken.EventQuery{Type: event.ClientRefused}) {
		require.Empty(t, e.Client, "an unproved name is no fact")
		claimed[e.Extra["claimed"]] += e.Count
	}
	require.Positive(t, claimed["web"], "but the log tells whom it was aimed at")
	require.Equal(t, 1, claimed[""])
	require.Len(t, claimed, 2, "a name that no client has is not kept")
}

func pkce(verifier string) string {
	sum := sha256.Sum256([]byte(verifier))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func TestTickets(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	c := &clock{}
	svc := service(t, func(cfg *apitoken.Config) { cfg.Now = c.Now })
	_, _, err := svc.Clients.Create(ctx, apitoken.Client{ID: "spa", Public: true, GrantTypes: []string{"authorization_code", "refresh_token"}, Scopes: apitoken.Scopes{"orders"}})
	require.NoError(t, err)
	_, secret, err := svc.Clients.Create(ctx, apitoken.Client{ID: "web", GrantTypes: []string{"authorization_code", "refresh_token"}, Scopes: apitoken.Scopes{"orders"}})
	require.NoError(t, err)
	verifier := strings.Repeat("v", 43)
	r := apitoken.Request{Subject: "alice", Client: "spa", Scopes: apitoken.Scopes{"orders:read"}, Refresh: true}
	tk := apitoken.Ticket{Lifetime: time.Minute, Challenge: pkce(verifier), RedirectURI: "https://app.example.com/cb"}
	good := apitoken.Redemption{Auth: apitoken.ClientAuth{ID: "spa"}, Verifier: verifier, RedirectURI: tk.RedirectURI}
	prepare := func() string {
		code, err := svc.Prepare(ctx, r, tk)
		require.NoError(t, err)
		return code.Reveal()
	}
	for what, change := range map[string]func(*apitoken.Redemption){
		"verifier":       func(x *apitoken.Redemption) { x.Verifier = strings.Repeat("w", 43) },
		"no verifier":    func(x *apitoken.Redemption) { x.Verifier = "" },
		"redirect":       func(x *apitoken.Redemption) { x.RedirectURI += "/" },
		"another client": func(x *apitoken.Redemption) { x.Auth = apitoken.ClientAuth{ID: "web", Secret: secret} },
		"code":           func(x *apitoken.Redemption) { x.Ticket = flip(x.Ticket, len(x.Ticket)-70) },
		"empty":          func(x *apitoken.Redemption) { x.Ticket = "" },
	} {
		x := good
		x.Ticket = prepare()
		y := x
		change(&y)
		_, err := svc.Redeem(ctx, y)
		require.ErrorIs(t, err, apitoken.ErrInvalidGrant, what)
		_, err = svc.Redeem(ctx, x)
		require.NoError(t, err, "%s: a wrong guess spends nothing", what)
	}
	x := good
	x.Ticket = prepare()
	i, err := svc.Redeem(ctx, x)
	require.NoError(t, err)
	require.NoError(t, validate(svc, i.Access))
	_, err = svc.Redeem(ctx, x)
	require.ErrorIs(t, err, apitoken.ErrInvalidGrant)
	require.ErrorIs(t, validate(svc, i.Access), apitoken.ErrRevoked, "a second use ends what the first one got")
	_, err = refresh(svc, i.Refresh)
	require.ErrorIs(t, err, apitoken.ErrInvalidGrant)

	x.Ticket = prepare()
	require.NoError(t, svc.Revoke(ctx, apitoken.BySubject("alice"), "left"))
	_, err = svc.Redeem(ctx, x)
	require.ErrorIs(t, err, apitoken.ErrInvalidGrant, "the identity was confirmed before the rule")
	x.Ticket = prepare()
	c.Advance(time.Minute)
	_, err = svc.Redeem(ctx, x)
	require.ErrorIs(t, err, apitoken.ErrInvalidGrant, "too late")
	require.NoError(t, svc.Sync(ctx))

	x.Ticket = prepare()
	var won atomic.Int64
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			if _, err := svc.Redeem(ctx, x); err == nil {
				won.Add(1)
			}
		})
	}
	wg.Wait()
	require.LessOrEqual(t, won.Load(), int64(1), "one of 64 wins")

	// A code that is out already, such as a device code.
	device := sha256.Sum256([]byte("device-code-of-the-host"))
	code, err := svc.Prepare(ctx, r, apitoken.Ticket{Lifetime: time.Minute, CodeSHA256: device})
	require.NoError(t, err)
	require.True(t, code.IsZero())
	_, err = svc.Prepare(ctx, r, apitoken.Ticket{Lifetime: time.Minute, CodeSHA256: device})
	require.ErrorIs(t, err, apitoken.ErrInvalidRequest)
	_, err = svc.Redeem(ctx, apitoken.Redemption{Ticket: "device-code-of-the-host", Auth: apitoken.ClientAuth{ID: "spa"}})
	require.NoError(t, err)
	for _, bad := range []apitoken.Ticket{{}, {Lifetime: 48 * time.Hour}, {Lifetime: time.Minute, Challenge: "plain"}} {
		_, err := svc.Prepare(ctx, r, bad)
		require.ErrorIs(t, err, apitoken.ErrInvalidRequest)
	}
}

func TestOnce(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	st := tempStore(t)
	list := []*apitoken.Service{serviceOn(t, st, nil), serviceOn(t, st, nil)}
	var won atomic.Int64
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			if list[i%2].Adapter().Once(ctx, "jti-1", time.Now().Add(time.Minute)) == nil {
				won.Add(1)
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 1, won.Load())
	require.ErrorIs(t, list[0].Adapter().Once(ctx, "jti-1", time.Now().Add(time.Minute)), apitoken.ErrInvalidRequest)
	require.ErrorIs(t, list[0].Adapter().Once(ctx, "", time.Now()), apitoken.ErrInvalidRequest)
}

func TestExchangeNeverWidens(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	_, secret, err := svc.Clients.Create(ctx, apitoken.Client{ID: "gw", GrantTypes: []string{"urn:ietf:params:oauth:grant-type:token-exchange", "client_credentials"}, Scopes: apitoken.Scopes{"orders", "mail"}})
	require.NoError(t, err)
	auth := apitoken.ClientAuth{ID: "gw", Secret: secret}
	actor := apitoken.Bearer(issue(t, svc, apitoken.Request{Auth: auth}).Access.Reveal())
	parent := issue(t, svc, apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"orders:read", "profile"}, Lifetime: 2 * time.Minute, Claims: map[string]string{"tenant": "acme"}})
	from := apitoken.Bearer(parent.Access.Reveal())
	i, err := svc.Exchange(ctx, apitoken.ExchangeRequest{Token: from, Actor: actor, Auth: auth, Lifetime: time.Hour})
	require.NoError(t, err)
	require.Equal(t, apitoken.Scopes{"orders:read"}, i.Token.Scopes(), "what both hold")
	require.False(t, i.Token.ExpiresAt().After(parent.Token.ExpiresAt()), "never longer")
	require.Equal(t, "alice", i.Token.Subject())
	require.Equal(t, "gw", i.Token.Client())
	require.Equal(t, []string{"gw"}, i.Token.Actors())
	for what, r := range map[string]apitoken.ExchangeRequest{
		"scope of the client alone": {Token: from, Actor: actor, Auth: auth, Scopes: apitoken.Scopes{"mail"}},
		"scope of the token alone":  {Token: from, Actor: actor, Auth: auth, Scopes: apitoken.Scopes{"profile"}},
		"wider":                     {Token: from, Actor: actor, Auth: auth, Scopes: apitoken.Scopes{"orders"}},
		"no actor":                  {Token: from, Auth: auth},
		"junk":                      {Token: apitoken.Bearer("junk"), Actor: actor, Auth: auth},
		"junk actor":                {Token: from, Actor: apitoken.Bearer("junk"), Auth: auth},
		"no client":                 {Token: from, Actor: actor},
		"audience":                  {Token: from, Actor: actor, Auth: auth, Audiences: []string{"https://c.example.com"}},
	} {
		_, err := svc.Exchange(ctx, r)
		require.Error(t, err, what)
		require.NotErrorIs(t, err, apitoken.ErrUnavailable, what)
	}
	// A bound token is not exchanged without its proof, and its binding is never dropped.
	bound := issue(t, svc, apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"orders:read"}, Binding: apitoken.BindCertificate([32]byte{1})})
	_, err = svc.Exchange(ctx, apitoken.ExchangeRequest{Token: apitoken.Bearer(bound.Access.Reveal()), Actor: actor, Auth: auth})
	require.ErrorIs(t, err, apitoken.ErrInvalidToken)
	i, err = svc.Exchange(ctx, apitoken.ExchangeRequest{Token: apitoken.Credential{Token: bound.Access.Reveal(), CertSHA256: [32]byte{1}}, Actor: actor, Auth: auth})
	require.NoError(t, err)
	require.Equal(t, bound.Token.Binding(), i.Token.Binding())
}

func TestBindingIsProved(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	i := issue(t, svc, apitoken.Request{Subject: "alice", Binding: apitoken.BindCertificate([32]byte{1})})
	require.ErrorIs(t, validate(svc, i.Access), apitoken.ErrInvalidToken, "a bound token without its proof")
	for range 2 {
		_, err := svc.Validate(ctx, apitoken.Credential{Token: i.Access.Reveal(), CertSHA256: [32]byte{1}})
		require.NoError(t, err)
		_, err = svc.Validate(ctx, apitoken.Credential{Token: i.Access.Reveal(), CertSHA256: [32]byte{2}})
		require.ErrorIs(t, err, apitoken.ErrInvalidToken)
		_, err = svc.Validate(ctx, apitoken.Bearer(i.Access.Reveal()))
		require.ErrorIs(t, err, apitoken.ErrInvalidToken, "the cache keeps no proof")
	}
}

func TestIssueUnderAGrant(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	i := issue(t, svc, aliceSession)
	job := issue(t, svc, apitoken.Request{Grant: i.Token.Grant(), Scopes: apitoken.Scopes{"orders:read"}})
	require.Equal(t, "alice", job.Token.Subject())
	_, err := svc.Issue(ctx, apitoken.Request{Grant: i.Token.Grant(), Scopes: apitoken.Scopes{"admin"}})
	require.ErrorIs(t, err, apitoken.ErrInvalidScope)
	_, err = svc.Issue(ctx, apitoken.Request{Grant: i.Token.Grant(), Subject: "bob"})
	require.ErrorIs(t, err, apitoken.ErrInvalidRequest)
	require.NoError(t, svc.Revoke(ctx, apitoken.ByGrant(i.Token.Grant()), "logout"))
	require.ErrorIs(t, validate(svc, job.Access), apitoken.ErrRevoked)
	_, err = svc.Issue(ctx, apitoken.Request{Grant: i.Token.Grant()})
	require.ErrorIs(t, err, apitoken.ErrInvalidGrant)
}

func TestGrantsAreListedAndLimited(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	k := &clock{}
	svc := service(t, func(c *apitoken.Config) { c.Limits.GrantsPerSubject, c.Now = 3, k.Now })
	var list []*apitoken.Issued
	for range 5 {
		list = append(list, issue(t, svc, aliceSession))
		k.Advance(time.Millisecond) // within one, the order of IDs is nobody's
	}
	issue(t, svc, apitoken.Request{Subject: "bob", Refresh: true})
	var got []string
	for g, err := range svc.Grants(ctx, apitoken.BySubject("alice"), apitoken.Page{}) {
		require.NoError(t, err)
		got = append(got, g.ID)
	}
	require.Equal(t, []string{list[4].Token.Grant(), list[3].Token.Grant(), list[2].Token.Grant()}, got)
	require.ErrorIs(t, validate(svc, list[0].Access), apitoken.ErrRevoked)
	got = nil
	for g, err := range svc.Grants(ctx, apitoken.BySubject("alice"), apitoken.Page{After: list[4].Token.Grant(), Limit: 1}) {
		require.NoError(t, err)
		got = append(got, g.ID)
	}
	require.Equal(t, []string{list[3].Token.Grant()}, got)
}

func TestExplain(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	i := issue(t, svc, aliceSession)
	x := svc.Explain(ctx, apitoken.Bearer(i.Access.Reveal()), apitoken.AllOf("orders:delete"))
	require.ErrorIs(t, x.Err, apitoken.ErrInsufficientScope)
	require.Contains(t, x.Steps[len(x.Steps)-1].Detail, "orders:delete")
	require.NoError(t, svc.Revoke(ctx, apitoken.ByGrant(i.Token.Grant()), "x"))
	x = svc.Explain(ctx, apitoken.Bearer(i.Access.Reveal()), apitoken.Authenticated())
	require.ErrorIs(t, x.Err, apitoken.ErrRevoked)
	require.Equal(t, "revocation", x.Steps[len(x.Steps)-1].Name)
	require.Contains(t, x.Steps[len(x.Steps)-1].Detail, "grant")
	require.Equal(t, "alice", x.Token.Subject(), "as far as the signature vouches for it")
	x = svc.Explain(ctx, apitoken.Bearer("junk"), apitoken.Authenticated())
	require.True(t, x.Token.IsZero())
	for _, step := range x.Steps[:len(x.Steps)-1] {
		require.True(t, step.OK)
	}
	require.Empty(t, events(t, svc, apitoken.EventQuery{Type: event.Refused}), "it counts nothing")
}

// TestExplainTellsWhoRevokedAndWhy: whichever rule it was that hit.
func TestExplainTellsWhoRevokedAndWhy(t *testing.T) {
	t.Parallel()
	ctx := apitoken.WithActor(context.Background(), "operator")
	svc := serviceOn(t, tempStore(t), nil)
	last := func(token string) string {
		x := svc.Explain(ctx, apitoken.Bearer(token), apitoken.Authenticated())
		require.ErrorIs(t, x.Err, apitoken.ErrRevoked)
		return x.Steps[len(x.Steps)-1].Detail
	}
	session := func() *apitoken.Issued { return issue(t, svc, aliceSession) }
	for _, c := range []struct {
		target func(*apitoken.Issued) apitoken.Target
		says   string
	}{
		{func(i *apitoken.Issued) apitoken.Target { return apitoken.ByToken(i.Token.ID()) }, "token:"},
		{func(i *apitoken.Issued) apitoken.Target { return apitoken.ByGrant(i.Token.Grant()) }, "grant:"},
		{func(*apitoken.Issued) apitoken.Target { return apitoken.BySessions("alice") }, "sessions:alice"},
		{func(*apitoken.Issued) apitoken.Target { return apitoken.BySubject("alice") }, "subject:alice"},
		{func(i *apitoken.Issued) apitoken.Target { return apitoken.ByClient(i.Token.Client()) }, "client:"},
		{func(*apitoken.Issued) apitoken.Target { return apitoken.Everything() }, "everything"},
	} {
		i := session()
		target := c.target(i)
		require.NoError(t, svc.Revoke(ctx, apitoken.BySubject("somebody-else"), "another story"))
		require.NoError(t, svc.Revoke(ctx, target, "left for "+c.says))
		require.Regexp(t, "^a rule on its [a-z]+; "+target.String()+" was revoked at 2[-0-9T:]+Z by operator: left for "+c.says+"$", last(i.Access.Reveal()))
	}
	k, secret, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "bob"})
	require.NoError(t, err)
	require.NoError(t, svc.APIKeys.Revoke(ctx, k.ID, "rotated"))
	require.Contains(t, last(secret.Reveal()), "by operator: rotated")

	_, _, made := appKey(t, svc) // descends from a session, so that a rule on sessions ends it
	require.NoError(t, svc.Revoke(ctx, apitoken.BySessions("alice"), "logged out"))
	require.Regexp(t, "sessions:alice was revoked at .* by operator: logged out$", last(made.Reveal()))
}

func TestSecretsRedactThemselves(t *testing.T) {
	t.Parallel()
	const text = "at_rt_verysecret"
	s := apitoken.NewSecret(text)
	type inner struct{ s apitoken.Secret }
	type outer struct {
		Pub  apitoken.Secret
		priv *inner
		list []apitoken.Secret
	}
	v := outer{s, &inner{s}, []apitoken.Secret{s}}
	c := apitoken.Bearer(text)
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "secret", s, "credential", c, "struct", v.Pub, "all", fmt.Sprintf("%v %+v %#v %s %q %x", v, v, v, s, s, s))
	for _, out := range []string{log.String(), fmt.Sprint(s, c), fmt.Sprintf("%+v", c), fmt.Sprintf("%+v %#v %v %s %d %x", v, v, &v, s, s, s), fmt.Sprintf("%+v", *v.priv), fmt.Sprintf("%v", v.list)} {
		require.NotContains(t, out, "verysecret")
	}
	require.Equal(t, text, s.Reveal())
	require.True(t, apitoken.Secret{}.IsZero())
	require.Empty(t, apitoken.Secret{}.Reveal())
}

func TestTheZeroTokenAllowsNothing(t *testing.T) {
	t.Parallel()
	var tok apitoken.Token
	require.False(t, tok.Allows("a"))
	require.Error(t, tok.Check(apitoken.Authenticated()))
	require.True(t, apitoken.FromContext(context.Background()).IsZero())
	require.Panics(t, func() { tok.Subject() })
	require.NotPanics(t, func() { _ = fmt.Sprint(tok) })
}

// A ticket is for whoever Auth named as much as for a Client: redeeming it gives that client's tokens, not the host's own.
func TestATicketIsForTheClientThatProvedItself(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, func(c *apitoken.Config) { c.Roles = map[string]apitoken.Scopes{"boss": {"orders", "admin"}} })
	auth := confidential(t, svc, apitoken.Client{ID: "web", GrantTypes: []string{"authorization_code"}, Scopes: apitoken.Scopes{"orders"}})
	code, err := svc.Prepare(ctx, apitoken.Request{Subject: "alice", Auth: auth, Roles: []string{"boss"}}, apitoken.Ticket{Lifetime: time.Minute})
	require.NoError(t, err)
	_, err = svc.Redeem(ctx, apitoken.Redemption{Ticket: code.Reveal()})
	require.ErrorIs(t, err, apitoken.ErrInvalidClient)
	i, err := svc.Redeem(ctx, apitoken.Redemption{Ticket: code.Reveal(), Auth: auth})
	require.NoError(t, err)
	require.Equal(t, "web", i.Token.Client())
	require.Equal(t, apitoken.Scopes{"orders"}, i.Token.Scopes())
}

// An Auth that comes along is checked, whatever else the request names.
func TestAnAuthIsNeverPassedOver(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := service(t, nil)
	auth := confidential(t, svc, apitoken.Client{ID: "web", GrantTypes: []string{"refresh_token"}, Scopes: apitoken.Scopes{"orders"}})
	other := confidential(t, svc, apitoken.Client{ID: "other", GrantTypes: []string{"refresh_token"}, Scopes: apitoken.Scopes{"orders"}})
	i := issue(t, svc, apitoken.Request{Subject: "alice", Client: "web", Refresh: true, Scopes: apitoken.Scopes{"orders"}})
	wrong := apitoken.ClientAuth{ID: "web", Secret: other.Secret}
	for what, c := range map[string]struct {
		r    apitoken.Request
		want error
	}{
		"junk, no name":          {apitoken.Request{Subject: "alice", Auth: apitoken.ClientAuth{Assertion: apitoken.NewSecret("junk")}}, apitoken.ErrInvalidClient},
		"a secret without name":  {apitoken.Request{Subject: "alice", Auth: apitoken.ClientAuth{Secret: auth.Secret}}, apitoken.ErrInvalidClient},
		"wrong, under a grant":   {apitoken.Request{Grant: i.Token.Grant(), Auth: wrong}, apitoken.ErrInvalidClient},
		"another, under a grant": {apitoken.Request{Grant: i.Token.Grant(), Auth: other}, apitoken.ErrInvalidRequest},
	} {
		_, err := svc.Issue(ctx, c.r)
		require.ErrorIs(t, err, c.want, what)
	}
	issue(t, svc, apitoken.Request{Grant: i.Token.Grant(), Auth: auth})
}

func TestAudiencesNarrow(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	const b, c = "https://b.example.com", "https://c.example.com"
	svc := service(t, func(cfg *apitoken.Config) { cfg.Audiences = []string{b, c} })
	auth := confidential(t, svc, apitoken.Client{ID: "web", GrantTypes: []string{"refresh_token"}, Scopes: apitoken.Scopes{"orders"}})
	i := issue(t, svc, apitoken.Request{Subject: "alice", Client: "web", Scopes: apitoken.Scopes{"orders"}, Refresh: true, Audiences: []string{testAudience, b}})

	_, err := svc.Issue(ctx, apitoken.Request{Grant: i.Token.Grant(), Audiences: []string{c}})
	require.ErrorIs(t, err, apitoken.ErrInvalidTarget, "not the grant's, though the client might have asked for it")
	under := issue(t, svc, apitoken.Request{Grant: i.Token.Grant(), Audiences: []string{b}})
	require.Equal(t, []string{b}, under.Token.Audiences())

	// From all that there are to one: that is fewer.
	_, err = svc.Clients.Update(ctx, "web", func(x *apitoken.Client) error { x.Audiences = []string{testAudience}; return nil })
	require.NoError(t, err)
	require.ErrorIs(t, validate(svc, i.Access), apitoken.ErrRevoked, "to be minted again")
	n, err := refreshAs(svc, auth, i.Refresh, "")
	require.NoError(t, err)
	require.Equal(t, []string{testAudience}, n.Token.Audiences())
	_, err = svc.Clients.Update(ctx, "web", func(x *apitoken.Client) error { x.Audiences = []string{testAudience, b}; return nil })
	require.NoError(t, err)
	require.NoError(t, validate(svc, n.Access), "more refuses nothing")
	_, err = svc.Clients.Update(ctx, "web", func(x *apitoken.Client) error { x.Audiences = []string{c}; return nil })
	require.NoError(t, err)
	_, err = refreshAs(svc, auth, i.Refresh, "")
	require.ErrorIs(t, err, apitoken.ErrInvalidGrant)

	_, err = svc.Clients.Update(ctx, "web", func(x *apitoken.Client) error { x.Audiences, x.GrantTypes = nil, nil; return nil })
	require.NoError(t, err)
	_, err = refreshAs(svc, auth, i.Refresh, "")
	require.ErrorIs(t, err, apitoken.ErrDenied, "it may refresh no more")

	// The same where a configuration says it.
	chosen := apitoken.NewSecret("pbkdf2-free secret of the host")
	d := apitoken.Client{ID: "job", Scopes: apitoken.Scopes{"orders"}}
	require.NoError(t, svc.Clients.Declare(ctx, d, chosen))
	own := issue(t, svc, apitoken.Request{Subject: "bob", Client: "job", Scopes: apitoken.Scopes{"orders"}})
	d.Audiences = []string{b}
	require.NoError(t, svc.Clients.Declare(ctx, d, chosen))
	require.ErrorIs(t, validate(svc, own.Access), apitoken.ErrRevoked)
}

func TestTheFirstTokenEndsWithItsGrantToo(t *testing.T) {
	t.Parallel()
	svc := service(t, func(c *apitoken.Config) {
		c.Lifetimes = apitoken.Lifetimes{Access: 10 * time.Minute, Grant: time.Minute}
	})
	i := issue(t, svc, aliceSession)
	require.LessOrEqual(t, i.Token.ExpiresAt().Sub(i.Token.IssuedAt()), time.Minute)
}

// Whatever Issue takes, a validator takes.
func TestWhatIsIssuedIsValid(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	roles, names := map[string]apitoken.Scopes{}, []string{}
	for i := range 32 {
		name := fmt.Sprint("r", i)
		names = append(names, name)
		for j := range 20 {
			roles[name] = append(roles[name], apitoken.Scope(fmt.Sprintf("%x", i*20+j)))
		}
	}
	many := func(n int) map[string]int {
		m := map[string]int{}
		for i := range n {
			m[fmt.Sprintf("%x", i)] = i
		}
		return m
	}
	deep := func(n int) any {
		var v any = 1
		for range n {
			v = map[string]any{"d": v}
		}
		return v
	}
	svc := service(t, func(c *apitoken.Config) { c.Roles, c.Validation.MaxTokenBytes = roles, 64<<10 })
	good := 0
	try := func(what string, r apitoken.Request) {
		i, err := svc.Issue(ctx, r)
		if err != nil {
			require.ErrorIs(t, err, apitoken.ErrInvalidRequest, what)
			return
		}
		good++
		cred := apitoken.Bearer(i.Access.Reveal())
		if r.Binding != "" {
			cred.CertSHA256 = [32]byte{1}
		}
		_, err = svc.Validate(ctx, cred)
		require.NoError(t, err, what)
	}
	for n := range 20 {
		try(fmt.Sprint(n, " roles"), apitoken.Request{Subject: "alice", Roles: names[:n]})
	}
	for _, n := range []int{1, 200, 235, 236, 237, 238, 239, 240, 241, 242, 243, 244, 245, 246, 247, 248, 249, 250, 255, 256, 257, 400} {
		try(fmt.Sprint(n, " claims"), apitoken.Request{Subject: "alice", Claims: many(n), Roles: names[:1], Binding: apitoken.BindCertificate([32]byte{1})})
		try(fmt.Sprint(n, " claims, unbound"), apitoken.Request{Subject: "alice", Claims: many(n)})
	}
	for n := range 20 {
		try(fmt.Sprint(n, " deep"), apitoken.Request{Subject: "alice", Claims: map[string]any{"x": deep(n)}})
	}
	for _, doc := range []string{`{"a":1,"a":2}`, `{"a":1e400}`, `{"a":` + strings.Repeat("9", 50) + `}`, `{"":1}`, `{"a":"\ud800"}`, `{"a":"\u0000"}`, `{"Sub":"x"}`, "{\"a\":\"\xff\"}", `{"s\u0075b":"x"}`} {
		try(doc, apitoken.Request{Subject: "alice", Claims: json.RawMessage(doc)})
	}
	for _, sub := range []string{"é", strings.Repeat("é", 127), "a b", "\u00a0", "a/b?c#d", "\"\\", "<&>", "😀", "\ufffd"} {
		try(sub, apitoken.Request{Subject: sub})
	}
	require.Greater(t, good, 40)
}

func TestLimitsHoldInARace(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	st := tempStore(t)
	with := func(c *apitoken.Config) { c.Limits = apitoken.Limits{APIKeysPerSubject: 3, GrantsPerSubject: 3} }
	list := []*apitoken.Service{serviceOn(t, st, with), serviceOn(t, st, with)}
	var wg sync.WaitGroup
	for i := range 16 {
		svc := list[i%2]
		wg.Go(func() {
			for {
				_, _, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "alice"})
				if errors.Is(err, apitoken.ErrUnavailable) {
					continue
				}
				if err != nil && !errors.Is(err, apitoken.ErrLimited) {
					t.Error(err)
				}
				return
			}
		})
		wg.Go(func() {
			if _, err := svc.Issue(ctx, aliceSession); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, svc := range list {
		require.NoError(t, svc.Sync(ctx))
		keys, grants := 0, 0
		for _, err := range svc.APIKeys.Of(ctx, "alice", apitoken.Page{}) {
			require.NoError(t, err)
			keys++
		}
		for _, err := range svc.Grants(ctx, apitoken.BySubject("alice"), apitoken.Page{}) {
			require.NoError(t, err)
			grants++
		}
		require.Equal(t, 3, keys)
		require.Equal(t, 3, grants)
	}
}

// Services on one namespace need not be configured alike: what one issues for longer, the others take, and they keep
// their rules as long.
func TestLifetimesOfAnotherServiceAreKnown(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	st := tempStore(t)
	svc := serviceOn(t, st, nil)
	other := serviceOn(t, st, func(c *apitoken.Config) { c.Lifetimes.MaxAccess = 20 * time.Hour })
	i := issue(t, other, apitoken.Request{Subject: "alice", Lifetime: 20 * time.Hour})
	require.NoError(t, svc.Sync(ctx))
	require.NoError(t, validate(svc, i.Access))
	require.NoError(t, svc.Revoke(ctx, apitoken.ByToken(i.Token.ID()), "x"))
	page, err := st.List(ctx, store.Query{Kind: store.KindRule})
	require.NoError(t, err)
	require.Len(t, page.Records, 1)
	require.Greater(t, time.Until(time.UnixMilli(page.Records[0].Expires)), 20*time.Hour)
}

// A customer of a network provider has more IPv6 addresses than anybody can count failures of.
func TestManyAddressesOfOneNetworkAreOneSource(t *testing.T) {
	t.Parallel()
	start := time.Now()
	svc := service(t, func(c *apitoken.Config) { c.Now = func() time.Time { return start } })
	auth := confidential(t, svc, apitoken.Client{ID: "web"})
	wrong := apitoken.ClientAuth{ID: "web", Secret: confidential(t, svc, apitoken.Client{ID: "other"}).Secret}
	from := func(addr string) context.Context {
		return apitoken.WithOrigin(context.Background(), apitoken.Origin{Address: netip.MustParseAddr(addr)})
	}
	var err error
	for i := range 21 {
		_, err = svc.Clients.Authenticate(from(fmt.Sprintf("2001:db8::%x", i+1)), wrong)
	}
	require.ErrorIs(t, err, apitoken.ErrLimited)
	_, err = svc.Clients.Authenticate(from("2001:db8:0:1::1"), wrong)
	require.ErrorIs(t, err, apitoken.ErrInvalidClient, "another network")
	_, err = svc.Clients.Authenticate(from("2001:db8::1"), auth)
	require.NoError(t, err, "the right secret always passes")
	for i := range 21 {
		_, err = svc.Clients.Authenticate(from([]string{"192.0.2.1", "::ffff:192.0.2.1"}[i%2]), wrong)
	}
	require.ErrorIs(t, err, apitoken.ErrLimited, "one address, written in two ways")
}

// failure collects what an assertion says.
type failure struct{ text string }

func (f *failure) Errorf(format string, args ...any) { f.text += fmt.Sprintf(format, args...) }

// A test that fails prints both sides with everything in them: not the credential.
func TestADumpShowsNoSecret(t *testing.T) {
	t.Parallel()
	type inner struct{ s apitoken.Secret }
	a, b := inner{apitoken.NewSecret("verysecret-one")}, inner{apitoken.NewSecret("verysecret-two")}
	var f failure
	require.False(t, assert.Equal(&f, a, b))
	require.False(t, assert.Equal(&f, []*inner{&a}, []*inner{&b}))
	require.NotContains(t, f.text, "verysecret")
	require.Contains(t, f.text, "inner")
	// Requests and answers that carry a credential as text.
	for _, v := range []any{apitoken.RefreshRequest{Token: "verysecret"}, apitoken.Redemption{Ticket: "verysecret", Verifier: "verysecret"}, apitoken.TokenResponse{AccessToken: "verysecret"},
		apitoken.ExchangeRequest{Token: apitoken.Bearer("verysecret"), Auth: apitoken.ClientAuth{Secret: apitoken.NewSecret("verysecret")}}} {
		var log strings.Builder
		slog.New(slog.NewTextHandler(&log, nil)).Info("x", "v", v)
		require.NotContains(t, fmt.Sprintf("%v %+v %s", v, v, v)+log.String(), "verysecret", "%T", v)
	}
}
