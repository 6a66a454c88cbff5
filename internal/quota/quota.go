// Package quota counts what one subject has, sessions or API keys, without listing them. Each subject has a
// record with the IDs of its own; whoever makes one more writes that record in the same change, so that
// of several who counted alike one is written and the others count again. The record names at least all
// that are alive: what has ended is taken out once the record is full.
//
// # What was made without records
//
// A process without the limit writes no records, and costs nothing for it. So a record is believed only
// if it names the epoch: the version of a record of the whole service, written by the first process that
// has the limit and ended by the next start of one that has not. A subject without such a record had
// nothing where the service has counted from its beginning, or for longer than a session lives, or where
// a scan at the start found nothing of it. In every other case it is listed, once. A process without the
// limit that runs beside others, against the rule of Limits, is made up for after recountAfter.
//
// An older version writes records of API keys without content, and none of sessions: what it made is
// found in the same way. One that reads no compact records, and runs beside this one, counts anew what it can't read.
//
// It owns the records of counts and of since when they are kept. It promises that no count is below what is alive, whichever
// process made it. It stands on internal/commit and holds no lock but that of Turns, which a caller enters before it reads
// a count and leaves after it wrote. The root calls it where it opens a session or makes an API key.
package quota

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"hash/maphash"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/internal/record"
	"github.com/apitoken-go/apitoken/store"
)

// Config is what a Quota needs of its service.
type Config struct {
	Writer    *commit.Writer
	Now       func() time.Time
	Log       *slog.Logger
	Namespace func() string                              // part of the records' names; known at Start
	Go        func(name string, f func(context.Context)) // runs f until the service ends
	Kind      store.Kind                                 // of what is counted
	Name      string                                     // in the record's ID
	Limit     int                                        // 0: none
	Past      func(now time.Time, since int64) bool      // whether all that was made before since, Unix ms, has ended
}

// Quota counts the records of one kind.
type Quota struct {
	Config
	Turns   commit.Turns  // of the subjects: one process does not race with itself
	epoch   store.Version // zero: nothing is believed
	since   int64         // Unix ms of the epoch; 0: from the service's beginning
	fresh   atomic.Int64  // how many of the latest subjects had no record, see guess
	seed    maphash.Seed
	earlier atomic.Pointer[map[uint64]struct{}] // subjects that have something from before the epoch; nil: unknown
}

// Kind is of the records of this package.
const Kind store.Kind = "quota"

// Record is what a subject has.
type Record struct {
	V       int    `json:"v"`
	Epoch   []byte `json:"epoch"`
	Counted int64  `json:"counted"`       // Unix ms, when all were listed, or there were none
	IDs     []byte `json:"ids,omitempty"` // 16 bytes each
	record.Ext
}

// Counting is since when a service counts: Unix ms, 0: from its beginning.
type Counting struct {
	V     int   `json:"v"`
	Since int64 `json:"since,omitempty"`
	Off   bool  `json:"off,omitempty"` // a process without the limit has started since
	record.Ext
}

// The forms of the two records.
var (
	Form = record.Form[Record]{Kind: Kind, Check: func(rec *Record) error {
		if len(rec.IDs)%len(opaque.ID{}) != 0 {
			return commit.ErrVersion
		}
		return commit.First(rec.V)
	}, Pack: func(p *record.Pack, rec *Record) {
		v := int64(rec.V)
		p.Int(&v)
		p.Bytes(&rec.Epoch)
		p.Int(&rec.Counted)
		p.Bytes(&rec.IDs)
		p.Ext(&rec.Ext)
		rec.V = int(v)
	}}
	CountingForm = record.Form[Counting]{Kind: Kind, Check: func(rec *Counting) error { return commit.First(rec.V) }}
)

const (
	MaxLimit     = 500                // so that the IDs fit a record
	recountAfter = 7 * 24 * time.Hour // of a subject's record
	Tries        = 32                 // against other processes that make something for the same subject
	maxEarlier   = 1 << 20            // subjects that a scan remembers, 8 bytes each; beyond it they are listed one by one
	scanStart    = 250 * time.Millisecond
	mostFresh    = 32
)

