package apitoken

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"slices"
	"time"

	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/internal/granttype"
	"github.com/apitoken-go/apitoken/internal/keyring"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/store"
)

// Refresh tokens are a ratchet. Each holds a secret that is made from its predecessor's under a key, so that
// whoever repeats a request whose answer was lost gets the same successor, while nobody who reads the store can make
// one; a token that is older than the predecessor is proof that it was copied, and ends the grant.

const (
	labelTag   = "rt1"
	labelHash  = "rt1h"
	labelNext  = "rt1n"
	labelFirst = "rt1c"
)

// hashRefresh is what the record keeps of a refresh token.
func (s *Service) hashRefresh(t *opaque.RefreshToken) [32]byte {
	return opaque.Hash(labelHash, []byte(s.ns), t.Grant[:], opaque.Uint32(t.Seq), t.S[:])
}

// refreshText tags t under its key and makes its text.
func (s *Service) refreshText(t *opaque.RefreshToken) (string, error) {
	key, ok := s.SigningKeys.ring.MACFor(t.KID, keyring.RefreshTag)
	if !ok {
		return "", &Error{Code: ErrUnavailable, Detail: "the key of refresh tokens is not here", RetryAfter: retryHint}
	}
	t.Tag = opaque.Tag(key, labelTag, []byte(s.ns), t.Grant[:], opaque.Uint32(t.Seq), t.S[:])
	return opaque.EncodeRefresh(s.cfg.Prefix, t), nil
}

// firstRefresh makes the first refresh token of a grant and notes it in its record. With a code it can be made again.
func (s *Service) firstRefresh(g *grantRecord, id, code string) (string, error) {
	raw, err := opaque.ParseID(id)
	if err != nil {
		return "", &Error{Code: ErrInvalidRequest, Detail: "grant ID", Cause: err}
	}
	t := &opaque.RefreshToken{Grant: raw}
	if code == "" {
		rand.Read(t.S[:])
	} else {
		rand.Read(g.Nonce[:])
		g.NextKID, _ = s.SigningKeys.ring.MAC(keyring.RefreshNext)
		if err := s.firstOf(t, g, code); err != nil {
			return "", err
		}
	}
	t.KID, _ = s.SigningKeys.ring.MAC(keyring.RefreshTag)
	g.Seq, g.TagKID, g.Hash = 0, t.KID, s.hashRefresh(t)
	return s.refreshText(t)
}

// firstOf makes the secret of a first refresh token out of the code that it is for, under the key that makes successors: who reads the
// store cannot make it, nor can who has the code.
func (s *Service) firstOf(t *opaque.RefreshToken, g *grantRecord, code string) error {
	key, ok := s.SigningKeys.ring.MACFor(g.NextKID, keyring.RefreshNext)
	if !ok {
		return &Error{Code: ErrUnavailable, RetryAfter: retryHint, Detail: "the key of refresh tokens is not here"}
	}
	t.S = opaque.MAC(key, labelFirst, []byte(s.ns), t.Grant[:], g.Nonce[:], []byte(code))
	return nil
}

// firstAgain is the first refresh token that code got.
func (s *Service) firstAgain(g *grantRecord, id, code string) (string, error) {
	raw, err := opaque.ParseID(id)
	if err != nil {
		return "", &Error{Code: ErrInvalidRequest, Detail: "grant ID", Cause: err}
	}
	t := &opaque.RefreshToken{Grant: raw, KID: g.TagKID}
	if err := s.firstOf(t, g, code); err != nil {
		return "", err
	}
	if h := s.hashRefresh(t); subtle.ConstantTimeCompare(h[:], g.Hash[:]) != 1 {
		return "", fail(ErrInvalidGrant, "its refresh token is not the record's")
	}
	return s.refreshText(t)
}

// successor is the refresh token after t, as g's nonce and keys make it.
func (s *Service) successor(t *opaque.RefreshToken, g *grantRecord) (*opaque.RefreshToken, bool) {
	key, ok := s.SigningKeys.ring.MACFor(g.NextKID, keyring.RefreshNext)
	if !ok {
		return nil, false
	}
	n := &opaque.RefreshToken{KID: g.TagKID, Grant: t.Grant, Seq: t.Seq + 1}
	n.S = opaque.MAC(key, labelNext, []byte(s.ns), t.Grant[:], opaque.Uint32(n.Seq), g.Nonce[:], t.S[:])
	return n, true
}

