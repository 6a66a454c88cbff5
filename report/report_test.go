package report_test

import (
	"context"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/store"
)

const day = 24 * time.Hour

// clock is a clock that a test moves.
type clock struct{ ahead atomic.Int64 }

func (c *clock) Now() time.Time          { return time.Now().Add(time.Duration(c.ahead.Load())) }
func (c *clock) Advance(d time.Duration) { c.ahead.Add(int64(d)) }

func service(t testing.TB, st store.Store, change func(*apitoken.Config)) *apitoken.Service {
	t.Helper()
	c := apitoken.Config{Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: st, InsecureKeysInStore: true}
	if change != nil {
		change(&c)
	}
	svc, err := apitoken.New(c)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, svc.Close()) })
	return svc
}

func at(addr string) context.Context {
	return apitoken.WithOrigin(context.Background(), apitoken.Origin{Address: netip.MustParseAddr(addr), UserAgent: "test/1"})
}

func use(t testing.TB, ctx context.Context, svc *apitoken.Service, s apitoken.Secret, scope apitoken.Scope) {
	t.Helper()
	_, err := apitoken.Authorize(ctx, svc, apitoken.Bearer(s.Reveal()), apitoken.AllOf(scope))
	require.NoError(t, err)
}
