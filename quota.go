package apitoken

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"hash/maphash"
	"slices"
	"sync/atomic"
	"time"

	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/internal/record"
	"github.com/apitoken-go/apitoken/store"
)

// A quota counts what one subject has, sessions or API keys, without listing them. Each subject has a
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
// limit that runs beside others, against the rule of [Limits], is made up for after recountAfter.
//
// An older version writes records of API keys without content, and none of sessions: what it made is
// found in the same way.
type quota struct {
	s       *core
	kind    store.Kind   // of what is counted
	name    string       // in the record's ID
	limit   int          // 0: none
	turns   commit.Turns // of the subjects: one process does not race with itself
	ends    func(now time.Time, since int64) bool
	epoch   store.Version // zero: nothing is believed
	since   int64         // Unix ms of the epoch; 0: from the service's beginning
	fresh   atomic.Int64  // how many of the latest subjects had no record, see guess
	seed    maphash.Seed
	earlier atomic.Pointer[map[uint64]struct{}] // subjects that have something from before the epoch; nil: unknown
}

const kindQuota store.Kind = "quota"

// quotaRecord is what a subject has.
type quotaRecord struct {
	V       int    `json:"v"`
	Epoch   []byte `json:"epoch"`
	Counted int64  `json:"counted"`       // Unix ms, when all were listed, or there were none
	IDs     []byte `json:"ids,omitempty"` // 16 bytes each
	record.Ext
}

// countingRecord is since when a service counts: Unix ms, 0: from its beginning.
type countingRecord struct {
	V     int   `json:"v"`
	Since int64 `json:"since,omitempty"`
	Off   bool  `json:"off,omitempty"` // a process without the limit has started since
	record.Ext
}

var (
	quotaForm = record.Form[quotaRecord]{Kind: kindQuota, Check: func(rec *quotaRecord) error {
		if len(rec.IDs)%len(opaque.ID{}) != 0 {
			return commit.ErrVersion
		}
		return commit.First(rec.V)
	}}
	countingForm = record.Form[countingRecord]{Kind: kindQuota, Check: func(rec *countingRecord) error { return commit.First(rec.V) }}
)

const (
	maxLimit     = 500                // so that the IDs fit a record
	recountAfter = 7 * 24 * time.Hour // of a subject's record
	quotaTries   = 32                 // against other processes that make something for the same subject
	maxEarlier   = 1 << 20            // subjects that a scan remembers, 8 bytes each; beyond it they are listed one by one
	scanStart    = 250 * time.Millisecond
	mostFresh    = 32
)

// newQuota counts records of kind. past says whether all that was made before since has ended.
func newQuota(s *core, kind store.Kind, name string, limit int, past func(now time.Time, since int64) bool) *quota {
	return &quota{s: s, kind: kind, name: name, limit: limit, ends: past, seed: maphash.MakeSeed()}
}

