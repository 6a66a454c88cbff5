package etcdtest

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/etcdstore"
)

// Tests that harm nobody share one cluster of three; those that kill or restore have their own.
var shared struct {
	once    sync.Once
	dir     string
	cluster *Cluster
	client  *clientv3.Client
	err     error
}

func TestMain(m *testing.M) {
	// More tests at once than there are cores, unless the command line says how many: most of their time is that of elections and
	// leases.
	flag.Parse()
	said := false
	flag.Visit(func(f *flag.Flag) { said = said || f.Name == "test.parallel" })
	if !said {
		_ = flag.Set("test.parallel", "6") // it is a number
	}
	code := m.Run()
	if shared.client != nil {
		_ = shared.client.Close()
	}
	if shared.cluster != nil {
		shared.cluster.Close()
	}
	_ = os.RemoveAll(shared.dir)
	os.Exit(code)
}

func sharedClient(tb testing.TB) *clientv3.Client {
	tb.Helper()
	shared.once.Do(func() {
		if shared.dir, shared.err = os.MkdirTemp("", "etcdtest"); shared.err != nil {
			return
		}
		if shared.cluster, shared.err = New(shared.dir, 3, Quick); shared.err != nil {
			return
		}
		shared.client, shared.err = clientv3.New(clientv3.Config{Endpoints: shared.cluster.Endpoints(), Logger: zap.NewNop()})
	})
	if shared.err != nil {
		if os.Getenv(RequireVariable) == "1" {
			tb.Fatal(shared.err)
		}
		tb.Skipf("no etcd cluster (%s=1 makes this a failure): %v", RequireVariable, shared.err)
	}
	return shared.client
}

// open opens a store under a prefix of its own in the shared cluster.
func open(tb testing.TB, o *etcdstore.Options) *etcdstore.Store {
	tb.Helper()
	if o == nil {
		o = &etcdstore.Options{}
	}
	if o.Prefix == "" {
		o.Prefix = rand.Text() + "/"
	}
	if o.Timeout == 0 {
		o.Timeout = time.Minute // a machine that is busy with other tests is no outage
	}
	return openAt(tb, sharedClient(tb), o)
}

func openAt(tb testing.TB, client *clientv3.Client, o *etcdstore.Options) *etcdstore.Store {
	tb.Helper()
	s, err := etcdstore.New(context.Background(), client, o)
	require.NoError(tb, err)
	tb.Cleanup(func() { require.NoError(tb, s.Close()) })
	return s
}

func newVersion() (v store.Version) {
	_, _ = rand.Read(v[:])
	return v
}

func put(kind store.Kind, id string, expect store.Version) store.Put {
	return store.Put{Record: store.Record{Kind: kind, ID: id, Data: []byte("data of " + id)}, Expect: expect}
}

func event(id string) store.Record {
	return store.Record{Kind: store.KindEvent, ID: id, Type: "test", Data: []byte("event " + id)}
}

// must applies puts and events as one new change and returns its ID.
func must(tb testing.TB, s store.Store, puts []store.Put, events ...store.Record) store.Version {
	tb.Helper()
	c := &store.Change{ID: newVersion(), Puts: puts, Events: events}
	_, err := s.Apply(context.Background(), c)
	require.NoError(tb, err)
	return c.ID
}

func ids(rs []store.Record) []string {
	out := []string{}
	for _, r := range rs {
		out = append(out, r.ID)
	}
	return out
}

// all pages through a query. A walk from the newest begins again when etcd was compacted past its snapshot, as List says:
// other tests compact the cluster that all share.
func all(tb testing.TB, s store.Store, q store.Query) []store.Record {
	tb.Helper()
	var out []store.Record
	for {
		p, err := s.List(context.Background(), q)
		if q.Newest && q.Cursor != "" && errors.Is(err, store.ErrTrimmed) {
			out, q.Cursor = nil, ""
			continue
		}
		require.NoError(tb, err)
		out = append(out, p.Records...)
		if p.Cursor == "" {
			return out
		}
		q.Cursor = p.Cursor
	}
}

// snapshotOf follows from the beginning to the end.
func snapshotOf(tb testing.TB, s store.Store) ([]store.Record, store.Position) {
	tb.Helper()
	var out []store.Record
	var at store.Position
	for {
		v, err := s.Follow(context.Background(), at, nil, 0)
		require.NoError(tb, err)
		out, at = append(out, v.Records...), v.Next
		if !v.More {
			return out, at
		}
	}
}

func numbered(format string, n int) []string {
	out := []string{}
	for i := range n {
		out = append(out, fmt.Sprintf(format, i))
	}
	return out
}
