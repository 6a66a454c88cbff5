// What runs in the background: it removes what has ended, and writes rules back that the store lost. Expiring lists what ends soon.

package apitoken

import (
	"context"
	"hash/maphash"
	"iter"
	"time"

	"github.com/apitoken-go/apitoken/internal/apikey"
	"github.com/apitoken-go/apitoken/internal/clients"
	"github.com/apitoken-go/apitoken/internal/feedlog"
	"github.com/apitoken-go/apitoken/internal/follow"
	"github.com/apitoken-go/apitoken/internal/grant"
	"github.com/apitoken-go/apitoken/internal/lineage"
	"github.com/apitoken-go/apitoken/internal/note"
	"github.com/apitoken-go/apitoken/internal/once"
	"github.com/apitoken-go/apitoken/internal/quota"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/internal/ticket"
	"github.com/apitoken-go/apitoken/internal/usage"
	"github.com/apitoken-go/apitoken/store"
)

const (
	janitorEvery = 10 * time.Minute
	purgeStep    = 500 // records in one write, so that others do not wait
	purgePause   = 5 * time.Millisecond
)

// janitor removes what has expired, in small steps, and finishes rules that must wait for API keys to end.
type janitor struct {
	*core
	clients *Clients
	apiKeys *APIKeys
	feed    *feedlog.Log
}

func (s *Service) janitor() *janitor { return &janitor{s.core, s.Clients, s.APIKeys, s.feed} }

func (s *janitor) run(ctx context.Context) {
	clock := follow.NewClock(s.now)
	for {
		t := time.NewTimer(follow.Jitter(janitorEvery))
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-s.hurry:
			t.Stop()
			s.revoke.PutBack(ctx)
			if s.rules.Missing.Load() && !follow.Sleep(ctx, time.Second) { // the store is not there yet
				return
			}
			s.hasten()
		case <-t.C:
			s.tidy(ctx, clock.Now())
		}
	}
}

// tidy is one round. Removing something too early would bring tokens back to life, so that before comes from a clock
// that does not believe a jump; the store's own clock has the last word.
func (s *janitor) tidy(ctx context.Context, before time.Time) {
	if s.rules.Missing.Load() {
		s.revoke.PutBack(ctx)
	}
	if !s.space.Sure() {
		return
	}
	s.revoke.Finish(ctx, before, s.endKeys)
	for _, kind := range []store.Kind{store.KindRule, grant.Kind, ticket.Kind, once.Kind, note.Kind, store.KindAPIKey, store.KindKey, usage.Kind, usage.KindSpent, quota.Kind, lineage.Kind, store.KindClient, store.KindEvent} {
		before := before
		if kind == store.KindEvent {
			before = s.audit.Delivered(before)
		}
		for {
			n, err := s.st.Purge(ctx, kind, before.UnixMilli(), purgeStep)
			if err != nil {
				if ctx.Err() == nil {
					s.log.Warn("apitoken: purge failed", "kind", kind, "error", err)
				}
				return
			}
			if n < purgeStep || !follow.Sleep(ctx, purgePause) {
				break
			}
		}
	}
	s.rules.Sweep(before)
	s.feed.Sweep(before)
	s.clients.known.Sweep(ctx, before)
}

// endKeys writes the end into the API keys and client secrets that a rule hits, and reports whether none is left: then the rule needs not
// be kept for them.
func (s *janitor) endKeys(ctx context.Context, x rules.Record) bool {
	t := x.Target
	if t.Issuer != "" { // another's: it has none here
		return true
	}
	q := store.Query{Kind: store.KindAPIKey}
	switch t.Kind {
	case rules.TargetSubject, rules.TargetSessions:
		q.Subject = t.ID
	case rules.TargetToken:
		_, err := s.apiKeys.change(ctx, t.ID, "revoked", s.endKey)
		if isNotFound(err) {
			err = s.clients.known.Forget(ctx, t.ID)
		}
		if err != nil {
			return false
		}
		if !s.lineage.Any(ctx, lineage.Thing, t.ID) {
			return true
		}
	case rules.TargetAll, rules.TargetClient, rules.TargetGrant: // they, or what a client's token made
	default:
		return true
	}
	for r, err := range s.pages(ctx, q, Page{}) {
		if err != nil {
			return false
		}
		var rec apikey.Record
		if read(&apikey.Form, r, &rec) != nil || rec.Revoked != 0 || s.rules.Hit(rec.Rule(r.ID)) == "" {
			continue
		}
		if _, err := s.apiKeys.change(ctx, r.ID, "revoked", s.endKey); err != nil && !isNotFound(err) {
			return false
		}
	}
	return ctx.Err() == nil
}

