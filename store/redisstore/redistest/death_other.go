//go:build unix && !linux

package redistest

import (
	"syscall"
	"testing"
)

// dyingWithUs is for Linux only: elsewhere a test that is killed leaves its server behind.
func dyingWithUs() *syscall.SysProcAttr { return &syscall.SysProcAttr{} }

// quickDir is for Linux only.
func quickDir(testing.TB) string { return "" }
