package apitoken_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/memstore"
	"github.com/apitoken-go/apitoken/store/move"
)

// A store that answers ErrInvalid or ErrTooLarge has not written, and never will: the caller learns that its request is at
// fault, and nothing asks again.
func TestWhatNoStoreKeepsIsNotTriedAgain(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	for _, refusal := range []error{store.ErrInvalid, store.ErrTooLarge} {
		t.Run(refusal.Error(), func(t *testing.T) {
			t.Parallel()
			from, st := memstore.New(), &faulty{Store: memstore.New()}
			svc := serviceOn(t, st, nil)
			var calls atomic.Int64
			st.onApply(func(context.Context, *store.Change) (error, error) {
				calls.Add(1)
				return fmt.Errorf("engine: %w", refusal), nil
			})
			require.ErrorIs(t, svc.Revoke(ctx, apitoken.BySubject("alice"), "left"), apitoken.ErrInvalidRequest)
			require.EqualValues(t, 1, calls.Load(), "a Change that is refused was tried again")
			require.Zero(t, svc.Backlog().Revocations, "and will not be")

			serviceOn(t, from, nil)
			to := &faulty{Store: memstore.New()}
			var copies atomic.Int64
			to.onApply(func(context.Context, *store.Change) (error, error) {
				copies.Add(1)
				return fmt.Errorf("engine: %w", refusal), nil
			})
			_, err := move.Copy(ctx, from, to)
			require.Error(t, err)
			require.EqualValues(t, 1, copies.Load(), "Copy tried a Change again that is refused")
			st.onApply(nil)
		})
	}
}
