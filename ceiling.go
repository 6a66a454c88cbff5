package apitoken

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/record"
	"github.com/apitoken-go/apitoken/internal/revoke"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/internal/text"
	"github.com/apitoken-go/apitoken/store"
)

// A ceiling is the most that may be given. Configuration, client, roles, and the token or grant that something is made from each
// limit it; what is asked for must lie below it. Everything that gives scopes, audiences or a lifetime computes them here: Issue,
// Prepare and Redeem, Refresh, Exchange, API keys, and the registration of clients. Config.MayContinue has the last word, see
// mayContinue.
type ceiling struct {
	cfg       *Config
	bounded   bool     // by a list; else the host itself asks, and gives what it likes
	scopes    Scopes   // the list
	by        string   // who bounded it last, for errors
	audiences []string // its default first
	life      Lifetimes
}

// ceiling is what the configuration lets c have. A zero ID or Config.FirstParty is the host itself, which no list of scopes bounds.
func (s *core) ceiling(c *Client) ceiling {
	x := ceiling{cfg: &s.cfg, audiences: s.audiencesOf(c), life: s.lifetimes(c)}
	if c.ID != "" && c.ID != s.cfg.FirstParty {
		x.meet("client "+c.ID, c.Scopes)
	}
	return x
}

// meet limits x to what by holds too.
func (x *ceiling) meet(by string, held Scopes) {
	if x.bounded {
		held = intersectScopes(held, x.scopes)
	}
	x.scopes, x.bounded, x.by = held, true, by
}

// all is the whole list in order, without scopes that Config.Scopes does not name any more.
func (x *ceiling) all() Scopes {
	return slices.DeleteFunc(sortedScopes(x.scopes), func(s Scope) bool { return !x.cfg.knows(s) })
}

// take is what was asked for, all of which must be below x. Who asks for none gets none.
func (x *ceiling) take(asked Scopes) (Scopes, error) {
	if err := x.check(asked); err != nil {
		return nil, err
	}
	if !x.covers(asked) {
		return nil, fail(ErrInvalidScope, "%s may not have all of %q", x.by, asked.String())
	}
	return sortedScopes(asked), nil
}

func (x *ceiling) covers(asked Scopes) bool { return !x.bounded || x.scopes.Cover(asked) }

// check refuses what is no scope, or none that Config.Scopes names.
func (x *ceiling) check(asked Scopes) error {
	if err := asked.check(); err != nil {
		return err
	}
	return x.cfg.known(asked)
}

// targets are the audiences asked for, all of which must be below x; the default where none is named.
func (x *ceiling) targets(asked []string) ([]string, error) {
	switch {
	case len(x.audiences) == 0:
		return nil, fail(ErrInvalidTarget, "none of the client's audiences is in Config.Audience or Audiences")
	case len(asked) == 0:
		return x.audiences[:1:1], nil
	case len(asked) > maxAudiences:
		return nil, fail(ErrInvalidTarget, "%d audiences, at most %d", len(asked), maxAudiences)
	}
	list, bad := among(x.audiences, asked)
	if bad != "" {
		return nil, fail(ErrInvalidTarget, "audience %q is not among those that may be asked for, or named twice", bad)
	}
	return list, nil
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

// scopesFor is what is given to whoever asks for scopes with roles. Without roles the scopes themselves are; with roles, what
// they give below x, limited to the scopes where some are named.
func (b *roleBook) scopesFor(x *ceiling, asked Scopes, roles []string) (Scopes, error) {
	if len(roles) == 0 {
		return x.take(asked)
	}
	if err := x.check(asked); err != nil {
		return nil, err
	}
	if len(roles) > maxRoles {
		return nil, fail(ErrInvalidRequest, "%d roles, at most %d", len(roles), maxRoles)
	}
	for i, role := range roles {
		_, ok, err := b.known(role)
		if err != nil {
			return nil, err
		}
		if !ok || slices.Contains(roles[:i], role) {
			return nil, fail(ErrInvalidRequest, "role %q is unknown or named twice", role)
		}
	}
	given, err := b.give(roles)
	if err != nil {
		return nil, err
	}
	x.meet("the roles", given)
	if len(asked) > 0 {
		x.meet("the request", asked)
	}
	return x.all(), nil
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

// roleBook holds what each role expands to. Roles are state: every issuing process knows them all.
type roleBook struct {
	*core
	mu    sync.RWMutex // guards what follows
	roles map[string]roleRecord
	aside map[string]error // those whose record cannot be read
	vers  map[string]store.Version
}

type roleRecord struct {
	V      int    `json:"v"`
	Scopes Scopes `json:"scopes"`
	record.Ext
}

var roleForm = record.Form[roleRecord]{Kind: store.KindRole, Check: func(rec *roleRecord) error { return commit.First(rec.V) }}

func newRoleBook(s *core) *roleBook {
	b := &roleBook{core: s}
	b.reset()
	return b
}

func (b *roleBook) reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.roles, b.aside, b.vers = map[string]roleRecord{}, map[string]error{}, map[string]store.Version{}
}

func (b *roleBook) applyRecord(r store.Record) error {
	var rec roleRecord
	if err := read(&roleForm, r, &rec); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.roles[r.ID], b.vers[r.ID] = rec, r.Version
	delete(b.aside, r.ID)
	return nil
}

func (b *roleBook) setAside(r store.Record, why error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.roles, r.ID)
	b.aside[r.ID] = why
}

