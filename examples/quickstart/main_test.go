package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestQuickstart(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	require.NoError(t, run(&out, t.TempDir()))
	for _, want := range []string{"200 OK  GET: orders of alice", `403 Forbidden  Bearer error="insufficient_scope"`, "invalid grant", `error_description="The token was revoked."`, "200 OK  GET: orders of carol", "token.reused", "token.refused"} {
		require.Contains(t, out.String(), want)
	}
}
