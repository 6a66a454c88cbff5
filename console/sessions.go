package console

import (
	"context"
	"errors"
	"html/template"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
)

func (c *Console) serveSessions() {
	c.mux.HandleFunc("GET "+c.base+"/sessions", c.page(anyone, c.listSessions))
	c.mux.HandleFunc("POST "+c.base+"/sessions/end", c.page(anyone, c.endSession))
	c.mux.HandleFunc("POST "+c.base+"/sessions/end-others", c.page(anyone, c.endOthers))
}

// sessionRow is a session as a list shows it.
type sessionRow struct {
	apitoken.Grant
	Device string
	Client string // as people know it
	Idle   template.HTML
	Here   bool
}

type sessionsPage struct {
	*page
	Rows   []sessionRow
	Others int
	More   bool
	Lately []historyRow
	NoLog  bool
	pager
}

var (
	saySessions  = say("Sessions")
	sayThisSite  = say("this site")
	sayIdle      = say("Idle %s")
	sayEndOne    = say("End the session")
	sayEndOthers = say("End all other sessions")
	sayUnknownUA = say("Unknown device")
)

const idle = 14 * 24 * time.Hour

func (c *Console) listSessions(w http.ResponseWriter, r *http.Request, p *page) error {
	p.title, p.nav = p.text(saySessions), "/sessions"
	p.setFlash(r)
	after := r.URL.Query().Get("after")
	list, err := p.look.Sessions(r.Context(), p.actor.Subject, "", after, pageSize)
	if err != nil {
		return err
	}
	v := &sessionsPage{page: p}
	if list.Next != "" {
		v.Next = c.url("/sessions", query("after", list.Next))
	}
	if after != "" {
		v.First = c.url("/sessions")
	}
	names := c.clientNames(r.Context(), list.Items)
	for _, g := range list.Items {
		row := p.session(g, names)
		if !row.Here {
			v.Others++
		}
		v.Rows = append(v.Rows, row)
	}
	events, _, err := p.look.EventPage(r.Context(), apitoken.EventQuery{Subject: p.actor.Subject}, "", 30)
	v.NoLog = err != nil
	for _, e := range events {
		if e.Type != event.Refreshed && len(v.Lately) < 8 {
			v.Lately = append(v.Lately, p.history(e))
		}
	}
	return p.show(w, http.StatusOK, "sessions", v)
}

func (p *page) session(g apitoken.Grant, names map[string]string) sessionRow {
	row := sessionRow{Grant: g, Here: g.ID == p.actor.Grant && g.ID != "", Device: device(g.UserAgent), Client: names[g.Client]}
	if row.Device == "" {
		row.Device = string(p.text(sayUnknownUA))
	}
	if g.Client == p.c.set.FirstParty {
		row.Client = string(p.text(sayThisSite))
	} else if row.Client == "" {
		row.Client = g.Client
	}
	seen := g.LastUsed
	if seen.IsZero() {
		seen = g.Created
	}
	if d := p.now.Sub(seen); d > idle {
		row.Idle = p.text(sayIdle, p.Length(d))
	}
	return row
}

// clientNames are the names of the clients of a page of sessions, from this process's memory.
func (c *Console) clientNames(ctx context.Context, list []apitoken.Grant) map[string]string {
	names := map[string]string{}
	for _, g := range list {
		if _, seen := names[g.Client]; seen || g.Client == c.set.FirstParty {
			continue
		}
		x, err := ask(ctx, c, func(ctx context.Context) (apitoken.Client, error) { return c.svc.Clients.Known(ctx, g.Client) })
		if names[g.Client] = x.Name; err != nil {
			names[g.Client] = ""
		}
	}
	return names
}

