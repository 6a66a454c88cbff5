// Package etcdstore keeps an apitoken service in etcd (3.4 or later), through the host's own client:
//
//	st, err := etcdstore.New(ctx, client, nil)
//	if err != nil { ... }
//	defer st.Close()
//
// Every write is one transaction and every read is linearizable. All processes that use one cluster and prefix are one
// service. etcd suits state that every process must know and grants in the hundred thousands: its whole contents are
// limited (2 GiB unless --quota-backend-bytes says more; a grant takes about half a kilobyte). It does not suit an audit trail,
// so events wait in it only until they have been shipped to the store that Options.Events names. Run etcd with
// --auto-compaction-retention: without it each rotation adds a revision that stays.
//
// The user of an etcd with authentication needs read and write permission on the prefix. Losing data is found by the
// cluster's id, its members, its raft term and the distance between its raft index and its revision; a cluster that was
// restored from a snapshot, or forced to go on with a minority of its members, has a new History in its positions.
package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"

	"github.com/apitoken-go/apitoken/store"
)

// Store is a prefix of an etcd cluster, and the store.Store of its default namespace. It is safe for concurrent use.
type Store struct {
	*space

	client  *clientv3.Client
	prefix  string
	dest    func(string) store.Store
	limit   int64 // of the outbox, in units
	timeout time.Duration
	wall    func() time.Time
	log     *slog.Logger
	clock   *clock

	ctx    context.Context // ends when Close begins
	cancel context.CancelFunc
	tasks  sync.WaitGroup
	slots  chan struct{} // one for each write under way, revocations aside
	urgent chan struct{} // the same for revocations

	lineage   atomic.Pointer[lineage]
	answers   atomic.Int64  // which endpoint answered the last question for its status
	doubt     atomic.Uint64 // a history that this process knows to have lost writes
	checking  chan struct{} // holds a token while the lineage is checked
	kick      chan struct{} // there is something to ship
	shipping  atomic.Bool   // this process has the claim
	watchOnce sync.Once

	mu     sync.Mutex // guards closed, spaces
	closed bool
	spaces map[string]*space
}

// Options change what New does; nil means all defaults.
type Options struct {
	// Prefix is put before every key, so that a cluster can hold other things. At most 128 bytes, and best
	// with a slash at its end: no other key may begin with it. Empty: "apitoken/".
	Prefix string

	// Events answers the store that keeps the events of a namespace ("" is the default one), for example of package
	// pgstore or boltstore. Each is shipped there once, usually within a second, by whichever process holds the claim;
	// they are then listed from there, with the Written and Version of their arrival. While that store can't be
	// reached they wait in etcd, up to OutboxBytes. Every process must be given the same store: one which answers
	// nil ships nothing, and must not be mixed with others that do. The store also gets one record of kind
	// "etcd-outbox", which says how far shipping has come.
	//
	// Nil: events stay in etcd, up to OutboxBytes, until Purge removes those that have expired.
	Events func(namespace string) store.Store

	// OutboxBytes is how many bytes of events may wait in etcd, in each namespace. The events of a change count as 1 KiB, and 4 KiB more
	// for each that they hold beyond it, the last rounded up. From half of it on, changes with events are slowed down, so that no more
	// is written than is shipped. Where it is full they wait for half of Timeout at most, and are answered ErrOutboxFull when nothing was
	// shipped for as long; at once where Events is nil. Changes with a revocation never are. What other processes write is noticed
	// within a second, so the limit can be passed by as much. Zero: 512 MiB.
	OutboxBytes int64

	// Timeout bounds every verb whatever its context, and New: a member that fell silent holds no caller for longer.
	// Repetitions while a leader is elected are included, and what a write waits for its turn. Zero: 5 s.
	Timeout time.Duration

	// Now is the clock; nil: time.Now. Only its wall time is used. etcd has no clock of its own to ask, so processes
	// should agree within the skew that the host allows for.
	Now func() time.Time

	// Log hears of what needs an operator: lost history, an outbox that does not drain. Nil: nobody.
	Log *slog.Logger
}

const (
	defaultPrefix  = "apitoken/"
	defaultTimeout = 5 * time.Second
	defaultOutbox  = 512 << 20
	maxPrefix      = 128
	maxWrites      = 1024 // under way in one process; the rest wait for a place, and hold no goroutine
	checkEvery     = 2 * time.Second
)

