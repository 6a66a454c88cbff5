package apitoken

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"time"

	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/store"
)

// Refresh tokens are a ratchet. Each holds a secret that is made from its predecessor's under a key, so that
// whoever repeats a request whose answer was lost gets the same successor, while nobody who reads the store can make
// one; a token that is older than the predecessor is proof that it was copied, and ends the grant.

const (
	purposeRefreshTag  = "refresh-tag"
	purposeRefreshNext = "refresh-next"

	labelTag  = "rt1"
	labelHash = "rt1h"
	labelNext = "rt1n"

	refreshTries = 8 // of one call against parallel ones of the same grant
)

// hashRefresh is what the record keeps of a refresh token.
func (s *Service) hashRefresh(t *opaque.RefreshToken) [32]byte {
	return opaque.Hash(labelHash, []byte(s.ns), t.Grant[:], opaque.Uint32(t.Seq), t.S[:])
}

// refreshText tags t under its key and makes its text.
func (s *Service) refreshText(t *opaque.RefreshToken) (string, error) {
	key, ok := s.SigningKeys.macFor(t.KID, purposeRefreshTag)
	if !ok {
		return "", &Error{Code: ErrUnavailable, Detail: "the key of refresh tokens is not here", RetryAfter: retryHint}
	}
	t.Tag = opaque.Tag(key, labelTag, []byte(s.ns), t.Grant[:], opaque.Uint32(t.Seq), t.S[:])
	return opaque.EncodeRefresh(s.cfg.Prefix, t), nil
}

// firstRefresh makes the first refresh token of a grant and notes it in its record.
func (s *Service) firstRefresh(g *grantRecord, id string) (string, error) {
	raw, err := opaque.ParseID(id)
	if err != nil {
		return "", &Error{Code: ErrInvalidRequest, Detail: "grant ID", Cause: err}
	}
	t := &opaque.RefreshToken{Grant: raw}
	rand.Read(t.S[:])
	t.KID, _ = s.SigningKeys.mac(purposeRefreshTag)
	g.Seq, g.TagKID, g.Hash = 0, t.KID, s.hashRefresh(t)
	return s.refreshText(t)
}

// successor is the refresh token after t, as g's nonce and keys make it.
func (s *Service) successor(t *opaque.RefreshToken, g *grantRecord) (*opaque.RefreshToken, bool) {
	key, ok := s.SigningKeys.macFor(g.NextKID, purposeRefreshNext)
	if !ok {
		return nil, false
	}
	n := &opaque.RefreshToken{KID: g.TagKID, Grant: t.Grant, Seq: t.Seq + 1}
	n.S = opaque.MAC(key, labelNext, []byte(s.ns), t.Grant[:], opaque.Uint32(n.Seq), g.Nonce[:], t.S[:])
	return n, true
}

// readRefresh decodes a refresh token and checks its tag: junk ends here, without a store read.
func (s *Service) readRefresh(text string) (*opaque.RefreshToken, error) {
	t, err := opaque.DecodeRefresh(text, s.cfg.Prefix)
	if err != nil {
		return nil, &Error{Code: ErrInvalidGrant, Detail: "not a refresh token", Cause: err}
	}
	key, ok := s.SigningKeys.macFor(t.KID, purposeRefreshTag)
	if !ok {
		return nil, fail(ErrInvalidGrant, "a refresh token under an unknown key")
	}
	want := opaque.Tag(key, labelTag, []byte(s.ns), t.Grant[:], opaque.Uint32(t.Seq), t.S[:])
	if subtle.ConstantTimeCompare(want[:], t.Tag[:]) != 1 {
		return nil, fail(ErrInvalidGrant, "a refresh token that this service did not make")
	}
	return t, nil
}

// identifyRefresh is the grant of a refresh token of ours, spent or not.
func (s *Service) identifyRefresh(_ context.Context, text string) (string, error) {
	t, err := s.readRefresh(text)
	if err != nil {
		return "", &Error{Code: ErrNotFound, Detail: detailOf(err)}
	}
	return opaque.ID(t.Grant).String(), nil
}

// Refresh implements [Issuer].
func (s *Service) Refresh(ctx context.Context, r RefreshRequest) (*Issued, error) {
	began := time.Now()
	i, err := s.refresh(ctx, r)
	if err != nil && errors.Is(err, ErrInvalidGrant) {
		s.audit.refused(ctx, EventRefused, "refresh", nil)
	}
	s.observeIssue(ctx, "refresh", began, i, err)
	return i, err
}

