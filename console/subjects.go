package console

import (
	"context"
	"errors"
	"html/template"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/internal/opaque"
)

type recentSubject struct {
	Name string
	Last template.HTML
	When time.Time
}

type subjectsPage struct {
	*page
	Recent []recentSubject
	NoLog  bool
	Token  bool // what was looked up is a credential
}

var saySubjects = say("Subjects")

func (c *Console) subjects(w http.ResponseWriter, r *http.Request, p *page) error {
	if q := r.URL.Query().Get("q"); q != "" {
		return c.find(w, r, p, q)
	}
	return c.showSubjects(w, r, p, http.StatusOK, false)
}

func (c *Console) showSubjects(w http.ResponseWriter, r *http.Request, p *page, status int, token bool) error {
	p.title, p.nav = p.text(saySubjects), "/admin/subjects"
	v := &subjectsPage{page: p, Token: token}
	list, _, err := p.look.EventPage(r.Context(), apitoken.EventQuery{}, "", 200)
	v.NoLog = err != nil
	seen := map[string]bool{}
	for _, e := range list {
		if e.Subject == "" || seen[e.Subject] || len(v.Recent) == 10 {
			continue
		}
		seen[e.Subject] = true
		v.Recent = append(v.Recent, recentSubject{e.Subject, p.kind(e.Type), e.Time})
	}
	return p.show(w, status, "subjects", v)
}

func (c *Console) lookUp(w http.ResponseWriter, r *http.Request, p *page) error {
	return c.find(w, r, p, r.PostForm.Get("q"))
}

// find goes to the page of what q names. A credential is not put into a URL.
func (c *Console) find(w http.ResponseWriter, r *http.Request, p *page, q string) error {
	q = strings.TrimSpace(q)
	switch {
	case q == "":
		http.Redirect(w, r, c.url("/admin/subjects"), http.StatusSeeOther)
		return nil
	case isCredential(q):
		return c.showSubjects(w, r, p, http.StatusUnprocessableEntity, true)
	}
	ctx := r.Context()
	to := c.url("/admin/subjects", q)
	_, err := p.look.Client(ctx, q)
	switch {
	case err == nil:
		to = c.url("/admin/clients", q)
	case !errors.Is(err, apitoken.ErrNotFound):
		return err
	default:
		if k, err := p.look.Key(ctx, q); err == nil {
			to = c.url("/admin/subjects", k.Subject)
		} else if g, err := p.look.Session(ctx, q); err == nil {
			to = c.url("/admin/subjects", g.Subject)
		}
	}
	http.Redirect(w, r, to, http.StatusSeeOther)
	return nil
}

// isCredential reports text that has the shape of a token: three parts of a JWT, or what misuse.Find finds.
func isCredential(s string) bool {
	for range opaque.Find([]byte(s)) {
		return true
	}
	return strings.HasPrefix(s, "eyJ") && strings.Count(s, ".") >= 2
}

type radiusRow struct {
	ID, Client string
	Subject    string
	Uses       uint64
	Scopes     apitoken.Scopes
	Addresses  []string
}

type subjectPage struct {
	*page
	Subject          string
	Sessions         []sessionRow
	Keys             []keyRow
	Events           []eventRow
	HasSessions      bool
	HasKeys          bool
	HasEvents        bool
	MoreSessions     bool
	MoreKeys         bool
	ClientIDs        []string
	Of               string // whose blast radius is shown
	Radius           []radiusRow
	RadiusMore       bool
	RadiusUnknown    bool
	Reason, What, At string
	Errors           []fieldError
	Failed           template.HTML
}

// shownOf is how many sessions and keys the page of a subject shows.
const shownOf = 20

func (c *Console) subject(w http.ResponseWriter, r *http.Request, p *page) error {
	p.setFlash(r)
	v := &subjectPage{page: p, Subject: r.PathValue("s"), Of: r.URL.Query().Get("of"), What: "sessions"}
	return c.showSubject(w, r, v, http.StatusOK)
}

func (c *Console) showSubject(w http.ResponseWriter, r *http.Request, v *subjectPage, status int) error {
	p, ctx := v.page, r.Context()
	p.title, p.nav = p.text("%s", v.Subject), "/admin/subjects"
	together(
		func() {
			list, err := p.look.Sessions(ctx, v.Subject, "", "", shownOf)
			v.HasSessions, v.MoreSessions = err == nil, list.Next != ""
			names := c.clientNames(ctx, list.Items)
			for _, g := range list.Items {
				v.Sessions = append(v.Sessions, p.session(g, names))
				if !slices.Contains(v.ClientIDs, g.Client) {
					v.ClientIDs = append(v.ClientIDs, g.Client)
				}
			}
		},
		func() {
			list, err := p.look.Keys(ctx, v.Subject, "", shownOf)
			v.HasKeys, v.MoreKeys = err == nil, list.Next != ""
			for _, k := range list.Items {
				v.Keys = append(v.Keys, p.row(k))
			}
		},
		func() {
			list, known := c.newest(ctx, 10, nil, apitoken.EventQuery{Subject: v.Subject})
			v.Events, v.HasEvents = p.eventRows(list), known
		},
		func() { v.blast(ctx, c) },
	)
	return p.show(w, status, "subject", v)
}

