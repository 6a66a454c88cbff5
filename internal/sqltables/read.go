// Get, Follow and List.

package sqltables

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/apitoken-go/apitoken/internal/cursor"
	"github.com/apitoken-go/apitoken/store"
)

// read runs one statement that selects the namespace's row and, beside it, the rows of a table, which are of one snapshot
// with it. table is "record" or "event", hint what stands behind its name. where is what selects them, with the order in which the first limit are found
// (0: all); they come in no order.
func (s *Store) read(ctx context.Context, table, hint, where string, limit int) (sp *space, out []record, err error) {
	fields, keys := recordFields, []string{"kind", "id"}
	if table == "event" {
		fields, keys = eventFields, []string{"place"}
	}
	if limit > 0 {
		where += " LIMIT " + strconv.Itoa(limit)
	}
	from := " FROM " + s.Prefix + table + " r" + hint + " WHERE r.ns = " + s.Text(s.ns) + where
	join := "(SELECT *" + from + ") r ON r.ns = n.ns"
	if s.Late && limit > 0 {
		columns, on := "r.ns", ""
		for _, k := range keys {
			columns += ", r." + k
			on += " AND r." + k + " = k." + k
		}
		join = "(SELECT " + columns + from + ") k ON k.ns = n.ns LEFT JOIN " + s.Prefix + table + " r" + s.ByKey + " ON r.ns = k.ns" + on
	}
	text := "SELECT " + s.columns() + ", " + fields + " FROM " + s.Prefix + "namespace n LEFT JOIN " + join + " WHERE n.ns = " + s.Text(s.ns)
	for try := 0; ; try++ {
		floor := s.last()
		err := s.again(ctx, func() error {
			sp, out = nil, nil
			rows, err := s.DB.QueryContext(ctx, text)
			if err != nil {
				return err
			}
			defer rows.Close()
			for rows.Next() {
				var r record
				sp = &space{}
				if err := rows.Scan(append(sp.fields(), r.fields()...)...); err != nil {
					return err
				}
				if r.ns != nil {
					out = append(out, r)
				}
			}
			return errors.Join(rows.Err(), rows.Close())
		})
		switch {
		case err != nil:
			return nil, nil, err
		case sp == nil:
			return nil, nil, s.gone()
		}
		if err := s.Guarded(sp.guard, false); err != nil {
			return nil, nil, s.cause(err)
		}
		if sp.same && !lost(floor, sp) {
			s.note(sp.position())
			return sp, out, nil
		}
		if try == 2 { // an empty answer would say that nothing was ever written
			return nil, nil, s.twoServers()
		}
		if err := s.adopt(ctx); err != nil {
			return nil, nil, err
		}
	}
}

// Get is that of [store.Store].
func (s *Store) Get(ctx context.Context, kind store.Kind, id string) (store.Record, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	switch {
	case ctx.Err() != nil:
		return store.Record{}, ctx.Err()
	case s.hear.ctx.Err() != nil:
		return store.Record{}, s.Closed
	case !kind.Possible(id):
		return store.Record{}, store.ErrNotFound
	}
	return s.gets.Get(ctx, kind, id)
}

// How many Gets a statement answers, and statements under way for them.
const (
	getSize  = 64
	getLanes = 4
)

// getAll reads records of a kind in one statement.
func (s *Store) getAll(ctx context.Context, kind store.Kind, ids []string) ([]store.Record, error) {
	if err := s.open(ctx); err != nil {
		return nil, err
	}
	var in strings.Builder
	for i, id := range ids {
		if i > 0 {
			in.WriteString(", ")
		}
		in.WriteString(s.Text(id))
	}
	sp, rows, err := s.read(ctx, "record", s.ByKey, " AND r.kind = "+s.Text(string(kind))+" AND r.id IN ("+in.String()+")", 0)
	if err != nil {
		return nil, err
	}
	out := make([]store.Record, len(rows))
	for i := range rows {
		out[i] = rows[i].out(sp.history)
	}
	return out, nil
}

