package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/oauthhttp"
)

// client is a program that gets tokens by the OAuth endpoints, as the settings file names it.
type client struct {
	ID             string          `json:"id"`
	Name           string          `json:"name"`
	Public         bool            `json:"public"`
	Secret         string          `json:"secret"` // in clear, or what "-hash" printed
	GrantTypes     []string        `json:"grant_types"`
	Scopes         apitoken.Scopes `json:"scopes"`
	Audiences      []string        `json:"audiences"`
	RedirectURIs   []string        `json:"redirect_uris"`
	AuthMethod     string          `json:"auth_method"` // empty: by its secret
	Keys           json.RawMessage `json:"keys"`        // public JWK set, for private_key_jwt
	TLSName        string          `json:"tls_name"`    // for tls_client_auth: "dns:worker.example.com"
	BindDPoP       bool            `json:"bind_dpop"`
	BindCert       bool            `json:"bind_certificate"`
	MayImpersonate bool            `json:"may_impersonate"`
}

// registration lets programs register clients, with an API key of scope apitoken:register.
type registration struct {
	GrantTypes []string        `json:"grant_types"` // that they may ask for; empty: authorization_code and refresh_token
	Scopes     apitoken.Scopes `json:"scopes"`      // the most that they may ask for
}

// declare makes the service's clients be what the settings say. It writes only what has changed.
func declare(ctx context.Context, svc *apitoken.Service, list []client) error {
	for _, c := range list {
		var secrets []apitoken.Secret
		if c.Secret != "" {
			secrets = []apitoken.Secret{apitoken.NewSecret(c.Secret)}
		}
		err := svc.Clients.Declare(ctx, apitoken.Client{ID: c.ID, Name: c.Name, Public: c.Public, GrantTypes: c.GrantTypes, Scopes: c.Scopes, Audiences: c.Audiences,
			RedirectURIs: c.RedirectURIs, AuthMethod: c.AuthMethod, Keys: c.Keys, TLSName: c.TLSName, BindDPoP: c.BindDPoP, BindCertificate: c.BindCert, MayImpersonate: c.MayImpersonate}, secrets...)
		if err != nil {
			return fmt.Errorf("client %q: %w", c.ID, err)
		}
	}
	return nil
}

// oauth mounts the endpoints beside the host's own pages for login and consent, and its API behind them.
func (a *app) oauth(s *settings, issuer string, o *oauthhttp.Options, api http.Handler) (http.Handler, error) {
	u, err := url.Parse(issuer)
	if err != nil {
		return nil, err
	}
	below := strings.TrimSuffix(u.Path, "/")
	a.below = below
	o.Consent, o.DevicePage = oauthhttp.ConsentFunc(a.askConsent), strings.TrimSuffix(issuer, "/")+"/device"
	o.Scopes = slices.Sorted(maps.Keys(s.Scopes))
	o.Resources = []oauthhttp.Resource{{Resource: issuer, Name: "Orders", Scopes: o.Scopes}}
	o.RequireNonce = s.RequireNonce
	if r := s.Registration; r != nil {
		o.Registration = &oauthhttp.Registration{GrantTypes: r.GrantTypes, Scopes: r.Scopes}
	}
	if a.endpoints, err = oauthhttp.New(a.svc, o); err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	for _, path := range a.endpoints.Paths() {
		mux.Handle(path, a.endpoints)
	}
	// Pages with a password field: no other site may send their forms, or frame them.
	pages := http.NewServeMux()
	pages.HandleFunc("POST "+below+"/consent", a.consent)
	pages.HandleFunc("GET "+below+"/device", a.devicePage)
	pages.HandleFunc("POST "+below+"/device", a.device)
	safe := a.auth.Origin(http.NewCrossOriginProtection().Handler(unframed(pages)))
	mux.Handle(below+"/consent", safe)
	mux.Handle(below+"/device", safe)
	mux.Handle("/", api)
	return mux, nil
}

func unframed(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'")
		w.Header().Set("Cache-Control", "no-store")
		r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
		next.ServeHTTP(w, r)
	})
}

// page is all of the demonstration's pages: which device? and: who are you, and may this program act for you?
var page = template.Must(template.New("page").Parse(`<!doctype html>
<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Sign in</title>
<style>body{font:16px sans-serif;max-width:24em;margin:3em auto}input,button{font:inherit;display:block;width:100%;margin:.5em 0;box-sizing:border-box}</style>
<h1>{{if .Client}}{{.Client}} asks to act for you{{else}}Connect a device{{end}}</h1>
{{if .Wrong}}<p role="alert">{{.Wrong}}</p>{{end}}
{{if .Done}}<p>{{.Done}}</p>{{else if .Client}}
{{if .Scopes}}<p>It may then:</p><ul>{{range .Scopes}}<li>{{.}}</li>{{end}}</ul>{{end}}
{{if .Code}}<p>Go on only if the device in front of you shows <b>{{.Code}}</b>.</p>{{end}}
<form method="post" action="{{.Action}}">
{{if .Code}}<input type="hidden" name="user_code" value="{{.Code}}">{{else}}<input type="hidden" name="request" value="{{.Query}}">{{end}}
<label>User<input name="user" autocomplete="username"></label>
<label>Password<input name="password" type="password" autocomplete="current-password"></label>
<button name="decision" value="allow">Allow</button><button name="decision" value="deny">Deny</button></form>
{{else}}<form action="{{.Action}}"><label>Code on the device<input name="user_code" autocomplete="off" required></label><button>Next</button></form>{{end}}
`))