// readRefresh decodes a refresh token and checks its tag: junk ends here, without a store read.
func (s *Service) readRefresh(ctx context.Context, text string) (*opaque.RefreshToken, error) {
	t, err := opaque.DecodeRefresh(text, s.cfg.Prefix)
	if err != nil {
		return nil, &Error{Code: ErrInvalidGrant, Detail: "not a refresh token", Cause: err}
	}
	key, err := s.SigningKeys.presented(ctx, t.KID, keyring.RefreshTag)
	if err != nil {
		return nil, err
	}
	if key == nil {
		return nil, fail(ErrInvalidGrant, "a refresh token under an unknown key")
	}
	want := opaque.Tag(key, labelTag, []byte(s.ns), t.Grant[:], opaque.Uint32(t.Seq), t.S[:])
	if subtle.ConstantTimeCompare(want[:], t.Tag[:]) != 1 {
		return nil, fail(ErrInvalidGrant, "a refresh token that this service did not make")
	}
	return t, nil
}

// identifyRefresh is the grant of a refresh token of ours, spent or not.
func (s *Service) identifyRefresh(ctx context.Context, text string) (string, error) {
	t, err := s.readRefresh(ctx, text)
	if errors.Is(err, ErrUnavailable) {
		return "", err
	}
	if err != nil {
		return "", &Error{Code: ErrNotFound, Detail: detailOf(err)}
	}
	return opaque.ID(t.Grant).String(), nil
}

// Refresh implements [Issuer].
func (s *Service) Refresh(ctx context.Context, r RefreshRequest) (*Issued, error) {
	began := time.Now()
	var known refusal
	i, err := s.refresh(ctx, r, &known)
	s.audit.denied(ctx, "refresh", known, err)
	s.observeIssue(ctx, "refresh", began, i, err)
	return i, err
}

// refresh notes in known whose token it is.
func (s *Service) refresh(ctx context.Context, r RefreshRequest, known *refusal) (*Issued, error) {
	known.confirmed(s.Clients, &r.Auth)
	t, err := s.readRefresh(ctx, r.Token)
	if err != nil {
		return nil, err
	}
	who, err := s.Clients.caller(ctx, r.Auth) // a stranger's failed authentication never reaches the token
	if err != nil {
		return nil, err
	}
	known.by(&who)
	id := opaque.ID(t.Grant).String()
	known.Grant = id // the tag is ours
	for try := 1; try <= refreshTries; try++ {
		i, err := s.refreshOnce(ctx, r, t, id, &who, try == 1, known)
		if !errors.Is(err, store.ErrConflict) {
			return i, err
		}
	}
	return nil, &Error{Code: ErrUnavailable, RetryAfter: retryHint, Detail: "parallel refreshes of the same grant"}
}

// refreshOnce is one read of the grant and what follows from it. store.ErrConflict: another was first, read again.
func (s *Service) refreshOnce(ctx context.Context, r RefreshRequest, t *opaque.RefreshToken, id string, who *caller, first bool, known *refusal) (*Issued, error) {
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
	known.Subject, known.Client, known.Claimed = g.Subject, g.Client, ""
	if !who.none() && who.id() != g.Client {
		known.Claimed = who.id()
	}
	owner, foreign, err := s.refreshCaller(g, who, r)
	if err != nil {
		return nil, err
	}
	var next *opaque.RefreshToken // what follows t, where that is what the record holds
	switch {
	case t.Seq > g.Seq:
		s.alert(ctx, "store-went-back", Event{Subject: g.Subject, Client: g.Client, Grant: id})
		return nil, &Error{Code: ErrUnavailable, RetryAfter: retryHint, Detail: "a refresh token ahead of its record: the store has lost writes"}
	case t.Seq == g.Seq:
		if h := s.hashRefresh(t); subtle.ConstantTimeCompare(h[:], g.Hash[:]) != 1 {
			s.alert(ctx, "refresh-hash", Event{Subject: g.Subject, Client: g.Client, Grant: id})
			return nil, fail(ErrInvalidGrant, "tagged by our key and not the record's: a key has leaked or the record was edited")
		}
	case t.Seq+1 == g.Seq:
		n, ok := s.successor(t, g)
		if !ok {
			return nil, &Error{Code: ErrUnavailable, RetryAfter: retryHint, Detail: "the key of refresh tokens is not here"}
		}
		if h := s.hashRefresh(n); subtle.ConstantTimeCompare(h[:], g.Hash[:]) != 1 {
			s.alert(ctx, "refresh-hash", Event{Subject: g.Subject, Client: g.Client, Grant: id})
			return nil, fail(ErrInvalidGrant, "its successor is not the record's: a key has leaked or the record was edited")
		}
		next = n
	}
	if foreign {
		// A client that proved who it is holds another's token: it has leaked.
		return nil, s.endGrant(ctx, id, g, event.Leaked, "refresh token in the hands of another client")
	}
	// What ends a grant waits for no auditor, what goes on with it does.
	ready := s.audit.ready()
	if t.Seq == g.Seq {
		if ready != nil {
			return nil, ready
		}
		return s.advance(ctx, r, t, id, g, rec.Version)
	}
	if next != nil {
		// Asked now: what others have revoked is not handed out again, and the store's clock says how long ago it was.
		if err := s.state.Refresh(ctx); err != nil {
			return nil, unavailable(err, "look for revocations")
		}
		age, ok := s.state.Since(g.written(rec), g.Refreshed)
		grace := s.cfg.Refresh.Grace
		// Whoever had to prove himself may ask again until he has used the answer.
		proved := !owner.Public || g.Binding != ""
		switch {
		case grace > 0 && (proved || !first || ok && age < grace):
			if ready != nil {
				return nil, ready
			}
			return s.repeat(ctx, r, id, g, next)
		case grace > 0 && !ok:
			return nil, fail(ErrInvalidGrant, "spent, and the clocks have gone back since: nobody can tell when")
		case grace == 0 && g.Owed && ok && age < maxGrace:
			if ready != nil {
				return nil, ready
			}
			return s.repeatOnce(ctx, r, id, g, next, rec.Version)
		}
	}
	if !first && s.cfg.Refresh.Grace == 0 {
		// To ask again would be reuse.
		return nil, fail(ErrInvalidGrant, "a parallel request with the same refresh token was first, and its answer is the only one")
	}
	if !first {
		// A parallel request has moved on since this one began; that is no proof of a copy.
		return nil, &Error{Code: ErrUnavailable, RetryAfter: retryHint, Detail: "parallel refreshes of the same grant"}
	}
	return nil, s.endGrant(ctx, id, g, event.Reused, "refresh token reused")
}

