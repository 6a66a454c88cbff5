//go:build linux || darwin || freebsd

package main

import "golang.org/x/sys/unix"

// freeSpace is what this user may still write to the file system of dir, in bytes.
func freeSpace(dir string) (uint64, bool) {
	var s unix.Statfs_t
	if unix.Statfs(dir, &s) != nil {
		return 0, false
	}
	return uint64(s.Bavail) * uint64(s.Bsize), true
}
