package main

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/console"
	"github.com/apitoken-go/apitoken/httpauth"
	"github.com/apitoken-go/apitoken/oauthhttp"
)

// app is the host: its users, its orders, and the token service beside them.
type app struct {
	svc   *apitoken.Service
	auth  *httpauth.Auth
	below string // the path of the issuer's URL
	users map[string]user
	mux   http.Handler
	busy  chan struct{} // holds what the slow hash of passwords may take of the machine

	session *httpauth.Session
	console *console.Console
	demo    bool // the users are those of the demonstration

	endpoints *oauthhttp.Handler
	scopes    map[apitoken.Scope]string

	mu     sync.Mutex // guards orders
	orders []order
}

type order struct {
	ID     int       `json:"id"`
	Item   string    `json:"item"`
	By     string    `json:"by"`
	Placed time.Time `json:"placed"`
}

func newApp(ctx context.Context, svc *apitoken.Service, s *settings, base string, o *oauthhttp.Options) (*app, error) {
	a := &app{svc: svc, scopes: s.Scopes, demo: s.demo, users: map[string]user{}, busy: make(chan struct{}, 2)}
	u, err := url.Parse(base)
	if err != nil {
		return nil, err
	}
	a.auth = httpauth.New(svc, &httpauth.Options{Realm: "orders", BaseURL: u.Scheme + "://" + u.Host, Metadata: oauthhttp.ResourceMetadataURL(base)})
	if err := declare(ctx, svc, s.Clients); err != nil {
		return nil, err
	}
	for _, u := range s.Users {
		a.users[u.Name] = u
	}
	// The one place that says which APIs a token reaches. What is not here does not exist.
	table := a.auth.Mux(map[string]httpauth.Route{
		"POST /login":           {Needs: apitoken.Public(), Handler: http.HandlerFunc(a.login)},
		"POST /refresh":         {Needs: apitoken.Public(), Handler: http.HandlerFunc(a.refresh)},
		"POST /logout/all":      {Needs: apitoken.Authenticated(), Handler: http.HandlerFunc(a.logoutAll)},
		"GET /me":               {Needs: apitoken.Authenticated(), Handler: http.HandlerFunc(a.me)},
		"GET /sessions":         {Needs: apitoken.Authenticated(), Handler: http.HandlerFunc(a.sessions)},
		"DELETE /sessions/{id}": {Needs: apitoken.Authenticated(), Handler: http.HandlerFunc(a.endSession)},
		"GET /orders":           {Needs: apitoken.AllOf("orders:read"), Handler: http.HandlerFunc(a.listOrders)},
		"POST /orders":          {Needs: apitoken.AllOf("orders:write"), Handler: http.HandlerFunc(a.placeOrder)},
		"GET /keys":             {Needs: apitoken.AllOf("keys"), Handler: http.HandlerFunc(a.listKeys)},
		"POST /keys":            {Needs: apitoken.AllOf("keys"), Handler: http.HandlerFunc(a.createKey)},
		"POST /keys/{id}/rotate": {Needs: apitoken.AllOf("keys"),
			Handler: http.HandlerFunc(a.rotateKey)},
		"DELETE /keys/{id}": {Needs: apitoken.AllOf("keys"), Handler: http.HandlerFunc(a.revokeKey)},
	})
	if err := a.pages(table, base); err != nil {
		return nil, err
	}
	table.HandleFunc("POST /logout", a.logout) // behind no guard, which would refuse a token that has expired
	a.mux, err = a.oauth(s, base, o, a.auth.Origin(http.NewCrossOriginProtection().Handler(table)))
	return a, err
}

func (a *app) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.mux.ServeHTTP(w, r) }

// check confirms a user by name and password, two at a time: a slow hash is also a way to keep a machine busy.
func (a *app) check(ctx context.Context, name, clear string) (user, error) {
	select {
	case a.busy <- struct{}{}:
		defer func() { <-a.busy }()
	case <-ctx.Done():
		return user{}, apitoken.ErrUnavailable
	}
	u := a.users[name]
	if len(clear) > 256 || !u.Password.matches(clear) {
		return user{}, errLogin
	}
	return u, nil
}

var errLogin = &apitoken.Error{Code: apitoken.ErrDenied, Detail: "wrong user or password"}

func (a *app) login(w http.ResponseWriter, r *http.Request) {
	var in struct{ User, Password string }
	if !a.read(w, r, &in) {
		return
	}
	u, err := a.check(r.Context(), in.User, in.Password)
	if err != nil {
		a.auth.Error(w, r, err)
		return
	}
	i, err := a.svc.Issue(r.Context(), apitoken.Request{Subject: u.Name, Roles: u.Roles, Refresh: true})
	a.tokens(w, r, i, err)
}

func (a *app) refresh(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Token string `json:"refresh_token"`
	}
	if !a.read(w, r, &in) {
		return
	}
	i, err := a.svc.Refresh(r.Context(), apitoken.RefreshRequest{Token: in.Token})
	a.tokens(w, r, i, err)
}

func (a *app) tokens(w http.ResponseWriter, r *http.Request, i *apitoken.Issued, err error) {
	if err != nil {
		a.auth.Error(w, r, err)
		return
	}
	write(w, http.StatusOK, i.Response())
}

// logout ends the session that the token belongs to, expired or not; an API key has none, and is revoked itself by DELETE /keys.
func (a *app) logout(w http.ResponseWriter, r *http.Request) {
	a.done(w, r, httpauth.Logout(a.auth, a.svc, r, "logout"))
}

