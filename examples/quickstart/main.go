// Quickstart shows the whole life of a token on a real database file and a real HTTP server: issue, call, refresh, reuse,
// revoke, an API key, a restart, and the audit trail of it all. Run it with
//
//	go run ./examples/quickstart
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/httpauth"
	"github.com/apitoken-go/apitoken/store/boltstore"
)

func main() {
	dir, err := os.MkdirTemp("", "apitoken-quickstart-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := run(os.Stdout, dir); err != nil {
		os.RemoveAll(dir)
		log.Fatal(err)
	}
}

// app is a program with a token service inside: a database file, the service on it, an API behind it.
type app struct {
	store *boltstore.Store
	svc   *apitoken.Service
	http  *http.Server
	url   string
}

func start(dir string) (*app, error) {
	st, err := boltstore.Open(filepath.Join(dir, "tokens.db"), nil)
	if err != nil {
		return nil, err
	}
	seal, err := apitoken.KeyFile(filepath.Join(dir, "tokens.key"))
	if err != nil {
		return nil, errors.Join(err, st.Close())
	}
	svc, err := apitoken.New(apitoken.Config{
		Issuer: "https://auth.example.com", Audience: "https://api.example.com",
		Store: st, Seal: seal,
	})
	if err != nil {
		return nil, errors.Join(err, st.Close())
	}

	auth := httpauth.New(svc, nil)
	mux := http.NewServeMux()
	mux.Handle("GET /orders", auth.Require("orders:read")(http.HandlerFunc(orders)))
	mux.Handle("POST /orders", auth.Require("orders:write")(http.HandlerFunc(orders)))

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, errors.Join(err, svc.Close(), st.Close())
	}
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go srv.Serve(l)
	return &app{store: st, svc: svc, http: srv, url: "http://" + l.Addr().String()}, nil
}

func (a *app) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return errors.Join(a.http.Shutdown(ctx), a.svc.Close(), a.store.Close())
}

func orders(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintf(w, "%s: orders of %s", r.Method, apitoken.FromContext(r.Context()).Subject())
}

// call calls the API and tells what came back, with the challenge where there is one.
func (a *app) call(method string, token apitoken.Secret) (string, error) {
	r, err := http.NewRequest(method, a.url+"/orders", nil)
	if err != nil {
		return "", err
	}
	r.Header.Set("Authorization", "Bearer "+token.Reveal())
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return "", err
	}
	if c := res.Header.Get("WWW-Authenticate"); c != "" {
		return fmt.Sprintf("%s  %s", res.Status, c), nil
	}
	return fmt.Sprintf("%s  %s", res.Status, body), nil
}

func run(out io.Writer, dir string) error {
	ctx := apitoken.WithActor(context.Background(), "quickstart")
	a, err := start(dir)
	if err != nil {
		return err
	}
	defer func() { a.stop() }()
	n := 0
	say := func(what, result string, err error) error {
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		n++
		fmt.Fprintf(out, "%2d. %-44s %s\n", n, what, result)
		return nil
	}
	show := func(what, method string, token apitoken.Secret) error {
		got, err := a.call(method, token)
		return say(what, got, err)
	}

	// A login: the program has checked who it is, and says so.
	first, err := a.svc.Issue(ctx, apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"orders:read"}, Refresh: true})
	if err != nil {
		return err
	}
	if err := say("issue a token to alice", "token "+first.Token.ID()+", scope "+first.Token.Scopes().String(), nil); err != nil {
		return err
	}
	if err := show("call the API with it", "GET", first.Access); err != nil {
		return err
	}
	if err := show("call what its scope does not cover", "POST", first.Access); err != nil {
		return err
	}

	// Refresh tokens go forward only; a copy that comes later ends the session.
	second, err := a.svc.Refresh(ctx, apitoken.RefreshRequest{Token: first.Refresh.Reveal()})
	if err != nil {
		return err
	}
	third, err := a.svc.Refresh(ctx, apitoken.RefreshRequest{Token: second.Refresh.Reveal()})
	if err != nil {
		return err
	}
	if err := show("refresh twice, call with the newest", "GET", third.Access); err != nil {
		return err
	}
	_, err = a.svc.Refresh(ctx, apitoken.RefreshRequest{Token: first.Refresh.Reveal()})
	if !errors.Is(err, apitoken.ErrInvalidGrant) {
		return fmt.Errorf("a replayed refresh token gave %v", err)
	}
	if err := say("a thief replays the first refresh token", err.Error(), nil); err != nil {
		return err
	}
	if err := show("the session is over, for both of them", "GET", third.Access); err != nil {
		return err
	}

	// Revocation by subject, without holding any token. What is issued afterwards is good.
	bob, err := a.svc.Issue(ctx, apitoken.Request{Subject: "bob", Scopes: apitoken.Scopes{"orders"}})
	if err != nil {
		return err
	}
	if err := show("bob's token, wider scope", "POST", bob.Access); err != nil {
		return err
	}
	if err := a.svc.Revoke(ctx, apitoken.BySubject("bob"), "left the company"); err != nil {
		return err
	}
	if err := show("bob left the company", "POST", bob.Access); err != nil {
		return err
	}

	// An API key: opaque, long-lived, shown once.
	key, secret, err := a.svc.APIKeys.Create(ctx, apitoken.APIKeyRequest{Subject: "carol", Name: "nightly job", Scopes: apitoken.Scopes{"orders:read"}})
	if err != nil {
		return err
	}
	if err := show("carol's API key "+key.Start+"…", "GET", secret); err != nil {
		return err
	}

	// Everything above is on disk.
	if err := a.stop(); err != nil {
		return err
	}
	if a, err = start(dir); err != nil {
		return err
	}
	file, err := os.Stat(filepath.Join(dir, "tokens.db"))
	if err != nil {
		return err
	}
	if err := say("stop, and start again on the same file", fmt.Sprintf("%s, %d KiB, %s", file.Name(), file.Size()>>10, file.Mode()), nil); err != nil {
		return err
	}
	if err := show("carol's API key still works", "GET", secret); err != nil {
		return err
	}
	if err := show("bob is still refused", "POST", bob.Access); err != nil {
		return err
	}
	if err := show("alice's ended session too", "GET", third.Access); err != nil {
		return err
	}
	return audit(ctx, out, a.svc)
}

// audit prints the trail, oldest first.
func audit(ctx context.Context, out io.Writer, svc *apitoken.Service) error {
	fmt.Fprint(out, "\nThe audit trail:\n\n")
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "TIME\tEVENT\tOK\tACTOR\tSUBJECT\tDETAIL")
	for e, err := range svc.Events(ctx, apitoken.EventQuery{OldestFirst: true}) {
		if err != nil {
			return err
		}
		detail, ok := e.Reason, "no"
		if e.OK {
			ok = "yes"
		}
		switch {
		case len(e.Scopes) > 0 && detail == "":
			detail = "scope " + e.Scopes.String()
		case e.Count > 1:
			detail = fmt.Sprintf("%s, %d times", e.Reason, e.Count)
		case e.Type == event.KeyChanged:
			detail = e.Reason + ", " + e.Extra["alg"]
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", e.Time.Format("15:04:05.000"), e.Type, ok, e.Actor, e.Subject, detail)
	}
	return w.Flush()
}
