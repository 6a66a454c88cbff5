package etcdstore

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/apitoken-go/apitoken/internal/cursor"
	"github.com/apitoken-go/apitoken/store"
)

// Shipping moves events from etcd into another store, in the order of commits and each once. How far it has come is a
// record in that other store, which the change that adds the events moves along by compare-and-swap: two processes that
// ship at once cannot both succeed, and one that is killed between shipping and clearing leaves what the next one
// recognises. The claim on the work, under a lease, only saves them from trying.
const (
	kindOutbox  store.Kind = "etcd-outbox"
	claimTTL               = 5 // s
	shipEvery              = 250 * time.Millisecond
	shipBytes              = 240 << 10 // of events in one change: the contract's 256 KiB, less the record
	clearEvery             = 80        // entries that are sent and then removed from etcd together
	maxWindow              = 8         // changes on their way to the other store
	longBackoff            = 5 * time.Second
)

func (n *space) dest() store.Store {
	if n.s.dest == nil {
		return nil
	}
	return n.s.dest(n.name)
}

// shipSoon tells the shipper that there is work, if this process is the one that ships.
func (s *Store) shipSoon() {
	if s.shipping.Load() {
		select {
		case s.kick <- struct{}{}:
		default:
		}
	}
}

// ship runs until the store is closed.
func (s *Store) ship() {
	var lease clientv3.LeaseID
	var renewed time.Time
	t := time.NewTicker(shipEvery)
	defer t.Stop()
	wait := firstWait
	for {
		ctx, cancel := context.WithTimeout(s.ctx, s.timeout)
		if time.Since(renewed) > claimTTL*time.Second/4 {
			if lease = s.claim(ctx, lease); lease != 0 {
				renewed = time.Now()
			}
		}
		cancel()
		s.shipping.Store(lease != 0)
		if lease != 0 {
			if err := s.shipAll(renewed); err != nil && s.ctx.Err() == nil {
				s.log.Warn("etcdstore: events not shipped", "error", err)
				wait = min(2*wait, longBackoff)
				select {
				case <-time.After(wait):
				case <-s.ctx.Done():
				}
			} else {
				wait = firstWait
			}
		}
		select {
		case <-s.kick:
		case <-t.C:
		case <-s.ctx.Done():
			if lease != 0 {
				last, cancel := context.WithTimeout(context.Background(), s.timeout/5)
				_, _ = s.client.Revoke(last, lease) // the next one need not wait for it to run out
				cancel()
			}
			return
		}
	}
}

// claim keeps or takes the claim; zero when another process has it.
func (s *Store) claim(ctx context.Context, lease clientv3.LeaseID) clientv3.LeaseID {
	key := s.prefix + keyShipper
	if lease != 0 {
		if k, err := s.client.KeepAliveOnce(ctx, lease); err == nil && k.TTL > 0 {
			r, err := s.client.Get(ctx, key)
			if err == nil && len(r.Kvs) == 1 && r.Kvs[0].Lease == int64(lease) {
				return lease
			}
		}
	}
	r, err := s.client.Get(ctx, key)
	if err != nil || len(r.Kvs) > 0 {
		return 0
	}
	g, err := s.client.Grant(ctx, claimTTL)
	if err != nil {
		return 0
	}
	t, err := s.client.Txn(ctx).
		If(clientv3.Compare(clientv3.CreateRevision(key), "=", 0)).
		Then(clientv3.OpPut(key, "1", clientv3.WithLease(g.ID))).Commit()
	if err != nil || !t.Succeeded {
		_, _ = s.client.Revoke(ctx, g.ID)
		return 0
	}
	return g.ID
}

// shipAll goes through every namespace that has events, until there are none or the claim must be renewed.
func (s *Store) shipAll(claimed time.Time) error {
	prefix := s.prefix + "e/"
	var first error
	for from := prefix; ; {
		r, err := s.read(s.ctx, clientv3.OpGet(from, clientv3.WithRange(clientv3.GetPrefixRangeEnd(prefix)), clientv3.WithLimit(1), clientv3.WithKeysOnly()))
		if err != nil {
			return err
		}
		kvs := r.Responses[0].GetResponseRange().Kvs
		if len(kvs) == 0 {
			return first
		}
		name, _, ok := strings.Cut(strings.TrimPrefix(string(kvs[0].Key), prefix), "/")
		if !ok || name != "" && !validName(name) {
			return errValue("a key of the outbox does not read")
		}
		n := s.space
		if name != "" {
			n = s.named(name)
		}
		// A namespace whose store fails must not hold up the others.
		err = n.ship(s.ctx, claimed)
		n.outbox.failed(err)
		if err != nil && first == nil {
			first = err
		}
		if s.ctx.Err() != nil {
			return first
		}
		from = clientv3.GetPrefixRangeEnd(n.keys.events)
	}
}

