package fault

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The log has all that operators need: the class, which is all that a client sees, what went wrong, why, and when to try again.
func TestTheLogShowsAllOfAnError(t *testing.T) {
	t.Parallel()
	err := NoAnswer(&Error{Code: Limited, Detail: "too many calls", Cause: errors.New("engine: busy")}, "read")
	got := map[string]any{}
	for _, a := range err.LogValue().Group() {
		got[a.Key] = a.Value.Any()
	}
	require.Equal(t, map[string]any{"error": "apitoken: temporarily unavailable", "detail": "read", "retry_after": time.Second,
		"cause": "too many calls: engine: busy"}, got)
	require.Equal(t, "apitoken: temporarily unavailable", err.Error())
}
