package console

import (
	"context"
	"html/template"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/operate"
)

func (c *Console) serveAdmin() {
	c.admin = newAdminState(c.svc, c.look)
	for pattern, f := range map[string]func(http.ResponseWriter, *http.Request, *page) error{
		"GET /admin":                           c.overview,
		"GET /admin/subjects":                  c.subjects,
		"POST /admin/subjects":                 c.lookUp,
		"GET /admin/subjects/{s}":              c.subject,
		"POST /admin/subjects/{s}/revoke":      c.revokeSubject,
		"POST /admin/subjects/{s}/end":         c.endOne,
		"POST /admin/subjects/{s}/able":        c.ableKey,
		"GET /admin/clients":                   c.clients,
		"GET /admin/clients/new":               c.newClient,
		"POST /admin/clients":                  c.createClient,
		"GET /admin/clients/{id}":              c.client,
		"POST /admin/clients/{id}/rotate":      c.rotateSecret,
		"POST /admin/clients/{id}/revoke":      c.revokeClient,
		"POST /admin/clients/{id}/disable":     c.disableClient,
		"POST /admin/clients/{id}/enable":      c.enableClient,
		"POST /admin/clients/{id}/change":      c.changeClient,
		"GET /admin/events":                    c.events,
		"GET /admin/events/{id}":               c.event,
		"GET /admin/events/{id}/proof":         c.proof,
		"GET /admin/events/export":             c.export,
		"POST /admin/events/verify":            c.verify,
		"GET /admin/signing-keys":              c.signingKeys,
		"POST /admin/signing-keys/rotate":      c.rotateKeys,
		"POST /admin/signing-keys/compromise":  c.compromise,
		"POST /admin/signing-keys/root-secret": c.rootSecret,
		"GET /admin/hygiene":                   c.hygiene,
		"GET /admin/explain":                   c.explainForm,
		"POST /admin/explain":                  c.explain,
		"POST /admin/explain/leaked":           c.leaked,
	} {
		method, path, _ := strings.Cut(pattern, " ")
		g := reader
		// What is pasted or looked up comes by POST, so that it is in no URL, and changes nothing.
		if method == "POST" && pattern != "POST /admin/explain" && pattern != "POST /admin/subjects" && pattern != "POST /admin/events/verify" {
			g = operator
		}
		c.mux.HandleFunc(method+" "+c.base+path, c.page(g, f))
	}
}

// together runs several reads of a page at once. What fails or is late leaves its part of the page unknown.
func together(fs ...func()) {
	var wg sync.WaitGroup
	for _, f := range fs {
		wg.Add(1)
		go func() { defer wg.Done(); f() }()
	}
	wg.Wait()
}

// eventRow is an event as a list shows it.
type eventRow struct {
	apitoken.Event
	What    template.HTML
	Outcome template.HTML
	Class   string
	From    string
}

var (
	sayDone    = say("Done")
	sayNo      = say("Refused")
	sayAlert   = say("Alert")
	sayTimes   = say("%s, %s times")
	sayBy      = say("%s; by %s")
	sayEnded   = say("Ended")
	sayFoundIn = say("%s, found in %s")
)

func (p *page) eventRow(e apitoken.Event) eventRow {
	row := eventRow{Event: e, What: template.HTML(inHTML(e.Reason))}
	if leaked := e.Extra["leaked"]; leaked != "" {
		row.What = p.text(sayFoundIn, leaked, e.Reason)
	}
	if e.Count > 1 {
		row.What = p.text(sayTimes, row.What, e.Count)
	}
	if e.Actor != "" && e.Actor != e.Subject && e.Actor != e.Client {
		row.What = p.text(sayBy, row.What, e.Actor)
	}
	if e.Address.IsValid() {
		row.From = e.Address.String()
	}
	switch {
	case e.Type == event.Alert:
		row.Outcome, row.Class = p.text(sayAlert), "bad"
	case operate.IsAlert(&e):
		row.Outcome, row.Class = p.text(sayEnded), "bad"
	case e.OK:
		row.Outcome, row.Class = p.text(sayDone), "ok"
	default:
		row.Outcome, row.Class = p.text(sayNo), "bad"
	}
	return row
}

func (p *page) eventRows(list []apitoken.Event) (rows []eventRow) {
	for _, e := range list {
		rows = append(rows, p.eventRow(e))
	}
	return rows
}

// newest are the newest events of several queries, n in all. known is false where one of them could not be read.
func (c *Console) newest(ctx context.Context, n int, take func(*apitoken.Event) bool, queries ...apitoken.EventQuery) (list []apitoken.Event, known bool) {
	lists, errs := make([][]apitoken.Event, len(queries)), make([]error, len(queries))
	var fs []func()
	for i, q := range queries {
		fs = append(fs, func() {
			lists[i], _, errs[i] = c.operations(ctx).EventPage(ctx, q, "", 4*n)
		})
	}
	together(fs...)
	for i := range queries {
		if errs[i] != nil {
			return nil, false
		}
		for _, e := range lists[i] {
			if take == nil || take(&e) {
				list = append(list, e)
			}
		}
	}
	slices.SortStableFunc(list, func(a, b apitoken.Event) int { return b.Time.Compare(a.Time) })
	return list[:min(n, len(list))], true
}

