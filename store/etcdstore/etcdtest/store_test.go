package etcdtest

import (
	"crypto/sha256"
	"fmt"
	"testing"

	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/etcdstore"
	"github.com/apitoken-go/apitoken/store/storetest"
)

func TestStore(t *testing.T) {
	t.Parallel()
	client := sharedClient(t)
	storetest.Run(t, func(t *testing.T, dir string) store.Store {
		return openAt(t, client, &etcdstore.Options{Prefix: fmt.Sprintf("%x/", sha256.Sum256([]byte(dir)))})
	})
}

func TestNamespaces(t *testing.T) {
	t.Parallel()
	s := open(t, nil)
	storetest.Namespaces(t, s.Namespace("a"), s.Namespace("b"))
}

func BenchmarkStore(b *testing.B) { storetest.Bench(b, open(b, nil)) }
