// Package redistest gives tests a Redis of their own: a private server on a free port of the loopback interface, from the
// installed binary, which is gone with the test.
//
//	server := redistest.Start(t)
//	st, err := redisstore.New(ctx, server.Client(t), nil)
package redistest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/apitoken-go/apitoken/internal/freeport"
)

// What Start looks at in the environment.
const (
	// AddressVariable names a server that runs already, host:port, for tests that harm nobody.
	AddressVariable = "APITOKEN_TEST_REDIS"
	// RequireVariable, set to 1, makes tests fail that would be skipped for want of a server.
	RequireVariable = "APITOKEN_TEST_REQUIRE"
)

// ErrNone: there is no redis-server to start.
var ErrNone = errors.New("no Redis: apt-get install redis-server (or brew install redis), or set " + AddressVariable + " to host:port")

// Server is a server for tests. What it has written stays until its directory goes, so that it can be killed and started
// again.
type Server struct {
	// Addr is where it listens, host:port.
	Addr string

	bin  string
	dir  string
	args []string

	mu    sync.Mutex // guards what follows
	cmd   *exec.Cmd
	ended chan struct{} // closed when cmd is gone
	log   *bytes.Buffer
}

// Start gives a server for the length of a test: the one that APITOKEN_TEST_REDIS names, which other tests may use
// beside, or a private one. With neither the test is skipped, or fails where APITOKEN_TEST_REQUIRE is 1.
func Start(tb testing.TB) *Server {
	tb.Helper()
	if addr := os.Getenv(AddressVariable); addr != "" {
		return &Server{Addr: addr}
	}
	return Private(tb)
}

// Private gives a server of the test's own, which it may kill, stop and configure: args are options of redis-server
// ("--appendfsync", "everysec"), which come after, and so override, those that make it keep all it acknowledges. In a test
// its files lie in memory where there is room, and outlive it there as on a disk; in a benchmark they are on the disk.
func Private(tb testing.TB, args ...string) *Server {
	tb.Helper()
	dir := ""
	if _, measures := tb.(*testing.B); !measures {
		dir = quickDir(tb)
	}
	if dir == "" {
		dir = tb.TempDir()
	}
	s, err := New(dir, args...)
	if errors.Is(err, ErrNone) && os.Getenv(RequireVariable) != "1" {
		tb.Skip(err)
	}
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.Kill)
	return s
}

// New starts a private server whose data lie in dir, an existing directory. Kill ends it.
func New(dir string, args ...string) (*Server, error) {
	bin, err := exec.LookPath("redis-server")
	if err != nil {
		if bin, err = exec.LookPath("valkey-server"); err != nil {
			return nil, ErrNone
		}
	}
	s := &Server{bin: bin, dir: dir, args: args}
	// Somebody else may take the port before the server does.
	for range 5 {
		port, err := freeport.New()
		if err != nil {
			return nil, err
		}
		s.Addr = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		if err = s.Run(); err == nil {
			return s, nil
		}
		if !bytes.Contains(s.log.Bytes(), []byte("Address already in use")) {
			return nil, err
		}
	}
	return nil, errors.New("redistest: no free port")
}

// Run starts a server that was killed, with what it had written, and waits until it answers.
func (s *Server) Run() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bin == "" {
		return errors.New("redistest: the server at " + s.Addr + " is not ours")
	}
	_, port, err := net.SplitHostPort(s.Addr)
	if err != nil {
		return err
	}
	// An empty file for what the server itself wants to write down: CONFIG REWRITE, and a Sentinel's state.
	file, err := os.OpenFile(filepath.Join(s.dir, "redis.conf"), os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err := file.Close(); err != nil {
		return err
	}
	args := append([]string{
		file.Name(), "--port", port, "--bind", "127.0.0.1", "--dir", s.dir, "--daemonize", "no", "--save", "", "--appendonly", "yes",
		"--appendfsync", "always", "--repl-diskless-sync-delay", "0", "--cluster-config-file", filepath.Join(s.dir, "nodes.conf"),
	}, s.args...)
	s.log = &bytes.Buffer{}
	cmd := exec.Command(s.bin, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.dir, s.log, s.log
	cmd.SysProcAttr = dyingWithUs()
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
	c := redis.NewClient(&redis.Options{Addr: s.Addr, MaxRetries: -1, DialTimeout: time.Second, ReadTimeout: time.Second})
	defer c.Close()
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := c.Ping(context.Background()).Err()
		if err == nil {
			s.cmd, s.ended = cmd, ended
			return nil
		}
		t := time.NewTimer(5 * time.Millisecond)
		select {
		case <-ended:
			t.Stop()
			return fmt.Errorf("redistest: the server ended: %s", s.log.Bytes())
		case <-t.C:
		}
		if time.Now().After(deadline) {
			_ = cmd.Process.Kill()
			<-ended
			return fmt.Errorf("redistest: no answer from the server: %w: %s", err, s.log.Bytes())
		}
	}
}

// Kill ends the server as a crash does (SIGKILL), and waits until it is gone. It does nothing to one that is not ours.
func (s *Server) Kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Signal(sigResume)
	_ = s.cmd.Process.Kill()
	<-s.ended
	s.cmd = nil
}

// Pause stops the server in its tracks (SIGSTOP): connections stay, nothing answers. Resume lets it go on.
func (s *Server) Pause() { s.signal(sigPause) }

// Resume ends a Pause.
func (s *Server) Resume() { s.signal(sigResume) }

func (s *Server) signal(sig syscall.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd != nil {
		_ = s.cmd.Process.Signal(sig)
	}
}

// Client gives a client of the server, with the library's defaults, which is closed with the test.
func (s *Server) Client(tb testing.TB) *redis.Client {
	tb.Helper()
	c := redis.NewClient(&redis.Options{Addr: s.Addr})
	tb.Cleanup(func() { _ = c.Close() })
	return c
}
