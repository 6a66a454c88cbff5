// What the follower hands over goes to its owner from here (nothing on that way asks the store); what cannot be read is set aside;
// and what the state is passed on as, to validators in other processes (the feed) and to another store (a copy).

package apitoken

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/feed"
	"github.com/apitoken-go/apitoken/internal/apikey"
	"github.com/apitoken-go/apitoken/internal/clients"
	"github.com/apitoken-go/apitoken/internal/deliver"
	"github.com/apitoken-go/apitoken/internal/feedlog"
	"github.com/apitoken-go/apitoken/internal/follow"
	"github.com/apitoken-go/apitoken/internal/grant"
	"github.com/apitoken-go/apitoken/internal/keyring"
	"github.com/apitoken-go/apitoken/internal/mover"
	"github.com/apitoken-go/apitoken/internal/namespace"
	"github.com/apitoken-go/apitoken/internal/once"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/internal/ticket"
	"github.com/apitoken-go/apitoken/internal/usage"
	"github.com/apitoken-go/apitoken/store"
)

// What a service makes of its store's state: each record goes to whom it concerns.

// snapshotKinds are read whole at start. API keys are not: a process reads each at its first sight, and follows
// the changes from then on.
var snapshotKinds = []store.Kind{store.KindMeta, store.KindKey, store.KindRole, store.KindClient, store.KindRule}

// followedKinds adds the API keys, of which only changes matter.
var followedKinds = append(snapshotKinds[:len(snapshotKinds):len(snapshotKinds)], store.KindAPIKey)

// apply hands a record to its owner.
func (s *Service) apply(r store.Record) error {
	switch r.Kind {
	case store.KindRule:
		if err := s.rules.ApplyRecord(r); err != nil {
			return err
		}
		if r.Type == rules.TargetKey.String() {
			s.SigningKeys.ring.Wake()
		}
		return s.feed.ApplyRule(r)
	case store.KindKey:
		err := s.SigningKeys.ring.Apply(r)
		if err != nil && s.over(r) {
			return nil // removed, and not purged yet
		}
		return err
	case store.KindClient:
		return public(s.Clients.known.Apply(r))
	case store.KindRole:
		return public(s.roles.Apply(r))
	case store.KindMeta:
		switch r.ID {
		case namespace.MovedID:
			s.state.Leave()
		case namespace.ID:
			if err := s.space.Changed(r); err != nil {
				return public(err)
			}
			if s.trust != nil {
				s.trust.Life.Store(int64(s.space.Life().Access))
			}
		}
	case store.KindAPIKey:
		s.feed.ApplyKey(r)
		return public(s.APIKeys.keys.Apply(r))
	}
	return nil // what else is meta is read where it is needed
}

// setAside makes what depends on a record that cannot be read fail closed.
func (s *Service) setAside(r store.Record, why error) error {
	switch r.Kind {
	case store.KindRule:
		if !s.rules.SetAside(r) {
			r.Type = rules.TargetAll.String() // as widest has it
			s.rules.SetAside(r)
		}
		return s.feed.ApplyRule(r)
	case store.KindClient:
		s.Clients.known.SetAside(r, why)
	case store.KindRole:
		s.roles.SetAside(r, why)
	case store.KindAPIKey:
		s.APIKeys.keys.SetAside(r)
	case store.KindMeta:
		s.space.SetAside()
	case store.KindKey: // a key that cannot be read signs and verifies nothing
	}
	return nil
}

// forget drops what was read of another history. The rules keep all they hold.
func (s *Service) forget() {
	s.Clients.known.Reset()
	s.APIKeys.keys.Reset()
	s.SigningKeys.ring.Reset()
	s.roles.Reset()
	s.feed.Reset()
}

// lost makes the janitor put back what the store lost.
func (s *Service) lost() {
	s.rules.Missing.Store(true)
	s.hasten()
}

func (s *Service) round(ctx context.Context, err error, took time.Duration) {
	s.observe(ctx, Observation{Op: "feed", Err: err, Took: took})
}

// A record that cannot be read, because it is damaged or a newer version wrote it, is set aside: whatever depends on it is
// refused, and nothing else. These are the operator's calls for such records.

// UnreadableRecord is a stored record that cannot be read.
type UnreadableRecord struct {
	Kind store.Kind
	ID   string
	Data []byte // as stored. It may hold hashes of credentials: show it to operators only
	Err  error  // why it cannot be read
}

// formKinds are the kinds of records that have a form, in the order in which Unreadable lists them.
var formKinds = []store.Kind{store.KindMeta, store.KindKey, store.KindRole, store.KindClient, store.KindRule, store.KindAPIKey,
	grant.Kind, ticket.Kind, once.Kind, usage.Kind, usage.KindSpent, deliver.Kind, namespace.CopyKind}

