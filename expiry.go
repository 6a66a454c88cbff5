package apitoken

import (
	"context"
	"iter"
	"time"

	"github.com/apitoken-go/apitoken/store"
)

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
// refresh token. It reads all that there are, a page at a time, in no promised order.
func (s *Service) Expiring(ctx context.Context, before time.Time, grants bool) iter.Seq2[Expiry, error] {
	return func(yield func(Expiry, error) bool) {
		kinds := []store.Kind{store.KindAPIKey, store.KindClient}
		if grants {
			kinds = append(kinds, kindGrant)
		}
		for _, kind := range kinds {
			for r, err := range s.pages(ctx, store.Query{Kind: kind}, Page{}) {
				if err != nil {
					yield(Expiry{}, err)
					return
				}
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
func (s *Service) endings(r store.Record) ([]Expiry, error) {
	switch r.Kind {
	case store.KindAPIKey:
		var rec apiKeyRecord
		if err := read(&apiKeyForm, r, &rec); err != nil {
			return nil, err
		}
		end := rec.end()
		if end == 0 || rec.Revoked != 0 || s.rules.Hit(rec.ruleSubject(r.ID)) != "" {
			return nil, nil
		}
		return []Expiry{{Kind: "apikey", ID: r.ID, Owner: rec.Subject, Name: rec.Name, Created: time.UnixMilli(rec.Created), Ends: time.UnixMilli(end)}}, nil
	case store.KindClient:
		var rec clientRecord
		if err := read(&clientForm, r, &rec); err != nil {
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
