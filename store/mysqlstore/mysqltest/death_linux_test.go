package mysqltest

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const childVariable = "APITOKEN_MYSQLTEST_CHILD"

// TestMain is the process that starts a server and is killed, when the test below starts its own binary again.
func TestMain(m *testing.M) {
	if os.Getenv(childVariable) == "" {
		os.Exit(m.Run())
	}
	s, err := New(os.Args[1], Quick...)
	if err != nil {
		fmt.Println("error", strings.ReplaceAll(err.Error(), "\n", " "))
		os.Exit(1)
	}
	fmt.Println(s.DSN)
	select {}
}

// A test process that is killed, as at its time limit, leaves no server behind.
func TestServerEndsWithItsProcess(t *testing.T) {
	t.Parallel()
	if _, err := binary(); err != nil {
		Check(t, err)
	}
	dir, err := os.MkdirTemp("", "apitoken-my-")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	self, err := os.Executable()
	require.NoError(t, err)
	child := exec.Command(self, dir)
	child.Env = append(os.Environ(), childVariable+"=1")
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, child.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	s := &Server{DSN: strings.TrimSpace(line)}
	require.NoError(t, s.answers(), line)
	require.NoError(t, child.Process.Kill())
	_ = child.Wait()
	require.Eventually(t, func() bool { return s.answers() != nil }, time.Minute, 20*time.Millisecond)
}
