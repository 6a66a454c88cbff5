package boltstore_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/boltstore"
)

func ExampleOpen() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	st, err := boltstore.Open(filepath.Join(dir, "tokens.db"), nil)
	if err != nil {
		log.Fatal(err)
	}
	defer st.Close()

	// Two namespaces of one file know nothing of each other.
	ctx := context.Background()
	_, err = st.Namespace("tenant-1").Apply(ctx, &store.Change{
		ID:   store.Version{1},
		Puts: []store.Put{{Record: store.Record{Kind: store.KindRole, ID: "reader", Data: []byte("orders:read")}}},
	})
	if err != nil {
		log.Fatal(err)
	}
	r, err := st.Namespace("tenant-1").Get(ctx, store.KindRole, "reader")
	fmt.Println(string(r.Data), err)
	_, err = st.Namespace("tenant-2").Get(ctx, store.KindRole, "reader")
	fmt.Println(err)
	// Output:
	// orders:read <nil>
	// store: not found: role/"reader"
}

func ExampleStore_Backup() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	st, err := boltstore.Open(filepath.Join(dir, "tokens.db"), nil)
	if err != nil {
		log.Fatal(err)
	}
	defer st.Close()

	f, err := os.OpenFile(filepath.Join(dir, "backup.db"), os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
	if err != nil {
		log.Fatal(err)
	}
	if err := st.Backup(context.Background(), f); err != nil {
		log.Fatal(err)
	}
	if err := f.Close(); err != nil {
		log.Fatal(err)
	}

	restored, err := boltstore.Open(filepath.Join(dir, "backup.db"), nil)
	if err != nil {
		log.Fatal(err)
	}
	defer restored.Close()
	fmt.Println("a history of its own:", restored.Restored())
	// Output: a history of its own: true
}
