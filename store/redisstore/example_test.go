package redisstore_test

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/redis/go-redis/v9"

	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/redisstore"
	"github.com/apitoken-go/apitoken/store/redisstore/redistest"
)

func ExampleNew() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	// Where there is no server to use, a private one; it keeps all that it acknowledges.
	server, err := redistest.New(dir)
	if err != nil {
		log.Fatal(err)
	}
	defer server.Kill()

	// A redis.ClusterClient or a Sentinel's client will do as well.
	client := redis.NewClient(&redis.Options{Addr: server.Addr, ContextTimeoutEnabled: true})
	defer client.Close()
	ctx := context.Background()
	st, err := redisstore.New(ctx, client, nil)
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
	page, err := st.Namespace("tenant-1").List(ctx, store.Query{Kind: store.KindEvent, Type: "role.created"})
	fmt.Println(len(page.Records), "event:", page.Records[0].Type, err)
	// Output:
	// orders:read <nil>
	// store: not found: role/"reader"
	// 1 event: role.created <nil>
}

// With a Sentinel, acknowledge what a replica has too: a failover then loses nothing that was acknowledged.
func ExampleNew_sentinel() {
	client := redis.NewFailoverClient(&redis.FailoverOptions{
		MasterName: "tokens", SentinelAddrs: []string{"10.0.0.1:26379", "10.0.0.2:26379", "10.0.0.3:26379"},
		ContextTimeoutEnabled: true,
	})
	defer client.Close()
	st, err := redisstore.New(context.Background(), client, &redisstore.Options{WaitReplicas: 1})
	if err != nil {
		log.Print(err)
		return
	}
	defer st.Close()
}
