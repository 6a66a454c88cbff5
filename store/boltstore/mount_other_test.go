//go:build !linux

package boltstore

import "testing"

func mountSmall(t *testing.T, _ string, _ int) {
	t.Helper()
	t.Skip("mounting a small file system: only on Linux")
}
