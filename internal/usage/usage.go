// Package usage counts how grants and API keys are used and what is refused, and limits API keys. It owns the records of uses and of
// spent uses; refusals become events.
//
// It promises that a use costs the path of a request one atomic addition, but for the first use after a flush; that what
// could not be written is counted on, in memory of a fixed bound; that a crash loses at most what was counted since the last flush;
// and that an API key with a limit is never used more often than the limit in all processes.
//
// The Log's mutex guards its maps and is a leaf; no store is asked under it. One flush runs at a time. A Meter's right to
// reserve is held while the store is asked, so that racers share a batch; waiting for it ends with a context.
//
// The root's audit log owns the Log and the Tally and calls their Flush; validators count by Counters; API keys are limited by Meters.
package usage

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/record"
	"github.com/apitoken-go/apitoken/store"
)

// What uses are counted of.
const (
	Grant  = "g/"
	APIKey = "k/"
)

// Kind is the kind of the records of uses.
const Kind store.Kind = "use"

const (
	maxUses       = 1 << 16 // counters with something to write, between two flushes; uses beyond are not counted
	maxUsedScopes = 32      // kept of one grant or API key
	maxAddresses  = 8
	flushBatch    = 16 // counters, or refusals, in one change
	writeTries    = 4
	keyLife       = 400 * 24 * time.Hour // how long the count of an API key is kept after its last use
)

// Config is what a Log needs of the service around it.
type Config struct {
	Writer    *commit.Writer
	Now       func() time.Time
	Log       *slog.Logger
	GrantLife func() time.Duration // how long the count of a grant is kept after its last use
}

// Log knows the counters that have something to write, and those that were used since the flush before the last. Use New.
type Log struct {
	c Config

	mu     sync.Mutex       // guards the next three
	open   map[Of]*Counter  // one of each grant and API key
	second []*Counter       // counters of what open has another one of: from a cache that kept it for longer, or given back
	stored map[Of]storedUse // what was written last, so that the next write needs no read
	busy   sync.Mutex       // held during a flush: there is one at a time
}

// Of is what uses are counted of.
type Of struct {
	Kind string // Grant or APIKey
	ID   string
}

func (u Of) String() string { return u.Kind + u.ID }

// Counter counts the uses of one grant or API key in this process, whatever number of tokens it has. It refers to no token:
// it may outlive them in the log.
type Counter struct {
	Of
	log    *Log
	listed bool // in second; guarded by log.mu
	n      atomic.Uint64
	last   atomic.Int64                 // Unix ms
	from   atomic.Pointer[[]netip.Addr] // the latest first, at most maxAddresses; never changed, only replaced
	// The scopes that were asked of it and that it held, at most maxUsedScopes; never changed, only replaced. Their strings are
	// those of the host's requirements.
	scopes atomic.Pointer[[]string]
	more   atomic.Bool // scopes holds some that were not taken yet
}

// UseForm is how a Record is stored.
var UseForm = record.Form[Record]{Kind: Kind}

// Record is the stored count of one grant or API key.
type Record struct {
	V      int      `json:"v"`
	Count  uint64   `json:"n"`
	Last   int64    `json:"last"` // Unix ms
	From   []string `json:"from,omitempty"`
	Scopes []string `json:"scopes,omitempty"`
	record.Ext
}

type storedUse struct {
	Record
	version store.Version
}

// New returns an empty Log.
func New(c Config) *Log {
	return &Log{c: c, open: map[Of]*Counter{}, stored: map[Of]storedUse{}}
}

// Counter returns the counter of a grant or API key. The log knows it from its first use on: what is refused takes no room.
func (l *Log) Counter(kind, id string) *Counter {
	u := Of{kind, id}
	l.mu.Lock()
	c := l.open[u]
	l.mu.Unlock()
	if c == nil {
		u.ID = strings.Clone(id) // the caller's may be a part of a request
		c = &Counter{log: l, Of: u}
	}
	return c
}

// room tells whether there is place for one more counter. The caller holds mu.
func (l *Log) room() bool { return len(l.open)+len(l.second) < maxUses }

// Len is how many counters the log holds.
func (l *Log) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.open) + len(l.second)
}

// Waiting is how many counters have something to write.
func (l *Log) Waiting() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.open {
		if c.counted() {
			n++
		}
	}
	return n + len(l.second)
}

// counted tells whether c has something to write.
func (c *Counter) counted() bool { return c.n.Load() > 0 || c.more.Load() }

// Hit counts one use. It is on the path of every request: the first use after a flush takes a lock, the others don't.
func (c *Counter) Hit(now time.Time, from *netip.Addr) { c.HitAfter(c.last.Load(), now, from) }

// Last is when the last use was, Unix ms to within a second.
func (c *Counter) Last() int64 { return c.last.Load() }

