//go:build unix && !linux

package sqlitestore

import (
	"os"
	"syscall"
)

// identity is the inode of a file; 0 where it is not known. When the file was created is not asked for here.
func identity(path string) (inode, born uint64) {
	if fi, err := os.Stat(path); err == nil {
		if st, ok := fi.Sys().(*syscall.Stat_t); ok {
			return uint64(st.Ino), 0
		}
	}
	return 0, 0
}
