package boltstore

import (
	"os"

	"golang.org/x/sys/unix"
)

// writeOut has the system begin to write a part of the file, and waits for the part before it. It promises nothing.
func writeOut(f *os.File, from, n int64) {
	if from >= n {
		_ = unix.SyncFileRange(int(f.Fd()), from-n, n, unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
	}
	_ = unix.SyncFileRange(int(f.Fd()), from, n, unix.SYNC_FILE_RANGE_WRITE)
}
