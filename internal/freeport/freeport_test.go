package freeport_test

import (
	"fmt"
	"net"
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
		require.False(t, seen[port], "port %d was given twice", port)
		seen[port] = true
		require.Less(t, port+10_000, 32_768, "the bus of a Redis cluster's member lies among the ports of outgoing connections")
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		require.NoError(t, err)
		require.NoError(t, l.Close())
	}
}
