package apitoken_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/store/memstore"
)

func BenchmarkValidate(b *testing.B) {
	ctx := context.Background()
	for _, alg := range []string{"ES256", "EdDSA"} {
		svc := serviceOn(b, memstore.New(), func(c *apitoken.Config) { c.Algorithm = alg })
		cold := serviceOn(b, storeOf(svc), func(c *apitoken.Config) { c.Algorithm, c.Validation.Cache = alg, apitoken.NewCache(0) })
		c := apitoken.Bearer(issue(b, svc, aliceSession).Access.Reveal())
		for name, v := range map[string]apitoken.Validator{"repeat": svc, "first": cold} {
			b.Run(alg+"/"+name, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if _, err := v.Validate(ctx, c); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkValidateAPIKey(b *testing.B) {
	ctx := context.Background()
	svc := serviceOn(b, memstore.New(), nil)
	_, secret, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "bob"})
	require.NoError(b, err)
	c := apitoken.Bearer(secret.Reveal())
	b.ReportAllocs()
	for b.Loop() {
		if _, err := svc.Validate(ctx, c); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkIssue(b *testing.B) {
	ctx := context.Background()
	for _, alg := range []string{"ES256", "EdDSA"} {
		svc := serviceOn(b, memstore.New(), func(c *apitoken.Config) { c.Algorithm = alg })
		for _, refresh := range []bool{false, true} {
			b.Run(fmt.Sprintf("%s/refresh=%v", alg, refresh), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if _, err := svc.Issue(ctx, apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"orders:read"}, Refresh: refresh}); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkScope(b *testing.B) {
	tok, err := apitoken.NewToken(apitoken.TokenSpec{Subject: "alice", Scopes: apitoken.Scopes{"orders:read", "orders:write", "mail:*", "profile", "admin"}})
	require.NoError(b, err)
	for name, want := range map[string]apitoken.Scope{"exact": "orders:write", "below": "profile:name", "wildcard": "mail:send", "miss": "billing:read"} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				tok.Allows(want)
			}
		})
	}
}
