// Withdrawal of a signing key that has leaked.

package keyring

// A signing key that is in someone's hands: what withdraws it, what takes its place, and what keeps it out.

import (
	"context"
	"errors"

	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/revoke"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/store"
)

// Compromise withdraws a key at once and ends all that it signed. why is the type of the event that tells of what it signed.
func (k *Ring) Compromise(ctx context.Context, id, reason string, why event.Type) error {
	return k.c.Revoke.Ahead(ctx, []rules.Target{rules.BySigningKey(id)}, func(ctx context.Context) error { return k.withdraw(ctx, id, reason, why) })
}

// withdraw writes the rule on what a key signed, and the ring without it, in one change.
func (k *Ring) withdraw(ctx context.Context, id, reason string, why event.Type) error {
	for try := 0; try < keyTries; try++ {
		if err := k.refresh(ctx); err != nil {
			return fault.NoAnswer(err, "follow the store")
		}
		lock := k.locked()
		shut := k.openRoots(ctx) // that does not keep a key under another root from being withdrawn
		r := k.ring.Load()
		l, bad := r.find(id)
		if bad == nil && shut != nil {
			return fault.NoAnswer(shut, "open the root secret under which the key may lie")
		}
		if bad == nil {
			return fault.Fail(fault.NotFound, "no signing key %q", id)
		}
		if bad.rec.Compromised != 0 {
			return nil
		}
		c := commit.NewChange()
		signed := rules.BySigningKey(id)
		if err := k.c.Revoke.Add(ctx, c, signed, false, reason); err != nil {
			return err
		}
		if err := k.replace(ctx, c, r, l, bad, lock); err != nil {
			return err
		}
		k.c.Revoke.Event(ctx, c, revoke.Event{Type: why, Reason: reason, Target: signed})
		err := k.commit(ctx, c)
		if !errors.Is(err, store.ErrConflict) {
			k.Wake()
			return err
		}
	}
	return fault.Retry("other processes keep changing the signing keys")
}

// find is a key and its lane.
func (r *ring) find(id string) (*lane, *ringKey) {
	for i := range r.lanes {
		l := &r.lanes[i]
		for j := range l.keys {
			if l.keys[j].kid == id {
				return l, &l.keys[j]
			}
		}
	}
	return nil, nil
}

// replace marks bad, destroys its private half, and sees that another key is active. What takes its place takes its time as
// well: by a clock that is behind, the new key would else not have begun, and one before bad would sign, which may be gone.
// For an audience that this process makes no keys for, the common key signs.
func (k *Ring) replace(ctx context.Context, c *commit.Change, r *ring, l *lane, bad *ringKey, lock store.Version) error {
	if err := k.putLock(c, lock); err != nil {
		return err
	}
	now := k.now().UnixMilli()
	rec := bad.rec
	rec.Compromised, rec.Sealed = now, nil
	k.prove(r.by[rec.Root], bad.kid, &rec)
	if err := k.put(c, bad.kid, &rec, 0, bad.version); err != nil {
		return err
	}
	k.keyChanged(ctx, c, bad.kid, rec.Alg, "compromised")
	var next *ringKey
	first := l.first()
	for i := len(l.keys) - 1; i >= 0; i-- {
		x := &l.keys[i]
		if x.rec.Compromised != 0 {
			continue
		}
		signs := x.rec.Activates <= now || i == first
		if x.kid == bad.kid {
			if !signs {
				return nil // it was next: who signs stays
			}
			break
		}
		if signs {
			return nil // bad is older than the active one
		}
		next = x
	}
	const how = "active in place of a compromised key"
	if next != nil {
		fresh := next.rec
		fresh.Activates, fresh.Took = bad.rec.Activates, max(now, bad.rec.Took+1)
		return k.rewrite(ctx, c, r, next, fresh, how)
	}
	if l.alg == "" || bad.rec.Ends != 0 {
		return nil
	}
	kid, fresh, err := k.make(k.current(r), l, bad.rec.Activates)
	if err != nil {
		return err
	}
	fresh.Took = max(now, bad.rec.Took+1)
	k.prove(k.current(r), kid, fresh)
	if err := k.put(c, kid, fresh, 0, store.Version{}); err != nil {
		return err
	}
	k.keyChanged(ctx, c, kid, fresh.Alg, how)
	return nil
}

// heal withdraws keys that sign although a rule refuses what they signed: the store came back from before they were
// withdrawn, and the rule was put back into it.
func (k *Ring) heal(ctx context.Context) {
	for _, x := range k.ring.Load().keys {
		if x.rec.Compromised != 0 || !k.revoked(x.kid) {
			continue
		}
		if err := k.withdraw(ctx, x.kid, "it was revoked before", event.Revoked); err != nil && ctx.Err() == nil {
			k.c.Log.Warn("apitoken: a signing key that a rule refuses could not be withdrawn yet", "kid", x.kid, "error", err)
		}
	}
}

// revoked reports whether a rule refuses all that a key signed.
func (k *Ring) revoked(kid string) bool { return k.c.Revoke.Rules.Signed(kid) }
