// Package pgtest gives tests a Postgres of their own.
package pgtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Server is a throwaway server on loopback.
type Server struct {
	URL  string
	dir  string
	bin  string
	port int
	cred *syscall.SysProcAttr
	cmd  *exec.Cmd
}

var errNone = errors.New("no Postgres: apt-get install postgresql, or set APITOKEN_TEST_POSTGRES to a URL")

// Start gives a server for the length of a test: the one at APITOKEN_TEST_POSTGRES, or a private one from the installed
// binaries. With neither the test is skipped, or fails where APITOKEN_TEST_REQUIRE is set.
func Start(tb testing.TB) *Server {
	tb.Helper()
	if url := os.Getenv("APITOKEN_TEST_POSTGRES"); url != "" {
		return &Server{URL: url}
	}
	dir, err := os.MkdirTemp("", "apitoken-pg-")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	s, err := New(dir)
	if errors.Is(err, errNone) && os.Getenv("APITOKEN_TEST_REQUIRE") == "" {
		tb.Skip(err)
	}
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { s.Stop() })
	return s
}

// New starts a private server whose data lie in dir.
func New(dir string) (*Server, error) {
	s := &Server{dir: dir}
	matches, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	switch path, err := exec.LookPath("initdb"); {
	case len(matches) > 0:
		s.bin = filepath.Dir(matches[len(matches)-1])
	case err == nil:
		s.bin = filepath.Dir(path)
	default:
		return nil, errNone
	}
	if os.Getuid() == 0 { // Postgres does not run as root
		u, err := user.Lookup("postgres")
		if err != nil {
			return nil, errNone
		}
		uid, err1 := strconv.Atoi(u.Uid)
		gid, err2 := strconv.Atoi(u.Gid)
		if err := errors.Join(err1, err2, os.Chown(dir, uid, gid), os.Chmod(dir, 0o700)); err != nil {
			return nil, err
		}
		s.cred = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	}
	init := s.command("initdb", "-D", filepath.Join(dir, "data"), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N")
	if out, err := init.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w: %s", err, out)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s.port = l.Addr().(*net.TCPAddr).Port
	if err := l.Close(); err != nil {
		return nil, err
	}
	s.URL = fmt.Sprintf("postgres://postgres@127.0.0.1:%d/postgres?sslmode=disable", s.port)
	return s, s.Run()
}

func (s *Server) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.bin, name), args...)
	cmd.SysProcAttr = s.cred
	cmd.Dir = s.dir
	return cmd
}

// Run starts a server that was stopped.
func (s *Server) Run() error {
	s.cmd = s.command("postgres", "-D", filepath.Join(s.dir, "data"), "-p", strconv.Itoa(s.port), "-h", "127.0.0.1", "-k", s.dir, "-c", "max_connections=200", "-c", "shared_buffers=64MB")
	var log bytes.Buffer
	s.cmd.Stderr = &log
	if err := s.cmd.Start(); err != nil {
		return err
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		conn, err := pgx.Connect(ctx, s.URL)
		if err == nil {
			err = conn.Close(ctx)
		}
		cancel()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			s.Stop()
			return fmt.Errorf("postgres did not start: %w\n%s", err, log.Bytes())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Stop ends the server as a crash does: what was not committed is gone.
func (s *Server) Stop() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Signal(syscall.SIGQUIT) // immediate shutdown
	_ = s.cmd.Wait()
	s.cmd = nil
}

// Private reports whether the server is ours to stop.
func (s *Server) Private() bool { return s.dir != "" }