// Follow is that of [store.Store].
func (s *Store) Follow(ctx context.Context, after store.Position, kinds []store.Kind, max int) (store.View, error) {
	if max <= 0 || max > store.MaxLimit {
		max = store.MaxLimit
	}
	where := ""
	if len(kinds) > 0 {
		names := []string{s.Text("")} // which no record has
		for _, k := range kinds {
			if k.State() {
				names = append(names, s.Text(string(k)))
			}
		}
		where = " AND r.kind IN (" + strings.Join(names, ", ") + ")"
	}
	return await(ctx, s, func(ctx context.Context) (store.View, error) {
		// The second bound is for SQLite, whose index holds only what has a position. It begins to read at the first bound that it sees:
		// the other way round it would read all state records each time.
		sp, rows, err := s.read(ctx, "record", "", " AND r.pos > "+strconv.FormatInt(after.N, 10)+" AND r.pos > 0"+where+
			" ORDER BY r.pos", max+1)
		switch {
		case err != nil:
			return store.View{}, err
		case after != (store.Position{}) && (after.History != uint64(sp.history) || after.N > sp.head || after.N < 0):
			return store.View{}, fmt.Errorf("%w: position %d of history %x, the store is at %d of %x", store.ErrDiverged, after.N, after.History, sp.head, sp.history)
		}
		slices.SortFunc(rows, byPlace)
		v := store.View{Next: sp.position(), Now: sp.now}
		if v.More = len(rows) > max; v.More {
			rows = rows[:max]
			v.Next.N = *rows[max-1].pos
		}
		for i := range rows {
			v.Records = append(v.Records, rows[i].out(sp.history))
		}
		return v, nil
	})
}

func byPlace(a, b record) int { return cmp.Compare(*a.pos, *b.pos) }

// List is that of [store.Store].
func (s *Store) List(ctx context.Context, q store.Query) (store.Page, error) {
	possible, err := q.Check()
	if err != nil {
		return store.Page{}, err
	}
	return await(ctx, s, func(ctx context.Context) (store.Page, error) {
		if !possible {
			return store.Page{}, nil
		}
		return s.list(ctx, q)
	})
}

// indexed is an index that a listing can go by.
type indexed struct{ hint, where string }

// rareRows is how many rows of each index are counted, at most, before a listing by several selectors.
const rareRows = 1000

// rarest is the hint for the index that finds the fewest rows, or for the first where each finds many. A listing that went by another
// would read every row that the other finds.
func (s *Store) rarest(ctx context.Context, table string, finds []indexed) (hint string, err error) {
	switch len(finds) {
	case 0:
		return "", nil
	case 1:
		return finds[0].hint, nil
	}
	counts := make([]string, len(finds))
	rows, to := make([]int, len(finds)), make([]any, len(finds))
	for i, f := range finds {
		counts[i] = fmt.Sprintf("(SELECT COUNT(*) FROM (SELECT 1 FROM %s%s r%s WHERE r.ns = %s%s LIMIT %d) few)", s.Prefix, table, f.hint, s.Text(s.ns), f.where, rareRows)
		to[i] = &rows[i]
	}
	err = s.again(ctx, func() error { return s.DB.QueryRowContext(ctx, "SELECT "+strings.Join(counts, ", ")).Scan(to...) })
	if err != nil {
		return "", err
	}
	return finds[slices.Index(rows, slices.Min(rows))].hint, nil
}

