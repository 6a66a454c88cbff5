package report

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
)

// Radius is what came from a grant, an API key or an access token: itself and all that was made of it. It holds no secret.
type Radius struct {
	// Target names the whole cut: one rule on it ends all that is listed, and what was made of it since.
	Target apitoken.Target
	// Sessions are the one that was asked about, first, and what was exchanged from it, directly or further on, the oldest
	// first; at most 1,000.
	Sessions []Session
	More     bool // there are more sessions; Revoke ends them too
	// Gone says that the event of its beginning is no longer kept, so that what came from it early may be missing.
	Gone bool
}

// Session is one grant, API key or access token of a Radius.
type Session struct {
	Kind   string   // "grant", "apikey" or "token"
	ID     string   // of the grant or API key; the jti of a token
	From   []string // the sessions of the report that it was exchanged from, directly or further back, oldest first
	Opened Seen

	Subject, Client string
	Actor           string // who acts for Subject, if it was exchanged so
	Live            bool   // a grant that can be refreshed, an API key that works. Access tokens die by themselves

	Tokens, Refreshes, Exchanges int // access tokens made for it; how many of them by refreshing; sessions exchanged from it, directly or further on
	Refused                      int // presentations of it that were refused

	Held apitoken.Scopes // at its opening
	// Usage is of the grant or API key. A token has that of its whole grant: uses are not counted for each.
	Usage    apitoken.Usage
	Requests []Seen // where its tokens were asked for: the last 8 places, the latest first
	Revoked  Seen   // the first revocation that named it; zero: none did. One of its subject or client is not seen here
	Reason   string // of that revocation
}

// Seen is a time and a place.
type Seen struct {
	Time time.Time
	apitoken.Origin
}

const (
	maxSessions = 1000
	maxRequests = 8
)

// Unused are the scopes of Held by which nothing was asked that it held: what it had beyond what it needed. They are nil, and
// say nothing, where no use of any scope was seen, or more than are kept.
func (x *Session) Unused() apitoken.Scopes { return unusedScopes(x.Held, x.Usage.Scopes) }

// Uses is how often anything of the cut was used.
func (r *Radius) Uses() uint64 {
	var n uint64
	for i := range r.Sessions {
		n += r.Sessions[i].Usage.Count
	}
	return n
}

// Addresses are where anything of the cut was used or asked for, each once, the latest first of each session.
func (r *Radius) Addresses() []string {
	var list []string
	add := func(a string) {
		if a != "" && !slices.Contains(list, a) {
			list = append(list, a)
		}
	}
	for i := range r.Sessions {
		for _, a := range r.Sessions[i].Usage.Addresses {
			add(a)
		}
		for _, q := range r.Sessions[i].Requests {
			if q.Address.IsValid() {
				add(q.Address.String())
			}
		}
	}
	return list
}

