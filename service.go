// New and Close: a service is put together, started and ended. What it reads of its store goes to the part that owns it, and rules to
// the feed for validators in other processes (Revocations). Records that can't be read: Unreadable, Repair, Remove; internal/aside.

package apitoken

import (
	"context"
	"errors"
	"iter"
	"time"

	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/feed"
	"github.com/apitoken-go/apitoken/internal/apikey"
	"github.com/apitoken-go/apitoken/internal/aside"
	"github.com/apitoken-go/apitoken/internal/clientauth"
	"github.com/apitoken-go/apitoken/internal/clients"
	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/feedlog"
	"github.com/apitoken-go/apitoken/internal/follow"
	"github.com/apitoken-go/apitoken/internal/issuers"
	"github.com/apitoken-go/apitoken/internal/lineage"
	"github.com/apitoken-go/apitoken/internal/mover"
	"github.com/apitoken-go/apitoken/internal/namespace"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/internal/quota"
	"github.com/apitoken-go/apitoken/internal/revoke"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/store"
)

func newCore(c Config, injected bool) *core {
	s := &core{cfg: c, injected: injected, st: c.Store, now: c.Now, log: c.Logger, hurry: make(chan struct{}, 1)}
	s.ctx, s.stop = context.WithCancel(context.Background())
	s.rules = rules.NewBook(rules.LocalKeyer())
	s.rules.Undated = len(c.Trust) == 0 // our own tokens have positions
	s.audiences = append([]string{c.Audience}, c.Audiences...)
	s.audit = newAuditLog(s)
	s.revoke = revoke.New(revoke.Config{Commit: &s.writer, Rules: s.rules, Lineage: &s.lineage, Space: &s.space,
		Now: s.now, Log: s.log}, revokeHost{s})
	return s
}

func newClients(s *core, signing *SigningKeys) *Clients {
	cs := &Clients{s: s}
	cs.proofs = clientauth.New(clientauth.Config{
		Namespace: func() string { return s.ns },
		Seal:      func(k *opaque.Key) string { return signing.ring.Encode(k, opaque.ClientSecret) },
		Read: func(ctx context.Context, text string) (*opaque.Key, bool, error) {
			return signing.ring.Decode(ctx, text, opaque.ClientSecret)
		},
		Ended: func(id string) bool { return s.rules.Ended(id) }, Once: s.claim,
		Issuer: s.cfg.Issuer, Algs: s.cfg.Validation.algorithms(), Ahead: s.cfg.Validation.ahead(), FAPI: s.cfg.FAPI, Now: s.now,
	})
	cs.known = clients.New(clients.Config[Client]{Terms: cs.terms(), Public: clientFrom, Proofs: cs.proofs, Revoke: s.revoke,
		State: func() *follow.Follower { return s.state }, Now: s.now})
	return cs
}

func newAPIKeys(s *core, signing *SigningKeys, clients *Clients) *APIKeys {
	k := &APIKeys{s: s, signing: signing, clients: clients, forms: apikey.NewForms(s.cfg.KeyHashes)}
	k.room = &apikey.Room{Rules: s.rules, Now: s.now,
		Quota: s.newQuota(store.KindAPIKey, "apikey", s.cfg.Limits.APIKeysPerSubject, func(time.Time, int64) bool { return false })}
	k.keys = apikey.NewCache(apikey.Config[keyToken]{Context: s.ctx, Writer: &s.writer, Now: s.now, Log: s.log, Namespace: func() string { return s.ns },
		Uses: s.audit.Uses, Forms: k.forms, Token: k.token, Outdated: k.outdated,
		Made: func(ctx context.Context, key *opaque.Key) (bool, error) {
			return signing.ring.Made(ctx, key, opaque.APIKey)
		},
		Change: func(ctx context.Context, id, how string, f func(*apikey.Record) error) error {
			_, err := k.change(ctx, id, how, f)
			return public(err)
		}})
	return k
}

