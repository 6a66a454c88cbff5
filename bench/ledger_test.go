package bench

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/ledger"
)

const benchEvents = 1_000_000

// endless gives n made-up events, a page at a time, without holding them.
type endless struct{ n int }

func (f *endless) EventPage(_ context.Context, _ apitoken.EventQuery, cursor string, limit int) ([]apitoken.Event, string, error) {
	from := 0
	if cursor != "" {
		if _, err := fmt.Sscan(cursor, &from); err != nil {
			return nil, "", err
		}
	}
	list := make([]apitoken.Event, 0, limit)
	for i := from; i < min(from+limit, f.n); i++ {
		list = append(list, anEvent(i))
	}
	next := ""
	if from+limit < f.n {
		next = fmt.Sprint(from + limit)
	}
	return list, next, nil
}

// event is a made-up token.issued of one of fifty thousand subjects.
func anEvent(i int) apitoken.Event {
	return apitoken.Event{
		ID: fmt.Sprintf("01jd%012d", i), Time: time.UnixMilli(1_700_000_000_000 + int64(i)).UTC(), Type: event.Issued, OK: true,
		Subject: fmt.Sprintf("user-%d", i%50_000), Client: "web", TokenID: fmt.Sprintf("token-%d", i), Grant: fmt.Sprintf("grant-%d", i/3),
		Scopes: apitoken.Scopes{"orders:read"}, Origin: apitoken.Origin{Address: netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), UserAgent: "curl/8.9.1"},
	}
}

// sealed is a ledger of n events that are not sealed yet, and its key.
func sealed(b *testing.B, vault *ledger.Vault, n int) (*ledger.Ledger, ledger.Keys) {
	b.Helper()
	private, public, err := note.GenerateKey(rand.Reader, "auth.example.com/audit")
	must(b, err)
	signer, err := note.NewSigner(private)
	must(b, err)
	key, err := ledger.ParseKey(public)
	must(b, err)
	dir, err := ledger.OpenDir(filepath.Join(b.TempDir(), "ledger"), nil)
	must(b, err)
	b.Cleanup(func() { _ = dir.Close() })
	l, err := ledger.Open(ledger.Config{Storage: dir, Signer: signer, Vault: vault, Poll: time.Hour, Interval: time.Hour})
	must(b, err)
	b.Cleanup(func() { _ = l.Close() })
	must(b, l.Follow(&endless{n}))
	return l, ledger.Keys{Log: []note.Verifier{key}}
}

// BenchmarkSeal is the whole way of an event behind the writes, syncs included: from the feed into the files, in pages of 1,000.
func BenchmarkSeal(b *testing.B) {
	for _, persons := range []bool{false, true} {
		name := "clear"
		if persons {
			name = "erasable"
		}
		b.Run(name, func(b *testing.B) {
			var vault *ledger.Vault
			if persons {
				secret := make([]byte, 32)
				rand.Read(secret)
				seal, err := apitoken.NewSealer(secret)
				must(b, err)
				vault, err = ledger.OpenVault(context.Background(), b.TempDir(), seal)
				must(b, err)
				b.Cleanup(func() { _ = vault.Close() })
			}
			n := max(b.N, 1)
			b.ReportAllocs()
			l, keys := sealed(b, vault, n)
			signed, err := l.Seal(context.Background())
			must(b, err)
			c, err := keys.Open(signed)
			must(b, err)
			if c.Size != int64(n) {
				b.Fatalf("%d of %d events are sealed", c.Size, n)
			}
		})
	}
}

// BenchmarkMillion is what a log of a million events costs to prove and to verify.
func BenchmarkMillion(b *testing.B) {
	ctx := context.Background()
	l, keys := sealed(b, nil, benchEvents)
	signed, err := l.Seal(ctx)
	must(b, err)
	b.Run("prove", func(b *testing.B) {
		size := 0
		for i := range b.N {
			p, _, err := l.ProveInclusion(ctx, anEvent(i*7919%benchEvents).ID)
			must(b, err)
			size = len(p.Hashes) * 32
		}
		b.ReportMetric(float64(size), "proof-bytes")
	})
	b.Run("prove-at", func(b *testing.B) {
		for i := range b.N {
			_, err := l.ProveInclusionAt(ctx, int64(i*7919%benchEvents), benchEvents)
			must(b, err)
		}
	})
	b.Run("check", func(b *testing.B) {
		p, signed, err := l.ProveInclusion(ctx, anEvent(777_777).ID)
		must(b, err)
		for b.Loop() {
			_, err := p.Check(signed, keys)
			must(b, err)
		}
	})
	b.Run("consistency", func(b *testing.B) {
		size := 0
		for i := range b.N {
			p, err := l.ProveConsistency(ctx, int64(1+i*7919%(benchEvents-1)), benchEvents)
			must(b, err)
			size = len(p.Hashes) * 32
		}
		b.ReportMetric(float64(size), "proof-bytes")
	})
	b.Run("verify", func(b *testing.B) {
		var out bytes.Buffer
		must(b, l.Export(ctx, &out, 0, -1))
		b.ReportAllocs()
		b.ResetTimer()
		for range b.N {
			_, err := ledger.Verify(bytes.NewReader(out.Bytes()), ledger.Verification{Keys: keys, Checkpoint: signed})
			must(b, err)
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/benchEvents, "ns/event")
	})
	b.Run("check-storage", func(b *testing.B) {
		for range b.N {
			must(b, l.Check(ctx))
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/benchEvents, "ns/event")
	})
}
