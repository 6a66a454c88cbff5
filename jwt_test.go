package apitoken_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"sync/atomic"
	"testing"
	"time"

	gojwt "github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/store/memstore"
)

// planClaims is the claims type of a program that uses golang-jwt.
type planClaims struct {
	gojwt.RegisteredClaims
	Plan  string `json:"plan"`
	Scope string `json:"scope,omitempty"`
}

// Validate refuses a plan that this program has never sold.
func (c planClaims) Validate() error {
	if c.Plan == "diamond" {
		return errPlan
	}
	return nil
}

var errPlan = errors.New("no such plan")

func planService() *apitoken.Service {
	svc, err := apitoken.New(apitoken.Config{Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: memstore.New(), InsecureKeysInStore: true})
	if err != nil {
		log.Fatal(err)
	}
	return svc
}

// The claims type that golang-jwt filled stays: only the call changes, and from then on a revoked token is refused.
func ExampleParseWithClaims() {
	svc := planService()
	defer svc.Close()
	ctx := context.Background()
	issued, err := svc.Issue(ctx, apitoken.Request{Subject: "alice", Claims: planClaims{Plan: "gold"}})
	if err != nil {
		log.Fatal(err)
	}

	var claims planClaims
	token, err := apitoken.ParseWithClaims(ctx, svc, apitoken.Bearer(issued.Access.Reveal()), &claims)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(token.Valid, claims.Subject, claims.Plan)

	if err := svc.Revoke(ctx, apitoken.BySubject("alice"), "left"); err != nil {
		log.Fatal(err)
	}
	_, err = apitoken.ParseWithClaims(ctx, svc, apitoken.Bearer(issued.Access.Reveal()), &claims)
	fmt.Println(errors.Is(err, gojwt.ErrTokenInvalidClaims), err)
	// Output:
	// true alice gold
	// true apitoken: token revoked: a rule on its subject
}

func ExampleToken_RegisteredClaims() {
	svc := planService()
	defer svc.Close()
	issued, err := svc.Issue(context.Background(), apitoken.Request{Subject: "alice", Lifetime: time.Minute})
	if err != nil {
		log.Fatal(err)
	}
	c := issued.Token.RegisteredClaims()
	fmt.Println(c.Issuer, c.Subject, c.Audience, c.ExpiresAt.Sub(c.IssuedAt.Time))
	// Output: https://auth.example.com alice [https://api.example.com] 1m0s
}

// A struct that embeds gojwt.RegisteredClaims comes back with what the token says by them.
func ExampleToken_Claims() {
	svc := planService()
	defer svc.Close()
	issued, err := svc.Issue(context.Background(), apitoken.Request{Subject: "alice", Claims: planClaims{Plan: "gold"}})
	if err != nil {
		log.Fatal(err)
	}
	var claims planClaims
	if err := issued.Token.Claims(&claims); err != nil {
		log.Fatal(err)
	}
	fmt.Println(claims.Subject, claims.Plan)
	// Output: alice gold
}

// Code that keeps golang-jwt's parser for now gets the keys. It does not see revocations: see the comment of Keyfunc.
func ExampleSigningKeys_Keyfunc() {
	svc := planService()
	defer svc.Close()
	issued, err := svc.Issue(context.Background(), apitoken.Request{Subject: "alice", Claims: planClaims{Plan: "gold"}})
	if err != nil {
		log.Fatal(err)
	}
	var claims planClaims
	_, err = gojwt.ParseWithClaims(issued.Access.Reveal(), &claims, svc.SigningKeys.Keyfunc,
		gojwt.WithIssuer("https://auth.example.com"), gojwt.WithAudience("https://api.example.com"), gojwt.WithExpirationRequired())
	fmt.Println(claims.Subject, claims.Plan, err)
	// Output: alice gold <nil>
}

