package usage

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/record"
	"github.com/apitoken-go/apitoken/store"
)

// KindSpent records count the uses of API keys that have a limit: those used up and those that processes have reserved.
const KindSpent store.Kind = "spent"

// Spent is a record of KindSpent.
type Spent struct {
	V int    `json:"v"`
	N uint64 `json:"n"`
	record.Ext
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

	turn chan struct{} // holds the right to have, which is kept while the store is asked
	have uint64        // reserved and not used yet
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

// Use takes one use of those that are reserved, and reserves more where there is none.
func (m *Meter) Use(ctx context.Context, reserve func(context.Context) (uint64, error)) error {
	select {
	case m.turn <- struct{}{}:
		defer func() { <-m.turn }()
	case <-ctx.Done():
		return fault.NoAnswer(ctx.Err(), "waiting for the count of an API key's uses")
	}
	if m.have > 0 {
		m.have--
		return nil
	}
	got, err := reserve(ctx)
	if err != nil {
		return err
	}
	m.have = got - 1
	return nil
}

const reserveTries = 8 // against other processes

// Reserve takes a batch of at most a sixteenth of what remains of limit, at least one, from the count with this ID. The count is
// kept until expires, Unix ms; zero: for ever. fault.Limited: nothing remains.
func (l *Log) Reserve(ctx context.Context, id string, limit uint64, expires int64) (uint64, error) {
	for range reserveTries {
		spent, v, err := l.Spent(ctx, id)
		if err != nil {
			return 0, err
		}
		if spent.N >= limit {
			return 0, fault.Fail(fault.Limited, "the API key has no uses left")
		}
		got := max((limit-spent.N)/16, 1)
		w, err := SpentForm.Write(store.Record{ID: id, Expires: expires}, &Spent{V: 1, N: spent.N + got, Ext: spent.Ext})
		if err != nil {
			return 0, &fault.Error{Code: fault.InvalidRequest, Detail: "a count of uses that cannot be stored", Cause: err}
		}
		_, err = l.c.Write(ctx, Put{w, v})
		if errors.Is(err, store.ErrConflict) {
			continue
		}
		if err != nil {
			return 0, err // a batch may be lost; none is given twice
		}
		return got, nil
	}
	return 0, fault.Retry("parallel uses of one API key")
}

// Spent returns the count with this ID, the zero Spent if there is none. A count that can't be read is not a count of nothing:
// fault.Unavailable.
func (l *Log) Spent(ctx context.Context, id string) (x Spent, _ store.Version, _ error) {
	r, err := l.c.Get(ctx, KindSpent, id)
	switch {
	case errors.Is(err, fault.NotFound):
		return x, store.Version{}, nil
	case err != nil:
		return x, store.Version{}, err
	}
	if err := SpentForm.Read(r, &x); err != nil {
		return x, r.Version, &fault.Error{Code: fault.Unavailable, Detail: "stored spent " + id + " cannot be read", Cause: err}
	}
	return x, r.Version, nil
}
