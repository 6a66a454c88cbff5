package redistest

import (
	"os"
	"syscall"
	"testing"
)

// quickDir is a directory in memory, where a sync takes no time, for the length of a test; "" where there is little room.
func quickDir(tb testing.TB) string {
	const shm, room = "/dev/shm", 2 << 30
	var fs syscall.Statfs_t
	if syscall.Statfs(shm, &fs) != nil || uint64(fs.Bsize)*fs.Bavail < room {
		return ""
	}
	dir, err := os.MkdirTemp(shm, "apitoken-redis-")
	if err != nil {
		return ""
	}
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