type pageData struct {
	Client, Action, Query, Code, Wrong, Done string
	Scopes                                   []string
}

func (a *app) show(w http.ResponseWriter, status int, d pageData) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_ = page.Execute(w, d) // the browser is gone: nobody to tell
}

func (a *app) askConsent(w http.ResponseWriter, _ *http.Request, q *oauthhttp.Authorization) {
	a.show(w, http.StatusOK, a.consentPage(q, ""))
}

func (a *app) consentPage(q *oauthhttp.Authorization, wrong string) pageData {
	return pageData{Client: nameOf(q.Client), Action: a.below + "/consent", Query: q.Query, Scopes: a.describe(q.Scopes), Wrong: wrong}
}

func nameOf(c apitoken.Client) string {
	if c.Name != "" {
		return c.Name
	}
	return c.ID
}

func (a *app) describe(list apitoken.Scopes) (out []string) {
	for _, s := range list {
		text := a.scopes[s]
		if text == "" {
			text = string(s)
		}
		out = append(out, text)
	}
	return out
}

// consent ends an authorization. The request is read again with all its checks: the form is in the hands of a browser.
func (a *app) consent(w http.ResponseWriter, r *http.Request) {
	q, err := a.endpoints.Authorization(r.Context(), r.PostFormValue("request"))
	if err != nil {
		a.endpoints.Refuse(w, r, err)
		return
	}
	if r.PostFormValue("decision") != "allow" {
		a.endpoints.Deny(w, r, q, "")
		return
	}
	u, err := a.check(r.Context(), r.PostFormValue("user"), r.PostFormValue("password"))
	if err != nil {
		a.show(w, http.StatusForbidden, a.consentPage(q, "Wrong user or password."))
		return
	}
	a.endpoints.Approve(w, r, q, a.approval(u, q.Scopes))
}

// approval gives a program no more than the user's own roles do.
func (a *app) approval(u user, asked apitoken.Scopes) oauthhttp.Approval {
	var allowed apitoken.Scopes
	roles := a.svc.Roles()
	for _, s := range asked {
		for _, role := range u.Roles {
			if roles[role].Cover(apitoken.Scopes{s}) {
				allowed = append(allowed, s)
				break
			}
		}
	}
	return oauthhttp.Approval{Subject: u.Name, Roles: u.Roles, Scopes: oauthhttp.Only(allowed...)}
}

// devicePage asks for a code, and shows what the device with it asks for: whoever was sent here by somebody else should
// see that it is not his own (RFC 8628 §5.4).
func (a *app) devicePage(w http.ResponseWriter, r *http.Request) {
	code := r.URL.Query().Get("user_code")
	if code == "" {
		a.show(w, http.StatusOK, pageData{Action: a.below + "/device"})
		return
	}
	if d, ok := a.findDevice(w, r, code); ok {
		a.show(w, http.StatusOK, a.deviceData(d, ""))
	}
}

// findDevice finds the device of a code, or tells the user why not.
func (a *app) findDevice(w http.ResponseWriter, r *http.Request, code string) (*oauthhttp.DeviceRequest, bool) {
	d, err := a.endpoints.Device(r.Context(), code)
	var status int
	var wrong string
	switch {
	case err == nil:
		return d, true
	case errors.Is(err, apitoken.ErrNotFound):
		status, wrong = http.StatusNotFound, "No device waits with this code."
	case errors.Is(err, apitoken.ErrLimited):
		status, wrong = http.StatusTooManyRequests, "Too many wrong codes. Try again in a minute."
	default:
		status, wrong = http.StatusServiceUnavailable, "That did not work. Try again."
	}
	a.show(w, status, pageData{Action: a.below + "/device", Wrong: wrong})
	return nil, false
}

func (a *app) deviceData(d *oauthhttp.DeviceRequest, wrong string) pageData {
	return pageData{Client: nameOf(d.Client), Action: a.below + "/device", Code: d.UserCode, Scopes: a.describe(d.Scopes), Wrong: wrong}
}

func (a *app) device(w http.ResponseWriter, r *http.Request) {
	d, ok := a.findDevice(w, r, r.PostFormValue("user_code"))
	if !ok {
		return
	}
	u, err := a.check(r.Context(), r.PostFormValue("user"), r.PostFormValue("password"))
	if err != nil {
		a.show(w, http.StatusForbidden, a.deviceData(d, "Wrong user or password."))
		return
	}
	done := "The device may go on."
	if r.PostFormValue("decision") == "allow" {
		err = a.endpoints.ApproveDevice(r.Context(), d, a.approval(u, d.Scopes))
	} else {
		done, err = "The device was refused.", a.endpoints.DenyDevice(r.Context(), d)
	}
	if err != nil {
		a.show(w, http.StatusConflict, a.deviceData(d, "It could not be done: "+err.Error()+"."))
		return
	}
	a.show(w, http.StatusOK, pageData{Client: nameOf(d.Client), Done: done})
}
