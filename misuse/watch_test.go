package misuse

import (
	"context"
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/store/memstore"
)

const issuer = "https://auth.example.com"

// nowhere takes alerts and revocations of a Watch whose goroutines do not run.
type nowhere struct{}

func (nowhere) Issuer() string                                        { return issuer }
func (nowhere) Alert(context.Context, apitoken.Event) error           { return nil }
func (nowhere) Revoke(context.Context, apitoken.Target, string) error { return nil }

// quietWatch is a Watch without goroutines: its caller steps it.
func quietWatch(t testing.TB, c Config) *Watch {
	t.Helper()
	require.NoError(t, c.check())
	return newWatch(c, nowhere{})
}

func TestTargets(t *testing.T) {
	t.Parallel()
	token := func(spec apitoken.TokenSpec) apitoken.Token {
		x, err := apitoken.NewToken(spec)
		require.NoError(t, err)
		return x
	}
	session := Alert{Subject: "alice", Grant: "g", TokenID: "t", Token: token(apitoken.TokenSpec{Issuer: issuer, ID: "t"})}
	key := Alert{Subject: "ci", TokenID: "k"}
	reused := Alert{Subject: "alice", Grant: "g"}
	foreign := Alert{Subject: "bob", Grant: "g", TokenID: "t", Token: token(apitoken.TokenSpec{Issuer: "https://other.example", ID: "t"})}
	client := Alert{Client: "web"}
	for _, x := range []struct {
		name   string
		alert  Alert
		action Action
		want   string
	}{
		{"session", session, RevokeToken, "token:t"},
		{"session", session, RevokeGrant, "grant:g"},
		{"session", session, RevokeSubject, "subject:alice"},
		{"session", session, Tell, ""},
		{"API key", key, RevokeGrant, "token:k"},
		{"API key", key, RevokeSubject, "subject:ci"},
		{"reuse", reused, RevokeToken, "grant:g"},
		{"another issuer's", foreign, RevokeGrant, "token:t;issuer=https://other.example"},
		{"another issuer's", foreign, RevokeSubject, "subject:bob;issuer=https://other.example"},
		{"a client", client, RevokeSubject, ""},
	} {
		assert.Equal(t, x.want, x.alert.target(x.action, issuer).String(), "%s, %s", x.name, x.action)
	}
}

func TestOfSeveralProcessesOneTellsOfAReuse(t *testing.T) {
	t.Parallel()
	st := memstore.New()
	alerts := make(chan Alert, 16)
	var svcs []*apitoken.Service
	var watches []*Watch
	for range 3 {
		svc, err := apitoken.New(apitoken.Config{Issuer: issuer, Audience: "https://api.example.com", Store: st, InsecureKeysInStore: true})
		require.NoError(t, err)
		w, err := Start(svc, Config{Policy: func(_ context.Context, a Alert) Action { alerts <- a; return RevokeGrant }})
		require.NoError(t, err)
		svcs, watches = append(svcs, svc), append(watches, w)
	}
	t.Cleanup(func() {
		for _, s := range svcs {
			assert.NoError(t, s.Close())
		}
	})
	h := &house{svc: svcs[0], alerts: alerts}
	for n, svc := range svcs {
		i, err := svc.Issue(t.Context(), apitoken.Request{Subject: fmt.Sprint("user", n), Scopes: apitoken.Scopes{"orders:read"}, Refresh: true})
		require.NoError(t, err)
		spent := i.Refresh.Reveal()
		for range 2 {
			i, err = svc.Refresh(t.Context(), apitoken.RefreshRequest{Token: i.Refresh.Reveal()})
			require.NoError(t, err)
		}
		_, err = svc.Refresh(t.Context(), apitoken.RefreshRequest{Token: spent})
		require.ErrorIs(t, err, apitoken.ErrInvalidGrant)
	}
	seen := map[string]bool{}
	for range svcs {
		seen[h.alert(t).Subject] = true
	}
	assert.Len(t, seen, 3, "what any process recorded is seen")
	for _, w := range watches {
		require.NoError(t, w.Close())
	}
	assert.Empty(t, alerts, "and once")
	n := 0
	for e, err := range svcs[1].Events(t.Context(), apitoken.EventQuery{Type: event.Alert}) {
		require.NoError(t, err)
		assert.Equal(t, "the service has revoked it", e.Extra["outcome"])
		n++
	}
	assert.Equal(t, 3, n)
}

