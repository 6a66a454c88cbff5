package etcdtest_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/boltstore"
	"github.com/apitoken-go/apitoken/store/etcdstore"
	"github.com/apitoken-go/apitoken/store/etcdstore/etcdtest"
)

func ExampleNew() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	// Where there is no cluster to use, one inside the process.
	cluster, err := etcdtest.New(dir, 1)
	if err != nil {
		log.Fatal(err)
	}
	defer cluster.Close()

	// The cluster holds state and grants, the file every event.
	client, err := clientv3.New(clientv3.Config{Endpoints: cluster.Endpoints(), Logger: zap.NewNop()})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	events, err := boltstore.Open(filepath.Join(dir, "events.db"), nil)
	if err != nil {
		log.Fatal(err)
	}
	defer events.Close()

	ctx := context.Background()
	st, err := etcdstore.New(ctx, client, &etcdstore.Options{
		Events: func(namespace string) store.Store {
			if namespace == "" {
				return events
			}
			return events.Namespace(namespace)
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer st.Close()

	_, err = st.Namespace("tenant-1").Apply(ctx, &store.Change{
		ID:     store.Version{1},
		Puts:   []store.Put{{Record: store.Record{Kind: store.KindRole, ID: "reader", Data: []byte("orders:read")}}},
		Events: []store.Record{{Kind: store.KindEvent, ID: "1", Type: "role.created"}},
	})
	if err != nil {
		log.Fatal(err)
	}
	r, err := st.Namespace("tenant-1").Get(ctx, store.KindRole, "reader")
	fmt.Println(string(r.Data), err)
	_, err = st.Namespace("tenant-2").Get(ctx, store.KindRole, "reader")
	fmt.Println(err)
	page, err := st.Namespace("tenant-1").List(ctx, store.Query{Kind: store.KindEvent, Newest: true})
	fmt.Println(len(page.Records), "event:", page.Records[0].Type, err)
	// Output:
	// orders:read <nil>
	// store: not found: role/"reader"
	// 1 event: role.created <nil>
}

func ExampleNew_cluster() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	cluster, err := etcdtest.New(dir, 3, etcdtest.Quick)
	if err != nil {
		log.Fatal(err)
	}
	defer cluster.Close()
	fmt.Println(len(cluster.Endpoints()), "members, leader known:", cluster.Leader() >= 0)
	// Output: 3 members, leader known: true
}
