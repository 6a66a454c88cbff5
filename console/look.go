package console

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"html"
	"html/template"
	"io/fs"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"text/template/parse"
	"time"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/operate"
)

//go:embed static
var static embed.FS

//go:embed templates
var sources embed.FS

// looks are what pages are made of: templates, texts, and static files. They never change after New.
type looks struct {
	t     *template.Template
	texts map[string]string
	files map[string]file
}

type file struct {
	body, kind, hash string
}

// build reads everything once, so that nothing can be wrong with it later.
func (l *looks) build(c *Console) error {
	l.texts = map[string]string{}
	known := Texts()
	for id, text := range c.o.Texts {
		if _, ok := known[id]; !ok {
			return wrong("Texts", fmt.Sprintf("%q is no text of the console", id))
		}
		if verbs(text) != verbs(id) {
			return wrong("Texts", fmt.Sprintf("the text for %q needs as many %%s as that has, written %%s or %%[n]s", id))
		}
		l.texts[id] = text
	}
	l.files = map[string]file{}
	for _, name := range []string{"console.css", "console.js", "icon.svg"} {
		b, err := static.ReadFile("static/" + name)
		if err != nil {
			return err
		}
		sum := sha256.Sum256(b)
		kind := map[string]string{".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}[path.Ext(name)]
		l.files[name] = file{string(b), kind, hex.EncodeToString(sum[:8])}
	}
	t, err := parseTemplates(template.FuncMap{
		"t": l.text, "n": l.count,
		"url":    func(parts ...string) string { return c.url(parts...) },
		"static": func(name string) string { return c.base + "/static/" + name + "?v=" + l.files[name].hash },
		"number": number, "list": func(v ...any) []any { return v }, "query": query,
		"badge": func(class, text any) map[string]any { return map[string]any{"Class": class, "Text": text} },
		"dict":  dict,
	})
	l.t = t
	return err
}

func parseTemplates(funcs template.FuncMap) (*template.Template, error) {
	return template.New("console").Funcs(funcs).ParseFS(sources, "templates/*.html")
}

// url is a path below Base; each part behind the first is escaped as one segment.
func (c *Console) url(parts ...string) string {
	if len(parts) == 0 {
		return c.base + "/"
	}
	s := c.base + parts[0]
	for _, p := range parts[1:] {
		if strings.HasPrefix(p, "/") || strings.HasPrefix(p, "?") || strings.HasPrefix(p, "#") {
			s += p
			continue
		}
		s += "/" + url.PathEscape(p)
	}
	return s
}

// query makes ?name=value&… of names and values in turn, without those that are empty.
func query(pairs ...string) string {
	v := url.Values{}
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			v.Set(pairs[i], pairs[i+1])
		}
	}
	if len(v) == 0 {
		return ""
	}
	return "?" + v.Encode()
}

func dict(pairs ...any) map[string]any {
	m := map[string]any{}
	for i := 0; i+1 < len(pairs); i += 2 {
		m[pairs[i].(string)] = pairs[i+1]
	}
	return m
}

// text is the host's text for id, or id itself, as HTML: `code` and **strong** are its only markup, and what args bring is
// escaped. Every verb is %s or %[n]s.
func (l *looks) text(id string, args ...any) template.HTML {
	s, ok := l.texts[id]
	if !ok {
		s = id
	}
	s = html.EscapeString(s)
	s = mark(s, "`", "code")
	s = mark(s, "**", "strong")
	if len(args) == 0 {
		return template.HTML(strings.ReplaceAll(s, "%%", "%"))
	}
	shown := make([]any, len(args))
	for i, a := range args {
		shown[i] = inHTML(a)
	}
	return template.HTML(fmt.Sprintf(s, shown...))
}

func inHTML(a any) string {
	switch a := a.(type) {
	case template.HTML:
		return string(a)
	case int:
		return number(a)
	}
	return html.EscapeString(fmt.Sprint(a))
}

// count is the text for one, or that for another number, which is its first argument.
func (l *looks) count(n any, one, many string, args ...any) template.HTML {
	id, n := many, number(n)
	if n == "1" {
		id = one
	}
	if verbs(id) == len(args) {
		return l.text(id, args...)
	}
	return l.text(id, append([]any{n}, args...)...)
}

