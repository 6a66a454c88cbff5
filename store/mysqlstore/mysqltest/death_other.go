//go:build unix && !linux

package mysqltest

import "syscall"

// dyingWithUs is for Linux only: elsewhere a test that is killed leaves its server behind.
func dyingWithUs() *syscall.SysProcAttr { return &syscall.SysProcAttr{} }
