// Package redisstore keeps an apitoken service in Redis (7.0 or later), through the host's own client, cluster
// and Sentinel clients included:
//
//	st, err := redisstore.New(ctx, client, nil)
//	if err != nil { ... }
//	defer st.Close()
//
// Every write is one script, and in each namespace one comes after the other, so that all order is final when it is made.
// Changes that come together share a script, each decided by itself. Each namespace lies in one hash slot: on one node, in
// its memory. A grant with 300 bytes of data takes about a kilobyte, an event with 150 about 400 bytes. What limits
// a namespace is one core of that node and its fsync: on two cores, shared with 64 callers, 18,000 to 28,000 writes of
// the size of a rotation and its event a second with appendfsync always, 34,000 to 50,000 with everysec, 23,000 to 31,000
// when a replica confirms each (the lower figures beside other work). These are the store's alone: a service that refreshes
// on the same cores does 3,300 to 6,800 a second. The namespaces of a cluster spread over its nodes.
//
// Everything is in memory and stays until it is purged, events too: with 10,000 a second for 30 days a namespace would
// need ten terabytes. A host that keeps its audit trail for long takes another store, or a sink that ships events before
// they expire.
//
// # What must be so on the server
//
// New looks, and answers ErrUnsafe otherwise, as does every verb after a failover to a server that is configured otherwise:
//
//   - maxmemory-policy noeviction (or Options.InsecureMayEvict)
//   - appendonly yes and appendfsync always; or Options.WaitAOF; or Options.WaitReplicas; or Options.InsecureMayLoseWrites
//   - an append-only file, where there is one, that was rewritten since the server's start: New and whoever finds the server
//     started again have it rewritten and wait for that. With aof-load-truncated yes, the default, what a crash has cut off
//     in the middle of a change could otherwise come back, in part, after the next one.
//
// A server that is configured anew while it runs is not looked at again. Its user needs keys that begin with "{" and the
// prefix and ":", the channel of the prefix and ":wake", and these commands:
//
//	eval evalsha info config|get bgrewriteaof publish subscribe unsubscribe ping time exists wait waitaof
//	hget hset hdel hmget hgetall get set del append xadd xdel xrange xrevrange
//	cluster|keyslot cluster|nodes cluster|countkeysinslot (of a cluster)
//	hlen zadd zrem zscore zcard zrange zrangebylex zrevrangebylex zrangebyscore zrevrangebyscore zremrangebyscore zremrangebyrank
//
// Where CONFIG is forbidden, see Options.TrustServerConfig. The scripts name only one of their keys to the server, as the
// others follow from what is stored; all are in its slot. Servers that insist on more (Dragonfly, unless it is told
// to allow undeclared keys) won't do.
//
// # What a failover does
//
// Redis replicates after it has acknowledged, so a failover may lose what was acknowledged last. Options.WaitReplicas
// narrows that down to what no replica confirmed, and such a write is not acknowledged. Whatever is set, a loss is found:
// each script compares the server's replication id, and how many writes there are with how many this process has seen.
// When they don't fit, nothing is read or written, the namespace begins a new History, Apply answers an error that wraps
// store.ErrDiverged to changes that were decided on the old one, and so does Follow from a position of it. A replication
// id changes when a replica is promoted, when the last replica has been gone for the server's repl-backlog-ttl, and when a
// server is started again: see Options.RestartLosesNothing.
//
// A slot of a cluster that moves to another node as redis-cli --cluster reshard moves it, its keys first, loses nothing, and
// keeps the History: as long as the node that had it runs, under the same replication id and with no key of it left, when the
// first process comes to the new node. Otherwise, or where the commands for it are forbidden, it counts as a loss. So does the
// move of a node's last slot, upon which the node becomes a replica, unless cluster-allow-replica-migration is off.
//
// A namespace that is emptied, by FLUSHALL or by a server that comes back with nothing, answers ErrEmptied from then on: to the
// processes that used it, and, once one of those has looked (each does every second or so), to those that start. Emptied while
// no process runs, it can't be told from one that was never used.
//
// Until its replicas have been gone for ten seconds, an old primary that is cut off from them does not know that
// another was promoted, and still answers those on its side; then, with Options.WaitReplicas, it refuses. The host's
// bound on staleness can be no less than that. Without WaitReplicas set min-replicas-to-write in the server.
//
// Whoever restores a backup below a store with Options.RestartLosesNothing tells each namespace so before it is used:
// HSET {prefix:namespace}m replid restored
package redisstore

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/apitoken-go/apitoken/store"
)