// TestObserveFromEverywhere is for the race detector: requests, the owner and metrics at once.
func TestObserveFromEverywhere(t *testing.T) {
	t.Parallel()
	h := newHouse(t, Config{Tokens: 1 << 12, Unknown: 10, Canaries: []string{"t7"}}, Tell)
	go func() {
		for range h.alerts { //nolint:revive // they are not what is tested
		}
	}()
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for n := range 4000 {
				token := clientToken(t, fmt.Sprint("client", n%40), n%600)
				o := apitoken.Observation{Op: "validate", Token: token, Origin: apitoken.Origin{
					Address: netip.AddrFrom4([4]byte{10, byte(n), byte(g), 1}), UserAgent: fmt.Sprint("agent", 'a'+g)}}
				switch n % 5 {
				case 1:
					o.Err = refusal(apitoken.ErrRevoked)
				case 2:
					o.Token, o.Err = apitoken.Token{}, refusal(apitoken.ErrInvalidToken)
				case 3:
					o.Op, o.Err = "authorize", refusal(apitoken.ErrInsufficientScope)
				case 4:
					o.Op, o.Client, o.Err = "authenticate", "shop", refusal(apitoken.ErrInvalidClient)
				}
				h.watch.Observe(t.Context(), o)
			}
		})
	}
	for range 100 {
		assert.Positive(t, h.watch.Stats().Bytes)
	}
	wg.Wait()
	require.NoError(t, h.watch.Close())
	require.NoError(t, h.watch.Close(), "twice is once")
	close(h.alerts)
	assert.Positive(t, h.watch.Stats().Alerts)
	h.watch.Observe(t.Context(), apitoken.Observation{Op: "validate", Token: clientToken(t, "late", 7)})
}

func TestATableOfFewPlacesKeepsTheHighestCounts(t *testing.T) {
	t.Parallel()
	if underRace {
		t.Skip("one goroutine calculates: it is judged without the race detector")
	}
	c := newCountTable(true)
	rng := rand.New(rand.NewPCG(1, 2))
	passed := 0
	for range 1_000_000 { // strangers, each of them once, and one that comes again and again
		c.add(rng.Uint64()|1, 1, 1000)
		if rng.IntN(500) == 0 {
			if _, ok := c.add(42<<32, 1, 1000); ok {
				passed++
			}
		}
	}
	assert.Equal(t, 1, passed, "whoever asks often is not forgotten for those who ask once")
}

func TestNetworksAreEstimated(t *testing.T) {
	t.Parallel()
	tokens := &tokenTable{}
	tokens.init(maphash.MakeSeed(), 1<<12)
	for _, n := range []int{1, 2, 4, 6, 10, 20, 40, 80} {
		var f moveFound
		for i := range n {
			o := apitoken.Origin{Address: netip.AddrFrom4([4]byte{byte(n), byte(i), 7, 1})}
			f = tokens.moved(uint64(n)<<20, uint64(i)+1, &o, 9, moveLimits{networks: 100})
		}
		assert.InDelta(t, n, f.networks, 1+float64(n)*0.3, "of %d networks", n)
	}
	o := apitoken.Origin{Address: netip.MustParseAddr("2001:db8:1:1::1")}
	var f moveFound
	for i := range 50 { // one home: its addresses and networks change, its provider's assignment stays
		a := o.Address.As16()
		a[7], a[15] = byte(i), byte(i)
		o.Address = netip.AddrFrom16(a)
		f = tokens.moved(77, uint64(i)+1, &o, 9, moveLimits{networks: 100})
	}
	assert.Equal(t, 1, f.networks)
}

// There is no half of the window, however its number falls, in which nothing alerts.
func TestAnAlertInEveryHalf(t *testing.T) {
	t.Parallel()
	for half := range uint32(1 << 16) {
		h := mix(uint64(half) + 1)
		c := &countShard{buckets: make([][countPlaces]count, 1)}
		table := &countTable{}
		table.shards[h>>58].buckets = c.buckets
		_, passed := table.add(h, half, 1)
		require.True(t, passed, "half %d", half)
		_, passed = table.add(h, half, 1)
		require.False(t, passed, "half %d, again", half)
		_, passed = table.add(h, half+1, 1)
		require.True(t, passed, "half %d, and the next", half)
	}
	var tokens tokenTable
	tokens.init(maphash.MakeSeed(), 8)
	for half := uint32(1<<16 - 2); half < 1<<16+2; half++ {
		o := apitoken.Origin{Address: netip.MustParseAddr("192.0.2.1")}
		require.True(t, tokens.moved(uint64(half), tokens.place(&o), &o, half, moveLimits{networks: 1}).tooMany, "half %d", half)
	}
}