// shipped is how far a namespace's events have come.
type shipped struct {
	history uint64
	place   int64
	version store.Version
}

// has tells whether an event is shipped. After a restore revisions repeat: of the new history nothing has been shipped
// by a cursor of the old one, and of an older one everything that lies before it.
func (c *shipped) has(e *entry, at int64, current uint64) bool {
	return c.version != store.Version{} && (c.history == current || e.history != current) && at <= c.place
}

func (n *space) shippedSoFar(ctx context.Context, dest store.Store) (shipped, error) {
	r, err := dest.Get(ctx, kindOutbox, n.outboxID())
	if errors.Is(err, store.ErrNotFound) {
		return shipped{}, nil
	}
	if err != nil {
		return shipped{}, err
	}
	d := reader{b: r.Data}
	c := shipped{history: uint64(d.int64()), place: d.int64(), version: r.Version}
	if d.bad || len(d.b) != 0 {
		return shipped{}, errValue("the record of what was shipped does not read")
	}
	return c, nil
}

// outboxID tells outboxes apart that share a store by mistake or on purpose.
func (n *space) outboxID() string {
	sum := sha256.Sum256([]byte(n.s.prefix + "\x00" + n.name))
	return fmt.Sprintf("%x", sum[:8])
}

// ship moves what there is, and returns when the outbox is empty, something fails or the claim must be renewed.
func (n *space) ship(ctx context.Context, claimed time.Time) error {
	dest := n.dest()
	if dest == nil {
		return nil
	}
	cur, err := n.shippedSoFar(ctx, dest)
	if err != nil {
		return err
	}
	for time.Since(claimed) < claimTTL*time.Second/2 {
		l := n.s.lineage.Load()
		epoch, rev, ok, err := n.firstEpoch(ctx, 0, 0)
		if err != nil || !ok {
			return err
		}
		if cur.history == l.id && cur.place>>placeBits > rev {
			// The other store has seen more of this history than the cluster knows.
			n.s.doubt.Store(l.id)
			if err := n.s.check(ctx, false); err != nil {
				return err
			}
			return errMoved
		}
		entries, err := n.epochEntries(ctx, epoch, rev, false)
		if err != nil {
			return err
		}
		if cur, err = n.shipEpoch(ctx, dest, cur, entries, claimed); err != nil {
			return err
		}
	}
	return nil
}

// shipEpoch ships entries that are sorted and known by their keys only, a part at a time: while one is sent, the next is loaded and the
// one before is cleared. What is shipped and still in etcd is always the oldest of the outbox, two parts at most, and goes in one
// transaction: List relies on finding a shipped batch in etcd whole or not.
func (n *space) shipEpoch(ctx context.Context, dest store.Store, cur shipped, entries []entry, claimed time.Time) (shipped, error) {
	ahead, stop := context.WithCancel(ctx)
	var loaded chan error
	load := func(part []entry) {
		loaded = make(chan error, 1)
		go func(c chan<- error) { c <- n.load(ahead, part) }(loaded)
	}
	defer func() {
		stop()
		if loaded != nil {
			<-loaded
		}
	}()
	cleared := make(chan error, 1) // the answer for the part before
	cleared <- nil
	var left []*entry // by an earlier shipper
	parts := slices.Collect(slices.Chunk(entries, clearEvery))
	for k, part := range parts {
		if time.Since(claimed) > claimTTL*time.Second/2 {
			break
		}
		if k == 0 {
			load(part)
		}
		err := <-loaded
		if loaded = nil; err != nil {
			return cur, errors.Join(err, <-cleared)
		}
		if k+1 < len(parts) {
			load(parts[k+1])
		}

		current, i := n.s.lineage.Load().id, 0
		for ; i < len(part) && cur.has(&part[i], part[i].last(), current); i++ {
			left = append(left, &part[i])
		}
		if i == len(part) && k+1 < len(parts) && len(left) <= 2*clearEvery {
			continue // there may be more
		}
		if err := n.clear(ctx, left); err != nil {
			return cur, errors.Join(err, <-cleared)
		}
		left = nil

		batches := n.batches(part[i:], cur, current)
		sent, err := n.sendAll(ctx, dest, &cur, batches)
		var clear []*entry
		for _, b := range batches[:sent] {
			for range b.complete {
				clear = append(clear, &part[i])
				i++
			}
		}
		if err != nil {
			before := <-cleared
			if before == nil {
				before = n.clear(ctx, clear)
			}
			return cur, errors.Join(err, before)
		}
		if err := <-cleared; err != nil {
			return cur, err
		}
		go func() { cleared <- n.clear(ctx, clear) }()
	}
	return cur, <-cleared
}

