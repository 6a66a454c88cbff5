package apitoken_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"time"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/store/boltstore"
	"github.com/apitoken-go/apitoken/store/memstore"
)

// The whole life of a token, on one file.
func ExampleNew() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	st, err := boltstore.Open(filepath.Join(dir, "tokens.db"), nil)
	if err != nil {
		log.Fatal(err)
	}
	defer st.Close()
	seal, err := apitoken.KeyFile(filepath.Join(dir, "tokens.key"))
	if err != nil {
		log.Fatal(err)
	}
	svc, err := apitoken.New(apitoken.Config{Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: st, Seal: seal})
	if err != nil {
		log.Fatal(err)
	}
	defer svc.Close()

	ctx := context.Background()
	issued, err := svc.Issue(ctx, apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"orders:read"}})
	if err != nil {
		log.Fatal(err)
	}
	token, err := svc.Validate(ctx, apitoken.Bearer(issued.Access.Reveal()))
	fmt.Println(token.Subject(), token.Scopes(), err)

	if err := svc.Revoke(ctx, apitoken.BySubject("alice"), "left the company"); err != nil {
		log.Fatal(err)
	}
	_, err = svc.Validate(ctx, apitoken.Bearer(issued.Access.Reveal()))
	fmt.Println("revoked:", errors.Is(err, apitoken.ErrRevoked))
	// Output:
	// alice orders:read <nil>
	// revoked: true
}

// What is dangerous or contradictory is refused before anything starts, by the name of the field.
func ExampleNew_refused() {
	_, err := apitoken.New(apitoken.Config{Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: memstore.New()})
	var wrong *apitoken.ConfigError
	if errors.As(err, &wrong) {
		fmt.Println(wrong.Field)
	}
	// Output: Seal
}

// exampleService is a service in memory, for the examples that are about something else.
func exampleService() *apitoken.Service {
	svc, err := apitoken.New(apitoken.Config{
		Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: memstore.New(), InsecureKeysInStore: true,
	})
	if err != nil {
		log.Fatal(err)
	}
	return svc
}

// A key-encryption key is exchanged in three steps, and nothing stops meanwhile.
func ExampleNewSealer() {
	ctx := context.Background()
	st := memstore.New()
	start := func(keys ...[]byte) *apitoken.Service {
		seal, err := apitoken.NewSealer(keys...)
		if err != nil {
			log.Fatal(err)
		}
		svc, err := apitoken.New(apitoken.Config{Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: st, Seal: seal})
		if err != nil {
			log.Fatal(err)
		}
		return svc
	}
	before, after := make([]byte, 32), make([]byte, 32) // from your secret manager
	rand.Read(before)
	rand.Read(after)

	svc := start(before)
	if err := svc.Close(); err != nil {
		log.Fatal(err)
	}
	svc = start(after, before) // 1. the new one in front of the old one, in every process
	n, err := svc.SigningKeys.Rewrap(ctx)
	fmt.Println("sealed again:", n, err) // 2.
	if err := svc.Close(); err != nil {
		log.Fatal(err)
	}
	svc = start(after) // 3. without the old one
	defer svc.Close()
	_, err = svc.Issue(ctx, apitoken.Request{Subject: "alice"})
	fmt.Println(err)
	// Output:
	// sealed again: 1 <nil>
	// <nil>
}

// A store that was begun without a Sealer, and gets one while it is in use.
func ExampleSigningKeys_RotateSecrets() {
	ctx := context.Background()
	st := memstore.New()
	key := make([]byte, 32) // from your secret manager
	rand.Read(key)
	seal, err := apitoken.NewSealer(key)
	if err != nil {
		log.Fatal(err)
	}
	start := func(seal apitoken.Sealer, insecure bool) *apitoken.Service {
		svc, err := apitoken.New(apitoken.Config{Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: st,
			Seal: seal, InsecureKeysInStore: insecure})
		if err != nil {
			log.Fatal(err)
		}
		return svc
	}
	stop := func(svc *apitoken.Service) {
		if err := svc.Close(); err != nil {
			log.Fatal(err)
		}
	}
	svc := start(nil, true)
	token, err := svc.Issue(ctx, apitoken.Request{Subject: "alice"})
	if err != nil {
		log.Fatal(err)
	}
	stop(svc)
	stop(start(seal, true))  // 1. both, in one process after the other: the first seals what lay in clear
	svc = start(seal, false) // 2. InsecureKeysInStore away, in every process
	defer svc.Close()
	_, err = svc.Validate(ctx, apitoken.Bearer(token.Access.Reveal()))
	fmt.Println(err)
	fmt.Println(svc.SigningKeys.RotateSecrets(ctx)) // 3. backups hold the older ones in clear
	// Output:
	// <nil>
	// <nil>
}

