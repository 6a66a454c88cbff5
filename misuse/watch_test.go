package misuse

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken"
)

const issuer = "https://auth.example.com"

// nowhere takes alerts and revocations of a Watch whose goroutines do not run.
type nowhere struct{}

func (nowhere) Issuer() string                                        { return issuer }
func (nowhere) Alert(context.Context, apitoken.Event) error           { return nil }
func (nowhere) Revoke(context.Context, apitoken.Target, string) error { return nil }

// quietWatch is a Watch without goroutines: its caller steps it.
func quietWatch(t testing.TB, c Config) *Watch {
	t.Helper()
	require.NoError(t, c.check())
	return newWatch(c, nowhere{})
}
