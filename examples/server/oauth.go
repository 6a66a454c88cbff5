package main

import (
	"context"
	"encoding/json"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
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
	MayImpersonate bool            `json:"may_impersonate"`
}

// declare makes the service's clients be what the settings say. It writes only what has changed.
func declare(ctx context.Context, svc *apitoken.Service, list []client) error {
	for _, c := range list {
		var secrets []apitoken.Secret
		if c.Secret != "" {
			secrets = []apitoken.Secret{apitoken.NewSecret(c.Secret)}
		}
		err := svc.Clients.Declare(ctx, apitoken.Client{ID: c.ID, Name: c.Name, Public: c.Public, GrantTypes: c.GrantTypes, Scopes: c.Scopes, Audiences: c.Audiences,
			RedirectURIs: c.RedirectURIs, AuthMethod: c.AuthMethod, Keys: c.Keys, TLSName: c.TLSName, BindDPoP: c.BindDPoP, MayImpersonate: c.MayImpersonate}, secrets...)
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
	o.Consent, o.DevicePage = oauthhttp.ConsentFunc(a.askConsent), issuer+"/device"
	for scope := range s.Scopes {
		o.Scopes = append(o.Scopes, scope)
	}
	if a.endpoints, err = oauthhttp.New(a.svc, o); err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	for _, path := range []string{"/authorize", "/par", "/token", "/device_authorization", "/revoke", "/introspect", "/.well-known/jwks.json", "/openapi.json"} {
		mux.Handle(below+path, a.endpoints)
	}
	mux.Handle("/.well-known/oauth-authorization-server"+below, a.endpoints)
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

// page is the demonstration's one form: who are you, and may this program act for you?
var page = template.Must(template.New("page").Parse(`<!doctype html>
<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Sign in</title>
<style>body{font:16px sans-serif;max-width:24em;margin:3em auto}input,button{font:inherit;display:block;width:100%;margin:.5em 0;box-sizing:border-box}</style>
<h1>{{if .Client}}{{.Client}} asks to act for you{{else}}Connect a device{{end}}</h1>
{{if .Scopes}}<p>It may then:</p><ul>{{range .Scopes}}<li>{{.}}</li>{{end}}</ul>{{end}}
{{if .Wrong}}<p role="alert">{{.Wrong}}</p>{{end}}
{{if .Done}}<p>{{.Done}}</p>{{else}}<form method="post" action="{{.Action}}">
{{if .Query}}<input type="hidden" name="request" value="{{.Query}}">{{else}}<label>Code on the device<input name="user_code" value="{{.Code}}" autocomplete="off" required></label>{{end}}
<label>User<input name="user" autocomplete="username"></label>
<label>Password<input name="password" type="password" autocomplete="current-password"></label>
<button name="decision" value="allow">Allow</button><button name="decision" value="deny">Deny</button></form>{{end}}
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
	x := oauthhttp.Approval{Subject: u.Name, Roles: u.Roles}
	if len(asked) == 0 {
		return x
	}
	roles := a.svc.Roles()
	x.Scopes = apitoken.Scopes{}
	for _, s := range asked {
		for _, role := range u.Roles {
			if roles[role].Cover(apitoken.Scopes{s}) {
				x.Scopes = append(x.Scopes, s)
				break
			}
		}
	}
	return x
}

func (a *app) devicePage(w http.ResponseWriter, r *http.Request) {
	a.show(w, http.StatusOK, pageData{Action: a.below + "/device", Code: r.URL.Query().Get("user_code")})
}

func (a *app) device(w http.ResponseWriter, r *http.Request) {
	code := r.PostFormValue("user_code")
	again := pageData{Action: a.below + "/device", Code: code, Wrong: "Wrong user or password."}
	u, err := a.check(r.Context(), r.PostFormValue("user"), r.PostFormValue("password"))
	if err != nil { // before the code is looked at: a stranger can't try codes
		a.show(w, http.StatusForbidden, again)
		return
	}
	d, err := a.endpoints.Device(r.Context(), code)
	if err != nil {
		again.Wrong = "No device waits with this code."
		a.show(w, http.StatusNotFound, again)
		return
	}
	done := "The device may go on."
	if r.PostFormValue("decision") == "allow" {
		err = a.endpoints.ApproveDevice(r.Context(), d, a.approval(u, d.Scopes))
	} else {
		done, err = "The device was refused.", a.endpoints.DenyDevice(r.Context(), d)
	}
	if err != nil {
		again.Wrong = "It could not be done: " + err.Error() + "."
		a.show(w, http.StatusConflict, again)
		return
	}
	a.show(w, http.StatusOK, pageData{Client: nameOf(d.Client), Done: done})
}
