// The root's part of store/move: how the records of a service are carried to another store.

package apitoken

import (
	"context"
	"time"

	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/lineage"
	"github.com/apitoken-go/apitoken/internal/mover"
	"github.com/apitoken-go/apitoken/internal/namespace"
	"github.com/apitoken-go/apitoken/internal/once"
	"github.com/apitoken-go/apitoken/internal/record"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/internal/usage"
	"github.com/apitoken-go/apitoken/store"
)

// Package store/move calls this, because only the root knows what the records say.
func init() { mover.Service = moveService }

func moveService(ctx context.Context, from, to Store) (_ mover.Moved, failed error) {
	defer tell(&failed)
	source, ok := from.(mover.Freezer)
	if !ok {
		return mover.Moved{}, fail(ErrInvalidRequest, "the source, %T, has no SetReadOnly: writes could be lost", from)
	}
	done, err := mover.Move(ctx, mover.Config{From: from, To: to, Freeze: source, Meta: namespace.ID, Kinds: copiedKinds,
		Namespace: func(meta store.Record) (string, error) {
			var m namespace.Record
			err := read(&namespace.MetaForm, meta, &m)
			return m.Namespace, err
		},
		Carry: carried,
		Open: func(meta store.Record, history uint64, from, until time.Time) (record.Written, error) {
			var m namespace.Record
			if err := read(&namespace.MetaForm, meta, &m); err != nil {
				return record.Written{}, err
			}
			m.History, m.Copied = history, [2]int64{from.UnixMilli(), until.UnixMilli()}
			return commit.Write(&namespace.MetaForm, store.Record{ID: namespace.ID}, &m)
		}})
	return done, public(err)
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
