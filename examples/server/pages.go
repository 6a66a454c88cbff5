package main

import (
	"html/template"
	"net/http"
	"strings"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/console"
	"github.com/apitoken-go/apitoken/httpauth"
)

// pages mounts what people see in a browser: a page that says what is here, the sign-in, and the console behind it.
func (a *app) pages(mux *http.ServeMux, issuer string) (err error) {
	a.session = httpauth.NewSession(a.svc, &httpauth.SessionOptions{Login: "/signin", Insecure: strings.HasPrefix(issuer, "http://")})
	a.console, err = console.New(a.svc, console.Options{
		Base: "/console", Actor: actor, SignIn: "/signin?next=", Faces: console.Self | console.Admin,
		Title: "Orders", Home: "/", Example: issuer + "/orders",
	})
	if err != nil {
		return err
	}
	mux.Handle("/console/", a.session.Authenticated(a.console))
	mux.HandleFunc("GET /{$}", a.index)
	mux.HandleFunc("GET /signin", func(w http.ResponseWriter, r *http.Request) { signIn(w, http.StatusOK, a.session.Next(r), "") })
	mux.HandleFunc("POST /signin", a.signIn)
	mux.HandleFunc("POST /signout", a.signOut)
	return nil
}

// actor is who uses the console: the session's user, an operator where the role gives the scope of that name.
func actor(r *http.Request) (console.Actor, error) {
	t := apitoken.FromContext(r.Context())
	who := console.ActorOf(t)
	if who.Subject != "" && t.Allows("operate") {
		who.Admin = console.Operator
	}
	return who, nil
}

func (a *app) signIn(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, 4<<10)
	next := a.session.Next(r)
	u, err := a.check(r.Context(), r.PostFormValue("user"), r.PostFormValue("password"))
	if err != nil {
		signIn(w, http.StatusForbidden, next, "The name or the password is wrong.")
		return
	}
	if err := a.session.Start(w, r, apitoken.Request{Subject: u.Name, Roles: u.Roles, Refresh: true}); err != nil {
		signIn(w, http.StatusServiceUnavailable, next, "Signing in does not work now. Try again in a moment.")
		return
	}
	http.Redirect(w, r, next, http.StatusSeeOther)
}

func (a *app) signOut(w http.ResponseWriter, r *http.Request) {
	if err := a.session.End(w, r, "signed out"); err != nil {
		a.session.Error(w, r, err)
		return
	}
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

func (a *app) index(w http.ResponseWriter, _ *http.Request) {
	show(w, http.StatusOK, indexPage, a.demo)
}

func signIn(w http.ResponseWriter, status int, next, wrong string) {
	show(w, status, signInPage, struct{ Next, Wrong string }{next, wrong})
}

func show(w http.ResponseWriter, status int, page *template.Template, v any) {
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Security-Policy", "default-src 'none'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
	w.WriteHeader(status)
	_ = page.Execute(w, v) // the reader is gone: nobody to tell
}

var indexPage = template.Must(template.New("").Parse(`<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>Orders</title>
<main>
<h1>Orders: a program with a token service inside</h1>
<ul>
<li><a href="/console/keys">Console</a>: your API keys and sessions</li>
<li><a href="/console/admin">Console for operators</a>: subjects, clients, audit events, signing keys</li>
<li><code>POST /login</code>, <code>GET /orders</code>, <code>GET /keys</code>: the JSON API, for programs</li>
<li><a href="/.well-known/oauth-authorization-server">OAuth endpoints</a> for other programs</li>
</ul>
{{if .}}<p>This is the demonstration. Sign in as <b>alice</b>, password <code>wonderland</code>, or as the operator <b>olga</b>, password <code>switchboard</code>.</p>{{end}}
<form method="post" action="/signout"><button>Sign out</button></form>
</main></html>
`))

var signInPage = template.Must(template.New("").Parse(`<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>Sign in · Orders</title>
<main>
<h1>Sign in</h1>
{{with .Wrong}}<p role="alert">{{.}}</p>{{end}}
<form method="post" action="/signin"><input type="hidden" name="next" value="{{.Next}}">
<p><label for="user">Name</label> <input id="user" name="user" required autocomplete="username"></p>
<p><label for="password">Password</label> <input id="password" name="password" type="password" required autocomplete="current-password"></p>
<p><button>Sign in</button></p></form>
</main></html>
`))
