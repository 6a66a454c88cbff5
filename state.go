package apitoken

import (
	"context"
	"time"

	"github.com/apitoken-go/apitoken/internal/mover"
	"github.com/apitoken-go/apitoken/internal/rules"
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
		return s.Clients.applyRecord(r)
	case store.KindRole:
		return s.roles.applyRecord(r)
	case store.KindMeta:
		switch r.ID {
		case mover.MovedID:
			s.state.Leave()
		case metaID:
			return s.longer(r)
		}
	case store.KindAPIKey:
		s.feed.ApplyKey(r)
		return s.APIKeys.applyRecord(r)
	}
	return nil // what else is meta is read where it is needed
}

// setAside makes what depends on a record that can not be read fail closed.
func (s *Service) setAside(r store.Record, why error) error {
	switch r.Kind {
	case store.KindRule:
		if !s.rules.SetAside(r) {
			r.Type = rules.TargetAll.String() // as widest has it
			s.rules.SetAside(r)
		}
		return s.feed.ApplyRule(r)
	case store.KindClient:
		s.Clients.setAside(r, why)
	case store.KindRole:
		s.roles.setAside(r, why)
	case store.KindAPIKey:
		s.APIKeys.setAside(r)
	case store.KindMeta:
		s.unsure.Store(true) // how long tokens live: rules stay
	case store.KindKey: // a key that can not be read signs and verifies nothing
	}
	return nil
}

// forget drops what was read of another history. The rules keep all they hold.
func (s *Service) forget() {
	s.Clients.reset()
	s.APIKeys.reset()
	s.SigningKeys.ring.Reset()
	s.roles.reset()
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
