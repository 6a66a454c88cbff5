// Package mover moves a service with everything it keeps from one store to another while it works. It owns the mark that
// says how far the events were copied; the tombstone that it leaves in the source is internal/namespace's.
//
// It promises that the target opens as a service only after all records of both sides were compared and found equal,
// with the source refusing writes; that revocations keep their order, and every position of the target lies after all of
// the source's; and that a move which fails before the tombstone is written leaves the source taking writes. A move that
// was interrupted is repeated with the same stores. A record that cannot be read is copied as it is.
//
// Order: first pass, freeze, second pass, compare, tombstone, third pass, compare, cursors of sinks, the namespace's own
// record last. It takes no lock; several goroutines write batches of one kind, and nothing else runs meanwhile.
//
// Package store/move begins it by [Service], where the root makes the errors its own. It stands on the packages that own the records.
package mover

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/deliver"
	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/follow"
	"github.com/apitoken-go/apitoken/internal/grant"
	"github.com/apitoken-go/apitoken/internal/lineage"
	"github.com/apitoken-go/apitoken/internal/namespace"
	"github.com/apitoken-go/apitoken/internal/note"
	"github.com/apitoken-go/apitoken/internal/once"
	"github.com/apitoken-go/apitoken/internal/record"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/internal/ticket"
	"github.com/apitoken-go/apitoken/internal/usage"
	"github.com/apitoken-go/apitoken/store"
)

// freezer makes a store refuse writes.
type freezer interface {
	SetReadOnly(ctx context.Context, on bool) error
}

// Moved tells what a move copied.
type Moved struct {
	Records map[store.Kind]int // by kind, without what had expired
	Events  int
	Digest  [32]byte      // over all records, equal on both sides
	Refused time.Duration // how long the source refused writes until all was verified
}

const (
	pageSize    = 160 // events; the IDs of a page fit a Mark
	batchSize   = 16  // puts of one change, the contract's limit
	workers     = 8
	overlap     = time.Minute      // by which the second pass begins before the first one did
	patience    = 10 * time.Second // for a target whose clock is behind, and for the order of events while writes are refused
	writeTries  = 5
	thawTimeout = 10 * time.Second
)

// Mark says how far the events are copied: up to Cursor of the source, and the events of Seen after it.
type Mark struct {
	V         int      `json:"v"`
	Namespace string   `json:"ns"`
	Cursor    string   `json:"cursor,omitempty"`
	Seen      []string `json:"seen,omitempty"`
	Events    int      `json:"events"`
	Last      string   `json:"last,omitempty"`
	record.Ext
}

// CopyForm is the form of Mark.
var CopyForm = record.Form[Mark]{Kind: namespace.CopyKind}

// kinds are all kinds of records that are copied as they are, but for the place in the order and the time that the source gave them.
var kinds = []store.Kind{store.KindKey, store.KindRole, store.KindClient, store.KindRule, store.KindAPIKey,
	grant.Kind, ticket.Kind, once.Kind, note.Kind, usage.Kind, usage.KindSpent, lineage.Kind}

type mover struct {
	from, to store.Store
	freezer  freezer // from

	frozen, moved bool // the source refuses writes; it holds the tombstone
	mark          Mark
	markVersion   store.Version
	unplaced      sync.Map // follow.Name of records that need a position after all of the source's
}

// Service is Move with errors of the root, which sets it.
var Service func(ctx context.Context, from, to store.Store) (Moved, error)

// Move moves the service in from's namespace to to's, which holds nothing, or what an interrupted move of the same service left. The errors
// that it returns are of type *fault.Error.
func Move(ctx context.Context, from, to store.Store) (Moved, error) {
	source, ok := from.(freezer)
	if !ok {
		return Moved{}, fault.Fail(fault.InvalidRequest, "the source, %T, has no SetReadOnly: writes could be lost", from)
	}
	m := &mover{from: from, to: to, freezer: source}
	done, err := m.move(ctx)
	if err == nil || m.moved || !m.frozen {
		return done, err
	}

	// Not with the caller's context, which may be what ended the move.
	back, cancel := context.WithTimeout(context.WithoutCancel(ctx), thawTimeout)
	defer cancel()
	if thaw := source.SetReadOnly(back, false); thaw != nil {
		err = at(err, "the source still refuses writes ("+thaw.Error()+")")
	}
	return done, err
}

