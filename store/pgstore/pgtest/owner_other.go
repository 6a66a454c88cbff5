//go:build !unix

package pgtest

import "os/exec"

// belongTo does nothing: a server that is left behind must be ended by hand.
func belongTo(*exec.Cmd, *owner) {}
