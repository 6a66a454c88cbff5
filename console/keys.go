package console

import (
	"context"
	"html/template"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/operate"
)

// pageSize is how many rows a page shows, at most.
const pageSize = 50

func (c *Console) serveKeys() {
	c.mux.HandleFunc("GET "+c.base+"/keys", c.page(anyone, c.listKeys))
	c.mux.HandleFunc("GET "+c.base+"/keys/new", c.page(anyone, c.newKey))
	c.mux.HandleFunc("POST "+c.base+"/keys/new", c.page(anyone, c.presetKey))
	c.mux.HandleFunc("POST "+c.base+"/keys", c.page(anyone, c.createKey))
	c.mux.HandleFunc("GET "+c.base+"/keys/{id}", c.page(anyone, c.showKey))
	c.mux.HandleFunc("POST "+c.base+"/keys/{id}/rotate", c.page(anyone, c.rotateKey))
	c.mux.HandleFunc("POST "+c.base+"/keys/{id}/rename", c.page(anyone, c.renameKey))
	c.mux.HandleFunc("POST "+c.base+"/keys/{id}/narrow", c.page(anyone, c.narrowKey))
	c.mux.HandleFunc("POST "+c.base+"/keys/{id}/revoke", c.page(anyone, c.revokeKey))
}

// keysOf are the keys as the actor may see and change them.
func (c *Console) keysOf(a *Actor) (*apitoken.APIKeys, error) {
	if !a.token.IsZero() && a.token.Subject() == a.Subject && a.token.Grant() == a.Grant {
		return c.svc.APIKeys.For(a.token), nil
	}
	now, until := c.svc.Adapter().Now(), c.svc.Adapter().Now()
	if wall := time.Now(); wall.After(until) { // by which a token that no validator made is judged
		until = wall
	}
	t, err := apitoken.NewToken(apitoken.TokenSpec{Issuer: c.set.Issuer, Subject: a.Subject, Client: c.set.FirstParty,
		Grant: a.Grant, Scopes: a.Scopes, Claims: a.Claims, IssuedAt: now, ExpiresAt: until.Add(time.Minute)})
	if err != nil {
		return nil, err
	}
	return c.svc.APIKeys.For(t), nil
}

// keyRow is an API key as a list shows it.
type keyRow struct {
	apitoken.APIKey
	State template.HTML
	Class string
	Ended bool
	Text  string // that the filter looks at
}

var (
	sayActive   = say("Active")
	sayRevoked  = say("Revoked")
	sayExpired  = say("Expired")
	sayRotated  = say("Rotated")
	sayRotating = say("Rotated, still works")
	saySoon     = say("Expires soon")
	sayNoExpiry = say("No expiry")
	sayUsedUp   = say("Used up")
	sayUnused   = say("Unused %s")
	sayEndsIn   = say("in %s, rotated")
)

const (
	soon   = 7 * 24 * time.Hour
	unused = 90 * 24 * time.Hour
)

// row says what state a key is in.
func (p *page) row(k apitoken.APIKey) keyRow {
	r := keyRow{APIKey: k, Text: strings.ToLower(k.Name + " " + k.Start + " " + k.Scopes.String())}
	seen := k.LastUsed
	if seen.IsZero() {
		seen = k.Created
	}
	switch {
	case k.Revoked:
		r.State, r.Class, r.Ended = p.text(sayRevoked), "bad", true
	case !k.Replaced.IsZero() && !p.now.Before(k.Replaced):
		r.State, r.Ended = p.text(sayRotated), true
	case !k.Expires.IsZero() && !p.now.Before(k.Expires):
		r.State, r.Ended = p.text(sayExpired), true
	case k.Disabled:
		r.State, r.Class = p.text(sayDisabled), "bad"
	case k.State(p.now) == "exhausted":
		r.State, r.Class = p.text(sayUsedUp), "bad"
	case !k.Replaced.IsZero():
		r.State, r.Class = p.text(sayRotating), "warn"
	case !k.Expires.IsZero() && k.Expires.Sub(p.now) < soon:
		r.State, r.Class = p.text(saySoon), "warn"
	case k.Expires.IsZero():
		r.State, r.Class = p.text(sayNoExpiry), "warn"
	case p.now.Sub(seen) > unused:
		r.State, r.Class = p.text(sayUnused, p.Length(p.now.Sub(seen))), "warn"
	default:
		r.State, r.Class = p.text(sayActive), "ok"
	}
	return r
}