// at puts what was being done in front of an error's detail.
func at(err error, doing string) error {
	var f *fault.Error
	if !errors.As(err, &f) {
		return fault.NoAnswer(err, doing)
	}
	c := *f
	c.Detail = doing + ": " + c.Detail
	return &c
}

func (m *mover) move(ctx context.Context) (done Moved, err error) {
	if err := m.open(ctx); err != nil {
		return done, err
	}
	began := time.Now()
	first, err := m.clock(ctx)
	if err != nil {
		return done, err
	}
	if err := m.pass(ctx, 0); err != nil {
		return done, err
	}

	// Wait here, where no service is held up, for whatever holds back the target's order of events.
	if err := m.settled(ctx, m.to); err != nil {
		return done, err
	}

	// Copy what changed meanwhile, with the source refusing writes.
	refused := time.Now()
	if err := m.freeze(ctx, true); err != nil {
		return done, err
	}
	since := first - overlap.Milliseconds()
	if m.moved { // when the interrupted move began its first pass is unknown
		since = 0
	}
	if err := m.pass(ctx, since); err != nil {
		return done, err
	}
	if done, err = m.verify(ctx); err != nil {
		return done, err
	}

	// For the tombstone the source must take writes for a moment. Whatever else it takes then is copied by a third pass.
	if err := m.tellMoved(ctx); err != nil {
		return done, err
	}
	if err := m.pass(ctx, since); err != nil {
		return done, err
	}
	if done, err = m.verify(ctx); err != nil {
		return done, err
	}

	if err := m.cursors(ctx); err != nil {
		return done, err
	}
	if err := m.finish(ctx, began); err != nil {
		return done, err
	}
	done.Refused = time.Since(refused)
	return done, nil
}

func (m *mover) freeze(ctx context.Context, on bool) error {
	m.frozen = true // also when the answer is lost
	if err := m.freezer.SetReadOnly(ctx, on); err != nil {
		return fault.NoAnswer(err, "make the source refuse writes")
	}
	m.frozen = on
	return nil
}

// open checks that the source holds a service and the target nothing else than a part of its copy.
func (m *mover) open(ctx context.Context) error {
	r, err := m.from.Get(ctx, store.KindMeta, namespace.ID)
	if errors.Is(err, store.ErrNotFound) {
		return fault.Fail(fault.NotFound, "the source holds no service")
	}
	if err != nil {
		return fault.NoAnswer(err, "read the source")
	}
	var rec namespace.Record
	if err := commit.Read(&namespace.MetaForm, r, &rec); err != nil {
		return err
	}
	if _, err := m.from.Get(ctx, store.KindMeta, namespace.MovedID); err == nil {
		m.moved = true
	} else if !errors.Is(err, store.ErrNotFound) {
		return fault.NoAnswer(err, "read the source")
	}
	switch _, err := m.to.Get(ctx, store.KindMeta, namespace.ID); {
	case err == nil:
		return fault.Fail(fault.InvalidRequest, "the target holds a service already")
	case !errors.Is(err, store.ErrNotFound):
		return fault.NoAnswer(err, "read the target")
	}
	r, err = m.to.Get(ctx, namespace.CopyKind, namespace.CopyID)
	switch {
	case err == nil:
		if err := CopyForm.Read(r, &m.mark); err != nil {
			return fault.NoAnswer(err, "the mark in the target cannot be read")
		}
		m.markVersion = r.Version
		if m.mark.Namespace != rec.Namespace {
			return fault.Fail(fault.InvalidRequest, "the target holds a part of another service's copy")
		}
		return nil
	case !errors.Is(err, store.ErrNotFound):
		return fault.NoAnswer(err, "read the target")
	}
	for _, kind := range append([]store.Kind{store.KindEvent}, kinds...) {
		p, err := m.to.List(ctx, store.Query{Kind: kind, Newest: kind == store.KindEvent, Limit: 1})
		if err != nil {
			return fault.NoAnswer(err, "read the target")
		}
		if len(p.Records) > 0 {
			return fault.Fail(fault.InvalidRequest, "the target is not empty: it holds a %s", kind)
		}
	}
	m.mark = Mark{V: 1, Namespace: rec.Namespace}
	return m.keep(ctx, nil)
}

