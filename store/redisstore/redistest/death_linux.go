package redistest

import "syscall"

// dyingWithUs makes a server end when this process is killed, so that no test leaves one behind.
func dyingWithUs() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
