package apitoken_test

import (
	"context"
	"testing"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/store/memstore"
)

func roomsService(b *testing.B) *apitoken.Service {
	s, err := apitoken.New(apitoken.Config{Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: memstore.New(), InsecureKeysInStore: true, Algorithm: "EdDSA"})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	return s
}

func BenchmarkRooms(b *testing.B) {
	ctx := context.Background()
	b.Run("issue", func(b *testing.B) {
		s := roomsService(b)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := s.Issue(ctx, apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"orders:read"}}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("session", func(b *testing.B) {
		s := roomsService(b)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := s.Issue(ctx, apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"orders:read"}, Refresh: true}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("refresh", func(b *testing.B) {
		s := roomsService(b)
		i, err := s.Issue(ctx, apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"orders:read"}, Refresh: true})
		if err != nil {
			b.Fatal(err)
		}
		b.ReportAllocs()
		for b.Loop() {
			if i, err = s.Refresh(ctx, apitoken.RefreshRequest{Token: i.Refresh.Reveal()}); err != nil {
				b.Fatal(err)
			}
		}
	})
}