// readable reports why a record cannot be read; nil: it can.
func readable(r store.Record) error {
	switch r.Kind {
	case store.KindMeta:
		switch r.ID {
		case namespace.ID:
			return read(&namespace.MetaForm, r, new(namespace.Record))
		case namespace.MovedID:
			return read(&namespace.MovedForm, r, new(namespace.Tombstone))
		}
	case store.KindKey:
		return public(keyring.Readable(r))
	case store.KindRole:
		return read(&roleForm, r, new(roleRecord))
	case store.KindClient:
		return read(&clients.ClientForm, r, new(clients.Record))
	case store.KindRule:
		_, err := rules.ReadRule(r)
		return public(err)
	case store.KindAPIKey:
		return read(&apikey.Form, r, new(apikey.Record))
	case grant.Kind:
		return read(&grantForm, r, new(grantRecord))
	case ticket.Kind:
		return read(&ticketForm, r, new(ticketRecord))
	case once.Kind:
		if len(r.Data) > 0 { // without content it says that something was used
			return read(&once.Form, r, new(once.Record))
		}
	case usage.Kind:
		return read(&usage.UseForm, r, new(usage.Record))
	case usage.KindSpent:
		return read(&usage.SpentForm, r, new(usage.Spent))
	case deliver.Kind:
		return read(&deliver.CursorForm, r, new(deliver.Cursor))
	case namespace.CopyKind:
		return read(&mover.CopyForm, r, new(mover.Mark))
	}
	return nil
}

// Unreadable lists the stored records that cannot be read: first those that this process met and set aside, then, with all,
// every other one in the store, which reads the whole store. It is for operators.
func (s *Service) Unreadable(ctx context.Context, all bool) iter.Seq2[UnreadableRecord, error] {
	return func(yield func(UnreadableRecord, error) bool) {
		asides := s.state.Asides()
		names := make([]follow.Name, 0, len(asides))
		for n := range asides {
			names = append(names, n)
		}
		slices.SortFunc(names, func(a, b follow.Name) int { return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.ID, b.ID)) })
		for _, n := range names {
			r, err := s.get(ctx, n.Kind, n.ID)
			if isNotFound(err) || err == nil && s.over(r) {
				continue // ended since
			}
			if !yield(UnreadableRecord{Kind: n.Kind, ID: n.ID, Data: r.Data, Err: asides[n]}, err) {
				return
			}
		}
		if !all {
			return
		}

		for _, kind := range formKinds {
			for r, err := range s.pages(ctx, store.Query{Kind: kind}, Page{}) {
				if err != nil {
					yield(UnreadableRecord{Kind: kind}, err)
					return
				}
				_, known := asides[follow.Name{Kind: kind, ID: r.ID}]
				if why := readable(r); why != nil && !known && !s.over(r) && !yield(UnreadableRecord{Kind: kind, ID: r.ID, Data: r.Data, Err: why}, nil) {
					return
				}
			}
		}
	}
}

func (s *core) over(r store.Record) bool {
	return r.Expires != 0 && r.Expires <= s.now().UnixMilli()
}

// Repair replaces the content of a record that cannot be read, as Unreadable lists it, and writes an event.
// ErrInvalidRequest: the record can be read, or data cannot. ErrNotFound: there is no such record. A process that has met a
// revocation that it could not read refuses all that it may have been about until the process ends, though it is repaired.
func (s *Service) Repair(ctx context.Context, kind store.Kind, id string, data []byte) (failed error) {
	defer tell(&failed)
	return s.mend(ctx, kind, id, "repaired", func(c *change, r store.Record) error {
		v := r.Version
		if kind == store.KindRule {
			return s.putRule(c, r, data)
		}
		r.Data = data
		if err := readable(r); err != nil {
			return &Error{Code: ErrInvalidRequest, Detail: "the new content of " + string(kind) + " " + id + " cannot be read", Cause: err}
		}
		return bare(c, r, v)
	})
}

// putRule writes a rule in place of one that can't be read. The place in the order of changes stays what it was, or what is
// newer than the rule would be refused as well.
func (s *Service) putRule(c *change, r store.Record, data []byte) error {
	at := r.Pos.N
	x, err := rules.ReadRule(store.Record{Kind: r.Kind, ID: r.ID, Data: data, Pos: r.Pos})
	if err != nil {
		return &Error{Code: ErrInvalidRequest, Detail: "the new content of rule " + r.ID + " cannot be read", Cause: err}
	}
	if x.Q == 0 || x.Q > at {
		x.Q = at
	}
	return put(c, &rules.RuleForm, r, &x, r.Version)
}

