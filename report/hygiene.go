package report

import (
	"context"
	"errors"
	"iter"
	"slices"
	"time"

	"github.com/apitoken-go/apitoken"
)

// HygieneConfig configures Hygiene. The zero value is fit for use.
type HygieneConfig struct {
	// Unused is how long an API key may lie without a use, and how old it must be before its scopes are judged. Zero: 90 days.
	Unused time.Duration
}

// Finding is one live API key that something is wrong with.
type Finding struct {
	Key      apitoken.APIKey
	Idle     time.Duration // since its last use or its making; zero: used within Unused
	NoExpiry bool          // it lives until somebody revokes it
	// Unused are the scopes that it holds and by which nothing was ever asked of it.
	Unused apitoken.Scopes
	// Narrower are the scopes that would have been enough for all that was ever asked of it, where they are less than it
	// holds: a suggestion. A new key with these, and not the old one, may be what its owner needs.
	Narrower apitoken.Scopes
}

const (
	defaultUnused = 90 * 24 * time.Hour
	keptScopes    = 32 // of apitoken.Usage.Scopes: as many may not be all
)

// Hygiene yields each live API key that was not used for c.Unused, has no expiry, or holds scopes that it does not use;
// the newest key first. It reads a page of keys at a time and holds no more. Of scopes it says nothing where no use of any was
// counted: its callers may be checked by something else than apitoken.Authorize, or in a process without a store.
func Hygiene(ctx context.Context, s *apitoken.Service, c HygieneConfig) iter.Seq2[Finding, error] {
	return func(yield func(Finding, error) bool) {
		if c.Unused < 0 {
			yield(Finding{}, errors.New("report: HygieneConfig.Unused is negative"))
			return
		}
		if c.Unused == 0 {
			c.Unused = defaultUnused
		}
		for k, err := range s.APIKeys.List(ctx, apitoken.Page{}) {
			if err != nil {
				if !yield(Finding{}, err) {
					return
				}
				continue
			}
			if f, bad := judge(k, c.Unused, s.Adapter().Now()); bad && !yield(f, nil) {
				return
			}
		}
	}
}

// judge looks at one key.
func judge(k apitoken.APIKey, unused time.Duration, now time.Time) (Finding, bool) {
	f := Finding{Key: k}
	if !alive(&k, now) {
		return f, false
	}
	last := k.Created
	if k.LastUsed.After(last) {
		last = k.LastUsed
	}
	if idle := now.Sub(last); idle >= unused {
		f.Idle = idle
	}
	f.NoExpiry = k.Expires.IsZero() && k.Replaced.IsZero()
	if now.Sub(k.Created) >= unused {
		f.Unused = unusedScopes(k.Scopes, k.UsedScopes)
		f.Narrower = narrower(k.Scopes, k.UsedScopes)
	}
	return f, f.Idle > 0 || f.NoExpiry || len(f.Unused) > 0 || len(f.Narrower) > 0
}

// conclusive reports whether used says anything about what was not used.
func conclusive(used apitoken.Scopes) bool { return len(used) > 0 && len(used) < keptScopes }

// unusedScopes are those of held that cover nothing that was used.
func unusedScopes(held, used apitoken.Scopes) apitoken.Scopes {
	if !conclusive(used) {
		return nil
	}
	var list apitoken.Scopes
	for _, h := range held {
		if !slices.ContainsFunc(used, h.Covers) {
			list = append(list, h)
		}
	}
	return list
}

// narrower is the least that covers all that was used, if that is less than held.
func narrower(held, used apitoken.Scopes) apitoken.Scopes {
	if !conclusive(used) {
		return nil
	}
	var list apitoken.Scopes
	for _, u := range used {
		others := func(o apitoken.Scope) bool { return o != u && o.Covers(u) }
		if !slices.ContainsFunc(used, others) && held.Cover(apitoken.Scopes{u}) {
			list = append(list, u)
		}
	}
	slices.Sort(list)
	if len(list) == 0 || list.Cover(held) {
		return nil
	}
	return list
}