// endGrant revokes a grant of which somebody has a copy, once.
func (s *Service) endGrant(ctx context.Context, id string, g *grantRecord, why event.Type, reason string) error {
	if err := s.alive(id, g); err != nil {
		return err // it has ended already
	}
	if err := s.writeRule(ctx, rules.ByGrant(id), false, reason, why, nil); err != nil {
		return err
	}
	return fail(ErrInvalidGrant, "%s: the grant is revoked", reason)
}

// refreshCaller checks who presents the token against whose it is. foreign: a client that proved to be another.
func (s *Service) refreshCaller(g *grantRecord, who *caller, r RefreshRequest) (owner Client, foreign bool, err error) {
	if owner, err = s.grantClient(g); err != nil {
		return owner, false, err
	}
	switch {
	case !who.none() && who.id() != g.Client:
		if who.public {
			return owner, false, fail(ErrInvalidGrant, "another client's refresh token") // anybody can call himself a public client
		}
		return owner, true, nil
	case !owner.Public && who.none():
		return owner, false, fail(ErrInvalidClient, "client %q must authenticate", g.Client)
	case g.Client != s.cfg.FirstParty && !slices.Contains(owner.GrantTypes, granttype.RefreshToken):
		return owner, false, fail(ErrDenied, "client %q has the grant type refresh_token no more", g.Client)
	case g.Binding != "" && owner.Public && r.Binding != g.Binding:
		return owner, false, fail(ErrInvalidGrant, "the grant is bound to another key")
	}
	return owner, false, nil
}

// rotates reports whether a refresh of g makes a new refresh token.
func (s *Service) rotates(c *Client, g *grantRecord) bool {
	return s.cfg.Refresh.RotateConfidential || c.Public && g.Binding == ""
}

