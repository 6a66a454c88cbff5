package console

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
	"time"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/export"
	"github.com/apitoken-go/apitoken/operate"
)

// eventFilter is what the page of events selects, as its form says it.
type eventFilter struct {
	Subject, Client, Grant, TokenID, Type, Outcome, Actor, From, To string
}

func filterOf(v url.Values) eventFilter {
	return eventFilter{v.Get("subject"), v.Get("client"), v.Get("grant"), v.Get("token_id"), v.Get("type"), v.Get("ok"), v.Get("actor"), v.Get("from"), v.Get("to")}
}

const localTime = "2006-01-02T15:04"

func (f *eventFilter) query() (apitoken.EventQuery, error) {
	q := apitoken.EventQuery{Subject: f.Subject, Client: f.Client, Grant: f.Grant, TokenID: f.TokenID, Type: event.Type(f.Type)}
	var err error
	if f.From != "" {
		if q.From, err = time.Parse(localTime, f.From); err != nil {
			return q, err
		}
	}
	if f.To != "" {
		q.To, err = time.Parse(localTime, f.To)
	}
	return q, err
}

// rest is what a store can't select by.
func (f *eventFilter) rest() operate.Filter {
	return operate.Filter{Actor: f.Actor, Good: f.Outcome == "1", Bad: f.Outcome == "0"}
}

// narrow reports that rest passes events over.
func (f *eventFilter) narrow() bool { return f.rest() != operate.Filter{} }

func (f *eventFilter) with(more ...string) string {
	return query(append([]string{"subject", f.Subject, "client", f.Client, "grant", f.Grant, "token_id", f.TokenID, "type", f.Type, "ok", f.Outcome,
		"actor", f.Actor, "from", f.From, "to", f.To}, more...)...)
}

type eventsPage struct {
	*page
	eventFilter
	Types     []string
	Rows      []eventRow
	NotAll    bool // the time was over before a page was full
	JSONL     string
	OCSF      string
	HasLedger bool
	Verdict   *verdict
	Given     string // the checkpoint that was verified
	Store     bool
	pager
}

type verdict struct {
	Verdict
	Failed bool // it could not be looked at
}

var (
	sayEvents = say("Audit events")
)

// scanned is how many events a page reads at most where the store can't select what is asked for.
const scanned = 4000

func (c *Console) events(w http.ResponseWriter, r *http.Request, p *page) error {
	v := &eventsPage{page: p, Store: true}
	return c.showEvents(w, r, v, http.StatusOK)
}

func (c *Console) showEvents(w http.ResponseWriter, r *http.Request, v *eventsPage, status int) error {
	p := v.page
	p.title, p.nav = p.text(sayEvents), "/admin/events"
	v.HasLedger = c.o.Ledger != nil
	v.Types = slices.Sorted(maps.Keys(typeNames()))
	v.eventFilter = filterOf(r.URL.Query())
	q, err := v.query()
	if err != nil {
		return apitoken.ErrInvalidRequest
	}
	v.JSONL, v.OCSF = c.url("/admin/events/export", v.with("as", "jsonl")), c.url("/admin/events/export", v.with("as", "ocsf"))
	cursor := r.URL.Query().Get("cursor")
	if cursor != "" {
		v.First = c.url("/admin/events", v.with())
	}
	var list []apitoken.Event
	next := cursor
	for read := 0; read < scanned; {
		limit := pageSize - len(list)
		if v.narrow() {
			limit = pageSize // what is passed over must not make pages of a few events
		}
		some, more, err := p.look.EventPage(r.Context(), q, next, limit)
		if err != nil {
			return err
		}
		for i := range some {
			if v.rest().Keeps(&some[i]) {
				list = append(list, some[i])
			}
		}
		read += len(some)
		if next = more; next == "" || len(list) > 0 && !v.narrow() || len(list) >= pageSize/2 {
			break
		}
	}
	v.Rows = p.eventRows(list)
	if next != "" {
		v.Next = c.url("/admin/events", v.with("cursor", next))
		v.NotAll = v.narrow()
	}
	return p.show(w, status, "events", v)
}

func typeNames() map[string]bool {
	names := map[string]bool{}
	for t := range kinds {
		names[string(t)] = true
	}
	return names
}

// exportTime bounds an export: a stream that nobody reads does not stay for ever.
const exportTime = 10 * time.Minute

// export streams what the filter selects, oldest first, as it is read.
func (c *Console) export(w http.ResponseWriter, r *http.Request, p *page) error {
	f := filterOf(r.URL.Query())
	q, err := f.query()
	if err != nil {
		return apitoken.ErrInvalidRequest
	}
	select {
	case c.admin.exports <- struct{}{}:
		defer func() { <-c.admin.exports }()
	default:
		return apitoken.ErrLimited
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), exportTime)
	defer cancel()
	stop := context.AfterFunc(c.admin.ctx, cancel)
	defer stop()
	var to export.Writer
	name := "events.jsonl"
	switch r.URL.Query().Get("as") {
	case "jsonl":
		to = export.NewJSONL(w)
	case "ocsf":
		name = "events.ocsf.jsonl"
		to = export.NewOCSF(w, export.OCSFOptions{Service: c.set.Issuer})
	default:
		return errNotFound
	}
	w.Header().Set("Content-Type", "application/x-ndjson; charset=utf-8")
	w.Header().Set("Content-Disposition", `attachment; filename="`+name+`"`)
	_, err = export.Copy(ctx, p.look, q, export.Place{}, &filtered{to, f.rest(), http.NewResponseController(w)})
	if err != nil {
		// Something may have been sent by now: whoever reads it must not take it for whole.
		panic(http.ErrAbortHandler)
	}
	return nil
}

