package apitoken

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/apitoken-go/apitoken/internal/deliver"
	"github.com/apitoken-go/apitoken/internal/follow"
	"github.com/apitoken-go/apitoken/internal/record"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/store"
)

// Copied tells what Copy moved.
type Copied struct {
	Records map[store.Kind]int // by kind, without what had expired
	Events  int
	Digest  [32]byte      // over all records, equal on both sides
	Refused time.Duration // how long the source refused writes until all was verified
}

// Copy moves the service in from's namespace to to's, which must be empty. Services on from go on meanwhile; while the last
// changes are copied and everything is compared, they answer what writes with ErrUnavailable; then they find the service
// moved: they take no writes, and vouch no longer for the freshness of what they know, so that they answer ErrUnavailable
// after MaxStaleness. Start the service on to then. Tokens, revocations in their order, sessions, API keys, clients,
// signing keys, events and the places of sinks stay what they were.
//
// from must have SetReadOnly(ctx, bool) error, as the stores of this module do. If Copy fails, from takes writes again.
// A Copy that was interrupted is repeated with the same stores and goes on; to can not be used before it has succeeded.
//
// An engine may show an event in its final order a while after it was written, as Postgres does while somebody's long
// transaction is open. Copy waits for that as long as ctx allows before it makes from refuse writes, and for a few seconds
// after that; then it gives up with ErrUnavailable.
func Copy(ctx context.Context, from, to Store) (Copied, error) {
	source, ok := from.(freezer)
	if !ok {
		return Copied{}, fail(ErrInvalidRequest, "the source, %T, has no SetReadOnly: writes could be lost", from)
	}
	m := &mover{from: from, to: to, source: source}
	done, err := m.move(ctx)
	if err != nil && !m.moved {
		// Not with the caller's context, which may be what ended it.
		back, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
		defer cancel()
		if m.frozen {
			if thaw := source.SetReadOnly(back, false); thaw != nil {
				err = errors.Join(err, thaw)
			}
		}
	}
	return done, err
}

type freezer interface {
	SetReadOnly(ctx context.Context, on bool) error
}

const (
	movedID  = "moved" // the record of kind meta in a namespace whose service has moved
	copyID   = "copy"  // the record of kindCopy in the target: how far the events are
	kindCopy = store.Kind("copy")

	copyPage    = 160 // of events, so that the IDs of a page fit a record
	copyBatch   = 16  // puts of one change, the contract's limit
	copyWorkers = 8
	copyOverlap = time.Minute      // by which the second pass begins before the first one did
	copyWait    = 10 * time.Second // for a target whose clock is behind, and for the order of events while writes are refused
)

// copiedKinds are all but the namespace's own record, the cursors of sinks and the events.
var copiedKinds = []store.Kind{store.KindKey, store.KindRole, store.KindClient, store.KindRule, store.KindAPIKey, kindGrant, kindTicket, kindOnce, kindNote, kindUse, kindSpent, kindLineage}

// copyRecord is how far the events are copied: behind Cursor of the source, and behind those of Seen.
type copyRecord struct {
	V         int      `json:"v"`
	Namespace string   `json:"ns"`
	Cursor    string   `json:"cursor,omitempty"`
	Seen      []string `json:"seen,omitempty"`
	Events    int      `json:"events"`
	Last      string   `json:"last,omitempty"`
	record.Ext
}

var (
	copyForm  = record.Form[copyRecord]{Kind: kindCopy}
	movedForm = record.Form[movedRecord]{Kind: store.KindMeta}
)

type movedRecord struct {
	V  int   `json:"v"`
	At int64 `json:"at"` // Unix ms
	record.Ext
}

type mover struct {
	from, to      store.Store
	source        freezer
	frozen, moved bool
	meta          metaRecord
	mark          copyRecord
	markVersion   store.Version
}

func (m *mover) move(ctx context.Context) (done Copied, err error) {
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
	// Whatever holds back the target's order is waited for here, where it hurts nobody.
	if err := m.settled(ctx, m.to); err != nil {
		return done, err
	}
	// What changed meanwhile, with the source standing still.
	refused := time.Now()
	if err := m.freeze(ctx, true); err != nil {
		return done, err
	}
	since := first - copyOverlap.Milliseconds()
	if m.moved { // an interrupted Copy's first pass is unknown
		since = 0
	}
	if err := m.pass(ctx, since); err != nil {
		return done, err
	}
	if done, err = m.verify(ctx); err != nil {
		return done, err
	}
	// The mark that the service has moved is its last write. Whatever else gets in with it is copied once more.
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
	m.frozen = true // also when the answer got lost
	if err := m.source.SetReadOnly(ctx, on); err != nil {
		return unavailable(err, "make the source refuse writes")
	}
	m.frozen = on
	return nil
}

