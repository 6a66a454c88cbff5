package admin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/apitoken-go/apitoken"
)

// Suffix behind a database file's name is where its service's socket is by convention: tokens.db.admin. Command apitoken looks
// there.
const Suffix = ".admin"

// Server is an admin API on a Unix socket.
type Server struct {
	http *http.Server
	path string
	file fs.FileInfo
	done chan struct{}
}

// Serve answers on a Unix socket at path, with mode 0600, until Close. What another process left there after a crash is
// replaced; a socket on which somebody answers is an error. Close it before the service.
func Serve(svc *apitoken.Service, path string, o Options) (*Server, error) {
	if svc == nil {
		return nil, wrong("svc", "is nil")
	}
	ln, err := listen(path)
	if err != nil {
		return nil, fmt.Errorf("admin: %w", err)
	}
	file, err := os.Lstat(path)
	if err != nil {
		return nil, fmt.Errorf("admin: %w", errors.Join(err, ln.Close()))
	}
	s := &Server{path: path, file: file, done: make(chan struct{}), http: &http.Server{
		Handler: open(svc, o), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: opTime, WriteTimeout: 2 * opTime, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
	}}
	go func() {
		defer close(s.done)
		_ = s.http.Serve(ln) // ends by Close
	}()
	return s, nil
}

// Close lets requests finish, for five seconds, and removes the socket.
func (s *Server) Close() error {
	if now, err := os.Lstat(s.path); err == nil && os.SameFile(now, s.file) {
		_ = os.Remove(s.path) // what is left is a socket on which nobody answers
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = errors.Join(err, s.http.Close())
	}
	<-s.done
	return err
}

// longest name of a socket, in bytes: sun_path less the NUL, on Linux; other systems take four less.
const maxSocketPath = 103

// listen makes the socket in a directory that nobody else may enter and moves it to its place when its mode is set, so that there
// is no moment in which others could connect.
func listen(path string) (net.Listener, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("the name of the socket, %s, is over %d bytes: give a shorter one, or one relative to the working directory", path, maxSocketPath)
	}
	switch old, err := os.Lstat(path); {
	case err == nil && old.Mode()&fs.ModeSocket == 0 && runtime.GOOS != "windows":
		return nil, fmt.Errorf("%s exists and is no socket", path)
	case err == nil:
		if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
			c.Close()
			return nil, fmt.Errorf("another process answers on %s", path)
		}
	}
	dir, err := os.MkdirTemp(filepath.Dir(path), ".a")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	first := filepath.Join(dir, "s")
	if len(first) > maxSocketPath {
		return nil, fmt.Errorf("the directory of the socket has too long a name: give %s another place", filepath.Base(path))
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: first, Net: "unix"})
	if err != nil {
		return nil, err
	}
	ln.SetUnlinkOnClose(false) // by then another process's may lie there
	if err := os.Chmod(first, 0o600); err == nil || runtime.GOOS == "windows" {
		err = os.Rename(first, path)
		if err == nil {
			return ln, nil
		}
		return nil, errors.Join(err, ln.Close())
	}
	return nil, errors.Join(err, ln.Close())
}