// HitAfter is Hit for a caller that has read Last.
func (c *Counter) HitAfter(last int64, now time.Time, from *netip.Addr) {
	if ms := now.UnixMilli(); ms-last >= 1000 {
		c.last.Store(ms)
	}
	if from != nil && from.IsValid() {
		if old := c.from.Load(); old == nil || (*old)[0] != *from {
			c.moved(*from, old)
		}
	}
	if c.n.Add(1) == 1 && !c.log.enlist(c) {
		c.n.Store(0)
	}
}

// moved notes an address that is not the one before.
func (c *Counter) moved(from netip.Addr, old *[]netip.Addr) {
	list := make([]netip.Addr, 1, 2)
	list[0] = from
	if old != nil {
		for _, a := range *old {
			if a != from && len(list) < maxAddresses {
				list = append(list, a)
			}
		}
	}
	c.from.Store(&list)
}

// Scopes are those that were noted. Don't change them.
func (c *Counter) Scopes() []string {
	if list := c.scopes.Load(); list != nil {
		return *list
	}
	return nil
}

// Asked notes a scope that a request needed, unless there are as many as are kept.
func (c *Counter) Asked(s string) {
	for {
		old := c.scopes.Load()
		var list []string
		if old != nil {
			if len(*old) == maxUsedScopes || slices.Contains(*old, s) {
				return
			}
			list = *old
		}
		list = append(list[:len(list):len(list)], s)
		if c.scopes.CompareAndSwap(old, &list) {
			c.more.Store(true)
			c.log.enlist(c) // a flush may have taken the count of this use already
			return
		}
	}
}

// enlist has c written at the next flush, if there is room.
func (l *Log) enlist(c *Counter) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	other := l.open[c.Of]
	switch {
	case other == c || c.listed:
		return true
	case !l.room():
		return false
	case other == nil:
		l.open[c.Of] = c
	default:
		l.second, c.listed = append(l.second, c), true
	}
	return true
}

// take empties the counter into u.
func (c *Counter) take(u *Record) {
	u.Count += c.n.Swap(0)
	scopes := c.more.Swap(false)
	c.peek(u, scopes)
}

// peek adds what the counter says of when, from where and, if they are asked for, with which scopes.
func (c *Counter) peek(u *Record, scopes bool) {
	var from []string
	if list := c.from.Load(); list != nil {
		for _, a := range *list {
			from = append(from, a.WithZone("").String())
		}
	}
	var s []string
	if list := c.scopes.Load(); list != nil && scopes {
		s = *list
	}
	u.add(c.last.Load(), from, s)
}

// add merges what was seen until last into u.
func (u *Record) add(last int64, from []string, scopes []string) {
	first, then := u.From, from
	if last > u.Last {
		u.Last, first, then = last, from, u.From
	}
	u.From = slices.Clone(first)
	for _, a := range then {
		if len(u.From) < maxAddresses && !slices.Contains(u.From, a) {
			u.From = append(u.From, a)
		}
	}
	for _, s := range scopes {
		if i, ok := slices.BinarySearch(u.Scopes, s); !ok && len(u.Scopes) < maxUsedScopes {
			u.Scopes = slices.Insert(slices.Clone(u.Scopes), i, s)
		}
	}
}

// toWrite takes the counters that have something to write, and forgets those that were not used since the call before.
func (l *Log) toWrite() []*Counter {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := l.second
	l.second = nil
	for _, c := range list {
		c.listed = false
	}
	for u, c := range l.open {
		if c.counted() {
			list = append(list, c)
		} else {
			delete(l.open, u)
		}
	}
	return list
}

// Flush adds what was counted to the stored records, sixteen in a change.
func (l *Log) Flush(ctx context.Context) error {
	l.busy.Lock()
	defer l.busy.Unlock()
	list := l.toWrite()
	sums := make(map[Of]*Record, len(list))
	for _, c := range list {
		u := sums[c.Of]
		if u == nil {
			u = &Record{V: 1}
			sums[c.Of] = u
		}
		c.take(u)
	}
	batch := make(map[Of]*Record, flushBatch)
	var failed error
	for id, u := range sums {
		if u.Count == 0 && len(u.Scopes) == 0 {
			continue
		}
		if failed != nil {
			l.giveBack(id, u)
			continue
		}
		batch[id] = u
		if len(batch) == flushBatch {
			failed = l.writeEach(ctx, batch)
			clear(batch)
		}
	}
	if len(batch) > 0 && failed == nil {
		failed = l.writeEach(ctx, batch)
	}
	return failed
}

