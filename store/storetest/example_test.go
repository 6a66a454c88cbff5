package storetest_test

import (
	"path/filepath"
	"testing"

	"github.com/apitoken-go/apitoken/store"
	"github.com/apitoken-go/apitoken/store/boltstore"
	"github.com/apitoken-go/apitoken/store/storetest"
)

// All that the test of a store of your own needs. Here bbolt's stands for it.
func ExampleRun() {
	_ = func(t *testing.T) { // func TestStore(t *testing.T)
		storetest.Run(t, func(t *testing.T, dir string) store.Store {
			st, err := boltstore.Open(filepath.Join(dir, "tokens.db"), nil)
			if err != nil {
				t.Fatal(err)
			}
			return st
		})
	}
}
