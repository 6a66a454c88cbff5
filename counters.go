package apitoken

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/internal/usage"
	"github.com/apitoken-go/apitoken/store"
)

// Refusals and uses happen at every request, and refusals at the will of whoever sends them. They are counted in memory
// of a fixed size and written in batches: a crash loses at most half a minute of counts, and nobody can fill the disk.

// tally counts refusals.
type tally struct {
	mu     sync.Mutex // guards all
	counts map[refusal]*refusalCount
	claims int // of counts, those of callers who proved nothing
}

// refusal is what is counted together. Who is refused is named only when the token was verified. claimed is the registered
// client that somebody said to be and did not prove: whom it was aimed at, not who it was.
type refusal struct {
	kind                            EventType
	reason                          string
	subject, client, token, grantID string
	issuer                          string // of subject and token; empty: our own
	claimed                         string
}

// of names whose token d is.
func (r *refusal) of(s *core, d *tokenData) {
	r.issuer, r.subject, r.client, r.token, r.grantID = s.foreignIssuer(d), d.Subject, d.Client, d.ID, d.Grant
}

// named reports whether r says who was refused.
func (r *refusal) named() bool {
	return r.subject != "" || r.client != "" || r.token != "" || r.grantID != "" || r.claimed != ""
}

// stranger reports whether r names nobody but a client that the caller only said to be.
func (r *refusal) stranger() bool {
	return r.claimed != "" && r.subject == "" && r.client == "" && r.token == "" && r.grantID == ""
}

type refusalCount struct {
	refusal
	n         int
	addresses []netip.Addr // the first few that were seen
	whys      []string     // the first few limits that said no, in words; not part of the key, so that no caller can multiply it
}

const (
	maxRefusals  = 128 // distinct ones between two flushes; the rest are counted without a name
	maxClaims    = 32  // of them for callers who proved nothing, so that strangers never take the room of the known
	maxAddresses = 8
	maxWhys      = 4
	flushBatch   = 16 // refusals in one change
)

func (t *tally) init() { t.counts = map[refusal]*refusalCount{} }

func (t *tally) one(r refusal, from netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.count(r, 1, from)
}

// oneFor is one with the limit that said no.
func (t *tally) oneFor(r refusal, why string, from netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.count(r, 1, from).add(why)
}

// add notes why, if it is new and there is room.
func (c *refusalCount) add(why string) {
	if why != "" && len(c.whys) < maxWhys && !slices.Contains(c.whys, why) {
		c.whys = append(c.whys, strings.Clone(why))
	}
}

// count adds n to what is counted as r, and returns it. The caller holds mu.
func (t *tally) count(r refusal, n int, from netip.Addr) *refusalCount {
	c := t.counts[r]
	if c == nil && (len(t.counts) >= maxRefusals || r.stranger() && t.claims >= maxClaims) {
		r = refusal{kind: r.kind, reason: r.reason}
		c = t.counts[r]
	}
	if c == nil {
		// The strings belong to a cached token or to a request: clone, so that neither is kept.
		r.subject, r.client, r.token, r.grantID = strings.Clone(r.subject), strings.Clone(r.client), strings.Clone(r.token), strings.Clone(r.grantID)
		r.issuer, r.claimed = strings.Clone(r.issuer), strings.Clone(r.claimed)
		c = &refusalCount{refusal: r}
		t.counts[r] = c
		if r.stranger() {
			t.claims++
		}
	}
	c.n += n
	if from.IsValid() && len(c.addresses) < maxAddresses && !slices.Contains(c.addresses, from) {
		c.addresses = append(c.addresses, from.WithZone(""))
	}
	return c
}

func (t *tally) take() []*refusalCount {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.counts) == 0 {
		return nil
	}
	out := make([]*refusalCount, 0, len(t.counts))
	for _, c := range t.counts {
		out = append(out, c)
	}
	t.counts, t.claims = map[refusal]*refusalCount{}, 0
	return out
}

func (t *tally) giveBack(list []*refusalCount) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range list {
		again := t.count(c.refusal, c.n, netip.Addr{})
		for _, a := range c.addresses {
			t.count(c.refusal, 0, a)
		}
		for _, why := range c.whys {
			again.add(why)
		}
	}
}

func (c *refusalCount) event() Event {
	e := Event{Type: c.kind, Reason: c.reason, Subject: c.subject, Issuer: c.issuer, Client: c.client, TokenID: c.token, Grant: c.grantID, Count: c.n}
	var list []string
	for _, a := range c.addresses {
		list = append(list, a.String())
	}
	for name, v := range map[string]string{"addresses": strings.Join(list, " "), "claimed": c.claimed, "why": strings.Join(c.whys, "; ")} {
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