// start learns since when the service counts, and begins to where it does not yet. It waits a moment for
// the scan, if there must be one, so that the first logins on a small store need not list.
func (q *quota) start(ctx context.Context, born bool) error {
	if err := q.open(ctx, born); err != nil {
		return err
	}
	if q.limit == 0 || q.epoch == (store.Version{}) || q.since == 0 || q.ends(q.s.now(), q.since) {
		return nil
	}
	done := make(chan struct{})
	q.s.goRun("quota", func(ctx context.Context) {
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

func (q *quota) open(ctx context.Context, born bool) error {
	for try := 0; try < refreshTries; try++ {
		var m countingRecord
		r, err := q.s.get(ctx, kindQuota, string(q.kind))
		switch {
		case isNotFound(err):
			m.Off = true
		case err != nil:
			return err
		case countingForm.Read(r, &m) != nil:
			m = countingRecord{}
		}
		if q.limit == 0 && m.Off {
			return nil
		}
		if q.limit > 0 && m.V != 0 && !m.Off {
			q.epoch, q.since = r.Version, m.Since
			return nil
		}

		m.V, m.Off, m.Since = 1, q.limit == 0, 0
		if !born {
			m.Since = q.s.now().UnixMilli()
		}
		c := q.s.newChange()
		if err := put(c, &countingForm, store.Record{ID: string(q.kind)}, &m, r.Version); err != nil {
			return err
		}
		switch _, err := q.s.writer.Apply(ctx, &c.Change); {
		case errors.Is(err, store.ErrConflict):
			continue
		case err != nil:
			// Such as a store that takes no writes for now. Without an epoch nothing is believed.
			q.s.log.WarnContext(ctx, "apitoken: limits are counted by listing until the next start", "kind", q.kind, "cause", err)
		case q.limit > 0:
			q.epoch, q.since = c.ID, m.Since
		}
		return nil
	}
	return errors.New("other processes keep changing what is counted")
}

// scan notes who has something from before the epoch. Without its answer, each subject without a record is listed.
func (q *quota) scan(ctx context.Context) {
	found := map[uint64]struct{}{}
	for x := (store.Query{Kind: q.kind, Limit: store.MaxLimit}); ; {
		page, err := q.s.st.List(ctx, x)
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
func (q *quota) none(subject string) bool {
	switch {
	case q.epoch == (store.Version{}):
		return false
	case q.since == 0, q.ends(q.s.now(), q.since):
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
func (q *quota) guess() bool { return q.fresh.Load() >= mostFresh/2 }

// learn notes whether a subject had no record. Several at once may lose a note.
func (q *quota) learn(fresh bool) {
	n := q.fresh.Load()
	if fresh {
		q.fresh.Store(min(n+1, mostFresh))
	} else {
		q.fresh.Store(max(n-2, 0))
	}
}

// holding is a subject's record on its way to the next version.
type holding struct {
	q       *quota
	r       store.Record // its Version is the one that was read
	counted int64
	ids     []string
	guessed bool
}

// read is what the subject has at most; at the first try of a write it may be a guess. alive says of a listed record whether it counts.
func (q *quota) read(ctx context.Context, subject string, first bool, alive func(store.Record) (bool, error)) (*holding, error) {
	h := opaque.Hash("quota1", []byte(q.s.ns), []byte(q.name), []byte(subject))
	t := &holding{q: q, r: store.Record{ID: hex.EncodeToString(h[:])}, counted: q.s.now().UnixMilli()}
	if first && q.guess() && q.none(subject) {
		t.guessed = true
		return t, nil
	}
	old, err := q.s.get(ctx, kindQuota, t.r.ID)
	if err == nil || isNotFound(err) {
		q.learn(err != nil)
	}
	switch {
	case isNotFound(err):
		if q.none(subject) {
			return t, nil
		}
	case err != nil:
		return nil, err
	default:
		t.r.Version = old.Version
		var rec quotaRecord
		// One that cannot be read is made anew, like one of another epoch.
		if quotaForm.Read(old, &rec) == nil && q.believes(&rec) {
			t.r.Expires, t.counted = old.Expires, rec.Counted
			for id := range slices.Chunk(rec.IDs, len(opaque.ID{})) {
				t.ids = append(t.ids, opaque.ID(id).String())
			}
			return t, nil
		}
	}

	for r, err := range q.s.pages(ctx, store.Query{Kind: q.kind, Subject: subject}, Page{}) {
		if err != nil {
			return nil, err
		}
		if ok, err := alive(r); err != nil {
			return nil, err
		} else if ok {
			t.add(r.ID, r.Expires)
		}
	}
	return t, nil
}

func (q *quota) believes(rec *quotaRecord) bool {
	return q.epoch != (store.Version{}) && bytes.Equal(rec.Epoch, q.epoch[:]) &&
		q.s.now().Sub(time.UnixMilli(rec.Counted)) < recountAfter
}

func (t *holding) full() bool { return len(t.ids) >= t.q.limit }

// add counts one more, whose own record expires then; 0: never.
func (t *holding) add(id string, expires int64) {
	if len(t.ids) == 0 || expires == 0 || t.r.Expires != 0 && t.r.Expires < expires {
		t.r.Expires = expires
	}
	t.ids = append(t.ids, id)
}

func (t *holding) remove(id string) {
	t.ids = slices.DeleteFunc(t.ids, func(x string) bool { return x == id })
}

// put adds the record to the change that makes what was added.
func (t *holding) put(c *change) error {
	rec := quotaRecord{V: 1, Epoch: t.q.epoch[:], Counted: t.counted, IDs: make([]byte, 0, len(t.ids)*len(opaque.ID{}))}
	for _, text := range t.ids {
		id, err := opaque.ParseID(text)
		if err != nil {
			return unavailable(err, "a subject's "+string(t.q.kind)+" with an ID that is not ours")
		}
		rec.IDs = append(rec.IDs, id[:]...)
	}
	return put(c, &quotaForm, store.Record{ID: t.r.ID, Expires: t.r.Expires}, &rec, t.r.Version)
}
