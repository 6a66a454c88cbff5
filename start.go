// New and Close: a service is put together, started, and ended.

package apitoken

import (
	"context"
	"errors"
	"time"

	"github.com/apitoken-go/apitoken/internal/apikey"
	"github.com/apitoken-go/apitoken/internal/clientauth"
	"github.com/apitoken-go/apitoken/internal/clients"
	"github.com/apitoken-go/apitoken/internal/feedlog"
	"github.com/apitoken-go/apitoken/internal/follow"
	"github.com/apitoken-go/apitoken/internal/issuers"
	"github.com/apitoken-go/apitoken/internal/lineage"
	"github.com/apitoken-go/apitoken/internal/namespace"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/internal/quota"
	"github.com/apitoken-go/apitoken/internal/retry"
	"github.com/apitoken-go/apitoken/internal/revoke"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/store"
)

func newCore(c Config, injected bool) *core {
	s := &core{cfg: c, injected: injected, st: c.Store, now: c.Now, log: c.Logger, retries: retry.New(c.Logger), hurry: make(chan struct{}, 1)}
	s.ctx, s.stop = context.WithCancel(context.Background())
	s.rules = rules.NewBook(rules.LocalKeyer())
	s.rules.Undated = len(c.Trust) == 0 // our own tokens have positions
	s.audiences = append([]string{c.Audience}, c.Audiences...)
	s.audit = newAuditLog(s)
	s.revoke = revoke.New(revoke.Config{Commit: &s.writer, Rules: s.rules, Retries: s.retries, Lineage: &s.lineage, Space: &s.space, Now: s.now, Log: s.log}, revokeHost{s})
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
	s.goRun("rules", s.retries.Run)
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
	return &ConfigError{Field: "Store", Err: &Error{Code: ErrUnavailable, Detail: "start: " + detailOf(err), Cause: nil}}
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
