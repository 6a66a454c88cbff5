// Mcp is a complete MCP server with the token service inside: clients find it by its URL alone, users sign in and consent in the
// browser, and each tool needs its scope. Run it with
//
//	go run ./examples/mcp
//
// and add http://127.0.0.1:8080/mcp to an MCP client. It prints the password to sign in with.
package main

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"flag"
	"fmt"
	"html/template"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/mcpauth"
	"github.com/apitoken-go/apitoken/oauthhttp"
	"github.com/apitoken-go/apitoken/store/boltstore"
	"github.com/modelcontextprotocol/go-sdk/mcp"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], slog.New(slog.NewTextHandler(os.Stderr, nil)), nil)
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "mcp:", err)
		os.Exit(1)
	}
}

// run serves until ctx ends, then lets requests finish. ready, if not nil, is told where and with which password.
func run(ctx context.Context, args []string, log *slog.Logger, ready func(base, password string)) (err error) {
	flags := flag.NewFlagSet("mcp", flag.ContinueOnError)
	addr := flags.String("addr", "127.0.0.1:8080", "address to listen on")
	db := flags.String("db", "mcp.db", "database file; its keys are sealed under the file beside it, .key")
	public := flags.String("url", "", "public URL, such as https://notes.example.com; empty: http:// and the address")
	password := flags.String("password", "", "of the user alice; empty: a new one is printed")
	if err := flags.Parse(args); err != nil {
		return err
	}
	ln, err := net.Listen("tcp", *addr)
	if err != nil {
		return err
	}
	defer ln.Close() // again after Shutdown does no harm
	if *public == "" {
		*public = "http://" + ln.Addr().String()
	}
	if *password == "" {
		*password = rand.Text()
	}
	st, err := boltstore.Open(*db, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	seal, err := apitoken.KeyFile(strings.TrimSuffix(*db, ".db") + ".key")
	if err != nil {
		return err
	}
	svc, err := apitoken.New(apitoken.Config{Issuer: *public, Audience: *public + "/mcp", Store: st, Seal: seal, Logger: log, Scopes: scopes})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, svc.Close()) }()
	// Clients of MCP 2026-07-28 describe themselves at the URL that is their ID.
	h, err := newSite(svc, *public, *password, &oauthhttp.Documents{Scopes: apitoken.Scopes{read, write}}, log)
	if err != nil {
		return err
	}

	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: 2 * time.Minute, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn)}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(ln) }()
	log.Info("serving", "mcp", *public+"/mcp", "user", "alice", "password", *password)
	if ready != nil {
		ready(*public, *password)
	}
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return srv.Shutdown(grace)
}

// What the server's tools need.
const (
	read  apitoken.Scope = "notes:read"
	write apitoken.Scope = "notes:write"
)

var scopes = map[apitoken.Scope]string{read: "read your notes", write: "add and delete your notes"}

// site is the authorization server, its consent page and the MCP endpoint on one host.
type site struct {
	svc      *apitoken.Service
	oauth    *oauthhttp.Handler
	password string
}

func newSite(svc *apitoken.Service, public, password string, documents *oauthhttp.Documents, log *slog.Logger) (http.Handler, error) {
	guard := mcpauth.New(svc, mcpauth.Options{
		Resource: public + "/mcp", Name: "Notes", Needs: apitoken.Scopes{read},
		Tools: map[string]apitoken.Scopes{"add_note": {write}, "delete_note": {write}},
	})
	s := &site{svc: svc, password: password}
	var err error
	s.oauth, err = oauthhttp.New(svc, &oauthhttp.Options{
		Consent:      oauthhttp.ConsentFunc(s.ask),
		Documents:    documents,
		Registration: &oauthhttp.Registration{Scopes: apitoken.Scopes{read, write}, Open: 10_000}, // those of 2025-11-25 register
		Resources:    []oauthhttp.Resource{guard.Resource()},
		Scopes:       apitoken.Scopes{read, write},
		Logger:       log,
	})
	if err != nil {
		return nil, err
	}
	server := mcp.NewServer(&mcp.Implementation{Name: "notes", Version: "1"}, nil)
	server.AddReceivingMiddleware(guard.Middleware)
	addTools(server)

	mux := http.NewServeMux()
	for _, path := range s.oauth.Paths() {
		mux.Handle(path, s.oauth)
	}
	mux.Handle("/mcp", guard.Handler(mcp.NewStreamableHTTPHandler(
		func(*http.Request) *mcp.Server { return server },
		&mcp.StreamableHTTPOptions{Stateless: true, PropagateRequestCancellation: true})))
	mux.Handle("POST /consent", http.NewCrossOriginProtection().Handler(http.HandlerFunc(s.decide)))
	return mux, nil
}

