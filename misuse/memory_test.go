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
	"github.com/apitoken-go/apitoken/event"
)

// off is a Config with every detector off.
func off() Config {
	return Config{RevokedUses: -1, Addresses: -1, MachineAddresses: -1, UserAgents: -1, Forbidden: -1, ForbiddenScopes: -1, FailedClients: -1, Unknown: -1, Rise: -1}
}

// TestMemoryAtAMillionTokens measures the heap, so that it runs alone. Each detector has a Watch of its own, and all see the
// same tokens; what one holds is what the heap loses with it.
func TestMemoryAtAMillionTokens(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	tokens := 1_000_000
	if underRace { // which the figures do not depend on: without it all are taken
		tokens = 20_000
	}
	now := time.Date(2026, 3, 2, 8, 0, 0, 0, time.UTC)
	agents := [2]string{"agent/1", "agents/2"}
	address := func(n int) apitoken.Origin {
		return apitoken.Origin{Address: netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}), UserAgent: agents[n%2]}
	}
	ctx := t.Context()
	revoked, invalid, lacking, client := refusal(apitoken.ErrRevoked), refusal(apitoken.ErrInvalidToken), refusal(apitoken.ErrInsufficientScope), refusal(apitoken.ErrInvalidClient)
	list := []struct {
		name  string
		on    func(*Config)
		see   func(w *Watch, x apitoken.Token, n int)
		bound uint64 // MiB
		w     *Watch
	}{
		{"addresses", func(c *Config) { c.Addresses, c.MachineAddresses = 0, 0 }, func(w *Watch, x apitoken.Token, n int) {
			w.Observe(ctx, apitoken.Observation{Op: "validate", Token: x, Origin: address(n)})
			w.Observe(ctx, apitoken.Observation{Op: "validate", Token: x, Origin: address(n * 256)})
		}, 52, nil},
		{"user-agents", func(c *Config) { c.UserAgents = 0 }, func(w *Watch, x apitoken.Token, n int) {
			for i := range 4 {
				w.Observe(ctx, apitoken.Observation{Op: "validate", Token: x, Origin: apitoken.Origin{UserAgent: agents[i%2]}})
			}
		}, 52, nil},
		{"after-revocation", func(c *Config) { c.RevokedUses = 0 }, func(w *Watch, x apitoken.Token, n int) {
			w.Observe(ctx, apitoken.Observation{Op: "validate", Token: x, Err: revoked, Origin: address(n)})
		}, 2, nil},
		{"scope-probing", func(c *Config) { c.Forbidden, c.ForbiddenScopes = 0, 0 }, func(w *Watch, x apitoken.Token, n int) {
			w.Observe(ctx, apitoken.Observation{Op: "authorize", Token: x, Err: lacking, Origin: address(n)})
		}, 2, nil},
		{"client-failures", func(c *Config) { c.FailedClients = 0 }, func(w *Watch, x apitoken.Token, n int) {
			w.Observe(ctx, apitoken.Observation{Op: "authenticate", Client: x.Client(), Err: client, Origin: address(n)})
		}, 2, nil},
		{"unknown-tokens", func(c *Config) { c.Unknown = 0 }, func(w *Watch, _ apitoken.Token, n int) {
			w.Observe(ctx, apitoken.Observation{Op: "validate", Err: invalid, Origin: address(n)})
		}, 2, nil},
		{"rise", func(c *Config) { c.Rise = 0 }, func(w *Watch, x apitoken.Token, _ int) {
			w.Observe(ctx, apitoken.Observation{Op: "validate", Token: x})
		}, 8, nil},
		{"canary", func(c *Config) {
			for n := range 1000 {
				c.Canaries = append(c.Canaries, fmt.Sprintf("planted%d", n))
			}
		}, func(w *Watch, x apitoken.Token, _ int) {
			w.Observe(ctx, apitoken.Observation{Op: "validate", Token: x})
		}, 2, nil},
		{"reuse", func(*Config) {}, func(w *Watch, x apitoken.Token, _ int) {
			w.event(apitoken.Event{Type: event.Reused, Time: now, Grant: x.ID(), Subject: "user"})
		}, 4, nil},
	}
	for i := range list {
		x := &list[i]
		c := off()
		c.Now = func() time.Time { return now }
		x.on(&c)
		require.NoError(t, c.check())
		x.w = newWatch(c, nowhere{})
	}
	for n := range tokens {
		id := "01jd9x000000000000" + strconv.Itoa(10_000_000+n)
		token, err := apitoken.NewToken(apitoken.TokenSpec{ID: id, Issuer: issuer, Subject: id[18:], Client: id})
		if err != nil {
			t.Fatal(err)
		}
		for i := range list {
			list[i].see(list[i].w, token, n)
			if n%1000 == 0 {
				list[i].w.drain()
			}
		}
	}
	later := now.Add(time.Minute)
	for i := range list {
		list[i].w.drain()
		list[i].w.step(later)
		list[i].w.step(later.Add(time.Minute))
	}
	before := heap()
	for i := range list {
		x := &list[i]
		tables := x.w.Stats().Bytes
		x.w.stop()
		x.w = nil
		after := heap()
		held := before - min(before, after)
		before = after
		t.Logf("%-16s %6.2f MiB at %d tokens, tables %.2f MiB", x.name, float64(held)/(1<<20), tokens, float64(tables)/(1<<20))
		assert.LessOrEqual(t, held, x.bound<<20, "%s holds more than its stated %d MiB", x.name, x.bound)
		if x.name != "reuse" { // it has none
			assert.GreaterOrEqual(t, int64(held), tables*9/10, "%s: the tables were measured", x.name)
		}
	}
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