// list pages through records by their IDs, or through events by their places: those are given under the namespace's lock,
// so none appears behind one that can be seen.
func (s *Store) list(ctx context.Context, q store.Query) (store.Page, error) {
	table, by, where := "record", "id", " AND r.kind = "+s.Text(string(q.Kind))
	if q.Kind == store.KindEvent {
		table, by, where = "event", "place", ""
	}
	var finds []indexed // by the selectors, of which the first usually finds the fewest
	ofKind, selected := where, ""
	for _, c := range [...][2]string{{"token", q.Token}, {"grant_id", q.Grant}, {"subject", q.Subject}, {"client", q.Client}, {"type", q.Type}} {
		if c[1] != "" {
			// That it is not empty is said again for indexes that hold only those.
			equal := " AND r." + c[0] + " = " + s.Text(c[1]) + " AND r." + c[0] + " <> " + s.Text("")
			if s.ByIndex != nil && (q.Kind == store.KindEvent || c[0] != "grant_id" && c[0] != "type") {
				finds = append(finds, indexed{s.ByIndex(table, c[0]), ofKind + equal})
			}
			selected += equal
		}
	}
	where += selected
	if q.Since > 0 {
		where += " AND r.written >= " + strconv.FormatInt(q.Since, 10)
	}
	if q.Until > 0 {
		where += " AND r.written < " + strconv.FormatInt(q.Until, 10)
	}
	order, than := " ASC", " > "
	if q.Newest {
		order, than = " DESC", " < "
	}
	if q.ExpiresBefore > 0 {
		where += " AND r.expires > 0 AND r.expires < " + strconv.FormatInt(q.ExpiresBefore, 10)
	}
	var from int64
	if q.Cursor != "" {
		place, err := cursor.PlaceText(&q)
		if err != nil {
			return store.Page{}, err
		}
		switch {
		case q.Kind == store.KindEvent:
			if from, err = strconv.ParseInt(place, 10, 64); err != nil {
				return store.Page{}, cursor.ErrUnreadable
			}
			where += " AND r.place" + than + strconv.FormatInt(from, 10)
		case q.Ends():
			expires, id, err := cursor.ReadEnding(place)
			if err != nil {
				return store.Page{}, err
			}
			at := strconv.FormatInt(expires, 10) // its first bound is one that the index can begin at
			where += " AND r.expires >= " + at + " AND (r.expires > " + at + " OR r.id > " + s.Text(id) + ")"
		default:
			where += " AND r.id" + than + s.Text(place)
		}
	}
	sorted := " ORDER BY r." + by + order
	if q.Ends() {
		sorted = " ORDER BY r.expires, r.id"
		if s.ByIndex != nil {
			finds = []indexed{{hint: s.ByIndex(table, "expires")}}
		}
	}
	hint, err := s.rarest(ctx, table, finds)
	if err != nil {
		return store.Page{}, err
	}
	sp, rows, err := s.read(ctx, table, hint, where+sorted, q.Limit+1)
	switch {
	case err != nil:
		return store.Page{}, err
	case q.Kind == store.KindEvent && q.Cursor != "" && !q.Newest && sp.trimmed > from:
		return store.Page{}, store.ErrTrimmed
	}
	switch {
	case q.Kind == store.KindEvent:
		slices.SortFunc(rows, byPlace)
	case q.Ends():
		slices.SortFunc(rows, func(a, b record) int {
			return cmp.Or(cmp.Compare(*a.expires, *b.expires), strings.Compare(*a.id, *b.id))
		})
	default:
		slices.SortFunc(rows, func(a, b record) int { return strings.Compare(*a.id, *b.id) })
	}
	if q.Newest {
		slices.Reverse(rows)
	}
	var page store.Page
	if len(rows) > q.Limit {
		rows = rows[:q.Limit]
		last := *rows[q.Limit-1].id
		switch {
		case q.Kind == store.KindEvent:
			last = strconv.FormatInt(*rows[q.Limit-1].pos, 10)
		case q.Ends():
			last = cursor.Ending(*rows[q.Limit-1].expires, last)
		}
		page.Cursor = cursor.Text(&q, last)
	}
	for i := range rows {
		page.Records = append(page.Records, rows[i].out(sp.history))
	}
	return page, nil
}