func (s *janitor) endKey(rec *apikey.Record) error {
	if rec.Revoked == 0 {
		rec.Revoked = s.now().UnixMilli()
	}
	return nil
}

// Expiry is something that stops working by itself.
type Expiry struct {
	Kind    string // "apikey", "secret" (one of a client's) or "grant"
	ID      string // of the API key, the client, the grant
	Owner   string // the subject of an API key or grant, the client of a secret
	Client  string // the client of a grant or secret
	Name    string // of the API key or client, as shown to people
	Created time.Time
	Ends    time.Time // of an API key also what Rotate left it; of a grant its last day, not when it would be idle for too long
}

// Expiring lists what lives and ends before then: API keys and clients' secrets, with grants also sessions that have a
// refresh token. It reads those that do and the clients, a page at a time, in no promised order. Of what is changed meanwhile
// some may be left out.
func (s *Service) Expiring(ctx context.Context, before time.Time, grants bool) iter.Seq2[Expiry, error] {
	return func(yield func(Expiry, error) bool) {
		ends := func(kind store.Kind, slack time.Duration) store.Query { // of a record, behind the end that it tells of
			last := before
			if most := time.UnixMilli(1 << 62); last.After(most) { // later ones do not fit into milliseconds
				last = most
			}
			return store.Query{Kind: kind, ExpiresBefore: max(last.Add(slack).UnixMilli()+1, 1)}
		}
		queries := []store.Query{ends(store.KindAPIKey, apikey.Slack), {Kind: store.KindClient}}
		if grants {
			queries = append(queries, ends(grant.Kind, grant.Slack))
		}
		seed := maphash.MakeSeed()
		for _, q := range queries {
			seen := map[uint64]struct{}{} // a store may give a record twice
			for r, err := range s.pages(ctx, q, Page{}) {
				if err != nil {
					yield(Expiry{}, err)
					return
				}
				id := maphash.String(seed, r.ID)
				if _, again := seen[id]; again {
					continue
				}
				seen[id] = struct{}{}
				list, err := s.endings(r)
				if err != nil && !yield(Expiry{}, err) {
					return
				}
				now := s.now()
				for _, x := range list {
					if x.Ends.After(now) && x.Ends.Before(before) && !yield(x, nil) {
						return
					}
				}
			}
		}
	}
}

// endings are the ends that a record tells of, past ones too.
func (s *core) endings(r store.Record) ([]Expiry, error) {
	switch r.Kind {
	case store.KindAPIKey:
		rec, err := apikey.Read(r, s.rules)
		end := rec.End()
		if err != nil || end == 0 || rec.Revoked != 0 {
			return nil, public(err)
		}
		return []Expiry{{Kind: "apikey", ID: r.ID, Owner: rec.Subject, Name: rec.Name, Created: time.UnixMilli(rec.Created), Ends: time.UnixMilli(end)}}, nil
	case store.KindClient:
		var rec clients.Record
		if err := read(&clients.ClientForm, r, &rec); err != nil {
			return nil, err
		}
		var list []Expiry
		for _, x := range rec.Secrets {
			if x.Expires != 0 && !rec.Disabled {
				list = append(list, Expiry{Kind: "secret", ID: r.ID, Owner: r.ID, Client: r.ID, Name: rec.Name, Created: time.UnixMilli(x.Created), Ends: time.UnixMilli(x.Expires)})
			}
		}
		return list, nil
	default:
		g, err := readGrant(r)
		if err != nil {
			return nil, err
		}
		if s.alive(r.ID, g) != nil {
			return nil, nil
		}
		return []Expiry{{Kind: "grant", ID: r.ID, Owner: g.Subject, Client: g.Client, Created: time.UnixMilli(g.Created), Ends: time.UnixMilli(g.Expires)}}, nil
	}
}
