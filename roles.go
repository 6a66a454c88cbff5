package apitoken

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"

	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/record"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/store"
)

// roleBook holds what each role expands to. Roles are state: every issuing process knows them all.
type roleBook struct {
	mu    sync.RWMutex // guards what follows
	roles map[string]roleRecord
	aside map[string]error // those whose record can not be read
	vers  map[string]store.Version
}

type roleRecord struct {
	V      int    `json:"v"`
	Scopes Scopes `json:"scopes"`
	record.Ext
}

var roleForm = record.Form[roleRecord]{Kind: store.KindRole, Check: func(rec *roleRecord) error { return commit.First(rec.V) }}

func newRoleBook() *roleBook {
	b := &roleBook{}
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

// known is what a role expands to. A role whose record can not be read is an error, never one that is not there.
func (b *roleBook) known(role string) (Scopes, bool, error) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	if why := b.aside[role]; why != nil {
		return nil, false, unavailable(why, "what role "+role+" gives can not be read")
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
	for try := 0; try < refreshTries; try++ {
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
			if err := s.audit.ready(); err != nil {
				return err
			}
		}
		err = s.writeRole(ctx, role, next, r.Version, narrowed)
		if !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
	return &Error{Code: ErrUnavailable, RetryAfter: retryHint, Detail: "parallel changes of role " + role}
}

func (s *Service) writeRole(ctx context.Context, role string, rec roleRecord, v store.Version, narrowed bool) error {
	e := Event{Type: EventRoleChanged, OK: true, Reason: role, Scopes: rec.Scopes}
	if narrowed {
		return s.writeRule(ctx, rules.ByRole(role), true, "role "+role+" lost scopes", EventRevoked, func(c *change) error {
			c.event(ctx, e)
			return put(c, &roleForm, store.Record{ID: role}, &rec, v)
		})
	}
	c := s.newChange()
	if err := put(c, &roleForm, store.Record{ID: role}, &rec, v); err != nil {
		return err
	}
	c.event(ctx, e)
	_, err := s.commit(ctx, c)
	return err
}

// defineRoles writes Config.Roles that nobody has defined yet: later changes are SetRole's.
func (s *Service) defineRoles(ctx context.Context) error {
	for _, role := range slices.Sorted(maps.Keys(s.cfg.Roles)) {
		if _, ok, err := s.roles.known(role); ok || err != nil {
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
