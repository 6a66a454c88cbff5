// Package console is the face of a token service: pages in which users manage their API keys and sessions, and pages for
// those who operate it. A host mounts one handler behind its own login:
//
//	h, err := console.New(svc, console.Options{
//		Base:  "/account",
//		Actor: func(r *http.Request) (console.Actor, error) { return console.ActorOf(apitoken.FromContext(r.Context())), nil },
//	})
//	mux.Handle("/account/", session.Authenticated(h)) // an httpauth.Session
//
// The pages are made on the server and work without scripts; a small script adds copy buttons and a filter. Everything is
// served below Base, under a Content-Security-Policy that allows nothing inline and nothing from elsewhere.
//
// # Who may do what
//
// The host says who is there, at each request, by Options.Actor. A user sees and changes what is their own: ownership and the
// bound on scopes are the service's (APIKeys.For, Target.OwnedBy). The pages for operators exist with Options.Faces only, for
// actors whose Role the host sets.
//
// # What is bounded
//
// A page reads at most a page of records, for at most two seconds; what can't be read by then is shown as not known. Figures
// that need all records are read at most once a minute, whoever looks, and shown with their age.
package console

import (
	"context"
	"crypto/rand"
	"errors"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/operate"
)

// Role is what an actor may do on the pages for operators.
type Role int8

// The roles of operators.
const (
	None     Role = iota // nothing: the pages for operators are refused
	Reader               // look at everything, change nothing
	Operator             // change things too
)

// Faces are the parts of a console that a handler serves.
type Faces uint8

// The faces of a console.
const (
	Self  Faces = 1 << iota // users' own API keys and sessions
	Admin                   // the pages for operators, for actors with a Role
)

// Actor is who asks, by the host's word.
type Actor struct {
	Subject string // whose API keys and sessions these are; empty: nobody is signed in
	Name    string // shown to the actor; empty: Subject
	// Scopes are the most that an API key made here may hold.
	Scopes apitoken.Scopes
	Claims any    // the most that an API key made here may claim, as Request.Claims
	Grant  string // this request's session: marked in the list, and spared by "end all others"
	Admin  Role
	// Confirmed is when the actor last proved who they are, for Options.Fresh.
	Confirmed time.Time

	token apitoken.Token // what ActorOf was given
}

// ActorOf is the actor of a token that the host has validated: its subject, scopes, claims and session. API keys that the actor
// makes descend from the token. Nobody, for the zero Token, an API key, and a client's own token. It sets no Confirmed: a token
// does not say when its user last proved anything.
func ActorOf(t apitoken.Token) Actor {
	if t.IsZero() || t.IsAPIKey() || t.IsClient() {
		return Actor{}
	}
	a := Actor{Subject: t.Subject(), Scopes: t.Scopes(), Grant: t.Grant(), token: t}
	var claims map[string]any
	if t.Claims(&claims) == nil && len(claims) > 0 {
		a.Claims = claims
	}
	return a
}

// Preset is a choice of scopes that the form for a new API key offers.
type Preset struct {
	Name   string
	Scopes apitoken.Scopes
}

