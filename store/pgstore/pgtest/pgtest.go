// Package pgtest gives tests a Postgres of their own.
package pgtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/apitoken-go/apitoken/internal/freeport"
)

// Server is a throwaway server on loopback.
type Server struct {
	URL      string
	dir      string
	bin      string
	port     int
	settings []string
	cmd      *exec.Cmd
	ended    chan struct{} // closed when cmd is gone
}

// Quick are settings for a test in which no machine dies: a server writes as it always does, and forces nothing to the disk. One
// that is killed has lost nothing by that, because the system has what it wrote. Benchmarks do without.
var Quick = []string{"fsync=off", "full_page_writes=off"}

// ErrNone: there is no Postgres to start.
var ErrNone = errors.New("no Postgres: apt-get install postgresql, or set APITOKEN_TEST_POSTGRES to a URL")

// Start gives a server for the length of a test: the one at APITOKEN_TEST_POSTGRES, or a private one from the installed
// binaries. With neither the test is skipped, or fails where APITOKEN_TEST_REQUIRE is set.
func Start(tb testing.TB) *Server {
	tb.Helper()
	if url := os.Getenv("APITOKEN_TEST_POSTGRES"); url != "" {
		return &Server{URL: url}
	}
	return Private(tb)
}

// Private gives a server of the test's own, which it may stop and configure: settings are such as "fsync=off".
func Private(tb testing.TB, settings ...string) *Server {
	tb.Helper()
	s, err := New(tempDir(tb), settings...)
	Check(tb, err)
	tb.Cleanup(s.Stop)
	return s
}

// Check ends a test whose server did not start: it is skipped for want of Postgres, unless APITOKEN_TEST_REQUIRE is set.
func Check(tb testing.TB, err error) {
	tb.Helper()
	switch {
	case err == nil:
	case errors.Is(err, ErrNone) && os.Getenv("APITOKEN_TEST_REQUIRE") == "":
		tb.Skip(err)
	default:
		tb.Fatal(err)
	}
}

// tempDir is one that another user may enter: those of testing.TB are below one that he may not.
func tempDir(tb testing.TB) string {
	dir, err := os.MkdirTemp("", "apitoken-pg-")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// New starts a private server whose data lie in dir. Stop ends it.
func New(dir string, settings ...string) (*Server, error) {
	s, err := prepare(dir, settings)
	if err != nil {
		return nil, err
	}
	init := s.command("initdb", "-D", filepath.Join(dir, "data"), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N")
	if out, err := init.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w: %s", err, out)
	}
	return s, s.first()
}

// Standby starts a replica of s for the length of a test. The test is skipped where pg_basebackup is not installed.
func (s *Server) Standby(tb testing.TB) *Server {
	tb.Helper()
	r, err := prepare(tempDir(tb), s.settings)
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(r.bin, "pg_basebackup")); err != nil {
		tb.Skip("no pg_basebackup: apt-get install postgresql-client")
	}
	backup := r.command("pg_basebackup", "-D", filepath.Join(r.dir, "data"), "-h", "127.0.0.1", "-p", strconv.Itoa(s.port), "-U", "postgres", "-X", "stream", "-R", "-c", "fast", "-N")
	if out, err := backup.CombinedOutput(); err != nil {
		tb.Fatalf("pg_basebackup: %v: %s", err, out)
	}
	if err := r.first(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(r.Stop)
	return r
}

// prepare finds the binaries and makes dir theirs.
func prepare(dir string, settings []string) (*Server, error) {
	s := &Server{dir: dir, settings: settings}
	matches, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	switch path, err := exec.LookPath("initdb"); {
	case len(matches) > 0:
		s.bin = filepath.Dir(matches[len(matches)-1])
	case err == nil:
		s.bin = filepath.Dir(path)
	default:
		return nil, ErrNone
	}
	if cred, err := credential(); err != nil {
		return nil, err
	} else if cred != nil {
		if err := errors.Join(os.Chown(dir, cred.uid, cred.gid), os.Chmod(dir, 0o700)); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// owner is the user that Postgres runs as, since it does not run as root.
type owner struct{ uid, gid int }

// credential is nil where this process's own user will do.
func credential() (*owner, error) {
	if os.Getuid() != 0 {
		return nil, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, ErrNone
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	return &owner{uid, gid}, errors.Join(err1, err2)
}

func (s *Server) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.bin, name), args...)
	cred, _ := credential() // prepare has seen its error
	belongTo(cmd, cred)
	cmd.Dir = s.dir
	return cmd
}

// first starts the server on a free port. Somebody else may take that before the server does.
func (s *Server) first() (err error) {
	for range 5 {
		if s.port, err = freeport.New(); err != nil {
			return err
		}
		s.URL = fmt.Sprintf("postgres://postgres@127.0.0.1:%d/postgres?sslmode=disable", s.port)
		if err = s.Run(); err == nil || !errors.Is(err, errPort) {
			return err
		}
	}
	return errPort
}

var errPort = errors.New("pgtest: somebody else has the port")

// Run starts a server that was stopped, with what it had written, and waits until it answers.
func (s *Server) Run() error {
	args := []string{"-D", filepath.Join(s.dir, "data"), "-p", strconv.Itoa(s.port), "-h", "127.0.0.1", "-k", s.dir, "-c", "max_connections=400", "-c", "shared_buffers=64MB"}
	for _, c := range s.settings {
		args = append(args, "-c", c)
	}
	cmd := s.command("postgres", args...)
	var log bytes.Buffer
	cmd.Stderr = &log
	started, ended := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread() // the signal of our death is sent when the thread ends that started the process
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	s.cmd, s.ended = cmd, ended
	deadline := time.Now().Add(60 * time.Second)
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		conn, err := pgx.Connect(ctx, s.URL)
		if err == nil {
			err = conn.Close(ctx)
		}
		cancel()
		if err == nil {
			return nil
		}
		t := time.NewTimer(20 * time.Millisecond)
		select {
		case <-ended:
			t.Stop()
			s.cmd = nil
			if bytes.Contains(log.Bytes(), []byte("in use")) {
				return fmt.Errorf("%w: %s", errPort, log.Bytes())
			}
			return fmt.Errorf("postgres ended: %s", log.Bytes())
		case <-t.C:
		}
		if time.Now().After(deadline) {
			s.Stop()
			return fmt.Errorf("postgres did not start: %w\n%s", err, log.Bytes())
		}
	}
}

// Stop ends the server as a crash does: what was not committed is gone.
func (s *Server) Stop() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Signal(syscall.SIGQUIT) // immediate shutdown
	<-s.ended
	s.cmd = nil
}

// Port is where the server listens on 127.0.0.1.
func (s *Server) Port() int { return s.port }
