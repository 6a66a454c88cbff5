//go:build !unix

package redistest

import (
	"syscall"
	"testing"
)

// No process can be sent these here: Pause fails.
const (
	sigPause  = syscall.Signal(0x13)
	sigResume = syscall.Signal(0x12)
)

// dyingWithUs does nothing: a server that is left behind must be ended by hand.
func dyingWithUs() *syscall.SysProcAttr { return nil }

// quickDir is "": a temporary directory of the test will do.
func quickDir(testing.TB) string { return "" }
