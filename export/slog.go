package export

import (
	"context"
	"log/slog"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
)

// NewSlogAuditor logs each event as one record at Info, refusals and alerts at Warn.
func NewSlogAuditor(l *slog.Logger) apitoken.Auditor { return slogAuditor{l} }

type slogAuditor struct{ l *slog.Logger }

func (a slogAuditor) Audit(ctx context.Context, e apitoken.Event) error {
	level := slog.LevelInfo
	if !e.OK || e.Type == event.Alert || e.Type == event.Reused || e.Type == event.Leaked {
		level = slog.LevelWarn
	}
	a.l.LogAttrs(ctx, level, "audit", slog.Any("event", e))
	return nil
}
