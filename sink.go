package apitoken

import (
	"context"
	"time"

	"github.com/apitoken-go/apitoken/internal/deliver"
	"github.com/apitoken-go/apitoken/internal/record"
	"github.com/apitoken-go/apitoken/store"
)

// Sink is an Auditor that follows the event feed from a cursor kept in the store under Name, so that it misses
// nothing across restarts, and gets each event in the log's final order. Of several processes with the same sink, one feeds
// it at a time. Revoking and validating never wait for a sink. With MaxLag set, a sink that is further behind makes
// the calls that grant something (issue, refresh, exchange, new keys) answer ErrUnavailable.
//
// An Auditor that has a method AuditAll(context.Context, []Event) error, as those of package export have, gets up to 100 events at
// once. After an error, and after a crash, all of them come again.
type Sink struct {
	Name    string
	Auditor Auditor
	Timeout time.Duration // of one call; zero: 2 s
	MaxLag  time.Duration // zero: it may lag without limit; otherwise at least 5 s
}

// Feed delivers the event feed to x, as if it stood in Config.Sinks, until ctx or the service ends. It is for what is
// attached later: nothing waits for x, so its MaxLag is zero (ErrInvalidRequest otherwise), and events that are purged by
// their age may be missed. It returns nil at the end of ctx; ErrUnavailable: the service was closed.
func (s *Service) Feed(ctx context.Context, x Sink) error {
	if x.MaxLag != 0 || x.Auditor == nil || x.Name == "" || x.Timeout < 0 {
		return fail(ErrInvalidRequest, "the sink %q has no name or auditor, or a MaxLag", x.Name)
	}
	for _, f := range s.audit.sinks {
		if f.Name() == x.Name {
			return fail(ErrInvalidRequest, "a sink %q is in Config.Sinks", x.Name)
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	f := s.newFeed(x)
	s.audit.fed.Store(f, nil)
	defer s.audit.fed.Delete(f)
	f.Run(ctx)
	if s.ctx.Err() != nil {
		return fail(ErrUnavailable, "the service is closed")
	}
	return nil
}

const sinkBatch = 100 // events for one call of an Auditor that takes many

// newFeed makes what feeds x. A sink that was never fed counts as up to date: it has MaxLag from the start on.
func (s *core) newFeed(x Sink) *deliver.Feed {
	all, ok := x.Auditor.(interface {
		AuditAll(ctx context.Context, list []Event) error
	})
	batch := 1
	if ok {
		batch = sinkBatch
	}
	return deliver.New(deliver.Config{
		Name: x.Name, Timeout: x.Timeout, MaxLag: x.MaxLag, Keep: s.cfg.KeepEvents,
		Store: s.st, Now: s.now, Log: s.log,
		Write: func(ctx context.Context, w record.Written, expect store.Version) (store.Version, error) {
			c := s.newChange()
			c.Put(w, expect)
			_, err := s.commit(ctx, c)
			return c.ID, err
		},
		Batch: batch,
		Deliver: func(ctx context.Context, records []store.Record) error {
			list := make([]Event, len(records))
			for i, r := range records {
				var err error
				if list[i], err = readEvent(r); err != nil {
					return err
				}
			}
			if all != nil {
				return all.AuditAll(ctx, list)
			}
			return x.Auditor.Audit(ctx, list[0])
		},
		Missed: func(ctx context.Context) {
			s.alert(ctx, "audit sink missed events that were purged", Event{Extra: map[string]string{"sink": x.Name}})
		},
	})
}

// ready is ErrUnavailable while a sink with MaxLag is further behind. Calls that grant something ask; revoking and
// validating never wait for a sink.
func (a *auditLog) ready() error {
	for _, f := range a.sinks {
		if err := f.Late(); err != nil {
			return public(err)
		}
	}
	return nil
}

// delivered is a purge time, at most before, that spares the events which some sink has not got yet.
func (a *auditLog) delivered(before time.Time) time.Time {
	for _, f := range a.sinks {
		if t := f.Kept().Add(a.s.cfg.KeepEvents); t.Before(before) {
			before = t
		}
	}
	return before
}
