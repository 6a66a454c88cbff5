// Package freeport finds ports for servers that tests start as processes of their own. It lies apart from any engine because the
// test helpers of all of them ask it.
package freeport

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
)

// The ports lie below those that a system gives to whoever asks for port 0, 32,768 and up on Linux: no test that listens on port 0 and no
// outgoing connection takes one before its server has it, nor while the server is down between two runs. A member of a Redis
// cluster listens 10,000 above its port as well, which must be neither of these.
const first, end = 10_000, 20_000

var (
	mu    sync.Mutex // guards given
	given = map[int]bool{}
)

// New gives a port of 127.0.0.1 on which nobody listens, and each port once. Another process may still take it: a server that says
// so is started again on the next one.
func New() (int, error) {
	mu.Lock()
	defer mu.Unlock()
	var last error
	for range 100 {
		port := first + rand.IntN(end-first)
		if given[port] {
			continue
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			last = err
			continue
		}
		given[port] = true
		return port, l.Close()
	}
	return 0, errors.Join(errors.New("freeport: none of 100 ports is free"), last)
}
