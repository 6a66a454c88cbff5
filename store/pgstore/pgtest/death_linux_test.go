package pgtest

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

const childVariable = "APITOKEN_PGTEST_CHILD"

// TestMain is the process that starts a server and is killed, when the test below starts its own binary again.
func TestMain(m *testing.M) {
	if os.Getenv(childVariable) == "" {
		os.Exit(m.Run())
	}
	s, err := New(os.Args[1], Quick...)
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	fmt.Println(s.URL)
	select {}
}

// A test process that is killed, as at its time limit, leaves no server behind.
func TestServerEndsWithItsProcess(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	dir := tempDir(t)
	_, err := prepare(dir, nil)
	Check(t, err)
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
	connects := func() bool {
		tctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		c, err := pgx.Connect(tctx, strings.TrimSpace(line))
		if err == nil {
			_ = c.Close(tctx)
		}
		return err == nil
	}
	require.True(t, connects(), line)
	require.NoError(t, child.Process.Kill())
	_ = child.Wait()
	require.Eventually(t, func() bool { return !connects() }, time.Minute, 20*time.Millisecond)
}