// load reads the values of entries. One that is gone was shipped by another process.
func (n *space) load(ctx context.Context, part []entry) error {
	ops := make([]clientv3.Op, len(part))
	for i := range part {
		ops[i] = clientv3.OpGet(part[i].key)
	}
	r, err := n.s.read(ctx, ops...)
	if err != nil {
		return err
	}
	for i := range part {
		kvs := r.Responses[i].GetResponseRange().Kvs
		if len(kvs) == 0 {
			return errShipped
		}
		e, err := decodeEvents(kvs[0].Value)
		if err != nil {
			return err
		}
		if err := e.stands(kvs[0], part[i].epoch); err != nil {
			return err
		}
		part[i] = e
	}
	return nil
}

var errShipped = errors.New("etcdstore: another process ships")

// batch is the events of one change to the other store.
type batch struct {
	events   []store.Record
	next     shipped
	complete int // entries that it finishes
}

// batch takes events while they fit; at least one does.
func (n *space) batch(entries []entry, cur *shipped, current uint64) batch {
	var b batch
	size := 0
	for i := range entries {
		e := &entries[i]
		for j := range e.events {
			at := e.at(j)
			if cur.has(e, at, current) {
				continue // with a batch that ended inside of the entry
			}
			need := e.events[j].Size()
			if len(b.events) > 0 && (size+need > shipBytes || len(b.events) == store.MaxEvents) {
				return b
			}
			b.events, size = append(b.events, e.events[j]), size+need
			b.next = shipped{history: e.history, place: at}
		}
		b.complete++
	}
	return b
}

// batches are all batches of entries, behind cur.
func (n *space) batches(entries []entry, cur shipped, current uint64) (all []batch) {
	for len(entries) > 0 {
		b := n.batch(entries, &cur, current)
		entries = entries[b.complete:]
		all = append(all, b)
		cur = b.next
		cur.version = n.shipID(&b)
	}
	return all
}

// sendAll applies batches to the other store, in their order, and returns how many it has. Some are on their way at once, so that a store
// whose writers share a commit has several to share it: each expects the version that the one before will write, and is refused if it
// comes too early.
func (n *space) sendAll(ctx context.Context, dest store.Store, cur *shipped, batches []batch) (sent int, err error) {
	took := func(b *batch) {
		*cur = b.next
		cur.version = n.shipID(b)
		sent++
	}
	for sent < len(batches) {
		window := batches[sent:min(sent+n.window, len(batches))]
		if len(window) <= 1 {
			n.window = min(n.window+1, maxWindow)
			if err := n.send(ctx, dest, cur, &window[0]); err != nil {
				return sent, err
			}
			took(&window[0])
			continue
		}
		errs := make([]error, len(window))
		var wg sync.WaitGroup
		version := cur.version
		for i := range window {
			c := n.shipment(&window[i], version)
			version = c.ID
			wg.Go(func() {
				own, cancel := context.WithTimeout(ctx, n.s.timeout)
				defer cancel()
				_, errs[i] = dest.Apply(own, c)
			})
			runtime.Gosched() // so that they come in their order, mostly
		}
		wg.Wait()

		// One that was done says the same of all before it, whatever their answers were.
		last := len(window) - 1
		for last >= 0 && errs[last] != nil {
			last--
		}
		for i := range window[:last+1] {
			took(&window[i])
		}
		if last == len(window)-1 {
			n.window = min(n.window+1, maxWindow)
			continue
		}
		n.window = 1 // the next one goes by itself, and is repeated as often as it takes
	}
	return sent, nil
}

// The id of a change that ships tells how far it goes, so that List can tell from an event in the other store where it
// stood here: place(8) check(4) history(4), the last two hashed.

func (n *space) shipID(b *batch) store.Version {
	var id store.Version
	binary.BigEndian.PutUint64(id[:], uint64(b.next.place))
	copy(id[8:], n.shipCheck(id[:8], 0))
	copy(id[12:], n.shipCheck(id[:8], b.next.history))
	return id
}

func (n *space) shipCheck(place []byte, history uint64) []byte {
	h := sha256.New()
	h.Write([]byte("etcdstore shipped\x00" + n.s.prefix + "\x00" + n.name + "\x00"))
	h.Write(place)
	h.Write(binary.BigEndian.AppendUint64(nil, history))
	return h.Sum(nil)[:4]
}

// shippedTo is the place up to which the change went that shipped an event.
func (n *space) shippedTo(v store.Version) (int64, bool) {
	if string(v[8:12]) != string(n.shipCheck(v[:8], 0)) {
		return 0, false
	}
	return int64(binary.BigEndian.Uint64(v[:8]) &^ (1 << 63)), true
}

// shipment is the change that ships a batch behind the one that wrote version before.
func (n *space) shipment(b *batch, before store.Version) *store.Change {
	data := binary.BigEndian.AppendUint64(nil, b.next.history)
	data = binary.BigEndian.AppendUint64(data, uint64(b.next.place))
	return &store.Change{
		ID:     n.shipID(b),
		Puts:   []store.Put{{Record: store.Record{Kind: kindOutbox, ID: n.outboxID(), Data: data}, Expect: before}},
		Events: b.events,
	}
}