// blast reads what came of one session or key, as far as there is time.
func (v *subjectPage) blast(ctx context.Context, c *Console) {
	var t apitoken.Target
	if v.Of == "" {
		return
	}
	if t.UnmarshalText([]byte(v.Of)) != nil {
		v.Of = ""
		return
	}
	x, err := v.look.Blast(ctx, t)
	if err != nil {
		v.RadiusUnknown = true
		return
	}
	v.RadiusMore = x.More
	for _, s := range x.Sessions[:min(len(x.Sessions), pageSize)] {
		row := radiusRow{ID: s.ID, Client: s.Client, Subject: s.Subject, Uses: s.Usage.Count, Scopes: s.Usage.Scopes, Addresses: s.Usage.Addresses}
		v.Radius = append(v.Radius, row)
	}
}

var (
	sayNotRevoked  = say("Nothing was revoked.")
	sayErrReason   = say("Say why")
	sayErrConfirm  = say("Type the name exactly")
	sayErrClient   = say("Choose a client")
	sayErrBefore   = say("The time cannot be read")
	sayRevokeHeld  = say("Revoke what %s holds")
	sayEndOneThing = say("End one session or key")
)

// red reads what a red form must say: why, and the name of what it ends where that is more than one thing.
func (p *page) red(r *http.Request, confirm string) (reason string, errs []fieldError) {
	reason, err := p.reason(r)
	if err != nil {
		errs = append(errs, fieldError{"why", p.text(sayErrReason)})
	}
	if confirm != "" && r.PostForm.Get("confirm") != confirm {
		errs = append(errs, fieldError{"sure", p.text(sayErrConfirm)})
	}
	return reason, errs
}

func (c *Console) revokeSubject(w http.ResponseWriter, r *http.Request, p *page) error {
	s, in := r.PathValue("s"), r.PostForm
	v := &subjectPage{page: p, Subject: s, What: in.Get("what"), Reason: in.Get("reason"), At: in.Get("before")}
	reason, errs := p.red(r, s)
	var target apitoken.Target
	switch v.What {
	case "sessions":
		target = apitoken.BySessions(s)
	case "all":
		target = apitoken.BySubject(s)
	case "client":
		if target = apitoken.BySubject(s).HeldBy(in.Get("client")); in.Get("client") == "" {
			errs = append(errs, fieldError{"cl", p.text(sayErrClient)})
		}
	default:
		return errBody
	}
	if v.At != "" {
		at, err := time.Parse("2006-01-02T15:04", v.At)
		if target = target.IssuedBefore(at); err != nil {
			errs = append(errs, fieldError{"bf", p.text(sayErrBefore)})
		}
	}
	if len(errs) > 0 {
		v.Errors, v.Failed = errs, p.text(sayNotRevoked)
		return c.showSubject(w, r, v, http.StatusUnprocessableEntity)
	}
	return c.revoke(w, r, p, target, reason, p.text(sayRevokeHeld, s), c.url("/admin/subjects", s, "?done=held"))
}

// revoke ends a target and goes on. A write that fails is in force here.
func (c *Console) revoke(w http.ResponseWriter, r *http.Request, p *page, t apitoken.Target, reason string, what template.HTML, to string) error {
	if err := p.act.Revoke(r.Context(), t, reason); err != nil {
		return orUnwritten(err, unwritten{What: what, InForce: true})
	}
	http.Redirect(w, r, to, http.StatusSeeOther)
	return nil
}

func (c *Console) endOne(w http.ResponseWriter, r *http.Request, p *page) error {
	target := apitoken.ByGrant(r.PostForm.Get("grant"))
	if key := r.PostForm.Get("key"); key != "" {
		target = apitoken.ByToken(key)
	}
	return c.revoke(w, r, p, target, "ended by an operator", p.text(sayEndOneThing), c.url("/admin/subjects", r.PathValue("s"), "?done=held"))
}

// ableKey refuses a key until it is enabled again, or enables it.
func (c *Console) ableKey(w http.ResponseWriter, r *http.Request, p *page) error {
	id, disabled := r.PostForm.Get("key"), r.PostForm.Get("do") == "disable"
	what, done := p.text(sayEnableIt, id), "key-enabled"
	if disabled {
		what, done = p.text(sayDisableIt, id), "key-disabled"
	}
	if _, err := p.act.EditKey(r.Context(), id, func(k *apitoken.APIKey) error { k.Disabled = disabled; return nil }); err != nil {
		return orUnwritten(err, unwritten{What: what})
	}
	http.Redirect(w, r, c.url("/admin/subjects", r.PathValue("s"), "?done="+done), http.StatusSeeOther)
	return nil
}