// open looks at both ends.
func (m *mover) open(ctx context.Context) error {
	r, err := m.from.Get(ctx, store.KindMeta, metaID)
	if errors.Is(err, store.ErrNotFound) {
		return fail(ErrNotFound, "the source holds no service")
	}
	if err != nil {
		return unavailable(err, "read the source")
	}
	if err := read(&metaForm, r, &m.meta); err != nil {
		return err
	}
	if _, err := m.from.Get(ctx, store.KindMeta, movedID); err == nil {
		m.moved = true
	} else if !errors.Is(err, store.ErrNotFound) {
		return unavailable(err, "read the source")
	}
	switch _, err := m.to.Get(ctx, store.KindMeta, metaID); {
	case err == nil:
		return fail(ErrInvalidRequest, "the target holds a service already")
	case !errors.Is(err, store.ErrNotFound):
		return unavailable(err, "read the target")
	}
	r, err = m.to.Get(ctx, kindCopy, copyID)
	switch {
	case err == nil:
		if err := read(&copyForm, r, &m.mark); err != nil {
			return err
		}
		m.markVersion = r.Version
		if m.mark.Namespace != m.meta.Namespace {
			return fail(ErrInvalidRequest, "the target holds a part of another service's copy")
		}
		return nil
	case !errors.Is(err, store.ErrNotFound):
		return unavailable(err, "read the target")
	}
	for _, kind := range append([]store.Kind{store.KindEvent}, copiedKinds...) {
		p, err := m.to.List(ctx, store.Query{Kind: kind, Newest: kind == store.KindEvent, Limit: 1})
		if err != nil {
			return unavailable(err, "read the target")
		}
		if len(p.Records) > 0 {
			return fail(ErrInvalidRequest, "the target is not empty: it holds a %s", kind)
		}
	}
	m.mark = copyRecord{V: 1, Namespace: m.meta.Namespace}
	return m.keep(ctx, nil)
}

// clock is the source's, in ms.
func (m *mover) clock(ctx context.Context) (int64, error) {
	v, err := m.from.Follow(ctx, store.Position{}, []store.Kind{store.KindMeta}, 1)
	if err != nil {
		return 0, unavailable(err, "read the source")
	}
	if v.Now == 0 {
		return time.Now().UnixMilli(), nil
	}
	return v.Now, nil
}

func (m *mover) pass(ctx context.Context, since int64) error {
	for _, kind := range copiedKinds {
		if err := m.records(ctx, kind, since); err != nil {
			return fmt.Errorf("copy records of kind %s: %w", kind, err)
		}
	}
	if err := m.events(ctx); err != nil {
		return fmt.Errorf("copy events: %w", err)
	}
	return nil
}

// list walks the records of a kind in pages.
func list(ctx context.Context, st store.Store, q store.Query, each func([]store.Record) error) error {
	q.Limit = 1000
	for {
		p, err := st.List(ctx, q)
		if err != nil {
			return unavailable(err, "list")
		}
		if err := each(p.Records); err != nil {
			return err
		}
		if q.Cursor = p.Cursor; q.Cursor == "" {
			return nil
		}
	}
}

