//go:build unix && !solaris && !illumos && !aix

package boltstore

import "golang.org/x/sys/unix"

// stateOf is what the file system says of a file, zero where that is not known. The time of the last change of the inode is
// in it because a tool can set that of the last write, as cp -p, tar and rsync do.
func stateOf(path string) fileState {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return fileState{}
	}
	return fileState{size: st.Size, modified: st.Mtim.Nano(), changed: st.Ctim.Nano()}
}
