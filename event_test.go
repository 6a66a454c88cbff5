package apitoken_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/apitokentest"
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