// page asks who somebody is and whether a program may act for them. Who asks is told by where the answer goes: a name is only what
// the program calls itself.
var page = template.Must(template.New("page").Parse(`<!doctype html>
<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Sign in</title>
<style>body{font:16px sans-serif;max-width:26em;margin:3em auto}input,button{font:inherit;display:block;width:100%;margin:.5em 0;box-sizing:border-box}</style>
<h1>{{or .Ask.Client.Name .Ask.Client.ID}} asks to act for you</h1>
<p>It goes by the ID {{.Ask.Client.ID}}, and the answer goes to {{.Ask.RedirectURI}}.{{with .Ask.ClientURI}} It says of itself: {{.}}{{end}}</p>
{{if .Ask.LocalOnly}}<p><b>The answer goes to a program on this computer.</b> Go on only if you have started it yourself just now.</p>{{end}}
{{with .Scopes}}<p>It may then:</p><ul>{{range .}}<li>{{.}}</li>{{end}}</ul>{{end}}
{{with .Wrong}}<p role="alert">{{.}}</p>{{end}}
<form method="post" action="/consent"><input type="hidden" name="request" value="{{.Ask.Query}}">
<label>User<input name="user" autocomplete="username"></label>
<label>Password<input name="password" type="password" autocomplete="current-password"></label>
<button name="decision" value="allow">Allow</button><button name="decision" value="deny">Deny</button></form>
`))

func (s *site) ask(w http.ResponseWriter, _ *http.Request, a *oauthhttp.Authorization) {
	s.show(w, http.StatusOK, a, "")
}

func (s *site) show(w http.ResponseWriter, status int, a *oauthhttp.Authorization, wrong string) {
	var can []string
	for _, x := range a.Scopes {
		can = append(can, scopes[x])
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = page.Execute(w, map[string]any{"Ask": a, "Scopes": can, "Wrong": wrong}) // the browser is gone: nobody to tell
}

// decide ends an authorization. The request is read again with all its checks: the form was in the hands of a browser.
func (s *site) decide(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
	a, err := s.oauth.Authorization(r.Context(), r.PostFormValue("request"))
	switch {
	case err != nil:
		s.oauth.Refuse(w, r, err)
	case r.PostFormValue("decision") != "allow":
		s.oauth.Deny(w, r, a, "")
	case r.PostFormValue("user") != "alice" || subtle.ConstantTimeCompare([]byte(r.PostFormValue("password")), []byte(s.password)) != 1:
		s.show(w, http.StatusForbidden, a, "Wrong user or password.")
	default:
		s.oauth.Approve(w, r, a, oauthhttp.Approval{Subject: "alice", Scopes: oauthhttp.All()})
	}
}

// notes are what the tools work on: everybody's own.
type notes struct {
	mu  sync.Mutex
	all map[string][]string // by subject
}

func addTools(server *mcp.Server) {
	n := &notes{all: map[string][]string{}}
	mcp.AddTool(server, &mcp.Tool{Name: "list_notes", Description: "Lists your notes."}, n.list)
	mcp.AddTool(server, &mcp.Tool{Name: "add_note", Description: "Adds a note."}, n.add)
	mcp.AddTool(server, &mcp.Tool{Name: "delete_note", Description: "Deletes a note by its number, from 1."}, n.delete)
}

type listed struct {
	Notes []string `json:"notes"`
}

func (n *notes) list(ctx context.Context, _ *mcp.CallToolRequest, _ struct{}) (*mcp.CallToolResult, listed, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return nil, n.of(ctx), nil
}

// of is the caller's notes. The caller holds the mutex.
func (n *notes) of(ctx context.Context) listed {
	return listed{append([]string{}, n.all[apitoken.FromContext(ctx).Subject()]...)}
}

type added struct {
	Text string `json:"text" jsonschema:"the note, at most 1000 bytes"`
}

func (n *notes) add(ctx context.Context, _ *mcp.CallToolRequest, in added) (*mcp.CallToolResult, listed, error) {
	if len(in.Text) > 1000 {
		return nil, listed{}, errors.New("the note is over 1000 bytes")
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	me := apitoken.FromContext(ctx).Subject()
	n.all[me] = append(n.all[me], in.Text)
	return nil, n.of(ctx), nil
}

type deleted struct {
	Number int `json:"number" jsonschema:"which note, from 1"`
}

func (n *notes) delete(ctx context.Context, _ *mcp.CallToolRequest, in deleted) (*mcp.CallToolResult, listed, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	me := apitoken.FromContext(ctx).Subject()
	if in.Number < 1 || in.Number > len(n.all[me]) {
		return nil, listed{}, fmt.Errorf("there is no note %d", in.Number)
	}
	n.all[me] = append(n.all[me][:in.Number-1:in.Number-1], n.all[me][in.Number:]...)
	return nil, n.of(ctx), nil
}
