package mysqltest

import "syscall"

// dyingWithUs makes a process end when this one is killed, so that no test leaves a server behind.
func dyingWithUs() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