// Remove ends a record that cannot be read, as Unreadable lists it, and writes an event. Nothing that was refused becomes good:
// a revocation is replaced by the widest one that the record may have been, a client by a disabled one without a credential, a
// role by one without scopes, an API key by a revoked one. ErrInvalidRequest: the record can be read, or the service can't be
// without it, such as the namespace's own; only Repair replaces that. ErrNotFound: there is no such record.
func (s *Service) Remove(ctx context.Context, kind store.Kind, id string) (failed error) {
	defer tell(&failed)
	return s.mend(ctx, kind, id, "removed", func(c *change, r store.Record) error {
		now := s.now()
		v := r.Version
		switch kind {
		case store.KindMeta, store.KindKey:
			if kind == store.KindMeta || !strings.Contains(id, ".") { // the lock of the signing keys
				return fail(ErrInvalidRequest, "without the record %q there is no service: repair it", id)
			}
		case store.KindRule:
			x := rules.Widest(r)
			x.Reason, x.At = "in place of a record that could not be read", max(x.At, 0)
			return put(c, &rules.RuleForm, r, &x, v)
		case store.KindClient:
			return put(c, &clients.ClientForm, r, &clients.Record{V: 1, Disabled: true, Created: now.UnixMilli()}, v)
		case store.KindRole:
			return put(c, &roleForm, r, &roleRecord{V: 1}, v)
		case store.KindAPIKey:
			return put(c, &apikey.Form, r, &apikey.Record{V: 1, Subject: r.Subject, Created: now.UnixMilli(), Revoked: now.UnixMilli()}, v)
		}
		// Nobody could use it, and Purge takes it away.
		r.Expires = now.UnixMilli()
		return bare(c, r, v)
	})
}

// mend writes what f makes of a record that cannot be read.
func (s *Service) mend(ctx context.Context, kind store.Kind, id, how string, f func(*change, store.Record) error) error {
	if !slices.Contains(formKinds, kind) {
		return fail(ErrInvalidRequest, "records of kind %q have no form", kind)
	}
	for range refreshTries {
		r, err := s.get(ctx, kind, id)
		if err != nil {
			return err
		}
		_, aside := s.state.Asides()[follow.Name{Kind: kind, ID: id}]
		if readable(r) == nil && !aside {
			return fail(ErrInvalidRequest, "%s %q can be read", kind, id)
		}
		c := s.newChange()
		if err := f(c, r); err != nil {
			return err
		}
		c.event(ctx, Event{Type: event.RecordChanged, OK: true, Reason: how, Subject: r.Subject, Client: r.Client, Grant: r.Grant, TokenID: r.Token,
			Extra: map[string]string{"kind": string(kind), "record": id}})
		if _, err = s.commit(ctx, c); !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
	return tryAgain("parallel changes of %s %s", kind, id)
}

// tellUnreadable shows a record that was set aside to the observers.
func (s *Service) tellUnreadable(r store.Record, why error) {
	s.observe(s.ctx, Observation{Op: "record", Err: unavailable(why, "stored "+string(r.Kind)+" "+r.ID+" cannot be read")})
}

// The feed of revocations and keys is made when somebody asks for it first, see package feedlog.

// Revocations implements [feed.Source] from memory: the rules behind a position, and what a validator without a
// store needs besides. At most max entries (zero: 10,000) in one answer.
func (s *Service) Revocations(ctx context.Context, after store.Position, max int) (feed.View, error) {
	if max <= 0 || max > feedlog.MaxPage {
		max = feedlog.MaxPage
	}
	if err := s.feed.Load(ctx); err != nil {
		return feed.View{}, unavailable(err, "read the rules")
	}
	w := s.trust.Look()
	age := s.trust.freshness(w, s.now()).Age
	v, ok := s.feed.Page(after, w.Pos, max)
	switch {
	case !ok:
		return feed.View{}, tryAgain("the store's history changed just now")
	case after != (store.Position{}) && after.History != w.Pos.History:
		return feed.View{}, store.ErrDiverged
	}
	v.Age, v.MaxLifetime, v.Prefix = age, s.space.Life().Access, s.cfg.Prefix
	return v, nil
}

// Package store/move calls this. Its errors are the root's to make.
func init() {
	mover.Service = func(ctx context.Context, from, to Store) (_ mover.Moved, failed error) {
		defer tell(&failed)
		done, err := mover.Move(ctx, from, to)
		return done, public(err)
	}
}
