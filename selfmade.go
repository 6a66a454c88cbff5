// Clients that made themselves known: by a metadata document, or by open registration. Bounded in number and time.

package apitoken

import (
	"context"
	"errors"
	"time"

	"github.com/apitoken-go/apitoken/store"
)

// Clients that nobody here has made: they registered themselves, or described themselves in a document at the URL that is their
// ID. Anybody may make such a client, so each ends by itself. It is kept while people let it have tokens, and made the host's own
// by whatever the host changes of it.

const unusedClient = time.Hour // until somebody lets it have tokens

// Adopt makes the client c.ID be as its own description says, and writes nothing if it is so already: for an authorization server
// that reads client metadata documents. A client that is new ends after an hour if Keep does not move that on. Disabled, what
// Update has taken from a client, and its own audiences and lifetimes stay the host's. c has no secret.
//
// ErrDenied: it is disabled. ErrInvalidRequest: c contradicts itself, or its ID is that of a client which the host made and which
// is of the other kind, public or confidential. ErrLimited: most clients that end by themselves are there already.
func (cs *Clients) Adopt(ctx context.Context, c Client, most int) (Client, error) {
	if c.usesSecret() {
		return Client{}, fail(ErrInvalidRequest, "client %q describes itself and has a secret: everybody could read it", c.ID)
	}
	if err := cs.check(&c); err != nil {
		return Client{}, err
	}
	if err := cs.s.audit.ready(); err != nil {
		return Client{}, err
	}
	for range refreshTries {
		got, err := cs.adopt(ctx, c, most)
		if !errors.Is(err, store.ErrConflict) {
			return got, err
		}
	}
	return Client{}, tryAgain("parallel updates of client %s", c.ID)
}

// adopt is one try. store.ErrConflict: another writer was first.
func (cs *Clients) adopt(ctx context.Context, c Client, most int) (Client, error) {
	now := cs.s.now()
	rec, v, err := cs.read(ctx, c.ID)
	switch {
	case isNotFound(err):
		if cs.Temporary() >= most {
			return Client{}, &Error{Code: ErrLimited, RetryAfter: unusedClient, Detail: "too many clients that made themselves"}
		}
		if err := cs.noSubject(ctx, c.ID); err != nil {
			return Client{}, err
		}
		rec.Created = now.UnixMilli()
		c.Expires = now.Add(unusedClient)
		rec.set(c)
		return rec.public(c.ID), cs.write(ctx, c.ID, &rec, v, "described itself", nil)
	case err != nil:
		return Client{}, err
	}
	before := rec.public(c.ID)
	switch {
	case before.Disabled:
		return Client{}, fail(ErrDenied, "client %q is disabled", c.ID)
	case before.Public != c.Public:
		return Client{}, fail(ErrInvalidRequest, "client %q cannot change between public and confidential", c.ID)
	}
	c.Audiences, c.Lifetimes, c.Expires = before.Audiences, before.Lifetimes, before.Expires
	if !c.Expires.IsZero() && !now.Before(c.Expires) {
		c.Expires = now.Add(unusedClient)
	}
	if err := rec.Most.limit(&c); err != nil {
		return Client{}, err
	}
	if rec.same(c) {
		return before, nil
	}
	how, hold := cs.narrowed(&before, &c, "described itself anew")
	rec.set(c)
	err = cs.commitHolding(ctx, hold, how, func(rules func(*change) error) error {
		return cs.write(ctx, c.ID, &rec, v, how, rules)
	})
	return rec.public(c.ID), err
}

// Keep moves on the end of a client that ends by itself, since somebody lets it have tokens: it lives for as long as what it gets
// now, and longer. Of a client that stays anyway it does nothing. ErrNotFound.
func (cs *Clients) Keep(ctx context.Context, id string) error {
	for range refreshTries {
		rec, v, err := cs.read(ctx, id)
		if err != nil {
			return err
		}
		// With room to spare, so that a client that is in use is written once in the life of a grant.
		c := rec.public(id)
		life := cs.s.lifetimes(&c).Grant
		now := cs.s.now()
		if rec.Expires == 0 || now.Add(life+life/4).UnixMilli() < rec.Expires {
			return nil
		}
		rec.Expires = now.Add(2*life + unusedClient).UnixMilli()
		err = cs.write(ctx, id, &rec, v, "kept", nil)
		if !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
	return tryAgain("parallel updates of client %s", id)
}

// Temporary is the number of clients that end by themselves, as this process knows them.
func (cs *Clients) Temporary() int { return int(cs.passing.Load()) }

// Count is the number of clients, and of those that are disabled, from this process's memory. It reads no store.
func (cs *Clients) Count() (all, disabled int) {
	now := cs.s.now()
	cs.known.Range(func(_, v any) bool {
		if k := v.(*knownClient); !k.ended(now) {
			if all++; k.Disabled {
				disabled++
			}
		}
		return true
	})
	return all, disabled
}

// passing is 1 for a client that ends by itself.
func (k *knownClient) passing() int64 {
	if k == nil || k.Expires.IsZero() {
		return 0
	}
	return 1
}

// sweep forgets the clients whose records may have been purged.
func (cs *Clients) sweep(ctx context.Context, before time.Time) {
	release, err := cs.s.state.Hold(ctx)
	if err != nil {
		return
	}
	defer release()
	for id, v := range cs.known.Range {
		k := v.(*knownClient)
		if !k.Expires.IsZero() && k.Expires.Add(clientSlack).Before(before) && cs.known.CompareAndDelete(id, v) {
			cs.reindex(k, nil)
		}
	}
}
