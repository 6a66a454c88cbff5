package boltstore

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/storetest"
)

func TestContract(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T, dir string) store.Store {
		s, err := Open(filepath.Join(dir, "tokens.db"), nil)
		require.NoError(t, err)
		return s
	})
}

func TestContractInNamespaces(t *testing.T) {
	t.Parallel()
	s := newT(t)
	storetest.Namespaces(t, s, s.Namespace("a"))
	storetest.Namespaces(t, s.Namespace("b"), s.Namespace("b1"))
}

func BenchmarkContract(b *testing.B) { storetest.Bench(b, newT(b)) }
