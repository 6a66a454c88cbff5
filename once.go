package apitoken

import (
	"context"
	"encoding/hex"
	"errors"
	"time"

	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/internal/record"
	"github.com/apitoken-go/apitoken/store"
)

// What happens once in all processes on the store: the use of an ID (Once), and work that the first process to come does
// (DoOnce). The record of such work says which process is doing it, and then that it is done.

const (
	deedLease = time.Minute      // of the process that is at it
	deedTime  = 45 * time.Second // what it has for it: the rest is for writing that it is done
)

type deedRecord struct {
	V     int    `json:"v"`
	Done  bool   `json:"done,omitempty"`
	Owner string `json:"owner,omitempty"` // a name for one try
	Lease int64  `json:"lease,omitempty"` // Unix ms by the owner's clock
	record.Ext
}

var deedForm = record.Form[deedRecord]{Kind: kindOnce, Check: func(rec *deedRecord) error { return commit.First(rec.V) }}

// Once claims id until then: nil for the first caller in any process, ErrInvalidRequest for all others. It is for the jti
// of assertions and proofs.
func (s *Service) Once(ctx context.Context, id string, until time.Time) error {
	return s.claim(ctx, id, until)
}

// claim is Once.
func (s *core) claim(ctx context.Context, id string, until time.Time) error {
	if id == "" {
		return fail(ErrInvalidRequest, "an empty ID")
	}
	h := opaque.Hash("once1", []byte(s.ns), []byte(id))
	c := s.newChange()
	if err := bare(c, store.Record{Kind: kindOnce, ID: hex.EncodeToString(h[:]), Expires: until.Add(ruleSlack).UnixMilli()}, store.Version{}); err != nil {
		return err
	}
	_, err := s.commit(ctx, c)
	if errors.Is(err, store.ErrConflict) {
		return fail(ErrInvalidRequest, "used before")
	}
	return err
}

// DoOnce calls f unless it was done before under this name, by any process on this store; that it was done is
// remembered until then, across restarts. did is true where this call did it. f has 45 s by its context. When it fails, its
// error is returned and whoever comes next tries again; so it is, after a minute, with a process that ended within f, or that could not
// write that it was done: then f may be called a second time for the same name, which it must bear.
// ErrLimited: somebody is at it now. ErrUnavailable: the store did not answer; where did is true, f was called.
func (s *Service) DoOnce(ctx context.Context, name string, until time.Time, f func(context.Context) error) (did bool, err error) {
	if name == "" || f == nil {
		return false, fail(ErrInvalidRequest, "a deed without a name or a function")
	}
	h := opaque.Hash("deed1", []byte(s.ns), []byte(name))
	d := deed{s: s.core, id: hex.EncodeToString(h[:]), until: until}
	if free, err := d.begin(ctx); !free {
		return false, err
	}
	err = d.do(ctx, f)
	// What follows is written also when the caller has gone meanwhile.
	wctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commit.Timeout)
	defer cancel()
	if err != nil {
		if werr := d.write(wctx, deedRecord{V: 1, Ext: d.ext}); werr != nil {
			s.log.Debug("apitoken: a lease runs out by itself", "name", name, "error", werr)
		}
		return false, err
	}
	err = d.write(wctx, deedRecord{V: 1, Done: true, Ext: d.ext})
	if errors.Is(err, store.ErrConflict) {
		return true, fail(ErrUnavailable, "it took longer than its lease: another process was at it too")
	}
	return true, err
}

// deed is one try.
type deed struct {
	s       *core
	id      string
	until   time.Time
	version store.Version
	ext     record.Ext // of the record that is rewritten
}

// begin takes the lease. Neither free nor an error: it was done before.
func (d *deed) begin(ctx context.Context) (free bool, err error) {
	now := d.s.now()
	r, err := d.s.get(ctx, kindOnce, d.id)
	switch {
	case err == nil:
		var rec deedRecord
		if err := read(&deedForm, r, &rec); err != nil {
			return false, err
		}
		if rec.Done {
			return false, nil
		}
		// A lease from further ahead than any is given was written under a clock that was wrong.
		if lease := time.UnixMilli(rec.Lease); now.Before(lease) && lease.Sub(now) <= 2*deedLease {
			return false, &Error{Code: ErrLimited, RetryAfter: lease.Sub(now), Detail: "another process is at it"}
		}
		d.version, d.ext = r.Version, rec.Ext
	case !isNotFound(err):
		return false, err
	}
	err = d.write(ctx, deedRecord{V: 1, Owner: newID(now), Lease: now.Add(deedLease).UnixMilli(), Ext: d.ext})
	if errors.Is(err, store.ErrConflict) {
		return false, &Error{Code: ErrLimited, RetryAfter: deedLease, Detail: "another process was first"}
	}
	return err == nil, err
}

// do calls f. One that panics leaves its lease to whoever comes next.
func (d *deed) do(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, deedTime)
	defer cancel()
	return f(ctx)
}

func (d *deed) write(ctx context.Context, rec deedRecord) error {
	c := d.s.newChange()
	end := max(d.until.UnixMilli(), d.s.now().Add(deedLease).UnixMilli()) + int64(ruleSlack/time.Millisecond)
	if err := put(c, &deedForm, store.Record{ID: d.id, Expires: end}, &rec, d.version); err != nil {
		return err
	}
	if _, err := d.s.commit(ctx, c); err != nil {
		return err
	}
	d.version = c.ID
	return nil
}
