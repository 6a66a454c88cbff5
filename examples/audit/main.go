// Audit shows what a security officer asks: who could do what, when, with which token, and can you prove that nobody edited
// this log? It runs a service on a real file behind a real HTTP server, lets it be attacked, shows the alerts and what was
// revoked by itself, the blast radius, the sealed export, an edit of it, and what the verifier says. Run it with
//
//	go run ./examples/audit
package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/httpauth"
	"github.com/apitoken-go/apitoken/ledger"
	"github.com/apitoken-go/apitoken/misuse"
	"github.com/apitoken-go/apitoken/report"
	"github.com/apitoken-go/apitoken/store/boltstore"
)

func main() {
	dir, err := os.MkdirTemp("", "apitoken-audit-")
	if err != nil {
		log.Fatal(err)
	}
	if err := run(os.Stdout, dir); err != nil {
		log.Fatal(err)
	}
}

// bank is the program: a token service that is watched and sealed, and an API behind it.
type bank struct {
	out   io.Writer
	dir   string
	svc   *apitoken.Service
	watch *misuse.Watch
	led   *ledger.Ledger
	vault *ledger.Vault
	key   string               // public, of checkpoints
	seen  chan misuse.Detector // what the policy was asked about
	url   string
	close []func() error // the last one first
}

func (b *bank) say(format string, args ...any) { fmt.Fprintf(b.out, format+"\n", args...) }

func (b *bank) stop() (err error) {
	for i := len(b.close) - 1; i >= 0; i-- {
		err = errors.Join(err, b.close[i]())
	}
	return err
}

func open(ctx context.Context, out io.Writer, dir string) (b *bank, err error) {
	b = &bank{out: out, dir: dir, seen: make(chan misuse.Detector, 16)}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.stop())
		}
	}()
	st, err := boltstore.Open(filepath.Join(dir, "tokens.db"), nil)
	if err != nil {
		return b, err
	}
	b.close = append(b.close, st.Close)
	seal, err := apitoken.KeyFile(filepath.Join(dir, "tokens.key"))
	if err != nil {
		return b, err
	}
	// The log's own key signs checkpoints; a real one lies in an HSM, the vault's key elsewhere than the vault.
	private, public, err := note.GenerateKey(rand.Reader, "bank.example/audit")
	if err != nil {
		return b, err
	}
	signer, err := note.NewSigner(private)
	if err != nil {
		return b, err
	}
	b.key = public
	if b.vault, err = ledger.OpenVault(ctx, filepath.Join(dir, "vault"), seal); err != nil {
		return b, err
	}
	b.close = append(b.close, b.vault.Close)
	files, err := ledger.OpenDir(filepath.Join(dir, "ledger"), nil)
	if err != nil {
		return b, err
	}
	b.close = append(b.close, files.Close)
	b.led, err = ledger.Open(ledger.Config{Storage: files, Signer: signer, Vault: b.vault, Poll: 50 * time.Millisecond,
		Publish: []ledger.Publisher{ledger.FilePublisher(filepath.Join(dir, "witness.checkpoints"))}})
	if err != nil {
		return b, err
	}
	b.close = append(b.close, b.led.Close)
	b.svc, err = apitoken.New(apitoken.Config{
		Issuer: "https://auth.bank.example", Audience: "https://api.bank.example", Store: st, Seal: seal,
		Scopes: map[apitoken.Scope]string{"accounts:read": "See accounts", "accounts:write": "Move money", "reports": "Read reports"},
		Sinks:  []apitoken.Sink{{Name: "ledger", Auditor: b.led}},
	})
	if err != nil {
		return b, err
	}
	b.close = append(b.close, b.svc.Close)
	if err := b.led.Follow(b.svc); err != nil {
		return b, err
	}
	return b, b.serve()
}

func (b *bank) serve() error {
	auth := httpauth.New(b.svc, &httpauth.Options{Address: httpauth.BehindProxies(netip.MustParsePrefix("127.0.0.0/8"))})
	ok := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "ok") })
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	srv := &http.Server{ReadHeaderTimeout: time.Second, Handler: auth.Mux(map[string]httpauth.Route{
		"GET /accounts":  {Needs: apitoken.AllOf("accounts:read"), Handler: ok},
		"POST /accounts": {Needs: apitoken.AllOf("accounts:write"), Handler: ok},
	})}
	go srv.Serve(ln) // ends with Close
	b.url = "http://" + ln.Addr().String()
	b.close = append(b.close, srv.Close)
	return nil
}

