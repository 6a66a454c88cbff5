package etcdtest

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/etcdstore"
	"github.com/apitoken-go/apitoken/store/storetest"
)

// A member whose answers are swallowed, and a client that would wait for them for ever: no verb, New or Close does.
func TestSilentMember(t *testing.T) {
	t.Parallel()
	const timeout, limit = 5 * time.Second, time.Minute
	sharedClient(t)
	ctx := context.Background()
	p := newProxy(t, shared.cluster.Endpoints()[0])
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{p.endpoint()}, Logger: zap.NewNop()})
	require.NoError(t, err)
	t.Cleanup(func() { _ = client.Close() })
	o := etcdstore.Options{Prefix: fmt.Sprintf("silent-%x/", newVersion()), Timeout: time.Minute}
	openAt(t, client, &o)
	o.Timeout = timeout
	s, err := etcdstore.New(ctx, client, &o)
	require.NoError(t, err)
	must(t, s, []store.Put{put(store.KindRule, "a", store.Version{})})

	p.silent.Store(true)
	storetest.Stalled(t, s, limit, map[string]func() error{
		"SetReadOnly":              func() error { return s.SetReadOnly(ctx, true) },
		"Wait":                     func() error { return s.Wait(ctx, store.Position{}) },
		"New":                      func() error { _, err := etcdstore.New(ctx, client, &o); return err },
		"Get of another namespace": func() error { _, err := s.Namespace("other").Get(ctx, store.KindRule, "a"); return err },
	})
	storetest.Closes(t, s, limit)
	p.cut()
}