func mark(s, sign, tag string) string {
	parts := strings.Split(s, sign)
	if len(parts)%2 == 0 { // one that nothing closes is a character like others
		return s
	}
	var b strings.Builder
	for i, p := range parts {
		switch {
		case i == 0:
		case i%2 == 1:
			b.WriteString("<" + tag + ">")
		default:
			b.WriteString("</" + tag + ">")
		}
		b.WriteString(p)
	}
	return b.String()
}

// verbs is how many arguments a text takes; -1: it is no text.
func verbs(s string) int {
	n, highest := 0, 0
	s = strings.ReplaceAll(s, "%%", "")
	for {
		_, rest, found := strings.Cut(s, "%")
		if !found {
			return max(n, highest)
		}
		switch {
		case strings.HasPrefix(rest, "s"):
			n++
			s = rest[1:]
		case len(rest) > 3 && rest[0] == '[' && rest[1] >= '1' && rest[1] <= '9' && rest[2:4] == "]s":
			highest = max(highest, int(rest[1]-'0'))
			s = rest[4:]
		default:
			return -1
		}
	}
}

// number writes n with a mark between thousands.
func number(v any) string {
	s := fmt.Sprint(v)
	if _, err := strconv.ParseInt(s, 10, 64); err != nil {
		return s
	}
	digits := strings.TrimPrefix(s, "-")
	var b strings.Builder
	for i, d := range digits {
		if i > 0 && (len(digits)-i)%3 == 0 {
			b.WriteByte(',')
		}
		b.WriteRune(d)
	}
	return strings.TrimSuffix(s, digits) + b.String()
}

// said are the texts that Go code says, see say.
var said = map[string]bool{}

// say registers a text that Go code says. It is called while the package is initialised only.
func say(s string) string {
	said[s] = true
	return s
}

// Texts returns every text of the console with itself, for Options.Texts: a copy with other values is another language. In a
// text, **this** is strong and `this` is code; each %s stands for something that is filled in, which %[1]s, %[2]s and so on
// name where another language puts them in another order.
func Texts() map[string]string {
	out := map[string]string{}
	for s := range said {
		out[s] = s
	}
	none := func(...any) string { return "" }
	names := template.FuncMap{}
	for _, name := range []string{"t", "n", "url", "static", "number", "list", "query", "badge", "dict"} {
		names[name] = none
	}
	all, err := parseTemplates(names)
	if err != nil {
		panic(err) // of what is embedded: every test would show it
	}
	for _, t := range all.Templates() {
		if t.Tree != nil {
			textsIn(t.Tree.Root, out)
		}
	}
	return out
}

// textsIn finds the texts of a template: the string constants that t and n are called with.
func textsIn(n parse.Node, out map[string]string) {
	list := func(l *parse.ListNode) {
		if l != nil {
			for _, x := range l.Nodes {
				textsIn(x, out)
			}
		}
	}
	pipe := func(p *parse.PipeNode) {
		if p != nil {
			textsIn(p, out)
		}
	}
	switch n := n.(type) {
	case *parse.ListNode:
		list(n)
	case *parse.ActionNode:
		pipe(n.Pipe)
	case *parse.TemplateNode:
		pipe(n.Pipe)
	case *parse.IfNode:
		pipe(n.Pipe)
		list(n.List)
		list(n.ElseList)
	case *parse.RangeNode:
		pipe(n.Pipe)
		list(n.List)
		list(n.ElseList)
	case *parse.WithNode:
		pipe(n.Pipe)
		list(n.List)
		list(n.ElseList)
	case *parse.PipeNode:
		for _, cmd := range n.Cmds {
			textsIn(cmd, out)
		}
	case *parse.CommandNode:
		id, ok := n.Args[0].(*parse.IdentifierNode)
		texts := 0
		if ok {
			texts = map[string]int{"t": 1, "n": 2}[id.Ident]
		}
		for _, a := range n.Args {
			if s, ok := a.(*parse.StringNode); ok && texts > 0 {
				out[s.Text] = s.Text
				texts--
				continue
			}
			textsIn(a, out)
		}
	}
}