// Until is when a key stops working.
func (p *page) Until(k keyRow) template.HTML {
	if !k.Replaced.IsZero() && p.now.Before(k.Replaced) && !k.Revoked {
		return inTime(k.Replaced, p.text(sayEndsIn, p.Length(k.Replaced.Sub(p.now))))
	}
	return p.Ends(k.Expires)
}

type pager struct{ First, Next string }

type keysPage struct {
	*page
	Live, Ended []keyRow
	Limit       int // how many keys one may have; zero: no limit, or not all are on this page
	pager
}

// flashes are what a redirect may say: a code in the URL, never a text.
var flashes = map[string]string{
	"renamed":      say("The key has its new name."),
	"narrowed":     say("The key no longer has those scopes."),
	"revoked":      say("The key is revoked: it is refused from now on."),
	"already":      say("That form was sent before, and done. A secret is shown once only: if you did not store it, rotate the key."),
	"ended":        say("The session has ended."),
	"others":       say("All other sessions have ended."),
	"all":          say("All other sessions have ended, and your API keys are revoked."),
	"held":         say("What was chosen is revoked: here from now on, elsewhere within %s."),
	"changed":      say("The settings are changed."),
	"disabled":     say("The client is disabled, and all it held is revoked."),
	"enabled":      say("The client is enabled again."),
	"key-disabled": say("The key is refused until it is enabled again: here from now on, elsewhere within %s."),
	"key-enabled":  say("The key works again."),
	"turned":       say("A new key is published, and signs as soon as every validator can know it."),
	"gone":         say("The key is withdrawn. What it signed is refused: here from now on, elsewhere within %s."),
	"rewrap":       say("The root secrets are sealed again."),
	"secrets":      say("A new root secret is made."),
}

func (p *page) setFlash(r *http.Request) {
	code := r.URL.Query().Get("done")
	text, ok := flashes[code]
	switch {
	case !ok:
	case strings.Contains(text, "%s"):
		p.flash = p.text(text, p.Bound())
	default:
		p.flash = p.text(text)
	}
}

var sayKeys = say("API keys")

func (c *Console) listKeys(w http.ResponseWriter, r *http.Request, p *page) error {
	p.title, p.nav = p.text(sayKeys), "/keys"
	p.setFlash(r)
	keys, err := c.keysOf(&p.actor)
	if err != nil {
		return err
	}
	after := r.URL.Query().Get("after")
	list, err := ask(r.Context(), c, func(ctx context.Context) (operate.Page[apitoken.APIKey], error) {
		return operate.Collect(keys.List(ctx, apitoken.Page{After: after}), pageSize, func(k apitoken.APIKey) string { return k.ID })
	})
	if err != nil {
		return err
	}
	v := keysPage{page: p}
	if list.Next != "" {
		v.Next = c.url("/keys", query("after", list.Next))
	}
	if after != "" {
		v.First = c.url("/keys")
	}
	if v.pager == (pager{}) {
		v.Limit = c.set.Limits.APIKeysPerSubject
	}
	for _, k := range list.Items {
		if row := p.row(k); row.Ended {
			v.Ended = append(v.Ended, row)
		} else {
			v.Live = append(v.Live, row)
		}
	}
	if len(list.Items) == 0 && after == "" {
		return p.show(w, http.StatusOK, "keys-empty", v)
	}
	return p.show(w, http.StatusOK, "keys", v)
}

// scopeChoice is one box of the form for a new key.
type scopeChoice struct {
	Scope, About string
	ID           string
	Checked, Off bool
	Below        []*scopeChoice
}

type fieldError struct {
	Field string
	Text  template.HTML
}

type choice struct {
	Value   string
	Text    template.HTML
	Hint    template.HTML
	Checked bool
}

type keyForm struct {
	*page
	Once         string
	Name         string
	Tree         []*scopeChoice
	Free         string // scopes as text, where the service knows no list
	Listed       bool
	Presets      []Preset
	Expiries     []choice
	Longest      time.Duration
	Date         string
	MinDate      string
	MaxDate      string
	Uses, Rate   string
	Errors       []fieldError
	Failed       template.HTML
	NameErr      template.HTML
	ScopeErr     template.HTML
	DateErr      template.HTML
	UsesErr      template.HTML
	RateErr      template.HTML
	ScopeErrorID string
}

