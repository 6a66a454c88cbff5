package ledgerconsole_test

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/mod/sumdb/note"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/console"
	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/ledger"
	"github.com/apitoken-go/apitoken/ledger/ledgerconsole"
	"github.com/apitoken-go/apitoken/store/memstore"
)

type world struct {
	svc    *apitoken.Service
	ledger *ledger.Ledger
	keys   ledger.Keys
	pages  console.Ledger
}

func start(t *testing.T) *world {
	t.Helper()
	private, public, err := note.GenerateKey(rand.Reader, "auth.example.com/audit")
	require.NoError(t, err)
	signer, err := note.NewSigner(private)
	require.NoError(t, err)
	key, err := ledger.ParseKey(public)
	require.NoError(t, err)
	dir, err := ledger.OpenDir(filepath.Join(t.TempDir(), "ledger"), nil)
	require.NoError(t, err)
	t.Cleanup(func() { dir.Close() })
	w := &world{keys: ledger.Keys{Log: []note.Verifier{key}}}
	w.ledger, err = ledger.Open(ledger.Config{Storage: dir, Signer: signer})
	require.NoError(t, err)
	t.Cleanup(func() { w.ledger.Close() })
	w.svc, err = apitoken.New(apitoken.Config{Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: memstore.New(), InsecureKeysInStore: true,
		Sinks: []apitoken.Sink{{Name: "ledger", Auditor: w.ledger}}})
	require.NoError(t, err)
	t.Cleanup(func() { w.svc.Close() })
	require.NoError(t, w.ledger.Follow(w.svc))
	w.pages = ledgerconsole.New(w.ledger, w.svc, w.keys)
	return w
}

func (w *world) issue(t *testing.T) {
	t.Helper()
	_, err := w.svc.Issue(t.Context(), apitoken.Request{Subject: "alice"})
	require.NoError(t, err)
}

func TestALogThatIsAsItWas(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	w := start(t)
	w.issue(t)
	kept, err := w.ledger.Seal(ctx)
	require.NoError(t, err)
	old, err := w.keys.Open(kept)
	require.NoError(t, err)
	w.issue(t)
	newest, err := w.ledger.Seal(ctx)
	require.NoError(t, err)
	now, err := w.keys.Open(newest)
	require.NoError(t, err)

	v, err := w.pages.Verify(ctx, kept, true)
	require.NoError(t, err)
	require.Empty(t, v.Changed)
	require.Equal(t, old.Size, v.Yours)
	require.Equal(t, now.Size, v.Size)
	v, err = w.pages.Verify(ctx, nil, false)
	require.NoError(t, err)
	require.Empty(t, v.Changed)
	require.Zero(t, v.Yours)
	size, sealed := w.pages.Status()
	require.Equal(t, now.Size, size)
	require.False(t, sealed.IsZero())
}

func TestACheckpointOfAnotherHistory(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	w, other := start(t), start(t)
	for range 3 {
		w.issue(t)
		other.issue(t)
	}
	_, err := w.ledger.Seal(ctx)
	require.NoError(t, err)
	foreign, err := other.ledger.Seal(ctx)
	require.NoError(t, err)
	v, err := w.pages.Verify(ctx, foreign, false)
	require.NoError(t, err)
	require.Contains(t, v.Changed, "not signed")

	// Signed by the same key, and of another log.
	v, err = ledgerconsole.New(w.ledger, w.svc, ledger.Keys{Log: append(w.keys.Log, other.keys.Log...)}).Verify(ctx, foreign, false)
	require.NoError(t, err)
	require.NotEmpty(t, v.Changed)
	v, err = w.pages.Verify(ctx, []byte("junk"), false)
	require.NoError(t, err)
	require.NotEmpty(t, v.Changed)
}

func TestAProofThatOthersCheck(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	w := start(t)
	w.issue(t)
	_, err := w.ledger.Seal(ctx)
	require.NoError(t, err)
	var id string
	for e, err := range w.svc.Events(ctx, apitoken.EventQuery{Type: event.Issued}) {
		require.NoError(t, err)
		id = e.ID
	}
	pos, size, text, err := w.pages.Proof(ctx, id)
	require.NoError(t, err)
	require.Less(t, pos, size)
	var given struct {
		Checkpoint string                `json:"checkpoint"`
		Proof      ledger.InclusionProof `json:"proof"`
	}
	require.NoError(t, json.Unmarshal(text, &given))
	leaf, err := given.Proof.Check([]byte(given.Checkpoint), w.keys)
	require.NoError(t, err)
	require.Equal(t, "alice", leaf.Event.Subject)

	_, _, _, err = w.pages.Proof(ctx, "nothing")
	require.True(t, errors.Is(err, apitoken.ErrNotFound), err)
}
