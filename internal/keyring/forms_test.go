package keyring

import (
	"os"
	"testing"

	is "github.com/stretchr/testify/require"

	"github.com/apitoken-go/apitoken/internal/record"
	"github.com/apitoken-go/apitoken/store"
)

// The golden files were written before the ring moved here.
func golden[T any](t *testing.T, name string, f *record.Form[T]) {
	want, err := os.ReadFile("../../testdata/forms/" + name + ".json")
	is.NoError(t, err)
	v := new(T)
	is.NoError(t, f.Read(store.Record{ID: name, Data: want}, v))
	w, err := f.Write(store.Record{ID: name}, v)
	is.NoError(t, err)
	is.JSONEq(t, string(want), string(w.Record().Data))
	is.Error(t, f.Read(store.Record{ID: name, Data: []byte(`{"v":1,"later":true}`)}, new(T)))
}

func TestStoredForms(t *testing.T) {
	golden(t, "key", &keyForm)
	golden(t, "lock", &lockForm)
	golden(t, "root", &rootForm)
}
