package export

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/internal/hook"
)

// Writer takes events in order. Every Writer is an [apitoken.Auditor] for a sink, which gives it one event at a time.
type Writer interface {
	apitoken.Auditor
	// AuditAll takes a page of events at once. After an error the page comes again.
	AuditAll(ctx context.Context, list []apitoken.Event) error
}

// JSONL writes events as JSON Lines: one object and a newline each, its members as in [apitoken.Event].
type JSONL struct{ lines }

// NewJSONL writes to w, with one call of Write for each page of events. What a call left half-written after an error is its caller's to
// cut off.
func NewJSONL(w io.Writer) *JSONL {
	return &JSONL{lines{w: w, encode: func(e *apitoken.Event) ([]byte, error) { return json.Marshal(e) }}}
}

// lines writes one line for each event.
type lines struct {
	encode func(*apitoken.Event) ([]byte, error)
	mu     sync.Mutex // one page at a time, so that lines stay whole
	w      io.Writer
}

func (l *lines) Audit(ctx context.Context, e apitoken.Event) error {
	return l.AuditAll(ctx, []apitoken.Event{e})
}

func (l *lines) AuditAll(ctx context.Context, list []apitoken.Event) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	b, err := encodeLines(list, l.encode)
	if err != nil || len(b) == 0 {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, err := l.w.Write(b); err != nil {
		return fmt.Errorf("export: %w", err)
	}
	return nil
}

func encodeLines(list []apitoken.Event, encode func(*apitoken.Event) ([]byte, error)) ([]byte, error) {
	var b []byte
	for i := range list {
		line, err := encodeLine(&list[i], encode)
		if err != nil {
			return nil, fmt.Errorf("export: event %s: %w", list[i].ID, err)
		}
		b = append(append(b, line...), '\n')
	}
	return b, nil
}

// encodeLine calls what may be a function of the host's: one that panics fails its own delivery, and nothing else.
func encodeLine(e *apitoken.Event, encode func(*apitoken.Event) ([]byte, error)) (line []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			line, err = nil, hook.Panicked(p)
		}
	}()
	return encode(e)
}

// Copy gives to w what lies behind a place, up to the feed's end, and returns the place behind that. After an error it is the place
// up to which w took everything: a later Copy goes on there, and what w took of the page after it comes again.
func Copy(ctx context.Context, src Source, q apitoken.EventQuery, from Place, w Writer) (Place, error) {
	for {
		list, next, err := Next(ctx, src, q, from, 0)
		if err != nil {
			return from, err
		}
		if len(list) == 0 {
			return next, nil
		}
		if err := w.AuditAll(ctx, list); err != nil {
			return from, err
		}
		from = next
	}
}

// Follow is Copy without an end: it waits for new events until ctx ends, and answers its error. keep is told each place that w has
// reached, and makes it durable; its errors, and those of w, are tried again after a pause. zero poll: 1 second.
func Follow(ctx context.Context, src Source, q apitoken.EventQuery, from Place, w Writer, poll time.Duration, keep func(Place) error) error {
	if keep == nil || poll < 0 {
		return errors.New("export: Follow needs a keep, and a poll that is not negative")
	}
	if poll == 0 {
		poll = time.Second
	}
	wait := poll
	for {
		list, next, err := Next(ctx, src, q, from, 0)
		if errors.Is(err, ErrTrimmed) {
			return err // what to do about lost events is not ours to decide
		}
		if err == nil && len(list) > 0 {
			if err = w.AuditAll(ctx, list); err == nil {
				err = keep(next)
			}
		}
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			wait = min(2*wait, max(poll, time.Minute))
		default:
			from = next
			if wait = poll; len(list) > 0 {
				continue
			}
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		case <-t.C:
		}
	}
}
