package apitoken

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"time"

	"github.com/apitoken-go/apitoken/internal/mover"
	"github.com/apitoken-go/apitoken/internal/record"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/store"
)

// metaRecord is what the services on one namespace agree on.
type metaRecord struct {
	V         int    `json:"v"`
	Issuer    string `json:"issuer"`
	Namespace string `json:"ns"`      // random, part of every MAC, hash and associated data
	History   uint64 `json:"history"` // that the services have accepted
	MaxAccess int64  `json:"access"`  // the longest lifetimes ever configured, ms: how long rules must be kept
	MaxGrant  int64  `json:"grant"`
	// MaxForeign is the same of access tokens of trusted issuers, which our rules may name.
	MaxForeign int64 `json:"foreign,omitempty"`
	// Copied is when the namespace was filled by Copy, Unix ms: its events from before bear times of then in the store.
	Copied [2]int64 `json:"copied,omitzero"`
	// MaxSame is MaxForeign of those whose subjects, clients and roles are ours, so that rules on these must live as long.
	MaxSame int64 `json:"same,omitempty"`
	record.Ext
}

const metaID = "service"

var metaForm = record.Form[metaRecord]{Kind: store.KindMeta}

// lifespans are the longest that tokens of this service may ever live.
type lifespans struct {
	access, grant, foreign time.Duration
	same                   time.Duration // of foreign tokens whose users are ours
}

// openNamespace reads what the namespace is, or makes it what the configuration says. One issuer owns a namespace.
func (s *Service) openNamespace(ctx context.Context) error {
	for try := 0; try < refreshTries; try++ {
		r, err := s.st.Get(ctx, store.KindMeta, metaID)
		var m metaRecord
		s.born = false
		switch {
		case errors.Is(err, store.ErrNotFound):
			if err := s.refuseForeign(ctx); err != nil {
				return err
			}
			var ns [16]byte
			rand.Read(ns[:])
			m = metaRecord{V: 1, Issuer: s.cfg.Issuer, Namespace: hex.EncodeToString(ns[:])}
			s.born = true
		case err != nil:
			return startError(ctx, unavailable(err, "read the namespace"))
		default:
			if err := read(&metaForm, r, &m); err != nil {
				return startError(ctx, err)
			}
			if _, err := s.st.Get(ctx, store.KindMeta, mover.MovedID); err == nil {
				return wrong("Store", "the service has moved to another store")
			}
		}
		if m.V != 1 || len(m.Namespace) != 32 {
			return wrong("Store", "the namespace is damaged or of a newer version")
		}
		if m.Issuer != s.cfg.Issuer {
			return wrong("Issuer", "the store's namespace belongs to issuer %q: one issuer for each namespace", m.Issuer)
		}
		next := m
		next.MaxAccess = max(m.MaxAccess, s.cfg.Lifetimes.MaxAccess.Milliseconds())
		next.MaxGrant = max(m.MaxGrant, s.cfg.Lifetimes.Grant.Milliseconds())
		for _, t := range s.cfg.Trust {
			life := t.stays(s.now()).Milliseconds()
			next.MaxForeign = max(next.MaxForeign, life)
			if t.Profile != nil && t.Profile.SameUsers {
				next.MaxSame = max(next.MaxSame, life)
			}
		}
		s.ns, s.accepted, s.copied = m.Namespace, m.History, m.Copied
		ms := func(n int64) time.Duration { return time.Duration(n) * time.Millisecond }
		s.longest.Store(&lifespans{access: ms(next.MaxAccess), grant: ms(next.MaxGrant), foreign: ms(next.MaxForeign), same: ms(next.MaxSame)})
		if next == m {
			return nil
		}
		if err := s.writeMeta(ctx, next, r.Version); !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
	return startError(ctx, errors.New("other processes keep changing the namespace"))
}

// longer takes what another service on the namespace has configured: its tokens may live longer than ours, and rules on them
// must.
func (s *Service) longer(r store.Record) error {
	var m metaRecord
	if err := read(&metaForm, r, &m); err != nil {
		return err
	}
	s.unsure.Store(false)
	old := s.longest.Load()
	ms := func(n int64) time.Duration { return time.Duration(n) * time.Millisecond }
	next := lifespans{access: max(old.access, ms(m.MaxAccess)), grant: max(old.grant, ms(m.MaxGrant)), foreign: max(old.foreign, ms(m.MaxForeign)), same: max(old.same, ms(m.MaxSame))}
	s.longest.Store(&next)
	if s.trust != nil {
		s.trust.Life.Store(int64(next.access))
	}
	return nil
}

// refuseForeign keeps a service from making a namespace of its own beside records whose namespace record is gone.
func (s *Service) refuseForeign(ctx context.Context) error {
	v, err := s.st.Follow(ctx, store.Position{}, nil, 1)
	if err != nil {
		return startError(ctx, unavailable(err, "read the store"))
	}
	if _, err := s.st.Get(ctx, mover.KindMark, mover.MarkID); err == nil {
		return wrong("Store", "a Copy into it has not succeeded yet: repeat it")
	}
	if len(v.Records) > 0 && v.Records[0].Kind != store.KindMeta {
		// Or others that start beside this one have made the namespace since it was looked for, and more.
		switch _, err := s.st.Get(ctx, store.KindMeta, metaID); {
		case err == nil:
			return nil // what writes the namespace's record finds that it is there
		case !errors.Is(err, store.ErrNotFound):
			return startError(ctx, unavailable(err, "read the store"))
		}
		return wrong("Store", "it has records and no namespace: it is damaged, or not a store of this module")
	}
	return nil
}

func (s *Service) writeMeta(ctx context.Context, m metaRecord, v store.Version) error {
	c := s.newChange()
	if err := put(c, &metaForm, store.Record{ID: metaID}, &m, v); err != nil {
		return err
	}
	_, err := s.writer.Apply(ctx, &c.Change)
	return public(err)
}

// afterRestore compares the store's history with the one that was accepted. Another one means that acknowledged
// writes may be lost, revocations among them: it takes a choice.
func (s *Service) afterRestore(ctx context.Context) error {
	now := s.state.Position().History
	if s.accepted == now || now == 0 {
		return nil
	}
	if s.accepted != 0 {
		switch s.cfg.Restored {
		case RefuseRestored:
			return wrong("Restored", "the store was restored from a backup, or lost its latest writes: revocations since then may be missing. RevokeOnRestore ends all sessions and API keys; ReplayedRestored says that the host replays them")
		case RevokeOnRestore:
			if err := s.revoke(WithActor(ctx, "restore"), rules.Everything(), "the store was restored", EventRevoked); err != nil {
				return err
			}
		}
		s.log.Warn("apitoken: a restored store was accepted", "choice", int(s.cfg.Restored))
	}
	for try := 0; try < refreshTries; try++ {
		r, err := s.st.Get(ctx, store.KindMeta, metaID)
		if err != nil {
			return unavailable(err, "read the namespace")
		}
		var m metaRecord
		if err := read(&metaForm, r, &m); err != nil {
			return err
		}
		m.History = now
		if err := s.writeMeta(ctx, m, r.Version); !errors.Is(err, store.ErrConflict) {
			s.accepted = now
			return err
		}
	}
	return unavailable(errors.New("conflict"), "accept the store's history")
}
