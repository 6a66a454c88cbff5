package misuse

import (
	"fmt"
	"net/netip"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
)

// off is a Config with every detector off.
func off() Config {
	return Config{RevokedUses: -1, Addresses: -1, MachineAddresses: -1, UserAgents: -1, Forbidden: -1, ForbiddenScopes: -1, FailedClients: -1, Unknown: -1, Rise: -1}
}

// TestMemoryAtAMillionTokens measures the heap, so that it runs alone.
func TestMemoryAtAMillionTokens(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	const million = 1_000_000
	now := time.Date(2026, 3, 2, 8, 0, 0, 0, time.UTC)
	agents := [2]string{"agent/1", "agents/2"}
	token := func(n int, kind apitoken.Kind) apitoken.Token {
		id := "01jd9x000000000000" + strconv.Itoa(10_000_000+n)
		s := apitoken.TokenSpec{Kind: kind, ID: id, Issuer: issuer, Subject: id[18:], Client: "web"}
		if kind == apitoken.KindAPIKey {
			s.Client = ""
		}
		x, err := apitoken.NewToken(s)
		if err != nil {
			t.Fatal(err)
		}
		return x
	}
	address := func(n int) apitoken.Origin {
		return apitoken.Origin{Address: netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}), UserAgent: agents[n%2]}
	}
	for _, x := range []struct {
		name  string
		on    func(*Config)
		see   func(w *Watch, n int)
		bound uint64 // MiB
	}{
		{"addresses", func(c *Config) { c.Addresses, c.MachineAddresses = 0, 0 }, func(w *Watch, n int) {
			x := token(n, apitoken.KindAccess)
			w.Observe(t.Context(), apitoken.Observation{Op: "validate", Token: x, Origin: address(n)})
			w.Observe(t.Context(), apitoken.Observation{Op: "validate", Token: x, Origin: address(n * 256)})
		}, 52},
		{"user-agents", func(c *Config) { c.UserAgents = 0 }, func(w *Watch, n int) {
			x := token(n, apitoken.KindAccess)
			for i := range 4 {
				w.Observe(t.Context(), apitoken.Observation{Op: "validate", Token: x, Origin: apitoken.Origin{UserAgent: agents[i%2]}})
			}
		}, 52},
		{"after-revocation", func(c *Config) { c.RevokedUses = 0 }, func(w *Watch, n int) {
			w.Observe(t.Context(), apitoken.Observation{Op: "validate", Token: token(n, apitoken.KindAccess), Err: refusal(apitoken.ErrRevoked), Origin: address(n)})
		}, 2},
		{"scope-probing", func(c *Config) { c.Forbidden, c.ForbiddenScopes = 0, 0 }, func(w *Watch, n int) {
			w.Observe(t.Context(), apitoken.Observation{Op: "authorize", Token: token(n, apitoken.KindAccess), Err: refusal(apitoken.ErrInsufficientScope), Origin: address(n)})
		}, 2},
		{"client-failures", func(c *Config) { c.FailedClients = 0 }, func(w *Watch, n int) {
			w.Observe(t.Context(), apitoken.Observation{Op: "authenticate", Client: strconv.Itoa(n), Err: refusal(apitoken.ErrInvalidClient), Origin: address(n)})
		}, 2},
		{"unknown-tokens", func(c *Config) { c.Unknown = 0 }, func(w *Watch, n int) {
			w.Observe(t.Context(), apitoken.Observation{Op: "validate", Err: refusal(apitoken.ErrInvalidToken), Origin: address(n)})
		}, 2},
		{"rise", func(c *Config) { c.Rise = 0 }, func(w *Watch, n int) {
			w.Observe(t.Context(), apitoken.Observation{Op: "validate", Token: token(n, apitoken.KindAPIKey)})
		}, 8},
		{"canary", func(c *Config) {
			for n := range 1000 {
				c.Canaries = append(c.Canaries, fmt.Sprintf("planted%d", n))
			}
		}, func(w *Watch, n int) {
			w.Observe(t.Context(), apitoken.Observation{Op: "validate", Token: token(n, apitoken.KindAccess)})
		}, 2},
		{"reuse", func(*Config) {}, func(w *Watch, n int) {
			w.event(apitoken.Event{Type: apitoken.EventReused, Time: now, Grant: "01jd9x000000000000" + strconv.Itoa(10_000_000+n), Subject: "user"})
		}, 4},
	} {
		c := off()
		c.Now = func() time.Time { return now }
		x.on(&c)
		require.NoError(t, c.check())
		before := heap()
		w := newWatch(c, nowhere{})
		for n := range million {
			x.see(w, n)
			if n%1000 == 0 {
				w.drain()
			}
		}
		now = now.Add(time.Minute)
		w.step(now)
		w.step(now.Add(time.Minute))
		held := heap() - before
		t.Logf("%-16s %6.2f MiB at a million tokens, tables %.2f MiB", x.name, float64(held)/(1<<20), float64(w.Stats().Bytes)/(1<<20))
		assert.LessOrEqual(t, held, x.bound<<20, "%s holds more than its stated %d MiB", x.name, x.bound)
		runtime.KeepAlive(w)
	}
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
