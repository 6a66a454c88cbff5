package main

import (
	"bytes"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestMain is the worker when the show starts its own binary again.
func TestMain(m *testing.M) {
	if os.Getenv(workerVariable) != "" {
		if err := worker(os.Stdin, os.Stdout, os.Args[1:]); err != nil {
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func TestShow(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	require.NoError(t, run(&out, "etcd", t.TempDir()), "%s", &out)
	t.Log(out.String())
	for _, want := range []string{"A refuses mallory's token", "B refuses trudy's token", "its view is too old", "C killed"} {
		require.Contains(t, out.String(), want)
	}
}
