package ledger_test

import (
	"context"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/ledger"
)

// TestEverythingAtOnce: sealing, proving, exporting, checking, erasing, archiving and rotating do not disturb each other.
func TestEverythingAtOnce(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	vault := openVault(t, t.TempDir())
	l := open(t, ledgerPath(t), func(c *ledger.Config) { c.Vault, c.Poll = vault, time.Millisecond })
	svc := service(t, func(c *apitoken.Config) { c.Sinks = []apitoken.Sink{{Name: "ledger", Auditor: l}} })
	require.NoError(t, l.Follow(svc))
	var wg sync.WaitGroup
	for _, work := range []func(i int) error{
		func(int) error {
			_, err := svc.Issue(ctx, apitoken.Request{Subject: "alice"})
			return err
		},
		func(int) error { _, err := l.Seal(ctx); return err },
		func(int) error { return l.Export(ctx, io.Discard, l.Status().First, -1) },
		func(int) error { return l.Check(ctx) },
		func(int) error { _, err := vault.Erase(ctx, "alice"); return err },
		func(i int) error {
			if i%20 != 0 {
				return nil
			}
			return vault.Rotate(ctx)
		},
		func(int) error {
			return l.Leaves(ctx, l.Status().First, -1, func(x ledger.Leaf) error {
				_, _, err := vault.Reveal(x)
				return err
			})
		},
	} {
		wg.Go(func() {
			for i := range 60 {
				if err := work(i); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	last := seal(t, l)
	_, err := verify(l, exported(t, l, 0, -1), last)
	require.NoError(t, err)
	size := l.Status().Size
	require.NoError(t, l.Archive(ctx, io.Discard, size, func() error { return nil }))
	require.Equal(t, size, l.Status().First)
	_, err = verify(l, exported(t, l, size, -1), last)
	require.NoError(t, err, "nothing is left, and it is proved where it goes on")
}
