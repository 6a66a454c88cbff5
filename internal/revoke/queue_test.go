package revoke

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/store"
)

type name string

func (n name) String() string { return string(n) }

// A write that fails is tried again behind the others, and ends when the store has it, or never can.
func TestWritesEndWhenTheStoreHasThem(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		q := newQueue(slog.New(slog.DiscardHandler))
		var order []string
		add := func(n name, results ...error) {
			q.add(n, func(context.Context) error {
				order = append(order, string(n))
				err := results[0]
				results = results[1:]
				return err
			}, func() { order = append(order, string(n)+" done") })
		}
		add("slow", errors.New("down"), errors.New("down"), nil)
		add("taken", store.ErrConflict)
		add("gone", fault.Fail(fault.NotFound, "gone"))
		add("never", fault.Fail(fault.InvalidRequest, "too large"))
		require.Equal(t, 4, q.waiting())
		ended := make(chan struct{})
		go func() { defer close(ended); q.run(ctx) }()
		for q.waiting() > 0 {
			synctest.Wait()
			time.Sleep(firstWait)
		}
		require.Equal(t, []string{"slow", "taken", "taken done", "gone", "gone done", "never", "slow", "slow", "slow done"}, order)
		stop()
		<-ended
		add("late", nil)
		require.Zero(t, q.waiting(), "nobody would write it")
	})
}
