package apitoken

import (
	"context"
	"time"

	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/lineage"
	"github.com/apitoken-go/apitoken/internal/mover"
	"github.com/apitoken-go/apitoken/internal/once"
	"github.com/apitoken-go/apitoken/internal/record"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/internal/usage"
	"github.com/apitoken-go/apitoken/store"
)

// Copied tells what Copy moved.
type Copied struct {
	Records map[store.Kind]int // by kind, without what had expired
	Events  int
	Digest  [32]byte      // over all records, equal on both sides
	Refused time.Duration // how long the source refused writes until all was verified
}

// Copy moves the service in from's namespace to to's, which must be empty. Services on from continue meanwhile. While the last
// changes are copied and everything is compared, they answer writes with ErrUnavailable; then they find the service
// moved: they take no more writes, and answer ErrUnavailable to everything after MaxStaleness. Start the service on to
// then. Tokens, revocations in their order, sessions, API keys, clients, signing keys, events and the places of sinks stay
// what they were. A record that cannot be read is copied as it is.
//
// from must have SetReadOnly(ctx, bool) error, as the stores of this module do. If Copy fails, from takes writes again.
// Repeat an interrupted Copy with the same stores, and it continues; to cannot be used before Copy has succeeded.
//
// An engine may show an event in its final order a while after it was written, as Postgres does while a long transaction
// is open. Copy waits for that as long as ctx allows before it makes from refuse writes, and for a few seconds after that;
// then it gives up with ErrUnavailable.
func Copy(ctx context.Context, from, to Store) (_ Copied, failed error) {
	defer tell(&failed)
	source, ok := from.(mover.Freezer)
	if !ok {
		return Copied{}, fail(ErrInvalidRequest, "the source, %T, has no SetReadOnly: writes could be lost", from)
	}
	done, err := mover.Move(ctx, mover.Config{From: from, To: to, Freeze: source, Meta: metaID, Kinds: copiedKinds,
		Namespace: func(meta store.Record) (string, error) {
			var m metaRecord
			err := read(&metaForm, meta, &m)
			return m.Namespace, err
		},
		Carry: carried,
		Open: func(meta store.Record, history uint64, from, until time.Time) (record.Written, error) {
			var m metaRecord
			if err := read(&metaForm, meta, &m); err != nil {
				return record.Written{}, err
			}
			m.History, m.Copied = history, [2]int64{from.UnixMilli(), until.UnixMilli()}
			return commit.Write(&metaForm, store.Record{ID: metaID}, &m)
		}})
	return Copied(done), public(err)
}

// copiedKinds are all kinds but the namespace's own record, the cursors of sinks and the events.
var copiedKinds = []store.Kind{store.KindKey, store.KindRole, store.KindClient, store.KindRule, store.KindAPIKey,
	kindGrant, kindTicket, once.Kind, kindNote, usage.Kind, usage.KindSpent, lineage.Kind}

// carried is a record as it goes into another store. A rule keeps its place in the order of changes, and a session the time
// of its last refresh, so that no grace window opens again. placed is false for a rule that cannot be read: it gets a place after
// all others and matches more.
func carried(r store.Record) (_ store.Record, placed bool) {
	switch r.Kind {
	case store.KindRule:
		x, err := rules.ReadRule(r)
		if err != nil {
			return r, false
		}
		w, err := rules.RuleForm.Write(r, &x)
		if err != nil {
			return r, false
		}
		r.Data = w.Record().Data
	case kindGrant:
		g, err := readGrant(r)
		if err != nil {
			return r, true
		}
		g.Rotated = g.written(r)
		if w, err := grantForm.Write(r, g); err == nil {
			r.Data = w.Record().Data
		}
	}
	return r, true
}
