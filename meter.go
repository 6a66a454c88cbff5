package apitoken

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/internal/record"
	"github.com/apitoken-go/apitoken/store"
)

// Consumer is a Validator whose tokens may be limited by rate or by number of uses. [Authorize] calls it once for each
// request that it lets through; Validate alone never consumes anything. A Validator that only passes on what a [Service]
// answered need not be one: Authorize then asks that Service.
type Consumer interface {
	// Consume takes one use of t: nil, ErrLimited, or ErrUnavailable.
	Consume(ctx context.Context, t Token) error
}

// kindSpent records count the uses of API keys that have a limit: those used up and those that processes reserved.
const kindSpent store.Kind = "spent"

type spentRecord struct {
	V int    `json:"v"`
	N uint64 `json:"n"`
	record.Ext
}

var spentForm = record.Form[spentRecord]{Kind: kindSpent, Check: func(rec *spentRecord) error { return first(rec.V) }}

// meter limits one API key in this process: by rate, and by uses of which it reserves a batch at a time. It outlives
// changes of the key's record.
type meter struct {
	mu   sync.Mutex
	rate Rate
	free float64 // of rate.Burst
	last time.Time

	uses chan struct{} // holds the right to have; kept while the store is asked, so that racers share a batch. A channel, so that waiting ends with a context
	have uint64        // reserved and not used yet
}

func newMeter() *meter { return &meter{uses: make(chan struct{}, 1)} }

// take reports whether the rate allows one more now, and if not, how long to wait.
func (l *meter) take(now time.Time, rate Rate) (bool, time.Duration) {
	if rate.Burst == 0 {
		return true, 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rate != rate || l.last.IsZero() {
		l.rate, l.free = rate, float64(rate.Burst)
	} else if d := now.Sub(l.last); d > 0 {
		l.free = min(float64(rate.Burst), l.free+float64(d)/float64(rate.Per))
	}
	l.last = now
	if l.free < 1 {
		return false, time.Duration((1 - l.free) * float64(rate.Per))
	}
	l.free--
	return true, 0
}

// Consume implements [Consumer]: tokens that are not API keys, and keys without a limit, cost nothing. Uses are
// reserved in batches of at most a sixteenth of what remains: never more than MaxUses in all processes, to the last one exact
// below 32, and a process that dies may lose its batch.
func (s *Service) Consume(ctx context.Context, t Token) error {
	if t.IsZero() || t.Kind() != KindAPIKey || t.Issuer() != s.cfg.Issuer {
		return nil
	}
	return s.APIKeys.consume(ctx, t.ID())
}

// Consume implements [Consumer] where the validator is a service's.
func (v *JWTValidator) Consume(ctx context.Context, t Token) error {
	if v.consume == nil {
		return nil
	}
	return v.consume(ctx, t)
}

func (k *APIKeys) consume(ctx context.Context, id string) error {
	raw, err := opaque.ParseID(id)
	if err != nil {
		return fail(ErrInvalidToken, "no such API key")
	}
	e, ok := k.keys.Get(raw)
	if !ok {
		if e, err = k.load(ctx, raw); err != nil {
			return err
		}
	}
	if ok, wait := e.meter.take(k.s.now(), e.rate); !ok {
		return &Error{Code: ErrLimited, RetryAfter: wait, Detail: "the API key's rate"}
	}
	if e.maxUses == 0 {
		return nil
	}
	m := e.meter
	ctx, cancel := context.WithTimeout(ctx, commitTimeout) // all who wait for a store that hangs wait no longer than one
	defer cancel()
	select {
	case m.uses <- struct{}{}:
		defer func() { <-m.uses }()
	case <-ctx.Done():
		return unavailable(ctx.Err(), "waiting for the count of an API key's uses")
	}
	if m.have > 0 {
		m.have--
		return nil
	}
	got, err := k.reserve(ctx, e)
	if err != nil {
		return err
	}
	m.have = got - 1
	return nil
}

// reserve takes a batch of what remains.
func (k *APIKeys) reserve(ctx context.Context, e *knownKey) (uint64, error) {
	limit := e.maxUses
	for try := 0; try < refreshTries; try++ {
		spent, v, err := k.spentRecord(ctx, e.counter)
		if err != nil {
			return 0, err
		}
		if spent.N >= limit {
			return 0, fail(ErrLimited, "the API key has no uses left")
		}
		got := max((limit-spent.N)/16, 1)
		c := k.s.newChange()
		r := store.Record{ID: e.counter}
		if e.expires != 0 { // never before the key's own record: a count that is gone would begin again
			r.Expires = e.expires + int64((keySlack+ruleSlack)/time.Millisecond)
		}
		if err := put(c, &spentForm, r, &spentRecord{V: 1, N: spent.N + got, Ext: spent.Ext}, v); err != nil {
			return 0, err
		}
		_, err = k.s.commit(ctx, c)
		if errors.Is(err, store.ErrConflict) {
			continue
		}
		if err != nil {
			return 0, err // a batch may be lost; none is ever given twice
		}
		return got, nil
	}
	return 0, &Error{Code: ErrUnavailable, RetryAfter: retryHint, Detail: "parallel uses of one API key"}
}

func (k *APIKeys) spentRecord(ctx context.Context, id string) (spentRecord, store.Version, error) {
	var rec spentRecord
	r, err := k.s.get(ctx, kindSpent, id)
	if isNotFound(err) {
		return rec, store.Version{}, nil
	}
	if err != nil {
		return rec, store.Version{}, err
	}
	return rec, r.Version, read(&spentForm, r, &rec) // a count that can not be read is not a count of nothing
}
