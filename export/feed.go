// Package export carries a service's audit events to where they are read: as JSON Lines, as OCSF for a SIEM, or to a
// webhook. Everything here streams, in the log's final order, and goes on from a [Place] that the caller keeps.
//
//	w := export.NewJSONL(file)
//	place, err := export.Copy(ctx, svc, apitoken.EventQuery{}, place, w)
//
// For a feed that never ends give the service a sink: [NewWebhook] makes one, [NewSlogAuditor] makes one for log/slog,
// and every [Writer] is an apitoken.Auditor.
package export

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/apitoken-go/apitoken"
)

// Source is an event feed; [apitoken.Service] is one.
type Source interface {
	EventPage(ctx context.Context, q apitoken.EventQuery, cursor string, limit int) (list []apitoken.Event, next string, err error)
}

// Place is how far a feed was read. The zero Place is its beginning. It is kept as text, and goes on only in the query that
// made it.
type Place struct {
	cursor string
	seen   []string // IDs of events behind cursor: a feed gives no cursor at its very end
}

// ErrTrimmed: events behind the place were removed from the feed, by apitoken.Config.KeepEvents, before they were read here.
var ErrTrimmed = errors.New("export: the feed no longer holds what lies behind the place")

// IsZero reports that p is the beginning.
func (p Place) IsZero() bool { return p.cursor == "" && len(p.seen) == 0 }

type placeText struct {
	V      int      `json:"v"`
	Cursor string   `json:"c,omitempty"`
	Seen   []string `json:"s,omitempty"`
}

// MarshalText makes a text without spaces, a few hundred bytes at most.
func (p Place) MarshalText() ([]byte, error) {
	if p.IsZero() {
		return nil, nil
	}
	b, err := json.Marshal(placeText{1, p.cursor, p.seen})
	if err != nil {
		return nil, err
	}
	return base64.RawURLEncoding.AppendEncode(nil, b), nil
}

// UnmarshalText reads what MarshalText made; nothing is the beginning.
func (p *Place) UnmarshalText(text []byte) error {
	*p = Place{}
	if len(text) == 0 {
		return nil
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(string(text))
	var t placeText
	if err == nil {
		err = json.Unmarshal(b, &t)
	}
	if err != nil || t.V != 1 || t.Cursor == "" && len(t.Seen) == 0 {
		return fmt.Errorf("export: %.32q is no place", text)
	}
	p.cursor, p.seen = t.Cursor, t.Seen
	return nil
}

// Next returns up to limit events behind a place (zero: 200; at most 1000), oldest first whatever q says, and the place behind
// them. No event means that there is none now. ErrTrimmed: a part is gone; from the zero Place one gets what is left.
func Next(ctx context.Context, src Source, q apitoken.EventQuery, p Place, limit int) ([]apitoken.Event, Place, error) {
	if limit <= 0 {
		limit = 200
	}
	q.OldestFirst = true
	// What is known already lies in front; the page must reach beyond it.
	limit = min(limit+len(p.seen), 1000)
	if p.cursor == "" {
		limit = max(2, limit) // a cursor comes with the second event
	}
	list, next, err := page(ctx, src, q, p.cursor, limit)
	if err != nil {
		return nil, p, err
	}
	if p.cursor == "" && len(p.seen) > 0 && !slices.ContainsFunc(list, func(e apitoken.Event) bool { return e.ID == p.seen[len(p.seen)-1] }) {
		return nil, p, fmt.Errorf("%w: event %s", ErrTrimmed, p.seen[len(p.seen)-1])
	}
	behind := Place{cursor: next}
	if next == "" {
		behind.cursor = p.cursor
		if n := len(list); n > 1 {
			// A shorter page has a cursor, right before the last event: so a place stays small, and as young as it can be.
			if again, c, err := page(ctx, src, q, p.cursor, n-1); err == nil && len(again) == n-1 && c != "" && again[n-2].ID == list[n-2].ID {
				behind.cursor = c
			}
		}
		if behind.cursor != p.cursor && len(list) > 0 {
			behind.seen = []string{list[len(list)-1].ID}
		} else {
			for _, e := range list {
				behind.seen = append(behind.seen, e.ID)
			}
		}
	}
	fresh := list[:0]
	for _, e := range list {
		if !slices.Contains(p.seen, e.ID) {
			fresh = append(fresh, e)
		}
	}
	return fresh, behind, nil
}

func page(ctx context.Context, src Source, q apitoken.EventQuery, cursor string, limit int) ([]apitoken.Event, string, error) {
	list, next, err := src.EventPage(ctx, q, cursor, limit)
	if err != nil && cursor != "" && errors.Is(err, apitoken.ErrInvalidRequest) {
		return nil, "", fmt.Errorf("%w: %w", ErrTrimmed, err)
	}
	return list, next, err
}
