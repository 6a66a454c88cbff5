package operate

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/report"
)

// Standing is how a service stands, from memory.
type Standing struct {
	Now       time.Time
	Settings  apitoken.Settings
	Freshness apitoken.Freshness
	Backlog   apitoken.Backlog

	Clients, Disabled int
}

// Standing tells how the service stands.
func (l Look) Standing() Standing {
	x := Standing{Now: l.svc.Adapter().Now(), Settings: l.svc.Settings(), Freshness: l.svc.Freshness(), Backlog: l.svc.Backlog()}
	x.Clients, x.Disabled = l.svc.Clients.Count()
	return x
}

// Now is the service's clock.
func (l Look) Now() time.Time { return l.svc.Adapter().Now() }

// Sessions lists live grants, the newest first: of a subject, of a client, of both, or all.
func (l Look) Sessions(ctx context.Context, subject, client, after string, limit int) (Page[apitoken.Grant], error) {
	target := apitoken.Everything()
	switch {
	case subject != "":
		target = apitoken.BySubject(subject)
	case client != "":
		target = apitoken.ByClient(client)
	}
	if subject != "" && client != "" {
		target = target.HeldBy(client)
	}
	return wait(ctx, l.turns, func(ctx context.Context) (Page[apitoken.Grant], error) {
		return Collect(l.svc.Grants(ctx, target, apitoken.Page{After: after}), limit, func(g apitoken.Grant) string { return g.ID })
	})
}

// Session is one live grant. ErrNotFound: there is none, or it has ended.
func (l Look) Session(ctx context.Context, id string) (apitoken.Grant, error) {
	return wait(ctx, l.turns, func(ctx context.Context) (apitoken.Grant, error) {
		for g, err := range l.svc.Grants(ctx, apitoken.ByGrant(id), apitoken.Page{Limit: 1}) {
			return g, err
		}
		return apitoken.Grant{}, &apitoken.Error{Code: apitoken.ErrNotFound, Detail: "no session"}
	})
}

// Keys lists API keys, the newest first: of a subject, or all.
func (l Look) Keys(ctx context.Context, subject, after string, limit int) (Page[apitoken.APIKey], error) {
	return wait(ctx, l.turns, func(ctx context.Context) (Page[apitoken.APIKey], error) {
		p := apitoken.Page{After: after}
		list := l.svc.APIKeys.List(ctx, p)
		if subject != "" {
			list = l.svc.APIKeys.Of(ctx, subject, p)
		}
		return Collect(list, limit, func(k apitoken.APIKey) string { return k.ID })
	})
}

// Key is one API key.
func (l Look) Key(ctx context.Context, id string) (apitoken.APIKey, error) {
	return wait(ctx, l.turns, func(ctx context.Context) (apitoken.APIKey, error) { return l.svc.APIKeys.Get(ctx, id) })
}

// Clients lists the registered clients.
func (l Look) Clients(ctx context.Context, after string, limit int) (Page[apitoken.Client], error) {
	return wait(ctx, l.turns, func(ctx context.Context) (Page[apitoken.Client], error) {
		return Collect(l.svc.Clients.List(ctx, apitoken.Page{After: after}), limit, func(c apitoken.Client) string { return c.ID })
	})
}

// Client is one client.
func (l Look) Client(ctx context.Context, id string) (apitoken.Client, error) {
	return wait(ctx, l.turns, func(ctx context.Context) (apitoken.Client, error) { return l.svc.Clients.Get(ctx, id) })
}

// Secrets are a client's live secrets, the oldest first.
func (l Look) Secrets(ctx context.Context, id string) ([]apitoken.ClientSecret, error) {
	return wait(ctx, l.turns, func(ctx context.Context) ([]apitoken.ClientSecret, error) { return l.svc.Clients.Secrets(ctx, id) })
}

// Role is a name for scopes.
type Role struct {
	Name   string
	Scopes apitoken.Scopes
}

// Roles are all roles, in the order of their names.
func (l Look) Roles() (list []Role) {
	roles := l.svc.Roles()
	for _, name := range slices.Sorted(maps.Keys(roles)) {
		list = append(list, Role{name, roles[name]})
	}
	return list
}

// Explain says which check lets a token in or refuses it, where a request needs all of some scopes, or any. ErrInvalidScope: one
// of them is none.
func (l Look) Explain(ctx context.Context, token string, needs apitoken.Scopes, any bool) (apitoken.Explanation, error) {
	for _, one := range needs {
		if !isScope(one) {
			return apitoken.Explanation{}, &apitoken.Error{Code: apitoken.ErrInvalidScope, Detail: "needs holds what is no scope (RFC 6749 §3.3)"}
		}
	}
	need := apitoken.Authenticated()
	switch {
	case len(needs) > 0 && any:
		need = apitoken.AnyOf(needs[0], needs[1:]...)
	case len(needs) > 0:
		need = apitoken.AllOf(needs[0], needs[1:]...)
	}
	return wait(ctx, l.turns, func(ctx context.Context) (apitoken.Explanation, error) {
		return l.svc.Explain(ctx, apitoken.Bearer(token), need), nil
	})
}