var (
	sayCreate    = say("Create a key")
	sayNoCreate  = say("The key was not created.")
	sayOnDate    = say("On a date")
	saySetBelow  = say("set it below")
	sayNoEnd     = say("for ever, until it is revoked")
	sayErrName   = say("Give the key a name of at most 100 bytes")
	sayErrScopes = say("Choose at least one scope. A key without any can call nothing")
	sayErrHeld   = say("Choose only scopes that you hold yourself")
	sayErrDate   = say("Choose a date within the bounds")
	sayErrUses   = say("A whole number above zero, or nothing")
)

// form is the form for a new key, filled in with what came.
func (c *Console) form(p *page, in url.Values) *keyForm {
	f := &keyForm{page: p, Once: in.Get("once"), Name: in.Get("name"), Date: in.Get("date"), Uses: in.Get("max_uses"), Rate: in.Get("rate"),
		Listed: c.set.Scopes != nil, Presets: c.o.Presets, Longest: c.set.Lifetimes.APIKey, Free: strings.Join(in["scope"], " ")}
	p.title, p.nav = p.text(sayCreate), "/keys"
	if !isOnce(f.Once) {
		f.Once = newOnce()
	}
	f.Tree = c.scopeTree(p.actor.Scopes, in["scope"])
	f.ScopeErrorID = "scopes"
	f.MinDate = p.now.UTC().Add(24 * time.Hour).Format(time.DateOnly)
	if f.Longest > 0 {
		f.MaxDate = p.now.UTC().Add(f.Longest).Format(time.DateOnly)
	}
	chosen := in.Get("expires")
	for _, d := range c.o.Expiries {
		v := d.String()
		f.Expiries = append(f.Expiries, choice{Value: v, Text: p.Length(d), Hint: p.day(p.now.Add(d)), Checked: v == chosen})
	}
	f.Expiries = append(f.Expiries, choice{Value: "date", Text: p.text(sayOnDate), Hint: p.text(saySetBelow), Checked: chosen == "date"})
	if c.o.AllowNoExpiry {
		f.Expiries = append(f.Expiries, choice{Value: "never", Text: p.text(sayNever), Hint: p.text(sayNoEnd), Checked: chosen == "never"})
	}
	if !slices.ContainsFunc(f.Expiries, func(x choice) bool { return x.Checked }) {
		f.Expiries[min(1, len(c.o.Expiries)-1)].Checked = true
	}
	return f
}

// scopeTree arranges the known scopes below those that cover them.
func (c *Console) scopeTree(held apitoken.Scopes, checked []string) []*scopeChoice {
	var top []*scopeChoice
	byName := map[apitoken.Scope]*scopeChoice{}
	for _, s := range slices.Sorted(maps.Keys(c.set.Scopes)) {
		x := &scopeChoice{Scope: string(s), About: c.set.Scopes[s], ID: "s-" + strconv.Itoa(len(byName)),
			Checked: slices.Contains(checked, string(s)), Off: !held.Cover(apitoken.Scopes{s})}
		byName[s] = x
		parent := byName[apitoken.Scope(upTo1(string(s)))]
		if parent == nil {
			top = append(top, x)
			continue
		}
		parent.Below = append(parent.Below, x)
	}
	return top
}

// upTo1 is a scope's first part, "orders" of "orders:read:own"; empty where it has one part.
func upTo1(s string) string {
	first, _, below := strings.Cut(s, ":")
	if !below {
		return ""
	}
	return first
}

func (c *Console) newKey(w http.ResponseWriter, r *http.Request, p *page) error {
	return p.show(w, http.StatusOK, "key-new", c.form(p, url.Values{}))
}

// presetKey is a button of the form that ticks a preset's boxes: it works without a script, and makes nothing.
func (c *Console) presetKey(w http.ResponseWriter, r *http.Request, p *page) error {
	in := r.PostForm
	in.Del("scope")
	if i, err := strconv.Atoi(in.Get("preset")); err == nil && i >= 0 && i < len(c.o.Presets) {
		for _, s := range c.o.Presets[i].Scopes {
			if p.actor.Scopes.Cover(apitoken.Scopes{s}) {
				in.Add("scope", string(s))
			}
		}
	}
	return p.show(w, http.StatusOK, "key-new", c.form(p, in))
}

