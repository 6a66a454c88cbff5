package revindex

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

func key(i int) [16]byte {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(i))
	s := sha256.Sum256(b[:])
	return [16]byte(s[:16])
}

func TestAgreesWithMap(t *testing.T) {
	t.Parallel()
	x := New()
	want := map[[16]byte]int64{}
	r := rand.New(rand.NewPCG(1, 2))
	for range 200_000 {
		k, v := key(r.IntN(60_000)), int64(r.IntN(1000))
		x.Raise(k, v, 0)
		if old, ok := want[k]; !ok || v > old {
			want[k] = v
		}
	}
	require.Equal(t, len(want), x.Len())
	for k, v := range want {
		got, ok := x.Get(k)
		require.True(t, ok, "an entry that was raised must be found")
		require.Equal(t, v, got, "the highest value wins")
	}
	for i := range 10_000 {
		_, ok := x.Get(key(1_000_000 + i))
		require.False(t, ok, "the index is exact: nothing is found that was not raised")
	}
}

func TestReadersFindWhatIsThereWhileItGrows(t *testing.T) {
	t.Parallel()
	x := New()
	const n = 60_000
	var done atomic.Int64
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for {
				top := done.Load()
				if top == n {
					return
				}
				if top == 0 {
					continue
				}
				i := rand.Int64N(top)
				if v, ok := x.Get(key(int(i))); !ok || v != i {
					t.Errorf("entry %d of %d was acknowledged and is not found", i, top)
					return
				}
			}
		})
	}
	for i := range n {
		x.Raise(key(i), int64(i), 0)
		done.Store(int64(i + 1))
	}
	wg.Wait()
}

func TestSweepForgetsOnlyWhatExpired(t *testing.T) {
	t.Parallel()
	x := New()
	for i := range 30_000 {
		x.Raise(key(i), 1, int64(i%3)*60_000_000) // 0: never
	}
	x.Raise(key(1), 1, 240_000_000) // a later end replaces an earlier one
	x.Raise(key(4), 1, 0)           // never replaces any
	x.Raise(key(3), 1, 60_000_000)  // an end for the value that had none
	x.Raise(key(6), 0, 60_000_000)  // a lower value is not what the entry stands for
	x.Raise(key(9), 2, 60_000_000)  // a higher one is, with its own end
	x.Raise(key(7), 2, 0)
	require.Equal(t, 10_000-3+2, x.Sweep(60_060_000))
	for i := range 30_000 {
		_, ok := x.Get(key(i))
		require.Equal(t, i%3 != 1 && i != 3 && i != 9 || i == 1 || i == 4 || i == 7, ok, "entry %d", i)
	}
	require.Equal(t, 20_001, x.Len())
}

func TestMemory(t *testing.T) {
	t.Parallel()
	for _, n := range []int{100_000, 250_000, 400_000} {
		x := New()
		for i := range n {
			x.Raise(key(i), 1, 0)
		}
		require.LessOrEqual(t, float64(x.Bytes())/float64(n), 66.0, "bytes for each of %d entries", n)
	}
}

func BenchmarkRevocationIndex(b *testing.B) {
	for _, n := range []int{1_000, 1_000_000} {
		x := New()
		for i := range n {
			x.Raise(key(i), 1, 0)
		}
		keys := make([][16]byte, 1<<16)
		for _, c := range []struct {
			name string
			off  int
		}{{"hit", 0}, {"miss", n}} {
			for i := range keys {
				keys[i] = key(c.off + i%n)
			}
			b.Run(fmt.Sprintf("%d/%s", n, c.name), func(b *testing.B) {
				b.ReportMetric(float64(x.Bytes())/float64(n), "B/entry")
				for i := 0; b.Loop(); i++ {
					x.Get(keys[i&(1<<16-1)])
				}
			})
		}
	}
}
