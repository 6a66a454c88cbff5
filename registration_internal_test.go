package apitoken

import (
	"sync/atomic"
	"testing"
	"time"

	is "github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/internal/clients"
	"github.com/apitoken-go/apitoken/internal/follow"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/memstore"
)

// Memory forgets a client that ended when the store does.
func TestAClientThatEndedIsForgotten(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	var later atomic.Int64 // a time.Duration
	now := func() time.Time { return time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC).Add(time.Duration(later.Load())) }
	svc, err := New(Config{Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: memstore.NewWithClock(now), InsecureKeysInStore: true, Now: now})
	is.NoError(t, err)
	t.Cleanup(func() { svc.Close() })
	id := "https://app.example.com/c.json"
	_, err = svc.Clients.Adopt(ctx, Client{ID: id, Public: true, GrantTypes: []string{"authorization_code"}, RedirectURIs: []string{"https://app.example.com/cb"}}, 10)
	is.NoError(t, err)
	later.Store(int64(unusedClient + clients.Slack))
	svc.janitor().tidy(ctx, follow.NewClock(now).Now())
	is.NotNil(t, svc.Clients.lookup(id), "people may still ask what became of it")
	later.Add(int64(time.Second))
	is.NoError(t, svc.state.Refresh(ctx))
	svc.janitor().tidy(ctx, follow.NewClock(now).Now())
	is.Nil(t, svc.Clients.lookup(id))
	is.Zero(t, svc.Clients.Temporary())
	_, err = svc.st.Get(ctx, store.KindClient, id)
	is.ErrorIs(t, err, store.ErrNotFound)
}