// request reads the form, and says what is wrong with it.
func (f *keyForm) request(in url.Values) (q apitoken.APIKeyRequest) {
	no := func(at *template.HTML, field, text string) {
		*at = f.text(text)
		f.Errors = append(f.Errors, fieldError{field, *at})
	}
	q.Name = strings.TrimSpace(f.Name)
	if q.Name == "" || len(q.Name) > 100 {
		no(&f.NameErr, "name", sayErrName)
	}
	for _, s := range strings.Fields(strings.Join(in["scope"], " ")) {
		q.Scopes = append(q.Scopes, apitoken.Scope(s))
	}
	slices.Sort(q.Scopes)
	q.Scopes = slices.Compact(q.Scopes)
	switch _, err := apitoken.ParseScopes(q.Scopes.String()); {
	case len(q.Scopes) == 0:
		no(&f.ScopeErr, f.ScopeErrorID, sayErrScopes)
	case err != nil || !f.actor.Scopes.Cover(q.Scopes):
		no(&f.ScopeErr, f.ScopeErrorID, sayErrHeld)
	}
	switch chosen := in.Get("expires"); chosen {
	case "never":
		if !f.c.o.AllowNoExpiry {
			no(&f.DateErr, "date", sayErrDate)
		}
	case "date":
		day, err := time.Parse(time.DateOnly, f.Date)
		if q.Expires = day; err != nil || !day.After(f.now) || f.Longest > 0 && day.After(f.now.Add(f.Longest)) {
			no(&f.DateErr, "date", sayErrDate)
		}
	default:
		d, err := time.ParseDuration(chosen)
		if q.Expires = f.now.Add(d); err != nil || !slices.Contains(f.c.o.Expiries, d) {
			no(&f.DateErr, "date", sayErrDate)
		}
	}
	if f.Uses != "" {
		n, err := strconv.ParseUint(f.Uses, 10, 53)
		if q.MaxUses = n; err != nil || n == 0 {
			no(&f.UsesErr, "uses", sayErrUses)
		}
	}
	if f.Rate != "" {
		n, err := strconv.ParseUint(f.Rate, 10, 24)
		if err != nil || n == 0 {
			no(&f.RateErr, "rate", sayErrUses)
		} else {
			q.Rate = apitoken.Rate{Burst: int(n), Per: time.Minute / time.Duration(n)}
		}
	}
	return q
}

var (
	sayCreateKey  = say("Create “%s”")
	sayReady      = say("“%s” is ready")
	sayScopes     = say("Scopes")
	sayExpires    = say("Expires")
	sayID         = say("ID")
	sayNoSecond   = say("Loading this page again makes no second key.")
	sayRotateKey  = say("Rotate “%s”")
	sayWasRotated = say("“%s” was rotated")
	sayNoTwice    = say("Loading this page again does not rotate twice.")
	sayOldWorks   = say("The old key works until")
	sayOldStopped = say("The old key")
	sayRefusedNow = say("is refused from now on")
	sayRenameKey  = say("Rename “%s”")
	sayRevokeKey  = say("Revoke “%s”")
	sayNarrowKey  = say("Take scopes away from %s")
)

// made is what a page shows once.
type made struct {
	*page
	Up      string
	UpText  template.HTML
	Heading template.HTML
	Secret  string
	Example string
	Facts   [][2]template.HTML
	Back    string
	Again   template.HTML
}