// advance is the refresh proper: check, sign, then write with one compare-and-swap. A failure before the write
// burns nothing.
func (s *Service) advance(ctx context.Context, r RefreshRequest, t *opaque.RefreshToken, id string, g *grantRecord, v store.Version) (*Issued, error) {
	// Before the plan: a rule that comes while the host is asked reaches what is made of it.
	m, err := s.reach(ctx, s.begin(ctx), g.birth())
	if err != nil {
		return nil, err
	}
	p, err := s.planRefresh(ctx, id, g, r)
	if err != nil {
		return nil, err
	}
	now := s.now()
	st := stamp{jti: newID(now), grant: id, iat: now, exp: g.cut(now.Add(p.life)), pos: m.stamp(g.birth())}
	i, rs, err := s.sign(ctx, p, st)
	if err != nil {
		return nil, err
	}
	c := s.newChange()
	next := *g
	if s.rotates(&p.client, g) {
		rand.Read(next.Nonce[:])
		next.NextKID, _ = s.SigningKeys.ring.MAC(keyring.RefreshNext)
		next.TagKID, _ = s.SigningKeys.ring.MAC(keyring.RefreshTag)
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
	owes := next.Seq != g.Seq && s.cfg.Refresh.Grace == 0
	if next.Seq != g.Seq || g.Idle > 0 {
		next.last(st, p)
		next.Owed = owes
		if err := next.put(c, id, v); err != nil {
			return nil, err
		}
	}
	c.event(ctx, p.eventOf(st))
	if _, err := s.commit(ctx, c); err != nil {
		return nil, err
	}
	for try := 1; ; try++ {
		err := s.overtaken(rs)
		if err == nil {
			if owes && ctx.Err() == nil { // else nobody is there to take the answer
				_ = s.answered(ctx, id, &next, c.ID) // what cannot be noted may be asked for once more
			}
			return i, nil
		}
		if !errors.Is(err, ErrUnavailable) || try == signTries {
			return nil, err
		}
		// The token is spent by now, so that the answer is made of what is allowed since, rather than asked for again.
		st.pos = s.begin(ctx).stamp(g.birth())
		if p, err = s.planRefresh(ctx, id, &next, r); err != nil {
			return nil, err
		}
		again, seen, err := s.sign(ctx, p, st)
		if err != nil {
			return nil, err
		}
		again.Refresh = i.Refresh
		i, rs = again, seen
	}
}

// planRefresh is what a refresh of g gives now.
func (s *Service) planRefresh(ctx context.Context, id string, g *grantRecord, r RefreshRequest) (*plan, error) {
	p, err := s.planUnder(ctx, id, g, r.Scopes)
	if err != nil {
		return nil, err
	}
	if err := p.narrowTo(r.Audiences); err != nil {
		return nil, err
	}
	p.event = event.Refreshed
	if r.Binding != "" && r.Binding != g.Binding {
		if err := checkBinding(r.Binding); err != nil {
			return nil, err
		}
		p.binding = r.Binding // a confidential client may bind each access token to another key of its own
	}
	return p, nil
}

// repeat answers a repeated request with what the first one got: the same refresh token, and an access token with
// the same jti and times. There is nothing new, so there is nothing to write, and racers do not conflict. Only when that
// access token has run out meanwhile there is a new one beside the same refresh token.
func (s *Service) repeat(ctx context.Context, r RefreshRequest, id string, g *grantRecord, next *opaque.RefreshToken) (*Issued, error) {
	m, err := s.reach(ctx, s.begin(ctx), g.birth())
	if err != nil {
		return nil, err
	}
	p, err := s.planRefresh(ctx, id, g, RefreshRequest{Binding: r.Binding})
	if err != nil {
		return nil, err
	}
	if r.Binding == "" && g.Bound != "" {
		p.binding = g.Bound
	}
	p.scopes = intersectScopes(g.Narrow, p.scopes)
	if len(g.For) > 0 {
		if p.narrow = meetAudiences(g.For, p.audiences); len(p.narrow) == 0 {
			return nil, fail(ErrInvalidGrant, "none of its audiences may be asked for any more")
		}
	}
	text, err := s.refreshText(next)
	if err != nil {
		return nil, err
	}
	now := s.now()
	st := stamp{jti: g.JTI, grant: id, iat: time.UnixMilli(g.IAT), exp: time.UnixMilli(g.EXP), pos: m.stamp(g.birth())}
	var i *Issued
	if now.Before(st.exp) {
		var rs *rules.Subject
		if i, rs, err = s.sign(ctx, p, st); err == nil {
			err = s.overtaken(rs)
		}
	} else {
		st.jti, st.iat, st.exp = newID(now), now, g.cut(now.Add(p.life))
		i, err = s.record(ctx, p, st)
	}
	if err != nil {
		return nil, err
	}
	i.at, i.Refresh = now, NewSecret(text)
	return i, nil
}

// answered notes that the answer with g's refresh token goes out, so that there is no second one. store.ErrConflict: it was asked
// for again meanwhile.
func (s *Service) answered(ctx context.Context, id string, g *grantRecord, v store.Version) error {
	next := *g
	next.Owed = false
	// The store's time of the rotation changes with this write, and nobody asks for it any more.
	c := s.newChange()
	if err := next.put(c, id, v); err != nil {
		return err
	}
	_, err := s.commit(ctx, c)
	return err
}

// repeatOnce is repeat where there is no grace window: of a rotation whose outcome was unknown the answer is given once more.
func (s *Service) repeatOnce(ctx context.Context, r RefreshRequest, id string, g *grantRecord, next *opaque.RefreshToken, v store.Version) (*Issued, error) {
	i, err := s.repeat(ctx, r, id, g, next)
	if err == nil {
		err = s.answered(ctx, id, g, v)
	}
	if err != nil {
		return nil, err
	}
	return i, nil
}
