package memstore

import (
	"slices"
	"sort"
	"strings"

	"github.com/apitoken-go/apitoken/store"
)

// text is id, subject, client, grant, token, type and data of a record, copied into one string: one allocation.
type text struct {
	all  string
	ends [6]int32 // of each but data
}

func newText(r *store.Record) text {
	var t text
	var b strings.Builder
	b.Grow(len(r.ID) + len(r.Subject) + len(r.Client) + len(r.Grant) + len(r.Token) + len(r.Type) + len(r.Data))
	for i, s := range [...]string{r.ID, r.Subject, r.Client, r.Grant, r.Token, r.Type} {
		b.WriteString(s)
		t.ends[i] = int32(b.Len())
	}
	b.Write(r.Data)
	t.all = b.String()
	return t
}

func (t *text) id() string      { return t.all[:t.ends[0]] }
func (t *text) subject() string { return t.all[t.ends[0]:t.ends[1]] }
func (t *text) client() string  { return t.all[t.ends[1]:t.ends[2]] }
func (t *text) grant() string   { return t.all[t.ends[2]:t.ends[3]] }
func (t *text) token() string   { return t.all[t.ends[3]:t.ends[4]] }
func (t *text) typ() string     { return t.all[t.ends[4]:t.ends[5]] }

func (t *text) sameSelectors(o *text) bool {
	return t.ends == o.ends && t.all[t.ends[0]:t.ends[5]] == o.all[o.ends[0]:o.ends[5]]
}

// entry is a record or an event. All but text's selectors and number changes when the record is written again.
type entry struct {
	text
	version store.Version
	number  int64 // rises with creation; the order of events
	pos     int64 // Pos.N, 0 but for state
	written int64
	expires int64
	due     int64 // the time under which it stands in the table's expiry heap, 0: not at all; never later than expires
	gone    bool  // purged; the heap may still know it
}

// record copies an entry for a caller.
func (e *entry) record(k store.Kind, history uint64) store.Record {
	r := store.Record{
		Kind: k, ID: e.id(), Version: e.version, Written: e.written, Expires: e.expires,
		Subject: e.subject(), Client: e.client(), Grant: e.grant(), Token: e.token(), Type: e.typ(),
	}
	if e.pos != 0 {
		r.Pos = store.Position{History: history, N: e.pos}
	}
	if data := e.all[e.ends[5]:]; data != "" {
		r.Data = []byte(data)
	}
	return r
}

// matches tells whether q selects e, Kind and Cursor aside.
func (e *entry) matches(q *store.Query) bool {
	return (q.Subject == "" || q.Subject == e.subject()) &&
		(q.Client == "" || q.Client == e.client()) &&
		(q.Grant == "" || q.Grant == e.grant()) &&
		(q.Token == "" || q.Token == e.token()) &&
		(q.Type == "" || q.Type == e.typ()) &&
		(q.Since == 0 || e.written >= q.Since) &&
		(q.Until == 0 || e.written < q.Until) &&
		(q.ExpiresBefore == 0 || e.expires > 0 && e.expires < q.ExpiresBefore)
}

// table holds the records of one kind, or the events.
type table struct {
	kind  store.Kind
	state bool
	byID  map[string]*entry // nil for events
	order sequence          // by id; events by number
	due   expiryHeap
}

func newTable(k store.Kind) *table {
	t := &table{kind: store.Kind(strings.Clone(string(k))), state: k.State()}
	t.order.byNumber = k == store.KindEvent
	if !t.order.byNumber {
		t.byID = map[string]*entry{}
	}
	return t
}

// expire sets when e expires. A later expiry leaves the heap as it is, a lower bound that Purge moves: rotation only
// ever makes grants live longer.
func (t *table) expire(e *entry, expires int64) {
	e.expires = expires
	if expires > 0 && (e.due == 0 || expires < e.due) {
		e.due = expires
		t.due.push(expires, e)
	}
}

// expiryHeap is a binary heap of entries by the time under which they were pushed.
type expiryHeap []dueEntry

type dueEntry struct {
	at    int64
	entry *entry
}

func (h *expiryHeap) push(at int64, e *entry) {
	s := append(*h, dueEntry{})
	i := len(s) - 1
	for i > 0 {
		up := (i - 1) / 2
		if s[up].at <= at {
			break
		}
		s[i] = s[up]
		i = up
	}
	s[i] = dueEntry{at, e}
	*h = s
}

// before calls yield for what stands under a time before the limit, from place i down, in no order, until yield answers false.
func (h expiryHeap) before(i int, limit int64, yield func(*entry) bool) bool {
	return i >= len(h) || h[i].at >= limit ||
		yield(h[i].entry) && h.before(2*i+1, limit, yield) && h.before(2*i+2, limit, yield)
}

// popBefore takes out the first entry if it stands under a positive time before the limit; nil if there is none. An
// entry that was pushed again under an earlier time comes up twice: the later one finds it gone, or moved.
func (h *expiryHeap) popBefore(limit int64) *entry {
	s := *h
	if len(s) == 0 || s[0].at >= limit {
		return nil
	}
	e := s[0].entry
	n := len(s) - 1
	last := s[n]
	s[n] = dueEntry{}
	s = s[:n]
	i := 0
	for {
		down := 2*i + 1
		if down >= n {
			break
		}
		if down+1 < n && s[down+1].at < s[down].at {
			down++
		}
		if last.at <= s[down].at {
			break
		}
		s[i] = s[down]
		i = down
	}
	if n > 0 {
		s[i] = last
	}
	if cap(s) > 1024 && n < cap(s)/4 {
		s = slices.Clone(s)
	}
	*h = s
	return e
}

// stateLog is the state in order of Pos. A record that is written again moves to the end and leaves a stale place
// behind; stale places go when they are the greater part.
type stateLog struct {
	places []place
	live   int
}

type place struct {
	pos   int64
	entry *entry
	table *table
}

func (l *stateLog) write(e *entry, t *table, pos int64) {
	if e.pos == 0 {
		l.live++
	}
	e.pos = pos
	l.places = append(l.places, place{pos, e, t})
	l.compact()
}

func (l *stateLog) forget(e *entry) {
	e.pos = 0
	l.live--
	l.compact()
}

func (l *stateLog) compact() {
	if len(l.places) <= 2*l.live+64 {
		return
	}
	l.places = slices.DeleteFunc(l.places, func(p place) bool { return p.entry.pos != p.pos })
}

// after returns the places behind a position. The caller holds the lock as long as it uses them.
func (l *stateLog) after(pos int64) []place {
	i := sort.Search(len(l.places), func(i int) bool { return l.places[i].pos > pos })
	return l.places[i:]
}
