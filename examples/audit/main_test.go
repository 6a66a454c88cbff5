package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAudit(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	require.NoError(t, run(&out, t.TempDir()))
	for _, want := range []string{
		"alice's token now: 401", "bob's token now: 401", "the canary's token now: 401",
		"revoke grant", "revoke subject", "the service has revoked it", "token.reused", `API key "nightly" of bob, no expiry: true`,
		"one word edited: ledger: records were edited", "one record left out: ledger:", "the end cut off: ledger: records are missing",
		"as it is: ", "and the log after it: ", "no longer tell",
	} {
		require.Contains(t, out.String(), want)
	}
}
