package memstore_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/memstore"
	"github.com/apitoken-go/apitoken/store/storetest"
)

func TestContract(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T, _ string) store.Store { return memstore.New() })
}

func TestContractInNamespaces(t *testing.T) {
	t.Parallel()
	s := memstore.New()
	storetest.Namespaces(t, s, s.Namespace("a"))
	storetest.Namespaces(t, s.Namespace("b"), memstore.New())
	n := memstore.New()
	storetest.Run(t, func(t *testing.T, dir string) store.Store { return n.Namespace(dir) })
}

func BenchmarkContract(b *testing.B) { storetest.Bench(b, memstore.New()) }

func ExampleNew() {
	ctx := context.Background()
	st := memstore.New()
	_, err := st.Apply(ctx, &store.Change{
		ID:     store.Version{1},
		Puts:   []store.Put{{Record: store.Record{Kind: store.KindRole, ID: "reader", Data: []byte("orders:read")}}},
		Events: []store.Record{{Kind: store.KindEvent, ID: "1", Type: "role"}},
	})
	fmt.Println(err)
	r, err := st.Get(ctx, store.KindRole, "reader")
	fmt.Println(string(r.Data), err)
	_, err = st.Namespace("tenant").Get(ctx, store.KindRole, "reader")
	fmt.Println(err)
	// Output:
	// <nil>
	// orders:read <nil>
	// store: not found: role/"reader"
}
