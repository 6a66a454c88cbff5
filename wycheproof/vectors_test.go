package wycheproof

import (
	"encoding/hex"
	"encoding/json"
	"io/fs"
	"testing"

	"github.com/c2sp/wycheproof"
	"github.com/stretchr/testify/require"
)

// file is what the kinds of vector files that are read here have in common.
type file[V any] struct {
	NumberOfTests int
	TestGroups    []group[V]
}

type group[V any] struct {
	Comment         string
	Public, Private json.RawMessage // JWK or JWK set of the JSON Web files
	PublicKeyDer    hexBytes
	PublicKeyJwk    json.RawMessage
	KeyJwk          json.RawMessage // the name in the RSA PKCS #1 files
	Sha, MgfSha     string
	SLen            int      // bytes of salt
	TagSize         int      // bits
	KeyAsn          hexBytes // public key, PKCS #1: the signers' files have nothing else
	Tests           []V
}

// jwk is the public key as a JWK, nil where the group has none.
func (g *group[V]) jwk() json.RawMessage {
	if g.PublicKeyJwk != nil {
		return g.PublicKeyJwk
	}
	return g.KeyJwk
}

// verdict is what every vector says of itself.
type verdict struct {
	TcID            int
	Comment, Result string // valid, acceptable or invalid
	Flags           []string
}

// signature is a vector of a bare signature, or of a MAC.
type signature struct {
	verdict
	Key, Msg, Sig, Tag hexBytes
}

// webSignature is a vector of a JWS: a text in compact form, or an object in JSON form.
type webSignature struct {
	verdict
	JWS json.RawMessage
}

func (w *webSignature) text() string {
	var s string
	if json.Unmarshal(w.JWS, &s) == nil {
		return s
	}
	return string(w.JWS)
}

type hexBytes []byte

func (h *hexBytes) UnmarshalJSON(doc []byte) error {
	var s string
	if err := json.Unmarshal(doc, &s); err != nil {
		return err
	}
	b, err := hex.DecodeString(s)
	*h = b
	return err
}

func read[V any](t *testing.T, name string) *file[V] {
	t.Helper()
	doc, err := fs.ReadFile(wycheproof.TestVectors, name+"_test.json")
	require.NoError(t, err)
	f := new(file[V])
	require.NoError(t, json.Unmarshal(doc, f))
	n := 0
	for _, g := range f.TestGroups {
		n += len(g.Tests)
	}
	require.Equal(t, f.NumberOfTests, n, "every vector is read")
	return f
}

// agree compares a verdict of ours with the vector's. other names why ours is the opposite one, "" where it may not be;
// a reason for a verdict that is the same explains nothing, and is an error too.
func agree(t *testing.T, v *verdict, ours bool, other string) {
	t.Helper()
	theirs := v.Result != "invalid"
	switch {
	case ours != theirs && other == "":
		t.Errorf("%d (%s, %v) is %s; taken: %t", v.TcID, v.Comment, v.Flags, v.Result, ours)
	case ours == theirs && other != "":
		t.Errorf("%d (%s, %v) is %s; taken: %t, although %s", v.TcID, v.Comment, v.Flags, v.Result, ours, other)
	}
}
