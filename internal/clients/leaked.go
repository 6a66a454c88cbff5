// Client secrets and registration tokens that were found in a leak: whose they are, and how they end.

package clients

import (
	"context"
	"errors"

	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/internal/clientauth"
	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/internal/revoke"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/store"
)

// The end of a leaked secret is a rule on its ID, as that of an API key is: in force here before the store is asked, put back into a
// store that lost it, copied with the others. It is written together with what takes the secret out of its client's record, which
// decides in other processes where their view would be too old.

// Read is a client's record as the store has it now. fault.NotFound.
func (d *Directory[C]) Read(ctx context.Context, id string) (*Record, store.Version, error) {
	r, err := d.c.Revoke.Commit.Get(ctx, store.KindClient, id)
	if err != nil {
		return nil, store.Version{}, err
	}
	rec := new(Record)
	return rec, r.Version, commit.Read(&ClientForm, r, rec)
}

// EndLeaked ends the client secret or registration token that text is, with whomever has it. found counts those who have it, ended
// those of whom it is written.
func (d *Directory[C]) EndLeaked(ctx context.Context, text, reason string) (found, ended int, err error) {
	g, err := d.c.Proofs.Read(ctx, text)
	if g.Key == nil || err != nil {
		return 0, 0, err
	}
	list := d.holders(g)
	if len(list) == 0 && g.Ours {
		// Another process may have made it a moment ago. Junk ends at the tag, without a look at the store.
		if err := d.c.State().Refresh(ctx); err != nil {
			return 0, 0, fault.NoAnswer(err, "look for the client of a leaked secret")
		}
		list = d.holders(g)
	}
	for _, x := range list {
		targets := []rules.Target{rules.ByToken(x.id)}
		if !x.registration {
			targets = append(targets, ownTokens(x.client))
		}
		ok, e := d.c.Revoke.EndBy(ctx, targets, func(ctx context.Context) (bool, error) { return d.withdraw(ctx, x, reason) })
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

// held is a generated secret of a client's, or its registration token, as it is stored.
type held struct {
	client       string
	id           string // its own
	hash         [32]byte
	registration bool // gets no tokens
}

// holders are those whose live secret, or registration token, g is: more than one where a host has declared it twice.
func (d *Directory[C]) holders(g clientauth.Generated) (list []held) {
	for _, client := range d.With(g.ID) {
		k := d.Lookup(client)
		if k == nil {
			continue
		}
		if hash := d.c.Proofs.Verifier(client, g); clientauth.Match(k.Record.Live(d.c.Now()), hash) >= 0 {
			list = append(list, held{client, g.ID.String(), hash, false})
		}
		if hash := d.c.Proofs.Registration(client, g); k.Record.IsRegistration(hash) {
			list = append(list, held{client, g.ID.String(), hash, true})
		}
	}
	return list
}

// ownTokens are what a client got for itself, and what came of that.
func ownTokens(client string) rules.Target { return rules.BySubject(client).HeldBy(client) }

// withdraw takes x out of its client's record, and reports whether it was there.
func (d *Directory[C]) withdraw(ctx context.Context, x held, reason string) (ended bool, err error) {
	w := d.c.Revoke
	err = commit.Retry("parallel updates of client "+x.client, func() error {
		rec, v, err := d.Read(ctx, x.client)
		switch {
		case errors.Is(err, fault.NotFound):
			return nil
		case err != nil:
			return err
		}
		if !rec.Withdraw(x.hash, d.c.Now()) {
			// Done before, perhaps by us, unheard: this process must know it too before it stops refusing on its own.
			if err := d.c.State().Refresh(ctx); err != nil {
				return fault.NoAnswer(err, "read back the client of a leaked secret")
			}
			return nil
		}

		c := commit.NewChange()
		if err := rec.Put(c, x.client, v); err != nil {
			return err
		}
		// The rule on the secret stays until the janitor has seen to it that no record holds the secret.
		if err := w.AddUntil(ctx, c, rules.ByToken(x.id), false, reason, 0); err != nil {
			return err
		}
		what := "registration token"
		if !x.registration {
			what = "client secret"
			own := ownTokens(x.client)
			if err := w.Add(ctx, c, own, false, reason); err != nil {
				return err
			}
			w.Event(ctx, c, revoke.Event{Type: event.Revoked, Reason: reason, Target: own, Subject: x.client, Client: x.client})
		}
		w.Event(ctx, c, revoke.Event{Type: event.Leaked, Reason: reason, Target: rules.ByToken(x.id), Token: x.id, Client: x.client,
			Extra: map[string]string{"leaked": what}})
		_, err = w.Commit.Commit(ctx, c)
		ended = err == nil
		return err
	})
	return ended, err
}

// Forget takes secrets that a rule on this ID has ended out of records that still have them, because the store once lost its latest
// writes and got the rule back.
func (d *Directory[C]) Forget(ctx context.Context, id string) error {
	key, err := opaque.ParseID(id)
	if err != nil {
		return nil
	}
	w := d.c.Revoke
	for _, client := range d.With(key) {
		rec, v, err := d.Read(ctx, client)
		if errors.Is(err, fault.NotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if !rec.Forget(key[:]) {
			continue
		}
		c := commit.NewChange()
		if err := rec.Put(c, client, v); err != nil {
			return err
		}
		w.Event(ctx, c, revoke.Event{Type: event.ClientChanged, Reason: "leaked secret withdrawn", Client: client, Scopes: rec.Scopes})
		if _, err := w.Commit.Commit(ctx, c); err != nil {
			return err
		}
	}
	return nil
}
