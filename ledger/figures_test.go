package ledger_test

import (
	"context"
	"errors"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/ledger"
)

// TestFiguresAreTheStatus: what metrics show of a ledger is what its Status says, and what is not known is left out.
func TestFiguresAreTheStatus(t *testing.T) {
	t.Parallel()
	down := errors.New("down")
	l := open(t, ledgerPath(t), func(c *ledger.Config) {
		c.Publish = []ledger.Publisher{ledger.FilePublisher(filepath.Join(t.TempDir(), "checkpoints")),
			ledger.PublisherFunc(func(context.Context, []byte) error { return down })}
	})
	got := l.Figures()
	require.Zero(t, got["records"]+got["signed"]+got["published"]+got["failing"]+got["found"])
	require.NotContains(t, got, "read_age", "nothing was read yet")
	require.NotContains(t, got, "checked_age", "nothing was checked yet")

	require.NoError(t, l.Follow(&feed{events: []apitoken.Event{{ID: "01a", Time: eventTime, Type: event.Issued, OK: true, Subject: "alice"}}}))
	seal(t, l)
	got, s := l.Figures(), l.Status()
	require.Equal(t, [2]float64{float64(s.Size), float64(s.Signed)}, [2]float64{got["records"], got["signed"]})
	require.Equal(t, 1.0, got["signed"])
	require.Zero(t, got["published"], "one of the two publishers took nothing")
	require.Contains(t, got, "read_age")
	require.Equal(t, s.Waiting.IsZero(), got["waiting"] == 0)
}
