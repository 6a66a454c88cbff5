package commit

import (
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/store"
)

// A try that lost against another writer is repeated, any other outcome is the answer, and a caller that always loses is told to come
// again.
func TestRetryRepeatsWhatLostAgainstAnotherWriter(t *testing.T) {
	t.Parallel()
	down := errors.New("down")
	for _, want := range []error{nil, down} {
		tries := 0
		err := Retry("parallel changes", func() error {
			if tries++; tries < 3 {
				return store.ErrConflict
			}
			return want
		})
		require.Equal(t, want, err)
		require.Equal(t, 3, tries)
	}
	own := fmt.Errorf("the host: %w", store.ErrConflict) // of a store of the host's own
	calls := 0
	require.Equal(t, own, Retry("parallel changes", func() error { calls++; return Final(own) }))
	require.Equal(t, 1, calls)
	require.NoError(t, Final(nil))

	tries := 0
	err := Retry("parallel changes of 100% of it", func() error { tries++; return store.ErrConflict })
	require.Equal(t, Tries, tries)
	require.ErrorIs(t, err, fault.Unavailable)
	require.Equal(t, "parallel changes of 100% of it", fault.DetailOf(err))
	require.NotZero(t, err.(*fault.Error).RetryAfter)
}