func (a *app) logoutAll(w http.ResponseWriter, r *http.Request) {
	a.done(w, r, a.svc.Revoke(r.Context(), apitoken.BySessions(apitoken.FromContext(r.Context()).Subject()), "logout everywhere"))
}

func (a *app) me(w http.ResponseWriter, r *http.Request) {
	t := apitoken.FromContext(r.Context())
	write(w, http.StatusOK, map[string]any{"subject": t.Subject(), "client": t.Client(), "scope": t.Scopes().String(), "session": t.Grant(), "expires": t.ExpiresAt()})
}

func (a *app) sessions(w http.ResponseWriter, r *http.Request) {
	me := apitoken.FromContext(r.Context())
	type row struct {
		ID        string    `json:"id"`
		Client    string    `json:"client"`
		Opened    time.Time `json:"opened"`
		LastUsed  time.Time `json:"last_used"`
		Address   string    `json:"address"`
		UserAgent string    `json:"user_agent"`
		Current   bool      `json:"current"`
	}
	rows := []row{}
	for g, err := range a.svc.Grants(r.Context(), apitoken.BySubject(me.Subject()), apitoken.Page{}) {
		if err != nil {
			a.auth.Error(w, r, err)
			return
		}
		rows = append(rows, row{g.ID, g.Client, g.Created, g.LastUsed, g.Address, g.UserAgent, g.ID == me.Grant()})
	}
	write(w, http.StatusOK, rows)
}

func (a *app) endSession(w http.ResponseWriter, r *http.Request) {
	target := apitoken.ByGrant(r.PathValue("id")).OwnedBy(apitoken.FromContext(r.Context()).Subject())
	a.done(w, r, a.svc.Revoke(r.Context(), target, "ended from the list of sessions"))
}

func (a *app) listOrders(w http.ResponseWriter, _ *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	write(w, http.StatusOK, append([]order{}, a.orders...))
}

func (a *app) placeOrder(w http.ResponseWriter, r *http.Request) {
	var in struct{ Item string }
	if !a.read(w, r, &in) {
		return
	}
	a.mu.Lock()
	o := order{ID: len(a.orders) + 1, Item: in.Item, By: apitoken.FromContext(r.Context()).Subject(), Placed: time.Now().UTC()}
	a.orders = append(a.orders, o)
	a.mu.Unlock()
	write(w, http.StatusCreated, o)
}

// keys is the caller's own view: keys of others do not exist in it, and none may do more than the caller.
func (a *app) keys(r *http.Request) *apitoken.APIKeys {
	return a.svc.APIKeys.For(apitoken.FromContext(r.Context()))
}

type keyView struct {
	ID       string          `json:"id"`
	Name     string          `json:"name"`
	Start    string          `json:"start"`
	Scopes   apitoken.Scopes `json:"scopes"`
	Expires  time.Time       `json:"expires,omitzero"`
	LastUsed time.Time       `json:"last_used,omitzero"`
	Revoked  bool            `json:"revoked"`
	Key      string          `json:"key,omitempty"` // only ever in the answer that makes it
}

func viewOf(k apitoken.APIKey) keyView {
	return keyView{ID: k.ID, Name: k.Name, Start: k.Start, Scopes: k.Scopes, Expires: k.Expires, LastUsed: k.LastUsed, Revoked: k.Revoked}
}

func (a *app) listKeys(w http.ResponseWriter, r *http.Request) {
	list := []keyView{}
	for k, err := range a.keys(r).List(r.Context(), apitoken.Page{After: r.FormValue("after"), Limit: 100}) {
		if err != nil {
			a.auth.Error(w, r, err)
			return
		}
		list = append(list, viewOf(k))
	}
	write(w, http.StatusOK, list)
}

func (a *app) createKey(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Name   string
		Scopes apitoken.Scopes
		Days   int
	}
	if !a.read(w, r, &in) {
		return
	}
	q := apitoken.APIKeyRequest{Name: in.Name, Scopes: in.Scopes, Rate: apitoken.Rate{Burst: 100, Per: time.Second}}
	if in.Days > 0 {
		q.Expires = time.Now().AddDate(0, 0, in.Days)
	}
	k, secret, err := a.keys(r).Create(r.Context(), q)
	a.shown(w, r, k, secret, err)
}

func (a *app) rotateKey(w http.ResponseWriter, r *http.Request) {
	hours, _ := strconv.Atoi(r.FormValue("overlap_hours"))
	k, secret, err := a.keys(r).Rotate(r.Context(), r.PathValue("id"), time.Duration(hours)*time.Hour)
	a.shown(w, r, k, secret, err)
}

func (a *app) shown(w http.ResponseWriter, r *http.Request, k apitoken.APIKey, secret apitoken.Secret, err error) {
	if err != nil {
		a.auth.Error(w, r, err)
		return
	}
	v := viewOf(k)
	v.Key = secret.Reveal()
	write(w, http.StatusCreated, v)
}

func (a *app) revokeKey(w http.ResponseWriter, r *http.Request) {
	a.done(w, r, a.keys(r).Revoke(r.Context(), r.PathValue("id"), "revoked by its owner"))
}

func (a *app) done(w http.ResponseWriter, r *http.Request, err error) {
	if err != nil {
		a.auth.Error(w, r, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// read takes a JSON body of at most 4 KiB.
func (a *app) read(w http.ResponseWriter, r *http.Request, into any) bool {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4<<10))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		a.auth.Error(w, r, &apitoken.Error{Code: apitoken.ErrInvalidRequest, Detail: "body", Cause: err})
		return false
	}
	return true
}

func write(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the caller is gone: nobody to tell
}
