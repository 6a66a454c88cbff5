package report_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/report"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/memstore"
)

func findings(t testing.TB, svc *apitoken.Service, c report.HygieneConfig) map[string]report.Finding {
	t.Helper()
	out := map[string]report.Finding{}
	for f, err := range report.Hygiene(context.Background(), svc, c) {
		require.NoError(t, err)
		require.NotContains(t, out, f.Key.Name)
		out[f.Key.Name] = f
	}
	return out
}

func TestHygiene(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	clk := &clock{}
	svc := service(t, memstore.New(), func(c *apitoken.Config) { c.Now = clk.Now })
	secrets := map[string]apitoken.Secret{}
	key := func(name string, forever bool, scopes ...apitoken.Scope) string {
		r := apitoken.APIKeyRequest{Subject: "alice", Name: name, Scopes: scopes, Expires: clk.Now().Add(1000 * day)}
		if forever {
			r.Expires = time.Time{}
		}
		k, secret, err := svc.APIKeys.Create(ctx, r)
		require.NoError(t, err)
		secrets[name] = secret
		return k.ID
	}
	key("clean", false, "orders:read")
	key("forever", true, "orders:read")
	key("forgotten", false, "orders:read")
	key("broad", false, "orders", "users", "billing:read")
	key("silent", false, "orders", "users") // its callers check scopes by themselves
	require.NoError(t, svc.APIKeys.Revoke(ctx, key("revoked", true), ""))
	_, _, err := svc.APIKeys.Rotate(ctx, key("rotated", true, "orders:read"), 200*day)
	require.NoError(t, err)

	require.Empty(t, findings(t, svc, report.HygieneConfig{})["broad"].Key.ID, "nothing is said of what is new")
	clk.Advance(100 * day)
	require.NoError(t, svc.Sync(ctx))
	for _, name := range []string{"clean", "forever", "rotated"} {
		use(t, ctx, svc, secrets[name], "orders:read")
	}
	use(t, ctx, svc, secrets["broad"], "orders:read")
	use(t, ctx, svc, secrets["broad"], "orders:write")
	use(t, ctx, svc, secrets["broad"], "orders:write:own")
	use(t, ctx, svc, secrets["broad"], "users:read")
	_, err = svc.Validate(ctx, apitoken.Bearer(secrets["silent"].Reveal()))
	require.NoError(t, err)

	got := findings(t, svc, report.HygieneConfig{})
	require.NotContains(t, got, "clean")
	require.NotContains(t, got, "revoked")
	require.NotContains(t, got, "silent", "what is not known is not claimed")
	require.True(t, got["forever"].NoExpiry)
	require.Zero(t, got["forever"].Idle)
	require.Empty(t, got["forever"].Narrower)
	require.GreaterOrEqual(t, got["forgotten"].Idle, 100*day)
	require.False(t, got["forgotten"].NoExpiry)
	require.Equal(t, apitoken.Scopes{"billing:read"}, got["broad"].Unused)
	require.Equal(t, apitoken.Scopes{"orders:read", "orders:write", "users:read"}, got["broad"].Narrower, "enough for all it did, and no more")
	require.True(t, got["rotated"].NoExpiry, "the successor; the old one ends by itself")
	require.GreaterOrEqual(t, got["rotated"].Idle, 100*day)

	require.Empty(t, findings(t, svc, report.HygieneConfig{Unused: 200 * day})["forgotten"].Key.ID)
	for _, err := range report.Hygiene(ctx, svc, report.HygieneConfig{Unused: -1}) {
		require.Error(t, err)
	}
	n := 0
	for range report.Hygiene(ctx, svc, report.HygieneConfig{}) {
		n++
		break
	}
	require.Equal(t, 1, n, "a caller may stop")
}

// paged counts the pages of API keys that were read, and may fail at the second.
type paged struct {
	store.Store
	pages int
	fail  bool
}

var errEngine = errors.New("engine: connection lost")

func (f *paged) List(ctx context.Context, q store.Query) (store.Page, error) {
	if q.Kind == store.KindAPIKey {
		if f.fail && q.Cursor != "" {
			return store.Page{}, errEngine
		}
		f.pages++
	}
	return f.Store.List(ctx, q)
}

func TestHygieneStreamsAndSaysWhenItCouldNotGoOn(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	st := &paged{Store: memstore.New()}
	svc := service(t, st, nil)
	const keys = 1000
	for n := range keys {
		_, _, err := svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: fmt.Sprintf("user-%d", n)})
		require.NoError(t, err)
	}
	n := 0
	for f, err := range report.Hygiene(ctx, svc, report.HygieneConfig{}) {
		require.NoError(t, err)
		require.True(t, f.NoExpiry)
		require.Equal(t, n/200+1, st.pages, "it reads a page when it is wanted, and holds no more")
		n++
	}
	require.Equal(t, keys, n)

	st.fail = true
	n = 0
	var failed error
	for _, err := range report.Hygiene(ctx, svc, report.HygieneConfig{}) {
		if err != nil {
			failed = err
			continue
		}
		n++
	}
	require.ErrorIs(t, failed, apitoken.ErrUnavailable)
	require.Equal(t, 200, n)
}
