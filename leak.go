// RevokeLeaked: every credential of ours that is in a text found in the wild ends, whatever it is.

package apitoken

import (
	"context"
	"crypto/subtle"
	"errors"
	"time"

	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/internal/clients"
	"github.com/apitoken-go/apitoken/internal/jws"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/store"
)

// What is found where it does not belong is ended. Only the thing itself ends it: an ID, a part of it or a look-alike does
// nothing, and takes no longer than junk.

const (
	maxLeakText    = 1 << 20
	maxLeakMatches = 100
)

// RevokeLeaked finds this service's credentials in text, verifies each, ends them and returns how many, each with an event
// token.leaked. Look-alikes, and what is another service's, are passed over and cost no read of the store.
//
//   - An access or refresh token, expired or not, ends its grant, an API key itself.
//   - A ticket cannot be redeemed any more; one that was ends what it got.
//   - A generated client secret is right no longer, and the tokens that the client got with it for itself end; those of its
//     users stay. Another live secret of the client goes on until its own end. Where there is none the client is shut out until
//     Clients.RotateSecret makes one: what anybody can read proves nobody.
//   - A registration token (Clients.RegistrationToken) is good no longer.
//
// A ticket or secret that has ended already is passed over. ErrInvalidRequest: the text is over 1 MiB. ErrUnavailable: as for
// Revoke, what was found is refused here and this process goes on trying to write it; what could not even be looked up stays,
// so call again. It stops after 100 credentials.
func (s *Service) RevokeLeaked(ctx context.Context, text []byte, reason string) (int, error) {
	if len(text) > maxLeakText {
		return 0, fail(ErrInvalidRequest, "the text has %d bytes, at most %d are searched", len(text), maxLeakText)
	}
	l := &leakSearch{revoker: s.revoker, reason: reason, seen: map[rules.Target]bool{}, read: map[string]bool{}}
	for secret := range opaque.Find(text) {
		if !l.end(ctx, string(secret)) {
			return l.ended, l.err
		}
	}
	looked := 0
	for key := range s.APIKeys.forms.Find(text) {
		if looked++; looked > maxLeakLooks || !l.end(ctx, key) {
			break
		}
	}
	for token := range jws.Find(text) {
		if !l.end(ctx, token) {
			break
		}
	}
	return l.ended, l.err
}

// leakSearch is one call of RevokeLeaked.
type leakSearch struct {
	revoker
	reason string
	seen   map[rules.Target]bool
	read   map[string]bool // texts: what stands twice is looked up once
	found  int             // of ours, ended or not
	ended  int
	err    error // the first one; what follows is ended all the same
}

// end ends one credential, and says whether to go on.
func (l *leakSearch) end(ctx context.Context, text string) bool {
	if l.read[text] {
		return true
	}
	l.read[text] = true
	found, ended, err := 0, 0, error(nil)
	switch opaque.KindOf(text) {
	case opaque.ClientSecret:
		found, ended, err = l.clients.endLeaked(ctx, text, l.reason)
	case opaque.Ticket:
		found, ended, err = l.endTicket(ctx, text)
	default:
		found, ended, err = l.endToken(ctx, text)
	}
	l.found += found
	l.ended += ended
	if err != nil && l.err == nil {
		l.err = err
	}
	return l.found < maxLeakMatches
}

func (l *leakSearch) endToken(ctx context.Context, text string) (found, ended int, err error) {
	t, err := l.targetOf(ctx, text)
	t.Shown = rules.Shown{} // two credentials of one grant are one target
	switch {
	case errors.Is(err, ErrNotFound) || err == nil && l.seen[t]:
		return 0, 0, nil
	case err != nil:
		return 0, 0, err
	}
	l.seen[t] = true
	if err := l.revoke(ctx, t, l.reason, event.Leaked); err != nil {
		return 1, 0, err
	}
	return 1, 1, nil
}