// New opens the store, and creates what it needs in a cluster where the prefix is unused. It ends with ctx and answers
// an error when the cluster cannot be reached. The client stays the host's: Close does not close it. Its dial timeout
// and keep-alives decide how soon a member that fell silent is left; DialKeepAliveTime of 2 to 5 s is advised.
func New(ctx context.Context, client *clientv3.Client, o *Options) (*Store, error) {
	if o == nil {
		o = &Options{}
	}
	if client == nil {
		return nil, fmt.Errorf("%w: no client", store.ErrInvalid)
	}
	s := &Store{
		client: client, prefix: o.Prefix, dest: o.Events, timeout: o.Timeout, wall: o.Now, log: o.Log,
		limit: o.OutboxBytes / unit, spaces: map[string]*space{},
		slots: make(chan struct{}, maxWrites), urgent: make(chan struct{}, maxWrites),
		checking: make(chan struct{}, 1), kick: make(chan struct{}, 1),
	}
	if s.prefix == "" {
		s.prefix = defaultPrefix
	}
	switch {
	case len(s.prefix) > maxPrefix:
		return nil, fmt.Errorf("%w: Options.Prefix of %d bytes, at most %d", store.ErrInvalid, len(s.prefix), maxPrefix)
	case o.Timeout < 0:
		return nil, fmt.Errorf("%w: negative Options.Timeout", store.ErrInvalid)
	case o.OutboxBytes < 0:
		return nil, fmt.Errorf("%w: negative Options.OutboxBytes", store.ErrInvalid)
	case o.OutboxBytes == 0:
		s.limit = defaultOutbox / unit
	}
	if s.timeout == 0 {
		s.timeout = defaultTimeout
	}
	if s.wall == nil {
		s.wall = time.Now
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.clock = newClock(s.wall, nil)
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.space = newSpace(s, "", nil)

	// A client connects for ever; the first question must not. A member is asked for a part of the time only, so that there is
	// some for another; where there is none, or all are slow, they are asked again until the time is over.
	first, stop := context.WithTimeout(ctx, s.timeout)
	defer stop()
	err := s.check(first, true)
	for first.Err() == nil && (errors.Is(err, context.DeadlineExceeded) || codeOf(err) == codes.DeadlineExceeded) {
		err = s.check(first, true)
	}
	if over := first.Err(); err != nil && over != nil && !errors.Is(err, over) {
		err = fmt.Errorf("%w: %w", over, err) // what was last tried is not why it failed
	}
	if err != nil {
		s.cancel()
		return nil, fmt.Errorf("etcdstore: open: %w", err)
	}
	s.background(s.watchLineage)
	if s.dest != nil {
		s.background(s.ship)
	}
	return s, nil
}

// Namespace returns the store of another namespace: its records, order and events are its own. The name is 1 to 64 of
// a-z, 0-9, '-' and '_'; with another name every verb answers an error that says so. It costs nothing until it is used.
func (s *Store) Namespace(name string) store.Store { return s.named(name) }

func (s *Store) named(name string) *space {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.spaces[name]; n != nil {
		return n
	}
	if !validName(name) {
		return newSpace(s, "", fmt.Errorf("%w: namespace %q must be 1 to 64 of a-z, 0-9, '-' and '_'", store.ErrInvalid, name))
	}
	n := newSpace(s, name, nil)
	s.spaces[name] = n
	return n
}

func validName(name string) bool {
	ok := len(name) >= 1 && len(name) <= 64
	for i := range len(name) {
		c := name[i]
		ok = ok && (c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_')
	}
	return ok
}

// Close ends what runs behind the store, gives up the claim to ship, and waits for writes under way (Options.Timeout at
// most). Afterwards every verb answers ErrClosed.
func (s *Store) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.tasks.Wait()
	return nil
}

// begin counts a task that Close waits for.
func (s *Store) begin() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	s.tasks.Add(1)
	return nil
}

// background runs f until it returns, which it does when s.ctx ends.
func (s *Store) background(f func()) {
	if s.begin() != nil {
		return
	}
	go func() {
		defer s.tasks.Done()
		f()
	}()
}

func (s *Store) now() int64 { return max(0, s.wall().UnixMilli()) }

// space is one namespace and the store.Store of it.
type space struct {
	s    *Store
	name string
	err  error // every verb's answer where the namespace's name is not allowed
	keys keys

	ships  func() bool // Options.Events names a store for it
	window int         // changes that the shipper, whose it is, has on their way at once

	state, grants group

	mu      sync.Mutex // guards what follows
	changed chan struct{}
	head    int64 // the position last seen, in history
	history uint64
	headAt  bool // the key of the head is known to exist
	epoch   int64
	epochAt bool // the key of the epoch is known to exist
	inEpoch int  // entries that this process has put into epoch
	outbox  measure
}

var (
	_ store.Store = (*space)(nil)
	_ store.Waker = (*space)(nil)
	_ store.Store = (*Store)(nil)
	_ store.Waker = (*Store)(nil)
)

func newSpace(s *Store, name string, err error) *space {
	n := &space{
		s: s, name: name, err: err, keys: newKeys(s.prefix, name),
		state: group{most: stateFlights}, grants: group{most: grantFlights},
	}
	n.window = 1
	n.ships = sync.OnceValue(func() bool { return n.dest() != nil })
	return n
}

// usable is asked first by every verb.
func (n *space) usable(ctx context.Context) error {
	if n.err != nil {
		return n.err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if n.s.ctx.Err() != nil {
		return ErrClosed
	}
	return nil
}

// bounded gives a verb the store's own deadline beside its caller's.
func (n *space) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, n.s.timeout)
}

// saw remembers the highest position of a history.
func (n *space) saw(history uint64, head int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.history != history {
		n.history, n.head = history, 0
	}
	n.head, n.headAt = max(n.head, head), n.headAt || head > 0
}

// read runs gets in one read-only transaction at one revision, and repeats them while the cluster has no leader.
func (s *Store) read(ctx context.Context, ops ...clientv3.Op) (*clientv3.TxnResponse, error) {
	own, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	for wait := firstWait; ; {
		if s.ctx.Err() != nil {
			return nil, ErrClosed
		}
		l := s.lineage.Load()
		seen := l.seen.Load()
		r, err := s.client.Txn(own).Then(ops...).Commit()
		if err == nil {
			if err = s.verify(own, l, seen, (*header)(r.Header)); err == nil {
				return r, nil
			}
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if !errors.Is(err, errMoved) && !passing(err) || !pause(own, s.ctx, &wait) {
			return nil, fmt.Errorf("etcdstore: read: %w", err)
		}
	}
}
