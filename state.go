// What the follower hands over goes to its owner from here (nothing on that way asks the store); what cannot be read is set aside;
// and what the state is passed on as to validators in other processes, the feed.

package apitoken

import (
	"context"
	"iter"
	"time"

	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/feed"
	"github.com/apitoken-go/apitoken/internal/aside"
	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/feedlog"
	"github.com/apitoken-go/apitoken/internal/mover"
	"github.com/apitoken-go/apitoken/internal/namespace"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/store"
)

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
		if err != nil && r.Expires != 0 && r.Expires <= s.now().UnixMilli() {
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

// tellUnreadable shows a record that was set aside to the observers.
func (s *Service) tellUnreadable(r store.Record, why error) {
	s.observe(s.ctx, Observation{Op: "record", Err: unavailable(why, "stored "+string(r.Kind)+" "+r.ID+" cannot be read")})
}

// A record that cannot be read, because it is damaged or a newer version wrote it, is set aside: whatever depends on it is
// refused, and nothing else. These are the operator's calls for such records, see package aside.

// UnreadableRecord is a stored record that cannot be read.
type UnreadableRecord struct {
	Kind store.Kind
	ID   string
	Data []byte // as stored. It may hold hashes of credentials: show it to operators only
	Err  error  // why it cannot be read
}

// Unreadable lists the stored records that cannot be read: first those that this process met and set aside, then, with all,
// every other one in the store, which reads the whole store. It is for operators.
func (s *Service) Unreadable(ctx context.Context, all bool) iter.Seq2[UnreadableRecord, error] {
	return func(yield func(UnreadableRecord, error) bool) {
		for r, err := range s.asides().List(ctx, all) {
			r.Err = public(r.Err)
			if !yield(UnreadableRecord(r), public(err)) {
				return
			}
		}
	}
}

// Repair replaces the content of a record that cannot be read, as Unreadable lists it, and writes an event.
// ErrInvalidRequest: the record can be read, or data cannot. ErrNotFound: there is no such record. A process that has met a
// revocation that it could not read refuses all that it may have been about until the process ends, though it is repaired.
func (s *Service) Repair(ctx context.Context, kind store.Kind, id string, data []byte) (failed error) {
	defer tell(&failed)
	return public(s.asides().Repair(ctx, kind, id, data))
}

// Remove ends a record that cannot be read, as Unreadable lists it, and writes an event. Nothing that was refused becomes good:
// a revocation is replaced by the widest one that the record may have been, a client by a disabled one without a credential, a
// role by one without scopes, an API key by a revoked one. ErrInvalidRequest: the record can be read, or the service can't be
// without it, such as the namespace's own; only Repair replaces that. ErrNotFound: there is no such record.
func (s *Service) Remove(ctx context.Context, kind store.Kind, id string) (failed error) {
	defer tell(&failed)
	return public(s.asides().Remove(ctx, kind, id))
}

func (s *Service) asides() *aside.Records {
	return &aside.Records{Writer: &s.writer, Now: s.now, Event: func(ctx context.Context, c *commit.Change, how string, r store.Record) {
		e := Event{Type: event.RecordChanged, OK: true, Reason: how, Subject: r.Subject, Client: r.Client, Grant: r.Grant, TokenID: r.Token,
			Extra: map[string]string{"kind": string(r.Kind), "record": r.ID}}
		c.Events = append(c.Events, s.core.record(ctx, &e, nil))
	}}
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
