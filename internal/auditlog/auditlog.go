// Package auditlog owns the log of audit events: how an event is stored, what is counted until it becomes one, and the sinks that
// get the log.
//
// It promises that an event has one JSON, in every version; that no name in it keeps it, or what is written with it, out of a store;
// and that names of other issuers never meet ours in a store's index. Refusals and uses happen at every request, and refusals at the
// will of whoever sends them: they are counted in memory of a fixed size and written in batches, so that a crash loses at most half
// a minute of counts, and nobody can fill the disk.
//
// It holds no lock of its own and calls the store through internal/commit: the counters and their locks are internal/usage, a sink
// and its cursor internal/deliver. The root makes one Log, has Record make the record of every event that it writes with a change,
// counts refusals in Tally and uses in Uses, and asks Ready before it grants something.
package auditlog

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/apitoken-go/apitoken/event"
	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/deliver"
	"github.com/apitoken-go/apitoken/internal/follow"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/internal/usage"
	"github.com/apitoken-go/apitoken/store"
)

// Config is what a Log needs of the service around it.
type Config struct {
	Writer *commit.Writer
	Now    func() time.Time
	Log    *slog.Logger
	Issuer string        // the service's own, which events leave out
	Keep   time.Duration // how long events are kept; zero: for ever
	// GrantLife is how long the uses of a grant are kept after the last one.
	GrantLife func() time.Duration
	// Go runs f until the service ends.
	Go func(name string, f func(context.Context))
}

// Log writes events, sums up what may be summed up, and feeds the sinks. Make one with New.
type Log[S ~string] struct {
	Tally usage.Tally // of refusals
	Uses  *usage.Log  // of grants and API keys

	c     Config
	sinks []*deliver.Feed // those of Attach
	fed   sync.Map        // *deliver.Feed: those of Feed, while it runs
}

const flushEvery = 30 * time.Second // of refusals and uses

// New returns a Log without sinks.
func New[S ~string](c Config) *Log[S] {
	return &Log[S]{c: c, Tally: usage.Tally{Log: c.Log}, Uses: usage.New(usage.Config{Writer: c.Writer, Now: c.Now, Log: c.Log, GrantLife: c.GrantLife})}
}

// Record completes e, whose ID and time are set here, and makes its record, in the memory of room while that is enough.
func (l *Log[S]) Record(e *Event[S], room []byte) store.Record {
	now := l.c.Now()
	e.ID, e.Time = opaque.NewID(now).String(), now
	e.about()
	for _, issuer := range [...]*string{&e.Issuer, &e.ActorIssuer} {
		if *issuer == l.c.Issuer {
			*issuer = ""
		}
	}
	e.clean()
	r := store.Record{
		Kind: store.KindEvent, ID: e.ID, Type: string(e.Type), Subject: Name(e.Issuer, e.Subject), Client: e.Client, Grant: e.Grant,
		Token: Name(e.Issuer, e.TokenID),
	}
	if l.c.Keep > 0 {
		r.Expires = now.Add(l.c.Keep).UnixMilli()
	}
	r.Data = e.data(room)
	return r
}

// Attach adds a sink of which c says the name, the limits and what it gets. Run feeds it.
func (l *Log[S]) Attach(c deliver.Config) { l.sinks = append(l.sinks, l.feed(c)) }

// Attached reports whether a sink of this name was added.
func (l *Log[S]) Attached(name string) bool {
	for _, f := range l.sinks {
		if f.Name() == name {
			return true
		}
	}
	return false
}

// Feed feeds one more sink until ctx ends. Nothing waits for it.
func (l *Log[S]) Feed(ctx context.Context, c deliver.Config) {
	f := l.feed(c)
	l.fed.Store(f, nil)
	defer l.fed.Delete(f)
	f.Run(ctx)
}

func (l *Log[S]) feed(c deliver.Config) *deliver.Feed {
	c.Writer, c.Now, c.Log, c.Keep = l.c.Writer, l.c.Now, l.c.Log, l.c.Keep
	return deliver.New(c)
}

// Ready is Unavailable while a sink that was added is further behind than its MaxLag.
func (l *Log[S]) Ready() error {
	for _, f := range l.sinks {
		if err := f.Late(); err != nil {
			return err
		}
	}
	return nil
}

// Delivered is a purge time, at most before, that spares the events which some sink has not got yet.
func (l *Log[S]) Delivered(before time.Time) time.Time {
	for _, f := range l.sinks {
		if t := f.Kept().Add(l.c.Keep); t.Before(before) {
			before = t
		}
	}
	return before
}

// Lags is how far each sink is behind at most, by name.
func (l *Log[S]) Lags() map[string]time.Duration {
	lags := make(map[string]time.Duration, len(l.sinks))
	for _, f := range l.sinks {
		lags[f.Name()] = f.Lag()
	}
	l.fed.Range(func(key, _ any) bool {
		f := key.(*deliver.Feed)
		lags[f.Name()] = f.Lag()
		return true
	})
	return lags
}

// Run feeds the sinks, and flushes the counters every half minute.
func (l *Log[S]) Run(ctx context.Context) {
	for _, f := range l.sinks {
		l.c.Go("sink", f.Run)
	}
	for follow.Sleep(ctx, follow.Jitter(flushEvery)) {
		fctx, cancel := context.WithTimeout(ctx, flushEvery)
		l.Flush(fctx)
		cancel()
	}
}

// Flush writes what was counted. What cannot be written is counted on.
func (l *Log[S]) Flush(ctx context.Context) {
	if err := l.FlushRefusals(ctx); err != nil && ctx.Err() == nil {
		l.c.Log.Warn("apitoken: refusals could not be recorded yet", "error", err)
	}
	if err := l.Uses.Flush(ctx); err != nil && ctx.Err() == nil {
		l.c.Log.Warn("apitoken: uses could not be recorded yet", "error", err)
	}
}

// FlushRefusals writes the refusals that were counted, so that a listing has them.
func (l *Log[S]) FlushRefusals(ctx context.Context) error {
	return l.Tally.Flush(ctx, func(ctx context.Context, list []*usage.Refused) error {
		c := commit.NewChange()
		for _, x := range list {
			e := summed[S](x)
			c.Events = append(c.Events, l.Record(&e, make([]byte, 0, Room)))
		}
		_, err := l.c.Writer.Commit(ctx, c)
		return err
	})
}

// summed is the event that sums up what x counted.
func summed[S ~string](x *usage.Refused) Event[S] {
	e := Event[S]{Type: event.Type(x.Kind), Reason: x.Reason, Subject: x.Subject, Issuer: x.Issuer, Client: x.Client, TokenID: x.Token, Grant: x.Grant, Count: x.N}
	var from []string
	for _, a := range x.Addresses {
		from = append(from, a.String())
	}
	for name, v := range map[string]string{"addresses": strings.Join(from, " "), "claimed": x.Claimed, "why": strings.Join(x.Whys, "; ")} {
		if v == "" {
			continue
		}
		if e.Extra == nil {
			e.Extra = map[string]string{}
		}
		e.Extra[name] = v
	}
	return e
}