// New makes a Quota. Start it before use.
func New(c Config) *Quota { return &Quota{Config: c, seed: maphash.MakeSeed()} }

// Start learns since when the service counts, and begins to where it does not yet. It waits a moment for
// the scan, if there must be one, so that the first logins on a small store need not list.
func (q *Quota) Start(ctx context.Context, born bool) error {
	if err := q.open(ctx, born); err != nil {
		return err
	}
	if q.Limit == 0 || q.epoch == (store.Version{}) || q.since == 0 || q.Past(q.Now(), q.since) {
		return nil
	}
	done := make(chan struct{})
	q.Go("quota", func(ctx context.Context) {
		defer close(done)
		q.scan(ctx)
	})
	t := time.NewTimer(scanStart)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
	}
	return nil
}

func (q *Quota) open(ctx context.Context, born bool) error {
	for try := 0; try < commit.Tries; try++ {
		var m Counting
		r, err := q.Writer.Get(ctx, Kind, string(q.Kind))
		switch {
		case errors.Is(err, fault.NotFound):
			m.Off = true
		case err != nil:
			return err
		case CountingForm.Read(r, &m) != nil:
			m = Counting{}
		}
		if q.Limit == 0 && m.Off {
			return nil
		}
		if q.Limit > 0 && m.V != 0 && !m.Off {
			q.epoch, q.since = r.Version, m.Since
			return nil
		}

		m.V, m.Off, m.Since = 1, q.Limit == 0, 0
		if !born {
			m.Since = q.Now().UnixMilli()
		}
		c := commit.NewChange()
		if err := commit.Put(c, &CountingForm, store.Record{ID: string(q.Kind)}, &m, r.Version); err != nil {
			return err
		}
		switch _, err := q.Writer.Apply(ctx, c); {
		case errors.Is(err, store.ErrConflict):
			continue
		case err != nil:
			// Such as a store that takes no writes for now. Without an epoch nothing is believed.
			q.Log.WarnContext(ctx, "apitoken: limits are counted by listing until the next start", "kind", q.Kind, "cause", err)
		case q.Limit > 0:
			q.epoch, q.since = c.ID, m.Since
		}
		return nil
	}
	return errors.New("other processes keep changing what is counted")
}

// scan notes who has something from before the epoch. Without its answer, each subject without a record is listed.
func (q *Quota) scan(ctx context.Context) {
	found := map[uint64]struct{}{}
	for x := (store.Query{Kind: q.Kind, Limit: store.MaxLimit}); ; {
		page, err := q.Writer.Store.List(ctx, x)
		if err != nil || len(found) > maxEarlier {
			return
		}
		for _, r := range page.Records {
			found[maphash.String(q.seed, r.Subject)] = struct{}{}
		}
		if x.Cursor = page.Cursor; x.Cursor == "" {
			q.earlier.Store(&found)
			return
		}
	}
}

// none reports whether a subject without a record is known to have nothing.
func (q *Quota) none(subject string) bool {
	switch {
	case q.epoch == (store.Version{}):
		return false
	case q.since == 0, q.Past(q.Now(), q.since):
		return true
	}
	earlier := q.earlier.Load()
	if earlier == nil {
		return false
	}
	_, had := (*earlier)[maphash.String(q.seed, subject)]
	return !had
}

// guess reports whether a subject that may have no record is taken to have none, without a read: most of the latest had none, and
// where it is wrong, the write fails and is repeated after a read.
func (q *Quota) guess() bool { return q.fresh.Load() >= mostFresh/2 }

// learn notes whether a subject had no record. Several at once may lose a note.
func (q *Quota) learn(fresh bool) {
	n := q.fresh.Load()
	if fresh {
		q.fresh.Store(min(n+1, mostFresh))
	} else {
		q.fresh.Store(max(n-2, 0))
	}
}

// Count is a subject's record on its way to the next version.
type Count struct {
	q       *Quota
	r       store.Record // its Version is the one that was read
	counted int64
	IDs     []string // of what is counted
	Guessed bool     // nothing was read: a write that fails is repeated after a read
}