// Options configure New. Base and Actor are required.
type Options struct {
	// Base is the path at which the host mounts the handler, such as "/account/api": links and redirects begin with it. "/" is
	// the root.
	Base string
	// Actor says who asks, from the host's own login: see ActorOf for a login by httpauth.Session. An Actor without a Subject
	// and an error that is apitoken.ErrNoToken mean that nobody is signed in. Other errors are answered by their class.
	Actor func(*http.Request) (Actor, error)
	// SignIn is where somebody who is not signed in is sent, with the URL-escaped way back behind it, such as "/login?next=".
	// Empty: they are told that they are not signed in.
	SignIn string
	Faces  Faces // zero: Self alone
	// TrustedOrigins may send forms here beside the console's own origin: scheme, host and port, as for
	// http.CrossOriginProtection.
	TrustedOrigins []string

	Title      string // of the product; empty: "API access"
	Home       string // where the way back to the product leads: a path or URL; empty: there is no link
	Stylesheet string // the host's own style sheet, a path on this origin that is loaded behind the console's; empty: none
	Example    string // a URL of the host's API, for the command shown with a new key; empty: none is shown
	// Texts replaces texts: what Texts returns holds each with itself, in English. A language is a whole map; what is not in it
	// stays as it is.
	Texts map[string]string

	Presets  []Preset
	Expiries []time.Duration // choices for a new key; nil: 30 days, 90 days, 1 year, within Lifetimes.APIKey
	// AllowNoExpiry offers API keys that never expire.
	AllowNoExpiry bool

	// Fresh is how old Actor.Confirmed may be for what ends many things, or an operator's changes. Zero: any age. Else Reauth is
	// where actors confirm who they are, with the way back behind it, such as "/confirm?next=".
	Fresh  time.Duration
	Reauth string

	Ledger Ledger // verifies the audit trail on the page of events; nil: the page does not offer it
}

// Console is the handler. It is safe for concurrent use; close it before its service.
type Console struct {
	svc   *apitoken.Service
	o     Options
	base  string // without a slash at the end
	set   apitoken.Settings
	face  looks
	mux   *http.ServeMux
	sites *http.CrossOriginProtection
	// The operations of operators, shared with the admin API. Only pages of operators that change something take act: see page.act.
	look  operate.Look
	act   operate.Act
	admin *adminState // nil without that face
}

// New returns the console of svc. It refuses, with an apitoken.ConfigError that names the field, what would be open or
// contradicts itself.
func New(svc *apitoken.Service, o Options) (*Console, error) {
	if svc == nil {
		return nil, wrong("svc", "is nil")
	}
	c := &Console{svc: svc, o: o, set: svc.Settings(), sites: http.NewCrossOriginProtection()}
	c.look, c.act = operate.New(svc)
	if err := c.check(); err != nil {
		return nil, err
	}
	if err := c.face.build(c); err != nil {
		return nil, err
	}
	c.mux = http.NewServeMux()
	c.mux.HandleFunc(c.base+"/", c.page(anyone, func(w http.ResponseWriter, r *http.Request, p *page) error { return errNotFound }))
	if c.o.Faces&Self != 0 {
		c.serveKeys()
		c.serveSessions()
	}
	if c.o.Faces&Admin != 0 {
		c.serveAdmin()
	}
	c.mux.HandleFunc("GET "+c.base+"/{$}", c.page(anyone, func(w http.ResponseWriter, r *http.Request, p *page) error {
		to := "/keys"
		if c.o.Faces&Self == 0 {
			to = "/admin"
		}
		http.Redirect(w, r, c.base+to, http.StatusSeeOther)
		return nil
	}))
	return c, nil
}

// Close ends what runs behind the pages.
func (c *Console) Close() error {
	if c.admin != nil {
		c.admin.close()
	}
	return nil
}

func wrong(field, why string) error {
	return &apitoken.ConfigError{Field: field, Err: &apitoken.Error{Code: apitoken.ErrInvalidRequest, Detail: "console: Options." + field + ": " + why}}
}

// check fills defaults and refuses what is dangerous or contradictory.
func (c *Console) check() error {
	o := &c.o
	c.base = strings.TrimSuffix(o.Base, "/")
	if o.Base == "" || o.Base[0] != '/' || c.base != "" && path.Clean(c.base) != c.base || strings.ContainsAny(o.Base, "{}?#%\\ ") {
		return wrong("Base", "is required: a clean path such as /account/api")
	}
	if o.Actor == nil {
		return wrong("Actor", "is required: without it everybody would be let in")
	}
	if o.Faces == 0 {
		o.Faces = Self
	}
	if o.Faces&^(Self|Admin) != 0 {
		return wrong("Faces", "has bits that are no face")
	}
	for field, to := range map[string]string{"SignIn": o.SignIn, "Home": o.Home, "Reauth": o.Reauth, "Example": o.Example} {
		if to != "" && !isLink(to) {
			return wrong(field, "is neither a path nor an http or https URL")
		}
	}
	if o.Stylesheet != "" && !isPath(o.Stylesheet) {
		return wrong("Stylesheet", "is no path on this origin: the Content-Security-Policy would refuse it")
	}
	for _, origin := range o.TrustedOrigins {
		if c.sites.AddTrustedOrigin(origin) != nil {
			return wrong("TrustedOrigins", "an origin is scheme, host and port, such as https://app.example.com")
		}
	}
	if o.Fresh < 0 || (o.Fresh > 0) != (o.Reauth != "") {
		return wrong("Fresh", "is not negative, and comes with Reauth")
	}
	if o.Title == "" {
		o.Title = "API access"
	}
	return c.checkKeyForm()
}

