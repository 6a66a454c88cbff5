package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestMicroservices(t *testing.T) {
	t.Parallel()
	bin := filepath.Join(t.TempDir(), "microservices")
	out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput()
	require.NoError(t, err, string(out))
	cmd := exec.Command(bin)
	cmd.Env = os.Environ()
	out, err = cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	require.Contains(t, string(out), "200 orders of alice")
	require.Contains(t, string(out), "200 mail of alice")
	require.Contains(t, string(out), "401, ")
}