func TestAHostsStructWithRegisteredClaims(t *testing.T) {
	t.Parallel()
	svc := service(t, nil)
	own := func(c gojwt.RegisteredClaims) error {
		_, err := svc.Issue(t.Context(), apitoken.Request{Subject: "alice", Claims: planClaims{RegisteredClaims: c, Plan: "gold"}})
		return err
	}
	for name, set := range map[string]gojwt.RegisteredClaims{
		"iss": {Issuer: "x"}, "sub": {Subject: "alice"}, "aud": {Audience: gojwt.ClaimStrings{"x"}}, "jti": {ID: "x"},
		"exp": {ExpiresAt: gojwt.NewNumericDate(time.Now())}, "nbf": {NotBefore: gojwt.NewNumericDate(time.Now())}, "iat": {IssuedAt: gojwt.NewNumericDate(time.Now())},
	} {
		err := own(set)
		require.ErrorIs(t, err, apitoken.ErrInvalidRequest, name)
		require.ErrorContains(t, err, "claims: the name "+name+" is reserved, this package sets it from the other fields of the request: leave it empty")
	}

	// Members that are there and say nothing, as of a struct without omitempty, are left out.
	for _, doc := range []string{
		`{"plan":"gold"}`, `{"sub":"","plan":"gold","exp":0,"aud":[],"iss":null,"cnf":{},"Scope":""}`,
	} {
		i := issue(t, svc, apitoken.Request{Subject: "alice", Claims: json.RawMessage(doc)})
		var got map[string]any
		require.NoError(t, i.Token.Claims(&got))
		require.Equal(t, map[string]any{"plan": "gold"}, got, doc)
	}
	for _, doc := range []string{`{"sub":"","plan":"gold","plan":"lead"}`, `{"sub":"","sub":"x"}`, `{"exp":false}`, `{"sub":"`} {
		_, err := svc.Issue(t.Context(), apitoken.Request{Subject: "alice", Claims: json.RawMessage(doc)})
		require.ErrorIs(t, err, apitoken.ErrInvalidRequest, doc)
	}
	i := issue(t, svc, apitoken.Request{Subject: "alice", Claims: gojwt.RegisteredClaims{}})
	var got map[string]any
	require.NoError(t, i.Token.Claims(&got))
	require.Empty(t, got, "nothing of the host's own")
}

// What a token says by jwt's types is what it says by ours, however it is asked and whatever it is.
func TestClaimsInTheTypesOfJWT(t *testing.T) {
	t.Parallel()
	svc := service(t, nil)
	ctx := t.Context()
	i := issue(t, svc, apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"orders:read"}, Claims: planClaims{Plan: "gold"}})
	_, key, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "bob", Scopes: apitoken.Scopes{"orders:read"}, Claims: planClaims{Plan: "gold"}})
	require.NoError(t, err)
	for name, text := range map[string]string{"access token": i.Access.Reveal(), "API key": key.Reveal()} {
		tok, err := svc.Validate(ctx, apitoken.Bearer(text))
		require.NoError(t, err)
		want := tok.RegisteredClaims()
		require.Equal(t, tok.Subject(), want.Subject, name)
		require.Equal(t, gojwt.ClaimStrings(tok.Audiences()), want.Audience)
		if tok.ExpiresAt().IsZero() {
			require.Nil(t, want.ExpiresAt)
		} else {
			require.True(t, tok.ExpiresAt().Equal(want.ExpiresAt.Time))
		}

		var c planClaims
		require.NoError(t, tok.Claims(&c))
		require.Equal(t, "gold", c.Plan)
		requireSameJSON(t, want, c.RegisteredClaims)
		m := gojwt.MapClaims{}
		require.NoError(t, tok.Claims(m))
		require.Equal(t, tok.Subject(), m["sub"])
		require.Equal(t, "gold", m["plan"])

		var parsed planClaims
		out, err := apitoken.ParseWithClaims(ctx, svc, apitoken.Bearer(text), &parsed)
		require.NoError(t, err)
		require.True(t, out.Valid)
		require.Same(t, &parsed, out.Claims)
		require.Equal(t, "gold", parsed.Plan)
		parsed.NotBefore = nil // that of a JWT has passed, and a Token doesn't say it
		requireSameJSON(t, want, parsed.RegisteredClaims)
		out, err = apitoken.ParseWithClaims(ctx, svc, apitoken.Bearer(text), gojwt.MapClaims(nil))
		require.NoError(t, err)
		require.Equal(t, "gold", out.Claims.(gojwt.MapClaims)["plan"])
	}

	// An access token is as jwt/v5 itself would have parsed it.
	var ours, theirs planClaims
	a, err := apitoken.ParseWithClaims(ctx, svc, apitoken.Bearer(i.Access.Reveal()), &ours)
	require.NoError(t, err)
	b, err := gojwt.ParseWithClaims(i.Access.Reveal(), &theirs, svc.SigningKeys.Keyfunc)
	require.NoError(t, err)
	require.Equal(t, b, a)
	require.Equal(t, "orders:read", ours.Scope)
}

func requireSameJSON(t *testing.T, want, got any) {
	t.Helper()
	a, err := json.Marshal(want)
	require.NoError(t, err)
	b, err := json.Marshal(got)
	require.NoError(t, err)
	require.JSONEq(t, string(a), string(b))
}

