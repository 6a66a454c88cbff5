package main

import (
	"bytes"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/examples/fleet/cut"
)

// TestMain is the worker when the show starts its own binary again.
func TestMain(m *testing.M) {
	if os.Getenv(workerVariable) != "" {
		if err := worker(os.Stdin, os.Stdout, os.Args[1:]); err != nil {
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func TestShow(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	require.NoError(t, run(&out, "etcd", t.TempDir()), "%s", &out)
	t.Log(out.String())
	for _, want := range []string{"A refuses mallory's token", "B refuses trudy's token", "its view is too old", "C killed"} {
		require.Contains(t, out.String(), want)
	}
}

// A process that was stopped for longer than its bound does not answer from its old view: the first thing that it is asked
// when it goes on is about a token that was revoked meanwhile.
func TestStoppedProcess(t *testing.T) {
	t.Parallel()
	server, stop, err := startEngine("etcd", t.TempDir())
	require.NoError(t, err)
	t.Cleanup(stop)
	var fleet []*member
	for _, name := range []string{"A", "B"} {
		m := &member{name: name, engine: "etcd", server: server}
		m.wire, err = cut.New(server.Host)
		require.NoError(t, err)
		t.Cleanup(func() { _ = m.wire.Close() })
		require.NoError(t, m.start())
		t.Cleanup(func() { m.proc.Load().kill() })
		fleet = append(fleet, m)
	}
	a, b := fleet[0], fleet[1]
	var i issued
	require.Eventually(t, func() bool { return a.call("/issue", request{Subject: "alice"}, &i) == 200 }, 20*time.Second, 10*time.Millisecond)
	require.Eventually(t, func() bool { return b.call("/check", i, nil) == 200 }, 20*time.Second, time.Millisecond)

	require.NoError(t, b.proc.Load().cmd.Process.Signal(syscall.SIGSTOP))
	require.Equal(t, 200, a.settle("/revoke", request{Subject: "alice"}))
	asked := make(chan int, 8)
	for range cap(asked) { // they wait in its socket
		go func() { asked <- b.call("/check", i, nil) }()
	}
	time.Sleep(maxStaleness + 200*time.Millisecond) // a stopped process has no clock to inject
	require.NoError(t, b.proc.Load().cmd.Process.Signal(syscall.SIGCONT))
	for range cap(asked) {
		require.NotEqual(t, 200, <-asked, "answered from before it was stopped")
	}
	require.Eventually(t, func() bool { return b.call("/check", i, nil) == 401 }, 20*time.Second, 5*time.Millisecond)
}
