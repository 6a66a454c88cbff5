package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/apitoken-go/apitoken/store"
)

// Changes that wait while others are written share the next transaction, each nested in it with conditions of its own,
// so that one that conflicts leaves the others alone. That is worth twice the throughput: a transaction costs a round
// trip, an entry in the log of each member and a share of its fsync, whatever is in it. Nobody waits for company: a
// change that comes first goes at once.
//
// State and everything else queue apart. State is written by one transaction at a time, as two would only race for the
// next position; of the rest, some are under way at once.
const (
	stateFlights = 1
	grantFlights = 2
	groupSize    = 32       // changes in one transaction; also what an event's number leaves room for
	groupOps     = 32       // operations of a change that may share
	groupBytes   = 32 << 10 // of a change that may share; thirty-two of them are below etcd's 1.5 MiB
)

// pending is a change on its way.
type pending struct {
	in    *intent
	slots chan struct{} // gets a place back when the outcome is known
	begun time.Time
	done  chan result // never blocks
}

type result struct {
	commit store.Commit
	err    error
}

// group is the queue of one sort of changes.
type group struct {
	most int

	mu      sync.Mutex // guards what follows
	waiting []*pending
	flying  int
}

func (g *group) submit(n *space, p *pending) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.flying < g.most {
		if err := n.s.begin(); err != nil {
			return err
		}
		g.flying++
		go func() {
			defer n.s.tasks.Done()
			g.fly(n)
		}()
	}
	g.waiting = append(g.waiting, p)
	return nil
}

// fly writes what waits until nothing does.
func (g *group) fly(n *space) {
	for {
		batch := g.take()
		if batch == nil {
			return
		}
		n.writeGroup(batch)
	}
}

// take removes what can be written together from the queue, in order; nil ends the flight.
func (g *group) take() []*pending {
	g.mu.Lock()
	defer g.mu.Unlock()
	var batch []*pending
	keys := map[string]struct{}{}
	left := g.waiting[:0]
	for i, p := range g.waiting {
		if len(batch) == groupSize || len(batch) > 0 && !batch[0].in.shares() {
			left = append(left, g.waiting[i:]...)
			break
		}
		if len(batch) > 0 && (!p.in.shares() || overlaps(keys, p.in)) {
			left = append(left, p)
			continue
		}
		batch = append(batch, p)
		for i := range p.in.puts {
			keys[p.in.puts[i].key] = struct{}{}
		}
		keys[string(p.in.id[:])] = struct{}{}
	}
	clear(g.waiting[len(left):])
	g.waiting = left
	if batch == nil {
		g.flying--
	}
	return batch
}

func (in *intent) shares() bool { return in.small && !in.replays }

func overlaps(keys map[string]struct{}, in *intent) bool {
	for i := range in.puts {
		if _, ok := keys[in.puts[i].key]; ok {
			return true
		}
	}
	_, ok := keys[string(in.id[:])]
	return ok
}

func (n *space) finish(p *pending, commit store.Commit, err error) {
	if err == nil && len(p.in.events) > 0 {
		n.s.shipSoon()
	}
	n.outbox.end(p.in)
	p.done <- result{commit, err}
	<-p.slots
}

// writeGroup finds the outcome of each.
func (n *space) writeGroup(batch []*pending) {
	ctx, cancel := context.WithTimeout(context.Background(), n.s.timeout)
	defer cancel()
	for i := 0; i < len(batch); {
		if p := batch[i]; time.Since(p.begun) < n.s.timeout {
			i++
		} else {
			n.finish(p, store.Commit{}, fmt.Errorf("etcdstore: not begun within %s: %w", n.s.timeout, context.DeadlineExceeded))
			batch = append(batch[:i], batch[i+1:]...)
		}
	}
	var unknown error
	if len(batch) > 1 {
		batch, unknown = n.tryGroup(ctx, batch)
	}
	var wg sync.WaitGroup
	for _, p := range batch {
		wg.Add(1)
		go func() {
			defer wg.Done()
			commit, err := n.write(ctx, p.in, unknown)
			n.finish(p, commit, err)
		}()
	}
	wg.Wait()
}

// tryGroup runs the shared transaction, and returns those that must be written alone: after an outcome that is not
// known, or where what all rely on has changed.
func (n *space) tryGroup(ctx context.Context, batch []*pending) (rest []*pending, unknown error) {
	var state int64
	entries := 0
	for _, p := range batch {
		if err := n.oldPositions(ctx, p.in); err != nil {
			return batch, nil
		}
		state += p.in.state
		if len(p.in.events) > 0 {
			entries++
		}
	}
	for range 8 {
		g := n.guess(state, entries)
		cmps, ops := n.common(&g, state > 0, entries > 0)
		shared, at := len(ops), g.first
		for i, p := range batch {
			own, puts := n.transaction(p.in, &g, at, i)
			at += p.in.state
			var gets []clientv3.Op
			for j := range p.in.puts {
				gets = append(gets, clientv3.OpGet(p.in.puts[j].key))
			}
			ops = append(ops, clientv3.OpTxn(own, puts, gets))
		}
		r, err := n.s.client.Txn(ctx).If(cmps...).Then(ops...).Else(n.ask()...).Commit()
		if err != nil {
			f, err := fateOf(err)
			if f == ambiguous {
				unknown = err
			}
			return batch, unknown
		}
		if err := n.s.verify(ctx, g.lineage, g.seen, (*header)(r.Header)); err != nil {
			return batch, err
		}
		if !r.Succeeded {
			t, err := n.told(r)
			if err != nil || t.fenced || t.history != g.lineage.id {
				return batch, nil
			}
			n.learn(&t)
			continue
		}
		commit, err := n.committed(&g, r, state > 0)
		if err != nil {
			return batch, err
		}
		for i, p := range batch {
			one := r.Responses[shared+i].GetResponseTxn()
			if one.Succeeded {
				n.finish(p, commit, nil)
				continue
			}
			switch done, refusal := judge(p.in, one.Responses); {
			case done:
				n.finish(p, commit, nil)
			case refusal != nil:
				n.finish(p, store.Commit{}, refusal)
			default:
				n.finish(p, store.Commit{}, errors.New("etcdstore: a transaction failed for no reason that can be seen"))
			}
		}
		return nil, nil
	}
	return batch, nil
}
