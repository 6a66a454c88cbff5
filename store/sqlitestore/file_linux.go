package sqlitestore

import "golang.org/x/sys/unix"

// identity is the inode of a file and when it was created, ns; 0 where that is not known. Nothing can set the latter: a file
// that was deleted and put back is younger than its mark, even if it got the same inode number again.
func identity(path string) (inode, born uint64) {
	var st unix.Statx_t
	if unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_SYNC_AS_STAT, unix.STATX_BTIME|unix.STATX_INO, &st) != nil {
		return 0, 0
	}
	if st.Mask&unix.STATX_BTIME != 0 {
		born = uint64(st.Btime.Sec)*1e9 + uint64(st.Btime.Nsec)
	}
	return st.Ino, born
}