// records copies those of a kind that were written since, several batches at a time.
func (m *mover) records(ctx context.Context, kind store.Kind, since int64) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	turns := make(chan struct{}, copyWorkers)
	err := list(ctx, m.from, store.Query{Kind: kind, Since: since}, func(page []store.Record) error {
		for batch := range slices.Chunk(page, copyBatch) {
			puts := make([]store.Record, len(batch))
			for i, r := range batch {
				var err error
				if puts[i], err = carried(r); err != nil {
					return err
				}
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

// carried is a record as it goes into another store: a rule keeps its place in the order, and a session the time of its
// last refresh, so that no window opens again.
func carried(r store.Record) (store.Record, error) {
	out := store.Record{Kind: r.Kind, ID: r.ID, Expires: r.Expires, Subject: r.Subject, Client: r.Client, Grant: r.Grant, Token: r.Token, Type: r.Type, Data: r.Data}
	var v any
	switch r.Kind {
	case store.KindRule:
		x, err := rules.ReadRule(r)
		if err != nil {
			return out, err
		}
		v = x
	case kindGrant:
		g, err := readGrant(r)
		if err != nil {
			return out, err
		}
		if g.Rotated == 0 {
			g.Rotated = r.Written
		}
		v = g
	default:
		return out, nil
	}
	data, err := json.Marshal(v)
	out.Data = data
	return out, err
}

// write puts records into the target, over what an earlier pass has put there.
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

// maxChange leaves room in what the contract allows for one Change, 256 KiB.
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

func (m *mover) over(ctx context.Context, r store.Record) error {
	for range 10 {
		old, err := m.to.Get(ctx, r.Kind, r.ID)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return unavailable(err, "read the target")
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
	return fail(ErrUnavailable, "somebody else writes into the target")
}

func freshChange() *store.Change {
	c := new(store.Change)
	rand.Read(c.ID[:])
	return c
}

// apply repeats an unknown outcome, which recognises itself by its puts.
func apply(ctx context.Context, st store.Store, c *store.Change) error {
	wait := 5 * time.Millisecond
	for try := 1; ; try++ {
		_, err := st.Apply(ctx, c)
		switch {
		case err == nil, errors.Is(err, store.ErrConflict):
			return err
		case errors.Is(err, store.ErrReadOnly), errors.Is(err, store.ErrTooLarge), errors.Is(err, store.ErrInvalid), try == commitTries, ctx.Err() != nil:
			return unavailable(err, "write")
		}
		if !follow.Sleep(ctx, follow.Jitter(wait)) {
			return unavailable(err, "write")
		}
		wait *= 4
	}
}

// keep writes how far the events are, with events.
func (m *mover) keep(ctx context.Context, events []store.Record) error {
	w, err := write(&copyForm, store.Record{ID: copyID}, &m.mark)
	if err != nil {
		return err
	}
	c := freshChange()
	c.Puts = []store.Put{{Record: w.Record(), Expect: m.markVersion}}
	c.Events = events
	err = apply(ctx, m.to, c)
	if errors.Is(err, store.ErrConflict) {
		return fail(ErrUnavailable, "another Copy writes into the target")
	}
	m.markVersion = c.ID
	return err
}

// events copies those that are not yet there, in their order, up to the newest one that is visible now: the order may
// become final a little later.
func (m *mover) events(ctx context.Context) error {
	began := time.Now()
	newest, err := m.from.List(ctx, store.Query{Kind: store.KindEvent, Newest: true, Limit: 1})
	if err != nil {
		return unavailable(err, "list events")
	}
	for {
		p, err := m.from.List(ctx, store.Query{Kind: store.KindEvent, Cursor: m.mark.Cursor, Limit: copyPage})
		if errors.Is(err, store.ErrTrimmed) {
			return fail(ErrInvalidRequest, "events were purged while they were copied: begin again with an empty target")
		}
		if err != nil {
			return unavailable(err, "list events")
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
			began = time.Now() // it is not the order that keeps us
		}
		for len(next) > 0 {
			n, size := 0, 0
			for n < len(next) && n < copyBatch && (n == 0 || size+len(next[n].Data)+512 < maxChange) {
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
		if p.Cursor != "" {
			m.mark.Cursor, m.mark.Seen = p.Cursor, nil
			continue
		}
		if len(newest.Records) == 0 || m.mark.Last == newest.Records[0].ID || slices.Contains(m.mark.Seen, newest.Records[0].ID) {
			return nil
		}
		// The last of them may already be behind a cursor, out of sight.
		if known, err := m.has(ctx, newest.Records[0].ID); err != nil || known {
			return err
		}
		if err := m.await(ctx, began); err != nil {
			return err
		}
	}
}

// await sleeps a little until the order of events is looked at again: for ever, but not while the source refuses writes.
func (m *mover) await(ctx context.Context, began time.Time) error {
	if m.frozen && time.Since(began) > copyWait {
		return fail(ErrUnavailable, "the order of events is not final after %s: something, as a long transaction, holds it back", copyWait)
	}
	if !follow.Sleep(ctx, follow.Jitter(50*time.Millisecond)) {
		return unavailable(ctx.Err(), "wait for the order of events")
	}
	return nil
}

// settled waits until the newest event of a store stands in the final order, and so every other that anybody can see.
func (m *mover) settled(ctx context.Context, st store.Store) error {
	for began := time.Now(); ; {
		newest, err := st.List(ctx, store.Query{Kind: store.KindEvent, Newest: true, Limit: 1})
		if err != nil {
			return unavailable(err, "list events")
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

// has looks for an event among the newest of the target.
func (m *mover) has(ctx context.Context, id string) (bool, error) {
	p, err := m.to.List(ctx, store.Query{Kind: store.KindEvent, Newest: true, Limit: 1000})
	if err != nil {
		return false, unavailable(err, "list events")
	}
	return slices.ContainsFunc(p.Records, func(r store.Record) bool { return r.ID == id }), nil
}

// leaf is a digest of what a record says, without what each store adds.
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

// verify compares all of both sides. What had expired by now may have been purged from the source after it was copied.
func (m *mover) verify(ctx context.Context) (done Copied, err error) {
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
	for _, kind := range append(slices.Clone(copiedKinds), store.KindEvent) {
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
						if r, err = carried(r); err != nil {
							return err
						}
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
			return done, fail(ErrUnavailable, "the copies of kind %s differ: %d records in the source, %d in the target", kind, counts[0], counts[1])
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

// add adds modulo 2^256: a multiset's digest.
func add(sum *[32]byte, l [32]byte) {
	carry := 0
	for i := range sum {
		carry += int(sum[i]) + int(l[i])
		sum[i], carry = byte(carry), carry>>8
	}
}

// tellMoved writes the mark that every service on the source follows, and leaves the source refusing writes.
func (m *mover) tellMoved(ctx context.Context) error {
	if m.moved {
		return nil
	}
	w, err := write(&movedForm, store.Record{ID: movedID}, &movedRecord{V: 1, At: time.Now().UnixMilli()})
	if err != nil {
		return err
	}
	if err := m.freeze(ctx, false); err != nil {
		return err
	}
	c := freshChange()
	c.Puts = []store.Put{{Record: w.Record()}}
	err = apply(ctx, m.from, c)
	if err != nil {
		// It may be there all the same: then the source has moved, and a repeated Copy goes on from here.
		if _, gerr := m.from.Get(ctx, store.KindMeta, movedID); gerr != nil {
			return unavailable(err, "write the mark that the service has moved")
		}
	}
	m.moved = true
	return m.freeze(ctx, true)
}

// cursors gives each sink its place among the target's events: as many behind it as in the source.
func (m *mover) cursors(ctx context.Context) error {
	return list(ctx, m.from, store.Query{Kind: deliver.Kind}, func(page []store.Record) error {
		for _, r := range page {
			var rec deliver.Cursor
			if err := read(&deliver.CursorForm, r, &rec); err != nil {
				return err
			}
			left := 0
			q := store.Query{Kind: store.KindEvent, Cursor: rec.Cursor}
			err := list(ctx, m.from, q, func(page []store.Record) error {
				for _, e := range page {
					if !slices.Contains(rec.Seen, e.ID) {
						left++
					}
				}
				return nil
			})
			if err != nil {
				return err
			}
			next := deliver.Cursor{V: 1, Done: rec.Done, Ext: rec.Ext}
			for behind := m.mark.Events - left; behind > 0; {
				p, err := m.to.List(ctx, store.Query{Kind: store.KindEvent, Cursor: next.Cursor, Limit: min(behind, copyPage)})
				if err != nil {
					return unavailable(err, "list events")
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
			w, err := write(&deliver.CursorForm, store.Record{ID: r.ID}, &next)
			if err != nil {
				return err
			}
			if err := m.over(ctx, w.Record()); err != nil {
				return err
			}
		}
		return nil
	})
}

// finish opens the target: its positions must lie behind all of the source's, or new rules would not reach old tokens.
func (m *mover) finish(ctx context.Context, began time.Time) error {
	last, err := readAll(ctx, m.from)
	if err != nil {
		return err
	}
	deadline := time.Now().Add(copyWait)
	for {
		// A state record of no use but that it has a position.
		if err := m.over(ctx, store.Record{Kind: store.KindMeta, ID: copyID, Data: []byte(time.Now().Format(time.RFC3339Nano))}); err != nil {
			return err
		}
		head, err := readAll(ctx, m.to)
		if err != nil {
			return err
		}
		if head.N > last.N {
			m.meta.History = head.History
			break
		}
		if time.Now().After(deadline) {
			return fail(ErrUnavailable, "the target's clock is behind the source's by %s: set it and repeat", time.Duration(last.N-head.N>>16)*time.Millisecond)
		}
		if !follow.Sleep(ctx, follow.Jitter(50*time.Millisecond)) {
			return unavailable(ctx.Err(), "wait for the target's clock")
		}
	}
	m.meta.Copied = [2]int64{began.Add(-copyOverlap).UnixMilli(), time.Now().Add(copyOverlap).UnixMilli()}
	w, err := write(&metaForm, store.Record{ID: metaID}, &m.meta)
	if err != nil {
		return err
	}
	return m.over(ctx, w.Record())
}

// follow is a store's newest position.
func readAll(ctx context.Context, st store.Store) (p store.Position, err error) {
	for {
		v, err := st.Follow(ctx, p, nil, follow.Page)
		if err != nil {
			return p, unavailable(err, "follow")
		}
		if p = v.Next; !v.More {
			return p, nil
		}
	}
}
