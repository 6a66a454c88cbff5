package apitoken_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/apitokentest"
	"github.com/apitoken-go/apitoken/event"
)

func TestOneEventByItsID(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	svc := apitokentest.New(t)
	var all []apitoken.Event
	for range 5 {
		svc.Mint("alice", "orders:read")
		svc.Advance(20 * time.Second)
	}
	for e, err := range svc.Events(ctx, apitoken.EventQuery{}) {
		require.NoError(t, err)
		all = append(all, e)
	}
	require.GreaterOrEqual(t, len(all), 5)
	for _, want := range all {
		got, err := svc.Event(ctx, want.ID)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	for _, id := range []string{"", "junk", "00000000000000000000000000", "../" + all[0].ID} {
		_, err := svc.Event(ctx, id)
		require.ErrorIs(t, err, apitoken.ErrNotFound, id)
	}
}

// An event prints what is set of it: the address that nobody told is nothing, not "invalid IP".
func TestEventPrintsWhatIsSet(t *testing.T) {
	t.Parallel()
	e := apitoken.Event{ID: "e1", Time: time.Date(2026, 11, 29, 0, 0, 0, 0, time.UTC), Type: event.Revoked, OK: true, Subject: "alice"}
	text, err := json.Marshal(e)
	require.NoError(t, err)
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("audit", "event", e)
	for _, s := range []string{fmt.Sprint(e), fmt.Sprint(&e), fmt.Sprintf("%+v", e), string(text), log.String()} {
		require.Contains(t, s, "alice")
		require.NotContains(t, s, "invalid")
		require.NotContains(t, s, "address")
	}
	require.Equal(t, "[id=e1 time=2026-11-29 00:00:00 +0000 UTC type=token.revoked ok=true subject=alice]", fmt.Sprint(e))

	e.Address = netip.MustParseAddr("203.0.113.9")
	require.Contains(t, fmt.Sprint(e), "address=203.0.113.9")
}
