package freeport

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// A port that somebody has is left out, and none is given again before all others.
func TestWhichPortIsNext(t *testing.T) {
	taken, err := New()
	require.NoError(t, err)
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", taken))
	require.NoError(t, err)
	defer l.Close()
	one, err := New()
	require.NoError(t, err)
	two, err := New()
	require.NoError(t, err)
	all := order
	defer func() { order = all }()
	order = []int{one - first, taken - first, two - first}
	for _, want := range []int{one, two, one, two} {
		port, err := New()
		require.NoError(t, err)
		require.Equal(t, want, port)
	}
	order = []int{taken - first}
	_, err = New()
	require.ErrorContains(t, err, "none of 100 ports is free")
}

func TestEachPortOnce(t *testing.T) {
	t.Parallel()
	seen := map[int]bool{}
	for range 100 {
		port, err := New()
		require.NoError(t, err)
		require.False(t, seen[port], "port %d was given again", port)
		seen[port] = true
		require.Less(t, port+10_000, 32_768, "the bus of a Redis cluster's member lies among the ports of outgoing connections")
	}
}

// TestNobodyAnswers: a port is free at once, also while other tests start processes, which hold copies of what this one has open.
func TestNobodyAnswers(t *testing.T) {
	t.Parallel()
	program, err := os.Executable()
	require.NoError(t, err)
	var starting sync.WaitGroup
	ended := make(chan struct{})
	for range 4 {
		starting.Go(func() {
			for {
				select {
				case <-ended:
					return
				default:
					_ = exec.Command(program, "-test.list", "^$").Run()
				}
			}
		})
	}
	defer starting.Wait()
	defer close(ended)
	for range 300 {
		port, err := New()
		require.NoError(t, err)
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			c.Close()
		}
		require.Error(t, err, "somebody answers on port %d", port)
	}
}
