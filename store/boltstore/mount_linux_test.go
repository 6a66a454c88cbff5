package boltstore

import (
	"fmt"
	"syscall"
	"testing"
)

// mountSmall mounts a file system of so many bytes, or skips: it takes root.
func mountSmall(t *testing.T, dir string, size int) {
	t.Helper()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprint("size=", size)); err != nil {
		t.Skipf("mounting a small file system: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
}
