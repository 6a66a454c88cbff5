package follow

import (
	"testing"
	"time"
)

// A store whose clock went back stamps its writes as before, so that by it nothing ever gets older. Grace is not for ever.
func TestTheAgeOfARotation(t *testing.T) {
	t.Parallel()
	now := time.UnixMilli(1_800_000_000_000)
	sec := func(n int) int64 { return now.UnixMilli() + int64(n)*1000 }
	for name, c := range map[string]struct {
		ahead          int64 // the store's clock before ours, s
		written, local int   // s from now, by the store's clock and by its writer's
		injected       bool
		want           time.Duration
		ok             bool
	}{
		"clocks agree":                        {0, -7, -7, false, 7 * time.Second, true},
		"the store's is ahead":                {3600, 3593, -7, false, 7 * time.Second, true},
		"the store's is behind":               {-3600, -3607, -7, false, 7 * time.Second, true},
		"the writer's is wrong":               {0, -7, 3600, false, 7 * time.Second, true},
		"an answer took long":                 {-2, 0, 0, false, 0, true},
		"the store's went back before it":     {0, 3600, -7, false, 7 * time.Second, true},
		"both went back since":                {0, 3600, 3600, false, 0, false},
		"a test's clock stands before a wall": {0, -3600, -7, true, time.Hour, true},
		"a test's clock moves on":             {0, 0, -60, true, time.Minute, true},
	} {
		st := New(t.Context(), Config{Now: func() time.Time { return now }, Injected: c.injected}, To{})
		st.ahead.Store(c.ahead * 1000)
		age, ok := st.Since(sec(c.written), sec(c.local))
		if age != c.want || ok != c.ok {
			t.Errorf("%s: %s, %v; want %s, %v", name, age, ok, c.want, c.ok)
		}
	}
}
