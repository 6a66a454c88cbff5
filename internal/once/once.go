// Package once is what happens once in all processes on a store: the use of an ID (Claim), and work that the first process to come
// does (Do). It owns the records of both. The record of work says which process is doing it, and then that it is done. It promises
// that of several callers one succeeds, and that work is done again only after its process failed or its lease ended. It holds no
// lock. The root calls it for assertions, proofs and Adapter.DoOnce.
package once

import (
	"context"
	"encoding/hex"
	"errors"
	"log/slog"
	"time"

	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/internal/record"
	"github.com/apitoken-go/apitoken/store"
)

// Kind is of the records of this package.
const Kind store.Kind = "once"

const (
	lease = time.Minute      // of the process that is at it
	limit = 45 * time.Second // what it has for it: the rest is for writing that it is done
)

// Book is the record of what was done on one service.
type Book struct {
	Writer    *commit.Writer
	Now       func() time.Time
	Log       *slog.Logger
	Namespace func() string // part of the records' names
	Slack     time.Duration // for which records stay after their end
}

// Record is of work; one of a claimed ID has no content.
type Record struct {
	V     int    `json:"v"`
	Done  bool   `json:"done,omitempty"`
	Owner string `json:"owner,omitempty"` // a name for one try
	Lease int64  `json:"lease,omitempty"` // Unix ms by the owner's clock
	record.Ext
}

// Form is that of Record.
var Form = record.Form[Record]{Kind: Kind, Check: func(rec *Record) error { return commit.First(rec.V) }}

// Claim takes id until then: nil for the first caller in any process, InvalidRequest for all others.
func (b *Book) Claim(ctx context.Context, id string, until time.Time) error {
	if id == "" {
		return fault.Fail(fault.InvalidRequest, "an empty ID")
	}
	h := opaque.Hash("once1", []byte(b.Namespace()), []byte(id))
	c := commit.NewChange()
	if err := commit.Bare(c, store.Record{Kind: Kind, ID: hex.EncodeToString(h[:]), Expires: until.Add(b.Slack).UnixMilli()}, store.Version{}); err != nil {
		return err
	}
	_, err := b.Writer.Commit(ctx, c)
	if errors.Is(err, store.ErrConflict) {
		return fault.Fail(fault.InvalidRequest, "used before")
	}
	return err
}

// Do calls f unless it was done before under this name; did is true where this call did it. f has 45 s by its context. An error of
// f comes back as it is. Limited: another process is at it.
func (b *Book) Do(ctx context.Context, name string, until time.Time, f func(context.Context) error) (did bool, err error) {
	h := opaque.Hash("deed1", []byte(b.Namespace()), []byte(name))
	d := deed{b: b, id: hex.EncodeToString(h[:]), until: until}
	if free, err := d.begin(ctx); !free {
		return false, err
	}
	err = d.do(ctx, f)

	// What follows is written also when the caller has gone meanwhile.
	wctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commit.Timeout)
	defer cancel()
	if err != nil {
		if werr := d.write(wctx, Record{V: 1, Ext: d.ext}); werr != nil {
			b.Log.Debug("apitoken: a lease runs out by itself", "name", name, "error", werr)
		}
		return false, err
	}
	err = d.write(wctx, Record{V: 1, Done: true, Ext: d.ext})
	if errors.Is(err, store.ErrConflict) {
		return true, fault.Fail(fault.Unavailable, "it took longer than its lease: another process was at it too")
	}
	return true, err
}

// deed is one try.
type deed struct {
	b       *Book
	id      string
	until   time.Time
	version store.Version
	ext     record.Ext // of the record that is rewritten
}

// begin takes the lease. Neither free nor an error: it was done before.
func (d *deed) begin(ctx context.Context) (free bool, err error) {
	now := d.b.Now()
	r, err := d.b.Writer.Get(ctx, Kind, d.id)
	switch {
	case err == nil:
		var rec Record
		if err := commit.Read(&Form, r, &rec); err != nil {
			return false, err
		}
		if rec.Done {
			return false, nil
		}
		// A lease from further ahead than any is given was written under a clock that was wrong.
		if end := time.UnixMilli(rec.Lease); now.Before(end) && end.Sub(now) <= 2*lease {
			return false, &fault.Error{Code: fault.Limited, RetryAfter: end.Sub(now), Detail: "another process is at it"}
		}
		d.version, d.ext = r.Version, rec.Ext
	case !errors.Is(err, fault.NotFound):
		return false, err
	}
	err = d.write(ctx, Record{V: 1, Owner: opaque.NewID(now).String(), Lease: now.Add(lease).UnixMilli(), Ext: d.ext})
	if errors.Is(err, store.ErrConflict) {
		return false, &fault.Error{Code: fault.Limited, RetryAfter: lease, Detail: "another process was first"}
	}
	return err == nil, err
}

// do calls f. One that panics leaves its lease to whoever comes next.
func (d *deed) do(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return f(ctx)
}

func (d *deed) write(ctx context.Context, rec Record) error {
	c := commit.NewChange()
	end := max(d.until.UnixMilli(), d.b.Now().Add(lease).UnixMilli()) + int64(d.b.Slack/time.Millisecond)
	if err := commit.Put(c, &Form, store.Record{ID: d.id, Expires: end}, &rec, d.version); err != nil {
		return err
	}
	if _, err := d.b.Writer.Commit(ctx, c); err != nil {
		return err
	}
	d.version = c.ID
	return nil
}