// Store is a prefix of the keys of a Redis server or cluster, and the store.Store of its default namespace. It is safe for
// concurrent use.
type Store struct {
	*space

	client  redis.UniversalClient
	cluster *redis.ClusterClient // client, if it is one
	o       Options
	prompt  bool // client ends with its context by itself
	log     *slog.Logger
	process string // names this process as a sender

	ctx    context.Context // ends when Close begins
	cancel context.CancelFunc
	tasks  sync.WaitGroup
	reads  chan struct{} // one for each read under way
	hears  listener

	mu     sync.Mutex // guards closed, spaces, vetted
	closed bool
	spaces map[string]*space
	vetted map[string]time.Time // replication ids of servers that were found safe
}

// Options change what New does; nil means all defaults.
type Options struct {
	// Prefix is put before every key, so that a server can hold other things: 1 to 64 of a-z, A-Z, 0-9, '-', '_', '.'.
	// Empty: "apitoken". Keys begin with "{prefix:namespace}".
	Prefix string

	// Timeout bounds each verb whatever its context, and New: repetitions while a server is away included, and whatever
	// timeouts the client has or has not. Zero: 5 s.
	Timeout time.Duration

	// WaitReplicas is how many replicas must have received a write before it is acknowledged (WAIT), and must be
	// connected, with a lag of ten seconds at most, for anything to be answered. A write that they didn't confirm
	// within Timeout answers ErrNotReplicated: unknown. With it a server needs no append-only file. A failover must
	// promote one of the replicas that have the write: choose it so that every majority has one.
	WaitReplicas int

	// WaitAOF waits (WAITAOF, Redis 7.2) until the write is on the disk of the primary, with appendfsync everysec too,
	// and on those of WaitReplicas replicas.
	WaitAOF bool

	// RestartLosesNothing keeps the History when a server was started again: the host vouches that this server keeps
	// all that was acknowledged, and is never started with an older copy of its data or with those of a replica. It
	// takes appendonly yes and appendfsync always, or WaitAOF. Without it each start of the server counts as a loss, as
	// it can't be told from one, and the services that use the store must accept it (apitoken.Config.Restored). With it a
	// promoted replica, and a server that has less than a living process has seen, are still found.
	RestartLosesNothing bool

	// InsecureMayEvict accepts a server that may evict records: a rule that is evicted is a revocation undone.
	InsecureMayEvict bool

	// InsecureMayLoseWrites accepts a server that acknowledges what is on no disk yet: a crash brings back what was
	// revoked in its last second. It is found, as described above, and not prevented.
	InsecureMayLoseWrites bool

	// TrustServerConfig is for servers that forbid CONFIG GET or BGREWRITEAOF, as managed ones do: the host vouches for what
	// can't be seen, and that a file which a crash has cut is rewritten, or not started with. What INFO tells is still
	// looked at.
	TrustServerConfig bool

	// Log hears of what needs an operator: lost history, a server that is not safe. Nil: nobody.
	Log *slog.Logger
}

const (
	defaultPrefix  = "apitoken"
	defaultTimeout = 5 * time.Second
	maxReads       = 1024 // under way in one process, at most
)