// send applies a batch to the other store, the identical change again while its outcome is unknown.
func (n *space) send(ctx context.Context, dest store.Store, cur *shipped, b *batch) error {
	c := n.shipment(b, cur.version)
	wait := firstWait
	for tries := 0; ; tries++ {
		own, cancel := context.WithTimeout(ctx, n.s.timeout)
		_, err := dest.Apply(own, c)
		cancel()
		switch {
		case err == nil:
			return nil
		case errors.Is(err, store.ErrConflict), errors.Is(err, store.ErrReadOnly), errors.Is(err, store.ErrTooLarge), tries == 3:
			return fmt.Errorf("etcdstore: ship: %w", err)
		}
		if !pause(ctx, n.s.ctx, &wait) {
			return fmt.Errorf("etcdstore: ship: %w", err)
		}
	}
}

// clear removes shipped entries, all or none.
func (n *space) clear(ctx context.Context, entries []*entry) error {
	if len(entries) == 0 {
		return nil
	}
	var ops []clientv3.Op
	gone, counts := int64(0), n.outbox.counted()
	for _, e := range entries {
		ops = append(ops, clientv3.OpDelete(e.key))
		size := int64(48 * len(e.events))
		for i := range e.events {
			size += int64(e.events[i].Size())
		}
		gone += units(size)
		if weights(size) > 0 {
			ops = append(ops, clientv3.OpDelete(n.keys.weightsOf(e.key), clientv3.WithPrefix()))
		}
	}
	if len(ops) > maxOps {
		var nested []clientv3.Op
		for part := range slices.Chunk(ops, maxOps) {
			nested = append(nested, clientv3.OpTxn(nil, part, nil))
		}
		ops = nested
	}
	if err := n.s.mend(ctx, nil, ops...); err != nil {
		return err
	}
	n.removed(gone, counts)
	return nil
}

// listFeed is the other store's feed.
func (n *space) listFeed(ctx context.Context, q *store.Query, dest store.Store, place string) (store.Page, error) {
	sub := *q
	if sub.Cursor = place; place != "" {
		if place[0] != 2 {
			return store.Page{}, fmt.Errorf("%w: the cursor is of events kept in etcd", store.ErrTrimmed)
		}
		sub.Cursor = place[1:]
	}
	p, err := dest.List(ctx, sub)
	if err == nil && p.Cursor != "" {
		p.Cursor = cursor.Text(q, "\x02"+p.Cursor)
	}
	return p, err
}

// listNewest shows what waits in etcd at the revision of the first page, then what the other store has from before the
// oldest of that.
func (n *space) listNewest(ctx context.Context, q *store.Query, dest store.Store, cur eventCursor, set bool) (store.Page, error) {
	var p store.Page
	if !cur.inOther {
		if cur.at == 0 {
			if err := n.snapshot(ctx, &cur); err != nil {
				return p, err
			}
		}
		rest, _, err := n.walk(ctx, q, &cur, set, cur.at, &p.Records)
		switch {
		case errCompacted(err) && set: // the first page may have another snapshot, see List
			return store.Page{}, fmt.Errorf("%w: etcd was compacted past the first page", store.ErrTrimmed)
		case err != nil:
			return store.Page{}, err
		case rest:
			p.Cursor = cursor.Text(q, cur.encode())
			return p, nil
		}
		cur.inOther = true
	}
	for {
		if len(p.Records) == q.Limit {
			p.Cursor = cursor.Text(q, cur.encode())
			return p, nil
		}
		sub := *q
		sub.Cursor, sub.Limit = cur.other, q.Limit-len(p.Records)
		r, err := dest.List(ctx, sub)
		if err != nil {
			return store.Page{}, err
		}
		for i := range r.Records {
			if to, ours := n.shippedTo(r.Records[i].Version); ours && to >= cur.bound {
				continue // was in an earlier page, or came after the first
			}
			p.Records = append(p.Records, r.Records[i])
		}
		if cur.other = r.Cursor; r.Cursor == "" {
			return p, nil
		}
	}
}

// snapshot fixes what a newest-first listing shows: etcd at a revision, and in the other store what is older than all
// that waits there.
func (n *space) snapshot(ctx context.Context, cur *eventCursor) error {
	epoch, rev, ok, err := n.firstEpoch(ctx, 0, 0)
	if err != nil {
		return err
	}
	cur.at, cur.bound = rev, place(rev+1, 0)
	if !ok {
		return nil
	}
	entries, err := n.epochEntries(ctx, epoch, rev, false)
	if err == nil && len(entries) > 0 {
		cur.bound = entries[0].place
	}
	return err
}