// isScope reports one scope, which AllOf and AnyOf take.
func isScope(s apitoken.Scope) bool {
	list, err := apitoken.ParseScopes(string(s))
	return err == nil && len(list) == 1
}

// EventPage reads audit events. It makes a Look what package export reads from.
func (l Look) EventPage(ctx context.Context, q apitoken.EventQuery, cursor string, limit int) ([]apitoken.Event, string, error) {
	type found struct {
		list []apitoken.Event
		next string
	}
	x, err := wait(ctx, l.turns, func(ctx context.Context) (x found, err error) {
		x.list, x.next, err = l.svc.EventPage(ctx, q, cursor, limit)
		return x, err
	})
	return x.list, x.next, err
}

// Event is one audit event.
func (l Look) Event(ctx context.Context, id string) (apitoken.Event, error) {
	return wait(ctx, l.turns, func(ctx context.Context) (apitoken.Event, error) { return l.svc.Event(ctx, id) })
}

// Filter is what a store can't select events by.
type Filter struct {
	Actor string // empty: anybody
	Good  bool   // leave out refusals and alerts
	Bad   bool   // leave out the others
}

// Keeps reports whether an event matches.
func (f Filter) Keeps(e *apitoken.Event) bool {
	bad := isBad(e)
	return !(f.Good && bad || f.Bad && !bad || f.Actor != "" && e.Actor != f.Actor)
}

// isBad reports a refusal or an alert.
func isBad(e *apitoken.Event) bool { return !e.OK || IsAlert(e) }

// IsAlert reports what somebody should look at: a credential in wrong hands, or an alert of the service's own.
func IsAlert(e *apitoken.Event) bool {
	return e.Type == event.Alert || e.Type == event.Reused || e.Type == event.Leaked
}

// SigningKeys are the public sides of the signing keys.
func (l Look) SigningKeys(ctx context.Context) ([]apitoken.SigningKey, error) {
	return wait(ctx, l.turns, l.svc.SigningKeys.List)
}

// Endings are what ends soon.
type Endings struct {
	Items []apitoken.Expiry // the first to end first
	Total int
}

// Expiring lists the first API keys and client secrets to end before a time, limit at most, and counts all of them. It reads
// all of those and the clients: no page waits for it.
func (l Look) Expiring(ctx context.Context, before time.Time, limit int) (Endings, error) {
	return wait(ctx, l.turns, func(ctx context.Context) (e Endings, err error) {
		for x, err := range l.svc.Expiring(ctx, before, false) {
			if err != nil {
				return e, err
			}
			e.Total++
			at, _ := slices.BinarySearchFunc(e.Items, x, func(a, b apitoken.Expiry) int { return a.Ends.Compare(b.Ends) })
			if at < limit {
				e.Items = slices.Insert(e.Items, at, x)
				e.Items = e.Items[:min(len(e.Items), limit)]
			}
		}
		return e, nil
	})
}

// Findings are API keys that nobody needs as they are.
type Findings struct {
	Items []report.Finding
	More  bool // than the limit
}

// Hygiene lists API keys that nobody needs as they are. It reads all that there are: no page waits for it.
func (l Look) Hygiene(ctx context.Context, unused time.Duration, limit int) (Findings, error) {
	return wait(ctx, l.turns, func(ctx context.Context) (f Findings, err error) {
		for x, err := range report.Hygiene(ctx, l.svc, report.HygieneConfig{Unused: unused}) {
			switch {
			case err != nil:
				return f, err
			case len(f.Items) == limit:
				f.More = true
				return f, nil
			}
			f.Items = append(f.Items, x)
		}
		return f, nil
	})
}

// Blast tells what came of one session or key.
func (l Look) Blast(ctx context.Context, t apitoken.Target) (*report.Radius, error) {
	return wait(ctx, l.turns, func(ctx context.Context) (*report.Radius, error) { return report.Blast(ctx, l.svc, t) })
}

// Unreadable lists stored records that can't be read, limit at most: those that the process has met, or with all the whole store's.
func (l Look) Unreadable(ctx context.Context, all bool, limit int) ([]apitoken.UnreadableRecord, error) {
	return wait(ctx, l.turns, func(ctx context.Context) (list []apitoken.UnreadableRecord, err error) {
		for r, err := range l.svc.Unreadable(ctx, all) {
			if err != nil {
				return nil, err
			}
			if list = append(list, r); len(list) == limit {
				break
			}
		}
		return list, nil
	})
}