// device is what a user agent says of itself, in words for people; empty: nothing that is known.
func device(ua string) string {
	find := func(names ...string) string {
		for i := 0; i < len(names); i += 2 {
			if strings.Contains(ua, names[i]) {
				return names[i+1]
			}
		}
		return ""
	}
	if !strings.HasPrefix(ua, "Mozilla/") {
		first, _, _ := strings.Cut(ua, " ")
		name, _, _ := strings.Cut(first, "/")
		return name
	}
	browser := find("Edg/", "Edge", "OPR/", "Opera", "Firefox/", "Firefox", "Chrome/", "Chrome", "Safari/", "Safari")
	system := find("iPhone", "iPhone", "iPad", "iPad", "Android", "Android", "Windows", "Windows", "Mac OS X", "macOS", "CrOS", "ChromeOS", "Linux", "Linux")
	switch {
	case browser == "" || system == "":
		return browser + system
	}
	return browser + ", " + system
}

func (c *Console) endSession(w http.ResponseWriter, r *http.Request, p *page) error {
	id := r.PostForm.Get("grant")
	if id == "" {
		return errNotFound
	}
	_, err := ask(r.Context(), c, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, c.svc.Revoke(ctx, apitoken.ByGrant(id).OwnedBy(p.actor.Subject), "ended from the list of sessions")
	})
	if err != nil {
		return orUnwritten(err, unwritten{What: p.text(sayEndOne)})
	}
	http.Redirect(w, r, c.url("/sessions", "?done=ended"), http.StatusSeeOther)
	return nil
}

func (c *Console) endOthers(w http.ResponseWriter, r *http.Request, p *page) error {
	if err := c.confirmed(p); err != nil {
		return err
	}
	const reason = "all other sessions ended by their owner"
	done, keysToo := "others", r.PostForm.Get("keys") != ""
	_, err := ask(r.Context(), c, func(ctx context.Context) (struct{}, error) {
		err := c.endOtherSessions(ctx, p.actor.Subject, p.actor.Grant, reason)
		if keysToo && err == nil {
			err = c.endKeys(ctx, p.actor.Subject, reason)
		}
		return struct{}{}, err
	})
	if keysToo {
		done = "all"
	}
	if err != nil {
		return orUnwritten(err, unwritten{What: p.text(sayEndOthers)})
	}
	http.Redirect(w, r, c.url("/sessions", "?done="+done), http.StatusSeeOther)
	return nil
}

// endOtherSessions ends a subject's sessions but for one; empty: there is none to spare, and one rule does it. Else each session
// that can be listed is ended by itself; what has no refresh token ends within Lifetimes.MaxAccess. What is left when ctx ends is
// ErrUnavailable: the same form sent again goes on there.
func (c *Console) endOtherSessions(ctx context.Context, subject, grant, reason string) error {
	if grant == "" {
		return c.svc.Revoke(ctx, apitoken.BySessions(subject), reason)
	}
	var ends []apitoken.Target
	for g, err := range c.svc.Grants(ctx, apitoken.BySessions(subject), apitoken.Page{}) {
		if err != nil {
			return err
		}
		if g.ID != grant {
			ends = append(ends, apitoken.ByGrant(g.ID))
		}
	}
	return c.endEach(ctx, ends, reason)
}

func (c *Console) endKeys(ctx context.Context, subject, reason string) error {
	var ends []apitoken.Target
	for k, err := range c.svc.APIKeys.Of(ctx, subject, apitoken.Page{}) {
		if err != nil {
			return err
		}
		if !k.Revoked {
			ends = append(ends, apitoken.ByToken(k.ID))
		}
	}
	return c.endEach(ctx, ends, reason)
}

// endEach ends several things, eight at a time: a store commits together what comes together.
func (c *Console) endEach(ctx context.Context, ends []apitoken.Target, reason string) error {
	var wg sync.WaitGroup
	errs := make([]error, len(ends))
	turns := make(chan struct{}, 8)
	for i, t := range ends {
		if ctx.Err() != nil {
			errs[i] = apitoken.ErrUnavailable
			break
		}
		turns <- struct{}{}
		wg.Add(1)
		go func() {
			defer func() { <-turns; wg.Done() }()
			errs[i] = c.svc.Revoke(ctx, t, reason)
		}()
	}
	wg.Wait()
	return errors.Join(errs...)
}