func (s *Service) refresh(ctx context.Context, r RefreshRequest) (*Issued, error) {
	t, err := s.readRefresh(r.Token)
	if err != nil {
		return nil, err
	}
	var caller Client // who proved to be there; zero when nobody did
	if !r.Auth.isZero() {
		// A stranger's failed authentication never reaches the token.
		if caller, err = s.Clients.Authenticate(ctx, r.Auth); err != nil {
			return nil, err
		}
	}
	if err := s.audit.ready(); err != nil {
		return nil, err
	}
	id := opaque.ID(t.Grant).String()
	for try := 1; try <= refreshTries; try++ {
		i, err := s.refreshOnce(ctx, r, t, id, caller, try == 1)
		if !errors.Is(err, store.ErrConflict) {
			return i, err
		}
	}
	return nil, &Error{Code: ErrUnavailable, RetryAfter: retryHint, Detail: "parallel refreshes of the same grant"}
}

// refreshOnce is one read of the grant and what follows from it. store.ErrConflict: another was first, read again.
func (s *Service) refreshOnce(ctx context.Context, r RefreshRequest, t *opaque.RefreshToken, id string, caller Client, first bool) (*Issued, error) {
	rec, err := s.get(ctx, kindGrant, id)
	if isNotFound(err) {
		return nil, fail(ErrInvalidGrant, "the grant has ended long ago")
	}
	if err != nil {
		return nil, err
	}
	g, err := readGrant(rec)
	if err != nil {
		return nil, err
	}
	if err := s.refreshCaller(ctx, g, id, caller, r); err != nil {
		return nil, err
	}
	switch {
	case t.Seq > g.Seq:
		s.alert(ctx, "store-went-back", Event{Subject: g.Subject, Client: g.Client, Grant: id})
		return nil, &Error{Code: ErrUnavailable, RetryAfter: retryHint, Detail: "a refresh token ahead of its record: the store has lost writes"}
	case t.Seq == g.Seq:
		if h := s.hashRefresh(t); subtle.ConstantTimeCompare(h[:], g.Hash[:]) != 1 {
			s.alert(ctx, "refresh-hash", Event{Subject: g.Subject, Client: g.Client, Grant: id})
			return nil, fail(ErrInvalidGrant, "tagged by our key and not the record's: a key has leaked or the record was edited")
		}
		return s.advance(ctx, r, t, id, g, rec.Version)
	case t.Seq+1 == g.Seq:
		next, ok := s.successor(t, g)
		if !ok {
			return nil, &Error{Code: ErrUnavailable, RetryAfter: retryHint, Detail: "the key of refresh tokens is not here"}
		}
		if h := s.hashRefresh(next); subtle.ConstantTimeCompare(h[:], g.Hash[:]) != 1 {
			s.alert(ctx, "refresh-hash", Event{Subject: g.Subject, Client: g.Client, Grant: id})
			return nil, fail(ErrInvalidGrant, "its successor is not the record's: a key has leaked or the record was edited")
		}
		if s.state.since(g.written(rec), g.Refreshed) < s.cfg.Refresh.Grace || !first && s.cfg.Refresh.Grace > 0 {
			return s.repeat(ctx, id, g, next)
		}
	}
	if !first {
		// A parallel request has moved on since this one began; that is no proof of a copy.
		return nil, &Error{Code: ErrUnavailable, RetryAfter: retryHint, Detail: "parallel refreshes of the same grant"}
	}
	if err := s.alive(id, g); err != nil {
		return nil, err // it has ended already
	}
	if err := s.writeRule(ctx, ByGrant(id), false, "refresh token reused", EventReused, nil); err != nil {
		return nil, err
	}
	return nil, fail(ErrInvalidGrant, "a refresh token used again: the grant is revoked")
}

// refreshCaller checks who presents the token against whose it is.
func (s *Service) refreshCaller(ctx context.Context, g *grantRecord, id string, caller Client, r RefreshRequest) error {
	owner, err := s.grantClient(g)
	if err != nil {
		return err
	}
	if caller.ID != "" && caller.ID != g.Client {
		if caller.Public {
			return fail(ErrInvalidGrant, "another client's refresh token") // anybody can call himself a public client
		}
		// A client that proved who it is holds another's token: it has leaked.
		if err := s.writeRule(ctx, ByGrant(id), false, "refresh token in the hands of another client", EventLeaked, nil); err != nil {
			return err
		}
		return fail(ErrInvalidGrant, "another client's refresh token: the grant is revoked")
	}
	if !owner.Public && caller.ID == "" {
		return fail(ErrInvalidClient, "client %q must authenticate", g.Client)
	}
	if g.Binding != "" && owner.Public && r.Binding != g.Binding {
		return fail(ErrInvalidGrant, "the grant is bound to another key")
	}
	return nil
}

