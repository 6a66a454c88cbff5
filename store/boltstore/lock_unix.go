//go:build unix && !solaris && !illumos && !aix

package boltstore

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const lockPoll = 10 * time.Millisecond

// lockFile takes the advisory lock of f, waiting at most wait.
func lockFile(f *os.File, shared bool, wait time.Duration) error {
	how := syscall.LOCK_EX
	if shared {
		how = syscall.LOCK_SH
	}
	deadline := time.Now().Add(wait)
	for {
		err := syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, syscall.EINTR):
			continue
		case !errors.Is(err, syscall.EWOULDBLOCK):
			return fmt.Errorf("boltstore: lock %s: %w", f.Name(), err)
		case time.Now().After(deadline):
			return errTimedOut
		}
		time.Sleep(lockPoll)
	}
}

// inode tells files apart on one file system. The device is left out: its number may change at a reboot.
func inode(fi fs.FileInfo) uint64 {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return uint64(st.Ino)
	}
	return 0
}

// lockHolder names the process that holds a lock on one of paths, "" if that cannot be told (only Linux says).
func lockHolder(paths ...string) string {
	f, err := os.Open("/proc/locks")
	if err != nil {
		return ""
	}
	defer f.Close()
	want := map[string]bool{}
	for _, p := range paths {
		if fi, err := os.Stat(p); err == nil {
			want[strconv.FormatUint(inode(fi), 10)] = true
		}
	}
	// 1: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF
	for sc := bufio.NewScanner(f); sc.Scan(); {
		col := strings.Fields(sc.Text())
		if len(col) < 6 || col[1] != "FLOCK" {
			continue
		}
		if i := strings.LastIndexByte(col[5], ':'); !want[col[5][i+1:]] {
			continue
		}
		pid, err := strconv.Atoi(col[4])
		if err != nil || pid <= 0 {
			continue
		}
		if pid == os.Getpid() {
			return "this process itself (it opened the file twice)"
		}
		name, err := os.ReadFile("/proc/" + col[4] + "/comm")
		if err != nil {
			return "process " + col[4]
		}
		return fmt.Sprintf("process %d (%s)", pid, strings.TrimSpace(string(name)))
	}
	return ""
}

// syncDir makes a rename in dir durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
