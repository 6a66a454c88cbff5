// A record of a signing key for tests of damaged stores.

package keyring

import (
	"encoding/json"

	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/store"
)

// Forge is the record of a signing key that somebody makes who has read a root secret in clear. For tests.
func (k *Ring) Forge(plain store.Record) (store.Record, error) {
	kid, err := parseRootID(plain.ID)
	if err != nil {
		return store.Record{}, err
	}
	var rec rootRecord
	if err := commit.Read(&rootForm, plain, &rec); err != nil {
		return store.Record{}, err
	}
	root, err := deriveRoot(k.c.Namespace(), kid, rec.Created, rec.Plain)
	if err != nil {
		return store.Record{}, err
	}
	name, key, err := k.make(root, &lane{alg: k.c.Algorithm}, k.now().UnixMilli())
	if err != nil {
		return store.Record{}, err
	}
	data, err := json.Marshal(key)
	return store.Record{Kind: store.KindKey, ID: keyPrefix + name, Data: data}, err
}
