package redisstore

import (
	"context"
	"strings"

	"github.com/apitoken-go/apitoken/store"
)

// Purge implements [store.Store]. A time that the server's clock jumped to is believed once it has stood for an hour. It goes in steps of at most 256 records, or a block of 4096 events, between which the
// server does other work.
func (n *space) Purge(ctx context.Context, kind store.Kind, before int64, max int) (int, error) {
	ctx, cancel := n.bounded(ctx)
	defer cancel()
	if err := n.usable(ctx); err != nil {
		return 0, err
	}
	if err := kind.Check(); err != nil {
		return 0, err
	}
	latest, err := n.believed(ctx)
	if err != nil {
		return 0, err
	}
	kind = store.Kind(strings.Clone(string(kind)))
	total := 0
	for first := true; first || total < max; first = false {
		sc, args := scriptPurge, []any{string(kind), before, max - total, latest}
		if kind == store.KindEvent {
			sc, args = scriptPurgeEvents, args[1:]
		}
		r, _, err := n.ask(ctx, sc, args...)
		if err != nil {
			return total, err
		}
		if str(r[0]) == "R" {
			return total, store.ErrReadOnly
		}
		removed, ok := r[0].(int64)
		if !ok || len(r) != 2 {
			return total, errValue("the answer to Purge does not read")
		}
		total += int(removed)
		if str(r[1]) != "1" {
			break
		}
	}
	return total, nil
}
