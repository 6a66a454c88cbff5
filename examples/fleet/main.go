// Fleet starts three processes that issue and validate on one engine, puts load on them, revokes, kills one, cuts another off,
// and prints who refused when, how old each one's view was, and that nothing acknowledged was lost. Run it with
//
//	go run ./examples/fleet                    # on etcd, embedded: nothing to install
//	go run ./examples/fleet -store postgres    # on a throwaway server, from the installed binaries
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/apitoken-go/apitoken/examples/fleet/cut"
	"github.com/apitoken-go/apitoken/store/etcdstore/etcdtest"
	"github.com/apitoken-go/apitoken/store/pgstore/pgtest"
	"github.com/apitoken-go/apitoken/store/redisstore/redistest"
)

func main() {
	if os.Getenv(workerVariable) != "" {
		if err := worker(os.Stdin, os.Stdout, os.Args[1:]); err != nil {
			log.Fatal(err)
		}
		return
	}
	engine := flag.String("store", "etcd", "etcd, postgres or redis")
	flag.Parse()
	dir, err := os.MkdirTemp("", "apitoken-fleet-")
	if err != nil {
		log.Fatal(err)
	}
	err = run(os.Stdout, *engine, dir)
	os.RemoveAll(dir)
	if err != nil {
		log.Fatal(err)
	}
}

// startEngine gives the URL of a server, and what ends it.
func startEngine(engine, dir string) (*url.URL, func(), error) {
	switch engine {
	case "etcd":
		c, err := etcdtest.New(dir, 1)
		if err != nil {
			return nil, nil, err
		}
		u, err := url.Parse(c.Endpoints()[0])
		return u, c.Close, err
	case "postgres":
		s, err := pgtest.New(dir)
		if err != nil {
			return nil, nil, err
		}
		u, err := url.Parse(s.URL)
		return u, s.Stop, err
	case "redis":
		s, err := redistest.New(dir)
		if err != nil {
			return nil, nil, err
		}
		return &url.URL{Scheme: "redis", Host: s.Addr}, s.Kill, nil
	}
	return nil, nil, fmt.Errorf("no store %q", engine)
}

// member is one process of the fleet, as its parent sees it.
type member struct {
	name   string
	engine string
	server *url.URL
	wire   *cut.Proxy
	proc   atomic.Pointer[process]

	mu    sync.Mutex // guards state
	state string
}

func (m *member) start() error {
	u := *m.server
	u.Host = m.wire.Addr()
	p, err := spawn(m.engine, u.String())
	if err != nil {
		return err
	}
	m.proc.Store(p)
	m.set("up")
	return nil
}

func (m *member) set(s string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.state = s
}

func (m *member) is() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state
}

// call asks a member. The status is 0 when nobody answered.
func (m *member) call(path string, in, out any) (status int) {
	body, _ := json.Marshal(in)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "POST", m.proc.Load().url+path, bytes.NewReader(body))
	if err != nil {
		return 0
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0
	}
	defer res.Body.Close()
	if out != nil && res.StatusCode == http.StatusOK && json.NewDecoder(res.Body).Decode(out) != nil {
		return 0
	}
	return res.StatusCode
}

// settle asks until the answer is a yes or a no, and not "try again": on a busy machine a view may be too old for a moment.
func (m *member) settle(path string, in any) (status int) {
	for range 100 {
		if status = m.call(path, in, nil); status == http.StatusOK || status == http.StatusUnauthorized {
			return status
		}
		pause(100 * time.Millisecond)
	}
	return status
}

type show struct {
	line   sync.Mutex // one at a time on out
	out    io.Writer
	fleet  []*member
	began  time.Time
	mu     sync.Mutex      // guards acked
	acked  []issued        // whose issue was acknowledged
	ended  []issued        // whose revocation was
	unsure map[string]bool // sessions whose revocation got no answer
	failed int             // calls without a yes
}

func run(out io.Writer, engine, dir string) (err error) {
	server, stop, err := startEngine(engine, dir)
	if err != nil {
		return err
	}
	defer stop()
	s := &show{out: out, began: time.Now(), unsure: map[string]bool{}}
	for _, name := range []string{"A", "B", "C"} {
		m := &member{name: name, engine: engine, server: server}
		if m.wire, err = cut.New(server.Host); err != nil {
			return err
		}
		defer m.wire.Close()
		if err := m.start(); err != nil {
			return err
		}
		defer func() { m.proc.Load().kill() }()
		s.fleet = append(s.fleet, m)
	}
	a, b, c := s.fleet[0], s.fleet[1], s.fleet[2]
	s.say("three processes on %s; each refuses when its view is older than %s", engine, maxStaleness)

	ctx, cancel := context.WithCancel(context.Background())
	var load sync.WaitGroup
	for range 4 {
		load.Go(func() { s.load(ctx) })
	}
	load.Go(func() { s.table(ctx) })
	defer load.Wait()
	defer cancel()
	pause(1500 * time.Millisecond)

	s.say("A revokes mallory")
	if err := s.revoke(a, "mallory", a, b, c); err != nil {
		return err
	}
	pause(time.Second)

	s.say("C is killed (SIGKILL)")
	c.set("killed")
	c.proc.Load().kill()
	pause(time.Second)

	s.say("B is cut off: its connections stay open, nothing passes. A revokes trudy")
	b.set("cut off")
	b.wire.Hang()
	if err := s.revoke(a, "trudy", a, b); err != nil {
		return err
	}
	pause(time.Second)

	s.say("B's wire is mended, C is started again")
	b.wire.Up()
	b.set("up")
	if err := c.start(); err != nil {
		return err
	}
	pause(2 * time.Second)
	cancel()
	load.Wait()
	return s.account()
}