type sinkRow struct {
	Name       string
	Behind     template.HTML
	Class      string
	Stops      template.HTML // the bound past which issuing stops; empty: none
	sinkBehind time.Duration
}

type bar struct{ X, Y, H, Fill int }

type figure struct {
	Known bool
	Value int
	Age   time.Duration
}

type overviewPage struct {
	*page
	Findings, Ending figure
	Clients          int
	FindingsMore     bool
	Disabled         int
	Ends             []apitoken.Expiry
	Refused          int
	ByWhy            [whys]struct {
		Name string
		N    int
		Fill int
	}
	Bars                   []bar
	Top                    int
	Hours                  []hourRow
	Alerts, Changes        []eventRow
	HasAlerts, HasChanges  bool
	Fresh                  apitoken.Freshness
	Backlog                apitoken.Backlog
	Sinks                  []sinkRow
	HasLedger              bool
	Sealed                 int64
	SealedAt               time.Time
	Keys                   []apitoken.SigningKey
	HasKeys                bool
	Uptime                 time.Duration
	Since                  time.Time
	ChartFrom, ChartMiddle string
}

type hourRow struct {
	At string
	N  [whys]int
}

var sayOverview = say("Overview")

func (c *Console) overview(w http.ResponseWriter, r *http.Request, p *page) error {
	p.title, p.nav = p.text(sayOverview), "/admin"
	p.setFlash(r)
	ctx, at := r.Context(), p.look.Standing()
	v := &overviewPage{page: p, Fresh: at.Freshness, Backlog: at.Backlog, Uptime: p.now.Sub(c.admin.started), Since: c.admin.started, Clients: at.Clients, Disabled: at.Disabled}
	today := p.now.UTC().Truncate(24 * time.Hour)
	together(
		func() {
			f, age, known := c.admin.hygiene.get(ctx, c.admin.ctx)
			v.Findings, v.FindingsMore = figure{known, len(f.Items), age}, f.More
		},
		func() {
			e, age, known := c.admin.expiring.get(ctx, c.admin.ctx)
			v.Ending, v.Ends = figure{known, e.Total, age}, e.Items
		},
		func() {
			list, known := c.newest(ctx, 5, nil, apitoken.EventQuery{Type: event.Alert}, apitoken.EventQuery{Type: event.Reused}, apitoken.EventQuery{Type: event.Leaked})
			v.Alerts, v.HasAlerts = p.eventRows(list), known
		},
		func() {
			list, known := c.newest(ctx, 8, func(e *apitoken.Event) bool { return e.Actor != "" && e.Actor != e.Subject && !e.Time.Before(today) },
				apitoken.EventQuery{Type: event.ClientChanged, From: today}, apitoken.EventQuery{Type: event.RoleChanged, From: today},
				apitoken.EventQuery{Type: event.KeyChanged, From: today}, apitoken.EventQuery{Type: event.Revoked, From: today})
			v.Changes, v.HasChanges = p.eventRows(list), known
		},
		func() {
			list, err := p.look.SigningKeys(ctx)
			v.HasKeys = err == nil
			for _, k := range list {
				if k.State == "active" || k.State == "next" {
					v.Keys = append(v.Keys, k)
				}
			}
		},
	)
	if c.o.Ledger != nil {
		v.HasLedger = true
		v.Sealed, v.SealedAt = c.o.Ledger.Status()
	}
	v.sinks(c)
	v.chart(c.admin.refusals.last())
	return p.show(w, http.StatusOK, "overview", v)
}

func (v *overviewPage) sinks(c *Console) {
	for name, behind := range v.Backlog.Sinks {
		row := sinkRow{Name: name, Behind: v.Length(behind), Class: "ok", sinkBehind: behind}
		bound := c.set.SinkLags[name]
		if bound > 0 {
			row.Stops = v.Length(bound)
		}
		switch {
		case bound > 0 && behind > bound:
			row.Class = "bad"
		case bound > 0 && behind > bound/2, behind > 5*time.Minute:
			row.Class = "warn"
		}
		v.Sinks = append(v.Sinks, row)
	}
	slices.SortFunc(v.Sinks, func(a, b sinkRow) int { return strings.Compare(a.Name, b.Name) })
}

// chart makes the bars, 240 wide and 100 high, and the same figures as a table.
func (v *overviewPage) chart(hours [hoursShown]hour) {
	for i := range v.ByWhy {
		v.ByWhy[i].Name, v.ByWhy[i].Fill = string(v.text(sayWhys[i])), i+1
	}
	v.Top = 1
	for _, h := range hours {
		sum := 0
		for i, n := range h.n {
			sum += n
			v.ByWhy[i].N += n
		}
		v.Refused += sum
		v.Top = max(v.Top, sum)
	}
	for i, h := range hours {
		y := 100
		for why, n := range h.n {
			height := n * 100 / v.Top
			if n > 0 {
				height = max(height, 1)
			}
			if height > 0 {
				y -= height
				v.Bars = append(v.Bars, bar{i*10 + 1, y, height, why + 1})
			}
		}
		v.Hours = append(v.Hours, hourRow{time.Unix(h.at*3600, 0).UTC().Format("15:04"), h.n})
	}
	v.ChartFrom, v.ChartMiddle = v.Hours[0].At, v.Hours[hoursShown/2].At
}