// rotates reports whether a refresh of g makes a new refresh token.
func (s *Service) rotates(c *Client, g *grantRecord) bool {
	return s.cfg.Refresh.RotateConfidential || c.Public && g.Binding == ""
}

// advance is the refresh proper: check, sign, then write with one compare-and-swap. A failure before the write
// burns nothing.
func (s *Service) advance(ctx context.Context, r RefreshRequest, t *opaque.RefreshToken, id string, g *grantRecord, v store.Version) (*Issued, error) {
	p, err := s.planUnder(ctx, id, g, r.Scopes)
	if err != nil {
		return nil, err
	}
	if err := p.narrowTo(r.Audiences); err != nil {
		return nil, err
	}
	p.event = EventRefreshed
	if r.Binding != "" && r.Binding != g.Binding {
		if err := checkBinding(r.Binding); err != nil {
			return nil, err
		}
		p.binding = r.Binding // a confidential client may bind each access token to another key of its own
	}
	now := s.now()
	st := stamp{jti: newID(now), grant: id, iat: now, exp: g.cut(now.Add(p.life)), pos: positions{birth: g.Birth, view: s.state.position()}}
	i, rs, err := s.sign(ctx, p, st)
	if err != nil {
		return nil, err
	}
	c := s.newChange()
	next := *g
	if s.rotates(&p.client, g) {
		rand.Read(next.Nonce[:])
		next.NextKID, _ = s.SigningKeys.mac(purposeRefreshNext)
		next.TagKID, _ = s.SigningKeys.mac(purposeRefreshTag)
		n, ok := s.successor(t, &next)
		if !ok {
			return nil, &Error{Code: ErrUnavailable, RetryAfter: retryHint, Detail: "the key of refresh tokens is not here"}
		}
		text, err := s.refreshText(n)
		if err != nil {
			return nil, err
		}
		next.Seq, next.Hash, next.Rotated = n.Seq, s.hashRefresh(n), 0
		i.Refresh = NewSecret(text)
	} else {
		i.Refresh = NewSecret(r.Token)
	}
	if next.Seq != g.Seq || g.Idle > 0 {
		next.last(st, p)
		rec, err := next.record(id)
		if err != nil {
			return nil, err
		}
		c.put(rec, v)
	}
	c.event(ctx, p.eventOf(st))
	if _, err := s.commit(ctx, c); err != nil {
		return nil, err
	}
	if rule := s.rules.hit(rs); rule != "" {
		return nil, refusedBy(rule)
	}
	return i, nil
}

// repeat answers a repeated request with what the first one got: the same refresh token, and an access token with
// the same jti and times. There is nothing new, so there is nothing to write, and racers do not conflict. As no write
// tells how far the state has come, it is asked: what another process has revoked is not handed out again.
func (s *Service) repeat(ctx context.Context, id string, g *grantRecord, next *opaque.RefreshToken) (*Issued, error) {
	if err := s.state.refresh(ctx); err != nil {
		return nil, unavailable(err, "look for revocations")
	}
	p, err := s.planUnder(ctx, id, g, nil)
	if err != nil {
		return nil, err
	}
	p.scopes, p.narrow = intersectScopes(g.Narrow, p.scopes), g.For
	st := stamp{jti: g.JTI, grant: id, iat: time.UnixMilli(g.IAT), exp: time.UnixMilli(g.EXP), pos: positions{birth: g.Birth, view: s.state.position()}}
	i, rs, err := s.sign(ctx, p, st)
	if err != nil {
		return nil, err
	}
	if rule := s.rules.hit(rs); rule != "" {
		return nil, refusedBy(rule)
	}
	text, err := s.refreshText(next)
	if err != nil {
		return nil, err
	}
	i.Refresh = NewSecret(text)
	return i, nil
}

// alert records what nobody should ever see. It never stops what it tells of.
func (s *Service) alert(ctx context.Context, what string, e Event) {
	e.Reason = what
	s.log.Error("apitoken: alert", "what", what, "grant", e.Grant)
	if err := s.Alert(ctx, e); err != nil {
		s.log.Error("apitoken: the alert could not be recorded", "what", what, "error", err)
	}
}

func isNotFound(err error) bool { return errors.Is(err, ErrNotFound) }