// clock is the source's time, Unix ms.
func (m *mover) clock(ctx context.Context) (int64, error) {
	v, err := m.from.Follow(ctx, store.Position{}, []store.Kind{store.KindMeta}, 1)
	if err != nil {
		return 0, fault.NoAnswer(err, "read the source")
	}
	if v.Now == 0 {
		return time.Now().UnixMilli(), nil
	}
	return v.Now, nil
}

// pass copies the records that were written since, Unix ms, and the events that are not yet in the target.
func (m *mover) pass(ctx context.Context, since int64) error {
	for _, kind := range kinds {
		if err := m.records(ctx, kind, since); err != nil {
			return at(err, "copy records of kind "+string(kind))
		}
	}
	if err := m.events(ctx); err != nil {
		return at(err, "copy events")
	}
	return nil
}

// list walks the records of a kind in pages.
func list(ctx context.Context, st store.Store, q store.Query, each func([]store.Record) error) error {
	q.Limit = 1000
	for {
		p, err := st.List(ctx, q)
		if err != nil {
			return fault.NoAnswer(err, "list")
		}
		if err := each(p.Records); err != nil {
			return err
		}
		if q.Cursor = p.Cursor; q.Cursor == "" {
			return nil
		}
	}
}

// records copies the records of a kind that were written since, several batches at a time.
func (m *mover) records(ctx context.Context, kind store.Kind, since int64) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	turns := make(chan struct{}, workers)
	err := list(ctx, m.from, store.Query{Kind: kind, Since: since}, func(page []store.Record) error {
		for batch := range slices.Chunk(page, batchSize) {
			puts := make([]store.Record, len(batch))
			for i, r := range batch {
				puts[i] = m.carried(r)
			}
			select {
			case turns <- struct{}{}:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			wg.Go(func() {
				defer func() { <-turns }()
				if err := m.write(ctx, puts); err != nil {
					cancel(err)
				}
			})
		}
		return nil
	})
	wg.Wait()
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// carried is r as it goes into the target, without what the source added to it.
func (m *mover) carried(r store.Record) store.Record {
	r, placed := carry(r)
	if !placed {
		m.unplaced.Store(follow.Name{Kind: r.Kind, ID: r.ID}, nil)
	}
	r.Version, r.Pos, r.Written = store.Version{}, store.Position{}, 0
	return r
}

// carry returns r with what depends on the position and the time that the old store gave it as a part of its data: a rule keeps its place in
// the order of changes, and a session the time of its last refresh, so that no grace window opens again. It returns equal records for equal
// ones. placed is false for a rule that cannot be read: it gets a place after all others and matches more.
func carry(r store.Record) (_ store.Record, placed bool) {
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
	case grant.Kind:
		form := grant.Form[string]()
		var g grant.Record[string]
		if form.Read(r, &g) != nil {
			return r, true
		}
		g.Rotated = g.Written(r)
		if w, err := form.Write(r, &g); err == nil {
			r.Data = w.Record().Data
		}
	}
	return r, true
}

