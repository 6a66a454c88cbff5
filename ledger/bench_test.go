package ledger_test

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
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
		list = append(list, event(i))
	}
	next := ""
	if from+limit < f.n {
		next = fmt.Sprint(from + limit)
	}
	return list, next, nil
}

// million is a sealed log of a million events.
func million(b *testing.B, vault *ledger.Vault, n int) *log {
	b.Helper()
	signer, key := keyPair(b, origin)
	dir, err := ledger.OpenDir(filepath.Join(b.TempDir(), "ledger"), nil)
	require.NoError(b, err)
	b.Cleanup(func() { _ = dir.Close() })
	l, err := ledger.Open(ledger.Config{Storage: dir, Signer: signer, Vault: vault})
	require.NoError(b, err)
	b.Cleanup(func() { _ = l.Close() })
	require.NoError(b, l.Follow(&endless{n}))
	out := &log{Ledger: l, dir: dir, signer: signer}
	out.keys.Log = append(out.keys.Log, key)
	return out
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
				vault = openVault(b, b.TempDir())
			}
			n := max(b.N, 1)
			b.ReportAllocs()
			l := million(b, vault, n)
			signed, err := l.Seal(context.Background())
			require.NoError(b, err)
			c, err := l.keys.Open(signed)
			require.NoError(b, err)
			require.Equal(b, int64(n), c.Size)
		})
	}
}

// BenchmarkMillion is what a log of a million events costs to prove and to verify.
func BenchmarkMillion(b *testing.B) {
	ctx := context.Background()
	l := million(b, nil, benchEvents)
	signed, err := l.Seal(ctx)
	require.NoError(b, err)
	b.Run("prove", func(b *testing.B) {
		size := 0
		for i := range b.N {
			p, _, err := l.ProveInclusion(ctx, event(i*7919%benchEvents).ID)
			require.NoError(b, err)
			size = len(p.Hashes) * 32
		}
		b.ReportMetric(float64(size), "proof-bytes")
	})
	b.Run("prove-at", func(b *testing.B) {
		for i := range b.N {
			_, err := l.ProveInclusionAt(ctx, int64(i*7919%benchEvents), benchEvents)
			require.NoError(b, err)
		}
	})
	b.Run("check", func(b *testing.B) {
		p, signed, err := l.ProveInclusion(ctx, event(777_777).ID)
		require.NoError(b, err)
		for b.Loop() {
			_, err := p.Check(signed, l.keys)
			require.NoError(b, err)
		}
	})
	b.Run("consistency", func(b *testing.B) {
		size := 0
		for i := range b.N {
			p, err := l.ProveConsistency(ctx, int64(1+i*7919%(benchEvents-1)), benchEvents)
			require.NoError(b, err)
			size = len(p.Hashes) * 32
		}
		b.ReportMetric(float64(size), "proof-bytes")
	})
	b.Run("verify", func(b *testing.B) {
		var out bytes.Buffer
		require.NoError(b, l.Export(ctx, &out, 0, -1))
		b.ReportAllocs()
		b.ResetTimer()
		for range b.N {
			_, err := ledger.Verify(bytes.NewReader(out.Bytes()), ledger.Verification{Keys: l.keys, Checkpoint: signed})
			require.NoError(b, err)
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/benchEvents, "ns/event")
	})
	b.Run("check-storage", func(b *testing.B) {
		for range b.N {
			require.NoError(b, l.Check(ctx))
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/benchEvents, "ns/event")
	})
}
