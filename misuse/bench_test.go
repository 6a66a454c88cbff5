package misuse

import (
	"context"
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/store/memstore"
)

func benchObservation(b *testing.B, i int) apitoken.Observation {
	t, err := apitoken.NewToken(apitoken.TokenSpec{ID: fmt.Sprintf("01jd9x0000000000000000%04d", i), Issuer: issuer,
		Subject: "alice", Client: "web", Grant: fmt.Sprintf("01jd9x000000000000001111%04d", i), ExpiresAt: time.Now().Add(time.Hour)})
	if err != nil {
		b.Fatal(err)
	}
	return apitoken.Observation{Op: "validate", Token: t, Hit: true, Origin: apitoken.Origin{Address: netip.MustParseAddr("192.0.2.7"),
		UserAgent: "Mozilla/5.0 (X11; Linux x86_64; rv:133.0) Gecko/20100101 Firefox/133.0"}}
}

// BenchmarkObserve is what a Watch adds to each validation: with one hot token, and over many, beside a bare counter.
func BenchmarkObserve(b *testing.B) {
	for _, n := range []int{1, 10000} {
		b.Run(fmt.Sprintf("tokens=%d", n), func(b *testing.B) {
			w := quietWatch(b, Config{})
			list := make([]apitoken.Observation, n)
			for i := range list {
				list[i] = benchObservation(b, i)
				w.Observe(context.Background(), list[i])
			}
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(p *testing.PB) {
				ctx, i := context.Background(), 0
				for p.Next() {
					w.Observe(ctx, list[i])
					if i++; i == n {
						i = 0
					}
				}
			})
		})
	}
	b.Run("counter", func(b *testing.B) {
		var n atomic.Uint64
		b.RunParallel(func(p *testing.PB) {
			for p.Next() {
				n.Add(1)
			}
		})
	})
}

// nothing is an Observer that does nothing: what the service itself pays for having one.
type nothing struct{}

func (nothing) Observe(context.Context, apitoken.Observation) {}

// BenchmarkValidate is a known token, without and with a Watch.
func BenchmarkValidate(b *testing.B) {
	for _, x := range []struct {
		name   string
		attach func(*apitoken.Service)
	}{
		{"bare", func(*apitoken.Service) {}},
		{"empty observer", func(s *apitoken.Service) { s.Observe(nothing{}) }},
		{"watch", func(s *apitoken.Service) {
			w, err := Start(s, Config{})
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { _ = w.Close() })
		}},
	} {
		b.Run(x.name, func(b *testing.B) {
			svc, err := apitoken.New(apitoken.Config{Issuer: issuer, Audience: "https://api.example.com", Store: memstore.New(), InsecureKeysInStore: true})
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { _ = svc.Close() })
			x.attach(svc)
			i, err := svc.Issue(context.Background(), apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"orders:read"}})
			if err != nil {
				b.Fatal(err)
			}
			c := apitoken.Bearer(i.Access.Reveal())
			ctx := apitoken.WithOrigin(context.Background(), benchObservation(b, 1).Origin)
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(p *testing.PB) {
				for p.Next() {
					if _, err := svc.Validate(ctx, c); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}
