package apitoken

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apitoken-go/apitoken/internal/record"
	"github.com/apitoken-go/apitoken/internal/rules"
	"github.com/apitoken-go/apitoken/store"
)

// Refusals and uses happen at every request, and refusals at the will of whoever sends them. They are counted in memory
// of a fixed size and written in batches: a crash loses at most half a minute of counts, and nobody can fill the disk.

// tally counts refusals.
type tally struct {
	mu     sync.Mutex // guards counts
	counts map[refusal]*refusalCount
}

// refusal is what is counted together. Who is refused is named only when the token was verified. claimed is the registered
// client that somebody said to be and did not prove: whom it was aimed at, not who it was.
type refusal struct {
	kind                            EventType
	reason                          string
	subject, client, token, grantID string
	issuer                          string // of subject and token; empty: our own
	claimed                         string
}

// of names whose token d is.
func (r *refusal) of(s *core, d *tokenData) {
	r.issuer, r.subject, r.client, r.token, r.grantID = s.foreignIssuer(d), d.Subject, d.Client, d.ID, d.Grant
}

// named reports whether r says who was refused.
func (r *refusal) named() bool {
	return r.subject != "" || r.client != "" || r.token != "" || r.grantID != "" || r.claimed != ""
}

type refusalCount struct {
	refusal
	n         int
	addresses []netip.Addr // the first few that were seen
	whys      []string     // the first few limits that said no, in words; not part of the key, so that no caller can multiply it
}

const (
	maxRefusals  = 128 // distinct ones between two flushes; the rest are counted without a name
	maxAddresses = 8
	maxWhys      = 4
	flushBatch   = 16 // refusals, or counters of uses, in one change
)

func (t *tally) init() { t.counts = map[refusal]*refusalCount{} }

func (t *tally) one(r refusal, from netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.count(r, 1, from)
}

// oneFor is one with the limit that said no.
func (t *tally) oneFor(r refusal, why string, from netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.count(r, 1, from).add(why)
}

// add notes why, if it is new and there is room.
func (c *refusalCount) add(why string) {
	if why != "" && len(c.whys) < maxWhys && !slices.Contains(c.whys, why) {
		c.whys = append(c.whys, strings.Clone(why))
	}
}

// count adds n to what is counted as r, and returns it. The caller holds mu.
func (t *tally) count(r refusal, n int, from netip.Addr) *refusalCount {
	c := t.counts[r]
	if c == nil && len(t.counts) >= maxRefusals {
		r = refusal{kind: r.kind, reason: r.reason}
		c = t.counts[r]
	}
	if c == nil {
		// The strings belong to a cached token or to a request: clone, so that neither is kept.
		r.subject, r.client, r.token, r.grantID = strings.Clone(r.subject), strings.Clone(r.client), strings.Clone(r.token), strings.Clone(r.grantID)
		r.issuer, r.claimed = strings.Clone(r.issuer), strings.Clone(r.claimed)
		c = &refusalCount{refusal: r}
		t.counts[r] = c
	}
	c.n += n
	if from.IsValid() && len(c.addresses) < maxAddresses && !slices.Contains(c.addresses, from) {
		c.addresses = append(c.addresses, from.WithZone(""))
	}
	return c
}

func (t *tally) take() []*refusalCount {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.counts) == 0 {
		return nil
	}
	out := make([]*refusalCount, 0, len(t.counts))
	for _, c := range t.counts {
		out = append(out, c)
	}
	t.counts = map[refusal]*refusalCount{}
	return out
}

func (t *tally) giveBack(list []*refusalCount) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range list {
		again := t.count(c.refusal, c.n, netip.Addr{})
		for _, a := range c.addresses {
			t.count(c.refusal, 0, a)
		}
		for _, why := range c.whys {
			again.add(why)
		}
	}
}

func (c *refusalCount) event() Event {
	e := Event{Type: c.kind, Reason: c.reason, Subject: c.subject, Issuer: c.issuer, Client: c.client, TokenID: c.token, Grant: c.grantID, Count: c.n}
	var list []string
	for _, a := range c.addresses {
		list = append(list, a.String())
	}
	for name, v := range map[string]string{"addresses": strings.Join(list, " "), "claimed": c.claimed, "why": strings.Join(c.whys, "; ")} {
		if v == "" {
			continue
		}
		if e.Extra == nil {
			e.Extra = map[string]string{}
		}
		e.Extra[name] = v
	}
	return e
}

// What uses are counted of.
const (
	useGrant  = "g/"
	useAPIKey = "k/"

	kindUse store.Kind = "use"

	maxUses  = 1 << 16 // counters with something to write, between two flushes; uses beyond are not counted
	useSlack = 400 * 24 * time.Hour

	maxUsedScopes = 32 // kept of one grant or API key
)

// useLog knows the counters that have something to write, and those that were used since the flush before the last.
type useLog struct {
	mu     sync.Mutex           // guards all below
	open   map[used]*useCounter // one of each grant and API key
	second []*useCounter        // of those that have one in open already: from a cache that kept it for longer, or given back
	stored map[used]storedUse   // what was written last, so that the next write needs no read
	busy   sync.Mutex           // one flush at a time
}

