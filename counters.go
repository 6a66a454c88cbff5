package apitoken

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apitoken-go/apitoken/store"
)

// Refusals and uses happen at every request, and refusals at the will of whoever sends them. They are counted in memory
// of a fixed size and written in batches: a crash loses at most half a minute of counts, and nobody can fill the disk.

// tally counts refusals.
type tally struct {
	mu     sync.Mutex // guards counts
	counts map[refusal]*refusalCount
}

// refusal is what is counted together. Who is refused is named only when the token was verified.
type refusal struct {
	kind                            EventType
	reason                          string
	subject, client, token, grantID string
}

type refusalCount struct {
	refusal
	n         int
	addresses []netip.Addr // the first few that were seen
}

const (
	maxRefusals  = 128 // distinct ones between two flushes; the rest are counted without a name
	maxAddresses = 8
)

func (t *tally) init() { t.counts = map[refusal]*refusalCount{} }

func (t *tally) add(kind EventType, reason string, d *tokenData, from netip.Addr) {
	r := refusal{kind: kind, reason: reason}
	if d != nil {
		r.subject, r.client, r.token, r.grantID = d.Subject, d.Client, d.ID, d.Grant
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.count(r, 1, from)
}

func (t *tally) count(r refusal, n int, from netip.Addr) {
	c := t.counts[r]
	if c == nil && len(t.counts) >= maxRefusals {
		r = refusal{kind: r.kind, reason: r.reason}
		c = t.counts[r]
	}
	if c == nil {
		// The strings belong to a cached token or to a request: clone, so that neither is kept.
		r.subject, r.client, r.token, r.grantID = strings.Clone(r.subject), strings.Clone(r.client), strings.Clone(r.token), strings.Clone(r.grantID)
		c = &refusalCount{refusal: r}
		t.counts[r] = c
	}
	c.n += n
	if !from.IsValid() || len(c.addresses) == maxAddresses {
		return
	}
	for _, a := range c.addresses {
		if a == from {
			return
		}
	}
	c.addresses = append(c.addresses, from.WithZone(""))
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
		t.count(c.refusal, c.n, netip.Addr{})
		for _, a := range c.addresses {
			t.count(c.refusal, 0, a)
		}
	}
}