func (c *Console) createKey(w http.ResponseWriter, r *http.Request, p *page) error {
	f := c.form(p, r.PostForm)
	q := f.request(r.PostForm)
	if len(f.Errors) > 0 {
		f.Failed = p.text(sayNoCreate)
		return p.show(w, http.StatusUnprocessableEntity, "key-new", f)
	}
	if !isOnce(r.PostForm.Get("once")) {
		return errBody
	}
	q.Claims = p.actor.Claims
	keys, err := c.keysOf(&p.actor)
	if err != nil {
		return err
	}
	x, err := c.makeOnce(r.Context(), p, "create", r.PostForm.Get("once"), keys, func(ctx context.Context) (apitoken.APIKey, apitoken.Secret, error) {
		return keys.Create(ctx, q)
	})
	switch {
	case err != nil:
		return orUnwritten(err, unwritten{What: p.text(sayCreateKey, q.Name)})
	case x.secret.IsZero():
		http.Redirect(w, r, c.url("/keys", "?done=already"), http.StatusSeeOther)
		return nil
	}
	p.title, p.nav = p.text(sayReady, x.key.Name), "/keys"
	return p.show(w, http.StatusOK, "shown-once", made{page: p, Up: c.url("/keys"), UpText: p.text(sayKeys), Heading: p.title, Secret: x.secret.Reveal(),
		Example: c.o.Example, Facts: p.facts(x.key), Back: c.url("/keys"), Again: p.text(sayNoSecond)})
}

func (p *page) facts(k apitoken.APIKey) [][2]template.HTML {
	scopes := template.HTML(`<ul class="scopes">`)
	for _, s := range p.Sorted(k.Scopes) {
		scopes += "<li>" + template.HTML(inHTML(s)) + "</li>"
	}
	return [][2]template.HTML{{p.text(sayScopes), scopes + "</ul>"}, {p.text(sayExpires), p.Ends(k.Expires)}, {p.text(sayID), "<code>" + template.HTML(inHTML(k.ID)) + "</code>"}}
}

// newSecret is what was made once; without a secret: it was made before.
type newSecret struct {
	key    apitoken.APIKey
	secret apitoken.Secret
}

// makeOnce makes or rotates a key once for one filled-in form, however often that is sent. An attempt whose answer was lost may
// have made a key whose secret nobody has: the next attempt finds it by its event and replaces it, so that one key lives.
func (c *Console) makeOnce(ctx context.Context, p *page, what, once string, keys *apitoken.APIKeys, f func(context.Context) (apitoken.APIKey, apitoken.Secret, error)) (newSecret, error) {
	mark := "once-" + once
	o := apitoken.OriginOf(ctx)
	o.RequestID = mark
	ctx = apitoken.WithOrigin(ctx, o)
	return ask(ctx, c, func(ctx context.Context) (x newSecret, err error) {
		did, err := c.svc.Adapter().DoOnce(ctx, "console:"+what+":"+p.actor.Subject+":"+once, p.now.Add(24*time.Hour), func(ctx context.Context) error {
			lost, err := c.lostKey(ctx, p.actor.Subject, mark)
			switch {
			case err != nil:
				return err
			case lost != "":
				x.key, x.secret, err = keys.Rotate(ctx, lost, 0)
			default:
				x.key, x.secret, err = f(ctx)
			}
			return err
		})
		if err != nil || !did {
			// A secret is shown only where the store remembers that it was made.
			return newSecret{}, err
		}
		return x, nil
	})
}

// lostKey finds the newest key that an earlier attempt of the same form made; empty: there is none.
func (c *Console) lostKey(ctx context.Context, subject, mark string) (string, error) {
	list, _, err := c.svc.EventPage(ctx, apitoken.EventQuery{Subject: subject, Type: event.APIKeyChanged}, "", 100)
	if err != nil {
		return "", err
	}
	for _, e := range list {
		if e.OK && e.RequestID == mark {
			return e.TokenID, nil
		}
	}
	return "", nil
}

type historyRow struct {
	What  template.HTML
	Why   string
	Time  time.Time
	By    string
	From  string
	Count int
	Alert bool
	Own   bool
}

type keyPage struct {
	*page
	Key       keyRow
	Once      string
	Usage     *apitoken.Usage // nil: not known
	Others    []string
	Unasked   []string // scopes that nothing ever asked for
	MayNarrow bool     // something is left without them
	UnaskedIn template.HTML
	History   []historyRow
	NoHistory bool
	PerMinute int
	Passed    int64 // seconds of the overlap
	Overlap   int64
}