// call uses a token from an address, as the proxy in front of the program would say.
func (b *bank) call(method string, token apitoken.Secret, from string) (int, error) {
	req, err := http.NewRequest(method, b.url+"/accounts", nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", "Bearer "+token.Reveal())
	req.Header.Set("X-Forwarded-For", from)
	req.Header.Set("User-Agent", "bank-app/3")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	return res.StatusCode, res.Body.Close()
}

func run(out io.Writer, dir string) (err error) {
	ctx := context.Background()
	b, err := open(ctx, out, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.stop()) }()

	b.say("1. Alice and Bob sign in and work. A canary is planted: an API key that nobody should ever use.")
	alice, err := b.svc.Issue(ctx, apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"accounts:read", "accounts:write", "reports"}, Refresh: true})
	if err != nil {
		return err
	}
	bob, err := b.svc.Issue(ctx, apitoken.Request{Subject: "bob", Scopes: apitoken.Scopes{"accounts:read"}, Refresh: true})
	if err != nil {
		return err
	}
	canary, planted, err := b.svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "canary", Name: "in the wiki", Scopes: apitoken.Scopes{"accounts:read"}})
	if err != nil {
		return err
	}
	if _, _, err = b.svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "bob", Name: "nightly", Scopes: apitoken.Scopes{"accounts:read"}}); err != nil {
		return err
	}
	b.watch, err = misuse.Start(b.svc, misuse.Config{Canaries: []string{canary.ID}, Policy: b.policy})
	if err != nil {
		return err
	}
	for range 3 {
		if _, err := b.call("GET", alice.Access, "192.0.2.10"); err != nil {
			return err
		}
	}
	early, err := b.led.Seal(ctx)
	if err != nil {
		return err
	}

	b.say("\n2. The attack: Alice's token is sold and used from seven networks, Bob's old refresh token is replayed, the canary sings.")
	for n := range 7 {
		status, err := b.call("GET", alice.Access, fmt.Sprintf("198.51.%d.7", n))
		if err != nil {
			return err
		}
		b.say("   alice's token from 198.51.%d.7: %d", n, status)
	}
	if _, err := b.svc.Refresh(ctx, apitoken.RefreshRequest{Token: bob.Refresh.Reveal()}); err != nil {
		return err
	}
	next, err := b.svc.Refresh(ctx, apitoken.RefreshRequest{Token: bob.Refresh.Reveal()}) // within the grace: a lost answer
	if err != nil {
		return err
	}
	if _, err = b.svc.Refresh(ctx, apitoken.RefreshRequest{Token: next.Refresh.Reveal()}); err != nil {
		return err
	}
	_, err = b.svc.Refresh(ctx, apitoken.RefreshRequest{Token: bob.Refresh.Reveal()})
	b.say("   bob's refresh token, two steps old: %v", err)
	status, err := b.call("GET", planted, "203.0.113.66")
	if err != nil {
		return err
	}
	b.say("   the canary: %d", status)

	b.say("\n3. What the detectors said and the policy did, without anybody's hand:")
	for range 3 { // the replay is told of by the event feed, a moment later
		select {
		case <-b.seen:
		case <-time.After(time.Minute):
			return errors.New("the attacks were not all found")
		}
	}
	if err := b.watch.Close(); err != nil { // what was found is acted on
		return err
	}
	if err := b.alerts(ctx); err != nil {
		return err
	}
	for _, x := range []struct {
		whose string
		token apitoken.Secret
	}{{"alice's", alice.Access}, {"bob's", next.Access}, {"the canary's", planted}} {
		status, err := b.call("GET", x.token, "192.0.2.10")
		if err != nil {
			return err
		}
		b.say("   %s token now: %d", x.whose, status)
	}

	b.say("\n4. The blast radius of Alice's token:")
	if err := b.radius(ctx, alice); err != nil {
		return err
	}
	b.say("\n5. The proof:")
	return b.prove(ctx, early)
}

