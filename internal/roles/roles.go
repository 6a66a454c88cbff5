// Package roles holds the roles of a service: the stored form of a role, and what each one expands to as this process knows it.
//
// It promises that a role whose record cannot be read is an error for whoever asks for it or has it, and never a role that gives
// nothing.
//
// The follower of the store calls Apply, SetAside and Reset in its turn, and nothing here asks the store. The mutex of a Book is a leaf.
// The root calls it: logins and sessions ask what their roles give, SetRole writes the records. S is the root's Scope.
package roles

import (
	"maps"
	"slices"
	"sync"

	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/record"
	"github.com/apitoken-go/apitoken/store"
)

// Max is how many roles one login may name.
const Max = 32

// Record is a role as it is stored.
type Record[S ~string] struct {
	V      int `json:"v"`
	Scopes []S `json:"scopes"`
	record.Ext
}

// RoleForm is the form of a role.
func RoleForm[S ~string]() *record.Form[Record[S]] {
	return &record.Form[Record[S]]{Kind: store.KindRole, Check: func(r *Record[S]) error { return commit.First(r.V) }}
}

// Book is what this process knows of the roles. The zero Book is empty.
type Book[S ~string] struct {
	mu    sync.RWMutex // guards what follows
	gives map[string][]S
	aside map[string]error // those whose record cannot be read
}

// Apply enters a role that the store has. An error: it cannot be read.
func (b *Book[S]) Apply(r store.Record) error {
	var rec Record[S]
	if err := commit.Read(RoleForm[S](), r, &rec); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.gives == nil {
		b.gives = map[string][]S{}
	}
	b.gives[r.ID] = rec.Scopes
	delete(b.aside, r.ID)
	return nil
}

// SetAside makes a role whose record cannot be read unavailable.
func (b *Book[S]) SetAside(r store.Record, why error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.aside == nil {
		b.aside = map[string]error{}
	}
	b.aside[r.ID] = why
	delete(b.gives, r.ID)
}

// Reset forgets all.
func (b *Book[S]) Reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.gives, b.aside = nil, nil
}

// Find is what a role expands to; false: there is no such role. fault.Unavailable: its record cannot be read.
func (b *Book[S]) Find(role string) ([]S, bool, error) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	if why := b.aside[role]; why != nil {
		return nil, false, fault.NoAnswer(why, "what role "+role+" gives cannot be read")
	}
	gives, ok := b.gives[role]
	return gives, ok, nil
}

// Give is what roles expand to together. A role that is not there any more gives nothing.
func (b *Book[S]) Give(roles []string) (all []S, err error) {
	for _, role := range roles {
		gives, _, err := b.Find(role)
		if err != nil {
			return nil, err
		}
		all = append(all, gives...)
	}
	return all, nil
}

// Expand is Give for roles that somebody asks for. fault.InvalidRequest: one of them is unknown or named twice, or they are too many.
func (b *Book[S]) Expand(roles []string) ([]S, error) {
	if len(roles) > Max {
		return nil, fault.Fail(fault.InvalidRequest, "%d roles, at most %d", len(roles), Max)
	}
	for i, role := range roles {
		_, ok, err := b.Find(role)
		if err != nil {
			return nil, err
		}
		if !ok || slices.Contains(roles[:i], role) {
			return nil, fault.Fail(fault.InvalidRequest, "role %q is unknown or named twice", role)
		}
	}
	return b.Give(roles)
}

// All is what each role expands to. The lists are shared.
func (b *Book[S]) All() map[string][]S {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return maps.Clone(b.gives)
}