func (c *Console) showKey(w http.ResponseWriter, r *http.Request, p *page) error {
	p.nav = "/keys"
	p.setFlash(r)
	keys, err := c.keysOf(&p.actor)
	if err != nil {
		return err
	}
	id := r.PathValue("id")
	k, err := ask(r.Context(), c, func(ctx context.Context) (apitoken.APIKey, error) { return keys.Get(ctx, id) })
	if err != nil {
		return err
	}
	p.title = p.text("%s", k.Name)
	v := &keyPage{page: p, Key: p.row(k), Once: newOnce()}
	if k.Rate.Per > 0 {
		v.PerMinute = int(time.Minute / k.Rate.Per)
	}
	usage, err := ask(r.Context(), c, func(ctx context.Context) (apitoken.Usage, error) { return c.svc.Usage(ctx, apitoken.ByToken(id)) })
	if err == nil {
		v.Usage = &usage
		if len(usage.Addresses) > 1 {
			v.Others = usage.Addresses[1:]
		}
		if age := p.now.Sub(k.Created); age > unused && len(usage.Scopes) > 0 && !v.Key.Ended {
			for _, s := range p.Sorted(k.Scopes) {
				if !slices.ContainsFunc(usage.Scopes, func(u apitoken.Scope) bool { return apitoken.Scope(s).Covers(u) }) {
					v.Unasked = append(v.Unasked, s)
				}
			}
			v.UnaskedIn, v.MayNarrow = p.Length(age), len(v.Unasked) < len(k.Scopes)
		}
	}
	events, err := ask(r.Context(), c, func(ctx context.Context) ([]apitoken.Event, error) {
		list, _, err := c.svc.EventPage(ctx, apitoken.EventQuery{TokenID: id}, "", 10)
		return list, err
	})
	v.NoHistory = err != nil
	for _, e := range events {
		v.History = append(v.History, p.history(e))
	}
	return p.show(w, http.StatusOK, "key", v)
}

var kinds = map[event.Type]string{
	event.Issued:        say("Token issued"),
	event.Prepared:      say("Ticket prepared"),
	event.Refreshed:     say("Session refreshed"),
	event.Exchanged:     say("Token exchanged"),
	event.Refused:       say("Refused"),
	event.Revoked:       say("Revoked"),
	event.Reused:        say("Refresh token used twice, session ended"),
	event.Leaked:        say("Leaked, and ended"),
	event.ClientRefused: say("Client refused"),
	event.ClientChanged: say("Client changed"),
	event.APIKeyChanged: say("API key changed"),
	event.KeyChanged:    say("Signing key changed"),
	event.RoleChanged:   say("Role changed"),
	event.RecordChanged: say("Record repaired or removed"),
	event.Alert:         say("Alert"),
}

var changes = map[string]string{
	"created": say("Created"), "renamed": say("Renamed"), "rotated": say("Made by rotation"),
}

// history says what an event was, in words for the one whom it concerns.
func (p *page) history(e apitoken.Event) historyRow {
	row := historyRow{Time: e.Time, By: e.Actor, Own: e.Actor == p.actor.Subject, Count: e.Count, Why: e.Reason, Alert: e.Type == event.Alert || e.Type == event.Reused}
	if e.Address.IsValid() {
		row.From = e.Address.String()
	}
	row.What = p.kind(e.Type)
	if e.Type == event.APIKeyChanged {
		how, _, _ := strings.Cut(e.Reason, " ")
		if text, ok := changes[how]; ok {
			row.What, row.Why = p.text(text), strings.TrimPrefix(strings.TrimPrefix(e.Reason, how), " ")
		}
	}
	return row
}

func (p *page) kind(t event.Type) template.HTML {
	if text, ok := kinds[t]; ok {
		return p.text(text)
	}
	return template.HTML(inHTML(string(t)))
}

// overlaps are how long an old secret may work on.
var overlaps = map[string]time.Duration{"1h": time.Hour, "24h": 24 * time.Hour, "168h": 7 * 24 * time.Hour, "0": 0}