// policy is the host's answer to alerts.
func (b *bank) policy(_ context.Context, a misuse.Alert) misuse.Action {
	b.seen <- a.Detector
	switch a.Detector {
	case misuse.Canary:
		return misuse.RevokeSubject
	case misuse.Addresses, misuse.UserAgents, misuse.Reuse:
		return misuse.RevokeGrant
	}
	return misuse.Tell
}

func (b *bank) alerts(ctx context.Context) error {
	w := tabwriter.NewWriter(b.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "   event\twhat\twhose\tcount\taction\toutcome")
	for _, kind := range []event.Type{event.Alert, event.Reused, event.Revoked} {
		for e, err := range b.svc.Events(ctx, apitoken.EventQuery{Type: kind, OldestFirst: true}) {
			if err != nil {
				return err
			}
			fmt.Fprintf(w, "   %s\t%s\t%s\t%d\t%s\t%s\n", e.Type, e.Reason, e.Subject, e.Count, e.Extra["action"], e.Extra["outcome"])
		}
	}
	return w.Flush()
}

func (b *bank) radius(ctx context.Context, stolen *apitoken.Issued) error {
	r, err := report.BlastOf(ctx, b.svc, stolen.Refresh)
	if err != nil {
		return err
	}
	for _, x := range r.Sessions {
		b.say("   %s of %s: %d uses, with %v; it held %v and never used %v; live: %v", x.Kind, x.Subject, x.Usage.Count, x.Usage.Scopes, x.Held, x.Unused(), x.Live)
	}
	b.say("   seen at %v", r.Addresses())
	for f, err := range report.Hygiene(ctx, b.svc, report.HygieneConfig{}) {
		if err != nil {
			return err
		}
		b.say("   hygiene: API key %q of %s, no expiry: %v", f.Key.Name, f.Key.Subject, f.NoExpiry)
	}
	return nil
}

// prove exports the log and plays its attacker. early is a checkpoint that the auditor has had since step 1.
func (b *bank) prove(ctx context.Context, early []byte) error {
	checkpoint, err := b.led.Seal(ctx)
	if err != nil {
		return err
	}
	var file bytes.Buffer
	if err := b.led.Export(ctx, &file, 0, -1); err != nil {
		return err
	}
	for name, data := range map[string][]byte{"events.jsonl": file.Bytes(), "checkpoint": checkpoint, "earlier": early, "log.pub": []byte(b.key + "\n")} {
		if err := os.WriteFile(filepath.Join(b.dir, name), data, 0o600); err != nil {
			return err
		}
	}
	key, err := ledger.ParseKey(b.key)
	if err != nil {
		return err
	}
	v := ledger.Verification{Keys: ledger.Keys{Log: []note.Verifier{key}}, Checkpoint: checkpoint, Earlier: [][]byte{early}}
	verify := func(what string, export []byte) {
		r, err := ledger.Verify(bytes.NewReader(export), v)
		if err != nil {
			b.say("   %s: %v", what, err)
			return
		}
		b.say("   %s: %d records, proved by a checkpoint that the auditor holds and one from before the attack", what, r.Records)
	}
	lines := bytes.SplitAfter(bytes.TrimSuffix(file.Bytes(), []byte("\n")), []byte("\n"))
	verify("as it is", file.Bytes())
	verify("one word edited", bytes.Replace(file.Bytes(), []byte("token.issued"), []byte("token.listed"), 1))
	verify("one record left out", bytes.Join(append(lines[:3:3], lines[4:]...), nil))
	verify("the end cut off", bytes.Join(lines[:len(lines)-2], nil))

	if _, err := b.vault.Erase(ctx, "alice"); err != nil {
		return err
	}
	gone := 0
	err = b.led.Leaves(ctx, 0, -1, func(l ledger.Leaf) error {
		_, erased, err := b.vault.Reveal(l)
		if erased {
			gone++
		}
		return err
	})
	if err != nil {
		return err
	}
	b.say("   Alice asks to be forgotten: %d records no longer tell of whom they speak", gone)
	verify("and the log after it", file.Bytes())
	b.say("\n   By hand, with nothing but the export, the checkpoints and the public key:\n   d=%s; go run ./ledger/cmd/apitoken-verify -key @$d/log.pub -checkpoint $d/checkpoint -earlier $d/earlier $d/events.jsonl", b.dir)
	return nil
}
