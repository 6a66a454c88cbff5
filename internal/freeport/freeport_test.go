package freeport_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/internal/freeport"
)

func TestPortsAreFreeAndGivenOnce(t *testing.T) {
	t.Parallel()
	seen := map[int]bool{}
	for range 100 {
		port, err := freeport.New()
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
		port, err := freeport.New()
		require.NoError(t, err)
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			c.Close()
		}
		require.Error(t, err, "somebody answers on port %d", port)
	}
}
