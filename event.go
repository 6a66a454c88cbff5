package apitoken

import (
	"context"
	"time"

	"github.com/apitoken-go/apitoken/internal/opaque"
)

// Event returns the audit event with an ID, as [Event.ID] says it: for links from an alert, a log line or a SIEM. An ID tells
// when its event was written, so that few others are read. ErrNotFound: there is none, or it was removed by Config.KeepEvents,
// or the clock of whoever wrote it was over a minute away from the store's.
func (s *Service) Event(ctx context.Context, id string) (_ Event, failed error) {
	defer tell(&failed)
	raw, err := opaque.ParseID(id)
	if err != nil {
		return Event{}, fail(ErrNotFound, "no event has such an ID")
	}

	// Nearly always the event is within a second of its ID's time; a busy log holds many others in a minute.
	at := raw.Time()
	for _, around := range [...]time.Duration{time.Second, time.Minute} {
		for e, err := range s.Events(ctx, EventQuery{From: at.Add(-around), To: at.Add(around)}) {
			if err != nil || e.ID == id {
				return e, err
			}
		}
	}
	return Event{}, fail(ErrNotFound, "no event %q", id)
}
