//go:build unix

package pgtest

import (
	"os/exec"
	"syscall"
)

// belongTo makes cmd run as o, nil for this process's own user, and end with this process where the system can.
func belongTo(cmd *exec.Cmd, o *owner) {
	cmd.SysProcAttr = dyingWithUs()
	if o != nil {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(o.uid), Gid: uint32(o.gid)}
	}
}
