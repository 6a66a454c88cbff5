package apitoken

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/internal/usage"
	"github.com/apitoken-go/apitoken/store"
)

// Refusals and uses happen at every request, and refusals at the will of whoever sends them. They are counted in memory
// of a fixed size and written in batches: a crash loses at most half a minute of counts, and nobody can fill the disk.

// refusal is what is known of somebody whom a call refuses.
type refusal struct{ usage.Refusal }

// of names whose token d is.
func (r *refusal) of(s *core, d *tokenData) {
	r.Issuer, r.Subject, r.Client, r.Token, r.Grant = s.foreignIssuer(d), d.Subject, d.Client, d.ID, d.Grant
}

// by names the client that asks: as a fact if it proved who it is, or else as claimed.
func (r *refusal) by(who *caller) {
	switch {
	case who.none():
	case who.public:
		r.Claimed = who.id()
	default:
		r.Client = who.id()
	}
}

// confirmed is by for a client that was confirmed earlier in the request: it is known before anything else of the call is read.
func (r *refusal) confirmed(cs *Clients, a *ClientAuth) {
	if a.confirmed == nil {
		return
	}
	if c, err := cs.still(a); err == nil {
		r.by(&caller{*a, c.Public})
	}
}

// refusedEvent sums up what c counted.
func refusedEvent(c *usage.Refused) Event {
	e := Event{Type: EventType(c.Kind), Reason: c.Reason, Subject: c.Subject, Issuer: c.Issuer, Client: c.Client, TokenID: c.Token, Grant: c.Grant, Count: c.N}
	var list []string
	for _, a := range c.Addresses {
		list = append(list, a.String())
	}
	for name, v := range map[string]string{"addresses": strings.Join(list, " "), "claimed": c.Claimed, "why": strings.Join(c.Whys, "; ")} {
		if v == "" {
			continue
		}
		if e.Extra == nil {
			e.Extra = map[string]string{}
		}
		e.Extra[name] = v
	}
	return e
}

// useSlack is how long the uses of an API key are kept after the last one.
const useSlack = 400 * 24 * time.Hour

func newUses(s *core) *usage.Log {
	return usage.New(usage.Config{
		Now: s.now, Log: s.log, Get: s.get,
		Life: func(kind string) time.Duration {
			if kind == usage.Grant {
				return s.longest.Load().grant + grantSlack
			}
			return useSlack
		},
		Write: func(ctx context.Context, puts ...usage.Put) (store.Version, error) {
			c := s.newChange()
			for _, p := range puts {
				c.Put(p.Written, p.Expect)
			}
			_, err := s.commit(ctx, c)
			return c.ID, err
		},
	})
}

// met notes in c which scopes a request needed that was let through. Of several of which any is enough it notes one. It is on the
// path of every request: a request that asks for nothing new costs a look through a short list.
func met(c *usage.Counter, held heldScopes, r *Requirement) {
	list := c.Scopes()
	for _, s := range r.scopes {
		if slices.Contains(list, string(s)) {
			if r.kind == requireAny {
				return
			}
			continue
		}
		if r.kind == requireAny {
			if !held.allows(s) {
				continue
			}
			c.Asked(string(s))
			return
		}
		c.Asked(string(s))
	}
}

// Usage is how a grant or an API key was used: in processes with a store, where every validation counts, up to half a
// minute ago in the others. A process that ends by a crash loses as much.
type Usage struct {
	Count     uint64
	Last      time.Time // to within a second; zero: never
	Addresses []string  // by Origin, the latest first, at most 8
	// Scopes are those that [Authorize] asked of it and that it held: as they were asked for, which may be narrower than what
	// it holds. At most 32 are kept; 32 may not be all. A program that looks at Token.Scopes by itself leaves no trace here.
	Scopes Scopes
}

// Usage tells how the grant of ByGrant, or the API key of ByToken, was used: the zero Usage if it was not, and for IDs that
// nothing has. ErrInvalidRequest: another target, or a narrowed one.
func (s *Service) Usage(ctx context.Context, target Target) (Usage, error) {
	t := target.t
	switch t {
	case rules.ByGrant(t.Id):
		return s.audit.usage(ctx, usage.Grant, t.Id)
	case rules.ByToken(t.Id):
		return s.audit.usage(ctx, usage.APIKey, t.Id)
	}
	return Usage{}, fail(ErrInvalidRequest, "use is counted of one grant or one API key")
}

// usage is what is stored of a grant's or API key's use, and what this process has counted since.
func (a *auditLog) usage(ctx context.Context, kind, id string) (Usage, error) {
	u, err := a.uses.Read(ctx, kind, id)
	if err != nil {
		return Usage{}, public(err)
	}
	out := Usage{Count: u.Count, Addresses: u.From}
	for _, s := range u.Scopes {
		out.Scopes = append(out.Scopes, Scope(s))
	}
	if u.Last > 0 {
		out.Last = time.UnixMilli(u.Last)
	}
	return out, nil
}