// used is what uses are counted of.
type used struct {
	kind string // useGrant or useAPIKey
	id   string
}

func (u used) String() string { return u.kind + u.id }

// useCounter counts the uses of one grant or API key in this process, whatever number of tokens it has. It refers to no token:
// it may outlive them in the log.
type useCounter struct {
	used
	log    *useLog
	listed bool // in second; guarded by log.mu
	n      atomic.Uint64
	last   atomic.Int64                 // Unix ms
	from   atomic.Pointer[[]netip.Addr] // the latest first, at most maxAddresses; never changed, only replaced
	// The scopes that were asked of it and that it held, at most maxUsedScopes; never changed, only replaced. Their strings are
	// those of the host's requirements.
	scopes atomic.Pointer[Scopes]
	more   atomic.Bool // scopes holds some that were not taken yet
}

var useForm = record.Form[useRecord]{Kind: kindUse}

type useRecord struct {
	V      int      `json:"v"`
	Count  uint64   `json:"n"`
	Last   int64    `json:"last"` // Unix ms
	From   []string `json:"from,omitempty"`
	Scopes Scopes   `json:"scopes,omitempty"`
	record.Ext
}

type storedUse struct {
	useRecord
	version store.Version
}

// Usage is how a grant or an API key was used: in processes with a store, where every validation counts, up to half a
// minute ago in the others. A process that ends by a crash loses as much.
type Usage struct {
	Count     uint64
	Last      time.Time // to within a second; zero: never
	Addresses []string  // by Origin, the latest first, at most 8
	// Scopes are those that [Authorize] asked of it and that it held: as they were asked for, which may be narrower than what
	// it holds. At most 32 are kept; 32 may not be all. A program that looks at Token.Scopes by itself leaves no trace here.
	Scopes Scopes
}

// Usage tells how the grant of ByGrant, or the API key of ByToken, was used: the zero Usage if it was not, and for IDs that
// nothing has. ErrInvalidRequest: another target, or a narrowed one.
func (s *Service) Usage(ctx context.Context, target Target) (Usage, error) {
	t := target.t
	switch t {
	case rules.ByGrant(t.Id):
		return s.audit.usage(ctx, useGrant, t.Id)
	case rules.ByToken(t.Id):
		return s.audit.usage(ctx, useAPIKey, t.Id)
	}
	return Usage{}, fail(ErrInvalidRequest, "use is counted of one grant or one API key")
}

func (l *useLog) init() { l.open, l.stored = map[used]*useCounter{}, map[used]storedUse{} }

// counter counts the uses of a grant or API key. It is known from its first use on: what is refused takes no room.
func (a *auditLog) counter(kind, id string) *useCounter {
	l := &a.uses
	u := used{kind, id}
	l.mu.Lock()
	c := l.open[u]
	l.mu.Unlock()
	if c == nil {
		u.id = strings.Clone(id) // the caller's may be a part of a request
		c = &useCounter{log: l, used: u}
	}
	return c
}

// room tells whether there is place for one more counter. The caller holds mu.
func (l *useLog) room() bool { return len(l.open)+len(l.second) < maxUses }