// writeEach writes a batch, and each of its counters by itself where one of them can never be written. That one is dropped. What
// could not be written now is kept for the next flush.
func (l *Log) writeEach(ctx context.Context, batch map[Of]*Record) error {
	err := l.write(ctx, batch)
	switch {
	case err == nil:
		return nil
	case !neverStored(err):
		for id, u := range batch {
			l.giveBack(id, u)
		}
		if errors.Is(err, store.ErrConflict) {
			return nil // other processes count the same ones: next time
		}
		return err
	case len(batch) == 1:
		for id, u := range batch {
			l.c.Log.Error("apitoken: uses that cannot be recorded were dropped", "of", id.String(), "count", u.Count, "error", err)
		}
		return nil
	}

	var failed error
	for id, u := range batch {
		if failed != nil {
			l.giveBack(id, u)
			continue
		}
		failed = l.writeEach(ctx, map[Of]*Record{id: u})
	}
	return failed
}

// neverStored reports that repeating a write of uses is no use: the store refuses the record, or the one that it has can't be read.
func neverStored(err error) bool {
	var e *fault.Error
	return errors.Is(err, fault.InvalidRequest) || errors.As(err, &e) && errors.Is(e.Cause, errUseUnread)
}

var errUseUnread = errors.New("the stored count is damaged or of a newer version")

// giveBack keeps a count for the next flush.
func (l *Log) giveBack(id Of, u *Record) {
	c := &Counter{log: l, Of: id}
	c.n.Store(u.Count)
	c.last.Store(u.Last)
	var from []netip.Addr
	for _, text := range u.From {
		if a, err := netip.ParseAddr(text); err == nil {
			from = append(from, a)
		}
	}
	if len(from) > 0 {
		c.from.Store(&from)
	}
	if len(u.Scopes) > 0 {
		c.scopes.Store(&u.Scopes)
		c.more.Store(true)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.second, c.listed = append(l.second, c), true // it had room before it was taken
}

// write adds a batch to the stored records in one change: all of it or nothing. store.ErrConflict: others were first each time.
func (l *Log) write(ctx context.Context, batch map[Of]*Record) error {
	for try := 0; try < writeTries; try++ {
		next := make(map[Of]storedUse, len(batch))
		c := commit.NewChange()
		for _, a := range commit.All(slices.Collect(maps.Keys(batch)), func(id Of) (storedUse, error) { return l.read(ctx, id, try > 0) }) {
			if a.Err != nil {
				return a.Err
			}
			id, old, u := a.Of, a.Got, batch[a.Of]
			sum := old.Record
			sum.V = 1
			sum.Count += u.Count
			sum.add(u.Last, u.From, u.Scopes)
			life := keyLife
			if id.Kind == Grant {
				life = l.c.GrantLife()
			}
			if err := commit.Put(c, &UseForm, store.Record{ID: id.String(), Expires: l.c.Now().Add(life).UnixMilli()}, &sum, old.version); err != nil {
				return err
			}
			next[id] = storedUse{Record: sum}
		}
		_, err := l.c.Writer.Commit(ctx, c)
		if errors.Is(err, store.ErrConflict) {
			continue // another process counts the same ones
		}
		if err != nil {
			return err
		}
		l.mu.Lock()
		if len(l.stored)+len(next) > maxUses {
			clear(l.stored)
		}
		for id, u := range next {
			u.version = c.ID
			l.stored[id] = u
		}
		l.mu.Unlock()
		return nil
	}
	return store.ErrConflict
}

// read is the stored count, from memory unless fresh is asked for.
func (l *Log) read(ctx context.Context, id Of, fresh bool) (storedUse, error) {
	if !fresh {
		l.mu.Lock()
		u, ok := l.stored[id]
		l.mu.Unlock()
		if ok {
			return u, nil
		}
	}
	r, err := l.c.Writer.Get(ctx, Kind, id.String())
	if errors.Is(err, fault.NotFound) {
		return storedUse{}, nil
	}
	if err != nil {
		return storedUse{}, err
	}
	u := storedUse{version: r.Version}
	if err := UseForm.Read(r, &u.Record); err != nil {
		return u, &fault.Error{Code: fault.Unavailable, Detail: "stored uses of " + id.String(), Cause: fmt.Errorf("%w: %w", errUseUnread, err)}
	}
	return u, nil
}

// Read returns what is stored of a use, and what this process has counted since.
func (l *Log) Read(ctx context.Context, kind, id string) (Record, error) {
	of := Of{kind, id}
	u, err := l.read(ctx, of, true)
	if err != nil {
		return Record{}, err
	}
	sum := u.Record
	l.mu.Lock()
	defer l.mu.Unlock()
	add := func(c *Counter) {
		if c != nil && c.Of == of && c.counted() {
			sum.Count += c.n.Load()
			c.peek(&sum, true)
		}
	}
	add(l.open[of])
	for _, c := range l.second {
		add(c)
	}
	return sum, nil
}
