// Package mysqltest gives tests a MySQL or MariaDB of their own.
package mysqltest

import (
	"bytes"
	"context"
	"database/sql"
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

	"github.com/go-sql-driver/mysql"

	"github.com/apitoken-go/apitoken/internal/freeport"
)

// Server is a throwaway server on loopback, with an empty database.
type Server struct {
	DSN      string // as the driver reads it
	dir      string
	settings []string
	port     int
	cmd      *exec.Cmd
	ended    chan struct{} // closed when cmd is gone
}

// Quick are settings for a test in which no machine dies: a server writes as it always does, and forces nothing to the disk.
// One that is killed has lost nothing by that, because the system has what it wrote. Benchmarks do without.
var Quick = []string{"innodb-flush-method=nosync", "innodb-doublewrite=0"}

// ErrNone: there is no server to start.
var ErrNone = errors.New("no MySQL: apt-get install mariadb-server, or set APITOKEN_TEST_MYSQL to a DSN such as root@tcp(127.0.0.1:3306)/test")

// Start gives a server for the length of a test: the one at APITOKEN_TEST_MYSQL, or a private one from the installed
// binaries. With neither the test is skipped, or fails where APITOKEN_TEST_REQUIRE is set.
func Start(tb testing.TB) *Server {
	tb.Helper()
	if dsn := os.Getenv("APITOKEN_TEST_MYSQL"); dsn != "" {
		return &Server{DSN: dsn}
	}
	return Private(tb)
}

// Private gives a server of the test's own, which it may stop and configure: settings are such as "read-only=1".
func Private(tb testing.TB, settings ...string) *Server {
	tb.Helper()
	dir, err := os.MkdirTemp("", "apitoken-my-") // those of testing.TB are below one that another user may not enter
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	s, err := New(dir, settings...)
	Check(tb, err)
	tb.Cleanup(s.Stop)
	return s
}

// Check ends a test whose server did not start: it is skipped for want of one, unless APITOKEN_TEST_REQUIRE is set.
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

// New starts a private server whose data lie in dir. Stop ends it.
func New(dir string, settings ...string) (*Server, error) {
	s := &Server{dir: dir, settings: settings}
	install, err := exec.LookPath("mariadb-install-db")
	if err != nil {
		return nil, ErrNone
	}
	if _, err := binary(); err != nil {
		return nil, err
	}
	cred, err := credential()
	if err != nil {
		return nil, err
	}
	if cred != nil {
		if err := errors.Join(os.Chown(dir, int(cred.Uid), int(cred.Gid)), os.Chmod(dir, 0o700)); err != nil {
			return nil, err
		}
	}
	// Without a force to the disk: what a machine's crash here could lose is made anew.
	out, err := s.command(install, "--no-defaults", "--datadir="+filepath.Join(dir, "data"), "--auth-root-authentication-method=normal",
		"--skip-test-db", "--innodb-flush-method=nosync").CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("mariadb-install-db: %w: %s", err, out)
	}
	return s, s.first()
}

func binary() (string, error) {
	for _, name := range []string{"mariadbd", "/usr/sbin/mariadbd"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", ErrNone
}

// credential is the user that the server runs as: it does not run as root.
func credential() (*syscall.Credential, error) {
	if os.Getuid() != 0 {
		return nil, nil
	}
	u, err := user.Lookup("mysql")
	if err != nil {
		return nil, ErrNone
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, errors.Join(err1, err2)
}

func (s *Server) command(path string, args ...string) *exec.Cmd {
	cmd := exec.Command(path, args...)
	cmd.SysProcAttr = dyingWithUs()
	cmd.SysProcAttr.Credential, _ = credential() // New has seen its error
	cmd.Dir = s.dir
	// A server that starts removes the temporary tables that it finds, another's as well.
	cmd.Env = append(os.Environ(), "TMPDIR="+s.dir)
	return cmd
}

// first starts the server on a free port. Somebody else may take that before the server does.
func (s *Server) first() (err error) {
	for range 5 {
		if s.port, err = freeport.New(); err != nil {
			return err
		}
		s.DSN = fmt.Sprintf("root@tcp(127.0.0.1:%d)/apitoken", s.port)
		if err = s.Run(); err == nil || !errors.Is(err, errPort) {
			return err
		}
	}
	return errPort
}

var errPort = errors.New("mysqltest: somebody else has the port")

// Run starts a server that was stopped, with what it had written, and waits until it answers.
func (s *Server) Run() error {
	path, err := binary()
	if err != nil {
		return err
	}
	args := []string{"--no-defaults", "--datadir=" + filepath.Join(s.dir, "data"), "--port=" + strconv.Itoa(s.port), "--bind-address=127.0.0.1",
		"--socket=" + filepath.Join(s.dir, "s"), "--pid-file=" + filepath.Join(s.dir, "pid"), "--max-connections=400", "--skip-name-resolve"}
	for _, c := range s.settings {
		args = append(args, "--"+c)
	}
	cmd := s.command(path, args...)
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
		err := s.answers()
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
			return fmt.Errorf("mariadbd ended: %s", log.Bytes())
		case <-t.C:
		}
		if time.Now().After(deadline) {
			s.Stop()
			return fmt.Errorf("mariadbd did not start: %w\n%s", err, log.Bytes())
		}
	}
}

// answers asks, and makes the database if it is not there.
func (s *Server) answers() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := mysql.ParseDSN(s.DSN)
	if err != nil {
		return err
	}
	name := c.DBName
	c.DBName, c.Logger = "", &mysql.NopLogger{}
	connector, err := mysql.NewConnector(c)
	if err != nil {
		return err
	}
	db := sql.OpenDB(connector)
	defer db.Close()
	_, err = db.ExecContext(ctx, "CREATE DATABASE IF NOT EXISTS "+name)
	return err
}

// Stop ends the server as a crash does (SIGKILL): what was not committed is gone.
func (s *Server) Stop() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Kill()
	<-s.ended
	s.cmd = nil
}

// Process is the server's, for a test that suspends it.
func (s *Server) Process() *os.Process { return s.cmd.Process }

// Addr is where the server listens.
func (s *Server) Addr() string {
	c, err := mysql.ParseDSN(s.DSN)
	if err != nil {
		return ""
	}
	return c.Addr
}
