package keyring

import (
	"testing"

	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/store"
)

// FuzzStoredKey: nothing that was not made under our root is taken for a signing key.
func FuzzStoredKey(f *testing.F) {
	for _, s := range []string{`{"v":1}`, `{"v":2}`, `{}`, `null`, ``} {
		f.Add([]byte(s), "kid")
	}
	k := New(Config{Algorithm: "ES256", Namespace: func() string { return "ns" }})
	f.Fuzz(func(t *testing.T, data []byte, id string) {
		var rec keyRecord
		if commit.Read(&keyForm, store.Record{Kind: store.KindKey, ID: id, Data: data}, &rec) == nil {
			root, err := deriveRoot("ns", [4]byte{}, 0, make([]byte, 32))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := k.open(root, id, rec); err == nil {
				t.Fatal("a signing key without our MAC")
			}
		}
	})
}
