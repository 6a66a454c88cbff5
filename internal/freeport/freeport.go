// Package freeport finds ports for servers that tests start as processes of their own. It lies apart from any engine because the
// test helpers of all of them ask it.
package freeport

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// The ports lie below those that a system gives to whoever asks for port 0, 32,768 and up on Linux: no test that listens on port 0 and no
// outgoing connection takes one before its server has it, nor while the server is down between two runs. A member of a Redis
// cluster listens 10,000 above its port as well, which must be neither of these.
const first, end = 10_000, 20_000

var (
	mu    sync.Mutex               // guards order
	order = rand.Perm(end - first) // the first is the next one
)

// New gives a port of 127.0.0.1 that nobody answers on, and none again before all others. Another process may still take it: a server
// that says so is started again on the next one.
//
// It calls the port and does not listen there to try it. A child process that another test is starting holds a copy of every open
// socket until it runs its program: a listener that is closed here would live on there for a moment, keep the port from the server,
// and answer in its place whoever waits for the server.
func New() (int, error) {
	mu.Lock()
	defer mu.Unlock()
	var last error
	refused := syscall.ECONNREFUSED
	if runtime.GOOS == "windows" {
		refused = 10061 // WSAECONNREFUSED, which package syscall does not name
	}
	for range 100 {
		next := order[0]
		order = append(order[1:], next)
		c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", first+next), time.Second)
		switch {
		case err == nil:
			err = c.Close()
		case errors.Is(err, refused):
			return first + next, nil
		}
		last = err
	}
	return 0, errors.Join(errors.New("freeport: none of 100 ports is free"), last)
}
