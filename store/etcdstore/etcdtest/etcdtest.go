// Package etcdtest starts a real etcd cluster inside the test's process, for tests of packages that use etcd: nothing to
// install, members that talk over loopback and sync to files in a temporary directory, that can be killed and started
// again. It is a module of its own, so that etcdstore does not draw in etcd's server.
package etcdtest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"github.com/apitoken-go/apitoken/internal/freeport"
)

// RequireVariable names the environment variable which, set to 1, turns the skip of a cluster that cannot be started
// into a failure.
const RequireVariable = "APITOKEN_TEST_REQUIRE"

// Cluster is a running cluster. Its methods may be called from several goroutines.
type Cluster struct {
	dir string

	mu      sync.Mutex // guards members
	members []*member
}

type member struct {
	cfg    *embed.Config
	server *embed.Etcd // nil while it is down
	client string
}

// Quick is a change for [Start] and [New] in tests where no machine dies: members write as they always do, and force nothing
// to the disk. One that is killed has lost nothing by that, because the system has what it wrote. Benchmarks do without.
func Quick(c *embed.Config) { c.UnsafeNoFsync = true }

// Start runs a cluster of n members until the test ends, each with its configuration as the changes leave it. Where that is
// not possible the test is skipped, or fails if APITOKEN_TEST_REQUIRE is 1.
func Start(tb testing.TB, n int, changes ...func(*embed.Config)) *Cluster {
	tb.Helper()
	c, err := New(tb.TempDir(), n, changes...)
	if err != nil {
		if os.Getenv(RequireVariable) == "1" {
			tb.Fatalf("etcd cluster: %v", err)
		}
		tb.Skipf("no etcd cluster (loopback ports and a writable temporary directory are needed; %s=1 makes this a failure): %v", RequireVariable, err)
	}
	tb.Cleanup(c.Close)
	return c
}

// New runs a cluster of n members with its data under dir. Close ends it.
func New(dir string, n int, changes ...func(*embed.Config)) (*Cluster, error) {
	for try := 1; ; try++ {
		c, err := start(filepath.Join(dir, fmt.Sprint("cluster", try)), n, changes)
		if err == nil || try == 5 || !errors.Is(err, syscall.EADDRINUSE) {
			return c, err
		}
	}
}

func start(dir string, n int, changes []func(*embed.Config)) (*Cluster, error) {
	c := &Cluster{dir: dir}
	var initial []string
	for i := range n {
		peer, err := loopback()
		if err != nil {
			return nil, err
		}
		client, err := loopback()
		if err != nil {
			return nil, err
		}
		cfg := embed.NewConfig()
		cfg.Name = fmt.Sprintf("member%d", i)
		cfg.Dir = filepath.Join(dir, cfg.Name)
		cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
		cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
		cfg.InitialClusterToken = filepath.Base(dir)
		cfg.TickMs, cfg.ElectionMs = 50, 500
		cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
		cfg.LogLevel = "error"
		cfg.WarningUnaryRequestDuration = time.Minute // zero formats each request for a log that nobody reads
		for _, change := range changes {
			change(cfg)
		}
		initial = append(initial, cfg.Name+"="+peer.String())
		c.members = append(c.members, &member{cfg: cfg, client: client.String()})
	}
	for _, m := range c.members {
		m.cfg.InitialCluster = strings.Join(initial, ",")
	}
	if err := c.each(func(m *member) error { return m.start() }); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func loopback() (url.URL, error) {
	port, err := freeport.New()
	return url.URL{Scheme: "http", Host: fmt.Sprintf("127.0.0.1:%d", port)}, err
}

// each runs f for all members at once: none is ready before a majority is.
func (c *Cluster) each(f func(*member) error) error {
	errs := make(chan error, len(c.members))
	for _, m := range c.members {
		go func() { errs <- f(m) }()
	}
	var first error
	for range c.members {
		if err := <-errs; err != nil && first == nil {
			first = err
		}
	}
	return first
}

func (m *member) start() error {
	e, err := embed.StartEtcd(m.cfg)
	if err != nil {
		return err
	}
	select {
	case <-e.Server.ReadyNotify():
		m.server = e
		return nil
	case err := <-e.Err():
		return err
	case <-time.After(30 * time.Second):
		e.Close()
		return fmt.Errorf("member %s is not ready after 30 s", m.cfg.Name)
	}
}

// Endpoints are the client URLs of all members, those that are down included.
func (c *Cluster) Endpoints() []string {
	var out []string
	for _, m := range c.members {
		out = append(out, m.client)
	}
	return out
}

// Client connects to all members. The test closes it.
func (c *Cluster) Client(tb testing.TB) *clientv3.Client {
	tb.Helper()
	return Connect(tb, c.Endpoints()...)
}

// Connect makes a client that leaves a silent member quickly. It is closed when the test ends.
func Connect(tb testing.TB, endpoints ...string) *clientv3.Client {
	tb.Helper()
	cl, err := clientv3.New(clientv3.Config{
		Endpoints: endpoints, Logger: zap.NewNop(),
		DialTimeout: 2 * time.Second, DialKeepAliveTime: 2 * time.Second, DialKeepAliveTimeout: time.Second,
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = cl.Close() })
	return cl
}

// Leader is the index of the leading member, or -1 while there is none.
func (c *Cluster) Leader() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, m := range c.members {
		if m.server != nil && m.server.Server.Leader() == m.server.Server.MemberID() {
			return i
		}
	}
	return -1
}

// KillLeader ends the leading member without handing over, waiting for an election if it must, and returns its index.
func (c *Cluster) KillLeader(ctx context.Context) (int, error) {
	for {
		if i := c.Leader(); i >= 0 {
			c.Kill(i)
			return i, nil
		}
		select {
		case <-ctx.Done():
			return -1, ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Kill ends a member: connections are cut and nothing is handed over.
func (c *Cluster) Kill(i int) {
	c.mu.Lock()
	m := c.members[i]
	e := m.server
	m.server = nil
	c.mu.Unlock()
	if e == nil {
		return
	}
	e.Server.HardStop()
	e.Close()
}

// Restart starts a member that was killed, from its data, and waits until it is ready.
func (c *Cluster) Restart(i int) error {
	m := &member{cfg: c.members[i].cfg}
	again := *m.cfg
	m.cfg = &again
	if err := m.start(); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.members[i].server = m.server
	return nil
}

// Close ends all members. Data stays where it is.
func (c *Cluster) Close() {
	_ = c.each(func(m *member) error {
		c.mu.Lock()
		e := m.server
		m.server = nil
		c.mu.Unlock()
		if e != nil {
			e.Server.HardStop()
			e.Close()
		}
		return nil
	})
}