// The end of a secret or a ticket is a rule on its ID, as that of an API key is: in force here before the store is asked,
// put back into a store that lost it, copied with the others. It is written together with what takes the thing out of its
// record, which decides in other processes where their view would be too old.

// endHeld puts rules on targets into force here, then has the store told by write, which does nothing where it was told
// already. As long as the outcome is unknown they stay in force, and write is tried again.
func (s *core) endHeld(ctx context.Context, targets []rules.Target, write func(context.Context) (bool, error)) (bool, error) {
	began := time.Now()
	holds := make([]*rules.Held, len(targets))
	for i, t := range targets {
		holds[i] = &rules.Held{Target: t}
		s.rules.Hold(holds[i])
	}
	release := func() {
		for _, h := range holds {
			s.rules.Release(h)
		}
	}
	ended, err := write(ctx)
	s.observe(ctx, Observation{Op: "revoke", Err: err, Took: time.Since(began)})
	if !errors.Is(err, ErrUnavailable) {
		release()
		return ended, err
	}
	who, origin := s.actorOf(ctx), originOf(ctx)
	s.retries.Add(targets[0], func(ctx context.Context) error {
		_, err := write(WithOrigin(withPrincipal(ctx, who), origin))
		return err
	}, release)
	return false, err
}

// endTicket ends the ticket that text is, and what it got.
func (s *leakSearch) endTicket(ctx context.Context, text string) (found, ended int, err error) {
	id, hash, err := s.findTicket(ctx, text)
	switch {
	case errors.Is(err, ErrInvalidGrant):
		return 0, 0, nil
	case err != nil:
		return 0, 0, err
	}
	ok, err := s.endHeld(ctx, []rules.Target{rules.ByToken(id)}, func(ctx context.Context) (bool, error) { return s.spoilTicket(ctx, id, hash) })
	switch {
	case err != nil:
		return 1, 0, err
	case !ok:
		return 0, 0, nil
	}
	return 1, 1, nil
}

// spoilTicket writes that a ticket has leaked, and reports whether there was anything to end. Against a use in parallel the
// store decides: either that finds it spoilt, or what it got is revoked.
func (s *leakSearch) spoilTicket(ctx context.Context, id string, hash [32]byte) (bool, error) {
	reason := s.reason
	for range refreshTries {
		r, err := s.get(ctx, kindTicket, id)
		switch {
		case isNotFound(err): // purged, or not written after all
			return false, nil
		case err != nil:
			return false, err
		}
		t, err := readTicket(r)
		if err != nil {
			return false, err
		}
		if t.Leaked || subtle.ConstantTimeCompare(hash[:], t.Hash[:]) != 1 {
			return false, nil
		}
		if t.Spent != "" {
			ended, err := s.endSpent(ctx, r, t, reason, event.Leaked)
			if errors.Is(err, store.ErrConflict) {
				continue
			}
			return ended, err
		}
		t.Leaked = true
		c := s.newChange()
		if err := put(c, &ticketForm, store.Record{ID: id, Subject: r.Subject, Client: r.Client, Expires: r.Expires}, t, r.Version); err != nil {
			return false, err
		}
		if err := s.addRuleUntil(ctx, c, rules.ByToken(id), false, reason, r.Expires); err != nil {
			return false, err
		}
		c.event(ctx, Event{Type: event.Leaked, OK: true, Reason: reason, Target: ByToken(id), TokenID: id, Subject: t.Subject, Client: t.Client, Scopes: t.Scopes,
			Extra: map[string]string{"leaked": "ticket"}})
		_, err = s.commit(ctx, c)
		if !errors.Is(err, store.ErrConflict) {
			return err == nil, err
		}
	}
	return false, tryAgain("parallel uses of one ticket")
}

// ownTokens are what a client got for itself, and what came of that.
func ownTokens(client string) rules.Target { return rules.BySubject(client).HeldBy(client) }