// checkKeyForm refuses choices for a new API key that the service would refuse.
func (c *Console) checkKeyForm() error {
	o, limit := &c.o, c.set.Lifetimes.APIKey
	names := map[string]bool{}
	for _, p := range o.Presets {
		if p.Name == "" || names[p.Name] || len(p.Scopes) == 0 {
			return wrong("Presets", "each has a name of its own, and scopes")
		}
		names[p.Name] = true
		for _, s := range p.Scopes {
			if _, known := c.set.Scopes[s]; c.set.Scopes != nil && !known {
				return wrong("Presets", "a scope is not in Config.Scopes: "+string(s))
			}
		}
	}
	if o.AllowNoExpiry && limit > 0 {
		return wrong("AllowNoExpiry", "contradicts Lifetimes.APIKey")
	}
	if o.Expiries == nil {
		for _, days := range []time.Duration{30, 90, 365} {
			if limit == 0 || days*24*time.Hour <= limit {
				o.Expiries = append(o.Expiries, days*24*time.Hour)
			}
		}
		if len(o.Expiries) == 0 {
			o.Expiries = []time.Duration{limit}
		}
	}
	for _, d := range o.Expiries {
		if d < time.Minute || limit > 0 && d > limit {
			return wrong("Expiries", "each is at least a minute, and within Lifetimes.APIKey")
		}
	}
	o.Expiries = slices.Clone(o.Expiries)
	slices.Sort(o.Expiries)
	return nil
}

// isPath reports a path on the console's own origin.
func isPath(s string) bool {
	return strings.HasPrefix(s, "/") && !strings.HasPrefix(s, "//") && !strings.ContainsAny(s, "\\\r\n\t")
}

func isLink(s string) bool {
	if isPath(s) {
		return true
	}
	u, err := url.Parse(s)
	return err == nil && (u.Scheme == "https" || u.Scheme == "http") && u.Host != ""
}

// Of a request's body, at most: what is pasted on the page of leaked credentials is the longest.
const maxBody = 1<<20 + 64<<10

// ServeHTTP implements http.Handler.
func (c *Console) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "same-origin") // not no-referrer: forms would say that their origin is null
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	if name, ok := strings.CutPrefix(r.URL.Path, c.base+"/static/"); ok {
		c.face.serveStatic(w, r, name)
		return
	}
	h.Set("Cache-Control", "no-store")
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	c.mux.ServeHTTP(w, r)
}

// gate is who may come to a page.
type gate uint8

const (
	anyone   gate = iota // who is signed in
	reader               // who may look at the pages for operators
	operator             // who may change things there
)

// Errors that a page answers by itself.
var (
	errNotFound = &apitoken.Error{Code: apitoken.ErrNotFound}
	errForeign  = errors.New("console: a form of another origin")
	errStale    = errors.New("console: who it is must be confirmed again")
	errBody     = errors.New("console: the form cannot be read")
)

// errRole says which role a page needs.
type errRole Role

func (errRole) Error() string { return "console: another role is needed" }

