// The most scopes, audiences and lifetime that a caller may get, and what roles give (Roles, SetRole). internal/roles keeps the roles;
// an API key's own limit is in apikey_change.go.

package apitoken

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/revoke"
	"github.com/apitoken-go/apitoken/internal/roles"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/internal/text"
	"github.com/apitoken-go/apitoken/store"
)

// A ceiling is the most that may be given. Configuration, client, roles, and the token or grant that something is made from each
// limit it; what is asked for must lie below it. Everything that gives scopes, audiences or a lifetime computes them here: Issue,
// Prepare and Redeem, Refresh, Exchange, and API keys. Config.MayContinue has the last word, see mayContinue.
type ceiling struct {
	scopeLimit
	audiences []string // its default first
	life      Lifetimes
}

// ceiling is what the configuration lets c have. A zero ID or Config.FirstParty is the host itself, which no list of scopes limits.
func (s *core) ceiling(c *Client) ceiling {
	x := ceiling{scopeLimit{known: s.cfg.Scopes}, s.audiencesOf(c), s.lifetimes(c)}
	if c.ID != "" && c.ID != s.cfg.FirstParty {
		x.meet("client "+c.ID, c.Scopes)
	}
	return x
}

// lifetime of an access token: the one asked for, cut to the most.
func (x *ceiling) lifetime(asked time.Duration) (time.Duration, error) {
	switch {
	case asked < 0:
		return 0, fail(ErrInvalidRequest, "negative Lifetime")
	case asked == 0:
		return x.life.Access, nil
	}
	return max(min(asked, x.life.MaxAccess), time.Second), nil
}

// targets are the audiences asked for, all of which must be below x, the default where none is named; and those of them that a first
// token is for, nil where that names none.
func (x *ceiling) targets(asked, first []string) (list, narrow []string, _ error) {
	switch {
	case len(x.audiences) == 0:
		return nil, nil, fail(ErrInvalidTarget, "none of the client's audiences is in Config.Audience or Audiences")
	case len(asked) > maxAudiences:
		return nil, nil, fail(ErrInvalidTarget, "%d audiences, at most %d", len(asked), maxAudiences)
	}
	list, bad := x.audiences[:1:1], ""
	if len(asked) > 0 {
		list, bad = among(x.audiences, asked)
	}
	if bad != "" {
		return nil, nil, fail(ErrInvalidTarget, "audience %q is not among those that may be asked for, or named twice", bad)
	}
	if narrow, bad = among(list, first); bad != "" {
		return nil, nil, fail(ErrInvalidTarget, "audience %q was not granted, or is named twice", bad)
	}
	return list, narrow, nil
}

// among is asked, each as allowed writes it, or the first that is not allowed or that was named before in the same text.
func among(allowed, asked []string) (list []string, bad string) {
	for i, a := range asked {
		at := slices.IndexFunc(allowed, func(x string) bool { return text.SameResource(x, a) })
		if at < 0 || slices.Contains(asked[:i], a) {
			return nil, a
		}
		if !slices.Contains(list, allowed[at]) {
			list = append(list, allowed[at])
		}
	}
	return list, ""
}

// roleBook is what this process knows of the roles. They are state: every issuing process knows them all.
type roleBook = roles.Book[Scope]

// Roles returns what each role expands to now.
func (s *Service) Roles() map[string]Scopes {
	out := map[string]Scopes{}
	for name, gives := range s.roles.All() {
		out[name] = slices.Clone(gives)
	}
	return out
}

// SetRole defines what a role expands to, in every process. When it loses scopes, the tokens that carry the role are
// refused until they are minted again: a refresh gives what the role still gives. What a role gains is for new logins: a
// session is never given more than was granted when it began (RFC 6749 §6).
func (s *Service) SetRole(ctx context.Context, role string, scopes Scopes) (failed error) {
	defer tell(&failed)
	if err := s.cfg.checkRole(role, scopes); err != nil {
		return err
	}
	return public(commit.Retry("parallel changes of role "+role, func() error {
		r, err := s.get(ctx, store.KindRole, role)
		var old roleRecord
		switch {
		case isNotFound(err):
		case err != nil:
			return err
		default:
			if err := read(roleForm, r, &old); err != nil {
				return err
			}
		}
		next := roleRecord{V: 1, Scopes: sortedScopes(scopes), Ext: old.Ext}
		if old.V == 1 && slices.Equal(old.Scopes, next.Scopes) {
			return s.sync(ctx)
		}
		narrowed := !Scopes(next.Scopes).Cover(old.Scopes)
		if !narrowed {
			if err := s.ready(); err != nil {
				return err
			}
		}
		return s.writeRole(ctx, role, next, r.Version, narrowed)
	}))
}

func (s *minter) writeRole(ctx context.Context, role string, rec roleRecord, v store.Version, narrowed bool) error {
	c := s.newChange()
	if err := put(c, roleForm, store.Record{ID: role}, &rec, v); err != nil {
		return err
	}
	c.event(ctx, Event{Type: event.RoleChanged, OK: true, Reason: role, Scopes: rec.Scopes})
	if narrowed {
		r := revoke.Rule{Target: rules.ByRole(role), Mint: true, Reason: "role " + role + " lost scopes", Type: event.Revoked}
		return public(s.revoke.Write(ctx, &c.Change, r))
	}
	_, err := s.commit(ctx, c)
	return err
}

// defineRoles writes Config.Roles that nobody has defined yet: later changes are SetRole's.
func (s *minter) defineRoles(ctx context.Context) error {
	for _, role := range slices.Sorted(maps.Keys(s.cfg.Roles)) {
		if _, ok, err := s.roles.Find(role); ok || err != nil {
			continue
		}
		err := s.writeRole(ctx, role, roleRecord{V: 1, Scopes: sortedScopes(s.cfg.Roles[role])}, store.Version{}, false)
		if errors.Is(err, store.ErrConflict) { // another process was first
			err = s.state.Refresh(ctx)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
