// Package cut is a TCP proxy that fails on request: it drops connections, takes no new ones, or lets everything hang.
package cut

import (
	"context"
	"net"
	"sync"
	"time"
)

// Proxy stands between a client and a server on loopback.
type Proxy struct {
	target string
	ln     net.Listener
	wg     sync.WaitGroup
	ctx    context.Context
	stop   context.CancelFunc

	mu    sync.Mutex // guards all below
	conns map[net.Conn]bool
	down  bool
	delay time.Duration
	flow  chan struct{} // closed while data may pass
}

// New listens on a free port and passes what comes to target, host:port.
func New(target string) (*Proxy, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &Proxy{target: target, ln: ln, conns: map[net.Conn]bool{}, flow: make(chan struct{})}
	close(p.flow)
	p.ctx, p.stop = context.WithCancel(context.Background())
	p.wg.Add(1)
	go p.accept()
	return p, nil
}

// Addr is where clients connect.
func (p *Proxy) Addr() string { return p.ln.Addr().String() }

// Close ends it with all its connections.
func (p *Proxy) Close() error {
	p.stop()
	err := p.ln.Close()
	p.Drop()
	p.wg.Wait()
	return err
}

// Drop ends all connections; new ones are taken at once.
func (p *Proxy) Drop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
}

// Down drops all connections and refuses new ones, until Up.
func (p *Proxy) Down() {
	p.mu.Lock()
	p.down = true
	p.mu.Unlock()
	p.Drop()
}

// Up ends Down, Hang and Slow.
func (p *Proxy) Up() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down, p.delay = false, 0
	select {
	case <-p.flow:
	default:
		close(p.flow)
	}
}

// Hang keeps connections open and passes nothing, as a network does that swallows packets.
func (p *Proxy) Hang() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.flow:
		p.flow = make(chan struct{})
	default:
	}
}

// Slow holds each piece of data back for d.
func (p *Proxy) Slow(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = d
}

func (p *Proxy) accept() {
	defer p.wg.Done()
	for {
		c, err := p.ln.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		down := p.down || p.ctx.Err() != nil
		p.mu.Unlock()
		if down {
			c.Close()
			continue
		}
		s, err := net.Dial("tcp", p.target)
		if err != nil {
			c.Close()
			continue
		}
		p.mu.Lock()
		if p.down || p.ctx.Err() != nil { // since it was looked at
			p.mu.Unlock()
			c.Close()
			s.Close()
			continue
		}
		p.conns[c], p.conns[s] = true, true
		p.mu.Unlock()
		p.wg.Add(2)
		go p.pass(c, s)
		go p.pass(s, c)
	}
}

func (p *Proxy) pass(to, from net.Conn) {
	defer p.wg.Done()
	defer func() {
		to.Close()
		from.Close()
		p.mu.Lock()
		delete(p.conns, to)
		delete(p.conns, from)
		p.mu.Unlock()
	}()
	b := make([]byte, 32<<10)
	for {
		n, err := from.Read(b)
		if n > 0 {
			if !p.wait() {
				return
			}
			if _, err := to.Write(b[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// wait holds data back as Hang and Slow say, and reports whether it may pass.
func (p *Proxy) wait() bool {
	p.mu.Lock()
	delay, flow := p.delay, p.flow
	p.mu.Unlock()
	if delay > 0 {
		t := time.NewTimer(delay)
		select {
		case <-t.C:
		case <-p.ctx.Done():
			t.Stop()
			return false
		}
	}
	select {
	case <-flow:
		return true
	case <-p.ctx.Done():
		return false
	}
}
