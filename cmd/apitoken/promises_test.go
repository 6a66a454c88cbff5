package main

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestThePromises: what docs/cli.md and the help promise is what there is: the exit codes, each command, each environment variable,
// each engine. The members of --json are those of the admin API, whose description is held by a test of its own.
func TestThePromises(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("../../docs/cli.md")
	require.NoError(t, err)
	doc := string(b)
	root := (&app{}).root()
	for code, words := range map[int][2]string{
		done: {"0 done", "0 done"}, failed: {"1 failed", "1 failed"}, misused: {"2 wrong usage or input", "2 wrong usage"},
		found: {"3 something bad was found", "3 something bad was found"}, notFound: {"4 not found", "4 not found"},
		unavailable: {"5 the service or store does not answer", "5 unavailable"}, refused: {"6 it answers, and does not let you", "6 refused"},
	} {
		require.Contains(t, doc, words[0], code)
		require.Contains(t, root.Long, words[1], code)
		require.True(t, strings.HasPrefix(words[0], fmt.Sprint(code)))
	}
	for _, c := range root.Commands() {
		if c.Name() == "help" {
			continue
		}
		require.Contains(t, doc, "`"+c.Name(), "docs/cli.md tells of each command")
		for _, sub := range c.Commands() {
			require.Contains(t, doc, sub.Name(), "%s %s", c.Name(), sub.Name())
		}
		require.NotEmpty(t, c.Short, c.Name())
	}
	for _, name := range []string{"APITOKEN_STORE", "APITOKEN_ADMIN", "APITOKEN_API_KEY_FILE", "APITOKEN_SEAL_FILE", "NO_COLOR", "COLUMNS"} {
		require.Contains(t, doc, name)
	}
	for scheme := range schemes {
		require.True(t, scheme == "postgresql" || strings.Contains(doc, "`"+scheme+"://"), scheme)
	}
}