// filtered hands on what a filter keeps.
type filtered struct {
	export.Writer
	f operate.Filter
	w *http.ResponseController
}

func (x *filtered) AuditAll(ctx context.Context, list []apitoken.Event) error {
	var kept []apitoken.Event
	for i := range list {
		if x.f.Keeps(&list[i]) {
			kept = append(kept, list[i])
		}
	}
	// A reader that takes nothing for half a minute has gone.
	_ = x.w.SetWriteDeadline(time.Now().Add(30 * time.Second)) // not every server's connections have one
	return x.Writer.AuditAll(ctx, kept)
}

type eventPage struct {
	*page
	Event     eventRow
	About     template.HTML
	Facts     []fact2
	JSON      string
	HasLedger bool
	Proved    bool
	Unproved  bool // the ledger has not sealed it
	Position  int64
	Size      int64
}

type fact2 struct {
	Name  template.HTML
	Value string
	Link  string
	Code  bool
}

var (
	saySubject   = say("Subject")
	sayClient    = say("Client")
	sayGrant     = say("Grant")
	sayTokenID   = say("Token or key")
	sayTarget    = say("Target")
	sayActor     = say("By")
	sayReasonIs  = say("Reason")
	sayAddress   = say("Address")
	sayUserAgent = say("User agent")
	sayRequestID = say("Request")
	sayEventID   = say("Event ID")
	sayCount     = say("Times")
)

func (c *Console) event(w http.ResponseWriter, r *http.Request, p *page) error {
	e, err := p.look.Event(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	p.title, p.nav = template.HTML(inHTML(string(e.Type))), "/admin/events"
	v := &eventPage{page: p, Event: p.eventRow(e), About: p.kind(e.Type)}
	text, err := json.MarshalIndent(e, "", "  ")
	if err != nil {
		return err
	}
	v.JSON = string(text)
	target, _ := e.Target.MarshalText()
	add := func(name, value, link string, code bool) {
		if value != "" {
			v.Facts = append(v.Facts, fact2{p.text(name), value, link, code})
		}
	}
	add(sayReasonIs, e.Reason, "", false)
	if e.Count > 1 {
		add(sayCount, number(e.Count), "", false)
	}
	add(sayActor, e.Actor, "", false)
	add(saySubject, e.Subject, c.url("/admin/subjects", e.Subject), false)
	add(sayClient, e.Client, c.url("/admin/clients", e.Client), false)
	add(sayScopes, e.Scopes.String(), "", true)
	add(sayGrant, e.Grant, c.url("/admin/events", query("grant", e.Grant)), true)
	add(sayTokenID, e.TokenID, c.url("/admin/events", query("token_id", e.TokenID)), true)
	add(sayTarget, string(target), "", true)
	add(sayAddress, v.Event.From, "", false)
	add(sayUserAgent, e.UserAgent, "", false)
	add(sayRequestID, e.RequestID, "", true)
	for _, k := range slices.Sorted(maps.Keys(e.Extra)) {
		v.Facts = append(v.Facts, fact2{template.HTML(inHTML(k)), e.Extra[k], "", true})
	}
	add(sayEventID, e.ID, "", true)
	if c.o.Ledger != nil {
		v.HasLedger = true
		at, err := ask(r.Context(), c, func(ctx context.Context) (at [2]int64, err error) {
			at[0], at[1], _, err = c.o.Ledger.Proof(ctx, e.ID)
			return at, err
		})
		v.Position, v.Size = at[0], at[1]
		v.Proved, v.Unproved = err == nil, errors.Is(err, apitoken.ErrNotFound)
	}
	return p.show(w, http.StatusOK, "event", v)
}

// proof is the inclusion proof of an event, for whoever checks it elsewhere.
func (c *Console) proof(w http.ResponseWriter, r *http.Request, p *page) error {
	if c.o.Ledger == nil {
		return errNotFound
	}
	text, err := ask(r.Context(), c, func(ctx context.Context) ([]byte, error) {
		_, _, text, err := c.o.Ledger.Proof(ctx, r.PathValue("id"))
		return text, err
	})
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Disposition", fmt.Sprintf("attachment; filename=%q", "proof-"+strings.Map(plainName, r.PathValue("id"))+".json"))
	_, err = w.Write(text)
	return err
}

func plainName(r rune) rune {
	if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
		return r
	}
	return -1
}

// verifyTime bounds a verification, about a second for a million events: it runs behind a form, not a page.
const verifyTime = 30 * time.Second

func (c *Console) verify(w http.ResponseWriter, r *http.Request, p *page) error {
	if c.o.Ledger == nil {
		return errNotFound
	}
	v := &eventsPage{page: p, Given: r.PostForm.Get("checkpoint"), Store: r.PostForm.Get("source") != "", Verdict: &verdict{}}
	select {
	case c.admin.exports <- struct{}{}:
		defer func() { <-c.admin.exports }()
	default:
		return apitoken.ErrLimited
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), verifyTime)
	defer cancel()
	// Forms may come with the line ends of another system.
	given := strings.ReplaceAll(v.Given, "\r\n", "\n")
	if given != "" && !strings.HasSuffix(given, "\n") {
		given += "\n"
	}
	found, err := ask(ctx, c, func(ctx context.Context) (Verdict, error) { return c.o.Ledger.Verify(ctx, []byte(given), v.Store) })
	v.Verdict.Verdict, v.Verdict.Failed = found, err != nil
	fresh, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), readTime)
	defer cancel()
	return c.showEvents(w, r.WithContext(fresh), v, http.StatusOK)
}
