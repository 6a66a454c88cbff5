package ledger_test

import (
	"bytes"
	"io"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/mod/sumdb/note"

	"github.com/apitoken-go/apitoken/ledger"
)

// FuzzVerify: only the log's own records verify, whole or from a first line on. The seeds are the log itself and parts of it.
func FuzzVerify(f *testing.F) {
	l := open(f, ledgerPath(f), nil)
	src := &feed{}
	src.add(20)
	require.NoError(f, l.Follow(src))
	early := seal(f, l)
	src.add(13)
	last := seal(f, l)
	whole, part := exported(f, l, 0, -1), exported(f, l, 20, -1)
	joined := append(exported(f, l, 0, 20), part...)
	for _, seed := range [][]byte{whole, part, joined, whole[:len(whole)-1], part[1:], nil, []byte("{\"apitoken_ledger\":1,\"origin\":\"x\",\"from\":-1,\"frontier\":null}\n")} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, export []byte) {
		_, err := verify(l, export, last, early)
		var records []byte
		for line := range bytes.SplitAfterSeq(export, []byte("\n")) {
			if !bytes.HasPrefix(line, []byte(`{"apitoken_ledger":`)) {
				records = append(records, line...)
			}
		}
		if err == nil && !bytes.HasSuffix(whole, records) {
			t.Fatalf("an export of %d bytes was taken", len(export))
		}
		if err != nil && (bytes.Equal(export, whole) || bytes.Equal(export, part) || bytes.Equal(export, joined)) {
			t.Fatal(err)
		}
	})
}

// FuzzCheckpoint: what is signed by nobody is never taken, and nothing panics.
func FuzzCheckpoint(f *testing.F) {
	signer, key := keyPair(f, origin)
	signed := sign(f, signer, ledger.Checkpoint{Origin: origin, Size: 1, Root: treeOf(f, [][]byte{[]byte("x")})})
	witness, err := ledger.NewWitness(signer, f.TempDir(), key)
	require.NoError(f, err)
	_, other := keyPair(f, origin)
	f.Add(signed)
	f.Add(append(bytes.Clone(signed), signed...))
	f.Add([]byte("old 0\n\n" + string(signed)))
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, err := (ledger.Keys{Log: []note.Verifier{other}}).Open(data); err == nil {
			t.Fatal("a checkpoint of another key was taken")
		}
		list, err := ledger.SplitCheckpoints(data)
		if err == nil && len(bytes.Join(list, nil)) > len(data) {
			t.Fatal("more came out than went in")
		}
		_, _ = ledger.ParseKey(string(data))
		rec := httptest.NewRecorder()
		witness.ServeHTTP(rec, httptest.NewRequest("POST", "/add-checkpoint", bytes.NewReader(data)))
		if _, err := io.Copy(io.Discard, rec.Body); err != nil || rec.Code >= 500 {
			t.Fatalf("the witness answered %d: %v", rec.Code, err)
		}
	})
}
