package boltstore

import (
	"bytes"
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// bornAt is when the file was created, ns; 0 where the file system does not say. Nothing can set it: a file that was
// deleted and put back is younger than its mark, even if it got the same inode number again.
func bornAt(path string) int64 {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_SYNC_AS_STAT, unix.STATX_BTIME, &st); err != nil ||
		st.Mask&unix.STATX_BTIME == 0 {
		return 0
	}
	return st.Btime.Sec*1e9 + int64(st.Btime.Nsec)
}

// labels are the names of the file's extended attributes that begin with labelPrefix; none where there can be none.
func labels(path string) ([]string, error) {
	for size := 1024; ; size *= 2 {
		b := make([]byte, size)
		n, err := unix.Listxattr(path, b)
		switch {
		case errors.Is(err, unix.ERANGE) && size < 1<<20:
			continue
		case errors.Is(err, unix.ENOTSUP):
			return nil, nil
		case err != nil:
			return nil, &os.PathError{Op: "listxattr", Path: path, Err: err}
		}
		var out []string
		for name := range bytes.SplitSeq(b[:n], []byte{0}) {
			if strings.HasPrefix(string(name), labelPrefix) {
				out = append(out, string(name))
			}
		}
		return out, nil
	}
}

func setLabel(path, name string) error    { return unix.Setxattr(path, name, nil, 0) }
func removeLabel(path, name string) error { return unix.Removexattr(path, name) }