// endLeaked ends the client secret or registration token that text is, with whomever has it.
func (cs *Clients) endLeaked(ctx context.Context, text, reason string) (found, ended int, err error) {
	g, err := cs.proofs.Read(ctx, text)
	if g.Key == nil || err != nil {
		return 0, 0, public(err)
	}
	list := cs.known.Holders(g)
	if len(list) == 0 && g.Ours {
		// Another process may have made it a moment ago. Junk ends at the tag, without a look at the store.
		if err := cs.s.state.Refresh(ctx); err != nil {
			return 0, 0, unavailable(err, "look for the client of a leaked secret")
		}
		list = cs.known.Holders(g)
	}
	for _, x := range list {
		targets := []rules.Target{rules.ByToken(x.ID)}
		if !x.Registration {
			targets = append(targets, ownTokens(x.Client))
		}
		ok, e := cs.s.endHeld(ctx, targets, func(ctx context.Context) (bool, error) { return cs.withdraw(ctx, x, reason) })
		switch {
		case e != nil:
			found++
			if err == nil {
				err = e
			}
		case ok:
			found++
			ended++
		}
	}
	return found, ended, err
}

// withdraw takes x out of its client's record, and reports whether it was there.
func (cs *Clients) withdraw(ctx context.Context, x clients.Held, reason string) (bool, error) {
	for range refreshTries {
		rec, v, err := cs.read(ctx, x.Client)
		switch {
		case isNotFound(err):
			return false, nil
		case err != nil:
			return false, err
		}
		if !rec.Withdraw(x.Hash, cs.s.now()) {
			// Done before, perhaps by us, unheard: this process must know it too before it stops refusing on its own.
			if err := cs.s.state.Refresh(ctx); err != nil {
				return false, unavailable(err, "read back the client of a leaked secret")
			}
			return false, nil
		}
		c := cs.s.newChange()
		if err := rec.Put(&c.Change, x.Client, v); err != nil {
			return false, public(err)
		}
		// The rule on the secret stays until the janitor has seen to it that no record holds the secret.
		if err := cs.s.addRuleUntil(ctx, c, rules.ByToken(x.ID), false, reason, 0); err != nil {
			return false, err
		}
		what := "registration token"
		if !x.Registration {
			what = "client secret"
			if err := cs.s.addRule(ctx, c, ownTokens(x.Client), false, reason); err != nil {
				return false, err
			}
			c.event(ctx, Event{Type: event.Revoked, OK: true, Reason: reason, Target: Target{ownTokens(x.Client)}, Subject: x.Client, Client: x.Client})
		}
		c.event(ctx, Event{Type: event.Leaked, OK: true, Reason: reason, Target: ByToken(x.ID), TokenID: x.ID, Client: x.Client, Extra: map[string]string{"leaked": what}})
		_, err = cs.s.commit(ctx, c)
		if !errors.Is(err, store.ErrConflict) {
			return err == nil, err
		}
	}
	return false, tryAgain("parallel updates of client %s", x.Client)
}

// forget takes secrets that a rule has ended out of records that still have them, because the store once lost its latest
// writes and got the rule back.
func (cs *Clients) forget(ctx context.Context, id string) error {
	key, err := opaque.ParseID(id)
	if err != nil {
		return nil
	}
	for _, client := range cs.known.With(key) {
		rec, v, err := cs.read(ctx, client)
		if isNotFound(err) {
			continue
		}
		if err != nil {
			return err
		}
		if !rec.Forget(key[:]) {
			continue
		}
		c := cs.s.newChange()
		if err := rec.Put(&c.Change, client, v); err != nil {
			return public(err)
		}
		c.event(ctx, Event{Type: event.ClientChanged, OK: true, Reason: "leaked secret withdrawn", Client: client, Scopes: retyped[Scope](rec.Scopes)})
		if _, err := cs.s.commit(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

// maxLeakLooks bounds how many texts are looked for in the store because they begin as an imported key does.
const maxLeakLooks = 1 << 12
