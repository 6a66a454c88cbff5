package apitoken

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/internal/usage"
	"github.com/apitoken-go/apitoken/store"
)

// useSlack is how long the uses of an API key are kept after the last one.
const useSlack = 400 * 24 * time.Hour

func newUses(s *core) *usage.Log {
	return usage.New(usage.Config{
		Now: s.now, Log: s.log, Get: s.get,
		Life: func(kind string) time.Duration {
			if kind == usage.Grant {
				return s.space.Life().Grant + grantSlack
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

// consumer is a Validator whose tokens may be limited by rate or by number of uses. [Authorize] calls it once for each
// request that it lets through; Validate alone never consumes anything. A Validator that only passes on what a [Service]
// answered need not be one: Authorize then asks that Service.
type consumer interface {
	// Consume takes one use of t: nil, ErrLimited, or ErrUnavailable.
	Consume(ctx context.Context, t Token) error
}

// Consume takes one use of t, as [Authorize] does for each request that it lets through: nil, ErrLimited or ErrUnavailable. Tokens that are not API keys, and keys without a limit, cost nothing. Uses are
// reserved in batches of at most a sixteenth of what remains: never more than MaxUses in all processes, to the last one exact
// below 32, and a process that dies may lose its batch.
func (s *Service) Consume(ctx context.Context, t Token) error {
	err := s.APIKeys.take(ctx, t)
	if errors.Is(err, ErrLimited) {
		if e := s.APIKeys.known(t.ID()); e != nil {
			var known refusal
			known.of(s.core, e.d)
			s.audit.denied(ctx, reasonOf(err), known, err)
		}
	}
	return err
}

// take is Consume for calls that count their refusals themselves.
func (k *APIKeys) take(ctx context.Context, t Token) error {
	if t.IsZero() || !t.IsAPIKey() || t.Issuer() != k.s.cfg.Issuer {
		return nil
	}
	return k.consume(ctx, t.ID())
}

// Consume takes one use of t where the validator is a service's, as [Service.Consume] says.
func (v *JWTValidator) Consume(ctx context.Context, t Token) error {
	if v.consume == nil {
		return nil
	}
	return v.consume(ctx, t)
}
