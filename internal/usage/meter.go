// Limits of an API key: a rate in memory, and numbers of uses in the store.

package usage

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/record"
	"github.com/apitoken-go/apitoken/store"
)

// KindSpent records count the uses of API keys that have a limit: those used up and those that processes have reserved.
const KindSpent store.Kind = "spent"

// Spent is a record of KindSpent.
type Spent struct {
	V    int    `json:"v"`
	N    uint64 `json:"n"`              // used up or reserved since From
	From int64  `json:"from,omitempty"` // when the interval of the count began, Unix ms; 0: it counts from the beginning
	record.Ext
}

// Interval is how often a count of uses begins again, always in UTC. The empty Interval is never.
type Interval string

// The Intervals: at each full hour, at midnight, and at the midnight in which a month begins.
const (
	Hour  Interval = "hour"
	Day   Interval = "day"
	Month Interval = "month"
)

// Known reports whether i is an Interval.
func (i Interval) Known() bool { return i == "" || i == Hour || i == Day || i == Month }

// around returns when the interval of now began and when the next one begins, Unix ms. Zero and zero for the empty Interval.
func (i Interval) around(now time.Time) (from, next int64) {
	now = now.UTC()
	y, m, d := now.Date()
	var a, b time.Time
	switch i {
	case Hour:
		a = now.Truncate(time.Hour)
		b = a.Add(time.Hour)
	case Day:
		a, b = time.Date(y, m, d, 0, 0, 0, 0, time.UTC), time.Date(y, m, d+1, 0, 0, 0, 0, time.UTC)
	case Month:
		a, b = time.Date(y, m, 1, 0, 0, 0, 0, time.UTC), time.Date(y, m+1, 1, 0, 0, 0, 0, time.UTC)
	default:
		return 0, 0
	}
	return a.UnixMilli(), b.UnixMilli()
}

// at is the count as it stands at now. The count of a process whose clock is ahead, by one interval at most, is the count of all: its
// interval begins early, and is given once. One from farther ahead was written under a clock that jumped, or under a longer interval:
// it is taken into the present interval, so that it neither ends the key for a year nor gives anything again.
func (x Spent) at(i Interval, now time.Time) Spent {
	from, next := i.around(now)
	switch {
	case x.From < from:
		x.N, x.From = 0, from
	case x.From > next:
		x.From = from
	}
	return x
}

// Limit is how often an API key may be used.
type Limit struct {
	Counter string   // the ID of the count; rotated keys share one
	Max     uint64   // in each Per
	Per     Interval // empty: in all
	Expires int64    // of the count, Unix ms; zero: it is kept for ever
}

// SpentForm is how a Spent is stored.
var SpentForm = record.Form[Spent]{Kind: KindSpent, Check: func(x *Spent) error {
	if x.V != 1 {
		return errors.New("damaged or of a newer version")
	}
	return nil
}}

// Meter limits one API key in this process: by rate, and by number of uses, of which it reserves a batch at a time. It outlives
// changes of the key's record. Use NewMeter.
type Meter struct {
	mu    sync.Mutex // guards the next four
	burst int
	per   time.Duration
	free  float64 // of burst
	last  time.Time

	turn chan struct{} // holds the right to the next two, which is kept while the store is asked
	have Reserved      // what is not used yet
	most uint64        // the limit under which it was reserved
}

// Reserved are uses that one process has taken from a count.
type Reserved struct {
	N    uint64
	From int64 // of which interval, as Spent.From
}

// NewMeter returns a Meter that has reserved nothing.
func NewMeter() *Meter { return &Meter{turn: make(chan struct{}, 1)} }

// Take takes one call of a rate that allows burst at once and refills one after each per. False: it allows none now, and the next
// one after wait. A burst of zero doesn't limit.
func (m *Meter) Take(now time.Time, burst int, per time.Duration) (ok bool, wait time.Duration) {
	if burst == 0 {
		return true, 0
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.burst != burst || m.per != per || m.last.IsZero() {
		m.burst, m.per, m.free = burst, per, float64(burst)
	} else if d := now.Sub(m.last); d > 0 {
		m.free = min(float64(burst), m.free+float64(d)/float64(per))
	}
	m.last = now
	if m.free < 1 {
		return false, time.Duration((1 - m.free) * float64(per))
	}
	m.free--
	return true, 0
}

// Use takes one use of those that are reserved, and reserves more where there is none. What is left of an interval ends with it, and
// what is left under a higher limit with that.
func (m *Meter) Use(ctx context.Context, l *Log, limit Limit) error {
	select {
	case m.turn <- struct{}{}:
		defer func() { <-m.turn }()
	case <-ctx.Done():
		return fault.NoAnswer(ctx.Err(), "waiting for the count of an API key's uses")
	}
	now := l.c.Now()
	if held := (Spent{N: m.have.N, From: m.have.From}); held.at(limit.Per, now) != held || limit.Max < m.most {
		m.have = Reserved{}
	}
	if m.have.N > 0 {
		m.have.N--
		return nil
	}
	got, err := l.Reserve(ctx, limit)
	if err != nil {
		return err
	}
	got.N--
	m.have, m.most = got, limit.Max
	return nil
}

const reserveTries = 8 // against other processes

// Reserve takes a batch of at most a sixteenth of what remains of limit, at least one. fault.Limited: nothing remains, until the next
// interval begins if there is one.
func (l *Log) Reserve(ctx context.Context, limit Limit) (Reserved, error) {
	for range reserveTries {
		spent, v, err := l.Spent(ctx, limit.Counter)
		if err != nil {
			return Reserved{}, err
		}
		now := l.c.Now()
		spent = spent.at(limit.Per, now)
		if spent.N >= limit.Max {
			e := &fault.Error{Code: fault.Limited, Detail: "the API key has no uses left"}
			if _, next := limit.Per.around(now); next != 0 {
				e.Detail += " in this " + string(limit.Per)
				e.RetryAfter = time.UnixMilli(next).Sub(now)
			}
			return Reserved{}, e
		}
		got := max((limit.Max-spent.N)/16, 1)
		c := commit.NewChange()
		next := &Spent{V: 1, N: spent.N + got, From: spent.From, Ext: spent.Ext}
		if err := commit.Put(c, &SpentForm, store.Record{ID: limit.Counter, Expires: limit.Expires}, next, v); err != nil {
			return Reserved{}, err
		}
		_, err = l.c.Writer.Commit(ctx, c)
		if errors.Is(err, store.ErrConflict) {
			continue
		}
		if err != nil {
			return Reserved{}, err // a batch may be lost; none is given twice
		}
		return Reserved{got, spent.From}, nil
	}
	return Reserved{}, fault.Retry("parallel uses of one API key")
}

// Exhausted reports whether nothing remains of limit now.
func (l *Log) Exhausted(ctx context.Context, limit Limit) (bool, error) {
	spent, _, err := l.Spent(ctx, limit.Counter)
	if err != nil {
		return false, err
	}
	return spent.at(limit.Per, l.c.Now()).N >= limit.Max, nil
}

// Spent returns the count with this ID, the zero Spent if there is none. A count that can't be read is not a count of nothing:
// fault.Unavailable.
func (l *Log) Spent(ctx context.Context, id string) (x Spent, _ store.Version, _ error) {
	r, err := l.c.Writer.Get(ctx, KindSpent, id)
	switch {
	case errors.Is(err, fault.NotFound):
		return x, store.Version{}, nil
	case err != nil:
		return x, store.Version{}, err
	}
	err = commit.Read(&SpentForm, r, &x) // before x is returned: Go doesn't say which operand of a return is read first
	return x, r.Version, err
}
