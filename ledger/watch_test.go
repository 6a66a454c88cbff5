package ledger_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/ledger"
)

// A ledger that nobody asks finds by itself that its source was edited.
func TestALedgerWatchesItself(t *testing.T) {
	t.Parallel()
	src := &feed{}
	src.add(5)
	l := open(t, ledgerPath(t), func(c *ledger.Config) { c.Watch, c.Poll = 20*time.Millisecond, 10*time.Millisecond })
	require.NoError(t, l.Follow(src))
	require.Eventually(t, func() bool { return !l.Status().Checked.IsZero() && l.Status().Size == 5 }, 10*time.Second, 5*time.Millisecond)
	require.NoError(t, l.Status().Found)
	src.change(func(f *feed) { f.events[2].Subject = "somebody else" })
	require.Eventually(t, func() bool { return l.Status().Found != nil }, 10*time.Second, 5*time.Millisecond)
	var found *ledger.TamperError
	require.ErrorAs(t, l.Status().Found, &found)
}