// New opens the store. It ends with ctx, and answers an error when the server can't be reached or is not safe. The client
// stays the host's: Close does not close it. Where it has ContextTimeoutEnabled, a read that its caller gave up ends at
// once; otherwise it holds a connection until ReadTimeout.
func New(ctx context.Context, client redis.UniversalClient, o *Options) (*Store, error) {
	if o == nil {
		o = &Options{}
	}
	s := &Store{
		client: client, o: *o, log: o.Log, process: rand.Text(),
		reads: make(chan struct{}, maxReads), spaces: map[string]*space{}, vetted: map[string]time.Time{},
	}
	switch c := client.(type) {
	case nil:
		return nil, fmt.Errorf("%w: no client", store.ErrInvalid)
	case *redis.Client:
		s.prompt = c.Options().ContextTimeoutEnabled
	case *redis.ClusterClient:
		s.cluster, s.prompt = c, c.Options().ContextTimeoutEnabled
	case *redis.Ring:
		return nil, fmt.Errorf("%w: a Ring takes a server that is down out of the ring, and goes on without its records", store.ErrInvalid)
	}
	if s.o.Prefix == "" {
		s.o.Prefix = defaultPrefix
	}
	switch {
	case !validPrefix(s.o.Prefix):
		return nil, fmt.Errorf("%w: Options.Prefix %q must be 1 to 64 of a-z, A-Z, 0-9, '-', '_', '.'", store.ErrInvalid, o.Prefix)
	case o.Timeout < 0:
		return nil, fmt.Errorf("%w: negative Options.Timeout", store.ErrInvalid)
	case o.WaitReplicas < 0:
		return nil, fmt.Errorf("%w: negative Options.WaitReplicas", store.ErrInvalid)
	case o.RestartLosesNothing && o.InsecureMayLoseWrites:
		return nil, fmt.Errorf("%w: Options.RestartLosesNothing contradicts InsecureMayLoseWrites", store.ErrInvalid)
	}
	if s.o.Timeout == 0 {
		s.o.Timeout = defaultTimeout
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.hears.waiters = map[string]map[chan struct{}]bool{}
	s.space = newSpace(s, "", nil)

	if err := s.openFirst(ctx); err != nil {
		s.cancel()
		return nil, fmt.Errorf("redisstore: open: %w", err)
	}
	return s, nil
}

// openFirst opens the namespace of New, within Timeout. A client that does not hear its context, and has no timeouts of its own,
// is left behind.
func (s *Store) openFirst(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.o.Timeout)
	done := make(chan error, 1)
	err := s.background(func() {
		defer cancel()
		_, err := s.space.opened(ctx)
		done <- err
	})
	if err != nil {
		cancel()
		return err
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	// One that is between two questions knows more than that time is over.
	last := time.NewTimer(longestWait)
	defer last.Stop()
	select {
	case err := <-done:
		return err
	case <-last.C:
		return fmt.Errorf("no answer within %s: %w", s.o.Timeout, ctx.Err())
	}
}

func validPrefix(p string) bool {
	for i := range len(p) {
		c := p[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-_.", c) >= 0) {
			return false
		}
	}
	return len(p) >= 1 && len(p) <= 64
}

// Namespace returns the store of another namespace: its records, order and events are its own. The name is 1 to 64 of
// a-z, 0-9, '-' and '_'; with another name every verb answers an error that says so. It costs nothing until it is used.
func (s *Store) Namespace(name string) store.Store {
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

// Close ends what runs behind the store and waits for writes under way, for Options.Timeout at most: a client without timeouts
// of its own may hold them for longer. Afterwards every verb answers ErrClosed.
func (s *Store) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()

	ended := make(chan struct{})
	go func() {
		s.tasks.Wait()
		close(ended)
	}()
	late := time.NewTimer(s.o.Timeout)
	defer late.Stop()
	select {
	case <-ended:
	case <-late.C:
		s.log.Warn("redisstore: closed while the client still waits for the server", "timeout", s.o.Timeout)
	}
	return nil
}

// background runs f until it returns; Close waits for it.
func (s *Store) background(f func()) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	s.tasks.Add(1)
	go func() {
		defer s.tasks.Done()
		f()
	}()
	return nil
}

// space is one namespace and the store.Store of it.
type space struct {
	s    *Store
	name string
	err  error  // every verb's answer where the namespace's name is not allowed
	meta string // the key of its counters; the others have the same hash tag

	group group
	gets  getGroup
	clock *clock

	opening chan struct{} // holds a token while the namespace is opened
	lineage lineageValue
}

var (
	_ store.Store = (*space)(nil)
	_ store.Waker = (*space)(nil)
	_ store.Store = (*Store)(nil)
	_ store.Waker = (*Store)(nil)
)

func newSpace(s *Store, name string, err error) *space {
	return &space{
		s: s, name: name, err: err, meta: "{" + s.o.Prefix + ":" + name + "}m",
		clock: newClock(), opening: make(chan struct{}, 1),
		group: group{places: make(chan struct{}, maxWaiting), urgentPlaces: make(chan struct{}, maxWaiting)},
		gets:  getGroup{places: make(chan struct{}, maxWaiting)},
	}
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

// bounded gives a verb that asks several questions the store's own deadline beside its caller's.
func (n *space) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, n.s.o.Timeout)
}

// SetReadOnly makes the namespace refuse writes with [store.ErrReadOnly], in every process, or take them again: for a
// service that moves to another store.
func (n *space) SetReadOnly(ctx context.Context, on bool) error {
	flag := "0"
	if on {
		flag = "1"
	}
	_, _, err := n.ask(ctx, scriptReadOnly, flag)
	return err
}