// Read is what the subject has at most; at the first try of a write it may be a guess. alive says of a listed record whether it counts.
func (q *Quota) Read(ctx context.Context, subject string, first bool, alive func(store.Record) (bool, error)) (*Count, error) {
	h := opaque.Hash("quota1", []byte(q.Namespace()), []byte(q.Name), []byte(subject))
	t := &Count{q: q, r: store.Record{ID: hex.EncodeToString(h[:])}, counted: q.Now().UnixMilli()}
	if first && q.guess() && q.none(subject) {
		t.Guessed = true
		return t, nil
	}
	old, err := q.Writer.Get(ctx, Kind, t.r.ID)
	if err == nil || errors.Is(err, fault.NotFound) {
		q.learn(err != nil)
	}
	switch {
	case errors.Is(err, fault.NotFound):
		if q.none(subject) {
			return t, nil
		}
	case err != nil:
		return nil, err
	default:
		t.r.Version = old.Version
		var rec Record
		// One that cannot be read is made anew, like one of another epoch.
		if Form.Read(old, &rec) == nil && q.believes(&rec) {
			t.r.Expires, t.counted = old.Expires, rec.Counted
			for id := range slices.Chunk(rec.IDs, len(opaque.ID{})) {
				t.IDs = append(t.IDs, opaque.ID(id).String())
			}
			return t, nil
		}
	}

	for r, err := range q.Writer.Pages(ctx, store.Query{Kind: q.Kind, Subject: subject}, "", 0) {
		if err != nil {
			return nil, err
		}
		if ok, err := alive(r); err != nil {
			return nil, err
		} else if ok {
			t.Add(r.ID, r.Expires)
		}
	}
	return t, nil
}

func (q *Quota) believes(rec *Record) bool {
	return q.epoch != (store.Version{}) && bytes.Equal(rec.Epoch, q.epoch[:]) &&
		q.Now().Sub(time.UnixMilli(rec.Counted)) < recountAfter
}

// Full reports whether there is no room for one more.
func (t *Count) Full() bool { return len(t.IDs) >= t.q.Limit }

// Add counts one more, whose own record expires then; 0: never.
func (t *Count) Add(id string, expires int64) {
	if len(t.IDs) == 0 || expires == 0 || t.r.Expires != 0 && t.r.Expires < expires {
		t.r.Expires = expires
	}
	t.IDs = append(t.IDs, id)
}

// Prune takes out what has ended, and returns the records of the rest. alive says of a record whether it counts.
func (t *Count) Prune(ctx context.Context, alive func(store.Record) (bool, error)) ([]store.Record, error) {
	type found struct {
		r  store.Record
		ok bool
	}
	var list []store.Record
	for _, a := range commit.All(t.IDs, func(id string) (x found, err error) {
		if x.r, err = t.q.Writer.Get(ctx, t.q.Kind, id); err == nil {
			x.ok, err = alive(x.r)
		}
		return x, err
	}) {
		switch {
		case errors.Is(a.Err, fault.NotFound), a.Err == nil && !a.Got.ok:
			t.Remove(a.Of)
		case a.Err != nil:
			return nil, a.Err
		default:
			list = append(list, a.Got.r)
		}
	}
	return list, nil
}

// Remove takes out what has ended.
func (t *Count) Remove(id string) {
	t.IDs = slices.DeleteFunc(t.IDs, func(x string) bool { return x == id })
}

// Put adds the record to the change that makes what was added.
func (t *Count) Put(c *commit.Change) error {
	rec := Record{V: 1, Epoch: t.q.epoch[:], Counted: t.counted, IDs: make([]byte, 0, len(t.IDs)*len(opaque.ID{}))}
	for _, text := range t.IDs {
		id, err := opaque.ParseID(text)
		if err != nil {
			return fault.NoAnswer(err, "a subject's "+string(t.q.Kind)+" with an ID that is not ours")
		}
		rec.IDs = append(rec.IDs, id[:]...)
	}
	return commit.Put(c, &Form, store.Record{ID: t.r.ID, Expires: t.r.Expires}, &rec, t.r.Version)
}

// Version is that of the record that was read; zero: there was none.
func (t *Count) Version() store.Version { return t.r.Version }
