package ledger_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	stdlog "log"
	"os"
	"path/filepath"

	"golang.org/x/mod/sumdb/note"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/ledger"
	"github.com/apitoken-go/apitoken/store/memstore"
)

func check(err error) {
	if err != nil {
		stdlog.Fatal(err)
	}
}

func exampleKeys() (note.Signer, note.Verifier) {
	private, public, err := note.GenerateKey(rand.Reader, "auth.example.com/audit")
	check(err)
	signer, err := note.NewSigner(private)
	check(err)
	key, err := ledger.ParseKey(public)
	check(err)
	return signer, key
}

// A service whose log is sealed behind its writes, an export of it, and an edit that is found.
func ExampleOpen() {
	ctx := context.Background()
	tmp, err := os.MkdirTemp("", "example")
	check(err)
	defer os.RemoveAll(tmp)
	signer, key := exampleKeys()

	dir, err := ledger.OpenDir(filepath.Join(tmp, "ledger"), nil)
	check(err)
	defer dir.Close()
	led, err := ledger.Open(ledger.Config{
		Storage: dir,
		Signer:  signer,
		Publish: []ledger.Publisher{ledger.FilePublisher(filepath.Join(tmp, "checkpoints"))}, // on another machine, best
	})
	check(err)
	defer led.Close()

	svc, err := apitoken.New(apitoken.Config{
		Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: memstore.New(), InsecureKeysInStore: true,
		Sinks: []apitoken.Sink{{Name: "ledger", Auditor: led}},
	})
	check(err)
	defer svc.Close()
	check(led.Follow(svc))

	_, err = svc.Issue(ctx, apitoken.Request{Subject: "alice"})
	check(err)
	checkpoint, err := led.Seal(ctx) // it does so by itself once a minute
	check(err)

	var export bytes.Buffer
	check(led.Export(ctx, &export, 0, -1))
	v := ledger.Verification{Keys: ledger.Keys{Log: []note.Verifier{key}}, Checkpoint: checkpoint}
	_, err = ledger.Verify(bytes.NewReader(export.Bytes()), v)
	fmt.Println("as it is:", err)
	_, err = ledger.Verify(bytes.NewReader(bytes.Replace(export.Bytes(), []byte("alice"), []byte("mallory"), 1)), v)
	fmt.Println("edited:", errors.Is(err, ledger.ErrTampered))
	// Output:
	// as it is: <nil>
	// edited: true
}

// A person is erased, and the log verifies as before.
func ExampleOpenVault() {
	ctx := context.Background()
	tmp, err := os.MkdirTemp("", "example")
	check(err)
	defer os.RemoveAll(tmp)
	signer, key := exampleKeys()

	kek, err := apitoken.KeyFile(filepath.Join(tmp, "vault.key"))
	check(err)
	vault, err := ledger.OpenVault(ctx, filepath.Join(tmp, "vault"), kek)
	check(err)
	defer vault.Close()
	dir, err := ledger.OpenDir(filepath.Join(tmp, "ledger"), nil)
	check(err)
	defer dir.Close()
	led, err := ledger.Open(ledger.Config{Storage: dir, Signer: signer, Vault: vault})
	check(err)
	defer led.Close()
	check(led.Audit(ctx, apitoken.Event{ID: "01jq", Type: event.Issued, OK: true, Subject: "alice"}))
	checkpoint, err := led.Seal(ctx)
	check(err)

	show := func() {
		check(led.Leaves(ctx, 0, -1, func(l ledger.Leaf) error {
			e, erased, err := vault.Reveal(l)
			fmt.Printf("%s %q erased: %v\n", e.Type, e.Subject, erased)
			return err
		}))
	}
	show()
	_, err = vault.Erase(ctx, "alice")
	check(err)
	show()
	var export bytes.Buffer
	check(led.Export(ctx, &export, 0, -1))
	_, err = ledger.Verify(&export, ledger.Verification{Keys: ledger.Keys{Log: []note.Verifier{key}}, Checkpoint: checkpoint})
	fmt.Println(err)
	// Output:
	// token.issued "alice" erased: false
	// token.issued "" erased: true
	// <nil>
}

// A witness in another organisation co-signs what continues the log that it has seen.
func ExampleNewWitness() {
	ctx := context.Background()
	tmp, err := os.MkdirTemp("", "example")
	check(err)
	defer os.RemoveAll(tmp)
	signer, key := exampleKeys()

	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	check(err)
	cosigner, err := ledger.NewCosigner("witness.example.org", priv, nil)
	check(err)
	witness, err := ledger.NewWitness(cosigner, filepath.Join(tmp, "witness"), key) // an http.Handler
	check(err)
	witnessKey, err := ledger.ParseKey(ledger.CosignerKey("witness.example.org", pub))
	check(err)

	dir, err := ledger.OpenDir(filepath.Join(tmp, "ledger"), nil)
	check(err)
	defer dir.Close()
	led, err := ledger.Open(ledger.Config{
		Storage: dir, Signer: signer, Quorum: 1,
		Witnesses: []ledger.Witness{{Key: witnessKey, Client: witness}}, // elsewhere: ledger.NewHTTPWitness(url, nil)
	})
	check(err)
	defer led.Close()
	checkpoint, err := led.Seal(ctx)
	check(err)
	_, err = ledger.Keys{Log: []note.Verifier{key}, Witnesses: []note.Verifier{witnessKey}, Quorum: 1}.Open(checkpoint)
	fmt.Println(err)
	// Output: <nil>
}