// serveStatic answers with a file, for ever where its hash is asked for.
func (l *looks) serveStatic(w http.ResponseWriter, r *http.Request, name string) {
	f, ok := l.files[name]
	if !ok || r.Method != http.MethodGet && r.Method != http.MethodHead {
		http.Error(w, http.StatusText(http.StatusNotFound), http.StatusNotFound)
		return
	}
	if r.URL.Query().Get("v") == f.hash {
		w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	} else {
		w.Header().Set("Cache-Control", "no-cache")
	}
	w.Header().Set("Content-Type", f.kind)
	w.Header().Set("ETag", `"`+f.hash+`"`)
	http.ServeContent(w, r, "", time.Time{}, strings.NewReader(f.body))
}

var _ fs.FS = static

// page is one answer in the making. Pages embed it: templates call its methods.
type page struct {
	c     *Console
	actor Actor
	path  string // of the request, below Base
	now   time.Time
	look  operate.Look
	act   *operate.Act // nil: the page is for those who may only look

	title template.HTML
	nav   string // the place in the menu: its path
	flash template.HTML
}

// show answers with the template of that name, filled in with v, which embeds p.
func (p *page) show(w http.ResponseWriter, status int, name string, v any) error {
	var main, whole bytes.Buffer
	if err := p.c.face.t.ExecuteTemplate(&main, name, v); err != nil {
		return err
	}
	err := p.c.face.t.ExecuteTemplate(&whole, "base", struct {
		*page
		Main template.HTML
	}{p, template.HTML(main.String())}) // as the template engine escaped it
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(whole.Bytes()) // the reader has gone: nobody to tell
	return nil
}

func (p *page) text(id string, args ...any) template.HTML { return p.c.face.text(id, args...) }

// What templates ask of every page.

func (p *page) Page() *page          { return p }
func (p *page) Now() time.Time       { return p.now }
func (p *page) Title() template.HTML { return p.title }
func (p *page) Product() string      { return p.c.o.Title }
func (p *page) Home() string         { return p.c.o.Home }
func (p *page) Brand() string        { return p.c.o.Stylesheet }
func (p *page) Issuer() string       { return p.c.set.Issuer }
func (p *page) Flash() template.HTML { return p.flash }
func (p *page) Who() string {
	if p.actor.Name != "" {
		return p.actor.Name
	}
	return p.actor.Subject
}
func (p *page) At(nav string) bool { return p.nav == nav }
func (p *page) HasSelf() bool      { return p.c.o.Faces&Self != 0 && p.actor.Subject != "" }
func (p *page) HasAdmin() bool     { return p.c.o.Faces&Admin != 0 && p.actor.Admin >= Reader }

// MayChange reports that forms of operators are shown.
func (p *page) MayChange() bool { return p.actor.Admin >= Operator }

// Kind is an event's type in words.
func (p *page) Kind(t event.Type) template.HTML { return p.kind(t) }

// KeyState is the state of a signing key in words.
func (p *page) KeyState(state string) template.HTML {
	if text, ok := sayStates[state]; ok {
		return p.text(text)
	}
	return template.HTML(inHTML(state))
}

// Left is how long something still lasts.
func (p *page) Left(t time.Time) template.HTML { return p.Length(max(t.Sub(p.now), 0)) }

// Stale is the age of a view of revocations that is past its bound; empty: it is not.
func (p *page) Stale() template.HTML {
	f := p.c.svc.Freshness()
	if !f.Stale {
		return ""
	}
	return p.Length(f.Age)
}

// Bound is within which time a revocation is in force everywhere.
func (p *page) Bound() template.HTML { return p.Length(p.c.set.MaxStaleness) }

var months = [...]string{say("Jan"), say("Feb"), say("Mar"), say("Apr"), say("May"), say("Jun"), say("Jul"), say("Aug"), say("Sep"), say("Oct"), say("Nov"), say("Dec")}

