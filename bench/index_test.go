package bench

import (
	"encoding/binary"
	"fmt"
	"sync"
	"testing"

	"github.com/apitoken-go/apitoken/internal/revindex"
)

// BenchmarkRevocationIndex is one look at the index of revocations, beside a Go map (which nobody may write meanwhile) and a
// sync.Map, and one revocation that enters. APITOKEN_BENCH_INDEX=10000000 shows ten million.
func BenchmarkRevocationIndex(b *testing.B) {
	for _, n := range []int{1_000, number("APITOKEN_BENCH_INDEX", 1_000_000)} {
		index := revindex.New()
		bare := make(map[[16]byte]int64, n)
		var shared sync.Map
		for i := range n {
			k := hashed(i)
			index.Raise(k, 1, 0)
			bare[k] = 1
			shared.Store(k, int64(1))
		}
		for _, c := range []struct {
			name string
			from int
		}{{"hit", 0}, {"miss", n}} {
			keys := make([][16]byte, 1<<16)
			for i := range keys {
				keys[i] = hashed(c.from + i*7919%n)
			}
			for _, x := range []struct {
				name string
				get  func([16]byte) bool
			}{
				{"apitoken", func(k [16]byte) bool { _, ok := index.Get(k); return ok }},
				{"map", func(k [16]byte) bool { _, ok := bare[k]; return ok }},
				{"sync.Map", func(k [16]byte) bool { _, ok := shared.Load(k); return ok }},
			} {
				b.Run(fmt.Sprintf("%d/%s/%s", n, c.name, x.name), func(b *testing.B) {
					for i := 0; b.Loop(); i++ {
						if x.get(keys[i&(1<<16-1)]) != (c.name == "hit") {
							b.Fatal("wrong answer")
						}
					}
					if x.name == "apitoken" {
						b.ReportMetric(float64(index.Bytes())/float64(index.Len()), "B/entry")
					}
				})
			}
		}
		b.Run(fmt.Sprintf("%d/enter/apitoken", n), func(b *testing.B) {
			for i := n; b.Loop(); i++ {
				index.Raise(hashed(i), 1, 0)
			}
		})
	}
}

// hashed spreads i, as the keys of rules are.
func hashed(i int) (k [16]byte) {
	x := uint64(i)*0x9e3779b97f4a7c15 + 1
	x ^= x >> 31
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	binary.LittleEndian.PutUint64(k[:8], x)
	x *= 0x94d049bb133111eb
	x ^= x >> 31
	binary.LittleEndian.PutUint64(k[8:], x)
	return k
}