// Used are the scopes that the cut was used with.
func (r *Radius) Used() apitoken.Scopes {
	var list apitoken.Scopes
	for i := range r.Sessions {
		list = append(list, r.Sessions[i].Usage.Scopes...)
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// Revoke ends the whole cut by one rule, what was exchanged from it after the report too. Errors are those of
// Revoker.Revoke. Where it is urgent, revoke first and ask for the report afterwards: it tells the same.
func (r *Radius) Revoke(ctx context.Context, by apitoken.Revoker, reason string) error {
	return by.Revoke(ctx, r.Target, reason)
}

// BlastOf is [Blast] of a token in clear, live or dead: an access or refresh token stands for its grant, an API key for itself.
// ErrNotFound: it was not issued here.
func BlastOf(ctx context.Context, s *apitoken.Service, token apitoken.Secret) (*Radius, error) {
	t, err := s.TargetOf(ctx, token.Reveal())
	if err != nil {
		return nil, err
	}
	// The text leaves out whose token was shown: the grant is one, whichever of its tokens stands for it.
	if err := t.UnmarshalText([]byte(t.String())); err != nil {
		return nil, err
	}
	return Blast(ctx, s, t)
}

// Blast tells what came from the grant of ByGrant, or from the API key or single access token of ByToken. It reads the events of
// each session and those of all exchanges since the first was opened, a page at a time.
// ErrNotFound: neither a record nor an event knows it. ErrInvalidRequest: another target, or a narrowed one.
func Blast(ctx context.Context, s *apitoken.Service, t apitoken.Target) (*Radius, error) {
	first, err := root(ctx, s, t)
	if err != nil {
		return nil, err
	}
	r := &Radius{Target: t, Gone: first.Opened.Time.IsZero()}
	cut := map[string]int{first.ID: 0} // index in Sessions
	r.Sessions = append(r.Sessions, first.Session)
	since := first.Opened.Time
	if !first.created.IsZero() && (since.IsZero() || first.created.Before(since)) {
		since = first.created
	}
	if !since.IsZero() {
		since = since.Add(-clocks) // events are selected by the store's clock
	}
	q := apitoken.EventQuery{Type: event.Exchanged, From: since, OldestFirst: true}
	for e, err := range s.Events(ctx, q) {
		if err != nil {
			return nil, err
		}
		// The chain holds every ancestor, so that one pass finds them all.
		chain := strings.Fields(e.Extra["chain"])
		if !slices.Contains(chain, first.ID) {
			continue
		}
		if _, known := cut[e.Grant]; known {
			continue
		}
		if len(r.Sessions) == maxSessions {
			r.More = true
			break
		}
		x := Session{Kind: "grant", ID: e.Grant, Subject: e.Subject, Client: e.Client}
		for _, id := range chain {
			if i, ok := cut[id]; ok {
				x.From = append(x.From, id)
				r.Sessions[i].Exchanges++
			}
		}
		cut[e.Grant] = len(r.Sessions)
		r.Sessions = append(r.Sessions, x)
	}
	for i := range r.Sessions[1:] {
		if err := r.Sessions[1+i].fill(ctx, s); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// clocks is what the clocks of the store and of a process may differ by, generously: it only widens a search.
const clocks = time.Hour

// found is the first session, and what its record says.
type found struct {
	Session
	created time.Time
}

// root finds the session that t names.
func root(ctx context.Context, s *apitoken.Service, t apitoken.Target) (*found, error) {
	kind, id, _ := strings.Cut(t.String(), ":")
	x := &found{}
	switch t {
	case apitoken.ByGrant(id):
		x.Kind, x.ID = "grant", id
	case apitoken.ByToken(id):
		x.Kind, x.ID = "token", id
		k, err := s.APIKeys.Get(ctx, id)
		switch {
		case err == nil:
			x.key(&k)
		case !errors.Is(err, apitoken.ErrNotFound):
			return nil, err
		}
	default:
		return nil, &apitoken.Error{Code: apitoken.ErrInvalidRequest, Detail: fmt.Sprintf("a report is of one grant, API key or token, not of a %s", kind)}
	}
	known := x.Kind == "apikey"
	if x.Kind == "grant" {
		for g, err := range s.Grants(ctx, t, apitoken.Page{}) {
			if err != nil {
				return nil, err
			}
			x.created, known = g.Created, true
			x.Subject, x.Client, x.Held = g.Subject, g.Client, g.Scopes
		}
	}
	if err := x.fill(ctx, s); err != nil {
		return nil, err
	}
	if !known && x.Opened.Time.IsZero() && x.Tokens+x.Refused == 0 && x.Usage.Count == 0 {
		return nil, &apitoken.Error{Code: apitoken.ErrNotFound, Detail: "no record and no event of " + t.String()}
	}
	return x, nil
}

// key notes what an API key's record says.
func (x *found) key(k *apitoken.APIKey) {
	x.Kind, x.Subject, x.Held = "apikey", k.Subject, k.Scopes
	x.created = k.Created
}

// fill reads the session's events, its use and whether it lives.
func (x *Session) fill(ctx context.Context, s *apitoken.Service) error {
	q := apitoken.EventQuery{OldestFirst: true}
	if x.Kind == "grant" {
		q.Grant = x.ID
	} else {
		q.TokenID = x.ID
	}
	session := x.ID
	for e, err := range s.Events(ctx, q) {
		if err != nil {
			return err
		}
		x.add(&e)
		if x.Kind == "token" && e.Grant != "" {
			session = e.Grant
		}
	}
	var err error
	if x.Kind == "apikey" {
		x.Usage, err = s.Usage(ctx, apitoken.ByToken(x.ID))
		if err != nil {
			return err
		}
		k, err := s.APIKeys.Get(ctx, x.ID)
		if err != nil && !errors.Is(err, apitoken.ErrNotFound) {
			return err
		}
		x.Live = err == nil && alive(&k, s.Adapter().Now())
		return nil
	}
	if x.Usage, err = s.Usage(ctx, apitoken.ByGrant(session)); err != nil {
		return err
	}
	if x.Kind == "grant" {
		for _, err := range s.Grants(ctx, apitoken.ByGrant(x.ID), apitoken.Page{}) {
			if err != nil {
				return err
			}
			x.Live = true
		}
	}
	return nil
}

// add takes one event of the session into account.
func (x *Session) add(e *apitoken.Event) {
	at := Seen{e.Time, e.Origin}
	switch e.Type {
	case event.Issued, event.Exchanged, event.Refreshed:
		x.Tokens++
		if e.Type == event.Refreshed {
			x.Refreshes++
		}
		x.Requests = slices.Insert(x.Requests, 0, at)
		if len(x.Requests) > maxRequests {
			x.Requests = x.Requests[:maxRequests]
		}
		if x.Opened.Time.IsZero() && (e.Type != event.Refreshed || x.Kind == "token") {
			x.Opened, x.Held = at, e.Scopes
			x.Subject, x.Client, x.Actor = e.Subject, e.Client, e.Extra["actor"]
		}
	case event.APIKeyChanged:
		if x.Opened.Time.IsZero() && (e.Reason == "created" || strings.HasPrefix(e.Reason, "rotated from ")) {
			x.Opened = at
		}
	case event.Refused:
		x.Refused += e.Count
	case event.Revoked, event.Reused, event.Leaked:
		if x.Revoked.Time.IsZero() {
			x.Revoked, x.Reason = at, e.Reason
		}
	}
}

// alive reports whether an API key works at now.
func alive(k *apitoken.APIKey, now time.Time) bool {
	return !k.Revoked && (k.Expires.IsZero() || now.Before(k.Expires)) && (k.Replaced.IsZero() || now.Before(k.Replaced))
}
