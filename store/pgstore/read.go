package pgstore

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/apitoken-go/apitoken/internal/cursor"
	"github.com/apitoken-go/apitoken/store"
)

// statements are the templates with their names filled in. Those that read join the namespace's row, which is always there:
// so the timeline is always asked for, which fails on a replica.
type statements struct {
	apply, adopt, move, get, head, heads, follow, purge string
}

const recordColumns = "r.kind, r.id, r.version, r.pos, r.written, r.expires, r.subject, r.client, r.grant_id, r.token, r.type, r.data"

// durable is a condition that is always true. Where a session would acknowledge a commit before it is on the server's disk
// (synchronous_commit off, of the server, the database, the role or the pool), it makes this transaction wait all the same;
// any stronger setting stays. A write without it could be acknowledged and lost at a crash.
const durable = "set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on' ELSE current_setting('synchronous_commit') END, true) <> 'off'"

func newStatements(o *Options) statements {
	return statements{
		apply: o.names("SELECT out_head, out_history, out_now FROM @apply_all($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25) WHERE " + durable),
		adopt: o.names(`WITH f AS (INSERT INTO @fence (ns) VALUES ($1) ON CONFLICT DO NOTHING)
			INSERT INTO @namespace AS n (ns, history, timeline, system, relation) VALUES ($1, $2, @timeline(), $3, '@namespace'::regclass)
			ON CONFLICT (ns) DO UPDATE SET history = excluded.history, epoch = n.epoch + 1, timeline = excluded.timeline, system = excluded.system, relation = excluded.relation
			WHERE n.timeline <> excluded.timeline OR n.relation <> excluded.relation OR n.system <> excluded.system AND excluded.system <> 'unknown'`),
		move: o.names("SELECT @move($1, $2, $3) WHERE " + durable),
		// LIMIT keeps the lookup of each ID in the primary key: on tables that were never analyzed Postgres would read all of the kind.
		get: o.names("SELECT (SELECT @timeline()), n.history, " + recordColumns + ` FROM @namespace n CROSS JOIN unnest($3::text[]) k(id) LEFT JOIN LATERAL
			(SELECT * FROM @record q WHERE q.ns = n.ns AND q.kind = $2 AND q.id = k.id LIMIT 1) r ON true WHERE n.ns = $1`),
		head:  o.names("SELECT n.head, n.history, @now_ms() FROM @namespace n WHERE n.ns = $1"),
		heads: o.names("SELECT n.ns, n.head, n.history FROM @namespace n WHERE n.ns = ANY ($1)"),
		// That pos is over zero is said again so that the partial index is taken under any plan.
		follow: o.names(`SELECT n.head, n.history, @now_ms(), n.timeline = @timeline() AND n.relation = n.tableoid, ` + recordColumns + ` FROM @namespace n LEFT JOIN LATERAL
			(SELECT * FROM @record q WHERE q.ns = n.ns AND q.pos > 0 AND q.pos > $2 AND ($3::text[] IS NULL OR q.kind = ANY ($3)) ORDER BY q.pos LIMIT $4) r ON true
			WHERE n.ns = $1 ORDER BY r.pos`),
		purge: o.names("SELECT @purge($1, $2, $3, $4, $5)"),
	}
}

// row is one record as it is read.
type row struct {
	kind, id, subject, client, grant, token, typ *string
	version, data                                []byte
	pos, written, expires                        *int64
}

func (r *row) fields() []any {
	return []any{&r.kind, &r.id, &r.version, &r.pos, &r.written, &r.expires, &r.subject, &r.client, &r.grant, &r.token, &r.typ, &r.data}
}

func (r *row) record(history int64) store.Record {
	out := store.Record{Kind: store.Kind(*r.kind), ID: *r.id, Version: store.Version(r.version), Written: *r.written, Expires: *r.expires,
		Subject: *r.subject, Client: *r.client, Grant: *r.grant, Token: *r.token, Type: *r.typ, Data: r.data}
	if *r.pos != 0 {
		out.Pos = position(history, *r.pos)
	}
	return out
}

