package bench

import (
	"encoding/json"
	"flag"
	"fmt"
	"regexp"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A group is one thing that is measured, and its rows are those who do it. The same rows are benchmarks, one after another,
// and sides of one comparison, in turn: only in turn does a slow moment of the machine hit all of them.
type group struct {
	name string // such as "Validate/ES256"
	rows []row
}

// row is one implementation's way to do it.
type row struct {
	name    string // the rest of the benchmark's name, such as "golang-jwt/first"
	callers int    // at once; 0 is one
	f       func(caller int) error
}

// once makes a row's function of one that does not ask who calls.
func once(f func() error) func(int) error { return func(int) error { return f() } }

func (g group) bench(b *testing.B) {
	for _, r := range g.rows {
		b.Run(r.name, func(b *testing.B) {
			if r.callers > 1 {
				callers(b, r.callers, r.f)
				return
			}
			b.ReportAllocs()
			if err := r.f(0); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if err := r.f(0); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// callers runs f in so many goroutines until b.N calls are done.
func callers(b *testing.B, n int, f func(caller int) error) {
	b.Helper()
	b.ReportAllocs()
	b.ResetTimer()
	if err := calls(n, b.N, f); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "calls/s")
}

// calls makes total calls of f from n goroutines.
func calls(n, total int, f func(caller int) error) error {
	if n <= 1 {
		for range total {
			if err := f(0); err != nil {
				return err
			}
		}
		return nil
	}
	var left atomic.Int64
	left.Store(int64(total))
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			for left.Add(-1) >= 0 && errs[i] == nil {
				errs[i] = f(i)
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

var (
	rounds = flag.Int("rounds", 0, "rounds of TestSideBySide; 0: one call each, nothing is measured")
	only   = flag.String("only", "", "which groups TestSideBySide takes, a regular expression")
)

// Side is what TestSideBySide prints of one row: a line of JSON behind "side: ".
type Side struct {
	Group, Row string
	NS         []float64 // a call, round by round
	Allocs     float64   // a call; -1: not counted, others run meanwhile
}

// TestSideBySide runs all sides of each group. Without -rounds that shows that each of them does what is measured; with it,
// as cmd/table calls it, they are measured in turn, a few milliseconds each, so many times.
func TestSideBySide(t *testing.T) {
	pick := regexp.MustCompile(*only)
	for _, make := range groups {
		t.Run("", func(t *testing.T) {
			g := make(t)
			if !pick.MatchString(g.name) {
				return
			}
			for _, r := range g.rows {
				for range 2 { // the second may take another way
					if err := calls(r.callers, max(r.callers, 1), r.f); err != nil {
						t.Fatalf("%s/%s: %v", g.name, r.name, err)
					}
				}
			}
			if *rounds > 0 {
				g.measure(t, *rounds)
			}
		})
	}
}

func (g group) measure(t *testing.T, rounds int) {
	sides := make([]Side, len(g.rows))
	sizes := make([]int, len(g.rows))
	for i, r := range g.rows {
		sides[i] = Side{Group: g.name, Row: r.name, Allocs: -1}
		if r.callers <= 1 {
			sides[i].Allocs = testing.AllocsPerRun(50, func() { _ = r.f(0) })
		}
		sizes[i] = r.size(t)
	}
	for k := range rounds {
		for j := range g.rows {
			i := (j + k) % len(g.rows)
			if _, err := g.rows[i].time(sizes[i] / 2); err != nil {
				t.Fatalf("%s/%s: %v", g.name, g.rows[i].name, err)
			}
			took, err := g.rows[i].time(sizes[i])
			if err != nil {
				t.Fatalf("%s/%s: %v", g.name, g.rows[i].name, err)
			}
			sides[i].NS = append(sides[i].NS, float64(took.Nanoseconds())/float64(sizes[i]))
		}
	}
	for _, s := range sides {
		line, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Printf("side: %s\n", line)
	}
}

func (r row) time(n int) (time.Duration, error) {
	began := time.Now()
	err := calls(r.callers, n, r.f)
	return time.Since(began), err
}

// size is how many calls make a batch: of some milliseconds, longer where 64 callers must find into step.
func (r row) size(t *testing.T) int {
	want := 4 * time.Millisecond
	if r.callers > 1 {
		want = 40 * time.Millisecond
	}
	for n := max(r.callers, 1); ; n *= 2 {
		took, err := r.time(n)
		if err != nil {
			t.Fatal(err)
		}
		if took >= want/2 {
			return n
		}
	}
}
