// Package keyring holds the root secrets and the signing keys of a service: it makes, seals, turns and withdraws them, and says which one
// signs and which ones verify. A key's state is no record but a function of the ring and the clock, so that all processes
// agree without a word.
//
// Order: a change is made from the ring behind its lock record: Refresh, then the lock's version, then the roots that are shut, then
// the ring. One mutex guards the maps and the making of rings; readers take the ring from an atomic pointer. The follower calls Apply
// with its own lock held: Apply opens nothing and asks no store, a KMS may be slow. Publish and Wake are called with the mutex held.
package keyring

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/jws"
	"github.com/apitoken-go/apitoken/internal/record"
	"github.com/apitoken-go/apitoken/store"
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
}

// Sealer encrypts root secrets.
type Sealer interface {
	Seal(ctx context.Context, plain, context []byte) (sealed []byte, err error)
	Open(ctx context.Context, sealed, context []byte) (plain []byte, err error)
}

// Host is the service around a Ring.
type Host interface {
	Now() time.Time
	Refresh(ctx context.Context) error // reads all that the store has acknowledged; it comes by Apply
	Position() int64                   // how far the view reaches
	Get(ctx context.Context, id string) (store.Record, error)
	NewChange() Change
	Ready() error                                                              // to give power: an auditor that must keep up does
	Revoked(kid string) bool                                                   // a rule refuses all that it signed
	Hold(kid string) (release func())                                          // such a rule, in force here at once
	Retry(kid string, write func(until context.Context) error, release func()) // until the store has it
	Longest() time.Duration                                                    // that what a key signed may live, ever
	Publish(keys []*jws.PublicKey)                                             // what verifies now
	Rotated(ctx context.Context, err error, took time.Duration)                // a rotation by the clock was tried
}

// Change is one write: records and what tells of them, together or not at all.
type Change interface {
	Put(w record.Written, expect store.Version)
	Puts() []store.Put
	Event(ctx context.Context, e Event)
	End(ctx context.Context, kid, reason string) error  // the rule on all that a key signed
	Ended(ctx context.Context, kid, reason, why string) // and what tells of that
	Commit(ctx context.Context) error                   // store.ErrConflict as it is
}

// Event tells of a change of the ring.
type Event struct {
	Reason         string
	Kid, Alg, Root string
	Count          int
}

// put adds v to c in its form.
func put[T any](c Change, f *record.Form[T], r store.Record, v *T, expect store.Version) error {
	w, err := f.Write(r, v)
	if err == nil {
		c.Put(w, expect)
	}
	return err
}

// read takes v out of its form.
func read[T any](f *record.Form[T], r store.Record, v *T) error {
	if err := f.Read(r, v); err != nil {
		return &fault.Error{Code: fault.Unavailable, Detail: "stored " + string(r.Kind) + " " + r.ID + " cannot be read", Cause: err}
	}
	return nil
}

var errVersion = errors.New("damaged or of a newer version")

// first refuses what is not of version 1.
func first(v int) error {
	if v != 1 {
		return errVersion
	}
	return nil
}