func (c *Console) rotateKey(w http.ResponseWriter, r *http.Request, p *page) error {
	overlap, ok := overlaps[r.PostForm.Get("overlap")]
	if once := r.PostForm.Get("once"); !ok || !isOnce(once) {
		return errBody
	}
	keys, err := c.keysOf(&p.actor)
	if err != nil {
		return err
	}
	id := r.PathValue("id")
	old, err := ask(r.Context(), c, func(ctx context.Context) (apitoken.APIKey, error) { return keys.Get(ctx, id) })
	if err != nil {
		return orUnwritten(err, unwritten{What: p.text(sayRotateKey, id)})
	}
	if !p.actor.Scopes.Cover(old.Scopes) {
		return apitoken.ErrDenied
	}
	x, err := c.makeOnce(r.Context(), p, "rotate:"+id, r.PostForm.Get("once"), keys, func(ctx context.Context) (apitoken.APIKey, apitoken.Secret, error) {
		return keys.Rotate(ctx, id, overlap)
	})
	switch {
	case err != nil:
		return orUnwritten(err, unwritten{What: p.text(sayRotateKey, old.Name)})
	case x.secret.IsZero():
		http.Redirect(w, r, c.url("/keys", "?done=already"), http.StatusSeeOther)
		return nil
	}
	p.title, p.nav = p.text(sayWasRotated, x.key.Name), "/keys"
	facts := p.facts(x.key)
	if ends := p.now.Add(overlap); overlap == 0 {
		facts = append(facts, [2]template.HTML{p.text(sayOldStopped), p.text(sayRefusedNow)})
	} else {
		if !old.Expires.IsZero() && old.Expires.Before(ends) {
			ends = old.Expires
		}
		facts = append(facts, [2]template.HTML{p.text(sayOldWorks), p.Stamp(ends)})
	}
	return p.show(w, http.StatusOK, "shown-once", made{page: p, Up: c.url("/keys"), UpText: p.text(sayKeys), Heading: p.title, Secret: x.secret.Reveal(),
		Example: c.o.Example, Facts: facts, Back: c.url("/keys"), Again: p.text(sayNoTwice)})
}

func (c *Console) renameKey(w http.ResponseWriter, r *http.Request, p *page) error {
	name := strings.TrimSpace(r.PostForm.Get("name"))
	if name == "" || len(name) > 100 {
		return apitoken.ErrInvalidRequest
	}
	return c.changeKey(w, r, p, "renamed", unwritten{What: p.text(sayRenameKey, name)}, func(ctx context.Context, k *apitoken.APIKeys, id string) error {
		_, err := k.Rename(ctx, id, name)
		return err
	})
}

// narrowKey takes scopes away from a key: what holds it keeps working with the others.
func (c *Console) narrowKey(w http.ResponseWriter, r *http.Request, p *page) error {
	gone := r.PostForm["scope"]
	return c.changeKey(w, r, p, "narrowed", unwritten{What: p.text(sayNarrowKey, r.PathValue("id"))}, func(ctx context.Context, k *apitoken.APIKeys, id string) error {
		_, err := k.Edit(ctx, id, func(x *apitoken.APIKey) error {
			x.Scopes = slices.DeleteFunc(x.Scopes, func(s apitoken.Scope) bool { return slices.Contains(gone, string(s)) })
			if len(x.Scopes) == 0 {
				return apitoken.ErrInvalidRequest // a key that can call nothing: revoke it
			}
			return nil
		})
		return err
	})
}

func (c *Console) revokeKey(w http.ResponseWriter, r *http.Request, p *page) error {
	reason, err := p.reason(r)
	if err != nil {
		return err
	}
	return c.changeKey(w, r, p, "revoked", unwritten{What: p.text(sayRevokeKey, r.PathValue("id"))}, func(ctx context.Context, k *apitoken.APIKeys, id string) error {
		return k.Revoke(ctx, id, reason)
	})
}

func (c *Console) changeKey(w http.ResponseWriter, r *http.Request, p *page, done string, u unwritten, f func(context.Context, *apitoken.APIKeys, string) error) error {
	keys, err := c.keysOf(&p.actor)
	if err != nil {
		return err
	}
	_, err = ask(r.Context(), c, func(ctx context.Context) (struct{}, error) { return struct{}{}, f(ctx, keys, r.PathValue("id")) })
	if err != nil {
		return orUnwritten(err, u)
	}
	http.Redirect(w, r, c.url("/keys", r.PathValue("id"), "?done="+done), http.StatusSeeOther)
	return nil
}

// reason is what a red form says of why.
func (p *page) reason(r *http.Request) (string, error) {
	return operate.Reason(r.PostForm.Get("reason"))
}