// known is what a role expands to. A role whose record cannot be read is an error, never one that is not there.
func (b *roleBook) known(role string) (Scopes, bool, error) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	if why := b.aside[role]; why != nil {
		return nil, false, unavailable(why, "what role "+role+" gives cannot be read")
	}
	rec, ok := b.roles[role]
	return rec.Scopes, ok, nil
}

// give is what roles expand to together. One that is not there gives nothing.
func (b *roleBook) give(roles []string) (Scopes, error) {
	var given Scopes
	for _, role := range roles {
		scopes, _, err := b.known(role)
		if err != nil {
			return nil, err
		}
		given = append(given, scopes...)
	}
	return given, nil
}

// Roles returns what each role expands to now.
func (s *Service) Roles() map[string]Scopes {
	s.roles.mu.RLock()
	defer s.roles.mu.RUnlock()
	out := make(map[string]Scopes, len(s.roles.roles))
	for name, rec := range s.roles.roles {
		out[name] = slices.Clone(rec.Scopes)
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
	for range refreshTries {
		r, err := s.get(ctx, store.KindRole, role)
		var old roleRecord
		switch {
		case isNotFound(err):
		case err != nil:
			return err
		default:
			if err := read(&roleForm, r, &old); err != nil {
				return err
			}
		}
		next := roleRecord{V: 1, Scopes: sortedScopes(scopes), Ext: old.Ext}
		if old.V == 1 && slices.Equal(old.Scopes, next.Scopes) {
			return s.Sync(ctx)
		}
		narrowed := !next.Scopes.Cover(old.Scopes)
		if !narrowed {
			if err := s.ready(); err != nil {
				return err
			}
		}
		err = s.roles.write(ctx, role, next, r.Version, narrowed)
		if !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
	return tryAgain("parallel changes of role %s", role)
}

func (s *roleBook) write(ctx context.Context, role string, rec roleRecord, v store.Version, narrowed bool) error {
	c := s.newChange()
	if err := put(c, &roleForm, store.Record{ID: role}, &rec, v); err != nil {
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

// define writes Config.Roles that nobody has defined yet: later changes are SetRole's.
func (s *roleBook) define(ctx context.Context) error {
	for _, role := range slices.Sorted(maps.Keys(s.cfg.Roles)) {
		if _, ok, err := s.known(role); ok || err != nil {
			continue
		}
		err := s.write(ctx, role, roleRecord{V: 1, Scopes: sortedScopes(s.cfg.Roles[role])}, store.Version{}, false)
		if errors.Is(err, store.ErrConflict) { // another process was first
			err = s.state.Refresh(ctx)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
