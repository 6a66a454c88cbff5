package etcdstore

import (
	"context"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/apitoken-go/apitoken/store"
)

// One watch on the positions of all namespaces wakes whoever waits. It says that there is something, nothing more:
// when it ends, for whatever reason (a leader lost, its revision compacted, the connection cut), everybody is woken,
// looks, and waits for the next watch.

// Wait implements [store.Waker]: it returns when the namespace has state after p, when that may be so, when the store is
// closed, or when ctx ends.
func (n *space) Wait(ctx context.Context, p store.Position) error {
	if err := n.usable(ctx); err != nil {
		return err
	}
	n.s.watchOnce.Do(func() { n.s.background(n.s.watch) })
	changed := n.change()
	r, err := n.s.read(ctx, clientv3.OpGet(n.s.prefix+keyHistory), clientv3.OpGet(n.keys.head))
	if err != nil {
		return err
	}
	id, err := historyOf(r.Responses[0].GetResponseRange())
	if err != nil {
		return err
	}
	head := int64(0)
	if kvs := r.Responses[1].GetResponseRange().Kvs; len(kvs) > 0 {
		if head, err = parse64(kvs[0].Value); err != nil {
			return err
		}
	}
	if head > p.N || p.History != id && p != (store.Position{}) {
		return nil
	}
	select {
	case <-changed:
		return nil
	case <-n.s.ctx.Done():
		return ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

// change is closed at the next change of state.
func (n *space) change() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.changed == nil {
		n.changed = make(chan struct{})
	}
	return n.changed
}

func (n *space) wake() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.changed != nil {
		close(n.changed)
		n.changed = nil
	}
}

func (s *Store) wakeAll() {
	s.mu.Lock()
	all := []*space{s.space}
	for _, n := range s.spaces {
		all = append(all, n)
	}
	s.mu.Unlock()
	for _, n := range all {
		if n != nil {
			n.wake()
		}
	}
}

// watch keeps a watch until the store is closed.
func (s *Store) watch() {
	prefix := s.prefix + "h/"
	for wait := firstWait; s.ctx.Err() == nil; {
		began := time.Now()
		id := s.lineage.Load().id
		// Without a leader the member we are connected to knows nothing: end, and try another.
		ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(s.ctx))
		ch := s.client.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithKeysOnly(), clientv3.WithCreatedNotify())
		for open := true; open; {
			select {
			case r, ok := <-ch:
				switch {
				case !ok || r.Err() != nil:
					open = false
				case r.Created:
					s.wakeAll() // what happened before it began
				}
				for _, e := range r.Events {
					s.wakeNamed(strings.TrimPrefix(string(e.Kv.Key), prefix))
				}
			case <-s.ctx.Done():
				open = false
			case <-time.After(checkEvery):
				// The client resumes a watch at the revision it had reached; in a restored cluster that lies in the
				// future.
				open = s.lineage.Load().id == id
			}
		}
		cancel()
		s.wakeAll()
		if time.Since(began) > 10*wait { // it was up for a while: whoever ended it is gone
			wait = firstWait
		}
		pause(s.ctx, s.ctx, &wait)
	}
}

func (s *Store) wakeNamed(name string) {
	s.mu.Lock()
	n := s.spaces[name]
	if name == "" {
		n = s.space
	}
	s.mu.Unlock()
	if n != nil {
		n.wake()
	}
}
