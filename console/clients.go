package console

import (
	"errors"
	"html/template"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/internal/granttype"
)

type clientRow struct {
	apitoken.Client
	Proof template.HTML
	State template.HTML
	Class string
	Text  string
}

type clientsPage struct {
	*page
	Rows []clientRow
	pager
}

var (
	sayClients    = say("Clients")
	sayPublic     = say("Public")
	saySecret     = say("Client secret")
	sayDisabled   = say("Disabled")
	sayRegister   = say("Register a client")
	sayNoRegister = say("The client was not registered.")
)

func (p *page) client(x apitoken.Client) clientRow {
	row := clientRow{Client: x, State: p.text(sayActive), Class: "ok", Text: strings.ToLower(x.Name + " " + x.ID)}
	if x.Disabled {
		row.State, row.Class = p.text(sayDisabled), "bad"
	}
	switch {
	case x.Public:
		row.Proof = p.text(sayPublic)
	case x.AuthMethod == "" || strings.HasPrefix(x.AuthMethod, "client_secret"):
		row.Proof = p.text(saySecret)
	default:
		row.Proof = template.HTML(inHTML(x.AuthMethod))
	}
	return row
}

func (c *Console) clients(w http.ResponseWriter, r *http.Request, p *page) error {
	p.title, p.nav = p.text(sayClients), "/admin/clients"
	p.setFlash(r)
	after := r.URL.Query().Get("after")
	list, err := p.look.Clients(r.Context(), after, pageSize)
	if err != nil {
		return err
	}
	v := &clientsPage{page: p}
	if list.Next != "" {
		v.Next = c.url("/admin/clients", query("after", list.Next))
	}
	if after != "" {
		v.First = c.url("/admin/clients")
	}
	for _, x := range list.Items {
		v.Rows = append(v.Rows, p.client(x))
	}
	return p.show(w, http.StatusOK, "clients", v)
}

type clientPage struct {
	*page
	Client    clientRow
	Once      string
	HasSecret bool
	Secrets   []apitoken.ClientSecret
	NoSecrets bool // they are not known now
	Events    []eventRow
	HasEvents bool
	Errors    []fieldError
	Failed    template.HTML
}

func (c *Console) client(w http.ResponseWriter, r *http.Request, p *page) error {
	p.setFlash(r)
	return c.showClient(w, r, p, http.StatusOK, nil, "")
}

func (c *Console) showClient(w http.ResponseWriter, r *http.Request, p *page, status int, errs []fieldError, failed template.HTML) error {
	id := r.PathValue("id")
	x, err := p.look.Client(r.Context(), id)
	if err != nil {
		return err
	}
	p.title, p.nav = p.text("%s", cmpOr(x.Name, x.ID)), "/admin/clients"
	v := &clientPage{page: p, Client: p.client(x), Once: newOnce(), Errors: errs, Failed: failed}
	v.HasSecret = !x.Public && (x.AuthMethod == "" || strings.HasPrefix(x.AuthMethod, "client_secret"))
	if v.HasSecret {
		v.Secrets, err = p.look.Secrets(r.Context(), id)
		v.NoSecrets = err != nil
	}
	list, known := c.newest(r.Context(), 10, nil, apitoken.EventQuery{Client: id})
	v.Events, v.HasEvents = p.eventRows(list), known
	return p.show(w, status, "client", v)
}

