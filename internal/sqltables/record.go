// Rows as records.

package sqltables

import (
	"strconv"
	"strings"

	"github.com/apitoken-go/apitoken/store"
)

// space is a namespace's row, and what the server said of itself with it.
type space struct {
	head, history int64 // N of the last state change, and the history that it is of
	place         int64 // of the last event
	trimmed       int64 // of the last event that was purged
	moved         bool  // takes no writes
	same          bool  // no acknowledged write was lost since the row was written
	now           int64
	guard         string
	serial        int64
}

func (e *Engine) columns() string {
	return "n.head, n.history, n.place, n.trimmed, n.moved, n.origin = (" + e.Origin + "), " + e.Now() + ", " + e.Guard + ", " + e.Serial
}

func (sp *space) fields() []any {
	return []any{&sp.head, &sp.history, &sp.place, &sp.trimmed, &sp.moved, &sp.same, &sp.now, &sp.guard, &sp.serial}
}

func (sp *space) position() store.Position { return position(sp.history, sp.head) }

func position(history, n int64) store.Position { return store.Position{History: uint64(history), N: n} }

// The columns of both tables. An event has its place instead of pos, and no kind.
const (
	recordFields = "r.ns, r.kind, r.id, r.version, r.pos, r.written, r.expires, r.subject, r.client, r.grant_id, r.token, r.type, r.data"
	eventFields  = "r.ns, 'event', r.id, r.version, r.place, r.written, r.expires, r.subject, r.client, r.grant_id, r.token, r.type, r.data"
	putColumns   = "ns, kind, id, version, pos, written, expires, subject, client, grant_id, token, type, data"
	eventColumns = "ns, place, id, version, written, expires, subject, client, grant_id, token, type, data"
)

// record is one row of either table; id is nil where there is none.
type record struct {
	ns, kind, id, subject, client, grant, token, typ *string
	version, data                                    []byte
	pos, written, expires                            *int64
}

func (r *record) fields() []any {
	return []any{&r.ns, &r.kind, &r.id, &r.version, &r.pos, &r.written, &r.expires, &r.subject, &r.client, &r.grant, &r.token, &r.typ, &r.data}
}

func (r *record) out(history int64) store.Record {
	out := store.Record{Kind: store.Kind(*r.kind), ID: *r.id, Written: *r.written, Expires: *r.expires,
		Subject: *r.subject, Client: *r.client, Grant: *r.grant, Token: *r.token, Type: *r.typ, Data: r.data}
	copy(out.Version[:], r.version)
	if out.Kind.State() {
		out.Pos = position(history, *r.pos)
	}
	return out
}

// values writes the fields that both tables end with, from expires on.
func (e *Engine) values(b *strings.Builder, r *store.Record) {
	b.WriteString(strconv.FormatInt(r.Expires, 10))
	for _, s := range [...]string{r.Subject, r.Client, r.Grant, r.Token, r.Type} {
		b.WriteString(", " + e.Text(s))
	}
	b.WriteString(", " + e.Bytes(r.Data) + ")")
}

func (e *Engine) number(b *strings.Builder, n int64) {
	b.WriteString(strconv.FormatInt(n, 10))
	b.WriteString(", ")
}