// Get implements [store.Store].
func (s *Store) Get(ctx context.Context, kind store.Kind, id string) (store.Record, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	if err := s.usable(ctx); err != nil {
		return store.Record{}, err
	}
	if !kind.Possible(id) {
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
func (s *Store) getAll(ctx context.Context, kind store.Kind, ids []string) (out []store.Record, err error) {
	there := false
	err = s.query(ctx, s.sql.get, []any{s.ns, string(kind), ids}, func() { out, there = nil, false }, func(rows pgx.Rows) error {
		var timeline string
		var history int64
		var r row
		there = true
		if err := rows.Scan(append([]any{&timeline, &history}, r.fields()...)...); err != nil || r.kind == nil {
			return err
		}
		out = append(out, r.record(history))
		return nil
	})
	if err == nil && !there {
		err = s.gone()
	}
	return out, err
}

// query runs a statement and gives each row to scan, which adds it to what begin made empty.
func (s *Store) query(ctx context.Context, sql string, args []any, begin func(), scan func(pgx.Rows) error) error {
	return s.again(ctx, func() error {
		begin()
		rows, err := s.pool.Query(ctx, sql, s.args(args...)...)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			if err := scan(rows); err != nil {
				return err
			}
		}
		return rows.Err()
	})
}

// Follow implements [store.Store]. Page and head are of one snapshot.
func (s *Store) Follow(ctx context.Context, after store.Position, kinds []store.Kind, max int) (store.View, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	if err := s.usable(ctx); err != nil {
		return store.View{}, err
	}
	if max <= 0 || max > store.MaxLimit {
		max = store.MaxLimit
	}
	var only []string
	for _, k := range kinds {
		only = append(only, string(k))
	}
	for try := 0; ; try++ {
		v, same, err := s.follow(ctx, after, only, max)
		switch {
		case err != nil || same:
			return v, err
		case try == 1: // an empty answer would say that nothing was ever written
			return store.View{}, errTwoServers
		}
		if err := s.adopt(ctx); err != nil { // the server is another one since
			return store.View{}, err
		}
	}
}

func (s *Store) follow(ctx context.Context, after store.Position, only []string, max int) (store.View, bool, error) {
	var v store.View
	var head, history int64
	var same, found bool
	err := s.query(ctx, s.sql.follow, []any{s.ns, after.N, only, max + 1}, func() { v, found = store.View{}, false }, func(rows pgx.Rows) error {
		var r row
		if err := rows.Scan(append([]any{&head, &history, &v.Now, &same}, r.fields()...)...); err != nil {
			return err
		}
		found = true
		if r.kind != nil {
			v.Records = append(v.Records, r.record(history))
		}
		return nil
	})
	switch {
	case err != nil:
		return store.View{}, true, err
	case !found:
		return store.View{}, true, s.gone()
	case !same:
		return store.View{}, false, nil
	case after != (store.Position{}) && (after.History != uint64(history) || after.N > head || after.N < 0):
		return store.View{}, true, fmt.Errorf("%w: position %d of history %x, the store is at %d of %x", store.ErrDiverged, after.N, after.History, head, history)
	}
	v.Next = position(history, head)
	if len(v.Records) > max {
		v.Records, v.More = v.Records[:max], true
		v.Next = v.Records[max-1].Pos
	}
	return v, true, nil
}

// List implements [store.Store]. Limit 0 means 1000.
func (s *Store) List(ctx context.Context, q store.Query) (store.Page, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	if err := s.usable(ctx); err != nil {
		return store.Page{}, err
	}
	if possible, err := q.Check(); !possible {
		return store.Page{}, err
	}
	if q.Kind == store.KindEvent {
		return s.listEvents(ctx, q)
	}
	b := s.where(&q, "r.kind = $2", s.ns, string(q.Kind))
	sorted, than := "r.id ASC", ">"
	switch {
	case q.Ends():
		sorted = "r.expires, r.id"
	case q.Newest:
		sorted, than = "r.id DESC", "<"
	}
	place, err := cursor.PlaceText(&q)
	switch {
	case err != nil:
		return store.Page{}, err
	case place != "" && q.Ends():
		expires, id, err := cursor.ReadEnding(place)
		if err != nil {
			return store.Page{}, err
		}
		b.and("(r.expires, r.id) > (?::bigint, ?)", expires, id)
	case place != "":
		b.and("r.id "+than+" ?", place)
	}
	sql := s.o.names("SELECT @timeline(), n.history, "+recordColumns+" FROM @namespace n LEFT JOIN LATERAL (SELECT * FROM @record r WHERE r.ns = n.ns AND ") +
		b.String() + " ORDER BY " + sorted + " LIMIT " + strconv.Itoa(q.Limit+1) + ") r ON true WHERE n.ns = $1 ORDER BY " + sorted
	var page store.Page
	found := false
	err = s.query(ctx, sql, b.args, func() { page, found = store.Page{}, false }, func(rows pgx.Rows) error {
		var timeline string
		var history int64
		var r row
		if err := rows.Scan(append([]any{&timeline, &history}, r.fields()...)...); err != nil {
			return err
		}
		found = true
		if r.kind != nil {
			page.Records = append(page.Records, r.record(history))
		}
		return nil
	})
	switch {
	case err != nil:
		return store.Page{}, err
	case !found:
		return store.Page{}, s.gone()
	}
	if len(page.Records) > q.Limit {
		page.Records = page.Records[:q.Limit]
		last := &page.Records[q.Limit-1]
		at := last.ID
		if q.Ends() {
			at = cursor.Ending(last.Expires, last.ID)
		}
		page.Cursor = cursor.Text(&q, at)
	}
	return page, nil
}

const eventColumns = "r.epoch, r.xid::text, r.seq, CASE WHEN r.id IS NOT NULL THEN 'event' END, r.id, r.version, 0::bigint, r.written, r.expires, r.subject, r.client, r.grant_id, r.token, r.type, r.data"

// listEvents pages in the final order: by transaction, within it by number. Read oldest first it ends at the snapshot
// horizon, behind which no transaction can appear any more. What was purged behind the cursor is looked for in the snapshot
// of the page.
func (s *Store) listEvents(ctx context.Context, q store.Query) (store.Page, error) {
	b := s.where(&q, "true", s.ns)
	order, than, trimmed := " ASC", ">", "false"
	if q.Newest {
		order, than = " DESC", "<"
	} else {
		b.and("(r.xid < pg_snapshot_xmin(pg_current_snapshot()) OR r.epoch < n.epoch)")
	}
	if q.Cursor != "" {
		place, err := cursor.PlaceText(&q)
		if err != nil {
			return store.Page{}, err
		}
		epoch, xid, seq, err := parsePlace(place)
		if err != nil {
			return store.Page{}, err
		}
		k := len(b.args)
		b.and("(r.epoch, r.xid, r.seq) "+than+" (?, ?::text::xid8, ?)", epoch, xid, seq)
		if !q.Newest {
			trimmed = fmt.Sprintf("EXISTS (SELECT 1 FROM %strimmed t WHERE t.ns = n.ns AND (t.epoch, t.xid, t.seq) > ($%d, $%d::text::xid8, $%d))", s.o.qualified(), k+1, k+2, k+3)
		}
	}
	by := " ORDER BY r.epoch" + order + ", r.xid" + order + ", r.seq" + order
	sql := s.o.names("SELECT @timeline(), "+trimmed+", "+eventColumns+" FROM @namespace n LEFT JOIN LATERAL (SELECT * FROM @event r WHERE r.ns = n.ns AND ") +
		b.String() + by + " LIMIT " + strconv.Itoa(q.Limit+1) + ") r ON true WHERE n.ns = $1" + by
	var page store.Page
	var last string
	var gone, found bool
	err := s.query(ctx, sql, b.args, func() { page, found = store.Page{}, false }, func(rows pgx.Rows) error {
		var timeline string
		var xid *string
		var epoch *int32
		var seq *int64
		var r row
		if err := rows.Scan(append([]any{&timeline, &gone, &epoch, &xid, &seq}, r.fields()...)...); err != nil {
			return err
		}
		found = true
		switch {
		case r.kind == nil:
		case len(page.Records) == q.Limit:
			page.Cursor = cursor.Text(&q, last)
		default:
			page.Records = append(page.Records, r.record(0))
			last = fmt.Sprintf("%d.%s.%d", *epoch, *xid, *seq)
		}
		return nil
	})
	switch {
	case err != nil:
		return store.Page{}, err
	case !found:
		return store.Page{}, s.gone()
	case gone:
		return store.Page{}, store.ErrTrimmed
	}
	return page, nil
}

// parsePlace reads an event's place in the order.
func parsePlace(s string) (epoch int32, xid string, seq int64, err error) {
	parts := strings.Split(s, ".")
	if len(parts) == 3 {
		e, err1 := strconv.ParseInt(parts[0], 10, 32)
		_, err2 := strconv.ParseUint(parts[1], 10, 64)
		n, err3 := strconv.ParseInt(parts[2], 10, 64)
		if err := errors.Join(err1, err2, err3); err == nil {
			return int32(e), parts[1], n, nil
		}
	}
	return 0, "", 0, fmt.Errorf("%w: the cursor does not read", store.ErrInvalid)
}

// conditions are joined by AND; a question mark in one becomes the next argument's number.
type conditions struct {
	strings.Builder
	args []any
}

func (s *Store) where(q *store.Query, start string, args ...any) *conditions {
	b := &conditions{args: args}
	b.WriteString(start)
	for _, c := range [...][2]string{{"subject", q.Subject}, {"client", q.Client}, {"grant_id", q.Grant}, {"token", q.Token}, {"type", q.Type}} {
		if c[1] != "" {
			b.and("r."+c[0]+" = ?", c[1])
			if c[0] != "type" && (c[0] != "grant_id" || q.Kind == store.KindEvent) {
				b.and("r." + c[0] + " <> ''") // so that the partial index is taken under any plan
			}
		}
	}
	if q.Since > 0 {
		b.and("r.written >= ?", q.Since)
	}
	if q.Until > 0 {
		b.and("r.written < ?", q.Until)
	}
	if q.ExpiresBefore > 0 {
		b.and("r.expires > 0")
		b.and("r.expires < ?", q.ExpiresBefore)
	}
	return b
}

func (b *conditions) and(text string, args ...any) {
	b.WriteString(" AND ")
	for _, a := range args {
		before, after, _ := strings.Cut(text, "?")
		b.args = append(b.args, a)
		b.WriteString(before + "$" + strconv.Itoa(len(b.args)))
		text = after
	}
	b.WriteString(text)
}