var (
	sayDay       = say("%[1]s %[2]s %[3]s")
	sayStamp     = say("%s, %s")
	saySeconds   = say("%s s")
	sayMinutes   = say("%s min")
	sayHours     = say("%s h")
	sayOneDay    = say("1 day")
	sayDays      = say("%s days")
	sayAgo       = say("%s ago")
	sayNow       = say("now")
	sayNever     = say("Never")
	sayIn        = say("in %s")
	sayDayIn     = say("%s, in %s")
	sayToday     = say("today, %s")
	sayYesterday = say("yesterday, %s")
)

func (p *page) day(t time.Time) template.HTML {
	t = t.UTC()
	return p.text(sayDay, strconv.Itoa(t.Day()), p.text(months[t.Month()-1]), strconv.Itoa(t.Year()))
}

func inTime(t time.Time, shown template.HTML) template.HTML {
	return template.HTML(`<time datetime="`+t.UTC().Format(time.RFC3339)+`">`) + shown + "</time>"
}

// Length is a span of time in its greatest unit.
func (p *page) Length(d time.Duration) template.HTML {
	switch {
	case d < 10*time.Second && d%time.Second != 0:
		return p.text(saySeconds, strconv.FormatFloat(d.Seconds(), 'f', 1, 64))
	case d < 2*time.Minute:
		return p.text(saySeconds, strconv.Itoa(int(d.Seconds())))
	case d < 2*time.Hour:
		return p.text(sayMinutes, strconv.Itoa(int(d.Minutes())))
	case d < 48*time.Hour && d != 24*time.Hour:
		return p.text(sayHours, strconv.Itoa(int(d.Hours())))
	case d < 48*time.Hour:
		return p.text(sayOneDay)
	}
	return p.text(sayDays, strconv.Itoa(int(d.Hours()/24)))
}

// Date is the day of t.
func (p *page) Date(t time.Time) template.HTML {
	if t.IsZero() {
		return p.text(sayNever)
	}
	return inTime(t, p.day(t))
}

// Stamp is t to the minute.
func (p *page) Stamp(t time.Time) template.HTML {
	if t.IsZero() {
		return p.text(sayNever)
	}
	return inTime(t, p.text(sayStamp, p.day(t), t.UTC().Format("15:04")))
}

// Exact is t to the millisecond.
func (p *page) Exact(t time.Time) template.HTML {
	return inTime(t, p.text(sayStamp, p.day(t), t.UTC().Format("15:04:05.000")))
}

// Clock is when something happened lately: today and yesterday are called so.
func (p *page) Clock(t time.Time) template.HTML {
	if t.IsZero() {
		return p.text(sayNever)
	}
	today := p.now.UTC().Truncate(24 * time.Hour)
	clock := t.UTC().Format("15:04")
	switch {
	case !t.Before(today):
		return inTime(t, p.text(sayToday, clock))
	case !t.Before(today.Add(-24 * time.Hour)):
		return inTime(t, p.text(sayYesterday, clock))
	}
	return inTime(t, p.text(sayStamp, p.day(t), clock))
}

// Ago is how long ago t was, or its day.
func (p *page) Ago(t time.Time) template.HTML {
	if t.IsZero() {
		return p.text(sayNever)
	}
	d := p.now.Sub(t)
	switch {
	case d < time.Minute:
		return inTime(t, p.text(sayNow))
	case d < 400*24*time.Hour:
		return inTime(t, p.text(sayAgo, p.Length(d)))
	}
	return p.Date(t)
}

// Ends is when something ends; zero: never.
func (p *page) Ends(t time.Time) template.HTML {
	if t.IsZero() {
		return p.text(sayNever)
	}
	d := t.Sub(p.now)
	switch {
	case d <= 0 || d > 60*24*time.Hour:
		return p.Date(t)
	case d < 48*time.Hour:
		return inTime(t, p.text(sayIn, p.Length(d)))
	}
	return inTime(t, p.text(sayDayIn, p.day(t), p.Length(d)))
}

// Span is how long something lasts, for choices of a form.
func (p *page) Span(d time.Duration) template.HTML { return p.Length(d) }

// Sorted are scopes in order, as texts.
func (p *page) Sorted(s apitoken.Scopes) []string { return strings.Fields(s.String()) }
