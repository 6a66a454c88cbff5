// Package keyring holds the root secrets and the signing keys of a service: it makes, seals, turns and withdraws them, and says which one
// signs and which ones verify. A key's state is no record but a function of the ring and the clock, so that all processes
// agree without a word. It also makes and reads the texts of API keys, tickets and client secrets, whose tags are made under a root.
//
// Order: a change is made from the ring behind its lock record: Refresh, then the lock's version, then the roots that are shut, then
// the ring. One mutex guards the maps and the making of rings; readers take the ring from an atomic pointer. The follower calls Apply
// with its own lock held: Apply opens nothing and asks no store, a KMS may be slow. Publish and Wake are called with the mutex held.
//
// The root's SigningKeys calls it; it writes through internal/revoke, as the rule on what a withdrawn key signed goes with the ring.
package keyring

import (
	"context"
	"log/slog"
	"time"

	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/jws"
	"github.com/apitoken-go/apitoken/internal/revoke"
)

// Config is what a Ring is made by.
type Config struct {
	Algorithm string
	Audiences map[string]string // those with keys of their own, and their algorithms
	Rotation  time.Duration     // negative: only by call
	Seal      Sealer            // nil: root secrets lie in clear
	Clear     bool              // takes those that lie in clear
	Prefix    string            // of credentials
	Namespace func() string
	Log       *slog.Logger
	Revoke    *revoke.Writer                                           // with the store behind it
	Ready     func() error                                             // to give power: an auditor that must keep up does
	Publish   func(keys []*jws.PublicKey)                              // what verifies now
	Rotated   func(ctx context.Context, err error, took time.Duration) // a rotation by the clock was tried
}

// Sealer encrypts root secrets.
type Sealer interface {
	Seal(ctx context.Context, plain, context []byte) (sealed []byte, err error)
	Open(ctx context.Context, sealed, context []byte) (plain []byte, err error)
}

func (k *Ring) now() time.Time { return k.c.Revoke.Now() }

// refresh reads all that the store has acknowledged; it comes by Apply.
func (k *Ring) refresh(ctx context.Context) error { return k.c.Revoke.Commit.State.Refresh(ctx) }

// commit writes c. store.ErrConflict comes back as it is.
func (k *Ring) commit(ctx context.Context, c *commit.Change) error {
	_, err := k.c.Revoke.Commit.Commit(ctx, c)
	return err
}

// changed adds to c an event of a change of the ring.
func (k *Ring) changed(ctx context.Context, c *commit.Change, how string, what map[string]string) {
	k.c.Revoke.Event(ctx, c, revoke.Event{Type: event.KeyChanged, Reason: how, Extra: what})
}

func (k *Ring) keyChanged(ctx context.Context, c *commit.Change, kid, alg, how string) {
	k.changed(ctx, c, how, map[string]string{"kid": kid, "alg": alg})
}