// New starts a service. It fails, naming the field in a [ConfigError], when c is contradictory or dangerous, and
// within seconds when the store does not answer, belongs to another issuer, was restored without a choice, or
// holds keys that c.Seal does not open. Close it before the store.
func New(c Config) (*Service, error) {
	injected := c.Now != nil
	if err := c.check(); err != nil {
		return nil, err
	}
	s := &Service{core: newCore(c, injected)}
	s.SigningKeys = newSigningKeys(s.core)
	s.Clients = newClients(s.core, s.SigningKeys)
	s.APIKeys = newAPIKeys(s.core, s.SigningKeys, s.Clients)
	s.minter = newMinter(s.core, s.SigningKeys, s.Clients, s.APIKeys)
	s.state = follow.New(s.ctx, follow.Config{Store: c.Store, Now: c.Now, Injected: injected, Log: c.Logger, Staleness: c.Validation.MaxStaleness, Answer: startTimeout,
		First: snapshotKinds, Then: followedKinds}, follow.To{Apply: s.apply, Aside: s.setAside, Told: s.tellUnreadable, Forget: s.forget, Lost: s.lost, Round: s.round})
	s.writer.Store, s.writer.State = c.Store, s.state
	s.feed = feedlog.New(feedlog.Config{Store: c.Store, State: s.state, Ring: s.SigningKeys.ring, Namespace: func() string { return s.ns }, Imports: len(c.KeyHashes) > 0})
	s.lineage = lineage.Notes{Writer: &s.writer, Namespace: func() string { return s.ns }}
	if err := s.start(); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (s *Service) start() error {
	ctx, cancel := context.WithTimeout(s.ctx, startTimeout)
	defer cancel()
	if err := s.openNamespace(ctx); err != nil {
		return startError(ctx, public(err))
	}
	// A store that goes on answering is waited for, however much it holds.
	if err := s.state.Refresh(s.ctx); err != nil {
		return startError(s.ctx, err)
	}
	ctx, cancel = context.WithTimeout(s.ctx, startTimeout)
	defer cancel()
	if err := public(s.SigningKeys.ring.Ensure(ctx)); err != nil {
		return startError(ctx, err)
	}
	newServiceValidator(s)
	if err := s.defineRoles(ctx); err != nil {
		return startError(ctx, err)
	}
	if err := s.afterRestore(ctx); err != nil {
		return startError(ctx, err)
	}
	for _, q := range []*quota.Quota{s.sessions.Quota, s.APIKeys.room.Quota} {
		if err := q.Start(ctx, s.space.Born); err != nil {
			return startError(ctx, public(err))
		}
	}
	s.goRun("follow", s.state.Run)
	s.goRun("keys", s.SigningKeys.ring.Run)
	s.goRun("audit", s.audit.Run)
	s.goRun("janitor", s.janitor().run)
	s.goRun("rules", s.revoke.Run)
	return nil
}

// openNamespace makes the store's namespace ours, with the longest lifetimes that we are configured for.
func (s *Service) openNamespace(ctx context.Context) error {
	life := namespace.Life{Access: s.cfg.Lifetimes.MaxAccess, Grant: s.cfg.Lifetimes.Grant}
	for _, t := range s.cfg.Trust {
		stays := t.stays(s.now())
		life.Foreign = max(life.Foreign, stays)
		if t.Profile != nil && t.Profile.SameUsers {
			life.Same = max(life.Same, stays)
		}
	}
	err := s.space.Open(ctx, namespace.Config{Writer: &s.writer, Issuer: s.cfg.Issuer, Life: life})
	s.ns = s.space.Name
	return err
}

// afterRestore compares the store's history with the one that was accepted. Another one means that acknowledged
// writes may be lost, revocations among them: it takes a choice.
func (s *Service) afterRestore(ctx context.Context) error {
	now := s.state.Position().History
	accepted := s.space.Accepted()
	if accepted == now || now == 0 {
		return nil
	}
	if accepted != 0 {
		switch s.cfg.Restored {
		case RefuseRestored:
			return wrong("Restored", "the store was restored from a backup, or lost its latest writes: revocations since then may be missing. RevokeOnRestore ends all sessions and API keys; ReplayedRestored says that the host replays them")
		case RevokeOnRestore:
			if err := s.revoke.End(WithActor(ctx, "restore"), rules.Everything(), "the store was restored"); err != nil {
				return public(err)
			}
		}
		s.log.Warn("apitoken: a restored store was accepted", "choice", int(s.cfg.Restored))
	}
	return public(s.space.Accept(ctx, now))
}

// startError keeps the cause of a failed start readable: New's caller is the operator.
func startError(ctx context.Context, err error) error {
	if e := (*ConfigError)(nil); errors.As(err, &e) {
		return err
	}
	if ctx.Err() != nil || errors.Is(err, follow.ErrLate) {
		return &ConfigError{Field: "Store", Err: fail(ErrUnavailable, "Config.Store did not answer within %s: %s", startTimeout, detailOf(err))}
	}
	return &ConfigError{Field: "Store", Err: &Error{Code: ErrUnavailable, Detail: "start: " + detailOf(err)}}
}

// Close ends the service's goroutines and writes what is buffered. It does not close the store. What would change something
// answers ErrUnavailable afterwards; Validate goes by the last view, until that is too old.
func (s *Service) Close() error {
	s.once.Do(func() {
		defer s.writer.Closed.Store(true)
		s.stop()
		s.wg.Wait()
		s.APIKeys.keys.Close()
		if s.valid == nil {
			return // never started: nothing is buffered
		}
		s.valid.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		s.audit.Flush(ctx)
	})
	return nil
}

// newServiceValidator is the validator of a service: its own issuer is fed by its state and its ring.
func newServiceValidator(s *Service) {
	v := newValidator(s.cfg.Validation, s.cfg.Audience, s.now)
	v.core, v.observers.Log = s.core, s.log
	v.opaque, v.imported, v.forms = s.APIKeys.validate, s.APIKeys.validateImported, s.APIKeys.forms
	v.consume = s.Consume
	t := &trust{issuer: s.cfg.Issuer, own: true}
	t.Init(issuers.Config{Name: t.issuer, Own: true, State: s.state, MaxStaleness: v.cfg.MaxStaleness, MaxLife: s.space.Life().Access, Now: s.now, Void: v.void})
	t.Rules.Store(s.rules)
	t.SetKeys(s.SigningKeys.ring.PublicKeys())
	v.trusts[t.issuer] = t
	s.trust, s.valid, s.APIKeys.trust, s.APIKeys.valid = t, v, t, v
	v.follow(s.cfg.Trust, &t.Issuer, nil)
}

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