// page makes the handler of one page.
func (c *Console) page(g gate, f func(http.ResponseWriter, *http.Request, *page) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		p := &page{c: c, path: strings.TrimPrefix(r.URL.Path, c.base), now: c.svc.Adapter().Now()}
		actor, err := c.o.Actor(r)
		if err == nil && actor.Subject == "" {
			err = apitoken.ErrNoToken
		}
		if err != nil {
			c.turnAway(w, r, p, err)
			return
		}
		p.actor = actor
		ctx := apitoken.WithActor(r.Context(), actor.Subject)
		if apitoken.OriginOf(ctx) == (apitoken.Origin{}) {
			ctx = apitoken.WithOrigin(ctx, originOf(r))
		}
		if err := c.admit(r, p, g); err != nil {
			c.fail(w, r, p, err)
			return
		}
		if r.Method == http.MethodPost {
			ctx = context.WithValue(ctx, changeKey{}, true)
		}
		p.look = c.operations(ctx)
		if g == operator {
			p.act = &c.act
		}
		ctx, cancel := context.WithTimeout(ctx, c.patience(r))
		defer cancel()
		if err := f(w, r.WithContext(ctx), p); err != nil {
			c.fail(w, r, p, err)
		}
	}
}

// Of one page's reads, and of one form's writes, at most. An answer within two seconds is promised.
const (
	readTime  = 1500 * time.Millisecond
	writeTime = 1800 * time.Millisecond
)

func (c *Console) patience(r *http.Request) time.Duration {
	if r.Method == http.MethodPost {
		return writeTime
	}
	return readTime
}

// turnAway answers whom the host does not know.
func (c *Console) turnAway(w http.ResponseWriter, r *http.Request, p *page, err error) {
	if !errors.Is(err, apitoken.ErrNoToken) || c.o.SignIn == "" || r.Method == http.MethodPost {
		c.fail(w, r, p, err)
		return
	}
	http.Redirect(w, r, c.o.SignIn+url.QueryEscape(r.URL.RequestURI()), http.StatusSeeOther)
}

// admit says whether the actor may come to a page, before anything is read for it.
func (c *Console) admit(r *http.Request, p *page, g gate) error {
	if err := c.sites.Check(r); err != nil {
		return errForeign
	}
	switch {
	case g == reader && p.actor.Admin < Reader:
		return errRole(Reader)
	case g == operator && p.actor.Admin < Operator:
		return errRole(Operator)
	}
	if r.Method != http.MethodPost {
		return nil
	}
	// The form is read whole here, so that a slow sender takes none of the time that the service has.
	if err := r.ParseForm(); err != nil {
		return errBody
	}
	if r.PostForm == nil {
		r.PostForm = url.Values{}
	}
	if g == operator {
		return c.confirmed(p)
	}
	return nil
}

// confirmed refuses what is red to actors who proved too long ago who they are.
func (c *Console) confirmed(p *page) error {
	if c.o.Fresh > 0 && p.now.Sub(p.actor.Confirmed) > c.o.Fresh {
		return errStale
	}
	return nil
}

// originOf is where a request came from, for hosts that did not say so by httpauth.
func originOf(r *http.Request) apitoken.Origin {
	o := apitoken.Origin{UserAgent: r.UserAgent(), RequestID: r.Header.Get("X-Request-Id")}
	if a, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		o.Address = a.Addr().Unmap()
	}
	return o
}

// changeKey marks the context of a form.
type changeKey struct{}

// ask runs f, which reads or writes by ctx, and does not wait past ctx's end for a store that does not look at it.
func ask[T any](ctx context.Context, c *Console, f func(context.Context) (T, error)) (T, error) {
	return operate.Wait(ctx, c.operations(ctx), f)
}

// operations are those that a page may look by. Forms have turns of their own: reads that hang in a store leave room to revoke.
func (c *Console) operations(ctx context.Context) operate.Look {
	if ctx.Value(changeKey{}) != nil {
		return c.act.Look
	}
	return c.look
}

// newOnce names one filling-in of a form.
func newOnce() string { return rand.Text() }

func isOnce(s string) bool {
	return len(s) == 26 && strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") == ""
}
