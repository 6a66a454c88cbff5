package memstore

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/apitoken-go/apitoken/internal/cursor"
	"github.com/apitoken-go/apitoken/store"
)

// List implements [store.Store]. Limit 0 means 1000.
func (s *Store) List(ctx context.Context, q store.Query) (store.Page, error) {
	if err := ctx.Err(); err != nil {
		return store.Page{}, err
	}
	if possible, err := q.Check(); !possible {
		return store.Page{}, err
	}
	from, err := decodeCursor(&q)
	if err != nil {
		return store.Page{}, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if from != nil && q.Kind == store.KindEvent && !q.Newest && from.number < s.trimmed {
		return store.Page{}, fmt.Errorf("%w: events up to number %d were purged", store.ErrTrimmed, s.trimmed)
	}
	t := s.tables[q.Kind]
	if t == nil {
		return store.Page{}, nil
	}
	var page store.Page
	var last *entry
	take := func(e *entry) bool {
		if !e.matches(&q) {
			return true
		}
		if len(page.Records) == q.Limit {
			page.Cursor = encodeCursor(&q, last)
			return false
		}
		page.Records, last = append(page.Records, e.record(t.kind, s.all.history)), e
		return true
	}
	if q.Ends() {
		if few, ok := t.ending(&q); ok {
			for _, e := range few {
				if (from == nil || t.order.less(from, e)) && !take(e) {
					break
				}
			}
			return page, nil
		}
	}
	t.order.walk(from, &q, skipBlocks(t, &q), take)
	return page, nil
}

// ending are the entries that may expire before q.ExpiresBefore, in the order of IDs; false where they are so many that it costs
// less to walk through all: finding and sorting one costs as much as passing 25.
func (t *table) ending(q *store.Query) (list []*entry, ok bool) {
	most := int(math.Sqrt(float64(len(t.byID)) * float64(q.Limit) / 25))
	looked := 0
	if !t.due.before(0, q.ExpiresBefore, func(e *entry) bool {
		if !e.gone {
			list = append(list, e)
		}
		looked++
		return looked <= most
	}) {
		return nil, false
	}
	slices.SortFunc(list, func(a, b *entry) int { return strings.Compare(a.id(), b.id()) })
	return slices.Compact(list), true // one that was pushed again under an earlier time stands in the heap twice
}

// skipBlocks passes over blocks of events that are too old or too new: Written never falls along their order.
func skipBlocks(t *table, q *store.Query) func(*block) bool {
	if !t.order.byNumber {
		return func(*block) bool { return false }
	}
	return func(b *block) bool {
		return q.Since > 0 && b.last().written < q.Since || q.Until > 0 && b.entries[0].written >= q.Until
	}
}

// encodeCursor names the last entry of a page.
func encodeCursor(q *store.Query, last *entry) string {
	place := last.id()
	if q.Kind == store.KindEvent {
		place = strconv.FormatInt(last.number, 10)
	}
	return cursor.Text(q, place)
}

// decodeCursor returns the entry behind which a page begins, nil for the first.
func decodeCursor(q *store.Query) (*entry, error) {
	place, err := cursor.Place(q)
	if err != nil || place == "" {
		return nil, err
	}
	if q.Kind != store.KindEvent {
		return cursorEntry(place, 0), nil
	}
	n, err := strconv.ParseInt(place, 10, 64)
	if err != nil || n < 0 {
		return nil, cursor.ErrUnreadable
	}
	return cursorEntry("", n), nil
}