// write puts records into the target, over what an earlier pass put there.
func (m *mover) write(ctx context.Context, list []store.Record) error {
	c := freshChange()
	for _, r := range list {
		c.Puts = append(c.Puts, store.Put{Record: r})
	}
	if changeSize(c) <= maxChange {
		err := apply(ctx, m.to, c)
		if !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
	for _, r := range list {
		if err := m.over(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

// maxChange is below the contract's limit for one Change, 256 KiB, by the room for names.
const maxChange = 200 << 10

func changeSize(c *store.Change) (n int) {
	for _, p := range c.Puts {
		n += len(p.Data) + 512
	}
	for _, e := range c.Events {
		n += len(e.Data) + 512
	}
	return n
}

// over puts one record into the target, whatever is there.
func (m *mover) over(ctx context.Context, r store.Record) error {
	for range 10 {
		old, err := m.to.Get(ctx, r.Kind, r.ID)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return fault.NoAnswer(err, "read the target")
		}
		if err == nil && leaf(old) == leaf(r) {
			return nil
		}
		c := freshChange()
		c.Puts = []store.Put{{Record: r, Expect: old.Version}}
		if err := apply(ctx, m.to, c); !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
	return fault.Fail(fault.Unavailable, "another process writes into the target")
}

// again writes what is in the target once more, for a new position.
func (m *mover) again(ctx context.Context, n follow.Name) error {
	for range 10 {
		r, err := m.to.Get(ctx, n.Kind, n.ID)
		if errors.Is(err, store.ErrNotFound) {
			return nil // it had expired
		}
		if err != nil {
			return fault.NoAnswer(err, "read the target")
		}
		old := r.Version
		r.Version, r.Pos, r.Written = store.Version{}, store.Position{}, 0
		c := freshChange()
		c.Puts = []store.Put{{Record: r, Expect: old}}
		if err := apply(ctx, m.to, c); !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
	return fault.Fail(fault.Unavailable, "another process writes into the target")
}

func freshChange() *store.Change {
	c := new(store.Change)
	rand.Read(c.ID[:])
	return c
}

// apply retries where the outcome is unknown: the store recognizes a change by its ID and its puts.
// store.ErrConflict comes back as it is.
func apply(ctx context.Context, st store.Store, c *store.Change) error {
	wait := 5 * time.Millisecond
	for try := 1; ; try++ {
		_, err := st.Apply(ctx, c)
		switch {
		case err == nil, errors.Is(err, store.ErrConflict):
			return err
		case errors.Is(err, store.ErrReadOnly), errors.Is(err, store.ErrTooLarge), errors.Is(err, store.ErrInvalid), try == writeTries, ctx.Err() != nil:
			return fault.NoAnswer(err, "write")
		}
		if !follow.Sleep(ctx, follow.Jitter(wait)) {
			return fault.NoAnswer(err, "write")
		}
		wait *= 4
	}
}

// keep writes events into the target, with the mark in the same change.
func (m *mover) keep(ctx context.Context, events []store.Record) error {
	w, err := CopyForm.Write(store.Record{ID: namespace.CopyID}, &m.mark)
	if err != nil {
		return fault.NoAnswer(err, "the mark cannot be stored")
	}
	c := freshChange()
	c.Puts = []store.Put{{Record: w.Record(), Expect: m.markVersion}}
	c.Events = events
	err = apply(ctx, m.to, c)
	if errors.Is(err, store.ErrConflict) {
		return fault.Fail(fault.Unavailable, "another Copy writes into the target")
	}
	m.markVersion = c.ID
	return err
}

// events copies the events that are not yet in the target, in their order, up to the newest one that is visible now. The
// order of the newest ones may become final a little later.
func (m *mover) events(ctx context.Context) error {
	began := time.Now()
	newest, err := m.from.List(ctx, store.Query{Kind: store.KindEvent, Newest: true, Limit: 1})
	if err != nil {
		return fault.NoAnswer(err, "list events")
	}
	for {
		p, err := m.from.List(ctx, store.Query{Kind: store.KindEvent, Cursor: m.mark.Cursor, Limit: pageSize})
		if errors.Is(err, store.ErrTrimmed) {
			return fault.Fail(fault.InvalidRequest, "events were purged while they were copied: begin again with an empty target")
		}
		if err != nil {
			return fault.NoAnswer(err, "list events")
		}
		var next []store.Record
		for _, r := range p.Records {
			if slices.Contains(m.mark.Seen, r.ID) {
				continue
			}
			r.Version, r.Pos, r.Written = store.Version{}, store.Position{}, 0
			next = append(next, r)
		}
		if len(next) > 0 {
			began = time.Now() // the order of events does not hold the move up
		}
		for len(next) > 0 {
			n, size := 0, 0
			for n < len(next) && n < batchSize && (n == 0 || size+len(next[n].Data)+512 < maxChange) {
				size += len(next[n].Data) + 512
				n++
			}
			for _, r := range next[:n] {
				m.mark.Seen = append(m.mark.Seen, r.ID)
				m.mark.Last = r.ID
			}
			m.mark.Events += n
			if err := m.keep(ctx, next[:n]); err != nil {
				return err
			}
			next = next[n:]
		}
		through := len(newest.Records) == 0 || m.mark.Last == newest.Records[0].ID || slices.Contains(m.mark.Seen, newest.Records[0].ID)
		if p.Cursor != "" {
			m.mark.Cursor, m.mark.Seen = p.Cursor, nil
			if through && !m.frozen {
				return nil // or a source that writes faster than the target would never be left
			}
			continue
		}
		if through {
			return nil
		}
		// The newest one may lie before the cursor already, where Seen doesn't hold it.
		if known, err := m.has(ctx, newest.Records[0].ID); err != nil || known {
			return err
		}
		if err := m.await(ctx, began); err != nil {
			return err
		}
	}
}

// await sleeps a little before the order of events is looked at again. It has no limit, but while the source refuses writes
// it fails patience after began.
func (m *mover) await(ctx context.Context, began time.Time) error {
	if m.frozen && time.Since(began) > patience {
		return fault.Fail(fault.Unavailable, "the order of events is not final after %s: something, such as a long transaction, holds it back", patience)
	}
	if !follow.Sleep(ctx, follow.Jitter(50*time.Millisecond)) {
		return fault.NoAnswer(ctx.Err(), "wait for the order of events")
	}
	return nil
}

// settled waits until the newest event of a store has its place in the final order, and so every other visible event has.
func (m *mover) settled(ctx context.Context, st store.Store) error {
	for began := time.Now(); ; {
		newest, err := st.List(ctx, store.Query{Kind: store.KindEvent, Newest: true, Limit: 1})
		if err != nil {
			return fault.NoAnswer(err, "list events")
		}
		if len(newest.Records) == 0 {
			return nil
		}
		last, found := newest.Records[0], false
		err = list(ctx, st, store.Query{Kind: store.KindEvent, Since: last.Written}, func(page []store.Record) error {
			found = found || slices.ContainsFunc(page, func(r store.Record) bool { return r.ID == last.ID })
			return nil
		})
		if err != nil || found {
			return err
		}
		if err := m.await(ctx, began); err != nil {
			return err
		}
	}
}

// has reports whether an event is among the newest of the target.
func (m *mover) has(ctx context.Context, id string) (bool, error) {
	p, err := m.to.List(ctx, store.Query{Kind: store.KindEvent, Newest: true, Limit: 1000})
	if err != nil {
		return false, fault.NoAnswer(err, "list events")
	}
	return slices.ContainsFunc(p.Records, func(r store.Record) bool { return r.ID == id }), nil
}

// leaf is a digest of a record without what each store adds to it.
func leaf(r store.Record) (sum [32]byte) {
	h := sha256.New()
	var b []byte
	for _, s := range [...]string{string(r.Kind), r.ID, r.Subject, r.Client, r.Grant, r.Token, r.Type, string(r.Data)} {
		b = binary.AppendUvarint(b[:0], uint64(len(s)))
		h.Write(append(b, s...))
	}
	h.Write(binary.AppendVarint(b[:0], r.Expires))
	h.Sum(sum[:0])
	return sum
}

// verify compares all records of both sides but the expired ones, which one side may have purged already.
func (m *mover) verify(ctx context.Context) (done Moved, err error) {
	now, err := m.clock(ctx)
	if err != nil {
		return done, err
	}
	for _, st := range []store.Store{m.from, m.to} {
		if err := m.settled(ctx, st); err != nil {
			return done, err
		}
	}
	done.Records = map[store.Kind]int{}
	all := sha256.New()
	for _, kind := range append(slices.Clone(kinds), store.KindEvent) {
		var sums [2][32]byte // sums of leaves: the order of records is each store's own
		var counts [2]int
		for side, st := range []store.Store{m.from, m.to} {
			chain := sha256.New()
			err := list(ctx, st, store.Query{Kind: kind}, func(page []store.Record) error {
				for _, r := range page {
					if r.Expires != 0 && r.Expires <= now {
						continue
					}
					if side == 0 {
						r = m.carried(r)
					}
					l := leaf(r)
					counts[side]++
					if kind == store.KindEvent {
						chain.Write(l[:])
					} else {
						add(&sums[side], l)
					}
				}
				return nil
			})
			if err != nil {
				return done, err
			}
			if kind == store.KindEvent {
				chain.Sum(sums[side][:0])
			}
		}
		if counts[0] != counts[1] || sums[0] != sums[1] {
			return done, fault.Fail(fault.Unavailable, "the copies of kind %s differ: %d records in the source, %d in the target", kind, counts[0], counts[1])
		}
		if kind == store.KindEvent {
			done.Events = counts[0]
		} else {
			done.Records[kind] = counts[0]
		}
		all.Write(sums[0][:])
	}
	all.Sum(done.Digest[:0])
	return done, nil
}

// add adds modulo 2^256. The sum is a digest of a set of leaves in any order.
func add(sum *[32]byte, l [32]byte) {
	carry := 0
	for i := range sum {
		carry += int(sum[i]) + int(l[i])
		sum[i], carry = byte(carry), carry>>8
	}
}

// tellMoved writes the tombstone, and leaves the source refusing writes.
func (m *mover) tellMoved(ctx context.Context) error {
	if m.moved {
		return nil
	}
	w, err := namespace.MovedForm.Write(store.Record{ID: namespace.MovedID}, &namespace.Tombstone{V: 1, At: time.Now().UnixMilli()})
	if err != nil {
		return fault.NoAnswer(err, "the mark that the service has moved cannot be stored")
	}
	if err := m.freeze(ctx, false); err != nil {
		return err
	}
	c := freshChange()
	c.Puts = []store.Put{{Record: w.Record()}}
	err = apply(ctx, m.from, c)
	if err != nil {
		// It may have been written all the same. Then the source has moved, and a repeated move continues from here.
		if _, gerr := m.from.Get(ctx, store.KindMeta, namespace.MovedID); gerr != nil {
			return fault.NoAnswer(err, "write the mark that the service has moved")
		}
	}
	m.moved = true
	return m.freeze(ctx, true)
}

// cursors gives each sink its place among the target's events: as many are left to deliver as in the source.
func (m *mover) cursors(ctx context.Context) error {
	return list(ctx, m.from, store.Query{Kind: deliver.Kind}, func(page []store.Record) error {
		for _, r := range page {
			var rec deliver.Cursor
			if deliver.CursorForm.Read(r, &rec) != nil {
				// Its sink stays behind in the target too, until an operator repairs the record.
				if err := m.over(ctx, m.carried(r)); err != nil {
					return err
				}
				continue
			}
			next, err := m.place(ctx, &rec)
			if err != nil {
				return err
			}
			w, err := deliver.CursorForm.Write(store.Record{ID: r.ID}, &next)
			if err != nil {
				return fault.NoAnswer(err, "the cursor of sink "+r.ID+" cannot be stored")
			}
			if err := m.over(ctx, w.Record()); err != nil {
				return err
			}
		}
		return nil
	})
}

// place translates a sink's cursor from the source's events to the target's.
func (m *mover) place(ctx context.Context, rec *deliver.Cursor) (next deliver.Cursor, err error) {
	left := 0
	err = list(ctx, m.from, store.Query{Kind: store.KindEvent, Cursor: rec.Cursor}, func(page []store.Record) error {
		for _, e := range page {
			if !slices.Contains(rec.Seen, e.ID) {
				left++
			}
		}
		return nil
	})
	if err != nil {
		return next, err
	}

	next = deliver.Cursor{V: 1, Done: rec.Done, Ext: rec.Ext}
	for behind := m.mark.Events - left; behind > 0; {
		p, err := m.to.List(ctx, store.Query{Kind: store.KindEvent, Cursor: next.Cursor, Limit: min(behind, pageSize)})
		if err != nil {
			return next, fault.NoAnswer(err, "list events")
		}
		behind -= len(p.Records)
		if p.Cursor == "" {
			for _, e := range p.Records {
				next.Seen = append(next.Seen, e.ID)
			}
			break
		}
		next.Cursor = p.Cursor
	}
	return next, nil
}

// finish makes the target a service. Its positions must lie after all of the source's, or new rules would not reach old
// tokens.
func (m *mover) finish(ctx context.Context, began time.Time) error {
	last, err := newest(ctx, m.from)
	if err != nil {
		return err
	}
	var head store.Position
	for deadline := time.Now().Add(patience); ; {
		// A state record that serves for its position alone.
		if err := m.over(ctx, store.Record{Kind: store.KindMeta, ID: namespace.CopyID, Data: []byte(time.Now().Format(time.RFC3339Nano))}); err != nil {
			return err
		}
		if head, err = newest(ctx, m.to); err != nil {
			return err
		}
		if head.N > last.N {
			break
		}
		if time.Now().After(deadline) {
			return fault.Fail(fault.Unavailable, "the target's clock is behind the source's by %s: set it and repeat", time.Duration(last.N-head.N>>16)*time.Millisecond)
		}
		if !follow.Sleep(ctx, follow.Jitter(50*time.Millisecond)) {
			return fault.NoAnswer(ctx.Err(), "wait for the target's clock")
		}
	}

	// What a record could not keep of its place in the order, it gets anew: after every token of the source.
	for n := range m.unplaced.Range {
		if err := m.again(ctx, n.(follow.Name)); err != nil {
			return err
		}
	}

	// Read again: while the first pass ran, a service with longer lifetimes may have been started.
	r, err := m.from.Get(ctx, store.KindMeta, namespace.ID)
	if err != nil {
		return fault.NoAnswer(err, "read the source")
	}
	var rec namespace.Record
	if err := commit.Read(&namespace.MetaForm, r, &rec); err != nil {
		return err
	}
	rec.History = head.History
	rec.Copied = [2]int64{began.Add(-overlap).UnixMilli(), time.Now().Add(overlap).UnixMilli()}
	w, err := commit.Write(&namespace.MetaForm, store.Record{ID: namespace.ID}, &rec)
	if err != nil {
		return err
	}
	return m.over(ctx, w.Record())
}

// newest returns a store's newest position.
func newest(ctx context.Context, st store.Store) (p store.Position, err error) {
	for {
		v, err := st.Follow(ctx, p, nil, follow.Page)
		if err != nil {
			return p, fault.NoAnswer(err, "follow")
		}
		if p = v.Next; !v.More {
			return p, nil
		}
	}
}