// ParseWithClaims refuses what Validate refuses, by our errors and by jwt's, and leaves the claims alone.
func TestParseWithClaimsRefuses(t *testing.T) {
	t.Parallel()
	var later atomic.Int64 // a time.Duration
	svc := service(t, func(c *apitoken.Config) {
		c.Now = func() time.Time { return time.Now().Add(time.Duration(later.Load())) }
	})
	ctx := t.Context()
	parse := func(text string, c gojwt.Claims) error {
		tok, err := apitoken.ParseWithClaims(ctx, svc, apitoken.Bearer(text), c)
		require.Equal(t, err == nil, tok != nil)
		return err
	}
	var c planClaims
	good := issue(t, svc, apitoken.Request{Subject: "alice", Claims: planClaims{Plan: "gold"}}).Access.Reveal()
	require.ErrorIs(t, parse(good, nil), apitoken.ErrInvalidRequest)
	err := parse(good[:len(good)-8]+"AAAAAAAA", &c)
	require.ErrorIs(t, err, apitoken.ErrInvalidToken)
	require.ErrorIs(t, err, gojwt.ErrTokenUnverifiable)
	var e *apitoken.Error
	require.ErrorAs(t, err, &e)
	require.NotContains(t, err.Error(), e.Detail)
	require.Contains(t, fmt.Sprintf("%v", fmt.Errorf("guard: %w", err)), e.Detail, "operators see why")
	require.Zero(t, c)

	bound := issue(t, svc, apitoken.Request{Subject: "alice", Binding: apitoken.BindCertificate([32]byte{1})}).Access.Reveal()
	require.ErrorIs(t, parse(bound, &c), apitoken.ErrInvalidToken, "its binding was not proved")

	diamond := issue(t, svc, apitoken.Request{Subject: "alice", Claims: planClaims{Plan: "diamond"}}).Access.Reveal()
	err = parse(diamond, &planClaims{})
	require.ErrorIs(t, err, errPlan, "the claims' own Validate is called, as jwt/v5 calls it")
	require.ErrorIs(t, err, gojwt.ErrTokenInvalidClaims)
	require.ErrorIs(t, err, apitoken.ErrInvalidToken)

	number := issue(t, svc, apitoken.Request{Subject: "alice", Claims: map[string]any{"plan": 7}}).Access.Reveal()
	require.ErrorIs(t, parse(number, &planClaims{}), gojwt.ErrTokenMalformed)

	require.NoError(t, svc.Revoke(ctx, apitoken.BySubject("alice"), "left"))
	err = parse(good, &c)
	require.ErrorIs(t, err, apitoken.ErrRevoked)
	require.ErrorIs(t, err, gojwt.ErrTokenInvalidClaims)
	old := issue(t, svc, apitoken.Request{Subject: "carol", Lifetime: time.Minute}).Access.Reveal()
	later.Store(int64(2 * time.Minute))
	err = parse(old, &c)
	require.ErrorIs(t, err, apitoken.ErrExpired)
	require.ErrorIs(t, err, gojwt.ErrTokenExpired)
}

// Keyfunc gives out no key for another algorithm, audience or name, no secret, and none that was declared compromised.
func TestKeyfunc(t *testing.T) {
	t.Parallel()
	const billing = "https://billing.example.com"
	svc := service(t, func(c *apitoken.Config) {
		c.Audiences, c.AudienceAlgorithms = []string{billing}, map[string]string{billing: "EdDSA"}
	})
	parse := func(text string) error {
		_, err := gojwt.ParseWithClaims(text, &planClaims{}, svc.SigningKeys.Keyfunc)
		return err
	}
	i := issue(t, svc, apitoken.Request{Subject: "alice"})
	b := issue(t, svc, apitoken.Request{Subject: "alice", Audiences: []string{billing}})
	require.NoError(t, parse(i.Access.Reveal()))
	require.NoError(t, parse(b.Access.Reveal()))

	kids := map[string]string{}
	list, err := svc.SigningKeys.List(t.Context())
	require.NoError(t, err)
	for _, k := range list {
		if k.State == "active" {
			kids[k.Audience] = k.ID
		}
	}
	ask := func(kid string, m gojwt.SigningMethod, aud ...string) error {
		_, err := svc.SigningKeys.Keyfunc(&gojwt.Token{Method: m, Header: map[string]any{"kid": kid}, Claims: gojwt.RegisteredClaims{Audience: aud}})
		return err
	}
	require.NoError(t, ask(kids[billing], gojwt.SigningMethodEdDSA, billing))
	require.Error(t, ask(kids[billing], gojwt.SigningMethodEdDSA, "https://api.example.com"), "one audience's key makes no tokens for others")
	require.Error(t, ask(kids[billing], gojwt.SigningMethodEdDSA))
	require.Error(t, ask(kids[""], gojwt.SigningMethodHS256, "https://api.example.com"))
	require.Error(t, ask("nobody's", gojwt.SigningMethodES256, "https://api.example.com"))
	require.NoError(t, svc.SigningKeys.Compromise(t.Context(), kids[""], "leaked"))
	require.Error(t, parse(i.Access.Reveal()))

	shared := service(t, func(c *apitoken.Config) { c.Algorithm = "HS256" })
	_, err = gojwt.ParseWithClaims(issue(t, shared, apitoken.Request{Subject: "alice"}).Access.Reveal(), &planClaims{}, shared.SigningKeys.Keyfunc)
	require.ErrorIs(t, err, apitoken.ErrInvalidRequest, "whoever has the key of HS256 signs")
}