func cmpOr(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

type clientForm struct {
	*page
	Once   string
	In     url.Values
	Known  []string // scopes
	Auth   string
	Grants []grantChoice
	Errors []fieldError
	Failed template.HTML
}

type grantChoice struct {
	Value, Short string
	Checked      bool
}

// On the form for a client, grant types go by the last part of their names.
var grantTypes = []grantChoice{
	{granttype.ClientCredentials, "client_credentials", false},
	{granttype.AuthorizationCode, "authorization_code", false},
	{granttype.RefreshToken, "refresh_token", false},
	{granttype.DeviceCode, "device_code", false},
	{granttype.TokenExchange, "token-exchange", false},
}

func (c *Console) clientForm(p *page, in url.Values) *clientForm {
	p.title, p.nav = p.text(sayRegister), "/admin/clients"
	f := &clientForm{page: p, Once: in.Get("once"), In: in, Auth: cmpOr(in.Get("auth"), "private_key_jwt")}
	if !isOnce(f.Once) {
		f.Once = newOnce()
	}
	for s := range c.set.Scopes {
		f.Known = append(f.Known, string(s))
	}
	slices.Sort(f.Known)
	f.Known = f.Known[:min(len(f.Known), 20)]
	f.Grants = slices.Clone(grantTypes)
	for i := range f.Grants {
		f.Grants[i].Checked = slices.Contains(in["grant"], f.Grants[i].Short)
	}
	return f
}

// Has reports a ticked box of the form as it came.
func (f *clientForm) Has(name, value string) bool { return slices.Contains(f.In[name], value) }

// Got is what came in a field.
func (f *clientForm) Got(name string) string { return f.In.Get(name) }

func (c *Console) newClient(w http.ResponseWriter, r *http.Request, p *page) error {
	if !p.MayChange() {
		return errRole(Operator)
	}
	return p.show(w, http.StatusOK, "client-new", c.clientForm(p, url.Values{"grant": {"client_credentials"}}))
}

var (
	sayErrClientName = say("Give the client a name of at most 100 bytes")
	sayErrGrants     = say("Choose at least one grant type")
	sayErrScopeText  = say("The scopes cannot be read, or are not known here")
	sayErrKeys       = say("Paste the client’s public JWK set")
	sayErrAny        = say("The service did not take it: the settings contradict each other, or the ID is taken")
	sayClientReady   = say("“%s” is registered")
	saySecretOf      = say("Rotate the secret of %s")
	sayNewSecret     = say("A new secret of “%s”")
	sayRegisterOf    = say("Register “%s”")
	sayOlder         = say("The older secret works until")
)

// request reads the form for a client.
func (f *clientForm) request() (x apitoken.Client) {
	no := func(field, text string) { f.Errors = append(f.Errors, fieldError{field, f.text(text)}) }
	x = apitoken.Client{ID: strings.TrimSpace(f.Got("id")), Name: strings.TrimSpace(f.Got("name")), RedirectURIs: strings.Fields(f.Got("redirect")),
		BindDPoP: f.Has("bind", "dpop"), BindCertificate: f.Has("bind", "cert")}
	if x.Name == "" || len(x.Name) > 100 {
		no("n", sayErrClientName)
	}
	switch f.Auth {
	case "public":
		x.Public = true
	case "private_key_jwt", "self_signed_tls_client_auth":
		x.AuthMethod, x.Keys = f.Auth, []byte(strings.TrimSpace(f.Got("jwks")))
		if len(x.Keys) == 0 {
			no("jw", sayErrKeys)
		}
	case "tls_client_auth":
		x.AuthMethod, x.TLSName = f.Auth, strings.TrimSpace(f.Got("tls"))
	}
	for _, g := range f.Grants {
		if g.Checked {
			x.GrantTypes = append(x.GrantTypes, g.Value)
		}
	}
	if len(x.GrantTypes) == 0 {
		no("g-client_credentials", sayErrGrants)
	}
	var err error
	if x.Scopes, err = apitoken.ParseScopes(strings.Join(strings.Fields(f.Got("scopes")), " ")); err != nil {
		no("sc", sayErrScopeText)
	}
	return x
}

func (c *Console) createClient(w http.ResponseWriter, r *http.Request, p *page) error {
	f := c.clientForm(p, r.PostForm)
	x := f.request()
	if !isOnce(r.PostForm.Get("once")) {
		return errBody
	}
	var secret apitoken.Secret
	if len(f.Errors) == 0 {
		made, err := p.act.CreateClient(r.Context(), "console:client:"+r.PostForm.Get("once"), x)
		switch {
		case errors.Is(err, apitoken.ErrInvalidScope):
			f.Errors = append(f.Errors, fieldError{"sc", p.text(sayErrScopeText)})
		case errors.Is(err, apitoken.ErrInvalidRequest):
			f.Errors = append(f.Errors, fieldError{"i", p.text(sayErrAny)})
		case err != nil:
			return orUnwritten(err, unwritten{What: p.text(sayRegisterOf, x.Name)})
		case made.Again:
			http.Redirect(w, r, c.url("/admin/clients", "?done=already"), http.StatusSeeOther)
			return nil
		}
		x, secret = made.It, made.Secret
	}
	if len(f.Errors) > 0 {
		f.Failed = p.text(sayNoRegister)
		return p.show(w, http.StatusUnprocessableEntity, "client-new", f)
	}
	if secret.IsZero() {
		http.Redirect(w, r, c.url("/admin/clients", x.ID), http.StatusSeeOther)
		return nil
	}
	p.title = p.text(sayClientReady, x.Name)
	return p.show(w, http.StatusOK, "shown-once", made{page: p, Up: c.url("/admin/clients"), UpText: p.text(sayClients), Heading: p.title, Secret: secret.Reveal(),
		Facts: [][2]template.HTML{{p.text(sayID), "<code>" + template.HTML(inHTML(x.ID)) + "</code>"}}, Back: c.url("/admin/clients", x.ID), Again: p.text(sayNoSecondClient)})
}

var (
	sayNoSecondClient = say("Loading this page again registers no second client.")
	sayNoThird        = say("Loading this page again makes no further secret.")
)

func (c *Console) rotateSecret(w http.ResponseWriter, r *http.Request, p *page) error {
	overlap, ok := overlaps[r.PostForm.Get("overlap")]
	once, id := r.PostForm.Get("once"), r.PathValue("id")
	if !ok || !isOnce(once) {
		return errBody
	}
	m, err := p.act.RotateClient(r.Context(), "console:secret:"+id+":"+once, id, overlap)
	switch {
	case err != nil:
		return orUnwritten(err, unwritten{What: p.text(saySecretOf, id)})
	case m.Again:
		http.Redirect(w, r, c.url("/admin/clients", id, "?done=already"), http.StatusSeeOther)
		return nil
	}
	p.title, p.nav = p.text(sayNewSecret, cmpOr(m.It.Name, id)), "/admin/clients"
	facts := [][2]template.HTML{{p.text(sayID), "<code>" + template.HTML(inHTML(id)) + "</code>"}}
	if overlap > 0 {
		facts = append(facts, [2]template.HTML{p.text(sayOlder), p.Stamp(p.now.Add(overlap))})
	}
	return p.show(w, http.StatusOK, "shown-once", made{page: p, Up: c.url("/admin/clients"), UpText: p.text(sayClients), Heading: p.title, Secret: m.Secret.Reveal(),
		Facts: facts, Back: c.url("/admin/clients", id), Again: p.text(sayNoThird)})
}

func (c *Console) revokeClient(w http.ResponseWriter, r *http.Request, p *page) error {
	id := r.PathValue("id")
	reason, errs := p.red(r, id)
	if len(errs) > 0 {
		return c.showClient(w, r, p, http.StatusUnprocessableEntity, errs, p.text(sayNotRevoked))
	}
	return c.revoke(w, r, p, apitoken.ByClient(id), reason, p.text(sayRevokeHeld, id), c.url("/admin/clients", id, "?done=held"))
}

var (
	sayDisableIt  = say("Disable %s")
	sayEnableIt   = say("Enable %s")
	sayChangeIt   = say("Change %s")
	sayNotChanged = say("Nothing was changed.")
)

func (c *Console) disableClient(w http.ResponseWriter, r *http.Request, p *page) error {
	id := r.PathValue("id")
	_, errs := p.red(r, id)
	if len(errs) > 0 {
		return c.showClient(w, r, p, http.StatusUnprocessableEntity, errs, p.text(sayNotChanged))
	}
	return c.updateClient(w, r, p, "disabled", p.text(sayDisableIt, id), func(x *apitoken.Client) error { x.Disabled = true; return nil })
}

func (c *Console) enableClient(w http.ResponseWriter, r *http.Request, p *page) error {
	return c.updateClient(w, r, p, "enabled", p.text(sayEnableIt, r.PathValue("id")), func(x *apitoken.Client) error { x.Disabled = false; return nil })
}

func (c *Console) changeClient(w http.ResponseWriter, r *http.Request, p *page) error {
	name, uris := strings.TrimSpace(r.PostForm.Get("name")), strings.Fields(r.PostForm.Get("redirect"))
	scopes, err := apitoken.ParseScopes(strings.Join(strings.Fields(r.PostForm.Get("scopes")), " "))
	if err != nil || name == "" {
		field := fieldError{"csc", p.text(sayErrScopeText)}
		if name == "" {
			field = fieldError{"cn", p.text(sayErrClientName)}
		}
		return c.showClient(w, r, p, http.StatusUnprocessableEntity, []fieldError{field}, p.text(sayNotChanged))
	}
	return c.updateClient(w, r, p, "changed", p.text(sayChangeIt, r.PathValue("id")), func(x *apitoken.Client) error {
		x.Name, x.Scopes, x.RedirectURIs = name, scopes, uris
		return nil
	})
}

func (c *Console) updateClient(w http.ResponseWriter, r *http.Request, p *page, done string, what template.HTML, f func(*apitoken.Client) error) error {
	id := r.PathValue("id")
	_, err := p.act.UpdateClient(r.Context(), id, f)
	if err != nil {
		return orUnwritten(err, unwritten{What: what})
	}
	http.Redirect(w, r, c.url("/admin/clients", id, "?done="+done), http.StatusSeeOther)
	return nil
}