// waiting is how many counters have something to write.
func (l *useLog) waiting() (n int) {
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
func (c *useCounter) counted() bool { return c.n.Load() > 0 || c.more.Load() }

// hit counts one use. It is on the path of every request: the first one since a flush takes a lock, the rest do not.
func (c *useCounter) hit(now time.Time, from *netip.Addr) { c.hitAfter(c.last.Load(), now, from) }

// hitAfter is hit for who has read c.last before.
func (c *useCounter) hitAfter(last int64, now time.Time, from *netip.Addr) {
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
func (c *useCounter) moved(from netip.Addr, old *[]netip.Addr) {
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

// met notes which scopes a request needed that was let through. Of several of which any is enough it notes one. It is on the
// path of every request: one that asks for nothing new costs a look through a short list.
func (c *useCounter) met(held heldScopes, r *Requirement) {
	list := c.scopes.Load()
	for _, s := range r.scopes {
		if list != nil && slices.Contains(*list, s) {
			if r.kind == requireAny {
				return
			}
			continue
		}
		if r.kind == requireAny {
			if !held.allows(s) {
				continue
			}
			c.asked(s)
			return
		}
		c.asked(s)
	}
}

// asked adds a scope, unless there are as many as are kept.
func (c *useCounter) asked(s Scope) {
	for {
		old := c.scopes.Load()
		var list Scopes
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
func (l *useLog) enlist(c *useCounter) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	other := l.open[c.used]
	switch {
	case other == c || c.listed:
		return true
	case !l.room():
		return false
	case other == nil:
		l.open[c.used] = c
	default:
		l.second, c.listed = append(l.second, c), true
	}
	return true
}

// take empties the counter into u.
func (c *useCounter) take(u *useRecord) {
	u.Count += c.n.Swap(0)
	scopes := c.more.Swap(false)
	c.peek(u, scopes)
}

// peek adds what the counter says of when, from where and, if they are asked for, with which scopes.
func (c *useCounter) peek(u *useRecord, scopes bool) {
	var from []string
	if list := c.from.Load(); list != nil {
		for _, a := range *list {
			from = append(from, a.WithZone("").String())
		}
	}
	var s Scopes
	if list := c.scopes.Load(); list != nil && scopes {
		s = *list
	}
	u.add(c.last.Load(), from, s)
}

// add merges what was seen until last into u.
func (u *useRecord) add(last int64, from []string, scopes Scopes) {
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

// toWrite takes the counters that have something to write, and forgets those that nobody used since it was called last.
func (l *useLog) toWrite() []*useCounter {
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

// flush adds what was counted to the stored records, sixteen in a change.
func (l *useLog) flush(ctx context.Context, s *core) error {
	l.busy.Lock()
	defer l.busy.Unlock()
	list := l.toWrite()
	sums := make(map[used]*useRecord, len(list))
	for _, c := range list {
		u := sums[c.used]
		if u == nil {
			u = &useRecord{V: 1}
			sums[c.used] = u
		}
		c.take(u)
	}
	batch := make(map[used]*useRecord, flushBatch)
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
			failed = l.writeEach(ctx, s, batch)
			clear(batch)
		}
	}
	if len(batch) > 0 && failed == nil {
		failed = l.writeEach(ctx, s, batch)
	}
	return failed
}

// writeEach writes a batch, and each of its counters by itself where one of them can never be written. That one is dropped. What
// could not be written now is kept for the next flush.
func (l *useLog) writeEach(ctx context.Context, s *core, batch map[used]*useRecord) error {
	err := l.write(ctx, s, batch)
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
			s.log.Error("apitoken: uses that can not be recorded were dropped", "of", id.String(), "count", u.Count, "error", err)
		}
		return nil
	}

	var failed error
	for id, u := range batch {
		if failed != nil {
			l.giveBack(id, u)
			continue
		}
		failed = l.writeEach(ctx, s, map[used]*useRecord{id: u})
	}
	return failed
}

// neverStored reports that repeating a write of uses is no use: the store refuses the record, or the one that it has can't be read.
func neverStored(err error) bool {
	var e *Error
	return errors.Is(err, ErrInvalidRequest) || errors.As(err, &e) && errors.Is(e.Cause, errUseUnread)
}

var errUseUnread = errors.New("the stored count is damaged or of a newer version")

// giveBack keeps a count for the next flush.
func (l *useLog) giveBack(id used, u *useRecord) {
	c := &useCounter{log: l, used: id}
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
func (l *useLog) write(ctx context.Context, s *core, batch map[used]*useRecord) error {
	for try := 0; try < 4; try++ {
		next := make(map[used]storedUse, len(batch))
		c := s.newChange()
		for id, u := range batch {
			old, err := l.read(ctx, s, id, try > 0)
			if err != nil {
				return err
			}
			sum := old.useRecord
			sum.V = 1
			sum.Count += u.Count
			sum.add(u.Last, u.From, u.Scopes)
			life := useSlack
			if id.kind == useGrant {
				life = s.longest.Load().grant + grantSlack
			}
			if err := put(c, &useForm, store.Record{ID: id.String(), Expires: s.now().Add(life).UnixMilli()}, &sum, old.version); err != nil {
				return err
			}
			next[id] = storedUse{sum, c.ID}
		}
		_, err := s.commit(ctx, c)
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
			l.stored[id] = u
		}
		l.mu.Unlock()
		return nil
	}
	return store.ErrConflict
}

// read is the stored count, from memory unless fresh is asked for.
func (l *useLog) read(ctx context.Context, s *core, id used, fresh bool) (storedUse, error) {
	if !fresh {
		l.mu.Lock()
		u, ok := l.stored[id]
		l.mu.Unlock()
		if ok {
			return u, nil
		}
	}
	r, err := s.get(ctx, kindUse, id.String())
	if isNotFound(err) {
		return storedUse{}, nil
	}
	if err != nil {
		return storedUse{}, err
	}
	u := storedUse{version: r.Version}
	if err := useForm.Read(r, &u.useRecord); err != nil {
		return u, &Error{Code: ErrUnavailable, Detail: "stored uses of " + id.String(), Cause: fmt.Errorf("%w: %w", errUseUnread, err)}
	}
	return u, nil
}

// usage is what is stored of a grant's or API key's use, and what this process has counted since.
func (a *auditLog) usage(ctx context.Context, kind, id string) (Usage, error) {
	of := used{kind, id}
	u, err := a.uses.read(ctx, a.s, of, true)
	if err != nil {
		return Usage{}, err
	}
	sum := u.useRecord
	a.uses.mu.Lock()
	add := func(c *useCounter) {
		if c != nil && c.used == of && c.counted() {
			sum.Count += c.n.Load()
			c.peek(&sum, true)
		}
	}
	add(a.uses.open[of])
	for _, c := range a.uses.second {
		add(c)
	}
	a.uses.mu.Unlock()
	out := Usage{Count: sum.Count, Addresses: sum.From, Scopes: sum.Scopes}
	if sum.Last > 0 {
		out.Last = time.UnixMilli(sum.Last)
	}
	return out, nil
}