// The file is made when the first key is sealed. Back it up, apart from the database: neither is worth anything alone.
func ExampleKeyFile() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "tokens.key")
	seal, err := apitoken.KeyFile(path)
	if err != nil {
		log.Fatal(err)
	}
	svc, err := apitoken.New(apitoken.Config{Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: memstore.New(), Seal: seal})
	if err != nil {
		log.Fatal(err)
	}
	defer svc.Close()
	file, err := os.Stat(path)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(file.Mode())
	// Output: -rw-------
}

// A second audience in the issuer's own process. In a process without a store the sources are remote.NewValidator's.
func ExampleNewValidator() {
	svc, err := apitoken.New(apitoken.Config{
		Issuer: "https://auth.example.com", Audience: "https://api.example.com", Audiences: []string{"https://reports.example.com"},
		Store: memstore.New(), InsecureKeysInStore: true,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer svc.Close()
	reports, err := apitoken.NewValidator(apitoken.ValidatorConfig{
		Audience: "https://reports.example.com",
		Trust:    []apitoken.Trusted{{Issuer: "https://auth.example.com", Keys: svc.SigningKeys, Revocations: svc, Own: true}},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer reports.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := reports.Ready(ctx); err != nil {
		log.Fatal(err)
	}

	for _, audience := range []string{"https://reports.example.com", "https://api.example.com"} {
		issued, err := svc.Issue(ctx, apitoken.Request{Subject: "alice", Audiences: []string{audience}})
		if err != nil {
			log.Fatal(err)
		}
		_, err = reports.Validate(ctx, apitoken.Bearer(issued.Access.Reveal()))
		fmt.Println(audience, err == nil)
	}
	// Output:
	// https://reports.example.com true
	// https://api.example.com false
}

// Services that share a process share one bound on memory. Neither takes what the other has verified.
func ExampleNewCache() {
	cache := apitoken.NewCache(64 << 20)
	start := func(tenant string) *apitoken.Service {
		svc, err := apitoken.New(apitoken.Config{
			Issuer: "https://" + tenant + ".example.com", Audience: "https://api.example.com", Store: memstore.New(), InsecureKeysInStore: true,
			Validation: apitoken.Validation{Cache: cache},
		})
		if err != nil {
			log.Fatal(err)
		}
		return svc
	}
	red, blue := start("red"), start("blue")
	defer red.Close()
	defer blue.Close()

	ctx := context.Background()
	issued, err := red.Issue(ctx, apitoken.Request{Subject: "alice"})
	if err != nil {
		log.Fatal(err)
	}
	_, err = red.Validate(ctx, apitoken.Bearer(issued.Access.Reveal())) // and again, from the cache
	fmt.Println(err)
	_, err = blue.Validate(ctx, apitoken.Bearer(issued.Access.Reveal()))
	fmt.Println(errors.Is(err, apitoken.ErrInvalidToken))
	// Output:
	// <nil>
	// true
}

// A Validator of another format hands out Tokens too, and every adapter takes them.
func ExampleNewToken() {
	token, err := apitoken.NewToken(apitoken.TokenSpec{
		Subject: "alice", Scopes: apitoken.Scopes{"orders"},
		ExpiresAt: time.Now().Add(time.Minute),
		Claims:    map[string]any{"tenant": "red"},
	})
	if err != nil {
		log.Fatal(err)
	}
	var own struct{ Tenant string }
	if err := token.Claims(&own); err != nil {
		log.Fatal(err)
	}
	fmt.Println(token.Subject(), token.Allows("orders:read"), own.Tenant)

	_, err = apitoken.NewToken(apitoken.TokenSpec{Subject: "alice", Claims: map[string]any{"Scope": "admin"}})
	fmt.Println(errors.Is(err, apitoken.ErrInvalidRequest))
	// Output:
	// alice true red
	// true
}

// A job that goes on after the request: the queue carries the session's ID, never a credential, and a logout ends the job too.
func ExampleNewContext() {
	svc := exampleService()
	defer svc.Close()
	ctx := context.Background()
	login, err := svc.Issue(ctx, apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"orders"}, Refresh: true})
	if err != nil {
		log.Fatal(err)
	}
	work := func(session string) {
		i, err := svc.Issue(ctx, apitoken.Request{Grant: session, Scopes: apitoken.Scopes{"orders:read"}, Lifetime: time.Minute})
		if errors.Is(err, apitoken.ErrInvalidGrant) {
			fmt.Println("logged out meanwhile")
			return
		}
		if err != nil {
			log.Fatal(err)
		}
		ctx := apitoken.NewContext(ctx, i.Token) // what the job calls sees alice, and her name is in its events
		fmt.Println(apitoken.FromContext(ctx).Subject(), apitoken.FromContext(ctx).Scopes())
	}
	work(login.Token.Grant())
	if err := svc.Revoke(ctx, apitoken.ByGrant(login.Token.Grant()), "logout"); err != nil {
		log.Fatal(err)
	}
	work(login.Token.Grant())
	// Output:
	// alice orders:read
	// logged out meanwhile
}

func ExampleParseScopes() {
	scopes, err := apitoken.ParseScopes("orders:* reports:read")
	fmt.Println(len(scopes), scopes, err)
	fmt.Println(scopes.Cover(apitoken.Scopes{"orders:read"}), scopes.Cover(apitoken.Scopes{"orders"}))
	_, err = apitoken.ParseScopes("orders:read  orders:write") // two spaces
	fmt.Println(errors.Is(err, apitoken.ErrInvalidScope))
	// Output:
	// 2 orders:* reports:read <nil>
	// true false
	// true
}

func ExampleAllOf() {
	token, err := apitoken.NewToken(apitoken.TokenSpec{Subject: "alice", Scopes: apitoken.Scopes{"orders:read", "invoices"}})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(token.Check(apitoken.AllOf("orders:read", "invoices:read")))
	fmt.Println(errors.Is(token.Check(apitoken.AllOf("orders:read", "orders:write")), apitoken.ErrInsufficientScope))
	// Output:
	// <nil>
	// true
}

func ExampleAnyOf() {
	token, err := apitoken.NewToken(apitoken.TokenSpec{Subject: "alice", Scopes: apitoken.Scopes{"orders:read"}})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(token.Check(apitoken.AnyOf("orders:read", "orders:admin")))
	fmt.Println(token.Check(apitoken.Requirement{}) == nil) // the zero Requirement lets nobody in
	// Output:
	// <nil>
	// false
}

// A Secret shows itself only where Reveal is written, which is easy to search for.
func ExampleNewSecret() {
	settings := struct {
		ID     string
		Secret apitoken.Secret
	}{"web", apitoken.NewSecret("correct horse battery staple")}
	fmt.Println(settings)
	fmt.Printf("%q %#v\n", settings.Secret, settings.Secret)
	fmt.Println(settings.Secret.Reveal())
	// Output:
	// {web [redacted]}
	// [redacted] [redacted]
	// correct horse battery staple
}

// Every adapter, for whatever protocol, is this call and a table from errors to answers.
func ExampleAuthorize() {
	svc := exampleService()
	defer svc.Close()
	ctx := context.Background()
	issued, err := svc.Issue(ctx, apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"orders:read"}})
	if err != nil {
		log.Fatal(err)
	}
	call := func(c apitoken.Credential, needs apitoken.Requirement) {
		ctx, err := apitoken.Authorize(ctx, svc, c, needs)
		switch {
		case errors.Is(err, apitoken.ErrNoToken), errors.Is(err, apitoken.ErrInvalidToken):
			fmt.Println("unauthenticated")
		case errors.Is(err, apitoken.ErrInsufficientScope):
			fmt.Println("permission denied")
		case err != nil:
			fmt.Println("unavailable")
		default:
			fmt.Println("hello", apitoken.FromContext(ctx).Subject())
		}
	}
	call(apitoken.Credential{}, apitoken.AllOf("orders:read"))
	call(apitoken.Bearer("junk"), apitoken.AllOf("orders:read"))
	call(apitoken.Bearer(issued.Access.Reveal()), apitoken.AllOf("orders:write"))
	call(apitoken.Bearer(issued.Access.Reveal()), apitoken.AllOf("orders:read"))
	// Output:
	// unauthenticated
	// unauthenticated
	// permission denied
	// hello alice
}