func (c *refusalCount) event() Event {
	e := Event{Type: c.kind, Reason: c.reason, Subject: c.subject, Client: c.client, TokenID: c.token, Grant: c.grantID, Count: c.n}
	var list []string
	for _, a := range c.addresses {
		list = append(list, a.String())
	}
	if len(list) > 0 {
		e.Extra = map[string]string{"addresses": strings.Join(list, " ")}
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
)

// useLog collects counters that have something to write.
type useLog struct {
	mu     sync.Mutex // guards all below
	dirty  []*useCounter
	stored map[string]storedUse // of what was written last, so that the next write needs no read
	busy   sync.Mutex           // one flush at a time
}

// useCounter counts the uses of one token's grant or API key in this process. Several may count the same one.
type useCounter struct {
	log  *useLog
	id   string
	n    atomic.Uint64
	last atomic.Int64 // Unix ms
	from atomic.Pointer[netip.Addr]
}

type useRecord struct {
	V       int    `json:"v"`
	Count   uint64 `json:"n"`
	Last    int64  `json:"last"` // Unix ms
	Address string `json:"addr,omitempty"`
}

type storedUse struct {
	useRecord
	version store.Version
}

// usage is what is known of the use of a grant or API key.
type usage struct {
	count   uint64
	last    time.Time
	address string
}

func (l *useLog) init() { l.stored = map[string]storedUse{} }

func (a *auditLog) counter(kind, id string) *useCounter {
	return &useCounter{log: &a.uses, id: kind + id}
}

// hit counts one use. It is on the path of every request: the first one since a flush takes a lock, the rest do not.
func (c *useCounter) hit(now time.Time, from *netip.Addr) {
	if ms := now.UnixMilli(); ms-c.last.Load() >= 1000 {
		c.last.Store(ms)
	}
	if from != nil && from.IsValid() {
		if old := c.from.Load(); old == nil || *old != *from {
			kept := *from // the context's own belongs to a request
			c.from.Store(&kept)
		}
	}
	if c.n.Add(1) == 1 {
		c.log.mu.Lock()
		if len(c.log.dirty) < maxUses {
			c.log.dirty = append(c.log.dirty, c)
		} else {
			c.n.Store(0)
		}
		c.log.mu.Unlock()
	}
}

// take empties the counter into u.
func (c *useCounter) take(u *useRecord) {
	u.Count += c.n.Swap(0)
	c.peek(u)
}

func (c *useCounter) peek(u *useRecord) {
	if last := c.last.Load(); last > u.Last {
		u.Last = last
		if a := c.from.Load(); a != nil {
			u.Address = a.WithZone("").String()
		}
	}
}

// flush adds what was counted to the stored records, sixteen in a change.
func (l *useLog) flush(ctx context.Context, s *Service) error {
	l.busy.Lock()
	defer l.busy.Unlock()
	l.mu.Lock()
	dirty := l.dirty
	l.dirty = nil
	l.mu.Unlock()
	sums := make(map[string]*useRecord, len(dirty))
	for _, c := range dirty {
		u := sums[c.id]
		if u == nil {
			u = &useRecord{V: 1}
			sums[c.id] = u
		}
		c.take(u)
	}
	batch := make(map[string]*useRecord, 16)
	var failed error
	for id, u := range sums {
		if u.Count == 0 {
			continue
		}
		if failed != nil {
			l.giveBack(id, u)
			continue
		}
		batch[id] = u
		if len(batch) == 16 {
			failed = l.write(ctx, s, batch)
			clear(batch)
		}
	}
	if len(batch) > 0 && failed == nil {
		failed = l.write(ctx, s, batch)
	}
	return failed
}

// giveBack keeps a count for the next flush.
func (l *useLog) giveBack(id string, u *useRecord) {
	c := &useCounter{log: l, id: id}
	c.n.Store(u.Count)
	c.last.Store(u.Last)
	if a, err := netip.ParseAddr(u.Address); err == nil {
		c.from.Store(&a)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.dirty) < maxUses {
		l.dirty = append(l.dirty, c)
	}
}

func (l *useLog) write(ctx context.Context, s *Service, batch map[string]*useRecord) error {
	for try := 0; try < 4; try++ {
		next := make(map[string]storedUse, len(batch))
		c := s.newChange()
		for id, u := range batch {
			old, err := l.read(ctx, s, id, try > 0)
			if err != nil {
				l.keep(batch)
				return err
			}
			sum := old.useRecord
			sum.V = 1
			sum.Count += u.Count
			if u.Last > sum.Last {
				sum.Last = u.Last
				if u.Address != "" {
					sum.Address = u.Address
				}
			}
			data, err := json.Marshal(sum)
			if err != nil {
				l.keep(batch)
				return err
			}
			life := useSlack
			if strings.HasPrefix(id, useGrant) {
				life = s.longest.Load().grant + grantSlack
			}
			c.put(store.Record{Kind: kindUse, ID: id, Data: data, Expires: s.now().Add(life).UnixMilli()}, old.version)
			next[id] = storedUse{sum, c.ID}
		}
		_, err := s.commit(ctx, c)
		if errors.Is(err, store.ErrConflict) {
			continue // another process counts the same ones
		}
		if err != nil {
			l.keep(batch)
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
	l.keep(batch)
	return nil
}

func (l *useLog) keep(batch map[string]*useRecord) {
	for id, u := range batch {
		l.giveBack(id, u)
	}
}

// read is the stored count, from memory unless fresh is asked for.
func (l *useLog) read(ctx context.Context, s *Service, id string, fresh bool) (storedUse, error) {
	if !fresh {
		l.mu.Lock()
		u, ok := l.stored[id]
		l.mu.Unlock()
		if ok {
			return u, nil
		}
	}
	r, err := s.get(ctx, kindUse, id)
	if isNotFound(err) {
		return storedUse{}, nil
	}
	if err != nil {
		return storedUse{}, err
	}
	u := storedUse{version: r.Version}
	err = decodeRecord(r, &u.useRecord)
	return u, err
}

// usage is what is stored of a grant's or API key's use, and what this process has counted since.
func (a *auditLog) usage(ctx context.Context, kind, id string) (usage, error) {
	u, err := a.uses.read(ctx, a.s, kind+id, true)
	if err != nil {
		return usage{}, err
	}
	sum := u.useRecord
	a.uses.mu.Lock()
	for _, c := range a.uses.dirty {
		if c.id == kind+id {
			sum.Count += c.n.Load()
			c.peek(&sum)
		}
	}
	a.uses.mu.Unlock()
	out := usage{count: sum.Count, address: sum.Address}
	if sum.Last > 0 {
		out.last = time.UnixMilli(sum.Last)
	}
	return out, nil
}
