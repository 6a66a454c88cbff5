// Package namespace is what the services on one namespace of a store agree on. It owns the record of this: whose namespace it is, the
// random name that is part of every MAC and hash, the longest lifetimes ever configured, and the store's history that was accepted; and the
// tombstone of a service that has moved.
//
// It promises that one issuer owns a namespace, and that no service makes one of its own beside records whose namespace record is gone.
// The figures of Life only grow while a process runs. Where the record cannot be read, Sure is false: nothing may be purged, since
// nobody knows how long revocations must be kept.
//
// Open and Accept write through internal/commit, with a compare-and-swap that is repeated. Changed is called while the state is
// followed, and reads no store. It holds no lock. The root calls it at the start of a service, and from its follower.
package namespace

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"sync/atomic"
	"time"

	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/record"
	"github.com/apitoken-go/apitoken/store"
)

// IDs of records of kind store.KindMeta.
const (
	ID      = "service" // of a namespace
	MovedID = "moved"   // of one whose service has moved to another store
)

// CopyKind and CopyID are of the mark in a namespace into which a service is being copied: package mover's.
const (
	CopyKind = store.Kind("copy")
	CopyID   = "copy"
)

// Record is the namespace as it is stored.
type Record struct {
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

// Tombstone is the record with MovedID. Every service on the namespace follows it.
type Tombstone struct {
	V  int   `json:"v"`
	At int64 `json:"at"` // Unix ms
	record.Ext
}

// The forms of Record and Tombstone.
var (
	MetaForm  = record.Form[Record]{Kind: store.KindMeta}
	MovedForm = record.Form[Tombstone]{Kind: store.KindMeta}
)

// Life is the longest that tokens of the namespace's services may ever live.
type Life struct {
	Access, Grant time.Duration
	Foreign       time.Duration // of trusted issuers
	Same          time.Duration // of trusted issuers whose users are ours
}

// Config is of the service that opens the namespace.
type Config struct {
	Writer *commit.Writer
	Issuer string
	Life   Life
}

// Space is the namespace of one service. Open it before use.
type Space struct {
	Name   string   // as Record.Namespace
	Born   bool     // by Open: the store was empty
	Copied [2]int64 // as Record.Copied

	c        Config
	accepted uint64
	life     atomic.Pointer[Life]
	unsure   atomic.Bool // the record cannot be read
}

// Open reads what the namespace is, or makes it what c says. InvalidRequest names the field of the service's configuration that does
// not go with the store.
func (s *Space) Open(ctx context.Context, c Config) error {
	s.c = c
	for range commit.Tries {
		if err := s.open(ctx); !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
	return errors.New("other processes keep changing the namespace")
}

func (s *Space) open(ctx context.Context) error {
	st := s.c.Writer.Store
	r, err := st.Get(ctx, store.KindMeta, ID)
	var m Record
	s.Born = false
	switch {
	case errors.Is(err, store.ErrNotFound):
		if err := s.refuseStrange(ctx); err != nil {
			return err
		}
		var ns [16]byte
		rand.Read(ns[:])
		m = Record{V: 1, Issuer: s.c.Issuer, Namespace: hex.EncodeToString(ns[:])}
		s.Born = true
	case err != nil:
		return fault.NoAnswer(err, "read the namespace")
	default:
		if err := commit.Read(&MetaForm, r, &m); err != nil {
			return err
		}
		if _, err := st.Get(ctx, store.KindMeta, MovedID); err == nil {
			return fault.Wrong("Store", "the service has moved to another store")
		}
	}
	switch {
	case m.V != 1 || len(m.Namespace) != 32:
		return fault.Wrong("Store", "the namespace is damaged or of a newer version")
	case m.Issuer != s.c.Issuer:
		return fault.Wrong("Issuer", "the store's namespace belongs to issuer %q: one issuer for each namespace", m.Issuer)
	}

	next, life := m, s.c.Life
	next.MaxAccess = max(m.MaxAccess, life.Access.Milliseconds())
	next.MaxGrant = max(m.MaxGrant, life.Grant.Milliseconds())
	next.MaxForeign = max(m.MaxForeign, life.Foreign.Milliseconds())
	next.MaxSame = max(m.MaxSame, life.Same.Milliseconds())
	s.Name, s.accepted, s.Copied = m.Namespace, m.History, m.Copied
	s.life.Store(next.life())
	if next == m && !s.Born {
		return nil
	}
	return s.write(ctx, &next, r.Version)
}

// refuseStrange keeps a service from making a namespace of its own beside records whose namespace record is gone.
func (s *Space) refuseStrange(ctx context.Context) error {
	st := s.c.Writer.Store
	v, err := st.Follow(ctx, store.Position{}, nil, 1)
	if err != nil {
		return fault.NoAnswer(err, "read the store")
	}
	if _, err := st.Get(ctx, CopyKind, CopyID); err == nil {
		return fault.Wrong("Store", "a Copy into it has not succeeded yet: repeat it")
	}
	if len(v.Records) == 0 || v.Records[0].Kind == store.KindMeta {
		return nil
	}
	// Or others that start beside this one have made the namespace since it was looked for, and more.
	switch _, err := st.Get(ctx, store.KindMeta, ID); {
	case err == nil:
		return nil // what writes the namespace's record finds that it is there
	case !errors.Is(err, store.ErrNotFound):
		return fault.NoAnswer(err, "read the store")
	}
	return fault.Wrong("Store", "it has records and no namespace: it is damaged, or not a store of this module")
}

func (s *Space) write(ctx context.Context, m *Record, v store.Version) error {
	c := commit.NewChange()
	if err := commit.Put(c, &MetaForm, store.Record{ID: ID}, m, v); err != nil {
		return err
	}
	_, err := s.c.Writer.Apply(ctx, c)
	return err
}

// Life is the longest that tokens may live, as far as this process knows.
func (s *Space) Life() Life {
	if l := s.life.Load(); l != nil {
		return *l
	}
	return Life{}
}

func (m *Record) life() *Life {
	ms := func(n int64) time.Duration { return time.Duration(n) * time.Millisecond }
	return &Life{Access: ms(m.MaxAccess), Grant: ms(m.MaxGrant), Foreign: ms(m.MaxForeign), Same: ms(m.MaxSame)}
}

// Changed takes what another service on the namespace has configured: its tokens may live longer than ours, and rules on them must.
func (s *Space) Changed(r store.Record) error {
	var m Record
	if err := commit.Read(&MetaForm, r, &m); err != nil {
		return err
	}
	s.unsure.Store(false)
	old, next := s.Life(), m.life()
	next.Access, next.Grant = max(old.Access, next.Access), max(old.Grant, next.Grant)
	next.Foreign, next.Same = max(old.Foreign, next.Foreign), max(old.Same, next.Same)
	s.life.Store(next)
	return nil
}

// SetAside notes that the record cannot be read.
func (s *Space) SetAside() { s.unsure.Store(true) }

// Sure reports whether Life is all that other services have configured.
func (s *Space) Sure() bool { return !s.unsure.Load() }

// Accepted is the store's history that the services have accepted; zero: none yet.
func (s *Space) Accepted() uint64 { return s.accepted }

// Accept writes that the services go by a history of the store.
func (s *Space) Accept(ctx context.Context, history uint64) error {
	for range commit.Tries {
		r, err := s.c.Writer.Store.Get(ctx, store.KindMeta, ID)
		if err != nil {
			return fault.NoAnswer(err, "read the namespace")
		}
		var m Record
		if err := commit.Read(&MetaForm, r, &m); err != nil {
			return err
		}
		m.History = history
		if err := s.write(ctx, &m, r.Version); !errors.Is(err, store.ErrConflict) {
			s.accepted = history
			return err
		}
	}
	return fault.NoAnswer(errors.New("conflict"), "accept the store's history")
}