// pause lets the load and the table run: a show needs time to be seen.
func pause(d time.Duration) { time.Sleep(d) }

func (s *show) say(format string, args ...any) {
	s.line.Lock()
	defer s.line.Unlock()
	fmt.Fprintf(s.out, "%6.2f s  %s\n", time.Since(s.began).Seconds(), fmt.Sprintf(format, args...))
}

// load issues at one process, asks another, and revokes one in ten.
func (s *show) load(ctx context.Context) {
	for n := 0; ctx.Err() == nil; n++ {
		m := s.fleet[rand.IntN(len(s.fleet))]
		if m.is() == "killed" {
			continue
		}
		var i issued
		ok := m.call("/issue", request{Subject: fmt.Sprint("user-", rand.IntN(1000))}, &i) == http.StatusOK
		s.mu.Lock()
		if ok {
			s.acked = append(s.acked, i)
		} else {
			s.failed++
		}
		s.mu.Unlock()
		if !ok {
			pause(20 * time.Millisecond)
			continue
		}
		s.fleet[rand.IntN(len(s.fleet))].call("/check", i, nil)
		if n%10 == 0 {
			ok := m.call("/revoke", request{Grant: i.Grant}, nil) == http.StatusOK
			s.mu.Lock()
			if ok {
				s.ended = append(s.ended, i)
			} else {
				s.unsure[i.Grant] = true
			}
			s.mu.Unlock()
		}
		pause(5 * time.Millisecond) // a show needs no more
	}
}

// revoke revokes a subject that has a session at each process, and tells when each of them refused its token.
func (s *show) revoke(by *member, subject string, watch ...*member) error {
	var i issued
	for try := 0; by.call("/issue", request{Subject: subject}, &i) != http.StatusOK; try++ {
		if try == 50 {
			return errors.New("no token to revoke")
		}
		pause(100 * time.Millisecond)
	}
	for _, m := range watch {
		if m.is() == "up" && m.settle("/check", i) != http.StatusOK {
			return fmt.Errorf("%s refuses a good token", m.name)
		}
	}
	if by.settle("/revoke", request{Subject: subject}) != http.StatusOK {
		return errors.New("the revocation was not acknowledged")
	}
	acked := time.Now()
	s.mu.Lock()
	s.ended = append(s.ended, i)
	s.mu.Unlock()
	for _, m := range watch {
		for {
			asked := time.Now()
			status := m.call("/check", i, nil)
			if status == 0 { // it said nothing: the machine is busy
				if late := asked.Sub(acked); late > 20*time.Second {
					return fmt.Errorf("%s did not answer for %s", m.name, late)
				}
				pause(10 * time.Millisecond)
				continue
			}
			if status == http.StatusOK {
				if late := asked.Sub(acked); late > maxStaleness+time.Second {
					return fmt.Errorf("%s accepted a revoked token after %s", m.name, late)
				}
				pause(time.Millisecond)
				continue
			}
			why := map[int]string{http.StatusUnauthorized: "it knows the revocation", http.StatusServiceUnavailable: "its view is too old"}[status]
			s.say("    %s refuses %s's token %v after the acknowledgement: %d, %s", m.name, subject, asked.Sub(acked).Round(100*time.Microsecond), status, why)
			break
		}
	}
	return nil
}

// table prints a line per process, twice a second.
func (s *show) table(ctx context.Context) {
	t := time.NewTicker(500 * time.Millisecond)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		var line strings.Builder
		for _, m := range s.fleet {
			state := m.is()
			var x status
			if state == "killed" || m.call("/status", nil, &x) != http.StatusOK {
				fmt.Fprintf(&line, "  %s %-7s %26s", m.name, state, "")
				continue
			}
			fmt.Fprintf(&line, "  %s %-7s view %6s  %6d yes %5d no", m.name, state, x.Age.Round(time.Millisecond), x.Accepted, x.Refused)
		}
		s.say("%s", line.String())
	}
}

// account asks every process about everything that was acknowledged, and refreshes each session at one of them.
func (s *show) account() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	over := map[string]bool{}
	for _, i := range s.ended {
		over[i.Grant] = true
	}
	w := tabwriter.NewWriter(s.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\nprocess\tsessions acknowledged\tlost\trevocations acknowledged\tforgotten")
	bad := int64(0)
	for n, m := range s.fleet {
		var lost, forgotten, sessions atomic.Int64
		parallel(s.acked, func(k int, i issued) {
			switch {
			case over[i.Grant] || s.unsure[i.Grant]:
				return
			case m.settle("/check", i) != http.StatusOK, k%len(s.fleet) == n && m.settle("/refresh", i) != http.StatusOK:
				lost.Add(1)
			}
			sessions.Add(1)
		})
		parallel(s.ended, func(k int, i issued) {
			if m.settle("/check", i) != http.StatusUnauthorized || k%len(s.fleet) == n && m.settle("/refresh", i) == http.StatusOK {
				forgotten.Add(1)
			}
		})
		bad += lost.Load() + forgotten.Load()
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\n", m.name, sessions.Load(), lost.Load(), len(s.ended), forgotten.Load())
	}
	w.Flush()
	fmt.Fprintf(s.out, "%d calls got no yes while something was down; repeating them is safe.\n", s.failed)
	if bad > 0 {
		return errors.New("something acknowledged was lost")
	}
	return nil
}

func parallel(list []issued, each func(int, issued)) {
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for k := w; k < len(list); k += 8 {
				each(k, list[k])
			}
		})
	}
	wg.Wait()
}
